/* What the feedback on one interaction comes to. Knows no SQL. */
#ifndef DATASTORE_JUDGE_H
#define DATASTORE_JUDGE_H

#include <stdint.h>

#include "attune.h"

struct store_judgement { /* zeroed at the start */
    int64_t undone;      /* pieces of feedback that later undos still take back */
    int verdict;         /* the last one that stands: +1 good, -1 bad, 0 none */
    int verdict_kind;    /* enum attune_feedback_kind that it came from */
    int64_t edit;        /* id of the last edit that stands; 0: none */
    int copied;          /* a copy stands */
    int64_t dwell_ms;    /* the longest that stands */
};

/* One piece of feedback, from the newest to the oldest: in that direction an undo meets what it takes
 * back as the next one that no other undo has claimed. */
static inline void store_judge(struct store_judgement *judgement, int kind, int64_t value, int64_t id) {
    int verdict = 0;
    if (kind == ATTUNE_FEEDBACK_UNDO) {
        judgement->undone++;
        return;
    }
    if (judgement->undone > 0) {
        judgement->undone--;
        return;
    }
    if (kind == ATTUNE_FEEDBACK_THUMB) verdict = value > 0 ? 1 : -1;
    if (kind == ATTUNE_FEEDBACK_ACCEPT) verdict = 1;
    if (kind == ATTUNE_FEEDBACK_REJECT || kind == ATTUNE_FEEDBACK_REGENERATE) verdict = -1;
    if (kind == ATTUNE_FEEDBACK_EDIT && !judgement->edit) judgement->edit = id;
    if (kind == ATTUNE_FEEDBACK_COPY) judgement->copied = 1;
    if (kind == ATTUNE_FEEDBACK_DWELL && value > judgement->dwell_ms) judgement->dwell_ms = value;
    if (verdict && !judgement->verdict) {
        judgement->verdict = verdict;
        judgement->verdict_kind = kind;
    }
}

#endif
