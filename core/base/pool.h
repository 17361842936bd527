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

/* ---- taking less of the machine; each at any time, from any thread ---- */

/* So many workers take tasks, the caller among them; 0: all. A worker above the limit ends its task and leaves the
 * rest of its range to the others. Results stay the same. */
void pool_limit(struct pool *pool, int threads);
/* Share of the time in which the pool works, POOL_DUTY_MIN to 1: its caller sleeps before a run, a few milliseconds at
 * a time, so that the share holds over about POOL_DUTY_MS. A cancel ends the sleep; one that is watched too. */
#define POOL_DUTY_MIN 0.01
#define POOL_DUTY_MS 25
void pool_duty(struct pool *pool, double share);
/* 1: the pool's own threads, never its caller's, run when the CPU has nothing else to do (nice 19 and SCHED_IDLE, else
 * SCHED_BATCH). 0: as they were, where the kernel lets them: raising a priority again wants RLIMIT_NICE. */
void pool_background(struct pool *pool, int on);

/* ---- how long nobody looked at the flag ---- */

/* 1: begins to measure the longest time between two looks of one thread, within runs and, in the thread that calls
 * pool_run, between them; a clock is read for each task. Waiting and pool_duty's sleep do not count, nor does what lies
 * before a pool_cancel_clear. 0: no more. */
void pool_watch_gaps(struct pool *pool, int on);
/* The longest since it began, in milliseconds. */
double pool_gap_ms(const struct pool *pool);

#endif
