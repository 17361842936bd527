/* The public job: opening, budget and power between units, the report. */
#include "core/base/options.h"
#include "job/governed.h"
#include "job/rollback.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum { SAMPLE_TOKENS = 256 };
static const unsigned long long MIB = 1 << 20;
static const double GUARD = 1.15;
/* Of the store: in slices, so that a cancel need not wait; up to this share of a time budget. */
static const double MAINTAIN_SECONDS = 0.5, MAINTAIN_SHARE = 0.25;
/* Of a time budget, at most: for the drift of an adapter that an earlier call published; kept free by a plan for that
 * of its own. */
static const double LOOK_BACK_SHARE = 0.25, DRIFT_SHARE = 0.1;

/* ---- adapters that a plan starts from or has to beat ---- */

static int read_adapter(const attune_job *job, int number, struct lora **out, char sha256[65], attune_error *err) {
    attune_adapter_info info;
    *sha256 = 0;
    if (number == 0) return ATTUNE_OK;
    ATTUNE_INIT(info);
    int code = store_adapter_get(job->store, number, &info, err);
    if (code == ATTUNE_OK) code = home_adapter_read(job->home, job->model, number, info.sha256, out, err);
    if (code == ATTUNE_OK) memcpy(sha256, info.sha256, sizeof info.sha256);
    return code;
}

/* ---- memory ---- */

static uint64_t ceiling_of(const attune_job_options *options, const struct settings *settings) {
    return options->memory_bytes ? options->memory_bytes : settings->memory;
}

static int share_memory(attune_job *job, const struct settings *settings, int parent, attune_error *err) {
    struct memory_needs needs = {.model = job->model, .settings = settings,
                                 .opponent = job->opponent ? &job->opponent->config : NULL,
                                 .parent_apart = parent && parent != job->active,
                                 .threads = pool_threads(job->pool)};
    int code = memory_count_rows(job->store, &needs.rows, err);
    if (code == ATTUNE_OK) memory_plan_make(&needs, ceiling_of(&job->options, &job->settings), &job->memory);
    return code;
}

/* Before anything of the run's size is taken. */
static int plan_memory(attune_job *job, const struct settings *settings, int parent, attune_error *err) {
    uint64_t ceiling = ceiling_of(&job->options, &job->settings);
    int code = share_memory(job, settings, parent, err);
    if (code != ATTUNE_OK) return code;
    job->report.planned_rss_bytes = job->memory.peak;
    job->report.layers = (int64_t)job->model->L;
    job->report.layers_kept = (int64_t)job->memory.kept;
    if (job->memory.peak <= ceiling) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_ARGUMENT, "memory",
                     "this run takes at least %llu MiB, %llu are allowed; raise --memory%s",
                     (unsigned long long)(job->memory.least + MIB - 1) / MIB, (unsigned long long)ceiling / MIB,
                     job->plan.row.number ? ": it was planned so" : ", or lower micro_tokens and max_tokens in "
                                                                    "attune.conf");
}

/* ---- opening ---- */

static int check_options(const attune_job_options *o, attune_error *err) {
    if (!(o->time_s >= 0) || !isfinite(o->time_s) || !(o->energy_j >= 0) || !isfinite(o->energy_j) ||
        o->max_examples < 0 ||
        (o->from != ATTUNE_FROM_ACTIVE && o->from != ATTUNE_FROM_FRESH) || o->precision < ATTUNE_PRECISION_SETTINGS ||
        o->precision > ATTUNE_PRECISION_F32)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL,
                         "impossible job options: time, energy and examples are at least 0, from is active or fresh, "
                         "precision is as the settings say, auto or f32");
    return ATTUNE_OK;
}

/* What a call says about a new run goes before what attune.conf says. */
static int read_settings(const char *home, const attune_job_options *o, struct settings *out, attune_error *err) {
    int code = settings_read(home, out, err);
    if (code != ATTUNE_OK) return code;
    if (o->seed) out->train.seed = o->seed;
    if (o->precision) out->train.precision = o->precision == ATTUNE_PRECISION_F32 ? PRECISION_F32 : PRECISION_AUTO;
    return ATTUNE_OK;
}

/* Texts are needed: an encrypted store without its key is refused here. */
static int open_store(attune_job *job, attune_error *err) {
    attune_store_options o;
    ATTUNE_INIT(o);
    o.key = job->options.key;
    o.key_file = job->options.key_file;
    job->options.key = NULL; /* the caller's, for this call alone */
    job->options.key_file = NULL;
    return attune_store_open(job->home, &o, &job->store, err);
}

static int read_active(attune_job *job, attune_error *err) {
    char sha256[65];
    lora_destroy(job->opponent);
    job->opponent = NULL;
    int code = home_reconcile(job->home, job->store, err);
    if (code == ATTUNE_OK) code = store_current_read(job->home, &job->active, NULL, NULL, err);
    return code == ATTUNE_OK ? read_adapter(job, job->active, &job->opponent, sha256, err) : code;
}

/* What the call says goes before the settings. */
static int create_pool(attune_job *job, attune_error *err) {
    int threads = job->options.threads ? job->options.threads : job->settings.policy.threads;
    return pool_create(threads, &job->pool, err);
}

int attune_job_open(const char *home, const attune_job_options *options, attune_job **out, attune_error *err) {
    attune_job *job = calloc(1, sizeof *job);
    if (!job) return error_set_memory(err, "a job", sizeof *job);
    job->lock = -1;
    job->opened = job->checkpointed = job_now();
    int code = options_read(&job->options, sizeof job->options, options, "attune_job_options", err);
    if (code == ATTUNE_OK) code = check_options(&job->options, err);
    if (code == ATTUNE_OK) code = home_resolve(home, job->home, err);
    if (code == ATTUNE_OK) code = home_file(job->home, "checkpoint.gguf", job->checkpoint, err);
    if (code == ATTUNE_OK) code = home_lock(job->home, &job->lock, err);
    if (code == ATTUNE_OK) code = read_settings(job->home, &job->options, &job->settings, err);
    if (code == ATTUNE_OK) code = kernels_select(err);
    if (code == ATTUNE_OK) code = open_store(job, err);
    if (code == ATTUNE_OK) code = create_pool(job, err);
    if (code == ATTUNE_OK) code = governed_open(job, err);
    if (code == ATTUNE_OK) code = home_model(job->home, &job->settings, FILE_MAP, &job->model, err);
    if (code == ATTUNE_OK && !job->model->chat) {
        if (err) *err = job->model->chat_error;
        code = job->model->chat_error.code;
    }
    if (code == ATTUNE_OK) code = read_active(job, err);
    if (code != ATTUNE_OK) {
        attune_job_close(job);
        return code;
    }
    /* Hashing, writing and syncing at the end; merging; both measured at under 1 s for 135 M parameters. */
    job->ending = 0.3 + 2e-9 * (double)model_parameters(job->model);
    job->merging = 5e-9 * (double)model_parameters(job->model);
    snprintf(job->report.state, sizeof job->report.state, "unfinished");
    job->report.loss_before = job->report.loss_after = job->report.loss_interval = NAN;
    *out = job;
    return ATTUNE_OK;
}

void attune_job_close(attune_job *job) {
    if (!job) return;
    governed_close(job);
    drift_destroy(job->drift);
    phases_free(job);
    lora_destroy(job->opponent);
    model_close(job->model);
    attune_store_close(job->store);
    pool_destroy(job->pool);
    home_unlock(job->lock);
    free(job);
}

void attune_job_cancel(attune_job *job) {
    atomic_store(&job->cancelled, 1);
    pool_cancel(job->pool);
}

/* ---- planning ---- */

static int waiting(attune_job *job, const char *reason) {
    snprintf(job->report.state, sizeof job->report.state, "waiting");
    snprintf(job->report.reason, sizeof job->report.reason, "%s", reason);
    return ATTUNE_PAUSED;
}

/* An encrypted store has no token cache: that would be its texts, as good as in the clear. */
static struct row_source row_source_of(const attune_job *job) {
    return (struct row_source){job->store, job->model,
                               store_encryption_get(job->store) == STORE_PLAIN ? job->home : NULL};
}

/* Why a run was not begun, or planning it cancelled. */
static const char *stopped_early(attune_job *job) {
    return atomic_load(&job->cancelled) ? "stopped on request before the run began" : governed_cancel_reason(job);
}

/* What recording has put off, examples above all: the first slice sees to some whatever the budget. A scrub that
 * a reader stands in the way of is left for later. */
static int maintain(attune_job *job, attune_error *err) {
    for (;;) {
        double from = job_now();
        int code = store_maintain(job->store, MAINTAIN_SECONDS, err);
        if (code != ATTUNE_CONTINUE) return code;
        if (job_now() - from < 0.5 * MAINTAIN_SECONDS || governed_stopped(job)) return ATTUNE_OK;
        double spent = job_now() - job->opened;
        if (spent > MAINTAIN_SHARE * (spent + governed_seconds_left(job))) return ATTUNE_OK;
    }
}

/* Rows that a plan would see: none with consent, or nothing new, is said before anything is measured. */
static int check_rows(attune_job *job, attune_error *err) {
    int64_t interactions, consented, feedback, fresh;
    char reason[256];
    int code = store_counts(job->store, &interactions, &consented, &feedback, &fresh, err);
    if (code != ATTUNE_OK) return code;
    if (interactions == 0) return waiting(job, "nothing is recorded yet");
    if (consented == 0)
        return waiting(job, "no recorded interaction has consent to train; see init --consent and import --consent");
    if (fresh == 0 && job->options.from == ATTUNE_FROM_ACTIVE) {
        snprintf(reason, sizeof reason, "nothing new since adapter %d was trained", job->active);
        return waiting(job, job->active ? reason : "nothing new since the last run");
    }
    return ATTUNE_OK;
}

/* The adapter to start from: the active one is there already. */
static int read_start(attune_job *job, int parent, attune_error *err) {
    attune_adapter_info info;
    if (parent == 0 || parent != job->active) return read_adapter(job, parent, &job->start, job->parent_sha256, err);
    ATTUNE_INIT(info);
    int code = store_adapter_get(job->store, parent, &info, err);
    if (code != ATTUNE_OK) return code;
    memcpy(job->parent_sha256, info.sha256, sizeof info.sha256);
    job->start = job->opponent;
    return ATTUNE_OK;
}

static int create_trainer(attune_job *job, const struct settings *settings, int parent, attune_error *err) {
    int code = plan_memory(job, settings, parent, err);
    if (code == ATTUNE_OK) code = read_start(job, parent, err);
    if (code != ATTUNE_OK) return code;
    code = trainer_create(job->model, job->pool, &settings->train, job->start, &job->trainer, err);
    if (code == ATTUNE_OK) job->trainer->activation_bytes = job->memory.train_bytes;
    return code;
}

/* How fast is this machine now? A forward to warm up, one to time, one step to time; then all is as before. */
static int measure(attune_job *job, attune_error *err) {
    struct example_set sample = {0};
    struct evaluator evaluator = {0};
    struct weights weights = {job->model, job->model->layers, NULL};
    size_t tokens = 0, *rows = NULL;
    double *nll = NULL, loss, from = 0;
    struct row_source source = row_source_of(job);
    int code = plan_sample(&source, &job->settings, SAMPLE_TOKENS, &sample, err);
    if (code != ATTUNE_OK || sample.n == 0) goto out;
    rows = malloc(sample.n * sizeof *rows);
    nll = malloc(sample.n * sizeof *nll);
    if (!rows || !nll) {
        code = error_set_memory(err, "a measurement", sample.n * sizeof *nll);
        goto out;
    }
    for (size_t i = 0; i < sample.n; i++) rows[i] = i;
    struct evaluator_shape shape = memory_evaluator_shape(&job->trainer->config, MERGE_NONE, NULL);
    code = evaluator_create(job->model, job->pool, &shape, job->memory.judge_bytes, &evaluator, err);
    for (int i = 0; i < 2 && code == ATTUNE_OK; i++) {
        from = job_now();
        code = evaluator_run(&evaluator, &weights, NULL, &sample, rows, sample.n, nll, err);
    }
    double evaluated = job_now() - from;
    if (code != ATTUNE_OK) goto out;
    evaluator_free(&evaluator); /* not beside a training pass: the peak is of one of them */
    from = job_now();
    code = trainer_step(job->trainer, &sample, rows, sample.n, 0.0f, &loss, &tokens, err);
    if (code != ATTUNE_OK) goto out;
    struct work judging = work_of_judging(job->model), training = work_of_training(job->model);
    size_t micro_tokens = job->settings.train.micro_tokens;
    pace_assume(&job->judge_pace, work_of_rows(&judging, &sample, rows, sample.n, micro_tokens) / evaluated);
    pace_assume(&job->train_pace,
                work_of_rows(&training, &sample, rows, sample.n, micro_tokens) / (job_now() - from));
    trainer_reset(job->trainer, job->start);
out:
    trainer_release(job->trainer);
    evaluator_free(&evaluator);
    example_set_free(&sample);
    free(rows);
    free(nll);
    return code;
}

/* An unfinished run that can no longer be finished as planned: its rows were deleted, or another adapter is active. */
static int abandon(attune_job *job, struct store_run *run, const char *why, attune_error *err) {
    snprintf(run->state, sizeof run->state, "failed");
    snprintf(run->reason, sizeof run->reason, "%s", why);
    int code = store_run_update(job->store, run, err);
    if (code == ATTUNE_ERROR_STATE) code = ATTUNE_OK; /* it has failed already */
    if (code == ATTUNE_OK) unlink(job->checkpoint);
    plan_free(&job->plan);
    return code;
}

static int already_swapped(void *user, attune_error *err) {
    (void)user, (void)err;
    return ATTUNE_OK;
}

/* Until this call has measured: as earlier ones found it. */
static void assume_cost(attune_job *job) {
    double train = governed_pace(job, 1), judge = governed_pace(job, 0);
    if (train > 0) pace_assume(&job->train_pace, train);
    if (judge > 0) pace_assume(&job->judge_pace, judge);
}

static int make_plan(attune_job *job, attune_error *err) {
    char reason[256];
    int parent = job->options.from == ATTUNE_FROM_FRESH ? 0 : job->active;
    struct settings settings = job->settings;
    struct row_source source = row_source_of(job);
    int code = maintain(job, err);
    if (code == ATTUNE_OK) code = check_rows(job, err);
    if (code != ATTUNE_OK) return code;
    /* Going on from an adapter keeps its shape, whatever the settings say by now. */
    if (parent) settings.train.lora = job->opponent->config;
    code = create_trainer(job, &settings, parent, err);
    assume_cost(job);
    int limited = governed_limited(job);
    if (code == ATTUNE_OK && limited && !governed_pace_trusted(job)) code = measure(job, err);
    if (code == ATTUNE_OK && governed_stopped(job)) code = ATTUNE_ERROR_CANCELLED;
    if (code != ATTUNE_OK) return code;
    double left = governed_seconds_left(job);
    double train_rate = pace_per_second(&job->train_pace);
    double merges = settings_judged(&settings) == MERGE_NONE ? 0 : FOLDS_MAX;
    struct budget budget = {.training = work_of_training(job->model), .judging = work_of_judging(job->model),
                            .train_rate = train_rate / GUARD,
                            .evaluate_rate = pace_per_second(&job->judge_pace) / GUARD,
                            .overhead = job->ending + merges * job->merging + governed_checkpoint_seconds(job),
                            .max_examples = job->options.max_examples};
    if (budget.evaluate_rate > 0) budget.overhead += trial_work_expected(&budget.judging) / budget.evaluate_rate;
    if (budget.evaluate_rate > 0)
        budget.overhead += fmin(drift_work_expected(&budget.judging) / budget.evaluate_rate,
                                DRIFT_SHARE * (job_now() - job->opened + left));
    if (limited && train_rate > 0) budget.seconds = fmax(left, 0.1);
    code = plan_make(&source, &settings, parent, job->parent_sha256, job->active, &budget, &job->plan, reason, err);
    return code == ATTUNE_PAUSED ? waiting(job, reason) : code;
}

/* It died between CURRENT and the store: only the store is behind. */
static int finish(attune_job *job, const struct store_run *run, attune_error *err) {
    job->plan.row = *run;
    job->plan.row.adapter = job->active;
    snprintf(job->plan.row.state, sizeof job->plan.row.state, "published");
    int code = store_publish(job->store, &job->plan.row, job->active, already_swapped, NULL, err);
    if (code != ATTUNE_OK) return code;
    unlink(job->checkpoint);
    job->report.published = job->report.finished = 1;
    job->report.adapter = job->active;
    return ATTUNE_DONE;
}

static int find_plan(attune_job *job, int *found, attune_error *err) {
    struct store_run run;
    struct row_source source = row_source_of(job);
    attune_adapter_info active;
    *found = 0;
    int code = store_run_last(job->store, "unfinished", &run, err);
    if (code == ATTUNE_ERROR_NOT_FOUND) {
        unlink(job->checkpoint); /* of a run that has ended: the process died in between */
        return ATTUNE_OK;
    }
    if (code != ATTUNE_OK) return code;
    ATTUNE_INIT(active);
    if (job->active > 0 && store_adapter_get(job->store, job->active, &active, NULL) == ATTUNE_OK &&
        strcmp(active.run, run.id) == 0 && strcmp(active.origin, "trained") == 0) {
        *found = 1;
        return finish(job, &run, err);
    }
    code = plan_load(&source, &run, &job->plan, err);
    if (code == ATTUNE_ERROR_NOT_FOUND) return abandon(job, &run, "rows of its plan are gone", err);
    if (code == ATTUNE_ERROR_FORMAT) return abandon(job, &run, "its plan cannot be read", err);
    if (code != ATTUNE_OK) return code;
    if (strcmp(run.base_sha256, job->model->sha256) != 0)
        return abandon(job, &run, "it was planned for another base model", err);
    if (job->plan.opponent != job->active) return abandon(job, &run, "another adapter was made active meanwhile", err);
    *found = 1;
    return create_trainer(job, &job->plan.settings, run.parent, err);
}

/* As fast as the run's row says that it was, until this call has measured. */
static void assume_pace(attune_job *job) {
    const struct plan *plan = &job->plan;
    assume_cost(job);
    if (governed_pace_trusted(job)) return;
    double tokens = 0, work = work_of_rows(&job->training, &plan->examples, plan->train, plan->n_train,
                                           plan->settings.train.micro_tokens);
    for (size_t i = 0; i < plan->n_train; i++) tokens += (double)plan->examples.items[plan->train[i]].n;
    if (plan->row.tokens_per_s > 0 && tokens > 0) pace_assume(&job->train_pace, plan->row.tokens_per_s * work / tokens);
}

static int begin(attune_job *job, attune_error *err) {
    int found = 0, resumed = 0;
    /* again: an app may have forgotten something since this job was opened */
    int code = read_active(job, err);
    if (code == ATTUNE_OK) code = find_plan(job, &found, err);
    if (code == ATTUNE_OK && !found) code = make_plan(job, err);
    if (code == ATTUNE_OK) code = phases_prepare(job, err);
    if (code == ATTUNE_OK && found) code = phases_resume(job, &resumed, err);
    job->planned = code == ATTUNE_OK || code == ATTUNE_DONE;
    job->units_before = job->units_done;
    job->paused = 0;
    if (found && job->planned) assume_pace(job);
    if (!job->planned) phases_free(job);
    return code;
}

/* ---- stepping ---- */

static void count_units(const attune_job *job, attune_progress *progress) {
    progress->done = (int64_t)(job->units_done + (job->drift ? drift_units_done(job->drift) : 0));
    progress->total = (int64_t)(phases_units(job) + (job->drift ? drift_units(job->drift) : 0));
}

static double seconds_left(const attune_job *job) {
    if (!job->drift) return phases_seconds_left(job);
    struct work judging = work_of_judging(job->model);
    return phases_judging_seconds(job, drift_work_left(job->drift, &judging));
}

/* Of the steps of this call; before the first, as the run's row has it. */
static double tokens_per_second(const attune_job *job) {
    return job->train_seconds > 0 ? (double)job->tokens / job->train_seconds : fmax(job->plan.row.tokens_per_s, 0);
}

static void tell(attune_job *job) {
    if (!job->options.on_progress) return;
    char phase[32];
    attune_progress progress;
    ATTUNE_INIT(progress);
    phases_name(job, phase);
    progress.phase = job->drift ? "drift" : phase;
    count_units(job, &progress);
    progress.steps = job->plan.row.steps;
    if (job->phase < job->n_phases && job->phases[job->phase].kind == PHASE_TRAIN) progress.step = phases_steps_done(job);
    progress.loss = job->loss;
    progress.tokens_per_s = tokens_per_second(job);
    progress.seconds_left = seconds_left(job);
    job->options.on_progress(&progress, job->options.user);
}

/* Why the next unit may not begin, or NULL. */
static const char *stop_reason(attune_job *job) {
    const char *why = atomic_load(&job->cancelled) ? "stopped on request" : governed_reason(job);
    if (why) return why;
    if (!governed_may_write(job, 1)) return "the limit of bytes written in a night is reached";
    return governed_budget_reason(job, phases_unit_seconds(job), job->units_done == job->units_before);
}

static int keep(attune_job *job, attune_error *err) {
    double from = job_now();
    int code = phases_checkpoint(job, err);
    if (code == ATTUNE_OK) governed_checkpointed(job, job_now() - from);
    return code;
}

/* What is new is kept, and the reason told; asked again, there is nothing new. */
static int pause_job(attune_job *job, const char *why, attune_error *err) {
    int code = ATTUNE_OK;
    pool_cancel_clear(job->pool);
    if (job->units_done != job->units_kept) code = keep(job, err);
    if (code == ATTUNE_OK && (!job->paused || strcmp(job->plan.row.reason, why) != 0))
        code = phases_record(job, why, err);
    if (code != ATTUNE_OK) return code;
    job->paused = 1;
    snprintf(job->report.reason, sizeof job->report.reason, "%s; what is done is kept, call again to go on", why);
    return ATTUNE_PAUSED;
}

/* ---- the drift of merging, once there is an adapter ---- */

/* job->plan is that of the run that made it. What memory does not allow is not measured. */
static int begin_drift(attune_job *job, const struct lora *lora, int number, attune_error *err) {
    struct drift_source source = {.store = job->store, .model = job->model, .pool = job->pool, .home = job->home,
                                  .settings = &job->settings, .lora = lora, .adapter = number,
                                  .adapter_sha256 = job->drift_sha256, .plan = &job->plan,
                                  .bytes = job->memory.drift_bytes, .room = job->memory.drift_room};
    attune_adapter_info info;
    ATTUNE_INIT(info);
    int code = store_adapter_get(job->store, number, &info, err);
    if (code != ATTUNE_OK) return code;
    memcpy(job->drift_sha256, info.sha256, sizeof info.sha256);
    source.shape = memory_drift_shape(&job->plan.settings.train, job->opponent ? &job->opponent->config : NULL);
    return source.bytes > 0 ? drift_create(&source, &job->drift, err) : ATTUNE_OK;
}

/* The last run published the active adapter, and what merging that costs was not measured: its plan is read again.
 * Not beside an unfinished run, which comes first. */
static int look_back(attune_job *job, attune_error *err) {
    struct store_run run;
    struct row_source source = row_source_of(job);
    int known = 0;
    job->looked_back = 1;
    int code = read_active(job, err);
    if (code != ATTUNE_OK || !job->opponent || store_run_last(job->store, "unfinished", &run, NULL) == ATTUNE_OK)
        return code;
    if (store_run_last(job->store, "published", &run, NULL) != ATTUNE_OK || run.adapter != job->active ||
        strcmp(run.base_sha256, job->model->sha256) != 0)
        return ATTUNE_OK;
    code = drift_known(job->store, job->active, &known, err);
    if (code != ATTUNE_OK || known) return code;
    code = plan_load(&source, &run, &job->plan, err);
    if (code == ATTUNE_ERROR_NOT_FOUND || code == ATTUNE_ERROR_FORMAT) return ATTUNE_OK;
    if (code != ATTUNE_OK) return code;
    job->training = work_of_training(job->model);
    assume_pace(job);
    code = share_memory(job, &job->plan.settings, run.parent, err);
    if (job->memory.peak > ceiling_of(&job->options, &job->settings)) job->memory.drift_bytes = 0;
    if (code == ATTUNE_OK) code = begin_drift(job, job->opponent, job->active, err);
    if (!job->drift) plan_free(&job->plan);
    return code;
}

/* The next rows may be measured: nobody minds, and they end in time. */
static int may_measure(attune_job *job) {
    attune_adapter_info info;
    struct work judging = work_of_judging(job->model);
    double share = job->report.finished ? 1 : LOOK_BACK_SHARE;
    double seconds = phases_judging_seconds(job, drift_unit_work(job->drift, &judging)) + job->merging;
    int number = job->report.finished ? job->report.adapter : job->active;
    ATTUNE_INIT(info);
    if (atomic_load(&job->cancelled) || governed_reason(job)) return 0;
    if (store_adapter_get(job->store, number, &info, NULL) != ATTUNE_OK || strcmp(info.state, "revoked") == 0) return 0;
    double left = governed_seconds_left(job), spent = job_now() - job->opened;
    return !isfinite(left) || seconds * GUARD <= share * (spent + left) - spent;
}

/* Optional: what goes wrong here fails no run, and is said in its reason. */
static void note_failure(attune_job *job, const attune_error *why) {
    char *reason = job->plan.row.reason;
    size_t size = sizeof job->plan.row.reason, n = strlen(reason);
    snprintf(reason + n, size - n, "; what merging costs could not be measured: %s", why->message);
}

static int end_drift(attune_job *job, int code, attune_error *why) {
    if (code >= 0 || code == ATTUNE_ERROR_CANCELLED) code = drift_keep(job->drift, why);
    double left = governed_seconds_left(job);
    if (code == ATTUNE_OK && left > 0 && !governed_stopped(job))
        code = drift_prepare_serving(job->drift, isfinite(left) ? left : 0, why);
    if (code == ATTUNE_ERROR_CANCELLED) code = ATTUNE_OK; /* no time left, or stopped: as well without */
    if (code < 0 && code != ATTUNE_ERROR_STATE) note_failure(job, why);
    drift_destroy(job->drift);
    job->drift = NULL;
    if (job->report.finished) return ATTUNE_DONE;
    plan_free(&job->plan);
    return governed_stopped(job) ? waiting(job, stopped_early(job)) : ATTUNE_CONTINUE;
}

/* The flag is cleared before the reasons for it are looked at: one that comes in between is not lost. */
static int measure_drift(attune_job *job) {
    attune_error why = {0};
    pool_cancel_clear(job->pool);
    int may = may_measure(job);
    governed_work_begin(job, 0);
    int code = may ? drift_unit(job->drift, &why) : ATTUNE_DONE;
    if (code >= 0) tell(job);
    if (code != ATTUNE_CONTINUE) code = end_drift(job, code, &why);
    governed_work_end(job);
    return code;
}

/* A run has published: what merging costs is measured now, or by a later call. */
static int after_publishing(attune_job *job) {
    attune_error why;
    if (begin_drift(job, job->trainer->lora, job->report.adapter, &why) != ATTUNE_OK) note_failure(job, &why);
    return job->drift ? ATTUNE_CONTINUE : ATTUNE_DONE;
}

/* Since the last, so long; and before the bytes of a night leave room for one alone, which is the last then. */
static int keep_sometimes(attune_job *job, attune_error *err) {
    if (job_now() - job->checkpointed < job->settings.checkpoint_seconds) return ATTUNE_CONTINUE;
    if (!governed_may_write(job, 2)) return pause_job(job, "the limit of bytes written in a night is reached", err);
    int code = keep(job, err);
    return code == ATTUNE_OK ? ATTUNE_CONTINUE : code;
}

/* One unit, or the reason why there is none. */
static int work(attune_job *job, attune_error *err) {
    pool_cancel_clear(job->pool); /* before the reasons for it are looked at: none that comes later is lost */
    const char *why = stop_reason(job);
    if (why) return pause_job(job, why, err);
    governed_work_begin(job, phases_unit_seconds(job));
    int code = phases_unit(job, err);
    governed_work_end(job);
    if (code == ATTUNE_ERROR_CANCELLED) return pause_job(job, governed_cancel_reason(job), err);
    if (code < 0) return code;
    job->paused = 0;
    tell(job);
    if (code == ATTUNE_DONE && job->report.published) return after_publishing(job);
    return code == ATTUNE_CONTINUE ? keep_sometimes(job, err) : code;
}

/* The run was failed by forgetting: nothing that it has learned is kept, and the next step plans anew. */
static int lost(attune_job *job, attune_error *err) {
    struct store_run run;
    int code = store_run_last(job->store, NULL, &run, err);
    if (code != ATTUNE_OK) return code;
    const char *reason = run.number == job->plan.row.number && *run.reason ? run.reason : "rows of it were forgotten";
    phases_free(job);
    unlink(job->checkpoint);
    pool_cancel_clear(job->pool);
    job->planned = 0;
    job->tokens_recorded = job->tokens;
    job->seconds_recorded = job_now() - job->opened;
    snprintf(job->report.state, sizeof job->report.state, "failed");
    snprintf(job->report.reason, sizeof job->report.reason, "%.200s; call again to plan anew", reason);
    return ATTUNE_PAUSED;
}

/* An adapter whose answers turned out worse goes before anything starts from it. An unfinished run that has it as its
 * opponent is given up by find_plan. */
static int go_back(attune_job *job, attune_error *err) {
    struct rollback rollback;
    int code = job->settings.rollback ? read_active(job, err) : ATTUNE_DONE;
    if (code == ATTUNE_OK)
        code = rollback_look(job->home, job->store, job->model->sha256, job->active, &rollback, err);
    if (code == ATTUNE_DONE || (code == ATTUNE_OK && !rollback.wanted)) return ATTUNE_OK;
    if (code == ATTUNE_OK) code = rollback_act(job->home, job->store, job->model, &rollback, err);
    if (code != ATTUNE_OK) return code;
    job->report.rolled_back = rollback.from;
    return read_active(job, err);
}

static int start(attune_job *job, attune_error *err) {
    *job->report.reason = 0;
    pool_cancel_clear(job->pool);
    int back = go_back(job, err);
    if (back != ATTUNE_OK) return back;
    const char *forbidden = atomic_load(&job->cancelled) ? stopped_early(job) : governed_reason(job);
    if (!forbidden) forbidden = governed_start_reason(job);
    int code = forbidden ? waiting(job, forbidden) : job->looked_back ? ATTUNE_OK : look_back(job, err);
    if (code == ATTUNE_OK && !job->drift) code = begin(job, err);
    if (code == ATTUNE_ERROR_CANCELLED) return waiting(job, stopped_early(job));
    if (code == ATTUNE_OK) code = governed_begin_night(job, err);
    if (code != ATTUNE_OK) return code;
    snprintf(job->report.state, sizeof job->report.state, "unfinished");
    tell(job);
    return ATTUNE_CONTINUE;
}

static int step(attune_job *job, attune_error *err) {
    int alive = 0;
    if (job->drift) return measure_drift(job);
    if (job->report.finished) return ATTUNE_DONE;
    if (!job->planned) return start(job, err);
    int code = store_run_alive(job->store, job->plan.row.number, &alive, err);
    if (code == ATTUNE_OK && alive) code = work(job, err);
    if (job->report.finished || (code >= 0 && alive)) return code;
    if (code < 0) {
        /* whatever went wrong: was it that the run was failed meanwhile, and its files removed? */
        int known = store_run_alive(job->store, job->plan.row.number, &alive, NULL);
        if (known != ATTUNE_OK || alive) return code;
    }
    return lost(job, err);
}

/* What a run has ended in is told whatever becomes of the night's row. */
int attune_job_step(attune_job *job, attune_error *err) {
    int code = step(job, err);
    int noted = governed_note(job, code, code < 0 && err ? err->message : NULL, code < 0 ? NULL : err);
    return noted < 0 && (code == ATTUNE_CONTINUE || code == ATTUNE_PAUSED) ? noted : code;
}

/* ---- reporting ---- */

int attune_job_report_get(const attune_job *job, attune_job_report *out, attune_error *err) {
    attune_job_report r = job->report;
    struct rusage usage;
    if (job->planned) {
        const struct store_run *run = &job->plan.row;
        snprintf(r.evaluation, sizeof r.evaluation, "%s", run->evaluation);
        r.loss_before = run->loss_before;
        r.loss_after = run->loss_after;
        r.loss_interval = run->loss_interval;
        r.examples = run->examples;
        r.held_out = run->held_out;
        r.epochs = run->epochs;
        r.steps = run->steps;
        r.steps_done = r.finished ? run->steps_done : phases_steps_done(job);
        r.dropped_steps = (int64_t)job->dropped;
    }
    if (r.finished) {
        snprintf(r.state, sizeof r.state, "%s", job->plan.row.state);
        snprintf(r.reason, sizeof r.reason, "%s", job->plan.row.reason);
    }
    governed_report(job, &r);
    r.tokens = job->tokens;
    r.seconds = job_now() - job->opened;
    r.tokens_per_s = job->train_seconds > 0 ? (double)job->tokens / job->train_seconds : 0;
    if (getrusage(RUSAGE_SELF, &usage) == 0) r.peak_rss_bytes = (uint64_t)usage.ru_maxrss * 1024;
    return options_write(out, &r, sizeof r, "attune_job_report", err);
}

/* How many rows there are; and the settings of a run that would go on, *found 0: there is none. */
static int look_into_store(const char *home, struct settings *settings, int *parent, int *found, uint64_t *rows,
                           attune_error *err) {
    attune_store *store = NULL;
    struct store_run run;
    struct settings planned = *settings;
    int code = store_open_path(home, 0, &store, err);
    if (code != ATTUNE_OK) return code;
    *found = store_run_last(store, "unfinished", &run, NULL) == ATTUNE_OK &&
             settings_from_configuration(run.configuration, &planned, NULL) == ATTUNE_OK;
    code = memory_count_rows(store, rows, err);
    attune_store_close(store);
    if (code != ATTUNE_OK || !*found) return code;
    *settings = planned;
    *parent = run.parent;
    return ATTUNE_OK;
}

int attune_job_memory(const char *home, const attune_job_options *options, uint64_t *bytes, attune_error *err) {
    char path[HOME_PATH_MAX], sha256[65];
    attune_job_options o;
    struct settings settings;
    struct model *model = NULL;
    struct lora *active = NULL;
    struct memory_plan plan;
    uint64_t ceiling = 0, rows = 0;
    int number = 0, parent = 0, found = 0;
    int code = options_read(&o, sizeof o, options, "attune_job_options", err);
    if (code == ATTUNE_OK) code = check_options(&o, err);
    if (code == ATTUNE_OK) code = home_resolve(home, path, err);
    if (code == ATTUNE_OK) code = read_settings(path, &o, &settings, err);
    if (code == ATTUNE_OK) code = kernels_select(err);
    if (code == ATTUNE_OK) code = home_model(path, &settings, FILE_MAP, &model, err);
    if (code == ATTUNE_OK) code = store_current_read(path, &number, sha256, NULL, err);
    if (code == ATTUNE_OK && number) code = home_adapter_read(path, model, number, sha256, &active, err);
    if (code == ATTUNE_OK) ceiling = ceiling_of(&o, &settings);
    if (code == ATTUNE_OK) code = look_into_store(path, &settings, &parent, &found, &rows, err);
    if (code == ATTUNE_OK && !found) {
        parent = o.from == ATTUNE_FROM_FRESH ? 0 : number;
        if (parent) settings.train.lora = active->config;
    }
    if (code == ATTUNE_OK) {
        struct memory_needs needs = {model, &settings, active ? &active->config : NULL, parent && parent != number,
                                     o.threads ? o.threads : pool_cpu_count(), rows};
        memory_plan_make(&needs, ceiling, &plan);
        *bytes = plan.peak;
    }
    lora_destroy(active);
    model_close(model);
    return code;
}
