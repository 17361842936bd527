/* What merging an adapter costs, mode by mode: measured by the job, kept with the adapter's row. */
#include <math.h>
#include <string.h>

#include "datastore/handle.h"
#include "datastore/store.h"

#define DRIFT_COLUMNS "adapter, mode, kl, agreement, loss, loss_none, tokens, rows, bytes, measured_ms"

static const char noting_drift[] = "note the drift of a merge mode", reading_drift[] = "read the drift of merge modes";

static int check_drift(const struct store_drift *d, attune_error *err) {
    if (isfinite(d->kl) && isfinite(d->agreement) && isfinite(d->loss) && isfinite(d->loss_none)) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the drift of adapter %d in mode %s is not a finite number",
                     d->adapter, d->mode);
}

/* Inside a write transaction: forgetting cannot come between this and what follows. */
static int check_adapter(attune_store *store, int adapter, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int gone = 0;
    int code = store_prepare(store, -1, "SELECT state = 'revoked' FROM adapter WHERE number = ?", noting_drift,
                             &statement, err);
    if (code == ATTUNE_OK) code = store_bind(store, statement, noting_drift, err, "i", (int64_t)adapter);
    if (code == ATTUNE_OK) code = store_step(store, statement, noting_drift, err);
    if (code == ATTUNE_CONTINUE) gone = sqlite3_column_int(statement, 0);
    sqlite3_finalize(statement);
    if (code == ATTUNE_DONE)
        return error_set(err, ATTUNE_ERROR_NOT_FOUND, store->path, "there is no adapter %d", adapter);
    if (code != ATTUNE_CONTINUE) return code;
    return gone ? error_set(err, ATTUNE_ERROR_STATE, store->path,
                            "adapter %d was revoked, as it learned from what was forgotten", adapter)
                : ATTUNE_OK;
}

static int put_drift(attune_store *store, const struct store_drift *d, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = check_drift(d, err);
    if (code == ATTUNE_OK) code = check_adapter(store, d->adapter, err);
    if (code == ATTUNE_OK)
        code = store_prepare(store, -1,
                             "REPLACE INTO adapter_drift (" DRIFT_COLUMNS ") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                             noting_drift, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_bind(store, statement, noting_drift, err, "itddddiiii", (int64_t)d->adapter, d->mode, d->kl,
                      d->agreement, d->loss, d->loss_none, d->tokens, d->rows, d->bytes, d->measured_ms);
    if (code == ATTUNE_OK) code = store_run_statement(store, statement, noting_drift, err);
    sqlite3_finalize(statement);
    return code;
}

int store_drift_put(attune_store *store, const struct store_drift *drifts, size_t n, attune_error *err) {
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_begin(store, err);
    if (code == ATTUNE_OK) {
        for (size_t i = 0; i < n && code == ATTUNE_OK; i++) code = put_drift(store, &drifts[i], err);
        code = store_end(store, code, err);
    }
    store_leave(store);
    return code;
}

static void read_drift(sqlite3_stmt *s, struct store_drift *out) {
    memset(out, 0, sizeof *out);
    out->adapter = sqlite3_column_int(s, 0);
    store_column_text(s, 1, out->mode, sizeof out->mode);
    out->kl = sqlite3_column_double(s, 2);
    out->agreement = sqlite3_column_double(s, 3);
    out->loss = sqlite3_column_double(s, 4);
    out->loss_none = sqlite3_column_double(s, 5);
    out->tokens = sqlite3_column_int64(s, 6);
    out->rows = sqlite3_column_int64(s, 7);
    out->bytes = sqlite3_column_int64(s, 8);
    out->measured_ms = sqlite3_column_int64(s, 9);
}

static int each_drift(attune_store *store, int adapter, store_drift_callback callback, void *user, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1,
                             "SELECT " DRIFT_COLUMNS " FROM adapter_drift WHERE adapter = ? ORDER BY bytes, kl, mode",
                             reading_drift, &statement, err);
    if (code == ATTUNE_OK) code = store_bind(store, statement, reading_drift, err, "i", (int64_t)adapter);
    while (code == ATTUNE_OK && (code = store_step(store, statement, reading_drift, err)) == ATTUNE_CONTINUE) {
        struct store_drift drift;
        read_drift(statement, &drift);
        code = callback(&drift, user) ? ATTUNE_DONE : ATTUNE_OK;
    }
    sqlite3_finalize(statement);
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}

int store_drift_each(attune_store *store, int adapter, store_drift_callback callback, void *user, attune_error *err) {
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_read_begin(store, err);
    if (code == ATTUNE_OK) {
        code = each_drift(store, adapter, callback, user, err);
        store_read_end(store);
    }
    store_leave(store);
    return code;
}

struct wanted_drift {
    const char *mode;
    struct store_drift *out;
    int found;
};
static int same_mode(const struct store_drift *drift, void *user) {
    struct wanted_drift *wanted = user;
    if (strcmp(drift->mode, wanted->mode) != 0) return 0;
    *wanted->out = *drift;
    return wanted->found = 1;
}

int store_drift_get(attune_store *store, int adapter, const char *mode, struct store_drift *out, attune_error *err) {
    struct wanted_drift wanted = {.mode = mode, .out = out};
    int code = store_drift_each(store, adapter, same_mode, &wanted, err);
    if (code == ATTUNE_OK && !wanted.found)
        code = error_set(err, ATTUNE_ERROR_NOT_FOUND, store->path, "the drift of adapter %d in mode %.20s was not "
                         "measured", adapter, mode);
    return code;
}
