/* The nightly job: waits for its conditions, or not; trains under the governor; clears away.
 *
 *   idle ── may it? is there something to learn? ──▶ a job is open ── done ──▶ idle, and again
 *     │ not now: waits, or ends                        │ not now: waits in memory for minutes, then idle, or ends
 *
 * `nightly.lock` is held from open to close: one at a time. The home's own lock is held by the job alone, so that
 * people can use another adapter while this waits. */
#include "job/nightly.h"

#include "core/base/options.h"
#include "job/governed.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <sched.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

static const double WAIT_SECONDS = 1;        /* of one step that waits */
static const double IN_MEMORY_SECONDS = 300; /* that a job which may not go on stays open */
static const double MAINTAIN_SECONDS = 0.5;
static const double LOOK_SECONDS = 60; /* between two looks at what there is to learn */

struct attune_nightly {
    char home[HOME_PATH_MAX];
    attune_nightly_options options; /* texts are copies; key: `key` or NULL */
    unsigned char key[ATTUNE_KEY_BYTES];
    struct settings settings;
    struct policy policy;
    int wait;          /* as the call or the settings have it */
    int lock, wake[2]; /* wake: a pipe that cancel writes to */
    attune_store *store;
    struct governor *governor; /* while no job is open */
    attune_job *_Atomic job;
    atomic_int cancelled, cancelling; /* cancelling: calls of cancel that may hold the job */

    struct store_night night; /* number 0: no row yet */
    attune_nightly_report report;
    int ended, code;        /* code: of every step from now on */
    int maintained, worked; /* worked: a job was open in this call */
    int doubts;             /* the job paused, one time after the other, though nothing is against going on */
    double looked_at;       /* job_now() of the last look at what there is to learn; 0: none yet */
    double stopped_at;      /* job_now() since when it may not run; 0: it may */
    double seconds;         /* of jobs that were open in this call, and their joules */
    struct joules joules;
    char marked[24]; /* reason of the last moment that was kept while it waited */
    double celsius;
};

/* ---- opening and closing ---- */

static int take_lock(const char *home, int *lock, attune_error *err) {
    char path[HOME_PATH_MAX];
    int code = home_file(home, "nightly.lock", path, err);
    if (code != ATTUNE_OK) return code;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return error_set_errno(err, path, "cannot open the lock of the nightly job");
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        code = errno == EWOULDBLOCK
                   ? error_set(err, ATTUNE_ERROR_BUSY, home, "another attune nightly is at work on this home already")
                   : error_set_errno(err, path, "cannot lock the nightly job");
        close(fd);
        return code;
    }
    *lock = fd;
    return ATTUNE_OK;
}

static int copy_text(const char **text, attune_error *err) {
    if (!*text) return ATTUNE_OK;
    const char *from = *text;
    *text = strdup(from);
    return *text ? ATTUNE_OK : error_set_memory(err, "an option", strlen(from) + 1);
}

/* The caller's texts and key are borrowed for the call; jobs are opened later. */
static int take_options(attune_nightly *n, const attune_nightly_options *options, attune_error *err) {
    attune_nightly_options *o = &n->options;
    int code = options_read(o, sizeof *o, options, "attune_nightly_options", err);
    if (code != ATTUNE_OK) {
        *o = (attune_nightly_options){.size = sizeof *o};
        return code;
    }
    const char *sys_root = o->sys_root, *proc_root = o->proc_root, *key_file = o->key_file;
    o->sys_root = o->proc_root = o->key_file = NULL;
    if (o->key) {
        memcpy(n->key, o->key, sizeof n->key);
        o->key = n->key;
    }
    if (o->wait < -1 || o->wait > 1 || o->threads < 0)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL,
                         "impossible options of nightly: wait is -1, 0 or 1, threads is at least 0");
    code = copy_text(&sys_root, err);
    o->sys_root = code == ATTUNE_OK ? sys_root : NULL;
    if (code == ATTUNE_OK) code = copy_text(&proc_root, err);
    if (code == ATTUNE_OK) o->proc_root = proc_root;
    if (code == ATTUNE_OK) code = copy_text(&key_file, err);
    if (code == ATTUNE_OK) o->key_file = key_file;
    return code;
}

static int make_wake(attune_nightly *n, attune_error *err) {
    if (pipe(n->wake) != 0) {
        n->wake[0] = n->wake[1] = -1;
        return error_set_errno(err, NULL, "cannot make a pipe for the nightly job");
    }
    for (int i = 0; i < 2; i++) {
        fcntl(n->wake[i], F_SETFD, FD_CLOEXEC);
        fcntl(n->wake[i], F_SETFL, O_NONBLOCK);
    }
    return ATTUNE_OK;
}

static int open_store(attune_nightly *n, attune_error *err) {
    attune_store_options o;
    ATTUNE_INIT(o);
    o.key = n->options.key;
    o.key_file = n->options.key_file;
    return attune_store_open(n->home, &o, &n->store, err);
}

int attune_nightly_open(const char *home, const attune_nightly_options *options, attune_nightly **out,
                        attune_error *err) {
    if (!out) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "out is NULL");
    attune_nightly *n = calloc(1, sizeof *n);
    if (!n) return error_set_memory(err, "a nightly job", sizeof *n);
    n->lock = n->wake[0] = n->wake[1] = -1;
    n->celsius = NAN;
    ATTUNE_INIT(n->report);
    ATTUNE_INIT(n->report.last);
    n->report.last.loss_before = n->report.last.loss_after = n->report.last.loss_interval = NAN;
    n->report.wait_s = NAN;
    snprintf(n->report.state, sizeof n->report.state, "waiting");
    int code = take_options(n, options, err);
    if (code == ATTUNE_OK) code = home_resolve(home, n->home, err);
    if (code == ATTUNE_OK) code = settings_read(n->home, &n->settings, err);
    if (code == ATTUNE_OK) code = take_lock(n->home, &n->lock, err);
    if (code == ATTUNE_OK) code = make_wake(n, err);
    if (code == ATTUNE_OK) code = open_store(n, err);
    if (code != ATTUNE_OK) {
        attune_nightly_close(n);
        return code;
    }
    nightly_policy(&n->settings, &n->options, &n->policy);
    n->wait = n->options.wait ? n->options.wait > 0 : n->settings.wait;
    *out = n;
    return ATTUNE_OK;
}

void attune_nightly_cancel(attune_nightly *n) {
    int before = errno; /* of whom the signal came upon */
    if (!n) return;
    atomic_store(&n->cancelled, 1);
    atomic_fetch_add(&n->cancelling, 1);
    attune_job *job = atomic_load(&n->job);
    if (job) attune_job_cancel(job);
    atomic_fetch_sub(&n->cancelling, 1);
    ssize_t written = write(n->wake[1], "", 1);
    (void)written; /* a full pipe wakes as well */
    errno = before;
}

/* ---- the job that is open ---- */

/* Takes it from where cancel finds it; its figures go into the report and the night's row. */
static void close_job(attune_nightly *n) {
    attune_job *job = atomic_exchange(&n->job, NULL);
    if (!job) return;
    while (atomic_load(&n->cancelling)) sched_yield();
    if (attune_job_report_get(job, &n->report.last, NULL) == ATTUNE_OK) {
        n->seconds += n->report.last.seconds;
        n->joules.measured += n->report.last.joules_measured;
        n->joules.battery += n->report.last.joules_battery;
        n->joules.modelled += n->report.last.joules_modelled;
    }
    attune_job_close(job);
}

static void prepare_night(attune_nightly *n) {
    if (n->night.number) return;
    int64_t now = home_now_ms();
    n->night = (struct store_night){.started_ms = now,
                                    .night_ms = window_night(&n->policy.window, now),
                                    .loss_before = NAN,
                                    .loss_after = NAN,
                                    .celsius_max = NAN};
    snprintf(n->night.kind, sizeof n->night.kind, "nightly");
    snprintf(n->night.state, sizeof n->night.state, "running");
}

/* What earlier jobs of this call have left of its budgets is the new one's. */
static int open_job(attune_nightly *n, attune_error *err) {
    const attune_nightly_options *o = &n->options;
    attune_job_options options;
    attune_job *job = NULL;
    ATTUNE_INIT(options);
    options.threads = o->threads;
    options.now = o->now;
    options.on_progress = o->on_progress;
    options.user = o->user;
    options.sys_root = o->sys_root;
    options.proc_root = o->proc_root;
    options.event_fd = o->event_fd;
    options.device = o->device;
    options.device_user = o->device_user;
    options.key = o->key;
    options.key_file = o->key_file;
    options.background = 1;
    if (n->policy.seconds_run > 0) options.time_s = fmax(n->policy.seconds_run - n->seconds, 1e-3);
    if (n->policy.joules_run > 0)
        options.energy_j = fmax(n->policy.joules_run - joules_counted(&n->joules, n->policy.modelled_guard), 1e-3);
    governor_close(n->governor);
    n->governor = NULL;
    int code = attune_job_open(n->home, &options, &job, err);
    if (code != ATTUNE_OK) return code;
    prepare_night(n);
    governed_adopt_night(job, &n->night);
    n->worked = 1;
    atomic_store(&n->job, job);
    return ATTUNE_OK;
}

/* ---- the end ---- */

/* Another call that ended so, in the same night and for the same reason, has a row already: a timer calls often. */
struct same {
    const attune_nightly *nightly;
    int found;
};
static int is_same(const struct store_night *row, void *user) {
    struct same *same = user;
    const attune_nightly *n = same->nightly;
    same->found = strcmp(row->kind, "nightly") == 0 && strcmp(row->state, n->night.state) == 0 &&
                  row->night_ms == n->night.night_ms && strcmp(row->reason, n->night.reason) == 0;
    return 1;
}

/* Of a call that only asked. Under the home's lock, since rows of killed calls are ended with it; whoever holds that
 * lock now has a row of its own. */
static int record_asking(attune_nightly *n, attune_error *err) {
    struct same same = {.nightly = n};
    struct governed_killed killed = {n->settings.watts_per_cpu, pool_cpu_count()};
    int fd = -1;
    int code = store_nights(n->store, n->night.night_ms, 1, is_same, &same, err);
    if (code != ATTUNE_OK || same.found || home_lock(n->home, &fd, NULL) != ATTUNE_OK) return code;
    code = store_night_begin(n->store, &n->night, governed_charge_killed, &killed, err);
    if (code == ATTUNE_OK) code = store_night_update(n->store, &n->night, NULL, 0, err);
    home_unlock(fd);
    return code;
}

static int record(attune_nightly *n, int asked, attune_error *err) {
    if (!n->night.number && !asked) return ATTUNE_OK;
    prepare_night(n);
    n->night.ended_ms = home_now_ms();
    snprintf(n->night.state, sizeof n->night.state, "%s", n->report.state);
    snprintf(n->night.reason, sizeof n->night.reason, "%s", n->report.reason);
    return n->night.number ? store_night_update(n->store, &n->night, NULL, 0, err) : record_asking(n, err);
}

/* What cannot be cleared away fails no night, and is said. */
static void clear_away(attune_nightly *n) {
    attune_error why = {0};
    char *reason = n->report.reason;
    size_t length = strlen(reason);
    int fd = -1;
    if (home_lock(n->home, &fd, NULL) != ATTUNE_OK) return;
    if (retention_sweep(n->home, n->store, &n->settings, &why) != ATTUNE_OK)
        snprintf(reason + length, sizeof n->report.reason - length, "; what is old could not be removed: %s",
                 why.message);
    home_unlock(fd);
}

/* asked: it was the device that did not allow it, which people may want to know of a night. */
static int end(attune_nightly *n, int code, const char *state, const char *reason, int asked, attune_error *err) {
    char text[sizeof n->report.reason];
    snprintf(text, sizeof text, "%s", reason); /* may live in the job */
    close_job(n);
    governor_close(n->governor);
    n->governor = NULL;
    snprintf(n->report.state, sizeof n->report.state, "%s", state);
    snprintf(n->report.reason, sizeof n->report.reason, "%s", text);
    n->ended = 1;
    n->code = code;
    if (n->worked && code >= 0 && !atomic_load(&n->cancelled)) clear_away(n);
    int recorded = record(n, asked, code < 0 ? NULL : err);
    if (code >= 0 && recorded != ATTUNE_OK) n->code = recorded;
    return n->code;
}

static int end_failed(attune_nightly *n, int code, attune_error *err) {
    attune_error unknown = {.message = ""};
    return end(n, code, "failed", (err ? err : &unknown)->message, 0, err);
}

static int end_stopped(attune_nightly *n, attune_error *err) {
    n->report.wait_s = 0;
    return end(n, ATTUNE_PAUSED, n->night.number ? "paused" : "waiting", "stopped on request", 0, err);
}

/* ---- not now ---- */

static int allows(const struct decision *d) { return d->verdict == VERDICT_RUN || d->verdict == VERDICT_THROTTLE; }

/* Outside the window, or with a budget used up, nothing changes for hours. What is short is waited for by whoever has
 * begun; everything else where it was asked for. */
static int may_wait(const attune_nightly *n, const struct decision *d) {
    if (!n->policy.now && !window_contains(&n->policy.window, home_now_ms())) return 0;
    if (d->reason >= REASON_TIME_RUN) return 0;
    if (n->wait) return 1;
    return n->night.number && d->verdict == VERDICT_PAUSE && job_now() - n->stopped_at < IN_MEMORY_SECONDS;
}

/* A moment of the row for each change, while no job is there to keep them. */
static void mark(attune_nightly *n, const struct decision *d) {
    struct snapshot now;
    if (!n->night.number || !n->governor || strcmp(n->marked, reason_name(d->reason)) == 0) return;
    governor_state(n->governor, &now, NULL, NULL);
    struct store_moment m = {.time_ms = now.wall_ms,
                             .celsius = now.celsius,
                             .watts = NAN,
                             .loss = NAN,
                             .percent = now.power.percent < 0 ? NAN : now.power.percent,
                             .joules = n->night.joules_measured + n->night.joules_battery + n->night.joules_modelled,
                             .steps = n->night.steps};
    snprintf(m.verdict, sizeof m.verdict, "%s", verdict_name(d->verdict));
    snprintf(m.reason, sizeof m.reason, "%s", reason_name(d->reason));
    snprintf(n->marked, sizeof n->marked, "%s", m.reason);
    (void)store_night_update(n->store, &n->night, &m, 1, NULL); /* a plot the less, if not */
}

static void wait_a_moment(const attune_nightly *n) {
    struct pollfd wake = {.fd = n->wake[0], .events = POLLIN};
    poll(&wake, 1, (int)(1000 * WAIT_SECONDS));
}

static int not_now(attune_nightly *n, const struct decision *d, const char *reason, attune_error *err) {
    double now = job_now();
    if (n->stopped_at == 0) {
        n->stopped_at = now;
        n->report.pauses += n->worked;
    }
    n->report.wait_s = d->wait_s;
    if (!may_wait(n, d))
        return end(n, ATTUNE_PAUSED, n->night.number ? "paused" : "waiting", reason,
                   n->policy.now || window_contains(&n->policy.window, home_now_ms()), err);
    snprintf(n->report.state, sizeof n->report.state, "waiting");
    snprintf(n->report.reason, sizeof n->report.reason, "%s", reason);
    if (now - n->stopped_at > IN_MEMORY_SECONDS) close_job(n);
    mark(n, d);
    wait_a_moment(n);
    return ATTUNE_CONTINUE;
}

/* ---- without a job ---- */

/* Budgets are not its: waiting is no work. */
static int open_governor(attune_nightly *n, attune_error *err) {
    struct governor_options options = {.policy = n->policy,
                                       .watts_per_cpu = n->settings.watts_per_cpu,
                                       .event_fd = n->options.event_fd > 0 ? n->options.event_fd : -1,
                                       .thread = 1};
    struct policy *p = &options.policy;
    nightly_sensors(&n->policy, &n->options, &options.sensors);
    p->seconds_run = p->seconds_night = p->seconds_week = p->joules_run = p->joules_night = p->joules_week = 0;
    p->written_night = 0;
    return governor_open(&options, &n->governor, err);
}

/* Whether a budget, of the call, the night or the week, leaves nothing. */
static int budget_used(attune_nightly *n, struct decision *d, attune_error *err) {
    struct snapshot now;
    struct spent spent;
    struct policy_state state = {0};
    struct condition_view views[CONDITION_COUNT];
    int code = governed_spent(n->store, &n->policy.window, &spent, err);
    if (code != ATTUNE_OK) return code;
    spent.seconds_run = n->seconds;
    spent.run = n->joules;
    governor_state(n->governor, &now, NULL, NULL);
    policy_explain(&n->policy, &now, &spent, &state, views);
    for (int c = CONDITION_TIME; c <= CONDITION_WRITTEN; c++)
        if (views[c].verdict == VERDICT_STOP)
            *d = (struct decision){.verdict = VERDICT_STOP, .reason = views[c].reason, .wait_s = NAN};
    return ATTUNE_OK;
}

static int end_nothing(attune_nightly *n, const struct nightly_work *work, attune_error *err) {
    char reason[sizeof n->report.reason];
    if (n->report.runs > 0)
        snprintf(reason, sizeof reason, "%s", n->report.last.reason);
    else if (work->refused)
        snprintf(reason, sizeof reason, "nothing is new since run %lld, which was refused", (long long)work->run);
    else if (work->rows_new > 0)
        snprintf(reason, sizeof reason, "%lld new rows are fewer than the %zu that a run begins for",
                 (long long)work->rows_new, n->settings.rows_new_min);
    else
        snprintf(reason, sizeof reason, "nothing new to learn");
    return end(n, ATTUNE_DONE, "done", reason, 0, err);
}

static int is_enough(const attune_nightly *n, const struct nightly_work *work) {
    return work->unfinished || work->rows_new >= (int64_t)n->settings.rows_new_min;
}

/* Examples out of what was recorded: work, so that the device must allow it. */
static int maintain(attune_nightly *n, attune_error *err) {
    double from = job_now();
    int code = store_maintain(n->store, MAINTAIN_SECONDS, err);
    if (code < 0) return code;
    n->maintained = code == ATTUNE_OK || job_now() - from < 0.5 * MAINTAIN_SECONDS; /* or a reader is in the way */
    return ATTUNE_CONTINUE;
}

static int begin(attune_nightly *n, attune_error *err) {
    struct decision busy = {.verdict = VERDICT_PAUSE, .reason = REASON_NONE, .wait_s = NAN};
    attune_error why = {0};
    int code = open_job(n, &why);
    if (code == ATTUNE_OK) {
        n->stopped_at = 0;
        return ATTUNE_CONTINUE;
    }
    if (code == ATTUNE_ERROR_BUSY) return not_now(n, &busy, "another attune process is working on this home", err);
    if (err) *err = why;
    return code;
}

/* *nothing 1: there is nothing to learn. While it waits, asked once a minute. */
static int look_for_work(attune_nightly *n, int *nothing, struct nightly_work *work, attune_error *err) {
    int code = nightly_work(n->store, work, err);
    *nothing = !is_enough(n, work) && (n->maintained || work->not_derived == 0);
    n->looked_at = job_now();
    return code;
}

static int step_idle(attune_nightly *n, attune_error *err) {
    struct nightly_work work;
    struct decision d;
    int nothing = 0, code = ATTUNE_OK;
    if (n->looked_at == 0 || job_now() - n->looked_at > LOOK_SECONDS) code = look_for_work(n, &nothing, &work, err);
    if (code != ATTUNE_OK) return code;
    if (nothing) return end_nothing(n, &work, err);
    if (!n->governor) code = open_governor(n, err);
    if (code != ATTUNE_OK) return code;
    governor_decision(n->governor, &d);
    if (allows(&d)) code = budget_used(n, &d, err);
    if (code != ATTUNE_OK) return code;
    if (!allows(&d)) return not_now(n, &d, reason_text(d.reason), err);
    *n->marked = 0;
    if (!n->maintained) return maintain(n, err);
    code = look_for_work(n, &nothing, &work, err);
    if (code != ATTUNE_OK) return code;
    return nothing ? end_nothing(n, &work, err) : begin(n, err);
}

/* ---- with one ---- */

static int run_ended(attune_nightly *n) {
    close_job(n);
    n->report.runs++;
    n->report.published += n->report.last.published;
    n->maintained = 0;
    n->looked_at = 0;
    return ATTUNE_CONTINUE;
}

/* A run whose rows were forgotten meanwhile is planned anew. What stopped the job may have passed just now: it is asked
 * once more. What then stops it is a budget, or that there is nothing it can learn from. */
static int job_paused(attune_nightly *n, attune_job *job, attune_error *err) {
    attune_job_report report;
    struct decision d;
    ATTUNE_INIT(report);
    int code = attune_job_report_get(job, &report, err);
    if (code != ATTUNE_OK) return code;
    if (strcmp(report.state, "failed") == 0) return ATTUNE_CONTINUE;
    governed_decision(job, &d);
    if (!allows(&d)) return not_now(n, &d, reason_text(d.reason), err);
    if (++n->doubts < 2) return ATTUNE_CONTINUE;
    int done = strcmp(report.state, "waiting") == 0 && !governed_start_reason(job);
    return end(n, done ? ATTUNE_DONE : ATTUNE_PAUSED, done ? "done" : "paused", report.reason, 0, err);
}

static int step_job(attune_nightly *n, attune_job *job, attune_error *err) {
    int code = attune_job_step(job, err);
    if (code == ATTUNE_CONTINUE) n->stopped_at = n->doubts = 0;
    if (code == ATTUNE_DONE) return run_ended(n);
    return code == ATTUNE_PAUSED && !atomic_load(&n->cancelled) ? job_paused(n, job, err) : code;
}

int attune_nightly_step(attune_nightly *n, attune_error *err) {
    attune_error own = {0};
    if (!err) err = &own;
    if (n->ended) return n->code;
    attune_job *job = atomic_load(&n->job);
    /* A job that was cancelled takes one step more: it keeps what is done. */
    if (atomic_load(&n->cancelled) && job) attune_job_cancel(job);
    int code = atomic_load(&n->cancelled) && !job ? ATTUNE_PAUSED : job ? step_job(n, job, err) : step_idle(n, err);
    if (n->ended) return n->code;
    if (code < 0) return end_failed(n, code, err);
    if (code == ATTUNE_PAUSED) return end_stopped(n, err);
    return ATTUNE_CONTINUE;
}

int attune_nightly_report_get(const attune_nightly *n, attune_nightly_report *out, attune_error *err) {
    attune_nightly_report report = n->report;
    attune_job *job = atomic_load(&((attune_nightly *)n)->job);
    if (job) (void)attune_job_report_get(job, &report.last, NULL);
    return options_write(out, &report, sizeof report, "attune_nightly_report", err);
}

void attune_nightly_close(attune_nightly *n) {
    if (!n) return;
    if (!n->ended && n->store) {
        attune_error unused;
        end(n, ATTUNE_PAUSED, "paused", "closed before it ended", 0, &unused);
    }
    attune_store_close(n->store);
    for (int i = 0; i < 2; i++)
        if (n->wake[i] >= 0) close(n->wake[i]);
    if (n->lock >= 0) close(n->lock);
    free((char *)n->options.sys_root);
    free((char *)n->options.proc_root);
    free((char *)n->options.key_file);
    sodium_memzero(n->key, sizeof n->key);
    free(n);
}
