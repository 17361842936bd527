/* Checkpoints and writers keep out of each other's way in all processes, as SQLite before 3.51.3 needs it
 * (sqlite.org/wal.html, "WAL-reset bug"): seen at every single write to the files, in the process that does it. */
#include "tests/store_fixture.h"

#include <errno.h>
#include <stdatomic.h>
#include <sys/file.h>
#include <sys/mman.h>

#include "datastore/handle.h"
#include "tests/faulty_vfs.h"

enum {
    WRITERS = 4,
    BIG = 100 << 10,    /* bytes of a row of the first phase */
    BIG_ROWS = 60,      /* of each writer: the log passes its limit several times */
    ROUNDS = 60,        /* of the second phase, each with a checkpoint */
    SHM_WRITE_LOCK = 120 /* byte of store.db-shm that a writer holds locked (sqlite.org/walformat.html) */
};

/* ---- what is seen ---- */

struct seen {
    _Atomic unsigned folding; /* changes of store.db, truncations of the log */
    _Atomic unsigned writing; /* writes of the log */
    _Atomic int wrong;
    char what[200]; /* the first thing that was wrong */
};

static struct seen *seen;         /* shared by all processes */
static char lock_path[128];       /* of store.lock */
static int shm = -1;              /* never closed while the store is open: that would drop SQLite's locks on it */

static void complain(const char *what, const struct faulty_op *op) {
    if (atomic_fetch_add(&seen->wrong, 1) == 0)
        snprintf(seen->what, sizeof seen->what, "%s: class %u of %.100s", what, op->class, op->path);
}

/* Whether store.lock can be had like this right now by somebody who does not hold it. */
static int is_free(int operation) {
    int fd = open(lock_path, O_RDWR | O_CLOEXEC);
    int is = fd >= 0 && flock(fd, operation | LOCK_NB) == 0;
    if (fd >= 0) close(fd);
    return is;
}

/* SQLite's own lock for writing: whether another process holds it. */
static int others_write(void) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = SHM_WRITE_LOCK, .l_len = 1};
    return shm < 0 || fcntl(shm, F_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

static void look(const struct faulty_op *op, void *user) {
    (void)user;
    size_t n = op->path ? strlen(op->path) : 0;
    int is_log = n > 4 && strcmp(op->path + n - 4, "-wal") == 0;
    int is_store = n > 3 && strcmp(op->path + n - 3, ".db") == 0;
    if (op->done || (!is_log && !is_store)) return;
    if (is_store || op->class == FAULTY_TRUNCATE) {
        if (is_free(LOCK_SH)) complain("folding the log without the lock", op);
        if (others_write()) complain("folding the log while another process writes", op);
        atomic_fetch_add(&seen->folding, 1);
    } else if (op->class == FAULTY_WRITE) {
        if (is_free(LOCK_EX)) complain("writing without the lock", op);
        if (!is_free(LOCK_SH)) complain("writing while another folds the log", op);
        atomic_fetch_add(&seen->writing, 1);
    }
}

static void watch(const struct fixture *f) {
    snprintf(lock_path, sizeof lock_path, "%s/store.lock", f->home);
    faulty_at(0, look, NULL);
    faulty_set(FAULTY_CHANGE, 0, 0, SQLITE_OK);
}

/* ---- rows ---- */

static int record_big(attune_store *store, size_t bytes, attune_error *err) {
    static char text[BIG + 1];
    attune_interaction in;
    ATTUNE_INIT(in);
    memset(text, 'x', bytes);
    text[bytes] = '\0';
    in.prompt = "a long answer, please";
    in.response = text;
    return attune_store_record(store, &in, NULL, err);
}

static void fold(attune_store *store) {
    attune_error err;
    if (store_enter(store, &err) != ATTUNE_OK) return;
    store_checkpoint(store);
    store_leave(store);
}

/* ---- many processes ---- */

static int work(struct fixture *f, unsigned number) {
    attune_store_options options;
    ATTUNE_INIT(options);
    options.busy_timeout_ms = 30000;
    options.group_ms = 1;
    options.durability = number % 2 ? ATTUNE_DURABILITY_NORMAL : ATTUNE_DURABILITY_FULL;
    int code = attune_store_open(f->home, &options, &f->store, &f->err);
    if (code == ATTUNE_OK) shm = open(in_home(f, "store.db-shm"), O_RDWR | O_CLOEXEC);
    for (int i = 0; i < BIG_ROWS && code == ATTUNE_OK; i++) {
        code = record_big(f->store, BIG, &f->err);
        if (code == ATTUNE_OK && i % 5 == 4) code = attune_store_flush(f->store, &f->err);
    }
    for (int i = 0; i < ROUNDS && code == ATTUNE_OK; i++) {
        code = record(f->store, "a short question", "a short answer", 0, NULL, &f->err);
        if (i % 20 == 7 && code == ATTUNE_OK) code = attune_store_maintain(f->store, 0.01, &f->err);
        if (i % 20 == 13 && code == ATTUNE_OK) code = attune_store_suspend(f->store, &f->err);
        if (i % 20 == 13 && code == ATTUNE_OK) code = attune_store_resume(f->store, &f->err);
        if (code >= 0) code = ATTUNE_OK;
        fold(f->store);
    }
    attune_store_close(f->store);
    if (code != ATTUNE_OK) fprintf(stderr, "writer %u: %s\n", number, f->err.message);
    return code == ATTUNE_OK ? 0 : 1;
}

static void test_many_processes(void **state) {
    struct fixture *f = *state;
    pid_t pid[WRITERS];
    int status;
    watch(f);
    for (unsigned i = 0; i < WRITERS; i++)
        if ((pid[i] = fork()) == 0) _exit(work(f, i));
    for (unsigned i = 0; i < WRITERS; i++) {
        assert_int_equal(waitpid(pid[i], &status, 0), pid[i]);
        assert_int_equal(status, 0);
    }
    faulty_clear();
    print_message("%u writes of the log, %u changes beside it\n", atomic_load(&seen->writing),
                  atomic_load(&seen->folding));
    if (atomic_load(&seen->wrong)) fail_msg("%d times; first: %s", atomic_load(&seen->wrong), seen->what);
    OK(store_open_path(f->home, 0, &f->store, &f->err));
    assert_sound(f);
    assert_int_equal(count_interactions(f), WRITERS * (BIG_ROWS + ROUNDS));
    assert_true(atomic_load(&seen->folding) > WRITERS * ROUNDS);
    assert_true(atomic_load(&seen->writing) > WRITERS * ROUNDS);
}

/* ---- SQLite by itself ---- */

static int64_t pragma(sqlite3 *db, const char *sql) {
    sqlite3_stmt *statement = NULL;
    assert_int_equal(sqlite3_prepare_v2(db, sql, -1, &statement, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_step(statement), SQLITE_ROW);
    int64_t value = sqlite3_column_int64(statement, 0);
    sqlite3_finalize(statement);
    return value;
}

static void assert_no_own_checkpoints(sqlite3 *db) {
    int on_close = 0;
    assert_int_equal(pragma(db, "PRAGMA wal_autocheckpoint"), 0);
    assert_int_equal(sqlite3_db_config(db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, -1, &on_close), SQLITE_OK);
    assert_int_equal(on_close, 1);
}

/* While somebody holds the lock as a writer does, the log grows far beyond what SQLite by itself would fold. */
static void test_nobody_else_folds(void **state) {
    struct fixture *f = *state;
    struct stat info;
    watch(f);
    OK(store_open_path(f->home, 0, &f->store, &f->err));
    shm = open(in_home(f, "store.db-shm"), O_RDWR | O_CLOEXEC);
    int holder = open(lock_path, O_RDWR | O_CLOEXEC);
    assert_int_equal(flock(holder, LOCK_SH), 0);
    for (int i = 0; i < 120; i++) {
        OK(record_big(f->store, BIG, &f->err));
        if (i % 20 == 19) OK(attune_store_flush(f->store, &f->err));
    }
    OK(attune_store_maintain(f->store, 0, &f->err)); /* the handle's own connection writes, too */
    OK(store_consent_set(f->store, 0, &f->err));
    assert_no_own_checkpoints(f->store->db);
    assert_non_null(f->store->writer);
    assert_no_own_checkpoints(f->store->writer->db);
    attune_store_close(f->store);
    f->store = NULL;
    assert_int_equal(atomic_load(&seen->folding), 0);
    assert_int_equal(stat(in_home(f, "store.db-wal"), &info), 0);
    assert_true(info.st_size > 1000 * 8192); /* SQLite's own limit, in pages */

    close(holder); /* the next one who writes does it */
    OK(store_open_path(f->home, 0, &f->store, &f->err));
    OK(record(f->store, "one more", "row", 0, NULL, &f->err));
    assert_true(atomic_load(&seen->folding) > 0);
    assert_int_equal(stat(in_home(f, "store.db-wal"), &info), 0);
    assert_int_equal(info.st_size, 0);
    if (atomic_load(&seen->wrong)) fail_msg("%d times; first: %s", atomic_load(&seen->wrong), seen->what);
    assert_int_equal(count_interactions(f), 121);
    assert_sound(f);
}

/* ---- fixture ---- */

/* Nobody has the store open. */
static int setup(void **state) {
    if (store_setup(state) != 0) return -1;
    struct fixture *f = *state;
    attune_store_close(f->store);
    f->store = NULL;
    memset(seen, 0, sizeof *seen);
    return 0;
}

static int teardown(void **state) {
    int code = store_teardown(state);
    faulty_clear();
    faulty_forget();
    if (shm >= 0) close(shm);
    shm = -1;
    return code;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_nobody_else_folds, setup, teardown),
        cmocka_unit_test_setup_teardown(test_many_processes, setup, teardown),
    };
    seen = mmap(NULL, sizeof *seen, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (seen == MAP_FAILED || faulty_install() != SQLITE_OK) return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
