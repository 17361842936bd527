/* attune_bench_governor: how soon a training run is gone when the charger is pulled, and how well it keeps a budget.
 *
 * A child really trains; its power supply is a made-up folder. The parent pulls the plug at random moments and judges
 * from outside, by the CPU time of the child's threads in /proc, when computing ended. */
#define _GNU_SOURCE
#include "bench/limits.h"
#include "core/base/options.h"
#include "core/base/random.h"
#include "job/governed.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ROWS_MADE = 64, TASKS_MAX = 80, TRIALS_MAX = 10000, CHECKS = 2000, SAMPLES_MAX = 8192 };
/* What a kernel still books for a thread that only wakes, looks and sleeps: less than that is not computing. */
static const double IDLE_MS = 0.5, WINDOW_MS = 5;
static const double SAMPLE_SECONDS = 5e-4, AFTER_SECONDS = 0.25, GIVE_UP_SECONDS = 60;
static const double BUDGET_LOW = 5, BUDGET_HIGH = 60;

/* What the child tells, in memory that both share. */
struct told {
    atomic_int ready;     /* takes steps of the optimizer */
    atomic_long units;    /* steps that came back with something done */
    atomic_int paused;    /* how often it has paused, with all that is kept in place */
    atomic_int leave;     /* the parent wants it to end */
    double paused_at;     /* bench_now(): the clock is the machine's */
    int failed;
    double check_us, cpu_s, wall_s, load_s, judge_s, train_s;
    attune_job_report report;
    attune_error err;
};

struct bench_governor {
    attune_bench_governor_options o;
    attune_bench_governor_result r;
    const char *base;
    char folder[1024], home[1060], sys[1060], checkpoint[1100];
    int online, status;   /* files of the made-up supply */
    int event[2], go[2];
    struct told *told;
    pid_t child;
    uint64_t draws;
};

static double draw(struct bench_governor *b) { return random_uniform(b->o.seed, b->draws++); }

static void sleep_for(double seconds) {
    if (!(seconds > 0)) return;
    struct timespec t = {.tv_sec = (time_t)seconds, .tv_nsec = (long)((seconds - floor(seconds)) * 1e9)};
    nanosleep(&t, NULL);
}

/* ---- a home, and a power supply ---- */

static int put(const struct bench_governor *b, const char *path, const char *text, attune_error *err) {
    char full[1200];
    snprintf(full, sizeof full, "%s/%s", b->folder, path);
    int fd = open(full, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    size_t n = strlen(text);
    int code = fd >= 0 && write(fd, text, n) == (ssize_t)n ? ATTUNE_OK : error_set_errno(err, full, "cannot write");
    if (fd >= 0) close(fd);
    return code;
}

/* A laptop on its charger. */
static int make_supply(struct bench_governor *b, attune_error *err) {
    static const char *const folders[] = {"sys", "sys/class", "sys/class/power_supply", "sys/class/power_supply/AC",
                                          "sys/class/power_supply/BAT0"};
    char path[1200];
    for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", b->folder, folders[i]);
        if (mkdir(path, 0700) != 0) return error_set_errno(err, path, "cannot make a folder");
    }
    int code = put(b, "sys/class/power_supply/AC/type", "Mains\n", err);
    if (code == ATTUNE_OK) code = put(b, "sys/class/power_supply/AC/online", "1\n", err);
    if (code == ATTUNE_OK) code = put(b, "sys/class/power_supply/BAT0/type", "Battery\n", err);
    if (code == ATTUNE_OK) code = put(b, "sys/class/power_supply/BAT0/status", "Charging   \n", err);
    if (code == ATTUNE_OK) code = put(b, "sys/class/power_supply/BAT0/capacity", "80\n", err);
    if (code != ATTUNE_OK) return code;
    snprintf(b->sys, sizeof b->sys, "%s/sys", b->folder);
    snprintf(path, sizeof path, "%s/class/power_supply/AC/online", b->sys);
    b->online = open(path, O_WRONLY | O_CLOEXEC);
    snprintf(path, sizeof path, "%s/class/power_supply/BAT0/status", b->sys);
    b->status = open(path, O_WRONLY | O_CLOEXEC);
    return b->online >= 0 && b->status >= 0 ? ATTUNE_OK : error_set_errno(err, path, "cannot open");
}

/* One byte, as the kernel's attribute would change at once; the status has one length in both states. */
static void plug(const struct bench_governor *b, int in, int tell) {
    static const char *const status[] = {"Discharging\n", "Charging   \n"};
    if (pwrite(b->online, in ? "1" : "0", 1, 0) != 1 ||
        pwrite(b->status, status[in], strlen(status[in]), 0) != (ssize_t)strlen(status[in]) ||
        (tell && write(b->event[1], "e", 1) != 1))
        return; /* the trial fails by itself: nothing pauses */
}

/* Words that differ from row to row: as many as a short conversation has. */
static void make_text(char *out, size_t words, uint64_t row, uint64_t part) {
    static const char *const list[] = {"river", "the", "meeting", "answer", "please", "garden", "letter", "quiet",
                                       "number", "of", "window", "and", "slow", "travel", "thanks", "morning"};
    size_t at = 0;
    for (size_t i = 0; i < words; i++)
        at += (size_t)sprintf(out + at, "%s%s", i ? " " : "", list[random_u64(row * 2 + part, i) % 16]);
}

static int make_rows(const struct bench_governor *b, attune_store *store, attune_error *err) {
    char prompt[512], response[1024];
    int code = ATTUNE_OK;
    for (uint64_t row = 0; row < ROWS_MADE && code == ATTUNE_OK; row++) {
        attune_interaction in;
        attune_uuid id;
        ATTUNE_INIT(in);
        make_text(prompt, 30, row + b->o.seed, 0);
        make_text(response, 90, row + b->o.seed, 1);
        in.prompt = prompt;
        in.response = response;
        in.consent = ATTUNE_CONSENT_GIVEN;
        code = attune_store_record(store, &in, &id, err);
    }
    return code == ATTUNE_OK ? attune_store_flush(store, err) : code;
}

/* The charger alone decides. The run is longer than any trial. */
static int set_policy(const struct bench_governor *b, attune_error *err) {
    struct settings s;
    int code = settings_read(b->home, &s, err);
    if (code != ATTUNE_OK) return code;
    s.policy = (struct policy){.charger_required = 1, .without_sensors = 1, .duty = 1, .modelled_guard = 1.15};
    s.epochs = 100;
    s.merge = MERGE_NONE;
    return settings_write(b->home, &s, err);
}

static int make_home(struct bench_governor *b, attune_error *err) {
    attune_store *store = NULL;
    const char *folder = b->o.folder ? b->o.folder : getenv("TMPDIR");
    if (!folder || !folder[0]) folder = "/tmp";
    int n = snprintf(b->folder, sizeof b->folder, "%s/attune-bench-XXXXXX", folder);
    if (n < 0 || (size_t)n >= sizeof b->folder)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the folder's path is too long");
    if (!mkdtemp(b->folder)) {
        b->folder[0] = 0;
        return error_set_errno(err, folder, "cannot make a folder there");
    }
    snprintf(b->home, sizeof b->home, "%s/home", b->folder);
    snprintf(b->checkpoint, sizeof b->checkpoint, "%s/checkpoint.gguf", b->home);
    attune_home_options options;
    ATTUNE_INIT(options);
    options.consent = 1;
    int code = attune_home_init(b->home, b->base, &options, err);
    if (code == ATTUNE_OK) code = set_policy(b, err);
    if (code == ATTUNE_OK) code = attune_store_open(b->home, NULL, &store, err);
    if (code == ATTUNE_OK)
        code = b->o.rows ? attune_store_import(store, b->o.rows, NULL, NULL, err) : make_rows(b, store, err);
    attune_store_close(store);
    return code == ATTUNE_OK ? make_supply(b, err) : code;
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at) {
    (void)st, (void)kind, (void)at;
    return remove(path);
}

/* ---- the child ---- */

static void note_phase(const attune_progress *p, void *user) {
    struct told *told = user;
    if (p->step > 0 || strncmp(p->phase, "fold", 4) == 0) atomic_store(&told->ready, 1);
}

/* What the job asks before each unit, in microseconds. */
static double time_checks(attune_job *job) {
    double from = bench_now();
    for (int i = 0; i < CHECKS; i++) {
        governed_reason(job);
        governed_may_write(job, 1);
        governed_budget_reason(job, 0, 0);
        governed_work_begin(job, 0);
        governed_work_end(job);
    }
    return 1e6 * (bench_now() - from) / CHECKS;
}

static attune_job_options job_options(const struct bench_governor *b, int events) {
    attune_job_options o;
    ATTUNE_INIT(o);
    o.threads = b->o.threads;
    o.sys_root = b->sys;
    o.proc_root = b->sys; /* nobody else's pressure */
    o.event_fd = events ? b->event[0] : -1;
    o.on_progress = note_phase;
    o.user = b->told;
    return o;
}

/* Trains; when it is paused it says so, and waits for the parent's word. */
static int train_and_pause(const struct bench_governor *b, int events, attune_error *err) {
    struct told *told = b->told;
    attune_job *job = NULL;
    attune_job_options o = job_options(b, events);
    struct rusage usage;
    char byte;
    int code = attune_job_open(b->home, &o, &job, err);
    while (code >= 0 && !atomic_load(&told->leave)) {
        code = attune_job_step(job, err);
        if (code == ATTUNE_CONTINUE) atomic_fetch_add(&told->units, 1);
        if (code == ATTUNE_DONE) code = error_set(err, ATTUNE_ERROR_STATE, NULL, "the run ended before the trials");
        if (code != ATTUNE_PAUSED) continue;
        told->paused_at = bench_now();
        atomic_fetch_add(&told->paused, 1);
        if (read(b->go[0], &byte, 1) != 1) break;
        for (double from = bench_now(); code == ATTUNE_PAUSED && bench_now() - from < GIVE_UP_SECONDS;) {
            code = attune_job_step(job, err);
            if (code == ATTUNE_PAUSED) sleep_for(0.01);
        }
        if (code == ATTUNE_PAUSED) code = error_set(err, ATTUNE_ERROR_STATE, NULL, "the run did not go on");
    }
    ATTUNE_INIT(told->report);
    if (code >= 0) code = attune_job_report_get(job, &told->report, err);
    if (code >= 0) told->check_us = time_checks(job);
    getrusage(RUSAGE_SELF, &usage);
    told->cpu_s = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                  1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
    attune_job_close(job);
    return code < 0 ? code : ATTUNE_OK;
}

static int begin_child(struct bench_governor *b, int events, attune_error *err) {
    struct told *told = b->told;
    memset(told, 0, sizeof *told);
    if (pipe2(b->event, O_CLOEXEC | O_NONBLOCK) != 0 || pipe2(b->go, O_CLOEXEC) != 0)
        return error_set_errno(err, NULL, "cannot make a pipe");
    b->child = fork();
    if (b->child < 0) return error_set_errno(err, NULL, "cannot fork");
    if (b->child > 0) return ATTUNE_OK;
    close(b->go[1]);
    told->failed = train_and_pause(b, events, &told->err);
    _exit(0);
}

static int end_child(struct bench_governor *b, attune_error *err) {
    int status, code = ATTUNE_OK;
    if (b->child <= 0) return ATTUNE_OK;
    atomic_store(&b->told->leave, 1);
    plug(b, 1, 1);
    close(b->go[1]);
    while (waitpid(b->child, &status, 0) < 0 && errno == EINTR) {
    }
    b->child = 0;
    close(b->go[0]);
    close(b->event[0]);
    close(b->event[1]);
    if (b->told->failed) {
        code = b->told->failed;
        if (err) *err = b->told->err;
    } else if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        code = error_set(err, ATTUNE_ERROR_STATE, NULL, "the child that trained has died");
    }
    return code;
}

/* ---- CPU time, from outside ---- */

struct tasks {
    int fd[TASKS_MAX];
    int n;
};

static void tasks_close(struct tasks *tasks) {
    for (int i = 0; i < tasks->n; i++) close(tasks->fd[i]);
    tasks->n = 0;
}

static int tasks_open(const struct bench_governor *b, struct tasks *tasks, attune_error *err) {
    char path[320];
    snprintf(path, sizeof path, "/proc/%d/task", (int)b->child);
    DIR *dir = opendir(path);
    tasks->n = 0;
    if (!dir) return error_set_errno(err, path, "cannot see the child's threads");
    for (struct dirent *e; (e = readdir(dir)) && tasks->n < TASKS_MAX;) {
        if (e->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "/proc/%d/task/%s/schedstat", (int)b->child, e->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0) tasks->fd[tasks->n++] = fd;
    }
    closedir(dir);
    return tasks->n ? ATTUNE_OK : error_set(err, ATTUNE_ERROR_UNSUPPORTED, path, "this kernel keeps no schedstat");
}

/* Milliseconds of all threads that are there. */
static double tasks_cpu_ms(const struct tasks *tasks) {
    double sum = 0;
    for (int i = 0; i < tasks->n; i++) {
        char text[96];
        ssize_t n = pread(tasks->fd[i], text, sizeof text - 1, 0);
        if (n <= 0) continue;
        text[n] = 0;
        sum += 1e-6 * (double)strtoull(text, NULL, 10);
    }
    return sum;
}

/* ---- trials ---- */

struct trial {
    double compute, durable; /* milliseconds after the plug was pulled */
    double cpu;              /* that the child has still used */
};
struct sampled {
    float at, cpu; /* milliseconds */
};

/* The last window of some milliseconds in which more than a waking thread's CPU time went by ends there. */
static double last_compute(const struct sampled *s, int n) {
    for (int i = n - 1, j = n - 1; i > 0; i--) {
        while (j > 0 && s[i].at - s[j].at < WINDOW_MS) j--;
        if (s[i].cpu - s[j].cpu > IDLE_MS) {
            /* the latest sample of it that shows a rise */
            while (i > j && s[i].cpu - s[i - 1].cpu <= 0) i--;
            return s[i].at;
        }
    }
    return 0;
}

static int wait_for(const struct bench_governor *b, int (*seen)(const struct told *, long), long what,
                    attune_error *err) {
    for (double from = bench_now(); !seen(b->told, what); sleep_for(1e-3)) {
        int status;
        if (b->told->failed || bench_now() - from > 2 * GIVE_UP_SECONDS ||
            waitpid(b->child, &status, WNOHANG | WNOWAIT) == b->child)
            return error_set(err, ATTUNE_ERROR_STATE, NULL, "the child that trains does not get on: %.200s",
                             b->told->err.message);
    }
    return ATTUNE_OK;
}
static int is_ready(const struct told *told, long what) { return atomic_load(&told->ready) >= what; }
static int has_units(const struct told *told, long what) { return atomic_load(&told->units) >= what; }

static int watch(struct bench_governor *b, const struct tasks *tasks, int events, struct trial *out, attune_error *err) {
    static struct sampled samples[SAMPLES_MAX];
    int before = atomic_load(&b->told->paused), n = 0;
    double from = bench_now(), cpu = tasks_cpu_ms(tasks), now = from;
    plug(b, 0, events);
    while (n < SAMPLES_MAX && now - from < GIVE_UP_SECONDS) {
        sleep_for(SAMPLE_SECONDS);
        now = bench_now();
        samples[n++] = (struct sampled){(float)(1e3 * (now - from)), (float)(tasks_cpu_ms(tasks) - cpu)};
        if (atomic_load(&b->told->paused) > before && now - b->told->paused_at > AFTER_SECONDS) break;
    }
    if (atomic_load(&b->told->paused) == before)
        return error_set(err, ATTUNE_ERROR_STATE, NULL, "the run went on for %.1f s without a charger", now - from);
    *out = (struct trial){last_compute(samples, n), 1e3 * (b->told->paused_at - from), samples[n - 1].cpu};
    return ATTUNE_OK;
}

static int one_trial(struct bench_governor *b, int events, struct trial *out, attune_error *err) {
    struct tasks tasks;
    sleep_for(0.05 + 1.5 * draw(b));
    int code = tasks_open(b, &tasks, err);
    if (code != ATTUNE_OK) return code;
    code = watch(b, &tasks, events, out, err);
    tasks_close(&tasks);
    if (code != ATTUNE_OK) return code;
    plug(b, 1, 1); /* a run that polls is told nothing: it has no events */
    long units = atomic_load(&b->told->units);
    if (write(b->go[1], "g", 1) != 1) return error_set_errno(err, NULL, "cannot tell the child to go on");
    return wait_for(b, has_units, units + 1, err);
}

static int compare_double(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static attune_milliseconds spread_of(const struct trial *trials, size_t offset, int n) {
    static double sorted[TRIALS_MAX];
    attune_milliseconds out = {0};
    for (int i = 0; i < n; i++) memcpy(&sorted[i], (const char *)&trials[i] + offset, sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, compare_double);
    if (n == 0) return out;
    out.p50 = sorted[n / 2];
    out.p99 = sorted[(int)ceil(0.99 * n) - 1];
    out.max = sorted[n - 1];
    return out;
}

static int unplug(struct bench_governor *b, int events, int n, attune_unplug_figures *out, attune_error *err) {
    static struct trial trials[TRIALS_MAX];
    int code = begin_child(b, events, err);
    if (code == ATTUNE_OK) code = wait_for(b, is_ready, 1, err);
    for (int i = 0; i < n && code == ATTUNE_OK; i++) code = one_trial(b, events, &trials[i], err);
    if (code != ATTUNE_OK && b->child > 0) kill(b->child, SIGKILL);
    int ended = end_child(b, code == ATTUNE_OK ? err : NULL);
    if (code == ATTUNE_OK) code = ended;
    if (code != ATTUNE_OK) return code;
    const struct told *told = b->told;
    out->trials = n;
    out->compute = spread_of(trials, offsetof(struct trial, compute), n);
    out->durable = spread_of(trials, offsetof(struct trial, durable), n);
    out->cpu = spread_of(trials, offsetof(struct trial, cpu), n);
    if (told->report.gap_ms > b->r.gap_ms) b->r.gap_ms = told->report.gap_ms;
    if (told->cpu_s > 0 && events) {
        double checks = 1e-6 * told->check_us * (double)atomic_load(&told->units);
        b->r.check_us = told->check_us;
        b->r.governor_share = (told->report.governor_cpu_s + checks) / told->cpu_s;
    }
    return ATTUNE_OK;
}

/* ---- budgets ---- */

/* A call of its own, as from a command line: from opening to the end, all of it within the budget. */
static int run_budget(const struct bench_governor *b, double seconds, struct told *told, attune_error *err) {
    attune_job *job = NULL;
    attune_job_options o = job_options(b, 0);
    double from = bench_now(), begun = 0;
    o.time_s = seconds;
    int code = attune_job_open(b->home, &o, &job, err), done;
    do {
        int ready = atomic_load(&told->ready);
        double at = bench_now();
        done = code >= 0 ? attune_job_step(job, err) : code;
        if (!begun) {
            begun = bench_now();
            told->load_s = begun - from;
        } else if (!ready && done == ATTUNE_CONTINUE) {
            told->judge_s += bench_now() - at;
        }
    } while (done == ATTUNE_CONTINUE);
    ATTUNE_INIT(told->report);
    if (done >= 0) code = attune_job_report_get(job, &told->report, err);
    if (told->report.tokens_per_s > 0) told->train_s = (double)told->report.tokens / told->report.tokens_per_s;
    attune_job_close(job);
    told->wall_s = bench_now() - from;
    return done < 0 ? done : code;
}

static int one_budget(struct bench_governor *b, double seconds, attune_error *err) {
    struct told *told = b->told;
    int status;
    memset(told, 0, sizeof *told);
    pid_t child = fork();
    if (child < 0) return error_set_errno(err, NULL, "cannot fork");
    if (child == 0) {
        told->failed = run_budget(b, seconds, told, &told->err);
        _exit(0);
    }
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    if (told->failed && err) *err = told->err;
    if (told->failed) return told->failed;
    if (!WIFEXITED(status)) return error_set(err, ATTUNE_ERROR_STATE, NULL, "the child that trained has died");
    double over = told->wall_s - seconds, left = seconds - told->load_s - told->judge_s;
    attune_bench_governor_result *r = &b->r;
    r->budgets++;
    r->over_max_s = r->budgets == 1 ? over : fmax(r->over_max_s, over);
    r->budgets_kept += over <= fmax(0.01 * seconds, 1);
    r->work_s += told->train_s;
    r->left_s += fmax(left, 0);
    if (left > 0) r->share_min = r->budgets == 1 ? told->train_s / left : fmin(r->share_min, told->train_s / left);
    return ATTUNE_OK;
}

static int budgets(struct bench_governor *b, attune_error *err) {
    int code = ATTUNE_OK;
    for (int i = 0; i < b->o.budgets && code == ATTUNE_OK; i++)
        code = one_budget(b, BUDGET_LOW + (BUDGET_HIGH - BUDGET_LOW) * draw(b), err);
    if (b->r.left_s > 0) b->r.share = b->r.work_s / b->r.left_s;
    return code;
}

/* ---- all of it ---- */

static int check(attune_bench_governor_options *o, attune_error *err) {
    if (o->trials == 0) o->trials = 20;
    if (o->polls == 0) o->polls = o->trials / 4 > 0 ? o->trials / 4 : 1;
    if (o->seed == 0) o->seed = 1;
    if (o->trials > 0 && o->trials <= TRIALS_MAX && o->polls <= TRIALS_MAX && o->budgets >= 0 && o->budgets <= 10000)
        return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "impossible options: 1 to %d trials, up to 10,000 budgets",
                     TRIALS_MAX);
}

int attune_bench_governor(const char *base, const attune_bench_governor_options *options,
                          attune_bench_governor_result *result, attune_error *err) {
    struct bench_governor b = {.base = base, .online = -1, .status = -1};
    int code = options_read(&b.o, sizeof b.o, options, "attune_bench_governor_options", err);
    if (code == ATTUNE_OK) code = check(&b.o, err);
    if (code == ATTUNE_OK) {
        void *memory = mmap(NULL, sizeof *b.told, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) code = error_set_memory(err, "what the child tells", sizeof *b.told);
        else b.told = memory;
    }
    if (code == ATTUNE_OK) code = make_home(&b, err);
    if (code == ATTUNE_OK) code = unplug(&b, 1, b.o.trials, &b.r.events, err);
    if (code == ATTUNE_OK && b.o.polls > 0) code = unplug(&b, 0, b.o.polls, &b.r.polling, err);
    if (code == ATTUNE_OK) code = budgets(&b, err);
    if (b.online >= 0) close(b.online);
    if (b.status >= 0) close(b.status);
    if (b.told) munmap(b.told, sizeof *b.told);
    if (b.folder[0]) nftw(b.folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    if (code != ATTUNE_OK) return code;
    b.r.size = sizeof b.r;
    return options_write(result, &b.r, sizeof b.r, "attune_bench_governor_result", err);
}
