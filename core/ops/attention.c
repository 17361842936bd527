/* Causal grouped-query attention over packed sequences, and over a cache.
 *
 * o = softmax(q k^T / sqrt(D)) v, a few query rows at a time: the scores are the only thing that is quadratic, and
 * they stay in the worker's scratch. Rows are multiplied with the keys up to the last of a STEP of rows, so little
 * that the mask hides is computed.
 *
 * A task is a block of query rows under one key head, for all query heads of its group: keys (and values, in the
 * backward) are transposed once for all of them. */
#include "core/ops/ops.h"

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
    /* cached */
    size_t past, context, T;
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

/* ---- over a cache: k and v are (KV, context, D) ---- */

static void cached_row(const struct attention *a, float *scores, size_t head) {
    const struct kernels *kernels = a->ops->kernels;
    size_t keys = a->past + 1, kv = head / (a->H / a->KV);
    const float *q = a->q + head * a->D, *k = a->k + kv * a->context * a->D, *v = a->v + kv * a->context * a->D;
    float *o = a->o + head * a->D;
    for (size_t j = 0; j < keys; j++) scores[j] = a->scale * kernels->dot(q, k + j * a->D, a->D);
    kernels->softmax(scores, keys, 1);
    memset(o, 0, a->D * sizeof(float));
    for (size_t j = 0; j < keys; j++) kernels->axpy(o, scores[j], v + j * a->D, a->D);
}

static void cached_block(void *argument, size_t task, int worker) {
    const struct attention *a = argument;
    float *scratch = scratch_of(a, worker);
    if (a->T == 1) {
        cached_row(a, scratch, task);
        return;
    }
    size_t kv = task % a->KV, first = task / a->KV * BLOCK, n = min_size(BLOCK, a->T - first);
    size_t at = first * a->width + kv * (a->H / a->KV) * a->D, keys_at = kv * a->context * a->D;
    forward_group(a, scratch, a->o + at, a->q + at, a->k + keys_at, a->v + keys_at, a->past + first, n);
}

void attention_cached(const struct ops *ops, float *o, const float *q, const float *cache_k, const float *cache_v,
                      size_t past, size_t T, size_t context, size_t H, size_t KV, size_t D) {
    struct attention a = {.ops = ops, .o = o, .q = q, .k = cache_k, .v = cache_v, .H = H, .KV = KV, .D = D,
                          .width = H * D, .kv_width = D, .apart = row_floats(past + T), .scale = 1.0f / sqrtf((float)D),
                          .past = past, .context = context, .T = T};
    pool_run(ops->pool, T == 1 ? H : blocks_of(&a, T) * KV, cached_block, &a);
}
