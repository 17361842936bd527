/* A layer, forward and backward:
 *
 *   h1 = norm(x);  q, k, v = h1 Wq^T + bias, ...;  rotate q, k;  o = attention(q, k, v)
 *   x2 = x + o Wo^T
 *   h2 = norm(x2);  a = silu(h2 Wg^T) * (h2 Wu^T)
 *   y  = x2 + a Wd^T
 *
 * with a low-rank pair beside any of the seven matrices. Training keeps each layer's x (a checkpoint), and of
 * the last layers all that costs a product to have again: q, k, v, o, x2, gate, up. Other layers compute that again
 * on the way back. Norms and a are computed again in any case: they are cheap, and as large as what is kept. */
#include "core/model/transformer.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static size_t max_size(size_t a, size_t b) { return a > b ? a : b; }

/* ---- memory of a layer, T rows each ---- */

/* What a layer's backward needs of its forward and cannot have cheaply. */
struct activations {
    float *q, *k, *v, *o, *x2, *gate, *up; /* widths HD, KVD, KVD, HD, C, F, F; q and k rotated */
    float *xa[TARGET_COUNT];               /* (T, R) x A^T of each pair */
};

/* What is of use only while a layer is worked on. */
struct workspace {
    float *h;       /* (T, C) x or x2, normed; between the layers the supervised rows, normed */
    float *act;     /* (T, F) */
    float *dropped; /* (T, widest input), NULL without dropout */
    /* backward: */
    float *dx, *dh; /* (T, C) of the layer's output, then of its input; of h */
    float *dyb;     /* (T, R) */
};

static size_t input_width(const struct model *m, enum target target) {
    return target == TARGET_OUTPUT ? m->H * m->D : target == TARGET_DOWN ? m->F : m->C;
}

/* Floats a row that attention's derivatives take: do, dq, dk, dv, and dkv (2, H, T, D). */
static size_t attention_floats(const struct model *m) { return 4 * m->H * m->D + 2 * m->KV * m->D; }

static void take_activations(struct arena *arena, struct activations *a, const struct model *m, size_t T, size_t R) {
    size_t heads = m->H * m->D, kv = m->KV * m->D;
    a->q = ARENA_TAKE(arena, float, T * heads);
    a->k = ARENA_TAKE(arena, float, T * kv);
    a->v = ARENA_TAKE(arena, float, T * kv);
    a->o = ARENA_TAKE(arena, float, T * heads);
    a->x2 = ARENA_TAKE(arena, float, T * m->C);
    /* gate and up side by side: once their derivatives are used up, attention's lie there */
    a->gate = ARENA_TAKE(arena, float, T * max_size(2 * m->F, attention_floats(m)));
    a->up = a->gate ? a->gate + T * m->F : NULL;
    for (int t = 0; t < TARGET_COUNT; t++) a->xa[t] = ARENA_TAKE(arena, float, T * R);
}

static size_t widest_input(const struct model *m) { return max_size(m->F, max_size(m->C, m->H * m->D)); }

/* T rows meet the layers' matrices, head_rows of them the head. */
static size_t packed_bytes(const struct model *m, const struct ops *ops, size_t T, size_t head_rows, size_t R) {
    size_t wide = widest_input(m);
    return max_size(ops_packed_bytes(ops->kernels, ops->product, T, wide, wide, R),
                    ops_packed_bytes(ops->kernels, ops->product, head_rows, m->V, m->C, R));
}

/* ---- a layer forward ---- */

struct layer_run {
    const struct ops *ops;
    const struct model *model;
    const struct model_layer *layer;
    const struct layer_pairs *pairs; /* NULL: none */
    const struct activations *a;
    const struct workspace *work;
    size_t index, T;
    const int32_t *positions;
    const float *table;
    /* packed: */
    const size_t *starts;
    size_t n_sequences;
    float dropout;
    uint64_t dropout_key;
    const uint64_t *keys;
    const struct input_observer *observer; /* NULL: none */
    /* cached (starts NULL): */
    struct kv_cache *cache;
    float *parts; /* of attention_cached */
};

static const struct low_rank *pair_of(const struct layer_run *r, enum target target) {
    const struct low_rank *pair = r->pairs ? &r->pairs->target[target] : NULL;
    return pair && pair->rank > 0 ? pair : NULL;
}

static uint64_t dropout_key_of(const struct layer_run *r, enum target target) {
    return r->dropout_key + r->index * TARGET_COUNT + target;
}

/* What the pair sees: x, or x after dropout (in work->dropped). */
static const float *pair_input(const struct layer_run *r, enum target target, const float *x) {
    if (r->dropout == 0.0f) return x;
    dropout_apply(r->ops, r->work->dropped, x, r->dropout, dropout_key_of(r, target), r->keys, r->T,
                  input_width(r->model, target));
    return r->work->dropped;
}

static void add_pair(const struct layer_run *r, enum target target, float *y, const float *x) {
    const struct low_rank *pair = pair_of(r, target);
    if (!pair) return;
    const struct matrix *w = &r->layer->linear[target];
    low_rank_forward(r->ops, y, r->a->xa[target], pair_input(r, target, x), pair, w->rows, w->cols, r->T);
}

static void observe(const struct layer_run *r, enum target target, const float *x) {
    if (r->observer) r->observer->see(r->observer->user, r->index, target, x, r->T, input_width(r->model, target));
}

static void project(const struct layer_run *r, const enum target *targets, float *const *y, size_t n, const float *x) {
    struct linear jobs[LINEAR_GROUP] = {0};
    int together = r->dropout == 0.0f; /* else the pair sees another x */
    assert(n <= LINEAR_GROUP);
    observe(r, targets[0], x);
    for (size_t i = 0; i < n; i++)
        jobs[i] = (struct linear){y[i], x, &r->layer->linear[targets[i]], r->layer->bias[targets[i]],
                                  together ? pair_of(r, targets[i]) : NULL, r->a->xa[targets[i]]};
    linear_forward_group(r->ops, jobs, n, r->T);
    for (size_t i = 0; i < n && !together; i++) add_pair(r, targets[i], y[i], x);
}

static struct cached_layer cached_layer_of(const struct kv_cache *cache, const struct model *m, size_t layer) {
    size_t at = layer * m->KV * cache->context * cache->row_bytes;
    return (struct cached_layer){.k = cache->k + at, .v = cache->v + at, .kind = cache->kind,
                                 .context = cache->context, .row_bytes = cache->row_bytes, .KV = m->KV, .D = m->D};
}

static void attend(const struct layer_run *r) {
    const struct model *m = r->model;
    const struct activations *a = r->a;
    if (r->starts) {
        attention_forward(r->ops, a->o, a->q, a->k, a->v, r->starts, r->n_sequences, m->H, m->KV, m->D);
        return;
    }
    struct cached_layer layer = cached_layer_of(r->cache, m, r->index);
    cached_layer_store(r->ops, &layer, a->k, a->v, r->cache->used, r->T);
    attention_cached(r->ops, a->o, a->q, &layer, r->cache->used, r->T, m->H, r->parts);
}

static void norm_attention(const struct layer_run *r, const float *x) {
    const struct model *m = r->model;
    rms_norm_forward(r->ops, r->work->h, x, r->layer->attn_norm, m->eps, r->T, m->C);
}
static void norm_ffn(const struct layer_run *r) {
    const struct model *m = r->model;
    rms_norm_forward(r->ops, r->work->h, r->a->x2, r->layer->ffn_norm, m->eps, r->T, m->C);
}
static void activate(const struct layer_run *r) {
    swiglu_forward(r->ops, r->work->act, r->a->gate, r->a->up, r->T * r->model->F);
}

/* All that the backward needs but x A^T of the last matrix, which only layer_forward multiplies with. */
static void layer_activate(const struct layer_run *r, const float *x) {
    const struct model *m = r->model;
    const struct activations *a = r->a;
    norm_attention(r, x);
    project(r, (enum target[]){TARGET_Q, TARGET_K, TARGET_V}, (float *[]){a->q, a->k, a->v}, 3, r->work->h);
    rope_apply(r->ops, a->q, r->positions, r->table, &m->rope, m->H, m->D, r->T, 0);
    rope_apply(r->ops, a->k, r->positions, r->table, &m->rope, m->KV, m->D, r->T, 0);
    attend(r);
    project(r, (enum target[]){TARGET_OUTPUT}, (float *[]){a->x2}, 1, a->o);
    add_rms_norm_forward(r->ops, r->work->h, a->x2, x, r->layer->ffn_norm, m->eps, r->T, m->C);
    project(r, (enum target[]){TARGET_GATE, TARGET_UP}, (float *[]){a->gate, a->up}, 2, r->work->h);
    activate(r);
}

/* y may be x's own memory: x is used up by then. */
static void layer_forward(const struct layer_run *r, float *y, const float *x) {
    layer_activate(r, x);
    project(r, (enum target[]){TARGET_DOWN}, &y, 1, r->work->act);
    add_rows(r->ops, y, r->a->x2, r->T * r->model->C);
}

/* ---- a layer backward ---- */

/* dx (+)= dy W + pair's; the pair's dA, dB. dx NULL: nobody asks for it. dx may be x's own memory when it does not
 * accumulate: x is used up first. */
static void project_backward(const struct layer_run *r, struct layer_gradients *gradients, enum target target,
                             float *dx, const float *dy, const float *x, int accumulate) {
    const struct matrix *w = &r->layer->linear[target];
    const struct low_rank *pair = pair_of(r, target);
    const struct low_rank_gradient *gradient = &gradients->target[target];
    const float *xa = r->a->xa[target];
    float *dyb = r->work->dyb, *through = r->work->dropped;
    int together = pair && dx && r->dropout == 0.0f, apart = pair && (!together || dx == x);
    if (apart)
        low_rank_backward(r->ops, NULL, dy, pair_input(r, target, x), xa, dyb, pair, gradient, w->rows, w->cols, r->T);
    if (dx) linear_backward(r->ops, dx, dy, w, together ? pair : NULL, dyb, r->T, accumulate);
    if (together && !apart) low_rank_gradients(r->ops, dy, x, xa, dyb, pair, gradient, w->rows, w->cols, r->T);
    if (!pair || !dx || together) return;
    /* The pair saw dropout(x): its dx goes through the same mask. */
    memset(through, 0, r->T * w->cols * sizeof(float));
    low_rank_backward(r->ops, through, dy, NULL, NULL, dyb, pair, NULL, w->rows, w->cols, r->T);
    dropout_apply(r->ops, through, through, r->dropout, dropout_key_of(r, target), r->keys, r->T, w->cols);
    add_rows(r->ops, dx, through, r->T * w->cols);
}

/* o = attention(rotated q, k, v): do is in place of gate, dq, dk, dv behind it. */
static void attend_backward(const struct layer_run *r, const float *do_, float *dq, float *dk, float *dv) {
    const struct model *m = r->model;
    const struct activations *a = r->a;
    float *dkv = dv + r->T * m->KV * m->D;
    attention_backward(r->ops, dq, dk, dv, dkv, do_, a->q, a->k, a->v, r->starts, r->n_sequences, m->H, m->KV, m->D);
    rope_apply(r->ops, dq, r->positions, r->table, &m->rope, m->H, m->D, r->T, 1);
    rope_apply(r->ops, dk, r->positions, r->table, &m->rope, m->KV, m->D, r->T, 1);
}

/* work->dx is dy on entry and dx on return. Activations, act and h are those of layer_activate(x), and are used up:
 * derivatives take their places. first: the layer over the frozen embedding, whose dx nobody asks for. */
static void layer_backward(const struct layer_run *r, struct layer_gradients *g, const float *x, int first) {
    const struct model *m = r->model;
    const struct activations *a = r->a;
    const struct workspace *w = r->work;
    size_t T = r->T;
    /* y = x2 + act Wd^T;  act = silu(gate) up */
    project_backward(r, g, TARGET_DOWN, w->act, w->dx, w->act, 0);
    swiglu_backward(r->ops, a->gate, a->up, w->act, a->gate, a->up, T * m->F);
    /* gate, up = h W^T;  h = norm(x2) */
    project_backward(r, g, TARGET_GATE, w->dh, a->gate, w->h, 0);
    project_backward(r, g, TARGET_UP, w->dh, a->up, w->h, 1);
    rms_norm_backward(r->ops, w->dx, w->dh, a->x2, r->layer->ffn_norm, m->eps, T, m->C);
    /* x2 = x + o Wo^T;  o = attention(q, k, v) */
    float *do_ = a->gate, *dq = do_ + T * m->H * m->D, *dk = dq + T * m->H * m->D, *dv = dk + T * m->KV * m->D;
    project_backward(r, g, TARGET_OUTPUT, do_, w->dx, a->o, 0);
    attend_backward(r, do_, dq, dk, dv);
    /* q, k, v = h W^T;  h = norm(x) */
    float *dh = first ? NULL : w->dh;
    norm_attention(r, x);
    project_backward(r, g, TARGET_Q, dh, dq, w->h, 0);
    project_backward(r, g, TARGET_K, dh, dk, w->h, 1);
    project_backward(r, g, TARGET_V, dh, dv, w->h, 1);
    if (!first) rms_norm_backward(r->ops, w->dx, w->dh, x, r->layer->attn_norm, m->eps, T, m->C);
}

/* ---- training and evaluation ---- */

struct training_pass {
    const struct model *model;
    struct ops ops;
    struct arena arena;
    struct pass_shape shape;
    float *x; /* backward: (L + 1, T, C), each layer's; else (together, T, C), each batch's; for drift twice that, the
               * second half of the other model */
    float *table;
    struct activations *a; /* (kept), the last layer's first */
    struct workspace work;
    /* of the supervised positions */
    float *row_losses, *row_weights;
    int32_t *row_targets;
    size_t *rows;
    float *logits; /* (head_rows, V), for drift twice */
    struct row_drift *drift; /* (T) */
};

/* Activations and workspace, but for h; and the logits: while they exist, the layers' memory has nothing in it that is
 * still needed, except kept activations. So they share. */
static void take_layers(struct training_pass *p, size_t R) {
    const struct model *m = p->model;
    struct arena *arena = &p->arena;
    size_t T = p->shape.T_max, from, kept = p->shape.backward ? p->shape.kept : 1;
    p->a = ARENA_TAKE(arena, struct activations, kept);
    struct activations counted;
    if (p->shape.backward)
        for (size_t i = 0; i < kept; i++) take_activations(arena, p->a ? &p->a[i] : &counted, m, T, R);
    from = arena->used;
    if (!p->shape.backward) take_activations(arena, p->a ? p->a : &counted, m, T, R);
    p->work.act = ARENA_TAKE(arena, float, T * m->F);
    p->work.dropped = p->shape.dropout ? ARENA_TAKE(arena, float, T * widest_input(m)) : NULL;
    if (p->shape.backward) {
        p->work.dx = ARENA_TAKE(arena, float, T * m->C);
        p->work.dh = ARENA_TAKE(arena, float, T * m->C);
        p->work.dyb = ARENA_TAKE(arena, float, T * R);
    }
    size_t to = arena->used;
    arena->used = from;
    p->logits = ARENA_TAKE(arena, float, (p->shape.drift ? 2 : 1) * p->shape.head_rows * m->V);
    arena->used = max_size(arena->used, to);
}

static void take_training(struct training_pass *p, int threads) {
    const struct model *m = p->model;
    const struct pass_shape *s = &p->shape;
    struct arena *arena = &p->arena;
    size_t T = s->T_max;
    p->ops.scratch_floats = ops_scratch_floats(p->ops.product, T, m->D);
    p->ops.scratch = ARENA_TAKE(arena, float, (size_t)threads * p->ops.scratch_floats);
    p->ops.packed = ARENA_TAKE(arena, unsigned char, packed_bytes(m, &p->ops, T, s->head_rows, max_size(s->R_max, 1)));
    p->x = ARENA_TAKE(arena, float,
                      (s->backward ? m->L + 1 : (s->drift ? 2 : 1) * max_size(s->together, 1)) * T * m->C);
    p->table = ARENA_TAKE(arena, float, T * m->rope.dims);
    p->work.h = ARENA_TAKE(arena, float, T * m->C);
    take_layers(p, max_size(s->R_max, 1));
    p->row_losses = ARENA_TAKE(arena, float, T);
    p->row_weights = ARENA_TAKE(arena, float, T);
    p->row_targets = ARENA_TAKE(arena, int32_t, T);
    p->rows = ARENA_TAKE(arena, size_t, T);
    p->drift = s->drift ? ARENA_TAKE(arena, struct row_drift, T) : NULL;
}

static struct training_pass pass_of(const struct model *model, struct pool *pool, const struct pass_shape *shape) {
    const struct kernels *kernels = kernels_get();
    return (struct training_pass){
        .model = model,
        .shape = *shape,
        .ops = {.pool = pool, .kernels = kernels, .product = kernels_product(kernels, shape->precision)},
    };
}

size_t training_pass_bytes(const struct model *model, int threads, const struct pass_shape *shape) {
    struct training_pass counted = pass_of(model, NULL, shape);
    take_training(&counted, threads);
    return counted.arena.overflow ? SIZE_MAX : counted.arena.used + sizeof counted;
}

/* Rows of logits: enough to unpack the head seldom, more than which hardly helps. */
enum { HEAD_ROWS_LEAST = 16, HEAD_ROWS = 64, HEAD_ROWS_MOST = 256 };

/* *value as large as fits, up to `most`. */
static void grow(struct pass_shape *shape, size_t *value, size_t most, const struct model *model, int threads,
                 size_t bytes) {
    while (*value < most) {
        ++*value;
        if (training_pass_bytes(model, threads, shape) <= bytes) continue;
        --*value;
        return;
    }
}

void pass_shape_fit(struct pass_shape *shape, const struct model *model, int threads, size_t bytes) {
    size_t T = shape->T_max;
    shape->kept = shape->head_rows = 1;
    /* what costs nothing, as the layers' memory is there */
    grow(shape, &shape->head_rows, T < HEAD_ROWS_MOST ? T : HEAD_ROWS_MOST, model, threads,
         training_pass_bytes(model, threads, shape));
    if (shape->head_rows < HEAD_ROWS_LEAST) shape->head_rows = T < HEAD_ROWS_LEAST ? T : HEAD_ROWS_LEAST;
    grow(shape, &shape->head_rows, T < HEAD_ROWS ? T : HEAD_ROWS, model, threads, bytes);
    if (!shape->backward) return;
    grow(shape, &shape->kept, model->L, model, threads, bytes);
    if (shape->kept == model->L)
        grow(shape, &shape->head_rows, T < HEAD_ROWS_MOST ? T : HEAD_ROWS_MOST, model, threads, bytes);
}

int training_pass_create(const struct model *model, struct pool *pool, const struct pass_shape *shape,
                         struct training_pass **out, attune_error *err) {
    assert(shape->head_rows > 0 && (!shape->backward || (shape->kept > 0 && shape->kept <= model->L)));
    assert(!shape->backward || !shape->drift);
    struct training_pass *p = calloc(1, sizeof *p);
    if (!p) return error_set_memory(err, "a training pass", sizeof *p);
    *p = pass_of(model, pool, shape);
    take_training(p, pool_threads(pool));
    int code = arena_commit(&p->arena, "activations", err);
    if (code != ATTUNE_OK) {
        training_pass_destroy(p);
        return code;
    }
    take_training(p, pool_threads(pool));
    rope_table(p->table, &model->rope, shape->T_max);
    *out = p;
    return ATTUNE_OK;
}

void training_pass_destroy(struct training_pass *pass) {
    if (!pass) return;
    arena_free(&pass->arena);
    free(pass);
}

/* A layer whose activations are not kept uses those of the first that are, which comes later forward and earlier
 * backward. */
static struct layer_run run_of(const struct training_pass *p, const struct weights *w, const struct packed_batch *batch,
                               size_t layer, float dropout, uint64_t dropout_key) {
    size_t kept = p->shape.backward ? p->shape.kept : 1, back = p->model->L - 1 - layer;
    return (struct layer_run){.ops = &p->ops, .model = p->model, .layer = &w->layers[layer],
                              .pairs = w->pairs ? &w->pairs[layer] : NULL, .a = &p->a[back < kept ? back : kept - 1],
                              .work = &p->work, .index = layer, .T = batch->T, .positions = batch->positions,
                              .table = p->table, .starts = batch->starts, .n_sequences = batch->n_sequences,
                              .dropout = dropout, .dropout_key = dropout_key, .keys = batch->keys};
}

/* x of each layer; returns the last layer's output. */
static float *forward_layers(struct training_pass *p, const struct weights *w, const struct packed_batch *batch,
                             float dropout, uint64_t dropout_key) {
    const struct model *m = p->model;
    size_t step = p->shape.backward ? batch->T * m->C : 0;
    float *x = p->x;
    embedding_forward(&p->ops, x, batch->tokens, &m->embedding, batch->T);
    for (size_t l = 0; l < m->L && !pool_cancelled(p->ops.pool); l++, x += step) {
        struct layer_run r = run_of(p, w, batch, l, dropout, dropout_key);
        layer_forward(&r, x + step, x);
    }
    return x;
}

/* Moves the supervised rows of x to its front; returns how many. */
static size_t gather_supervised(struct training_pass *p, float *x, const struct packed_batch *batch) {
    size_t n = 0, C = p->model->C;
    for (size_t t = 0; t < batch->T; t++) {
        if (batch->targets[t] < 0) continue;
        memmove(x + n * C, x + t * C, C * sizeof(float));
        p->row_targets[n] = batch->targets[t];
        p->row_weights[n] = batch->weights ? batch->weights[t] : 0.0f;
        p->rows[n++] = t;
    }
    return n;
}

/* Losses out of the last layer's x, of which the supervised rows are left. With gradient: work->h is that of the
 * normed rows. Returns how many. */
static size_t head(struct training_pass *p, float *x, const struct packed_batch *batch, int gradient, float *losses) {
    const struct model *m = p->model;
    size_t n = gather_supervised(p, x, batch);
    float *h = p->work.h;
    rms_norm_forward(&p->ops, h, x, m->output_norm, m->eps, n, m->C);
    head_loss(&p->ops, p->row_losses, gradient ? h : NULL, p->logits, p->shape.head_rows, h, p->row_targets,
              p->row_weights, &m->head, n);
    memset(losses, 0, batch->T * sizeof(float));
    for (size_t i = 0; i < n; i++) losses[p->rows[i]] = p->row_losses[i];
    return n;
}

/* work->dx of the last layer's output; x are its n supervised rows: others have no gradient. */
static void head_backward(struct training_pass *p, const float *x, size_t T, size_t n) {
    const struct model *m = p->model;
    size_t C = m->C;
    float *dx = p->work.dx;
    memset(dx, 0, T * C * sizeof(float));
    rms_norm_backward(&p->ops, dx, p->work.h, x, m->output_norm, m->eps, n, C);
    for (size_t i = n; i-- > 0;) {
        if (p->rows[i] == i) break; /* and all before it */
        memcpy(dx + p->rows[i] * C, dx + i * C, C * sizeof(float));
        memset(dx + i * C, 0, C * sizeof(float));
    }
}

static void backward_layers(struct training_pass *p, const struct weights *w, const struct packed_batch *batch,
                            float dropout, uint64_t dropout_key, struct layer_gradients *gradients) {
    const struct model *m = p->model;
    for (size_t l = m->L; l-- > 0 && !pool_cancelled(p->ops.pool);) {
        struct layer_run r = run_of(p, w, batch, l, dropout, dropout_key);
        const float *x = p->x + l * batch->T * m->C;
        if (m->L - 1 - l < p->shape.kept) {
            activate(&r);
            norm_ffn(&r);
        } else {
            layer_activate(&r, x);
            add_pair(&r, TARGET_DOWN, NULL, p->work.act);
        }
        layer_backward(&r, &gradients[l], x, l == 0);
    }
}

static int cancelled(const struct training_pass *p, attune_error *err) {
    return pool_cancelled(p->ops.pool) ? error_set(err, ATTUNE_ERROR_CANCELLED, NULL, "cancelled") : ATTUNE_OK;
}

int training_pass_run(struct training_pass *p, const struct weights *weights, const struct packed_batch *batch,
                      float dropout, uint64_t dropout_key, struct layer_gradients *gradients, float *losses,
                      attune_error *err) {
    assert(batch->T <= p->shape.T_max && (!gradients || p->shape.backward) && (dropout == 0.0f || p->shape.dropout));
    float *x = forward_layers(p, weights, batch, dropout, dropout_key);
    size_t n = head(p, x, batch, gradients != NULL, losses);
    if (gradients && n > 0) {
        head_backward(p, x, batch->T, n);
        backward_layers(p, weights, batch, dropout, dropout_key, gradients);
    }
    return cancelled(p, err);
}

/* The last layer's output of each batch into x(n, T_max, C). */
static int forward_together(struct training_pass *p, const struct weights *weights, const struct layer_maker *maker,
                            const struct packed_batch *const *batches, size_t n, float *x, attune_error *err) {
    const struct model *m = p->model;
    size_t each = p->shape.T_max * m->C;
    struct model_layer made;
    assert(n <= (p->shape.backward ? 1 : max_size(p->shape.together, 1)));
    for (size_t i = 0; i < n; i++) {
        assert(batches[i]->T <= p->shape.T_max);
        embedding_forward(&p->ops, x + i * each, batches[i]->tokens, &m->embedding, batches[i]->T);
    }
    for (size_t l = 0; l < m->L && !pool_cancelled(p->ops.pool); l++) {
        int code = maker ? maker->make(maker->user, l, &made, err) : ATTUNE_OK;
        if (code != ATTUNE_OK) return code;
        for (size_t i = 0; i < n && !pool_cancelled(p->ops.pool); i++) {
            struct layer_run r = run_of(p, weights, batches[i], l, 0.0f, 0);
            if (maker) r.layer = &made;
            layer_forward(&r, x + i * each, x + i * each);
        }
    }
    return cancelled(p, err);
}

int training_pass_observe(struct training_pass *p, const struct weights *weights, const struct layer_maker *maker,
                          const struct input_observer *observer, const struct packed_batch *const *batches, size_t n,
                          attune_error *err) {
    const struct model *m = p->model;
    size_t each = p->shape.T_max * m->C;
    struct model_layer made;
    assert(n <= max_size(p->shape.together, 1) && !p->shape.backward);
    for (size_t i = 0; i < n; i++) {
        assert(batches[i]->T <= p->shape.T_max);
        embedding_forward(&p->ops, p->x + i * each, batches[i]->tokens, &m->embedding, batches[i]->T);
    }
    for (size_t l = 0; l < m->L && !pool_cancelled(p->ops.pool); l++) {
        for (size_t i = 0; i < n && !pool_cancelled(p->ops.pool); i++) {
            struct layer_run r = run_of(p, weights, batches[i], l, 0.0f, 0);
            r.observer = observer;
            layer_activate(&r, p->x + i * each);
            observe(&r, TARGET_DOWN, p->work.act);
        }
        if (pool_cancelled(p->ops.pool)) break;
        int code = maker->make(maker->user, l, &made, err);
        if (code != ATTUNE_OK) return code;
        for (size_t i = 0; i < n && l + 1 < m->L && !pool_cancelled(p->ops.pool); i++) {
            struct layer_run r = run_of(p, weights, batches[i], l, 0.0f, 0);
            r.layer = &made;
            r.pairs = NULL;
            layer_forward(&r, p->x + i * each, p->x + i * each);
            if (observer->passed) observer->passed(observer->user, l);
        }
    }
    return cancelled(p, err);
}

int training_pass_losses(struct training_pass *p, const struct weights *weights, const struct layer_maker *maker,
                         const struct packed_batch *const *batches, float *const *losses, size_t n,
                         attune_error *err) {
    int code = forward_together(p, weights, maker, batches, n, p->x, err);
    if (code != ATTUNE_OK) return code;
    for (size_t i = 0; i < n && !pool_cancelled(p->ops.pool); i++)
        head(p, p->x + i * p->shape.T_max * p->model->C, batches[i], 0, losses[i]);
    return cancelled(p, err);
}

/* What the head sees of a batch, in place: its supervised rows, normed. Returns how many. */
static size_t norm_supervised(struct training_pass *p, float *x, const struct packed_batch *batch) {
    const struct model *m = p->model;
    size_t n = gather_supervised(p, x, batch);
    rms_norm_forward(&p->ops, p->work.h, x, m->output_norm, m->eps, n, m->C);
    memcpy(x, p->work.h, n * m->C * sizeof(float));
    return n;
}

/* In the order of rows: the sums are the same for any number of threads. */
static void add_drift(struct model_drift *sum, const struct row_drift *rows, size_t n) {
    sum->tokens += n;
    for (size_t i = 0; i < n; i++) {
        sum->kl += rows[i].kl;
        sum->loss_reference += rows[i].loss_reference;
        sum->loss += rows[i].loss;
        sum->agreeing += (size_t)rows[i].agrees;
    }
}

int training_pass_drift(struct training_pass *p, const struct weights *reference, const struct weights *other,
                        const struct layer_maker *maker, const struct packed_batch *const *batches, size_t n,
                        struct model_drift *sum, attune_error *err) {
    const struct model *m = p->model;
    size_t each = p->shape.T_max * m->C;
    float *x = p->x, *y = x + max_size(p->shape.together, 1) * each;
    struct model_drift total = *sum;
    assert(p->shape.drift);
    int code = reference ? forward_together(p, reference, NULL, batches, n, x, err) : ATTUNE_OK;
    for (size_t i = 0; reference && code == ATTUNE_OK && i < n; i++) norm_supervised(p, x + i * each, batches[i]);
    if (code == ATTUNE_OK) code = forward_together(p, other, maker, batches, n, y, err);
    if (code != ATTUNE_OK) return code;
    for (size_t i = 0; i < n && !pool_cancelled(p->ops.pool); i++) {
        size_t rows = norm_supervised(p, y + i * each, batches[i]);
        head_drift(&p->ops, p->drift, p->logits, p->shape.head_rows, x + i * each, y + i * each, p->row_targets,
                   &m->head, rows);
        add_drift(&total, p->drift, rows);
    }
    code = cancelled(p, err);
    if (code == ATTUNE_OK) *sum = total;
    return code;
}

int training_pass_logits(struct training_pass *p, const struct weights *weights, const int32_t *tokens, size_t T,
                         float *logits, attune_error *err) {
    const struct model *m = p->model;
    assert(T <= p->shape.T_max);
    int32_t *positions = malloc(T * sizeof *positions);
    if (!positions) return error_set_memory(err, "positions", T * sizeof *positions);
    for (size_t t = 0; t < T; t++) positions[t] = (int32_t)t;
    size_t starts[2] = {0, T};
    struct packed_batch batch = {.T = T, .n_sequences = 1, .tokens = tokens, .positions = positions, .starts = starts};
    float *x = forward_layers(p, weights, &batch, 0.0f, 0);
    rms_norm_forward(&p->ops, p->work.h, x, m->output_norm, m->eps, T, m->C);
    linear_forward(&p->ops, logits, p->work.h, &m->head, NULL, T);
    free(positions);
    return cancelled(p, err);
}

/* ---- generation ---- */

static int check_kind(const struct model *model, enum block_type kind, attune_error *err) {
    if (kind != BLOCK_F32 && kind != BLOCK_F16 && kind != BLOCK_Q8_0)
        return error_set(err, ATTUNE_ERROR_UNSUPPORTED, NULL,
                         "a cache of keys and values cannot be %s; it can be F32, F16 or Q8_0",
                         block_type_name(kind) ? block_type_name(kind) : "of an unknown type");
    size_t block = block_format_get(kind)->elements;
    if (model->D % block)
        return error_set(err, ATTUNE_ERROR_UNSUPPORTED, NULL,
                         "a cache of keys and values cannot be %s with this model: its heads have %zu elements, which "
                         "are no whole blocks of %zu; use F16",
                         block_type_name(kind), model->D, block);
    return ATTUNE_OK;
}

int kv_cache_create(const struct model *model, size_t context, enum block_type kind, struct kv_cache *out,
                    attune_error *err) {
    int code = check_kind(model, kind, err);
    if (code != ATTUNE_OK) return code;
    struct kv_cache cache = {.kind = kind, .context = context, .row_bytes = block_row_bytes(kind, model->D)};
    for (int commit = 0;; commit = 1) {
        size_t heads = model->L * model->KV, rows;
        if (!checked_mul(heads * cache.row_bytes, context, &rows)) rows = SIZE_MAX; /* which the arena refuses */
        cache.k = ARENA_TAKE(&cache.arena, unsigned char, rows);
        cache.v = ARENA_TAKE(&cache.arena, unsigned char, rows);
        cache.turning = ARENA_TAKE(&cache.arena, float, (heads + 1) * model->D);
        cache.turned = ARENA_TAKE(&cache.arena, unsigned char, heads);
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

struct shift {
    const struct kernels *kernels;
    const struct kv_cache *cache;
    const struct model *model;
    size_t keep, drop;
};

/* A rotation by p - drop is one by p and one by -drop. Rows come in order: none is overwritten before it is read. */
static void shift_head(void *argument, size_t head, int worker) {
    const struct shift *s = argument;
    const struct kv_cache *c = s->cache;
    const struct model *m = s->model;
    const struct block_format *format = block_format_get(c->kind);
    const float *turns = c->turning + m->L * m->KV * m->D;
    float *key = c->turning + head * m->D;
    size_t at = (head * c->context + s->keep) * c->row_bytes, apart = s->drop * c->row_bytes;
    size_t bytes = (c->used - s->keep - s->drop) * c->row_bytes;
    (void)worker;
    memmove(c->v + at, c->v + at + apart, bytes);
    for (unsigned char *k = c->k + at, *end = k + bytes; k < end; k += c->row_bytes) {
        s->kernels->dequantize[c->kind](key, k + apart, m->D);
        (m->rope.style == ROPE_HALVES ? s->kernels->rotate_halves : s->kernels->rotate_pairs)(key, turns, -1.0f,
                                                                                             m->rope.dims / 2);
        format->quantize(k, key, m->D);
    }
    c->turned[head] = 1;
}

void kv_cache_shift(struct kv_cache *cache, const struct model *model, struct pool *pool, size_t keep, size_t drop) {
    size_t heads = model->L * model->KV;
    struct shift s = {kernels_get(), cache, model, keep, drop};
    assert(keep <= cache->used && drop <= cache->used - keep);
    if (drop == 0) return;
    rope_turns(cache->turning + heads * model->D, &model->rope, drop);
    memset(cache->turned, 0, heads);
    pool_run(pool, heads, shift_head, &s);
    for (size_t head = 0; head < heads; head++) /* that a cancelled pool left out */
        if (!cache->turned[head]) shift_head(&s, head, 0);
    cache->used -= drop;
}

struct decoding_pass {
    const struct model *model;
    struct ops ops;
    struct arena arena;
    size_t context;
    float *table, *x;
    float *last; /* (DECODING_LOGITS, C) of the last layer's output, and normed */
    float *parts;
    int32_t *positions;
    struct activations a;
    struct workspace work;
};

static void take_decoding(struct decoding_pass *p, size_t R) {
    const struct model *m = p->model;
    p->ops.scratch_floats = max_size(ops_scratch_floats(p->ops.product, DECODING_CHUNK, m->D),
                                     (attention_cached_scratch_floats(m->H, m->KV, m->D) + 15) / 16 * 16);
    p->ops.scratch = ARENA_TAKE(&p->arena, float, (size_t)pool_threads(p->ops.pool) * p->ops.scratch_floats);
    p->ops.packed = ARENA_TAKE(&p->arena, unsigned char, packed_bytes(m, &p->ops, DECODING_CHUNK, DECODING_LOGITS, R));
    p->table = ARENA_TAKE(&p->arena, float, p->context * m->rope.dims);
    p->x = ARENA_TAKE(&p->arena, float, DECODING_CHUNK * m->C);
    p->last = ARENA_TAKE(&p->arena, float, DECODING_LOGITS * m->C);
    p->parts = ARENA_TAKE(&p->arena, float, attention_cached_parts_floats(m->H, m->KV, m->D));
    p->positions = ARENA_TAKE(&p->arena, int32_t, DECODING_CHUNK);
    take_activations(&p->arena, &p->a, m, DECODING_CHUNK, R);
    p->work.h = ARENA_TAKE(&p->arena, float, DECODING_CHUNK * m->C);
    p->work.act = ARENA_TAKE(&p->arena, float, DECODING_CHUNK * m->F);
}

int decoding_pass_create(const struct model *model, struct pool *pool, size_t context, size_t R_max,
                         enum precision precision, struct decoding_pass **out, attune_error *err) {
    struct decoding_pass *p = calloc(1, sizeof *p);
    if (!p) return error_set_memory(err, "a decoding pass", sizeof *p);
    const struct kernels *kernels = kernels_get();
    *p = (struct decoding_pass){
        .model = model,
        .context = context,
        .ops = {.pool = pool, .kernels = kernels, .product = kernels_product(kernels, precision)},
    };
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

size_t decoding_pass_bytes(const struct decoding_pass *pass) { return pass->arena.size + sizeof *pass; }

static void decode_chunk(struct decoding_pass *p, const struct weights *w, struct kv_cache *cache,
                         const int32_t *tokens, size_t n) {
    const struct model *m = p->model;
    for (size_t t = 0; t < n; t++) p->positions[t] = (int32_t)(cache->used + t);
    embedding_forward(&p->ops, p->x, tokens, &m->embedding, n);
    for (size_t l = 0; l < m->L && !pool_cancelled(p->ops.pool); l++) {
        struct layer_run r = {.ops = &p->ops, .model = m, .layer = &w->layers[l],
                              .pairs = w->pairs ? &w->pairs[l] : NULL, .a = &p->a, .work = &p->work, .index = l, .T = n,
                              .positions = p->positions, .table = p->table, .cache = cache, .parts = p->parts};
        layer_forward(&r, p->x, p->x);
    }
    cache->used += n;
}

int decoding_pass_run(struct decoding_pass *p, const struct weights *weights, struct kv_cache *cache,
                      const int32_t *tokens, size_t n, float *logits, size_t n_logits, attune_error *err) {
    const struct model *m = p->model;
    size_t before = cache->used, silent = n - n_logits; /* tokens whose logits nobody asks for */
    assert(n_logits <= n && n_logits <= DECODING_LOGITS);
    if (n > cache->context - before || before > p->context || n > p->context - before)
        return error_set(
            err, ATTUNE_ERROR_CONTEXT_FULL, NULL,
            "%zu more tokens do not fit a context of %zu that holds %zu; open the session with a larger one", n,
            cache->context, before);
    for (size_t at = 0, end; at < n && !pool_cancelled(p->ops.pool); at = end) {
        end = n - at < DECODING_CHUNK ? n : at + DECODING_CHUNK;
        decode_chunk(p, weights, cache, tokens + at, end - at);
        /* the last tokens may lie in two chunks */
        size_t first = max_size(at, silent);
        if (first < end)
            memcpy(p->last + (first - silent) * m->C, p->x + (first - at) * m->C, (end - first) * m->C * sizeof(float));
    }
    if (n_logits > 0 && !pool_cancelled(p->ops.pool)) {
        rms_norm_forward(&p->ops, p->last, p->last, m->output_norm, m->eps, n_logits, m->C);
        linear_forward(&p->ops, logits, p->last, &m->head, NULL, n_logits);
    }
    if (pool_cancelled(p->ops.pool)) {
        cache->used = before;
        return error_set(err, ATTUNE_ERROR_CANCELLED, NULL, "cancelled");
    }
    return ATTUNE_OK;
}
