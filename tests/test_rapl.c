/* Energy counters of packages, and of nothing that has them in it or is in them. */
#include "tests/sensor_tree.h"

#include "energy/sensors.h"

static void zone(const char *name, const char *is, const char *uj, const char *range) {
    char path[256];
    snprintf(path, sizeof path, "class/powercap/%s/name", name);
    tree_text(path, is);
    snprintf(path, sizeof path, "class/powercap/%s/energy_uj", name);
    tree_text(path, uj);
    snprintf(path, sizeof path, "class/powercap/%s/max_energy_range_uj", name);
    tree_text(path, range);
}
static struct energy_counter seen[RAPL_PACKAGES_MAX];
static void expect(int n) {
    memset(seen, 0x5a, sizeof seen);
    int found = rapl_read(tree_root, seen);
    if (found != n) fail_msg("%d counters, wanted %d", found, n);
}

static void test_packages(void **state) {
    (void)state;
    expect(0);
    tree_folders("class/powercap/intel-rapl/enabled");
    expect(0);
    zone("intel-rapl:1", "package-1\n", "7\n", "262143328850\n");
    zone("intel-rapl:0", "package-0\n", "262143328850\n", "262143328850\n");
    zone("intel-rapl:0:0", "core\n", "5\n", "262143328850\n");
    zone("intel-rapl:0:1", "package-9\n", "5\n", "262143328850\n"); /* whatever a part calls itself */
    zone("intel-rapl:2", "psys\n", "5\n", "262143328850\n");
    zone("intel-rapl-mmio:0", "package-0\n", "5\n", "262143328850\n");
    zone("dtpm:0", "package-0\n", "5\n", "262143328850\n");
    expect(2);
    assert_string_equal(seen[0].name, "package-0");
    assert_int_equal(seen[0].uj, 262143328850);
    assert_int_equal(seen[0].range, 262143328850);
    assert_string_equal(seen[1].name, "package-1");
    assert_int_equal(seen[1].uj, 7);
    zone("intel-rapl:3", "package-0-die-1\n", "9\n", "65532610987\n");
    expect(3);
    assert_string_equal(seen[1].name, "package-0-die-1");
    assert_int_equal(seen[1].range, 65532610987);
}

static void test_links(void **state) {
    (void)state;
    tree_text("devices/zone/name", "package-0\n");
    tree_text("devices/zone/energy_uj", "12\n");
    tree_text("devices/zone/max_energy_range_uj", "1000\n");
    tree_folders("class/powercap/x");
    assert_int_equal(symlink("../../devices/zone", in_tree("class/powercap/intel-rapl:0")), 0);
    assert_int_equal(symlink("nowhere", in_tree("class/powercap/intel-rapl:1")), 0); /* it has no name: no package */
    expect(1);
    assert_int_equal(symlink("../../devices/zone", in_tree("class/powercap/intel-rapl:2")), 0);
    expect(0); /* which of the two? */
}

/* A part of the energy is no measure of it. */
static void test_hostile(void **state) {
    static const char *const files[] = {"energy_uj", "max_energy_range_uj"};
    (void)state;
    for (int f = 0; f < 2; f++)
        for (int i = 0; i < TREE_HOSTILE; i++) {
            char path[128];
            zone("intel-rapl:0", "package-0\n", "1\n", "1000\n");
            zone("intel-rapl:1", "package-1\n", "1\n", "1000\n");
            expect(2);
            snprintf(path, sizeof path, "class/powercap/intel-rapl:1/%s", files[f]);
            print_message("%s: %s\n", files[f], tree_hostile(path, i));
            expect(0);
            tree_remove(path);
        }
    for (int i = 0; i < TREE_HOSTILE; i++) {
        tree_hostile("class/powercap/intel-rapl:1/name", i);
        zone("intel-rapl:0", "package-0\n", "1\n", "1000\n");
        expect(1);
        tree_hostile("class/powercap/intel-rapl:0", i);
        expect(0);
        tree_hostile("class/powercap", i);
        expect(0);
        tree_remove("class");
    }
    zone("intel-rapl:0", "package-0\n", "1001\n", "1000\n");
    expect(0);
    zone("intel-rapl:0", "package-0\n", "-1\n", "1000\n");
    expect(0);
    zone("intel-rapl:0", "package-0\n", "0\n", "0\n");
    expect(0);
    zone("intel-rapl:0", "package-\n", "1\n", "1000\n");
    expect(0);
    zone("intel-rapl:0", "package-\xc3\x28\n", "1\n", "1000\n");
    expect(0);
    zone("intel-rapl:0", "package-0123456789012345678901234567890\n", "1\n", "1000\n");
    expect(0);
}

static void test_as_many_as_fit(void **state) {
    (void)state;
    for (int i = 0; i < RAPL_PACKAGES_MAX; i++) {
        char name[32], is[32];
        snprintf(name, sizeof name, "intel-rapl:%d", i);
        snprintf(is, sizeof is, "package-%d\n", i);
        zone(name, is, "1\n", "1000\n");
    }
    expect(RAPL_PACKAGES_MAX);
    zone("intel-rapl:16", "package-16\n", "1\n", "1000\n");
    expect(0);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, tree_setup, tree_teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_packages),
        TEST(test_links),
        TEST(test_hostile),
        TEST(test_as_many_as_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
