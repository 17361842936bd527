/* A few queries over keys and values that lie in a cache as blocks, written once over a vector of LANES floats: what
 * gemm would need unpacked, and the keys transposed. Included behind lanes_product.h, which has smaller().
 *
 * A score and an element of o are sums in an order of their own, whatever n and m are. */
#ifndef CORE_KERNELS_LANES_CACHE_H
#define CORE_KERNELS_LANES_CACHE_H

enum {
    CACHE_QUERIES = LANES == 8 ? 2 : 4, /* at once: registers for four keys each, or for that many vectors */
    CACHE_COLUMNS = 4,
    CACHE_ROUNDS = LANES / 4 /* of four keys, until there is a score for each lane */
};

/* LANES elements of a row, from the at-th on. */
LANE floats cache_load(enum block_type kind, const uint8_t *row, size_t at) {
    if (kind == BLOCK_F32) return v_load((const float *)(const void *)row + at);
    if (kind == BLOCK_F16) return v_halves(row + 2 * at);
    const uint8_t *block = row + at / 32 * 34;
    return v_signed_bytes(block + 2 + at % 32) * v_splat_low(quad_half(block));
}

/* Halves of a and of b added, in turns: of LANES vectors that are joined two and two, a lane is left each. */
LANE floats join_sums(floats a, floats b) { return v_interleave_low(a, b) + v_interleave_high(a, b); }

/* queries is a constant. A vector's place in the tree of joins is its lane's number with the bits turned round. */
LANE void query_some(enum block_type kind, const size_t queries, float *scores, size_t lds, const float *q,
                     const uint8_t *keys, size_t row_bytes, size_t n, size_t D) {
    for (size_t r = 0; r < n; r += LANES) {
        floats joined[CACHE_QUERIES][CACHE_ROUNDS];
        for (size_t round = 0; round < CACHE_ROUNDS; round++) {
            const uint8_t *key[4];
            floats sums[CACHE_QUERIES][4];
#pragma GCC unroll 4
            for (size_t i = 0; i < 4; i++) key[i] = keys + smaller(r + round + i * CACHE_ROUNDS, n - 1) * row_bytes;
#pragma GCC unroll 4
            for (size_t h = 0; h < queries; h++)
#pragma GCC unroll 4
                for (size_t i = 0; i < 4; i++) sums[h][i] = v_splat(0);
            for (size_t at = 0; at < D; at += LANES) {
                floats k[4];
#pragma GCC unroll 4
                for (size_t i = 0; i < 4; i++) k[i] = cache_load(kind, key[i], at);
#pragma GCC unroll 4
                for (size_t h = 0; h < queries; h++) {
                    floats x = v_load(q + h * D + at);
#pragma GCC unroll 4
                    for (size_t i = 0; i < 4; i++) sums[h][i] = v_fma(k[i], x, sums[h][i]);
                }
            }
#pragma GCC unroll 4
            for (size_t h = 0; h < queries; h++)
                joined[h][round] = join_sums(join_sums(sums[h][0], sums[h][2]), join_sums(sums[h][1], sums[h][3]));
        }
#pragma GCC unroll 4
        for (size_t h = 0; h < queries; h++) {
            floats *j = joined[h], all = j[0];
            if (CACHE_ROUNDS == 2) all = join_sums(j[0], j[CACHE_ROUNDS / 2]);
            if (CACHE_ROUNDS == 4)
                all = join_sums(join_sums(j[0], j[CACHE_ROUNDS / 2]),
                                join_sums(j[CACHE_ROUNDS / 4], j[CACHE_ROUNDS * 3 / 4]));
            if (n - r >= LANES)
                v_store(scores + h * lds + r, all);
            else
                v_store_part(scores + h * lds + r, all, n - r);
        }
    }
}

/* queries and columns, in vectors, are constants. */
LANE void weigh_some(enum block_type kind, const size_t queries, const size_t columns, float *o, size_t D,
                     const float *weights, size_t ldw, const uint8_t *values, size_t row_bytes, size_t n, size_t at) {
    floats sums[CACHE_QUERIES][CACHE_COLUMNS];
#pragma GCC unroll 4
    for (size_t h = 0; h < queries; h++)
#pragma GCC unroll 4
        for (size_t c = 0; c < columns; c++) sums[h][c] = v_load(o + h * D + at + c * LANES);
    for (size_t r = 0; r < n; r++, values += row_bytes) {
        floats v[CACHE_COLUMNS];
#pragma GCC unroll 4
        for (size_t c = 0; c < columns; c++) v[c] = cache_load(kind, values, at + c * LANES);
#pragma GCC unroll 4
        for (size_t h = 0; h < queries; h++) {
            floats weight = v_splat(weights[h * ldw + r]);
#pragma GCC unroll 4
            for (size_t c = 0; c < columns; c++) sums[h][c] = v_fma(weight, v[c], sums[h][c]);
        }
    }
#pragma GCC unroll 4
    for (size_t h = 0; h < queries; h++)
#pragma GCC unroll 4
        for (size_t c = 0; c < columns; c++) v_store(o + h * D + at + c * LANES, sums[h][c]);
}
LANE void weigh_columns(enum block_type kind, const size_t queries, float *o, size_t D, const float *weights,
                        size_t ldw, const uint8_t *values, size_t row_bytes, size_t n) {
    size_t at = 0;
    for (; D - at >= CACHE_COLUMNS * LANES; at += CACHE_COLUMNS * LANES)
        weigh_some(kind, queries, CACHE_COLUMNS, o, D, weights, ldw, values, row_bytes, n, at);
    for (; at < D; at += LANES) weigh_some(kind, queries, 1, o, D, weights, ldw, values, row_bytes, n, at);
}

/* What is left of m is below CACHE_QUERIES: the remainders only keep what cannot be within the arrays. */
#define CACHE_FUNCTIONS(type)                                                                                          \
    static void query_keys_##type(float *scores, size_t lds, const float *q, size_t m, const void *keys,               \
                                  size_t row_bytes, size_t n, size_t D) {                                              \
        for (; m >= CACHE_QUERIES; m -= CACHE_QUERIES, q += CACHE_QUERIES * D, scores += CACHE_QUERIES * lds)          \
            query_some(BLOCK_##type, CACHE_QUERIES, scores, lds, q, keys, row_bytes, n, D);                            \
        if (m == 3) query_some(BLOCK_##type, 3 % CACHE_QUERIES, scores, lds, q, keys, row_bytes, n, D);                \
        if (m == 2) query_some(BLOCK_##type, 2 % CACHE_QUERIES, scores, lds, q, keys, row_bytes, n, D);                \
        if (m == 1) query_some(BLOCK_##type, 1, scores, lds, q, keys, row_bytes, n, D);                                \
    }                                                                                                                  \
    static void weigh_values_##type(float *o, size_t D, const float *weights, size_t ldw, size_t m,                    \
                                    const void *values, size_t row_bytes, size_t n) {                                  \
        for (; m >= CACHE_QUERIES; m -= CACHE_QUERIES, o += CACHE_QUERIES * D, weights += CACHE_QUERIES * ldw)         \
            weigh_columns(BLOCK_##type, CACHE_QUERIES, o, D, weights, ldw, values, row_bytes, n);                      \
        if (m == 3) weigh_columns(BLOCK_##type, 3 % CACHE_QUERIES, o, D, weights, ldw, values, row_bytes, n);          \
        if (m == 2) weigh_columns(BLOCK_##type, 2 % CACHE_QUERIES, o, D, weights, ldw, values, row_bytes, n);          \
        if (m == 1) weigh_columns(BLOCK_##type, 1, o, D, weights, ldw, values, row_bytes, n);                          \
    }
CACHE_FUNCTIONS(F32)
CACHE_FUNCTIONS(F16)
CACHE_FUNCTIONS(Q8_0)

#define CACHE_ENTRIES(name)                                                                                            \
    { [BLOCK_F32] = name##_F32, [BLOCK_F16] = name##_F16, [BLOCK_Q8_0] = name##_Q8_0 }

#endif
