/* Byte-level BPE from a GGUF's vocabulary, as llama.cpp tokenizes. Immutable after open, shared
 * by threads. Pre-tokenizers: smollm, gpt-2, llama-bpe, qwen2; others are refused by name. */
#ifndef CORE_MODEL_TOKENIZER_H
#define CORE_MODEL_TOKENIZER_H

#include "core/model/gguf.h"

struct tokenizer;

/* Borrows the gguf, which must outlive it. */
int tokenizer_create(const struct gguf *gguf, struct tokenizer **out, attune_error *err);
void tokenizer_destroy(struct tokenizer *tokenizer);

size_t tokenizer_size(const struct tokenizer *tokenizer);
/* -1: the vocabulary has none */
int32_t tokenizer_bos(const struct tokenizer *tokenizer);
int32_t tokenizer_eos(const struct tokenizer *tokenizer);
int tokenizer_adds_bos(const struct tokenizer *tokenizer);
/* Ends a turn: eos, eot and <|im_end|>, <|endoftext|>, <|eot_id|>. */
int tokenizer_is_end(const struct tokenizer *tokenizer, int32_t id);
int tokenizer_is_special(const struct tokenizer *tokenizer, int32_t id); /* control or user-defined */

/* special: control tokens in the text are recognised; without it they stay characters, and only
 * user-defined tokens (runs of spaces, say) are. Any bytes are taken, invalid UTF-8 too, and the pieces of
 * the tokens are those bytes. A vocabulary may lack a byte (SmolLM2's has no token for U+0004, for one): a
 * text with it is ATTUNE_ERROR_UNSUPPORTED. No bos is added. *n is the number needed, ids past capacity
 * are not written. */
int tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t length, int special, int32_t *ids,
                     size_t capacity, size_t *n, attune_error *err);
/* Bytes of one token (special tokens: their text), borrowed; *size its length. NULL: no such id. */
const char *tokenizer_piece(const struct tokenizer *tokenizer, int32_t id, size_t *size);
/* Id of the token whose text in the vocabulary is this, -1 if none. Meant for special tokens. */
int32_t tokenizer_find(const struct tokenizer *tokenizer, const char *text);

#endif
