#include "job/drift.h"

#include "trainer/batches.h"

#include "adapters/calibrate.h"
#include "adapters/merged_cache.h"
#include "job/phases.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* In the order in which they are measured. */
static const enum merge_mode measured[] = {MERGE_SAME, MERGE_Q8, MERGE_F16};
enum { MODES = sizeof measured / sizeof *measured };

struct drift {
    struct drift_source source;
    struct evaluator evaluator;
    size_t *rows, n_rows;      /* of the plan's examples, in the order in which they pack best */
    size_t at;                 /* rows measured in every mode */
    enum merge_mode modes[MODES];
    int n_modes, mode;         /* that are possible; the next one */
    int reference;             /* the evaluator holds `none` of the rows from `at` on */
    size_t units_done;
    struct model_drift sums[MODES]; /* of rows[0..at) */
    struct model_drift group[MODES]; /* of the rows from `at` on that go through together */
};

/* ---- making ---- */

/* The newest rows that judged. */
static int choose_rows(struct drift *d, attune_error *err) {
    const struct plan *plan = d->source.plan;
    size_t tokens = 0, most = plan->n_judge < DRIFT_ROWS ? plan->n_judge : DRIFT_ROWS;
    d->rows = malloc((most + 1) * sizeof *d->rows);
    if (!d->rows) return error_set_memory(err, "rows to measure drift on", most * sizeof *d->rows);
    for (size_t i = plan->n_judge; i-- > 0 && d->n_rows < most;) {
        tokens += plan->examples.items[plan->judge[i]].n;
        if (d->n_rows > 0 && tokens > DRIFT_TOKENS) break;
        d->rows[d->n_rows++] = plan->judge[i];
    }
    batches_order(&plan->examples, d->rows, d->n_rows, d->source.shape.micro_tokens);
    return ATTUNE_OK;
}

/* Types that cannot be written, rows that are no whole blocks: such a mode cannot be served either. */
static int find_modes(struct drift *d, attune_error *err) {
    const struct drift_source *s = &d->source;
    for (int i = 0; i < MODES; i++) {
        struct layer_merge *merge = NULL;
        attune_error why;
        int code = layer_merge_create(s->model, s->lora, measured[i], s->pool, &merge, &why);
        layer_merge_destroy(merge);
        if (code == ATTUNE_OK) d->modes[d->n_modes++] = measured[i];
        if (code == ATTUNE_OK || code == ATTUNE_ERROR_UNSUPPORTED) continue;
        if (err) *err = why;
        return code;
    }
    return ATTUNE_OK;
}

int drift_create(const struct drift_source *source, struct drift **out, attune_error *err) {
    struct drift *d = calloc(1, sizeof *d);
    if (!d) return error_set_memory(err, "measuring drift", sizeof *d);
    d->source = *source;
    *out = NULL;
    int code = choose_rows(d, err);
    if (code == ATTUNE_OK) code = find_modes(d, err);
    if (code == ATTUNE_OK && d->n_rows > 0 && d->n_modes > 0) {
        code = evaluator_create(source->model, source->pool, &source->shape, source->bytes, &d->evaluator, err);
        if (code == ATTUNE_OK) {
            *out = d;
            return ATTUNE_OK;
        }
    }
    drift_destroy(d);
    return code;
}

void drift_destroy(struct drift *drift) {
    if (!drift) return;
    evaluator_free(&drift->evaluator);
    free(drift->rows);
    free(drift);
}

/* ---- measuring ---- */

static size_t group_rows(const struct drift *d, size_t at) {
    return evaluator_rows(&d->source.shape, &d->source.plan->examples, d->rows + at, d->n_rows - at);
}

/* The rows from `at` on that go through together, in one mode. */
static int measure_group(struct drift *d, enum merge_mode mode, struct model_drift *sum, attune_error *err) {
    const struct drift_source *s = &d->source;
    struct weights none = {s->model, s->model->layers, s->lora->pairs}, merged = {s->model, s->model->layers, NULL};
    struct layer_merge *merge = NULL;
    int code = layer_merge_create(s->model, s->lora, mode, s->pool, &merge, err);
    if (code != ATTUNE_OK) return code;
    struct layer_maker maker = {layer_merge_make, merge};
    code = evaluator_drift(&d->evaluator, d->reference ? NULL : &none, &merged, &maker, &s->plan->examples,
                           d->rows + d->at, group_rows(d, d->at), sum, err);
    layer_merge_destroy(merge);
    return code;
}

/* It turned out that the sums do not fit the mode's type. */
static void drop_mode(struct drift *d) {
    d->n_modes--;
    for (int i = d->mode; i < d->n_modes; i++) {
        d->modes[i] = d->modes[i + 1];
        d->sums[i] = d->sums[i + 1];
    }
}

static void add(struct model_drift *sum, const struct model_drift *more) {
    sum->tokens += more->tokens;
    sum->agreeing += more->agreeing;
    sum->kl += more->kl;
    sum->loss += more->loss;
    sum->loss_reference += more->loss_reference;
}

/* Every mode has seen these rows. */
static void end_group(struct drift *d) {
    for (int i = 0; i < d->n_modes; i++) add(&d->sums[i], &d->group[i]);
    d->at += group_rows(d, d->at);
    d->mode = d->reference = 0;
}

int drift_unit(struct drift *d, attune_error *err) {
    struct model_drift sum = {0};
    if (d->n_modes == 0 || d->at == d->n_rows) return ATTUNE_DONE;
    int code = measure_group(d, d->modes[d->mode], &sum, err);
    if (code == ATTUNE_ERROR_UNSUPPORTED) {
        drop_mode(d);
        d->reference = 0;
    } else if (code != ATTUNE_OK) {
        d->reference = 0;
        return code;
    } else {
        d->group[d->mode++] = sum;
        d->reference = 1;
        d->units_done++;
    }
    if (d->mode == d->n_modes) end_group(d);
    return d->n_modes > 0 && d->at < d->n_rows ? ATTUNE_CONTINUE : ATTUNE_DONE;
}

static struct store_drift as_row(const struct drift *d, int i) {
    const struct drift_source *s = &d->source;
    const struct model_drift *sum = &d->sums[i];
    double tokens = (double)sum->tokens;
    struct store_drift row = {.adapter = s->adapter, .kl = sum->kl / tokens,
                              .agreement = (double)sum->agreeing / tokens,
                              .loss = sum->loss / tokens, .loss_none = sum->loss_reference / tokens,
                              .tokens = (int64_t)sum->tokens, .rows = (int64_t)d->at,
                              .bytes = (int64_t)merge_bytes(s->model, s->lora->config.targets, d->modes[i]),
                              .measured_ms = home_now_ms()};
    snprintf(row.mode, sizeof row.mode, "%s", merge_mode_name(d->modes[i]));
    return row;
}

/* The reference itself, which takes its place among the others by what it reads: the base's blocks and the pairs. */
static struct store_drift none_row(const struct drift *d, const struct store_drift *of) {
    const struct drift_source *s = &d->source;
    struct store_drift row = *of;
    row.kl = 0;
    row.agreement = 1;
    row.loss = row.loss_none;
    row.bytes = (int64_t)(merge_bytes(s->model, s->lora->config.targets, MERGE_SAME) + s->lora->n * sizeof(float));
    snprintf(row.mode, sizeof row.mode, "%s", merge_mode_name(MERGE_NONE));
    return row;
}

int drift_keep(const struct drift *d, attune_error *err) {
    struct store_drift rows[MODES + 1];
    if (d->at == 0 || d->n_modes == 0) return ATTUNE_OK;
    for (int i = 0; i < d->n_modes; i++) rows[i] = as_row(d, i);
    rows[d->n_modes] = none_row(d, rows);
    return store_drift_put(d->source.store, rows, (size_t)d->n_modes + 1, err);
}

/* ---- what will be served ---- */

enum { CALIBRATION_BATCHES = 20 }; /* of micro_tokens each: of the newest rows that were learned from */
static const double CALIBRATION_SECONDS = 60;

struct deadline {
    double at; /* 0: none */
};
static int past(double share, void *user) {
    const struct deadline *deadline = user;
    (void)share;
    return deadline->at > 0 && job_now() > deadline->at;
}

static int calibrate(struct drift *d, const struct merge_progress *progress, struct merged **out, attune_error *err) {
    const struct drift_source *s = &d->source;
    const struct plan *plan = s->plan;
    struct packer *packers[CALIBRATION_BATCHES] = {NULL};
    const struct packed_batch *batches[CALIBRATION_BATCHES];
    size_t n = 0, at = 0, rows = plan->n_train < 8 * CALIBRATION_BATCHES ? plan->n_train : 8 * CALIBRATION_BATCHES;
    const size_t *newest = plan->train + plan->n_train - rows;
    int code = ATTUNE_OK;
    for (; n < CALIBRATION_BATCHES && at < rows && code == ATTUNE_OK; n++) {
        code = packer_create(s->shape.micro_tokens, &packers[n], err);
        if (code != ATTUNE_OK) break;
        at = packer_fill(packers[n], &plan->examples, newest, at, rows, NULL, 0);
        batches[n] = &packers[n]->batch;
    }
    /* MERGE's part */
    if (code == ATTUNE_OK) code = calibrate_create(s->model, s->lora, s->pool, batches, n, progress, out, err);
    for (size_t i = 0; i < CALIBRATION_BATCHES; i++) packer_destroy(packers[i]);
    return code;
}

/* The drift of weights that are merged already, as that of the other modes. */
static int measure_merged(struct drift *d, const struct merged *merged, enum merge_mode mode, attune_error *err) {
    const struct drift_source *s = &d->source;
    struct weights none = {s->model, s->model->layers, s->lora->pairs}, other = {s->model, merge_layers(merged), NULL};
    struct store_drift row;
    d->modes[0] = mode;
    d->sums[0] = (struct model_drift){0};
    int code = evaluator_create(s->model, s->pool, &s->shape, 0, &d->evaluator, err);
    for (d->at = 0; d->at < d->n_rows && code == ATTUNE_OK; d->at += group_rows(d, d->at))
        code = evaluator_drift(&d->evaluator, &none, &other, NULL, &s->plan->examples, d->rows + d->at,
                               group_rows(d, d->at), &d->sums[0], err);
    evaluator_free(&d->evaluator);
    if (code != ATTUNE_OK) return code;
    row = as_row(d, 0);
    return store_drift_put(s->store, &row, 1, err);
}

/* The weights that are there, or merged now, into the home's cache. */
static int keep_merged(struct drift *d, enum merge_mode mode, const struct merge_progress *progress,
                       struct merged *merged, attune_error *err) {
    const struct drift_source *s = &d->source;
    struct merged_key key = {s->adapter_sha256, mode};
    char folder[HOME_PATH_MAX];
    int code = home_file(s->home, "cache", folder, err), made = !merged;
    if (code == ATTUNE_OK && made) code = merge_create(s->model, s->lora, mode, s->pool, progress, &merged, err);
    /* ENGINE's part */
    if (code == ATTUNE_OK) code = merged_cache_keep(folder, &key, s->model, s->pool, merged, 0, err);
    if (made) merge_destroy(merged);
    return code;
}

static size_t calibration_bytes(const struct drift *d) {
    const struct drift_source *s = &d->source;
    return calibrate_bytes(s->model, &s->lora->config, pool_threads(s->pool), s->shape.micro_tokens,
                           CALIBRATION_BATCHES);
}

int drift_prepare_serving(struct drift *d, double seconds, attune_error *err) {
    const struct drift_source *s = &d->source;
    struct deadline deadline = {seconds > 0 ? job_now() + seconds : 0};
    struct merge_progress progress = {past, &deadline};
    enum merge_mode mode = s->settings->merge;
    int code = ATTUNE_OK, wanted = mode == MERGE_CALIBRATED || mode == MERGE_AUTO;
    evaluator_free(&d->evaluator);
    if (wanted && (seconds == 0 || seconds >= CALIBRATION_SECONDS) && calibration_bytes(d) <= s->room) {
        struct merged *merged = NULL;
        code = calibrate(d, &progress, &merged, err);
        if (code == ATTUNE_OK) code = measure_merged(d, merged, MERGE_CALIBRATED, err);
        if (code == ATTUNE_OK) code = keep_merged(d, MERGE_CALIBRATED, &progress, merged, err);
        merge_destroy(merged);
    }
    if (code == ATTUNE_OK && mode == MERGE_AUTO)
        code = serve_choose_merge(s->home, s->adapter, s->settings->drift_limit, &mode, err);
    if (code != ATTUNE_OK || mode == MERGE_NONE || mode == MERGE_CALIBRATED) return code;
    return merge_bytes(s->model, s->lora->config.targets, mode) <= s->room
               ? keep_merged(d, mode, &progress, NULL, err)
               : ATTUNE_OK;
}

/* ---- how much it is ---- */

size_t drift_units(const struct drift *d) {
    size_t groups = 0;
    for (size_t at = d->at; at < d->n_rows; at += group_rows(d, at)) groups++;
    return d->units_done - (size_t)d->mode + groups * (size_t)d->n_modes;
}
size_t drift_units_done(const struct drift *d) { return d->units_done; }

static double work_of(const struct drift *d, const struct work *judging, size_t at, size_t n) {
    return work_of_rows(judging, &d->source.plan->examples, d->rows + at, n, d->source.shape.micro_tokens);
}

double drift_unit_work(const struct drift *d, const struct work *judging) {
    return (d->reference ? 1 : 2) * work_of(d, judging, d->at, group_rows(d, d->at));
}

double drift_work_left(const struct drift *d, const struct work *judging) {
    double all = work_of(d, judging, d->at, d->n_rows - d->at) * (1 + d->n_modes);
    return all - work_of(d, judging, d->at, group_rows(d, d->at)) * (d->mode + d->reference);
}

/* Half of the tokens are supervised, about; a row attends to little. */
double drift_work_expected(const struct work *judging) {
    return (1 + MODES) * (double)DRIFT_TOKENS * (1 + judging->supervised / 2);
}

/* ---- choosing ---- */

static int note(const struct store_drift *drift, void *user) {
    (void)drift;
    return *(int *)user = 1;
}

int drift_known(attune_store *store, int adapter, int *known, attune_error *err) {
    *known = 0;
    return store_drift_each(store, adapter, note, known, err);
}

struct choosing {
    double limit;
    enum merge_mode mode;
};
static int take_first(const struct store_drift *drift, void *user) {
    struct choosing *choosing = user;
    if (!(drift->kl <= choosing->limit)) return 0;
    return merge_mode_parse(drift->mode, &choosing->mode, NULL) == ATTUNE_OK;
}

int serve_choose_merge(const char *home, int adapter, double limit, enum merge_mode *mode, attune_error *err) {
    struct choosing choosing = {limit, MERGE_NONE};
    attune_store *store = NULL;
    int code = ATTUNE_OK;
    if (adapter > 0 && limit > 0) {
        code = store_open_path(home, 0, &store, err);
        if (code == ATTUNE_OK) code = store_drift_each(store, adapter, take_first, &choosing, err);
        attune_store_close(store);
    }
    if (code == ATTUNE_OK) *mode = choosing.mode;
    return code;
}
