/* Power: is this device on a charger? The supplies and batteries of sysfs, behind an injectable root. */
#ifndef ENERGY_POWER_H
#define ENERGY_POWER_H

#include "core/base/error.h"

enum power_supply { POWER_UNKNOWN, POWER_MAINS, POWER_BATTERY };
struct power_snapshot {
    enum power_supply supply;
    int battery;     /* there is one */
    int percent;     /* of all batteries together, -1: not known */
    int discharging; /* its status says so, whatever the charger says */
};
/* Reads sys_root/class/power_supply. Never blocks and never fails: what cannot be read, is garbage
 * or contradicts itself counts as unknown. A readable, empty folder (or none, where class/ can be read) is a
 * desktop: mains. */
void power_read(const char *sys_root, struct power_snapshot *out);
/* The same; returns the watts that leave the batteries that discharge: from the magnitudes of power_now, else of
 * current_now and voltage_now. NaN: none discharges, or one of them does not tell. */
double power_read_watts(const char *sys_root, struct power_snapshot *out);

#endif
