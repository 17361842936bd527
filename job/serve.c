/* What a home adds to inference: the active adapter, the settings' merge mode, the cache of merged weights, and
 * evaluation of rows. */
#include "core/base/options.h"
#include "datastore/store.h"
#include "inference/engine.h"
#include "job/drift.h"
#include "job/home.h"
#include "trainer/packer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct choice {
    char path[HOME_PATH_MAX + 32];
    int number; /* 0: base, -1: a file */
    char current[128], sha256[65]; /* sha256: of the active adapter, "" for others */
};

/* "active", "base", a number, or a file. */
static int choose(const char *home, const char *adapter, struct choice *out, attune_error *err) {
    int active;
    char *end, sha256[65];
    *out = (struct choice){.number = 0};
    int code = store_current_read(home, &active, sha256, out->current, err);
    if (code != ATTUNE_OK) return code;
    if (!adapter || strcmp(adapter, "active") == 0) {
        out->number = active;
    } else if (strcmp(adapter, "base") != 0) {
        errno = 0;
        long number = strtol(adapter, &end, 10);
        if (end != adapter && !*end) {
            if (errno || number < 0 || number > 999999999)
                return error_set(err, ATTUNE_ERROR_NOT_FOUND, NULL, "no adapter %.40s", adapter);
            out->number = (int)number;
        } else {
            if (strlen(adapter) >= sizeof out->path)
                return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the adapter's path is too long");
            strcpy(out->path, adapter);
            out->number = -1;
        }
    }
    if (out->number > 0) store_adapter_path(home, out->number, out->path, sizeof out->path);
    if (out->number > 0 && out->number == active) memcpy(out->sha256, sha256, sizeof sha256);
    return ATTUNE_OK;
}

/* merge NULL, drift_limit 0: as the settings say. */
static int choose_merge(const char *home, const char *merge, double drift_limit, const struct settings *settings,
                        struct variant_request *request, attune_error *err) {
    request->merge = settings->merge;
    int code = merge ? merge_mode_parse(merge, &request->merge, err) : ATTUNE_OK;
    if (code != ATTUNE_OK || request->merge != MERGE_AUTO) return code;
    request->automatic = 1;
    request->merge = MERGE_NONE;
    if (drift_limit == 0) drift_limit = settings->drift_limit;
    return request->number > 0 ? serve_choose_merge(home, request->number, drift_limit, &request->merge, err)
                               : ATTUNE_OK;
}

/* What is asked for, as far as it can be told without the base. The request borrows from the choice. */
static int choose_request(const char *home, const char *adapter, const char *merge, double drift_limit,
                          const struct settings *settings, struct choice *choice, struct variant_request *request,
                          attune_error *err) {
    int code = choose(home, adapter, choice, err);
    if (code != ATTUNE_OK) return code;
    request->adapter = choice->number ? choice->path : NULL;
    request->number = choice->number;
    request->sha256 = choice->sha256;
    request->current = choice->current;
    return choose_merge(home, merge, drift_limit, settings, request, err);
}

/* An adapter that is known by its number alone is not found, where its file is not. */
static int explain(int code, const struct choice *choice, attune_error *err) {
    if (code != ATTUNE_ERROR_IO || choice->number <= 0) return code;
    return error_set(err, ATTUNE_ERROR_NOT_FOUND, choice->path,
                     "adapter %d cannot be read; `attune adapters list` shows those there are", choice->number);
}

int attune_engine_open(const char *home, const attune_engine_options *options, attune_engine **out,
                       attune_error *err) {
    char path[HOME_PATH_MAX], cache[HOME_PATH_MAX];
    struct settings settings;
    struct choice choice;
    struct variant_request request = {.from = engine_now()};
    struct model *model = NULL;
    attune_engine *engine = NULL;
    attune_engine_options o;
    if (!out) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "opening an engine wants a place for it");
    int code = options_read(&o, sizeof o, options, "attune_engine_options", err);
    if (code == ATTUNE_OK) code = engine_options_check(&o, err);
    if (code == ATTUNE_OK) code = home_resolve(home, path, err);
    if (code == ATTUNE_OK) code = home_file(path, "cache", cache, err);
    if (code == ATTUNE_OK) code = settings_read(path, &settings, err);
    if (code == ATTUNE_OK)
        code = choose_request(path, o.adapter, o.merge, o.drift_limit, &settings, &choice, &request, err);
    if (code == ATTUNE_OK) code = home_model(path, &settings, o.read ? FILE_READ : FILE_MAP, &model, err);
    if (code != ATTUNE_OK) return code;
    struct merge_progress progress = {o.on_progress, o.user};
    if (o.on_progress) request.progress = &progress;
    if (!o.no_cache) request.cache = cache;
    code = explain(engine_create(model, &request, &o, &engine, err), &choice, err);
    if (code != ATTUNE_OK) return code;
    memcpy(engine->home, path, sizeof path);
    *out = engine;
    return ATTUNE_OK;
}

static int swap_in_home(attune_engine *engine, const char *adapter, const char *merge, attune_error *err) {
    struct settings settings;
    struct choice choice;
    struct variant_request request = {.from = engine_now()};
    int code = settings_read(engine->home, &settings, err);
    if (!adapter && *engine->adapter) adapter = engine->adapter;
    if (!merge && *engine->merge) merge = engine->merge;
    if (code == ATTUNE_OK)
        code = choose_request(engine->home, adapter, merge, engine->drift_limit, &settings, &choice, &request, err);
    if (code != ATTUNE_OK) return code;
    if (strcmp(settings.base_sha256, engine->model->sha256) != 0)
        return error_set(err, ATTUNE_ERROR_MISMATCH, engine->home,
                         "the home has another base model by now; open a new engine");
    if (*engine->cache) request.cache = engine->cache;
    return explain(engine_replace(engine, &request, err), &choice, err);
}

int attune_engine_swap(attune_engine *engine, const char *adapter, const char *merge, attune_error *err) {
    if (!engine) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "no engine to swap the adapter of");
    int code = engine_check_process(engine, err);
    if (code != ATTUNE_OK) return code;
    if (!*engine->home) return engine_swap_files(engine, adapter, merge, err);
    pthread_mutex_lock(&engine->swapping); /* before CURRENT is read: the last swap to end serves the newest */
    code = swap_in_home(engine, adapter, merge, err);
    pthread_mutex_unlock(&engine->swapping);
    return code;
}

int attune_engine_is_stale(const attune_engine *engine) {
    int number;
    char text[128];
    if (!engine || !*engine->home) return 0;
    if (store_current_read(engine->home, &number, NULL, text, NULL) != ATTUNE_OK) return 0;
    struct variant *served = engine_hold(engine);
    int stale = strcmp(text, served->current) != 0;
    engine_release(served);
    return stale;
}

/* ---- evaluation ---- */

struct evaluation {
    const attune_engine *engine;
    struct variant *variant; /* held: a swap meanwhile changes nothing */
    struct example_set set;
    int64_t *numbers, n_rows; /* numbers(set.n): which of the file's rows each example is, from 1; rows seen */
    size_t room;
    int64_t max_examples;
    size_t max_tokens, longest;
    void (*on_row)(const attune_eval_row *row, void *user);
    void *user;
};

static int keep_number(struct evaluation *e, attune_error *err) {
    if (e->set.n > e->room) {
        size_t room = 2 * e->set.n;
        int64_t *larger = realloc(e->numbers, room * sizeof *larger);
        if (!larger) return error_set_memory(err, "an evaluation", room * sizeof *larger);
        e->numbers = larger;
        e->room = room;
    }
    e->numbers[e->set.n - 1] = e->n_rows;
    return ATTUNE_OK;
}

static int take_row(const struct store_row *row, void *user, attune_error *err) {
    struct evaluation *e = user;
    int added;
    if (e->max_examples > 0 && e->set.n >= (size_t)e->max_examples) return ATTUNE_DONE;
    e->n_rows++;
    int code = example_add(&e->set, e->engine->model, row->messages, row->n_messages, row->response, row->content_hash,
                           row->prompt_hash, e->max_tokens, &added, err);
    if (code != ATTUNE_OK || !added) return code;
    if (e->set.items[e->set.n - 1].n > e->longest) e->longest = e->set.items[e->set.n - 1].n;
    return keep_number(e, err);
}

static void tell_row(const struct evaluation *e, size_t i, double nll) {
    size_t tokens = e->set.items[i].n_supervised;
    attune_eval_row row = {e->numbers[i], nll / (double)(tokens ? tokens : 1), (int64_t)tokens};
    if (e->on_row) e->on_row(&row, e->user);
}

static int evaluate(struct evaluation *e, attune_eval_result *result, attune_error *err) {
    const attune_engine *engine = e->engine;
    struct evaluator evaluator = {0};
    size_t n = e->set.n, rank = variant_rank(e->variant) ? variant_rank(e->variant) : 1;
    size_t *rows = malloc(n * sizeof *rows);
    double *nll = malloc(n * sizeof *nll), sum = 0;
    struct evaluator_shape shape = {e->longest > 512 ? e->longest : 512, rank, 1, 0};
    int code = rows && nll ? evaluator_create(engine->model, engine->pool, &shape, 0, &evaluator, err)
                           : error_set_memory(err, "an evaluation", n * sizeof *nll);
    for (size_t i = 0; i < n && code == ATTUNE_OK; i++) rows[i] = i;
    if (code == ATTUNE_OK)
        code = evaluator_run(&evaluator, &e->variant->weights, NULL, &e->set, rows, n, nll, err);
    for (size_t i = 0; i < n && code == ATTUNE_OK; i++) {
        sum += nll[i];
        result->tokens += (int64_t)e->set.items[i].n_supervised;
        tell_row(e, i, nll[i]);
    }
    result->examples = (int64_t)n;
    if (result->tokens > 0) result->nll = sum / (double)result->tokens;
    evaluator_free(&evaluator);
    free(rows);
    free(nll);
    return code;
}

int attune_eval(attune_engine *engine, const char *path, const attune_eval_options *options,
                attune_eval_result *result, attune_error *err) {
    attune_eval_options o;
    attune_eval_result r;
    struct settings settings;
    ATTUNE_INIT(r);
    int code = options_read(&o, sizeof o, options, "attune_eval_options", err);
    if (code != ATTUNE_OK) return code;
    if (!engine || !path || o.max_examples < 0 || o.max_tokens < 0)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL,
                         "evaluation wants an engine, a file, and limits of at least 0");
    settings_default(&settings);
    if (*engine->home && (code = settings_read(engine->home, &settings, err)) != ATTUNE_OK) return code;
    struct evaluation e = {.engine = engine, .max_examples = o.max_examples, .on_row = o.on_row, .user = o.user,
                           .max_tokens = o.max_tokens ? (size_t)o.max_tokens : settings.train.max_tokens};
    code = store_rows_from_file(path, take_row, &e, err);
    if (code == ATTUNE_DONE) code = ATTUNE_OK;
    if (code == ATTUNE_OK && e.set.n == 0)
        code = error_set(err, ATTUNE_ERROR_ARGUMENT, path, "no row with a response that fits %zu tokens", e.max_tokens);
    if (code == ATTUNE_OK) {
        e.variant = engine_hold(engine);
        code = evaluate(&e, &r, err);
        engine_release(e.variant);
    }
    example_set_free(&e.set);
    free(e.numbers);
    return code == ATTUNE_OK ? options_write(result, &r, sizeof r, "attune_eval_result", err) : code;
}
