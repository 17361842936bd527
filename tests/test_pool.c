#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
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

/* ---- taking less of the machine ---- */

struct limited {
    struct pool *pool;
    atomic_int seen[8]; /* tasks of each worker */
    atomic_int *done;   /* (count) of each task */
    int lower_at;       /* the task that lowers the limit to 1, or -1 */
    atomic_int lowered;
};
static void note_worker(void *argument, size_t i, int worker) {
    struct limited *l = argument;
    atomic_fetch_add(&l->seen[worker], 1);
    atomic_fetch_add(&l->done[i], 1);
    if ((int)i == l->lower_at) {
        pool_limit(l->pool, 1);
        atomic_store(&l->lowered, 1);
    }
    /* the others are held in their first task until then */
    while (l->lower_at >= 0 && worker > 0 && !atomic_load(&l->lowered)) usleep(100);
    usleep(l->lower_at >= 0 ? 20 : 200);
}
static void test_limit(void **state) {
    (void)state;
    enum { COUNT = 120 };
    atomic_int done[COUNT];
    struct limited l = {.pool = make(8), .done = done, .lower_at = -1};
    for (int limit = 8; limit >= 0; limit--) {
        for (int w = 0; w < 8; w++) atomic_store(&l.seen[w], 0);
        for (int i = 0; i < COUNT; i++) atomic_store(&done[i], 0);
        pool_limit(l.pool, limit);
        int most = limit ? limit : 8, others = 0;
        for (int run = 0; run < 3 || (run < 200 && most > 1 && !others); run++) {
            for (int i = 0; i < COUNT; i++) atomic_store(&done[i], 0);
            pool_run(l.pool, COUNT, note_worker, &l);
            for (int i = 0; i < COUNT; i++) assert_int_equal(atomic_load(&done[i]), 1);
            for (int w = 1; w < 8; w++) others += atomic_load(&l.seen[w]);
        }
        assert_true(most == 1 || others > 0); /* back after a limit of 1 too */
        for (int w = most; w < 8; w++) assert_int_equal(atomic_load(&l.seen[w]), 0);
    }
    assert_int_equal(pool_threads(l.pool), 8);
    pool_limit(l.pool, 3);
    pool_destroy(l.pool); /* with workers that may not work */
}

/* Lowered in the middle of a run: the rest of it is the caller's, each task once. */
static void test_limit_within_a_run(void **state) {
    (void)state;
    enum { COUNT = 400 };
    for (int turn = 0; turn < 10; turn++) {
        atomic_int done[COUNT];
        for (int i = 0; i < COUNT; i++) atomic_init(&done[i], 0);
        struct limited l = {.pool = make(4), .done = done, .lower_at = 10 + turn};
        pool_run(l.pool, COUNT, note_worker, &l);
        for (int i = 0; i < COUNT; i++) assert_int_equal(atomic_load(&done[i]), 1);
        assert_true(atomic_load(&l.lowered));
        /* what each of the others had begun, and no more */
        assert_true(atomic_load(&l.seen[0]) >= COUNT - 3);
        pool_destroy(l.pool);
    }
}

struct switching {
    struct pool *pool;
    atomic_int end;
};
static void *switch_limits(void *argument) {
    struct switching *s = argument;
    for (int i = 0; !atomic_load(&s->end); i++) {
        pool_limit(s->pool, i % 5);
        pool_duty(s->pool, i % 3 ? 1 : 0.9);
        if (i % 7 == 0) pool_background(s->pool, i % 2);
        if (i % 16 == 0) sched_yield();
    }
    return NULL;
}
static void test_limits_that_change(void **state) {
    (void)state;
    struct switching s = {.pool = make(4)};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, switch_limits, &s), 0);
    pool_watch_gaps(s.pool, 1);
    size_t sums[37] = {0};
    for (int run = 0; run < 2000; run++) pool_run(s.pool, 37, add_one, sums);
    for (int i = 0; i < 37; i++) assert_int_equal(sums[i], 2000);
    atomic_store(&s.end, 1);
    pthread_join(thread, NULL);
    pool_destroy(s.pool);
}

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
static void spin_ms(void *argument, size_t i, int worker) {
    double until = seconds_now() + 1e-3 * *(double *)argument;
    (void)i;
    (void)worker;
    while (seconds_now() < until) {}
}
/* A sleep is never shorter than it should be, however busy the machine is. */
static void test_duty(void **state) {
    (void)state;
    double ms = 5;
    struct pool *pool = make(1);
    pool_duty(pool, 0.25);
    double from = seconds_now();
    for (int run = 0; run < 20; run++) pool_run(pool, 1, spin_ms, &ms);
    assert_true(seconds_now() - from >= 0.3); /* 100 ms of work: 400 ms, less the sleep after the last */
    pool_duty(pool, 1);
    for (int run = 0; run < 20; run++) pool_run(pool, 1, spin_ms, &ms);
    pool_duty(pool, NAN);
    pool_duty(pool, -1);
    pool_destroy(pool);
}

static void *cancel_soon(void *pool) {
    usleep(20000);
    pool_cancel(pool);
    return NULL;
}
/* Work of 200 ms at a hundredth wants the longest sleep, of a second. Of several, one is ended by the cancel, however
 * busy the machine is. */
static double sleep_cancelled(int by_watch) {
    double ms = 200;
    struct pool *pool = make(2);
    pthread_t thread;
    atomic_int flag = 1;
    pool_duty(pool, 0.01);
    pool_run(pool, 1, spin_ms, &ms);
    if (by_watch) pool_watch(&flag);
    double from = seconds_now();
    assert_int_equal(pthread_create(&thread, NULL, cancel_soon, pool), 0);
    pool_run(pool, 1, spin_ms, &ms);
    double took = seconds_now() - from;
    pool_watch(NULL);
    pthread_join(thread, NULL);
    pool_destroy(pool);
    return took;
}
static void test_cancel_ends_the_sleep(void **state) {
    (void)state;
    for (int by_watch = 0; by_watch < 2; by_watch++) {
        double least = INFINITY;
        for (int turn = 0; turn < 10 && !(least < 0.95); turn++) least = fmin(least, sleep_cancelled(by_watch));
        assert_true(least < 0.95);
    }
}

struct priorities {
    atomic_int policy[3], nice[3];
};
static void note_priority(void *argument, size_t i, int worker) {
    struct priorities *p = argument;
    (void)i;
    atomic_store(&p->policy[worker], sched_getscheduler(0));
    atomic_store(&p->nice[worker], getpriority(PRIO_PROCESS, 0));
    usleep(2000);
}
static void test_background(void **state) {
    (void)state;
    int mine = sched_getscheduler(0), nice_of_mine = getpriority(PRIO_PROCESS, 0);
    for (int early = 0; early < 2; early++) { /* before the threads have begun, perhaps, and while they work */
        struct pool *pool = make(3);
        struct priorities p;
        if (!early) usleep(5000);
        pool_background(pool, 1);
        for (int w = 0; w < 3; w++) atomic_init(&p.policy[w], -1);
        for (int run = 0; run < 5000 && (atomic_load(&p.policy[1]) < 0 || atomic_load(&p.policy[2]) < 0); run++)
            pool_run(pool, 12, note_priority, &p);
        for (int w = 1; w < 3; w++) {
            assert_true(atomic_load(&p.policy[w]) == SCHED_IDLE || atomic_load(&p.policy[w]) == SCHED_BATCH);
            assert_int_equal(atomic_load(&p.nice[w]), 19);
        }
        assert_int_equal(atomic_load(&p.policy[0]), mine);
        assert_int_equal(atomic_load(&p.nice[0]), nice_of_mine);
        pool_background(pool, 0);
        if (geteuid() == 0) { /* others may not raise a priority again */
            for (int run = 0; run < 5000 && atomic_load(&p.nice[1]) == 19 && nice_of_mine != 19; run++)
                pool_run(pool, 12, note_priority, &p);
            if (nice_of_mine != 19) assert_int_equal(atomic_load(&p.nice[1]), nice_of_mine);
        }
        pool_destroy(pool);
    }
}

/* ---- gaps ---- */

struct looking {
    struct pool *pool;
    int looks;          /* 0: none in the task */
    double at, longest; /* seconds: before the last look, and from before a look until after the next */
};
static void note_look(struct looking *l, double before) {
    double now = seconds_now();
    if (now - l->at > l->longest) l->longest = now - l->at;
    l->at = before;
}
static void work_and_look(void *argument, size_t i, int worker) {
    struct looking *l = argument;
    double ms = 60.0 / (l->looks + 1);
    (void)worker;
    if (i != 3) return;
    for (int n = 0; n <= l->looks; n++) {
        spin_ms(&ms, 0, 0);
        double before = seconds_now();
        if (n < l->looks) {
            assert_false(pool_cancelled(l->pool));
            note_look(l, before);
        }
    }
}
/* Bounds from above are by what this test measures around each look: they hold on a busy machine. */
static void test_gaps(void **state) {
    (void)state;
    for (int threads = 1; threads <= 3; threads += 2) {
        struct looking l = {.pool = make(threads)};
        pool_run(l.pool, 5, work_and_look, &l);
        assert_true(pool_gap_ms(l.pool) == 0); /* it was not asked for */
        pool_watch_gaps(l.pool, 1);
        pool_run(l.pool, 5, work_and_look, &l);
        assert_true(pool_gap_ms(l.pool) >= 60);
        pool_watch_gaps(l.pool, 1);
        assert_true(pool_gap_ms(l.pool) == 0);

        l.looks = 5;
        l.longest = 0;
        l.at = seconds_now();
        pool_watch_gaps(l.pool, 1);
        pool_run(l.pool, 5, work_and_look, &l);
        note_look(&l, 0);
        assert_true(pool_gap_ms(l.pool) >= 10);
        /* another worker may be kept from its task for as long as it pleases the machine */
        if (threads == 1) assert_true(pool_gap_ms(l.pool) <= 1e3 * l.longest);

        pool_watch_gaps(l.pool, 0);
        double before = pool_gap_ms(l.pool), ms = before + 20;
        spin_ms(&ms, 0, 0);
        pool_run(l.pool, 1, work_and_look, &l);
        assert_true(pool_gap_ms(l.pool) == before);
        pool_destroy(l.pool);
    }
}

/* What the caller does between runs counts, but for what lies before a clear, or another measuring. */
static void test_gaps_between_runs(void **state) {
    (void)state;
    struct looking l = {.pool = make(1)};
    double ms = 80, begun = seconds_now();
    pool_watch_gaps(l.pool, 1);
    pool_run(l.pool, 3, work_and_look, &l);
    double first = 1e3 * (seconds_now() - begun);
    spin_ms(&ms, 0, 0);
    begun = seconds_now();
    pool_cancel_clear(l.pool);
    pool_run(l.pool, 3, work_and_look, &l);
    double second = 1e3 * (seconds_now() - begun);
    assert_true(pool_gap_ms(l.pool) <= fmax(first, second));
    spin_ms(&ms, 0, 0);
    pool_run(l.pool, 1, work_and_look, &l);
    assert_true(pool_gap_ms(l.pool) >= 80);
    spin_ms(&ms, 0, 0);
    begun = seconds_now();
    pool_watch_gaps(l.pool, 1);
    pool_run(l.pool, 3, work_and_look, &l);
    assert_true(pool_gap_ms(l.pool) <= 1e3 * (seconds_now() - begun));
    pool_destroy(l.pool);
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
        cmocka_unit_test(test_limit),
        cmocka_unit_test(test_limit_within_a_run),
        cmocka_unit_test(test_limits_that_change),
        cmocka_unit_test(test_duty),
        cmocka_unit_test(test_cancel_ends_the_sleep),
        cmocka_unit_test(test_background),
        cmocka_unit_test(test_gaps),
        cmocka_unit_test(test_gaps_between_runs),
        cmocka_unit_test(test_signals_stay_with_the_host),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
