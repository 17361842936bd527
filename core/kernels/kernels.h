/* Kernel tables: one per instruction set, one file each, one selector run once.
 *
 * The scalar table is the reference that the others are tested against. Rows of blocks may lie at any
 * address, floats where a float may; any n will do (quantized types: whole blocks). None allocates.
 * All are thread-safe. */
#ifndef CORE_KERNELS_KERNELS_H
#define CORE_KERNELS_KERNELS_H

#include "core/base/error.h"
#include "core/kernels/blocks.h"

struct kernels {
    const char *name; /* "scalar", "avx2", "avx512" */
    int (*supported)(void);

    /* One row or part of a row of whole blocks. NULL never: types without a fast version have the scalar one. */
    void (*dequantize[BLOCK_TYPE_LIMIT])(float *dst, const void *src, size_t n);
    /* sum_i dequantized(row)[i] * x[i] for a row of n elements */
    float (*row_dot[BLOCK_TYPE_LIMIT])(const void *row, const float *x, size_t n);
    /* out[r] = row_dot of row r (at rows + r * row_bytes), bit for bit: how rows are grouped in calls does not
     * show. What depends on x alone is computed once a call: 16 rows or more a call are up to twice as fast as
     * one by one. */
    void (*row_dots[BLOCK_TYPE_LIMIT])(float *out, const void *rows, size_t row_bytes, size_t n_rows, const float *x,
                                       size_t n);

    /* C[m, n] = alpha * op(A) op(B) + beta * C, row-major, op(A) is (m, k), op(B) is (k, n).
     * beta 0 does not read C, alpha 0 neither A nor B. The result does not depend on which thread calls. */
    void (*gemm)(int transpose_a, int transpose_b, size_t m, size_t n, size_t k, float alpha, const float *a,
                 size_t lda, const float *b, size_t ldb, float beta, float *c, size_t ldc);

    float (*dot)(const float *a, const float *b, size_t n);
    void (*axpy)(float *y, float alpha, const float *x, size_t n); /* y += alpha x */
    float (*sum_squares)(const float *x, size_t n);
    /* x = exp(x - max x), returns log(sum exp(x)) over the original x; with normalize, x sums to 1.
     * Nothing but -inf (or n 0): x = 0, returns -inf. A NaN makes the result NaN. */
    float (*softmax)(float *x, size_t n, int normalize);
    /* y = silu(gate) * up;  silu(z) = z / (1 + exp(-z)) */
    void (*swiglu)(float *y, const float *gate, const float *up, size_t n);
    /* dgate = dy * up * silu'(gate), dup = dy * silu(gate). Outputs may be any of the inputs. */
    void (*swiglu_backward)(float *dgate, float *dup, const float *dy, const float *gate, const float *up, size_t n);
};

/* The table in use: the best that the CPU has, or the one named by ATTUNE_KERNELS. An unknown or
 * unsupported name there is an error of kernels_select; kernels_get then gives the best. */
const struct kernels *kernels_get(void);
int kernels_select(attune_error *err);
/* All tables that are built in, NULL-terminated; check supported() before use. */
const struct kernels *const *kernels_all(void);

#endif
