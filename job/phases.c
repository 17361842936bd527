#include "job/phases.h"

#include "core/base/fault.h"
#include "trainer/batches.h"

#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* One step that is not finite is noise. So many in a row are a defect of data or settings, and will not heal. */
enum { DROPPED_MAX = 8 };

double job_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- the list ---- */

static void add_look(attune_job *job, enum phase_kind kind, int fold, size_t look) {
    job->phases[job->n_phases++] = (struct phase){kind, fold, look};
}
static void add_phase(attune_job *job, enum phase_kind kind) { add_look(job, kind, 0, 0); }

static int is_training(enum phase_kind kind) { return kind == PHASE_TRAIN || kind == PHASE_FOLD_TRAIN; }
static int is_pairs(enum phase_kind kind) { return kind == PHASE_PAIRS_BEFORE || kind == PHASE_PAIRS_AFTER; }
/* Units that are no rows of a set, each by itself. */
static int is_decoding(enum phase_kind kind) { return kind == PHASE_ANSWERS || kind == PHASE_CANARIES; }

static const struct example_set *phase_set(const attune_job *job) {
    return job->phases[job->phase].kind == PHASE_REFERENCE ? &job->trial.reference : &job->plan.examples;
}

/* The rows of a phase into out; returns how many. */
static size_t phase_rows(const attune_job *job, const struct phase *phase, size_t *out) {
    const struct plan *plan = &job->plan;
    switch (phase->kind) {
    case PHASE_PAIRS_BEFORE:
    case PHASE_PAIRS_AFTER:
        for (size_t i = 0; i < 2 * plan->n_pairs; i++) out[i] = plan->pairs[i / 2] + i % 2;
        return 2 * plan->n_pairs;
    case PHASE_REFERENCE:
        memcpy(out, job->trial.reference_rows, job->trial.reference.n * sizeof *out);
        return job->trial.reference.n;
    case PHASE_ANSWERS: return REFERENCE_ANSWERED;
    case PHASE_CANARIES: return job->trial.canaries.n;
    case PHASE_BEFORE:
    case PHASE_BASE:
    case PHASE_AFTER: memcpy(out, plan->judge, plan->n_judge * sizeof *out); return plan->n_judge;
    case PHASE_FOLD_TRAIN: return plan_fold_rows(plan, phase->fold, 0, out);
    case PHASE_FOLD_JUDGE: return plan_fold_rows(plan, phase->fold, 1, out);
    case PHASE_TRAIN: memcpy(out, plan->train, plan->n_train * sizeof *out); return plan->n_train;
    case PHASE_GATE: return 0;
    }
    return 0;
}

/* Judging takes its rows in the order in which they pack best: what a row is said to be does not hang on it. */
static void enter_phase(attune_job *job) {
    job->work_done = 0;
    job->pieces_done = 0;
    if (job->phase >= job->n_phases) return;
    const struct phase *phase = &job->phases[job->phase];
    job->n_rows = phase_rows(job, phase, job->rows);
    if (!is_training(phase->kind) && !is_decoding(phase->kind))
        batches_order(phase_set(job), job->rows, job->n_rows, job->plan.settings.train.micro_tokens);
}

/* Steps of a training over n rows that a phase makes: [*from, returned). Where folds have judged, the last one goes in
 * one piece to where they were at their best. */
static size_t training_part(const attune_job *job, const struct phase *phase, size_t n, size_t *from) {
    size_t to, steps = plan_steps(&job->plan, n);
    int whole = phase->kind == PHASE_TRAIN && job->plan.folds;
    looks_part(&job->looks, whole ? job->looks.best : phase->look, steps, from, &to);
    if (whole) *from = 0;
    return to;
}

/* Units of the phase that was entered. */
static size_t phase_units(const attune_job *job) {
    size_t from, to;
    if (!is_training(job->phases[job->phase].kind)) return job->n_rows;
    to = training_part(job, &job->phases[job->phase], job->n_rows, &from);
    return to - from;
}

/* Rows of a step of the phase into step_rows, in the order in which they pack best; returns how many. */
static size_t take_step(attune_job *job, size_t unit) {
    size_t from, step;
    training_part(job, &job->phases[job->phase], job->n_rows, &from);
    step = from + unit;
    size_t n = plan_step_rows(&job->plan, job->rows, job->n_rows, step, job->step_rows);
    batches_order(&job->plan.examples, job->step_rows, n, job->plan.settings.train.micro_tokens);
    return n;
}

static struct evaluator_shape judge_shape(const attune_job *job) {
    const struct settings *s = &job->plan.settings;
    struct evaluator_shape shape =
        memory_evaluator_shape(&s->train, settings_judged(s), job->opponent ? &job->opponent->config : NULL);
    shape.drift = job->phases[job->phase].kind == PHASE_REFERENCE;
    return shape;
}

/* Of the units of this phase from `unit` on that go through together; *next: the first behind them. */
static double work_at(attune_job *job, size_t unit, size_t *next) {
    const struct example_set *set = phase_set(job);
    enum phase_kind kind = job->phases[job->phase].kind;
    size_t micro_tokens = job->plan.settings.train.micro_tokens;
    if (is_decoding(kind)) {
        *next = unit + 1;
        return kind == PHASE_ANSWERS ? trial_answer_work(&job->judging)
                                     : trial_canary_work(&job->judging, &job->plan, &job->trial.canaries.rows[unit]);
    }
    if (is_training(kind)) {
        *next = unit + 1;
        return work_of_rows(&job->training, set, job->step_rows, take_step(job, unit), micro_tokens);
    }
    struct evaluator_shape shape = judge_shape(job);
    *next = unit + evaluator_rows(&shape, set, job->rows + unit, job->n_rows - unit);
    if (is_pairs(kind)) return work_of_judged(&job->judging, set, job->rows + unit, *next - unit);
    double models = kind == PHASE_REFERENCE ? 2 : 1;
    return models * work_of_rows(&job->judging, set, job->rows + unit, *next - unit, micro_tokens);
}

static double work_until(attune_job *job, size_t units, size_t *pieces) {
    double work = 0;
    *pieces = 0;
    for (size_t unit = 0; unit < units; ++*pieces) work += work_at(job, unit, &unit);
    return work;
}

static void predict_phase(attune_job *job) {
    enter_phase(job);
    job->work[job->phase] = work_until(job, phase_units(job), &job->pieces[job->phase]);
}

static void predict_work(attune_job *job) {
    job->training = work_of_training(job->model);
    job->judging = work_of_judging(job->model);
    for (job->phase = 0; job->phase < job->n_phases; job->phase++) predict_phase(job);
    job->phase = 0;
    enter_phase(job);
}

/* Training of a fold, or of what is published, with its looks. */
static void add_training(attune_job *job, enum phase_kind train, enum phase_kind look, int fold) {
    for (size_t i = 0; i < job->looks.n; i++) {
        add_look(job, train, fold, i);
        add_look(job, look, fold, i);
    }
}

static void list_phases(attune_job *job) {
    const struct plan *plan = &job->plan;
    add_phase(job, PHASE_BEFORE);
    if (job->opponent) add_phase(job, PHASE_BASE);
    if (plan->n_pairs) add_phase(job, PHASE_PAIRS_BEFORE);
    for (int f = 0; f < plan->folds; f++) add_training(job, PHASE_FOLD_TRAIN, PHASE_FOLD_JUDGE, f);
    if (plan->folds)
        add_phase(job, PHASE_TRAIN);
    else
        add_training(job, PHASE_TRAIN, PHASE_AFTER, 0);
    if (plan->n_pairs) add_phase(job, PHASE_PAIRS_AFTER);
    if (job->trial.reference.n) add_phase(job, PHASE_REFERENCE);
    add_phase(job, PHASE_ANSWERS);
    if (job->trial.canaries.n) add_phase(job, PHASE_CANARIES);
    add_phase(job, PHASE_GATE);
}

int phases_prepare(attune_job *job, attune_error *err) {
    struct plan *plan = &job->plan;
    size_t n = plan->n_train + plan->n_judge + 2 * plan->n_pairs + REFERENCE_ROWS + 1;
    int code = trial_create(&job->trial, plan, job->model, err);
    if (code != ATTUNE_OK) return code;
    code = looks_create(&job->looks, plan, err);
    if (code != ATTUNE_OK) return code;
    list_phases(job);
    job->before = calloc(n, sizeof *job->before);
    job->after = calloc(n, sizeof *job->after);
    job->nll = calloc(n, sizeof *job->nll);
    job->rows = calloc(n, sizeof *job->rows);
    job->step_rows = calloc(plan->settings.train.batch, sizeof *job->step_rows);
    if (!job->before || !job->after || !job->nll || !job->rows || !job->step_rows)
        return error_set_memory(err, "a run", 4 * n * sizeof(double));
    job->loss = NAN;
    predict_work(job);
    return ATTUNE_OK;
}

static void release_judge(attune_job *job) {
    evaluator_free(&job->evaluator);
    layer_merge_destroy(job->merge);
    merge_destroy(job->merged);
    job->merge = NULL;
    job->merged = NULL;
}

void phases_free(attune_job *job) {
    release_judge(job);
    trainer_destroy(job->trainer);
    if (job->start != job->opponent) lora_destroy(job->start);
    free(job->before);
    free(job->after);
    free(job->nll);
    free(job->rows);
    free(job->step_rows);
    trial_free(&job->trial);
    looks_free(&job->looks);
    plan_free(&job->plan);
    job->trainer = NULL;
    job->start = NULL;
    job->before = job->after = job->nll = NULL;
    job->rows = job->step_rows = NULL;
    job->n_phases = job->phase = 0;
    job->n_rows = job->unit = job->units_done = job->units_kept = 0;
    job->dropped = job->dropped_row = 0;
}

void phases_name(const attune_job *job, char out[32]) {
    static const char *const names[] = {"before", "base",      "pairs",   "fold",     "fold", "train",
                                        "after",  "pairs",     "reference", "answers", "canaries", "gate"};
    if (job->phase >= job->n_phases) {
        strcpy(out, "done");
        return;
    }
    const struct phase *phase = &job->phases[job->phase];
    if (phase->kind == PHASE_FOLD_TRAIN || phase->kind == PHASE_FOLD_JUDGE)
        snprintf(out, 32, "fold %d/%d", phase->fold + 1, job->plan.folds);
    else
        snprintf(out, 32, "%s", names[phase->kind]);
}

/* ---- prediction ---- */

/* Work a second. Where only the other kind was measured: a step is forward, forward again and backward. */
static double pace_of(const attune_job *job, int training) {
    double train = pace_per_second(&job->train_pace), judge = pace_per_second(&job->judge_pace);
    if (training) return train > 0 ? train : judge / 3;
    return judge > 0 ? judge : 3 * train;
}

static double seconds_of(const attune_job *job, enum phase_kind kind, double work) {
    double pace = pace_of(job, is_training(kind));
    return pace > 0 ? work / pace : 0;
}

double phases_judging_seconds(const attune_job *job, double work) { return seconds_of(job, PHASE_AFTER, work); }

/* That a piece of a judging phase takes to merge the layers. */
static double merging_seconds(const attune_job *job, enum phase_kind kind) {
    if (is_training(kind) || kind == PHASE_GATE || settings_judged(&job->plan.settings) == MERGE_NONE) return 0;
    if (is_decoding(kind)) return job->merging / REFERENCE_ANSWERED; /* once a phase, about */
    int base = kind == PHASE_BASE || (!job->opponent && (kind == PHASE_BEFORE || kind == PHASE_PAIRS_BEFORE));
    return base ? 0 : job->merging;
}

double phases_unit_work(attune_job *job) {
    size_t next;
    if (job->phase == job->n_phases || job->phases[job->phase].kind == PHASE_GATE) return 0;
    return work_at(job, job->unit, &next);
}

double phases_unit_seconds(attune_job *job) {
    if (job->phase == job->n_phases) return 0;
    enum phase_kind kind = job->phases[job->phase].kind;
    if (kind == PHASE_GATE) return job->ending;
    double seconds = seconds_of(job, kind, phases_unit_work(job));
    return seconds > 0 ? seconds + merging_seconds(job, kind) : 0;
}

double phases_seconds_left(const attune_job *job) {
    double seconds = 0;
    if (pace_of(job, 1) <= 0) return 0;
    for (int p = job->phase; p < job->n_phases; p++) {
        enum phase_kind kind = job->phases[p].kind;
        double done = p == job->phase ? job->work_done : 0;
        seconds += kind == PHASE_GATE ? job->ending : seconds_of(job, kind, job->work[p] - done);
        size_t pieces = job->pieces[p] - (p == job->phase ? job->pieces_done : 0);
        seconds += (double)pieces * merging_seconds(job, kind);
    }
    return seconds > 0 ? seconds : 0;
}

static size_t count_rows(const attune_job *job, const struct phase *phase) {
    size_t n = 0;
    switch (phase->kind) {
    case PHASE_BEFORE:
    case PHASE_BASE:
    case PHASE_AFTER: return job->plan.n_judge;
    case PHASE_PAIRS_BEFORE:
    case PHASE_PAIRS_AFTER: return 2 * job->plan.n_pairs;
    case PHASE_REFERENCE: return job->trial.reference.n;
    case PHASE_ANSWERS: return REFERENCE_ANSWERED;
    case PHASE_CANARIES: return job->trial.canaries.n;
    case PHASE_TRAIN: return job->plan.n_train;
    case PHASE_FOLD_TRAIN:
        for (size_t i = 0; i < job->plan.n_train; i++) n += job->plan.fold[i] != phase->fold;
        return n;
    case PHASE_FOLD_JUDGE:
        for (size_t i = 0; i < job->plan.n_train; i++)
            n += job->plan.fold[i] == phase->fold && plan_can_judge(&job->plan, job->plan.train[i]);
        return n;
    case PHASE_GATE: return 0;
    }
    return 0;
}

size_t phases_units(const attune_job *job) {
    size_t units = 0;
    for (int p = 0; p < job->n_phases; p++) {
        size_t rows = count_rows(job, &job->phases[p]);
        size_t from = 0, to = job->phases[p].kind == PHASE_GATE ? 1 : rows;
        if (is_training(job->phases[p].kind)) to = training_part(job, &job->phases[p], rows, &from);
        units += to - from;
    }
    return units;
}

/* ---- what the run's row is told ---- */

int64_t phases_steps_done(const attune_job *job) {
    if (!job->trainer) return 0;
    enum phase_kind kind = job->phase < job->n_phases ? job->phases[job->phase].kind : PHASE_GATE;
    if (kind < PHASE_TRAIN) return 0;
    if (kind == PHASE_TRAIN) {
        size_t from;
        training_part(job, &job->phases[job->phase], job->plan.n_train, &from);
        return (int64_t)(from + job->unit);
    }
    return (int64_t)(job->trainer->adamw.step + job->trainer->dropped);
}

/* What this call has done so far; a run may take many calls. */
static void account(attune_job *job) {
    struct store_run *run = &job->plan.row;
    double seconds = job_now() - job->opened;
    run->tokens += job->tokens - job->tokens_recorded;
    run->seconds += seconds - job->seconds_recorded;
    job->tokens_recorded = job->tokens;
    job->seconds_recorded = seconds;
    if (job->train_seconds > 0) run->tokens_per_s = (double)job->tokens / job->train_seconds;
    run->steps_done = phases_steps_done(job);
}

int phases_record(attune_job *job, const char *reason, attune_error *err) {
    account(job);
    snprintf(job->plan.row.reason, sizeof job->plan.row.reason, "%s", reason);
    return store_run_update(job->store, &job->plan.row, err);
}

static void end_run(attune_job *job) {
    account(job);
    job->plan.row.ended_ms = home_now_ms();
}

/* ---- units ---- */

/* The first piece of a kind takes memory and fills caches: it says little of what work costs. */
static void measure(attune_job *job, int training, double work, double seconds) {
    struct measured *m = &job->measured[training];
    pace_measure(training ? &job->train_pace : &job->judge_pace, work, seconds);
    if (m->pieces++ == 0) return;
    m->work += work;
    m->seconds += seconds;
}

/* A run that cannot be finished: the next call plans another one, by the settings as they are then. */
static int fail_run(attune_job *job, const char *reason, attune_error *err) {
    end_run(job);
    snprintf(job->plan.row.state, sizeof job->plan.row.state, "failed");
    int code = phases_record(job, reason, err);
    if (code != ATTUNE_OK) return code;
    unlink(job->checkpoint);
    job->report.finished = 1;
    return error_set(err, ATTUNE_ERROR_STATE, NULL, "%s", reason);
}

/* A step whose loss or gradient was not finite: nothing was learned from it. */
static int note_dropped(attune_job *job, attune_error *err) {
    char reason[160];
    job->dropped++;
    if (++job->dropped_row < DROPPED_MAX) return ATTUNE_OK;
    snprintf(reason, sizeof reason,
             "the last %d steps had a loss or a gradient that is not finite; lower learning_rate in attune.conf, or "
             "train from fresh",
             DROPPED_MAX);
    return fail_run(job, reason, err);
}

static int train_unit(attune_job *job, attune_error *err) {
    struct plan *plan = &job->plan;
    size_t steps = plan_steps(plan, job->n_rows), first, tokens = 0;
    double from = job_now(), work = phases_unit_work(job), loss;
    int code;
    training_part(job, &job->phases[job->phase], job->n_rows, &first);
    if (first + job->unit == 0) trainer_reset(job->trainer, job->start);
    int behind_look = job->unit == 0 && first > 0 && job->phases[job->phase].kind == PHASE_TRAIN;
    if (behind_look && (code = trainer_keep(job->trainer, err)) != ATTUNE_OK) return code;
    size_t n = take_step(job, job->unit);
    float rate = schedule_rate(&plan->settings.train, first + job->unit, steps);
    code = trainer_step(job->trainer, &plan->examples, job->step_rows, n, rate, &loss, &tokens, err);
    if (code != ATTUNE_OK) return code;
    job->loss = loss;
    job->tokens += (int64_t)tokens;
    job->train_seconds += job_now() - from;
    measure(job, 1, work, job_now() - from);
    job->work_done += work;
    job->pieces_done++;
    job->unit++;
    return isnan(loss) ? note_dropped(job, err) : (job->dropped_row = 0, ATTUNE_OK);
}

/* What judges, and the weights that a judging phase judges: in the mode that will be served, but merged one layer at a
 * time. */
static int prepare_judge(attune_job *job, const struct lora *lora, struct weights *weights, attune_error *err) {
    const struct settings *s = &job->plan.settings;
    enum merge_mode mode = settings_judged(s);
    int merging = lora && mode != MERGE_NONE, code = ATTUNE_OK;
    *weights = (struct weights){job->model, job->model->layers, lora && !merging ? lora->pairs : NULL};
    if (job->evaluator.pass) return ATTUNE_OK;
    trainer_release(job->trainer);
    if (merging && !job->merge) code = layer_merge_create(job->model, lora, mode, job->pool, &job->merge, err);
    if (code != ATTUNE_OK) return code;
    struct evaluator_shape shape = judge_shape(job);
    return evaluator_create(job->model, job->pool, &shape, job->memory.judge_bytes, &job->evaluator, err);
}

static int make_layer(void *user, size_t layer, struct model_layer *out, attune_error *err) {
    attune_job *job = user;
    double from = job_now();
    int code = layer_merge_make(job->merge, layer, out, err);
    job->merged_seconds += job_now() - from;
    return code;
}

/* Index of a row of examples among the judging rows. */
static size_t judge_index(const attune_job *job, size_t row) {
    size_t i = 0;
    while (job->plan.judge[i] != row) i++;
    return i;
}

/* The adapter that a judging phase judges. */
static const struct lora *judged(const attune_job *job) {
    enum phase_kind kind = job->phases[job->phase].kind;
    if (kind == PHASE_BASE) return NULL;
    return kind == PHASE_BEFORE || kind == PHASE_PAIRS_BEFORE ? job->opponent : job->trainer->lora;
}

/* Among the two answers of each held-out pair. */
static size_t pair_index(const attune_job *job, size_t row) {
    size_t i = 0;
    while (job->plan.pairs[i] != row && job->plan.pairs[i] + 1 != row) i++;
    return 2 * i + (row != job->plan.pairs[i]);
}

/* Where what was found about a row belongs. */
static double *place_of(attune_job *job, size_t row) {
    switch (job->phases[job->phase].kind) {
    case PHASE_BEFORE: return &job->before[judge_index(job, row)];
    case PHASE_BASE: return &job->trial.base[judge_index(job, row)];
    case PHASE_PAIRS_BEFORE: return &job->trial.pairs_before[pair_index(job, row)];
    case PHASE_PAIRS_AFTER: return &job->trial.pairs_after[pair_index(job, row)];
    default: return &job->looks.nll[job->phases[job->phase].look * job->looks.rows + judge_index(job, row)];
    }
}

/* Rows that go through together, up to n of them. */
static int run_rows(attune_job *job, const struct weights *weights, size_t n, attune_error *err) {
    const struct layer_maker maker = {make_layer, job};
    const struct layer_maker *made = job->merge ? &maker : NULL;
    const struct example_set *set = phase_set(job);
    const size_t *rows = job->rows + job->unit;
    if (job->phases[job->phase].kind == PHASE_REFERENCE) {
        const struct weights base = {job->model, job->model->layers, NULL};
        return evaluator_drift(&job->evaluator, &base, weights, made, set, rows, n, &job->trial.drift, err);
    }
    int code = evaluator_run(&job->evaluator, weights, made, set, rows, n, job->nll, err);
    int mean = is_pairs(job->phases[job->phase].kind); /* the two answers of a pair differ in length */
    for (size_t i = 0; i < n && code == ATTUNE_OK; i++)
        *place_of(job, rows[i]) = mean ? job->nll[i] / (double)set->items[rows[i]].n_supervised : job->nll[i];
    return code;
}

static int judge_unit(attune_job *job, attune_error *err) {
    struct weights weights;
    struct evaluator_shape shape = judge_shape(job);
    size_t n = evaluator_rows(&shape, phase_set(job), job->rows + job->unit, job->n_rows - job->unit);
    if (n == 0) return ATTUNE_OK;
    int code = prepare_judge(job, judged(job), &weights, err);
    if (code != ATTUNE_OK) return code;
    double from = job_now(), work = phases_unit_work(job);
    job->merged_seconds = 0;
    code = run_rows(job, &weights, n, err);
    if (code != ATTUNE_OK) return code;
    if (job->merge) job->merging = job->merged_seconds;
    measure(job, 0, work, job_now() - from - job->merged_seconds);
    job->work_done += work;
    job->pieces_done++;
    job->unit += n;
    return ATTUNE_OK;
}

/* The candidate as it will be served, to answer with: merged whole where memory allows, else beside the base. */
static int prepare_answers(attune_job *job, struct weights *weights, attune_error *err) {
    const struct lora *lora = job->trainer->lora;
    enum merge_mode mode = settings_judged(&job->plan.settings);
    trainer_release(job->trainer);
    if (mode != MERGE_NONE && !job->merged &&
        merge_bytes(job->model, lora->config.targets, mode) <= job->memory.drift_room) {
        int code = merge_create(job->model, lora, mode, job->pool, NULL, &job->merged, err);
        if (code != ATTUNE_OK) return code;
    }
    *weights = job->merged ? (struct weights){job->model, merge_layers(job->merged), NULL}
                           : (struct weights){job->model, job->model->layers, lora->pairs};
    return ATTUNE_OK;
}

/* Tokens one by one take their own time: the pace of judging is not measured by them. */
static int decode_unit(attune_job *job, attune_error *err) {
    struct weights weights;
    double work = phases_unit_work(job);
    int code = prepare_answers(job, &weights, err);
    if (code != ATTUNE_OK) return code;
    code = job->phases[job->phase].kind == PHASE_ANSWERS
               ? trial_answer(&job->trial, job->unit, &weights, job->pool, err)
               : trial_canary(&job->trial, job->unit, &job->plan, &weights, job->pool, err);
    if (code != ATTUNE_OK) return code;
    job->work_done += work;
    job->pieces_done++;
    job->unit++;
    return ATTUNE_OK;
}

/* What the rows that judge say: of the candidate, or of the folds' trainings. */
static int judge(attune_job *job, struct gate_verdict *verdict, struct criteria *criteria, attune_error *err) {
    size_t n = job->plan.n_judge, *tokens = malloc((n + 1) * sizeof *tokens);
    if (!tokens) return error_set_memory(err, "the gate", n * sizeof *tokens);
    for (size_t i = 0; i < n; i++) tokens[i] = job->plan.examples.items[job->plan.judge[i]].n_supervised;
    gate_judge(job->before, job->after, tokens, n, verdict);
    criteria->n = 0;
    criteria_held_out(criteria, verdict, n);
    if (job->opponent) criteria_base(criteria, job->trial.base, job->after, tokens, n);
    free(tokens);
    return ATTUNE_OK;
}

/* And then what the trial has found, where it was worth one. */
static void judge_trial(const attune_job *job, struct criteria *criteria) {
    const struct settings *s = &job->plan.settings;
    const struct gate_trial *t = &job->trial;
    if (criteria_failed(criteria)) return;
    if (t->reference.n) criteria_reference(criteria, &t->drift, s->reference_limit, s->reference_kl_limit);
    criteria_degenerate(criteria, t->answers_degenerate, REFERENCE_ANSWERED);
    if (t->canaries.n) criteria_canaries(criteria, t->produced, t->canaries.spans);
    if (job->plan.n_pairs) criteria_preferences(criteria, t->pairs_before, t->pairs_after, job->plan.n_pairs);
}

/* A verdict that stands only while every criterion holds. */
static void decide(struct gate_verdict *verdict, const struct criteria *criteria) {
    const struct store_criterion *failed = criteria_failed(criteria);
    if (!failed || !verdict->publish) return;
    verdict->publish = 0;
    snprintf(verdict->reason, sizeof verdict->reason, "held-out loss fell by %.3f, but %s is %.4g against %.4g: %.150s",
             verdict->before - verdict->after, failed->name, failed->figure, failed->threshold, failed->detail);
}

static void add_reason(struct store_run *run, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add_reason(struct store_run *run, const char *format, ...) {
    size_t n = strlen(run->reason);
    va_list args;
    va_start(args, format);
    vsnprintf(run->reason + n, sizeof run->reason - n, format, args);
    va_end(args);
}

static void fill_run(attune_job *job, const struct gate_verdict *verdict) {
    struct store_run *run = &job->plan.row;
    size_t from, to;
    end_run(job);
    run->loss_before = verdict->before;
    run->loss_after = verdict->after;
    run->loss_interval = verdict->interval;
    snprintf(run->reason, sizeof run->reason, "%.180s", verdict->reason);
    looks_part(&job->looks, job->looks.best, plan_steps(&job->plan, job->plan.n_train), &from, &to);
    if (verdict->publish && job->looks.best + 1 < job->looks.n)
        add_reason(run, "; as it was after %zu of %lld steps, at its best", to, (long long)run->steps);
    if (job->dropped > 0)
        add_reason(run, "; %zu step%s not finite and left out", job->dropped, job->dropped == 1 ? " was" : "s were");
}

/* The end: publish or refuse, then the checkpoint goes. */
static int gate_unit(attune_job *job, attune_error *err) {
    struct gate_verdict verdict;
    struct criteria criteria;
    release_judge(job);
    trainer_release(job->trainer);
    int code = judge(job, &verdict, &criteria, err);
    if (code != ATTUNE_OK) return code;
    judge_trial(job, &criteria);
    decide(&verdict, &criteria);
    if (verdict.publish && lora_check_finite(job->trainer->lora, job->model, NULL, NULL) != ATTUNE_OK) {
        verdict.publish = 0;
        snprintf(verdict.reason, sizeof verdict.reason, "the adapter holds values that are not finite");
    }
    fill_run(job, &verdict);
    if (verdict.publish) {
        /* the figures first: should the process die behind CURRENT, the run's row lacks its state alone */
        code = store_run_judged(job->store, &job->plan.row, criteria.items, criteria.n, err);
        if (code != ATTUNE_OK) return code;
        code = publish_adapter(job->home, job->store, job->model, job->trainer->lora, job->parent_sha256,
                               &job->plan.row, err);
    } else {
        snprintf(job->plan.row.state, sizeof job->plan.row.state, "refused");
        code = store_run_judged(job->store, &job->plan.row, criteria.items, criteria.n, err);
    }
    if (code != ATTUNE_OK) return code;
    fault_point("job.done.before");
    unlink(job->checkpoint);
    job->report.published = verdict.publish;
    job->report.finished = 1;
    job->report.adapter = job->plan.row.adapter;
    job->unit = 1;
    return ATTUNE_OK;
}

/* A candidate that would be refused by what the judging rows say is neither trained nor tried. */
static int doomed(attune_job *job) {
    struct gate_verdict verdict;
    struct criteria criteria;
    return judge(job, &verdict, &criteria, NULL) == ATTUNE_OK && criteria_failed(&criteria);
}

/* The best look, and what comes behind the last one. */
static int end_looks(attune_job *job, int next) {
    const struct looks *looks = &job->looks;
    memcpy(job->after, looks->nll + looks->best * looks->rows, looks->rows * sizeof *job->after);
    trainer_let_go(job->trainer);
    if (!doomed(job)) return next;
    if (job->plan.folds) trainer_reset(job->trainer, job->start);
    return job->n_phases - 1;
}

/* The candidate was judged: it goes on from there, or is as it was at the look before. */
static int after_look(attune_job *job, size_t look) {
    int better = looks_take(&job->looks, look), last = look + 1 == job->looks.n;
    if (better && !last) return job->phase + 1;
    if (!better) trainer_restore(job->trainer);
    return end_looks(job, job->phase + 1 + 2 * (int)(job->looks.n - 1 - look));
}

/* All folds were judged: how far the last training goes, and so what it takes, is known now. */
static int after_folds(attune_job *job) {
    looks_choose(&job->looks);
    job->phase++;
    predict_phase(job);
    return end_looks(job, job->phase);
}

static int next_phase(attune_job *job) {
    const struct phase *phase = &job->phases[job->phase];
    if (phase->kind == PHASE_AFTER) return after_look(job, phase->look);
    if (phase->kind == PHASE_FOLD_JUDGE && phase[1].kind == PHASE_TRAIN) return after_folds(job);
    return job->phase + 1;
}

int phases_unit(attune_job *job, attune_error *err) {
    const struct phase *phase = &job->phases[job->phase];
    size_t before = job->unit, units = phase_units(job);
    int code = phase->kind == PHASE_GATE ? gate_unit(job, err)
               : is_training(phase->kind) ? train_unit(job, err)
               : is_decoding(phase->kind) ? decode_unit(job, err)
                                          : judge_unit(job, err);
    if (code != ATTUNE_OK) return code;
    job->units_done += job->unit - before;
    if (phase->kind == PHASE_GATE) {
        job->phase = job->n_phases;
        return ATTUNE_DONE;
    }
    if (job->unit < units) return ATTUNE_CONTINUE;
    release_judge(job);
    job->phase = next_phase(job);
    job->unit = 0;
    enter_phase(job);
    return ATTUNE_CONTINUE;
}

/* ---- the checkpoint's state: where in the plan, and what the judges have said ---- */

static int put_in_place(void *user, attune_error *err) { return file_writer_publish(user, err); }

/* In place only while the run stands: forgetting removes the checkpoint, and none may come after it. */
int phases_checkpoint(attune_job *job, attune_error *err) {
    struct file_writer file = {0};
    size_t n = job->plan.n_judge;
    json_t *state = json_pack("{s:s, s:i, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:o, s:o}", "run", job->plan.row.id, "phase",
                              job->phase, "unit", (json_int_t)job->unit, "units", (json_int_t)job->units_done, "dropped",
                              (json_int_t)job->dropped, "dropped_row", (json_int_t)job->dropped_row, "best",
                              (json_int_t)job->looks.best, "looks", trial_reals(job->looks.nll, job->looks.n * n),
                              "before", trial_reals(job->before, n), "after", trial_reals(job->after, n), "trial",
                              trial_state(&job->trial, &job->plan));
    char *text = state ? json_dumps(state, JSON_COMPACT | JSON_REAL_PRECISION(17)) : NULL;
    int code = text ? checkpoint_prepare(job->trainer, text, job->checkpoint, &file, err)
                    : error_set_memory(err, "a checkpoint's state", n * 50);
    if (code == ATTUNE_OK)
        code = store_while_unfinished(job->store, job->plan.row.number, put_in_place, &file, err);
    file_writer_abandon(&file);
    free(text);
    json_decref(state);
    job->checkpointed = job_now();
    if (code == ATTUNE_OK) job->units_kept = job->units_done;
    return code;
}

static int read_state(attune_job *job, const json_t *state) {
    size_t n = job->plan.n_judge;
    json_int_t phase = json_integer_value(json_object_get(state, "phase"));
    json_int_t unit = json_integer_value(json_object_get(state, "unit"));
    json_int_t units = json_integer_value(json_object_get(state, "units"));
    json_int_t dropped = json_integer_value(json_object_get(state, "dropped"));
    json_int_t dropped_row = json_integer_value(json_object_get(state, "dropped_row"));
    if (phase < 0 || phase >= job->n_phases || unit < 0 || units < 0 || dropped_row < 0 || dropped < dropped_row)
        return 0;
    json_int_t best = json_integer_value(json_object_get(state, "best"));
    if (best < 0 || best >= (json_int_t)job->looks.n) return 0;
    if (!trial_read_reals(json_object_get(state, "looks"), job->looks.nll, job->looks.n * n)) return 0;
    job->looks.best = (size_t)best;
    if (!trial_read_reals(json_object_get(state, "before"), job->before, n)) return 0;
    if (!trial_read_reals(json_object_get(state, "after"), job->after, n)) return 0;
    if (!trial_restore(&job->trial, &job->plan, json_object_get(state, "trial"))) return 0;
    job->phase = (int)phase;
    enter_phase(job);
    if (job->phases[phase].kind == PHASE_GATE ? unit != 0 : (size_t)unit >= phase_units(job)) return 0;
    job->unit = (size_t)unit;
    job->units_done = job->units_kept = (size_t)units;
    job->dropped = (size_t)dropped;
    job->dropped_row = (size_t)dropped_row;
    job->work_done = work_until(job, job->unit, &job->pieces_done);
    return 1;
}

static int read_checkpoint(attune_job *job, int *found, attune_error *err) {
    char *text = NULL;
    int code = checkpoint_read(job->checkpoint, NULL, &text, err);
    json_t *state = text ? json_loads(text, 0, NULL) : NULL;
    const char *run = json_string_value(json_object_get(state, "run"));
    if (code == ATTUNE_OK && !run)
        code = error_set(err, ATTUNE_ERROR_FORMAT, job->checkpoint, "the checkpoint's state names no run");
    if (code == ATTUNE_OK && strcmp(run, job->plan.row.id) == 0) {
        free(text);
        text = NULL;
        code = checkpoint_read(job->checkpoint, job->trainer, &text, err);
        if (code == ATTUNE_OK && !read_state(job, state))
            code = error_set(err, ATTUNE_ERROR_FORMAT, job->checkpoint, "the checkpoint's state does not fit its run");
        *found = code == ATTUNE_OK;
    }
    json_decref(state);
    free(text);
    return code;
}

int phases_resume(attune_job *job, int *found, attune_error *err) {
    attune_error why = {0};
    *found = 0;
    if (access(job->checkpoint, F_OK) != 0) return ATTUNE_OK;
    int code = read_checkpoint(job, found, &why);
    if (code == ATTUNE_OK) return code;
    if (code == ATTUNE_ERROR_MEMORY) {
        if (err) *err = why;
        return code;
    }
    /* Another kernel table or another attune would end in other bytes, neither one's nor the other's. */
    unlink(job->checkpoint);
    trainer_reset(job->trainer, job->start);
    memset(job->before, 0, job->plan.n_judge * sizeof *job->before);
    memset(job->after, 0, job->plan.n_judge * sizeof *job->after);
    trial_reset(&job->trial, &job->plan);
    looks_reset(&job->looks);
    job->phase = 0;
    job->unit = job->units_done = job->units_kept = 0;
    job->dropped = job->dropped_row = 0;
    enter_phase(job);
    snprintf(job->report.reason, sizeof job->report.reason, "begun again, as checkpoint.gguf was of no use: %.180s",
             why.message);
    return phases_record(job, job->report.reason, err);
}
