/* A run cut off after every unit of work ends as the run that nobody disturbed: to the byte. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/random.h"
#include "job/phases.h"
#include "tests/expect.h"

enum { ROWS = 18 };
static int spoiled; /* the second look says what none after it can beat */

/* held_out: share of prompts; small: the rows are cross-fitted. */
static void make_home(char home[64], double held_out, double epochs) {
    attune_home_options options;
    attune_store *store = NULL;
    struct settings settings;
    ATTUNE_INIT(options);
    options.consent = 1;
    strcpy(home, "/tmp/attune-phases-XXXXXX");
    assert_non_null(mkdtemp(home));
    OK(attune_home_init(home, ATTUNE_TEST_ROOT "/tests/golden/tiny_llama.gguf", &options, &err));
    OK(settings_read(home, &settings, &err));
    settings.train.lora.rank = 2;
    settings.train.batch = 5;
    settings.train.dropout = 0.1f;
    settings.train.learning_rate = 1e-2f;
    settings.held_out = held_out;
    settings.reference_limit = settings.reference_kl_limit = 100; /* of a base that knows nothing, all may change */
    settings.epochs = epochs;
    settings.checkpoint_seconds = 0;
    OK(settings_write(home, &settings, &err));
    OK(attune_store_open(home, NULL, &store, &err));
    char path[128];
    snprintf(path, sizeof path, "%s/rows.jsonl", home);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    for (int i = 0; i < ROWS; i++)
        fprintf(f, "{\"prompt\": \"how is %016llx?\", \"response\": \"the wind turns %d times\", \"time\": %d}\n",
                (unsigned long long)random_u64(1, (uint64_t)i), i % 4, 1000 + i);
    assert_int_equal(fclose(f), 0);
    OK(attune_store_import(store, path, NULL, NULL, &err));
    attune_store_close(store);
}
static void remove_home(const char *home) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", home);
    assert_int_equal(system(command), 0);
}

static attune_job *open_job(const char *home) {
    attune_job_options options;
    attune_job *job = NULL;
    ATTUNE_INIT(options);
    options.now = 1;
    options.threads = 2;
    OK(attune_job_open(home, &options, &job, &err));
    return job;
}
static void spoil(attune_job *job) {
    const struct phase *phase = &job->phases[job->phase];
    if (job->phase >= job->n_phases || phase->look < 2) return;
    if (phase->kind == PHASE_AFTER || phase->kind == PHASE_FOLD_JUDGE)
        memset(job->looks.nll + job->looks.rows, 0, job->looks.rows * sizeof(double));
}
static int step(attune_job *job) {
    attune_error err = {0};
    if (spoiled && job->planned) spoil(job);
    int code = attune_job_step(job, &err);
    if (code < 0) fail_msg("%s (%s)", err.message, err.where);
    return code;
}

struct end {
    double before[ROWS], after[ROWS];
    struct model_drift drift;
    size_t degenerate;
    float *parameters;
    size_t n, n_judge;
    char state[24], run[65];
};
static struct end end_of(const attune_job *job) {
    struct end end = {.n = job->trainer->lora->n, .n_judge = job->plan.n_judge,
                      .drift = job->trial.drift, .degenerate = job->trial.answers_degenerate};
    memcpy(end.before, job->before, end.n_judge * sizeof(double));
    memcpy(end.after, job->after, end.n_judge * sizeof(double));
    end.parameters = malloc(end.n * sizeof(float));
    assert_non_null(end.parameters);
    memcpy(end.parameters, job->trainer->lora->parameters, end.n * sizeof(float));
    strcpy(end.state, job->plan.row.state);
    strcpy(end.run, job->plan.row.id);
    return end;
}

/* `units` a call, 0: all in one. */
static struct end run_home(double held_out, double epochs, int units) {
    char home[64];
    make_home(home, held_out, epochs);
    attune_job *job = NULL;
    for (int code = ATTUNE_CONTINUE; !job || !job->report.finished;) { /* published; its drift comes after that */
        attune_job_close(job);
        job = open_job(home);
        assert_int_equal(step(job), ATTUNE_CONTINUE); /* the plan, new or found */
        code = ATTUNE_CONTINUE;
        for (int i = 0; code == ATTUNE_CONTINUE && (units == 0 || i < units); i++) code = step(job);
        assert_true(code == ATTUNE_CONTINUE || code == ATTUNE_DONE);
    }
    struct end end = end_of(job);
    attune_job_close(job);
    remove_home(home);
    return end;
}

static void check(double held_out, double epochs, int units) {
    struct end whole = run_home(held_out, epochs, 0);
    for (; units > 0; units -= 3) {
        struct end cut = run_home(held_out, epochs, units);
        assert_string_equal(cut.run, whole.run);
        assert_string_equal(cut.state, whole.state);
        assert_int_equal(cut.n_judge, whole.n_judge);
        assert_memory_equal(cut.before, whole.before, whole.n_judge * sizeof(double));
        assert_memory_equal(cut.after, whole.after, whole.n_judge * sizeof(double));
        assert_memory_equal(&cut.drift, &whole.drift, sizeof whole.drift);
        assert_int_equal(cut.degenerate, whole.degenerate);
        assert_int_equal(cut.n, whole.n);
        assert_memory_equal(cut.parameters, whole.parameters, whole.n * sizeof(float));
        free(cut.parameters);
    }
    free(whole.parameters);
}
static void test_cut_off_with_folds(void **state) {
    (void)state;
    check(0.01, 1, 4);
    check(0.01, 2.5, 2);
}
static void test_cut_off_with_held_out_rows(void **state) {
    (void)state;
    check(0.5, 1.5, 4);
}

/* The candidate is what the best look saw, whatever was learned behind it. */
static void test_stopped_at_its_best(void **state) {
    (void)state;
    char home[64];
    make_home(home, 0.5, 8);
    attune_job *job = open_job(home);
    float *best = NULL;
    size_t n = 0;
    spoiled = 1;
    for (int code = step(job); code == ATTUNE_CONTINUE && !job->report.finished; code = step(job)) {
        const struct phase *phase = &job->phases[job->phase];
        if (best || phase->kind != PHASE_TRAIN || phase->look != 2) continue;
        n = job->trainer->lora->n * sizeof(float);
        best = malloc(n);
        assert_non_null(best);
        memcpy(best, job->trainer->lora->parameters, n);
    }
    spoiled = 0;
    assert_int_equal(job->looks.n, 4);
    assert_int_equal(job->looks.best, 1);
    assert_non_null(best);
    assert_memory_equal(best, job->trainer->lora->parameters, n);
    for (size_t i = 0; i < job->looks.rows; i++) assert_true(job->after[i] == 0);
    assert_string_equal(job->plan.row.state, "published");
    assert_int_equal(job->plan.row.steps_done, job->plan.row.steps * 3 / 4); /* the last part is left out */
    assert_non_null(strstr(job->plan.row.reason, "at its best"));
    free(best);
    attune_job_close(job);
    remove_home(home);
}

/* Folds that are at their best before the end: the last training goes as far as they did. */
static void test_folds_tell_how_far(void **state) {
    (void)state;
    char home[64];
    int64_t steps = 0;
    size_t from, to;
    make_home(home, 0.01, 8);
    attune_job *job = open_job(home);
    spoiled = 1;
    for (int code = step(job); code == ATTUNE_CONTINUE && !job->report.finished; code = step(job))
        if (job->phase < job->n_phases && job->phases[job->phase].kind == PHASE_TRAIN)
            steps = phases_steps_done(job) + 1;
    spoiled = 0;
    assert_int_equal(job->looks.n, 4);
    assert_int_equal(job->looks.best, 1);
    looks_part(&job->looks, 1, (size_t)job->plan.row.steps, &from, &to);
    assert_int_equal(steps, to);
    assert_int_equal(job->plan.row.steps_done, to);
    attune_job_close(job);
    remove_home(home);
}
static void test_cut_off_where_it_stops(void **state) {
    (void)state;
    spoiled = 1;
    check(0.5, 4, 7);
    check(0.01, 3, 10);
    spoiled = 0;
}

/* What a judge said comes back as it was, a loss that is not a number too: it must not turn into a good one. */
static void test_losses_come_back(void **state) {
    (void)state;
    static const double said[] = {1.0 / 3, NAN, 0, 1e-300, 12345.678901234567, INFINITY};
    char home[64];
    int found = 0;
    make_home(home, 0.01, 1);
    attune_job *job = open_job(home);
    assert_int_equal(step(job), ATTUNE_CONTINUE);
    assert_true(job->plan.n_judge >= 6);
    memcpy(job->before, said, sizeof said);
    memcpy(job->after, said, sizeof said);
    OK(phases_checkpoint(job, &err));
    memset(job->before, 0, sizeof said);
    memset(job->after, 0, sizeof said);
    OK(phases_resume(job, &found, &err));
    assert_int_equal(found, 1);
    for (size_t i = 0; i < 6; i++) {
        assert_true(isfinite(said[i]) ? job->before[i] == said[i] : !isfinite(job->before[i]));
        assert_true(isfinite(said[i]) ? job->after[i] == said[i] : !isfinite(job->after[i]));
    }
    attune_job_close(job);
    remove_home(home);
}

/* At a known pace, what is left falls with each unit by what that unit was said to take, and is nothing in the end:
 * all that the plan holds was counted, once. */
static void check_prediction(double held_out, double epochs) {
    char home[64];
    make_home(home, held_out, epochs);
    attune_job *job = open_job(home);
    assert_int_equal(step(job), ATTUNE_CONTINUE);
    double all = 0, left = NAN;
    for (int code = ATTUNE_CONTINUE; code == ATTUNE_CONTINUE && !job->report.finished;) {
        pace_assume(&job->train_pace, 1000);
        pace_assume(&job->judge_pace, 3000);
        job->merging = job->ending = 0;
        double now = phases_seconds_left(job), unit = phases_unit_seconds(job);
        if (isnan(left)) all = now;
        if (!isnan(left)) assert_true(fabs(now - left) < 1e-9 * all);
        left = now - unit;
        int phase = job->phase;
        code = step(job);
        assert_true(code == ATTUNE_DONE || job->phase <= phase + 1); /* nothing was left out */
    }
    assert_true(all > 0 && fabs(left) < 1e-9 * all);
    attune_job_close(job);
    remove_home(home);
}
static void test_prediction(void **state) {
    (void)state;
    check_prediction(0.01, 2.5);
    check_prediction(0.5, 1.5);
}

/* A job that goes on knows what is left as if it had never stopped. */
static void test_prediction_after_a_pause(void **state) {
    (void)state;
    char home[64];
    make_home(home, 0.01, 2.5);
    attune_job *job = open_job(home);
    for (int i = 0; i < 12; i++) {
        assert_int_equal(step(job), ATTUNE_CONTINUE);
        double work_done = job->work_done, left;
        pace_assume(&job->train_pace, 1000);
        pace_assume(&job->judge_pace, 3000);
        job->merging = 0;
        left = phases_seconds_left(job);
        OK(phases_checkpoint(job, &err));
        attune_job_close(job);
        job = open_job(home);
        assert_int_equal(step(job), ATTUNE_CONTINUE);
        pace_assume(&job->train_pace, 1000);
        pace_assume(&job->judge_pace, 3000);
        job->merging = 0;
        assert_true(fabs(job->work_done - work_done) < 1e-9);
        assert_true(fabs(phases_seconds_left(job) - left) < 1e-9 * left);
    }
    attune_job_close(job);
    remove_home(home);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cut_off_with_folds),
        cmocka_unit_test(test_cut_off_with_held_out_rows),
        cmocka_unit_test(test_stopped_at_its_best),
        cmocka_unit_test(test_folds_tell_how_far),
        cmocka_unit_test(test_cut_off_where_it_stops),
        cmocka_unit_test(test_losses_come_back),
        cmocka_unit_test(test_prediction),
        cmocka_unit_test(test_prediction_after_a_pause),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
