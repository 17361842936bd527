#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/hash.h"
#include "core/base/options.h"
#include "datastore/judge.h"
#include "datastore/record.h"

static const char deriving[] = "derive the examples";

/* ---- hashes that were seen: a duplicate is an example once ---- */

#define KEY_BYTES 32
struct seen {
    unsigned char (*slots)[KEY_BYTES]; /* all zero: free */
    size_t mask;
};

/* Room for n at half load; the set never grows. */
static int seen_start(struct seen *seen, size_t n, attune_error *err) {
    size_t slots = 16;
    while (slots < n * 2) slots *= 2;
    seen->slots = calloc(slots, KEY_BYTES);
    if (!seen->slots) return error_set_memory(err, "the hashes of the examples", slots * KEY_BYTES);
    seen->mask = slots - 1;
    return ATTUNE_OK;
}

/* 1: it was new and is now there. */
static int seen_add(struct seen *seen, const char *hex) {
    static const unsigned char none[KEY_BYTES];
    unsigned char key[KEY_BYTES] = {0};
    size_t at;
    sodium_hex2bin(key, sizeof key, hex, strlen(hex), NULL, NULL, NULL);
    memcpy(&at, key, sizeof at);
    for (at &= seen->mask; memcmp(seen->slots[at], none, KEY_BYTES) != 0; at = (at + 1) & seen->mask)
        if (memcmp(seen->slots[at], key, KEY_BYTES) == 0) return 0;
    memcpy(seen->slots[at], key, KEY_BYTES);
    return 1;
}

/* ---- one interaction ---- */

struct derived {
    sqlite3_stmt *row; /* STORE_INTERACTION_COLUMNS */
    char content_hash[HASH_HEX_SIZE];
    int64_t edit; /* feedback row whose text stands for the response; 0: none */
};

/* *is 0: this interaction gives no example. Consent is the query's business. */
static int derive(attune_store *store, sqlite3_stmt *row, struct derived *out, int *is, attune_error *err) {
    struct store_judgement judgement = {0};
    sqlite3_stmt *statement = NULL;
    int64_t id = sqlite3_column_int64(row, 0);
    out->row = row;
    store_column_text(row, 2, out->content_hash, sizeof out->content_hash);
    int code =
        store_prepare(store, STORE_SLOT_JUDGE,
                      "SELECT kind, value, id, content_hash FROM feedback WHERE interaction = ? ORDER BY id DESC",
                      deriving, &statement, err);
    if (code == ATTUNE_OK) code = store_bind(store, statement, deriving, err, "i", id);
    if (code != ATTUNE_OK) return code;
    while ((code = store_step(store, statement, deriving, err)) == ATTUNE_CONTINUE) {
        int edited = judgement.edit != 0;
        store_judge(&judgement, sqlite3_column_int(statement, 0), sqlite3_column_int64(statement, 1),
                    sqlite3_column_int64(statement, 2));
        if (judgement.edit && !edited) store_column_text(statement, 3, out->content_hash, sizeof out->content_hash);
    }
    store_reset(statement);
    out->edit = judgement.edit;
    *is = judgement.edit || judgement.verdict >= 0;
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}

static int hand_out(attune_store *store, const struct derived *derived, store_row_callback callback, void *user,
                    attune_error *err) {
    struct store_loaded loaded = {0};
    char *edit = NULL, prompt_hash[HASH_HEX_SIZE];
    int code = store_load_interaction(store, derived->row, &loaded, err);
    if (code == ATTUNE_OK && derived->edit) code = store_load_feedback_text(store, derived->edit, &edit, err);
    if (code == ATTUNE_OK) {
        store_column_text(derived->row, 3, prompt_hash, sizeof prompt_hash);
        struct store_row row = {.messages = loaded.messages.list,
                                .n_messages = loaded.messages.n,
                                .response = edit ? edit : loaded.response,
                                .content_hash = derived->content_hash,
                                .prompt_hash = prompt_hash,
                                .time_ms = sqlite3_column_int64(derived->row, 1),
                                .interaction = sqlite3_column_int64(derived->row, 0)};
        code = callback(&row, user, err);
    }
    free(edit);
    store_loaded_free(&loaded);
    return code;
}

/* ---- all of them ---- */

static int query_number(attune_store *store, const char *sql, int64_t *out, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1, sql, "count", &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_step(store, statement, "count", err);
    if (code == ATTUNE_CONTINUE) *out = sqlite3_column_int64(statement, 0);
    sqlite3_finalize(statement);
    return code == ATTUNE_CONTINUE ? ATTUNE_OK : code;
}

typedef int (*visitor)(attune_store *store, const struct derived *derived, void *user, attune_error *err);

/* Every example once, oldest first, within a read transaction. */
static int walk(attune_store *store, visitor visit, void *user, attune_error *err) {
    sqlite3_stmt *rows = NULL;
    struct seen seen = {0};
    int64_t n = 0;
    int code = query_number(store, "SELECT count(*) FROM interaction WHERE consent = 1", &n, err);
    if (code == ATTUNE_OK) code = seen_start(&seen, (size_t)n, err);
    if (code == ATTUNE_OK)
        code = store_prepare(
            store, -1, "SELECT " STORE_INTERACTION_COLUMNS " FROM interaction WHERE consent = 1 ORDER BY time_ms, id",
            deriving, &rows, err);
    while (code == ATTUNE_OK && (code = store_step(store, rows, deriving, err)) == ATTUNE_CONTINUE) {
        struct derived derived;
        int is = 0;
        code = derive(store, rows, &derived, &is, err);
        if (code == ATTUNE_OK && is && seen_add(&seen, derived.content_hash)) code = visit(store, &derived, user, err);
    }
    sqlite3_finalize(rows);
    free(seen.slots);
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}

struct receiver {
    store_row_callback callback;
    void *user;
};

static int visit_receiver(attune_store *store, const struct derived *derived, void *user, attune_error *err) {
    struct receiver *receiver = user;
    return hand_out(store, derived, receiver->callback, receiver->user, err);
}

int store_examples(attune_store *store, store_row_callback callback, void *user, attune_error *err) {
    struct receiver receiver = {callback, user};
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_read_begin(store, err);
    if (code == ATTUNE_OK) {
        code = walk(store, visit_receiver, &receiver, err);
        store_read_end(store);
    }
    store_leave(store);
    return code;
}

/* ---- one by its hash ---- */

/* The hash is an interaction's own, or that of an edit of it. */
static const char by_hash[] = "SELECT " STORE_INTERACTION_COLUMNS " FROM interaction WHERE consent = 1 AND id IN ("
                              "SELECT id FROM interaction WHERE content_hash = ?1 UNION "
                              "SELECT interaction FROM feedback WHERE content_hash = ?1) ORDER BY time_ms, id";

static int get(attune_store *store, const char *content_hash, store_row_callback callback, void *user,
               attune_error *err) {
    sqlite3_stmt *rows = NULL;
    int found = 0;
    int code = store_prepare(store, -1, by_hash, deriving, &rows, err);
    if (code != ATTUNE_OK) return code;
    code = store_bind(store, rows, deriving, err, "t", content_hash);
    while (code == ATTUNE_OK && !found && (code = store_step(store, rows, deriving, err)) == ATTUNE_CONTINUE) {
        struct derived derived;
        int is = 0;
        code = derive(store, rows, &derived, &is, err);
        if (code != ATTUNE_OK || !is || strcmp(derived.content_hash, content_hash) != 0) continue;
        found = 1;
        code = hand_out(store, &derived, callback, user, err);
    }
    sqlite3_finalize(rows);
    if (code == ATTUNE_DONE)
        code = error_set(err, ATTUNE_ERROR_NOT_FOUND, store->path,
                         "the example %.16s... is gone, or may not be used any more", content_hash);
    return code;
}

int store_example_get(attune_store *store, const char *content_hash, store_row_callback callback, void *user,
                      attune_error *err) {
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_read_begin(store, err);
    if (code == ATTUNE_OK) {
        code = get(store, content_hash, callback, user, err);
        store_read_end(store);
    }
    store_leave(store);
    return code;
}

/* ---- counts ---- */

static int visit_new(attune_store *store, const struct derived *derived, void *user, attune_error *err) {
    int64_t *count = user;
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, STORE_SLOT_PUBLISHED,
                             "SELECT 1 FROM run_example JOIN run ON run.number = run_example.run "
                             "WHERE run_example.content_hash = ? AND run.state = 'published' LIMIT 1",
                             "count", &statement, err);
    if (code == ATTUNE_OK) code = store_bind(store, statement, "count", err, "t", derived->content_hash);
    if (code != ATTUNE_OK) return code;
    code = store_step(store, statement, "count", err);
    store_reset(statement);
    *count += code == ATTUNE_DONE;
    return code == ATTUNE_DONE || code == ATTUNE_CONTINUE ? ATTUNE_OK : code;
}

int store_counts(attune_store *store, int64_t *interactions, int64_t *consented, int64_t *feedback,
                 int64_t *examples_new, attune_error *err) {
    int64_t rows = 0, with_consent = 0, feedback_rows = 0, fresh = 0;
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_read_begin(store, err);
    if (code == ATTUNE_OK) {
        code = query_number(store, "SELECT count(*) FROM interaction", &rows, err);
        if (code == ATTUNE_OK)
            code = query_number(store, "SELECT count(*) FROM interaction WHERE consent = 1", &with_consent, err);
        if (code == ATTUNE_OK) code = query_number(store, "SELECT count(*) FROM feedback", &feedback_rows, err);
        if (code == ATTUNE_OK && examples_new) code = walk(store, visit_new, &fresh, err);
        store_read_end(store);
    }
    store_leave(store);
    if (code != ATTUNE_OK) return code;
    if (interactions) *interactions = rows;
    if (consented) *consented = with_consent;
    if (feedback) *feedback = feedback_rows;
    if (examples_new) *examples_new = fresh;
    return ATTUNE_OK;
}

int attune_store_statistics_get(attune_store *store, attune_store_statistics *out, attune_error *err) {
    attune_store_statistics statistics = {.size = sizeof statistics};
    if (!out) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "out is NULL");
    int code = store_counts(store, &statistics.interactions, &statistics.consented, &statistics.feedback, NULL, err);
    return code == ATTUNE_OK ? options_write(out, &statistics, sizeof statistics, "attune_store_statistics", err)
                             : code;
}
