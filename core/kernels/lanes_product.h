/* struct product in f32, written once over a vector of LANES floats. The including file defines the vector,
 * PRODUCT_HEIGHT and PRODUCT_VECTORS (so many sums stay in registers) and PRODUCT_TABLE, the table whose
 * dequantize functions unpack the blocks.
 *
 * Packed rows: blocks of PRODUCT_HEIGHT rows, term by term: (k, PRODUCT_HEIGHT). Panels: (k, PANEL), outputs side by
 * side. What is missing at an edge is zero. */
#ifndef CORE_KERNELS_LANES_PRODUCT_H
#define CORE_KERNELS_LANES_PRODUCT_H

enum {
    PANEL = PRODUCT_VECTORS * LANES,
    PIECE_MAX = 256, /* terms unpacked at once: a block, or four of the short ones' */
    PIECE_MIN = 64
};

static size_t product_block_bytes(size_t k) { return (PRODUCT_HEIGHT * k * sizeof(float) + 63) / 64 * 64; }
static size_t product_panel_bytes(size_t k) { return (PANEL * k * sizeof(float) + 63) / 64 * 64; }
static size_t product_rows_bytes(size_t m, size_t k) {
    return (m + PRODUCT_HEIGHT - 1) / PRODUCT_HEIGHT * product_block_bytes(k);
}
static size_t product_panels_bytes(size_t n, size_t k) { return (n + PANEL - 1) / PANEL * product_panel_bytes(k); }

LANE size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* Each round shuffles the first half of the vectors into the second; after log2(LANES) of them rows are columns. */
LANE void transpose(floats v[LANES]) {
    for (int width = 1; width < LANES; width *= 2) {
        floats mixed[LANES];
        for (int i = 0; i < LANES / 2; i++) {
            mixed[2 * i] = v_interleave_low(v[i], v[i + LANES / 2]);
            mixed[2 * i + 1] = v_interleave_high(v[i], v[i + LANES / 2]);
        }
        for (int i = 0; i < LANES; i++) v[i] = mixed[i];
    }
}

/* n of up to LANES rows of k floats, ld apart, to k groups of `step` floats. A group is stored with all its lanes:
 * what is beyond `step` is overwritten by the next one, and cut off from the last. */
LANE void turn(float *dst, size_t step, const float *src, size_t ld, size_t n, size_t k) {
    for (size_t p = 0; p < k; p += LANES) {
        floats v[LANES];
        size_t terms = smaller(k - p, LANES);
        for (size_t i = 0; i < LANES; i++)
            v[i] = i >= n           ? v_splat(0)
                   : terms == LANES ? v_load(src + i * ld + p)
                                    : v_load_part(src + i * ld + p, terms, 0);
        transpose(v);
        for (size_t i = 0; i < terms; i++) {
            if (step < LANES && p + i + 1 == k)
                v_store_part(dst + (p + i) * step, v[i], step);
            else
                v_store(dst + (p + i) * step, v[i]);
        }
    }
}

static void product_pack_rows(void *packed, const float *x, size_t ldx, size_t m, size_t k) {
    unsigned char *block = packed;
    for (size_t i = 0; i < m; i += PRODUCT_HEIGHT, block += product_block_bytes(k))
        turn((float *)(void *)block, PRODUCT_HEIGHT, x + i * ldx, ldx, smaller(m - i, PRODUCT_HEIGHT), k);
}

static void product_pack_forward(void *panels, const struct matrix *w, size_t r0, size_t n, size_t c0, size_t k) {
    const struct block_format *format = block_format_get(w->type);
    size_t piece = format->elements > PIECE_MIN ? format->elements : PIECE_MIN;
    for (size_t j = 0; j < n; j += PANEL) {
        float unpacked[PANEL * PIECE_MAX];
        float *panel = (float *)(void *)((unsigned char *)panels + j / PANEL * product_panel_bytes(k));
        size_t rows = smaller(n - j, PANEL);
        for (size_t p = 0; p < k; p += piece) {
            size_t terms = smaller(piece, k - p);
            const unsigned char *from = (const unsigned char *)w->data + (r0 + j) * w->row_bytes +
                                        (c0 + p) / format->elements * format->bytes;
            for (size_t r = 0; r < rows; r++)
                PRODUCT_TABLE.dequantize[w->type](unpacked + r * piece, from + r * w->row_bytes, terms);
            for (size_t v = 0; v < PANEL; v += LANES)
                turn(panel + p * PANEL + v, PANEL, unpacked + v * piece, piece,
                     rows > v ? smaller(rows - v, LANES) : 0, terms);
        }
    }
}

static void product_pack_backward(void *panels, const struct matrix *w, size_t c0, size_t n, size_t r0, size_t k) {
    const struct block_format *format = block_format_get(w->type);
    size_t piece = format->elements > PIECE_MIN ? format->elements : PIECE_MIN, panel = product_panel_bytes(k);
    for (size_t c = 0; c < n; c += piece) {
        size_t columns = smaller(piece, n - c);
        const unsigned char *from =
            (const unsigned char *)w->data + r0 * w->row_bytes + (c0 + c) / format->elements * format->bytes;
        for (size_t r = 0; r < k; r++, from += w->row_bytes) {
            float unpacked[PIECE_MAX + PANEL];
            PRODUCT_TABLE.dequantize[w->type](unpacked, from, columns);
            for (size_t i = columns; i % PANEL; i++) unpacked[i] = 0;
            for (size_t i = 0; i < columns; i += PANEL)
                memcpy((float *)(void *)((unsigned char *)panels + (c + i) / PANEL * panel) + r * PANEL, unpacked + i,
                       PANEL * sizeof(float));
        }
    }
}

LANE void product_tile(float *y, size_t ldy, const float *rows, const float *panel, size_t m, size_t n, size_t k,
                       int accumulate) {
    floats sums[PRODUCT_HEIGHT][PRODUCT_VECTORS];
    for (int i = 0; i < PRODUCT_HEIGHT; i++)
        for (int v = 0; v < PRODUCT_VECTORS; v++) sums[i][v] = v_splat(0);
    for (size_t p = 0; p < k; p++, rows += PRODUCT_HEIGHT, panel += PANEL) {
        floats w[PRODUCT_VECTORS];
        for (int v = 0; v < PRODUCT_VECTORS; v++) w[v] = v_load(panel + v * LANES);
        for (int i = 0; i < PRODUCT_HEIGHT; i++) {
            floats x = v_splat(rows[i]);
            for (int v = 0; v < PRODUCT_VECTORS; v++) sums[i][v] = v_fma(x, w[v], sums[i][v]);
        }
    }
    for (int i = 0; i < PRODUCT_HEIGHT; i++) {
        if ((size_t)i >= m) break;
        for (int v = 0; v < PRODUCT_VECTORS; v++) {
            float *out = y + (size_t)i * ldy + v * LANES;
            size_t left = n > (size_t)v * LANES ? n - (size_t)v * LANES : 0;
            floats sum = sums[i][v];
            if (left >= LANES) {
                if (accumulate) sum += v_load(out);
                v_store(out, sum);
            } else if (left) {
                if (accumulate) sum += v_load_part(out, left, 0);
                v_store_part(out, sum, left);
            }
        }
    }
}

static void product_multiply(float *y, size_t ldy, const void *rows, size_t m, const void *panels, size_t n, size_t k,
                             int accumulate) {
    const unsigned char *block = rows;
    for (size_t i = 0; i < m; i += PRODUCT_HEIGHT, block += product_block_bytes(k)) {
        const unsigned char *panel = panels;
        for (size_t j = 0; j < n; j += PANEL, panel += product_panel_bytes(k))
            product_tile(y + i * ldy + j, ldy, (const float *)(const void *)block, (const float *)(const void *)panel,
                         smaller(m - i, PRODUCT_HEIGHT), smaller(n - j, PANEL), k, accumulate);
    }
}

static double product_spin(size_t n) {
    floats sums[PRODUCT_HEIGHT][PRODUCT_VECTORS], x = v_splat(1e-3f), w = v_splat(1e-3f);
    /* each begins elsewhere, or the compiler would see that they are all the same */
    for (int i = 0; i < PRODUCT_HEIGHT; i++)
        for (int v = 0; v < PRODUCT_VECTORS; v++) sums[i][v] = v_splat((float)(i * PRODUCT_VECTORS + v));
    for (size_t p = 0; p < n; p++)
        for (int i = 0; i < PRODUCT_HEIGHT; i++)
            for (int v = 0; v < PRODUCT_VECTORS; v++) sums[i][v] = v_fma(x, w, sums[i][v]);
    for (int i = 0; i < PRODUCT_HEIGHT; i++)
        for (int v = 0; v < PRODUCT_VECTORS; v++) {
            float kept[LANES];
            v_store(kept, sums[i][v]);
            __asm__ volatile("" : : "r"(kept) : "memory");
        }
    return 2.0 * LANES * PRODUCT_HEIGHT * PRODUCT_VECTORS * (double)n;
}

static const struct product product_f32 = {
    .arithmetic = "f32",
    .height = PRODUCT_HEIGHT,
    .width = PANEL,
    .region = 64,
    .terms = 768,
    .rows_bytes = product_rows_bytes,
    .panels_bytes = product_panels_bytes,
    .pack_rows = product_pack_rows,
    .pack_forward = product_pack_forward,
    .pack_backward = product_pack_backward,
    .multiply = product_multiply,
    .spin = product_spin,
};

#endif
