/* Elementwise kernels and reductions, written once over a vector of LANES floats that the file of a table defines
 * before it includes this (as for lanes_blocks.h). Element i of a reduction always lands in the same lane and
 * lanes are added in one order: a result depends on n and the values alone. */
#ifndef CORE_KERNELS_LANES_ELEMENTWISE_H
#define CORE_KERNELS_LANES_ELEMENTWISE_H

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

/* dx = p (dx - sum) */
LANE floats softmax_gradient(floats dx, floats p, floats sum) { return p * (dx - sum); }
static void softmax_backward(float *dx, const float *p, size_t n) {
    floats sum = v_splat(dot(p, dx, n));
    size_t i = 0;
    for (; n - i >= LANES; i += LANES) v_store(dx + i, softmax_gradient(v_load(dx + i), v_load(p + i), sum));
    if (n - i)
        v_store_part(dx + i, softmax_gradient(v_load_part(dx + i, n - i, 0), v_load_part(p + i, n - i, 0), sum), n - i);
}

static float inverse_rms(const float *x, float eps, size_t n) {
    return 1.0f / sqrtf(sum_squares(x, n) / (float)n + eps);
}

static void rms_norm(float *y, const float *x, const float *weight, float eps, size_t n) {
    floats r = v_splat(inverse_rms(x, eps, n));
    size_t i = 0;
    for (; n - i >= LANES; i += LANES) v_store(y + i, v_load(x + i) * r * v_load(weight + i));
    if (n - i) v_store_part(y + i, v_load_part(x + i, n - i, 0) * r * v_load_part(weight + i, n - i, 0), n - i);
}

/* sum_i a_i b_i c_i */
static float dot_of_three(const float *a, const float *b, const float *c, size_t n) {
    floats even = v_splat(0), odd = even;
    for (; n >= 2 * LANES; n -= 2 * LANES, a += 2 * LANES, b += 2 * LANES, c += 2 * LANES) {
        even = v_fma(v_load(a) * v_load(b), v_load(c), even);
        odd = v_fma(v_load(a + LANES) * v_load(b + LANES), v_load(c + LANES), odd);
    }
    for (; n >= LANES; n -= LANES, a += LANES, b += LANES, c += LANES)
        even = v_fma(v_load(a) * v_load(b), v_load(c), even);
    if (n) odd = v_fma(v_load_part(a, n, 0) * v_load_part(b, n, 0), v_load_part(c, n, 0), odd);
    return v_sum(even + odd);
}

/* See scalar.c: dx += r dy w - x k. */
LANE floats rms_norm_gradient(floats dx, floats dy, floats x, floats weight, floats r, floats k) {
    return dx + (r * dy * weight - x * k);
}
static void rms_norm_backward(float *dx, const float *dy, const float *x, const float *weight, float eps, size_t n) {
    float r = inverse_rms(x, eps, n), k = dot_of_three(dy, weight, x, n) / (float)n * r * r * r;
    floats rs = v_splat(r), ks = v_splat(k);
    size_t i = 0;
    for (; n - i >= LANES; i += LANES)
        v_store(dx + i, rms_norm_gradient(v_load(dx + i), v_load(dy + i), v_load(x + i), v_load(weight + i), rs, ks));
    if (n - i) {
        size_t rest = n - i;
        floats sum = rms_norm_gradient(v_load_part(dx + i, rest, 0), v_load_part(dy + i, rest, 0),
                                       v_load_part(x + i, rest, 0), v_load_part(weight + i, rest, 0), rs, ks);
        v_store_part(dx + i, sum, rest);
    }
}

/* Four rows at a time, four lanes each. */
LANE quad narrow_row(const float *b, const float *x, size_t R) {
    quad sum = quad_splat(0);
    for (size_t r = 0; r + 4 <= R; r += 4) sum = quad_fma(quad_load(b + r), quad_load(x + r), sum);
    return sum;
}
static void add_narrow(float *y, const float *b, size_t n, const float *x, size_t R, float scale) {
    for (size_t i = 0; i < n; i += 4) {
        size_t rows = n - i < 4 ? n - i : 4;
        quad sums[4];
        float totals[4];
        for (size_t j = 0; j < 4; j++) sums[j] = narrow_row(b + (i + (j < rows ? j : 0)) * R, x, R);
        quad_store_sums(totals, sums[0], sums[1], sums[2], sums[3]);
        for (size_t j = 0; j < rows; j++) {
            for (size_t r = R / 4 * 4; r < R; r++) totals[j] += b[(i + j) * R + r] * x[r];
            y[i + j] += scale * totals[j];
        }
    }
}

/* Plain: the compiler finds the vectors, and the shuffles that pairs need. */
static void rotate_pairs(float *restrict x, const float *restrict turns, float sign, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float u = x[2 * i], v = x[2 * i + 1], c = turns[2 * i], s = sign * turns[2 * i + 1];
        x[2 * i] = u * c - v * s;
        x[2 * i + 1] = u * s + v * c;
    }
}

static void turn_apart(float *restrict us, float *restrict vs, const float *restrict turns, float sign, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float u = us[i], v = vs[i], c = turns[i], s = sign * turns[i + n];
        us[i] = u * c - v * s;
        vs[i] = u * s + v * c;
    }
}
static void rotate_halves(float *x, const float *turns, float sign, size_t n) { turn_apart(x, x + n, turns, sign, n); }

#endif
