/* Embedding, and at the other end the LM head with cross-entropy: both ends of the vocabulary. */
#include "core/ops/rows.h"

#include <math.h>

struct embed {
    const struct kernels *kernels;
    float *x;
    const int32_t *tokens;
    const struct matrix *embedding;
};
static void embed_rows(const void *argument, size_t first, size_t last) {
    const struct embed *e = argument;
    const struct matrix *m = e->embedding;
    for (size_t t = first; t < last; t++)
        e->kernels->dequantize[m->type](e->x + t * m->cols,
                                        (const unsigned char *)m->data + (size_t)e->tokens[t] * m->row_bytes, m->cols);
}
void embedding_forward(const struct ops *ops, float *x, const int32_t *tokens, const struct matrix *embedding,
                       size_t T) {
    struct embed e = {ops->kernels, x, tokens, embedding};
    rows_run(ops, T, embed_rows, &e);
}

struct cross_entropy {
    const struct kernels *kernels;
    float *losses, *logits;
    const int32_t *targets;
    const float *weights;
    size_t V;
    int gradient;
};

/* loss = log sum exp(z) - z[target];  dz = weight (softmax(z) - onehot(target)), in place. */
static void cross_entropy_row(void *argument, size_t i, int worker) {
    const struct cross_entropy *c = argument;
    (void)worker;
    float *z = c->logits + i * c->V, wanted = z[c->targets[i]];
    c->losses[i] = c->kernels->softmax(z, c->V, c->gradient) - wanted;
    if (!c->gradient) return;
    for (size_t v = 0; v < c->V; v++) z[v] *= c->weights[i];
    z[c->targets[i]] -= c->weights[i];
}

void head_loss(const struct ops *ops, float *losses, float *dx, float *logits, size_t chunk, const float *x,
               const int32_t *targets, const float *weights, const struct matrix *head, size_t n) {
    /* Chunks of one size, give or take a row: few rows would be multiplied in another way than many. */
    size_t chunks = (n + chunk - 1) / chunk;
    for (size_t i = 0; i < chunks && !pool_cancelled(ops->pool); i++) {
        size_t first = i * n / chunks, rows = (i + 1) * n / chunks - first;
        linear_forward(ops, logits, x + first * head->cols, head, NULL, rows);
        struct cross_entropy c = {ops->kernels, losses + first, logits, targets + first,
                                  weights ? weights + first : NULL, head->rows, dx != NULL};
        pool_run(ops->pool, rows, cross_entropy_row, &c);
        if (dx) linear_backward(ops, dx + first * head->cols, logits, head, NULL, NULL, rows, 0);
    }
}

struct compare {
    struct row_drift *drift;
    const float *reference, *other; /* logits */
    const int32_t *targets;
    size_t V;
};

static size_t largest(const float *z, size_t V) {
    size_t best = 0;
    for (size_t v = 1; v < V; v++)
        if (z[v] > z[best]) best = v;
    return best;
}

/* With p = softmax(a), q = softmax(b):  KL(p || q) = sum p (a - b) - log sum exp a + log sum exp b. */
static void compare_row(void *argument, size_t i, int worker) {
    const struct compare *c = argument;
    const float *a = c->reference + i * c->V, *b = c->other + i * c->V;
    size_t best_a = largest(a, c->V), best_b = largest(b, c->V), target = (size_t)c->targets[i];
    double top_a = (double)a[best_a], top_b = (double)b[best_b], sum_a = 0, sum_b = 0, between = 0;
    (void)worker;
    for (size_t v = 0; v < c->V; v++) {
        double x = (double)a[v] - top_a, y = (double)b[v] - top_b, share = exp(x);
        sum_a += share;
        sum_b += exp(y);
        between += share * (x - y);
    }
    double log_a = log(sum_a), log_b = log(sum_b), kl = between / sum_a - log_a + log_b;
    c->drift[i] = (struct row_drift){.kl = kl < 0 ? 0 : kl, /* rounding; NaN stays */
                                     .loss_reference = log_a + top_a - (double)a[target],
                                     .loss = log_b + top_b - (double)b[target],
                                     .agrees = best_a == best_b};
}

void head_drift(const struct ops *ops, struct row_drift *drift, float *logits, size_t chunk, const float *reference,
                const float *other, const int32_t *targets, const struct matrix *head, size_t n) {
    size_t chunks = (n + chunk - 1) / chunk;
    for (size_t i = 0; i < chunks && !pool_cancelled(ops->pool); i++) {
        size_t first = i * n / chunks, rows = (i + 1) * n / chunks - first;
        float *second = logits + rows * head->rows;
        linear_forward(ops, logits, reference + first * head->cols, head, NULL, rows);
        linear_forward(ops, second, other + first * head->cols, head, NULL, rows);
        struct compare c = {drift + first, logits, second, targets + first, head->rows};
        pool_run(ops->pool, rows, compare_row, &c);
    }
}
