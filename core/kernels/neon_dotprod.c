/* ARMv8.2-A with products of bytes, four terms into each lane (SDOT). */
#if defined(__aarch64__)

enum { CELL = 4 };
#include "core/kernels/neon_int8.h"

/* Each SDOT takes four terms of four outputs, and those of one row for all of them. */
static void multiply_tile(struct tile *tile, const void *rows, const void *panel, size_t groups) {
    const float *row_scales = rows, *scales = panel;
    const int8_t *x = (const int8_t *)(row_scales + groups * ROWS), *w = (const int8_t *)(scales + groups * OUTPUTS);
    float32x4_t zero = vdupq_n_f32(0), y[ROWS][2] = {{zero, zero}, {zero, zero}, {zero, zero}, {zero, zero}};
    for (size_t g = 0; g < groups; g++, row_scales += ROWS, scales += OUTPUTS) {
        int32x4_t none = vdupq_n_s32(0), dots[ROWS][2] = {{none, none}, {none, none}, {none, none}, {none, none}};
        for (int t = 0; t < GROUP; t += CELL, x += ROWS * CELL, w += OUTPUTS * CELL) {
            int8x16_t four = vld1q_s8(x);
            for (int v = 0; v < 2; v++) {
                int8x16_t outputs = vld1q_s8(w + 16 * v);
                dots[0][v] = vdotq_laneq_s32(dots[0][v], outputs, four, 0);
                dots[1][v] = vdotq_laneq_s32(dots[1][v], outputs, four, 1);
                dots[2][v] = vdotq_laneq_s32(dots[2][v], outputs, four, 2);
                dots[3][v] = vdotq_laneq_s32(dots[3][v], outputs, four, 3);
            }
        }
        for (int i = 0; i < ROWS; i++)
            for (int v = 0; v < 2; v++)
                y[i][v] = vfmaq_f32(y[i][v], vcvtq_f32_s32(dots[i][v]),
                                    vmulq_n_f32(vld1q_f32(scales + 4 * v), row_scales[i]));
    }
    memcpy(tile->sums, y, sizeof y);
}

const struct product product_neon_dotprod = PRODUCT_INT8;

#endif
