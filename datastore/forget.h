/* Forgetting: rows go, and nothing that learned from them stays in use. See docs/formats.md, "Forgetting". */
#ifndef DATASTORE_FORGET_H
#define DATASTORE_FORGET_H

#include "datastore/handle.h"

/* What is kept of a content hash (64 hexadecimal digits) when its row was forgotten: enough to know the row again if
 * it is imported once more. Inside a write transaction, or when the store's salt is there. */
int store_tombstone_hash(attune_store *store, const char *content_hash, unsigned char out[32], attune_error *err);

/* Outside of transactions: in runs that had to do with what was forgotten, content hashes that no row has any more
 * become tombstones, in steps, until nothing is left (*left 0) or store_clock_ms has passed until_ms (0: no limit). */
int store_lineage_wipe_some(attune_store *store, int64_t until_ms, int *left, attune_error *err);

#endif
