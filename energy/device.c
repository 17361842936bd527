/* Chassis: DMTF DSP0134 (SMBIOS) 7.4.1, as Linux shows it in class/dmi/id/chassis_type; where there is a device tree,
 * its root's chassis-type (Devicetree Specification 0.4, 3.2). */
#include "energy/policy.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum chassis { CHASSIS_UNKNOWN, CHASSIS_DESKTOP, CHASSIS_PORTABLE, CHASSIS_HANDHELD };

static enum chassis firmware_says(int root) {
    long long type;
    if (!sensor_number(root, "class/dmi/id/chassis_type", 1, 127, &type)) return CHASSIS_UNKNOWN;
    switch (type) {
    case 3:
    case 4:
    case 5:
    case 6:
    case 7:
    case 13:
    case 15:
    case 16:
    case 17:
    case 23:
    case 24:
    case 35:
    case 36:
        return CHASSIS_DESKTOP;
    case 8:
    case 9:
    case 10:
    case 14:
    case 30:
    case 31:
    case 32:
        return CHASSIS_PORTABLE;
    case 11:
        return CHASSIS_HANDHELD;
    default:
        return CHASSIS_UNKNOWN;
    }
}

static enum chassis tree_says(int root) {
    static const struct {
        const char *name;
        enum chassis chassis;
    } known[] = {{"desktop", CHASSIS_DESKTOP},  {"server", CHASSIS_DESKTOP},       {"all-in-one", CHASSIS_DESKTOP},
                 {"laptop", CHASSIS_PORTABLE},  {"convertible", CHASSIS_PORTABLE}, {"tablet", CHASSIS_HANDHELD},
                 {"handset", CHASSIS_HANDHELD}, {"watch", CHASSIS_HANDHELD}};
    char text[32];
    if (!sensor_text(root, "firmware/devicetree/base/chassis-type", text, sizeof text)) return CHASSIS_UNKNOWN;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(text, known[i].name) == 0) return known[i].chassis;
    return CHASSIS_UNKNOWN;
}

/* Without a word of the firmware: an ARM device with a battery is a telephone more often than not, and what a phone is
 * spared is good for a laptop too. */
static enum device_kind battery_kind(enum chassis chassis) {
#if defined __ANDROID__ || defined __arm__ || defined __aarch64__
    if (chassis == CHASSIS_UNKNOWN) return DEVICE_PHONE;
#endif
    (void)chassis;
    return DEVICE_LAPTOP;
}

enum device_kind device_detect(const char *sys_root) {
    enum chassis chassis = CHASSIS_UNKNOWN;
    struct power_snapshot power;
    int root = open(sys_root ? sys_root : "/sys", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (root >= 0) {
        chassis = firmware_says(root);
        if (chassis == CHASSIS_UNKNOWN) chassis = tree_says(root);
        close(root);
    }
    if (chassis == CHASSIS_HANDHELD) return DEVICE_PHONE;
    if (chassis == CHASSIS_PORTABLE) return DEVICE_LAPTOP;
    power_read(sys_root, &power);
    if (power.battery) return battery_kind(chassis);
    /* supplies that are hidden from an app may be a battery's: the careful guess */
    if (chassis == CHASSIS_UNKNOWN && power.supply == POWER_UNKNOWN) return battery_kind(chassis);
    return DEVICE_DESKTOP;
}
