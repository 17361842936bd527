#include "job/trial.h"

#include "job/greedy.h"
#include "trainer/batches.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- what is looked at ---- */

static int add_reference(struct gate_trial *trial, const struct plan *plan, const struct model *model,
                         attune_error *err) {
    const char *hash = "0000000000000000000000000000000000000000000000000000000000000000";
    size_t micro_tokens = plan->settings.train.micro_tokens;
    int code = ATTUNE_OK, added;
    for (size_t i = 0; i < REFERENCE_ROWS && code == ATTUNE_OK; i++) {
        const attune_message message = {"user", reference_set[i].prompt};
        char name[65];
        snprintf(name, sizeof name, "%016zx%.48s", i, hash);
        code = example_add(&trial->reference, model, &message, 1, reference_set[i].response, name, "0000000000000000",
                           micro_tokens, &added, err);
        if (code == ATTUNE_ERROR_UNSUPPORTED) code = ATTUNE_OK; /* a character that the vocabulary lacks */
    }
    if (code != ATTUNE_OK) return code;
    trial->reference_rows = malloc((trial->reference.n + 1) * sizeof *trial->reference_rows);
    if (!trial->reference_rows) return error_set_memory(err, "the reference set", trial->reference.n);
    for (size_t i = 0; i < trial->reference.n; i++) trial->reference_rows[i] = i;
    batches_order(&trial->reference, trial->reference_rows, trial->reference.n, micro_tokens);
    return ATTUNE_OK;
}

int trial_create(struct gate_trial *trial, const struct plan *plan, const struct model *model, attune_error *err) {
    *trial = (struct gate_trial){0};
    trial->base = calloc(plan->n_judge + 1, sizeof *trial->base);
    trial->pairs_before = calloc(2 * plan->n_pairs + 1, sizeof *trial->pairs_before);
    trial->pairs_after = calloc(2 * plan->n_pairs + 1, sizeof *trial->pairs_after);
    if (!trial->base || !trial->pairs_before || !trial->pairs_after)
        return error_set_memory(err, "a candidate's trial", plan->n_judge * sizeof *trial->base);
    int code = add_reference(trial, plan, model, err);
    return code == ATTUNE_OK ? canaries_find(plan, model->tokenizer, &trial->canaries, err) : code;
}

void trial_free(struct gate_trial *trial) {
    example_set_free(&trial->reference);
    free(trial->reference_rows);
    canaries_free(&trial->canaries);
    free(trial->base);
    free(trial->pairs_before);
    free(trial->pairs_after);
    *trial = (struct gate_trial){0};
}

void trial_reset(struct gate_trial *trial, const struct plan *plan) {
    memset(trial->base, 0, plan->n_judge * sizeof *trial->base);
    memset(trial->pairs_before, 0, 2 * plan->n_pairs * sizeof *trial->pairs_before);
    memset(trial->pairs_after, 0, 2 * plan->n_pairs * sizeof *trial->pairs_after);
    trial->drift = (struct model_drift){0};
    trial->answers_degenerate = trial->produced = 0;
}

/* ---- what it costs ---- */

/* A decoded token reads all weights, as a micro-batch does; measured on SmolLM2 in Q4_1, it takes this much of one. */
static const double DECODED = 0.1;
/* Of a question, with what the template puts around it; of a row of the reference set, and its supervised ones. */
static const double QUESTION_TOKENS = 48, ROW_TOKENS = 80, ROW_SUPERVISED = 32;

double trial_answer_work(const struct work *w) {
    return w->batch + QUESTION_TOKENS + ANSWER_TOKENS * (1 + w->supervised + DECODED * w->batch);
}

double trial_canary_work(const struct work *w, const struct plan *plan, const struct canary_row *row) {
    double work = w->batch + (double)plan->examples.items[row->row].n;
    for (size_t i = 0; i < row->n; i++)
        work += w->batch + w->supervised * (double)(row->spans[i].to - row->spans[i].from);
    return work;
}

double trial_work_expected(const struct work *w) {
    return 2 * REFERENCE_ROWS * (ROW_TOKENS + w->supervised * ROW_SUPERVISED + w->batch / 6) +
           REFERENCE_ANSWERED * trial_answer_work(w);
}

/* ---- units ---- */

static int degenerate(const struct weights *weights, struct pool *pool, const char *prompt, int *is,
                      attune_error *err) {
    char *text = NULL;
    int code = greedy_answer_of(weights, pool, prompt, ANSWER_TOKENS, &text, NULL, err);
    if (code == ATTUNE_OK) *is = answer_is_degenerate(text);
    free(text);
    return code;
}

static struct weights base_of(const struct weights *weights) {
    return (struct weights){weights->model, weights->model->layers, NULL};
}

/* The base is asked only where the candidate fails: both fail with a base that fails. */
int trial_answer(struct gate_trial *trial, size_t i, const struct weights *candidate, struct pool *pool,
                 attune_error *err) {
    const char *prompt = reference_set[i * (REFERENCE_ROWS / REFERENCE_ANSWERED)].prompt;
    const struct weights base = base_of(candidate);
    int fails = 0, base_fails = 0;
    int code = degenerate(candidate, pool, prompt, &fails, err);
    if (code == ATTUNE_OK && fails) code = degenerate(&base, pool, prompt, &base_fails, err);
    if (code == ATTUNE_OK) trial->answers_degenerate += fails && !base_fails;
    return code;
}

int trial_canary(struct gate_trial *trial, size_t i, const struct plan *plan, const struct weights *candidate,
                 struct pool *pool, attune_error *err) {
    const struct canary_row *row = &trial->canaries.rows[i];
    const int32_t *ids = plan->examples.items[row->row].ids;
    const struct weights base = base_of(candidate);
    uint8_t said[CANARY_SPANS] = {0}, base_says[CANARY_SPANS] = {0};
    size_t produced = 0;
    int code = greedy_says(candidate, pool, ids, row->spans, row->n, said, err);
    if (code == ATTUNE_OK && memchr(said, 1, row->n))
        code = greedy_says(&base, pool, ids, row->spans, row->n, base_says, err);
    for (size_t k = 0; k < row->n; k++) produced += said[k] && !base_says[k];
    if (code == ATTUNE_OK) trial->produced += produced;
    return code;
}

/* ---- state ---- */

json_t *trial_reals(const double *x, size_t n) {
    json_t *array = json_array();
    for (size_t i = 0; i < n; i++) json_array_append_new(array, isfinite(x[i]) ? json_real(x[i]) : json_null());
    return array;
}

int trial_read_reals(const json_t *array, double *out, size_t n) {
    if (json_array_size(array) != n) return 0;
    for (size_t i = 0; i < n; i++) {
        const json_t *value = json_array_get(array, i);
        if (!json_is_number(value) && !json_is_null(value)) return 0;
        out[i] = json_is_null(value) ? NAN : json_number_value(value);
    }
    return 1;
}

json_t *trial_state(const struct gate_trial *t, const struct plan *plan) {
    const double drift[] = {t->drift.kl, t->drift.loss_reference, t->drift.loss};
    return json_pack("{s:o, s:o, s:o, s:I, s:I, s:o, s:I, s:I}", "base", trial_reals(t->base, plan->n_judge),
                     "pairs_before", trial_reals(t->pairs_before, 2 * plan->n_pairs), "pairs_after",
                     trial_reals(t->pairs_after, 2 * plan->n_pairs), "tokens", (json_int_t)t->drift.tokens, "agreeing",
                     (json_int_t)t->drift.agreeing, "drift", trial_reals(drift, 3), "degenerate",
                     (json_int_t)t->answers_degenerate, "produced", (json_int_t)t->produced);
}

static int read_count(const json_t *state, const char *key, size_t *out) {
    const json_t *value = json_object_get(state, key);
    if (!json_is_integer(value) || json_integer_value(value) < 0) return 0;
    *out = (size_t)json_integer_value(value);
    return 1;
}

int trial_restore(struct gate_trial *t, const struct plan *plan, const json_t *state) {
    double drift[3];
    if (!trial_read_reals(json_object_get(state, "base"), t->base, plan->n_judge) ||
        !trial_read_reals(json_object_get(state, "pairs_before"), t->pairs_before, 2 * plan->n_pairs) ||
        !trial_read_reals(json_object_get(state, "pairs_after"), t->pairs_after, 2 * plan->n_pairs) ||
        !trial_read_reals(json_object_get(state, "drift"), drift, 3) ||
        !read_count(state, "tokens", &t->drift.tokens) || !read_count(state, "agreeing", &t->drift.agreeing) ||
        !read_count(state, "degenerate", &t->answers_degenerate) || !read_count(state, "produced", &t->produced))
        return 0;
    t->drift.kl = drift[0];
    t->drift.loss_reference = drift[1];
    t->drift.loss = drift[2];
    return 1;
}
