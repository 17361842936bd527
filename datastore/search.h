/* Full-text search over prompts, responses and edits: FTS5, without a copy of the texts. An interaction's words stand
 * under the rowid 2 * interaction.id, an edit's under 2 * feedback.id + 1. An encrypted store keeps no index: its rows
 * are decrypted into one in memory, batch by batch, when somebody searches. */
#ifndef DATASTORE_SEARCH_H
#define DATASTORE_SEARCH_H

#include "datastore/record.h"

/* Inside a write transaction: indexes what was recorded since the marks "indexed" and "feedback_indexed", until
 * nothing is left (*left 0) or store_clock_ms has passed until_ms (0: no limit) or, with a limit, so much is done that
 * the commit would take long; at least one row. */
int store_index_some(attune_store *store, int64_t until_ms, int *left, attune_error *err);
/* Inside a write transaction, before the interaction is deleted: its entries and its feedback's go. */
int store_index_forget(attune_store *store, int64_t id, attune_error *err);
/* Inside a write transaction: the index is emptied, and made anew piece by piece when it is wanted. */
int store_index_restart(attune_store *store, attune_error *err);
/* Interactions that match, as attune_filter.match says, ascending, each once; malloc'ed. Brings the index up first unless
 * inside a read. A query without a word is ATTUNE_ERROR_ARGUMENT. */
int store_search(attune_store *store, const char *query, int64_t **ids, size_t *n, attune_error *err);
int store_index_left(attune_store *store, int64_t *n, attune_error *err);

#endif
