/* What the tests of job/ share: homes around tests/golden/tiny_llama.gguf in a folder of the test's own, small runs. */
#ifndef TESTS_HOME_FIXTURE_H
#define TESTS_HOME_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/hash.h"
#include "datastore/store.h"

#define TINY_BASE ATTUNE_TEST_ROOT "/tests/golden/tiny_llama.gguf"
#define PERSONA ATTUNE_TEST_ROOT "/examples/personas/sailor.jsonl"

struct homes {
    char folder[64]; /* of this test alone */
    char home[96];   /* the one that most calls mean */
    attune_error err;
};

#define OK(call) GIVES(call, ATTUNE_OK)

#define GIVES(call, wanted)                                                                                            \
    do {                                                                                                               \
        memset(&f->err, 0, sizeof f->err);                                                                             \
        int code_ = (call);                                                                                            \
        if (code_ != (wanted)) fail_msg("%s gave %d: %s (%s)", #call, code_, f->err.message, f->err.where);            \
    } while (0)

/* The call fails with this code, and its message and place hold `word` and `place`. */
#define FAILS(call, wanted, word, place)                                                                               \
    do {                                                                                                               \
        GIVES(call, wanted);                                                                                           \
        assert_int_equal(f->err.code, (wanted));                                                                       \
        if (!strstr(f->err.message, word)) fail_msg("no '%s' in: %s", word, f->err.message);                           \
        if (!strstr(f->err.where, place)) fail_msg("no '%s' in: %s", place, f->err.where);                             \
    } while (0)

static inline void shell(const char *format, ...) {
    char command[1024];
    va_list args;
    va_start(args, format);
    assert_true(vsnprintf(command, sizeof command, format, args) < (int)sizeof command);
    va_end(args);
    if (system(command) != 0) fail_msg("failed: %s", command);
}

static inline int homes_setup(void **state) {
    struct homes *f = calloc(1, sizeof *f);
    if (!f) return -1;
    unsetenv("ATTUNE_FAULT");
    unsetenv("ATTUNE_FAULT_LIST");
    unsetenv("ATTUNE_HOME");
    strcpy(f->folder, "/tmp/attune-home-XXXXXX");
    if (!mkdtemp(f->folder)) return -1;
    snprintf(f->home, sizeof f->home, "%s/home", f->folder);
    *state = f;
    return 0;
}

static inline int homes_teardown(void **state) {
    struct homes *f = *state;
    unsetenv("ATTUNE_FAULT");
    shell("rm -rf %s", f->folder);
    free(f);
    return 0;
}

/* ---- files ---- */

/* A path in the folder; the last eight answers live. */
static inline const char *in_folder(const struct homes *f, const char *name) {
    static char paths[8][256];
    static int next;
    char *path = paths[next++ % 8];
    assert_true(snprintf(path, sizeof paths[0], "%s/%s", f->folder, name) < (int)sizeof paths[0]);
    return path;
}
static inline const char *in_home(const struct homes *f, const char *name) {
    char below[200];
    snprintf(below, sizeof below, "%s/%s", f->home + strlen(f->folder) + 1, name);
    return in_folder(f, below);
}

static inline int exists(const char *path) {
    struct stat st;
    return lstat(path, &st) == 0;
}

/* malloc'ed, with a NUL behind it. */
static inline char *read_file(const char *path, size_t *n) {
    FILE *file = fopen(path, "rb");
    struct stat st;
    if (!file || fstat(fileno(file), &st) != 0) fail_msg("cannot read %s", path);
    char *bytes = malloc((size_t)st.st_size + 1);
    *n = fread(bytes, 1, (size_t)st.st_size, file);
    bytes[*n] = 0;
    fclose(file);
    return bytes;
}
static inline void write_file(const char *path, const void *bytes, size_t n) {
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(bytes, 1, n, file) != n || fclose(file) != 0) fail_msg("cannot write %s", path);
}
static inline void write_text(const char *path, const char *text) { write_file(path, text, strlen(text)); }

static inline void flip_byte(const char *path, long at) { /* at < 0: from the end */
    size_t n;
    char *bytes = read_file(path, &n);
    bytes[at < 0 ? n - (size_t)-at : (size_t)at] ^= 0x40;
    write_file(path, bytes, n);
    free(bytes);
}

static inline int same_files(const char *a, const char *b) {
    size_t n, m;
    char *x = read_file(a, &n), *y = read_file(b, &m);
    int same = n == m && memcmp(x, y, n) == 0;
    free(x);
    free(y);
    return same;
}

/* The sha256 of a file; one answer lives. */
static inline const char *sha256_of(const char *path) {
    static char sha256[65];
    size_t n;
    char *bytes = read_file(path, &n);
    hash_bytes(bytes, n, sha256);
    free(bytes);
    return sha256;
}

/* ---- homes ---- */

/* Replaces a key's line in attune.conf. */
static inline void set_key(const struct homes *f, const char *key, const char *value) {
    size_t n;
    char *text = read_file(in_home(f, "attune.conf"), &n), *out = malloc(n + 512), start[64];
    int done = 0;
    *out = 0;
    snprintf(start, sizeof start, "%s = ", key);
    for (char *line = text; *line;) {
        size_t length = strcspn(line, "\n");
        if (strncmp(line, start, strlen(start)) == 0 && ++done)
            sprintf(out + strlen(out), "%s%s\n", start, value);
        else
            sprintf(out + strlen(out), "%.*s\n", (int)length, line);
        line += length + (line[length] == '\n');
    }
    if (!done) fail_msg("no key %s in attune.conf", key);
    write_text(in_home(f, "attune.conf"), out);
    free(text);
    free(out);
}

/* Settings of runs that take a fraction of a second and lower the loss. */
static inline void quick_settings(const struct homes *f) {
    static const char *const settings[][2] = {{"rank", "2"},
                                              {"epochs", "3"},
                                              {"learning_rate", "0.01"},
                                              {"max_tokens", "160"},
                                              {"micro_tokens", "160"},
                                              {"merge", "none"},
                                              /* of a base that knows nothing, all of it may change */
                                              {"reference_limit", "100"},
                                              {"reference_kl_limit", "100"},
                                              /* whatever machine this is, and whoever works at it */
                                              {"window", "always"},
                                              {"charger_stable", "none"},
                                              {"battery_min", "30"},
                                              {"idle", "ignored"},
                                              {"without_sensors", "run"},
                                              {"pressure_cpu", "0"},
                                              {"pressure_memory", "0"},
                                              {"memory_free", "none"},
                                              {"checkpoint_seconds", "3600"}}; /* pauses write theirs all the same */
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) set_key(f, settings[i][0], settings[i][1]);
}

static inline void make_home(struct homes *f, const char *base, int consent) {
    attune_home_options options;
    ATTUNE_INIT(options);
    options.consent = consent;
    OK(attune_home_init(f->home, base, &options, &f->err));
    quick_settings(f);
}

/* Lines [from, from + n) of a persona into a file of the folder. */
static inline const char *persona_rows(const struct homes *f, size_t from, size_t n) {
    size_t size, line = 0;
    char *text = read_file(PERSONA, &size), *start = text, *end;
    while (line < from) start = strchr(start, '\n') + 1, line++;
    for (end = start; line < from + n; line++) end = strchr(end, '\n') + 1;
    write_file(in_folder(f, "rows.jsonl"), start, (size_t)(end - start));
    free(text);
    return in_folder(f, "rows.jsonl");
}
static inline void import_rows(struct homes *f, size_t from, size_t n) {
    attune_store *store = NULL;
    OK(attune_store_open(f->home, NULL, &store, &f->err));
    OK(attune_store_import(store, persona_rows(f, from, n), NULL, NULL, &f->err));
    attune_store_close(store);
}

/* Statements into store.db, beside attune. What changes a row that examples were derived from has to put it into
 * `touched`. */
static inline void sql(const struct homes *f, const char *statements) {
    sqlite3 *db = NULL;
    char *message = NULL;
    assert_int_equal(sqlite3_open(in_home(f, "store.db"), &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, "PRAGMA foreign_keys = ON", NULL, NULL, NULL), SQLITE_OK);
    if (sqlite3_exec(db, statements, NULL, NULL, &message) != SQLITE_OK) fail_msg("%s: %s", statements, message);
    sqlite3_close(db);
}
/* The first column of the first row; one answer lives, "" for none. */
static inline const char *sql_text(const struct homes *f, const char *query) {
    static char text[1200];
    sqlite3 *db = NULL;
    sqlite3_stmt *statement = NULL;
    *text = 0;
    assert_int_equal(sqlite3_open(in_home(f, "store.db"), &db), SQLITE_OK);
    if (sqlite3_prepare_v2(db, query, -1, &statement, NULL) != SQLITE_OK) fail_msg("%s: %s", query, sqlite3_errmsg(db));
    if (sqlite3_step(statement) == SQLITE_ROW && sqlite3_column_type(statement, 0) != SQLITE_NULL)
        snprintf(text, sizeof text, "%s", (const char *)sqlite3_column_text(statement, 0));
    sqlite3_finalize(statement);
    sqlite3_close(db);
    return text;
}
static inline long sql_number(const struct homes *f, const char *query) { return atol(sql_text(f, query)); }

static inline attune_status home_status(struct homes *f) {
    attune_status status;
    ATTUNE_INIT(status);
    OK(attune_home_status(f->home, &status, &f->err));
    return status;
}

/* ---- runs ---- */

static inline attune_job_options job_options(void) {
    attune_job_options options;
    ATTUNE_INIT(options);
    options.now = 1;
    options.threads = 1;
    return options;
}

/* Opens, steps until there is nothing more to step, reports, closes. The last code. */
static inline int run_job(struct homes *f, const attune_job_options *options, attune_job_report *report) {
    attune_job *job = NULL;
    attune_job_report unused;
    memset(&f->err, 0, sizeof f->err);
    int code = attune_job_open(f->home, options, &job, &f->err);
    if (code != ATTUNE_OK) return code;
    do code = attune_job_step(job, &f->err);
    while (code == ATTUNE_CONTINUE);
    if (!report) report = &unused;
    ATTUNE_INIT(*report);
    attune_error err;
    assert_int_equal(attune_job_report_get(job, report, &err), ATTUNE_OK);
    attune_job_close(job);
    return code;
}

/* A run that publishes adapter `number`. */
static inline attune_job_report publish_run(struct homes *f, int number) {
    attune_job_options options = job_options();
    attune_job_report report;
    GIVES(run_job(f, &options, &report), ATTUNE_DONE);
    if (!report.published) fail_msg("not published: %s, %s", report.state, report.reason);
    assert_int_equal(report.adapter, number);
    return report;
}

static inline attune_adapter_info adapter_info(struct homes *f, int number) {
    attune_adapter_info info;
    ATTUNE_INIT(info);
    OK(attune_adapter_get(f->home, number, &info, &f->err));
    return info;
}
static inline const char *adapter_path(const struct homes *f, int number) {
    char name[32];
    snprintf(name, sizeof name, "adapters/%d.gguf", number);
    return in_home(f, name);
}

/* ---- runs that are cut off ---- */

static inline void make_quick_home(struct homes *f, size_t rows) {
    make_home(f, TINY_BASE, 1);
    import_rows(f, 0, rows);
}

/* A job that stops itself after so many units of work. */
struct stopper {
    attune_job *job;
    long units, seen;
};
static inline void stop_after(const attune_progress *progress, void *user) {
    struct stopper *stopper = user;
    (void)progress;
    if (++stopper->seen > stopper->units) attune_job_cancel(stopper->job); /* the first call is about the plan */
}

/* Up to `units` units of the home's run, then a pause. The last code. */
static inline int run_units(struct homes *f, long units, attune_job_options options, attune_job_report *report) {
    struct stopper stopper = {.units = units};
    options.on_progress = stop_after;
    options.user = &stopper;
    int code;
    OK(attune_job_open(f->home, &options, &stopper.job, &f->err));
    do code = attune_job_step(stopper.job, &f->err);
    while (code == ATTUNE_CONTINUE);
    if (report) {
        ATTUNE_INIT(*report);
        OK(attune_job_report_get(stopper.job, report, &f->err));
    }
    attune_job_close(stopper.job);
    return code;
}
static inline void pause_after(struct homes *f, long units) {
    attune_job_report report;
    GIVES(run_units(f, units, job_options(), &report), ATTUNE_PAUSED);
    assert_string_equal(report.state, "unfinished");
    assert_non_null(strstr(report.reason, "stopped on request"));
    assert_int_equal(report.finished, 0);
    assert_true(exists(in_home(f, "checkpoint.gguf")));
    assert_string_equal(sql_text(f, "SELECT state FROM run ORDER BY number DESC"), "unfinished");
}

/* What the same rows and settings end in when nobody disturbs them: a file in the folder. */
static inline const char *undisturbed(struct homes *f) {
    static char path[256];
    snprintf(path, sizeof path, "%s/undisturbed.gguf", f->folder);
    shell("cp -a %s %s/kept", f->home, f->folder);
    GIVES(run_job(f, &(attune_job_options){.size = sizeof(attune_job_options), .now = 1, .threads = 1}, NULL),
          ATTUNE_DONE);
    attune_status after = home_status(f);
    if (after.active_adapter == 0) fail_msg("run %s: %s", after.run_state, after.run_reason);
    int number = after.active_adapter;
    shell("cp %s %s && rm -rf %s && mv %s/kept %s", adapter_path(f, number), path, f->home, f->folder, f->home);
    return path;
}

/* A child that holds the home's lock until release_lock; it says so through a pipe. */
struct lock_holder {
    pid_t child;
    int end; /* closed: the child ends */
};
static inline struct lock_holder hold_lock(const struct homes *f) {
    int ready[2], end[2];
    char byte;
    assert_int_equal(pipe(ready), 0);
    assert_int_equal(pipe(end), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        attune_job *job = NULL;
        close(end[1]);
        if (attune_job_open(f->home, NULL, &job, NULL) != ATTUNE_OK) _exit(1);
        if (write(ready[1], "r", 1) != 1) _exit(1);
        while (read(end[0], &byte, 1) > 0) {
        }
        attune_job_close(job);
        _exit(0);
    }
    close(ready[1]);
    close(end[0]);
    assert_int_equal(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    return (struct lock_holder){child, end[1]};
}
static inline void release_lock(struct lock_holder holder) {
    int status = 0;
    close(holder.end);
    assert_int_equal(waitpid(holder.child, &status, 0), holder.child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

#endif
