/* A job in progress: the phases of a plan, cut into units. */
#ifndef JOB_PHASES_H
#define JOB_PHASES_H

#include "job/run.h"

#include <stdatomic.h>

enum phase_kind { PHASE_BEFORE, PHASE_FOLD_TRAIN, PHASE_FOLD_JUDGE, PHASE_TRAIN, PHASE_AFTER, PHASE_GATE };
struct phase {
    enum phase_kind kind;
    int fold;
};
enum { PHASES_MAX = 2 * FOLDS_MAX + 4 };

struct attune_job {
    char home[HOME_PATH_MAX], checkpoint[HOME_PATH_MAX];
    int lock;
    attune_job_options options;
    struct settings settings;
    attune_store *store;
    struct model *model;
    struct pool *pool;
    atomic_int cancelled;

    /* the adapters that the plan names */
    int active;                  /* CURRENT when the run was planned or found */
    char parent_sha256[65];      /* of plan.row.parent */
    struct lora *start;          /* parameters of the parent, NULL: fresh */
    struct lora *opponent;       /* the active adapter, NULL: the base */

    struct plan plan;
    int planned;
    struct phase phases[PHASES_MAX];
    int n_phases, phase;
    size_t unit;                 /* optimizer steps, or rows judged, done in this phase */
    size_t units_done;           /* in all phases; for progress only */
    size_t units_before;         /* of them, in earlier calls */
    char why[128];               /* it was stopped, when the reason has a figure */
    double *before, *after;      /* (n_judge) sums of nats of each judging row */
    double *nll;                 /* of one unit */
    size_t *rows, n_rows;        /* of the phase, (n_train + n_judge) at most */
    size_t *step_rows;           /* (batch) */
    struct trainer *trainer;
    struct evaluator evaluator;
    struct merged *merged;       /* what judges, in the mode that will be served */

    /* clocks and rates, seconds and tokens a second; none of them reaches an adapter's bytes */
    double opened, checkpointed;
    double train_rate, evaluate_rate, overhead;
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
/* Seconds that the next unit is predicted to take, and all that are left; 0 where nothing is known. */
double phases_unit_seconds(const attune_job *job);
double phases_seconds_left(const attune_job *job);
void phases_name(const attune_job *job, char out[32]);
size_t phases_units(const attune_job *job); /* of all phases */
/* Steps of the final training that are done, those that were dropped included. */
int64_t phases_steps_done(const attune_job *job);
/* Back to where nothing is planned. */
void phases_free(attune_job *job);

#endif
