/* A model's description and weights: a GGUF file behind named matrices. Immutable, shared.
 *
 * Dimensions used everywhere: T tokens, C width, H heads, KV key/value heads, D head size, F
 * FFN width, V vocabulary, L layers, R rank. Matrices are (rows = outputs, cols = inputs), row-major. */
#ifndef CORE_MODEL_MODEL_H
#define CORE_MODEL_MODEL_H

#include "core/base/arena.h"
#include "core/model/chat_template.h"
#include "core/model/gguf.h"
#include "core/model/tokenizer.h"
#include "core/ops/ops.h"

/* The seven linear layers that an adapter can target, in this order everywhere. */
enum target { TARGET_Q, TARGET_K, TARGET_V, TARGET_OUTPUT, TARGET_GATE, TARGET_UP, TARGET_DOWN, TARGET_COUNT };
extern const char *const target_names[TARGET_COUNT]; /* "attn_q", ..., "ffn_down" */

struct model_layer {
    const float *attn_norm, *ffn_norm; /* (C) */
    /* q (H*D, C), k and v (KV*D, C), output (C, H*D), gate and up (F, C), down (C, F) */
    struct matrix linear[TARGET_COUNT];
    const float *bias[TARGET_COUNT]; /* (rows) or NULL; q, k, v of qwen2 */
};

/* An architecture is an entry of a table (architecture.c), and what a file of it may hold is known to the
 * last tensor: one that is not known, or a setting that changes the arithmetic, is refused by name. */
struct architecture {
    const char *name; /* general.architecture, and the prefix of its keys */
    enum rope_style rope;
    int qkv_bias; /* attn_{q,k,v}.bias are required */
};
const struct architecture *architecture_find(const char *name); /* NULL: unknown */

struct model {
    struct gguf *gguf;
    const struct architecture *architecture;
    char name[128];
    char sha256[65]; /* of the file; "" until model_set_hash */
    size_t C, H, KV, D, F, V, L, context;
    float eps;
    struct rope rope;
    struct matrix embedding;   /* (V, C) */
    struct matrix head;        /* (V, C), the embedding when tied */
    const float *output_norm;  /* (C) */
    struct model_layer *layers; /* (L) */
    struct tokenizer *tokenizer;
    struct chat_template *chat; /* NULL: none that attune knows; chat_error says why */
    attune_error chat_error;
    struct arena arena; /* layers, and the norms and biases that were not F32 or not aligned */
};

/* Reads general.architecture and the hyperparameters into model (architecture, name, C, H, KV, D, F, L,
 * context, eps, rope without its factors); V and everything after it is not touched. */
int model_read_settings(const struct gguf *gguf, struct model *model, attune_error *err);
/* error_set with "<file name>:<thing>" as where; thing is a key or a tensor's name. */
int model_fault(const struct gguf *gguf, int code, const char *thing, attune_error *err, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

int model_open(const char *path, enum file_load load, struct model **out, attune_error *err);
/* Over a parsed GGUF, which the model then owns (on success). A chat template that attune does not know is not
 * an error: see model->chat_error. */
int model_from_gguf(struct gguf *gguf, struct model **out, attune_error *err);
void model_close(struct model *model);
/* The file's hash, 64 lower-case digits, from whoever has computed or remembered it. Before the model is shared. */
void model_set_hash(struct model *model, const char *hex);
/* Weights in the file; a tied head counts once. */
int64_t model_parameters(const struct model *model);

#endif
