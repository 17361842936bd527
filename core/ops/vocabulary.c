/* Embedding, and at the other end the LM head with cross-entropy: both ends of the vocabulary. */
#include "core/ops/rows.h"

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
