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
#include "datastore/seal.h"
#include "datastore/store.h"

/* Statements that are prepared once a handle; each is reset before the function that uses it returns. */
enum store_slot {
    STORE_SLOT_ROLLBACK, /* these two are there from the start: ending a transaction must not need memory */
    STORE_SLOT_READ_END,
    STORE_SLOT_VERSION,
    STORE_SLOT_SETTING,
    STORE_SLOT_RECORD,
    STORE_SLOT_FEEDBACK,
    STORE_SLOT_FIND,
    STORE_SLOT_MARK,
    STORE_SLOT_DUPLICATE,
    STORE_SLOT_TOMBSTONE,
    STORE_SLOT_JUDGE,
    STORE_SLOT_FEEDBACK_TEXT,
    STORE_SLOT_LOAD,
    STORE_SLOT_DIGEST,
    STORE_SLOT_DIGEST_PUT,
    STORE_SLOT_SAME_PROMPT,
    STORE_SLOT_NEAR_OLDEST,
    STORE_SLOT_NEAR_NEWEST,
    STORE_SLOT_SKETCH,
    STORE_SLOT_NEAR_PUT,
    STORE_SLOT_SAME_TURN,
    STORE_SLOT_EXAMPLE_CLEAR,
    STORE_SLOT_EXAMPLE_PUT,
    STORE_SLOT_CONSUMED,
    STORE_SLOT_TOUCH,
    STORE_SLOT_UNTOUCH,
    STORE_SLOT_INDEX,
    STORE_SLOTS
};

struct attune_store {
    sqlite3 *db; /* NULL: suspended */
    pthread_mutex_t mutex; /* recursive: a callback may read from the store that calls it */
    pid_t pid;             /* of the process that opened it */
    int lock_fd;           /* store.lock: shared while writing, exclusive while checkpointing */
    int busy_ms;
    int64_t busy_until; /* monotonic ms: when the busy handler gives up */
    int beginning;      /* in BEGIN IMMEDIATE: the busy handler lets go of the lock while it sleeps */
    int writing;        /* a write transaction is open */
    int reading;        /* depth of store_read_begin */
    int newest;         /* schema version that this handle understands */
    int normal;         /* ATTUNE_DURABILITY_NORMAL: for the recorder's connection; all else is durable at once */
    int page_bytes;
    int wal_pages;      /* frames in the log after the last commit of this connection */
    int64_t pages;      /* written to the log by connections that this handle had before */
    int unsure;         /* a sync of the log has failed, see store_sync_log */
    char home[1024], path[1200], lock_path[1200]; /* path: of store.db, for messages */
    sqlite3_stmt *cached[STORE_SLOTS];
    int encrypted;      /* the store is; without seal.on its texts cannot be read or written here */
    struct seal seal;
    struct recorder *recorder; /* NULL in the recorder's own handle */
    attune_store *writer;      /* of the recorder's thread: a connection of its own, so that a long query delays
                                  no recording; NULL until it is needed */
    int writer_unsure;         /* what `unsure` was when it was closed */
    pthread_mutex_t telling; /* of the two below, which the recorder's thread changes */
    int64_t lost_feedback;   /* pieces that named no interaction */
    attune_error loss;       /* the first since the last flush; code ATTUNE_OK: none */
    attune_private_callback find_private;
    void *find_private_user;
};

/* ---- handles ---- */
/* Takes the mutex. Refuses NULL, use after fork and a store that is suspended. */
int store_enter(attune_store *store, attune_error *err);
/* NULL and use after fork only: for what needs no connection. Takes nothing. */
int store_mine(const attune_store *store, attune_error *err);
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

/* ---- connections, connection.c ---- */
/* A handle without a connection. */
int store_allocate(const char *home, int busy_ms, attune_store **out, attune_error *err);
/* Opens and configures store.db, which must exist. *version 0: the file is empty. */
int store_connect(attune_store *store, int *version, attune_error *err);
/* Closes every file; locks go with them. Fine when not connected. */
void store_disconnect(attune_store *store);
void store_destroy(attune_store *store);
/* Switches store.db to a write-ahead log where it is not in one. */
int store_ensure_wal(attune_store *store, attune_error *err);
/* The log, as it can be read, is to be written again by the next sync. An SQLite result code; called alone. */
int store_rewrite_log(attune_store *store);
/* An empty file, 0600; one that exists is not even opened. */
int store_create_file(const char *path, attune_error *err);
/* Makes durable what was committed with synchronous = NORMAL. After a failure the next call writes the log again first:
 * the system may have dropped what it could not write and call it clean, so that a second sync proves nothing. */
int store_sync_log(attune_store *store, attune_error *err);

/* ---- the key ---- */
/* Texts are about to be read or written: ATTUNE_ERROR_MISMATCH where the store is encrypted and the handle has no
 * key. */
int store_need_key(const attune_store *store, attune_error *err);

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
 * i int64_t, d double (NaN: NULL), h const char *: a hash in hexadecimal, as its 32 bytes, - skipped. */
int store_bind(attune_store *store, sqlite3_stmt *statement, const char *doing, attune_error *err, const char *format,
               ...);
/* ATTUNE_CONTINUE: a row is there; ATTUNE_DONE: no more. */
int store_step(attune_store *store, sqlite3_stmt *statement, const char *doing, attune_error *err);
/* store_step for a statement that gives no rows, then store_reset. */
int store_run_statement(attune_store *store, sqlite3_stmt *statement, const char *doing, attune_error *err);
void store_reset(sqlite3_stmt *statement);
/* The one number that a query gives; ATTUNE_ERROR_NOT_FOUND without a message when it gives no row. */
int store_number(attune_store *store, const char *sql, const char *doing, int64_t *out, attune_error *err);
/* Column as text into a fixed buffer; NULL gives "". */
void store_column_text(sqlite3_stmt *statement, int column, char *out, size_t out_size);

/* ---- settings: inside a transaction or not ---- */
/* ATTUNE_ERROR_NOT_FOUND (without a message) when there is none. */
int store_setting_get(attune_store *store, const char *key, char *out, size_t out_size, attune_error *err);
int store_setting_put(attune_store *store, const char *key, const char *value, attune_error *err);
/* Numbers that say how far maintenance has come; 0 when never set. */
int store_mark_get(attune_store *store, const char *name, int64_t *value, attune_error *err);
int store_mark_put(attune_store *store, const char *name, int64_t value, attune_error *err);
/* The store's own random bytes, made at the first use: inside a write transaction unless they are there. */
int store_salt(attune_store *store, unsigned char salt[SEAL_SALT_BYTES], attune_error *err);
/* One entry of the audit, chained to the one before; inside a write transaction. detail: counts and settings,
 * never content. */
int store_audit(attune_store *store, const char *event, const char *detail, attune_error *err);
/* Inside a read: problem gets the first entry that does not fit the one before it; else it stays as it is. */
int store_audit_check(attune_store *store, char *problem, size_t problem_size, attune_error *err);

/* ---- time ---- */
int64_t store_now_ms(void);   /* since 1970-01-01 UTC */
int64_t store_clock_ms(void); /* monotonic */
int store_is_over(int64_t until_ms); /* store_clock_ms has passed it; 0: never */
void store_sleep_ms(int64_t ms);

#endif
