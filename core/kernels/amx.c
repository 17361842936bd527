/* AMX with bfloat16: the "amx" table's fast product (amx_product.h). All else of that table is AVX-512's, where it
 * stands (avx512.c).
 *
 * The compilers' intrinsics do not say which memory a tile is loaded from: a store before one might be moved behind
 * it, or dropped. The barriers forbid that. */
#if defined(__x86_64__)

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "core/kernels/tables.h"

#define TILE_CONFIGURE(shapes) _tile_loadconfig(shapes)
#define TILE_RELEASE() _tile_release()
#define TILE_ZERO(t) _tile_zero(t)
#define TILE_LOAD(t, from, stride)                                                                                     \
    do {                                                                                                               \
        __asm__ volatile("" ::: "memory");                                                                             \
        _tile_loadd(t, from, stride);                                                                                  \
    } while (0)
#define TILE_STORE(t, to, stride)                                                                                      \
    do {                                                                                                               \
        _tile_stored(t, to, stride);                                                                                   \
        __asm__ volatile("" ::: "memory");                                                                             \
    } while (0)
#define TILE_DOT(c, a, b) _tile_dpbf16ps(c, a, b)

static inline __attribute__((always_inline)) __m512i narrow(__m512 low, __m512 high) {
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

#define PRODUCT_NAME product_amx
#define PRODUCT_TABLE kernels_avx512
#include "core/kernels/amx_product.h"

#endif
