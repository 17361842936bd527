/* Pressure, load, memory and the limits of the cgroup. The tree's proc/ is /proc, its sys/ is /sys. */
#include "tests/sensor_tree.h"

#include <math.h>

#include "energy/sensors.h"

static struct snapshot seen(void) {
    char proc[128], sys[128];
    struct snapshot s;
    memset(&s, 0x5a, sizeof s);
    snprintf(proc, sizeof proc, "%s/proc", tree_root);
    snprintf(sys, sizeof sys, "%s/sys", tree_root);
    pressure_read(proc, sys, &s);
    return s;
}
static void is(double value, double wanted) {
    if (isnan(wanted) ? !isnan(value) : !(fabs(value - wanted) < 1e-9)) fail_msg("%f, wanted %f", value, wanted);
}
static void pressure(const char *name, const char *share) {
    char text[256];
    snprintf(text, sizeof text, "some avg10=%s avg60=3.00 avg300=1.00 total=123\nfull avg10=0.00 avg60=0.00 avg300=0.00 "
             "total=0\n", share);
    tree_text(name, text);
}
static void machine(void) {
    pressure("proc/pressure/cpu", "12.34");
    pressure("proc/pressure/memory", "0.00");
    pressure("proc/pressure/io", "100.00");
    tree_text("proc/loadavg", "0.50 0.18 0.12 1/80 11206\n");
    tree_text("proc/meminfo", "MemTotal:       16000000 kB\nMemFree:          100000 kB\nMemAvailable:    8000000 kB\n");
}

static void test_machine(void **state) {
    (void)state;
    struct snapshot s = seen();
    is(s.pressure_cpu, NAN);
    is(s.load, NAN);
    is(s.cpus, NAN);
    assert_int_equal(s.memory_available, 0);
    machine();
    s = seen();
    is(s.pressure_cpu, 0.1234);
    is(s.pressure_memory, 0);
    is(s.pressure_io, 1);
    is(s.load, 0.5);
    is(s.cpus, NAN);
    assert_int_equal(s.memory_available, 8000000ull * 1024);
}

static void test_hostile(void **state) {
    (void)state;
    static const char *const shares[] = {"100.01", "-1.00", "abc", "", "nan", "1e1", "1,5", "0x1", "1.5%"};
    static const char *const files[] = {"proc/pressure/cpu", "proc/pressure/memory", "proc/pressure/io",
                                        "proc/loadavg",      "proc/meminfo",         "proc/self/cgroup"};
    machine();
    for (size_t i = 0; i < sizeof shares / sizeof *shares; i++) {
        pressure("proc/pressure/cpu", shares[i]);
        is(seen().pressure_cpu, NAN);
    }
    tree_text("proc/pressure/cpu", "full avg10=1.00 avg60=0.00 avg300=0.00 total=0\n");
    is(seen().pressure_cpu, NAN);
    for (size_t f = 0; f < sizeof files / sizeof *files; f++)
        for (int i = 0; i < TREE_HOSTILE; i++) {
            machine();
            print_message("%s: %s\n", files[f], tree_hostile(files[f], i));
            struct snapshot s = seen();
            is(s.pressure_cpu, f == 0 ? NAN : 0.1234);
            is(s.pressure_memory, f == 1 ? NAN : 0);
            is(s.pressure_io, f == 2 ? NAN : 1);
            if (f == 3 && i == 10) /* "1 " is a load */
                is(s.load, 1);
            else
                is(s.load, f == 3 ? NAN : 0.5);
            assert_int_equal(s.memory_available, f == 4 ? 0 : 8000000ull * 1024);
            is(s.cpus, NAN);
            tree_remove(files[f]);
        }
    for (int i = 0; i < TREE_HOSTILE; i++) {
        tree_hostile("proc", i);
        is(seen().load, NAN);
    }
    tree_remove("proc");
    machine();
    tree_text("proc/meminfo", "MemAvailable: 99999999999999999999 kB\n");
    assert_int_equal(seen().memory_available, 0);
    tree_text("proc/meminfo", "MemAvailable: 18446744073709551615 kB\n");
    assert_int_equal(seen().memory_available, 0);
    tree_text("proc/meminfo", "MemAvailableToo: 5 kB\nMemAvailable:    7x kB\n");
    assert_int_equal(seen().memory_available, 0);
}

#define GROUP "sys/fs/cgroup/user.slice/app.slice/attune.service/"

static void test_cgroup(void **state) {
    (void)state;
    struct snapshot s;
    machine();
    tree_text("proc/self/cgroup", "4:memory:/elsewhere\n0::/user.slice/app.slice/attune.service\n");
    assert_int_equal(seen().memory_available, 8000000ull * 1024);
    pressure(GROUP "cpu.pressure", "50.00");
    pressure(GROUP "memory.pressure", "2.00");
    pressure(GROUP "io.pressure", "3.00");
    pressure("sys/fs/cgroup/user.slice/cpu.pressure", "90.00"); /* others' too */
    s = seen();
    is(s.pressure_cpu, 0.5);
    is(s.pressure_memory, 0.02);
    is(s.pressure_io, 1);
    tree_text(GROUP "cpu.max", "max 100000\n");
    is(seen().cpus, NAN);
    tree_text("sys/fs/cgroup/user.slice/cpu.max", "150000 100000\n");
    is(seen().cpus, 1.5);
    tree_text(GROUP "cpu.max", "50000 100000\n");
    is(seen().cpus, 0.5);
    tree_text("sys/fs/cgroup/cpu.max", "1000 100000\n"); /* the root has no limits */
    is(seen().cpus, 0.5);
    tree_text(GROUP "memory.max", "1000000\n");
    assert_int_equal(seen().memory_available, 8000000ull * 1024); /* of what it uses nothing is known */
    tree_text(GROUP "memory.current", "400000\n");
    assert_int_equal(seen().memory_available, 600000);
    tree_text(GROUP "memory.stat", "anon 5\nfile 200000\ninactive_file 100000\nactive_file 100000\n");
    assert_int_equal(seen().memory_available, 700000);
    tree_text(GROUP "memory.high", "500000\n");
    assert_int_equal(seen().memory_available, 200000);
    tree_text("sys/fs/cgroup/user.slice/memory.max", "900\n");
    tree_text("sys/fs/cgroup/user.slice/memory.current", "800\n");
    assert_int_equal(seen().memory_available, 100);
    tree_text("sys/fs/cgroup/user.slice/memory.current", "901\n");
    assert_int_equal(seen().memory_available, 1); /* none, which is known */
    tree_text("sys/fs/cgroup/user.slice/memory.max", "max\n");
    assert_int_equal(seen().memory_available, 200000);
    tree_text(GROUP "memory.high", "max\n");
    tree_text(GROUP "memory.max", "9223372036854775807\n");
    assert_int_equal(seen().memory_available, 8000000ull * 1024);
}

static void test_cgroup_hostile(void **state) {
    (void)state;
    static const char *const names[] = {"cpu.max", "memory.max", "memory.current", "memory.stat", "cpu.pressure"};
    static const char *const quotas[] = {"0 100000\n", "100 0\n", "-5 100000\n", "100\n", "max\n", "5 x\n", "5x 7\n"};
    char path[256];
    machine();
    tree_text("proc/self/cgroup", "0::/user.slice/app.slice/attune.service\n");
    for (size_t i = 0; i < sizeof quotas / sizeof *quotas; i++) {
        tree_text(GROUP "cpu.max", quotas[i]);
        is(seen().cpus, NAN);
    }
    for (size_t f = 0; f < sizeof names / sizeof *names; f++)
        for (int i = 0; i < TREE_HOSTILE; i++) {
            tree_text(GROUP "cpu.max", "50000 100000\n");
            tree_text(GROUP "memory.max", "1000000\n");
            tree_text(GROUP "memory.current", "400000\n");
            tree_text(GROUP "memory.stat", "inactive_file 100000\n");
            snprintf(path, sizeof path, GROUP "%s", names[f]);
            print_message("%s: %s\n", names[f], tree_hostile(path, i));
            struct snapshot s = seen();
            is(s.cpus, f == 0 ? NAN : 0.5);
            is(s.pressure_cpu, 0.1234);
            assert_int_equal(s.memory_available, f == 1 || f == 2 ? 8000000ull * 1024 : f == 3 ? 600000 : 700000);
            tree_remove(path);
        }
    /* paths that lead elsewhere, or are longer than any */
    tree_text("sys/fs/cpu.max", "50000 100000\n");
    tree_text("sys/cpu.max", "50000 100000\n");
    static const char *const lines[] = {"0::/..\n", "0::/../..\n", "0::/a/../..\n", "0::/\n", "0::\n", "0::x\n", "0::"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        tree_text("proc/self/cgroup", lines[i]);
        is(seen().cpus, NAN);
    }
    char *line = malloc(100000);
    memset(line, 'a', 100000);
    memcpy(line, "0::/", 4);
    for (size_t n = 500; n < 100000; n += n / 4) {
        tree_bytes("proc/self/cgroup", line, n);
        is(seen().cpus, NAN);
    }
    for (size_t i = 4; i < 100000; i += 2) line[i] = '/';
    tree_bytes("proc/self/cgroup", line, 1000);
    is(seen().cpus, NAN);
    free(line);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, tree_setup, tree_teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_machine),
        TEST(test_hostile),
        TEST(test_cgroup),
        TEST(test_cgroup_hostile),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
