/* From logits to a token.
 *
 * In this order, which is llama.cpp's default: logit bias; repetition, frequency and presence penalties; top-k;
 * typical-p; top-p; min-p; temperature; a seeded draw. Each cut judges the probabilities of what the one before it
 * left, at temperature 1. At temperature 0 (greedy) the best after bias and penalties is taken and nothing is cut:
 * typical-p alone could lose it.
 *
 * Equals rank by id, the lower first. A draw is a function of logits, seed and the number of the draw. All arithmetic
 * runs on the calling thread. */
#ifndef INFERENCE_SAMPLER_H
#define INFERENCE_SAMPLER_H

#include "core/base/error.h"

enum { LOOKUP_MAX = 8 }; /* tokens drafted at once */

struct sampler;
/* An impossible setting is ATTUNE_ERROR_ARGUMENT: field, value and range are named; options must not be NULL. The stop
 * strings and max_tokens are not looked at. context: the longest line. All memory is taken here; what is behind the
 * options is copied. */
int sampler_create(const attune_generate_options *options, size_t vocabulary, size_t context, struct sampler **out,
                   attune_error *err);
void sampler_destroy(struct sampler *sampler);

/* The token to follow line[0..n_line), all tokens so far: the penalties look back on it; ids outside the vocabulary
 * are passed over. logits(V) are scratch afterwards. What is not finite, or forbidden, is never chosen; -1: nothing
 * is left. */
int32_t sampler_next(struct sampler *sampler, float *logits, const int32_t *line, size_t n_line);

/* Of the token returned last: itself, then the best ones by the raw logits, best first, which it may be among.
 * *n is 0 where none were asked for or there was no token; valid until the next call. A logit that is not finite has
 * no probability. */
const attune_alternative *sampler_alternatives(const struct sampler *sampler, size_t *n);

#endif
