/* Which interactions a filter names, and the cursor that hands them out. */
#include "tests/store_fixture.h"

#include "datastore/derive.h"
#include "datastore/query.h"

/* ---- helpers ---- */

static int add(struct fixture *f, const char *prompt, int64_t time_ms, const char *app, const char *session,
               attune_uuid *id) {
    attune_interaction interaction;
    ATTUNE_INIT(interaction);
    interaction.prompt = prompt;
    interaction.response = "r";
    interaction.time_ms = time_ms;
    interaction.app = app;
    interaction.session = session;
    return attune_store_record(f->store, &interaction, id, &f->err);
}

static int select_ids(struct fixture *f, const attune_filter *filter, int64_t **ids, size_t *n) {
    *ids = NULL;
    *n = 0;
    OK(store_enter(f->store, &f->err));
    int code = store_select(f->store, filter, ids, n, &f->err);
    store_leave(f->store);
    return code;
}

/* "2 1": the rows in the order that the cursor gives them, by their prompts; one answer lives. */
static const char *prompts(struct fixture *f, const attune_filter *filter) {
    static char text[1024];
    attune_cursor *cursor = NULL;
    attune_row row;
    size_t at = 0;
    int code;
    int64_t n = 0;
    ATTUNE_INIT(row);
    text[0] = '\0';
    OK(attune_store_query(f->store, filter, &cursor, &f->err));
    while ((code = attune_cursor_next(cursor, &row, &f->err)) == ATTUNE_CONTINUE)
        at += (size_t)snprintf(text + at, sizeof text - at, n++ ? " %s" : "%s", row.messages[0].content);
    assert_int_equal(code, ATTUNE_DONE);
    assert_int_equal(attune_cursor_next(cursor, &row, &f->err), ATTUNE_DONE);
    assert_int_equal(attune_cursor_count(cursor), n);
    attune_cursor_close(cursor);
    return text;
}

#define GIVES(filter, wanted)                                                                                          \
    do {                                                                                                               \
        const char *got_ = prompts(f, filter);                                                                         \
        if (strcmp(got_, wanted) != 0) fail_msg("'%s', not '%s'", got_, wanted);                                       \
    } while (0)

/* ---- filters ---- */

static void test_filters(void **state) {
    struct fixture *f = *state;
    attune_uuid id[5];
    attune_filter filter;
    OK(add(f, "one", 1000, "mail", "x", &id[0]));
    OK(add(f, "two", 3000, "mail", "y", &id[1]));
    OK(add(f, "three", 2000, "chat", "x", &id[2]));
    OK(add(f, "four", 3000, NULL, NULL, &id[3]));
    OK(add(f, "five", 2000, "chat", "y", &id[4]));
    OK(attune_store_flush(f->store, &f->err));
    ATTUNE_INIT(filter);
    GIVES(NULL, "four two five three one"); /* of one time: by the order of recording */
    GIVES(&filter, "four two five three one");
    filter.oldest_first = 1;
    GIVES(&filter, "one three five two four");
    filter.limit = 2;
    GIVES(&filter, "two four"); /* still the newest */
    filter.limit = 9;
    GIVES(&filter, "one three five two four");
    ATTUNE_INIT(filter);
    filter.since_ms = 2000;
    filter.until_ms = 3000;
    GIVES(&filter, "five three");
    ATTUNE_INIT(filter);
    filter.app = "mail";
    GIVES(&filter, "two one");
    filter.session = "x";
    GIVES(&filter, "one");
    filter.app = NULL;
    GIVES(&filter, "three one");
    filter.session = "";
    GIVES(&filter, "four");
    filter.app = "Mail";
    GIVES(&filter, "");
    ATTUNE_INIT(filter);
    filter.match = "t* OR"; /* a word that nothing holds */
    GIVES(&filter, "");
    filter.match = "t*";
    GIVES(&filter, "two three");
    filter.limit = 1;
    GIVES(&filter, "two");
    filter.limit = 0;
    filter.app = "chat";
    GIVES(&filter, "three");
    const char *const ids[] = {id[0].text, id[2].text, id[4].text, id[0].text};
    ATTUNE_INIT(filter);
    filter.ids = ids;
    filter.n_ids = 4;
    GIVES(&filter, "five three one");
    filter.limit = 2;
    GIVES(&filter, "five three");
    filter.limit = 0;
    filter.since_ms = 2000;
    GIVES(&filter, "five three");
    filter.match = "THREE";
    GIVES(&filter, "three");
    filter.app = "mail";
    GIVES(&filter, "");
    ATTUNE_INIT(filter);
    filter.ids = ids; /* none of them */
    GIVES(&filter, "");
}

static void test_refused_filters(void **state) {
    struct fixture *f = *state;
    attune_filter filter;
    attune_cursor *cursor = NULL;
    const char *ids[] = {"secret", NULL};
    int64_t *list;
    size_t n;
#define REFUSED(code, word, place)                                                                                     \
    FAILS(attune_store_query(f->store, &filter, &cursor, &f->err), code, word, place);                                 \
    FAILS(select_ids(f, &filter, &list, &n), code, word, place);                                                       \
    ATTUNE_INIT(filter)
    ATTUNE_INIT(filter);
    filter.n_ids = 1;
    REFUSED(ATTUNE_ERROR_ARGUMENT, "ids is NULL", "attune_filter");
    filter.limit = -1;
    REFUSED(ATTUNE_ERROR_ARGUMENT, "limit", "attune_filter");
    filter.since_ms = -1;
    REFUSED(ATTUNE_ERROR_ARGUMENT, "negative", "attune_filter");
    filter.match = "...";
    REFUSED(ATTUNE_ERROR_ARGUMENT, "no word", "");
    filter.ids = ids;
    filter.n_ids = 1;
    REFUSED(ATTUNE_ERROR_NOT_FOUND, "id 1", "store.db");
    assert_null(strstr(f->err.message, "secret"));
    ids[0] = "01890a5d-ac96-774b-bcce-b302099a8057";
    filter.ids = ids;
    filter.n_ids = 1;
    REFUSED(ATTUNE_ERROR_NOT_FOUND, "01890a5d", "store.db");
    filter.ids = ids + 1;
    filter.n_ids = 1;
    REFUSED(ATTUNE_ERROR_ARGUMENT, "id 1 is NULL", "attune_filter");
    filter.size = 0;
    FAILS(attune_store_query(f->store, &filter, &cursor, &f->err), ATTUNE_ERROR_ARGUMENT, "ATTUNE_INIT", "");
    FAILS(attune_store_query(f->store, NULL, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "out is NULL", "");
    FAILS(attune_store_query(NULL, NULL, &cursor, &f->err), ATTUNE_ERROR_ARGUMENT, "NULL", "");
    assert_null(cursor);
    assert_int_equal(attune_cursor_count(NULL), 0);
    attune_cursor_close(NULL);
}

/* ---- against a filter that looks at every row ---- */

enum { ROWS = 13000 }; /* beyond the number at which the index changes */
struct model {
    int64_t time_ms;
    int app, session;
};

static uint32_t draw(uint64_t *seed, uint32_t n) {
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((*seed >> 33) % n);
}

static const char *const apps[] = {"a", "b", "c"}, *const sessions[] = {"", "s", "t"};

static void fill(struct fixture *f, struct model *rows) {
    uint64_t seed = 5;
    sqlite3_stmt *put = NULL;
    OK(store_enter(f->store, &f->err));
    OK(store_begin(f->store, &f->err));
    OK(store_prepare(f->store, -1,
                     "INSERT INTO interaction (uuid, time_ms, consent, tier, sensitivity, private_findings, app, "
                     "session, source, messages, response) VALUES (?, ?, 0, 0, 0, 0, ?, ?, '', "
                     "'[{\"role\":\"user\",\"content\":\"fjord\"}]', '')",
                     "test", &put, &f->err));
    for (int i = 0; i < ROWS; i++) {
        char uuid[40];
        snprintf(uuid, sizeof uuid, "%08d-0000-0000-0000-000000000000", i);
        rows[i] =
            (struct model){1 + draw(&seed, 500), draw(&seed, 20) ? 0 : 1 + (int)draw(&seed, 2), (int)draw(&seed, 3)};
        OK(store_bind(f->store, put, "test", &f->err, "titt", uuid, rows[i].time_ms, apps[rows[i].app],
                      sessions[rows[i].session]));
        OK(store_run_statement(f->store, put, "test", &f->err));
    }
    sqlite3_finalize(put);
    OK(store_commit(f->store, &f->err));
    store_leave(f->store);
}

static const struct model *sorted_by;
static int newest_first(const void *a, const void *b) {
    int x = *(const int *)a, y = *(const int *)b;
    if (sorted_by[x].time_ms != sorted_by[y].time_ms) return sorted_by[x].time_ms > sorted_by[y].time_ms ? -1 : 1;
    return y - x;
}

static int allows(const attune_filter *filter, const struct model *row) {
    return row->time_ms >= filter->since_ms && (!filter->until_ms || row->time_ms < filter->until_ms) &&
           (!filter->app || strcmp(filter->app, apps[row->app]) == 0) &&
           (!filter->session || strcmp(filter->session, sessions[row->session]) == 0);
}

static void test_against_a_model(void **state) {
    struct fixture *f = *state;
    static struct model rows[ROWS];
    static int order[ROWS];
    uint64_t seed = 9;
    fill(f, rows);
    sorted_by = rows;
    for (int i = 0; i < ROWS; i++) order[i] = i;
    qsort(order, ROWS, sizeof *order, newest_first);
    for (int q = 0; q < 200; q++) {
        attune_filter filter;
        int64_t *ids;
        size_t n = 0, at = 0, end = 0;
        ATTUNE_INIT(filter);
        if (draw(&seed, 2)) filter.since_ms = draw(&seed, 520);
        if (draw(&seed, 2)) filter.until_ms = draw(&seed, 520);
        if (draw(&seed, 2)) filter.app = apps[draw(&seed, 3)];
        if (draw(&seed, 2)) filter.session = sessions[draw(&seed, 3)];
        if (draw(&seed, 2)) filter.limit = 1 + draw(&seed, 300);
        filter.oldest_first = (int)draw(&seed, 2);
        OK(select_ids(f, &filter, &ids, &n));
        for (int i = 0; i < ROWS && (!filter.limit || (int64_t)end < filter.limit); i++)
            end += (size_t)allows(&filter, &rows[order[i]]);
        assert_int_equal(n, end);
        for (int i = 0; i < ROWS && at < end; i++) {
            if (!allows(&filter, &rows[order[i]])) continue;
            if (ids[filter.oldest_first ? end - 1 - at : at] != order[i] + 1) fail_msg("query %d, row %zu", q, at);
            at++;
        }
        free(ids);
    }
}

/* ---- how SQLite goes about it ---- */

static int note_selection(unsigned event, void *user, void *statement, void *text) {
    const char *sql = sqlite3_sql(statement);
    (void)event, (void)text;
    if (strstr(sql, "FROM interaction")) snprintf(user, 400, "EXPLAIN QUERY PLAN %s", sql);
    return 0;
}

/* The plan of the last statement that the selection ran over the interactions; one answer lives. */
static const char *plan_of(struct fixture *f, const attune_filter *filter) {
    static char plan[400];
    char sql[400] = "";
    sqlite3_stmt *statement = NULL;
    int64_t *ids;
    size_t n;
    sqlite3_trace_v2(f->store->db, SQLITE_TRACE_STMT, note_selection, sql);
    OK(select_ids(f, filter, &ids, &n));
    sqlite3_trace_v2(f->store->db, 0, NULL, NULL);
    free(ids);
    plan[0] = '\0';
    assert_int_equal(sqlite3_prepare_v2(f->store->db, sql, -1, &statement, NULL), SQLITE_OK);
    while (sqlite3_step(statement) == SQLITE_ROW) {
        strcat(plan, (const char *)sqlite3_column_text(statement, 3));
        strcat(plan, "; ");
    }
    sqlite3_finalize(statement);
    return plan;
}

#define PLAN(filter, wanted, unwanted)                                                                                 \
    do {                                                                                                               \
        const char *plan_ = plan_of(f, filter);                                                                        \
        if (!strstr(plan_, wanted) || strstr(plan_, unwanted))                                                         \
            fail_msg("no '%s', or '%s': %s", wanted, unwanted, plan_);                                                 \
    } while (0)

/* Nothing reads the texts of all rows, nor sorts all of them for a few. */
static void test_plans(void **state) {
    struct fixture *f = *state;
    static struct model rows[ROWS];
    attune_filter filter;
    fill(f, rows);
    ATTUNE_INIT(filter);
    PLAN(&filter, "USING COVERING INDEX interaction_time", "FOR ORDER BY");
    filter.limit = 20;
    PLAN(&filter, "USING COVERING INDEX interaction_time", "FOR ORDER BY");
    filter.app = "a"; /* nearly all rows */
    PLAN(&filter, "USING INDEX interaction_time", "FOR ORDER BY");
    filter.app = "b"; /* few */
    PLAN(&filter, "USING INDEX interaction_session (app=?)", "SCAN");
    filter.session = "s";
    PLAN(&filter, "USING INDEX interaction_session (app=? AND session=?)", "SCAN");
    ATTUNE_INIT(filter);
    filter.app = "a";
    PLAN(&filter, "USING INDEX interaction_session (app=?)", "SCAN");
    filter.since_ms = 490;
    PLAN(&filter, "USING INDEX interaction_time (time_ms>? AND time_ms<?)", "FOR ORDER BY");
    ATTUNE_INIT(filter);
    filter.match = "fjord";
    PLAN(&filter, "USING INTEGER PRIMARY KEY", "SCAN");
}

/* ---- rows ---- */

static void test_everything_of_a_row(void **state) {
    struct fixture *f = *state;
    static const struct {
        int kind;
        int64_t value, time_ms;
        const char *text;
    } said[] = {{ATTUNE_FEEDBACK_THUMB, -1, 5001, NULL},      {ATTUNE_FEEDBACK_EDIT, 0, 4000, "first edit"},
                {ATTUNE_FEEDBACK_UNDO, 0, 5003, NULL},        {ATTUNE_FEEDBACK_DWELL, 1234, 5004, NULL},
                {ATTUNE_FEEDBACK_EDIT, 0, 5005, "caf\u00e9"}, {ATTUNE_FEEDBACK_REJECT, 0, 5006, "a reason"},
                {ATTUNE_FEEDBACK_COPY, 0, 5007, NULL},        {ATTUNE_FEEDBACK_ACCEPT, 0, 5008, NULL},
                {ATTUNE_FEEDBACK_REGENERATE, 0, 5009, NULL}};
    attune_message messages[] = {{"system", ""}, {"user", "u1"}, {"assistant", "a1"}, {"user", "u2"}};
    attune_interaction in;
    attune_uuid id;
    attune_cursor *cursor = NULL;
    attune_row row;
    ATTUNE_INIT(row);
    ATTUNE_INIT(in);
    in.messages = messages;
    in.n_messages = 4;
    in.response = "a2";
    in.app = "app";
    in.session = "session";
    in.source = "source";
    in.time_ms = 5000;
    in.consent = ATTUNE_CONSENT_NOT_GIVEN;
    in.model = "model";
    in.adapter = "";
    in.tier = ATTUNE_TIER_TOOL;
    in.sensitivity = ATTUNE_SENSITIVITY_CLEARED;
    OK(attune_store_record(f->store, &in, &id, &f->err));
    for (size_t i = 0; i < sizeof said / sizeof said[0]; i++) {
        attune_feedback feedback;
        ATTUNE_INIT(feedback);
        feedback.kind = said[i].kind;
        feedback.value = said[i].value;
        feedback.text = said[i].text;
        feedback.time_ms = said[i].time_ms;
        OK(attune_store_feedback(f->store, id.text, &feedback, &f->err));
    }
    OK(record(f->store, "p", "r", 6000, NULL, &f->err));
    OK(attune_store_query(f->store, NULL, &cursor, &f->err));
    assert_int_equal(attune_cursor_next(cursor, &row, &f->err), ATTUNE_CONTINUE);
    assert_int_equal(row.n_messages, 1);
    assert_string_equal(row.app, "");
    assert_true(!row.model && !row.adapter && !row.template_hash && !row.feedback && row.n_feedback == 0);
    assert_int_equal(row.consent, 1);
    assert_int_equal(attune_cursor_next(cursor, &row, &f->err), ATTUNE_CONTINUE);
    assert_string_equal(row.id.text, id.text);
    assert_int_equal(row.time_ms, 5000);
    assert_int_equal(row.n_messages, 4);
    for (size_t i = 0; i < 4; i++) {
        assert_string_equal(row.messages[i].role, messages[i].role);
        assert_string_equal(row.messages[i].content, messages[i].content);
    }
    assert_string_equal(row.response, "a2");
    assert_string_equal(row.app, "app");
    assert_string_equal(row.session, "session");
    assert_string_equal(row.source, "source");
    assert_string_equal(row.model, "model");
    assert_string_equal(row.adapter, "");
    assert_null(row.template_hash);
    assert_int_equal(row.consent, 0);
    assert_int_equal(row.tier, ATTUNE_TIER_TOOL);
    assert_int_equal(row.sensitivity, ATTUNE_SENSITIVITY_CLEARED);
    assert_int_equal(row.private_findings, 0);
    assert_int_equal(row.n_feedback, sizeof said / sizeof said[0]);
    for (size_t i = 0; i < row.n_feedback; i++) {
        assert_int_equal(row.feedback[i].size, sizeof(attune_feedback));
        assert_int_equal(row.feedback[i].kind, said[i].kind);
        assert_int_equal(row.feedback[i].value, said[i].value);
        assert_int_equal(row.feedback[i].time_ms, said[i].time_ms);
        assert_true(!row.feedback[i].text == !said[i].text);
        if (said[i].text) assert_string_equal(row.feedback[i].text, said[i].text);
    }
    assert_int_equal(attune_cursor_next(cursor, &row, &f->err), ATTUNE_DONE);
    attune_cursor_close(cursor);
}

/* An app that was built against another header. */
static void test_sizes_of_a_row(void **state) {
    struct fixture *f = *state;
    attune_cursor *cursor = NULL;
    attune_row row = {0};
    struct {
        attune_row known;
        int64_t later;
    } newer;
    memset(&newer, 0x55, sizeof newer);
    newer.known.size = sizeof newer;
    OK(record(f->store, "p", "r", 1, NULL, &f->err));
    OK(attune_store_query(f->store, NULL, &cursor, &f->err));
    FAILS(attune_cursor_next(cursor, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "row is NULL", "");
    FAILS(attune_cursor_next(NULL, &row, &f->err), ATTUNE_ERROR_ARGUMENT, "cursor is NULL", "");
    FAILS(attune_cursor_next(cursor, &row, &f->err), ATTUNE_ERROR_ARGUMENT, "ATTUNE_INIT", "");
    assert_int_equal(attune_cursor_next(cursor, &newer.known, &f->err), ATTUNE_CONTINUE); /* nothing was passed over */
    assert_int_equal(newer.later, 0);
    assert_string_equal(newer.known.response, "r");
    attune_cursor_close(cursor);
    OK(attune_store_query(f->store, NULL, &cursor, &f->err));
    row.size = offsetof(attune_row, messages);
    assert_int_equal(attune_cursor_next(cursor, &row, &f->err), ATTUNE_CONTINUE);
    assert_int_equal(row.time_ms, 1);
    assert_null(row.messages);
    attune_cursor_close(cursor);
}

/* ---- between the calls ---- */

static void exec(struct fixture *f, const char *sql) {
    sqlite3 *db;
    assert_int_equal(sqlite3_open(in_home(f, "store.db"), &db), SQLITE_OK);
    sqlite3_exec(db, "PRAGMA foreign_keys = ON", NULL, NULL, NULL);
    if (sqlite3_exec(db, sql, NULL, NULL, NULL) != SQLITE_OK) fail_msg("%s: %s", sql, sqlite3_errmsg(db));
    sqlite3_close(db);
}

static void test_what_changes_meanwhile(void **state) {
    struct fixture *f = *state;
    attune_cursor *cursor = NULL;
    attune_row row;
    attune_uuid id[5];
    ATTUNE_INIT(row);
    for (int i = 0; i < 5; i++)
        OK(record(f->store, (const char *[]){"1", "2", "3", "4", "5"}[i], "r", i + 1, &id[i], &f->err));
    OK(attune_store_query(f->store, NULL, &cursor, &f->err));
    assert_int_equal(attune_cursor_count(cursor), 5);
    assert_int_equal(attune_cursor_next(cursor, &row, &f->err), ATTUNE_CONTINUE);
    assert_string_equal(row.messages[0].content, "5");
    exec(f, "DELETE FROM interaction WHERE id IN (1, 3, 4)");
    OK(record(f->store, "6", "r", 6, NULL, &f->err));
    OK(feedback(f->store, &id[1], ATTUNE_FEEDBACK_EDIT, 0, "late", &f->err));
    assert_string_equal(row.messages[0].content, "5"); /* lives until the next call */
    /* Nothing is held: the log can be truncated. */
    sqlite3 *db;
    assert_int_equal(sqlite3_open(in_home(f, "store.db"), &db), SQLITE_OK);
    assert_int_equal(sqlite3_wal_checkpoint_v2(db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
    assert_int_equal(attune_cursor_next(cursor, &row, &f->err), ATTUNE_CONTINUE);
    assert_string_equal(row.messages[0].content, "2");
    assert_int_equal(row.n_feedback, 1);
    assert_string_equal(row.feedback[0].text, "late");
    assert_int_equal(attune_cursor_next(cursor, &row, &f->err), ATTUNE_DONE);
    assert_int_equal(attune_cursor_count(cursor), 5);
    attune_cursor_close(cursor);
}

static void test_while_suspended(void **state) {
    struct fixture *f = *state;
    attune_cursor *cursor = NULL, *other = NULL;
    attune_row row;
    ATTUNE_INIT(row);
    OK(record(f->store, "1", "r", 1, NULL, &f->err));
    OK(attune_store_query(f->store, NULL, &cursor, &f->err));
    OK(attune_store_suspend(f->store, &f->err));
    FAILS(attune_cursor_next(cursor, &row, &f->err), ATTUNE_ERROR_STATE, "suspended", "store.db");
    FAILS(attune_store_query(f->store, NULL, &other, &f->err), ATTUNE_ERROR_STATE, "suspended", "store.db");
    OK(attune_store_resume(f->store, &f->err));
    assert_int_equal(attune_cursor_next(cursor, &row, &f->err), ATTUNE_CONTINUE);
    assert_string_equal(row.messages[0].content, "1");
    attune_cursor_close(cursor);
}

/* A damaged row is told; the call after it goes on behind. */
static void test_a_damaged_row(void **state) {
    struct fixture *f = *state;
    attune_cursor *cursor = NULL;
    attune_row row;
    ATTUNE_INIT(row);
    for (int i = 1; i < 4; i++) OK(record(f->store, (const char *[]){"", "1", "2", "3"}[i], "r", i, NULL, &f->err));
    exec(f, "UPDATE interaction SET messages = 'secret' WHERE id = 2");
    OK(attune_store_query(f->store, NULL, &cursor, &f->err));
    assert_int_equal(attune_cursor_next(cursor, &row, &f->err), ATTUNE_CONTINUE);
    FAILS(attune_cursor_next(cursor, &row, &f->err), ATTUNE_ERROR_FORMAT, "damaged", "store.db");
    assert_null(strstr(f->err.message, "secret"));
    assert_int_equal(attune_cursor_next(cursor, &row, &f->err), ATTUNE_CONTINUE);
    assert_string_equal(row.messages[0].content, "1");
    assert_int_equal(attune_cursor_next(cursor, &row, &f->err), ATTUNE_DONE);
    attune_cursor_close(cursor);
}

static void test_without_the_key(void **state) {
    struct fixture *f = *state;
    attune_cursor *cursor = NULL;
    attune_store_close(f->store);
    f->store = NULL;
    unlink(in_home(f, "key"));
    OK(store_open_path(f->home, 0, &f->store, &f->err));
    FAILS(attune_store_query(f->store, NULL, &cursor, &f->err), ATTUNE_ERROR_MISMATCH, "key", "store.db");
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, store_setup, store_teardown)
#define ENCRYPTED(test) cmocka_unit_test_setup_teardown(test, encrypted_setup, store_teardown)
#define BOTH(test) TEST(test), ENCRYPTED(test)

int main(void) {
    const struct CMUnitTest tests[] = {
        BOTH(test_filters),
        TEST(test_refused_filters),
        TEST(test_against_a_model),
        TEST(test_plans),
        BOTH(test_everything_of_a_row),
        TEST(test_sizes_of_a_row),
        BOTH(test_what_changes_meanwhile),
        TEST(test_while_suspended),
        BOTH(test_a_damaged_row),
        ENCRYPTED(test_without_the_key),
    };
    return cmocka_run_group_tests_name("query", tests, NULL, NULL);
}
