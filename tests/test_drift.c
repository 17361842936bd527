/* What merging costs, measured by the job once it has published: kept with the adapter, taken by auto, done by the next
 * call where it was cut off. */
#include "job/drift.h"
#include "tests/home_fixture.h"

static struct store_drift drift_of(struct homes *f, int adapter, const char *mode) {
    attune_store *store = NULL;
    struct store_drift drift = {0};
    OK(store_open_path(f->home, 0, &store, &f->err));
    OK(store_drift_get(store, adapter, mode, &drift, &f->err));
    attune_store_close(store);
    return drift;
}
static long drifts(const struct homes *f) { return sql_number(f, "SELECT count(*) FROM adapter_drift"); }

static const char *chosen(struct homes *f, int adapter, double limit) {
    enum merge_mode mode = MERGE_AUTO;
    OK(serve_choose_merge(f->home, adapter, limit, &mode, &f->err));
    return merge_mode_name(mode);
}

/* The mode that an engine serves the home's active adapter in. */
static const char *served(struct homes *f, const char *merge, double limit) {
    static attune_engine_info info;
    attune_engine *engine = NULL;
    attune_engine_options options;
    ATTUNE_INIT(options);
    options.merge = merge;
    options.drift_limit = limit;
    options.threads = 1;
    OK(attune_engine_open(f->home, &options, &engine, &f->err));
    ATTUNE_INIT(info);
    OK(attune_engine_info_get(engine, &info, &f->err));
    attune_engine_close(engine);
    return info.merge;
}

struct listed {
    attune_merge_drift items[8];
    int n;
};
static int list(const attune_merge_drift *drift, void *user) {
    struct listed *listed = user;
    listed->items[listed->n++] = *drift;
    return 0;
}

static void test_measured_and_chosen(void **state) {
    struct homes *f = *state;
    static const char *const modes[] = {"same", "q8", "f16"};
    struct listed listed = {.n = 0};
    make_quick_home(f, 30);
    set_key(f, "held_out", "0.5");
    set_key(f, "merge", "auto");
    attune_job_report report = publish_run(f, 1);
    assert_int_equal(drifts(f), 4);
    for (int i = 0; i < 3; i++) {
        struct store_drift d = drift_of(f, 1, modes[i]);
        assert_true(d.kl >= 0 && d.agreement > 0.5 && d.agreement <= 1 && d.bytes > 0);
        assert_int_equal(d.rows, report.held_out);
        assert_true(d.tokens > d.rows && d.measured_ms > 0);
        /* with auto the gate judged in none, and by the same rows */
        assert_true(fabs(d.loss_none - report.loss_after) < 1e-4);
        assert_true(fabs(d.loss - d.loss_none) < 0.5);
    }
    struct store_drift q8 = drift_of(f, 1, "q8"), f16 = drift_of(f, 1, "f16");
    assert_true(f16.kl < q8.kl && q8.kl > 0);
    assert_string_equal(chosen(f, 1, 0), "none");
    assert_string_equal(chosen(f, 1, f16.kl / 2), "none");
    /* f16 would do, but reads more than base and pairs */
    assert_string_equal(chosen(f, 1, (f16.kl + q8.kl) / 2), "none");
    assert_true(drift_of(f, 1, "none").kl == 0 && drift_of(f, 1, "none").bytes < f16.bytes);
    assert_string_equal(chosen(f, 0, 100), "none");
    assert_string_equal(chosen(f, 7, 100), "none");
    OK(attune_adapter_drift(f->home, 1, list, &listed, &f->err));
    assert_int_equal(listed.n, 4);
    for (int i = 1; i < 4; i++) assert_true(listed.items[i].bytes >= listed.items[i - 1].bytes);
    assert_string_equal(chosen(f, 1, 100), listed.items[0].merge);
    assert_string_not_equal(listed.items[0].merge, "none");
    FAILS(attune_adapter_drift(f->home, 2, list, &listed, &f->err), ATTUNE_ERROR_NOT_FOUND, "no adapter 2", "");
    /* what the engine takes: by the option, by the settings */
    assert_string_equal(served(f, NULL, 100), listed.items[0].merge);
    assert_string_equal(served(f, "auto", f16.kl / 2), "none");
    assert_string_equal(served(f, "q8", 100), "q8");
    set_key(f, "drift_limit", "0");
    assert_string_equal(served(f, NULL, 0), "none");
    /* a revoked adapter's figures go with it */
    sql(f, "UPDATE adapter SET state = 'revoked'");
    assert_int_equal(drifts(f), 0);
    assert_string_equal(chosen(f, 1, 100), "none");
}

/* Stops a job when it begins to measure, or has measured so many pieces. */
struct interrupter {
    attune_job *job;
    int pieces;
};
static void interrupt(const attune_progress *progress, void *user) {
    struct interrupter *in = user;
    if (strcmp(progress->phase, "drift") == 0 && in->pieces-- <= 0) attune_job_cancel(in->job);
}
static int run_interrupted(struct homes *f, int pieces, attune_job_report *report) {
    struct interrupter in = {.pieces = pieces};
    attune_job_options options = job_options();
    options.on_progress = interrupt;
    options.user = &in;
    OK(attune_job_open(f->home, &options, &in.job, &f->err));
    int code;
    do code = attune_job_step(in.job, &f->err);
    while (code == ATTUNE_CONTINUE);
    ATTUNE_INIT(*report);
    OK(attune_job_report_get(in.job, report, &f->err));
    attune_job_close(in.job);
    return code;
}

static void test_interrupted(void **state) {
    struct homes *f = *state;
    attune_job_options options = job_options();
    attune_job_report report;
    make_quick_home(f, 30);
    set_key(f, "held_out", "0.5");
    /* cut off before every mode has seen the first rows: published all the same, and nothing measured */
    GIVES(run_interrupted(f, 0, &report), ATTUNE_DONE);
    assert_true(report.published && report.finished);
    assert_int_equal(drifts(f), 0);
    assert_string_equal(chosen(f, 1, 100), "none");
    /* cut off again; then done, although there is nothing to train on; then never again */
    GIVES(run_interrupted(f, 0, &report), ATTUNE_PAUSED);
    assert_string_equal(report.state, "waiting");
    assert_int_equal(drifts(f), 0);
    GIVES(run_job(f, &options, &report), ATTUNE_PAUSED);
    assert_non_null(strstr(report.reason, "nothing new"));
    assert_int_equal(report.published, 0);
    assert_int_equal(drifts(f), 4);
    struct store_drift late = drift_of(f, 1, "q8");
    sql(f, "UPDATE adapter_drift SET measured_ms = 1");
    GIVES(run_job(f, &options, NULL), ATTUNE_PAUSED);
    assert_int_equal(sql_number(f, "SELECT max(measured_ms) FROM adapter_drift"), 1);
    /* the very figures of a run that nobody disturbs */
    shell("rm -rf %s", f->home);
    make_quick_home(f, 30);
    set_key(f, "held_out", "0.5");
    publish_run(f, 1);
    struct store_drift whole = drift_of(f, 1, "q8");
    assert_true(whole.kl == late.kl && whole.loss == late.loss && whole.tokens == late.tokens);
    assert_true(whole.agreement == late.agreement && whole.loss_none == late.loss_none);
}

/* Rows of several groups: what whole groups have told is kept. */
static void test_cut_short(void **state) {
    struct homes *f = *state;
    attune_job_report report;
    make_quick_home(f, 60);
    set_key(f, "held_out", "0.5");
    GIVES(run_interrupted(f, 4, &report), ATTUNE_DONE);
    assert_int_equal(drifts(f), 4);
    struct store_drift d = drift_of(f, 1, "same");
    if (!(d.rows > 0 && d.rows < report.held_out)) fail_msg("%d of %d rows", (int)d.rows, (int)report.held_out);
}

/* Rows that made it are forgotten: nothing is measured any more. */
static void test_rows_are_gone(void **state) {
    struct homes *f = *state;
    attune_job_options options = job_options();
    attune_job_report report;
    make_quick_home(f, 30);
    GIVES(run_interrupted(f, 0, &report), ATTUNE_DONE);
    sql(f, "DELETE FROM interaction WHERE id = 3");
    GIVES(run_job(f, &options, NULL), ATTUNE_PAUSED);
    assert_int_equal(drifts(f), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, homes_setup, homes_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_measured_and_chosen),
        TEST(test_interrupted),
        TEST(test_cut_short),
        TEST(test_rows_are_gone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
