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

/* Texts (messages, response, text) are TEXT, or BLOB where the store is encrypted. What takes time to
 * compute stands in tables of its own, which maintenance fills: recording only appends. */
static const char step_2[] =
    "CREATE TABLE interaction_2 ("
    "  id INTEGER PRIMARY KEY,"
    "  uuid TEXT NOT NULL UNIQUE,"
    "  time_ms INTEGER NOT NULL,"
    "  consent INTEGER NOT NULL CHECK (consent IN (0, 1)),"
    "  tier INTEGER NOT NULL CHECK (tier BETWEEN 0 AND 4),"
    "  sensitivity INTEGER NOT NULL CHECK (sensitivity BETWEEN 0 AND 2),"
    "  private_findings INTEGER NOT NULL,"
    "  app TEXT NOT NULL,"
    "  session TEXT NOT NULL,"
    "  source TEXT NOT NULL,"
    "  model TEXT,"
    "  adapter TEXT,"
    "  template_hash TEXT,"
    "  messages ANY NOT NULL,"
    "  response ANY NOT NULL"
    ") STRICT;"
    "INSERT INTO interaction_2 SELECT id, uuid, time_ms, consent, 0, 0, 0, app, session, source, model, adapter,"
    " template_hash, messages, response FROM interaction ORDER BY id;"
    "CREATE TABLE feedback_2 ("
    "  id INTEGER PRIMARY KEY,"
    "  interaction INTEGER NOT NULL REFERENCES interaction_2 (id) ON DELETE CASCADE,"
    "  time_ms INTEGER NOT NULL,"
    "  kind INTEGER NOT NULL CHECK (kind BETWEEN 1 AND 8),"
    "  value INTEGER NOT NULL,"
    "  text ANY,"
    "  CHECK (kind <> 2 OR text IS NOT NULL)"
    ") STRICT;"
    "INSERT INTO feedback_2 SELECT id, interaction, time_ms, kind, value, text FROM feedback ORDER BY id;"

    "CREATE TABLE run_interaction ("
    "  interaction INTEGER NOT NULL,"
    "  run INTEGER NOT NULL REFERENCES run (number) ON DELETE CASCADE,"
    "  PRIMARY KEY (interaction, run)"
    ") STRICT, WITHOUT ROWID;"
    "INSERT INTO run_interaction SELECT i.id, e.run FROM run_example e JOIN interaction i USING (content_hash)"
    " UNION SELECT f.interaction, e.run FROM run_example e JOIN feedback f USING (content_hash);"

    "DROP TABLE feedback;"
    "DROP TABLE interaction;"
    "ALTER TABLE interaction_2 RENAME TO interaction;"
    "ALTER TABLE feedback_2 RENAME TO feedback;"
    "CREATE INDEX interaction_time ON interaction (time_ms, consent);"
    "CREATE INDEX interaction_session ON interaction (app, session);"
    "CREATE INDEX interaction_private ON interaction (id) WHERE private_findings <> 0 OR sensitivity = 1;"
    "CREATE INDEX feedback_interaction ON feedback (interaction);"
    "CREATE TRIGGER feedback_append_only BEFORE UPDATE ON feedback"
    " BEGIN SELECT RAISE(ABORT, 'feedback is append only'); END;"

    "CREATE TABLE digest ("
    "  interaction INTEGER PRIMARY KEY REFERENCES interaction (id) ON DELETE CASCADE,"
    "  content_hash BLOB NOT NULL,"
    "  turn_key INTEGER NOT NULL,"
    "  prompt_key INTEGER NOT NULL,"
    "  leader INTEGER NOT NULL,"
    "  findings INTEGER NOT NULL,"
    "  sketch BLOB"
    ") STRICT;"
    "CREATE INDEX digest_content ON digest (content_hash);"
    "CREATE INDEX digest_turn ON digest (turn_key);"
    "CREATE INDEX digest_prompt ON digest (prompt_key);"
    "CREATE INDEX digest_leader ON digest (leader);"
    "CREATE INDEX digest_findings ON digest (findings) WHERE findings <> 0;"
    "CREATE TABLE near ("
    "  band INTEGER NOT NULL,"
    "  interaction INTEGER NOT NULL,"
    "  PRIMARY KEY (band, interaction)"
    ") STRICT, WITHOUT ROWID;"

    "CREATE TABLE example ("
    "  id INTEGER PRIMARY KEY,"
    "  interaction INTEGER NOT NULL REFERENCES interaction (id) ON DELETE CASCADE,"
    "  kind INTEGER NOT NULL CHECK (kind IN (1, 2, 3)),"
    "  time_ms INTEGER NOT NULL,"
    "  weight REAL NOT NULL,"
    "  label INTEGER NOT NULL,"
    "  content_hash BLOB NOT NULL,"
    "  chosen INTEGER REFERENCES feedback (id) ON DELETE CASCADE,"
    "  rejected INTEGER REFERENCES interaction (id) ON DELETE CASCADE,"
    "  run INTEGER REFERENCES run (number) ON DELETE SET NULL"
    ") STRICT;"
    "CREATE INDEX example_interaction ON example (interaction);"
    "CREATE INDEX example_kind ON example (kind, time_ms, interaction);"
    "CREATE INDEX example_content ON example (content_hash);"
    "CREATE INDEX example_chosen ON example (chosen) WHERE chosen IS NOT NULL;"
    "CREATE INDEX example_rejected ON example (rejected) WHERE rejected IS NOT NULL;"
    "CREATE INDEX example_run ON example (run) WHERE run IS NOT NULL;"
    "CREATE INDEX example_new ON example (kind, time_ms, interaction) WHERE run IS NULL;"

    "CREATE TABLE touched ("
    "  interaction INTEGER PRIMARY KEY REFERENCES interaction (id) ON DELETE CASCADE,"
    "  regroup INTEGER NOT NULL DEFAULT 0"
    ") STRICT;"
    "CREATE TABLE mark (name TEXT NOT NULL PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;"
    "CREATE VIRTUAL TABLE search USING fts5("
    "  text, content = '', columnsize = 0,"
    "  tokenize = 'unicode61 remove_diacritics 2 categories ''L* M* N* Co''');"

    "CREATE TABLE tombstone (hash BLOB NOT NULL PRIMARY KEY, time_ms INTEGER NOT NULL) STRICT, WITHOUT ROWID;"
    "CREATE TABLE audit ("
    "  id INTEGER PRIMARY KEY,"
    "  time_ms INTEGER NOT NULL,"
    "  event TEXT NOT NULL,"
    "  detail TEXT NOT NULL,"
    "  chain TEXT NOT NULL"
    ") STRICT;";

/* What merging an adapter costs. Figures of a revoked adapter came from what was forgotten, too. */
static const char step_3[] =
    "CREATE TABLE adapter_drift ("
    "  adapter INTEGER NOT NULL REFERENCES adapter (number) ON DELETE CASCADE,"
    "  mode TEXT NOT NULL,"
    "  kl REAL NOT NULL,"
    "  agreement REAL NOT NULL,"
    "  loss REAL NOT NULL,"
    "  loss_none REAL NOT NULL,"
    "  tokens INTEGER NOT NULL,"
    "  rows INTEGER NOT NULL,"
    "  bytes INTEGER NOT NULL,"
    "  measured_ms INTEGER NOT NULL,"
    "  PRIMARY KEY (adapter, mode)"
    ") STRICT, WITHOUT ROWID;"
    "CREATE TRIGGER adapter_drift_revoked AFTER UPDATE OF state ON adapter WHEN new.state = 'revoked'"
    " BEGIN DELETE FROM adapter_drift WHERE adapter = new.number; END;";

/* Nights, and what work costs on this device: figures, names and reasons, nothing of what was recorded. */
static const char step_4[] =
    "CREATE TABLE night ("
    "  number INTEGER PRIMARY KEY,"
    "  night_ms INTEGER NOT NULL,"
    "  started_ms INTEGER NOT NULL,"
    "  ended_ms INTEGER NOT NULL,"
    "  kind TEXT NOT NULL,"
    "  state TEXT NOT NULL CHECK (state IN ('running', 'done', 'paused', 'waiting', 'failed', 'killed')),"
    "  reason TEXT NOT NULL,"
    "  run INTEGER NOT NULL,"
    "  runs INTEGER NOT NULL,"
    "  tokens INTEGER NOT NULL,"
    "  steps INTEGER NOT NULL,"
    "  seconds REAL NOT NULL,"
    "  work_seconds REAL NOT NULL,"
    "  cpu_s REAL NOT NULL,"
    "  modelled_cpu_s REAL NOT NULL,"
    "  joules_measured REAL NOT NULL,"
    "  joules_battery REAL NOT NULL,"
    "  joules_modelled REAL NOT NULL,"
    "  marked INTEGER NOT NULL,"
    "  written INTEGER NOT NULL,"
    "  pauses INTEGER NOT NULL,"
    "  loss_before REAL,"
    "  loss_after REAL,"
    "  adapter INTEGER NOT NULL,"
    "  governor_cpu_s REAL NOT NULL,"
    "  gap_ms REAL,"
    "  celsius_max REAL"
    ") STRICT;"
    "CREATE INDEX night_started ON night (started_ms);"
    "CREATE INDEX night_running ON night (number) WHERE state = 'running';"
    "CREATE TABLE moment ("
    "  id INTEGER PRIMARY KEY,"
    "  night INTEGER NOT NULL REFERENCES night (number) ON DELETE CASCADE,"
    "  time_ms INTEGER NOT NULL,"
    "  verdict TEXT NOT NULL,"
    "  reason TEXT NOT NULL,"
    "  celsius REAL,"
    "  watts REAL,"
    "  percent REAL,"
    "  loss REAL,"
    "  joules REAL NOT NULL,"
    "  steps INTEGER NOT NULL"
    ") STRICT;"
    "CREATE INDEX moment_night ON moment (night, time_ms);"
    "CREATE TABLE cost ("
    "  key TEXT NOT NULL PRIMARY KEY,"
    "  seconds_per_unit REAL,"
    "  watts REAL,"
    "  seconds_spread REAL,"
    "  watts_spread REAL,"
    "  weight REAL NOT NULL,"
    "  updated_ms INTEGER NOT NULL"
    ") STRICT, WITHOUT ROWID;";

/* What a run was judged by, what it saw when it was planned (the newest rows then, so that it can be planned again as it
 * was), why an adapter is no longer served, and rows that are not learned from before somebody has looked at them. */
static const char step_5[] =
    "CREATE TABLE criterion ("
    "  run INTEGER NOT NULL REFERENCES run (number) ON DELETE CASCADE,"
    "  position INTEGER NOT NULL,"
    "  name TEXT NOT NULL,"
    "  figure REAL,"
    "  threshold REAL,"
    "  passed INTEGER NOT NULL CHECK (passed IN (0, 1)),"
    "  detail TEXT NOT NULL,"
    "  PRIMARY KEY (run, position)"
    ") STRICT, WITHOUT ROWID;"
    "CREATE TRIGGER criterion_revoked AFTER UPDATE OF state ON adapter WHEN new.state = 'revoked'"
    " BEGIN DELETE FROM criterion WHERE run = new.run; END;"
    "CREATE TRIGGER criterion_failed AFTER UPDATE OF state ON run WHEN new.state = 'failed'"
    " BEGIN DELETE FROM criterion WHERE run = new.number; END;"
    "ALTER TABLE run ADD COLUMN interaction_last INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE run ADD COLUMN feedback_last INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE run ADD COLUMN replays INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE adapter ADD COLUMN reason TEXT NOT NULL DEFAULT '';"
    "CREATE TABLE held_back ("
    "  interaction INTEGER PRIMARY KEY REFERENCES interaction (id) ON DELETE CASCADE,"
    "  time_ms INTEGER NOT NULL,"
    "  reason TEXT NOT NULL,"
    "  figure REAL,"
    "  decision INTEGER NOT NULL CHECK (decision IN (0, 1, 2))"
    ") STRICT;";

_Static_assert(STORE_APPLICATION_ID == 1635022190, "the number in step 1");

const char *const store_schema_steps[] = {step_1, step_2, step_3, step_4, step_5};

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
