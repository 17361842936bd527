#include "datastore/forget.h"

#include <inttypes.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/fault.h"
#include "core/base/options.h"
#include "datastore/derive.h"
#include "datastore/query.h"
#include "datastore/revoke.h"
#include "datastore/scrub.h"
#include "datastore/search.h"

static const char forgetting[] = "forget, or change the consent of, what was chosen";

enum {
    BATCH_MS = 30, /* how long one transaction gathers work: with its commit well below 100 ms */
    PAUSE_MS = 15, /* between two: SQLite's locks have no queue, so others must find the door open */
    SCRUB_MS = 2000,
    HASH_BYTES = 32
};

static void pause_between(void) {
    struct timespec time = {.tv_nsec = PAUSE_MS * 1000000L};
    nanosleep(&time, NULL);
}

int store_tombstone_hash(attune_store *store, const char *content_hash, unsigned char out[32], attune_error *err) {
    unsigned char salt[SEAL_SALT_BYTES];
    int code = store_salt(store, salt, err);
    if (code == ATTUNE_OK)
        crypto_generichash(out, HASH_BYTES, (const unsigned char *)content_hash, strlen(content_hash), salt,
                           sizeof salt);
    return code;
}

/* ---- lists ---- */

struct numbers { /* ascending, each once */
    int64_t *at;
    size_t n, room;
};

static int numbers_add(struct numbers *numbers, int64_t number, attune_error *err) {
    size_t low = 0;
    for (size_t high = numbers->n; low < high;) {
        size_t middle = low + (high - low) / 2;
        if (numbers->at[middle] == number) return ATTUNE_OK;
        if (numbers->at[middle] < number)
            low = middle + 1;
        else
            high = middle;
    }
    if (numbers->n == numbers->room) {
        size_t room = numbers->room ? numbers->room * 2 : 16;
        int64_t *more = realloc(numbers->at, room * sizeof *more);
        if (!more) return error_set_memory(err, "the runs to revoke", room * sizeof *more);
        numbers->at = more;
        numbers->room = room;
    }
    memmove(numbers->at + low + 1, numbers->at + low, (numbers->n - low) * sizeof *numbers->at);
    numbers->at[low] = number;
    numbers->n++;
    return ATTUNE_OK;
}

struct hashes {
    char (*at)[HASH_HEX_SIZE];
    size_t n, room;
};

static int hashes_add(struct hashes *hashes, const char *hex, attune_error *err) {
    for (size_t i = 0; i < hashes->n; i++)
        if (strcmp(hashes->at[i], hex) == 0) return ATTUNE_OK;
    if (hashes->n == hashes->room) {
        size_t room = hashes->room ? hashes->room * 2 : 8;
        void *more = realloc(hashes->at, room * sizeof *hashes->at);
        if (!more) return error_set_memory(err, "content hashes", room * sizeof *hashes->at);
        hashes->at = more;
        hashes->room = room;
    }
    snprintf(hashes->at[hashes->n++], HASH_HEX_SIZE, "%s", hex);
    return ATTUNE_OK;
}

/* ---- choosing ---- */

/* The uuid, because SQLite gives the id of a newest row again once that row has gone. */
struct chosen {
    int64_t id;
    char uuid[sizeof(attune_uuid)];
};

struct choice {
    struct chosen *at;
    size_t n;
};

/* A search inside a read does not bring the index up. */
static int index_all(attune_store *store, attune_error *err) {
    int64_t waiting = 0;
    int left = 0;
    int code = store_index_left(store, &waiting, err);
    if (code != ATTUNE_OK || !waiting) return code;
    do {
        code = store_begin(store, err);
        if (code == ATTUNE_OK)
            code = store_end(store, store_index_some(store, store_clock_ms() + BATCH_MS, &left, err), err);
    } while (code == ATTUNE_OK && left);
    return code;
}

/* Inside a read. consent: only rows that have this one; -1: any. */
static int name_all(attune_store *store, const int64_t *ids, size_t n, int consent, struct choice *out,
                    attune_error *err) {
    sqlite3_stmt *statement = NULL;
    out->at = malloc((n ? n : 1) * sizeof *out->at);
    if (!out->at) return error_set_memory(err, "a list of interactions", n * sizeof *out->at);
    int code = store_prepare(store, -1, "SELECT uuid FROM interaction WHERE id = ?1 AND ?2 IN (-1, consent)",
                             forgetting, &statement, err);
    for (size_t i = 0; i < n && code == ATTUNE_OK; i++) {
        code = store_bind(store, statement, forgetting, err, "ii", ids[i], (int64_t)consent);
        if (code == ATTUNE_OK) code = store_step(store, statement, forgetting, err);
        if (code == ATTUNE_CONTINUE) {
            out->at[out->n].id = ids[i];
            store_column_text(statement, 0, out->at[out->n].uuid, sizeof out->at[0].uuid);
            out->n++;
        }
        store_reset(statement);
        if (code == ATTUNE_CONTINUE || code == ATTUNE_DONE) code = ATTUNE_OK;
    }
    sqlite3_finalize(statement);
    return code;
}

/* out->at is to be freed. */
static int choose(attune_store *store, const attune_filter *filter, int consent, struct choice *out,
                  attune_error *err) {
    int64_t *ids = NULL;
    size_t n = 0;
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    if (filter->match) code = index_all(store, err);
    if (code == ATTUNE_OK) code = store_read_begin(store, err);
    if (code == ATTUNE_OK) {
        code = store_select(store, filter, &ids, &n, err);
        if (code == ATTUNE_OK) code = name_all(store, ids, n, consent, out, err);
        store_read_end(store);
    }
    store_leave(store);
    free(ids);
    return code;
}

/* ---- what is done to one row, many in a transaction ---- */

enum statement {
    UUID,
    DERIVED, /* whether it is, and texts that people put in its place */
    TEXTS,
    KNOWN_HASHES,
    RUNS,
    RUNS_BY_HASH,
    IS_ALIVE,
    BURY,
    ANONYMIZE,
    NOTE_RUN,
    UNNOTE_RUN,
    COUNT_FEEDBACK,
    COUNT_EXAMPLES,
    LINEAGE,
    DELETE,
    WITHDRAW,
    DELETE_EXAMPLES,
    GIVE,
    STATEMENTS
};

static const char *const sql[STATEMENTS] = {
    [UUID] = "SELECT uuid FROM interaction WHERE id = ?",
    [DERIVED] = "SELECT EXISTS (SELECT 1 FROM digest WHERE interaction = ?1), "
                "EXISTS (SELECT 1 FROM feedback WHERE interaction = ?1 AND text IS NOT NULL)",
    [TEXTS] = "SELECT id FROM feedback WHERE interaction = ? AND text IS NOT NULL",
    [KNOWN_HASHES] = "SELECT lower(hex(content_hash)) FROM digest WHERE interaction = ?1 UNION "
                     "SELECT lower(hex(content_hash)) FROM example WHERE interaction = ?1 UNION "
                     "SELECT lower(hex(content_hash)) FROM example WHERE rejected = ?1",
    [RUNS] = "SELECT run FROM run_interaction WHERE interaction = ?",
    [RUNS_BY_HASH] = "SELECT DISTINCT run FROM run_example WHERE content_hash = ?",
    [IS_ALIVE] = "SELECT 1 FROM run r WHERE number = ?1 AND (state = 'unfinished' OR EXISTS (SELECT 1 FROM adapter a "
                 "WHERE (a.run = r.number OR a.number = r.adapter) AND a.state <> 'revoked'))",
    [BURY] = "INSERT OR IGNORE INTO tombstone (hash, time_ms) VALUES (?1, ?2)",
    [ANONYMIZE] = "UPDATE run_example SET content_hash = ?1 WHERE content_hash = ?2",
    [NOTE_RUN] = "INSERT OR IGNORE INTO mark (name, value) VALUES ('lineage ' || ?1, 0)",
    [UNNOTE_RUN] = "DELETE FROM mark WHERE name = 'lineage ' || ?1",
    [COUNT_FEEDBACK] = "SELECT count(*) FROM feedback WHERE interaction = ?",
    [COUNT_EXAMPLES] = "SELECT count(*) FROM (SELECT id FROM example WHERE interaction = ?1 UNION "
                       "SELECT id FROM example WHERE rejected = ?1)",
    [LINEAGE] = "DELETE FROM run_interaction WHERE interaction = ?",
    [DELETE] = "DELETE FROM interaction WHERE id = ?",
    [WITHDRAW] = "UPDATE interaction SET consent = 0 WHERE id = ? AND consent = 1",
    [DELETE_EXAMPLES] = "DELETE FROM example WHERE interaction = ?1 OR rejected = ?1",
    [GIVE] = "UPDATE interaction SET consent = 1 WHERE id = ? AND consent = 0",
};

struct work;
typedef int (*work_on)(struct work *work, const struct chosen *chosen, attune_error *err);

struct work {
    attune_store *store;
    work_on on;
    const char *event, *what; /* of the audit */
    const char *reason;       /* why runs under way are ended */
    int deletes;              /* there is something to wipe afterwards */
    sqlite3_stmt *statement[STATEMENTS];
    struct hashes hashes; /* of the row at hand */
    struct numbers runs;  /* that hold the row at hand */
    struct store_revoked revoked;
    int64_t interactions, feedback, examples; /* of this transaction */
    attune_forget_result total;
};

static int work_prepare(struct work *work, attune_error *err) {
    int code = ATTUNE_OK;
    for (int i = 0; i < STATEMENTS && code == ATTUNE_OK; i++)
        code = store_prepare(work->store, -1, sql[i], forgetting, &work->statement[i], err);
    work->interactions = work->feedback = work->examples = 0;
    return code;
}

static void work_release(struct work *work) {
    for (int i = 0; i < STATEMENTS; i++) {
        sqlite3_finalize(work->statement[i]);
        work->statement[i] = NULL;
    }
}

static int run_on(struct work *work, enum statement which, int64_t id, int64_t *changes, attune_error *err) {
    sqlite3_stmt *statement = work->statement[which];
    int code = store_bind(work->store, statement, forgetting, err, "i", id);
    if (code == ATTUNE_OK) code = store_run_statement(work->store, statement, forgetting, err);
    if (code == ATTUNE_OK && changes) *changes += sqlite3_changes(work->store->db);
    return code;
}

/* The two numbers that a query about the row gives. */
static int ask(struct work *work, enum statement which, int64_t id, int64_t *first, int64_t *second,
               attune_error *err) {
    sqlite3_stmt *statement = work->statement[which];
    int code = store_bind(work->store, statement, forgetting, err, "i", id);
    if (code == ATTUNE_OK) code = store_step(work->store, statement, forgetting, err);
    if (code == ATTUNE_CONTINUE) {
        *first = sqlite3_column_int64(statement, 0);
        if (second) *second = sqlite3_column_int64(statement, 1);
        code = ATTUNE_OK;
    }
    store_reset(statement);
    return code;
}

/* *is 0: the row has gone meanwhile, or its id belongs to another one by now. */
static int still_there(struct work *work, const struct chosen *chosen, int *is, attune_error *err) {
    sqlite3_stmt *statement = work->statement[UUID];
    int code = store_bind(work->store, statement, forgetting, err, "i", chosen->id);
    if (code == ATTUNE_OK) code = store_step(work->store, statement, forgetting, err);
    const char *uuid = code == ATTUNE_CONTINUE ? (const char *)sqlite3_column_text(statement, 0) : "";
    *is = uuid && strcmp(uuid, chosen->uuid) == 0;
    if (!uuid) code = store_sql_error(work->store, SQLITE_NOMEM, forgetting, err);
    store_reset(statement);
    return code == ATTUNE_CONTINUE || code == ATTUNE_DONE ? ATTUNE_OK : code;
}

/* ---- what a row's content is known by ---- */

/* Also of edits that later ones have replaced: a run may have learned them before that. */
static int hash_texts(struct work *work, int64_t id, const struct store_loaded *row, attune_error *err) {
    sqlite3_stmt *statement = work->statement[TEXTS];
    char hex[HASH_HEX_SIZE];
    store_keyed_content_hash(work->store, row->messages.list, row->messages.n, row->response, hex);
    int code = hashes_add(&work->hashes, hex, err);
    if (code == ATTUNE_OK) code = store_bind(work->store, statement, forgetting, err, "i", id);
    while (code == ATTUNE_OK && (code = store_step(work->store, statement, forgetting, err)) == ATTUNE_CONTINUE) {
        char *text = NULL;
        code = store_load_feedback_text(work->store, sqlite3_column_int64(statement, 0), row->uuid.text, &text, err);
        if (code == ATTUNE_OK && text) {
            store_keyed_content_hash(work->store, row->messages.list, row->messages.n, text, hex);
            code = hashes_add(&work->hashes, hex, err);
        }
        free(text);
    }
    store_reset(statement);
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}

static int read_texts(struct work *work, int64_t id, attune_error *err) {
    struct store_loaded row;
    int code = store_load_interaction(work->store, id, &row, err);
    if (code == ATTUNE_OK) {
        code = hash_texts(work, id, &row, err);
        store_loaded_free(&row);
    }
    /* A row that cannot be read (damaged, or the key is lost) must go all the same. */
    return code == ATTUNE_ERROR_FORMAT || code == ATTUNE_ERROR_MISMATCH ? ATTUNE_OK : code;
}

static int find_hashes(struct work *work, int64_t id, attune_error *err) {
    sqlite3_stmt *statement = work->statement[KNOWN_HASHES];
    int64_t derived = 0, edited = 0;
    work->hashes.n = 0;
    int code = store_bind(work->store, statement, forgetting, err, "i", id);
    while (code == ATTUNE_OK && (code = store_step(work->store, statement, forgetting, err)) == ATTUNE_CONTINUE) {
        const char *hash = (const char *)sqlite3_column_text(statement, 0);
        code =
            hash ? hashes_add(&work->hashes, hash, err) : store_sql_error(work->store, SQLITE_NOMEM, forgetting, err);
    }
    store_reset(statement);
    if (code == ATTUNE_DONE) code = ask(work, DERIVED, id, &derived, &edited, err);
    return code == ATTUNE_OK && (!derived || edited) ? read_texts(work, id, err) : code;
}

/* Runs that a statement names, into work->runs. */
static int add_runs(struct work *work, sqlite3_stmt *statement, attune_error *err) {
    int code = ATTUNE_OK;
    while (code == ATTUNE_OK && (code = store_step(work->store, statement, forgetting, err)) == ATTUNE_CONTINUE)
        code = numbers_add(&work->runs, sqlite3_column_int64(statement, 0), err);
    store_reset(statement);
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}

/* Runs that learned from the row or were judged by it: those that name it, and those that name the same content, for
 * which a duplicate may have stood. Adds to work->runs; the row's hashes are in work->hashes then. */
static int find_runs(struct work *work, int64_t id, attune_error *err) {
    int code = find_hashes(work, id, err);
    if (code == ATTUNE_OK) code = store_bind(work->store, work->statement[RUNS], forgetting, err, "i", id);
    if (code == ATTUNE_OK) code = add_runs(work, work->statement[RUNS], err);
    for (size_t i = 0; i < work->hashes.n && code == ATTUNE_OK; i++) {
        sqlite3_stmt *statement = work->statement[RUNS_BY_HASH];
        code = store_bind(work->store, statement, forgetting, err, "t", work->hashes.at[i]);
        if (code == ATTUNE_OK) code = add_runs(work, statement, err);
    }
    return code;
}

/* ---- revoking first ---- */

/* Inside a write transaction: what has learned from the row since it was looked for. */
static int revoke_for(struct work *work, int64_t id, attune_error *err) {
    int64_t alive = 0;
    work->runs.n = 0;
    int code = find_runs(work, id, err);
    for (size_t i = 0; i < work->runs.n && code == ATTUNE_OK && !alive; i++) {
        code = ask(work, IS_ALIVE, work->runs.at[i], &alive, NULL, err);
        if (code == ATTUNE_DONE) code = ATTUNE_OK;
    }
    if (code != ATTUNE_OK || !alive) return code;
    return store_revoke(work->store, work->runs.at, work->runs.n, work->reason, &work->revoked, err);
}

/* Of rows from *at on: a piece, so that other threads get at the handle in between. */
static int find_some_runs(struct work *work, const struct choice *choice, size_t *at, attune_error *err) {
    int64_t until = store_clock_ms() + BATCH_MS;
    int code = store_enter(work->store, err);
    if (code != ATTUNE_OK) return code;
    code = work_prepare(work, err);
    while (code == ATTUNE_OK && *at < choice->n && store_clock_ms() < until) {
        int is = 0;
        code = still_there(work, &choice->at[*at], &is, err);
        if (code == ATTUNE_OK && is) code = find_runs(work, choice->at[*at].id, err);
        ++*at;
    }
    work_release(work);
    store_leave(work->store);
    return code;
}

/* All at once and before anything is deleted: should this process die half way through, nothing that learned from the
 * rows that are left is in use. */
static int revoke_all(struct work *work, const struct choice *choice, attune_error *err) {
    int code = ATTUNE_OK;
    work->runs.n = 0;
    for (size_t at = 0; at < choice->n && code == ATTUNE_OK;) code = find_some_runs(work, choice, &at, err);
    if (code == ATTUNE_OK) code = store_enter(work->store, err);
    if (code != ATTUNE_OK) return code;
    if (work->runs.n > 0) {
        code = store_begin(work->store, err);
        if (code == ATTUNE_OK) {
            code = store_revoke(work->store, work->runs.at, work->runs.n, work->reason, &work->revoked, err);
            fault_point("forget.revoke.before");
            code = store_end(work->store, code, err);
        }
    }
    if (code == ATTUNE_OK) code = store_revoked_release(work->store, err);
    store_leave(work->store);
    if (code == ATTUNE_OK) fault_point("forget.revoke.after");
    return code;
}

/* ---- deleting ---- */

/* The lineage keeps its length and tells nothing any more. */
static int bury(struct work *work, const char *hash, attune_error *err) {
    attune_store *store = work->store;
    sqlite3_stmt *anonymize = work->statement[ANONYMIZE];
    unsigned char stone[HASH_BYTES];
    char hex[HASH_HEX_SIZE];
    int code = store_tombstone_hash(store, hash, stone, err);
    if (code != ATTUNE_OK) return code;
    sodium_bin2hex(hex, sizeof hex, stone, sizeof stone);
    code = store_bind(store, work->statement[BURY], forgetting, err, "hi", hex, store_now_ms());
    if (code == ATTUNE_OK) code = store_run_statement(store, work->statement[BURY], forgetting, err);
    if (code == ATTUNE_OK) code = store_bind(store, anonymize, forgetting, err, "tt", hex, hash);
    return code == ATTUNE_OK ? store_run_statement(store, anonymize, forgetting, err) : code;
}

/* The entries of a row that cannot be read cannot be found. */
static int unindex(attune_store *store, int64_t id, attune_error *err) {
    int code = store_index_forget(store, id, err);
    return code == ATTUNE_ERROR_FORMAT ? store_index_restart(store, err) : code;
}

static int forget_one(struct work *work, const struct chosen *chosen, attune_error *err) {
    int64_t id = chosen->id, feedback = 0, examples = 0;
    int code = revoke_for(work, id, err);
    for (size_t i = 0; i < work->hashes.n && code == ATTUNE_OK; i++) code = bury(work, work->hashes.at[i], err);
    for (size_t i = 0; i < work->runs.n && code == ATTUNE_OK; i++)
        code = run_on(work, NOTE_RUN, work->runs.at[i], NULL, err);
    if (code == ATTUNE_OK) code = ask(work, COUNT_FEEDBACK, id, &feedback, NULL, err);
    if (code == ATTUNE_OK) code = ask(work, COUNT_EXAMPLES, id, &examples, NULL, err);
    if (code == ATTUNE_OK) code = unindex(work->store, id, err);
    if (code == ATTUNE_OK) code = store_derive_forget(work->store, id, err);
    if (code == ATTUNE_OK) code = run_on(work, LINEAGE, id, NULL, err);
    if (code == ATTUNE_OK) code = run_on(work, DELETE, id, NULL, err);
    if (code != ATTUNE_OK) return code;
    work->interactions++;
    work->feedback += feedback;
    work->examples += examples;
    return ATTUNE_OK;
}

/* ---- consent ---- */

static int withdraw_one(struct work *work, const struct chosen *chosen, attune_error *err) {
    int64_t id = chosen->id, changed = 0;
    int code = run_on(work, WITHDRAW, id, &changed, err);
    if (code != ATTUNE_OK || !changed) return code;
    work->interactions++;
    code = revoke_for(work, id, err);
    if (code == ATTUNE_OK) code = store_touch(work->store, id, err);
    if (code == ATTUNE_OK) code = run_on(work, DELETE_EXAMPLES, id, &work->examples, err);
    return code;
}

static int give_one(struct work *work, const struct chosen *chosen, attune_error *err) {
    int64_t changed = 0;
    int code = run_on(work, GIVE, chosen->id, &changed, err);
    work->interactions += changed;
    return code == ATTUNE_OK && changed ? store_touch(work->store, chosen->id, err) : code;
}

/* ---- many rows ---- */

/* Inside the transaction, when its rows are done. */
static int end_batch(struct work *work, attune_error *err) {
    attune_store *store = work->store;
    char detail[128];
    if (work->interactions == 0) return ATTUNE_OK;
    snprintf(detail, sizeof detail, "%sinteractions %" PRId64 ", feedback %" PRId64 ", examples %" PRId64, work->what,
             work->interactions, work->feedback, work->examples);
    int code = store_audit(store, work->event, detail, err);
    if (code != ATTUNE_OK || !work->deletes) return code;
    code = store_scrub_mark(store, err);
    if (code == ATTUNE_OK) code = store_sweep_mark(store, err);
    if (code != ATTUNE_OK) return code;
    /* Ids beyond what is left are given again. */
    return store_exec(store,
                      "UPDATE mark SET value = min(value, coalesce((SELECT max(id) FROM interaction), 0)) "
                      "WHERE name = 'derived'",
                      forgetting, err);
}

/* Inside a write transaction: rows from *at on, until its time is over. */
static int work_some(struct work *work, const struct choice *choice, size_t *at, attune_error *err) {
    int64_t until = store_clock_ms() + BATCH_MS;
    int code = work_prepare(work, err);
    while (code == ATTUNE_OK && *at < choice->n && store_clock_ms() < until) {
        int is = 0;
        code = still_there(work, &choice->at[*at], &is, err);
        if (code == ATTUNE_OK && is) code = work->on(work, &choice->at[*at], err);
        ++*at;
    }
    if (code == ATTUNE_OK) code = end_batch(work, err);
    work_release(work);
    return code;
}

static int work_batch(struct work *work, const struct choice *choice, size_t *at, attune_error *err) {
    struct store_revoked before = work->revoked;
    int code = store_enter(work->store, err);
    if (code != ATTUNE_OK) return code;
    code = store_begin(work->store, err);
    if (code == ATTUNE_OK) {
        code = work_some(work, choice, at, err);
        fault_point("forget.batch.before");
        code = store_end(work->store, code, err);
    }
    if (code == ATTUNE_OK && work->revoked.adapters > before.adapters) code = store_revoked_release(work->store, err);
    store_leave(work->store);
    if (code == ATTUNE_OK) {
        fault_point("forget.batch.after");
        work->total.interactions += work->interactions;
        work->total.feedback += work->feedback;
        work->total.examples += work->examples;
    }
    return code;
}

static int work_all(struct work *work, const struct choice *choice, attune_error *err) {
    int code = ATTUNE_OK;
    for (size_t at = 0; at < choice->n && code == ATTUNE_OK;) {
        if (at > 0) pause_between();
        code = work_batch(work, choice, &at, err);
    }
    return code;
}

/* Files and traces. What was deleted stays deleted if this fails. */
static int clean_up(struct work *work, attune_error *err) {
    int left = 0;
    int code = store_scrub_some(work->store, store_clock_ms() + SCRUB_MS, &left, err);
    int pending = 1;
    if (store_enter(work->store, NULL) == ATTUNE_OK) {
        (void)store_scrub_pending(work->store, &pending, NULL);
        store_leave(work->store);
    }
    work->total.scrub_pending = pending;
    return code;
}

static void work_end(struct work *work) {
    work->total.adapters_revoked = work->revoked.adapters;
    work->total.active_before = work->revoked.before;
    work->total.active_after = work->revoked.after;
    free(work->hashes.at);
    free(work->runs.at);
}

/* ---- lineage ---- */

/* 1 in *is: an example or a row has this hash, or it is a tombstone already. */
static int is_known_hash(attune_store *store, sqlite3_stmt *look, const char *hash, int *is, attune_error *err) {
    int code = store_bind(store, look, forgetting, err, "h", hash);
    if (code == ATTUNE_OK) code = store_step(store, look, forgetting, err);
    *is = code == ATTUNE_CONTINUE;
    store_reset(look);
    return code == ATTUNE_CONTINUE || code == ATTUNE_DONE ? ATTUNE_OK : code;
}

/* Inside a write transaction: what is left in a run behind *position, a few hundred at a time. */
static int wipe_lineage(struct work *work, int64_t run, int64_t *position, int *left, attune_error *err) {
    sqlite3_stmt *rows = NULL, *look = NULL;
    char hash[HASH_HEX_SIZE];
    int code = store_prepare(work->store, -1,
                             "SELECT position, content_hash FROM run_example WHERE run = ? AND position > ? "
                             "ORDER BY position LIMIT 400",
                             forgetting, &rows, err);
    if (code == ATTUNE_OK)
        code = store_prepare(work->store, -1,
                             "SELECT 1 FROM digest WHERE content_hash = ?1 UNION ALL SELECT 1 FROM example WHERE "
                             "content_hash = ?1 UNION ALL SELECT 1 FROM tombstone WHERE hash = ?1",
                             forgetting, &look, err);
    if (code == ATTUNE_OK) code = store_bind(work->store, rows, forgetting, err, "ii", run, *position);
    *left = 0;
    while (code == ATTUNE_OK && (code = store_step(work->store, rows, forgetting, err)) == ATTUNE_CONTINUE) {
        int known = 0;
        *left = 1;
        *position = sqlite3_column_int64(rows, 0);
        store_column_text(rows, 1, hash, sizeof hash);
        code = is_known_hash(work->store, look, hash, &known, err);
        if (code == ATTUNE_OK && !known) code = bury(work, hash, err);
    }
    sqlite3_finalize(rows);
    sqlite3_finalize(look);
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}

/* The mark "lineage <run>" says that the run is still to be looked through. */
static int wipe_one_run(struct work *work, int64_t run, attune_error *err) {
    int64_t position = -1;
    int left = 1;
    int code = ATTUNE_OK;
    while (left && code == ATTUNE_OK) {
        code = store_begin(work->store, err);
        if (code != ATTUNE_OK) return code;
        code = work_prepare(work, err);
        if (code == ATTUNE_OK) code = wipe_lineage(work, run, &position, &left, err);
        if (code == ATTUNE_OK && !left) code = run_on(work, UNNOTE_RUN, run, NULL, err);
        work_release(work);
        code = store_end(work->store, code, err);
    }
    return code;
}

int store_lineage_wipe_some(attune_store *store, int64_t until_ms, int *left, attune_error *err) {
    struct work work = {.store = store};
    *left = 0;
    for (;;) {
        int64_t run = 0;
        int code = store_number(store,
                                "SELECT CAST(substr(name, 9) AS INTEGER) FROM mark WHERE name >= 'lineage ' AND "
                                "name < 'lineage!' LIMIT 1",
                                forgetting, &run, err);
        if (code == ATTUNE_ERROR_NOT_FOUND) return ATTUNE_OK;
        if (code == ATTUNE_OK && until_ms && store_clock_ms() >= until_ms) {
            *left = 1;
            return ATTUNE_OK;
        }
        if (code == ATTUNE_OK) code = wipe_one_run(&work, run, err);
        if (code != ATTUNE_OK) return code;
    }
}

/* ---- the public calls ---- */

/* *done: the rows are gone, whatever the code says about the traces. */
static int forget(struct work *work, const attune_filter *filter, int *done, attune_error *err) {
    struct choice choice = {0};
    attune_error *later = err;
    int code = store_flush_queue(work->store, err);
    if (code == ATTUNE_OK) code = choose(work->store, filter, -1, &choice, err);
    int found = code;
    if (code == ATTUNE_OK) code = revoke_all(work, &choice, err);
    if (code == ATTUNE_OK) code = work_all(work, &choice, err);
    free(choice.at);
    *done = code == ATTUNE_OK;
    /* Ids that name nothing may be those of an earlier call that was cut short: what it left goes now. */
    if (found == ATTUNE_ERROR_NOT_FOUND) later = NULL;
    if (*done || found == ATTUNE_ERROR_NOT_FOUND) {
        int cleaned = clean_up(work, later);
        if (*done) code = cleaned;
    }
    return code;
}

int attune_store_forget(attune_store *store, const attune_filter *filter, attune_forget_result *result,
                        attune_error *err) {
    attune_filter taken;
    struct work work = {.store = store,
                        .on = forget_one,
                        .event = "forget",
                        .what = "",
                        .reason = "rows that it learns from were forgotten",
                        .deletes = 1};
    int done = 0;
    int code = store_mine(store, err);
    if (code != ATTUNE_OK) return code;
    store_revoked_start(store, &work.revoked);
    if (!filter)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL,
                         "forgetting wants a filter: an empty one, made with ATTUNE_INIT, names everything");
    code = options_read(&taken, sizeof taken, filter, "attune_filter", err);
    if (code != ATTUNE_OK) return code;
    if (taken.limit || taken.oldest_first)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "forgetting knows no limit and no order: name the rows");
    code = forget(&work, &taken, &done, err);
    work_end(&work);
    int told = done ? options_write(result, &work.total, sizeof work.total, "attune_forget_result", err) : ATTUNE_OK;
    return code == ATTUNE_OK ? told : code;
}

static int consent(struct work *work, int given, const attune_filter *filter, int *done, attune_error *err) {
    attune_filter everything;
    struct choice choice = {0};
    int code = store_flush_queue(work->store, err);
    if (code == ATTUNE_OK && !filter) code = store_consent_set(work->store, given, err);
    *done = code == ATTUNE_OK && !filter && given;
    if (code != ATTUNE_OK || *done) return code;
    ATTUNE_INIT(everything);
    code = choose(work->store, filter ? filter : &everything, !given, &choice, err);
    if (code == ATTUNE_OK && !given) code = revoke_all(work, &choice, err);
    if (code == ATTUNE_OK) code = work_all(work, &choice, err);
    free(choice.at);
    *done = code == ATTUNE_OK;
    return *done && !given ? clean_up(work, err) : code;
}

int attune_store_consent(attune_store *store, int given, const attune_filter *filter, attune_forget_result *result,
                         attune_error *err) {
    attune_filter taken;
    struct work work = {.store = store,
                        .on = given ? give_one : withdraw_one,
                        .event = "consent",
                        .what = given ? "given: " : "withdrawn: ",
                        .reason = "consent to rows that it learns from was withdrawn"};
    int done = 0;
    int code = store_mine(store, err);
    if (code == ATTUNE_OK) code = options_read(&taken, sizeof taken, filter, "attune_filter", err);
    if (code != ATTUNE_OK) return code;
    store_revoked_start(store, &work.revoked);
    code = consent(&work, given != 0, filter ? &taken : NULL, &done, err);
    work_end(&work);
    int told = done ? options_write(result, &work.total, sizeof work.total, "attune_forget_result", err) : ATTUNE_OK;
    return code == ATTUNE_OK ? told : code;
}
