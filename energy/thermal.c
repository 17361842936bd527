/* Linux: Documentation/driver-api/thermal/sysfs-api.rst: thermal_zone[0-*]/temp in millidegrees.
 *
 * Some zones are no thermometers: firmware that answers with one number for ever, a driver that has hung. One that
 * stands still is doubted when something else tells that temperatures cannot have: another zone that moved by a
 * degree, or this process's own work. On a device at rest a constant zone is what is to be expected, and a device at work
 * may hold one temperature for long: a zone that has moved before is believed for an hour. */
#include "energy/sensors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    ZONES_MAX = 256, /* by their number; telephones have about a hundred */
    DEGREE = 1000,   /* millidegrees */
    LOOKS_MIN = 10   /* two equal values ten minutes apart show nothing */
};
#define STUCK_S 600.0
#define STUCK_MOVED_S 3600.0
#define STUCK_CPU_S 60.0 /* CPU time in which a processor would have become warmer */

struct zone {
    int seen;          /* at this look */
    int known;         /* at the last one */
    int moved;         /* it has shown two values */
    int looks;         /* that showed `value` */
    long long value;   /* the last */
    long long anchor;  /* where the last whole degree of movement ended */
    double since, cpu; /* when `value` was first shown, and the process's CPU time then */
    uint64_t moves;    /* thermal.moves at that time */
};
struct thermal {
    uint64_t moves; /* degrees that any zone has moved by, one after the other */
    double last;    /* monotonic time of the last look */
    struct zone zone[ZONES_MAX];
};

struct thermal *thermal_open(void) {
    return calloc(1, sizeof(struct thermal));
}
void thermal_close(struct thermal *thermal) { free(thermal); }

/* "thermal_zone12": 12; else -1. */
static int zone_number(const char *name) {
    static const char prefix[] = "thermal_zone";
    char *end;
    if (strncmp(name, prefix, sizeof prefix - 1) != 0) return -1;
    name += sizeof prefix - 1;
    if (*name < '0' || *name > '9' || (*name == '0' && name[1])) return -1;
    long number = strtol(name, &end, 10);
    return *end || number >= ZONES_MAX ? -1 : (int)number;
}

static void zone_note(struct thermal *t, struct zone *zone, long long value, const struct snapshot *now) {
    zone->seen = 1;
    if (zone->known && llabs(value - zone->anchor) >= DEGREE) {
        t->moves++;
        zone->anchor = value;
    }
    if (!zone->known) zone->anchor = value;
    if (zone->known && value == zone->value) {
        zone->looks++;
        return;
    }
    zone->moved = zone->known;
    zone->known = 1;
    zone->value = value;
    zone->looks = 1;
    zone->since = now->monotonic;
    zone->cpu = now->cpu;
    zone->moves = t->moves;
}

static int zone_stuck(const struct thermal *t, const struct zone *zone, const struct snapshot *now) {
    double patience = zone->moved ? STUCK_MOVED_S : STUCK_S;
    if (zone->looks < LOOKS_MIN || !(now->monotonic - zone->since >= patience)) return 0;
    return t->moves != zone->moves || now->cpu - zone->cpu >= STUCK_CPU_S;
}

double thermal_read(struct thermal *t, const char *sys_root, const struct snapshot *now) {
    double hottest = NAN;
    DIR *dir = sensor_folder(sys_root, "class/thermal");
    if (now->monotonic < t->last) memset(t->zone, 0, sizeof t->zone); /* another clock: what it showed says nothing */
    t->last = now->monotonic;
    if (dir)
        for (struct dirent *entry; (entry = readdir(dir));) {
            char path[300];
            long long value;
            int number = zone_number(entry->d_name);
            if (number < 0) continue;
            snprintf(path, sizeof path, "%s/temp", entry->d_name);
            if (sensor_number(dirfd(dir), path, CELSIUS_LOW * DEGREE + 1, CELSIUS_HIGH * DEGREE - 1, &value))
                zone_note(t, &t->zone[number], value, now);
        }
    if (dir) closedir(dir);
    for (struct zone *zone = t->zone; zone < t->zone + ZONES_MAX; zone++) {
        if (zone->seen && !zone_stuck(t, zone, now)) hottest = fmax(hottest, (double)zone->value / DEGREE);
        zone->known = zone->seen;
        zone->seen = 0;
    }
    return hottest;
}
