#include "datastore/search.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

static const char indexing[] = "index the words", searching[] = "search the store";

enum {
    QUERY_BYTES_MAX = 16 << 10,
    STARTS_MAX = 32,         /* of words, in one query: FTS5 merges the rows of every word that begins so */
    PIECE_MS = 40,           /* of indexing in one transaction, before a search */
    PIECE_BYTES = 128 << 10, /* of words in one transaction that is to be short: its commit merges in proportion */
    BATCH_ROWS = 512,        /* of an encrypted store, decrypted at a time */
    BATCH_BYTES = 8 << 20    /* of their words: the batch ends behind the row that passes it */
};

/* ---- what goes into the index ----
 * FTS5 finds the terms of an entry that is deleted by reading the same text again: what this section makes of a text
 * must never change. */

/* Stands between the messages of a conversation, as a term of its own: a phrase does not reach from one into the next.
 * Of the private use area, whose characters the tokenizer takes for letters. */
#define BOUNDARY 0xe000

struct words {
    char *bytes; /* NUL-terminated */
    size_t n, room;
};

static int words_put(struct words *words, const char *bytes, size_t n, attune_error *err) {
    if (words->room - words->n <= n) {
        size_t room = (words->n + n) * 2 + 64;
        char *more = realloc(words->bytes, room);
        if (!more) return error_set_memory(err, "the words of a text", room);
        words->bytes = more;
        words->room = room;
    }
    memcpy(words->bytes + words->n, bytes, n);
    words->n += n;
    words->bytes[words->n] = '\0';
    return ATTUNE_OK;
}

/* Scripts that leave no space between words: each of their characters is a term, and a word of several is searched for
 * as a phrase. Thai, Lao, Myanmar, Khmer; radicals, kana, Bopomofo, ideographs. */
static int stands_alone(utf8proc_int32_t c) {
    static const utf8proc_int32_t ranges[][2] = {
        {0x0e00, 0x0eff}, {0x1000, 0x109f}, {0x1780, 0x17ff},   {0x2e80, 0x2fdf},  {0x3005, 0x3007},
        {0x3021, 0x312f}, {0x31a0, 0x31bf}, {0x31f0, 0x31ff},   {0x3400, 0x4dbf},  {0x4e00, 0x9fff},
        {0xf900, 0xfaff}, {0xff66, 0xff9f}, {0x1b000, 0x1b16f}, {0x20000, 0x3ffff}};
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++)
        if (c >= ranges[i][0] && c <= ranges[i][1]) return 1;
    return 0;
}

/* The boundary in somebody's text, and what only says how the character before it is drawn. */
static int is_no_word(utf8proc_int32_t c) { return c == BOUNDARY || (c >= 0xfe00 && c <= 0xfe0f) || c == 0x20e3; }

static int words_add(struct words *words, const char *text, size_t n, attune_error *err) {
    size_t i = 0, kept = 0; /* [kept, i) goes in as it is */
    int code = ATTUNE_OK;
    while (i < n && code == ATTUNE_OK) {
        utf8proc_int32_t c = 0;
        utf8proc_ssize_t used = 1;
        if ((unsigned char)text[i] >= 0x80)
            used = utf8proc_iterate((const utf8proc_uint8_t *)text + i, (utf8proc_ssize_t)(n - i), &c);
        size_t next = i + (used > 0 ? (size_t)used : 1);
        if (c >= 0x80 && (stands_alone(c) || is_no_word(c))) {
            code = words_put(words, text + kept, i - kept, err);
            if (code == ATTUNE_OK) code = words_put(words, " ", 1, err);
            if (code == ATTUNE_OK && !is_no_word(c)) code = words_put(words, text + i, next - i, err);
            if (code == ATTUNE_OK) code = words_put(words, " ", 1, err);
            kept = next;
        }
        i = next;
    }
    return code == ATTUNE_OK ? words_put(words, text + kept, n - kept, err) : code;
}

static int words_of(const struct store_loaded *row, struct words *words, attune_error *err) {
    static const char boundary[] = "\n\xee\x80\x80\n";
    int code = ATTUNE_OK;
    for (size_t i = 0; i < row->messages.n && code == ATTUNE_OK; i++) {
        code = words_add(words, row->messages.list[i].content, strlen(row->messages.list[i].content), err);
        if (code == ATTUNE_OK) code = words_put(words, boundary, sizeof boundary - 1, err);
    }
    return code == ATTUNE_OK ? words_add(words, row->response, strlen(row->response), err) : code;
}

static int64_t entry_of_interaction(int64_t id) { return 2 * id; }
static int64_t entry_of_feedback(int64_t id) { return 2 * id + 1; }

/* `put` has two parameters, the entry's rowid and its text: it adds the entry, or deletes it. */
static int put_interaction(attune_store *store, sqlite3_stmt *put, int64_t id, size_t *bytes, attune_error *err) {
    struct store_loaded row;
    struct words words = {0};
    int code = store_load_interaction(store, id, &row, err);
    if (code != ATTUNE_OK) return code;
    code = words_of(&row, &words, err);
    store_loaded_free(&row);
    if (code == ATTUNE_OK) code = store_bind(store, put, indexing, err, "it", entry_of_interaction(id), words.bytes);
    if (code == ATTUNE_OK) code = store_run_statement(store, put, indexing, err);
    *bytes += words.n;
    free(words.bytes);
    return code;
}

/* uuid: of its interaction. */
static int put_feedback(attune_store *store, sqlite3_stmt *put, int64_t id, const char *uuid, size_t *bytes,
                        attune_error *err) {
    struct words words = {0};
    char *text = NULL;
    int code = store_load_feedback_text(store, id, uuid, &text, err);
    if (code != ATTUNE_OK || !text) return code;
    code = words_add(&words, text, strlen(text), err);
    free(text);
    if (code == ATTUNE_OK) code = store_bind(store, put, indexing, err, "it", entry_of_feedback(id), words.bytes);
    if (code == ATTUNE_OK) code = store_run_statement(store, put, indexing, err);
    *bytes += words.n;
    free(words.bytes);
    return code;
}

/* Feedback of one interaction, up to the row `last`. */
static int put_feedback_of(attune_store *store, sqlite3_stmt *put, int64_t interaction, int64_t last, size_t *bytes,
                           attune_error *err) {
    sqlite3_stmt *rows = NULL;
    int code = store_prepare(store, -1,
                             "SELECT f.id, i.uuid FROM feedback f CROSS JOIN interaction i ON i.id = f.interaction "
                             "WHERE f.interaction = ? AND f.id <= ? AND f.text IS NOT NULL ORDER BY f.id",
                             indexing, &rows, err);
    if (code != ATTUNE_OK) return code;
    code = store_bind(store, rows, indexing, err, "ii", interaction, last);
    while (code == ATTUNE_OK && (code = store_step(store, rows, indexing, err)) == ATTUNE_CONTINUE)
        code = put_feedback(store, put, sqlite3_column_int64(rows, 0), (const char *)sqlite3_column_text(rows, 1),
                            bytes, err);
    sqlite3_finalize(rows);
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}

/* ---- indexing ---- */


/* Rows beyond *mark, which moves with them. sql: their ids, and for feedback the interaction's uuid. */
static int index_beyond(attune_store *store, const char *sql, int is_feedback, int64_t until_ms, int64_t *mark,
                        int *left, attune_error *err) {
    sqlite3_stmt *rows = NULL, *put = NULL;
    size_t bytes = 0;
    int code = store_prepare(store, -1, sql, indexing, &rows, err);
    if (code == ATTUNE_OK)
        code = store_prepare(store, STORE_SLOT_INDEX, "INSERT INTO search (rowid, text) VALUES (?, ?)", indexing, &put,
                             err);
    if (code == ATTUNE_OK) code = store_bind(store, rows, indexing, err, "i", *mark);
    while (code == ATTUNE_OK && !*left && (code = store_step(store, rows, indexing, err)) == ATTUNE_CONTINUE) {
        int64_t id = sqlite3_column_int64(rows, 0);
        if (!is_feedback)
            code = put_interaction(store, put, id, &bytes, err);
        else if (sqlite3_column_type(rows, 1) == SQLITE_TEXT)
            code = put_feedback(store, put, id, (const char *)sqlite3_column_text(rows, 1), &bytes, err);
        else
            code = ATTUNE_OK;
        if (code == ATTUNE_ERROR_FORMAT) code = ATTUNE_OK; /* a damaged row is found by nothing, and stops nothing */
        if (code != ATTUNE_OK) break;
        *mark = id;
        *left = store_is_over(until_ms) || (until_ms && bytes >= PIECE_BYTES);
    }
    sqlite3_finalize(rows);
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}

int store_index_some(attune_store *store, int64_t until_ms, int *left, attune_error *err) {
    static const struct {
        const char *mark, *sql;
    } kinds[] = {{"indexed", "SELECT id FROM interaction WHERE id > ? ORDER BY id"},
                 {"feedback_indexed", "SELECT f.id, CASE WHEN f.text IS NOT NULL THEN "
                                      "(SELECT i.uuid FROM interaction i WHERE i.id = f.interaction) END "
                                      "FROM feedback f WHERE f.id > ? ORDER BY f.id"}};
    int code = ATTUNE_OK;
    *left = 0;
    for (int i = 0; i < 2 && code == ATTUNE_OK && !*left && !store->encrypted; i++) {
        int64_t mark = 0, before;
        code = store_mark_get(store, kinds[i].mark, &mark, err);
        before = mark;
        if (code == ATTUNE_OK) code = index_beyond(store, kinds[i].sql, i, until_ms, &mark, left, err);
        if (code == ATTUNE_OK && mark != before) code = store_mark_put(store, kinds[i].mark, mark, err);
    }
    return code;
}

int store_index_left(attune_store *store, int64_t *n, attune_error *err) {
    *n = 0;
    if (store->encrypted) return ATTUNE_OK;
    return store_number(store,
                        "SELECT (SELECT count(*) FROM interaction WHERE id > "
                        "coalesce((SELECT value FROM mark WHERE name = 'indexed'), 0)) + "
                        "(SELECT count(*) FROM feedback WHERE id > "
                        "coalesce((SELECT value FROM mark WHERE name = 'feedback_indexed'), 0))",
                        indexing, n, err);
}

/* ---- forgetting ---- */

/* SQLite gives the largest ids again once their rows are gone: the mark stays at or below what remains without this
 * interaction. sql: the largest id that remains. */
static int lower_mark(attune_store *store, const char *name, int64_t mark, const char *sql, int64_t id,
                      attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1, sql, indexing, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_bind(store, statement, indexing, err, "i", id);
    if (code == ATTUNE_OK) code = store_step(store, statement, indexing, err);
    int64_t largest = code == ATTUNE_CONTINUE ? sqlite3_column_int64(statement, 0) : 0;
    sqlite3_finalize(statement);
    if (code != ATTUNE_CONTINUE && code != ATTUNE_DONE) return code;
    return largest < mark ? store_mark_put(store, name, largest, err) : ATTUNE_OK;
}

int store_index_forget(attune_store *store, int64_t id, attune_error *err) {
    sqlite3_stmt *remove = NULL;
    int64_t mark = 0, feedback_mark = 0;
    size_t bytes = 0;
    if (store->encrypted) return ATTUNE_OK;
    int code = store_mark_get(store, "indexed", &mark, err);
    if (code == ATTUNE_OK) code = store_mark_get(store, "feedback_indexed", &feedback_mark, err);
    if (code == ATTUNE_OK)
        code = store_prepare(store, -1, "INSERT INTO search (search, rowid, text) VALUES ('delete', ?, ?)", indexing,
                             &remove, err);
    if (code == ATTUNE_OK && id <= mark) code = put_interaction(store, remove, id, &bytes, err);
    if (code == ATTUNE_OK) code = put_feedback_of(store, remove, id, feedback_mark, &bytes, err);
    sqlite3_finalize(remove);
    if (code == ATTUNE_OK)
        code = lower_mark(store, "indexed", mark, "SELECT id FROM interaction WHERE id <> ? ORDER BY id DESC LIMIT 1",
                          id, err);
    if (code == ATTUNE_OK)
        code = lower_mark(store, "feedback_indexed", feedback_mark,
                          "SELECT id FROM feedback WHERE interaction <> ? ORDER BY id DESC LIMIT 1", id, err);
    return code;
}

int store_index_restart(attune_store *store, attune_error *err) {
    int code = store_exec(store, "INSERT INTO search (search) VALUES ('delete-all')", indexing, err);
    if (code == ATTUNE_OK) code = store_mark_put(store, "indexed", 0, err);
    return code == ATTUNE_OK ? store_mark_put(store, "feedback_indexed", 0, err) : code;
}

/* ---- the query: every piece of it in quotes, so that FTS5 sees no syntax of its own ---- */

/* Letters, marks and numbers, as the tokenizer sees them. */
static int is_word(utf8proc_int32_t c) {
    utf8proc_category_t category = utf8proc_category(c);
    if (is_no_word(c)) return 0;
    return (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_NO) || category == UTF8PROC_CATEGORY_CO;
}

static int is_space(utf8proc_int32_t c) {
    utf8proc_category_t category = utf8proc_category(c);
    return (c >= '\t' && c <= '\r') || (category >= UTF8PROC_CATEGORY_ZS && category <= UTF8PROC_CATEGORY_ZP);
}

struct piece {
    const char *text;
    size_t n; /* without the quotes and the star */
    int has_word, is_start;
};

/* The piece at `at`: a word, or a phrase up to its closing quote or the end. Returns where the next one begins; NULL:
 * there was none. */
static const char *next_piece(const char *at, struct piece *out) {
    utf8proc_int32_t c = 0, last = 0;
    utf8proc_ssize_t used;
    while ((used = utf8proc_iterate((const utf8proc_uint8_t *)at, -1, &c)) > 0 && c && is_space(c)) at += used;
    if (!*at) return NULL;
    int quoted = *at == '"';
    memset(out, 0, sizeof *out);
    out->text = at += quoted;
    for (; (used = utf8proc_iterate((const utf8proc_uint8_t *)at, -1, &c)) > 0 && c && c != '"'; at += used) {
        if (!quoted && is_space(c)) break;
        out->has_word |= is_word(c);
        out->is_start = c == '*' && (is_word(last) || out->is_start);
        last = c;
    }
    out->n = (size_t)(at - out->text);
    if (quoted && *at == '"') at++;
    if (quoted && *at == '*' && is_word(last)) out->is_start = 1;
    while (quoted && *at == '*') at++;
    return at;
}

/* *out: malloc'ed, an expression of FTS5 that every entry with all the pieces matches. */
static int read_query(const char *query, char **out, attune_error *err) {
    struct words words = {0};
    struct piece piece;
    int code = ATTUNE_OK, starts = 0;
    if (!query) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the words to look for are NULL");
    size_t n = strlen(query);
    if (n > QUERY_BYTES_MAX)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the words to look for take %zu bytes, at most %d may", n,
                         QUERY_BYTES_MAX);
    if (store_utf8_check(query, n) < n)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the words to look for are not UTF-8");
    for (const char *at = query; code == ATTUNE_OK && (at = next_piece(at, &piece));) {
        if (!piece.has_word) continue;
        if (piece.is_start && ++starts > STARTS_MAX)
            code = error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "more than %d of the words to look for end in *",
                             STARTS_MAX);
        if (code == ATTUNE_OK) code = words_put(&words, " \"", 2, err);
        if (code == ATTUNE_OK) code = words_add(&words, piece.text, piece.n, err);
        if (code == ATTUNE_OK) code = words_put(&words, piece.is_start ? "\" *" : "\"", piece.is_start ? 3 : 1, err);
    }
    if (code == ATTUNE_OK && words.n == 0)
        code = error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "there is no word to look for: letters or digits");
    if (code == ATTUNE_OK)
        *out = words.bytes;
    else
        free(words.bytes);
    return code;
}

/* ---- searching ---- */

struct found {
    int64_t *ids;
    size_t n, room;
};

static int found_add(struct found *found, int64_t id, attune_error *err) {
    if (found->n == found->room) {
        size_t room = found->room ? found->room * 2 : 64;
        int64_t *more = realloc(found->ids, room * sizeof *more);
        if (!more) return error_set_memory(err, "what a search has found", room * sizeof *more);
        found->ids = more;
        found->room = room;
    }
    found->ids[found->n++] = id;
    return ATTUNE_OK;
}

#define MATCHES_IN(schema, table)                                                                                      \
    "SELECT rowid >> 1 FROM " schema "." table " WHERE " table " MATCH ?1 AND rowid & 1 = 0 UNION "                    \
    "SELECT f.interaction FROM " schema "." table " s CROSS JOIN main.feedback f ON f.id = s.rowid >> 1 "              \
    "WHERE s." table " MATCH ?1 AND s.rowid & 1 = 1 ORDER BY 1"

static int matches(attune_store *store, const char *sql, const char *expression, struct found *found,
                   attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1, sql, searching, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_bind(store, statement, searching, err, "t", expression);
    while (code == ATTUNE_OK && (code = store_step(store, statement, searching, err)) == ATTUNE_CONTINUE)
        code = found_add(found, sqlite3_column_int64(statement, 0), err);
    sqlite3_finalize(statement);
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}

static int bring_up(attune_store *store, attune_error *err) {
    int64_t waiting = 0;
    int left = 0;
    if (store->writing) return store_index_some(store, 0, &left, err);
    if (store->reading) return ATTUNE_OK;
    int code = store_index_left(store, &waiting, err);
    if (code != ATTUNE_OK || !waiting) return code;
    do {
        code = store_begin(store, err);
        if (code == ATTUNE_OK)
            code = store_end(store, store_index_some(store, store_clock_ms() + PIECE_MS, &left, err), err);
    } while (code == ATTUNE_OK && left);
    return code;
}

/* ---- searching an encrypted store ----
 * The index of a batch is a temporary table, which PRAGMA temp_store keeps in memory. It is emptied, not dropped:
 * SQLite drops no table while a statement of a caller's callback is under way. */

#define EMPTY_BATCH "INSERT INTO temp.batch_search (batch_search) VALUES ('delete-all')"

static int make_batch_table(attune_store *store, attune_error *err) {
    return store_exec(store,
                      "CREATE VIRTUAL TABLE IF NOT EXISTS temp.batch_search USING fts5("
                      "text, content = '', columnsize = 0, "
                      "tokenize = 'unicode61 remove_diacritics 2 categories ''L* M* N* Co'''); " EMPTY_BATCH,
                      searching, err);
}

/* Rows beyond *last, which moves with them; *more 0: they were the last ones. */
static int fill_batch(attune_store *store, int64_t *last, int *more, attune_error *err) {
    sqlite3_stmt *rows = NULL, *put = NULL;
    size_t bytes = 0;
    int n = 0;
    int code = store_prepare(store, -1, "SELECT id FROM interaction WHERE id > ? ORDER BY id", searching, &rows, err);
    if (code == ATTUNE_OK)
        code =
            store_prepare(store, -1, "INSERT INTO temp.batch_search (rowid, text) VALUES (?, ?)", searching, &put, err);
    if (code == ATTUNE_OK) code = store_bind(store, rows, searching, err, "i", *last);
    while (code == ATTUNE_OK && n < BATCH_ROWS && bytes < BATCH_BYTES &&
           (code = store_step(store, rows, searching, err)) == ATTUNE_CONTINUE) {
        *last = sqlite3_column_int64(rows, 0);
        code = put_interaction(store, put, *last, &bytes, err);
        if (code == ATTUNE_OK) code = put_feedback_of(store, put, *last, INT64_MAX, &bytes, err);
        if (code == ATTUNE_ERROR_FORMAT) code = ATTUNE_OK;
        n++;
    }
    *more = code == ATTUNE_OK;
    sqlite3_finalize(put);
    sqlite3_finalize(rows);
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}

/* Inside a read. */
static int search_batch(attune_store *store, const char *expression, int64_t *last, int *more, struct found *found,
                        attune_error *err) {
    int code = fill_batch(store, last, more, err);
    if (code == ATTUNE_OK) code = matches(store, MATCHES_IN("temp", "batch_search"), expression, found, err);
    int emptied = store_exec(store, EMPTY_BATCH, searching, code == ATTUNE_OK ? err : NULL);
    return code == ATTUNE_OK ? emptied : code;
}

static int search_encrypted(attune_store *store, const char *expression, struct found *found, attune_error *err) {
    int64_t last = 0;
    int more = 1;
    int code = store_need_key(store, err);
    if (code == ATTUNE_OK) code = make_batch_table(store, err);
    while (code == ATTUNE_OK && more) {
        code = store_read_begin(store, err);
        if (code != ATTUNE_OK) break;
        code = search_batch(store, expression, &last, &more, found, err);
        store_read_end(store);
    }
    return code;
}

int store_search(attune_store *store, const char *query, int64_t **ids, size_t *n, attune_error *err) {
    struct found found = {0};
    char *expression = NULL;
    int code = read_query(query, &expression, err);
    if (code != ATTUNE_OK) return code;
    if (store->encrypted) {
        code = search_encrypted(store, expression, &found, err);
    } else {
        code = bring_up(store, err);
        if (code == ATTUNE_OK) code = matches(store, MATCHES_IN("main", "search"), expression, &found, err);
    }
    free(expression);
    if (code == ATTUNE_OK) {
        *ids = found.ids;
        *n = found.n;
    } else {
        free(found.ids);
    }
    return code;
}
