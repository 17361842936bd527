#define _GNU_SOURCE
#include "core/base/pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { THREADS_MAX = 64, SPINS = 4000, NICE_MOST = 19 };
enum {
    DUTY_WHOLE = 1000,         /* a share of 1, as it is kept */
    SLEEP_NS = 5000000,        /* between two looks at the flag */
    SLEEP_MOST_NS = 1000000000 /* whatever a run took: it may have been the machine that was busy */
};

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
    /* read for each task, seldom written */
    int threads;
    atomic_int cancelled;
    atomic_int limit;     /* workers that take tasks: 1 to threads */
    atomic_int duty;      /* of DUTY_WHOLE */
    atomic_uint watching; /* which measuring of gaps is on, 0: none */
    pthread_t handles[THREADS_MAX];
    pthread_mutex_t caller; /* one pool_run at a time */
    /* the caller's */
    uint_fast64_t run; /* the last one's number */
    int64_t busy, ran; /* nanoseconds: at work since it slept for pool_duty, and when a run ended; 0: no run */
    pthread_mutex_t lock;
    pthread_cond_t wake, parked, finished;
    int background;          /* under `lock`, as are the next two */
    pid_t tids[THREADS_MAX]; /* 0: not begun, or the caller */
    struct priority {
        int nice, policy;
    } before[THREADS_MAX];
    atomic_int quit;
    atomic_int sleeping;      /* workers that wait for `wake`, or are about to */
    atomic_int waiting;       /* the caller sleeps until the last task is done */
    atomic_uint_fast64_t gap; /* nanoseconds, the longest */
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

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ---- gaps ---- */

/* When this thread looked last, in which measuring. Each has a number of its own, so that no time before it, and none
 * of another pool, is ever taken for a gap. */
static _Thread_local unsigned looked_in;
static _Thread_local int64_t looked_at;
static atomic_uint measurings;

static void look(struct pool *pool, int counts) {
    unsigned watching = atomic_load_explicit(&pool->watching, memory_order_relaxed);
    if (!watching) return;
    int64_t now = now_ns();
    uint_fast64_t gap = counts && looked_in == watching && now > looked_at ? (uint_fast64_t)(now - looked_at) : 0;
    uint_fast64_t longest = atomic_load_explicit(&pool->gap, memory_order_relaxed);
    while (gap > longest)
        if (atomic_compare_exchange_weak_explicit(&pool->gap, &longest, gap, memory_order_relaxed,
                                                  memory_order_relaxed))
            break;
    looked_in = watching;
    looked_at = now;
}
/* Ends a gap and begins the next. */
static inline void look_now(struct pool *pool) {
    if (atomic_load_explicit(&pool->watching, memory_order_relaxed)) look(pool, 1);
}
/* What lies before was waiting. */
static inline void look_anew(struct pool *pool) {
    if (atomic_load_explicit(&pool->watching, memory_order_relaxed)) look(pool, 0);
}

static void measure_anew(struct pool *pool) {
    unsigned number = atomic_fetch_add(&measurings, 1) + 1;
    atomic_store(&pool->watching, number ? number : atomic_fetch_add(&measurings, 1) + 1);
    look_anew(pool);
}
void pool_watch_gaps(struct pool *pool, int on) {
    if (!on) {
        look_now(pool);
        atomic_store(&pool->watching, 0);
        return;
    }
    atomic_store(&pool->gap, 0);
    measure_anew(pool);
}
double pool_gap_ms(const struct pool *pool) {
    return (double)atomic_load(&((struct pool *)(uintptr_t)pool)->gap) / 1e6;
}

/* ---- tasks ---- */

static int may_work(struct pool *pool, int self) {
    return self < atomic_load_explicit(&pool->limit, memory_order_relaxed);
}

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
    if (self > 0) look_anew(pool);
    for (int turn = 0; turn < pool->threads; turn++) {
        struct worker *w = &pool->workers[(self + turn) % pool->threads];
        struct claim c;
        size_t tasks = 0, count = 0;
        for (; may_work(pool, self) && claim(w, turn > 0, &c); tasks++, count = c.count) {
            inside = pool;
            inside_worker = self;
            look_now(pool);
            if (!atomic_load_explicit(&pool->cancelled, memory_order_relaxed)) c.task(c.argument, c.i, self);
            inside = NULL;
        }
        if (tasks == 0) continue;
        look_now(pool);
        finish(pool, tasks, count);
    }
}

static uint_fast64_t newest(struct pool *pool, int self) {
    return run_of(atomic_load_explicit(&pool->workers[self].range, memory_order_seq_cst));
}

/* Until there is a run that this worker has not seen, or no more will come, or it was above the limit and is not any
 * more. */
static void wait_for_work(struct pool *pool, int self, uint_fast64_t seen) {
    /* A spin first: decoding starts hundreds of runs for each token, and a lock between them would cost more than
     * the runs. */
    for (int i = 0; i < SPINS && may_work(pool, self); i++, relax())
        if (newest(pool, self) != seen) return;
    pthread_mutex_lock(&pool->lock);
    /* Counted before it looks again, while open_run opens before it counts: one of the two sees the other. */
    atomic_fetch_add_explicit(&pool->sleeping, 1, memory_order_seq_cst);
    while (newest(pool, self) == seen && !atomic_load_explicit(&pool->quit, memory_order_relaxed) &&
           may_work(pool, self))
        pthread_cond_wait(&pool->wake, &pool->lock);
    atomic_fetch_sub_explicit(&pool->sleeping, 1, memory_order_relaxed);
    /* Apart from the others: no run wakes it. */
    while (!may_work(pool, self) && !atomic_load_explicit(&pool->quit, memory_order_relaxed))
        pthread_cond_wait(&pool->parked, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
}

/* ---- priority ---- */

/* Linux knows each thread's by its id. What is refused stays as it is. Under `lock`. */
static void set_background(struct pool *pool, int self, int on) {
    pid_t tid = pool->tids[self];
    struct priority *before = &pool->before[self];
    struct sched_param none = {0};
    if (on) {
        before->policy = sched_getscheduler(tid);
        before->nice = getpriority(PRIO_PROCESS, (id_t)tid);
        if (sched_setscheduler(tid, SCHED_IDLE, &none) != 0) sched_setscheduler(tid, SCHED_BATCH, &none);
        setpriority(PRIO_PROCESS, (id_t)tid, NICE_MOST);
        return;
    }
    setpriority(PRIO_PROCESS, (id_t)tid, before->nice);
    if (before->policy == SCHED_OTHER || before->policy == SCHED_BATCH) sched_setscheduler(tid, before->policy, &none);
}

void pool_background(struct pool *pool, int on) {
    pthread_mutex_lock(&pool->lock);
    for (int i = 1; i < pool->threads && !on != !pool->background; i++)
        if (pool->tids[i]) set_background(pool, i, on);
    pool->background = !!on;
    pthread_mutex_unlock(&pool->lock);
}

static void *work(void *argument) {
    struct start start = *(struct start *)argument;
    struct pool *pool = start.pool;
    int self = start.worker;
    free(argument);
    pthread_mutex_lock(&pool->lock);
    pool->tids[self] = (pid_t)syscall(SYS_gettid);
    if (pool->background) set_background(pool, self, 1);
    pthread_mutex_unlock(&pool->lock);
    for (uint_fast64_t seen = 0;;) {
        wait_for_work(pool, self, seen);
        if (atomic_load_explicit(&pool->quit, memory_order_relaxed)) return NULL;
        if (newest(pool, self) == seen) continue;
        seen = newest(pool, self);
        drain(pool, self);
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
    pthread_cond_init(&pool->parked, NULL);
    pthread_cond_init(&pool->finished, NULL);
    pool->threads = 1;
    atomic_init(&pool->limit, threads);
    atomic_init(&pool->duty, DUTY_WHOLE);

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
    pthread_cond_broadcast(&pool->parked);
    pthread_mutex_unlock(&pool->lock);
    for (int i = 1; i < pool->threads; i++) pthread_join(pool->handles[i], NULL);
    pthread_cond_destroy(&pool->finished);
    pthread_cond_destroy(&pool->parked);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    pthread_mutex_destroy(&pool->caller);
    free(pool);
}

int pool_threads(const struct pool *pool) { return pool->threads; }

void pool_limit(struct pool *pool, int threads) {
    if (threads <= 0 || threads > pool->threads) threads = pool->threads;
    pthread_mutex_lock(&pool->lock);
    atomic_store(&pool->limit, threads);
    pthread_cond_broadcast(&pool->wake);
    pthread_cond_broadcast(&pool->parked);
    pthread_mutex_unlock(&pool->lock);
}

void pool_duty(struct pool *pool, double share) {
    if (!(share <= 1)) share = 1;
    if (share < POOL_DUTY_MIN) share = POOL_DUTY_MIN;
    atomic_store(&pool->duty, (int)(share * DUTY_WHOLE + 0.5));
}

/* In this thread alone. */
static void run_here(struct pool *pool, size_t count, void (*task)(void *, size_t, int), void *argument, int worker) {
    for (size_t i = 0; i < count && !atomic_load_explicit(&pool->cancelled, memory_order_relaxed); i++) {
        look_now(pool);
        task(argument, i, worker);
    }
    look_now(pool);
}

/* Its tasks may be claimed from the first range that is stored on. Dealt to as many workers as there may be now; the
 * others' ranges stay as they are, empty and of a run that they have seen. */
static void open_run(struct pool *pool, size_t offset, size_t count, void (*task)(void *, size_t, int),
                     void *argument) {
    size_t threads = (size_t)atomic_load_explicit(&pool->limit, memory_order_relaxed);
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

/* ---- duty ---- */

/* Before a run, in its caller. What passed since the last run counts as work too, unless it was so long that it was
 * waiting for something. */
static void keep_duty(struct pool *pool, int64_t duty) {
    static const int64_t period = POOL_DUTY_MS * (int64_t)1000000;
    int64_t now = now_ns();
    if (pool->ran && now - pool->ran < period) pool->busy += now - pool->ran;
    pool->ran = now;
    if (pool->busy < period * duty / DUTY_WHOLE) return;
    look_now(pool);
    int64_t until = pool->busy * (DUTY_WHOLE - duty) / duty;
    until = now + (until < SLEEP_MOST_NS ? until : SLEEP_MOST_NS);
    for (; now < until && !pool_cancelled(pool); now = now_ns()) {
        int64_t piece = until - now < SLEEP_NS ? until - now : SLEEP_NS;
        nanosleep(&(struct timespec){.tv_nsec = (long)piece}, NULL);
        look_anew(pool);
    }
    /* A sleep that lasted longer than it should is made good, within reason. */
    pool->busy = now <= until ? 0 : -((now - until < period ? now - until : period) * duty / (DUTY_WHOLE - duty));
    pool->ran = now;
}

/* After it. */
static void count_busy(struct pool *pool) {
    int64_t now = now_ns();
    pool->busy += now - pool->ran;
    pool->ran = now;
}

void pool_run(struct pool *pool, size_t count, void (*task)(void *argument, size_t i, int worker), void *argument) {
    if (count == 0) return;
    if (inside == pool) { /* from within a task: waiting for the others would be waiting for itself */
        run_here(pool, count, task, argument, inside_worker);
        return;
    }
    if (pthread_mutex_trylock(&pool->caller) != 0) {
        look_now(pool);
        pthread_mutex_lock(&pool->caller);
        look_anew(pool);
    }
    int duty = atomic_load_explicit(&pool->duty, memory_order_relaxed);
    if (duty < DUTY_WHOLE) keep_duty(pool, duty);
    if (count == 1 || atomic_load_explicit(&pool->limit, memory_order_relaxed) == 1) {
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
            look_anew(pool);
        }
    }
    if (duty < DUTY_WHOLE)
        count_busy(pool);
    else
        pool->ran = 0;
    pthread_mutex_unlock(&pool->caller);
}

void pool_cancel(struct pool *pool) { atomic_store(&pool->cancelled, 1); }
static _Thread_local const atomic_int *watched;
void pool_watch(const atomic_int *cancelled) { watched = cancelled; }
int pool_cancelled(const struct pool *pool) {
    look_now((struct pool *)(uintptr_t)pool);
    if (watched && atomic_load_explicit(watched, memory_order_relaxed)) return 1;
    return atomic_load_explicit(&((struct pool *)(uintptr_t)pool)->cancelled, memory_order_relaxed);
}
void pool_cancel_clear(struct pool *pool) {
    atomic_store(&pool->cancelled, 0);
    if (atomic_load(&pool->watching)) measure_anew(pool);
}
