/* Products with packed rows and panels (struct product), of every table that this CPU has: exact and fast. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>

#include <cmocka.h>

#include "core/kernels/kernels.h"
#include "tests/made_blocks.h"

/* ---- one case: y(m, outputs) = x(m, k) op(W) ---- */

struct shape {
    size_t m, n, k;
};

struct work {
    const struct product *product;
    struct matrix w;
    struct shape shape;
    int backward;
    float *x, *y, *dense; /* (m, k), (m, n), W as floats */
    size_t ldx;
    char name[160];
};

enum { EDGE = 3 }; /* floats between the rows of x and y, that nobody may touch */
static const float UNTOUCHED = 12345.0f;

static void *aligned(size_t bytes) {
    void *p = aligned_alloc(64, bytes);
    assert_true(p || bytes == 0);
    return p;
}

static float weight(const struct work *c, size_t output, size_t term) {
    return c->backward ? c->dense[term * c->w.cols + output] : c->dense[output * c->w.cols + term];
}

static struct work begin(const struct kernels *table, const struct product *product, enum block_type type,
                         struct shape shape, int backward) {
    struct work c = {.product = product, .shape = shape, .backward = backward, .ldx = shape.k + EDGE};
    const struct block_format *format = block_format_get(type);
    /* columns are whole blocks, whichever side they are on */
    size_t *columns = backward ? &c.shape.n : &c.shape.k;
    *columns = (*columns + format->elements - 1) / format->elements * format->elements;
    c.ldx = c.shape.k + EDGE;
    size_t rows = backward ? c.shape.k : c.shape.n;
    c.w = (struct matrix){.type = type, .rows = rows, .cols = *columns, .row_bytes = block_row_bytes(type, *columns)};
    unsigned char *data = malloc(rows * c.w.row_bytes);
    c.dense = malloc(rows * *columns * sizeof(float));
    c.x = malloc(c.shape.m * c.ldx * sizeof(float));
    c.y = malloc(c.shape.m * (c.shape.n + EDGE) * sizeof(float));
    assert_true(data && c.dense && c.x && c.y);
    for (size_t r = 0; r < rows; r++) {
        made_row(data + r * c.w.row_bytes, type, *columns, 1);
        format->dequantize(c.dense + r * *columns, data + r * c.w.row_bytes, *columns);
    }
    c.w.data = data;
    for (size_t i = 0; i < c.shape.m * c.ldx; i++) c.x[i] = made_float();
    snprintf(c.name, sizeof c.name, "%s %s %s %s %zu x %zu x %zu", table->name, product->arithmetic, format->name,
             backward ? "backward" : "forward", c.shape.m, c.shape.n, c.shape.k);
    return c;
}

static void end(struct work *c) {
    free((void *)(uintptr_t)c->w.data);
    free(c->dense);
    free(c->x);
    free(c->y);
}

/* Outputs o0 .. o0 + n of rows t0 .. t0 + m. Packed memory is of exactly the size that was asked for. */
static void multiply_part(const struct work *c, float *y, size_t t0, size_t m, size_t o0, size_t n, int accumulate) {
    const struct product *p = c->product;
    size_t k = c->shape.k;
    void *rows = aligned(p->rows_bytes(m, k)), *panels = aligned(p->panels_bytes(n, k));
    p->pack_rows(rows, c->x + t0 * c->ldx, c->ldx, m, k);
    (c->backward ? p->pack_backward : p->pack_forward)(panels, &c->w, o0, n, 0, k);
    p->multiply(y + t0 * (c->shape.n + EDGE) + o0, c->shape.n + EDGE, rows, m, panels, n, k, accumulate);
    free(rows);
    free(panels);
}

static void multiply_all(const struct work *c, float *y, int accumulate) {
    multiply_part(c, y, 0, c->shape.m, 0, c->shape.n, accumulate);
}

/* ---- how far an element may be off ---- */

/* Largest |v| of the group of 64 terms that holds `term`. */
static double group_most(const struct work *c, size_t row, size_t output, size_t term, int of_x) {
    double most = 0;
    for (size_t p = term / 64 * 64; p < c->shape.k && p < term / 64 * 64 + 64; p++) {
        double v = fabs((double)(of_x ? c->x[row * c->ldx + p] : weight(c, output, p)));
        if (v > most) most = v;
    }
    return most;
}

static void expect(const struct work *c, size_t row, size_t output, double *value, double *bound) {
    double sum = 0, size = 0, rounding = 0, dx = 0, dw = 0;
    for (size_t p = 0; p < c->shape.k; p++) {
        double x = (double)c->x[row * c->ldx + p], w = (double)weight(c, output, p);
        sum += x * w;
        size += fabs(x * w);
        if (strcmp(c->product->arithmetic, "int8") != 0) continue;
        if (p % 64 == 0) {
            dx = group_most(c, row, output, p, 1) / 254 * 1.0001;
            dw = group_most(c, row, output, p, 0) / 254 * 1.0001;
        }
        rounding += fabs(w) * dx + fabs(x) * dw + dx * dw;
    }
    if (strcmp(c->product->arithmetic, "bf16") == 0) rounding = size * (0x1p-7 + 0x1p-16);
    *value = sum;
    *bound = rounding + size * (double)(c->shape.k + 8) * 0x1p-24 + 1e-30;
}

/* ---- tests ---- */

static void each_product(void (*test)(const struct kernels *, const struct product *)) {
    size_t n = 0;
    for (const struct kernels *const *table = kernels_all(); *table; table++) {
        if (!(*table)->supported()) continue;
        test(*table, (*table)->exact);
        if ((*table)->fast != (*table)->exact) test(*table, (*table)->fast);
        n++;
    }
    assert_true(n > 0);
}

static const struct shape shapes[] = {{1, 1, 1},    {1, 32, 32},  {5, 31, 33},  {6, 32, 64},   {7, 33, 65},
                                      {12, 64, 96}, {13, 17, 63}, {25, 95, 130}, {2, 256, 256}, {70, 40, 300}};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static void close_to_doubles(const struct kernels *table, const struct product *product) {
    for (size_t s = 0; s < SHAPES; s++)
        for (size_t t = 0; t < MADE_TYPES; t++)
            for (int backward = 0; backward < 2; backward++) {
                struct work c = begin(table, product, made_types[t], shapes[s], backward);
                size_t ldy = c.shape.n + EDGE;
                for (size_t i = 0; i < c.shape.m * ldy; i++) c.y[i] = UNTOUCHED;
                multiply_all(&c, c.y, 0);
                for (size_t i = 0; i < c.shape.m; i++)
                    for (size_t j = 0; j < ldy; j++) {
                        double value, bound;
                        if (j >= c.shape.n) {
                            assert_true(c.y[i * ldy + j] == UNTOUCHED);
                            continue;
                        }
                        expect(&c, i, j, &value, &bound);
                        if (!(fabs((double)c.y[i * ldy + j] - value) <= bound))
                            fail_msg("%s [%zu, %zu]: %g, not %g within %g", c.name, i, j, (double)c.y[i * ldy + j],
                                     value, bound);
                    }
                end(&c);
            }
}
static void test_close_to_doubles(void **state) {
    (void)state;
    each_product(close_to_doubles);
}

/* What the order of a sum may change. */
static double order_bound(const struct work *c, size_t row, size_t output, double before) {
    double size = fabs(before);
    for (size_t p = 0; p < c->shape.k; p++)
        size += fabs((double)c->x[row * c->ldx + p] * (double)weight(c, output, p));
    return size * 1.01 * (double)(c->shape.k + 8) * 0x1p-24;
}

/* How rows and outputs are cut into calls does not show. Accumulate adds what the product is, but that a sum may
 * begin with y instead of ending with it. */
static void same_in_parts(const struct kernels *table, const struct product *product) {
    static const enum block_type types[] = {BLOCK_F32, BLOCK_Q4_1, BLOCK_Q8_0, BLOCK_Q6_K};
    for (size_t t = 0; t < sizeof types / sizeof *types; t++)
        for (int backward = 0; backward < 2; backward++) {
            struct work c = begin(table, product, types[t], (struct shape){53, 512, 200}, backward);
            size_t ldy = c.shape.n + EDGE, floats = c.shape.m * ldy;
            float *whole = calloc(floats, sizeof(float)), *parts = calloc(floats, sizeof(float));
            assert_true(whole && parts);
            multiply_all(&c, whole, 0);
            for (size_t t0 = 0; t0 < c.shape.m; t0 += 11)
                for (size_t o0 = 0; o0 < c.shape.n; o0 += 256)
                    multiply_part(&c, parts, t0, c.shape.m - t0 < 11 ? c.shape.m - t0 : 11, o0, 256, 0);
            if (memcmp(whole, parts, floats * sizeof(float)) != 0) fail_msg("%s: other bits in parts", c.name);
            for (size_t i = 0; i < floats; i++) parts[i] = i % ldy < c.shape.n ? (float)(i % 7) : 0;
            multiply_all(&c, parts, 1);
            for (size_t i = 0; i < floats; i++) {
                double before = (double)(i % 7);
                if (i % ldy < c.shape.n && !(fabs((double)parts[i] - ((double)whole[i] + before)) <=
                                             order_bound(&c, i / ldy, i % ldy, before)))
                    fail_msg("%s: sum", c.name);
            }
            free(whole);
            free(parts);
            end(&c);
        }
}
static void test_same_in_parts(void **state) {
    (void)state;
    each_product(same_in_parts);
}

/* Rows may be packed in pieces of whole heights. */
static void pieces_of_rows(const struct kernels *table, const struct product *product) {
    struct work c = begin(table, product, BLOCK_F32, (struct shape){5 * product->height + 1, 32, 100}, 0);
    size_t m = c.shape.m, k = c.shape.k, bytes = product->rows_bytes(m, k), step = 2 * product->height;
    unsigned char *whole = aligned(bytes), *pieces = aligned(bytes);
    memset(whole, 0, bytes);
    memset(pieces, 0, bytes);
    product->pack_rows(whole, c.x, c.ldx, m, k);
    for (size_t t = 0; t < m; t += step)
        product->pack_rows(pieces + product->rows_bytes(t, k), c.x + t * c.ldx, c.ldx, m - t < step ? m - t : step, k);
    if (memcmp(whole, pieces, bytes) != 0) fail_msg("%s", c.name);
    free(whole);
    free(pieces);
    end(&c);
}
static void test_pieces_of_rows(void **state) {
    (void)state;
    each_product(pieces_of_rows);
}

/* A row that is not finite gives outputs that are not, and leaves the others alone. */
static void what_is_not_finite_shows(const struct kernels *table, const struct product *product) {
    static const float strange[] = {NAN, INFINITY, -INFINITY};
    for (size_t s = 0; s < 3; s++) {
        struct work c = begin(table, product, BLOCK_Q8_0, (struct shape){9, 40, 128}, 0);
        c.x[4 * c.ldx + 70] = strange[s];
        multiply_all(&c, c.y, 0);
        for (size_t i = 0; i < 9; i++)
            for (size_t j = 0; j < 40; j++) {
                float weighs = weight(&c, j, 70), y = c.y[i * (40 + EDGE) + j];
                if (i != 4 ? !isfinite(y) : weighs != 0 && isfinite(y))
                    fail_msg("%s [%zu, %zu]: %g", c.name, i, j, (double)y);
            }
        end(&c);
    }
}
static void test_what_is_not_finite_shows(void **state) {
    (void)state;
    each_product(what_is_not_finite_shows);
}

/* Groups of nothing but zeros and of very small numbers. */
static void small_numbers(const struct kernels *table, const struct product *product) {
    struct work c = begin(table, product, BLOCK_F32, (struct shape){7, 33, 192}, 0);
    for (size_t i = 0; i < 7; i++)
        for (size_t p = 0; p < 192; p++) c.x[i * c.ldx + p] = p < 64 ? 0.0f : p < 128 ? 1e-38f : 1e-20f * made_float();
    multiply_all(&c, c.y, 0);
    for (size_t i = 0; i < 7; i++)
        for (size_t j = 0; j < 33; j++) {
            double value, bound;
            expect(&c, i, j, &value, &bound);
            if (!(fabs((double)c.y[i * (33 + EDGE) + j] - value) <= bound + 1e-34)) fail_msg("%s", c.name);
        }
    end(&c);
}
static void test_small_numbers(void **state) {
    (void)state;
    each_product(small_numbers);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_close_to_doubles),        cmocka_unit_test(test_same_in_parts),
        cmocka_unit_test(test_pieces_of_rows),          cmocka_unit_test(test_what_is_not_finite_shows),
        cmocka_unit_test(test_small_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
