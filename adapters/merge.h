/* Merging an adapter into the base's matrices at load: W + scale B A, matrix by matrix.
 *
 * f16: kept as F16. q8: quantized to Q8_0. same: quantized to the base's own type by ggml's reference rounding; blocks
 * whose delta is zero keep the base's bytes. calibrated (calibrate.h): the base's own type too. Targets that the
 * adapter does not touch stay the base's. */
#ifndef ADAPTERS_MERGE_H
#define ADAPTERS_MERGE_H

#include "adapters/lora.h"

enum merge_mode { MERGE_NONE, MERGE_F16, MERGE_Q8, MERGE_SAME, MERGE_CALIBRATED, MERGE_AUTO };
enum { MERGE_MODES = MERGE_AUTO + 1 };
const char *merge_mode_name(enum merge_mode mode);
int merge_mode_parse(const char *text, enum merge_mode *mode, attune_error *err);

/* Merged matrices: made here, or mapped out of a cache (merged_cache.h). */
struct merged {
    struct arena arena;         /* the layers, and the matrices that were made */
    struct model_layer *layers; /* (L) */
    struct gguf *gguf;          /* the file that the matrices were mapped from; NULL: they were made here */
    size_t plain;               /* calibrated: matrices that were merged plainly, as their inputs were of no use */
};
/* Told the share done, 0 to 1, on the calling thread, every few milliseconds; non-zero cancels: ATTUNE_ERROR_CANCELLED,
 * and nothing is left. The pool's own flag, which others may share, is heeded and never set. */
struct merge_progress {
    int (*report)(double share, void *user);
    void *user;
};
/* progress may be NULL. Not for none, nor auto, nor calibrated, which is made of a person's rows. */
int merge_create(const struct model *model, const struct lora *lora, enum merge_mode mode, struct pool *pool,
                 const struct merge_progress *progress, struct merged **out, attune_error *err);
void merge_destroy(struct merged *merged);
/* (L), with merged matrices in place of the base's */
static inline const struct model_layer *merge_layers(const struct merged *merged) { return merged->layers; }
/* Bytes that merge_create would take for an adapter on these targets (bits of enum target). */
size_t merge_bytes(const struct model *model, uint32_t targets, enum merge_mode mode);

/* The same matrices a layer at a time, in one layer's memory. model, lora and pool are borrowed. calibrated: as same,
 * for what it takes all layers to make cannot be had one at a time. */
struct layer_merge;
int layer_merge_create(const struct model *model, const struct lora *lora, enum merge_mode mode, struct pool *pool,
                       struct layer_merge **out, attune_error *err);
void layer_merge_destroy(struct layer_merge *merge);
/* The layer with merged matrices, good until the next call: a struct layer_maker's make. */
int layer_merge_make(void *layer_merge, size_t layer, struct model_layer *out, attune_error *err);
size_t layer_merge_bytes(const struct model *model, int threads, uint32_t targets, enum merge_mode mode);

/* ---- for those who make merged matrices in another way ---- */

/* Memory for the matrices, which are zero; or why the mode cannot be had. */
int merged_create(const struct model *model, const struct lora *lora, enum merge_mode mode, struct merged **out,
                  attune_error *err);
/* sum(cols) = W + scale B A of a row, delta(cols) = scale B A. 0: not finite, or too large for blocks of type `to`. */
int merge_row(float *sum, float *delta, const struct matrix *from, const struct low_rank *pair, size_t row,
              enum block_type to);
int merge_too_large(size_t layer, enum target target, enum block_type to, attune_error *err);
/* One matrix, plainly, into its memory in `to`. scratch: merge_one_floats. */
int merge_one(const struct model *model, const struct lora *lora, size_t layer, enum target target,
              const struct model_layer *to, float *scratch, struct pool *pool, attune_error *err);
size_t merge_one_floats(const struct model *model, int threads);

#endif
