/* The trainer: examples become batches, batches become steps of an optimizer.
 *
 * Owns examples in tokens, packing, masked SFT, AdamW, schedules, checkpoints, evaluation. Refuses to
 * know how answers are generated, who asked, and where files of a home lie. Every number here is a
 * pure function of base, kernel table, configuration and rows: not of threads or clocks. */
#ifndef TRAINER_TRAINER_H
#define TRAINER_TRAINER_H

#include "adapters/lora.h"

/* ---- examples ---- */
enum example_kind {
    EXAMPLE_SFT,        /* an answer to say */
    EXAMPLE_PREFERENCE, /* the better of two answers; the next of the set is the other one */
    EXAMPLE_REJECTED,   /* the worse of two: no row by itself */
    EXAMPLE_THUMB       /* an answer that was judged */
};
/* ln of the probability that the starting point gives to an answer; of: which starting point, 0: not known yet. */
struct reference {
    uint64_t of;
    double logp;
};
struct example {
    enum example_kind kind;
    int label;            /* of a thumb: 1 up, -1 down */
    double weight;        /* of the row in a step's loss, above 0 to 1; that of a rejected one is its pair's */
    struct reference *reference; /* a cache that steps fill; NULL: an answer to say has none */
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
/* A pair: two examples, the better answer first, which is the row; the other one follows. *added 0 too when they are
 * the same as far as max_tokens. */
int example_add_preference(struct example_set *set, const struct model *model, const attune_message *messages,
                           size_t n_messages, const char *chosen, const char *rejected, const char *content_hash,
                           const char *prompt_hash, size_t max_tokens, int *added, attune_error *err);
/* label: 1 up, -1 down. */
int example_add_thumb(struct example_set *set, const struct model *model, const attune_message *messages,
                      size_t n_messages, const char *response, int label, const char *content_hash,
                      const char *prompt_hash, size_t max_tokens, int *added, attune_error *err);
/* One that example_add has made before: ids(n) and supervised(n) are copied. */
int example_add_tokens(struct example_set *set, const int32_t *ids, const uint8_t *supervised, size_t n,
                       const char *content_hash, const char *prompt_hash, attune_error *err);
/* What an example holds. */
void example_free(struct example *example);
void example_set_free(struct example_set *set);

/* ---- configuration ---- */
enum schedule { SCHEDULE_CONSTANT, SCHEDULE_COSINE };
/* How preferences count. Coefficients at least 0. */
struct preference_config {
    float beta;     /* of DPO and KTO: how far from the starting point is far, above 0 */
    int mean;       /* 1: log-probabilities are means over an answer's tokens; 0: sums */
    float dpo;      /* coefficient of a pair's DPO loss */
    float sft;      /* of the better answer's mean nats per token, beside it */
    float up, down; /* KTO's lambda of answers that were liked, and of those that were not */
};
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
    enum precision precision; /* of products with the frozen base, forward and backward */
    struct preference_config preference;
};
void train_config_default(struct train_config *config);
/* Learning rate of step (from 0) out of `steps`. */
float schedule_rate(const struct train_config *config, size_t step, size_t steps);

/* ---- the optimizer: AdamW (Loshchilov & Hutter 2019), decoupled decay ---- */
struct adamw {
    size_t n, step; /* step: updates done */
    float *m, *v;   /* (n) */
};
/* Whole, also when the pool is cancelled meanwhile. The gradient is multiplied with `scale` first. partial:
 * adamw_partials(n) of scratch. */
size_t adamw_partials(size_t n);
void adamw_update(struct adamw *adamw, struct pool *pool, float *parameters, const float *gradient, float scale,
                  const struct train_config *config, float learning_rate, double *partial);
/* L2 norm of x(n), a sum in double in one fixed order; void when the pool is cancelled. */
double gradient_norm(struct pool *pool, const float *x, size_t n, double *partial);

/* ---- training ---- */
struct trainer {
    const struct model *model;
    struct pool *pool;
    struct train_config config;
    struct lora *lora;          /* being trained; owned */
    struct adamw adamw;
    float *gradient;            /* (n) */
    float *kept;                /* (n) parameters that were kept, while has_kept; NULL until some are */
    int has_kept;
    double *partial;            /* adamw_partials(n) */
    struct layer_gradients *views; /* (L) into gradient */
    struct training_pass *pass; /* NULL until a step needs it */
    size_t activation_bytes;    /* that the pass may take, as pass_shape_fit; set before a step. No result hangs on it.
                                 * SIZE_MAX at first: every layer's activations are kept */
    struct arena arena;
    struct packer *packer;
    struct objective *objective;
    const struct lora *start;   /* borrowed at the last reset: preferences are measured against it; NULL: the base */
    uint64_t start_key;         /* names its parameters; 0: not computed yet */
    size_t dropped;             /* steps whose loss or gradient was not finite: no update was made */
};
/* start: parameters to begin from (same configuration), or NULL: lora_init with the seed. It is read again by steps
 * that hold pairs or thumbs, so for those it has to stay as it is until the next reset. */
int trainer_create(const struct model *model, struct pool *pool, const struct train_config *config,
                   const struct lora *start, struct trainer **out, attune_error *err);
void trainer_destroy(struct trainer *trainer);
/* As after trainer_create. */
void trainer_reset(struct trainer *trainer, const struct lora *start);
/* Keeps the parameters as they are now, in place of those kept before; takes them again; or lets go of them. A reset
 * lets go of them; checkpoints have them. The first time takes memory for as many again: trainer_kept_bytes, which
 * trainer_state_bytes leaves out. */
int trainer_keep(struct trainer *trainer, attune_error *err);
size_t trainer_kept_bytes(const struct model *model, const struct train_config *config);
void trainer_restore(struct trainer *trainer);
void trainer_let_go(struct trainer *trainer);
/* Gives the activations' memory back; the next step takes it again. */
void trainer_release(struct trainer *trainer);
/* Of the last step that was made or dropped, by kind of row: losses without the rows' weights. */
struct step_losses {
    size_t sft_rows, pairs, thumbs;
    double sft, preference, thumb; /* sums over rows */
    double margin;                 /* sum over pairs of r(chosen) - r(rejected) */
    size_t won;                    /* pairs whose margin is above 0 */
};
const struct step_losses *trainer_step_losses(const struct trainer *trainer);
/* What trainer_create takes, and what the first step takes on top of it when it may take `bytes`. */
size_t trainer_state_bytes(const struct model *model, const struct train_config *config);
struct pass_shape trainer_pass_shape(const struct model *model, int threads, const struct train_config *config,
                                     size_t bytes);
/* One optimizer step over the examples named by rows[0..n), in any mixture; the gradient is that of the sum of
 * weight * loss over the rows, divided by n.
 *   SFT        mean nats per token
 *   preference dpo * -ln sigma(beta (r(chosen) - r(rejected))) + sft * mean nats per token of the chosen
 *   thumb      up * (1 - sigma(beta (r - z))) or down * (1 - sigma(beta (z - r)))
 * r: ln p(answer) now less what it was at the start (Rafailov et al. 2023, arXiv:2305.18290; Ethayarajh et al. 2024,
 * arXiv:2402.01306). z: the mean of r over the step's other thumbs, at least 0, and held constant.
 * loss: the rows' mean, weighted. tokens: put through. Cancelled: ATTUNE_ERROR_CANCELLED and nothing has changed.
 * A loss or gradient that is not finite: *loss is NaN, no update, `dropped` counts it. */
int trainer_step(struct trainer *trainer, const struct example_set *set, const size_t *rows, size_t n,
                 float learning_rate, double *loss, size_t *tokens, attune_error *err);

/* ---- evaluation without training ---- */
struct evaluator_shape {
    size_t micro_tokens, rank_max;
    size_t together; /* micro-batches that go through each layer before the next, at least 1: for layers that are made
                      * when they are reached */
    int drift;       /* 1: for evaluator_drift too */
};
struct evaluator {
    struct evaluator_shape shape;
    struct training_pass *pass;
    struct packer **packers; /* (together) */
};
/* bytes: that it may take, as pass_shape_fit; no result hangs on it. */
int evaluator_create(const struct model *model, struct pool *pool, const struct evaluator_shape *shape, size_t bytes,
                     struct evaluator *out, attune_error *err);
void evaluator_free(struct evaluator *evaluator);
size_t evaluator_bytes(const struct model *model, int threads, const struct evaluator_shape *shape, size_t bytes);
/* Forward only, per-row sums of nats: nll(n) for rows[0..n). maker: of layers that are not those of weights, or NULL.*/
int evaluator_run(struct evaluator *evaluator, const struct weights *weights, const struct layer_maker *maker,
                  const struct example_set *set, const size_t *rows, size_t n, double *nll, attune_error *err);
/* Adds to *sum how far `other` (maker as above) is from `reference` over rows[0..n), n as evaluator_rows says.
 * reference NULL: that of the last call, which had the same rows. */
int evaluator_drift(struct evaluator *evaluator, const struct weights *reference, const struct weights *other,
                    const struct layer_maker *maker, const struct example_set *set, const size_t *rows, size_t n,
                    struct model_drift *sum, attune_error *err);
/* How many of rows go through the layers together: where evaluator_run may be cut without a difference. */
size_t evaluator_rows(const struct evaluator_shape *shape, const struct example_set *set, const size_t *rows,
                      size_t n);

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
