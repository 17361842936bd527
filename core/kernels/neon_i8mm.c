/* ARMv8.2-A with products of matrices of bytes: 2 x 8 by 8 x 2 (SMMLA). */
#if defined(__aarch64__)

enum { CELL = 8 };
#include "core/kernels/neon_int8.h"

/* Pairs of rows by pairs of outputs: lanes 0 and 1 are of the first row, 2 and 3 of the second. */
static void multiply_tile(struct tile *tile, const void *rows, const void *panel, size_t groups) {
    const float *row_scales = rows, *scales = panel;
    const int8_t *x = (const int8_t *)(row_scales + groups * ROWS), *w = (const int8_t *)(scales + groups * OUTPUTS);
    float32x4_t y[2][4];
    for (int pair = 0; pair < 2; pair++)
        for (int v = 0; v < 4; v++) y[pair][v] = vdupq_n_f32(0);
    for (size_t g = 0; g < groups; g++, row_scales += ROWS, scales += OUTPUTS) {
        int32x4_t dots[2][4];
        for (int v = 0; v < 4; v++) dots[0][v] = dots[1][v] = vdupq_n_s32(0);
        for (int t = 0; t < GROUP; t += CELL, x += ROWS * CELL, w += OUTPUTS * CELL) {
            int8x16_t first = vld1q_s8(x), second = vld1q_s8(x + 16);
            for (int v = 0; v < 4; v++) {
                int8x16_t outputs = vld1q_s8(w + 16 * v);
                dots[0][v] = vmmlaq_s32(dots[0][v], first, outputs);
                dots[1][v] = vmmlaq_s32(dots[1][v], second, outputs);
            }
        }
        for (int v = 0; v < 4; v++) {
            float32x2_t two = vld1_f32(scales + 2 * v);
            float32x4_t twice = vcombine_f32(two, two);
            for (int pair = 0; pair < 2; pair++) {
                const float *row = row_scales + 2 * pair;
                float32x4_t scale = vmulq_f32(twice, vcombine_f32(vdup_n_f32(row[0]), vdup_n_f32(row[1])));
                y[pair][v] = vfmaq_f32(y[pair][v], vcvtq_f32_s32(dots[pair][v]), scale);
            }
        }
    }
    for (int pair = 0; pair < 2; pair++)
        for (int v = 0; v < 2; v++) {
            float32x4_t left = y[pair][2 * v], right = y[pair][2 * v + 1];
            tile->sums[2 * pair][v] = vcombine_f32(vget_low_f32(left), vget_low_f32(right));
            tile->sums[2 * pair + 1][v] = vcombine_f32(vget_high_f32(left), vget_high_f32(right));
        }
}

const struct product product_neon_i8mm = PRODUCT_INT8;

#endif
