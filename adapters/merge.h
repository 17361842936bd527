/* Merging an adapter into the base's matrices at load: W + scale B A, matrix by matrix.
 *
 * f16: kept as F16. q8: quantized to Q8_0. same: quantized to the base's own type; a type without
 * a quantizer is refused by name. Targets that the adapter does not touch stay the base's. */
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
};
/* Told the share done, 0 to 1, on the calling thread; non-zero cancels. */
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

/* The same matrices a layer at a time, in one layer's memory. model, lora and pool are borrowed. */
struct layer_merge;
int layer_merge_create(const struct model *model, const struct lora *lora, enum merge_mode mode, struct pool *pool,
                       struct layer_merge **out, attune_error *err);
void layer_merge_destroy(struct layer_merge *merge);
/* The layer with merged matrices, good until the next call: a struct layer_maker's make. */
int layer_merge_make(void *layer_merge, size_t layer, struct model_layer *out, attune_error *err);
size_t layer_merge_bytes(const struct model *model, int threads, uint32_t targets, enum merge_mode mode);

#endif
