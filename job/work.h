/* What a run's pieces cost, before they are done: in tokens' worth, so that one measured speed holds for short and long
 * conversations alike. Predictions only: nothing here reaches an adapter's bytes. */
#ifndef JOB_WORK_H
#define JOB_WORK_H

#include "trainer/trainer.h"

/* One token through all the layers' matrices is 1. */
struct work {
    double supervised; /* a position whose logits are needed */
    double pair;       /* a query and a key that it sees, over all layers and heads */
    double batch;      /* taking the weights out of their blocks, once a micro-batch */
};
struct work work_of_judging(const struct model *model);
struct work work_of_training(const struct model *model);
/* Rows that are packed in turn, micro_tokens at once. */
double work_of_rows(const struct work *work, const struct example_set *set, const size_t *rows, size_t n,
                    size_t micro_tokens);
/* Rows of any kind, each judged by itself, in one micro-batch. */
double work_of_judged(const struct work *work, const struct example_set *set, const size_t *rows, size_t n);
/* Pairs of answers, judged one by one. */
double work_of_pairs(const struct work *work, const struct example_set *set, const size_t *pairs, size_t n);

/* How fast work is done: of late, weighted by how much it was. */
struct pace {
    double work, seconds;
    size_t n;
};
/* A belief that the first measurement replaces. */
void pace_assume(struct pace *pace, double per_second);
void pace_measure(struct pace *pace, double work, double seconds);
/* Work a second; 0: nothing is known. */
double pace_per_second(const struct pace *pace);

#endif
