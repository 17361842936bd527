#include "datastore/record.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char recording[] = "record the interaction", noting[] = "record the feedback",
                  reading[] = "read the store";

/* ---- checking ---- */

static int label_check(const char *text, const char *name, const char *where, attune_error *err) {
    size_t n = text ? strlen(text) : 0;
    if (n > 1024) return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "%s is longer than 1024 bytes", name);
    if (n > 0 && store_utf8_check(text, n) < n)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "%s is not UTF-8", name);
    return ATTUNE_OK;
}

static int labels_check(const attune_interaction *in, const char *where, attune_error *err) {
    const char *const labels[][2] = {{in->app, "app"},         {in->session, "session"},
                                     {in->source, "source"},   {in->model, "model"},
                                     {in->adapter, "adapter"}, {in->template_hash, "template_hash"}};
    for (size_t i = 0; i < sizeof labels / sizeof labels[0]; i++) {
        int code = label_check(labels[i][0], labels[i][1], where, err);
        if (code != ATTUNE_OK) return code;
    }
    if (in->time_ms < 0 || in->time_ms > STORE_TIME_MAX)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "the time lies outside the years 1970 to 9999");
    if (in->consent < ATTUNE_CONSENT_HOME || in->consent > ATTUNE_CONSENT_NOT_GIVEN)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "consent is %d: see enum attune_consent", in->consent);
    if (in->tier < ATTUNE_TIER_PERSON || in->tier > ATTUNE_TIER_TOOL)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "tier is %d: see enum attune_tier", in->tier);
    if (in->sensitivity < ATTUNE_SENSITIVITY_UNKNOWN || in->sensitivity > ATTUNE_SENSITIVITY_CLEARED)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "sensitivity is %d: see enum attune_sensitivity",
                         in->sensitivity);
    return ATTUNE_OK;
}

int store_check_interaction(const attune_interaction *in, const char *where, attune_error *err) {
    if (in->prompt && (in->messages || in->n_messages))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "there are both a prompt and messages: give one of them");
    if (in->prompt && !in->prompt[0]) return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "the prompt is empty");
    attune_message single = {.role = "user", .content = in->prompt};
    int code = store_content_check(in->prompt ? &single : in->messages, in->prompt ? 1 : in->n_messages, in->response,
                                   where, err);
    return code == ATTUNE_OK ? labels_check(in, where, err) : code;
}

int store_prepare_interaction(const attune_interaction *interaction, const char *id, struct store_prepared *out,
                              attune_error *err) {
    memset(out, 0, sizeof *out);
    out->interaction = interaction;
    out->list = interaction->messages;
    out->n = interaction->n_messages;
    if (interaction->prompt) {
        out->single = (attune_message){.role = "user", .content = interaction->prompt};
        out->list = &out->single;
        out->n = 1;
    }
    out->time_ms = interaction->time_ms ? interaction->time_ms : store_now_ms();
    if (id)
        snprintf(out->uuid.text, sizeof out->uuid.text, "%s", id);
    else
        store_uuid_make(out->time_ms, &out->uuid);
    return store_messages_write(out->list, out->n, &out->messages, err);
}

void store_prepared_free(struct store_prepared *prepared) {
    free(prepared->messages);
    memset(prepared, 0, sizeof *prepared);
}

int64_t store_private_findings(const attune_store *store, const char *text) {
    enum { ENOUGH = 1000000 };
    size_t found = store->find_private && text ? store->find_private(text, strlen(text), store->find_private_user) : 0;
    return found < ENOUGH ? (int64_t)found : ENOUGH;
}

/* ---- private columns ---- */

static void label_of(const char *uuid, const char *column, char out[64]) { snprintf(out, 64, "%s/%s", uuid, column); }

/* text NULL: NULL. Borrowed until the statement is reset. */
static int bind_private(attune_store *store, sqlite3_stmt *statement, int at, const char *uuid, const char *column,
                        const char *text, attune_error *err) {
    char label[64];
    unsigned char *blob = NULL;
    size_t size = 0;
    int rc;
    if (!text) return ATTUNE_OK;
    int code = store_need_key(store, err);
    if (code != ATTUNE_OK) return code;
    if (!store->seal.on) {
        rc = sqlite3_bind_text(statement, at, text, -1, SQLITE_STATIC);
    } else {
        label_of(uuid, column, label);
        code = seal_close(&store->seal, label, text, strlen(text), &blob, &size, err);
        if (code != ATTUNE_OK) return code;
        rc = sqlite3_bind_blob64(statement, at, blob, size, free);
    }
    return rc == SQLITE_OK ? ATTUNE_OK : store_sql_error(store, rc, recording, err);
}

/* malloc'ed; NULL where the column is. */
static int column_private(attune_store *store, sqlite3_stmt *row, int at, const char *uuid, const char *column,
                          char **out, attune_error *err) {
    char label[64];
    size_t n;
    *out = NULL;
    if (sqlite3_column_type(row, at) == SQLITE_NULL) return ATTUNE_OK;
    if (sqlite3_column_type(row, at) == SQLITE_BLOB) {
        int code = store_need_key(store, err);
        if (code != ATTUNE_OK) return code;
        label_of(uuid, column, label);
        const void *blob = sqlite3_column_blob(row, at);
        return seal_open(&store->seal, label, blob, (size_t)sqlite3_column_bytes(row, at), store->path, out, &n, err);
    }
    const char *text = (const char *)sqlite3_column_text(row, at);
    *out = text ? strdup(text) : NULL;
    return *out ? ATTUNE_OK : store_sql_error(store, SQLITE_NOMEM, reading, err);
}

/* ---- in ---- */

static const char *or_empty(const char *text) { return text ? text : ""; }

int store_write_interaction(attune_store *store, const struct store_prepared *prepared, int64_t *row,
                            attune_error *err) {
    const attune_interaction *in = prepared->interaction;
    int given = in->consent == ATTUNE_CONSENT_GIVEN;
    int code = ATTUNE_OK;
    if (in->consent == ATTUNE_CONSENT_HOME) code = store_consent_get(store, &given, err);
    sqlite3_stmt *statement = NULL;
    if (code == ATTUNE_OK)
        code = store_prepare(store, STORE_SLOT_RECORD,
                             "INSERT INTO interaction (uuid, time_ms, consent, tier, sensitivity, private_findings, "
                             "app, session, source, model, adapter, template_hash, messages, response) "
                             "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                             recording, &statement, err);
    if (code != ATTUNE_OK) return code;
    const char *uuid = prepared->uuid.text;
    code = store_bind(store, statement, recording, err, "tiiiiitttttt", uuid, prepared->time_ms, (int64_t)given,
                      (int64_t)in->tier, (int64_t)in->sensitivity, prepared->private_findings, or_empty(in->app),
                      or_empty(in->session), or_empty(in->source), in->model, in->adapter, in->template_hash);
    if (code == ATTUNE_OK) code = bind_private(store, statement, 13, uuid, "messages", prepared->messages, err);
    if (code == ATTUNE_OK) code = bind_private(store, statement, 14, uuid, "response", in->response, err);
    if (code == ATTUNE_OK)
        code = store_run_statement(store, statement, recording, err);
    else
        store_reset(statement);
    if (code == ATTUNE_OK) *row = sqlite3_last_insert_rowid(store->db);
    return code;
}

int store_touch(attune_store *store, int64_t row, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, STORE_SLOT_TOUCH, "INSERT OR IGNORE INTO touched (interaction) VALUES (?)", noting,
                             &statement, err);
    if (code == ATTUNE_OK) code = store_bind(store, statement, noting, err, "i", row);
    return code == ATTUNE_OK ? store_run_statement(store, statement, noting, err) : code;
}

int store_write_feedback(attune_store *store, int64_t row, const char *uuid, const attune_feedback *feedback,
                         int64_t default_time_ms, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_touch(store, row, err);
    if (code == ATTUNE_OK)
        code = store_prepare(store, STORE_SLOT_FEEDBACK,
                             "INSERT INTO feedback (interaction, time_ms, kind, value, text) VALUES (?, ?, ?, ?, ?)",
                             noting, &statement, err);
    if (code != ATTUNE_OK) return code;
    code =
        store_bind(store, statement, noting, err, "iiii", row, feedback->time_ms ? feedback->time_ms : default_time_ms,
                   (int64_t)feedback->kind, feedback->value);
    if (code == ATTUNE_OK) code = bind_private(store, statement, 5, uuid, "feedback", feedback->text, err);
    if (code == ATTUNE_OK)
        code = store_run_statement(store, statement, noting, err);
    else
        store_reset(statement);
    return code;
}

int store_find_interaction(attune_store *store, const char *uuid, int64_t *row, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code =
        store_prepare(store, STORE_SLOT_FIND, "SELECT id FROM interaction WHERE uuid = ?", noting, &statement, err);
    if (code == ATTUNE_OK) code = store_bind(store, statement, noting, err, "t", uuid);
    if (code != ATTUNE_OK) return code;
    code = store_step(store, statement, noting, err);
    if (code == ATTUNE_CONTINUE) *row = sqlite3_column_int64(statement, 0);
    store_reset(statement);
    if (code == ATTUNE_DONE)
        return error_set(err, ATTUNE_ERROR_NOT_FOUND, store->path, "no interaction has the id '%.40s'", uuid);
    return code == ATTUNE_CONTINUE ? ATTUNE_OK : code;
}

/* ---- out ---- */

/* NULL stays NULL. */
static int column_copy(attune_store *store, sqlite3_stmt *row, int column, char **out, attune_error *err) {
    if (sqlite3_column_type(row, column) == SQLITE_NULL) return ATTUNE_OK;
    const char *text = (const char *)sqlite3_column_text(row, column);
    *out = text ? strdup(text) : NULL;
    return *out ? ATTUNE_OK : store_sql_error(store, SQLITE_NOMEM, reading, err);
}

static int take_row(attune_store *store, sqlite3_stmt *row, struct store_loaded *out, attune_error *err) {
    char **const labels[] = {&out->app, &out->session, &out->source, &out->model, &out->adapter, &out->template_hash};
    char *messages = NULL;
    int code = ATTUNE_OK;
    out->id = sqlite3_column_int64(row, 0);
    store_column_text(row, 1, out->uuid.text, sizeof out->uuid.text);
    out->time_ms = sqlite3_column_int64(row, 2);
    out->consent = sqlite3_column_int(row, 3);
    out->tier = sqlite3_column_int(row, 4);
    out->sensitivity = sqlite3_column_int(row, 5);
    out->private_findings = sqlite3_column_int64(row, 6);
    for (int i = 0; i < 6 && code == ATTUNE_OK; i++) code = column_copy(store, row, 7 + i, labels[i], err);
    if (code == ATTUNE_OK) code = column_private(store, row, 13, out->uuid.text, "messages", &messages, err);
    if (code == ATTUNE_OK) code = store_messages_read(messages ? messages : "", store->path, &out->messages, err);
    if (code == ATTUNE_OK) code = column_private(store, row, 14, out->uuid.text, "response", &out->response, err);
    free(messages);
    return code;
}

int store_load_interaction(attune_store *store, int64_t id, struct store_loaded *out, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    memset(out, 0, sizeof *out);
    int code = store_prepare(store, STORE_SLOT_LOAD,
                             "SELECT id, uuid, time_ms, consent, tier, sensitivity, private_findings, app, session, "
                             "source, model, adapter, template_hash, messages, response FROM interaction WHERE id = ?",
                             reading, &statement, err);
    if (code == ATTUNE_OK) code = store_bind(store, statement, reading, err, "i", id);
    if (code != ATTUNE_OK) return code;
    code = store_step(store, statement, reading, err);
    if (code == ATTUNE_DONE)
        code = ATTUNE_ERROR_NOT_FOUND;
    else if (code == ATTUNE_CONTINUE)
        code = take_row(store, statement, out, err);
    store_reset(statement);
    if (code != ATTUNE_OK) store_loaded_free(out);
    return code;
}

void store_loaded_free(struct store_loaded *loaded) {
    free(loaded->app);
    free(loaded->session);
    free(loaded->source);
    free(loaded->model);
    free(loaded->adapter);
    free(loaded->template_hash);
    store_messages_free(&loaded->messages);
    free(loaded->response);
    memset(loaded, 0, sizeof *loaded);
}

int store_load_feedback_text(attune_store *store, int64_t feedback, const char *uuid, char **out, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, STORE_SLOT_FEEDBACK_TEXT, "SELECT text FROM feedback WHERE id = ?", reading,
                             &statement, err);
    if (code == ATTUNE_OK) code = store_bind(store, statement, reading, err, "i", feedback);
    if (code != ATTUNE_OK) return code;
    code = store_step(store, statement, reading, err);
    if (code == ATTUNE_CONTINUE)
        code = column_private(store, statement, 0, uuid, "feedback", out, err);
    else if (code == ATTUNE_DONE)
        code = error_set(err, ATTUNE_ERROR_INTERNAL, store->path, "feedback %lld has gone", (long long)feedback);
    store_reset(statement);
    return code;
}
