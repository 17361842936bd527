#include "datastore/schema.h"

#include <stdio.h>

/* Small columns stand before the texts: SQLite reads a row from its start and leaves the overflow
 * pages of long texts alone when they are not asked for. */
static const char step_1[] =
    "PRAGMA application_id = 1635022190;" /* STORE_APPLICATION_ID */
    "CREATE TABLE setting ("
    "  key TEXT NOT NULL PRIMARY KEY,"
    "  value TEXT NOT NULL"
    ") STRICT, WITHOUT ROWID;"

    "CREATE TABLE interaction ("
    "  id INTEGER PRIMARY KEY,"
    "  uuid TEXT NOT NULL UNIQUE,"
    "  time_ms INTEGER NOT NULL,"
    "  consent INTEGER NOT NULL CHECK (consent IN (0, 1)),"
    "  content_hash TEXT NOT NULL,"
    "  prompt_hash TEXT NOT NULL,"
    "  app TEXT NOT NULL,"
    "  session TEXT NOT NULL,"
    "  source TEXT NOT NULL,"
    "  model TEXT,"
    "  adapter TEXT,"
    "  template_hash TEXT,"
    "  messages TEXT NOT NULL,"
    "  response TEXT NOT NULL"
    ") STRICT;"
    "CREATE INDEX interaction_content ON interaction (content_hash, app, session);"
    "CREATE INDEX interaction_consented ON interaction (time_ms) WHERE consent = 1;"

    "CREATE TABLE feedback ("
    "  id INTEGER PRIMARY KEY,"
    "  interaction INTEGER NOT NULL REFERENCES interaction (id) ON DELETE CASCADE,"
    "  time_ms INTEGER NOT NULL,"
    "  kind INTEGER NOT NULL CHECK (kind BETWEEN 1 AND 8),"
    "  value INTEGER NOT NULL,"
    "  content_hash TEXT,"
    "  text TEXT,"
    "  CHECK (kind <> 2 OR (text IS NOT NULL AND content_hash IS NOT NULL))"
    ") STRICT;"
    "CREATE INDEX feedback_interaction ON feedback (interaction);"
    "CREATE INDEX feedback_content ON feedback (content_hash) WHERE content_hash IS NOT NULL;"
    "CREATE TRIGGER feedback_append_only BEFORE UPDATE ON feedback"
    " BEGIN SELECT RAISE(ABORT, 'feedback is append only'); END;"

    "CREATE TABLE run ("
    "  number INTEGER PRIMARY KEY,"
    "  id TEXT NOT NULL,"
    "  started_ms INTEGER NOT NULL,"
    "  ended_ms INTEGER NOT NULL,"
    "  state TEXT NOT NULL CHECK (state IN ('unfinished', 'published', 'refused', 'failed')),"
    "  reason TEXT NOT NULL,"
    "  base_sha256 TEXT NOT NULL,"
    "  parent INTEGER NOT NULL,"
    "  seed INTEGER NOT NULL,"
    "  configuration TEXT NOT NULL,"
    "  evaluation TEXT NOT NULL,"
    "  loss_before REAL,"
    "  loss_after REAL,"
    "  loss_interval REAL,"
    "  examples INTEGER NOT NULL,"
    "  held_out INTEGER NOT NULL,"
    "  epochs INTEGER NOT NULL,"
    "  steps INTEGER NOT NULL,"
    "  steps_done INTEGER NOT NULL,"
    "  tokens INTEGER NOT NULL,"
    "  seconds REAL,"
    "  tokens_per_s REAL,"
    "  adapter INTEGER NOT NULL"
    ") STRICT;"

    "CREATE TABLE run_example ("
    "  run INTEGER NOT NULL REFERENCES run (number) ON DELETE CASCADE,"
    "  position INTEGER NOT NULL,"
    "  held_out INTEGER NOT NULL,"
    "  content_hash TEXT NOT NULL,"
    "  PRIMARY KEY (run, position, held_out)"
    ") STRICT, WITHOUT ROWID;"
    "CREATE INDEX run_example_content ON run_example (content_hash);"

    "CREATE TABLE adapter ("
    "  number INTEGER PRIMARY KEY CHECK (number > 0),"
    "  parent INTEGER NOT NULL,"
    "  state TEXT NOT NULL CHECK (state IN ('candidate', 'active', 'retired', 'revoked', 'rejected')),"
    "  origin TEXT NOT NULL CHECK (origin IN ('trained', 'imported')),"
    "  sha256 TEXT NOT NULL,"
    "  run INTEGER REFERENCES run (number),"
    "  run_id TEXT NOT NULL,"
    "  created_ms INTEGER NOT NULL,"
    "  bytes INTEGER NOT NULL,"
    "  examples INTEGER NOT NULL,"
    "  rank INTEGER NOT NULL,"
    "  alpha REAL,"
    "  loss_before REAL,"
    "  loss_after REAL"
    ") STRICT;"
    "CREATE UNIQUE INDEX adapter_active ON adapter (state) WHERE state = 'active';"
    "CREATE INDEX adapter_run ON adapter (run) WHERE run IS NOT NULL;";

_Static_assert(STORE_APPLICATION_ID == 1635022190, "the number in step 1");

const char *const store_schema_steps[] = {step_1};

int store_schema_newest(void) { return (int)(sizeof store_schema_steps / sizeof store_schema_steps[0]); }

static int number(attune_store *store, int slot, const char *sql, int *out, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, slot, sql, "read the store", &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_step(store, statement, "read the store", err);
    if (code == ATTUNE_CONTINUE) *out = sqlite3_column_int(statement, 0);
    if (slot < 0)
        sqlite3_finalize(statement);
    else
        store_reset(statement);
    if (code == ATTUNE_DONE) return error_set(err, ATTUNE_ERROR_INTERNAL, store->path, "%s gave no row", sql);
    return code == ATTUNE_CONTINUE ? ATTUNE_OK : code;
}

int store_schema_version(attune_store *store, int *version, attune_error *err) {
    int found = 0;
    int code = number(store, STORE_SLOT_VERSION, "PRAGMA user_version", &found, err);
    if (code != ATTUNE_OK) return code;
    if (found > store->newest)
        return error_set(err, ATTUNE_ERROR_UNSUPPORTED, store->path,
                         "the store has schema %d and this attune knows only up to %d: a newer attune made or upgraded "
                         "it; use that version",
                         found, store->newest);
    if (found < 0)
        return error_set(err, ATTUNE_ERROR_FORMAT, store->path, "the store's schema number %d makes no sense", found);
    *version = found;
    return ATTUNE_OK;
}

int store_schema_check(attune_store *store, int *version, attune_error *err) {
    int application = 0, tables = 0;
    int code = number(store, -1, "PRAGMA application_id", &application, err);
    if (code == ATTUNE_OK) code = number(store, -1, "SELECT count(*) FROM sqlite_schema", &tables, err);
    if (code != ATTUNE_OK) return code;
    if (application == 0 && tables == 0) {
        *version = 0;
        return ATTUNE_OK;
    }
    if (application != STORE_APPLICATION_ID)
        return error_set(
            err, ATTUNE_ERROR_FORMAT, store->path,
            "this is an SQLite database, but not an attune store (application id %d): it was left as it is",
            application);
    code = store_schema_version(store, version, err);
    if (code == ATTUNE_OK && *version == 0)
        return error_set(err, ATTUNE_ERROR_FORMAT, store->path,
                         "the store says schema 0 but holds tables: it is damaged, restore a backup");
    return code;
}

static int step(attune_store *store, const char *sql, int from, int *applied, attune_error *err) {
    int version = 0;
    int code = store_begin(store, err);
    if (code != ATTUNE_OK) return code;
    code = number(store, -1, "PRAGMA user_version", &version, err);
    *applied = code == ATTUNE_OK && version == from;
    if (*applied) {
        char next[48];
        snprintf(next, sizeof next, "PRAGMA user_version = %d", from + 1);
        code = store_exec(store, sql, "bring the store to the newest schema", err);
        if (code == ATTUNE_OK) code = store_exec(store, next, "bring the store to the newest schema", err);
    }
    return store_end(store, code, err);
}

int store_schema_migrate(attune_store *store, const char *const *steps, int n, attune_error *err) {
    store->newest = n;
    for (;;) {
        int version = 0, applied = 0;
        int code = number(store, -1, "PRAGMA user_version", &version, err);
        if (code != ATTUNE_OK || version >= n) return code;
        code = step(store, steps[version], version, &applied, err);
        if (code != ATTUNE_OK) return code;
    }
}
