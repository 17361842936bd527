/* Products with a frozen quantized matrix, and the low-rank pair beside it.
 *
 * Rows are packed once, by all workers, in chunks of terms; then each task unpacks its own part of the matrix into
 * the worker's scratch, chunk by chunk, and multiplies all rows with it (struct product). An element is the same
 * sum of chunks however the work is cut. */
#include "core/ops/ops.h"

#include <sched.h>
#include <stdatomic.h>

enum {
    FEW_TOKENS = 4,      /* up to here rows are multiplied as they are dequantized */
    FEW_ROUNDED = 7,     /* the same for rows in bytes. Less than head_loss's chunks have */
    PACKED_TERMS = 4096, /* terms of which packed rows exist at once: bounds the memory under the LM head */
    PACK_ROWS = 48,      /* rows that a task packs, about */
    WIDEST_BLOCK = 256,
    FINE = 32,           /* outputs of the smallest task, or a block */
    TASK_LEAST = 8192,   /* bytes of a matrix in a task where there are few tokens */
    TASK_MOST = 65536,
    NARROW_ROWS = 4,     /* of a pair's A that are multiplied at once where there are few tokens */
    LINE = 16,           /* floats */
    ASK_MOST = 1024,     /* floats that are asked for at once */
    PAIR_CHUNK = 64,
    PAIR_COLUMNS = 128
};

static size_t min_size(size_t a, size_t b) { return a < b ? a : b; }
static size_t max_size(size_t a, size_t b) { return a > b ? a : b; }
static size_t chunks(size_t n, size_t each) { return (n + each - 1) / each; }

/* Terms of which rows are packed at once: whole chunks of the product's. */
static size_t packed_terms(const struct product *product) {
    return max_size(PACKED_TERMS / product->terms, 1) * product->terms;
}

static size_t packed_bytes(const struct product *product, size_t T, size_t k) {
    size_t whole = k / product->terms, rest = k % product->terms;
    return whole * product->rows_bytes(T, product->terms) + (rest ? product->rows_bytes(T, rest) : 0);
}

size_t ops_packed_bytes(const struct kernels *kernels, const struct product *product, size_t T, size_t rows_max,
                        size_t cols_max, size_t R_max) {
    size_t wide = max_size(rows_max, cols_max);
    size_t few = product != kernels->exact && kernels->rounded
                     ? min_size(T, FEW_ROUNDED) * kernels->rounded->bytes(chunks(wide, WIDEST_BLOCK) * WIDEST_BLOCK)
                     : 0;
    return max_size(few, packed_bytes(product, T, min_size(wide, packed_terms(product))) +
                             LINEAR_GROUP * kernels->exact->rows_bytes(T, R_max));
}

size_t ops_scratch_floats(const struct product *product, size_t T, size_t D) {
    size_t panels = product->panels_bytes(max_size(product->region, WIDEST_BLOCK), product->terms) / sizeof(float);
    size_t attention = attention_scratch_floats(T, D);
    return (max_size(panels, attention) + 15) / 16 * 16; /* each worker's is aligned */
}

static void add_bias(float *y, const float *bias, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += bias[i];
}

/* ---- few rows, as when answering ---- */

/* Jobs with one x. Its rows are rounded to bytes where the product is not exact, and where the table knows how to
 * multiply bytes with blocks of the job's type.
 *
 * y of the pairs needs all of x A^T, but not before a task's rows of W are done. So the rows of A are done in pieces,
 * by whichever task gets to them first, and that they are done is waited for at the end of a task: then the others are
 * at most in the middle of a piece. Who has claimed a piece does it at once, so that nobody waits for whoever waits. */
struct few {
    const struct ops *ops;
    const struct linear *jobs;
    size_t n_jobs, T;
    const struct rounded *rounded; /* NULL: f32 */
    size_t pieces;
    atomic_size_t next, done; /* pieces */
};

static int has_pair(const struct linear *job) { return job->pair && job->pair->rank > 0; }
/* Of a task: many, so that workers end together, but long enough that claiming one costs nothing. */
static size_t few_rows(const struct linear *job) {
    size_t rows = min_size(max_size(job->w->rows / 64 * job->w->row_bytes, TASK_LEAST), TASK_MOST) / job->w->row_bytes;
    return max_size(rows / 8, 1) * 8;
}
static size_t pieces_of(const struct linear *job) { return has_pair(job) ? chunks(job->pair->rank, NARROW_ROWS) : 0; }

/* Rows r .. r + NARROW_ROWS of A, or as many as there are. */
static void narrow_rows(const struct kernels *kernels, const struct low_rank *pair, float *xa, const float *x,
                        size_t cols, size_t r, size_t T) {
    size_t n = min_size(NARROW_ROWS, pair->rank - r);
    for (size_t t = 0; t < T; t++)
        kernels->row_dots[BLOCK_F32](xa + t * pair->rank + r, pair->a + r * cols, cols * sizeof(float), n, x + t * cols,
                                     cols);
}

static void do_pieces(struct few *f) {
    size_t i;
    if (atomic_load_explicit(&f->next, memory_order_relaxed) >= f->pieces) return;
    while ((i = atomic_fetch_add_explicit(&f->next, 1, memory_order_relaxed)) < f->pieces) {
        const struct linear *job = f->jobs;
        for (; i >= pieces_of(job); job++) i -= pieces_of(job);
        narrow_rows(f->ops->kernels, job->pair, job->xa, job->x, job->w->cols, i * NARROW_ROWS, f->T);
        atomic_fetch_add_explicit(&f->done, 1, memory_order_release);
    }
}

/* What is needed once the rows of W are done: it comes in the meantime. */
static void ask_for(const float *p, size_t n) {
    for (size_t i = 0; i < min_size(n, ASK_MOST); i += LINE) __builtin_prefetch(p + i, 0, 3);
}

static void forward_few(void *argument, size_t i, int worker) {
    struct few *f = argument;
    const struct kernels *kernels = f->ops->kernels;
    const struct linear *job = f->jobs;
    (void)worker;
    do_pieces(f);
    for (; i >= chunks(job->w->rows, few_rows(job)); job++) i -= chunks(job->w->rows, few_rows(job));
    const struct matrix *w = job->w;
    size_t r0 = i * few_rows(job), n = min_size(few_rows(job), w->rows - r0);
    const unsigned char *rows = (const unsigned char *)w->data + r0 * w->row_bytes;
    float *y = job->y + r0;
    if (has_pair(job)) ask_for(job->pair->b + r0 * job->pair->rank, n * job->pair->rank);
    if (f->rounded && f->rounded->dots[w->type])
        f->rounded->dots[w->type](y, w->rows, rows, w->row_bytes, n, f->ops->packed, f->T, w->cols);
    else
        for (size_t t = 0; t < f->T; t++)
            kernels->row_dots[w->type](y + t * w->rows, rows, w->row_bytes, n, job->x + t * w->cols, w->cols);
    for (size_t t = 0; job->bias && t < f->T; t++) add_bias(y + t * w->rows, job->bias + r0, n);
    if (!has_pair(job)) return;
    while (atomic_load_explicit(&f->done, memory_order_acquire) < f->pieces) sched_yield();
    for (size_t t = 0; t < f->T; t++)
        kernels->add_narrow(y + t * w->rows, job->pair->b + r0 * job->pair->rank, n, job->xa + t * job->pair->rank,
                            job->pair->rank, job->pair->scale);
}

/* How the rows of these jobs are rounded; NULL: not at all. */
static const struct rounded *rounding(const struct ops *ops, const struct linear *jobs, size_t n_jobs) {
    const struct rounded *rounded = ops->product == ops->kernels->exact ? NULL : ops->kernels->rounded;
    for (size_t j = 0; rounded && j < n_jobs; j++)
        if (rounded->dots[jobs[j].w->type]) return rounded;
    return NULL;
}

static void multiply_few(const struct ops *ops, const struct linear *jobs, size_t n_jobs, size_t T) {
    struct few f = {.ops = ops, .jobs = jobs, .n_jobs = n_jobs, .T = T, .rounded = rounding(ops, jobs, n_jobs)};
    size_t tasks = 0, cols = jobs->w->cols;
    for (size_t t = 0; f.rounded && t < T; t++)
        f.rounded->round((unsigned char *)ops->packed + t * f.rounded->bytes(cols), jobs->x + t * cols, cols);
    for (size_t j = 0; j < n_jobs; j++) {
        tasks += chunks(jobs[j].w->rows, few_rows(&jobs[j]));
        f.pieces += pieces_of(&jobs[j]);
    }
    pool_run(ops->pool, tasks, forward_few, &f);
}

/* ---- many rows ---- */

/* y (+)= x op(W) + the pair's, over terms first .. last, for jobs with one x. The pair's own product, into as few
 * columns as its rank, is taken from the rows while they are packed; its second one is a few more terms of a task. */
struct multiplication {
    const struct ops *ops;
    const struct linear *jobs;
    size_t n_jobs, T, first, last;
    size_t region; /* outputs of a task */
    size_t fine;   /* of the last job's outputs, about, in tasks of FINE: workers then end at about the same time */
    int backward, accumulate;
};

static size_t terms_of(const struct matrix *w, int backward) { return backward ? w->rows : w->cols; }
static size_t outputs_of(const struct matrix *w, int backward) { return backward ? w->cols : w->rows; }

/* About `outputs` of a matrix: whole blocks where they are columns. */
static size_t whole_blocks(const struct multiplication *m, const struct matrix *w, size_t outputs) {
    size_t block = m->backward ? block_format_get(w->type)->elements : 1;
    return chunks(outputs, block) * block;
}

/* A job's outputs up to `coarse` make tasks of `region`, the others of `fine`. */
struct cut {
    size_t outputs, coarse, region, fine;
};
static struct cut cut_of(const struct multiplication *m, size_t j) {
    const struct matrix *w = m->jobs[j].w;
    size_t fine = j + 1 == m->n_jobs ? m->fine : 0;
    struct cut cut = {outputs_of(w, m->backward), 0, whole_blocks(m, w, m->region), whole_blocks(m, w, FINE)};
    cut.coarse = fine < cut.outputs ? (cut.outputs - fine) / cut.region * cut.region : 0;
    return cut;
}
static size_t cut_tasks(const struct cut *cut) {
    return cut->coarse / cut->region + chunks(cut->outputs - cut->coarse, cut->fine);
}

/* Rows that a task packs: whole heights of both products. */
static size_t pack_rows_each(const struct ops *ops) {
    size_t each = ops->product->height;
    while (each < PACK_ROWS || each % ops->kernels->exact->height) each += ops->product->height;
    return each;
}

/* Where job j's rows of rank width lie packed, behind the rows of x. */
static unsigned char *packed_pair(const struct multiplication *m, size_t j) {
    const struct product *product = m->ops->product;
    size_t at = packed_bytes(product, m->T, min_size(terms_of(m->jobs->w, m->backward), packed_terms(product)));
    for (size_t i = 0; i < j; i++)
        if (has_pair(&m->jobs[i])) at += m->ops->kernels->exact->rows_bytes(m->T, m->jobs[i].pair->rank);
    return (unsigned char *)m->ops->packed + at;
}

/* Rows t0 .. t0 + n: forward xa = x A^T, packed with the scale; backward dyb = scale dy B. */
static void pack_pair(const struct multiplication *m, size_t j, size_t t0, size_t n, float *scaled) {
    const struct linear *job = &m->jobs[j];
    const struct kernels *kernels = m->ops->kernels;
    size_t R = job->pair->rank, k = terms_of(job->w, m->backward);
    const float *x = job->x + t0 * k;
    float *narrow = job->xa + t0 * R;
    if (m->backward) {
        kernels->gemm(0, 0, n, R, k, job->pair->scale, x, k, job->pair->b, R, 0.0f, narrow, R);
        scaled = narrow;
    } else {
        kernels->gemm(0, 1, n, R, k, 1.0f, x, k, job->pair->a, k, 0.0f, narrow, R);
        for (size_t i = 0; i < n * R; i++) scaled[i] = job->pair->scale * narrow[i];
    }
    kernels->exact->pack_rows(packed_pair(m, j) + kernels->exact->rows_bytes(t0, R), scaled, R, n, R);
}

static void pack_task(void *argument, size_t i, int worker) {
    const struct multiplication *m = argument;
    const struct product *product = m->ops->product;
    size_t each = pack_rows_each(m->ops), ldx = terms_of(m->jobs->w, m->backward);
    size_t t0 = i * each, n = min_size(each, m->T - t0);
    unsigned char *packed = m->ops->packed;
    for (size_t at = m->first; at < m->last; at += product->terms) {
        size_t k = min_size(product->terms, m->last - at);
        product->pack_rows(packed + product->rows_bytes(t0, k), m->jobs->x + t0 * ldx + at, ldx, n, k);
        packed += product->rows_bytes(m->T, k);
    }
    if (m->last != ldx) return;
    for (size_t j = 0; j < m->n_jobs; j++)
        if (has_pair(&m->jobs[j]))
            pack_pair(m, j, t0, n, m->ops->scratch + (size_t)worker * m->ops->scratch_floats);
}

/* Outputs o0 .. o0 + n: y += (scaled xa) B^T, or dx += dyb A. */
static void multiply_pair(const struct multiplication *m, size_t j, size_t o0, size_t n, void *panels) {
    const struct linear *job = &m->jobs[j];
    const struct product *exact = m->ops->kernels->exact;
    size_t R = job->pair->rank, outputs = outputs_of(job->w, m->backward);
    if (m->backward) {
        struct matrix a = {job->pair->a, BLOCK_F32, R, outputs, outputs * sizeof(float)};
        exact->pack_backward(panels, &a, o0, n, 0, R);
    } else {
        struct matrix b = {job->pair->b, BLOCK_F32, outputs, R, R * sizeof(float)};
        exact->pack_forward(panels, &b, o0, n, 0, R);
    }
    exact->multiply(job->y + o0, outputs, packed_pair(m, j), m->T, panels, n, R, 1);
}

static void multiply_task(void *argument, size_t i, int worker) {
    const struct multiplication *m = argument;
    const struct product *product = m->ops->product;
    size_t j = 0;
    struct cut cut = cut_of(m, 0);
    for (; i >= cut_tasks(&cut); cut = cut_of(m, ++j)) i -= cut_tasks(&cut);
    const struct linear *job = &m->jobs[j];
    size_t outputs = cut.outputs, coarse = cut.coarse / cut.region;
    size_t o0 = i < coarse ? i * cut.region : cut.coarse + (i - coarse) * cut.fine;
    size_t n = i < coarse ? cut.region : min_size(cut.fine, outputs - o0);
    void *panels = m->ops->scratch + (size_t)worker * m->ops->scratch_floats;
    const unsigned char *packed = m->ops->packed;
    for (size_t at = m->first; at < m->last; at += product->terms) {
        size_t k = min_size(product->terms, m->last - at);
        (m->backward ? product->pack_backward : product->pack_forward)(panels, job->w, o0, n, at, k);
        product->multiply(job->y + o0, outputs, packed, m->T, panels, n, k, m->accumulate || at > 0);
        packed += product->rows_bytes(m->T, k);
    }
    if (m->last != terms_of(job->w, m->backward)) return;
    if (has_pair(job)) multiply_pair(m, j, o0, n, panels);
    if (job->bias)
        for (size_t t = 0; t < m->T; t++) add_bias(job->y + t * outputs + o0, job->bias + o0, n);
}

/* Smaller tasks where there would be too few for all workers. */
static size_t count_tasks(struct multiplication *m) {
    size_t threads = (size_t)pool_threads(m->ops->pool), tasks = 0;
    m->fine = threads > 1 ? 2 * threads * FINE : 0;
    for (m->region = m->ops->product->region;; m->region = chunks(m->region / 2, FINE) * FINE) {
        tasks = 0;
        for (size_t j = 0; j < m->n_jobs; j++) {
            struct cut cut = cut_of(m, j);
            tasks += cut_tasks(&cut);
        }
        if (tasks >= 3 * threads || m->region <= FINE) return tasks;
    }
}

static void multiply_jobs(const struct ops *ops, const struct linear *jobs, size_t n_jobs, size_t T, int backward,
                          int accumulate) {
    size_t k = terms_of(jobs->w, backward), each = packed_terms(ops->product);
    for (size_t first = 0; first < k; first += each) {
        struct multiplication m = {.ops = ops, .jobs = jobs, .n_jobs = n_jobs, .T = T, .first = first,
                                   .last = min_size(first + each, k), .backward = backward, .accumulate = accumulate};
        size_t tasks = count_tasks(&m);
        pool_run(ops->pool, chunks(T, pack_rows_each(ops)), pack_task, &m);
        pool_run(ops->pool, tasks, multiply_task, &m);
    }
}

void linear_forward_group(const struct ops *ops, const struct linear *jobs, size_t n_jobs, size_t T) {
    for (size_t j = 0, n; j < n_jobs; j += n) {
        for (n = 1; n < LINEAR_GROUP && j + n < n_jobs && jobs[j + n].x == jobs[j].x; n++) {}
        if (T <= (rounding(ops, jobs + j, n) ? FEW_ROUNDED : FEW_TOKENS))
            multiply_few(ops, jobs + j, n, T);
        else
            multiply_jobs(ops, jobs + j, n, T, 0, 0);
    }
}

void linear_forward(const struct ops *ops, float *y, const float *x, const struct matrix *w, const float *bias,
                    size_t T) {
    struct linear job = {.y = y, .x = x, .w = w, .bias = bias};
    linear_forward_group(ops, &job, 1, T);
}

void linear_backward(const struct ops *ops, float *dx, const float *dy, const struct matrix *w,
                     const struct low_rank *pair, float *dyb, size_t T, int accumulate) {
    struct linear job = {.y = dx, .x = dy, .w = w, .pair = pair, .xa = dyb};
    multiply_jobs(ops, &job, 1, T, 1, accumulate);
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
    for (size_t r = 0; r < R; r += NARROW_ROWS) narrow_rows(kernels, p->pair, p->xa, p->x, p->cols, r, p->T);
    for (size_t t = 0; p->y && t < p->T; t++)
        kernels->add_narrow(p->y + t * p->rows, p->pair->b, p->rows, p->xa + t * R, R, p->pair->scale);
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

void low_rank_gradients(const struct ops *ops, const float *dy, const float *x, const float *xa, const float *dyb,
                        const struct low_rank *pair, const struct low_rank_gradient *gradient, size_t rows, size_t cols,
                        size_t T) {
    struct pair p = {.ops = ops, .pair = pair, .xa = (float *)(uintptr_t)xa, .dyb = (float *)(uintptr_t)dyb, .x = x,
                     .dy = dy, .gradient = gradient, .rows = rows, .cols = cols, .T = T};
    pool_run(ops->pool, chunks(cols, PAIR_COLUMNS) + chunks(rows, PAIR_COLUMNS), pair_gradient_columns, &p);
}

void low_rank_backward(const struct ops *ops, float *dx, const float *dy, const float *x, const float *xa, float *dyb,
                       const struct low_rank *pair, const struct low_rank_gradient *gradient, size_t rows,
                       size_t cols, size_t T) {
    struct pair p = {.ops = ops, .pair = pair, .dx = dx, .dyb = dyb, .dy = dy, .rows = rows, .cols = cols, .T = T};
    pool_run(ops->pool, chunks(T, PAIR_CHUNK), pair_backward_chunk, &p);
    if (gradient) low_rank_gradients(ops, dy, x, xa, dyb, pair, gradient, rows, cols, T);
}
