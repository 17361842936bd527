/* Every operation against a reference in double that stands here beside it; every backward against central
 * differences of that reference. Each on all kernel tables of this CPU, and with 1 and with 3 threads: the same
 * bytes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/base/random.h"
#include "core/ops/ops.h"

/* ---- machines: a kernel table with a number of threads ---- */

enum { MACHINES = 24, OWNED = 1200, RANK_MAX = 8 };
struct machine {
    struct ops ops;
    char name[32];
};
static struct machine machines[MACHINES]; /* pairs: one thread, three threads */
static size_t n_machines;

static int start_machines(void **state) {
    (void)state;
    for (const struct kernels *const *k = kernels_all(); *k; k++) {
        if (!(*k)->supported()) continue;
        for (int threads = 1; threads <= 3; threads += 2) {
            struct machine *m = &machines[n_machines++];
            m->ops.kernels = *k;
            m->ops.product = (*k)->exact;
            snprintf(m->name, sizeof m->name, "%s, %d threads", (*k)->name, threads);
            if (pool_create(threads, &m->ops.pool, NULL) != ATTUNE_OK) return -1;
        }
    }
    return 0;
}
static int stop_machines(void **state) {
    (void)state;
    for (size_t m = 0; m < n_machines; m++) {
        pool_destroy(machines[m].ops.pool);
        free(machines[m].ops.scratch);
        free(machines[m].ops.packed);
    }
    return 0;
}
/* Scratch of exactly what the header says, so that a sanitizer sees a float too many. */
static void size_scratch(size_t T, size_t rows, size_t cols, size_t D) {
    for (size_t m = 0; m < n_machines; m++) {
        struct ops *ops = &machines[m].ops;
        free(ops->scratch);
        free(ops->packed);
        ops->scratch_floats = ops_scratch_floats(ops->product, T, D);
        ops->scratch = aligned_alloc(64, (size_t)pool_threads(ops->pool) * ops->scratch_floats * sizeof(float));
        ops->packed = aligned_alloc(64, ops_packed_bytes(ops->kernels, ops->product, T, rows, cols, RANK_MAX));
        assert_true(ops->scratch && ops->packed);
    }
}

static void size_cached_scratch(struct ops *ops, size_t H, size_t KV, size_t D) {
    free(ops->scratch);
    ops->scratch_floats = (attention_cached_scratch_floats(H, KV, D) + 15) / 16 * 16;
    ops->scratch = aligned_alloc(64, (size_t)pool_threads(ops->pool) * ops->scratch_floats * sizeof(float));
    assert_non_null(ops->scratch);
}

/* ---- memory that lives until the end of a shape ---- */

static void *owned[OWNED];
static size_t n_owned;
static void *take(size_t n, size_t each) {
    assert_true(n_owned < OWNED);
    void *p = calloc(n ? n : 1, each);
    assert_non_null(p);
    return owned[n_owned++] = p;
}
static void release(void) {
    while (n_owned > 0) free(owned[--n_owned]);
}
static float *floats(size_t n) { return take(n, sizeof(float)); }
static double *doubles(size_t n) { return take(n, sizeof(double)); }

/* Uniform in +-span. */
static float *noise(size_t n, uint64_t key, float span) {
    float *x = floats(n);
    for (size_t i = 0; i < n; i++) x[i] = span * (2.0f * random_uniform(key, i) - 1.0f);
    return x;
}
static double *widened(const float *x, size_t n) {
    double *wide = doubles(n);
    for (size_t i = 0; i < n; i++) wide[i] = (double)x[i];
    return wide;
}

/* One output for each machine, all starting as `before` (NULL: NaN, which an operation must overwrite). */
struct output {
    float *on[MACHINES];
    const float *before;
    size_t n;
};
static struct output output(size_t n, const float *before) {
    struct output out = {.before = before, .n = n};
    for (size_t m = 0; m < n_machines; m++) {
        out.on[m] = floats(n);
        for (size_t i = 0; i < n; i++) out.on[m][i] = before ? before[i] : NAN;
    }
    return out;
}
#define EACH_MACHINE(m, ops)                                                                                           \
    for (size_t m = 0; m < n_machines; m++)                                                                            \
        for (const struct ops *ops = &machines[m].ops; ops; ops = NULL)

static void same_for_any_threads(const char *what, const struct output *out) {
    for (size_t m = 0; m + 1 < n_machines; m += 2)
        if (memcmp(out->on[m], out->on[m + 1], out->n * sizeof(float)) != 0)
            fail_msg("%s: other bytes on %s than on %s", what, machines[m + 1].name, machines[m].name);
}
/* Largest difference, by the largest value. */
static void near(const char *what, const struct output *out, const double *wanted, double tolerance) {
    double scale = 1e-30;
    for (size_t i = 0; i < out->n; i++) scale = fmax(scale, fabs(wanted[i]));
    same_for_any_threads(what, out);
    for (size_t m = 0; m < n_machines; m += 2)
        for (size_t i = 0; i < out->n; i++)
            if (!(fabs((double)out->on[m][i] - wanted[i]) <= tolerance * scale))
                fail_msg("%s, %s: element %zu is %g, wanted %g", what, machines[m].name, i, (double)out->on[m][i],
                         wanted[i]);
}

/* ---- gradients: x may be changed by the check and is as before after it ---- */

typedef double loss_function(void *reference);
static const double STEP = 1e-5;

static double slope(loss_function *loss, void *reference, double *x, size_t n, const double *along) {
    double sides[2];
    for (int side = 0; side < 2; side++) {
        double *saved = malloc(n * sizeof *saved);
        assert_non_null(saved);
        memcpy(saved, x, n * sizeof *saved);
        for (size_t i = 0; i < n; i++) x[i] += (side ? -STEP : STEP) * along[i];
        sides[side] = loss(reference);
        memcpy(x, saved, n * sizeof *saved);
        free(saved);
    }
    return (sides[0] - sides[1]) / (2.0 * STEP);
}
static double gradient_of(const struct output *out, size_t m, size_t i) {
    return (double)out->on[m][i] - (out->before ? (double)out->before[i] : 0.0);
}
/* Some single elements (all when there are few), then all of them at once along random signs. */
static void differences(const char *what, const struct output *out, loss_function *loss, void *reference, double *x) {
    enum { FEW = 48, PICKED = 12, DIRECTIONS = 2 };
    size_t n = out->n, picked = n <= FEW ? n : PICKED;
    double *along = doubles(n), norm = 1e-30;
    same_for_any_threads(what, out);
    for (size_t i = 0; i < n; i++) norm += pow(gradient_of(out, 0, i), 2);
    norm = sqrt(norm);
    double typical = norm / sqrt((double)n);
    for (size_t p = 0; p < picked; p++) {
        size_t i = n <= FEW ? p : random_u64(n, p) % n;
        memset(along, 0, n * sizeof *along);
        along[i] = 1.0;
        double wanted = slope(loss, reference, x, n, along);
        for (size_t m = 0; m < n_machines; m += 2)
            if (!(fabs(gradient_of(out, m, i) - wanted) <= 1e-4 * (fabs(wanted) + typical) + 1e-6))
                fail_msg("%s, %s: derivative %zu is %g, differences say %g", what, machines[m].name, i,
                         gradient_of(out, m, i), wanted);
    }
    for (uint64_t d = 0; d < DIRECTIONS; d++) {
        for (size_t i = 0; i < n; i++) along[i] = random_u64(d + 77, i) & 1 ? 1.0 : -1.0;
        double wanted = slope(loss, reference, x, n, along);
        for (size_t m = 0; m < n_machines; m += 2) {
            double sum = 0;
            for (size_t i = 0; i < n; i++) sum += gradient_of(out, m, i) * along[i];
            if (!(fabs(sum - wanted) <= 1e-4 * norm + 1e-6))
                fail_msg("%s, %s: slope %g, differences say %g", what, machines[m].name, sum, wanted);
        }
    }
}

static double weighed(const double *dy, const double *y, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += dy[i] * y[i];
    return sum;
}

/* ---- matrices ---- */

/* Random blocks of any type, with scales of about 0.01 where the type keeps them. */
static struct matrix random_matrix(enum block_type type, size_t rows, size_t cols, uint64_t key, double **values) {
    const struct block_format *format = block_format_get(type);
    size_t row_bytes = block_row_bytes(type, cols);
    assert_true(row_bytes > 0);
    unsigned char *data = take(rows, row_bytes);
    float *row = noise(rows * cols, key, 0.3f);
    for (size_t r = 0; r < rows; r++) {
        unsigned char *to = data + r * row_bytes;
        if (format->quantize) {
            format->quantize(to, row + r * cols, cols);
        } else {
            uint16_t scale[2] = {half_from_float(0.011f), half_from_float(0.007f)};
            for (size_t i = 0; i < row_bytes; i++) to[i] = (unsigned char)random_u64(key, r * row_bytes + i);
            for (size_t i = 0; i < row_bytes; i += format->bytes)
                memcpy(to + i + (type == BLOCK_Q6_K ? format->bytes - 2 : 0), scale, type == BLOCK_Q6_K ? 2 : 4);
        }
        format->dequantize(row + r * cols, to, cols);
    }
    *values = widened(row, rows * cols);
    return (struct matrix){data, type, rows, cols, row_bytes};
}

static const enum block_type types[] = {BLOCK_F32,  BLOCK_F16,  BLOCK_BF16, BLOCK_Q4_0, BLOCK_Q4_1, BLOCK_Q5_0,
                                        BLOCK_Q5_1, BLOCK_Q8_0, BLOCK_Q4_K, BLOCK_Q5_K, BLOCK_Q6_K};
enum { TYPES = sizeof types / sizeof *types };

/* ---- linear ---- */

struct linear_reference {
    const double *w, *bias, *dy;
    double *x, *y;
    size_t T, rows, cols;
};
static void linear_by_hand(const struct linear_reference *r) {
    for (size_t t = 0; t < r->T; t++)
        for (size_t i = 0; i < r->rows; i++) {
            double sum = r->bias ? r->bias[i] : 0;
            for (size_t c = 0; c < r->cols; c++) sum += r->x[t * r->cols + c] * r->w[i * r->cols + c];
            r->y[t * r->rows + i] = sum;
        }
}
static double linear_loss(void *reference) {
    struct linear_reference *r = reference;
    linear_by_hand(r);
    return weighed(r->dy, r->y, r->T * r->rows);
}

static void check_linear(enum block_type type, size_t T, size_t rows, size_t cols, int biased) {
    char what[96];
    snprintf(what, sizeof what, "linear %s T %zu (%zu, %zu)", block_type_name(type), T, rows, cols);
    size_scratch(T, rows, cols, 1);
    double *w_values;
    struct matrix w = random_matrix(type, rows, cols, 1, &w_values);
    float *x = noise(T * cols, 2, 1), *bias = biased ? noise(rows, 3, 1) : NULL, *dy = noise(T * rows, 4, 1);
    struct linear_reference r = {w_values, biased ? widened(bias, rows) : NULL, widened(dy, T * rows),
                                 widened(x, T * cols), doubles(T * rows), T, rows, cols};
    struct output y = output(T * rows, NULL), dx = output(T * cols, NULL);
    struct output added = output(T * cols, noise(T * cols, 5, 1));
    EACH_MACHINE(m, ops) {
        linear_forward(ops, y.on[m], x, &w, bias, T);
        linear_backward(ops, dx.on[m], dy, &w, NULL, NULL, T, 0);
        linear_backward(ops, added.on[m], dy, &w, NULL, NULL, T, 1);
    }
    linear_by_hand(&r);
    near(what, &y, r.y, 2e-5);
    differences(what, &dx, linear_loss, &r, r.x);
    differences(what, &added, linear_loss, &r, r.x);
    release();
}

static void test_linear(void **state) {
    (void)state;
    static const size_t tokens[] = {1, 3, 5, 17, 67};
    for (size_t i = 0; i < 5; i++) {
        check_linear(BLOCK_F32, tokens[i], 13, 7, (int)(i % 2));
        check_linear(BLOCK_F16, tokens[i], 101, 33, !(i % 2));
        for (size_t k = 0; k < TYPES; k++) {
            size_t cols = block_format_get(types[k])->elements == 256 ? 256 : 160;
            if (i % 2 || k % 3 == i / 2) check_linear(types[k], tokens[i], 37, cols, (int)(k % 2));
        }
    }
}
/* Where the work is cut: many tokens, many rows (a backward in several sums), rows too long for a whole tile. */
static void test_linear_cuts(void **state) {
    (void)state;
    check_linear(BLOCK_Q8_0, 300, 50, 32, 1);
    check_linear(BLOCK_Q4_1, 7, 1500, 32, 0);
    check_linear(BLOCK_Q4_0, 3, 1500, 32, 1);
    check_linear(BLOCK_F32, 5, 110, 2100, 0);
    check_linear(BLOCK_F16, 5, 35, 9001, 0);
    check_linear(BLOCK_Q6_K, 6, 600, 512, 0);
}

static void test_linear_group(void **state) {
    (void)state;
    static const size_t rows[3] = {200, 1, 37}, tokens[] = {1, 4, 5, 270};
    for (size_t i = 0; i < 4; i++) {
        size_t T = tokens[i], cols = 64;
        size_scratch(T, 200, cols, 1);
        float *x = noise(T * cols, 2, 1), *bias = noise(37, 3, 1);
        struct matrix w[3];
        struct output y[3];
        double *values[3];
        for (size_t j = 0; j < 3; j++) {
            w[j] = random_matrix(j == 1 ? BLOCK_F32 : BLOCK_Q4_1, rows[j], cols, 10 + j, &values[j]);
            y[j] = output(T * rows[j], NULL);
        }
        EACH_MACHINE(m, ops) {
            struct linear jobs[3];
            for (size_t j = 0; j < 3; j++)
                jobs[j] = (struct linear){.y = y[j].on[m], .x = x, .w = &w[j], .bias = j == 2 ? bias : NULL};
            linear_forward_group(ops, jobs, 3, T);
        }
        for (size_t j = 0; j < 3; j++) {
            struct linear_reference r = {values[j], j == 2 ? widened(bias, 37) : NULL, NULL, widened(x, T * cols),
                                         doubles(T * rows[j]), T, rows[j], cols};
            linear_by_hand(&r);
            near("a group of products", &y[j], r.y, 2e-5);
        }
        release();
    }
}

/* ---- the low-rank pair ---- */

struct pair_reference {
    double *x, *a, *b, *xa, *y;
    const double *dy;
    double scale;
    size_t T, R, rows, cols;
};
static void pair_by_hand(const struct pair_reference *r) {
    for (size_t t = 0; t < r->T; t++) {
        for (size_t k = 0; k < r->R; k++) {
            double sum = 0;
            for (size_t c = 0; c < r->cols; c++) sum += r->x[t * r->cols + c] * r->a[k * r->cols + c];
            r->xa[t * r->R + k] = sum;
        }
        for (size_t i = 0; i < r->rows; i++) {
            double sum = 0;
            for (size_t k = 0; k < r->R; k++) sum += r->xa[t * r->R + k] * r->b[i * r->R + k];
            r->y[t * r->rows + i] = r->scale * sum;
        }
    }
}
static double pair_loss(void *reference) {
    struct pair_reference *r = reference;
    pair_by_hand(r);
    return weighed(r->dy, r->y, r->T * r->rows);
}

static void check_pair(size_t T, size_t R, size_t rows, size_t cols) {
    char what[96];
    snprintf(what, sizeof what, "low rank T %zu R %zu (%zu, %zu)", T, R, rows, cols);
    size_scratch(T, rows, cols, 1);
    float *x = noise(T * cols, 1, 1), *a = noise(R * cols, 2, 1), *b = noise(rows * R, 3, 1);
    float *dy = noise(T * rows, 4, 1), *y_before = noise(T * rows, 5, 1);
    struct low_rank pair = {a, b, 0.37f, R};
    struct pair_reference r = {widened(x, T * cols), widened(a, R * cols), widened(b, rows * R), doubles(T * R),
                               doubles(T * rows), widened(dy, T * rows), (double)pair.scale, T, R, rows, cols};
    struct output y = output(T * rows, y_before), xa = output(T * R, NULL), alone = output(T * R, NULL);
    struct output dx = output(T * cols, noise(T * cols, 6, 1)), dx_only = output(T * cols, dx.before);
    struct output da = output(R * cols, noise(R * cols, 7, 1)), db = output(rows * R, noise(rows * R, 8, 1));
    struct output da_only = output(R * cols, da.before), db_only = output(rows * R, db.before);
    struct output dyb = output(T * R, NULL);
    EACH_MACHINE(m, ops) {
        low_rank_forward(ops, y.on[m], xa.on[m], x, &pair, rows, cols, T);
        low_rank_forward(ops, NULL, alone.on[m], x, &pair, rows, cols, T);
        struct low_rank_gradient both = {da.on[m], db.on[m]}, only = {da_only.on[m], db_only.on[m]};
        low_rank_backward(ops, dx.on[m], dy, x, xa.on[m], dyb.on[m], &pair, &both, rows, cols, T);
        low_rank_backward(ops, NULL, dy, x, xa.on[m], dyb.on[m], &pair, &only, rows, cols, T);
        low_rank_backward(ops, dx_only.on[m], dy, NULL, NULL, dyb.on[m], &pair, NULL, rows, cols, T);
        assert_memory_equal(xa.on[m], alone.on[m], T * R * sizeof(float));
        assert_memory_equal(dx.on[m], dx_only.on[m], T * cols * sizeof(float));
        assert_memory_equal(da.on[m], da_only.on[m], R * cols * sizeof(float));
        assert_memory_equal(db.on[m], db_only.on[m], rows * R * sizeof(float));
    }
    pair_by_hand(&r);
    double *wanted = doubles(T * rows);
    for (size_t i = 0; i < T * rows; i++) wanted[i] = (double)y_before[i] + r.y[i];
    near(what, &y, wanted, 2e-5);
    near(what, &xa, r.xa, 2e-5);
    differences(what, &dx, pair_loss, &r, r.x);
    differences(what, &da, pair_loss, &r, r.a);
    differences(what, &db, pair_loss, &r, r.b);
    release();
}
static void test_low_rank(void **state) {
    (void)state;
    static const size_t tokens[] = {1, 3, 4, 5, 17, 67, 130};
    for (size_t i = 0; i < 7; i++) {
        check_pair(tokens[i], 3, 7, 13);
        check_pair(tokens[i], 1, 1, 257);
        check_pair(tokens[i], 8, 130, 33);
    }
}

/* The pair in the same pass as its matrix: two of a group of three have one. */
static void check_together(enum block_type type, size_t T, size_t R, size_t rows, size_t cols) {
    char what[96];
    snprintf(what, sizeof what, "together T %zu R %zu (%zu, %zu)", T, R, rows, cols);
    size_scratch(T, rows, cols, 1);
    double *values;
    struct matrix w = random_matrix(type, rows, cols, 9, &values);
    float *x = noise(T * cols, 1, 1), *a = noise(R * cols, 2, 1), *b = noise(rows * R, 3, 1);
    float *dy = noise(T * rows, 4, 1);
    struct low_rank pair = {a, b, 0.37f, R}, none = {0};
    struct output y[3] = {output(T * rows, NULL), output(T * rows, NULL), output(T * rows, NULL)};
    struct output xa[2] = {output(T * R, NULL), output(T * R, NULL)}, dyb = output(T * R, NULL);
    struct output dx = output(T * cols, noise(T * cols, 5, 1)), da = output(R * cols, noise(R * cols, 6, 1));
    struct output db = output(rows * R, noise(rows * R, 7, 1)), da_after = output(R * cols, da.before);
    struct output db_after = output(rows * R, db.before), dyb_after = output(T * R, NULL);
    EACH_MACHINE(m, ops) {
        struct linear jobs[3] = {{.y = y[0].on[m], .x = x, .w = &w, .pair = &pair, .xa = xa[0].on[m]},
                                 {.y = y[1].on[m], .x = x, .w = &w, .pair = &none},
                                 {.y = y[2].on[m], .x = x, .w = &w, .pair = &pair, .xa = xa[1].on[m]}};
        struct low_rank_gradient gradient = {da.on[m], db.on[m]}, after = {da_after.on[m], db_after.on[m]};
        linear_forward_group(ops, jobs, 3, T);
        linear_backward(ops, dx.on[m], dy, &w, &pair, dyb.on[m], T, 1);
        low_rank_gradients(ops, dy, x, xa[0].on[m], dyb.on[m], &pair, &gradient, rows, cols, T);
        low_rank_backward(ops, NULL, dy, x, xa[0].on[m], dyb_after.on[m], &pair, &after, rows, cols, T);
        assert_memory_equal(y[0].on[m], y[2].on[m], T * rows * sizeof(float));
        assert_memory_equal(xa[0].on[m], xa[1].on[m], T * R * sizeof(float));
    }
    struct pair_reference r = {widened(x, T * cols), widened(a, R * cols), widened(b, rows * R), doubles(T * R),
                               doubles(T * rows), widened(dy, T * rows), (double)pair.scale, T, R, rows, cols};
    struct linear_reference l = {values, NULL, widened(dy, T * rows), widened(x, T * cols), doubles(T * rows), T, rows,
                                 cols};
    double *wanted = doubles(T * rows), *back = doubles(T * cols), *narrow = doubles(T * R);
    pair_by_hand(&r);
    linear_by_hand(&l);
    for (size_t i = 0; i < T * rows; i++) wanted[i] = l.y[i] + r.y[i];
    for (size_t t = 0; t < T; t++) {
        for (size_t k = 0; k < R; k++)
            for (size_t i = 0; i < rows; i++)
                narrow[t * R + k] += r.scale * r.dy[t * rows + i] * r.b[i * R + k];
        for (size_t c = 0; c < cols; c++) {
            double sum = (double)dx.before[t * cols + c];
            for (size_t i = 0; i < rows; i++) sum += r.dy[t * rows + i] * values[i * cols + c];
            for (size_t k = 0; k < R; k++) sum += narrow[t * R + k] * r.a[k * cols + c];
            back[t * cols + c] = sum;
        }
    }
    near(what, &y[0], wanted, 2e-5);
    near(what, &y[1], l.y, 2e-5);
    near(what, &xa[0], r.xa, 2e-5);
    near(what, &dx, back, 2e-5);
    near(what, &dyb, narrow, 2e-5);
    differences(what, &da, pair_loss, &r, r.a);
    differences(what, &db, pair_loss, &r, r.b);
    for (size_t i = 0; i < R * cols; i++) assert_true(fabsf(da.on[0][i] - da_after.on[0][i]) < 1e-3f);
    release();
}
static void test_together(void **state) {
    (void)state;
    static const size_t tokens[] = {2, 5, 48, 101};
    for (size_t i = 0; i < 4; i++) {
        check_together(BLOCK_Q4_1, tokens[i], 8, 70, 64);
        check_together(BLOCK_Q6_K, tokens[i], 3, 33, 256);
        check_together(BLOCK_F32, tokens[i], 1, 130, 29);
    }
}

/* ---- sums and norms ---- */

static void test_add_rows(void **state) {
    (void)state;
    static const size_t counts[] = {1, 3, 2047, 2049, 5 * 2048 + 7, 40 * 2048 + 1};
    for (size_t i = 0; i < 6; i++) {
        size_t n = counts[i];
        struct output dst = output(n, noise(n, 1, 1));
        float *src = noise(n, 2, 1);
        double *wanted = doubles(n);
        EACH_MACHINE(m, ops) add_rows(ops, dst.on[m], src, n);
        for (size_t k = 0; k < n; k++) wanted[k] = (double)dst.before[k] + (double)src[k];
        near("add_rows", &dst, wanted, 1e-7);
        release();
    }
}

struct norm_reference {
    double *x, *y;
    const double *weight, *dy;
    double eps;
    size_t T, C;
};
static void norm_by_hand(const struct norm_reference *r) {
    for (size_t t = 0; t < r->T; t++) {
        double sum = 0;
        for (size_t c = 0; c < r->C; c++) sum += r->x[t * r->C + c] * r->x[t * r->C + c];
        for (size_t c = 0; c < r->C; c++)
            r->y[t * r->C + c] = r->x[t * r->C + c] / sqrt(sum / (double)r->C + r->eps) * r->weight[c];
    }
}
static double norm_loss(void *reference) {
    struct norm_reference *r = reference;
    norm_by_hand(r);
    return weighed(r->dy, r->y, r->T * r->C);
}
static void test_rms_norm(void **state) {
    (void)state;
    static const size_t tokens[] = {1, 3, 5, 17, 67}, widths[] = {1, 2, 13, 67, 576};
    for (size_t i = 0; i < 25; i++) {
        size_t T = tokens[i / 5], C = widths[i % 5];
        float *x = noise(T * C, 1, i % 2 ? 3 : 0.01f), *weight = noise(C, 2, 2), *dy = noise(T * C, 3, 1);
        float eps = i % 3 ? 1e-5f : 1e-2f;
        struct norm_reference r = {widened(x, T * C), doubles(T * C), widened(weight, C), widened(dy, T * C),
                                   (double)eps, T, C};
        struct output y = output(T * C, NULL), dx = output(T * C, noise(T * C, 4, 1));
        struct output sum = output(T * C, noise(T * C, 5, 1)), of_sum = output(T * C, NULL);
        EACH_MACHINE(m, ops) {
            rms_norm_forward(ops, y.on[m], x, weight, eps, T, C);
            rms_norm_backward(ops, dx.on[m], dy, x, weight, eps, T, C);
            add_rms_norm_forward(ops, of_sum.on[m], sum.on[m], x, weight, eps, T, C);
            /* in two passes: the same bytes */
            float *apart = floats(T * C), *of_apart = floats(T * C);
            memcpy(apart, sum.before, T * C * sizeof *apart);
            add_rows(ops, apart, x, T * C);
            rms_norm_forward(ops, of_apart, apart, weight, eps, T, C);
            assert_memory_equal(sum.on[m], apart, T * C * sizeof *apart);
            assert_memory_equal(of_sum.on[m], of_apart, T * C * sizeof *apart);
        }
        norm_by_hand(&r);
        near("rms_norm", &y, r.y, 2e-6);
        differences("rms_norm", &dx, norm_loss, &r, r.x);
        release();
    }
}

/* ---- rope ---- */

struct rope_reference {
    const struct rope *rope;
    const int32_t *positions;
    double *x, *y;
    const double *dy;
    size_t heads, D, T;
};
/* Pair i turns by position * base^(-2i / dims) / factor. */
static void rope_by_hand(const struct rope_reference *r) {
    size_t dims = r->rope->dims;
    memcpy(r->y, r->x, r->T * r->heads * r->D * sizeof *r->y);
    for (size_t row = 0; row < r->T * r->heads; row++)
        for (size_t i = 0; i < dims / 2; i++) {
            double angle = (double)r->positions[row / r->heads] *
                           pow((double)r->rope->base, -2.0 * (double)i / (double)dims);
            if (r->rope->factors) angle /= (double)r->rope->factors[i];
            size_t u = r->rope->style == ROPE_INTERLEAVED ? 2 * i : i;
            size_t v = r->rope->style == ROPE_INTERLEAVED ? 2 * i + 1 : i + dims / 2;
            const double *x = r->x + row * r->D;
            r->y[row * r->D + u] = x[u] * cos(angle) - x[v] * sin(angle);
            r->y[row * r->D + v] = x[u] * sin(angle) + x[v] * cos(angle);
        }
}
static double rope_loss(void *reference) {
    struct rope_reference *r = reference;
    rope_by_hand(r);
    return weighed(r->dy, r->y, r->T * r->heads * r->D);
}
static void check_rope(const struct rope *rope, size_t T, size_t heads, size_t D) {
    enum { POSITIONS = 200 };
    size_t n = T * heads * D;
    float *table = floats(POSITIONS * rope->dims), *x = noise(n, 1, 1), *dy = noise(n, 2, 1);
    int32_t *positions = take(T, sizeof *positions);
    for (size_t t = 0; t < T; t++) positions[t] = (int32_t)(t == 0 ? 0 : random_u64(3, t) % POSITIONS);
    rope_table(table, rope, POSITIONS);
    struct rope_reference r = {rope, positions, widened(x, n), doubles(n), widened(dy, n), heads, D, T};
    struct output y = output(n, x), dx = output(n, dy), back = output(n, x);
    EACH_MACHINE(m, ops) {
        rope_apply(ops, y.on[m], positions, table, rope, heads, D, T, 0);
        rope_apply(ops, dx.on[m], positions, table, rope, heads, D, T, 1);
        rope_apply(ops, back.on[m], positions, table, rope, heads, D, T, 0);
        rope_apply(ops, back.on[m], positions, table, rope, heads, D, T, 1);
    }
    rope_by_hand(&r);
    near("rope", &y, r.y, 3e-5); /* angles are in float32 */
    assert_memory_equal(y.on[0], x, heads * D * sizeof(float)); /* position 0 */
    near("rope there and back", &back, r.x, 1e-6);
    dx.before = NULL; /* it was rotated in place */
    differences("rope", &dx, rope_loss, &r, r.x);
    release();
}
static void test_rope(void **state) {
    (void)state;
    static const float factors[32] = {1, 1.5f, 4, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8,
                                      8, 8,    8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 32};
    static const size_t tokens[] = {1, 3, 5, 17, 67}, shapes[][2] = {{2, 2}, {6, 6}, {6, 4}, {64, 64}, {64, 32}};
    for (size_t i = 0; i < 5; i++)
        for (size_t s = 0; s < 5; s++)
            for (int style = 0; style < 2; style++) {
                struct rope rope = {style ? ROPE_HALVES : ROPE_INTERLEAVED, shapes[s][1], s % 2 ? 500000.0f : 10000.0f,
                                    i % 2 ? factors : NULL};
                check_rope(&rope, tokens[i], i == 4 ? 1 : 3, shapes[s][0]);
            }
}

/* ---- attention ---- */

struct attention_reference {
    double *q, *k, *v, *o;
    const double *do_;
    const size_t *starts;
    size_t n_sequences, H, KV, D;
};
static void attention_by_hand(const struct attention_reference *r) {
    size_t group = r->H / r->KV, D = r->D;
    double *p = malloc((r->starts[r->n_sequences] + 1) * sizeof *p);
    assert_non_null(p);
    for (size_t s = 0; s < r->n_sequences; s++)
        for (size_t t = r->starts[s]; t < r->starts[s + 1]; t++)
            for (size_t h = 0; h < r->H; h++) {
                double sum = 0, *o = r->o + (t * r->H + h) * D;
                const double *q = r->q + (t * r->H + h) * D;
                for (size_t j = r->starts[s]; j <= t; j++) {
                    const double *k = r->k + (j * r->KV + h / group) * D;
                    p[j] = exp(weighed(q, k, D) / sqrt((double)D));
                    sum += p[j];
                }
                memset(o, 0, D * sizeof *o);
                for (size_t j = r->starts[s]; j <= t; j++)
                    for (size_t d = 0; d < D; d++) o[d] += p[j] / sum * r->v[(j * r->KV + h / group) * D + d];
            }
    free(p);
}
static double attention_loss(void *reference) {
    struct attention_reference *r = reference;
    attention_by_hand(r);
    return weighed(r->do_, r->o, r->starts[r->n_sequences] * r->H * r->D);
}
static void check_attention(const size_t *starts, size_t n_sequences, size_t KV, size_t group, size_t D) {
    char what[96];
    size_t T = starts[n_sequences], H = KV * group, n = T * H * D, kv = T * KV * D;
    snprintf(what, sizeof what, "attention T %zu in %zu, H %zu KV %zu D %zu", T, n_sequences, H, KV, D);
    size_scratch(T, 1, 1, D);
    float *q = noise(n, 1, 1.5f), *k = noise(kv, 2, 1.5f), *v = noise(kv, 3, 1), *do_ = noise(n, 4, 1);
    struct attention_reference r = {widened(q, n), widened(k, kv), widened(v, kv), doubles(n), widened(do_, n),
                                    starts, n_sequences, H, KV, D};
    struct output o = output(n, NULL), dq = output(n, NULL), dk = output(kv, NULL), dv = output(kv, NULL);
    struct output dkv = output(2 * n, NULL);
    EACH_MACHINE(m, ops) {
        attention_forward(ops, o.on[m], q, k, v, starts, n_sequences, H, KV, D);
        attention_backward(ops, dq.on[m], dk.on[m], dv.on[m], dkv.on[m], do_, q, k, v, starts, n_sequences, H, KV, D);
    }
    attention_by_hand(&r);
    near(what, &o, r.o, 1e-5);
    differences(what, &dq, attention_loss, &r, r.q);
    differences(what, &dk, attention_loss, &r, r.k);
    differences(what, &dv, attention_loss, &r, r.v);
    release();
}
static void test_attention(void **state) {
    (void)state;
    static const size_t one[] = {0, 1}, three[] = {0, 3}, five[] = {0, 1, 2, 5}, seventeen[] = {0, 4, 5, 17};
    static const size_t longer[] = {0, 67}, packed[] = {0, 1, 66, 67, 133, 150};
    static const struct {
        const size_t *starts;
        size_t n;
    } packings[] = {{one, 1}, {three, 1}, {five, 3}, {seventeen, 3}, {longer, 1}};
    static const size_t widths[] = {2, 6, 64};
    for (size_t i = 0; i < 5; i++)
        for (size_t w = 0; w < 3; w++)
            for (size_t group = 1; group <= 3; group++)
                check_attention(packings[i].starts, packings[i].n, 1 + (group + i) % 2, group, widths[w]);
    check_attention(packed, 5, 2, 2, 6);
    /* so long that the backward cuts a sequence: into as many parts as memory lets it */
    static const size_t cut[] = {0, 200}, cut_packed[] = {0, 30, 127, 128, 512}, cut_often[] = {0, 401};
    check_attention(cut, 1, 2, 1, 6);
    check_attention(cut_packed, 4, 1, 3, 2);
    check_attention(cut_often, 1, 1, 8, 2);
}

/* New rows over a cache (KV, context, D) give what the whole sequence gives; rows behind them are not read. */
static void check_cached(size_t past, size_t T, size_t KV, size_t group, size_t D, enum block_type kind) {
    size_t all = past + T, context = all + 3, H = KV * group;
    size_t starts[2] = {0, all};
    float *q = noise(all * H * D, 1, 1.5f), *k = noise(all * KV * D, 2, 1.5f), *v = noise(all * KV * D, 3, 1);
    const struct block_format *format = block_format_get(kind);
    struct cached_layer layer = {.kind = kind, .context = context, .row_bytes = block_row_bytes(kind, D), .KV = KV,
                                 .D = D};
    size_t cache_bytes = KV * context * layer.row_bytes, row = KV * D;
    layer.k = take(cache_bytes, 1);
    layer.v = take(cache_bytes, 1);
    float *parts = floats(attention_cached_parts_floats(H, KV, D));
    size_scratch(all, 1, 1, D);
    /* the reference attends over what the blocks hold; rows of the cache that are not there would show as NaN */
    unsigned char *packed = take(all * layer.row_bytes * KV, 1);
    format->quantize(packed, k, all * row);
    format->dequantize(k, packed, all * row);
    format->quantize(packed, v, all * row);
    format->dequantize(v, packed, all * row);
    struct attention_reference r = {widened(q, all * H * D), widened(k, all * KV * D), widened(v, all * KV * D),
                                    doubles(all * H * D), NULL, starts, 1, H, KV, D};
    struct output whole = output(all * H * D, NULL), o = output(T * H * D, NULL);
    double *from_whole = doubles(T * H * D);
    EACH_MACHINE(m, ops) {
        attention_forward(ops, whole.on[m], q, k, v, starts, 1, H, KV, D);
        size_cached_scratch(&machines[m].ops, H, KV, D);
        memset(layer.k, 0xff, cache_bytes);
        memset(layer.v, 0xff, cache_bytes);
        for (size_t i = 0; i < attention_cached_parts_floats(H, KV, D); i++) parts[i] = NAN;
        cached_layer_store(ops, &layer, k, v, 0, past);
        cached_layer_store(ops, &layer, k + past * row, v + past * row, past, T);
        attention_cached(ops, o.on[m], q + past * H * D, &layer, past, T, H, parts);
    }
    attention_by_hand(&r);
    near("attention over a cache", &o, r.o + past * H * D, 1e-5);
    for (size_t i = 0; i < T * H * D; i++) from_whole[i] = (double)whole.on[0][past * H * D + i];
    near("attention over a cache and of the whole", &o, from_whole, 1e-5);
    release();
}
static void test_attention_cached(void **state) {
    (void)state;
    static const size_t pasts[] = {0, 1, 5, 66, 130}, news[] = {1, 3, 17, 64, 67};
    static const size_t widths[] = {2, 6, 64};
    /* parts of keys that end inside and outside of tiles; tokens of which some see nothing of a part */
    static const size_t far[] = {127, 128, 255, 400, 600}, few[] = {1, 2, 16, 24, 50};
    static const size_t kind_widths[] = {32, 64, 96};
    static const enum block_type cache_kinds[] = {BLOCK_F32, BLOCK_F16, BLOCK_Q8_0};
    for (size_t i = 0; i < 5; i++)
        for (size_t n = 0; n < 5; n++)
            check_cached(far[i], few[n], 1 + (i + n) % 3, 1 + (i + 2 * n) % 4, kind_widths[(i + n) % 3],
                         cache_kinds[(2 * i + n) % 3]);
    check_cached(90, 3, 1, 80, 32, BLOCK_Q8_0); /* more heads in a group than a task should have rows */
    check_cached(300, 1, 25, 1, 32, BLOCK_F16);
    for (size_t p = 0; p < 5; p++)
        for (size_t n = 0; n < 5; n++)
            for (size_t group = 1; group <= 3; group++)
                check_cached(pasts[p], news[n], 1 + (p + n) % 2, group, widths[(p + n + group) % 3], BLOCK_F32);
}

/* ---- swiglu ---- */

struct swiglu_reference {
    double *gate, *up, *y;
    const double *dy;
    size_t n;
};
static double swiglu_loss(void *reference) {
    struct swiglu_reference *r = reference;
    for (size_t i = 0; i < r->n; i++) r->y[i] = r->gate[i] / (1 + exp(-r->gate[i])) * r->up[i];
    return weighed(r->dy, r->y, r->n);
}
static void test_swiglu(void **state) {
    (void)state;
    static const size_t counts[] = {1, 3, 5, 17, 67, 2047, 2049, 5 * 2048 + 7, 17 * 2048 + 3};
    for (size_t i = 0; i < 9; i++) {
        size_t n = counts[i];
        float *gate = noise(n, 1, i % 2 ? 30 : 4), *up = noise(n, 2, 2), *dy = noise(n, 3, 1);
        gate[0] = i % 3 ? 0.0f : -88.0f;
        struct swiglu_reference r = {widened(gate, n), widened(up, n), doubles(n), widened(dy, n), n};
        struct output y = output(n, NULL), dgate = output(n, NULL), dup = output(n, NULL);
        struct output over_gate = output(n, gate), over_up = output(n, up);
        EACH_MACHINE(m, ops) {
            swiglu_forward(ops, y.on[m], gate, up, n);
            swiglu_backward(ops, dgate.on[m], dup.on[m], dy, gate, up, n);
            swiglu_backward(ops, over_gate.on[m], over_up.on[m], dy, over_gate.on[m], over_up.on[m], n);
            assert_memory_equal(dgate.on[m], over_gate.on[m], n * sizeof(float));
            assert_memory_equal(dup.on[m], over_up.on[m], n * sizeof(float));
        }
        swiglu_loss(&r);
        near("swiglu", &y, r.y, 2e-6);
        differences("swiglu gate", &dgate, swiglu_loss, &r, r.gate);
        differences("swiglu up", &dup, swiglu_loss, &r, r.up);
        release();
    }
}

/* ---- both ends of the vocabulary ---- */

static void test_embedding(void **state) {
    (void)state;
    static const size_t tokens[] = {1, 3, 5, 17, 67};
    for (size_t i = 0; i < 5; i++)
        for (size_t k = 0; k < TYPES; k++) {
            size_t T = tokens[i], V = 29, C = block_format_get(types[k])->elements == 1 ? 33 : 256;
            double *values, *wanted = doubles(T * C);
            struct matrix embedding = random_matrix(types[k], V, C, 1, &values);
            int32_t *ids = take(T, sizeof *ids);
            struct output x = output(T * C, NULL);
            for (size_t t = 0; t < T; t++) {
                ids[t] = (int32_t)(t == 0 ? V - 1 : random_u64(2, t) % V);
                memcpy(wanted + t * C, values + (size_t)ids[t] * C, C * sizeof *wanted);
            }
            EACH_MACHINE(m, ops) embedding_forward(ops, x.on[m], ids, &embedding, T);
            near("embedding", &x, wanted, 0);
            release();
        }
}

struct head_reference {
    const double *w, *weights;
    const int32_t *targets;
    double *x, *losses;
    size_t n, V, C;
};
static double head_by_hand(void *reference) {
    struct head_reference *r = reference;
    double *z = malloc(r->V * sizeof *z), total = 0;
    assert_non_null(z);
    for (size_t i = 0; i < r->n; i++) {
        double max = -INFINITY, sum = 0;
        for (size_t v = 0; v < r->V; v++) {
            z[v] = weighed(r->x + i * r->C, r->w + v * r->C, r->C);
            max = fmax(max, z[v]);
        }
        for (size_t v = 0; v < r->V; v++) sum += exp(z[v] - max);
        r->losses[i] = max + log(sum) - z[r->targets[i]];
        total += r->weights[i] * r->losses[i];
    }
    free(z);
    return total;
}
enum { HEAD_CHUNK = 64 };
static void check_head(enum block_type type, size_t n, size_t V, size_t C) {
    char what[96];
    snprintf(what, sizeof what, "head %s n %zu (%zu, %zu)", block_type_name(type), n, V, C);
    size_scratch(HEAD_CHUNK, V, C, 1);
    double *values;
    struct matrix head = random_matrix(type, V, C, 1, &values);
    float *x = noise(n * C, 2, 2), *weights = noise(n, 3, 1), *logits = floats(HEAD_CHUNK * V);
    float *over = floats(n * C), *again = floats(n);
    int32_t *targets = take(n, sizeof *targets);
    for (size_t i = 0; i < n; i++) targets[i] = (int32_t)(i == 0 ? V - 1 : random_u64(4, i) % V);
    struct head_reference r = {values, widened(weights, n), targets, widened(x, n * C), doubles(n), n, V, C};
    struct output losses = output(n, NULL), dx = output(n * C, NULL), alone = output(n, NULL);
    EACH_MACHINE(m, ops) {
        head_loss(ops, losses.on[m], dx.on[m], logits, HEAD_CHUNK, x, targets, weights, &head, n);
        head_loss(ops, alone.on[m], NULL, logits, HEAD_CHUNK, x, targets, NULL, &head, n);
        /* the same for any chunk, and over x itself */
        for (size_t chunk = 16; chunk < HEAD_CHUNK; chunk += 17) {
            memcpy(over, x, n * C * sizeof *over);
            head_loss(ops, again, over, logits, chunk, over, targets, weights, &head, n);
            assert_memory_equal(again, losses.on[m], n * sizeof *again);
            assert_memory_equal(over, dx.on[m], n * C * sizeof *over);
        }
    }
    head_by_hand(&r);
    near(what, &losses, r.losses, 1e-5);
    near(what, &alone, r.losses, 1e-5);
    differences(what, &dx, head_by_hand, &r, r.x);
    release();
}
static void test_head_loss(void **state) {
    (void)state;
    static const size_t rows[] = {1, 3, 5, 17, 67, 130};
    for (size_t i = 0; i < 6; i++) {
        check_head(BLOCK_F32, rows[i], 11, 7);
        check_head(i % 2 ? BLOCK_F16 : BLOCK_BF16, rows[i], 1 + 100 * (i % 2), 33);
        check_head(i % 2 ? BLOCK_Q8_0 : BLOCK_Q4_1, rows[i], 301, 64);
    }
    check_head(BLOCK_Q6_K, 5, 97, 256);
    check_head(BLOCK_Q4_0, 66, 97, 32);
}

/* ---- dropout ---- */

static void test_dropout(void **state) {
    (void)state;
    enum { T = 200, C = 333 };
    static const float shares[] = {0.0f, 0.1f, 0.5f, 0.9f};
    uint64_t keys[T];
    for (size_t t = 0; t < T; t++) keys[t] = random_u64(1, t);
    for (size_t s = 0; s < 4; s++) {
        float p = shares[s], *x = noise(T * C, 2, 1), *dy = noise(T * C, 3, 1), *row = floats(C);
        struct output y = output(T * C, NULL), dx = output(T * C, dy), other = output(T * C, NULL);
        size_t zeros = 0, same = 0;
        for (size_t i = 0; i < T * C; i++) x[i] += x[i] < 0 ? -0.1f : 0.1f;
        EACH_MACHINE(m, ops) {
            dropout_apply(ops, y.on[m], x, p, 17, keys, T, C);
            dropout_apply(ops, dx.on[m], dx.on[m], p, 17, keys, T, C); /* in place, as the backward does */
            dropout_apply(ops, other.on[m], x, p, 18, keys, T, C);
            for (size_t t = 0; t < T; t += 19) { /* a row alone: where chunks begin does not matter */
                dropout_apply(ops, row, x + t * C, p, 17, keys + t, 1, C);
                assert_memory_equal(row, y.on[m] + t * C, C * sizeof(float));
            }
        }
        same_for_any_threads("dropout", &y);
        same_for_any_threads("dropout backward", &dx);
        double scale = 1.0 / (1.0 - (double)p);
        for (size_t i = 0; i < T * C; i++) {
            int dropped = y.on[0][i] == 0.0f;
            zeros += (size_t)dropped;
            same += dropped == (other.on[0][i] == 0.0f);
            if (!(fabs((double)y.on[0][i] - (dropped ? 0 : (double)x[i] * scale)) <= 1e-5) ||
                !(fabs((double)dx.on[0][i] - (dropped ? 0 : (double)dy[i] * scale)) <= 1e-5))
                fail_msg("dropout %g: element %zu is %g from %g, its derivative %g from %g", (double)p, i,
                         (double)y.on[0][i], (double)x[i], (double)dx.on[0][i], (double)dy[i]);
        }
        double share = (double)zeros / (T * C), agree = (double)same / (T * C);
        double chance = (double)p * (double)p + (1 - (double)p) * (1 - (double)p);
        if (!(fabs(share - (double)p) < 0.01)) fail_msg("dropout %g zeroes %g", (double)p, share);
        if (!(fabs(agree - chance) < 0.015)) fail_msg("masks of two keys agree in %g, by chance %g", agree, chance);
        for (size_t t = 1; t < T && p > 0.0f; t++) { /* rows of their own */
            size_t equal = 0;
            for (size_t c = 0; c < C; c++) equal += (y.on[0][c] == 0.0f) == (y.on[0][t * C + c] == 0.0f);
            assert_true(equal < C);
        }
        release();
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear),     cmocka_unit_test(test_linear_cuts),
        cmocka_unit_test(test_linear_group), cmocka_unit_test(test_low_rank), cmocka_unit_test(test_together),
        cmocka_unit_test(test_add_rows),   cmocka_unit_test(test_rms_norm),
        cmocka_unit_test(test_rope),       cmocka_unit_test(test_attention),
        cmocka_unit_test(test_attention_cached), cmocka_unit_test(test_swiglu),
        cmocka_unit_test(test_embedding),  cmocka_unit_test(test_head_loss),
        cmocka_unit_test(test_dropout),
    };
    return cmocka_run_group_tests(tests, start_machines, stop_machines);
}
