/* Wiping the full-text index as often as anybody can forget. */
#include "tests/store_fixture.h"

enum { LEVELS = 2100 };

/* What `n` calls of forget do to the index, at once. */
static void wear(struct fixture *f, int n) {
    sqlite3 *db = NULL;
    char sql[256];
    assert_int_equal(sqlite3_open(in_home(f, "store.db"), &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, "PRAGMA synchronous = OFF", NULL, NULL, NULL), SQLITE_OK);
    for (int i = 0; i < n; i++) {
        snprintf(sql, sizeof sql,
                 "INSERT INTO search (rowid, text) VALUES (-%d, 'worn');"
                 "INSERT INTO search (search, rowid, text) VALUES ('delete', -%d, 'worn');"
                 "INSERT INTO search (search, rank) VALUES ('merge', -4)",
                 i + 1, i + 1);
        if (sqlite3_exec(db, sql, NULL, NULL, NULL) != SQLITE_OK) fail_msg("%d: %s", i, sqlite3_errmsg(db));
    }
    sqlite3_close(db);
}

static int64_t matches(struct fixture *f, const char *words) {
    attune_cursor *cursor = NULL;
    attune_filter filter;
    ATTUNE_INIT(filter);
    filter.match = words;
    OK(attune_store_query(f->store, &filter, &cursor, &f->err));
    int64_t n = attune_cursor_count(cursor);
    attune_cursor_close(cursor);
    return n;
}

/* An index of many pages: a small one is merged in one go, and keeps its levels. */
static void record_many(struct fixture *f) {
    for (int i = 0; i < 300; i++) {
        char text[1200];
        attune_interaction in;
        ATTUNE_INIT(in);
        for (int word = 0, n = 0; word < 80; word++)
            n += snprintf(text + n, sizeof text - (size_t)n, "w%dx%d ", i, word);
        in.prompt = text;
        in.response = "an answer that stays";
        OK(attune_store_record(f->store, &in, NULL, &f->err));
    }
    OK(attune_store_maintain(f->store, 0, &f->err));
}

/* FTS5 takes an index of more than 2000 levels for damaged, and every wiping adds some. */
static void test_worn_index(void **state) {
    struct fixture *f = *state;
    attune_forget_result result;
    attune_uuid id;
    record_many(f);
    for (int worn = 0; worn < LEVELS; worn += 300) {
        wear(f, 300);
        OK(record(f->store, "a question that goes", "an answer that goes", 2000, &id, &f->err));
        assert_int_equal(matches(f, "goes"), 1);
        attune_filter filter;
        ATTUNE_INIT(filter);
        ATTUNE_INIT(result);
        filter.ids = (const char *const[]){id.text};
        filter.n_ids = 1;
        OK(attune_store_forget(f->store, &filter, &result, &f->err));
        assert_int_equal(result.scrub_pending, 0);
        assert_int_equal(matches(f, "goes"), 0);
        assert_int_equal(matches(f, "stays"), 300);
    }
    assert_sound(f);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(test_worn_index, store_setup, store_teardown)};
    return cmocka_run_group_tests_name("scrub", tests, NULL, NULL);
}
