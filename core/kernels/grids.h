/* The grid behind a quantized block: element i of part p is scale[p] q_i + low[p], 0 <= q_i <= most.
 *
 * For rounding that is smarter than a format's own quantizer: it reads a block's grid, chooses q, and writes it back.
 * Layouts: blocks.c, blocks_k.c. */
#ifndef CORE_KERNELS_GRIDS_H
#define CORE_KERNELS_GRIDS_H

#include "core/kernels/blocks.h"

enum { GRID_PARTS_MAX = 16, GRID_ELEMENTS_MAX = 256 };
struct grid {
    size_t parts, part; /* how many, elements of each */
    int most;
    float scale[GRID_PARTS_MAX], low[GRID_PARTS_MAX];
};

/* Blocks of this type have a grid: not those of F32, F16, BF16. */
int grid_has(enum block_type type);
/* A block's grid and its q (elements). */
void grid_read(enum block_type type, const void *block, struct grid *grid, uint8_t *q);
/* The block's q, on the grid that it has. */
void grid_write(enum block_type type, void *block, const uint8_t *q);

/* 0: the parts share scales that are quantized themselves (the K types), so that one cannot be set alone. 1: the scale
 * can be set, and low is -zero times it. 2: both can. */
int grid_freedom(enum block_type type, int *zero);
/* Sets what can be set of a block with one part, rounded to halves; the rest of the block stays. */
void grid_set(enum block_type type, void *block, float scale, float low);

#endif
