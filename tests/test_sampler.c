#include "inference/sampler.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <cmocka.h>

enum { V = 16, DRAWS = 4000 };

static attune_generate_options defaults(void) {
    attune_generate_options o;
    ATTUNE_INIT(o);
    return o;
}

static struct sampler *sampler(const attune_generate_options *options, size_t vocabulary) {
    struct sampler *s = NULL;
    attune_error err = {0};
    assert_int_equal(sampler_create(options, vocabulary, 256, &s, &err), ATTUNE_OK);
    return s;
}

/* One draw from a copy of the logits. */
static int32_t next(struct sampler *s, const float *logits, size_t n, const int32_t *recent, size_t n_recent) {
    float copy[4096];
    assert_true(n <= 4096);
    for (size_t i = 0; i < n; i++) copy[i] = logits[i];
    return sampler_next(s, copy, recent, n_recent);
}

/* Which tokens come in DRAWS draws, as bits, and how often. */
static unsigned drawn(const attune_generate_options *options, const float *logits, unsigned counts[V]) {
    struct sampler *s = sampler(options, V);
    unsigned set = 0;
    for (int i = 0; i < V; i++) counts[i] = 0;
    for (int i = 0; i < DRAWS; i++) {
        int32_t id = next(s, logits, V, NULL, 0);
        assert_in_range(id, 0, V - 1);
        set |= 1u << id;
        counts[id]++;
    }
    sampler_destroy(s);
    return set;
}

/* Probabilities 0.4 0.3 0.15 0.1 0.05 at ids 7 2 9 0 12, the rest impossible. All are shifted: exp of them as they
 * stand overflows a float. */
static void known(float logits[V]) {
    static const int ids[] = {7, 2, 9, 0, 12};
    static const double p[] = {0.4, 0.3, 0.15, 0.1, 0.05};
    for (int i = 0; i < V; i++) logits[i] = -INFINITY;
    for (int i = 0; i < 5; i++) logits[ids[i]] = (float)(log(p[i]) + 300.0);
}
#define BIT(id) (1u << (id))

/* A fixed scramble: any logits, the same in every run. */
static void scrambled(float *logits, size_t n, unsigned seed) {
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        logits[i] = (float)(seed >> 8) / (float)(1 << 21) - 4.0f;
    }
}

static void greedy_takes_the_lowest_id_among_equals(void **state) {
    (void)state;
    attune_generate_options o = defaults();
    struct sampler *s = sampler(&o, V);
    float logits[V] = {0};
    assert_int_equal(next(s, logits, V, NULL, 0), 0);
    logits[5] = logits[3] = logits[11] = 2.0f;
    assert_int_equal(next(s, logits, V, NULL, 0), 3);
    logits[15] = 2.5f;
    assert_int_equal(next(s, logits, V, NULL, 0), 15);
    sampler_destroy(s);
}

static void top_k_of_one_is_greedy(void **state) {
    (void)state;
    static float logits[4096];
    attune_generate_options cold = defaults(), one = defaults();
    one.temperature = 5.0;
    one.top_k = 1;
    struct sampler *a = sampler(&cold, 4096), *b = sampler(&one, 4096);
    for (unsigned seed = 0; seed < 200; seed++) {
        scrambled(logits, 4096, seed);
        if (seed % 3 == 0) /* ties at the top */
            for (size_t i = 1000 + seed; i < 4096; i += 500) logits[i] = 9.0f;
        int32_t expected = next(a, logits, 4096, NULL, 0);
        assert_int_equal(next(b, logits, 4096, NULL, 0), expected);
    }
    sampler_destroy(a);
    sampler_destroy(b);
}

/* The set that survives a cut is drawn completely and nothing else. */
static void cuts_keep_exactly_their_set(void **state) {
    (void)state;
    float logits[V];
    known(logits);
    unsigned counts[V];
    static const struct {
        int top_k;
        double top_p, min_p;
        unsigned set;
    } cases[] = {
        {0, 0, 0, BIT(7) | BIT(2) | BIT(9) | BIT(0) | BIT(12)},
        {3, 0, 0, BIT(7) | BIT(2) | BIT(9)},
        {100, 0, 0, BIT(7) | BIT(2) | BIT(9) | BIT(0) | BIT(12)},
        {0, 0.01, 0, BIT(7)},
        {0, 0.39, 0, BIT(7)},
        {0, 0.41, 0, BIT(7) | BIT(2)},
        {0, 0.69, 0, BIT(7) | BIT(2)},
        {0, 0.71, 0, BIT(7) | BIT(2) | BIT(9)},
        {0, 0.94, 0, BIT(7) | BIT(2) | BIT(9) | BIT(0)},
        {0, 0.96, 0, BIT(7) | BIT(2) | BIT(9) | BIT(0) | BIT(12)},
        {0, 1, 0, BIT(7) | BIT(2) | BIT(9) | BIT(0) | BIT(12)},
        /* top-p is over what top-k left: 0.4/0.85, 0.3/0.85 reach 0.8 */
        {3, 0.8, 0, BIT(7) | BIT(2)},
        {3, 0.85, 0, BIT(7) | BIT(2) | BIT(9)},
        {0, 0, 0.11, BIT(7) | BIT(2) | BIT(9) | BIT(0) | BIT(12)},
        {0, 0, 0.13, BIT(7) | BIT(2) | BIT(9) | BIT(0)},
        {0, 0, 0.24, BIT(7) | BIT(2) | BIT(9) | BIT(0)},
        {0, 0, 0.26, BIT(7) | BIT(2) | BIT(9)},
        {0, 0, 1, BIT(7)},
        {4, 0.96, 0.3, BIT(7) | BIT(2) | BIT(9)},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        attune_generate_options o = defaults();
        /* the temperature comes after the cuts: it changes no set */
        for (o.temperature = 0.7; o.temperature < 3; o.temperature += 1.1) {
            o.top_k = cases[i].top_k;
            o.top_p = cases[i].top_p;
            o.min_p = cases[i].min_p;
            o.seed = i;
            assert_int_equal(drawn(&o, logits, counts), cases[i].set);
        }
    }
}

static void ties_at_a_cut_keep_the_lowest_ids(void **state) {
    (void)state;
    float logits[V] = {0};
    unsigned counts[V];
    attune_generate_options o = defaults();
    o.temperature = 1;
    o.top_k = 3;
    assert_int_equal(drawn(&o, logits, counts), BIT(0) | BIT(1) | BIT(2));
    o.top_k = 0;
    o.top_p = 0.3; /* 5 of 16 equal ones */
    assert_int_equal(drawn(&o, logits, counts), BIT(0) | BIT(1) | BIT(2) | BIT(3) | BIT(4));
    o.top_p = 0;
    o.min_p = 1; /* all are the best */
    assert_int_equal(drawn(&o, logits, counts), 0xFFFF);
}

/* Frequencies against probabilities p^(1/temperature): the seed is fixed, so the counts are too; five
 * standard deviations of a binomial. */
static void draws_follow_the_distribution(void **state) {
    (void)state;
    float logits[V];
    known(logits);
    static const int ids[] = {7, 2, 9, 0, 12};
    static const double p[] = {0.4, 0.3, 0.15, 0.1, 0.05};
    static const double temperatures[] = {0.5, 1.0, 2.0};
    for (size_t t = 0; t < 3; t++)
        for (int k = 0; k < 2; k++) {
            attune_generate_options o = defaults();
            o.temperature = temperatures[t];
            o.top_k = k ? 5 : 0; /* sorted or not, the same distribution */
            unsigned counts[V];
            drawn(&o, logits, counts);
            double total = 0;
            for (int i = 0; i < 5; i++) total += pow(p[i], 1 / o.temperature);
            for (int i = 0; i < 5; i++) {
                double q = pow(p[i], 1 / o.temperature) / total, expected = q * DRAWS;
                assert_true(fabs(counts[ids[i]] - expected) < 5 * sqrt(expected * (1 - q)));
            }
        }
}

static void seeds_reproduce(void **state) {
    (void)state;
    float logits[V];
    scrambled(logits, V, 1);
    attune_generate_options o = defaults();
    o.temperature = 3;
    int32_t first[64], other = 0;
    for (uint64_t seed = 0; seed < 3; seed++) {
        o.seed = seed == 2 ? 99 : 7;
        struct sampler *s = sampler(&o, V);
        int differ = 0;
        for (int i = 0; i < 64; i++) {
            int32_t id = next(s, logits, V, NULL, 0);
            if (seed == 0) first[i] = id;
            else differ += id != first[i];
        }
        if (seed == 1) assert_int_equal(differ, 0);
        if (seed == 2) other = differ;
        sampler_destroy(s);
    }
    assert_true(other > 0);
}

static void penalty_pushes_down_what_came(void **state) {
    (void)state;
    attune_generate_options o = defaults();
    o.repetition_penalty = 2;
    struct sampler *s = sampler(&o, V);
    float logits[V];
    for (int i = 0; i < V; i++) logits[i] = -8;
    logits[4] = 3;
    logits[6] = 2;
    logits[8] = -1;
    int32_t recent[] = {4, 4, 4, -1, V, 1 << 30};
    assert_int_equal(next(s, logits, V, recent, 0), 4);
    /* 3 -> 1.5, once however often it came */
    assert_int_equal(next(s, logits, V, recent, 6), 6);
    logits[6] = 1.4f;
    assert_int_equal(next(s, logits, V, recent, 6), 4);
    /* a negative logit is multiplied: -1 -> -2 */
    int32_t all[] = {4, 6, 8};
    logits[4] = logits[6] = -8;
    logits[9] = -1.9f;
    assert_int_equal(next(s, logits, V, all, 3), 9);
    logits[9] = -2.1f;
    assert_int_equal(next(s, logits, V, all, 3), 8);
    sampler_destroy(s);

    o.repetition_penalty = 1; /* off */
    s = sampler(&o, V);
    logits[4] = 3;
    assert_int_equal(next(s, logits, V, all, 3), 4);
    sampler_destroy(s);
}

static void what_is_not_finite_is_never_chosen(void **state) {
    (void)state;
    attune_generate_options o = defaults();
    for (int warm = 0; warm < 2; warm++) {
        o.temperature = warm;
        struct sampler *s = sampler(&o, V);
        float logits[V];
        for (int i = 0; i < V; i++) logits[i] = i % 2 ? NAN : INFINITY;
        assert_int_equal(next(s, logits, V, NULL, 0), -1);
        logits[9] = -100;
        for (int i = 0; i < 100; i++) assert_int_equal(next(s, logits, V, NULL, 0), 9);
        logits[3] = -INFINITY;
        assert_int_equal(next(s, logits, V, NULL, 0), 9);
        sampler_destroy(s);
    }
}

static void extreme_temperatures_stay_sane(void **state) {
    (void)state;
    float logits[V];
    unsigned counts[V];
    for (int i = 0; i < V; i++) logits[i] = i == 5 ? 3e38f : -3e38f;
    attune_generate_options o = defaults();
    o.temperature = 5e-324;
    assert_int_equal(drawn(&o, logits, counts), BIT(5));
    o.temperature = 1;
    assert_int_equal(drawn(&o, logits, counts), BIT(5));
    o.temperature = 1e300;
    assert_int_equal(drawn(&o, logits, counts), 0xFFFF);
}

static void refuses(attune_generate_options o, const char *name) {
    struct sampler *s = NULL;
    attune_error err = {0};
    assert_int_equal(sampler_create(&o, V, 256, &s, &err), ATTUNE_ERROR_ARGUMENT);
    assert_null(s);
    assert_non_null(strstr(err.message, name));
}

static void impossible_settings_are_named(void **state) {
    (void)state;
    static const double bad[] = {-1, -1e-9, NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < 5; i++) {
        attune_generate_options o = defaults();
        o.temperature = bad[i];
        refuses(o, "temperature");
        o = defaults();
        o.repetition_penalty = bad[i];
        refuses(o, "repetition_penalty");
        o = defaults();
        o.top_p = bad[i];
        refuses(o, "top_p");
        o = defaults();
        o.min_p = bad[i];
        refuses(o, "min_p");
    }
    attune_generate_options o = defaults();
    o.top_p = 1.0001;
    refuses(o, "top_p");
    o = defaults();
    o.min_p = 1.0001;
    refuses(o, "min_p");
    o = defaults();
    o.top_k = -1;
    refuses(o, "top_k");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_takes_the_lowest_id_among_equals),
        cmocka_unit_test(top_k_of_one_is_greedy),
        cmocka_unit_test(cuts_keep_exactly_their_set),
        cmocka_unit_test(ties_at_a_cut_keep_the_lowest_ids),
        cmocka_unit_test(draws_follow_the_distribution),
        cmocka_unit_test(seeds_reproduce),
        cmocka_unit_test(penalty_pushes_down_what_came),
        cmocka_unit_test(what_is_not_finite_is_never_chosen),
        cmocka_unit_test(extreme_temperatures_stay_sane),
        cmocka_unit_test(impossible_settings_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
