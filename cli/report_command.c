/* report: gathers what the page shows, and writes it. */
#include "cli/report.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- gathering ---- */

/* A moment holds until the next; the last one until its call ended, or for the minute that one comes. */
static const int64_t MOMENT_MS = 60000, GAP_MS = 5 * 60000;

static int on_moment(const attune_moment *from, void *user) {
    struct night_moments *close = user;
    if (close->n == close->capacity) {
        size_t capacity = close->capacity ? close->capacity * 2 : 256;
        struct moment *items = realloc(close->items, capacity * sizeof *items);
        close->no_memory = !items;
        if (!items) return 1;
        close->items = items;
        close->capacity = capacity;
    }
    struct moment *m = &close->items[close->n];
    if (close->n > 0 && from->time_ms < m[-1].time_ms) return 0; /* a clock was put back: time goes on from there */
    if (close->n > 0 && from->time_ms - m[-1].time_ms <= GAP_MS) m[-1].until_ms = from->time_ms;
    *m = (struct moment){.time_ms = from->time_ms, .until_ms = from->time_ms + MOMENT_MS, .celsius = from->celsius,
                         .watts = from->watts, .percent = from->percent, .loss = from->loss};
    snprintf(m->verdict, sizeof m->verdict, "%s", from->verdict);
    snprintf(m->reason, sizeof m->reason, "%s", from->reason);
    close->n++;
    return 0;
}

static int read_moments(const struct cli *cli, struct night_moments *close) {
    attune_error err = {0};
    for (size_t i = close->night->n; i-- > 0;) {
        const attune_night *call = &close->night->calls[i];
        if (attune_night_moments(cli->home, call->number, on_moment, close, &err) != ATTUNE_OK) return cli_fail(&err);
        if (close->no_memory) return cli_fail_text("out of memory reading what the nights saw");
        struct moment *last = close->n ? &close->items[close->n - 1] : NULL;
        if (last && call->ended_ms > last->time_ms && call->ended_ms < last->time_ms + GAP_MS)
            last->until_ms = call->ended_ms;
    }
    return CLI_GO;
}

static int read_close(const struct cli *cli, struct report *r) {
    for (size_t i = 0; i < r->nights.n && r->n_close < REPORT_NIGHTS_SHOWN; i++) {
        if (r->nights.items[i].work_seconds <= 0) continue; /* waited, and was not let work: the table says why */
        struct night_moments *close = &r->close[r->n_close];
        close->night = &r->nights.items[i];
        int code = read_moments(cli, close);
        if (code != CLI_GO) return code;
        r->n_close += close->n > 0;
    }
    return CLI_GO;
}

struct adapters {
    struct report *report;
    bool no_memory;
};

static int on_adapter(const attune_adapter_info *info, void *user) {
    struct adapters *a = user;
    struct report *r = a->report;
    if (r->n_adapters == r->adapter_capacity) {
        size_t capacity = r->adapter_capacity ? r->adapter_capacity * 2 : 16;
        struct report_adapter *items = realloc(r->adapters, capacity * sizeof *items);
        a->no_memory = !items;
        if (!items) return 1;
        r->adapters = items;
        r->adapter_capacity = capacity;
    }
    r->adapters[r->n_adapters++] = (struct report_adapter){.info = *info, .kl = NAN, .agreement = NAN};
    return 0;
}

static int newest_first(const void *a, const void *b) {
    int x = ((const struct report_adapter *)a)->info.number, y = ((const struct report_adapter *)b)->info.number;
    return (x < y) - (x > y);
}

/* The first that is merged: modes come with the fastest first. */
static int on_drift(const attune_merge_drift *drift, void *user) {
    struct report_adapter *a = user;
    if (strcmp(drift->merge, "none") == 0) return 0;
    snprintf(a->merge, sizeof a->merge, "%s", drift->merge);
    a->kl = drift->kl;
    a->agreement = drift->agreement;
    return 1;
}

static int read_adapters(const struct cli *cli, struct report *r) {
    attune_error err = {0};
    struct adapters a = {.report = r};
    if (attune_adapter_list(cli->home, on_adapter, &a, &err) != ATTUNE_OK) return cli_fail(&err);
    if (a.no_memory) return cli_fail_text("out of memory listing the adapters");
    if (r->n_adapters > 0) qsort(r->adapters, r->n_adapters, sizeof *r->adapters, newest_first);
    for (size_t i = 0; i < r->n_adapters && i < REPORT_DRIFTS_MAX; i++)
        if (attune_adapter_drift(cli->home, r->adapters[i].info.number, on_drift, &r->adapters[i], &err) != ATTUNE_OK)
            return cli_fail(&err);
    return CLI_GO;
}

/* What `attune learned` has kept: asking the models anew is not what a page is called for. */
static int read_learned(const struct cli *cli, struct report *r) {
    attune_error err = {0};
    attune_learned_options options;
    ATTUNE_INIT(options);
    options.kept_only = 1;
    int code = attune_learned_open(cli->home, &options, &r->learned, &err);
    if (code == ATTUNE_OK) return CLI_GO;
    if (code != ATTUNE_ERROR_NOT_FOUND && code != ATTUNE_ERROR_STATE) return cli_fail(&err);
    return r->texts ? cli_fail_text("nothing is kept of what was learned, so there are no texts to show: call attune "
                                    "learned first (an encrypted home keeps nothing)")
                    : CLI_GO;
}

static int gather(const struct cli *cli, struct report *r) {
    attune_error err = {0};
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    r->now_ms = (int64_t)now.tv_sec * 1000;
    ATTUNE_INIT(r->status);
    if (attune_home_status(cli->home, &r->status, &err) != ATTUNE_OK) return cli_fail(&err);
    int code = cli_nights_read(cli, 0, 0, 0, &r->nights);
    if (code == CLI_GO) code = read_close(cli, r);
    if (code == CLI_GO) code = read_adapters(cli, r);
    return code == CLI_GO ? read_learned(cli, r) : code;
}

static void report_free(struct report *r) {
    for (size_t i = 0; i < REPORT_NIGHTS_SHOWN; i++) free(r->close[i].items);
    free(r->adapters);
    attune_learned_close(r->learned);
    cli_nights_free(&r->nights);
}

/* ---- writing ---- */

static int write_all(int fd, const char *text, size_t n) {
    while (n > 0) {
        ssize_t written = write(fd, text, n);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return -1;
        text += written;
        n -= (size_t)written;
    }
    return fsync(fd);
}

/* Beside `path`, then in its place: whoever reads it sees the old page or the new one. */
static int write_page(const char *path, const char *text, size_t n) {
    static const char name[] = ".attune-report-XXXXXX";
    struct stat is;
    if (stat(path, &is) == 0 && S_ISDIR(is.st_mode)) return cli_fail_text("%s is a folder: name a file", path);
    if (stat(path, &is) == 0 && !S_ISREG(is.st_mode))
        return cli_fail_text("%s is not a file; - is standard output", path);
    const char *slash = strrchr(path, '/');
    size_t folder = slash ? (size_t)(slash + 1 - path) : 0;
    char *temporary = malloc(folder + sizeof name);
    if (!temporary) return cli_fail_text("out of memory writing the report");
    memcpy(temporary, path, folder);
    memcpy(temporary + folder, name, sizeof name);
    int code = CLI_DONE, fd = mkstemp(temporary); /* 0600 */
    bool written = fd >= 0 && write_all(fd, text, n) == 0;
    int reason = errno;
    if (fd >= 0 && close(fd) != 0 && written) {
        written = false;
        reason = errno;
    }
    if (written && rename(temporary, path) != 0) {
        written = false;
        reason = errno;
    }
    if (!written) {
        if (fd >= 0) unlink(temporary);
        code = cli_fail_text("cannot write %s: %s", path, strerror(reason));
    }
    free(temporary);
    return code;
}

static int print_result(const struct cli *cli, const char *path, size_t bytes, const struct report *r) {
    if (cli->json)
        return cli_json(json_pack("{s:o, s:I, s:I, s:I}", "path", cli_json_text(path), "bytes", (json_int_t)bytes,
                                  "nights", (json_int_t)r->nights.n, "adapters", (json_int_t)r->n_adapters));
    cli_print("%s: %s night%s, %s adapter%s, %s. It holds %s.\n", path,
              cli_count((int64_t)r->nights.n).text, r->nights.n == 1 ? "" : "s", cli_count((int64_t)r->n_adapters).text,
              r->n_adapters == 1 ? "" : "s", cli_bytes((double)bytes).text,
              r->texts ? "texts that were recorded: for your own eyes" : "nothing of what was recorded");
    return CLI_DONE;
}

static int report(const struct cli *cli, const char *path, bool texts) {
    struct report r = {.texts = texts};
    struct markup page = {.failed = false};
    size_t n = 0;
    int code = gather(cli, &r);
    if (code == CLI_GO) {
        report_page(&page, &r);
        char *text = markup_take(&page, &n);
        if (!text) code = cli_fail_text("out of memory making the report");
        else if (strcmp(path, "-") == 0)
            code = fwrite(text, 1, n, stdout) == n ? CLI_DONE : CLI_FAILED; /* main tells */
        else code = write_page(path, text, n);
        free(text);
        if (code == CLI_DONE && strcmp(path, "-") != 0) code = print_result(cli, path, n, &r);
    }
    report_free(&r);
    return code;
}

static int run(struct cli *cli, int argc, char **argv) {
    const char *out = NULL;
    bool texts = false;
    struct arguments a = {.command = &report_command};
    cli_option(&a, option_path("out", "FILE|-", "the page; a file that is there is replaced", &out));
    cli_option(&a, option_flag("texts", "of what was learned also words, answers and rows: private", &texts));
    int code = cli_parse(cli, &a, argc, argv);
    if (code != CLI_GO) return code;
    if (!out || !out[0]) return cli_usage(a.command, "report wants --out FILE, or --out - for standard output");
    if (cli->json && strcmp(out, "-") == 0)
        return cli_usage(a.command, "standard output cannot have both the page and the object of --json");
    return report(cli, out, texts);
}

const struct command report_command = {
    .name = "report",
    .arguments = "--out FILE|- [options]",
    .summary = "What the nights did, as a page to look at: loss, energy, temperature, decisions.",
    .notes = "One HTML file (0600) for a phone or a desk, light or dark. It runs no script, loads nothing, and holds\n"
             "figures alone, nothing of what was recorded, but with --texts. What `attune learned` has found of the\n"
             "active adapter is on it, where it is kept.",
    .run = run,
};
