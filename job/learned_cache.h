/* cache/learned-<adapter>.json: what `attune learned` has found, so that a second call and the report have it at once.
 * It holds texts of the store: 0600, never of an encrypted home, and gone when forgetting empties the folder or the
 * adapter is revoked or removed. The format is in docs/formats.md. */
#ifndef JOB_LEARNED_CACHE_H
#define JOB_LEARNED_CACHE_H

#include "attune.h"

#include <jansson.h>

/* What was kept for this base and adapter; NULL: nothing, or nothing that can be used. The caller releases it. */
json_t *learned_cache_read(const char *home, const char *base_sha256, const char *adapter_sha256);
/* adapter: the file that it is about. When that is gone after writing, its rows were forgotten meanwhile by somebody
 * who may have emptied the folder too early: then nothing is kept. */
int learned_cache_keep(const char *home, const char *base_sha256, const char *adapter_sha256, const char *adapter,
                       const json_t *result, attune_error *err);
/* With what a writer that died has left. Missing files are fine. */
void learned_cache_remove(const char *home, const char *adapter_sha256);

#endif
