/* The bfloat16 product on AMX tiles: over emulated tiles wherever there is AVX-512, and over the processor's where it
 * has them. The reference rounds the factors as bfloat16 does and sums in double. */
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
#include "tests/tile_emulation.h"

static const float untouched = 12345;

/* Not a byte more, so that a sanitizer sees a read past the end. */
static void *allocate(size_t bytes) {
    void *memory = NULL;
    assert_int_equal(posix_memalign(&memory, 64, bytes), 0);
    return memory;
}

static const struct kernels *table_named(const char *name) {
    for (const struct kernels *const *table = kernels_all(); *table; table++)
        if (strcmp((*table)->name, name) == 0) return *table;
    return NULL;
}

/* The products whose packing this CPU can run; those whose tiles it can, too. */
static const struct product *products[2];
static size_t n_products;

static int set_up(void **state) {
    (void)state;
    const struct kernels *avx512 = table_named("avx512"), *amx = table_named("amx");
    n_products = 0;
    if (!avx512 || !avx512->supported()) return 0;
    products[n_products++] = tile_emulation_product();
    if (amx && amx->supported()) products[n_products++] = amx->fast;
    return 0;
}

/* ---- what is expected ---- */

static float to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (isnan(value)) return value;
    uint32_t rest = bits & 0xffff, kept = bits >> 16;
    if (rest > 0x8000 || (rest == 0x8000 && (kept & 1))) kept++;
    bits = kept << 16;
    memcpy(&value, &bits, sizeof bits);
    return value;
}

/* A matrix at an odd address, and its values. */
struct weights {
    struct matrix matrix;
    unsigned char *memory;
    float *values; /* (rows, cols) */
};
static struct weights weights_make(enum block_type type, size_t rows, size_t cols) {
    const struct block_format *format = block_format_get(type);
    size_t row_bytes = block_row_bytes(type, cols);
    struct weights w = {{NULL, type, rows, cols, row_bytes}, malloc(rows * row_bytes + 1), NULL};
    assert_non_null(w.memory);
    w.matrix.data = w.memory + 1;
    w.values = allocate(rows * cols * sizeof(float));
    made_row(w.memory + 1, type, rows * cols, 1);
    for (size_t r = 0; r < rows; r++) format->dequantize(w.values + r * cols, w.memory + 1 + r * row_bytes, cols);
    return w;
}
static void weights_free(struct weights *w) {
    free(w->memory);
    free(w->values);
}

/* ---- one product ---- */

struct shape {
    size_t m, n, k;
    size_t from_output, from_term; /* where they begin in W */
    int backward;
};

static void pack(const struct product *product, void *panels, const struct matrix *w, const struct shape *s) {
    if (s->backward)
        product->pack_backward(panels, w, s->from_output, s->n, s->from_term, s->k);
    else
        product->pack_forward(panels, w, s->from_output, s->n, s->from_term, s->k);
}

/* y(m, n), rows ldy apart */
static void run(const struct product *product, float *y, size_t ldy, const float *x, size_t ldx, const struct matrix *w,
                const struct shape *s, int accumulate) {
    void *rows = allocate(product->rows_bytes(s->m, s->k)), *panels = allocate(product->panels_bytes(s->n, s->k));
    assert_int_equal(product->rows_bytes(s->m, s->k) % 64, 0);
    assert_int_equal(product->panels_bytes(s->n, s->k) % 64, 0);
    product->pack_rows(rows, x, ldx, s->m, s->k);
    pack(product, panels, w, s);
    product->multiply(y, ldy, rows, s->m, panels, s->n, s->k, accumulate);
    assert_true(tile_emulation_released());
    free(rows);
    free(panels);
}

static float weight_at(const struct weights *w, const struct shape *s, size_t output, size_t term) {
    size_t a = s->from_output + output, b = s->from_term + term;
    return s->backward ? w->values[b * w->matrix.cols + a] : w->values[a * w->matrix.cols + b];
}

/* Once against the factors as rounded, where sums alone err; once against the exact ones. */
static void check_element(float got, const struct weights *w, const struct shape *s, const float *x, size_t j,
                          float before) {
    double sum = before, exact = before, magnitude = fabs(before);
    for (size_t p = 0; p < s->k; p++) {
        float value = weight_at(w, s, j, p);
        sum += (double)to_bf16(x[p]) * to_bf16(value);
        exact += (double)x[p] * value;
        magnitude += fabs((double)x[p] * value);
    }
    if (!(fabs(got - sum) <= ((double)s->k + 4) * 0x1p-24 * 1.01 * magnitude + 0x1p-120))
        fail_msg("%s %s m %zu n %zu k %zu, output %zu: %.9g, not %.9g of %.3g", block_type_name(w->matrix.type),
                 s->backward ? "backward" : "forward", s->m, s->n, s->k, j, got, sum, magnitude);
    assert_true(fabs(got - exact) <= (2 * 0x1p-8 + 0x1p-14) * magnitude + 0x1p-120);
}

static void check_shape(const struct product *product, const struct weights *w, const struct shape *s) {
    size_t ldx = s->k + 3, ldy = s->n + 5;
    float *x = allocate(s->m * ldx * sizeof *x), *y = allocate((s->m + 1) * ldy * sizeof *y);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        for (size_t i = 0; i < s->m * ldx; i++) x[i] = made_float();
        for (size_t i = 0; i < (s->m + 1) * ldy; i++) y[i] = untouched;
        float before = accumulate ? 0.625f : NAN; /* a NaN that is read shows */
        for (size_t i = 0; i < s->m; i++)
            for (size_t j = 0; j < s->n; j++) y[i * ldy + j] = before;
        run(product, y, ldy, x, ldx, &w->matrix, s, accumulate);
        for (size_t i = 0; i <= s->m; i++)
            for (size_t j = 0; j < ldy; j++) {
                if (i < s->m && j < s->n)
                    check_element(y[i * ldy + j], w, s, x + i * ldx, j, accumulate ? before : 0);
                else
                    assert_true(y[i * ldy + j] == untouched);
            }
    }
    free(x);
    free(y);
}

static size_t whole_blocks(size_t n, size_t elements) { return (n + elements - 1) / elements * elements; }

static void check_product(const struct product *product) {
    static const size_t sizes[][3] = {{1, 1, 1},    {1, 33, 2},   {5, 16, 31},  {16, 17, 32}, {17, 32, 33},
                                      {32, 31, 65}, {33, 65, 96}, {70, 64, 17}, {3, 40, 300}, {34, 33, 801}};
    for (size_t t = 0; t < MADE_TYPES; t++) {
        size_t elements = block_format_get(made_types[t])->elements;
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            size_t m = sizes[i][0], n = sizes[i][1], k = sizes[i][2];
            size_t wide = whole_blocks(k, elements), many = whole_blocks(n, elements);
            /* terms that end with the row, and terms that end before it */
            struct weights forward = weights_make(made_types[t], n + 2, elements + wide);
            check_shape(product, &forward, &(struct shape){m, n, wide, 1, elements, 0});
            check_shape(product, &forward, &(struct shape){m, n, wide, 2, 0, 0});
            weights_free(&forward);
            struct weights backward = weights_make(made_types[t], k + 2, elements + many);
            check_shape(product, &backward, &(struct shape){m, many, k, elements, 1, 1});
            weights_free(&backward);
        }
    }
}

static void agrees_with_doubles(void **state) {
    (void)state;
    if (!n_products) skip();
    for (size_t i = 0; i < n_products; i++) check_product(products[i]);
}

/* ---- how the work is cut does not show ---- */

static void check_cuts(const struct product *product, int backward) {
    enum { M = 75, N = 96, K = 500 };
    struct weights w = backward ? weights_make(BLOCK_Q8_0, K, N) : weights_make(BLOCK_F16, N, K);
    float *x = allocate(M * K * sizeof *x), *whole = allocate(M * N * sizeof *whole);
    float *cut = allocate(M * N * sizeof *cut);
    for (size_t i = 0; i < M * K; i++) x[i] = made_float();
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        for (size_t i = 0; i < M * N; i++) whole[i] = cut[i] = (float)(i % 7) / 3;
        run(product, whole, N, x, K, &w.matrix, &(struct shape){M, N, K, 0, 0, backward}, accumulate);
        static const size_t rows[] = {1, 2, 13, 16, 20, 23}, outputs[] = {32, 64};
        for (size_t a = 0, i = 0; a < sizeof rows / sizeof *rows; i += rows[a++])
            for (size_t b = 0, j = 0; b < sizeof outputs / sizeof *outputs; j += outputs[b++])
                run(product, cut + i * N + j, N, x + i * K, K, &w.matrix,
                    &(struct shape){rows[a], outputs[b], K, j, 0, backward}, accumulate);
        assert_memory_equal(whole, cut, M * N * sizeof *whole);
        if (backward) continue; /* outputs are whole blocks */
        for (size_t i = 0; i < M * N; i++) cut[i] = (float)(i % 7) / 3;
        for (size_t j = 0; j < N; j += 3)
            run(product, cut + j, N, x, K, &w.matrix, &(struct shape){M, 3, K, j, 0, 0}, accumulate);
        assert_memory_equal(whole, cut, M * N * sizeof *whole);
    }
    free(x);
    free(whole);
    free(cut);
    weights_free(&w);
}

static void cuts_do_not_show(void **state) {
    (void)state;
    if (!n_products) skip();
    for (size_t i = 0; i < n_products; i++) {
        check_cuts(products[i], 0);
        check_cuts(products[i], 1);
    }
}

static void rows_are_packed_in_pieces(void **state) {
    (void)state;
    if (!n_products) skip();
    const struct product *product = products[0];
    static const size_t terms[] = {1, 32, 33, 200};
    for (size_t t = 0; t < sizeof terms / sizeof *terms; t++) {
        size_t k = terms[t], m = 3 * product->height + 7, bytes = product->rows_bytes(m, k);
        float *x = allocate(m * k * sizeof *x);
        unsigned char *whole = allocate(bytes + 64), *pieces = allocate(bytes);
        for (size_t i = 0; i < m * k; i++) x[i] = made_float();
        memset(whole, 1, bytes + 64);
        memset(pieces, 2, bytes);
        product->pack_rows(whole, x, k, m, k);
        for (size_t done = 0; done < m;) {
            size_t piece = done ? m - done : 2 * product->height, at = product->rows_bytes(done, k);
            assert_int_equal(at + product->rows_bytes(m - done, k), bytes);
            product->pack_rows(pieces + at, x + done * k, k, piece, k);
            done += piece;
        }
        assert_memory_equal(whole, pieces, bytes);
        for (size_t i = 0; i < 64; i++) assert_int_equal(whole[bytes + i], 1); /* nothing behind the end */
        free(x);
        free(whole);
        free(pieces);
    }
}

/* ---- what is not a number ---- */

static void keeps_nan_and_infinity(void **state) {
    (void)state;
    if (!n_products) skip();
    static const uint32_t odd_bits[] = {0x7f800000, 0xff800000, 0x7fc00000, 0x7f800001, 0xff80ffff,
                                        0x7fffffff, 0xffffffff, 0x7f7fffff, 0xff7f8000, 0x7f7f7fff};
    enum { M = 3, N = 35, K = 34 };
    struct weights w = weights_make(BLOCK_F32, N, K);
    for (size_t i = 0; i < sizeof odd_bits / sizeof *odd_bits; i++) {
        float odd, x[M * K], y[M * N];
        memcpy(&odd, &odd_bits[i], sizeof odd);
        for (size_t side = 0; side < 2; side++) { /* among the rows, among the weights */
            for (size_t j = 0; j < M * K; j++) x[j] = side ? 2 : 0.25f;
            for (size_t j = 0; j < N * K; j++) w.values[j] = side ? 0.25f : 2;
            if (side)
                w.values[33 * K + 5] = odd;
            else
                x[K + 33] = odd;
            memcpy(w.memory + 1, w.values, N * K * sizeof(float));
            run(products[0], y, N, x, K, &w.matrix, &(struct shape){M, N, K, 0, 0, 0}, 0);
            for (size_t j = 0; j < M * N; j++) {
                float expected = (side ? j % N == 33 : j / N == 1) ? 2 * to_bf16(odd) + 0.5f * (K - 1) : 0.5f * K;
                assert_true(isnan(expected) ? isnan(y[j]) : y[j] == expected);
            }
        }
    }
    weights_free(&w);
}

/* What fills up an edge meets zeros on the other side: it must not be NaN, whatever was packed before. */
static void edges_are_filled_with_zeros(void **state) {
    (void)state;
    if (!n_products) skip();
    enum { M = 5, N = 40, WIDE = 300 };
    struct weights strange = weights_make(BLOCK_F32, WIDE, WIDE), plain = weights_make(BLOCK_F32, N, N);
    memset(strange.memory, 0xff, WIDE * WIDE * sizeof(float));
    float x[M * WIDE], y[M * WIDE];
    for (size_t i = 0; i < M * WIDE; i++) x[i] = made_float();
    for (int backward = 0; backward < 2; backward++)
        for (size_t k = 1; k <= N; k++) {
            run(products[0], y, WIDE, x, WIDE, &strange.matrix, &(struct shape){M, WIDE, WIDE, 0, 0, backward}, 0);
            assert_true(isnan(y[0]));
            run(products[0], y, N, x, WIDE, &plain.matrix, &(struct shape){M, N, k, 0, 0, backward}, 0);
            for (size_t i = 0; i < M * N; i++) assert_true(isfinite(y[i]));
        }
    weights_free(&strange);
    weights_free(&plain);
}

static void no_terms_give_zero(void **state) {
    (void)state;
    if (!n_products) skip();
    float y[2 * 3] = {1, 2, 3, 4, 5, 6}, kept[2 * 3];
    memcpy(kept, y, sizeof y);
    _Alignas(64) unsigned char nothing[64];
    products[0]->multiply(y, 3, nothing, 2, nothing, 3, 0, 1);
    assert_memory_equal(y, kept, sizeof y);
    products[0]->multiply(y, 3, nothing, 2, nothing, 3, 0, 0);
    for (size_t i = 0; i < 6; i++) assert_true(y[i] == 0);
}

/* ---- the table ---- */

/* The packing of the table's own product, with the instruction that rounds, where there is no AMX but that. */
static void packs_as_the_emulation_does(void **state) {
    (void)state;
#if defined(__x86_64__)
    const struct kernels *amx = table_named("amx");
    assert_non_null(amx);
    if (!n_products || !__builtin_cpu_supports("avx512bf16")) skip();
    for (size_t t = 0; t < MADE_TYPES; t++) {
        enum { ROWS = 45, COLUMNS = 512 };
        struct weights w = weights_make(made_types[t], ROWS, COLUMNS);
        for (int backward = 0; backward < 2; backward++) {
            struct shape s = {1, backward ? COLUMNS : ROWS, backward ? ROWS : COLUMNS, 0, 0, backward};
            size_t bytes = products[0]->panels_bytes(s.n, s.k);
            assert_int_equal(amx->fast->panels_bytes(s.n, s.k), bytes);
            void *expected = allocate(bytes), *got = allocate(bytes);
            pack(products[0], expected, &w.matrix, &s);
            pack(amx->fast, got, &w.matrix, &s);
            assert_memory_equal(expected, got, bytes);
            free(expected);
            free(got);
        }
        size_t bytes = products[0]->rows_bytes(ROWS, COLUMNS - 5);
        void *expected = allocate(bytes), *got = allocate(bytes);
        products[0]->pack_rows(expected, w.values, COLUMNS, ROWS, COLUMNS - 5);
        amx->fast->pack_rows(got, w.values, COLUMNS, ROWS, COLUMNS - 5);
        assert_memory_equal(expected, got, bytes);
        free(expected);
        free(got);
        weights_free(&w);
    }
#else
    skip();
#endif
}

/* Bit for bit: the emulation sums in the processor's order. */
static void tiles_are_as_emulated(void **state) {
    (void)state;
    if (n_products < 2) skip();
    enum { M = 40, N = 64, K = 800 };
    struct weights w = weights_make(BLOCK_Q4_1, N, K);
    float *x = allocate(M * K * sizeof *x), *expected = allocate(M * N * sizeof *expected);
    float *got = allocate(M * N * sizeof *got);
    for (size_t i = 0; i < M * K; i++) x[i] = made_float();
    run(products[0], expected, N, x, K, &w.matrix, &(struct shape){M, N, K, 0, 0, 0}, 0);
    run(products[1], got, N, x, K, &w.matrix, &(struct shape){M, N, K, 0, 0, 0}, 0);
    assert_memory_equal(expected, got, M * N * sizeof *got);
    free(x);
    free(expected);
    free(got);
    weights_free(&w);
}

static void the_table_is_avx512_but_for_its_products(void **state) {
    (void)state;
#if defined(__x86_64__)
    const struct kernels *avx512 = table_named("avx512"), *amx = table_named("amx");
    assert_non_null(amx);
    assert_string_equal(amx->fast->arithmetic, "bf16");
    assert_true(amx->fast != avx512->fast);
    struct kernels like = *amx;
    like.name = avx512->name;
    like.supported = avx512->supported;
    like.fast = avx512->fast;
    like.rounded = avx512->rounded;
    assert_memory_equal(&like, avx512, sizeof like);
    if (!avx512->supported()) assert_false(amx->supported());
    assert_int_equal(amx->fast->region % 32, 0);
    assert_int_equal(amx->fast->terms % 256, 0);
    assert_int_equal(32 % amx->fast->width, 0);
#else
    assert_null(table_named("amx"));
#endif
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_table_is_avx512_but_for_its_products),
        cmocka_unit_test(agrees_with_doubles),
        cmocka_unit_test(cuts_do_not_show),
        cmocka_unit_test(rows_are_packed_in_pieces),
        cmocka_unit_test(keeps_nan_and_infinity),
        cmocka_unit_test(edges_are_filled_with_zeros),
        cmocka_unit_test(no_terms_give_zero),
        cmocka_unit_test(packs_as_the_emulation_does),
        cmocka_unit_test(tiles_are_as_emulated),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
