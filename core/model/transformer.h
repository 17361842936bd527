/* The forward pass over layers and its backward: one description of a layer for training,
 * evaluation and generation.
 *
 * Owns activations. Knows neither optimizers nor samplers: a loss goes out, tokens and weights
 * come in. One pass object belongs to one thread at a time; models and views are shared. */
#ifndef CORE_MODEL_TRANSFORMER_H
#define CORE_MODEL_TRANSFORMER_H

#include "core/base/arena.h"
#include "core/model/model.h"

/* What an adapter adds to a layer; rank 0: nothing at that target. */
struct layer_pairs {
    struct low_rank target[TARGET_COUNT];
};
struct layer_gradients {
    struct low_rank_gradient target[TARGET_COUNT];
};

/* The weights to run with. layers: the model's own, or merged copies. */
struct weights {
    const struct model *model;
    const struct model_layer *layers; /* (L) */
    const struct layer_pairs *pairs;  /* (L), or NULL: no adapter beside */
};

/* ---- training and evaluation: packed sequences ---- */
struct packed_batch {
    size_t T, n_sequences;
    const int32_t *tokens;    /* (T) */
    const int32_t *positions; /* (T), restarting at each sequence */
    const size_t *starts;     /* (n_sequences + 1) */
    const int32_t *targets;   /* (T) the next token where it is supervised, else -1 */
    const float *weights;     /* (T) of the target's loss in the gradient */
    const uint64_t *keys;     /* (T) for dropout; NULL without */
};

struct training_pass;
/* For batches of up to T_max tokens (and positions below T_max) and ranks up to R_max. backward 0:
 * evaluation only, less memory. The pool is borrowed. */
int training_pass_create(const struct model *model, struct pool *pool, size_t T_max, size_t R_max, int backward,
                         struct training_pass **out, attune_error *err);
void training_pass_destroy(struct training_pass *pass);
/* Bytes that training_pass_create would take. */
size_t training_pass_bytes(const struct model *model, int threads, size_t T_max, size_t R_max, int backward);

/* losses(T): nats at the supervised positions, 0 elsewhere. gradients (L) accumulate; NULL: loss only.
 * dropout 0: none. ATTUNE_ERROR_CANCELLED when the pool was cancelled: then losses and gradients are void. */
int training_pass_run(struct training_pass *pass, const struct weights *weights, const struct packed_batch *batch,
                      float dropout, uint64_t dropout_key, struct layer_gradients *gradients, float *losses,
                      attune_error *err);
/* Logits (T, V) of all positions of one unpacked sequence, for comparisons. */
int training_pass_logits(struct training_pass *pass, const struct weights *weights, const int32_t *tokens, size_t T,
                         float *logits, attune_error *err);

/* ---- generation: a cache of keys and values ---- */
struct kv_cache {
    size_t context, used; /* tokens */
    float *k, *v;         /* (L, KV, context, D) */
    struct arena arena;
};
int kv_cache_create(const struct model *model, size_t context, struct kv_cache *out, attune_error *err);
void kv_cache_free(struct kv_cache *cache);

struct decoding_pass;
enum { DECODING_CHUNK = 128 }; /* tokens of a prompt that go through the layers together */
int decoding_pass_create(const struct model *model, struct pool *pool, size_t context, size_t R_max,
                         struct decoding_pass **out, attune_error *err);
void decoding_pass_destroy(struct decoding_pass *pass);
/* Append n tokens at cache->used; logits(V) of the last one, or NULL. The caller checks room in the
 * cache; more than the context is ATTUNE_ERROR_CONTEXT_FULL. Cancelled: cache->used is as it was. */
int decoding_pass_run(struct decoding_pass *pass, const struct weights *weights, struct kv_cache *cache,
                      const int32_t *tokens, size_t n, float *logits, attune_error *err);

#endif
