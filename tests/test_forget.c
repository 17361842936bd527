/* Forgetting and consent: which rows go, what is revoked with them, and that dying half way through loses nothing. */
#include "tests/canary.h"

#include <pthread.h>
#include <signal.h>

#include "datastore/derive.h"
#include "datastore/home_files.h"
#include "datastore/search.h"

/* ---- shorthands ---- */

static attune_filter any(void) {
    attune_filter filter;
    ATTUNE_INIT(filter);
    return filter;
}
static attune_filter by_app(const char *app) {
    attune_filter filter = any();
    filter.app = app;
    return filter;
}

static attune_forget_result forget(struct fixture *f, attune_filter filter) {
    attune_forget_result result;
    ATTUNE_INIT(result);
    OK(attune_store_forget(f->store, &filter, &result, &f->err));
    return result;
}

struct told {
    const char *app, *session, *prompt, *response;
    int64_t time_ms;
    int no_consent;
};
static attune_uuid tell(struct fixture *f, struct told told) {
    attune_interaction interaction;
    attune_uuid id;
    ATTUNE_INIT(interaction);
    interaction.app = told.app;
    interaction.session = told.session;
    interaction.prompt = told.prompt;
    interaction.response = told.response ? told.response : "an answer";
    interaction.time_ms = told.time_ms;
    interaction.consent = told.no_consent ? ATTUNE_CONSENT_NOT_GIVEN : ATTUNE_CONSENT_HOME;
    OK(attune_store_record(f->store, &interaction, &id, &f->err));
    OK(attune_store_flush(f->store, &f->err));
    return id;
}

/* A file below the home, its folder made. */
static void make_file(struct fixture *f, const char *name) {
    char folder[160];
    snprintf(folder, sizeof folder, "%s/%s", f->home, name);
    *strrchr(folder, '/') = '\0';
    mkdir(folder, 0700);
    write_file(f, name, "GGUF", 4);
}
static int is_there(struct fixture *f, const char *name) { return access(in_home(f, name), F_OK) == 0; }

static char *const shas[] = {"",
                             "1111111111111111111111111111111111111111111111111111111111111111",
                             "2222222222222222222222222222222222222222222222222222222222222222",
                             "3333333333333333333333333333333333333333333333333333333333333333",
                             "4444444444444444444444444444444444444444444444444444444444444444",
                             "5555555555555555555555555555555555555555555555555555555555555555"};

/* ---- runs and adapters ---- */

/* An unfinished run over the examples of these interactions; their lineage is by id, or by content hash alone. */
static struct store_run begin_run(struct fixture *f, const char *id, const attune_uuid *const *rows, size_t n,
                                  int held_out, int by_hash) {
    struct store_run run = {.state = "unfinished"};
    struct store_run_example used[16];
    struct rows all;
    examples(f, &all);
    memset(used, 0, sizeof used);
    snprintf(run.id, sizeof run.id, "%s", id);
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        char query[120];
        snprintf(query, sizeof query, "SELECT id FROM interaction WHERE uuid = '%s'", rows[i]->text);
        int64_t row = query_number(f, query);
        for (size_t j = 0; j < all.n; j++) {
            if (all.row[j].interaction != row) continue;
            memcpy(used[k].content_hash, all.row[j].content_hash, 65);
            used[k].interaction = by_hash ? 0 : row;
            used[k].held_out = held_out;
            used[k].position = (int64_t)k;
            k++;
        }
    }
    assert_true(k == n);
    run.examples = (int64_t)n;
    OK(store_run_begin(f->store, &run, used, k, &f->err));
    return run;
}

/* With its file. run 0: imported. */
static void put_adapter(struct fixture *f, int number, int parent, int64_t run, const char *state) {
    attune_adapter_info info;
    char name[32];
    ATTUNE_INIT(info);
    info.number = number;
    info.parent = parent;
    snprintf(info.state, sizeof info.state, "%s", state);
    snprintf(info.sha256, sizeof info.sha256, "%s", shas[number]);
    strcpy(info.origin, run ? "trained" : "imported");
    OK(store_adapter_put(f->store, &info, run, &f->err));
    snprintf(name, sizeof name, "adapters/%d.gguf", number);
    make_file(f, name);
}

struct swap {
    struct fixture *f;
    int number, calls, code;
};
static int swap_current(void *user, attune_error *err) {
    struct swap *swap = user;
    swap->calls++;
    if (swap->code) return error_set(err, swap->code, NULL, "the swap failed");
    return store_current_write(swap->f->home, swap->number, shas[swap->number], err);
}

static void publish(struct fixture *f, const struct store_run *run, int number, int parent) {
    struct swap swap = {.f = f, .number = number};
    put_adapter(f, number, parent, run->number, "candidate");
    OK(store_publish(f->store, run, number, swap_current, &swap, &f->err));
    assert_int_equal(swap.calls, 1);
}

/* Rows -> run -> adapter `number`, active. */
static struct store_run learn(struct fixture *f, int number, int parent, const attune_uuid *row) {
    char id[16];
    snprintf(id, sizeof id, "%06d-run", number);
    struct store_run run = begin_run(f, id, &row, 1, 0, 0);
    run.parent = parent;
    publish(f, &run, number, parent);
    return run;
}

static const char *adapter_state(struct fixture *f, int number) {
    static attune_adapter_info info;
    ATTUNE_INIT(info);
    OK(store_adapter_get(f->store, number, &info, &f->err));
    return info.state;
}
static void assert_current(struct fixture *f, int wanted) {
    int number = -1;
    char sha256[65];
    OK(store_current_read(f->home, &number, sha256, NULL, &f->err));
    assert_int_equal(number, wanted);
    assert_string_equal(sha256, shas[wanted]);
    assert_int_equal(query_number(f, "SELECT coalesce(max(number), 0) FROM adapter WHERE state = 'active'"), wanted);
}
static const char *run_state(struct fixture *f) {
    static struct store_run run;
    OK(store_run_last(f->store, NULL, &run, &f->err));
    return run.state;
}
static int64_t new_examples(struct fixture *f) {
    int64_t n = -1;
    OK(store_maintain(f->store, 0, &f->err));
    OK(store_counts(f->store, NULL, NULL, NULL, &n, &f->err));
    return n;
}

/* ---- which rows ---- */

static void tell_some(struct fixture *f, attune_uuid ids[6]) {
    static const struct told told[6] = {{"mail", "one", "write to Anna about the ferry", "dear Anna", 1000, 0},
                                        {"mail", "two", "write to Björn", "dear BJÖRN, about the Ferry", 2000, 0},
                                        {"chat", "one", "what is a fjord", "a valley", 3000, 0},
                                        {"chat", "two", "what is a moraine", "debris", 4000, 0},
                                        {"chat", "two", "and an esker", "a ridge", 5000, 0},
                                        {"chat", "three", "and a drumlin", "a hill", 6000, 0}};
    for (int i = 0; i < 6; i++) ids[i] = tell(f, told[i]);
    OK(feedback(f->store, &ids[5], ATTUNE_FEEDBACK_EDIT, 0, "a hill that a glacier left", &f->err));
    OK(feedback(f->store, &ids[5], ATTUNE_FEEDBACK_THUMB, 1, NULL, &f->err));
}

/* Exactly these are left, told by their numbers. */
static void assert_left(struct fixture *f, const attune_uuid ids[6], const char *left) {
    for (int i = 0; i < 6; i++) {
        char query[120];
        snprintf(query, sizeof query, "SELECT count(*) FROM interaction WHERE uuid = '%s'", ids[i].text);
        if (query_number(f, query) != (strchr(left, '0' + i) != NULL))
            fail_msg("interaction %d, where %s should be left", i, left);
    }
    assert_sound(f);
}

static void filtered(struct fixture *f, attune_filter filter, const char *left) {
    attune_uuid ids[6];
    tell_some(f, ids);
    const char *named[] = {ids[1].text, ids[4].text};
    if (filter.n_ids) filter.ids = named;
    attune_forget_result result = forget(f, filter);
    assert_int_equal(result.interactions, 6 - (int)strlen(left));
    assert_int_equal(result.scrub_pending, 0);
    assert_left(f, ids, left);
    result = forget(f, any());
    assert_int_equal(result.interactions, strlen(left));
    assert_int_equal(count_interactions(f), 0);
}

static void test_filters(void **state) {
    struct fixture *f = *state;
    attune_filter filter = any();
    filtered(f, any(), "");
    filtered(f, by_app("mail"), "2345");
    filter.session = "two";
    filtered(f, filter, "025");
    filter.app = "chat";
    filtered(f, filter, "0125");
    filter = any();
    filter.since_ms = 3000;
    filtered(f, filter, "01");
    filter.until_ms = 5000;
    filtered(f, filter, "0145");
    filter = any();
    filter.match = "ferry";
    filtered(f, filter, "2345");
    filter.match = "björn FERRY";
    filtered(f, filter, "02345");
    filter.match = "glacier";
    filtered(f, filter, "01234");
    filter = any();
    filter.n_ids = 2;
    filtered(f, filter, "0235");
    filter.app = "mail";
    filtered(f, filter, "02345");
    filtered(f, by_app("nobody"), "012345");
}

static void test_counts(void **state) {
    struct fixture *f = *state;
    attune_uuid ids[6];
    tell_some(f, ids);
    OK(store_maintain(f->store, 0, &f->err));
    int64_t derived = query_number(f, "SELECT count(*) FROM example");
    attune_filter filter = any();
    filter.session = "three";
    attune_forget_result result = forget(f, filter);
    assert_int_equal(result.interactions, 1);
    assert_int_equal(result.feedback, 2);
    assert_int_equal(result.examples, derived - query_number(f, "SELECT count(*) FROM example"));
    assert_true(result.examples >= 2); /* the edit, and that it is preferred */
    assert_true(result.adapters_revoked == 0 && result.active_before == 0 && result.active_after == 0);
    assert_int_equal(query_number(f, "SELECT count(*) FROM feedback"), 0);
    assert_int_equal(query_number(f, "SELECT count(*) FROM near WHERE interaction NOT IN (SELECT id FROM interaction)"),
                     0);
    assert_int_equal(query_number(f, "SELECT count(*) FROM audit WHERE event = 'forget' AND "
                                     "detail LIKE 'interactions 1, feedback 2, examples %'"),
                     1);
}

static void test_refusals(void **state) {
    struct fixture *f = *state;
    attune_uuid ids[6];
    tell_some(f, ids);
    attune_filter filter = any();
    FAILS(attune_store_forget(NULL, &filter, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "NULL", "");
    FAILS(attune_store_forget(f->store, NULL, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "ATTUNE_INIT", "");
    filter.limit = 3;
    FAILS(attune_store_forget(f->store, &filter, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "limit", "");
    filter = any();
    filter.oldest_first = 1;
    FAILS(attune_store_forget(f->store, &filter, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "order", "");
    filter = any();
    const char *named[] = {ids[0].text, "0190a6b0-0000-7000-8000-000000000000"};
    filter.ids = named;
    filter.n_ids = 2;
    FAILS(attune_store_forget(f->store, &filter, NULL, &f->err), ATTUNE_ERROR_NOT_FOUND, "0190a6b0", "");
    filter = any();
    filter.match = "?!";
    FAILS(attune_store_forget(f->store, &filter, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "word", "");
    filter = any();
    OK(attune_store_suspend(f->store, &f->err));
    FAILS(attune_store_forget(f->store, &filter, NULL, &f->err), ATTUNE_ERROR_STATE, "suspended", "");
    OK(attune_store_resume(f->store, &f->err));
    assert_left(f, ids, "012345");
    OK(attune_store_forget(f->store, &filter, NULL, &f->err)); /* nobody has to want the result */
    assert_int_equal(count_interactions(f), 0);
}

/* What waits in the queue of this handle is recorded, too. */
static void test_queued(void **state) {
    struct fixture *f = *state;
    attune_interaction interaction;
    attune_feedback thumb;
    ATTUNE_INIT(interaction);
    ATTUNE_INIT(thumb);
    interaction.prompt = "still queued";
    interaction.response = "yes";
    thumb.kind = ATTUNE_FEEDBACK_THUMB;
    thumb.value = 1;
    OK(attune_store_record(f->store, &interaction, NULL, &f->err));
    OK(attune_store_feedback(f->store, "0190a6b0-0000-7000-8000-000000000000", &thumb, &f->err));
    assert_int_equal(forget(f, any()).interactions, 1);
    assert_int_equal(count_interactions(f), 0);
}

/* SQLite gives the largest ids again: what comes later is looked at as new. */
static void test_ids_given_again(void **state) {
    struct fixture *f = *state;
    attune_uuid ids[6];
    int64_t *found = NULL, left = -1;
    size_t n = 0;
    tell_some(f, ids);
    OK(store_maintain(f->store, 0, &f->err));
    forget(f, by_app("chat"));
    tell(f, (struct told){"new", "", "a question of chocolate", "sweet", 7000, 0});
    tell(f, (struct told){"new", "", "a question of salt", "salty", 8000, 0});
    OK(store_derive_left(f->store, &left, &f->err));
    assert_int_equal(left, 2);
    assert_int_equal(new_examples(f), 4);
    OK(store_search(f->store, "chocolate", &found, &n, &f->err));
    assert_int_equal(n, 1);
    free(found);
    OK(store_search(f->store, "moraine", &found, &n, &f->err));
    assert_int_equal(n, 0);
    free(found);
}

/* ---- what is revoked ---- */

static void test_revoked_with_descendants(void **state) {
    struct fixture *f = *state;
    attune_uuid ids[6];
    tell_some(f, ids);
    learn(f, 1, 0, &ids[0]);
    learn(f, 2, 1, &ids[2]); /* of the app chat */
    learn(f, 3, 2, &ids[1]);
    put_adapter(f, 4, 0, 0, "candidate"); /* imported */
    struct store_run run = begin_run(f, "aside", (const attune_uuid *[]){&ids[3]}, 1, 0, 0);
    put_adapter(f, 5, 1, run.number, "rejected");
    assert_current(f, 3);
    make_file(f, "cache/merged.gguf");
    assert_int_equal(new_examples(f), 3);
    attune_filter filter = any();
    filter.session = "one";
    filter.app = "chat";
    attune_forget_result result = forget(f, filter);
    assert_int_equal(result.interactions, 1);
    assert_int_equal(result.adapters_revoked, 2);
    assert_true(result.active_before == 3 && result.active_after == 1);
    assert_string_equal(adapter_state(f, 2), "revoked");
    assert_string_equal(adapter_state(f, 3), "revoked");
    assert_string_equal(adapter_state(f, 4), "candidate");
    assert_string_equal(adapter_state(f, 5), "rejected");
    assert_string_equal(run_state(f), "unfinished");
    assert_current(f, 1);
    assert_true(is_there(f, "adapters/1.gguf") && is_there(f, "adapters/4.gguf") && is_there(f, "adapters/5.gguf"));
    assert_false(is_there(f, "adapters/2.gguf") || is_there(f, "adapters/3.gguf") || is_there(f, "cache/merged.gguf"));
    /* What adapter 3 alone had learned is new again, what 1 has is not. */
    assert_int_equal(new_examples(f), 4);
    FAILS(store_adapter_activate(f->store, 2, &f->err), ATTUNE_ERROR_STATE, "revoked", "");
    FAILS(store_adapter_state_set(f->store, 3, "retired", &f->err), ATTUNE_ERROR_STATE, "revoked", "");
    OK(store_adapter_state_set(f->store, 3, "revoked", &f->err));
    assert_int_equal(query_number(f, "SELECT count(*) FROM audit WHERE event = 'revoke'"), 1);
    assert_sound(f);
    /* The others of chat: adapter 5 and the run that is under way. */
    result = forget(f, by_app("chat"));
    assert_true(result.adapters_revoked == 1 && result.active_before == 1 && result.active_after == 1);
    assert_string_equal(adapter_state(f, 5), "revoked");
    assert_string_equal(run_state(f), "failed");
}

/* Over the parent of the adapter, or of its run, whichever says so. */
static void test_long_descent(void **state) {
    struct fixture *f = *state;
    attune_uuid ids[6];
    tell_some(f, ids);
    struct store_run run = begin_run(f, "1", (const attune_uuid *[]){&ids[0]}, 1, 0, 0);
    publish(f, &run, 5, 0); /* the numbers fall, so that one look over the rows is not enough */
    for (int i = 4; i >= 1; i--) {
        char id[8];
        snprintf(id, sizeof id, "run%d", i);
        run = begin_run(f, id, (const attune_uuid *[]){&ids[i]}, 1, 0, 0);
        run.parent = i % 2 ? i + 1 : 0;
        publish(f, &run, i, i % 2 ? 0 : i + 1);
    }
    const char *named[] = {ids[0].text};
    attune_filter filter = any();
    filter.ids = named;
    filter.n_ids = 1;
    attune_forget_result result = forget(f, filter);
    assert_true(result.adapters_revoked == 5 && result.active_before == 1 && result.active_after == 0);
    assert_current(f, 0);
}

/* A preference of an edit that was replaced: neither its texts nor its hash can be found again, only the lineage
 * tells. */
static void test_lineage_by_id_alone(void **state) {
    struct fixture *f = *state;
    struct store_example_query query = {.kind = STORE_EXAMPLE_PREFERENCE};
    struct store_run run = {.id = "r", .state = "unfinished"};
    struct store_run_example used = {.position = 0};
    struct rows rows = {0};
    attune_uuid id = tell(f, (struct told){"a", "", "a prompt", NULL, 1, 0});
    OK(feedback(f->store, &id, ATTUNE_FEEDBACK_EDIT, 0, "an edit", &f->err));
    OK(store_examples(f->store, &query, collect, &rows, &f->err));
    assert_int_equal(rows.n, 1);
    memcpy(used.content_hash, rows.row[0].content_hash, 65);
    used.interaction = rows.row[0].interaction;
    used.other = rows.row[0].other;
    OK(store_run_begin(f->store, &run, &used, 1, &f->err));
    publish(f, &run, 1, 0);
    OK(feedback(f->store, &id, ATTUNE_FEEDBACK_EDIT, 0, "another edit", &f->err));
    OK(store_maintain(f->store, 0, &f->err));
    assert_int_equal(forget(f, any()).adapters_revoked, 1);
    assert_current(f, 0);
}

static void lineage(struct fixture *f, int held_out, int by_hash, int edited, int duplicate) {
    attune_uuid ids[2], forgotten;
    ids[0] = tell(f, (struct told){"keep", "", "a prompt that stays", NULL, 1, 0});
    ids[1] = tell(f, (struct told){"lose", "", "a prompt that goes", NULL, 2, 0});
    if (edited) OK(feedback(f->store, &ids[1], ATTUNE_FEEDBACK_EDIT, 0, "an answer edited", &f->err));
    struct store_run run = begin_run(f, "r", (const attune_uuid *[]){&ids[0], &ids[1]}, 2, held_out, by_hash);
    publish(f, &run, 1, 0);
    /* The edit that was learned is replaced by another one. */
    if (edited) OK(feedback(f->store, &ids[1], ATTUNE_FEEDBACK_EDIT, 0, "an answer edited again", &f->err));
    if (edited) OK(store_maintain(f->store, 0, &f->err));
    forgotten = ids[1];
    if (duplicate) forgotten = tell(f, (struct told){"copy", "", "a prompt that goes", NULL, 9, 0});
    const char *named[] = {forgotten.text};
    attune_filter filter = any();
    filter.ids = named;
    filter.n_ids = 1;
    attune_forget_result result = forget(f, filter);
    assert_true(result.adapters_revoked == 1 && result.active_before == 1 && result.active_after == 0);
    assert_current(f, 0);
    assert_false(is_there(f, "adapters/1.gguf"));
    assert_int_equal(query_number(f, "SELECT count(*) FROM run_example"), 2); /* the length of the lineage stays */
    assert_int_equal(query_number(f, "SELECT count(*) FROM run_example WHERE content_hash IN "
                                     "(SELECT lower(hex(hash)) FROM tombstone)"),
                     1);
    assert_int_equal(query_number(f, "SELECT count(*) FROM run_interaction WHERE interaction NOT IN "
                                     "(SELECT id FROM interaction)"),
                     0);
    assert_sound(f);
}

static void test_lineage_by_id(void **state) { lineage(*state, 0, 0, 0, 0); }
static void test_lineage_held_out(void **state) { lineage(*state, 1, 0, 0, 0); }
static void test_lineage_by_hash(void **state) { lineage(*state, 0, 1, 0, 0); }
static void test_lineage_by_edit(void **state) { lineage(*state, 0, 1, 1, 0); }
static void test_lineage_by_duplicate(void **state) { lineage(*state, 0, 0, 0, 1); }

/* ---- CURRENT ---- */

static void test_nearest_ancestor_that_can_serve(void **state) {
    struct fixture *f = *state;
    attune_uuid ids[6];
    tell_some(f, ids);
    learn(f, 1, 0, &ids[0]);
    learn(f, 2, 1, &ids[1]);
    learn(f, 3, 2, &ids[2]);
    learn(f, 4, 3, &ids[3]);
    assert_int_equal(unlink(in_home(f, "adapters/3.gguf")), 0);
    OK(store_adapter_state_set(f->store, 2, "rejected", &f->err));
    attune_filter filter = any();
    filter.match = "moraine";
    attune_forget_result result = forget(f, filter);
    assert_true(result.active_before == 4 && result.active_after == 1 && result.adapters_revoked == 1);
    assert_current(f, 1);
}

static void test_inactive_adapter(void **state) {
    struct fixture *f = *state;
    attune_uuid ids[6];
    tell_some(f, ids);
    learn(f, 1, 0, &ids[0]);
    struct store_run run = begin_run(f, "fresh", (const attune_uuid *[]){&ids[2]}, 1, 0, 0);
    publish(f, &run, 2, 0);
    assert_int_equal(forget(f, by_app("mail")).adapters_revoked, 1);
    assert_string_equal(adapter_state(f, 1), "revoked");
    assert_current(f, 2);
}

static void damaged_current(struct fixture *f, const char *text) {
    attune_uuid ids[6];
    int number;
    tell_some(f, ids);
    learn(f, 1, 0, &ids[0]);
    begin_run(f, "under way", (const attune_uuid *[]){&ids[2]}, 1, 0, 0);
    write_file(f, "CURRENT", text, strlen(text));
    forget(f, by_app("chat")); /* ends the run, but revokes nothing: CURRENT is none of its business */
    assert_string_equal(run_state(f), "failed");
    if (text[0] == '9') {
        OK(store_current_read(f->home, &number, NULL, NULL, &f->err));
        assert_int_equal(number, 9);
    } else {
        FAILS(store_current_read(f->home, &number, NULL, NULL, &f->err), ATTUNE_ERROR_FORMAT, "damaged", "CURRENT");
    }
    assert_int_equal(forget(f, by_app("mail")).adapters_revoked, 1);
    assert_current(f, 0);
}

static void test_damaged_current(void **state) { damaged_current(*state, "1 11"); }
static void test_current_of_nobody(void **state) {
    damaged_current(*state, "9 9999999999999999999999999999999999999999999999999999999999999999\n");
}

/* ---- runs under way ---- */

static void test_unfinished_run(void **state) {
    struct fixture *f = *state;
    attune_uuid ids[6];
    int alive = -1;
    tell_some(f, ids);
    struct store_run run = begin_run(f, "11aa22bb", (const attune_uuid *[]){&ids[2], &ids[0]}, 2, 0, 0);
    OK(store_run_alive(f->store, run.number, &alive, &f->err));
    assert_int_equal(alive, 1);
    make_file(f, "checkpoint.gguf");
    make_file(f, ".checkpoint.gguf.12-3.tmp");
    make_file(f, "adapters/1.gguf"); /* of nobody that is known */
    write_file(f, "adapters/2.gguf", "GGUF of the run 11aa22bb.", 25);
    write_file(f, "adapters/.3.gguf.12-4.tmp", "GGUF of the run 11aa22bb.", 25);
    attune_filter filter = any();
    filter.session = "three";
    assert_int_equal(forget(f, filter).interactions, 1); /* none of its rows */
    assert_true(is_there(f, "checkpoint.gguf"));
    OK(store_run_alive(f->store, run.number, &alive, &f->err));
    assert_int_equal(alive, 1);
    attune_forget_result result = forget(f, by_app("mail"));
    assert_true(result.adapters_revoked == 0 && result.interactions == 2);
    assert_false(is_there(f, "checkpoint.gguf") || is_there(f, ".checkpoint.gguf.12-3.tmp") ||
                 is_there(f, "adapters/2.gguf") || is_there(f, "adapters/.3.gguf.12-4.tmp"));
    assert_true(is_there(f, "adapters/1.gguf"));
    OK(store_run_alive(f->store, run.number, &alive, &f->err));
    assert_int_equal(alive, 0);
    struct store_run out;
    OK(store_run_last(f->store, "failed", &out, &f->err));
    assert_string_equal(out.reason, "rows that it learns from were forgotten");
    assert_true(out.ended_ms > 0);

    /* Its process, which does not know yet, gets nowhere. */
    struct swap swap = {.f = f, .number = 1};
    attune_adapter_info info;
    FAILS(store_publish(f->store, &run, 1, swap_current, &swap, &f->err), ATTUNE_ERROR_STATE, "forgotten", "store.db");
    FAILS(store_while_unfinished(f->store, run.number, swap_current, &swap, &f->err), ATTUNE_ERROR_STATE, "forgotten",
          "store.db");
    assert_int_equal(swap.calls, 0);
    FAILS(store_run_update(f->store, &run, &f->err), ATTUNE_ERROR_STATE, "forgotten", "store.db");
    ATTUNE_INIT(info);
    info.number = 1;
    strcpy(info.state, "candidate");
    strcpy(info.origin, "trained");
    FAILS(store_adapter_put(f->store, &info, run.number, &f->err), ATTUNE_ERROR_STATE, "forgotten", "store.db");
    strcpy(run.state, "failed");
    OK(store_run_update(f->store, &run, &f->err));
}

/* Runs that hold none of the rows, but start from or have to beat what is revoked. */
static void upon_revoked(struct fixture *f, int parent, const char *configuration, const char *state) {
    attune_uuid ids[6];
    tell_some(f, ids);
    learn(f, 1, 0, &ids[0]);
    struct store_run run = {.id = "upon", .state = "unfinished", .parent = parent};
    snprintf(run.configuration, sizeof run.configuration, "%s", configuration);
    OK(store_run_begin(f->store, &run, NULL, 0, &f->err));
    forget(f, by_app("mail"));
    assert_string_equal(run_state(f), state);
}
static void test_run_from_revoked(void **state) { upon_revoked(*state, 1, "", "failed"); }
static void test_run_against_revoked(void **state) { upon_revoked(*state, 0, "{\"opponent\": 1}", "failed"); }
static void test_run_aside(void **state) { upon_revoked(*state, 0, "{\"opponent\": 0}", "unfinished"); }

static void test_beginning_a_run_too_late(void **state) {
    struct fixture *f = *state;
    attune_uuid ids[6];
    struct rows rows;
    tell_some(f, ids);
    learn(f, 1, 0, &ids[0]);
    examples(f, &rows);
    struct store_run run = {.id = "late", .state = "unfinished"};
    struct store_run_example used = {.interaction = rows.row[2].interaction};
    memcpy(used.content_hash, rows.row[2].content_hash, 65);
    forget(f, by_app("chat"));
    tell(f, (struct told){"other", "", "takes the id of a row that has gone", NULL, 1, 0});
    FAILS(store_run_begin(f->store, &run, &used, 1, &f->err), ATTUNE_ERROR_STATE, "plan again", "store.db");
    forget(f, by_app("mail"));
    run.parent = 1;
    FAILS(store_run_begin(f->store, &run, NULL, 0, &f->err), ATTUNE_ERROR_STATE, "revoked", "store.db");
    run.parent = 0;
    OK(store_run_begin(f->store, &run, NULL, 0, &f->err));
}

static void test_publishing(void **state) {
    struct fixture *f = *state;
    attune_uuid ids[6];
    tell_some(f, ids);
    assert_int_equal(new_examples(f), 6);
    struct store_run run = learn(f, 1, 0, &ids[0]);
    assert_current(f, 1);
    assert_int_equal(new_examples(f), 5);
    assert_string_equal(run_state(f), "published");
    struct swap swap = {.f = f, .number = 1};
    FAILS(store_publish(f->store, &run, 1, swap_current, &swap, &f->err), ATTUNE_ERROR_STATE, "", "store.db");
    assert_int_equal(swap.calls, 0);
    /* Choosing one again. */
    swap.number = 0;
    OK(store_publish(f->store, NULL, 0, swap_current, &swap, &f->err));
    assert_current(f, 0);
    FAILS(store_publish(f->store, NULL, 3, swap_current, &swap, &f->err), ATTUNE_ERROR_NOT_FOUND, "adapter 3", "");
    /* A swap that fails leaves everything as it was. */
    run = begin_run(f, "two", (const attune_uuid *[]){&ids[1]}, 1, 0, 0);
    put_adapter(f, 2, 1, run.number, "candidate");
    swap = (struct swap){.f = f, .number = 2, .code = ATTUNE_ERROR_IO};
    FAILS(store_publish(f->store, &run, 2, swap_current, &swap, &f->err), ATTUNE_ERROR_IO, "swap", "");
    assert_string_equal(run_state(f), "unfinished");
    assert_string_equal(adapter_state(f, 2), "candidate");
    assert_int_equal(new_examples(f), 5);
    FAILS(store_while_unfinished(f->store, run.number, swap_current, &swap, &f->err), ATTUNE_ERROR_IO, "swap", "");
    swap.code = 0;
    OK(store_while_unfinished(f->store, run.number, swap_current, &swap, &f->err));
    forget(f, by_app("mail"));
    swap.calls = 0;
    FAILS(store_publish(f->store, NULL, 1, swap_current, &swap, &f->err), ATTUNE_ERROR_STATE, "revoked", "");
    assert_int_equal(swap.calls, 0);
    attune_adapter_info info;
    OK(store_adapter_get(f->store, 1, &info, &f->err));
    strcpy(info.state, "active");
    FAILS(store_adapter_put(f->store, &info, 0, &f->err), ATTUNE_ERROR_STATE, "revoked", "");
}

/* Used by a run whose adapter stands and by one that is revoked: not new. */
static void test_used_twice(void **state) {
    struct fixture *f = *state;
    attune_uuid ids[6];
    tell_some(f, ids);
    learn(f, 1, 0, &ids[2]);
    struct store_run run = begin_run(f, "both", (const attune_uuid *[]){&ids[2], &ids[0]}, 2, 0, 0);
    publish(f, &run, 2, 0);
    assert_int_equal(new_examples(f), 4);
    assert_int_equal(query_number(f, "SELECT count(*) FROM example WHERE run = 2"), 2);
    forget(f, by_app("mail"));
    assert_int_equal(new_examples(f), 3); /* of the four of chat, one is adapter 1's */
    assert_int_equal(query_number(f, "SELECT count(*) FROM example WHERE run = 1"), 1);
}

/* ---- consent ---- */

static attune_forget_result consent(struct fixture *f, int given, const attune_filter *filter) {
    attune_forget_result result;
    ATTUNE_INIT(result);
    OK(attune_store_consent(f->store, given, filter, &result, &f->err));
    return result;
}

static void test_consent_of_rows(void **state) {
    struct fixture *f = *state;
    attune_uuid ids[6];
    int given = -1;
    tell_some(f, ids);
    tell(f, (struct told){"none", "", "what is a fjord", "a valley", 9000, 1}); /* as one of chat, never consented */
    learn(f, 1, 0, &ids[0]);
    learn(f, 2, 1, &ids[2]);
    make_file(f, "cache/merged.gguf");
    assert_int_equal(new_examples(f), 4);
    attune_filter filter = by_app("none");
    attune_forget_result result = consent(f, 0, &filter); /* it changes nothing, so it revokes nothing */
    assert_true(result.interactions == 0 && result.adapters_revoked == 0);
    assert_current(f, 2);
    filter = by_app("chat");
    result = consent(f, 0, &filter);
    assert_int_equal(result.interactions, 4);
    assert_true(result.adapters_revoked == 1 && result.active_before == 2 && result.active_after == 1);
    assert_true(result.examples >= 4);
    assert_current(f, 1);
    assert_false(is_there(f, "adapters/2.gguf") || is_there(f, "cache/merged.gguf"));
    assert_int_equal(count_interactions(f), 7);
    assert_int_equal(new_examples(f), 1); /* the other one of mail */
    assert_int_equal(query_number(f, "SELECT count(*) FROM interaction WHERE consent = 1"), 2);
    OK(store_consent_get(f->store, &given, &f->err));
    assert_int_equal(given, 1);
    result = consent(f, 0, &filter);
    assert_int_equal(result.interactions, 0);
    filter.session = "two";
    result = consent(f, 1, &filter);
    assert_true(result.interactions == 2 && result.adapters_revoked == 0);
    assert_int_equal(new_examples(f), 3);
    assert_string_equal(adapter_state(f, 2), "revoked");
    assert_int_equal(query_number(f, "SELECT count(*) FROM audit WHERE event = 'consent' AND detail LIKE 'given: %'"),
                     1);
    assert_sound(f);
}

static void test_consent_of_all(void **state) {
    struct fixture *f = *state;
    attune_uuid ids[6];
    int given = -1;
    tell_some(f, ids);
    learn(f, 1, 0, &ids[0]);
    struct store_run run = begin_run(f, "under way", (const attune_uuid *[]){&ids[3]}, 1, 0, 0);
    attune_forget_result result = consent(f, 0, NULL);
    assert_true(result.interactions == 6 && result.adapters_revoked == 1);
    assert_current(f, 0);
    struct store_run out;
    OK(store_run_last(f->store, "failed", &out, &f->err));
    assert_true(out.number == run.number && strstr(out.reason, "withdrawn"));
    OK(store_consent_get(f->store, &given, &f->err));
    assert_int_equal(given, 0);
    assert_int_equal(new_examples(f), 0);
    tell(f, (struct told){"mail", "", "after that", NULL, 1, 0});
    assert_int_equal(new_examples(f), 0);
    result = consent(f, 1, NULL); /* of what comes from now on */
    assert_int_equal(result.interactions, 0);
    OK(store_consent_get(f->store, &given, &f->err));
    assert_int_equal(given, 1);
    assert_int_equal(new_examples(f), 0);
    tell(f, (struct told){"mail", "", "and after this", NULL, 1, 0});
    assert_int_equal(new_examples(f), 1);
}

/* An answer that was asked for again is paired with the one that came in its stead; without its consent it is not. */
static void test_consent_of_the_rejected(void **state) {
    struct fixture *f = *state;
    struct store_example_query query = {.kind = STORE_EXAMPLE_PREFERENCE};
    struct rows rows = {0};
    attune_uuid first = tell(f, (struct told){"a", "s", "tell me a joke", "a bad one", 1, 0});
    OK(feedback(f->store, &first, ATTUNE_FEEDBACK_REGENERATE, 0, NULL, &f->err));
    tell(f, (struct told){"a", "s", "tell me a joke", "a good one", 2, 0});
    OK(store_examples(f->store, &query, collect, &rows, &f->err));
    assert_int_equal(rows.n, 1);
    const char *named[] = {first.text};
    attune_filter filter = any();
    filter.ids = named;
    filter.n_ids = 1;
    assert_int_equal(consent(f, 0, &filter).interactions, 1);
    rows.n = 0;
    OK(store_examples(f->store, &query, collect, &rows, &f->err));
    assert_int_equal(rows.n, 0);
    consent(f, 1, &filter);
    OK(store_examples(f->store, &query, collect, &rows, &f->err));
    assert_int_equal(rows.n, 1);
}

/* ---- tombstones ---- */

static attune_import_result import(struct fixture *f, const char *text, int forgotten) {
    attune_import_options options;
    attune_import_result result;
    ATTUNE_INIT(options);
    ATTUNE_INIT(result);
    options.forgotten = forgotten;
    const char *path = write_file(f, "rows.jsonl", text, strlen(text));
    OK(attune_store_import(f->store, path, &options, &result, &f->err));
    return result;
}

static void test_tombstones(void **state) {
    struct fixture *f = *state;
    static const char file[] = "{\"prompt\": \"p\", \"response\": \"r\", \"edit\": \"e\"}\n";
    static const char edited[] = "{\"prompt\": \"p\", \"response\": \"e\"}\n";
    assert_int_equal(import(f, file, 0).rows, 1);
    assert_int_equal(forget(f, any()).interactions, 1);
    assert_int_equal(import(f, file, 0).forgotten, 1);
    assert_int_equal(import(f, edited, 0).forgotten, 1); /* as an export with its edits in place has it */
    assert_int_equal(count_interactions(f), 0);
    assert_int_equal(import(f, file, 1).rows, 1);
    assert_int_equal(count_interactions(f), 1);
    tell(f, (struct told){"", "", "p2", "r2", 1, 0});
    assert_int_equal(forget(f, any()).interactions, 2);
    static const char both[] = "{\"prompt\": \"p\", \"response\": \"r\"}\n{\"prompt\": \"p2\", \"response\": \"r2\"}\n";
    assert_int_equal(import(f, both, 0).forgotten, 2);
    unlink(in_home(f, "rows.jsonl"));
}

/* ---- dying half way through ---- */

static void open_again(struct fixture *f) {
    attune_store_close(f->store);
    f->store = NULL;
    OK(store_open_path(f->home, 0, &f->store, &f->err));
}

/* In a child, at a fault: 0 when forgetting got to its end, 1 when it failed, 2 when it was killed. */
static int forget_in_a_child(struct fixture *f, const char *fault, const char *list) {
    int status;
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        attune_store *store = NULL;
        attune_filter filter = by_app("mail");
        if (store_open_path(f->home, 0, &store, NULL) != ATTUNE_OK) _exit(9);
        if (fault) setenv("ATTUNE_FAULT", fault, 1);
        if (list) setenv("ATTUNE_FAULT_LIST", list, 1);
        _exit(attune_store_forget(store, &filter, NULL, NULL) == ATTUNE_OK ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFSIGNALED(status)) return 2;
    assert_true(WEXITSTATUS(status) <= 1);
    return WEXITSTATUS(status);
}

static void a_home_to_break(struct fixture *f) {
    attune_uuid ids[6];
    tell_some(f, ids);
    learn(f, 1, 0, &ids[2]);
    learn(f, 2, 1, &ids[0]);
    learn(f, 3, 2, &ids[3]);
    begin_run(f, "under way", (const attune_uuid *[]){&ids[1], &ids[4]}, 2, 0, 0);
    make_file(f, "checkpoint.gguf");
    make_file(f, "cache/merged.gguf");
    OK(store_maintain(f->store, 0, &f->err));
}

/* Whatever was reached: what learned from rows that are gone does not serve. */
static void assert_nothing_serves_wrongly(struct fixture *f) {
    int number = -1;
    open_again(f);
    assert_sound(f);
    OK(store_current_read(f->home, &number, NULL, NULL, &f->err));
    int64_t rows = query_number(f, "SELECT count(*) FROM interaction WHERE app = 'mail'");
    int revoked = strcmp(adapter_state(f, 2), "revoked") == 0;
    assert_true(rows == 2 || revoked);
    assert_true(number == 3 || number == 1);
    if (revoked) {
        assert_int_equal(number, 1);
        assert_string_equal(adapter_state(f, 3), "revoked");
        assert_string_equal(run_state(f), "failed");
        assert_false(is_there(f, "checkpoint.gguf"));
    }
    assert_true(strcmp(adapter_state(f, 1), "revoked") != 0 && is_there(f, "adapters/1.gguf"));
}

static void assert_all_forgotten(struct fixture *f) {
    struct needles *needles = needles_new();
    attune_forget_result result = forget(f, by_app("mail"));
    assert_int_equal(result.scrub_pending, 0);
    assert_int_equal(query_number(f, "SELECT count(*) FROM interaction WHERE app = 'mail'"), 0);
    assert_nothing_serves_wrongly(f);
    assert_string_equal(adapter_state(f, 2), "revoked");
    assert_current(f, 1);
    assert_false(is_there(f, "adapters/2.gguf") || is_there(f, "adapters/3.gguf") || is_there(f, "cache/merged.gguf"));
    assert_int_equal(new_examples(f), 3);
    needles_add_text(needles, "a text", "dear BJÖRN, about");
    needles_add_text(needles, "another text", "to Anna about");
    assert_none_found(needles, f->home);
    needles_free(needles);
}

static void shell(const char *format, const char *a, const char *b) {
    char command[300];
    snprintf(command, sizeof command, format, a, b);
    if (system(command) != 0) fail_msg("failed: %s", command);
}

/* The names of the fault points that are passed, one a line, in order. */
static size_t fault_points(struct fixture *f, char points[][64], size_t room) {
    size_t n = 0;
    char list[96], line[64];
    snprintf(list, sizeof list, "%s.faults", f->home);
    assert_int_equal(forget_in_a_child(f, NULL, list), 0);
    FILE *file = fopen(list, "r");
    assert_non_null(file);
    while (fgets(line, sizeof line, file) && n < room) {
        line[strcspn(line, "\n")] = '\0';
        memcpy(points[n++], line, sizeof line);
    }
    fclose(file);
    unlink(list);
    assert_true(n > 20 && n < room);
    return n;
}

/* The others only say that they were passed. */
static int can_fail(const char *point) {
    return strstr(point, "commit.before") || strstr(point, "write.before") || strstr(point, "fsync.before") ||
           strstr(point, "rename.before") || strstr(point, "folder.before");
}

/* Kills and failures at every pass of every fault point, each from the same start; a second call finishes. */
static void test_faults(void **state) {
    struct fixture *f = *state;
    static char points[160][64];
    char fault[96], start[96];
    int ended[3] = {0};
    a_home_to_break(f);
    attune_store_close(f->store);
    f->store = NULL;
    snprintf(start, sizeof start, "%s.start", f->home);
    shell("cp -r %s %s", f->home, start);
    size_t n = fault_points(f, points, sizeof points / sizeof points[0]);
    for (size_t i = 0; i < 2 * n; i++) {
        const char *point = points[i / 2];
        int pass = 1;
        if (i % 2 == 0 && !can_fail(point)) continue;
        for (size_t j = 0; j < i / 2; j++) pass += strcmp(points[j], point) == 0;
        snprintf(fault, sizeof fault, "%s:%d:%s", point, pass, i % 2 ? "kill" : "fail");
        attune_store_close(f->store);
        f->store = NULL;
        shell("rm -rf %s", f->home, "");
        shell("cp -r %s %s", start, f->home);
        int end = forget_in_a_child(f, fault, NULL);
        /* 0: transactions end by the clock, and this time there were fewer of them than when they were listed */
        if (i % 2) assert_int_not_equal(end, 1);
        ended[end]++;
        assert_nothing_serves_wrongly(f);
        assert_all_forgotten(f);
    }
    assert_true(ended[1] > 3 && ended[2] > 20);
    shell("rm -rf %s", start, "");
}

/* ---- many rows ---- */

enum { MANY = 5000 };

static void tell_many(struct fixture *f, int n, int last_app) {
    attune_interaction interaction;
    char prompt[64], response[512];
    memset(response, 'x', sizeof response);
    ATTUNE_INIT(interaction);
    interaction.prompt = prompt;
    interaction.response = response;
    for (int i = 0; i < n; i++) {
        snprintf(prompt, sizeof prompt, "question %d about %d", i, i * 7919 % 1000);
        int at = snprintf(response, sizeof response, "answer %d, which is ", i);
        for (int k = at; k < 300; k++) response[k] = k % 7 ? (char)('a' + (i * k + k) % 26) : ' ';
        response[300] = '\0';
        interaction.app = i % 10 == 0 && last_app ? "keep" : "mail";
        interaction.time_ms = 1000 + i;
        OK(attune_store_record(f->store, &interaction, NULL, &f->err));
        if (i % 500 == 499) OK(attune_store_flush(f->store, &f->err));
    }
    OK(attune_store_flush(f->store, &f->err));
    OK(store_maintain(f->store, 0, &f->err));
}

/* Some rows are gone and some are not: all that learned from either is revoked, and the rest goes the next time. */
static void test_killed_between_batches(void **state) {
    struct fixture *f = *state;
    struct store_run run = {.id = "r", .state = "unfinished"};
    struct store_run_example used = {.interaction = MANY / 2 - 3};
    tell_many(f, MANY / 2, 1);
    snprintf(used.content_hash, sizeof used.content_hash, "%064d", 0);
    char query[120], hash[66] = "";
    sqlite3 *db = NULL;
    sqlite3_stmt *statement = NULL;
    snprintf(query, sizeof query, "SELECT lower(hex(content_hash)) FROM example WHERE interaction = %d", MANY / 2 - 3);
    assert_int_equal(sqlite3_open(in_home(f, "store.db"), &db), SQLITE_OK);
    assert_int_equal(sqlite3_prepare_v2(db, query, -1, &statement, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_step(statement), SQLITE_ROW);
    snprintf(hash, sizeof hash, "%s", (const char *)sqlite3_column_text(statement, 0));
    sqlite3_finalize(statement);
    sqlite3_close(db);
    memcpy(used.content_hash, hash, 65);
    OK(store_run_begin(f->store, &run, &used, 1, &f->err));
    publish(f, &run, 1, 0);
    attune_store_close(f->store);
    f->store = NULL;
    assert_int_equal(forget_in_a_child(f, "forget.batch.after:2:kill", NULL), 2);
    OK(store_open_path(f->home, 0, &f->store, &f->err));
    int64_t left = count_interactions(f);
    assert_true(left > MANY / 20 && left < MANY / 2);
    assert_string_equal(adapter_state(f, 1), "revoked");
    assert_current(f, 0);
    assert_sound(f);
    assert_int_equal(forget(f, by_app("mail")).interactions, left - MANY / 20);
    assert_int_equal(count_interactions(f), MANY / 20);
    assert_false(is_there(f, "adapters/1.gguf"));
    assert_sound(f);
}

/* Records, each row on the disk before the next, until the pipe is closed. */
static int writer(struct fixture *f, int end) {
    attune_store *store = NULL;
    attune_interaction interaction;
    char byte;
    int n = 0;
    ATTUNE_INIT(interaction);
    interaction.prompt = "meanwhile";
    interaction.response = "this is recorded";
    interaction.app = "writer";
    fcntl(end, F_SETFL, O_NONBLOCK);
    if (store_open_path(f->home, 0, &store, NULL) != ATTUNE_OK) return 100;
    while (read(end, &byte, 1) != 0) {
        if (attune_store_record(store, &interaction, NULL, NULL) != ATTUNE_OK) return 101;
        if (attune_store_flush(store, NULL) != ATTUNE_OK) return 102;
        if (n < 50) n++;
    }
    attune_store_close(store);
    return n;
}

static void many_beside_a_writer(struct fixture *f) {
    int ends[2], status;
    tell_many(f, MANY, 1);
    attune_store_close(f->store);
    f->store = NULL;
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        close(ends[1]);
        _exit(writer(f, ends[0]));
    }
    close(ends[0]);
    OK(store_open_path(f->home, 0, &f->store, &f->err));
    attune_forget_result result = forget(f, by_app("mail"));
    close(ends[1]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_true(WEXITSTATUS(status) > 0 && WEXITSTATUS(status) <= 50);
    assert_int_equal(result.interactions, MANY / 10 * 9);
    assert_int_equal(query_number(f, "SELECT count(*) FROM interaction WHERE app = 'keep'"), MANY / 10);
    assert_int_equal(query_number(f, "SELECT count(*) FROM interaction WHERE app = 'mail'"), 0);
    OK(store_maintain(f->store, 0, &f->err));
    assert_int_equal(query_number(f, "SELECT count(*) FROM digest"), count_interactions(f));
    assert_sound(f);
}
static void test_many_beside_a_writer(void **state) { many_beside_a_writer(*state); }

/* Plans, trains and publishes, over and over, on the newest rows, which are those that go first. */
static int publisher(struct fixture *f, int end) {
    attune_store *store = NULL;
    char byte;
    fcntl(end, F_SETFL, O_NONBLOCK);
    if (store_open_path(f->home, 0, &store, NULL) != ATTUNE_OK) return 100;
    for (int number = 1; read(end, &byte, 1) != 0; number++) {
        struct store_example_query query = {.newest = 3};
        struct store_run run = {.state = "unfinished"};
        struct store_run_example used[3];
        struct swap swap = {.f = f, .number = 1};
        struct rows rows = {0};
        attune_adapter_info info;
        if (store_examples(store, &query, collect, &rows, NULL) != ATTUNE_OK) return 101;
        memset(used, 0, sizeof used);
        for (size_t i = 0; i < rows.n; i++) {
            memcpy(used[i].content_hash, rows.row[i].content_hash, 65);
            used[i].interaction = rows.row[i].interaction;
            used[i].position = (int64_t)i;
        }
        snprintf(run.id, sizeof run.id, "%d", number);
        int code = store_run_begin(store, &run, used, rows.n, NULL);
        ATTUNE_INIT(info);
        info.number = number;
        strcpy(info.state, "candidate");
        strcpy(info.origin, "trained");
        if (code == ATTUNE_OK) code = store_adapter_put(store, &info, run.number, NULL);
        if (code == ATTUNE_OK) code = store_publish(store, &run, number, swap_current, &swap, NULL);
        if (code != ATTUNE_OK && code != ATTUNE_ERROR_STATE) return 102;
        usleep(2000); /* locks of SQLite have no queue */
    }
    attune_store_close(store);
    return 0;
}

/* However publishing and forgetting fall together: no adapter stands that learned from a row that has gone. */
static void test_publishing_meanwhile(void **state) {
    struct fixture *f = *state;
    int ends[2], status;
    tell_many(f, MANY / 2, 1);
    attune_store_close(f->store);
    f->store = NULL;
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        close(ends[1]);
        _exit(publisher(f, ends[0]));
    }
    close(ends[0]);
    OK(store_open_path(f->home, 0, &f->store, &f->err));
    attune_forget_result result = forget(f, by_app("mail"));
    close(ends[1]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_int_equal(result.interactions, MANY / 20 * 9);
    assert_true(result.adapters_revoked > 0);
    assert_int_equal(query_number(f, "SELECT count(*) FROM run_example e JOIN adapter a ON a.run = e.run WHERE "
                                     "a.state <> 'revoked' AND NOT EXISTS (SELECT 1 FROM digest d WHERE "
                                     "lower(hex(d.content_hash)) = e.content_hash)"),
                     0);
    assert_int_equal(query_number(f, "SELECT count(*) FROM run_interaction WHERE interaction NOT IN "
                                     "(SELECT id FROM interaction)"),
                     0);
    assert_sound(f);
}

/* ---- an encrypted store ---- */

static void test_encrypted(void **state) {
    struct fixture *f = *state;
    attune_uuid ids[6];
    tell_some(f, ids);
    learn(f, 1, 0, &ids[0]);
    struct store_run run = begin_run(f, "r", (const attune_uuid *[]){&ids[2]}, 1, 0, 1);
    publish(f, &run, 2, 1);
    attune_filter filter = any();
    filter.match = "fjord";
    attune_forget_result result = forget(f, filter);
    assert_true(result.interactions == 1 && result.adapters_revoked == 1 && result.active_after == 1);
    assert_left(f, ids, "01345");
    assert_int_equal(import(f, "{\"prompt\": \"what is a fjord\", \"response\": \"a valley\"}\n", 0).forgotten, 1);
    assert_int_equal(forget(f, any()).adapters_revoked, 1);
    assert_current(f, 0);
    unlink(in_home(f, "rows.jsonl"));
}

/* Whoever has lost the key can still have everything deleted. */
static void test_without_the_key(void **state) {
    struct fixture *f = *state;
    attune_uuid ids[6];
    tell_some(f, ids);
    learn(f, 1, 0, &ids[0]);
    tell(f, (struct told){"mail", "", "not derived yet", NULL, 1, 0});
    attune_store_close(f->store);
    f->store = NULL;
    assert_int_equal(unlink(in_home(f, "key")), 0);
    OK(store_open_path(f->home, 0, &f->store, &f->err));
    attune_filter filter = any();
    filter.match = "fjord";
    FAILS(attune_store_forget(f->store, &filter, NULL, &f->err), ATTUNE_ERROR_MISMATCH, "key", "");
    attune_forget_result result = forget(f, by_app("mail"));
    assert_true(result.interactions == 3 && result.adapters_revoked == 1);
    assert_int_equal(forget(f, any()).interactions, 4);
    assert_int_equal(query_number(f, "SELECT count(*) FROM interaction"), 0);
}

/* A row whose text is damaged goes like any other; the index is made anew. */
static void test_damaged_row(void **state) {
    struct fixture *f = *state;
    attune_uuid ids[6];
    int64_t *found = NULL;
    size_t n = 0;
    tell_some(f, ids);
    OK(store_maintain(f->store, 0, &f->err));
    attune_store_close(f->store);
    f->store = NULL;
    query_number(f, "UPDATE interaction SET messages = '[{broken' WHERE time_ms = 3000 RETURNING id");
    OK(store_open_path(f->home, 0, &f->store, &f->err));
    attune_filter filter = any();
    filter.since_ms = 3000;
    filter.until_ms = 3001;
    assert_int_equal(forget(f, filter).interactions, 1);
    assert_left(f, ids, "01345");
    OK(store_search(f->store, "moraine", &found, &n, &f->err));
    assert_int_equal(n, 1);
    free(found);
}

/* ---- a copy ---- */

static void test_copy(void **state) {
    struct fixture *f = *state;
    attune_uuid ids[6];
    attune_store *copy = NULL;
    struct stat info;
    char folder[96], path[112];
    tell_some(f, ids);
    OK(store_maintain(f->store, 0, &f->err));
    snprintf(folder, sizeof folder, "%s/copy", f->home);
    snprintf(path, sizeof path, "%s/store.db", folder);
    FAILS(store_copy(f->store, path, &f->err), ATTUNE_ERROR_IO, "create", "copy");
    assert_int_equal(mkdir(folder, 0700), 0);
    OK(store_copy(f->store, path, &f->err));
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
    FAILS(store_copy(f->store, path, &f->err), ATTUNE_ERROR_STATE, "already", "copy");
    forget(f, any());
    OK(store_open_path(folder, 0, &copy, &f->err));
    int64_t n = 0;
    char problem[200];
    OK(store_counts(copy, &n, NULL, NULL, NULL, &f->err));
    assert_int_equal(n, 6);
    OK(store_check(copy, problem, sizeof problem, &f->err));
    attune_store_close(copy);
    assert_int_equal(query_number(f, "SELECT 0"), 0);
    FAILS(store_copy(f->store, "", &f->err), ATTUNE_ERROR_ARGUMENT, "path", "");
    setenv("ATTUNE_FAULT", "store.copy.fsync:fail", 1);
    snprintf(path, sizeof path, "%s/another.db", folder);
    FAILS(store_copy(f->store, path, &f->err), ATTUNE_ERROR_IO, "sync", "another");
    unsetenv("ATTUNE_FAULT");
    assert_false(is_there(f, "copy/another.db"));
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, store_setup, store_teardown)
#define ENCRYPTED(test) cmocka_unit_test_setup_teardown(test, encrypted_setup, store_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_filters),
        TEST(test_counts),
        TEST(test_refusals),
        TEST(test_queued),
        TEST(test_ids_given_again),
        TEST(test_revoked_with_descendants),
        TEST(test_long_descent),
        TEST(test_lineage_by_id_alone),
        TEST(test_lineage_by_id),
        TEST(test_lineage_held_out),
        TEST(test_lineage_by_hash),
        TEST(test_lineage_by_edit),
        TEST(test_lineage_by_duplicate),
        TEST(test_nearest_ancestor_that_can_serve),
        TEST(test_inactive_adapter),
        TEST(test_damaged_current),
        TEST(test_current_of_nobody),
        TEST(test_unfinished_run),
        TEST(test_run_from_revoked),
        TEST(test_run_against_revoked),
        TEST(test_run_aside),
        TEST(test_beginning_a_run_too_late),
        TEST(test_publishing),
        TEST(test_used_twice),
        TEST(test_consent_of_rows),
        TEST(test_consent_of_all),
        TEST(test_consent_of_the_rejected),
        TEST(test_tombstones),
        TEST(test_faults),
        TEST(test_killed_between_batches),
        TEST(test_many_beside_a_writer),
        TEST(test_publishing_meanwhile),
        ENCRYPTED(test_encrypted),
        ENCRYPTED(test_without_the_key),
        TEST(test_damaged_row),
        TEST(test_copy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
