/* Lines and numbers of files; all sensors together; what an app tells; what kind of device this is. */
#include "tests/sensor_tree.h"

#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>

#include "core/base/options.h"
#include "energy/policy.h"

static void is(double value, double wanted) {
    if (isnan(wanted) ? !isnan(value) : !(value == wanted || fabs(value - wanted) < 1e-9))
        fail_msg("%f, wanted %f", value, wanted);
}

/* ---- lines and numbers ---- */

static void expect_line(const char *bytes, size_t n, const char *wanted) {
    char out[8];
    memset(out, 0x5a, sizeof out);
    tree_bytes("line", bytes, n);
    int there = sensor_line(AT_FDCWD, in_tree("line"), out, sizeof out);
    if (there != (wanted != NULL) || (wanted && strcmp(out, wanted) != 0)) fail_msg("'%s' not '%s'", out, wanted);
}

static void test_lines(void **state) {
    (void)state;
    expect_line("", 0, NULL);
    expect_line("\n", 1, NULL);
    expect_line("\nabc\n", 5, NULL);
    expect_line("abc", 3, "abc");
    expect_line("abc\n", 4, "abc");
    expect_line("abc\ndef\n", 8, "abc");
    expect_line("1234567", 7, "1234567");
    expect_line("1234567\n", 8, "1234567");
    expect_line("12345678", 8, NULL);
    expect_line("12345678\n", 9, NULL);
    expect_line("123456789", 9, NULL);
    expect_line("1234567\nand more\n", 17, "1234567");
    expect_line("ab\0c\n", 5, NULL);
    expect_line("abc\n\0", 5, NULL);
    char out[8];
    int folder = open(tree_root, O_RDONLY | O_DIRECTORY);
    tree_text("line", "x\n");
    assert_int_equal(sensor_line(folder, "line", out, sizeof out), 1);
    assert_int_equal(sensor_line(folder, "line/x", out, sizeof out), 0);
    assert_int_equal(sensor_line(-1, "line", out, sizeof out), 0);
    close(folder);
}

static void test_texts(void **state) {
    (void)state;
    char out[8];
    tree_text("text", "ab\ncd\n");
    assert_int_equal(sensor_text(AT_FDCWD, in_tree("text"), out, sizeof out), 6);
    assert_string_equal(out, "ab\ncd\n");
    tree_text("text", "ab\ncdefgh\n"); /* a line that does not fit is not there */
    assert_int_equal(sensor_text(AT_FDCWD, in_tree("text"), out, sizeof out), 3);
    assert_string_equal(out, "ab\n");
    tree_text("text", "abcdefgh\n");
    assert_int_equal(sensor_text(AT_FDCWD, in_tree("text"), out, sizeof out), 0);
    assert_string_equal(out, "");
    assert_int_equal(sensor_text(AT_FDCWD, in_tree("nothing"), out, sizeof out), 0);
}

static void test_numbers(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int there;
        long long value;
    } table[] = {{"0\n", 1, 0},   {"-0\n", 1, 0},  {"-7\n", 1, -7}, {"100", 1, 100}, {"101\n", 0, 0}, {"-8\n", 0, 0},
                 {"007\n", 1, 7}, {"-\n", 0, 0},   {"--5\n", 0, 0}, {"- 5\n", 0, 0}, {"5\r\n", 0, 0}, {"5a\n", 0, 0},
                 {"\t5\n", 0, 0}, {"1e1\n", 0, 0}, {"5,0\n", 0, 0}, {"+5\n", 0, 0},  {"5\n6\n", 1, 5}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        long long value = 0;
        tree_text("number", table[i].text);
        if (sensor_number(AT_FDCWD, in_tree("number"), -7, 100, &value) != table[i].there || value != table[i].value)
            fail_msg("'%s': %lld", table[i].text, value);
    }
    for (int i = 0; i < TREE_HOSTILE; i++) {
        long long value = 42;
        const char *what = tree_hostile("number", i);
        if (sensor_number(AT_FDCWD, in_tree("number"), INT64_MIN, INT64_MAX, &value) || value != 42)
            fail_msg("%s: %lld", what, value);
    }
}

/* ---- all together ---- */

struct fake {
    double monotonic, boottime, cpu;
    int64_t wall_ms;
};
static double fake_monotonic(void *user) { return ((struct fake *)user)->monotonic; }
static double fake_boottime(void *user) { return ((struct fake *)user)->boottime; }
static double fake_cpu(void *user) { return ((struct fake *)user)->cpu; }
static int64_t fake_wall(void *user) { return ((struct fake *)user)->wall_ms; }

static struct fake fake;
static const struct clock fake_clock = {fake_monotonic, fake_boottime, fake_wall, fake_cpu, &fake};
static attune_device told;
static int asked;
static void app(attune_device *device, void *user) {
    assert_ptr_equal(user, &told);
    assert_int_equal(device->size, sizeof *device);
    assert_int_equal(device->power, ATTUNE_POWER_UNKNOWN);
    assert_int_equal(device->percent, -1);
    assert_true(isnan(device->idle_s) && isnan(device->celsius) && isnan(device->joules));
    asked++;
    *device = told;
}
static void nothing_told(void) {
    ATTUNE_INIT(told);
    told.percent = -1;
    told.idle_s = told.celsius = told.joules = NAN;
}

static struct sensors *open_tree(int with_app) {
    char sys[128], proc[128], run[128];
    struct sensors *sensors = NULL;
    snprintf(sys, sizeof sys, "%s/sys", tree_root);
    snprintf(proc, sizeof proc, "%s/proc", tree_root);
    snprintf(run, sizeof run, "%s/run", tree_root);
    const struct sensors_options options = {sys, proc, run, with_app ? app : NULL, &told, &fake_clock, 1};
    assert_int_equal(sensors_open(&options, &sensors, NULL), ATTUNE_OK);
    memset(sys, 'x', sizeof sys); /* texts are copied */
    memset(proc, 'x', sizeof proc);
    memset(run, 'x', sizeof run);
    nothing_told();
    return sensors;
}
static struct snapshot look(struct sensors *sensors) {
    struct snapshot s;
    memset(&s, 0x5a, sizeof s);
    sensors_read(sensors, &s);
    return s;
}

static void laptop(void) {
    tree_text("sys/class/power_supply/AC/type", "Mains\n");
    tree_text("sys/class/power_supply/AC/online", "0\n");
    tree_text("sys/class/power_supply/BAT0/type", "Battery\n");
    tree_text("sys/class/power_supply/BAT0/status", "Discharging\n");
    tree_text("sys/class/power_supply/BAT0/capacity", "60\n");
    tree_text("sys/class/power_supply/BAT0/power_now", "12500000\n");
    tree_text("sys/class/thermal/thermal_zone0/temp", "45000\n");
    tree_text("sys/class/powercap/intel-rapl:0/name", "package-0\n");
    tree_text("sys/class/powercap/intel-rapl:0/energy_uj", "100\n");
    tree_text("sys/class/powercap/intel-rapl:0/max_energy_range_uj", "1000\n");
    tree_text("proc/loadavg", "0.50 0.18 0.12 1/80 11206\n");
}

static void test_all(void **state) {
    (void)state;
    fake = (struct fake){10, 20, 30, 40};
    struct sensors *sensors = open_tree(0);
    struct snapshot s = look(sensors);
    is(s.monotonic, 10);
    is(s.boottime, 20);
    is(s.cpu, 30);
    assert_int_equal(s.wall_ms, 40);
    assert_int_equal(s.power.supply, POWER_UNKNOWN);
    is(s.battery_watts, NAN);
    is(s.celsius, NAN);
    is(s.idle_s, NAN);
    is(s.load, NAN);
    assert_int_equal(s.n_counters, 0);
    laptop();
    fake.monotonic = 11;
    s = look(sensors);
    assert_int_equal(s.power.supply, POWER_BATTERY);
    is(s.battery_watts, 12.5);
    is(s.celsius, 45);
    is(s.load, 0.5);
    assert_int_equal(s.n_counters, 1);
    assert_int_equal(s.counter[0].uj, 100);
    sensors_close(sensors);
    sensors_close(NULL);
}

static void test_counters_once_a_second(void **state) {
    (void)state;
    fake = (struct fake){.monotonic = 100};
    laptop();
    struct sensors *sensors = open_tree(0);
    assert_int_equal(look(sensors).counter[0].uj, 100);
    tree_text("sys/class/powercap/intel-rapl:0/energy_uj", "200\n");
    for (fake.monotonic = 100; fake.monotonic < 100.95; fake.monotonic += 0.1)
        assert_int_equal(look(sensors).counter[0].uj, 100);
    fake.monotonic = 101;
    assert_int_equal(look(sensors).counter[0].uj, 200);
    tree_remove("sys/class/powercap");
    fake.monotonic = 101.5;
    assert_int_equal(look(sensors).n_counters, 1);
    fake.monotonic = 102.5;
    assert_int_equal(look(sensors).n_counters, 0);
    laptop();
    fake.monotonic = 3; /* another clock */
    assert_int_equal(look(sensors).n_counters, 1);
    sensors_close(sensors);
}

static void test_app_goes_before(void **state) {
    (void)state;
    fake = (struct fake){.monotonic = 100};
    laptop();
    asked = 0;
    struct sensors *sensors = open_tree(1);
    struct snapshot s = look(sensors);
    assert_int_equal(asked, 1);
    assert_int_equal(s.power.supply, POWER_BATTERY); /* it told nothing */
    is(s.celsius, 45);
    is(s.battery_watts, 12.5);
    told.power = ATTUNE_POWER_MAINS;
    s = look(sensors);
    assert_int_equal(s.power.supply, POWER_MAINS);
    assert_int_equal(s.power.discharging, 1); /* the folder says so: a weak charger */
    assert_int_equal(s.power.percent, 60);
    assert_int_equal(s.power.battery, 1);
    is(s.battery_watts, 12.5);
    tree_text("sys/class/power_supply/BAT0/status", "Charging\n");
    s = look(sensors);
    assert_int_equal(s.power.discharging, 0);
    is(s.battery_watts, NAN);
    told.discharging = 1;
    told.percent = 99;
    told.celsius = 12.5;
    told.idle_s = 77;
    told.joules = 1.5;
    s = look(sensors);
    assert_int_equal(s.power.supply, POWER_MAINS);
    assert_int_equal(s.power.discharging, 1);
    assert_int_equal(s.power.percent, 99);
    is(s.celsius, 12.5);
    is(s.idle_s, 77);
    assert_int_equal(s.n_counters, 1);
    assert_int_equal(s.counter[0].uj, 1500000);
    assert_true(s.counter[0].range == UINT64_MAX);
    assert_string_equal(s.counter[0].name, "app");
    told.joules = NAN;
    s = look(sensors);
    assert_string_equal(s.counter[0].name, "package-0");
    told.idle_s = INFINITY;
    is(look(sensors).idle_s, INFINITY);
    /* no sysfs: an app alone */
    tree_remove("sys");
    nothing_told();
    assert_int_equal(look(sensors).power.supply, POWER_UNKNOWN);
    told.power = ATTUNE_POWER_MAINS;
    s = look(sensors);
    assert_int_equal(s.power.supply, POWER_MAINS);
    assert_int_equal(s.power.battery, 0);
    told.percent = 0;
    assert_int_equal(look(sensors).power.battery, 1);
    told.percent = -1;
    told.power = ATTUNE_POWER_BATTERY;
    assert_int_equal(look(sensors).power.battery, 1);
    sensors_close(sensors);
}

static void test_app_tells_nonsense(void **state) {
    (void)state;
    fake = (struct fake){.monotonic = 100};
    laptop();
    struct sensors *sensors = open_tree(1);
    told.power = 17;
    told.percent = 101;
    told.celsius = 150;
    told.idle_s = -1;
    told.joules = INFINITY;
    for (int i = 0; i < 4; i++) {
        struct snapshot s = look(sensors);
        assert_int_equal(s.power.supply, POWER_BATTERY);
        assert_int_equal(s.power.percent, 60);
        is(s.celsius, 45);
        is(s.idle_s, NAN);
        assert_string_equal(s.counter[0].name, "package-0");
        told.power = -1 - i;
        told.percent = -100;
        told.celsius = i == 0 ? -40 : i == 1 ? INFINITY : -INFINITY;
        told.joules = i == 0 ? -1 : 1e300;
    }
    sensors_close(sensors);
}

/* Supplies, zones and counters come and go under the reader's hands: every look ends, and none makes a charger. */
static atomic_int going;
static void *disturb(void *user) {
    (void)user;
    for (unsigned i = 0; atomic_load(&going); i++) {
        unlink(in_tree("sys/class/power_supply/BAT0/status"));
        rename(in_tree("sys/class/power_supply/AC"), in_tree("sys/class/power_supply/AC1"));
        rename(in_tree("sys/class/thermal/thermal_zone0"), in_tree("sys/class/thermal/thermal_zone1"));
        rename(in_tree("sys/class/powercap/intel-rapl:0"), in_tree("sys/class/powercap/intel-rapl:1"));
        rename(in_tree("sys/class/power_supply/AC1"), in_tree("sys/class/power_supply/AC"));
        rename(in_tree("sys/class/thermal/thermal_zone1"), in_tree("sys/class/thermal/thermal_zone0"));
        rename(in_tree("sys/class/powercap/intel-rapl:1"), in_tree("sys/class/powercap/intel-rapl:0"));
        int fd = open(in_tree("sys/class/power_supply/BAT0/status"), O_WRONLY | O_CREAT | O_TRUNC, 0600);
        if (fd >= 0 && write(fd, "Discharging\n", 12) == 12) close(fd);
    }
    return NULL;
}

static void test_vanishing(void **state) {
    (void)state;
    pthread_t thread;
    fake = (struct fake){.monotonic = 100};
    laptop();
    struct sensors *sensors = open_tree(0);
    atomic_store(&going, 1);
    assert_int_equal(pthread_create(&thread, NULL, disturb, NULL), 0);
    int wrong = 0;
    for (int i = 0; i < 3000; i++) {
        fake.monotonic += 1;
        struct snapshot s = look(sensors);
        wrong += s.power.supply == POWER_MAINS || s.n_counters > 1 || (!isnan(s.celsius) && s.celsius != 45);
    }
    atomic_store(&going, 0);
    pthread_join(thread, NULL);
    assert_int_equal(wrong, 0);
    sensors_close(sensors);
}

/* This machine's own, whatever it has. */
static void test_this_machine(void **state) {
    (void)state;
    const struct sensors_options options = {.logind = 1};
    struct sensors *sensors = NULL;
    attune_error err;
    assert_int_equal(sensors_open(&options, &sensors, &err), ATTUNE_OK);
    struct snapshot a = look(sensors), b = look(sensors);
    assert_true(a.monotonic > 0 && b.monotonic >= a.monotonic);
    assert_true(b.boottime >= b.monotonic - 1e-3 && b.boottime >= a.boottime);
    assert_true(a.cpu > 0 && b.cpu >= a.cpu && b.cpu < 1e5);
    assert_true(a.wall_ms > 1600000000000);
    assert_true(isnan(a.celsius) || (a.celsius > -40 && a.celsius < 150));
    assert_true(isnan(a.pressure_cpu) || (a.pressure_cpu >= 0 && a.pressure_cpu <= 1));
    assert_in_range(device_detect(NULL), DEVICE_LAPTOP, DEVICE_DESKTOP);
    sensors_close(sensors);
}

/* ---- which device ---- */

static void test_device(void **state) {
    (void)state;
#if defined __ANDROID__ || defined __arm__ || defined __aarch64__
    const enum device_kind by_battery = DEVICE_PHONE;
#else
    const enum device_kind by_battery = DEVICE_LAPTOP;
#endif
    assert_int_equal(device_detect("/nonexistent/attune"), by_battery); /* nothing to be seen: as careful as can be */
    tree_folders("class/power_supply/");
    assert_int_equal(device_detect(tree_root), DEVICE_DESKTOP);
    tree_text("class/power_supply/BAT0/type", "Battery\n");
    tree_text("class/power_supply/BAT0/status", "Full\n");
    assert_int_equal(device_detect(tree_root), by_battery);
    tree_text("class/dmi/id/chassis_type", "3\n"); /* a board's word, but there is a battery */
    assert_int_equal(device_detect(tree_root), DEVICE_LAPTOP);
    tree_text("class/dmi/id/chassis_type", "11\n");
    assert_int_equal(device_detect(tree_root), DEVICE_PHONE);
    tree_text("class/dmi/id/chassis_type", "10\n");
    assert_int_equal(device_detect(tree_root), DEVICE_LAPTOP);
    tree_remove("class/power_supply/BAT0");
    assert_int_equal(device_detect(tree_root), DEVICE_LAPTOP); /* its battery is out */
    tree_text("class/dmi/id/chassis_type", "1\n");             /* "other" */
    assert_int_equal(device_detect(tree_root), DEVICE_DESKTOP);
    tree_remove("class/power_supply");
    tree_text("class/power_supply", "");
    tree_text("class/dmi/id/chassis_type", "23\n"); /* a server whose supplies cannot be read */
    assert_int_equal(device_detect(tree_root), DEVICE_DESKTOP);
    tree_text("class/dmi/id/chassis_type", "1\n");
    assert_int_equal(device_detect(tree_root), by_battery);
    tree_bytes("firmware/devicetree/base/chassis-type", "handset", 8);
    assert_int_equal(device_detect(tree_root), DEVICE_PHONE);
    tree_bytes("firmware/devicetree/base/chassis-type", "laptop", 7);
    assert_int_equal(device_detect(tree_root), DEVICE_LAPTOP);
    tree_bytes("firmware/devicetree/base/chassis-type", "server", 7);
    assert_int_equal(device_detect(tree_root), DEVICE_DESKTOP);
    for (int i = 0; i < TREE_HOSTILE; i++) {
        if (i == 5) continue; /* as a NUL ends it there */
        tree_hostile("class/dmi/id/chassis_type", i);
        tree_hostile("firmware/devicetree/base/chassis-type", i);
        assert_int_equal(device_detect(tree_root), by_battery);
    }
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, tree_setup, tree_teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_lines),
        TEST(test_texts),
        TEST(test_numbers),
        TEST(test_all),
        TEST(test_counters_once_a_second),
        TEST(test_app_goes_before),
        TEST(test_app_tells_nonsense),
        TEST(test_vanishing),
        TEST(test_this_machine),
        TEST(test_device),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
