/* The reference: what the other tables are tested against. Plain loops in a plain order. */
#include <math.h>
#include <string.h>

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
    static void quantize_##type(void *dst, const float *src, size_t n) {                                               \
        block_format_get(BLOCK_##type)->quantize(dst, src, n);                                                         \
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

enum { SCALAR_HEIGHT = 4, SCALAR_WIDTH = 16, SCALAR_PIECE = 256 };

static size_t rows_bytes(size_t m, size_t k) {
    return (m + SCALAR_HEIGHT - 1) / SCALAR_HEIGHT * ((SCALAR_HEIGHT * k * sizeof(float) + 63) / 64 * 64);
}
static size_t panels_bytes(size_t n, size_t k) {
    return (n + SCALAR_WIDTH - 1) / SCALAR_WIDTH * (SCALAR_WIDTH * k * sizeof(float));
}

/* Rows as they are, k floats each; panels (k, SCALAR_WIDTH). */
static void pack_rows(void *packed, const float *x, size_t ldx, size_t m, size_t k) {
    for (size_t i = 0; i < m; i++) {
        float *row = (float *)(void *)((unsigned char *)packed + rows_bytes(i / SCALAR_HEIGHT * SCALAR_HEIGHT, k));
        memcpy(row + i % SCALAR_HEIGHT * k, x + i * ldx, k * sizeof(float));
    }
}

static float *panel_place(void *panels, size_t output, size_t term, size_t k) {
    return (float *)panels + (output / SCALAR_WIDTH * k + term) * SCALAR_WIDTH + output % SCALAR_WIDTH;
}

static void pack_forward(void *panels, const struct matrix *w, size_t r0, size_t n, size_t c0, size_t k) {
    const struct block_format *format = block_format_get(w->type);
    float piece[SCALAR_PIECE];
    for (size_t i = 0; i < n; i++)
        for (size_t p = 0; p < k; p += SCALAR_PIECE) {
            size_t terms = k - p < SCALAR_PIECE ? k - p : SCALAR_PIECE;
            format->dequantize(piece,
                               (const unsigned char *)w->data + (r0 + i) * w->row_bytes +
                                   (c0 + p) / format->elements * format->bytes,
                               terms);
            for (size_t t = 0; t < terms; t++) *panel_place(panels, i, p + t, k) = piece[t];
        }
}

static void pack_backward(void *panels, const struct matrix *w, size_t c0, size_t n, size_t r0, size_t k) {
    const struct block_format *format = block_format_get(w->type);
    float piece[SCALAR_PIECE];
    for (size_t t = 0; t < k; t++)
        for (size_t c = 0; c < n; c += SCALAR_PIECE) {
            size_t columns = n - c < SCALAR_PIECE ? n - c : SCALAR_PIECE;
            format->dequantize(piece,
                               (const unsigned char *)w->data + (r0 + t) * w->row_bytes +
                                   (c0 + c) / format->elements * format->bytes,
                               columns);
            for (size_t i = 0; i < columns; i++) *panel_place(panels, c + i, t, k) = piece[i];
        }
}

static void multiply(float *y, size_t ldy, const void *rows, size_t m, const void *panels, size_t n, size_t k,
                     int accumulate) {
    for (size_t i = 0; i < m; i++) {
        const unsigned char *block = (const unsigned char *)rows + rows_bytes(i / SCALAR_HEIGHT * SCALAR_HEIGHT, k);
        const float *row = (const float *)(const void *)block + i % SCALAR_HEIGHT * k;
        for (size_t j = 0; j < n; j += SCALAR_WIDTH) {
            const float *panel = (const float *)panels + j * k;
            float sums[SCALAR_WIDTH] = {0};
            for (size_t p = 0; p < k; p++)
                for (size_t v = 0; v < SCALAR_WIDTH; v++) sums[v] += row[p] * panel[p * SCALAR_WIDTH + v];
            for (size_t v = 0; v < SCALAR_WIDTH && j + v < n; v++)
                y[i * ldy + j + v] = accumulate ? y[i * ldy + j + v] + sums[v] : sums[v];
        }
    }
}

static const struct product product_scalar = {
    .arithmetic = "f32",
    .height = SCALAR_HEIGHT,
    .width = SCALAR_WIDTH,
    .region = 64,
    .terms = 768,
    .rows_bytes = rows_bytes,
    .panels_bytes = panels_bytes,
    .pack_rows = pack_rows,
    .pack_forward = pack_forward,
    .pack_backward = pack_backward,
    .multiply = multiply,
};

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

static void softmax_backward(float *dx, const float *p, size_t n) {
    float sum = dot(p, dx, n);
    for (size_t i = 0; i < n; i++) dx[i] = p[i] * (dx[i] - sum);
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

/* ---- rows of activations ---- */

static float inverse_rms(const float *x, float eps, size_t n) {
    return 1.0f / sqrtf(sum_squares(x, n) / (float)n + eps);
}

static void rms_norm(float *y, const float *x, const float *weight, float eps, size_t n) {
    float r = inverse_rms(x, eps, n);
    for (size_t i = 0; i < n; i++) y[i] = x[i] * r * weight[i];
}

/* y_i = x_i r w_i and dr/dx_i = -r^3 x_i / n, so with s = sum_i dy_i w_i x_i:
 * dx_i += r dy_i w_i - x_i r^3 s / n. */
static void rms_norm_backward(float *dx, const float *dy, const float *x, const float *weight, float eps, size_t n) {
    float r = inverse_rms(x, eps, n), sum = 0;
    for (size_t i = 0; i < n; i++) sum += dy[i] * weight[i] * x[i];
    float k = sum / (float)n * r * r * r;
    for (size_t i = 0; i < n; i++) dx[i] += r * dy[i] * weight[i] - x[i] * k;
}

static void rotate_pairs(float *x, const float *turns, float sign, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float u = x[2 * i], v = x[2 * i + 1], c = turns[2 * i], s = sign * turns[2 * i + 1];
        x[2 * i] = u * c - v * s;
        x[2 * i + 1] = u * s + v * c;
    }
}

static void rotate_halves(float *x, const float *turns, float sign, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float u = x[i], v = x[i + n], c = turns[i], s = sign * turns[i + n];
        x[i] = u * c - v * s;
        x[i + n] = u * s + v * c;
    }
}

static void transpose(float *dst, size_t ldd, const float *src, size_t lds, size_t rows, size_t cols) {
    for (size_t c = 0; c < cols; c++)
        for (size_t r = 0; r < (rows + 15) / 16 * 16; r++) dst[c * ldd + r] = r < rows ? src[r * lds + c] : 0;
}

static void add_narrow(float *y, const float *b, size_t n, const float *x, size_t R, float scale) {
    for (size_t i = 0; i < n; i++) y[i] += scale * dot(b + i * R, x, R);
}

#define DEQUANTIZE_ENTRY(type, elements, bytes) [BLOCK_##type] = dequantize_##type,
#define QUANTIZE_ENTRY(type, elements, bytes) [BLOCK_##type] = quantize_##type,
#define ROW_DOT_ENTRY(type, elements, bytes) [BLOCK_##type] = row_dot_##type,
#define ROW_DOTS_ENTRY(type, elements, bytes) [BLOCK_##type] = row_dots_##type,

const struct kernels kernels_scalar = {
    .name = "scalar",
    .supported = supported,
    .exact = &product_scalar,
    .fast = &product_scalar,
    .rounded = &rounded_scalar,
    .dequantize = {KERNELS_EACH_TYPE(DEQUANTIZE_ENTRY)},
    .quantize = {KERNELS_EACH_TYPE(QUANTIZE_ENTRY)},
    .row_dot = {KERNELS_EACH_TYPE(ROW_DOT_ENTRY)},
    .row_dots = {KERNELS_EACH_TYPE(ROW_DOTS_ENTRY)},
    .gemm = gemm,
    .add_narrow = add_narrow,
    .dot = dot,
    .axpy = axpy,
    .sum_squares = sum_squares,
    .softmax = softmax,
    .softmax_backward = softmax_backward,
    .rms_norm = rms_norm,
    .rms_norm_backward = rms_norm_backward,
    .rotate_pairs = rotate_pairs,
    .rotate_halves = rotate_halves,
    .transpose = transpose,
    .swiglu = swiglu,
    .swiglu_backward = swiglu_backward,
};
