#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "adapters/lora.h"
#include "tests/tiny_base.h"

#include <math.h>

static struct tiny_base base;

static int setup(void **state) {
    (void)state;
    tiny_base_make(&base, BLOCK_F32, 48, ROPE_INTERLEAVED);
    return 0;
}
static int teardown(void **state) {
    (void)state;
    tiny_base_free(&base);
    return 0;
}

static struct lora *make(size_t rank, uint32_t targets) {
    struct lora_config config = {rank, 8, targets};
    struct lora *lora = NULL;
    assert_int_equal(lora_create(&base.model, &config, &lora, NULL), ATTUNE_OK);
    return lora;
}

static void test_layout(void **state) {
    (void)state;
    uint32_t targets = 1 << TARGET_K | 1 << TARGET_DOWN;
    struct lora *lora = make(4, targets);
    assert_int_equal(lora->n, 2 * (4 * (32 + 16) + 4 * (48 + 32)));
    assert_int_equal(lora->n, lora_count(&base.model, 4, targets));
    size_t expected = 0;
    for (size_t l = 0; l < TINY_L; l++) {
        for (size_t t = 0; t < TARGET_COUNT; t++) {
            size_t a = 0, b = 0;
            int there = lora_pair_offset(lora, &base.model, l, t, &a, &b);
            assert_int_equal(there, t == TARGET_K || t == TARGET_DOWN);
            const struct low_rank *pair = &lora->pairs[l].target[t];
            assert_int_equal(pair->rank, there ? 4 : 0);
            if (!there) continue;
            const struct matrix *w = &base.model.layers[l].linear[t];
            assert_int_equal(a, expected);
            assert_int_equal(b, a + 4 * w->cols);
            assert_ptr_equal(pair->a, lora->parameters + a);
            assert_ptr_equal(pair->b, lora->parameters + b);
            assert_float_equal(pair->scale, 2, 0);
            expected = b + 4 * w->rows;
        }
    }
    assert_int_equal(expected, lora->n);
    for (size_t i = 0; i < lora->n; i++) assert_true(lora->parameters[i] == 0);
    size_t a, b;
    assert_int_equal(lora_pair_offset(lora, &base.model, TINY_L, TARGET_K, &a, &b), 0);
    assert_int_equal(lora_pair_offset(lora, &base.model, 0, TARGET_COUNT, &a, &b), 0);

    float *vector = calloc(lora->n, sizeof *vector);
    struct layer_gradients views[TINY_L];
    lora_gradient_views(lora, vector, views);
    assert_true(lora_pair_offset(lora, &base.model, 1, TARGET_DOWN, &a, &b));
    assert_ptr_equal(views[1].target[TARGET_DOWN].da, vector + a);
    assert_ptr_equal(views[1].target[TARGET_DOWN].db, vector + b);
    assert_null(views[1].target[TARGET_Q].da);
    assert_null(views[1].target[TARGET_Q].db);
    free(vector);
    lora_destroy(lora);
    lora_destroy(NULL);
}

static void test_refused_configurations(void **state) {
    (void)state;
    const struct lora_config refused[] = {
        {0, 8, LORA_ALL_TARGETS},        {LORA_RANK_MAX + 1, 8, LORA_ALL_TARGETS}, {8, 0, LORA_ALL_TARGETS},
        {8, NAN, LORA_ALL_TARGETS},      {8, INFINITY, LORA_ALL_TARGETS},          {8, 65537, LORA_ALL_TARGETS},
        {8, -65537, LORA_ALL_TARGETS},   {8, 8, 0},                                {8, 8, 1 << TARGET_COUNT},
    };
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        struct lora *lora = NULL;
        attune_error err = {0};
        assert_int_equal(lora_create(&base.model, &refused[i], &lora, &err), ATTUNE_ERROR_ARGUMENT);
        assert_int_equal(err.code, ATTUNE_ERROR_ARGUMENT);
        assert_true(err.message[0] != '\0');
        assert_null(lora);
    }
}

/* Values of tests/reference/lora_init.py. */
static void test_init_values(void **state) {
    (void)state;
    static const struct {
        size_t layer, target, width;
        float values[4]; /* (0,0), (0,1), (2,5), (3, width - 1) */
    } expected[] = {
        {0, TARGET_Q, 32, {0x1.08e7dcp-3f, -0x1.4d3f8ap-3f, 0x1.5fa114p-5f, -0x1.6db8eap-5f}},
        {1, TARGET_V, 32, {0x1.050548p-4f, -0x1.9a4f6ep-5f, 0x1.173fecp-3f, 0x1.3e69cap-4f}},
        {1, TARGET_DOWN, 48, {-0x1.f3c3eep-4f, -0x1.06869ep-3f, -0x1.bccef0p-7f, -0x1.6645dcp-10f}},
    };
    struct lora *lora = make(4, LORA_ALL_TARGETS);
    for (size_t i = 0; i < lora->n; i++) lora->parameters[i] = 9;
    lora_init(lora, &base.model, 42);
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        size_t width = expected[i].width;
        const struct low_rank *pair = &lora->pairs[expected[i].layer].target[expected[i].target];
        assert_true(pair->a[0] == expected[i].values[0]);
        assert_true(pair->a[1] == expected[i].values[1]);
        assert_true(pair->a[2 * width + 5] == expected[i].values[2]);
        assert_true(pair->a[3 * width + width - 1] == expected[i].values[3]);
        for (size_t b = 0; b < 4 * 16; b++) assert_true(pair->b[b] == 0);
    }
    lora_destroy(lora);
}

/* What a pair starts with depends on seed, layer and target alone. */
static void test_init_is_keyed(void **state) {
    (void)state;
    struct lora *all = make(4, LORA_ALL_TARGETS), *some = make(4, 1 << TARGET_V | 1 << TARGET_UP), 
                *other = make(4, LORA_ALL_TARGETS);
    lora_init(all, &base.model, 5);
    lora_init(some, &base.model, 5);
    lora_init(other, &base.model, 6);
    for (size_t l = 0; l < TINY_L; l++) {
        assert_memory_equal(all->pairs[l].target[TARGET_V].a, some->pairs[l].target[TARGET_V].a, 4 * 32 * 4);
        assert_memory_equal(all->pairs[l].target[TARGET_UP].a, some->pairs[l].target[TARGET_UP].a, 4 * 32 * 4);
    }
    assert_memory_not_equal(all->pairs[0].target[TARGET_V].a, all->pairs[1].target[TARGET_V].a, 4 * 32 * 4);
    assert_memory_not_equal(all->pairs[0].target[TARGET_V].a, all->pairs[0].target[TARGET_K].a, 4 * 32 * 4);
    assert_memory_not_equal(all->pairs[0].target[TARGET_V].a, other->pairs[0].target[TARGET_V].a, 4 * 32 * 4);
    lora_destroy(all);
    lora_destroy(some);
    lora_destroy(other);
}

static void test_init_distribution(void **state) {
    (void)state;
    struct lora *lora = make(64, 1 << TARGET_DOWN);
    lora_init(lora, &base.model, 1);
    double sum = 0, squares = 0, bound = 1 / sqrt(48.0);
    size_t n = 64 * 48;
    for (size_t i = 0; i < n; i++) {
        double a = lora->pairs[0].target[TARGET_DOWN].a[i];
        assert_true(fabs(a) <= bound * 1.000001);
        sum += a;
        squares += a * a;
    }
    assert_true(fabs(sum / (double)n) < 0.05 * bound);
    assert_true(fabs(squares / (double)n / (bound * bound / 3) - 1) < 0.1);
    lora_destroy(lora);
}

static void test_targets_parse(void **state) {
    (void)state;
    uint32_t targets = 0;
    assert_int_equal(lora_targets_parse("all", &targets, NULL), ATTUNE_OK);
    assert_int_equal(targets, LORA_ALL_TARGETS);
    assert_int_equal(lora_targets_parse("attn_output,attn_q", &targets, NULL), ATTUNE_OK);
    assert_int_equal(targets, 1 << TARGET_Q | 1 << TARGET_OUTPUT);
    const char *refused[] = {"", "attn_q,", ",attn_q", "attn_q,,attn_k", "attn", "attn_qq", "q_proj", "attn_q, attn_k"};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        attune_error err = {0};
        targets = 77;
        assert_int_equal(lora_targets_parse(refused[i], &targets, &err), ATTUNE_ERROR_ARGUMENT);
        assert_int_equal(targets, 77);
    }
    attune_error err = {0};
    lora_targets_parse("attn_q,lm_head", &targets, &err);
    assert_non_null(strstr(err.message, "\"lm_head\""));
}

static void test_check_finite(void **state) {
    (void)state;
    struct lora *lora = tiny_lora(&base.model, 3, 6, LORA_ALL_TARGETS);
    assert_int_equal(lora_check_finite(lora, &base.model, NULL, NULL), ATTUNE_OK);
    size_t a, b;
    assert_true(lora_pair_offset(lora, &base.model, 1, TARGET_UP, &a, &b));
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < 3; i++) {
        attune_error err = {0};
        lora->parameters[a] = bad[i];
        assert_int_equal(lora_check_finite(lora, &base.model, NULL, &err), ATTUNE_ERROR_FORMAT);
        assert_string_equal(err.where, "blk.1.ffn_up.weight");
        assert_non_null(strstr(err.message, "A of blk.1.ffn_up.weight"));
        lora->parameters[a] = 0;
        lora->parameters[b + 3 * 48 - 1] = bad[i];
        assert_int_equal(lora_check_finite(lora, &base.model, "file", &err), ATTUNE_ERROR_FORMAT);
        assert_string_equal(err.where, "file");
        assert_non_null(strstr(err.message, "B of blk.1.ffn_up.weight"));
        lora->parameters[b + 3 * 48 - 1] = 0;
    }
    lora_destroy(lora);
}

/* Values of all three types come out as they are, at an odd address. */
static void test_assemble_types(void **state) {
    (void)state;
    struct lora_half halves[TINY_L * TARGET_COUNT * LORA_HALF_COUNT] = {{0}};
    static const enum block_type types[] = {BLOCK_F32, BLOCK_F16, BLOCK_BF16};
    unsigned char *data = malloc(1 + 32 * 2 * 4);
    for (size_t k = 0; k < 3; k++) {
        size_t each = types[k] == BLOCK_F32 ? 4 : 2;
        float values[64];
        for (size_t i = 0; i < 64; i++) values[i] = ((float)i - 31) / 8;
        for (size_t i = 0; i < 64; i++) block_format_get(types[k])->quantize(data + 1 + i * each, &values[i], 1);
        for (size_t l = 0; l < TINY_L; l++) {
            halves[lora_half_index(l, TARGET_Q, LORA_HALF_A)] = (struct lora_half){"a", data + 1, types[k], 2, 32};
            halves[lora_half_index(l, TARGET_Q, LORA_HALF_B)] = (struct lora_half){"b", data + 1, types[k], 32, 2};
        }
        struct lora *lora = NULL;
        assert_int_equal(lora_assemble(&base.model, 4, halves, "file", &lora, NULL), ATTUNE_OK);
        assert_int_equal(lora->config.rank, 2);
        assert_int_equal(lora->config.targets, 1 << TARGET_Q);
        assert_true(lora->config.alpha == 4);
        for (size_t i = 0; i < 64; i++) {
            assert_true(lora->pairs[1].target[TARGET_Q].a[i] == values[i]);
            assert_true(lora->pairs[1].target[TARGET_Q].b[i] == values[i]);
        }
        lora_destroy(lora);
    }
    free(data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layout),          cmocka_unit_test(test_refused_configurations),
        cmocka_unit_test(test_init_values),     cmocka_unit_test(test_init_is_keyed),
        cmocka_unit_test(test_init_distribution), cmocka_unit_test(test_targets_parse),
        cmocka_unit_test(test_check_finite),    cmocka_unit_test(test_assemble_types),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
