/* Small facts that the store keeps: settings, the home's consent, how far maintenance is, the salt. */
#include <sodium.h>
#include <string.h>

#include "datastore/handle.h"

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
    if (code == ATTUNE_OK) {
        code = store_setting_put(store, "consent", consent ? "1" : "0", err);
        if (code == ATTUNE_OK) code = store_audit(store, "consent", consent ? "given" : "withdrawn", err);
        code = store_end(store, code, err);
    }
    store_leave(store);
    return code;
}

/* ---- marks and salt ---- */

int store_mark_get(attune_store *store, const char *name, int64_t *value, attune_error *err) {
    static const char doing[] = "read how far maintenance is";
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, STORE_SLOT_MARK, "SELECT value FROM mark WHERE name = ?", doing, &statement, err);
    if (code == ATTUNE_OK) code = store_bind(store, statement, doing, err, "t", name);
    if (code != ATTUNE_OK) return code;
    code = store_step(store, statement, doing, err);
    if (code == ATTUNE_CONTINUE || code == ATTUNE_DONE)
        *value = code == ATTUNE_CONTINUE ? sqlite3_column_int64(statement, 0) : 0;
    store_reset(statement);
    return code == ATTUNE_CONTINUE || code == ATTUNE_DONE ? ATTUNE_OK : code;
}

int store_mark_put(attune_store *store, const char *name, int64_t value, attune_error *err) {
    static const char doing[] = "note how far maintenance is";
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1, "REPLACE INTO mark (name, value) VALUES (?, ?)", doing, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_bind(store, statement, doing, err, "ti", name, value);
    if (code == ATTUNE_OK) code = store_run_statement(store, statement, doing, err);
    sqlite3_finalize(statement);
    return code;
}

int store_salt(attune_store *store, unsigned char salt[SEAL_SALT_BYTES], attune_error *err) {
    char hex[2 * SEAL_SALT_BYTES + 1];
    size_t n = 0;
    int code = store_setting_get(store, "salt", hex, sizeof hex, err);
    if (code == ATTUNE_ERROR_NOT_FOUND) {
        randombytes_buf(salt, SEAL_SALT_BYTES);
        sodium_bin2hex(hex, sizeof hex, salt, SEAL_SALT_BYTES);
        return store_setting_put(store, "salt", hex, err);
    }
    if (code != ATTUNE_OK) return code;
    if (sodium_hex2bin(salt, SEAL_SALT_BYTES, hex, strlen(hex), NULL, &n, NULL) == 0 && n == SEAL_SALT_BYTES)
        return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_FORMAT, store->path, "the store's setting 'salt' is damaged: restore a backup");
}
