/* The objective of a step: which sequences go through the layers, and with what weight each pulls. Refuses to know how
 * gradients are made: ln p of the answers comes in, weights go out. */
#ifndef TRAINER_OBJECTIVE_H
#define TRAINER_OBJECTIVE_H

#include "trainer/trainer.h"

struct objective {
    size_t capacity; /* sequences there is room for */
    size_t n;        /* of the step: a row is one, a pair two */
    size_t preferences; /* of them in pairs or with thumbs: these come first */
    size_t *items;   /* (capacity) examples of the set, otherwise in the order of the rows */
    double *logp;    /* (capacity) ln p of the answer now; of an answer to say: not known */
    double *weights; /* (capacity) of each sequence's mean nats per token in the gradient; below 0: away from it */
    struct arena arena;
    struct step_losses losses;
    double loss, weight; /* sums over the rows with preferences, by weight; of the rows' weights */
};

size_t objective_bytes(size_t rows);
/* Room for `rows` rows, whatever they are. */
int objective_create(size_t rows, struct objective **out, attune_error *err);
void objective_destroy(struct objective *objective);
/* The step's sequences. Takes memory only for more rows than there was room for. */
int objective_lay_out(struct objective *objective, const struct example_set *set, const size_t *rows, size_t n,
                      attune_error *err);
/* Once logp and the references of what has preferences are there: weights, and all losses but those of the answers to
 * say. */
void objective_weigh(struct objective *objective, const struct preference_config *config,
                     const struct example_set *set, size_t rows);

#endif
