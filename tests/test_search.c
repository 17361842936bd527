/* Words that are looked for: what a query means, the index that follows the rows, and the one that an encrypted store
 * makes for the moment. */
#include "tests/store_fixture.h"

#include "datastore/search.h"

/* ---- helpers ---- */

static void note(struct fixture *f, const char *prompt, const char *response, attune_uuid *id) {
    OK(record(f->store, prompt, response, 0, id, &f->err));
}

static int search(struct fixture *f, const char *query, int64_t **ids, size_t *n) {
    *ids = NULL;
    *n = 0;
    OK(store_enter(f->store, &f->err));
    int code = store_search(f->store, query, ids, n, &f->err);
    store_leave(f->store);
    return code;
}

/* The rowids that match, as "1 3 7"; one answer lives. */
static const char *hits(struct fixture *f, const char *query) {
    static char text[4096];
    int64_t *ids;
    size_t n, at = 0;
    text[0] = '\0';
    OK(search(f, query, &ids, &n));
    for (size_t i = 0; i < n; i++)
        at += (size_t)snprintf(text + at, sizeof text - at, i ? " %lld" : "%lld", (long long)ids[i]);
    free(ids);
    return text;
}

#define HITS(query, wanted)                                                                                            \
    do {                                                                                                               \
        const char *got_ = hits(f, query);                                                                             \
        if (strcmp(got_, wanted) != 0) fail_msg("%s: '%s', not '%s'", query, got_, wanted);                            \
    } while (0)

static void index_some(struct fixture *f, int64_t until_ms, int *left) {
    OK(store_enter(f->store, &f->err));
    OK(store_begin(f->store, &f->err));
    OK(store_end(f->store, store_index_some(f->store, until_ms, left, &f->err), &f->err));
    store_leave(f->store);
}

static int64_t waiting(struct fixture *f) {
    int64_t n = -1;
    OK(store_enter(f->store, &f->err));
    OK(store_index_left(f->store, &n, &f->err));
    store_leave(f->store);
    return n;
}

static void exec(struct fixture *f, const char *sql) {
    OK(store_enter(f->store, &f->err));
    OK(store_exec(f->store, sql, "test", &f->err));
    store_leave(f->store);
}

/* As forgetting does it. */
static void forget(struct fixture *f, int64_t id) {
    char sql[80];
    snprintf(sql, sizeof sql, "DELETE FROM interaction WHERE id = %lld", (long long)id);
    OK(store_enter(f->store, &f->err));
    OK(store_begin(f->store, &f->err));
    OK(store_index_forget(f->store, id, &f->err));
    OK(store_exec(f->store, sql, "test", &f->err));
    OK(store_end(f->store, ATTUNE_OK, &f->err));
    store_leave(f->store);
}

/* Terms in the index. */
static int64_t terms(struct fixture *f) {
    int64_t n = -1;
    exec(f, "CREATE VIRTUAL TABLE IF NOT EXISTS temp.terms USING fts5vocab(main, search, row)");
    OK(store_enter(f->store, &f->err));
    OK(store_number(f->store, "SELECT count(*) FROM temp.terms", "test", &n, &f->err));
    store_leave(f->store);
    exec(f, "INSERT INTO search (search) VALUES ('integrity-check')");
    return n;
}

/* ---- what a query means, in both kinds of store ---- */

static void test_words(void **state) {
    struct fixture *f = *state;
    note(f, "What is a fjord?", "A drowned valley in Norway.", NULL);
    note(f, "And a firth?", "Much the same, in Scotland: don't drown.", NULL);
    note(f, "C++ or C?", "It's e-mail v2.0 at 10:30", NULL);
    HITS("fjord", "1");
    HITS("FJORD norway", "1");
    HITS("a in", "1 2");
    HITS("fjord scotland", "");
    HITS("  \t\n in \u00a0 a \u3000 ", "1 2"); /* Unicode's spaces, too */
    HITS("drown", "2");
    HITS("drown*", "1 2");
    HITS("drow* vall*", "1");
    HITS("drow*** \"valley in\"", "1");
    HITS("\"drowned valley\"", "1");
    HITS("\"valley drowned\"", "");
    HITS("\"drowned vall\"*", "1");
    HITS("\"drowned vall*\"", "1");
    HITS("\"drown\" \"same in\"", "2");
    HITS("same\"in scotland\"don't", "2");
    HITS("\"in scot", "");
    HITS("\"in scotland", "2"); /* an open quote reaches to the end */
    HITS("don't", "2");
    HITS("don", "2");
    HITS("e-mail", "3");
    HITS("mail-e", "");
    HITS("v2.0", "3");
    HITS("10:30", "3");
    HITS("c", "3");
    HITS("c++", "3");
    HITS("firth ... -- ()", "2"); /* what holds no letter is no word */
    HITS("fjord-*", "1");
    HITS("fjo-*", "");
    HITS("*jord", "");
    HITS("f*ord", "");
}

static void test_other_scripts(void **state) {
    struct fixture *f = *state;
    note(f, "Gr\u00fc\u00dfe aus K\u00f6ln", "Cafe\u0301, \u00c5se, na\u00efve, \u0130stanbul", NULL);
    note(f, "\u6771\u4eac\u90fd\u306b\u4f4f\u3093\u3067\u3044\u307e\u3059", "\u4eac\u90fd\u306f\u53e4\u3044\u3002",
         NULL);
    note(f, "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440",
         "\u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2 \u0627\u0644\u0633\u0644\u0627\u0645", NULL);
    note(f, "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22",
         "\u0939\u093f\u0928\u094d\u0926\u0940 \u2764\ufe0f \U0001f389party", NULL);
    HITS("grusse", "");
    HITS("gru\u00dfe", "1");
    HITS("koln CAFE ase NAIVE", "1");
    HITS("caf\u00e9", "1");
    HITS("\u6771\u4eac", "2");
    HITS("\u4eac\u90fd", "2");
    HITS("\u4eac\u90fd\u306f", "2");
    HITS("\u90fd\u6771", "");
    HITS("\u4f4f*", "2");
    HITS("\u6771\u4eac \u53e4\u3044", "2");
    HITS("\u041f\u0420\u0418\u0412\u0415\u0422", "3");
    HITS("\u043f\u0440\u0438*", "3");
    HITS("\u03c3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2", "3");
    HITS("\u0627\u0644\u0633\u0644\u0627\u0645", "3");
    HITS("\u0e44\u0e17\u0e22", "4");
    HITS("\u0e20\u0e32\u0e29\u0e32", "4");
    HITS("\u0e44\u0e17\u0e17", "");
    HITS("\u0939\u093f\u0928\u094d\u0926\u0940", "4");
    HITS("\U0001f389 party", "4");
    HITS("\U0001f389party", "4");
    HITS("party\ue000", "4");
}

static void test_phrases_stay_in_a_message(void **state) {
    struct fixture *f = *state;
    attune_interaction interaction;
    attune_message messages[] = {{"system", "one two"}, {"user", "three four"}, {"assistant", "five"}, {"user", "six"}};
    ATTUNE_INIT(interaction);
    interaction.messages = messages;
    interaction.n_messages = 4;
    interaction.response = "seven eight";
    OK(attune_store_record(f->store, &interaction, NULL, &f->err));
    OK(attune_store_flush(f->store, &f->err));
    HITS("\"one two\"", "1");
    HITS("\"two three\"", "");
    HITS("\"six seven\"", "");
    HITS("\"seven eight\"", "1");
    HITS("two three six seven", "1");
    HITS("\"two \ue000 three\"", "");
    HITS("user", "");
}

static void test_edits(void **state) {
    struct fixture *f = *state;
    attune_uuid first, second;
    note(f, "alpha", "beta", &first);
    note(f, "alpha", "gamma", &second);
    OK(feedback(f->store, &first, ATTUNE_FEEDBACK_EDIT, 0, "delta epsilon", &f->err));
    OK(feedback(f->store, &first, ATTUNE_FEEDBACK_ACCEPT, 0, NULL, &f->err));
    OK(feedback(f->store, &first, ATTUNE_FEEDBACK_EDIT, 0, "delta zeta", &f->err));
    OK(feedback(f->store, &second, ATTUNE_FEEDBACK_REJECT, 0, "delta of a reason", &f->err));
    HITS("delta", "1 2");
    HITS("epsilon", "1");
    HITS("delta zeta", "1");
    HITS("epsilon zeta", ""); /* of two edits */
    HITS("alpha delta", "");  /* of the prompt and of an edit */
    HITS("reason", "2");
    HITS("alpha", "1 2");
}

static void test_queries_without_a_word(void **state) {
    struct fixture *f = *state;
    static const char *const none[] = {"",          " ",          "\"\"",   "*",      "\"",    "...",
                                       "\"- -\" *", "\U0001f389", "\ufe0f", "\ue000", "\u3002"};
    int64_t *ids;
    size_t n;
    char *longest = malloc(16386);
    note(f, "alpha", "beta", NULL);
    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++)
        FAILS(search(f, none[i], &ids, &n), ATTUNE_ERROR_ARGUMENT, "no word", "");
    FAILS(search(f, NULL, &ids, &n), ATTUNE_ERROR_ARGUMENT, "NULL", "");
    FAILS(search(f, "secret\xff", &ids, &n), ATTUNE_ERROR_ARGUMENT, "UTF-8", "");
    assert_null(strstr(f->err.message, "secret"));
    memset(longest, 'a', 16385);
    longest[16385] = '\0';
    FAILS(search(f, longest, &ids, &n), ATTUNE_ERROR_ARGUMENT, "16385 bytes", "");
    longest[16384] = '\0';
    HITS(longest, "");
    for (size_t i = 0; i < 16384; i += 2) longest[i + 1] = ' ';
    HITS(longest, "");
    for (size_t i = 0; i < 16384; i += 4) memcpy(longest + i, "zz* ", 4);
    FAILS(search(f, longest, &ids, &n), ATTUNE_ERROR_ARGUMENT, "more than 32", "");
    longest[32 * 4] = '\0';
    HITS(longest, "");
    free(longest);
}

/* FTS5's own syntax means nothing: every one of these is words and signs. */
static void test_hostile_queries(void **state) {
    struct fixture *f = *state;
    static const char *const queries[] = {
        "alpha AND beta",   "alpha OR zzz", "alpha NOT beta", "NEAR(alpha beta)", "NEAR(alpha beta, 2)",
        "^alpha",           "text:alpha",   "{text}:alpha",   "-text:alpha",      "- alpha",
        "alpha + beta",     "(alpha",       "alpha)",         "((alpha)) beta",   "'alpha'",
        "alpha' OR 1=1 --", "\"alpha",      "alpha\"",        "\"\"alpha\"\"",    "\"alpha\"\"beta\"",
        "\"alpha\"*\"b\"",  "alpha**beta",  "alpha \\ beta",  "%alpha%",          "search MATCH 'x'",
        "rowid:2",          "alpha;DROP",   "\x01\x02 alpha", "alpha\x7f",        "{alpha"};
    static const char signs[] = "abAN OR\"\"*^:-+(){}'\\.,\t\n\x01\xc3\xa9";
    uint64_t seed = 7;
    note(f, "alpha beta", "and or near not text", NULL);
    HITS("alpha AND beta", "1");
    HITS("NEAR(alpha beta)", "");
    HITS("alpha OR zzz", "");
    HITS("alpha NOT beta", "1"); /* all four words are there */
    HITS("text:alpha", "");      /* one piece, hence a phrase */
    for (size_t i = 0; i < sizeof queries / sizeof queries[0]; i++) (void)hits(f, queries[i]);
    for (int i = 0; i < 3000; i++) {
        char query[41];
        int64_t *ids;
        size_t n;
        for (int j = 0; j < 40; j++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            query[j] = signs[(seed >> 33) % (sizeof signs - 1)];
        }
        query[40] = '\0';
        int code = search(f, query, &ids, &n);
        free(ids);
        if (code != ATTUNE_OK && (code != ATTUNE_ERROR_ARGUMENT || strstr(f->err.message, "fts5")))
            fail_msg("%s: %d %s", query, code, f->err.message);
    }
}

/* ---- against a search that reads every row ---- */

enum { DOCUMENTS = 700, DOCUMENT_WORDS = 12, VOCABULARY = 40 };
struct model {
    char word[VOCABULARY][8];
    int document[DOCUMENTS][DOCUMENT_WORDS]; /* 0 to 5: the prompt; then the response */
    int edit[DOCUMENTS][3];                  /* [0] -1: none */
};

static uint32_t draw(uint64_t *seed, uint32_t n) {
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((*seed >> 33) % n);
}

static void spell(const struct model *model, const int *words, int n, char *out) {
    out[0] = '\0';
    for (int i = 0; i < n; i++) sprintf(out + strlen(out), i ? " %s" : "%s", model->word[words[i]]);
}

struct term {
    int word, second; /* second -1: no phrase */
    int letters;      /* of the last word; 0: all of it */
};

static int is(const struct model *model, int word, const struct term *term, int last) {
    const char *wanted = model->word[last && term->second >= 0 ? term->second : term->word];
    if (last && term->letters) return strncmp(model->word[word], wanted, (size_t)term->letters) == 0;
    return strcmp(model->word[word], wanted) == 0;
}

static int occurs(const struct model *model, const int *words, int n, const struct term *term) {
    for (int i = 0; i < n; i++) {
        if (term->second < 0 && is(model, words[i], term, 1)) return 1;
        if (term->second >= 0 && i + 1 < n && is(model, words[i], term, 0) && is(model, words[i + 1], term, 1))
            return 1;
    }
    return 0;
}

static int model_matches(const struct model *model, int d, const struct term *terms_, int n) {
    int body = 1, edit = model->edit[d][0] >= 0;
    for (int i = 0; i < n; i++) {
        body = body && (occurs(model, model->document[d], 6, &terms_[i]) ||
                        occurs(model, model->document[d] + 6, 6, &terms_[i]));
        edit = edit && occurs(model, model->edit[d], 3, &terms_[i]);
    }
    return body || edit;
}

static void test_against_a_model(void **state) {
    struct fixture *f = *state;
    static struct model model;
    uint64_t seed = 11;
    for (int w = 0; w < VOCABULARY; w++)
        snprintf(model.word[w], 8, "%c%c%c", 'a' + w % 3, 'a' + w / 3 % 4, 'a' + w / 12);
    for (int d = 0; d < DOCUMENTS; d++) {
        char prompt[64], response[64], edit[64];
        attune_uuid id;
        attune_interaction interaction;
        attune_feedback change;
        for (int i = 0; i < DOCUMENT_WORDS; i++) model.document[d][i] = (int)draw(&seed, VOCABULARY);
        for (int i = 0; i < 3; i++) model.edit[d][i] = (int)draw(&seed, VOCABULARY);
        if (draw(&seed, 3)) model.edit[d][0] = -1;
        spell(&model, model.document[d], 6, prompt);
        spell(&model, model.document[d] + 6, 6, response);
        ATTUNE_INIT(interaction);
        interaction.prompt = prompt;
        interaction.response = response;
        OK(attune_store_record(f->store, &interaction, &id, &f->err));
        if (model.edit[d][0] < 0) continue;
        spell(&model, model.edit[d], 3, edit);
        ATTUNE_INIT(change);
        change.kind = ATTUNE_FEEDBACK_EDIT;
        change.text = edit;
        OK(attune_store_feedback(f->store, id.text, &change, &f->err));
    }
    OK(attune_store_flush(f->store, &f->err));
    size_t all = 0;
    for (int q = 0; q < 150; q++) {
        struct term terms_[3];
        char query[128] = "";
        int n = 1 + (int)draw(&seed, 3);
        for (int i = 0; i < n; i++) {
            struct term *t = &terms_[i];
            char last[8];
            *t = (struct term){(int)draw(&seed, VOCABULARY), draw(&seed, 3) ? -1 : (int)draw(&seed, VOCABULARY),
                               (int)draw(&seed, 4)};
            if (t->letters == 3) t->letters = 0;
            snprintf(last, t->letters ? (size_t)t->letters + 1 : sizeof last, "%s",
                     model.word[t->second >= 0 ? t->second : t->word]);
            if (t->second >= 0)
                sprintf(query + strlen(query), "\"%s %s\"%s ", model.word[t->word], last, t->letters ? "*" : "");
            else
                sprintf(query + strlen(query), "%s%s ", last, t->letters ? "*" : "");
        }
        int64_t *ids;
        size_t found = 0, at = 0;
        OK(search(f, query, &ids, &found));
        for (int d = 0; d < DOCUMENTS; d++) {
            int wanted = model_matches(&model, d, terms_, n), got = at < found && ids[at] == d + 1;
            if (wanted != got) fail_msg("'%s', document %d: %d, not %d", query, d + 1, got, wanted);
            at += (size_t)got;
        }
        assert_int_equal(at, found);
        all += found;
        free(ids);
    }
    assert_true(all > 1000);
}

/* ---- the index ---- */

static void test_index_in_pieces(void **state) {
    struct fixture *f = *state;
    attune_uuid id;
    int left = -1;
    note(f, "alpha", "one", &id);
    note(f, "alpha", "two", NULL);
    OK(feedback(f->store, &id, ATTUNE_FEEDBACK_EDIT, 0, "three", &f->err));
    OK(feedback(f->store, &id, ATTUNE_FEEDBACK_ACCEPT, 0, NULL, &f->err));
    assert_int_equal(waiting(f), 4);
    for (int64_t rest = 3; rest >= 0; rest--) {
        index_some(f, 1, &left); /* long over: one row each */
        assert_int_equal(left, 1);
        assert_int_equal(waiting(f), rest);
    }
    index_some(f, 1, &left);
    assert_int_equal(left, 0);
    assert_int_equal(terms(f), 5); /* the boundary is one */
    note(f, "alpha", "four", NULL);
    index_some(f, 0, &left);
    assert_int_equal(left, 0);
    assert_int_equal(waiting(f), 0);
    HITS("alpha", "1 2 3");
    HITS("four", "3");
    assert_int_equal(terms(f), 6);
}

static void test_search_within_a_read(void **state) {
    struct fixture *f = *state;
    note(f, "alpha", "one", NULL);
    HITS("alpha", "1");
    note(f, "alpha", "two", NULL);
    OK(store_enter(f->store, &f->err));
    OK(store_read_begin(f->store, &f->err));
    HITS("alpha", "1"); /* no time to index */
    store_read_end(f->store);
    OK(store_begin(f->store, &f->err));
    HITS("alpha", "1 2");
    store_rollback(f->store);
    store_leave(f->store);
    assert_int_equal(waiting(f), 1);
    HITS("alpha", "1 2");
}

static void test_forgotten_words_are_gone(void **state) {
    struct fixture *f = *state;
    attune_uuid id[4];
    for (int i = 0; i < 4; i++)
        note(f, "common \u6771\u4eac \ue000 caf\u00e9", i == 1 ? "canary\ufe0f \U0001f389" : "other", &id[i]);
    OK(feedback(f->store, &id[1], ATTUNE_FEEDBACK_EDIT, 0, "second canary \u4eac", &f->err));
    HITS("canary", "2");
    forget(f, 2);
    HITS("canary", "");
    HITS("second", "");
    HITS("common", "1 3 4");
    assert_int_equal(terms(f), 6); /* common, two ideographs, cafe, other, the boundary */
    for (int i = 1; i <= 4; i++)
        if (i != 2) forget(f, i);
    assert_int_equal(terms(f), 0);
}

static void test_forgetting_what_is_not_indexed(void **state) {
    struct fixture *f = *state;
    attune_uuid id;
    note(f, "alpha", "one", &id);
    HITS("one", "1");
    OK(feedback(f->store, &id, ATTUNE_FEEDBACK_EDIT, 0, "three", &f->err));
    note(f, "alpha", "two", NULL);
    forget(f, 2);
    forget(f, 1);
    assert_int_equal(terms(f), 0);
    assert_int_equal(waiting(f), 0);
}

/* SQLite hands out the ids of rows that were the newest again. */
static void test_ids_that_come_again(void **state) {
    struct fixture *f = *state;
    attune_uuid id[3];
    for (int i = 0; i < 3; i++) {
        note(f, "alpha", "one", &id[i]);
        OK(feedback(f->store, &id[i], ATTUNE_FEEDBACK_EDIT, 0, "edited", &f->err));
    }
    HITS("edited", "1 2 3");
    forget(f, 2);
    forget(f, 3);
    note(f, "beta", "two", &id[1]);
    OK(feedback(f->store, &id[1], ATTUNE_FEEDBACK_EDIT, 0, "mended", &f->err));
    assert_int_equal(query_number(f, "SELECT max(id) FROM interaction"), 2);
    assert_int_equal(query_number(f, "SELECT max(id) FROM feedback"), 2);
    HITS("beta", "2");
    HITS("mended", "2");
    HITS("edited", "1");
    forget(f, 1);
    forget(f, 2);
    assert_int_equal(terms(f), 0);
}

/* ---- encrypted ---- */

static void test_encrypted_keeps_no_index(void **state) {
    struct fixture *f = *state;
    int left = -1;
    note(f, "canary", "one", NULL);
    assert_int_equal(waiting(f), 0);
    index_some(f, 0, &left);
    assert_int_equal(left, 0);
    HITS("canary", "1");
    HITS("canary", "1"); /* the table of the first search serves again, empty */
    assert_int_equal(terms(f), 0);
    assert_int_equal(query_number(f, "SELECT count(*) FROM mark WHERE name LIKE '%indexed'"), 0);
    forget(f, 1);
    HITS("canary", "");
    OK(store_enter(f->store, &f->err));
    int64_t rows = -1;
    OK(store_number(f->store, "SELECT count(*) FROM temp.batch_search_data WHERE id > 10", "test", &rows, &f->err));
    store_leave(f->store);
    assert_int_equal(rows, 0);
}

static void test_encrypted_without_the_key(void **state) {
    struct fixture *f = *state;
    int64_t *ids;
    size_t n;
    note(f, "canary", "one", NULL);
    attune_store_close(f->store);
    f->store = NULL;
    unlink(in_home(f, "key"));
    OK(store_open_path(f->home, 0, &f->store, &f->err));
    FAILS(search(f, "canary", &ids, &n), ATTUNE_ERROR_MISMATCH, "key", "store.db");
}

static int search_in_callback(const struct store_row *row, void *user, attune_error *err) {
    struct fixture *f = user;
    (void)row, (void)err;
    HITS("canary", "1 2");
    return ATTUNE_OK;
}

/* While a statement of the same connection is under way. */
static void test_in_a_callback(void **state) {
    struct fixture *f = *state;
    note(f, "canary", "one", NULL);
    note(f, "canary", "two", NULL);
    HITS("canary", "1 2");
    OK(store_examples(f->store, NULL, search_in_callback, f, &f->err));
    OK(store_examples(f->store, NULL, search_in_callback, f, &f->err));
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, store_setup, store_teardown)
#define ENCRYPTED(test) cmocka_unit_test_setup_teardown(test, encrypted_setup, store_teardown)
#define BOTH(test) TEST(test), ENCRYPTED(test)

int main(void) {
    const struct CMUnitTest tests[] = {
        BOTH(test_words),
        BOTH(test_other_scripts),
        BOTH(test_phrases_stay_in_a_message),
        BOTH(test_edits),
        BOTH(test_queries_without_a_word),
        BOTH(test_hostile_queries),
        BOTH(test_against_a_model),
        BOTH(test_in_a_callback),
        TEST(test_index_in_pieces),
        TEST(test_search_within_a_read),
        TEST(test_forgotten_words_are_gone),
        TEST(test_forgetting_what_is_not_indexed),
        TEST(test_ids_that_come_again),
        ENCRYPTED(test_encrypted_keeps_no_index),
        ENCRYPTED(test_encrypted_without_the_key),
    };
    return cmocka_run_group_tests_name("search", tests, NULL, NULL);
}
