/* Quantizing, over a vector of LANES floats: blocks.c's arithmetic operation by operation, so that finite floats give
 * the same bits. Included by the table files behind lanes_blocks.h. Types that nothing here is faster for are those
 * of blocks.c. */
#ifndef CORE_KERNELS_LANES_QUANTIZE_H
#define CORE_KERNELS_LANES_QUANTIZE_H

typedef int32_t signed_ints __attribute__((vector_size(sizeof(floats))));
typedef uint8_t lane_bytes __attribute__((vector_size(LANES)));

LANE void put_half(uint8_t *p, float value) {
    uint16_t half = half_from_float(value);
    memcpy(p, &half, sizeof half);
}

/* A limit of a block: where it is zero, the first zero, for its sign. */
LANE float first_zero(const float *x, float limit) {
    for (int i = 0; limit == 0 && i < 32; i++)
        if (x[i] == 0) return x[i];
    return limit;
}

LANE void limits_32(const float *x, float *least, float *most) {
    floats low = v_load(x), high = low;
#pragma GCC unroll 8
    for (size_t k = LANES; k < 32; k += LANES) {
        floats v = v_load(x + k);
        low = v_min(low, v);
        high = v_max(high, v);
    }
    *least = first_zero(x, -v_greatest(-low));
    *most = first_zero(x, v_greatest(high));
}

/* Truncated to [0, 15]. */
LANE signed_ints nibbles_of(floats value) {
    floats inside = v_min(v_max(value, v_splat(0)), v_splat(15));
    return __builtin_convertvector(inside, signed_ints);
}

/* (x - low) inverse + half, in two roundings more than a fused one would have. */
LANE void store_nibbles(uint8_t *q, const float *x, float low, float inverse, float half) {
#pragma GCC unroll 4
    for (size_t k = 0; k < 16; k += LANES) {
        signed_ints a = nibbles_of((v_load(x + k) - v_splat(low)) * v_splat(inverse) + v_splat(half));
        signed_ints b = nibbles_of((v_load(x + 16 + k) - v_splat(low)) * v_splat(inverse) + v_splat(half));
        lane_bytes bytes = __builtin_convertvector(a | b << 4, lane_bytes);
        memcpy(q + k, &bytes, sizeof bytes);
    }
}

static void quantize_Q4_1(void *dst, const float *x, size_t n) {
    uint8_t *block = dst;
    for (; n; n -= 32, x += 32, block += 20) {
        float least, most;
        limits_32(x, &least, &most);
        float d = (most - least) / 15;
        put_half(block, d);
        put_half(block + 2, least);
        store_nibbles(block + 4, x, least, d != 0 ? 1.0f / d : 0.0f, 0.5f);
    }
}

/* The first of greatest magnitude. */
LANE float largest_32(const float *x) {
    float least, most;
    limits_32(x, &least, &most);
    if (most != -least) return most > -least ? most : least;
    for (int i = 0; i < 32; i++)
        if (x[i] == most || x[i] == least) return most == 0 ? 0 : x[i];
    return 0;
}

static void quantize_Q4_0(void *dst, const float *x, size_t n) {
    uint8_t *block = dst;
    for (; n; n -= 32, x += 32, block += 18) {
        float d = largest_32(x) / -8;
        put_half(block, d);
        store_nibbles(block + 2, x, 0, d != 0 ? 1.0f / d : 0.0f, 8.5f);
    }
}

static void quantize_Q8_0(void *dst, const float *x, size_t n) {
    uint8_t *block = dst;
    for (; n; n -= 32, x += 32, block += 34) {
        floats size = v_abs(v_load(x));
#pragma GCC unroll 8
        for (size_t k = LANES; k < 32; k += LANES) size = v_max(size, v_abs(v_load(x + k)));
        float d = v_greatest(size) / 127, inverse = d != 0 ? 1.0f / d : 0.0f;
        put_half(block, d);
#pragma GCC unroll 8
        for (size_t k = 0; k < 32; k += LANES) {
            /* to the nearest, halves away from zero: the part behind the point of a float this small is exact */
            floats value = v_min(v_max(v_load(x + k) * v_splat(inverse), v_splat(-127)), v_splat(127));
            signed_ints whole = __builtin_convertvector(value, signed_ints);
            floats part = value - __builtin_convertvector(whole, floats);
            whole = whole - (part >= v_splat(0.5f)) + (part <= v_splat(-0.5f));
            lane_bytes bytes = __builtin_convertvector(whole, lane_bytes);
            memcpy(block + 2 + k, &bytes, sizeof bytes);
        }
    }
}

#define QUANTIZE_AS_BLOCKS(type)                                                                                       \
    static void quantize_##type(void *dst, const float *src, size_t n) {                                               \
        block_format_get(BLOCK_##type)->quantize(dst, src, n);                                                         \
    }
QUANTIZE_AS_BLOCKS(F32)
QUANTIZE_AS_BLOCKS(F16)
QUANTIZE_AS_BLOCKS(BF16)
QUANTIZE_AS_BLOCKS(Q5_0)
QUANTIZE_AS_BLOCKS(Q5_1)
QUANTIZE_AS_BLOCKS(Q4_K)
QUANTIZE_AS_BLOCKS(Q5_K)
QUANTIZE_AS_BLOCKS(Q6_K)
#define QUANTIZE_ENTRY(type, elements, bytes) [BLOCK_##type] = quantize_##type,

#endif
