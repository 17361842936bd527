/* Rows of nights: begun, updated, ended for the killed; sums for budgets; what work costs. */
#include "tests/store_fixture.h"

#include <math.h>

#include "datastore/nights.h"
#include "tests/faulty_vfs.h"

enum { HOUR_MS = 3600000 };

static struct store_night made_night(int64_t started_ms) {
    struct store_night night = {.night_ms = started_ms - HOUR_MS, .started_ms = started_ms, .kind = "nightly",
                                .state = "running", .loss_before = NAN, .loss_after = NAN, .celsius_max = NAN,
                                .gap_ms = NAN};
    return night;
}

/* Every field another value, so that no two columns can be taken for each other. */
static struct store_night full_night(int64_t number) {
    struct store_night night = {.number = number, .night_ms = 101, .started_ms = 102, .ended_ms = 103, .kind = "train",
                                .state = "done", .reason = "the window has closed", .run = 104, .runs = 105,
                                .tokens = 106, .steps = 107, .seconds = 108.5, .work_seconds = 109.5, .cpu_s = 110.5,
                                .modelled_cpu_s = 111.5, .joules_measured = 112.5, .joules_battery = 113.5,
                                .joules_modelled = 114.5, .marked = 115, .written = 116, .pauses = 117,
                                .loss_before = 118.5, .loss_after = 119.5, .adapter = 120, .governor_cpu_s = 121.5,
                                .gap_ms = 122.5, .celsius_max = 123.5};
    return night;
}

#define SAME(field) assert_true(a->field == b->field || (isnan((double)a->field) && isnan((double)b->field)))
static void assert_same_night(const struct store_night *a, const struct store_night *b) {
    assert_string_equal(a->kind, b->kind);
    assert_string_equal(a->state, b->state);
    assert_string_equal(a->reason, b->reason);
    SAME(number), SAME(night_ms), SAME(started_ms), SAME(ended_ms), SAME(run), SAME(runs), SAME(tokens), SAME(steps);
    SAME(seconds), SAME(work_seconds), SAME(cpu_s), SAME(modelled_cpu_s), SAME(joules_measured), SAME(joules_battery);
    SAME(joules_modelled), SAME(marked), SAME(written), SAME(pauses), SAME(loss_before), SAME(loss_after);
    SAME(adapter), SAME(governor_cpu_s), SAME(gap_ms), SAME(celsius_max);
}

static void assert_same_moment(const struct store_moment *a, const struct store_moment *b) {
    assert_string_equal(a->verdict, b->verdict);
    assert_string_equal(a->reason, b->reason);
    SAME(time_ms), SAME(celsius), SAME(watts), SAME(percent), SAME(loss), SAME(joules), SAME(steps);
}

struct seen {
    struct store_night night[16];
    int n, most;
};
static int see(const struct store_night *night, void *user) {
    struct seen *seen = user;
    assert_true(seen->n < 16);
    seen->night[seen->n++] = *night;
    return seen->most && seen->n == seen->most;
}
static void nights(struct fixture *f, int64_t since, int64_t limit, struct seen *seen) {
    seen->n = 0;
    OK(store_nights(f->store, since, limit, see, seen, &f->err));
}

static void test_a_row(void **state) {
    struct fixture *f = *state;
    struct store_night night = made_night(5000), full;
    struct seen seen = {.n = 0};
    OK(store_night_begin(f->store, &night, NULL, NULL, &f->err));
    assert_int_equal(night.number, 1);
    nights(f, 0, 0, &seen);
    assert_int_equal(seen.n, 1);
    assert_same_night(&seen.night[0], &night);
    full = full_night(1);
    OK(store_night_update(f->store, &full, NULL, 0, &f->err));
    nights(f, 0, 0, &seen);
    assert_int_equal(seen.n, 1);
    assert_same_night(&seen.night[0], &full);
    assert_int_equal(query_number(f, "SELECT count(*) FROM night WHERE loss_before IS NULL"), 0);
    full.loss_before = INFINITY; /* a loss that burst is one that is not known */
    full.gap_ms = NAN;
    OK(store_night_update(f->store, &full, NULL, 0, &f->err));
    nights(f, 0, 0, &seen);
    full.loss_before = NAN;
    assert_same_night(&seen.night[0], &full);
    assert_int_equal(query_number(f, "SELECT count(*) FROM night WHERE loss_before IS NULL AND gap_ms IS NULL"), 1);
    assert_sound(f);
}

static void test_listing(void **state) {
    struct fixture *f = *state;
    static const int64_t started[] = {3000, 1000, 2000, 2000};
    struct seen seen = {.n = 0};
    for (int i = 0; i < 4; i++) {
        struct store_night night = made_night(started[i]);
        OK(store_night_begin(f->store, &night, NULL, NULL, &f->err));
    }
    nights(f, 0, 0, &seen);
    assert_int_equal(seen.n, 4);
    static const int64_t order[] = {1, 4, 3, 2};
    for (int i = 0; i < 4; i++) assert_int_equal(seen.night[i].number, order[i]);
    nights(f, 2000, 0, &seen);
    assert_int_equal(seen.n, 3);
    nights(f, 0, 2, &seen);
    assert_int_equal(seen.n, 2);
    seen.most = 1;
    nights(f, 0, 0, &seen);
    assert_int_equal(seen.n, 1);
}

/* ---- killed ---- */

static void charge(struct store_night *night, void *user) {
    int *calls = user;
    ++*calls;
    assert_string_equal(night->state, "killed");
    assert_true(night->joules_measured == 7);
    night->joules_modelled += 40;
    night->marked++;
    night->number = 99; /* neither of these is its to change */
    strcpy(night->state, "running");
}

static void test_killed(void **state) {
    struct fixture *f = *state;
    struct store_night first = made_night(1000), second = made_night(2000), third = made_night(3000);
    struct seen seen = {.n = 0};
    int calls = 0;
    first.joules_measured = 7;
    OK(store_night_begin(f->store, &first, charge, &calls, &f->err));
    assert_int_equal(calls, 0);
    OK(store_night_begin(f->store, &second, charge, &calls, &f->err));
    assert_int_equal(calls, 1);
    OK(store_night_begin(f->store, &third, NULL, NULL, &f->err)); /* no callback: the figures stay */
    nights(f, 0, 0, &seen);
    assert_int_equal(seen.n, 3);
    assert_string_equal(seen.night[0].state, "running");
    assert_string_equal(seen.night[1].state, "killed");
    assert_string_equal(seen.night[2].state, "killed");
    assert_true(seen.night[1].joules_modelled == 0);
    assert_int_equal(seen.night[2].number, 1);
    assert_true(seen.night[2].joules_modelled == 40 && seen.night[2].joules_measured == 7);
    assert_int_equal(seen.night[2].marked, 1);
    assert_int_equal(seen.night[2].ended_ms, 0);
}

static void write_inside(struct store_night *night, void *user) {
    struct fixture *f = user;
    attune_error err;
    struct store_spent spent;
    assert_int_equal(store_night_update(f->store, night, NULL, 0, &err), ATTUNE_ERROR_STATE);
    OK(store_spent_since(f->store, 0, &spent, &f->err));
}
static void spoil(struct store_night *night, void *user) {
    (void)user;
    night->joules_modelled = NAN;
}

/* What the callback makes of the killed row is of one transaction with the new one. */
static void test_the_callback_is_inside(void **state) {
    struct fixture *f = *state;
    struct store_night first = made_night(1000), second = made_night(2000);
    struct seen seen = {.n = 0};
    OK(store_night_begin(f->store, &first, NULL, NULL, &f->err));
    FAILS(store_night_begin(f->store, &second, spoil, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "modelled joules", "");
    assert_int_equal(second.number, 0);
    nights(f, 0, 0, &seen);
    assert_int_equal(seen.n, 1);
    assert_same_night(&seen.night[0], &first);
    OK(store_night_begin(f->store, &second, write_inside, f, &f->err));
    assert_int_equal(second.number, 2);
}

/* ---- moments ---- */

static void test_moments(void **state) {
    struct fixture *f = *state;
    struct store_night night = made_night(1000), other = made_night(1000);
    struct store_moment in[200], *out = NULL;
    size_t n = 99;
    other.number = 7;
    OK(store_night_begin(f->store, &night, NULL, NULL, &f->err));
    OK(store_moments(f->store, 1, &out, &n, &f->err));
    assert_int_equal(n, 0);
    free(out);
    for (int i = 0; i < 200; i++) {
        in[i] = (struct store_moment){.time_ms = 1000 + i, .verdict = "throttle", .reason = "pressure_cpu",
                                      .celsius = i, .watts = 1000 + i, .percent = 2000 + i, .loss = 3000 + i,
                                      .joules = 4000 + i, .steps = 5000 + i};
    }
    in[5].celsius = in[5].watts = in[5].percent = in[5].loss = NAN;
    OK(store_night_update(f->store, &night, in + 100, 100, &f->err)); /* the later ones first: a clock was set back */
    OK(store_night_update(f->store, &night, in, 100, &f->err));
    OK(store_moments(f->store, 1, &out, &n, &f->err));
    assert_int_equal(n, 200);
    for (int i = 0; i < 200; i++) assert_same_moment(&out[i], &in[i]);
    free(out);
    assert_int_equal(query_number(f, "SELECT count(*) FROM moment WHERE celsius IS NULL AND watts IS NULL AND percent "
                                     "IS NULL AND loss IS NULL"), 1);
    FAILS(store_night_update(f->store, &other, in, 1, &f->err), ATTUNE_ERROR_NOT_FOUND, "no night 7", "store.db");
    in[1].joules = INFINITY; /* the first moment goes with the one that is refused */
    FAILS(store_night_update(f->store, &night, in, 2, &f->err), ATTUNE_ERROR_ARGUMENT, "joules", "");
    OK(store_moments(f->store, 1, &out, &n, &f->err));
    assert_int_equal(n, 200);
    free(out);
}

/* ---- sums and retention ---- */

static void end_night(struct fixture *f, int64_t started, double scale) {
    struct store_night night = made_night(started);
    OK(store_night_begin(f->store, &night, NULL, NULL, &f->err));
    strcpy(night.state, "done");
    night.seconds = scale;
    night.joules_measured = 10 * scale;
    night.joules_battery = 100 * scale;
    night.joules_modelled = 1000 * scale;
    night.written = (int64_t)(10000 * scale);
    struct store_moment moment = {.time_ms = started, .verdict = "run", .reason = "none"};
    OK(store_night_update(f->store, &night, &moment, 1, &f->err));
}

static void test_spent_and_removed(void **state) {
    struct fixture *f = *state;
    struct store_spent spent;
    OK(store_spent_since(f->store, 0, &spent, &f->err));
    assert_true(spent.seconds == 0 && spent.joules_measured == 0 && spent.joules_battery == 0);
    assert_true(spent.joules_modelled == 0 && spent.written == 0);
    end_night(f, 1000, 1);
    end_night(f, 2000, 2);
    end_night(f, 3000, 4);
    OK(store_spent_since(f->store, 2000, &spent, &f->err));
    assert_true(spent.seconds == 6 && spent.joules_measured == 60 && spent.joules_battery == 600);
    assert_true(spent.joules_modelled == 6000 && spent.written == 60000);
    struct store_night running = made_night(500);
    OK(store_night_begin(f->store, &running, NULL, NULL, &f->err));
    OK(store_nights_remove(f->store, 0, &f->err));
    assert_int_equal(query_number(f, "SELECT count(*) FROM night"), 4);
    OK(store_nights_remove(f->store, 3000, &f->err));
    assert_int_equal(query_number(f, "SELECT count(*) FROM night"), 2);
    assert_int_equal(query_number(f, "SELECT count(*) FROM moment"), 1);
    assert_int_equal(query_number(f, "SELECT count(*) FROM night WHERE number IN (3, 4)"), 2);
    assert_sound(f);
}

/* ---- what is refused ---- */

static void test_refused(void **state) {
    struct fixture *f = *state;
    struct store_night night = made_night(1000), bad;
    struct store_moment moment = {.time_ms = 1, .verdict = "run", .reason = "none"};
    OK(store_night_begin(f->store, &night, NULL, NULL, &f->err));
    double *const sums[] = {&bad.seconds, &bad.work_seconds, &bad.cpu_s, &bad.modelled_cpu_s, &bad.joules_measured,
                            &bad.joules_battery, &bad.joules_modelled, &bad.governor_cpu_s};
    int64_t *const counts[] = {&bad.runs, &bad.tokens, &bad.steps, &bad.marked, &bad.written, &bad.pauses};
    static const double values[] = {NAN, INFINITY, -1};
    for (size_t i = 0; i < sizeof sums / sizeof *sums; i++)
        for (int v = 0; v < 3; v++) {
            bad = night;
            *sums[i] = values[v];
            FAILS(store_night_update(f->store, &bad, NULL, 0, &f->err), ATTUNE_ERROR_ARGUMENT, "of a night cannot be",
                  "");
        }
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        bad = night;
        *counts[i] = -1;
        FAILS(store_night_update(f->store, &bad, NULL, 0, &f->err), ATTUNE_ERROR_ARGUMENT, "of a night cannot be", "");
    }
    const struct {
        char *text;
        size_t size;
        const char *word;
    } texts[] = {{bad.kind, sizeof bad.kind, "kind"}, {bad.state, sizeof bad.state, "state"},
                 {bad.reason, sizeof bad.reason, "reason"}};
    for (int i = 0; i < 3; i++) {
        bad = night;
        memset(texts[i].text, 'x', texts[i].size);
        FAILS(store_night_update(f->store, &bad, NULL, 0, &f->err), ATTUNE_ERROR_ARGUMENT, texts[i].word, "");
        FAILS(store_night_begin(f->store, &bad, NULL, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, texts[i].word, "");
    }
    bad = night;
    strcpy(bad.state, "asleep");
    FAILS(store_night_update(f->store, &bad, NULL, 0, &f->err), ATTUNE_ERROR_ARGUMENT, "not allowed", "store.db");
    memset(moment.reason, 'x', sizeof moment.reason);
    FAILS(store_night_update(f->store, &night, &moment, 1, &f->err), ATTUNE_ERROR_ARGUMENT, "reason of a moment", "");
    struct seen seen = {.n = 0};
    nights(f, 0, 0, &seen);
    assert_int_equal(seen.n, 1);
    assert_same_night(&seen.night[0], &night);
}

/* ---- what work costs ---- */

static void test_cost(void **state) {
    struct fixture *f = *state;
    struct store_cost in = {.key = "train avx2 4 auto b179c952", .seconds_per_unit = 0.0125, .watts = 17.5,
                            .seconds_spread = 0.03, .watts_spread = NAN, .weight = 900, .updated_ms = 12345},
                      out, bad = in;
    FAILS(store_cost_get(f->store, in.key, &out, &f->err), ATTUNE_ERROR_NOT_FOUND, "nothing is known", "store.db");
    OK(store_cost_put(f->store, &in, &f->err));
    in.watts = 18.5;
    OK(store_cost_put(f->store, &in, &f->err));
    OK(store_cost_get(f->store, in.key, &out, &f->err));
    assert_string_equal(out.key, in.key);
    assert_true(out.seconds_per_unit == in.seconds_per_unit && out.watts == 18.5 && out.seconds_spread == 0.03);
    assert_true(isnan(out.watts_spread) && out.weight == 900 && out.updated_ms == 12345);
    assert_int_equal(query_number(f, "SELECT count(*) FROM cost"), 1);
    memset(bad.key, 'k', sizeof bad.key);
    FAILS(store_cost_put(f->store, &bad, &f->err), ATTUNE_ERROR_ARGUMENT, "key of a cost", "");
    bad.key[0] = 0;
    FAILS(store_cost_put(f->store, &bad, &f->err), ATTUNE_ERROR_ARGUMENT, "wants a key", "");
    bad = in;
    bad.weight = NAN;
    FAILS(store_cost_put(f->store, &bad, &f->err), ATTUNE_ERROR_ARGUMENT, "weight", "");
}

/* ---- a disk that fails ---- */

static int change(struct fixture *f, struct store_night *night) {
    struct store_moment moments[40];
    for (int i = 0; i < 40; i++)
        moments[i] = (struct store_moment){.time_ms = i, .verdict = "pause", .reason = "hot", .joules = i};
    *night = full_night(1);
    return store_night_update(f->store, night, moments, 40, &f->err);
}

/* Whatever fails on the way: the former row with no moment, or the new one with all of them. */
static void test_a_write_that_fails(void **state) {
    struct fixture *f = *state;
    struct store_night first = made_night(1000), night;
    struct seen seen = {.n = 0};
    uint64_t failed = 0, n = 1;
    OK(store_night_begin(f->store, &first, NULL, NULL, &f->err));
    for (uint64_t fired = 1; fired; n++) {
        faulty_set(FAULTY_CHANGE | FAULTY_LOCK | FAULTY_READ, n, n % 2 ? FAULTY_ONWARD : FAULTY_HALF, SQLITE_IOERR);
        int code = change(f, &night);
        fired = faulty_fired();
        faulty_clear();
        assert_true(code == ATTUNE_OK || code == ATTUNE_ERROR_IO);
        failed += code != ATTUNE_OK;
        nights(f, 0, 0, &seen);
        assert_int_equal(seen.n, 1);
        assert_same_night(&seen.night[0], code == ATTUNE_OK ? &night : &first);
        assert_int_equal(query_number(f, "SELECT count(*) FROM moment"), code == ATTUNE_OK ? 40 : 0);
        attune_store_close(f->store);
        f->store = NULL;
        OK(store_open_path(f->home, 0, &f->store, &f->err));
        OK(store_night_update(f->store, &(struct store_night){.number = 1, .kind = "x", .state = "done"}, NULL, 0,
                              &f->err));
        OK(store_nights_remove(f->store, INT64_MAX, &f->err));
        OK(store_night_begin(f->store, &first, NULL, NULL, &f->err));
        assert_int_equal(first.number, 1);
    }
    assert_true(failed >= 3 && n > 5);
    assert_sound(f);
}

struct cut {
    const struct fixture *f;
    char to[64];
    uint64_t seed;
};
static void cut_power(const struct faulty_op *op, void *user) {
    struct cut *cut = user;
    if (op->done) return;
    assert_int_equal(faulty_power_cut(cut->f->home, cut->to, cut->seed), 0);
}

/* A kill with the power going at any write: the next night finds the former row and ends it as killed, or the one that
 * was begun, and never moments without their row. */
static void test_a_kill_in_the_middle(void **state) {
    struct fixture *f = *state;
    struct store_night first = made_night(1000), night;
    int formers = 0, cuts = 0;
    OK(store_night_begin(f->store, &first, NULL, NULL, &f->err));
    for (uint64_t n = 1;; n++) {
        struct cut cut = {.f = f, .to = "/tmp/attune-test-XXXXXX", .seed = n};
        assert_non_null(mkdtemp(cut.to));
        faulty_at(n, cut_power, &cut);
        faulty_set(FAULTY_CHANGE, 0, 0, SQLITE_OK);
        int code = change(f, &night);
        int over = faulty_count() < n;
        faulty_clear();
        assert_int_equal(code, ATTUNE_OK);
        if (!over) {
            struct fixture after = {.store = NULL};
            struct store_night next = made_night(2000);
            struct seen seen = {.n = 0};
            strcpy(after.home, cut.to);
            OK(store_open_path(after.home, 0, &after.store, &f->err));
            OK(store_night_begin(after.store, &next, NULL, NULL, &f->err));
            nights(&after, 0, 0, &seen);
            assert_int_equal(seen.n, 2);
            int former = strcmp(seen.night[1].state, "killed") == 0;
            struct store_night wanted = former ? first : night;
            if (former) strcpy(wanted.state, "killed");
            assert_same_night(&seen.night[1], &wanted);
            assert_int_equal(query_number(&after, "SELECT count(*) FROM moment"), former ? 0 : 40);
            formers += former, cuts++;
            attune_store_close(after.store);
        }
        remove_folder(cut.to);
        if (over) break;
        OK(store_nights_remove(f->store, INT64_MAX, &f->err));
        OK(store_night_begin(f->store, &first, NULL, NULL, &f->err));
    }
    assert_true(cuts > 2 && formers > 0);
}

static void test_memory_runs_out(void **state) {
    struct fixture *f = *state;
    struct store_night first = made_night(1000), night;
    struct store_moment *out = NULL;
    size_t n = 0;
    int failed = 0, code = ATTUNE_ERROR_MEMORY;
    OK(store_night_begin(f->store, &first, NULL, NULL, &f->err));
    OK(change(f, &night));
    for (uint64_t at = 1; code != ATTUNE_OK; at++) {
        faulty_heap_fail(at, 0);
        code = store_moments(f->store, 1, &out, &n, &f->err);
        faulty_heap_fail(0, 0);
        assert_true(code == ATTUNE_OK || code == ATTUNE_ERROR_MEMORY);
        failed += code != ATTUNE_OK;
    }
    assert_true(failed > 0 && n == 40);
    free(out);
}

/* ---- bytes ---- */

static int64_t log_bytes(const struct fixture *f) {
    struct stat info;
    assert_int_equal(stat(in_home(f, "store.db-wal"), &info), 0);
    return info.st_size;
}

static void test_bytes_written(void **state) {
    struct fixture *f = *state;
    struct store_night first = made_night(1000), night;
    int64_t before = -1, after = -1;
    enum { PAGE = 4096, FRAME = PAGE + 24 };
    OK(store_night_begin(f->store, &first, NULL, NULL, &f->err));
    OK(store_written(f->store, &before, &f->err));
    int64_t log = log_bytes(f);
    OK(change(f, &night));
    OK(change(f, &night));
    OK(store_written(f->store, &after, &f->err));
    int64_t frames = (log_bytes(f) - log) / FRAME;
    assert_true(frames >= 2);
    assert_true(after - before >= 2 * PAGE * frames); /* a page that is written twice stands in the log once */
    assert_true(after - before <= 2 * PAGE * (frames + 2));
    OK(attune_store_suspend(f->store, &f->err));
    OK(attune_store_resume(f->store, &f->err));
    OK(store_written(f->store, &before, &f->err));
    assert_true(before >= after);
}

/* ---- forgetting everything leaves them; a copy of the store has them ---- */

static void test_nights_stay_and_move(void **state) {
    struct fixture *f = *state;
    struct store_night first = made_night(1000), night;
    attune_filter all;
    attune_forget_result result;
    ATTUNE_INIT(all);
    ATTUNE_INIT(result);
    OK(record(f->store, "p", "r", 1, NULL, &f->err));
    OK(store_night_begin(f->store, &first, NULL, NULL, &f->err));
    OK(change(f, &night));
    OK(attune_store_forget(f->store, &all, &result, &f->err));
    assert_int_equal(count_interactions(f), 0);
    OK(store_copy(f->store, in_home(f, "copy.db"), &f->err));
    attune_store_close(f->store);
    f->store = NULL;
    assert_int_equal(rename(in_home(f, "copy.db"), in_home(f, "store.db")), 0);
    unlink(in_home(f, "store.db-wal"));
    unlink(in_home(f, "store.db-shm"));
    OK(store_open_path(f->home, 0, &f->store, &f->err));
    struct seen seen = {.n = 0};
    nights(f, 0, 0, &seen);
    assert_int_equal(seen.n, 1);
    assert_same_night(&seen.night[0], &night);
    assert_int_equal(query_number(f, "SELECT count(*) FROM moment"), 40);
}

int main(void) {
    if (faulty_install() != SQLITE_OK) return 1;
#define WITH_STORE(test) cmocka_unit_test_setup_teardown(test, store_setup, store_teardown)
    const struct CMUnitTest tests[] = {
        WITH_STORE(test_a_row), WITH_STORE(test_listing), WITH_STORE(test_killed),
        WITH_STORE(test_the_callback_is_inside), WITH_STORE(test_moments), WITH_STORE(test_spent_and_removed),
        WITH_STORE(test_refused), WITH_STORE(test_cost),
        WITH_STORE(test_a_write_that_fails), WITH_STORE(test_a_kill_in_the_middle),
        WITH_STORE(test_memory_runs_out), WITH_STORE(test_bytes_written),
        WITH_STORE(test_nights_stay_and_move),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
