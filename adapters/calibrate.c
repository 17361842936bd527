#include "adapters/calibrate.h"

#include "core/kernels/grids.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum {
    TILE = 64,     /* rows of a task; also rows of H of a task */
    FACTOR = 64,   /* columns that are factored together */
    SEEN_LEAST = 4, /* tokens that a matrix must have seen: a SEEN_LEAST-th of its columns */
    SWEEPS = 4     /* more hardly lower the error */
};
#define MADE_SHARE 0.9 /* of the work on a layer, when it is made */
static const double damping_share = 0.01; /* of H's mean diagonal: as GPTQ */
static const double singular = 1e-9;      /* q are all but equal: scale and low cannot be told apart */

/* Matrices that share inputs. */
enum { GROUPS = 4 };
static const enum target group_input[GROUPS] = {TARGET_Q, TARGET_OUTPUT, TARGET_GATE, TARGET_DOWN};
static int group_of(enum target target) {
    return target <= TARGET_V ? 0 : target == TARGET_OUTPUT ? 1 : target == TARGET_DOWN ? 3 : 2;
}

struct calibration {
    const struct model *model;
    const struct lora *lora;
    struct pool *pool;
    const struct kernels *kernels;
    const struct merge_progress *progress;
    struct merged *merged;
    struct arena arena;
    float *h[GROUPS];     /* (cols, cols) X^T X of a group's inputs, the upper triangle until they are all seen */
    float *r;             /* (cols, cols) the factor of one of them */
    float *scratch;       /* (threads, scratch_floats) */
    size_t scratch_floats;
    size_t seen, layer; /* tokens that the layer has seen */
    double told; /* the share reported last */
    int cancelled;
};

/* ---- progress ---- */

static int report(struct calibration *c, double of_layer) {
    double share = ((double)c->layer + of_layer) / (double)c->model->L;
    const struct merge_progress *p = c->progress;
    if (share > c->told) c->told = share < 1 ? share : 1; /* sums of parts may fall back by a rounding */
    if (p && !c->cancelled && p->report(c->told, p->user)) c->cancelled = 1;
    return !c->cancelled && !pool_cancelled(c->pool);
}

struct slice {
    void (*task)(void *argument, size_t i, int worker);
    void *argument;
    size_t first;
};
static void run_slice(void *argument, size_t i, int worker) {
    const struct slice *slice = argument;
    slice->task(slice->argument, slice->first + i, worker);
}

/* pool_run with reports in between. */
static int run(struct calibration *c, size_t count, void (*task)(void *, size_t, int), void *argument,
               double of_layer) {
    size_t each = (size_t)pool_threads(c->pool);
    for (size_t first = 0; first < count; first += each) {
        struct slice slice = {task, argument, first};
        pool_run(c->pool, count - first < each ? count - first : each, run_slice, &slice);
        if (!report(c, of_layer)) return 0;
    }
    return 1;
}

/* ---- H = X^T X ---- */

struct gather {
    const struct kernels *kernels;
    float *h;
    const float *x;
    size_t T, n;
};

static void gather_tile(void *argument, size_t tile, int worker) {
    const struct gather *g = argument;
    size_t from = tile * TILE, rows = g->n - from < TILE ? g->n - from : TILE;
    (void)worker;
    g->kernels->gemm(1, 0, rows, g->n - from, g->T, 1, g->x + from, g->n, g->x + from, g->n, 1,
                     g->h + from * g->n + from, g->n);
}

static void see(void *user, size_t layer, enum target target, const float *x, size_t T, size_t width) {
    struct calibration *c = user;
    int group = group_of(target);
    struct gather gather = {c->kernels, c->h[group], x, T, width};
    c->layer = layer;
    if (group == 0) c->seen += T;
    if (!report(c, 0) || !gather.h) return;
    pool_run(c->pool, (width + TILE - 1) / TILE, gather_tile, &gather);
}

static void passed(void *user, size_t layer) {
    struct calibration *c = user;
    c->layer = layer;
    report(c, MADE_SHARE);
}

/* The lower triangle, and the damping that keeps H well away from singular; 0: H is of no use. */
static int complete(float *h, size_t n) {
    double trace = 0;
    for (size_t i = 0; i < n; i++) trace += h[i * n + i];
    if (!(trace > 0) || !isfinite(trace)) return 0;
    float damping = (float)(trace / (double)n * damping_share);
    for (size_t i = 0; i < n; i++) {
        h[i * n + i] += damping;
        for (size_t j = 0; j < i; j++) h[i * n + j] = h[j * n + i];
    }
    return 1;
}

/* ---- H = R R^T, R upper triangular: from the last columns to the first ---- */

struct factor {
    const struct kernels *kernels;
    float *r;
    size_t n, from, to; /* the columns being factored */
};

/* The block on the diagonal; 0: not positive. */
static int factor_block(const struct factor *f) {
    size_t n = f->n;
    for (size_t j = f->to; j-- > f->from;) {
        float *row = f->r + j * n, d = row[j];
        if (!(d > 0) || !isfinite(d)) return 0;
        row[j] = sqrtf(d);
        for (size_t i = f->from; i < j; i++) f->r[i * n + j] /= row[j];
        for (size_t i = f->from; i < j; i++)
            for (size_t k = i; k < j; k++) f->r[i * n + k] -= f->r[i * n + j] * f->r[k * n + j];
    }
    return 1;
}

/* Rows above it: x R_block^T = what stands there. */
static void factor_rows(void *argument, size_t tile, int worker) {
    const struct factor *f = argument;
    size_t end = (tile + 1) * TILE < f->from ? (tile + 1) * TILE : f->from;
    (void)worker;
    for (size_t i = tile * TILE; i < end; i++) {
        float *x = f->r + i * f->n;
        for (size_t j = f->to; j-- > f->from;) {
            const float *row = f->r + j * f->n;
            x[j] = (x[j] - f->kernels->dot(x + j + 1, row + j + 1, f->to - j - 1)) / row[j];
        }
    }
}

/* What is left of H, less the columns that are done. */
static void factor_rest(void *argument, size_t tile, int worker) {
    const struct factor *f = argument;
    size_t from = tile * TILE, rows = f->from - from < TILE ? f->from - from : TILE, n = f->n;
    (void)worker;
    f->kernels->gemm(0, 1, rows, f->from - from, f->to - f->from, -1, f->r + from * n + f->from, n,
                     f->r + from * n + f->from, n, 1, f->r + from * n + from, n);
}

/* 0: it has none, or the caller has cancelled. */
static int factorize(struct calibration *c, const float *h, size_t n, double of_layer) {
    struct factor f = {.kernels = c->kernels, .r = c->r, .n = n};
    memcpy(c->r, h, n * n * sizeof *h);
    for (size_t to = n; to > 0; to = f.from) {
        f.to = to;
        f.from = (to - 1) / FACTOR * FACTOR;
        if (!report(c, of_layer) || !factor_block(&f)) return 0;
        pool_run(c->pool, (f.from + TILE - 1) / TILE, factor_rows, &f);
        pool_run(c->pool, (f.from + TILE - 1) / TILE, factor_rest, &f);
    }
    return 1;
}

/* ---- a matrix ---- */

struct solve {
    const struct kernels *kernels;
    const struct matrix *from;
    unsigned char *to;
    const struct block_format *format;
    const struct low_rank *pair;
    const float *h, *r;
    size_t n; /* columns */
    float *scratch;
    size_t scratch_floats;
    atomic_int too_large;
};

/* A task's rows. */
struct tile {
    const struct solve *s;
    size_t row, rows; /* the first one, how many */
    float *w;         /* (TILE, n) W + scale B A */
    float *e;         /* (TILE, n) that less what stands in the blocks; 0 in rows that are kept */
    float *g;         /* (TILE, GRID_ELEMENTS_MAX) of a block's columns: errors through R, or through H */
    float *u, *hu;    /* (TILE, GRID_ELEMENTS_MAX) q, and q H of a block */
    float *kept;      /* (TILE) not 0: the adapter does not change the row */
    float *inverse;   /* (GRID_ELEMENTS_MAX) of a block's columns: 1 / what stands on R's or H's diagonal */
    float *hv;        /* (GRID_ELEMENTS_MAX) sums over the rows of H's block on the diagonal */
};

static size_t tile_floats(size_t n) { return TILE * (2 * n + 3 * GRID_ELEMENTS_MAX + 1) + 2 * GRID_ELEMENTS_MAX; }

static struct tile tile_of(const struct solve *s, size_t index, int worker) {
    float *at = s->scratch + (size_t)worker * s->scratch_floats;
    struct tile t = {.s = s, .row = index * TILE, .w = at, .e = at + TILE * s->n};
    t.rows = s->from->rows - t.row < TILE ? s->from->rows - t.row : TILE;
    t.g = t.e + TILE * s->n;
    t.u = t.g + TILE * GRID_ELEMENTS_MAX;
    t.hu = t.u + TILE * GRID_ELEMENTS_MAX;
    t.kept = t.hu + TILE * GRID_ELEMENTS_MAX;
    t.inverse = t.kept + TILE;
    t.hv = t.inverse + GRID_ELEMENTS_MAX;
    return t;
}

static unsigned char *block_at(const struct tile *t, size_t i, size_t column) {
    const struct solve *s = t->s;
    return s->to + (t->row + i) * s->from->row_bytes + column / s->format->elements * s->format->bytes;
}
static const unsigned char *base_block_at(const struct tile *t, size_t i, size_t column) {
    const struct solve *s = t->s;
    return (const unsigned char *)s->from->data + (t->row + i) * s->from->row_bytes +
           column / s->format->elements * s->format->bytes;
}

static float value_at(const struct grid *grid, const uint8_t *q, size_t i) {
    return grid->scale[i / grid->part] * (float)q[i] + grid->low[i / grid->part];
}

/* inverse: 1 / scale of each part, 0 where that is 0. */
static void inverse_of(const struct grid *grid, float *inverse) {
    for (size_t p = 0; p < grid->parts; p++) inverse[p] = grid->scale[p] != 0 ? 1 / grid->scale[p] : 0;
}
static uint8_t nearest_q(const struct grid *grid, const float *inverse, size_t i, float value) {
    float q = (value - grid->low[i / grid->part]) * inverse[i / grid->part] + 0.5f;
    return !(q > 0) ? 0 : q < (float)grid->most ? (uint8_t)q : (uint8_t)grid->most;
}

/* Of `diagonal`, (n, n), in a block's columns. */
static void inverse_diagonal(const struct tile *t, const float *diagonal, size_t column) {
    for (size_t j = 0; j < t->s->format->elements; j++)
        t->inverse[j] = 1 / diagonal[(column + j) * t->s->n + column + j];
}

/* A block's q, one after the other, on the base's grid: that holds W exactly, so that only the delta has to be carried.
 * g: the errors of the columns before it through R. */
static void round_block(const struct tile *t, size_t i, size_t column) {
    const struct solve *s = t->s;
    size_t elements = s->format->elements;
    float *g = t->g + i * elements, *e = t->e + i * s->n + column;
    const float *w = t->w + i * s->n + column;
    unsigned char *block = block_at(t, i, column);
    struct grid grid;
    uint8_t q[GRID_ELEMENTS_MAX];
    float inverse[GRID_PARTS_MAX];
    memcpy(block, base_block_at(t, i, column), s->format->bytes);
    grid_read(s->from->type, block, &grid, q);
    if (grid.parts == 1 && grid.scale[0] == 0) { /* a block of equal values has no steps to take */
        s->format->quantize(block, w, elements);
        grid_read(s->from->type, block, &grid, q);
    }
    inverse_of(&grid, inverse);
    for (size_t j = 0; j < elements; j++) {
        const float *r = s->r + (column + j) * s->n + column;
        q[j] = nearest_q(&grid, inverse, j, w[j] + g[j] * t->inverse[j]);
        e[j] = w[j] - value_at(&grid, q, j);
        s->kernels->axpy(g + j + 1, e[j], r + j + 1, elements - j - 1);
    }
    grid_write(s->from->type, block, q);
}

static void round_tile(const struct tile *t) {
    const struct solve *s = t->s;
    size_t n = s->n, elements = s->format->elements;
    for (size_t column = 0; column < n; column += elements) {
        s->kernels->gemm(0, 0, t->rows, elements, column, 1, t->e, n, s->r + column, n, 0, t->g, elements);
        inverse_diagonal(t, s->r, column);
        for (size_t i = 0; i < t->rows; i++)
            if (t->kept[i] == 0) round_block(t, i, column);
    }
}

/* Scale and low of a block at their least squares values, where that helps once they are halves. g: e H. */
static void regrid(const struct tile *t, size_t i, size_t column, float *g, float *e, struct grid *grid,
                   const uint8_t *q) {
    const struct solve *s = t->s;
    size_t elements = s->format->elements;
    int zero, freedom = grid_freedom(s->from->type, &zero);
    const float *u = t->u + i * elements, *hu = t->hu + i * elements, *hv = t->hv;
    double gu = 0, uhu = 0, gv = 0, uhv = 0, vhv = 0;
    for (size_t j = 0; j < elements; j++) {
        gu += (double)g[j] * u[j];
        uhu += (double)hu[j] * u[j];
        gv += g[j];
        uhv += hu[j];
        vhv += hv[j];
    }
    if (freedom == 1) gv = uhv = vhv = 0;
    double det = freedom == 2 ? uhu * vhv - uhv * uhv : uhu;
    if (!(det > singular * uhu * (freedom == 2 ? vhv : 1)) || !isfinite(det)) return;
    double ds = freedom == 2 ? (gu * vhv - gv * uhv) / det : gu / uhu;
    double dl = freedom == 2 ? (gv * uhu - gu * uhv) / det : 0;
    float scale = half_to_float(half_from_float((float)(grid->scale[0] + ds)));
    float low = freedom == 2 ? half_to_float(half_from_float((float)(grid->low[0] + dl))) : -(float)zero * scale;
    if (!isfinite(scale) || !isfinite(low)) return;
    ds = (double)scale - grid->scale[0];
    dl = freedom == 2 ? (double)low - grid->low[0] : 0;
    double change = -2 * (ds * gu + dl * gv) + ds * ds * uhu + 2 * ds * dl * uhv + dl * dl * vhv;
    if (!(change < 0)) return;
    grid_set(s->from->type, block_at(t, i, column), scale, low);
    grid->scale[0] = scale;
    grid->low[0] = low;
    for (size_t j = 0; j < elements; j++) {
        g[j] -= (float)(ds * hu[j] + dl * hv[j]);
        e[j] = t->w[i * s->n + column + j] - value_at(grid, q, j);
    }
}

static void improve_block(const struct tile *t, size_t i, size_t column) {
    const struct solve *s = t->s;
    enum block_type type = s->from->type;
    size_t elements = s->format->elements;
    float *g = t->g + i * elements, *e = t->e + i * s->n + column;
    const float *w = t->w + i * s->n + column;
    unsigned char *block = block_at(t, i, column);
    struct grid grid;
    uint8_t q[GRID_ELEMENTS_MAX];
    float inverse[GRID_PARTS_MAX];
    int zero;
    grid_read(type, block, &grid, q);
    if (grid_freedom(type, &zero)) regrid(t, i, column, g, e, &grid, q);
    inverse_of(&grid, inverse);
    for (size_t j = 0; j < elements; j++) {
        uint8_t value = nearest_q(&grid, inverse, j, w[j] - e[j] + g[j] * t->inverse[j]);
        float before = e[j];
        if (value == q[j] || grid.scale[j / grid.part] == 0) continue;
        q[j] = value;
        e[j] = w[j] - value_at(&grid, q, j);
        s->kernels->axpy(g, e[j] - before, s->h + (column + j) * s->n + column, elements);
    }
    grid_write(type, block, q);
}

/* What regrid wants of the block on H's diagonal: q H and 1 H. */
static void regrid_terms(const struct tile *t, size_t column) {
    const struct solve *s = t->s;
    size_t elements = s->format->elements;
    int zero;
    if (!grid_freedom(s->from->type, &zero)) return;
    memset(t->hv, 0, elements * sizeof *t->hv);
    for (size_t j = 0; j < elements; j++) s->kernels->axpy(t->hv, 1, s->h + (column + j) * s->n + column, elements);
    for (size_t i = 0; i < t->rows; i++) {
        struct grid grid;
        uint8_t q[GRID_ELEMENTS_MAX];
        grid_read(s->from->type, block_at(t, i, column), &grid, q);
        for (size_t j = 0; j < elements; j++) t->u[i * elements + j] = (float)(q[j] - zero);
    }
    s->kernels->gemm(0, 0, t->rows, elements, elements, 1, t->u, elements, s->h + column * s->n + column, s->n, 0,
                     t->hu, elements);
}

static void improve_tile(const struct tile *t) {
    const struct solve *s = t->s;
    size_t n = s->n, elements = s->format->elements;
    for (size_t column = 0; column < n; column += elements) {
        s->kernels->gemm(0, 0, t->rows, elements, n, 1, t->e, n, s->h + column, n, 0, t->g, elements);
        inverse_diagonal(t, s->h, column);
        regrid_terms(t, column);
        for (size_t i = 0; i < t->rows; i++)
            if (t->kept[i] == 0) improve_block(t, i, column);
    }
}

static void solve_tile(void *argument, size_t index, int worker) {
    struct solve *s = argument;
    struct tile t = tile_of(s, index, worker);
    for (size_t i = 0; i < t.rows; i++) {
        float *delta = t.e + i * s->n;
        size_t row_bytes = s->from->row_bytes, row = t.row + i;
        if (!merge_row(t.w + i * s->n, delta, s->from, s->pair, row, s->from->type)) atomic_store(&s->too_large, 1);
        t.kept[i] = 1;
        for (size_t j = 0; j < s->n; j++)
            if (delta[j] != 0) t.kept[i] = 0;
        if (t.kept[i] != 0)
            memcpy(s->to + row * row_bytes, (const unsigned char *)s->from->data + row * row_bytes, row_bytes);
        memset(delta, 0, s->n * sizeof *delta);
    }
    if (atomic_load(&s->too_large)) return;
    round_tile(&t);
    for (int sweep = 0; sweep < SWEEPS; sweep++) improve_tile(&t);
}

static int solve_matrix(struct calibration *c, size_t l, enum target target, int usable, double of_layer,
                        attune_error *err) {
    const struct matrix *from = &c->model->layers[l].linear[target];
    struct matrix *to = &c->merged->layers[l].linear[target];
    const struct low_rank *pair = &c->lora->pairs[l].target[target];
    struct solve s = {.kernels = c->kernels, .from = from, .to = (unsigned char *)(uintptr_t)to->data, .pair = pair,
                      .format = block_format_get(from->type), .h = c->h[group_of(target)], .r = c->r, .n = from->cols,
                      .scratch = c->scratch, .scratch_floats = c->scratch_floats};
    if (!usable || !grid_has(from->type)) {
        c->merged->plain += grid_has(from->type);
        return merge_one(c->model, c->lora, l, target, &c->merged->layers[l], c->scratch, c->pool, err);
    }
    if (!run(c, (from->rows + TILE - 1) / TILE, solve_tile, &s, of_layer)) return ATTUNE_ERROR_CANCELLED;
    return atomic_load(&s.too_large) ? merge_too_large(l, target, from->type, err) : ATTUNE_OK;
}

/* A struct layer_maker's make: the layer whose inputs have been seen. */
static int make(void *user, size_t l, struct model_layer *out, attune_error *err) {
    struct calibration *c = user;
    int code = ATTUNE_OK;
    double done = 0;
    c->layer = l;
    for (int group = 0; group < GROUPS && code == ATTUNE_OK; group++) {
        if (!c->h[group]) continue;
        size_t n = c->model->layers[l].linear[group_input[group]].cols;
        int usable = c->seen >= n / SEEN_LEAST && complete(c->h[group], n) && factorize(c, c->h[group], n, done);
        for (int t = 0; t < TARGET_COUNT && code == ATTUNE_OK; t++) {
            if (group_of((enum target)t) != group || c->lora->pairs[l].target[t].rank == 0) continue;
            if (c->cancelled) break;
            code = solve_matrix(c, l, (enum target)t, usable, done += MADE_SHARE / TARGET_COUNT, err);
        }
        memset(c->h[group], 0, n * n * sizeof(float));
    }
    c->seen = 0;
    if (c->cancelled || pool_cancelled(c->pool))
        return error_set(err, ATTUNE_ERROR_CANCELLED, NULL, "calibrating was cancelled");
    *out = c->merged->layers[l];
    return code;
}

/* ---- all ---- */

static size_t columns(const struct model *m, int group) { return m->layers[0].linear[group_input[group]].cols; }

static void take(struct calibration *c, const struct model *m, uint32_t targets, int threads) {
    size_t most = 0;
    for (int group = 0; group < GROUPS; group++) {
        size_t n = columns(m, group);
        int wanted = 0;
        for (int t = 0; t < TARGET_COUNT; t++) wanted |= group_of((enum target)t) == group && targets >> t & 1;
        c->h[group] = wanted ? ARENA_TAKE(&c->arena, float, n * n) : NULL;
        if (wanted && most < n) most = n;
    }
    c->r = ARENA_TAKE(&c->arena, float, most * most);
    c->scratch_floats = (tile_floats(most) + 15) & ~(size_t)15; /* more than merge_one wants */
    c->scratch = ARENA_TAKE(&c->arena, float, (size_t)threads * c->scratch_floats);
}

static struct pass_shape shape_of(const struct model *model, const struct lora_config *config, int threads,
                                  size_t T_max, size_t n) {
    struct pass_shape shape = {.T_max = T_max, .R_max = config->rank, .together = n, .precision = PRECISION_AUTO};
    pass_shape_fit(&shape, model, threads, 0);
    return shape;
}

size_t calibrate_bytes(const struct model *model, const struct lora_config *config, int threads, size_t T_max,
                       size_t n) {
    struct calibration c = {0};
    struct pass_shape shape = shape_of(model, config, threads, T_max, n);
    take(&c, model, config->targets, threads);
    size_t parts[] = {c.arena.overflow ? SIZE_MAX : c.arena.used, training_pass_bytes(model, threads, &shape),
                      merge_bytes(model, config->targets, MERGE_CALIBRATED)};
    size_t sum = 0;
    for (size_t i = 0; i < 3; i++)
        if (__builtin_add_overflow(sum, parts[i], &sum)) return SIZE_MAX;
    return sum;
}

int calibrate_create(const struct model *model, const struct lora *lora, struct pool *pool,
                     const struct packed_batch *const *batches, size_t n, const struct merge_progress *progress,
                     struct merged **out, attune_error *err) {
    struct calibration c = {.model = model, .lora = lora, .pool = pool, .kernels = kernels_get(),
                            .progress = progress};
    struct training_pass *pass = NULL;
    struct weights weights = {model, model->layers, lora->pairs};
    struct layer_maker maker = {make, &c};
    struct input_observer observer = {see, passed, &c};
    size_t T_max = 1;
    for (size_t i = 0; i < n; i++)
        if (T_max < batches[i]->T) T_max = batches[i]->T;
    struct pass_shape shape = shape_of(model, &lora->config, pool_threads(pool), T_max, n);
    int code = merged_create(model, lora, MERGE_CALIBRATED, &c.merged, err);
    if (code != ATTUNE_OK) return code;
    take(&c, model, lora->config.targets, pool_threads(pool));
    if ((code = arena_commit(&c.arena, "calibrating", err)) != ATTUNE_OK) goto out;
    take(&c, model, lora->config.targets, pool_threads(pool));
    if ((code = training_pass_create(model, pool, &shape, &pass, err)) != ATTUNE_OK) goto out;
    code = training_pass_observe(pass, &weights, &maker, &observer, batches, n, err);
    if (code == ATTUNE_OK && progress) progress->report(1, progress->user);
out:
    training_pass_destroy(pass);
    arena_free(&c.arena);
    if (code != ATTUNE_OK) merge_destroy(c.merged);
    else *out = c.merged;
    return code;
}
