/* Rows of blocks, written once over a vector of LANES floats: 4, 8 or 16. The file of a table (avx2.c, avx512.c,
 * neon.c) defines the vector, its functions v_*, quad_* and octet_*, and includes this. Block layouts: blocks.c.
 *
 * Dequantization agrees with blocks.c bit for bit: every product in it is exact, so a fused multiply-add
 * rounds as multiply and add do. A dot product takes scale and minimum out of the block,
 *     sum (d q + m) x = d sum q x + m sum x,
 * and the sums of x are computed once for all rows of a call. Partial sums have a fixed place in the
 * lanes: a result depends on n and the values alone. */
#ifndef CORE_KERNELS_LANES_BLOCKS_H
#define CORE_KERNELS_LANES_BLOCKS_H

/* Rows are taken in pieces of SEGMENT elements, so that x stays in the L1 cache from row to row; weights
 * are asked for AHEAD bytes before they are used, past the end too (a prefetch cannot fault). */
enum { SEGMENT = 4096, SUM_OVER = 32, AHEAD = 4096 };

LANE void prefetch(const uint8_t *p) { __builtin_prefetch(p + AHEAD, 0, 3); }
/* For rows that need few instructions a line: the L1 cache cannot wait for as many lines as are on the way, the L2
 * cache can. */
LANE void prefetch_far(const uint8_t *p) { __builtin_prefetch(p + 2 * AHEAD, 0, 2); }

LANE float v_sum(floats v) { return quad_sum(v_fold(v)); }

/* sum + a b; the first term of a sum needs no addition. */
LANE floats add_product(int first, floats a, floats b, floats sum) {
    if (first) return a * b;
    return v_fma(a, b, sum);
}

LANE uint32_t read_32(const uint8_t *p) {
    uint32_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

/* ---- F32, F16, BF16 ---- */

enum plain { PLAIN_F32, PLAIN_F16, PLAIN_BF16 };
LANE size_t plain_bytes(enum plain kind) { return kind == PLAIN_F32 ? 4 : 2; }

LANE floats plain_load(enum plain kind, const uint8_t *p) {
    if (kind == PLAIN_F32) return v_load((const float *)(const void *)p);
    return kind == PLAIN_F16 ? v_halves(p) : v_bf16(p);
}
LANE floats plain_load_part(enum plain kind, const uint8_t *p, size_t n) {
    uint8_t padded[LANES * 4] = {0};
    memcpy(padded, p, n * plain_bytes(kind));
    return plain_load(kind, padded);
}

LANE float plain_dot(enum plain kind, const uint8_t *row, const float *x, size_t n) {
    const size_t step = LANES * plain_bytes(kind);
    floats a = v_splat(0), b = a, c = a, d = a;
    for (; n >= 4 * LANES; n -= 4 * LANES, x += 4 * LANES, row += 4 * step) {
        for (size_t line = 0; line < 4 * step; line += 64) prefetch_far(row + line);
        a = v_fma(plain_load(kind, row), v_load(x), a);
        b = v_fma(plain_load(kind, row + step), v_load(x + LANES), b);
        c = v_fma(plain_load(kind, row + 2 * step), v_load(x + 2 * LANES), c);
        d = v_fma(plain_load(kind, row + 3 * step), v_load(x + 3 * LANES), d);
    }
    for (; n >= LANES; n -= LANES, x += LANES, row += step) a = v_fma(plain_load(kind, row), v_load(x), a);
    if (n) b = v_fma(plain_load_part(kind, row, n), v_load_part(x, n, 0), b);
    return v_sum((a + b) + (c + d));
}

LANE void plain_dequantize(enum plain kind, float *dst, const uint8_t *src, size_t n) {
    const size_t step = LANES * plain_bytes(kind);
    for (; n >= LANES; n -= LANES, dst += LANES, src += step) v_store(dst, plain_load(kind, src));
    if (n) v_store_part(dst, plain_load_part(kind, src, n), n);
}

LANE float dot_F32(const uint8_t *row, const float *x, const float *sums, size_t n) {
    (void)sums;
    return plain_dot(PLAIN_F32, row, x, n);
}
LANE float dot_F16(const uint8_t *row, const float *x, const float *sums, size_t n) {
    (void)sums;
    return plain_dot(PLAIN_F16, row, x, n);
}
LANE float dot_BF16(const uint8_t *row, const float *x, const float *sums, size_t n) {
    (void)sums;
    return plain_dot(PLAIN_BF16, row, x, n);
}
LANE void values_F32(float *dst, const uint8_t *src, size_t n) { memcpy(dst, src, n * sizeof *dst); }
LANE void values_F16(float *dst, const uint8_t *src, size_t n) { plain_dequantize(PLAIN_F16, dst, src, n); }
LANE void values_BF16(float *dst, const uint8_t *src, size_t n) { plain_dequantize(PLAIN_BF16, dst, src, n); }

/* ---- Q4_0, Q4_1, Q5_0, Q5_1: blocks of 32 ---- */

/* d, then m if there is a minimum, then 32 fifth bits if five, then 16 bytes of nibbles. */
LANE size_t fifth_at(int minimum) { return minimum ? 4 : 2; }
LANE size_t nibbles_at(int minimum, int five) { return fifth_at(minimum) + (five ? 4 : 0); }

struct quants {
    ints low, high; /* elements k + lane and 16 + k + lane of a block */
};
LANE struct quants read_quants(const uint8_t *block, size_t k, int minimum, int five) {
    ints q = v_bytes(block + nibbles_at(minimum, five) + k);
    struct quants quants = {q & 15, q >> 4};
    if (five) {
        uint32_t fifth = read_32(block + fifth_at(minimum));
        quants.low |= v_sixteens(fifth, (int)k);
        quants.high |= v_sixteens(fifth, 16 + (int)k);
    }
    return quants;
}

/* sums: of x over each block. Without a minimum the quants stand for q - 8 or q - 16. */
LANE float dot_32(const uint8_t *block, const float *x, const float *sums, size_t n, int minimum, int five) {
    floats total = v_splat(0);
    quad corrections = quad_splat(0); /* lane 0: d sum x, lane 1: m sum x */
    for (; n; n -= 32, x += 32, sums++, block += nibbles_at(minimum, five) + 16) {
        prefetch(block);
        quad scale = minimum ? quad_two_halves(block) : quad_half(block);
        corrections = quad_fma(scale, quad_splat(*sums), corrections);
        floats products = v_splat(0);
#pragma GCC unroll 4
        for (size_t k = 0; k < 16; k += LANES) {
            struct quants q = read_quants(block, k, minimum, five);
            floats low = v_float(q.low), high = v_float(q.high);
            products = add_product(k == 0, low, v_load(x + k), products);
            products = v_fma(high, v_load(x + 16 + k), products);
        }
        total = v_fma(products, v_splat_low(scale), total);
    }
    if (minimum) return v_sum(total) + quad_first(quad_second(corrections));
    return v_sum(total) - (five ? 16.0f : 8.0f) * quad_first(corrections);
}

LANE void values_32(float *dst, const uint8_t *block, size_t n, int minimum, int five) {
    for (; n; n -= 32, dst += 32, block += nibbles_at(minimum, five) + 16) {
        quad scale = minimum ? quad_two_halves(block) : quad_half(block);
        floats d = v_splat_low(scale), m = v_splat_low(quad_second(scale));
#pragma GCC unroll 4
        for (size_t k = 0; k < 16; k += LANES) {
            struct quants q = read_quants(block, k, minimum, five);
            if (minimum) {
                v_store(dst + k, v_fma(v_float(q.low), d, m));
                v_store(dst + 16 + k, v_fma(v_float(q.high), d, m));
            } else {
                v_store(dst + k, v_float(q.low - (five ? 16 : 8)) * d);
                v_store(dst + 16 + k, v_float(q.high - (five ? 16 : 8)) * d);
            }
        }
    }
}

LANE float dot_Q4_0(const uint8_t *row, const float *x, const float *sums, size_t n) {
    return dot_32(row, x, sums, n, 0, 0);
}
LANE float dot_Q4_1(const uint8_t *row, const float *x, const float *sums, size_t n) {
    return dot_32(row, x, sums, n, 1, 0);
}
LANE float dot_Q5_0(const uint8_t *row, const float *x, const float *sums, size_t n) {
    return dot_32(row, x, sums, n, 0, 1);
}
LANE float dot_Q5_1(const uint8_t *row, const float *x, const float *sums, size_t n) {
    return dot_32(row, x, sums, n, 1, 1);
}
LANE void values_Q4_0(float *dst, const uint8_t *src, size_t n) { values_32(dst, src, n, 0, 0); }
LANE void values_Q4_1(float *dst, const uint8_t *src, size_t n) { values_32(dst, src, n, 1, 0); }
LANE void values_Q5_0(float *dst, const uint8_t *src, size_t n) { values_32(dst, src, n, 0, 1); }
LANE void values_Q5_1(float *dst, const uint8_t *src, size_t n) { values_32(dst, src, n, 1, 1); }

/* ---- Q8_0 ---- */

LANE float dot_Q8_0(const uint8_t *block, const float *x, const float *sums, size_t n) {
    (void)sums;
    floats total = v_splat(0);
    for (; n; n -= 32, x += 32, block += 34) {
        prefetch(block);
        floats products = v_splat(0);
#pragma GCC unroll 8
        for (size_t k = 0; k < 32; k += LANES)
            products = add_product(k == 0, v_signed_bytes(block + 2 + k), v_load(x + k), products);
        total = v_fma(products, v_splat_low(quad_half(block)), total);
    }
    return v_sum(total);
}

LANE void values_Q8_0(float *dst, const uint8_t *block, size_t n) {
    for (; n; n -= 32, dst += 32, block += 34) {
        floats d = v_splat_low(quad_half(block));
#pragma GCC unroll 8
        for (size_t k = 0; k < 32; k += LANES) v_store(dst + k, v_signed_bytes(block + 2 + k) * d);
    }
}

/* ---- Q4_K, Q5_K: blocks of 256 in eight parts of 32 ---- */

struct parts {
    float scales[8], minima[8]; /* times d and dmin */
};
/* All four bytes of a word at a time: see scale_and_minimum in blocks.c. */
LANE void read_parts(struct parts *parts, const uint8_t *block) {
    quad d = quad_two_halves(block);
    uint32_t first = read_32(block + 4), second = read_32(block + 8), third = read_32(block + 12);
    uint32_t high_scales = (third & 0x0f0f0f0f) | (first >> 2 & 0x30303030);
    uint32_t high_minima = (third >> 4 & 0x0f0f0f0f) | (second >> 2 & 0x30303030);
    octet_store_bytes(parts->scales, (first & 0x3f3f3f3f) | (uint64_t)high_scales << 32, d);
    octet_store_bytes(parts->minima, (second & 0x3f3f3f3f) | (uint64_t)high_minima << 32, quad_second(d));
}

/* Parts 2 pair (low) and 2 pair + 1 (high), elements k + lane. */
LANE struct quants read_k_quants(const uint8_t *block, int pair, size_t k, int five) {
    ints q = v_bytes(block + (five ? 48 : 16) + 32 * pair + k);
    struct quants quants = {q & 15, q >> 4};
    if (five) {
        ints fifth = v_bytes(block + 16 + k) >> 2 * pair;
        quants.low |= (fifth & 1) << 4;
        quants.high |= (fifth & 2) << 3;
    }
    return quants;
}

LANE float dot_k(const uint8_t *block, const float *x, const float *sums, size_t n, int five) {
    floats total = v_splat(0);
    octet corrections = octet_zero();
    for (; n; n -= 256, sums += 8, block += five ? 176 : 144) {
        prefetch(block);
        prefetch(block + 64);
        prefetch(block + 128);
        struct parts parts;
        read_parts(&parts, block);
        corrections = octet_fma(parts.minima, sums, corrections);
#pragma GCC unroll 4
        for (int pair = 0; pair < 4; pair++, x += 64) {
            floats low = v_splat(0), high = low;
#pragma GCC unroll 8
            for (size_t k = 0; k < 32; k += LANES) {
                struct quants q = read_k_quants(block, pair, k, five);
                low = add_product(k == 0, v_float(q.low), v_load(x + k), low);
                high = add_product(k == 0, v_float(q.high), v_load(x + 32 + k), high);
            }
            total = v_fma(low, v_splat(parts.scales[2 * pair]), total);
            total = v_fma(high, v_splat(parts.scales[2 * pair + 1]), total);
        }
    }
    return v_sum(total) - octet_sum(corrections);
}

LANE void values_k(float *dst, const uint8_t *block, size_t n, int five) {
    for (; n; n -= 256, block += five ? 176 : 144) {
        struct parts parts;
        read_parts(&parts, block);
#pragma GCC unroll 4
        for (int pair = 0; pair < 4; pair++, dst += 64) {
            const float *scales = parts.scales + 2 * pair, *minima = parts.minima + 2 * pair;
            floats low_scale = v_splat(scales[0]), high_scale = v_splat(scales[1]);
            floats low_minimum = v_splat(-minima[0]), high_minimum = v_splat(-minima[1]);
#pragma GCC unroll 8
            for (size_t k = 0; k < 32; k += LANES) {
                struct quants q = read_k_quants(block, pair, k, five);
                v_store(dst + k, v_fma(v_float(q.low), low_scale, low_minimum));
                v_store(dst + 32 + k, v_fma(v_float(q.high), high_scale, high_minimum));
            }
        }
    }
}

LANE float dot_Q4_K(const uint8_t *row, const float *x, const float *sums, size_t n) {
    return dot_k(row, x, sums, n, 0);
}
LANE float dot_Q5_K(const uint8_t *row, const float *x, const float *sums, size_t n) {
    return dot_k(row, x, sums, n, 1);
}
LANE void values_Q4_K(float *dst, const uint8_t *src, size_t n) { values_k(dst, src, n, 0); }
LANE void values_Q5_K(float *dst, const uint8_t *src, size_t n) { values_k(dst, src, n, 1); }

/* ---- Q6_K: blocks of 256 in sixteen parts of 16 ---- */

LANE void read_q6_scales(float *scales, const uint8_t *block) {
    floats d = v_splat_low(quad_half(block + 208));
    for (size_t k = 0; k < 16; k += LANES) v_store(scales + k, v_signed_bytes(block + 192 + k) * d);
}

/* quarters[i] lane: element 128 half + 32 i + k + lane, as -32..31. */
LANE void read_q6_quants(floats quarters[4], const uint8_t *block, int half, size_t k) {
    ints a = v_bytes(block + 64 * half + k), b = v_bytes(block + 64 * half + 32 + k);
    ints high = v_bytes(block + 128 + 32 * half + k);
    quarters[0] = v_float(((a & 15) | (high << 4 & 48)) - 32);
    quarters[1] = v_float(((b & 15) | (high << 2 & 48)) - 32);
    quarters[2] = v_float((a >> 4 | (high & 48)) - 32);
    quarters[3] = v_float((b >> 4 | (high >> 2 & 48)) - 32);
}

LANE float dot_Q6_K(const uint8_t *block, const float *x, const float *sums, size_t n) {
    (void)sums;
    floats total = v_splat(0);
    for (; n; n -= 256, block += 210) {
        for (int line = 0; line < 256; line += 64) prefetch(block + line);
        float scales[16];
        read_q6_scales(scales, block);
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++, x += 128) {
#pragma GCC unroll 2
            for (size_t part = 0; part < 32; part += 16) {
                floats products[4] = {v_splat(0), v_splat(0), v_splat(0), v_splat(0)};
#pragma GCC unroll 4
                for (size_t k = part; k < part + 16; k += LANES) {
                    floats quarters[4];
                    read_q6_quants(quarters, block, half, k);
#pragma GCC unroll 4
                    for (int i = 0; i < 4; i++)
                        products[i] = add_product(k == part, quarters[i], v_load(x + 32 * i + k), products[i]);
                }
#pragma GCC unroll 4
                for (size_t i = 0; i < 4; i++)
                    total = v_fma(products[i], v_splat(scales[8 * half + 2 * i + part / 16]), total);
            }
        }
    }
    return v_sum(total);
}

LANE void values_Q6_K(float *dst, const uint8_t *block, size_t n) {
    for (; n; n -= 256, block += 210) {
        float scales[16];
        read_q6_scales(scales, block);
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++, dst += 128) {
#pragma GCC unroll 8
            for (size_t k = 0; k < 32; k += LANES) {
                floats quarters[4];
                read_q6_quants(quarters, block, half, k);
#pragma GCC unroll 4
                for (size_t i = 0; i < 4; i++)
                    v_store(dst + 32 * i + k, quarters[i] * v_splat(scales[8 * half + 2 * i + k / 16]));
            }
        }
    }
}

/* ---- rows ---- */

typedef float dot_function(const uint8_t *row, const float *x, const float *sums, size_t n);

LANE quad fold_block(const float *x) {
    floats sum = v_load(x);
#pragma GCC unroll 8
    for (size_t k = LANES; k < SUM_OVER; k += LANES) sum += v_load(x + k);
    return v_fold(sum);
}

LANE void sum_blocks(float *sums, const float *x, size_t n) {
    for (; n >= 4 * SUM_OVER; n -= 4 * SUM_OVER, x += 4 * SUM_OVER, sums += 4) {
        quad_store_sums(sums, fold_block(x), fold_block(x + SUM_OVER), fold_block(x + 2 * SUM_OVER),
                        fold_block(x + 3 * SUM_OVER));
    }
    for (; n; n -= SUM_OVER, x += SUM_OVER) *sums++ = quad_sum(fold_block(x));
}

LANE int type_uses_sums(enum block_type type) {
    return type == BLOCK_Q4_0 || type == BLOCK_Q4_1 || type == BLOCK_Q5_0 || type == BLOCK_Q5_1 ||
           type == BLOCK_Q4_K || type == BLOCK_Q5_K;
}

LANE void rows_by(dot_function *dot_row, enum block_type type, size_t elements, size_t bytes, float *out,
                  const uint8_t *rows, size_t row_bytes, size_t n_rows, const float *x, size_t n) {
    float sums[SEGMENT / SUM_OVER];
    for (size_t r = 0; r < n_rows; r++) out[r] = 0;
    for (size_t start = 0; start < n; start += SEGMENT) {
        size_t count = n - start < SEGMENT ? n - start : SEGMENT;
        if (type_uses_sums(type)) sum_blocks(sums, x + start, count);
        for (size_t r = 0; r < n_rows; r++)
            out[r] += dot_row(rows + r * row_bytes + start / elements * bytes, x + start, sums, count);
    }
}

#define ROW_FUNCTIONS(type, elements, bytes)                                                                           \
    static void dequantize_##type(float *dst, const void *src, size_t n) { values_##type(dst, src, n); }               \
    static void row_dots_##type(float *out, const void *rows, size_t row_bytes, size_t n_rows, const float *x,         \
                                size_t n) {                                                                            \
        rows_by(dot_##type, BLOCK_##type, elements, bytes, out, rows, row_bytes, n_rows, x, n);                        \
    }                                                                                                                  \
    static float row_dot_##type(const void *row, const float *x, size_t n) {                                           \
        float out;                                                                                                     \
        row_dots_##type(&out, row, 0, 1, x, n);                                                                        \
        return out;                                                                                                    \
    }
KERNELS_EACH_TYPE(ROW_FUNCTIONS)

#define DEQUANTIZE_ENTRY(type, elements, bytes) [BLOCK_##type] = dequantize_##type,
#define ROW_DOT_ENTRY(type, elements, bytes) [BLOCK_##type] = row_dot_##type,
#define ROW_DOTS_ENTRY(type, elements, bytes) [BLOCK_##type] = row_dots_##type,

#endif
