/* Kernel tables: one per instruction set, one file each, one selector run once.
 *
 * The scalar table is the reference that the others are tested against. Rows of blocks may lie at any
 * address, floats where a float may; any n will do (quantized types: whole blocks). None allocates.
 * All are thread-safe. */
#ifndef CORE_KERNELS_KERNELS_H
#define CORE_KERNELS_KERNELS_H

#include "core/base/error.h"
#include "core/kernels/blocks.h"

/* Products of many rows of activations with a frozen matrix W of blocks. Both sides are packed first, in the order
 * in which the inner loop reads them: rows once for all that they are multiplied with, blocks by the task that needs
 * them, out of their own format.
 *
 * An element of y is a sum in one fixed order of its terms: how rows and outputs are cut into calls does not show,
 * only where k is cut. Packed memory is aligned to 64 bytes. */
struct product {
    const char *arithmetic; /* of the factors: "f32", "int8", "bf16"; sums are f32 */
    size_t height;          /* rows that the inner loop takes at once */
    size_t width;           /* outputs of a panel; divides 32 */
    size_t region;          /* outputs that a task should take, so that reading the rows pays; a multiple of 32 */
    size_t terms;           /* largest k of a call: longer sums are cut there. A multiple of 256 */
    /* Bytes of m packed rows, and of the panels of n outputs, each with sums of k terms: multiples of 64.
     * rows_bytes(a + b, k) = rows_bytes(a, k) + rows_bytes(b, k) for a that is a multiple of height: rows may be
     * packed in pieces. */
    size_t (*rows_bytes)(size_t m, size_t k);
    size_t (*panels_bytes)(size_t n, size_t k);
    /* x(m, k), rows ldx floats apart */
    void (*pack_rows)(void *packed, const float *x, size_t ldx, size_t m, size_t k);
    /* For y = x W^T: outputs are rows r0 .. r0 + n of W, terms its columns c0 .. c0 + k. c0 and k are whole
     * blocks, or k reaches to the end of the row. */
    void (*pack_forward)(void *panels, const struct matrix *w, size_t r0, size_t n, size_t c0, size_t k);
    /* For dx = dy W: outputs are columns c0 .. c0 + n of W (whole blocks), terms its rows r0 .. r0 + k. */
    void (*pack_backward)(void *panels, const struct matrix *w, size_t c0, size_t n, size_t r0, size_t k);
    /* y(m, n), rows ldy floats apart: = the product, or += with accumulate (added at the end, or where the sum
     * begins). */
    void (*multiply)(float *y, size_t ldy, const void *rows, size_t m, const void *panels, size_t n, size_t k,
                     int accumulate);
    /* n rounds of this arithmetic on registers alone, which is what the CPU can do at most; returns how many
     * operations that were (a multiplication and an addition are two). NULL: there is none. */
    double (*spin)(size_t n);
};

/* Products of few rows of activations with rows of blocks as they lie, for what reads the matrix once and is bounded
 * by that. The activations are rounded to bytes first, 32 terms with one scale = max |x| / 127; the blocks stay as they
 * are. NaN or infinity among the terms makes the product not finite.
 *
 * A product is a sum in one fixed order: how rows, of blocks or of x, are cut into calls does not show. */
struct rounded {
    size_t (*bytes)(size_t n); /* of a rounded row of n terms, a multiple of 64; n: of 32 */
    void (*round)(void *rounded, const float *x, size_t n); /* aligned to 64 bytes */
    /* out[t ldo + r] = row r (at rows + r row_bytes) times x t (at rounded + t bytes(n)). T rows of x read the
     * blocks once. NULL for types that have none: row_dots is for those. */
    void (*dots[BLOCK_TYPE_LIMIT])(float *out, size_t ldo, const void *rows, size_t row_bytes, size_t n_rows,
                                   const void *rounded, size_t T, size_t n);
};

struct kernels {
    const char *name; /* "scalar", "avx2", "avx512" */
    int (*supported)(void);

    const struct product *exact;   /* f32 */
    const struct product *fast;    /* the fastest whose drift is bounded (docs/benchmarks.md); exact where none is */
    const struct rounded *rounded; /* goes with `fast` where that is not exact; NULL: there is none */

    /* One row or part of a row of whole blocks. NULL never: types without a fast version have the scalar one. */
    void (*dequantize[BLOCK_TYPE_LIMIT])(float *dst, const void *src, size_t n);
    /* Finite floats: the bytes that block_format's gives. Others: any bytes. */
    void (*quantize[BLOCK_TYPE_LIMIT])(void *dst, const float *src, size_t n);
    /* sum_i dequantized(row)[i] * x[i] for a row of n elements */
    float (*row_dot[BLOCK_TYPE_LIMIT])(const void *row, const float *x, size_t n);
    /* out[r] = row_dot of row r (at rows + r * row_bytes), bit for bit: how rows are grouped in calls does not
     * show. What depends on x alone is computed once a call: 16 rows or more a call are up to twice as fast as
     * one by one. */
    void (*row_dots[BLOCK_TYPE_LIMIT])(float *out, const void *rows, size_t row_bytes, size_t n_rows, const float *x,
                                       size_t n);

    /* A few queries over n rows of a cache, row_bytes apart: scores(m, n) = q(m, D) keys(n, D)^T, rows lds floats
     * apart, and o(m, D) += weights(m, n) values(n, D), rows of weights ldw floats apart. D is a multiple of 16.
     * NULL for kinds that no cache has, and where gemm over unpacked rows is as good. */
    void (*query_keys[BLOCK_TYPE_LIMIT])(float *scores, size_t lds, const float *q, size_t m, const void *keys,
                                         size_t row_bytes, size_t n, size_t D);
    void (*weigh_values[BLOCK_TYPE_LIMIT])(float *o, size_t D, const float *weights, size_t ldw, size_t m,
                                           const void *values, size_t row_bytes, size_t n);

    /* C[m, n] = alpha * op(A) op(B) + beta * C, row-major, op(A) is (m, k), op(B) is (k, n).
     * beta 0 does not read C, alpha 0 neither A nor B. The result does not depend on which thread calls. */
    void (*gemm)(int transpose_a, int transpose_b, size_t m, size_t n, size_t k, float alpha, const float *a,
                 size_t lda, const float *b, size_t ldb, float beta, float *c, size_t ldc);

    /* y[i] += scale sum_r b[i R + r] x[r] for n rows of few floats */
    void (*add_narrow)(float *y, const float *b, size_t n, const float *x, size_t R, float scale);

    float (*dot)(const float *a, const float *b, size_t n);
    void (*axpy)(float *y, float alpha, const float *x, size_t n); /* y += alpha x */
    float (*sum_squares)(const float *x, size_t n);
    /* x = exp(x - max x), returns log(sum exp(x)) over the original x; with normalize, x sums to 1.
     * Nothing but -inf (or n 0): x = 0, returns -inf. A NaN makes the result NaN. */
    float (*softmax)(float *x, size_t n, int normalize);
    /* dx = p (dx - sum_i p_i dx_i): through p = softmax(x), normalized, from its derivative to x's */
    void (*softmax_backward)(float *dx, const float *p, size_t n);
    /* One row of RMSNorm: y = x r w with r = 1 / sqrt(mean(x^2) + eps). */
    void (*rms_norm)(float *y, const float *x, const float *weight, float eps, size_t n);
    /* dx += */
    void (*rms_norm_backward)(float *dx, const float *dy, const float *x, const float *weight, float eps, size_t n);
    /* u, v = u c - v s, u s + v c: n pairs of neighbours in x, cosine and sine of each side by side in turns; or the
     * pairs (x_i, x_{i + n}), n cosines before n sines. sign is a factor of the sines. */
    void (*rotate_pairs)(float *x, const float *turns, float sign, size_t n);
    void (*rotate_halves)(float *x, const float *turns, float sign, size_t n);
    /* dst(cols, rows) = src(rows, cols)^T, with zeros up to a multiple of 16 rows: ldd has room for them. */
    void (*transpose)(float *dst, size_t ldd, const float *src, size_t lds, size_t rows, size_t cols);
    /* y = silu(gate) * up;  silu(z) = z / (1 + exp(-z)) */
    void (*swiglu)(float *y, const float *gate, const float *up, size_t n);
    /* dgate = dy * up * silu'(gate), dup = dy * silu(gate). Outputs may be any of the inputs. */
    void (*swiglu_backward)(float *dgate, float *dup, const float *dy, const float *gate, const float *up, size_t n);
};

/* The table in use: the best that the CPU has, or the one named by ATTUNE_KERNELS. An unknown or
 * unsupported name there is an error of kernels_select; kernels_get then gives the best. */
const struct kernels *kernels_get(void);
int kernels_select(attune_error *err);
/* What the factors of large products may be rounded to: nothing; or what the table calls fast. */
enum precision { PRECISION_AUTO, PRECISION_F32 };
static inline const struct product *kernels_product(const struct kernels *kernels, enum precision precision) {
    return precision == PRECISION_F32 ? kernels->exact : kernels->fast;
}

/* All tables that are built in, NULL-terminated; check supported() before use. */
const struct kernels *const *kernels_all(void);

#endif
