#include "datastore/query.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/options.h"
#include "datastore/jsonl.h"
#include "datastore/search.h"

static const char selecting[] = "look for interactions";

/* Interactions of one app from which on a limited list is read along the times: the newest of them stand near the
 * end, and reading all of them to sort them would touch most of the store. */
enum { MANY = 10000 };

/* ---- the list ---- */

struct entry {
    int64_t time_ms, id;
};
struct list {
    struct entry *entries;
    size_t n, room;
};

static int list_add(struct list *list, int64_t time_ms, int64_t id, attune_error *err) {
    if (list->n == list->room) {
        size_t room = list->room ? list->room * 2 : 64;
        struct entry *more = realloc(list->entries, room * sizeof *more);
        if (!more) return error_set_memory(err, "a list of interactions", room * sizeof *more);
        list->entries = more;
        list->room = room;
    }
    list->entries[list->n++] = (struct entry){time_ms, id};
    return ATTUNE_OK;
}

/* The newest first. */
static int compare_entries(const void *a, const void *b) {
    const struct entry *x = a, *y = b;
    if (x->time_ms != y->time_ms) return x->time_ms > y->time_ms ? -1 : 1;
    return x->id == y->id ? 0 : x->id > y->id ? -1 : 1;
}

static int compare_ids(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

/* ---- filters ---- */

static int filter_check(const attune_filter *filter, attune_error *err) {
    if (filter->n_ids > 0 && !filter->ids)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, "attune_filter", "n_ids is %zu, but ids is NULL", filter->n_ids);
    if (filter->since_ms < 0 || filter->until_ms < 0)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, "attune_filter", "the times must not be negative");
    if (filter->limit < 0) return error_set(err, ATTUNE_ERROR_ARGUMENT, "attune_filter", "limit must not be negative");
    return ATTUNE_OK;
}

/* Parameters: 1 since, 2 until, 3 app, 4 session, 5 what `sql` adds. */
static int prepare_filtered(attune_store *store, const char *sql, const attune_filter *filter, int64_t fifth,
                            sqlite3_stmt **out, attune_error *err) {
    int code = store_prepare(store, -1, sql, selecting, out, err);
    if (code != ATTUNE_OK) return code;
    code = store_bind(store, *out, selecting, err, "iitti", filter->since_ms,
                      filter->until_ms ? filter->until_ms : INT64_MAX, filter->app, filter->session, fifth);
    if (code != ATTUNE_OK) sqlite3_finalize(*out);
    return code;
}

#define WITHIN "time_ms >= ?1 AND time_ms < ?2"

static const char *labels_of(const attune_filter *filter) {
    if (filter->app && filter->session) return " AND app = ?3 AND session = ?4";
    return filter->app ? " AND app = ?3" : filter->session ? " AND session = ?4" : "";
}

/* ---- by time, app and session ---- */

/* The index that leads to fewer rows. */
static int choose_index(attune_store *store, const attune_filter *filter, const char **index, attune_error *err) {
    char sql[256];
    sqlite3_stmt *statement = NULL;
    *index = "interaction_time";
    if (!filter->app) return ATTUNE_OK;
    *index = "interaction_session";
    if (!filter->limit && !filter->since_ms && !filter->until_ms) return ATTUNE_OK;
    snprintf(sql, sizeof sql,
             "SELECT count(*) FROM (SELECT 1 FROM interaction INDEXED BY interaction_session WHERE 1%s LIMIT ?5)",
             labels_of(filter));
    int code = prepare_filtered(store, sql, filter, MANY, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_step(store, statement, selecting, err);
    if (code == ATTUNE_CONTINUE && sqlite3_column_int64(statement, 0) == MANY) *index = "interaction_time";
    sqlite3_finalize(statement);
    return code == ATTUNE_CONTINUE || code == ATTUNE_DONE ? ATTUNE_OK : code;
}

static int select_all(attune_store *store, const attune_filter *filter, struct list *list, attune_error *err) {
    char sql[320];
    const char *index;
    sqlite3_stmt *statement = NULL;
    int code = choose_index(store, filter, &index, err);
    if (code != ATTUNE_OK) return code;
    snprintf(sql, sizeof sql,
             "SELECT time_ms, id FROM interaction INDEXED BY %s WHERE " WITHIN "%s "
             "ORDER BY time_ms DESC, id DESC LIMIT ?5",
             index, labels_of(filter));
    code = prepare_filtered(store, sql, filter, filter->limit ? filter->limit : -1, &statement, err);
    if (code != ATTUNE_OK) return code;
    while ((code = store_step(store, statement, selecting, err)) == ATTUNE_CONTINUE) {
        code = list_add(list, sqlite3_column_int64(statement, 0), sqlite3_column_int64(statement, 1), err);
        if (code != ATTUNE_OK) break;
    }
    sqlite3_finalize(statement);
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}

/* ---- out of a set: ids that were given, words that were found ---- */

struct set {
    int64_t *ids; /* ascending, each once */
    size_t n;
};

static int set_of_ids(attune_store *store, const attune_filter *filter, struct set *set, attune_error *err) {
    int code = ATTUNE_OK;
    size_t kept = 0;
    set->ids = calloc(filter->n_ids + 1, sizeof *set->ids);
    if (!set->ids) return error_set_memory(err, "a list of interactions", filter->n_ids * sizeof *set->ids);
    for (; set->n < filter->n_ids && code == ATTUNE_OK; set->n++) {
        const char *id = filter->ids[set->n];
        if (!id) return error_set(err, ATTUNE_ERROR_ARGUMENT, "attune_filter", "id %zu is NULL", set->n + 1);
        if (!jsonl_uuid_check(id))
            return error_set(err, ATTUNE_ERROR_NOT_FOUND, store->path,
                             "id %zu is not one of an interaction: a UUID in lower case", set->n + 1);
        code = store_find_interaction(store, id, &set->ids[set->n], err);
    }
    if (code != ATTUNE_OK) return code;
    qsort(set->ids, set->n, sizeof *set->ids, compare_ids);
    for (size_t i = 0; i < set->n; i++)
        if (i == 0 || set->ids[i] != set->ids[i - 1]) set->ids[kept++] = set->ids[i];
    set->n = kept;
    return ATTUNE_OK;
}

static int set_of_matches(attune_store *store, const attune_filter *filter, struct set *set, attune_error *err) {
    int64_t *found = NULL;
    size_t n = 0, kept = 0;
    int code = store_search(store, filter->match, &found, &n, err);
    if (code != ATTUNE_OK) return code;
    if (!filter->ids) {
        *set = (struct set){found, n};
        return ATTUNE_OK;
    }
    for (size_t i = 0; i < set->n; i++)
        if (bsearch(&set->ids[i], found, n, sizeof *found, compare_ids)) set->ids[kept++] = set->ids[i];
    set->n = kept;
    free(found);
    return ATTUNE_OK;
}

static int select_of(attune_store *store, const attune_filter *filter, const struct set *set, struct list *list,
                     attune_error *err) {
    char sql[200];
    sqlite3_stmt *statement = NULL;
    snprintf(sql, sizeof sql, "SELECT time_ms FROM interaction WHERE id = ?5 AND " WITHIN "%s", labels_of(filter));
    int code = prepare_filtered(store, sql, filter, 0, &statement, err);
    if (code != ATTUNE_OK) return code;
    for (size_t i = 0; i < set->n && code == ATTUNE_OK; i++) {
        sqlite3_bind_int64(statement, 5, set->ids[i]);
        code = store_step(store, statement, selecting, err);
        if (code == ATTUNE_CONTINUE)
            code = list_add(list, sqlite3_column_int64(statement, 0), set->ids[i], err);
        else if (code == ATTUNE_DONE)
            code = ATTUNE_OK;
        sqlite3_reset(statement);
    }
    sqlite3_finalize(statement);
    if (list->n > 1) qsort(list->entries, list->n, sizeof *list->entries, compare_entries);
    if (filter->limit && list->n > (size_t)filter->limit) list->n = (size_t)filter->limit;
    return code;
}

/* ---- the selection ---- */

static int ids_of(const struct list *list, int oldest_first, int64_t **ids, attune_error *err) {
    int64_t *out = malloc((list->n + 1) * sizeof *out);
    if (!out) return error_set_memory(err, "a list of interactions", list->n * sizeof *out);
    for (size_t i = 0; i < list->n; i++) out[i] = list->entries[oldest_first ? list->n - 1 - i : i].id;
    *ids = out;
    return ATTUNE_OK;
}

int store_select(attune_store *store, const attune_filter *filter, int64_t **ids, size_t *n, attune_error *err) {
    struct set set = {NULL, 0};
    struct list list = {NULL, 0, 0};
    int code = filter_check(filter, err);
    if (code == ATTUNE_OK && filter->ids) code = set_of_ids(store, filter, &set, err);
    if (code == ATTUNE_OK && filter->match) code = set_of_matches(store, filter, &set, err);
    if (code == ATTUNE_OK)
        code = filter->ids || filter->match ? select_of(store, filter, &set, &list, err)
                                            : select_all(store, filter, &list, err);
    if (code == ATTUNE_OK) code = ids_of(&list, filter->oldest_first, ids, err);
    if (code == ATTUNE_OK) *n = list.n;
    free(set.ids);
    free(list.entries);
    return code;
}

/* ---- cursors ---- */

struct attune_cursor {
    attune_store *store;
    int64_t *ids;
    size_t n, at;
    /* the row that was handed out last */
    struct store_loaded row;
    attune_feedback *feedback;
    size_t n_feedback, feedback_room;
};

int attune_store_query(attune_store *store, const attune_filter *filter, attune_cursor **out, attune_error *err) {
    attune_filter taken;
    if (!out) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "out is NULL");
    int code = options_read(&taken, sizeof taken, filter, "attune_filter", err);
    if (code != ATTUNE_OK) return code;
    (void)store_flush_queue(store, NULL); /* what this handle has recorded is found; a full disk hides nothing else */
    attune_cursor *cursor = calloc(1, sizeof *cursor);
    if (!cursor) return error_set_memory(err, "a cursor", sizeof *cursor);
    code = store_enter(store, err);
    if (code == ATTUNE_OK) {
        cursor->store = store;
        code = store_need_key(store, err);
        if (code == ATTUNE_OK) code = store_select(store, &taken, &cursor->ids, &cursor->n, err);
        store_leave(store);
    }
    if (code == ATTUNE_OK)
        *out = cursor;
    else
        attune_cursor_close(cursor);
    return code;
}

int64_t attune_cursor_count(const attune_cursor *cursor) { return cursor ? (int64_t)cursor->n : 0; }

static void forget_row(attune_cursor *cursor) {
    for (size_t i = 0; i < cursor->n_feedback; i++) free((char *)cursor->feedback[i].text);
    cursor->n_feedback = 0;
    store_loaded_free(&cursor->row);
}

void attune_cursor_close(attune_cursor *cursor) {
    if (!cursor) return;
    forget_row(cursor);
    free(cursor->feedback);
    free(cursor->ids);
    free(cursor);
}

/* Room for one more, zeroed. */
static attune_feedback *add_feedback(attune_cursor *cursor, attune_error *err) {
    if (cursor->n_feedback == cursor->feedback_room) {
        size_t room = cursor->feedback_room ? cursor->feedback_room * 2 : 8;
        attune_feedback *more = realloc(cursor->feedback, room * sizeof *more);
        if (!more) {
            error_set_memory(err, "the feedback on an interaction", room * sizeof *more);
            return NULL;
        }
        cursor->feedback = more;
        cursor->feedback_room = room;
    }
    attune_feedback *one = &cursor->feedback[cursor->n_feedback++];
    ATTUNE_INIT(*one);
    return one;
}

static int load_feedback(attune_cursor *cursor, attune_error *err) {
    static const char doing[] = "read the feedback";
    attune_store *store = cursor->store;
    sqlite3_stmt *rows = NULL;
    int code = store_prepare(store, -1,
                             "SELECT id, time_ms, kind, value, text IS NOT NULL FROM feedback WHERE interaction = ? "
                             "ORDER BY id",
                             doing, &rows, err);
    if (code != ATTUNE_OK) return code;
    code = store_bind(store, rows, doing, err, "i", cursor->row.id);
    while (code == ATTUNE_OK && (code = store_step(store, rows, doing, err)) == ATTUNE_CONTINUE) {
        char *text = NULL;
        attune_feedback *one = add_feedback(cursor, err);
        code = one ? ATTUNE_OK : ATTUNE_ERROR_MEMORY;
        if (code == ATTUNE_OK && sqlite3_column_int(rows, 4))
            code = store_load_feedback_text(store, sqlite3_column_int64(rows, 0), cursor->row.uuid.text, &text, err);
        if (code != ATTUNE_OK) break;
        one->time_ms = sqlite3_column_int64(rows, 1);
        one->kind = sqlite3_column_int(rows, 2);
        one->value = sqlite3_column_int64(rows, 3);
        one->text = text;
    }
    sqlite3_finalize(rows);
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}

/* One state of the store for the interaction and its feedback. ATTUNE_ERROR_NOT_FOUND: it was deleted. */
static int load_row(attune_cursor *cursor, int64_t id, attune_error *err) {
    int code = store_read_begin(cursor->store, err);
    if (code != ATTUNE_OK) return code;
    code = store_load_interaction(cursor->store, id, &cursor->row, err);
    if (code == ATTUNE_OK) code = load_feedback(cursor, err);
    store_read_end(cursor->store);
    return code;
}

static attune_row row_of(const attune_cursor *cursor) {
    const struct store_loaded *from = &cursor->row;
    return (attune_row){.size = sizeof(attune_row),
                        .id = from->uuid,
                        .time_ms = from->time_ms,
                        .messages = from->messages.list,
                        .n_messages = from->messages.n,
                        .response = from->response,
                        .app = from->app,
                        .session = from->session,
                        .source = from->source,
                        .model = from->model,
                        .adapter = from->adapter,
                        .template_hash = from->template_hash,
                        .consent = from->consent,
                        .tier = from->tier,
                        .sensitivity = from->sensitivity,
                        .feedback = cursor->n_feedback ? cursor->feedback : NULL,
                        .n_feedback = cursor->n_feedback,
                        .private_findings = from->private_findings};
}

int attune_cursor_next(attune_cursor *cursor, attune_row *row, attune_error *err) {
    if (!cursor || !row)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the %s is NULL", cursor ? "row" : "cursor");
    attune_row found = {.size = sizeof found};
    int code = options_write(row, &found, sizeof found, "attune_row", err);
    if (code == ATTUNE_OK) code = store_enter(cursor->store, err);
    if (code != ATTUNE_OK) return code;
    forget_row(cursor);
    code = ATTUNE_ERROR_NOT_FOUND;
    while (code == ATTUNE_ERROR_NOT_FOUND && cursor->at < cursor->n) {
        code = load_row(cursor, cursor->ids[cursor->at], err);
        /* A damaged row is told once and then passed over; what may go away is tried again by the next call. */
        if (code == ATTUNE_OK || code == ATTUNE_ERROR_NOT_FOUND || code == ATTUNE_ERROR_FORMAT) cursor->at++;
    }
    store_leave(cursor->store);
    if (code == ATTUNE_ERROR_NOT_FOUND) return ATTUNE_DONE;
    if (code != ATTUNE_OK) return code;
    found = row_of(cursor);
    code = options_write(row, &found, sizeof found, "attune_row", err);
    return code == ATTUNE_OK ? ATTUNE_CONTINUE : code;
}
