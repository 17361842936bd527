/* Products with a frozen quantized matrix, and the low-rank pair beside it.
 *
 * A tile of the matrix is dequantized into the worker's scratch (sized for L2) and multiplied
 * there. How the work is cut depends on the shapes alone, so the sums do too. */
#include "core/ops/ops.h"

enum {
    TILE_FLOATS = 128 * 1024, /* 512 KiB: half of a common L2 */
    ROW_TILE = 96,            /* divides the widths of small models; keeps sgemm's panels full */
    TOKEN_CHUNK = 256,        /* tokens a task: enough to pay for the tile's dequantization */
    FEW_TOKENS = 4,           /* up to here rows are multiplied as they are dequantized */
    PAIR_CHUNK = 64,
    PAIR_COLUMNS = 128
};

static size_t min_size(size_t a, size_t b) { return a < b ? a : b; }
static size_t max_size(size_t a, size_t b) { return a > b ? a : b; }
static size_t chunks(size_t n, size_t each) { return (n + each - 1) / each; }

/* Rows of W in a forward tile. */
static size_t row_tile(size_t cols) {
    size_t rows = min_size(TILE_FLOATS / max_size(cols, 1), ROW_TILE);
    return max_size(rows / 16 * 16, 16);
}

/* Columns of W in a backward tile: whole blocks. */
static size_t column_tile(const struct matrix *w) {
    size_t block = block_format_get(w->type)->elements;
    return block > ROW_TILE ? block : ROW_TILE / block * block;
}

size_t ops_scratch_floats(size_t T, size_t rows_max, size_t cols_max, size_t D) {
    (void)rows_max;
    size_t tile = max_size(TILE_FLOATS, 16 * cols_max) + 256 * 16;
    size_t attention = 2 * ops_attention_rows * max_size(T, 1) + 2 * ops_attention_rows * D;
    return max_size(tile, attention);
}

/* ---- forward ---- */

struct forward {
    const struct ops *ops;
    const struct linear *jobs;
    size_t n_jobs, T;
};

/* Task i of the group -> job and tile within it. */
static const struct linear *forward_locate(const struct forward *f, size_t (*tasks)(const struct linear *, size_t),
                                           size_t *i) {
    const struct linear *job = f->jobs;
    for (;; job++) {
        size_t n = tasks(job, f->T);
        if (*i < n) return job;
        *i -= n;
    }
}

static void add_bias(float *y, const float *bias, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += bias[i];
}

static size_t few_rows(const struct linear *job) { return max_size((job->w->rows / 24 + 15) / 16 * 16, 32); }
static size_t few_tasks(const struct linear *job, size_t T) {
    (void)T;
    return chunks(job->w->rows, few_rows(job));
}
static void forward_few(void *argument, size_t i, int worker) {
    const struct forward *f = argument;
    const struct linear *job = forward_locate(f, few_tasks, &i);
    const struct matrix *w = job->w;
    (void)worker;
    size_t r0 = i * few_rows(job), r1 = min_size(r0 + few_rows(job), w->rows);
    for (size_t t = 0; t < f->T; t++) {
        float *y = job->y + t * w->rows + r0;
        f->ops->kernels->row_dots[w->type](y, (const unsigned char *)w->data + r0 * w->row_bytes, w->row_bytes, r1 - r0,
                                           job->x + t * w->cols, w->cols);
        if (job->bias) add_bias(y, job->bias + r0, r1 - r0);
    }
}

static size_t tile_tasks(const struct linear *job, size_t T) {
    return chunks(job->w->rows, row_tile(job->w->cols)) * chunks(T, TOKEN_CHUNK);
}
static void forward_tile(void *argument, size_t i, int worker) {
    const struct forward *f = argument;
    const struct linear *job = forward_locate(f, tile_tasks, &i);
    const struct matrix *w = job->w;
    const struct kernels *kernels = f->ops->kernels;
    float *tile = f->ops->scratch + (size_t)worker * f->ops->scratch_floats;
    size_t each = row_tile(w->cols), n_tiles = chunks(w->rows, each);
    size_t r0 = i % n_tiles * each, r1 = min_size(r0 + each, w->rows);
    size_t t0 = i / n_tiles * TOKEN_CHUNK, t1 = min_size(t0 + TOKEN_CHUNK, f->T);
    for (size_t r = r0; r < r1; r++)
        kernels->dequantize[w->type](tile + (r - r0) * w->cols, (const unsigned char *)w->data + r * w->row_bytes,
                                     w->cols);
    kernels->gemm(0, 1, t1 - t0, r1 - r0, w->cols, 1.0f, job->x + t0 * w->cols, w->cols, tile, w->cols, 0.0f,
                  job->y + t0 * w->rows + r0, w->rows);
    if (job->bias)
        for (size_t t = t0; t < t1; t++) add_bias(job->y + t * w->rows + r0, job->bias + r0, r1 - r0);
}

void linear_forward_group(const struct ops *ops, const struct linear *jobs, size_t n_jobs, size_t T) {
    struct forward f = {ops, jobs, n_jobs, T};
    int few = T <= FEW_TOKENS;
    size_t tasks = 0;
    for (size_t j = 0; j < n_jobs; j++) tasks += few ? few_tasks(&jobs[j], T) : tile_tasks(&jobs[j], T);
    pool_run(ops->pool, tasks, few ? forward_few : forward_tile, &f);
}

void linear_forward(const struct ops *ops, float *y, const float *x, const struct matrix *w, const float *bias,
                    size_t T) {
    struct linear job = {y, x, w, bias};
    linear_forward_group(ops, &job, 1, T);
}

/* ---- backward: dx = dy W, so columns of W are tiles and its rows are summed over in chunks ---- */

struct backward {
    const struct ops *ops;
    float *dx;
    const float *dy;
    const struct matrix *w;
    size_t T;
    int accumulate;
};

static void backward_tile(void *argument, size_t i, int worker) {
    const struct backward *b = argument;
    const struct matrix *w = b->w;
    const struct kernels *kernels = b->ops->kernels;
    const struct block_format *format = block_format_get(w->type);
    float *tile = b->ops->scratch + (size_t)worker * b->ops->scratch_floats;
    size_t each = column_tile(w), n_tiles = chunks(w->cols, each);
    size_t c0 = i % n_tiles * each, n_cols = min_size(each, w->cols - c0);
    size_t t0 = i / n_tiles * TOKEN_CHUNK, t1 = min_size(t0 + TOKEN_CHUNK, b->T);
    size_t offset = c0 / format->elements * format->bytes, rows_max = TILE_FLOATS / each;
    for (size_t r0 = 0; r0 < w->rows; r0 += rows_max) {
        size_t r1 = min_size(r0 + rows_max, w->rows);
        for (size_t r = r0; r < r1; r++)
            kernels->dequantize[w->type](tile + (r - r0) * n_cols,
                                         (const unsigned char *)w->data + r * w->row_bytes + offset, n_cols);
        kernels->gemm(0, 0, t1 - t0, n_cols, r1 - r0, 1.0f, b->dy + t0 * w->rows + r0, w->rows, tile, n_cols,
                      b->accumulate || r0 > 0 ? 1.0f : 0.0f, b->dx + t0 * w->cols + c0, w->cols);
    }
}

void linear_backward(const struct ops *ops, float *dx, const float *dy, const struct matrix *w, size_t T,
                     int accumulate) {
    struct backward b = {ops, dx, dy, w, T, accumulate};
    pool_run(ops->pool, chunks(w->cols, column_tile(w)) * chunks(T, TOKEN_CHUNK), backward_tile, &b);
}

/* ---- the low-rank pair ---- */

struct pair {
    const struct ops *ops;
    const struct low_rank *pair;
    float *y, *xa, *dx, *dyb;
    const float *x, *dy;
    const struct low_rank_gradient *gradient;
    size_t rows, cols, T;
};

static void pair_forward_few(const struct pair *p) {
    const struct kernels *kernels = p->ops->kernels;
    size_t R = p->pair->rank;
    for (size_t t = 0; t < p->T; t++) {
        float *xa = p->xa + t * R, *y = p->y ? p->y + t * p->rows : NULL;
        for (size_t r = 0; r < R; r++) xa[r] = kernels->dot(p->x + t * p->cols, p->pair->a + r * p->cols, p->cols);
        for (size_t i = 0; y && i < p->rows; i++) {
            float sum = 0;
            for (size_t r = 0; r < R; r++) sum += xa[r] * p->pair->b[i * R + r];
            y[i] += p->pair->scale * sum;
        }
    }
}

static void pair_forward_chunk(void *argument, size_t i, int worker) {
    const struct pair *p = argument;
    const struct kernels *kernels = p->ops->kernels;
    (void)worker;
    size_t R = p->pair->rank, t0 = i * PAIR_CHUNK, n = min_size(PAIR_CHUNK, p->T - t0);
    kernels->gemm(0, 1, n, R, p->cols, 1.0f, p->x + t0 * p->cols, p->cols, p->pair->a, p->cols, 0.0f, p->xa + t0 * R,
                  R);
    if (!p->y) return;
    kernels->gemm(0, 1, n, p->rows, R, p->pair->scale, p->xa + t0 * R, R, p->pair->b, R, 1.0f, p->y + t0 * p->rows,
                  p->rows);
}

void low_rank_forward(const struct ops *ops, float *y, float *xa, const float *x, const struct low_rank *pair,
                      size_t rows, size_t cols, size_t T) {
    struct pair p = {.ops = ops, .pair = pair, .y = y, .xa = xa, .x = x, .rows = rows, .cols = cols, .T = T};
    if (T <= FEW_TOKENS)
        pair_forward_few(&p);
    else
        pool_run(ops->pool, chunks(T, PAIR_CHUNK), pair_forward_chunk, &p);
}

/* forward: xa = x A^T;  y += scale xa B^T.
 * backward: dyb = scale dy B;  dx += dyb A;  dA += dyb^T x;  dB += scale dy^T xa. */
static void pair_backward_chunk(void *argument, size_t i, int worker) {
    const struct pair *p = argument;
    const struct kernels *kernels = p->ops->kernels;
    (void)worker;
    size_t R = p->pair->rank, t0 = i * PAIR_CHUNK, n = min_size(PAIR_CHUNK, p->T - t0);
    kernels->gemm(0, 0, n, R, p->rows, p->pair->scale, p->dy + t0 * p->rows, p->rows, p->pair->b, R, 0.0f,
                  p->dyb + t0 * R, R);
    if (p->dx)
        kernels->gemm(0, 0, n, p->cols, R, 1.0f, p->dyb + t0 * R, R, p->pair->a, p->cols, 1.0f, p->dx + t0 * p->cols,
                      p->cols);
}

static void pair_gradient_columns(void *argument, size_t i, int worker) {
    const struct pair *p = argument;
    const struct kernels *kernels = p->ops->kernels;
    (void)worker;
    size_t R = p->pair->rank, n_a = chunks(p->cols, PAIR_COLUMNS);
    if (i < n_a) {
        size_t c0 = i * PAIR_COLUMNS, n = min_size(PAIR_COLUMNS, p->cols - c0);
        kernels->gemm(1, 0, R, n, p->T, 1.0f, p->dyb, R, p->x + c0, p->cols, 1.0f, p->gradient->da + c0, p->cols);
    } else {
        size_t r0 = (i - n_a) * PAIR_COLUMNS, n = min_size(PAIR_COLUMNS, p->rows - r0);
        kernels->gemm(1, 0, n, R, p->T, p->pair->scale, p->dy + r0, p->rows, p->xa, R, 1.0f, p->gradient->db + r0 * R,
                      R);
    }
}

void low_rank_backward(const struct ops *ops, float *dx, const float *dy, const float *x, const float *xa, float *dyb,
                       const struct low_rank *pair, const struct low_rank_gradient *gradient, size_t rows,
                       size_t cols, size_t T) {
    struct pair p = {.ops = ops, .pair = pair, .xa = (float *)(uintptr_t)xa, .dx = dx, .dyb = dyb, .x = x, .dy = dy,
                     .gradient = gradient, .rows = rows, .cols = cols, .T = T};
    pool_run(ops->pool, chunks(T, PAIR_CHUNK), pair_backward_chunk, &p);
    if (gradient)
        pool_run(ops->pool, chunks(cols, PAIR_COLUMNS) + chunks(rows, PAIR_COLUMNS), pair_gradient_columns, &p);
}
