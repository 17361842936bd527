/* Going back by itself: whether an adapter's answers are liked less than those of the one before it.
 *
 * Owns the test, which is a pure function of four counts, and what follows from it. Refuses to know how an answer is
 * judged (datastore/outcomes.h). */
#ifndef JOB_ROLLBACK_H
#define JOB_ROLLBACK_H

#include "datastore/outcomes.h"
#include "job/home.h"

/* An e-value against "the share of good of `now` is at least that of `before`": while that holds, it ever reaches 20 in
 * at most one case of 20, however often one looks. Universal inference (Wasserman, Ramdas, Balakrishnan 2020): the
 * likelihood of both counts under Beta(1/2, 1/2) priors, over the greatest that the hypothesis allows. Counts are at
 * least 0. */
double rollback_evidence(struct store_outcomes before, struct store_outcomes now);
#define ROLLBACK_EVIDENCE 20.0

struct rollback {
    int from, to;                 /* the active adapter; where it would go: its nearest clean ancestor, 0 the base */
    struct store_outcomes before; /* of `to` */
    struct store_outcomes now;    /* of `from` */
    double evidence;
    int wanted;                   /* 1: it has turned worse */
    char sha256[65];              /* of `to` */
};
/* Of the base: all 0. */
int rollback_look(const char *home, attune_store *store, const char *base_sha256, int active,
                  struct rollback *out, attune_error *err);
/* Under the home's lock. Where it has turned worse: `to` becomes active, `from` is rejected with a reason. */
int rollback_act(const char *home, attune_store *store, const struct model *model, const struct rollback *rollback,
                 attune_error *err);

#endif
