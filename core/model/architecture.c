/* The architectures that attune knows, and what the keys of their GGUF files may say.
 *
 * Keys are "<architecture>.<name>" as in ggml's docs/gguf.md. A file is trusted with nothing: each number has a
 * range, and a key that asks for arithmetic which attune does not do is refused unless it has its neutral value. */
#include "core/model/model.h"

#include <stdarg.h>
#include <stdio.h>
#include <utf8proc.h>

static const struct architecture table[] = {
    {.name = "llama", .rope = ROPE_INTERLEAVED, .qkv_bias = 0},
    {.name = "qwen2", .rope = ROPE_HALVES, .qkv_bias = 1},
};
enum { TABLE_SIZE = sizeof table / sizeof *table };

/* Far above any real model; low enough that no product of two or three sizes wraps. */
enum {
    WIDTH_MAX = 1 << 20,
    HEADS_MAX = 1 << 14,
    HEAD_SIZE_MAX = 512,
    LAYERS_MAX = 1 << 12,
    TENSORS_PER_LAYER = 9, /* two norms and seven matrices */
};

const struct architecture *architecture_find(const char *name) {
    for (size_t i = 0; i < TABLE_SIZE; i++)
        if (strcmp(table[i].name, name) == 0) return &table[i];
    return NULL;
}

/* Names from a file go into messages and to terminals: what is not UTF-8, and control characters, become '?'. */
static void make_printable(char *text) {
    const utf8proc_uint8_t *from = (const utf8proc_uint8_t *)text;
    while (*from) {
        utf8proc_int32_t c;
        utf8proc_ssize_t n = utf8proc_iterate(from, -1, &c);
        int bad = n < 1 || c < 0x20 || (c >= 0x7f && c < 0xa0);
        n = n < 1 ? 1 : n;
        if (bad)
            *text++ = '?';
        else
            text = (char *)memmove(text, from, (size_t)n) + n;
        from += n;
    }
    *text = 0;
}

int model_fault(const struct gguf *gguf, int code, const char *thing, attune_error *err, const char *format, ...) {
    char message[sizeof err->message], where[sizeof err->where];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    const char *slash = strrchr(gguf->file.path, '/');
    snprintf(where, sizeof where, "%.100s:%s", slash ? slash + 1 : gguf->file.path, thing);
    make_printable(message);
    make_printable(where);
    return error_set(err, code, where, "%s", message);
}

/* ---- reading keys ---- */

struct settings {
    const struct gguf *gguf;
    const char *prefix; /* the architecture's name */
    attune_error *err;
};

enum { KEY_SIZE = 128 };
static const char *full_key(const struct settings *s, const char *name, char key[KEY_SIZE]) {
    snprintf(key, KEY_SIZE, "%s.%s", s->prefix, name);
    return key;
}

static int missing(const struct settings *s, const char *key) {
    return model_fault(s->gguf, ATTUNE_ERROR_FORMAT, key, s->err,
                       "the key %s is missing: not a complete model, get the file again", key);
}

/* An integer from min to max. fallback: where the key is missing; 0: then it is an error. */
static int read_size(const struct settings *s, const char *name, size_t min, size_t max, size_t fallback,
                     size_t *out) {
    char key[KEY_SIZE];
    uint64_t value;
    if (!gguf_find(s->gguf, full_key(s, name, key))) {
        if (!fallback) return missing(s, key);
        *out = fallback;
        return ATTUNE_OK;
    }
    int code = gguf_get_u64(s->gguf, key, &value, s->err);
    if (code) return code;
    if (value < min || value > max)
        return model_fault(s->gguf, ATTUNE_ERROR_FORMAT, key, s->err,
                           "%s is %llu, but must be from %zu to %zu: the file is damaged or not supported", key,
                           (unsigned long long)value, min, max);
    *out = value;
    return ATTUNE_OK;
}

/* A number that is finite and positive as a float too, up to max. fallback: as above. */
static int read_positive(const struct settings *s, const char *name, double max, float fallback, float *out) {
    char key[KEY_SIZE];
    double value;
    if (!gguf_find(s->gguf, full_key(s, name, key))) {
        if (fallback == 0) return missing(s, key);
        *out = fallback;
        return ATTUNE_OK;
    }
    int code = gguf_get_f64(s->gguf, key, &value, s->err);
    if (code) return code;
    if (!(value <= max && (float)value > 0))
        return model_fault(s->gguf, ATTUNE_ERROR_FORMAT, key, s->err,
                           "%s is %g, but must be above 0 and at most %g: the file is damaged", key, value, max);
    *out = (float)value;
    return ATTUNE_OK;
}

/* Any number as a double, booleans too; 0 if the key is not a number. */
static int any_number(const struct gguf *gguf, const struct gguf_pair *pair, const char *key, double *out) {
    int truth;
    if (pair->kind != GGUF_BOOL) return gguf_get_f64(gguf, key, out, NULL) == ATTUNE_OK;
    if (gguf_get_bool(gguf, key, &truth, NULL)) return 0;
    *out = truth;
    return 1;
}

/* ---- what is refused ---- */

/* Keys that change the arithmetic. Absent or neutral, they do not matter. */
static const struct {
    const char *name;
    double neutral, also_neutral;
    const char *feature;
} refused[] = {
    {"expert_count", 0, 0, "mixture of experts"},
    {"expert_used_count", 0, 0, "mixture of experts"},
    {"expert_shared_count", 0, 0, "mixture of experts"},
    {"attention.sliding_window", 0, 0, "sliding-window attention"},
    {"attention.causal", 1, 1, "attention that is not causal"},
    {"attention.clamp_kqv", 0, 0, "clamping of q, k and v"},
    {"attention.max_alibi_bias", 0, 0, "ALiBi"},
    {"attention.scale", 0, 0, "another scale of attention"},
    {"attn_logit_softcapping", 0, 0, "soft-capping of attention"},
    {"final_logit_softcapping", 0, 0, "soft-capping of logits"},
    {"logit_scale", 0, 1, "a scale of logits"},
    {"residual_scale", 0, 1, "a scale of residuals"},
    {"embedding_scale", 0, 1, "a scale of embeddings"},
    {"pooling_type", 0, 0, "an embedding model (pooling)"},
};

/* The key is absent, or one of two numbers. */
static int require_neutral(const struct settings *s, const char *name, double neutral, double also_neutral,
                           const char *feature) {
    char key[KEY_SIZE];
    double value;
    const struct gguf_pair *pair = gguf_find(s->gguf, full_key(s, name, key));
    if (!pair) return ATTUNE_OK;
    if (!any_number(s->gguf, pair, key, &value))
        return model_fault(s->gguf, ATTUNE_ERROR_UNSUPPORTED, key, s->err,
                           "%s is not one plain number: %s is not supported", key, feature);
    if (value == neutral || value == also_neutral) return ATTUNE_OK;
    return model_fault(s->gguf, ATTUNE_ERROR_UNSUPPORTED, key, s->err, "%s is %g: %s is not supported", key, value,
                       feature);
}

static int refuse_features(const struct settings *s) {
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        int code = require_neutral(s, refused[i].name, refused[i].neutral, refused[i].also_neutral, refused[i].feature);
        if (code) return code;
    }
    return ATTUNE_OK;
}

/* Without a type the scaling is linear, as ggml has it. Llama-3 factors are a tensor, not a scaling type. */
static int refuse_rope_scaling(const struct settings *s) {
    char key[KEY_SIZE], type[64] = "linear";
    int code = ATTUNE_OK;
    if (gguf_find(s->gguf, full_key(s, "rope.scaling.type", key)))
        code = gguf_get_text(s->gguf, key, type, sizeof type, s->err);
    if (code || strcmp(type, "none") == 0) return code;
    if (strcmp(type, "linear") != 0)
        return model_fault(s->gguf, ATTUNE_ERROR_UNSUPPORTED, key, s->err,
                           "rope scaling of the type '%s' is not supported", type);
    if ((code = require_neutral(s, "rope.scaling.factor", 0, 1, "linear rope scaling"))) return code;
    return require_neutral(s, "rope.scale_linear", 0, 1, "linear rope scaling");
}

/* ---- general.* ---- */

static int find_architecture(const struct gguf *gguf, const struct architecture **out, attune_error *err) {
    char name[64], known[128] = "";
    struct settings s = {gguf, "general", err};
    if (!gguf_find(gguf, "general.architecture")) return missing(&s, "general.architecture");
    int code = gguf_get_text(gguf, "general.architecture", name, sizeof name, err);
    if (code) return code;
    if ((*out = architecture_find(name))) return ATTUNE_OK;
    for (size_t i = 0, n = 0; i < TABLE_SIZE; i++)
        n += (size_t)snprintf(known + n, sizeof known - n, "%s%s", i ? ", " : "", table[i].name);
    return model_fault(gguf, ATTUNE_ERROR_UNSUPPORTED, "general.architecture", err,
                       "the architecture '%s' is not supported; attune knows %s", name, known);
}

static int read_general(const struct gguf *gguf, struct model *model, attune_error *err) {
    char type[32];
    uint64_t parts;
    if (gguf_get_text(gguf, "general.type", type, sizeof type, NULL) == ATTUNE_OK && strcmp(type, "model") != 0)
        return model_fault(gguf, ATTUNE_ERROR_UNSUPPORTED, "general.type", err,
                           "a file of the type '%s' is not a base model", type);
    if (gguf_get_u64(gguf, "split.count", &parts, NULL) == ATTUNE_OK && parts > 1)
        return model_fault(gguf, ATTUNE_ERROR_UNSUPPORTED, "split.count", err,
                           "one of %llu parts of a model: merge them into one file first (gguf-split --merge)",
                           (unsigned long long)parts);
    int code = find_architecture(gguf, &model->architecture, err);
    if (code) return code;
    /* The name is for people: where it is missing or unusable, the file's own does. */
    if (gguf_get_text(gguf, "general.name", model->name, sizeof model->name, NULL) || !*model->name) {
        const char *slash = strrchr(gguf->file.path, '/');
        snprintf(model->name, sizeof model->name, "%.127s", slash ? slash + 1 : gguf->file.path);
    }
    make_printable(model->name);
    return ATTUNE_OK;
}

/* ---- hyperparameters ---- */

static int read_heads(const struct settings *s, struct model *m) {
    char key[KEY_SIZE];
    size_t value_length;
    int code;
    if ((code = read_size(s, "attention.head_count", 1, HEADS_MAX, 0, &m->H))) return code;
    if ((code = read_size(s, "attention.head_count_kv", 1, HEADS_MAX, m->H, &m->KV))) return code;
    if (m->H % m->KV)
        return model_fault(s->gguf, ATTUNE_ERROR_FORMAT, full_key(s, "attention.head_count_kv", key), s->err,
                           "%zu heads cannot share %zu key/value heads evenly", m->H, m->KV);
    if (!gguf_find(s->gguf, full_key(s, "attention.key_length", key)) && m->C % m->H)
        return model_fault(s->gguf, ATTUNE_ERROR_FORMAT, full_key(s, "attention.head_count", key), s->err,
                           "%zu heads do not divide the width %zu, and no attention.key_length is given", m->H, m->C);
    size_t even_share = m->C / m->H ? m->C / m->H : 1;
    if ((code = read_size(s, "attention.key_length", 2, HEAD_SIZE_MAX, even_share, &m->D))) return code;
    if ((code = read_size(s, "attention.value_length", 2, HEAD_SIZE_MAX, even_share, &value_length))) return code;
    full_key(s, "attention.key_length", key);
    if (m->D % 2 || m->D > HEAD_SIZE_MAX)
        return model_fault(s->gguf, ATTUNE_ERROR_UNSUPPORTED, key, s->err,
                           "a head size of %zu is not supported: it must be even and at most %d", m->D, HEAD_SIZE_MAX);
    if (value_length != m->D)
        return model_fault(s->gguf, ATTUNE_ERROR_UNSUPPORTED, full_key(s, "attention.value_length", key), s->err,
                           "keys of %zu and values of %zu floats a head: different sizes are not supported", m->D,
                           value_length);
    return ATTUNE_OK;
}

static int read_rope(const struct settings *s, struct model *m) {
    char key[KEY_SIZE];
    int code;
    if ((code = read_size(s, "rope.dimension_count", 2, m->D, m->D, &m->rope.dims))) return code;
    if (m->rope.dims % 2)
        return model_fault(s->gguf, ATTUNE_ERROR_FORMAT, full_key(s, "rope.dimension_count", key), s->err,
                           "%zu dimensions cannot be rotated in pairs", m->rope.dims);
    m->rope.style = m->architecture->rope;
    return read_positive(s, "rope.freq_base", 1e12, 10000.0f, &m->rope.base);
}

int model_read_settings(const struct gguf *gguf, struct model *m, attune_error *err) {
    char key[KEY_SIZE];
    int code = read_general(gguf, m, err);
    if (code) return code;
    struct settings s = {gguf, m->architecture->name, err};
    if ((code = refuse_features(&s))) return code;
    if ((code = refuse_rope_scaling(&s))) return code;
    if ((code = read_size(&s, "block_count", 1, LAYERS_MAX, 0, &m->L))) return code;
    if (m->L > gguf->n_tensors / TENSORS_PER_LAYER)
        return model_fault(gguf, ATTUNE_ERROR_FORMAT, full_key(&s, "block_count", key), err,
                           "%zu layers, but the file's %zu tensors are too few for them: it is damaged", m->L,
                           gguf->n_tensors);
    if ((code = read_size(&s, "embedding_length", 2, WIDTH_MAX, 0, &m->C))) return code;
    if ((code = read_size(&s, "feed_forward_length", 1, WIDTH_MAX, 0, &m->F))) return code;
    if ((code = read_size(&s, "context_length", 1, INT32_MAX, 0, &m->context))) return code;
    if ((code = read_positive(&s, "attention.layer_norm_rms_epsilon", 1, 0, &m->eps))) return code;
    if ((code = read_heads(&s, m))) return code;
    return read_rope(&s, m);
}
