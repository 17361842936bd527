/* How much memory a run takes, and how it is shared out. */
#ifndef JOB_MEMORY_H
#define JOB_MEMORY_H

#include "adapters/merge.h"
#include "job/run.h"

/* Micro-batches that are judged together where layers are merged as they are reached: merging takes about a quarter of
 * the time that one micro-batch takes. */
enum { JUDGED_TOGETHER = 4 };
struct evaluator_shape memory_evaluator_shape(const struct train_config *config, enum merge_mode merge,
                                              const struct lora_config *opponent);
/* That measures the drift of merging. */
struct evaluator_shape memory_drift_shape(const struct train_config *config, const struct lora_config *opponent);

struct memory_needs {
    const struct model *model;
    const struct settings *settings;    /* of the run */
    const struct lora_config *opponent; /* of the adapter to beat, NULL: the base */
    int parent_apart;                   /* it starts from an adapter that is not the opponent */
    int threads;
    uint64_t rows;                      /* that may be learned from, as memory_count_rows */
};
struct memory_plan {
    uint64_t peak, least;            /* of the resident memory: as shared out, and the least that would do */
    size_t train_bytes, judge_bytes; /* that activations may take */
    size_t drift_bytes;              /* ... where the drift of merging is measured; 0: there is no room for that */
    uint64_t drift_room;             /* ... and merged weights, once there is an adapter */
    size_t kept;                     /* layers whose activations are kept for the backward */
};
/* Fits the run into `ceiling`; into the least where that is more: then peak > ceiling. */
void memory_plan_make(const struct memory_needs *needs, uint64_t ceiling, struct memory_plan *out);
/* Rows that a plan may look at. */
int memory_count_rows(attune_store *store, uint64_t *rows, attune_error *err);

#endif
