/* One step: conversations packed into micro-batches, their gradients summed, clipped, applied. */
#include "trainer/trainer.h"

#include "core/base/fault.h"
#include "core/base/random.h"
#include "trainer/objective.h"
#include "trainer/packer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void take(struct trainer *t, struct arena *arena, size_t n) {
    t->gradient = ARENA_TAKE(arena, float, n);
    t->adamw.m = ARENA_TAKE(arena, float, n);
    t->adamw.v = ARENA_TAKE(arena, float, n);
    t->adamw.n = n;
    t->partial = ARENA_TAKE(arena, double, adamw_partials(n));
    t->views = ARENA_TAKE(arena, struct layer_gradients, t->model->L);
}

size_t trainer_state_bytes(const struct model *model, const struct train_config *config) {
    struct trainer counted = {.model = model};
    size_t n = lora_count(model, config->lora.rank, config->lora.targets);
    take(&counted, &counted.arena, n);
    return n * sizeof(float) + counted.arena.used + packer_bytes(config->micro_tokens) +
           objective_bytes(config->batch) + sizeof counted;
}

struct pass_shape trainer_pass_shape(const struct model *model, int threads, const struct train_config *config,
                                     size_t bytes) {
    struct pass_shape shape = {.T_max = config->micro_tokens, .R_max = config->lora.rank, .backward = 1,
                               .dropout = config->dropout > 0.0f, .precision = config->precision};
    pass_shape_fit(&shape, model, threads, bytes);
    return shape;
}

static int check_config(const struct train_config *c, attune_error *err) {
    if (c->max_tokens < 2 || c->micro_tokens < c->max_tokens)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL,
                         "texts of up to %zu tokens do not fit micro-batches of %zu; lower max_tokens", c->max_tokens,
                         c->micro_tokens);
    if (!(c->learning_rate >= 0.0f) || !isfinite(c->learning_rate) || !(c->dropout >= 0.0f && c->dropout < 1.0f) ||
        !(c->beta1 >= 0.0f && c->beta1 < 1.0f) || !(c->beta2 >= 0.0f && c->beta2 < 1.0f) || !(c->epsilon > 0.0f) ||
        !(c->weight_decay >= 0.0f) || !(c->clip >= 0.0f) || !(c->warmup >= 0.0f && c->warmup <= 1.0f) || c->batch == 0)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL,
                         "impossible training settings: rates and decay at least 0, dropout and betas in [0, 1), "
                         "epsilon above 0, warmup in [0, 1], batch at least 1");
    const struct preference_config *p = &c->preference;
    if (!(p->beta > 0.0f && isfinite(p->beta)) || !(p->dpo >= 0.0f && isfinite(p->dpo)) ||
        !(p->sft >= 0.0f && isfinite(p->sft)) || !(p->up >= 0.0f && isfinite(p->up)) ||
        !(p->down >= 0.0f && isfinite(p->down)))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL,
                         "impossible settings of preferences: beta above 0, the other coefficients at least 0");
    return ATTUNE_OK;
}

int trainer_create(const struct model *model, struct pool *pool, const struct train_config *config,
                   const struct lora *start, struct trainer **out, attune_error *err) {
    int code = check_config(config, err);
    if (code != ATTUNE_OK) return code;
    struct trainer *t = calloc(1, sizeof *t);
    if (!t) return error_set_memory(err, "a trainer", sizeof *t);
    t->model = model;
    t->pool = pool;
    t->config = *config;
    t->activation_bytes = SIZE_MAX;
    code = lora_create(model, &config->lora, &t->lora, err);
    if (code != ATTUNE_OK) goto out;
    if (start && (start->n != t->lora->n || memcmp(&start->config, &config->lora, sizeof config->lora) != 0)) {
        code =
            error_set(err, ATTUNE_ERROR_MISMATCH, NULL,
                      "the adapter to start from has rank %zu, alpha %g and its own targets; train with the same, or "
                      "from fresh",
                      start->config.rank, (double)start->config.alpha);
        goto out;
    }
    take(t, &t->arena, t->lora->n);
    code = arena_commit(&t->arena, "the optimizer", err);
    if (code != ATTUNE_OK) goto out;
    take(t, &t->arena, t->lora->n);
    lora_gradient_views(t->lora, t->gradient, t->views);
    trainer_reset(t, start);
    code = packer_create(config->micro_tokens, &t->packer, err);
    if (code == ATTUNE_OK) code = objective_create(config->batch, &t->objective, err);
out:
    if (code != ATTUNE_OK) {
        trainer_destroy(t);
        return code;
    }
    *out = t;
    return ATTUNE_OK;
}

void trainer_destroy(struct trainer *trainer) {
    if (!trainer) return;
    packer_destroy(trainer->packer);
    objective_destroy(trainer->objective);
    training_pass_destroy(trainer->pass);
    arena_free(&trainer->arena);
    lora_destroy(trainer->lora);
    free(trainer->kept);
    free(trainer);
}

void trainer_reset(struct trainer *t, const struct lora *start) {
    if (start)
        memcpy(t->lora->parameters, start->parameters, start->n * sizeof(float));
    else
        lora_init(t->lora, t->model, t->config.seed);
    memset(t->adamw.m, 0, t->adamw.n * sizeof(float));
    memset(t->adamw.v, 0, t->adamw.n * sizeof(float));
    t->adamw.step = 0;
    t->dropped = 0;
    t->start = start;
    t->start_key = 0;
    t->has_kept = 0;
}

size_t trainer_kept_bytes(const struct model *model, const struct train_config *config) {
    return lora_count(model, config->lora.rank, config->lora.targets) * sizeof(float);
}

int trainer_keep(struct trainer *t, attune_error *err) {
    size_t bytes = t->lora->n * sizeof(float);
    if (!t->kept) t->kept = malloc(bytes);
    if (!t->kept) return error_set_memory(err, "parameters that are kept", bytes);
    memcpy(t->kept, t->lora->parameters, bytes);
    t->has_kept = 1;
    return ATTUNE_OK;
}

void trainer_restore(struct trainer *t) {
    memcpy(t->lora->parameters, t->kept, t->lora->n * sizeof(float));
    t->has_kept = 0;
}

void trainer_let_go(struct trainer *t) { t->has_kept = 0; }

void trainer_release(struct trainer *t) {
    training_pass_destroy(t->pass);
    t->pass = NULL;
}

/* ---- what preferences are measured with ---- */

/* Names the starting point's parameters, and how products with the base are made. Never 0. */
static uint64_t key_of_start(const struct trainer *t) {
    uint64_t key = random_mix((uint64_t)t->config.precision + 1);
    for (size_t i = 0; t->start && i < t->start->n; i++) {
        uint32_t bits;
        memcpy(&bits, &t->start->parameters[i], sizeof bits);
        key = random_mix(key ^ bits);
    }
    return key ? key : 1;
}

static int is_known(const struct trainer *t, const struct example_set *set, size_t s) {
    return set->items[t->objective->items[s]].reference->of == t->start_key;
}

/* ln p of the answers in sequences [at, n) of the objective, as many as go through the layers together; *end:
 * behind the last. Without dropout: it would be noise in a margin. */
static int measure(struct trainer *t, const struct weights *weights, const struct example_set *set, size_t at,
                   size_t n, size_t *end, attune_error *err) {
    struct packer *packer = t->packer;
    *end = packer_fill(packer, set, t->objective->items, at, n, NULL, 0);
    return training_pass_run(t->pass, weights, &packer->batch, 0.0f, 0, NULL, packer->losses, err);
}

/* What the starting point gives the answers; each is computed once, as long as the set lives. */
static int measure_start(struct trainer *t, const struct example_set *set, attune_error *err) {
    struct weights weights = {t->model, t->model->layers, t->start ? t->start->pairs : NULL};
    struct objective *o = t->objective;
    if (t->start_key == 0) t->start_key = key_of_start(t);
    for (size_t at = 0, n; at < o->preferences;) {
        size_t unknown = at;
        while (unknown < o->preferences && !is_known(t, set, unknown)) unknown++;
        if (unknown == at) {
            at++;
            continue;
        }
        int code = measure(t, &weights, set, at, unknown, &n, err);
        if (code != ATTUNE_OK) return code;
        for (size_t s = 0; s < t->packer->batch.n_sequences; s++)
            *set->items[o->items[at + s]].reference =
                (struct reference){t->start_key, -packer_loss(t->packer, s)};
        at = n;
    }
    return ATTUNE_OK;
}

static int measure_now(struct trainer *t, const struct example_set *set, attune_error *err) {
    struct weights weights = {t->model, t->model->layers, t->lora->pairs};
    struct objective *o = t->objective;
    for (size_t at = 0, n; at < o->preferences; at = n) {
        int code = measure(t, &weights, set, at, o->preferences, &n, err);
        if (code != ATTUNE_OK) return code;
        for (size_t s = 0; s < t->packer->batch.n_sequences; s++) o->logp[at + s] = -packer_loss(t->packer, s);
    }
    return ATTUNE_OK;
}

static int weigh(struct trainer *t, const struct example_set *set, const size_t *rows, size_t n, attune_error *err) {
    int code = objective_lay_out(t->objective, set, rows, n, err);
    if (code == ATTUNE_OK && t->objective->preferences > 0) {
        code = measure_start(t, set, err);
        if (code == ATTUNE_OK) code = measure_now(t, set, err);
    }
    if (code == ATTUNE_OK) objective_weigh(t->objective, &t->config.preference, set, n);
    return code;
}

const struct step_losses *trainer_step_losses(const struct trainer *trainer) { return &trainer->objective->losses; }

/* ---- the step ---- */

/* What the sequences in the packer add to the losses of answers to say; those of preferences are known before. */
static void add_losses(struct trainer *t, const struct example_set *set) {
    struct objective *o = t->objective;
    for (size_t s = 0; s < t->packer->batch.n_sequences; s++) {
        const struct example *e = &set->items[o->items[t->packer->rows[s]]];
        if (e->kind != EXAMPLE_SFT) continue;
        double loss = packer_loss(t->packer, s) / (double)e->n_supervised;
        o->loss += e->weight * loss;
        o->losses.sft += loss;
        o->losses.sft_rows++;
    }
}

/* Sum of gradients over all micro-batches of the step; *loss: mean over rows of their losses. */
static int accumulate(struct trainer *t, const struct example_set *set, double *loss, size_t *tokens,
                      attune_error *err) {
    struct weights weights = {t->model, t->model->layers, t->lora->pairs};
    struct objective *o = t->objective;
    uint64_t step = t->adamw.step + t->dropped, step_key = random_u64(t->config.seed, step);
    *tokens = 0;
    for (size_t at = 0; at < o->n;) {
        at = packer_fill(t->packer, set, o->items, at, o->n, o->weights, step_key);
        const struct packed_batch *batch = &t->packer->batch;
        int code = training_pass_run(t->pass, &weights, batch, t->config.dropout, step_key, t->views,
                                     t->packer->losses, err);
        if (code != ATTUNE_OK) return code;
        add_losses(t, set);
        *tokens += batch->T;
    }
    *loss = o->loss / o->weight;
    return ATTUNE_OK;
}

static int create_pass(struct trainer *t, attune_error *err) {
    struct pass_shape shape = trainer_pass_shape(t->model, pool_threads(t->pool), &t->config, t->activation_bytes);
    return training_pass_create(t->model, t->pool, &shape, &t->pass, err);
}

int trainer_step(struct trainer *t, const struct example_set *set, const size_t *rows, size_t n, float learning_rate,
                 double *loss, size_t *tokens, attune_error *err) {
    int code = t->pass ? ATTUNE_OK : create_pass(t, err);
    if (code != ATTUNE_OK) return code;
    memset(t->gradient, 0, t->lora->n * sizeof(float));
    code = weigh(t, set, rows, n, err);
    if (code == ATTUNE_OK) code = accumulate(t, set, loss, tokens, err);
    if (code != ATTUNE_OK) return code;
    double norm = gradient_norm(t->pool, t->gradient, t->lora->n, t->partial);
    float scale = 1.0f;
    if (pool_cancelled(t->pool)) return error_set(err, ATTUNE_ERROR_CANCELLED, NULL, "cancelled");
    /* beyond this the second moment, a square, would overflow in f32 */
    if (!isfinite(*loss) || !(norm < 1e18) || fault_fails("step.finite")) {
        t->dropped++;
        *loss = NAN;
        return ATTUNE_OK;
    }
    if (t->config.clip > 0.0f && norm > (double)t->config.clip) scale = (float)((double)t->config.clip / norm);
    adamw_update(&t->adamw, t->pool, t->lora->parameters, t->gradient, scale, &t->config, learning_rate,
                 t->partial);
    return ATTUNE_OK;
}
