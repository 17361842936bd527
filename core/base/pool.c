#define _GNU_SOURCE
#include "core/base/pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { THREADS_MAX = 64, SPINS = 4000 };

/* A run's tasks are dealt out in one range of neighbours for each worker, which it takes from the front: what lies
 * side by side in memory is read by one worker, and nobody else writes to the line that says which is next. A worker
 * without any left takes from the back of others' ranges. So a worker that wakes late, on a machine that is busy with
 * other things, finds its range empty and keeps nobody waiting: a run is over when its tasks are done, not when every
 * worker has looked at it.
 *
 * A range: the run's number, the first task that is left, and the one behind the last. */
enum { INDEX_BITS = 16, TASKS_MAX = (1 << INDEX_BITS) - 1 };

static uint_fast64_t range_of(uint_fast64_t run, size_t first, size_t end) {
    return (run << INDEX_BITS | first) << INDEX_BITS | end;
}
static size_t first_of(uint_fast64_t range) { return range >> INDEX_BITS & TASKS_MAX; }
static size_t end_of(uint_fast64_t range) { return range & TASKS_MAX; }
static uint_fast64_t run_of(uint_fast64_t range) { return range >> 2 * INDEX_BITS; }

/* The fields beside the range are written while no task of any range is left, so whoever then claims a task from it
 * has read those of the task's own run. */
struct worker {
    _Alignas(64) atomic_uint_fast64_t range;
    _Atomic(void (*)(void *, size_t, int)) task;
    _Atomic(void *) argument;
    atomic_size_t offset; /* of the run's first task among the caller's */
    atomic_size_t count;  /* tasks of the run */
};

struct pool {
    int threads;
    pthread_t handles[THREADS_MAX];
    pthread_mutex_t caller; /* one pool_run at a time */
    pthread_mutex_t lock;
    pthread_cond_t wake, finished;
    uint_fast64_t run; /* the last one's number; the caller's */
    atomic_int quit;
    atomic_int sleeping; /* workers that wait for `wake`, or are about to */
    atomic_int cancelled;
    atomic_int waiting; /* the caller sleeps until the last task is done */
    _Alignas(64) atomic_size_t done;
    struct worker workers[THREADS_MAX];
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

struct claim {
    void (*task)(void *, size_t, int);
    void *argument;
    size_t i, count;
};

/* A task of w's range, at its front or back; 0: there is none. */
static int claim(struct worker *w, int back, struct claim *out) {
    uint_fast64_t range = atomic_load_explicit(&w->range, memory_order_acquire);
    for (;;) {
        size_t first = first_of(range), end = end_of(range), offset;
        if (first >= end) return 0;
        out->task = atomic_load_explicit(&w->task, memory_order_acquire);
        out->argument = atomic_load_explicit(&w->argument, memory_order_acquire);
        out->count = atomic_load_explicit(&w->count, memory_order_acquire);
        offset = atomic_load_explicit(&w->offset, memory_order_acquire);
        out->i = offset + (back ? end - 1 : first);
        uint_fast64_t rest = range_of(run_of(range), back ? first : first + 1, back ? end - 1 : end);
        if (atomic_compare_exchange_weak_explicit(&w->range, &range, rest, memory_order_acq_rel, memory_order_acquire))
            return 1;
    }
}

static void finish(struct pool *pool, size_t tasks, size_t count) {
    if (atomic_fetch_add_explicit(&pool->done, tasks, memory_order_seq_cst) + tasks == count &&
        atomic_load_explicit(&pool->waiting, memory_order_seq_cst)) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_signal(&pool->finished);
        pthread_mutex_unlock(&pool->lock);
    }
}

/* Claims and does tasks of the run that is open, until there are none: its own, then the others'. What it did is
 * told when a range is empty, before any of another range, which may be of the next run, is claimed. */
static void drain(struct pool *pool, int self) {
    for (int turn = 0; turn < pool->threads; turn++) {
        struct worker *w = &pool->workers[(self + turn) % pool->threads];
        struct claim c;
        size_t tasks = 0, count = 0;
        for (; claim(w, turn > 0, &c); tasks++, count = c.count) {
            inside = pool;
            inside_worker = self;
            if (!atomic_load_explicit(&pool->cancelled, memory_order_relaxed)) c.task(c.argument, c.i, self);
            inside = NULL;
        }
        if (tasks > 0) finish(pool, tasks, count);
    }
}

static uint_fast64_t newest(struct pool *pool, int self) {
    return run_of(atomic_load_explicit(&pool->workers[self].range, memory_order_seq_cst));
}

/* Until there is a run that this worker has not seen, or no more will come. */
static void wait_for_work(struct pool *pool, int self, uint_fast64_t seen) {
    /* A spin first: decoding starts hundreds of runs for each token, and a lock between them would cost more than
     * the runs. */
    for (int i = 0; i < SPINS; i++, relax())
        if (newest(pool, self) != seen) return;
    pthread_mutex_lock(&pool->lock);
    /* Counted before it looks again, while open_run opens before it counts: one of the two sees the other. */
    atomic_fetch_add_explicit(&pool->sleeping, 1, memory_order_seq_cst);
    while (newest(pool, self) == seen && !atomic_load_explicit(&pool->quit, memory_order_relaxed))
        pthread_cond_wait(&pool->wake, &pool->lock);
    atomic_fetch_sub_explicit(&pool->sleeping, 1, memory_order_relaxed);
    pthread_mutex_unlock(&pool->lock);
}

static void *work(void *argument) {
    struct start start = *(struct start *)argument;
    struct pool *pool = start.pool;
    free(argument);
    for (uint_fast64_t seen = 0;;) {
        wait_for_work(pool, start.worker, seen);
        if (atomic_load_explicit(&pool->quit, memory_order_relaxed)) return NULL;
        seen = newest(pool, start.worker);
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

/* Its tasks may be claimed from the first range that is stored on. */
static void open_run(struct pool *pool, size_t offset, size_t count, void (*task)(void *, size_t, int),
                     void *argument) {
    size_t threads = (size_t)pool->threads;
    uint_fast64_t run = ++pool->run & 0xffffffff;
    atomic_store_explicit(&pool->done, 0, memory_order_relaxed);
    for (size_t i = threads; i-- > 0;) { /* the caller's own last: the others are to begin */
        struct worker *w = &pool->workers[i];
        atomic_store_explicit(&w->task, task, memory_order_release);
        atomic_store_explicit(&w->argument, argument, memory_order_release);
        atomic_store_explicit(&w->offset, offset, memory_order_release);
        atomic_store_explicit(&w->count, count, memory_order_release);
        atomic_store_explicit(&w->range, range_of(run, i * count / threads, (i + 1) * count / threads),
                              memory_order_seq_cst);
    }
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
        for (size_t at = 0, n; at < count; at += n) {
            n = count - at < TASKS_MAX ? count - at : TASKS_MAX;
            open_run(pool, at, n, task, argument);
            drain(pool, 0);
            wait_for_run(pool, n);
        }
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
