/* Early stop: how often a training is looked at with the rows that judge, and what it was at its best.
 *
 * A training of several passes is cut into as many parts of about equally many steps, at most LOOKS_MAX, with a look
 * behind each. Of a candidate that is judged by held-out rows training ends at the first look that has not fallen, and
 * the parameters of the look before it are the candidate. Folds are trained to their end; their sums tell behind which
 * look the training on all rows ends. The learning rate follows the whole plan in any case. */
#ifndef JOB_LOOKS_H
#define JOB_LOOKS_H

#include "job/run.h"

enum { LOOKS_MAX = 4 };
struct looks {
    size_t n, rows;  /* looks at each training; rows that judge */
    size_t best;     /* of those that were taken; before the first, the last */
    double *nll;     /* (n, rows) sums of nats of each look */
};
/* What a plan of so many passes is judged by, at most; for what it costs. */
size_t looks_expected(double epochs);
int looks_create(struct looks *looks, const struct plan *plan, attune_error *err);
void looks_free(struct looks *looks);
/* Nothing was looked at. */
void looks_reset(struct looks *looks);
/* Steps of part `look`, out of `steps`: [*from, *to). Never empty. */
void looks_part(const struct looks *looks, size_t look, size_t steps, size_t *from, size_t *to);
/* Look `look` is taken, and all before it: 1: it is the best so far; 0: the one before it stays the best. */
int looks_take(struct looks *looks, size_t look);
/* All are taken: the best of them. The first of several that are equal. */
void looks_choose(struct looks *looks);

#endif
