/* The reference of struct rounded: what the other tables' are tested against. Plain loops in a plain order. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "core/kernels/tables.h"

enum { BLOCK = 32, PIECE = 256, LINE = 64 };

struct block {
    float scale;
    int8_t x[BLOCK];
};

static size_t rounded_bytes(size_t n) { return (n / BLOCK * sizeof(struct block) + LINE - 1) / LINE * LINE; }

/* A NaN makes it NaN; below 1e-35, where 127 / most would overflow, all is 0. */
static float largest(const float *x) {
    float most = 0;
    for (int i = 0; i < BLOCK; i++)
        if (!(fabsf(x[i]) <= most)) most = fabsf(x[i]);
    for (int i = 0; i < BLOCK; i++)
        if (isnan(x[i])) most = x[i];
    return most < 1e-35f ? 0 : most;
}

/* What is not finite is told by the scale: any number will do. */
static int8_t to_byte(float value) { return isfinite(value) ? (int8_t)nearbyintf(value) : -128; }

static void round_row(void *rounded, const float *x, size_t n) {
    struct block *block = rounded;
    for (; n; n -= BLOCK, x += BLOCK, block++) {
        float most = largest(x), inverse = most != 0 ? 127 / most : 0;
        block->scale = most * (1.0f / 127);
        for (int i = 0; i < BLOCK; i++) block->x[i] = to_byte(x[i] * inverse);
    }
}

static float row_dot(enum block_type type, const uint8_t *row, const struct block *x, size_t n) {
    const struct block_format *format = block_format_get(type);
    float values[PIECE], sum = 0;
    for (size_t p = 0; p < n; p += PIECE) {
        size_t count = n - p < PIECE ? n - p : PIECE;
        format->dequantize(values, row + p / format->elements * format->bytes, count);
        for (size_t i = 0; i < count; i += BLOCK, x++) {
            float part = 0;
            for (size_t j = 0; j < BLOCK; j++) part += values[i + j] * x->x[j];
            sum += x->scale * part;
        }
    }
    return sum;
}

#define DOTS(type, elements, bytes)                                                                                    \
    static void dots_##type(float *out, size_t ldo, const void *rows, size_t row_bytes, size_t n_rows,                 \
                            const void *rounded, size_t T, size_t n) {                                                 \
        for (size_t t = 0; t < T; t++)                                                                                 \
            for (size_t r = 0; r < n_rows; r++)                                                                        \
                out[t * ldo + r] = row_dot(BLOCK_##type, (const uint8_t *)rows + r * row_bytes,                        \
                                           (const void *)((const unsigned char *)rounded + t * rounded_bytes(n)), n);  \
    }
KERNELS_EACH_TYPE(DOTS)
#define DOTS_ENTRY(type, elements, bytes) [BLOCK_##type] = dots_##type,

const struct rounded rounded_scalar = {
    .bytes = rounded_bytes,
    .round = round_row,
    .dots = {KERNELS_EACH_TYPE(DOTS_ENTRY)},
};
