/* Every kernel table of this CPU against the scalar one, and the scalar one against doubles. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/base/random.h"
#include "core/kernels/kernels.h"
#include "tests/made_blocks.h"

static const struct kernels *scalar(void) {
    const struct kernels *const *table = kernels_all();
    while (strcmp((*table)->name, "scalar") != 0) table++;
    return *table;
}

static void fill(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = made_float();
}

/* Memory that ends where it should, so that a sanitizer sees a read past the end, at an odd address. */
struct bytes {
    unsigned char *memory, *data;
};
static struct bytes bytes_odd(size_t bytes) {
    struct bytes b = {malloc(bytes + 1), NULL};
    assert_non_null(b.memory);
    b.data = b.memory + 1;
    return b;
}
/* The same for floats, at an address that suits no vector. */
struct row {
    float *memory, *data;
};
static struct row row_of(size_t n) {
    struct row row = {malloc((n + 1) * sizeof(float)), NULL};
    assert_non_null(row.memory);
    row.data = row.memory + 1;
    fill(row.data, n);
    return row;
}

/* ---- rows ---- */

static void check_row(const struct kernels *table, enum block_type type, size_t n, float scale) {
    struct bytes blocks = bytes_odd(block_row_bytes(type, n));
    struct row x = row_of(n), expected = row_of(n), got = row_of(n);
    made_row(blocks.data, type, n, scale);

    scalar()->dequantize[type](expected.data, blocks.data, n);
    table->dequantize[type](got.data, blocks.data, n);
    assert_memory_equal(got.data, expected.data, n * sizeof(float));

    double sum = 0, magnitude = 0;
    for (size_t i = 0; i < n; i++) {
        double term = (double)expected.data[i] * x.data[i];
        sum += term;
        magnitude += fabs(term);
    }
    float dot = table->row_dot[type](blocks.data, x.data, n);
    /* what is small is small next to the magnitude: the offset of the quants is taken out of the sum */
    if (!(fabs(dot - sum) <= 3e-6 * magnitude))
        fail_msg("%s %s n %zu: %.9g, not %.9g of %.3g", table->name, block_type_name(type), n, dot, sum, magnitude);
    free(blocks.memory);
    free(x.memory);
    free(expected.memory);
    free(got.memory);
}

static void check_rows(const struct kernels *table) {
    static const size_t blocks[] = {0, 1, 2, 3, 18, 48};
    for (size_t t = 0; t < MADE_TYPES; t++) {
        size_t elements = block_format_get(made_types[t])->elements;
        if (elements == 1) {
            for (size_t n = 0; n <= 67; n++) check_row(table, made_types[t], n, 1);
            check_row(table, made_types[t], 576, 1);
            check_row(table, made_types[t], 1536, 1);
            check_row(table, made_types[t], 8 * 1024 + 35, 1); /* over the pieces that long rows are taken in */
        } else {
            for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
                check_row(table, made_types[t], blocks[i] * elements, 1);
            check_row(table, made_types[t], 8192 + 3 * elements, 1);
        }
        check_row(table, made_types[t], 4 * elements, 0);
        check_row(table, made_types[t], 4 * elements, 0x1p-14f); /* most scales are subnormal halves */
    }
}

/* The bytes that the scalar table gives: of spread values, of few different ones (ties of magnitude and of rounding),
 * of zeros of both signs. */
static void check_quantize(const struct kernels *table) {
    enum { N = 1024 };
    static const float few[] = {0.0f, -0.0f, 1, -1, 0.5f, -0.5f, 2, -2, 1e-30f, -1e-38f};
    for (size_t t = 0; t < MADE_TYPES; t++) {
        size_t bytes = block_row_bytes(made_types[t], N);
        struct bytes expected = bytes_odd(bytes), got = bytes_odd(bytes);
        struct row x = row_of(N);
        for (int round = 0; round < 60; round++) {
            for (size_t i = 0; i < N; i++) {
                if (round % 4 == 0) x.data[i] = made_float() * expf(8 * made_float());
                else if (round % 4 == 1) x.data[i] = few[made_bits() % (2 + round / 8)];
                else if (round % 4 == 2) x.data[i] = (float)(made_bits() % 255) / 2 - 63; /* halves of Q8_0's steps */
                else x.data[i] = fabsf(made_float()) + (i % 7 == 0 ? -0.0f : 0);
            }
            scalar()->quantize[made_types[t]](expected.data, x.data, N);
            table->quantize[made_types[t]](got.data, x.data, N);
            assert_memory_equal(got.data, expected.data, bytes);
        }
        free(expected.memory);
        free(got.memory);
        free(x.memory);
    }
}

/* Every byte and every fifth bit in every place, at d = 1 and m = 0 or 1: no tolerance hides a wrong quant. */
static void check_quants(const struct kernels *table) {
    for (size_t t = 0; t < MADE_TYPES; t++) {
        const struct block_format *format = block_format_get(made_types[t]);
        if (format->elements == 1) continue;
        unsigned char block[256];
        float expected[256], got[256], unit[256] = {0};
        for (int round = 0; round < 64; round++) {
            made_row(block, made_types[t], format->elements, 1);
            made_half(block + (made_types[t] == BLOCK_Q6_K ? 208 : 0), 1);
            scalar()->dequantize[made_types[t]](expected, block, format->elements);
            table->dequantize[made_types[t]](got, block, format->elements);
            assert_memory_equal(got, expected, format->elements * sizeof *got);
            for (size_t i = 0; i < format->elements; i++) {
                unit[i] = 1;
                float value = table->row_dot[made_types[t]](block, unit, format->elements);
                unit[i] = 0;
                if (fabsf(value - expected[i]) > 1e-4f)
                    fail_msg("%s %s element %zu: %g, not %g", table->name, format->name, i, value, expected[i]);
            }
        }
    }
}

static void check_row_groups(const struct kernels *table) {
    enum { ROWS = 7, COLS = 4096 + 512, PADDING = 13 };
    for (size_t t = 0; t < MADE_TYPES; t++) {
        size_t bytes = block_row_bytes(made_types[t], COLS) + PADDING;
        struct bytes rows = bytes_odd(ROWS * bytes);
        float *x = malloc(COLS * sizeof *x), out[ROWS + 1];
        fill(x, COLS);
        for (size_t r = 0; r < ROWS; r++) made_row(rows.data + r * bytes, made_types[t], COLS, 1);
        for (size_t count = 0; count <= ROWS; count++) {
            for (size_t r = 0; r <= ROWS; r++) out[r] = -77;
            table->row_dots[made_types[t]](out, rows.data, bytes, count, x, COLS);
            for (size_t r = 0; r < count; r++) {
                float alone = table->row_dot[made_types[t]](rows.data + r * bytes, x, COLS);
                assert_memory_equal(&out[r], &alone, sizeof alone);
            }
            assert_true(out[count] == -77);
        }
        free(rows.memory);
        free(x);
    }
}

static void check_halves(const struct kernels *table) {
    enum { HALVES = 65536 };
    uint16_t *halves = malloc(HALVES * sizeof *halves);
    float *expected = malloc(HALVES * sizeof *expected), *got = malloc(HALVES * sizeof *got);
    for (size_t i = 0; i < HALVES; i++) halves[i] = (uint16_t)i;
    scalar()->dequantize[BLOCK_F16](expected, halves, HALVES);
    table->dequantize[BLOCK_F16](got, halves, HALVES);
    assert_memory_equal(got, expected, HALVES * sizeof *got);
    scalar()->dequantize[BLOCK_BF16](expected, halves, HALVES);
    table->dequantize[BLOCK_BF16](got, halves, HALVES);
    assert_memory_equal(got, expected, HALVES * sizeof *got);
    free(halves);
    free(expected);
    free(got);
}

/* ---- gemm ---- */

struct gemm_case {
    int transpose_a, transpose_b;
    size_t m, n, k;
    float alpha, beta;
};

static void check_gemm_case(const struct kernels *table, const struct gemm_case *p) {
    size_t a_rows = p->transpose_a ? p->k : p->m, a_cols = p->transpose_a ? p->m : p->k, lda = a_cols + 3;
    size_t b_rows = p->transpose_b ? p->n : p->k, b_cols = p->transpose_b ? p->k : p->n, ldb = b_cols + 5;
    size_t ldc = p->n + 2;
    float *a = malloc(a_rows * lda * sizeof *a + 1), *b = malloc(b_rows * ldb * sizeof *b + 1);
    float *c = malloc(p->m * ldc * sizeof *c + 1), *before = malloc(p->m * ldc * sizeof *before + 1);
    fill(a, a_rows * lda);
    fill(b, b_rows * ldb);
    fill(c, p->m * ldc);
    for (size_t i = 0; p->beta == 0 && i < p->m * ldc; i++) c[i] = NAN;
    for (size_t i = 0; i < p->m; i++) c[i * ldc + p->n] = 1234; /* the gap between rows is not ours */
    memcpy(before, c, p->m * ldc * sizeof *c);
    table->gemm(p->transpose_a, p->transpose_b, p->m, p->n, p->k, p->alpha, a, lda, b, ldb, p->beta, c, ldc);
    for (size_t i = 0; i < p->m; i++) {
        for (size_t j = 0; j < p->n; j++) {
            double sum = p->beta == 0 ? 0 : (double)p->beta * before[i * ldc + j], magnitude = fabs(sum);
            for (size_t q = 0; q < p->k; q++) {
                double term = (double)p->alpha * a[p->transpose_a ? q * lda + i : i * lda + q] *
                              b[p->transpose_b ? j * ldb + q : q * ldb + j];
                sum += term;
                magnitude += fabs(term);
            }
            if (!(fabs(c[i * ldc + j] - sum) <= 2e-6 * magnitude))
                fail_msg("%s gemm %d%d m %zu n %zu k %zu alpha %g beta %g at %zu,%zu: %g, not %g", table->name,
                         p->transpose_a, p->transpose_b, p->m, p->n, p->k, p->alpha, p->beta, i, j, c[i * ldc + j],
                         sum);
        }
        assert_true(c[i * ldc + p->n] == 1234);
    }
    free(a);
    free(b);
    free(c);
    free(before);
}

static size_t up_to(size_t limit) { return 1 + made_bits() % limit; }

static void check_random_products(const struct kernels *table) {
    static const float factors[] = {0, 1, 0.5f, -2};
    for (int round = 0; round < 600; round++) {
        struct gemm_case p = {round & 1, round >> 1 & 1, up_to(70), up_to(70), up_to(70), factors[made_bits() % 4],
                            factors[made_bits() % 4]};
        check_gemm_case(table, &p);
    }
    for (int transposes = 0; transposes < 4; transposes++) { /* long sums; many rows; few columns */
        check_gemm_case(table, &(struct gemm_case){transposes & 1, transposes >> 1, 13, 33, 385, 1, 1});
        check_gemm_case(table, &(struct gemm_case){transposes & 1, transposes >> 1, 5, 8, 1536, 0.5f, 0});
        check_gemm_case(table, &(struct gemm_case){transposes & 1, transposes >> 1, 300, 40, 9, 1, 0});
        check_gemm_case(table, &(struct gemm_case){transposes & 1, transposes >> 1, 130, 8, 50, 1, 1});
    }
}

/* An element depends on its row, its column and k alone: a piece of C by itself has the same bytes. */
static void check_pieces(const struct kernels *table) {
    enum { M = 41, N = 75, K = 401, LD = 410 };
    if (strcmp(table->name, "openblas") == 0) return; /* promises less */
    float *a = malloc(LD * LD * sizeof *a), *b = malloc(LD * LD * sizeof *b), whole[M * N], piece[M * N];
    fill(a, LD * LD);
    fill(b, LD * LD);
    for (int round = 0; round < 200; round++) {
        int ta = round & 1, tb = round >> 1 & 1;
        size_t m0 = up_to(M) - 1, n0 = up_to(N) - 1, m = up_to(M - m0), n = up_to(N - n0);
        table->gemm(ta, tb, M, N, K, 0.7f, a, LD, b, LD, 0, whole, N);
        table->gemm(ta, tb, m, n, K, 0.7f, a + (ta ? m0 : m0 * LD), LD, b + (tb ? n0 * LD : n0), LD, 0, piece, n);
        for (size_t i = 0; i < m; i++)
            if (memcmp(piece + i * n, whole + (m0 + i) * N + n0, n * sizeof *piece) != 0)
                fail_msg("%s gemm %d%d: rows %zu + %zu, columns %zu + %zu have other bytes", table->name, ta, tb, m0, m,
                         n0, n);
    }
    free(a);
    free(b);
}

static void check_gemm(const struct kernels *table) {
    static const size_t shapes[][3] = {{1, 1, 1},  {1, 7, 5},   {6, 1, 9},   {5, 3, 1},    {0, 4, 4},   {4, 0, 4},
                                       {4, 4, 0},  {3, 17, 33}, {16, 16, 16}, {31, 29, 67}, {1, 576, 70}, {65, 64, 130},
                                       {2, 8, 576}};
    static const float betas[] = {0, 1, 0.5f};
    static const float alphas[] = {1, -0.75f, 0};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int transposes = 0; transposes < 4; transposes++)
            for (int b = 0; b < 3; b++)
                for (int a = 0; a < 3; a++) {
                    struct gemm_case p = {transposes & 1, transposes >> 1, shapes[s][0], shapes[s][1],
                                        shapes[s][2],   alphas[a],       betas[b]};
                    check_gemm_case(table, &p);
                }
    float c[2] = {NAN, 3};
    table->gemm(0, 0, 1, 2, 0, 1, NULL, 0, NULL, 2, 0, c, 2);
    assert_true(c[0] == 0 && c[1] == 0);
    float nothing = NAN, half_of = 2;
    table->gemm(0, 0, 1, 1, 1, 0, &nothing, 1, &nothing, 1, 0.5f, &half_of, 1);
    assert_true(half_of == 1);
}

enum { CALLS = 1000, SIDE = 48 };
struct caller {
    const struct kernels *table;
    const float *a, *b, *expected;
    int differs;
};
static void *call_gemm(void *argument) {
    struct caller *caller = argument;
    float c[SIDE * SIDE];
    for (int i = 0; i < CALLS; i++) {
        caller->table->gemm(0, 1, SIDE, SIDE, SIDE, 1, caller->a, SIDE, caller->b, SIDE, 0, c, SIDE);
        if (memcmp(c, caller->expected, sizeof c) != 0) caller->differs = 1;
    }
    return NULL;
}

/* Fails now and then, not always, where OpenBLAS hands one buffer to two threads: see openblas.c. */
static void check_gemm_threads(const struct kernels *table) {
    enum { THREADS = 8 };
    if (table->gemm == scalar()->gemm) return; /* shares nothing */
    float a[SIDE * SIDE], b[SIDE * SIDE], expected[SIDE * SIDE];
    fill(a, SIDE * SIDE);
    fill(b, SIDE * SIDE);
    table->gemm(0, 1, SIDE, SIDE, SIDE, 1, a, SIDE, b, SIDE, 0, expected, SIDE);
    struct caller callers[THREADS];
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        callers[i] = (struct caller){table, a, b, expected, 0};
        assert_int_equal(pthread_create(&threads[i], NULL, call_gemm, &callers[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        assert_false(callers[i].differs);
    }
}

/* ---- elementwise ---- */

static size_t next_length(size_t n) {
    if (n < 67) return n + 1;
    return n == 67 ? 576 : n == 576 ? 1536 : 0;
}

static void check_close(const char *what, const struct kernels *table, size_t n, double got, double expected,
                        double tolerance) {
    if (!(fabs(got - expected) <= tolerance))
        fail_msg("%s %s n %zu: %.9g, not %.9g", table->name, what, n, got, expected);
}

static void check_sums(const struct kernels *table) {
    size_t n = 0;
    do {
        struct row x = row_of(n), y = row_of(n);
        float *aligned = aligned_alloc(64, (2 * n * sizeof *aligned + 64) / 64 * 64); /* x, then y */
        if (n) memcpy(aligned, x.data, n * sizeof *aligned);
        if (n) memcpy(aligned + n, y.data, n * sizeof *aligned);
        double sum = 0, squares = 0, magnitude = 0;
        for (size_t i = 0; i < n; i++) {
            sum += (double)x.data[i] * y.data[i];
            magnitude += fabs((double)x.data[i] * y.data[i]);
            squares += (double)x.data[i] * x.data[i];
        }
        float dot = table->dot(x.data, y.data, n), elsewhere = table->dot(aligned, aligned + n, n);
        assert_memory_equal(&dot, &elsewhere, sizeof dot);
        check_close("dot", table, n, dot, sum, 2e-6 * magnitude);
        check_close("sum_squares", table, n, table->sum_squares(x.data, n), squares, 2e-6 * squares);
        table->axpy(y.data, -1.25f, x.data, n);
        for (size_t i = 0; i < n; i++)
            check_close("axpy", table, n, y.data[i], aligned[n + i] - 1.25 * x.data[i], 3e-7);
        free(x.memory);
        free(y.memory);
        free(aligned);
    } while ((n = next_length(n)));
}

static void check_softmax(const struct kernels *table) {
    size_t n = 1;
    do {
        float *x = malloc(n * sizeof *x), *original = malloc(n * sizeof *original); /* exact: see bytes_odd */
        for (size_t i = 0; i < n; i++) original[i] = 12 * made_float() + 300;
        if (n > 4) original[n - 2] = -INFINITY, original[1] = -1e30f;
        double sum = 0;
        float max = original[0];
        for (size_t i = 0; i < n; i++) max = original[i] > max ? original[i] : max;
        for (size_t i = 0; i < n; i++) sum += exp((double)original[i] - max);
        for (int normalize = 0; normalize <= 1; normalize++) {
            memcpy(x, original, n * sizeof *x);
            check_close("softmax", table, n, table->softmax(x, n, normalize), max + log(sum), 1e-7 * (max + log(sum)));
            for (size_t i = 0; i < n; i++) {
                double e = exp((double)original[i] - max) / (normalize ? sum : 1);
                check_close("softmax", table, n, x[i], e, 3e-6 * e);
            }
        }
        free(x);
        free(original);
    } while ((n = next_length(n)));
}

static void check_softmax_limits(const struct kernels *table) {
    for (size_t n = 1; n <= 40; n++) {
        float x[40];
        for (int normalize = 0; normalize <= 1; normalize++) {
            for (size_t i = 0; i < n; i++) x[i] = -INFINITY;
            assert_true(table->softmax(x, n, normalize) == -INFINITY);
            for (size_t i = 0; i < n; i++) assert_true(x[i] == 0);
            for (size_t at = 0; at < n; at++) {
                for (size_t i = 0; i < n; i++) x[i] = i == 0 ? 1 : -INFINITY;
                x[at] = NAN;
                assert_true(isnan(table->softmax(x, n, normalize)));
                assert_true(isnan(x[at]));
                if (normalize) assert_true(isnan(x[0]));
            }
            for (size_t i = 0; i < n; i++) x[i] = -3e38f;
            x[n - 1] = 3e38f;
            assert_true(table->softmax(x, n, normalize) == 3e38f);
            assert_true(x[n - 1] == 1);
            for (size_t i = 0; i + 1 < n; i++) assert_true(x[i] == 0);
        }
    }
    assert_true(table->softmax(NULL, 0, 1) == -INFINITY);
}

/* With a 0 among values that are not above it, softmax without normalization is exp itself. */
static void check_exp(const struct kernels *table) {
    enum { N = 4096 };
    float *x = malloc((N + 1) * sizeof *x);
    double worst = 0;
    for (int piece = 0; piece < 128; piece++) {
        float from = -0.8125f * (float)piece, step = -0.8125f / N;
        for (int i = 0; i < N; i++) x[i] = from + step * (float)i;
        x[N] = 0;
        table->softmax(x, N + 1, 0);
        for (int i = 0; i < N; i++) {
            double e = exp((double)(from + step * (float)i));
            if (e >= 0x1p-126) worst = fmax(worst, fabs(x[i] - e) / e);
            else assert_true(fabs(x[i] - e) <= 0x1p-149);
        }
    }
    if (!(worst <= 1e-7)) fail_msg("%s exp: relative error %g", table->name, worst);
    free(x);
}

static void check_swiglu(const struct kernels *table) {
    static const float special[] = {0, -0.0f, 1e-30f, 20, -20, 87, -87, 89, -89, 104, -104, 1e4f, -1e4f, 1e38f};
    size_t n = 0;
    do {
        float *in = malloc(3 * n * sizeof *in + 4), *out = malloc(2 * n * sizeof *out + 4);
        float *gate = in, *up = in + n, *dy = in + 2 * n;
        fill(in, 3 * n);
        for (size_t i = 0; i < n; i++) gate[i] = i < sizeof special / sizeof *special ? special[i] : 9 * gate[i];
        table->swiglu(out, gate, up, n);
        for (size_t i = 0; i < n; i++) {
            double y = (double)gate[i] / (1 + exp(-(double)gate[i])) * up[i];
            check_close("swiglu", table, n, out[i], y, 4e-7 * fabs(y) + 1e-36);
        }
        table->swiglu_backward(out, out + n, dy, gate, up, n);
        for (size_t i = 0; i < n; i++) {
            double z = gate[i], sigmoid = 1 / (1 + exp(-z)), rest = 1 / (1 + exp(z));
            double slope = sigmoid * (1 + z * rest), limit = sigmoid * (1 + fabs(z) * rest);
            check_close("swiglu dgate", table, n, out[i], (double)dy[i] * up[i] * slope,
                        6e-7 * fabs((double)dy[i] * up[i]) * limit + 1e-36);
            double dup = dy[i] * z * sigmoid;
            check_close("swiglu dup", table, n, out[n + i], dup, 4e-7 * fabs(dup) + 1e-36);
        }
        /* in place, as the header allows */
        float *first = malloc(2 * n * sizeof *first + 4);
        memcpy(first, out, 2 * n * sizeof *first);
        table->swiglu_backward(gate, up, dy, gate, up, n);
        assert_memory_equal(gate, first, n * sizeof *first);
        assert_memory_equal(up, first + n, n * sizeof *first);
        free(first);
        free(in);
        free(out);
    } while ((n = next_length(n)));
    float y, gate = NAN, one = 1;
    table->swiglu(&y, &gate, &one, 1);
    assert_true(isnan(y));
}

/* ---- rows of activations ---- */

static void check_softmax_backward(const struct kernels *table) {
    size_t n = 0;
    do {
        float *p = malloc(n * sizeof *p + 4), *dx = malloc(n * sizeof *dx + 4);
        fill(p, n);
        fill(dx, n);
        double sum = 0, magnitude = 1e-30;
        for (size_t i = 0; i < n; i++) p[i] = fabsf(p[i]);
        for (size_t i = 0; i < n; i++) sum += (double)p[i] * dx[i], magnitude += fabs((double)p[i] * dx[i]);
        float *got = malloc(n * sizeof *got + 4);
        memcpy(got, dx, n * sizeof *got);
        table->softmax_backward(got, p, n);
        for (size_t i = 0; i < n; i++)
            check_close("softmax_backward", table, n, got[i], p[i] * (dx[i] - sum), 2e-6 * p[i] * (1 + magnitude));
        free(p);
        free(dx);
        free(got);
    } while ((n = next_length(n)));
}

static void check_rms_norm(const struct kernels *table) {
    size_t n = 1;
    do {
        float *x = malloc(n * sizeof *x), *dy = malloc(n * sizeof *dy), *weight = malloc(n * sizeof *weight);
        float *before = malloc(n * sizeof *before), *got = malloc(n * sizeof *got);
        fill(x, n), fill(dy, n), fill(weight, n), fill(before, n);
        double squares = 0, s = 0, magnitude = 0;
        for (size_t i = 0; i < n; i++) {
            squares += (double)x[i] * x[i];
            s += (double)dy[i] * weight[i] * x[i];
            magnitude += fabs((double)dy[i] * weight[i] * x[i]);
        }
        double r = 1 / sqrt(squares / (double)n + 1e-5);
        table->rms_norm(got, x, weight, 1e-5f, n);
        for (size_t i = 0; i < n; i++) check_close("rms_norm", table, n, got[i], x[i] * r * weight[i], 2e-6 * r);
        memcpy(got, before, n * sizeof *got);
        table->rms_norm_backward(got, dy, x, weight, 1e-5f, n);
        for (size_t i = 0; i < n; i++) {
            double wanted = before[i] + r * dy[i] * weight[i] - x[i] * s / (double)n * r * r * r;
            double limit = 1 + r * fabs(dy[i] * weight[i]) + fabs(x[i]) * magnitude / (double)n * r * r * r;
            check_close("rms_norm_backward", table, n, got[i], wanted, 3e-6 * limit);
        }
        free(x);
        free(dy);
        free(weight);
        free(before);
        free(got);
    } while ((n = next_length(n)));
}

static void check_rotations(const struct kernels *table) {
    for (size_t n = 0; n <= 67; n++) {
        struct row x = row_of(2 * n), pairs = row_of(2 * n), halves = row_of(2 * n), turns = row_of(2 * n);
        for (int sign = -1; sign <= 1; sign += 2) {
            memcpy(pairs.data, x.data, 2 * n * sizeof(float));
            memcpy(halves.data, x.data, 2 * n * sizeof(float));
            table->rotate_pairs(pairs.data, turns.data, (float)sign, n);
            table->rotate_halves(halves.data, turns.data, (float)sign, n);
            for (size_t i = 0; i < n; i++) {
                double u = x.data[2 * i], v = x.data[2 * i + 1];
                double c = turns.data[2 * i], s = sign * turns.data[2 * i + 1];
                check_close("rotate_pairs", table, n, pairs.data[2 * i], u * c - v * s, 3e-7);
                check_close("rotate_pairs", table, n, pairs.data[2 * i + 1], u * s + v * c, 3e-7);
                u = x.data[i], v = x.data[i + n], c = turns.data[i], s = sign * turns.data[i + n];
                check_close("rotate_halves", table, n, halves.data[i], u * c - v * s, 3e-7);
                check_close("rotate_halves", table, n, halves.data[i + n], u * s + v * c, 3e-7);
            }
        }
        free(x.memory);
        free(pairs.memory);
        free(halves.memory);
        free(turns.memory);
    }
}

static void check_transpose(const struct kernels *table) {
    for (size_t rows = 0; rows <= 37; rows++)
        for (size_t cols = 0; cols <= 37; cols++) {
            size_t whole = (rows + 15) / 16 * 16, ldd = whole + 3, lds = cols + 2;
            float *src = malloc(rows * lds * sizeof *src + 4), *dst = malloc(cols * ldd * sizeof *dst + 4);
            fill(src, rows * lds);
            for (size_t i = 0; i < cols * ldd; i++) dst[i] = 77;
            table->transpose(dst, ldd, src, lds, rows, cols);
            for (size_t c = 0; c < cols; c++)
                for (size_t r = 0; r < ldd; r++)
                    assert_true(dst[c * ldd + r] == (r < rows ? src[r * lds + c] : r < whole ? 0 : 77));
            free(src);
            free(dst);
        }
}

/* ---- for every table ---- */

static void run(void (*check)(const struct kernels *)) {
    for (const struct kernels *const *table = kernels_all(); *table; table++) {
        made_index = 0;
        if ((*table)->supported()) check(*table);
    }
}
static void test_rows(void **state) { (void)state, run(check_rows); }
static void test_quants(void **state) { (void)state, run(check_quants); }
static void test_row_groups(void **state) { (void)state, run(check_row_groups); }
static void test_halves(void **state) { (void)state, run(check_halves); }
static void test_gemm(void **state) { (void)state, run(check_gemm); }
static void test_random_products(void **state) { (void)state, run(check_random_products); }
static void test_pieces(void **state) { (void)state, run(check_pieces); }
static void test_quantize(void **state) { (void)state, run(check_quantize); }
static void test_softmax_backward(void **state) { (void)state, run(check_softmax_backward); }
static void test_rms_norm(void **state) { (void)state, run(check_rms_norm); }
static void test_rotations(void **state) { (void)state, run(check_rotations); }
static void test_transpose(void **state) { (void)state, run(check_transpose); }
static void test_gemm_threads(void **state) { (void)state, run(check_gemm_threads); }
static void test_sums(void **state) { (void)state, run(check_sums); }
static void test_softmax(void **state) { (void)state, run(check_softmax); }
static void test_softmax_limits(void **state) { (void)state, run(check_softmax_limits); }
static void test_exp(void **state) { (void)state, run(check_exp); }
static void test_swiglu(void **state) { (void)state, run(check_swiglu); }

static void test_complete(void **state) {
    (void)state;
    for (const struct kernels *const *table = kernels_all(); *table; table++) {
        for (uint32_t type = 0; type < BLOCK_TYPE_LIMIT; type++) {
            int known = block_format_get(type) != NULL;
            assert_int_equal((*table)->dequantize[type] != NULL, known);
            assert_int_equal((*table)->quantize[type] != NULL, known);
            assert_int_equal((*table)->row_dot[type] != NULL, known);
            assert_int_equal((*table)->row_dots[type] != NULL, known);
        }
        assert_true((*table)->gemm && (*table)->dot && (*table)->axpy && (*table)->sum_squares);
        assert_true((*table)->softmax && (*table)->swiglu && (*table)->swiglu_backward);
        assert_true((*table)->softmax_backward && (*table)->rms_norm && (*table)->rms_norm_backward);
        assert_true((*table)->rotate_pairs && (*table)->rotate_halves && (*table)->transpose);
    }
}

/* ---- the selector ---- */

/* The selection is made once in a process: each case has a process of its own. The checks' exit status
 * comes back; assertions of cmocka would not leave the child. */
static int in_child(const char *value, int (*check)(const char *value)) {
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        if (value)
            setenv("ATTUNE_KERNELS", value, 1);
        else
            unsetenv("ATTUNE_KERNELS");
        _exit(check(value));
    }
    int status = -1;
    if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status)) return -1;
    return WEXITSTATUS(status);
}

static const struct kernels *best(void) {
    const struct kernels *const *table = kernels_all();
    while (!(*table)->supported()) table++;
    return *table;
}

static int selects_named(const char *value) {
    attune_error err = {0};
    if (kernels_select(&err) != ATTUNE_OK || err.code != 0 || kernels_select(NULL) != ATTUNE_OK) return 1;
    return strcmp(kernels_get()->name, value) == 0 ? 0 : 2;
}
static int selects_best(const char *value) {
    (void)value;
    attune_error err = {0};
    if (kernels_get() != best()) return 1;
    return kernels_select(&err) == ATTUNE_OK && err.code == 0 ? 0 : 2;
}
static int refuses(const char *value, int code) {
    attune_error err = {0};
    if (kernels_select(&err) != code || err.code != code || kernels_select(NULL) != code) return 1;
    if (strcmp(err.where, "ATTUNE_KERNELS") != 0 || !strstr(err.message, value)) return 2;
    for (const struct kernels *const *table = kernels_all(); *table; table++)
        if ((*table)->supported() && !strstr(err.message, (*table)->name)) return 3;
    return kernels_get() == best() ? 0 : 4;
}
static int refuses_unknown(const char *value) { return refuses(value, ATTUNE_ERROR_ARGUMENT); }
static int refuses_unsupported(const char *value) { return refuses(value, ATTUNE_ERROR_UNSUPPORTED); }

static void test_selector(void **state) {
    (void)state;
    assert_int_equal(in_child(NULL, selects_best), 0);
    assert_int_equal(in_child("", selects_best), 0);
    assert_int_equal(in_child("sse9", refuses_unknown), 0);
    assert_int_equal(in_child("AVX2", refuses_unknown), 0);
    for (const struct kernels *const *table = kernels_all(); *table; table++)
        assert_int_equal(in_child((*table)->name, (*table)->supported() ? selects_named : refuses_unsupported), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_complete),       cmocka_unit_test(test_selector), cmocka_unit_test(test_rows),
        cmocka_unit_test(test_quants),         cmocka_unit_test(test_row_groups), cmocka_unit_test(test_halves),
        cmocka_unit_test(test_gemm),           cmocka_unit_test(test_gemm_threads), cmocka_unit_test(test_sums),
        cmocka_unit_test(test_softmax),        cmocka_unit_test(test_softmax_limits), cmocka_unit_test(test_exp),
        cmocka_unit_test(test_swiglu),         cmocka_unit_test(test_quantize),
        cmocka_unit_test(test_random_products), cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_softmax_backward), cmocka_unit_test(test_rms_norm), cmocka_unit_test(test_rotations),
        cmocka_unit_test(test_transpose),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
