/* AVX-512 VNNI: products of 8-bit factors, four at a time (vpdpbusd). The rest of the table is avx512's.
 *
 * Both sides are rounded to 8 bits, HALF terms with one scale, scale = max |v| / 127, so that the rounding of a factor
 * is at most 1/254 of the largest beside it. Sums are whole numbers over as many terms, and f32 from there on:
 *
 *     y[m, n] = sum over halves of  sx[m] sw[n] sum (x w),   sum (x w) = sum (x + 128) w - 128 sum w
 *
 * as the instruction wants its first factor without a sign. NaN or infinity among the terms makes y not finite.
 * Terms are packed in groups of two halves, which fill a register. */
#if defined(__x86_64__)

#include <immintrin.h>
#include <string.h>

#include "core/kernels/tables.h"

enum { HALF = 32, GROUP = 2 * HALF, STEPS = GROUP / 4, HEIGHT = 6, WIDTH = 32, PIECE_MAX = 256 };

struct row_group {
    int32_t x[STEPS][HEIGHT]; /* four terms each, + 128 */
    float scale[2][HEIGHT];
    int32_t unused[4]; /* up to a line of the cache */
};
struct panel_group {
    int32_t w[STEPS][WIDTH]; /* four terms each */
    int32_t sum[2][WIDTH];   /* -128 sum w, of each half */
    float scale[2][WIDTH];
};
_Static_assert(sizeof(struct row_group) % 64 == 0 && sizeof(struct panel_group) % 64 == 0, "aligned groups");

static size_t groups_of(size_t k) { return (k + GROUP - 1) / GROUP; }
static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

static size_t rows_bytes(size_t m, size_t k) {
    return (m + HEIGHT - 1) / HEIGHT * groups_of(k) * sizeof(struct row_group);
}
static size_t panels_bytes(size_t n, size_t k) {
    return (n + WIDTH - 1) / WIDTH * groups_of(k) * sizeof(struct panel_group);
}

/* ---- rounding ---- */

static inline __mmask16 first_lanes(size_t n) { return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1); }

/* |x| as bits: whole numbers in the same order, where infinity is above all and NaN above infinity. */
static inline __m512i size_bits(__m512 x) {
    return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
}

/* Of sixteen halves, by the largest in each; below LEAST, where 127 / most would overflow, all is 0. */
static inline void scales_of(__m512 most, __m512 *scale, __m512 *inverse) {
    const __m512 LEAST = _mm512_set1_ps(1e-35f);
    __mmask16 some = _mm512_cmp_ps_mask(most, LEAST, _CMP_NLT_UQ); /* NaN too */
    *scale = _mm512_maskz_mul_ps(some, most, _mm512_set1_ps(1.0f / 127));
    *inverse = _mm512_maskz_div_ps(some, _mm512_set1_ps(127), most);
}

struct terms {
    __m512 v[4];
};
static inline struct terms load_terms(const float *x, size_t n) {
    struct terms t;
    for (size_t i = 0; i < 4; i++)
        t.v[i] = n >= 16 * (i + 1) ? _mm512_loadu_ps(x + 16 * i)
                                   : _mm512_maskz_loadu_ps(first_lanes(n > 16 * i ? n - 16 * i : 0), x + 16 * i);
    return t;
}

/* The bits of the largest in each half of n terms. */
static inline void most_of(uint32_t most[2][16], size_t at, const float *x, size_t n) {
    struct terms t = load_terms(x, n);
    for (size_t h = 0; h < 2; h++)
        most[h][at] = _mm512_reduce_max_epu32(_mm512_max_epu32(size_bits(t.v[2 * h]), size_bits(t.v[2 * h + 1])));
}

/* 64 terms in a byte each. */
static inline __m512i round_terms(const float *x, size_t n, float inverse_0, float inverse_1) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    struct terms t = load_terms(x, n);
    __m512i whole[4];
    for (size_t i = 0; i < 4; i++)
        whole[i] = _mm512_cvtps_epi32(t.v[i] * _mm512_set1_ps(i < 2 ? inverse_0 : inverse_1));
    __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(whole[0], whole[1]), _mm512_packs_epi32(whole[2], whole[3]));
    return _mm512_permutexvar_epi32(order, bytes);
}

static const char SIGN = (char)-128;

/* ---- rows ---- */

/* x[s][r] = term s of row r: lane l of the j-th store is term (16 j + l) / HEIGHT of row (16 j + l) % HEIGHT. */
#define TERM(j, l) (16 * (j) + (l)) / HEIGHT
#define TERMS_OF(j)                                                                                                    \
    {TERM(j, 0), TERM(j, 1), TERM(j, 2),  TERM(j, 3),  TERM(j, 4),  TERM(j, 5),  TERM(j, 6),  TERM(j, 7),              \
     TERM(j, 8), TERM(j, 9), TERM(j, 10), TERM(j, 11), TERM(j, 12), TERM(j, 13), TERM(j, 14), TERM(j, 15)}
static const int32_t terms_of[HEIGHT][16] = {TERMS_OF(0), TERMS_OF(1), TERMS_OF(2),
                                             TERMS_OF(3), TERMS_OF(4), TERMS_OF(5)};
/* Every sixth lane from l. */
static const __mmask16 every_sixth[HEIGHT] = {0x1041, 0x2082, 0x4104, 0x8208, 0x0410, 0x0820};

static inline void store_rows(struct row_group *group, const __m512i rows[HEIGHT]) {
#pragma GCC unroll 6
    for (int j = 0; j < HEIGHT; j++) {
        __m512i from = _mm512_loadu_si512(terms_of[j]), all = _mm512_set1_epi8(SIGN);
        for (int r = 0; r < HEIGHT; r++) /* lane l is of row (4 j + l) % 6 */
            all = _mm512_mask_permutexvar_epi32(all, every_sixth[(r + 2 * j) % HEIGHT], from, rows[r]);
        _mm512_storeu_si512(group->x[0] + 16 * j, _mm512_xor_si512(all, _mm512_set1_epi8(SIGN)));
    }
}
_Static_assert(STEPS == 16 && HEIGHT == 6, "store_rows writes 16 terms of 6 rows");

static void pack_rows(void *packed, const float *x, size_t ldx, size_t m, size_t k) {
    struct row_group *group = packed;
    for (size_t i = 0; i < m; i += HEIGHT)
        for (size_t p = 0; p < k; p += GROUP, group++) {
            uint32_t most[2][16] = {0};
            float scales[16], inverses[2][16];
            __m512i rows[HEIGHT];
            size_t n = smaller(m - i, HEIGHT);
            for (size_t r = 0; r < n; r++) most_of(most, r, x + (i + r) * ldx + p, k - p);
            for (size_t h = 0; h < 2; h++) {
                __m512 scale, inverse;
                scales_of(_mm512_castsi512_ps(_mm512_loadu_si512(most[h])), &scale, &inverse);
                _mm512_storeu_ps(scales, scale);
                _mm512_storeu_ps(inverses[h], inverse);
                memcpy(group->scale[h], scales, sizeof group->scale[h]);
            }
            for (size_t r = 0; r < HEIGHT; r++)
                rows[r] = r < n ? round_terms(x + (i + r) * ldx + p, k - p, inverses[0][r], inverses[1][r])
                                : _mm512_setzero_si512();
            store_rows(group, rows);
        }
}

/* ---- panels ---- */

/* Sixteen outputs with sixteen times four terms each, beside each other by term. */
static inline void transpose(__m512i v[16]) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    for (int round = 0; round < 4; round++) {
        __m512i mixed[16];
        for (int i = 0; i < 8; i++) {
            mixed[2 * i] = _mm512_permutex2var_epi32(v[i], low, v[i + 8]);
            mixed[2 * i + 1] = _mm512_permutex2var_epi32(v[i], high, v[i + 8]);
        }
        for (int i = 0; i < 16; i++) v[i] = mixed[i];
    }
}

static inline void store_sums(struct panel_group *group, size_t first, size_t half, __m512i sum, __m512 scale) {
    _mm512_store_si512(group->sum[half] + first, _mm512_sub_epi32(_mm512_setzero_si512(), sum));
    _mm512_store_ps(group->scale[half] + first, scale);
}

/* Sixteen outputs of a group, from `first`: 64 terms each, and their scales. */
static inline void store_outputs(struct panel_group *group, size_t first, __m512i outputs[16],
                                 const __m512 scales[2]) {
    transpose(outputs);
    for (size_t h = 0; h < 2; h++) {
        __m512i sum = _mm512_setzero_si512();
        for (size_t s = h * STEPS / 2; s < (h + 1) * STEPS / 2; s++) {
            _mm512_store_si512(group->w[s] + first, outputs[s]);
            sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(SIGN), outputs[s]); /* 128 w */
        }
        store_sums(group, first, h, sum, scales[h]);
    }
}

static void outputs_of_floats(struct panel_group *group, size_t first, const float *x, size_t step, size_t n,
                              size_t terms) {
    uint32_t most[2][16] = {0};
    float inverses[2][16];
    __m512 scales[2], inverse;
    __m512i outputs[16];
    for (size_t r = 0; r < n; r++) most_of(most, r, x + r * step, terms);
    for (size_t h = 0; h < 2; h++) {
        scales_of(_mm512_castsi512_ps(_mm512_loadu_si512(most[h])), &scales[h], &inverse);
        _mm512_storeu_ps(inverses[h], inverse);
    }
    for (size_t r = 0; r < 16; r++)
        outputs[r] =
            r < n ? round_terms(x + r * step, terms, inverses[0][r], inverses[1][r]) : _mm512_setzero_si512();
    store_outputs(group, first, outputs, scales);
}

/* ---- whole groups of Q4_1, without a float for each weight: a table of sixteen rounded weights a block ---- */

enum { Q4_1_BYTES = 20, Q4_1_QUANTS = 4 };

static inline __m512 low_halves(__m512i x) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x)); }

/* The two blocks at `from` of sixteen rows. */
static void outputs_of_q4_1(struct panel_group *group, size_t first, const unsigned char *from, size_t row_bytes) {
    const __m512 all_quants = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i nibble = _mm512_set1_epi8(15);
    float d[2][16], minimum[2][16];
    __m512 scales[2], inverse;
    __m512i outputs[16];
    for (size_t b = 0; b < 2; b++) {
        int32_t both[16];
        for (size_t r = 0; r < 16; r++) memcpy(&both[r], from + r * row_bytes + b * Q4_1_BYTES, sizeof both[r]);
        __m512i halves = _mm512_loadu_si512(both);
        __m512 db = low_halves(halves), mb = low_halves(_mm512_srli_epi32(halves, 16));
        __m512 last = _mm512_fmadd_ps(db, _mm512_set1_ps(15), mb);
        scales_of(_mm512_castsi512_ps(_mm512_max_epu32(size_bits(mb), size_bits(last))), &scales[b], &inverse);
        _mm512_storeu_ps(d[b], db * inverse);
        _mm512_storeu_ps(minimum[b], mb * inverse);
    }
    for (size_t r = 0; r < 16; r++) {
        __m128i quants[2], weights[2];
        for (size_t b = 0; b < 2; b++) {
            __m512 w = _mm512_fmadd_ps(all_quants, _mm512_set1_ps(d[b][r]), _mm512_set1_ps(minimum[b][r]));
            weights[b] = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(w));
            quants[b] = _mm_loadu_si128((const __m128i *)(from + r * row_bytes + b * Q4_1_BYTES + Q4_1_QUANTS));
        }
        __m256i first_block = _mm256_set_m128i(_mm_srli_epi16(quants[0], 4), quants[0]);
        __m256i second_block = _mm256_set_m128i(_mm_srli_epi16(quants[1], 4), quants[1]);
        __m512i q = _mm512_inserti64x4(_mm512_castsi256_si512(first_block), second_block, 1);
        __m512i table = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_broadcastsi128_si256(weights[0])),
                                           _mm256_broadcastsi128_si256(weights[1]), 1);
        outputs[r] = _mm512_shuffle_epi8(table, _mm512_and_si512(q, nibble));
    }
    store_outputs(group, first, outputs, scales);
}

/* ---- whole groups of Q8_0: as they are ---- */

enum { Q8_0_BYTES = 34, Q8_0_QUANTS = 2 };

static void outputs_of_q8_0(struct panel_group *group, size_t first, const unsigned char *from, size_t row_bytes) {
    __m512 scales[2];
    __m512i outputs[16];
    for (size_t b = 0; b < 2; b++) {
        uint16_t d[16];
        for (size_t r = 0; r < 16; r++) memcpy(&d[r], from + r * row_bytes + b * Q8_0_BYTES, sizeof d[r]);
        scales[b] = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)d));
    }
    for (size_t r = 0; r < 16; r++) {
        const unsigned char *block = from + r * row_bytes + Q8_0_QUANTS;
        __m256i low = _mm256_loadu_si256((const __m256i *)block);
        __m256i high = _mm256_loadu_si256((const __m256i *)(block + Q8_0_BYTES));
        outputs[r] = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    }
    store_outputs(group, first, outputs, scales);
}

static void pack_forward(void *panels, const struct matrix *w, size_t r0, size_t n, size_t c0, size_t k) {
    const struct block_format *format = block_format_get(w->type);
    size_t piece = format->elements > GROUP ? format->elements : GROUP;
    for (size_t j = 0; j < (n + WIDTH - 1) / WIDTH * WIDTH; j += 16) {
        struct panel_group *group = (struct panel_group *)panels + j / WIDTH * groups_of(k);
        size_t rows = n > j ? smaller(n - j, 16) : 0;
        for (size_t p = 0; p < k; p += piece) {
            float unpacked[16 * PIECE_MAX];
            size_t terms = smaller(piece, k - p);
            const unsigned char *from = (const unsigned char *)w->data + (r0 + j) * w->row_bytes +
                                        (c0 + p) / format->elements * format->bytes;
            if (w->type == BLOCK_Q4_1 && rows == 16 && terms == GROUP) {
                outputs_of_q4_1(group++, j % WIDTH, from, w->row_bytes);
                continue;
            }
            if (w->type == BLOCK_Q8_0 && rows == 16 && terms == GROUP) {
                outputs_of_q8_0(group++, j % WIDTH, from, w->row_bytes);
                continue;
            }
            for (size_t r = 0; r < rows; r++)
                kernels_avx512.dequantize[w->type](unpacked + r * piece, from + r * w->row_bytes, terms);
            for (size_t t = 0; t < terms; t += GROUP, group++)
                outputs_of_floats(group, j % WIDTH, unpacked + t, piece, rows, terms - t);
        }
    }
}

/* Sixteen outputs of a half, whose terms are `step` floats apart. */
static inline void half_of_columns(struct panel_group *group, size_t first, size_t half, const float *x, size_t step,
                                   size_t k) {
    __m512i most = _mm512_setzero_si512(), sum = most;
    __m512 scale, inverse;
    for (size_t p = 0; p < k; p++) most = _mm512_max_epu32(most, size_bits(_mm512_loadu_ps(x + p * step)));
    scales_of(_mm512_castsi512_ps(most), &scale, &inverse);
    /* bytes 0 4 8 12, 1 5 9 13, ...: four terms of an output beside each other */
    const __m512i turn = _mm512_set4_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400);
    for (size_t p = 0; p < HALF; p += 4) {
        __m512i four[4];
        for (size_t i = 0; i < 4; i++)
            four[i] = p + i < k ? _mm512_cvtps_epi32(_mm512_loadu_ps(x + (p + i) * step) * inverse)
                                : _mm512_setzero_si512();
        __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(four[0], four[1]), _mm512_packs_epi32(four[2], four[3]));
        bytes = _mm512_shuffle_epi8(bytes, turn);
        _mm512_store_si512(group->w[(half * HALF + p) / 4] + first, bytes);
        sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(SIGN), bytes); /* 128 w */
    }
    store_sums(group, first, half, sum, scale);
}

static inline void outputs_of_columns(struct panel_group *group, size_t first, const float *x, size_t step, size_t k) {
    half_of_columns(group, first, 0, x, step, smaller(k, HALF));
    half_of_columns(group, first, 1, x + HALF * step, step, k > HALF ? k - HALF : 0);
}

static void pack_backward(void *panels, const struct matrix *w, size_t c0, size_t n, size_t r0, size_t k) {
    const struct block_format *format = block_format_get(w->type);
    size_t piece = format->elements > GROUP ? format->elements : GROUP;
    for (size_t c = 0; c < n; c += piece) {
        size_t columns = smaller(piece, n - c);
        const unsigned char *from =
            (const unsigned char *)w->data + r0 * w->row_bytes + (c0 + c) / format->elements * format->bytes;
        for (size_t p = 0; p < k; p += GROUP) {
            float unpacked[GROUP * PIECE_MAX];
            size_t terms = smaller(GROUP, k - p);
            for (size_t t = 0; t < terms; t++, from += w->row_bytes) {
                kernels_avx512.dequantize[w->type](unpacked + t * piece, from, columns);
                for (size_t i = columns; i < piece; i++) unpacked[t * piece + i] = 0;
            }
            for (size_t i = 0; i < columns; i += WIDTH) {
                struct panel_group *group = (struct panel_group *)panels + (c + i) / WIDTH * groups_of(k) + p / GROUP;
                outputs_of_columns(group, 0, unpacked + i, piece, terms);
                outputs_of_columns(group, 16, unpacked + i + 16, piece, terms);
            }
        }
    }
}

/* ---- the product ---- */

static inline __attribute__((always_inline)) void tile(float *y, size_t ldy, const struct row_group *rows,
                                                       const struct panel_group *panel, size_t m, size_t n,
                                                       size_t groups, int accumulate) {
    __m512 sums[HEIGHT][2];
    for (int i = 0; i < HEIGHT; i++) sums[i][0] = sums[i][1] = _mm512_setzero_ps();
    for (size_t half = 0; half < 2 * groups; half++) {
        const struct row_group *row = rows + half / 2;
        const struct panel_group *group = panel + half / 2;
        __m512i whole[HEIGHT][2];
        __m512i sum0 = _mm512_load_si512(group->sum[half % 2]), sum1 = _mm512_load_si512(group->sum[half % 2] + 16);
        for (int i = 0; i < HEIGHT; i++) {
            whole[i][0] = sum0;
            whole[i][1] = sum1;
        }
        for (size_t s = half % 2 * STEPS / 2, n_steps = 0; n_steps < STEPS / 2; s++, n_steps++) {
            __m512i w0 = _mm512_load_si512(group->w[s]), w1 = _mm512_load_si512(group->w[s] + 16);
            for (int i = 0; i < HEIGHT; i++) {
                __m512i x = _mm512_set1_epi32(row->x[s][i]);
                whole[i][0] = _mm512_dpbusd_epi32(whole[i][0], x, w0);
                whole[i][1] = _mm512_dpbusd_epi32(whole[i][1], x, w1);
            }
        }
        __m512 s0 = _mm512_load_ps(group->scale[half % 2]), s1 = _mm512_load_ps(group->scale[half % 2] + 16);
        for (int i = 0; i < HEIGHT; i++) {
            __m512 scale = _mm512_set1_ps(row->scale[half % 2][i]);
            sums[i][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[i][0]), scale * s0, sums[i][0]);
            sums[i][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[i][1]), scale * s1, sums[i][1]);
        }
    }
    for (size_t i = 0; i < smaller(m, HEIGHT); i++)
        for (size_t v = 0; v < 2 && n > 16 * v; v++) {
            __mmask16 lanes = first_lanes(n - 16 * v);
            float *out = y + i * ldy + 16 * v;
            __m512 sum = sums[i][v];
            if (accumulate) sum += _mm512_maskz_loadu_ps(lanes, out);
            _mm512_mask_storeu_ps(out, lanes, sum);
        }
}

static void multiply(float *y, size_t ldy, const void *rows, size_t m, const void *panels, size_t n, size_t k,
                     int accumulate) {
    size_t groups = groups_of(k);
    const struct row_group *block = rows;
    for (size_t i = 0; i < m; i += HEIGHT, block += groups) {
        const struct panel_group *panel = panels;
        for (size_t j = 0; j < n; j += WIDTH, panel += groups)
            tile(y + i * ldy + j, ldy, block, panel, m - i, n - j, groups, accumulate);
    }
}

static double spin(size_t n) {
    enum { SUMS = 24 };
    __m512i sums[SUMS], x = _mm512_set1_epi8(1), w = _mm512_set1_epi8(1);
    /* each begins elsewhere, or the compiler would see that they are all the same */
    for (int i = 0; i < SUMS; i++) sums[i] = _mm512_set1_epi32(i);
    for (size_t p = 0; p < n; p++)
        for (int i = 0; i < SUMS; i++) sums[i] = _mm512_dpbusd_epi32(sums[i], x, w);
    for (int i = 0; i < SUMS; i++) __asm__ volatile("" : : "v"(sums[i]));
    return 2.0 * 64 * SUMS * (double)n;
}

const struct product product_avx512vnni = {
    .arithmetic = "int8",
    .height = HEIGHT,
    .width = WIDTH,
    .region = 64,
    .terms = 1536,
    .rows_bytes = rows_bytes,
    .panels_bytes = panels_bytes,
    .pack_rows = pack_rows,
    .pack_forward = pack_forward,
    .pack_backward = pack_backward,
    .multiply = multiply,
    .spin = spin,
};

#endif
