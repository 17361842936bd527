/* How the store behaves when it has grown: makes a home of N interactions and measures opening, recording, deriving a
 * night's worth of new ones, searching, forgetting, and what a row takes on the disk.
 *
 *   store_size FOLDER [ROWS]      FOLDER is made and left there; default 1,000,000 rows of about 2 kB */
#include "bench/limits.h"
#include "core/base/random.h"
#include "datastore/store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { NIGHT = 200, CALLS = 2000, TEXT = 2048 };

static const char *const words[] = {"river",  "meeting", "answer", "garden",   "letter",  "quiet",   "number",
                                    "window", "slow",    "travel", "morning",  "kitchen", "report",  "invoice",
                                    "friend", "holiday", "python", "function", "recipe",  "weather", "piano",
                                    "thesis", "budget",  "school", "doctor",   "novel",   "mountain"};

static attune_error err;

static int failed(const char *doing) {
    fprintf(stderr, "store_size: cannot %s: %s (%s)\n", doing, err.message, err.where);
    return 1;
}

static void fill(char *out, size_t n, uint64_t row) {
    size_t at = 0;
    for (uint64_t i = 0; at + 16 < n; i++)
        at += (size_t)snprintf(out + at, n - at, "%s%s", i ? " " : "",
                               words[random_u64(row, i) % (sizeof words / sizeof words[0])]);
}

static int put(attune_store *store, uint64_t row) {
    char prompt[300], response[TEXT - 300];
    attune_interaction in;
    ATTUNE_INIT(in);
    fill(prompt, 60 + random_u64(1, row) % 200, row);
    fill(response, sizeof response, row + ((uint64_t)1 << 40));
    in.prompt = prompt;
    in.response = response;
    in.app = row % 3 ? "chat" : "mail";
    char session[24];
    snprintf(session, sizeof session, "s%llu", (unsigned long long)(row / 20));
    in.session = session;
    in.consent = ATTUNE_CONSENT_GIVEN;
    return attune_store_record(store, &in, NULL, &err);
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double megabytes(const char *home) {
    char path[1100];
    struct stat info;
    snprintf(path, sizeof path, "%s/store.db", home);
    return stat(path, &info) == 0 ? (double)info.st_size / 1e6 : 0;
}

static int count_row(const struct store_row *row, void *user, attune_error *unused) {
    (void)row, (void)unused;
    ++*(int64_t *)user;
    return ATTUNE_OK;
}

/* One attune_store_maintain of what is new. */
static int night(attune_store *store, const char *what) {
    struct store_example_query query = {.only_new = 1, .newest = NIGHT};
    int64_t n = 0;
    double from = bench_now();
    if (store_examples(store, &query, count_row, &n, &err) != ATTUNE_OK) return failed("derive the examples");
    double derived = bench_now() - from;
    from = bench_now();
    if (attune_store_maintain(store, 0, &err) < 0) return failed("index");
    printf("%s: %lld examples derived and read in %.3f s, indexed in %.3f s\n", what, (long long)n, derived,
           bench_now() - from);
    return 0;
}

static int search(attune_store *store, const char *words_wanted) {
    attune_filter filter;
    attune_cursor *cursor;
    attune_row row;
    ATTUNE_INIT(filter);
    ATTUNE_INIT(row);
    filter.match = words_wanted;
    filter.limit = 20;
    double from = bench_now();
    if (attune_store_query(store, &filter, &cursor, &err) != ATTUNE_OK) return failed("search");
    int64_t n = 0;
    while (attune_cursor_next(cursor, &row, &err) == ATTUNE_CONTINUE) n++;
    attune_cursor_close(cursor);
    printf("search %s: %lld rows in %.3f s\n", words_wanted, (long long)n, bench_now() - from);
    return 0;
}

static int calls(attune_store *store, uint64_t rows) {
    static double us[CALLS];
    for (int i = 0; i < CALLS; i++) {
        double from = bench_now();
        if (put(store, rows + NIGHT + (uint64_t)i) != ATTUNE_OK) return failed("record");
        us[i] = (bench_now() - from) * 1e6;
    }
    qsort(us, CALLS, sizeof *us, compare);
    if (attune_store_flush(store, &err) != ATTUNE_OK) return failed("flush");
    printf("record, with making the text: median %.1f us, 99 %% %.1f us\n", us[CALLS / 2], us[CALLS * 99 / 100]);
    return 0;
}

static int fill_store(attune_store *store, const char *home, uint64_t rows) {
    double from = bench_now();
    for (uint64_t i = 0; i < rows; i++)
        if (put(store, i) != ATTUNE_OK) return failed("record");
    if (attune_store_flush(store, &err) != ATTUNE_OK) return failed("flush");
    printf("%llu rows recorded in %.1f s, %.0f MB (%.0f bytes a row)\n", (unsigned long long)rows, bench_now() - from,
           megabytes(home), megabytes(home) * 1e6 / (double)rows);
    fflush(stdout);
    from = bench_now();
    if (attune_store_maintain(store, 0, &err) < 0) return failed("derive and index");
    printf("derived and indexed in %.1f s, %.0f MB (%.0f bytes a row)\n", bench_now() - from, megabytes(home),
           megabytes(home) * 1e6 / (double)rows);
    fflush(stdout);
    return 0;
}

static int forget_one(attune_store *store) {
    attune_filter filter;
    attune_forget_result result;
    ATTUNE_INIT(filter);
    ATTUNE_INIT(result);
    filter.app = "chat";
    filter.session = "s1000";
    double from = bench_now();
    if (attune_store_forget(store, &filter, &result, &err) != ATTUNE_OK) return failed("forget");
    printf("forgetting %lld: %.2f s, scrub %s", (long long)result.interactions, bench_now() - from,
           result.scrub_pending ? "pending" : "done");
    from = bench_now();
    if (attune_store_maintain(store, 0, &err) < 0) return failed("scrub");
    printf(", the rest of it %.1f s\n", bench_now() - from);
    return 0;
}

int main(int argc, char **argv) {
    const char *home = argc > 1 ? argv[1] : "";
    uint64_t rows = argc > 2 ? strtoull(argv[2], NULL, 10) : 1000000;
    attune_store *store = NULL;
    attune_store_options options;
    ATTUNE_INIT(options);
    options.when_full = ATTUNE_FULL_WAIT;
    options.full_wait_ms = 60000;
    if (argc < 2) {
        fputs("usage: store_size FOLDER [ROWS]\n", stderr);
        return 2;
    }
    if (mkdir(home, 0700) == 0) {
        if (store_create(home, 0, &err) != ATTUNE_OK) return failed("make the store");
        if (attune_store_open(home, &options, &store, &err) != ATTUNE_OK) return failed("open");
        if (fill_store(store, home, rows) != 0) return 1;
        attune_store_close(store);
    }
    double from = bench_now();
    if (attune_store_open(home, &options, &store, &err) != ATTUNE_OK) return failed("open");
    printf("open: %.2f ms\n", (bench_now() - from) * 1e3);
    for (uint64_t i = 0; i < NIGHT; i++)
        if (put(store, rows + i) != ATTUNE_OK) return failed("record");
    if (attune_store_flush(store, &err) != ATTUNE_OK) return failed("flush");
    if (night(store, "200 new") != 0 || calls(store, rows) != 0 || night(store, "2000 new") != 0) return 1;
    if (search(store, "piano invoice") != 0 || search(store, "\"quiet mountain thesis piano\"") != 0) return 1;
    if (forget_one(store) != 0) return 1;
    from = bench_now();
    attune_store_statistics s;
    ATTUNE_INIT(s);
    if (attune_store_statistics_get(store, &s, &err) != ATTUNE_OK) return failed("count");
    printf("statistics: %.3f s, %lld interactions\n", bench_now() - from, (long long)s.interactions);
    attune_store_close(store);
    return 0;
}
