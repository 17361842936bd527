/* Products of small f32 matrices, written once over a vector of LANES floats.
 *
 * A tile of the result is summed in registers: a few rows, each a few vectors wide. For every term p a tile reads
 * a column of op(A), one float a row, where it lies, and a row of op(B): where it lies too, or, where op(B) is not
 * row-major or ends in part of a vector, out of a panel that is copied onto the stack before and serves all rows.
 *
 * An element is alpha s + beta c with s = fma(a_p, b_p, s) for p = 0, 1, ...; over GEMM_TERMS terms, s goes into c
 * in between. So it depends on its own row, column and k alone: neither on the tile it falls into nor on the number
 * of lanes.
 *
 * The including file, which has lanes_product.h before, defines GEMM_SUMS: vectors that a tile may sum into, and
 * GEMM_NARROW with gemm_narrow where other kernels are better at so few columns or fewer. */
#ifndef CORE_KERNELS_LANES_GEMM_H
#define CORE_KERNELS_LANES_GEMM_H

enum {
    GEMM_VECTORS = 2,                  /* width of a tile */
    GEMM_TERMS = 384,                  /* a panel of so many rows: 48 KiB at 2 x 16 lanes */
    GEMM_ROWS = 12,                    /* at most in a tile */
    GEMM_PANEL = GEMM_VECTORS * LANES, /* columns */
    GEMM_MANY = 256                    /* rows that pay for a copy of what lies row-major already */
};

/* What the tiles of a panel share. */
struct panel {
    const float *b; /* (terms, columns) */
    size_t b_term;  /* floats from a term to the next */
    size_t a_row, a_term, terms;
    size_t c_row, c_column, columns;
    float alpha, beta;
};

/* Sums that end in part of a vector, or that lie in columns of c. */
static void put_scattered(const struct panel *p, const float *sums, size_t width, float *c, size_t rows) {
    floats alpha = v_splat(p->alpha), beta = v_splat(p->beta);
    for (size_t i = 0; i < rows; i++, sums += width, c += p->c_row) {
        for (size_t j = 0; p->c_column != 1 && j < p->columns; j++) {
            float *to = c + j * p->c_column, before = p->beta == 0 ? 0 : p->beta * *to;
            *to = fmaf(p->alpha, sums[j], before);
        }
        for (size_t j = 0; p->c_column == 1 && j < p->columns; j += LANES) {
            size_t n = smaller(p->columns - j, LANES);
            floats before = v_splat(0);
            if (p->beta != 0) before = beta * (n == LANES ? v_load(c + j) : v_load_part(c + j, n, 0));
            floats sum = v_fma(alpha, v_load(sums + j), before);
            if (n == LANES)
                v_store(c + j, sum);
            else
                v_store_part(c + j, sum, n);
        }
    }
}

/* rows x columns of c at a tile's place; rows == height but for the lowest tile, whose missing rows are computed
 * from the last one and not stored. height and vectors are constants. */
LANE void tile(const size_t height, const size_t vectors, const struct panel *p, const float *a, float *c,
               size_t rows) {
    floats sums[GEMM_ROWS][GEMM_VECTORS];
    const float *four[GEMM_ROWS / 4], *b = p->b; /* of every four rows the first, to spare registers */
    size_t offset[4], a_term = p->a_term, b_term = p->b_term;
    for (size_t i = 0; i < 4; i++) offset[i] = (height > 4 || i < rows ? i : rows - 1) * p->a_row;
    for (size_t i = 0; i < height; i += 4) four[i / 4] = a + i * p->a_row;
#pragma GCC unroll 12
    for (size_t i = 0; i < height; i++)
#pragma GCC unroll 2
        for (size_t v = 0; v < vectors; v++) sums[i][v] = v_splat(0);
    for (size_t left = p->terms; left; left--, b += b_term) {
        floats row[GEMM_VECTORS];
#pragma GCC unroll 2
        for (size_t v = 0; v < vectors; v++) row[v] = v_load(b + v * LANES);
#pragma GCC unroll 12
        for (size_t i = 0; i < height; i++) {
            floats factor = v_splat(four[i / 4][offset[i % 4]]);
#pragma GCC unroll 2
            for (size_t v = 0; v < vectors; v++) sums[i][v] = v_fma(factor, row[v], sums[i][v]);
        }
#pragma GCC unroll 3
        for (size_t i = 0; i < height; i += 4) four[i / 4] += a_term;
    }
    if (p->c_column != 1 || p->columns != vectors * LANES) {
        float all[GEMM_ROWS * GEMM_PANEL];
#pragma GCC unroll 12
        for (size_t i = 0; i < height; i++)
#pragma GCC unroll 2
            for (size_t v = 0; v < vectors; v++) v_store(all + (i * vectors + v) * LANES, sums[i][v]);
        put_scattered(p, all, vectors * LANES, c, rows);
        return;
    }
    floats alpha = v_splat(p->alpha), beta = v_splat(p->beta);
#pragma GCC unroll 12
    for (size_t i = 0; i < height; i++) {
        if (height <= 4 && i >= rows) break;
        float *to = c + i * p->c_row;
#pragma GCC unroll 2
        for (size_t v = 0; v < vectors; v++) {
            floats before = v_splat(0);
            if (p->beta != 0) before = beta * v_load(to + v * LANES);
            v_store(to + v * LANES, v_fma(alpha, sums[i][v], before));
        }
    }
}

enum { GEMM_HEIGHTS = 3 };
LANE size_t tall(size_t vectors) { return smaller(GEMM_SUMS / vectors, GEMM_ROWS); }

#define GEMM_TILE(name, height, vectors)                                                                               \
    static void name(const struct panel *p, const float *a, float *c, size_t rows) {                                   \
        tile(height, vectors, p, a, c, rows);                                                                          \
    }
#define GEMM_TILES(vectors)                                                                                            \
    GEMM_TILE(tall_##vectors, tall(vectors), vectors)                                                                  \
    GEMM_TILE(eight_##vectors, tall(vectors) > 8 ? 8 : 4, vectors)                                                     \
    GEMM_TILE(four_##vectors, 4, vectors)
GEMM_TILES(1)
GEMM_TILES(2)

typedef void tile_function(const struct panel *p, const float *a, float *c, size_t rows);
static tile_function *const tiles[GEMM_VECTORS][GEMM_HEIGHTS] = {
    {tall_1, eight_1, four_1},
    {tall_2, eight_2, four_2},
};

/* All m rows of a panel. Just above a tall tile two lower ones leave fewer sums unused. */
static void multiply_panel(const struct panel *p, const float *a, float *c, size_t m) {
    size_t vectors = (p->columns + LANES - 1) / LANES, highest = tall(vectors);
    tile_function *const *of_height = tiles[vectors - 1];
    while (m > 0) {
        int just_above = m > highest && m <= highest + highest / 3;
        int kind = m >= highest && !just_above ? 0 : m >= 8 && highest > 8 ? 1 : 2;
        size_t height = kind == 0 ? highest : kind == 1 ? 8 : 4, rows = smaller(m, height);
        of_height[kind](p, a, c, rows);
        a += rows * p->a_row;
        c += rows * p->c_row;
        m -= rows;
    }
}

/* to(terms, vectors of LANES), zeros beyond the columns. */
static void pack_rows_of_b(float *to, const float *b, size_t ldb, size_t terms, size_t columns) {
    size_t width = (columns + LANES - 1) / LANES * LANES;
    for (size_t p = 0; p < terms; p++, b += ldb, to += width) {
        size_t j = 0;
        for (; columns - j >= LANES; j += LANES) v_store(to + j, v_load(b + j));
        if (j < columns) v_store(to + j, v_load_part(b + j, columns - j, 0));
    }
}

/* The same from b(columns, terms). */
static void pack_columns_of_b(float *to, const float *b, size_t ldb, size_t terms, size_t columns) {
    size_t width = (columns + LANES - 1) / LANES * LANES;
    for (size_t j = 0; j < columns; j += LANES)
        turn(to + j, width, b + j * ldb, ldb, smaller(columns - j, LANES), terms);
}

static void transpose_rows(float *dst, size_t ldd, const float *src, size_t lds, size_t rows, size_t cols) {
    size_t whole = rows / LANES * LANES;
    for (size_t r = 0; r < whole; r += LANES) turn(dst + r, ldd, src + r * lds, lds, LANES, cols);
    for (size_t r = whole; r < (rows + 15) / 16 * 16; r += LANES)
        turn(dst + r, ldd, src + r * lds, lds, rows > r ? rows - r : 0, cols);
}

/* c = beta c: the first step of every product, where there is nothing to add to it. */
static void scale_result(float *c, size_t ldc, size_t m, size_t n, float beta) {
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) c[i * ldc + j] = beta == 0 ? 0 : beta * c[i * ldc + j];
}

static void gemm(int transpose_a, int transpose_b, size_t m, size_t n, size_t k, float alpha, const float *a,
                 size_t lda, const float *b, size_t ldb, float beta, float *c, size_t ldc) {
    if (m == 0 || n == 0) return;
    if (k == 0 || alpha == 0) {
        scale_result(c, ldc, m, n, beta);
        return;
    }
    size_t c_row = ldc, c_column = 1;
    if (transpose_a && n <= GEMM_ROWS && m > n) { /* C^T = op(B)^T op(A)^T: A has the vectors */
        const float *swapped = a;
        size_t ld = lda, rows = m;
        a = b, lda = ldb, m = n, transpose_a = !transpose_b;
        b = swapped, ldb = ld, n = rows, transpose_b = 0;
        c_row = 1, c_column = ldc;
    }
#ifdef GEMM_NARROW
    if (n % LANES && n % LANES <= GEMM_NARROW && c_column == 1) {
        size_t rest = n % LANES;
        n -= rest;
        gemm_narrow(transpose_a, transpose_b, m, rest, k, alpha, a, lda, b + n * (transpose_b ? ldb : 1), ldb, beta,
                    c + n, ldc);
    }
#endif
    float copy[GEMM_TERMS * GEMM_PANEL] __attribute__((aligned(64)));
    size_t pieces = (k + GEMM_TERMS - 1) / GEMM_TERMS, each = (k + pieces - 1) / pieces;
    for (size_t p0 = 0; p0 < k; p0 += each) {
        struct panel p = {.a_row = transpose_a ? 1 : lda, .a_term = transpose_a ? lda : 1,
                          .terms = smaller(k - p0, each), .c_row = c_row, .c_column = c_column,
                          .alpha = alpha, .beta = p0 == 0 ? beta : 1};
        for (size_t j = 0; j < n; j += GEMM_PANEL) {
            p.columns = smaller(n - j, GEMM_PANEL);
            const float *from = transpose_b ? b + j * ldb + p0 : b + p0 * ldb + j;
            p.b = copy;
            p.b_term = (p.columns + LANES - 1) / LANES * LANES;
            if (transpose_b)
                pack_columns_of_b(copy, from, ldb, p.terms, p.columns);
            else if (p.columns % LANES || m > GEMM_MANY)
                pack_rows_of_b(copy, from, ldb, p.terms, p.columns);
            else
                p.b = from, p.b_term = ldb;
            multiply_panel(&p, a + p0 * p.a_term, c + j * c_column, m);
        }
    }
}

#endif
