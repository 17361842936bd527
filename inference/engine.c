#include "inference/engine.h"

#include "adapters/merged_cache.h"
#include "core/base/hash.h"
#include "core/base/options.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

double engine_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- variants ---- */

static void variant_destroy(struct variant *v) {
    if (!v) return;
    merge_destroy(v->merged);
    lora_destroy(v->lora);
    free(v);
}

/* The pairs have gone into the matrices. */
static void take_merged(struct variant *v, struct merged *merged, enum merge_mode mode) {
    merge_destroy(v->merged);
    lora_destroy(v->lora);
    v->merged = merged;
    v->merge = mode;
    v->weights.layers = merge_layers(merged);
    v->weights.pairs = NULL;
    v->lora = NULL;
}

/* For hashing, which may take a second for big models: during a swap the threads are the sessions'. */
static struct pool *idle_pool(const attune_engine *e) { return e->variant ? NULL : e->pool; }

static int open_cached(const attune_engine *e, struct variant *v, const struct variant_request *r, attune_error *err) {
    struct merged_key key = {v->adapter_sha256, r->merge};
    struct merged *merged = NULL;
    if (!r->cache) return error_set(err, ATTUNE_ERROR_NOT_FOUND, NULL, "no cache of merged weights");
    int code = merged_cache_open(r->cache, &key, e->model, idle_pool(e), &merged, err);
    if (code == ATTUNE_OK) take_merged(v, merged, r->merge);
    return code;
}

/* Into the cache, and on from there: pages of the file are shared, and given back when memory is short. Where that
 * fails the weights stay in memory. */
static void keep_merged(const attune_engine *e, struct variant *v, const struct variant_request *r) {
    struct merged_key key = {v->adapter_sha256, v->merge};
    if (!r->cache) return;
    if (merged_cache_keep(r->cache, &key, e->model, idle_pool(e), v->merged, 0, NULL) != ATTUNE_OK) return;
    /* Forgetting removes the adapter before it empties the cache: when the adapter is there still, so will this be
     * seen. */
    if (access(r->adapter, F_OK) != 0)
        (void)merged_cache_remove(r->cache, v->adapter_sha256, NULL);
    else
        (void)open_cached(e, v, r, NULL);
}

static int merge_now(const attune_engine *e, struct variant *v, const struct variant_request *r, attune_error *err) {
    struct merged *merged = NULL;
    double from = engine_now();
    int code = merge_create(e->model, v->lora, r->merge, e->pool, r->progress, &merged, err);
    if (code != ATTUNE_OK) return code;
    v->seconds_merge = engine_now() - from;
    take_merged(v, merged, r->merge);
    keep_merged(e, v, r);
    return ATTUNE_OK;
}

/* What the cache alone can give: nobody but the job has the rows to make it from. */
static int no_calibrated(const struct variant_request *r, attune_error *err) {
    if (r->automatic) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_NOT_FOUND, r->adapter,
                     "no calibrated merge of this adapter is kept: the nightly job makes one, in a home; until then "
                     "merge with \"same\", or with \"none\" for the adapter as it was trained");
}

/* An adapter whose hash is known need not be read to be found merged. */
static int is_cached(const attune_engine *e, struct variant *v, const struct variant_request *r) {
    if (r->merge == MERGE_NONE || !r->sha256 || !*r->sha256 || access(r->adapter, R_OK) != 0) return 0;
    snprintf(v->adapter_sha256, sizeof v->adapter_sha256, "%s", r->sha256);
    return open_cached(e, v, r, NULL) == ATTUNE_OK;
}

static int read_adapter(const attune_engine *e, struct variant *v, const struct variant_request *r,
                        attune_error *err) {
    struct model base = *e->model;
    if (!*base.sha256) memcpy(base.sha256, e->base_sha256, sizeof base.sha256);
    int code = adapter_read(r->adapter, &base, &v->lora, NULL, v->adapter_sha256, err);
    if (code != ATTUNE_OK) return code;
    if (r->sha256 && *r->sha256 && strcmp(r->sha256, v->adapter_sha256) != 0)
        return error_set(err, ATTUNE_ERROR_FORMAT, r->adapter,
                         "the file is not the one that was published; use another adapter");
    v->weights.pairs = v->lora->pairs;
    return ATTUNE_OK;
}

/* The adapter goes beside the base or into it. */
static int add_adapter(const attune_engine *e, struct variant *v, const struct variant_request *r, attune_error *err) {
    if (is_cached(e, v, r)) {
        v->from_cache = 1;
        return ATTUNE_OK;
    }
    int code = read_adapter(e, v, r, err);
    if (code != ATTUNE_OK || r->merge == MERGE_NONE) return code;
    if (open_cached(e, v, r, NULL) == ATTUNE_OK) {
        v->from_cache = 1;
        return ATTUNE_OK;
    }
    return r->merge == MERGE_CALIBRATED ? no_calibrated(r, err) : merge_now(e, v, r, err);
}

static int variant_create(const attune_engine *e, const struct variant_request *r, struct variant **out,
                          attune_error *err) {
    struct variant *v = calloc(1, sizeof *v);
    if (!v) return error_set_memory(err, "an engine's weights", sizeof *v);
    atomic_init(&v->holders, 1);
    v->merge = MERGE_NONE;
    v->adapter_number = r->number;
    v->weights = (struct weights){.model = e->model, .layers = e->model->layers};
    if (r->current) snprintf(v->current, sizeof v->current, "%s", r->current);
    int code = r->adapter ? add_adapter(e, v, r, err) : ATTUNE_OK;
    v->seconds_open = engine_now() - r->from;
    if (code != ATTUNE_OK)
        variant_destroy(v);
    else
        *out = v;
    return code;
}

struct variant *engine_hold(const attune_engine *engine) {
    attune_engine *e = (attune_engine *)(uintptr_t)engine; /* the lock and the count are not the engine's value */
    pthread_mutex_lock(&e->lock);
    struct variant *v = e->variant;
    atomic_fetch_add(&v->holders, 1);
    pthread_mutex_unlock(&e->lock);
    return v;
}

void engine_release(struct variant *v) {
    if (v && atomic_fetch_sub(&v->holders, 1) == 1) variant_destroy(v);
}

size_t variant_rank(const struct variant *v) { return v->weights.pairs ? v->lora->config.rank : 0; }

static uint64_t merged_bytes(const struct variant *v) {
    uint64_t n = 0;
    const struct model *m = v->weights.model;
    for (size_t l = 0; v->merged && l < m->L; l++) {
        for (size_t t = 0; t < TARGET_COUNT; t++) {
            const struct matrix *w = &v->weights.layers[l].linear[t];
            if (w->data != m->layers[l].linear[t].data) n += (uint64_t)w->rows * w->row_bytes;
        }
    }
    return n;
}

/* ---- opening and swapping ---- */

int engine_options_check(const attune_engine_options *o, attune_error *err) {
    if (o->precision < ATTUNE_PRECISION_SETTINGS || o->precision > ATTUNE_PRECISION_F32)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, "attune_engine_options",
                         "the precision is %d; there are auto (%d) and f32 (%d)", o->precision, ATTUNE_PRECISION_AUTO,
                         ATTUNE_PRECISION_F32);
    if (!(isfinite(o->drift_limit) && o->drift_limit >= 0))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, "attune_engine_options",
                         "the drift limit must be a number of at least 0, in nats a token");
    return ATTUNE_OK;
}

/* What is needed for a swap that does not say; "" for nothing. */
static int remember(char *to, size_t size, const char *text, const char *what, attune_error *err) {
    if (text && strlen(text) >= size)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "%s has more than %zu bytes", what, size - 1);
    snprintf(to, size, "%s", text ? text : "");
    return ATTUNE_OK;
}

int engine_create(struct model *model, const struct variant_request *request, const attune_engine_options *o,
                  attune_engine **out, attune_error *err) {
    attune_engine *e = calloc(1, sizeof *e);
    if (!e) {
        model_close(model);
        return error_set_memory(err, "the engine", sizeof *e);
    }
    e->model = model;
    e->process = getpid();
    e->precision = o->precision == ATTUNE_PRECISION_F32 ? PRECISION_F32 : PRECISION_AUTO;
    e->drift_limit = o->drift_limit;
    pthread_mutex_init(&e->lock, NULL);
    pthread_mutex_init(&e->swapping, NULL);
    int code = remember(e->adapter, sizeof e->adapter, o->adapter ? o->adapter : request->adapter, "the adapter", err);
    /* A home's active adapter is the one of then, not of now. */
    if (code == ATTUNE_OK && !o->adapter && request->number >= 0) *e->adapter = 0;
    if (code == ATTUNE_OK) code = remember(e->merge, sizeof e->merge, o->merge, "the merge mode", err);
    if (code == ATTUNE_OK) code = remember(e->cache, sizeof e->cache, request->cache, "the path of the cache", err);
    if (code == ATTUNE_OK) code = kernels_select(err);
    if (code == ATTUNE_OK) code = pool_create(o->threads, &e->pool, err);
    if (code == ATTUNE_OK) code = variant_create(e, request, &e->variant, err);
    if (code == ATTUNE_OK)
        *out = e;
    else
        attune_engine_close(e);
    return code;
}

int engine_replace(attune_engine *e, const struct variant_request *request, attune_error *err) {
    struct variant *v = NULL, *old;
    int code = variant_create(e, request, &v, err);
    if (code != ATTUNE_OK) return code;
    pthread_mutex_lock(&e->lock);
    old = e->variant;
    e->variant = v;
    pthread_mutex_unlock(&e->lock);
    engine_release(old);
    return ATTUNE_OK;
}

/* Without a home nothing was measured, so the automatic choice is none. */
static int file_merge(const char *merge, struct variant_request *request, attune_error *err) {
    request->merge = MERGE_NONE;
    int code = merge ? merge_mode_parse(merge, &request->merge, err) : ATTUNE_OK;
    if (request->merge == MERGE_AUTO) request->merge = MERGE_NONE;
    return code;
}

int engine_swap_files(attune_engine *e, const char *adapter, const char *merge, attune_error *err) {
    struct variant_request request = {.from = engine_now()};
    if (!merge && *e->merge) merge = e->merge;
    int code = file_merge(merge, &request, err);
    if (code != ATTUNE_OK) return code;
    request.adapter = adapter ? adapter : *e->adapter ? e->adapter : NULL;
    request.number = request.adapter ? -1 : 0;
    pthread_mutex_lock(&e->swapping);
    if (request.adapter && !*e->model->sha256 && !*e->base_sha256)
        hash_bytes(e->model->gguf->file.data, e->model->gguf->file.size, e->base_sha256);
    code = engine_replace(e, &request, err);
    pthread_mutex_unlock(&e->swapping);
    return code;
}

int attune_engine_open_files(const char *base, const char *adapter, const attune_engine_options *options,
                             attune_engine **out, attune_error *err) {
    struct variant_request request = {.adapter = adapter, .number = adapter ? -1 : 0, .from = engine_now()};
    struct model *model = NULL;
    attune_engine_options o;
    int code = options_read(&o, sizeof o, options, "attune_engine_options", err);
    if (code == ATTUNE_OK) code = engine_options_check(&o, err);
    if (code != ATTUNE_OK) return code;
    if (!base || !out)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "opening an engine wants a base model's path and a result");
    if (o.adapter)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL,
                         "the adapter is given as a file here; leave attune_engine_options.adapter empty");
    if ((code = file_merge(o.merge, &request, err)) != ATTUNE_OK) return code;
    if ((code = model_open(base, o.read ? FILE_READ : FILE_MAP, &model, err)) != ATTUNE_OK) return code;
    /* Half a second for a big base, and only an adapter needs it: it is bound to its base by the hash. The bytes that
     * are open are hashed, not the path again: another file may lie there by now. */
    if (adapter) hash_bytes(model->gguf->file.data, model->gguf->file.size, model->sha256);
    struct merge_progress progress = {o.on_progress, o.user};
    if (o.on_progress) request.progress = &progress;
    return engine_create(model, &request, &o, out, err);
}

void attune_engine_close(attune_engine *e) {
    if (!e) return;
    engine_release(e->variant);
    model_close(e->model);
    /* In a forked child the pool has no threads to join: it is left to the process's end. */
    if (e->process == getpid()) pool_destroy(e->pool);
    pthread_mutex_destroy(&e->lock);
    pthread_mutex_destroy(&e->swapping);
    free(e);
}

int engine_check_process(const attune_engine *e, attune_error *err) {
    if (e->process == getpid()) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_STATE, NULL,
                     "the engine was opened before this process was forked; open an engine in the child");
}

int attune_engine_info_get(const attune_engine *e, attune_engine_info *out, attune_error *err) {
    if (!e || !out) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "no engine or nowhere to put its description");
    const struct model *m = e->model;
    struct variant *v = engine_hold(e);
    attune_engine_info info = {
        .adapter = v->adapter_number,
        .parameters = model_parameters(m),
        .layers = (int64_t)m->L,
        .width = (int64_t)m->C,
        .vocabulary = (int64_t)m->V,
        .context = (int64_t)m->context,
        .from_cache = v->from_cache,
        .merged_bytes = merged_bytes(v),
        .seconds_open = v->seconds_open,
        .seconds_merge = v->seconds_merge,
    };
    snprintf(info.name, sizeof info.name, "%s", m->name);
    snprintf(info.architecture, sizeof info.architecture, "%s", m->architecture->name);
    snprintf(info.base_sha256, sizeof info.base_sha256, "%s", m->sha256);
    snprintf(info.adapter_sha256, sizeof info.adapter_sha256, "%s", v->adapter_sha256);
    snprintf(info.merge, sizeof info.merge, "%s", merge_mode_name(v->merge));
    snprintf(info.kernels, sizeof info.kernels, "%s", kernels_get()->name);
    engine_release(v);
    return options_write(out, &info, sizeof info, "attune_engine_info", err);
}

int attune_engine_tokenize(const attune_engine *e, const char *text, size_t length, int flags, int32_t *ids,
                           size_t capacity, size_t *n, attune_error *err) {
    size_t needed = 0;
    if (!e || (!text && length) || (!ids && capacity))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "tokenizing wants an engine, a text and room for ids");
    if (flags & ~ATTUNE_TOKENIZE_SPECIAL)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "unknown flags %#x for tokenizing", (unsigned)flags);
    int code = tokenizer_encode(e->model->tokenizer, text ? text : "", length, flags & ATTUNE_TOKENIZE_SPECIAL, ids,
                                capacity, &needed, err);
    if (code == ATTUNE_OK && n) *n = needed;
    return code;
}

int attune_engine_detokenize(const attune_engine *e, const int32_t *ids, size_t n_ids, char *bytes, size_t capacity,
                             size_t *n, attune_error *err) {
    if (!e || (!ids && n_ids) || (!bytes && capacity))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "detokenizing wants an engine, ids and room for bytes");
    size_t needed = 0;
    for (size_t i = 0; i < n_ids; i++) {
        size_t size = 0;
        const char *piece = tokenizer_piece(e->model->tokenizer, ids[i], &size);
        if (!piece)
            return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "token %zu is %d, but the vocabulary ends at %zu", i,
                             (int)ids[i], tokenizer_size(e->model->tokenizer));
        size_t room = needed < capacity ? capacity - needed : 0;
        if (room > 0) memcpy(bytes + needed, piece, size < room ? size : room);
        needed += size;
    }
    if (n) *n = needed;
    return ATTUNE_OK;
}
