/* Elementwise kernels and reductions, written once over a vector of LANES floats; avx2.c and avx512.c
 * define the vector and include this. Element i of a reduction always lands in the same lane and lanes
 * are added in one order: a result depends on n and the values alone. */
#ifndef CORE_KERNELS_X86_ELEMENTWISE_H
#define CORE_KERNELS_X86_ELEMENTWISE_H

#include <math.h>

/* e^x within 1e-7, gradually to 0 below -87.3 and to infinity above 88.7; NaN stays.
 *
 * x = n ln 2 + r, |r| <= ln 2 / 2, with ln 2 in two floats (the first has trailing zeros, so that n times it
 * is exact); e^r = 1 + r + r^2 P(r), P fitted to the least relative error (3e-9). Beyond the limits of the
 * first line the result no longer changes. */
LANE floats v_exp(floats x) {
    x = v_min(v_splat(89), v_max(v_splat(-104), x)); /* x last: a NaN in it survives both */
    floats n = v_round(x * v_splat(0x1.715476p+0f));
    floats r = v_fma(n, v_splat(-0x1.62e4p-1f), x);
    r = v_fma(n, v_splat(-0x1.7f7d1cp-20f), r);
    floats p = v_splat(0x1.6a2352p-10f);
    p = v_fma(p, r, v_splat(0x1.123a6cp-7f));
    p = v_fma(p, r, v_splat(0x1.5558f4p-5f));
    p = v_fma(p, r, v_splat(0x1.555490p-3f));
    p = v_fma(p, r, v_splat(0x1.fffffcp-2f));
    return v_scale(v_fma(r * r, p, r) + v_splat(1), n);
}

static float dot(const float *a, const float *b, size_t n) {
    return plain_dot(PLAIN_F32, (const uint8_t *)a, b, n);
}

static float sum_squares(const float *x, size_t n) { return dot(x, x, n); }

static void axpy(float *y, float alpha, const float *x, size_t n) {
    floats factor = v_splat(alpha);
    size_t i = 0;
    for (; n - i >= LANES; i += LANES) v_store(y + i, v_fma(factor, v_load(x + i), v_load(y + i)));
    if (n - i) v_store_part(y + i, v_fma(factor, v_load_part(x + i, n - i, 0), v_load_part(y + i, n - i, 0)), n - i);
}

static float max_of(const float *x, size_t n) {
    floats a = v_splat(-INFINITY), b = a;
    size_t i = 0;
    for (; n - i >= 2 * LANES; i += 2 * LANES) {
        a = v_max(v_load(x + i), a);
        b = v_max(v_load(x + i + LANES), b);
    }
    for (; n - i >= LANES; i += LANES) a = v_max(v_load(x + i), a);
    if (n - i) b = v_max(v_load_part(x + i, n - i, -INFINITY), b);
    return v_greatest(v_max(a, b));
}

static float softmax(float *x, size_t n, int normalize) {
    float max = max_of(x, n);
    if (max == -INFINITY) max = 0; /* nothing but -inf (and NaN): exp gives 0 (and NaN), not -inf - -inf */
    floats shift = v_splat(max), sums = v_splat(0);
    size_t i = 0;
    for (; n - i >= LANES; i += LANES) {
        floats e = v_exp(v_load(x + i) - shift);
        sums += e;
        v_store(x + i, e);
    }
    if (n - i) {
        floats e = v_exp(v_load_part(x + i, n - i, -INFINITY) - shift); /* the filling becomes 0 */
        sums += e;
        v_store_part(x + i, e, n - i);
    }
    float sum = v_sum(sums);
    if (normalize && sum != 0) {
        floats factor = v_splat(1 / sum);
        for (i = 0; n - i >= LANES; i += LANES) v_store(x + i, v_load(x + i) * factor);
        if (n - i) v_store_part(x + i, v_load_part(x + i, n - i, 0) * factor, n - i);
    }
    return max + logf(sum);
}

LANE floats silu_times(floats z, floats up) { return z / (v_splat(1) + v_exp(-z)) * up; }

static void swiglu(float *y, const float *gate, const float *up, size_t n) {
    size_t i = 0;
    for (; n - i >= LANES; i += LANES) v_store(y + i, silu_times(v_load(gate + i), v_load(up + i)));
    if (n - i)
        v_store_part(y + i, silu_times(v_load_part(gate + i, n - i, 0), v_load_part(up + i, n - i, 0)), n - i);
}

struct swiglu_gradient {
    floats gate, up;
};
/* From e^-|z| both the sigmoid and 1 - sigmoid come without cancellation or overflow. */
LANE struct swiglu_gradient swiglu_gradient(floats dy, floats z, floats up) {
    floats e = v_exp(-v_abs(z)), larger = v_splat(1) / (v_splat(1) + e), smaller = e * larger;
    floats sigmoid = v_where_negative(z, smaller, larger), rest = v_where_negative(z, larger, smaller);
    return (struct swiglu_gradient){dy * up * sigmoid * v_fma(z, rest, v_splat(1)), dy * z * sigmoid};
}

static void swiglu_backward(float *dgate, float *dup, const float *dy, const float *gate, const float *up, size_t n) {
    size_t i = 0;
    for (; n - i >= LANES; i += LANES) {
        struct swiglu_gradient g = swiglu_gradient(v_load(dy + i), v_load(gate + i), v_load(up + i));
        v_store(dgate + i, g.gate);
        v_store(dup + i, g.up);
    }
    if (n - i) {
        size_t rest = n - i;
        struct swiglu_gradient g = swiglu_gradient(v_load_part(dy + i, rest, 0), v_load_part(gate + i, rest, 0),
                                                   v_load_part(up + i, rest, 0));
        v_store_part(dgate + i, g.gate, rest);
        v_store_part(dup + i, g.up, rest);
    }
}

#endif
