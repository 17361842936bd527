/* 100,000 states of devices, in walks with time passing between looks, judged by a table of its own: a row is a reason,
 * its verdict, and when it holds, told from the whole story of the walk. Nothing is shared with policy.c but its
 * header, not even the window. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "energy/policy.h"

enum { WALKS = 1000, LOOKS = 100, DAY = 86400 };

struct story {
    struct policy policy;
    struct snapshot look[LOOKS];
    struct spent spent;
    int last; /* the look that is judged */
};

/* ---- the table ---- */

static const struct snapshot *at(const struct story *s) { return &s->look[s->last]; }
static double ago(const struct story *s, int look) { return at(s)->monotonic - s->look[look].monotonic; }
static double kept(double x) { return x > 0 ? x : NAN; }

static int asks_charger(const struct story *s) { return s->policy.charger_required == 1 && s->policy.now == 0; }
static int asks_battery(const struct story *s) { return s->policy.battery_min >= 1 && s->policy.now == 0; }
static int asks_idle(const struct story *s) { return s->policy.idle_required == 1 && s->policy.now == 0; }
static int strict(const struct story *s) { return s->policy.without_sensors == 0; }

static int charged(const struct snapshot *look) {
    return look->power.supply == POWER_MAINS && !look->power.discharging;
}

static int power_unknown(const struct story *s) { return asks_charger(s) && at(s)->power.supply == POWER_UNKNOWN; }
static int no_charger(const struct story *s) { return asks_charger(s) && at(s)->power.supply == POWER_BATTERY; }
static int discharging(const struct story *s) {
    return asks_charger(s) && at(s)->power.supply == POWER_MAINS && at(s)->power.discharging;
}

/* Seconds for which all looks saw a charger, since the first after one that did not; no such look: for ever. */
static double stable(const struct story *s) {
    int first = s->last + 1;
    while (first > 0 && charged(&s->look[first - 1])) first--;
    if (first == 0) return INFINITY;
    return first > s->last ? -1 : ago(s, first);
}
static int flaps(const struct story *s) {
    return asks_charger(s) && charged(at(s)) && stable(s) < s->policy.charger_stable_s;
}
static double flaps_wait(const struct story *s) { return s->policy.charger_stable_s - stable(s); }

static int battery_low(const struct story *s) {
    int percent = at(s)->power.percent;
    return asks_battery(s) && at(s)->power.battery && percent != -1 && percent < s->policy.battery_min;
}
static int battery_unknown(const struct story *s) {
    if (!asks_battery(s)) return 0;
    return at(s)->power.battery ? at(s)->power.percent == -1 : at(s)->power.supply == POWER_UNKNOWN && strict(s);
}

/* The walks' clocks are UTC's. */
static int64_t ms_until(const struct story *s, int minute) {
    int64_t day = 1000ll * DAY, left = ((int64_t)minute * 60000 - at(s)->wall_ms % day + day) % day;
    return left ? left : day;
}
static int outside(const struct story *s) {
    const struct window *w = &s->policy.window;
    int minute = (int)(at(s)->wall_ms / 60000 % 1440);
    if (s->policy.now || w->from == w->until) return 0;
    return w->from < w->until ? minute < w->from || minute >= w->until : minute < w->from && minute >= w->until;
}
static double outside_wait(const struct story *s) { return (double)ms_until(s, s->policy.window.from) / 1000; }
static double night_wait(const struct story *s) {
    int always = s->policy.window.from == s->policy.window.until;
    return (double)ms_until(s, always ? 720 : s->policy.window.from) / 1000;
}

static int in_use(const struct story *s) { return asks_idle(s) && at(s)->idle_s < s->policy.idle_s; }
static double in_use_wait(const struct story *s) { return s->policy.idle_s - at(s)->idle_s; }
static int idle_unknown(const struct story *s) { return asks_idle(s) && isnan(at(s)->idle_s) && strict(s); }

/* The last look that was too hot or cool enough decides. */
static int hot(const struct story *s) {
    for (int i = s->last; i >= 0 && s->policy.celsius_max > 0; i--) {
        if (s->look[i].celsius >= s->policy.celsius_max) return 1;
        if (s->look[i].celsius < s->policy.celsius_max - s->policy.celsius_back) return 0;
    }
    return 0;
}
static int heat_unknown(const struct story *s) {
    return s->policy.celsius_max > 0 && isnan(at(s)->celsius) && strict(s);
}

typedef int (*shows)(const struct story *s, int look);
static int shows_cpu(const struct story *s, int look) {
    return s->policy.pressure_cpu > 0 && s->look[look].pressure_cpu >= s->policy.pressure_cpu;
}
static int shows_memory(const struct story *s, int look) {
    return s->policy.pressure_memory > 0 && s->look[look].pressure_memory >= s->policy.pressure_memory;
}
static int shows_short(const struct story *s, int look) {
    return s->look[look].memory_available > 0 && s->look[look].memory_available < s->policy.memory_free;
}
static int last_shown(const struct story *s, shows it, int before) {
    while (before-- > 0)
        if (it(s, before)) return before;
    return -1;
}
/* Seconds until so long after the look that showed it last. */
static double held(const struct story *s, shows it, double hold) {
    int last = last_shown(s, it, s->last + 1);
    return last < 0 ? -1 : hold - ago(s, last);
}
static int squeezed_cpu(const struct story *s) { return held(s, shows_cpu, 30) > 0; }
static double squeezed_cpu_wait(const struct story *s) { return held(s, shows_cpu, 30); }
static int squeezed_memory(const struct story *s) { return held(s, shows_memory, 30) > 0; }
static double squeezed_memory_wait(const struct story *s) { return held(s, shows_memory, 30); }
static int memory_short(const struct story *s) { return held(s, shows_short, 300) > 0; }
static double memory_short_wait(const struct story *s) { return held(s, shows_short, 300); }
static int pressure_unknown(const struct story *s) {
    return strict(s) && ((s->policy.pressure_cpu > 0 && isnan(at(s)->pressure_cpu)) ||
                         (s->policy.pressure_memory > 0 && isnan(at(s)->pressure_memory)) ||
                         (s->policy.memory_free > 0 && at(s)->memory_available == 0));
}

static double joules(const struct story *s, const struct joules *j) {
    return j->measured + j->battery + s->policy.modelled_guard * j->modelled;
}
static int time_run(const struct story *s) { return s->spent.seconds_run >= kept(s->policy.seconds_run); }
static int time_night(const struct story *s) { return s->spent.seconds_night >= kept(s->policy.seconds_night); }
static int time_week(const struct story *s) { return s->spent.seconds_week >= kept(s->policy.seconds_week); }
static int energy_run(const struct story *s) { return joules(s, &s->spent.run) >= kept(s->policy.joules_run); }
static int energy_night(const struct story *s) { return joules(s, &s->spent.night) >= kept(s->policy.joules_night); }
static int energy_week(const struct story *s) { return joules(s, &s->spent.week) >= kept(s->policy.joules_week); }
static int written(const struct story *s) {
    return s->policy.written_night > 0 && s->spent.written_night >= s->policy.written_night;
}

static const struct row {
    enum reason reason;
    enum verdict verdict;
    int (*holds)(const struct story *);
    double (*wait)(const struct story *); /* NULL: not known */
} table[] = {
    {REASON_POWER_UNKNOWN, VERDICT_STOP, power_unknown, NULL},
    {REASON_NO_CHARGER, VERDICT_STOP, no_charger, NULL},
    {REASON_DISCHARGING, VERDICT_STOP, discharging, NULL},
    {REASON_CHARGER_FLAPS, VERDICT_STOP, flaps, flaps_wait},
    {REASON_BATTERY_LOW, VERDICT_STOP, battery_low, NULL},
    {REASON_BATTERY_UNKNOWN, VERDICT_STOP, battery_unknown, NULL},
    {REASON_WINDOW, VERDICT_STOP, outside, outside_wait},
    {REASON_IN_USE, VERDICT_STOP, in_use, in_use_wait},
    {REASON_IDLE_UNKNOWN, VERDICT_STOP, idle_unknown, NULL},
    {REASON_HOT, VERDICT_PAUSE, hot, NULL},
    {REASON_HEAT_UNKNOWN, VERDICT_STOP, heat_unknown, NULL},
    {REASON_PRESSURE_CPU, VERDICT_THROTTLE, squeezed_cpu, squeezed_cpu_wait},
    {REASON_PRESSURE_MEMORY, VERDICT_PAUSE, squeezed_memory, squeezed_memory_wait},
    {REASON_MEMORY_SHORT, VERDICT_STOP, memory_short, memory_short_wait},
    {REASON_PRESSURE_UNKNOWN, VERDICT_STOP, pressure_unknown, NULL},
    {REASON_TIME_RUN, VERDICT_STOP, time_run, NULL},
    {REASON_TIME_NIGHT, VERDICT_STOP, time_night, night_wait},
    {REASON_TIME_WEEK, VERDICT_STOP, time_week, NULL},
    {REASON_ENERGY_RUN, VERDICT_STOP, energy_run, NULL},
    {REASON_ENERGY_NIGHT, VERDICT_STOP, energy_night, night_wait},
    {REASON_ENERGY_WEEK, VERDICT_STOP, energy_week, NULL},
    {REASON_WRITTEN, VERDICT_STOP, written, night_wait},
};
enum { ROWS = sizeof table / sizeof *table };

/* The looks of one squeeze follow each other by less than the hold; it goes on when they span half a minute. */
static int goes_on(const struct story *s) {
    int last = last_shown(s, shows_cpu, s->last + 1), first = last, before;
    while ((before = last_shown(s, shows_cpu, first)) >= 0 && s->look[first].monotonic - s->look[before].monotonic < 30)
        first = before;
    return s->look[last].monotonic - s->look[first].monotonic >= 30;
}

static void judge(const struct story *s, struct decision *out) {
    *out = (struct decision){.verdict = VERDICT_RUN, .reason = REASON_NONE, .wait_s = NAN};
    for (int i = 0; i < ROWS; i++) {
        if (!table[i].holds(s) || table[i].verdict < out->verdict) continue;
        if (table[i].verdict > out->verdict)
            *out = (struct decision){.verdict = table[i].verdict, .reason = table[i].reason, .wait_s = NAN};
        if (table[i].wait) out->wait_s = fmax(out->wait_s, table[i].wait(s));
    }
    if (out->verdict == VERDICT_PAUSE || out->verdict == VERDICT_STOP) return;
    int threads = s->policy.threads, quota = at(s)->cpus > 0 ? (int)ceil(at(s)->cpus) : 0;
    if (quota && (!threads || quota < threads)) threads = quota;
    out->threads = threads;
    out->duty = s->policy.duty;
    if (out->verdict == VERDICT_RUN) return;
    if (threads >= 2)
        out->threads = threads - threads / 2;
    else
        out->duty *= 0.5;
    if (goes_on(s)) out->duty *= 0.5;
}

/* ---- the walks ---- */

static uint64_t seed;
static unsigned random_below(unsigned n) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(seed >> 33) % n;
}
static int one_in(unsigned n) { return random_below(n) == 0; }
#define PICK(...) ((const double[]){__VA_ARGS__})[random_below(sizeof(double[]){__VA_ARGS__} / sizeof(double))]

/* Every field at its limits and beside them; one in a few is not asked for. */
static void any_policy(struct policy *p) {
    *p = (struct policy){.window = {(int)random_below(1440), (int)random_below(1440)},
                         .charger_required = !one_in(4),
                         .battery_min = (int)PICK(0, 1, 30, 30, 30, 40),
                         .charger_stable_s = PICK(60, 60, 60, 10, 0),
                         .idle_required = !one_in(4),
                         .idle_s = PICK(600, 600, 60),
                         .celsius_max = PICK(80, 80, 80, 45, 0),
                         .celsius_back = 5,
                         .pressure_cpu = PICK(0.5, 0.5, 0.5, 0),
                         .pressure_memory = PICK(0.25, 0.25, 0.25, 0),
                         .memory_free = (uint64_t)PICK(1000, 1000, 0),
                         .without_sensors = one_in(2),
                         .duty = PICK(1, 1, 0.5, 0.25),
                         .threads = (int)PICK(0, 1, 2, 4, 5, 8),
                         .seconds_run = PICK(0, 300, 3000),
                         .seconds_night = PICK(0, 500, 5000),
                         .seconds_week = PICK(0, 900, 9000),
                         .joules_run = PICK(0, 300, 3000),
                         .joules_night = PICK(0, 500, 5000),
                         .joules_week = PICK(0, 900, 9000),
                         .modelled_guard = PICK(1, 1.25, 2),
                         .written_night = (uint64_t)PICK(0, 100, 1000),
                         .now = one_in(6)};
    if (one_in(3)) p->window.until = p->window.from;
}

/* What changes, changes seldom, and is good again soon. */
#define CHANGE(field, good, ...)                                                                                       \
    do {                                                                                                               \
        if (one_in(40))                                                                                                \
            (field) = PICK(__VA_ARGS__);                                                                               \
        else if (one_in(4))                                                                                            \
            (field) = (good);                                                                                          \
    } while (0)

static void any_device(struct snapshot *now, const struct policy *p) {
    double supply = now->power.supply, discharging_now = now->power.discharging, percent = now->power.percent;
    double battery = now->power.battery, available = (double)now->memory_available;
    CHANGE(supply, POWER_MAINS, POWER_UNKNOWN, POWER_BATTERY);
    CHANGE(discharging_now, 0, 1);
    CHANGE(battery, 1, 0);
    CHANGE(percent, 90, -1, 0, p->battery_min - 1, p->battery_min, p->battery_min + 1, 100);
    CHANGE(now->idle_s, p->idle_s + 1, 0, p->idle_s - 0.25, p->idle_s, INFINITY, NAN);
    CHANGE(now->celsius, p->celsius_max - p->celsius_back - 1, p->celsius_max, p->celsius_max - 0.25,
           p->celsius_max + 9, p->celsius_max - p->celsius_back, p->celsius_max - p->celsius_back - 0.25, NAN);
    CHANGE(now->pressure_cpu, 0.1, p->pressure_cpu, p->pressure_cpu - 0.125, 1, 1, NAN);
    CHANGE(now->pressure_memory, 0.1, p->pressure_memory, p->pressure_memory - 0.125, 1, NAN);
    CHANGE(available, (double)p->memory_free * 2 + 1, (double)p->memory_free, (double)p->memory_free,
           (double)p->memory_free, (double)p->memory_free - 1, 0, 0);
    CHANGE(now->cpus, NAN, 1, 2, 3.5, 0.5, 64);
    now->power.supply = (enum power_supply)supply;
    now->power.discharging = (int)discharging_now;
    now->power.battery = (int)battery;
    now->power.percent = (int)percent;
    now->memory_available = (uint64_t)fmax(available, 0);
}

/* Work takes time and joules, at times until just the budget is reached; runs, nights and weeks begin anew. */
static void any_spending(struct spent *s, double awake) {
    double *const seconds[] = {&s->seconds_run, &s->seconds_night, &s->seconds_week};
    struct joules *const sums[] = {&s->run, &s->night, &s->week};
    for (int i = 0; i < 3; i++) {
        *seconds[i] += one_in(3) ? awake : 0;
        sums[i]->measured += one_in(4) ? awake : 0;
        sums[i]->battery += one_in(6) ? 1 : 0;
        sums[i]->modelled += one_in(4) ? awake : 0;
        if (one_in(8)) *seconds[i] = PICK(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 299.75, 300, 500, 899, 900, 5000);
        if (one_in(8))
            *sums[i] =
                (struct joules){PICK(0, 0, 0, 0, 0, 0, 0, 0, 300, 499.5, 500, 900), 0, PICK(0, 0, 0, 0, 240, 250)};
    }
    s->written_night += random_below(3);
    if (one_in(8)) s->written_night = (uint64_t)PICK(0, 0, 0, 0, 0, 0, 0, 99, 100, 1000);
}

/* Time passes; a device sleeps (boottime goes on, monotonic does not); somebody sets the clock. */
static double pass_time(struct snapshot *now) {
    double awake = PICK(0.25, 1, 1, 1, 5, 10, 29.75, 30, 60, 300), asleep = one_in(12) ? PICK(10, 60, 3600, 30000) : 0;
    now->monotonic += awake;
    now->boottime += awake + asleep;
    now->wall_ms += (int64_t)(1000 * (awake + asleep));
    if (one_in(60)) now->wall_ms += ((int64_t)random_below(2 * DAY) - DAY) * 1000;
    return awake;
}

/* At a limit of the window and just before it, or back inside, now and then. */
static void move_to_the_window(struct snapshot *now, const struct policy *p) {
    int64_t day = now->wall_ms / (1000ll * DAY) * (1000ll * DAY);
    if (one_in(30)) now->wall_ms = day + (one_in(2) ? p->window.from : p->window.until) * 60000ll - random_below(2);
    if (one_in(10)) now->wall_ms = day + p->window.from * 60000ll;
}

struct counts {
    int verdict[VERDICT_STOP + 1], reason[REASON_COUNT], harder;
};

static void compare(const struct story *s, const struct decision *told, struct policy_state before,
                    const struct policy_state *after, int walk) {
    struct condition_view views[2][CONDITION_COUNT];
    struct decision wanted;
    judge(s, &wanted);
    if (told->verdict != wanted.verdict || told->reason != wanted.reason || told->threads != wanted.threads ||
        told->duty != wanted.duty || !(told->wait_s == wanted.wait_s || (isnan(told->wait_s) && isnan(wanted.wait_s))))
        fail_msg("walk %d, look %d: %s for %s, %d threads, %g of the time, waits %g; wanted %s for %s, %d, %g, %g",
                 walk, s->last, verdict_name(told->verdict), reason_name(told->reason), told->threads, told->duty,
                 told->wait_s, verdict_name(wanted.verdict), reason_name(wanted.reason), wanted.threads, wanted.duty,
                 wanted.wait_s);
    policy_explain(&s->policy, at(s), &s->spent, &before, views[0]);
    policy_explain(&s->policy, at(s), &s->spent, after, views[1]);
    struct condition_view *worst = &views[0][0];
    for (int i = 0; i < CONDITION_COUNT; i++) {
        struct condition_view *view = &views[0][i];
        assert_memory_equal(view->sensed, views[1][i].sensed, sizeof view->sensed);
        assert_memory_equal(view->wanted, views[1][i].wanted, sizeof view->wanted);
        assert_true(view->verdict == views[1][i].verdict && view->reason == views[1][i].reason);
        if (view->verdict > worst->verdict || (view->verdict == worst->verdict && view->reason < worst->reason))
            worst = view;
    }
    assert_true(worst->verdict == told->verdict && worst->reason == told->reason);
}

static void walk_once(struct story *s, int walk, struct counts *counts) {
    struct policy_state state = {0};
    struct snapshot now = {.monotonic = random_below(1000),
                           .wall_ms = 1767225600000 + random_below(DAY) * 1000ll,
                           .power = {POWER_MAINS, 1, 90, 0},
                           .battery_watts = NAN,
                           .cpus = NAN,
                           .idle_s = 1000,
                           .celsius = 30,
                           .load = NAN,
                           .pressure_io = NAN,
                           .memory_available = 5000};
    now.boottime = now.monotonic + random_below(1000);
    any_policy(&s->policy);
    if (!one_in(8)) now.wall_ms = 1767225600000 + s->policy.window.from * 60000ll;
    s->spent = (struct spent){0};
    for (s->last = 0; s->last < LOOKS; s->last++) {
        struct policy_state before = state;
        struct decision told;
        any_spending(&s->spent, pass_time(&now));
        any_device(&now, &s->policy);
        move_to_the_window(&now, &s->policy);
        s->look[s->last] = now;
        policy_decide(&s->policy, &now, &s->spent, &state, &told);
        compare(s, &told, before, &state, walk);
        counts->verdict[told.verdict]++;
        counts->reason[told.reason]++;
        counts->harder += told.verdict == VERDICT_THROTTLE && goes_on(s);
    }
}

static void test_walks(void **state) {
    static struct story story;
    struct counts counts = {0};
    (void)state;
    setenv("TZ", "UTC0", 1);
    tzset();
    seed = 2026;
    for (int walk = 0; walk < WALKS; walk++) walk_once(&story, walk, &counts);
    for (int i = 0; i <= VERDICT_STOP; i++)
        if (counts.verdict[i] < 1000) fail_msg("only %d times %s", counts.verdict[i], verdict_name((enum verdict)i));
    for (int i = 0; i < REASON_COUNT; i++)
        if (i != REASON_STALE && counts.reason[i] < 100)
            fail_msg("only %d times %s", counts.reason[i], reason_name((enum reason)i));
    assert_true(counts.harder > 50);
}

/* Every reason that a policy can give has its row. */
static void test_table(void **state) {
    (void)state;
    assert_int_equal(ROWS, REASON_COUNT - 2);
    for (int i = 1; i < ROWS; i++) assert_true(table[i - 1].reason < table[i].reason);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_walks), cmocka_unit_test(test_table)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
