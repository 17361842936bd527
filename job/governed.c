#include "job/governed.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOMENTS_MAX = 256, KINDS = 2 };
static const double UPDATE_SECONDS = 60;    /* between two writes of the night's row, while nothing else is written */
static const double CHECKPOINT_FIRST = 0.5; /* seconds, before one was written */
static const double GUARD = 1.15;           /* of predictions */
static const double WATTS_SECONDS = 2;      /* of work, before its watts are believed */
static const double PLANNING_SECONDS = 0.5;
/* A cost that needs no measuring: so many seconds were observed, of late within so much of each other. */
static const double TRUSTED_WEIGHT = 30, TRUSTED_SPREAD = 0.1;
static const double WEEK_MS = 7 * 86400e3;

static const char *const kind_names[KINDS] = {"judge", "train"};

struct governed {
    attune_job *job;
    struct governor *governor;
    struct policy policy;
    double seconds;           /* of this call; 0: no budget */
    atomic_int cancelling;    /* the governor's verdict is to pause or stop */
    atomic_int late;          /* a unit was ended since it would have passed the time budget */

    pthread_mutex_t lock;     /* of what follows: written on both threads */
    enum reason reason;       /* of the last pause or stop */
    int throttled;
    double worked, work_began, work_ends; /* seconds; began 0: nothing is under way; ends: predicted, 0: not known */
    double busy_seconds, busy_joules;     /* of looks that saw work alone between them */
    double seen_at, seen_worked, seen_joules; /* at the last look; seen_at 0: none */
    double celsius_max, loss;
    int64_t steps;
    struct store_moment moments[MOMENTS_MAX], last;
    int n_moments;

    /* the job's thread alone */
    struct store_night own, *night, before; /* before: what the caller's row had */
    int64_t pauses;
    double updated;           /* job_now() of the row's last write */
    double checkpoint_seconds;
    uint64_t written_from, written_told;
    double retry_s;
    int told;                 /* what the last step gave */
    struct store_cost cost[KINDS];
    char why[160];
};

/* ---- on the governor's thread ---- */

static double worked_by(const struct governed *g, double now) {
    return g->worked + (g->work_began > 0 ? now - g->work_began : 0);
}

static void act(void *user, const struct decision *decision) {
    struct governed *g = user;
    struct pool *pool = g->job->pool;
    int stop = decision->verdict == VERDICT_PAUSE || decision->verdict == VERDICT_STOP;
    pthread_mutex_lock(&g->lock);
    if (stop) g->reason = decision->reason;
    if (decision->verdict == VERDICT_THROTTLE) g->throttled = 1;
    pthread_mutex_unlock(&g->lock);
    if (!stop) {
        pool_limit(pool, decision->threads);
        pool_duty(pool, decision->duty > 0 ? decision->duty : 1);
    }
    atomic_store(&g->cancelling, stop);
    if (stop) pool_cancel(pool);
}

/* A unit that took longer than predicted: nothing may pass the budget by more than a look. */
static void check_time(struct governed *g, double now) {
    double end = g->job->opened + g->seconds - g->checkpoint_seconds;
    if (g->seconds <= 0 || g->work_began <= 0 || now + GOVERNOR_POLL_S < end) return;
    if (g->work_ends > now && g->work_ends < end) return;
    atomic_store(&g->late, 1);
    pool_cancel(g->job->pool);
}

/* Watts of work: between two looks with hardly anything else between them. */
static void learn_watts(struct governed *g, double now, double joules) {
    double worked = worked_by(g, now), seconds = now - g->seen_at;
    if (g->seen_at > 0 && seconds > 0 && worked - g->seen_worked > 0.9 * seconds) {
        g->busy_seconds += seconds;
        g->busy_joules += joules - g->seen_joules;
    }
    g->seen_at = now;
    g->seen_worked = worked;
    g->seen_joules = joules;
}

static void keep_moment(struct governed *g, const struct snapshot *now, const struct decision *decision,
                        double joules) {
    struct store_moment *last = &g->last;
    struct store_moment m = {.time_ms = now->wall_ms, .celsius = now->celsius, .watts = NAN, .loss = g->loss,
                             .percent = now->power.percent < 0 ? NAN : now->power.percent, .joules = joules,
                             .steps = g->steps};
    snprintf(m.verdict, sizeof m.verdict, "%s", verdict_name(decision->verdict));
    snprintf(m.reason, sizeof m.reason, "%s", reason_name(decision->reason));
    int same = strcmp(m.verdict, last->verdict) == 0 && strcmp(m.reason, last->reason) == 0;
    double seconds = 1e-3 * (double)(m.time_ms - last->time_ms);
    if (last->time_ms && same && seconds >= 0 && seconds < UPDATE_SECONDS) return;
    if (last->time_ms && seconds > 0 && joules >= last->joules) m.watts = (joules - last->joules) / seconds;
    *last = m;
    if (g->n_moments == MOMENTS_MAX) { /* nobody took them for hours: the oldest go */
        memmove(g->moments, g->moments + 1, (MOMENTS_MAX - 1) * sizeof m);
        g->n_moments--;
    }
    g->moments[g->n_moments++] = m;
}

static void sample(void *user, const struct snapshot *now, const struct decision *decision,
                   const struct ledger *ledger) {
    struct governed *g = user;
    double joules = joules_sum(&ledger->joules), seconds = job_now();
    pthread_mutex_lock(&g->lock);
    learn_watts(g, seconds, joules);
    check_time(g, seconds);
    if (isfinite(now->celsius) && !(now->celsius <= g->celsius_max)) g->celsius_max = now->celsius;
    keep_moment(g, now, decision, joules);
    pthread_mutex_unlock(&g->lock);
}

/* ---- opening ---- */

static int read_cost(attune_store *store, const struct settings *s, int threads, int kind, struct store_cost *out,
                     attune_error *err) {
    char key[sizeof out->key];
    snprintf(key, sizeof key, "%s %d %s %.16s %s", kernels_get()->name, threads,
             s->train.precision == PRECISION_F32 ? "f32" : "auto", s->base_sha256, kind_names[kind]);
    int code = store_cost_get(store, key, out, err);
    if (code != ATTUNE_OK) *out = (struct store_cost){0};
    memcpy(out->key, key, sizeof key);
    return code;
}

static void read_costs(struct governed *g) {
    for (int k = 0; k < KINDS; k++)
        read_cost(g->job->store, &g->job->settings, pool_threads(g->job->pool), k, &g->cost[k], NULL);
}

int governed_cost(attune_store *store, const struct settings *settings, int threads, int training,
                  struct store_cost *out, attune_error *err) {
    int code = kernels_select(err);
    if (!threads) threads = settings->policy.threads;
    return code == ATTUNE_OK ? read_cost(store, settings, threads ? threads : pool_cpu_count(), training, out, err)
                             : code;
}

static struct joules joules_of(const struct store_spent *spent) {
    return (struct joules){spent->joules_measured, spent->joules_battery, spent->joules_modelled};
}

int governed_spent(attune_store *store, const struct window *window, struct spent *out, attune_error *err) {
    struct store_spent night, week;
    int64_t now = home_now_ms();
    int code = store_spent_since(store, window_night(window, now), &night, err);
    if (code == ATTUNE_OK) code = store_spent_since(store, now - (int64_t)WEEK_MS, &week, err);
    if (code != ATTUNE_OK) return code;
    *out = (struct spent){.seconds_night = night.seconds, .seconds_week = week.seconds, .night = joules_of(&night),
                          .week = joules_of(&week), .written_night = (uint64_t)night.written};
    return ATTUNE_OK;
}

/* The budget of time is the job's own, as it begins before there is a governor, and its end is predicted. */
static void take_policy(struct governed *g) {
    const attune_job_options *o = &g->job->options;
    g->policy = g->job->settings.policy;
    g->policy.now = o->now;
    g->seconds = o->time_s > 0 ? o->time_s : g->policy.seconds_run;
    g->policy.seconds_run = 0;
    if (o->energy_j > 0) g->policy.joules_run = o->energy_j;
    if (!(g->policy.duty > 0)) g->policy.duty = 1;
    /* A throttle takes half of them: it has to know how many there are. */
    if (!g->policy.threads) g->policy.threads = pool_threads(g->job->pool);
    if (!(g->policy.modelled_guard >= 1)) g->policy.modelled_guard = 1;
}

int governed_open(attune_job *job, attune_error *err) {
    const attune_job_options *o = &job->options;
    struct governor_options options = {
        .sensors = {.sys_root = o->sys_root, .proc_root = o->proc_root, .device = o->device,
                    .device_user = o->device_user, .logind = job->settings.policy.idle_required && !o->now},
        .watts_per_cpu = job->settings.watts_per_cpu,
        .event_fd = o->event_fd > 0 ? o->event_fd : o->event_fd < 0 ? -2 : -1, .thread = 1, .act = act,
        .sample = sample};
    struct governed *g = calloc(1, sizeof *g);
    if (!g) return error_set_memory(err, "a governor", sizeof *g);
    pthread_mutex_init(&g->lock, NULL);
    g->job = job;
    g->celsius_max = g->loss = g->retry_s = NAN;
    g->told = ATTUNE_CONTINUE;
    g->checkpoint_seconds = CHECKPOINT_FIRST;
    g->written_from = g->written_told = file_bytes_written();
    take_policy(g);
    read_costs(g);
    options.policy = g->policy;
    options.user = g;
    pool_watch_gaps(job->pool, 1);
    if (o->background) pool_background(job->pool, 1);
    int code = governed_spent(job->store, &g->policy.window, &options.spent, err);
    if (code == ATTUNE_OK) code = governor_open(&options, &g->governor, err);
    if (code != ATTUNE_OK) {
        pthread_mutex_destroy(&g->lock);
        free(g);
        return code;
    }
    job->governed = g;
    return ATTUNE_OK;
}

/* ---- the night's row ---- */

void governed_adopt_night(attune_job *job, struct store_night *night) {
    job->governed->night = night;
    job->governed->before = *night;
}

void governed_charge_killed(struct store_night *night, void *user) {
    const struct governed_killed *killed = user;
    struct ledger ledger;
    double gap = 1e-3 * (double)(home_now_ms() - night->started_ms) - night->seconds;
    gap = fmin(fmax(gap, 0), UPDATE_SECONDS);
    ledger_begin(&ledger, killed->watts_per_cpu);
    ledger_charge_gap(&ledger, gap * killed->threads);
    night->seconds += gap;
    night->cpu_s += ledger.cpu_s;
    night->modelled_cpu_s += ledger.modelled_cpu_s;
    night->joules_modelled += ledger.joules.modelled;
    night->marked += ledger.marked;
}

/* What was spent by now. A counter is read once a second at most: what came since is modelled. */
static struct ledger ledger_of(const struct governed *g) {
    struct ledger ledger;
    governor_state(g->governor, NULL, NULL, &ledger);
    double gap = ledger.began ? ledger.last.cpu - ledger.open_cpu : 0;
    if (gap > 0) ledger_charge_gap(&ledger, gap);
    return ledger;
}

static void add_ledger(struct store_night *night, const struct ledger *ledger) {
    night->cpu_s += ledger->cpu_s;
    night->modelled_cpu_s += ledger->modelled_cpu_s;
    night->joules_measured += ledger->joules.measured;
    night->joules_battery += ledger->joules.battery;
    night->joules_modelled += ledger->joules.modelled;
    night->marked += ledger->marked;
}

/* How the row stands: what was there before this job, and what this job has done. */
static void fill_night(struct governed *g) {
    const attune_job *job = g->job;
    struct store_night *night = g->night, sum = g->before;
    attune_job_report report;
    ATTUNE_INIT(report);
    if (attune_job_report_get(job, &report, NULL) != ATTUNE_OK) return;
    struct ledger ledger = ledger_of(g);
    add_ledger(&sum, &ledger);
    pthread_mutex_lock(&g->lock);
    sum.work_seconds += worked_by(g, job_now());
    if (isfinite(g->celsius_max) && !(g->celsius_max <= sum.celsius_max)) sum.celsius_max = g->celsius_max;
    pthread_mutex_unlock(&g->lock);
    if (job->planned) sum.run = job->plan.row.number;
    sum.runs += job->planned;
    sum.tokens += job->tokens;
    sum.steps += (int64_t)job->measured[1].pieces;
    sum.seconds += report.seconds;
    sum.written += (int64_t)report.written_bytes;
    sum.pauses += g->pauses;
    sum.governor_cpu_s += report.governor_cpu_s;
    sum.gap_ms = fmax(sum.gap_ms, report.gap_ms);
    if (report.finished) {
        sum.loss_before = report.loss_before;
        sum.loss_after = report.loss_after;
    }
    if (report.published) sum.adapter = report.adapter;
    sum.number = night->number;
    sum.night_ms = night->night_ms;
    sum.started_ms = night->started_ms;
    sum.ended_ms = night->ended_ms;
    memcpy(sum.kind, night->kind, sizeof sum.kind);
    memcpy(sum.state, night->state, sizeof sum.state);
    memcpy(sum.reason, night->reason, sizeof sum.reason);
    *night = sum;
}

/* The state of a row that is this job's own. */
static void set_state(struct governed *g, int code, int waits, const char *reason) {
    struct store_night *own = &g->own;
    if (g->night != own) return;
    int runs = code == ATTUNE_CONTINUE;
    snprintf(own->state, sizeof own->state, "%s",
             runs                    ? "running"
             : waits                 ? "waiting"
             : code == ATTUNE_DONE   ? "done"
             : code == ATTUNE_PAUSED ? "paused"
                                     : "failed");
    snprintf(own->reason, sizeof own->reason, "%s", runs ? "" : reason);
    own->ended_ms = runs ? 0 : home_now_ms();
}

static int update_night(struct governed *g, attune_error *err) {
    struct store_moment moments[MOMENTS_MAX];
    if (!g->night || !g->night->number) return ATTUNE_OK;
    fill_night(g);
    pthread_mutex_lock(&g->lock);
    int n = g->n_moments;
    memcpy(moments, g->moments, (size_t)n * sizeof *moments);
    g->n_moments = 0;
    pthread_mutex_unlock(&g->lock);
    for (int i = 0; i < n; i++)
        moments[i].joules += g->before.joules_measured + g->before.joules_battery + g->before.joules_modelled;
    g->updated = job_now();
    return store_night_update(g->job->store, g->night, moments, (size_t)n, err);
}

int governed_begin_night(attune_job *job, attune_error *err) {
    struct governed *g = job->governed;
    struct store_night *own = g->night ? g->night : &g->own;
    struct governed_killed killed = {job->settings.watts_per_cpu, pool_threads(job->pool)};
    int64_t now = home_now_ms();
    if (own->number) return ATTUNE_OK;
    if (own != &g->own) return store_night_begin(job->store, own, governed_charge_killed, &killed, err);
    *own = (struct store_night){.started_ms = now, .night_ms = window_night(&g->policy.window, now),
                                .loss_before = NAN, .loss_after = NAN, .celsius_max = NAN};
    snprintf(own->kind, sizeof own->kind, "train");
    snprintf(own->state, sizeof own->state, "running");
    own->started_ms -= (int64_t)(1e3 * (job_now() - job->opened)); /* loading counts */
    int code = store_night_begin(job->store, own, governed_charge_killed, &killed, err);
    if (code != ATTUNE_OK) return code;
    g->before = *own;
    g->night = own;
    g->updated = job_now();
    return ATTUNE_OK;
}

/* ---- what work costs ---- */

double governed_pace(const attune_job *job, int training) {
    double seconds = job->governed->cost[training].seconds_per_unit;
    return seconds > 0 ? 1 / seconds : 0;
}

int governed_pace_trusted(const attune_job *job) {
    for (int k = 0; k < KINDS; k++) {
        const struct store_cost *cost = &job->governed->cost[k];
        if (!(cost->seconds_per_unit > 0) || !(cost->weight >= TRUSTED_WEIGHT) ||
            !(cost->seconds_spread <= TRUSTED_SPREAD))
            return 0;
    }
    return 1;
}

/* While this device works: as it was measured in this call, or in earlier ones, or as the model has it. */
static double watts(struct governed *g) {
    pthread_mutex_lock(&g->lock);
    double seconds = g->busy_seconds, joules = g->busy_joules;
    pthread_mutex_unlock(&g->lock);
    if (seconds >= WATTS_SECONDS && joules > 0) return joules / seconds;
    if (g->cost[1].watts > 0) return g->cost[1].watts;
    return g->job->settings.watts_per_cpu * pool_threads(g->job->pool) * g->policy.duty;
}

/* What was slowed down says nothing about the next run. */
static void learn_costs(struct governed *g) {
    double w = watts(g);
    if (g->throttled) return;
    for (int k = 0; k < KINDS; k++) {
        const struct measured *m = &g->job->measured[k];
        struct store_cost *row = &g->cost[k];
        struct cost cost = {row->seconds_per_unit, row->watts, row->seconds_spread, row->watts_spread, row->weight};
        if (!(m->seconds > 0) || !(m->work > 0)) continue;
        cost_observe(&cost, m->work, m->seconds, w * m->seconds);
        row->seconds_per_unit = cost.seconds_per_unit;
        row->watts = cost.watts;
        row->seconds_spread = cost.seconds_spread;
        row->watts_spread = cost.watts_spread;
        row->weight = cost.weight;
        row->updated_ms = home_now_ms();
        store_cost_put(g->job->store, row, NULL); /* a prediction the less, if not */
    }
}

void governed_close(attune_job *job) {
    struct governed *g = job->governed;
    if (!g) return;
    if (g->night && g->night->number) {
        if (strcmp(g->own.state, "running") == 0) set_state(g, ATTUNE_PAUSED, 0, "closed before it ended");
        governor_look(g->governor);
        update_night(g, NULL);
    }
    governor_close(g->governor);
    learn_costs(g);
    pthread_mutex_destroy(&g->lock);
    job->governed = NULL;
    free(g);
}

/* ---- what is left ---- */

/* Joules of a budget that are left, with what was used since the last look. */
static double joules_left(const struct governed *g, double budget, const struct joules *spent, double since) {
    return budget > 0 ? budget - joules_counted(spent, g->policy.modelled_guard) - since : INFINITY;
}

struct left {
    double seconds;
    const char *what; /* the budget that leaves the least */
};
static void limit(struct left *left, double seconds, const char *what) {
    if (seconds < left->seconds) *left = (struct left){seconds, what};
}

static struct left left_of(const attune_job *job) {
    struct governed *g = job->governed;
    struct snapshot now;
    struct spent spent;
    struct ledger ledger;
    struct left left = {INFINITY, NULL};
    const struct policy *p = &g->policy;
    governor_state(g->governor, &now, &spent, &ledger);
    double age = fmax(job_now() - now.monotonic, 0), w = watts(g), sum = joules_sum(&spent.run);
    /* of what is modelled more is counted than is thought to be used */
    double counted = sum > 0 ? joules_counted(&spent.run, p->modelled_guard) / sum : p->modelled_guard;
    double rate = fmax(w * counted, 1e-9);
    double since = rate * (ledger.began ? fmax(job_now() - ledger.open_monotonic, age) : age);
    /* CPU time since then knows better when others have just left the machine to this process */
    double cpu = clock_system.cpu(NULL) - (ledger.began ? ledger.open_cpu : now.cpu);
    since = fmax(since, ledger.watts_per_cpu * cpu * counted);
    if (g->seconds > 0) limit(&left, g->seconds - (job_now() - job->opened), "the time budget");
    if (p->seconds_night > 0) limit(&left, p->seconds_night - spent.seconds_night - age, "the night's time budget");
    if (p->seconds_week > 0) limit(&left, p->seconds_week - spent.seconds_week - age, "the week's time budget");
    limit(&left, joules_left(g, p->joules_run, &spent.run, since) / rate, "the energy budget");
    limit(&left, joules_left(g, p->joules_night, &spent.night, since) / rate, "the night's energy budget");
    limit(&left, joules_left(g, p->joules_week, &spent.week, since) / rate, "the week's energy budget");
    if (!p->now) limit(&left, window_left(&p->window, home_now_ms()), "the night");
    return left;
}

double governed_seconds_left(const attune_job *job) { return left_of(job).seconds; }
int governed_limited(const attune_job *job) { return isfinite(governed_seconds_left(job)); }

const char *governed_budget_reason(attune_job *job, double seconds, int first) {
    struct governed *g = job->governed;
    struct left left = left_of(job);
    double needed = seconds * GUARD + g->checkpoint_seconds;
    if (needed <= left.seconds) return NULL;
    g->retry_s = NAN;
    if (!first)
        snprintf(g->why, sizeof g->why, "%s is used up", left.what);
    else
        snprintf(g->why, sizeof g->why, "%s is too short: the next step takes about %.0f s", left.what, ceil(needed));
    return g->why;
}

const char *governed_start_reason(attune_job *job) {
    struct governed *g = job->governed;
    struct left left = left_of(job);
    /* one micro-batch: the least that a step has where rows are many */
    double seconds = g->cost[1].seconds_per_unit * (double)job->settings.train.micro_tokens;
    if (!(seconds > 0) || left.seconds >= PLANNING_SECONDS + seconds * GUARD + g->checkpoint_seconds) return NULL;
    g->retry_s = NAN;
    snprintf(g->why, sizeof g->why, "%s leaves %.1f s: too little to plan and to take a step of about %.1f s",
             left.what, fmax(left.seconds, 0), seconds);
    return g->why;
}

double governed_checkpoint_seconds(const attune_job *job) { return job->governed->checkpoint_seconds; }

void governed_checkpointed(attune_job *job, double seconds) {
    struct governed *g = job->governed;
    pthread_mutex_lock(&g->lock);
    /* half as long again: another one may meet a busier disk */
    g->checkpoint_seconds = fmax(0.1, fmax(1.5 * seconds, 0.7 * g->checkpoint_seconds));
    pthread_mutex_unlock(&g->lock);
}

int governed_may_write(const attune_job *job, int checkpoints) {
    const struct governed *g = job->governed;
    struct spent spent;
    if (g->policy.written_night == 0 || !job->trainer) return 1;
    governor_state(g->governor, NULL, &spent, NULL);
    uint64_t each = job->trainer->lora->n * 3 * sizeof(float) + (uint64_t)job->plan.n_judge * 50 + 8192;
    uint64_t told = spent.written_night + (file_bytes_written() - g->written_told);
    return told + (uint64_t)checkpoints * each <= g->policy.written_night;
}

/* ---- may it go on ---- */

void governed_decision(const attune_job *job, struct decision *out) {
    governor_decision(job->governed->governor, out);
}

const char *governed_reason(attune_job *job) {
    struct governed *g = job->governed;
    struct decision decision;
    governor_decision(g->governor, &decision);
    g->retry_s = decision.wait_s;
    return decision.verdict == VERDICT_PAUSE || decision.verdict == VERDICT_STOP ? reason_text(decision.reason) : NULL;
}

int governed_stopped(const attune_job *job) {
    return atomic_load(&job->cancelled) || atomic_load(&job->governed->cancelling);
}

const char *governed_cancel_reason(attune_job *job) {
    struct governed *g = job->governed;
    if (atomic_load(&job->cancelled)) return "stopped on request";
    if (atomic_exchange(&g->late, 0)) {
        g->retry_s = NAN;
        return "the time budget is used up";
    }
    const char *now = governed_reason(job);
    pthread_mutex_lock(&g->lock);
    enum reason reason = g->reason;
    pthread_mutex_unlock(&g->lock);
    if (!now) g->retry_s = 0; /* it may go on already */
    return now ? now : reason_text(reason);
}

/* ---- around a piece of work ---- */

void governed_work_begin(attune_job *job, double seconds) {
    struct governed *g = job->governed;
    pthread_mutex_lock(&g->lock);
    g->work_began = job_now();
    g->work_ends = seconds > 0 ? g->work_began + seconds * GUARD : 0;
    pthread_mutex_unlock(&g->lock);
}

void governed_work_end(attune_job *job) {
    struct governed *g = job->governed;
    pthread_mutex_lock(&g->lock);
    g->worked = worked_by(g, job_now());
    g->work_began = 0;
    pthread_mutex_unlock(&g->lock);
}

static void tell(struct governed *g) {
    uint64_t written = file_bytes_written();
    if (written != g->written_told) governor_wrote(g->governor, written - g->written_told);
    g->written_told = written;
    pthread_mutex_lock(&g->lock);
    g->loss = g->job->loss;
    g->steps = (int64_t)g->job->measured[1].pieces;
    pthread_mutex_unlock(&g->lock);
}

/* Before a pause is told, and after the end, a look makes the row whole. */
int governed_note(attune_job *job, int code, const char *failure, attune_error *err) {
    struct governed *g = job->governed;
    attune_job_report report;
    int again = code == g->told, before = g->told;
    tell(g);
    if (!g->night || !g->night->number) return ATTUNE_OK;
    g->told = code;
    if (again && job_now() - g->updated < UPDATE_SECONDS) return ATTUNE_OK;
    if (code != ATTUNE_CONTINUE) governor_look(g->governor);
    ATTUNE_INIT(report);
    attune_job_report_get(job, &report, NULL);
    int waits = strcmp(report.state, "waiting") == 0;
    g->pauses += code == ATTUNE_PAUSED && before != ATTUNE_PAUSED && !waits;
    set_state(g, code, waits, failure ? failure : report.reason);
    return update_night(g, err);
}

void governed_look(attune_job *job) { governor_look(job->governed->governor); }

void governed_report(const attune_job *job, attune_job_report *report) {
    struct governed *g = job->governed;
    struct ledger ledger = ledger_of(g);
    struct governor_cost cost;
    governor_cost_get(g->governor, &cost);
    report->joules_measured = ledger.joules.measured;
    report->joules_battery = ledger.joules.battery;
    report->joules_modelled = ledger.joules.modelled;
    report->written_bytes = file_bytes_written() - g->written_from;
    report->governor_cpu_s = cost.cpu_s;
    report->gap_ms = pool_gap_ms(job->pool);
    report->retry_s = g->retry_s;
    pthread_mutex_lock(&g->lock);
    report->throttled = g->throttled;
    pthread_mutex_unlock(&g->lock);
}
