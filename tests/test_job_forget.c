/* A job beside an app that forgets: the run ends, nothing of it stays, and the next one is the one that never saw the
 * rows. And jobs on encrypted stores. */
#include "job/phases.h"
#include "tests/home_fixture.h"

/* ---- forgetting beside a run ---- */

/* The interaction with this rowid, in the way of an app: beside the job, without its lock. */
static void take_back(struct homes *f, int id, int forget) {
    char uuid[40], query[80];
    attune_filter filter;
    attune_store *store = NULL;
    snprintf(query, sizeof query, "SELECT uuid FROM interaction WHERE id = %d", id);
    snprintf(uuid, sizeof uuid, "%s", sql_text(f, query));
    assert_int_equal(strlen(uuid), 36);
    const char *ids[] = {uuid};
    ATTUNE_INIT(filter);
    filter.ids = ids;
    filter.n_ids = 1;
    OK(attune_store_open(f->home, NULL, &store, &f->err));
    if (forget)
        OK(attune_store_forget(store, &filter, NULL, &f->err));
    else
        OK(attune_store_consent(store, 0, &filter, NULL, &f->err));
    attune_store_close(store);
}
static void forget_row(struct homes *f, int id) { take_back(f, id, 1); }

static void expect_nothing_left(struct homes *f) {
    assert_false(exists(in_home(f, "checkpoint.gguf")));
    assert_false(exists(in_home(f, "cache/tokens.gguf")));
    shell("test -z \"$(find %s -name '*.tmp')\"", f->home);
}

/* The next step ends the run, leaves nothing of it, and the one after that begins another without the row. */
static void expect_lost(struct homes *f, attune_job *job, const char *why) {
    attune_job_report report;
    GIVES(attune_job_step(job, &f->err), ATTUNE_PAUSED);
    ATTUNE_INIT(report);
    OK(attune_job_report_get(job, &report, &f->err));
    assert_string_equal(report.state, "failed");
    if (!strstr(report.reason, why)) fail_msg("no '%s' in: %s", why, report.reason);
    assert_int_equal(report.finished + report.published, 0);
    assert_int_equal(report.examples + report.steps, 0);
    expect_nothing_left(f);
    assert_string_equal(home_status(f).run_state, "failed");
}

static attune_job *open_job(struct homes *f, int units) {
    attune_job_options options = job_options();
    attune_job *job = NULL;
    OK(attune_job_open(f->home, &options, &job, &f->err));
    for (int i = 0; i <= units; i++) GIVES(attune_job_step(job, &f->err), ATTUNE_CONTINUE);
    return job;
}

/* Tokens that it takes to train without the row: what was done before is not counted in. */
static long tokens_without;

/* Steps to the end; what the run that remained has published is what one gives that never saw the row. */
static void finish_without(struct homes *f, attune_job *job, const char *wanted, int64_t examples) {
    attune_job_report report;
    int code;
    do code = attune_job_step(job, &f->err);
    while (code == ATTUNE_CONTINUE);
    if (code != ATTUNE_DONE) fail_msg("%d: %s", code, f->err.message);
    ATTUNE_INIT(report);
    OK(attune_job_report_get(job, &report, &f->err));
    assert_int_equal(report.published, 1);
    assert_int_equal(report.examples, examples);
    assert_int_equal(sql_number(f, "SELECT tokens FROM run ORDER BY number DESC"), tokens_without);
    if (!same_files(wanted, adapter_path(f, report.adapter))) fail_msg("other bytes than a run that never saw it");
}

/* What a home ends in that never had row `id` of eight. */
static void train_without(struct homes *f, int id, char wanted[256]) {
    char statement[80];
    snprintf(wanted, 256, "%s/never.gguf", f->folder);
    make_quick_home(f, 8);
    snprintf(statement, sizeof statement, "DELETE FROM interaction WHERE id = %d", id);
    sql(f, statement);
    assert_int_equal(publish_run(f, 1).examples, 7);
    tokens_without = sql_number(f, "SELECT tokens FROM run");
    shell("mv %s %s && rm -rf %s", adapter_path(f, 1), wanted, f->home);
}

static void test_forgetting_ends_the_run(void **state) {
    struct homes *f = *state;
    static const int units[] = {0, 3, 12, 18};
    char wanted[256];
    train_without(f, 4, wanted);
    for (int i = 0; i < 8; i++) {
        make_quick_home(f, 8);
        attune_job *job = open_job(f, units[i % 4]);
        if (i & 1) {
            OK(phases_checkpoint(job, &f->err));
            assert_true(exists(in_home(f, "checkpoint.gguf")));
        }
        take_back(f, 4, i < 4); /* or its consent is withdrawn */
        /* nor does a checkpoint come after it */
        if (i & 1) GIVES(phases_checkpoint(job, &f->err), ATTUNE_ERROR_STATE);
        expect_lost(f, job, i < 4 ? "forgotten" : "withdrawn");
        finish_without(f, job, wanted, 7);
        attune_job_close(job);
        assert_int_equal(sql_number(f, "SELECT count(*) FROM run"), 2);
        shell("rm -rf %s", f->home);
    }
}

/* A row that the run has nothing to do with: it goes on, to the same end. */
static void test_forgetting_something_else(void **state) {
    struct homes *f = *state;
    make_quick_home(f, 8);
    char wanted[256];
    snprintf(wanted, sizeof wanted, "%s", undisturbed(f));
    attune_job *job = open_job(f, 5);
    import_rows(f, 8, 2);
    forget_row(f, 9);
    int code;
    do code = attune_job_step(job, &f->err);
    while (code == ATTUNE_CONTINUE);
    assert_int_equal(code, ATTUNE_DONE);
    attune_job_close(job);
    assert_true(same_files(wanted, adapter_path(f, 1)));
    assert_int_equal(sql_number(f, "SELECT count(*) FROM run"), 1);
}

/* From another process, the instant the run's files change: at the pause, at the gate. */
static void test_forgetting_while_paused(void **state) {
    struct homes *f = *state;
    char wanted[256];
    attune_job_report report;
    train_without(f, 4, wanted);
    make_quick_home(f, 8);
    pause_after(f, 10);
    forget_row(f, 4);
    expect_nothing_left(f);
    report = publish_run(f, 1);
    assert_int_equal(report.examples, 7);
    assert_true(same_files(wanted, adapter_path(f, 1)));
    assert_non_null(strstr(sql_text(f, "SELECT reason FROM run WHERE number = 1"), "forgotten"));
}

/* The trained parameters are there, the last unit is to publish them: nothing of them comes out. */
static void test_forgetting_before_publishing(void **state) {
    struct homes *f = *state;
    char wanted[256];
    train_without(f, 4, wanted);
    make_quick_home(f, 8);
    attune_job *job = open_job(f, 0);
    while (job->phases[job->phase].kind != PHASE_GATE) GIVES(attune_job_step(job, &f->err), ATTUNE_CONTINUE);
    forget_row(f, 4);
    /* had the gate begun its unit already: publishing is refused, and what it wrote is removed */
    struct store_run run = job->plan.row;
    run.ended_ms = 1;
    GIVES(publish_adapter(f->home, job->store, job->model, job->trainer->lora, "", &run, &f->err), ATTUNE_ERROR_STATE);
    assert_string_equal(run.state, "unfinished");
    assert_false(exists(adapter_path(f, 1)));
    assert_int_equal(sql_number(f, "SELECT count(*) FROM adapter WHERE state <> 'revoked'"), 0);
    expect_lost(f, job, "forgotten");
    assert_int_equal(home_status(f).active_adapter, 0);
    finish_without(f, job, wanted, 7);
    attune_job_close(job);
}

/* The adapter that the run started from goes: so does the run. */
static void test_forgetting_what_the_parent_learned(void **state) {
    struct homes *f = *state;
    attune_job_report report;
    make_quick_home(f, 8);
    publish_run(f, 1);
    import_rows(f, 8, 4);
    attune_job *job = open_job(f, 4);
    forget_row(f, 2);
    assert_false(exists(adapter_path(f, 1)));
    GIVES(attune_job_step(job, &f->err), ATTUNE_PAUSED);
    assert_int_equal(home_status(f).active_adapter, 0);
    int code;
    do code = attune_job_step(job, &f->err);
    while (code == ATTUNE_CONTINUE);
    if (code != ATTUNE_DONE) fail_msg("%d: %s", code, f->err.message);
    ATTUNE_INIT(report);
    OK(attune_job_report_get(job, &report, &f->err));
    assert_int_equal(report.published, 1);
    assert_int_equal(report.examples, 11);
    assert_int_equal(adapter_info(f, report.adapter).parent, 0); /* from fresh, as nothing clean is left */
    attune_job_close(job);
}

/* Between opening the job and its first step. */
static void test_forgetting_before_the_first_step(void **state) {
    struct homes *f = *state;
    attune_job_options options = job_options();
    attune_job_report report;
    attune_job *job = NULL;
    make_quick_home(f, 8);
    publish_run(f, 1);
    import_rows(f, 8, 4);
    OK(attune_job_open(f->home, &options, &job, &f->err));
    forget_row(f, 2);
    int code;
    do code = attune_job_step(job, &f->err);
    while (code == ATTUNE_CONTINUE);
    if (code != ATTUNE_DONE) fail_msg("%d: %s", code, f->err.message);
    ATTUNE_INIT(report);
    OK(attune_job_report_get(job, &report, &f->err));
    assert_int_equal(report.examples, 11);
    assert_int_equal(adapter_info(f, report.adapter).parent, 0);
    attune_job_close(job);
}

/* ---- encrypted homes ---- */

static void test_encrypted(void **state) {
    struct homes *f = *state;
    static const unsigned char key[ATTUNE_KEY_BYTES] = "an app's own key, 32 bytes long", other[ATTUNE_KEY_BYTES];
    attune_home_options home;
    attune_store_options access;
    attune_job_options options = job_options();
    attune_store *store = NULL;
    attune_job *job = NULL;
    ATTUNE_INIT(home);
    home.consent = 1;
    home.key = key;
    OK(attune_home_init(f->home, TINY_BASE, &home, &f->err));
    quick_settings(f);
    ATTUNE_INIT(access);
    access.key = key;
    OK(attune_store_open(f->home, &access, &store, &f->err));
    OK(attune_store_import(store, persona_rows(f, 0, 8), NULL, NULL, &f->err));
    attune_store_close(store);
    FAILS(attune_job_open(f->home, &options, &job, &f->err), ATTUNE_ERROR_MISMATCH, "encrypted", "store.db");
    options.key = other;
    FAILS(attune_job_open(f->home, &options, &job, &f->err), ATTUNE_ERROR_MISMATCH, "not the key", "store.db");
    assert_null(job);
    assert_int_equal(sql_number(f, "SELECT count(*) FROM run"), 0);
    options.key = key;
    attune_job_report report;
    GIVES(run_units(f, 12, options, &report), ATTUNE_PAUSED);
    GIVES(run_job(f, &options, &report), ATTUNE_DONE);
    assert_int_equal(report.published, 1);
    assert_int_equal(report.examples, 8);
    /* looking and choosing need no key */
    attune_status s = home_status(f);
    assert_int_equal(s.active_adapter, 1);
    assert_int_equal(s.interactions, 8);
    assert_int_equal(adapter_info(f, 1).active, 1);
    OK(attune_adapter_use(f->home, 0, &f->err));
    OK(attune_home_check(f->home, NULL, NULL, NULL, &f->err));
    shell("! grep -q harbour %s", in_home(f, "store.db"));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, homes_setup, homes_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_forgetting_ends_the_run),
        TEST(test_forgetting_something_else),
        TEST(test_forgetting_while_paused),
        TEST(test_forgetting_before_publishing),
        TEST(test_forgetting_what_the_parent_learned),
        TEST(test_forgetting_before_the_first_step),
        TEST(test_encrypted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
