#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "datastore/recorder.h"
#include "tests/expect.h"

/* Group and wait times that no test lives to see the end of. */
enum { FOREVER_MS = 3600 * 1000, THREADS_MAX = 8, GROUP_ITEMS = 1024, GROUP_BYTES = 4 << 20 };

struct item {
    struct recorder_item base;
    int thread, bad;
    int64_t number; /* of this thread, from 0 on */
};

/* What the fake writer was told and what it shall answer. Written by the writer's thread under the lock. */
struct sink {
    struct recorder *recorder;
    struct recorder_options options;
    pthread_mutex_t lock;
    pthread_cond_t changed;

    int gate;       /* 1: calls wait inside the callback until it is 0 */
    int inside;     /* a call is in the callback */
    int failing;    /* so many of the next calls fail; -1: all */
    int fail_from;  /* this call, from 1, and all later ones fail; 0: none */
    int sync_fails; /* the same of syncs without items */
    int random;     /* 1: a third of the calls fail */
    int strict;     /* 1: nothing is put while idle may be called */
    int busy;       /* two callbacks at once, which must never be */

    int64_t calls, n[64], durable[64]; /* of the first calls */
    int64_t next[THREADS_MAX];         /* every number below is settled */
    int64_t bytes, items, unsynced, refused;
    int releases, released;                       /* released: write and idle were not called since */
    atomic_int_fast64_t accepted, accepted_bytes; /* what puts that returned have brought */
    int faults;
    char fault[160];

    int idles, idles_left;
    int64_t idle_ended; /* ns */
    pthread_t thread;
    int masked;
    char name[32];
};

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static void fault(struct sink *s, const char *what, int64_t a, int64_t b) {
    if (!s->faults++) snprintf(s->fault, sizeof s->fault, "%s: %lld, %lld", what, (long long)a, (long long)b);
}

/* ---- the callbacks ---- */

static void enter(struct sink *s) {
    pthread_mutex_lock(&s->lock);
    if (s->busy++) fault(s, "two callbacks at once", s->busy, 0);
    s->released = 0;
    s->thread = pthread_self();
}

static void check_bounds(struct sink *s, struct recorder_item *const *items, size_t n) {
    struct recorder_counts counts;
    recorder_counts_get(s->recorder, &counts);
    size_t bytes = 0;
    for (size_t i = 0; i < n; i++) bytes += items[i]->bytes;
    if (n > GROUP_ITEMS || (n > 1 && bytes > GROUP_BYTES)) fault(s, "a large group", (int64_t)n, (int64_t)bytes);
    if (counts.rows > s->options.rows) fault(s, "rows", counts.rows, s->options.rows);
    if (counts.bytes > s->options.bytes && counts.rows > 1) fault(s, "bytes", counts.bytes, s->options.bytes);
    if (counts.rows < (int64_t)n || counts.bytes < (int64_t)bytes) fault(s, "counts", counts.rows, counts.bytes);
    /* Not only what the recorder says of itself. */
    int64_t waiting = atomic_load(&s->accepted) - s->items - s->refused;
    if (waiting > s->options.rows) fault(s, "accepted beyond the limit", waiting, s->options.rows);
    waiting = atomic_load(&s->accepted_bytes) - s->bytes;
    if (waiting > s->options.bytes && waiting > (int64_t)bytes) fault(s, "bytes accepted", waiting, s->options.bytes);
}

/* The items come in the order of their threads, whatever this call says to them. */
static void check_order(struct sink *s, struct recorder_item *const *items, size_t n) {
    int64_t next[THREADS_MAX];
    memcpy(next, s->next, sizeof next);
    for (size_t i = 0; i < n; i++) {
        const struct item *item = (const struct item *)items[i];
        if (item->number < next[item->thread]) fault(s, "out of order or twice", item->thread, item->number);
        next[item->thread] = item->number + 1;
    }
}

/* Counts down, but for -1. */
static int one_of(int *count) {
    if (*count > 0) return (*count)-- > 0;
    return *count;
}

static int take(struct sink *s, struct recorder_item *const *items, size_t n, int durable, size_t *bad,
                attune_error *err) {
    if ((s->random && rand() % 3 == 0) || (s->fail_from && s->calls >= s->fail_from) || one_of(&s->failing) ||
        (n == 0 && one_of(&s->sync_fails)))
        return error_set(err, ATTUNE_ERROR_IO, "store.db", "attempt %lld", (long long)s->calls);
    for (size_t i = 0; i < n; i++) {
        const struct item *item = (const struct item *)items[i];
        if (!item->bad) continue;
        *bad = i;
        s->refused++;
        s->bytes += (int64_t)item->base.bytes;
        return error_set(err, ATTUNE_ERROR_NOT_FOUND, "", "item %lld names nothing", (long long)item->number);
    }
    for (size_t i = 0; i < n; i++) {
        const struct item *item = (const struct item *)items[i];
        s->next[item->thread] = item->number + 1;
        s->bytes += (int64_t)item->base.bytes;
    }
    s->items += (int64_t)n;
    s->unsynced = durable ? 0 : s->unsynced + (int64_t)n;
    return ATTUNE_OK;
}

static int write_items(void *user, struct recorder_item *const *items, size_t n, int durable, size_t *bad,
                       attune_error *err) {
    struct sink *s = user;
    enter(s);
    if (s->calls < 64) {
        s->n[s->calls] = (int64_t)n;
        s->durable[s->calls] = durable;
    }
    s->calls++;
    s->inside = 1;
    pthread_cond_broadcast(&s->changed);
    while (s->gate) pthread_cond_wait(&s->changed, &s->lock);
    s->inside = 0;
    if (*bad != n) fault(s, "bad before the call", (int64_t)*bad, (int64_t)n);
    if (n == 0 && !s->unsynced) fault(s, "a call for nothing", durable, s->calls);
    if (durable != (n == 0 || s->options.durable)) fault(s, "durable", durable, (int64_t)n);
    check_bounds(s, items, n);
    check_order(s, items, n);
    int code = take(s, items, n, durable, bad, err);
    s->busy--;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    return code;
}

static int do_idle(void *user) {
    struct sink *s = user;
    enter(s);
    if (s->strict && atomic_load(&s->accepted) != s->items + s->refused)
        fault(s, "idle with items queued", atomic_load(&s->accepted), s->items);
    if (s->idles && now_ns() - s->idle_ended < 49 * 1000000) fault(s, "idle too soon", now_ns() - s->idle_ended, 0);
    s->idles++;
    int more = s->idles_left > 0 && --s->idles_left > 0;
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    s->masked = sigismember(&mask, SIGTERM) && sigismember(&mask, SIGINT) && sigismember(&mask, SIGUSR1);
    pthread_getname_np(pthread_self(), s->name, sizeof s->name);
    s->busy--;
    s->idle_ended = now_ns();
    pthread_mutex_unlock(&s->lock);
    return more;
}

static void do_release(void *user) {
    struct sink *s = user;
    pthread_mutex_lock(&s->lock);
    if (s->busy) fault(s, "release during a callback", s->busy, 0);
    if (!pthread_equal(s->thread, pthread_self())) fault(s, "release on another thread", 0, 0);
    if (s->released) fault(s, "released twice", s->releases, 0);
    s->releases++;
    s->released = 1;
    pthread_mutex_unlock(&s->lock);
}

/* ---- the test's side ---- */

static struct recorder_options usual(void) {
    return (struct recorder_options){.rows = 8192,
                                     .bytes = 16 << 20,
                                     .group_ms = 1,
                                     .full_wait_ms = FOREVER_MS,
                                     .durable = 1,
                                     .write = write_items,
                                     .release = do_release};
}

static void open_sink(struct sink *s, struct recorder_options options) {
    memset(s, 0, sizeof *s);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    options.user = s;
    s->options = options;
    OK(recorder_create(&options, &s->recorder, &err));
}

static void close_sink(struct sink *s, int wait_ms) {
    recorder_close(s->recorder, wait_ms);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    if (s->faults) fail_msg("%d faults, the first: %s", s->faults, s->fault);
    assert_true(s->calls == 0 || s->released);
}

static int put_item(struct sink *s, int thread, int64_t number, size_t bytes, int bad, attune_error *err) {
    if (bytes < sizeof(struct item)) bytes = sizeof(struct item);
    struct item *item = calloc(1, bytes);
    if (!item) return error_set_memory(err, "a test", bytes);
    *item = (struct item){.base.bytes = bytes, .thread = thread, .number = number, .bad = bad};
    int code = recorder_put(s->recorder, &item->base, err);
    if (code != ATTUNE_OK) {
        free(item);
        return code;
    }
    atomic_fetch_add(&s->accepted, 1);
    atomic_fetch_add(&s->accepted_bytes, (int64_t)bytes);
    return ATTUNE_OK;
}

/* Items from..to of thread 0. */
static void put_some(struct sink *s, int64_t from, int64_t to) {
    for (int64_t i = from; i < to; i++) OK(put_item(s, 0, i, 100, 0, &err));
}
/* From which on nothing more is taken, at most `to`. */
static int64_t put_until_full(struct sink *s, int64_t from, int64_t to, size_t bytes) {
    attune_error err = {0};
    int code = ATTUNE_OK;
    while (from < to && (code = put_item(s, 0, from, bytes, 0, &err)) == ATTUNE_OK) from++;
    if (from < to) assert_int_equal(code, ATTUNE_ERROR_QUEUE_FULL);
    return from;
}

static int64_t get(struct sink *s, const int64_t *field) {
    pthread_mutex_lock(&s->lock);
    int64_t value = *field;
    pthread_mutex_unlock(&s->lock);
    return value;
}
static int get_int(struct sink *s, const int *field) {
    pthread_mutex_lock(&s->lock);
    int value = *field;
    pthread_mutex_unlock(&s->lock);
    return value;
}
static void set(struct sink *s, int *field, int value) {
    pthread_mutex_lock(&s->lock);
    *field = value;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}
static struct recorder_counts counts_of(struct sink *s) {
    struct recorder_counts counts;
    recorder_counts_get(s->recorder, &counts);
    return counts;
}

/* What must come, on however busy a machine: in a minute it has. */
#define EVENTUALLY(condition)                                                                                          \
    do {                                                                                                               \
        int64_t until_ = now_ns() + 60 * INT64_C(1000000000);                                                          \
        while (!(condition)) {                                                                                         \
            if (now_ns() > until_) fail_msg("never came: %s", #condition);                                             \
            usleep(500);                                                                                               \
        }                                                                                                              \
    } while (0)

/* The writer stands in the callback with the first item. */
static void hold_first(struct sink *s) {
    set(s, &s->gate, 1);
    put_some(s, 0, 1);
    EVENTUALLY(get_int(s, &s->inside));
}

static void flush_fails(struct sink *s, int code, const char *word) {
    attune_error err = {0};
    assert_int_equal(recorder_flush(s->recorder, &err), code);
    assert_int_equal(err.code, code);
    if (!strstr(err.message, word)) fail_msg("no '%s' in: %s", word, err.message);
}

/* A call that may wait, in a thread of its own. */
struct call {
    struct sink *sink;
    size_t bytes;
    int64_t number;
    int code;
    attune_error err;
    atomic_int done;
    pthread_t thread;
};
static void *call_flush(void *argument) {
    struct call *c = argument;
    c->code = recorder_flush(c->sink->recorder, &c->err);
    atomic_store(&c->done, 1);
    return NULL;
}
static void *call_put(void *argument) {
    struct call *c = argument;
    c->code = put_item(c->sink, 0, c->number, c->bytes, 0, &c->err);
    atomic_store(&c->done, 1);
    return NULL;
}
static void *call_suspend(void *argument) {
    struct call *c = argument;
    recorder_suspend(c->sink->recorder);
    atomic_store(&c->done, 1);
    return NULL;
}
static void begin(struct call *c, struct sink *s, void *(*function)(void *)) {
    c->sink = s;
    assert_int_equal(pthread_create(&c->thread, NULL, function, c), 0);
}
static void end(struct call *c, int code) {
    assert_int_equal(pthread_join(c->thread, NULL), 0);
    if (c->code != code) fail_msg("%d, not %d: %s", c->code, code, c->err.message);
}

/* ---- without items ---- */

static void test_options(void **state) {
    (void)state;
    static const struct {
        int64_t rows, bytes;
        int group_ms, full_wait_ms;
        const char *word;
    } wrong[] = {{0, 1, 0, 0, "queue_rows"},   {1 << 24, 1, 0, 0, "queue_rows"},    {-1, 1, 0, 0, "queue_rows"},
                 {1, 0, 0, 0, "queue_bytes"},  {1, 1LL << 40, 0, 0, "queue_bytes"}, {1, 1, -1, 0, "group_ms"},
                 {1, 1, 0, -1, "full_wait_ms"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct recorder_options options = usual();
        struct recorder *recorder = NULL;
        attune_error err = {0};
        options.rows = wrong[i].rows;
        options.bytes = wrong[i].bytes;
        options.group_ms = wrong[i].group_ms;
        options.full_wait_ms = wrong[i].full_wait_ms;
        assert_int_equal(recorder_create(&options, &recorder, &err), ATTUNE_ERROR_ARGUMENT);
        assert_null(recorder);
        assert_non_null(strstr(err.message, wrong[i].word));
    }
}

static void test_unused(void **state) {
    (void)state;
    struct sink s;
    open_sink(&s, usual());
    OK(recorder_flush(s.recorder, &err));
    recorder_suspend(s.recorder);
    OK(recorder_flush(s.recorder, &err));
    recorder_resume(s.recorder);
    struct recorder_counts counts = counts_of(&s), zero = {0};
    assert_memory_equal(&counts, &zero, sizeof zero);
    close_sink(&s, 0);
    assert_int_equal(s.calls + s.releases, 0);
    recorder_close(NULL, 0);
}

static void test_thread_that_does_not_start(void **state) {
    (void)state;
    struct sink s;
    struct item item = {.base.bytes = sizeof item};
    attune_error told = {0};
    open_sink(&s, usual());
    setenv("ATTUNE_FAULT", "recorder.start:fail", 1);
    assert_int_equal(recorder_put(s.recorder, &item.base, &told), ATTUNE_ERROR_IO);
    unsetenv("ATTUNE_FAULT");
    assert_non_null(strstr(told.message, "thread"));
    OK(recorder_flush(s.recorder, &err));
    struct recorder_counts counts = counts_of(&s);
    assert_int_equal(counts.rows + counts.bytes + counts.dropped, 0);
    put_some(&s, 0, 3);
    OK(recorder_flush(s.recorder, &err));
    assert_int_equal(get(&s, &s.items), 3);
    close_sink(&s, 0);
}

/* ---- order, and nothing lost or twice ---- */

struct producer {
    struct sink *sink;
    int thread, bad_every, flush_every, pause_every;
    int64_t items, accepted, dropped;
    int faults, last_code;
    pthread_t handle;
};
static void *produce(void *argument) {
    struct producer *p = argument;
    unsigned int seed = (unsigned int)p->thread;
    for (int64_t i = 0; i < p->items; i++) {
        int bad = p->bad_every && i % p->bad_every == 0;
        int code = put_item(p->sink, p->thread, i, (size_t)(rand_r(&seed) % 400), bad, NULL);
        if (code == ATTUNE_OK) p->accepted++;
        if (code == ATTUNE_ERROR_QUEUE_FULL) p->dropped++;
        if (p->pause_every && i % p->pause_every == 0) usleep(200);
        if (!p->flush_every || i % p->flush_every) continue;
        code = recorder_flush(p->sink->recorder, NULL);
        /* What this thread put before is with the writer when its flush returns, and on the disk. */
        if (code == ATTUNE_OK && !p->bad_every && get(p->sink, &p->sink->next[p->thread]) != i + 1) p->faults++;
        if (code != ATTUNE_OK) p->last_code = code;
    }
    return NULL;
}
static void produce_all(struct sink *s, struct producer *producers, int n, struct producer like) {
    for (int i = 0; i < n; i++) {
        producers[i] = like;
        producers[i].sink = s;
        producers[i].thread = i;
        assert_int_equal(pthread_create(&producers[i].handle, NULL, produce, &producers[i]), 0);
    }
}
static void join_all(struct producer *producers, int n) {
    for (int i = 0; i < n; i++) assert_int_equal(pthread_join(producers[i].handle, NULL), 0);
}

static void test_order(void **state) {
    (void)state;
    static const struct {
        int threads, flush_every, pause_every;
        int64_t rows, bytes, items;
    } cases[] = {{4, 0, 0, 8192, 1 << 20, 50000},
                 {8, 997, 0, 1000, 200000, 25000},
                 {6, 0, 50, 64, 1 << 20, 3000},
                 {3, 1, 0, 8192, 1 << 20, 300},
                 {5, 0, 0, 1, 1, 500}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        struct recorder_options options = usual();
        struct sink s;
        struct producer producers[THREADS_MAX];
        options.wait_when_full = 1;
        options.rows = cases[c].rows;
        options.bytes = cases[c].bytes;
        options.durable = c % 2 == 0;
        open_sink(&s, options);
        produce_all(&s, producers, cases[c].threads,
                    (struct producer){.items = cases[c].items,
                                      .flush_every = cases[c].flush_every,
                                      .pause_every = cases[c].pause_every});
        join_all(producers, cases[c].threads);
        OK(recorder_flush(s.recorder, &err));
        struct recorder_counts counts = counts_of(&s);
        assert_int_equal(counts.rows + counts.bytes + counts.dropped + counts.refused, 0);
        assert_int_equal(counts.written, cases[c].items * cases[c].threads);
        assert_int_equal(s.items, counts.written);
        for (int i = 0; i < cases[c].threads; i++) {
            assert_int_equal(s.next[i], cases[c].items);
            assert_int_equal(producers[i].faults + producers[i].last_code, 0);
        }
        close_sink(&s, 0);
    }
}

/* Failures, refusals, suspending, flushing and dropping, all at once: each item is written, refused or dropped. */
static void test_everything_at_once(void **state) {
    (void)state;
    for (int durable = 0; durable < 2; durable++) {
        struct recorder_options options = usual();
        struct sink s;
        struct producer producers[4];
        options.rows = 300;
        options.bytes = 60000;
        options.durable = durable;
        options.idle = do_idle;
        open_sink(&s, options);
        s.random = 1;
        produce_all(&s, producers, 4,
                    (struct producer){.items = 6000, .bad_every = 61, .flush_every = 100, .pause_every = 20});
        for (int i = 0; i < 40; i++) {
            recorder_suspend(s.recorder);
            assert_true(get_int(&s, &s.released) || get(&s, &s.calls) == 0);
            int64_t calls = get(&s, &s.calls);
            usleep(300);
            assert_int_equal(get(&s, &s.calls), calls);
            recorder_resume(s.recorder);
            usleep(3000);
        }
        join_all(producers, 4);
        set(&s, &s.random, 0);
        recorder_flush(s.recorder, NULL); /* what was refused */
        OK(recorder_flush(s.recorder, &err));
        struct recorder_counts counts = counts_of(&s);
        int64_t accepted = 0, dropped = 0;
        for (int i = 0; i < 4; i++) {
            accepted += producers[i].accepted;
            dropped += producers[i].dropped;
            assert_int_equal(producers[i].accepted + producers[i].dropped, 6000);
        }
        assert_int_equal(counts.dropped, dropped);
        assert_int_equal(counts.written + counts.refused, accepted);
        assert_int_equal(counts.written, s.items);
        assert_int_equal(counts.refused, s.refused);
        assert_int_equal(counts.rows + counts.bytes + counts.failure.code + s.unsynced, 0);
        close_sink(&s, 0);
    }
}

/* ---- limits ---- */

static void test_full_in_rows(void **state) {
    (void)state;
    struct recorder_options options = usual();
    struct sink s;
    attune_error told = {0};
    options.rows = 100;
    open_sink(&s, options);
    hold_first(&s);
    /* The item that is being written takes its place until it is committed. */
    assert_int_equal(put_until_full(&s, 1, 1000, 100), 100);
    for (int i = 0; i < 6; i++) assert_int_equal(put_item(&s, 0, 100, 100, 0, &told), ATTUNE_ERROR_QUEUE_FULL);
    assert_non_null(strstr(told.message, "100 rows"));
    struct recorder_counts counts = counts_of(&s);
    assert_int_equal(counts.rows, 100);
    assert_int_equal(counts.bytes, 10000);
    assert_int_equal(counts.dropped, 7);
    assert_int_equal(counts.written, 0);
    set(&s, &s.gate, 0);
    OK(recorder_flush(s.recorder, &err));
    assert_int_equal(get(&s, &s.items), 100);
    put_some(&s, 100, 120);
    OK(recorder_flush(s.recorder, &err));
    counts = counts_of(&s);
    assert_int_equal(counts.written, 120);
    assert_int_equal(counts.dropped, 7);
    assert_int_equal(counts.rows + counts.bytes, 0);
    close_sink(&s, 0);
}

static void test_full_in_bytes(void **state) {
    (void)state;
    struct recorder_options options = usual();
    struct sink s;
    options.bytes = 1000;
    open_sink(&s, options);
    hold_first(&s); /* 100 bytes */
    assert_int_equal(put_until_full(&s, 1, 1000, 200), 5);
    assert_int_equal(put_until_full(&s, 5, 1000, 101), 5);
    assert_int_equal(put_until_full(&s, 5, 1000, 100), 6);
    struct recorder_counts counts = counts_of(&s);
    assert_int_equal(counts.rows, 6);
    assert_int_equal(counts.bytes, 1000);
    assert_int_equal(counts.dropped, 3);
    set(&s, &s.gate, 0);
    OK(recorder_flush(s.recorder, &err));
    assert_int_equal(get(&s, &s.items), 6);
    close_sink(&s, 0);
}

static void test_oversized(void **state) {
    (void)state;
    struct recorder_options options = usual();
    struct sink s;
    struct call waiter = {.number = 2, .bytes = 6000};
    struct item absurd = {.base.bytes = SIZE_MAX};
    options.bytes = 1000;
    options.wait_when_full = 1;
    open_sink(&s, options);
    assert_int_equal(recorder_put(s.recorder, &absurd.base, NULL), ATTUNE_ERROR_ARGUMENT);
    set(&s, &s.gate, 1);
    OK(put_item(&s, 0, 0, 5000, 0, &err));
    EVENTUALLY(get_int(&s, &s.inside));
    assert_int_equal(counts_of(&s).bytes, 5000);
    /* Nothing more, be it small, and another large one when nothing is left. */
    struct call small = {.number = 1, .bytes = 100};
    begin(&small, &s, call_put);
    usleep(20000);
    assert_false(atomic_load(&small.done));
    set(&s, &s.gate, 0);
    end(&small, ATTUNE_OK);
    begin(&waiter, &s, call_put);
    end(&waiter, ATTUNE_OK);
    OK(recorder_flush(s.recorder, &err));
    assert_int_equal(get(&s, &s.items), 3);
    assert_int_equal(get(&s, &s.bytes), 11100);
    close_sink(&s, 0);
}

static void test_waiting_for_room(void **state) {
    (void)state;
    struct recorder_options options = usual();
    struct sink s;
    struct call waiter = {.number = 10, .bytes = 100};
    options.rows = 10;
    options.wait_when_full = 1;
    open_sink(&s, options);
    hold_first(&s);
    put_some(&s, 1, 10);
    begin(&waiter, &s, call_put);
    usleep(20000);
    assert_false(atomic_load(&waiter.done));
    set(&s, &s.gate, 0);
    end(&waiter, ATTUNE_OK);
    OK(recorder_flush(s.recorder, &err));
    assert_int_equal(get(&s, &s.items), 11);
    assert_int_equal(counts_of(&s).dropped, 0);
    close_sink(&s, 0);

    options.full_wait_ms = 30;
    open_sink(&s, options);
    hold_first(&s);
    put_some(&s, 1, 10);
    int64_t began = now_ns();
    assert_int_equal(put_item(&s, 0, 10, 100, 0, NULL), ATTUNE_ERROR_QUEUE_FULL);
    assert_true(now_ns() - began >= 29 * 1000000);
    assert_int_equal(counts_of(&s).dropped, 1);
    set(&s, &s.gate, 0);
    close_sink(&s, 0);
    assert_int_equal(s.items, 10);
}

/* ---- groups ---- */

static void test_company(void **state) {
    (void)state;
    struct recorder_options options = usual();
    struct sink s;
    options.group_ms = FOREVER_MS;
    options.rows = 200;
    open_sink(&s, options);
    put_some(&s, 0, 10);
    usleep(20000);
    assert_int_equal(get(&s, &s.calls), 0);
    OK(recorder_flush(s.recorder, &err));
    assert_int_equal(get(&s, &s.calls), 1);
    assert_int_equal(get(&s, &s.n[0]), 10);
    put_some(&s, 10, 109);
    usleep(20000);
    assert_int_equal(get(&s, &s.calls), 1);
    put_some(&s, 109, 110); /* half of the rows */
    EVENTUALLY(get(&s, &s.items) == 110);
    close_sink(&s, 0);

    options.bytes = 1000;
    open_sink(&s, options);
    OK(put_item(&s, 0, 0, 499, 0, &err));
    usleep(20000);
    assert_int_equal(get(&s, &s.calls), 0);
    OK(put_item(&s, 0, 1, 100, 0, &err)); /* half of the bytes */
    EVENTUALLY(get(&s, &s.items) == 2);
    close_sink(&s, 0);

    /* Who waits for room is not kept waiting for company. */
    options.wait_when_full = 1;
    open_sink(&s, options);
    OK(put_item(&s, 0, 0, 400, 0, &err));
    OK(put_item(&s, 0, 1, 700, 0, &err));
    EVENTUALLY(get(&s, &s.items) == 2);
    close_sink(&s, 0);

    options.group_ms = 2;
    options.bytes = 1 << 20;
    open_sink(&s, options);
    for (int i = 0; i < 5; i++) {
        put_some(&s, i, i + 1);
        EVENTUALLY(get(&s, &s.items) == i + 1);
    }
    close_sink(&s, 0);
}

static void test_group_size(void **state) {
    (void)state;
    static const int64_t rows[] = {1, 1024, 1024, 951}, large[] = {1, 4, 4, 1, 1, 1};
    struct sink s;
    struct recorder_options options = usual();
    options.bytes = 64 << 20;
    open_sink(&s, options);
    hold_first(&s);
    put_some(&s, 1, 3000);
    set(&s, &s.gate, 0);
    OK(recorder_flush(s.recorder, &err));
    assert_int_equal(s.calls, 4);
    assert_memory_equal(s.n, rows, sizeof rows);
    close_sink(&s, 0);

    open_sink(&s, options);
    hold_first(&s);
    for (int i = 1; i < 10; i++) OK(put_item(&s, 0, i, 1 << 20, 0, &err));
    OK(put_item(&s, 0, 10, 5 << 20, 0, &err));
    OK(put_item(&s, 0, 11, 100, 0, &err));
    set(&s, &s.gate, 0);
    OK(recorder_flush(s.recorder, &err));
    assert_int_equal(s.calls, 6);
    assert_memory_equal(s.n, large, sizeof large);
    close_sink(&s, 0);
}

/* ---- flush ---- */

static void test_flush_waits_for_the_commit(void **state) {
    (void)state;
    struct sink s;
    struct call flushes[3] = {{0}};
    open_sink(&s, usual());
    hold_first(&s);
    put_some(&s, 1, 50);
    for (int i = 0; i < 3; i++) begin(&flushes[i], &s, call_flush);
    usleep(20000);
    for (int i = 0; i < 3; i++) assert_false(atomic_load(&flushes[i].done));
    set(&s, &s.gate, 0);
    for (int i = 0; i < 3; i++) end(&flushes[i], ATTUNE_OK);
    assert_int_equal(get(&s, &s.items), 50);
    close_sink(&s, 0);
}

/* Items that keep coming do not put the sync off for ever. */
static void test_sync_before_more(void **state) {
    (void)state;
    struct recorder_options options = usual();
    struct sink s;
    struct call flush = {0};
    options.durable = 0;
    options.group_ms = FOREVER_MS; /* only the flush makes it write */
    open_sink(&s, options);
    set(&s, &s.gate, 1);
    put_some(&s, 0, 1);
    begin(&flush, &s, call_flush);
    EVENTUALLY(get_int(&s, &s.inside));
    put_some(&s, 1, 2);
    set(&s, &s.gate, 0);
    end(&flush, ATTUNE_OK);
    assert_int_equal(get(&s, &s.calls), 2);
    assert_int_equal(s.n[0], 1);
    assert_int_equal(s.n[1], 0);
    close_sink(&s, 0);
    assert_int_equal(s.items, 2);
}

static void test_lasting_failure(void **state) {
    (void)state;
    struct sink s;
    open_sink(&s, usual());
    s.failing = -1;
    put_some(&s, 0, 10);
    flush_fails(&s, ATTUNE_ERROR_IO, "attempt");
    struct recorder_counts counts = counts_of(&s);
    assert_int_equal(counts.rows, 10);
    assert_int_equal(counts.failure.code, ATTUNE_ERROR_IO);
    assert_string_equal(counts.failure.where, "store.db");
    put_some(&s, 10, 15);
    int64_t calls = get(&s, &s.calls);
    flush_fails(&s, ATTUNE_ERROR_IO, "attempt");
    assert_true(get(&s, &s.calls) > calls);
    assert_int_equal(counts_of(&s).rows, 15);
    set(&s, &s.failing, 0);
    OK(recorder_flush(s.recorder, &err));
    counts = counts_of(&s);
    assert_int_equal(counts.written, 15);
    assert_int_equal(counts.rows + counts.failure.code + counts.dropped + counts.refused, 0);
    assert_int_equal(get(&s, &s.next[0]), 15);
    close_sink(&s, 0);
}

static void test_failure_that_ends(void **state) {
    (void)state;
    struct sink s;
    open_sink(&s, usual());
    s.failing = 2;
    put_some(&s, 0, 10);
    EVENTUALLY(get(&s, &s.items) == 10); /* without a flush */
    EVENTUALLY(counts_of(&s).failure.code == ATTUNE_OK);
    close_sink(&s, 0);
}

/* The error of an attempt that was under way when a flush began is not that flush's answer. */
static void test_attempt_before_the_flush(void **state) {
    (void)state;
    for (int fails = -1; fails <= 1; fails += 2) {
        struct sink s;
        struct call flush = {0};
        open_sink(&s, usual());
        s.failing = fails;
        hold_first(&s);
        begin(&flush, &s, call_flush);
        usleep(20000);
        set(&s, &s.gate, 0);
        end(&flush, fails == 1 ? ATTUNE_OK : ATTUNE_ERROR_IO);
        assert_string_not_equal(flush.err.message, "attempt 1");
        set(&s, &s.failing, 0);
        close_sink(&s, 0);
        assert_int_equal(s.items, 1);
    }
}

static void test_refused(void **state) {
    (void)state;
    struct sink s;
    open_sink(&s, usual());
    hold_first(&s);
    for (int i = 1; i < 10; i++) OK(put_item(&s, 0, i, 100, i == 3 || i == 9, &err));
    set(&s, &s.gate, 0);
    flush_fails(&s, ATTUNE_ERROR_NOT_FOUND, "item 3");
    struct recorder_counts counts = counts_of(&s);
    assert_int_equal(counts.written, 8);
    assert_int_equal(counts.refused, 2);
    assert_int_equal(counts.rows + counts.bytes + counts.failure.code, 0);
    OK(recorder_flush(s.recorder, &err));
    OK(put_item(&s, 0, 10, 100, 1, &err)); /* alone, and found out before the flush */
    EVENTUALLY(counts_of(&s).refused == 3);
    flush_fails(&s, ATTUNE_ERROR_NOT_FOUND, "item 10");
    OK(recorder_flush(s.recorder, &err));
    close_sink(&s, 0);
}

/* An item before a refused one is not taken for written because the refused one is settled; and the refusal is told
 * when the others are written. */
static void test_refused_then_failing(void **state) {
    (void)state;
    struct recorder_options options = usual();
    struct sink s;
    struct call flush = {0};
    options.group_ms = FOREVER_MS;
    open_sink(&s, options);
    s.gate = 1;
    s.fail_from = 3;
    OK(put_item(&s, 0, 0, 5 << 20, 0, &err)); /* a group of its own */
    put_some(&s, 1, 2);
    begin(&flush, &s, call_flush); /* of these two */
    EVENTUALLY(get_int(&s, &s.inside));
    OK(put_item(&s, 0, 2, 100, 1, &err));
    put_some(&s, 3, 4);
    set(&s, &s.gate, 0);
    end(&flush, ATTUNE_ERROR_IO);
    struct recorder_counts counts = counts_of(&s);
    assert_int_equal(counts.written, 1);
    assert_int_equal(counts.refused, 1);
    assert_int_equal(counts.rows, 2);
    set(&s, &s.fail_from, 0);
    flush_fails(&s, ATTUNE_ERROR_NOT_FOUND, "item 2");
    OK(recorder_flush(s.recorder, &err));
    assert_int_equal(counts_of(&s).written, 3);
    close_sink(&s, 0);
}

/* What is left of a group without the refused item is tried at once, also when a failure was there before. */
static void test_failing_then_refused(void **state) {
    (void)state;
    struct sink s;
    open_sink(&s, usual());
    s.failing = -1;
    put_some(&s, 0, 1);
    OK(put_item(&s, 0, 1, 100, 1, &err));
    put_some(&s, 2, 3);
    for (int i = 0; i < 3; i++) flush_fails(&s, ATTUNE_ERROR_IO, "attempt");
    set(&s, &s.failing, 0);
    flush_fails(&s, ATTUNE_ERROR_NOT_FOUND, "item 1");
    struct recorder_counts counts = counts_of(&s);
    assert_int_equal(counts.written, 2);
    assert_int_equal(counts.rows + counts.failure.code, 0);
    close_sink(&s, 0);
}

/* ---- what is durable ---- */

static void test_durable(void **state) {
    (void)state;
    struct recorder_options options = usual();
    struct sink s;
    open_sink(&s, options);
    put_some(&s, 0, 5);
    EVENTUALLY(get(&s, &s.items) == 5);
    OK(recorder_flush(s.recorder, &err));
    for (int64_t i = 0; i < s.calls; i++) assert_true(s.durable[i] && s.n[i] > 0);
    close_sink(&s, 0);

    options.durable = 0;
    open_sink(&s, options);
    put_some(&s, 0, 1);
    EVENTUALLY(counts_of(&s).written == 1);
    assert_int_equal(get(&s, &s.durable[0]), 0);
    OK(recorder_flush(s.recorder, &err));
    assert_int_equal(s.calls, 2);
    assert_int_equal(s.n[1], 0);
    assert_int_equal(s.durable[1], 1);
    OK(recorder_flush(s.recorder, &err));
    assert_int_equal(s.calls, 2);
    OK(put_item(&s, 0, 1, 100, 1, &err)); /* what is refused needs no sync */
    EVENTUALLY(counts_of(&s).refused == 1);
    int64_t calls = get(&s, &s.calls);
    flush_fails(&s, ATTUNE_ERROR_NOT_FOUND, "item 1");
    assert_int_equal(s.calls, calls);
    /* Of several groups that a flush waits for, one sync is enough. */
    set(&s, &s.gate, 1);
    put_some(&s, 2, 3);
    EVENTUALLY(get_int(&s, &s.inside));
    put_some(&s, 3, 3000);
    set(&s, &s.gate, 0);
    OK(recorder_flush(s.recorder, &err));
    int64_t syncs = 0;
    for (int64_t i = calls; i < s.calls; i++) syncs += s.durable[i];
    assert_int_equal(s.unsynced, 0);
    assert_int_equal(syncs, 1);
    /* A sync that fails is an error of the flush, and done later. */
    put_some(&s, 3000, 3001);
    EVENTUALLY(counts_of(&s).written == 3000);
    set(&s, &s.failing, -1);
    flush_fails(&s, ATTUNE_ERROR_IO, "attempt");
    assert_int_equal(counts_of(&s).rows, 0);
    set(&s, &s.failing, 0);
    OK(recorder_flush(s.recorder, &err));
    assert_int_equal(s.unsynced, 0);
    /* What comes after it is not held up. */
    set(&s, &s.sync_fails, -1);
    put_some(&s, 3001, 3002);
    flush_fails(&s, ATTUNE_ERROR_IO, "attempt");
    put_some(&s, 3002, 3003);
    EVENTUALLY(counts_of(&s).written == 3002);
    assert_int_equal(counts_of(&s).failure.code, ATTUNE_OK);
    flush_fails(&s, ATTUNE_ERROR_IO, "attempt");
    set(&s, &s.sync_fails, 0);
    OK(recorder_flush(s.recorder, &err));
    assert_int_equal(s.unsynced, 0);
    /* And so it is at the end. */
    put_some(&s, 3003, 3004);
    EVENTUALLY(counts_of(&s).written == 3003);
    close_sink(&s, 0);
    assert_int_equal(s.unsynced, 0);
    open_sink(&s, options);
    s.sync_fails = -1;
    put_some(&s, 0, 1);
    close_sink(&s, 0);
    assert_int_equal(s.calls, 2);
    assert_int_equal(s.unsynced, 1);
    open_sink(&s, options);
    s.sync_fails = 2;
    put_some(&s, 0, 1);
    close_sink(&s, FOREVER_MS);
    assert_int_equal(s.calls, 4);
    assert_int_equal(s.unsynced, 0);
}

/* ---- suspended ---- */

static void test_suspend(void **state) {
    (void)state;
    struct recorder_options options = usual();
    struct sink s;
    options.rows = 20;
    options.idle = do_idle;
    open_sink(&s, options);
    put_some(&s, 0, 5);
    OK(recorder_flush(s.recorder, &err));
    recorder_suspend(s.recorder);
    assert_int_equal(get_int(&s, &s.releases), 1);
    assert_int_equal(get_int(&s, &s.released), 1);
    OK(recorder_flush(s.recorder, &err)); /* nothing to do */
    int64_t calls = get(&s, &s.calls);
    assert_int_equal(put_until_full(&s, 5, 1000, 100), 25);
    usleep(30000);
    flush_fails(&s, ATTUNE_ERROR_STATE, "20 rows");
    recorder_suspend(s.recorder);
    assert_int_equal(get(&s, &s.calls), calls);
    assert_int_equal(get_int(&s, &s.releases), 1);
    assert_int_equal(counts_of(&s).rows, 20);
    recorder_resume(s.recorder);
    recorder_resume(s.recorder);
    EVENTUALLY(get(&s, &s.items) == 25); /* without a flush */
    OK(recorder_flush(s.recorder, &err));
    close_sink(&s, 0);
    assert_int_equal(s.releases, 2);
}

static void test_suspend_while_writing(void **state) {
    (void)state;
    struct sink s;
    struct call suspend = {0}, flush = {0};
    open_sink(&s, usual());
    hold_first(&s);
    put_some(&s, 1, 3);
    begin(&flush, &s, call_flush);
    usleep(10000);
    begin(&suspend, &s, call_suspend);
    usleep(20000);
    assert_false(atomic_load(&suspend.done));
    set(&s, &s.gate, 0);
    end(&suspend, ATTUNE_OK);
    assert_int_equal(get_int(&s, &s.released), 1);
    int64_t items = get(&s, &s.items); /* 1, if the machine let the two begin in time */
    usleep(10000);
    assert_int_equal(get(&s, &s.items), items);
    end(&flush, items == 3 ? ATTUNE_OK : ATTUNE_ERROR_STATE);
    /* A writer that fails is suspended as well, and closing writes all the same. */
    recorder_resume(s.recorder);
    set(&s, &s.failing, -1);
    put_some(&s, 3, 4);
    recorder_flush(s.recorder, NULL);
    recorder_suspend(s.recorder);
    assert_int_equal(get_int(&s, &s.released), 1);
    set(&s, &s.failing, 0);
    close_sink(&s, 0);
    assert_int_equal(s.items, 4);
}

/* ---- closing ---- */

static void test_close(void **state) {
    (void)state;
    struct recorder_options options = usual();
    struct sink s;
    options.group_ms = FOREVER_MS;
    open_sink(&s, options);
    put_some(&s, 0, 3000);
    close_sink(&s, 0);
    assert_int_equal(s.items, 3000);
    assert_int_equal(s.releases, 1);

    /* What fails is tried once at least, and for as long as was said. */
    static const int waits[] = {0, 250};
    for (size_t i = 0; i < 2; i++) {
        open_sink(&s, options);
        s.failing = -1;
        put_some(&s, 0, 3000);
        recorder_flush(s.recorder, NULL);
        int64_t calls = get(&s, &s.calls), began = now_ns();
        close_sink(&s, waits[i]);
        assert_true(now_ns() - began >= (waits[i] - 1) * INT64_C(1000000));
        assert_true(s.calls > calls);
        assert_int_equal(s.items, 0);
        assert_int_equal(s.releases, 1);
    }
    /* An attempt that found an item to refuse did not fail. */
    open_sink(&s, options);
    s.failing = 1;
    put_some(&s, 0, 5);
    OK(put_item(&s, 0, 5, 100, 1, &err));
    put_some(&s, 6, 10);
    recorder_flush(s.recorder, NULL);
    close_sink(&s, 0);
    assert_int_equal(s.items, 9);
    open_sink(&s, options);
    s.failing = 2;
    put_some(&s, 0, 10);
    close_sink(&s, FOREVER_MS);
    assert_int_equal(s.items, 10);
    assert_int_equal(s.calls, 3);
}

/* ---- idle ---- */

static void test_idle(void **state) {
    (void)state;
    struct recorder_options options = usual();
    struct sink s;
    options.idle = do_idle;
    options.durable = 0;
    open_sink(&s, options);
    s.idles_left = 4;
    s.strict = 1;
    hold_first(&s);
    put_some(&s, 1, 5);
    set(&s, &s.gate, 0);
    EVENTUALLY(get_int(&s, &s.idles) == 4);
    assert_int_equal(get(&s, &s.items), 5);
    assert_true(s.masked);
#if defined(__linux__)
    assert_string_equal(s.name, "attune-recorder");
#endif
    OK(recorder_flush(s.recorder, &err)); /* a sync brings no new work */
    assert_int_equal(s.unsynced, 0);
    usleep(120000);
    assert_int_equal(get_int(&s, &s.idles), 4);
    put_some(&s, 5, 6);
    EVENTUALLY(get_int(&s, &s.idles) == 5);
    /* Work that never ends gives way to items. */
    set(&s, &s.strict, 0);
    set(&s, &s.idles_left, 1 << 20);
    put_some(&s, 6, 7);
    EVENTUALLY(get_int(&s, &s.idles) >= 7);
    put_some(&s, 7, 10);
    EVENTUALLY(get(&s, &s.items) == 10);
    put_some(&s, 10, 11);
    OK(recorder_flush(s.recorder, &err));
    recorder_suspend(s.recorder);
    assert_int_equal(get_int(&s, &s.released), 1);
    int idles = get_int(&s, &s.idles);
    usleep(120000);
    assert_int_equal(get_int(&s, &s.idles), idles);
    close_sink(&s, 0);
}

#if defined(__linux__)
/* How often the recorder's thread has gone to sleep; -1: not to be learned. */
static long sleeps_of_thread(pid_t thread) {
    char path[64], line[256];
    long sleeps = -1;
    snprintf(path, sizeof path, "/proc/self/task/%d/status", (int)thread);
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "voluntary_ctxt_switches: %ld", &sleeps) == 1) break;
    if (file) fclose(file);
    return sleeps;
}
static atomic_int writer_id;
static int note_thread(void *user) {
    (void)user;
    atomic_store(&writer_id, (int)gettid());
    return 0;
}
static void test_quiet_when_idle(void **state) {
    (void)state;
    struct recorder_options options = usual();
    struct sink s;
    options.idle = note_thread;
    open_sink(&s, options);
    atomic_store(&writer_id, 0);
    put_some(&s, 0, 5);
    EVENTUALLY(atomic_load(&writer_id));
    /* On a busy machine it may take a while until it sleeps; then it does for good. */
    long before, after;
    int tries = 0;
    do {
        before = sleeps_of_thread(atomic_load(&writer_id));
        if (before < 0) break;
        usleep(300000);
        after = sleeps_of_thread(atomic_load(&writer_id));
    } while (before != after && ++tries < 20);
    close_sink(&s, 0);
    if (before < 0) skip();
    assert_true(tries < 20);
}
#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_unused),
        cmocka_unit_test(test_thread_that_does_not_start),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_everything_at_once),
        cmocka_unit_test(test_full_in_rows),
        cmocka_unit_test(test_full_in_bytes),
        cmocka_unit_test(test_oversized),
        cmocka_unit_test(test_waiting_for_room),
        cmocka_unit_test(test_company),
        cmocka_unit_test(test_group_size),
        cmocka_unit_test(test_flush_waits_for_the_commit),
        cmocka_unit_test(test_sync_before_more),
        cmocka_unit_test(test_lasting_failure),
        cmocka_unit_test(test_failure_that_ends),
        cmocka_unit_test(test_attempt_before_the_flush),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_refused_then_failing),
        cmocka_unit_test(test_failing_then_refused),
        cmocka_unit_test(test_durable),
        cmocka_unit_test(test_suspend),
        cmocka_unit_test(test_suspend_while_writing),
        cmocka_unit_test(test_close),
        cmocka_unit_test(test_idle),
#if defined(__linux__)
        cmocka_unit_test(test_quiet_when_idle),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
