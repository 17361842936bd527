/* Which of the rows that a run's starting point has learned from before are learned again, against forgetting them. */
#ifndef JOB_REPLAY_ROWS_H
#define JOB_REPLAY_ROWS_H

#include "job/run.h"

enum { REPLAY_ROWS_MIN = 32, REPLAY_ROWS_MAX = 256 };

/* earlier(plan->examples.n), malloc'ed: 1 where `adapter` or one that it goes on from has been trained on the row. NULL
 * for the base. */
int replay_rows_mark(attune_store *store, int adapter, const struct example_set *set, unsigned char **earlier,
                     attune_error *err);
/* Of rows(n), oldest first: all that are not earlier, and of the others a sample of `share` times as many, within
 * REPLAY_ROWS_MIN and _MAX; 0: none. In place, the order stays; returns how many are left. A row's chance halves with
 * every 30 days that it is older than the newest; whether it is drawn depends on `key`, its own text and how the others
 * were drawn, not on how many there are (Efraimidis & Spirakis 2006). ATTUNE_ERROR_MEMORY alone. */
int replay_rows_choose(const struct example_set *set, const struct origin *origins, const unsigned char *earlier,
                       double share, uint64_t key, size_t *rows, size_t *n, attune_error *err);

#endif
