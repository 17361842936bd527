/* From logits to a token: penalties, temperature, top-k, top-p, min-p, a seeded draw.
 * Order as in llama.cpp: penalty, top-k, top-p, min-p, temperature, draw. Greedy at temperature 0:
 * the lowest id among equals. */
#ifndef INFERENCE_SAMPLER_H
#define INFERENCE_SAMPLER_H

#include "core/base/error.h"

struct sampler;
/* An impossible setting is ATTUNE_ERROR_ARGUMENT and named. The stop strings are not looked at. */
int sampler_create(const attune_generate_options *options, size_t vocabulary, struct sampler **out, attune_error *err);
void sampler_destroy(struct sampler *sampler);
/* logits(V) are scratch afterwards. recent: the last tokens, for the penalty. Logits that are not finite
 * are never chosen; -1: none is finite. Does not allocate. */
int32_t sampler_next(struct sampler *sampler, float *logits, const int32_t *recent, size_t n_recent);

#endif
