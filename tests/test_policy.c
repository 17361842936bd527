/* The policy rule by rule: from a device on which all is well, one thing is changed. Every decision here is compared
 * with its explanation too. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "energy/policy.h"

/* Friday, 2026-01-09, 23:00 UTC */
static const int64_t evening = 1767999600000;

static struct policy policy;
static struct snapshot now;
static struct spent spent;
static struct policy_state memory;
static struct decision decision;

/* All is asked for, and all is well. */
static void all_well(void) {
    policy = (struct policy){.window = {22 * 60, 7 * 60},
                             .charger_required = 1,
                             .battery_min = 40,
                             .charger_stable_s = 60,
                             .idle_required = 1,
                             .idle_s = 600,
                             .celsius_max = 80,
                             .celsius_back = 5,
                             .pressure_cpu = 0.5,
                             .pressure_memory = 0.25,
                             .memory_free = 1000,
                             .duty = 1,
                             .threads = 4,
                             .seconds_run = 100,
                             .seconds_night = 1000,
                             .seconds_week = 5000,
                             .joules_run = 100,
                             .joules_night = 1000,
                             .joules_week = 5000,
                             .modelled_guard = 1.25,
                             .written_night = 1 << 20};
    now = (struct snapshot){.monotonic = 5000,
                            .boottime = 9000,
                            .wall_ms = evening,
                            .power = {POWER_MAINS, 1, 83, 0},
                            .battery_watts = NAN,
                            .celsius = 55,
                            .idle_s = 900,
                            .pressure_cpu = 0.1,
                            .pressure_memory = 0,
                            .pressure_io = NAN,
                            .load = NAN,
                            .cpus = NAN,
                            .memory_available = 4000};
    spent = (struct spent){.seconds_run = 10, .seconds_night = 20, .seconds_week = 30};
    memory = (struct policy_state){0};
}

static void expect_explained(const struct policy_state *state, const char *what) {
    struct condition_view views[CONDITION_COUNT], *worst = &views[0];
    policy_explain(&policy, &now, &spent, state, views);
    for (int i = 0; i < CONDITION_COUNT; i++) {
        assert_true(*views[i].name && *views[i].sensed && *views[i].wanted);
        assert_int_equal(views[i].verdict == VERDICT_RUN, views[i].reason == REASON_NONE);
        if (views[i].verdict > worst->verdict ||
            (views[i].verdict == worst->verdict && views[i].reason < worst->reason))
            worst = &views[i];
    }
    if (worst->verdict != decision.verdict || worst->reason != decision.reason)
        fail_msg("%s: decided %s for %s, explained %s for %s", what, verdict_name(decision.verdict),
                 reason_name(decision.reason), verdict_name(worst->verdict), reason_name(worst->reason));
}

static void look(const char *what, enum verdict verdict, enum reason reason) {
    struct policy_state before = memory;
    policy_decide(&policy, &now, &spent, &memory, &decision);
    if (decision.verdict != verdict || decision.reason != reason)
        fail_msg("%s: %s for %s", what, verdict_name(decision.verdict), reason_name(decision.reason));
    assert_int_equal(decision.duty > 0, verdict <= VERDICT_THROTTLE);
    assert_true(memory.begun && memory.verdict == verdict);
    expect_explained(&before, what);
    expect_explained(&memory, what);
}
#define LOOK(verdict, reason) look(__func__, VERDICT_##verdict, REASON_##reason)

#define ROW(change, verdict, reason)                                                                                   \
    do {                                                                                                               \
        all_well();                                                                                                    \
        change;                                                                                                        \
        look(#change, VERDICT_##verdict, REASON_##reason);                                                             \
    } while (0)
/* With the condition not asked for, the same is fine. */
#define ROW_UNLESS(not_asked, change, verdict, reason)                                                                 \
    do {                                                                                                               \
        ROW(change, verdict, reason);                                                                                  \
        ROW(change; not_asked, RUN, NONE);                                                                             \
    } while (0)

static int setup(void **state) {
    (void)state;
    setenv("TZ", "UTC0", 1);
    tzset();
    return 0;
}

static void test_all_well(void **state) {
    (void)state;
    ROW(, RUN, NONE);
    assert_int_equal(decision.threads, 4);
    assert_true(decision.duty == 1 && isnan(decision.wait_s));
    policy = (struct policy){0};
    now = (struct snapshot){.celsius = NAN, .idle_s = NAN, .pressure_cpu = NAN, .pressure_memory = NAN, .cpus = NAN};
    LOOK(RUN, NONE);
    assert_true(decision.duty == 1);
}

static void test_power(void **state) {
    (void)state;
    ROW_UNLESS(policy.charger_required = 0, now.power.supply = POWER_BATTERY, STOP, NO_CHARGER);
    ROW_UNLESS(policy.charger_required = 0, now.power.supply = POWER_UNKNOWN, STOP, POWER_UNKNOWN);
    ROW_UNLESS(policy.charger_required = 0, now.power.discharging = 1, STOP, DISCHARGING);
    ROW(now.power.supply = (enum power_supply)7, STOP, POWER_UNKNOWN);
    ROW((now.power.supply = POWER_BATTERY, now.power.discharging = 1), STOP, NO_CHARGER);
    ROW((now.power.supply = POWER_UNKNOWN, policy.without_sensors = 1), STOP, POWER_UNKNOWN);
    ROW(now.power.percent = 100, RUN, NONE);
}

static void test_battery(void **state) {
    (void)state;
    ROW(now.power.percent = 40, RUN, NONE);
    ROW_UNLESS(policy.battery_min = 0, now.power.percent = 39, STOP, BATTERY_LOW);
    ROW_UNLESS(policy.battery_min = 0, now.power.percent = 0, STOP, BATTERY_LOW);
    ROW_UNLESS(policy.battery_min = 0, now.power.percent = -1, STOP, BATTERY_UNKNOWN);
    ROW((now.power.percent = -1, policy.without_sensors = 1), STOP, BATTERY_UNKNOWN);
    ROW((now.power.battery = 0, now.power.percent = -1), RUN, NONE);
    ROW((now.power.battery = 0, now.power.percent = 0), RUN, NONE);
    /* nothing can be seen, and a charger is not asked for */
    ROW_UNLESS(policy.battery_min = 0,
               (now.power = (struct power_snapshot){POWER_UNKNOWN, 0, -1, 0}, policy.charger_required = 0), STOP,
               BATTERY_UNKNOWN);
    ROW((now.power = (struct power_snapshot){POWER_UNKNOWN, 0, -1, 0}, policy.charger_required = 0,
         policy.without_sensors = 1),
        RUN, NONE);
}

static void test_window(void **state) {
    (void)state;
    ROW_UNLESS(policy.window = ((struct window){0, 0}), now.wall_ms = evening - 3600001, STOP, WINDOW);
    ROW(now.wall_ms = evening - 3600001, STOP, WINDOW);
    assert_true(decision.wait_s == 0.001);
    ROW(now.wall_ms = evening - 3600000, RUN, NONE);
    ROW(now.wall_ms = evening + 8 * 3600000 - 1, RUN, NONE);
    ROW(now.wall_ms = evening + 8 * 3600000, STOP, WINDOW);
    assert_true(decision.wait_s == 15 * 3600);
    ROW(now.wall_ms = -1, STOP, WINDOW);
    assert_true(isnan(decision.wait_s));
}

static void test_idle(void **state) {
    (void)state;
    ROW(now.idle_s = 600, RUN, NONE);
    ROW(now.idle_s = INFINITY, RUN, NONE);
    ROW_UNLESS(policy.idle_required = 0, now.idle_s = 0, STOP, IN_USE);
    ROW_UNLESS(policy.idle_required = 0, now.idle_s = NAN, STOP, IDLE_UNKNOWN);
    ROW((now.idle_s = NAN, policy.without_sensors = 1), RUN, NONE);
    ROW((now.idle_s = 599, policy.without_sensors = 1), STOP, IN_USE);
    assert_true(decision.wait_s == 1);
}

static void test_heat(void **state) {
    (void)state;
    ROW(now.celsius = 79.9, RUN, NONE);
    ROW_UNLESS(policy.celsius_max = 0, now.celsius = 80, PAUSE, HOT);
    ROW_UNLESS(policy.celsius_max = 0, now.celsius = NAN, STOP, HEAT_UNKNOWN);
    ROW((now.celsius = NAN, policy.without_sensors = 1), RUN, NONE);
    ROW((now.celsius = 80, policy.without_sensors = 1), PAUSE, HOT);
}

static void test_pressure_and_memory(void **state) {
    (void)state;
    ROW(now.pressure_cpu = 0.49, RUN, NONE);
    ROW_UNLESS(policy.pressure_cpu = 0, now.pressure_cpu = 0.5, THROTTLE, PRESSURE_CPU);
    ROW_UNLESS(policy.pressure_cpu = 0, now.pressure_cpu = NAN, STOP, PRESSURE_UNKNOWN);
    ROW((now.pressure_cpu = NAN, policy.without_sensors = 1), RUN, NONE);
    ROW(now.pressure_memory = 0.24, RUN, NONE);
    ROW_UNLESS(policy.pressure_memory = 0, now.pressure_memory = 0.25, PAUSE, PRESSURE_MEMORY);
    ROW_UNLESS(policy.pressure_memory = 0, now.pressure_memory = NAN, STOP, PRESSURE_UNKNOWN);
    ROW((now.pressure_memory = NAN, policy.without_sensors = 1), RUN, NONE);
    ROW(now.memory_available = 1000, RUN, NONE);
    ROW_UNLESS(policy.memory_free = 0, now.memory_available = 999, STOP, MEMORY_SHORT);
    ROW_UNLESS(policy.memory_free = 0, now.memory_available = 0, STOP, PRESSURE_UNKNOWN);
    ROW((now.memory_available = 0, policy.without_sensors = 1), RUN, NONE);
    ROW((now.memory_available = 999, policy.without_sensors = 1), STOP, MEMORY_SHORT);
}

static void test_budgets(void **state) {
    (void)state;
    ROW((spent.seconds_run = 99.99, spent.seconds_night = 999.99, spent.seconds_week = 4999.99), RUN, NONE);
    ROW_UNLESS(policy.seconds_run = 0, spent.seconds_run = 100, STOP, TIME_RUN);
    ROW_UNLESS(policy.seconds_night = 0, spent.seconds_night = 1000, STOP, TIME_NIGHT);
    ROW_UNLESS(policy.seconds_week = 0, spent.seconds_week = 5000, STOP, TIME_WEEK);
    ROW_UNLESS(policy.seconds_run = 0, spent.seconds_run = NAN, STOP, TIME_RUN);
    ROW((spent.run.measured = 99.9, spent.night.battery = 999.9, spent.week.measured = 4999), RUN, NONE);
    ROW_UNLESS(policy.joules_run = 0, (spent.run = (struct joules){50, 25, 20}), STOP, ENERGY_RUN);
    ROW((spent.run = (struct joules){50, 25, 19.9}), RUN, NONE);
    ROW_UNLESS(policy.joules_night = 0, spent.night.modelled = 800, STOP, ENERGY_NIGHT);
    ROW(spent.night.modelled = 799, RUN, NONE);
    ROW_UNLESS(policy.joules_week = 0, spent.week.battery = 5000, STOP, ENERGY_WEEK);
    ROW_UNLESS(policy.joules_week = 0, spent.week.modelled = NAN, STOP, ENERGY_WEEK);
    ROW(spent.written_night = (1 << 20) - 1, RUN, NONE);
    ROW_UNLESS(policy.written_night = 0, spent.written_night = 1 << 20, STOP, WRITTEN);
    assert_true(joules_sum(&(struct joules){1, 2, 4}) == 7);
    assert_true(joules_counted(&(struct joules){1, 2, 4}, 1.25) == 8);
}

/* What a night has used up comes back with the next one; a run and a week are nobody's to wait for. */
static void test_waiting_for_budgets(void **state) {
    (void)state;
    ROW(spent.seconds_run = 100, STOP, TIME_RUN);
    assert_true(isnan(decision.wait_s));
    ROW(spent.seconds_week = 5000, STOP, TIME_WEEK);
    assert_true(isnan(decision.wait_s));
    ROW(spent.seconds_night = 1000, STOP, TIME_NIGHT);
    assert_true(decision.wait_s == 23 * 3600);
    ROW(spent.night.measured = 1000, STOP, ENERGY_NIGHT);
    assert_true(decision.wait_s == 23 * 3600);
    ROW(spent.written_night = 1 << 20, STOP, WRITTEN);
    assert_true(decision.wait_s == 23 * 3600);
    ROW((spent.seconds_run = 100, spent.seconds_night = 1000), STOP, TIME_RUN);
    assert_true(decision.wait_s == 23 * 3600);
    ROW((spent.seconds_night = 1000, policy.window = (struct window){0, 0}), STOP, TIME_NIGHT);
    assert_true(decision.wait_s == 13 * 3600);
    ROW((spent.seconds_night = 1000, now.idle_s = 0), STOP, IN_USE);
    assert_true(decision.wait_s == 23 * 3600);
}

/* `now` skips window, charger, battery and idleness; nothing else. */
static void test_now(void **state) {
    (void)state;
    ROW((policy.now = 1, now.power.supply = POWER_BATTERY), RUN, NONE);
    ROW((policy.now = 1, now.power = (struct power_snapshot){POWER_UNKNOWN, 0, -1, 0}), RUN, NONE);
    ROW((policy.now = 1, now.power.discharging = 1), RUN, NONE);
    ROW((policy.now = 1, now.power.percent = 1), RUN, NONE);
    ROW((policy.now = 1, now.power.percent = -1), RUN, NONE);
    ROW((policy.now = 1, now.wall_ms = evening - 7200000), RUN, NONE);
    ROW((policy.now = 1, now.idle_s = 0), RUN, NONE);
    ROW((policy.now = 1, now.idle_s = NAN), RUN, NONE);
    ROW((policy.now = 1, now.celsius = 90), PAUSE, HOT);
    ROW((policy.now = 1, now.celsius = NAN), STOP, HEAT_UNKNOWN);
    ROW((policy.now = 1, now.pressure_cpu = 1), THROTTLE, PRESSURE_CPU);
    ROW((policy.now = 1, now.pressure_memory = 1), PAUSE, PRESSURE_MEMORY);
    ROW((policy.now = 1, now.memory_available = 5), STOP, MEMORY_SHORT);
    ROW((policy.now = 1, spent.seconds_run = 100), STOP, TIME_RUN);
    ROW((policy.now = 1, spent.seconds_week = 5000), STOP, TIME_WEEK);
    ROW((policy.now = 1, spent.night.measured = 1000), STOP, ENERGY_NIGHT);
    ROW((policy.now = 1, spent.written_night = 1 << 20), STOP, WRITTEN);
}

/* STOP before PAUSE before THROTTLE; of one gravity the first of enum reason, and the longest wait. */
static void test_gravity(void **state) {
    (void)state;
    ROW((now.pressure_cpu = 0.5, now.celsius = 80), PAUSE, HOT);
    ROW((now.pressure_memory = 0.5, now.celsius = 80), PAUSE, HOT);
    assert_true(decision.wait_s == SQUEEZE_HOLD_S);
    ROW((now.celsius = 80, now.idle_s = 1), STOP, IN_USE);
    ROW((now.celsius = 80, spent.written_night = 1 << 20), STOP, WRITTEN);
    ROW((now.pressure_cpu = 0.5, now.pressure_memory = NAN), STOP, PRESSURE_UNKNOWN);
    ROW((now.power.supply = POWER_BATTERY, now.wall_ms = evening - 7200000, now.idle_s = 0), STOP, NO_CHARGER);
    assert_true(decision.wait_s == 3600);
    ROW((now.wall_ms = evening - 3600000 - 1000, now.idle_s = 0), STOP, WINDOW);
    assert_true(decision.wait_s == 600);
    ROW((now.power.percent = 2, now.power.supply = POWER_UNKNOWN), STOP, POWER_UNKNOWN);
}

/* ---- what is remembered ---- */

static void later(double s) {
    now.monotonic += s;
    now.boottime += s;
    now.wall_ms += (int64_t)(s * 1000);
}
static void sleep_for(double s) {
    now.boottime += s;
    now.wall_ms += (int64_t)(s * 1000);
}

static void test_charger_flaps(void **state) {
    (void)state;
    all_well();
    LOOK(RUN, NONE);
    later(1);
    now.power.supply = POWER_BATTERY;
    LOOK(STOP, NO_CHARGER);
    later(100);
    LOOK(STOP, NO_CHARGER);
    later(1);
    now.power.supply = POWER_MAINS;
    LOOK(STOP, CHARGER_FLAPS);
    assert_true(decision.wait_s == 60);
    later(59);
    LOOK(STOP, CHARGER_FLAPS);
    assert_true(decision.wait_s == 1);
    now.power.discharging = 1; /* a weak one */
    later(0.5);
    LOOK(STOP, DISCHARGING);
    now.power.discharging = 0;
    later(1);
    LOOK(STOP, CHARGER_FLAPS);
    later(30);
    now.power.supply = POWER_UNKNOWN;
    LOOK(STOP, POWER_UNKNOWN);
    later(1);
    now.power.supply = POWER_MAINS;
    LOOK(STOP, CHARGER_FLAPS);
    later(59.5);
    LOOK(STOP, CHARGER_FLAPS);
    later(0.5);
    LOOK(RUN, NONE);
    later(3600);
    LOOK(RUN, NONE);
}

/* A minute that was slept through makes no charger stable; a stable one stays so. */
static void test_charger_and_sleep(void **state) {
    (void)state;
    all_well();
    now.power.supply = POWER_BATTERY;
    LOOK(STOP, NO_CHARGER);
    sleep_for(600);
    now.power.supply = POWER_MAINS;
    LOOK(STOP, CHARGER_FLAPS);
    later(20);
    LOOK(STOP, CHARGER_FLAPS);
    sleep_for(3600);
    LOOK(STOP, CHARGER_FLAPS);
    assert_true(decision.wait_s == 40);
    later(40);
    LOOK(RUN, NONE);
    sleep_for(3600);
    LOOK(RUN, NONE);
}

/* Nobody looked for two minutes: what is on a charger now was perhaps plugged in just now. */
static void test_charger_unseen(void **state) {
    (void)state;
    all_well();
    now.power.supply = POWER_BATTERY;
    LOOK(STOP, NO_CHARGER);
    later(120);
    now.power.supply = POWER_MAINS;
    LOOK(STOP, CHARGER_FLAPS);
    assert_true(decision.wait_s == 60);
}

static void test_heat_goes_back(void **state) {
    static const struct {
        double celsius;
        enum verdict verdict;
    } ramp[] = {{70, VERDICT_RUN},     {79.9, VERDICT_RUN}, {80, VERDICT_PAUSE},   {79, VERDICT_PAUSE},
                {75, VERDICT_PAUSE},   {74.9, VERDICT_RUN}, {79, VERDICT_RUN},     {95, VERDICT_PAUSE},
                {75.5, VERDICT_PAUSE}, {20, VERDICT_RUN},   {80.5, VERDICT_PAUSE}, {78, VERDICT_PAUSE}};
    (void)state;
    all_well();
    for (size_t i = 0; i < sizeof ramp / sizeof *ramp; i++, later(1)) {
        now.celsius = ramp[i].celsius;
        look("ramp", ramp[i].verdict, ramp[i].verdict == VERDICT_RUN ? REASON_NONE : REASON_HOT);
    }
    policy.without_sensors = 1;
    now.celsius = NAN;
    LOOK(PAUSE, HOT);
    now.celsius = 50;
    LOOK(RUN, NONE);
}

static void expect_allowed(int threads, double duty) {
    assert_int_equal(decision.threads, threads);
    assert_true(decision.duty == duty);
}

static void test_throttle(void **state) {
    (void)state;
    all_well();
    now.pressure_cpu = 0.6;
    LOOK(THROTTLE, PRESSURE_CPU);
    expect_allowed(2, 1);
    assert_true(decision.wait_s == SQUEEZE_HOLD_S);
    now.pressure_cpu = 0.1;
    later(29);
    LOOK(THROTTLE, PRESSURE_CPU);
    expect_allowed(2, 1);
    assert_true(decision.wait_s == 1);
    later(1);
    LOOK(RUN, NONE);
    expect_allowed(4, 1);
    now.pressure_cpu = 0.5; /* it goes on: half of the time too, until it ends */
    LOOK(THROTTLE, PRESSURE_CPU);
    later(29);
    LOOK(THROTTLE, PRESSURE_CPU);
    expect_allowed(2, 1);
    later(1);
    LOOK(THROTTLE, PRESSURE_CPU);
    expect_allowed(2, 0.5);
    now.pressure_cpu = 0;
    later(29);
    LOOK(THROTTLE, PRESSURE_CPU);
    expect_allowed(2, 0.5);
    later(1);
    LOOK(RUN, NONE);
    expect_allowed(4, 1);
    now.pressure_cpu = 0.5; /* afresh, also after a gap in which nobody looked */
    LOOK(THROTTLE, PRESSURE_CPU);
    expect_allowed(2, 1);
    later(30);
    LOOK(THROTTLE, PRESSURE_CPU);
    expect_allowed(2, 1);
    sleep_for(1000);
    later(29.5);
    now.pressure_cpu = 0;
    LOOK(THROTTLE, PRESSURE_CPU);
}

static void test_memory_goes_back(void **state) {
    (void)state;
    all_well();
    now.pressure_memory = 0.3;
    LOOK(PAUSE, PRESSURE_MEMORY);
    now.pressure_memory = 0;
    later(29);
    LOOK(PAUSE, PRESSURE_MEMORY);
    assert_true(decision.wait_s == 1);
    later(1);
    LOOK(RUN, NONE);
    now.memory_available = 10;
    LOOK(STOP, MEMORY_SHORT);
    assert_true(decision.wait_s == SHORT_HOLD_S);
    now.memory_available = 5000;
    later(299);
    LOOK(STOP, MEMORY_SHORT);
    later(1);
    LOOK(RUN, NONE);
}

static void test_what_is_allowed(void **state) {
    static const struct {
        int threads;
        double duty, cpus, pressure;
        int allowed;
        double share;
    } table[] = {
        {4, 1, NAN, 0, 4, 1},   {0, 1, NAN, 0, 0, 1},        {4, 0.5, NAN, 0, 4, 0.5}, {4, 0, NAN, 0, 4, 1},
        {4, 7, NAN, 0, 4, 1},   {4, 0.001, NAN, 0, 4, 0.05}, {4, 1, 2, 0, 2, 1},       {4, 1, 1.5, 0, 2, 1},
        {4, 1, 0.25, 0, 1, 1},  {4, 1, 16, 0, 4, 1},         {0, 1, 3, 0, 3, 1},       {0, 1, 1e300, 0, 4096, 1},
        {4, 1, 0, 0, 4, 1},     {4, 1, -3, 0, 4, 1},         {4, 1, NAN, 1, 2, 1},     {5, 0.5, NAN, 1, 3, 0.5},
        {0, 1, NAN, 1, 0, 0.5}, {1, 1, NAN, 1, 1, 0.5},      {2, 1, NAN, 1, 1, 1},     {8, 1, 4, 1, 2, 1},
        {8, 1, 0.5, 1, 1, 0.5}, {1, 0.05, NAN, 1, 1, 0.025},
    };
    (void)state;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        all_well();
        policy.threads = table[i].threads;
        policy.duty = table[i].duty;
        now.cpus = table[i].cpus;
        now.pressure_cpu = table[i].pressure;
        policy_decide(&policy, &now, &spent, &memory, &decision);
        if (decision.threads != table[i].allowed || decision.duty != table[i].share)
            fail_msg("row %zu: %d threads, %g of the time", i, decision.threads, decision.duty);
    }
    all_well();
    now.idle_s = 0;
    LOOK(STOP, IN_USE);
    expect_allowed(0, 0);
}

/* ---- words ---- */

static void test_names(void **state) {
    (void)state;
    for (int i = 0; i < REASON_COUNT; i++) {
        assert_true(*reason_name((enum reason)i) && strlen(reason_name((enum reason)i)) < 24);
        assert_int_equal(*reason_text((enum reason)i) == 0, i == REASON_NONE);
        for (int k = 0; k < i; k++) assert_string_not_equal(reason_name((enum reason)i), reason_name((enum reason)k));
    }
    assert_string_equal(reason_name(REASON_NO_CHARGER), "no_charger");
    assert_string_equal(reason_text(REASON_NO_CHARGER), "not on a charger");
    assert_string_equal(reason_name(REASON_WRITTEN), "written");
    assert_string_equal(reason_name(REASON_COUNT), "");
    assert_string_equal(reason_text((enum reason) - 1), "");
    assert_string_equal(verdict_name(VERDICT_RUN), "run");
    assert_string_equal(verdict_name(VERDICT_THROTTLE), "throttle");
    assert_string_equal(verdict_name(VERDICT_PAUSE), "pause");
    assert_string_equal(verdict_name(VERDICT_STOP), "stop");
    assert_string_equal(verdict_name((enum verdict)4), "");
}

static void expect_words(int condition, const char *sensed, const char *wanted) {
    struct condition_view views[CONDITION_COUNT];
    policy_explain(&policy, &now, &spent, &memory, views);
    if (strcmp(views[condition].sensed, sensed) != 0 || strcmp(views[condition].wanted, wanted) != 0)
        fail_msg("%s: sensed \"%s\", wanted \"%s\"", views[condition].name, views[condition].sensed,
                 views[condition].wanted);
}
#define WORDS(change, condition, sensed, wanted)                                                                       \
    do {                                                                                                               \
        all_well();                                                                                                    \
        change;                                                                                                        \
        expect_words(CONDITION_##condition, sensed, wanted);                                                           \
    } while (0)

static void test_words(void **state) {
    (void)state;
    WORDS(, POWER, "on a charger, 83 %", "a charger");
    WORDS(now.power.battery = 0, POWER, "on a charger", "a charger");
    WORDS(now.power.discharging = 1, POWER, "on a charger, but the battery discharges, 83 %", "a charger for 1 min");
    WORDS((now.power.supply = POWER_BATTERY, policy.now = 1), POWER, "on battery, 83 %", "anything");
    WORDS(now.power = ((struct power_snapshot){POWER_UNKNOWN, 0, -1, 0}), POWER, "not known", "a charger for 1 min");
    WORDS((memory.charger_on = memory.charger_seen_off = 1, memory.charger_since = 4980), POWER,
          "on a charger for 20 s, 83 %", "a charger for 1 min");
    WORDS(, BATTERY, "83 %", "40 % or more");
    WORDS(now.power.percent = -1, BATTERY, "a battery of unknown charge", "40 % or more");
    WORDS((now.power.battery = 0, policy.battery_min = 0), BATTERY, "no battery", "anything");
    WORDS(now.power = ((struct power_snapshot){POWER_UNKNOWN, 0, -1, 0}), BATTERY, "not known", "40 % or more");
    WORDS(, WINDOW, "23:00", "22:00-07:00");
    WORDS(policy.window.until = 22 * 60, WINDOW, "23:00", "anything");
    WORDS(policy.now = 1, WINDOW, "23:00", "anything");
    WORDS(, IDLE, "nobody there for 15 min", "nobody there for 10 min");
    WORDS((now.idle_s = 5.7, policy.idle_required = 0), IDLE, "nobody there for 5 s", "anything");
    WORDS(now.idle_s = INFINITY, IDLE, "nobody is logged in", "nobody there for 10 min");
    WORDS(now.idle_s = NAN, IDLE, "not known", "nobody there for 10 min");
    WORDS(, HEAT, "55 C", "below 80 C");
    WORDS(now.celsius = 81, HEAT, "81 C", "below 75 C, after 80 C");
    WORDS((now.celsius = NAN, policy.celsius_max = 0), HEAT, "not known", "anything");
    WORDS(, PRESSURE_CPU, "tasks wait 10 % of the time", "below 50 %");
    WORDS(now.pressure_cpu = 0.6, PRESSURE_CPU, "tasks wait 60 % of the time", "below 50 %, for 30 s");
    WORDS(now.pressure_cpu = NAN, PRESSURE_CPU, "not known", "below 50 %");
    WORDS((now.pressure_memory = 1, policy.pressure_memory = 0), PRESSURE_MEMORY, "tasks wait 100 % of the time",
          "anything");
    WORDS((now.memory_available = 5ull << 29, policy.memory_free = 300 << 20), MEMORY, "2.5 GiB free", "300 MiB free");
    WORDS(now.memory_available = 1, MEMORY, "0 MiB free", "0 MiB free, for 5 min");
    WORDS(now.memory_available = 0, MEMORY, "not known", "0 MiB free");
    WORDS((spent.seconds_night = 4800, spent.seconds_week = 7200), TIME, "run 10 s, night 1 h 20 min, week 2 h",
          "run below 1 min, night below 16 min, week below 1 h 23 min");
    WORDS((policy.seconds_run = policy.seconds_week = 0, spent.seconds_run = NAN), TIME, "run ?, night 20 s, week 30 s",
          "night below 16 min");
    WORDS((spent.run.modelled = 80, spent.night.measured = 12345, spent.week.battery = 3.21e6), ENERGY,
          "run 100 J, night 12.3 kJ, week 3.21 MJ", "run below 100 J, night below 1 kJ, week below 5 kJ");
    WORDS(policy.joules_run = policy.joules_night = policy.joules_week = 0, ENERGY, "run 0 J, night 0 J, week 0 J",
          "anything");
    WORDS(spent.written_night = 3ull << 30, WRITTEN, "3.0 GiB tonight", "below 1 MiB");
    WORDS(policy.written_night = 0, WRITTEN, "0 MiB tonight", "anything");
}

/* The longest that can be said is cut, not written past its end. */
static void test_long_words(void **state) {
    struct condition_view views[CONDITION_COUNT];
    (void)state;
    all_well();
    policy.joules_run = policy.joules_night = policy.joules_week = 1.7e308;
    spent.run.measured = spent.night.measured = spent.week.measured = 1.2e307;
    spent.seconds_run = spent.seconds_night = spent.seconds_week = 1e300;
    now.celsius = -1e308;
    policy_explain(&policy, &now, &spent, &memory, views);
    for (int i = 0; i < CONDITION_COUNT; i++) {
        assert_non_null(memchr(views[i].sensed, 0, sizeof views[i].sensed));
        assert_non_null(memchr(views[i].wanted, 0, sizeof views[i].wanted));
    }
    assert_int_equal(strlen(views[CONDITION_HEAT].sensed), sizeof views[0].sensed - 1);
}

/* Numbers have a point, whatever the host's locale has. */
static void test_words_in_other_locales(void **state) {
    (void)state;
    if (!setlocale(LC_ALL, "de_DE.UTF-8") && !setlocale(LC_ALL, "fr_FR.UTF-8")) skip();
    WORDS(now.memory_available = 5ull << 29, MEMORY, "2.5 GiB free", "0 MiB free");
    setlocale(LC_ALL, "C");
}

/* ---- defaults ---- */

static void test_defaults(void **state) {
    static const enum device_kind kinds[] = {DEVICE_LAPTOP, DEVICE_PHONE, DEVICE_DESKTOP};
    (void)state;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        struct policy p;
        policy_default(kinds[i], &p);
        assert_true(p.charger_required && p.charger_stable_s == 60 && p.idle_required && !p.now && p.threads == 0);
        assert_true(p.battery_min >= 30 && p.battery_min <= 50);
        assert_true(p.celsius_max >= 40 && p.celsius_max <= 90 && p.celsius_back == 5);
        assert_true(p.duty == 1 && p.modelled_guard == 1.15);
        assert_true(p.seconds_run > 0 && p.seconds_run < p.seconds_night && p.seconds_night < p.seconds_week);
        assert_true(p.joules_run < p.joules_night && p.joules_night < p.joules_week);
        assert_true(p.written_night > 0 && p.written_night <= 4ull << 30 && p.memory_free >= 400ull << 20);
        assert_int_equal(p.without_sensors, kinds[i] == DEVICE_DESKTOP);
    }
    policy_default(DEVICE_LAPTOP, &policy);
    assert_true(policy.window.from == 22 * 60 && policy.window.until == 7 * 60 && policy.battery_min == 40);
    policy_default(DEVICE_PHONE, &policy);
    assert_true(policy.window.from == policy.window.until && policy.celsius_max == 45 && policy.seconds_run < 600);
    policy_default((enum device_kind)9, &policy);
    assert_int_equal(policy.battery_min, 40);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_well),
        cmocka_unit_test(test_power),
        cmocka_unit_test(test_battery),
        cmocka_unit_test(test_window),
        cmocka_unit_test(test_idle),
        cmocka_unit_test(test_heat),
        cmocka_unit_test(test_pressure_and_memory),
        cmocka_unit_test(test_budgets),
        cmocka_unit_test(test_waiting_for_budgets),
        cmocka_unit_test(test_now),
        cmocka_unit_test(test_gravity),
        cmocka_unit_test(test_charger_flaps),
        cmocka_unit_test(test_charger_and_sleep),
        cmocka_unit_test(test_charger_unseen),
        cmocka_unit_test(test_heat_goes_back),
        cmocka_unit_test(test_throttle),
        cmocka_unit_test(test_memory_goes_back),
        cmocka_unit_test(test_what_is_allowed),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_words),
        cmocka_unit_test(test_long_words),
        cmocka_unit_test(test_words_in_other_locales),
        cmocka_unit_test(test_defaults),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
