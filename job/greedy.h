/* Greedy answers of a base, with or without an adapter, to one question each: what the job compares them by. No
 * engine, no session: nothing of it outlives the call. */
#ifndef JOB_GREEDY_H
#define JOB_GREEDY_H

#include "adapters/lora.h"
#include "job/canaries.h"

/* What a user's message `prompt`, rendered with the base's chat template, is answered with when the most likely token
 * is taken each time (the lowest id of equally likely ones), up to max_tokens of them; exact products. *out: malloc'ed
 * valid UTF-8; *tokens of it, without the one that ended it, or NULL. A function of weights, prompt, max_tokens and
 * kernel table alone. The pool's cancel is looked at between layers: ATTUNE_ERROR_CANCELLED.
 * ATTUNE_ERROR_CONTEXT_FULL: the base has no room for so much. */
int greedy_answer_of(const struct weights *weights, struct pool *pool, const char *prompt, size_t max_tokens,
                     char **out, size_t *tokens, attune_error *err);
/* The same of the base with lora beside it; NULL: of the base. */
int greedy_answer(const struct model *model, const struct lora *lora, struct pool *pool, const char *prompt,
                  size_t max_tokens, char **out, size_t *tokens, attune_error *err);

/* said[i] 1: each token of ids[spans[i].from .. spans[i].to) is the most likely one after those that stand before it,
 * so that the greedy answer goes on with all of the span once it has come so far. Spans in order, apart, from 1 on. */
int greedy_says(const struct weights *weights, struct pool *pool, const int32_t *ids, const struct token_span *spans,
                size_t n, uint8_t *said, attune_error *err);

#endif
