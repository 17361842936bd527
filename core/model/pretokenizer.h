/* Cuts text into the words that byte-pair encoding may not merge across, by the regular expressions
 * that llama.cpp keeps under the name in tokenizer.ggml.pre. Immutable after creation, shared by
 * threads. Owns the expressions; knows nothing of vocabularies. */
#ifndef CORE_MODEL_PRETOKENIZER_H
#define CORE_MODEL_PRETOKENIZER_H

#include "core/base/error.h"

struct pretokenizer;

/* A name that attune does not know is ATTUNE_ERROR_UNSUPPORTED. */
int pretokenizer_create(const char *name, size_t name_size, struct pretokenizer **out, attune_error *err);
void pretokenizer_destroy(struct pretokenizer *pre);

/* A word that is a token as a whole is that token, whatever the merges would make of it. */
int pretokenizer_ignores_merges(const struct pretokenizer *pre);
/* Whether a text starts with bos where tokenizer.ggml.add_bos_token says nothing. */
int pretokenizer_adds_bos(const struct pretokenizer *pre);

/* Calls word(user, at, size) for each word in order; together they are the whole text, any bytes. A
 * non-zero answer ends it and is returned. Time and memory are linear in length. */
int pretokenizer_split(const struct pretokenizer *pre, const char *text, size_t length,
                       int (*word)(void *user, const char *at, size_t size), void *user, attune_error *err);

#endif
