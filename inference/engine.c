#include "inference/engine.h"

#include "core/base/hash.h"
#include "core/base/options.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void variant_destroy(struct variant *v) {
    if (!v) return;
    merge_destroy(v->merged);
    lora_destroy(v->lora);
    free(v);
}

/* The adapter goes beside the base or into it. */
static int add_adapter(const attune_engine *e, struct variant *v, const char *adapter, enum merge_mode mode,
                       attune_error *err) {
    struct adapter_record record;
    int code = adapter_read(adapter, e->model, &v->lora, &record, v->adapter_sha256, err);
    if (code != ATTUNE_OK) return code;
    v->weights.pairs = v->lora->pairs;
    if (mode == MERGE_NONE) return ATTUNE_OK;
    code = merge_create(e->model, v->lora, mode, e->pool, NULL, &v->merged, err);
    if (code != ATTUNE_OK) return code;
    v->merge = mode;
    v->weights.layers = merge_layers(v->merged);
    v->weights.pairs = NULL;
    lora_destroy(v->lora);
    v->lora = NULL;
    return ATTUNE_OK;
}

static int variant_create(const attune_engine *e, const char *adapter, int number, enum merge_mode mode,
                          struct variant **out, attune_error *err) {
    struct variant *v = calloc(1, sizeof *v);
    if (!v) return error_set_memory(err, "an engine's weights", sizeof *v);
    atomic_init(&v->holders, 1);
    v->merge = MERGE_NONE;
    v->adapter_number = number;
    v->weights = (struct weights){.model = e->model, .layers = e->model->layers};
    int code = adapter ? add_adapter(e, v, adapter, mode, err) : ATTUNE_OK;
    if (code != ATTUNE_OK)
        variant_destroy(v);
    else
        *out = v;
    return code;
}

struct variant *engine_hold(attune_engine *e) {
    pthread_mutex_lock(&e->lock);
    struct variant *v = e->variant;
    atomic_fetch_add(&v->holders, 1);
    pthread_mutex_unlock(&e->lock);
    return v;
}

void engine_release(struct variant *v) {
    if (v && atomic_fetch_sub(&v->holders, 1) == 1) variant_destroy(v);
}

/* hash_base: the base's hash is computed, in place of taken from base_sha256 (nullable). */
static int create(const char *base, const char *base_sha256, int hash_base, const char *adapter, int number,
                  enum merge_mode merge, const attune_engine_options *o, attune_engine **out, attune_error *err) {
    attune_engine *e = calloc(1, sizeof *e);
    if (!e) return error_set_memory(err, "the engine", sizeof *e);
    e->process = getpid();
    e->precision = o->precision == ATTUNE_PRECISION_F32 ? PRECISION_F32 : PRECISION_AUTO;
    pthread_mutex_init(&e->lock, NULL);
    int code = kernels_select(err);
    if (code != ATTUNE_OK) goto out;
    if ((code = pool_create(o->threads, &e->pool, err)) != ATTUNE_OK) goto out;
    if ((code = model_open(base, o->read ? FILE_READ : FILE_MAP, &e->model, err)) != ATTUNE_OK) goto out;
    /* The bytes that are open are hashed, not the path again: another file may lie there by now. */
    if (hash_base)
        hash_bytes(e->model->gguf->file.data, e->model->gguf->file.size, e->model->sha256);
    else if (base_sha256)
        snprintf(e->model->sha256, sizeof e->model->sha256, "%s", base_sha256);
    code = variant_create(e, adapter, number, merge, &e->variant, err);
out:
    if (code != ATTUNE_OK) {
        attune_engine_close(e);
        return code;
    }
    *out = e;
    return ATTUNE_OK;
}

int engine_create(const char *base, const char *base_sha256, const char *adapter, int number, enum merge_mode merge,
                  const attune_engine_options *options, attune_engine **out, attune_error *err) {
    return create(base, base_sha256, 0, adapter, number, merge, options, out, err);
}

int attune_engine_open_files(const char *base, const char *adapter, const attune_engine_options *options,
                             attune_engine **out, attune_error *err) {
    attune_engine_options o;
    int code = options_read(&o, sizeof o, options, "attune_engine_options", err);
    if (code != ATTUNE_OK) return code;
    if (!base || !out)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "opening an engine wants a base model's path and a result");
    if (o.adapter)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL,
                         "the adapter is given as a file here; leave attune_engine_options.adapter empty");
    enum merge_mode merge = MERGE_F16;
    if (o.merge && (code = merge_mode_parse(o.merge, &merge, err)) != ATTUNE_OK) return code;
    /* Only an adapter needs the hash, half a second for a big base: it is bound to its base by it. */
    return create(base, NULL, adapter != NULL, adapter, adapter ? -1 : 0, merge, &o, out, err);
}

void attune_engine_close(attune_engine *e) {
    if (!e) return;
    engine_release(e->variant);
    model_close(e->model);
    /* In a forked child the pool has no threads to join: it is left to the process's end. */
    if (e->process == getpid()) pool_destroy(e->pool);
    pthread_mutex_destroy(&e->lock);
    free(e);
}

int engine_check_process(const attune_engine *e, attune_error *err) {
    if (e->process == getpid()) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_STATE, NULL,
                     "the engine was opened before this process was forked; open an engine in the child");
}

size_t variant_rank(const struct variant *v) { return v->weights.pairs ? v->lora->config.rank : 0; }

int attune_engine_info_get(const attune_engine *e, attune_engine_info *out, attune_error *err) {
    if (!e || !out) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "no engine or nowhere to put its description");
    const struct model *m = e->model;
    struct variant *v = engine_hold((attune_engine *)(uintptr_t)e); /* counted, and let go of again */
    attune_engine_info info = {
        .adapter = v->adapter_number,
        .parameters = model_parameters(m),
        .layers = (int64_t)m->L,
        .width = (int64_t)m->C,
        .vocabulary = (int64_t)m->V,
        .context = (int64_t)m->context,
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
