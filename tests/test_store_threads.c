/* Eight threads on one handle, and another handle beside them in the same process: totals are exact, and the thread
 * sanitizer has nothing to say. */
#include "tests/store_fixture.h"

#include <pthread.h>

#include "tests/torture.h"

enum { THREADS = 8, BESIDE = THREADS, LEDGERS = THREADS + 1, ROUNDS = 40, ROUNDS_FULL = 400, SLEEPS = 6 };

struct thread {
    struct test *test;
    unsigned number;
    attune_store *store;
    attune_error err;
    char wrong[400]; /* the first thing that was */
};

struct test {
    struct fixture *f;
    struct torture_ledger *ledger[LEDGERS];
    struct thread thread[LEDGERS];
    pthread_t id[LEDGERS];
    unsigned rounds;
    int sleeps;                  /* thread 0 suspends the handle now and then */
    _Atomic int64_t refused[2];  /* calls that found the queue full: of the handle, of the one beside it */
    _Atomic int64_t accepted[2]; /* calls that queued something */
};

/* 1: done. What is not possible while the handle sleeps, or because the queue is full, is let pass. */
static int passed(struct thread *t, const char *what, int code) {
    int beside = t->number == BESIDE;
    if (code >= 0) return 1;
    if (code == ATTUNE_ERROR_QUEUE_FULL) atomic_fetch_add(&t->test->refused[beside], 1);
    int allowed = code == ATTUNE_ERROR_QUEUE_FULL || (code == ATTUNE_ERROR_STATE && t->test->sleeps && !beside);
    if (!allowed && !t->wrong[0]) snprintf(t->wrong, sizeof t->wrong, "%s: %d %.300s", what, code, t->err.message);
    return 0;
}

/* ---- what the threads do ---- */

static void record_some(struct thread *t, unsigned n) {
    struct torture_ledger *ledger = t->test->ledger[t->number];
    _Atomic int64_t *accepted = &t->test->accepted[t->number == BESIDE];
    for (unsigned i = 0; i < n; i++) {
        unsigned row = 0;
        if (!passed(t, "record", torture_record(t->store, ledger, &row, &t->err))) continue;
        atomic_fetch_add(accepted, 1);
        for (unsigned k = 0; k < (row + i) % 3; k++)
            if (passed(t, "feedback", torture_feedback(t->store, ledger, row, &t->err))) atomic_fetch_add(accepted, 1);
    }
}

static int take_example(const struct store_row *row, void *user, attune_error *err) {
    (void)err;
    *(size_t *)user += row->n_messages;
    return ATTUNE_OK;
}

static void read_some(struct thread *t, const char *match) {
    attune_filter filter;
    attune_row row;
    attune_cursor *cursor = NULL;
    int code;
    ATTUNE_INIT(filter);
    ATTUNE_INIT(row);
    filter.match = match;
    filter.limit = 20;
    if (!passed(t, "query", attune_store_query(t->store, &filter, &cursor, &t->err))) return;
    while ((code = attune_cursor_next(cursor, &row, &t->err)) == ATTUNE_CONTINUE) {
    }
    passed(t, "next", code);
    attune_cursor_close(cursor);
}

static void look_around(struct thread *t, unsigned round) {
    static const struct store_example_query newest = {.newest = 10};
    attune_store_statistics s;
    size_t messages = 0;
    ATTUNE_INIT(s);
    switch ((t->number + round) % 6) {
    case 0: passed(t, "flush", torture_flush(t->store, t->test->ledger[t->number], &t->err)); break;
    case 1: read_some(t, NULL); break;
    case 2: passed(t, "examples", store_examples(t->store, &newest, take_example, &messages, &t->err)); break;
    case 3: passed(t, "statistics", attune_store_statistics_get(t->store, &s, &t->err)); break;
    case 4: read_some(t, "quoted wor*"); break;
    case 5: passed(t, "maintain", attune_store_maintain(t->store, 0.01, &t->err)); break;
    }
}

static void forget_one(struct thread *t, unsigned row) {
    struct torture_ledger *ledger = t->test->ledger[t->number];
    if (row < atomic_load(&ledger->n) && atomic_load(&ledger->row[row].known))
        passed(t, "forget", torture_forget(t->store, ledger, &row, 1, &t->err));
}

static void *run(void *argument) {
    struct thread *t = argument;
    for (unsigned round = 0; round < t->test->rounds; round++) {
        record_some(t, 1 + (t->number + round) % 3);
        look_around(t, round);
        if (t->number == 1 && round == t->test->rounds / 2) forget_one(t, 3);
        if (t->number != 0 || !t->test->sleeps || round % (t->test->rounds / SLEEPS)) continue;
        passed(t, "suspend", attune_store_suspend(t->store, &t->err));
        record_some(t, 3);
        passed(t, "resume", attune_store_resume(t->store, &t->err));
    }
    return NULL;
}

/* ---- what comes out ---- */

static void assert_statistics(struct test *test, attune_store *store, int beside) {
    struct fixture *f = test->f;
    attune_store_statistics s;
    ATTUNE_INIT(s);
    OK(attune_store_statistics_get(store, &s, &f->err));
    assert_int_equal(s.dropped, atomic_load(&test->refused[beside]));
    assert_int_equal(s.written, atomic_load(&test->accepted[beside]));
    assert_int_equal(s.queued_rows, 0);
    assert_int_equal(s.queued_bytes, 0);
    assert_int_equal(s.refused, 0);
    assert_int_equal(s.writer_code, ATTUNE_OK);
}

static void assert_all_there(struct test *test) {
    struct fixture *f = test->f;
    struct torture_check check;
    int64_t rows = 0, feedback_rows = 0;
    for (unsigned i = 0; i < LEDGERS; i++)
        for (unsigned n = 0; n < atomic_load(&test->ledger[i]->n); n++) {
            struct torture_row *row = &test->ledger[i]->row[n];
            int kept = atomic_load(&row->known) && !atomic_load(&row->forgotten);
            rows += kept;
            feedback_rows += kept ? atomic_load(&row->feedback_queued) : 0;
        }
    if (torture_check_begin(&check, test->ledger, LEDGERS)) torture_check(&check, f->store);
    torture_check_end(&check);
    assert_string_equal(check.problem, "");
    assert_int_equal(check.rows, rows);
    assert_int_equal(check.feedback, feedback_rows);
    torture_check_maintained(&check, f->store);
    assert_string_equal(check.problem, "");
    print_message("%d rows, %d feedback, %d found the queue full\n", (int)rows, (int)feedback_rows,
                  (int)atomic_load(&test->refused[0]));
}

static void finish(struct test *test, attune_store *beside) {
    struct fixture *f = test->f;
    unsigned row = 3;
    for (unsigned i = 0; i < LEDGERS; i++)
        OK(torture_flush(i == BESIDE ? beside : f->store, test->ledger[i], &f->err));
    /* Cut short by a suspend? Then it may be done already. */
    if (test->ledger[1]->row[row].forgetting && !test->ledger[1]->row[row].forgotten) {
        int code = torture_forget(f->store, test->ledger[1], &row, 1, &f->err);
        assert_true(code == ATTUNE_OK || code == ATTUNE_ERROR_NOT_FOUND);
        test->ledger[1]->row[row].forgotten = 1;
    }
    assert_statistics(test, f->store, 0);
    assert_statistics(test, beside, 1);
    assert_all_there(test);
}

static void run_all(struct fixture *f, int64_t queue_rows, int when_full, int sleeps) {
    struct test test = {.f = f, .rounds = torture_full() ? ROUNDS_FULL : ROUNDS, .sleeps = sleeps};
    attune_store *beside = NULL;
    attune_store_options options;
    ATTUNE_INIT(options);
    options.busy_timeout_ms = 30000;
    options.group_ms = 5;
    options.queue_rows = queue_rows;
    options.when_full = when_full;
    options.full_wait_ms = 60000;
    OK(attune_store_open(f->home, &options, &f->store, &f->err));
    options.durability = ATTUNE_DURABILITY_NORMAL;
    OK(attune_store_open(f->home, &options, &beside, &f->err));
    for (unsigned i = 0; i < LEDGERS; i++) {
        assert_non_null(test.ledger[i] = calloc(1, sizeof *test.ledger[i]));
        test.ledger[i]->writer = i;
        test.thread[i] = (struct thread){.test = &test, .number = i, .store = i == BESIDE ? beside : f->store};
    }
    for (unsigned i = 0; i < LEDGERS; i++) assert_int_equal(pthread_create(&test.id[i], NULL, run, &test.thread[i]), 0);
    for (unsigned i = 0; i < LEDGERS; i++) assert_int_equal(pthread_join(test.id[i], NULL), 0);
    for (unsigned i = 0; i < LEDGERS; i++)
        if (test.thread[i].wrong[0]) fail_msg("thread %u: %s", i, test.thread[i].wrong);
    finish(&test, beside);
    attune_store_close(beside);
    for (unsigned i = 0; i < LEDGERS; i++) free(test.ledger[i]);
}

/* ---- tests ---- */

static void test_sleeping(void **state) { run_all(*state, 0, ATTUNE_FULL_DROP, 1); }
static void test_dropping(void **state) { run_all(*state, 8, ATTUNE_FULL_DROP, 0); }
static void test_waiting(void **state) { run_all(*state, 8, ATTUNE_FULL_WAIT, 0); }

static int setup(void **state) {
    if (bare_setup(state) != 0) return -1;
    struct fixture *f = *state;
    return store_create(f->home, 1, &f->err);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_sleeping, setup, store_teardown),
        cmocka_unit_test_setup_teardown(test_dropping, setup, store_teardown),
        cmocka_unit_test_setup_teardown(test_waiting, setup, store_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
