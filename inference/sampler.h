/* From logits to a token: penalties, temperature, top-k, top-p, min-p, a seeded draw.
 * Order as in llama.cpp: penalty, top-k, top-p, min-p, temperature, draw. Greedy at temperature 0:
 * the lowest id among equals. */
#ifndef INFERENCE_SAMPLER_H
#define INFERENCE_SAMPLER_H

#include "core/base/error.h"

struct sampler;
/* An impossible setting is ATTUNE_ERROR_ARGUMENT and named. The stop strings are not looked at. */
int sampler_create(const attune_generate_options *options, size_t vocabulary, size_t context, struct sampler **out,
                   attune_error *err);
void sampler_destroy(struct sampler *sampler);
/* logits(V) are scratch afterwards. line: all tokens so far, for the penalty. Logits that are not finite
 * are never chosen; -1: none is finite. Does not allocate. */
int32_t sampler_next(struct sampler *sampler, float *logits, const int32_t *line, size_t n_line);
/* Of the token that sampler_next returned last: itself first, then the best, best first. NULL and 0: none were asked
 * for. Good until the next call. */
const attune_alternative *sampler_alternatives(const struct sampler *sampler, size_t *n);

#endif
