/* One SQLite connection: found, opened, configured, closed. */
#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "datastore/handle.h"
#include "datastore/schema.h"

/* SQLite must meet a plain path: "file:..." would be read as a URI where the host switched those on. */
static int paths(const char *home, attune_store *store, attune_error *err) {
    if (!home || !home[0]) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "no home is named");
    const char *prefix = home[0] == '/' ? "" : "./";
    int n = snprintf(store->home, sizeof store->home, "%s%s", prefix, home);
    if (n < 0 || (size_t)n >= sizeof store->home)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the path of the home is too long (%zu bytes)",
                         strlen(home));
    snprintf(store->path, sizeof store->path, "%s/store.db", store->home);
    snprintf(store->lock_path, sizeof store->lock_path, "%s/store.lock", store->home);
    return ATTUNE_OK;
}

/* Looks without opening: closing any descriptor of store.db would drop this process's POSIX locks on it. */
static int look(const char *path, attune_error *err) {
    struct stat info;
    if (stat(path, &info) != 0) {
        if (errno == ENOENT || errno == ENOTDIR)
            return error_set(err, ATTUNE_ERROR_NOT_FOUND, path, "there is no store: make a home with 'attune init'");
        return error_set_errno(err, path, "cannot look at the store");
    }
    if (!S_ISREG(info.st_mode)) return error_set(err, ATTUNE_ERROR_FORMAT, path, "store.db is not a regular file");
    return ATTUNE_OK;
}

static int configure(attune_store *store, attune_error *err) {
    static const struct {
        int what, value;
    } flags[] = {
        {SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1}, {SQLITE_DBCONFIG_DEFENSIVE, 1}, {SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0},
        {SQLITE_DBCONFIG_DQS_DML, 0},          {SQLITE_DBCONFIG_DQS_DDL, 0},   {SQLITE_DBCONFIG_ENABLE_FKEY, 1},
        {SQLITE_DBCONFIG_ENABLE_TRIGGER, 1},
    };
    for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++) {
        int rc = sqlite3_db_config(store->db, flags[i].what, flags[i].value, NULL);
        if (rc != SQLITE_OK) return store_sql_error(store, rc, "configure SQLite", err);
    }
    /* temp_store: what SQLite spills while it works is private text, and /tmp is not the home. */
    store_watch(store);
    int code = store_exec(store,
                          "PRAGMA wal_autocheckpoint = 0; PRAGMA mmap_size = 0; PRAGMA temp_store = MEMORY;"
                          "PRAGMA secure_delete = ON; PRAGMA cache_size = -8000; PRAGMA synchronous = FULL",
                          "open the store", err);
    store_watch(store); /* again: wal_autocheckpoint has taken the hook for SQLite's own checkpointer */
    sqlite3_stmt *prepared;
    if (code == ATTUNE_OK)
        code = store_prepare(store, STORE_SLOT_ROLLBACK, "ROLLBACK", "open the store", &prepared, err);
    if (code == ATTUNE_OK) code = store_prepare(store, STORE_SLOT_READ_END, "COMMIT", "open the store", &prepared, err);
    int64_t page = 4096;
    if (code == ATTUNE_OK) code = store_number(store, "PRAGMA page_size", "open the store", &page, err);
    store->page_bytes = (int)page;
    return code;
}

static int journal_is_wal(attune_store *store, const char *sql, int *is, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1, sql, "open the store", &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_step(store, statement, "open the store", err);
    const char *mode = code == ATTUNE_CONTINUE ? (const char *)sqlite3_column_text(statement, 0) : NULL;
    *is = mode && strcmp(mode, "wal") == 0;
    sqlite3_finalize(statement);
    return code == ATTUNE_CONTINUE || code == ATTUNE_DONE ? ATTUNE_OK : code;
}

int store_ensure_wal(attune_store *store, attune_error *err) {
    int is = 0;
    int code = journal_is_wal(store, "PRAGMA journal_mode", &is, err);
    if (code != ATTUNE_OK || is) return code;
    code = store_lock_alone(store, err);
    if (code != ATTUNE_OK) return code;
    code = journal_is_wal(store, "PRAGMA journal_mode = WAL", &is, err);
    store_unlock(store);
    if (code == ATTUNE_OK && !is)
        code = error_set(
            err, ATTUNE_ERROR_IO, store->path,
            "SQLite cannot keep a write-ahead log here (a network file system?): put the home on a local disk");
    return code;
}

static int mutex_init(pthread_mutex_t *mutex) {
    pthread_mutexattr_t attributes;
    if (pthread_mutexattr_init(&attributes) != 0) return 0;
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_RECURSIVE);
    int ok = pthread_mutex_init(mutex, &attributes) == 0;
    pthread_mutexattr_destroy(&attributes);
    return ok;
}

/* The descriptor of store.db is gone before SQLite first opens the file in this process. */
int store_create_file(const char *path, attune_error *err) {
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) return errno == EEXIST ? ATTUNE_OK : error_set_errno(err, path, "cannot create the file");
    int failed = fchmod(fd, 0600) != 0; /* whatever the umask took away */
    if (close(fd) != 0 || failed) return error_set_errno(err, path, "cannot create the file");
    return ATTUNE_OK;
}

int store_allocate(const char *home, int busy_ms, attune_store **out, attune_error *err) {
    enum { DEFAULT_BUSY_MS = 5000 };
    if (busy_ms < 0)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "busy_timeout_ms is %d: it must not be negative", busy_ms);
    if (sodium_init() < 0) return error_set(err, ATTUNE_ERROR_INTERNAL, NULL, "libsodium does not start");
    attune_store *store = calloc(1, sizeof *store);
    if (!store) return error_set_memory(err, "a store", sizeof *store);
    store->lock_fd = -1;
    store->pid = getpid();
    store->busy_ms = busy_ms ? busy_ms : DEFAULT_BUSY_MS;
    store->newest = store_schema_newest();
    if (!mutex_init(&store->mutex) || pthread_mutex_init(&store->telling, NULL) != 0) {
        free(store);
        return error_set_memory(err, "a mutex", sizeof(pthread_mutex_t));
    }
    int code = paths(home, store, err);
    if (code != ATTUNE_OK)
        store_destroy(store);
    else
        *out = store;
    return code;
}

int store_connect(attune_store *store, int *version, attune_error *err) {
    int code = look(store->path, err);
    if (code != ATTUNE_OK) return code;
    int rc = sqlite3_open_v2(store->path, &store->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);
    if (rc != SQLITE_OK) {
        code = store_sql_error(store, rc, "open the store", err);
        goto out;
    }
    sqlite3_extended_result_codes(store->db, 1);
    if (sqlite3_db_readonly(store->db, "main") == 1) {
        code = error_set(err, ATTUNE_ERROR_IO, store->path,
                         "the store is read only, and attune must write to it: see who owns the file and how the file "
                         "system is mounted");
        goto out;
    }
    code = store_create_file(store->lock_path, err);
    if (code != ATTUNE_OK) goto out;
    store->lock_fd = open(store->lock_path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (store->lock_fd < 0) {
        code = error_set_errno(err, store->lock_path, "cannot open the store's lock file");
        goto out;
    }
    code = configure(store, err);
    if (code == ATTUNE_OK) code = store_schema_check(store, version, err);
out:
    if (code != ATTUNE_OK) store_disconnect(store);
    return code;
}

/* By this connection, to the log (sqlite.org/c3ref/c_dbstatus_options.html). */
static int pages_written(attune_store *store) {
    int pages = 0, highest = 0;
    if (store->db) sqlite3_db_status(store->db, SQLITE_DBSTATUS_CACHE_WRITE, &pages, &highest, 0);
    return pages;
}

int store_written(attune_store *store, int64_t *bytes, attune_error *err) {
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    *bytes = 2 * (store->pages + pages_written(store)) * store->page_bytes;
    store_leave(store);
    return ATTUNE_OK;
}

void store_disconnect(attune_store *store) {
    store->pages += pages_written(store);
    for (int i = 0; i < STORE_SLOTS; i++) {
        sqlite3_finalize(store->cached[i]);
        store->cached[i] = NULL;
    }
    sqlite3_close(store->db);
    store->db = NULL;
    if (store->lock_fd >= 0) close(store->lock_fd);
    store->lock_fd = -1;
}

void store_destroy(attune_store *store) {
    if (!store) return;
    store_disconnect(store);
    seal_end(&store->seal);
    pthread_mutex_destroy(&store->mutex);
    pthread_mutex_destroy(&store->telling);
    free(store);
}

/* The log's own descriptor, of SQLite. NULL: there is none yet. */
static sqlite3_file *log_of(attune_store *store) {
    sqlite3_file *log = NULL;
    int rc = sqlite3_file_control(store->db, "main", SQLITE_FCNTL_JOURNAL_POINTER, &log);
    return rc == SQLITE_OK && log && log->pMethods ? log : NULL;
}

int store_rewrite_log(attune_store *store) {
    char bytes[16384];
    sqlite3_file *log = log_of(store);
    sqlite3_int64 size = 0;
    int rc = log ? log->pMethods->xFileSize(log, &size) : SQLITE_OK;
    for (sqlite3_int64 at = 0; rc == SQLITE_OK && at < size; at += (sqlite3_int64)sizeof bytes) {
        int n = size - at < (sqlite3_int64)sizeof bytes ? (int)(size - at) : (int)sizeof bytes;
        rc = log->pMethods->xRead(log, bytes, n, at);
        if (rc == SQLITE_OK) rc = log->pMethods->xWrite(log, bytes, n, at);
    }
    return rc;
}

int store_sync_log(attune_store *store, attune_error *err) {
    sqlite3_file *log = log_of(store);
    int rc = SQLITE_OK;
    if (store->unsure) {
        int code = store_lock_alone(store, err);
        if (code != ATTUNE_OK) return code;
        rc = store_rewrite_log(store);
        store_unlock(store);
    }
    if (rc == SQLITE_OK && log) rc = log->pMethods->xSync(log, SQLITE_SYNC_NORMAL);
    store->unsure = rc != SQLITE_OK;
    return rc == SQLITE_OK ? ATTUNE_OK : store_sql_error(store, rc, "sync the store", err);
}
