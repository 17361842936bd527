/* What may be learned: consent, feedback, duplicates, and the hashes that name it. */
#include "tests/store_fixture.h"

#include "datastore/content.h"
#include "datastore/judge.h"

/* ---- hashes; expected values from Python's hashlib and unicodedata over the rules in docs/formats.md ---- */

static void test_content_hash(void **state) {
    char hex[HASH_HEX_SIZE], other[HASH_HEX_SIZE];
    attune_message one[] = {{"user", "What is a fjord?"}};
    attune_message many[] = {
        {"system", "Be brief."}, {"user", "Gr\u00fc\u00dfe"}, {"assistant", "Hi"}, {"user", "Und?"}};
    attune_message moved[] = {{"user", "What is a fjord?A"}};
    (void)state;
    store_content_hash(one, 1, "A drowned valley.", hex);
    assert_string_equal(hex, "e8ae8b99d754da20c4bbad16a5cffc0c01908940dc930140db3f943d41dfe4cc");
    store_content_hash(many, 4, "Ja \u2014 klar", hex);
    assert_string_equal(hex, "c790c56e7aee7fb9cb6b67a2aec9cf121d796364aaaec916aadbf25386b094bd");
    store_content_hash(moved, 1, " drowned valley.", hex);
    store_content_hash(one, 1, "A drowned valley.", other);
    assert_string_not_equal(hex, other);
}

static void prompt_hash(const char *text, char hex[HASH_HEX_SIZE]) {
    attune_message messages[] = {{"system", "s"}, {"user", text}, {"assistant", "a"}, {"user", "later"}};
    char *normalised = NULL;
    size_t n;
    assert_int_equal(store_prompt_normalise(messages, 4, &normalised, &n, NULL), ATTUNE_OK);
    store_prompt_hash(normalised, n, hex);
    free(normalised);
}

static void test_prompt_hash(void **state) {
    static const char *const same[] = {"What is a fjord?",
                                       "what is a fjord",
                                       "  WHAT\tis \u2014 a \u2026 fjord ?!",
                                       "\uff37\uff28\uff21\uff34 is a FJORD\u200b",
                                       "what is a fj\u00adord", /* a soft hyphen */
                                       "What is a \ufb01ord?"}; /* the last one differs: "fiord" */
    char hex[HASH_HEX_SIZE];
    (void)state;
    for (int i = 0; i < 6; i++) {
        prompt_hash(same[i], hex);
        int equal = strcmp(hex, "fd033fa38dc8fb38cda37249293aa57870ab6044678002c002968902fd05defa") == 0;
        assert_int_equal(equal, i < 5);
    }
    prompt_hash("Stra\u00dfe \u21165: \ufb01n \u00e9", hex);
    assert_string_equal(hex, "720aaa423ea8c37c7385f32ff0de0dfe2bb582d72cfe1809ea5d1fb82c8a5107");
    prompt_hash("Stra\u00dfe \u21165: \ufb01n e\u0301", hex); /* decomposed */
    assert_string_equal(hex, "720aaa423ea8c37c7385f32ff0de0dfe2bb582d72cfe1809ea5d1fb82c8a5107");
    prompt_hash("\u00bf\u00a1!?", hex); /* nothing remains: the text as it is */
    assert_string_equal(hex, "48938597e4a4e5672e54f060c5273f72a2febc0bd3a26c2af57709672aef0730");
}

static void test_prompt_hash_of_a_long_text(void **state) {
    char a[HASH_HEX_SIZE], b[HASH_HEX_SIZE];
    char *text = malloc(70001);
    (void)state;
    /* The limit of 65536 bytes falls into the middle of a two-byte letter. */
    memset(text, 'x', 70000);
    memcpy(text + 65535, "\u00e9", 2);
    text[70000] = 0;
    prompt_hash(text, a);
    text[65535] = 0;
    prompt_hash(text, b);
    assert_string_equal(a, b);
    text[65534] = 'y';
    prompt_hash(text, b);
    assert_string_not_equal(a, b);
    free(text);
}

/* ---- feedback ---- */

/* One letter each, oldest first: u, d thumbs; a accept; r reject; g regenerate; e edit; c copy; w dwell; z undo. */
static struct store_judgement judge(const char *sequence) {
    static const char letters[] = "ueargcwz";
    static const int kinds[] = {ATTUNE_FEEDBACK_THUMB,  ATTUNE_FEEDBACK_EDIT,       ATTUNE_FEEDBACK_ACCEPT,
                                ATTUNE_FEEDBACK_REJECT, ATTUNE_FEEDBACK_REGENERATE, ATTUNE_FEEDBACK_COPY,
                                ATTUNE_FEEDBACK_DWELL,  ATTUNE_FEEDBACK_UNDO};
    struct store_judgement judgement = {0};
    for (size_t i = strlen(sequence); i-- > 0;) {
        char c = sequence[i];
        if (c == 'd')
            store_judge(&judgement, ATTUNE_FEEDBACK_THUMB, -1, (int64_t)i + 1);
        else
            store_judge(&judgement, kinds[strchr(letters, c) - letters], 1, (int64_t)i + 1);
    }
    return judgement;
}

static void test_judge(void **state) {
    static const struct {
        const char *sequence;
        int verdict, edit;
    } cases[] = {
        {"", 0, 0},     {"u", 1, 0},    {"d", -1, 0},     {"ud", -1, 0},   {"du", 1, 0},  {"r", -1, 0},   {"ra", 1, 0},
        {"g", -1, 0},   {"gu", 1, 0},   {"cw", 0, 0},     {"dc", -1, 0},   {"e", 0, 1},   {"ee", 0, 2},   {"de", -1, 2},
        {"dz", 0, 0},   {"udz", 1, 0},  {"udzz", 0, 0},   {"udzzz", 0, 0}, {"zd", -1, 0}, {"dzd", -1, 0}, {"eez", 0, 1},
        {"eezz", 0, 0}, {"dzez", 0, 0}, {"uzdez", -1, 0}, {"rzzu", 1, 0},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct store_judgement got = judge(cases[i].sequence);
        if (got.verdict != cases[i].verdict || got.edit != cases[i].edit)
            fail_msg("'%s': verdict %d, edit %d", cases[i].sequence, got.verdict, (int)got.edit);
    }
}

static void test_feedback_decides(void **state) {
    struct fixture *f = *state;
    struct rows rows;
    attune_uuid id;
    OK(record(f->store, "p", "r", 10, &id, &f->err));
    examples(f, &rows);
    assert_int_equal(rows.n, 1);
    assert_string_equal(rows.row[0].response, "r");
    assert_int_equal(rows.row[0].time_ms, 10);
    assert_true(rows.row[0].interaction > 0);
    OK(feedback(f->store, &id, ATTUNE_FEEDBACK_THUMB, -1, NULL, &f->err));
    examples(f, &rows);
    assert_int_equal(rows.n, 0);
    OK(feedback(f->store, &id, ATTUNE_FEEDBACK_EDIT, 0, "better", &f->err));
    examples(f, &rows);
    assert_int_equal(rows.n, 1);
    assert_string_equal(rows.row[0].response, "better");
    OK(feedback(f->store, &id, ATTUNE_FEEDBACK_UNDO, 0, NULL, &f->err));
    examples(f, &rows);
    assert_int_equal(rows.n, 0);
    OK(feedback(f->store, &id, ATTUNE_FEEDBACK_UNDO, 0, NULL, &f->err));
    examples(f, &rows);
    assert_int_equal(rows.n, 1);
    assert_string_equal(rows.row[0].response, "r");
    OK(feedback(f->store, &id, ATTUNE_FEEDBACK_REGENERATE, 0, NULL, &f->err));
    examples(f, &rows);
    assert_int_equal(rows.n, 0);
    int64_t n = 0;
    OK(store_counts(f->store, NULL, NULL, &n, NULL, &f->err));
    assert_int_equal(n, 5);
}

/* ---- the set ---- */

static void test_order_and_duplicates(void **state) {
    struct fixture *f = *state;
    struct rows rows;
    attune_uuid down, edited;
    OK(record(f->store, "late", "r", 300, NULL, &f->err));
    OK(record(f->store, "early", "r", 100, NULL, &f->err));
    OK(record(f->store, "tie one", "r", 200, NULL, &f->err));
    OK(record(f->store, "tie two", "r", 200, NULL, &f->err));
    OK(record(f->store, "early", "r", 400, NULL, &f->err));        /* the same content again */
    OK(record(f->store, "twice", "r", 50, &down, &f->err));        /* the older one is not liked, */
    OK(record(f->store, "twice", "r", 500, NULL, &f->err));        /* the newer one stands */
    OK(record(f->store, "early", "wrong", 600, &edited, &f->err)); /* an edit makes it the same */
    OK(feedback(f->store, &down, ATTUNE_FEEDBACK_THUMB, -1, NULL, &f->err));
    OK(feedback(f->store, &edited, ATTUNE_FEEDBACK_EDIT, 0, "r", &f->err));
    examples(f, &rows);
    static const char *const expected[] = {"early", "tie one", "tie two", "late", "twice"};
    assert_int_equal(rows.n, 5);
    for (int i = 0; i < 5; i++) assert_string_equal(rows.row[i].prompt, expected[i]);
    assert_int_equal(rows.row[0].time_ms, 100);
    assert_int_equal(rows.row[4].time_ms, 500);
}

static void test_only_with_consent(void **state) {
    struct fixture *f = *state;
    struct rows rows = {0};
    attune_interaction interaction;
    ATTUNE_INIT(interaction);
    interaction.prompt = "p";
    interaction.response = "r";
    interaction.consent = ATTUNE_CONSENT_NOT_GIVEN;
    OK(attune_store_record(f->store, &interaction, NULL, &f->err));
    examples(f, &rows);
    assert_int_equal(rows.n, 0);
    char hex[HASH_HEX_SIZE];
    attune_message message = {"user", "p"};
    store_content_hash(&message, 1, "r", hex);
    FAILS(store_example_get(f->store, hex, collect, &rows, &f->err), ATTUNE_ERROR_NOT_FOUND, "gone", "store.db");
}

static void test_edit_keeps_the_split(void **state) {
    struct fixture *f = *state;
    struct rows rows;
    attune_uuid id;
    OK(record(f->store, "Write a haiku.", "first", 1, NULL, &f->err));
    OK(record(f->store, "write a haiku", "second", 2, &id, &f->err));
    OK(feedback(f->store, &id, ATTUNE_FEEDBACK_EDIT, 0, "third", &f->err));
    examples(f, &rows);
    assert_int_equal(rows.n, 2);
    assert_string_equal(rows.row[0].prompt_hash, rows.row[1].prompt_hash);
    assert_string_not_equal(rows.row[0].content_hash, rows.row[1].content_hash);
}

static void test_get_one(void **state) {
    struct fixture *f = *state;
    struct rows all, one = {0};
    attune_uuid id;
    OK(record(f->store, "p1", "r1", 1, NULL, &f->err));
    OK(record(f->store, "p2", "draft", 2, &id, &f->err));
    examples(f, &all);
    OK(feedback(f->store, &id, ATTUNE_FEEDBACK_EDIT, 0, "edited", &f->err));
    FAILS(store_example_get(f->store, all.row[1].content_hash, collect, &one, &f->err), ATTUNE_ERROR_NOT_FOUND, "gone",
          "");
    assert_int_equal(one.n, 0);
    examples(f, &all);
    for (size_t i = 0; i < 2; i++) {
        one.n = 0;
        OK(store_example_get(f->store, all.row[i].content_hash, collect, &one, &f->err));
        assert_int_equal(one.n, 1);
        assert_string_equal(one.row[0].response, i ? "edited" : "r1");
        assert_string_equal(one.row[0].content_hash, all.row[i].content_hash);
        assert_string_equal(one.row[0].prompt_hash, all.row[i].prompt_hash);
    }
    OK(feedback(f->store, &id, ATTUNE_FEEDBACK_UNDO, 0, NULL, &f->err));
    FAILS(store_example_get(f->store, all.row[1].content_hash, collect, &one, &f->err), ATTUNE_ERROR_NOT_FOUND, "gone",
          "");
}

static void test_examples_new(void **state) {
    struct fixture *f = *state;
    struct rows rows;
    struct store_run run = {.id = "x", .state = "unfinished"};
    struct store_run_example used[2] = {{.position = 0}, {.position = 1, .held_out = 1}};
    int64_t fresh = 0;
    for (int i = 0; i < 3; i++) OK(record(f->store, i == 0 ? "a" : i == 1 ? "b" : "c", "r", i + 1, NULL, &f->err));
    examples(f, &rows);
    strcpy(used[0].content_hash, rows.row[0].content_hash);
    strcpy(used[1].content_hash, rows.row[1].content_hash);
    OK(store_run_begin(f->store, &run, used, 2, &f->err));
    OK(store_counts(f->store, NULL, NULL, NULL, &fresh, &f->err));
    assert_int_equal(fresh, 3);
    strcpy(run.state, "refused");
    OK(store_run_update(f->store, &run, &f->err));
    OK(store_counts(f->store, NULL, NULL, NULL, &fresh, &f->err));
    assert_int_equal(fresh, 3);
    strcpy(run.state, "published");
    OK(store_run_update(f->store, &run, &f->err));
    OK(store_counts(f->store, NULL, NULL, NULL, &fresh, &f->err));
    assert_int_equal(fresh, 1);
    OK(record(f->store, "a", "r", 9, NULL, &f->err)); /* a duplicate is nothing new */
    OK(store_counts(f->store, NULL, NULL, NULL, &fresh, &f->err));
    assert_int_equal(fresh, 1);
}

/* The set of hashes has to find them all when it is as full as it gets. */
static void test_many(void **state) {
    struct fixture *f = *state;
    int64_t fresh = 0;
    attune_import_result result;
    ATTUNE_INIT(result);
    FILE *file = fopen(in_home(f, "many.jsonl"), "wb");
    for (int i = 0; i < 4096; i++)
        fprintf(file, "{\"prompt\":\"p%d\",\"response\":\"r\",\"session\":\"%d\"}\n", i % 1024, i);
    fclose(file);
    OK(attune_store_import(f->store, in_home(f, "many.jsonl"), NULL, &result, &f->err));
    assert_int_equal(result.rows, 4096);
    OK(store_counts(f->store, NULL, NULL, NULL, &fresh, &f->err));
    assert_int_equal(fresh, 1024);
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, store_setup, store_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_content_hash),
        cmocka_unit_test(test_prompt_hash),
        cmocka_unit_test(test_prompt_hash_of_a_long_text),
        cmocka_unit_test(test_judge),
        TEST(test_feedback_decides),
        TEST(test_order_and_duplicates),
        TEST(test_only_with_consent),
        TEST(test_edit_keeps_the_split),
        TEST(test_get_one),
        TEST(test_examples_new),
        TEST(test_many),
    };
    return cmocka_run_group_tests_name("examples", tests, NULL, NULL);
}
