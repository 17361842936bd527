/* AVX-512 VNNI: rows of blocks times rows of activations that are rounded to bytes, for few rows (struct rounded).
 *
 * Four blocks are taken at once, which lie in one or two registers as they are in memory: one permutation of 16-bit
 * words brings their quants beside each other, another spreads their scales over the lanes. A lane then holds whole
 * numbers of one block, so that its scale is applied once:
 *
 *     y = sum over blocks of  d sx sum (q x) + m sx sum x
 *
 * Quants have no sign and x has one, as the instruction (vpdpbusd) wants it. The bytes of Q8_0 have a sign: 128 is
 * added to them and taken out of the sum, exactly, as it is still a whole number.
 *
 * Each sum of a row and an x has an accumulator of its own, whatever is worked on beside it: how rows of blocks and
 * of x are grouped does not show. */
#if defined(__x86_64__)

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "core/kernels/tables.h"

#define LANE static inline __attribute__((always_inline))

/* Rows that meet all x before the next ones do: they stay in the L1 cache. */
enum { BLOCK = 32, BLOCKS = 4, GROUP = BLOCK * BLOCKS, SUMS = 4, ROWS = 8 };

/* Four blocks of x. */
struct group {
    int8_t halves[2][64];   /* the first sixteen terms of each block; the others */
    int8_t terms[2][64];    /* in order */
    int32_t offsets[2][16]; /* -128 times the sum of four terms in order */
    float scales[16];       /* each block's four times, as its terms lie in halves */
    float sums[16];         /* of the eight terms of a lane of halves, times the scale */
    float block_scales[4];  /* once each */
    float block_sums[4];    /* of the block's terms, times the scale */
    float unused[8];        /* up to a line of the cache */
};
_Static_assert(sizeof(struct group) % 64 == 0, "aligned groups");

static size_t rounded_bytes(size_t n) { return (n + GROUP - 1) / GROUP * sizeof(struct group); }

/* ---- rounding ---- */

/* |x| as bits: whole numbers in the same order, where infinity is above all and NaN above infinity. */
LANE __m512i size_bits(__m512 x) { return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff)); }

LANE float round_block(struct group *group, size_t b, const float *x) {
    __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16);
    uint32_t bits = _mm512_reduce_max_epu32(_mm512_max_epu32(size_bits(low), size_bits(high)));
    float most;
    memcpy(&most, &bits, sizeof most);
    if (most < 1e-35f) return 0; /* where 127 / most would overflow all is 0 */
    __m512 inverse = _mm512_set1_ps(127 / most);
    __m128i first = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(low * inverse));
    __m128i second = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(high * inverse));
    _mm_store_si128((__m128i *)(void *)(group->halves[0] + 16 * b), first);
    _mm_store_si128((__m128i *)(void *)(group->halves[1] + 16 * b), second);
    _mm_store_si128((__m128i *)(void *)(group->terms[b / 2] + b % 2 * 32), first);
    _mm_store_si128((__m128i *)(void *)(group->terms[b / 2] + b % 2 * 32 + 16), second);
    return most * (1.0f / 127);
}

LANE void sum_terms(struct group *group) {
    const __m512i none = _mm512_setzero_si512(), ones = _mm512_set1_epi8(1), sign = _mm512_set1_epi8((char)-128);
    __m512i sums = _mm512_dpbusd_epi32(none, ones, _mm512_load_si512(group->halves[0]));
    sums = _mm512_dpbusd_epi32(sums, ones, _mm512_load_si512(group->halves[1]));
    __m512 scaled = _mm512_cvtepi32_ps(sums) * _mm512_load_ps(group->scales);
    _mm512_store_ps(group->sums, scaled);
    for (size_t b = 0; b < BLOCKS; b++) {
        const float *four = group->sums + 4 * b;
        group->block_sums[b] = (four[0] + four[1]) + (four[2] + four[3]);
    }
    for (int i = 0; i < 2; i++) {
        __m512i sum = _mm512_dpbusd_epi32(none, sign, _mm512_load_si512(group->terms[i]));
        _mm512_store_si512(group->offsets[i], _mm512_sub_epi32(none, sum));
    }
}

static void round_row(void *rounded, const float *x, size_t n) {
    struct group *group = rounded;
    for (; n; n -= n < GROUP ? n : GROUP, x += GROUP, group++) {
        memset(group, 0, sizeof *group);
        for (size_t b = 0; b < BLOCKS && b < n / BLOCK; b++) {
            float scale = round_block(group, b, x + b * BLOCK);
            group->block_scales[b] = scale;
            for (size_t i = 0; i < 4; i++) group->scales[4 * b + i] = scale;
        }
        sum_terms(group);
    }
}

/* ---- four blocks of a row ---- */

/* Where a core needs few instructions for a line, there are more lines on the way than the L1 cache can wait for: then
 * the L2 cache is asked, from further ahead. Past the end too: a prefetch cannot fault. */
LANE void prefetch(const uint8_t *p, size_t bytes, int quick) {
    for (size_t line = 0; line < bytes; line += 64)
        if (quick)
            __builtin_prefetch(p + 8192 + line, 0, 2);
        else
            __builtin_prefetch(p + 6144 + line, 0, 3);
}
LANE __mmask32 first_words(size_t n) { return n >= 32 ? 0xffffffff : (1u << n) - 1; }

/* The word at place w of four blocks of W words, of which the first 32 are in one register and the last 32 in the
 * other. */
#define WORD(W, w) (int16_t)((w) < 32 ? (w) : (w)-4 * (W) + 64)
#define EIGHT(W, w)                                                                                                    \
    WORD(W, w), WORD(W, (w) + 1), WORD(W, (w) + 2), WORD(W, (w) + 3), WORD(W, (w) + 4), WORD(W, (w) + 5),              \
        WORD(W, (w) + 6), WORD(W, (w) + 7)
#define FOUR_TIMES(W, w) WORD(W, w), WORD(W, w), WORD(W, w), WORD(W, w)
/* Of blocks whose words are: d, with a minimum m, with a fifth bit two words of these, eight words of nibbles. */
struct places {
    int16_t nibbles[32];
    int16_t scales[32]; /* d of each block four times, then the word behind it: m */
};
#define PLACES(W)                                                                                                      \
    {                                                                                                                  \
        {EIGHT(W, (W)-8), EIGHT(W, 2 * (W)-8), EIGHT(W, 3 * (W)-8), EIGHT(W, 4 * (W)-8)}, {                            \
            FOUR_TIMES(W, 0), FOUR_TIMES(W, W), FOUR_TIMES(W, 2 * (W)), FOUR_TIMES(W, 3 * (W)), FOUR_TIMES(W, 1),      \
                FOUR_TIMES(W, (W) + 1), FOUR_TIMES(W, 2 * (W) + 1), FOUR_TIMES(W, 3 * (W) + 1)                         \
        }                                                                                                              \
    }
static const struct places places_q4_0 = PLACES(9), places_q4_1 = PLACES(10), places_q5_0 = PLACES(11),
                           places_q5_1 = PLACES(12);

/* As numbers of 16 bits at places 0, W, 2 W, 3 W from p on, those of `blocks` blocks. */
LANE uint64_t each_word(const uint8_t *p, size_t W, size_t blocks) {
    uint64_t all = 0;
#pragma GCC unroll 4
    for (size_t b = 0; b < BLOCKS; b++) {
        uint16_t word;
        if (b >= blocks) break;
        memcpy(&word, p + b * 2 * W, sizeof word);
        all |= (uint64_t)word << 16 * b;
    }
    return all;
}

struct nibbles {
    __m512i low, high;
    __m512 d, m; /* without a minimum: m = -8 d or -16 d */
};
LANE struct nibbles read_nibbles(const uint8_t *p, const struct places *places, int minimum, int five, size_t blocks) {
    const size_t W = 9 + (minimum ? 1 : 0) + (five ? 2 : 0), second = 4 * W - 32;
    __m512i front, back;
    if (blocks == BLOCKS) {
        front = _mm512_loadu_si512(p);
        back = _mm512_loadu_si512(p + 2 * second);
    } else {
        size_t words = W * blocks;
        front = _mm512_maskz_loadu_epi16(first_words(words), p);
        back = _mm512_maskz_loadu_epi16(first_words(words > second ? words - second : 0), p + 2 * second);
    }
    __m512i q = _mm512_permutex2var_epi16(front, _mm512_loadu_si512(places->nibbles), back);
    __m512i halves = _mm512_permutex2var_epi16(front, _mm512_loadu_si512(places->scales), back);
    const __m512i nibble = _mm512_set1_epi8(15);
    struct nibbles n = {_mm512_and_si512(q, nibble), _mm512_and_si512(_mm512_srli_epi16(q, 4), nibble),
                        _mm512_cvtph_ps(_mm512_castsi512_si256(halves)), _mm512_setzero_ps()};
    if (five) {
        const __m512i sixteen = _mm512_set1_epi8(16);
        const uint8_t *fifth = p + (minimum ? 4 : 2);
        n.low = _mm512_or_si512(n.low, _mm512_maskz_mov_epi8(each_word(fifth, W, blocks), sixteen));
        n.high = _mm512_or_si512(n.high, _mm512_maskz_mov_epi8(each_word(fifth + 2, W, blocks), sixteen));
    }
    if (minimum)
        n.m = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1));
    else
        n.m = n.d * _mm512_set1_ps(five ? -16 : -8);
    return n;
}

LANE __m512 add_nibbles(__m512 sum, const struct nibbles *n, const struct group *x) {
    __m512i whole = _mm512_dpbusd_epi32(_mm512_setzero_si512(), n->low, _mm512_load_si512(x->halves[0]));
    whole = _mm512_dpbusd_epi32(whole, n->high, _mm512_load_si512(x->halves[1]));
    sum = _mm512_fmadd_ps(n->m, _mm512_load_ps(x->sums), sum);
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), n->d * _mm512_load_ps(x->scales), sum);
}

struct bytes {
    __m512i q[2]; /* plus 128, in order */
    __m128 d;
};
LANE struct bytes read_bytes(const uint8_t *p, size_t blocks) {
    enum { WORDS = 17, BYTES = 2 * WORDS };
    struct bytes n = {.d = _mm_cvtph_ps(_mm_cvtsi64_si128((long long)each_word(p, WORDS, blocks)))};
#pragma GCC unroll 2
    for (size_t i = 0; i < 2; i++, p += 2 * BYTES) {
        __m256i first = _mm256_setzero_si256(), second = first;
        if (blocks > 2 * i) first = _mm256_loadu_si256((const __m256i *)(const void *)(p + 2));
        if (blocks > 2 * i + 1) second = _mm256_loadu_si256((const __m256i *)(const void *)(p + BYTES + 2));
        __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
        n.q[i] = _mm512_xor_si512(both, _mm512_set1_epi8((char)-128));
    }
    return n;
}

LANE __m512 add_bytes(__m512 sum, const struct bytes *n, const struct group *x) {
    const __m512i pairs[2] = {_mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1),
                              _mm512_setr_epi32(2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3)};
    __m512 d = _mm512_castps128_ps512(n->d * _mm_load_ps(x->block_scales));
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        __m512i whole = _mm512_dpbusd_epi32(_mm512_load_si512(x->offsets[i]), n->q[i], _mm512_load_si512(x->terms[i]));
        sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), _mm512_permutexvar_ps(pairs[i], d), sum);
    }
    return sum;
}

/* ---- a block of the K formats: 256 elements, two groups of x ---- */

/* The eight scales or sums of two groups. */
LANE __m256 both_of(const float *first, const float *second) {
    return _mm256_set_m128(_mm_load_ps(second), _mm_load_ps(first));
}

struct parts {
    __m512i q[2][2];       /* [group][pair of parts]: in order, without a sign */
    __m256 scales, minima; /* times d and dmin */
};
LANE __m256 bytes_times(uint64_t bytes, __m128 factor) {
    __m256i wide = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)bytes));
    return _mm256_cvtepi32_ps(wide) * _mm256_broadcastss_ps(factor);
}
LANE struct parts read_parts(const uint8_t *p, int five) {
    struct parts n;
    int halves;
    uint32_t first, second, third; /* all four bytes of a word at a time: see scale_and_minimum in blocks.c */
    memcpy(&halves, p, sizeof halves);
    memcpy(&first, p + 4, sizeof first);
    memcpy(&second, p + 8, sizeof second);
    memcpy(&third, p + 12, sizeof third);
    __m128 d = _mm_cvtph_ps(_mm_cvtsi32_si128(halves));
    uint64_t scales = (uint64_t)((third & 0x0f0f0f0f) | (first >> 2 & 0x30303030)) << 32 | (first & 0x3f3f3f3f);
    uint64_t minima = (uint64_t)((third >> 4 & 0x0f0f0f0f) | (second >> 2 & 0x30303030)) << 32 | (second & 0x3f3f3f3f);
    n.scales = bytes_times(scales, d);
    n.minima = bytes_times(minima, _mm_movehdup_ps(d));
    const __m512i nibble = _mm512_set1_epi8(15);
#pragma GCC unroll 2
    for (int g = 0; g < 2; g++) {
        __m512i q = _mm512_loadu_si512(p + (five ? 48 : 16) + 64 * g);
        __m512i low = _mm512_and_si512(q, nibble), high = _mm512_and_si512(_mm512_srli_epi16(q, 4), nibble);
        n.q[g][0] = _mm512_shuffle_i64x2(low, high, 0x44);
        n.q[g][1] = _mm512_shuffle_i64x2(low, high, 0xee);
    }
    if (!five) return n;
    __m512i fifth = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(const void *)(p + 16)));
    __m512i bits = _mm512_inserti64x4(_mm512_set1_epi8(1), _mm256_set1_epi8(2), 1); /* of parts 0 and 1 */
#pragma GCC unroll 4
    for (int pair = 0; pair < 4; pair++, bits = _mm512_slli_epi16(bits, 2)) {
        __m512i sixteens = _mm512_maskz_mov_epi8(_mm512_test_epi8_mask(fifth, bits), _mm512_set1_epi8(16));
        n.q[pair / 2][pair % 2] = _mm512_or_si512(n.q[pair / 2][pair % 2], sixteens);
    }
    return n;
}

LANE __m512 add_parts(__m512 sum, const struct parts *n, const struct group *x) {
    const __m512i eight = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    __m512 scales = _mm512_castps256_ps512(n->scales * both_of(x[0].block_scales, x[1].block_scales));
    __m256 minima = n->minima * both_of(x[0].block_sums, x[1].block_sums);
    sum = sum - _mm512_zextps256_ps512(minima);
#pragma GCC unroll 4
    for (int pair = 0; pair < 4; pair++) {
        const struct group *g = x + pair / 2;
        __m512i terms = _mm512_load_si512(g->terms[pair % 2]);
        __m512i whole = _mm512_dpbusd_epi32(_mm512_setzero_si512(), n->q[pair / 2][pair % 2], terms);
        __m512 spread = _mm512_permutexvar_ps(_mm512_add_epi32(eight, _mm512_set1_epi32(2 * pair)), scales);
        sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), spread, sum);
    }
    return sum;
}

struct sixths {
    __m512i q[2][2]; /* as of struct parts: plus 32 */
    __m512 scales;   /* of sixteen elements each, times d */
};
LANE struct sixths read_sixths(const uint8_t *p) {
    struct sixths n;
    uint16_t d;
    memcpy(&d, p + 208, sizeof d);
    __m512i scales = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(p + 192)));
    n.scales = _mm512_cvtepi32_ps(scales) * _mm512_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(d)));
    const __m512i nibble = _mm512_set1_epi8(15), upper = _mm512_set1_epi8(48);
    const __m512i up = _mm512_setr_epi64(4, 4, 4, 4, 2, 2, 2, 2), down = _mm512_setr_epi64(0, 0, 0, 0, 2, 2, 2, 2);
#pragma GCC unroll 2
    for (int g = 0; g < 2; g++) {
        __m512i q = _mm512_loadu_si512(p + 64 * g);
        __m512i two = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(const void *)(p + 128 + 32 * g)));
        __m512i low = _mm512_and_si512(_mm512_sllv_epi64(two, up), upper);
        __m512i high = _mm512_and_si512(_mm512_srlv_epi64(two, down), upper);
        n.q[g][0] = _mm512_or_si512(low, _mm512_and_si512(q, nibble));
        n.q[g][1] = _mm512_or_si512(high, _mm512_and_si512(_mm512_srli_epi16(q, 4), nibble));
    }
    return n;
}

LANE __m512 add_sixths(__m512 sum, const struct sixths *n, const struct group *x) {
    const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    const __m512i four = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    __m512 of_x = _mm512_castps256_ps512(both_of(x[0].block_scales, x[1].block_scales));
    __m512 scales = n->scales * _mm512_permutexvar_ps(twice, of_x);
#pragma GCC unroll 4
    for (int pair = 0; pair < 4; pair++) {
        const struct group *g = x + pair / 2;
        __m512i whole = _mm512_srai_epi32(_mm512_load_si512(g->offsets[pair % 2]), 2); /* -32 sum x */
        whole = _mm512_dpbusd_epi32(whole, n->q[pair / 2][pair % 2], _mm512_load_si512(g->terms[pair % 2]));
        __m512 spread = _mm512_permutexvar_ps(_mm512_add_epi32(four, _mm512_set1_epi32(4 * pair)), scales);
        sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), spread, sum);
    }
    return sum;
}

/* ---- rows ---- */

enum kind { KIND_Q4_0, KIND_Q4_1, KIND_Q5_0, KIND_Q5_1, KIND_Q8_0, KIND_Q4_K, KIND_Q5_K, KIND_Q6_K };
/* What is taken at once: four blocks of 32, or one of 256. */
LANE size_t step_terms(enum kind kind) { return kind >= KIND_Q4_K ? 256 : GROUP; }
LANE size_t step_bytes(enum kind kind) {
    const size_t bytes[] = {4 * 18, 4 * 20, 4 * 22, 4 * 24, 4 * 34, 144, 176, 210};
    return bytes[kind];
}

struct dots {
    float *out;
    size_t ldo;
    const uint8_t *rows;
    size_t row_bytes;
    const struct group *x;
    size_t groups, n; /* of a row of x; terms */
};

#define ADD_EACH(add)                                                                                                  \
    _Pragma("GCC unroll 4") for (size_t t = 0; t < T; t++) sums[r * T + t] = add(sums[r * T + t], &n, x + t * a->groups)

/* One step, or `blocks` of four at the end of a row, of R rows with T of x. */
LANE void add_group(__m512 sums[SUMS], const struct dots *a, enum kind kind, size_t R, size_t T, const uint8_t *rows,
                    const struct group *x, size_t blocks) {
    static const struct places *const places[] = {&places_q4_0, &places_q4_1, &places_q5_0, &places_q5_1};
#pragma GCC unroll 4
    for (size_t r = 0; r < R; r++) {
        const uint8_t *p = rows + r * a->row_bytes;
        prefetch(p, step_bytes(kind), kind == KIND_Q8_0);
        if (kind == KIND_Q6_K) {
            struct sixths n = read_sixths(p);
            ADD_EACH(add_sixths);
        } else if (kind >= KIND_Q4_K) {
            struct parts n = read_parts(p, kind == KIND_Q5_K);
            ADD_EACH(add_parts);
        } else if (kind == KIND_Q8_0) {
            struct bytes n = read_bytes(p, blocks);
            ADD_EACH(add_bytes);
        } else {
            struct nibbles n = read_nibbles(p, places[kind], kind % 2, kind >= KIND_Q5_0, blocks);
            ADD_EACH(add_nibbles);
        }
    }
}

LANE __m128 fold(__m512 v) {
    __m256 eight = _mm512_castps512_ps256(v) + _mm512_extractf32x8_ps(v, 1);
    return _mm256_castps256_ps128(eight) + _mm256_extractf128_ps(eight, 1);
}

/* Rows r0 .. r0 + R with x t0 .. t0 + T. */
LANE void tile(const struct dots *a, enum kind kind, size_t r0, size_t R, size_t t0, size_t T) {
    const uint8_t *rows = a->rows + r0 * a->row_bytes;
    const struct group *x = a->x + t0 * a->groups;
    __m512 sums[SUMS];
    float totals[SUMS];
#pragma GCC unroll 4
    for (size_t i = 0; i < SUMS; i++) sums[i] = _mm512_setzero_ps();
    for (size_t n = step_terms(kind); n <= a->n; n += step_terms(kind), rows += step_bytes(kind)) {
        add_group(sums, a, kind, R, T, rows, x, BLOCKS);
        x += step_terms(kind) / GROUP;
    }
    if (kind < KIND_Q4_K && a->n % GROUP) add_group(sums, a, kind, R, T, rows, x, a->n % GROUP / BLOCK);
    __m128 folded[SUMS];
#pragma GCC unroll 4
    for (size_t i = 0; i < SUMS; i++) folded[i] = fold(sums[i]);
    _mm_storeu_ps(totals, _mm_hadd_ps(_mm_hadd_ps(folded[0], folded[1]), _mm_hadd_ps(folded[2], folded[3])));
#pragma GCC unroll 4
    for (size_t i = 0; i < R * T; i++) a->out[(t0 + i % T) * a->ldo + r0 + i / T] = totals[i];
}

#include "core/kernels/rounded_rows.h"

#define DOTS(type)                                                                                                     \
    static void dots_##type(float *out, size_t ldo, const void *rows, size_t row_bytes, size_t n_rows,                 \
                            const void *rounded, size_t T, size_t n) {                                                 \
        struct dots a = {out, ldo, rows, row_bytes, rounded, (n + GROUP - 1) / GROUP, n};                              \
        dots(&a, KIND_##type, n_rows, T);                                                                              \
    }
DOTS(Q4_0)
DOTS(Q4_1)
DOTS(Q5_0)
DOTS(Q5_1)
DOTS(Q8_0)
DOTS(Q4_K)
DOTS(Q5_K)
DOTS(Q6_K)

const struct rounded rounded_avx512vnni = {
    .bytes = rounded_bytes,
    .round = round_row,
    .dots = {[BLOCK_Q4_0] = dots_Q4_0,
             [BLOCK_Q4_1] = dots_Q4_1,
             [BLOCK_Q5_0] = dots_Q5_0,
             [BLOCK_Q5_1] = dots_Q5_1,
             [BLOCK_Q8_0] = dots_Q8_0,
             [BLOCK_Q4_K] = dots_Q4_K,
             [BLOCK_Q5_K] = dots_Q5_K,
             [BLOCK_Q6_K] = dots_Q6_K},
};

#endif
