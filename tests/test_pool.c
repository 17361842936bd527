#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/pool.h"

static struct pool *make(int threads) {
    struct pool *pool = NULL;
    attune_error err = {0};
    if (pool_create(threads, &pool, &err) != ATTUNE_OK) fail_msg("%s", err.message);
    return pool;
}
static const int sizes[] = {1, 2, 3, 8};
enum { SIZES = sizeof sizes / sizeof *sizes };

static void test_creation(void **state) {
    (void)state;
    struct pool *pool = NULL;
    attune_error err = {0};
    assert_int_equal(pool_create(-1, &pool, &err), ATTUNE_ERROR_ARGUMENT);
    assert_int_equal(pool_create(65, &pool, &err), ATTUNE_ERROR_ARGUMENT);
    assert_null(pool);
    assert_non_null(strstr(err.message, "65"));
    assert_true(pool_cpu_count() >= 1);
    pool = make(0);
    assert_int_equal(pool_threads(pool), pool_cpu_count() < 64 ? pool_cpu_count() : 64);
    pool_destroy(pool);
    pool = make(64);
    assert_int_equal(pool_threads(pool), 64);
    pool_destroy(pool);
    pool_destroy(NULL);
}

/* ---- each task once ---- */

struct once {
    int *done;           /* (count), plain: what a task wrote must be seen by the caller */
    atomic_int *working; /* of each worker */
    int threads;
    atomic_int faults;
};
static void count_once(void *argument, size_t i, int worker) {
    struct once *once = argument;
    if (worker < 0 || worker >= once->threads) {
        atomic_fetch_add(&once->faults, 1);
        return;
    }
    /* scratch is indexed by worker: two tasks of one worker may not run at the same time */
    if (atomic_exchange(&once->working[worker], 1)) atomic_fetch_add(&once->faults, 1);
    once->done[i]++;
    atomic_store(&once->working[worker], 0);
}
static void test_each_task_once(void **state) {
    (void)state;
    static const size_t counts[] = {0, 1, 2, 3, 7, 64, 1000, 65535, 65536, 150000};
    for (size_t s = 0; s < SIZES; s++) {
        struct pool *pool = make(sizes[s]);
        assert_int_equal(pool_threads(pool), sizes[s]);
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
            atomic_int working[8] = {0};
            struct once once = {test_calloc(counts[c] + 1, sizeof(int)), working, sizes[s], 0};
            pool_run(pool, counts[c], count_once, &once);
            for (size_t i = 0; i < counts[c]; i++) assert_int_equal(once.done[i], 1);
            assert_int_equal(once.done[counts[c]], 0);
            assert_int_equal(atomic_load(&once.faults), 0);
            test_free(once.done);
        }
        pool_destroy(pool);
    }
}

static void add_one(void *argument, size_t i, int worker) {
    (void)worker;
    ((size_t *)argument)[i]++;
}
static void test_many_short_runs(void **state) {
    (void)state;
    enum { RUNS = 2000 };
    for (size_t s = 0; s < SIZES; s++) {
        struct pool *pool = make(sizes[s]);
        size_t sums[5] = {0};
        for (size_t run = 0; run < RUNS; run++) {
            pool_run(pool, 1 + run % 5, add_one, sums);
            if (run % (RUNS / 4) == 0) usleep(20000); /* long enough for the others to fall asleep */
        }
        for (size_t i = 0; i < 5; i++) assert_int_equal(sums[i], RUNS - i * RUNS / 5);
        pool_destroy(pool);
    }
}
static void test_destroyed_unused(void **state) {
    (void)state;
    for (int i = 0; i < 50; i++) {
        struct pool *pool = make(4);
        size_t sums[3] = {0};
        if (i % 2) pool_run(pool, 3, add_one, sums);
        pool_destroy(pool);
    }
}

/* ---- a run out of a task ---- */

struct nest {
    struct pool *pool;
    int threads;
    size_t done[20][30];
    atomic_int faults;
};
struct inner {
    struct nest *nest;
    size_t row;
    int worker;
    pthread_t thread;
};
static void inner_task(void *argument, size_t i, int worker) {
    struct inner *inner = argument;
    if (worker != inner->worker || !pthread_equal(pthread_self(), inner->thread))
        atomic_fetch_add(&inner->nest->faults, 1);
    inner->nest->done[inner->row][i]++;
}
static void outer_task(void *argument, size_t i, int worker) {
    struct nest *nest = argument;
    struct inner inner = {nest, i, worker, pthread_self()};
    pool_run(nest->pool, 30, inner_task, &inner);
    pool_run(nest->pool, 1, inner_task, &inner);
}
static void test_nested(void **state) {
    (void)state;
    for (size_t s = 0; s < SIZES; s++) {
        static struct nest nest;
        memset(&nest, 0, sizeof nest);
        nest.pool = make(sizes[s]);
        pool_run(nest.pool, 20, outer_task, &nest);
        pool_run(nest.pool, 1, outer_task, &nest);
        for (size_t r = 0; r < 20; r++)
            for (size_t i = 0; i < 30; i++)
                assert_int_equal(nest.done[r][i], (1 + (i == 0)) * (1 + (r == 0)));
        assert_int_equal(atomic_load(&nest.faults), 0);
        /* and the pool is whole after it */
        size_t sums[5] = {0};
        pool_run(nest.pool, 5, add_one, sums);
        for (size_t i = 0; i < 5; i++) assert_int_equal(sums[i], 1);
        pool_destroy(nest.pool);
    }
}

/* ---- two callers ---- */

struct caller {
    struct pool *pool;
    atomic_int *owner; /* whose run is on: 0 nobody's */
    int self, sum;     /* sum plain: what the pool did is seen by its caller, and by nobody at the same time */
    atomic_int faults;
};
static void hold(void *argument, size_t i, int worker) {
    struct caller *c = argument;
    (void)worker;
    if (i > 0) return;
    if (atomic_exchange(c->owner, c->self) != 0) atomic_fetch_add(&c->faults, 1);
    sched_yield();
    c->sum++;
    if (atomic_exchange(c->owner, 0) != c->self) atomic_fetch_add(&c->faults, 1);
}
static void *call_often(void *argument) {
    struct caller *c = argument;
    for (int run = 0; run < 300; run++) pool_run(c->pool, 1 + (size_t)run % 3, hold, c);
    return NULL;
}
static void test_two_callers(void **state) {
    (void)state;
    for (size_t s = 0; s < SIZES; s++) {
        atomic_int owner = 0;
        struct pool *pool = make(sizes[s]);
        struct caller callers[2] = {{.pool = pool, .owner = &owner, .self = 1},
                                    {.pool = pool, .owner = &owner, .self = 2}};
        pthread_t threads[2];
        for (int i = 0; i < 2; i++) assert_int_equal(pthread_create(&threads[i], NULL, call_often, &callers[i]), 0);
        for (int i = 0; i < 2; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
        for (int i = 0; i < 2; i++) {
            assert_int_equal(atomic_load(&callers[i].faults), 0);
            assert_int_equal(callers[i].sum, 300);
        }
        pool_destroy(pool);
    }
}

/* ---- cancelling ---- */

struct cancelling {
    struct pool *pool;
    size_t at;
    atomic_size_t begun;
};
static void cancel_at(void *argument, size_t i, int worker) {
    struct cancelling *c = argument;
    (void)worker;
    atomic_fetch_add(&c->begun, 1);
    if (i == c->at) pool_cancel(c->pool);
    while (i > c->at && !pool_cancelled(c->pool)) usleep(100); /* a long task, which looks at the flag */
}
static void test_cancel(void **state) {
    (void)state;
    for (size_t s = 0; s < SIZES; s++) {
        struct cancelling c = {.pool = make(sizes[s]), .at = 5};
        assert_false(pool_cancelled(c.pool));
        pool_run(c.pool, 10000, cancel_at, &c);
        assert_true(pool_cancelled(c.pool));
        /* 0 to 5, but for those that other threads had claimed and not begun when the flag went up */
        assert_in_range(atomic_load(&c.begun), sizes[s] < 6 ? 7 - (size_t)sizes[s] : 1, 6 + (size_t)sizes[s]);
        size_t sums[5] = {0};
        for (size_t count = 1; count <= 5; count++) pool_run(c.pool, count, add_one, sums);
        for (size_t i = 0; i < 5; i++) assert_int_equal(sums[i], 0);
        pool_cancel_clear(c.pool);
        assert_false(pool_cancelled(c.pool));
        pool_run(c.pool, 5, add_one, sums);
        for (size_t i = 0; i < 5; i++) assert_int_equal(sums[i], 1);
        pool_destroy(c.pool);
    }
}

static struct pool *signalled;
static void on_signal(int number) {
    (void)number;
    pool_cancel(signalled);
}
static void raise_at_five(void *argument, size_t i, int worker) {
    struct cancelling *c = argument;
    (void)worker;
    atomic_fetch_add(&c->begun, 1);
    if (i == 5) kill(getpid(), SIGUSR1);
    while (i >= 5 && !pool_cancelled(c->pool)) usleep(100);
}
static void test_cancel_from_a_signal(void **state) {
    (void)state;
    struct sigaction action = {.sa_handler = on_signal}, before;
    assert_int_equal(sigaction(SIGUSR1, &action, &before), 0);
    struct cancelling c = {.pool = signalled = make(3)};
    pool_run(c.pool, 10000, raise_at_five, &c);
    assert_true(pool_cancelled(c.pool));
    assert_in_range(atomic_load(&c.begun), 6, 9);
    pool_destroy(c.pool);
    assert_int_equal(sigaction(SIGUSR1, &before, NULL), 0);
}

/* A watched flag is this thread's alone, whatever the pool, and skips no task. */
static void *look(void *pool) { return (void *)(uintptr_t)pool_cancelled(pool); }
static void test_watch(void **state) {
    (void)state;
    struct pool *pools[2] = {make(1), make(3)};
    atomic_int flag = 0;
    pool_watch(&flag);
    for (int i = 0; i < 2; i++) {
        pthread_t other;
        void *seen;
        size_t sums[5] = {0};
        atomic_store(&flag, 0);
        assert_false(pool_cancelled(pools[i]));
        atomic_store(&flag, 1);
        assert_true(pool_cancelled(pools[i]));
        assert_int_equal(pthread_create(&other, NULL, look, pools[i]), 0);
        pthread_join(other, &seen);
        assert_null(seen);
        pool_run(pools[i], 5, add_one, sums);
        for (size_t j = 0; j < 5; j++) assert_int_equal(sums[j], 1);
    }
    pool_watch(NULL);
    for (int i = 0; i < 2; i++) {
        assert_false(pool_cancelled(pools[i]));
        pool_destroy(pools[i]);
    }
}

/* The pool's own threads take none of the host's signals. */
static void note_mask(void *argument, size_t i, int worker) {
    sigset_t mask;
    (void)i;
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    ((int *)argument)[worker] = sigismember(&mask, SIGTERM) && sigismember(&mask, SIGUSR1);
    usleep(2000); /* so that every thread gets some */
}
static void test_signals_stay_with_the_host(void **state) {
    (void)state;
    struct pool *pool = make(3);
    int blocked[3] = {-1, -1, -1};
    for (int run = 0; run < 50 && (blocked[1] < 0 || blocked[2] < 0); run++) pool_run(pool, 12, note_mask, blocked);
    assert_int_equal(blocked[0], 0);
    assert_int_equal(blocked[1], 1);
    assert_int_equal(blocked[2], 1);
    pool_destroy(pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_creation),
        cmocka_unit_test(test_each_task_once),
        cmocka_unit_test(test_many_short_runs),
        cmocka_unit_test(test_destroyed_unused),
        cmocka_unit_test(test_nested),
        cmocka_unit_test(test_two_callers),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_cancel_from_a_signal),
        cmocka_unit_test(test_watch),
        cmocka_unit_test(test_signals_stay_with_the_host),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
