/* Which interactions a filter names, and reading them one by one. */
#ifndef DATASTORE_QUERY_H
#define DATASTORE_QUERY_H

#include "datastore/record.h"

/* filter: as options_read left it; malloc'ed ids in the order that the filter wants (time_ms, then id). An id that is no
 * UUID or names nothing is ATTUNE_ERROR_NOT_FOUND. */
int store_select(attune_store *store, const attune_filter *filter, int64_t **ids, size_t *n, attune_error *err);

#endif
