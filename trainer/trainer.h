/* The trainer: examples become batches, batches become steps of an optimizer.
 *
 * Owns examples in tokens, packing, masked SFT, AdamW, schedules, checkpoints, evaluation. Refuses to
 * know how answers are generated, who asked, and where files of a home lie. Every number here is a
 * pure function of base, kernel table, configuration and rows: not of threads or clocks. */
#ifndef TRAINER_TRAINER_H
#define TRAINER_TRAINER_H

#include "adapters/lora.h"

/* ---- examples ---- */
struct example {
    int32_t *ids;         /* (n) tokens of the conversation, cut at max_tokens */
    uint8_t *supervised;  /* (n) response and end-of-turn */
    size_t n, n_supervised; /* n_supervised: targets that remain after the cut */
    uint64_t key;         /* from the content hash: dropout is keyed by it */
    char hash[65];
    char prompt_hash[17];
};
struct example_set {
    struct example *items;
    size_t n, capacity;
};
/* Renders, masks, cuts. An example without a supervised token left is not added: *added 0. */
int example_add(struct example_set *set, const struct model *model, const attune_message *messages,
                size_t n_messages, const char *response, const char *content_hash, const char *prompt_hash,
                size_t max_tokens, int *added, attune_error *err);
/* One that example_add has made before: ids(n) and supervised(n) are copied. */
int example_add_tokens(struct example_set *set, const int32_t *ids, const uint8_t *supervised, size_t n,
                       const char *content_hash, const char *prompt_hash, attune_error *err);
void example_set_free(struct example_set *set);

/* ---- configuration ---- */
enum schedule { SCHEDULE_CONSTANT, SCHEDULE_COSINE };
struct train_config {
    struct lora_config lora;
    float dropout;
    float learning_rate;
    enum schedule schedule;
    float warmup;      /* share of all steps */
    float beta1, beta2, epsilon, weight_decay;
    float clip;        /* largest global L2 norm of the gradient; 0: off */
    size_t batch;      /* conversations a step: each the mean over its tokens, then the mean of them */
    size_t max_tokens; /* of one text */
    size_t micro_tokens; /* packed at once through the layers, at least max_tokens */
    uint64_t seed;
};
void train_config_default(struct train_config *config);
/* Learning rate of step (from 0) out of `steps`. */
float schedule_rate(const struct train_config *config, size_t step, size_t steps);

/* ---- the optimizer: AdamW (Loshchilov & Hutter 2019), decoupled decay ---- */
struct adamw {
    size_t n, step; /* step: updates done */
    float *m, *v;   /* (n) */
};
void adamw_update(struct adamw *adamw, float *parameters, const float *gradient, const struct train_config *config,
                  float learning_rate);

/* ---- training ---- */
struct trainer {
    const struct model *model;
    struct pool *pool;
    struct train_config config;
    struct lora *lora;          /* being trained; owned */
    struct adamw adamw;
    float *gradient;            /* (n) */
    struct layer_gradients *views; /* (L) into gradient */
    struct training_pass *pass; /* NULL until a step needs it */
    struct arena arena;
    struct packer *packer;
    size_t dropped;             /* steps whose loss or gradient was not finite: no update was made */
};
/* start: parameters to begin from (same configuration), or NULL: lora_init with the seed. */
int trainer_create(const struct model *model, struct pool *pool, const struct train_config *config,
                   const struct lora *start, struct trainer **out, attune_error *err);
void trainer_destroy(struct trainer *trainer);
/* As after trainer_create. */
void trainer_reset(struct trainer *trainer, const struct lora *start);
/* Gives the activations' memory back; the next step takes it again. */
void trainer_release(struct trainer *trainer);
/* Peak of parameters, moments and activations; of the first two alone. */
size_t trainer_state_bytes(const struct model *model, const struct lora_config *config);
size_t trainer_bytes(const struct model *model, int threads, const struct train_config *config);
/* One optimizer step over the examples named by rows[0..n). loss: mean over the examples of their mean
 * nats per token. tokens: put through. Cancelled: ATTUNE_ERROR_CANCELLED and nothing has changed. A loss or
 * gradient that is not finite: *loss is NaN, no update, `dropped` counts it. */
int trainer_step(struct trainer *trainer, const struct example_set *set, const size_t *rows, size_t n,
                 float learning_rate, double *loss, size_t *tokens, attune_error *err);
/* Forward only, per-row sums of nats: nll(n) for rows[0..n). */
int trainer_evaluate(struct training_pass *pass, struct packer *packer, const struct weights *weights,
                     const struct example_set *set, const size_t *rows, size_t n, double *nll, attune_error *err);

/* ---- evaluation without training ---- */
struct evaluator {
    struct training_pass *pass;
    struct packer *packer;
};
int evaluator_create(const struct model *model, struct pool *pool, size_t micro_tokens, size_t rank_max,
                     struct evaluator *out, attune_error *err);
void evaluator_free(struct evaluator *evaluator);

/* ---- checkpoints: GGUF with parameters, moments and the caller's own state (JSON text) ---- */
/* All but the last moment: written, synced and verified beside `path`. The caller puts it in place with
 * file_writer_publish, or abandons it. */
int checkpoint_prepare(const struct trainer *trainer, const char *state, const char *path, struct file_writer *out,
                       attune_error *err);
int checkpoint_write(const struct trainer *trainer, const char *state, const char *path, attune_error *err);
/* state is malloc'ed. trainer NULL: the state only. A checkpoint of another configuration or base:
 * ATTUNE_ERROR_MISMATCH. */
int checkpoint_read(const char *path, struct trainer *trainer, char **state, attune_error *err);

#endif
