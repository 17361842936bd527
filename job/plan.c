/* The plan: which rows, which of them judge, how many passes; fixed and stored before the first step.
 *
 * Prompts are split by a hash that near-duplicates share, so a prompt stays on its side for good, with all its edits,
 * variations and regenerations. With too few held-out prompts the rows are cross-fitted: each fold is judged by a
 * training that did not see it, and the adapter itself is trained on all of them. */
#include "core/base/hash.h"
#include "core/base/random.h"
#include "job/criteria.h"
#include "job/looks.h"
#include "job/replay_rows.h"
#include "job/token_cache.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    PROMPTS_MIN = 4,   /* distinct ones: below, nothing can be judged */
    HELD_OUT_MIN = 8,  /* prompts: below, rows are cross-fitted */
    HELD_OUT_MAX = 64, /* rows: enough to judge, and no more time than that */
    FOLDS = 3,
    ENOUGH_ROWS = 256, /* of training, for one pass */
    ROWS_MIN = 8,      /* of training, when a budget is short */
    SAMPLE_ROWS = 64 /* to choose a sample from */
};
static const double JUDGING_SHARE_MAX = 0.3; /* of a time budget */

void plan_free(struct plan *plan) {
    if (!plan) return;
    example_set_free(&plan->examples);
    free(plan->origins);
    free(plan->earlier);
    free(plan->train);
    free(plan->judge);
    free(plan->pairs);
    free(plan->fold);
    free(plan->order);
    *plan = (struct plan){0};
}

/* ---- gathering ---- */

struct gather {
    struct token_cache *tokens;
    const struct model *model;
    size_t max_tokens;
    struct example_set *set;
    struct origin *origins; /* (capacity) of the set's examples */
    size_t capacity;
};

/* Of the examples from `first` on: a pair is two. */
static int note_origin(struct gather *g, const struct store_row *row, size_t first, attune_error *err) {
    if (g->set->n > g->capacity) {
        struct origin *grown = realloc(g->origins, g->set->capacity * sizeof *grown);
        if (!grown) return error_set_memory(err, "a plan", g->set->capacity * sizeof *grown);
        g->origins = grown;
        g->capacity = g->set->capacity;
    }
    for (size_t i = first; i < g->set->n; i++)
        g->origins[i] = (struct origin){row->interaction, row->other, row->time_ms};
    return ATTUNE_OK;
}

/* Answers to say come by the hundred and are remembered as tokens; what is judged or compared is read anew. */
static int add_row(struct gather *g, const struct store_row *row, int *added, attune_error *err) {
    size_t first = g->set->n;
    int code;
    if (row->kind == STORE_EXAMPLE_PREFERENCE)
        code = example_add_preference(g->set, g->model, row->messages, row->n_messages, row->response, row->rejected,
                                      row->content_hash, row->prompt_hash, g->max_tokens, added, err);
    else if (row->kind == STORE_EXAMPLE_THUMB)
        code = example_add_thumb(g->set, g->model, row->messages, row->n_messages, row->response, row->label,
                                 row->content_hash, row->prompt_hash, g->max_tokens, added, err);
    else
        return token_cache_add(g->tokens, row, g->set, added, err);
    if (code == ATTUNE_ERROR_UNSUPPORTED) code = ATTUNE_OK; /* a byte that the vocabulary lacks: as in the cache */
    if (code == ATTUNE_OK && *added) g->set->items[first].weight = row->weight;
    return code;
}

static int gather_row(const struct store_row *row, void *user, attune_error *err) {
    struct gather *g = user;
    size_t first = g->set->n;
    int added = 0;
    int code = add_row(g, row, &added, err);
    return code == ATTUNE_OK && added ? note_origin(g, row, first, err) : code;
}

/* All that a run may learn from; of each kind so many, where the settings give it a say. */
static int gather_rows(struct gather *g, attune_store *store, const struct settings *settings, attune_error *err) {
    const struct preference_config *p = &settings->train.preference;
    struct store_example_query query = {.kind = STORE_EXAMPLE_SFT, .newest = PLAN_NEWEST,
                                        .source_cap = (int64_t)settings->source_cap,
                                        .day_cap = (int64_t)settings->day_cap,
                                        .group_cap = (int64_t)settings->group_cap};
    int code = store_examples(store, &query, gather_row, g, err);
    query.kind = STORE_EXAMPLE_PREFERENCE;
    if (code == ATTUNE_OK && (p->dpo > 0 || p->sft > 0)) code = store_examples(store, &query, gather_row, g, err);
    query.kind = STORE_EXAMPLE_THUMB;
    if (code == ATTUNE_OK && (p->up > 0 || p->down > 0)) code = store_examples(store, &query, gather_row, g, err);
    return code;
}

static void drop_front(struct example_set *set, size_t n) {
    if (n == 0) return;
    for (size_t i = 0; i < n; i++) example_free(&set->items[i]);
    memmove(set->items, set->items + n, (set->n - n) * sizeof *set->items);
    set->n -= n;
}

int plan_sample(const struct row_source *source, const struct settings *settings, size_t max_tokens,
                struct example_set *out, attune_error *err) {
    struct example_set set = {0};
    struct gather g = {.model = source->model, .max_tokens = settings->train.max_tokens, .set = &set};
    struct store_example_query query = {.kind = STORE_EXAMPLE_SFT, .newest = SAMPLE_ROWS};
    int code = token_cache_open(NULL, source->model, settings->train.max_tokens, &g.tokens, err);
    if (code == ATTUNE_OK) code = store_examples(source->store, &query, gather_row, &g, err);
    token_cache_close(g.tokens);
    free(g.origins);
    if (code != ATTUNE_OK) {
        example_set_free(&set);
        return code;
    }
    size_t keep = 0, tokens = 0;
    while (keep < set.n && (keep == 0 || tokens + set.items[set.n - 1 - keep].n <= max_tokens))
        tokens += set.items[set.n - 1 - keep++].n;
    drop_front(&set, set.n - keep);
    *out = set;
    return ATTUNE_OK;
}

/* ---- splitting ---- */

static int compare_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* Distinct prompts of rows, sorted; malloc'ed array of borrowed strings. */
static const char **prompts_of(const struct example_set *set, const size_t *rows, size_t n, size_t *distinct) {
    const char **prompts = malloc((n + 1) * sizeof *prompts);
    if (!prompts) return NULL;
    for (size_t i = 0; i < n; i++) prompts[i] = set->items[rows[i]].prompt_hash;
    qsort(prompts, n, sizeof *prompts, compare_text);
    size_t kept = 0;
    for (size_t i = 0; i < n; i++)
        if (kept == 0 || strcmp(prompts[kept - 1], prompts[i]) != 0) prompts[kept++] = prompts[i];
    *distinct = kept;
    return prompts;
}

static int is_held_out(const struct example *example, double share) {
    char digits[9] = {0};
    memcpy(digits, example->prompt_hash, 8);
    return (double)strtoull(digits, NULL, 16) < share * 4294967296.0;
}

/* Folds by rank of the prompt's hash: balanced, and all rows of a prompt in one. Prompts that do not judge are in none:
 * every fold trains on them. */
static int assign_folds(struct plan *plan, attune_error *err) {
    size_t distinct, n = plan->n_train;
    const char **prompts = prompts_of(&plan->examples, plan->judge, plan->n_judge, &distinct);
    plan->fold = malloc((n + 1) * sizeof *plan->fold);
    if (!prompts || !plan->fold) {
        free(prompts);
        return error_set_memory(err, "folds", n * sizeof *prompts);
    }
    for (size_t i = 0; i < n; i++) {
        const char *prompt = plan->examples.items[plan->train[i]].prompt_hash;
        const char **found = bsearch(&prompt, prompts, distinct, sizeof *prompts, compare_text);
        plan->fold[i] = found ? (int)((size_t)(found - prompts) % (size_t)plan->folds) : -1;
    }
    free(prompts);
    return ATTUNE_OK;
}

static int is_answer(const struct plan *plan, size_t row) { return plan->examples.items[row].kind == EXAMPLE_SFT; }

static int is_earlier(const struct plan *plan, size_t row) { return plan->earlier && plan->earlier[row]; }

/* With folds, whether a row of train judges. What the parent has learned from flatters it, and what goes on from it. */
int plan_can_judge(const struct plan *plan, size_t row) {
    return is_answer(plan, row) && !(plan->judge_new && is_earlier(plan, row));
}

static size_t judges_of_folds(const struct plan *plan, size_t *out) {
    size_t n = 0;
    for (size_t i = 0; i < plan->n_train; i++)
        if (plan_can_judge(plan, plan->train[i])) out[n++] = plan->train[i];
    return n;
}

/* Answers to say are what the gate can judge by: of rows into out(n), which may be rows. */
static size_t answers_of(const struct plan *plan, const size_t *rows, size_t n, size_t *out) {
    size_t kept = 0;
    for (size_t i = 0; i < n; i++)
        if (is_answer(plan, rows[i])) out[kept++] = rows[i];
    return kept;
}

struct aged {
    int64_t time_ms, interaction;
    size_t row;
};
static int compare_age(const void *a, const void *b) {
    const struct aged *x = a, *y = b;
    if (x->time_ms != y->time_ms) return x->time_ms < y->time_ms ? -1 : 1;
    if (x->interaction != y->interaction) return x->interaction < y->interaction ? -1 : 1;
    return x->row < y->row ? -1 : x->row > y->row;
}

/* All rows of all kinds, oldest first; a pair is one. */
static int rows_by_age(const struct plan *plan, size_t *out, size_t *n, attune_error *err) {
    struct aged *aged = malloc((plan->examples.n + 1) * sizeof *aged);
    if (!aged) return error_set_memory(err, "a plan", plan->examples.n * sizeof *aged);
    *n = 0;
    for (size_t i = 0; i < plan->examples.n; i++)
        if (plan->examples.items[i].kind != EXAMPLE_REJECTED)
            aged[(*n)++] = (struct aged){plan->origins[i].time_ms, plan->origins[i].interaction, i};
    qsort(aged, *n, sizeof *aged, compare_age);
    for (size_t i = 0; i < *n; i++) out[i] = aged[i].row;
    free(aged);
    return ATTUNE_OK;
}

/* Prompts of the answers among rows. */
static int count_prompts(const struct plan *plan, const size_t *rows, size_t n, size_t *distinct, attune_error *err) {
    const char **prompts = NULL;
    size_t *answers = malloc((n + 1) * sizeof *answers);
    if (answers) prompts = prompts_of(&plan->examples, answers, answers_of(plan, rows, n, answers), distinct);
    free(prompts);
    free(answers);
    return prompts ? ATTUNE_OK : error_set_memory(err, "a plan", n * sizeof *answers);
}

/* Earlier rows step back as soon as there are prompts enough without them. */
static int choose_judges(struct plan *plan, attune_error *err) {
    size_t distinct = 0, *fresh = malloc((plan->n_train + 1) * sizeof *fresh);
    if (!fresh) return error_set_memory(err, "a plan", plan->n_train * sizeof *fresh);
    plan->judge_new = 1;
    int code = count_prompts(plan, fresh, judges_of_folds(plan, fresh), &distinct, err);
    plan->judge_new = distinct >= PROMPTS_MIN;
    free(fresh);
    return code;
}

/* What the parent knows already gives way to a sample of it; which sample, changes with every parent. */
static int choose_rows(struct plan *plan, const char *parent_sha256, attune_error *err) {
    char digits[17] = {0};
    memcpy(digits, parent_sha256, strnlen(parent_sha256, 16));
    uint64_t key = random_mix(plan->settings.train.seed ^ strtoull(digits, NULL, 16));
    return replay_rows_choose(&plan->examples, plan->origins, plan->earlier, plan->settings.replay, key, plan->train,
                              &plan->n_train, err);
}

/* The newest; none where there are too few to say anything. */
static void keep_pairs(struct plan *plan) {
    if (plan->n_pairs < PAIRS_MIN) plan->n_pairs = 0;
    if (plan->n_pairs <= HELD_OUT_MAX) return;
    memmove(plan->pairs, plan->pairs + plan->n_pairs - HELD_OUT_MAX, HELD_OUT_MAX * sizeof *plan->pairs);
    plan->n_pairs = HELD_OUT_MAX;
}

/* All rows into train and judge; keeps the newest of what is too much. What was said to a held-out prompt judges, and so
 * do pairs of answers to it; nothing else that was said or done about it is learned. */
static int split(struct plan *plan, const char *parent_sha256, int64_t max_examples, char reason[256],
                 attune_error *err) {
    size_t n = plan->examples.n, distinct = 0, held_prompts = 0;
    plan->train = malloc((n + 1) * sizeof *plan->train);
    plan->judge = malloc((n + 1) * sizeof *plan->judge);
    plan->pairs = malloc((n + 1) * sizeof *plan->pairs);
    plan->order = malloc((n + 1) * sizeof *plan->order);
    if (!plan->train || !plan->judge || !plan->pairs || !plan->order)
        return error_set_memory(err, "a plan", 4 * n * sizeof *plan->train);
    int code = rows_by_age(plan, plan->order, &n, err);
    if (code != ATTUNE_OK) return code;
    for (size_t i = 0; i < n; i++) {
        size_t row = plan->order[i];
        if (!is_held_out(&plan->examples.items[row], plan->settings.held_out))
            plan->train[plan->n_train++] = row;
        else if (is_answer(plan, row))
            plan->judge[plan->n_judge++] = row;
        else if (plan->examples.items[row].kind == EXAMPLE_PREFERENCE)
            plan->pairs[plan->n_pairs++] = row;
    }
    code = count_prompts(plan, plan->judge, plan->n_judge, &held_prompts, err);
    if (code != ATTUNE_OK) return code;
    if (held_prompts < HELD_OUT_MIN) {
        plan->folds = FOLDS;
        plan->n_pairs = 0;
        plan->n_train = n;
        memcpy(plan->train, plan->order, n * sizeof *plan->train);
    }
    code = choose_rows(plan, parent_sha256, err);
    if (code != ATTUNE_OK) return code;
    if (max_examples > 0 && (size_t)max_examples < plan->n_train) {
        size_t skip = plan->n_train - (size_t)max_examples;
        plan->n_train -= skip;
        memmove(plan->train, plan->train + skip, plan->n_train * sizeof *plan->train);
    }
    if (plan->n_judge > HELD_OUT_MAX) {
        memmove(plan->judge, plan->judge + plan->n_judge - HELD_OUT_MAX, HELD_OUT_MAX * sizeof *plan->judge);
        plan->n_judge = HELD_OUT_MAX;
    }
    keep_pairs(plan);
    if (plan->folds) code = choose_judges(plan, err);
    if (code == ATTUNE_OK) code = count_prompts(plan, plan->train, plan->n_train, &distinct, err);
    if (code != ATTUNE_OK || distinct >= PROMPTS_MIN) return code;
    snprintf(reason, 256, "%zu different prompts that may be trained on: at least %d are needed", distinct,
             PROMPTS_MIN);
    return ATTUNE_PAUSED;
}

/* ---- sizing ---- */

static double work_of(const struct plan *plan, const struct work *work, const size_t *rows, size_t n) {
    return work_of_rows(work, &plan->examples, rows, n, plan->settings.train.micro_tokens);
}

/* With folds: the answers of train; order is scratch until the plan is walked through. */
static double judging_seconds(const struct plan *plan, const struct budget *b) {
    const size_t *rows = plan->folds ? plan->order : plan->judge;
    size_t n = plan->folds ? judges_of_folds(plan, plan->order) : plan->n_judge;
    double opponents = plan->opponent ? 2.0 : 1.0; /* the active adapter and the base, or the base alone */
    double pairs = 2.0 * work_of_pairs(&b->judging, &plan->examples, plan->pairs, plan->n_pairs);
    double looks = (double)looks_expected(plan->settings.epochs);
    return ((opponents + looks) * work_of(plan, &b->judging, rows, n) + pairs) / b->evaluate_rate;
}

/* Each fold trains on the other folds: all of them together on folds - 1 times the rows, then once on all. */
static double training_seconds(const struct plan *plan, const struct budget *b) {
    double passes = plan->folds ? (double)plan->folds : 1.0;
    return passes * plan->settings.epochs * work_of(plan, &b->training, plan->train, plan->n_train) / b->train_rate;
}

double plan_seconds(const struct plan *plan, const struct budget *b) {
    return b->overhead + judging_seconds(plan, b) + training_seconds(plan, b);
}

static void drop_oldest(size_t *rows, size_t *n) { memmove(rows, rows + 1, --*n * sizeof *rows); }

/* How many of the newest rows a short budget must leave: with fewer prompts than this a fold would have nothing to
 * train on. */
static size_t rows_needed(const struct plan *plan) {
    const char *prompts[PROMPTS_MIN];
    size_t distinct = 0, n = 0;
    while (n < plan->n_train && (distinct < PROMPTS_MIN || n < ROWS_MIN)) {
        size_t i = 0, row = plan->train[plan->n_train - ++n];
        const char *prompt = plan->examples.items[row].prompt_hash;
        if (!is_answer(plan, row)) continue;
        while (i < distinct && strcmp(prompts[i], prompt) != 0) i++;
        if (i == distinct && distinct < PROMPTS_MIN) prompts[distinct++] = prompt;
    }
    return n;
}

/* Few rows need to be seen more often; many are overfitted by more passes (docs/benchmarks.md, Learning). */
static double epochs_for(size_t rows) {
    double epochs = floor(4.0 * ENOUGH_ROWS / (double)rows) / 4.0;
    return fmin(fmax(epochs, 1.0), 3.0);
}

/* Fewer passes first, then fewer rows: a first pass over new rows teaches more than a second over old ones. */
static void fit(struct plan *plan, const struct budget *b) {
    if (b->seconds <= 0) return;
    while (!plan->folds && plan->n_judge > HELD_OUT_MIN && judging_seconds(plan, b) > JUDGING_SHARE_MAX * b->seconds)
        drop_oldest(plan->judge, &plan->n_judge);
    double left = b->seconds - b->overhead - judging_seconds(plan, b), wanted = training_seconds(plan, b);
    if (left >= wanted) return;
    double epochs = left > 0 ? plan->settings.epochs * left / wanted : 0.0;
    /* quarters: a plan should not depend on the last digit of a measured rate */
    plan->settings.epochs = epochs >= 1.0 ? floor(4.0 * epochs) / 4.0 : fmin(1.0, plan->settings.epochs);
    size_t needed = rows_needed(plan);
    while (plan->n_train > needed && plan_seconds(plan, b) > b->seconds) drop_oldest(plan->train, &plan->n_train);
}

/* ---- storing and loading ---- */

void plan_configuration(const struct store_run *run, char *out, size_t size) {
    int folds = 0, opponent = 0, end = 0;
    (void)sscanf(run->configuration, "{\"folds\": %d, \"opponent\": %d, %n", &folds, &opponent, &end);
    if (end > 0)
        snprintf(out, size, "{\"folds\": %d, %s", folds, run->configuration + end);
    else
        snprintf(out, size, "%s", run->configuration);
}

static int name_run(struct plan *plan, attune_store *store, const char *parent_sha256, attune_error *err) {
    char configuration[sizeof plan->row.configuration];
    attune_adapter_info opponent;
    struct hash hash;
    ATTUNE_INIT(opponent);
    int code = plan->opponent ? store_adapter_get(store, plan->opponent, &opponent, err) : ATTUNE_OK;
    if (code != ATTUNE_OK) return code;
    plan_configuration(&plan->row, configuration, sizeof configuration);
    hash_start(&hash);
    hash_add_string(&hash, plan->row.base_sha256);
    hash_add_string(&hash, configuration);
    hash_add_string(&hash, parent_sha256);
    hash_add_string(&hash, plan->opponent ? opponent.sha256 : "");
    hash_add_u64(&hash, plan->row.seed);
    for (size_t i = 0; i < plan->n_train; i++) hash_add_string(&hash, plan->examples.items[plan->train[i]].hash);
    hash_add_u64(&hash, plan->n_train);
    if (!plan->folds)
        for (size_t i = 0; i < plan->n_judge; i++) hash_add_string(&hash, plan->examples.items[plan->judge[i]].hash);
    for (size_t i = 0; i < plan->n_pairs; i++) hash_add_string(&hash, plan->examples.items[plan->pairs[i]].hash);
    hash_finish(&hash, plan->row.id);
    return ATTUNE_OK;
}

static int store_plan(attune_store *store, struct plan *plan, char reason[256], attune_error *err) {
    size_t n_judge = plan->folds ? 0 : plan->n_judge, n = plan->n_train + n_judge + plan->n_pairs;
    struct store_run_example *rows = calloc(n + 1, sizeof *rows);
    if (!rows) return error_set_memory(err, "a plan's rows", n * sizeof *rows);
    for (size_t i = 0; i < n; i++) {
        int held_out = i >= plan->n_train;
        size_t row = !held_out                    ? plan->train[i]
                     : i < plan->n_train + n_judge ? plan->judge[i - plan->n_train]
                                                   : plan->pairs[i - plan->n_train - n_judge];
        memcpy(rows[i].content_hash, plan->examples.items[row].hash, sizeof rows[i].content_hash);
        rows[i].interaction = plan->origins[row].interaction;
        rows[i].other = plan->origins[row].other;
        rows[i].position = (int64_t)i;
        rows[i].held_out = held_out;
    }
    int code = store_run_begin(store, &plan->row, rows, n, err);
    free(rows);
    if (code != ATTUNE_ERROR_STATE) return code;
    snprintf(reason, 256, "what it would learn from was changed or forgotten while the run was planned; call again");
    return ATTUNE_PAUSED;
}

static int judge_all(struct plan *plan, attune_error *err) {
    if (!plan->folds) return ATTUNE_OK;
    int code = choose_judges(plan, err);
    if (code != ATTUNE_OK) return code;
    plan->n_judge = judges_of_folds(plan, plan->judge);
    return assign_folds(plan, err);
}

static int describe(struct plan *plan, attune_error *err) {
    char settings[sizeof plan->row.configuration];
    settings_configuration(&plan->settings, settings, sizeof settings);
    int n = snprintf(plan->row.configuration, sizeof plan->row.configuration, "{\"folds\": %d, \"opponent\": %d, %s",
                     plan->folds, plan->opponent, settings + 1);
    if (n < 0 || (size_t)n >= sizeof plan->row.configuration)
        return error_set(err, ATTUNE_ERROR_INTERNAL, NULL, "the run's configuration does not fit its record");
    return ATTUNE_OK;
}

static void fill_row(struct plan *plan, const struct model *model, int parent) {
    plan->row = (struct store_run){.parent = parent, .seed = plan->settings.train.seed,
                                   .examples = (int64_t)plan->n_train, .loss_before = NAN, .loss_after = NAN,
                                   .loss_interval = NAN};
    snprintf(plan->row.state, sizeof plan->row.state, "unfinished");
    snprintf(plan->row.evaluation, sizeof plan->row.evaluation, plan->folds ? "cross-fit" : "held-out");
    snprintf(plan->row.base_sha256, sizeof plan->row.base_sha256, "%s", model->sha256);
    plan->row.started_ms = home_now_ms();
    plan->row.steps = (int64_t)plan_steps(plan, plan->n_train);
    plan->row.epochs = (int64_t)ceil(plan->settings.epochs);
}

/* From rows to a run: which of them, how often, under which name. */
static int decide(struct plan *plan, const struct row_source *source, int parent, const char *parent_sha256,
                  const struct budget *budget, char reason[256], attune_error *err) {
    int code = split(plan, parent_sha256, budget->max_examples, reason, err);
    if (code != ATTUNE_OK) return code;
    if (plan->settings.epochs == 0) plan->settings.epochs = epochs_for(plan->n_train);
    fit(plan, budget);
    fill_row(plan, source->model, parent);
    code = describe(plan, err);
    if (code == ATTUNE_OK) code = judge_all(plan, err);
    if (code != ATTUNE_OK) return code;
    plan->row.held_out = (int64_t)plan->n_judge;
    return name_run(plan, source->store, parent_sha256, err);
}

int plan_make(const struct row_source *source, const struct settings *settings, int parent, const char *parent_sha256,
              int opponent, const struct budget *budget, struct plan *out, char reason[256], attune_error *err) {
    struct plan plan = {.settings = *settings, .opponent = opponent};
    struct gather g = {.model = source->model, .max_tokens = settings->train.max_tokens, .set = &plan.examples};
    int code = token_cache_open(source->home, source->model, settings->train.max_tokens, &g.tokens, err);
    if (code == ATTUNE_OK) token_cache_watch(g.tokens);
    if (code == ATTUNE_OK) code = gather_rows(&g, source->store, settings, err);
    plan.origins = g.origins;
    if (code == ATTUNE_OK) code = replay_rows_mark(source->store, parent, &plan.examples, &plan.earlier, err);
    if (code == ATTUNE_OK) code = decide(&plan, source, parent, parent_sha256, budget, reason, err);
    if (code == ATTUNE_OK) code = store_plan(source->store, &plan, reason, err);
    if (code == ATTUNE_OK) token_cache_keep(g.tokens, &plan.examples, source->store, plan.row.number);
    token_cache_close(g.tokens);
    if (code != ATTUNE_OK) {
        plan_free(&plan);
        return code;
    }
    *out = plan;
    return ATTUNE_OK;
}

static int load_rows(const struct row_source *source, struct token_cache *tokens, struct plan *plan,
                     attune_error *err) {
    struct store_run_example *rows = NULL;
    size_t n = 0;
    int code = store_run_examples(source->store, plan->row.number, &rows, &n, err);
    if (code != ATTUNE_OK) return code;
    plan->train = malloc((n + 1) * sizeof *plan->train);
    plan->judge = malloc((n + 1) * sizeof *plan->judge);
    plan->pairs = malloc((n + 1) * sizeof *plan->pairs);
    plan->order = malloc((n + 1) * sizeof *plan->order);
    if (!plan->train || !plan->judge || !plan->pairs || !plan->order)
        code = error_set_memory(err, "a plan", 4 * n * sizeof *plan->train);
    struct gather g = {.tokens = tokens, .model = source->model, .max_tokens = plan->settings.train.max_tokens,
                       .set = &plan->examples};
    for (size_t i = 0; i < n && code == ATTUNE_OK; i++) {
        size_t row = plan->examples.n;
        code = store_example_get(source->store, rows[i].content_hash, gather_row, &g, err);
        if (code == ATTUNE_OK && plan->examples.n == row) code = ATTUNE_ERROR_NOT_FOUND;
        if (!rows[i].held_out)
            plan->train[plan->n_train++] = row;
        else if (code == ATTUNE_OK && !is_answer(plan, row))
            plan->pairs[plan->n_pairs++] = row;
        else
            plan->judge[plan->n_judge++] = row;
    }
    free(g.origins);
    free(rows);
    return code;
}

int plan_load(const struct row_source *source, const struct store_run *row, struct plan *out, attune_error *err) {
    struct plan plan = {.row = *row};
    struct token_cache *tokens = NULL;
    settings_default(&plan.settings);
    int code = settings_from_configuration(row->configuration, &plan.settings, err);
    if (code == ATTUNE_OK &&
        sscanf(row->configuration, "{\"folds\": %d, \"opponent\": %d", &plan.folds, &plan.opponent) != 2)
        code = error_set(err, ATTUNE_ERROR_FORMAT, "run", "its configuration lacks folds and opponent");
    if (code == ATTUNE_OK && (plan.folds < 0 || plan.folds > FOLDS_MAX))
        code = error_set(err, ATTUNE_ERROR_FORMAT, "run", "impossible folds: %d", plan.folds);
    if (code == ATTUNE_OK)
        code = token_cache_open(source->home, source->model, plan.settings.train.max_tokens, &tokens, err);
    if (code == ATTUNE_OK) code = load_rows(source, tokens, &plan, err);
    if (code == ATTUNE_OK) code = replay_rows_mark(source->store, row->parent, &plan.examples, &plan.earlier, err);
    if (code == ATTUNE_OK) code = judge_all(&plan, err);
    token_cache_close(tokens);
    if (code != ATTUNE_OK) {
        plan_free(&plan);
        return code;
    }
    *out = plan;
    return ATTUNE_OK;
}

/* ---- walking through it ---- */

static size_t rows_in_all(const struct plan *plan, size_t n) {
    double rows = ceil(plan->settings.epochs * (double)n - 1e-9);
    return rows < 1.0 ? 1 : (size_t)rows;
}

size_t plan_steps(const struct plan *plan, size_t n) {
    size_t batch = plan->settings.train.batch;
    return (rows_in_all(plan, n) + batch - 1) / batch;
}

struct ranked {
    uint64_t rank;
    size_t row;
};
static int compare_rank(const void *a, const void *b) {
    const struct ranked *x = a, *y = b;
    if (x->rank != y->rank) return x->rank < y->rank ? -1 : 1;
    return x->row < y->row ? -1 : x->row > y->row;
}

/* The order of an epoch: by a hash of seed, epoch and row, so a row's place does not hang on the others. */
static void order_epoch(struct plan *plan, const size_t *rows, size_t n, size_t epoch) {
    uint64_t of = random_mix(n);
    for (size_t i = 0; i < n; i++) of = random_mix(of ^ rows[i]);
    if (plan->order_of == of && plan->order_epoch == epoch) return;
    memcpy(plan->order, rows, n * sizeof *rows);
    struct ranked *ranked = plan->settings.shuffle ? malloc(n * sizeof *ranked) : NULL;
    if (ranked) {
        uint64_t key = random_u64(plan->settings.train.seed, 0x65706f6368u + epoch);
        for (size_t i = 0; i < n; i++)
            ranked[i] = (struct ranked){random_u64(key, plan->examples.items[rows[i]].key), rows[i]};
        qsort(ranked, n, sizeof *ranked, compare_rank);
        for (size_t i = 0; i < n; i++) plan->order[i] = ranked[i].row;
        free(ranked);
    }
    plan->order_of = of;
    plan->order_epoch = epoch;
}

size_t plan_step_rows(struct plan *plan, const size_t *rows, size_t n, size_t step, size_t *out) {
    size_t batch = plan->settings.train.batch, all = rows_in_all(plan, n), count = 0;
    for (size_t i = step * batch; i < all && count < batch; i++) {
        if (count == 0 || i % n == 0) order_epoch(plan, rows, n, i / n);
        out[count++] = plan->order[i % n];
    }
    return count;
}

size_t plan_fold_rows(const struct plan *plan, int fold, int judged, size_t *out) {
    size_t n = 0;
    for (size_t i = 0; i < plan->n_train; i++) {
        size_t row = plan->train[i];
        if ((plan->fold[i] == fold) == judged && (!judged || plan_can_judge(plan, row))) out[n++] = row;
    }
    return n;
}
