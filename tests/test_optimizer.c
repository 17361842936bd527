#include "tests/tiny_training.h"

#include "core/base/random.h"

static struct pool *one_thread;
static double partial;

static int start(void **state) {
    (void)state;
    return pool_create(1, &one_thread, NULL) == ATTUNE_OK ? 0 : -1;
}
static int stop(void **state) {
    (void)state;
    pool_destroy(one_thread);
    return 0;
}

/* ---- AdamW as in the paper (algorithm 2, decoupled), in double ---- */

enum { N = 37, STEPS = 20 };
struct plain_adamw {
    double p[N], m[N], v[N];
};
static void reference_update(struct plain_adamw *r, const double *g, const struct train_config *c, double rate, int t) {
    for (size_t i = 0; i < N; i++) {
        r->m[i] = (double)c->beta1 * r->m[i] + (1 - (double)c->beta1) * g[i];
        r->v[i] = (double)c->beta2 * r->v[i] + (1 - (double)c->beta2) * g[i] * g[i];
        double m = r->m[i] / (1 - pow((double)c->beta1, t)), v = r->v[i] / (1 - pow((double)c->beta2, t));
        r->p[i] -= rate * (m / (sqrt(v) + (double)c->epsilon) + (double)c->weight_decay * r->p[i]);
    }
}

static void check_adamw(const struct train_config *config, double gradient_size) {
    struct plain_adamw r = {0};
    float p[N], g[N], m[N] = {0}, v[N] = {0};
    struct adamw adamw = {N, 0, m, v};
    for (size_t i = 0; i < N; i++) {
        p[i] = 2 * random_uniform(1, i) - 1;
        r.p[i] = (double)p[i];
    }
    for (int t = 1; t <= STEPS; t++) {
        double wide[N], rate = 1e-2 * (1 + t % 3);
        for (size_t i = 0; i < N; i++) {
            g[i] = (float)(gradient_size * (2 * (double)random_uniform((uint64_t)t + 10, i) - 1));
            if (i == 0) g[i] = 0; /* a parameter that nothing pulls at only decays */
            wide[i] = (double)g[i];
        }
        adamw_update(&adamw, one_thread, p, g, 1.0f, config, (float)rate, &partial);
        reference_update(&r, wide, config, rate, t);
        assert_int_equal(adamw.step, t);
        for (size_t i = 0; i < N; i++) {
            if (!(fabs((double)p[i] - r.p[i]) < 2e-6))
                fail_msg("step %d: parameter %zu is %.8f, wanted %.8f", t, i, (double)p[i], r.p[i]);
            assert_true(fabs((double)m[i] - r.m[i]) <= 1e-5 * gradient_size);
            assert_true(fabs((double)v[i] - r.v[i]) <= 1e-5 * gradient_size * gradient_size);
        }
    }
}
static void test_adamw(void **state) {
    (void)state;
    struct train_config config;
    train_config_default(&config);
    check_adamw(&config, 1);
    check_adamw(&config, 1e-6);
    config.weight_decay = 0.3f;
    check_adamw(&config, 1);
    config.beta1 = 0;
    config.beta2 = 0.95f;
    config.epsilon = 1e-3f;
    check_adamw(&config, 1e-2);
}

/* The vector's end and the rate 0: nothing beyond n is touched, parameters stay, moments move. */
static void test_adamw_edges(void **state) {
    (void)state;
    struct train_config config;
    float p[3] = {1, 2, 3}, g[3] = {1, 1, 1}, m[3] = {0}, v[3] = {0};
    struct adamw adamw = {2, 0, m, v};
    train_config_default(&config);
    config.weight_decay = 0.5f;
    adamw_update(&adamw, one_thread, p, g, 1.0f, &config, 0, &partial);
    assert_true(p[0] == 1 && p[1] == 2 && p[2] == 3);
    assert_true(m[0] > 0 && v[1] > 0 && m[2] == 0 && v[2] == 0);
}

/* ---- in chunks ---- */

enum { LONG = 50001, PARTIALS = 8 };
struct vectors {
    float p[LONG], g[LONG], m[LONG], v[LONG];
};
static struct vectors *vectors(void) {
    struct vectors *x = calloc(1, sizeof *x);
    for (size_t i = 0; i < LONG; i++) {
        x->p[i] = random_uniform(1, i) - 0.5f;
        x->g[i] = random_uniform(2, i) - 0.5f;
    }
    return x;
}

/* The same bytes for any number of threads, and of a long vector as of its pieces. */
static void test_chunks(void **state) {
    (void)state;
    struct train_config config;
    train_config_default(&config);
    config.weight_decay = 0.1f;
    assert_in_range(adamw_partials(LONG), 2, PARTIALS);
    struct vectors *one = vectors();
    struct adamw single = {1, 0, one->m, one->v};
    for (size_t i = 0; i < LONG; i++) {
        single.m = one->m + i;
        single.v = one->v + i;
        for (single.step = 0; single.step < 3;)
            adamw_update(&single, one_thread, one->p + i, one->g + i, 0.7f, &config, 1e-2f, &partial);
    }
    double square = 0;
    for (size_t i = 0; i < LONG; i++) square += (double)one->g[i] * (double)one->g[i];
    double partials[PARTIALS], norm = gradient_norm(one_thread, one->g, LONG, partials);
    assert_true(fabs(norm - sqrt(square)) < 1e-12 * norm);
    for (int threads = 1; threads <= 8; threads += threads == 3 ? 5 : 1) {
        struct pool *pool = NULL;
        struct vectors *all = vectors();
        struct adamw adamw = {LONG, 0, all->m, all->v};
        OK(pool_create(threads, &pool, &err));
        double again = gradient_norm(pool, all->g, LONG, partials);
        assert_memory_equal(&norm, &again, sizeof norm);
        /* an update is whole even where the pool does nothing any more */
        for (int step = 0; step < 3; step++) {
            if (step == 1) pool_cancel(pool);
            adamw_update(&adamw, pool, all->p, all->g, 0.7f, &config, 1e-2f, partials);
            pool_cancel_clear(pool);
        }
        assert_memory_equal(one, all, sizeof *one);
        free(all);
        pool_destroy(pool);
    }
    free(one);
}

/* ---- the schedule ---- */

static double rate(const struct train_config *config, size_t step, size_t steps) {
    return (double)schedule_rate(config, step, steps) / (double)config->learning_rate;
}
static void test_schedule(void **state) {
    (void)state;
    static const size_t counts[] = {1, 2, 3, 19, 20, 100, 1001};
    static const float warmups[] = {0, 0.05f, 0.5f, 1};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
        for (size_t w = 0; w < 4; w++)
            for (int s = 0; s < 2; s++) {
                size_t steps = counts[c], warm = (size_t)floor((double)warmups[w] * (double)steps);
                struct train_config config = {.learning_rate = 3e-3f, .warmup = warmups[w],
                                              .schedule = s ? SCHEDULE_COSINE : SCHEDULE_CONSTANT};
                for (size_t i = 0; i < steps; i++) {
                    double now = rate(&config, i, steps);
                    assert_true(now > 0 && now <= 1.000001);
                    if (i + 1 < warm) assert_true(rate(&config, i + 1, steps) > now);
                    if (i >= warm && i + 1 < steps) assert_true(rate(&config, i + 1, steps) <= now);
                    if (i < warm) assert_true(fabs(now - (double)(i + 1) / (double)(warm + 1)) < 1e-6);
                    if (i >= warm && !s) assert_true(fabs(now - 1) < 1e-6);
                }
                if (warm == steps) continue;
                assert_true(fabs(rate(&config, warm, steps) - 1) < 1e-6); /* the top is reached */
                double rest = (double)(steps - warm), done = (rest - 1) / rest;
                if (s) assert_true(fabs(rate(&config, steps - 1, steps) - 0.5 * (1 + cos(M_PI * done))) < 1e-6);
            }
    struct train_config config = {.learning_rate = 1, .schedule = SCHEDULE_COSINE};
    assert_true(fabs(rate(&config, 50, 100) - 0.5) < 1e-6); /* half way down */
    /* past the end it does not rise again */
    assert_true(fabs(rate(&config, 100, 100)) < 1e-6 && fabs(rate(&config, 1000, 100)) < 1e-6);
    assert_true(isfinite(rate(&config, 0, 0)));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_adamw), cmocka_unit_test(test_adamw_edges),
                                       cmocka_unit_test(test_chunks), cmocka_unit_test(test_schedule)};
    return cmocka_run_group_tests(tests, start, stop);
}
