/* What the device can be asked: power supply, temperature, energy counters, pressure, limits, who is there.
 *
 * Never blocks on what is not a regular file, never fails: what cannot be read, is garbage, out of range or
 * contradicts itself counts as unknown (NaN, or the enum's 0). One thread at a time. */
#ifndef ENERGY_SENSORS_H
#define ENERGY_SENSORS_H

#include "attune.h"
#include "energy/clock.h"
#include "energy/power.h"

#include <dirent.h>

enum { RAPL_PACKAGES_MAX = 16 };

struct snapshot {
    double monotonic, boottime, cpu; /* seconds, when it was taken */
    int64_t wall_ms;
    struct power_snapshot power;
    double battery_watts;   /* that leave the battery while it discharges, from the magnitudes of current, voltage and
                             * power (drivers disagree on the sign); NaN: not known, or it does not discharge */
    double celsius;         /* of the hottest zone that can be believed; NaN */
    double idle_s;          /* since a person was last there; INFINITY: nobody is logged in; NaN */
    double pressure_cpu, pressure_memory, pressure_io; /* PSI, share of the last 10 s in which some task waited: 0 to 1;
                                                        * NaN */
    double load;            /* runnable tasks, mean of a minute; NaN */
    double cpus;            /* that the cgroup's quota allows; NaN: no limit, or not known */
    uint64_t memory_available; /* bytes: the machine's, or what the cgroup leaves; 0: not known */
    /* Counters of energy: RAPL's packages, or one that the app keeps. */
    struct energy_counter {
        uint64_t uj, range;    /* microjoules; wraps to 0 behind range (RAPL: max_energy_range_uj) */
        char name[32];         /* "package-0" */
    } counter[RAPL_PACKAGES_MAX];
    int n_counters;            /* 0: none can be read */
};

struct sensors_options {
    const char *sys_root, *proc_root, *run_root; /* NULL: "/sys", "/proc", "/run" */
    attune_device_callback device; /* nullable: the app's own; what it tells goes before what is read */
    void *device_user;
    const struct clock *clock;     /* NULL: clock_system */
    int logind;                    /* 1: ask logind on the system bus for idleness, where the build has it */
};
struct sensors;
/* ATTUNE_ERROR_MEMORY only. Texts are copied. */
int sensors_open(const struct sensors_options *options, struct sensors **out, attune_error *err);
void sensors_close(struct sensors *sensors);
/* Remembers across calls what shows that a thermal zone is stuck. RAPL is polled at most once a second; between, the
 * last counters stand. */
void sensors_read(struct sensors *sensors, struct snapshot *out);

/* ---- for the files of this room ---- */

/* First line of a small regular file below the folder `fd` (AT_FDCWD too), without the newline; 0: there is none to be
 * had: missing, not a regular file, empty, longer than size - 1, or it holds a NUL. */
int sensor_line(int fd, const char *path, char *out, size_t size);
/* The same as a whole decimal number within [low, high]; nothing else may stand beside it. */
int sensor_number(int fd, const char *path, long long low, long long high, long long *out);
/* The start of a regular file, with a 0 behind it: whole lines where it is longer than size - 1. How many bytes. */
size_t sensor_text(int fd, const char *path, char *out, size_t size);
/* The folder root/path; NULL: errno says why not. */
DIR *sensor_folder(const char *root, const char *path);

/* thermal.c: state of zones between looks */
struct thermal;
struct thermal *thermal_open(void); /* NULL: no memory */
void thermal_close(struct thermal *thermal);
enum { CELSIUS_LOW = -40, CELSIUS_HIGH = 150 }; /* no thermometer of a device shows either */
/* sys_root/class/thermal/thermal_zone*: millidegrees; at or below -40 C and from 150 C on are not believed, nor is a
 * zone that shows the very same value for ten minutes, an hour where it has moved before, while the others, or the
 * CPU's work, say otherwise. */
double thermal_read(struct thermal *thermal, const char *sys_root, const struct snapshot *now);

/* rapl.c: sys_root/class/powercap/intel-rapl:N of packages, ordered by name. Returns how many there are; 0 too where
 * one of them cannot be read, for a part of the energy measures nothing. */
int rapl_read(const char *sys_root, struct energy_counter out[RAPL_PACKAGES_MAX]);

/* pressure.c: PSI, load, memory, the cgroup's limits (v2), each into its field of *out. */
void pressure_read(const char *proc_root, const char *sys_root, struct snapshot *out);

/* logind.c: over the system bus, run_root/dbus/system_bus_socket, at most 100 ms a look. */
struct logind;
struct logind *logind_open(const char *run_root); /* NULL: no memory, or built without. Connects at the first look */
void logind_close(struct logind *logind);
/* As snapshot.idle_s; now->monotonic is the system's own CLOCK_MONOTONIC, as in logind. logind NULL, no bus, no answer:
 * NaN, and the bus is tried again after a minute. */
double logind_idle(struct logind *logind, const struct snapshot *now);

#endif
