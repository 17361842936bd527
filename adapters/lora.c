#include "adapters/lora.h"

#include "core/base/random.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DESCRIPTIONS_MAX = 16 << 20 };

void lora_tensor_name(char out[LORA_TENSOR_NAME_SIZE], size_t layer, enum target target) {
    snprintf(out, LORA_TENSOR_NAME_SIZE, "blk.%zu.%s.weight", layer, target_names[target]);
}

static int targeted(uint32_t targets, size_t target) { return (targets >> target & 1) != 0; }

size_t lora_count(const struct model *model, size_t rank, uint32_t targets) {
    size_t n = 0;
    for (size_t l = 0; l < model->L; l++) {
        for (size_t t = 0; t < TARGET_COUNT; t++) {
            if (!targeted(targets, t)) continue;
            const struct matrix *w = &model->layers[l].linear[t];
            size_t pair;
            if (!checked_add(w->rows, w->cols, &pair) || !checked_mul(pair, rank, &pair) || !checked_add(n, pair, &n))
                return 0;
        }
    }
    return n;
}

static int config_check(const struct lora_config *config, attune_error *err) {
    if (config->rank == 0 || config->rank > LORA_RANK_MAX)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "an adapter's rank must be 1 to %d, not %zu", LORA_RANK_MAX,
                         config->rank);
    if (!isfinite(config->alpha) || config->alpha == 0 || fabsf(config->alpha) > LORA_ALPHA_MAX)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL,
                         "an adapter's alpha must be finite, not 0 and at most %d in size, not %g", LORA_ALPHA_MAX,
                         (double)config->alpha);
    if (config->targets == 0 || (config->targets & ~(uint32_t)LORA_ALL_TARGETS))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "an adapter's targets 0x%x are none or unknown ones",
                         (unsigned)config->targets);
    return ATTUNE_OK;
}

/* Pointers of the pairs into the parameters. */
static void pairs_bind(struct lora *lora, const struct model *model) {
    float *at = lora->parameters;
    for (size_t l = 0; l < lora->L; l++) {
        for (size_t t = 0; t < TARGET_COUNT; t++) {
            if (!targeted(lora->config.targets, t)) continue;
            const struct matrix *w = &model->layers[l].linear[t];
            struct low_rank *pair = &lora->pairs[l].target[t];
            pair->rank = lora->config.rank;
            pair->scale = lora->config.alpha / (float)lora->config.rank;
            pair->a = at;
            at += pair->rank * w->cols;
            pair->b = at;
            at += pair->rank * w->rows;
        }
    }
}

int lora_create(const struct model *model, const struct lora_config *config, struct lora **out, attune_error *err) {
    int code = config_check(config, err);
    if (code != ATTUNE_OK) return code;
    size_t n = lora_count(model, config->rank, config->targets);
    if (n == 0) return error_set(err, ATTUNE_ERROR_MEMORY, NULL, "sizes overflow for an adapter");
    struct lora *lora = calloc(1, sizeof *lora);
    if (!lora) return error_set_memory(err, "an adapter", sizeof *lora);
    for (int pass = 0; pass < 2; pass++) {
        lora->parameters = ARENA_TAKE(&lora->arena, float, n);
        lora->pairs = ARENA_TAKE(&lora->arena, struct layer_pairs, model->L);
        if (pass == 0 && (code = arena_commit(&lora->arena, "an adapter", err)) != ATTUNE_OK) {
            free(lora);
            return code;
        }
    }
    lora->config = *config;
    lora->L = model->L;
    lora->n = n;
    pairs_bind(lora, model);
    *out = lora;
    return ATTUNE_OK;
}

void lora_destroy(struct lora *lora) {
    if (!lora) return;
    arena_free(&lora->arena);
    free(lora);
}

int lora_pair_offset(const struct lora *lora, const struct model *model, size_t layer, enum target target, size_t *a,
                     size_t *b) {
    (void)model;
    if (layer >= lora->L || (unsigned)target >= TARGET_COUNT || !targeted(lora->config.targets, target)) return 0;
    const struct low_rank *pair = &lora->pairs[layer].target[target];
    *a = (size_t)(pair->a - lora->parameters);
    *b = (size_t)(pair->b - lora->parameters);
    return 1;
}

void lora_init(struct lora *lora, const struct model *model, uint64_t seed) {
    memset(lora->parameters, 0, lora->n * sizeof *lora->parameters);
    for (size_t l = 0; l < lora->L; l++) {
        for (size_t t = 0; t < TARGET_COUNT; t++) {
            size_t a, b;
            if (!lora_pair_offset(lora, model, l, t, &a, &b)) continue;
            uint64_t key = random_u64(random_u64(seed, l), t);
            size_t cols = model->layers[l].linear[t].cols;
            float bound = 1.0f / sqrtf((float)cols);
            for (size_t i = 0; i < lora->config.rank * cols; i++)
                lora->parameters[a + i] = (2.0f * random_uniform(key, i) - 1.0f) * bound;
        }
    }
}

void lora_gradient_views(const struct lora *lora, float *vector, struct layer_gradients *out) {
    for (size_t l = 0; l < lora->L; l++) {
        for (size_t t = 0; t < TARGET_COUNT; t++) {
            size_t a, b;
            int there = lora_pair_offset(lora, NULL, l, t, &a, &b);
            out[l].target[t] = there ? (struct low_rank_gradient){vector + a, vector + b}
                                     : (struct low_rank_gradient){NULL, NULL};
        }
    }
}

int lora_targets_parse(const char *text, uint32_t *targets, attune_error *err) {
    if (strcmp(text, "all") == 0) {
        *targets = LORA_ALL_TARGETS;
        return ATTUNE_OK;
    }
    uint32_t bits = 0;
    for (const char *at = text;;) {
        size_t length = strcspn(at, ","), t = 0;
        while (t < TARGET_COUNT && (strlen(target_names[t]) != length || memcmp(target_names[t], at, length) != 0)) t++;
        if (t == TARGET_COUNT)
            return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL,
                             "unknown target \"%.*s\": \"all\", or out of attn_q, attn_k, attn_v, attn_output, "
                             "ffn_gate, ffn_up, ffn_down with commas between",
                             length > 64 ? 64 : (int)length, at);
        bits |= (uint32_t)1 << t;
        if (at[length] == '\0') break;
        at += length + 1;
    }
    *targets = bits;
    return ATTUNE_OK;
}

static int all_finite(const float *x, size_t n) {
    int bad = 0;
    for (size_t i = 0; i < n; i++) bad |= !isfinite(x[i]);
    return !bad;
}

int lora_check_finite(const struct lora *lora, const struct model *model, const char *where, attune_error *err) {
    for (size_t l = 0; l < lora->L; l++) {
        for (size_t t = 0; t < TARGET_COUNT; t++) {
            const struct low_rank *pair = &lora->pairs[l].target[t];
            if (pair->rank == 0) continue;
            const struct matrix *w = &model->layers[l].linear[t];
            int a_fine = all_finite(pair->a, pair->rank * w->cols);
            if (a_fine && all_finite(pair->b, pair->rank * w->rows)) continue;
            char name[LORA_TENSOR_NAME_SIZE];
            lora_tensor_name(name, l, t);
            return error_set(err, ATTUNE_ERROR_FORMAT, where ? where : name,
                             "%s of %s holds a value that is not finite: the adapter is damaged or diverged in "
                             "training; use another version of it",
                             a_fine ? "B" : "A", name);
        }
    }
    return ATTUNE_OK;
}

/* ---- reading ---- */

size_t lora_file_max(const struct model *model) {
    size_t n = lora_count(model, LORA_RANK_MAX, LORA_ALL_TARGETS), bytes;
    if (n == 0 || !checked_mul(n, sizeof(float), &bytes) || !checked_add(bytes, DESCRIPTIONS_MAX, &bytes))
        return SIZE_MAX;
    return bytes;
}

static float value_at(const struct lora_half *half, size_t i) {
    if (half->type == BLOCK_F32) {
        float value;
        memcpy(&value, half->data + i * 4, 4);
        return value;
    }
    uint16_t bits;
    memcpy(&bits, half->data + i * 2, 2);
    if (half->type == BLOCK_F16) return half_to_float(bits);
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

/* Shapes of one pair against the base and the rank. */
static int pair_check(const struct lora_half *a, const struct lora_half *b, const struct matrix *w, size_t rank,
                      const char *file, attune_error *err) {
    if (a->cols != w->cols)
        return error_set(err, ATTUNE_ERROR_MISMATCH, file,
                         "%.100s takes %llu inputs, the base's matrix has %zu: the adapter was made for another model",
                         a->name, (unsigned long long)a->cols, w->cols);
    if (b->rows != w->rows)
        return error_set(err, ATTUNE_ERROR_MISMATCH, file,
                         "%.100s gives %llu outputs, the base's matrix has %zu: the adapter was made for another model",
                         b->name, (unsigned long long)b->rows, w->rows);
    if (a->rows != b->cols)
        return error_set(err, ATTUNE_ERROR_FORMAT, file, "%.100s has rank %llu, but %.100s has rank %llu", a->name,
                         (unsigned long long)a->rows, b->name, (unsigned long long)b->cols);
    if (a->rows == 0 || a->rows > LORA_RANK_MAX)
        return error_set(err, ATTUNE_ERROR_UNSUPPORTED, file, "%.100s has rank %llu; 1 to %d are supported", a->name,
                         (unsigned long long)a->rows, LORA_RANK_MAX);
    if (a->rows != rank)
        return error_set(err, ATTUNE_ERROR_UNSUPPORTED, file,
                         "%.100s has rank %llu, others have %zu: adapters with one rank for all tensors are supported",
                         a->name, (unsigned long long)a->rows, rank);
    return ATTUNE_OK;
}

static int halves_check(const struct model *model, const struct lora_half *halves, const char *file, uint32_t *targets,
                        size_t *rank, attune_error *err) {
    *targets = 0;
    for (size_t l = 0; l < model->L; l++)
        for (size_t t = 0; t < TARGET_COUNT; t++)
            if (halves[lora_half_index(l, t, LORA_HALF_A)].name || halves[lora_half_index(l, t, LORA_HALF_B)].name)
                *targets |= (uint32_t)1 << t;
    if (!*targets) return error_set(err, ATTUNE_ERROR_FORMAT, file, "no tensors of an adapter are in this file");
    *rank = 0;
    for (size_t l = 0; l < model->L; l++) {
        for (size_t t = 0; t < TARGET_COUNT; t++) {
            if (!targeted(*targets, t)) continue;
            const struct lora_half *a = &halves[lora_half_index(l, t, LORA_HALF_A)];
            const struct lora_half *b = &halves[lora_half_index(l, t, LORA_HALF_B)];
            if (!a->name && !b->name)
                return error_set(err, ATTUNE_ERROR_UNSUPPORTED, file,
                                 "layer %zu has no pair for %s, other layers do: adapters with the same targets in all "
                                 "layers are supported",
                                 l, target_names[t]);
            if (!a->name || !b->name)
                return error_set(err, ATTUNE_ERROR_FORMAT, file, "%.100s is there without its %s",
                                 a->name ? a->name : b->name, a->name ? "B" : "A");
            if (*rank == 0) *rank = a->rows;
            int code = pair_check(a, b, &model->layers[l].linear[t], *rank, file, err);
            if (code != ATTUNE_OK) return code;
        }
    }
    return ATTUNE_OK;
}

int lora_assemble(const struct model *model, float alpha, const struct lora_half *halves, const char *file,
                  struct lora **out, attune_error *err) {
    struct lora_config config = {.alpha = alpha};
    struct lora *lora = NULL;
    int code = halves_check(model, halves, file, &config.targets, &config.rank, err);
    if (code != ATTUNE_OK) return code;
    if (!isfinite(alpha) || alpha == 0 || fabsf(alpha) > LORA_ALPHA_MAX)
        return error_set(err, ATTUNE_ERROR_FORMAT, file, "alpha is %g; it must be finite, not 0 and at most %d in size",
                         (double)alpha, LORA_ALPHA_MAX);
    if ((code = lora_create(model, &config, &lora, err)) != ATTUNE_OK) return code;
    for (size_t l = 0; l < model->L; l++) {
        for (size_t t = 0; t < TARGET_COUNT; t++) {
            for (int half = 0; half < LORA_HALF_COUNT; half++) {
                const struct lora_half *from = &halves[lora_half_index(l, t, half)];
                size_t at[LORA_HALF_COUNT];
                if (!lora_pair_offset(lora, model, l, t, &at[LORA_HALF_A], &at[LORA_HALF_B])) continue;
                for (size_t i = 0; i < from->rows * from->cols; i++) lora->parameters[at[half] + i] = value_at(from, i);
            }
        }
    }
    code = lora_check_finite(lora, model, file, err);
    if (code != ATTUNE_OK) {
        lora_destroy(lora);
        return code;
    }
    *out = lora;
    return ATTUNE_OK;
}
