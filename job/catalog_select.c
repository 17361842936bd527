#include "job/catalog_select.h"

#include "core/base/hash.h"
#include "core/base/options.h"
#include "job/run.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 10, TOGETHER = 512 };

static size_t longest(const struct example_set *set) {
    size_t most = TOGETHER;
    for (size_t i = 0; i < set->n; i++)
        if (set->items[i].n > most) most = set->items[i].n;
    return most;
}

/* ---- by the loss itself ---- */

int catalog_losses(const struct catalog_question *q, const struct catalog_entry *entry, const size_t *rows, size_t n,
                   double *nll, attune_error *err) {
    struct lora *lora = NULL;
    struct evaluator evaluator = {0};
    int code = entry ? catalog_adapter(q->catalog, entry, q->model, &lora, err) : ATTUNE_OK;
    struct weights weights = {q->model, q->model->layers, lora ? lora->pairs : NULL};
    struct evaluator_shape shape = {longest(q->set), lora ? lora->config.rank : 1, 1, 0};
    if (code == ATTUNE_OK) code = evaluator_create(q->model, q->pool, &shape, 0, &evaluator, err);
    if (code == ATTUNE_OK) code = evaluator_run(&evaluator, &weights, NULL, q->set, rows, n, nll, err);
    evaluator_free(&evaluator);
    lora_destroy(lora);
    return code;
}

/* ---- by one gradient ---- */

/* Entries from `first` on whose pairs lie in one pair, one below the other. */
struct stack {
    size_t first, n, rank;
    struct lora **loras; /* (n) */
    struct trainer *trainer;
};

static void stack_free(struct stack *s) {
    for (size_t i = 0; s->loras && i < s->n; i++) lora_destroy(s->loras[i]);
    free(s->loras);
    trainer_destroy(s->trainer);
    memset(s, 0, sizeof *s);
}

static int read_stack(const struct catalog_question *q, struct stack *s, attune_error *err) {
    size_t left = q->catalog->n - s->first;
    s->loras = calloc(left, sizeof *s->loras);
    if (!s->loras) return error_set_memory(err, "a catalog's adapters", left * sizeof *s->loras);
    while (s->n < left) {
        struct lora *lora = NULL;
        int code = catalog_adapter(q->catalog, &q->catalog->entries[s->first + s->n], q->model, &lora, err);
        if (code != ATTUNE_OK) return code;
        if (s->rank + lora->config.rank > LORA_RANK_MAX) {
            lora_destroy(lora);
            break;
        }
        s->rank += lora->config.rank;
        s->loras[s->n++] = lora;
    }
    return ATTUNE_OK;
}

/* A: those of the entries; B stays 0. */
static void fill_stack(const struct stack *s, const struct model *model, struct lora *lora) {
    for (size_t l = 0; l < lora->L; l++) {
        for (size_t t = 0; t < TARGET_COUNT; t++) {
            size_t a = 0, b = 0, cols = model->layers[l].linear[t].cols;
            if (!lora_pair_offset(lora, model, l, t, &a, &b)) continue;
            for (size_t i = 0; i < s->n; i++) {
                const struct low_rank *pair = &s->loras[i]->pairs[l].target[t];
                if (pair->rank) memcpy(lora->parameters + a, pair->a, pair->rank * cols * sizeof(float));
                a += s->loras[i]->config.rank * cols;
            }
        }
    }
}

static int open_stack(const struct catalog_question *q, struct stack *s, attune_error *err) {
    struct train_config config;
    struct lora *start = NULL;
    int code = read_stack(q, s, err);
    if (code != ATTUNE_OK) return code;
    train_config_default(&config);
    config.lora = (struct lora_config){s->rank, (float)s->rank, LORA_ALL_TARGETS};
    config.precision = PRECISION_F32; /* as all that judges */
    config.clip = 0.0f;
    config.max_tokens = config.micro_tokens = longest(q->set);
    code = lora_create(q->model, &config.lora, &start, err);
    if (code != ATTUNE_OK) return code;
    fill_stack(s, q->model, start);
    code = trainer_create(q->model, q->pool, &config, start, &s->trainer, err);
    lora_destroy(start); /* read again for pairs and thumbs only, and there are none */
    return code;
}

/* <dL/dB of the entry's rows of the stack, B of the entry>, over all matrices. */
static double gain_of(const struct stack *s, const struct model *model, size_t entry, size_t at) {
    const struct lora *lora = s->loras[entry];
    double sum = 0;
    for (size_t l = 0; l < lora->L; l++) {
        for (size_t t = 0; t < TARGET_COUNT; t++) {
            const struct low_rank *pair = &lora->pairs[l].target[t];
            size_t a, b, rows = model->layers[l].linear[t].rows;
            if (!pair->rank || !lora_pair_offset(s->trainer->lora, model, l, t, &a, &b)) continue;
            double product = 0;
            for (size_t o = 0; o < rows; o++)
                for (size_t r = 0; r < pair->rank; r++)
                    product += (double)s->trainer->gradient[b + o * s->rank + at + r] * pair->b[o * pair->rank + r];
            sum += product;
        }
    }
    return -sum * (double)lora->config.alpha / (double)lora->config.rank;
}

/* A step at rate 0 leaves the gradient behind, and nothing else. */
static int gains_of_step(const struct catalog_question *q, struct stack *s, const size_t *rows, size_t n, double *gain,
                         attune_error *err) {
    double loss;
    size_t tokens, at = 0;
    int code = trainer_step(s->trainer, q->set, rows, n, 0.0f, &loss, &tokens, err);
    if (code != ATTUNE_OK) return code;
    if (!isfinite(loss)) return error_set(err, ATTUNE_ERROR_STATE, NULL, "the loss of these rows is not a finite number");
    for (size_t i = 0; i < s->n; i++) {
        gain[s->first + i] = gain_of(s, q->model, i, at);
        at += s->loras[i]->config.rank;
    }
    return ATTUNE_OK;
}

int catalog_gains(const struct catalog_question *q, const size_t *rows, size_t n, int each, double *gain,
                  attune_error *err) {
    int code = ATTUNE_OK;
    for (size_t first = 0; first < q->catalog->n && code == ATTUNE_OK;) {
        struct stack s = {.first = first};
        code = open_stack(q, &s, err);
        if (code == ATTUNE_OK && !each) code = gains_of_step(q, &s, rows, n, gain, err);
        for (size_t i = 0; i < n && each && code == ATTUNE_OK; i++)
            code = gains_of_step(q, &s, &rows[i], 1, gain + i * q->catalog->n, err);
        first += s.n;
        stack_free(&s);
    }
    return code;
}

/* ---- the methods: gain(catalog->n), NaN where an entry was dropped on the way ---- */

struct selecting {
    struct catalog_question question;
    size_t *rows, n;
    double *nll; /* (n) */
    double *gain;
    int64_t judged; /* rows times entries that a loss was computed of; the base counts too */
};

static int sum_losses(struct selecting *s, const struct catalog_entry *entry, size_t from, size_t to, double *sum,
                      attune_error *err) {
    int code = catalog_losses(&s->question, entry, s->rows + from, to - from, s->nll, err);
    for (size_t i = 0; i < to - from && code == ATTUNE_OK; i++) *sum += s->nll[i];
    s->judged += (int64_t)(to - from);
    return code;
}

static double tokens_of(const struct selecting *s, size_t n) {
    double tokens = 0;
    for (size_t i = 0; i < n; i++) tokens += (double)s->question.set->items[s->rows[i]].n_supervised;
    return tokens;
}

static int by_loss(struct selecting *s, attune_error *err) {
    const struct catalog *c = s->question.catalog;
    double base = 0;
    int code = sum_losses(s, NULL, 0, s->n, &base, err);
    for (size_t e = 0; e < c->n && code == ATTUNE_OK; e++) {
        double sum = 0;
        code = sum_losses(s, &c->entries[e], 0, s->n, &sum, err);
        s->gain[e] = (base - sum) / tokens_of(s, s->n);
    }
    return code;
}

struct candidate {
    size_t entry;
    double sum;
};
static int compare_candidates(const void *a, const void *b) {
    const struct candidate *x = a, *y = b;
    if (x->sum != y->sum) return x->sum < y->sum ? -1 : 1;
    return x->entry < y->entry ? -1 : x->entry > y->entry;
}

/* Successive halving (Jamieson & Talwalkar 2016): the better half goes on, with twice as many rows. */
static int by_halving(struct selecting *s, attune_error *err) {
    const struct catalog *c = s->question.catalog;
    struct candidate *list = calloc(c->n, sizeof *list);
    size_t left = c->n, from = 0, to = s->n;
    double base = 0;
    int code = list ? sum_losses(s, NULL, 0, s->n, &base, err)
                    : error_set_memory(err, "a selection", c->n * sizeof *list);
    for (size_t half = left; half > 2; half = (half + 1) / 2) to = (to + 1) / 2;
    for (size_t e = 0; e < c->n && code == ATTUNE_OK; e++) list[e].entry = e, s->gain[e] = NAN;
    while (from < s->n && code == ATTUNE_OK) {
        for (size_t i = 0; i < left && code == ATTUNE_OK; i++)
            code = sum_losses(s, &c->entries[list[i].entry], from, to, &list[i].sum, err);
        qsort(list, left, sizeof *list, compare_candidates);
        if (left > 2) left = (left + 1) / 2;
        from = to;
        to = 2 * to < s->n && left > 2 ? 2 * to : s->n;
    }
    for (size_t i = 0; i < left && code == ATTUNE_OK; i++)
        s->gain[list[i].entry] = (base - list[i].sum) / tokens_of(s, s->n);
    free(list);
    return code;
}

static int by_gradient(struct selecting *s, attune_error *err) {
    return catalog_gains(&s->question, s->rows, s->n, 0, s->gain, err);
}

static const struct method {
    const char *name;
    int (*run)(struct selecting *s, attune_error *err);
} methods[] = {{"loss", by_loss}, {"gradient", by_gradient}, {"halving", by_halving}}; /* the first by default */

static int find_method(const char *name, const struct method **out, attune_error *err) {
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) {
        if (name && strcmp(methods[i].name, name) != 0) continue;
        *out = &methods[i];
        return ATTUNE_OK;
    }
    return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "no way to select is called %.40s: gradient, loss or halving", name);
}

/* ---- the person's rows ---- */

struct taking {
    struct example_set *set;
    const struct model *model;
    size_t max, max_tokens;
};
static int take_row(const struct store_row *row, void *user, attune_error *err) {
    struct taking *t = user;
    int added;
    if (t->set->n >= t->max) return ATTUNE_DONE;
    return example_add(t->set, t->model, row->messages, row->n_messages, row->response, row->content_hash,
                       row->prompt_hash, t->max_tokens, &added, err);
}

struct opened {
    attune_catalog_select_options options;
    struct catalog catalog;
    struct settings settings;
    char home[HOME_PATH_MAX];
    struct model *model;
    struct pool *pool;
    struct example_set set;
};

static int open_base(struct opened *o, attune_error *err) {
    char sha256[65];
    settings_default(&o->settings);
    if (!o->options.base) {
        int code = home_resolve(o->options.home, o->home, err);
        if (code == ATTUNE_OK) code = settings_read(o->home, &o->settings, err);
        return code == ATTUNE_OK ? home_model(o->home, &o->settings, FILE_MAP, &o->model, err) : code;
    }
    int code = model_open(o->options.base, FILE_MAP, &o->model, err);
    if (code != ATTUNE_OK) return code;
    hash_bytes(o->model->gguf->file.data, o->model->gguf->file.size, sha256);
    model_set_hash(o->model, sha256);
    return ATTUNE_OK;
}

/* Those that have consent, the newest. */
static int take_rows_of_home(struct opened *o, struct taking *taking, attune_error *err) {
    attune_store *store = NULL;
    attune_store_options options;
    struct store_example_query query = {.kind = STORE_EXAMPLE_SFT, .newest = (int64_t)taking->max};
    if (o->options.base)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "with a base in place of a home, a file of rows is needed");
    ATTUNE_INIT(options);
    options.key_file = o->options.key_file;
    int code = attune_store_open(o->home, &options, &store, err);
    if (code == ATTUNE_OK) code = store_maintain(store, 0, err);
    if (code == ATTUNE_OK) code = store_examples(store, &query, take_row, taking, err);
    attune_store_close(store);
    return code;
}

static int take_rows(struct opened *o, attune_error *err) {
    struct taking taking = {&o->set, o->model, o->options.max_examples ? (size_t)o->options.max_examples : ROWS,
                            o->settings.train.max_tokens};
    int code = o->options.rows ? store_rows_from_file(o->options.rows, take_row, &taking, err)
                               : take_rows_of_home(o, &taking, err);
    if (code == ATTUNE_DONE) code = ATTUNE_OK;
    if (code == ATTUNE_OK && o->set.n == 0)
        code = error_set(err, ATTUNE_ERROR_STATE, o->options.rows,
                         "there is no row that may be learned from: nothing tells whom this person resembles");
    return code;
}

/* ---- the answer ---- */

struct ranking {
    size_t entry;
    double gain, share;
};
static int compare_rankings(const void *a, const void *b) {
    const struct ranking *x = a, *y = b;
    if (isnan(x->gain) != isnan(y->gain)) return isnan(x->gain) ? 1 : -1;
    if (!isnan(x->gain) && x->gain != y->gain) return x->gain > y->gain ? -1 : 1;
    return x->entry < y->entry ? -1 : x->entry > y->entry;
}

/* How much each entry stands out above the mean of those that were looked at; parts of 1. */
static void share_out(struct ranking *list, size_t n) {
    double mean = 0, sum = 0;
    size_t known = 0;
    for (size_t i = 0; i < n && !isnan(list[i].gain); i++, known++) mean += list[i].gain;
    if (known > 1) mean /= (double)known;
    else mean = 0;
    for (size_t i = 0; i < known; i++) sum += fmax(list[i].gain - mean, 0);
    for (size_t i = 0; i < known && sum > 0; i++) list[i].share = fmax(list[i].gain - mean, 0) / sum;
}

static int tell_matches(const struct selecting *s, attune_catalog_match_callback callback, void *user,
                        attune_error *err) {
    const struct catalog *c = s->question.catalog;
    struct ranking *list = calloc(c->n, sizeof *list);
    if (!list) return error_set_memory(err, "a selection", c->n * sizeof *list);
    for (size_t e = 0; e < c->n; e++) list[e] = (struct ranking){e, s->gain[e], 0};
    qsort(list, c->n, sizeof *list, compare_rankings);
    share_out(list, c->n);
    for (size_t i = 0; i < c->n && callback; i++) {
        const struct catalog_entry *e = &c->entries[list[i].entry];
        char file[CATALOG_FILE_SIZE];
        catalog_entry_file(e->id, file);
        attune_catalog_match match = {sizeof match, e->name, list[i].gain, list[i].share, file};
        if (callback(&match, user)) break;
    }
    free(list);
    return ATTUNE_OK;
}

static int select_with(struct opened *o, const struct method *method, struct selecting *s, attune_error *err) {
    s->question = (struct catalog_question){&o->catalog, o->model, o->pool, &o->set};
    s->n = o->set.n;
    s->rows = malloc(s->n * sizeof *s->rows);
    s->nll = malloc(s->n * sizeof *s->nll);
    s->gain = malloc(o->catalog.n * sizeof *s->gain);
    if (!s->rows || !s->nll || !s->gain)
        return error_set_memory(err, "a selection", (2 * s->n + o->catalog.n) * sizeof *s->gain);
    for (size_t i = 0; i < s->n; i++) s->rows[i] = i;
    return method->run(s, err);
}

static int open_all(const char *path, const char *public_key, struct opened *o, attune_error *err) {
    struct public_key key;
    int code = public_key_read(public_key, &key, err);
    if (code == ATTUNE_OK) code = catalog_open(path, &key, &o->catalog, err);
    if (code == ATTUNE_OK && o->catalog.n == 0)
        code = error_set(err, ATTUNE_ERROR_STATE, path, "the catalog has no entries");
    if (code == ATTUNE_OK) code = open_base(o, err);
    if (code == ATTUNE_OK) code = catalog_check_base(&o->catalog, o->model, err);
    if (code == ATTUNE_OK && !o->model->chat) {
        if (err) *err = o->model->chat_error;
        code = o->model->chat_error.code;
    }
    if (code == ATTUNE_OK) code = kernels_select(err);
    if (code == ATTUNE_OK) code = pool_create(o->options.threads, &o->pool, err);
    return code == ATTUNE_OK ? take_rows(o, err) : code;
}

int attune_catalog_select(const char *path, const char *public_key, const attune_catalog_select_options *options,
                          attune_catalog_match_callback callback, void *user, attune_catalog_selected *selected,
                          attune_error *err) {
    struct opened o = {.model = NULL};
    struct selecting s = {.n = 0};
    const struct method *method = NULL;
    attune_catalog_selected told;
    ATTUNE_INIT(told);
    if (!path) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "a catalog wants a folder");
    int code = options_read(&o.options, sizeof o.options, options, "attune_catalog_select_options", err);
    if (code == ATTUNE_OK && o.options.max_examples < 0)
        code = error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "a selection wants a number of rows of at least 0");
    if (code == ATTUNE_OK) code = find_method(o.options.method, &method, err);
    if (code == ATTUNE_OK) code = open_all(path, public_key, &o, err);
    if (code == ATTUNE_OK) code = select_with(&o, method, &s, err);
    if (code == ATTUNE_OK) {
        snprintf(told.method, sizeof told.method, "%s", method->name);
        told.rows = (int64_t)s.n;
        told.entries = (int64_t)o.catalog.n;
        told.judged = s.judged;
        code = options_write(selected, &told, sizeof told, "attune_catalog_selected", err);
    }
    if (code == ATTUNE_OK) code = tell_matches(&s, callback, user, err);
    free(s.rows);
    free(s.nll);
    free(s.gain);
    example_set_free(&o.set);
    pool_destroy(o.pool);
    model_close(o.model);
    catalog_free(&o.catalog);
    return code;
}
