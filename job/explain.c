/* What attune nightly would do now, and why: one look, and nothing is changed. */
#include "job/nightly.h"

#include "core/base/options.h"
#include "job/governed.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- shared with the nightly job ---- */

void nightly_policy(const struct settings *settings, const attune_nightly_options *options, struct policy *out) {
    *out = settings->policy;
    out->now = options->now;
}

void nightly_sensors(const struct policy *policy, const attune_nightly_options *options, struct sensors_options *out) {
    *out = (struct sensors_options){.sys_root = options->sys_root,
                                    .proc_root = options->proc_root,
                                    .device = options->device,
                                    .device_user = options->device_user,
                                    .logind = policy->idle_required && !policy->now};
}

/* ---- what there is to learn ---- */

/* Rows that came after those of a run. */
struct after {
    struct store_run_example *examples; /* of the run, by content hash */
    size_t n;
    int64_t last;    /* the newest interaction among them */
    int64_t *others; /* interactions of rows that are not */
    size_t n_others, room;
};

static int by_hash(const void *a, const void *b) {
    return strcmp(((const struct store_run_example *)a)->content_hash,
                  ((const struct store_run_example *)b)->content_hash);
}

static int sort_row(const struct store_row *row, void *user, attune_error *err) {
    struct after *after = user;
    struct store_run_example key;
    snprintf(key.content_hash, sizeof key.content_hash, "%s", row->content_hash);
    if (bsearch(&key, after->examples, after->n, sizeof key, by_hash)) {
        if (row->interaction > after->last) after->last = row->interaction;
        return ATTUNE_OK;
    }
    if (after->n_others == after->room) {
        size_t room = 2 * after->room + 64;
        int64_t *others = realloc(after->others, room * sizeof *others);
        if (!others) return error_set_memory(err, "new rows", room * sizeof *others);
        after->others = others;
        after->room = room;
    }
    after->others[after->n_others++] = row->interaction;
    return ATTUNE_OK;
}

/* Rows that the run left out (too long, too many) were there when it was planned: they are not new. */
static int count_after(attune_store *store, int64_t run, int64_t *count, attune_error *err) {
    struct after after = {0};
    int code = store_run_examples(store, run, &after.examples, &after.n, err);
    if (code != ATTUNE_OK) return code;
    if (after.n > 0) qsort(after.examples, after.n, sizeof *after.examples, by_hash);
    code = store_examples(store, NULL, sort_row, &after, err);
    *count = 0;
    for (size_t i = 0; i < after.n_others; i++) *count += after.others[i] > after.last;
    free(after.examples);
    free(after.others);
    return code;
}

int nightly_work(attune_store *store, struct nightly_work *out, attune_error *err) {
    struct store_run run;
    attune_store_statistics statistics;
    struct nightly_work work = {0};
    ATTUNE_INIT(statistics);
    int code = store_counts(store, NULL, NULL, NULL, &work.rows_new, err);
    if (code == ATTUNE_OK) code = attune_store_statistics_get(store, &statistics, err);
    if (code != ATTUNE_OK) return code;
    work.rows = statistics.examples_sft;
    work.not_derived = statistics.not_derived;
    code = store_run_last(store, NULL, &run, err);
    if (code == ATTUNE_OK) {
        work.unfinished = strcmp(run.state, "unfinished") == 0;
        work.run = run.number;
        work.steps = run.steps;
        work.steps_done = run.steps_done;
        /* Its rows are in no published run: without this, the same would be trained and refused night after night. */
        work.refused = strcmp(run.state, "refused") == 0;
    }
    if (code == ATTUNE_ERROR_NOT_FOUND) code = ATTUNE_OK;
    if (code == ATTUNE_OK && work.refused && work.rows_new > 0 && statistics.not_derived == 0 &&
        store_encryption_get(store) != STORE_SEALED)
        code = count_after(store, run.number, &work.rows_new, err);
    if (work.rows_new > 0) work.refused = 0;
    if (code == ATTUNE_OK) *out = work;
    return code;
}

/* ---- explaining ---- */

/* What is joined under one look. */
struct look {
    struct settings settings;
    struct policy policy;
    struct spent spent;
    struct snapshot now;
    struct nightly_work work;
    attune_store *store;
    int threads;
};

static int sense(const attune_nightly_options *options, struct look *look, attune_error *err) {
    struct sensors_options sensors_options;
    struct sensors *sensors = NULL;
    nightly_sensors(&look->policy, options, &sensors_options);
    int code = sensors_open(&sensors_options, &sensors, err);
    if (code != ATTUNE_OK) return code;
    sensors_read(sensors, &look->now);
    sensors_close(sensors);
    return ATTUNE_OK;
}

static void tell_conditions(const struct look *look, attune_condition_callback callback, void *user) {
    struct policy_state state = {0};
    struct condition_view views[CONDITION_COUNT];
    policy_explain(&look->policy, &look->now, &look->spent, &state, views);
    for (int c = 0; callback && c < CONDITION_COUNT; c++) {
        attune_condition condition;
        ATTUNE_INIT(condition);
        condition.name = views[c].name;
        condition.sensed = views[c].sensed;
        condition.wanted = views[c].wanted;
        condition.verdict = verdict_name(views[c].verdict);
        condition.reason = views[c].reason == REASON_NONE ? "" : reason_text(views[c].reason);
        callback(&condition, user);
    }
}

/* As the last run that ended went: each takes all rows again, so that what a row took then it takes now. */
static void predict(struct look *look, attune_explanation *out) {
    struct store_run run;
    struct store_cost cost;
    double share = 1;
    if (look->work.unfinished) {
        if (store_run_last(look->store, "unfinished", &run, NULL) != ATTUNE_OK || run.steps_done <= 0) return;
        share = (double)(run.steps - run.steps_done) / (double)run.steps_done;
    } else {
        if (store_run_last(look->store, NULL, &run, NULL) != ATTUNE_OK || run.ended_ms == 0 || run.examples <= 0)
            return;
        share = (double)out->rows_planned / (double)(run.examples + run.held_out);
    }
    double seconds = run.seconds * share;
    if (!isfinite(seconds) || seconds <= 0) return;
    out->seconds_predicted = seconds;
    if (governed_cost(look->store, &look->settings, look->threads, 1, &cost, NULL) == ATTUNE_OK &&
        isfinite(cost.watts * seconds))
        out->joules_predicted = cost.watts * seconds;
}

static void tell_plan(const struct look *look, attune_explanation *out) {
    const struct nightly_work *work = &look->work;
    if (work->unfinished)
        snprintf(out->plan, sizeof out->plan, "goes on with run %lld, %lld of %lld steps are left",
                 (long long)work->run, (long long)(work->steps - work->steps_done), (long long)work->steps);
    else if (work->refused)
        snprintf(out->plan, sizeof out->plan, "nothing is new since run %lld, which was refused", (long long)work->run);
    else if (work->rows_new == 0)
        snprintf(out->plan, sizeof out->plan, "nothing new to learn");
    else if (work->rows_new < (int64_t)look->settings.rows_new_min)
        snprintf(out->plan, sizeof out->plan, "%lld new rows, fewer than the %zu that a run begins for",
                 (long long)work->rows_new, look->settings.rows_new_min);
    else
        snprintf(out->plan, sizeof out->plan, "a new run over %lld rows, %lld of them new",
                 (long long)out->rows_planned, (long long)work->rows_new);
}

static void tell_work(struct look *look, attune_explanation *out) {
    const struct nightly_work *work = &look->work;
    int begins = !work->unfinished && work->rows_new >= (int64_t)look->settings.rows_new_min;
    out->rows_new = work->rows_new;
    out->rows_planned = begins ? work->rows < PLAN_NEWEST ? work->rows : PLAN_NEWEST : 0;
    if (begins || work->unfinished) predict(look, out);
    tell_plan(look, out);
}

int attune_nightly_explain(const char *home, const attune_nightly_options *options, attune_condition_callback callback,
                           void *user, attune_explanation *out, attune_error *err) {
    static const char *const devices[] = {"laptop", "phone", "desktop"};
    char path[HOME_PATH_MAX];
    attune_nightly_options o;
    struct look look = {.store = NULL};
    struct policy_state state = {0};
    struct decision decision;
    attune_explanation told;
    ATTUNE_INIT(told);
    int code = options_read(&o, sizeof o, options, "attune_nightly_options", err);
    if (code == ATTUNE_OK) code = home_resolve(home, path, err);
    if (code == ATTUNE_OK) code = settings_read(path, &look.settings, err);
    if (code != ATTUNE_OK) return code;
    attune_store_options store_options;
    ATTUNE_INIT(store_options);
    store_options.key = o.key;
    store_options.key_file = o.key_file;
    look.threads = o.threads;
    nightly_policy(&look.settings, &o, &look.policy);
    code = store_open_with(path, &store_options, &look.store, err);
    if (code == ATTUNE_OK) code = governed_spent(look.store, &look.policy.window, &look.spent, err);
    if (code == ATTUNE_OK) code = nightly_work(look.store, &look.work, err);
    if (code == ATTUNE_OK) code = sense(&o, &look, err);
    if (code != ATTUNE_OK) goto out;
    policy_decide(&look.policy, &look.now, &look.spent, &state, &decision);
    snprintf(told.verdict, sizeof told.verdict, "%s", verdict_name(decision.verdict));
    snprintf(told.reason, sizeof told.reason, "%s", decision.reason == REASON_NONE ? "" : reason_text(decision.reason));
    told.wait_s = decision.wait_s;
    snprintf(told.device, sizeof told.device, "%s", devices[look.settings.device]);
    tell_work(&look, &told);
    tell_conditions(&look, callback, user);
    code = options_write(out, &told, sizeof told, "attune_explanation", err);
out:
    attune_store_close(look.store);
    return code;
}
