/* Random devices over the whole chain: files of random text (good, garbage, huge, negative, missing), random policies,
 * a clock that jumps; after each look an oracle reads the same tree in its own way. It knows what has to hold while a
 * device is used, so a decision to use it that it does not share fails; and when all has held for a while, a decision
 * not to use it fails too.
 *
 * 2,000 states; ATTUNE_TEST_FULL=1: 100,000. A failure prints the seed of its walk: ATTUNE_TEST_SEED=N walks it alone.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "energy/governor.h"
#include "tests/expect.h"
#include "tests/simulator.h"

enum { LOOKS = 20 }; /* of one device */

static uint64_t seed;
static uint32_t below(uint32_t n) { /* splitmix64 */
    uint64_t z = seed += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return (uint32_t)(((z ^ z >> 31) >> 32) * n >> 32);
}
static int chance(uint32_t percent) { return below(100) < percent; }

/* ---- random trees ---- */

static struct simulator *device;

static void put(const char *path, const char *text) {
    char why[SIMULATOR_WHY], event[64 + SIMULATOR_PATH];
    snprintf(event, sizeof event, "return %s", path);
    simulator_do(device, event, why); /* had it vanished */
    simulator_put(device, path, text, strlen(text));
}
static void spoil(const char *path) {
    static const char *const texts[] = {
        "",      "\n",         "-1\n",  "99999999999999999999999999\n", "0x1\n",        "1 volt\n",
        "nan\n", "\xff\xfe\n", "1.0\n", "-99999999999999999999\n",      "2147483648\n", " 1\n"};
    static const char *const verbs[] = {"vanish", "fifo", "folder", "loop", "nul", "dangling"};
    char why[SIMULATOR_WHY], event[64 + SIMULATOR_PATH];
    uint32_t which = below(18);
    if (which < 12) {
        put(path, texts[which]);
        return;
    }
    snprintf(event, sizeof event, "%s %s", verbs[which - 12], path);
    if (!simulator_do(device, event, why)) fail_msg("%s: %s", event, why);
}
static void put_or_spoil(const char *path, uint32_t bad, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void put_or_spoil(const char *path, uint32_t bad, const char *format, ...) {
    char text[128];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (chance(bad))
        spoil(path);
    else
        put(path, text);
}

#define SUPPLY "sys/class/power_supply/"
static const char *const supplies[] = {"AC", "USB1", "BAT0", "BAT1"};
static void supply_file(const char *supply, const char *name, uint32_t bad, const char *value) {
    char path[128];
    snprintf(path, sizeof path, SUPPLY "%s/%s", supply, name);
    put_or_spoil(path, bad, "%s\n", value);
}
static int has[4]; /* of supplies[]: this device has it */

static void write_supplies(uint32_t bad) {
    static const char *const status[] = {"Charging", "Charging",    "Full", "Not charging",
                                         "Unknown",  "Discharging", "Tired"};
    char charge[16];
    for (int i = 0; i < 4; i++) {
        if (!has[i] || chance(50)) continue;
        if (i < 2) {
            supply_file(supplies[i], "online", bad, chance(94) ? "1" : "0");
            continue;
        }
        snprintf(charge, sizeof charge, "%u", chance(80) ? 40 + below(61) : below(110));
        supply_file(supplies[i], "status", bad, status[chance(40) ? below(5) : below(7)]);
        supply_file(supplies[i], "capacity", bad, charge);
        if (chance(10)) supply_file(supplies[i], "present", 20, chance(80) ? "1" : "0");
        if (chance(10)) supply_file(supplies[i], "scope", 20, chance(80) ? "System" : "Device");
    }
}
/* Every zone moves at every look: one that stands still is another test's. */
static void write_zones(uint32_t bad) {
    for (int i = 0; i < 3; i++) {
        char path[64];
        snprintf(path, sizeof path, "sys/class/thermal/thermal_zone%d/temp", i);
        int value = chance(90) ? 30000 + (int)below(50000) : (int)below(400000) - 150000;
        put_or_spoil(path, bad, "%d\n", value);
    }
}
static void write_pressure(uint32_t bad) {
    static const char *const names[] = {"cpu", "memory", "io"};
    for (int i = 0; i < 3; i++) {
        char path[64];
        snprintf(path, sizeof path, "proc/pressure/%s", names[i]);
        put_or_spoil(path, bad, "some avg10=%u.%02u avg60=0.00 avg300=0.00 total=1\n",
                     chance(90) ? below(8) : below(120), below(100));
    }
    put_or_spoil("proc/meminfo", bad, "MemTotal: 16000000 kB\nMemAvailable: %u kB\n",
                 chance(90) ? 1000000 + below(8000000) : below(2000000));
}
static void tell_something(void) {
    attune_device *told = &device->told;
    told->power = chance(85) ? ATTUNE_POWER_UNKNOWN : (int)below(4);
    told->discharging = chance(5);
    told->percent = chance(85) ? -1 : (int)below(120);
    told->idle_s = chance(85) ? 400 + below(5000) : chance(50) ? NAN : (double)below(600) - 100;
    told->celsius = chance(90) ? NAN : (double)below(300) - 100;
}

static void make_device(uint32_t bad) {
    device = simulator_open("laptop");
    device->zones = 0; /* they, the supplies and the rest are written here from now on */
    device->battery = NULL;
    device->rapl = 0;
    for (int i = 0; i < 4; i++) {
        char path[64], why[SIMULATOR_WHY];
        has[i] = chance(i % 2 ? 20 : 85);
        snprintf(path, sizeof path, "vanish " SUPPLY "%s", supplies[i]);
        if (!has[i] && !simulator_do(device, path, why)) fail_msg("%s", why);
        if (!has[i]) continue;
        supply_file(supplies[i], "type", bad / 4, i < 2 ? (i ? "USB_C" : "Mains") : "Battery");
        supply_file(supplies[i], i < 2 ? "online" : "status", 0, i < 2 ? "1" : "Charging");
        if (i >= 2) supply_file(supplies[i], "capacity", 0, "90");
    }
    device->wall_ms += (int64_t)below(10000) * 60000;
    tell_something();
}
static void change_device(uint32_t bad) {
    if (chance(45)) write_supplies(bad);
    write_zones(bad);
    if (chance(40)) write_pressure(bad);
    if (chance(40)) tell_something();
    char why[SIMULATOR_WHY];
    if (chance(3)) simulator_do(device, "suspend 20m", why);
    if (chance(3)) simulator_do(device, chance(50) ? "clock +3h" : "clock -5h", why);
    double seconds = chance(70) ? 1 + below(30) : 60 + below(400);
    simulator_pass(device, seconds, 1);
}

static void random_policy(struct policy *p) {
    policy_default((enum device_kind)below(3), p);
    if (chance(60))
        p->window = (struct window){0, 0};
    else
        p->window = (struct window){(int)below(1440), (int)below(1440)};
    p->charger_required = chance(80);
    p->battery_min = chance(70) ? (int)below(60) : 0;
    p->charger_stable_s = below(100);
    p->idle_required = chance(60);
    p->idle_s = below(600);
    p->celsius_max = chance(80) ? 70 + below(30) : 0;
    p->celsius_back = below(10);
    p->pressure_cpu = chance(60) ? 0.05 + below(50) / 100.0 : 0;
    p->pressure_memory = chance(60) ? 0.05 + below(50) / 100.0 : 0;
    p->memory_free = chance(60) ? (uint64_t)below(1500) << 20 : 0;
    p->without_sensors = chance(50);
    p->duty = 0.05 + below(96) / 100.0;
    p->threads = chance(50) ? 0 : (int)below(8);
    p->seconds_run = chance(70) ? 0 : below(4000);
    p->seconds_night = chance(70) ? 0 : below(8000);
    p->written_night = chance(70) ? 0 : below(1 << 20);
    p->joules_run = p->joules_night = p->joules_week = 0; /* the ledger's own tests */
    p->now = chance(15);
}

/* ---- the oracle ---- */

/* A regular file's first line of less than 60 characters, without NULs; 0: none. */
static int text_of(const char *path, char out[64]) {
    char whole[512];
    struct stat st;
    snprintf(whole, sizeof whole, "%s/%s", device->folder, path);
    if (stat(whole, &st) != 0 || !S_ISREG(st.st_mode)) return 0;
    FILE *f = fopen(whole, "r");
    size_t n = f ? fread(out, 1, 60, f) : 0;
    if (f) fclose(f);
    out[n] = 0;
    if (strlen(out) != n || n == 0) return 0;
    out[strcspn(out, "\n")] = 0;
    return out[0] != 0;
}
static int number_of(const char *path, double low, double high, double *value) {
    char text[64];
    if (!text_of(path, text) || strspn(text, "-0123456789") != strlen(text)) return 0;
    *value = atof(text);
    return *value >= low && *value <= high;
}
static int supply_text(int i, const char *name, char out[64]) {
    char path[64];
    snprintf(path, sizeof path, SUPPLY "%s/%s", supplies[i], name);
    return text_of(path, out);
}

/* What the oracle remembers of one device. */
static struct {
    int off, hot, battery;
    double off_at, opened, good_since;
} past;

enum answer { NO, YES, UNKNOWN };
struct power {
    enum answer charger; /* on one, and no battery drains */
    enum answer battery; /* they hold `battery_min` together; UNKNOWN: there is none to be seen */
};
static struct power power_of(int battery_min) {
    int chargers = 0, batteries = 0, online = 0, drains = 0, unknown = 0, untold = 0;
    double charge = 0;
    for (int i = 0; i < 4; i++) {
        char type[64], text[64], path[64];
        double value;
        if (!has[i]) continue;
        if (!supply_text(i, "type", type)) {
            unknown = 1;
            continue;
        }
        if (supply_text(i, "scope", text) && strcmp(text, "Device") == 0) continue;
        if (strcmp(type, "Battery") == 0) {
            snprintf(path, sizeof path, SUPPLY "%s/present", supplies[i]);
            if (number_of(path, 0, 0, &value)) continue;
            batteries++;
            snprintf(path, sizeof path, SUPPLY "%s/capacity", supplies[i]);
            if (number_of(path, 0, 100, &value))
                charge += value;
            else
                untold = 1;
            if (!supply_text(i, "status", text) || !strstr("/Charging/Discharging/Not charging/Full/Unknown/", text))
                unknown = 1;
            else if (strcmp(text, "Discharging") == 0)
                drains = 1;
        } else if (strcmp(type, "Mains") == 0 || strcmp(type, "USB_C") == 0) {
            snprintf(path, sizeof path, SUPPLY "%s/online", supplies[i]);
            chargers++;
            if (!number_of(path, 0, 3, &value))
                unknown = 1;
            else if (value > 0)
                online = 1;
        }
    }
    struct power power = {.charger = unknown                               ? UNKNOWN
                                     : online || (!chargers && !batteries) ? YES
                                                                           : NO,
                          .battery = !batteries                                            ? UNKNOWN
                                     : !untold && floor(charge / batteries) >= battery_min ? YES
                                                                                           : NO};
    if (batteries) past.battery = 1;
    if (past.battery && !batteries && power.charger == YES) power.charger = UNKNOWN; /* it is gone: no word of why */
    if (drains) power.charger = NO;
    const attune_device *app = &device->told;
    if (app->power == ATTUNE_POWER_MAINS) power.charger = app->discharging ? NO : YES;
    if (app->power == ATTUNE_POWER_BATTERY || app->discharging) power.charger = NO;
    if (app->percent >= 0 && app->percent <= 100)
        power.battery = app->percent >= battery_min ? YES : NO;
    else if (power.battery == UNKNOWN && (app->discharging || app->power == ATTUNE_POWER_BATTERY))
        power.battery = NO;
    return power;
}
static double heat(void) {
    double hottest = NAN, value;
    char path[64];
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "sys/class/thermal/thermal_zone%d/temp", i);
        if (number_of(path, -39999, 149999, &value)) hottest = fmax(hottest, value / 1000);
    }
    return device->told.celsius > -40 && device->told.celsius < 150 ? device->told.celsius : hottest;
}
static double pressed(const char *path) {
    char text[64];
    double value;
    if (!text_of(path, text) || sscanf(text, "some avg10=%lf ", &value) != 1) return NAN;
    return value >= 0 && value <= 100 ? value / 100 : NAN;
}
static double memory(void) {
    char path[512], text[256];
    double kib;
    struct stat st;
    snprintf(path, sizeof path, "%s/proc/meminfo", device->folder);
    FILE *f = stat(path, &st) == 0 && S_ISREG(st.st_mode) ? fopen(path, "r") : NULL;
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f) fclose(f);
    text[n] = 0;
    const char *at = strstr(text, "\nMemAvailable: ");
    return at && sscanf(at, "\nMemAvailable: %lf kB", &kib) == 1 ? kib * 1024 : NAN;
}

static int in_window(const struct window *w) {
    int64_t minute = device->wall_ms / 60000 % 1440;
    if (w->from == w->until) return 1;
    return w->from < w->until ? minute >= w->from && minute < w->until : minute >= w->from || minute < w->until;
}
/* What forbids to use the device; NULL: nothing. *throttled: less of it is to be used. */
static const char *forbids(const struct policy *p, double written, int *throttled) {
    struct power power = power_of(p->battery_min);
    double celsius = heat(), cpu = pressed("proc/pressure/cpu"), mem = pressed("proc/pressure/memory"), free = memory();
    double idle = device->told.idle_s, run = device->monotonic - past.opened;
    if (power.charger != YES) past.off = 1, past.off_at = device->monotonic;
    if (celsius >= p->celsius_max) past.hot = 1;
    if (celsius < p->celsius_max - p->celsius_back) past.hot = 0;
    *throttled = p->pressure_cpu > 0 && cpu >= p->pressure_cpu;
    if (!p->now) {
        if (p->charger_required && power.charger != YES) return "charger";
        if (p->charger_required && past.off && device->monotonic - past.off_at < p->charger_stable_s) return "flaps";
        if (p->battery_min > 0 && power.battery == NO) return "battery";
        if (p->battery_min > 0 && power.battery == UNKNOWN && power.charger == UNKNOWN && !p->without_sensors)
            return "battery unknown";
        if (!in_window(&p->window)) return "window";
        if (p->idle_required && !(idle >= 0) && !p->without_sensors) return "idle unknown";
        if (p->idle_required && idle >= 0 && idle < p->idle_s) return "in use";
    }
    if (p->celsius_max > 0 && (past.hot || (isnan(celsius) && !p->without_sensors))) return "heat";
    if (p->pressure_cpu > 0 && isnan(cpu) && !p->without_sensors) return "pressure unknown";
    if (p->pressure_memory > 0 && isnan(mem) && !p->without_sensors) return "pressure unknown";
    if (p->pressure_memory > 0 && mem >= p->pressure_memory) return "memory pressure";
    if (p->memory_free && (isnan(free) ? !p->without_sensors : free < (double)p->memory_free)) return "memory";
    if (p->seconds_run > 0 && run >= p->seconds_run) return "time of the run";
    if (p->seconds_night > 0 && run >= p->seconds_night) return "time of the night";
    if (p->written_night && written >= (double)p->written_night) return "written";
    return NULL;
}

/* ---- walks ---- */

/* The tree as it is, for who looks into a failure. */
static void show(void) {
    char command[512];
    if (!getenv("ATTUNE_TEST_SEED")) return;
    snprintf(command, sizeof command,
             "cd %s && find sys/class proc ! -type d | sort | while read -r f; do echo \"== $f\"; "
             "[ ! -f $f ] || head -c 100 $f; done",
             device->folder);
    if (system(command) != 0) print_message("cannot show %s\n", device->folder);
    print_message("app: power %d discharging %d percent %d idle %g celsius %g\n", device->told.power,
                  device->told.discharging, device->told.percent, device->told.idle_s, device->told.celsius);
}
/* Of the walk from `seed_` on. */
#define FAIL(seed_, ...)                                                                                               \
    do {                                                                                                               \
        print_message("ATTUNE_TEST_SEED=%llu: ", (unsigned long long)(seed_));                                         \
        print_message(__VA_ARGS__);                                                                                    \
        print_message("\n");                                                                                           \
        show();                                                                                                        \
        fail();                                                                                                        \
    } while (0)

static struct {
    long states, used, throttled, good;
    long wild; /* used, and not by a device that recovers */
} seen;

static void compare(struct governor *g, const struct policy *p, double written, uint64_t walk) {
    struct decision d;
    int throttled;
    governor_decision(g, &d);
    const char *against = forbids(p, written, &throttled);
    int used = d.verdict == VERDICT_RUN || d.verdict == VERDICT_THROTTLE;
    if (used && against) FAIL(walk, "%s, in spite of: %s", verdict_name(d.verdict), against);
    if (used && throttled && d.verdict != VERDICT_THROTTLE) FAIL(walk, "not throttled");
    if (used ? !(d.duty > 0.01 && d.duty <= p->duty + 1e-9) : d.duty != 0)
        FAIL(walk, "%s with duty %g of %g", verdict_name(d.verdict), d.duty, p->duty);
    if (used && p->threads > 0 && (d.threads < 1 || d.threads > p->threads))
        FAIL(walk, "%d threads of %d", d.threads, p->threads);
    if ((d.verdict == VERDICT_RUN) != (d.reason == REASON_NONE)) FAIL(walk, "a verdict without its reason");
    if (against || throttled)
        past.good_since = NAN;
    else if (isnan(past.good_since))
        past.good_since = device->monotonic;
    seen.states++;
    seen.used += used;
    seen.throttled += d.verdict == VERDICT_THROTTLE;
    /* no memory of what was lasts longer than this */
    if (!(device->monotonic - past.good_since >= 600)) return;
    if (d.verdict != VERDICT_RUN)
        FAIL(walk, "%s for %s with nothing against it", verdict_name(d.verdict), reason_name(d.reason));
    seen.good++;
}

/* All of it sound and seen so for a quarter of an hour: it runs, unless window, idleness or a budget forbid it still.
 */
static void recover(struct governor *g, const struct policy *p, double written, uint64_t walk) {
    for (int i = 0; i < 4; i++) {
        if (!has[i]) continue;
        supply_file(supplies[i], "type", 0, i < 2 ? "Mains" : "Battery");
        supply_file(supplies[i], "scope", 0, "System");
        if (i >= 2) supply_file(supplies[i], "present", 0, "1");
        if (i >= 2) supply_file(supplies[i], "capacity", 0, "100");
        supply_file(supplies[i], i < 2 ? "online" : "status", 0, i < 2 ? "1" : "Full");
    }
    put("proc/pressure/cpu", "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n");
    put("proc/pressure/memory", "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n");
    put("proc/meminfo", "MemTotal: 16000000 kB\nMemAvailable: 8000000 kB\n");
    device->told = (attune_device){sizeof device->told, ATTUNE_POWER_UNKNOWN, 0, -1, 1e6, NAN, NAN};
    for (int i = 0; i < 14; i++) {
        char event[64], why[SIMULATOR_WHY];
        for (int zone = 0; zone < 3; zone++) {
            snprintf(event, sizeof event, "return sys/class/thermal/thermal_zone%d/temp", zone);
            simulator_do(device, event, why);
            snprintf(event, sizeof event, "sys/class/thermal/thermal_zone%d/temp", zone);
            put_or_spoil(event, 0, "%u\n", 30000 + below(5000));
        }
        simulator_pass(device, 50, 1);
        governor_look(g);
        compare(g, p, written, walk);
    }
}

static void walk_once(uint64_t walk) {
    struct governor *g;
    struct policy policy;
    double written = 0;
    seed = walk;
    uint32_t bad = chance(60) ? below(3) : below(30); /* per cent of what is written */
    make_device(bad);
    random_policy(&policy);
    struct governor_options options = {.sensors = {.sys_root = device->sys,
                                                   .proc_root = device->proc,
                                                   .run_root = device->run,
                                                   .device = simulator_tell,
                                                   .device_user = device,
                                                   .clock = &device->clock},
                                       .policy = policy,
                                       .watts_per_cpu = 5,
                                       .event_fd = -2};
    memset(&past, 0, sizeof past);
    past.opened = device->monotonic;
    past.good_since = NAN;
    change_device(bad);
    past.opened = device->monotonic;
    long before = seen.used;
    OK(governor_open(&options, &g, &err));
    compare(g, &policy, written, walk);
    for (int i = 1; i < LOOKS; i++) {
        uint64_t bytes = below(1 << 14);
        change_device(bad);
        governor_wrote(g, bytes);
        written += (double)bytes;
        governor_look(g);
        compare(g, &policy, written, walk);
    }
    seen.wild += seen.used - before;
    recover(g, &policy, written, walk);
    governor_close(g);
    simulator_close(device);
}

static void test_walks(void **state) {
    const char *full = getenv("ATTUNE_TEST_FULL"), *only = getenv("ATTUNE_TEST_SEED");
    long states = full && strcmp(full, "1") == 0 ? 100000 : 2000;
    (void)state;
    setenv("TZ", "UTC0", 1);
    tzset();
    memset(&seen, 0, sizeof seen);
    if (only) {
        walk_once(strtoull(only, NULL, 10));
        return;
    }
    for (uint64_t walk = 1; seen.states < states; walk++) walk_once(walk);
    print_message("%ld states: used in %ld (%ld among what was random), throttled in %ld; all well for long in %ld\n",
                  seen.states, seen.used, seen.wild, seen.throttled, seen.good);
    /* an oracle that is asked about nothing finds nothing */
    assert_true(seen.wild > states / 20 && seen.used < states * 3 / 4);
    assert_true(seen.throttled > states / 500 && seen.good > states / 100);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_walks)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
