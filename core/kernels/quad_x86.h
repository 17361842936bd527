/* Four and eight floats on x86, for what lanes_blocks.h does beside its LANES: the end of a sum, the scales of a
 * block. Included by avx2.c and avx512.c, needs F16C and FMA. */
#ifndef CORE_KERNELS_QUAD_X86_H
#define CORE_KERNELS_QUAD_X86_H

typedef __m128 quad;
typedef __m256 octet;

LANE quad quad_load(const float *p) { return _mm_loadu_ps(p); }
LANE quad quad_splat(float value) { return _mm_set1_ps(value); }
LANE float quad_first(quad q) { return _mm_cvtss_f32(q); }
/* Lane 1 in lane 0. */
LANE quad quad_second(quad q) { return _mm_movehdup_ps(q); }
LANE quad quad_fma(quad a, quad b, quad c) { return _mm_fmadd_ps(a, b, c); }
LANE float quad_sum(quad four) {
    quad two = four + _mm_movehl_ps(four, four);
    return quad_first(two + quad_second(two));
}
/* sums[0] of a, sums[1] of b, ... */
LANE void quad_store_sums(float sums[4], quad a, quad b, quad c, quad d) {
    _mm_storeu_ps(sums, _mm_hadd_ps(_mm_hadd_ps(a, b), _mm_hadd_ps(c, d)));
}

/* The half at p in lane 0. */
LANE quad quad_half(const uint8_t *p) {
    uint16_t half;
    memcpy(&half, p, sizeof half);
    return _mm_cvtph_ps(_mm_cvtsi32_si128(half));
}
/* Lane 0 the first, lane 1 the second. */
LANE quad quad_two_halves(const uint8_t *p) {
    int halves;
    memcpy(&halves, p, sizeof halves);
    return _mm_cvtph_ps(_mm_cvtsi32_si128(halves));
}

LANE octet octet_zero(void) { return _mm256_setzero_ps(); }
/* sum + a b over eight floats */
LANE octet octet_fma(const float *a, const float *b, octet sum) {
    return _mm256_fmadd_ps(_mm256_loadu_ps(a), _mm256_loadu_ps(b), sum);
}
LANE float octet_sum(octet sum) { return quad_sum(_mm256_castps256_ps128(sum) + _mm256_extractf128_ps(sum, 1)); }
/* dst[i] = byte i of the eight times lane 0 of the factor */
LANE void octet_store_bytes(float dst[8], uint64_t bytes, quad factor) {
    __m256i wide = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)bytes));
    _mm256_storeu_ps(dst, _mm256_cvtepi32_ps(wide) * _mm256_broadcastss_ps(factor));
}

#endif
