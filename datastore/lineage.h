/* What lineage.c has for those in this room who change runs and adapters inside a transaction of their own. */
#ifndef DATASTORE_LINEAGE_H
#define DATASTORE_LINEAGE_H

#include "datastore/handle.h"
#include "datastore/store.h"

/* Inside a write transaction. As store_adapter_state_set; "active" of number 0 is the base. A revoked adapter stays
 * revoked. */
int store_adapter_set(attune_store *store, int number, const char *state, attune_error *err);

/* Inside a write transaction: store_run_update. */
int store_run_write(attune_store *store, const struct store_run *run, attune_error *err);

#endif
