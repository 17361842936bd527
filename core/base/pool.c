#define _GNU_SOURCE
#include "core/base/pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

enum { THREADS_MAX = 64, SPINS = 4000 };

struct pool {
    int threads;
    pthread_t handles[THREADS_MAX];
    pthread_mutex_t caller; /* one pool_run at a time */
    pthread_mutex_t lock;
    pthread_cond_t wake, finished;
    atomic_uint generation; /* of the current pool_run; odd values never used */
    int quit;
    /* the current run */
    void (*task)(void *, size_t, int);
    void *argument;
    size_t count;
    atomic_size_t next;
    atomic_int busy; /* workers that have not yet left the current run */
    atomic_int cancelled;
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

static void drain(struct pool *pool, int worker) {
    struct pool *outer = inside;
    int outer_worker = inside_worker;
    inside = pool;
    inside_worker = worker;
    for (;;) {
        size_t i = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (i >= pool->count || atomic_load_explicit(&pool->cancelled, memory_order_relaxed)) break;
        pool->task(pool->argument, i, worker);
    }
    inside = outer;
    inside_worker = outer_worker;
}

static void *work(void *argument) {
    struct start start = *(struct start *)argument;
    struct pool *pool = start.pool;
    free(argument);
    unsigned seen = 0;
    for (;;) {
        /* A short spin first: decoding starts hundreds of runs for each token. */
        for (int i = 0; i < SPINS && atomic_load_explicit(&pool->generation, memory_order_acquire) == seen; i++)
            relax();
        if (atomic_load_explicit(&pool->generation, memory_order_acquire) == seen) {
            pthread_mutex_lock(&pool->lock);
            while (atomic_load_explicit(&pool->generation, memory_order_acquire) == seen && !pool->quit)
                pthread_cond_wait(&pool->wake, &pool->lock);
            pthread_mutex_unlock(&pool->lock);
        }
        if (pool->quit) return NULL;
        seen = atomic_load_explicit(&pool->generation, memory_order_acquire);
        drain(pool, start.worker);
        if (atomic_fetch_sub_explicit(&pool->busy, 1, memory_order_acq_rel) == 1) {
            pthread_mutex_lock(&pool->lock);
            pthread_cond_signal(&pool->finished);
            pthread_mutex_unlock(&pool->lock);
        }
    }
}

int pool_create(int threads, struct pool **out, attune_error *err) {
    if (threads < 0 || threads > THREADS_MAX)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "threads must be 0 to %d, not %d", THREADS_MAX, threads);
    if (threads == 0) threads = pool_cpu_count();
    if (threads > THREADS_MAX) threads = THREADS_MAX;
    struct pool *pool = calloc(1, sizeof *pool);
    if (!pool) return error_set_memory(err, "the thread pool", sizeof *pool);
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
    pool->quit = 1;
    atomic_fetch_add(&pool->generation, 1);
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

void pool_run(struct pool *pool, size_t count, void (*task)(void *, size_t, int), void *argument) {
    if (count == 0) return;
    if (inside == pool) { /* out of a task: waiting for the others would be for ever */
        run_here(pool, count, task, argument, inside_worker);
        return;
    }
    pthread_mutex_lock(&pool->caller);
    pool->task = task;
    pool->argument = argument;
    pool->count = count;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    if (pool->threads == 1 || count == 1) { /* as worker 0, whose scratch it is: still one caller at a time */
        drain(pool, 0);
        pthread_mutex_unlock(&pool->caller);
        return;
    }
    atomic_store_explicit(&pool->busy, pool->threads - 1, memory_order_relaxed);
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add_explicit(&pool->generation, 1, memory_order_release);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    drain(pool, 0);
    for (int i = 0; i < SPINS && atomic_load_explicit(&pool->busy, memory_order_acquire) > 0; i++) relax();
    if (atomic_load_explicit(&pool->busy, memory_order_acquire) > 0) {
        pthread_mutex_lock(&pool->lock);
        while (atomic_load_explicit(&pool->busy, memory_order_acquire) > 0)
            pthread_cond_wait(&pool->finished, &pool->lock);
        pthread_mutex_unlock(&pool->lock);
    }
    pthread_mutex_unlock(&pool->caller);
}

void pool_cancel(struct pool *pool) { atomic_store(&pool->cancelled, 1); }
int pool_cancelled(const struct pool *pool) {
    return atomic_load_explicit(&((struct pool *)(uintptr_t)pool)->cancelled, memory_order_relaxed);
}
void pool_cancel_clear(struct pool *pool) { atomic_store(&pool->cancelled, 0); }
