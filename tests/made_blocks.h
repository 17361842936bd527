/* Rows of blocks made up from random bits. */
#ifndef TESTS_MADE_BLOCKS_H
#define TESTS_MADE_BLOCKS_H

#include <string.h>

#include "core/base/random.h"
#include "core/kernels/blocks.h"

static const enum block_type made_types[] = {BLOCK_F32,  BLOCK_F16,  BLOCK_BF16, BLOCK_Q4_0, BLOCK_Q4_1, BLOCK_Q5_0,
                                             BLOCK_Q5_1, BLOCK_Q8_0, BLOCK_Q4_K, BLOCK_Q5_K, BLOCK_Q6_K};
enum { MADE_TYPES = sizeof made_types / sizeof *made_types };

static uint64_t made_index;
static inline uint32_t made_bits(void) { return (uint32_t)random_u64(1, made_index++); }
static inline float made_float(void) { return 2 * random_uniform(2, made_index++) - 1; }

static inline void made_half(unsigned char *p, float value) {
    uint16_t half = half_from_float(value);
    memcpy(p, &half, 2);
}

/* Any bytes are a valid block but for halves that are not finite: those are put in. scale 0: all d are 0. */
static inline void made_row(unsigned char *row, enum block_type type, size_t n, float scale) {
    const struct block_format *format = block_format_get(type);
    size_t bytes = block_row_bytes(type, n);
    for (size_t i = 0; i < bytes; i++) row[i] = (unsigned char)made_bits();
    for (size_t b = 0; b < n / format->elements; b++) {
        unsigned char *block = row + b * format->bytes;
        float d = scale * ((float)(made_bits() % 2000) / 4000 - 0.25f);
        float m = scale * ((float)(made_bits() % 2000) / 4000 - 0.25f);
        if (type == BLOCK_F32) memcpy(block, &d, 4);
        if (type == BLOCK_F16) made_half(block, d);
        if (type == BLOCK_BF16) memcpy(block, (unsigned char *)&d + 2, 2);
        if (format->elements == 1) continue;
        made_half(block + (type == BLOCK_Q6_K ? 208 : 0), d);
        int has_minimum = type == BLOCK_Q4_1 || type == BLOCK_Q5_1 || type == BLOCK_Q4_K || type == BLOCK_Q5_K;
        if (has_minimum) made_half(block + 2, m);
    }
}

#endif
