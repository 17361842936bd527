/* The reference: what the other tables are tested against. Plain loops in a plain order. */
#include <math.h>

#include "core/kernels/tables.h"

static int supported(void) { return 1; }

static float dot(const float *a, const float *b, size_t n) {
    float sum = 0;
    for (size_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static void axpy(float *y, float alpha, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += alpha * x[i];
}

static float sum_squares(const float *x, size_t n) { return dot(x, x, n); }

/* ---- rows of blocks ---- */

static float row_dot(enum block_type type, const void *row, const float *x, size_t n) {
    enum { PIECE = 256 }; /* a whole number of blocks of any type */
    const struct block_format *format = block_format_get(type);
    const unsigned char *blocks = row;
    float values[PIECE], sum = 0;
    for (size_t i = 0; i < n; i += PIECE) {
        size_t count = n - i < PIECE ? n - i : PIECE;
        format->dequantize(values, blocks + i / format->elements * format->bytes, count);
        sum += dot(values, x + i, count);
    }
    return sum;
}

#define ROW_FUNCTIONS(type, elements, bytes)                                                                           \
    static void dequantize_##type(float *dst, const void *src, size_t n) {                                             \
        block_format_get(BLOCK_##type)->dequantize(dst, src, n);                                                       \
    }                                                                                                                  \
    static float row_dot_##type(const void *row, const float *x, size_t n) {                                           \
        return row_dot(BLOCK_##type, row, x, n);                                                                       \
    }                                                                                                                  \
    static void row_dots_##type(float *out, const void *rows, size_t row_bytes, size_t n_rows, const float *x,         \
                                size_t n) {                                                                            \
        for (size_t r = 0; r < n_rows; r++)                                                                            \
            out[r] = row_dot(BLOCK_##type, (const unsigned char *)rows + r * row_bytes, x, n);                         \
    }
KERNELS_EACH_TYPE(ROW_FUNCTIONS)

/* ---- products ---- */

static void gemm(int transpose_a, int transpose_b, size_t m, size_t n, size_t k, float alpha, const float *a,
                 size_t lda, const float *b, size_t ldb, float beta, float *c, size_t ldc) {
    size_t a_row = transpose_a ? 1 : lda, a_column = transpose_a ? lda : 1;
    size_t b_row = transpose_b ? 1 : ldb, b_column = transpose_b ? ldb : 1;
    if (alpha == 0) k = 0; /* as in BLAS: A and B are not read */
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < n; j++) {
            float sum = 0;
            for (size_t p = 0; p < k; p++) sum += a[i * a_row + p * a_column] * b[p * b_row + j * b_column];
            float *out = &c[i * ldc + j];
            *out = beta == 0 ? alpha * sum : alpha * sum + beta * *out;
        }
    }
}

/* ---- exponentials ---- */

static float softmax(float *x, size_t n, int normalize) {
    float max = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++)
        if (x[i] > max) max = x[i];
    if (max == -INFINITY) max = 0; /* nothing but -inf (and NaN): exp gives 0 (and NaN), not -inf - -inf */
    for (size_t i = 0; i < n; i++) {
        x[i] = expf(x[i] - max);
        sum += x[i];
    }
    if (normalize && sum != 0)
        for (size_t i = 0; i < n; i++) x[i] *= 1 / sum;
    return max + logf(sum);
}

static void swiglu(float *y, const float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = gate[i] / (1 + expf(-gate[i])) * up[i];
}

static void swiglu_backward(float *dgate, float *dup, const float *dy, const float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float z = gate[i];
        float sigmoid = 1 / (1 + expf(-z)), rest = 1 / (1 + expf(z)); /* 1 - sigmoid without its cancellation */
        float dy_i = dy[i], up_i = up[i];
        dup[i] = dy_i * z * sigmoid;
        dgate[i] = dy_i * up_i * sigmoid * (1 + z * rest);
    }
}

#define DEQUANTIZE_ENTRY(type, elements, bytes) [BLOCK_##type] = dequantize_##type,
#define ROW_DOT_ENTRY(type, elements, bytes) [BLOCK_##type] = row_dot_##type,
#define ROW_DOTS_ENTRY(type, elements, bytes) [BLOCK_##type] = row_dots_##type,

const struct kernels kernels_scalar = {
    .name = "scalar",
    .supported = supported,
    .dequantize = {KERNELS_EACH_TYPE(DEQUANTIZE_ENTRY)},
    .row_dot = {KERNELS_EACH_TYPE(ROW_DOT_ENTRY)},
    .row_dots = {KERNELS_EACH_TYPE(ROW_DOTS_ENTRY)},
    .gemm = gemm,
    .dot = dot,
    .axpy = axpy,
    .sum_squares = sum_squares,
    .softmax = softmax,
    .swiglu = swiglu,
    .swiglu_backward = swiglu_backward,
};
