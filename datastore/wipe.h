/* Wiping what SQLite leaves behind. `secure_delete` zeroes what is deleted where it stands, but not the copies that
 * balancing a b-tree has left in the unallocated part of a page when it moved cells to a neighbour: about one deleted
 * row in a thousand stays readable there. */
#ifndef DATASTORE_WIPE_H
#define DATASTORE_WIPE_H

#include "datastore/handle.h"

/* A write transaction beside which nobody writes or checkpoints, with all of the log folded into store.db, truncated,
 * and nothing in this connection's page cache. ATTUNE_CONTINUE (without a message): a writer or the snapshot of a
 * reader stands in the way. */
int store_begin_alone(attune_store *store, attune_error *err);
/* Inside such a transaction, before anything was read or written in it: zeroes the unallocated bytes of pages from
 * *page on (0: the start) until store_clock_ms passes until_ms. *page is 0 when the end was reached; *wiped counts
 * pages that had something in them. The transaction must write something, so that other connections drop the pages
 * that they have cached. */
int store_wipe_pages(attune_store *store, int64_t *page, int64_t until_ms, int64_t *wiped, attune_error *err);

#endif
