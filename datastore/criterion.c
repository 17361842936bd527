/* What a run was judged by: written with the run's figures, as one. */
#include <math.h>
#include <string.h>

#include "datastore/handle.h"
#include "datastore/lineage.h"
#include "datastore/store.h"

static const char noting[] = "note what the run was judged by", reading[] = "read what a run was judged by";

static int clear(attune_store *store, int64_t run, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1, "DELETE FROM criterion WHERE run = ?", noting, &statement, err);
    if (code == ATTUNE_OK) code = store_bind(store, statement, noting, err, "i", run);
    if (code == ATTUNE_OK) code = store_run_statement(store, statement, noting, err);
    sqlite3_finalize(statement);
    return code;
}

static int put(attune_store *store, int64_t run, const struct store_criterion *criteria, size_t n, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1,
                             "INSERT INTO criterion (run, position, name, figure, threshold, passed, detail) "
                             "VALUES (?, ?, ?, ?, ?, ?, ?)",
                             noting, &statement, err);
    for (size_t i = 0; i < n && code == ATTUNE_OK; i++) {
        const struct store_criterion *c = &criteria[i];
        code = store_bind(store, statement, noting, err, "iitddit", run, (int64_t)i, c->name, c->figure, c->threshold,
                          (int64_t)(c->passed != 0), c->detail);
        if (code == ATTUNE_OK) code = store_run_statement(store, statement, noting, err);
    }
    sqlite3_finalize(statement);
    return code;
}

int store_run_judged(attune_store *store, const struct store_run *run, const struct store_criterion *criteria, size_t n,
                     attune_error *err) {
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_begin(store, err);
    if (code == ATTUNE_OK) {
        code = store_run_write(store, run, err);
        if (code == ATTUNE_OK) code = clear(store, run->number, err);
        if (code == ATTUNE_OK) code = put(store, run->number, criteria, n, err);
        code = store_end(store, code, err);
    }
    store_leave(store);
    return code;
}

static double real(sqlite3_stmt *statement, int column) {
    return sqlite3_column_type(statement, column) == SQLITE_NULL ? NAN : sqlite3_column_double(statement, column);
}

static int each(attune_store *store, int64_t run, store_criterion_callback callback, void *user, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1,
                             "SELECT name, figure, threshold, passed, detail FROM criterion WHERE run = ? "
                             "ORDER BY position",
                             reading, &statement, err);
    if (code == ATTUNE_OK) code = store_bind(store, statement, reading, err, "i", run);
    while (code == ATTUNE_OK && (code = store_step(store, statement, reading, err)) == ATTUNE_CONTINUE) {
        struct store_criterion c = {.figure = real(statement, 1), .threshold = real(statement, 2),
                                    .passed = sqlite3_column_int(statement, 3)};
        store_column_text(statement, 0, c.name, sizeof c.name);
        store_column_text(statement, 4, c.detail, sizeof c.detail);
        code = callback(&c, user) ? ATTUNE_DONE : ATTUNE_OK;
    }
    sqlite3_finalize(statement);
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}

int store_criteria_each(attune_store *store, int64_t run, store_criterion_callback callback, void *user,
                        attune_error *err) {
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_read_begin(store, err);
    if (code == ATTUNE_OK) {
        code = each(store, run, callback, user, err);
        store_read_end(store);
    }
    store_leave(store);
    return code;
}

int store_adapter_run(attune_store *store, int adapter, int64_t *run, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    *run = 0;
    code = store_prepare(store, -1, "SELECT run FROM adapter WHERE number = ? AND run IS NOT NULL", reading, &statement,
                         err);
    if (code == ATTUNE_OK) code = store_bind(store, statement, reading, err, "i", (int64_t)adapter);
    if (code == ATTUNE_OK) code = store_step(store, statement, reading, err);
    if (code == ATTUNE_CONTINUE) *run = sqlite3_column_int64(statement, 0);
    sqlite3_finalize(statement);
    store_leave(store);
    return code == ATTUNE_CONTINUE || code == ATTUNE_DONE ? ATTUNE_OK : code;
}
