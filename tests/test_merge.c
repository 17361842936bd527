#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "adapters/merge.h"
#include "tests/made_blocks.h"
#include "tests/tiny_base.h"

#include <math.h>

static const enum merge_mode modes[] = {MERGE_F16, MERGE_Q8, MERGE_SAME};

static struct merged *merge(const struct model *model, const struct lora *lora, enum merge_mode mode, int threads) {
    struct pool *pool = NULL;
    struct merged *merged = NULL;
    assert_int_equal(pool_create(threads, &pool, NULL), ATTUNE_OK);
    assert_int_equal(merge_create(model, lora, mode, pool, NULL, &merged, NULL), ATTUNE_OK);
    pool_destroy(pool);
    return merged;
}

/* W + scale B A of one row in double. */
static void reference_row(double *to, const struct matrix *w, const struct low_rank *pair, size_t row) {
    float *base = calloc(w->cols, sizeof *base);
    block_format_get(w->type)->dequantize(base, (const unsigned char *)w->data + row * w->row_bytes, w->cols);
    for (size_t c = 0; c < w->cols; c++) {
        double sum = 0;
        for (size_t r = 0; r < pair->rank; r++) sum += (double)pair->b[row * pair->rank + r] * pair->a[r * w->cols + c];
        to[c] = base[c] + sum * pair->scale;
    }
    free(base);
}

/* Largest error that a type may make in a block whose values span `range` and reach `most`: half a step of its
 * grid, that grid's own rounding to half precision, and float32's in the sum. */
static double tolerance(enum block_type type, double most, double range) {
    switch (type) {
    case BLOCK_F32: return 1e-6;
    case BLOCK_F16: return most * 0x1p-11 + 1e-6;
    case BLOCK_BF16: return most * 0x1p-8 + 1e-6;
    case BLOCK_Q8_0: return most / 127 * 0.51 + most * 0x1p-11;
    case BLOCK_Q4_0: return most / 8 * 1.01 + most * 0x1p-10; /* the far end of the grid is one step short */
    case BLOCK_Q4_1: return range / 15 * 0.51 + most * 0x1p-9;
    case BLOCK_Q5_0: return most / 16 * 1.01 + most * 0x1p-10;
    case BLOCK_Q5_1: return range / 31 * 0.51 + most * 0x1p-9;
    /* a part's grid is itself on one of 63 steps, and was searched for a small square error, not a small largest one */
    case BLOCK_Q4_K: return range / 15;
    case BLOCK_Q5_K: return range / 31 * 1.2;
    case BLOCK_Q6_K: return most / 32 * 1.2;
    default: return -1;
    }
}

static void check_row(const struct matrix *w, const double *want, size_t row) {
    const struct block_format *format = block_format_get(w->type);
    float *got = calloc(w->cols, sizeof *got);
    format->dequantize(got, (const unsigned char *)w->data + row * w->row_bytes, w->cols);
    for (size_t block = 0; block < w->cols; block += format->elements) {
        double least = INFINITY, greatest = -INFINITY;
        for (size_t i = block; i < block + format->elements; i++) {
            least = fmin(least, want[i]);
            greatest = fmax(greatest, want[i]);
        }
        double limit = tolerance(w->type, fmax(fabs(least), fabs(greatest)), greatest - least);
        for (size_t i = block; i < block + format->elements; i++)
            if (!(fabs(got[i] - want[i]) <= limit))
                fail_msg("%s row %zu col %zu: %g, not %g within %g", format->name, row, i, (double)got[i], want[i],
                         limit);
    }
    free(got);
}

static enum block_type expected_type(enum block_type base, enum merge_mode mode) {
    return mode == MERGE_F16 ? BLOCK_F16 : mode == MERGE_Q8 ? BLOCK_Q8_0 : base;
}

/* K types have 256 elements in a block: of the tiny base ffn_down is that wide. */
static size_t tiny_width(enum block_type type) { return block_format_get(type)->elements == 256 ? 512 : 64; }
static uint32_t tiny_targets(enum block_type type) {
    return tiny_width(type) == 512 ? 1u << TARGET_DOWN : LORA_ALL_TARGETS & ~(1u << TARGET_UP);
}

static void check_mode(const struct tiny_base *base, const struct lora *lora, enum block_type type,
                       enum merge_mode mode) {
    struct merged *merged = merge(&base->model, lora, mode, 2);
    const struct model_layer *layers = merge_layers(merged);
    for (size_t l = 0; l < TINY_L; l++) {
        for (size_t t = 0; t < TARGET_COUNT; t++) {
            const struct matrix *from = &base->layers[l].linear[t], *to = &layers[l].linear[t];
            assert_int_equal(to->rows, from->rows);
            assert_int_equal(to->cols, from->cols);
            if (!(lora->config.targets & 1u << t)) {
                assert_ptr_equal(to->data, from->data);
                continue;
            }
            assert_ptr_not_equal(to->data, from->data);
            assert_int_equal(to->type, expected_type(type, mode));
            assert_int_equal(to->row_bytes, block_row_bytes(to->type, to->cols));
            double want[512];
            for (size_t row = 0; row < from->rows; row++) {
                reference_row(want, from, &lora->pairs[l].target[t], row);
                check_row(to, want, row);
            }
        }
    }
    merge_destroy(merged);
}

/* Every mode over every type, ragged ranks included, against double precision. */
static void test_against_reference(void **state) {
    (void)state;
    for (size_t k = 0; k < MADE_TYPES; k++) {
        enum block_type type = made_types[k];
        struct tiny_base base;
        tiny_base_make(&base, type, tiny_width(type), ROPE_INTERLEAVED);
        struct lora *lora = tiny_lora(&base.model, 5, 7.5f, tiny_targets(type));
        for (size_t m = 0; m < 3; m++) check_mode(&base, lora, type, modes[m]);
        lora_destroy(lora);
        tiny_base_free(&base);
    }
}

static void same_bytes(const struct merged *a, const struct merged *b, const struct model *model) {
    for (size_t l = 0; l < model->L; l++) {
        for (size_t t = 0; t < TARGET_COUNT; t++) {
            const struct matrix *x = &merge_layers(a)[l].linear[t], *y = &merge_layers(b)[l].linear[t];
            assert_memory_equal(x->data, y->data, x->rows * x->row_bytes);
        }
    }
}

/* A layer at a time, in any order. */
static void test_layer_by_layer(void **state) {
    (void)state;
    static const enum block_type types[] = {BLOCK_Q4_1, BLOCK_F16};
    for (size_t k = 0; k < 2; k++) {
        struct tiny_base base;
        tiny_base_make(&base, types[k], 64, ROPE_INTERLEAVED);
        struct lora *lora = tiny_lora(&base.model, 3, 6, LORA_ALL_TARGETS & ~(1u << TARGET_UP));
        struct pool *pool = NULL;
        assert_int_equal(pool_create(2, &pool, NULL), ATTUNE_OK);
        for (size_t m = 0; m < 3; m++) {
            struct merged *merged = merge(&base.model, lora, modes[m], 2);
            struct layer_merge *one = NULL;
            assert_int_equal(layer_merge_create(&base.model, lora, modes[m], pool, &one, NULL), ATTUNE_OK);
            for (size_t i = 0; i < 2 * TINY_L; i++) {
                struct model_layer made, *whole = (struct model_layer *)(uintptr_t)&merge_layers(merged)[i % TINY_L];
                assert_int_equal(layer_merge_make(one, i % TINY_L, &made, NULL), ATTUNE_OK);
                assert_ptr_equal(made.linear[TARGET_UP].data, whole->linear[TARGET_UP].data);
                assert_ptr_equal(made.attn_norm, whole->attn_norm);
                for (size_t t = 0; t < TARGET_COUNT; t++) {
                    const struct matrix *x = &made.linear[t], *y = &whole->linear[t];
                    assert_true(x->type == y->type && x->rows == y->rows && x->row_bytes == y->row_bytes);
                    assert_memory_equal(x->data, y->data, x->rows * x->row_bytes);
                }
            }
            layer_merge_destroy(one);
            merge_destroy(merged);
        }
        layer_merge_destroy(NULL);
        pool_destroy(pool);
        lora_destroy(lora);
        tiny_base_free(&base);
    }
}

static void test_threads(void **state) {
    (void)state;
    struct tiny_base base;
    tiny_base_make(&base, BLOCK_Q4_1, 640, ROPE_HALVES);
    struct lora *lora = tiny_lora(&base.model, 8, 16, LORA_ALL_TARGETS);
    for (size_t m = 0; m < 3; m++) {
        struct merged *one = merge(&base.model, lora, modes[m], 1), *three = merge(&base.model, lora, modes[m], 3);
        same_bytes(one, three, &base.model);
        merge_destroy(one);
        merge_destroy(three);
    }
    lora_destroy(lora);
    tiny_base_free(&base);
}

/* In mode same, what the adapter does not change is the base's, block by block. The base's blocks are not
 * what quantizing their own values gives: scales of random bytes see to that. */
static void test_zero_delta(void **state) {
    (void)state;
    for (size_t k = 0; k < MADE_TYPES; k++) {
        enum block_type type = made_types[k];
        size_t cols = tiny_width(type), elements = block_format_get(type)->elements;
        struct tiny_base base;
        tiny_base_make(&base, type, cols, ROPE_INTERLEAVED);
        unsigned char *data = base.data[1][TARGET_DOWN]; /* (32, cols) */
        size_t row_bytes = base.layers[1].linear[TARGET_DOWN].row_bytes;
        for (size_t row = 0; row < 32; row++) made_row(data + row * row_bytes, type, cols, 0.01f);
        for (size_t i = 0; i < 32 * cols && elements == 1; i++) /* -0 */
            memset(data + i * row_bytes / cols, 0, row_bytes / cols), data[(i + 1) * row_bytes / cols - 1] = 0x80;
        struct lora *lora = tiny_lora(&base.model, 2, 4, 1 << TARGET_DOWN);
        size_t a, b;
        assert_true(lora_pair_offset(lora, &base.model, 1, TARGET_DOWN, &a, &b));
        /* row 3 alone is changed, and of it the second half */
        for (size_t row = 0; row < 32; row++)
            if (row != 3) lora->parameters[b + row * 2] = lora->parameters[b + row * 2 + 1] = 0;
        for (size_t r = 0; r < 2; r++) memset(lora->parameters + a + r * cols, 0, cols / 2 * sizeof(float));
        struct merged *merged = merge(&base.model, lora, MERGE_SAME, 2);
        const unsigned char *got = merge_layers(merged)[1].linear[TARGET_DOWN].data;
        for (size_t row = 0; row < 32; row++) {
            size_t same = row == 3 ? row_bytes / 2 : row_bytes;
            assert_memory_equal(got + row * row_bytes, data + row * row_bytes, same);
        }
        size_t changed = 3 * row_bytes + row_bytes / 2;
        assert_memory_not_equal(got + changed, data + changed, row_bytes / 2);
        merge_destroy(merged);
        lora_destroy(lora);
        tiny_base_free(&base);
    }
}

/* The cancelled or refused merge leaves *out alone. */
static void refused(const struct model *model, const struct lora *lora, enum merge_mode mode, int code,
                    const char *named) {
    struct pool *pool = NULL;
    struct merged *merged = NULL;
    attune_error err = {0};
    assert_int_equal(pool_create(2, &pool, NULL), ATTUNE_OK);
    assert_int_equal(merge_create(model, lora, mode, pool, NULL, &merged, &err), code);
    assert_null(merged);
    struct layer_merge *layers = NULL;
    struct model_layer made;
    attune_error other = {0};
    int found = layer_merge_create(model, lora, mode, pool, &layers, &other);
    for (size_t l = 0; l < model->L && found == ATTUNE_OK; l++) found = layer_merge_make(layers, l, &made, &other);
    assert_int_equal(found, code);
    assert_string_equal(other.message, err.message);
    layer_merge_destroy(layers);
    if (!strstr(err.message, named)) fail_msg("\"%s\" is not in: %s", named, err.message);
    pool_destroy(pool);
}

static void test_too_large(void **state) {
    (void)state;
    struct tiny_base base;
    tiny_base_make(&base, BLOCK_F32, 64, ROPE_INTERLEAVED);
    struct lora *lora = tiny_lora(&base.model, 1, 1, 1 << TARGET_V);
    float *cell = (float *)(void *)base.data[1][TARGET_V] + 15 * 32 + 31;
    static const float sizes[] = {65505, -65505, NAN, INFINITY};
    for (size_t i = 0; i < 4; i++) {
        *cell = sizes[i];
        refused(&base.model, lora, MERGE_F16, ATTUNE_ERROR_UNSUPPORTED, "blk.1.attn_v.weight");
        refused(&base.model, lora, MERGE_Q8, ATTUNE_ERROR_UNSUPPORTED, "blk.1.attn_v.weight");
    }
    *cell = 65505;
    merge_destroy(merge(&base.model, lora, MERGE_SAME, 1)); /* F32 holds it */
    *cell = NAN;
    refused(&base.model, lora, MERGE_SAME, ATTUNE_ERROR_UNSUPPORTED, "blk.1.attn_v.weight");
    /* 65504 itself is the largest half */
    *cell = 65504;
    size_t a, b;
    assert_true(lora_pair_offset(lora, &base.model, 1, TARGET_V, &a, &b));
    lora->parameters[b + 15] = 0;
    struct merged *merged = merge(&base.model, lora, MERGE_F16, 1);
    uint16_t half;
    memcpy(&half, (const unsigned char *)merge_layers(merged)[1].linear[TARGET_V].data + (15 * 32 + 31) * 2, 2);
    assert_int_equal(half, 0x7bff);
    merge_destroy(merged);
    lora_destroy(lora);
    tiny_base_free(&base);
}

static void test_refused_types(void **state) {
    (void)state;
    struct tiny_base base;
    tiny_base_make(&base, BLOCK_Q5_0, 64, ROPE_INTERLEAVED);
    struct lora *lora = tiny_lora(&base.model, 1, 1, LORA_ALL_TARGETS);
    refused(&base.model, lora, MERGE_AUTO, ATTUNE_ERROR_ARGUMENT, "auto");
    refused(&base.model, lora, MERGE_NONE, ATTUNE_ERROR_ARGUMENT, "none");
    lora_destroy(lora);
    tiny_base_free(&base);

    tiny_base_make(&base, BLOCK_F16, 48, ROPE_INTERLEAVED); /* 48 columns: one and a half blocks */
    lora = tiny_lora(&base.model, 1, 1, LORA_ALL_TARGETS);
    refused(&base.model, lora, MERGE_Q8, ATTUNE_ERROR_UNSUPPORTED, "blk.0.ffn_down.weight");
    merge_destroy(merge(&base.model, lora, MERGE_F16, 1));
    lora_destroy(lora);
    tiny_base_free(&base);
}

/* Stops at report number `stop_at`; 0: never. */
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

/* Shares grow to 1; a cancel at any report leaves nothing, and the pool as it was. */
static void test_progress(void **state) {
    (void)state;
    struct tiny_base base;
    struct pool *pool = NULL;
    tiny_base_make(&base, BLOCK_Q4_1, 4096, ROPE_INTERLEAVED);
    struct lora *lora = tiny_lora(&base.model, 2, 4, LORA_ALL_TARGETS);
    assert_int_equal(pool_create(2, &pool, NULL), ATTUNE_OK);
    struct listener all = {0};
    struct merged *merged = NULL;
    assert_int_equal(merge_create(&base.model, lora, MERGE_SAME, pool, &(struct merge_progress){listen, &all}, &merged,
                                  NULL),
                     ATTUNE_OK);
    merge_destroy(merged);
    assert_true(all.share == 1);
    assert_true(all.reports >= 4 * TINY_L);
    for (int stop = 1; stop <= all.reports; stop++) {
        struct listener some = {0, stop, 0};
        attune_error err = {0};
        merged = NULL;
        assert_int_equal(merge_create(&base.model, lora, MERGE_SAME, pool, &(struct merge_progress){listen, &some},
                                      &merged, &err),
                         ATTUNE_ERROR_CANCELLED);
        assert_null(merged);
        assert_int_equal(some.reports, stop);
        assert_false(pool_cancelled(pool));
    }
    pool_destroy(pool);
    lora_destroy(lora);
    tiny_base_free(&base);
}

static void test_cancelled(void **state) {
    (void)state;
    struct tiny_base base;
    struct pool *pool = NULL;
    struct merged *merged = NULL;
    attune_error err = {0};
    tiny_base_make(&base, BLOCK_Q8_0, 64, ROPE_INTERLEAVED);
    struct lora *lora = tiny_lora(&base.model, 2, 4, LORA_ALL_TARGETS);
    assert_int_equal(pool_create(2, &pool, NULL), ATTUNE_OK);
    pool_cancel(pool);
    assert_int_equal(merge_create(&base.model, lora, MERGE_F16, pool, NULL, &merged, &err), ATTUNE_ERROR_CANCELLED);
    assert_null(merged);
    pool_cancel_clear(pool);
    assert_int_equal(merge_create(&base.model, lora, MERGE_F16, pool, NULL, &merged, &err), ATTUNE_OK);
    merge_destroy(merged);
    merge_destroy(NULL);
    pool_destroy(pool);
    lora_destroy(lora);
    tiny_base_free(&base);
}

static void test_bytes(void **state) {
    (void)state;
    struct tiny_base base;
    tiny_base_make(&base, BLOCK_Q4_1, 64, ROPE_INTERLEAVED);
    struct lora *lora = tiny_lora(&base.model, 2, 4, 1 << TARGET_GATE | 1 << TARGET_Q);
    size_t weights = 2 * (64 * 32 + 32 * 32), slack = 2 * sizeof(struct model_layer) + 64;
    size_t expected[] = {weights * 2, weights / 32 * 34, weights / 32 * 20};
    for (size_t m = 0; m < 3; m++) {
        size_t bytes = merge_bytes(&base.model, lora->config.targets, modes[m]);
        assert_in_range(bytes, expected[m], expected[m] + slack);
    }
    assert_int_equal(merge_bytes(&base.model, lora->config.targets, MERGE_NONE), 0);
    assert_int_equal(layer_merge_bytes(&base.model, 1, lora->config.targets, MERGE_NONE), 0);
    size_t scratch = 2 * 64 * sizeof(float), layer = expected[0] / TINY_L;
    assert_in_range(layer_merge_bytes(&base.model, 1, lora->config.targets, MERGE_F16), layer + scratch,
                    layer + scratch + 1024);
    lora_destroy(lora);
    tiny_base_free(&base);
}

static void test_mode_names(void **state) {
    (void)state;
    for (int i = MERGE_NONE; i < MERGE_MODES; i++) {
        enum merge_mode mode = MERGE_NONE;
        assert_int_equal(merge_mode_parse(merge_mode_name((enum merge_mode)i), &mode, NULL), ATTUNE_OK);
        assert_int_equal(mode, i);
    }
    static const char *const unknown[] = {"", "F16", "f16 ", "f1", "calibrate"};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        enum merge_mode mode = MERGE_Q8;
        attune_error err = {0};
        assert_int_equal(merge_mode_parse(unknown[i], &mode, &err), ATTUNE_ERROR_ARGUMENT);
        assert_int_equal(mode, MERGE_Q8);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_reference), cmocka_unit_test(test_threads),
        cmocka_unit_test(test_zero_delta),        cmocka_unit_test(test_too_large),
        cmocka_unit_test(test_refused_types),     cmocka_unit_test(test_cancelled),
        cmocka_unit_test(test_bytes),             cmocka_unit_test(test_mode_names),
        cmocka_unit_test(test_layer_by_layer),    cmocka_unit_test(test_progress),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
