/* Files as in Documentation/ABI/testing/sysfs-class-{power,thermal,powercap}, Documentation/accounting/psi.rst and
 * Documentation/admin-guide/cgroup-v2.rst of Linux. */
#define _GNU_SOURCE
#include "tests/simulator.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Of Intel's client packages: 2^32 units of 61 microjoules, a wrap in some hours. */
static const double rapl_range = 262143328850.0;

static void broken(const char *what, const char *path) {
    fprintf(stderr, "simulator: cannot %s %s: %s\n", what, path, strerror(errno));
    abort();
}

/* ---- files ---- */

struct place {
    char text[512];
};
static struct place in(const struct simulator *s, const char *path) {
    struct place place;
    if (snprintf(place.text, sizeof place.text, "%s/%s", s->folder, path) >= (int)sizeof place.text)
        broken("name", path);
    return place;
}

static size_t slot_of(const struct simulator *s, const char *path) {
    size_t i = 0;
    while (i < SIMULATOR_DISPLACED && strcmp(s->displaced[i].path, path) != 0) i++;
    return i;
}
/* Where what belongs at `path` is kept: there, or aside while it is displaced. */
static struct place kept(const struct simulator *s, const char *path) {
    char aside[SIMULATOR_PATH + 32];
    for (size_t i = 0; i < SIMULATOR_DISPLACED; i++) {
        size_t n = strlen(s->displaced[i].path);
        if (n == 0 || strncmp(path, s->displaced[i].path, n) != 0 || (path[n] && path[n] != '/')) continue;
        snprintf(aside, sizeof aside, "aside/%zu%s", i, path + n);
        return in(s, aside);
    }
    return in(s, path);
}

static void make_folders(char *path) {
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        if (mkdir(path, 0700) != 0 && errno != EEXIST) broken("make", path);
        *slash = '/';
    }
}
static void put_at(struct place at, const void *bytes, size_t n) {
    int fd = open(at.text, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0 && errno == ENOENT) {
        make_folders(at.text);
        fd = open(at.text, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    }
    if (fd < 0 || write(fd, bytes, n) != (ssize_t)n) broken("write", at.text);
    close(fd);
}
void simulator_put(struct simulator *s, const char *path, const void *bytes, size_t n) {
    put_at(kept(s, path), bytes, n);
}
static void line(struct simulator *s, const char *path, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void line(struct simulator *s, const char *path, const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text - 1, format, args);
    va_end(args);
    if (n < 0 || n >= (int)sizeof text - 1) broken("write so much to", path);
    text[n++] = '\n';
    simulator_put(s, path, text, (size_t)n);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *where) {
    (void)st, (void)type, (void)where;
    return remove(path);
}
static void remove_tree(const char *path) { nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS); }

/* ---- devices ---- */

static void battery_status(struct simulator *s, int percent, const char *status) {
    char path[128];
    snprintf(path, sizeof path, "sys/class/power_supply/%s/status", s->battery);
    line(s, path, "%s", status);
    if (percent >= 0) {
        snprintf(path, sizeof path, "sys/class/power_supply/%s/capacity", s->battery);
        line(s, path, "%d", percent);
    }
    s->discharging = strcmp(status, "Discharging") == 0;
}
static void charger_online(struct simulator *s, int online) {
    char path[128];
    snprintf(path, sizeof path, "sys/class/power_supply/%s/online", s->charger);
    line(s, path, "%d", online);
}
/* What flows out of the battery, or 20 W into it. */
static void battery_figures(struct simulator *s) {
    const double volts = s->amperes ? 3.85 : 11.4;
    double watts = s->discharging ? s->watts : 20;
    char path[128];
    if (!s->battery) return;
    if (s->amperes) {
        snprintf(path, sizeof path, "sys/class/power_supply/%s/current_now", s->battery);
        line(s, path, "%.0f", (s->discharging ? -1e6 : 1e6) * watts / volts);
    } else {
        snprintf(path, sizeof path, "sys/class/power_supply/%s/power_now", s->battery);
        line(s, path, "%.0f", 1e6 * watts);
    }
}
static void make_supplies(struct simulator *s, const char *charger, const char *type, const char *battery) {
    char path[128];
    s->charger = charger;
    s->battery = battery;
    snprintf(path, sizeof path, "sys/class/power_supply/%s/type", charger);
    line(s, path, "%s", type);
    charger_online(s, 1);
    snprintf(path, sizeof path, "sys/class/power_supply/%s/type", battery);
    line(s, path, "Battery");
    snprintf(path, sizeof path, "sys/class/power_supply/%s/present", battery);
    line(s, path, "1");
    snprintf(path, sizeof path, "sys/class/power_supply/%s/voltage_now", battery);
    line(s, path, "%d", s->amperes ? 3850000 : 11400000);
    battery_status(s, 80, "Charging");
    battery_figures(s);
}

static void make_zones(struct simulator *s, int n, const char *const types[], const long millidegrees[]) {
    char path[128];
    for (int i = 0; i < n; i++) {
        snprintf(path, sizeof path, "sys/class/thermal/thermal_zone%d/type", i);
        line(s, path, "%s", types[i]);
        snprintf(path, sizeof path, "sys/class/thermal/thermal_zone%d/temp", i);
        line(s, path, "%ld", millidegrees[i]);
        s->zone[i] =
            (struct simulator_zone){.to = (double)millidegrees[i], .began = s->boottime, .written = millidegrees[i]};
    }
    s->zones = n;
}

#define RAPL "sys/class/powercap/intel-rapl"
static void make_rapl(struct simulator *s) {
    static const char *const zones[][2] = {{":0", "package-0"}, {":0:0", "core"}, {":1", "psys"}};
    char path[128];
    s->rapl = 1;
    s->rapl_uj = 5e9;
    s->rapl_range = rapl_range;
    line(s, RAPL "/enabled", "1");
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, RAPL "%s/name", zones[i][0]);
        line(s, path, "%s", zones[i][1]);
        snprintf(path, sizeof path, RAPL "%s/energy_uj", zones[i][0]);
        line(s, path, "%.0f", s->rapl_uj);
        snprintf(path, sizeof path, RAPL "%s/max_energy_range_uj", zones[i][0]);
        line(s, path, "%.0f", s->rapl_range);
    }
}

static void pressure(struct simulator *s, const char *what, double percent) {
    char path[64], full[80] = "";
    snprintf(path, sizeof path, "proc/pressure/%s", what);
    if (strcmp(what, "cpu") != 0) snprintf(full, sizeof full, "\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=4711");
    line(s, path, "some avg10=%.2f avg60=0.10 avg300=0.02 total=123456%s", percent, full);
}
static void memory_available(struct simulator *s, uint64_t bytes) {
    line(s, "proc/meminfo",
         "MemTotal:       16384000 kB\nMemFree:          400000 kB\nMemAvailable:   %8llu kB\n"
         "Buffers:           10000 kB\nSwapFree:              0 kB",
         (unsigned long long)(bytes >> 10));
}
static void make_kernel(struct simulator *s) {
    pressure(s, "cpu", 0);
    pressure(s, "memory", 0);
    pressure(s, "io", 0);
    line(s, "proc/loadavg", "0.30 0.20 0.10 1/345 4242");
    memory_available(s, (uint64_t)4 << 30);
}
#define SLICE "sys/fs/cgroup/attune.slice"
static void make_cgroup(struct simulator *s) {
    line(s, "proc/self/cgroup", "0::/attune.slice");
    line(s, "sys/fs/cgroup/cgroup.controllers", "cpu memory io");
    line(s, SLICE "/cgroup.controllers", "cpu memory io");
    line(s, SLICE "/cpu.max", "max 100000");
    line(s, SLICE "/memory.max", "max");
    line(s, SLICE "/memory.high", "max");
    line(s, SLICE "/memory.current", "100000000");
    line(s, SLICE "/memory.stat", "anon 90000000\nfile 10000000\ninactive_file 5000000");
}

static void make_laptop(struct simulator *s) {
    make_supplies(s, "AC", "Mains", "BAT0");
    make_zones(s, 2, (const char *const[]){"acpitz", "x86_pkg_temp"}, (const long[]){42000, 47000});
    make_rapl(s);
    make_kernel(s);
    make_cgroup(s);
    line(s, "sys/class/dmi/id/chassis_type", "10");
    s->watts_idle = 4;
    s->watts_cpu = 6;
}
static void make_phone(struct simulator *s) {
    s->amperes = 1;
    make_supplies(s, "usb", "USB", "battery");
    make_zones(s, 3, (const char *const[]){"cpu-1-0-usr", "battery", "skin-msm-therm"},
               (const long[]){36000, 29000, 31000});
    make_kernel(s);
    line(s, "proc/self/cgroup", "0::/");
    simulator_put(s, "sys/firmware/devicetree/base/chassis-type", "handset", sizeof "handset");
    s->watts_idle = 0.5;
    s->watts_cpu = 1.25;
}
static void make_desktop(struct simulator *s) {
    line(s, "sys/class/power_supply/x", "x"); /* makes the folder */
    if (unlink(in(s, "sys/class/power_supply/x").text) != 0) broken("empty", s->folder);
    make_zones(s, 1, (const char *const[]){"x86_pkg_temp"}, (const long[]){40000});
    make_rapl(s);
    make_kernel(s);
    make_cgroup(s);
    line(s, "sys/class/dmi/id/chassis_type", "3");
    s->watts_idle = 20;
    s->watts_cpu = 12;
}
static void make_bare(struct simulator *s) {
    if (mkdir(in(s, "sys/class").text, 0700) != 0) broken("make", s->folder);
    s->watts_idle = 10;
    s->watts_cpu = 5;
}
/* Tests may run as root, who may read all: a loop of links is what nobody can open. */
static void make_locked(struct simulator *s) {
    char why[SIMULATOR_WHY];
    make_phone(s);
    if (!simulator_do(s, "loop sys/class/power_supply", why)) broken(why, s->folder);
}

static double monotonic(void *user) { return ((struct simulator *)user)->monotonic; }
static double boottime(void *user) { return ((struct simulator *)user)->boottime; }
static int64_t wall_ms(void *user) { return ((struct simulator *)user)->wall_ms; }
static double cpu(void *user) { return ((struct simulator *)user)->cpu; }

struct simulator *simulator_open(const char *device) {
    static const struct {
        const char *name;
        void (*make)(struct simulator *);
    } devices[] = {{"laptop", make_laptop},
                   {"phone", make_phone},
                   {"desktop", make_desktop},
                   {"bare", make_bare},
                   {"locked", make_locked}};
    size_t i = 0, n = sizeof devices / sizeof *devices;
    while (i < n && strcmp(devices[i].name, device) != 0) i++;
    if (i == n) return NULL;
    struct simulator *s = calloc(1, sizeof *s);
    if (!s) broken("hold", device);
    snprintf(s->folder, sizeof s->folder, "%s/attune-device-XXXXXX",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    if (!mkdtemp(s->folder)) broken("make", s->folder);
    snprintf(s->sys, sizeof s->sys, "%.60s/sys", s->folder);
    snprintf(s->proc, sizeof s->proc, "%.60s/proc", s->folder);
    snprintf(s->run, sizeof s->run, "%.60s/run", s->folder);
    if (mkdir(s->sys, 0700) != 0 || mkdir(s->proc, 0700) != 0 || mkdir(s->run, 0700) != 0 ||
        mkdir(in(s, "aside").text, 0700) != 0)
        broken("make folders in", s->folder);
    s->clock = (struct clock){monotonic, boottime, wall_ms, cpu, s};
    s->monotonic = 1000;
    s->boottime = 1000;
    s->wall_ms = INT64_C(1710000000000);
    s->idle_since = NAN;
    s->told = (attune_device){.size = sizeof s->told, .percent = -1, .idle_s = NAN, .celsius = NAN, .joules = NAN};
    devices[i].make(s);
    s->watts = s->watts_idle;
    battery_figures(s);
    return s;
}
void simulator_close(struct simulator *s) {
    if (!s) return;
    remove_tree(s->folder);
    free(s);
}

/* ---- time ---- */

static void wall_add(struct simulator *s, double seconds) {
    double ms = s->wall_rest + seconds * 1000, whole = floor(ms);
    s->wall_ms += (int64_t)whole;
    s->wall_rest = ms - whole;
}

static void zones_follow(struct simulator *s) {
    char path[128];
    for (int i = 0; i < s->zones; i++) {
        struct simulator_zone *z = &s->zone[i];
        double past = s->boottime - z->began, wave = fabs(fmod(past + 60, 120) - 60);
        double now = past >= z->seconds ? z->to : z->from + (z->to - z->from) * past / z->seconds;
        if (!z->set) now += 50 * wave;
        long value = lround(now);
        if (value == z->written) continue;
        z->written = value;
        snprintf(path, sizeof path, "sys/class/thermal/thermal_zone%d/temp", i);
        line(s, path, "%ld", value);
    }
}
static void counters_follow(struct simulator *s, double joules) {
    s->joules += joules;
    if (s->app_counter) s->told.joules = s->joules;
    if (!s->rapl) return;
    s->rapl_uj = fmod(s->rapl_uj + joules * 1e6, s->rapl_range + 1); /* max_energy_range_uj is the last that it shows */
    line(s, RAPL ":0/energy_uj", "%.0f", s->rapl_uj);
    line(s, RAPL ":0:0/energy_uj", "%.0f", s->rapl_uj / 2);
    line(s, RAPL ":1/energy_uj", "%.0f", fmod(s->rapl_uj * 1.5, rapl_range));
}

void simulator_pass(struct simulator *s, double seconds, double cpus) {
    double watts = s->watts_idle + s->watts_cpu * cpus;
    s->monotonic += seconds;
    s->boottime += seconds;
    wall_add(s, seconds);
    s->cpu += seconds * cpus;
    zones_follow(s);
    counters_follow(s, watts * seconds);
    if (watts == s->watts) return;
    s->watts = watts;
    battery_figures(s);
}

void simulator_tell(attune_device *device, void *simulator) {
    struct simulator *s = simulator;
    size_t size = device->size;
    *device = s->told;
    device->size = size;
    if (!isnan(s->idle_since)) device->idle_s = s->boottime - s->idle_since;
}

/* ---- words ---- */

/* Digits with at most one point; strtod alone takes signs, blanks, exponents, hexadecimal and "nan" too. */
int simulator_real(const char *text, double low, double high, double *out) {
    char *end;
    if (!*text || strspn(text, "0123456789.") != strlen(text)) return 0;
    double value = strtod(text, &end);
    if (*end || value < low || value > high) return 0;
    *out = value;
    return 1;
}
static int signed_number(const char *text, double low, double high, double *out) {
    if (*text != '-') return simulator_real(text, low, high, out);
    if (!simulator_real(text + 1, -high, -low, out)) return 0;
    *out = -*out;
    return 1;
}
int simulator_duration(const char *text, double *seconds) {
    static const char units[] = "smhd";
    static const double of[] = {1, 60, 3600, 86400};
    char word[32];
    int h, m, used = 0;
    double s;
    if (strlen(text) >= sizeof word) return 0;
    if (sscanf(text, "%3d:%2d:%n", &h, &m, &used) == 2 && used > 0) {
        if (strspn(text, "0123456789:.") != strlen(text) || m > 59 || !simulator_real(text + used, 0, 59.999, &s))
            return 0;
        *seconds = h * 3600.0 + m * 60.0 + s;
        return 1;
    }
    strcpy(word, text);
    const char *unit = *word ? strchr(units, word[strlen(word) - 1]) : NULL;
    if (unit) word[strlen(word) - 1] = 0;
    if (!simulator_real(word, 0, 1e7, &s)) return 0;
    *seconds = s * (unit ? of[unit - units] : 1);
    return 1;
}
int simulator_size(const char *text, uint64_t *bytes) {
    char word[32];
    double value;
    int shift = 0;
    if (!*text || strlen(text) >= sizeof word) return 0;
    strcpy(word, text);
    char *last = word + strlen(word) - 1;
    if (*last == 'k') shift = 10;
    if (*last == 'M') shift = 20;
    if (*last == 'G') shift = 30;
    if (shift) *last = 0;
    if (!simulator_real(word, 0, 1e9, &value)) return 0;
    *bytes = (uint64_t)(value * (double)((uint64_t)1 << shift));
    return 1;
}

/* ---- what can happen ---- */

enum { WORDS_MAX = 6 };
struct words {
    char text[256];
    const char *word[WORDS_MAX];
    int n;
    const char *rest; /* of the event as it stands, behind its second word */
};
static int cut(const char *event, struct words *w) {
    char *at = w->text, *save = NULL;
    if (strlen(event) >= sizeof w->text) return 0;
    strcpy(w->text, event);
    w->n = 0;
    w->rest = "";
    for (char *word; (word = strtok_r(at, " ", &save)); at = NULL) {
        if (w->n == 2) w->rest = event + (word - w->text);
        if (w->n < WORDS_MAX) w->word[w->n] = word;
        w->n++;
    }
    for (int i = w->n; i < WORDS_MAX; i++) w->word[i] = "";
    return w->n > 0;
}

static int no(char why[SIMULATOR_WHY], const char *format, ...) __attribute__((format(printf, 2, 3)));
static int no(char why[SIMULATOR_WHY], const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(why, SIMULATOR_WHY, format, args);
    va_end(args);
    return 0;
}

static int do_plug(struct simulator *s, const struct words *w, char *why) {
    int on = strcmp(w->word[0], "plug") == 0;
    if (!s->charger) return no(why, "this device has no charger");
    charger_online(s, on);
    if (s->battery) battery_status(s, -1, on ? "Charging" : "Discharging");
    battery_figures(s);
    return 1;
}
static int do_battery(struct simulator *s, const struct words *w, char *why) {
    static const char *const status[][2] = {{"charging", "Charging"},
                                            {"discharging", "Discharging"},
                                            {"full", "Full"},
                                            {"held", "Not charging"},
                                            {"unknown", "Unknown"}};
    double percent;
    size_t i = 0;
    if (!s->battery) return no(why, "this device has no battery");
    if (!simulator_real(w->word[1], 0, 100, &percent) || percent != floor(percent))
        return no(why, "a battery's charge is a whole number up to 100, not \"%.30s\"", w->word[1]);
    while (i < 5 && strcmp(status[i][0], w->word[2]) != 0) i++;
    if (i == 5) return no(why, "a battery is charging, discharging, full, held or unknown, not \"%.30s\"", w->word[2]);
    battery_status(s, (int)percent, status[i][1]);
    battery_figures(s);
    return 1;
}
static int do_zone(struct simulator *s, const struct words *w, char *why) {
    double i, to, seconds = 0;
    if (!simulator_real(w->word[1], 0, s->zones - 1, &i) || i != floor(i))
        return no(why, "this device has zones 0 to %d, not \"%.30s\"", s->zones - 1, w->word[1]);
    if (!signed_number(w->word[2], -300000, 1000000, &to)) return no(why, "millidegrees, not \"%.30s\"", w->word[2]);
    if (w->n > 3 && (w->n != 5 || strcmp(w->word[3], "over") != 0 || !simulator_duration(w->word[4], &seconds)))
        return no(why, "zone N MILLIDEGREES over DURATION");
    struct simulator_zone *z = &s->zone[(int)i];
    *z = (struct simulator_zone){(double)z->written, to, s->boottime, seconds, 1, z->written};
    zones_follow(s);
    return 1;
}
static int do_pressure(struct simulator *s, const struct words *w, char *why) {
    double percent;
    if (strcmp(w->word[1], "cpu") != 0 && strcmp(w->word[1], "memory") != 0 && strcmp(w->word[1], "io") != 0)
        return no(why, "pressure is of cpu, memory or io, not \"%.30s\"", w->word[1]);
    if (!simulator_real(w->word[2], 0, 100, &percent)) return no(why, "per cent, not \"%.30s\"", w->word[2]);
    pressure(s, w->word[1], percent);
    return 1;
}
static int do_memory(struct simulator *s, const struct words *w, char *why) {
    uint64_t bytes;
    if (!simulator_size(w->word[1], &bytes)) return no(why, "a size, not \"%.30s\"", w->word[1]);
    memory_available(s, bytes);
    return 1;
}
static int do_quota(struct simulator *s, const struct words *w, char *why) {
    double cpus;
    if (strcmp(w->word[1], "none") == 0) {
        line(s, SLICE "/cpu.max", "max 100000");
        return 1;
    }
    if (!simulator_real(w->word[1], 0.01, 1024, &cpus)) return no(why, "CPUs or none, not \"%.30s\"", w->word[1]);
    line(s, SLICE "/cpu.max", "%.0f 100000", cpus * 100000);
    return 1;
}
static int do_load(struct simulator *s, const struct words *w, char *why) {
    double load;
    if (!simulator_real(w->word[1], 0, 10000, &load)) return no(why, "a load, not \"%.30s\"", w->word[1]);
    line(s, "proc/loadavg", "%.2f 0.20 0.10 1/345 4242", load);
    return 1;
}
static int do_watts(struct simulator *s, const struct words *w, char *why) {
    double idle, busy;
    if (!simulator_real(w->word[1], 0, 10000, &idle) || !simulator_real(w->word[2], 0, 10000, &busy))
        return no(why, "watts IDLE CPU");
    s->watts_idle = idle;
    s->watts_cpu = busy;
    return 1;
}
static int do_rapl(struct simulator *s, const struct words *w, char *why) {
    if (!s->rapl) return no(why, "this device has no RAPL");
    double joules;
    if (strcmp(w->word[1], "back") == 0 && w->n == 2) {
        s->rapl_uj = 0;
    } else if (strcmp(w->word[1], "range") == 0 && simulator_real(w->word[2], 1, 1e9, &joules)) {
        s->rapl_range = joules * 1e6;
        s->rapl_uj = s->rapl_range - 1e6;
        line(s, RAPL ":0/max_energy_range_uj", "%.0f", s->rapl_range);
    } else {
        return no(why, "rapl range JOULES or rapl back");
    }
    counters_follow(s, 0);
    return 1;
}
static int do_suspend(struct simulator *s, const struct words *w, char *why) {
    double seconds;
    if (!simulator_duration(w->word[1], &seconds)) return no(why, "a duration, not \"%.30s\"", w->word[1]);
    s->boottime += seconds;
    wall_add(s, seconds);
    return 1;
}
static int do_clock(struct simulator *s, const struct words *w, char *why) {
    double seconds;
    char sign = w->word[1][0];
    if ((sign != '+' && sign != '-') || !simulator_duration(w->word[1] + 1, &seconds))
        return no(why, "clock +DURATION or -DURATION, not \"%.30s\"", w->word[1]);
    wall_add(s, sign == '-' ? -seconds : seconds);
    return 1;
}

static int app_number(const struct words *w, double low, double high, double *out, char *why) {
    return signed_number(w->word[2], low, high, out) ? 1
                                                     : no(why, "app %.20s N, not \"%.30s\"", w->word[1], w->word[2]);
}
static int do_app(struct simulator *s, const struct words *w, char *why) {
    static const char *const power[] = {"unknown", "mains", "battery"};
    const char *what = w->word[1];
    double value = 0;
    if (strcmp(what, "idle") == 0) {
        if (!simulator_duration(w->word[2], &value)) return no(why, "a duration, not \"%.30s\"", w->word[2]);
        s->idle_since = s->boottime - value;
    } else if (strcmp(what, "present") == 0 && w->n == 2) {
        s->idle_since = NAN;
        s->told.idle_s = 0;
    } else if (strcmp(what, "away") == 0 && w->n == 2) {
        s->idle_since = NAN;
        s->told.idle_s = INFINITY;
    } else if (strcmp(what, "power") == 0) {
        int i = 0;
        while (i < 3 && strcmp(power[i], w->word[2]) != 0) i++;
        if (i == 3) return no(why, "app power mains, battery or unknown, not \"%.30s\"", w->word[2]);
        s->told.power = i;
    } else if (strcmp(what, "percent") == 0) {
        if (!app_number(w, -1000, 1000, &value, why)) return 0;
        s->told.percent = (int)value;
    } else if (strcmp(what, "discharging") == 0) {
        if (!app_number(w, 0, 1, &value, why)) return 0;
        s->told.discharging = (int)value;
    } else if (strcmp(what, "celsius") == 0) {
        if (!app_number(w, -1000, 1000, &value, why)) return 0;
        s->told.celsius = value;
    } else if (strcmp(what, "counter") == 0 && w->n == 2) {
        s->app_counter = 1;
        s->told.joules = s->joules;
    } else {
        return no(why, "no app %.30s", what);
    }
    s->app = 1;
    return 1;
}

static int is_path(const char *path) {
    return (strncmp(path, "sys/", 4) == 0 || strncmp(path, "proc/", 5) == 0 || strncmp(path, "run/", 4) == 0) &&
           !strstr(path, "..") && !strstr(path, "//") && path[strlen(path) - 1] != '/' && strlen(path) < SIMULATOR_PATH;
}
static void drop_displaced(struct simulator *s, size_t slot) {
    remove_tree(in(s, s->displaced[slot].path).text);
    s->displaced[slot].path[0] = 0;
}
/* Puts what is at `path` aside; it goes on being written there. */
static int displace(struct simulator *s, const char *path, char *why) {
    char aside[32];
    struct stat st;
    size_t slot = slot_of(s, path);
    if (slot < SIMULATOR_DISPLACED) { /* what is in its place already makes room */
        remove_tree(in(s, path).text);
        return 1;
    }
    slot = slot_of(s, "");
    if (slot == SIMULATOR_DISPLACED) return no(why, "no more than %d paths at once", SIMULATOR_DISPLACED);
    snprintf(aside, sizeof aside, "aside/%zu", slot);
    if (lstat(in(s, path).text, &st) == 0 && rename(in(s, path).text, in(s, aside).text) != 0) broken("move", path);
    strcpy(s->displaced[slot].path, path);
    return 1;
}
static int do_return(struct simulator *s, const struct words *w, char *why) {
    char aside[32];
    size_t slot = slot_of(s, w->word[1]);
    if (!is_path(w->word[1]) || slot == SIMULATOR_DISPLACED)
        return no(why, "nothing has happened to \"%.100s\"", w->word[1]);
    drop_displaced(s, slot);
    snprintf(aside, sizeof aside, "aside/%zu", slot);
    struct place from = in(s, aside);
    if (access(from.text, F_OK) == 0 && rename(from.text, in(s, w->word[1]).text) != 0) broken("return", w->word[1]);
    return 1;
}

static void put_digits(struct place at) {
    enum { MIB = 1 << 20 };
    char *digits = malloc(MIB);
    if (!digits) broken("hold", "a MiB");
    memset(digits, '1', MIB);
    put_at(at, digits, MIB);
    free(digits);
}
/* What stands at a path in place of its file. */
static int do_hostile(struct simulator *s, const struct words *w, char *why) {
    const char *how = w->word[0], *path = w->word[1];
    if (!is_path(path)) return no(why, "a path below sys/, proc/ or run/, not \"%.100s\"", path);
    if (!displace(s, path, why)) return 0;
    struct place at = in(s, path);
    int failed = 0;
    make_folders(at.text);
    if (strcmp(how, "garbage") == 0) put_at(at, "%x!zy\n", 6);
    if (strcmp(how, "empty") == 0 || strcmp(how, "file") == 0) put_at(at, "", 0);
    if (strcmp(how, "digits") == 0) put_digits(at);
    if (strcmp(how, "nul") == 0) put_at(at, "1\0\n", 3);
    if (strcmp(how, "latin") == 0) put_at(at, "\xe9t\xe9\n", 4);
    if (strcmp(how, "fifo") == 0) failed = mkfifo(at.text, 0600);
    if (strcmp(how, "folder") == 0) failed = mkdir(at.text, 0700);
    if (strcmp(how, "loop") == 0) failed = symlink(at.text, at.text);
    if (strcmp(how, "dangling") == 0) failed = symlink("/nonexistent/attune", at.text);
    if (failed) broken(how, path);
    return 1;
}
static int do_write(struct simulator *s, const struct words *w, char *why) {
    if (!is_path(w->word[1])) return no(why, "a path below sys/, proc/ or run/, not \"%.100s\"", w->word[1]);
    if (!displace(s, w->word[1], why)) return 0;
    struct place at = in(s, w->word[1]);
    char text[260];
    put_at(at, text, (size_t)snprintf(text, sizeof text, "%s\n", w->rest));
    return 1;
}

int simulator_do(struct simulator *s, const char *event, char why[SIMULATOR_WHY]) {
    static const struct {
        const char *verb;
        int least, most; /* words */
        int (*act)(struct simulator *, const struct words *, char *);
    } verbs[] = {
        {"plug", 1, 1, do_plug},       {"unplug", 1, 1, do_plug},       {"battery", 3, 3, do_battery},
        {"zone", 3, 5, do_zone},       {"pressure", 3, 3, do_pressure}, {"memory", 2, 2, do_memory},
        {"quota", 2, 2, do_quota},     {"load", 2, 2, do_load},         {"watts", 3, 3, do_watts},
        {"rapl", 2, 3, do_rapl},       {"suspend", 2, 2, do_suspend},   {"clock", 2, 2, do_clock},
        {"app", 2, 3, do_app},         {"write", 3, 99, do_write},      {"return", 2, 2, do_return},
        {"garbage", 2, 2, do_hostile}, {"empty", 2, 2, do_hostile},     {"digits", 2, 2, do_hostile},
        {"nul", 2, 2, do_hostile},     {"latin", 2, 2, do_hostile},     {"vanish", 2, 2, do_hostile},
        {"fifo", 2, 2, do_hostile},    {"folder", 2, 2, do_hostile},    {"file", 2, 2, do_hostile},
        {"loop", 2, 2, do_hostile},    {"dangling", 2, 2, do_hostile},
    };
    struct words w;
    if (!cut(event, &w)) return no(why, "an event of 1 to 255 characters");
    for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++) {
        if (strcmp(verbs[i].verb, w.word[0]) != 0) continue;
        if (w.n < verbs[i].least || w.n > verbs[i].most) return no(why, "%s: too few or too many words", verbs[i].verb);
        return verbs[i].act(s, &w, why);
    }
    return no(why, "nothing that is called \"%.30s\" can happen", w.word[0]);
}
