/* Causal grouped-query attention over packed sequences, and over a cache.
 *
 * o = softmax(q k^T / sqrt(D)) v, a few query rows at a time: the scores are the only thing that is quadratic, and
 * they stay in the worker's scratch. Rows are multiplied with the keys up to the last of a STEP of rows, so little
 * that the mask hides is computed.
 *
 * A task is a block of query rows under one key head, for all query heads of its group: keys (and values, in the
 * backward) are transposed once for all of them. */
#include "core/ops/rows.h"

#include <math.h>
#include <string.h>

enum {
    STEP = 12,   /* query rows that are cut at one key: a tile of gemm's */
    BLOCK = 48,  /* query rows of a forward task; in the backward, whose scores are kept for dk and dv */
    WHOLE = 16,  /* scores are computed up to a multiple of these, without gemm's edges; what is too much is not used */
    STRIPES = 8  /* of a sequence, at most */
};

struct attention {
    const struct ops *ops;
    float *o, *dq, *dk, *dv, *dkv;
    const float *q, *k, *v, *do_;
    const size_t *starts;
    size_t n_sequences, H, KV, D;
    size_t width, kv_width; /* floats from a row of q, of k, to the next */
    size_t apart;           /* floats from a row of scores to the next */
    float scale;
};

static size_t min_size(size_t a, size_t b) { return a < b ? a : b; }
static size_t pieces(size_t n, size_t each) { return (n + each - 1) / each; }

/* Floats from a row of up to n to the next: whole vectors, and not a power of two, so that the rows of a column
 * fall into different sets of a cache. */
static size_t row_floats(size_t n) { return pieces(n, WHOLE) * WHOLE + 16; }

size_t attention_scratch_floats(size_t T, size_t D) { return (2 * BLOCK + 2 * D) * row_floats(T); }

/* columns(D, keys) = k or v of one head */
static void turn_keys(const struct attention *a, float *columns, const float *rows, size_t keys) {
    a->ops->kernels->transpose(columns, a->apart, rows, a->kv_width, keys, a->D);
}

/* y(m, keys and up to a multiple of WHOLE) = alpha x(m, D) columns */
static void multiply_keys(const struct attention *a, float *y, float alpha, const float *x, const float *columns,
                          size_t m, size_t keys) {
    a->ops->kernels->gemm(0, 0, m, pieces(keys, WHOLE) * WHOLE, a->D, alpha, x, a->width, columns, a->apart, 0.0f, y,
                          a->apart);
}

/* p(m, keys) of rows whose first may see keys - m + 1 keys, the next one more. */
static void probabilities(const struct attention *a, float *p, const float *q, const float *k_columns, size_t m,
                          size_t keys) {
    multiply_keys(a, p, a->scale, q, k_columns, m, keys);
    for (size_t i = 0; i < m; i++, p += a->apart) {
        size_t seen = keys - m + i + 1;
        a->ops->kernels->softmax(p, seen, 1);
        memset(p + seen, 0, (keys - seen) * sizeof *p);
    }
}

/* ---- forward ---- */

/* n query rows after `past` keys, all heads over one key head. q, o: of the first head; k, v: of the first key. */
static void forward_group(const struct attention *a, float *scratch, float *o, const float *q, const float *k,
                          const float *v, size_t past, size_t n) {
    float *p = scratch, *k_columns = scratch + STEP * a->apart;
    turn_keys(a, k_columns, k, past + n);
    for (size_t h = 0; h < a->H / a->KV; h++, q += a->D, o += a->D)
        for (size_t i = 0; i < n; i += STEP) {
            size_t m = min_size(STEP, n - i), keys = past + i + m;
            probabilities(a, p, q + i * a->width, k_columns, m, keys);
            a->ops->kernels->gemm(0, 0, m, a->D, keys, 1.0f, p, a->apart, v, a->kv_width, 0.0f, o + i * a->width,
                                  a->width);
        }
}

static float *scratch_of(const struct attention *a, int worker) {
    return a->ops->scratch + (size_t)worker * a->ops->scratch_floats;
}

/* The part-th of the parts that sequences are cut into, n_parts(length) each. */
static size_t sequence_of(const struct attention *a, size_t (*n_parts)(const struct attention *, size_t),
                          size_t *part) {
    for (size_t s = 0;; s++) {
        size_t n = n_parts(a, a->starts[s + 1] - a->starts[s]);
        if (*part < n) return s;
        *part -= n;
    }
}
static size_t all_parts(const struct attention *a, size_t (*n_parts)(const struct attention *, size_t)) {
    size_t sum = 0;
    for (size_t s = 0; s < a->n_sequences; s++) sum += n_parts(a, a->starts[s + 1] - a->starts[s]);
    return sum;
}

static size_t blocks_of(const struct attention *a, size_t length) {
    (void)a;
    return pieces(length, BLOCK);
}

static void forward_block(void *argument, size_t task, int worker) {
    const struct attention *a = argument;
    size_t kv = task % a->KV, block = task / a->KV, s = sequence_of(a, blocks_of, &block);
    size_t start = a->starts[s], length = a->starts[s + 1] - start;
    /* the last blocks have the most keys: they begin first */
    size_t first = (blocks_of(a, length) - 1 - block) * BLOCK, n = min_size(BLOCK, length - first);
    size_t at = (start + first) * a->width + kv * (a->H / a->KV) * a->D, keys_at = start * a->kv_width + kv * a->D;
    forward_group(a, scratch_of(a, worker), a->o + at, a->q + at, a->k + keys_at, a->v + keys_at, first, n);
}

static size_t longest(const size_t *starts, size_t n_sequences) {
    size_t length = 0;
    for (size_t s = 0; s < n_sequences; s++)
        if (starts[s + 1] - starts[s] > length) length = starts[s + 1] - starts[s];
    return length;
}

void attention_forward(const struct ops *ops, float *o, const float *q, const float *k, const float *v,
                       const size_t *starts, size_t n_sequences, size_t H, size_t KV, size_t D) {
    struct attention a = {.ops = ops, .o = o, .q = q, .k = k, .v = v, .starts = starts, .n_sequences = n_sequences,
                          .H = H, .KV = KV, .D = D, .width = H * D, .kv_width = KV * D,
                          .apart = row_floats(longest(starts, n_sequences)), .scale = 1.0f / sqrtf((float)D)};
    pool_run(ops->pool, all_parts(&a, blocks_of) * KV, forward_block, &a);
}

/* ---- backward ----
 *
 * dp = do v^T;  ds = p (dp - sum_j p dp);  dq = scale ds k;  dk += scale ds^T q;  dv += p^T do.
 *
 * Queries of a sequence are cut into stripes of about equal work. The last stripe sums into dk and dv, each other one
 * into a slot of its own in dkv, which are added in order when all are done. A slot holds the keys that its stripe
 * sees; the slots of a sequence fit because stripes are only as many as do: a sequence has 2 H D floats a token. */

/* Where stripe i of n ends. Work grows with the square of the row. */
static size_t stripe_end(size_t length, size_t n, size_t i) {
    if (i + 1 == n) return length;
    return (size_t)(sqrt((double)(i + 1) / (double)n) * (double)length) / STEP * STEP;
}

/* An even number where there are several: two workers then have the same to do. */
static size_t stripes_of(const struct attention *a, size_t length) {
    size_t n = min_size(length / BLOCK, STRIPES) / 2 * 2;
    for (; n > 1; n -= 2) {
        size_t keys = 0;
        for (size_t i = 0; i + 1 < n; i++) keys += stripe_end(length, n, i);
        if (keys <= a->H / a->KV * length) return n;
    }
    return length > 0;
}

/* dk of stripe i of key head kv, (stripe_end, D); dv comes after it. */
static float *slot_of(const struct attention *a, size_t s, size_t kv, size_t stripe) {
    size_t length = a->starts[s + 1] - a->starts[s], n = stripes_of(a, length);
    float *slot = a->dkv + 2 * a->D * (a->starts[s] * a->H + kv * (a->H / a->KV) * length);
    for (size_t i = 0; i < stripe; i++) slot += 2 * a->D * stripe_end(length, n, i);
    return slot;
}

/* What a task works on: from the first key of its sequence on, of its key head. */
struct stripe {
    const struct attention *a;
    const float *k;
    float *k_columns, *v_columns; /* (D, apart) */
    float *p, *ds;                /* (BLOCK, apart) */
    float *dk, *dv;               /* rows `row` floats apart */
    size_t row;
};

/* d += alpha x^T y over n rows of scores x from row `first` of the sequence on; keys of the block itself only meet
 * rows that see them. */
static void add_products(const struct stripe *t, float *d, float alpha, const float *x, const float *y, size_t first,
                         size_t n) {
    const struct attention *a = t->a;
    const struct kernels *kernels = a->ops->kernels;
    kernels->gemm(1, 0, first, a->D, n, alpha, x, a->apart, y, a->width, 1.0f, d, t->row);
    for (size_t i = 0; i < n; i += STEP)
        kernels->gemm(1, 0, min_size(STEP, n - i), a->D, n - i, alpha, x + i * a->apart + first + i, a->apart,
                      y + i * a->width, a->width, 1.0f, d + (first + i) * t->row, t->row);
}

/* Rows first .. first + n of one head. at: its first row in q, do, dq. */
static void backward_rows(const struct stripe *t, size_t at, size_t first, size_t n) {
    const struct attention *a = t->a;
    const struct kernels *kernels = a->ops->kernels;
    at += first * a->width;
    for (size_t i = 0; i < n; i += STEP) {
        size_t m = min_size(STEP, n - i), keys = first + i + m, row = at + i * a->width;
        float *p = t->p + i * a->apart, *ds = t->ds + i * a->apart;
        probabilities(a, p, a->q + row, t->k_columns, m, keys);
        multiply_keys(a, ds, 1.0f, a->do_ + row, t->v_columns, m, keys);
        for (size_t j = 0; j < m; j++) kernels->softmax_backward(ds + j * a->apart, p + j * a->apart, keys);
        kernels->gemm(0, 0, m, a->D, keys, a->scale, ds, a->apart, t->k, a->kv_width, 0.0f, a->dq + row, a->width);
    }
    add_products(t, t->dv, 1.0f, t->p, a->do_ + at, first, n);
    add_products(t, t->dk, a->scale, t->ds, a->q + at, first, n);
}

static void clear_rows(float *x, size_t row, size_t n, size_t D) {
    for (size_t i = 0; i < n; i++) memset(x + i * row, 0, D * sizeof *x);
}

static void backward_stripe(void *argument, size_t task, int worker) {
    const struct attention *a = argument;
    size_t kv = task % a->KV, i = task / a->KV, s = sequence_of(a, stripes_of, &i), group = a->H / a->KV;
    size_t start = a->starts[s], length = a->starts[s + 1] - start, n = stripes_of(a, length);
    size_t begin = i == 0 ? 0 : stripe_end(length, n, i - 1), end = stripe_end(length, n, i);
    size_t keys_at = start * a->kv_width + kv * a->D;
    float *p = scratch_of(a, worker), *ds = p + BLOCK * a->apart, *k_columns = ds + BLOCK * a->apart;
    struct stripe t = {.a = a, .k = a->k + keys_at, .k_columns = k_columns, .v_columns = k_columns + a->D * a->apart,
                       .p = p, .ds = ds, .dk = a->dk + keys_at, .dv = a->dv + keys_at, .row = a->kv_width};
    if (i + 1 < n) {
        t.dk = slot_of(a, s, kv, i);
        t.dv = t.dk + end * a->D;
        t.row = a->D;
    }
    turn_keys(a, t.k_columns, t.k, end);
    turn_keys(a, t.v_columns, a->v + keys_at, end);
    clear_rows(t.dk, t.row, end, a->D);
    clear_rows(t.dv, t.row, end, a->D);
    size_t blocks = pieces(end - begin, BLOCK), each = pieces(pieces(end - begin, blocks), STEP) * STEP;
    for (size_t first = begin; first < end; first += each)
        for (size_t h = kv * group; h < (kv + 1) * group; h++)
            backward_rows(&t, start * a->width + h * a->D, first, min_size(each, end - first));
}

static void add_slots(void *argument, size_t task, int worker) {
    const struct attention *a = argument;
    size_t kv = task % a->KV, block = task / a->KV, s = sequence_of(a, blocks_of, &block);
    size_t start = a->starts[s], length = a->starts[s + 1] - start, n = stripes_of(a, length);
    size_t first = block * BLOCK, at = start * a->kv_width + kv * a->D;
    (void)worker;
    for (size_t i = 0; i + 1 < n; i++) {
        size_t end = stripe_end(length, n, i), last = min_size(first + BLOCK, end);
        const float *dk = slot_of(a, s, kv, i), *dv = dk + end * a->D;
        for (size_t t = first; t < last; t++) {
            a->ops->kernels->axpy(a->dk + at + t * a->kv_width, 1.0f, dk + t * a->D, a->D);
            a->ops->kernels->axpy(a->dv + at + t * a->kv_width, 1.0f, dv + t * a->D, a->D);
        }
    }
}

void attention_backward(const struct ops *ops, float *dq, float *dk, float *dv, float *dkv, const float *do_,
                        const float *q, const float *k, const float *v, const size_t *starts, size_t n_sequences,
                        size_t H, size_t KV, size_t D) {
    struct attention a = {.ops = ops, .dq = dq, .dk = dk, .dv = dv, .dkv = dkv, .q = q, .k = k, .v = v, .do_ = do_,
                          .starts = starts, .n_sequences = n_sequences, .H = H, .KV = KV, .D = D, .width = H * D,
                          .kv_width = KV * D, .apart = row_floats(longest(starts, n_sequences)),
                          .scale = 1.0f / sqrtf((float)D)};
    size_t stripes = all_parts(&a, stripes_of);
    pool_run(ops->pool, stripes * KV, backward_stripe, &a);
    if (stripes > n_sequences) pool_run(ops->pool, all_parts(&a, blocks_of) * KV, add_slots, &a);
}

/* ---- over a cache ----
 *
 * A task is a block of new tokens under one key head, for all query heads of its group: rows of one product. Keys
 * come in tiles, out of their blocks into the worker's scratch, and so a key is read once for all of these rows. What
 * a row has seen so far is kept as the logarithm of the sum of its weights, and its output over that sum: two of these
 * make a third (Milakov and Gimelshein 2018). Where heads are too few for many workers, the keys are cut into parts
 * too, each a task with an output of its own, which are put together in order when all are done. */

enum {
    TILE = 256,        /* keys that are unpacked at once */
    CACHED_ROWS = 96,  /* query rows of a task, about: heads of a group times tokens */
    CACHED_FEW = 8,    /* rows that are multiplied as the keys are unpacked */
    SPLIT_ROWS = 48,   /* up to here, and for one token, keys are cut into parts: */
    CACHED_TASKS = 24, /* that many tasks of all heads, about */
    PART_LEAST = 128,  /* keys of a part, about */
    PART_WHOLE = 16,   /* a part has a multiple of these */
    APART = TILE + 16  /* floats from a row of scores to the next */
};

struct cached {
    const struct ops *ops;
    const struct cached_layer *layer;
    float *o;
    const float *q;
    size_t past, T, H, group;
    size_t each;          /* tokens of a task */
    int few;              /* the kernels for few rows */
    size_t n_parts, part; /* part: keys of one */
    float *parts;         /* (KV, n_parts, T * group, D) outputs, then (KV, n_parts, T * group) logarithms */
};

/* A task's rows, in the order of their tokens: the later ones see more. */
struct cached_rows {
    float *q, *o;       /* (rows, D); q is scaled */
    float *sums;        /* (rows) logarithms */
    float *p;           /* (rows, APART) */
    float *keys;        /* (TILE, D) */
    size_t rows, first; /* first: the first token */
};

static size_t tokens_each(size_t group) { return CACHED_ROWS / group > 0 ? CACHED_ROWS / group : 1; }
static size_t split_rows(size_t group) { return group < SPLIT_ROWS ? SPLIT_ROWS : group; }
static size_t parts_most(size_t KV) { return KV < CACHED_TASKS ? pieces(CACHED_TASKS, KV) : 1; }

size_t attention_cached_scratch_floats(size_t H, size_t KV, size_t D) {
    size_t rows = tokens_each(H / KV) * (H / KV);
    return rows * (2 * D + 1 + APART) + TILE * D;
}

size_t attention_cached_parts_floats(size_t H, size_t KV, size_t D) {
    return parts_most(KV) * KV * split_rows(H / KV) * (D + 1);
}

static float *part_of(const struct cached *c, size_t kv, size_t part) {
    return c->parts + (kv * c->n_parts + part) * c->T * c->group * c->layer->D;
}
static float *part_sums_of(const struct cached *c, size_t kv, size_t part) {
    return part_of(c, c->layer->KV, 0) + (kv * c->n_parts + part) * c->T * c->group;
}

static const unsigned char *row_at(const struct cached *c, const unsigned char *rows, size_t kv, size_t from) {
    return rows + (kv * c->layer->context + from) * c->layer->row_bytes;
}

/* n keys or values from `from` on as floats: where they are, or unpacked. */
static const float *unpacked(const struct cached *c, float *to, const unsigned char *rows, size_t kv, size_t from,
                             size_t n) {
    const void *at = row_at(c, rows, kv, from);
    if (c->layer->kind == BLOCK_F32) return at;
    c->ops->kernels->dequantize[c->layer->kind](to, at, n * c->layer->D);
    return to;
}

/* p(n) are scores of which the first `seen` count; they become weights that go with what o has so far. */
static void join_scores(const struct cached *c, float *p, size_t n, size_t seen, float *sum, float *o) {
    float more = c->ops->kernels->softmax(p, seen, 1), most = *sum > more ? *sum : more;
    memset(p + seen, 0, (n - seen) * sizeof *p);
    if (more == -INFINITY) return;
    float total = most + logf(expf(*sum - most) + expf(more - most));
    float keep = expf(*sum - total), add = expf(more - total);
    *sum = total;
    for (size_t i = 0; i < seen && add != 1.0f; i++) p[i] *= add;
    for (size_t i = 0; i < c->layer->D && keep != 1.0f; i++) o[i] *= keep;
}

/* Of rows from `begin` on: p = q k^T;  o += p v. */
static void score_keys(const struct cached *c, const struct cached_rows *r, size_t begin, size_t kv, size_t from,
                       size_t n) {
    const struct kernels *kernels = c->ops->kernels;
    const struct cached_layer *l = c->layer;
    float *q = r->q + begin * l->D, *p = r->p + begin * APART;
    if (c->few)
        kernels->query_keys[l->kind](p, APART, q, r->rows - begin, row_at(c, l->k, kv, from), l->row_bytes, n, l->D);
    else
        kernels->gemm(0, 1, r->rows - begin, n, l->D, 1.0f, q, l->D, unpacked(c, r->keys, l->k, kv, from, n), l->D,
                      0.0f, p, APART);
}
static void add_values(const struct cached *c, const struct cached_rows *r, size_t begin, size_t kv, size_t from,
                       size_t n) {
    const struct kernels *kernels = c->ops->kernels;
    const struct cached_layer *l = c->layer;
    float *o = r->o + begin * l->D, *p = r->p + begin * APART;
    if (c->few)
        kernels->weigh_values[l->kind](o, l->D, p, APART, r->rows - begin, row_at(c, l->v, kv, from), l->row_bytes, n);
    else
        kernels->gemm(0, 0, r->rows - begin, l->D, n, 1.0f, p, APART, unpacked(c, r->keys, l->v, kv, from, n), l->D,
                      1.0f, o, l->D);
}

/* Keys from .. from + n for all rows that see one of them. */
static void attend_tile(const struct cached *c, const struct cached_rows *r, size_t kv, size_t from, size_t n) {
    size_t seen = c->past + r->first + 1; /* by the first token */
    size_t begin = from < seen ? 0 : (from - seen + 1) * c->group;
    if (begin >= r->rows) return;
    score_keys(c, r, begin, kv, from, n);
    for (size_t i = begin; i < r->rows; i++)
        join_scores(c, r->p + i * APART, n, min_size(n, seen + i / c->group - from), &r->sums[i],
                    r->o + i * c->layer->D);
    add_values(c, r, begin, kv, from, n);
}

static struct cached_rows rows_of(const struct cached *c, float *scratch, size_t kv, size_t first, size_t part) {
    size_t rows = min_size(c->each, c->T - first) * c->group, D = c->layer->D;
    struct cached_rows r = {.rows = rows, .first = first};
    r.keys = scratch, scratch += TILE * D;
    r.p = scratch, scratch += rows * APART;
    r.q = scratch, scratch += rows * D;
    r.o = c->n_parts > 1 ? part_of(c, kv, part) : scratch;
    r.sums = c->n_parts > 1 ? part_sums_of(c, kv, part) : scratch + rows * D;
    return r;
}

static void cached_task(void *argument, size_t task, int worker) {
    const struct cached *c = argument;
    size_t KV = c->layer->KV, width = c->group * c->layer->D, kv = task % KV, part = task / KV % c->n_parts;
    size_t blocks = pieces(c->T, c->each), first = (blocks - 1 - task / KV / c->n_parts) * c->each; /* longest first */
    struct cached_rows r = rows_of(c, c->ops->scratch + (size_t)worker * c->ops->scratch_floats, kv, first, part);
    size_t n = r.rows / c->group, keys = c->past + first + n;
    float scale = 1.0f / sqrtf((float)c->layer->D);
    for (size_t t = 0; t < n; t++)
        for (size_t i = 0; i < width; i++) r.q[t * width + i] = scale * c->q[((first + t) * KV + kv) * width + i];
    memset(r.o, 0, n * width * sizeof(float));
    for (size_t i = 0; i < r.rows; i++) r.sums[i] = -INFINITY;
    size_t from = part * c->part, to = min_size(from + c->part, keys);
    for (; from < to; from += TILE) attend_tile(c, &r, kv, from, min_size(TILE, to - from));
    for (size_t t = 0; t < n && c->n_parts == 1; t++)
        memcpy(c->o + ((first + t) * KV + kv) * width, r.o + t * width, width * sizeof(float));
}

/* o = sum_i exp(sum_i - total) o_i over the parts of a row */
static void join_parts(const struct cached *c, float *o, size_t kv, size_t row) {
    size_t D = c->layer->D;
    float most = -INFINITY, total = 0;
    memset(o, 0, D * sizeof *o);
    for (size_t i = 0; i < c->n_parts; i++) {
        float sum = part_sums_of(c, kv, i)[row];
        if (!(sum <= most)) most = sum; /* NaN too */
    }
    if (most == -INFINITY) return;
    for (size_t i = 0; i < c->n_parts; i++) total += expf(part_sums_of(c, kv, i)[row] - most);
    for (size_t i = 0; i < c->n_parts; i++)
        c->ops->kernels->axpy(o, expf(part_sums_of(c, kv, i)[row] - most) / total, part_of(c, kv, i) + row * D, D);
}

static void join_tokens(const void *argument, size_t first, size_t last) {
    const struct cached *c = argument;
    for (size_t t = first; t < last; t++)
        for (size_t h = 0; h < c->H; h++)
            join_parts(c, c->o + (t * c->H + h) * c->layer->D, h / c->group, t * c->group + h % c->group);
}

void attention_cached(const struct ops *ops, float *o, const float *q, const struct cached_layer *layer, size_t past,
                      size_t T, size_t H, float *parts) {
    struct cached c = {.ops = ops, .layer = layer, .o = o, .q = q, .past = past, .T = T, .H = H,
                       .group = H / layer->KV, .n_parts = 1, .part = past + T, .parts = parts};
    c.each = tokens_each(c.group);
    c.few = T * c.group <= CACHED_FEW && layer->D % 16 == 0 && ops->kernels->query_keys[layer->kind];
    if (T * c.group <= split_rows(c.group)) {
        size_t most = min_size(parts_most(layer->KV), pieces(past + T, PART_LEAST));
        c.part = pieces(pieces(past + T, most), PART_WHOLE) * PART_WHOLE;
        c.n_parts = pieces(past + T, c.part);
    }
    pool_run(ops->pool, pieces(T, c.each) * c.n_parts * layer->KV, cached_task, &c);
    if (c.n_parts > 1) rows_run(ops, T, join_tokens, &c);
}

struct store {
    const struct cached_layer *layer;
    const float *k, *v;
    size_t past;
};
static void store_rows(const void *argument, size_t first, size_t last) {
    const struct store *s = argument;
    const struct cached_layer *l = s->layer;
    void (*quantize)(void *dst, const float *src, size_t n) = block_format_get(l->kind)->quantize;
    for (size_t t = first; t < last; t++)
        for (size_t h = 0; h < l->KV; h++) {
            size_t from = (t * l->KV + h) * l->D, to = (h * l->context + s->past + t) * l->row_bytes;
            quantize(l->k + to, s->k + from, l->D);
            quantize(l->v + to, s->v + from, l->D);
        }
}

void cached_layer_store(const struct ops *ops, const struct cached_layer *layer, const float *k, const float *v,
                        size_t past, size_t T) {
    struct store s = {layer, k, v, past};
    rows_run(ops, T, store_rows, &s);
}
