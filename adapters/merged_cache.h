/* Merged weights kept in a folder from one start to the next, and mapped: <folder>/merged-<key>.gguf (the format is at
 * the top of merged_cache.c). Processes share the pages.
 *
 * Nothing in the folder is trusted. Each file is opened once; what was examined is what is mapped. Its header, its
 * shapes against the model, and the hash of its matrices are verified, the hash only when the file is not the very one
 * that was verified before. What remains: somebody who shortens a file while it is mapped raises SIGBUS, and who
 * writes into it changes answers; both take write access to a folder of mode 0700. */
#ifndef ADAPTERS_MERGED_CACHE_H
#define ADAPTERS_MERGED_CACHE_H

#include "adapters/merge.h"

/* Of which merge. The model's sha256 belongs to it; a model without one has no cache. */
struct merged_key {
    const char *adapter_sha256; /* 64 digits, borrowed */
    enum merge_mode mode;
};

/* ATTUNE_ERROR_NOT_FOUND: there is none, or what was there was damaged or of something else, and has been removed.
 * pool: for verifying, NULL: in this thread. model is borrowed for as long as *out lives. */
int merged_cache_open(const char *folder, const struct merged_key *key, const struct model *model, struct pool *pool,
                      struct merged **out, attune_error *err);
/* Atomic, 0600. Then the least recently used go until the rest take at most limit_bytes (0: 1 GiB), but two stay, and
 * this one. An error leaves the folder as it was: a caller that has the weights can do without. */
int merged_cache_keep(const char *folder, const struct merged_key *key, const struct model *model, struct pool *pool,
                      const struct merged *merged, uint64_t limit_bytes, attune_error *err);
/* Everything that was merged from this adapter, on any base and in any mode. Missing files are fine. */
int merged_cache_remove(const char *folder, const char *adapter_sha256, attune_error *err);

#endif
