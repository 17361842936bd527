/* Every read, write, sync, lock, ... and every allocation fails once, or from some moment on: the calls fail cleanly,
 * what was flushed stays, the same handle goes on when the fault is over, and each row is there once.
 *
 * Without ATTUNE_TEST_FULL=1 some of the operations are left out, others with each ATTUNE_TEST_SEED. Heap faults need
 * the linker flags that faulty_vfs.h names. */
#include "tests/store_fixture.h"

#include <jansson.h>

#include "datastore/handle.h"
#include "tests/faulty_vfs.h"
#include "tests/torture.h"

enum { ROWS = 20, MORE = 3, BUSY_MS = 15 };

/* ---- one life under a fault ---- */

struct life {
    struct fixture *f;
    attune_store_options options;
    struct torture_ledger *ledger;
    int wanted, also;    /* the codes that the fault may give */
    unsigned failed;     /* calls that did */
    int forget;          /* the workload forgets, too */
    int suspend;         /* and suspends */
    char problem[800]; /* the first */
};

static void note(struct life *life, const char *what, const char *detail) {
    if (!life->problem[0]) snprintf(life->problem, sizeof life->problem, "%s: %s", what, detail);
}

/* Looks at what a call returned. 1: it has done its work. */
static int fine(struct life *life, const char *what, int code) {
    attune_error *err = &life->f->err;
    char detail[700];
    if (code >= 0) return 1;
    life->failed++;
    if (code != err->code || !err->message[0] || (code != life->wanted && code != life->also)) {
        snprintf(detail, sizeof detail, "code %d, error %d: %s (%s)", code, err->code, err->message, err->where);
        note(life, what, detail);
    }
    memset(err, 0, sizeof *err);
    return 0;
}

static int take_example(const struct store_row *row, void *user, attune_error *err) {
    (void)user, (void)err;
    return row->response ? ATTUNE_OK : ATTUNE_ERROR_INTERNAL;
}

static int read_all(attune_store *store, attune_error *err) {
    attune_cursor *cursor = NULL;
    attune_row row;
    ATTUNE_INIT(row);
    int code = attune_store_query(store, NULL, &cursor, err);
    while (code == ATTUNE_OK && (code = attune_cursor_next(cursor, &row, err)) == ATTUNE_CONTINUE) code = ATTUNE_OK;
    attune_cursor_close(cursor);
    return code;
}

static int search(attune_store *store, attune_error *err) {
    attune_cursor *cursor = NULL;
    attune_filter filter;
    ATTUNE_INIT(filter);
    filter.match = "plain wor*";
    int code = attune_store_query(store, &filter, &cursor, err);
    attune_cursor_close(cursor);
    return code;
}

/* Feedback under a fault may be refused at the door for want of memory. */
static void give_feedback(struct life *life, unsigned from) {
    for (unsigned i = from; i < life->ledger->n; i += 3)
        if (!life->ledger->row[i].forgetting)
            fine(life, "feedback", torture_feedback(life->f->store, life->ledger, i, &life->f->err));
}

static void work(struct life *life) {
    static const unsigned chosen[] = {2, 7};
    struct fixture *f = life->f;
    attune_store_statistics statistics;
    ATTUNE_INIT(statistics);
    for (int i = 0; i < ROWS; i++) fine(life, "record", torture_record(f->store, life->ledger, NULL, &f->err));
    give_feedback(life, 0);
    int flushed = fine(life, "flush", torture_flush(f->store, life->ledger, &f->err));
    for (int i = 0; i < MORE; i++) fine(life, "record more", torture_record(f->store, life->ledger, NULL, &f->err));
    give_feedback(life, 1);
    flushed &= fine(life, "flush more", torture_flush(f->store, life->ledger, &f->err));
    fine(life, "examples", store_examples(f->store, NULL, take_example, NULL, &f->err));
    fine(life, "query", read_all(f->store, &f->err));
    fine(life, "search", search(f->store, &f->err));
    fine(life, "maintain", attune_store_maintain(f->store, 0, &f->err));
    fine(life, "statistics", attune_store_statistics_get(f->store, &statistics, &f->err));
    if (life->forget && life->ledger->row[2].known && life->ledger->row[7].known)
        fine(life, "forget", torture_forget(f->store, life->ledger, chosen, 2, &f->err));
    if (life->suspend) {
        fine(life, "suspend", attune_store_suspend(f->store, &f->err));
        if (!fine(life, "resume", attune_store_resume(f->store, &f->err))) {
            faulty_clear();
            OK(attune_store_resume(f->store, &f->err));
        }
    }
    /* What could not be queued is not missed; all that was, comes through. */
    if (!flushed) fine(life, "flush again", torture_flush(f->store, life->ledger, &f->err));
}

/* The fault is over: the same handle delivers what is queued. */
static void go_on(struct life *life) {
    struct fixture *f = life->f;
    static const unsigned chosen[] = {2, 7};
    life->wanted = life->also = ATTUNE_OK;
    fine(life, "flush afterwards", torture_flush(f->store, life->ledger, &f->err));
    if (life->ledger->row[2].forgetting && !life->ledger->row[2].forgotten) {
        int code = torture_forget(f->store, life->ledger, chosen, 2, &f->err);
        if (code != ATTUNE_ERROR_NOT_FOUND) /* gone already, when the call was cut short behind its work */
            fine(life, "forget afterwards", code);
        else
            life->ledger->row[2].forgotten = life->ledger->row[7].forgotten = 1;
    }
    if (!life->ledger->row[0].known) return;
    fine(life, "feedback afterwards", torture_feedback(f->store, life->ledger, 0, &f->err));
    fine(life, "flush at last", torture_flush(f->store, life->ledger, &f->err));
    fine(life, "examples afterwards", store_examples(f->store, NULL, take_example, NULL, &f->err));
    fine(life, "maintain afterwards", attune_store_maintain(f->store, 0, &f->err));
    fine(life, "search afterwards", search(f->store, &f->err));
}

static void check(struct life *life, const char *when) {
    struct torture_check check;
    if (torture_check_begin(&check, &life->ledger, 1)) torture_check(&check, life->f->store);
    if (check.problem[0]) note(life, when, check.problem);
    torture_check_end(&check);
}

/* ---- a fault ---- */

struct fault {
    const char *name;
    unsigned classes; /* 0: of memory */
    int heap;         /* of the C library's, else of SQLite's */
    int flags, rc;
    int wanted, also;
    int forget, suspend, normal, lost, encrypted;
    int hidden; /* the busy handler has it in hand: nobody is told */
    int every; /* of so many operations one is tried in the short run */
};

static void arm(const struct fault *fault, uint64_t n) {
    if (fault->classes)
        faulty_set(fault->classes, n, fault->flags, fault->rc);
    else if (fault->heap)
        faulty_heap_fail(n, fault->flags);
    else
        faulty_malloc_fail(n, fault->flags);
}

static uint64_t fired(const struct fault *fault) {
    return fault->classes ? faulty_fired() : fault->heap ? faulty_heap_fired() : faulty_malloc_fired();
}

static const unsigned char key[ATTUNE_KEY_BYTES] = {4, 5, 6};

/* A copy of a store that `f` has made, so that each life begins with the same. */
static void make_home(struct fixture *f, int encrypted, char home[64]) {
    char path[128], bytes[4096];
    strcpy(home, "/tmp/attune-life-XXXXXX");
    assert_non_null(mkdtemp(home));
    snprintf(path, sizeof path, "%s/store.db", home);
    FILE *from = fopen(in_home(f, encrypted ? "encrypted/store.db" : "store.db"), "rb"), *to = fopen(path, "wb");
    assert_true(from && to);
    for (size_t n; (n = fread(bytes, 1, sizeof bytes, from)) > 0;) assert_int_equal(fwrite(bytes, 1, n, to), n);
    fclose(from);
    assert_int_equal(fclose(to), 0);
}

/* What the disk holds when the power goes now. */
static void check_cut(struct life *life, const char *home) {
    char image[] = "/tmp/attune-image-XXXXXX";
    struct fixture *f = life->f;
    attune_store *store = f->store;
    assert_non_null(mkdtemp(image));
    assert_int_equal(faulty_power_cut(home, image, 0), 0);
    f->store = NULL;
    if (fine(life, "open after the cut", attune_store_open(image, NULL, &f->store, &f->err)))
        check(life, "after the cut");
    attune_store_close(f->store);
    f->store = store;
    remove_folder(image);
}

/* One life with the n-th operation failing. 0: it ended before. */
static int try(struct fixture *outer, struct life *life, const struct fault *fault, uint64_t n) {
    struct fixture f = {0};
    make_home(outer, fault->encrypted, f.home);
    memset(life->ledger, 0, sizeof *life->ledger);
    life->f = &f;
    life->wanted = fault->wanted;
    life->also = fault->also;
    life->forget = fault->forget;
    life->suspend = fault->suspend;
    ATTUNE_INIT(life->options);
    life->options.busy_timeout_ms = BUSY_MS;
    life->options.group_ms = 1;
    life->options.key = fault->encrypted ? key : NULL;
    life->options.durability = fault->normal ? ATTUNE_DURABILITY_NORMAL : ATTUNE_DURABILITY_FULL;

    arm(fault, n);
    int opened = fine(life, "open", attune_store_open(f.home, &life->options, &f.store, &f.err));
    if (!opened) {
        faulty_clear();
        assert_null(f.store);
        opened = fine(life, "open afterwards", attune_store_open(f.home, &life->options, &f.store, &f.err));
    }
    if (opened) {
        work(life);
        if (n % 4 == 3 && (fault->flags & FAULTY_ONWARD)) { /* closed while it lasts: what was flushed is there */
            attune_store_close(f.store);
            f.store = NULL;
            faulty_clear();
            life->wanted = life->also = ATTUNE_OK;
            fine(life, "open after closing", attune_store_open(f.home, &life->options, &f.store, &f.err));
        } else {
            faulty_clear();
            go_on(life);
        }
        check(life, "in the same handle");
        if (fault->lost) check_cut(life, f.home);
        attune_store_close(f.store);
        f.store = NULL;
        if (fine(life, "open at last", attune_store_open(f.home, &life->options, &f.store, &f.err)))
            check(life, "reopened");
    }
    attune_store_close(f.store);
    faulty_clear();
    remove_folder(f.home);
    faulty_forget();
    return fired(fault) > 0;
}

static void try_all(void **state, const struct fault *fault) {
    struct fixture *f = *state;
    struct life life = {.failed = 0};
    uint64_t seed = torture_seed(21), n = 0, tried = 0;
    int reached = 1;
    assert_non_null(life.ledger = malloc(sizeof *life.ledger));
    while (reached) {
        n += torture_full() ? 1 : 1 + random_u64(seed, n) % (uint64_t)(2 * fault->every - 1);
        reached = try(f, &life, fault, n);
        tried++;
        if (life.problem[0]) break;
    }
    free(life.ledger);
    print_message("%s: %" PRIu64 " of %" PRIu64 " operations failed, %u calls told it\n", fault->name, tried, n,
                  life.failed);
    if (life.problem[0]) fail_msg("%s, operation %" PRIu64 ": %s", fault->name, n, life.problem);
    assert_true(fault->hidden ? life.failed == 0 : life.failed > 0);
}

static void try_table(void **state, const struct fault *faults, size_t n) {
    const char *only = getenv("ATTUNE_TEST_FAULT");
    for (size_t i = 0; i < n; i++)
        if (!only || strstr(faults[i].name, only)) try_all(state, &faults[i]);
}

/* ---- tests ---- */

static void test_io_once(void **state) {
    static const struct fault faults[] = {
        {"a write", FAULTY_WRITE, 0, 0, SQLITE_IOERR_WRITE, ATTUNE_ERROR_IO, 0, .every = 3},
        {"half a write", FAULTY_WRITE, 0, FAULTY_HALF, SQLITE_FULL, ATTUNE_ERROR_IO, 0, .every = 5, .suspend = 1},
        {"a sync", FAULTY_SYNC, 0, 0, SQLITE_IOERR_FSYNC, ATTUNE_ERROR_IO, 0, .every = 1, .forget = 1},
        {"a sync, then sleep", FAULTY_SYNC, 0, 0, SQLITE_IOERR_FSYNC, ATTUNE_ERROR_IO, 0, .every = 1, .suspend = 1},
        {"a sync that loses", FAULTY_SYNC, 0, FAULTY_LOST, SQLITE_IOERR_FSYNC, ATTUNE_ERROR_IO, 0, .every = 1,
         .lost = 1},
        {"a sync in groups", FAULTY_SYNC, 0, FAULTY_LOST, SQLITE_IOERR_FSYNC, ATTUNE_ERROR_IO, 0, .every = 1,
         .normal = 1, .lost = 1},
        {"a truncation", FAULTY_TRUNCATE, 0, 0, SQLITE_IOERR_TRUNCATE, ATTUNE_ERROR_IO, 0, .every = 1, .forget = 1,
         .suspend = 1},
        {"an open", FAULTY_OPEN, 0, 0, SQLITE_CANTOPEN, ATTUNE_ERROR_IO, 0, .every = 1, .suspend = 1},
        {"a read", FAULTY_READ, 0, 0, SQLITE_IOERR_READ, ATTUNE_ERROR_IO, 0, .every = 6, .suspend = 1},
        {"a lock", FAULTY_LOCK, 0, 0, SQLITE_IOERR_LOCK, ATTUNE_ERROR_IO, 0, .every = 8},
        {"a busy lock", FAULTY_LOCK, 0, 0, SQLITE_BUSY, ATTUNE_ERROR_BUSY, 0, .every = 12, .hidden = 1},
        {"shared memory", FAULTY_SHM, 0, 0, SQLITE_IOERR_SHMMAP, ATTUNE_ERROR_IO, 0, .every = 1, .suspend = 1},
        {"a look", FAULTY_LOOK, 0, 0, SQLITE_IOERR_FSTAT, ATTUNE_ERROR_IO, 0, .every = 4, .suspend = 1},
    };
    try_table(state, faults, sizeof faults / sizeof faults[0]);
}

static void test_io_onward(void **state) {
    static const struct fault faults[] = {
        {"full", FAULTY_WRITE, 0, FAULTY_ONWARD | FAULTY_HALF, SQLITE_FULL, ATTUNE_ERROR_IO, 0, .every = 5, .forget = 1,
         .suspend = 1},
        {"no sync", FAULTY_SYNC, 0, FAULTY_ONWARD, SQLITE_IOERR_FSYNC, ATTUNE_ERROR_IO, 0, .every = 1, .suspend = 1},
        {"no sync in groups", FAULTY_SYNC, 0, FAULTY_ONWARD | FAULTY_LOST, SQLITE_IOERR_FSYNC, ATTUNE_ERROR_IO, 0,
         .every = 1, .normal = 1, .lost = 1},
        {"read only", FAULTY_CHANGE, 0, FAULTY_ONWARD, SQLITE_READONLY, ATTUNE_ERROR_IO, 0, .every = 7},
        {"no open", FAULTY_OPEN, 0, FAULTY_ONWARD, SQLITE_CANTOPEN, ATTUNE_ERROR_IO, 0, .every = 1, .suspend = 1},
        {"no read", FAULTY_READ, 0, FAULTY_ONWARD, SQLITE_IOERR_READ, ATTUNE_ERROR_IO, 0, .every = 9},
        {"no lock", FAULTY_LOCK, 0, FAULTY_ONWARD, SQLITE_IOERR_LOCK, ATTUNE_ERROR_IO, 0, .every = 12, .suspend = 1},
        {"nothing", FAULTY_ALL, 0, FAULTY_ONWARD, SQLITE_IOERR, ATTUNE_ERROR_IO, 0, .every = 30, .suspend = 1},
    };
    try_table(state, faults, sizeof faults / sizeof faults[0]);
}

static void test_sqlite_memory(void **state) {
    static const struct fault faults[] = {
        {"an allocation", 0, 0, 0, 0, ATTUNE_ERROR_MEMORY, 0, .every = 350},
        {"an allocation with sleep", 0, 0, 0, 0, ATTUNE_ERROR_MEMORY, 0, .every = 700, .suspend = 1},
        {"an allocation with forgetting", 0, 0, 0, 0, ATTUNE_ERROR_MEMORY, 0, .every = 500, .forget = 1},
        {"no allocation", 0, 0, FAULTY_ONWARD, 0, ATTUNE_ERROR_MEMORY, 0, .every = 500},
    };
    try_table(state, faults, sizeof faults / sizeof faults[0]);
}

static void test_heap(void **state) {
    static const struct fault faults[] = {
        {"a malloc", 0, 1, 0, 0, ATTUNE_ERROR_MEMORY, 0, .every = 120},
        {"a malloc with forgetting", 0, 1, 0, 0, ATTUNE_ERROR_MEMORY, 0, .every = 200, .forget = 1},
        {"a malloc, encrypted", 0, 1, 0, 0, ATTUNE_ERROR_MEMORY, 0, .every = 250, .encrypted = 1},
        {"no malloc", 0, 1, FAULTY_ONWARD, 0, ATTUNE_ERROR_MEMORY, 0, .every = 200},
    };
    if (!faulty_heap_linked()) skip();
    try_table(state, faults, sizeof faults / sizeof faults[0]);
}

/* ---- fixture ---- */

/* Stores that are whole in store.db alone. */
static int setup(void **state) {
    if (bare_setup(state) != 0) return -1;
    struct fixture *f = *state;
    const char *encrypted = in_home(f, "encrypted");
    if (store_create(f->home, 1, &f->err) != ATTUNE_OK || mkdir(encrypted, 0700) != 0) return -1;
    return store_create_encrypted(encrypted, 1, key, NULL, &f->err);
}

static int teardown(void **state) {
    faulty_clear();
    faulty_forget();
    return store_teardown(state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_io_once, setup, teardown),
        cmocka_unit_test_setup_teardown(test_io_onward, setup, teardown),
        cmocka_unit_test_setup_teardown(test_sqlite_memory, setup, teardown),
        cmocka_unit_test_setup_teardown(test_heap, setup, teardown),
    };
    json_set_alloc_funcs(malloc, free);
    if (faulty_malloc_install() != SQLITE_OK || faulty_install() != SQLITE_OK) return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
