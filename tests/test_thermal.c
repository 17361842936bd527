/* Thermal zones: which can be believed, and for how long. */
#include "tests/sensor_tree.h"

#include <math.h>

#include "energy/sensors.h"

static struct thermal *thermal;
static struct snapshot now;

static int setup(void **state) {
    thermal = thermal_open();
    now = (struct snapshot){.monotonic = 1000, .cpu = 5};
    return thermal ? tree_setup(state) : -1;
}
static int teardown(void **state) {
    thermal_close(thermal);
    return tree_teardown(state);
}

static void zone(int number, const char *text) {
    char name[64];
    snprintf(name, sizeof name, "class/thermal/thermal_zone%d/temp", number);
    tree_text(name, text);
}
static void expect(double celsius) {
    double seen = thermal_read(thermal, tree_root, &now);
    if (isnan(celsius) ? !isnan(seen) : !(fabs(seen - celsius) < 1e-9))
        fail_msg("at %.0f s: %f C, wanted %f C", now.monotonic, seen, celsius);
}
/* Looks once a second; cpu: CPU seconds that this process uses in each. */
static void pass(int seconds, double cpu) {
    for (int i = 0; i < seconds; i++) {
        now.monotonic += 1;
        now.cpu += cpu;
        thermal_read(thermal, tree_root, &now);
    }
}

static void test_hottest(void **state) {
    (void)state;
    expect(NAN); /* no folder */
    zone(0, "41000\n");
    expect(41);
    zone(1, "67500\n");
    zone(255, "50000\n");
    expect(67.5);
    zone(2, "150000\n");
    zone(3, "-40000\n");
    zone(4, "999999999\n");
    zone(5, "-274000\n");
    expect(67.5);
    zone(2, "149999\n");
    expect(149.999);
    tree_remove("class/thermal");
    zone(0, "-39999\n");
    expect(-39.999);
    zone(0, "0\n");
    expect(0);
}

static void test_what_is_no_zone(void **state) {
    (void)state;
    tree_text("class/thermal/cooling_device0/temp", "90000\n");
    tree_text("class/thermal/thermal_zone/temp", "90000\n");
    tree_text("class/thermal/thermal_zone-1/temp", "90000\n");
    tree_text("class/thermal/thermal_zone1x/temp", "90000\n");
    tree_text("class/thermal/thermal_zone01/temp", "90000\n");
    tree_text("class/thermal/thermal_zone256/temp", "90000\n");
    tree_text("class/thermal/thermal_zone99999999999999999999/temp", "90000\n");
    expect(NAN);
    zone(1, "30000\n");
    expect(30);
}

static void test_links(void **state) {
    (void)state;
    tree_text("devices/virtual/thermal/thermal_zone0/temp", "44000\n");
    tree_folders("class/thermal/x");
    assert_int_equal(symlink("../../devices/virtual/thermal/thermal_zone0", in_tree("class/thermal/thermal_zone0")), 0);
    assert_int_equal(symlink("thermal_zone7", in_tree("class/thermal/thermal_zone7")), 0);
    assert_int_equal(symlink("../gone", in_tree("class/thermal/thermal_zone8")), 0);
    expect(44);
    tree_remove("devices");
    expect(NAN);
}

static void test_hostile(void **state) {
    (void)state;
    for (int i = 0; i < TREE_HOSTILE; i++) {
        zone(0, "20000\n");
        const char *what = tree_hostile("class/thermal/thermal_zone1/temp", i);
        print_message("%s\n", what);
        expect(20);
        tree_hostile("class/thermal/thermal_zone0/temp", i);
        expect(NAN);
        tree_hostile("class/thermal/thermal_zone0", i);
        expect(NAN);
        tree_hostile("class/thermal", i);
        expect(NAN);
        tree_remove("class");
    }
}

/* Nothing says that it should have moved. */
static void test_constant_at_rest(void **state) {
    (void)state;
    zone(0, "27800\n");
    zone(1, "35000\n");
    expect(35);
    pass(3 * 3600, 0.001);
    expect(35);
    zone(0, "28100\n"); /* less than a degree: noise */
    pass(700, 0.001);
    expect(35);
}

static void test_stuck_while_others_move(void **state) {
    (void)state;
    char text[32];
    zone(0, "90000\n");
    zone(1, "40000\n");
    expect(90);
    for (int i = 0; i < 598; i++) {
        snprintf(text, sizeof text, "%d\n", 40000 + 10 * i);
        zone(1, text);
        pass(1, 0);
    }
    expect(90); /* nearly ten minutes */
    pass(2, 0);
    expect(45.97);
    pass(1000, 0);
    expect(45.97);
    zone(0, "89000\n"); /* it lives */
    expect(89);
}

static void test_stuck_while_working(void **state) {
    (void)state;
    zone(0, "27800\n");
    expect(27.8);
    pass(599, 1);
    expect(27.8);
    pass(2, 1);
    expect(NAN);
    zone(0, "27900\n");
    expect(27.9);
    pass(620, 0.05); /* half a minute of work in ten: may leave it as it is */
    expect(27.9);
    pass(700, 0.05);
    expect(27.9); /* it has moved before: a plateau */
    pass(2400, 0.05);
    expect(NAN);
}

/* Two looks with the same value, far apart, are a coincidence. */
static void test_rare_looks(void **state) {
    (void)state;
    zone(0, "50000\n");
    for (int i = 0; i < 9; i++) {
        expect(50);
        now.monotonic += 3600;
        now.cpu += 3600;
    }
    expect(NAN);
}

/* What goes and comes back begins anew; so does everything when the clock is another. */
static void test_begins_anew(void **state) {
    (void)state;
    zone(0, "50000\n");
    pass(602, 1);
    expect(NAN);
    tree_remove("class/thermal/thermal_zone0");
    expect(NAN);
    zone(0, "50000\n");
    pass(500, 1);
    expect(50);
    pass(200, 1);
    expect(NAN);
    now.monotonic = 3;
    expect(50);
    pass(700, 1);
    expect(NAN);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_hottest),
        TEST(test_what_is_no_zone),
        TEST(test_links),
        TEST(test_hostile),
        TEST(test_constant_at_rest),
        TEST(test_stuck_while_others_move),
        TEST(test_stuck_while_working),
        TEST(test_rare_looks),
        TEST(test_begins_anew),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
