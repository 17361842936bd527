/* Linux: Documentation/ABI/testing/sysfs-class-power. Drivers disagree on the sign of current_now, so
 * nothing is decided from it: the supplies' `online` and the battery's `status` speak. */
#include "energy/power.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* First line of a small regular file; 0 if there is none to be had. */
static int read_line(int folder, const char *supply, const char *file, char *out, size_t size) {
    char path[320];
    struct stat st;
    if (snprintf(path, sizeof path, "%s/%s", supply, file) >= (int)sizeof path) return 0;
    int fd = openat(folder, path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t n = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) ? read(fd, out, size - 1) : -1;
    close(fd);
    if (n <= 0 || memchr(out, 0, (size_t)n)) return 0;
    out[n] = 0;
    out[strcspn(out, "\n")] = 0;
    return 1;
}

static int read_number(int folder, const char *supply, const char *file, long low, long high, long *out) {
    char text[32], *end;
    if (!read_line(folder, supply, file, text, sizeof text)) return 0;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (end == text || *end || errno || value < low || value > high) return 0;
    *out = value;
    return 1;
}

/* All that a driver may say; "Unknown" is said by sound batteries too, for a moment after a change. */
static int is_status(const char *text) {
    static const char *const known[] = {"Charging", "Discharging", "Not charging", "Full", "Unknown"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(text, known[i]) == 0) return 1;
    return 0;
}

struct found {
    int chargers, online, unreadable;
};

static void look_at(int folder, const char *supply, struct power_snapshot *out, struct found *found) {
    char type[32], scope[32], status[32];
    long value;
    if (!read_line(folder, supply, "type", type, sizeof type)) {
        found->unreadable++;
        return;
    }
    /* batteries of mice and headsets are none of ours */
    if (read_line(folder, supply, "scope", scope, sizeof scope) && strcmp(scope, "Device") == 0) return;
    if (strcmp(type, "Battery") == 0) {
        if (read_number(folder, supply, "present", 0, 1, &value) && value == 0) return;
        out->battery = 1;
        if (out->percent < 0 && read_number(folder, supply, "capacity", 0, 100, &value)) out->percent = (int)value;
        if (!read_line(folder, supply, "status", status, sizeof status) || !is_status(status))
            found->unreadable++;
        else if (strcmp(status, "Discharging") == 0)
            out->discharging = 1;
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

void power_read(const char *sys_root, struct power_snapshot *out) {
    struct found found = {0};
    char path[1024];
    *out = (struct power_snapshot){.supply = POWER_UNKNOWN, .percent = -1};
    snprintf(path, sizeof path, "%s/class/power_supply", sys_root ? sys_root : "/sys");
    DIR *dir = opendir(path);
    if (!dir) {
        int missing = errno == ENOENT;
        snprintf(path, sizeof path, "%s/class", sys_root ? sys_root : "/sys");
        if (missing && access(path, R_OK) == 0) out->supply = POWER_MAINS;
        return;
    }
    for (struct dirent *entry; (entry = readdir(dir));)
        if (entry->d_name[0] != '.') look_at(dirfd(dir), entry->d_name, out, &found);
    closedir(dir);
    if (found.unreadable) return;
    if (found.online)
        out->supply = POWER_MAINS;
    else if (out->battery || found.chargers)
        out->supply = POWER_BATTERY;
    else
        out->supply = POWER_MAINS;
}

enum power_decision power_decide(const struct power_snapshot *s, const struct power_policy *policy,
                                 const char **reason) {
    const char *unused;
    if (!reason) reason = &unused;
    if (policy->charger_required) {
        if (s->supply == POWER_UNKNOWN) {
            *reason = "the power supply cannot be read";
            return POWER_STOP;
        }
        if (s->supply == POWER_BATTERY) {
            *reason = "not on a charger";
            return POWER_STOP;
        }
        if (s->discharging) {
            *reason = "on a charger, but the battery is discharging";
            return POWER_STOP;
        }
    }
    if (s->battery && s->percent < 0 && policy->percent_min > 0) {
        *reason = "the battery's charge cannot be read";
        return POWER_STOP;
    }
    if (s->battery && s->percent >= 0 && s->percent < policy->percent_min) {
        *reason = "the battery is below the minimum charge";
        return POWER_STOP;
    }
    *reason = "on mains";
    return POWER_RUN;
}
