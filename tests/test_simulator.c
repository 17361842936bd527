/* The simulator's own word: devices as promised, what happens to them, and that all of it can be taken back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/simulator.h"

static struct simulator *device;

static const char *place(const char *path) {
    static char text[512];
    snprintf(text, sizeof text, "%s/%s", device->folder, path);
    return text;
}
static const char *said(const char *path) {
    static char text[256];
    FILE *f = fopen(place(path), "r");
    if (!f) return strerror(errno);
    size_t n = fread(text, 1, sizeof text - 1, f);
    text[n] = 0;
    text[strcspn(text, "\n")] = 0;
    fclose(f);
    return text;
}
static void happen(const char *event) {
    char why[SIMULATOR_WHY];
    if (!simulator_do(device, event, why)) fail_msg("%s: %s", event, why);
}
static void begin(const char *name) {
    device = simulator_open(name);
    assert_non_null(device);
}
static void end(void) {
    char folder[64];
    strcpy(folder, device->folder);
    simulator_close(device);
    assert_int_equal(access(folder, F_OK), -1);
}

#define SUPPLY "sys/class/power_supply/"
#define PACKAGE "sys/class/powercap/intel-rapl:0/"

static void test_supplies(void **state) {
    (void)state;
    begin("laptop");
    assert_string_equal(said(SUPPLY "AC/online"), "1");
    happen("unplug");
    assert_string_equal(said(SUPPLY "AC/online"), "0");
    assert_string_equal(said(SUPPLY "BAT0/status"), "Discharging");
    simulator_pass(device, 10, 2);
    assert_string_equal(said(SUPPLY "BAT0/power_now"), "16000000");
    happen("plug");
    happen("battery 41 held");
    assert_string_equal(said(SUPPLY "BAT0/capacity"), "41");
    assert_string_equal(said(SUPPLY "BAT0/status"), "Not charging");
    end();
    begin("phone");
    happen("unplug");
    simulator_pass(device, 1, 2);
    assert_string_equal(said(SUPPLY "battery/current_now"), "-779221"); /* 3 W at 3.85 V */
    end();
    begin("locked");
    assert_string_equal(said(SUPPLY "usb/online"), strerror(ELOOP));
    end();
    begin("desktop");
    assert_int_equal(rmdir(place("sys/class/power_supply")), 0);
    end();
    assert_null(simulator_open("toaster"));
}

static void test_time(void **state) {
    char why[SIMULATOR_WHY];
    (void)state;
    begin("laptop");
    struct clock *clock = &device->clock;
    double monotonic = clock->monotonic(clock->user), boottime = clock->boottime(clock->user);
    int64_t wall = clock->wall_ms(clock->user);
    happen("zone 1 87000 over 100");
    simulator_pass(device, 50, 1.5);
    assert_string_equal(said("sys/class/thermal/thermal_zone1/temp"), "67000");
    assert_string_equal(said("sys/class/thermal/thermal_zone0/temp"), "44500");
    assert_true(clock->monotonic(clock->user) == monotonic + 50 && clock->cpu(clock->user) == 75);
    assert_int_equal(clock->wall_ms(clock->user), wall + 50000);
    happen("suspend 1h");
    assert_true(clock->monotonic(clock->user) == monotonic + 50 && clock->boottime(clock->user) == boottime + 3650);
    assert_int_equal(clock->wall_ms(clock->user), wall + 3650000);
    happen("clock -01:00:00.5");
    assert_int_equal(clock->wall_ms(clock->user), wall + 49500);
    for (int i = 0; i < 1000; i++) simulator_pass(device, 0.0005, 0);
    assert_int_equal(clock->wall_ms(clock->user), wall + 50000);
    assert_false(simulator_do(device, "suspend", why));
    end();
}

static void test_counter(void **state) {
    (void)state;
    begin("laptop");
    assert_string_equal(said(PACKAGE "energy_uj"), "5000000000");
    simulator_pass(device, 10, 2);
    assert_string_equal(said(PACKAGE "energy_uj"), "5160000000");
    assert_true(device->joules == 160);
    happen("rapl range 65713");
    assert_string_equal(said(PACKAGE "max_energy_range_uj"), "65713000000");
    assert_string_equal(said(PACKAGE "energy_uj"), "65712000000");
    simulator_pass(device, 1, 0);
    assert_string_equal(said(PACKAGE "energy_uj"), "2999999"); /* behind its range comes 0 */
    happen("rapl back");
    assert_string_equal(said(PACKAGE "energy_uj"), "0");
    end();
}

/* Whatever stands in its place, the file goes on being written, and returns. */
static void test_displaced(void **state) {
    static const char *const how[] = {"garbage", "empty",  "digits", "nul",  "latin",   "vanish",
                                      "fifo",    "folder", "file",   "loop", "dangling"};
    char event[128];
    struct stat st;
    (void)state;
    begin("laptop");
    for (size_t i = 0; i < sizeof how / sizeof *how; i++) {
        snprintf(event, sizeof event, "%s " SUPPLY "AC/online", how[i]);
        happen(i % 2 ? "plug" : "unplug");
        happen(event);
        assert_string_not_equal(said("sys/class/power_supply/AC/type"), "");
        if (strcmp(how[i], "fifo") == 0)
            assert_true(lstat(place(SUPPLY "AC/online"), &st) == 0 && S_ISFIFO(st.st_mode));
        if (strcmp(how[i], "digits") == 0)
            assert_true(stat(place(SUPPLY "AC/online"), &st) == 0 && st.st_size == 1 << 20);
        if (strcmp(how[i], "loop") == 0) assert_string_equal(said(SUPPLY "AC/online"), strerror(ELOOP));
        if (strcmp(how[i], "vanish") == 0) assert_string_equal(said(SUPPLY "AC/online"), strerror(ENOENT));
        happen(i % 2 ? "unplug" : "plug");
        happen("garbage " SUPPLY "AC/online");
        assert_string_equal(said(SUPPLY "AC/online"), "%x!zy");
        happen("return " SUPPLY "AC/online");
        assert_string_equal(said(SUPPLY "AC/online"), i % 2 ? "0" : "1");
    }
    happen("vanish sys/class");
    happen("plug");
    assert_string_equal(said(SUPPLY "AC/online"), strerror(ENOENT));
    happen("return sys/class");
    assert_string_equal(said(SUPPLY "AC/online"), "1");
    happen("write run/attune/new  two  words ");
    assert_string_equal(said("run/attune/new"), "two  words ");
    happen("return run/attune/new");
    assert_string_equal(said("run/attune/new"), strerror(ENOENT));
    end();
}

static void test_app(void **state) {
    attune_device told = {.size = sizeof told};
    (void)state;
    begin("phone");
    assert_false(device->app);
    happen("app idle 30");
    happen("app counter");
    simulator_pass(device, 10, 0);
    simulator_tell(&told, device);
    assert_true(device->app && told.idle_s == 40 && told.joules == 5 && told.percent == -1 && isnan(told.celsius));
    happen("app celsius -3");
    happen("app away");
    happen("app power battery");
    simulator_tell(&told, device);
    assert_true(isinf(told.idle_s) && told.celsius == -3 && told.power == ATTUNE_POWER_BATTERY);
    end();
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_supplies), cmocka_unit_test(test_time),
                                       cmocka_unit_test(test_counter), cmocka_unit_test(test_displaced),
                                       cmocka_unit_test(test_app)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
