/* Power supplies as trees of files in a folder, and the policy as a table. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "energy/power.h"

/* ---- trees ---- */

static char root[64];

static int setup(void **state) {
    (void)state;
    strcpy(root, "/tmp/attune-power-XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}
static int teardown(void **state) {
    char command[256];
    (void)state;
    snprintf(command, sizeof command, "chmod -R u+rwx %s; rm -rf %s", root, root);
    return system(command);
}

static const char *in_tree(const char *name) {
    static char path[512];
    snprintf(path, sizeof path, "%s/class/power_supply%s%s", root, *name ? "/" : "", name);
    return path;
}
static void folder(const char *path) {
    if (mkdir(path, 0700) != 0) fail_msg("cannot make %s", path);
}
/* An empty power_supply folder. */
static void tree(void) {
    char path[128];
    snprintf(path, sizeof path, "rm -rf %s/class", root);
    assert_int_equal(system(path), 0);
    snprintf(path, sizeof path, "%s/class", root);
    folder(path);
    folder(in_tree(""));
}
static void put(const char *supply, const char *file, const char *bytes, size_t n) {
    char name[128];
    struct stat st;
    if (stat(in_tree(supply), &st) != 0) folder(in_tree(supply));
    snprintf(name, sizeof name, "%s/%s", supply, file);
    FILE *f = fopen(in_tree(name), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}
static void line(const char *supply, const char *file, const char *text) {
    char bytes[128];
    put(supply, file, bytes, (size_t)snprintf(bytes, sizeof bytes, "%s\n", text));
}
static void charger(const char *name, const char *type, const char *online) {
    line(name, "type", type);
    line(name, "online", online);
}
static void battery(const char *name, const char *status, const char *capacity) {
    line(name, "type", "Battery");
    line(name, "status", status);
    line(name, "capacity", capacity);
}

static struct power_snapshot seen(void) {
    struct power_snapshot snapshot;
    memset(&snapshot, 0x5a, sizeof snapshot);
    power_read(root, &snapshot);
    return snapshot;
}
static void expect(const char *what, enum power_supply supply, int has_battery, int percent, int discharging) {
    struct power_snapshot s = seen();
    if (s.supply != supply || s.battery != has_battery || s.percent != percent || s.discharging != discharging)
        fail_msg("%s: supply %d battery %d percent %d discharging %d, wanted %d %d %d %d", what, s.supply, s.battery,
                 s.percent, s.discharging, supply, has_battery, percent, discharging);
}

/* ---- devices as they are ---- */

static void test_devices(void **state) {
    (void)state;
    tree();
    expect("desktop without supplies", POWER_MAINS, 0, -1, 0);
    charger("AC", "Mains", "1");
    expect("desktop that lists its mains", POWER_MAINS, 0, -1, 0);
    battery("BAT0", "Charging", "71");
    expect("laptop on mains", POWER_MAINS, 1, 71, 0);
    line("BAT0", "status", "Full");
    line("BAT0", "capacity", "100");
    expect("full", POWER_MAINS, 1, 100, 0);
    line("BAT0", "status", "Not charging");
    line("BAT0", "capacity", "80");
    expect("charge limit reached", POWER_MAINS, 1, 80, 0);
    line("BAT0", "status", "Unknown");
    expect("between two states", POWER_MAINS, 1, 80, 0);
    line("BAT0", "status", "Discharging");
    expect("weak charger", POWER_MAINS, 1, 80, 1);
    line("AC", "online", "0");
    expect("unplugged", POWER_BATTERY, 1, 80, 1);
    line("BAT0", "status", "Charging");
    expect("no charger says that it is there", POWER_BATTERY, 1, 80, 0);
    charger("ucsi-source-psy-USBC000:001", "USB", "1");
    expect("one charger of two", POWER_MAINS, 1, 80, 0);

    tree();
    battery("BAT0", "Charging", "50");
    expect("a battery and no charger", POWER_BATTERY, 1, 50, 0);
    line("BAT0", "present", "0");
    expect("an empty bay", POWER_MAINS, 0, -1, 0);
    line("BAT0", "present", "1");
    expect("a bay that is not empty", POWER_BATTERY, 1, 50, 0);

    tree();
    charger("usb", "USB_PD", "1");
    charger("wireless", "Wireless", "0");
    battery("battery", "Charging", "0");
    expect("telephone", POWER_MAINS, 1, 0, 0);
    line("usb", "online", "0");
    line("wireless", "online", "2"); /* programmable: a charger all the same */
    expect("telephone on its pad", POWER_MAINS, 1, 0, 0);
    line("usb", "online", "0");
    line("wireless", "online", "0");
    expect("telephone in a pocket", POWER_BATTERY, 1, 0, 0);

    tree();
    battery("hidpp_battery_0", "Discharging", "5");
    line("hidpp_battery_0", "scope", "Device");
    expect("a mouse's battery is none of ours", POWER_MAINS, 0, -1, 0);
    line("hidpp_battery_0", "scope", "System");
    expect("a system's battery is", POWER_BATTERY, 1, 5, 1);
    line("hidpp_battery_0", "scope", "Device");
    battery("BAT0", "Discharging", "60");
    charger("AC", "Mains", "0");
    expect("laptop with a mouse", POWER_BATTERY, 1, 60, 1);

    tree();
    charger("AC", "Mains", "1");
    battery("BAT0", "Full", "100");
    battery("BAT1", "Discharging", "100");
    expect("one of two batteries is drained", POWER_MAINS, 1, 100, 1);
}

/* ---- what cannot be known ---- */

static void laptop(void) {
    tree();
    charger("AC", "Mains", "1");
    battery("BAT0", "Charging", "71");
}
static void unknown(const char *what) {
    if (seen().supply != POWER_UNKNOWN) fail_msg("%s: supply %d, not unknown", what, seen().supply);
}

static void test_unreadable_files(void **state) {
    (void)state;
    static const char *const needed[] = {"AC/type", "AC/online", "BAT0/type", "BAT0/status"};
    static const struct {
        const char *what, *bytes;
        size_t n;
    } contents[] = {
        {"empty", "", 0},
        {"a line feed", "\n", 1},
        {"letters", "xyzzy\n", 6},
        {"binary", "\x7f\x45\x4c\x46\x02\x01\xff\xfe", 8},
        {"a NUL behind a value", "1\0\0", 3},
        {"a NUL behind a status", "Full\0", 5},
        {"negative", "-1\n", 3},
        {"huge", "99999999999999999999999999999999999999999999\n", 45},
        {"hexadecimal", "0x1\n", 4},
        {"a fraction", "1.0\n", 4},
        {"a trailing blank", "1 \n", 3},
    };
    for (size_t f = 0; f < 4; f++) {
        char supply[32], path[512];
        const char *slash = strchr(needed[f], '/');
        snprintf(supply, sizeof supply, "%.*s", (int)(slash - needed[f]), needed[f]);
        int is_type = strcmp(slash, "/type") == 0;
        for (size_t c = 0; c < sizeof contents / sizeof *contents; c++) {
            laptop();
            put(supply, slash + 1, contents[c].bytes, contents[c].n);
            /* another word as type is another kind of supply, which tells nothing */
            if (is_type && contents[c].n > 0 && !memchr(contents[c].bytes, 0, contents[c].n)) continue;
            unknown(contents[c].what);
        }
        laptop();
        snprintf(path, sizeof path, "%s", in_tree(needed[f]));
        assert_int_equal(unlink(path), 0);
        unknown("missing");
        assert_int_equal(mkfifo(path, 0600), 0);
        unknown("a FIFO: nothing is waited for");
        assert_int_equal(unlink(path), 0);
        folder(path);
        unknown("a folder");
        laptop();
        assert_int_equal(unlink(path), 0);
        assert_int_equal(symlink("/dev/zero", path), 0);
        unknown("a device");
        laptop();
        assert_int_equal(chmod(path, 0), 0);
        if (access(path, R_OK) != 0) unknown("no permission"); /* root may read all */
    }
    laptop();
    FILE *huge = fopen(in_tree("AC/online"), "w");
    assert_non_null(huge);
    for (int i = 0; i < 1 << 20; i++) fputc('1', huge);
    fclose(huge);
    unknown("a file of 1 MiB");
}

/* Scope, presence and charge are asked for, not needed: garbage there is as if they were not told. */
static void test_what_need_not_be_there(void **state) {
    (void)state;
    static const char *const capacities[] = {"", "abc", "-1", "101", "999999999999999999999", "50.5", "0x10", "5 0"};
    for (size_t c = 0; c < sizeof capacities / sizeof *capacities; c++) {
        laptop();
        line("BAT0", "capacity", capacities[c]);
        expect(capacities[c], POWER_MAINS, 1, -1, 0);
    }
    laptop();
    put("BAT0", "capacity", "50\0000", 4);
    expect("a NUL in the charge", POWER_MAINS, 1, -1, 0);
    laptop();
    assert_int_equal(unlink(in_tree("BAT0/capacity")), 0);
    assert_int_equal(mkfifo(in_tree("BAT0/capacity"), 0600), 0);
    expect("a FIFO as charge", POWER_MAINS, 1, -1, 0);
    laptop();
    line("BAT0", "scope", "garbage");
    line("BAT0", "present", "garbage");
    expect("garbage", POWER_MAINS, 1, 71, 0);
}

static void test_missing_folders(void **state) {
    char path[128];
    struct power_snapshot s;
    (void)state;
    tree();
    assert_int_equal(rmdir(in_tree("")), 0);
    expect("class without power_supply: a desktop", POWER_MAINS, 0, -1, 0);
    FILE *f = fopen(in_tree(""), "w");
    assert_non_null(f);
    fclose(f);
    unknown("a file in place of the folder");
    assert_int_equal(unlink(in_tree("")), 0);
    snprintf(path, sizeof path, "%s/class", root);
    assert_int_equal(rmdir(path), 0);
    unknown("no class at all");
    power_read("/nonexistent/attune", &s);
    assert_int_equal(s.supply, POWER_UNKNOWN);
    laptop();
    assert_int_equal(chmod(in_tree(""), 0), 0);
    if (access(in_tree(""), R_OK) != 0) unknown("a folder without permission");
    assert_int_equal(chmod(in_tree(""), 0700), 0);
    char name[256];
    memset(name, 'n', sizeof name);
    name[255] = 0;
    tree();
    folder(in_tree(name)); /* the longest name there can be; nothing in it */
    unknown("a supply without files");
    power_read(NULL, &s); /* this machine's own: whatever it is */
    assert_in_range(s.supply, POWER_UNKNOWN, POWER_BATTERY);
}

/* ---- what the batteries give, and hold ---- */

static void expect_watts(const char *what, double wanted) {
    struct power_snapshot s;
    double watts = power_read_watts(root, &s);
    if (isnan(wanted) ? !isnan(watts) : !(fabs(watts - wanted) < 1e-9))
        fail_msg("%s: %f W, wanted %f", what, watts, wanted);
}

static void test_watts(void **state) {
    (void)state;
    static const char *const bad[] = {"0", "", "abc", "1000000001", "-1000000001", "99999999999999999999", "5.5", "1e6"};
    tree();
    expect_watts("no battery", NAN);
    battery("BAT0", "Discharging", "50");
    expect_watts("it does not tell", NAN);
    line("BAT0", "power_now", "12500000");
    expect_watts("microwatts", 12.5);
    line("BAT0", "power_now", "-12500000");
    expect_watts("the other sign", 12.5);
    line("BAT0", "current_now", "-2000000");
    line("BAT0", "voltage_now", "11400000");
    expect_watts("power goes before current", 12.5);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        line("BAT0", "power_now", bad[i]);
        expect_watts(bad[i], 22.8);
    }
    line("BAT0", "current_now", "2000000");
    expect_watts("microamperes and microvolts", 22.8);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        line("BAT0", "current_now", bad[i]);
        expect_watts(bad[i], NAN);
    }
    line("BAT0", "current_now", "2000000");
    line("BAT0", "voltage_now", "-11400000");
    expect_watts("a negative voltage", NAN);
    line("BAT0", "voltage_now", "11400000");
    static const char *const others[] = {"Charging", "Full", "Not charging", "Unknown", "nonsense"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        line("BAT0", "status", others[i]);
        expect_watts(others[i], NAN);
    }
    line("BAT0", "status", "Discharging");
    battery("BAT1", "Discharging", "50");
    expect_watts("one of two does not tell", NAN);
    line("BAT1", "power_now", "1000000");
    expect_watts("two", 23.8);
    line("BAT1", "status", "Full");
    expect_watts("one of two gives", 22.8);
    battery("hid-mouse", "Discharging", "50");
    line("hid-mouse", "scope", "Device");
    line("hid-mouse", "power_now", "1000000");
    expect_watts("a mouse's battery does not feed the device", 22.8);
}

static void test_charge_of_several(void **state) {
    (void)state;
    laptop();
    battery("BAT1", "Full", "100");
    expect("both count for the same", POWER_MAINS, 1, 85, 0);
    line("BAT0", "energy_full", "72000000");
    expect("as long as one does not tell its size", POWER_MAINS, 1, 85, 0);
    line("BAT1", "energy_full", "24000000");
    expect("by what they hold", POWER_MAINS, 1, (71 * 72 + 100 * 24) / 96, 0);
    assert_int_equal(unlink(in_tree("BAT1/energy_full")), 0);
    line("BAT1", "charge_full", "2000000");
    line("BAT1", "voltage_min_design", "12000000");
    expect("in ampere-hours too", POWER_MAINS, 1, (71 * 72 + 100 * 24) / 96, 0);
    line("BAT1", "capacity", "garbage");
    expect("one of them does not tell", POWER_MAINS, 1, -1, 0);
}

/* As in the kernel's own tree: class/power_supply holds links to the devices. */
static void test_links(void **state) {
    (void)state;
    char target[256];
    laptop();
    snprintf(target, sizeof target, "%s/devices", root);
    folder(target);
    snprintf(target, sizeof target, "%s/devices/BAT0", root);
    assert_int_equal(rename(in_tree("BAT0"), target), 0);
    assert_int_equal(symlink("../../devices/BAT0", in_tree("BAT0")), 0);
    expect("linked", POWER_MAINS, 1, 71, 0);
    assert_int_equal(symlink("..", in_tree("BAT0/subsystem")), 0);
    expect("with a way back", POWER_MAINS, 1, 71, 0);
    snprintf(target, sizeof target, "rm -rf %s/devices", root);
    assert_int_equal(system(target), 0);
    unknown("a link to nothing");
    assert_int_equal(unlink(in_tree("BAT0")), 0);
    assert_int_equal(symlink("BAT0", in_tree("BAT0")), 0);
    unknown("a link to itself");
    laptop();
    for (int i = 0; i < 70; i++) {
        char name[32];
        snprintf(name, sizeof name, "usb%d", i);
        charger(name, "USB", "0");
    }
    unknown("more supplies than any device has");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_devices),
        cmocka_unit_test(test_unreadable_files),
        cmocka_unit_test(test_what_need_not_be_there),
        cmocka_unit_test(test_missing_folders),
        cmocka_unit_test(test_watts),
        cmocka_unit_test(test_charge_of_several),
        cmocka_unit_test(test_links),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
