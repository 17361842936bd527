/* What a run that goes on from an adapter learns again. */
#define _GNU_SOURCE
#include "job/replay_rows.h"

#include <string.h>

#include "tests/home_fixture.h"

enum { ROWS = 400, EARLIER = 300 };

struct drawing {
    struct example items[ROWS];
    struct example_set set;
    struct origin origins[ROWS];
    unsigned char earlier[ROWS];
};

/* A row a day, the newest ROWS - EARLIER of them new. */
static void draw_from(struct drawing *d) {
    memset(d, 0, sizeof *d);
    for (size_t i = 0; i < ROWS; i++) {
        d->items[i].key = 0x9e3779b97f4a7c15u * (i + 1);
        d->origins[i].time_ms = 1700000000000 + 86400000 * (int64_t)i;
        d->earlier[i] = i < EARLIER;
    }
    d->set = (struct example_set){d->items, ROWS, ROWS};
}

static size_t choose(const struct drawing *d, size_t from, double share, uint64_t key, size_t rows[ROWS]) {
    attune_error err = {0};
    size_t n = ROWS - from;
    for (size_t i = 0; i < n; i++) rows[i] = from + i;
    assert_int_equal(replay_rows_choose(&d->set, d->origins, d->earlier, share, key, rows, &n, &err), ATTUNE_OK);
    for (size_t i = 1; i < n; i++) assert_true(rows[i - 1] < rows[i]);
    return n;
}

static size_t count_earlier(const struct drawing *d, const size_t *rows, size_t n) {
    size_t count = 0;
    for (size_t i = 0; i < n; i++) count += d->earlier[rows[i]];
    return count;
}

static void test_sizes(void **state) {
    static struct drawing d;
    (void)state;
    size_t rows[ROWS], fresh = ROWS - EARLIER;
    draw_from(&d);
    assert_int_equal(choose(&d, 0, 0, 1, rows), fresh);
    assert_int_equal(count_earlier(&d, rows, fresh), 0);
    assert_int_equal(choose(&d, 0, 1, 1, rows), 2 * fresh);
    assert_int_equal(choose(&d, 0, 0.5, 1, rows), fresh + fresh / 2);
    assert_int_equal(choose(&d, 0, 0.01, 1, rows), fresh + REPLAY_ROWS_MIN);
    assert_int_equal(choose(&d, 0, 100, 1, rows), fresh + REPLAY_ROWS_MAX);
    /* no more than there are */
    assert_int_equal(choose(&d, EARLIER - 5, 1, 1, rows), fresh + 5);
    memset(d.earlier, 0, sizeof d.earlier);
    assert_int_equal(choose(&d, 0, 1, 1, rows), ROWS);
}

/* Whether a row is drawn does not hang on rows that are not: one that goes leaves the others where they were, and its
 * place to one that was not drawn. */
static void test_a_row_that_goes(void **state) {
    static struct drawing d, without;
    (void)state;
    size_t rows[ROWS], rest[ROWS];
    draw_from(&d);
    size_t n = choose(&d, 0, 0.5, 7, rows), gone = rows[3];
    draw_from(&without);
    memmove(&without.items[gone], &without.items[gone + 1], (ROWS - 1 - gone) * sizeof *without.items);
    memmove(&without.origins[gone], &without.origins[gone + 1], (ROWS - 1 - gone) * sizeof *without.origins);
    memmove(&without.earlier[gone], &without.earlier[gone + 1], ROWS - 1 - gone);
    attune_error err = {0};
    size_t m = ROWS - 1, shared = 0;
    for (size_t i = 0; i < m; i++) rest[i] = i;
    assert_int_equal(replay_rows_choose(&without.set, without.origins, without.earlier, 0.5, 7, rest, &m, &err), 0);
    assert_int_equal(m, n);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < m; k++) shared += d.items[rows[i]].key == without.items[rest[k]].key;
    assert_int_equal(shared, n - 1);
}

/* Over many draws the newer half comes more often, the other one does come, and a draw is the same again. */
static void test_age(void **state) {
    static struct drawing d;
    (void)state;
    size_t rows[ROWS], again[ROWS], newer = 0, older = 0;
    draw_from(&d);
    for (uint64_t key = 0; key < 50; key++) {
        size_t n = choose(&d, 0, 0.5, key, rows);
        assert_int_equal(choose(&d, 0, 0.5, key, again), n);
        assert_memory_equal(rows, again, n * sizeof *rows);
        for (size_t i = 0; i < n && rows[i] < EARLIER; i++) *(rows[i] < EARLIER - 60 ? &older : &newer) += 1;
    }
    assert_true(newer + older == 50 * 50);
    /* two half lives and more behind the newest 60 days: a fifth to a quarter of the weight */
    if (!(newer > 2 * older && older > 100)) fail_msg("%zu of the newest 60 days, %zu older", newer, older);
}

/* A night learns what is new, and some of what the adapter knows; from fresh all of it is new. */
static void test_nights(void **state) {
    struct homes *f = *state;
    attune_job_options options = job_options();
    make_quick_home(f, 40);
    set_key(f, "held_out", "0.01"); /* cross-fitted throughout */
    publish_run(f, 1);
    assert_int_equal(sql_number(f, "SELECT count(*) FROM run_example WHERE run = 1"), 40);
    set_key(f, "learning_rate", "0"); /* the gate refuses what follows: it stays new */
    import_rows(f, 40, 12);
    assert_int_equal(run_job(f, &options, NULL), ATTUNE_DONE);
    assert_int_equal(sql_number(f, "SELECT count(*) FROM run_example WHERE run = 2"), 12 + REPLAY_ROWS_MIN);
    const char *fresh = "SELECT count(*) FROM run_example WHERE run = 2 AND content_hash NOT IN (SELECT content_hash "
                        "FROM run_example WHERE run = 1)";
    assert_int_equal(sql_number(f, fresh), 12);
    assert_int_equal(sql_number(f, "SELECT held_out FROM run WHERE number = 2"), 12); /* those that judge */
    import_rows(f, 52, 6);
    set_key(f, "replay", "0");
    assert_int_equal(run_job(f, &options, NULL), ATTUNE_DONE);
    assert_int_equal(sql_number(f, "SELECT count(*) FROM run_example WHERE run = 3"), 12 + 6);
    import_rows(f, 58, 1);
    options.from = ATTUNE_FROM_FRESH;
    assert_int_equal(run_job(f, &options, NULL), ATTUNE_DONE);
    assert_int_equal(sql_number(f, "SELECT count(*) FROM run_example WHERE run = 4"), 59);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, homes_setup, homes_teardown)
int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_a_row_that_goes),
        cmocka_unit_test(test_age),
        TEST(test_nights),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
