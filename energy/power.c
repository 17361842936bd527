/* Linux: Documentation/ABI/testing/sysfs-class-power: uA, uV, uW, uWh, uAh. Drivers disagree on the sign of
 * current_now, so nothing is decided from it: the supplies' `online` and the battery's `status` speak. */
#include "energy/power.h"

#include "energy/sensors.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* More than any device has; a folder that holds more is none to believe. */
enum { SUPPLIES_MAX = 64 };

struct found {
    int chargers, online, unreadable;
    double charge, weight; /* of batteries: per cent times watt-hours, and watt-hours, summed; NaN: not told by all */
    int plain;             /* per cent, summed */
    int charge_unknown;
    double watts; /* that leave those which discharge; NaN: one does not tell */
};

static int read_line(int folder, const char *supply, const char *file, char *out, size_t size) {
    char path[320];
    return snprintf(path, sizeof path, "%s/%s", supply, file) < (int)sizeof path &&
           sensor_line(folder, path, out, size);
}

static int read_number(int folder, const char *supply, const char *file, long long low, long long high,
                       long long *out) {
    char path[320];
    return snprintf(path, sizeof path, "%s/%s", supply, file) < (int)sizeof path &&
           sensor_number(folder, path, low, high, out);
}

/* All that a driver may say; "Unknown" is said by sound batteries too, for a moment after a change. */
static int is_status(const char *text) {
    static const char *const known[] = {"Charging", "Discharging", "Not charging", "Full", "Unknown"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(text, known[i]) == 0) return 1;
    return 0;
}

/* The device runs off this battery, so 0 is no answer, nor is what no battery of a person's device can give: 1 kW,
 * 100 A, 100 V. */
static double watts_of(int folder, const char *supply) {
    long long uw, ua, uv;
    if (read_number(folder, supply, "power_now", -1000000000, 1000000000, &uw) && uw != 0)
        return (double)llabs(uw) * 1e-6;
    if (read_number(folder, supply, "current_now", -100000000, 100000000, &ua) && ua != 0 &&
        read_number(folder, supply, "voltage_now", 1, 100000000, &uv))
        return (double)llabs(ua) * 1e-6 * ((double)uv * 1e-6);
    return NAN;
}

/* What it holds when full, in watt-hours, so that a small battery beside a large one counts for little; 0: not told. */
static double capacity_of(int folder, const char *supply) {
    long long uwh, uah, uv;
    if (read_number(folder, supply, "energy_full", 1, 10000000000, &uwh)) return (double)uwh * 1e-6;
    if (read_number(folder, supply, "charge_full", 1, 1000000000, &uah) &&
        read_number(folder, supply, "voltage_min_design", 1, 100000000, &uv))
        return (double)uah * 1e-6 * ((double)uv * 1e-6);
    return 0;
}

static void look_at_battery(int folder, const char *supply, struct power_snapshot *out, struct found *found) {
    char status[32];
    long long value;
    if (read_number(folder, supply, "present", 0, 1, &value) && value == 0) return;
    out->battery++;
    if (read_number(folder, supply, "capacity", 0, 100, &value)) {
        double weight = capacity_of(folder, supply);
        if (weight == 0) found->weight = NAN; /* then all count for the same */
        found->charge += weight * (double)value;
        found->weight += weight;
        found->plain += (int)value;
    } else {
        found->charge_unknown = 1;
    }
    if (!read_line(folder, supply, "status", status, sizeof status) || !is_status(status)) {
        found->unreadable++;
    } else if (strcmp(status, "Discharging") == 0) {
        out->discharging = 1;
        found->watts += watts_of(folder, supply);
    }
}

static void look_at(int folder, const char *supply, struct power_snapshot *out, struct found *found) {
    char type[32], scope[32];
    long long value;
    if (!read_line(folder, supply, "type", type, sizeof type)) {
        found->unreadable++;
        return;
    }
    /* batteries of mice and headsets are none of ours */
    if (read_line(folder, supply, "scope", scope, sizeof scope) && strcmp(scope, "Device") == 0) return;
    if (strcmp(type, "Battery") == 0) {
        look_at_battery(folder, supply, out, found);
    } else if (strcmp(type, "Mains") == 0 || strncmp(type, "USB", 3) == 0 || strcmp(type, "Wireless") == 0 ||
               strcmp(type, "BrickID") == 0) {
        if (!read_number(folder, supply, "online", 0, 3, &value)) {
            found->unreadable++;
            return;
        }
        found->chargers++;
        if (value > 0) found->online = 1;
    }
}

static int percent_of(const struct found *found, int batteries) {
    if (!batteries || found->charge_unknown) return -1;
    if (found->weight > 0) return (int)(found->charge / found->weight);
    return found->plain / batteries;
}

/* No such folder, where its parent can be read: a kernel without supplies, a desktop. */
static int is_desktop(const char *sys_root) {
    char path[1024];
    return snprintf(path, sizeof path, "%s/class", sys_root) < (int)sizeof path && access(path, R_OK) == 0;
}

double power_read_watts(const char *sys_root, struct power_snapshot *out) {
    struct found found = {0};
    int n = 0;
    if (!sys_root) sys_root = "/sys";
    *out = (struct power_snapshot){.supply = POWER_UNKNOWN, .percent = -1};
    DIR *dir = sensor_folder(sys_root, "class/power_supply");
    if (!dir) {
        if (errno == ENOENT && is_desktop(sys_root)) out->supply = POWER_MAINS;
        return NAN;
    }
    errno = 0;
    for (struct dirent *entry; n <= SUPPLIES_MAX && (entry = readdir(dir)); errno = 0)
        if (entry->d_name[0] != '.' && n++ < SUPPLIES_MAX) look_at(dirfd(dir), entry->d_name, out, &found);
    if (errno || n > SUPPLIES_MAX) found.unreadable++;
    closedir(dir);
    out->percent = percent_of(&found, out->battery);
    out->battery = out->battery > 0;
    if (!found.unreadable) {
        int none = !out->battery && !found.chargers;
        out->supply = found.online || none ? POWER_MAINS : POWER_BATTERY;
    }
    return found.watts > 0 ? found.watts : (double)NAN;
}

void power_read(const char *sys_root, struct power_snapshot *out) { (void)power_read_watts(sys_root, out); }
