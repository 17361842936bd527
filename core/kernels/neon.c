/* ARMv8-A: four lanes. The kernels themselves are in the lanes_* headers. */
#if defined(__aarch64__)

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#include "core/kernels/tables.h"

#define LANE static inline __attribute__((always_inline))
enum { LANES = 4 };
typedef float32x4_t floats;
typedef uint32x4_t ints;
typedef float32x4_t quad;
typedef struct {
    float32x4_t low, high;
} octet;

LANE floats v_splat(float value) { return vdupq_n_f32(value); }
LANE floats v_splat_low(quad value) { return vdupq_laneq_f32(value, 0); }
LANE floats v_load(const float *p) { return vld1q_f32(p); }
LANE void v_store(float *p, floats v) { vst1q_f32(p, v); }

/* Lanes below n, n < LANES. */
LANE floats v_load_part(const float *p, size_t n, float fill) {
    float padded[LANES] = {fill, fill, fill, fill};
    memcpy(padded, p, n * sizeof *p);
    return vld1q_f32(padded);
}
LANE void v_store_part(float *p, floats v, size_t n) {
    float whole[LANES];
    vst1q_f32(whole, v);
    memcpy(p, whole, n * sizeof *p);
}

LANE floats v_fma(floats a, floats b, floats c) { return vfmaq_f32(c, a, b); }
/* Where x is NaN: y. The instructions of that name give the NaN. */
LANE floats v_max(floats x, floats y) { return vbslq_f32(vcgtq_f32(x, y), x, y); }
LANE floats v_min(floats x, floats y) { return vbslq_f32(vcltq_f32(x, y), x, y); }
LANE floats v_round(floats x) { return vrndnq_f32(x); }
LANE floats v_abs(floats x) { return vabsq_f32(x); }
LANE floats v_where_negative(floats x, floats negative, floats other) {
    return vbslq_f32(vcltzq_s32(vreinterpretq_s32_f32(x)), negative, other);
}
/* x 2^n for whole n in [-252, 252]: in two factors, so that neither is subnormal; rounds once. */
LANE floats v_scale(floats x, floats n) {
    int32x4_t all = vcvtnq_s32_f32(n), half = vshrq_n_s32(all, 1), rest = vsubq_s32(all, half);
    int32x4_t bias = vdupq_n_s32(127);
    float32x4_t first = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, bias), 23));
    float32x4_t second = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(rest, bias), 23));
    return x * first * second;
}

/* a0 b0 a1 b1 ... of the lower and the upper halves */
LANE floats v_interleave_low(floats a, floats b) { return vzip1q_f32(a, b); }
LANE floats v_interleave_high(floats a, floats b) { return vzip2q_f32(a, b); }

LANE quad v_fold(floats v) { return v; }
LANE float v_greatest(floats v) { return vmaxvq_f32(v); }

LANE ints v_bytes(const uint8_t *p) {
    uint32_t four;
    memcpy(&four, p, sizeof four);
    return vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)))));
}
LANE floats v_signed_bytes(const uint8_t *p) {
    uint32_t four;
    memcpy(&four, p, sizeof four);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four))))));
}
/* The lanes are small numbers, or negative ones in two's complement. */
LANE floats v_float(ints v) { return vcvtq_f32_s32(vreinterpretq_s32_u32(v)); }
LANE uint16x4_t four_of_16_bits(const uint8_t *p) { return vreinterpret_u16_u8(vld1_u8(p)); }
LANE floats v_halves(const uint8_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(four_of_16_bits(p))); }
LANE floats v_bf16(const uint8_t *p) { return vreinterpretq_f32_u32(vshll_n_u16(four_of_16_bits(p), 16)); }
/* 16 in the lanes i where bit first + i is set. */
LANE ints v_sixteens(uint32_t bits, int first) {
    static const uint32_t lane[LANES] = {1, 2, 4, 8};
    return vandq_u32(vtstq_u32(vdupq_n_u32(bits >> first), vld1q_u32(lane)), vdupq_n_u32(16));
}

LANE quad quad_load(const float *p) { return vld1q_f32(p); }
LANE quad quad_splat(float value) { return vdupq_n_f32(value); }
LANE float quad_first(quad q) { return vgetq_lane_f32(q, 0); }
/* Lane 1 in lane 0. */
LANE quad quad_second(quad q) { return vdupq_laneq_f32(q, 1); }
LANE quad quad_fma(quad a, quad b, quad c) { return vfmaq_f32(c, a, b); }
LANE float quad_sum(quad q) { return vaddvq_f32(q); }
/* sums[0] of a, sums[1] of b, ... */
LANE void quad_store_sums(float sums[4], quad a, quad b, quad c, quad d) {
    vst1q_f32(sums, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
}
/* The half at p in lane 0; two, the second in lane 1. */
LANE quad quad_half(const uint8_t *p) {
    uint16_t half;
    memcpy(&half, p, sizeof half);
    return vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(half)));
}
LANE quad quad_two_halves(const uint8_t *p) {
    uint32_t halves;
    memcpy(&halves, p, sizeof halves);
    return vcvt_f32_f16(vreinterpret_f16_u32(vdup_n_u32(halves)));
}

LANE octet octet_zero(void) { return (octet){vdupq_n_f32(0), vdupq_n_f32(0)}; }
/* sum + a b over eight floats */
LANE octet octet_fma(const float *a, const float *b, octet sum) {
    return (octet){vfmaq_f32(sum.low, vld1q_f32(a), vld1q_f32(b)),
                   vfmaq_f32(sum.high, vld1q_f32(a + 4), vld1q_f32(b + 4))};
}
LANE float octet_sum(octet sum) { return vaddvq_f32(vaddq_f32(sum.low, sum.high)); }
/* dst[i] = byte i of the eight times lane 0 of the factor */
LANE void octet_store_bytes(float dst[8], uint64_t bytes, quad factor) {
    uint16x8_t wide = vmovl_u8(vcreate_u8(bytes));
    vst1q_f32(dst, vmulq_laneq_f32(vcvtq_f32_u32(vmovl_u16(vget_low_u16(wide))), factor, 0));
    vst1q_f32(dst + 4, vmulq_laneq_f32(vcvtq_f32_u32(vmovl_u16(vget_high_u16(wide))), factor, 0));
}

#include "core/kernels/lanes_blocks.h"
#include "core/kernels/lanes_quantize.h"
#include "core/kernels/lanes_elementwise.h"

enum { PRODUCT_HEIGHT = 4, PRODUCT_VECTORS = 4 };
#define PRODUCT_TABLE kernels_neon
#include "core/kernels/lanes_product.h"

#define GEMM_SUMS 24
#include "core/kernels/lanes_gemm.h"
#include "core/kernels/lanes_cache.h"

const struct kernels kernels_neon = {
    .name = "neon",
    .supported = kernels_cpu_has_neon,
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
