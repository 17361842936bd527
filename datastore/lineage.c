#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/fault.h"
#include "datastore/derive.h"
#include "datastore/lineage.h"

static const char noting_run[] = "note the run", reading_run[] = "read the runs";
static const char noting_adapter[] = "note the adapter", reading_adapter[] = "read the adapters";

static int one_of(const char *value, const char *const *allowed, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (strcmp(value, allowed[i]) == 0) return 1;
    return 0;
}

static double column_double(sqlite3_stmt *statement, int column) {
    return sqlite3_column_type(statement, column) == SQLITE_NULL ? NAN : sqlite3_column_double(statement, column);
}

/* The state that the row with this number has; "" when there is none. */
static int state_of(attune_store *store, const char *sql, int64_t number, char state[24], attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1, sql, reading_run, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_bind(store, statement, reading_run, err, "i", number);
    if (code == ATTUNE_OK) code = store_step(store, statement, reading_run, err);
    state[0] = '\0';
    if (code == ATTUNE_CONTINUE) store_column_text(statement, 0, state, 24);
    sqlite3_finalize(statement);
    return code == ATTUNE_CONTINUE || code == ATTUNE_DONE ? ATTUNE_OK : code;
}

static int run_state(attune_store *store, int64_t run, char state[24], attune_error *err) {
    return state_of(store, "SELECT state FROM run WHERE number = ?", run, state, err);
}

static int adapter_state(attune_store *store, int number, char state[24], attune_error *err) {
    return state_of(store, "SELECT state FROM adapter WHERE number = ?", number, state, err);
}

static int check_run_state(const struct store_run *run, attune_error *err) {
    static const char *const states[] = {"unfinished", "published", "refused", "failed"};
    if (one_of(run->state, states, sizeof states / sizeof states[0])) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "a run cannot be '%s'", run->state);
}

/* ---- runs ---- */

#define RUN_COLUMNS                                                                                                    \
    "id, started_ms, ended_ms, state, reason, base_sha256, parent, seed, configuration, evaluation, loss_before, "     \
    "loss_after, loss_interval, examples, held_out, epochs, steps, steps_done, tokens, seconds, tokens_per_s, adapter"

static int bind_run(attune_store *store, sqlite3_stmt *statement, const struct store_run *run, attune_error *err) {
    return store_bind(store, statement, noting_run, err, "tiitttiittdddiiiiiiddii", run->id, run->started_ms,
                      run->ended_ms, run->state, run->reason, run->base_sha256, (int64_t)run->parent,
                      (int64_t)run->seed, run->configuration, run->evaluation, run->loss_before, run->loss_after,
                      run->loss_interval, run->examples, run->held_out, run->epochs, run->steps, run->steps_done,
                      run->tokens, run->seconds, run->tokens_per_s, (int64_t)run->adapter, run->number);
}

static void read_run(sqlite3_stmt *s, struct store_run *out) {
    memset(out, 0, sizeof *out);
    store_column_text(s, 0, out->id, sizeof out->id);
    out->started_ms = sqlite3_column_int64(s, 1);
    out->ended_ms = sqlite3_column_int64(s, 2);
    store_column_text(s, 3, out->state, sizeof out->state);
    store_column_text(s, 4, out->reason, sizeof out->reason);
    store_column_text(s, 5, out->base_sha256, sizeof out->base_sha256);
    out->parent = sqlite3_column_int(s, 6);
    out->seed = (uint64_t)sqlite3_column_int64(s, 7);
    store_column_text(s, 8, out->configuration, sizeof out->configuration);
    store_column_text(s, 9, out->evaluation, sizeof out->evaluation);
    out->loss_before = column_double(s, 10);
    out->loss_after = column_double(s, 11);
    out->loss_interval = column_double(s, 12);
    out->examples = sqlite3_column_int64(s, 13);
    out->held_out = sqlite3_column_int64(s, 14);
    out->epochs = sqlite3_column_int64(s, 15);
    out->steps = sqlite3_column_int64(s, 16);
    out->steps_done = sqlite3_column_int64(s, 17);
    out->tokens = sqlite3_column_int64(s, 18);
    out->seconds = column_double(s, 19);
    out->tokens_per_s = column_double(s, 20);
    out->adapter = sqlite3_column_int(s, 21);
    out->number = sqlite3_column_int64(s, 22);
}

static int insert_run(attune_store *store, const struct store_run *run, int64_t *number, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    struct store_run fresh = *run;
    int code = store_prepare(store, -1,
                             "INSERT INTO run (" RUN_COLUMNS ", number) VALUES "
                             "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, nullif(?, 0))",
                             noting_run, &statement, err);
    if (code != ATTUNE_OK) return code;
    fresh.number = 0;
    code = bind_run(store, statement, &fresh, err);
    if (code == ATTUNE_OK) code = store_run_statement(store, statement, noting_run, err);
    sqlite3_finalize(statement);
    *number = sqlite3_last_insert_rowid(store->db);
    return code;
}

/* A parameter each: a run and what it is about. */
static int put_run_interaction(attune_store *store, sqlite3_stmt *put, int64_t run, int64_t interaction,
                               attune_error *err) {
    if (interaction == 0) return ATTUNE_OK;
    int code = store_bind(store, put, noting_run, err, "ii", run, interaction);
    return code == ATTUNE_OK ? store_run_statement(store, put, noting_run, err) : code;
}

static int insert_lineage(attune_store *store, int64_t run, const struct store_run_example *examples, size_t n,
                          attune_error *err) {
    sqlite3_stmt *put = NULL;
    int code = store_prepare(store, -1, "INSERT OR IGNORE INTO run_interaction (run, interaction) VALUES (?, ?)",
                             noting_run, &put, err);
    for (size_t i = 0; code == ATTUNE_OK && i < n; i++) {
        code = put_run_interaction(store, put, run, examples[i].interaction, err);
        if (code == ATTUNE_OK) code = put_run_interaction(store, put, run, examples[i].other, err);
    }
    sqlite3_finalize(put);
    return code;
}

/* Between reading the examples and beginning the run they may have been forgotten, or their consent withdrawn: the run
 * would learn from what nothing in the store remembers any more. */
static int check_examples(attune_store *store, const struct store_run_example *examples, size_t n, attune_error *err) {
    sqlite3_stmt *look = NULL;
    int code = store_prepare(store, -1, "SELECT 1 FROM example WHERE interaction = ? AND content_hash = ?", reading_run,
                             &look, err);
    for (size_t i = 0; code == ATTUNE_OK && i < n; i++) {
        if (examples[i].interaction == 0) continue;
        code = store_bind(store, look, reading_run, err, "ih", examples[i].interaction, examples[i].content_hash);
        if (code == ATTUNE_OK) code = store_step(store, look, reading_run, err);
        store_reset(look);
        if (code == ATTUNE_DONE)
            code = error_set(err, ATTUNE_ERROR_STATE, store->path,
                             "rows of this plan were changed or forgotten while it was made: plan again");
        if (code == ATTUNE_CONTINUE) code = ATTUNE_OK;
    }
    sqlite3_finalize(look);
    return code;
}

static int check_parent(attune_store *store, int parent, attune_error *err) {
    char state[24];
    int code = adapter_state(store, parent, state, err);
    if (code != ATTUNE_OK || strcmp(state, "revoked") != 0) return code;
    return error_set(err, ATTUNE_ERROR_STATE, store->path,
                     "adapter %d was revoked while a run that starts from it was planned: plan again", parent);
}

static int insert_run_examples(attune_store *store, int64_t run, const struct store_run_example *examples, size_t n,
                               attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code =
        store_prepare(store, -1, "INSERT INTO run_example (run, position, held_out, content_hash) VALUES (?, ?, ?, ?)",
                      noting_run, &statement, err);
    for (size_t i = 0; code == ATTUNE_OK && i < n; i++) {
        code = store_bind(store, statement, noting_run, err, "iiit", run, examples[i].position,
                          (int64_t)examples[i].held_out, examples[i].content_hash);
        if (code == ATTUNE_OK) code = store_run_statement(store, statement, noting_run, err);
    }
    sqlite3_finalize(statement);
    return code;
}

int store_run_begin(attune_store *store, struct store_run *run, const struct store_run_example *examples, size_t n,
                    attune_error *err) {
    int64_t number = 0;
    int code = check_run_state(run, err);
    if (code == ATTUNE_OK) code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_begin(store, err);
    if (code == ATTUNE_OK) {
        code = check_parent(store, run->parent, err);
        if (code == ATTUNE_OK) code = check_examples(store, examples, n, err);
        if (code == ATTUNE_OK) code = insert_run(store, run, &number, err);
        if (code == ATTUNE_OK) code = insert_run_examples(store, number, examples, n, err);
        if (code == ATTUNE_OK) code = insert_lineage(store, number, examples, n, err);
        code = store_end(store, code, err);
    }
    store_leave(store);
    if (code == ATTUNE_OK) run->number = number;
    return code;
}

static int ended(const attune_store *store, int64_t run, attune_error *err) {
    return error_set(err, ATTUNE_ERROR_STATE, store->path,
                     "run %" PRId64 " was ended: rows that it learns from were forgotten, or their consent withdrawn",
                     run);
}

/* Inside a write transaction: forgetting cannot come between this and what follows. */
static int need_unfinished(attune_store *store, int64_t run, attune_error *err) {
    char state[24];
    int code = run_state(store, run, state, err);
    return code == ATTUNE_OK && strcmp(state, "unfinished") != 0 ? ended(store, run, err) : code;
}

/* Inside a write transaction. A run that failed stays so: forgetting ends runs whose process goes on for a while. */
static int update_run(attune_store *store, const struct store_run *run, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    char state[24];
    int code = run_state(store, run->number, state, err);
    if (code == ATTUNE_OK && strcmp(state, "failed") == 0 && strcmp(run->state, "failed") != 0)
        code = ended(store, run->number, err);
    if (code != ATTUNE_OK) return code;
    code = store_prepare(store, -1,
                         "UPDATE run SET (" RUN_COLUMNS ") = (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, "
                         "?, ?, ?, ?) WHERE number = ?",
                         noting_run, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = bind_run(store, statement, run, err);
    if (code == ATTUNE_OK) code = store_run_statement(store, statement, noting_run, err);
    sqlite3_finalize(statement);
    if (code == ATTUNE_OK && sqlite3_changes(store->db) == 0)
        code = error_set(err, ATTUNE_ERROR_NOT_FOUND, store->path, "there is no run %" PRId64, run->number);
    if (code == ATTUNE_OK && strcmp(run->state, "published") == 0)
        code = store_examples_consumed(store, run->number, err);
    return code;
}

int store_run_write(attune_store *store, const struct store_run *run, attune_error *err) {
    int code = check_run_state(run, err);
    return code == ATTUNE_OK ? update_run(store, run, err) : code;
}

int store_run_update(attune_store *store, const struct store_run *run, attune_error *err) {
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_begin(store, err);
    if (code == ATTUNE_OK) code = store_end(store, store_run_write(store, run, err), err);
    store_leave(store);
    return code;
}

int store_run_last(attune_store *store, const char *state, struct store_run *out, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_prepare(store, -1,
                         "SELECT " RUN_COLUMNS ", number FROM run WHERE ?1 IS NULL OR state = ?1 "
                         "ORDER BY number DESC LIMIT 1",
                         reading_run, &statement, err);
    if (code == ATTUNE_OK) code = store_bind(store, statement, reading_run, err, "t", state);
    if (code == ATTUNE_OK) code = store_step(store, statement, reading_run, err);
    if (code == ATTUNE_CONTINUE) {
        read_run(statement, out);
        code = ATTUNE_OK;
    } else if (code == ATTUNE_DONE) {
        code = error_set(err, ATTUNE_ERROR_NOT_FOUND, store->path, "there is no %s%srun yet", state ? state : "",
                         state ? " " : "");
    }
    sqlite3_finalize(statement);
    store_leave(store);
    return code;
}

int store_run_alive(attune_store *store, int64_t run, int *alive, attune_error *err) {
    char state[24];
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = run_state(store, run, state, err);
    store_leave(store);
    if (code == ATTUNE_OK) *alive = strcmp(state, "unfinished") == 0;
    return code;
}

int store_while_unfinished(attune_store *store, int64_t run, store_swap_callback rename, void *user,
                           attune_error *err) {
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_begin(store, err);
    if (code == ATTUNE_OK) {
        code = need_unfinished(store, run, err);
        if (code == ATTUNE_OK) code = rename(user, err);
        code = store_end(store, code, err);
    }
    store_leave(store);
    return code;
}

static int collect_run_examples(attune_store *store, sqlite3_stmt *statement, struct store_run_example **list,
                                size_t *n, attune_error *err) {
    size_t room = 0;
    int code;
    while ((code = store_step(store, statement, reading_run, err)) == ATTUNE_CONTINUE) {
        if (*n == room) {
            room = room ? room * 2 : 256;
            struct store_run_example *more = realloc(*list, room * sizeof *more);
            if (!more) return error_set_memory(err, "the examples of a run", room * sizeof *more);
            *list = more;
        }
        struct store_run_example *example = &(*list)[(*n)++];
        store_column_text(statement, 0, example->content_hash, sizeof example->content_hash);
        example->position = sqlite3_column_int64(statement, 1);
        example->held_out = sqlite3_column_int(statement, 2);
    }
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}

int store_run_examples(attune_store *store, int64_t run, struct store_run_example **out, size_t *n, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    struct store_run_example *list = NULL;
    size_t count = 0;
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_prepare(store, -1,
                         "SELECT content_hash, position, held_out FROM run_example WHERE run = ? "
                         "ORDER BY position, held_out",
                         reading_run, &statement, err);
    if (code == ATTUNE_OK) code = store_bind(store, statement, reading_run, err, "i", run);
    if (code == ATTUNE_OK) code = collect_run_examples(store, statement, &list, &count, err);
    sqlite3_finalize(statement);
    store_leave(store);
    if (code != ATTUNE_OK) {
        free(list);
        return code;
    }
    *out = list;
    *n = count;
    return ATTUNE_OK;
}

static const char lineage_hashes[] =
    "WITH RECURSIVE line (parent, run) AS (SELECT parent, run FROM adapter WHERE number = ?"
    " UNION SELECT a.parent, a.run FROM adapter a JOIN line ON a.number = line.parent)"
    " SELECT DISTINCT e.content_hash FROM run_example e JOIN line ON e.run = line.run WHERE e.held_out = 0 ORDER BY 1";

static int collect_hashes(attune_store *store, sqlite3_stmt *statement, char (**list)[65], size_t *n,
                          attune_error *err) {
    size_t room = 0;
    int code;
    while ((code = store_step(store, statement, reading_run, err)) == ATTUNE_CONTINUE) {
        if (*n == room) {
            room = room ? 2 * room : 256;
            char(*more)[65] = realloc(*list, room * sizeof *more);
            if (!more) return error_set_memory(err, "the rows of a lineage", room * sizeof *more);
            *list = more;
        }
        store_column_text(statement, 0, (*list)[(*n)++], sizeof **list);
    }
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}

int store_lineage_hashes(attune_store *store, int number, char (**out)[65], size_t *n, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    char(*list)[65] = NULL;
    size_t count = 0;
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_prepare(store, -1, lineage_hashes, reading_run, &statement, err);
    if (code == ATTUNE_OK) code = store_bind(store, statement, reading_run, err, "i", (int64_t)number);
    if (code == ATTUNE_OK) code = collect_hashes(store, statement, &list, &count, err);
    sqlite3_finalize(statement);
    store_leave(store);
    if (code != ATTUNE_OK) {
        free(list);
        return code;
    }
    *out = list;
    *n = count;
    return ATTUNE_OK;
}

/* ---- adapters ---- */

#define ADAPTER_COLUMNS                                                                                                \
    "number, parent, state, origin, sha256, run_id, created_ms, bytes, examples, rank, alpha, loss_before, loss_after"
/* of a rejected one alone: a reason outlives the choice of somebody who uses it again */
#define ADAPTER_REASON ", CASE state WHEN 'rejected' THEN reason ELSE '' END"

static void read_adapter(sqlite3_stmt *s, attune_adapter_info *out) {
    memset(out, 0, sizeof *out);
    out->size = sizeof *out;
    out->number = sqlite3_column_int(s, 0);
    out->parent = sqlite3_column_int(s, 1);
    store_column_text(s, 2, out->state, sizeof out->state);
    out->active = strcmp(out->state, "active") == 0;
    store_column_text(s, 3, out->origin, sizeof out->origin);
    store_column_text(s, 4, out->sha256, sizeof out->sha256);
    store_column_text(s, 5, out->run, sizeof out->run);
    out->created_ms = sqlite3_column_int64(s, 6);
    out->bytes = sqlite3_column_int64(s, 7);
    out->examples = sqlite3_column_int64(s, 8);
    out->rank = sqlite3_column_int(s, 9);
    out->alpha = column_double(s, 10);
    out->loss_before = column_double(s, 11);
    out->loss_after = column_double(s, 12);
    store_column_text(s, 13, out->reason, sizeof out->reason);
}

static int check_adapter_state(const char *state, attune_error *err) {
    static const char *const states[] = {"candidate", "active", "retired", "revoked", "rejected"};
    if (one_of(state, states, sizeof states / sizeof states[0])) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "an adapter cannot be '%s'", state);
}

/* A change of state: ?1 is the number, ?2 the state if there is one. */
static int change(attune_store *store, const char *sql, const char *state, int number, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1, sql, noting_adapter, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = state ? store_bind(store, statement, noting_adapter, err, "it", (int64_t)number, state)
                 : store_bind(store, statement, noting_adapter, err, "i", (int64_t)number);
    if (code == ATTUNE_OK) code = store_run_statement(store, statement, noting_adapter, err);
    sqlite3_finalize(statement);
    return code;
}

static int unknown(const attune_store *store, int number, attune_error *err) {
    return error_set(err, ATTUNE_ERROR_NOT_FOUND, store->path, "there is no adapter %d", number);
}

static int revoked(const attune_store *store, int number, attune_error *err) {
    return error_set(err, ATTUNE_ERROR_STATE, store->path,
                     "adapter %d was revoked, as it learned from what was forgotten: nothing brings it back", number);
}

static int retire_others(attune_store *store, int number, attune_error *err) {
    return change(store, "UPDATE adapter SET state = 'retired' WHERE state = 'active' AND number <> ?1", NULL, number,
                  err);
}

/* Inside a write transaction. What was revoked, or comes from a run that was ended, does not come (back) to life. */
static int check_adapter_alive(attune_store *store, const attune_adapter_info *info, int64_t run, attune_error *err) {
    char state[24];
    int code = adapter_state(store, info->number, state, err);
    if (code == ATTUNE_OK && strcmp(state, "revoked") == 0) code = revoked(store, info->number, err);
    if (code == ATTUNE_OK) code = run_state(store, run, state, err);
    return code == ATTUNE_OK && strcmp(state, "failed") == 0 ? ended(store, run, err) : code;
}

static int put_adapter(attune_store *store, const attune_adapter_info *info, int64_t run_number, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = check_adapter_alive(store, info, run_number, err);
    if (code != ATTUNE_OK) return code;
    if (strcmp(info->state, "active") == 0) code = retire_others(store, info->number, err);
    if (code == ATTUNE_OK)
        code = store_prepare(store, -1,
                             "REPLACE INTO adapter (" ADAPTER_COLUMNS ", run) "
                             "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, nullif(?, 0))",
                             noting_adapter, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_bind(store, statement, noting_adapter, err, "iittttiiiidddi", (int64_t)info->number,
                      (int64_t)info->parent, info->state, info->origin, info->sha256, info->run, info->created_ms,
                      info->bytes, info->examples, (int64_t)info->rank, info->alpha, info->loss_before,
                      info->loss_after, run_number);
    if (code == ATTUNE_OK) code = store_run_statement(store, statement, noting_adapter, err);
    sqlite3_finalize(statement);
    return code;
}

int store_adapter_put(attune_store *store, const attune_adapter_info *info, int64_t run_number, attune_error *err) {
    int code = check_adapter_state(info->state, err);
    if (code == ATTUNE_OK && info->number <= 0)
        code = error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "an adapter cannot have the number %d", info->number);
    if (code == ATTUNE_OK && strcmp(info->origin, "trained") != 0 && strcmp(info->origin, "imported") != 0)
        code = error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the origin of an adapter cannot be '%s'", info->origin);
    if (code == ATTUNE_OK) code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_begin(store, err);
    if (code == ATTUNE_OK) code = store_end(store, put_adapter(store, info, run_number, err), err);
    store_leave(store);
    return code;
}

static int get_adapter(attune_store *store, int number, attune_adapter_info *out, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1, "SELECT " ADAPTER_COLUMNS ADAPTER_REASON " FROM adapter WHERE number = ?",
                             reading_adapter, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_bind(store, statement, reading_adapter, err, "i", (int64_t)number);
    if (code == ATTUNE_OK) code = store_step(store, statement, reading_adapter, err);
    if (code == ATTUNE_CONTINUE) {
        read_adapter(statement, out);
        code = ATTUNE_OK;
    } else if (code == ATTUNE_DONE) {
        code = unknown(store, number, err);
    }
    sqlite3_finalize(statement);
    return code;
}

int store_adapter_get(attune_store *store, int number, attune_adapter_info *out, attune_error *err) {
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = get_adapter(store, number, out, err);
    store_leave(store);
    return code;
}

int store_adapters(attune_store *store, attune_adapter_callback callback, void *user, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_read_begin(store, err);
    if (code == ATTUNE_OK) {
        code = store_prepare(store, -1, "SELECT " ADAPTER_COLUMNS ADAPTER_REASON " FROM adapter ORDER BY number",
                             reading_adapter, &statement, err);
        while (code == ATTUNE_OK && (code = store_step(store, statement, reading_adapter, err)) == ATTUNE_CONTINUE) {
            attune_adapter_info info;
            read_adapter(statement, &info);
            code = callback(&info, user) ? ATTUNE_DONE : ATTUNE_OK;
        }
        sqlite3_finalize(statement);
        store_read_end(store);
    }
    store_leave(store);
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}

int store_adapter_set(attune_store *store, int number, const char *state, attune_error *err) {
    char was[24], detail[48];
    int active = strcmp(state, "active") == 0, revoke = strcmp(state, "revoked") == 0;
    if (number == 0) return active ? retire_others(store, number, err) : ATTUNE_OK;
    int code = adapter_state(store, number, was, err);
    if (code != ATTUNE_OK) return code;
    if (!was[0]) return unknown(store, number, err);
    if (strcmp(was, "revoked") == 0) return revoke ? ATTUNE_OK : revoked(store, number, err);
    if (active) code = retire_others(store, number, err);
    if (code == ATTUNE_OK) code = change(store, "UPDATE adapter SET state = ?2 WHERE number = ?1", state, number, err);
    if (code != ATTUNE_OK || !revoke) return code;
    snprintf(detail, sizeof detail, "adapter %d", number);
    return store_audit(store, "revoke", detail, err);
}

static int set_state_now(attune_store *store, int number, const char *state, attune_error *err) {
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_begin(store, err);
    if (code == ATTUNE_OK) code = store_end(store, store_adapter_set(store, number, state, err), err);
    store_leave(store);
    return code;
}

int store_adapter_activate(attune_store *store, int number, attune_error *err) {
    return set_state_now(store, number, "active", err);
}

int store_adapter_state_set(attune_store *store, int number, const char *state, attune_error *err) {
    int code = check_adapter_state(state, err);
    if (code == ATTUNE_OK && number <= 0)
        code = error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the base (number %d) has no state", number);
    return code == ATTUNE_OK ? set_state_now(store, number, state, err) : code;
}

/* ---- publishing ---- */

/* Inside a write transaction. CURRENT comes before the rows: it rules over them, and should the commit fail or the
 * process die here, they follow it later. */
static int publish(attune_store *store, const struct store_run *run, int adapter, store_swap_callback swap, void *user,
                   attune_error *err) {
    char state[24];
    int code = run ? need_unfinished(store, run->number, err) : ATTUNE_OK;
    if (code == ATTUNE_OK) code = adapter_state(store, adapter, state, err);
    if (code == ATTUNE_OK && adapter != 0 && !state[0]) code = unknown(store, adapter, err);
    if (code == ATTUNE_OK && strcmp(state, "revoked") == 0) code = revoked(store, adapter, err);
    if (code == ATTUNE_OK) code = swap(user, err);
    if (code == ATTUNE_OK) fault_point("store.publish.swapped");
    if (code == ATTUNE_OK) code = store_adapter_set(store, adapter, "active", err);
    if (code != ATTUNE_OK || !run) return code;
    struct store_run published = *run;
    snprintf(published.state, sizeof published.state, "published");
    published.adapter = adapter;
    return update_run(store, &published, err);
}

int store_publish(attune_store *store, const struct store_run *run, int adapter, store_swap_callback swap, void *user,
                  attune_error *err) {
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_begin(store, err);
    if (code == ATTUNE_OK) code = store_end(store, publish(store, run, adapter, swap, user, err), err);
    store_leave(store);
    return code;
}
