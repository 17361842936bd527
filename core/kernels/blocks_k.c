/* The K formats, reference code. Little-endian; `d` and `dmin` are IEEE halves.
 *
 *   Q4_K  256 elements  d 0..1, dmin 2..3, scales 4..15, q 16..143
 *   Q5_K  256           d 0..1, dmin 2..3, scales 4..15, fifth bits 16..47, q 48..175
 *                       8 parts of 32:                             x = (d scale) q - (dmin minimum)
 *   Q6_K  256           low four bits 0..127, high two bits 128..191, scales 192..207 (signed), d 208..209
 *                       16 parts of 16:                            x = (d scale) (q - 32)
 *
 * Four-bit values: 64 elements share 32 bytes, byte i holds element i in its low half, element i + 32 in its high
 * half. Fifth bits of Q5_K: bit p of byte i is element i of part p.
 *
 * As in blocks.c the arithmetic, its order included, is that of ggml's reference functions without contraction:
 * this file too must be compiled with -ffp-contract=off. */
#include "core/kernels/blocks_k.h"

#include <math.h>
#include <string.h>

enum { BLOCK = 256, PARTS = 8, PART = BLOCK / PARTS, SIX_PARTS = 16, SIX_PART = BLOCK / SIX_PARTS };

/* Bytes only, so that a block may lie at any address. */
struct q4_k { uint8_t d[2], dmin[2], scales[12], q[128]; };
struct q5_k { uint8_t d[2], dmin[2], scales[12], fifth[32], q[128]; };
struct q6_k { uint8_t low[128], high[64]; int8_t scales[16]; uint8_t d[2]; };

_Static_assert(sizeof(struct q4_k) == Q4_K_BYTES, "Q4_K: 4 + 12 + 256/2");
_Static_assert(sizeof(struct q5_k) == Q5_K_BYTES, "Q5_K: 4 + 12 + 256/8 + 256/2");
_Static_assert(sizeof(struct q6_k) == Q6_K_BYTES, "Q6_K: 256/2 + 256/4 + 16 + 2");

static float load_half(const uint8_t p[2]) { return half_to_float((uint16_t)(p[0] | p[1] << 8)); }
static void store_half(uint8_t p[2], float value) {
    uint16_t half = half_from_float(value);
    p[0] = (uint8_t)half;
    p[1] = (uint8_t)(half >> 8);
}

/* To the nearest whole number, ties to even, within [least, most]; NaN: least. The addition rounds at the lowest bit
 * of a float of that size (2^23 + 2^22), which is worth 1. */
static int nearest(float value, int least, int most) {
    if (!(value > (float)least)) return least;
    if (value >= (float)most) return most;
    float shifted = value + 12582912.0f;
    int32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    return (bits & 0x7fffff) - 0x400000;
}

/* ---- scales and minima of Q4_K and Q5_K ---- */

/* Scale and minimum of part p, six bits each: the first four in the low six bits of bytes 0..3 and 4..7;
 * the last four in halves of bytes 8..11, their upper two bits on top of bytes 0..3 and 4..7. */
void k_scale_and_minimum(const uint8_t scales[12], int p, int *scale, int *minimum) {
    if (p < 4) {
        *scale = scales[p] & 63;
        *minimum = scales[p + 4] & 63;
    } else {
        *scale = (scales[p + 4] & 15) | (scales[p - 4] >> 6) << 4;
        *minimum = scales[p + 4] >> 4 | (scales[p] >> 6) << 4;
    }
}

void dequantize_q4_k(float *dst, const void *src, size_t n) {
    const struct q4_k *block = src;
    for (size_t b = 0; b < n / 256; b++, block++) {
        float d = load_half(block->d), dmin = load_half(block->dmin);
        for (int p = 0; p < 8; p++, dst += 32) {
            int scale, minimum;
            k_scale_and_minimum(block->scales, p, &scale, &minimum);
            float part_d = d * (float)scale, part_m = dmin * (float)minimum;
            const uint8_t *q = block->q + p / 2 * 32;
            for (int i = 0; i < 32; i++) dst[i] = part_d * (float)(q[i] >> p % 2 * 4 & 15) - part_m;
        }
    }
}

void dequantize_q5_k(float *dst, const void *src, size_t n) {
    const struct q5_k *block = src;
    for (size_t b = 0; b < n / 256; b++, block++) {
        float d = load_half(block->d), dmin = load_half(block->dmin);
        for (int p = 0; p < 8; p++, dst += 32) {
            int scale, minimum;
            k_scale_and_minimum(block->scales, p, &scale, &minimum);
            float part_d = d * (float)scale, part_m = dmin * (float)minimum;
            const uint8_t *q = block->q + p / 2 * 32;
            for (int i = 0; i < 32; i++) {
                int value = (q[i] >> p % 2 * 4 & 15) | (block->fifth[i] >> p & 1) << 4;
                dst[i] = part_d * (float)value - part_m;
            }
        }
    }
}

/* Two halves of 128 elements: 64 bytes of low bits, 32 of high bits, 8 scales. Element 32 k + i of a half
 * has its low bits in byte 32 (k % 2) + i (upper half of the byte for k > 1), its high bits at bit 2 k of byte i. */
void dequantize_q6_k(float *dst, const void *src, size_t n) {
    const struct q6_k *block = src;
    for (size_t b = 0; b < n / 256; b++, block++) {
        float d = load_half(block->d);
        for (int part = 0; part < 8; part++, dst += 32) {
            int half = part / 4, k = part % 4;
            const uint8_t *low = block->low + half * 64 + k % 2 * 32, *high = block->high + half * 32;
            const int8_t *scales = block->scales + half * 8 + k * 2;
            for (int i = 0; i < 32; i++) {
                int value = ((low[i] >> k / 2 * 4 & 15) | (high[i] >> 2 * k & 3) << 4) - 32;
                dst[i] = d * (float)scales[i / 16] * (float)value;
            }
        }
    }
}

static void store_scale_and_minimum(uint8_t scales[12], int p, int scale, int minimum) {
    if (p < 4) {
        scales[p] = (uint8_t)scale;
        scales[p + 4] = (uint8_t)minimum;
    } else { /* after the first four, whose upper two bits are 0 until then */
        scales[p + 4] = (uint8_t)((scale & 15) | (minimum & 15) << 4);
        scales[p - 4] |= (uint8_t)(scale >> 4 << 6);
        scales[p] |= (uint8_t)(minimum >> 4 << 6);
    }
}

/* ---- quantizing Q4_K and Q5_K ---- */

/* A grid of x = scale q - minimum for a part, minimum >= 0. */
struct grid {
    float scale, minimum;
};

/* Steps tried for a part: (first + 0.1 i + most) / range, i <= steps, and before them most / range. */
struct steps {
    int most; /* q */
    float first;
    int count;
};
static const struct steps steps_q4_k = {15, -1.0f, 20}, steps_q5_k = {31, -0.5f, 15};

static float grid_error(const float *x, const float *weights, const uint8_t *q, float scale, float low) {
    float error = 0;
    for (int i = 0; i < PART; i++) {
        float miss = scale * (float)q[i] + low - x[i];
        error += weights[i] * (miss * miss);
    }
    return error;
}

/* The values that (x - low) * inverse rounds to, and the weighted least squares line through them; 0: none. */
static int fit_line(const float *x, const float *weights, float low, float inverse, int most, float sum_w, float sum_x,
                    float *scale, float *line_low, uint8_t *q) {
    float sum_q = 0, sum_qq = 0, sum_xq = 0;
    for (int i = 0; i < PART; i++) {
        int value = nearest(inverse * (x[i] - low), 0, most);
        float w = weights[i], wq = w * (float)value;
        q[i] = (uint8_t)value;
        sum_q += wq;
        sum_qq += wq * (float)value;
        sum_xq += wq * x[i];
    }
    float determinant = sum_w * sum_qq - sum_q * sum_q;
    if (!(determinant > 0)) return 0;
    *scale = (sum_w * sum_xq - sum_x * sum_q) / determinant;
    *line_low = (sum_qq * sum_x - sum_q * sum_xq) / determinant;
    if (*line_low > 0) {
        *line_low = 0;
        *scale = sum_xq / sum_qq;
    }
    return 1;
}

/* Large values weigh more: mean magnitude of the part + their own. */
static void part_weights(float *weights, const float *x) {
    float squares = 0;
    for (int i = 0; i < PART; i++) squares += x[i] * x[i];
    float mean = sqrtf(squares / PART);
    for (int i = 0; i < PART; i++) weights[i] = mean + fabsf(x[i]);
}

/* The grid with the least weighted square error of those tried, and q on it. */
static struct grid part_grid(const float *x, const struct steps *steps, uint8_t *q) {
    float weights[PART], least = x[0], most = x[0];
    uint8_t tried[PART];
    part_weights(weights, x);
    float sum_w = weights[0], sum_x = sum_w * x[0];
    for (int i = 1; i < PART; i++) {
        if (x[i] < least) least = x[i];
        if (x[i] > most) most = x[i];
        sum_w += weights[i];
        sum_x += weights[i] * x[i];
    }
    if (least > 0) least = 0;
    if (most == least) {
        memset(q, 0, PART);
        return (struct grid){0, -least};
    }
    float inverse = (float)steps->most / (most - least), scale = 1 / inverse, low = least;
    for (int i = 0; i < PART; i++) q[i] = (uint8_t)nearest(inverse * (x[i] - low), 0, steps->most);
    float best = grid_error(x, weights, q, scale, low);
    for (int step = 0; step <= steps->count; step++) {
        float line_scale, line_low;
        /* the search goes on from the lower end of the best line, as the reference's does */
        inverse = (steps->first + 0.1f * (float)step + (float)steps->most) / (most - low);
        if (!fit_line(x, weights, low, inverse, steps->most, sum_w, sum_x, &line_scale, &line_low, tried)) continue;
        float error = grid_error(x, weights, tried, line_scale, line_low);
        if (!(error < best)) continue;
        best = error;
        memcpy(q, tried, PART);
        scale = line_scale;
        low = line_low;
    }
    return (struct grid){scale, -low};
}

/* The parts' grids on the grid of the block (d, dmin, scales); then every element on its part's. */
static void quantize_parts(uint8_t d[2], uint8_t dmin[2], uint8_t scales[12], uint8_t q[BLOCK], const float *x,
                           const struct steps *steps) {
    struct grid grids[PARTS];
    float scale_most = 0, minimum_most = 0;
    for (int p = 0; p < PARTS; p++) {
        grids[p] = part_grid(x + p * PART, steps, q + p * PART);
        if (grids[p].scale > scale_most) scale_most = grids[p].scale;
        if (grids[p].minimum > minimum_most) minimum_most = grids[p].minimum;
    }
    float scale_inverse = scale_most > 0 ? 63.0f / scale_most : 0.0f;
    float minimum_inverse = minimum_most > 0 ? 63.0f / minimum_most : 0.0f;
    store_half(d, scale_most / 63.0f);
    store_half(dmin, minimum_most / 63.0f);
    for (int p = 0; p < PARTS; p++)
        store_scale_and_minimum(scales, p, nearest(scale_inverse * grids[p].scale, 0, 63),
                                nearest(minimum_inverse * grids[p].minimum, 0, 63));
    for (int p = 0; p < PARTS; p++) {
        int scale, minimum;
        k_scale_and_minimum(scales, p, &scale, &minimum);
        float part_d = load_half(d) * (float)scale, part_m = load_half(dmin) * (float)minimum;
        if (part_d == 0) continue; /* any q is worth the same: the reference leaves those of the search */
        for (int i = p * PART; i < (p + 1) * PART; i++)
            q[i] = (uint8_t)nearest((x[i] + part_m) / part_d, 0, steps->most);
    }
}

void k_store_nibbles(uint8_t q[128], const uint8_t values[BLOCK]) {
    for (int i = 0; i < BLOCK / 2; i++) {
        const uint8_t *low = values + i / 32 * 64 + i % 32;
        q[i] = (uint8_t)((low[0] & 15) | low[32] << 4);
    }
}

void k_store_fifth(uint8_t fifth[32], const uint8_t values[BLOCK]) {
    memset(fifth, 0, 32);
    for (int i = 0; i < BLOCK; i++) fifth[i % PART] |= (uint8_t)(values[i] >> 4 << i / PART);
}

void quantize_q4_k(void *dst, const float *src, size_t n) {
    struct q4_k *block = dst;
    for (size_t b = 0; b < n / BLOCK; b++, block++, src += BLOCK) {
        uint8_t values[BLOCK];
        quantize_parts(block->d, block->dmin, block->scales, values, src, &steps_q4_k);
        k_store_nibbles(block->q, values);
    }
}

void quantize_q5_k(void *dst, const float *src, size_t n) {
    struct q5_k *block = dst;
    for (size_t b = 0; b < n / BLOCK; b++, block++, src += BLOCK) {
        uint8_t values[BLOCK];
        quantize_parts(block->d, block->dmin, block->scales, values, src, &steps_q5_k);
        k_store_nibbles(block->q, values);
        k_store_fifth(block->fifth, values);
    }
}

/* ---- quantizing Q6_K ---- */

/* Scale for q in [-32, 31] out of the steps (32 + 0.1 i) / -largest, i = -9 to 9: that whose weighted square error is
 * least, weights x^2. values: q + 32 of it. */
static float six_scale(const float *x, uint8_t *values) {
    float largest = 0, magnitude = 0, scale = 0, best = 0;
    for (int i = 0; i < SIX_PART; i++) {
        if (!(fabsf(x[i]) > magnitude)) continue;
        magnitude = fabsf(x[i]);
        largest = x[i];
    }
    memset(values, 0, SIX_PART);
    if (!(magnitude >= 1e-15f)) return 0;
    for (int try = 0; try < 19; try++) {
        /* 0 first, then -9 to 9 without 0 */
        int step = try == 0 ? 0 : try <= 9 ? try - 10 : try - 9;
        float inverse = -(32 + 0.1f * (float)step) / largest, sum_xq = 0, sum_qq = 0;
        for (int i = 0; i < SIX_PART; i++) {
            float q = (float)nearest(inverse * x[i], -32, 31), w = x[i] * x[i];
            sum_xq += w * x[i] * q;
            sum_qq += w * q * q;
        }
        if (try > 0 && !(sum_qq > 0 && sum_xq * sum_xq > best * sum_qq)) continue;
        scale = sum_qq != 0 ? sum_xq / sum_qq : 0.0f;
        best = scale * sum_xq;
        for (int i = 0; i < SIX_PART; i++) values[i] = (uint8_t)(nearest(inverse * x[i], -32, 31) + 32);
    }
    return scale;
}

void k_store_six(uint8_t low[128], uint8_t high[64], const uint8_t values[BLOCK]) {
    for (int half = 0; half < 2; half++, values += 128, low += 64, high += 32) {
        for (int i = 0; i < 32; i++) {
            for (int k = 0; k < 2; k++)
                low[k * 32 + i] = (uint8_t)((values[k * 32 + i] & 15) | (values[k * 32 + 64 + i] & 15) << 4);
            high[i] = 0;
            for (int k = 0; k < 4; k++) high[i] |= (uint8_t)(values[k * 32 + i] >> 4 << 2 * k);
        }
    }
}

void quantize_q6_k(void *dst, const float *src, size_t n) {
    struct q6_k *block = dst;
    for (size_t b = 0; b < n / BLOCK; b++, block++, src += BLOCK) {
        float scales[SIX_PARTS], largest = 0, magnitude = 0;
        uint8_t values[BLOCK];
        for (int p = 0; p < SIX_PARTS; p++) {
            scales[p] = six_scale(src + p * SIX_PART, values + p * SIX_PART);
            if (!(fabsf(scales[p]) > magnitude)) continue;
            magnitude = fabsf(scales[p]);
            largest = scales[p];
        }
        memset(block, 0, sizeof *block); /* all bits: also what the reference writes for a block of zeros */
        if (!(magnitude >= 1e-15f)) continue;
        float inverse = -128.0f / largest;
        store_half(block->d, 1 / inverse);
        for (int p = 0; p < SIX_PARTS; p++) {
            block->scales[p] = (int8_t)nearest(inverse * scales[p], -128, 127);
            float d = load_half(block->d) * (float)block->scales[p];
            for (int i = p * SIX_PART; d != 0 && i < (p + 1) * SIX_PART; i++)
                values[i] = (uint8_t)(nearest(src[i] / d, -32, 31) + 32);
        }
        k_store_six(block->low, block->high, values);
    }
}
