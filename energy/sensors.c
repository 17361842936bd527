#include "energy/sensors.h"

#include "core/base/options.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- files ---- */

/* Asked before it is opened, for opening a device may do something; and again after, for it may be another by then. */
static int open_regular(int folder, const char *path) {
    struct stat st;
    if (fstatat(folder, path, &st, 0) != 0 || !S_ISREG(st.st_mode)) return -1;
    int fd = openat(folder, path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (fd < 0) return -1;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode)) return fd;
    close(fd);
    return -1;
}

static size_t read_start(int folder, const char *path, char *out, size_t size) {
    int fd = open_regular(folder, path);
    if (fd < 0) return 0;
    ssize_t n = read(fd, out, size);
    close(fd);
    return n > 0 ? (size_t)n : 0;
}

size_t sensor_text(int folder, const char *path, char *out, size_t size) {
    size_t n = read_start(folder, path, out, size - 1);
    if (n == size - 1)
        while (n > 0 && out[n - 1] != '\n') n--;
    out[n] = 0;
    return n;
}

int sensor_line(int folder, const char *path, char *out, size_t size) {
    size_t n = read_start(folder, path, out, size);
    char *newline = n ? memchr(out, '\n', n) : NULL;
    size_t length = newline ? (size_t)(newline - out) : n;
    if (length == 0 || length == size || memchr(out, 0, n)) return 0;
    out[length] = 0;
    return 1;
}

int sensor_number(int folder, const char *path, long long low, long long high, long long *out) {
    char text[32], *end;
    if (!sensor_line(folder, path, text, sizeof text)) return 0;
    if (!isdigit((unsigned char)text[text[0] == '-'])) return 0;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (*end || errno || value < low || value > high) return 0;
    *out = value;
    return 1;
}

DIR *sensor_folder(const char *root, const char *path) {
    char whole[1024];
    if (snprintf(whole, sizeof whole, "%s/%s", root, path) >= (int)sizeof whole) {
        errno = ENAMETOOLONG;
        return NULL;
    }
    return opendir(whole);
}

/* ---- a look at everything ---- */

/* A poll of once a second may wake a little early. */
#define COUNTERS_S 0.99

struct sensors {
    struct sensors_options options;
    char *sys_root, *proc_root, *run_root;
    const struct clock *clock;
    struct thermal *thermal;
    struct logind *logind; /* nullable */
    int battery_seen;      /* at some look */
    double counted_at;     /* monotonic time of the last poll of the counters; NaN: none yet */
    struct energy_counter counter[RAPL_PACKAGES_MAX];
    int n_counters;
};

int sensors_open(const struct sensors_options *options, struct sensors **out, attune_error *err) {
    struct sensors *s = calloc(1, sizeof *s);
    if (!s) return error_set_memory(err, "the sensors", sizeof *s);
    s->options = *options;
    s->clock = options->clock ? options->clock : &clock_system;
    s->counted_at = NAN;
    s->sys_root = strdup(options->sys_root ? options->sys_root : "/sys");
    s->proc_root = strdup(options->proc_root ? options->proc_root : "/proc");
    s->run_root = strdup(options->run_root ? options->run_root : "/run");
    s->thermal = thermal_open();
    if (!s->sys_root || !s->proc_root || !s->run_root || !s->thermal) {
        sensors_close(s);
        return error_set_memory(err, "the sensors", sizeof *s);
    }
    if (options->logind) s->logind = logind_open(s->run_root);
    *out = s;
    return ATTUNE_OK;
}

void sensors_close(struct sensors *s) {
    if (!s) return;
    logind_close(s->logind);
    thermal_close(s->thermal);
    free(s->run_root);
    free(s->proc_root);
    free(s->sys_root);
    free(s);
}

/* What the app tells; what is out of range it has not told. */
static void ask_app(const struct sensors *s, attune_device *device) {
    ATTUNE_INIT(*device);
    device->percent = -1;
    device->idle_s = device->celsius = device->joules = NAN;
    if (!s->options.device) return;
    s->options.device(device, s->options.device_user);
    if (device->power != ATTUNE_POWER_MAINS && device->power != ATTUNE_POWER_BATTERY)
        device->power = ATTUNE_POWER_UNKNOWN;
    if (device->percent < 0 || device->percent > 100) device->percent = -1;
    if (!(device->idle_s >= 0)) device->idle_s = NAN;
    if (!(device->celsius > CELSIUS_LOW && device->celsius < CELSIUS_HIGH)) device->celsius = NAN;
    if (!(device->joules >= 0 && device->joules < 1e12)) device->joules = NAN;
}

/* A battery drains when either says so. A folder that had a battery and has
 * none now is no desktop's: its driver is loaded anew, or it was taken out, and what is left tells too little. */
static void look_at_power(struct sensors *s, const attune_device *app, struct snapshot *out) {
    out->battery_watts = power_read_watts(s->sys_root, &out->power);
    struct power_snapshot *power = &out->power;
    int drains = app->discharging != 0;
    if (power->battery) s->battery_seen = 1;
    if (s->battery_seen && !power->battery && power->supply == POWER_MAINS) power->supply = POWER_UNKNOWN;
    if (app->power != ATTUNE_POWER_UNKNOWN)
        power->supply = app->power == ATTUNE_POWER_MAINS ? POWER_MAINS : POWER_BATTERY;
    if (drains) power->discharging = 1;
    if (app->percent >= 0) power->percent = app->percent;
    if (app->percent >= 0 || drains || app->power == ATTUNE_POWER_BATTERY) power->battery = 1;
    if (!power->discharging) out->battery_watts = NAN;
}

static void look_at_counters(struct sensors *s, const attune_device *app, struct snapshot *out) {
    if (!isnan(app->joules)) {
        out->n_counters = 1;
        out->counter[0] = (struct energy_counter){(uint64_t)(app->joules * 1e6), UINT64_MAX, "app"};
        return;
    }
    double since = out->monotonic - s->counted_at;
    if (!(since >= 0 && since < COUNTERS_S)) {
        s->n_counters = rapl_read(s->sys_root, s->counter);
        s->counted_at = out->monotonic;
    }
    out->n_counters = s->n_counters;
    memcpy(out->counter, s->counter, sizeof s->counter);
}

void sensors_read(struct sensors *s, struct snapshot *out) {
    attune_device app;
    memset(out, 0, sizeof *out);
    ask_app(s, &app); /* may block: what is timed comes after it */
    out->monotonic = s->clock->monotonic(s->clock->user);
    out->boottime = s->clock->boottime(s->clock->user);
    out->wall_ms = s->clock->wall_ms(s->clock->user);
    out->cpu = s->clock->cpu(s->clock->user);
    look_at_power(s, &app, out);
    out->celsius = isnan(app.celsius) ? thermal_read(s->thermal, s->sys_root, out) : app.celsius;
    pressure_read(s->proc_root, s->sys_root, out);
    look_at_counters(s, &app, out);
    out->idle_s = isnan(app.idle_s) ? logind_idle(s->logind, out) : app.idle_s;
}
