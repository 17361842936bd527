/* gemm by OpenBLAS. The library is the single-threaded one, linked statically with hidden symbols: a host's
 * own OpenBLAS and its thread count are never touched, and each thread of our pool calls sgemm by itself.
 *
 * That needs a lock which OpenBLAS 0.3.21 leaves out of its single-threaded build, Debian's included: two
 * threads that enter at the same moment may be handed the same work buffer, and both products come out
 * wrong. Every link of this file with libopenblas.a therefore takes -Wl,--wrap=blas_memory_alloc, which
 * leads OpenBLAS's calls through the function below; without the option the link fails. Giving a buffer
 * back is a single store and needs no lock. */
#if defined(__x86_64__)

#include <assert.h>
#include <cblas.h>
#include <limits.h>
#include <pthread.h>

#include "core/kernels/tables.h"

/* The names are the linker's. */
void *__real_blas_memory_alloc(int position);
void *__wrap_blas_memory_alloc(int position);

void *__wrap_blas_memory_alloc(int position) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&lock);
    void *buffer = __real_blas_memory_alloc(position);
    pthread_mutex_unlock(&lock);
    return buffer;
}

/* OpenBLAS's int interface prints and returns where a leading dimension is short: a bug of ours. */
static blasint dimension(size_t value) {
    assert(value <= INT_MAX);
    return (blasint)value;
}

void gemm_openblas(int transpose_a, int transpose_b, size_t m, size_t n, size_t k, float alpha, const float *a,
                   size_t lda, const float *b, size_t ldb, float beta, float *c, size_t ldc) {
    if (m == 0 || n == 0) return;
    if (k == 0 || alpha == 0) { /* OpenBLAS's kernels for small matrices multiply A and B by an alpha of 0 */
        kernels_scalar.gemm(transpose_a, transpose_b, m, n, 0, 0, a, lda, b, ldb, beta, c, ldc);
        return;
    }
    assert(lda >= (transpose_a ? m : k) && ldb >= (transpose_b ? k : n) && ldc >= n);
    cblas_sgemm(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans, transpose_b ? CblasTrans : CblasNoTrans,
                dimension(m), dimension(n), dimension(k), alpha, a, dimension(lda), b, dimension(ldb), beta, c,
                dimension(ldc));
}

#endif
