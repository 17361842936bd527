/* attune_bench_record: what recording costs the app that does it, beside an SQLite insert in its place. */
#include "bench/limits.h"
#include "core/base/options.h"
#include "core/base/random.h"
#include "datastore/store.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PROCESSES_MAX = 4, CALLS_MAX = 1 << 20, DISK_BYTES = 4 << 20, DISK_ROUNDS = 24, TEXTS = 1024 };
static const double PROMPT_SHARE = 0.2; /* of a row; the rest is the answer */

/* What a recording process tells: in memory that it shares with its parent. */
struct told {
    int failed;
    int64_t calls, dropped;
    double seconds;
    attune_error err;
    float us[]; /* of each call */
};

struct bench_record {
    attune_bench_record_options o;
    attune_bench_record_result r;
    char home[1024];
    size_t told_bytes;
    struct told *told[PROCESSES_MAX];
};

/* ---- rows ---- */

struct row_text {
    char *prompt, *response;
};

/* Words that differ from row to row, so that neither an index nor a near-duplicate has it easier than in life. */
static void fill_words(char *out, size_t n, uint64_t row, uint64_t part) {
    static const char *const words[] = {"river ",  "the ",    "meeting ", "answer ", "please ", "garden ",
                                        "letter ", "quiet ",  "number ",  "of ",     "window ", "and ",
                                        "slow ",   "travel ", "thanks ",  "morning "};
    size_t at = 0;
    for (uint64_t i = 0; at < n; i++) {
        const char *word = words[random_u64(row * 2 + part, i) % (sizeof words / sizeof words[0])];
        for (; *word && at < n; word++) out[at++] = *word;
    }
    out[n] = 0;
}

static int row_text_make(const struct bench_record *b, struct row_text *out, attune_error *err) {
    size_t n = (size_t)b->o.row_bytes;
    out->prompt = malloc(n + 2);
    out->response = malloc(n + 2);
    if (out->prompt && out->response) return ATTUNE_OK;
    free(out->prompt);
    free(out->response);
    return error_set_memory(err, "a row", n);
}

static void row_text_fill(const struct bench_record *b, struct row_text *text, uint64_t row) {
    size_t n = (size_t)b->o.row_bytes, prompt = (size_t)((double)n * PROMPT_SHARE) + 1;
    fill_words(text->prompt, prompt, row, 0);
    fill_words(text->response, n > prompt ? n - prompt : 1, row, 1);
}

static void row_text_free(struct row_text *text) {
    free(text->prompt);
    free(text->response);
}

/* ---- what is timed: a call of one kind ---- */

struct writer {
    attune_store *store;
    sqlite3 *db;
    sqlite3_stmt *insert;
};

static int sqlite_failed(sqlite3 *db, const char *what, attune_error *err) {
    return error_set(err, ATTUNE_ERROR_IO, NULL, "SQLite cannot %s: %s", what, sqlite3_errmsg(db));
}

/* As somebody would who had no queue: the same columns and settings, an insert and its commit in the call. */
static int direct_open(const struct bench_record *b, struct writer *w, attune_error *err) {
    char path[1100];
    snprintf(path, sizeof path, "%s/direct.db", b->home);
    if (sqlite3_open(path, &w->db) != SQLITE_OK) return sqlite_failed(w->db, "open", err);
    sqlite3_busy_timeout(w->db, 10000);
    if (sqlite3_exec(w->db,
                     "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA secure_delete = ON;"
                     "CREATE TABLE IF NOT EXISTS row (id INTEGER PRIMARY KEY, time_ms INTEGER, app TEXT, session TEXT, "
                     "prompt TEXT, response TEXT)",
                     NULL, NULL, NULL) != SQLITE_OK ||
        sqlite3_prepare_v2(w->db, "INSERT INTO row (time_ms, app, session, prompt, response) VALUES (?, ?, ?, ?, ?)",
                           -1, &w->insert, NULL) != SQLITE_OK)
        return sqlite_failed(w->db, "prepare", err);
    return ATTUNE_OK;
}

static int direct_call(struct writer *w, const struct row_text *text, attune_error *err) {
    sqlite3_bind_int64(w->insert, 1, (int64_t)time(NULL));
    sqlite3_bind_text(w->insert, 2, "bench", -1, SQLITE_STATIC);
    sqlite3_bind_text(w->insert, 3, "session", -1, SQLITE_STATIC);
    sqlite3_bind_text(w->insert, 4, text->prompt, -1, SQLITE_STATIC);
    sqlite3_bind_text(w->insert, 5, text->response, -1, SQLITE_STATIC);
    int rc = sqlite3_step(w->insert);
    sqlite3_reset(w->insert);
    return rc == SQLITE_DONE ? ATTUNE_OK : sqlite_failed(w->db, "insert", err);
}

static int queue_call(struct writer *w, const struct row_text *text, attune_error *err) {
    attune_interaction in;
    attune_uuid id;
    ATTUNE_INIT(in);
    in.prompt = text->prompt;
    in.response = text->response;
    in.app = "bench";
    in.session = "session";
    in.consent = ATTUNE_CONSENT_GIVEN;
    return attune_store_record(w->store, &in, &id, err);
}

static int writer_open(const struct bench_record *b, int direct, struct writer *w, attune_error *err) {
    *w = (struct writer){0};
    return direct ? direct_open(b, w, err) : attune_store_open(b->home, NULL, &w->store, err);
}

static int writer_close(struct writer *w, attune_error *err) {
    int code = w->store ? attune_store_flush(w->store, err) : ATTUNE_OK;
    attune_store_close(w->store);
    sqlite3_finalize(w->insert);
    sqlite3_close(w->db);
    return code;
}

/* ---- processes ---- */

static void sleep_until(double when) {
    double left = when - bench_now();
    if (left <= 0) return;
    struct timespec t = {.tv_sec = (time_t)left, .tv_nsec = (long)((left - (double)(time_t)left) * 1e9)};
    nanosleep(&t, NULL);
}

/* Records at the rate, times each call. In the child. */
static int record_at_rate(const struct bench_record *b, int direct, uint64_t process, struct told *told,
                          attune_error *err) {
    struct writer w;
    struct row_text text;
    int code = writer_open(b, direct, &w, err);
    if (code == ATTUNE_OK) code = row_text_make(b, &text, err);
    if (code != ATTUNE_OK) return code;
    double start = bench_now(), step = 1.0 / (double)b->o.rate;
    int64_t calls = (int64_t)(b->o.seconds * (double)b->o.rate);
    for (int64_t i = 0; i < calls && i < CALLS_MAX && code == ATTUNE_OK; i++) {
        row_text_fill(b, &text, process << 32 | (uint64_t)i);
        sleep_until(start + (double)i * step);
        double from = bench_now();
        code = direct ? direct_call(&w, &text, err) : queue_call(&w, &text, err);
        told->us[told->calls++] = (float)((bench_now() - from) * 1e6);
        if (code == ATTUNE_ERROR_QUEUE_FULL) {
            told->dropped++;
            code = ATTUNE_OK;
        }
    }
    int closed = writer_close(&w, code == ATTUNE_OK ? err : NULL);
    told->seconds = bench_now() - start;
    row_text_free(&text);
    return code == ATTUNE_OK ? closed : code;
}

static int ignore_row(const struct store_row *row, void *user, attune_error *err) {
    (void)row, (void)user, (void)err;
    return ATTUNE_OK;
}

/* Searches and reads the night's examples, over and over, until it is killed. */
static void read_for_ever(const struct bench_record *b) {
    attune_store *store = NULL;
    struct store_example_query newest = {.newest = 200};
    attune_filter filter;
    ATTUNE_INIT(filter);
    filter.match = "meeting garden";
    filter.limit = 20;
    if (attune_store_open(b->home, NULL, &store, NULL) != ATTUNE_OK) _exit(1);
    for (;;) {
        attune_cursor *cursor = NULL;
        attune_row row;
        ATTUNE_INIT(row);
        if (attune_store_query(store, &filter, &cursor, NULL) == ATTUNE_OK)
            while (attune_cursor_next(cursor, &row, NULL) == ATTUNE_CONTINUE) {
            }
        attune_cursor_close(cursor);
        store_examples(store, &newest, ignore_row, NULL, NULL);
    }
}

static int compare_us(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

static double quantile(const float *sorted, size_t n, double q) {
    size_t at = (size_t)(q * (double)n);
    return n ? (double)sorted[at < n ? at : n - 1] : 0;
}

static int gather(struct bench_record *b, int processes, attune_record_figures *out, attune_error *err) {
    size_t n = 0;
    float *all = malloc(PROCESSES_MAX * CALLS_MAX * sizeof *all);
    if (!all) return error_set_memory(err, "latencies", PROCESSES_MAX * CALLS_MAX * sizeof *all);
    for (int i = 0; i < processes; i++) {
        const struct told *told = b->told[i];
        memcpy(all + n, told->us, (size_t)told->calls * sizeof *all);
        n += (size_t)told->calls;
        out->calls += told->calls;
        out->dropped += told->dropped;
        if (told->seconds > 0) out->rows_per_s += (double)(told->calls - told->dropped) / told->seconds;
    }
    qsort(all, n, sizeof *all, compare_us);
    out->p50_us = quantile(all, n, 0.5);
    out->p99_us = quantile(all, n, 0.99);
    out->p999_us = quantile(all, n, 0.999);
    out->max_us = n ? (double)all[n - 1] : 0;
    free(all);
    return ATTUNE_OK;
}

static int load(struct bench_record *b, int processes, int direct, attune_record_figures *out, attune_error *err) {
    pid_t child[PROCESSES_MAX], reader = 0;
    int code = ATTUNE_OK, status, started = 0;
    if (!direct && !b->o.alone) {
        reader = fork();
        if (reader == 0) read_for_ever(b);
    }
    for (; started < processes && code == ATTUNE_OK; started++) {
        struct told *told = b->told[started];
        memset(told, 0, sizeof *told);
        child[started] = fork();
        if (child[started] == 0) {
            told->failed = record_at_rate(b, direct, (uint64_t)started, told, &told->err);
            _exit(0);
        }
        if (child[started] < 0) {
            code = error_set_errno(err, NULL, "cannot fork");
            break;
        }
    }
    for (int i = 0; i < started; i++) {
        while (waitpid(child[i], &status, 0) < 0 && errno == EINTR) {
        }
        if (code == ATTUNE_OK && b->told[i]->failed) {
            code = b->told[i]->failed;
            if (err) *err = b->told[i]->err;
        }
    }
    if (reader > 0) {
        kill(reader, SIGKILL);
        waitpid(reader, &status, 0);
    }
    return code == ATTUNE_OK ? gather(b, processes, out, err) : code;
}

/* ---- flat out ---- */

/* Made before the clock runs: the writing thread would have its time to itself while they are made. */
static int make_texts(const struct bench_record *b, struct row_text texts[TEXTS], attune_error *err) {
    for (uint64_t i = 0; i < TEXTS; i++) {
        int code = row_text_make(b, &texts[i], err);
        if (code != ATTUNE_OK) return code;
        row_text_fill(b, &texts[i], (uint64_t)1 << 40 | i);
    }
    return ATTUNE_OK;
}

static int flat_out(struct bench_record *b, attune_error *err) {
    static struct row_text texts[TEXTS];
    struct writer w = {0};
    attune_store_options options;
    attune_store_statistics s;
    ATTUNE_INIT(options);
    ATTUNE_INIT(s);
    options.when_full = ATTUNE_FULL_WAIT;
    options.full_wait_ms = 60000;
    int code = attune_store_open(b->home, &options, &w.store, err);
    if (code == ATTUNE_OK) code = make_texts(b, texts, err);
    if (code == ATTUNE_OK) code = attune_store_statistics_get(w.store, &s, err);
    int64_t bytes = s.bytes;
    double from = bench_now();
    for (int64_t i = 0; i < b->o.rows && code == ATTUNE_OK; i++) code = queue_call(&w, &texts[i % TEXTS], err);
    if (code == ATTUNE_OK) code = attune_store_flush(w.store, err);
    b->r.seconds = bench_now() - from;
    b->r.rows = b->o.rows;
    b->r.rows_per_s = (double)b->o.rows / b->r.seconds;
    if (code == ATTUNE_OK) code = attune_store_statistics_get(w.store, &s, err);
    b->r.file_bytes_per_row = (double)(s.bytes - bytes) / (double)b->o.rows;
    b->r.queue_peak_mib = (double)s.queue_peak_bytes / 1048576.0;
    for (int i = 0; i < TEXTS; i++) row_text_free(&texts[i]);
    memset(texts, 0, sizeof texts);
    writer_close(&w, NULL);
    return code;
}

static int disk_limit(struct bench_record *b, attune_error *err) {
    char path[1100];
    char *block = calloc(1, DISK_BYTES);
    snprintf(path, sizeof path, "%s/disk", b->home);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600), code = ATTUNE_OK;
    if (!block || fd < 0) code = error_set_errno(err, path, "cannot measure the disk");
    double from = bench_now();
    for (int i = 0; i < DISK_ROUNDS && code == ATTUNE_OK; i++)
        if (write(fd, block, DISK_BYTES) != DISK_BYTES || fdatasync(fd) != 0)
            code = error_set_errno(err, path, "cannot measure the disk");
    b->r.disk_mbytes_per_s = DISK_ROUNDS * (double)DISK_BYTES / 1e6 / (bench_now() - from);
    if (fd >= 0) close(fd);
    unlink(path);
    free(block);
    return code;
}

/* ---- all of it ---- */

static void remove_home(const char *home) {
    static const char *const names[] = {"store.db",  "store.db-wal",  "store.db-shm", "store.lock",
                                        "direct.db", "direct.db-wal", "direct.db-shm"};
    char path[1100];
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", home, names[i]);
        unlink(path);
    }
    rmdir(home);
}

static int make_home(struct bench_record *b, attune_error *err) {
    const char *folder = b->o.folder ? b->o.folder : getenv("TMPDIR");
    if (!folder || !folder[0]) folder = "/tmp";
    int n = snprintf(b->home, sizeof b->home, "%s/attune-bench-XXXXXX", folder);
    if (n < 0 || (size_t)n >= sizeof b->home)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the folder's path is too long");
    if (!mkdtemp(b->home)) {
        b->home[0] = 0;
        return error_set_errno(err, folder, "cannot make a folder there");
    }
    return store_create(b->home, 1, err);
}

static int share_memory(struct bench_record *b, attune_error *err) {
    b->told_bytes = sizeof(struct told) + CALLS_MAX * sizeof(float);
    for (int i = 0; i < PROCESSES_MAX; i++) {
        void *memory = mmap(NULL, b->told_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) return error_set_memory(err, "latencies", b->told_bytes);
        b->told[i] = memory;
    }
    return ATTUNE_OK;
}

static int check(attune_bench_record_options *o, attune_error *err) {
    if (o->seconds == 0) o->seconds = 3;
    if (o->rate == 0) o->rate = 200;
    if (o->row_bytes == 0) o->row_bytes = 2048;
    if (o->rows == 0) o->rows = 100000;
    if (o->seconds > 0 && o->seconds <= 3600 && o->rate > 0 && o->rate <= 100000 && o->row_bytes >= 16 &&
        o->row_bytes <= 1 << 20 && o->rows > 0 && o->rows <= 10000000)
        return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL,
                     "impossible options: up to 3600 seconds, 100,000 rows a second, 16 bytes to 1 MiB a row, "
                     "10,000,000 rows");
}

int attune_bench_record(const attune_bench_record_options *options, attune_bench_record_result *result,
                        attune_error *err) {
    static const int processes[ATTUNE_RECORD_LOADS] = {1, 2, 4};
    struct bench_record b = {0};
    struct rusage usage;
    int code = options_read(&b.o, sizeof b.o, options, "attune_bench_record_options", err);
    if (code == ATTUNE_OK) code = check(&b.o, err);
    if (code == ATTUNE_OK) code = make_home(&b, err);
    if (code == ATTUNE_OK) code = share_memory(&b, err);
    if (code == ATTUNE_OK) code = disk_limit(&b, err);
    for (int i = 0; i < ATTUNE_RECORD_LOADS && code == ATTUNE_OK; i++) {
        b.r.load[i].processes = processes[i];
        code = load(&b, processes[i], 0, &b.r.load[i].queue, err);
        if (code == ATTUNE_OK) code = load(&b, processes[i], 1, &b.r.load[i].direct, err);
        b.r.n_loads++;
    }
    if (code == ATTUNE_OK) code = flat_out(&b, err);
    if (getrusage(RUSAGE_SELF, &usage) == 0) b.r.peak_rss_mib = (double)usage.ru_maxrss / 1024.0;
    for (int i = 0; i < PROCESSES_MAX; i++)
        if (b.told[i]) munmap(b.told[i], b.told_bytes);
    if (b.home[0]) remove_home(b.home);
    if (code != ATTUNE_OK) return code;
    b.r.size = sizeof b.r;
    return options_write(result, &b.r, sizeof b.r, "attune_bench_record_result", err);
}
