#include "tests/tile_emulation.h"

#if defined(__x86_64__)

#include <immintrin.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/kernels/tables.h"

struct tile_shapes;
static void configure(const struct tile_shapes *shapes);
static void release(void);
static void zero(int t);
static void load(int t, const void *from, size_t stride);
static void store(int t, void *to, size_t stride);
static void dot(int c, int a, int b);

/* In integers, and so apart from the instruction that amx.c takes. */
static __m512i narrow_half(__m512 x) {
    __m512i bits = _mm512_castps_si512(x), magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
    __mmask16 nan = _mm512_cmpgt_epi32_mask(magnitude, _mm512_set1_epi32(0x7f800000));
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    return _mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16);
}
static __m512i narrow(__m512 low, __m512 high) {
    __m256i a = _mm512_cvtepi32_epi16(narrow_half(low)), b = _mm512_cvtepi32_epi16(narrow_half(high));
    return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
}

#define TILE_CONFIGURE(shapes) configure(shapes)
#define TILE_RELEASE() release()
#define TILE_ZERO(t) zero(t)
#define TILE_LOAD(t, from, stride) load(t, from, stride)
#define TILE_STORE(t, to, stride) store(t, to, stride)
#define TILE_DOT(c, a, b) dot(c, a, b)
#define PRODUCT_NAME product_emulated
#define PRODUCT_TABLE kernels_avx512
extern const struct product product_emulated;
#include "core/kernels/amx_product.h"

enum { TILES = 8, ROWS = 16, ROW_BYTES = 64 };
/* Of each thread its own, as in the processor. */
static _Thread_local int in_use;
static _Thread_local struct tile {
    size_t rows, row_bytes;
    unsigned char bytes[ROWS][ROW_BYTES];
} tiles[TILES];

static void require(int condition, const char *what) {
    if (condition) return;
    fprintf(stderr, "tile emulation: %s\n", what);
    abort();
}

/* LDTILECFG */
static void configure(const struct tile_shapes *shapes) {
    static const uint8_t nothing[sizeof shapes->reserved];
    require(shapes->palette == 1 && shapes->start_row == 0, "palette");
    require(memcmp(shapes->reserved, nothing, sizeof nothing) == 0, "reserved bytes of the configuration");
    for (size_t t = 0; t < 16; t++) {
        size_t rows = shapes->rows[t], row_bytes = shapes->row_bytes[t];
        require(t < TILES ? rows <= ROWS && row_bytes <= ROW_BYTES : rows == 0 && row_bytes == 0, "shape of a tile");
        require((rows == 0) == (row_bytes == 0), "half a shape");
        if (t >= TILES) continue;
        memset(&tiles[t], 0, sizeof tiles[t]);
        tiles[t].rows = rows;
        tiles[t].row_bytes = row_bytes;
    }
    in_use = 1;
}

static void release(void) {
    memset(tiles, 0, sizeof tiles);
    in_use = 0;
}

static struct tile *tile_at(int t) {
    require(in_use, "no configuration");
    require(t >= 0 && t < TILES && tiles[t].rows, "a tile without a shape");
    return &tiles[t];
}

static void zero(int t) { memset(tile_at(t)->bytes, 0, sizeof tiles[t].bytes); }

static void load(int t, const void *from, size_t stride) {
    struct tile *tile = tile_at(t);
    memset(tile->bytes, 0, sizeof tile->bytes);
    for (size_t i = 0; i < tile->rows; i++)
        memcpy(tile->bytes[i], (const unsigned char *)from + i * stride, tile->row_bytes);
}

static void store(int t, void *to, size_t stride) {
    const struct tile *tile = tile_at(t);
    for (size_t i = 0; i < tile->rows; i++) memcpy((unsigned char *)to + i * stride, tile->bytes[i], tile->row_bytes);
}

static float without_subnormal(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x; }

static float factor_at(const unsigned char *p) {
    uint32_t bits = (uint32_t)p[0] << 16 | (uint32_t)p[1] << 24;
    float value;
    memcpy(&value, &bits, sizeof value);
    return without_subnormal(value);
}

/* TDPBF16PS, after the pseudocode in the manual of the instructions: see the head of amx_product.h. */
static float dot_of(const struct tile *a, const struct tile *b, size_t i, size_t j) {
    float even = 0, odd = 0;
    for (size_t p = 0; p < a->row_bytes / 4; p++) {
        const unsigned char *x = &a->bytes[i][4 * p], *w = &b->bytes[p][4 * j];
        even = without_subnormal(fmaf(factor_at(x), factor_at(w), even));
        odd = without_subnormal(fmaf(factor_at(x + 2), factor_at(w + 2), odd));
    }
    return without_subnormal(even + odd);
}

static void dot(int c, int a, int b) {
    struct tile *sums = tile_at(c);
    const struct tile *left = tile_at(a), *right = tile_at(b);
    require(a != b && b != c && a != c, "a tile twice in one instruction");
    require(left->rows == sums->rows && right->row_bytes == sums->row_bytes && left->row_bytes / 4 == right->rows,
            "shapes that do not fit");
    for (size_t i = 0; i < sums->rows; i++) {
        for (size_t j = 0; j < sums->row_bytes / 4; j++) {
            float sum;
            memcpy(&sum, &sums->bytes[i][4 * j], sizeof sum);
            sum = without_subnormal(without_subnormal(sum) + dot_of(left, right, i, j));
            memcpy(&sums->bytes[i][4 * j], &sum, sizeof sum);
        }
    }
}

const struct product *tile_emulation_product(void) { return &product_emulated; }
int tile_emulation_released(void) { return !in_use; }

#else

const struct product *tile_emulation_product(void) { return NULL; }
int tile_emulation_released(void) { return 1; }

#endif
