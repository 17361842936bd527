/* The job under the governor: stopped and going on, in budgets of energy, time, bytes and the window, with what it
 * leaves in the store; and that none of it reaches an adapter's bytes. */
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "job/governed.h"
#include "tests/home_fixture.h"

/* ---- a device ---- */

static void supply(const struct homes *f, int plugged) {
    if (!exists(in_folder(f, "sys")))
        shell("mkdir -p %s/sys/class/power_supply/AC %s/sys/class/power_supply/BAT0 %s/proc", f->folder, f->folder,
              f->folder);
    write_text(in_folder(f, "sys/class/power_supply/AC/type"), "Mains\n");
    write_text(in_folder(f, "sys/class/power_supply/AC/online"), plugged ? "1\n" : "0\n");
    write_text(in_folder(f, "sys/class/power_supply/BAT0/type"), "Battery\n");
    write_text(in_folder(f, "sys/class/power_supply/BAT0/status"), plugged ? "Charging\n" : "Discharging\n");
    write_text(in_folder(f, "sys/class/power_supply/BAT0/capacity"), "80\n");
}

static struct policy charger_alone(void) {
    return (struct policy){.charger_required = 1, .without_sensors = 1, .duty = 1, .modelled_guard = 1.15};
}

/* A job whose policy is this one, whatever attune.conf says, and whose device is the folder's. */
static attune_job *open_job(struct homes *f, attune_job_options options, const struct policy *policy) {
    static char sys[128], proc[128];
    attune_job *job = NULL;
    snprintf(sys, sizeof sys, "%s", in_folder(f, "sys"));
    snprintf(proc, sizeof proc, "%s", in_folder(f, "proc"));
    options.sys_root = sys;
    options.proc_root = proc;
    options.threads = 1;
    options.event_fd = -1;
    OK(attune_job_open(f->home, &options, &job, &f->err));
    governed_close(job);
    job->settings.policy = *policy;
    OK(governed_open(job, &f->err));
    return job;
}

static int step_on(struct homes *f, attune_job *job) {
    int code;
    memset(&f->err, 0, sizeof f->err);
    do code = attune_job_step(job, &f->err);
    while (code == ATTUNE_CONTINUE);
    if (code < 0) fail_msg("step gave %d: %s (%s)", code, f->err.message, f->err.where);
    return code;
}

static attune_job_report report_of(struct homes *f, const attune_job *job) {
    attune_job_report report;
    ATTUNE_INIT(report);
    OK(attune_job_report_get(job, &report, &f->err));
    return report;
}

static void expect_reason(struct homes *f, const attune_job *job, const char *state, const char *why) {
    attune_job_report r = report_of(f, job);
    assert_string_equal(r.state, state);
    if (!strstr(r.reason, why)) fail_msg("no '%s' in: %s", why, r.reason);
}

/* ---- stopped, and on again ---- */

static void test_unplugged_and_back(void **state) {
    struct homes *f = *state;
    attune_job_options options = {.size = sizeof options};
    struct policy policy = charger_alone();
    make_quick_home(f, 9);
    char wanted[256];
    strcpy(wanted, undisturbed(f));
    supply(f, 0);
    attune_job *job = open_job(f, options, &policy);
    GIVES(attune_job_step(job, &f->err), ATTUNE_PAUSED);
    expect_reason(f, job, "waiting", "not on a charger");
    assert_int_equal(sql_number(f, "SELECT count(*) FROM night"), 0); /* nothing has begun */
    supply(f, 1);
    governed_look(job);
    for (int i = 0; i < 12; i++) GIVES(attune_job_step(job, &f->err), ATTUNE_CONTINUE);
    assert_false(exists(in_home(f, "checkpoint.gguf")));
    supply(f, 0);
    governed_look(job);
    GIVES(attune_job_step(job, &f->err), ATTUNE_PAUSED);
    expect_reason(f, job, "unfinished", "not on a charger");
    assert_true(exists(in_home(f, "checkpoint.gguf")));
    assert_string_equal(sql_text(f, "SELECT state FROM night"), "paused");
    /* asked again, nothing is written again */
    unlink(in_home(f, "checkpoint.gguf"));
    uint64_t written = file_bytes_written();
    GIVES(attune_job_step(job, &f->err), ATTUNE_PAUSED);
    assert_false(exists(in_home(f, "checkpoint.gguf")));
    assert_true(file_bytes_written() == written);
    /* and nothing is loaded again: it goes on in memory */
    supply(f, 1);
    governed_look(job);
    GIVES(attune_job_step(job, &f->err), ATTUNE_CONTINUE);
    assert_string_equal(sql_text(f, "SELECT state FROM night"), "running");
    GIVES(step_on(f, job), ATTUNE_DONE);
    attune_job_close(job);
    assert_true(same_files(wanted, adapter_path(f, 1)));
    assert_string_equal(sql_text(f, "SELECT state FROM night"), "done");
    assert_int_equal(sql_number(f, "SELECT pauses FROM night"), 1);
    assert_int_equal(sql_number(f, "SELECT adapter FROM night"), 1);
    assert_int_equal(sql_number(f, "SELECT count(*) FROM night"), 1);
    assert_true(sql_number(f, "SELECT count(*) FROM moment") >= 3); /* runs, is paused, runs */
}

/* In the middle of a unit: it is dropped, and done again. */
struct puller {
    struct homes *f;
    attune_job *job;
    int at, seen;
};
static void pull(const attune_progress *p, void *user) {
    struct puller *puller = user;
    (void)p;
    if (++puller->seen != puller->at) return;
    pool_cancel(puller->job->pool); /* as the governor does: the flag is up when the unit begins */
}
static void test_a_cancelled_unit_is_dropped(void **state) {
    struct homes *f = *state;
    struct puller puller = {.f = f};
    attune_job_options options = {.size = sizeof options, .on_progress = pull, .user = &puller};
    struct policy policy = charger_alone();
    make_quick_home(f, 9);
    char wanted[256];
    strcpy(wanted, undisturbed(f));
    supply(f, 1);
    attune_job *job = puller.job = open_job(f, options, &policy);
    for (int i = 0; i < 6; i++) GIVES(attune_job_step(job, &f->err), ATTUNE_CONTINUE);
    size_t units = job->units_done;
    /* what is left of an earlier cancel does not count: the reasons do */
    pool_cancel(job->pool);
    GIVES(attune_job_step(job, &f->err), ATTUNE_CONTINUE);
    assert_true(job->units_done > units);
    /* a person's cancel is told as such, and stays */
    attune_job_cancel(job);
    GIVES(attune_job_step(job, &f->err), ATTUNE_PAUSED);
    expect_reason(f, job, "unfinished", "stopped on request");
    GIVES(attune_job_step(job, &f->err), ATTUNE_PAUSED);
    attune_job_close(job);
    puller = (struct puller){.f = f};
    job = puller.job = open_job(f, options, &policy);
    GIVES(step_on(f, job), ATTUNE_DONE);
    attune_job_close(job);
    assert_true(same_files(wanted, adapter_path(f, 1)));
}

/* ---- thirty slices ---- */

/* Pulls the plug from another thread, at a moment of no meaning. */
static void *pull_soon(void *user) {
    struct puller *puller = user;
    nanosleep(&(struct timespec){.tv_nsec = 1000000 * puller->at}, NULL);
    supply(puller->f, 0);
    governed_look(puller->job);
    return NULL;
}

static void test_thirty_slices(void **state) {
    struct homes *f = *state;
    struct policy policy = charger_alone();
    int slices = 0, code = ATTUNE_PAUSED;
    make_quick_home(f, 16);
    set_key(f, "epochs", "60");
    char wanted[256];
    strcpy(wanted, undisturbed(f));
    supply(f, 1);
    for (; code == ATTUNE_PAUSED && slices < 1000; slices++) {
        attune_job_options options = {.size = sizeof options};
        if (slices < 30 && slices % 3 == 1) options.time_s = 1e-3; /* no time for anything; the plan is made */
        if (slices < 30 && slices % 3 == 2) options.energy_j = 1e-3;
        supply(f, 1);
        attune_job *job = open_job(f, options, &policy);
        int units = 2 + slices % 2;
        code = attune_job_step(job, &f->err);
        while (code == ATTUNE_CONTINUE && units-- > 0) code = attune_job_step(job, &f->err);
        if (code == ATTUNE_CONTINUE && slices < 30) { /* in the middle of what comes next, or before it */
            pthread_t thread;
            struct puller puller = {.f = f, .job = job, .at = slices % 4};
            assert_int_equal(pthread_create(&thread, NULL, pull_soon, &puller), 0);
            while (code == ATTUNE_CONTINUE) code = attune_job_step(job, &f->err);
            pthread_join(thread, NULL);
        }
        while (code == ATTUNE_CONTINUE) code = attune_job_step(job, &f->err);
        attune_job_close(job);
    }
    assert_int_equal(code, ATTUNE_DONE);
    assert_true(slices >= 30);
    assert_true(same_files(wanted, adapter_path(f, 1)));
    assert_int_equal(sql_number(f, "SELECT count(*) FROM run"), 1);
    assert_int_equal(sql_number(f, "SELECT count(*) FROM night WHERE state = 'running'"), 0);
}

/* ---- energy ---- */

/* A package that takes 20 W for each CPU second of this process: it stands still when others have the machine. */
static const double WATTS = 20;
struct meter {
    char path[256], next[264];
    double told, late; /* CPU seconds: as last told, the most between two tellings: a thread may have to wait its turn */
    atomic_int quit;
    pthread_t thread;
};
static double process_cpu(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
static void meter_tell(struct meter *meter) {
    char text[32];
    double cpu = process_cpu();
    snprintf(text, sizeof text, "%lld\n", 100000000000LL + (long long)(1e6 * WATTS * cpu));
    write_text(meter->next, text); /* a reader sees the one or the other, as in sysfs */
    assert_int_equal(rename(meter->next, meter->path), 0);
    meter->late = fmax(meter->late, process_cpu() - meter->told);
    meter->told = cpu;
}
static void *turn(void *user) {
    struct meter *meter = user;
    while (!atomic_load(&meter->quit)) {
        meter_tell(meter);
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    return NULL;
}
static void meter_start(const struct homes *f, struct meter *meter) {
    shell("mkdir -p %s/sys/class/powercap/intel-rapl:0", f->folder);
    write_text(in_folder(f, "sys/class/powercap/intel-rapl:0/name"), "package-0\n");
    write_text(in_folder(f, "sys/class/powercap/intel-rapl:0/max_energy_range_uj"), "262143328850\n");
    snprintf(meter->path, sizeof meter->path, "%s", in_folder(f, "sys/class/powercap/intel-rapl:0/energy_uj"));
    snprintf(meter->next, sizeof meter->next, "%s.next", meter->path);
    meter->told = process_cpu();
    meter->late = 0;
    meter_tell(meter); /* what ran before is in the first reading, not in the first difference */
    atomic_store(&meter->quit, 0);
    assert_int_equal(pthread_create(&meter->thread, NULL, turn, meter), 0);
}
static void meter_stop(struct meter *meter) {
    atomic_store(&meter->quit, 1);
    pthread_join(meter->thread, NULL);
}

/* Of many seconds, in steps of a few milliseconds; planned without a budget, so that none can have sized it. */
static void make_long_run(struct homes *f, const struct policy *policy) {
    make_quick_home(f, 140);
    set_key(f, "epochs", "100");
    set_key(f, "rank", "16");
    set_key(f, "max_tokens", "400");
    set_key(f, "micro_tokens", "400");
    supply(f, 1);
    attune_job *job = open_job(f, (attune_job_options){.size = sizeof(attune_job_options)}, policy);
    GIVES(attune_job_step(job, &f->err), ATTUNE_CONTINUE);
    attune_job_close(job);
}

static void test_energy_by_a_counter(void **state) {
    struct homes *f = *state;
    struct meter meter;
    struct policy policy = charger_alone();
    attune_job_options options = {.size = sizeof options, .energy_j = 50};
    make_long_run(f, &policy);
    set_key(f, "watts_per_cpu", "20"); /* as the meter: what is modelled between two looks is right */
    meter_start(f, &meter);
    double cpu = process_cpu();
    attune_job *job = open_job(f, options, &policy);
    GIVES(step_on(f, job), ATTUNE_PAUSED);
    expect_reason(f, job, "unfinished", "the energy budget");
    attune_job_report r = report_of(f, job);
    attune_job_close(job);
    double used = WATTS * (process_cpu() - cpu);
    meter_stop(&meter);
    double late = WATTS * meter.late; /* nobody can know of these */
    print_message("budget 50 J: used %.1f J, the ledger has %.1f J measured, %.1f J modelled; the meter was up to "
                  "%.1f J late\n", used, r.joules_measured, r.joules_modelled, late);
    assert_true(used <= 1.03 * options.energy_j + late);
    assert_true(used >= 0.5 * options.energy_j);
    assert_true(r.joules_measured > 0.5 * used && r.joules_measured <= used + late);
    double kept = atof(sql_text(f, "SELECT joules_measured + joules_modelled FROM night ORDER BY number DESC"));
    assert_true(kept >= r.joules_measured + r.joules_modelled && kept <= 1.1 * used);
}

/* Without a counter more is counted than is thought to be used. */
static void test_energy_by_the_model(void **state) {
    struct homes *f = *state;
    struct policy policy = charger_alone();
    attune_job_options options = {.size = sizeof options, .energy_j = 12};
    make_long_run(f, &policy);
    attune_job *job = open_job(f, options, &policy);
    GIVES(step_on(f, job), ATTUNE_PAUSED);
    expect_reason(f, job, "unfinished", "the energy budget");
    governed_look(job);
    attune_job_report r = report_of(f, job);
    attune_job_close(job);
    assert_true(r.joules_measured == 0 && r.joules_modelled > 0);
    assert_true(1.15 * r.joules_modelled <= 1.03 * options.energy_j);
    /* of the night: next to nothing is left for a second call */
    policy.joules_night = 12;
    attune_job_options again = {.size = sizeof again};
    job = open_job(f, again, &policy);
    GIVES(step_on(f, job), ATTUNE_PAUSED);
    attune_job_report second = report_of(f, job);
    assert_non_null(strstr(second.reason, "night"));
    attune_job_close(job);
    assert_true(1.15 * (second.joules_modelled + r.joules_modelled) <= 1.1 * 12);
}

/* ---- what cannot end is not begun ---- */

static void test_the_window(void **state) {
    struct homes *f = *state;
    struct policy policy = charger_alone();
    attune_job_options options = {.size = sizeof options};
    make_quick_home(f, 9);
    supply(f, 1);
    time_t now = time(NULL);
    struct tm local;
    localtime_r(&now, &local);
    int minute = 60 * local.tm_hour + local.tm_min;
    policy.window = (struct window){(minute + 1440 - 30) % 1440, (minute + 120) % 1440};
    attune_job *job = open_job(f, options, &policy);
    for (int i = 0; i < 8; i++) GIVES(attune_job_step(job, &f->err), ATTUNE_CONTINUE);
    pace_assume(&job->train_pace, 1e-9);
    pace_assume(&job->judge_pace, 1e-9);
    GIVES(attune_job_step(job, &f->err), ATTUNE_PAUSED);
    expect_reason(f, job, "unfinished", "the night is used up");
    attune_job_close(job);
    /* --now does not ask */
    job = open_job(f, options, &policy);
    governed_close(job);
    job->options.now = 1;
    OK(governed_open(job, &f->err));
    GIVES(step_on(f, job), ATTUNE_DONE);
    attune_job_close(job);
}

static void test_not_worth_starting(void **state) {
    struct homes *f = *state;
    struct policy policy = charger_alone();
    attune_job_options options = {.size = sizeof options};
    make_quick_home(f, 9);
    supply(f, 1);
    attune_job *job = open_job(f, options, &policy);
    GIVES(step_on(f, job), ATTUNE_DONE);
    attune_job_close(job);
    assert_int_equal(sql_number(f, "SELECT count(*) FROM cost"), 2); /* what training and judging cost */
    assert_int_equal(sql_number(f, "SELECT count(*) FROM cost WHERE seconds_per_unit > 0 AND watts > 0"), 2);
    import_rows(f, 9, 8);
    sql(f, "UPDATE cost SET seconds_per_unit = 1, weight = 100, seconds_spread = 0.01");
    options.time_s = 20;
    job = open_job(f, options, &policy);
    GIVES(step_on(f, job), ATTUNE_PAUSED);
    expect_reason(f, job, "waiting", "too little to plan");
    attune_job_close(job);
    assert_int_equal(sql_number(f, "SELECT count(*) FROM run"), 1);
    assert_int_equal(sql_number(f, "SELECT count(*) FROM night"), 1);
}

static void test_bytes_of_a_night(void **state) {
    struct homes *f = *state;
    struct policy policy = charger_alone();
    attune_job_options options = {.size = sizeof options};
    make_quick_home(f, 16);
    set_key(f, "checkpoint_seconds", "0");
    supply(f, 1);
    attune_job *job = open_job(f, options, &policy);
    for (int i = 0; i < 4; i++) GIVES(attune_job_step(job, &f->err), ATTUNE_CONTINUE);
    attune_job_close(job);
    struct stat st;
    assert_int_equal(stat(in_home(f, "checkpoint.gguf"), &st), 0);
    long before = sql_number(f, "SELECT sum(written) FROM night");
    assert_true(before >= 3 * st.st_size);
    policy.written_night = (uint64_t)(before + 10 * st.st_size);
    job = open_job(f, options, &policy);
    GIVES(step_on(f, job), ATTUNE_PAUSED);
    expect_reason(f, job, "unfinished", "bytes written");
    assert_true(job->units_kept == job->units_done && job->units_done > 4); /* the last one is written */
    attune_job_close(job);
    long after = sql_number(f, "SELECT sum(written) FROM night");
    assert_true(after <= (long)policy.written_night);
    assert_true(after > (long)policy.written_night - 4 * st.st_size);
}

/* ---- rows of nights ---- */

static void test_rows_of_nights(void **state) {
    struct homes *f = *state;
    struct policy policy = charger_alone();
    attune_job_options options = {.size = sizeof options};
    make_quick_home(f, 9);
    set_key(f, "watts_per_cpu", "8");
    supply(f, 1);
    /* a run that was killed an hour ago is charged for a minute, and marked */
    sql(f, "INSERT INTO night (night_ms, started_ms, ended_ms, kind, state, reason, run, runs, tokens, steps, seconds, "
           "work_seconds, cpu_s, modelled_cpu_s, joules_measured, joules_battery, joules_modelled, marked, written, "
           "pauses, adapter, governor_cpu_s) VALUES (0, strftime('%s', 'now') * 1000 - 3600000, 0, 'train', 'running', "
           "'', 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)");
    attune_job *job = open_job(f, options, &policy);
    GIVES(step_on(f, job), ATTUNE_DONE);
    attune_job_report r = report_of(f, job);
    attune_job_close(job);
    assert_string_equal(sql_text(f, "SELECT state FROM night WHERE number = 1"), "killed");
    assert_int_equal(sql_number(f, "SELECT marked FROM night WHERE number = 1"), 1);
    assert_int_equal(sql_number(f, "SELECT round(joules_modelled) FROM night WHERE number = 1"), 60 * 8);
    assert_int_equal(sql_number(f, "SELECT round(seconds) FROM night WHERE number = 1"), 70);
    assert_string_equal(sql_text(f, "SELECT kind FROM night WHERE number = 2"), "train");
    assert_string_equal(sql_text(f, "SELECT state FROM night WHERE number = 2"), "done");
    assert_int_equal(sql_number(f, "SELECT tokens FROM night WHERE number = 2"), r.tokens);
    assert_true(sql_number(f, "SELECT work_seconds > 0 AND work_seconds <= seconds FROM night WHERE number = 2"));
    assert_true(sql_number(f, "SELECT loss_after < loss_before FROM night WHERE number = 2"));
    assert_true(sql_number(f, "SELECT written > 0 FROM night WHERE number = 2"));
    assert_true(r.written_bytes > 0 && r.governor_cpu_s > 0 && r.gap_ms > 0 && !r.throttled);
    /* nothing new: no row */
    job = open_job(f, options, &policy);
    GIVES(step_on(f, job), ATTUNE_PAUSED);
    expect_reason(f, job, "waiting", "nothing new");
    attune_job_close(job);
    assert_int_equal(sql_number(f, "SELECT count(*) FROM night"), 2);
}

/* One row over two jobs, kept by somebody else. */
static void test_an_adopted_night(void **state) {
    struct homes *f = *state;
    struct policy policy = charger_alone();
    attune_job_options options = {.size = sizeof options};
    struct store_night night = {.started_ms = 5000, .night_ms = 4000, .loss_before = NAN, .loss_after = NAN,
                                .celsius_max = NAN, .kind = "nightly", .state = "running", .reason = "mine"};
    int64_t tokens = 0;
    make_quick_home(f, 9);
    supply(f, 1);
    for (int run = 1; run <= 2; run++) {
        attune_job *job = open_job(f, options, &policy);
        governed_adopt_night(job, &night);
        GIVES(step_on(f, job), ATTUNE_DONE);
        tokens += report_of(f, job).tokens;
        attune_job_close(job);
        assert_int_equal(night.runs, run);
        assert_int_equal(night.tokens, tokens);
        assert_int_equal(night.adapter, run);
        if (run == 1) import_rows(f, 9, 6);
    }
    assert_int_equal(sql_number(f, "SELECT count(*) FROM night"), 1);
    assert_int_equal(sql_number(f, "SELECT tokens FROM night"), tokens);
    assert_int_equal(sql_number(f, "SELECT started_ms FROM night"), 5000);
    assert_string_equal(sql_text(f, "SELECT kind || state || reason FROM night"), "nightlyrunningmine");
}

static void test_impossible_energy(void **state) {
    struct homes *f = *state;
    attune_job *job = NULL;
    make_home(f, TINY_BASE, 1);
    attune_job_options options = job_options();
    options.energy_j = -1;
    FAILS(attune_job_open(f->home, &options, &job, &f->err), ATTUNE_ERROR_ARGUMENT, "energy", "");
    options.energy_j = NAN;
    FAILS(attune_job_open(f->home, &options, &job, &f->err), ATTUNE_ERROR_ARGUMENT, "energy", "");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, homes_setup, homes_teardown)
int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_unplugged_and_back),   TEST(test_a_cancelled_unit_is_dropped),
        TEST(test_thirty_slices),        TEST(test_energy_by_a_counter),
        TEST(test_energy_by_the_model),  TEST(test_the_window),
        TEST(test_not_worth_starting),   TEST(test_bytes_of_a_night),
        TEST(test_rows_of_nights),       TEST(test_an_adopted_night),
        TEST(test_impossible_energy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
