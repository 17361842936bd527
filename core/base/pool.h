/* A pool of threads that runs numbered tasks. The caller works too.
 *
 * Results must not depend on the number of threads: a task owns its part of the output, and what
 * a task does depends on its number alone. Scratch may be indexed by `worker`. */
#ifndef CORE_BASE_POOL_H
#define CORE_BASE_POOL_H

#include "core/base/error.h"

#include <stdatomic.h>

struct pool;

/* CPUs that this process may run on (affinity mask), at least 1. */
int pool_cpu_count(void);
/* threads 0: pool_cpu_count(); at most 64. */
int pool_create(int threads, struct pool **out, attune_error *err);
void pool_destroy(struct pool *pool);
int pool_threads(const struct pool *pool);
/* Calls task(argument, i, worker) once for each i in [0, count), worker in [0, pool_threads).
 * Returns when all are done. One caller at a time: others wait. Out of a task of the same pool: all in
 * this thread, as the task's worker. */
void pool_run(struct pool *pool, size_t count, void (*task)(void *argument, size_t i, int worker), void *argument);
/* A flag that long tasks look at between tiles. A cancelled pool_run skips the tasks not begun;
 * what they would have written is undefined. Async-signal-safe. */
void pool_cancel(struct pool *pool);
int pool_cancelled(const struct pool *pool);
void pool_cancel_clear(struct pool *pool);
/* Cancels what the calling thread alone runs, on any pool, once *cancelled is not 0: pool_cancelled says so in this
 * thread, and others go on. Tasks are not skipped. NULL: no more. */
void pool_watch(const atomic_int *cancelled);

#endif
