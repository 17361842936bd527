/* What was forgotten is in no byte of any file of the home. */
#include "tests/canary.h"

#include <sodium.h>

#include "datastore/content.h"
#include "datastore/derive.h"
#include "datastore/scrub.h"
#include "datastore/wipe.h"

/* ---- shorthands ---- */

static attune_filter by_app(const char *app) {
    attune_filter filter;
    ATTUNE_INIT(filter);
    filter.app = app;
    return filter;
}

static attune_forget_result forget(struct fixture *f, const attune_filter *filter) {
    attune_forget_result result;
    ATTUNE_INIT(result);
    OK(attune_store_forget(f->store, filter, &result, &f->err));
    return result;
}

static attune_uuid tell(struct fixture *f, const char *app, const char *prompt, const char *response, int64_t time_ms) {
    attune_interaction interaction;
    attune_uuid id;
    ATTUNE_INIT(interaction);
    interaction.prompt = prompt;
    interaction.response = response;
    interaction.app = app;
    interaction.session = "a session";
    interaction.time_ms = time_ms;
    OK(attune_store_record(f->store, &interaction, &id, &f->err));
    return id;
}

static void tell_edit(struct fixture *f, const attune_uuid *id, const char *text) {
    attune_feedback edit;
    ATTUNE_INIT(edit);
    edit.kind = ATTUNE_FEEDBACK_EDIT;
    edit.text = text;
    OK(attune_store_feedback(f->store, id->text, &edit, &f->err));
}

/* In hexadecimal and in bytes, as a store without encryption has it. */
static void needles_add_hash(struct needles *needles, const char *prompt, const char *response, int hexadecimal) {
    attune_message message = {"user", prompt};
    char hex[HASH_HEX_SIZE];
    unsigned char bytes[32];
    store_content_hash(&message, 1, response, hex);
    sodium_hex2bin(bytes, sizeof bytes, hex, 64, NULL, NULL, NULL);
    needles_add(needles, "a content hash in bytes", bytes, sizeof bytes);
    if (hexadecimal) needles_add_text(needles, "a content hash in hexadecimal", hex);
}

static void make_file(struct fixture *f, const char *name, const char *text) {
    char folder[128];
    snprintf(folder, sizeof folder, "%s/%s", f->home, name);
    if (strchr(name, '/')) {
        *strrchr(folder, '/') = '\0';
        mkdir(folder, 0700);
    }
    write_file(f, name, text, strlen(text));
}

static int is_there(struct fixture *f, const char *name) { return access(in_home(f, name), F_OK) == 0; }

/* A run over all examples that are for imitation or tell a preference, and its adapter. The hash of the (only)
 * preference is also put into `needles`. */
static struct store_run learn(struct fixture *f, int adapter, const char *state, struct needles *needles) {
    struct store_run run = {.id = "5f5e", .state = "unfinished"};
    struct store_run_example used[32];
    struct store_example_query preferences = {.kind = STORE_EXAMPLE_PREFERENCE};
    struct rows rows;
    attune_adapter_info info;
    examples(f, &rows);
    size_t imitated = rows.n;
    OK(store_examples(f->store, &preferences, collect, &rows, &f->err));
    assert_int_equal(rows.n, imitated + 1);
    needles_add_text(needles, "the hash of a preference", rows.row[imitated].content_hash);
    memset(used, 0, sizeof used);
    for (size_t i = 0; i < rows.n; i++) {
        memcpy(used[i].content_hash, rows.row[i].content_hash, 65);
        used[i].interaction = rows.row[i].interaction;
        used[i].other = rows.row[i].other;
        used[i].position = (int64_t)i;
    }
    OK(store_run_begin(f->store, &run, used, rows.n, &f->err));
    ATTUNE_INIT(info);
    info.number = adapter;
    strcpy(info.state, "candidate");
    strcpy(info.origin, "trained");
    if (adapter) OK(store_adapter_put(f->store, &info, run.number, &f->err));
    strcpy(run.state, state);
    run.adapter = adapter;
    OK(store_run_update(f->store, &run, &f->err));
    return run;
}

/* ---- one row, in every place that knows it ---- */

#define PROMPT "Please remember Xqzvörtrag for me"
#define RESPONSE "I remember: ÀÉÎXWQkanari is yours"
#define EDIT "Zjkwëditédword, and nothing else"
#define EDIT_BEFORE "Vbnmfirst attempt at it"

static void add_row_needles(struct needles *needles, const attune_uuid *id, int readable) {
    if (readable) {
        needles_add_text(needles, "the prompt", "Xqzvörtrag for me");
        needles_add_text(needles, "the response", "ÀÉÎXWQkanari is");
        needles_add_text(needles, "the edit", EDIT);
        needles_add_text(needles, "an edit that was replaced", EDIT_BEFORE);
        /* Terms as the index folds them; their first letters may be shared with another term's. */
        needles_add_text(needles, "a term of the prompt", "qzvortrag");
        needles_add_text(needles, "a term of the response", "eixwqkanari");
        needles_add_text(needles, "a term of the edit", "kweditedword");
        needles_add_hash(needles, PROMPT, RESPONSE, 0);
        needles_add_hash(needles, PROMPT, EDIT, 1);
    }
    needles_add_text(needles, "the id", id->text);
    needles_add_text(needles, "the app", "the.secret.app");
}

static void a_home_with_one_row(struct fixture *f, attune_uuid *id, struct needles *needles) {
    for (int i = 0; i < 20; i++) {
        char prompt[64];
        snprintf(prompt, sizeof prompt, "what is %d times %d?", i * 7919, i);
        tell(f, "another", prompt, "a number", 1000 + i);
    }
    *id = tell(f, "the.secret.app", PROMPT, RESPONSE, 5000);
    tell_edit(f, id, EDIT_BEFORE);
    OK(attune_store_flush(f->store, &f->err));
    learn(f, 0, "refused", needles); /* as long as the first edit stands */
    tell_edit(f, id, EDIT);
    OK(attune_store_flush(f->store, &f->err));
    OK(store_maintain(f->store, 0, &f->err));
    learn(f, 1, "published", needles);
    make_file(f, "adapters/1.gguf", "weights that learned Xqzvörtrag for me");
    make_file(f, "cache/merged-1.gguf", "weights that learned Xqzvörtrag for me");
    make_file(f, "cache/base.sha256", "of the base alone");
    learn(f, 0, "unfinished", needles);
    make_file(f, "checkpoint.gguf", "weights that learned Xqzvörtrag for me");
    make_file(f, ".checkpoint.gguf.77-1.tmp", "weights that learned Xqzvörtrag for me");
}

static void forget_one_row(struct fixture *f, int readable) {
    struct needles *needles = needles_new();
    attune_uuid id;
    a_home_with_one_row(f, &id, needles);
    add_row_needles(needles, &id, readable);
    assert_all_found(needles, f->home);
    attune_filter filter = by_app("the.secret.app");
    attune_forget_result result = forget(f, &filter);
    assert_int_equal(result.interactions, 1);
    assert_int_equal(result.feedback, 2);
    assert_int_equal(result.scrub_pending, 0);
    assert_none_found(needles, f->home);
    assert_false(is_there(f, "adapters/1.gguf") || is_there(f, "cache/merged-1.gguf") ||
                 is_there(f, "checkpoint.gguf") || is_there(f, ".checkpoint.gguf.77-1.tmp"));
    assert_true(is_there(f, "cache/base.sha256"));
    assert_int_equal(count_interactions(f), 20);
    assert_sound(f);
    attune_store_close(f->store);
    f->store = NULL;
    assert_none_found(needles, f->home);
    needles_free(needles);
}

static void test_row(void **state) { forget_one_row(*state, 1); }

static void test_encrypted_row(void **state) { forget_one_row(*state, 0); }

/* Of an encrypted store nothing readable is there in the first place, and neither are hashes that could be guessed. */
static void test_encrypted_texts_are_nowhere(void **state) {
    struct fixture *f = *state;
    struct needles *needles = needles_new();
    attune_uuid id = tell(f, "app", PROMPT, RESPONSE, 1);
    tell_edit(f, &id, EDIT);
    OK(attune_store_flush(f->store, &f->err));
    OK(store_maintain(f->store, 0, &f->err));
    needles_add_text(needles, "the prompt", "Xqzvörtrag for me");
    needles_add_text(needles, "the edit", EDIT);
    needles_add_text(needles, "a term", "qzvortrag");
    needles_add_hash(needles, PROMPT, RESPONSE, 1);
    needles_add_hash(needles, PROMPT, EDIT, 1);
    assert_none_found(needles, f->home);
    needles_free(needles);
}

/* ---- a reader ---- */

static void test_reader_with_a_snapshot(void **state) {
    struct fixture *f = *state;
    struct needles *needles = needles_new();
    attune_store_statistics statistics;
    attune_uuid id;
    sqlite3 *reader = NULL;
    a_home_with_one_row(f, &id, needles);
    add_row_needles(needles, &id, 1);
    assert_all_found(needles, f->home);
    assert_int_equal(sqlite3_open(in_home(f, "store.db"), &reader), SQLITE_OK);
    assert_int_equal(sqlite3_exec(reader, "BEGIN; SELECT count(*) FROM interaction", NULL, NULL, NULL), SQLITE_OK);
    attune_filter filter = by_app("the.secret.app");
    attune_forget_result result = forget(f, &filter);
    assert_int_equal(result.interactions, 1);
    assert_int_equal(result.scrub_pending, 1);
    assert_true(needles_find(needles, f->home, NULL) > 0);
    ATTUNE_INIT(statistics);
    OK(attune_store_statistics_get(f->store, &statistics, &f->err));
    assert_int_equal(statistics.scrub_pending, 1);
    assert_int_equal(attune_store_maintain(f->store, 0.2, &f->err), ATTUNE_CONTINUE);
    assert_int_equal(sqlite3_exec(reader, "COMMIT", NULL, NULL, NULL), SQLITE_OK);
    OK(attune_store_maintain(f->store, 0, &f->err));
    OK(attune_store_statistics_get(f->store, &statistics, &f->err));
    assert_int_equal(statistics.scrub_pending, 0);
    assert_none_found(needles, f->home);
    /* The reader's own cache of pages must not bring anything back. */
    assert_int_equal(sqlite3_exec(reader, "SELECT count(*) FROM interaction", NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(reader);
    tell(f, "app", "one more", "row", 1);
    OK(attune_store_flush(f->store, &f->err));
    assert_none_found(needles, f->home);
    needles_free(needles);
}

/* ---- a program that deletes without wiping ---- */

static void test_deleted_by_others(void **state) {
    struct fixture *f = *state;
    struct needles *needles = needles_new();
    sqlite3 *other = NULL;
    for (int i = 0; i < 9; i++) tell(f, "kept", "a question", "an answer that stays", 100 + i);
    tell(f, "lost", "a question", "Deleted by somebody else", 50);
    tell(f, "kept", "a question", "an answer that stays", 200);
    OK(attune_store_flush(f->store, &f->err));
    needles_add_text(needles, "a response", "eleted by somebody else");
    assert_int_equal(sqlite3_open(in_home(f, "store.db"), &other), SQLITE_OK);
    assert_int_equal(
        sqlite3_exec(other, "PRAGMA secure_delete = OFF; DELETE FROM interaction WHERE app = 'lost'", NULL, NULL, NULL),
        SQLITE_OK);
    sqlite3_close(other);
    assert_all_found(needles, f->home);
    tell(f, "ours", "another question", "with an answer that is too long for the place that was left free there", 1);
    attune_filter filter = by_app("ours");
    forget(f, &filter);
    assert_none_found(needles, f->home);
    needles_free(needles);
}

/* ---- many rows: what moves about in the file ----
 * Balancing a b-tree leaves copies of rows in the unallocated parts of pages. That happens to few of them, so many rows
 * of many lengths are deleted in many rounds. */

enum { MANY = 2400, ROUNDS = 6 };

static unsigned scramble(unsigned i) { return (i + 1) * 2654435761u; }
static unsigned round_of(unsigned i) { return (scramble(i) >> 13) % ROUNDS; }

/* A word of its own at the start, whose first letters the index may share with another one's. */
static void prompt_of(unsigned i, char out[32]) { snprintf(out, 32, "%08xq%04uzz", scramble(i), i); }

static void response_of(unsigned i, char out[4096]) {
    static const size_t times[] = {1, 3, 10, 30, 120, 300};
    char word[16];
    size_t n = times[(scramble(i) >> 7) % 6];
    snprintf(word, sizeof word, "canary%04u ", i);
    for (size_t k = 0; k < n; k++) memcpy(out + 11 * k, word, 11);
    out[11 * n] = '\0';
}

static void record_many(struct fixture *f, attune_uuid ids[MANY]) {
    char prompt[32], response[4096], app[16];
    for (unsigned i = 0; i < MANY; i++) {
        prompt_of(i, prompt);
        response_of(i, response);
        snprintf(app, sizeof app, "app%u", round_of(i));
        ids[i] = tell(f, app, prompt, response, 1 + (int64_t)scramble(i));
        if (i % 9 == 0) tell_edit(f, &ids[i], prompt + 3);
        if (i % 100 == 99) OK(attune_store_flush(f->store, &f->err));
    }
    OK(attune_store_flush(f->store, &f->err));
}

static void add_many_needles(struct needles *needles, const attune_uuid ids[MANY], unsigned round) {
    char prompt[32], response[4096];
    for (unsigned i = 0; i < MANY; i++) {
        if (round_of(i) != round) continue;
        prompt_of(i, prompt);
        response_of(i, response);
        needles_add_text(needles, "a prompt or its term", prompt + 4);
        needles_add(needles, "a response or its term", response, 10);
        needles_add_text(needles, "an id", ids[i].text);
        needles_add_hash(needles, prompt, response, 0);
    }
}

static void test_many(void **state) {
    struct fixture *f = *state;
    attune_uuid *ids = calloc(MANY, sizeof *ids);
    struct needles *needles = needles_new();
    record_many(f, ids);
    OK(store_maintain(f->store, 0, &f->err));
    for (unsigned round = 0; round < ROUNDS; round++) {
        char name[16];
        snprintf(name, sizeof name, "app%u", round);
        attune_filter filter = by_app(name);
        size_t before = needles->n;
        add_many_needles(needles, ids, round);
        assert_int_equal(needles_find(needles, f->home, NULL), needles->n - before);
        attune_forget_result result = forget(f, &filter);
        assert_true(result.interactions > MANY / ROUNDS / 2);
        assert_int_equal(result.scrub_pending, 0);
        assert_none_found(needles, f->home); /* of all that was forgotten so far */
        assert_sound(f);
    }
    assert_int_equal(count_interactions(f), 0);
    attune_store_close(f->store);
    f->store = NULL;
    assert_none_found(needles, f->home);
    needles_free(needles);
    free(ids);
}

#define TEST(test, setup) cmocka_unit_test_setup_teardown(test, setup, store_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_row, store_setup),
        TEST(test_encrypted_row, encrypted_setup),
        TEST(test_encrypted_texts_are_nowhere, encrypted_setup),
        TEST(test_reader_with_a_snapshot, store_setup),
        TEST(test_deleted_by_others, store_setup),
        TEST(test_many, store_setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
