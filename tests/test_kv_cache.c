/* Generation over a cache of keys and values of each kind: against the forward of training, for any number of threads,
 * shifted, cancelled, with logits of several tokens. tests/golden/tiny_*.gguf, and the real model when
 * ATTUNE_TEST_MODEL names one. */
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>

#include "core/base/random.h"
#include "core/model/transformer.h"

static const char *const tiny_names[] = {"tiny_llama", "tiny_llama3", "tiny_qwen2"};
static const enum block_type kinds[] = {BLOCK_F32, BLOCK_F16, BLOCK_Q8_0};
enum { TINY = 3, KINDS = 3, LONG = 700 };

/* A model, and what generation needs. */
struct fixture {
    struct model *model;
    struct pool *pool;
    struct decoding_pass *pass;
    struct weights weights;
    float *logits; /* (DECODING_LOGITS, V) */
    int32_t *ids;  /* (context) */
};

static struct model *open_model(const char *path) {
    struct model *model = NULL;
    attune_error err = {0};
    if (model_open(path, FILE_MAP, &model, &err) != ATTUNE_OK) fail_msg("%s (%s)", err.message, err.where);
    return model;
}

static struct fixture open_fixture(const char *path, int threads, size_t context) {
    struct fixture f = {.model = open_model(path)};
    assert_int_equal(pool_create(threads, &f.pool, NULL), ATTUNE_OK);
    assert_int_equal(decoding_pass_create(f.model, f.pool, context, 1, PRECISION_F32, &f.pass, NULL), ATTUNE_OK);
    f.weights = (struct weights){f.model, f.model->layers, NULL};
    f.logits = malloc(DECODING_LOGITS * f.model->V * sizeof *f.logits);
    f.ids = malloc(context * sizeof *f.ids);
    for (size_t i = 0; i < context; i++) f.ids[i] = (int32_t)(random_u64(5, i) % f.model->V);
    return f;
}
static struct fixture open_tiny(size_t which, int threads, size_t context) {
    char path[1024];
    snprintf(path, sizeof path, "%s/tests/golden/%s.gguf", ATTUNE_TEST_ROOT, tiny_names[which]);
    return open_fixture(path, threads, context);
}
static void close_fixture(struct fixture *f) {
    decoding_pass_destroy(f->pass);
    pool_destroy(f->pool);
    model_close(f->model);
    free(f->logits), free(f->ids);
}

static int has_blocks(const struct model *m, enum block_type kind) {
    return m->D % block_format_get(kind)->elements == 0;
}
static struct kv_cache create_cache(const struct fixture *f, size_t context, enum block_type kind) {
    struct kv_cache cache;
    attune_error err = {0};
    if (kv_cache_create(f->model, context, kind, &cache, &err) != ATTUNE_OK) fail_msg("%s", err.message);
    return cache;
}
/* Appends n of the fixture's tokens, of which cache->used is the first. */
static void append(const struct fixture *f, struct kv_cache *cache, size_t n, size_t n_logits) {
    attune_error err = {0};
    if (decoding_pass_run(f->pass, &f->weights, cache, f->ids + cache->used, n, f->logits, n_logits, &err) !=
        ATTUNE_OK)
        fail_msg("%s", err.message);
}

static float *logits_of_whole(const struct fixture *f, const int32_t *ids, size_t T) {
    struct training_pass *pass = NULL;
    struct pass_shape shape = {.T_max = T, .R_max = 1, .precision = PRECISION_F32};
    float *logits = malloc(T * f->model->V * sizeof *logits);
    pass_shape_fit(&shape, f->model, pool_threads(f->pool), SIZE_MAX);
    assert_int_equal(training_pass_create(f->model, f->pool, &shape, &pass, NULL), ATTUNE_OK);
    assert_int_equal(training_pass_logits(pass, &f->weights, ids, T, logits, NULL), ATTUNE_OK);
    training_pass_destroy(pass);
    return logits;
}

static double largest_difference(const float *a, const float *b, size_t n) {
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double off = fabs((double)a[i] - (double)b[i]);
        if (!(off <= worst)) worst = off; /* NaN too */
    }
    return worst;
}

/* ---- creation ---- */

static void test_kinds_refused(void **state) {
    (void)state;
    struct fixture f = open_tiny(0, 1, 8); /* heads of 16 */
    struct kv_cache cache;
    attune_error err = {0};
    assert_int_equal(kv_cache_create(f.model, 8, BLOCK_Q8_0, &cache, &err), ATTUNE_ERROR_UNSUPPORTED);
    assert_non_null(strstr(err.message, "16 elements"));
    assert_non_null(strstr(err.message, "use F16"));
    assert_int_equal(kv_cache_create(f.model, 8, BLOCK_Q4_0, &cache, &err), ATTUNE_ERROR_UNSUPPORTED);
    assert_non_null(strstr(err.message, "Q4_0"));
    assert_int_equal(kv_cache_create(f.model, 8, (enum block_type)29, &cache, &err), ATTUNE_ERROR_UNSUPPORTED);
    assert_int_equal(kv_cache_create(f.model, SIZE_MAX / 8, BLOCK_F16, &cache, &err), ATTUNE_ERROR_MEMORY);
    assert_int_equal(kv_cache_create(f.model, SIZE_MAX / 1024, BLOCK_F32, &cache, &err), ATTUNE_ERROR_MEMORY);
    close_fixture(&f);
}

/* Beside the table of turns nothing of a pass grows with the context. */
static void test_pass_memory(void **state) {
    (void)state;
    struct fixture near = open_tiny(0, 2, 1024), far = open_tiny(0, 2, 4096);
    assert_int_equal(decoding_pass_bytes(far.pass) - decoding_pass_bytes(near.pass),
                     3072 * near.model->rope.dims * sizeof(float));
    close_fixture(&near);
    close_fixture(&far);
}

/* ---- what comes out ---- */

/* Of a logit's error, by the deviation of all logits. */
static const double bounds[KINDS] = {1e-4, 1e-2, 1e-1};

static double deviation(const float *x, size_t n) {
    double sum = 0, squares = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i], squares += (double)x[i] * (double)x[i];
    return sqrt(squares / (double)n - sum / (double)n * (sum / (double)n));
}

static void test_kinds_beside_whole(void **state) {
    (void)state;
    static const size_t pieces[] = {1, 7, 150, 2, 64, 1, 300, 16, 1, 1};
    for (size_t k = 0; k < TINY; k++) {
        struct fixture f = open_tiny(k, 2, LONG);
        float *whole = logits_of_whole(&f, f.ids, LONG);
        double spread = deviation(whole, LONG * f.model->V);
        for (size_t kind = 0; kind < KINDS; kind++) {
            if (!has_blocks(f.model, kinds[kind])) continue;
            struct kv_cache cache = create_cache(&f, LONG, kinds[kind]);
            double worst = 0;
            for (size_t p = 0; p < sizeof pieces / sizeof *pieces; p++) {
                append(&f, &cache, pieces[p], 1);
                worst = fmax(worst, largest_difference(f.logits, whole + (cache.used - 1) * f.model->V, f.model->V));
            }
            print_message("%s, %s: logits differ by %.2g of their deviation %.2g\n", tiny_names[k],
                          block_type_name(kinds[kind]), worst / spread, spread);
            assert_true(worst < bounds[kind] * spread);
            kv_cache_free(&cache);
        }
        free(whole);
        close_fixture(&f);
    }
}

static void test_several_logits(void **state) {
    (void)state;
    struct fixture f = open_tiny(1, 2, LONG);
    size_t V = f.model->V;
    float *whole = logits_of_whole(&f, f.ids, LONG), *one = malloc(V * sizeof *one);
    /* in one chunk; over a border with 1, 4, 15 of the tokens behind it; over two */
    static const size_t counts[] = {16, 100, DECODING_CHUNK + 1, DECODING_CHUNK + 4, 2 * DECODING_CHUNK + 15, 130};
    static const size_t wanted[] = {16, 16, 16, 5, 16, 2};
    struct kv_cache cache = create_cache(&f, LONG, BLOCK_F32);
    for (size_t i = 0; i < 6; i++)
        for (size_t before = 0; before <= 37; before += 37) {
            cache.used = 0;
            if (before) append(&f, &cache, before, 0);
            append(&f, &cache, counts[i], wanted[i]);
            size_t first = before + counts[i] - wanted[i];
            assert_true(largest_difference(f.logits, whole + first * V, wanted[i] * V) < 1e-4);
            memcpy(one, f.logits + (wanted[i] - 1) * V, V * sizeof *one);
            cache.used = before;
            append(&f, &cache, counts[i], 1);
            assert_true(largest_difference(f.logits, one, V) < 1e-4);
        }
    free(whole), free(one);
    kv_cache_free(&cache);
    close_fixture(&f);
}

/* Logits of each of the runs, one after another, and the cache's bytes. */
static float *bits_of(const char *path, int threads, enum block_type kind, size_t *n) {
    static const struct {
        size_t tokens, logits;
    } runs[] = {{1, 1}, {150, 16}, {1, 1}, {300, 3}, {1, 1}, {16, 16}, {200, 1}, {1, 1}};
    struct fixture f = open_fixture(path, threads, LONG);
    struct kv_cache cache = create_cache(&f, LONG, kind);
    size_t V = f.model->V, bytes = f.model->L * f.model->KV * LONG * cache.row_bytes, at = 0;
    *n = 40 * V + 2 * bytes / sizeof(float);
    float *out = malloc(*n * sizeof *out);
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        append(&f, &cache, runs[i].tokens, runs[i].logits);
        memcpy(out + at, f.logits, runs[i].logits * V * sizeof *out);
        at += runs[i].logits * V;
    }
    assert_int_equal(at, 40 * V);
    kv_cache_shift(&cache, f.model, f.pool, 5, 100);
    memcpy(out + at, cache.k, bytes);
    memcpy(out + at + bytes / sizeof(float), cache.v, bytes);
    kv_cache_free(&cache);
    close_fixture(&f);
    return out;
}

static void same_for_threads(const char *path) {
    static const int threads[] = {2, 3, 8};
    for (size_t kind = 0; kind < KINDS; kind++) {
        struct model *model = open_model(path);
        int whole = has_blocks(model, kinds[kind]);
        size_t n, m;
        model_close(model);
        if (!whole) continue;
        float *one = bits_of(path, 1, kinds[kind], &n);
        for (size_t i = 0; i < 3; i++) {
            float *many = bits_of(path, threads[i], kinds[kind], &m);
            assert_int_equal(n, m);
            assert_memory_equal(one, many, n * sizeof *one);
            free(many);
        }
        free(one);
    }
}
static void test_any_threads(void **state) {
    (void)state;
    for (size_t k = 0; k < TINY; k++) {
        char path[1024];
        snprintf(path, sizeof path, "%s/tests/golden/%s.gguf", ATTUNE_TEST_ROOT, tiny_names[k]);
        same_for_threads(path);
    }
}

/* ---- shift ---- */

/* All keys or all values of the cache as floats: (L * KV, context, D). */
static float *unpack(const struct fixture *f, const struct kv_cache *cache, const unsigned char *rows) {
    size_t n = f->model->L * f->model->KV * cache->context * f->model->D;
    float *x = malloc(n * sizeof *x);
    block_format_get(cache->kind)->dequantize(x, rows, n);
    return x;
}

/* A key turned back by `drop` positions, in double. */
static void turn_back(const struct model *m, const float *key, size_t drop, double *out) {
    size_t half = m->rope.dims / 2;
    for (size_t d = 0; d < m->D; d++) out[d] = (double)key[d];
    for (size_t i = 0; i < half; i++) {
        size_t a = m->rope.style == ROPE_HALVES ? i : 2 * i, b = m->rope.style == ROPE_HALVES ? i + half : 2 * i + 1;
        double angle = -(double)drop * pow((double)m->rope.base, -2.0 * (double)i / (double)m->rope.dims);
        if (m->rope.factors) angle /= (double)m->rope.factors[i];
        out[a] = (double)key[a] * cos(angle) - (double)key[b] * sin(angle);
        out[b] = (double)key[a] * sin(angle) + (double)key[b] * cos(angle);
    }
}

/* What a key may be off after a shift, by the largest element of its head's keys: one more rounding to the kind. */
static const double key_bounds[KINDS] = {1e-5, 1e-3, 1e-2};
/* The same against keys of layer 0 that were rounded once, at their new place. */
static const double fresh_bounds[KINDS] = {1e-4, 2e-3, 2e-2};

static void check_shift(const struct fixture *f, size_t kind, size_t keep, size_t drop, size_t used) {
    const struct model *m = f->model;
    struct kv_cache cache = create_cache(f, LONG, kinds[kind]), fresh = create_cache(f, LONG, kinds[kind]);
    size_t left = used - keep - drop, head_bytes = LONG * cache.row_bytes;
    append(f, &cache, used, 0);
    float *before = unpack(f, &cache, cache.k);
    unsigned char *values = malloc(m->L * m->KV * head_bytes);
    memcpy(values, cache.v, m->L * m->KV * head_bytes);
    kv_cache_shift(&cache, m, f->pool, keep, drop);
    assert_int_equal(cache.used, used - drop);
    float *after = unpack(f, &cache, cache.k);
    double wanted[512], worst = 0;
    for (size_t h = 0; h < m->L * m->KV; h++) {
        const float *from = before + h * LONG * m->D, *to = after + h * LONG * m->D;
        const unsigned char *v = values + h * head_bytes, *moved = cache.v + h * head_bytes;
        double largest = 0, off = 0;
        for (size_t i = 0; i < used * m->D; i++) largest = fmax(largest, fabs((double)from[i]));
        assert_memory_equal(to, from, keep * m->D * sizeof *to);
        assert_memory_equal(moved, v, keep * cache.row_bytes);
        assert_memory_equal(moved + keep * cache.row_bytes, v + (keep + drop) * cache.row_bytes,
                            left * cache.row_bytes);
        for (size_t t = 0; t < left; t++) {
            turn_back(m, from + (keep + drop + t) * m->D, drop, wanted);
            for (size_t d = 0; d < m->D; d++)
                off = fmax(off, fabs((double)to[(keep + t) * m->D + d] - wanted[d]));
        }
        worst = fmax(worst, off / largest);
    }
    if (!(worst <= key_bounds[kind]))
        fail_msg("%s: keys are off by %g", block_type_name(kinds[kind]), worst);

    /* keys of layer 0 know nothing of earlier tokens: as if the dropped ones had never been there */
    int32_t *rest = malloc((used - drop) * sizeof *rest);
    memcpy(rest, f->ids, keep * sizeof *rest);
    memcpy(rest + keep, f->ids + keep + drop, left * sizeof *rest);
    assert_int_equal(decoding_pass_run(f->pass, &f->weights, &fresh, rest, used - drop, NULL, 0, NULL), ATTUNE_OK);
    float *again = unpack(f, &fresh, fresh.k);
    double largest = 0;
    worst = 0;
    for (size_t h = 0; h < m->KV; h++)
        for (size_t i = h * LONG * m->D; i < (h * LONG + used - drop) * m->D; i++) {
            largest = fmax(largest, fabs((double)again[i]));
            worst = fmax(worst, fabs((double)again[i] - (double)after[i]));
        }
    if (!(worst <= fresh_bounds[kind] * largest))
        fail_msg("%s: keys differ from fresh ones by %g", block_type_name(kinds[kind]), worst / largest);
    append(f, &cache, 1, 1);
    for (size_t v = 0; v < m->V; v++) assert_true(isfinite(f->logits[v]));
    free(before), free(after), free(again), free(values), free(rest);
    kv_cache_free(&cache);
    kv_cache_free(&fresh);
}

static void test_shift(void **state) {
    (void)state;
    for (size_t k = 0; k < TINY; k++) {
        struct fixture f = open_tiny(k, 2, LONG);
        for (size_t kind = 0; kind < KINDS; kind++) {
            if (!has_blocks(f.model, kinds[kind])) continue;
            check_shift(&f, kind, 0, 1, 300);
            check_shift(&f, kind, 4, 150, 400);
            check_shift(&f, kind, 17, 333, 690);
            check_shift(&f, kind, 20, 0, 40);
            check_shift(&f, kind, 3, 37, 40); /* nothing is left behind what is dropped */
        }
        close_fixture(&f);
    }
}

/* ---- cancelling ---- */

static void test_shift_is_whole(void **state) {
    (void)state;
    struct fixture f = open_tiny(2, 3, LONG);
    struct kv_cache cache = create_cache(&f, LONG, BLOCK_F16), other = create_cache(&f, LONG, BLOCK_F16);
    append(&f, &cache, 300, 0);
    append(&f, &other, 300, 0);
    kv_cache_shift(&cache, f.model, f.pool, 9, 100);
    pool_cancel(f.pool);
    kv_cache_shift(&other, f.model, f.pool, 9, 100);
    pool_cancel_clear(f.pool);
    assert_int_equal(other.used, 200);
    size_t bytes = f.model->L * f.model->KV * LONG * cache.row_bytes;
    assert_memory_equal(cache.k, other.k, bytes);
    assert_memory_equal(cache.v, other.v, bytes);
    kv_cache_free(&cache);
    kv_cache_free(&other);
    close_fixture(&f);
}

static void *cancel_soon(void *pool) {
    nanosleep(&(struct timespec){0, 3000000}, NULL);
    pool_cancel(pool);
    return NULL;
}

static void test_cancel(void **state) {
    (void)state;
    struct fixture f = open_tiny(1, 2, LONG);
    struct kv_cache cache = create_cache(&f, LONG, BLOCK_F16);
    size_t V = f.model->V;
    float *expected = malloc(3 * V * sizeof *expected);
    append(&f, &cache, 40, 1);
    append(&f, &cache, 600, 3);
    memcpy(expected, f.logits, 3 * V * sizeof *expected);
    cache.used = 40;
    pool_cancel(f.pool);
    assert_int_equal(decoding_pass_run(f.pass, &f.weights, &cache, f.ids + 40, 600, f.logits, 3, NULL),
                     ATTUNE_ERROR_CANCELLED);
    assert_int_equal(cache.used, 40);
    pool_cancel_clear(f.pool);
    for (int round = 0; round < 5; round++) { /* anywhere in a prompt */
        pthread_t thread;
        int code = ATTUNE_OK;
        assert_int_equal(pthread_create(&thread, NULL, cancel_soon, f.pool), 0);
        while (code == ATTUNE_OK) {
            cache.used = 40;
            code = decoding_pass_run(f.pass, &f.weights, &cache, f.ids + 40, 600, f.logits, 3, NULL);
        }
        pthread_join(thread, NULL);
        pool_cancel_clear(f.pool);
        assert_int_equal(code, ATTUNE_ERROR_CANCELLED);
        assert_int_equal(cache.used, 40);
        append(&f, &cache, 600, 3);
        assert_memory_equal(expected, f.logits, 3 * V * sizeof *expected);
    }
    free(expected);
    kv_cache_free(&cache);
    close_fixture(&f);
}

/* ---- the real model ---- */

/* KL divergence of what b says from what a says, of n rows. */
static double divergence(const float *a, const float *b, size_t n, size_t V) {
    double sum = 0;
    for (size_t i = 0; i < n; i++, a += V, b += V) {
        double log_a = 0, log_b = 0, top_a = -INFINITY, top_b = -INFINITY;
        for (size_t v = 0; v < V; v++) top_a = fmax(top_a, (double)a[v]), top_b = fmax(top_b, (double)b[v]);
        for (size_t v = 0; v < V; v++) log_a += exp((double)a[v] - top_a), log_b += exp((double)b[v] - top_b);
        log_a = top_a + log(log_a), log_b = top_b + log(log_b);
        for (size_t v = 0; v < V; v++)
            sum += exp((double)a[v] - log_a) * ((double)a[v] - log_a - ((double)b[v] - log_b));
    }
    return sum / (double)n;
}

static void test_real(void **state) {
    (void)state;
    const char *path = getenv("ATTUNE_TEST_MODEL");
    if (!path) skip();
    enum { T = 330, STEPS = 16 };
    static const double real_bounds[KINDS] = {1e-3, 0.05, 1.0}, divergences[KINDS] = {1e-8, 1e-6, 1e-3};
    struct fixture f = open_fixture(path, 2, LONG);
    size_t V = f.model->V;
    static const char text[] =
        "Write down what happened on the way to the sea, one sentence for each day: first the rain, then the long road "
        "through the hills, the broken wheel, the two nights in the village, and how we found the old map. ";
    size_t n;
    assert_int_equal(tokenizer_encode(f.model->tokenizer, text, sizeof text - 1, 0, f.ids, LONG, &n, NULL), ATTUNE_OK);
    assert_in_range(n, 30, LONG);
    for (size_t i = n; i < LONG; i++) f.ids[i] = f.ids[i - n];
    float *whole = logits_of_whole(&f, f.ids, T), *rows = malloc(STEPS * V * sizeof *rows);
    for (size_t kind = 0; kind < KINDS; kind++) {
        struct kv_cache cache = create_cache(&f, LONG, kinds[kind]);
        append(&f, &cache, T - STEPS, 0);
        for (size_t i = 0; i < STEPS; i++) { /* one by one */
            append(&f, &cache, 1, 1);
            memcpy(rows + i * V, f.logits, V * sizeof *rows);
        }
        cache.used = T - STEPS;
        append(&f, &cache, STEPS, STEPS); /* and together */
        const float *wanted = whole + (T - STEPS) * V;
        double alone = largest_difference(rows, wanted, STEPS * V);
        double together = largest_difference(f.logits, wanted, STEPS * V);
        double kl = divergence(wanted, rows, STEPS, V);
        print_message("%s: logits differ by %.2g one by one, by %.2g together; KL %.2g\n", block_type_name(kinds[kind]),
                      alone, together, kl);
        assert_true(alone < real_bounds[kind] && together < real_bounds[kind]);
        assert_true(kl < divergences[kind]);
        kv_cache_free(&cache);
    }
    for (size_t kind = 0; kind < KINDS; kind++) check_shift(&f, kind, 4, 60, 150);
    free(whole), free(rows);
    close_fixture(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kinds_refused), cmocka_unit_test(test_pass_memory),
        cmocka_unit_test(test_kinds_beside_whole), cmocka_unit_test(test_several_logits),
        cmocka_unit_test(test_any_threads), cmocka_unit_test(test_shift),
        cmocka_unit_test(test_shift_is_whole), cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_real),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
