/* A job in progress: the phases of a plan, cut into units. */
#ifndef JOB_PHASES_H
#define JOB_PHASES_H

#include "job/drift.h"
#include "job/looks.h"
#include "job/memory.h"
#include "job/trial.h"

#include <stdatomic.h>

struct governed;

enum phase_kind {
    PHASE_BEFORE,
    PHASE_BASE, /* where the active adapter is not the base */
    PHASE_PAIRS_BEFORE,
    PHASE_FOLD_TRAIN,
    PHASE_FOLD_JUDGE,
    PHASE_TRAIN,
    PHASE_AFTER,
    /* of the candidate alone, and only where it has passed what came before */
    PHASE_PAIRS_AFTER,
    PHASE_REFERENCE,
    PHASE_ANSWERS,
    PHASE_CANARIES,
    PHASE_GATE
};
struct phase {
    enum phase_kind kind;
    int fold;
    size_t look; /* which part of a training, or the look behind it */
};
enum { PHASES_MAX = 2 * (FOLDS_MAX + 1) * LOOKS_MAX + 10 };

struct attune_job {
    char home[HOME_PATH_MAX], checkpoint[HOME_PATH_MAX];
    int lock;
    attune_job_options options;
    struct settings settings;
    attune_store *store;
    struct model *model;
    struct pool *pool;
    atomic_int cancelled;        /* by a person or an app; the governor's cancels are its own */
    struct governed *governed;

    /* the adapters that the plan names */
    int active;                  /* CURRENT when the run was planned or found */
    char parent_sha256[65];      /* of plan.row.parent */
    struct lora *opponent;       /* the active adapter, NULL: the base */
    struct lora *start;          /* parameters of the parent, NULL: fresh; may be the opponent */

    struct plan plan;
    int planned;
    struct phase phases[PHASES_MAX];
    int n_phases, phase;
    size_t unit;                 /* optimizer steps, or rows judged, done in this phase */
    size_t units_done;           /* in all phases; for progress only */
    size_t units_before;         /* of them, in earlier calls */
    size_t units_kept;           /* of them, that the checkpoint has; the plan has none */
    int paused;                  /* and nothing was done since */
    struct gate_trial trial;
    struct merged *merged;       /* of the candidate, whole, for what it answers; NULL: it is beside the base */
    struct looks looks;
    double *before, *after;      /* (n_judge) sums of nats of each judging row; after: at the best look */
    double *nll;                 /* of one unit */
    size_t *rows, n_rows;        /* of the phase, of the set that phase_set tells */
    size_t *step_rows;           /* (batch) */
    size_t dropped, dropped_row; /* steps that were not finite: of all trainings; the last ones in a row */
    struct trainer *trainer;
    struct evaluator evaluator;
    struct layer_merge *merge;   /* what judges, in the mode that will be served; NULL: as it is */
    struct memory_plan memory;
    char drift_sha256[65];       /* of the adapter whose drift is measured */
    struct drift *drift;         /* being measured: of what this call published, or an earlier one */
    int looked_back;             /* for an adapter whose drift was not measured */

    /* clocks, in seconds, and what is predicted from them; none of it reaches an adapter's bytes */
    double opened, checkpointed;
    struct work training, judging;
    struct pace train_pace, judge_pace;
    struct measured {
        double work, seconds;
        size_t pieces;
    } measured[2];               /* of this call: judged, trained */
    double work[PHASES_MAX], work_done; /* of each phase; of this one so far */
    size_t pieces[PHASES_MAX], pieces_done; /* what goes through the layers together; a judged one merges them first */
    double merging, ending;      /* seconds that a merge takes, and the gate with publishing */
    double merged_seconds;       /* of the piece that is judged */
    double train_seconds;
    int64_t tokens, tokens_recorded;
    double seconds_recorded;     /* what the run's row has of this call */
    double loss;
    attune_job_report report;
};

double job_now(void); /* CLOCK_MONOTONIC */
/* After plan and trainer are there: the list of phases and the arrays. */
int phases_prepare(attune_job *job, attune_error *err);
/* From the checkpoint, if there is one of this run: *found 1. One that is of no use is removed, and the reason noted:
 * the run starts again from its plan and ends in the same bytes. */
int phases_resume(attune_job *job, int *found, attune_error *err);
/* ATTUNE_ERROR_STATE: the run does not stand any more, and there is no checkpoint of it. */
int phases_checkpoint(attune_job *job, attune_error *err);
/* The run's row: how far it is, and why it stopped for now. */
int phases_record(attune_job *job, const char *reason, attune_error *err);
/* One unit. ATTUNE_CONTINUE, ATTUNE_DONE or an error; cancelled: nothing has changed. */
int phases_unit(attune_job *job, attune_error *err);
/* Work of the next unit. Seconds that it is predicted to take, and all that are left; 0 where nothing is known. */
double phases_unit_work(attune_job *job);
double phases_unit_seconds(attune_job *job);
double phases_seconds_left(const attune_job *job);
/* That so much work of judging takes; 0 where nothing is known. */
double phases_judging_seconds(const attune_job *job, double work);
void phases_name(const attune_job *job, char out[32]);
size_t phases_units(const attune_job *job); /* of all phases */
/* Steps of the final training that are done, those that were dropped included. */
int64_t phases_steps_done(const attune_job *job);
/* Back to where nothing is planned. */
void phases_free(attune_job *job);

#endif
