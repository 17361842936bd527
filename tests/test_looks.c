/* Where a training is looked at, and which look is the best. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>

#include "job/looks.h"
#include "tests/expect.h"

static struct plan plan_of(size_t rows, double epochs, size_t batch) {
    struct plan plan = {.n_train = rows, .n_judge = 2};
    settings_default(&plan.settings);
    plan.settings.epochs = epochs;
    plan.settings.train.batch = batch;
    return plan;
}

static void test_parts(void **state) {
    static const struct {
        size_t rows;
        double epochs;
        size_t batch, looks;
    } table[] = {{40, 0.5, 4, 1}, {40, 1, 4, 1}, {40, 1.25, 4, 2}, {40, 2, 4, 2},   {40, 3, 4, 3},
                 {40, 9, 4, 4},   {4, 3, 4, 3},  {4, 3, 5, 3},     {1, 2, 8, 1},    {5, 3, 8, 2},
                 {1, 100, 1, 4},  {40, 1.0 + 1e-12, 4, 1}};
    (void)state;
    for (size_t k = 0; k < sizeof table / sizeof *table; k++) {
        struct plan plan = plan_of(table[k].rows, table[k].epochs, table[k].batch);
        struct looks looks;
        size_t steps = plan_steps(&plan, plan.n_train), at = 0, from, to;
        OK(looks_create(&looks, &plan, &err));
        if (looks.n != table[k].looks) fail_msg("%zu: %zu looks", k, looks.n);
        for (size_t look = 0; look < looks.n; look++) {
            looks_part(&looks, look, steps, &from, &to);
            assert_true(from == at && to > from);
            at = to;
        }
        assert_int_equal(at, steps);
        looks_free(&looks);
    }
}

/* A fold is shorter than the whole: none of its parts may be empty. */
static void test_parts_of_folds(void **state) {
    int fold[9] = {0, 0, 0, 0, 0, 0, 0, 1, 2};
    struct plan plan = plan_of(9, 3, 4);
    struct looks looks;
    (void)state;
    plan.folds = 3;
    plan.fold = fold;
    OK(looks_create(&looks, &plan, &err)); /* the first fold trains on two rows, six in all: two steps */
    assert_int_equal(looks.n, 2);
    looks_free(&looks);
}

/* looks: sums of two rows each. */
static struct looks looks_of(const double *sums, size_t n) {
    struct plan plan = plan_of(100, (double)n, 4);
    struct looks looks;
    OK(looks_create(&looks, &plan, &err));
    assert_int_equal(looks.n, n);
    assert_int_equal(looks.best, n - 1);
    for (size_t i = 0; i < n; i++) {
        looks.nll[2 * i] = sums[i] - 1;
        looks.nll[2 * i + 1] = 1;
    }
    return looks;
}

static void test_stops(void **state) {
    static const struct {
        double sums[4];
        size_t taken, best, chosen; /* the look that ends it, 4: none; the best then, and of all */
    } table[] = {{{9, 8, 7, 6}, 4, 3, 3}, {{9, 8, 8, 6}, 2, 1, 3},   {{9, 9.5, 7, 6}, 1, 0, 3},
                 {{9, 8, 7, 7}, 3, 2, 2}, {{9, NAN, 7, 6}, 1, 0, 3}, {{NAN, 8, 7, 9}, 3, 2, 2},
                 {{NAN, NAN, NAN, NAN}, 1, 0, 0}, {{INFINITY, 3, INFINITY, 3}, 2, 1, 1}};
    (void)state;
    for (size_t k = 0; k < sizeof table / sizeof *table; k++) {
        struct looks looks = looks_of(table[k].sums, 4);
        size_t look = 0;
        while (look < 4 && looks_take(&looks, look)) look++;
        if (look != table[k].taken || looks.best != table[k].best)
            fail_msg("%zu: ended at %zu, best %zu", k, look, looks.best);
        looks_choose(&looks);
        if (looks.best != table[k].chosen) fail_msg("%zu: chose %zu", k, looks.best);
        looks_reset(&looks);
        assert_true(looks.best == 3 && looks.nll[0] == 0 && looks.nll[7] == 0);
        looks_free(&looks);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_parts_of_folds),
        cmocka_unit_test(test_stops),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
