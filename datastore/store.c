/* The store as an app opens it: making, opening, closing, its key and settings, looking after it. */
#include <inttypes.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/fault.h"
#include "core/base/file.h"
#include "core/base/options.h"
#include "datastore/record.h"
#include "datastore/recorder.h"
#include "datastore/schema.h"

/* ---- the key ---- */

int store_need_key(const attune_store *store, attune_error *err) {
    if (!store->encrypted || store->seal.on) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_MISMATCH, store->path,
                     "the store is encrypted: give its key, or the file that holds it with --key-file");
}

static int start_seal(attune_store *store, const unsigned char *key, attune_error *err) {
    unsigned char salt[SEAL_SALT_BYTES];
    char wanted[HASH_HEX_SIZE] = "", found[HASH_HEX_SIZE];
    int code = store_salt(store, salt, err);
    if (code == ATTUNE_OK) code = store_setting_get(store, "encryption", wanted, sizeof wanted, err);
    if (code != ATTUNE_OK) return code;
    seal_start(&store->seal, key, salt);
    seal_check_value(&store->seal, found);
    if (sodium_memcmp(wanted, found, sizeof wanted) == 0) return ATTUNE_OK;
    seal_end(&store->seal);
    return error_set(err, ATTUNE_ERROR_MISMATCH, store->path, "this is not the key that the store is encrypted with");
}

/* The key as given, else from the file named, else from the file that the home remembers; a handle without
 * the key serves all that needs no texts. */
static int unlock_texts(attune_store *store, const unsigned char *key, const char *key_file, attune_error *err) {
    unsigned char bytes[ATTUNE_KEY_BYTES];
    char value[HASH_HEX_SIZE], remembered[1024];
    int code = store_setting_get(store, "encryption", value, sizeof value, err);
    if (code == ATTUNE_ERROR_NOT_FOUND && !key && !key_file) return ATTUNE_OK;
    if (code == ATTUNE_ERROR_NOT_FOUND)
        return error_set(err, ATTUNE_ERROR_MISMATCH, store->path, "the store is not encrypted: leave the key out");
    if (code != ATTUNE_OK) return code;
    store->encrypted = 1;
    if (key) return start_seal(store, key, err);
    if (!key_file) {
        code = store_setting_get(store, "key_file", remembered, sizeof remembered, err);
        if (code == ATTUNE_ERROR_NOT_FOUND || (code == ATTUNE_OK && access(remembered, F_OK) != 0)) return ATTUNE_OK;
        if (code != ATTUNE_OK) return code;
        key_file = remembered;
    }
    code = key_file_read(key_file, bytes, err);
    if (code == ATTUNE_OK) code = start_seal(store, bytes, err);
    sodium_memzero(bytes, sizeof bytes);
    return code;
}

/* Inside a write transaction. */
static int encrypt_new(attune_store *store, const unsigned char *key, const char *key_file, attune_error *err) {
    unsigned char salt[SEAL_SALT_BYTES];
    char check[HASH_HEX_SIZE];
    int code = store_salt(store, salt, err);
    if (code != ATTUNE_OK) return code;
    seal_start(&store->seal, key, salt);
    seal_check_value(&store->seal, check);
    code = store_setting_put(store, "encryption", check, err);
    if (code == ATTUNE_OK && key_file) code = store_setting_put(store, "key_file", key_file, err);
    if (code == ATTUNE_OK) code = store_audit(store, "encryption", "on from the start", err);
    return code;
}

/* ---- making and opening ---- */

/* An earlier store_create that was cut short left nothing that anyone recorded: it is taken over. */
static int refuse_used(attune_store *store, attune_error *err) {
    int64_t interactions;
    int code = store_counts(store, &interactions, NULL, NULL, NULL, err);
    if (code == ATTUNE_OK && interactions > 0)
        code = error_set(err, ATTUNE_ERROR_STATE, store->path, "a store with %" PRId64 " interactions is there already",
                         interactions);
    return code;
}

static int first_settings(attune_store *store, int consent, const unsigned char *key, const char *key_file,
                          attune_error *err) {
    unsigned char salt[SEAL_SALT_BYTES];
    int code = store_begin(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_salt(store, salt, err);
    if (code == ATTUNE_OK) code = store_setting_put(store, "consent", consent ? "1" : "0", err);
    if (code == ATTUNE_OK) code = store_audit(store, "consent", consent ? "given by init" : "not given by init", err);
    /* An init that was cut short may have had another key, or none. */
    if (code == ATTUNE_OK)
        code = store_exec(store, "DELETE FROM setting WHERE key IN ('encryption', 'key_file')", "make the store", err);
    if (code == ATTUNE_OK && key) code = encrypt_new(store, key, key_file, err);
    return store_end(store, code, err);
}

int store_create_encrypted(const char *home, int consent, const unsigned char *key, const char *key_file,
                           attune_error *err) {
    attune_store *store = NULL;
    int version = 0;
    int code = store_allocate(home, 0, &store, err);
    if (code != ATTUNE_OK) return code;
    fault_point("store.create.before");
    code = store_create_file(store->path, err);
    if (code == ATTUNE_OK) code = store_connect(store, &version, err);
    if (code == ATTUNE_OK && version == 0) code = store_exec(store, "PRAGMA page_size = 8192", "make the store", err);
    if (code == ATTUNE_OK) code = store_ensure_wal(store, err);
    if (code == ATTUNE_OK) code = store_schema_migrate(store, store_schema_steps, store_schema_newest(), err);
    if (code == ATTUNE_OK && version > 0) code = refuse_used(store, err);
    if (code == ATTUNE_OK) code = first_settings(store, consent, key, key_file, err);
    if (code == ATTUNE_OK) store_checkpoint(store);
    if (code == ATTUNE_OK) code = file_sync_folder(store->home, err);
    if (code == ATTUNE_OK) fault_point("store.create.after");
    store_destroy(store);
    return code;
}

int store_create(const char *home, int consent, attune_error *err) {
    return store_create_encrypted(home, consent, NULL, NULL, err);
}

int store_open_connection(attune_store *store, attune_error *err) {
    int version = 0;
    int code = store_connect(store, &version, err);
    if (code == ATTUNE_OK && version == 0)
        code = error_set(err, ATTUNE_ERROR_NOT_FOUND, store->path,
                         "the store is empty: making it was cut short, make the home again with 'attune init'");
    if (code == ATTUNE_OK) code = store_ensure_wal(store, err);
    if (code == ATTUNE_OK) code = store_schema_migrate(store, store_schema_steps, store_schema_newest(), err);
    if (code != ATTUNE_OK) store_disconnect(store);
    return code;
}

int store_open_with(const char *home, const attune_store_options *o, attune_store **out, attune_error *err) {
    attune_store *store = NULL;
    int code = store_allocate(home, o->busy_timeout_ms, &store, err);
    if (code != ATTUNE_OK) return code;
    store->normal = o->durability == ATTUNE_DURABILITY_NORMAL;
    store->find_private = o->find_private;
    store->find_private_user = o->user;
    code = store_open_connection(store, err);
    if (code == ATTUNE_OK) code = unlock_texts(store, o->key, o->key_file, err);
    if (code == ATTUNE_OK) code = store_recording_start(store, o, err);
    if (code == ATTUNE_OK)
        *out = store;
    else
        store_destroy(store);
    return code;
}

int store_open_path(const char *home, int busy_timeout_ms, attune_store **out, attune_error *err) {
    attune_store_options o;
    ATTUNE_INIT(o);
    o.busy_timeout_ms = busy_timeout_ms;
    return store_open_with(home, &o, out, err);
}

int attune_store_open(const char *home, const attune_store_options *options, attune_store **out, attune_error *err) {
    attune_store_options taken;
    attune_store *store = NULL;
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
    code = store_open_with(path, &taken, &store, err);
    if (code == ATTUNE_OK) code = store_need_key(store, err);
    if (code == ATTUNE_OK)
        *out = store;
    else
        attune_store_close(store);
    return code;
}

void attune_store_close(attune_store *store) {
    if (!store) return;
    if (store->pid != getpid()) { /* the parent's: SQLite must not be touched here, memory stays */
        if (store->lock_fd >= 0) close(store->lock_fd); /* or the parent's lock would outlive the parent */
        return;
    }
    store_recording_end(store);
    if (store->db) store_checkpoint(store);
    store_destroy(store);
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
        if (code == ATTUNE_OK && !problem[0]) code = store_audit_check(store, problem, problem_size, err);
        store_read_end(store);
    }
    if (code == ATTUNE_OK && problem[0])
        code =
            error_set(err, ATTUNE_ERROR_FORMAT, store->path, "the store is damaged: %.200s: restore a backup", problem);
    store_leave(store);
    return code;
}
