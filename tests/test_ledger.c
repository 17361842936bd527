/* The ledger against a simulated truth: packages with powers and counters, a process that uses CPU time, suspends,
 * wraps, counters that begin anew, packages that go and come back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/base/random.h"
#include "energy/ledger.h"

#define RANGE_SMALL 65532610987u
#define RANGE_LARGE 262143328850u

/* ---- the world ---- */

struct world {
    uint64_t key, rolled;
    double monotonic, boottime, cpu;
    double cpu_rate, until; /* CPU seconds a second, until this monotonic time */
    int n;
    struct {
        uint64_t range;
        double uj;         /* since it began to count, never wrapped */
        double watts;
        int away;          /* cannot be read */
    } package[4];
    struct snapshot polled; /* sensors read counters at most once a second */
    double joules, slept;  /* the truth: awake; while suspended */
    double watts_per_cpu;  /* 0: the power has nothing to do with our CPU time */
};

static double roll(struct world *w, double low, double high) {
    return low + (high - low) * ((double)(random_u64(w->key, w->rolled++) >> 11) * 0x1p-53);
}
static int one_in(struct world *w, double n) { return roll(w, 0, n) < 1; }

static void make_world(struct world *w, uint64_t key, int n, double watts_per_cpu) {
    *w = (struct world){.key = key, .n = n, .monotonic = 1000, .boottime = 5000};
    w->polled.monotonic = -10;
    w->watts_per_cpu = watts_per_cpu;
    for (int i = 0; i < n; i++) {
        w->package[i].range = one_in(w, 2) ? RANGE_SMALL : RANGE_LARGE;
        w->package[i].uj = floor(roll(w, 0, (double)w->package[i].range));
    }
}

/* Other powers, for a while. */
static void change_power(struct world *w) {
    w->until = w->monotonic + roll(w, 0.05, 30);
    w->cpu_rate = roll(w, 0.2, 8);
    for (int i = 0; i < w->n; i++)
        w->package[i].watts = w->watts_per_cpu > 0 ? w->cpu_rate * w->watts_per_cpu / w->n : roll(w, 2, 120);
}

static void count(struct world *w, double seconds, int awake, double watts) {
    for (int i = 0; i < w->n; i++) {
        double joules = (awake ? w->package[i].watts : watts) * seconds;
        w->package[i].uj += joules * 1e6;
        *(awake ? &w->joules : &w->slept) += joules;
    }
}

static void work(struct world *w, double seconds) {
    for (double end = w->monotonic + seconds; w->monotonic < end;) {
        if (w->monotonic >= w->until) change_power(w);
        double step = fmin(end, w->until) - w->monotonic;
        count(w, step, 1, 0);
        w->cpu += step * w->cpu_rate;
        w->boottime += step;
        w->monotonic = step < 1e-9 ? end : w->monotonic + step;
    }
}

enum suspend { STANDS, GOES_ON, ANEW, SUSPENDS };
static void suspend(struct world *w, double seconds, enum suspend kind, double watts) {
    w->boottime += seconds;
    if (kind == GOES_ON) count(w, seconds, 0, watts);
    for (int i = 0; kind == ANEW && i < w->n; i++) w->package[i].uj = 0;
}

static void poll(struct world *w) {
    w->polled.monotonic = w->monotonic;
    w->polled.n_counters = 0;
    for (int i = 0; i < w->n; i++) {
        if (w->package[i].away) continue;
        struct energy_counter *counter = &w->polled.counter[w->polled.n_counters++];
        counter->uj = (uint64_t)fmod(w->package[i].uj, (double)w->package[i].range + 1);
        counter->range = w->package[i].range;
        snprintf(counter->name, sizeof counter->name, "package-%d", i);
    }
}

static void look(struct world *w, struct snapshot *out) {
    if (w->monotonic - w->polled.monotonic >= 1) poll(w);
    *out = w->polled;
    out->monotonic = w->monotonic;
    out->boottime = w->boottime;
    out->cpu = w->cpu;
    out->battery_watts = NAN;
}

/* Looks, and sees that no more than one label has grown, and none has shrunk. */
static void advance(struct ledger *ledger, struct world *w) {
    struct joules before = ledger->joules;
    struct snapshot now;
    look(w, &now);
    ledger_advance(ledger, &now);
    double measured = ledger->joules.measured - before.measured, modelled = ledger->joules.modelled - before.modelled;
    double battery = ledger->joules.battery - before.battery;
    assert_true(measured >= 0 && modelled >= 0 && battery >= 0);
    assert_true((measured > 0) + (modelled > 0) + (battery > 0) <= 1);
}

static double sum(const struct ledger *ledger) {
    return ledger->joules.measured + ledger->joules.battery + ledger->joules.modelled;
}

static void assert_near(double seen, double wanted, double share, const char *what) {
    if (!(fabs(seen - wanted) <= share * fabs(wanted)))
        fail_msg("%s: %.9g in place of %.9g (%.4f %%)", what, seen, wanted, 100 * (seen / wanted - 1));
}

/* ---- wraps ---- */

static void test_wraps(void **state) {
    (void)state;
    double worst = 0;
    int64_t marked = 0, looks = 0;
    for (uint64_t key = 1; key <= 60; key++) {
        struct world w;
        struct ledger ledger;
        make_world(&w, key, 1 + (int)(key % 4), 0);
        ledger_begin(&ledger, 10);
        advance(&ledger, &w);
        double cpu = w.cpu, began = w.monotonic;
        for (int i = 0; i < 1500; i++, looks++) {
            work(&w, one_in(&w, 3) ? roll(&w, 0.2, 62) : roll(&w, 0.2, 3));
            advance(&ledger, &w);
        }
        work(&w, 1.5); /* what the sensors held back comes with their next poll */
        advance(&ledger, &w);
        assert_near(sum(&ledger), w.joules, 1e-3, "all joules");
        assert_near(ledger.cpu_s, w.cpu - cpu, 1e-9, "CPU seconds");
        assert_near(ledger.seconds, w.monotonic - began, 1e-9, "seconds");
        worst = fmax(worst, fabs(sum(&ledger) / w.joules - 1));
        marked += ledger.marked;
    }
    print_message("worst error %.5f %%, %d of %d gaps marked\n", 100 * worst, (int)marked, (int)looks);
    assert_true(marked < looks / 1000);
}

/* ---- everything that may happen ---- */

struct happened {
    double slept;   /* joules of suspends that a counter went on through */
    int64_t suspends, resets, absences, over;
};

/* Not where it looks to anybody like a wrap, or like a counter that just went on: within what the package may use of
 * either end of its range. */
static void begin_anew(struct world *w, struct happened *h) {
    int i = (int)roll(w, 0, w->n);
    double shown = fmod(w->package[i].uj, (double)w->package[i].range + 1), margin = 150e6 * 72;
    if (shown < margin || (double)w->package[i].range - shown < margin) return;
    w->package[i].uj = 0;
    h->resets++;
}

static void maybe_suspend(struct world *w, struct happened *h) {
    enum suspend kind = (enum suspend)roll(w, 0, SUSPENDS);
    double before = w->slept;
    suspend(w, one_in(w, 2) ? roll(w, 1, 60) : roll(w, 60, 30000), kind, roll(w, 0.2, 3));
    h->slept += w->slept - before;
    h->suspends++;
}

static void gap(struct world *w, double seconds, double often, struct happened *h) {
    double part = roll(w, 0, seconds);
    work(w, part);
    if (one_in(w, often)) maybe_suspend(w, h);
    if (one_in(w, 2 * often)) begin_anew(w, h);
    work(w, seconds - part);
    for (int i = 0; i < w->n; i++) {
        if (w->package[i].away ? one_in(w, 2) : one_in(w, 10 * often)) {
            w->package[i].away = !w->package[i].away;
            h->absences += w->package[i].away;
        }
    }
}

/* A night of looks about once a second: the power has nothing to do with the model, and still the sum of all labels is
 * within 0.1 % of what was used while awake. */
static void test_nights(void **state) {
    (void)state;
    double worst = 0;
    struct happened all = {0};
    int64_t marked = 0;
    for (uint64_t key = 1; key <= 20; key++) {
        struct world w;
        struct ledger ledger;
        struct happened h = {0};
        make_world(&w, 1000 + key, 1 + (int)(key % 2), 0);
        ledger_begin(&ledger, 10);
        advance(&ledger, &w);
        while (w.monotonic < 1000 + 8 * 3600) {
            gap(&w, roll(&w, 0.2, 2), 1500, &h);
            advance(&ledger, &w);
        }
        assert_true(h.suspends > 0 && ledger.marked >= h.resets);
        assert_near(sum(&ledger), w.joules, 1e-3, "all joules of a night");
        worst = fmax(worst, fabs(sum(&ledger) / w.joules - 1));
        all.suspends += h.suspends, all.resets += h.resets, all.absences += h.absences, marked += ledger.marked;
    }
    print_message("20 nights, %d suspends, %d resets, %d absences, %d marked: worst error %.4f %%\n", (int)all.suspends,
                  (int)all.resets, (int)all.absences, (int)marked, 100 * worst);
}

/* Looks up to 70 s apart, with something happening in every tenth gap. The model is right here, so that the error is of
 * what was wrongly believed. What a counter that went on through a suspend says of the sleep may be in the gap or not;
 * nothing between the two is right. */
static void test_all_gaps(void **state) {
    (void)state;
    double worst = 0;
    struct happened all = {0};
    int64_t marked = 0;
    for (uint64_t key = 1; key <= 40; key++) {
        struct world w;
        struct ledger ledger;
        struct happened h = {0};
        double off = 0, before[3] = {0}; /* joules that were charged, used awake, used asleep when the last gap closed */
        make_world(&w, 2000 + key, 1 + (int)(key % 4), 12);
        ledger_begin(&ledger, 12);
        advance(&ledger, &w);
        for (int i = 0; i < 3000; i++) {
            double seconds = roll(&w, 0.2, 70);
            gap(&w, seconds, 20, &h);
            h.over += seconds > 65.6;
            advance(&ledger, &w);
            if (sum(&ledger) == before[0]) continue;
            double charged = sum(&ledger) - before[0], awake = w.joules - before[1], asleep = w.slept - before[2];
            off += fmin(fabs(charged - awake), fabs(charged - awake - asleep));
            before[0] = sum(&ledger), before[1] = w.joules, before[2] = w.slept;
        }
        assert_near(w.joules + off, w.joules, 1e-3, "all gaps");
        assert_near(ledger.joules.modelled, 12 * ledger.modelled_cpu_s, 1e-3, "modelled joules");
        worst = fmax(worst, off / w.joules);
        all.suspends += h.suspends, all.resets += h.resets, all.absences += h.absences, all.over += h.over;
        marked += ledger.marked;
    }
    print_message("%d suspends, %d resets, %d absences, %d too long, %d marked: worst error %.4f %%\n",
                  (int)all.suspends, (int)all.resets, (int)all.absences, (int)all.over, (int)marked, 100 * worst);
}

/* ---- one thing at a time ---- */

static struct snapshot at(double seconds, double cpu) {
    return (struct snapshot){.monotonic = 100 + seconds, .boottime = 700 + seconds, .cpu = cpu, .battery_watts = NAN};
}
static struct snapshot with(struct snapshot now, const char *name, uint64_t uj) {
    struct energy_counter *counter = &now.counter[now.n_counters++];
    snprintf(counter->name, sizeof counter->name, "%s", name);
    counter->uj = uj;
    counter->range = RANGE_LARGE;
    return now;
}
static struct snapshot counting(double seconds, double cpu, uint64_t uj) {
    return with(at(seconds, cpu), "package-0", uj);
}
static struct snapshot discharging(double seconds, double cpu, double watts) {
    struct snapshot now = at(seconds, cpu);
    now.battery_watts = watts;
    return now;
}
static void tell(struct ledger *ledger, struct snapshot now) { ledger_advance(ledger, &now); }

static void holds(const struct ledger *ledger, double measured, double battery, double modelled_cpu_s, int64_t marked) {
    assert_float_equal(ledger->joules.measured, measured, 1e-9);
    assert_float_equal(ledger->joules.battery, battery, 1e-9);
    assert_float_equal(ledger->modelled_cpu_s, modelled_cpu_s, 1e-9);
    assert_int_equal(ledger->marked, marked);
}

static void test_no_sensor(void **state) {
    (void)state;
    struct ledger ledger;
    ledger_begin(&ledger, 5);
    holds(&ledger, 0, 0, 0, 0);
    tell(&ledger, at(0, 50)); /* what was used before is not ours */
    holds(&ledger, 0, 0, 0, 0);
    tell(&ledger, at(10, 53));
    holds(&ledger, 0, 0, 3, 0);
    tell(&ledger, at(10, 99)); /* not newer */
    tell(&ledger, at(9, 99));
    tell(&ledger, at(NAN, 99));
    holds(&ledger, 0, 0, 3, 0);
    tell(&ledger, at(20, 52)); /* a CPU clock does not go back */
    tell(&ledger, at(30, INFINITY));
    holds(&ledger, 0, 0, 3, 0);
    assert_float_equal(ledger.seconds, 30, 1e-9);
    assert_float_equal(ledger.cpu_s, 3, 1e-9);
    assert_float_equal(ledger.joules.modelled, 15, 1e-9);
    static const double no_amounts[] = {0, -1, NAN, INFINITY};
    for (int i = 0; i < 4; i++) {
        ledger_begin(&ledger, no_amounts[i]);
        assert_true(ledger.watts_per_cpu == LEDGER_WATTS_PER_CPU);
    }
}

static void test_battery(void **state) {
    (void)state;
    struct ledger ledger;
    ledger_begin(&ledger, 5);
    tell(&ledger, discharging(0, 0, 10));
    tell(&ledger, discharging(10, 1, 20));
    holds(&ledger, 0, 150, 0, 0);
    tell(&ledger, discharging(12, 2, NAN)); /* on the charger at one end: no trapezoid */
    holds(&ledger, 0, 150, 1, 0);
    tell(&ledger, discharging(13, 3, 20));
    holds(&ledger, 0, 150, 2, 0);
    tell(&ledger, discharging(133.5, 4, 20)); /* too far apart */
    holds(&ledger, 0, 150, 3, 1);
    struct snapshot woken = discharging(140, 5, 20);
    woken.boottime += 60;
    tell(&ledger, woken);
    holds(&ledger, 0, 150, 4, 2);
    struct snapshot both = discharging(150, 6, 20);
    both.boottime += 60;
    tell(&ledger, with(both, "package-0", 1000000)); /* a counter has come, and goes before the battery from here on */
    holds(&ledger, 0, 150, 5, 3);
    both.monotonic += 10, both.boottime += 10;
    tell(&ledger, with(both, "package-0", 41000000));
    holds(&ledger, 40, 150, 5, 3);
}

/* A counter that stands still counts nothing, and what it then jumps by was modelled already. */
static void test_a_counter_that_stands(void **state) {
    (void)state;
    struct ledger ledger;
    ledger_begin(&ledger, 5);
    tell(&ledger, counting(0, 0, 7000000));
    tell(&ledger, counting(1, 0.25, 17000000));
    holds(&ledger, 10, 0, 0, 0);
    tell(&ledger, counting(1.5, 0.5, 17000000)); /* was not polled */
    tell(&ledger, counting(1.9, 0.75, 17000000));
    holds(&ledger, 10, 0, 0, 0);
    tell(&ledger, counting(2.1, 1, 27000000));
    holds(&ledger, 20, 0, 0, 0);
    for (int i = 1; i <= 10; i++) tell(&ledger, counting(2.1 + i, 1 + i, 27000000));
    holds(&ledger, 20, 0, 10, 5);
    tell(&ledger, counting(13, 12, 130000000));
    holds(&ledger, 20, 0, 11, 6);
    tell(&ledger, counting(14, 13, 140000000));
    holds(&ledger, 30, 0, 11, 6);
}

static void test_packages(void **state) {
    (void)state;
    struct ledger ledger;
    ledger_begin(&ledger, 5);
    tell(&ledger, with(counting(0, 0, 0), "package-1", 5000000));
    tell(&ledger, with(with(at(1, 0), "package-1", 25000000), "package-0", 10000000)); /* in any order */
    holds(&ledger, 30, 0, 0, 0);
    tell(&ledger, counting(2, 1, 20000000)); /* one is away: nothing of the other is taken for all */
    tell(&ledger, counting(3, 2, 30000000));
    holds(&ledger, 30, 0, 2, 2);
    tell(&ledger, with(counting(4, 3, 40000000), "package-1", 60000000)); /* back */
    holds(&ledger, 30, 0, 3, 3);
    tell(&ledger, with(counting(5, 4, 50000000), "package-1", 80000000));
    holds(&ledger, 60, 0, 3, 3);
    for (int i = 1; i <= 13; i++) tell(&ledger, counting(5 + 50 * i, 4, 50000000 + 500000000u * (uint64_t)i));
    holds(&ledger, 60, 0, 3, 16);
    tell(&ledger, counting(705, 4, 7050000000u)); /* gone for good */
    holds(&ledger, 560, 0, 3, 16);
    struct snapshot twice = with(counting(706, 5, 7060000000u), "package-0", 7060000000u);
    tell(&ledger, twice);
    holds(&ledger, 560, 0, 4, 17);
    for (int i = 0; i < 3; i++) { /* none of these can be */
        struct snapshot odd = counting(707 + i, 6 + i, 7070000000u);
        struct energy_counter *counter = &odd.counter[0];
        if (i == 0) counter->range = 0;
        if (i == 1) counter->uj = counter->range + 1;
        if (i == 2) memset(counter->name, 'x', sizeof counter->name);
        tell(&ledger, odd);
        holds(&ledger, 560, 0, 5 + i, 18 + i);
    }
    tell(&ledger, counting(711, 9, 7080000000u));
    struct snapshot other = counting(712, 10, 7090000000u);
    other.counter[0].range = RANGE_SMALL; /* not the counter that it was */
    tell(&ledger, other);
    holds(&ledger, 560, 0, 9, 22);
}

static void test_counters_that_go_back(void **state) {
    (void)state;
    struct ledger ledger;
    ledger_begin(&ledger, 5);
    tell(&ledger, counting(0, 0, RANGE_LARGE - 30000000u));
    tell(&ledger, counting(1, 1, RANGE_LARGE - 9999999u));
    tell(&ledger, counting(2, 2, 10000000)); /* over the wrap */
    holds(&ledger, 40.000001, 0, 0, 0);
    ledger_begin(&ledger, 5);
    tell(&ledger, counting(0, 0, 200000000000u));
    tell(&ledger, counting(1, 0, 200020000000u));
    tell(&ledger, counting(2, 1, 10000000)); /* 62 kW is no wrap */
    holds(&ledger, 20, 0, 1, 1);
    tell(&ledger, counting(3, 2, 30000000));
    holds(&ledger, 40, 0, 1, 1);
    tell(&ledger, counting(4, 3, 2030000000)); /* nor is 2 kW a package */
    holds(&ledger, 40, 0, 2, 2);
    tell(&ledger, counting(4 + 262, 4, 12030000000)); /* just less than a wrap at 1000 W */
    holds(&ledger, 10040, 0, 2, 2);
    tell(&ledger, counting(266 + 263, 5, 22030000000)); /* just more */
    holds(&ledger, 10040, 0, 3, 3);
}

static void slept_through(double asleep, uint64_t uj, int believed) {
    struct ledger ledger;
    ledger_begin(&ledger, 5);
    tell(&ledger, counting(0, 0, 1000000000));
    tell(&ledger, counting(10, 1, 1200000000));
    struct snapshot now = counting(20, 2, uj);
    now.boottime += asleep;
    tell(&ledger, now);
    if (believed)
        holds(&ledger, 200 + (double)(uj - 1200000000) * 1e-6, 0, 0, 0);
    else
        holds(&ledger, 200, 0, 1, 1);
}
static void test_suspends(void **state) {
    (void)state;
    slept_through(3600, 1400000000, 1);  /* stood still: 20 W as ever */
    slept_through(3600, 1450000000, 1);
    slept_through(3600, 5000000000, 0);  /* went on for an hour: that was not work */
    slept_through(3600, 50000000, 0);    /* began anew */
    slept_through(3600, 1230000000, 0);  /* began anew and has passed where it was */
    slept_through(0.1, 5000000000, 1);   /* no suspend, but a burst */
    struct ledger ledger;
    ledger_begin(&ledger, 5);
    tell(&ledger, counting(0, 0, 1000000000));
    struct snapshot now = counting(10, 2, 1200000000);
    now.boottime += 60;
    tell(&ledger, now); /* what is usual is not known yet */
    holds(&ledger, 0, 0, 2, 1);
}

static void test_the_gap_of_a_kill(void **state) {
    (void)state;
    struct ledger ledger;
    ledger_begin(&ledger, 4);
    ledger_charge_gap(&ledger, 30);
    holds(&ledger, 0, 0, 30, 1);
    assert_true(ledger.joules.modelled == 120 && ledger.cpu_s == 30 && ledger.modelled_cpu_s == 30 && ledger.seconds == 0);
    static const double no_amounts[] = {0, -5, NAN, INFINITY};
    for (int i = 0; i < 4; i++) ledger_charge_gap(&ledger, no_amounts[i]);
    holds(&ledger, 0, 0, 30, 1);
    assert_true(ledger.cpu_s == 30);
}

/* ---- learning ---- */

/* 20 minutes at 8 W a CPU second, in every twentieth second ten times as much: others work. */
static double learned(double first, double cpu_share, int outliers) {
    struct ledger ledger;
    uint64_t uj = 0;
    ledger_begin(&ledger, first);
    for (int i = 0; i <= 1200; i++) {
        tell(&ledger, counting(i, i * cpu_share, uj));
        double watts = 8 * cpu_share * (0.8 + 0.4 * (double)random_uniform(5, (uint64_t)i));
        uj += (uint64_t)(watts * (outliers && i % 20 == 3 ? 10 : 1) * 1e6);
    }
    assert_int_equal(ledger.marked, 0);
    return ledger.watts_per_cpu;
}
static void test_learning(void **state) {
    (void)state;
    assert_near(learned(8, 4, 0), 8, 0.02, "learned from a good guess");
    assert_near(learned(1, 4, 0), 8, 0.02, "learned from a low guess");
    assert_near(learned(80, 4, 0), 8, 0.02, "learned from a high guess");
    assert_near(learned(10, 4, 1), 8, 0.12, "learned beside others");
    assert_true(learned(3, 0.3, 0) == 3); /* mostly others: it says nothing of us */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wraps),
        cmocka_unit_test(test_nights),
        cmocka_unit_test(test_all_gaps),
        cmocka_unit_test(test_no_sensor),
        cmocka_unit_test(test_battery),
        cmocka_unit_test(test_a_counter_that_stands),
        cmocka_unit_test(test_packages),
        cmocka_unit_test(test_counters_that_go_back),
        cmocka_unit_test(test_suspends),
        cmocka_unit_test(test_the_gap_of_a_kill),
        cmocka_unit_test(test_learning),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
