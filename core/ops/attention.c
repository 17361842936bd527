/* Causal grouped-query attention over packed sequences, and over a cache.
 *
 * o = softmax(q k^T / sqrt(D)) v, one block of query rows at a time: the scores of a block are the
 * only thing that is quadratic, and they stay in the worker's scratch. */
#include "core/ops/ops.h"

#include <math.h>
#include <string.h>

struct attention {
    const struct ops *ops;
    float *o, *dq, *dk, *dv;
    const float *q, *k, *v, *do_;
    const size_t *starts;
    size_t n_sequences, H, KV, D, T;
    float scale;
    /* cached */
    size_t past, context;
};

static float *scratch_of(const struct attention *a, int worker) {
    return a->ops->scratch + (size_t)worker * a->ops->scratch_floats;
}
static size_t blocks_of(size_t n) { return (n + ops_attention_rows - 1) / ops_attention_rows; }

/* scores(n, last + n): rows of queries first .. first + n of a sequence; keys up to each row's own. */
static void probabilities(const struct attention *a, float *scores, const float *q, size_t q_stride, const float *k,
                          size_t k_stride, size_t first, size_t n) {
    const struct kernels *kernels = a->ops->kernels;
    size_t keys = first + n;
    kernels->gemm(0, 1, n, keys, a->D, a->scale, q, q_stride, k, k_stride, 0.0f, scores, keys);
    for (size_t i = 0; i < n; i++) {
        kernels->softmax(scores + i * keys, first + i + 1, 1);
        memset(scores + i * keys + first + i + 1, 0, (n - i - 1) * sizeof(float));
    }
}

/* Task -> sequence, head and block of query rows. */
struct place {
    size_t start, head, kv, first, n;
};
static struct place forward_place(const struct attention *a, size_t task) {
    size_t head = task % a->H, block = task / a->H;
    for (size_t s = 0;; s++) {
        size_t length = a->starts[s + 1] - a->starts[s];
        if (block < blocks_of(length)) {
            size_t first = block * ops_attention_rows, left = length - first;
            return (struct place){a->starts[s], head, head / (a->H / a->KV), first,
                                  left < ops_attention_rows ? left : ops_attention_rows};
        }
        block -= blocks_of(length);
    }
}

static void forward_block(void *argument, size_t task, int worker) {
    const struct attention *a = argument;
    struct place p = forward_place(a, task);
    size_t width = a->H * a->D, kv_width = a->KV * a->D, row = p.start + p.first, keys = p.first + p.n;
    float *scores = scratch_of(a, worker);
    probabilities(a, scores, a->q + row * width + p.head * a->D, width, a->k + p.start * kv_width + p.kv * a->D,
                  kv_width, p.first, p.n);
    a->ops->kernels->gemm(0, 0, p.n, a->D, keys, 1.0f, scores, keys, a->v + p.start * kv_width + p.kv * a->D, kv_width,
                          0.0f, a->o + row * width + p.head * a->D, width);
}

void attention_forward(const struct ops *ops, float *o, const float *q, const float *k, const float *v,
                       const size_t *starts, size_t n_sequences, size_t H, size_t KV, size_t D) {
    struct attention a = {.ops = ops, .o = o, .q = q, .k = k, .v = v, .starts = starts, .n_sequences = n_sequences,
                          .H = H, .KV = KV, .D = D, .scale = 1.0f / sqrtf((float)D)};
    size_t blocks = 0;
    for (size_t s = 0; s < n_sequences; s++) blocks += blocks_of(starts[s + 1] - starts[s]);
    pool_run(ops->pool, blocks * H, forward_block, &a);
}

/* One sequence and query head; a->dk, a->dv are (H, T, D) here: heads of a group are summed after.
 * dp = do v^T;  ds = p (dp - sum_j p dp);  dq = scale ds k;  dk += scale ds^T q;  dv += p^T do. */
static void backward_head(void *argument, size_t task, int worker) {
    const struct attention *a = argument;
    const struct kernels *kernels = a->ops->kernels;
    size_t head = task % a->H, s = task / a->H, kv = head / (a->H / a->KV);
    size_t start = a->starts[s], length = a->starts[s + 1] - start;
    size_t width = a->H * a->D, kv_width = a->KV * a->D;
    const float *k = a->k + start * kv_width + kv * a->D, *v = a->v + start * kv_width + kv * a->D;
    float *dk = a->dk + (head * a->T + start) * a->D, *dv = a->dv + (head * a->T + start) * a->D;
    memset(dk, 0, length * a->D * sizeof(float));
    memset(dv, 0, length * a->D * sizeof(float));
    for (size_t first = 0; first < length; first += ops_attention_rows) {
        size_t n = length - first < ops_attention_rows ? length - first : ops_attention_rows, keys = first + n;
        float *p = scratch_of(a, worker), *dp = p + n * keys;
        size_t at = (start + first) * width + head * a->D;
        const float *q = a->q + at, *do_ = a->do_ + at;
        probabilities(a, p, q, width, k, kv_width, first, n);
        kernels->gemm(1, 0, keys, a->D, n, 1.0f, p, keys, do_, width, 1.0f, dv, a->D);
        kernels->gemm(0, 1, n, keys, a->D, 1.0f, do_, width, v, kv_width, 0.0f, dp, keys);
        for (size_t i = 0; i < n; i++) {
            float *pi = p + i * keys, *dpi = dp + i * keys, sum = kernels->dot(pi, dpi, first + i + 1);
            for (size_t j = 0; j < keys; j++) dpi[j] = pi[j] * (dpi[j] - sum);
        }
        kernels->gemm(0, 0, n, a->D, keys, a->scale, dp, keys, k, kv_width, 0.0f, a->dq + at, width);
        kernels->gemm(1, 0, keys, a->D, n, a->scale, dp, keys, q, width, 1.0f, dk, a->D);
    }
}

struct group_sum {
    float *dk, *dv;
    const float *dkv;
    size_t H, KV, D, T;
};
static void sum_groups(void *argument, size_t t, int worker) {
    const struct group_sum *g = argument;
    (void)worker;
    size_t group = g->H / g->KV;
    for (size_t kv = 0; kv < g->KV; kv++)
        for (size_t d = 0; d < g->D; d++) {
            float dk = 0, dv = 0;
            for (size_t h = kv * group; h < (kv + 1) * group; h++) {
                dk += g->dkv[(h * g->T + t) * g->D + d];
                dv += g->dkv[((g->H + h) * g->T + t) * g->D + d];
            }
            g->dk[(t * g->KV + kv) * g->D + d] = dk;
            g->dv[(t * g->KV + kv) * g->D + d] = dv;
        }
}

void attention_backward(const struct ops *ops, float *dq, float *dk, float *dv, float *dkv, const float *do_,
                        const float *q, const float *k, const float *v, const size_t *starts, size_t n_sequences,
                        size_t H, size_t KV, size_t D) {
    size_t T = starts[n_sequences];
    struct attention a = {.ops = ops, .dq = dq, .dk = dkv, .dv = dkv + H * T * D, .q = q, .k = k, .v = v, .do_ = do_,
                          .starts = starts, .n_sequences = n_sequences, .H = H, .KV = KV, .D = D, .T = T,
                          .scale = 1.0f / sqrtf((float)D)};
    pool_run(ops->pool, n_sequences * H, backward_head, &a);
    struct group_sum g = {dk, dv, dkv, H, KV, D, T};
    pool_run(ops->pool, T, sum_groups, &g);
}

/* ---- over a cache: k and v are (KV, context, D) ---- */

static void cached_block(void *argument, size_t task, int worker) {
    const struct attention *a = argument;
    const struct kernels *kernels = a->ops->kernels;
    size_t head = task % a->H, first = task / a->H * ops_attention_rows;
    size_t n = a->T - first < ops_attention_rows ? a->T - first : ops_attention_rows, keys = a->past + first + n;
    size_t width = a->H * a->D, kv = head / (a->H / a->KV);
    const float *q = a->q + first * width + head * a->D;
    const float *k = a->k + kv * a->context * a->D, *v = a->v + kv * a->context * a->D;
    float *o = a->o + first * width + head * a->D, *scores = scratch_of(a, worker);
    if (n > 1) {
        probabilities(a, scores, q, width, k, a->D, a->past + first, n);
        kernels->gemm(0, 0, n, a->D, keys, 1.0f, scores, keys, v, a->D, 0.0f, o, width);
        return;
    }
    for (size_t j = 0; j < keys; j++) scores[j] = a->scale * kernels->dot(q, k + j * a->D, a->D);
    kernels->softmax(scores, keys, 1);
    memset(o, 0, a->D * sizeof(float));
    for (size_t j = 0; j < keys; j++) kernels->axpy(o, scores[j], v + j * a->D, a->D);
}

void attention_cached(const struct ops *ops, float *o, const float *q, const float *cache_k, const float *cache_v,
                      size_t past, size_t T, size_t context, size_t H, size_t KV, size_t D) {
    struct attention a = {.ops = ops, .o = o, .q = q, .k = cache_k, .v = cache_v, .H = H, .KV = KV, .D = D, .T = T,
                          .past = past, .context = context, .scale = 1.0f / sqrtf((float)D)};
    pool_run(ops->pool, blocks_of(T) * H, cached_block, &a);
}
