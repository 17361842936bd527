#include "inference/engine.h"

#include "core/base/hash.h"
#include "core/base/options.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* The base is opened: the adapter goes beside it or into it. */
static int add_adapter(attune_engine *e, const char *adapter, enum merge_mode mode, attune_error *err) {
    struct adapter_record record;
    int code = adapter_read(adapter, e->model, &e->lora, &record, e->adapter_sha256, err);
    if (code != ATTUNE_OK) return code;
    e->weights.pairs = e->lora->pairs;
    if (mode == MERGE_NONE) return ATTUNE_OK;
    code = merge_create(e->model, e->lora, mode, e->pool, &e->merged, err);
    if (code != ATTUNE_OK) return code;
    e->merge = mode;
    e->weights.layers = merge_layers(e->merged);
    e->weights.pairs = NULL;
    lora_destroy(e->lora);
    e->lora = NULL;
    return ATTUNE_OK;
}

/* hash_base: the base's hash is computed, in place of taken from base_sha256 (nullable). */
static int create(const char *base, const char *base_sha256, int hash_base, const char *adapter, int number,
                  enum merge_mode merge, int threads, enum file_load load, attune_engine **out, attune_error *err) {
    attune_engine *e = calloc(1, sizeof *e);
    if (!e) return error_set_memory(err, "the engine", sizeof *e);
    e->merge = MERGE_NONE;
    e->adapter_number = number;
    e->process = getpid();
    int code = kernels_select(err);
    if (code != ATTUNE_OK) goto out;
    if ((code = pool_create(threads, &e->pool, err)) != ATTUNE_OK) goto out;
    if ((code = model_open(base, load, &e->model, err)) != ATTUNE_OK) goto out;
    /* The bytes that are open are hashed, not the path again: another file may lie there by now. */
    if (hash_base)
        hash_bytes(e->model->gguf->file.data, e->model->gguf->file.size, e->model->sha256);
    else if (base_sha256)
        snprintf(e->model->sha256, sizeof e->model->sha256, "%s", base_sha256);
    e->weights = (struct weights){.model = e->model, .layers = e->model->layers};
    if (adapter) code = add_adapter(e, adapter, merge, err);
out:
    if (code != ATTUNE_OK) {
        attune_engine_close(e);
        return code;
    }
    *out = e;
    return ATTUNE_OK;
}

int engine_create(const char *base, const char *base_sha256, const char *adapter, int number, enum merge_mode merge,
                  int threads, enum file_load load, attune_engine **out, attune_error *err) {
    return create(base, base_sha256, 0, adapter, number, merge, threads, load, out, err);
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
    return create(base, NULL, adapter != NULL, adapter, adapter ? -1 : 0, merge, o.threads,
                  o.read ? FILE_READ : FILE_MAP, out, err);
}

void attune_engine_close(attune_engine *e) {
    if (!e) return;
    merge_destroy(e->merged);
    lora_destroy(e->lora);
    model_close(e->model);
    /* In a forked child the pool has no threads to join: it is left to the process's end. */
    if (e->process == getpid()) pool_destroy(e->pool);
    free(e);
}

int engine_check_process(const attune_engine *e, attune_error *err) {
    if (e->process == getpid()) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_STATE, NULL,
                     "the engine was opened before this process was forked; open an engine in the child");
}

size_t engine_rank(const attune_engine *e) { return e->weights.pairs ? e->lora->config.rank : 0; }

int attune_engine_info_get(const attune_engine *e, attune_engine_info *out, attune_error *err) {
    if (!e || !out) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "no engine or nowhere to put its description");
    const struct model *m = e->model;
    attune_engine_info info = {
        .adapter = e->adapter_number,
        .parameters = model_parameters(m),
        .layers = (int64_t)m->L,
        .width = (int64_t)m->C,
        .vocabulary = (int64_t)m->V,
        .context = (int64_t)m->context,
    };
    snprintf(info.name, sizeof info.name, "%s", m->name);
    snprintf(info.architecture, sizeof info.architecture, "%s", m->architecture->name);
    snprintf(info.base_sha256, sizeof info.base_sha256, "%s", m->sha256);
    snprintf(info.adapter_sha256, sizeof info.adapter_sha256, "%s", e->adapter_sha256);
    snprintf(info.merge, sizeof info.merge, "%s", merge_mode_name(e->merge));
    snprintf(info.kernels, sizeof info.kernels, "%s", kernels_get()->name);
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
