/* ARMv8.2-A with products of bytes (SDOT): rows of blocks times rows of activations that are rounded to bytes, for few
 * rows (struct rounded). Sums of a block are whole numbers, and f32 from there on:
 *
 *     y = sum over blocks of  d sx sum (q x) + m sx sum x
 *
 * where q has a sign in formats without a minimum. Each sum of a row and an x has an accumulator of its own: how rows
 * of blocks and of x are grouped does not show. */
#if defined(__aarch64__)

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#include "core/kernels/tables.h"

#define LANE static inline __attribute__((always_inline))

/* Rows that meet all x before the next ones do: they stay in the L1 cache. */
enum { BLOCK = 32, SUMS = 4, ROWS = 8, LINE = 64, AHEAD = 2048 };

struct block {
    int8_t x[BLOCK];
    float scale, sum; /* of x, times the scale */
};

static size_t rounded_bytes(size_t n) { return (n / BLOCK * sizeof(struct block) + LINE - 1) / LINE * LINE; }

/* ---- rounding ---- */

/* Bits of the largest |x|: whole numbers in the same order, where infinity is above all and NaN above infinity. */
LANE float largest(const float *x) {
    uint32x4_t most = vdupq_n_u32(0);
    float value;
    for (size_t i = 0; i < BLOCK; i += 4) most = vmaxq_u32(most, vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(x + i))));
    uint32_t bits = vmaxvq_u32(most);
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void round_row(void *rounded, const float *x, size_t n) {
    struct block *block = rounded;
    for (; n; n -= BLOCK, x += BLOCK, block++) {
        float most = largest(x);
        int some = !(most < 1e-35f); /* below, 127 / most would overflow and all is 0 */
        float inverse = some ? 127 / most : 0;
        int32x4_t sums = vdupq_n_s32(0);
        for (size_t i = 0; i < BLOCK; i += 8) {
            int16x4_t low = vqmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i), inverse)));
            int16x4_t high = vqmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i + 4), inverse)));
            int16x8_t both = vcombine_s16(low, high);
            vst1_s8(block->x + i, vqmovn_s16(both));
            sums = vpadalq_s16(sums, both);
        }
        block->scale = some ? most * (1.0f / 127) : 0;
        block->sum = block->scale * (float)vaddvq_s32(sums);
    }
}

/* ---- a block of a row ---- */

enum kind { KIND_Q4_0, KIND_Q4_1, KIND_Q5_0, KIND_Q5_1, KIND_Q8_0 };
LANE size_t kind_bytes(enum kind kind) { return kind == KIND_Q8_0 ? 34 : 18 + 2 * (size_t)kind; }

LANE float half_at(const uint8_t *p) {
    uint16_t half;
    memcpy(&half, p, sizeof half);
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(half))), 0);
}

/* 16 in the bytes i where bit i is set. */
LANE uint8x16_t sixteens(const uint8_t bits[2]) {
    static const uint8_t one[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    uint8x16_t each = vcombine_u8(vdup_n_u8(bits[0]), vdup_n_u8(bits[1]));
    return vandq_u8(vtstq_u8(each, vld1q_u8(one)), vdupq_n_u8(16));
}

struct weights {
    int8x16_t low, high; /* elements 0 to 15, 16 to 31 */
    float d, m;
};
LANE struct weights read_block(const uint8_t *p, enum kind kind) {
    struct weights w = {.d = half_at(p), .m = 0};
    if (kind == KIND_Q8_0) {
        w.low = vld1q_s8((const int8_t *)p + 2);
        w.high = vld1q_s8((const int8_t *)p + 18);
        return w;
    }
    int minimum = kind % 2, five = kind >= KIND_Q5_0;
    uint8x16_t q = vld1q_u8(p + kind_bytes(kind) - 16), low = vandq_u8(q, vdupq_n_u8(15)), high = vshrq_n_u8(q, 4);
    if (five) {
        const uint8_t *fifth = p + (minimum ? 4 : 2);
        low = vorrq_u8(low, sixteens(fifth));
        high = vorrq_u8(high, sixteens(fifth + 2));
    }
    int8x16_t zero = vdupq_n_s8(minimum ? 0 : five ? 16 : 8);
    w.low = vsubq_s8(vreinterpretq_s8_u8(low), zero);
    w.high = vsubq_s8(vreinterpretq_s8_u8(high), zero);
    if (minimum) w.m = half_at(p + 2);
    return w;
}

/* ---- rows ---- */

struct dots {
    float *out;
    size_t ldo;
    const uint8_t *rows;
    size_t row_bytes;
    const uint8_t *x;
    size_t x_bytes, n; /* of a row of x; terms */
};

/* Rows r0 .. r0 + R with x t0 .. t0 + T. */
LANE void tile(const struct dots *a, enum kind kind, size_t r0, size_t R, size_t t0, size_t T) {
    const uint8_t *rows = a->rows + r0 * a->row_bytes;
    float32x4_t sums[SUMS];
    float minima[SUMS] = {0, 0, 0, 0};
#pragma GCC unroll 4
    for (size_t i = 0; i < SUMS; i++) sums[i] = vdupq_n_f32(0);
    for (size_t b = 0; b < a->n / BLOCK; b++, rows += kind_bytes(kind)) {
#pragma GCC unroll 4
        for (size_t r = 0; r < R; r++) {
            const uint8_t *p = rows + r * a->row_bytes;
            __builtin_prefetch(p + AHEAD, 0, 3);
            struct weights w = read_block(p, kind);
#pragma GCC unroll 4
            for (size_t t = 0; t < T; t++) {
                const struct block *x = (const struct block *)(const void *)(a->x + (t0 + t) * a->x_bytes) + b;
                int32x4_t whole = vdotq_s32(vdupq_n_s32(0), w.low, vld1q_s8(x->x));
                whole = vdotq_s32(whole, w.high, vld1q_s8(x->x + 16));
                sums[r * T + t] = vfmaq_n_f32(sums[r * T + t], vcvtq_f32_s32(whole), w.d * x->scale);
                if (kind != KIND_Q8_0 && kind % 2) minima[r * T + t] += w.m * x->sum;
            }
        }
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < R * T; i++) a->out[(t0 + i % T) * a->ldo + r0 + i / T] = vaddvq_f32(sums[i]) + minima[i];
}

#include "core/kernels/rounded_rows.h"

#define DOTS(type)                                                                                                     \
    static void dots_##type(float *out, size_t ldo, const void *rows, size_t row_bytes, size_t n_rows,                 \
                            const void *rounded, size_t T, size_t n) {                                                 \
        struct dots a = {out, ldo, rows, row_bytes, rounded, rounded_bytes(n), n};                                     \
        dots(&a, KIND_##type, n_rows, T);                                                                              \
    }
DOTS(Q4_0)
DOTS(Q4_1)
DOTS(Q5_0)
DOTS(Q5_1)
DOTS(Q8_0)

const struct rounded rounded_neon_dotprod = {
    .bytes = rounded_bytes,
    .round = round_row,
    .dots = {[BLOCK_Q4_0] = dots_Q4_0,
             [BLOCK_Q4_1] = dots_Q4_1,
             [BLOCK_Q5_0] = dots_Q5_0,
             [BLOCK_Q5_1] = dots_Q5_1,
             [BLOCK_Q8_0] = dots_Q8_0},
};

#endif
