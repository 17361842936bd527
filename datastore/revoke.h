/* Revoking: what has learned from rows that are forgotten, or whose consent is withdrawn, is not used any more.
 * Adapters of the runs that held such a row, trained on or held out, go with all their descendants; runs that are
 * under way end. */
#ifndef DATASTORE_REVOKE_H
#define DATASTORE_REVOKE_H

#include "datastore/handle.h"

struct store_revoked {  /* adds up; before and after are CURRENT's adapter, before is set once */
    int adapters, runs; /* revoked, ended */
    int before, after;
};
/* What CURRENT says now, in both; a damaged one counts as the base. */
void store_revoked_start(const attune_store *store, struct store_revoked *out);

/* Inside a write transaction: the adapters of these runs (ascending numbers) and their descendants, which stay revoked;
 * the unfinished runs among them or built upon what is revoked become "failed" with `reason`, and their checkpoint is
 * gone when this returns. CURRENT is swapped before the caller commits. */
int store_revoke(attune_store *store, const int64_t *runs, size_t n, const char *reason, struct store_revoked *out,
                 attune_error *err);
/* Outside of transactions: examples that only revoked runs have used become new again. */
int store_revoked_release(attune_store *store, attune_error *err);

/* Inside a write transaction: files have to be swept. store_revoke does it itself. */
int store_sweep_mark(attune_store *store, attune_error *err);
int store_sweep_pending(attune_store *store, int *pending, attune_error *err);
/* Outside of transactions: unlinks the files of revoked adapters, caches, and a checkpoint that belongs to no run, if
 * that is still to do. All is tried; the first failure is returned, and the next call tries again. */
int store_sweep(attune_store *store, attune_error *err);

#endif
