/* The files of a home beside store.db, as far as forgetting has to reach them: CURRENT, adapters, checkpoint, cache. */
#ifndef DATASTORE_HOME_FILES_H
#define DATASTORE_HOME_FILES_H

#include "core/base/error.h"

#pragma GCC visibility push(default) /* job/ uses these from libattune-store */

/* "<home>/adapters/<number>.gguf" */
void store_adapter_path(const char *home, int number, char *out, size_t out_size);
/* CURRENT: "<n> <sha256>\n" or "base\n". number 0: the base; no file means the base. text (nullable) is the file as it
 * stands. Damaged: ATTUNE_ERROR_FORMAT with what to do. */
int store_current_read(const char *home, int *number, char sha256[65], char text[128], attune_error *err);
int store_current_write(const char *home, int number, const char *sha256, attune_error *err);
/* Every file in cache/ but base.sha256 (which knows the base alone). Missing files are fine. */
int store_caches_remove(const char *home, attune_error *err);

#pragma GCC visibility pop
#endif
