/* Deriving: from what was recorded, what a night can learn from (docs/formats.md, "Which interactions become
 * examples"). Incremental: interactions beyond the mark "derived" and those in `touched` are looked at, each once. */
#ifndef DATASTORE_DERIVE_H
#define DATASTORE_DERIVE_H

#include "datastore/record.h"

/* All inside a write transaction. */

/* Until nothing is left (*left 0) or the monotonic clock (store_clock_ms) has passed until_ms, 0: no limit; at least
 * one row. */
int store_derive_some(attune_store *store, int64_t until_ms, int *left, attune_error *err);
/* The digest and examples of one row, now. */
int store_derive_row(attune_store *store, int64_t id, attune_error *err);
/* Before the interaction is deleted: what its digest has written elsewhere goes, and the near-duplicates that were
 * grouped because of it are looked at anew, as if it had never been there. */
int store_derive_forget(attune_store *store, int64_t id, attune_error *err);
/* Content hash of a row as the table digest has it (keyed where the store is encrypted). */
void store_keyed_content_hash(const attune_store *store, const attune_message *messages, size_t n, const char *response,
                              char hex[HASH_HEX_SIZE]);
/* Derives what waits, in transactions of its own, for about `seconds` (0: all of it). Inside a transaction or a callback
 * nothing: then what is there must do. */
int store_derive_pending(attune_store *store, double seconds, attune_error *err);
/* How many interactions wait to be derived; any time. */
int store_derive_left(attune_store *store, int64_t *n, attune_error *err);
/* Inside a write transaction: the examples of a run are used up by it. */
int store_examples_consumed(attune_store *store, int64_t run, attune_error *err);

#endif
