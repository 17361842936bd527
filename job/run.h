/* A run: plan, phases, gate, publishing. The only place where rooms meet over time.
 *
 *   plan ─▶ before ─▶ [fold 1 ─▶ its rows]… ─▶ train ─▶ after ─▶ trial ─▶ gate ─▶ publish
 *
 * The plan is fixed and in the store before the first step. Then everything is a function of it:
 * phases are cut into units (one optimizer step, one micro-batch of evaluation), and after any
 * number of them the state is a checkpoint. */
#ifndef JOB_RUN_H
#define JOB_RUN_H

#include "datastore/store.h"
#include "job/home.h"
#include "job/work.h"
#include "trainer/packer.h"

enum {
    FOLDS_MAX = 4,
    /* The newest rows that a plan looks at: more than a night takes. One pass over so many, of 100 tokens each, is an
     * hour at 230 tokens a second. */
    PLAN_NEWEST = 8192
};

/* Where the rows of a plan come from. */
struct row_source {
    attune_store *store;
    const struct model *model;
    const char *home; /* whose cache/tokens.gguf spares tokenizing; NULL: none */
};

/* The interactions that an example was derived from. */
struct origin {
    int64_t interaction, other, time_ms;
};

struct plan {
    struct store_run row;
    struct settings settings;   /* of the run: epochs as planned */
    int opponent;               /* adapter that was active when it was planned: the one to beat */
    int folds;                  /* 0: held-out rows judge; else cross-fitting */
    struct example_set examples;
    struct origin *origins;     /* (examples.n); NULL in a plan that was loaded */
    unsigned char *earlier;     /* (examples.n) 1: the parent has learned from it; NULL: from none */
    int judge_new;              /* with folds: of the answers of train those judge that the parent has not seen */
    size_t *train, n_train;     /* rows of `examples` that the final training takes, of all kinds, oldest first */
    size_t *judge, n_judge;     /* answers that judge: held-out, or those of train when cross-fitting */
    size_t *pairs, n_pairs;     /* held-out pairs: the better answers, each with the other one behind it */
    int *fold;                  /* (n_train) of each train row, -1: no prompt of one that judges; NULL without folds */
    size_t *order, order_epoch; /* one epoch's order, remembered between steps */
    uint64_t order_of;          /* a hash of the rows that it orders */
};
void plan_free(struct plan *plan);

/* What a plan must fit into. Rates in work a second. */
struct budget {
    double seconds;      /* left for this plan; 0: none */
    struct work training, judging;
    double train_rate, evaluate_rate, overhead; /* overhead: merge, gate, publish, checkpoint, seconds */
    int64_t max_examples;
};
/* What a plan over these rates takes, in seconds. */
double plan_seconds(const struct plan *plan, const struct budget *budget);
/* parent: adapter to start from (0: fresh), opponent: the active one. Chooses rows, split, epochs; writes the run and
 * its rows into the store. ATTUNE_PAUSED and a reason: there is nothing to train on yet, or it was forgotten
 * meanwhile. */
int plan_make(const struct row_source *source, const struct settings *settings, int parent, const char *parent_sha256,
              int opponent, const struct budget *budget, struct plan *out, char reason[256], attune_error *err);
/* A few rows to measure the machine with, before the plan: up to max_tokens, the newest. n 0: there are none. */
int plan_sample(const struct row_source *source, const struct settings *settings, size_t max_tokens,
                struct example_set *out, attune_error *err);
/* An unfinished run's plan, out of the store. ATTUNE_ERROR_NOT_FOUND: its rows are gone: abandon it. */
int plan_load(const struct row_source *source, const struct store_run *row, struct plan *out, attune_error *err);
/* What a run's id and its adapter's file tell of its configuration: all but the number of the adapter that it had to
 * beat. Numbers differ between homes that learned the same in the same nights; the bytes of their adapters must not. */
void plan_configuration(const struct store_run *run, char *out, size_t size);
/* Steps of training over n rows. */
size_t plan_steps(const struct plan *plan, size_t n);
/* Rows of optimizer step `step` over rows[0..n): out holds up to `batch`; returns how many. */
size_t plan_step_rows(struct plan *plan, const size_t *rows, size_t n, size_t step, size_t *out);
/* With folds: whether a row of train judges too. */
int plan_can_judge(const struct plan *plan, size_t row);
/* Rows that fold `fold` trains on, or (judged) leaves out: out(n_train); returns how many. */
size_t plan_fold_rows(const struct plan *plan, int fold, int judged, size_t *out);

/* ---- the gate ---- */
struct gate_verdict {
    int publish;
    double before, after, interval; /* nats a token; half width of the 95 % interval of before - after */
    char reason[256];
};
/* Paired over rows: sums of nats before and after, tokens of each row. Publishes what is better by more than
 * the interval. Pure. */
void gate_judge(const double *before, const double *after, const size_t *tokens, size_t n, struct gate_verdict *out);

/* ---- publishing ---- */
/* Under the lock. File, row, then CURRENT and the rows again as one: at whatever point it dies, the next call with the
 * same run ends in the same state. ATTUNE_ERROR_STATE: what it learned from was forgotten meanwhile; nothing is left of
 * it. */
int publish_adapter(const char *home, attune_store *store, const struct model *model, const struct lora *lora,
                    const char *parent_sha256, struct store_run *run, attune_error *err);

#endif
