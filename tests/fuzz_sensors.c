/* libFuzzer: any bytes as the files of a device, read by sensors_read: it neither crashes nor waits, and what it hands
 * on is unknown or possible.
 *
 * The input is cut at lines that begin with a mark, so that a person can write one:
 *   @PATH    the file; what follows, up to the next mark, is in it       |PATH    a FIFO
 *   &PATH    a link to itself       /PATH    a folder       -PATH    nothing any more
 *   =N       a look, then N hundred seconds pass, and one more
 * Paths that are none of a device's are left out. One more look is the end. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "energy/policy.h"
#include "tests/possible.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define SUPPLY "sys/class/power_supply/"
#define ZONE "sys/class/thermal/thermal_zone"
#define RAPL "sys/class/powercap/intel-rapl:"
#define SLICE "sys/fs/cgroup/attune.slice/"
static const char *const paths[] = {SUPPLY "AC/type",
                                    SUPPLY "AC/online",
                                    SUPPLY "AC/scope",
                                    SUPPLY "usb/type",
                                    SUPPLY "usb/online",
                                    SUPPLY "BAT0/type",
                                    SUPPLY "BAT0/status",
                                    SUPPLY "BAT0/capacity",
                                    SUPPLY "BAT0/present",
                                    SUPPLY "BAT0/scope",
                                    SUPPLY "BAT0/power_now",
                                    SUPPLY "BAT0/current_now",
                                    SUPPLY "BAT0/voltage_now",
                                    SUPPLY "BAT1/type",
                                    SUPPLY "BAT1/status",
                                    SUPPLY "BAT1/capacity",
                                    SUPPLY "BAT1/power_now",
                                    SUPPLY "BAT1/current_now",
                                    SUPPLY "BAT1/voltage_now",
                                    SUPPLY "battery/type",
                                    SUPPLY "battery/status",
                                    SUPPLY "battery/capacity",
                                    SUPPLY "battery/current_now",
                                    SUPPLY "battery/voltage_now",
                                    ZONE "0/type",
                                    ZONE "0/temp",
                                    ZONE "1/type",
                                    ZONE "1/temp",
                                    ZONE "2/temp",
                                    ZONE "2/type",
                                    RAPL "0/name",
                                    RAPL "0/energy_uj",
                                    RAPL "0/max_energy_range_uj",
                                    RAPL "1/name",
                                    RAPL "1/energy_uj",
                                    RAPL "1/max_energy_range_uj",
                                    RAPL "0:0/name",
                                    "proc/pressure/cpu",
                                    "proc/pressure/memory",
                                    "proc/pressure/io",
                                    "proc/loadavg",
                                    "proc/meminfo",
                                    "proc/self/cgroup",
                                    SLICE "cpu.max",
                                    SLICE "memory.max",
                                    SLICE "memory.high",
                                    SLICE "memory.current",
                                    SLICE "memory.stat",
                                    SLICE "cpu.pressure",
                                    "sys/fs/cgroup/cpu.max",
                                    "sys/class/dmi/id/chassis_type"};
enum { PATHS = sizeof paths / sizeof *paths };

static char folder[64], roots[3][80];
static unsigned char made[PATHS]; /* something is there */

static double now_s;
static double now(void *user) {
    (void)user;
    return now_s;
}
static int64_t now_ms(void *user) {
    (void)user;
    return (int64_t)(now_s * 1000);
}
static const struct clock clock_of_fuzz = {now, now, now_ms, now, NULL};

static void require(int condition) {
    if (!condition) abort();
}
static const char *whole(const char *path) {
    static char text[256];
    snprintf(text, sizeof text, "%s/%s", folder, path);
    return text;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *where) {
    (void)st, (void)type, (void)where;
    return remove(path);
}
static void remove_all(void) { nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS); }

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    static const char *const names[] = {"sys", "proc", "run"};
    (void)argc, (void)argv;
    snprintf(folder, sizeof folder, "%s/attune-fuzz-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    require(mkdtemp(folder) != NULL);
    for (int i = 0; i < 3; i++) {
        snprintf(roots[i], sizeof roots[i], "%s/%s", folder, names[i]);
        require(mkdir(roots[i], 0700) == 0);
    }
    atexit(remove_all);
    return 0;
}

/* With the folders that are empty then: what a device has not, has none. */
static void clear(int i) {
    char path[256];
    if (!made[i]) return;
    made[i] = 0;
    snprintf(path, sizeof path, "%s", whole(paths[i]));
    require(remove(path) == 0);
    for (char *slash; (slash = strrchr(path, '/')) && (size_t)(slash - path) > strlen(folder) + 5;) {
        *slash = 0;
        if (rmdir(path) != 0) return;
    }
}
static void make_folders(int i) {
    char path[256];
    snprintf(path, sizeof path, "%s", whole(paths[i]));
    for (char *slash = strchr(path + strlen(folder) + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        require(mkdir(path, 0700) == 0 || errno == EEXIST);
        *slash = '/';
    }
}
static void make(char mark, int i, const uint8_t *bytes, size_t n) {
    clear(i);
    if (mark == '-') return;
    made[i] = 1;
    make_folders(i);
    if (mark == '|') require(mkfifo(whole(paths[i]), 0600) == 0);
    if (mark == '&') require(symlink(whole(paths[i]), whole(paths[i])) == 0);
    if (mark == '/') require(mkdir(whole(paths[i]), 0700) == 0);
    if (mark != '@') return;
    int fd = open(whole(paths[i]), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    require(fd >= 0 && write(fd, bytes, n) == (ssize_t)n);
    close(fd);
}

static void look(struct sensors *sensors) {
    struct snapshot snapshot;
    memset(&snapshot, 0x5a, sizeof snapshot);
    sensors_read(sensors, &snapshot);
    const char *which = impossible(&snapshot);
    if (which) fprintf(stderr, "%s is impossible\n", which);
    require(!which);
}

static int is_mark(uint8_t c) { return c && strchr("@|&/-=", c); }
static size_t line_end(const uint8_t *data, size_t at, size_t size) {
    const uint8_t *end = memchr(data + at, '\n', size - at);
    return end ? (size_t)(end - data) : size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct sensors_options options = {
        .sys_root = roots[0], .proc_root = roots[1], .run_root = roots[2], .clock = &clock_of_fuzz};
    struct sensors *sensors;
    now_s = 1000;
    if (sensors_open(&options, &sensors, NULL) != ATTUNE_OK) return 0;
    for (size_t at = 0; at < size;) {
        size_t named = line_end(data, at, size), end = named;
        while (end < size && !(end + 1 < size && is_mark(data[end + 1]))) end = line_end(data, end + 1, size);
        size_t n = named - at, from = named < size ? named + 1 : size;
        if (data[at] == '=') {
            look(sensors);
            now_s += n > 1 && data[at + 1] >= '0' && data[at + 1] <= '9' ? 100.0 * (data[at + 1] - '0') + 1 : 1;
        }
        for (int i = 0; i < PATHS && is_mark(data[at]) && data[at] != '='; i++)
            if (n - 1 == strlen(paths[i]) && memcmp(data + at + 1, paths[i], n - 1) == 0)
                make((char)data[at], i, data + from, end > from ? end - from : 0);
        at = end < size ? end + 1 : size;
    }
    look(sensors);
    device_detect(roots[0]);
    sensors_close(sensors);
    for (int i = 0; i < PATHS; i++) clear(i);
    return 0;
}
