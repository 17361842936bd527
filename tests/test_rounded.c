/* Few rows rounded to bytes (struct rounded) of every kernel table that this CPU has, against the scalar one; and the
 * products of few rows that use them (core/ops/linear.c). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/ops/ops.h"
#include "tests/made_blocks.h"

static const struct kernels *scalar(void) {
    const struct kernels *const *table = kernels_all();
    while (strcmp((*table)->name, "scalar") != 0) table++;
    return *table;
}

static void fill(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = made_float();
}

/* Rows of x, rounded by a table, in memory of just the size. */
static void *rounded_rows(const struct rounded *rounded, const float *x, size_t T, size_t n) {
    size_t bytes = rounded->bytes(n);
    assert_int_equal(bytes % 64, 0);
    unsigned char *rows = aligned_alloc(64, T * bytes + 64);
    assert_non_null(rows);
    memset(rows, 0xff, T * bytes);
    for (size_t t = 0; t < T; t++) rounded->round(rows + t * bytes, x + t * n, n);
    return rows;
}

/* Blocks at an odd address, which end where the memory does: a sanitizer sees a read past the end. */
static unsigned char *blocks_of(unsigned char **memory, enum block_type type, size_t rows, size_t n, size_t gap) {
    size_t bytes = block_row_bytes(type, n) + gap;
    *memory = malloc(rows * bytes - gap + 1);
    assert_non_null(*memory);
    for (size_t r = 0; r < rows; r++) made_row(*memory + 1 + r * bytes, type, n, 1);
    return *memory + 1;
}

static void each_table(void (*check)(const struct kernels *table, enum block_type type)) {
    for (const struct kernels *const *table = kernels_all(); *table; table++)
        for (size_t i = 0; i < MADE_TYPES && (*table)->supported() && (*table)->rounded; i++)
            if ((*table)->rounded->dots[made_types[i]]) check(*table, made_types[i]);
}

/* ---- rounding: a matrix that picks one term each, so that a product is one rounded term ---- */

static void check_rounding(const struct kernels *table, enum block_type type) {
    enum { N = 32 * 7, BLOCK = 34 };
    static unsigned char unit[N][N / 32 * BLOCK];
    static const float spans[] = {1, 1e-3f, 3e4f, 1e-36f, 1e30f, 0, 5e-35f};
    float x[N], got[N], expected[N];
    if (type != BLOCK_Q8_0) return;
    memset(unit, 0, sizeof unit);
    for (size_t i = 0; i < N; i++) {
        for (size_t b = 0; b < N / 32; b++) made_half(unit[i] + b * BLOCK, 1);
        unit[i][i / 32 * BLOCK + 2 + i % 32] = 1;
    }
    for (int round = 0; round < 20; round++) {
        for (size_t i = 0; i < N; i++) x[i] = spans[i / 32] * made_float();
        void *rows = rounded_rows(table->rounded, x, 1, N), *reference = rounded_rows(scalar()->rounded, x, 1, N);
        table->rounded->dots[type](got, N, unit, sizeof unit[0], N, rows, 1, N);
        scalar()->rounded->dots[type](expected, N, unit, sizeof unit[0], N, reference, 1, N);
        for (size_t i = 0; i < N; i++) {
            float most = 0;
            for (size_t j = i / 32 * 32; j < i / 32 * 32 + 32; j++) most = fmaxf(most, fabsf(x[j]));
            assert_true(fabs((double)expected[i] - (double)x[i]) <= (double)most / 254 * 1.0001 + 1e-35);
            if (got[i] != expected[i])
                fail_msg("%s term %zu: %.9g, not %.9g of %.9g", table->name, i, got[i], expected[i], x[i]);
        }
        free(rows);
        free(reference);
    }
}

/* ---- products ---- */

static void check_shape(const struct kernels *table, enum block_type type, size_t rows, size_t n, size_t T) {
    size_t gap = rows % 3, bytes = block_row_bytes(type, n) + gap, ldo = rows + 2;
    unsigned char *memory, *blocks = blocks_of(&memory, type, rows, n, gap);
    float *x = malloc(T * n * sizeof *x), *got = malloc(T * ldo * sizeof *got), *w = malloc(n * sizeof *w);
    float *expected = malloc(T * ldo * sizeof *expected), one;
    fill(x, T * n);
    for (size_t i = 0; i < T * ldo; i++) got[i] = -77;
    void *rounded = rounded_rows(table->rounded, x, T, n), *reference = rounded_rows(scalar()->rounded, x, T, n);
    table->rounded->dots[type](got, ldo, blocks, bytes, rows, rounded, T, n);
    scalar()->rounded->dots[type](expected, ldo, blocks, bytes, rows, reference, T, n);
    for (size_t t = 0; t < T; t++) {
        for (size_t r = 0; r < rows; r++) {
            double magnitude = 0;
            scalar()->dequantize[type](w, blocks + r * bytes, n);
            for (size_t i = 0; i < n; i++) magnitude += fabs((double)w[i] * (double)x[t * n + i]);
            /* the magnitude of x is that before rounding: 1 % more than after is far from what a fault would do */
            if (!(fabs((double)got[t * ldo + r] - (double)expected[t * ldo + r]) <= 4e-6 * magnitude))
                fail_msg("%s %s rows %zu n %zu T %zu: row %zu of x %zu is %.9g, not %.9g", table->name,
                         block_type_name(type), rows, n, T, r, t, got[t * ldo + r], expected[t * ldo + r]);
            table->rounded->dots[type](&one, 1, blocks + r * bytes, bytes, 1,
                                       (unsigned char *)rounded + t * table->rounded->bytes(n), 1, n);
            assert_memory_equal(&one, &got[t * ldo + r], sizeof one);
        }
        assert_true(got[t * ldo + rows] == -77 && got[t * ldo + rows + 1] == -77);
    }
    free(memory);
    free(x);
    free(w);
    free(got);
    free(expected);
    free(rounded);
    free(reference);
}

static void check_products(const struct kernels *table, enum block_type type) {
    size_t least = block_format_get(type)->elements > 32 ? block_format_get(type)->elements : 32;
    static const size_t blocks[] = {1, 2, 3, 4, 5, 7, 18};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        for (size_t rows = 1; rows <= 11; rows += i < 4 ? 1 : 5)
            for (size_t T = 1; T <= 8; T += rows % 2 ? 1 : 3) check_shape(table, type, rows, blocks[i] * least, T);
    check_shape(table, type, 67, 6 * 256, 5);
}

static void check_not_finite(const struct kernels *table, enum block_type type) {
    enum { N = 1280, ROWS = 5 };
    static const float wrong[] = {NAN, INFINITY, -INFINITY, -NAN};
    unsigned char *memory, *blocks = blocks_of(&memory, type, ROWS, N, 0);
    float x[N], out[ROWS];
    for (size_t i = 0; i < 4; i++)
        for (size_t at = 0; at < N; at += 67) {
            fill(x, N);
            x[at] = wrong[i];
            void *rounded = rounded_rows(table->rounded, x, 1, N);
            table->rounded->dots[type](out, ROWS, blocks, block_row_bytes(type, N), ROWS, rounded, 1, N);
            for (size_t r = 0; r < ROWS; r++)
                if (isfinite(out[r]))
                    fail_msg("%s %s: %g at %zu made %g", table->name, block_type_name(type), wrong[i], at, out[r]);
            free(rounded);
        }
    free(memory);
}

static void test_rounding(void **state) { (void)state, each_table(check_rounding); }
static void test_products(void **state) { (void)state, each_table(check_products); }
static void test_not_finite(void **state) { (void)state, each_table(check_not_finite); }

static void test_narrow(void **state) {
    (void)state;
    enum { ROWS = 23, R = 19 };
    float b[ROWS * R], x[R], y[ROWS + 1], before[ROWS];
    for (const struct kernels *const *table = kernels_all(); *table; table++)
        for (size_t rank = 0; (*table)->supported() && rank <= R; rank++)
            for (size_t rows = 0; rows <= ROWS; rows++) {
                fill(b, ROWS * R);
                fill(x, R);
                fill(y, ROWS + 1);
                memcpy(before, y, sizeof before);
                y[rows] = -77;
                (*table)->add_narrow(y, b, rows, x, rank, 0.5f);
                assert_true(y[rows] == -77);
                for (size_t i = 0; i < rows; i++) {
                    double sum = 0;
                    for (size_t r = 0; r < rank; r++) sum += (double)b[i * rank + r] * (double)x[r];
                    assert_true(fabs((double)y[i] - (double)before[i] - 0.5 * sum) <= 2e-6 * (double)(rank + 1));
                }
            }
}

/* ---- a group of matrices with pairs, as in a decoding step ---- */

enum { COLS = 256, JOBS = 3, FEW = 7, FEW_EXACT = 4, RANK = 9 };
static const size_t outputs[JOBS] = {100, 37, 160};
static const enum block_type job_types[JOBS] = {BLOCK_Q4_1, BLOCK_F16, BLOCK_Q8_0};

struct group {
    unsigned char *memory[JOBS];
    struct matrix w[JOBS];
    struct low_rank pairs[JOBS];
    float a[JOBS][RANK * COLS], b[JOBS][160 * RANK], bias[160], x[FEW * COLS];
};

static void make_group(struct group *g) {
    fill(g->x, FEW * COLS);
    fill(g->bias, 160);
    for (size_t j = 0; j < JOBS; j++) {
        unsigned char *blocks = blocks_of(&g->memory[j], job_types[j], outputs[j], COLS, 0);
        g->w[j] = (struct matrix){blocks, job_types[j], outputs[j], COLS, block_row_bytes(job_types[j], COLS)};
        fill(g->a[j], RANK * COLS);
        fill(g->b[j], outputs[j] * RANK);
        g->pairs[j] = (struct low_rank){g->a[j], g->b[j], 0.5f, j == 2 ? 0 : RANK - j};
    }
}

static void run_group(const struct ops *ops, const struct group *g, float *const y[JOBS], size_t T) {
    struct linear jobs[JOBS];
    float xa[JOBS][FEW * RANK];
    for (size_t j = 0; j < JOBS; j++)
        jobs[j] = (struct linear){y[j], g->x, &g->w[j], j == 1 ? g->bias : NULL, &g->pairs[j], xa[j]};
    linear_forward_group(ops, jobs, JOBS, T);
}

/* y of row t of job j as plain sums, with the rows of x that rounding gives for types that have it. */
static double expected_of(const struct group *g, size_t j, size_t t, size_t r, double *magnitude) {
    float w[COLS];
    double sum = j == 1 ? (double)g->bias[r] : 0;
    scalar()->dequantize[job_types[j]](w, (const unsigned char *)g->w[j].data + r * g->w[j].row_bytes, COLS);
    *magnitude = 1;
    for (size_t i = 0; i < COLS; i++) {
        sum += (double)w[i] * (double)g->x[t * COLS + i];
        *magnitude += fabs((double)w[i] * (double)g->x[t * COLS + i]);
    }
    size_t R = g->pairs[j].rank;
    for (size_t p = 0; p < R; p++) {
        double xa = 0;
        for (size_t i = 0; i < COLS; i++) xa += (double)g->x[t * COLS + i] * (double)g->a[j][p * COLS + i];
        sum += 0.5 * xa * (double)g->b[j][r * R + p];
    }
    return sum;
}

static void check_group(const struct kernels *table, int threads, int fast, float *const y[JOBS], size_t T) {
    static struct group g;
    made_index = 0;
    make_group(&g);
    struct ops ops = {.kernels = table, .product = fast ? table->fast : table->exact};
    assert_int_equal(pool_create(threads, &ops.pool, NULL), ATTUNE_OK);
    ops.scratch_floats = ops_scratch_floats(ops.product, T, 64);
    ops.scratch = aligned_alloc(64, (size_t)threads * ops.scratch_floats * sizeof(float));
    ops.packed = aligned_alloc(64, ops_packed_bytes(table, ops.product, T, 160, COLS, RANK));
    run_group(&ops, &g, y, T);
    for (size_t j = 0; j < JOBS; j++)
        for (size_t t = 0; t < T; t++)
            for (size_t r = 0; r < outputs[j]; r++) {
                double magnitude, expected = expected_of(&g, j, t, r, &magnitude);
                double bound = fast && j != 1 ? magnitude / 254 : 1e-5 * magnitude;
                if (!(fabs((double)y[j][t * outputs[j] + r] - expected) <= bound))
                    fail_msg("%s job %zu row %zu of x %zu: %g, not %g", table->name, j, r, t,
                             (double)y[j][t * outputs[j] + r], expected);
            }
    for (size_t j = 0; j < JOBS; j++) free(g.memory[j]);
    pool_destroy(ops.pool);
    free(ops.scratch);
    free(ops.packed);
}

static void test_groups(void **state) {
    (void)state;
    static float one[JOBS][FEW * 160], three[JOBS][FEW * 160], alone[JOBS][FEW * 160];
    float *const y_one[] = {one[0], one[1], one[2]}, *const y_three[] = {three[0], three[1], three[2]};
    float *const y_alone[] = {alone[0], alone[1], alone[2]};
    for (const struct kernels *const *table = kernels_all(); *table; table++)
        for (int fast = 0; (*table)->supported() && fast <= 1; fast++) {
            size_t few = fast && (*table)->fast != (*table)->exact && (*table)->rounded ? FEW : FEW_EXACT;
            memset(one, 0, sizeof one);
            memset(three, 0, sizeof three);
            check_group(*table, 1, fast, y_one, few);
            check_group(*table, 3, fast, y_three, few);
            check_group(*table, 2, fast, y_alone, 1);
            assert_memory_equal(one, three, sizeof one);
            for (size_t j = 0; j < JOBS; j++) assert_memory_equal(one[j], alone[j], outputs[j] * sizeof(float));
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rounding), cmocka_unit_test(test_products), cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_narrow),   cmocka_unit_test(test_groups),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
