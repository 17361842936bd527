#include "core/kernels/grids.h"

#include "core/kernels/blocks_k.h"

#include <assert.h>
#include <string.h>

/* Blocks of 32 with one part: d, then m if there is one, then fifth bits, then nibbles or bytes. */
struct simple {
    uint8_t freedom, most, zero; /* x = d (q - zero), or d q + m */
    uint8_t fifth, nibbles;      /* where they begin; 0: there are none */
};
static const struct simple simples[BLOCK_TYPE_LIMIT] = {
    [BLOCK_Q4_0] = {1, 15, 8, 0, 2},  [BLOCK_Q4_1] = {2, 15, 0, 0, 4},    [BLOCK_Q5_0] = {1, 31, 16, 2, 6},
    [BLOCK_Q5_1] = {2, 31, 0, 4, 8},  [BLOCK_Q8_0] = {1, 254, 127, 0, 0}, /* its -128 is never written */
};

static float load_half(const uint8_t *p) { return half_to_float((uint16_t)(p[0] | p[1] << 8)); }
static void store_half(uint8_t *p, float value) {
    uint16_t half = half_from_float(value);
    p[0] = (uint8_t)half;
    p[1] = (uint8_t)(half >> 8);
}

static int is_k(enum block_type type) { return type == BLOCK_Q4_K || type == BLOCK_Q5_K || type == BLOCK_Q6_K; }

int grid_has(enum block_type type) { return is_k(type) || simples[type].freedom > 0; }

int grid_freedom(enum block_type type, int *zero) {
    *zero = simples[type].zero;
    return simples[type].freedom;
}

/* ---- blocks of 32 ---- */

static void read_simple(const struct simple *s, const uint8_t *block, struct grid *grid, uint8_t *q) {
    *grid = (struct grid){.parts = 1, .part = 32, .most = s->most, .scale = {load_half(block)}};
    grid->low[0] = s->freedom == 2 ? load_half(block + 2) : -(float)s->zero * grid->scale[0];
    for (int i = 0; i < 32; i++) {
        if (!s->nibbles) { /* -128, of other programs' files, is off the grid: -127 is its nearest */
            int value = (int8_t)block[2 + i] + s->zero;
            q[i] = (uint8_t)(value > 0 ? value : 0);
            continue;
        }
        int fifth = s->fifth ? block[s->fifth + i / 8] >> i % 8 & 1 : 0;
        q[i] = (uint8_t)((block[s->nibbles + i % 16] >> i / 16 * 4 & 15) | fifth << 4);
    }
}

static void write_simple(const struct simple *s, uint8_t *block, const uint8_t *q) {
    if (!s->nibbles)
        for (int i = 0; i < 32; i++) block[2 + i] = (uint8_t)(q[i] - s->zero);
    for (int i = 0; i < 16 && s->nibbles; i++) block[s->nibbles + i] = (uint8_t)((q[i] & 15) | q[i + 16] << 4);
    if (!s->fifth) return;
    memset(block + s->fifth, 0, 4);
    for (int i = 0; i < 32; i++) block[s->fifth + i / 8] |= (uint8_t)(q[i] >> 4 << i % 8);
}

void grid_set(enum block_type type, void *block, float scale, float low) {
    uint8_t *bytes = block;
    assert(simples[type].freedom > 0);
    store_half(bytes, scale);
    if (simples[type].freedom == 2) store_half(bytes + 2, low);
}

/* ---- blocks of 256 ---- */

enum { K_SCALES = 4, K_FIFTH = 16, Q4_NIBBLES = 16, Q5_NIBBLES = 48, SIX_HIGH = 128, SIX_SCALES = 192, SIX_D = 208 };

static void read_k(const uint8_t *block, int five, struct grid *grid, uint8_t *q) {
    const uint8_t *nibbles = block + (five ? Q5_NIBBLES : Q4_NIBBLES);
    *grid = (struct grid){.parts = 8, .part = 32, .most = five ? 31 : 15};
    for (int p = 0; p < 8; p++) {
        int scale, minimum;
        k_scale_and_minimum(block + K_SCALES, p, &scale, &minimum);
        grid->scale[p] = load_half(block) * (float)scale;
        grid->low[p] = -(load_half(block + 2) * (float)minimum);
        for (int i = 0; i < 32; i++) {
            int fifth = five ? block[K_FIFTH + i] >> p & 1 : 0;
            *q++ = (uint8_t)((nibbles[p / 2 * 32 + i] >> p % 2 * 4 & 15) | fifth << 4);
        }
    }
}

static void read_six(const uint8_t *block, struct grid *grid, uint8_t *q) {
    *grid = (struct grid){.parts = 16, .part = 16, .most = 63};
    for (int p = 0; p < 16; p++) {
        grid->scale[p] = load_half(block + SIX_D) * (float)(int8_t)block[SIX_SCALES + p];
        grid->low[p] = -32 * grid->scale[p];
    }
    for (int i = 0; i < 256; i++) {
        int half = i / 128, k = i % 128 / 32, low = block[half * 64 + k % 2 * 32 + i % 32] >> k / 2 * 4 & 15;
        q[i] = (uint8_t)(low | (block[SIX_HIGH + half * 32 + i % 32] >> 2 * k & 3) << 4);
    }
}

/* ---- all ---- */

void grid_read(enum block_type type, const void *block, struct grid *grid, uint8_t *q) {
    if (type == BLOCK_Q6_K) read_six(block, grid, q);
    else if (is_k(type)) read_k(block, type == BLOCK_Q5_K, grid, q);
    else read_simple(&simples[type], block, grid, q);
}

void grid_write(enum block_type type, void *block, const uint8_t *q) {
    uint8_t *bytes = block;
    switch (type) {
    case BLOCK_Q4_K: k_store_nibbles(bytes + Q4_NIBBLES, q); break;
    case BLOCK_Q5_K:
        k_store_nibbles(bytes + Q5_NIBBLES, q);
        k_store_fifth(bytes + K_FIFTH, q);
        break;
    case BLOCK_Q6_K: k_store_six(bytes, bytes + SIX_HIGH, q); break;
    default: write_simple(&simples[type], bytes, q);
    }
}
