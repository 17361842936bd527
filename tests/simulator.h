/* A device that does not exist: /sys, /proc and /run as files in a temporary folder, and a clock that the test moves.
 *
 *     struct simulator *s = simulator_open("laptop");
 *     options.sys_root = s->sys, options.proc_root = s->proc, options.run_root = s->run, options.clock = &s->clock;
 *     simulator_pass(s, 60, 2);                    a minute with two CPUs at work: counters and clocks move
 *     simulator_do(s, "unplug", why);              what can happen to a device, in words: simulator_do's comment
 *
 * Knows the kernel's files and nothing of the code that reads them. Where the machine itself fails it (no folder, no
 * space), it says so and aborts. One thread. */
#ifndef TESTS_SIMULATOR_H
#define TESTS_SIMULATOR_H

#include <stddef.h>
#include <stdint.h>

#include "attune.h"
#include "energy/clock.h"

enum { SIMULATOR_ZONES = 4, SIMULATOR_DISPLACED = 32, SIMULATOR_PATH = 256, SIMULATOR_WHY = 160 };

struct simulator {
    char folder[64], sys[72], proc[72], run[72];
    struct clock clock; /* reads the four below */
    double monotonic, boottime, cpu;
    int64_t wall_ms;
    double wall_rest; /* of a millisecond */

    double watts_idle, watts_cpu; /* what the device takes: at rest, and for each busy CPU on top of that */
    double watts, joules;         /* now; since it was opened, without what it took while suspended */

    const char *charger, *battery; /* names of the supplies; NULL: there is none */
    int discharging, amperes;      /* amperes: the battery tells current and voltage, not power */
    int zones;
    struct simulator_zone {
        double from, to, began, seconds; /* millidegrees; from `began` on it takes so long to get there */
        int set;                         /* it does as it was told; others go up and down by three degrees */
        long written;
    } zone[SIMULATOR_ZONES];
    int rapl; /* there is a package */
    double rapl_uj, rapl_range;

    int app; /* an app tells what it knows */
    attune_device told;
    double idle_since; /* boottime when a person was last there; NaN: somebody is, told.idle_s stands */
    int app_counter;   /* told.joules follows `joules` */

    struct simulator_displaced {
        char path[SIMULATOR_PATH];
        int kept; /* what was there waits to return */
    } displaced[SIMULATOR_DISPLACED];
};

/* What it is at first, everything in order, on a charger, at rest and cool:
 *   laptop   AC, BAT0 (80 %, charging), two zones, RAPL (package, core, psys), PSI, cgroup, chassis
 *   phone    usb, battery (80 %, charging; tells amperes, negative ones while it discharges), three zones, PSI
 *   desktop  a power_supply folder with nothing in it, one zone, RAPL, PSI, cgroup, chassis
 *   bare     a container: folders and no sensors
 *   locked   a phone whose power_supply folder may not be read, seen from an app
 * NULL: no such device. */
struct simulator *simulator_open(const char *device);
void simulator_close(struct simulator *s);

/* Seconds pass, with so many CPUs busy: clocks, zones, counters and the battery's figures follow. */
void simulator_pass(struct simulator *s, double seconds, double cpus);

/* Makes one thing happen; 1, or 0 with the reason in `why` and nothing done. A path begins with sys/, proc/ or run/; a
 * duration is 90, 90s, 5m, 3h or 01:30:00; a size 500k, 900M or 2G (of 1024).
 *   plug | unplug                        the charger's `online` and the battery's status
 *   battery PERCENT STATUS               charging, discharging, full, held (a charge limit), unknown
 *   zone N MILLIDEGREES [over DURATION]
 *   pressure cpu|memory|io PERCENT       PSI's avg10
 *   memory SIZE                          MemAvailable
 *   quota CPUS|none                      the cgroup's cpu.max
 *   load X
 *   watts IDLE CPU                       what the device takes
 *   rapl range JOULES | rapl back        the counter wraps there, and is a Joule before; starts anew
 *   suspend DURATION | clock +DURATION | clock -DURATION
 *   app idle DURATION | present | away | power mains|battery|unknown | percent N | discharging 0|1 | celsius N |
 * counter write PATH TEXT                      a line garbage | empty | digits | nul | latin PATH      a file of that;
 * digits: a MiB vanish | fifo | folder | file | loop | dangling PATH    something else, or nothing, in its place return
 * PATH                          as it was, or would be by now */
int simulator_do(struct simulator *s, const char *event, char why[SIMULATOR_WHY]);

/* The whole file, any bytes. Folders above it are made. */
void simulator_put(struct simulator *s, const char *path, const void *bytes, size_t n);
/* Of options.device, with the simulator as user. */
void simulator_tell(attune_device *device, void *simulator);

/* Whole words of the script's language; 0: it is none. */
int simulator_duration(const char *text, double *seconds);
int simulator_size(const char *text, uint64_t *bytes);
int simulator_real(const char *text, double low, double high, double *out);

#endif
