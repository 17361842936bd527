/* What people made of an adapter's answers, counted; and the rows behind a rollback. Knows no statistics. */
#ifndef DATASTORE_OUTCOMES_H
#define DATASTORE_OUTCOMES_H

#include "datastore/store.h"

#pragma GCC visibility push(default) /* libattune uses these from libattune-store, private version node */

struct store_outcomes {
    int64_t good, bad; /* answered interactions; those without a clear outcome are in neither */
};
/* Of the answers that `model` (its sha256) gave with the adapter `sha256` ("": without one), the newest
 * STORE_OUTCOMES_MAX of which something was said. What an answer comes to is written down in docs/formats.md. Answers
 * from before the adapter was last rolled back (`number`; 0: the base never is) do not count again. Edits are passed
 * over where this handle cannot read them. */
enum { STORE_OUTCOMES_MAX = 512 };
int store_outcomes_count(attune_store *store, const char *model, int number, const char *sha256,
                         struct store_outcomes *out, attune_error *err);
/* One of them, from what stands: +1 good, -1 bad, 0 neither. edit (nullable): what the person made of `answer`. */
int store_outcome_of(int verdict, int copied, const char *answer, const char *edit);

/* In one transaction: `swap` (which writes CURRENT), `to` (0: the base) becomes active, `from` rejected with its
 * reason; answers that are there now are not held against it again. ATTUNE_ERROR_STATE: `to` or `from` is revoked. */
int store_adapter_reject(attune_store *store, int from, int to, const char *reason, store_swap_callback swap, void *user,
                         attune_error *err);

#pragma GCC visibility pop
#endif
