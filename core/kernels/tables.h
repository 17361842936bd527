/* What the kernel tables share: their names, and the list of block types from which each table's entries
 * are made. Included by the table files and the selector only. */
#ifndef CORE_KERNELS_TABLES_H
#define CORE_KERNELS_TABLES_H

#include "core/kernels/kernels.h"

/* X(type, elements of a block, bytes of a block) */
#define KERNELS_EACH_TYPE(X)                                                                                           \
    X(F32, 1, 4)                                                                                                       \
    X(F16, 1, 2)                                                                                                       \
    X(BF16, 1, 2)                                                                                                      \
    X(Q4_0, 32, 18)                                                                                                    \
    X(Q4_1, 32, 20)                                                                                                    \
    X(Q5_0, 32, 22)                                                                                                    \
    X(Q5_1, 32, 24)                                                                                                    \
    X(Q8_0, 32, 34)                                                                                                    \
    X(Q4_K, 256, 144)                                                                                                  \
    X(Q5_K, 256, 176)                                                                                                  \
    X(Q6_K, 256, 210)

extern const struct kernels kernels_scalar;
extern const struct rounded rounded_scalar;

#if defined(__x86_64__)
extern const struct kernels kernels_avx2;
extern const struct kernels kernels_avx512;
extern const struct product product_avx512vnni;
extern const struct product product_amx;
extern const struct rounded rounded_avx512vnni;

/* In kernels.c: a test of the CPU must not itself be compiled for the CPU that it looks for. */
int kernels_cpu_has_avx2(void);
int kernels_cpu_has_avx512(void);
int kernels_cpu_has_avx512vnni(void);
int kernels_cpu_has_amx(void); /* asks the system for leave to use it */

/* struct kernels' gemm by a privately linked single-threaded OpenBLAS (openblas.c). */
void gemm_openblas(int transpose_a, int transpose_b, size_t m, size_t n, size_t k, float alpha, const float *a,
                   size_t lda, const float *b, size_t ldb, float beta, float *c, size_t ldc);
#elif defined(__aarch64__)
extern const struct kernels kernels_neon;
extern const struct product product_neon_dotprod;
extern const struct product product_neon_i8mm;
extern const struct rounded rounded_neon_dotprod;

int kernels_cpu_has_neon(void);
int kernels_cpu_has_neon_dotprod(void);
int kernels_cpu_has_neon_i8mm(void);
#endif

#endif
