/* What the torture tests of the store share: rows whose every byte follows from who recorded them and their number, a
 * ledger of what was promised about them, and the check that a store keeps it.
 *
 * A ledger is written by one thread or process and read by others while it is. What it says changes in an order that
 * makes two readings of it, one before and one after a look at the store, bounds of what may be found there. */
#ifndef TESTS_TORTURE_H
#define TESTS_TORTURE_H

#include <inttypes.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/random.h"
#include "datastore/handle.h"

enum { TORTURE_ROWS = 4096, TORTURE_TEXT = 12 << 10, TORTURE_FEEDBACK = 4, TORTURE_PROBLEM = 300 };

struct torture_row {
    _Atomic unsigned char queued; /* before it is given to the store */
    _Atomic unsigned char known;  /* its id is here */
    _Atomic unsigned char flushed;
    _Atomic unsigned char feedback_queued, feedback_flushed;
    _Atomic unsigned char forgetting, forgotten;
    _Atomic unsigned char wiped; /* nothing of its texts is left in the files */
    attune_uuid id;
};

struct torture_ledger {
    unsigned writer;
    _Atomic unsigned n; /* numbers below it are in use */
    struct torture_row row[TORTURE_ROWS];
};

/* ---- texts ---- */

/* Letters of several lengths in UTF-8, and what has to be escaped in JSON. One text in sixteen fills more than a page
 * of the store. */
static inline void torture_text(char out[TORTURE_TEXT], unsigned writer, unsigned n, unsigned part) {
    static const char *const pieces[] = {"plain ", "words ", "\"quoted\" ", "back\\slash ", "line\nbreak ", "tab\t",
                                         "gr\xc3\xbc\xc3\x9f ", "\xe6\x97\xa5\xe6\x9c\xac ", "\xf0\x9f\x90\x8c ",
                                         "{\"a\":1} "};
    uint64_t key = random_u64(((uint64_t)writer << 32) + n, part);
    size_t wanted = 40 + (size_t)(key % 200) + (key >> 8 & 15 ? 0 : 9000);
    int used = snprintf(out, TORTURE_TEXT, "w%u n%u p%u: ", writer, n, part);
    for (uint64_t i = 0; (size_t)used < wanted; i++) {
        const char *piece = pieces[random_u64(key, i) % (sizeof pieces / sizeof pieces[0])];
        used += snprintf(out + used, TORTURE_TEXT - (size_t)used, "%s", piece);
    }
}

/* The texts of one row: up to three messages, then the response. */
struct torture_content {
    char text[4][TORTURE_TEXT];
    attune_message messages[3];
    size_t n;
};

static inline void torture_content_make(struct torture_content *out, unsigned writer, unsigned n) {
    static const char *const roles[] = {"user", "assistant", "user"};
    out->n = random_u64(writer, n) % 2 ? 1 : 3;
    for (unsigned i = 0; i < out->n; i++) {
        torture_text(out->text[i], writer, n, i);
        out->messages[i] = (attune_message){roles[i], out->text[i]};
    }
    torture_text(out->text[3], writer, n, 3);
}

/* The k-th feedback on a row; text: where that of an edit goes. */
static inline attune_feedback torture_feedback_make(unsigned writer, unsigned n, unsigned k, char text[TORTURE_TEXT]) {
    static const int kinds[] = {ATTUNE_FEEDBACK_THUMB, ATTUNE_FEEDBACK_EDIT, ATTUNE_FEEDBACK_DWELL,
                                ATTUNE_FEEDBACK_REGENERATE, ATTUNE_FEEDBACK_COPY};
    attune_feedback feedback;
    ATTUNE_INIT(feedback);
    feedback.kind = kinds[random_u64(((uint64_t)writer << 32) + n, 100 + k) % (sizeof kinds / sizeof kinds[0])];
    feedback.time_ms = 1700000000000 + (int64_t)n * 10 + (int64_t)k;
    feedback.value = feedback.kind == ATTUNE_FEEDBACK_THUMB ? 1 : feedback.kind == ATTUNE_FEEDBACK_DWELL ? n : 0;
    if (feedback.kind == ATTUNE_FEEDBACK_EDIT) {
        torture_text(text, writer, n, 10 + k);
        feedback.text = text;
    }
    return feedback;
}

/* ---- recording, with what the ledger has to say of it ---- */

/* *n (nullable): the number of the row. */
static inline int torture_record(attune_store *store, struct torture_ledger *ledger, unsigned *n, attune_error *err) {
    char source[16], session[16];
    attune_interaction in;
    ATTUNE_INIT(in);
    unsigned number = atomic_load(&ledger->n);
    if (number == TORTURE_ROWS) return error_set(err, ATTUNE_ERROR_INTERNAL, NULL, "the test's ledger is full");
    struct torture_content *content = malloc(sizeof *content);
    if (!content) return error_set_memory(err, "a row of the test", sizeof *content);
    struct torture_row *row = &ledger->row[number];
    torture_content_make(content, ledger->writer, number);
    snprintf(session, sizeof session, "w%u", ledger->writer);
    snprintf(source, sizeof source, "%u", number);
    in.messages = content->messages;
    in.n_messages = content->n;
    in.response = content->text[3];
    in.app = "torture";
    in.session = session;
    in.source = source;
    in.time_ms = 1700000000000 + (int64_t)number * 10;
    in.consent = ATTUNE_CONSENT_GIVEN;
    atomic_store(&row->queued, 1);
    atomic_store(&ledger->n, number + 1);
    int code = attune_store_record(store, &in, &row->id, err);
    if (code == ATTUNE_OK)
        atomic_store(&row->known, 1);
    else
        atomic_store(&row->queued, 0); /* refused at the door: the store may not keep it */
    free(content);
    if (n) *n = number;
    return code;
}

/* One more feedback on a row; ATTUNE_DONE when it has enough. */
static inline int torture_feedback(attune_store *store, struct torture_ledger *ledger, unsigned n, attune_error *err) {
    struct torture_row *row = &ledger->row[n];
    unsigned char k = atomic_load(&row->feedback_queued);
    if (k == TORTURE_FEEDBACK || !atomic_load(&row->known)) return ATTUNE_DONE;
    char *text = malloc(TORTURE_TEXT);
    if (!text) return error_set_memory(err, "a row of the test", TORTURE_TEXT);
    attune_feedback feedback = torture_feedback_make(ledger->writer, n, k, text);
    atomic_store(&row->feedback_queued, (unsigned char)(k + 1));
    int code = attune_store_feedback(store, row->id.text, &feedback, err);
    if (code != ATTUNE_OK) atomic_store(&row->feedback_queued, k);
    free(text);
    return code;
}

/* All that this ledger's own thread has queued is on the disk. */
static inline int torture_flush(attune_store *store, struct torture_ledger *ledger, attune_error *err) {
    int code = attune_store_flush(store, err);
    for (unsigned i = 0; code == ATTUNE_OK && i < atomic_load(&ledger->n); i++) {
        struct torture_row *row = &ledger->row[i];
        if (!atomic_load(&row->known)) continue;
        atomic_store(&row->flushed, 1);
        atomic_store(&row->feedback_flushed, atomic_load(&row->feedback_queued));
    }
    return code;
}

/* ---- what is forgotten ---- */

static inline int torture_forget(attune_store *store, struct torture_ledger *ledger, const unsigned *numbers, size_t n,
                                 attune_error *err) {
    const char *ids[16];
    attune_filter filter;
    attune_forget_result result;
    ATTUNE_INIT(filter);
    ATTUNE_INIT(result);
    for (size_t i = 0; i < n; i++) {
        atomic_store(&ledger->row[numbers[i]].forgetting, 1);
        ids[i] = ledger->row[numbers[i]].id.text;
    }
    filter.ids = ids;
    filter.n_ids = n;
    int code = attune_store_forget(store, &filter, &result, err);
    for (size_t i = 0; code == ATTUNE_OK && i < n; i++) {
        atomic_store(&ledger->row[numbers[i]].forgotten, 1);
        atomic_store(&ledger->row[numbers[i]].wiped, !result.scrub_pending);
    }
    return code;
}

/* ---- checking ---- */

struct torture_bound {
    unsigned char queued, flushed, feedback_queued, feedback_flushed, forgetting, forgotten, wiped, known;
};

/* Reads the whole ledger; out has TORTURE_ROWS. */
static inline void torture_look(struct torture_ledger *ledger, struct torture_bound *out) {
    for (unsigned i = 0; i < TORTURE_ROWS; i++) {
        struct torture_row *row = &ledger->row[i];
        out[i].wiped = atomic_load(&row->wiped);
        out[i].forgotten = atomic_load(&row->forgotten);
        out[i].feedback_flushed = atomic_load(&row->feedback_flushed);
        out[i].flushed = atomic_load(&row->flushed);
        out[i].known = atomic_load(&row->known);
        out[i].feedback_queued = atomic_load(&row->feedback_queued);
        out[i].queued = atomic_load(&row->queued);
        out[i].forgetting = atomic_load(&row->forgetting);
    }
}

struct torture_check {
    struct torture_ledger *const *ledgers;
    unsigned n_ledgers;
    struct torture_bound *before; /* n_ledgers x TORTURE_ROWS, made by torture_check_begin */
    unsigned char *seen;          /* the same */
    unsigned char *n_feedback;    /* the same: of the rows that were seen */
    int64_t rows, feedback;       /* found */
    char problem[TORTURE_PROBLEM];
};

static inline int torture_problem(struct torture_check *check, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static inline int torture_problem(struct torture_check *check, const char *format, ...) {
    va_list args;
    va_start(args, format);
    if (!check->problem[0]) vsnprintf(check->problem, sizeof check->problem, format, args);
    va_end(args);
    return 0;
}

/* Before the store, or what a disk holds of it, is looked at. 0: no memory. */
static inline int torture_check_begin(struct torture_check *check, struct torture_ledger *const *ledgers, unsigned n) {
    size_t cells = (size_t)n * TORTURE_ROWS;
    memset(check, 0, sizeof *check);
    check->ledgers = ledgers;
    check->n_ledgers = n;
    check->before = calloc(cells, sizeof *check->before);
    check->seen = calloc(2, cells);
    if (!check->before || !check->seen) return torture_problem(check, "the test has no memory");
    check->n_feedback = check->seen + cells;
    for (unsigned i = 0; i < n; i++) torture_look(ledgers[i], check->before + (size_t)i * TORTURE_ROWS);
    return 1;
}

static inline void torture_check_end(struct torture_check *check) {
    free(check->before);
    free(check->seen);
}

static inline int torture_same_messages(const attune_row *row, const struct torture_content *content) {
    if (row->n_messages != content->n) return 0;
    for (size_t i = 0; i < content->n; i++)
        if (strcmp(row->messages[i].role, content->messages[i].role) != 0 ||
            strcmp(row->messages[i].content, content->messages[i].content) != 0)
            return 0;
    return 1;
}

/* Those that were given, in the order in which they were, from the first on. */
static inline int torture_check_feedback(struct torture_check *check, const attune_row *row, unsigned writer,
                                         unsigned n) {
    char *text = malloc(TORTURE_TEXT);
    if (!text) return torture_problem(check, "the test has no memory");
    int same = row->n_feedback <= TORTURE_FEEDBACK;
    for (unsigned k = 0; same && k < row->n_feedback; k++) {
        attune_feedback wanted = torture_feedback_make(writer, n, k, text);
        const attune_feedback *found = &row->feedback[k];
        same = found->kind == wanted.kind && found->value == wanted.value && found->time_ms == wanted.time_ms &&
               !found->text == !wanted.text && (!wanted.text || strcmp(found->text, wanted.text) == 0);
    }
    free(text);
    return same ? 1 : torture_problem(check, "row %u of writer %u: its %zu feedback are not those given", n, writer,
                                      row->n_feedback);
}

static inline int torture_check_row(struct torture_check *check, const attune_row *row) {
    unsigned writer = 0, n = TORTURE_ROWS, at = 0;
    if (strcmp(row->app, "torture") != 0) return 1;
    if (sscanf(row->session, "w%u", &writer) != 1 || sscanf(row->source, "%u", &n) != 1 || n >= TORTURE_ROWS)
        return torture_problem(check, "a row that says session '%s', source '%s'", row->session, row->source);
    while (at < check->n_ledgers && check->ledgers[at]->writer != writer) at++;
    if (at == check->n_ledgers) return torture_problem(check, "a row of writer %u, who is nobody", writer);
    size_t cell = (size_t)at * TORTURE_ROWS + n;
    if (check->seen[cell]++) return torture_problem(check, "row %u of writer %u is there twice", n, writer);
    if (check->before[cell].known && strcmp(check->ledgers[at]->row[n].id.text, row->id.text) != 0)
        return torture_problem(check, "row %u of writer %u has another id", n, writer);
    struct torture_content *content = malloc(sizeof *content);
    if (!content) return torture_problem(check, "the test has no memory");
    torture_content_make(content, writer, n);
    int same = torture_same_messages(row, content) && strcmp(row->response, content->text[3]) == 0;
    free(content);
    if (!same) return torture_problem(check, "row %u of writer %u has other texts", n, writer);
    check->n_feedback[cell] = (unsigned char)row->n_feedback;
    check->rows++;
    check->feedback += (int64_t)row->n_feedback;
    return torture_check_feedback(check, row, writer, n);
}

/* What was promised before the look and may have been asked for until after it. */
static inline int torture_check_bounds(struct torture_check *check, unsigned at, const struct torture_bound *after) {
    unsigned writer = check->ledgers[at]->writer;
    for (unsigned n = 0; n < TORTURE_ROWS; n++) {
        size_t cell = (size_t)at * TORTURE_ROWS + n;
        const struct torture_bound *before = &check->before[cell];
        if (!check->seen[cell]) {
            if (before->flushed && !after[n].forgetting)
                return torture_problem(check, "row %u of writer %u was flushed and is not there", n, writer);
            continue;
        }
        if (before->forgotten) return torture_problem(check, "row %u of writer %u was forgotten", n, writer);
        if (!after[n].queued) return torture_problem(check, "row %u of writer %u was never recorded", n, writer);
        if (check->n_feedback[cell] < before->feedback_flushed || check->n_feedback[cell] > after[n].feedback_queued)
            return torture_problem(check, "row %u of writer %u has %u feedback, flushed %u, given %u", n, writer,
                                   check->n_feedback[cell], before->feedback_flushed, after[n].feedback_queued);
    }
    return 1;
}

static inline int torture_check_rows(struct torture_check *check, attune_store *store) {
    attune_error err = {0};
    attune_cursor *cursor = NULL;
    attune_row row;
    ATTUNE_INIT(row);
    int fine = 1, code = attune_store_query(store, NULL, &cursor, &err);
    while (code == ATTUNE_OK && fine && (code = attune_cursor_next(cursor, &row, &err)) == ATTUNE_CONTINUE) {
        fine = torture_check_row(check, &row);
        code = ATTUNE_OK;
    }
    attune_cursor_close(cursor);
    if (code != ATTUNE_OK && code != ATTUNE_DONE)
        return torture_problem(check, "cannot look at the rows: %d %s", code, err.message);
    return fine;
}

/* The store is sound and holds what the ledgers promise, each once and whole. 0: check->problem says what is wrong. */
static inline int torture_check(struct torture_check *check, attune_store *store) {
    char problem[200] = "";
    attune_error err = {0};
    int code = store_check(store, problem, sizeof problem, &err);
    if (code != ATTUNE_OK) return torture_problem(check, "the check: %d %s (%s)", code, err.message, problem);
    if (!torture_check_rows(check, store)) return 0;
    struct torture_bound *after = calloc(TORTURE_ROWS, sizeof *after);
    int fine = after ? 1 : torture_problem(check, "the test has no memory");
    for (unsigned i = 0; fine && i < check->n_ledgers; i++) {
        torture_look(check->ledgers[i], after);
        fine = torture_check_bounds(check, i, after);
    }
    free(after);
    return fine;
}

/* Nothing is left for maintenance to do, and it has passed over nothing. Called when nobody else writes. */
static inline int torture_check_maintained(struct torture_check *check, attune_store *store) {
    static const char *const counts[] = {
        "SELECT count(*) FROM interaction WHERE id NOT IN (SELECT interaction FROM digest)",
        "SELECT count(*) FROM touched",
        "SELECT count(*) FROM digest WHERE interaction NOT IN (SELECT id FROM interaction)",
        "SELECT count(*) FROM near WHERE interaction NOT IN (SELECT id FROM interaction)",
    };
    attune_error err = {0};
    attune_store_statistics statistics;
    ATTUNE_INIT(statistics);
    int code = attune_store_maintain(store, 0, &err);
    if (code == ATTUNE_OK) code = attune_store_statistics_get(store, &statistics, &err);
    if (code != ATTUNE_OK) return torture_problem(check, "maintenance: %d %s", code, err.message);
    if (statistics.not_derived || statistics.not_indexed || statistics.scrub_pending)
        return torture_problem(check, "maintenance leaves %" PRId64 " to derive, %" PRId64 " to index, %d to wipe",
                               statistics.not_derived, statistics.not_indexed, statistics.scrub_pending);
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        int64_t n = -1;
        if (store_number(store, counts[i], "count", &n, &err) != ATTUNE_OK || n != 0)
            return torture_problem(check, "%" PRId64 " of: %s", n, counts[i]);
    }
    return 1;
}

/* ---- chance, and how much of it ---- */

/* ATTUNE_TEST_SEED, else `otherwise`. */
static inline uint64_t torture_seed(uint64_t otherwise) {
    const char *said = getenv("ATTUNE_TEST_SEED");
    return said ? strtoull(said, NULL, 10) : otherwise;
}

/* ATTUNE_TEST_FULL=1: all of it, however long it takes. */
static inline int torture_full(void) {
    const char *said = getenv("ATTUNE_TEST_FULL");
    return said && strcmp(said, "1") == 0;
}

#endif
