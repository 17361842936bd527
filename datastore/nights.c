/* Rows of nights, their moments, and what work costs. */
#include "datastore/nights.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "datastore/handle.h"

static const char noting[] = "note a night", reading[] = "read the nights", costing[] = "keep what work costs";

/* ---- what may be kept ---- */

static double known(double x) { return isfinite(x) ? x : NAN; }

static double column_double(sqlite3_stmt *s, int column) {
    return sqlite3_column_type(s, column) == SQLITE_NULL ? NAN : sqlite3_column_double(s, column);
}

static int check_text(const char *text, size_t size, const char *what, attune_error *err) {
    if (memchr(text, 0, size)) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the %s has no end within %zu bytes", what, size);
}

static int check_sum(double x, const char *what, attune_error *err) {
    if (isfinite(x) && x >= 0) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the %s of a night cannot be %g", what, x);
}

static int check_count(int64_t n, const char *what, attune_error *err) {
    if (n >= 0) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the %s of a night cannot be %" PRId64, what, n);
}

static int check_night(const struct store_night *n, attune_error *err) {
    const struct {
        double value;
        const char *what;
    } sums[] = {{n->seconds, "seconds"}, {n->work_seconds, "seconds of work"}, {n->cpu_s, "CPU seconds"},
                {n->modelled_cpu_s, "modelled CPU seconds"}, {n->joules_measured, "measured joules"},
                {n->joules_battery, "battery-derived joules"}, {n->joules_modelled, "modelled joules"},
                {n->governor_cpu_s, "governor's CPU seconds"}};
    const struct {
        int64_t value;
        const char *what;
    } counts[] = {{n->runs, "runs"}, {n->tokens, "tokens"}, {n->steps, "steps"}, {n->marked, "marked gaps"},
                  {n->written, "bytes written"}, {n->pauses, "pauses"}};
    int code = check_text(n->kind, sizeof n->kind, "kind of a night", err);
    if (code == ATTUNE_OK) code = check_text(n->state, sizeof n->state, "state of a night", err);
    if (code == ATTUNE_OK) code = check_text(n->reason, sizeof n->reason, "reason of a night", err);
    for (size_t i = 0; code == ATTUNE_OK && i < sizeof sums / sizeof *sums; i++)
        code = check_sum(sums[i].value, sums[i].what, err);
    for (size_t i = 0; code == ATTUNE_OK && i < sizeof counts / sizeof *counts; i++)
        code = check_count(counts[i].value, counts[i].what, err);
    return code;
}

/* ---- rows ---- */

#define NIGHT_COLUMNS                                                                                                  \
    "night_ms, started_ms, ended_ms, kind, state, reason, run, runs, tokens, steps, seconds, work_seconds, cpu_s, "    \
    "modelled_cpu_s, joules_measured, joules_battery, joules_modelled, marked, written, pauses, loss_before, "         \
    "loss_after, adapter, governor_cpu_s, gap_ms, celsius_max"
#define NIGHT_VALUES "?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?"

static int bind_night(attune_store *store, sqlite3_stmt *statement, const struct store_night *n, attune_error *err) {
    return store_bind(store, statement, noting, err, "iiitttiiiidddddddiiiddidddi", n->night_ms, n->started_ms,
                      n->ended_ms, n->kind, n->state, n->reason, n->run, n->runs, n->tokens, n->steps, n->seconds,
                      n->work_seconds, n->cpu_s, n->modelled_cpu_s, n->joules_measured, n->joules_battery,
                      n->joules_modelled, n->marked, n->written, n->pauses, known(n->loss_before),
                      known(n->loss_after), (int64_t)n->adapter, n->governor_cpu_s, known(n->gap_ms),
                      known(n->celsius_max), n->number);
}

static void read_night(sqlite3_stmt *s, struct store_night *out) {
    memset(out, 0, sizeof *out);
    out->night_ms = sqlite3_column_int64(s, 0);
    out->started_ms = sqlite3_column_int64(s, 1);
    out->ended_ms = sqlite3_column_int64(s, 2);
    store_column_text(s, 3, out->kind, sizeof out->kind);
    store_column_text(s, 4, out->state, sizeof out->state);
    store_column_text(s, 5, out->reason, sizeof out->reason);
    out->run = sqlite3_column_int64(s, 6);
    out->runs = sqlite3_column_int64(s, 7);
    out->tokens = sqlite3_column_int64(s, 8);
    out->steps = sqlite3_column_int64(s, 9);
    out->seconds = sqlite3_column_double(s, 10);
    out->work_seconds = sqlite3_column_double(s, 11);
    out->cpu_s = sqlite3_column_double(s, 12);
    out->modelled_cpu_s = sqlite3_column_double(s, 13);
    out->joules_measured = sqlite3_column_double(s, 14);
    out->joules_battery = sqlite3_column_double(s, 15);
    out->joules_modelled = sqlite3_column_double(s, 16);
    out->marked = sqlite3_column_int64(s, 17);
    out->written = sqlite3_column_int64(s, 18);
    out->pauses = sqlite3_column_int64(s, 19);
    out->loss_before = column_double(s, 20);
    out->loss_after = column_double(s, 21);
    out->adapter = sqlite3_column_int(s, 22);
    out->governor_cpu_s = sqlite3_column_double(s, 23);
    out->gap_ms = column_double(s, 24);
    out->celsius_max = column_double(s, 25);
    out->number = sqlite3_column_int64(s, 26);
}

static int put_night(attune_store *store, const struct store_night *night, attune_error *err) {
    static const char sql[] = "UPDATE night SET (" NIGHT_COLUMNS ") = (" NIGHT_VALUES ") WHERE number = ?";
    sqlite3_stmt *statement = NULL;
    int code = check_night(night, err);
    if (code == ATTUNE_OK) code = store_prepare(store, -1, sql, noting, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = bind_night(store, statement, night, err);
    if (code == ATTUNE_OK) code = store_run_statement(store, statement, noting, err);
    sqlite3_finalize(statement);
    if (code == ATTUNE_OK && sqlite3_changes(store->db) == 0)
        code = error_set(err, ATTUNE_ERROR_NOT_FOUND, store->path, "there is no night %" PRId64, night->number);
    return code;
}

/* ---- beginning ---- */

/* One that still runs; ATTUNE_DONE: none. */
static int find_running(attune_store *store, struct store_night *out, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1, "SELECT " NIGHT_COLUMNS ", number FROM night WHERE state = 'running' LIMIT 1",
                             noting, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_step(store, statement, noting, err);
    if (code == ATTUNE_CONTINUE) read_night(statement, out);
    sqlite3_finalize(statement);
    return code;
}

static int end_killed(attune_store *store, store_night_callback killed, void *user, attune_error *err) {
    struct store_night night;
    int code;
    while ((code = find_running(store, &night, err)) == ATTUNE_CONTINUE) {
        int64_t number = night.number;
        strcpy(night.state, "killed");
        if (killed) killed(&night, user);
        strcpy(night.state, "killed");
        night.number = number;
        code = put_night(store, &night, err);
        if (code != ATTUNE_OK) return code;
    }
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}

static int insert_night(attune_store *store, const struct store_night *night, int64_t *number, attune_error *err) {
    static const char sql[] = "INSERT INTO night (" NIGHT_COLUMNS ", number) VALUES (" NIGHT_VALUES ", ?)";
    struct store_night fresh = *night;
    sqlite3_stmt *statement = NULL;
    int code = check_night(night, err);
    if (code == ATTUNE_OK)
        code = store_number(store, "SELECT coalesce(max(number), 0) + 1 FROM night", noting, &fresh.number, err);
    if (code == ATTUNE_OK) code = store_prepare(store, -1, sql, noting, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = bind_night(store, statement, &fresh, err);
    if (code == ATTUNE_OK) code = store_run_statement(store, statement, noting, err);
    sqlite3_finalize(statement);
    *number = fresh.number;
    return code;
}

int store_night_begin(attune_store *store, struct store_night *night, store_night_callback killed, void *user,
                      attune_error *err) {
    int64_t number = 0;
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_begin(store, err);
    if (code == ATTUNE_OK) {
        code = end_killed(store, killed, user, err);
        if (code == ATTUNE_OK) code = insert_night(store, night, &number, err);
        code = store_end(store, code, err);
    }
    if (code == ATTUNE_OK) night->number = number;
    store_leave(store);
    return code;
}

/* ---- as it goes on ---- */

static int put_moments(attune_store *store, int64_t night, const struct store_moment *moments, size_t n,
                       attune_error *err) {
    static const char sql[] = "INSERT INTO moment (night, time_ms, verdict, reason, celsius, watts, percent, loss, "
                              "joules, steps) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
    sqlite3_stmt *statement = NULL;
    int code = n > 0 ? store_prepare(store, -1, sql, noting, &statement, err) : ATTUNE_OK;
    for (size_t i = 0; i < n && code == ATTUNE_OK; i++) {
        const struct store_moment *m = &moments[i];
        code = check_text(m->verdict, sizeof m->verdict, "verdict of a moment", err);
        if (code == ATTUNE_OK) code = check_text(m->reason, sizeof m->reason, "reason of a moment", err);
        if (code == ATTUNE_OK) code = check_sum(m->joules, "joules", err);
        if (code == ATTUNE_OK)
            code = store_bind(store, statement, noting, err, "iittdddddi", night, m->time_ms, m->verdict, m->reason,
                              known(m->celsius), known(m->watts), known(m->percent), known(m->loss), m->joules,
                              m->steps);
        if (code == ATTUNE_OK) code = store_run_statement(store, statement, noting, err);
    }
    sqlite3_finalize(statement);
    return code;
}

int store_night_update(attune_store *store, const struct store_night *night, const struct store_moment *moments,
                       size_t n, attune_error *err) {
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_begin(store, err);
    if (code == ATTUNE_OK) {
        code = put_night(store, night, err);
        if (code == ATTUNE_OK) code = put_moments(store, night->number, moments, n, err);
        code = store_end(store, code, err);
    }
    store_leave(store);
    return code;
}

/* ---- looking ---- */

static int each_night(attune_store *store, int64_t since_ms, int64_t limit, store_night_visit visit, void *user,
                      attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1,
                             "SELECT " NIGHT_COLUMNS ", number FROM night WHERE started_ms >= ?1 "
                             "ORDER BY started_ms DESC, number DESC LIMIT ?2",
                             reading, &statement, err);
    if (code == ATTUNE_OK)
        code = store_bind(store, statement, reading, err, "ii", since_ms, limit > 0 ? limit : (int64_t)-1);
    while (code == ATTUNE_OK && (code = store_step(store, statement, reading, err)) == ATTUNE_CONTINUE) {
        struct store_night night;
        read_night(statement, &night);
        code = visit(&night, user) ? ATTUNE_DONE : ATTUNE_OK;
    }
    sqlite3_finalize(statement);
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}

int store_nights(attune_store *store, int64_t since_ms, int64_t limit, store_night_visit visit, void *user,
                 attune_error *err) {
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_read_begin(store, err);
    if (code == ATTUNE_OK) {
        code = each_night(store, since_ms, limit, visit, user, err);
        store_read_end(store);
    }
    store_leave(store);
    return code;
}

static void read_moment(sqlite3_stmt *s, struct store_moment *out) {
    memset(out, 0, sizeof *out);
    out->time_ms = sqlite3_column_int64(s, 0);
    store_column_text(s, 1, out->verdict, sizeof out->verdict);
    store_column_text(s, 2, out->reason, sizeof out->reason);
    out->celsius = column_double(s, 3);
    out->watts = column_double(s, 4);
    out->percent = column_double(s, 5);
    out->loss = column_double(s, 6);
    out->joules = sqlite3_column_double(s, 7);
    out->steps = sqlite3_column_int64(s, 8);
}

struct moments {
    struct store_moment *list;
    size_t n, room;
};

static int add_moment(struct moments *moments, sqlite3_stmt *statement, attune_error *err) {
    if (moments->n == moments->room) {
        size_t room = moments->room ? 2 * moments->room : 64, bytes;
        struct store_moment *more = checked_mul(room, sizeof *more, &bytes) ? realloc(moments->list, bytes) : NULL;
        if (!more) return error_set_memory(err, "the moments of a night", room * sizeof *more);
        moments->list = more;
        moments->room = room;
    }
    read_moment(statement, &moments->list[moments->n++]);
    return ATTUNE_OK;
}

int store_moments(attune_store *store, int64_t night, struct store_moment **out, size_t *n, attune_error *err) {
    static const char sql[] = "SELECT time_ms, verdict, reason, celsius, watts, percent, loss, joules, steps "
                              "FROM moment WHERE night = ? ORDER BY time_ms, id";
    struct moments moments = {0};
    sqlite3_stmt *statement = NULL;
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_prepare(store, -1, sql, reading, &statement, err);
    if (code == ATTUNE_OK) code = store_bind(store, statement, reading, err, "i", night);
    while (code == ATTUNE_OK && (code = store_step(store, statement, reading, err)) == ATTUNE_CONTINUE)
        code = add_moment(&moments, statement, err);
    sqlite3_finalize(statement);
    store_leave(store);
    if (code != ATTUNE_DONE) {
        free(moments.list);
        return code;
    }
    *out = moments.list;
    *n = moments.n;
    return ATTUNE_OK;
}

int store_spent_since(attune_store *store, int64_t since_ms, struct store_spent *out, attune_error *err) {
    static const char sql[] = "SELECT total(seconds), total(joules_measured), total(joules_battery), "
                              "total(joules_modelled), coalesce(sum(written), 0) FROM night WHERE started_ms >= ?";
    sqlite3_stmt *statement = NULL;
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_prepare(store, -1, sql, reading, &statement, err);
    if (code == ATTUNE_OK) code = store_bind(store, statement, reading, err, "i", since_ms);
    if (code == ATTUNE_OK) code = store_step(store, statement, reading, err);
    if (code == ATTUNE_CONTINUE)
        *out = (struct store_spent){.seconds = sqlite3_column_double(statement, 0),
                                    .joules_measured = sqlite3_column_double(statement, 1),
                                    .joules_battery = sqlite3_column_double(statement, 2),
                                    .joules_modelled = sqlite3_column_double(statement, 3),
                                    .written = sqlite3_column_int64(statement, 4)};
    sqlite3_finalize(statement);
    store_leave(store);
    return code == ATTUNE_CONTINUE ? ATTUNE_OK : code;
}

/* ---- retention ---- */

int store_nights_remove(attune_store *store, int64_t before_ms, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_begin(store, err);
    if (code == ATTUNE_OK) {
        code = store_prepare(store, -1, "DELETE FROM night WHERE started_ms < ? AND state <> 'running'", noting,
                             &statement, err);
        if (code == ATTUNE_OK) code = store_bind(store, statement, noting, err, "i", before_ms);
        if (code == ATTUNE_OK) code = store_run_statement(store, statement, noting, err);
        sqlite3_finalize(statement);
        code = store_end(store, code, err);
    }
    store_leave(store);
    return code;
}

/* ---- what work costs ---- */

static int get_cost(attune_store *store, const char *key, struct store_cost *out, attune_error *err) {
    sqlite3_stmt *s = NULL;
    int code = store_prepare(store, -1,
                             "SELECT key, seconds_per_unit, watts, seconds_spread, watts_spread, weight, updated_ms "
                             "FROM cost WHERE key = ?",
                             costing, &s, err);
    if (code == ATTUNE_OK) code = store_bind(store, s, costing, err, "t", key);
    if (code == ATTUNE_OK) code = store_step(store, s, costing, err);
    if (code == ATTUNE_CONTINUE) {
        memset(out, 0, sizeof *out);
        store_column_text(s, 0, out->key, sizeof out->key);
        out->seconds_per_unit = column_double(s, 1);
        out->watts = column_double(s, 2);
        out->seconds_spread = column_double(s, 3);
        out->watts_spread = column_double(s, 4);
        out->weight = sqlite3_column_double(s, 5);
        out->updated_ms = sqlite3_column_int64(s, 6);
    }
    sqlite3_finalize(s);
    if (code == ATTUNE_DONE)
        return error_set(err, ATTUNE_ERROR_NOT_FOUND, store->path, "nothing is known yet of what %.191s costs", key);
    return code == ATTUNE_CONTINUE ? ATTUNE_OK : code;
}

int store_cost_get(attune_store *store, const char *key, struct store_cost *out, attune_error *err) {
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = get_cost(store, key, out, err);
    store_leave(store);
    return code;
}

static int put_cost(attune_store *store, const struct store_cost *cost, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1,
                             "REPLACE INTO cost (key, seconds_per_unit, watts, seconds_spread, watts_spread, weight, "
                             "updated_ms) VALUES (?, ?, ?, ?, ?, ?, ?)",
                             costing, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_bind(store, statement, costing, err, "tdddddi", cost->key, known(cost->seconds_per_unit),
                      known(cost->watts), known(cost->seconds_spread), known(cost->watts_spread), cost->weight,
                      cost->updated_ms);
    if (code == ATTUNE_OK) code = store_run_statement(store, statement, costing, err);
    sqlite3_finalize(statement);
    return code;
}

int store_cost_put(attune_store *store, const struct store_cost *cost, attune_error *err) {
    int code = check_text(cost->key, sizeof cost->key, "key of a cost", err);
    if (code == ATTUNE_OK && (!cost->key[0] || !isfinite(cost->weight) || cost->weight < 0))
        code = error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "a cost wants a key and a weight that is 0 or more");
    if (code == ATTUNE_OK) code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_begin(store, err);
    if (code == ATTUNE_OK) code = store_end(store, put_cost(store, cost, err), err);
    store_leave(store);
    return code;
}
