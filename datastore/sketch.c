/* What a sketch is, exactly. docs/formats.md says the same, and neither may ever change: sketches are kept.
 *
 * The text counts up to its last code point that ends within 16384 bytes. Its shingles are all runs of five
 * consecutive code points; a shorter text is a shingle by itself. x(s) is SipHash-2-4 under the key of the UTF-8 bytes
 * of shingle s, as a number of 64 bits. Arithmetic is modulo 2^64, and mix(z) is splitmix64's output from the state z
 * (random_mix). For i = 0 ... 63
 *
 *     a(i) = mix(2 i) with its lowest bit set,  b(i) = mix(2 i + 1)
 *     m(i) = the minimum of a(i) x(s) + b(i) over all shingles s
 *
 * minimum[i] is m(i) modulo 256. For j = 0 ... 7, band[j] is SipHash-2-4 under the key of 33 bytes, j and then
 * m(4 j), ..., m(4 j + 3), 8 bytes little-endian each, shifted right by one bit.
 *
 * Of two texts with Jaccard similarity J, each minimum is equal with probability J + (1 - J) / 256, and at least one
 * band with 1 - (1 - J^4)^8: 0.89 at 0.7, 0.985 at 0.8, 0.9998 at 0.9, 0.00005 at 0.05. Bands take half of the minima:
 * more rows a band would miss near-duplicates, fewer would multiply the candidates, and more bands are rows of an
 * index. All minima make the estimate, whose error is what most near-duplicates are missed by. */
#include "datastore/sketch.h"

#include "core/base/random.h"

#include <sodium.h>

enum {
    TEXT_MAX = 16384, /* bytes that count */
    SHINGLE = 5,      /* code points */
    BAND_ROWS = 4,
    CHUNK = 256, /* hashes of shingles at a time: 2 KiB, which stay in L1 while all permutations pass over them */
    TOGETHER = 4 /* permutations that share the load of a hash, and fill the latency of one another's minimum */
};
_Static_assert(SKETCH_KEY_BYTES == crypto_shorthash_siphash24_KEYBYTES, "the key of SipHash");
_Static_assert(SKETCH_HASHES >= BAND_ROWS * SKETCH_BANDS, "minima for all bands");
_Static_assert(TOGETHER == 4 && SKETCH_HASHES % TOGETHER == 0, "as take_minima is written");

static uint64_t siphash(const void *data, size_t n, const unsigned char *key) {
    unsigned char digest[crypto_shorthash_siphash24_BYTES];
    crypto_shorthash_siphash24(digest, data, n, key);
    uint64_t value = 0;
    for (int i = 0; i < 8; i++) value |= (uint64_t)digest[i] << (8 * i);
    return value;
}

/* ---- shingles ---- */

static int is_inside(char byte) { return ((unsigned char)byte & 0xc0) == 0x80; }

/* Where the code point after the one at `at` begins. */
static size_t next(const char *text, size_t n, size_t at) {
    while (++at < n && is_inside(text[at])) continue;
    return at;
}

struct shingles {
    const char *text;
    size_t n, from, to; /* the next one; from == n: none is left */
};

static struct shingles shingles_of(const char *text, size_t n) {
    if (n > TEXT_MAX) {
        n = TEXT_MAX;
        while (n > 0 && is_inside(text[n])) n--;
    }
    struct shingles all = {.text = text, .n = n};
    for (int i = 0; i < SHINGLE && all.to < n; i++) all.to = next(text, n, all.to);
    return all;
}

/* Hashes of the next ones, at most CHUNK; 0: none is left. */
static size_t hash_shingles(struct shingles *all, const unsigned char *key, uint64_t hashes[CHUNK]) {
    size_t count = 0;
    while (count < CHUNK && all->from < all->n) {
        hashes[count++] = siphash(all->text + all->from, all->to - all->from, key);
        if (all->to == all->n) {
            all->from = all->n;
            break;
        }
        all->from = next(all->text, all->n, all->from);
        all->to = next(all->text, all->n, all->to);
    }
    return count;
}

/* ---- minima ---- */

struct permutations {
    uint64_t a[SKETCH_HASHES], b[SKETCH_HASHES];
};

static inline uint64_t lesser(uint64_t a, uint64_t b) { return a < b ? a : b; }

static void take_minima(const uint64_t *hashes, size_t count, const struct permutations *by,
                        uint64_t minima[SKETCH_HASHES]) {
    for (size_t i = 0; i < SKETCH_HASHES; i += TOGETHER) {
        const uint64_t *a = by->a + i, *b = by->b + i;
        uint64_t a0 = a[0], a1 = a[1], a2 = a[2], a3 = a[3], b0 = b[0], b1 = b[1], b2 = b[2], b3 = b[3];
        uint64_t m0 = minima[i], m1 = minima[i + 1], m2 = minima[i + 2], m3 = minima[i + 3];
        for (size_t s = 0; s < count; s++) {
            uint64_t x = hashes[s];
            m0 = lesser(a0 * x + b0, m0);
            m1 = lesser(a1 * x + b1, m1);
            m2 = lesser(a2 * x + b2, m2);
            m3 = lesser(a3 * x + b3, m3);
        }
        minima[i] = m0;
        minima[i + 1] = m1;
        minima[i + 2] = m2;
        minima[i + 3] = m3;
    }
}

static int64_t band_hash(size_t band, const uint64_t *minima, const unsigned char *key) {
    unsigned char bytes[1 + 8 * BAND_ROWS] = {(unsigned char)band};
    for (size_t i = 0; i < 8 * BAND_ROWS; i++)
        bytes[1 + i] = (unsigned char)(minima[BAND_ROWS * band + i / 8] >> (8 * (i % 8)));
    return (int64_t)(siphash(bytes, sizeof bytes, key) >> 1);
}

void sketch_make(const char *text, size_t n, const unsigned char key[SKETCH_KEY_BYTES], struct sketch *out) {
    struct permutations by;
    uint64_t minima[SKETCH_HASHES], hashes[CHUNK];
    for (size_t i = 0; i < SKETCH_HASHES; i++) {
        by.a[i] = random_mix(2 * i) | 1;
        by.b[i] = random_mix(2 * i + 1);
        minima[i] = UINT64_MAX;
    }
    struct shingles all = shingles_of(text, n);
    for (size_t count; (count = hash_shingles(&all, key, hashes)) > 0;) take_minima(hashes, count, &by, minima);
    for (size_t i = 0; i < SKETCH_HASHES; i++) out->minimum[i] = (uint8_t)minima[i];
    for (size_t i = 0; i < SKETCH_BANDS; i++) out->band[i] = band_hash(i, minima, key);
}

double sketch_similarity(const struct sketch *a, const struct sketch *b) {
    int equal = 0;
    for (size_t i = 0; i < SKETCH_HASHES; i++) equal += a->minimum[i] == b->minimum[i];
    /* one of 256 is equal by chance */
    double similarity = ((double)equal / SKETCH_HASHES - 1 / 256.0) / (1 - 1 / 256.0);
    return similarity > 0 ? similarity : 0;
}
