/* Calibrated merging: the base's own block types, rounded so that the layers' outputs stay what they were for the
 * person's rows.
 *
 * For a matrix that sees inputs X (T, cols), W' = W + scale B A is replaced by what minimises the sum over its rows of
 * |X (w' - w_q)|^2 = e H e^T, H = X^T X, with w_q on a grid of its block type. Rows are independent:
 *   - q column by column, the error of earlier ones made good by later ones (GPTQ, Frantar et al. 2022, in the form of
 *     nearest-plane rounding on the factor R of H = R R^T, R upper triangular);
 *   - then sweeps that set each block's scale and minimum to their least squares values and move single q while that
 *     helps (coordinate descent): no sweep makes the error larger.
 * X are inputs behind earlier layers that are merged already. A row that the adapter does not change keeps the base's
 * very bytes; others may change in any block. Types without a grid (F32, F16, BF16) are merged plainly. */
#ifndef ADAPTERS_CALIBRATE_H
#define ADAPTERS_CALIBRATE_H

#include "adapters/merge.h"

/* batches[i], i < n: the rows to calibrate on, packed; of each batch tokens, positions and starts are used. All go
 * through a layer before the next one is merged: about 100 to 1000 conversations' worth of tokens are enough. A matrix
 * whose inputs are too few or not finite is merged plainly and counted in (*out)->plain. Deterministic for any number
 * of threads of the pool. progress may be NULL. */
int calibrate_create(const struct model *model, const struct lora *lora, struct pool *pool,
                     const struct packed_batch *const *batches, size_t n, const struct merge_progress *progress,
                     struct merged **out, attune_error *err);
/* Bytes that calibrate_create takes for n batches of up to T_max tokens, the result included. */
size_t calibrate_bytes(const struct model *model, const struct lora_config *config, int threads, size_t T_max,
                       size_t n);

#endif
