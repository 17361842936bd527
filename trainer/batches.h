/* Which conversations go through the layers together. Refuses to know what is done with them there. */
#ifndef TRAINER_BATCHES_H
#define TRAINER_BATCHES_H

#include "trainer/trainer.h"

/* From rows[from] on, those that a packer of T_max tokens takes in turn while they fit: the index behind the last. */
size_t batches_end(const struct example_set *set, const size_t *rows, size_t from, size_t n, size_t T_max);
/* Reorders rows[0..n) so that they come in few such groups: longest first, each into the first group that has room.
 * A function of the rows alone, not of the order they came in. */
void batches_order(const struct example_set *set, size_t *rows, size_t n, size_t T_max);

#endif
