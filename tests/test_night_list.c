/* Nights and moments through the public interface. */
#include "tests/home_fixture.h"

#include "datastore/nights.h"

static const int64_t NIGHT_MS = INT64_C(1774990800000);

static int set_up(void **state) {
    struct homes *f = calloc(1, sizeof *f);
    assert_non_null(f);
    strcpy(f->folder, "/tmp/attune-night-list-XXXXXX");
    assert_non_null(mkdtemp(f->folder));
    snprintf(f->home, sizeof f->home, "%s/home", f->folder);
    OK(attune_home_init(f->home, TINY_BASE, NULL, &f->err));
    *state = f;
    return 0;
}

static int tear_down(void **state) {
    struct homes *f = *state;
    shell("rm -rf %s", f->folder);
    free(f);
    return 0;
}

/* Two nights; the second has three moments. */
static void fill(struct homes *f) {
    attune_store *store = NULL;
    OK(store_open_path(f->home, 0, &store, &f->err));
    for (int i = 0; i < 2; i++) {
        struct store_night n = {.night_ms = NIGHT_MS + i, .started_ms = NIGHT_MS + 10 + i, .kind = "nightly",
                                .state = "running", .loss_before = NAN, .loss_after = NAN, .celsius_max = NAN};
        OK(store_night_begin(store, &n, NULL, NULL, &f->err));
        n = (struct store_night){.number = n.number,
                                 .night_ms = n.night_ms,
                                 .started_ms = n.started_ms,
                                 .ended_ms = NIGHT_MS + 20 + i,
                                 .kind = "nightly",
                                 .state = "done",
                                 .reason = "why",
                                 .run = 3,
                                 .runs = 2,
                                 .tokens = 100,
                                 .steps = 7,
                                 .seconds = 9,
                                 .work_seconds = 8,
                                 .joules_measured = 1,
                                 .joules_battery = 2,
                                 .joules_modelled = 3,
                                 .marked = 4,
                                 .written = 5,
                                 .pauses = 6,
                                 .loss_before = 2.5,
                                 .loss_after = i ? NAN : 2.25,
                                 .adapter = 11,
                                 .celsius_max = 70};
        const struct store_moment moments[] = {
            {.time_ms = NIGHT_MS + 1, .verdict = "run", .reason = "none", .celsius = 50, .watts = 12, .percent = 90,
             .loss = 2.4, .joules = 5, .steps = 1},
            {.time_ms = NIGHT_MS + 2, .verdict = "stop", .reason = "no_charger", .celsius = NAN, .watts = NAN,
             .percent = NAN, .loss = NAN, .joules = 6, .steps = 1},
            {.time_ms = NIGHT_MS + 3, .verdict = "pause", .reason = "of_a_later_day", .celsius = NAN, .watts = NAN,
             .percent = NAN, .loss = NAN, .joules = 6, .steps = 1}};
        OK(store_night_update(store, &n, moments, i ? 3 : 0, &f->err));
    }
    attune_store_close(store);
}

struct seen {
    attune_night nights[4];
    attune_moment moments[4];
    char reasons[4][64], verdicts[4][16];
    int n, stop_at;
};

static int on_night(const attune_night *night, void *user) {
    struct seen *s = user;
    s->nights[s->n++] = *night;
    return s->n == s->stop_at;
}

static int on_moment(const attune_moment *moment, void *user) {
    struct seen *s = user;
    s->moments[s->n] = *moment;
    snprintf(s->reasons[s->n], sizeof s->reasons[0], "%s", moment->reason);
    snprintf(s->verdicts[s->n++], sizeof s->verdicts[0], "%s", moment->verdict);
    return s->n == s->stop_at;
}

static void every_figure_comes_through(void **state) {
    struct homes *f = *state;
    struct seen s = {.n = 0};
    fill(f);
    OK(attune_night_list(f->home, 0, on_night, &s, &f->err));
    assert_int_equal(s.n, 2);
    const attune_night *n = &s.nights[1]; /* the older */
    assert_true(s.nights[0].night_ms == NIGHT_MS + 1 && n->night_ms == NIGHT_MS);
    assert_true(isnan(s.nights[0].loss_after));
    assert_true(n->size == sizeof *n && n->number == 1 && n->started_ms == NIGHT_MS + 10 &&
                n->ended_ms == NIGHT_MS + 20);
    assert_string_equal(n->kind, "nightly");
    assert_string_equal(n->state, "done");
    assert_string_equal(n->reason, "why");
    assert_true(n->run == 3 && n->runs == 2 && n->tokens == 100 && n->steps == 7 && n->seconds == 9);
    assert_true(n->work_seconds == 8 && n->joules_measured == 1 && n->joules_battery == 2 && n->joules_modelled == 3);
    assert_true(n->marked == 4 && n->written == 5 && n->pauses == 6 && n->loss_before == 2.5 && n->loss_after == 2.25);
    assert_true(n->adapter == 11 && n->celsius_max == 70);
}

static void a_limit_and_a_callback_stop(void **state) {
    struct homes *f = *state;
    struct seen one = {.n = 0}, stopped = {.stop_at = 1};
    fill(f);
    OK(attune_night_list(f->home, 1, on_night, &one, &f->err));
    assert_int_equal(one.n, 1);
    OK(attune_night_list(f->home, 0, on_night, &stopped, &f->err));
    assert_int_equal(stopped.n, 1);
}

static void moments_have_reasons_for_people(void **state) {
    struct homes *f = *state;
    struct seen s = {.n = 0}, none = {.n = 0}, stopped = {.stop_at = 2};
    fill(f);
    OK(attune_night_moments(f->home, 2, on_moment, &s, &f->err));
    assert_int_equal(s.n, 3);
    assert_true(s.moments[0].time_ms == NIGHT_MS + 1 && s.moments[0].celsius == 50 && s.moments[0].watts == 12);
    assert_true(s.moments[0].percent == 90 && s.moments[0].loss == 2.4 && s.moments[0].joules == 5);
    assert_true(s.moments[0].steps == 1 && isnan(s.moments[1].celsius) && isnan(s.moments[1].loss));
    assert_string_equal(s.verdicts[1], "stop");
    assert_string_equal(s.reasons[0], "");
    assert_string_equal(s.reasons[1], "not on a charger");
    assert_string_equal(s.reasons[2], "of_a_later_day");
    OK(attune_night_moments(f->home, 2, on_moment, &stopped, &f->err));
    assert_int_equal(stopped.n, 2);
    OK(attune_night_moments(f->home, 1, on_moment, &none, &f->err));
    assert_int_equal(none.n, 0);
}

static void mistakes_are_told(void **state) {
    struct homes *f = *state;
    struct seen s = {.n = 0};
    FAILS(attune_night_list(f->home, 0, NULL, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "callback", "");
    FAILS(attune_night_list(f->home, -1, on_night, &s, &f->err), ATTUNE_ERROR_ARGUMENT, "limit", "");
    FAILS(attune_night_moments(f->home, 1, NULL, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "callback", "");
    GIVES(attune_night_list(f->folder, 0, on_night, &s, &f->err), ATTUNE_ERROR_NOT_FOUND);
    assert_int_equal(s.n, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(every_figure_comes_through, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_limit_and_a_callback_stop, set_up, tear_down),
        cmocka_unit_test_setup_teardown(moments_have_reasons_for_people, set_up, tear_down),
        cmocka_unit_test_setup_teardown(mistakes_are_told, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
