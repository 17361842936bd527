/* Four processes record, give feedback, flush and now and then forget; a fifth reads and maintains. One after the other
 * is killed at any instant and started again, and after each kill the store is sound and holds what was flushed.
 *
 * ATTUNE_TEST_SEED=N: the instants of an earlier run, as far as processes can be repeated. ATTUNE_TEST_FULL=1: 200
 * kills in place of 30. */
#include "tests/store_fixture.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>

#include "tests/torture.h"

enum { WRITERS = 4, READER = WRITERS, PROCESSES = WRITERS + 1, KILLS = 30, KILLS_FULL = 200 };

/* What the processes tell each other. */
struct shared {
    struct torture_ledger ledger[WRITERS];
    _Atomic int stop;
    _Atomic unsigned rounds[PROCESSES];
    char complaint[PROCESSES][300]; /* before a process ends by itself */
};

struct test {
    struct fixture *f;
    struct shared *shared;
    uint64_t seed;
    unsigned starts[PROCESSES];
};

static pid_t running[PROCESSES]; /* 0: none */

static void sleep_us(uint64_t us) {
    struct timespec time = {.tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000) * 1000};
    nanosleep(&time, NULL);
}

/* ---- the processes ---- */

struct process {
    struct test *test;
    unsigned number;
    uint64_t key, rolled;
    attune_store *store;
    attune_error err;
};

static uint64_t roll(struct process *p, uint64_t sides) { return random_u64(p->key, p->rolled++) % sides; }

static void complain(struct process *p, const char *what, int code) {
    struct shared *shared = p->test->shared;
    snprintf(shared->complaint[p->number], sizeof shared->complaint[0], "%s: %d %.200s", what, code, p->err.message);
    _exit(1);
}

static void must(struct process *p, const char *what, int code) {
    if (code < 0) complain(p, what, code);
}

/* A row that feedback may be given to. */
static unsigned some_row(struct process *p, struct torture_ledger *ledger) {
    unsigned n = atomic_load(&ledger->n), at = (unsigned)roll(p, n);
    return atomic_load(&ledger->row[at].forgetting) ? TORTURE_ROWS : at;
}

static void burst(struct process *p, struct torture_ledger *ledger) {
    for (uint64_t i = 1 + roll(p, 10); i > 0 && atomic_load(&ledger->n) < TORTURE_ROWS; i--) {
        must(p, "record", torture_record(p->store, ledger, NULL, &p->err));
        unsigned at = roll(p, 2) ? some_row(p, ledger) : TORTURE_ROWS;
        if (at < TORTURE_ROWS) must(p, "feedback", torture_feedback(p->store, ledger, at, &p->err));
    }
    if (roll(p, 4)) must(p, "flush", torture_flush(p->store, ledger, &p->err));
    unsigned at = roll(p, 25) ? TORTURE_ROWS : some_row(p, ledger);
    if (at < TORTURE_ROWS && atomic_load(&ledger->row[at].flushed) && atomic_load(&ledger->row[at].known))
        must(p, "forget", torture_forget(p->store, ledger, &at, 1, &p->err));
}

static int take_example(const struct store_row *row, void *user, attune_error *err) {
    (void)user, (void)err;
    return row->response[0] ? ATTUNE_OK : ATTUNE_ERROR_INTERNAL;
}

static void read_some(struct process *p, const char *match) {
    attune_filter filter;
    attune_row row;
    attune_cursor *cursor = NULL;
    int code;
    ATTUNE_INIT(filter);
    ATTUNE_INIT(row);
    filter.match = match;
    filter.limit = 40;
    must(p, "query", attune_store_query(p->store, &filter, &cursor, &p->err));
    while ((code = attune_cursor_next(cursor, &row, &p->err)) == ATTUNE_CONTINUE) must(p, "next", code);
    must(p, "end", code);
    attune_cursor_close(cursor);
}

static void look_around(struct process *p) {
    static const struct store_example_query newest = {.newest = 30};
    read_some(p, NULL);
    read_some(p, "quoted wor*");
    must(p, "examples", store_examples(p->store, &newest, take_example, NULL, &p->err));
    must(p, "maintain", attune_store_maintain(p->store, 0.05, &p->err));
}

static void run(struct process *p) {
    attune_store_options options;
    ATTUNE_INIT(options);
    options.busy_timeout_ms = 20000;
    options.group_ms = 1 + (int)roll(p, 20);
    options.durability = p->number % 2 ? ATTUNE_DURABILITY_NORMAL : ATTUNE_DURABILITY_FULL;
    must(p, "open", attune_store_open(p->test->f->home, &options, &p->store, &p->err));
    while (!atomic_load(&p->test->shared->stop)) {
        if (p->number == READER)
            look_around(p);
        else
            burst(p, &p->test->shared->ledger[p->number]);
        atomic_fetch_add(&p->test->shared->rounds[p->number], 1);
        sleep_us(roll(p, 25000));
    }
    if (p->number != READER)
        must(p, "flush at last", torture_flush(p->store, &p->test->shared->ledger[p->number], &p->err));
    attune_store_close(p->store);
}

static void start(struct test *test, unsigned number) {
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct process process = {.test = test, .number = number};
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        process.key = random_u64(test->seed, 1000 * number + test->starts[number]);
        run(&process);
        _exit(0);
    }
    running[number] = pid;
    test->starts[number]++;
}

/* ---- after a kill ---- */

/* The process is gone, and with it what it had queued: what has not come is not coming. */
static void settle(struct torture_ledger *ledger, const struct torture_check *check, size_t first) {
    for (unsigned n = 0; n < atomic_load(&ledger->n); n++) {
        struct torture_row *row = &ledger->row[n];
        int seen = check->seen[first + n];
        if (!atomic_load(&row->forgotten) && atomic_load(&row->forgetting)) {
            atomic_store(&row->forgotten, !seen);
            atomic_store(&row->forgetting, !seen);
        }
        if (!seen && !atomic_load(&row->flushed)) {
            atomic_store(&row->queued, 0);
            atomic_store(&row->known, 0);
        }
        if (!seen) continue;
        /* Without its id, as the process did not come to note it, a row is only looked at. */
        atomic_store(&row->flushed, 1);
        atomic_store(&row->feedback_queued, check->n_feedback[first + n]);
        atomic_store(&row->feedback_flushed, check->n_feedback[first + n]);
    }
}

static void check_store(struct test *test, unsigned killed) {
    struct fixture *f = test->f;
    struct torture_ledger *ledgers[WRITERS];
    struct torture_check check;
    for (unsigned i = 0; i < WRITERS; i++) ledgers[i] = &test->shared->ledger[i];
    OK(store_open_path(f->home, 20000, &f->store, &f->err));
    if (torture_check_begin(&check, ledgers, WRITERS)) torture_check(&check, f->store);
    if (!check.problem[0] && killed < WRITERS) settle(ledgers[killed], &check, (size_t)killed * TORTURE_ROWS);
    torture_check_end(&check);
    attune_store_close(f->store);
    f->store = NULL;
    if (check.problem[0]) fail_msg("%s", check.problem);
}

static void assert_no_complaint(const struct test *test) {
    for (unsigned i = 0; i < PROCESSES; i++)
        if (test->shared->complaint[i][0]) fail_msg("process %u: %s", i, test->shared->complaint[i]);
}

static void kill_one(struct test *test, unsigned round) {
    unsigned victim = (unsigned)(random_u64(test->seed, 4 * round) % PROCESSES), status;
    sleep_us(random_u64(test->seed, 4 * round + 1) % 120000);
    assert_int_equal(kill(running[victim], SIGKILL), 0);
    assert_int_equal(waitpid(running[victim], (int *)&status, 0), running[victim]);
    running[victim] = 0;
    assert_no_complaint(test);
    assert_true(WIFSIGNALED(status));
    check_store(test, victim);
    start(test, victim);
}

/* ---- the end ---- */

static void end_all(struct test *test) {
    int status;
    atomic_store(&test->shared->stop, 1);
    for (unsigned i = 0; i < PROCESSES; i++) {
        assert_int_equal(waitpid(running[i], &status, 0), running[i]);
        running[i] = 0;
        assert_no_complaint(test);
        assert_int_equal(status, 0);
    }
}

/* Everything was flushed: the store holds exactly what the ledgers say. */
static void assert_totals(struct test *test) {
    struct fixture *f = test->f;
    struct torture_check check = {.rows = 0};
    int64_t wanted[2] = {0, 0}, rows = -1, feedback_rows = -1;
    for (unsigned i = 0; i < WRITERS; i++)
        for (unsigned n = 0; n < TORTURE_ROWS; n++) {
            struct torture_row *row = &test->shared->ledger[i].row[n];
            int kept = atomic_load(&row->queued) && !atomic_load(&row->forgotten);
            assert_int_equal(atomic_load(&row->queued), atomic_load(&row->flushed));
            wanted[0] += kept;
            wanted[1] += kept ? atomic_load(&row->feedback_queued) : 0;
        }
    OK(store_open_path(f->home, 0, &f->store, &f->err));
    OK(store_counts(f->store, &rows, NULL, &feedback_rows, NULL, &f->err));
    assert_int_equal(rows, wanted[0]);
    assert_int_equal(feedback_rows, wanted[1]);
    torture_check_maintained(&check, f->store);
    assert_string_equal(check.problem, "");
    print_message("%d rows, %d feedback", (int)rows, (int)feedback_rows);
    for (unsigned i = 0; i < PROCESSES; i++)
        print_message("%s%u", i ? " " : "; rounds of each process: ", atomic_load(&test->shared->rounds[i]));
    print_message("\n");
}

static void test_kill(void **state) {
    struct test test = {.f = *state, .seed = torture_seed((uint64_t)time(NULL))};
    test.shared = mmap(NULL, sizeof *test.shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(test.shared != MAP_FAILED);
    print_message("ATTUNE_TEST_SEED=%" PRIu64 "\n", test.seed);
    attune_store_close(test.f->store);
    test.f->store = NULL;
    for (unsigned i = 0; i < WRITERS; i++) test.shared->ledger[i].writer = i;
    for (unsigned i = 0; i < PROCESSES; i++) start(&test, i);
    for (unsigned i = 0; i < (torture_full() ? KILLS_FULL : KILLS); i++) kill_one(&test, i);
    end_all(&test);
    check_store(&test, PROCESSES);
    assert_totals(&test);
    munmap(test.shared, sizeof *test.shared);
}

/* Also after a test that has failed half way. */
static int teardown(void **state) {
    for (unsigned i = 0; i < PROCESSES; i++)
        if (running[i] && kill(running[i], SIGKILL) == 0) waitpid(running[i], NULL, 0);
    return store_teardown(state);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(test_kill, store_setup, teardown)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
