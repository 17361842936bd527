/* Going back by itself: the test's two errors, what an answer comes to, and a home that goes back once. */
#include "job/rollback.h"
#include "core/base/random.h"
#include "tests/home_fixture.h"

#include <math.h>

/* ---- the test, on streams that are made up ---- */

enum { STREAMS = 1000, LOOKS = 2000, BEFORE = 200 };

static int draw(uint64_t key, uint64_t at, double share) {
    return (double)(random_u64(key, at) >> 11) * 0x1p-53 < share;
}
static void add(struct store_outcomes *c, int good) {
    c->good += good;
    c->bad += !good;
}

/* Answers until it goes back, looked at after each; 0: it never does. */
static int first_alarm(uint64_t key, double before_share, double share) {
    struct store_outcomes before = {0}, now = {0};
    for (uint64_t i = 0; i < BEFORE; i++) add(&before, draw(key, i, before_share));
    for (int n = 1; n <= LOOKS; n++) {
        add(&now, draw(key, (uint64_t)(BEFORE + n), share));
        if (rollback_evidence(before, now) >= ROLLBACK_EVIDENCE) return n;
    }
    return 0;
}

static int false_alarms(double share) {
    int alarms = 0;
    for (int i = 0; i < STREAMS; i++) alarms += first_alarm(random_mix(7000 + (uint64_t)i), share, share) > 0;
    return alarms;
}

static void test_false_alarms(void **state) {
    (void)state;
    static const double shares[] = {0.5, 0.7, 0.95};
    for (size_t i = 0; i < sizeof shares / sizeof *shares; i++) {
        int alarms = false_alarms(shares[i]);
        print_message("equal shares of %.2f: %d of %d streams of %d answers\n", shares[i], alarms, STREAMS, LOOKS);
        assert_true(alarms <= STREAMS / 20);
    }
}

static int compare_int(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

static void test_power(void **state) {
    (void)state;
    int after[STREAMS];
    for (int i = 0; i < STREAMS; i++) {
        int n = first_alarm(random_mix(90000 + (uint64_t)i), 0.7, 0.4);
        after[i] = n ? n : LOOKS + 1;
    }
    qsort(after, STREAMS, sizeof *after, compare_int);
    print_message("from 0.7 of %d to 0.4: half go back within %d answers, nine of ten within %d\n", BEFORE,
                  after[STREAMS / 2], after[STREAMS * 9 / 10]);
    assert_true(after[STREAMS / 2] <= 80 && after[STREAMS * 9 / 10] <= 160);
}

static void test_evidence(void **state) {
    (void)state;
    struct store_outcomes none = {0, 0};
    assert_true(fabs(rollback_evidence(none, none) - 1) < 1e-9);
    /* few answers, whatever they are; and nothing to compare with */
    assert_true(rollback_evidence((struct store_outcomes){5, 0}, (struct store_outcomes){0, 3}) < ROLLBACK_EVIDENCE);
    assert_true(rollback_evidence(none, (struct store_outcomes){0, 400}) <= 1);
    assert_true(rollback_evidence((struct store_outcomes){400, 0}, none) <= 1);
    /* better is no reason, however clear */
    assert_true(rollback_evidence((struct store_outcomes){10, 90}, (struct store_outcomes){90, 10}) < 1);
    assert_true(rollback_evidence((struct store_outcomes){90, 10}, (struct store_outcomes){10, 90}) > 1e6);
}

static void test_outcomes(void **state) {
    (void)state;
    const char *answer = "The meeting is on Monday at nine, in the large room upstairs.";
    assert_int_equal(store_outcome_of(1, 0, answer, NULL), 1);
    assert_int_equal(store_outcome_of(-1, 1, answer, NULL), -1);
    assert_int_equal(store_outcome_of(0, 1, answer, NULL), 1);
    assert_int_equal(store_outcome_of(0, 0, answer, NULL), 0);
    /* mended: neither; written anew: bad; a verdict that was told goes before */
    assert_int_equal(store_outcome_of(0, 1, answer, "The meeting is on Tuesday at nine, in the small room."), 0);
    assert_int_equal(store_outcome_of(0, 1, answer, "Sorry, I cannot come this week!"), -1);
    assert_int_equal(store_outcome_of(0, 1, answer, "The meeting is on hold."), -1); /* 4 of 12 words */
    assert_int_equal(store_outcome_of(1, 1, answer, "Sorry, I cannot come this week!"), 1);
}

/* ---- a home ---- */

static void answers(struct homes *f, const char *adapter, int good, int bad) {
    attune_store *store = NULL;
    OK(attune_store_open(f->home, NULL, &store, &f->err));
    for (int i = 0; i < good + bad; i++) {
        attune_interaction interaction;
        attune_feedback feedback;
        attune_uuid id;
        ATTUNE_INIT(interaction);
        ATTUNE_INIT(feedback);
        interaction.prompt = "And what do you say to this?";
        interaction.response = "This.";
        interaction.model = sql_text(f, "SELECT base_sha256 FROM run LIMIT 1");
        interaction.adapter = adapter;
        interaction.tier = ATTUNE_TIER_TOOL; /* nothing to learn from */
        feedback.kind = ATTUNE_FEEDBACK_THUMB;
        feedback.value = i < good ? 1 : -1;
        OK(attune_store_record(store, &interaction, &id, &f->err));
        OK(attune_store_feedback(store, id.text, &feedback, &f->err));
    }
    OK(attune_store_flush(store, &f->err));
    attune_store_close(store);
}

static int step_once(struct homes *f) {
    attune_job_options options = job_options();
    attune_job_report report;
    GIVES(run_job(f, &options, &report), ATTUNE_PAUSED); /* nothing new to learn */
    return report.rolled_back;
}

static void test_home(void **state) {
    struct homes *f = *state;
    make_home(f, TINY_BASE, 1);
    import_rows(f, 0, 6);
    publish_run(f, 1);
    char sha256[65];
    strcpy(sha256, adapter_info(f, 1).sha256);
    answers(f, NULL, 27, 3);
    answers(f, sha256, 2, 4);
    attune_status status = home_status(f);
    assert_true(status.answers_good == 2 && status.answers_bad == 4);
    assert_true(status.before_good == 27 && status.before_bad == 3);
    assert_int_equal(status.rollback_pending, 0);
    assert_int_equal(step_once(f), 0);

    answers(f, sha256, 2, 26);
    assert_int_equal(home_status(f).rollback_pending, 1);
    set_key(f, "rollback", "never");
    assert_int_equal(home_status(f).rollback_pending, 2);
    assert_int_equal(step_once(f), 0);
    assert_int_equal(home_status(f).active_adapter, 1);
    set_key(f, "rollback", "automatic");
    assert_int_equal(step_once(f), 1);
    status = home_status(f);
    assert_int_equal(status.active_adapter, 0);
    assert_true(status.rollback_pending == 0 && status.rollback_evidence == 0);
    attune_adapter_info info = adapter_info(f, 1);
    assert_string_equal(info.state, "rejected");
    assert_non_null(strstr(info.reason, "rolled back to the base: 4 of 34 answers were good, 27 of 30 before"));

    /* whoever uses it all the same is not overruled by what was said before; by new answers it is */
    OK(attune_adapter_use(f->home, 1, &f->err));
    assert_string_equal(adapter_info(f, 1).reason, "");
    assert_int_equal(home_status(f).answers_bad, 0);
    assert_int_equal(step_once(f), 0);
    assert_int_equal(home_status(f).active_adapter, 1);
    answers(f, sha256, 0, 20);
    assert_int_equal(step_once(f), 1);
    assert_int_equal(home_status(f).active_adapter, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_false_alarms), cmocka_unit_test(test_power), cmocka_unit_test(test_evidence),
        cmocka_unit_test(test_outcomes), cmocka_unit_test_setup_teardown(test_home, homes_setup, homes_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
