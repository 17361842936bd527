/* Block formats, reference code. Little-endian; `d`, `m` and `dmin` are IEEE halves.
 *
 *   Q4_0  32 elements  d 0..1, q 2..17                            x = d (q - 8)
 *   Q4_1  32           d 0..1, m 2..3, q 4..19                    x = d q + m
 *   Q5_0  32           d 0..1, fifth bits 2..5, q 6..21           x = d (q - 16)
 *   Q5_1  32           d 0..1, m 2..3, fifth bits 4..7, q 8..23   x = d q + m
 *   Q8_0  32           d 0..1, q 2..33 (signed)                   x = d q
 *
 * and the K formats of blocks_k.c.
 *
 * Four-bit values of 32 elements: byte i holds element i in its low half, element i + 16 in its high
 * half. Fifth bits: bit i of a 32-bit number.
 *
 * The arithmetic, its order included, is that of ggml's reference functions compiled without contraction,
 * so the results agree bit for bit; this file must be compiled with -ffp-contract=off. Every product of a
 * dequantization is exact in a float, so that a fused multiply-add would change nothing there; in the
 * quantizers it would. */
#include "core/kernels/blocks_k.h"

#include <math.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "F32, F16 and BF16 rows are used as they lie in a file");

/* Bytes only, so that a block may lie at any address. */
struct q4_0 { uint8_t d[2], q[16]; };
struct q4_1 { uint8_t d[2], m[2], q[16]; };
struct q5_0 { uint8_t d[2], fifth[4], q[16]; };
struct q5_1 { uint8_t d[2], m[2], fifth[4], q[16]; };
struct q8_0 { uint8_t d[2]; int8_t q[32]; };

_Static_assert(sizeof(struct q4_0) == 18, "Q4_0: 2 + 32/2");
_Static_assert(sizeof(struct q4_1) == 20, "Q4_1: 4 + 32/2");
_Static_assert(sizeof(struct q5_0) == 22, "Q5_0: 2 + 4 + 32/2");
_Static_assert(sizeof(struct q5_1) == 24, "Q5_1: 4 + 4 + 32/2");
_Static_assert(sizeof(struct q8_0) == 34, "Q8_0: 2 + 32");
_Static_assert(sizeof(float) == 4 && sizeof(uint16_t) == 2, "F32, F16, BF16");

/* ---- halves ---- */

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
static float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Subnormal halves are normal floats. A NaN keeps its payload and becomes quiet, as in hardware. */
float half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ff;
    if (exponent == 31) return float_of(sign | 0x7f800000 | (fraction ? 0x400000 : 0) | fraction << 13);
    if (exponent == 0) return float_of(sign | bits_of((float)fraction * 0x1p-24f));
    return float_of(sign | (exponent + 112) << 23 | fraction << 13);
}

uint16_t half_from_float(float value) {
    uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffff;
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
    if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* 65520 and more round to infinity */
    if (magnitude < 0x38800000) { /* below 2^-14: a sum with 0.5 rounds to multiples of 2^-24 in its lowest bits */
        return (uint16_t)(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000));
    }
    uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1); /* a carry moves into the exponent as it should */
    return (uint16_t)(sign | (rounded - 0x38000000) >> 13);
}

static uint16_t load16(const uint8_t p[2]) { return (uint16_t)(p[0] | p[1] << 8); }
static float load_half(const uint8_t p[2]) { return half_to_float(load16(p)); }
static uint32_t load32(const uint8_t p[4]) { return load16(p) | (uint32_t)load16(p + 2) << 16; }
static void store32(uint8_t p[4], uint32_t value) {
    for (int i = 0; i < 4; i++) p[i] = (uint8_t)(value >> 8 * i);
}
static void store_half(uint8_t p[2], float value) {
    uint16_t half = half_from_float(value);
    p[0] = (uint8_t)half;
    p[1] = (uint8_t)(half >> 8);
}

/* ---- plain formats ---- */

static void dequantize_f32(float *dst, const void *src, size_t n) { memcpy(dst, src, n * sizeof *dst); }
static void quantize_f32(void *dst, const float *src, size_t n) { memcpy(dst, src, n * sizeof *src); }

static void dequantize_f16(float *dst, const void *src, size_t n) {
    for (size_t i = 0; i < n; i++) dst[i] = load_half((const uint8_t *)src + 2 * i);
}
static void quantize_f16(void *dst, const float *src, size_t n) {
    for (size_t i = 0; i < n; i++) store_half((uint8_t *)dst + 2 * i, src[i]);
}

static void dequantize_bf16(float *dst, const void *src, size_t n) {
    for (size_t i = 0; i < n; i++) dst[i] = float_of((uint32_t)load16((const uint8_t *)src + 2 * i) << 16);
}
static void quantize_bf16(void *dst, const float *src, size_t n) {
    uint8_t *out = dst;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = bits_of(src[i]);
        if ((bits & 0x7fffffff) > 0x7f800000)
            bits |= 0x400000; /* a NaN stays one when its payload is cut */
        else
            bits += 0x7fff + (bits >> 16 & 1);
        out[2 * i] = (uint8_t)(bits >> 16);
        out[2 * i + 1] = (uint8_t)(bits >> 24);
    }
}

/* ---- blocks of 32 ---- */

/* Truncates to [0, most]. NaN and what is outside a block's range (inputs that are not finite, a scale whose
 * inverse overflows) become a limit: C leaves that conversion undefined. */
static uint8_t to_bits(float value, uint8_t most) {
    if (!(value > 0)) return 0;
    return value < most ? (uint8_t)value : most;
}
static uint8_t to_4_bits(float value) { return to_bits(value, 15); }

static void dequantize_q4_0(float *dst, const void *src, size_t n) {
    const struct q4_0 *block = src;
    for (size_t b = 0; b < n / 32; b++, block++, dst += 32) {
        float d = load_half(block->d);
        for (int i = 0; i < 16; i++) {
            dst[i] = (float)((block->q[i] & 15) - 8) * d;
            dst[i + 16] = (float)((block->q[i] >> 4) - 8) * d;
        }
    }
}

/* Of a block: the value of greatest magnitude, the first of several. */
static float largest_of(const float *src) {
    float largest = 0, magnitude = 0;
    for (int i = 0; i < 32; i++) {
        if (fabsf(src[i]) > magnitude) {
            magnitude = fabsf(src[i]);
            largest = src[i];
        }
    }
    return largest;
}

static void limits_of(const float *src, float *least, float *most) {
    *least = *most = src[0];
    for (int i = 1; i < 32; i++) {
        if (src[i] < *least) *least = src[i];
        if (src[i] > *most) *most = src[i];
    }
}

/* The value of greatest magnitude becomes -8. */
static void quantize_q4_0(void *dst, const float *src, size_t n) {
    struct q4_0 *block = dst;
    for (size_t b = 0; b < n / 32; b++, block++, src += 32) {
        float d = largest_of(src) / -8, inverse = d != 0 ? 1.0f / d : 0.0f;
        store_half(block->d, d);
        for (int i = 0; i < 16; i++) {
            uint8_t low = to_4_bits(src[i] * inverse + 8.5f), high = to_4_bits(src[i + 16] * inverse + 8.5f);
            block->q[i] = (uint8_t)(low | high << 4);
        }
    }
}

static void dequantize_q4_1(float *dst, const void *src, size_t n) {
    const struct q4_1 *block = src;
    for (size_t b = 0; b < n / 32; b++, block++, dst += 32) {
        float d = load_half(block->d), m = load_half(block->m);
        for (int i = 0; i < 16; i++) {
            dst[i] = (float)(block->q[i] & 15) * d + m;
            dst[i + 16] = (float)(block->q[i] >> 4) * d + m;
        }
    }
}

static void quantize_q4_1(void *dst, const float *src, size_t n) {
    struct q4_1 *block = dst;
    for (size_t b = 0; b < n / 32; b++, block++, src += 32) {
        float least, most;
        limits_of(src, &least, &most);
        float d = (most - least) / 15, inverse = d != 0 ? 1.0f / d : 0.0f;
        store_half(block->d, d);
        store_half(block->m, least);
        for (int i = 0; i < 16; i++) {
            uint8_t low = to_4_bits((src[i] - least) * inverse + 0.5f);
            uint8_t high = to_4_bits((src[i + 16] - least) * inverse + 0.5f);
            block->q[i] = (uint8_t)(low | high << 4);
        }
    }
}

/* Elements i and i + 16 of a Q5 block, 0 to 31. */
static int five_low(uint8_t q, uint32_t fifth, int i) { return (q & 15) | (int)(fifth >> i & 1) << 4; }
static int five_high(uint8_t q, uint32_t fifth, int i) { return q >> 4 | (int)(fifth >> (i + 16) & 1) << 4; }

static void dequantize_q5_0(float *dst, const void *src, size_t n) {
    const struct q5_0 *block = src;
    for (size_t b = 0; b < n / 32; b++, block++, dst += 32) {
        float d = load_half(block->d);
        uint32_t fifth = load32(block->fifth);
        for (int i = 0; i < 16; i++) {
            dst[i] = (float)(five_low(block->q[i], fifth, i) - 16) * d;
            dst[i + 16] = (float)(five_high(block->q[i], fifth, i) - 16) * d;
        }
    }
}

static void dequantize_q5_1(float *dst, const void *src, size_t n) {
    const struct q5_1 *block = src;
    for (size_t b = 0; b < n / 32; b++, block++, dst += 32) {
        float d = load_half(block->d), m = load_half(block->m);
        uint32_t fifth = load32(block->fifth);
        for (int i = 0; i < 16; i++) {
            dst[i] = (float)five_low(block->q[i], fifth, i) * d + m;
            dst[i + 16] = (float)five_high(block->q[i], fifth, i) * d + m;
        }
    }
}

static void five_store(uint8_t q[16], uint8_t fifth[4], const uint8_t values[32]) {
    uint32_t bits = 0;
    for (int i = 0; i < 16; i++) q[i] = (uint8_t)((values[i] & 15) | values[i + 16] << 4);
    for (int i = 0; i < 32; i++) bits |= (uint32_t)(values[i] >> 4) << i;
    store32(fifth, bits);
}

/* The value of greatest magnitude becomes -16. */
static void quantize_q5_0(void *dst, const float *src, size_t n) {
    struct q5_0 *block = dst;
    for (size_t b = 0; b < n / 32; b++, block++, src += 32) {
        float d = largest_of(src) / -16, inverse = d != 0 ? 1.0f / d : 0.0f;
        uint8_t values[32];
        store_half(block->d, d);
        for (int i = 0; i < 32; i++) values[i] = to_bits(src[i] * inverse + 16.5f, 31);
        five_store(block->q, block->fifth, values);
    }
}

static void quantize_q5_1(void *dst, const float *src, size_t n) {
    struct q5_1 *block = dst;
    for (size_t b = 0; b < n / 32; b++, block++, src += 32) {
        float least, most;
        limits_of(src, &least, &most);
        float d = (most - least) / 31, inverse = d != 0 ? 1.0f / d : 0.0f;
        uint8_t values[32];
        store_half(block->d, d);
        store_half(block->m, least);
        for (int i = 0; i < 32; i++) values[i] = to_bits((src[i] - least) * inverse + 0.5f, 31);
        five_store(block->q, block->fifth, values);
    }
}

static void dequantize_q8_0(float *dst, const void *src, size_t n) {
    const struct q8_0 *block = src;
    for (size_t b = 0; b < n / 32; b++, block++, dst += 32) {
        float d = load_half(block->d);
        for (int i = 0; i < 32; i++) dst[i] = (float)block->q[i] * d;
    }
}

static void quantize_q8_0(void *dst, const float *src, size_t n) {
    struct q8_0 *block = dst;
    for (size_t b = 0; b < n / 32; b++, block++, src += 32) {
        float magnitude = 0;
        for (int i = 0; i < 32; i++)
            if (fabsf(src[i]) > magnitude) magnitude = fabsf(src[i]);
        float d = magnitude / 127, inverse = d != 0 ? 1.0f / d : 0.0f;
        store_half(block->d, d);
        for (int i = 0; i < 32; i++) {
            float value = roundf(src[i] * inverse); /* NaN and beyond: as in to_4_bits */
            block->q[i] = (int8_t)(value > -127 ? (value < 127 ? value : 127) : -127);
        }
    }
}

/* ---- tables ---- */

static const struct block_format formats[BLOCK_TYPE_LIMIT] = {
    [BLOCK_F32] = {"F32", 1, 4, dequantize_f32, quantize_f32},
    [BLOCK_F16] = {"F16", 1, 2, dequantize_f16, quantize_f16},
    [BLOCK_Q4_0] = {"Q4_0", 32, sizeof(struct q4_0), dequantize_q4_0, quantize_q4_0},
    [BLOCK_Q4_1] = {"Q4_1", 32, sizeof(struct q4_1), dequantize_q4_1, quantize_q4_1},
    [BLOCK_Q5_0] = {"Q5_0", 32, sizeof(struct q5_0), dequantize_q5_0, quantize_q5_0},
    [BLOCK_Q5_1] = {"Q5_1", 32, sizeof(struct q5_1), dequantize_q5_1, quantize_q5_1},
    [BLOCK_Q8_0] = {"Q8_0", 32, sizeof(struct q8_0), dequantize_q8_0, quantize_q8_0},
    [BLOCK_Q4_K] = {"Q4_K", 256, Q4_K_BYTES, dequantize_q4_k, quantize_q4_k},
    [BLOCK_Q5_K] = {"Q5_K", 256, Q5_K_BYTES, dequantize_q5_k, quantize_q5_k},
    [BLOCK_Q6_K] = {"Q6_K", 256, Q6_K_BYTES, dequantize_q6_k, quantize_q6_k},
    [BLOCK_BF16] = {"BF16", 1, 2, dequantize_bf16, quantize_bf16},
};

/* GGUF's other types; 4, 5, 31 to 33 and 36 to 38 were withdrawn from the format. */
static const char *const refused[] = {
    [4] = "Q4_2",      [5] = "Q4_3",      [9] = "Q8_1",      [10] = "Q2_K",      [11] = "Q3_K",
    [15] = "Q8_K",     [16] = "IQ2_XXS",  [17] = "IQ2_XS",   [18] = "IQ3_XXS",   [19] = "IQ1_S",
    [20] = "IQ4_NL",   [21] = "IQ3_S",    [22] = "IQ2_S",    [23] = "IQ4_XS",    [24] = "I8",
    [25] = "I16",      [26] = "I32",      [27] = "I64",      [28] = "F64",       [29] = "IQ1_M",
    [31] = "Q4_0_4_4", [32] = "Q4_0_4_8", [33] = "Q4_0_8_8", [34] = "TQ1_0",     [35] = "TQ2_0",
    [36] = "IQ4_NL_4_4", [37] = "IQ4_NL_4_8", [38] = "IQ4_NL_8_8", [39] = "MXFP4", [40] = "NVFP4",
    [41] = "Q1_0", [42] = "Q2_0",
};

const struct block_format *block_format_get(uint32_t type) {
    return type < BLOCK_TYPE_LIMIT && formats[type].name ? &formats[type] : NULL;
}

const char *block_type_name(uint32_t type) {
    const struct block_format *format = block_format_get(type);
    if (format) return format->name;
    return type < sizeof refused / sizeof *refused ? refused[type] : NULL;
}

size_t block_row_bytes(enum block_type type, size_t n) {
    const struct block_format *format = block_format_get((uint32_t)type);
    size_t bytes;
    if (!format || n % format->elements) return 0;
    return __builtin_mul_overflow(n / format->elements, (size_t)format->bytes, &bytes) ? 0 : bytes;
}
