/* Files of a device that are anything but what they should be, files that change while they are read, an app that
 * tells nonsense or never answers: nothing blocks or crashes, and what cannot be believed is unknown. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <ftw.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "energy/governor.h"
#include "tests/expect.h"
#include "tests/possible.h"
#include "tests/simulator.h"

/* A test that waits for ever is ended by this. */
enum { WATCHDOG_S = 300 };

static struct simulator *device;

static struct sensors_options options_of(struct simulator *s) {
    return (struct sensors_options){.sys_root = s->sys, .proc_root = s->proc, .run_root = s->run, .clock = &s->clock};
}
static void happen(const char *verb, const char *path) {
    char event[SIMULATOR_PATH + 32], why[SIMULATOR_WHY];
    snprintf(event, sizeof event, "%s%s%s", verb, path ? " " : "", path ? path : "");
    if (!simulator_do(device, event, why)) fail_msg("%s: %s", event, why);
}

/* ---- each file, as everything that it should not be ---- */

enum { FILES_MAX = 64 };
static char *file[FILES_MAX];
static int n_files;
static int note_file(const char *path, const struct stat *st, int type, struct FTW *where) {
    (void)st, (void)where;
    if (type == FTW_F && n_files < FILES_MAX) file[n_files++] = strdup(path + strlen(device->folder) + 1);
    return 0;
}
static void list_files(void) {
    n_files = 0;
    nftw(device->folder, note_file, 16, FTW_PHYS);
    assert_true(n_files > 10 && n_files < FILES_MAX);
}

static int ends(const char *path, const char *end) {
    return strlen(path) >= strlen(end) && strcmp(path + strlen(path) - strlen(end), end) == 0;
}
/* What is not known without this file; 1: it is not, or the file is needed for nothing. */
static int is_unknown(const char *path, const char *how, const struct snapshot *now, const struct snapshot *sound) {
    /* another word is another kind of supply, of which vendors have many */
    int word = strcmp(how, "garbage") == 0 || strcmp(how, "latin") == 0;
    if (ends(path, "/online") || ends(path, "/status") || (ends(path, "supply/AC/type") && !word) ||
        (ends(path, "supply/BAT0/type") && !word))
        return now->power.supply == POWER_UNKNOWN;
    if (ends(path, "/capacity")) return now->power.percent == -1 && now->power.supply == sound->power.supply;
    if (ends(path, "zone1/temp")) return now->celsius == 42;
    if (ends(path, "pressure/cpu")) return isnan(now->pressure_cpu);
    if (ends(path, "pressure/memory")) return isnan(now->pressure_memory);
    if (ends(path, "pressure/io")) return isnan(now->pressure_io);
    if (ends(path, "/meminfo")) return now->memory_available == 0;
    if (ends(path, "/loadavg")) return isnan(now->load);
    if (ends(path, "/cpu.max")) return isnan(now->cpus);
    if (strstr(path, "intel-rapl:0/")) return now->n_counters == 0;
    return 1;
}
static int same(const struct snapshot *a, const struct snapshot *b) {
    return a->power.supply == b->power.supply && a->power.percent == b->power.percent && a->celsius == b->celsius &&
           a->pressure_cpu == b->pressure_cpu && a->memory_available == b->memory_available && a->load == b->load &&
           a->n_counters == b->n_counters;
}

static void read_all(struct snapshot *out) {
    struct sensors_options options = options_of(device);
    struct sensors *sensors;
    OK(sensors_open(&options, &sensors, &err));
    memset(out, 0x5a, sizeof *out);
    sensors_read(sensors, out);
    sensors_close(sensors);
}

static void test_each_file(void **state) {
    static const char *const how[] = {"fifo", "folder", "loop",    "dangling", "digits",
                                      "nul",  "latin",  "garbage", "empty",    "vanish"};
    struct snapshot sound, now;
    (void)state;
    device = simulator_open("laptop");
    list_files();
    read_all(&sound);
    assert_int_equal(sound.power.supply, POWER_MAINS);
    assert_int_equal(sound.power.percent, 80);
    assert_int_equal(sound.n_counters, 1);
    assert_true(sound.celsius == 47 && sound.pressure_cpu == 0 && sound.memory_available == (uint64_t)4 << 30);
    for (int i = 0; i < n_files; i++) {
        for (size_t h = 0; h < sizeof how / sizeof *how; h++) {
            happen(how[h], file[i]);
            read_all(&now);
            if (impossible(&now)) fail_msg("%s %s: %s is impossible", how[h], file[i], impossible(&now));
            if (!is_unknown(file[i], how[h], &now, &sound)) fail_msg("%s %s: not unknown", how[h], file[i]);
            happen("return", file[i]);
        }
        read_all(&now);
        if (!same(&now, &sound)) fail_msg("%s has returned, and not all is as before", file[i]);
        free(file[i]);
    }
    simulator_close(device);
}

/* Each folder as something else, and all files as FIFOs at once: nothing is known, and nobody waits. */
static void test_folders(void **state) {
    static const char *const folders[] = {"sys",
                                          "sys/class",
                                          "sys/class/power_supply",
                                          "sys/class/power_supply/AC",
                                          "sys/class/thermal",
                                          "sys/class/thermal/thermal_zone0",
                                          "sys/class/powercap",
                                          "sys/class/powercap/intel-rapl:0",
                                          "sys/fs",
                                          "sys/fs/cgroup",
                                          "sys/fs/cgroup/attune.slice",
                                          "proc",
                                          "proc/pressure",
                                          "proc/self",
                                          "run"};
    static const char *const how[] = {"fifo", "file", "loop", "dangling"};
    struct snapshot now;
    (void)state;
    device = simulator_open("laptop");
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++)
        for (size_t h = 0; h < sizeof how / sizeof *how; h++) {
            if (!strchr(folders[i], '/')) continue; /* the roots themselves: below */
            happen(how[h], folders[i]);
            read_all(&now);
            if (impossible(&now)) fail_msg("%s %s: %s is impossible", how[h], folders[i], impossible(&now));
            if (strstr(folders[i], "power_supply") || ends(folders[i], "sys/class"))
                if (now.power.supply != POWER_UNKNOWN && !(strcmp(how[h], "dangling") == 0 || ends(folders[i], "AC")))
                    fail_msg("%s %s: the supply is %d", how[h], folders[i], now.power.supply);
            happen("return", folders[i]);
        }
    list_files();
    for (int i = 0; i < n_files; i++) {
        if (i < SIMULATOR_DISPLACED) happen("fifo", file[i]);
        free(file[i]);
    }
    read_all(&now);
    assert_null(impossible(&now));
    simulator_close(device);
    struct sensors_options nowhere = {.sys_root = "/nonexistent/s", .proc_root = "/dev/null", .run_root = ""};
    struct sensors *sensors;
    OK(sensors_open(&nowhere, &sensors, &err));
    sensors_read(sensors, &now);
    assert_int_equal(now.power.supply, POWER_UNKNOWN);
    assert_null(impossible(&now));
    sensors_close(sensors);
}

/* ---- files that change while they are read ---- */

static atomic_int writing;

/* Empties, halves and values, in place, as fast as it can. */
static void *rewrite(void *unused) {
    static const struct {
        const char *path, *text[3];
    } files[] = {
        {"sys/class/power_supply/AC/online", {"1\n", "0\n", "99\n"}},
        {"sys/class/power_supply/BAT0/status", {"Charging\n", "Discharging\n", "Not charging\n"}},
        {"sys/class/power_supply/BAT0/capacity", {"100\n", "7\n", "1000000\n"}},
        {"sys/class/thermal/thermal_zone1/temp", {"149999\n", "-39999\n", "99999999999999999999\n"}},
        {"sys/class/powercap/intel-rapl:0/energy_uj", {"262143328850\n", "0\n", "-1\n"}},
        {"sys/class/powercap/intel-rapl:0/max_energy_range_uj", {"262143328850\n", "65712999613\n", "0\n"}},
        {"proc/pressure/cpu",
         {"some avg10=99.99 avg60=0.00 avg300=0.00 total=1\n", "some avg10=", "some avg10=1e99\n"}},
        {"proc/meminfo",
         {"MemTotal: 1 kB\nMemAvailable: 99999999999999999999 kB\n", "MemAvail", "MemAvailable: -1 kB\n"}},
    };
    uint32_t random = 12345;
    int fd[8];
    (void)unused;
    for (size_t i = 0; i < 8; i++) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s", device->folder, files[i].path);
        fd[i] = open(path, O_WRONLY | O_CLOEXEC);
    }
    while (atomic_load(&writing)) {
        random = random * 1664525 + 1013904223;
        size_t i = random >> 29;
        const char *text = files[i].text[(random >> 16) % 3];
        size_t n = strlen(text), half = (random >> 8) % (n + 1);
        if (ftruncate(fd[i], 0) != 0 || pwrite(fd[i], text, half, 0) != (ssize_t)half) break;
        if (pwrite(fd[i], text + half, n - half, (off_t)half) != (ssize_t)(n - half)) break;
    }
    for (size_t i = 0; i < 8; i++) close(fd[i]);
    return NULL;
}

static void test_rewritten(void **state) {
    struct snapshot now;
    struct sensors *sensors;
    pthread_t writer;
    (void)state;
    device = simulator_open("laptop");
    struct sensors_options options = options_of(device);
    OK(sensors_open(&options, &sensors, &err));
    atomic_store(&writing, 1);
    assert_int_equal(pthread_create(&writer, NULL, rewrite, NULL), 0);
    for (int i = 0; i < 3000; i++) {
        device->monotonic += 1; /* RAPL is read at each */
        device->boottime += 1;
        sensors_read(sensors, &now);
        if (impossible(&now)) fail_msg("look %d: %s is impossible", i, impossible(&now));
    }
    atomic_store(&writing, 0);
    pthread_join(writer, NULL);
    sensors_close(sensors);
    simulator_close(device);
}

/* ---- an app that tells nonsense ---- */

static attune_device told;
static void tell(attune_device *out, void *user) {
    (void)user;
    *out = told;
}

static void test_nonsense(void **state) {
    static const double numbers[] = {-1, -1e308, 1e308, -INFINITY, INFINITY, NAN, 1e-320, 151, -41};
    static const int whole[] = {-1, -2, 3, 101, 1000, -2147483647 - 1, 2147483647};
    struct snapshot now;
    struct sensors *sensors;
    (void)state;
    device = simulator_open("locked");
    struct sensors_options options = options_of(device);
    options.device = tell;
    OK(sensors_open(&options, &sensors, &err));
    for (size_t i = 0; i < 9 * 9 * 7; i++) {
        double a = numbers[i % 9], b = numbers[i / 9 % 9];
        int w = whole[i / 81];
        told = (attune_device){i % 2 ? sizeof told : i, w, w, w, a, b, a == b ? 5 : a};
        device->monotonic += 2;
        device->boottime += 2;
        sensors_read(sensors, &now);
        if (impossible(&now)) fail_msg("%d %g %g: %s is impossible", w, a, b, impossible(&now));
        assert_int_equal(now.power.supply, POWER_UNKNOWN);
    }
    sensors_close(sensors);
    simulator_close(device);
}

/* ---- an app that never answers ---- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int blocks, blocked, left;

static void tell_or_block(attune_device *out, void *user) {
    (void)user;
    out->power = ATTUNE_POWER_MAINS;
    out->idle_s = INFINITY;
    pthread_mutex_lock(&lock);
    if (blocks) {
        blocked = 1;
        pthread_cond_broadcast(&changed);
        while (blocks) pthread_cond_wait(&changed, &lock);
        left = 1;
        pthread_cond_broadcast(&changed);
    }
    pthread_mutex_unlock(&lock);
}

/* Only ahead, and by atomics: the governor's thread looks at this clock too. */
static _Atomic double ticks = 1000;
static double tick(void *user) {
    (void)user;
    return atomic_load(&ticks);
}
static int64_t tick_ms(void *user) {
    (void)user;
    return INT64_C(1710000000000);
}
static const struct clock ticking = {tick, tick, tick_ms, tick, NULL};

static double seconds_now(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}
static struct governor_options threaded(void) {
    struct governor_options options = {.sensors = options_of(device), .watts_per_cpu = 5, .event_fd = -2, .thread = 1};
    policy_default(DEVICE_PHONE, &options.policy);
    options.policy.window = (struct window){0, 0};
    options.policy.charger_stable_s = 0;
    options.policy.battery_min = 0;
    options.policy.without_sensors = 1;
    options.sensors.clock = &ticking;
    return options;
}

/* The last decision grows stale, which is a stop; closing does not wait for the app. */
static void test_blocked_app(void **state) {
    struct governor *governor;
    struct decision d;
    (void)state;
    device = simulator_open("locked");
    struct governor_options options = threaded();
    options.sensors.device = tell_or_block;
    OK(governor_open(&options, &governor, &err));
    governor_decision(governor, &d);
    if (d.verdict != VERDICT_RUN && d.verdict != VERDICT_THROTTLE)
        fail_msg("%s, %s", verdict_name(d.verdict), reason_name(d.reason));
    pthread_mutex_lock(&lock);
    blocks = 1;
    while (!blocked) pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    double before = seconds_now();
    governor_look(governor); /* waits a second at most, and goes without an answer */
    assert_true(seconds_now() - before < 60);
    governor_decision(governor, &d);
    assert_true(d.verdict == VERDICT_RUN || d.verdict == VERDICT_THROTTLE);
    atomic_store(&ticks, atomic_load(&ticks) + GOVERNOR_STALE_S + 0.1);
    governor_decision(governor, &d);
    assert_int_equal(d.verdict, VERDICT_STOP);
    assert_int_equal(d.reason, REASON_STALE);
    assert_true(d.duty == 0);
    before = seconds_now();
    governor_close(governor);
    assert_true(seconds_now() - before < 60);
    pthread_mutex_lock(&lock);
    assert_int_equal(left, 0); /* it is still held when closing is over */
    blocks = 0;
    pthread_cond_broadcast(&changed);
    while (!left) pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    nanosleep(&(struct timespec){0, 300000000}, NULL); /* the thread that was left behind ends and frees */
    simulator_close(device);
}

/* All that can be a FIFO is one: looks come back, and the answer is that nothing is known. */
static void test_thread_among_fifos(void **state) {
    static const char *const paths[] = {"sys/class/power_supply/AC/type",
                                        "sys/class/power_supply/AC/online",
                                        "sys/class/power_supply/BAT0/status",
                                        "sys/class/thermal/thermal_zone0/temp",
                                        "proc/pressure/cpu",
                                        "sys/class/powercap/intel-rapl:0/energy_uj",
                                        "proc/meminfo",
                                        "proc/self/cgroup"};
    struct governor *governor;
    struct decision d;
    (void)state;
    device = simulator_open("laptop");
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) happen("fifo", paths[i]);
    struct governor_options options = threaded();
    OK(governor_open(&options, &governor, &err));
    for (int i = 0; i < 20; i++) governor_look(governor);
    governor_decision(governor, &d);
    assert_int_equal(d.verdict, VERDICT_STOP);
    assert_int_equal(d.reason, REASON_POWER_UNKNOWN);
    governor_close(governor);
    simulator_close(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_each_file),   cmocka_unit_test(test_folders),
                                       cmocka_unit_test(test_rewritten),   cmocka_unit_test(test_nonsense),
                                       cmocka_unit_test(test_blocked_app), cmocka_unit_test(test_thread_among_fifos)};
    alarm(WATCHDOG_S);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
