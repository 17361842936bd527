/* struct product in bytes, but for its inner loop, which neon_dotprod.c and neon_i8mm.c add: they define CELL and
 * multiply_tile and include this. Elements of y are the same bit for bit from both.
 *
 * Rows of x and outputs of W are quantized alike: GROUP terms in a row share a scale, the greatest magnitude / 127,
 * and each becomes the nearest whole number of scales. With q for those numbers and s for the scales
 *     y[m, n] = sum over groups g of sx[m, g] sw[n, g] (sum over terms t of g of qx[m, t] qw[n, t]),
 * the inner sum exact (below 2^20), the outer one in f32, groups in order.
 *
 * A value that is not finite makes the scale of its group so, and all of y that it is in.
 *
 * Packed: strips of SIDE rows or outputs (ROWS, OUTPUTS). Each has its scales first, (groups, SIDE) floats, then its
 * numbers: (groups, GROUP / CELL, SIDE, CELL) bytes. What is missing at an edge is zero. */
#ifndef CORE_KERNELS_NEON_INT8_H
#define CORE_KERNELS_NEON_INT8_H

#include <arm_neon.h>
#include <float.h>
#include <stdint.h>
#include <string.h>

#include "core/kernels/tables.h"

enum {
    GROUP = 64,
    ROWS = 4,
    OUTPUTS = 8,
    PIECE = 256, /* terms or columns unpacked at once: whole blocks of any type, whole groups */
    SHORT_PIECE = 32
};

/* sums[i]: y of row i; rows and panel point to a strip each. */
struct tile {
    float32x4_t sums[ROWS][OUTPUTS / 4];
};
static void multiply_tile(struct tile *tile, const void *rows, const void *panel, size_t groups);

static inline size_t smaller(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t groups_of(size_t k) { return (k + GROUP - 1) / GROUP; }

/* ---- strips ---- */

static inline size_t strip_bytes(size_t side, size_t k) {
    return (groups_of(k) * side * (sizeof(float) + GROUP) + 63) / 64 * 64;
}
static inline size_t strips_bytes(size_t side, size_t count, size_t k) {
    return (count + side - 1) / side * strip_bytes(side, k);
}
/* Scales of a group; numbers of a group. */
static inline float *strip_scales(void *strip, size_t side, size_t group) { return (float *)strip + group * side; }
static inline int8_t *strip_numbers(void *strip, size_t side, size_t groups, size_t group) {
    return (int8_t *)strip_scales(strip, side, groups) + group * side * GROUP;
}

/* ---- quantizing ---- */

/* 1 / scale; 0 where that is not finite or the scale is not: the numbers become 0. */
static inline float32x4_t inverse_of(float32x4_t scale) {
    uint32x4_t usable = vcgeq_f32(scale, vdupq_n_f32(FLT_MIN));
    float32x4_t inverse = vdivq_f32(vdupq_n_f32(1), scale);
    return vreinterpretq_f32_u32(vandq_u32(usable, vreinterpretq_u32_f32(inverse)));
}

/* Sixteen numbers: the nearest to v[i] * inverse. */
static inline int8x16_t nearest(const float32x4_t v[4], float32x4_t inverse) {
    int16x4_t n[4];
    for (int i = 0; i < 4; i++) n[i] = vqmovn_s32(vcvtnq_s32_f32(vmulq_f32(v[i], inverse)));
    return vcombine_s8(vqmovn_s16(vcombine_s16(n[0], n[1])), vqmovn_s16(vcombine_s16(n[2], n[3])));
}

/* n terms of one row or output into place `at` of a strip, one group. */
static void put_group(float *scales, int8_t *numbers, size_t side, size_t at, const float *x, size_t n) {
    float padded[GROUP];
    if (n < GROUP) {
        memset(padded, 0, sizeof padded);
        memcpy(padded, x, n * sizeof *x);
        x = padded;
    }
    float32x4_t greatest = vdupq_n_f32(0); /* the maximum of a NaN and a number is NaN here */
    for (int i = 0; i < GROUP; i += 4) greatest = vmaxq_f32(greatest, vabsq_f32(vld1q_f32(x + i)));
    float32x4_t scale = vdivq_f32(vdupq_n_f32(vmaxvq_f32(greatest)), vdupq_n_f32(127)), inverse = inverse_of(scale);
    scales[at] = vgetq_lane_f32(scale, 0);
    for (int t = 0; t < GROUP; t += 16) {
        float32x4_t v[4] = {vld1q_f32(x + t), vld1q_f32(x + t + 4), vld1q_f32(x + t + 8), vld1q_f32(x + t + 12)};
        int8_t sixteen[16];
        vst1q_s8(sixteen, nearest(v, inverse));
        for (size_t i = 0; i < 16; i += CELL)
            memcpy(numbers + ((size_t)t + i) * side + at * CELL, sixteen + i, CELL);
    }
}

/* The same for four outputs beside each other, terms ld floats apart. */
static void put_four_columns(float *scales, int8_t *numbers, size_t at, const float *x, size_t ld, size_t n) {
    /* [term][column] to [column][term] of four terms */
    static const uint8_t turned[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    float32x4_t greatest = vdupq_n_f32(0);
    for (size_t t = 0; t < n; t++) greatest = vmaxq_f32(greatest, vabsq_f32(vld1q_f32(x + t * ld)));
    float32x4_t scale = vdivq_f32(greatest, vdupq_n_f32(127)), inverse = inverse_of(scale);
    vst1q_f32(scales + at, scale);
    for (size_t t = 0; t < GROUP; t += 4) {
        float32x4_t v[4];
        for (size_t i = 0; i < 4; i++) v[i] = t + i < n ? vld1q_f32(x + (t + i) * ld) : vdupq_n_f32(0);
        int8_t columns[16];
        vst1q_s8(columns, vqtbl1q_s8(nearest(v, inverse), vld1q_u8(turned)));
        int8_t *cell = numbers + t / CELL * CELL * OUTPUTS + at * CELL + t % CELL;
        for (size_t column = 0; column < 4; column++) memcpy(cell + column * CELL, columns + 4 * column, 4);
    }
}

/* ---- struct product ---- */

static size_t rows_bytes(size_t m, size_t k) { return strips_bytes(ROWS, m, k); }
static size_t panels_bytes(size_t n, size_t k) { return strips_bytes(OUTPUTS, n, k); }

/* The last of the strips of `count` rows or outputs, where it is not full: those that are missing. */
static void clear_last(void *strips, size_t side, size_t count, size_t k) {
    if (count % side) memset((unsigned char *)strips + count / side * strip_bytes(side, k), 0, strip_bytes(side, k));
}

/* n terms of one row or output, from the start of group `first` on. */
static void put_row(void *strip, size_t side, size_t groups, size_t first, size_t at, const float *x, size_t n) {
    for (size_t p = 0, g = first; p < n; p += GROUP, g++)
        put_group(strip_scales(strip, side, g), strip_numbers(strip, side, groups, g), side, at, x + p,
                  smaller(GROUP, n - p));
}

static void pack_rows(void *packed, const float *x, size_t ldx, size_t m, size_t k) {
    clear_last(packed, ROWS, m, k);
    for (size_t i = 0; i < m; i++) {
        unsigned char *strip = (unsigned char *)packed + i / ROWS * strip_bytes(ROWS, k);
        put_row(strip, ROWS, groups_of(k), 0, i % ROWS, x + i * ldx, k);
    }
}

/* Row r of W from column c on, n of them. */
static void unpack(float *dst, const struct matrix *w, size_t r, size_t c, size_t n) {
    const struct block_format *format = block_format_get(w->type);
    const unsigned char *row = (const unsigned char *)w->data + r * w->row_bytes;
    kernels_neon.dequantize[w->type](dst, row + c / format->elements * format->bytes, n);
}

static void pack_forward(void *panels, const struct matrix *w, size_t r0, size_t n, size_t c0, size_t k) {
    float values[PIECE];
    clear_last(panels, OUTPUTS, n, k);
    for (size_t j = 0; j < n; j++) {
        unsigned char *strip = (unsigned char *)panels + j / OUTPUTS * strip_bytes(OUTPUTS, k);
        for (size_t p = 0; p < k; p += PIECE) {
            size_t terms = smaller(PIECE, k - p);
            unpack(values, w, r0 + j, c0 + p, terms);
            put_row(strip, OUTPUTS, groups_of(k), p / GROUP, j % OUTPUTS, values, terms);
        }
    }
}

/* Columns c .. c + n of W, n <= width, rows r .. r + terms: unpacked, filled up with zeros to whole panels. */
static void unpack_columns(float *values, size_t width, const struct matrix *w, size_t c, size_t n, size_t r,
                           size_t terms) {
    for (size_t t = 0; t < terms; t++, values += width) {
        unpack(values, w, r + t, c, n);
        for (size_t i = n; i % OUTPUTS; i++) values[i] = 0;
    }
}

static void pack_backward(void *panels, const struct matrix *w, size_t c0, size_t n, size_t r0, size_t k) {
    float values[GROUP * PIECE];
    size_t width = block_format_get(w->type)->elements > SHORT_PIECE ? PIECE : SHORT_PIECE;
    for (size_t g = 0; g < groups_of(k); g++) {
        size_t terms = smaller(GROUP, k - g * GROUP);
        for (size_t c = 0; c < n; c += width) {
            size_t columns = smaller(width, n - c);
            unpack_columns(values, width, w, c0 + c, columns, r0 + g * GROUP, terms);
            for (size_t i = 0; i < (columns + OUTPUTS - 1) / OUTPUTS * OUTPUTS; i += 4) {
                unsigned char *strip = (unsigned char *)panels + (c + i) / OUTPUTS * strip_bytes(OUTPUTS, k);
                put_four_columns(strip_scales(strip, OUTPUTS, g), strip_numbers(strip, OUTPUTS, groups_of(k), g),
                                 i % OUTPUTS, values + i, width, terms);
            }
        }
    }
}

/* m rows, n outputs of the tile */
static void store_tile(float *y, size_t ldy, const struct tile *tile, size_t m, size_t n, int accumulate) {
    for (size_t i = 0; i < m; i++, y += ldy) {
        float sums[OUTPUTS];
        for (size_t v = 0; v < OUTPUTS / 4; v++) vst1q_f32(sums + 4 * v, tile->sums[i][v]);
        for (size_t j = 0; j < n; j++) y[j] = accumulate ? y[j] + sums[j] : sums[j];
    }
}

static void multiply(float *y, size_t ldy, const void *rows, size_t m, const void *panels, size_t n, size_t k,
                     int accumulate) {
    const unsigned char *strip = rows;
    for (size_t i = 0; i < m; i += ROWS, strip += strip_bytes(ROWS, k)) {
        const unsigned char *panel = panels;
        for (size_t j = 0; j < n; j += OUTPUTS, panel += strip_bytes(OUTPUTS, k)) {
            struct tile tile;
            multiply_tile(&tile, strip, panel, groups_of(k));
            store_tile(y + i * ldy + j, ldy, &tile, smaller(m - i, ROWS), smaller(n - j, OUTPUTS), accumulate);
        }
    }
}

/* A region's panels, 48 KiB, stay in the L1 cache of large cores and in the L2 cache of any. */
#define PRODUCT_INT8                                                                                                   \
    {                                                                                                                  \
        .arithmetic = "int8", .height = ROWS, .width = OUTPUTS, .region = 64, .terms = 768,                            \
        .rows_bytes = rows_bytes, .panels_bytes = panels_bytes, .pack_rows = pack_rows, .pack_forward = pack_forward,  \
        .pack_backward = pack_backward, .multiply = multiply                                                           \
    }

#endif
