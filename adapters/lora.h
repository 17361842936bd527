/* LoRA parameters (Hu et al. 2021): a pair A (R, in), B (out, R) for each target of each layer.
 *
 * All parameters lie in one vector, so that gradients and moments are vectors of the same
 * length: layer by layer, targets in the order of enum target, A then B. */
#ifndef ADAPTERS_LORA_H
#define ADAPTERS_LORA_H

#include "core/model/transformer.h"

enum { LORA_RANK_MAX = 256, LORA_ALPHA_MAX = 65536 };

struct lora_config {
    size_t rank;      /* 1 to LORA_RANK_MAX */
    float alpha;      /* not 0, at most LORA_ALPHA_MAX in size */
    uint32_t targets; /* bit (1 << enum target) */
};
enum { LORA_ALL_TARGETS = (1 << TARGET_COUNT) - 1 };

struct lora {
    struct lora_config config;
    size_t L;
    size_t n;                  /* parameters in all */
    float *parameters;         /* (n) */
    struct layer_pairs *pairs; /* (L) into parameters, scale = alpha / rank */
    struct arena arena;        /* holds both */
};

/* Parameters are zero: the adapter changes nothing. */
int lora_create(const struct model *model, const struct lora_config *config, struct lora **out, attune_error *err);
void lora_destroy(struct lora *lora);
/* Parameters that lora_create would make; 0 when they cannot be counted in a size_t. */
size_t lora_count(const struct model *model, size_t rank, uint32_t targets);
/* A uniform in +-1/sqrt(in) (PEFT's Kaiming with a = sqrt 5), each pair with its own key; B zero.
 * A[i], i = r * in + c, is (2 u - 1) * (1 / sqrt(in)) in float32 with u = random_uniform(key, i) and
 * key = random_u64(random_u64(seed, layer), target): what other targets there are changes nothing. */
void lora_init(struct lora *lora, const struct model *model, uint64_t seed);
/* Views of a vector(n) laid out as the parameters: out(L). */
void lora_gradient_views(const struct lora *lora, float *vector, struct layer_gradients *out);
/* Offset and shape of a pair in the vector: A at *a (rank, cols), B at *b (rows, rank); 0 if not targeted. */
int lora_pair_offset(const struct lora *lora, const struct model *model, size_t layer, enum target target, size_t *a,
                     size_t *b);
/* "attn_q,ffn_up" or "all" <-> bits; ATTUNE_ERROR_ARGUMENT names what is unknown. */
int lora_targets_parse(const char *text, uint32_t *targets, attune_error *err);

/* "blk.3.attn_q.weight" */
enum { LORA_TENSOR_NAME_SIZE = 48 };
void lora_tensor_name(char out[LORA_TENSOR_NAME_SIZE], size_t layer, enum target target);
/* All parameters are finite, else ATTUNE_ERROR_FORMAT naming the tensor; where: as error_set's, or NULL for
 * the tensor alone. */
int lora_check_finite(const struct lora *lora, const struct model *model, const char *where, attune_error *err);

/* ---- what the readers of adapter formats share ---- */

/* No file with an adapter for model is larger: all targets at LORA_RANK_MAX in F32, and 16 MiB of descriptions. */
size_t lora_file_max(const struct model *model);

/* A or B of a pair as it lies in a file: row-major, F32, F16 or BF16, any alignment. */
struct lora_half {
    const char *name; /* the file's own name for it; NULL: not there */
    const unsigned char *data;
    enum block_type type;
    uint64_t rows, cols;
};
enum { LORA_HALF_A, LORA_HALF_B, LORA_HALF_COUNT };
static inline size_t lora_half_index(size_t layer, enum target target, int half) {
    return (layer * TARGET_COUNT + (size_t)target) * LORA_HALF_COUNT + (size_t)half;
}
/* An adapter out of halves (L * TARGET_COUNT * LORA_HALF_COUNT). Refused by the tensor's name: a half without
 * its other half, a target that only some layers have, another rank than the rest, a shape that does not fit
 * model, a value that is not finite. file is for messages. */
int lora_assemble(const struct model *model, float alpha, const struct lora_half *halves, const char *file,
                  struct lora **out, attune_error *err);

#endif
