/* The trial of a candidate, beside its loss on the judging rows: the reference set, greedy answers, canaries, pairs.
 *
 * Owns what is looked at and what was found so far, which is all that a checkpoint has to keep of it; what was looked
 * at is made again from the plan. The phases cut it into units; the criteria are made of what it has found. */
#ifndef JOB_TRIAL_H
#define JOB_TRIAL_H

#include "job/canaries.h"
#include "job/criteria.h"
#include "job/reference_set.h"

#include <jansson.h>

enum { ANSWER_TOKENS = 48 };

struct gate_trial {
    struct example_set reference;
    size_t *reference_rows; /* (reference.n) in the order in which they pack best */
    struct canaries canaries;
    /* found */
    double *base;                        /* (n_judge) sums of nats of the base; as job->before */
    double *pairs_before, *pairs_after;  /* (2 n_pairs) nats a token, of the active one and the candidate */
    struct model_drift drift;            /* of the candidate from the base, over reference_rows so far */
    size_t answers_degenerate, produced; /* of the answers, and of the canaries, so far */
};
/* Rows of the reference set that are longer than a micro-batch are cut there. */
int trial_create(struct gate_trial *trial, const struct plan *plan, const struct model *model, attune_error *err);
void trial_free(struct gate_trial *trial);
/* Nothing was found yet. */
void trial_reset(struct gate_trial *trial, const struct plan *plan);

/* What an answer, and a row of canaries, cost. */
double trial_answer_work(const struct work *judging);
double trial_canary_work(const struct work *judging, const struct plan *plan, const struct canary_row *row);
/* Of a run's trial, before it is planned; pairs and canaries not among it. */
double trial_work_expected(const struct work *judging);

/* One answer, one row of canaries. Cancelled: nothing has changed. */
int trial_answer(struct gate_trial *trial, size_t i, const struct weights *candidate, struct pool *pool,
                 attune_error *err);
int trial_canary(struct gate_trial *trial, size_t i, const struct plan *plan, const struct weights *candidate,
                 struct pool *pool, attune_error *err);

/* What was found, for a checkpoint, and back; 0: it is not of this plan. */
json_t *trial_state(const struct gate_trial *trial, const struct plan *plan);
int trial_restore(struct gate_trial *trial, const struct plan *plan, const json_t *state);
/* Numbers that may be none, in JSON. */
json_t *trial_reals(const double *x, size_t n);
int trial_read_reals(const json_t *array, double *out, size_t n);

#endif
