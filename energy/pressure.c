/* Linux: Documentation/accounting/psi.rst, Documentation/admin-guide/cgroup-v2.rst, proc(5). */
#include "energy/sensors.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Digits and a fraction, as the kernel prints them, whatever the locale; *text is moved behind it. NaN: none. */
static double decimal(const char **text) {
    const char *p = *text;
    double value = 0, unit = 1;
    if (*p < '0' || *p > '9') return NAN;
    for (; *p >= '0' && *p <= '9'; p++) value = value * 10 + (*p - '0');
    if (*p == '.')
        for (p++; *p >= '0' && *p <= '9'; p++) value += (unit /= 10) * (*p - '0');
    *text = p;
    return value;
}

/* "some avg10=1.23 avg60=..." as a share. */
static double psi(int folder, const char *path) {
    static const char prefix[] = "some avg10=";
    char line[160];
    const char *p = line + sizeof prefix - 1;
    if (!sensor_line(folder, path, line, sizeof line) || strncmp(line, prefix, sizeof prefix - 1) != 0) return NAN;
    double percent = decimal(&p);
    return *p == ' ' && percent <= 100 ? percent / 100 : (double)NAN;
}

/* The number in `text`, which ends at a blank, a line feed or its end; 0: "max", or no number. */
static uint64_t whole_number(const char *text) {
    char *end;
    if (*text < '0' || *text > '9') return 0;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    return errno || (*end && *end != ' ' && *end != '\n') ? 0 : value;
}

/* Of a text of lines the number behind `name` and blanks; 0: none. */
static uint64_t number_of(const char *text, const char *name) {
    for (const char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, name, strlen(name)) != 0) continue;
        line += strlen(name);
        if (*line == ' ') return whole_number(line + strspn(line, " "));
    }
    return 0;
}

static uint64_t machine_memory(int proc) {
    char text[4096];
    uint64_t kib = sensor_text(proc, "meminfo", text, sizeof text) ? number_of(text, "MemAvailable:") : 0;
    return kib < UINT64_MAX / 1024 ? kib * 1024 : 0;
}

/* The folder of this process's cgroup (v2), relative to the mount: "user.slice/app.service"; "" for none, or one that
 * lies outside of what can be seen from here. */
static void cgroup_path(int proc, char *out, size_t size) {
    char text[4096];
    *out = 0;
    if (!sensor_text(proc, "self/cgroup", text, sizeof text)) return;
    for (char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, "0::/", 4) != 0) continue;
        size_t n = strcspn(line + 4, "\n");
        line[4 + n] = 0;
        if (n < size && !strstr(line, "/..")) memcpy(out, line + 4, n + 1);
        return;
    }
}

/* "50000 100000": quota and period in microseconds. */
static double cpus_of(int group, const char *path) {
    char line[64];
    if (!sensor_line(group, path, line, sizeof line)) return NAN;
    const char *period = strchr(line, ' ');
    uint64_t quota_us = whole_number(line), period_us = period ? whole_number(period + 1) : 0;
    return quota_us && period_us ? (double)quota_us / (double)period_us : (double)NAN;
}

/* What a group may still take: what its files occupy and nobody has used of late goes when memory is asked for.
 * UINT64_MAX: no limit. */
static uint64_t memory_left(int root, const char *group) {
    static const char *const limits[] = {"memory.max", "memory.high"};
    char path[1200], text[4096];
    uint64_t limit = UINT64_MAX;
    long long value, used;
    for (size_t i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", group, limits[i]);
        if (sensor_number(root, path, 0, INT64_MAX, &value) && (uint64_t)value < limit) limit = (uint64_t)value;
    }
    if (limit == UINT64_MAX) return limit;
    snprintf(path, sizeof path, "%s/memory.current", group);
    if (!sensor_number(root, path, 0, INT64_MAX, &used)) return UINT64_MAX;
    snprintf(path, sizeof path, "%s/memory.stat", group);
    uint64_t idle = sensor_text(root, path, text, sizeof text) ? number_of(text, "inactive_file") : 0;
    uint64_t busy = (uint64_t)used > idle ? (uint64_t)used - idle : 0;
    return limit > busy ? limit - busy : 0;
}

/* Limits of the group and of all that it is in; pressure of itself alone: what is above has that of others in it. */
static void cgroup_read(int root, char *group, struct snapshot *out) {
    char path[1200];
    uint64_t left = UINT64_MAX;
    static const char *const names[] = {"cpu", "memory", "io"};
    double *const pressures[] = {&out->pressure_cpu, &out->pressure_memory, &out->pressure_io};
    for (size_t i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s.pressure", group, names[i]);
        *pressures[i] = fmax(*pressures[i], psi(root, path));
    }
    for (char *slash = group; slash && *group;) {
        snprintf(path, sizeof path, "%s/cpu.max", group);
        out->cpus = fmin(out->cpus, cpus_of(root, path));
        uint64_t here = memory_left(root, group);
        if (here < left) left = here;
        slash = strrchr(group, '/');
        if (slash) *slash = 0;
    }
    if (left == UINT64_MAX) return;
    if (!out->memory_available || left < out->memory_available) out->memory_available = left ? left : 1;
}

static double load_of(int proc) {
    char line[128];
    const char *p = line;
    if (!sensor_line(proc, "loadavg", line, sizeof line)) return NAN;
    double load = decimal(&p);
    return *p == ' ' && load < 1e6 ? load : (double)NAN;
}

static int open_folder(const char *root, const char *path) {
    char whole[1024];
    if (snprintf(whole, sizeof whole, "%s%s", root, path) >= (int)sizeof whole) return -1;
    return open(whole, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

void pressure_read(const char *proc_root, const char *sys_root, struct snapshot *out) {
    char group[1024] = "";
    out->pressure_cpu = out->pressure_memory = out->pressure_io = out->load = out->cpus = NAN;
    out->memory_available = 0;
    int proc = open_folder(proc_root, "");
    if (proc >= 0) {
        out->pressure_cpu = psi(proc, "pressure/cpu");
        out->pressure_memory = psi(proc, "pressure/memory");
        out->pressure_io = psi(proc, "pressure/io");
        out->load = load_of(proc);
        out->memory_available = machine_memory(proc);
        cgroup_path(proc, group, sizeof group);
        close(proc);
    }
    if (!*group) return;
    int root = open_folder(sys_root, "/fs/cgroup");
    if (root < 0) return;
    cgroup_read(root, group, out);
    close(root);
}
