#define _GNU_SOURCE
#include "core/base/pool.h"

#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { THREADS_MAX = 64, SPINS = 4000 };

/* A run's tasks are claimed from `next`: the run's number above, the next task below. A worker that wakes
 * late, on a machine that is busy with other things, finds the run closed and keeps nobody waiting: a run
 * is over when its tasks are done, not when every worker has looked at it. */
enum { INDEX_BITS = 32 };
static const uint64_t INDEX_MASK = 0xffffffffu;

struct pool {
    int threads;
    pthread_t handles[THREADS_MAX];
    pthread_mutex_t caller; /* one pool_run at a time */
    pthread_mutex_t lock;
    pthread_cond_t wake, finished;
    atomic_int quit;
    atomic_int sleeping; /* workers that wait for `wake`, or are about to */
    atomic_int cancelled;
    atomic_int waiting; /* the caller sleeps until the last task is done */
    /* The current run. Written between closing `next` (index all ones) and opening it again, so whoever then claims
     * a task has read the fields of the task's own run. */
    _Alignas(64) atomic_uint_fast64_t next;
    _Atomic(void (*)(void *, size_t, int)) task;
    _Atomic(void *) argument;
    atomic_size_t count;
    _Alignas(64) atomic_size_t done;
};

struct start {
    struct pool *pool;
    int worker;
};

int pool_cpu_count(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        int n = CPU_COUNT(&set);
        if (n > 0) return n;
    }
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* The pool whose task this thread is in, and as which worker. */
static _Thread_local struct pool *inside;
static _Thread_local int inside_worker;

/* Claims and does tasks of the run that is open, until there are none. */
static void drain(struct pool *pool, int worker) {
    uint_fast64_t next = atomic_load_explicit(&pool->next, memory_order_acquire);
    for (;;) {
        void (*task)(void *, size_t, int) = atomic_load_explicit(&pool->task, memory_order_acquire);
        void *argument = atomic_load_explicit(&pool->argument, memory_order_acquire);
        size_t count = atomic_load_explicit(&pool->count, memory_order_acquire), i = next & INDEX_MASK;
        if (i >= count) return;
        if (!atomic_compare_exchange_weak_explicit(&pool->next, &next, next + 1, memory_order_acq_rel,
                                                   memory_order_acquire))
            continue;
        inside = pool;
        inside_worker = worker;
        if (!atomic_load_explicit(&pool->cancelled, memory_order_relaxed)) task(argument, i, worker);
        inside = NULL;
        if (atomic_fetch_add_explicit(&pool->done, 1, memory_order_seq_cst) + 1 == count &&
            atomic_load_explicit(&pool->waiting, memory_order_seq_cst)) {
            pthread_mutex_lock(&pool->lock);
            pthread_cond_signal(&pool->finished);
            pthread_mutex_unlock(&pool->lock);
        }
        next = atomic_load_explicit(&pool->next, memory_order_acquire);
    }
}

static uint_fast64_t run_of(struct pool *pool) {
    return atomic_load_explicit(&pool->next, memory_order_acquire) >> INDEX_BITS;
}

/* Until there is a run that this worker has not seen, or no more will come. */
static void wait_for_work(struct pool *pool, uint_fast64_t seen) {
    /* A spin first: decoding starts hundreds of runs for each token, and a lock between them would cost more than
     * the runs. */
    for (int i = 0; i < SPINS; i++, relax())
        if (run_of(pool) != seen) return;
    pthread_mutex_lock(&pool->lock);
    /* Counted before it looks again, while open_run opens before it counts: one of the two sees the other. */
    atomic_fetch_add_explicit(&pool->sleeping, 1, memory_order_seq_cst);
    while (atomic_load_explicit(&pool->next, memory_order_seq_cst) >> INDEX_BITS == seen &&
           !atomic_load_explicit(&pool->quit, memory_order_relaxed))
        pthread_cond_wait(&pool->wake, &pool->lock);
    atomic_fetch_sub_explicit(&pool->sleeping, 1, memory_order_relaxed);
    pthread_mutex_unlock(&pool->lock);
}

static void *work(void *argument) {
    struct start start = *(struct start *)argument;
    struct pool *pool = start.pool;
    free(argument);
    for (uint_fast64_t seen = 0;;) {
        wait_for_work(pool, seen);
        if (atomic_load_explicit(&pool->quit, memory_order_relaxed)) return NULL;
        seen = run_of(pool);
        drain(pool, start.worker);
    }
}

int pool_create(int threads, struct pool **out, attune_error *err) {
    if (threads < 0 || threads > THREADS_MAX)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "threads must be 0 to %d, not %d", THREADS_MAX, threads);
    if (threads == 0) threads = pool_cpu_count();
    if (threads > THREADS_MAX) threads = THREADS_MAX;
    struct pool *pool = aligned_alloc(64, sizeof *pool);
    if (!pool) return error_set_memory(err, "the thread pool", sizeof *pool);
    memset(pool, 0, sizeof *pool);
    atomic_store(&pool->next, INDEX_MASK);
    pthread_mutex_init(&pool->caller, NULL);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->finished, NULL);
    pool->threads = 1;

    /* Signals belong to the host's own threads. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = ATTUNE_OK;
    for (int i = 1; i < threads; i++) {
        struct start *start = malloc(sizeof *start);
        if (!start) {
            code = error_set_memory(err, "a thread", sizeof *start);
            break;
        }
        *start = (struct start){pool, i};
        if (pthread_create(&pool->handles[i], NULL, work, start) != 0) {
            free(start);
            code = error_set(err, ATTUNE_ERROR_MEMORY, NULL, "cannot start thread %d of %d; try fewer threads", i + 1,
                             threads);
            break;
        }
        pool->threads = i + 1;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code != ATTUNE_OK) {
        pool_destroy(pool);
        return code;
    }
    *out = pool;
    return ATTUNE_OK;
}

void pool_destroy(struct pool *pool) {
    if (!pool) return;
    pthread_mutex_lock(&pool->lock);
    atomic_store_explicit(&pool->quit, 1, memory_order_relaxed);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    for (int i = 1; i < pool->threads; i++) pthread_join(pool->handles[i], NULL);
    pthread_cond_destroy(&pool->finished);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    pthread_mutex_destroy(&pool->caller);
    free(pool);
}

int pool_threads(const struct pool *pool) { return pool->threads; }

/* In this thread alone. */
static void run_here(struct pool *pool, size_t count, void (*task)(void *, size_t, int), void *argument, int worker) {
    for (size_t i = 0; i < count && !atomic_load_explicit(&pool->cancelled, memory_order_relaxed); i++)
        task(argument, i, worker);
}

/* A new run's number and fields; its tasks may be claimed from the last store on. Until then it is closed under the
 * old number: a worker that sees the closing must not take it for the run, or it would sleep through it. */
static void open_run(struct pool *pool, size_t count, void (*task)(void *, size_t, int), void *argument) {
    uint_fast64_t before = run_of(pool), run = (before + 1) << INDEX_BITS;
    atomic_store_explicit(&pool->next, before << INDEX_BITS | INDEX_MASK, memory_order_seq_cst);
    atomic_store_explicit(&pool->done, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->task, task, memory_order_release);
    atomic_store_explicit(&pool->argument, argument, memory_order_release);
    atomic_store_explicit(&pool->count, count, memory_order_release);
    atomic_store_explicit(&pool->next, run, memory_order_seq_cst);
    if (atomic_load_explicit(&pool->sleeping, memory_order_seq_cst) == 0) return;
    pthread_mutex_lock(&pool->lock);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
}

static void wait_for_run(struct pool *pool, size_t count) {
    for (int i = 0; i < SPINS; i++, relax())
        if (atomic_load_explicit(&pool->done, memory_order_acquire) == count) return;
    atomic_store_explicit(&pool->waiting, 1, memory_order_seq_cst);
    pthread_mutex_lock(&pool->lock);
    while (atomic_load_explicit(&pool->done, memory_order_seq_cst) < count)
        pthread_cond_wait(&pool->finished, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
    atomic_store_explicit(&pool->waiting, 0, memory_order_relaxed);
}

void pool_run(struct pool *pool, size_t count, void (*task)(void *argument, size_t i, int worker), void *argument) {
    assert(count < INDEX_MASK);
    if (count == 0) return;
    if (inside == pool) { /* from within a task: waiting for the others would be waiting for itself */
        run_here(pool, count, task, argument, inside_worker);
        return;
    }
    pthread_mutex_lock(&pool->caller);
    if (pool->threads == 1 || count == 1) {
        inside = pool;
        inside_worker = 0;
        run_here(pool, count, task, argument, 0);
        inside = NULL;
    } else {
        open_run(pool, count, task, argument);
        drain(pool, 0);
        wait_for_run(pool, count);
    }
    pthread_mutex_unlock(&pool->caller);
}

void pool_cancel(struct pool *pool) { atomic_store(&pool->cancelled, 1); }
static _Thread_local const atomic_int *watched;
void pool_watch(const atomic_int *cancelled) { watched = cancelled; }
int pool_cancelled(const struct pool *pool) {
    if (watched && atomic_load_explicit(watched, memory_order_relaxed)) return 1;
    return atomic_load_explicit(&((struct pool *)(uintptr_t)pool)->cancelled, memory_order_relaxed);
}
void pool_cancel_clear(struct pool *pool) { atomic_store(&pool->cancelled, 0); }
