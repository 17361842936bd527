/* The audit: entries that are chained by hashes, so that none can be changed or taken out unseen. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/base/hash.h"
#include "datastore/handle.h"

/* Hash of an entry: over the hash of the one before it and its own time, event and detail. */
static void audit_hash(const char *before, int64_t time_ms, const char *event, const char *detail,
                       char hex[HASH_HEX_SIZE]) {
    struct hash hash;
    hash_start(&hash);
    hash_add_string(&hash, before);
    hash_add_u64(&hash, (uint64_t)time_ms);
    hash_add_string(&hash, event);
    hash_add_string(&hash, detail);
    hash_finish(&hash, hex);
}

int store_audit(attune_store *store, const char *event, const char *detail, attune_error *err) {
    static const char doing[] = "note it in the audit";
    sqlite3_stmt *last = NULL, *put = NULL;
    char before[HASH_HEX_SIZE] = "", chain[HASH_HEX_SIZE];
    int64_t now = store_now_ms();
    int code = store_prepare(store, -1, "SELECT chain FROM audit ORDER BY id DESC LIMIT 1", doing, &last, err);
    if (code != ATTUNE_OK) return code;
    code = store_step(store, last, doing, err);
    if (code == ATTUNE_CONTINUE) store_column_text(last, 0, before, sizeof before);
    sqlite3_finalize(last);
    if (code != ATTUNE_CONTINUE && code != ATTUNE_DONE) return code;
    audit_hash(before, now, event, detail, chain);
    code = store_prepare(store, -1, "INSERT INTO audit (time_ms, event, detail, chain) VALUES (?, ?, ?, ?)", doing,
                         &put, err);
    if (code != ATTUNE_OK) return code;
    code = store_bind(store, put, doing, err, "ittt", now, event, detail, chain);
    if (code == ATTUNE_OK) code = store_run_statement(store, put, doing, err);
    sqlite3_finalize(put);
    return code;
}

int store_audit_check(attune_store *store, char *problem, size_t problem_size, attune_error *err) {
    static const char doing[] = "check the audit";
    sqlite3_stmt *statement = NULL;
    char before[HASH_HEX_SIZE] = "", chain[HASH_HEX_SIZE];
    int code = store_prepare(store, -1, "SELECT id, time_ms, event, detail, chain FROM audit ORDER BY id", doing,
                             &statement, err);
    if (code != ATTUNE_OK) return code;
    while ((code = store_step(store, statement, doing, err)) == ATTUNE_CONTINUE && !problem[0]) {
        const char *event = (const char *)sqlite3_column_text(statement, 2);
        const char *detail = (const char *)sqlite3_column_text(statement, 3);
        const char *said = (const char *)sqlite3_column_text(statement, 4);
        if (!event || !detail || !said) break;
        audit_hash(before, sqlite3_column_int64(statement, 1), event, detail, chain);
        if (strcmp(chain, said) != 0)
            snprintf(problem, problem_size, "audit: entry %" PRId64 " was changed, or one before it removed",
                     (int64_t)sqlite3_column_int64(statement, 0));
        memcpy(before, chain, sizeof before);
    }
    sqlite3_finalize(statement);
    return code == ATTUNE_CONTINUE || code == ATTUNE_DONE ? ATTUNE_OK : code;
}
