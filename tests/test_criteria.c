/* The gate's criteria, each against figures worked out by hand, and on both sides of its threshold. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "job/criteria.h"

#define NEAR(a, b) assert_true(fabs((a) - (b)) < 1e-9)

static const struct store_criterion *only(const struct criteria *c, const char *name, int passed) {
    assert_int_equal(c->n, 1);
    assert_string_equal(c->items[0].name, name);
    assert_int_equal(c->items[0].passed, passed);
    assert_true(*c->items[0].detail && memchr(c->items[0].detail, 0, sizeof c->items[0].detail));
    assert_ptr_equal(criteria_failed(c), passed ? NULL : &c->items[0]);
    return &c->items[0];
}

static void test_held_out(void **state) {
    (void)state;
    struct gate_verdict v = {.publish = 1, .before = 3, .after = 2.5, .interval = 0.1};
    struct criteria c = {.n = 0};
    criteria_held_out(&c, &v, 12);
    NEAR(only(&c, "held-out", 1)->figure, 0.5);
    NEAR(c.items[0].threshold, 0.1);
    c.n = 0;
    criteria_held_out(&c, &(struct gate_verdict){.before = NAN, .after = NAN, .interval = NAN}, 1);
    assert_true(isnan(only(&c, "held-out", 0)->figure));
}

/* 8 tokens: 0.08 nats in all are allowed. */
static void test_base(void **state) {
    (void)state;
    static const struct {
        double after[2];
        int passed;
    } table[] = {{{10, 20}, 1}, {{10.05, 20.029}, 1}, {{10.05, 20.031}, 0}, {{1, 28}, 1},
                 {{9, 21.2}, 0}, {{NAN, 20}, 0},      {{10, INFINITY}, 0}};
    const double base[] = {10, 20};
    const size_t tokens[] = {2, 6};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct criteria c = {.n = 0};
        criteria_base(&c, base, table[i].after, tokens, 2);
        NEAR(only(&c, "base", table[i].passed)->threshold, 0.01);
    }
}

static void test_reference(void **state) {
    (void)state;
    struct model_drift d = {.tokens = 100, .agreeing = 90, .kl = 5, .loss_reference = 200, .loss = 206};
    static const struct {
        double limit, kl_limit;
        const char *failed;
    } table[] = {{0.031, 0.051, NULL}, {0.029, 0.051, "reference"}, {0.031, 0.049, "reference_kl"},
                 {0, 0, "reference"},  {100, 100, NULL}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct criteria c = {.n = 0};
        criteria_reference(&c, &d, table[i].limit, table[i].kl_limit);
        assert_int_equal(c.n, 2);
        NEAR(c.items[0].figure, 0.03);
        NEAR(c.items[1].figure, 0.05);
        const struct store_criterion *failed = criteria_failed(&c);
        if (!table[i].failed)
            assert_null(failed);
        else
            assert_string_equal(failed->name, table[i].failed);
    }
    d.loss = d.kl = NAN;
    struct criteria c = {.n = 0};
    criteria_reference(&c, &d, 100, 100);
    assert_true(!c.items[0].passed && !c.items[1].passed);
}

static void test_degenerate(void **state) {
    (void)state;
    for (size_t n = 0; n <= 8; n++) {
        struct criteria c = {.n = 0};
        criteria_degenerate(&c, n, 8);
        NEAR(only(&c, "degenerate", n <= 2)->figure, (double)n / 8);
    }
}

static void test_answers(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int is;
    } table[] = {
        {"", 1},
        {" \n\t ", 1},
        {"Yes.", 0},
        {"no no no no no no", 0}, /* short */
        {"the sea the sea the sea the sea the sea the sea the sea the sea", 1},
        {"!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!", 1},
        {"You can use the same amount of margarine, or about three quarters as much vegetable oil. Applesauce also "
         "works if you want less fat.",
         0},
        {"1. Wash the rice. 2. Wash the beans. 3. Wash the pot. 4. Boil the rice. 5. Boil the beans. 6. Eat.", 0},
        {"It is a good idea to rest. It is a good idea to drink water. It is a good idea to sleep.", 0},
        {"I can help. I can help you with that. I can help you with that. I can help you with that. I can help you "
         "with that. I can help you with that.",
         1},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (answer_is_degenerate(table[i].text) != table[i].is) fail_msg("%s", table[i].text);
}

static void test_canaries(void **state) {
    (void)state;
    struct criteria c = {.n = 0};
    criteria_canaries(&c, 0, 5);
    only(&c, "canaries", 1);
    c.n = 0;
    criteria_canaries(&c, 1, 5);
    NEAR(only(&c, "canaries", 0)->figure, 1);
}

/* Pairs that both win, that the candidate gains, that it loses, that neither wins. Lost 5 of 5 is 1 in 32, 4 of 4 is 1
 * in 16; 9 of 11 is (55 + 11 + 1) in 2048, 8 of 11 (165 + 67) in 2048. */
static void test_preferences(void **state) {
    (void)state;
    static const struct {
        size_t both, gained, lost, neither;
        int passed;
    } table[] = {{8, 0, 0, 0, 1}, {0, 0, 0, 8, 1}, {4, 0, 4, 0, 1}, {4, 0, 5, 0, 0}, {0, 5, 4, 0, 1},
                 {1, 2, 9, 1, 0}, {1, 3, 8, 1, 1}, {0, 9, 2, 0, 1}, {0, 0, 64, 0, 0}};
    for (size_t k = 0; k < sizeof table / sizeof *table; k++) {
        double before[128], after[128];
        size_t n = 0;
        size_t counts[] = {table[k].both, table[k].gained, table[k].lost, table[k].neither};
        for (size_t kind = 0; kind < 4; kind++)
            for (size_t i = 0; i < counts[kind]; i++, n++) {
                before[2 * n] = after[2 * n] = 2;
                before[2 * n + 1] = kind == 0 || kind == 2 ? 3 : 1;
                after[2 * n + 1] = kind <= 1 ? 3 : 1;
            }
        struct criteria c = {.n = 0};
        criteria_preferences(&c, before, after, n);
        NEAR(only(&c, "preferences", table[k].passed)->figure, (double)(counts[0] + counts[1]) / (double)n);
        NEAR(c.items[0].threshold, (double)(counts[0] + counts[2]) / (double)n);
        after[1] = NAN;
        c.n = 0;
        criteria_preferences(&c, before, after, n);
        only(&c, "preferences", 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_held_out), cmocka_unit_test(test_base),     cmocka_unit_test(test_reference),
        cmocka_unit_test(test_degenerate), cmocka_unit_test(test_answers), cmocka_unit_test(test_canaries),
        cmocka_unit_test(test_preferences),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
