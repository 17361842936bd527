/* What work costs: predictions come to what is true, follow it when it changes, and no nonsense reaches them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "core/base/random.h"
#include "energy/ledger.h"

static void assert_near(double seen, double wanted, double share) {
    if (!(fabs(seen - wanted) <= share * wanted)) fail_msg("%.9g in place of %.9g", seen, wanted);
}

static void test_unknown(void **state) {
    (void)state;
    struct cost cost = {0};
    assert_true(isnan(cost_seconds(&cost, 5)) && isnan(cost_joules(&cost, 5)));
    cost_observe(&cost, 100, 2, 30);
    assert_near(cost_seconds(&cost, 1000), 20, 1e-12);
    assert_near(cost_joules(&cost, 1000), 300, 1e-12);
    assert_true(cost_seconds(&cost, 0) == 0 && cost_joules(&cost, 0) == 0);
    static const double no_units[] = {-1, NAN, INFINITY};
    for (int i = 0; i < 3; i++) assert_true(isnan(cost_seconds(&cost, no_units[i])));
    assert_true(cost.seconds_spread == 0.25 && cost.watts_spread == 0.25);
    cost.watts = NAN; /* as a store may give it back */
    assert_true(isnan(cost_seconds(&cost, 5)) && isnan(cost_joules(&cost, 5)));
    cost_observe(&cost, 10, 1, 20);
    assert_near(cost_joules(&cost, 10), 20, 1e-12);
}

/* Units that take 0.02 s within 10 % and draw 15 W within 20 %. */
static void observe(struct cost *cost, int n, double scale) {
    for (int i = 0; i < n; i++) {
        double units = 50 + 900 * (double)random_uniform(1, (uint64_t)i);
        double seconds = units * 0.02 * scale * (0.9 + 0.2 * (double)random_uniform(2, (uint64_t)i));
        cost_observe(cost, units, seconds, seconds * 15 * scale * (0.8 + 0.4 * (double)random_uniform(3, (uint64_t)i)));
    }
}

static void test_converges(void **state) {
    (void)state;
    struct cost cost = {0};
    cost_observe(&cost, 100, 20, 2000); /* ten times too slow, and too hungry */
    observe(&cost, 400, 1);
    assert_near(cost_seconds(&cost, 1e6), 20000, 0.02);
    assert_near(cost_joules(&cost, 1e6), 300000, 0.03);
    assert_near(cost.seconds_spread, 0.2 / sqrt(12), 0.5);
    assert_near(cost.watts_spread, 0.4 / sqrt(12), 0.5);
    assert_true(cost.weight <= COST_HALF_S / M_LN2);
    observe(&cost, 400, 2); /* the device was slowed down: half of what was known is forgotten each 20 minutes */
    assert_near(cost_seconds(&cost, 1e6), 40000, 0.06);
    assert_near(cost_joules(&cost, 1e6), 1200000, 0.12);
}

static void test_halves(void **state) {
    (void)state;
    struct cost cost = {0};
    for (int i = 0; i < 100; i++) cost_observe(&cost, 1, COST_HALF_S, 10.0 * COST_HALF_S);
    cost_observe(&cost, 1, COST_HALF_S, 30.0 * COST_HALF_S);
    assert_near(cost.watts, 20, 1e-9);
    assert_near(cost.weight, COST_HALF_S / M_LN2, 1e-9);
}

/* However long the pieces are in which a run is told. */
static void test_pieces(void **state) {
    (void)state;
    struct cost whole = {0}, pieces = {0};
    cost_observe(&whole, 10, 5, 50), cost_observe(&pieces, 10, 5, 50);
    cost_observe(&whole, 9000, 1800, 36000);
    for (int i = 0; i < 3600; i++) cost_observe(&pieces, 2.5, 0.5, 10);
    assert_near(pieces.seconds_per_unit, whole.seconds_per_unit, 1e-9);
    assert_near(pieces.watts, whole.watts, 1e-9);
    assert_near(pieces.weight, whole.weight, 1e-9);
}

static void test_nonsense(void **state) {
    (void)state;
    struct cost cost = {0}, empty = {0}, before;
    static const double nonsense[] = {0, -1, NAN, INFINITY, -INFINITY};
    observe(&cost, 20, 1);
    before = cost;
    for (int i = 0; i < 5; i++) {
        struct cost *const both[] = {&cost, &empty};
        for (int j = 0; j < 2; j++) {
            cost_observe(both[j], nonsense[i], 1, 1);
            cost_observe(both[j], 1, nonsense[i], 1);
            cost_observe(both[j], 1, 1, nonsense[i]);
            cost_observe(both[j], 1e-300, 1e300, 1); /* no such thing as so many seconds a unit */
            cost_observe(both[j], 1, 1e-300, 1e300);
        }
    }
    assert_memory_equal(&cost, &before, sizeof cost);
    assert_true(isnan(cost_seconds(&empty, 1)));
    cost_observe(&cost, 1, 1e-9, 1e-300); /* odd, but an amount: it may pull by its own weight only */
    assert_near(cost.seconds_per_unit, before.seconds_per_unit, 1e-3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unknown), cmocka_unit_test(test_converges), cmocka_unit_test(test_halves),
        cmocka_unit_test(test_pieces), cmocka_unit_test(test_nonsense),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
