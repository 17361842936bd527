/* How the tables of rounded products walk over rows and tokens: all of `struct dots` in tiles. Included by the files that
 * define struct dots, enum kind, tile(), LANE, and ROWS, rows that stay in the first cache, and SUMS, rows times tokens
 * of a tile. */
#ifndef CORE_KERNELS_ROUNDED_ROWS_H
#define CORE_KERNELS_ROUNDED_ROWS_H

/* Rows r0 .. r1 with x t0 .. t0 + T, T of which go together: 1, 2 or 4. */
LANE void tiles(const struct dots *a, enum kind kind, size_t r0, size_t r1, size_t t0, size_t T) {
    for (; r1 - r0 >= SUMS / T; r0 += SUMS / T) tile(a, kind, r0, SUMS / T, t0, T);
    for (; r0 < r1; r0++)
        for (size_t t = t0; t < t0 + T; t++) tile(a, kind, r0, 1, t, 1);
}

LANE void dots(const struct dots *a, enum kind kind, size_t n_rows, size_t T) {
    for (size_t r0 = 0; r0 < n_rows; r0 += ROWS) {
        size_t r1 = n_rows - r0 < ROWS ? n_rows : r0 + ROWS, t = 0;
        for (; T - t >= 4; t += 4) tiles(a, kind, r0, r1, t, 4);
        for (; T - t >= 2; t += 2) tiles(a, kind, r0, r1, t, 2);
        for (; t < T; t++) tiles(a, kind, r0, r1, t, 1);
    }
}

#endif
