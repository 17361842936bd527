/* AVX2 + FMA + F16C: eight lanes. The kernels themselves are in lanes_blocks.h and lanes_elementwise.h. */
#if defined(__x86_64__)

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "core/kernels/tables.h"

#define LANE static inline __attribute__((always_inline))
#include "core/kernels/quad_x86.h"

enum { LANES = 8 };
typedef __m256 floats;
typedef uint32_t ints __attribute__((vector_size(32)));

LANE floats v_splat(float value) { return _mm256_set1_ps(value); }
LANE floats v_splat_low(quad value) { return _mm256_broadcastss_ps(value); }
LANE floats v_load(const float *p) { return _mm256_loadu_ps(p); }
LANE void v_store(float *p, floats v) { _mm256_storeu_ps(p, v); }

/* Lanes below n, n < LANES, as a mask in the sign bits. */
LANE __m256i first_lanes(size_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
LANE floats v_load_part(const float *p, size_t n, float fill) {
    __m256i mask = first_lanes(n);
    return _mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(p, mask), _mm256_castsi256_ps(mask));
}
LANE void v_store_part(float *p, floats v, size_t n) { _mm256_maskstore_ps(p, first_lanes(n), v); }

LANE floats v_fma(floats a, floats b, floats c) { return _mm256_fmadd_ps(a, b, c); }
/* Where x is NaN: y. */
LANE floats v_max(floats x, floats y) { return _mm256_max_ps(x, y); }
LANE floats v_min(floats x, floats y) { return _mm256_min_ps(x, y); }
LANE floats v_round(floats x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
LANE floats v_abs(floats x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
LANE floats v_where_negative(floats x, floats negative, floats other) { return _mm256_blendv_ps(other, negative, x); }
/* x 2^n for whole n in [-252, 252]: in two factors, so that neither is subnormal; rounds once. */
LANE floats v_scale(floats x, floats n) {
    __m256i all = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(all, 1), rest = _mm256_sub_epi32(all, half);
    __m256i bias = _mm256_set1_epi32(127);
    __m256 first = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    __m256 second = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
    return x * first * second;
}

/* a0 b0 a1 b1 ... of the lower and the upper halves */
LANE floats v_interleave_low(floats a, floats b) {
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x20);
}
LANE floats v_interleave_high(floats a, floats b) {
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x31);
}

LANE quad v_fold(floats v) { return _mm256_castps256_ps128(v) + _mm256_extractf128_ps(v, 1); }
LANE float v_greatest(floats v) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ps(two, _mm_movehdup_ps(two)));
}

LANE ints v_bytes(const uint8_t *p) { return (ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)); }
LANE floats v_signed_bytes(const uint8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
LANE floats v_float(ints v) { return _mm256_cvtepi32_ps((__m256i)v); }
LANE floats v_halves(const uint8_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
LANE floats v_bf16(const uint8_t *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
/* 16 in the lanes i where bit first + i is set; first is 0 or at least 4. */
LANE ints v_sixteens(uint32_t bits, int first) {
    __m256i all = _mm256_set1_epi32((int)bits), lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    if (first == 0) return (ints)_mm256_srlv_epi32(_mm256_slli_epi32(all, 4), lane) & 16;
    return (ints)_mm256_srlv_epi32(all, _mm256_add_epi32(lane, _mm256_set1_epi32(first - 4))) & 16;
}

#include "core/kernels/lanes_blocks.h"
#include "core/kernels/lanes_quantize.h"
#include "core/kernels/lanes_elementwise.h"

enum { PRODUCT_HEIGHT = 6, PRODUCT_VECTORS = 2 };
#define PRODUCT_TABLE kernels_avx2
#include "core/kernels/lanes_product.h"

#define GEMM_SUMS 12
#include "core/kernels/lanes_gemm.h"
#include "core/kernels/lanes_cache.h"

const struct kernels kernels_avx2 = {
    .name = "avx2",
    .supported = kernels_cpu_has_avx2,
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
