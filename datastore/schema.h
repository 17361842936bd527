/* The schema of store.db as a list of migrations: step i brings user_version from i to i + 1 in one
 * transaction. Steps are only ever added at the end; docs/formats.md tells what the tables mean. */
#ifndef DATASTORE_SCHEMA_H
#define DATASTORE_SCHEMA_H

#include "datastore/handle.h"

#define STORE_APPLICATION_ID 0x6174756e /* "atun" */

extern const char *const store_schema_steps[];
int store_schema_newest(void);
/* user_version of the open database. */
int store_schema_version(attune_store *store, int *version, attune_error *err);
/* Refuses a database that is not an attune store or has a newer schema. *version 0: an empty file. */
int store_schema_check(attune_store *store, int *version, attune_error *err);
/* Applies the steps from the present version up to n. Safe beside other processes that do the same. */
int store_schema_migrate(attune_store *store, const char *const *steps, int n, attune_error *err);

#endif
