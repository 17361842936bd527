/* The open store as the files of this room share it: one SQLite connection behind one mutex.
 *
 * The order of every public function: store_enter, then store_begin ... store_commit to write or
 * store_read_begin ... store_read_end for several reads of one state, then store_leave. All writing
 * passes through store_begin, so that is where the lock against checkpoints lives. */
#ifndef DATASTORE_HANDLE_H
#define DATASTORE_HANDLE_H

#include <pthread.h>
#include <sqlite3.h>
#include <sys/types.h>

#include "core/base/error.h"
#include "datastore/store.h"

/* Statements that are prepared once a handle; each is reset before the function that uses it returns. */
enum store_slot {
    STORE_SLOT_VERSION,
    STORE_SLOT_SETTING,
    STORE_SLOT_RECORD,
    STORE_SLOT_FEEDBACK,
    STORE_SLOT_FIND,
    STORE_SLOT_DUPLICATE,
    STORE_SLOT_CONSENT,
    STORE_SLOT_JUDGE,
    STORE_SLOT_EDIT,
    STORE_SLOT_PUBLISHED,
    STORE_SLOTS
};

struct attune_store {
    sqlite3 *db;
    pthread_mutex_t mutex; /* recursive: a callback may read from the store that calls it */
    pid_t pid;             /* of the process that opened it */
    int lock_fd;           /* store.lock: shared while writing, exclusive while checkpointing */
    int busy_ms;
    int64_t busy_until; /* monotonic ms: when the busy handler gives up */
    int beginning;      /* in BEGIN IMMEDIATE: the busy handler lets go of the lock while it sleeps */
    int writing;        /* a write transaction is open */
    int reading;        /* depth of store_read_begin */
    int newest;         /* schema version that this handle understands */
    int wal_pages;      /* frames in the log after the last commit of this connection */
    char path[1200];    /* of store.db, for messages */
    sqlite3_stmt *cached[STORE_SLOTS];
};

/* ---- handles ---- */
/* Takes the mutex. Refuses NULL and use after fork. */
int store_enter(attune_store *store, attune_error *err);
void store_leave(attune_store *store);

/* ---- the lock against checkpoints, see handle.c ---- */
/* Installs the busy handler and the hook that sees the log grow. */
void store_watch(attune_store *store);
/* For what no writer may run beside; waits as long as the busy timeout. */
int store_lock_alone(attune_store *store, attune_error *err);
void store_unlock(attune_store *store);
/* Folds the log into store.db and truncates it, if nobody writes right now. Never waits, and its
 * failure is nobody's error: what was committed is safe in the log. */
void store_checkpoint(attune_store *store);

/* ---- transactions ---- */
/* Shared lock on store.lock, BEGIN IMMEDIATE, and a look at the schema version. */
int store_begin(attune_store *store, attune_error *err);
/* COMMIT, unlock, and a checkpoint when the log has grown. A failed commit is rolled back. */
int store_commit(attune_store *store, attune_error *err);
/* Fine when no transaction is open. */
void store_rollback(attune_store *store);
/* store_commit when code is OK, else store_rollback; returns code or the commit's error. */
int store_end(attune_store *store, int code, attune_error *err);
/* One state of the database for everything read until the end. Nests; writing is refused inside. */
int store_read_begin(attune_store *store, attune_error *err);
void store_read_end(attune_store *store);

/* ---- statements ---- */
/* Sets *err from an SQLite result code: "cannot DOING: what SQLite says: what to do". */
int store_sql_error(attune_store *store, int rc, const char *doing, attune_error *err);
int store_exec(attune_store *store, const char *sql, const char *doing, attune_error *err);
/* slot < 0: not cached, the caller finalizes. */
int store_prepare(attune_store *store, int slot, const char *sql, const char *doing, sqlite3_stmt **out,
                  attune_error *err);
/* Parameters from the first on, by letter: t const char * (NULL: NULL; borrowed until store_reset),
 * i int64_t, d double (NaN: NULL). */
int store_bind(attune_store *store, sqlite3_stmt *statement, const char *doing, attune_error *err, const char *format,
               ...);
/* ATTUNE_CONTINUE: a row is there; ATTUNE_DONE: no more. */
int store_step(attune_store *store, sqlite3_stmt *statement, const char *doing, attune_error *err);
/* store_step for a statement that gives no rows, then store_reset. */
int store_run_statement(attune_store *store, sqlite3_stmt *statement, const char *doing, attune_error *err);
void store_reset(sqlite3_stmt *statement);
/* Column as text into a fixed buffer; NULL gives "". */
void store_column_text(sqlite3_stmt *statement, int column, char *out, size_t out_size);

/* ---- settings: inside a transaction or not ---- */
/* ATTUNE_ERROR_NOT_FOUND (without a message) when there is none. */
int store_setting_get(attune_store *store, const char *key, char *out, size_t out_size, attune_error *err);
int store_setting_put(attune_store *store, const char *key, const char *value, attune_error *err);

/* ---- time ---- */
int64_t store_now_ms(void); /* since 1970-01-01 UTC */

#endif
