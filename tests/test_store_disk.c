/* A disk that is full, files that may not be written, and other programs that hold the store: calls fail cleanly,
 * nothing that was queued or flushed is lost, and the same handle goes on afterwards. */
#define _GNU_SOURCE
#include "tests/store_fixture.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include "tests/torture.h"

/* ---- shorthands ---- */

static struct torture_ledger ledger;

static void open_store(struct fixture *f, int busy_ms) {
    attune_store_options options;
    ATTUNE_INIT(options);
    options.busy_timeout_ms = busy_ms;
    options.group_ms = 1;
    OK(attune_store_open(f->home, &options, &f->store, &f->err));
}

static void record_rows(struct fixture *f, int n) {
    for (int i = 0; i < n; i++) {
        unsigned number = 0;
        OK(torture_record(f->store, &ledger, &number, &f->err));
        OK(torture_feedback(f->store, &ledger, number, &f->err));
    }
}

/* Seen by a handle of its own, which has nothing to write. */
static void assert_kept(struct fixture *f, int64_t rows, int64_t feedback_rows) {
    struct torture_ledger *const one = &ledger;
    struct torture_check check;
    attune_store *store = NULL;
    OK(attune_store_open(f->home, NULL, &store, &f->err));
    if (torture_check_begin(&check, &one, 1)) torture_check(&check, store);
    torture_check_end(&check);
    attune_store_close(store);
    assert_string_equal(check.problem, "");
    assert_int_equal(check.rows, rows);
    assert_int_equal(check.feedback, feedback_rows);
}

/* All that was recorded, by the same handle and for whoever opens the store next. */
static void assert_delivered(struct fixture *f, int64_t rows) {
    OK(torture_flush(f->store, &ledger, &f->err));
    assert_kept(f, rows, rows);
    attune_store_close(f->store);
    f->store = NULL;
    assert_kept(f, rows, rows);
}

static attune_store_statistics statistics_of(struct fixture *f) {
    attune_store_statistics s;
    ATTUNE_INIT(s);
    OK(attune_store_statistics_get(f->store, &s, &f->err));
    return s;
}

/* ---- a full disk ---- */

/* Some rows are on the disk when it is full; more are recorded, and wait. */
static void fill_up(struct fixture *f, const char *word) {
    record_rows(f, 100);
    FAILS(attune_store_flush(f->store, &f->err), ATTUNE_ERROR_IO, word, "store.db");
    attune_store_statistics s = statistics_of(f);
    assert_int_equal(s.writer_code, ATTUNE_ERROR_IO);
    assert_true(s.queued_rows > 0);
    assert_int_equal(s.dropped + s.refused, 0);
    record_rows(f, 10);
    FAILS(attune_store_flush(f->store, &f->err), ATTUNE_ERROR_IO, word, "store.db");
    s = statistics_of(f);
    assert_int_equal(s.interactions + s.feedback + s.queued_rows, 230);
    assert_kept(f, s.interactions, s.feedback);
}

/* The largest file that may be written, in place of a disk: works without any rights. */
static void test_file_limit(void **state) {
    struct fixture *f = *state;
    struct rlimit before, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, SIG_IGN);
    open_store(f, 0);
    record_rows(f, 5);
    OK(torture_flush(f->store, &ledger, &f->err));
    small = (struct rlimit){.rlim_cur = 200 << 10, .rlim_max = before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    fill_up(f, "cannot");
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, SIG_DFL);
    assert_delivered(f, 115);
}

/* A file system of 2 MiB. 0: this process may not have one. */
static int mount_small(const char *folder) {
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0) return 0;
    return mount("attune-test", folder, "tmpfs", 0, "size=2m") == 0;
}

static void write_ballast(const struct fixture *f) {
    static const char zeros[4096];
    int fd = open(in_home(f, "ballast"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    while (write(fd, zeros, sizeof zeros) == (ssize_t)sizeof zeros) {
    }
    assert_int_equal(errno, ENOSPC);
    close(fd);
}

static void test_full_disk(void **state) {
    struct fixture *f = *state;
    if (!mount_small(f->home)) skip();
    OK(store_create(f->home, 1, &f->err));
    open_store(f, 0);
    record_rows(f, 5);
    OK(torture_flush(f->store, &ledger, &f->err));
    write_ballast(f);
    fill_up(f, "no space");
    assert_int_equal(unlink(in_home(f, "ballast")), 0);
    assert_delivered(f, 115);
    attune_store_close(f->store);
    f->store = NULL;
    umount2(f->home, MNT_DETACH);
}

/* ---- files that may not be written ---- */

/* What a child found wrong; "": nothing. */
typedef void (*child_work)(struct fixture *f, char *problem, size_t size);

/* Runs where file modes count: as nobody, if this is root. */
static void as_somebody(struct fixture *f, child_work work) {
    char problem[500] = "";
    int pipe_fds[2], status;
    assert_int_equal(pipe(pipe_fds), 0);
    pid_t child = fork();
    if (child == 0) {
        if (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0))
            snprintf(problem, sizeof problem, "cannot become nobody");
        else
            work(f, problem, sizeof problem);
        _exit(write(pipe_fds[1], problem, sizeof problem) == (ssize_t)sizeof problem ? 0 : 1);
    }
    close(pipe_fds[1]);
    assert_int_equal(read(pipe_fds[0], problem, sizeof problem), sizeof problem);
    close(pipe_fds[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_string_equal(problem, "");
}

/* Opening, or the first flush, is refused with a reason as long as `path` has this mode; then the store is as it was.
 */
static void refuse(struct fixture *f, const char *path, mode_t mode, char *problem, size_t size) {
    struct stat info;
    attune_store *store = NULL;
    int64_t rows = -1;
    memset(&f->err, 0, sizeof f->err);
    if (problem[0]) return;
    if (stat(path, &info) != 0 || chmod(path, mode) != 0) {
        snprintf(problem, size, "%s: the test cannot change its mode", path);
        return;
    }
    int code = attune_store_open(f->home, NULL, &store, &f->err);
    if (code == ATTUNE_OK) code = record(store, "not to be kept", "as it cannot be", 0, NULL, &f->err);
    if (code != ATTUNE_ERROR_IO || f->err.code != code || !f->err.message[0])
        snprintf(problem, size, "%s: opening gives %d: %s", path, code, f->err.message);
    attune_store_close(store);
    store = NULL;
    chmod(path, info.st_mode & 07777);
    if (problem[0]) return;
    code = attune_store_open(f->home, NULL, &store, &f->err);
    if (code == ATTUNE_OK) code = store_counts(store, &rows, NULL, NULL, NULL, &f->err);
    if (code != ATTUNE_OK || rows != 5)
        snprintf(problem, size, "%s: afterwards %d: %s, %d rows", path, code, f->err.message, (int)rows);
    attune_store_close(store);
}

static void refuse_all(struct fixture *f, char *problem, size_t size) {
    refuse(f, in_home(f, "store.db"), 0400, problem, size);
    refuse(f, in_home(f, "store.db"), 0, problem, size);
    refuse(f, in_home(f, "store.lock"), 0400, problem, size);
    refuse(f, in_home(f, "store.db-shm"), 0400, problem, size);
    refuse(f, f->home, 0, problem, size);
    unlink(in_home(f, "store.lock"));
    refuse(f, f->home, 0500, problem, size);
    unlink(in_home(f, "store.db-wal"));
    refuse(f, f->home, 0500, problem, size);
}

static void test_modes(void **state) {
    static const char *const names[] = {"", "store.db", "store.db-wal", "store.db-shm", "store.lock"};
    struct fixture *f = *state;
    open_store(f, 0);
    record_rows(f, 5);
    OK(torture_flush(f->store, &ledger, &f->err));
    attune_store_close(f->store);
    f->store = NULL;
    for (size_t i = 0; geteuid() == 0 && i < sizeof names / sizeof names[0]; i++)
        assert_int_equal(chown(in_home(f, names[i]), 65534, 65534), 0);
    as_somebody(f, refuse_all);
    assert_kept(f, 5, 5);
}

/* ---- other programs ---- */

/* A program that holds the store until it is told to let go. */
struct holder {
    pid_t pid;
    int tell;
};

static void hold_flock(const struct fixture *f) {
    int fd = open(in_home(f, "store.lock"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || flock(fd, LOCK_EX) != 0) _exit(1);
}

static void hold_by(const struct fixture *f, const char *sql) {
    sqlite3 *db = NULL;
    if (sqlite3_open(in_home(f, "store.db"), &db) != SQLITE_OK || sqlite3_exec(db, sql, NULL, NULL, NULL) != SQLITE_OK)
        _exit(1);
}

static void hold_transaction(const struct fixture *f) { hold_by(f, "BEGIN EXCLUSIVE"); }
static void hold_alone(const struct fixture *f) { hold_by(f, "PRAGMA locking_mode = EXCLUSIVE; BEGIN IMMEDIATE"); }

/* Forked before this process opens the store: SQLite cannot be carried into a child. It begins to hold when the first
 * byte is written to `tell`, says so, and lets go when `tell` is closed. */
static struct holder make_holder(const struct fixture *f, void (*hold)(const struct fixture *f), int *told) {
    int to[2], from[2];
    char byte;
    assert_int_equal(pipe2(to, O_CLOEXEC) | pipe2(from, O_CLOEXEC), 0);
    pid_t pid = fork();
    if (pid == 0) {
        close(to[1]);
        if (read(to[0], &byte, 1) != 1) _exit(1);
        hold(f);
        if (write(from[1], "h", 1) != 1) _exit(1);
        _exit(read(to[0], &byte, 1) == 0 ? 0 : 1);
    }
    close(to[0]);
    close(from[1]);
    *told = from[0];
    return (struct holder){pid, to[1]};
}

static void begin_holding(struct holder *holder, int told) {
    char byte = 0;
    assert_int_equal(write(holder->tell, "g", 1), 1);
    assert_int_equal(read(told, &byte, 1), 1);
    close(told);
}

static void let_go(struct holder *holder) {
    int status;
    close(holder->tell);
    assert_int_equal(waitpid(holder->pid, &status, 0), holder->pid);
    assert_int_equal(status, 0);
}

/* Recording does not notice; a flush says so, and the next one after it is over delivers. */
static void check_held(struct fixture *f, void (*hold)(const struct fixture *f)) {
    int told;
    struct holder holder = make_holder(f, hold, &told);
    open_store(f, 30);
    record_rows(f, 3);
    OK(torture_flush(f->store, &ledger, &f->err));
    begin_holding(&holder, told);
    record_rows(f, 20);
    FAILS(attune_store_flush(f->store, &f->err), ATTUNE_ERROR_BUSY, "try again", "store.db");
    record_rows(f, 20);
    FAILS(attune_store_flush(f->store, &f->err), ATTUNE_ERROR_BUSY, "try again", "store.db");
    attune_store_statistics s = statistics_of(f);
    assert_int_equal(s.interactions, 3);
    assert_int_equal(s.queued_rows, 80);
    assert_int_equal(s.writer_code, ATTUNE_ERROR_BUSY);
    FAILS(attune_store_maintain(f->store, 0, &f->err), ATTUNE_ERROR_BUSY, "try again", "store.db");
    assert_kept(f, 3, 3);
    let_go(&holder);
    assert_delivered(f, 43);
}

static void test_locked_file(void **state) { check_held(*state, hold_flock); }
static void test_locked_transaction(void **state) { check_held(*state, hold_transaction); }

/* Whoever closes meanwhile loses what is queued and nothing else. */
static void test_closed_while_locked(void **state) {
    struct fixture *f = *state;
    int told;
    struct holder holder = make_holder(f, hold_transaction, &told);
    open_store(f, 30);
    record_rows(f, 3);
    OK(torture_flush(f->store, &ledger, &f->err));
    begin_holding(&holder, told);
    record_rows(f, 5);
    attune_store_close(f->store);
    f->store = NULL;
    let_go(&holder);
    assert_kept(f, 3, 3);
}

static void test_opened_while_held_alone(void **state) {
    struct fixture *f = *state;
    attune_store_options options;
    int told;
    struct holder holder = make_holder(f, hold_alone, &told);
    begin_holding(&holder, told);
    ATTUNE_INIT(options);
    options.busy_timeout_ms = 30;
    FAILS(attune_store_open(f->home, &options, &f->store, &f->err), ATTUNE_ERROR_BUSY, "try again", "store.db");
    let_go(&holder);
    open_store(f, 0);
    record_rows(f, 2);
    assert_delivered(f, 2);
}

/* ---- fixture ---- */

static int setup(void **state) {
    memset(&ledger, 0, sizeof ledger);
    if (bare_setup(state) != 0) return -1;
    struct fixture *f = *state;
    return store_create(f->home, 1, &f->err);
}

static int bare(void **state) {
    memset(&ledger, 0, sizeof ledger);
    return bare_setup(state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_file_limit, setup, store_teardown),
        cmocka_unit_test_setup_teardown(test_modes, setup, store_teardown),
        cmocka_unit_test_setup_teardown(test_locked_file, setup, store_teardown),
        cmocka_unit_test_setup_teardown(test_locked_transaction, setup, store_teardown),
        cmocka_unit_test_setup_teardown(test_closed_while_locked, setup, store_teardown),
        cmocka_unit_test_setup_teardown(test_opened_while_held_alone, setup, store_teardown),
        cmocka_unit_test_setup_teardown(test_full_disk, bare, store_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
