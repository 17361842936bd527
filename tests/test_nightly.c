/* The nightly job over a made device: a tree of sensors that the test changes, and an app's own callback. */
#include "tests/home_fixture.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

#include "datastore/nights.h"
#include "job/nightly.h"

/* ---- the device ---- */

static atomic_int power;    /* enum attune_power, as the app tells it */
static atomic_int seconds_idle;

static void tell_device(attune_device *device, void *user) {
    (void)user;
    device->power = atomic_load(&power);
    device->idle_s = atomic_load(&seconds_idle);
    device->celsius = 40;
}

static void make_device(const struct homes *f) {
    shell("mkdir -p %s/sys/class/power_supply %s/proc", f->folder, f->folder);
    atomic_store(&power, ATTUNE_POWER_MAINS);
    atomic_store(&seconds_idle, 3600);
}

static attune_nightly_options nightly_options(const struct homes *f) {
    static char sys_root[96], proc_root[96];
    attune_nightly_options o;
    ATTUNE_INIT(o);
    snprintf(sys_root, sizeof sys_root, "%s/sys", f->folder);
    snprintf(proc_root, sizeof proc_root, "%s/proc", f->folder);
    o.sys_root = sys_root;
    o.proc_root = proc_root;
    o.device = tell_device;
    o.threads = 1;
    return o;
}

/* A home on that device, ready to train at any hour. */
static void make_night_home(struct homes *f, size_t rows) {
    static const char *const settings[][2] = {{"window", "always"},      {"without_sensors", "run"},
                                              {"charger", "required"},   {"idle", "required"},
                                              {"idle_minutes", "1"},     {"charger_stable", "none"},
                                              {"temperature_max", "85"}, {"pressure_cpu", "0"},
                                              {"pressure_memory", "0"},  {"memory_free", "none"},
                                              {"time_run", "none"},      {"time_night", "none"},
                                              {"time_week", "none"},     {"energy_run", "none"},
                                              {"energy_night", "none"},  {"energy_week", "none"},
                                              {"written_night", "none"}, {"rows_new_min", "1"}};
    make_home(f, TINY_BASE, 1);
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) set_key(f, settings[i][0], settings[i][1]);
    if (rows) import_rows(f, 0, rows);
    make_device(f);
}

/* Steps until it ends, at most `steps`. */
static int run_steps(struct homes *f, attune_nightly *nightly, int steps) {
    int code;
    do code = attune_nightly_step(nightly, &f->err);
    while (code == ATTUNE_CONTINUE && --steps > 0);
    return code;
}

static int run_nightly(struct homes *f, const attune_nightly_options *options, attune_nightly_report *report) {
    attune_nightly *nightly = NULL;
    OK(attune_nightly_open(f->home, options, &nightly, &f->err));
    int code = run_steps(f, nightly, 100000);
    ATTUNE_INIT(*report);
    OK(attune_nightly_report_get(nightly, report, &f->err));
    attune_nightly_close(nightly);
    return code;
}

/* ---- a night ---- */

/* What it makes is what a plain run makes, byte for byte; one row has all of it. */
static void test_a_night(void **state) {
    struct homes *f = *state;
    attune_nightly_report report;
    make_night_home(f, 40);
    const char *plain = undisturbed(f);
    attune_nightly_options o = nightly_options(f);
    GIVES(run_nightly(f, &o, &report), ATTUNE_DONE);
    assert_string_equal(report.state, "done");
    assert_int_equal(report.runs, 1);
    assert_int_equal(report.published, 1);
    assert_int_equal(report.last.adapter, 1);
    assert_true(same_files(adapter_path(f, 1), plain));
    assert_int_equal(sql_number(f, "SELECT count(*) FROM night"), 1);
    assert_string_equal(sql_text(f, "SELECT kind || ' ' || state || ' ' || runs || ' ' || adapter FROM night"),
                        "nightly done 1 1");
    assert_true(sql_number(f, "SELECT tokens FROM night") > 0);
    assert_true(sql_number(f, "SELECT ended_ms - started_ms FROM night") >= 0);

    /* nothing is new: done at once, with no row of its own, and no job is opened for it */
    GIVES(run_nightly(f, &o, &report), ATTUNE_DONE);
    assert_string_equal(report.reason, "nothing new to learn");
    assert_int_equal(report.runs, 0);
    assert_int_equal(sql_number(f, "SELECT count(*) FROM night"), 1);

    set_key(f, "rows_new_min", "10");
    import_rows(f, 40, 4);
    GIVES(run_nightly(f, &o, &report), ATTUNE_DONE);
    assert_non_null(strstr(report.reason, "4 new rows are fewer than the 10"));
    set_key(f, "rows_new_min", "4");
    GIVES(run_nightly(f, &o, &report), ATTUNE_DONE);
    assert_int_equal(report.runs, 1);
}

/* A run that was refused is not made again for the same rows. */
static void test_refused_once(void **state) {
    struct homes *f = *state;
    attune_nightly_report report;
    struct nightly_work work;
    attune_store *store = NULL;
    make_night_home(f, 20);
    set_key(f, "learning_rate", "0"); /* nothing is learned, so that nothing is better */
    attune_nightly_options o = nightly_options(f);
    GIVES(run_nightly(f, &o, &report), ATTUNE_DONE);
    assert_int_equal(report.runs, 1);
    assert_string_equal(report.last.state, "refused");
    GIVES(run_nightly(f, &o, &report), ATTUNE_DONE);
    assert_int_equal(report.runs, 0);
    assert_non_null(strstr(report.reason, "nothing is new since run 1, which was refused"));
    import_rows(f, 20, 3);
    OK(store_open_path(f->home, 0, &store, &f->err));
    OK(store_maintain(store, 0, &f->err));
    OK(nightly_work(store, &work, &f->err));
    attune_store_close(store);
    assert_int_equal(work.rows_new, 3);
    assert_int_equal(work.rows, 23);
    GIVES(run_nightly(f, &o, &report), ATTUNE_DONE);
    assert_int_equal(report.runs, 1);
}

/* ---- conditions ---- */

/* Not now: ends at once, and the same reason of one night takes one row, however often it is asked. */
static void test_ends_at_once(void **state) {
    struct homes *f = *state;
    attune_nightly_report report;
    make_night_home(f, 20);
    attune_nightly_options o = nightly_options(f);
    atomic_store(&power, ATTUNE_POWER_BATTERY);
    for (int i = 0; i < 3; i++) {
        GIVES(run_nightly(f, &o, &report), ATTUNE_PAUSED);
        assert_string_equal(report.state, "waiting");
        assert_string_equal(report.reason, "not on a charger");
        assert_int_equal(sql_number(f, "SELECT count(*) FROM night"), 1);
    }
    atomic_store(&power, ATTUNE_POWER_MAINS);
    atomic_store(&seconds_idle, 5);
    GIVES(run_nightly(f, &o, &report), ATTUNE_PAUSED);
    assert_string_equal(report.reason, "the device is in use");
    assert_true(report.wait_s > 0 && report.wait_s <= 60);
    assert_int_equal(sql_number(f, "SELECT count(*) FROM night"), 2);
    assert_string_equal(sql_text(f, "SELECT group_concat(state) FROM night"), "waiting,waiting");
    o.now = 1; /* neither is asked */
    GIVES(run_nightly(f, &o, &report), ATTUNE_DONE);
    assert_int_equal(report.published, 1);
}

/* Outside the window it does not wait, whatever it is told, and that is no event of a night. */
static void test_outside_the_window(void **state) {
    struct homes *f = *state;
    attune_nightly_report report;
    char window[32];
    make_night_home(f, 20);
    time_t now = time(NULL);
    struct tm t;
    localtime_r(&now, &t);
    snprintf(window, sizeof window, "%02d:00-%02d:00", (t.tm_hour + 3) % 24, (t.tm_hour + 5) % 24);
    set_key(f, "window", window);
    attune_nightly_options o = nightly_options(f);
    o.wait = 1;
    GIVES(run_nightly(f, &o, &report), ATTUNE_PAUSED);
    assert_string_equal(report.reason, "outside the nightly window");
    assert_true(report.wait_s > 3600);
    assert_int_equal(sql_number(f, "SELECT count(*) FROM night"), 0);
}

/* It waits in steps until the charger is there, and then goes. */
static void test_waits(void **state) {
    struct homes *f = *state;
    attune_nightly *nightly = NULL;
    attune_nightly_report report;
    make_night_home(f, 20);
    attune_nightly_options o = nightly_options(f);
    o.wait = 1;
    atomic_store(&power, ATTUNE_POWER_BATTERY);
    OK(attune_nightly_open(f->home, &o, &nightly, &f->err));
    GIVES(run_steps(f, nightly, 2), ATTUNE_CONTINUE);
    ATTUNE_INIT(report);
    OK(attune_nightly_report_get(nightly, &report, &f->err));
    assert_string_equal(report.state, "waiting");
    assert_string_equal(report.reason, "not on a charger");
    OK(attune_adapter_use(f->home, 0, &f->err)); /* the home is not locked meanwhile */
    atomic_store(&power, ATTUNE_POWER_MAINS);
    GIVES(run_steps(f, nightly, 100000), ATTUNE_DONE);
    OK(attune_nightly_report_get(nightly, &report, &f->err));
    assert_int_equal(report.published, 1);
    attune_nightly_close(nightly);
    assert_int_equal(sql_number(f, "SELECT count(*) FROM night"), 1);
}

struct unplug {
    long units, seen;
};
static void unplug_after(const attune_progress *progress, void *user) {
    struct unplug *unplug = user;
    (void)progress;
    if (++unplug->seen > unplug->units) atomic_store(&power, ATTUNE_POWER_BATTERY);
    usleep(30000); /* a run that lasts longer than the looks at the device are apart */
}

/* Unplugged in the middle: without waiting it ends as paused and the next call goes on; waiting, it goes on in memory.
 * Both end in the bytes of a run that nobody disturbed. */
static void check_unplugged(struct homes *f, int wait) {
    attune_nightly *nightly = NULL;
    attune_nightly_report report;
    struct unplug unplug = {.units = 5};
    make_night_home(f, 60);
    const char *plain = undisturbed(f);
    attune_nightly_options o = nightly_options(f);
    o.on_progress = unplug_after;
    o.user = &unplug;
    o.wait = wait ? 1 : -1;
    OK(attune_nightly_open(f->home, &o, &nightly, &f->err));
    int code;
    ATTUNE_INIT(report);
    do {
        code = attune_nightly_step(nightly, &f->err);
        OK(attune_nightly_report_get(nightly, &report, &f->err));
    } while (code == ATTUNE_CONTINUE && report.pauses == 0);
    if (!wait) {
        assert_int_equal(code, ATTUNE_PAUSED);
        assert_string_equal(report.state, "paused");
        assert_string_equal(report.reason, "not on a charger");
        assert_true(exists(in_home(f, "checkpoint.gguf")));
        attune_nightly_close(nightly);
        assert_string_equal(sql_text(f, "SELECT state FROM night"), "paused");
        unplug.units = 1L << 40;
        atomic_store(&power, ATTUNE_POWER_MAINS);
        GIVES(run_nightly(f, &o, &report), ATTUNE_DONE);
    } else {
        assert_int_equal(code, ATTUNE_CONTINUE);
        unplug.units = 1L << 40;
        atomic_store(&power, ATTUNE_POWER_MAINS);
        GIVES(run_steps(f, nightly, 100000), ATTUNE_DONE);
        attune_nightly_close(nightly);
        assert_int_equal(sql_number(f, "SELECT count(*) FROM night"), 1);
    }
    assert_true(same_files(adapter_path(f, 1), plain));
}
static void test_unplugged(void **state) { check_unplugged(*state, 0); }
static void test_unplugged_and_waiting(void **state) { check_unplugged(*state, 1); }

/* A budget of the night that is used up by what its rows have: no run, and no waiting for it. */
static void test_budget(void **state) {
    struct homes *f = *state;
    attune_nightly_report report;
    make_night_home(f, 20);
    set_key(f, "energy_night", "1000J");
    sql(f, "INSERT INTO night (night_ms, started_ms, ended_ms, kind, state, reason, run, runs, tokens, steps, seconds,"
           " work_seconds, cpu_s, modelled_cpu_s, joules_measured, joules_battery, joules_modelled, marked, written,"
           " pauses, adapter, governor_cpu_s, gap_ms)"
           " VALUES (strftime('%s') * 1000, strftime('%s') * 1000, strftime('%s') * 1000, 'train', 'done', '', 0, 0, 0,"
           " 0, 1, 1, 1, 0, 1200, 0, 0, 0, 0, 0, 0, 0, 0)");
    attune_nightly_options o = nightly_options(f);
    o.wait = 1;
    GIVES(run_nightly(f, &o, &report), ATTUNE_PAUSED);
    assert_non_null(strstr(report.reason, "energy budget of the night"));
    assert_int_equal(report.runs, 0);
}

/* ---- stopping, and one at a time ---- */

static void *cancel_soon(void *nightly) {
    usleep(300000);
    attune_nightly_cancel(nightly);
    return NULL;
}

static void test_cancel_while_waiting(void **state) {
    struct homes *f = *state;
    attune_nightly *nightly = NULL;
    attune_nightly_report report;
    pthread_t thread;
    make_night_home(f, 20);
    attune_nightly_options o = nightly_options(f);
    o.wait = 1;
    atomic_store(&power, ATTUNE_POWER_BATTERY);
    OK(attune_nightly_open(f->home, &o, &nightly, &f->err));
    assert_int_equal(pthread_create(&thread, NULL, cancel_soon, nightly), 0);
    GIVES(run_steps(f, nightly, 600), ATTUNE_PAUSED);
    pthread_join(thread, NULL);
    ATTUNE_INIT(report);
    OK(attune_nightly_report_get(nightly, &report, &f->err));
    assert_string_equal(report.reason, "stopped on request");
    GIVES(attune_nightly_step(nightly, &f->err), ATTUNE_PAUSED); /* it stays so */
    attune_nightly_close(nightly);
}

struct canceller {
    attune_nightly *nightly;
    long seen;
};
static void cancel_after_five(const attune_progress *progress, void *user) {
    struct canceller *canceller = user;
    (void)progress;
    if (++canceller->seen == 5) attune_nightly_cancel(canceller->nightly);
}

static void test_cancel_while_training(void **state) {
    struct homes *f = *state;
    attune_nightly_report report;
    struct canceller canceller = {0};
    make_night_home(f, 40);
    const char *plain = undisturbed(f);
    attune_nightly_options o = nightly_options(f);
    o.on_progress = cancel_after_five;
    o.user = &canceller;
    OK(attune_nightly_open(f->home, &o, &canceller.nightly, &f->err));
    GIVES(run_steps(f, canceller.nightly, 100000), ATTUNE_PAUSED);
    ATTUNE_INIT(report);
    OK(attune_nightly_report_get(canceller.nightly, &report, &f->err));
    assert_string_equal(report.state, "paused");
    attune_nightly_close(canceller.nightly);
    assert_true(exists(in_home(f, "checkpoint.gguf")));
    assert_string_equal(sql_text(f, "SELECT state || ': ' || reason FROM night"), "paused: stopped on request");
    o.on_progress = NULL;
    GIVES(run_nightly(f, &o, &report), ATTUNE_DONE);
    assert_true(same_files(adapter_path(f, 1), plain));
}

/* A second one is refused while the first is there; a killed one leaves nothing in the way, and its row is ended. */
static void test_one_at_a_time(void **state) {
    struct homes *f = *state;
    attune_nightly *nightly = NULL, *other = NULL;
    attune_nightly_report report;
    make_night_home(f, 40);
    attune_nightly_options o = nightly_options(f);
    OK(attune_nightly_open(f->home, &o, &nightly, &f->err));
    FAILS(attune_nightly_open(f->home, &o, &other, &f->err), ATTUNE_ERROR_BUSY, "another attune nightly", "home");
    attune_nightly_close(nightly);

    int ready[2];
    char byte;
    assert_int_equal(pipe(ready), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        attune_nightly *mine = NULL;
        if (attune_nightly_open(f->home, &o, &mine, NULL) != ATTUNE_OK) _exit(1);
        for (int i = 0; i < 6; i++)
            if (attune_nightly_step(mine, NULL) != ATTUNE_CONTINUE) _exit(2);
        if (write(ready[1], "r", 1) != 1) _exit(3);
        pause();
        _exit(4);
    }
    close(ready[1]);
    assert_int_equal(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    FAILS(attune_nightly_open(f->home, &o, &other, &f->err), ATTUNE_ERROR_BUSY, "another attune nightly", "home");
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, NULL, 0), child);
    GIVES(run_nightly(f, &o, &report), ATTUNE_DONE);
    assert_int_equal(report.published, 1);
    assert_string_equal(sql_text(f, "SELECT group_concat(state) FROM (SELECT state FROM night ORDER BY number)"),
                        "killed,done");
}

/* A train that holds the home is waited for, or told. */
static void test_home_is_busy(void **state) {
    struct homes *f = *state;
    attune_nightly_report report;
    make_night_home(f, 20);
    attune_nightly_options o = nightly_options(f);
    struct lock_holder holder = hold_lock(f);
    GIVES(run_nightly(f, &o, &report), ATTUNE_PAUSED);
    assert_non_null(strstr(report.reason, "another attune process"));
    release_lock(holder);
    GIVES(run_nightly(f, &o, &report), ATTUNE_DONE);
}

static void test_bad_options(void **state) {
    struct homes *f = *state;
    attune_nightly *nightly = NULL;
    attune_nightly_options o = nightly_options(f);
    FAILS(attune_nightly_open(f->home, &o, &nightly, &f->err), ATTUNE_ERROR_NOT_FOUND, "no attune home", "home");
    make_night_home(f, 0);
    o.wait = 2;
    FAILS(attune_nightly_open(f->home, &o, &nightly, &f->err), ATTUNE_ERROR_ARGUMENT, "wait", "");
    o.wait = 0;
    attune_nightly_close(NULL);
    attune_nightly_cancel(NULL);
    OK(attune_nightly_open(f->home, &o, &nightly, &f->err));
    attune_nightly_close(nightly);
    assert_int_equal(sql_number(f, "SELECT count(*) FROM night"), 0);
}

/* ---- explaining ---- */

struct conditions {
    int n, stops;
    char first[16];
};
static void count_condition(const attune_condition *c, void *user) {
    struct conditions *conditions = user;
    if (conditions->n++ == 0) snprintf(conditions->first, sizeof conditions->first, "%s", c->name);
    conditions->stops += strcmp(c->verdict, "stop") == 0;
    assert_true((strcmp(c->verdict, "run") == 0) == (c->reason[0] == 0));
}

static attune_explanation explain(struct homes *f, struct conditions *conditions) {
    attune_nightly_options o = nightly_options(f);
    attune_explanation e;
    ATTUNE_INIT(e);
    memset(conditions, 0, sizeof *conditions);
    OK(attune_nightly_explain(f->home, &o, count_condition, conditions, &e, &f->err));
    return e;
}

static void test_explain(void **state) {
    struct homes *f = *state;
    struct conditions conditions;
    attune_nightly_report report;
    make_night_home(f, 40);
    set_key(f, "device", "desktop");
    attune_explanation e = explain(f, &conditions);
    assert_int_equal(conditions.n, CONDITION_COUNT);
    assert_string_equal(conditions.first, "power");
    assert_int_equal(conditions.stops, 0);
    assert_string_equal(e.verdict, "run");
    assert_string_equal(e.device, "desktop");
    assert_true(e.seconds_predicted == 0 && e.joules_predicted == 0);
    atomic_store(&power, ATTUNE_POWER_BATTERY);
    struct lock_holder holder = hold_lock(f); /* while another process trains */
    e = explain(f, &conditions);
    release_lock(holder);
    assert_true(conditions.stops >= 1);
    assert_string_equal(e.verdict, "stop");
    assert_string_equal(e.reason, "not on a charger");
    assert_int_equal(sql_number(f, "SELECT count(*) FROM night"), 0);
    assert_false(exists(in_home(f, "nightly.lock")));

    atomic_store(&power, ATTUNE_POWER_MAINS);
    GIVES(run_units(f, 8, job_options(), NULL), ATTUNE_PAUSED);
    e = explain(f, &conditions);
    assert_non_null(strstr(e.plan, "goes on with run 1"));
    attune_nightly_options o = nightly_options(f);
    GIVES(run_nightly(f, &o, &report), ATTUNE_DONE);
    e = explain(f, &conditions);
    assert_string_equal(e.plan, "nothing new to learn");
    assert_int_equal(e.rows_planned, 0);
    import_rows(f, 40, 10);
    attune_store *store = NULL;
    OK(store_open_path(f->home, 0, &store, &f->err));
    OK(store_maintain(store, 0, &f->err));
    attune_store_close(store);
    e = explain(f, &conditions);
    assert_int_equal(e.rows_new, 10);
    assert_int_equal(e.rows_planned, 50);
    assert_true(e.seconds_predicted > 0);
}

/* ---- retention ---- */

static void sweep(struct homes *f, size_t keep) {
    struct settings settings;
    attune_store *store = NULL;
    OK(settings_read(f->home, &settings, &f->err));
    settings.keep_adapters = keep;
    settings.keep_nights_days = 30;
    OK(store_open_path(f->home, 0, &store, &f->err));
    OK(retention_sweep(f->home, store, &settings, &f->err));
    attune_store_close(store);
}

static void test_retention(void **state) {
    struct homes *f = *state;
    make_night_home(f, 12);
    publish_run(f, 1);
    for (int i = 2; i <= 5; i++) {
        import_rows(f, 12 * (size_t)(i - 1), 12);
        attune_job_options o = job_options();
        attune_job_report report;
        GIVES(run_job(f, &o, &report), ATTUNE_DONE);
    }
    int active = home_status(f).active_adapter, n = home_status(f).n_adapters;
    assert_true(n >= 3);
    assert_int_equal(active, n);
    write_text(in_home(f, "adapters/.9.gguf.1-1.tmp"), "left over");
    sql(f, "UPDATE night SET started_ms = 1000, night_ms = 1000 WHERE number = 1");
    long nights = sql_number(f, "SELECT count(*) FROM night");
    sweep(f, (size_t)n); /* room for all */
    assert_int_equal(home_status(f).n_adapters, n);
    assert_false(exists(in_home(f, "adapters/.9.gguf.1-1.tmp")));
    assert_int_equal(sql_number(f, "SELECT count(*) FROM night"), nights - 1);

    sweep(f, 1); /* the active one and its parent */
    assert_int_equal(home_status(f).n_adapters, 2);
    assert_true(exists(adapter_path(f, n)) && exists(adapter_path(f, n - 1)) && !exists(adapter_path(f, n - 2)));
    assert_string_equal(adapter_info(f, n - 2).state, "removed");
    assert_string_equal(adapter_info(f, n - 1).state, "retired");
    FAILS(attune_adapter_use(f->home, n - 2, &f->err), ATTUNE_ERROR_NOT_FOUND, "was removed", "");
    int now = 0;
    OK(attune_adapter_rollback(f->home, &now, &f->err));
    assert_int_equal(now, n - 1);
    FAILS(attune_adapter_rollback(f->home, &now, &f->err), ATTUNE_ERROR_NOT_FOUND, "was removed", "");
    assert_int_equal(home_status(f).active_adapter, n - 1);
    OK(attune_adapter_use(f->home, 0, &f->err)); /* the base is always there */

    /* an old one that is active: what it came from stays, and of the others the newest */
    OK(attune_adapter_use(f->home, n - 1, &f->err));
    sweep(f, 1);
    assert_true(exists(adapter_path(f, n)) && exists(adapter_path(f, n - 1)));
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, homes_setup, homes_teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_a_night), TEST(test_refused_once), TEST(test_ends_at_once), TEST(test_outside_the_window),
        TEST(test_waits), TEST(test_unplugged), TEST(test_unplugged_and_waiting), TEST(test_budget),
        TEST(test_cancel_while_waiting), TEST(test_cancel_while_training), TEST(test_one_at_a_time),
        TEST(test_home_is_busy), TEST(test_bad_options), TEST(test_explain), TEST(test_retention),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
