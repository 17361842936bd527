/* Calibrated merging on models made by hand: random weights in any block type, random tokens. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "adapters/calibrate.h"
#include "core/base/random.h"

enum { V = 64, L = 2, T = 96, BATCHES = 3 };

struct made {
    struct model model;
    struct model_layer layers[L];
    unsigned char *data[L][TARGET_COUNT];
    float *embedding, *norm;
    int32_t tokens[BATCHES][T], positions[T];
    size_t starts[3];
    struct packed_batch batches[BATCHES];
    const struct packed_batch *of[BATCHES];
};

static float *made_floats(size_t n, uint64_t key, float most) {
    float *x = calloc(n, sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++) x[i] = most * (2 * random_uniform(key, i) - 1);
    return x;
}

static unsigned char *made_matrix(enum block_type type, size_t rows, size_t cols, uint64_t key) {
    size_t row_bytes = block_row_bytes(type, cols);
    unsigned char *data = calloc(rows, row_bytes);
    assert_non_null(data);
    for (size_t r = 0; r < rows; r++) {
        float *row = made_floats(cols, key + r, 0.3f);
        block_format_get(type)->quantize(data + r * row_bytes, row, cols);
        free(row);
    }
    return data;
}

static struct made *made_model(enum block_type type) {
    struct made *made = calloc(1, sizeof *made);
    assert_non_null(made);
    struct model *m = &made->model;
    size_t wide = block_format_get(type)->elements == 256 ? 256 : 64;
    m->C = wide, m->H = 4, m->KV = 2, m->D = wide / 4, m->F = 2 * wide, m->V = V, m->L = L, m->context = T;
    m->eps = 1e-5f;
    m->rope = (struct rope){.style = ROPE_HALVES, .dims = m->D, .base = 10000};
    made->embedding = made_floats(V * wide, 1, 1);
    made->norm = made_floats(wide, 2, 0);
    for (size_t i = 0; i < wide; i++) made->norm[i] = i % 16 == 3 ? 4 : 0.5f; /* inputs of unequal weight */
    m->embedding = m->head = (struct matrix){made->embedding, BLOCK_F32, V, wide, wide * sizeof(float)};
    m->output_norm = made->norm;
    m->layers = made->layers;
    size_t C = wide, K = wide / 2, F = 2 * wide;
    size_t shapes[TARGET_COUNT][2] = {{C, C}, {K, C}, {K, C}, {C, C}, {F, C}, {F, C}, {C, F}};
    for (size_t l = 0; l < L; l++) {
        made->layers[l].attn_norm = made->layers[l].ffn_norm = made->norm;
        for (size_t t = 0; t < TARGET_COUNT; t++) {
            made->data[l][t] = made_matrix(type, shapes[t][0], shapes[t][1], 10000 * l + 1000 * t + 5);
            made->layers[l].linear[t] = (struct matrix){made->data[l][t], type, shapes[t][0], shapes[t][1],
                                                        block_row_bytes(type, shapes[t][1])};
        }
    }
    made->starts[1] = T / 3, made->starts[2] = T;
    for (size_t i = 0; i < T; i++) made->positions[i] = (int32_t)(i < T / 3 ? i : i - T / 3);
    for (size_t b = 0; b < BATCHES; b++) {
        for (size_t i = 0; i < T; i++) made->tokens[b][i] = (int32_t)(random_u64(70 + b, i) % V);
        made->batches[b] = (struct packed_batch){.T = T, .n_sequences = 2, .tokens = made->tokens[b],
                                                 .positions = made->positions, .starts = made->starts};
        made->of[b] = &made->batches[b];
    }
    return made;
}

static void made_free(struct made *made) {
    for (size_t l = 0; l < L; l++)
        for (size_t t = 0; t < TARGET_COUNT; t++) free(made->data[l][t]);
    free(made->embedding);
    free(made->norm);
    free(made);
}

/* Changes that are small next to the grid of four bits. */
static struct lora *made_lora(const struct made *made, uint32_t targets) {
    struct lora_config config = {4, 8, targets};
    struct lora *lora = NULL;
    assert_int_equal(lora_create(&made->model, &config, &lora, NULL), ATTUNE_OK);
    for (size_t i = 0; i < lora->n; i++) lora->parameters[i] = 0.1f * random_uniform(7, i) - 0.05f;
    return lora;
}

static struct merged *calibrate(const struct made *made, const struct lora *lora, int threads, size_t n) {
    struct pool *pool = NULL;
    struct merged *merged = NULL;
    attune_error err = {0};
    assert_int_equal(pool_create(threads, &pool, NULL), ATTUNE_OK);
    if (calibrate_create(&made->model, lora, pool, made->of, n, NULL, &merged, &err) != ATTUNE_OK)
        fail_msg("%s (%s)", err.message, err.where);
    pool_destroy(pool);
    return merged;
}

/* ---- what the matrices see ---- */

/* Sums of |X (w' - w_q)|^2 over what two ways of merging give, for every matrix. */
struct judge {
    const struct made *made;
    const struct lora *lora;
    const struct merged *merged[2];
    double error[2][L][TARGET_COUNT];
};

static void judge_row(struct judge *j, size_t l, int t, size_t row, const float *x, size_t tokens) {
    const struct matrix *w = &j->made->layers[l].linear[t];
    float *want = calloc(2 * w->cols, sizeof *want), *got = want + w->cols;
    assert_non_null(want);
    for (int way = 0; way < 2; way++) {
        const struct matrix *q = &j->merged[way]->layers[l].linear[t];
        assert_true(merge_row(want, got, w, &j->lora->pairs[l].target[t], row, w->type));
        block_format_get(q->type)->dequantize(got, (const unsigned char *)q->data + row * q->row_bytes, q->cols);
        for (size_t i = 0; i < tokens; i++) {
            double miss = 0;
            for (size_t c = 0; c < w->cols; c++) miss += (double)x[i * w->cols + c] * ((double)want[c] - got[c]);
            j->error[way][l][t] += miss * miss;
        }
    }
    free(want);
}

static void judge_inputs(void *user, size_t l, enum target target, const float *x, size_t tokens, size_t width) {
    struct judge *j = user;
    int last = target == TARGET_Q ? TARGET_V : target == TARGET_GATE ? TARGET_UP : (int)target;
    for (int t = (int)target; t <= last; t++) {
        if (j->lora->pairs[l].target[t].rank == 0) continue;
        assert_int_equal(j->made->layers[l].linear[t].cols, width);
        for (size_t row = 0; row < j->made->layers[l].linear[t].rows; row += 5) judge_row(j, l, t, row, x, tokens);
    }
}

static int first_made(void *user, size_t l, struct model_layer *out, attune_error *err) {
    const struct judge *j = user;
    (void)err;
    *out = j->merged[0]->layers[l];
    return ATTUNE_OK;
}

/* The error of the outputs, and not of the weights, is what calibrating makes small: of every matrix, in any type. */
static void test_error(void **state) {
    (void)state;
    static const enum block_type types[] = {BLOCK_Q4_0, BLOCK_Q4_1, BLOCK_Q5_0, BLOCK_Q5_1,
                                            BLOCK_Q8_0, BLOCK_Q4_K, BLOCK_Q5_K, BLOCK_Q6_K};
    for (size_t k = 0; k < sizeof types / sizeof *types; k++) {
        struct made *made = made_model(types[k]);
        struct lora *lora = made_lora(made, LORA_ALL_TARGETS & ~(1u << TARGET_K));
        struct pool *pool = NULL;
        struct training_pass *pass = NULL;
        struct judge judge = {.made = made, .lora = lora};
        struct merged *plain = NULL, *merged = calibrate(made, lora, 2, BATCHES);
        assert_int_equal(pool_create(2, &pool, NULL), ATTUNE_OK);
        assert_int_equal(merge_create(&made->model, lora, MERGE_SAME, pool, NULL, &plain, NULL), ATTUNE_OK);
        assert_int_equal(merged->plain, 0);
        judge.merged[0] = merged;
        judge.merged[1] = plain;
        struct pass_shape shape = {.T_max = T, .R_max = 4, .together = BATCHES, .head_rows = 16,
                                   .precision = PRECISION_F32};
        struct weights weights = {&made->model, made->layers, lora->pairs};
        assert_int_equal(training_pass_create(&made->model, pool, &shape, &pass, NULL), ATTUNE_OK);
        assert_int_equal(training_pass_observe(pass, &weights, &(struct layer_maker){first_made, &judge},
                                               &(struct input_observer){judge_inputs, NULL, &judge}, made->of, BATCHES,
                                               NULL),
                         ATTUNE_OK);
        for (size_t l = 0; l < L; l++) {
            assert_ptr_equal(merged->layers[l].linear[TARGET_K].data, made->data[l][TARGET_K]);
            for (size_t t = 0; t < TARGET_COUNT; t++) {
                assert_int_equal(merged->layers[l].linear[t].type, types[k]);
                if (t == TARGET_K) continue;
                /* K types choose their scales freely only when they are quantized plainly */
                double share = block_format_get(types[k])->elements == 256 ? 0.95 : 0.7;
                if (!(judge.error[0][l][t] < share * judge.error[1][l][t]))
                    fail_msg("%s layer %zu target %zu: %g, plainly %g", block_type_name(types[k]), l, t,
                             judge.error[0][l][t], judge.error[1][l][t]);
            }
        }
        training_pass_destroy(pass);
        pool_destroy(pool);
        merge_destroy(plain);
        merge_destroy(merged);
        lora_destroy(lora);
        made_free(made);
    }
}

static void assert_same(const struct merged *a, const struct merged *b) {
    for (size_t l = 0; l < L; l++) {
        for (size_t t = 0; t < TARGET_COUNT; t++) {
            const struct matrix *x = &a->layers[l].linear[t], *y = &b->layers[l].linear[t];
            assert_memory_equal(x->data, y->data, x->rows * x->row_bytes);
        }
    }
}

static void test_threads(void **state) {
    (void)state;
    struct made *made = made_model(BLOCK_Q4_1);
    struct lora *lora = made_lora(made, LORA_ALL_TARGETS);
    struct merged *one = calibrate(made, lora, 1, BATCHES);
    for (int threads = 2; threads <= 8; threads += threads == 2 ? 1 : 5) {
        struct merged *more = calibrate(made, lora, threads, BATCHES);
        assert_same(one, more);
        merge_destroy(more);
    }
    merge_destroy(one);
    lora_destroy(lora);
    made_free(made);
}

/* Rows that the adapter does not change keep the base's bytes; all of them where it changes nothing. */
static void test_zero_delta(void **state) {
    (void)state;
    struct made *made = made_model(BLOCK_Q4_1);
    struct lora *lora = made_lora(made, LORA_ALL_TARGETS);
    const struct matrix *w = &made->layers[1].linear[TARGET_GATE];
    size_t a, b;
    assert_true(lora_pair_offset(lora, &made->model, 1, TARGET_GATE, &a, &b));
    for (size_t row = 0; row < w->rows; row++)
        if (row % 10 != 3) memset(lora->parameters + b + row * 4, 0, 4 * sizeof(float));
    struct merged *merged = calibrate(made, lora, 2, BATCHES);
    const unsigned char *got = merged->layers[1].linear[TARGET_GATE].data;
    for (size_t row = 0; row < w->rows; row++) {
        int same = !memcmp(got + row * w->row_bytes, made->data[1][TARGET_GATE] + row * w->row_bytes, w->row_bytes);
        assert_int_equal(same, row % 10 != 3);
    }
    merge_destroy(merged);
    memset(lora->parameters, 0, lora->n * sizeof(float));
    merged = calibrate(made, lora, 2, BATCHES);
    for (size_t l = 0; l < L; l++)
        for (size_t t = 0; t < TARGET_COUNT; t++)
            assert_memory_equal(merged->layers[l].linear[t].data, made->data[l][t],
                                made->layers[l].linear[t].rows * made->layers[l].linear[t].row_bytes);
    merge_destroy(merged);
    lora_destroy(lora);
    made_free(made);
}

/* Without rows, or with rows whose inputs are no numbers, a matrix is merged as `same` is, and that is counted. */
static void test_useless_rows(void **state) {
    (void)state;
    struct made *made = made_model(BLOCK_Q4_1);
    struct lora *lora = made_lora(made, LORA_ALL_TARGETS);
    struct pool *pool = NULL;
    struct merged *plain = NULL;
    assert_int_equal(pool_create(2, &pool, NULL), ATTUNE_OK);
    assert_int_equal(merge_create(&made->model, lora, MERGE_SAME, pool, NULL, &plain, NULL), ATTUNE_OK);
    struct merged *merged = calibrate(made, lora, 2, 0);
    assert_int_equal(merged->plain, L * TARGET_COUNT);
    assert_same(merged, plain);
    merge_destroy(merged);
    made->starts[1] = 3, made->starts[2] = 6;
    made->batches[0].T = 6;
    merged = calibrate(made, lora, 2, 1); /* 6 tokens, widths of 64 and 128 */
    assert_int_equal(merged->plain, L * TARGET_COUNT);
    assert_same(merged, plain);
    merge_destroy(merged);
    made->starts[1] = T / 3, made->starts[2] = T;
    made->batches[0].T = T;
    made->embedding[made->tokens[1][5] * 64] = NAN;
    merged = calibrate(made, lora, 2, BATCHES);
    assert_int_equal(merged->plain, L * TARGET_COUNT);
    assert_same(merged, plain);
    merge_destroy(merged);
    merge_destroy(plain);
    pool_destroy(pool);
    lora_destroy(lora);
    made_free(made);
}

/* Each group of matrices is told of its inputs, whichever others there are; blocks of equal values change too. */
static void test_each_target(void **state) {
    (void)state;
    for (int t = 0; t < TARGET_COUNT; t++) {
        struct made *made = made_model(BLOCK_Q4_1);
        struct lora *lora = made_lora(made, 1u << t);
        const struct matrix *w = &made->layers[0].linear[t];
        memset(made->data[0][t], 0, 20); /* d = m = 0 */
        struct merged *merged = calibrate(made, lora, 2, BATCHES);
        assert_int_equal(merged->plain, 0);
        assert_memory_not_equal(merged->layers[0].linear[t].data, made->data[0][t], 20);
        assert_memory_not_equal(merged->layers[1].linear[t].data, made->data[1][t], w->rows * w->row_bytes);
        merge_destroy(merged);
        lora_destroy(lora);
        made_free(made);
    }
}

struct listener {
    int reports, stop_at;
    double share;
};
static int listen(double share, void *user) {
    struct listener *l = user;
    assert_true(share >= l->share && share <= 1);
    l->share = share;
    return ++l->reports == l->stop_at;
}

static void test_cancel(void **state) {
    (void)state;
    struct made *made = made_model(BLOCK_Q8_0);
    struct lora *lora = made_lora(made, LORA_ALL_TARGETS & ~(1u << TARGET_V));
    struct pool *pool = NULL;
    struct merged *merged = NULL;
    struct listener all = {0};
    assert_int_equal(pool_create(2, &pool, NULL), ATTUNE_OK);
    assert_int_equal(calibrate_create(&made->model, lora, pool, made->of, BATCHES,
                                      &(struct merge_progress){listen, &all}, &merged, NULL),
                     ATTUNE_OK);
    merge_destroy(merged);
    assert_true(all.share == 1);
    for (int stop = 1; stop < all.reports; stop++) {
        struct listener some = {0, stop, 0};
        attune_error err = {0};
        merged = NULL;
        assert_int_equal(calibrate_create(&made->model, lora, pool, made->of, BATCHES,
                                          &(struct merge_progress){listen, &some}, &merged, &err),
                         ATTUNE_ERROR_CANCELLED);
        assert_null(merged);
        assert_int_equal(some.reports, stop); /* not asked again */
        assert_false(pool_cancelled(pool));
    }
    pool_destroy(pool);
    lora_destroy(lora);
    made_free(made);
}

static void test_refused(void **state) {
    (void)state;
    struct made *made = made_model(BLOCK_Q4_1);
    struct lora *lora = made_lora(made, 1 << TARGET_V);
    struct pool *pool = NULL;
    struct merged *merged = NULL;
    attune_error err = {0};
    size_t a, b;
    assert_true(lora_pair_offset(lora, &made->model, 1, TARGET_V, &a, &b));
    lora->parameters[b + 3] = 3e7f;
    assert_int_equal(pool_create(2, &pool, NULL), ATTUNE_OK);
    assert_int_equal(calibrate_create(&made->model, lora, pool, made->of, BATCHES, NULL, &merged, &err),
                     ATTUNE_ERROR_UNSUPPORTED);
    assert_null(merged);
    assert_non_null(strstr(err.message, "blk.1.attn_v.weight"));
    pool_destroy(pool);
    lora_destroy(lora);
    made_free(made);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_error),        cmocka_unit_test(test_threads), cmocka_unit_test(test_zero_delta),
        cmocka_unit_test(test_useless_rows), cmocka_unit_test(test_cancel),  cmocka_unit_test(test_refused),
        cmocka_unit_test(test_each_target),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
