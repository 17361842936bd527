/* Wiping what was deleted: terms out of the full-text index, pages out of the log. Deleting leaves traces that
 * secure_delete does not reach: FTS5 keeps the terms of deleted rows until its segments are merged, and the log
 * keeps old pages until it is truncated, which a reader's snapshot forbids. */
#ifndef DATASTORE_SCRUB_H
#define DATASTORE_SCRUB_H

#include "datastore/handle.h"

/* Inside the write transaction that deletes: there is something to wipe. */
int store_scrub_mark(attune_store *store, attune_error *err);
/* Outside of transactions, in steps that each block writers for less than 100 ms, until nothing is left (*left 0) or
 * store_clock_ms has passed until_ms (0: no limit) or a reader's snapshot stands in the way (*left 1). */
int store_scrub_some(attune_store *store, int64_t until_ms, int *left, attune_error *err);
/* 1: something is left to wipe. Cheap. */
int store_scrub_pending(attune_store *store, int *pending, attune_error *err);

#endif
