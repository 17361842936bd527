/* Held-out loss: the forward pass alone, over packed conversations. */
#include "trainer/batches.h"
#include "trainer/packer.h"

#include <assert.h>
#include <stdlib.h>

enum { TOGETHER_MAX = 64 };

/* Evaluation judges: its products are exact whatever those of training are. */
static struct pass_shape pass_shape_of(const struct model *model, int threads, const struct evaluator_shape *shape,
                                       size_t bytes) {
    struct pass_shape pass = {.T_max = shape->micro_tokens, .R_max = shape->rank_max, .together = shape->together,
                              .drift = shape->drift, .precision = PRECISION_F32};
    size_t packers = shape->together * (packer_bytes(shape->micro_tokens) + sizeof(struct packer *));
    pass_shape_fit(&pass, model, threads, bytes > packers ? bytes - packers : 0);
    return pass;
}

size_t evaluator_bytes(const struct model *model, int threads, const struct evaluator_shape *shape, size_t bytes) {
    struct pass_shape pass = pass_shape_of(model, threads, shape, bytes);
    return training_pass_bytes(model, threads, &pass) +
           shape->together * (packer_bytes(shape->micro_tokens) + sizeof(struct packer *));
}

int evaluator_create(const struct model *model, struct pool *pool, const struct evaluator_shape *shape, size_t bytes,
                     struct evaluator *out, attune_error *err) {
    struct evaluator evaluator = {.shape = *shape};
    struct pass_shape pass = pass_shape_of(model, pool_threads(pool), shape, bytes);
    if (shape->together < 1 || shape->together > TOGETHER_MAX)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "1 to %d micro-batches are evaluated together, not %zu",
                         TOGETHER_MAX, shape->together);
    evaluator.packers = calloc(shape->together, sizeof(struct packer *));
    if (!evaluator.packers) return error_set_memory(err, "an evaluation", shape->together * sizeof(struct packer *));
    int code = training_pass_create(model, pool, &pass, &evaluator.pass, err);
    for (size_t i = 0; i < shape->together && code == ATTUNE_OK; i++)
        code = packer_create(shape->micro_tokens, &evaluator.packers[i], err);
    if (code != ATTUNE_OK) {
        evaluator_free(&evaluator);
        return code;
    }
    *out = evaluator;
    return ATTUNE_OK;
}

void evaluator_free(struct evaluator *evaluator) {
    if (!evaluator) return;
    for (size_t i = 0; evaluator->packers && i < evaluator->shape.together; i++)
        packer_destroy(evaluator->packers[i]);
    free(evaluator->packers);
    training_pass_destroy(evaluator->pass);
    *evaluator = (struct evaluator){0};
}

size_t evaluator_rows(const struct evaluator_shape *shape, const struct example_set *set, const size_t *rows,
                      size_t n) {
    size_t at = 0;
    for (size_t i = 0; i < shape->together && at < n; i++) at = batches_end(set, rows, at, n, shape->micro_tokens);
    return at;
}

/* Rows from `at` on into as many packers as take them; returns the first that is left. */
static size_t fill(struct evaluator *evaluator, const struct example_set *set, const size_t *rows, size_t at, size_t n,
                   const struct packed_batch **batches, size_t *filled) {
    for (*filled = 0; *filled < evaluator->shape.together && at < n; ++*filled) {
        struct packer *packer = evaluator->packers[*filled];
        at = packer_fill(packer, set, rows, at, n, NULL, 0);
        batches[*filled] = &packer->batch;
    }
    return at;
}

int evaluator_run(struct evaluator *evaluator, const struct weights *weights, const struct layer_maker *maker,
                  const struct example_set *set, const size_t *rows, size_t n, double *nll, attune_error *err) {
    const struct packed_batch *batches[TOGETHER_MAX];
    float *losses[TOGETHER_MAX];
    for (size_t at = 0; at < n;) {
        size_t filled;
        at = fill(evaluator, set, rows, at, n, batches, &filled);
        for (size_t i = 0; i < filled; i++) losses[i] = evaluator->packers[i]->losses;
        int code = training_pass_losses(evaluator->pass, weights, maker, batches, losses, filled, err);
        if (code != ATTUNE_OK) return code;
        for (size_t i = 0; i < filled; i++) {
            const struct packer *packer = evaluator->packers[i];
            for (size_t s = 0; s < packer->batch.n_sequences; s++) nll[packer->rows[s]] = packer_loss(packer, s);
        }
    }
    return ATTUNE_OK;
}

int evaluator_drift(struct evaluator *evaluator, const struct weights *reference, const struct weights *other,
                    const struct layer_maker *maker, const struct example_set *set, const size_t *rows, size_t n,
                    struct model_drift *sum, attune_error *err) {
    const struct packed_batch *batches[TOGETHER_MAX];
    size_t filled, at = fill(evaluator, set, rows, 0, n, batches, &filled);
    assert(at == n);
    (void)at;
    return training_pass_drift(evaluator->pass, reference, other, maker, batches, filled, sum, err);
}
