#include "core/base/options.h"
#include "datastore/store.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/fault.h"
#include "datastore/handle.h"
#include "datastore/schema.h"

enum { DEFAULT_BUSY_MS = 5000 };

/* ---- opening ---- */

/* SQLite must meet a plain path: "file:..." would be read as a URI where the host switched those on. */
static int paths(const char *home, char *db, size_t db_size, char *lock, size_t lock_size, attune_error *err) {
    if (!home || !home[0]) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "no home is named");
    const char *prefix = home[0] == '/' ? "" : "./";
    int a = snprintf(db, db_size, "%s%s/store.db", prefix, home);
    int b = snprintf(lock, lock_size, "%s%s/store.lock", prefix, home);
    if (a < 0 || b < 0 || (size_t)a >= db_size || (size_t)b >= lock_size)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the path of the home is too long (%zu bytes)",
                         strlen(home));
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
                          "PRAGMA synchronous = FULL; PRAGMA secure_delete = ON",
                          "open the store", err);
    store_watch(store); /* again: wal_autocheckpoint has taken the hook for SQLite's own checkpointer */
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

static int ensure_wal(attune_store *store, attune_error *err) {
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

static void destroy(attune_store *store) {
    for (int i = 0; i < STORE_SLOTS; i++) sqlite3_finalize(store->cached[i]);
    sqlite3_close(store->db);
    if (store->lock_fd >= 0) close(store->lock_fd);
    pthread_mutex_destroy(&store->mutex);
    free(store);
}

/* An empty file, 0600; one that exists is not even opened. The descriptor of store.db is gone before
 * SQLite first opens the file in this process. */
static int create_file(const char *path, attune_error *err) {
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) return errno == EEXIST ? ATTUNE_OK : error_set_errno(err, path, "cannot create the file");
    int failed = fchmod(fd, 0600) != 0; /* whatever the umask took away */
    if (close(fd) != 0 || failed) return error_set_errno(err, path, "cannot create the file");
    return ATTUNE_OK;
}

/* The connection, configured, of an existing store.db; *version 0: the file is empty. */
static int connect_home(const char *home, int busy_ms, attune_store **out, int *version, attune_error *err) {
    if (sodium_init() < 0) return error_set(err, ATTUNE_ERROR_INTERNAL, NULL, "libsodium does not start");
    attune_store *store = calloc(1, sizeof *store);
    if (!store) return error_set_memory(err, "a store", sizeof *store);
    store->lock_fd = -1;
    store->pid = getpid();
    store->busy_ms = busy_ms ? busy_ms : DEFAULT_BUSY_MS;
    store->newest = store_schema_newest();
    if (!mutex_init(&store->mutex)) {
        free(store);
        return error_set_memory(err, "a mutex", sizeof(pthread_mutex_t));
    }
    char lock[sizeof store->path];
    int code = paths(home, store->path, sizeof store->path, lock, sizeof lock, err);
    if (code == ATTUNE_OK && busy_ms < 0)
        code = error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "busy_timeout_ms is %d: it must not be negative", busy_ms);
    if (code == ATTUNE_OK) code = look(store->path, err);
    if (code != ATTUNE_OK) goto out;
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
    code = create_file(lock, err);
    if (code != ATTUNE_OK) goto out;
    store->lock_fd = open(lock, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (store->lock_fd < 0) {
        code = error_set_errno(err, lock, "cannot open the store's lock file");
        goto out;
    }
    code = configure(store, err);
    if (code == ATTUNE_OK) code = store_schema_check(store, version, err);
out:
    if (code == ATTUNE_OK)
        *out = store;
    else
        destroy(store);
    return code;
}

static int sync_folder(const char *home, attune_error *err) {
    int fd = open(home, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return error_set_errno(err, home, "cannot open the home");
    int code = fsync(fd) == 0 ? ATTUNE_OK : error_set_errno(err, home, "cannot sync the home");
    close(fd);
    return code;
}

/* An earlier store_create that was cut short left nothing that anyone recorded: it is taken over. */
static int refuse_used(attune_store *store, attune_error *err) {
    int64_t interactions;
    int code = store_counts(store, &interactions, NULL, NULL, NULL, err);
    if (code == ATTUNE_OK && interactions > 0)
        code = error_set(err, ATTUNE_ERROR_STATE, store->path, "a store with %" PRId64 " interactions is there already",
                         interactions);
    return code;
}

int store_create(const char *home, int consent, attune_error *err) {
    attune_store *store = NULL;
    char db[sizeof store->path], lock[sizeof store->path];
    int version = 0;
    int code = paths(home, db, sizeof db, lock, sizeof lock, err);
    if (code != ATTUNE_OK) return code;
    fault_point("store.create.before");
    code = create_file(db, err);
    if (code == ATTUNE_OK) code = connect_home(home, 0, &store, &version, err);
    if (code == ATTUNE_OK) code = ensure_wal(store, err);
    if (code == ATTUNE_OK) code = store_schema_migrate(store, store_schema_steps, store_schema_newest(), err);
    if (code == ATTUNE_OK && version > 0) code = refuse_used(store, err);
    if (code == ATTUNE_OK) code = store_consent_set(store, consent, err);
    if (code == ATTUNE_OK) code = sync_folder(home, err);
    if (code == ATTUNE_OK) fault_point("store.create.after");
    attune_store_close(store);
    return code;
}

int store_open_path(const char *home, int busy_timeout_ms, attune_store **out, attune_error *err) {
    attune_store *store = NULL;
    int version = 0;
    int code = connect_home(home, busy_timeout_ms, &store, &version, err);
    if (code == ATTUNE_OK && version == 0)
        code = error_set(err, ATTUNE_ERROR_NOT_FOUND, store->path,
                         "the store is empty: making it was cut short, make the home again with 'attune init'");
    if (code == ATTUNE_OK) code = ensure_wal(store, err);
    if (code == ATTUNE_OK) code = store_schema_migrate(store, store_schema_steps, store_schema_newest(), err);
    if (code == ATTUNE_OK)
        *out = store;
    else if (store)
        destroy(store);
    return code;
}

int attune_store_open(const char *home, const attune_store_options *options, attune_store **out, attune_error *err) {
    attune_store_options taken;
    char path[1024];
    if (!out) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "out is NULL");
    int code = options_read(&taken, sizeof taken, options, "attune_store_options", err);
    if (code != ATTUNE_OK) return code;
    size_t n = attune_home_path(home, path, sizeof path);
    if (n == 0)
        return error_set(err, ATTUNE_ERROR_NOT_FOUND, NULL,
                         "no home is named: pass one, or set ATTUNE_HOME, XDG_DATA_HOME or HOME");
    if (n >= sizeof path)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the path of the home is too long (%zu bytes)", n);
    return store_open_path(path, taken.busy_timeout_ms, out, err);
}

void attune_store_close(attune_store *store) {
    if (!store) return;
    if (store->pid != getpid()) return; /* the parent's: SQLite must not be touched here, memory stays */
    store_checkpoint(store);
    destroy(store);
}

int attune_store_flush(attune_store *store, attune_error *err) {
    int code = store_enter(store, err);
    if (code == ATTUNE_OK) store_leave(store);
    return code; /* every call that records has committed before it returned */
}

/* ---- settings ---- */

int store_setting_get(attune_store *store, const char *key, char *out, size_t out_size, attune_error *err) {
    static const char doing[] = "read a setting";
    sqlite3_stmt *statement = NULL;
    int code =
        store_prepare(store, STORE_SLOT_SETTING, "SELECT value FROM setting WHERE key = ?", doing, &statement, err);
    if (code == ATTUNE_OK) code = store_bind(store, statement, doing, err, "t", key);
    if (code != ATTUNE_OK) return code;
    code = store_step(store, statement, doing, err);
    if (code == ATTUNE_CONTINUE) store_column_text(statement, 0, out, out_size);
    store_reset(statement);
    if (code == ATTUNE_DONE) return ATTUNE_ERROR_NOT_FOUND;
    return code == ATTUNE_CONTINUE ? ATTUNE_OK : code;
}

int store_setting_put(attune_store *store, const char *key, const char *value, attune_error *err) {
    static const char doing[] = "change a setting";
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1,
                             "INSERT INTO setting (key, value) VALUES (?, ?) "
                             "ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                             doing, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_bind(store, statement, doing, err, "tt", key, value);
    if (code == ATTUNE_OK) code = store_run_statement(store, statement, doing, err);
    sqlite3_finalize(statement);
    return code;
}

int store_consent_get(attune_store *store, int *consent, attune_error *err) {
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    char value[8] = "0";
    code = store_setting_get(store, "consent", value, sizeof value, err);
    if (code == ATTUNE_ERROR_NOT_FOUND) code = ATTUNE_OK; /* never set: not given */
    if (code == ATTUNE_OK) *consent = strcmp(value, "1") == 0;
    store_leave(store);
    return code;
}

int store_consent_set(attune_store *store, int consent, attune_error *err) {
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_begin(store, err);
    if (code == ATTUNE_OK) code = store_end(store, store_setting_put(store, "consent", consent ? "1" : "0", err), err);
    store_leave(store);
    return code;
}

/* ---- looking after it ---- */

/* The first row that a checking pragma gives, unless it says "ok". */
static int first_finding(attune_store *store, const char *sql, const char *what, char *problem, size_t problem_size,
                         attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1, sql, "check the store", &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_step(store, statement, "check the store", err);
    if (code == ATTUNE_CONTINUE) {
        const char *text = (const char *)sqlite3_column_text(statement, 0);
        if (!text || strcmp(text, "ok") != 0) snprintf(problem, problem_size, "%s: %s", what, text ? text : "?");
    }
    sqlite3_finalize(statement);
    return code == ATTUNE_CONTINUE || code == ATTUNE_DONE ? ATTUNE_OK : code;
}

int store_check(attune_store *store, char *problem, size_t problem_size, attune_error *err) {
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    problem[0] = '\0';
    code = store_read_begin(store, err);
    if (code == ATTUNE_OK) {
        int version;
        code = store_schema_version(store, &version, err);
        if (code == ATTUNE_OK)
            code = first_finding(store, "PRAGMA integrity_check(1)", "integrity", problem, problem_size, err);
        if (code == ATTUNE_OK && !problem[0])
            code = first_finding(store, "PRAGMA foreign_key_check", "a row without its parent in", problem,
                                 problem_size, err);
        store_read_end(store);
    }
    if (code == ATTUNE_OK && problem[0])
        code =
            error_set(err, ATTUNE_ERROR_FORMAT, store->path, "the store is damaged: %.200s: restore a backup", problem);
    store_leave(store);
    return code;
}
