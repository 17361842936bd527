#include "datastore/derive.h"

#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "datastore/findings.h"
#include "datastore/judge.h"
#include "datastore/sketch.h"

static const char deriving[] = "derive the examples";

enum {
    PAIRS_MAX = 4,      /* preference pairs that one interaction is chosen in over regenerated ones */
    TURNS_MAX = 16,     /* interactions of one turn that are looked at for pairs */
    CANDIDATES_MAX = 8, /* of each band, the oldest and the newest rows, that are compared */
    SKETCH_BYTES = SKETCH_HASHES + SKETCH_BANDS * 8
};

/* ---- hashes ---- */

void store_keyed_content_hash(const attune_store *store, const attune_message *messages, size_t n, const char *response,
                              char hex[HASH_HEX_SIZE]) {
    store_content_hash(messages, n, response, hex);
    seal_hash(&store->seal, hex);
}

static int64_t key_of(const attune_store *store, char hex[HASH_HEX_SIZE]) {
    unsigned char b[8] = {0};
    uint64_t key = 0;
    seal_hash(&store->seal, hex);
    sodium_hex2bin(b, sizeof b, hex, 2 * sizeof b, NULL, NULL, NULL);
    for (int i = 0; i < 8; i++) key = key << 8 | b[i];
    return (int64_t)key;
}

/* The same conversation in the same place: a regenerated answer and the one that came in its stead share it. */
static int64_t turn_key(const attune_store *store, const struct store_loaded *row) {
    struct hash hash;
    char hex[HASH_HEX_SIZE];
    hash_start(&hash);
    hash_add_string(&hash, "turn");
    hash_add_string(&hash, row->app);
    hash_add_string(&hash, row->session);
    for (size_t i = 0; i < row->messages.n; i++) {
        hash_add_string(&hash, row->messages.list[i].role);
        hash_add_string(&hash, row->messages.list[i].content);
    }
    hash_finish(&hash, hex);
    return key_of(store, hex);
}

/* ---- sketches as they are stored: minima, then bands, little-endian ---- */

static void put_little(unsigned char *to, uint64_t value) {
    for (int i = 0; i < 8; i++) to[i] = (unsigned char)(value >> (8 * i));
}

static uint64_t get_little(const unsigned char *from) {
    uint64_t value = 0;
    for (int i = 8; i-- > 0;) value = value << 8 | from[i];
    return value;
}

static void sketch_write(const struct sketch *sketch, unsigned char out[SKETCH_BYTES]) {
    memcpy(out, sketch->minimum, SKETCH_HASHES);
    for (int i = 0; i < SKETCH_BANDS; i++) put_little(out + SKETCH_HASHES + 8 * i, (uint64_t)sketch->band[i]);
}

/* 0: the column holds none. */
static int sketch_read(sqlite3_stmt *row, int column, struct sketch *out) {
    const unsigned char *from = sqlite3_column_blob(row, column);
    if (!from || sqlite3_column_bytes(row, column) != SKETCH_BYTES) return 0;
    memcpy(out->minimum, from, SKETCH_HASHES);
    for (int i = 0; i < SKETCH_BANDS; i++) out->band[i] = (int64_t)get_little(from + SKETCH_HASHES + 8 * i);
    return 1;
}

/* ---- statements with ids ---- */

/* A statement whose parameters are all integers. */
static int run_ids(attune_store *store, int slot, const char *sql, int64_t a, int64_t b, int n, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, slot, sql, deriving, &statement, err);
    if (code == ATTUNE_OK)
        code = n == 1 ? store_bind(store, statement, deriving, err, "i", a)
                      : store_bind(store, statement, deriving, err, "ii", a, b);
    if (code == ATTUNE_OK) code = store_run_statement(store, statement, deriving, err);
    if (slot < 0) sqlite3_finalize(statement);
    return code;
}

static int near_put(attune_store *store, const struct sketch *sketch, int64_t id, attune_error *err) {
    int code = ATTUNE_OK;
    for (int i = 0; i < SKETCH_BANDS && code == ATTUNE_OK; i++)
        code = run_ids(store, STORE_SLOT_NEAR_PUT, "INSERT OR IGNORE INTO near (band, interaction) VALUES (?, ?)",
                       sketch->band[i], id, 2, err);
    return code;
}

static int near_remove(attune_store *store, const struct sketch *sketch, int64_t id, attune_error *err) {
    int code = ATTUNE_OK;
    for (int i = 0; i < SKETCH_BANDS && code == ATTUNE_OK; i++)
        code = run_ids(store, -1, "DELETE FROM near WHERE band = ? AND interaction = ?", sketch->band[i], id, 2, err);
    return code;
}

/* ---- groups: which earlier prompt this one nearly repeats ---- */

/* *leader 0: no earlier row has the same normalised prompt. */
static int same_prompt(attune_store *store, int64_t prompt_key, int64_t id, int64_t *leader, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, STORE_SLOT_SAME_PROMPT,
                             "SELECT leader FROM digest WHERE prompt_key = ? AND interaction < ? "
                             "ORDER BY interaction LIMIT 1",
                             deriving, &statement, err);
    if (code == ATTUNE_OK) code = store_bind(store, statement, deriving, err, "ii", prompt_key, id);
    if (code != ATTUNE_OK) return code;
    code = store_step(store, statement, deriving, err);
    *leader = code == ATTUNE_CONTINUE ? sqlite3_column_int64(statement, 0) : 0;
    store_reset(statement);
    return code == ATTUNE_CONTINUE || code == ATTUNE_DONE ? ATTUNE_OK : code;
}

/* Rows before `id` that share a band: the oldest and the newest of each, so that a form letter that thousands of
 * prompts begin with costs no more than any other. */
static int candidates_of(attune_store *store, int64_t band, int64_t id, int newest, int64_t *out, int *n,
                         attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = newest ? store_prepare(store, STORE_SLOT_NEAR_NEWEST,
                                      "SELECT interaction FROM near WHERE band = ? AND interaction < ? "
                                      "ORDER BY interaction DESC LIMIT ?",
                                      deriving, &statement, err)
                      : store_prepare(store, STORE_SLOT_NEAR_OLDEST,
                                      "SELECT interaction FROM near WHERE band = ? AND interaction < ? "
                                      "ORDER BY interaction LIMIT ?",
                                      deriving, &statement, err);
    if (code == ATTUNE_OK) code = store_bind(store, statement, deriving, err, "iii", band, id, (int64_t)CANDIDATES_MAX);
    if (code != ATTUNE_OK) return code;
    while ((code = store_step(store, statement, deriving, err)) == ATTUNE_CONTINUE)
        out[(*n)++] = sqlite3_column_int64(statement, 0);
    store_reset(statement);
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}

static int compare_ids(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

/* *leader 0: the row is no near-duplicate. */
static int leader_if_near(attune_store *store, const struct sketch *sketch, int64_t id, int64_t *leader,
                          attune_error *err) {
    sqlite3_stmt *statement = NULL;
    struct sketch other;
    int code = store_prepare(store, STORE_SLOT_SKETCH, "SELECT leader, sketch FROM digest WHERE interaction = ?",
                             deriving, &statement, err);
    if (code == ATTUNE_OK) code = store_bind(store, statement, deriving, err, "i", id);
    if (code != ATTUNE_OK) return code;
    code = store_step(store, statement, deriving, err);
    if (code == ATTUNE_CONTINUE && sketch_read(statement, 1, &other) &&
        sketch_similarity(sketch, &other) >= SKETCH_NEAR)
        *leader = sqlite3_column_int64(statement, 0);
    store_reset(statement);
    return code == ATTUNE_CONTINUE || code == ATTUNE_DONE ? ATTUNE_OK : code;
}

/* The group of the earliest near-duplicate; *leader 0: there is none. */
static int near_prompt(attune_store *store, const struct sketch *sketch, int64_t id, int64_t *leader,
                       attune_error *err) {
    int64_t found[SKETCH_BANDS * 2 * CANDIDATES_MAX];
    int n = 0, code = ATTUNE_OK;
    for (int i = 0; i < 2 * SKETCH_BANDS && code == ATTUNE_OK; i++)
        code = candidates_of(store, sketch->band[i / 2], id, i % 2, found, &n, err);
    qsort(found, (size_t)n, sizeof *found, compare_ids);
    *leader = 0;
    for (int i = 0; i < n && !*leader && code == ATTUNE_OK; i++)
        if (i == 0 || found[i] != found[i - 1]) code = leader_if_near(store, sketch, found[i], leader, err);
    return code;
}

/* ---- the digest ---- */

struct digest {
    char content_hash[HASH_HEX_SIZE];
    int64_t turn_key, prompt_key, leader;
    struct sketch sketch;
    int sketched; /* 0: another row with the same prompt stands for it */
};

static int find_digest(attune_store *store, int64_t id, int64_t *turn, int64_t *findings, int *found,
                       attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, STORE_SLOT_DIGEST, "SELECT turn_key, findings FROM digest WHERE interaction = ?",
                             deriving, &statement, err);
    if (code == ATTUNE_OK) code = store_bind(store, statement, deriving, err, "i", id);
    if (code != ATTUNE_OK) return code;
    code = store_step(store, statement, deriving, err);
    *found = code == ATTUNE_CONTINUE;
    if (*found) {
        *turn = sqlite3_column_int64(statement, 0);
        *findings = sqlite3_column_int64(statement, 1);
    }
    store_reset(statement);
    return code == ATTUNE_CONTINUE || code == ATTUNE_DONE ? ATTUNE_OK : code;
}

static int make_digest(attune_store *store, const struct store_loaded *row, struct digest *out, attune_error *err) {
    char hex[HASH_HEX_SIZE], *prompt = NULL;
    size_t n = 0;
    memset(out, 0, sizeof *out);
    store_keyed_content_hash(store, row->messages.list, row->messages.n, row->response, out->content_hash);
    out->turn_key = turn_key(store, row);
    int code = store_prompt_normalise(row->messages.list, row->messages.n, &prompt, &n, err);
    if (code != ATTUNE_OK) return code;
    store_prompt_hash(prompt, n, hex);
    out->prompt_key = key_of(store, hex);
    code = same_prompt(store, out->prompt_key, row->id, &out->leader, err);
    if (code == ATTUNE_OK && !out->leader) {
        sketch_make(prompt, n, store->seal.sketch, &out->sketch);
        out->sketched = 1;
        code = near_prompt(store, &out->sketch, row->id, &out->leader, err);
    }
    if (!out->leader) out->leader = row->id;
    free(prompt);
    return code;
}

static int put_digest(attune_store *store, int64_t id, const struct digest *digest, int64_t findings,
                      attune_error *err) {
    unsigned char sketch[SKETCH_BYTES];
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, STORE_SLOT_DIGEST_PUT,
                             "INSERT INTO digest (interaction, content_hash, turn_key, prompt_key, leader, findings, "
                             "sketch) VALUES (?, ?, ?, ?, ?, ?, ?)",
                             deriving, &statement, err);
    if (code == ATTUNE_OK)
        code = store_bind(store, statement, deriving, err, "ihiiii", id, digest->content_hash, digest->turn_key,
                          digest->prompt_key, digest->leader, findings);
    if (code != ATTUNE_OK) return code;
    if (digest->sketched) {
        sketch_write(&digest->sketch, sketch);
        if (sqlite3_bind_blob(statement, 7, sketch, sizeof sketch, SQLITE_STATIC) != SQLITE_OK)
            code = store_sql_error(store, SQLITE_NOMEM, deriving, err);
    }
    if (code == ATTUNE_OK)
        code = store_run_statement(store, statement, deriving, err);
    else
        store_reset(statement);
    return code == ATTUNE_OK && digest->sketched ? near_put(store, &digest->sketch, id, err) : code;
}

/* With what it has put into `near`. */
static int drop_digest(attune_store *store, int64_t id, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    struct sketch sketch;
    int sketched = 0;
    int code = store_prepare(store, -1, "SELECT sketch FROM digest WHERE interaction = ?", deriving, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_bind(store, statement, deriving, err, "i", id);
    if (code == ATTUNE_OK) code = store_step(store, statement, deriving, err);
    if (code == ATTUNE_CONTINUE) sketched = sketch_read(statement, 0, &sketch);
    sqlite3_finalize(statement);
    if (code == ATTUNE_CONTINUE || code == ATTUNE_DONE) code = ATTUNE_OK;
    if (code == ATTUNE_OK && sketched) code = near_remove(store, &sketch, id, err);
    return code == ATTUNE_OK ? run_ids(store, -1, "DELETE FROM digest WHERE interaction = ?", id, 0, 1, err) : code;
}

int store_derive_forget(attune_store *store, int64_t id, attune_error *err) {
    int code = run_ids(store, -1,
                       "INSERT INTO touched (interaction, regroup) SELECT interaction, 1 FROM digest "
                       "WHERE leader = (SELECT leader FROM digest WHERE interaction = ?1) AND interaction > ?1 "
                       "ON CONFLICT (interaction) DO UPDATE SET regroup = 1",
                       id, 0, 1, err);
    return code == ATTUNE_OK ? drop_digest(store, id, err) : code;
}

/* ---- findings ---- */

/* A byte for each kind, 255 at most. */
static int64_t pack(const struct findings *findings) {
    uint64_t packed = 0;
    for (int i = 0; i < ATTUNE_FINDING_APP; i++)
        packed |= (uint64_t)(findings->count[i] < 255 ? findings->count[i] : 255) << (8 * i);
    return (int64_t)packed;
}

static int scan(const struct store_loaded *row, const char *edit, int64_t *packed, attune_error *err) {
    struct findings findings = {{0}};
    int code = findings_scan(row->response, strlen(row->response), &findings, err);
    for (size_t i = 0; i < row->messages.n && code == ATTUNE_OK; i++)
        code = findings_scan(row->messages.list[i].content, strlen(row->messages.list[i].content), &findings, err);
    if (edit && code == ATTUNE_OK) code = findings_scan(edit, strlen(edit), &findings, err);
    *packed = pack(&findings);
    return code;
}

static int may_learn(const struct store_loaded *row, int64_t findings) {
    if (!row->consent || row->tier > ATTUNE_TIER_IMPORTED || row->sensitivity == ATTUNE_SENSITIVITY_PRIVATE) return 0;
    return row->sensitivity == ATTUNE_SENSITIVITY_CLEARED || (findings == 0 && row->private_findings == 0);
}

/* ---- examples ---- */

static int judge(attune_store *store, int64_t id, struct store_judgement *out, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    memset(out, 0, sizeof *out);
    int code = store_prepare(store, STORE_SLOT_JUDGE,
                             "SELECT kind, value, id FROM feedback WHERE interaction = ? ORDER BY id DESC", deriving,
                             &statement, err);
    if (code == ATTUNE_OK) code = store_bind(store, statement, deriving, err, "i", id);
    if (code != ATTUNE_OK) return code;
    while ((code = store_step(store, statement, deriving, err)) == ATTUNE_CONTINUE)
        store_judge(out, sqlite3_column_int(statement, 0), sqlite3_column_int64(statement, 1),
                    sqlite3_column_int64(statement, 2));
    store_reset(statement);
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}

/* The published run that has used it up; 0: none whose adapter still stands. */
static int consumed_by(attune_store *store, const char *content_hash, int64_t *run, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, STORE_SLOT_CONSUMED,
                             "SELECT max(run.number) FROM run_example JOIN run ON run.number = run_example.run "
                             "WHERE run_example.content_hash = ? AND run.state = 'published' AND NOT EXISTS "
                             "(SELECT 1 FROM adapter WHERE (adapter.run = run.number OR adapter.number = run.adapter) "
                             "AND adapter.state = 'revoked')",
                             deriving, &statement, err);
    if (code == ATTUNE_OK) code = store_bind(store, statement, deriving, err, "t", content_hash);
    if (code != ATTUNE_OK) return code;
    code = store_step(store, statement, deriving, err);
    *run = code == ATTUNE_CONTINUE ? sqlite3_column_int64(statement, 0) : 0;
    store_reset(statement);
    return code == ATTUNE_CONTINUE || code == ATTUNE_DONE ? ATTUNE_OK : code;
}

struct made {
    int kind, label;
    double weight;
    int64_t chosen, rejected; /* feedback whose text stands for the response; interaction that is rejected; 0: none */
    char content_hash[HASH_HEX_SIZE];
};

static int put_example(attune_store *store, const struct store_loaded *row, const struct made *made,
                       attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int64_t run = 0;
    int code = consumed_by(store, made->content_hash, &run, err);
    if (code == ATTUNE_OK)
        code = store_prepare(store, STORE_SLOT_EXAMPLE_PUT,
                             "INSERT INTO example (interaction, kind, time_ms, weight, label, content_hash, chosen, "
                             "rejected, run) VALUES (?, ?, ?, ?, ?, ?, nullif(?, 0), nullif(?, 0), nullif(?, 0))",
                             deriving, &statement, err);
    if (code == ATTUNE_OK)
        code = store_bind(store, statement, deriving, err, "iiidihiii", row->id, (int64_t)made->kind, row->time_ms,
                          made->weight, (int64_t)made->label, made->content_hash, made->chosen, made->rejected, run);
    return code == ATTUNE_OK ? store_run_statement(store, statement, deriving, err) : code;
}

static void labelled_hash(const attune_store *store, const struct store_loaded *row, const char *chosen,
                          const char *label, const char *other, char hex[HASH_HEX_SIZE]) {
    struct hash hash;
    store_content_hash(row->messages.list, row->messages.n, chosen, hex);
    hash_start(&hash);
    hash_add_string(&hash, label);
    hash_add_string(&hash, hex);
    hash_add_string(&hash, other);
    hash_finish(&hash, hex);
    seal_hash(&store->seal, hex);
}

/* How sure it is that the answer was right; looking at it for long is a weak sign. */
static double weight_of(const struct store_judgement *judgement) {
    if (judgement->edit || judgement->verdict > 0) return 1.0;
    if (judgement->copied) return 0.8;
    return judgement->dwell_ms >= 10000 ? 0.6 : 0.5;
}

static int pair(attune_store *store, const struct store_loaded *row, const char *chosen, int64_t edit, int64_t rejected,
                const char *rejected_text, double weight, int *made_some, attune_error *err) {
    struct made made = {STORE_EXAMPLE_PREFERENCE, 0, weight, edit, rejected, ""};
    if (strcmp(chosen, rejected_text) == 0) return ATTUNE_OK;
    labelled_hash(store, row, chosen, "preference", rejected_text, made.content_hash);
    if (made_some) ++*made_some;
    return put_example(store, row, &made, err);
}

static int pair_with(attune_store *store, const struct store_loaded *row, const char *chosen, int64_t edit,
                     int64_t other, double weight, int *pairs, attune_error *err) {
    struct store_judgement judgement;
    struct store_loaded loaded;
    int64_t turn, findings = 0;
    int found;
    int code = judge(store, other, &judgement, err);
    if (code != ATTUNE_OK || judgement.edit || judgement.verdict_kind != ATTUNE_FEEDBACK_REGENERATE) return code;
    code = find_digest(store, other, &turn, &findings, &found, err);
    if (code == ATTUNE_OK) code = store_load_interaction(store, other, &loaded, err);
    if (code != ATTUNE_OK) return code;
    if (may_learn(&loaded, findings)) code = pair(store, row, chosen, edit, other, loaded.response, weight, pairs, err);
    store_loaded_free(&loaded);
    return code;
}

/* The other interactions of a turn: up to TURNS_MAX before (or after) `id`, the nearest first. */
static int turn_of(attune_store *store, int64_t turn, int64_t id, int after, int64_t out[TURNS_MAX], int *n,
                   attune_error *err) {
    sqlite3_stmt *statement = NULL;
    *n = 0;
    int code = after ? store_prepare(store, -1,
                                     "SELECT interaction FROM digest WHERE turn_key = ? AND interaction > ? "
                                     "ORDER BY interaction LIMIT ?",
                                     deriving, &statement, err)
                     : store_prepare(store, STORE_SLOT_SAME_TURN,
                                     "SELECT interaction FROM digest WHERE turn_key = ? AND interaction < ? "
                                     "ORDER BY interaction DESC LIMIT ?",
                                     deriving, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_bind(store, statement, deriving, err, "iii", turn, id, (int64_t)TURNS_MAX);
    if (code == ATTUNE_OK)
        while ((code = store_step(store, statement, deriving, err)) == ATTUNE_CONTINUE && *n < TURNS_MAX)
            out[(*n)++] = sqlite3_column_int64(statement, 0);
    if (after)
        sqlite3_finalize(statement);
    else
        store_reset(statement);
    return code == ATTUNE_DONE || code == ATTUNE_CONTINUE ? ATTUNE_OK : code;
}

static int pairs_of(attune_store *store, const struct store_loaded *row, const char *chosen, int64_t edit, int64_t turn,
                    double weight, attune_error *err) {
    int64_t others[TURNS_MAX];
    int n = 0, pairs = 0;
    int code = edit ? pair(store, row, chosen, edit, row->id, row->response, weight, NULL, err) : ATTUNE_OK;
    if (code == ATTUNE_OK) code = turn_of(store, turn, row->id, 0, others, &n, err);
    for (int i = 0; i < n && pairs < PAIRS_MAX && code == ATTUNE_OK; i++)
        code = pair_with(store, row, chosen, edit, others[i], weight, &pairs, err);
    return code;
}

static int put_examples(attune_store *store, const struct store_loaded *row, const struct store_judgement *judgement,
                        const char *edit, int64_t turn, attune_error *err) {
    const char *chosen = edit ? edit : row->response;
    int code = ATTUNE_OK;
    if (judgement->verdict) {
        struct made thumb = {STORE_EXAMPLE_THUMB,
                             judgement->verdict,
                             judgement->verdict_kind == ATTUNE_FEEDBACK_REGENERATE ? 0.5 : 1.0,
                             0,
                             0,
                             ""};
        labelled_hash(store, row, row->response, "thumb", judgement->verdict > 0 ? "up" : "down", thumb.content_hash);
        code = put_example(store, row, &thumb, err);
    }
    if (code != ATTUNE_OK || (!edit && judgement->verdict < 0)) return code;
    struct made sft = {STORE_EXAMPLE_SFT, 0, weight_of(judgement), judgement->edit, 0, ""};
    store_keyed_content_hash(store, row->messages.list, row->messages.n, chosen, sft.content_hash);
    code = put_example(store, row, &sft, err);
    return code == ATTUNE_OK ? pairs_of(store, row, chosen, judgement->edit, turn, sft.weight, err) : code;
}

/* The digest where there is none yet, and the examples, anew. *turn: its key; *regenerated: the answer was asked for
 * again. */
static int derive(attune_store *store, int64_t id, int64_t *turn, int *regenerated, attune_error *err) {
    struct store_loaded row;
    struct store_judgement judgement;
    struct digest digest;
    char *edit = NULL;
    int64_t findings = 0, noted = 0;
    int found = 0;
    *turn = 0;
    *regenerated = 0;
    int code = store_load_interaction(store, id, &row, err);
    if (code == ATTUNE_ERROR_FORMAT) /* a damaged row gives no example, and stops no others */
        return run_ids(store, STORE_SLOT_EXAMPLE_CLEAR, "DELETE FROM example WHERE interaction = ?", id, 0, 1, err);
    if (code != ATTUNE_OK) return code;
    code = judge(store, id, &judgement, err);
    *regenerated = judgement.verdict_kind == ATTUNE_FEEDBACK_REGENERATE;
    if (code == ATTUNE_OK && judgement.edit)
        code = store_load_feedback_text(store, judgement.edit, row.uuid.text, &edit, err);
    if (code == ATTUNE_OK) code = scan(&row, edit, &findings, err);
    if (code == ATTUNE_OK) code = find_digest(store, id, turn, &noted, &found, err);
    if (code == ATTUNE_OK && !found) {
        code = make_digest(store, &row, &digest, err);
        if (code == ATTUNE_OK) code = put_digest(store, id, &digest, findings, err);
        *turn = digest.turn_key;
    } else if (code == ATTUNE_OK && noted != findings) {
        code = run_ids(store, -1, "UPDATE digest SET findings = ? WHERE interaction = ?", findings, id, 2, err);
    }
    if (code == ATTUNE_OK)
        code = run_ids(store, STORE_SLOT_EXAMPLE_CLEAR, "DELETE FROM example WHERE interaction = ?", id, 0, 1, err);
    if (code == ATTUNE_OK && may_learn(&row, findings)) code = put_examples(store, &row, &judgement, edit, *turn, err);
    free(edit);
    store_loaded_free(&row);
    return code;
}

/* Answers that came later in the turn of a row that was derived before: what it was rejected for, or no longer. */
static int derive_later(attune_store *store, int64_t turn, int64_t id, attune_error *err) {
    int64_t others[TURNS_MAX], other_turn;
    int n = 0, regenerated;
    int code = turn_of(store, turn, id, 1, others, &n, err);
    for (int i = 0; i < n && code == ATTUNE_OK; i++) code = derive(store, others[i], &other_turn, &regenerated, err);
    return code;
}

static int is_rejected_somewhere(attune_store *store, int64_t id, int *is, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1, "SELECT 1 FROM example WHERE rejected = ?1 AND interaction <> ?1 LIMIT 1",
                             deriving, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_bind(store, statement, deriving, err, "i", id);
    if (code == ATTUNE_OK) code = store_step(store, statement, deriving, err);
    *is = code == ATTUNE_CONTINUE;
    sqlite3_finalize(statement);
    return code == ATTUNE_CONTINUE || code == ATTUNE_DONE ? ATTUNE_OK : code;
}

/* One of `touched`. */
static int derive_again(attune_store *store, int64_t id, int regroup, attune_error *err) {
    int64_t turn = 0;
    int regenerated = 0, rejected = 0;
    int code = regroup ? drop_digest(store, id, err) : ATTUNE_OK;
    if (code == ATTUNE_OK) code = is_rejected_somewhere(store, id, &rejected, err);
    if (code == ATTUNE_OK) code = derive(store, id, &turn, &regenerated, err);
    if (code == ATTUNE_ERROR_NOT_FOUND) code = ATTUNE_OK;
    if (code == ATTUNE_OK && (regenerated || rejected)) code = derive_later(store, turn, id, err);
    if (code != ATTUNE_OK) return code;
    return run_ids(store, STORE_SLOT_UNTOUCH, "DELETE FROM touched WHERE interaction = ?", id, 0, 1, err);
}

/* ---- one after the other ---- */

/* *id 0: there is none. */
static int next_id(attune_store *store, const char *sql, int64_t after, int64_t *id, int64_t *second,
                   attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1, sql, deriving, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_bind(store, statement, deriving, err, "i", after);
    if (code == ATTUNE_OK) code = store_step(store, statement, deriving, err);
    *id = code == ATTUNE_CONTINUE ? sqlite3_column_int64(statement, 0) : 0;
    *second = code == ATTUNE_CONTINUE ? sqlite3_column_int64(statement, 1) : 0;
    sqlite3_finalize(statement);
    return code == ATTUNE_CONTINUE || code == ATTUNE_DONE ? ATTUNE_OK : code;
}

static int derive_touched(attune_store *store, int64_t until_ms, int64_t mark, int *left, attune_error *err) {
    int64_t id = -1, regroup;
    for (;;) {
        int code = next_id(store,
                           "SELECT interaction, regroup FROM touched WHERE interaction > ? ORDER BY interaction "
                           "LIMIT 1",
                           id, &id, &regroup, err);
        if (code != ATTUNE_OK || !id || id > mark) return code; /* beyond the mark it is new: its turn comes */
        code = derive_again(store, id, (int)regroup, err);
        if (code != ATTUNE_OK) return code;
        if (store_is_over(until_ms)) {
            *left = 1;
            return ATTUNE_OK;
        }
    }
}

static int derive_new(attune_store *store, int64_t until_ms, int64_t *mark, int *left, attune_error *err) {
    for (;;) {
        int64_t id, none, turn;
        int regenerated;
        int code =
            next_id(store, "SELECT id, 0 FROM interaction WHERE id > ? ORDER BY id LIMIT 1", *mark, &id, &none, err);
        if (code != ATTUNE_OK || !id) return code;
        code = derive(store, id, &turn, &regenerated, err);
        if (code == ATTUNE_OK)
            code = run_ids(store, STORE_SLOT_UNTOUCH, "DELETE FROM touched WHERE interaction = ?", id, 0, 1, err);
        if (code != ATTUNE_OK) return code;
        *mark = id;
        if (store_is_over(until_ms)) {
            *left = 1;
            return ATTUNE_OK;
        }
    }
}

int store_derive_some(attune_store *store, int64_t until_ms, int *left, attune_error *err) {
    int64_t mark = 0, before;
    *left = 0;
    int code = store_need_key(store, err);
    if (code == ATTUNE_OK) code = store_mark_get(store, "derived", &mark, err);
    before = mark;
    if (code == ATTUNE_OK) code = derive_touched(store, until_ms, mark, left, err);
    if (code == ATTUNE_OK && !*left) code = derive_new(store, until_ms, &mark, left, err);
    if (code == ATTUNE_OK && mark != before) code = store_mark_put(store, "derived", mark, err);
    return code;
}

int store_derive_row(attune_store *store, int64_t id, attune_error *err) {
    int64_t mark = 0, between, none, turn;
    int regenerated;
    int code = derive(store, id, &turn, &regenerated, err);
    if (code == ATTUNE_OK) code = store_mark_get(store, "derived", &mark, err);
    if (code == ATTUNE_OK)
        code = run_ids(store, STORE_SLOT_UNTOUCH, "DELETE FROM touched WHERE interaction = ?", id, 0, 1, err);
    if (code != ATTUNE_OK || id <= mark) return code;
    code = next_id(store, "SELECT id, 0 FROM interaction WHERE id > ? ORDER BY id LIMIT 1", mark, &between, &none, err);
    return code == ATTUNE_OK && between == id ? store_mark_put(store, "derived", id, err) : code;
}

int store_derive_left(attune_store *store, int64_t *n, attune_error *err) {
    int64_t fresh = 0, touched = 0;
    int code = store_number(store,
                            "SELECT count(*) FROM interaction WHERE id > "
                            "coalesce((SELECT value FROM mark WHERE name = 'derived'), 0)",
                            deriving, &fresh, err);
    if (code == ATTUNE_OK)
        code = store_number(store,
                            "SELECT count(*) FROM touched WHERE interaction <= "
                            "coalesce((SELECT value FROM mark WHERE name = 'derived'), 0)",
                            deriving, &touched, err);
    *n = fresh + touched;
    return code;
}

int store_examples_consumed(attune_store *store, int64_t run, attune_error *err) {
    sqlite3_stmt *rows = NULL, *use = NULL;
    char hex[HASH_HEX_SIZE];
    int code = store_prepare(store, -1, "SELECT content_hash FROM run_example WHERE run = ?", deriving, &rows, err);
    if (code == ATTUNE_OK)
        code = store_prepare(store, -1, "UPDATE example SET run = ? WHERE content_hash = ?", deriving, &use, err);
    if (code == ATTUNE_OK) code = store_bind(store, rows, deriving, err, "i", run);
    while (code == ATTUNE_OK && (code = store_step(store, rows, deriving, err)) == ATTUNE_CONTINUE) {
        store_column_text(rows, 0, hex, sizeof hex);
        code = store_bind(store, use, deriving, err, "ih", run, hex);
        if (code == ATTUNE_OK) code = store_run_statement(store, use, deriving, err);
    }
    sqlite3_finalize(rows);
    sqlite3_finalize(use);
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}
