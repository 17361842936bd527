/* Deriving: what becomes an example of which kind, near-duplicates, caps, and that it is incremental. */
#include "tests/store_fixture.h"

#include "datastore/derive.h"

/* ---- shorthands ---- */

struct told {
    const char *prompt, *response;
    int tier, sensitivity, consent;
    const char *app, *source;
};

static int tell(struct fixture *f, struct told told, int64_t time_ms, attune_uuid *id) {
    attune_interaction in;
    ATTUNE_INIT(in);
    in.prompt = told.prompt;
    in.response = told.response;
    in.tier = told.tier;
    in.sensitivity = told.sensitivity;
    in.consent = told.consent;
    in.app = told.app;
    in.source = told.source;
    in.time_ms = time_ms;
    int code = attune_store_record(f->store, &in, id, &f->err);
    return code == ATTUNE_OK ? attune_store_flush(f->store, &f->err) : code;
}

struct list {
    size_t n;
    struct {
        int kind, label;
        double weight;
        char response[200], rejected[200], content_hash[65], prompt_hash[17];
    } row[600];
};

static int take(const struct store_row *row, void *user, attune_error *err) {
    struct list *list = user;
    (void)err;
    assert_true(list->n < 600);
    list->row[list->n].kind = row->kind;
    list->row[list->n].label = row->label;
    list->row[list->n].weight = row->weight;
    snprintf(list->row[list->n].response, 200, "%s", row->response);
    snprintf(list->row[list->n].rejected, 200, "%s", row->rejected ? row->rejected : "");
    snprintf(list->row[list->n].content_hash, 65, "%s", row->content_hash);
    snprintf(list->row[list->n].prompt_hash, 17, "%s", row->prompt_hash);
    list->n++;
    return ATTUNE_OK;
}

static struct list *read_all(struct fixture *f, struct store_example_query query) {
    static struct list list;
    list.n = 0;
    OK(store_examples(f->store, &query, take, &list, &f->err));
    return &list;
}

static size_t count_of(struct fixture *f, int kind) { return read_all(f, (struct store_example_query){.kind = kind})->n; }

/* ---- who may be learned from ---- */

static void test_tiers_and_sensitivity(void **state) {
    struct fixture *f = *state;
    static const struct {
        struct told told;
        int learned;
    } cases[] = {
        {{.prompt = "one thing", .response = "r"}, 1},
        {{.prompt = "two things", .response = "r", .tier = ATTUNE_TIER_IMPORTED}, 1},
        {{.prompt = "three", .response = "r", .tier = ATTUNE_TIER_PASTED}, 0},
        {{.prompt = "four", .response = "r", .tier = ATTUNE_TIER_WEB}, 0},
        {{.prompt = "five", .response = "r", .tier = ATTUNE_TIER_TOOL}, 0},
        {{.prompt = "six", .response = "r", .sensitivity = ATTUNE_SENSITIVITY_PRIVATE}, 0},
        {{.prompt = "write to ada@example.org please", .response = "r"}, 0},
        {{.prompt = "seven", .response = "it is 4111 1111 1111 1111"}, 0},
        {{.prompt = "eight bob@example.org", .response = "r", .sensitivity = ATTUNE_SENSITIVITY_CLEARED}, 1},
        {{.prompt = "nine", .response = "r", .consent = ATTUNE_CONSENT_NOT_GIVEN}, 0},
    };
    size_t wanted = 0;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        OK(tell(f, cases[i].told, (int64_t)i + 1, NULL));
        wanted += (size_t)cases[i].learned;
        assert_int_equal(count_of(f, STORE_EXAMPLE_SFT), wanted);
    }
    attune_store_statistics s;
    ATTUNE_INIT(s);
    OK(attune_store_statistics_get(f->store, &s, &f->err));
    assert_int_equal(s.private_rows, 3);
    assert_int_equal(s.findings[ATTUNE_FINDING_EMAIL], 1);
    assert_int_equal(s.findings[ATTUNE_FINDING_CARD], 1);
    assert_int_equal(s.examples_sft, wanted);
}

static void test_edit_with_a_secret(void **state) {
    struct fixture *f = *state;
    attune_uuid id;
    OK(tell(f, (struct told){.prompt = "p", .response = "r"}, 1, &id));
    assert_int_equal(count_of(f, STORE_EXAMPLE_SFT), 1);
    OK(feedback(f->store, &id, ATTUNE_FEEDBACK_EDIT, 0, "ask eve@example.org", &f->err));
    OK(attune_store_flush(f->store, &f->err));
    assert_int_equal(count_of(f, STORE_EXAMPLE_SFT), 0);
    OK(feedback(f->store, &id, ATTUNE_FEEDBACK_UNDO, 0, NULL, &f->err));
    OK(attune_store_flush(f->store, &f->err));
    assert_int_equal(count_of(f, STORE_EXAMPLE_SFT), 1);
}

static size_t find_word(const char *text, size_t n, void *user) {
    (void)n, (void)user;
    return strstr(text, "Blackbird") ? 1 : 0;
}

static void test_the_apps_own_search(void **state) {
    struct fixture *f = *state;
    attune_store_options options;
    attune_uuid id;
    ATTUNE_INIT(options);
    options.find_private = find_word;
    attune_store_close(f->store);
    f->store = NULL;
    OK(attune_store_open(f->home, &options, &f->store, &f->err));
    OK(tell(f, (struct told){.prompt = "about Blackbird", .response = "r"}, 1, NULL));
    OK(tell(f, (struct told){.prompt = "about birds", .response = "r"}, 2, &id));
    assert_int_equal(count_of(f, STORE_EXAMPLE_SFT), 1);
    OK(feedback(f->store, &id, ATTUNE_FEEDBACK_EDIT, 0, "Blackbird flies", &f->err));
    OK(attune_store_flush(f->store, &f->err));
    assert_int_equal(count_of(f, STORE_EXAMPLE_SFT), 0);
    attune_store_statistics s;
    ATTUNE_INIT(s);
    OK(attune_store_statistics_get(f->store, &s, &f->err));
    assert_int_equal(s.findings[ATTUNE_FINDING_APP], 2);
    assert_int_equal(s.private_rows, 2);
}

/* ---- preferences and thumbs ---- */

static void test_pair_of_an_edit(void **state) {
    struct fixture *f = *state;
    attune_uuid id;
    OK(tell(f, (struct told){.prompt = "p", .response = "draft"}, 1, &id));
    OK(feedback(f->store, &id, ATTUNE_FEEDBACK_EDIT, 0, "final", &f->err));
    OK(attune_store_flush(f->store, &f->err));
    struct list *list = read_all(f, (struct store_example_query){.kind = STORE_EXAMPLE_PREFERENCE});
    assert_int_equal(list->n, 1);
    assert_string_equal(list->row[0].response, "final");
    assert_string_equal(list->row[0].rejected, "draft");
    assert_true(list->row[0].weight == 1.0);
    OK(feedback(f->store, &id, ATTUNE_FEEDBACK_EDIT, 0, "draft", &f->err)); /* nothing was changed after all */
    OK(attune_store_flush(f->store, &f->err));
    assert_int_equal(count_of(f, STORE_EXAMPLE_PREFERENCE), 0);
}

static void test_pairs_of_regenerations(void **state) {
    struct fixture *f = *state;
    attune_uuid first, second, third;
    OK(tell(f, (struct told){.prompt = "a haiku", .response = "one", .app = "a"}, 1, &first));
    OK(tell(f, (struct told){.prompt = "a haiku", .response = "elsewhere", .app = "b"}, 2, NULL));
    OK(tell(f, (struct told){.prompt = "a haiku", .response = "two", .app = "a"}, 3, &second));
    assert_int_equal(count_of(f, STORE_EXAMPLE_PREFERENCE), 0);
    OK(feedback(f->store, &first, ATTUNE_FEEDBACK_REGENERATE, 0, NULL, &f->err));
    OK(attune_store_flush(f->store, &f->err));
    struct list *list = read_all(f, (struct store_example_query){.kind = STORE_EXAMPLE_PREFERENCE});
    assert_int_equal(list->n, 1);
    assert_string_equal(list->row[0].response, "two");
    assert_string_equal(list->row[0].rejected, "one");
    OK(feedback(f->store, &second, ATTUNE_FEEDBACK_REGENERATE, 0, NULL, &f->err));
    OK(tell(f, (struct told){.prompt = "a haiku", .response = "three", .app = "a"}, 4, &third));
    OK(feedback(f->store, &third, ATTUNE_FEEDBACK_EDIT, 0, "four", &f->err));
    OK(attune_store_flush(f->store, &f->err));
    list = read_all(f, (struct store_example_query){.kind = STORE_EXAMPLE_PREFERENCE});
    assert_int_equal(list->n, 3); /* over the draft, over one, over two */
    for (size_t i = 0; i < 3; i++) assert_string_equal(list->row[i].response, "four");
    OK(feedback(f->store, &first, ATTUNE_FEEDBACK_UNDO, 0, NULL, &f->err));
    OK(attune_store_flush(f->store, &f->err));
    list = read_all(f, (struct store_example_query){.kind = STORE_EXAMPLE_PREFERENCE});
    assert_int_equal(list->n, 2);
    for (size_t i = 0; i < 2; i++) assert_string_not_equal(list->row[i].rejected, "one");
}

static void test_thumbs_and_weights(void **state) {
    struct fixture *f = *state;
    attune_uuid id[5];
    static const char *const prompts[] = {"apples", "bicycles", "cathedrals", "dolphins", "elevators"};
    for (int i = 0; i < 5; i++)
        OK(tell(f, (struct told){.prompt = prompts[i], .response = prompts[i]}, i + 1, &id[i]));
    OK(feedback(f->store, &id[0], ATTUNE_FEEDBACK_THUMB, 1, NULL, &f->err));
    OK(feedback(f->store, &id[1], ATTUNE_FEEDBACK_REJECT, 0, NULL, &f->err));
    OK(feedback(f->store, &id[2], ATTUNE_FEEDBACK_COPY, 0, NULL, &f->err));
    OK(feedback(f->store, &id[3], ATTUNE_FEEDBACK_DWELL, 12000, NULL, &f->err));
    OK(attune_store_flush(f->store, &f->err));
    struct list *list = read_all(f, (struct store_example_query){.kind = STORE_EXAMPLE_THUMB});
    assert_int_equal(list->n, 2);
    assert_int_equal(list->row[0].label, 1);
    assert_int_equal(list->row[1].label, -1);
    assert_string_equal(list->row[1].response, "bicycles");
    list = read_all(f, (struct store_example_query){0});
    static const double weights[] = {1.0, 0.8, 0.6, 0.5};
    assert_int_equal(list->n, 4);
    for (int i = 0; i < 4; i++) assert_true(list->row[i].weight == weights[i]);
}

/* ---- near-duplicates ---- */

static const char *const original = "Could you write a short and friendly birthday message for my colleague Sabine?";
static const char *const typo = "Could you write a short and freindly birthday message for my colleague Sabine?";
static const char *const longer = "Could you write a short and friendly birthday message for my colleague Sabine today?";
static const char *const unrelated = "Explain how a heat pump gets warmth out of cold air in winter.";

static void test_near_duplicates_share_a_side(void **state) {
    struct fixture *f = *state;
    OK(tell(f, (struct told){.prompt = original, .response = "1"}, 1, NULL));
    OK(tell(f, (struct told){.prompt = unrelated, .response = "2"}, 2, NULL));
    OK(tell(f, (struct told){.prompt = typo, .response = "3"}, 3, NULL));
    OK(tell(f, (struct told){.prompt = longer, .response = "4"}, 4, NULL));
    struct list *list = read_all(f, (struct store_example_query){0});
    assert_int_equal(list->n, 4);
    assert_string_equal(list->row[0].prompt_hash, list->row[2].prompt_hash);
    assert_string_equal(list->row[0].prompt_hash, list->row[3].prompt_hash);
    assert_string_not_equal(list->row[0].prompt_hash, list->row[1].prompt_hash);
}

static void delete_row(struct fixture *f, int64_t id) {
    char sql[80];
    OK(store_enter(f->store, &f->err));
    OK(store_begin(f->store, &f->err));
    OK(store_derive_forget(f->store, id, &f->err));
    snprintf(sql, sizeof sql, "DELETE FROM interaction WHERE id = %d", (int)id);
    OK(store_exec(f->store, sql, "test", &f->err));
    OK(store_commit(f->store, &f->err));
    store_leave(f->store);
}

/* Groups after a deletion are those of a store that has never seen the row. */
static void test_groups_as_if_never_seen(void **state) {
    static const char *const prompts[] = {original, typo, longer, original, unrelated, typo};
    struct fixture *f = *state;
    static struct list after, fresh;
    for (int gone = 0; gone < 6; gone++) {
        OK(store_exec(f->store, "DELETE FROM interaction; DELETE FROM near; DELETE FROM mark", "test", &f->err));
        for (int i = 0; i < 6; i++)
            OK(tell(f, (struct told){.prompt = prompts[i], .response = (char[]){(char)('a' + i), 0}}, i + 1, NULL));
        read_all(f, (struct store_example_query){0});
        delete_row(f, gone + 1);
        after = *read_all(f, (struct store_example_query){0});
        OK(store_exec(f->store, "DELETE FROM interaction; DELETE FROM near; DELETE FROM mark", "test", &f->err));
        for (int i = 0; i < 6; i++)
            if (i != gone)
                OK(tell(f, (struct told){.prompt = prompts[i], .response = (char[]){(char)('a' + i), 0}}, i + 1, NULL));
        fresh = *read_all(f, (struct store_example_query){0});
        assert_int_equal(after.n, 5);
        assert_int_equal(fresh.n, 5);
        for (int i = 0; i < 5; i++) {
            assert_string_equal(after.row[i].content_hash, fresh.row[i].content_hash);
            assert_string_equal(after.row[i].prompt_hash, fresh.row[i].prompt_hash);
        }
    }
}

/* ---- caps, order, new ones ---- */

static void test_caps(void **state) {
    struct fixture *f = *state;
    char response[20], prompt[64];
    for (int i = 0; i < 40; i++) {
        snprintf(response, sizeof response, "answer %d", i);
        OK(tell(f, (struct told){.prompt = original, .response = response, .app = "mail"}, i + 1, NULL));
    }
    for (int i = 0; i < 30; i++) {
        snprintf(prompt, sizeof prompt, "%d times %d makes how much altogether?", i * 7919, i * 104729);
        OK(tell(f, (struct told){.prompt = prompt, .response = "x", .app = i % 3 ? "chat" : "notes"}, 100 + i, NULL));
    }
    assert_int_equal(count_of(f, 0), 70);
    struct list *list = read_all(f, (struct store_example_query){.group_cap = 8});
    assert_int_equal(list->n, 38);
    assert_string_equal(list->row[0].response, "answer 32"); /* the newest stay, oldest first */
    assert_int_equal(read_all(f, (struct store_example_query){.source_cap = 5})->n, 15);
    assert_int_equal(read_all(f, (struct store_example_query){.source_cap = 15, .group_cap = 8})->n, 8 + 15 + 10);
    assert_int_equal(read_all(f, (struct store_example_query){.newest = 7})->n, 7);
}

/* A day is one of UTC; each app and source has days of its own. */
static void test_a_day_has_its_cap(void **state) {
    static const int64_t day = 86400000;
    static const int64_t times[] = {day, day + 1, 2 * day - 1, 2 * day, 2 * day + 1, 3 * day - 1, 3 * day, 3 * day + 1};
    struct fixture *f = *state;
    char prompt[64], response[8];
    for (int i = 0; i < 16; i++) {
        snprintf(response, sizeof response, "%d", i);
        snprintf(prompt, sizeof prompt, "%d times %d makes how much altogether?", i * 7919, i * 104729);
        OK(tell(f, (struct told){.prompt = prompt, .response = response, .app = i < 8 ? "mail" : "chat"}, times[i % 8],
                NULL));
    }
    assert_int_equal(read_all(f, (struct store_example_query){0})->n, 16);
    struct list *list = read_all(f, (struct store_example_query){.day_cap = 2});
    assert_int_equal(list->n, 2 * (2 + 2 + 2)); /* the oldest of the three stays out */
    for (size_t i = 0; i < list->n; i++) {
        int n = atoi(list->row[i].response) % 8;
        assert_true(n != 0 && n != 3);
    }
    assert_int_equal(read_all(f, (struct store_example_query){.day_cap = 1})->n, 6);
    /* what a full day leaves out takes no place of its source's */
    assert_int_equal(read_all(f, (struct store_example_query){.day_cap = 1, .source_cap = 3})->n, 6);
    assert_int_equal(read_all(f, (struct store_example_query){.day_cap = 2, .source_cap = 3})->n, 6);
}

static void test_incremental(void **state) {
    struct fixture *f = *state;
    int64_t left = -1, mark = -1;
    attune_uuid id;
    OK(tell(f, (struct told){.prompt = original, .response = "1"}, 1, &id));
    OK(tell(f, (struct told){.prompt = unrelated, .response = "2"}, 2, NULL));
    OK(store_derive_left(f->store, &left, &f->err));
    assert_int_equal(left, 2);
    assert_int_equal(count_of(f, 0), 2);
    OK(store_derive_left(f->store, &left, &f->err));
    assert_int_equal(left, 0);
    OK(store_mark_get(f->store, "derived", &mark, &f->err));
    assert_int_equal(mark, 2);
    OK(feedback(f->store, &id, ATTUNE_FEEDBACK_THUMB, -1, NULL, &f->err));
    OK(attune_store_flush(f->store, &f->err));
    OK(store_derive_left(f->store, &left, &f->err));
    assert_int_equal(left, 1);
    assert_int_equal(count_of(f, 0), 1);
    OK(store_maintain(f->store, 0, &f->err));
    OK(store_derive_left(f->store, &left, &f->err));
    assert_int_equal(left, 0);
}

/* One row that cannot be read any more costs itself alone. */
static void test_a_damaged_row(void **state) {
    struct fixture *f = *state;
    attune_forget_result result;
    attune_filter filter;
    ATTUNE_INIT(result);
    ATTUNE_INIT(filter);
    OK(tell(f, (struct told){.prompt = original, .response = "1"}, 1, NULL));
    OK(tell(f, (struct told){.prompt = unrelated, .response = "2"}, 2, NULL));
    OK(store_exec(f->store, "UPDATE interaction SET messages = '[{' WHERE id = 1", "test", &f->err));
    assert_int_equal(count_of(f, 0), 1);
    OK(store_maintain(f->store, 0, &f->err));
    OK(attune_store_forget(f->store, &filter, &result, &f->err));
    assert_int_equal(result.interactions, 2);
    assert_int_equal(count_interactions(f), 0);
}

static void test_consumed(void **state) {
    struct fixture *f = *state;
    struct store_run run = {.id = "x", .state = "unfinished"};
    struct store_run_example used = {.position = 0};
    attune_adapter_info adapter;
    OK(tell(f, (struct told){.prompt = original, .response = "1"}, 1, NULL));
    OK(tell(f, (struct told){.prompt = unrelated, .response = "2"}, 2, NULL));
    strcpy(used.content_hash, read_all(f, (struct store_example_query){0})->row[0].content_hash);
    OK(store_run_begin(f->store, &run, &used, 1, &f->err));
    assert_int_equal(read_all(f, (struct store_example_query){.only_new = 1})->n, 2);
    strcpy(run.state, "published");
    run.adapter = 1;
    OK(store_run_update(f->store, &run, &f->err));
    ATTUNE_INIT(adapter);
    adapter.number = 1;
    strcpy(adapter.state, "active");
    strcpy(adapter.origin, "trained");
    OK(store_adapter_put(f->store, &adapter, run.number, &f->err));
    struct list *list = read_all(f, (struct store_example_query){.only_new = 1});
    assert_int_equal(list->n, 1);
    assert_string_equal(list->row[0].response, "2");
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, store_setup, store_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_tiers_and_sensitivity),
        TEST(test_edit_with_a_secret),
        TEST(test_the_apps_own_search),
        TEST(test_pair_of_an_edit),
        TEST(test_pairs_of_regenerations),
        TEST(test_thumbs_and_weights),
        TEST(test_near_duplicates_share_a_side),
        TEST(test_groups_as_if_never_seen),
        TEST(test_caps),
        TEST(test_a_day_has_its_cap),
        TEST(test_incremental),
        TEST(test_a_damaged_row),
        TEST(test_consumed),
    };
    return cmocka_run_group_tests_name("derive", tests, NULL, NULL);
}
