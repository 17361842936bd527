#include <string.h>
#include <sys/stat.h>

#include "core/base/options.h"
#include "datastore/judge.h"
#include "datastore/jsonl.h"
#include "datastore/record.h"

/* A line, parsed and ready to be written. */
struct line {
    struct jsonl_row row;
    struct store_prepared prepared;
};

/* Zeroes *out first, so that line_free is fine whatever this returns. options and app: what a row says
 * that does not say it itself. What would be the caller's mistake in attune_store_record is a malformed
 * line here. */
static int line_take(const char *text, size_t length, const char *where, const attune_import_options *options,
                     const char *app, struct line *out, attune_error *err) {
    memset(out, 0, sizeof *out);
    int code = jsonl_row_parse(text, length, where, &out->row, err);
    if (code == ATTUNE_OK) {
        attune_interaction *interaction = &out->row.interaction;
        if (interaction->consent == ATTUNE_CONSENT_HOME) interaction->consent = options->consent;
        if (!interaction->app) interaction->app = options->app ? options->app : app;
        code = store_prepare_interaction(interaction, where, &out->prepared, err);
    }
    if (code != ATTUNE_ERROR_ARGUMENT) return code;
    if (err) err->code = ATTUNE_ERROR_FORMAT;
    return ATTUNE_ERROR_FORMAT;
}

static void line_free(struct line *line) {
    store_prepared_free(&line->prepared);
    jsonl_row_free(&line->row);
}

static int take_options(attune_import_options *out, const attune_import_options *options, attune_error *err) {
    int code = options_read(out, sizeof *out, options, "attune_import_options", err);
    if (code == ATTUNE_OK && (out->consent < ATTUNE_CONSENT_HOME || out->consent > ATTUNE_CONSENT_NOT_GIVEN))
        code = error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "consent is %d: see enum attune_consent", out->consent);
    return code;
}

/* Inside a write transaction. */
static int line_write(attune_store *store, const struct line *line, attune_error *err) {
    const struct store_prepared *prepared = &line->prepared;
    int64_t id = 0;
    int code = store_write_interaction(store, prepared, &id, err);
    for (size_t i = 0; code == ATTUNE_OK && i < line->row.n_feedback; i++)
        code = store_write_feedback(store, id, prepared->list, prepared->n, &line->row.feedback[i], prepared->time_ms,
                                    err);
    return code;
}

static int is_duplicate(attune_store *store, const struct store_prepared *prepared, int *is, attune_error *err) {
    static const char doing[] = "look for duplicates";
    sqlite3_stmt *statement = NULL;
    const attune_interaction *in = prepared->interaction;
    int code = store_prepare(store, STORE_SLOT_DUPLICATE,
                             "SELECT 1 FROM interaction WHERE content_hash = ? AND app = ? AND session = ? LIMIT 1",
                             doing, &statement, err);
    if (code == ATTUNE_OK)
        code = store_bind(store, statement, doing, err, "ttt", prepared->content_hash, in->app ? in->app : "",
                          in->session ? in->session : "");
    if (code != ATTUNE_OK) return code;
    code = store_step(store, statement, doing, err);
    store_reset(statement);
    *is = code == ATTUNE_CONTINUE;
    return code == ATTUNE_CONTINUE || code == ATTUNE_DONE ? ATTUNE_OK : code;
}

/* Consent that is given with a repeated import reaches the rows that are there; it is never taken away so. */
static int give_consent(attune_store *store, const struct store_prepared *prepared, attune_error *err) {
    static const char doing[] = "give consent";
    sqlite3_stmt *statement = NULL;
    const attune_interaction *in = prepared->interaction;
    if (in->consent != ATTUNE_CONSENT_GIVEN) return ATTUNE_OK;
    int code = store_prepare(store, STORE_SLOT_CONSENT,
                             "UPDATE interaction SET consent = 1 "
                             "WHERE content_hash = ? AND app = ? AND session = ? AND consent = 0",
                             doing, &statement, err);
    if (code == ATTUNE_OK)
        code = store_bind(store, statement, doing, err, "ttt", prepared->content_hash, in->app ? in->app : "",
                          in->session ? in->session : "");
    return code == ATTUNE_OK ? store_run_statement(store, statement, doing, err) : code;
}

static int import_line(attune_store *store, const char *text, size_t length, const char *where,
                       const attune_import_options *options, attune_import_result *result, attune_error *err) {
    struct line line;
    int duplicate = 0;
    int code = line_take(text, length, where, options, "import", &line, err);
    if (code == ATTUNE_OK) code = is_duplicate(store, &line.prepared, &duplicate, err);
    if (code == ATTUNE_OK && duplicate) {
        code = give_consent(store, &line.prepared, err);
        result->duplicates++;
    } else if (code == ATTUNE_OK) {
        code = line_write(store, &line, err);
        result->rows++;
        result->feedback += (int64_t)line.row.n_feedback;
    }
    line_free(&line);
    return code;
}

static int import_lines(attune_store *store, struct jsonl *lines, const attune_import_options *options,
                        attune_import_result *result, attune_error *err) {
    for (;;) {
        char *text;
        size_t length;
        int code = jsonl_next(lines, &text, &length, err);
        if (code == ATTUNE_DONE) return ATTUNE_OK;
        if (code != ATTUNE_CONTINUE) return code;
        code = import_line(store, text, length, lines->where, options, result, err);
        if (code != ATTUNE_OK) return code;
    }
}

/* Closing a descriptor of store.db would drop the locks that SQLite holds on it in this process. */
static int refuse_own_file(const attune_store *store, const char *path, attune_error *err) {
    struct stat own, other;
    if (!path || stat(path, &other) != 0 || stat(store->path, &own) != 0) return ATTUNE_OK;
    if (own.st_dev != other.st_dev || own.st_ino != other.st_ino) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_ARGUMENT, path, "this is the store itself, not a file of JSON Lines");
}

int attune_store_import(attune_store *store, const char *path, const attune_import_options *options,
                        attune_import_result *result, attune_error *err) {
    attune_import_options taken;
    attune_import_result done = {.size = sizeof done};
    struct jsonl lines = {.fd = -1};
    int code = take_options(&taken, options, err);
    if (code == ATTUNE_OK) code = options_write(result, &done, sizeof done, "attune_import_result", err);
    if (code == ATTUNE_OK) code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = refuse_own_file(store, path, err);
    if (code == ATTUNE_OK) code = jsonl_open(path, &lines, err);
    if (code == ATTUNE_OK) code = store_begin(store, err);
    if (code == ATTUNE_OK) code = store_end(store, import_lines(store, &lines, &taken, &done, err), err);
    jsonl_close(&lines);
    store_leave(store);
    if (code == ATTUNE_OK) options_write(result, &done, sizeof done, "attune_import_result", err);
    return code;
}

int attune_store_record_json(attune_store *store, const char *json, size_t length, const attune_import_options *options,
                             attune_uuid *id, attune_error *err) {
    static const char where[] = "the JSON object";
    attune_import_options taken;
    struct line line;
    if (!json) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "json is NULL");
    if (length > STORE_TEXT_MAX)
        return error_set(err, ATTUNE_ERROR_FORMAT, where, "longer than %zu MiB", STORE_TEXT_MAX >> 20);
    int code = take_options(&taken, options, err);
    if (code != ATTUNE_OK) return code;
    code = line_take(json, length, where, &taken, NULL, &line, err);
    if (code == ATTUNE_OK) code = store_enter(store, err);
    if (code == ATTUNE_OK) {
        code = store_begin(store, err);
        if (code == ATTUNE_OK) code = store_end(store, line_write(store, &line, err), err);
        store_leave(store);
    }
    if (code == ATTUNE_OK && id) *id = line.prepared.uuid;
    line_free(&line);
    return code;
}

/* ---- rows without a store ---- */

/* The last edit that was not taken back stands for the response, as it would in the store. */
static const char *edited_text(const struct jsonl_row *row) {
    struct store_judgement judgement = {0};
    for (size_t i = row->n_feedback; i-- > 0;)
        store_judge(&judgement, row->feedback[i].kind, row->feedback[i].value, (int64_t)i + 1);
    return judgement.edit ? row->feedback[judgement.edit - 1].text : row->interaction.response;
}

static int line_hand_out(const char *text, size_t length, const char *where, store_row_callback callback, void *user,
                         attune_error *err) {
    static const attune_import_options none = {.size = sizeof none};
    struct line line;
    int code = line_take(text, length, where, &none, NULL, &line, err);
    if (code == ATTUNE_OK) {
        char content_hash[HASH_HEX_SIZE];
        struct store_row row = {.messages = line.prepared.list,
                                .n_messages = line.prepared.n,
                                .response = edited_text(&line.row),
                                .content_hash = content_hash,
                                .prompt_hash = line.prepared.prompt_hash,
                                .time_ms = line.row.interaction.time_ms};
        store_content_hash(row.messages, row.n_messages, row.response, content_hash);
        code = callback(&row, user, err);
    }
    line_free(&line);
    return code;
}

int store_rows_from_file(const char *path, store_row_callback callback, void *user, attune_error *err) {
    struct jsonl lines;
    int code = jsonl_open(path, &lines, err);
    if (code != ATTUNE_OK) return code;
    for (;;) {
        char *text;
        size_t length;
        code = jsonl_next(&lines, &text, &length, err);
        if (code != ATTUNE_CONTINUE) break;
        code = line_hand_out(text, length, lines.where, callback, user, err);
        if (code != ATTUNE_OK) break;
    }
    jsonl_close(&lines);
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}
