#include "core/base/options.h"
#include "datastore/record.h"

#include <stdlib.h>
#include <string.h>

static const char recording[] = "record the interaction", noting[] = "record the feedback";

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
    return ATTUNE_OK;
}

int store_prepare_interaction(const attune_interaction *interaction, const char *where, struct store_prepared *out,
                              attune_error *err) {
    memset(out, 0, sizeof *out);
    out->interaction = interaction;
    if (interaction->prompt && (interaction->messages || interaction->n_messages))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "there are both a prompt and messages: give one of them");
    if (interaction->prompt) {
        if (!interaction->prompt[0]) return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "the prompt is empty");
        out->single = (attune_message){.role = "user", .content = interaction->prompt};
        out->list = &out->single;
        out->n = 1;
    } else {
        out->list = interaction->messages;
        out->n = interaction->n_messages;
    }
    int code = store_content_check(out->list, out->n, interaction->response, where, err);
    if (code == ATTUNE_OK) code = labels_check(interaction, where, err);
    if (code == ATTUNE_OK) code = store_prompt_hash(out->list, out->n, out->prompt_hash, err);
    if (code == ATTUNE_OK) code = store_messages_write(out->list, out->n, &out->messages, err);
    if (code != ATTUNE_OK) return code;
    store_content_hash(out->list, out->n, interaction->response, out->content_hash);
    out->time_ms = interaction->time_ms ? interaction->time_ms : store_now_ms();
    store_uuid_make(out->time_ms, &out->uuid);
    return ATTUNE_OK;
}

void store_prepared_free(struct store_prepared *prepared) {
    free(prepared->messages);
    memset(prepared, 0, sizeof *prepared);
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
        code =
            store_prepare(store, STORE_SLOT_RECORD,
                          "INSERT INTO interaction (uuid, time_ms, consent, content_hash, prompt_hash, app, session, "
                          "source, model, adapter, template_hash, messages, response) "
                          "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                          recording, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_bind(store, statement, recording, err, "tiitttttttttt", prepared->uuid.text, prepared->time_ms,
                      (int64_t)given, prepared->content_hash, prepared->prompt_hash, or_empty(in->app),
                      or_empty(in->session), or_empty(in->source), in->model, in->adapter, in->template_hash,
                      prepared->messages, in->response);
    if (code == ATTUNE_OK) code = store_run_statement(store, statement, recording, err);
    if (code == ATTUNE_OK) *row = sqlite3_last_insert_rowid(store->db);
    return code;
}

int store_write_feedback(attune_store *store, int64_t row, const attune_message *messages, size_t n,
                         const attune_feedback *feedback, int64_t default_time_ms, attune_error *err) {
    char hash[HASH_HEX_SIZE];
    const char *content_hash = NULL; /* that of the example in which the edit stands for the response */
    if (feedback->kind == ATTUNE_FEEDBACK_EDIT) {
        store_content_hash(messages, n, feedback->text, hash);
        content_hash = hash;
    }
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, STORE_SLOT_FEEDBACK,
                             "INSERT INTO feedback (interaction, time_ms, kind, value, content_hash, text) "
                             "VALUES (?, ?, ?, ?, ?, ?)",
                             noting, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_bind(store, statement, noting, err, "iiiitt", row,
                      feedback->time_ms ? feedback->time_ms : default_time_ms, (int64_t)feedback->kind, feedback->value,
                      content_hash, feedback->text);
    return code == ATTUNE_OK ? store_run_statement(store, statement, noting, err) : code;
}

int attune_store_record(attune_store *store, const attune_interaction *interaction, attune_uuid *id,
                        attune_error *err) {
    attune_interaction taken;
    struct store_prepared prepared;
    if (!interaction) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the interaction is NULL");
    int code = options_read(&taken, sizeof taken, interaction, "attune_interaction", err);
    if (code != ATTUNE_OK) return code;
    code = store_prepare_interaction(&taken, NULL, &prepared, err);
    if (code == ATTUNE_OK) code = store_enter(store, err);
    if (code == ATTUNE_OK) {
        int64_t row;
        code = store_begin(store, err);
        if (code == ATTUNE_OK) code = store_end(store, store_write_interaction(store, &prepared, &row, err), err);
        store_leave(store);
    }
    if (code == ATTUNE_OK && id) *id = prepared.uuid;
    store_prepared_free(&prepared);
    return code;
}

/* The conversation is only needed for the hash of an edit. */
static int add_feedback(attune_store *store, const char *id, const attune_feedback *feedback, attune_error *err) {
    struct store_messages messages = {0};
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, STORE_SLOT_FIND, "SELECT id, messages FROM interaction WHERE uuid = ?", noting,
                             &statement, err);
    if (code == ATTUNE_OK) code = store_bind(store, statement, noting, err, "t", id);
    if (code != ATTUNE_OK) return code;
    code = store_step(store, statement, noting, err);
    int64_t row = code == ATTUNE_CONTINUE ? sqlite3_column_int64(statement, 0) : 0;
    if (code == ATTUNE_DONE)
        code = error_set(err, ATTUNE_ERROR_NOT_FOUND, store->path, "no interaction has the id '%.40s'", id);
    else if (code == ATTUNE_CONTINUE) {
        code = ATTUNE_OK;
        if (feedback->kind == ATTUNE_FEEDBACK_EDIT) {
            const char *text = (const char *)sqlite3_column_text(statement, 1);
            code = text ? store_messages_read(text, store->path, &messages, err)
                        : store_sql_error(store, SQLITE_NOMEM, noting, err);
        }
    }
    store_reset(statement);
    if (code == ATTUNE_OK)
        code = store_write_feedback(store, row, messages.list, messages.n, feedback, store_now_ms(), err);
    store_messages_free(&messages);
    return code;
}

int attune_store_feedback(attune_store *store, const char *id, const attune_feedback *feedback, attune_error *err) {
    attune_feedback taken;
    if (!id || !feedback) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the %s is NULL", id ? "feedback" : "id");
    int code = options_read(&taken, sizeof taken, feedback, "attune_feedback", err);
    if (code == ATTUNE_OK) code = store_check_feedback(&taken, NULL, err);
    if (code == ATTUNE_OK) code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_begin(store, err);
    if (code == ATTUNE_OK) code = store_end(store, add_feedback(store, id, &taken, err), err);
    store_leave(store);
    return code;
}

/* ---- out ---- */

static int column_copy(attune_store *store, sqlite3_stmt *row, int column, char **out, attune_error *err) {
    const char *text = (const char *)sqlite3_column_text(row, column);
    char *copy = text ? strdup(text) : NULL;
    if (!copy) return store_sql_error(store, SQLITE_NOMEM, "read the store", err);
    *out = copy;
    return ATTUNE_OK;
}

int store_load_interaction(attune_store *store, sqlite3_stmt *row, struct store_loaded *out, attune_error *err) {
    memset(out, 0, sizeof *out);
    const char *text = (const char *)sqlite3_column_text(row, 4);
    if (!text) return store_sql_error(store, SQLITE_NOMEM, "read the store", err);
    int code = store_messages_read(text, store->path, &out->messages, err);
    if (code == ATTUNE_OK) code = column_copy(store, row, 5, &out->response, err);
    if (code != ATTUNE_OK) store_loaded_free(out);
    return code;
}

void store_loaded_free(struct store_loaded *loaded) {
    store_messages_free(&loaded->messages);
    free(loaded->response);
    memset(loaded, 0, sizeof *loaded);
}

int store_load_feedback_text(attune_store *store, int64_t feedback, char **out, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, STORE_SLOT_EDIT, "SELECT text FROM feedback WHERE id = ?", "read the store",
                             &statement, err);
    if (code == ATTUNE_OK) code = store_bind(store, statement, "read the store", err, "i", feedback);
    if (code != ATTUNE_OK) return code;
    code = store_step(store, statement, "read the store", err);
    if (code == ATTUNE_CONTINUE)
        code = column_copy(store, statement, 0, out, err);
    else if (code == ATTUNE_DONE)
        code = error_set(err, ATTUNE_ERROR_INTERNAL, store->path, "feedback %lld has gone", (long long)feedback);
    store_reset(statement);
    return code;
}
