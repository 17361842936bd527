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

/* What a pass is made for. `kept` and `head_rows` trade memory for time: results do not depend on them. */
struct pass_shape {
    size_t T_max; /* tokens of a batch, positions below it */
    size_t R_max; /* rank */
    size_t together; /* batches that training_pass_losses and _drift take at once; 0: one */
    int backward;    /* 0: losses and logits only, less memory */
    int dropout;     /* 0: always none */
    int drift;       /* 1: for training_pass_drift too: hidden states and logits of two models */
    enum precision precision;
    size_t kept;      /* layers whose activations stay until the backward instead of being computed again: 1 to L */
    size_t head_rows; /* rows whose logits exist at once, at least 16 or T_max */
};
/* Sets kept and head_rows to the best that fit into `bytes`; to the least where not even that fits. */
void pass_shape_fit(struct pass_shape *shape, const struct model *model, int threads, size_t bytes);
/* Bytes that training_pass_create would take. */
size_t training_pass_bytes(const struct model *model, int threads, const struct pass_shape *shape);

struct training_pass;
/* The pool is borrowed. */
int training_pass_create(const struct model *model, struct pool *pool, const struct pass_shape *shape,
                         struct training_pass **out, attune_error *err);
void training_pass_destroy(struct training_pass *pass);

/* losses(T): nats at the supervised positions, 0 elsewhere. gradients (L) accumulate; NULL: loss only.
 * dropout 0: none. ATTUNE_ERROR_CANCELLED when the pool was cancelled: then losses and gradients are void. */
int training_pass_run(struct training_pass *pass, const struct weights *weights, const struct packed_batch *batch,
                      float dropout, uint64_t dropout_key, struct layer_gradients *gradients, float *losses,
                      attune_error *err);

/* Makes a layer's weights when it is reached; they need to last until the next call. */
struct layer_maker {
    int (*make)(void *user, size_t layer, struct model_layer *out, attune_error *err);
    void *user;
};
/* losses[i] of batches[i], i < n <= together: each as training_pass_run gives them. All batches go through a layer
 * before the next one is made. maker NULL: the layers are those of weights. */
int training_pass_losses(struct training_pass *pass, const struct weights *weights, const struct layer_maker *maker,
                         const struct packed_batch *const *batches, float *const *losses, size_t n, attune_error *err);
/* Sees x(T, width), what a matrix is multiplied with: that of q for k and v, that of gate for up. */
struct input_observer {
    void (*see)(void *user, size_t layer, enum target target, const float *x, size_t T, size_t width);
    void (*passed)(void *user, size_t layer); /* a batch has gone through the layer that was made; or NULL */
    void *user;
};
/* Layer by layer: all batches go through the one of weights, adapter included, and the observer sees their inputs;
 * then maker makes the layer that gives them to the next one. n <= together. */
int training_pass_observe(struct training_pass *pass, const struct weights *weights, const struct layer_maker *maker,
                          const struct input_observer *observer, const struct packed_batch *const *batches, size_t n,
                          attune_error *err);
/* How far one way to run a model is from another, over supervised positions: sums, which add up over calls. */
struct model_drift {
    size_t tokens, agreeing; /* agreeing: both find the same token most likely */
    double kl;               /* KL(reference || other), nats */
    double loss_reference, loss; /* nats */
};
/* Adds to *sum what batches[i], i < n <= together, tell of `other` (layers as for training_pass_losses) against
 * `reference`. reference NULL: that of the last call, which had the same batches. Hidden states of both are there
 * whole, logits of head_rows at once. On error *sum is as it was. */
int training_pass_drift(struct training_pass *pass, const struct weights *reference, const struct weights *other,
                        const struct layer_maker *maker, const struct packed_batch *const *batches, size_t n,
                        struct model_drift *sum, attune_error *err);
/* Logits (T, V) of all positions of one unpacked sequence, for comparisons. */
int training_pass_logits(struct training_pass *pass, const struct weights *weights, const int32_t *tokens, size_t T,
                         float *logits, attune_error *err);

/* ---- generation: a cache of keys and values ---- */
struct kv_cache {
    enum block_type kind;  /* F32, F16 or Q8_0 */
    size_t context, used;  /* tokens; used may be set to less: what comes later is forgotten */
    size_t row_bytes;      /* of D elements as blocks */
    unsigned char *k, *v;  /* (L, KV, context, row_bytes); k rotated */
    float *turning;        /* (L * KV + 1, D) of a shift: the turns, and a key of each head */
    unsigned char *turned; /* (L * KV) heads that are done */
    struct arena arena;
};
/* ATTUNE_ERROR_UNSUPPORTED: not one of the kinds, or heads that are no whole blocks of it. */
int kv_cache_create(const struct model *model, size_t context, enum block_type kind, struct kv_cache *out,
                    attune_error *err);
void kv_cache_free(struct kv_cache *cache);
/* Drops tokens keep .. keep + drop; those after them move there, and their keys are rotated to where they are then (and
 * rounded to the kind once more). Values are moved as they are. Done whole, even when the pool is cancelled meanwhile.
 * What the layers above the first computed from dropped tokens stays in them. */
void kv_cache_shift(struct kv_cache *cache, const struct model *model, struct pool *pool, size_t keep, size_t drop);

struct decoding_pass;
enum { DECODING_CHUNK = 128 }; /* tokens of a prompt that go through the layers together */
int decoding_pass_create(const struct model *model, struct pool *pool, size_t context, size_t R_max,
                         enum precision precision, struct decoding_pass **out, attune_error *err);
void decoding_pass_destroy(struct decoding_pass *pass);
size_t decoding_pass_bytes(const struct decoding_pass *pass); /* that it holds */
/* Append n tokens at cache->used; logits(n_logits, V) of the last n_logits of them, up to DECODING_LOGITS; 0: none
 * (logits may be NULL). The caller checks room in the cache; more than the context is ATTUNE_ERROR_CONTEXT_FULL.
 * Cancelled, which is looked at between layers: cache->used is as it was, and so is what it counts. */
enum { DECODING_LOGITS = 16 };
int decoding_pass_run(struct decoding_pass *pass, const struct weights *weights, struct kv_cache *cache,
                      const int32_t *tokens, size_t n, float *logits, size_t n_logits, attune_error *err);

#endif
