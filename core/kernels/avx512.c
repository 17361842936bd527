/* AVX-512 F, BW, VL, DQ: sixteen lanes. The kernels themselves are in lanes_blocks.h and lanes_elementwise.h. */
#if defined(__x86_64__)

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "core/kernels/tables.h"

#define LANE static inline __attribute__((always_inline))
#include "core/kernels/quad_x86.h"

enum { LANES = 16 };
typedef __m512 floats;
typedef uint32_t ints __attribute__((vector_size(64)));

LANE floats v_splat(float value) { return _mm512_set1_ps(value); }
LANE floats v_splat_low(quad value) { return _mm512_broadcastss_ps(value); }
LANE floats v_load(const float *p) { return _mm512_loadu_ps(p); }
LANE void v_store(float *p, floats v) { _mm512_storeu_ps(p, v); }

/* Lanes below n, n < LANES. */
LANE __mmask16 first_lanes(size_t n) { return (__mmask16)((1u << n) - 1); }
LANE floats v_load_part(const float *p, size_t n, float fill) {
    return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), first_lanes(n), p);
}
LANE void v_store_part(float *p, floats v, size_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), v); }

LANE floats v_fma(floats a, floats b, floats c) { return _mm512_fmadd_ps(a, b, c); }
/* Where x is NaN: y. */
LANE floats v_max(floats x, floats y) { return _mm512_max_ps(x, y); }
LANE floats v_min(floats x, floats y) { return _mm512_min_ps(x, y); }
LANE floats v_round(floats x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
LANE floats v_abs(floats x) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), x); }
LANE floats v_where_negative(floats x, floats negative, floats other) {
    return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(x)), other, negative);
}
/* x 2^n for whole n; rounds once. */
LANE floats v_scale(floats x, floats n) { return _mm512_scalef_ps(x, n); }

/* a0 b0 a1 b1 ... of the lower and the upper halves */
LANE floats v_interleave_low(floats a, floats b) {
    const __m512i order = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    return _mm512_permutex2var_ps(a, order, b);
}
LANE floats v_interleave_high(floats a, floats b) {
    const __m512i order = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    return _mm512_permutex2var_ps(a, order, b);
}

LANE quad v_fold(floats v) {
    __m256 eight = _mm512_castps512_ps256(v) + _mm512_extractf32x8_ps(v, 1);
    return _mm256_castps256_ps128(eight) + _mm256_extractf128_ps(eight, 1);
}
LANE float v_greatest(floats v) {
    __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ps(two, _mm_movehdup_ps(two)));
}

LANE ints v_bytes(const uint8_t *p) { return (ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
LANE floats v_signed_bytes(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
LANE floats v_float(ints v) { return _mm512_cvtepi32_ps((__m512i)v); }
LANE floats v_halves(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
LANE floats v_bf16(const uint8_t *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
/* 16 in the lanes i where bit first + i is set. */
LANE ints v_sixteens(uint32_t bits, int first) { return (ints)_mm512_maskz_set1_epi32((__mmask16)(bits >> first), 16); }

#include "core/kernels/lanes_blocks.h"
#include "core/kernels/lanes_quantize.h"
#include "core/kernels/lanes_elementwise.h"

enum { PRODUCT_HEIGHT = 12, PRODUCT_VECTORS = 2 };
#define PRODUCT_TABLE kernels_avx512
#include "core/kernels/lanes_product.h"

#define GEMM_SUMS 24
#define GEMM_NARROW 8 /* half of a vector: eight lanes are as fast, or faster where 512 bits take two cycles */
#define gemm_narrow kernels_avx2.gemm
#include "core/kernels/lanes_gemm.h"
#include "core/kernels/lanes_cache.h"

const struct kernels kernels_avx512 = {
    .name = "avx512",
    .supported = kernels_cpu_has_avx512,
    .exact = &product_f32,
    .fast = &product_f32,
    .dequantize = {KERNELS_EACH_TYPE(DEQUANTIZE_ENTRY)},
    .quantize = {KERNELS_EACH_TYPE(QUANTIZE_ENTRY)},
    .row_dot = {KERNELS_EACH_TYPE(ROW_DOT_ENTRY)},
    .row_dots = {KERNELS_EACH_TYPE(ROW_DOTS_ENTRY)},
    .query_keys = CACHE_ENTRIES(query_keys),
    .weigh_values = CACHE_ENTRIES(weigh_values),
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
    .transpose = transpose_rows,
    .swiglu = swiglu,
    .swiglu_backward = swiglu_backward,
};

#endif
