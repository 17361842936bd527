/* cache/tokens.gguf: rows that earlier plans have tokenized, by content hash, so that a night tokenizes what is new.
 * It holds texts, if only as tokens: it goes whenever something is forgotten, and an encrypted store has none. */
#ifndef JOB_TOKEN_CACHE_H
#define JOB_TOKEN_CACHE_H

#include "datastore/store.h"
#include "trainer/trainer.h"

struct token_cache;
/* What is remembered for this model, cut at max_tokens: nothing, when the file is missing, damaged, or of another model
 * or length. home NULL: nothing, and nothing is kept. Open it before rows are read: what is forgotten from then on
 * keeps token_cache_keep from writing. */
int token_cache_open(const char *home, const struct model *model, size_t max_tokens, struct token_cache **out,
                     attune_error *err);
void token_cache_close(struct token_cache *cache);
/* Before rows are read that are to be kept: when something is forgotten from here on, nothing will be. */
void token_cache_watch(struct token_cache *cache);
/* The row as an example of the set: from memory, else tokenized. *added 0: there is nothing to learn from, or this base
 * cannot express it. */
int token_cache_add(struct token_cache *cache, const struct store_row *row, struct example_set *set, int *added,
                    attune_error *err);
/* Replaces the file by the rows that were added since it was watched, unless it holds just them. While the run is
 * unfinished; set: what token_cache_add has filled, among other things. Only a cache: where it cannot be written there
 * is none. */
void token_cache_keep(struct token_cache *cache, const struct example_set *set, attune_store *store, int64_t run);

#endif
