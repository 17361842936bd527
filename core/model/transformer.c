/* A layer, forward and backward:
 *
 *   h1 = norm(x);  q, k, v = h1 Wq^T + bias, ...;  rotate q, k;  o = attention(q, k, v)
 *   x2 = x + o Wo^T
 *   h2 = norm(x2);  a = silu(h2 Wg^T) * (h2 Wu^T)
 *   y  = x2 + a Wd^T
 *
 * with a low-rank pair beside any of the seven matrices. Training keeps each layer's x (a
 * checkpoint) and computes the rest again on the way back, so activations cost L T C floats and one
 * layer's worth; the last layer's are still there and are not computed twice. */
#include "core/model/transformer.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static size_t max_size(size_t a, size_t b) { return a > b ? a : b; }

/* ---- activations of one layer, T rows each ---- */

struct activations {
    float *h1, *q, *k, *v, *o, *x2, *h2, *gate, *up, *act; /* widths C, HD, KVD, KVD, HD, C, C, F, F, F */
    float *xa[TARGET_COUNT];                               /* (T, R) x A^T of each pair */
    float *dropped;                                        /* (T, widest input), NULL without dropout */
};

static size_t input_width(const struct model *m, enum target target) {
    return target == TARGET_OUTPUT ? m->H * m->D : target == TARGET_DOWN ? m->F : m->C;
}

static void take_activations(struct arena *arena, struct activations *a, const struct model *m, size_t T, size_t R) {
    size_t heads = m->H * m->D, kv = m->KV * m->D;
    a->h1 = ARENA_TAKE(arena, float, T * m->C);
    a->q = ARENA_TAKE(arena, float, T * heads);
    a->k = ARENA_TAKE(arena, float, T * kv);
    a->v = ARENA_TAKE(arena, float, T * kv);
    a->o = ARENA_TAKE(arena, float, T * heads);
    a->x2 = ARENA_TAKE(arena, float, T * m->C);
    a->h2 = ARENA_TAKE(arena, float, T * m->C);
    a->gate = ARENA_TAKE(arena, float, T * m->F);
    a->up = ARENA_TAKE(arena, float, T * m->F);
    a->act = ARENA_TAKE(arena, float, T * m->F);
    for (int t = 0; t < TARGET_COUNT; t++) a->xa[t] = ARENA_TAKE(arena, float, T * R);
    a->dropped = ARENA_TAKE(arena, float, T * max_size(m->F, max_size(m->C, heads)));
}

static size_t scratch_floats(const struct model *m, size_t T) {
    size_t cols = max_size(max_size(m->C, m->F), m->H * m->D);
    return ops_scratch_floats(T, max_size(m->V, m->F), cols, m->D);
}

/* ---- a layer forward ---- */

struct layer_run {
    const struct ops *ops;
    const struct model *model;
    const struct model_layer *layer;
    const struct layer_pairs *pairs; /* NULL: none */
    struct activations *a;
    size_t index, T;
    const int32_t *positions;
    const float *table;
    /* packed: */
    const size_t *starts;
    size_t n_sequences;
    float dropout;
    uint64_t dropout_key;
    const uint64_t *keys;
    /* cached (starts NULL): */
    struct kv_cache *cache;
};

static const struct low_rank *pair_of(const struct layer_run *r, enum target target) {
    const struct low_rank *pair = r->pairs ? &r->pairs->target[target] : NULL;
    return pair && pair->rank > 0 ? pair : NULL;
}

static uint64_t dropout_key_of(const struct layer_run *r, enum target target) {
    return r->dropout_key + r->index * TARGET_COUNT + target;
}

/* What the pair sees: x, or x after dropout (in a->dropped). */
static const float *pair_input(const struct layer_run *r, enum target target, const float *x) {
    if (r->dropout == 0.0f) return x;
    dropout_apply(r->ops, r->a->dropped, x, r->dropout, dropout_key_of(r, target), r->keys, r->T,
                  input_width(r->model, target));
    return r->a->dropped;
}

static void add_pair(const struct layer_run *r, enum target target, float *y, const float *x) {
    const struct low_rank *pair = pair_of(r, target);
    if (!pair) return;
    const struct matrix *w = &r->layer->linear[target];
    low_rank_forward(r->ops, y, r->a->xa[target], pair_input(r, target, x), pair, w->rows, w->cols, r->T);
}

static void project(const struct layer_run *r, const enum target *targets, float *const *y, size_t n, const float *x) {
    struct linear jobs[3] = {0};
    assert(n <= 3);
    for (size_t i = 0; i < n; i++)
        jobs[i] = (struct linear){y[i], x, &r->layer->linear[targets[i]], r->layer->bias[targets[i]]};
    linear_forward_group(r->ops, jobs, n, r->T);
    for (size_t i = 0; i < n; i++) add_pair(r, targets[i], y[i], x);
}

/* New rows of k and v into the cache: (T, KV, D) -> (KV, context, D). */
static void cache_store(const struct layer_run *r, float *cache, const float *rows) {
    const struct model *m = r->model;
    for (size_t t = 0; t < r->T; t++)
        for (size_t h = 0; h < m->KV; h++)
            memcpy(cache + (h * r->cache->context + r->cache->used + t) * m->D, rows + (t * m->KV + h) * m->D,
                   m->D * sizeof(float));
}

static void attend(const struct layer_run *r) {
    const struct model *m = r->model;
    struct activations *a = r->a;
    if (r->starts) {
        attention_forward(r->ops, a->o, a->q, a->k, a->v, r->starts, r->n_sequences, m->H, m->KV, m->D);
        return;
    }
    size_t layer = r->index * m->KV * r->cache->context * m->D;
    cache_store(r, r->cache->k + layer, a->k);
    cache_store(r, r->cache->v + layer, a->v);
    attention_cached(r->ops, a->o, a->q, r->cache->k + layer, r->cache->v + layer, r->cache->used, r->T,
                     r->cache->context, m->H, m->KV, m->D);
}

/* All that the backward needs but x A^T of the last matrix, which only layer_forward multiplies with. */
static void layer_activate(const struct layer_run *r, const float *x) {
    const struct model *m = r->model;
    struct activations *a = r->a;
    rms_norm_forward(r->ops, a->h1, x, r->layer->attn_norm, m->eps, r->T, m->C);
    project(r, (enum target[]){TARGET_Q, TARGET_K, TARGET_V}, (float *[]){a->q, a->k, a->v}, 3, a->h1);
    rope_apply(r->ops, a->q, r->positions, r->table, &m->rope, m->H, m->D, r->T, 0);
    rope_apply(r->ops, a->k, r->positions, r->table, &m->rope, m->KV, m->D, r->T, 0);
    attend(r);
    project(r, (enum target[]){TARGET_OUTPUT}, &a->x2, 1, a->o);
    add_rows(r->ops, a->x2, x, r->T * m->C);
    rms_norm_forward(r->ops, a->h2, a->x2, r->layer->ffn_norm, m->eps, r->T, m->C);
    project(r, (enum target[]){TARGET_GATE, TARGET_UP}, (float *[]){a->gate, a->up}, 2, a->h2);
    swiglu_forward(r->ops, a->act, a->gate, a->up, r->T * m->F);
}

/* y may be x's own memory: x is used up by then. */
static void layer_forward(const struct layer_run *r, float *y, const float *x) {
    layer_activate(r, x);
    project(r, (enum target[]){TARGET_DOWN}, &y, 1, r->a->act);
    add_rows(r->ops, y, r->a->x2, r->T * r->model->C);
}

/* ---- a layer backward ---- */

struct derivatives {
    float *dx, *dh;            /* (T, C): of the layer's output, then of its input; of a norm's output */
    float *dq, *dk, *dv, *do_; /* as q, k, v, o */
    float *dgate, *dup, *dact; /* (T, F) */
    float *dkv;                /* (2, H, T, D) */
    float *dyb;                /* (T, R) */
};

static void take_derivatives(struct arena *arena, struct derivatives *d, const struct model *m, size_t T, size_t R) {
    size_t heads = m->H * m->D, kv = m->KV * m->D;
    d->dx = ARENA_TAKE(arena, float, T * m->C);
    d->dh = ARENA_TAKE(arena, float, T * m->C);
    d->dq = ARENA_TAKE(arena, float, T * heads);
    d->dk = ARENA_TAKE(arena, float, T * kv);
    d->dv = ARENA_TAKE(arena, float, T * kv);
    d->do_ = ARENA_TAKE(arena, float, T * heads);
    d->dgate = ARENA_TAKE(arena, float, T * m->F);
    d->dup = ARENA_TAKE(arena, float, T * m->F);
    d->dact = ARENA_TAKE(arena, float, T * m->F);
    d->dkv = ARENA_TAKE(arena, float, 2 * T * heads);
    d->dyb = ARENA_TAKE(arena, float, T * R);
}

/* dx (+)= dy W + pair's; the pair's dA, dB. dx NULL: nobody asks for it. */
static void project_backward(const struct layer_run *r, const struct derivatives *d, struct layer_gradients *gradients,
                             enum target target, float *dx, const float *dy, const float *x, int accumulate) {
    const struct matrix *w = &r->layer->linear[target];
    const struct low_rank *pair = pair_of(r, target);
    if (dx) linear_backward(r->ops, dx, dy, w, r->T, accumulate);
    if (!pair) return;
    const struct low_rank_gradient *gradient = gradients ? &gradients->target[target] : NULL;
    if (r->dropout == 0.0f) {
        low_rank_backward(r->ops, dx, dy, x, r->a->xa[target], d->dyb, pair, gradient, w->rows, w->cols, r->T);
        return;
    }
    /* The pair saw dropout(x): its dx goes through the same mask. */
    low_rank_backward(r->ops, NULL, dy, pair_input(r, target, x), r->a->xa[target], d->dyb, pair, gradient, w->rows,
                      w->cols, r->T);
    if (!dx) return;
    float *through = r->a->dropped;
    memset(through, 0, r->T * w->cols * sizeof(float));
    low_rank_backward(r->ops, through, dy, NULL, NULL, d->dyb, pair, NULL, w->rows, w->cols, r->T);
    dropout_apply(r->ops, through, through, r->dropout, dropout_key_of(r, target), r->keys, r->T, w->cols);
    add_rows(r->ops, dx, through, r->T * w->cols);
}

/* d->dx is dy on entry and dx on return. Activations are those of layer_activate(x). first: the layer
 * over the frozen embedding, whose dx nobody asks for. */
static void layer_backward(const struct layer_run *r, struct derivatives *d, struct layer_gradients *g, const float *x,
                           int first) {
    const struct model *m = r->model;
    struct activations *a = r->a;
    size_t T = r->T;
    /* y = x2 + act Wd^T;  act = silu(gate) up */
    project_backward(r, d, g, TARGET_DOWN, d->dact, d->dx, a->act, 0);
    swiglu_backward(r->ops, d->dgate, d->dup, d->dact, a->gate, a->up, T * m->F);
    /* gate, up = h2 W^T;  h2 = norm(x2) */
    project_backward(r, d, g, TARGET_GATE, d->dh, d->dgate, a->h2, 0);
    project_backward(r, d, g, TARGET_UP, d->dh, d->dup, a->h2, 1);
    rms_norm_backward(r->ops, d->dx, d->dh, a->x2, r->layer->ffn_norm, m->eps, T, m->C);
    /* x2 = x + o Wo^T;  o = attention(q, k, v) */
    project_backward(r, d, g, TARGET_OUTPUT, d->do_, d->dx, a->o, 0);
    attention_backward(r->ops, d->dq, d->dk, d->dv, d->dkv, d->do_, a->q, a->k, a->v, r->starts, r->n_sequences, m->H,
                       m->KV, m->D);
    rope_apply(r->ops, d->dq, r->positions, r->table, &m->rope, m->H, m->D, T, 1);
    rope_apply(r->ops, d->dk, r->positions, r->table, &m->rope, m->KV, m->D, T, 1);
    /* q, k, v = h1 W^T;  h1 = norm(x) */
    float *dh = first ? NULL : d->dh;
    project_backward(r, d, g, TARGET_Q, dh, d->dq, a->h1, 0);
    project_backward(r, d, g, TARGET_K, dh, d->dk, a->h1, 1);
    project_backward(r, d, g, TARGET_V, dh, d->dv, a->h1, 1);
    if (!first) rms_norm_backward(r->ops, d->dx, d->dh, x, r->layer->attn_norm, m->eps, T, m->C);
}

/* ---- training and evaluation ---- */

struct training_pass {
    const struct model *model;
    struct ops ops;
    struct arena arena;
    size_t T_max, R_max;
    int backward;
    float *checkpoints; /* (L + 1, T, C) with backward, else two of them in turn */
    float *table;
    struct activations a;
    struct derivatives d;
    /* supervised positions, gathered */
    float *hidden, *normed, *dnormed; /* (T, C) */
    float *row_losses, *row_weights;
    int32_t *row_targets;
    size_t *rows;
    float *logits; /* (head_loss_chunk, V) */
};

static void take_training(struct training_pass *p, int threads) {
    const struct model *m = p->model;
    struct arena *arena = &p->arena;
    size_t T = p->T_max;
    p->ops.scratch_floats = scratch_floats(m, T);
    p->ops.scratch = ARENA_TAKE(arena, float, (size_t)threads * p->ops.scratch_floats);
    p->checkpoints = ARENA_TAKE(arena, float, (p->backward ? m->L + 1 : 1) * T * m->C);
    p->table = ARENA_TAKE(arena, float, T * m->rope.dims);
    take_activations(arena, &p->a, m, T, p->R_max);
    if (p->backward) take_derivatives(arena, &p->d, m, T, p->R_max);
    p->hidden = ARENA_TAKE(arena, float, T * m->C);
    p->normed = ARENA_TAKE(arena, float, T * m->C);
    p->dnormed = p->backward ? ARENA_TAKE(arena, float, T * m->C) : NULL;
    p->row_losses = ARENA_TAKE(arena, float, T);
    p->row_weights = ARENA_TAKE(arena, float, T);
    p->row_targets = ARENA_TAKE(arena, int32_t, T);
    p->rows = ARENA_TAKE(arena, size_t, T);
    p->logits = ARENA_TAKE(arena, float, head_loss_chunk *m->V);
}

size_t training_pass_bytes(const struct model *model, int threads, size_t T_max, size_t R_max, int backward) {
    struct training_pass counted = {.model = model, .T_max = T_max, .R_max = R_max, .backward = backward};
    take_training(&counted, threads);
    return counted.arena.used + sizeof counted;
}

int training_pass_create(const struct model *model, struct pool *pool, size_t T_max, size_t R_max, int backward,
                         struct training_pass **out, attune_error *err) {
    struct training_pass *p = calloc(1, sizeof *p);
    if (!p) return error_set_memory(err, "a training pass", sizeof *p);
    *p = (struct training_pass){.model = model, .T_max = T_max, .R_max = max_size(R_max, 1), .backward = backward,
                                .ops = {.pool = pool, .kernels = kernels_get()}};
    take_training(p, pool_threads(pool));
    int code = arena_commit(&p->arena, "activations", err);
    if (code != ATTUNE_OK) {
        training_pass_destroy(p);
        return code;
    }
    take_training(p, pool_threads(pool));
    rope_table(p->table, &model->rope, T_max);
    *out = p;
    return ATTUNE_OK;
}

void training_pass_destroy(struct training_pass *pass) {
    if (!pass) return;
    arena_free(&pass->arena);
    free(pass);
}

static struct layer_run run_of(const struct training_pass *p, const struct weights *w, const struct packed_batch *batch,
                               size_t layer, float dropout, uint64_t dropout_key) {
    return (struct layer_run){.ops = &p->ops, .model = p->model, .layer = &w->layers[layer],
                              .pairs = w->pairs ? &w->pairs[layer] : NULL, .a = (struct activations *)(uintptr_t)&p->a,
                              .index = layer, .T = batch->T, .positions = batch->positions, .table = p->table,
                              .starts = batch->starts, .n_sequences = batch->n_sequences, .dropout = dropout,
                              .dropout_key = dropout_key, .keys = batch->keys};
}

/* x of each layer into the checkpoints; returns the last layer's output. */
static float *forward_layers(struct training_pass *p, const struct weights *w, const struct packed_batch *batch,
                             float dropout, uint64_t dropout_key) {
    const struct model *m = p->model;
    size_t step = p->backward ? batch->T * m->C : 0;
    float *x = p->checkpoints;
    embedding_forward(&p->ops, x, batch->tokens, &m->embedding, batch->T);
    for (size_t l = 0; l < m->L && !pool_cancelled(p->ops.pool); l++, x += step) {
        struct layer_run r = run_of(p, w, batch, l, dropout, dropout_key);
        layer_forward(&r, x + step, x);
    }
    return x;
}

/* The supervised rows of x, packed together; returns how many. */
static size_t gather_supervised(struct training_pass *p, const float *x, const struct packed_batch *batch) {
    size_t n = 0, C = p->model->C;
    for (size_t t = 0; t < batch->T; t++) {
        if (batch->targets[t] < 0) continue;
        memcpy(p->hidden + n * C, x + t * C, C * sizeof(float));
        p->row_targets[n] = batch->targets[t];
        p->row_weights[n] = batch->weights ? batch->weights[t] : 0.0f;
        p->rows[n++] = t;
    }
    return n;
}

static void backward_layers(struct training_pass *p, const struct weights *w, const struct packed_batch *batch,
                            size_t n, float dropout, uint64_t dropout_key, struct layer_gradients *gradients) {
    const struct model *m = p->model;
    /* the final norm, on supervised rows; then scattered: other rows have no gradient */
    memset(p->normed, 0, n * m->C * sizeof(float));
    rms_norm_backward(&p->ops, p->normed, p->dnormed, p->hidden, m->output_norm, m->eps, n, m->C);
    memset(p->d.dx, 0, batch->T * m->C * sizeof(float));
    for (size_t i = 0; i < n; i++)
        memcpy(p->d.dx + p->rows[i] * m->C, p->normed + i * m->C, m->C * sizeof(float));
    for (size_t l = m->L; l-- > 0 && !pool_cancelled(p->ops.pool);) {
        struct layer_run r = run_of(p, w, batch, l, dropout, dropout_key);
        const float *x = p->checkpoints + l * batch->T * m->C;
        if (l + 1 < m->L) {
            layer_activate(&r, x);
            add_pair(&r, TARGET_DOWN, NULL, p->a.act);
        }
        layer_backward(&r, &p->d, &gradients[l], x, l == 0);
    }
}

int training_pass_run(struct training_pass *p, const struct weights *weights, const struct packed_batch *batch,
                      float dropout, uint64_t dropout_key, struct layer_gradients *gradients, float *losses,
                      attune_error *err) {
    const struct model *m = p->model;
    assert(batch->T <= p->T_max && (!gradients || p->backward));
    memset(losses, 0, batch->T * sizeof(float));
    float *x = forward_layers(p, weights, batch, dropout, dropout_key);
    size_t n = gather_supervised(p, x, batch);
    rms_norm_forward(&p->ops, p->normed, p->hidden, m->output_norm, m->eps, n, m->C);
    head_loss(&p->ops, p->row_losses, gradients ? p->dnormed : NULL, p->logits, p->normed, p->row_targets,
              p->row_weights, &m->head, n);
    for (size_t i = 0; i < n; i++) losses[p->rows[i]] = p->row_losses[i];
    if (gradients && n > 0) backward_layers(p, weights, batch, n, dropout, dropout_key, gradients);
    if (pool_cancelled(p->ops.pool)) return error_set(err, ATTUNE_ERROR_CANCELLED, NULL, "cancelled");
    return ATTUNE_OK;
}

int training_pass_logits(struct training_pass *p, const struct weights *weights, const int32_t *tokens, size_t T,
                         float *logits, attune_error *err) {
    const struct model *m = p->model;
    assert(T <= p->T_max);
    int32_t *positions = malloc(T * sizeof *positions);
    if (!positions) return error_set_memory(err, "positions", T * sizeof *positions);
    for (size_t t = 0; t < T; t++) positions[t] = (int32_t)t;
    size_t starts[2] = {0, T};
    struct packed_batch batch = {.T = T, .n_sequences = 1, .tokens = tokens, .positions = positions, .starts = starts};
    float *x = forward_layers(p, weights, &batch, 0.0f, 0);
    rms_norm_forward(&p->ops, p->normed, x, m->output_norm, m->eps, T, m->C);
    linear_forward(&p->ops, logits, p->normed, &m->head, NULL, T);
    free(positions);
    if (pool_cancelled(p->ops.pool)) return error_set(err, ATTUNE_ERROR_CANCELLED, NULL, "cancelled");
    return ATTUNE_OK;
}

/* ---- generation ---- */

int kv_cache_create(const struct model *model, size_t context, struct kv_cache *out, attune_error *err) {
    struct kv_cache cache = {.context = context};
    int code;
    for (int commit = 0;; commit = 1) {
        size_t floats = model->KV * model->D * context;
        cache.k = ARENA_TAKE(&cache.arena, float, model->L * floats);
        cache.v = ARENA_TAKE(&cache.arena, float, model->L * floats);
        if (commit) break;
        code = arena_commit(&cache.arena, "the KV cache; a smaller context needs less", err);
        if (code != ATTUNE_OK) return code;
    }
    *out = cache;
    return ATTUNE_OK;
}

void kv_cache_free(struct kv_cache *cache) {
    if (!cache) return;
    arena_free(&cache->arena);
    *cache = (struct kv_cache){0};
}

struct decoding_pass {
    const struct model *model;
    struct ops ops;
    struct arena arena;
    size_t context;
    float *table, *x, *normed;
    int32_t *positions;
    struct activations a;
};

static void take_decoding(struct decoding_pass *p, size_t R) {
    const struct model *m = p->model;
    p->ops.scratch_floats = scratch_floats(m, p->context);
    p->ops.scratch = ARENA_TAKE(&p->arena, float, (size_t)pool_threads(p->ops.pool) * p->ops.scratch_floats);
    p->table = ARENA_TAKE(&p->arena, float, p->context * m->rope.dims);
    p->x = ARENA_TAKE(&p->arena, float, DECODING_CHUNK * m->C);
    p->normed = ARENA_TAKE(&p->arena, float, m->C);
    p->positions = ARENA_TAKE(&p->arena, int32_t, DECODING_CHUNK);
    take_activations(&p->arena, &p->a, m, DECODING_CHUNK, R);
}

int decoding_pass_create(const struct model *model, struct pool *pool, size_t context, size_t R_max,
                         struct decoding_pass **out, attune_error *err) {
    struct decoding_pass *p = calloc(1, sizeof *p);
    if (!p) return error_set_memory(err, "a decoding pass", sizeof *p);
    *p = (struct decoding_pass){.model = model, .ops = {.pool = pool, .kernels = kernels_get()}, .context = context};
    take_decoding(p, max_size(R_max, 1));
    int code = arena_commit(&p->arena, "activations", err);
    if (code != ATTUNE_OK) {
        decoding_pass_destroy(p);
        return code;
    }
    take_decoding(p, max_size(R_max, 1));
    rope_table(p->table, &model->rope, context);
    *out = p;
    return ATTUNE_OK;
}

void decoding_pass_destroy(struct decoding_pass *pass) {
    if (!pass) return;
    arena_free(&pass->arena);
    free(pass);
}

static void decode_chunk(struct decoding_pass *p, const struct weights *w, struct kv_cache *cache,
                         const int32_t *tokens, size_t n) {
    const struct model *m = p->model;
    for (size_t t = 0; t < n; t++) p->positions[t] = (int32_t)(cache->used + t);
    embedding_forward(&p->ops, p->x, tokens, &m->embedding, n);
    for (size_t l = 0; l < m->L && !pool_cancelled(p->ops.pool); l++) {
        struct layer_run r = {.ops = &p->ops, .model = m, .layer = &w->layers[l],
                              .pairs = w->pairs ? &w->pairs[l] : NULL, .a = &p->a, .index = l, .T = n,
                              .positions = p->positions, .table = p->table, .cache = cache};
        layer_forward(&r, p->x, p->x);
    }
    cache->used += n;
}

int decoding_pass_run(struct decoding_pass *p, const struct weights *weights, struct kv_cache *cache,
                      const int32_t *tokens, size_t n, float *logits, attune_error *err) {
    const struct model *m = p->model;
    size_t before = cache->used, last = 0;
    if (n > cache->context - before || n > p->context - before)
        return error_set(
            err, ATTUNE_ERROR_CONTEXT_FULL, NULL,
            "%zu more tokens do not fit a context of %zu that holds %zu; open the session with a larger one", n,
            cache->context, before);
    for (size_t at = 0; at < n; at += last) {
        last = n - at < DECODING_CHUNK ? n - at : DECODING_CHUNK;
        decode_chunk(p, weights, cache, tokens + at, last);
    }
    if (logits && n > 0) {
        rms_norm_forward(&p->ops, p->normed, p->x + (last - 1) * m->C, m->output_norm, m->eps, 1, m->C);
        linear_forward(&p->ops, logits, p->normed, &m->head, NULL, 1);
    }
    if (pool_cancelled(p->ops.pool)) {
        cache->used = before;
        return error_set(err, ATTUNE_ERROR_CANCELLED, NULL, "cancelled");
    }
    return ATTUNE_OK;
}
