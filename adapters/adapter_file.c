/* An adapter file is GGUF version 3 as llama.cpp reads a LoRA:
 *
 *   general.type               string  "adapter"
 *   general.architecture       string  the base's
 *   adapter.type               string  "lora"
 *   adapter.lora.alpha         f32     the sum is W + alpha / R * B A
 *   attune.format_version      u32     1
 *   attune.origin              string  "trained" or "imported"
 *   attune.base.sha256         string  64 hex digits, of the base's file
 *   attune.run                 string  64 hex digits: what the run was made of
 *   attune.parent              string  64 hex digits: sha256 of the parent's file
 *   attune.configuration       string  JSON
 *   blk.N.<target>.weight.lora_a  F32  dims (in, R):  A row by row
 *   blk.N.<target>.weight.lora_b  F32  dims (R, out): B row by row
 *
 * attune.* keys with nothing to say are left out; files of other makers have none. Tensors are in the order
 * of struct lora's vector. F16 and BF16 tensors are read too. */
#include "adapters/adapter_file.h"

#include "core/base/hash.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FORMAT_VERSION = 1 };

/* ---- writing ---- */

static void put_text(struct gguf_writer *writer, const char *key, const char *value) {
    if (value[0]) gguf_put_string(writer, key, value);
}

static void put_pairs(struct gguf_writer *writer, const struct lora *lora, const struct model *model) {
    for (size_t l = 0; l < lora->L; l++) {
        for (size_t t = 0; t < TARGET_COUNT; t++) {
            const struct low_rank *pair = &lora->pairs[l].target[t];
            if (pair->rank == 0) continue;
            const struct matrix *w = &model->layers[l].linear[t];
            char base[LORA_TENSOR_NAME_SIZE], name[LORA_TENSOR_NAME_SIZE + 8];
            lora_tensor_name(base, l, t);
            snprintf(name, sizeof name, "%s.lora_a", base);
            gguf_put_tensor(writer, name, BLOCK_F32, 2, (uint64_t[]){w->cols, pair->rank}, pair->a);
            snprintf(name, sizeof name, "%s.lora_b", base);
            gguf_put_tensor(writer, name, BLOCK_F32, 2, (uint64_t[]){pair->rank, w->rows}, pair->b);
        }
    }
}

int adapter_write(const struct lora *lora, const struct model *model, const struct adapter_record *record,
                  const char *path, const char *point, char sha256[65], attune_error *err) {
    if (model->sha256[0] && record->base_sha256[0] && strcmp(model->sha256, record->base_sha256) != 0)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, path, "the record names another base than the one in use");
    int code = lora_check_finite(lora, model, NULL, err);
    if (code != ATTUNE_OK) return code;
    struct gguf_writer *writer = NULL;
    if ((code = gguf_writer_create(&writer, err)) != ATTUNE_OK) return code;
    gguf_put_string(writer, "general.type", "adapter");
    gguf_put_string(writer, "general.architecture", model->architecture->name);
    gguf_put_string(writer, "adapter.type", "lora");
    gguf_put_f32(writer, "adapter.lora.alpha", lora->config.alpha);
    gguf_put_u32(writer, "attune.format_version", FORMAT_VERSION);
    put_text(writer, "attune.origin", record->origin);
    put_text(writer, "attune.base.sha256", record->base_sha256);
    put_text(writer, "attune.run", record->run);
    put_text(writer, "attune.parent", record->parent_sha256);
    put_text(writer, "attune.configuration", record->configuration);
    put_pairs(writer, lora, model);
    code = gguf_writer_publish(writer, path, point, 1, sha256, err);
    gguf_writer_destroy(writer);
    return code;
}

/* ---- reading ---- */

struct reader {
    const char *path;
    const struct model *model;
    struct gguf *gguf;
    struct lora_half *halves; /* (L * TARGET_COUNT * LORA_HALF_COUNT) */
    float alpha;
};

static int optional_text(const struct reader *reader, const char *key, char *out, size_t out_size, attune_error *err) {
    out[0] = '\0';
    return gguf_find(reader->gguf, key) ? gguf_get_text(reader->gguf, key, out, out_size, err) : ATTUNE_OK;
}

static int optional_hash(const struct reader *reader, const char *key, char out[65], attune_error *err) {
    int code = optional_text(reader, key, out, 65, err);
    if (code != ATTUNE_OK || !out[0]) return code;
    if (strlen(out) == 64 && strspn(out, "0123456789abcdef") == 64) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_FORMAT, reader->path, "%s is not a hash of 64 hexadecimal digits", key);
}

/* `key` must be there and say `want`; other: the code where it says something else. */
static int demand_text(const struct reader *reader, const char *key, const char *want, int other, const char *advice,
                       attune_error *err) {
    char value[64];
    if (!gguf_find(reader->gguf, key))
        return error_set(err, ATTUNE_ERROR_FORMAT, reader->path, "no %s in this file: %s", key, advice);
    int code = gguf_get_text(reader->gguf, key, value, sizeof value, err);
    if (code != ATTUNE_OK || strcmp(value, want) == 0) return code;
    return error_set(err, other, reader->path, "%s is \"%s\", not \"%s\": %s", key, value, want, advice);
}

static int read_record(const struct reader *reader, struct adapter_record *record, attune_error *err) {
    memset(record, 0, sizeof *record);
    int code;
    if (gguf_find(reader->gguf, "attune.format_version")) {
        uint64_t version;
        if ((code = gguf_get_u64(reader->gguf, "attune.format_version", &version, err)) != ATTUNE_OK) return code;
        if (version != FORMAT_VERSION)
            return error_set(err, ATTUNE_ERROR_UNSUPPORTED, reader->path,
                             "attune.format_version is %llu, this attune reads %d: use the version of attune that "
                             "wrote the file",
                             (unsigned long long)version, FORMAT_VERSION);
    }
    if ((code = optional_hash(reader, "attune.base.sha256", record->base_sha256, err)) != ATTUNE_OK ||
        (code = optional_hash(reader, "attune.run", record->run, err)) != ATTUNE_OK ||
        (code = optional_hash(reader, "attune.parent", record->parent_sha256, err)) != ATTUNE_OK ||
        (code = optional_text(reader, "attune.configuration", record->configuration, sizeof record->configuration,
                              err)) != ATTUNE_OK ||
        (code = optional_text(reader, "attune.origin", record->origin, sizeof record->origin, err)) != ATTUNE_OK)
        return code;
    if (!record->origin[0]) snprintf(record->origin, sizeof record->origin, "imported");
    if (strcmp(record->origin, "trained") != 0 && strcmp(record->origin, "imported") != 0)
        return error_set(err, ATTUNE_ERROR_FORMAT, reader->path,
                         "attune.origin is \"%s\", neither trained nor imported", record->origin);
    const char *have = reader->model->sha256;
    if (have[0] && record->base_sha256[0] && strcmp(have, record->base_sha256) != 0)
        return error_set(err, ATTUNE_ERROR_MISMATCH, reader->path,
                         "this adapter was made for the base model with sha256 %.12s..., the one in use has %.12s...: "
                         "open it with its own base, or use an adapter of this base",
                         record->base_sha256, have);
    return ATTUNE_OK;
}

static int read_keys(struct reader *reader, struct adapter_record *record, attune_error *err) {
    int code = demand_text(reader, "general.type", "adapter", ATTUNE_ERROR_FORMAT, "this file is not an adapter", err);
    if (code != ATTUNE_OK || (code = read_record(reader, record, err)) != ATTUNE_OK) return code;
    code = demand_text(reader, "general.architecture", reader->model->architecture->name, ATTUNE_ERROR_MISMATCH,
                       "the adapter was made for another kind of model", err);
    if (code == ATTUNE_OK)
        code = demand_text(reader, "adapter.type", "lora", ATTUNE_ERROR_UNSUPPORTED, "only LoRA adapters are supported",
                           err);
    if (code != ATTUNE_OK) return code;
    if (gguf_find(reader->gguf, "adapter.alora.invocation_tokens"))
        return error_set(err, ATTUNE_ERROR_UNSUPPORTED, reader->path,
                         "adapter.alora.invocation_tokens: activated LoRA is not supported");
    if (!gguf_find(reader->gguf, "adapter.lora.alpha"))
        return error_set(err, ATTUNE_ERROR_FORMAT, reader->path, "no adapter.lora.alpha in this file");
    double alpha;
    if ((code = gguf_get_f64(reader->gguf, "adapter.lora.alpha", &alpha, err)) != ATTUNE_OK) return code;
    reader->alpha = (float)alpha;
    return ATTUNE_OK;
}

/* "blk.N.<target>.weight.lora_<a|b>" with N below L. */
static int parse_name(const struct reader *reader, const char *name, size_t *layer, enum target *target, int *half,
                      attune_error *err) {
    const char *at = name;
    size_t n = 0, digits = 0;
    int known = strncmp(at, "blk.", 4) == 0;
    if (known) {
        for (at += 4; isdigit((unsigned char)*at) && digits < 9; at++, digits++) n = n * 10 + (size_t)(*at - '0');
        known = digits > 0 && *at == '.' && (digits == 1 || name[4] != '0');
    }
    if (known) {
        at++;
        size_t length = strcspn(at, "."), t = 0;
        while (t < TARGET_COUNT && (strlen(target_names[t]) != length || memcmp(target_names[t], at, length) != 0)) t++;
        at += length;
        int is_a = strcmp(at, ".weight.lora_a") == 0, is_b = strcmp(at, ".weight.lora_b") == 0;
        known = t < TARGET_COUNT && (is_a || is_b);
        *target = (enum target)t;
        *half = is_a ? LORA_HALF_A : LORA_HALF_B;
    }
    if (!known)
        return error_set(err, ATTUNE_ERROR_UNSUPPORTED, reader->path,
                         "tensor %.100s: attune adapts attn_q, attn_k, attn_v, attn_output, ffn_gate, ffn_up and "
                         "ffn_down of a layer by A and B, nothing else",
                         name);
    if (n >= reader->model->L)
        return error_set(err, ATTUNE_ERROR_MISMATCH, reader->path,
                         "tensor %.100s: the base has %zu layers; the adapter was made for another model", name,
                         reader->model->L);
    *layer = n;
    return ATTUNE_OK;
}

static int collect(const struct reader *reader, attune_error *err) {
    const unsigned char *end = reader->gguf->file.data;
    for (size_t i = 0; i < reader->gguf->n_tensors; i++) {
        const struct gguf_tensor *tensor = &reader->gguf->tensors[i];
        size_t layer = 0;
        enum target target = TARGET_COUNT;
        int half = LORA_HALF_A;
        int code = parse_name(reader, tensor->name, &layer, &target, &half, err);
        if (code != ATTUNE_OK) return code;
        if (tensor->dims[2] != 1 || tensor->dims[3] != 1)
            return error_set(err, ATTUNE_ERROR_FORMAT, reader->path, "tensor %.100s is not a matrix", tensor->name);
        if (tensor->type != BLOCK_F32 && tensor->type != BLOCK_F16 && tensor->type != BLOCK_BF16)
            return error_set(err, ATTUNE_ERROR_UNSUPPORTED, reader->path,
                             "tensor %.100s is %s; adapters in F32, F16 and BF16 are supported", tensor->name,
                             block_type_name(tensor->type));
        reader->halves[lora_half_index(layer, target, half)] = (struct lora_half){
            tensor->name, tensor->data, (enum block_type)tensor->type, tensor->dims[1], tensor->dims[0]};
        if (tensor->data + tensor->bytes > end) end = tensor->data + tensor->bytes;
    }
    size_t used = (size_t)(end - reader->gguf->file.data), size = reader->gguf->file.size;
    if (size > used && size - used >= reader->gguf->alignment && reader->gguf->n_tensors > 0)
        return error_set(err, ATTUNE_ERROR_FORMAT, reader->path, "%zu bytes after the last tensor belong to nothing",
                         size - used);
    return ATTUNE_OK;
}

int adapter_parse(const struct file_bytes *file, const struct model *model, struct lora **out,
                  struct adapter_record *record, char sha256[65], attune_error *err) {
    struct reader reader = {.path = file->path, .model = model};
    struct adapter_record found;
    int code = gguf_parse(file->data, file->size, file->path, &reader.gguf, err);
    if (code != ATTUNE_OK) return code;
    if ((code = read_keys(&reader, &found, err)) != ATTUNE_OK) goto out;
    size_t n_halves = model->L * TARGET_COUNT * LORA_HALF_COUNT;
    reader.halves = calloc(n_halves, sizeof *reader.halves);
    if (!reader.halves) {
        code = error_set_memory(err, "an adapter's list of tensors", n_halves * sizeof *reader.halves);
        goto out;
    }
    if ((code = collect(&reader, err)) != ATTUNE_OK) goto out;
    if ((code = lora_assemble(model, reader.alpha, reader.halves, file->path, out, err)) != ATTUNE_OK) goto out;
    if (record) *record = found;
    if (sha256) hash_bytes(file->data, file->size, sha256);
out:
    free(reader.halves);
    gguf_close(reader.gguf);
    return code;
}

int adapter_read(const char *path, const struct model *model, struct lora **out, struct adapter_record *record,
                 char sha256[65], attune_error *err) {
    struct file_bytes file = {0};
    int code = file_bytes_open(path, FILE_READ, lora_file_max(model), &file, err);
    if (code != ATTUNE_OK) return code;
    code = adapter_parse(&file, model, out, record, sha256, err);
    file_bytes_close(&file);
    return code;
}
