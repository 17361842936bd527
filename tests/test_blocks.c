/* Block formats against golden data (tests/reference/blocks.py) and against their definitions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>

#include <cmocka.h>

#include "core/base/random.h"
#include "core/kernels/blocks.h"

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* ---- golden sections ---- */

struct section {
    uint32_t quantize, type, n, m;
    const unsigned char *floats, *blocks; /* 4 n and m bytes, any alignment */
};

static unsigned char *golden;
static size_t golden_size;

static int load_golden(void **state) {
    (void)state;
    FILE *file = fopen(ATTUNE_TEST_ROOT "/tests/golden/blocks.bin", "rb");
    if (!file) return -1;
    fseek(file, 0, SEEK_END);
    golden_size = (size_t)ftell(file);
    rewind(file);
    golden = malloc(golden_size);
    size_t n = golden ? fread(golden, 1, golden_size, file) : 0;
    fclose(file);
    return n == golden_size && n > 0 ? 0 : -1;
}

static int free_golden(void **state) {
    (void)state;
    free(golden);
    return 0;
}

static int next_section(size_t *at, struct section *out) {
    if (*at == golden_size) return 0;
    uint32_t head[4];
    assert_true(golden_size - *at >= sizeof head);
    memcpy(head, golden + *at, sizeof head);
    *out = (struct section){head[0], head[1], head[2], head[3], NULL, NULL};
    out->floats = golden + *at + sizeof head;
    out->blocks = out->floats + 4 * (size_t)out->n;
    *at += sizeof head + 4 * (size_t)out->n + out->m;
    assert_true(*at <= golden_size);
    return 1;
}

static void dequantize_equals_golden(void **state) {
    (void)state;
    struct section s;
    int seen = 0;
    for (size_t at = 0; next_section(&at, &s);) {
        if (s.quantize) continue;
        const struct block_format *format = block_format_get(s.type);
        assert_non_null(format);
        assert_int_equal(block_row_bytes((enum block_type)s.type, s.n), s.m);
        float *floats = malloc(4 * (size_t)s.n);
        unsigned char *shifted = malloc(s.m + 1); /* any alignment is fine */
        assert_true(floats && shifted);
        memcpy(shifted + 1, s.blocks, s.m);
        format->dequantize(floats, shifted + 1, s.n);
        for (uint32_t i = 0; i < s.n; i++)
            if (memcmp(floats + i, s.floats + 4 * i, 4))
                fail_msg("%s, element %u: %.9g is not the reference's", format->name, i, (double)floats[i]);
        free(floats);
        free(shifted);
        seen++;
    }
    assert_int_equal(seen, 11);
}

static void quantize_equals_golden(void **state) {
    (void)state;
    struct section s;
    int seen = 0;
    for (size_t at = 0; next_section(&at, &s);) {
        if (!s.quantize) continue;
        const struct block_format *format = block_format_get(s.type);
        assert_non_null(format);
        assert_non_null(format->quantize);
        float *floats = malloc(4 * (size_t)s.n);
        unsigned char *blocks = malloc(s.m);
        assert_true(floats && blocks);
        memcpy(floats, s.floats, 4 * (size_t)s.n);
        format->quantize(blocks, floats, s.n);
        for (uint32_t i = 0; i < s.m; i++)
            if (blocks[i] != s.blocks[i])
                fail_msg("%s, byte %u of block %u: %02x, the reference has %02x", format->name, i % format->bytes,
                         i / format->bytes, blocks[i], s.blocks[i]);
        free(floats);
        free(blocks);
        seen++;
    }
    assert_int_equal(seen, 11);
}

/* ---- definitions ---- */

static void formats_have_ggml_sizes(void **state) {
    (void)state;
    static const struct {
        uint32_t type, elements, bytes;
        const char *name;
        int quantizer;
    } expected[] = {
        {0, 1, 4, "F32", 1},      {1, 1, 2, "F16", 1},      {2, 32, 18, "Q4_0", 1},   {3, 32, 20, "Q4_1", 1},
        {6, 32, 22, "Q5_0", 1},   {7, 32, 24, "Q5_1", 1},   {8, 32, 34, "Q8_0", 1},   {12, 256, 144, "Q4_K", 1},
        {13, 256, 176, "Q5_K", 1}, {14, 256, 210, "Q6_K", 1}, {30, 1, 2, "BF16", 1},
    };
    size_t known = 0;
    for (uint32_t type = 0; type < 100; type++) known += block_format_get(type) != NULL;
    assert_int_equal(known, sizeof expected / sizeof *expected);
    for (size_t i = 0; i < known; i++) {
        const struct block_format *format = block_format_get(expected[i].type);
        assert_non_null(format);
        assert_string_equal(format->name, expected[i].name);
        assert_string_equal(block_type_name(expected[i].type), expected[i].name);
        assert_int_equal(format->elements, expected[i].elements);
        assert_int_equal(format->bytes, expected[i].bytes);
        assert_int_equal(format->quantize != NULL, expected[i].quantizer);
        assert_int_equal(block_row_bytes((enum block_type)expected[i].type, 1024),
                         1024 / expected[i].elements * expected[i].bytes);
    }
}

static void refused_types_have_names(void **state) {
    (void)state;
    assert_string_equal(block_type_name(10), "Q2_K");
    assert_string_equal(block_type_name(17), "IQ2_XS");
    assert_string_equal(block_type_name(39), "MXFP4");
    assert_null(block_format_get(17));
    assert_null(block_type_name(43));
    assert_null(block_type_name(UINT32_MAX));
    assert_null(block_format_get(UINT32_MAX));
}

static void rows_are_whole_blocks(void **state) {
    (void)state;
    assert_int_equal(block_row_bytes(BLOCK_Q4_1, 576), 360);
    assert_int_equal(block_row_bytes(BLOCK_Q4_1, 575), 0);
    assert_int_equal(block_row_bytes(BLOCK_Q6_K, 128), 0);
    assert_int_equal(block_row_bytes(BLOCK_F32, SIZE_MAX / 2), 0);
    assert_int_equal(block_row_bytes((enum block_type)9, 32), 0);
}

/* A half's value from its definition. */
static double half_value(uint16_t half) {
    int exponent = half >> 10 & 31, fraction = half & 0x3ff;
    double magnitude = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return half & 0x8000 ? -magnitude : magnitude;
}

static void every_half_converts_and_returns(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        float value = half_to_float((uint16_t)h);
        if ((h & 0x7c00) != 0x7c00) {
            assert_true((double)value == half_value((uint16_t)h));
            assert_int_equal(half_from_float(value), h);
        } else if (h & 0x3ff) {
            assert_true(isnan(value));
            assert_int_equal(half_from_float(value), h | 0x200);
        } else {
            assert_true(isinf(value));
            assert_int_equal(half_from_float(value), h);
        }
        assert_int_equal(bits_of(value) >> 31, h >> 15);
    }
}

/* Between neighbours the nearer one is taken, in the middle the even one. */
static void halves_round_to_nearest_even(void **state) {
    (void)state;
    for (uint16_t h = 0; h < 0x7bff; h++) {
        float low = half_to_float(h), high = half_to_float((uint16_t)(h + 1));
        float middle = (float)(((double)low + (double)high) / 2);
        assert_int_equal(half_from_float(middle), h & 1 ? h + 1 : h);
        assert_int_equal(half_from_float(nextafterf(middle, 0)), h);
        assert_int_equal(half_from_float(nextafterf(middle, INFINITY)), h + 1);
        assert_int_equal(half_from_float(-nextafterf(middle, INFINITY)), 0x8000 | (h + 1));
    }
    assert_int_equal(half_from_float(65519.996f), 0x7bff);
    assert_int_equal(half_from_float(65520.0f), 0x7c00);
    assert_int_equal(half_from_float(-3e38f), 0xfc00);
}

static void bf16_rounds_to_nearest_even(void **state) {
    (void)state;
    /* 1, a tie to even below and above it, past a tie, overflow, a subnormal, NaNs that rounding would turn
     * into -0 and into infinity */
    const uint32_t bits[] = {0x3f800000, 0x3f808000, 0x3f818000, 0xbf808001, 0x7f7fffff, 0x00011000, 0x7fffffff,
                             0xff800001};
    const uint16_t expected[] = {0x3f80, 0x3f80, 0x3f82, 0xbf81, 0x7f80, 0x0001, 0x7fff, 0xffc0};
    float values[8];
    uint16_t out[8];
    memcpy(values, bits, sizeof values);
    block_format_get(BLOCK_BF16)->quantize(out, values, 8);
    assert_memory_equal(out, expected, sizeof out);
}

/* What was quantized once comes through again unchanged where the scale allows it: |error| <= d/2. */
static void quantize_errs_by_half_a_step(void **state) {
    (void)state;
    static const struct { enum block_type type; double steps; } cases[] = {
        {BLOCK_Q8_0, 254}, {BLOCK_Q4_1, 15}, {BLOCK_Q4_0, 15}, {BLOCK_Q5_0, 31}, {BLOCK_Q5_1, 31}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        const struct block_format *format = block_format_get((uint32_t)cases[c].type);
        for (uint64_t round = 0; round < 50; round++) {
            float in[32], out[32];
            unsigned char block[34];
            for (size_t i = 0; i < 32; i++) in[i] = 2 * random_uniform(round, i) - 1;
            format->quantize(block, in, 32);
            format->dequantize(out, block, 32);
            /* Q4_0 reaches -8 d to 7 d: the far end may err by a whole step; so may Q5_0's */
            int one_sided = cases[c].type == BLOCK_Q4_0 || cases[c].type == BLOCK_Q5_0;
            double bound = (one_sided ? 2.0 : 1.0) / cases[c].steps * 1.02;
            for (int i = 0; i < 32; i++) assert_true(fabs((double)in[i] - (double)out[i]) <= bound);
        }
    }
}

/* Inputs that are not finite, or whose scale has no finite inverse: defined bytes, no trap. */
static void quantize_survives_any_float(void **state) {
    (void)state;
    const float values[] = {NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 1e-45f, -1e-45f, 0.0f, -0.0f, 1e-39f};
    const enum block_type types[] = {BLOCK_Q4_0, BLOCK_Q4_1, BLOCK_Q5_0, BLOCK_Q5_1,
                                     BLOCK_Q8_0, BLOCK_Q4_K, BLOCK_Q5_K, BLOCK_Q6_K};
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        const struct block_format *format = block_format_get((uint32_t)types[t]);
        for (uint64_t round = 0; round < 200; round++) {
            float in[256], out[256];
            unsigned char block[210], again[210];
            for (size_t i = 0; i < 256; i++) in[i] = values[random_u64(round, i) % (round % 2 ? 10 : 1 + round % 9)];
            format->quantize(block, in, format->elements);
            format->quantize(again, in, format->elements);
            assert_memory_equal(block, again, format->bytes);
            format->dequantize(out, block, format->elements);
        }
    }
    float zeros[32], out[32];
    unsigned char block[18];
    for (int i = 0; i < 32; i++) zeros[i] = -0.0f;
    block_format_get(BLOCK_Q4_0)->quantize(block, zeros, 32);
    block_format_get(BLOCK_Q4_0)->dequantize(out, block, 32);
    assert_int_equal(block[0] | block[1] << 8, 0x8000); /* ggml: 0 / -8 */
    assert_int_equal(block[2], 0x88);
    for (int i = 0; i < 32; i++) assert_true(out[i] == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dequantize_equals_golden),     cmocka_unit_test(quantize_equals_golden),
        cmocka_unit_test(formats_have_ggml_sizes),      cmocka_unit_test(refused_types_have_names),
        cmocka_unit_test(rows_are_whole_blocks),        cmocka_unit_test(every_half_converts_and_returns),
        cmocka_unit_test(halves_round_to_nearest_even), cmocka_unit_test(bf16_rounds_to_nearest_even),
        cmocka_unit_test(quantize_errs_by_half_a_step), cmocka_unit_test(quantize_survives_any_float),
    };
    return cmocka_run_group_tests(tests, load_golden, free_golden);
}
