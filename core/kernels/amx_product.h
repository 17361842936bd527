/* struct product in bfloat16 on AMX tiles (Intel SDM, volume 1, chapter 18): 32 rows by 32 outputs in four tiles of
 * sums, fed by two tiles of rows and two of a panel, 32 terms a step.
 *
 * The algorithm is written over a few operations, so that it can be tested where no CPU has them. The including file
 * defines PRODUCT_NAME, PRODUCT_TABLE (the table whose dequantize functions unpack the blocks) and
 *
 *   TILE_CONFIGURE(shapes)        a struct tile_shapes: the eight tiles may be used until
 *   TILE_RELEASE()
 *   TILE_ZERO(t)                  t: a literal
 *   TILE_LOAD(t, from, stride)    16 rows of 64 bytes, `stride` bytes apart
 *   TILE_STORE(t, to, stride)
 *   TILE_DOT(c, a, b)             c[i][j] += sum over p < 16: a[i][2 p] b[p][2 j] + a[i][2 p + 1] b[p][2 j + 1]
 *   __m512i narrow(low, high)     two __m512 to 32 bfloat16, to nearest even; NaN and infinity stay what they are
 *
 * Packed rows: blocks of 32 rows; a block is, step by step, two tiles of (16 rows, 32 terms).
 * Panels of 32 outputs: step by step, two tiles of (16 pairs of terms, 16 outputs, 2).
 * So both are read straight through. What is missing at an edge is zero.
 *
 * TDPBF16PS sums the even and the odd terms of its step apart, each in order, and adds their sum to c; it takes
 * subnormal factors and gives subnormal sums as zero. None of that depends on i or j. */
#ifndef CORE_KERNELS_AMX_PRODUCT_H
#define CORE_KERNELS_AMX_PRODUCT_H

#define LANE static inline __attribute__((always_inline))

enum {
    TILE_SIDE = 16, /* rows of a tile; outputs, too */
    TILE_BYTES = 1024,
    SIDE = 32, /* rows of a block, outputs of a panel */
    STEP = 32, /* terms */
    STEP_BYTES = 2 * TILE_BYTES,
    /* Steps of a block of rows that are multiplied with all panels before the next ones: 24 KiB, which stay in the
     * L1 cache (48 KiB) while as much of each panel runs through it from L2. Loading and storing the sums once more
     * for each such piece costs less than reading both sides from L2: four products take 64 cycles, and so many
     * lines of the cache are read for them. */
    STEPS_AT_ONCE = 12,
    PIECE = 256 /* elements unpacked at once: whole blocks of any type */
};

struct tile_shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
_Static_assert(sizeof(struct tile_shapes) == 64, "LDTILECFG reads 64 bytes");

static const struct tile_shapes tile_shapes = {
    .palette = 1,
    .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
    .rows = {16, 16, 16, 16, 16, 16, 16, 16},
};

LANE size_t smaller(size_t a, size_t b) { return a < b ? a : b; }
LANE size_t steps_of(size_t k) { return (k + STEP - 1) / STEP; }

/* Of a block of rows, and of a panel. */
static size_t product_side_bytes(size_t n, size_t k) { return (n + SIDE - 1) / SIDE * steps_of(k) * STEP_BYTES; }

LANE __mmask16 first_of(size_t n) { return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1); }

/* ---- rows ---- */

static void product_pack_rows(void *packed, const float *x, size_t ldx, size_t m, size_t k) {
    unsigned char *to = packed;
    for (size_t i = 0; i < m; i += SIDE) {
        for (size_t p = 0; p < k; p += STEP) {
            __mmask16 low = first_of(k - p), high = first_of(k - p > 16 ? k - p - 16 : 0);
            for (size_t r = i; r < i + SIDE; r++, to += 64) {
                const float *from = x + r * ldx + p;
                __m512i line = _mm512_setzero_si512();
                if (r < m) line = narrow(_mm512_maskz_loadu_ps(low, from), _mm512_maskz_loadu_ps(high, from + 16));
                _mm512_store_si512(to, line);
            }
        }
    }
}

/* ---- panels: y = x W^T ---- */

/* v[i] lane j becomes v[j] lane i. */
LANE void transpose(__m512i v[16]) {
    __m512i pairs[16], fours[16];
    for (int i = 0; i < 16; i += 2) {
        pairs[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    /* fours[4 g + c]: quarter q holds column 4 q + c of rows 4 g .. 4 g + 3 */
    for (int c = 0; c < 4; c++) {
        __m512i a = _mm512_shuffle_i32x4(fours[c], fours[4 + c], 0x88),
                b = _mm512_shuffle_i32x4(fours[8 + c], fours[12 + c], 0x88);
        __m512i d = _mm512_shuffle_i32x4(fours[c], fours[4 + c], 0xdd),
                e = _mm512_shuffle_i32x4(fours[8 + c], fours[12 + c], 0xdd);
        v[c] = _mm512_shuffle_i32x4(a, b, 0x88);
        v[8 + c] = _mm512_shuffle_i32x4(a, b, 0xdd);
        v[4 + c] = _mm512_shuffle_i32x4(d, e, 0x88);
        v[12 + c] = _mm512_shuffle_i32x4(d, e, 0xdd);
    }
}

/* values(16, PIECE), a row of W each, to the tiles of `steps` steps. */
static void forward_tiles(unsigned char *to, const float *values, size_t steps) {
    for (size_t s = 0; s < steps; s++, to += STEP_BYTES, values += STEP) {
        __m512i v[16];
        for (int i = 0; i < 16; i++)
            v[i] = narrow(_mm512_load_ps(values + i * PIECE), _mm512_load_ps(values + i * PIECE + 16));
        transpose(v);
        for (int i = 0; i < 16; i++) _mm512_store_si512(to + 64 * i, v[i]);
    }
}

static const unsigned char *block_at(const struct matrix *w, size_t row, size_t column) {
    const struct block_format *format = block_format_get(w->type);
    return (const unsigned char *)w->data + row * w->row_bytes + column / format->elements * format->bytes;
}

static void product_pack_forward(void *panels, const struct matrix *w, size_t r0, size_t n, size_t c0, size_t k) {
    _Alignas(64) float values[TILE_SIDE * PIECE];
    unsigned char *panel = panels;
    for (size_t j = 0; j < n; j += SIDE, panel += steps_of(k) * STEP_BYTES) {
        for (size_t half = 0; half < 2; half++) {
            size_t first = j + half * TILE_SIDE, rows = first < n ? smaller(n - first, TILE_SIDE) : 0;
            if (rows < TILE_SIDE) memset(values, 0, sizeof values);
            for (size_t p = 0; p < k; p += PIECE) {
                size_t terms = smaller(k - p, PIECE), steps = steps_of(terms);
                for (size_t r = 0; r < rows; r++) {
                    float *row = values + r * PIECE;
                    PRODUCT_TABLE.dequantize[w->type](row, block_at(w, r0 + first + r, c0 + p), terms);
                    for (size_t i = terms; i < steps * STEP; i++) row[i] = 0;
                }
                forward_tiles(panel + p / STEP * STEP_BYTES + half * TILE_BYTES, values, steps);
            }
        }
    }
}

/* ---- panels: dx = dy W ---- */

/* values(2, PIECE), two rows of W, to line `pair` of a step in `count` panels. */
LANE void backward_lines(unsigned char *to, size_t panel_bytes, const float *values, size_t count) {
    const __m512i alternate = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                               6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (size_t i = 0; i < count; i++, to += panel_bytes, values += SIDE) {
        for (size_t half = 0; half < 2; half++) {
            const float *from = values + half * TILE_SIDE;
            __m512i lines = narrow(_mm512_load_ps(from), _mm512_load_ps(from + PIECE));
            _mm512_store_si512(to + half * TILE_BYTES, _mm512_permutexvar_epi16(alternate, lines));
        }
    }
}

static void product_pack_backward(void *panels, const struct matrix *w, size_t c0, size_t n, size_t r0, size_t k) {
    size_t panel_bytes = steps_of(k) * STEP_BYTES;
    for (size_t c = 0; c < n; c += PIECE) {
        _Alignas(64) float values[2 * PIECE] = {0};
        size_t columns = smaller(n - c, PIECE), count = (columns + SIDE - 1) / SIDE;
        unsigned char *panel = (unsigned char *)panels + c / SIDE * panel_bytes;
        for (size_t r = 0; r < steps_of(k) * STEP; r += 2) {
            for (size_t i = 0; i < 2; i++) {
                float *row = values + i * PIECE;
                if (r + i < k)
                    PRODUCT_TABLE.dequantize[w->type](row, block_at(w, r0 + r + i, c0 + c), columns);
                else
                    memset(row, 0, PIECE * sizeof *row);
            }
            backward_lines(panel + r / STEP * STEP_BYTES + r % STEP / 2 * 64, panel_bytes, values, count);
        }
    }
}

/* ---- the product ---- */

/* Sums of a block of rows with a panel: carried on from y (add), or begun. tall: more than 16 rows. */
LANE void multiply_tiles(float *y, size_t y_stride, const unsigned char *rows, const unsigned char *panel, size_t steps,
                         int add, int tall) {
    float *lower = y + TILE_SIDE * (y_stride / sizeof *y);
    if (add) {
        TILE_LOAD(0, y, y_stride);
        TILE_LOAD(1, y + TILE_SIDE, y_stride);
        if (tall) {
            TILE_LOAD(2, lower, y_stride);
            TILE_LOAD(3, lower + TILE_SIDE, y_stride);
        }
    } else {
        TILE_ZERO(0);
        TILE_ZERO(1);
        if (tall) {
            TILE_ZERO(2);
            TILE_ZERO(3);
        }
    }
    for (size_t s = 0; s < steps; s++, rows += STEP_BYTES, panel += STEP_BYTES) {
        TILE_LOAD(4, rows, 64);
        TILE_LOAD(6, panel, 64);
        TILE_DOT(0, 4, 6);
        TILE_LOAD(7, panel + TILE_BYTES, 64);
        TILE_DOT(1, 4, 7);
        if (tall) {
            TILE_LOAD(5, rows + TILE_BYTES, 64);
            TILE_DOT(2, 5, 6);
            TILE_DOT(3, 5, 7);
        }
    }
    TILE_STORE(0, y, y_stride);
    TILE_STORE(1, y + TILE_SIDE, y_stride);
    if (tall) {
        TILE_STORE(2, lower, y_stride);
        TILE_STORE(3, lower + TILE_SIDE, y_stride);
    }
}

/* At an edge, y is replaced by a whole block beside it: the arithmetic is the same. */
static void multiply_edge(float *y, size_t ldy, size_t m, size_t n, const unsigned char *rows,
                          const unsigned char *panel, size_t steps, int add) {
    _Alignas(64) float sums[SIDE * SIDE] = {0};
    for (size_t i = 0; add && i < m; i++) memcpy(sums + i * SIDE, y + i * ldy, n * sizeof *y);
    if (m > TILE_SIDE)
        multiply_tiles(sums, SIDE * sizeof *sums, rows, panel, steps, add, 1);
    else
        multiply_tiles(sums, SIDE * sizeof *sums, rows, panel, steps, add, 0);
    for (size_t i = 0; i < m; i++) memcpy(y + i * ldy, sums + i * SIDE, n * sizeof *y);
}

/* Steps first .. first + steps of all sums. */
static void multiply_piece(float *y, size_t ldy, const unsigned char *rows, size_t m, const unsigned char *panels,
                           size_t n, size_t side_bytes, size_t steps, int add) {
    for (size_t i = 0; i < m; i += SIDE, rows += side_bytes) {
        const unsigned char *panel = panels;
        for (size_t j = 0; j < n; j += SIDE, panel += side_bytes) {
            float *out = y + i * ldy + j;
            if (m - i >= SIDE && n - j >= SIDE)
                multiply_tiles(out, ldy * sizeof *y, rows, panel, steps, add, 1);
            else
                multiply_edge(out, ldy, smaller(m - i, SIDE), smaller(n - j, SIDE), rows, panel, steps, add);
        }
    }
}

static void product_multiply(float *y, size_t ldy, const void *rows, size_t m, const void *panels, size_t n, size_t k,
                             int accumulate) {
    size_t steps = steps_of(k), pieces = steps ? (steps + STEPS_AT_ONCE - 1) / STEPS_AT_ONCE : 1;
    TILE_CONFIGURE(&tile_shapes);
    for (size_t piece = 0; piece < pieces; piece++) {
        size_t first = steps * piece / pieces, end = steps * (piece + 1) / pieces;
        multiply_piece(y, ldy, (const unsigned char *)rows + first * STEP_BYTES, m,
                       (const unsigned char *)panels + first * STEP_BYTES, n, steps * STEP_BYTES, end - first,
                       accumulate || piece > 0);
    }
    TILE_RELEASE();
}

/* Four sums, as many as product_multiply has. */
static double product_spin(size_t n) {
    TILE_CONFIGURE(&tile_shapes);
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
    TILE_ZERO(4);
    TILE_ZERO(5);
    TILE_ZERO(6);
    TILE_ZERO(7);
    for (size_t p = 0; p < n; p++) {
        TILE_DOT(0, 4, 6);
        TILE_DOT(1, 4, 7);
        TILE_DOT(2, 5, 6);
        TILE_DOT(3, 5, 7);
    }
    TILE_RELEASE();
    return 2.0 * 4 * 16 * 16 * 32 * (double)n;
}

/* 256 outputs read a block of rows eight times from the L1 cache for once from further away. 1024 terms: panels of
 * 512 KiB and 512 packed rows of 1 MiB share an L2 cache of 2 MiB. */
const struct product PRODUCT_NAME = {
    .arithmetic = "bf16",
    .height = SIDE,
    .width = SIDE,
    .region = 256,
    .terms = 1024,
    .rows_bytes = product_side_bytes,
    .panels_bytes = product_side_bytes,
    .pack_rows = product_pack_rows,
    .pack_forward = product_pack_forward,
    .pack_backward = product_pack_backward,
    .multiply = product_multiply,
    .spin = product_spin,
};

#endif
