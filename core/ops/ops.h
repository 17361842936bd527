/* Operations over rows of f32 activations, forward beside backward.
 *
 * The base is frozen: a backward gives dX, and dA, dB of a low-rank pair, never dW. Backwards
 * accumulate into dX where the comment says "+=". All results are the same for any number of
 * threads. Activations are (T, width), row-major, contiguous. No function allocates: scratch comes
 * from the caller, sized by ops_scratch_floats per worker. */
#ifndef CORE_OPS_OPS_H
#define CORE_OPS_OPS_H

#include "core/base/pool.h"
#include "core/kernels/kernels.h"

struct ops {
    struct pool *pool;
    const struct kernels *kernels;
    const struct product *product; /* how frozen matrices are multiplied with; one of the table's */
    float *scratch;                /* pool_threads(pool) * scratch_floats */
    size_t scratch_floats;         /* per worker */
    void *packed;                  /* ops_packed_bytes: rows on their way into a product */
};
/* T rows that meet a matrix of up to rows_max x cols_max with pairs of up to rank R_max beside it. */
size_t ops_packed_bytes(const struct kernels *kernels, const struct product *product, size_t T, size_t rows_max,
                        size_t cols_max, size_t R_max);
/* Scratch per worker that every operation below but attention_cached is content with: T tokens, heads of D floats. Scratch and packed rows
 * are aligned to 64 bytes. */
size_t ops_scratch_floats(const struct product *product, size_t T, size_t D);
size_t attention_scratch_floats(size_t T, size_t D); /* the attentions' part of it */

/* A low-rank pair beside a matrix: y += scale * (x A^T) B^T. rank 0: none. */
struct low_rank {
    const float *a; /* (R, cols) */
    const float *b; /* (rows, R) */
    float scale;    /* alpha / rank */
    size_t rank;
};
struct low_rank_gradient {
    float *da; /* (R, cols) += */
    float *db; /* (rows, R) += */
};

/* y(T, rows) = x(T, cols) W^T + bias. bias may be NULL. */
void linear_forward(const struct ops *ops, float *y, const float *x, const struct matrix *w, const float *bias,
                    size_t T);
/* Several products over the same T in one go of the pool: q, k, v; gate, up. */
struct linear { /* those with one x, and so one width, beside each other */
    float *y;
    const float *x;
    const struct matrix *w;
    const float *bias;
    const struct low_rank *pair; /* y += scale (x A^T) B^T in the same pass, or NULL */
    float *xa;                   /* (T, R) = x A^T, kept for the backward; with a pair */
};
enum { LINEAR_GROUP = 3 }; /* that share packed rows */
void linear_forward_group(const struct ops *ops, const struct linear *jobs, size_t n_jobs, size_t T);
/* dx(T, cols) (+)= dy(T, rows) W. accumulate 0: overwrites. With a pair: dyb(T, R) = scale dy B, dx += dyb A in the
 * same pass. pair may be NULL. */
void linear_backward(const struct ops *ops, float *dx, const float *dy, const struct matrix *w,
                     const struct low_rank *pair, float *dyb, size_t T, int accumulate);
/* da, db of low_rank_backward, from a dyb that is there already (linear_backward). */
void low_rank_gradients(const struct ops *ops, const float *dy, const float *x, const float *xa, const float *dyb,
                        const struct low_rank *pair, const struct low_rank_gradient *gradient, size_t rows, size_t cols,
                        size_t T);
/* y += scale (x A^T) B^T; xa(T, R) = x A^T is kept for the backward. y NULL: xa alone. */
void low_rank_forward(const struct ops *ops, float *y, float *xa, const float *x, const struct low_rank *pair,
                      size_t rows, size_t cols, size_t T);
/* dx += scale (dy B) A; da += scale (dy B)^T x; db += scale dy^T xa. x is what the pair saw (after
 * dropout), dyb(T, R) is scratch. gradient NULL: dx only. */
void low_rank_backward(const struct ops *ops, float *dx, const float *dy, const float *x, const float *xa, float *dyb,
                       const struct low_rank *pair, const struct low_rank_gradient *gradient, size_t rows,
                       size_t cols, size_t T);

/* dst += src */
void add_rows(const struct ops *ops, float *dst, const float *src, size_t n);

/* y = x / sqrt(mean(x^2) + eps) * weight */
void rms_norm_forward(const struct ops *ops, float *y, const float *x, const float *weight, float eps, size_t T,
                      size_t C);
/* sum += x;  y = norm(sum), in one pass over memory */
void add_rms_norm_forward(const struct ops *ops, float *y, float *sum, const float *x, const float *weight, float eps,
                          size_t T, size_t C);
/* dx += */
void rms_norm_backward(const struct ops *ops, float *dx, const float *dy, const float *x, const float *weight,
                       float eps, size_t T, size_t C);

/* Rotary embedding (Su et al. 2021). Pairs (2i, 2i+1), or halves (i, i + dims/2). */
enum rope_style { ROPE_INTERLEAVED, ROPE_HALVES };
struct rope {
    enum rope_style style;
    size_t dims;          /* of D that rotate, even */
    float base;
    const float *factors; /* (dims / 2) divide the frequencies (llama-3), or NULL */
};
/* table(positions, dims): cosines and sines of the pairs, as the kernels' rotate_pairs or rotate_halves read them. */
void rope_table(float *table, const struct rope *rope, size_t positions);
void rope_turns(float *turns, const struct rope *rope, size_t position); /* one row of it: (dims) */
/* Rotates x(T, heads * D) in place by positions[t]; inverse: the backward. */
void rope_apply(const struct ops *ops, float *x, const int32_t *positions, const float *table,
                const struct rope *rope, size_t heads, size_t D, size_t T, int inverse);

/* Packed sequences: sequence s holds rows starts[s] .. starts[s+1]. Causal, block-diagonal.
 * q, o (T, H*D); k, v (T, KV*D). */
void attention_forward(const struct ops *ops, float *o, const float *q, const float *k, const float *v,
                       const size_t *starts, size_t n_sequences, size_t H, size_t KV, size_t D);
/* dq, dk, dv are overwritten; P is computed again. dkv: 2 * H*D * T floats of scratch. */
void attention_backward(const struct ops *ops, float *dq, float *dk, float *dv, float *dkv, const float *do_,
                        const float *q, const float *k, const float *v, const size_t *starts, size_t n_sequences,
                        size_t H, size_t KV, size_t D);
/* Keys and values of a layer in a cache: (KV, context) rows of D elements as blocks of `kind`, which has a quantizer. */
struct cached_layer {
    unsigned char *k, *v;
    enum block_type kind;
    size_t context, row_bytes, KV, D;
};
/* T rows k, v (T, KV*D) become rows past .. past + T of the cache. */
void cached_layer_store(const struct ops *ops, const struct cached_layer *layer, const float *k, const float *v,
                        size_t past, size_t T);
/* q, o (T, H*D) of the rows past .. past + T, which the cache holds by now. parts: scratch that the workers share,
 * of attention_cached_parts_floats; theirs has attention_cached_scratch_floats, whatever the context is. */
void attention_cached(const struct ops *ops, float *o, const float *q, const struct cached_layer *layer, size_t past,
                      size_t T, size_t H, float *parts);
size_t attention_cached_scratch_floats(size_t H, size_t KV, size_t D);
size_t attention_cached_parts_floats(size_t H, size_t KV, size_t D);

void swiglu_forward(const struct ops *ops, float *y, const float *gate, const float *up, size_t n);
void swiglu_backward(const struct ops *ops, float *dgate, float *dup, const float *dy, const float *gate,
                     const float *up, size_t n);

/* x(T, C) = rows of the embedding */
void embedding_forward(const struct ops *ops, float *x, const int32_t *tokens, const struct matrix *embedding,
                       size_t T);

/* LM head and cross-entropy in one, in chunks of rows, so that (T, V) logits never exist.
 * x(n, C) are normed hidden states of the supervised positions, targets(n), weights(n) multiply each
 * row's loss in the gradient. losses(n) gets nats per row (unweighted). dx(n, C) is overwritten and may be x,
 * or NULL: loss only. logits: chunk * V floats; what chunk is, 16 or more, or n, does not show in the results. */
void head_loss(const struct ops *ops, float *losses, float *dx, float *logits, size_t chunk, const float *x,
               const int32_t *targets, const float *weights, const struct matrix *head, size_t n);

/* How far one row's logits are from another's; logits are f32, everything from there on is double. */
struct row_drift {
    double kl;                   /* KL(softmax(reference) || softmax(other)), nats, at least 0 */
    double loss_reference, loss; /* nats of the target */
    int agrees;                  /* the largest logit is the same token's */
};
/* drift(n) of normed hidden states reference(n, C) and other(n, C), through the same head. In chunks as head_loss;
 * logits: 2 * chunk * V floats. Where both are the same bytes, kl is 0. */
void head_drift(const struct ops *ops, struct row_drift *drift, float *logits, size_t chunk, const float *reference,
                const float *other, const int32_t *targets, const struct matrix *head, size_t n);

/* Inverted dropout of x(T, C) into y: kept values are scaled by 1/(1-p). The mask is a pure function
 * of (key, row_keys[t], c). Backward is the same call on dy. */
void dropout_apply(const struct ops *ops, float *y, const float *x, float p, uint64_t key, const uint64_t *row_keys,
                   size_t T, size_t C);

#endif
