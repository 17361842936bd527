/* A sketch of a text, for finding its near-duplicates: MinHash over 5-grams of code points, banded for lookup
 * (Broder, "On the resemblance and containment of documents", 1997), of which 8 bits a minimum are kept (Li and
 * König, "b-Bit Minwise Hashing", 2010). Knows no SQL. */
#ifndef DATASTORE_SKETCH_H
#define DATASTORE_SKETCH_H

#include <stddef.h>
#include <stdint.h>

enum { SKETCH_HASHES = 64, SKETCH_BANDS = 8, SKETCH_KEY_BYTES = 16 };

struct sketch {
    uint8_t minimum[SKETCH_HASHES]; /* low bits of the minima: what two sketches are compared by */
    int64_t band[SKETCH_BANDS];     /* one in common: worth comparing; never negative; a band's number is part of its
                                       hash, so that equal numbers mean equal bands */
};

/* text: normalised UTF-8 (store_prompt_normalise), not empty; of a long one the first 16 KiB count. The hashes
 * are keyed: without the key a sketch tells which texts resemble each other, and nothing of what they say.
 * Specified at the top of sketch.c and in docs/formats.md: never to change. */
void sketch_make(const char *text, size_t n, const unsigned char key[SKETCH_KEY_BYTES], struct sketch *out);
/* Estimated Jaccard similarity, 0 to 1, of sketches of one key. Its standard deviation is at most 0.063, and 0.05
 * at 0.8. */
double sketch_similarity(const struct sketch *a, const struct sketch *b);
#define SKETCH_NEAR 0.6 /* from here on two texts are near-duplicates */

#endif
