/* Rows out of JSON Lines: into the store, into the recorder's queue, or past it to whoever evaluates them. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/options.h"
#include "datastore/derive.h"
#include "datastore/forget.h"
#include "datastore/jsonl.h"
#include "datastore/judge.h"

enum { PIECE_MS = 40 /* of deriving in one transaction, before the import's own */ };

static const char comparing[] = "look for duplicates";

/* ---- one line ---- */

struct line {
    struct jsonl_row row;
    struct store_prepared prepared;
};

/* What would be the caller's mistake in attune_store_record is a malformed line here. */
static int blame_line(int code, attune_error *err) {
    if (code != ATTUNE_ERROR_ARGUMENT) return code;
    if (err) err->code = ATTUNE_ERROR_FORMAT;
    return ATTUNE_ERROR_FORMAT;
}

/* options and app: what a row says that does not say it itself. Fills *row on success only. */
static int row_take(const char *text, size_t length, const char *where, const attune_import_options *options,
                    const char *app, struct jsonl_row *row, attune_error *err) {
    int code = jsonl_row_parse(text, length, where, row, err);
    if (code != ATTUNE_OK) return code;
    attune_interaction *interaction = &row->interaction;
    if (interaction->consent == ATTUNE_CONSENT_HOME) interaction->consent = options->consent;
    if (!interaction->app) interaction->app = options->app ? options->app : app;
    code = blame_line(store_check_interaction(interaction, where, err), err);
    if (code != ATTUNE_OK) jsonl_row_free(row);
    return code;
}

/* A line of a file. Zeroes *out first, so that line_free is fine whatever this returns. */
static int line_take(const char *text, size_t length, const char *where, const attune_import_options *options,
                     struct line *out, attune_error *err) {
    memset(out, 0, sizeof *out);
    int code = row_take(text, length, where, options, "import", &out->row, err);
    if (code != ATTUNE_OK) return code;
    if (!out->row.has_tier) out->row.interaction.tier = ATTUNE_TIER_IMPORTED;
    const char *id = out->row.id.text[0] ? out->row.id.text : NULL;
    return store_prepare_interaction(&out->row.interaction, id, &out->prepared, err);
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

/* ---- what is there already ---- */

/* The next interaction that the line repeats; *row 0: there is none after `after`. A row that has an id repeats the one
 * with this id, another one those with its content, app and session. */
static int next_duplicate(attune_store *store, const struct line *line, const char *content_hash, int64_t after,
                          int64_t *row, int *consent, attune_error *err) {
    const attune_interaction *in = &line->row.interaction;
    sqlite3_stmt *statement = NULL;
    int by_id = line->row.id.text[0] != '\0';
    int code = by_id ? store_prepare(store, -1, "SELECT id, consent FROM interaction WHERE uuid = ? AND id > ?",
                                     comparing, &statement, err)
                     : store_prepare(store, STORE_SLOT_DUPLICATE,
                                     "SELECT i.id, i.consent FROM digest d CROSS JOIN interaction i ON "
                                     "i.id = d.interaction WHERE d.content_hash = ? AND i.app = ? AND i.session = ? "
                                     "AND d.interaction > ? ORDER BY d.interaction LIMIT 1",
                                     comparing, &statement, err);
    if (code == ATTUNE_OK)
        code = by_id ? store_bind(store, statement, comparing, err, "ti", line->row.id.text, after)
                     : store_bind(store, statement, comparing, err, "htti", content_hash, in->app,
                                  in->session ? in->session : "", after);
    if (code == ATTUNE_OK) code = store_step(store, statement, comparing, err);
    *row = code == ATTUNE_CONTINUE ? sqlite3_column_int64(statement, 0) : 0;
    *consent = code == ATTUNE_CONTINUE ? sqlite3_column_int(statement, 1) : 0;
    if (by_id)
        sqlite3_finalize(statement);
    else if (statement)
        store_reset(statement);
    return code == ATTUNE_CONTINUE || code == ATTUNE_DONE ? ATTUNE_OK : code;
}

static int give_consent(attune_store *store, int64_t row, attune_error *err) {
    static const char doing[] = "give consent";
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1, "UPDATE interaction SET consent = 1 WHERE id = ?", doing, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_bind(store, statement, doing, err, "i", row);
    if (code == ATTUNE_OK) code = store_run_statement(store, statement, doing, err);
    sqlite3_finalize(statement);
    return code == ATTUNE_OK ? store_touch(store, row, err) : code;
}

/* Consent that comes with a repeated import reaches the rows that are there; it is never taken away so. */
static int meet_duplicates(attune_store *store, const struct line *line, const char *content_hash, int *is,
                           int64_t *consented, attune_error *err) {
    int64_t row = 0;
    int consent = 0;
    int code = next_duplicate(store, line, content_hash, row, &row, &consent, err);
    *is = code == ATTUNE_OK && row != 0;
    if (line->row.interaction.consent != ATTUNE_CONSENT_GIVEN) return code;
    while (code == ATTUNE_OK && row) {
        if (!consent) {
            code = give_consent(store, row, err);
            ++*consented;
        }
        if (code == ATTUNE_OK) code = next_duplicate(store, line, content_hash, row, &row, &consent, err);
    }
    return code;
}

static int was_forgotten(attune_store *store, const char *content_hash, int *is, attune_error *err) {
    unsigned char hash[32];
    sqlite3_stmt *statement = NULL;
    int code = store_tombstone_hash(store, content_hash, hash, err);
    if (code == ATTUNE_OK)
        code = store_prepare(store, STORE_SLOT_TOMBSTONE, "SELECT 1 FROM tombstone WHERE hash = ?", comparing,
                             &statement, err);
    if (code != ATTUNE_OK) return code;
    sqlite3_bind_blob(statement, 1, hash, sizeof hash, SQLITE_STATIC);
    code = store_step(store, statement, comparing, err);
    store_reset(statement);
    *is = code == ATTUNE_CONTINUE;
    return code == ATTUNE_CONTINUE || code == ATTUNE_DONE ? ATTUNE_OK : code;
}

/* ---- an import, inside its write transaction ---- */

struct import {
    attune_store *store;
    const attune_import_options *options;
    attune_import_result result;
    int64_t consented; /* rows that were there and got consent */
};

/* Secrets that only the app knows, as the recorder looks for them; what the row brings is not lost. */
static int64_t findings_of(const attune_store *store, const struct line *line) {
    const struct store_prepared *prepared = &line->prepared;
    int64_t told = line->row.private_findings;
    int64_t found = store_private_findings(store, prepared->interaction->response);
    for (size_t i = 0; i < prepared->n; i++) found += store_private_findings(store, prepared->list[i].content);
    for (size_t i = 0; i < line->row.n_feedback; i++)
        found += store_private_findings(store, line->row.feedback[i].text);
    return found > told ? found : told;
}

static int line_write(struct import *import, struct line *line, attune_error *err) {
    attune_store *store = import->store;
    const struct store_prepared *prepared = &line->prepared;
    int64_t id = 0;
    line->prepared.private_findings = findings_of(store, line);
    int code = store_write_interaction(store, prepared, &id, err);
    for (size_t i = 0; code == ATTUNE_OK && i < line->row.n_feedback; i++)
        code = store_write_feedback(store, id, prepared->uuid.text, &line->row.feedback[i], prepared->time_ms, err);
    if (code == ATTUNE_OK) code = store_derive_row(store, id, err);
    import->result.rows++;
    import->result.feedback += (int64_t)line->row.n_feedback;
    return code;
}

static int line_import(struct import *import, struct line *line, attune_error *err) {
    const struct store_prepared *prepared = &line->prepared;
    char content_hash[HASH_HEX_SIZE];
    int duplicate = 0, forgotten = 0;
    store_keyed_content_hash(import->store, prepared->list, prepared->n, prepared->interaction->response, content_hash);
    int code = meet_duplicates(import->store, line, content_hash, &duplicate, &import->consented, err);
    if (code == ATTUNE_OK && !duplicate && !import->options->forgotten)
        code = was_forgotten(import->store, content_hash, &forgotten, err);
    if (code != ATTUNE_OK) return code;
    import->result.duplicates += duplicate;
    import->result.forgotten += forgotten;
    return duplicate || forgotten ? ATTUNE_OK : line_write(import, line, err);
}

static void report_bad(struct import *import, const attune_error *what) {
    import->result.bad++;
    if (import->options->on_bad_line) import->options->on_bad_line(what, import->options->user);
}

/* ATTUNE_CONTINUE: there may be more lines; ATTUNE_DONE. */
static int next_line(struct import *import, struct jsonl *lines, attune_error *err) {
    attune_error bad = {0};
    struct line line = {0};
    char *text;
    size_t length;
    int code = jsonl_next(lines, &text, &length, &bad);
    if (code == ATTUNE_DONE) return code;
    if (code == ATTUNE_CONTINUE) code = line_take(text, length, lines->where, import->options, &line, &bad);
    if (code == ATTUNE_OK) {
        code = line_import(import, &line, err);
    } else if (code == ATTUNE_ERROR_FORMAT && import->options->keep_going) {
        report_bad(import, &bad);
        code = ATTUNE_OK;
    } else if (err) {
        *err = bad;
    }
    line_free(&line);
    return code == ATTUNE_OK ? ATTUNE_CONTINUE : code;
}

static int note_import(struct import *import, attune_error *err) {
    const attune_import_result *r = &import->result;
    char detail[240];
    snprintf(detail, sizeof detail,
             "%" PRId64 " rows, %" PRId64 " feedback, %" PRId64 " duplicates, %" PRId64 " of them got consent, %" PRId64
             " bad, %" PRId64 " forgotten before",
             r->rows, r->feedback, r->duplicates, import->consented, r->bad, r->forgotten);
    return store_audit(import->store, "import", detail, err);
}

static int import_lines(struct import *import, struct jsonl *lines, attune_error *err) {
    unsigned char salt[SEAL_SALT_BYTES];
    int left = 0;
    int code = store_salt(import->store, salt, err); /* a store of an older attune has none yet */
    if (code == ATTUNE_OK) code = store_derive_some(import->store, 0, &left, err);
    if (code != ATTUNE_OK) return code;
    while ((code = next_line(import, lines, err)) == ATTUNE_CONTINUE) {
    }
    return code == ATTUNE_DONE ? note_import(import, err) : code;
}

/* ---- the public calls ---- */

/* Closing a descriptor of store.db would drop the locks that SQLite holds on it in this process. */
static int refuse_own_file(const attune_store *store, const char *path, attune_error *err) {
    struct stat own, other;
    if (!path || stat(path, &other) != 0 || stat(store->path, &own) != 0) return ATTUNE_OK;
    if (own.st_dev != other.st_dev || own.st_ino != other.st_ino) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_ARGUMENT, path, "this is the store itself, not a file of JSON Lines");
}

/* Duplicates are known by their digests. Most of the work is done in pieces that let others write in between. */
static int derive_all(attune_store *store, attune_error *err) {
    int64_t waiting = 0;
    int left = 0;
    int code = store_derive_left(store, &waiting, err);
    if (code != ATTUNE_OK || !waiting) return code;
    do {
        code = store_begin(store, err);
        if (code == ATTUNE_OK)
            code = store_end(store, store_derive_some(store, store_clock_ms() + PIECE_MS, &left, err), err);
    } while (code == ATTUNE_OK && left);
    return code;
}

int attune_store_import(attune_store *store, const char *path, const attune_import_options *options,
                        attune_import_result *result, attune_error *err) {
    attune_import_options taken;
    struct import import = {.store = store, .options = &taken, .result = {.size = sizeof import.result}};
    struct jsonl lines = {.fd = -1};
    int code = take_options(&taken, options, err);
    if (code == ATTUNE_OK)
        code = options_write(result, &import.result, sizeof import.result, "attune_import_result", err);
    if (code == ATTUNE_OK) code = store_flush_queue(store, err);
    if (code == ATTUNE_OK) code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_need_key(store, err);
    if (code == ATTUNE_OK) code = refuse_own_file(store, path, err);
    if (code == ATTUNE_OK) code = jsonl_open(path, &lines, err);
    if (code == ATTUNE_OK) code = derive_all(store, err);
    if (code == ATTUNE_OK) code = store_begin(store, err);
    if (code == ATTUNE_OK) code = store_end(store, import_lines(&import, &lines, err), err);
    jsonl_close(&lines);
    store_leave(store);
    if (code == ATTUNE_OK) options_write(result, &import.result, sizeof import.result, "attune_import_result", err);
    return code;
}

/* What only an import can honour. */
static int refuse_kept(const struct jsonl_row *row, const char *where, attune_error *err) {
    if (row->id.text[0])
        return error_set(err, ATTUNE_ERROR_FORMAT, where,
                         "'id' belongs to a row that was exported: import it, or leave the key out");
    if (row->private_findings)
        return error_set(err, ATTUNE_ERROR_FORMAT, where,
                         "'private_findings' belongs to a row that was exported: import it, or leave the key out");
    return ATTUNE_OK;
}

static int enqueue(attune_store *store, struct jsonl_row *row, attune_uuid *id, const char *where, attune_error *err) {
    if (!row->interaction.time_ms) row->interaction.time_ms = store_now_ms();
    int code = store_enqueue_interaction(store, &row->interaction, id, err);
    for (size_t i = 0; code == ATTUNE_OK && i < row->n_feedback; i++) {
        if (!row->feedback[i].time_ms) row->feedback[i].time_ms = row->interaction.time_ms;
        code = store_enqueue_feedback(store, id->text, &row->feedback[i], err);
        if (code == ATTUNE_ERROR_QUEUE_FULL)
            code = error_set(err, code, where,
                             "recorded as %s, but the queue had no room for feedback %zu: give it again with "
                             "attune_store_feedback",
                             id->text, i + 1);
    }
    return code;
}

int attune_store_record_json(attune_store *store, const char *json, size_t length, const attune_import_options *options,
                             attune_uuid *id, attune_error *err) {
    static const char where[] = "the JSON object";
    attune_import_options taken;
    attune_uuid made = {""};
    struct jsonl_row row = {0};
    if (!json) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "json is NULL");
    if (length > STORE_TEXT_MAX)
        return error_set(err, ATTUNE_ERROR_FORMAT, where, "longer than %zu MiB", STORE_TEXT_MAX >> 20);
    int code = store_mine(store, err);
    if (code == ATTUNE_OK) code = take_options(&taken, options, err);
    if (code == ATTUNE_OK) code = store_need_key(store, err);
    if (code == ATTUNE_OK) code = row_take(json, length, where, &taken, NULL, &row, err);
    if (code != ATTUNE_OK) return code;
    code = refuse_kept(&row, where, err);
    if (code == ATTUNE_OK) code = enqueue(store, &row, &made, where, err);
    if (code == ATTUNE_OK && id) *id = made;
    jsonl_row_free(&row);
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

static int hand_out(const struct jsonl_row *from, store_row_callback callback, void *user, attune_error *err) {
    const attune_interaction *in = &from->interaction;
    const attune_message single = {.role = "user", .content = in->prompt};
    char content_hash[HASH_HEX_SIZE], prompt_hash[HASH_HEX_SIZE], *prompt = NULL;
    size_t size = 0;
    struct store_row row = {.kind = STORE_EXAMPLE_SFT,
                            .messages = in->prompt ? &single : in->messages,
                            .n_messages = in->prompt ? 1 : in->n_messages,
                            .response = edited_text(from),
                            .weight = 1.0,
                            .content_hash = content_hash,
                            .prompt_hash = prompt_hash,
                            .time_ms = in->time_ms};
    int code = store_prompt_normalise(row.messages, row.n_messages, &prompt, &size, err);
    if (code != ATTUNE_OK) return code;
    store_prompt_hash(prompt, size, prompt_hash);
    prompt_hash[16] = '\0';
    free(prompt);
    store_content_hash(row.messages, row.n_messages, row.response, content_hash);
    return callback(&row, user, err);
}

int store_rows_from_file(const char *path, store_row_callback callback, void *user, attune_error *err) {
    static const attune_import_options none = {.size = sizeof none};
    struct jsonl lines;
    int code = jsonl_open(path, &lines, err);
    if (code != ATTUNE_OK) return code;
    for (;;) {
        struct jsonl_row row;
        char *text;
        size_t length;
        code = jsonl_next(&lines, &text, &length, err);
        if (code != ATTUNE_CONTINUE) break;
        code = row_take(text, length, lines.where, &none, "import", &row, err);
        if (code != ATTUNE_OK) break;
        code = hand_out(&row, callback, user, err);
        jsonl_row_free(&row);
        if (code != ATTUNE_OK) break;
    }
    jsonl_close(&lines);
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}
