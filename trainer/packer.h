/* Packing: whole conversations side by side in one sequence of tokens, without padding. */
#ifndef TRAINER_PACKER_H
#define TRAINER_PACKER_H

#include "trainer/trainer.h"

struct packer {
    size_t T_max;
    struct arena arena;
    struct packed_batch batch; /* points into the arrays below */
    int32_t *tokens, *positions, *targets;
    float *weights, *losses;
    uint64_t *keys;
    size_t *starts, *rows; /* rows[s]: which of the caller's rows sequence s is */
};

int packer_create(size_t T_max, struct packer **out, attune_error *err);
void packer_destroy(struct packer *packer);
size_t packer_bytes(size_t T_max);
/* Takes rows[from..n) while they fit; returns the index of the first that was not taken. weights(n): of each
 * conversation, spread evenly over its targets; below 0, the gradient leads away from it. NULL: 0. step_key seeds
 * dropout. */
size_t packer_fill(struct packer *packer, const struct example_set *set, const size_t *rows, size_t from, size_t n,
                   const double *weights, uint64_t step_key);
/* Sum of losses of sequence s. */
double packer_loss(const struct packer *packer, size_t s);

#endif
