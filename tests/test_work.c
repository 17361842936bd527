/* What pieces of a run are predicted to cost, and how the speed is learned. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>

#include "job/work.h"
#include "tests/tiny_base.h"

static int close_to(double a, double b) { return fabs(a - b) <= 1e-12 * fabs(b); }

/* Rows by hand: two of 10 and 20 positions in one micro-batch, one of 25 in the next. */
static void test_rows(void **state) {
    (void)state;
    struct example items[] = {{.n = 11, .n_supervised = 4}, {.n = 21, .n_supervised = 9}, {.n = 26, .n_supervised = 1}};
    struct example_set set = {.items = items, .n = 3};
    static const size_t rows[] = {0, 1, 2};
    struct work work = {.supervised = 0.5, .pair = 0.01, .batch = 7};
    double pairs = 10 * 11 / 2 + 20 * 21 / 2 + 25 * 26 / 2;
    assert_true(close_to(work_of_rows(&work, &set, rows, 3, 32), 55 + 0.5 * 14 + 0.01 * pairs + 2 * 7));
    assert_true(close_to(work_of_rows(&work, &set, rows, 3, 512), 55 + 0.5 * 14 + 0.01 * pairs + 7));
    assert_true(work_of_rows(&work, &set, rows, 0, 32) == 0);
}

/* Shares of one token through the layers, from the shapes. */
static void test_shares(void **state) {
    (void)state;
    struct tiny_base base;
    tiny_base_make(&base, BLOCK_Q8_0, 64, ROPE_HALVES);
    /* q and output 32 x 32, k and v 16 x 32, three of 64 x 32, in each of two layers */
    double weights = 2.0 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32);
    struct work judging = work_of_judging(&base.model), training = work_of_training(&base.model);
    assert_true(close_to(judging.supervised, 64 * 32 / weights));
    assert_true(judging.pair > 2 * 2 * 32 / weights && judging.pair < 8 * 2 * 32 / weights);
    assert_true(training.supervised < judging.supervised && training.pair > judging.pair);
    tiny_base_free(&base);
}

static void test_pace(void **state) {
    (void)state;
    struct pace pace = {0};
    assert_true(pace_per_second(&pace) == 0);
    pace_assume(&pace, 40);
    assert_true(pace_per_second(&pace) == 40);
    pace_measure(&pace, 0, 1); /* says nothing */
    pace_measure(&pace, 1, 0);
    assert_true(pace_per_second(&pace) == 40);
    pace_measure(&pace, 100, 10); /* replaces the belief */
    assert_true(close_to(pace_per_second(&pace), 10));
    pace_measure(&pace, 100, 5); /* replaces the first one */
    assert_true(close_to(pace_per_second(&pace), 20));
    pace_measure(&pace, 300, 10); /* a piece counts by its size */
    assert_true(pace_per_second(&pace) > 26 && pace_per_second(&pace) < 27);
    for (int i = 0; i < 100; i++) pace_measure(&pace, 7, 1); /* a throttled machine is believed */
    assert_true(fabs(pace_per_second(&pace) - 7) < 0.5);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_shares),
        cmocka_unit_test(test_pace),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
