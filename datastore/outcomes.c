#include "datastore/outcomes.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "datastore/judge.h"
#include "datastore/lineage.h"
#include "datastore/record.h"

static const char counting[] = "count what was said of answers", rejecting[] = "reject an adapter";

/* ---- one answer ---- */

/* The next word of *text, which moves behind it; its length, 0 at the end. Bytes above 127 are letters. */
static size_t next_word(const char **text, const char **word) {
    const unsigned char *at = (const unsigned char *)*text;
    while (*at && *at < 128 && !isalnum(*at)) at++;
    *word = (const char *)at;
    while (*at >= 128 || isalnum(*at)) at++;
    *text = (const char *)at;
    return (size_t)((const char *)at - *word);
}

/* Words of the answer that come back in the edit in their order, each looked for close behind the one before: a person
 * who mends an answer keeps runs of it. */
static void kept_words(const char *answer, const char *edit, size_t *kept, size_t *all) {
    enum { AHEAD = 24 };
    const char *word, *other;
    size_t n, m;
    *kept = *all = 0;
    while ((n = next_word(&answer, &word)) > 0) {
        const char *from = edit;
        ++*all;
        for (int i = 0; i < AHEAD && (m = next_word(&from, &other)) > 0; i++)
            if (m == n && memcmp(word, other, n) == 0) {
                edit = from;
                ++*kept;
                break;
            }
    }
}

int store_outcome_of(int verdict, int copied, const char *answer, const char *edit) {
    size_t kept, all;
    if (verdict) return verdict;
    if (!edit) return copied ? 1 : 0;
    kept_words(answer, edit, &kept, &all);
    return all > 0 && 2 * kept < all ? -1 : 0;
}

/* ---- counting ---- */

static int judge(attune_store *store, int64_t id, struct store_judgement *out, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    *out = (struct store_judgement){0};
    int code = store_prepare(store, STORE_SLOT_JUDGE,
                             "SELECT kind, value, id FROM feedback WHERE interaction = ? ORDER BY id DESC", counting,
                             &statement, err);
    if (code == ATTUNE_OK) code = store_bind(store, statement, counting, err, "i", id);
    if (code != ATTUNE_OK) return code;
    while ((code = store_step(store, statement, counting, err)) == ATTUNE_CONTINUE)
        store_judge(out, sqlite3_column_int(statement, 0), sqlite3_column_int64(statement, 1),
                    sqlite3_column_int64(statement, 2));
    store_reset(statement);
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}

/* *edit NULL: it cannot be read here, or is gone. */
static int read_edit(attune_store *store, int64_t id, int64_t feedback, struct store_loaded *loaded, char **edit,
                     attune_error *err) {
    *edit = NULL;
    if (store_need_key(store, NULL) != ATTUNE_OK) return ATTUNE_OK;
    int code = store_load_interaction(store, id, loaded, err);
    if (code == ATTUNE_OK) code = store_load_feedback_text(store, feedback, loaded->uuid.text, edit, err);
    return code == ATTUNE_ERROR_NOT_FOUND || code == ATTUNE_ERROR_FORMAT ? ATTUNE_OK : code;
}

static int count_one(attune_store *store, int64_t id, struct store_outcomes *out, attune_error *err) {
    struct store_judgement judgement;
    struct store_loaded loaded = {0};
    char *edit = NULL;
    int code = judge(store, id, &judgement, err);
    int reads = judgement.edit && !judgement.verdict;
    if (code == ATTUNE_OK && reads) code = read_edit(store, id, judgement.edit, &loaded, &edit, err);
    if (code == ATTUNE_OK && (!reads || edit)) {
        int outcome = store_outcome_of(judgement.verdict, judgement.copied, loaded.response, edit);
        out->good += outcome > 0;
        out->bad += outcome < 0;
    }
    free(edit);
    store_loaded_free(&loaded);
    return code;
}

static void mark_name(int number, char name[40]) { snprintf(name, 40, "rolled_back.%d", number); }

static int count_all(attune_store *store, const char *model, int number, const char *sha256, struct store_outcomes *out,
                     attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int64_t after = 0;
    char name[40];
    mark_name(number, name);
    int code = store_mark_get(store, name, &after, err);
    if (code == ATTUNE_OK)
        code = store_prepare(store, -1,
                             "SELECT i.id FROM interaction i WHERE i.id IN (SELECT interaction FROM feedback) AND "
                             "+i.id > ?1 AND i.model = ?2 AND coalesce(i.adapter, '') = ?3 "
                             "ORDER BY i.id DESC LIMIT ?4",
                             counting, &statement, err);
    if (code == ATTUNE_OK)
        code = store_bind(store, statement, counting, err, "itti", after, model, sha256, (int64_t)STORE_OUTCOMES_MAX);
    while (code == ATTUNE_OK && (code = store_step(store, statement, counting, err)) == ATTUNE_CONTINUE)
        code = count_one(store, sqlite3_column_int64(statement, 0), out, err);
    sqlite3_finalize(statement);
    return code == ATTUNE_DONE ? ATTUNE_OK : code;
}

int store_outcomes_count(attune_store *store, const char *model, int number, const char *sha256,
                         struct store_outcomes *out, attune_error *err) {
    struct store_outcomes counted = {0};
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_read_begin(store, err);
    if (code == ATTUNE_OK) {
        code = count_all(store, model, number, sha256, &counted, err);
        store_read_end(store);
    }
    store_leave(store);
    if (code == ATTUNE_OK) *out = counted;
    return code;
}

/* ---- rejecting ---- */

static int put_reason(attune_store *store, int number, const char *reason, attune_error *err) {
    sqlite3_stmt *statement = NULL;
    int code = store_prepare(store, -1, "UPDATE adapter SET reason = ?2 WHERE number = ?1", rejecting, &statement, err);
    if (code != ATTUNE_OK) return code;
    code = store_bind(store, statement, rejecting, err, "it", (int64_t)number, reason);
    if (code == ATTUNE_OK) code = store_run_statement(store, statement, rejecting, err);
    sqlite3_finalize(statement);
    return code;
}

/* Inside a write transaction. CURRENT comes before the rows, as in publishing: it rules over them. */
static int reject(attune_store *store, int from, int to, const char *reason, store_swap_callback swap, void *user,
                  attune_error *err) {
    attune_adapter_info info;
    char name[40], detail[64];
    int64_t newest = 0;
    ATTUNE_INIT(info);
    int code = to ? store_adapter_get(store, to, &info, err) : ATTUNE_OK;
    if (code == ATTUNE_OK && to && strcmp(info.state, "revoked") == 0)
        code = error_set(err, ATTUNE_ERROR_STATE, store->path,
                         "adapter %d was revoked, as it learned from what was forgotten: nothing brings it back", to);
    if (code == ATTUNE_OK)
        code = store_number(store, "SELECT coalesce(max(id), 0) FROM interaction", rejecting, &newest, err);
    if (code == ATTUNE_OK) code = store_adapter_set(store, from, "rejected", err);
    if (code == ATTUNE_OK) code = put_reason(store, from, reason, err);
    mark_name(from, name);
    if (code == ATTUNE_OK) code = store_mark_put(store, name, newest, err);
    if (code == ATTUNE_OK) code = swap(user, err);
    if (code == ATTUNE_OK) code = store_adapter_set(store, to, "active", err);
    snprintf(detail, sizeof detail, "adapter %d, to %d", from, to);
    return code == ATTUNE_OK ? store_audit(store, "rollback", detail, err) : code;
}

int store_adapter_reject(attune_store *store, int from, int to, const char *reason, store_swap_callback swap, void *user,
                         attune_error *err) {
    int code = store_enter(store, err);
    if (code != ATTUNE_OK) return code;
    code = store_begin(store, err);
    if (code == ATTUNE_OK) code = store_end(store, reject(store, from, to, reason, swap, user, err), err);
    store_leave(store);
    return code;
}
