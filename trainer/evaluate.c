/* Held-out loss: the forward pass alone, over packed conversations. */
#include "trainer/packer.h"

int trainer_evaluate(struct training_pass *pass, struct packer *packer, const struct weights *weights,
                     const struct example_set *set, const size_t *rows, size_t n, double *nll, attune_error *err) {
    for (size_t at = 0; at < n;) {
        at = packer_fill(packer, set, rows, at, n, 0.0, 0);
        int code = training_pass_run(pass, weights, &packer->batch, 0.0f, 0, NULL, packer->losses, err);
        if (code != ATTUNE_OK) return code;
        for (size_t s = 0; s < packer->batch.n_sequences; s++) nll[packer->rows[s]] = packer_loss(packer, s);
    }
    return ATTUNE_OK;
}

int evaluator_create(const struct model *model, struct pool *pool, size_t micro_tokens, size_t rank_max,
                     struct evaluator *out, attune_error *err) {
    struct evaluator evaluator = {0};
    int code = training_pass_create(model, pool, micro_tokens, rank_max, 0, &evaluator.pass, err);
    if (code == ATTUNE_OK) code = packer_create(micro_tokens, &evaluator.packer, err);
    if (code != ATTUNE_OK) {
        evaluator_free(&evaluator);
        return code;
    }
    *out = evaluator;
    return ATTUNE_OK;
}

void evaluator_free(struct evaluator *evaluator) {
    if (!evaluator) return;
    packer_destroy(evaluator->packer);
    training_pass_destroy(evaluator->pass);
    *evaluator = (struct evaluator){0};
}
