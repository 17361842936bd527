#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "energy/governor.h"
#include "energy/uevents.h"

/* ---- a device: a tree of sensors, a clock, and what the governor says of it ---- */

struct device {
    char root[64], path[256];
    atomic_llong ns; /* the clock's time, real or told */
    int real;        /* the clock is the system's, beside what was added */
    int event[2];    /* a pipe */
    atomic_int acts, samples, hold; /* hold: 1 the callback blocks, 2 it does */
    _Atomic(double) duty;
    atomic_int verdict, reason; /* of the last act */
    pthread_mutex_t lock;
    pthread_cond_t changed;
};

static double told(void *user) {
    struct device *d = user;
    double added = 1e-9 * (double)atomic_load(&d->ns);
    return d->real ? clock_system.monotonic(clock_system.user) + added : added;
}
static int64_t told_ms(void *user) { return (int64_t)(1e3 * told(user)); }
static void pass(struct device *d, double seconds) { atomic_fetch_add(&d->ns, (long long)(1e9 * seconds)); }

static void put(struct device *d, const char *name, const char *text) {
    snprintf(d->path, sizeof d->path, "%s/%s", d->root, name);
    for (char *at = d->path + strlen(d->root) + 1; (at = strchr(at, '/')); *at++ = '/') {
        *at = 0;
        mkdir(d->path, 0700);
    }
    char temporary[300]; /* a sensor is never seen half written */
    snprintf(temporary, sizeof temporary, "%s/.new", d->root);
    FILE *f = fopen(temporary, "w");
    assert_non_null(f);
    fprintf(f, "%s\n", text);
    fclose(f);
    assert_int_equal(rename(temporary, d->path), 0);
}
static void plug(struct device *d, int on) {
    put(d, "class/power_supply/AC/online", on ? "1" : "0");
    put(d, "class/power_supply/BAT0/status", on ? "Charging" : "Discharging");
}

static void made(struct device *d) {
    memset(d, 0, sizeof *d);
    strcpy(d->root, "/tmp/attune-governor-XXXXXX");
    assert_non_null(mkdtemp(d->root));
    put(d, "class/power_supply/AC/type", "Mains");
    put(d, "class/power_supply/BAT0/type", "Battery");
    put(d, "class/power_supply/BAT0/capacity", "80");
    plug(d, 1);
    assert_int_equal(pipe2(d->event, O_CLOEXEC), 0);
    pthread_mutex_init(&d->lock, NULL);
    pthread_cond_init(&d->changed, NULL);
    atomic_store(&d->ns, 1000000000000);
}
static void remove_tree(const struct device *d) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", d->root);
    assert_int_equal(system(command), 0);
}
static void unmade(struct device *d) {
    remove_tree(d);
    close(d->event[0]);
    if (d->event[1] >= 0) close(d->event[1]);
    pthread_cond_destroy(&d->changed);
    pthread_mutex_destroy(&d->lock);
}

static void change(struct device *d, atomic_int *field, int value) {
    pthread_mutex_lock(&d->lock);
    atomic_store(field, value);
    pthread_cond_broadcast(&d->changed);
    pthread_mutex_unlock(&d->lock);
}
static void await_value(struct device *d, atomic_int *field, int value) {
    pthread_mutex_lock(&d->lock);
    while (atomic_load(field) != value) pthread_cond_wait(&d->changed, &d->lock);
    pthread_mutex_unlock(&d->lock);
}

static void on_act(void *user, const struct decision *decision) {
    struct device *d = user;
    atomic_store(&d->duty, decision->duty);
    atomic_store(&d->reason, (int)decision->reason);
    atomic_fetch_add(&d->acts, 1);
    change(d, &d->verdict, (int)decision->verdict);
}
static void on_sample(void *user, const struct snapshot *now, const struct decision *decision,
                      const struct ledger *ledger) {
    struct device *d = user;
    assert_true(isfinite(now->monotonic) && decision->verdict <= VERDICT_STOP && ledger->began);
    atomic_fetch_add(&d->samples, 1);
    if (atomic_load(&d->hold) != 1) return;
    change(d, &d->hold, 2);
    await_value(d, &d->hold, 0);
}
/* An app's own sensor, which tells nothing, and blocks when it is told to. */
static void on_device(attune_device *device, void *user) {
    struct device *d = user;
    (void)device;
    if (atomic_load(&d->hold) != 3) return;
    change(d, &d->hold, 4);
    await_value(d, &d->hold, 0);
}

static struct clock clock_of(struct device *d) {
    return (struct clock){told, told, told_ms, told, d};
}
/* Nothing counts but the charger. */
static struct governor_options options_of(struct device *d, const struct clock *clock, int thread) {
    struct governor_options o = {.event_fd = d->event[0], .thread = thread, .act = on_act, .sample = on_sample,
                                 .user = d, .watts_per_cpu = 10};
    o.sensors = (struct sensors_options){.sys_root = d->root, .proc_root = "/nonexistent", .run_root = "/nonexistent",
                                         .device = on_device, .device_user = d, .clock = clock};
    policy_default(DEVICE_LAPTOP, &o.policy);
    o.policy = (struct policy){.charger_required = 1, .charger_stable_s = 60, .battery_min = 30, .duty = 1,
                               .modelled_guard = 1, .without_sensors = 1};
    return o;
}
static struct governor *opened(const struct governor_options *options) {
    struct governor *g = NULL;
    attune_error err = {0};
    if (governor_open(options, &g, &err) != ATTUNE_OK) fail_msg("%s", err.message);
    return g;
}
static enum verdict verdict_of(struct governor *g) {
    struct decision decision;
    governor_decision(g, &decision);
    return decision.verdict;
}
static enum reason reason_of(struct governor *g) {
    struct decision decision;
    governor_decision(g, &decision);
    return decision.reason;
}
static uint64_t looks_of(struct governor *g) {
    struct governor_cost cost;
    governor_cost_get(g, &cost);
    return cost.looks;
}

/* ---- without a thread: nothing happens but by a look, and time is what the clock says ---- */

static void test_driven_by_hand(void **state) {
    (void)state;
    struct device d;
    made(&d);
    struct clock clock = clock_of(&d);
    struct governor_options o = options_of(&d, &clock, 0);
    struct governor *g = opened(&o);
    assert_int_equal(verdict_of(g), VERDICT_RUN);
    assert_int_equal(looks_of(g), 1);
    assert_int_equal(atomic_load(&d.acts), 1); /* the first decision is a change too */

    plug(&d, 0);
    assert_int_equal(verdict_of(g), VERDICT_RUN);
    pass(&d, 1);
    governor_look(g);
    assert_int_equal(verdict_of(g), VERDICT_STOP);
    assert_int_equal(atomic_load(&d.verdict), VERDICT_STOP);
    assert_int_equal(atomic_load(&d.acts), 2);
    pass(&d, 1);
    governor_look(g);
    assert_int_equal(atomic_load(&d.acts), 2); /* no change */
    assert_int_equal(atomic_load(&d.samples), 3);
    assert_int_equal(looks_of(g), 3);
    governor_close(g);
    governor_close(NULL);
    unmade(&d);
}

static void test_flapping(void **state) {
    (void)state;
    struct device d;
    made(&d);
    struct clock clock = clock_of(&d);
    struct governor_options o = options_of(&d, &clock, 0);
    struct governor *g = opened(&o);
    for (int second = 0; second < 40; second++) {
        plug(&d, second % 2);
        pass(&d, 1);
        governor_look(g);
        assert_int_not_equal(verdict_of(g), VERDICT_RUN);
        if (second % 2) assert_int_equal(reason_of(g), REASON_CHARGER_FLAPS);
    }
    /* on since 39; off at 38 */
    int run_at = 0;
    for (int second = 40; second < 200 && !run_at; second++) {
        pass(&d, 1);
        governor_look(g);
        if (verdict_of(g) == VERDICT_RUN) run_at = second;
    }
    assert_in_range(run_at, 98, 100);
    governor_close(g);
    unmade(&d);
}

static void test_stale(void **state) {
    (void)state;
    struct device d;
    made(&d);
    struct clock clock = clock_of(&d);
    struct governor_options o = options_of(&d, &clock, 0);
    struct governor *g = opened(&o);
    pass(&d, GOVERNOR_STALE_S - 0.1);
    assert_int_equal(verdict_of(g), VERDICT_RUN);
    pass(&d, 0.2);
    struct decision decision;
    governor_decision(g, &decision);
    assert_int_equal(decision.verdict, VERDICT_STOP);
    assert_int_equal(decision.reason, REASON_STALE);
    assert_true(decision.duty == 0);
    governor_look(g);
    assert_int_equal(verdict_of(g), VERDICT_RUN);
    governor_close(g);
    unmade(&d);
}

static void test_what_was_spent(void **state) {
    (void)state;
    struct device d;
    made(&d);
    struct clock clock = clock_of(&d);
    struct governor_options o = options_of(&d, &clock, 0);
    o.spent = (struct spent){.seconds_run = 5, .seconds_night = 100, .seconds_week = 1000, .written_night = 7};
    o.spent.night.measured = 3;
    o.spent.week.battery = 4;
    o.policy.seconds_run = 30;
    o.policy.written_night = 1000;
    struct governor *g = opened(&o);
    pass(&d, 2);
    governor_look(g);
    pass(&d, 1);
    struct spent spent;
    struct snapshot now;
    struct ledger ledger;
    governor_wrote(g, 100);
    governor_state(g, &now, &spent, &ledger);
    assert_true(fabs(spent.seconds_run - 8) < 1e-6);
    assert_true(fabs(spent.seconds_night - 103) < 1e-6);
    assert_true(fabs(spent.seconds_week - 1003) < 1e-6);
    assert_int_equal(spent.written_night, 107);
    /* the clock's CPU time passes like the rest of it: 2 s at 10 W */
    assert_true(fabs(joules_sum(&ledger.joules) - 20) < 1e-6);
    assert_true(fabs(joules_sum(&spent.run) - 20) < 1e-6);
    assert_true(fabs(joules_sum(&spent.night) - 23) < 1e-6);
    assert_true(fabs(joules_sum(&spent.week) - 24) < 1e-6);
    assert_int_equal(now.power.supply, POWER_MAINS);
    governor_state(g, NULL, NULL, NULL);

    governor_wrote(g, 1000);
    governor_look(g);
    assert_int_equal(reason_of(g), REASON_WRITTEN);
    governor_wrote(g, UINT64_MAX);
    governor_state(g, NULL, &spent, NULL);
    pass(&d, 30);
    governor_look(g);
    assert_int_not_equal(verdict_of(g), VERDICT_RUN);
    governor_close(g);
    unmade(&d);
}

/* ---- with a thread ---- */

/* An event is followed by looks, without waiting for the poll: on a clock that stands still nothing else tells. */
static void test_event(void **state) {
    (void)state;
    struct device d;
    made(&d);
    struct clock clock = clock_of(&d);
    d.real = 1;
    struct governor_options o = options_of(&d, &clock, 1);
    struct governor *g = opened(&o);
    assert_int_equal(verdict_of(g), VERDICT_RUN);
    plug(&d, 0);
    assert_int_equal(write(d.event[1], "!", 1), 1);
    await_value(&d, &d.verdict, VERDICT_STOP);
    struct governor_cost cost;
    governor_cost_get(g, &cost);
    /* of the event's own look, unless the poll came in between */
    assert_in_range(cost.looks, 2, 3);
    governor_look(g); /* answered by the thread */
    uint64_t looks = looks_of(g);
    assert_true(looks >= 3);
    governor_cost_get(g, &cost);
    assert_true(cost.events == 1 && cost.cpu_s > 0);
    for (int i = 0; i < 600 && looks_of(g) < looks + 3; i++) usleep(100000); /* the poll goes on, a look a second */
    assert_true(looks_of(g) >= looks + 3);
    governor_close(g);
    unmade(&d);
}

/* Each event is followed by a second look, a moment later. A storm of them is bounded. */
static void test_storm(void **state) {
    (void)state;
    struct device d;
    made(&d);
    struct clock clock = clock_of(&d);
    d.real = 1;
    struct governor_options o = options_of(&d, &clock, 1);
    struct governor *g = opened(&o);
    double from = told(&d);
    for (int i = 0; i < 3000; i++) {
        assert_int_equal(write(d.event[1], "!", 1), 1);
        usleep(100);
    }
    double took = told(&d) - from;
    struct governor_cost cost;
    governor_cost_get(g, &cost);
    assert_true(cost.events >= 1 && (double)cost.events <= 2 + took / 0.02);
    governor_close(g);
    unmade(&d);
}

/* A descriptor at its end, or that is none: the poll stays, and the thread does not spin. */
static void test_events_end(void **state) {
    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        struct device d;
        made(&d);
        struct clock clock = clock_of(&d);
        d.real = 1;
        struct governor_options o = options_of(&d, &clock, 1);
        if (kind == 1) o.event_fd = 1 << 20;
        if (kind == 2) o.event_fd = -2;
        struct governor *g = opened(&o);
        if (kind == 0) {
            close(d.event[1]);
            d.event[1] = -1;
        }
        double from = told(&d);
        usleep(300000);
        assert_true((double)looks_of(g) <= 4 + (told(&d) - from) / GOVERNOR_POLL_S);
        plug(&d, 0);
        await_value(&d, &d.verdict, VERDICT_STOP);
        governor_close(g);
        unmade(&d);
    }
}

static void test_kernel_events_are_opened(void **state) {
    (void)state;
    struct device d;
    made(&d);
    struct clock clock = clock_of(&d);
    d.real = 1;
    struct governor_options o = options_of(&d, &clock, 1);
    o.event_fd = -1;
    struct governor *g = opened(&o); /* whether there are any or not */
    plug(&d, 0);
    governor_look(g);
    await_value(&d, &d.verdict, VERDICT_STOP);
    governor_close(g);
    unmade(&d);
}

static int count_threads(void) {
    DIR *dir = opendir("/proc/self/task");
    int n = 0;
    assert_non_null(dir);
    for (struct dirent *e; (e = readdir(dir));) n += *e->d_name != '.';
    closedir(dir);
    return n;
}

/* Neither who asks for a decision nor who closes is held by a sensor (3) or a callback (1) that does not return. The
 * device outlives the thread that is left behind. */
static void blocking(int hold) {
    static struct device held[4];
    struct device *d = &held[hold];
    made(d);
    struct clock clock = clock_of(d);
    d->real = 1;
    struct governor_options o = options_of(d, &clock, 1);
    int threads = count_threads();
    struct governor *g = opened(&o);
    assert_int_equal(verdict_of(g), VERDICT_RUN);
    atomic_store(&d->hold, hold);
    assert_int_equal(write(d->event[1], "!", 1), 1);
    await_value(d, &d->hold, hold + 1);
    pass(d, GOVERNOR_STALE_S + 1);
    assert_int_equal(verdict_of(g), VERDICT_STOP);
    assert_int_equal(reason_of(g), REASON_STALE);
    governor_look(g); /* comes back */
    assert_int_equal(reason_of(g), REASON_STALE);
    governor_state(g, NULL, NULL, NULL);
    int acts = atomic_load(&d->acts), samples = atomic_load(&d->samples);
    governor_close(g);
    assert_int_equal(count_threads(), threads + 1);
    plug(d, 0);
    change(d, &d->hold, 0); /* it ends alone, and says nothing any more */
    for (int i = 0; i < 600 && count_threads() > threads; i++) usleep(100000);
    assert_int_equal(count_threads(), threads);
    assert_int_equal(atomic_load(&d->acts), acts);
    assert_int_equal(atomic_load(&d->samples), samples);
    remove_tree(d);
}
static void test_a_callback_blocks(void **state) {
    (void)state;
    blocking(1);
}
static void test_a_sensor_blocks(void **state) {
    (void)state;
    blocking(3);
}

/* From the very first look: open comes back all the same, and there is no decision. */
static void test_a_sensor_blocks_at_once(void **state) {
    (void)state;
    struct device d;
    made(&d);
    struct clock clock = clock_of(&d);
    d.real = 1;
    struct governor_options o = options_of(&d, &clock, 1);
    atomic_store(&d.hold, 3);
    struct governor *g = opened(&o);
    assert_int_equal(reason_of(g), REASON_STALE);
    change(&d, &d.hold, 0);
    await_value(&d, &d.acts, 1);
    governor_look(g);
    assert_int_equal(verdict_of(g), VERDICT_RUN);
    governor_close(g);
    unmade(&d);
}

static void *ask(void *governor) {
    struct decision decision;
    struct spent spent;
    struct governor_cost cost;
    for (int i = 0; i < 2000; i++) {
        governor_decision(governor, &decision);
        assert_true(decision.verdict <= VERDICT_STOP);
        governor_wrote(governor, 1);
        governor_state(governor, NULL, &spent, NULL);
        governor_cost_get(governor, &cost);
        if (i % 100 == 0) governor_look(governor);
    }
    return NULL;
}
static void test_many_ask(void **state) {
    (void)state;
    struct device d;
    made(&d);
    struct clock clock = clock_of(&d);
    d.real = 1;
    struct governor_options o = options_of(&d, &clock, 1);
    struct governor *g = opened(&o);
    pthread_t threads[3];
    for (int i = 0; i < 3; i++) assert_int_equal(pthread_create(&threads[i], NULL, ask, g), 0);
    for (int i = 0; i < 20; i++) {
        plug(&d, i % 2);
        if (write(d.event[1], "!", 1) < 0) {}
        usleep(2000);
    }
    for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
    struct spent spent;
    governor_state(g, NULL, &spent, NULL);
    assert_int_equal(spent.written_night, 6000);
    assert_true(looks_of(g) > 3);
    governor_close(g);
    unmade(&d);
}

/* The host's signals are not for it. */
static atomic_int blocks_signals;
static void note_mask(void *user, const struct decision *decision) {
    sigset_t mask;
    (void)user;
    (void)decision;
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    atomic_store(&blocks_signals, sigismember(&mask, SIGTERM) && sigismember(&mask, SIGCHLD) ? 1 : 2);
}
static void test_signals_stay_with_the_host(void **state) {
    (void)state;
    struct device d;
    made(&d);
    struct clock clock = clock_of(&d);
    struct governor_options o = options_of(&d, &clock, 1);
    o.act = note_mask;
    o.sample = NULL;
    struct governor *g = opened(&o);
    for (int i = 0; i < 600 && !atomic_load(&blocks_signals); i++) usleep(100000);
    assert_int_equal(atomic_load(&blocks_signals), 1);
    governor_close(g);
    unmade(&d);
}

/* ---- what does not work ---- */

static void test_no_descriptors(void **state) {
    (void)state;
    struct device d;
    made(&d);
    struct clock clock = clock_of(&d);
    struct governor_options o = options_of(&d, &clock, 1);
    struct rlimit before, none;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    int next = dup(0);
    assert_true(next >= 0);
    close(next);
    for (rlim_t more = 0; more < 3; more++) { /* room for so many of the three that it needs */
        none = (struct rlimit){(rlim_t)next + more, before.rlim_max};
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
        struct governor *g = NULL;
        attune_error err = {0};
        int code = governor_open(&o, &g, &err);
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
        assert_true(code < 0);
        assert_null(g);
        assert_int_equal(err.code, code);
        assert_true(*err.message);
    }
    unmade(&d);
}

/* ---- what the kernel tells ---- */

#define MATTERS(text) uevent_matters(text, sizeof text)
static void test_uevents(void **state) {
    (void)state;
    assert_true(MATTERS("change@/devices/x/AC\0ACTION=change\0DEVPATH=/devices/x/AC\0SUBSYSTEM=power_supply\0SEQNUM=1"));
    assert_true(MATTERS("change@/devices/virtual/thermal/z0\0SUBSYSTEM=thermal"));
    assert_false(MATTERS("add@/devices/usb\0ACTION=add\0SUBSYSTEM=usb\0NAME=SUBSYSTEM=power_supply"));
    assert_false(MATTERS("add@/devices/x\0SUBSYSTEM=power_supply_of_another\0"));
    assert_false(MATTERS("libudev\0SUBSYSTEM=power_supply"));
    assert_false(MATTERS("change@/devices/x"));
    assert_false(MATTERS(""));
    static const char whole[] = "change@/x\0ACTION=change\0SUBSYSTEM=power_supply";
    for (size_t n = 0; n < sizeof whole; n++) {
        char *cut = malloc(n + 1); /* of its own, so that a sanitizer sees what is read behind it */
        assert_non_null(cut);
        memcpy(cut, whole, n);
        char *exact = realloc(cut, n ? n : 1);
        assert_false(uevent_matters(exact, n));
        free(exact);
    }
    int fd = uevents_open();
    if (fd < 0) return;
    uevents_take(fd); /* does not block */
    close(fd);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_driven_by_hand),
        cmocka_unit_test(test_flapping),
        cmocka_unit_test(test_stale),
        cmocka_unit_test(test_what_was_spent),
        cmocka_unit_test(test_event),
        cmocka_unit_test(test_storm),
        cmocka_unit_test(test_events_end),
        cmocka_unit_test(test_kernel_events_are_opened),
        cmocka_unit_test(test_a_callback_blocks),
        cmocka_unit_test(test_a_sensor_blocks),
        cmocka_unit_test(test_a_sensor_blocks_at_once),
        cmocka_unit_test(test_many_ask),
        cmocka_unit_test(test_signals_stay_with_the_host),
        cmocka_unit_test(test_no_descriptors),
        cmocka_unit_test(test_uevents),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
