/* What a candidate is judged by, each criterion with its figure and its threshold: statistics of the gate over what the
 * phases have measured. Pure. */
#ifndef JOB_CRITERIA_H
#define JOB_CRITERIA_H

#include "datastore/store.h"
#include "job/run.h"

enum {
    CRITERIA_MAX = 8,
    PAIRS_MIN = 8 /* held-out pairs: with fewer, one side must win seven of seven to say anything */
};
struct criteria {
    struct store_criterion items[CRITERIA_MAX]; /* in the order in which they are judged */
    size_t n;
};

/* `held-out`: the loss on the judging rows must fall, against the active adapter, by more than its uncertainty. */
void criteria_held_out(struct criteria *criteria, const struct gate_verdict *verdict, size_t rows);
/* `base`: on the judging rows, the candidate's loss is at most 0.01 nats a token above the base's. Sums of nats and
 * tokens of each row. */
void criteria_base(struct criteria *criteria, const double *base, const double *after, const size_t *tokens, size_t n);
/* `reference`, `reference_kl`: over the reference set, how much the loss has risen, as a share of the base's, and the
 * mean KL divergence from the base, nats a token. */
void criteria_reference(struct criteria *criteria, const struct model_drift *drift, double limit, double kl_limit);
/* `degenerate`: share of questions that the candidate answers with nothing, or by repeating itself, where the base
 * does not. At most a quarter: a healthy model has none, and one such answer in eight proves nothing. */
void criteria_degenerate(struct criteria *criteria, size_t degenerate, size_t answers);
/* `canaries`: secrets of learned answers that the candidate produces and the base does not. None may be. */
void criteria_canaries(struct criteria *criteria, size_t produced, size_t spans);
/* `preferences`: share of held-out pairs whose better answer has the lower loss a token. Fails where pairs that only
 * one of the two wins speak against the candidate: a one-sided exact sign test at 5 % (McNemar). Arrays of 2 n, in
 * nats a token: each pair's chosen answer, then its rejected one; of the active adapter and of the candidate. */
void criteria_preferences(struct criteria *criteria, const double *before, const double *after, size_t n);

/* The first that does not hold; NULL: all do. */
const struct store_criterion *criteria_failed(const struct criteria *criteria);

/* 1: nothing but blanks, or half of its 12-byte pieces stand in it before: a loop, whatever the language. Answers of
 * less than 48 bytes are too short to repeat themselves. */
int answer_is_degenerate(const char *text);

#endif
