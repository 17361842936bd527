#include "datastore/handle.h"

#include <errno.h>
#include <math.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "core/base/fault.h"
#include "datastore/schema.h"

enum {
    CHECKPOINT_BYTES = 4 << 20 /* of log before it is folded into store.db */
};

/* ---- clocks ---- */

static int64_t clock_ms(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int64_t store_now_ms(void) { return clock_ms(CLOCK_REALTIME); }

int64_t store_clock_ms(void) { return clock_ms(CLOCK_MONOTONIC); }

int store_is_over(int64_t until_ms) { return until_ms && store_clock_ms() >= until_ms; }

void store_sleep_ms(int64_t ms) {
    struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};
    nanosleep(&time, NULL);
}

/* ---- the lock against checkpoints ----
 * SQLite before 3.51.3 can corrupt a database when one connection writes at the moment in which
 * another one checkpoints (sqlite.org/wal.html, "WAL-reset bug"). So: SQLite never checkpoints by itself,
 * every write transaction holds store.lock shared, every checkpoint holds it exclusively. */

/* ATTUNE_ERROR_BUSY (without a message) when it was not free until `until`. */
static int lock_until(attune_store *store, int operation, int64_t until) {
    for (int64_t wait = 1;; wait = wait < 16 ? wait * 2 : 16) {
        if (flock(store->lock_fd, operation | LOCK_NB) == 0) return ATTUNE_OK;
        if (errno != EWOULDBLOCK && errno != EINTR) return ATTUNE_ERROR_IO;
        if (store_clock_ms() >= until) return ATTUNE_ERROR_BUSY;
        store_sleep_ms(wait);
    }
}

static int lock_error(attune_store *store, int code, attune_error *err) {
    if (code == ATTUNE_ERROR_IO) return error_set_errno(err, store->path, "cannot lock store.lock beside store.db");
    return store_sql_error(store, SQLITE_BUSY, "write to the store", err);
}

static void unlock(attune_store *store) { flock(store->lock_fd, LOCK_UN); }

int store_lock_alone(attune_store *store, attune_error *err) {
    int code = lock_until(store, LOCK_EX, store_clock_ms() + store->busy_ms);
    return code == ATTUNE_OK ? code : lock_error(store, code, err);
}

void store_unlock(attune_store *store) { unlock(store); }

/* Writers that wait for each other let go of the shared lock meanwhile: otherwise a store with enough
 * writers would never find the moment to checkpoint, and its log would grow without end. */
static int busy_wait(void *user, int count) {
    static const unsigned char delays[] = {1, 2, 5, 10, 15, 20, 25, 25, 50};
    attune_store *store = user;
    int64_t now = store_clock_ms();
    if (count == 0 && !store->beginning) store->busy_until = now + store->busy_ms;
    if (now >= store->busy_until) return 0;
    if (store->beginning) unlock(store);
    store_sleep_ms(delays[count < (int)sizeof delays ? count : (int)sizeof delays - 1]);
    return !store->beginning || lock_until(store, LOCK_SH, store->busy_until) == ATTUNE_OK;
}

static int wal_grown(void *user, sqlite3 *db, const char *schema, int pages) {
    (void)db, (void)schema;
    ((attune_store *)user)->wal_pages = pages;
    return SQLITE_OK;
}

void store_watch(attune_store *store) {
    sqlite3_busy_handler(store->db, busy_wait, store);
    sqlite3_wal_hook(store->db, wal_grown, store);
}

void store_checkpoint(attune_store *store) {
    if (flock(store->lock_fd, LOCK_EX | LOCK_NB) != 0) return;
    sqlite3_busy_handler(store->db, NULL, NULL);
    int rc = store->unsure ? store_rewrite_log(store) : SQLITE_OK;
    if (rc == SQLITE_OK) rc = sqlite3_wal_checkpoint_v2(store->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
    if (rc == SQLITE_OK) store->wal_pages = store->unsure = 0;
    if ((rc & 0xff) == SQLITE_IOERR) store->unsure = 1;
    sqlite3_busy_handler(store->db, busy_wait, store);
    unlock(store);
}

/* ---- errors ---- */

static const struct advice {
    int rc, code;
    const char *what_to_do;
} advices[] = {
    {SQLITE_BUSY, ATTUNE_ERROR_BUSY, "another program keeps the store locked; try again in a moment"},
    {SQLITE_LOCKED, ATTUNE_ERROR_BUSY, "another program keeps the store locked; try again in a moment"},
    {SQLITE_PROTOCOL, ATTUNE_ERROR_BUSY, "other programs keep the store locked; try again in a moment"},
    {SQLITE_NOTADB, ATTUNE_ERROR_FORMAT, "this file is no store; put it aside and restore a backup"},
    {SQLITE_CORRUPT, ATTUNE_ERROR_FORMAT, "the file is damaged; run 'attune doctor' and restore a backup"},
    {SQLITE_FULL, ATTUNE_ERROR_IO, "there is no space left, and nothing of this call was kept; free some space"},
    {SQLITE_READONLY, ATTUNE_ERROR_IO,
     "the store must be writable; see who owns it and how the file system is mounted"},
    {SQLITE_CANTOPEN, ATTUNE_ERROR_IO, "the home must be a folder in which you may write"},
    {SQLITE_PERM, ATTUNE_ERROR_IO, "the home must be a folder in which you may write"},
    {SQLITE_IOERR, ATTUNE_ERROR_IO, "the disk or its file system refused; nothing of this call was kept"},
    {SQLITE_NOMEM, ATTUNE_ERROR_MEMORY, "out of memory"},
    {SQLITE_TOOBIG, ATTUNE_ERROR_ARGUMENT, "a text is too long"},
    {SQLITE_CONSTRAINT, ATTUNE_ERROR_ARGUMENT, "a value is not allowed there"},
};

int store_sql_error(attune_store *store, int rc, const char *doing, attune_error *err) {
    const struct advice *advice = NULL;
    for (size_t i = 0; i < sizeof advices / sizeof advices[0]; i++)
        if (advices[i].rc == (rc & 0xff)) advice = &advices[i];
    int code = advice ? advice->code : ATTUNE_ERROR_INTERNAL;
    int current = store->db && (sqlite3_errcode(store->db) & 0xff) == (rc & 0xff);
    const char *said = current ? sqlite3_errmsg(store->db) : sqlite3_errstr(rc);
    int system = current ? sqlite3_system_errno(store->db) : 0;
    int about_files = system != 0 && ((rc & 0xff) == SQLITE_IOERR || (rc & 0xff) == SQLITE_CANTOPEN);
    return error_set(err, code, store->path, "cannot %s: %s%s%s%s: %s", doing, said, about_files ? " (" : "",
                     about_files ? strerror(system) : "", about_files ? ")" : "",
                     advice ? advice->what_to_do : "please report it");
}

/* ---- handles ---- */

int store_mine(const attune_store *store, attune_error *err) {
    if (!store) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the store is NULL: open it first");
    if (store->pid == getpid()) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_STATE, store->path,
                     "this store was opened before a fork: SQLite cannot be carried into the child, open it again");
}

int store_enter(attune_store *store, attune_error *err) {
    int code = store_mine(store, err);
    if (code != ATTUNE_OK) return code;
    pthread_mutex_lock(&store->mutex);
    if (store->db) return ATTUNE_OK;
    pthread_mutex_unlock(&store->mutex);
    return error_set(err, ATTUNE_ERROR_STATE, store->path, "the store is suspended: call attune_store_resume first");
}

void store_leave(attune_store *store) { pthread_mutex_unlock(&store->mutex); }

/* ---- statements ---- */

int store_exec(attune_store *store, const char *sql, const char *doing, attune_error *err) {
    int rc = sqlite3_exec(store->db, sql, NULL, NULL, NULL);
    return rc == SQLITE_OK ? ATTUNE_OK : store_sql_error(store, rc, doing, err);
}

int store_prepare(attune_store *store, int slot, const char *sql, const char *doing, sqlite3_stmt **out,
                  attune_error *err) {
    if (slot >= 0 && store->cached[slot]) {
        *out = store->cached[slot];
        return ATTUNE_OK;
    }
    sqlite3_stmt *statement = NULL;
    int rc = sqlite3_prepare_v3(store->db, sql, -1, slot >= 0 ? SQLITE_PREPARE_PERSISTENT : 0, &statement, NULL);
    if (rc != SQLITE_OK) return store_sql_error(store, rc, doing, err);
    if (slot >= 0) store->cached[slot] = statement;
    *out = statement;
    return ATTUNE_OK;
}

int store_bind(attune_store *store, sqlite3_stmt *statement, const char *doing, attune_error *err, const char *format,
               ...) {
    va_list args;
    va_start(args, format);
    int rc = SQLITE_OK;
    for (int i = 1; rc == SQLITE_OK && format[i - 1]; i++) {
        if (format[i - 1] == 't') {
            rc = sqlite3_bind_text(statement, i, va_arg(args, const char *), -1, SQLITE_STATIC);
        } else if (format[i - 1] == '-') {
            continue;
        } else if (format[i - 1] == 'h') {
            unsigned char hash[32] = {0};
            sodium_hex2bin(hash, sizeof hash, va_arg(args, const char *), HASH_HEX_SIZE - 1, NULL, NULL, NULL);
            rc = sqlite3_bind_blob(statement, i, hash, sizeof hash, SQLITE_TRANSIENT);
        } else if (format[i - 1] == 'i') {
            rc = sqlite3_bind_int64(statement, i, va_arg(args, int64_t));
        } else {
            double value = va_arg(args, double);
            rc = isnan(value) ? sqlite3_bind_null(statement, i) : sqlite3_bind_double(statement, i, value);
        }
    }
    va_end(args);
    return rc == SQLITE_OK ? ATTUNE_OK : store_sql_error(store, rc, doing, err);
}

int store_step(attune_store *store, sqlite3_stmt *statement, const char *doing, attune_error *err) {
    int rc = sqlite3_step(statement);
    if (rc == SQLITE_ROW) return ATTUNE_CONTINUE;
    if (rc == SQLITE_DONE) return ATTUNE_DONE;
    return store_sql_error(store, rc, doing, err);
}

int store_run_statement(attune_store *store, sqlite3_stmt *statement, const char *doing, attune_error *err) {
    int code = store_step(store, statement, doing, err);
    store_reset(statement);
    if (code == ATTUNE_CONTINUE)
        return error_set(err, ATTUNE_ERROR_INTERNAL, store->path, "cannot %s: got a row", doing);
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}

void store_reset(sqlite3_stmt *statement) {
    sqlite3_reset(statement);
    sqlite3_clear_bindings(statement);
}

int store_number(attune_store *store, const char *sql, const char *doing, int64_t *out, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1, sql, doing, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_step(store, statement, doing, err);
    if (code == ATTUNE_CONTINUE) *out = sqlite3_column_int64(statement, 0);
    sqlite3_finalize(statement);
    return code == ATTUNE_CONTINUE ? ATTUNE_OK : code == ATTUNE_DONE ? ATTUNE_ERROR_NOT_FOUND : code;
}

void store_column_text(sqlite3_stmt *statement, int column, char *out, size_t out_size) {
    const unsigned char *text = sqlite3_column_text(statement, column);
    snprintf(out, out_size, "%s", text ? (const char *)text : "");
}

/* ---- transactions ---- */

static void end_by(attune_store *store, enum store_slot slot) {
    sqlite3_step(store->cached[slot]);
    sqlite3_reset(store->cached[slot]);
}

/* After some errors (a full disk) SQLite has rolled back by itself. */
static void abandon(attune_store *store) {
    if (!sqlite3_get_autocommit(store->db)) end_by(store, STORE_SLOT_ROLLBACK);
}

int store_begin(attune_store *store, attune_error *err) {
    if (store->writing || store->reading)
        return error_set(err, ATTUNE_ERROR_STATE, store->path,
                         "a callback of the store may read from it but not write: write after it has returned");
    store->busy_until = store_clock_ms() + store->busy_ms;
    int code = lock_until(store, LOCK_SH, store->busy_until);
    if (code != ATTUNE_OK) return lock_error(store, code, err);
    store->beginning = 1;
    int rc = sqlite3_exec(store->db, "BEGIN IMMEDIATE", NULL, NULL, NULL);
    store->beginning = 0;
    if (rc != SQLITE_OK) {
        code = store_sql_error(store, rc, "write to the store", err);
        abandon(store);
        unlock(store);
        return code;
    }
    store->writing = 1;
    int version;
    code = store_schema_version(store, &version, err);
    if (code != ATTUNE_OK) store_rollback(store);
    return code;
}

int store_commit(attune_store *store, attune_error *err) {
    int code = ATTUNE_OK;
    if (fault_fails("store.commit.before"))
        code = error_set_errno(err, store->path, "cannot commit to the store");
    else
        code = store_exec(store, "COMMIT", "commit to the store", err);
    if (code != ATTUNE_OK) {
        store_rollback(store);
        return code;
    }
    fault_point("store.commit.after");
    store->writing = 0;
    unlock(store);
    if ((int64_t)store->wal_pages * store->page_bytes > CHECKPOINT_BYTES) store_checkpoint(store);
    return ATTUNE_OK;
}

void store_rollback(attune_store *store) {
    if (!store->writing) return;
    abandon(store);
    store->writing = 0;
    unlock(store);
}

int store_end(attune_store *store, int code, attune_error *err) {
    if (code == ATTUNE_OK) return store_commit(store, err);
    store_rollback(store);
    return code;
}

int store_read_begin(attune_store *store, attune_error *err) {
    if (store->reading == 0 && !store->writing) {
        int code = store_exec(store, "BEGIN", "read the store", err);
        if (code != ATTUNE_OK) {
            abandon(store);
            return code;
        }
    }
    store->reading++;
    return ATTUNE_OK;
}

void store_read_end(attune_store *store) {
    if (--store->reading > 0 || store->writing || sqlite3_get_autocommit(store->db)) return;
    end_by(store, STORE_SLOT_READ_END);
    abandon(store);
}
