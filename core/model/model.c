/* Opening a model: hyperparameters (architecture.c), then every tensor of the file bound to its place.
 *
 * Weights stay in the file's bytes. Binding runs twice: once without memory, to check every tensor and count what
 * must be copied (norms and biases that are not F32 or not aligned), once to fill in. */
#include "core/model/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

const char *const target_names[TARGET_COUNT] = {"attn_q",   "attn_k", "attn_v",  "attn_output",
                                                "ffn_gate", "ffn_up", "ffn_down"};

struct binding {
    const struct gguf *gguf;
    struct model *model;
    unsigned char *used; /* (n_tensors) 1: has a place in the model */
    attune_error *err;
};

/* The tensor `name` of (rows, cols), marked as used; a vector has one row. */
static int take(struct binding *b, const char *name, size_t rows, size_t cols, const struct gguf_tensor **out) {
    const struct gguf_tensor *t = gguf_tensor_find(b->gguf, name);
    if (!t)
        return model_fault(b->gguf, ATTUNE_ERROR_FORMAT, name, b->err,
                           "the tensor %s is missing: not a complete %s model", name,
                           b->model->architecture->name);
    if (t->dims[0] != cols || t->dims[1] != rows || t->dims[2] != 1 || t->dims[3] != 1)
        return model_fault(b->gguf, ATTUNE_ERROR_FORMAT, name, b->err,
                           "%s has the shape (%llu, %llu, %llu, %llu), but the settings call for (%zu, %zu, 1, 1)",
                           name, (unsigned long long)t->dims[0], (unsigned long long)t->dims[1],
                           (unsigned long long)t->dims[2], (unsigned long long)t->dims[3], cols, rows);
    b->used[t - b->gguf->tensors] = 1;
    *out = t;
    return ATTUNE_OK;
}

static int bind_matrix(struct binding *b, const char *name, size_t rows, size_t cols, struct matrix *out) {
    const struct gguf_tensor *t = NULL;
    int code = take(b, name, rows, cols, &t);
    if (code) return code;
    if (!block_format_get(t->type))
        return model_fault(b->gguf, ATTUNE_ERROR_UNSUPPORTED, name, b->err,
                           "the block type %u of %s is not supported", t->type, name);
    *out = (struct matrix){t->data, t->type, rows, cols, block_row_bytes(t->type, cols)};
    return ATTUNE_OK;
}

/* n floats: the file's own where they are F32 and aligned, else a copy in the arena. *out is NULL in the first
 * round for what will be copied. positive: zero and below are refused. */
static int bind_floats(struct binding *b, const char *name, size_t n, int positive, const float **out) {
    const struct gguf_tensor *t = NULL;
    int code = take(b, name, 1, n, &t);
    if (code) return code;
    if (t->type != BLOCK_F32 && t->type != BLOCK_F16 && t->type != BLOCK_BF16) {
        const char *type = block_type_name(t->type);
        return model_fault(b->gguf, ATTUNE_ERROR_UNSUPPORTED, name, b->err,
                           "%s is of the type %s, but must be F32, F16 or BF16", name, type ? type : "unknown");
    }
    const float *values = (const float *)(const void *)t->data;
    if (t->type != BLOCK_F32 || (uintptr_t)t->data % _Alignof(float)) {
        float *copy = ARENA_TAKE(&b->model->arena, float, n);
        if (copy) block_format_get(t->type)->dequantize(copy, t->data, n);
        values = copy;
    }
    for (size_t i = 0; values && i < n; i++)
        if (!isfinite(values[i]) || (positive && !(values[i] > 0)))
            return model_fault(b->gguf, ATTUNE_ERROR_FORMAT, name, b->err,
                               "%s[%zu] is %g: the file is damaged", name, i, (double)values[i]);
    *out = values;
    return ATTUNE_OK;
}

/* ---- the places ---- */

enum { NAME_SIZE = 64 };

static int bind_layer(struct binding *b, size_t index, struct model_layer *layer) {
    const struct model *m = b->model;
    const size_t q = m->H * m->D, kv = m->KV * m->D;
    const size_t shapes[TARGET_COUNT][2] = {{q, m->C},    {kv, m->C},   {kv, m->C},  {m->C, q},
                                            {m->F, m->C}, {m->F, m->C}, {m->C, m->F}};
    char name[NAME_SIZE];
    int code;
    snprintf(name, sizeof name, "blk.%zu.attn_norm.weight", index);
    if ((code = bind_floats(b, name, m->C, 0, &layer->attn_norm))) return code;
    snprintf(name, sizeof name, "blk.%zu.ffn_norm.weight", index);
    if ((code = bind_floats(b, name, m->C, 0, &layer->ffn_norm))) return code;
    for (int t = 0; t < TARGET_COUNT; t++) {
        snprintf(name, sizeof name, "blk.%zu.%s.weight", index, target_names[t]);
        if ((code = bind_matrix(b, name, shapes[t][0], shapes[t][1], &layer->linear[t]))) return code;
        if (!m->architecture->qkv_bias || t > TARGET_V) continue;
        snprintf(name, sizeof name, "blk.%zu.%s.bias", index, target_names[t]);
        if ((code = bind_floats(b, name, shapes[t][0], 0, &layer->bias[t]))) return code;
    }
    return ATTUNE_OK;
}

static int bind_ends(struct binding *b) {
    struct model *m = b->model;
    const struct gguf_tensor *embedding = gguf_tensor_find(b->gguf, "token_embd.weight");
    char key[NAME_SIZE];
    uint64_t stated;
    int code;
    m->V = embedding ? embedding->dims[1] : 0;
    if (m->V > INT32_MAX)
        return model_fault(b->gguf, ATTUNE_ERROR_FORMAT, "token_embd.weight", b->err,
                           "a vocabulary of %zu tokens is not possible", m->V);
    if ((code = bind_matrix(b, "token_embd.weight", m->V, m->C, &m->embedding))) return code;
    snprintf(key, sizeof key, "%s.vocab_size", m->architecture->name);
    if (gguf_find(b->gguf, key)) {
        if ((code = gguf_get_u64(b->gguf, key, &stated, b->err))) return code;
        if (stated != m->V)
            return model_fault(b->gguf, ATTUNE_ERROR_FORMAT, key, b->err,
                               "%s is %llu, but token_embd.weight has %zu rows", key, (unsigned long long)stated,
                               m->V);
    }
    m->head = m->embedding;
    if (gguf_tensor_find(b->gguf, "output.weight"))
        if ((code = bind_matrix(b, "output.weight", m->V, m->C, &m->head))) return code;
    if (gguf_tensor_find(b->gguf, "rope_freqs.weight"))
        if ((code = bind_floats(b, "rope_freqs.weight", m->rope.dims / 2, 1, &m->rope.factors))) return code;
    return bind_floats(b, "output_norm.weight", m->C, 0, &m->output_norm);
}

static int bind_all(struct binding *b) {
    struct model *m = b->model;
    struct model_layer *layers = ARENA_TAKE(&m->arena, struct model_layer, m->L);
    int code = bind_ends(b);
    for (size_t i = 0; i < m->L && !code; i++) {
        struct model_layer unused = {0};
        code = bind_layer(b, i, layers ? &layers[i] : &unused);
    }
    m->layers = layers;
    return code;
}

/* Tables of rotation angles that old converters wrote; they follow from the settings. */
static int is_ignorable(const char *name) {
    const char *suffix = ".attn_rot_embd.weight";
    size_t n = strlen(name), tail = strlen(suffix);
    return n > tail && strcmp(name + n - tail, suffix) == 0;
}

static int refuse_unused(const struct binding *b) {
    for (size_t i = 0; i < b->gguf->n_tensors; i++) {
        const char *name = b->gguf->tensors[i].name;
        if (!b->used[i] && !is_ignorable(name))
            return model_fault(b->gguf, ATTUNE_ERROR_UNSUPPORTED, name, b->err,
                               "%s models of %zu layers have no tensor %s that attune knows: results would be wrong",
                               b->model->architecture->name, b->model->L, name);
    }
    return ATTUNE_OK;
}

static int bind_tensors(const struct gguf *gguf, struct model *model, attune_error *err) {
    struct binding b = {gguf, model, calloc(gguf->n_tensors + 1, 1), err};
    if (!b.used) return error_set_memory(err, "checking tensors", gguf->n_tensors + 1);
    int code = bind_all(&b);
    if (!code) code = refuse_unused(&b);
    if (!code) code = arena_commit(&model->arena, "layers of the model", err);
    if (!code) code = bind_all(&b);
    free(b.used);
    return code;
}

/* ---- the object ---- */

static int open_text(const struct gguf *gguf, struct model *m, attune_error *err) {
    int code = tokenizer_create(gguf, &m->tokenizer, err);
    if (code) return code;
    if (tokenizer_size(m->tokenizer) != m->V)
        return model_fault(gguf, ATTUNE_ERROR_FORMAT, "tokenizer.ggml.tokens", err,
                           "%zu tokens, but token_embd.weight has %zu rows: they do not belong together",
                           tokenizer_size(m->tokenizer), m->V);
    code = chat_template_create(gguf, m->tokenizer, &m->chat, &m->chat_error);
    if (code != ATTUNE_ERROR_MEMORY) return ATTUNE_OK;
    if (err) *err = m->chat_error;
    return code;
}

int model_from_gguf(struct gguf *gguf, struct model **out, attune_error *err) {
    struct model *m = calloc(1, sizeof *m);
    if (!m) return error_set_memory(err, "a model", sizeof *m);
    int code = model_read_settings(gguf, m, err);
    if (!code) code = bind_tensors(gguf, m, err);
    if (!code) code = open_text(gguf, m, err);
    if (code) {
        model_close(m);
        return code;
    }
    m->gguf = gguf;
    *out = m;
    return ATTUNE_OK;
}

int model_open(const char *path, enum file_load load, struct model **out, attune_error *err) {
    struct gguf *gguf;
    int code = gguf_open(path, load, &gguf, err);
    if (code) return code;
    code = model_from_gguf(gguf, out, err);
    if (code) gguf_close(gguf);
    return code;
}

void model_close(struct model *model) {
    if (!model) return;
    chat_template_destroy(model->chat);
    tokenizer_destroy(model->tokenizer);
    arena_free(&model->arena);
    gguf_close(model->gguf);
    free(model);
}

void model_set_hash(struct model *model, const char *hex) {
    snprintf(model->sha256, sizeof model->sha256, "%s", hex);
}

int64_t model_parameters(const struct model *model) {
    int64_t n = 0;
    for (size_t i = 0; i < model->gguf->n_tensors; i++) {
        const struct gguf_tensor *t = &model->gguf->tensors[i];
        n += (int64_t)(t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3]);
    }
    return n;
}
