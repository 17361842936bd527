/* The gate's arithmetic, against figures worked out by hand. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "job/run.h"

static struct gate_verdict judged(const double *before, const double *after, const size_t *tokens, size_t n) {
    struct gate_verdict v;
    memset(&v, 0x5a, sizeof v);
    gate_judge(before, after, tokens, n, &v);
    assert_true(*v.reason && memchr(v.reason, 0, sizeof v.reason));
    return v;
}
/* Student's t, two-sided 95 %, for 1 and 2 degrees of freedom. */
static const double T1 = 12.706205, T2 = 4.302653;
#define NEAR(a, b) assert_true(fabs((a) - (b)) < 1e-9)

/* Three rows of 2, 4, 6 tokens, 60 nats before and 54 after: 0.5 a token gained. Residuals of the rows against
 * that: 2 - 1, 1 - 2, 3 - 3; so 4.303 sqrt(2 * 3 / 2) / 12. */
static void test_by_hand(void **state) {
    (void)state;
    const double before[] = {10, 20, 30}, after[] = {8, 19, 27};
    const size_t tokens[] = {2, 4, 6};
    struct gate_verdict v = judged(before, after, tokens, 3);
    NEAR(v.before, 5.0);
    NEAR(v.after, 4.5);
    NEAR(v.interval, T2 * sqrt(3.0) / 12.0);
    assert_int_equal(v.publish, 0);
    assert_non_null(strstr(v.reason, "0.500"));
    assert_non_null(strstr(v.reason, "0.621"));
}

/* Two rows of one token: gains 3 and -1, so 1 on the average, give or take 12.706 sqrt(8 * 2) / 2 = 25.4. */
static void test_within_uncertainty(void **state) {
    (void)state;
    const double before[] = {5, 5}, after[] = {2, 6};
    const size_t tokens[] = {1, 1};
    struct gate_verdict v = judged(before, after, tokens, 2);
    NEAR(v.before - v.after, 1.0);
    NEAR(v.interval, 2 * T1);
    assert_int_equal(v.publish, 0);
    assert_non_null(strstr(v.reason, "uncertainty"));
}

/* Gains of 1 + e and 1 - e a token: the interval is 12.706 e, and crosses 1 at e = 0.0787... */
static void test_only_above_the_interval(void **state) {
    (void)state;
    const size_t tokens[] = {1, 1};
    double edge = 1.0 / T1;
    for (int side = -1; side <= 1; side += 2) {
        double e = edge * (1 + side * 1e-6);
        double before[] = {5, 5}, after[] = {4 - e, 4 + e};
        struct gate_verdict v = judged(before, after, tokens, 2);
        NEAR(v.interval, T1 * e);
        assert_int_equal(v.publish, side < 0);
    }
}

/* n rows of one token that gain 1 + e and 1 - e in turn: the interval is t sqrt(n / (n - 1)) e / sqrt n, with t from a
 * table for n - 1 degrees of freedom. */
static void test_few_rows_are_less_sure(void **state) {
    (void)state;
    static const struct {
        size_t n;
        double t;
    } table[] = {{4, 3.182}, {6, 2.571}, {10, 2.262}, {30, 2.045}, {62, 2.000}};
    double before[64], after[64];
    size_t tokens[64];
    for (size_t k = 0; k < sizeof table / sizeof *table; k++) {
        size_t n = table[k].n;
        for (size_t i = 0; i < n; i++) {
            before[i] = 5;
            after[i] = 4 + (i % 2 ? 0.5 : -0.5);
            tokens[i] = 1;
        }
        double wanted = table[k].t * sqrt((double)n / ((double)n - 1)) * 0.5 / sqrt((double)n);
        assert_true(fabs(judged(before, after, tokens, n).interval / wanted - 1) < 0.01);
    }
}

static void test_not_better(void **state) {
    (void)state;
    const double less[] = {4, 4, 4}, more[] = {5, 5, 5};
    const size_t tokens[] = {3, 3, 3};
    struct gate_verdict v = judged(less, more, tokens, 3);
    assert_int_equal(v.publish, 0);
    assert_non_null(strstr(v.reason, "did not fall"));
    assert_int_equal(judged(less, less, tokens, 3).publish, 0); /* nothing gained, nothing uncertain */
    NEAR(judged(less, less, tokens, 3).interval, 0.0);
    assert_int_equal(judged(more, less, tokens, 3).publish, 1);
}

/* One row that gains much among many that lose a little does not carry it. */
static void test_an_outlier(void **state) {
    (void)state;
    double before[20], after[20];
    size_t tokens[20];
    for (size_t i = 0; i < 20; i++) {
        before[i] = 50;
        after[i] = i == 7 ? 10 : 51;
        tokens[i] = 20;
    }
    struct gate_verdict v = judged(before, after, tokens, 20);
    assert_true(v.before > v.after);
    assert_int_equal(v.publish, 0);
}

static void test_cannot_judge(void **state) {
    (void)state;
    static const double bad[] = {NAN, INFINITY, -INFINITY};
    double before[] = {10, 20, 30}, after[] = {1, 2, 3};
    const size_t tokens[] = {2, 4, 6}, none[] = {0, 0, 0};
    for (size_t n = 0; n < 2; n++) {
        struct gate_verdict v = judged(before, after, tokens, n);
        assert_int_equal(v.publish, 0);
        assert_true(isnan(v.before) && isnan(v.after) && isnan(v.interval));
        assert_non_null(strstr(v.reason, "too few"));
    }
    assert_int_equal(judged(before, after, none, 3).publish, 0);
    for (size_t b = 0; b < 3; b++)
        for (size_t i = 0; i < 6; i++) {
            double *at = i < 3 ? before + i : after + i - 3, was = *at;
            *at = bad[b];
            struct gate_verdict v = judged(before, after, tokens, 3);
            assert_int_equal(v.publish, 0);
            assert_true(isnan(v.interval));
            assert_non_null(strstr(v.reason, "finite"));
            *at = was;
        }
    before[0] = 1e200; /* finite, but its square is not */
    assert_int_equal(judged(before, after, tokens, 3).publish, 0);
    before[0] = 10;
    assert_int_equal(judged(before, after, tokens, 3).publish, 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_by_hand),      cmocka_unit_test(test_within_uncertainty),
        cmocka_unit_test(test_only_above_the_interval), cmocka_unit_test(test_few_rows_are_less_sure),
        cmocka_unit_test(test_not_better),
        cmocka_unit_test(test_an_outlier),   cmocka_unit_test(test_cannot_judge),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
