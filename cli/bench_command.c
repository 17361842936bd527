#include "cli/cli.h"

#include <string.h>

enum { RECORD_ROWS_MAX = 10000000 };

static json_t *result_json(const char *kind, const attune_bench_result *r) {
    return json_pack("{s:s, s:o, s:o, s:o, s:I, s:o, s:{s:o, s:o}, s:o, s:o, s:s, s:i}", "bench", kind, "tokens_per_s",
                     cli_json_number(r->tokens_per_s), "seconds", cli_json_number(r->seconds), "seconds_load",
                     cli_json_number(r->seconds_load), "tokens", (json_int_t)r->tokens, "peak_rss_mib",
                     cli_json_number(r->peak_rss_mib), "limits", "gflops", cli_json_number(r->limit_gflops),
                     "gbytes_per_s", cli_json_number(r->limit_gbytes_per_s), "gflops", cli_json_number(r->gflops),
                     "gbytes_per_s", cli_json_number(r->gbytes_per_s), "kernels", r->kernels, "threads", r->threads);
}

/* What only training has. */
static json_t *training_json(const attune_bench_result *r) {
    return json_pack("{s:I, s:o, s:I, s:o, s:I, s:I, s:o, s:o, s:o}", "rows", (json_int_t)r->rows, "rows_per_s",
                     cli_json_number(r->rows_per_s), "supervised_tokens", (json_int_t)r->supervised_tokens,
                     "supervised_tokens_per_s", cli_json_number(r->supervised_tokens_per_s), "steps",
                     (json_int_t)r->steps, "dropped_steps", (json_int_t)r->dropped_steps, "loss",
                     cli_json_number(r->loss), "seconds_train", cli_json_number(r->seconds_train), "seconds_limits",
                     cli_json_number(r->seconds_limits));
}

static json_t *share_json(const attune_bench_result *r) {
    return json_pack("{s:o}", "limit_share", r->limit_share > 0 ? cli_json_number(r->limit_share) : json_null());
}

/* What computes much: training and prefill. */
static json_t *arithmetic_json(const attune_bench_result *r) {
    json_t *limit = r->limit_base_gflops > 0 ? cli_json_number(r->limit_base_gflops) : json_null();
    return json_pack("{s:{s:s, s:o, s:o}}", "base", "arithmetic", r->arithmetic, "share",
                     cli_json_number(r->base_share), "limit_gflops", limit);
}

/* Both are used up; NULL: no memory. */
static json_t *join(json_t *object, json_t *more) {
    if (object && json_object_update(object, more) != 0) {
        json_decref(object);
        object = NULL;
    }
    json_decref(more);
    return object;
}

static int print_json(const char *kind, const attune_bench_result *r) {
    bool train = strcmp(kind, "train") == 0, merge = strcmp(kind, "merge") == 0;
    json_t *object = result_json(kind, r);
    if (train) object = join(object, training_json(r));
    if (!merge) object = join(object, share_json(r));
    if (train || strcmp(kind, "prefill") == 0) object = join(object, arithmetic_json(r));
    if (merge || strcmp(kind, "decode") == 0) object = join(object, json_pack("{s:I}", "bytes", (json_int_t)r->bytes));
    return cli_json(object);
}

static void print_share(const char *name, const char *unit, double used, double limit) {
    if (limit > 0) cli_field(name, "%8.1f %s of %.1f (%.0f %%)", used, unit, limit, 100 * used / limit);
    else cli_field(name, "%8.1f %s", used, unit);
}

static void print_training(const attune_bench_result *r) {
    if (r->rows > r->steps) { /* of a file */
        cli_field("rows", "%8.2f rows/s, load and save included: %s in %s steps", r->rows_per_s,
                  cli_count(r->rows).text, cli_count(r->steps).text);
        cli_field("supervised", "%8.1f tokens/s", r->supervised_tokens_per_s);
        cli_field("steps", "%8.3f s", r->seconds_train);
    }
    cli_field("last loss", "%8.3f nats a token", r->loss);
    if (r->dropped_steps) cli_field("dropped", "%8s steps that were not finite", cli_count(r->dropped_steps).text);
}

/* Products with the base, where they are not f32. */
static void print_arithmetic(const attune_bench_result *r) {
    cli_field("arithmetic", "%8.1f GFLOP/s, f32 limit %.1f", r->gflops, r->limit_gflops);
    if (strcmp(r->arithmetic, "f32") == 0) return;
    if (r->limit_base_gflops > 0)
        cli_field("base", "%8.1f %% of it in %s, limit %.1f GOP/s", 100 * r->base_share, r->arithmetic,
                  r->limit_base_gflops);
    else cli_field("base", "%8.1f %% of it in %s", 100 * r->base_share, r->arithmetic);
}

static void print_people(const char *kind, const attune_bench_result *r) {
    bool train = strcmp(kind, "train") == 0, merge = strcmp(kind, "merge") == 0;
    bool decode = strcmp(kind, "decode") == 0;
    cli_print("%s: %d %s, %s kernels\n\n", kind, r->threads, r->threads == 1 ? "thread" : "threads", r->kernels);
    if (r->tokens_per_s > 0) cli_field("speed", "%8.1f tokens/s", r->tokens_per_s);
    cli_field("time", "%8.3f s%s%s%s", r->seconds, r->tokens > 0 ? " for " : "",
              r->tokens > 0 ? cli_count(r->tokens).text : "", r->tokens > 0 ? " tokens" : "");
    cli_field("load", "%8.3f s", r->seconds_load);
    if (train) print_training(r);
    if (decode) cli_field("a token reads", "%8.1f MB", 1e-6 * (double)r->bytes);
    if (merge) cli_field("merged", "%8.1f MB", 1e-6 * (double)r->bytes);
    if (decode || merge) print_share("memory", "GB/s", r->gbytes_per_s, r->limit_gbytes_per_s);
    else print_arithmetic(r);
    if (r->limit_share > 0) cli_field("of the limit", "%8.0f %%", 100 * r->limit_share);
    cli_field("peak memory", "%8.0f MiB", r->peak_rss_mib);
}

/* The home's, where none is named. CLI_GO or an exit code; errors are told. */
static int find_base(const struct cli *cli, attune_status *status, const char **base) {
    attune_error err = {0};
    ATTUNE_INIT(*status);
    if (*base) return CLI_GO;
    if (attune_home_status(cli->home, status, &err) != ATTUNE_OK) return cli_fail(&err);
    *base = status->base_path;
    return CLI_GO;
}

static int bench(const struct cli *cli, const char *kind, const char *base, const attune_bench_options *options) {
    attune_error err = {0};
    attune_bench_result result;
    ATTUNE_INIT(result);
    if (attune_bench(base, kind, options, &result, &err) != ATTUNE_OK) return cli_fail(&err);
    if (cli->json) return print_json(kind, &result);
    print_people(kind, &result);
    return CLI_DONE;
}

/* Which benches an option says something to, as bits of enum bench. */
enum bench { TRAIN = 1, DECODE = 2, PREFILL = 4, MERGE = 8, RECORD = 16, GOVERNOR = 32 };
static const struct {
    const char *name, *benches;
    unsigned of;
} belongs[] = {
    {"base", "all benches but record", TRAIN | DECODE | PREFILL | MERGE | GOVERNOR},
    {"adapter", "train, decode, prefill and merge", TRAIN | DECODE | PREFILL | MERGE},
    {"merge", "train, decode, prefill and merge", TRAIN | DECODE | PREFILL | MERGE},
    {"threads", "all benches but record", TRAIN | DECODE | PREFILL | MERGE | GOVERNOR},
    {"rank", "train, decode, prefill and merge", TRAIN | DECODE | PREFILL | MERGE},
    {"tokens", "train, decode, prefill and merge", TRAIN | DECODE | PREFILL | MERGE},
    {"depth", "bench decode and bench prefill", DECODE | PREFILL},
    {"kv", "bench decode and bench prefill", DECODE | PREFILL},
    {"precision", "bench train, decode and prefill", TRAIN | DECODE | PREFILL},
    {"rows", "bench train, bench record and bench governor", TRAIN | RECORD | GOVERNOR},
    {"epochs", "bench train", TRAIN},
    {"memory", "bench train", TRAIN},
    {"out", "bench train", TRAIN},
    {"seconds", "all benches but governor", TRAIN | DECODE | PREFILL | MERGE | RECORD},
    {"dir", "bench record and bench governor", RECORD | GOVERNOR},
    {"rate", "bench record", RECORD},
    {"alone", "bench record", RECORD},
    {"trials", "bench governor", GOVERNOR},
    {"polls", "bench governor", GOVERNOR},
    {"budgets", "bench governor", GOVERNOR},
};

/* Options that say nothing to this bench are refused, not ignored. */
static int check_options(const struct arguments *a, unsigned kind) {
    for (size_t i = 0; i < sizeof belongs / sizeof belongs[0]; i++) {
        if ((belongs[i].of & kind) || !cli_given(a, belongs[i].name)) continue;
        if (kind == RECORD) return cli_usage(a->command, "bench record has no option --%s", belongs[i].name);
        if (kind == GOVERNOR) return cli_usage(a->command, "bench governor has no option --%s", belongs[i].name);
        return cli_usage(a->command, "--%s is for %s", belongs[i].name, belongs[i].benches);
    }
    if (kind != TRAIN) return CLI_GO;
    if (!cli_given(a, "rows") && (cli_given(a, "epochs") || cli_given(a, "out")))
        return cli_usage(a->command, "--epochs and --out go with --rows FILE");
    if (cli_given(a, "rows") && cli_given(a, "seconds"))
        return cli_usage(a->command, "with --rows, training ends with the rows: --seconds says nothing");
    return CLI_GO;
}

/* *kind: of enum bench. */
static int take_kind(const struct command *command, const char *name, unsigned *kind) {
    static const char *const kinds[] = {"train", "decode", "prefill", "merge", "record", "governor"};
    enum { N = sizeof kinds / sizeof kinds[0] };
    for (size_t i = 0; i < N; i++) {
        if (strcmp(name, kinds[i]) != 0) continue;
        *kind = 1u << i;
        return CLI_GO;
    }
    const char *near = cli_nearest(name, kinds, N);
    if (near) return cli_usage(command, "there is no bench \"%s\"; did you mean \"%s\"?", name, near);
    return cli_usage(command, "there is no bench \"%s\": train, decode, prefill, merge, record or governor",
                     name);
}

struct bench_arguments {
    const char *base, *rows, *precision, *kv;
    bool alone;
    attune_bench_options options;
    attune_bench_record_options record;
    attune_bench_governor_options governor;
};

static void add_options(struct arguments *a, struct bench_arguments *b) {
    attune_bench_options *o = &b->options;
    cli_option(a, option_path("base", "FILE", "a base model (GGUF), in place of the home's", &b->base));
    cli_option(a, option_path("adapter", "FILE", "an adapter file to run with", &o->adapter));
    cli_option(a, option_choice("merge", "none|f16|q8|same", "how it joins the base", &o->merge));
    cli_option(a, option_int("threads", "0: all CPUs of this process (default)", &o->threads, 0, THREADS_MAX));
    cli_option(a, option_integer("tokens", "train: micro-batch; decode, prefill: how many", &o->tokens, 1, COUNT_MAX));
    cli_option(a, option_integer("depth", "decode, prefill: behind so many tokens; default 0", &o->depth, 0,
                                 COUNT_MAX));
    cli_option(a, option_choice("kv", CLI_KV_CHOICES, "decode, prefill: how past tokens are kept; default f16",
                                &b->kv));
    cli_option(a, option_number("seconds", "S", "to measure for; default 3", &o->seconds, 0.01, 3600));
    cli_option(a, option_integer("rank", "of the adapter that is made up where none is given", &o->rank, 1, 65536));
    cli_option(a, option_path("rows", "FILE|N", "train, governor: JSON Lines to learn from; record: of the run flat "
                                               "out",
                              &b->rows));
    cli_option(a, option_integer("epochs", "train: over the rows; default 1", &o->epochs, 1, 1000));
    cli_option(a, option_size("memory", "train: most resident memory", &o->memory_bytes));
    cli_option(a, option_choice("precision", CLI_PRECISION_CHOICES, "of products with the base; default auto",
                                &b->precision));
    cli_option(a, option_path("out", "FILE", "train: where the adapter learned from the rows is kept", &o->out));
    cli_bench_record_options(a, &b->record, &b->alone);
    cli_bench_governor_options(a, &b->governor);
}

static int run(struct cli *cli, int argc, char **argv) {
    unsigned kind = 0;
    attune_status status;
    struct bench_arguments b = {0};
    struct arguments a = {.command = &bench_command, .positional_min = 1, .positional_max = 1};
    ATTUNE_INIT(b.options);
    ATTUNE_INIT(b.record);
    ATTUNE_INIT(b.governor);
    add_options(&a, &b);
    int code = cli_parse(cli, &a, argc, argv);
    if (code == CLI_GO) code = take_kind(a.command, a.positional[0], &kind);
    if (code == CLI_GO) code = check_options(&a, kind);
    if (code != CLI_GO) return code;
    if (kind == RECORD) {
        if (b.rows && !cli_parse_integer(b.rows, 1, RECORD_ROWS_MAX, &b.record.rows))
            return cli_usage(a.command, "bench record wants --rows N, 1 to %d, not \"%.60s\"", RECORD_ROWS_MAX, b.rows);
        b.record.seconds = b.options.seconds;
        b.record.alone = b.alone;
        return cli_bench_record(cli, &b.record);
    }
    code = find_base(cli, &status, &b.base);
    if (code != CLI_GO) return code;
    if (kind == GOVERNOR) {
        b.governor.rows = b.rows;
        b.governor.threads = b.options.threads;
        b.governor.folder = b.record.folder;
        return cli_bench_governor(cli, b.base, &b.governor);
    }
    b.options.rows = b.rows;
    b.options.precision = cli_precision(b.precision);
    b.options.kv = cli_kv(b.kv);
    return bench(cli, a.positional[0], b.base, &b.options);
}

const struct command bench_command = {
    .name = "bench",
    .arguments = "train|decode|prefill|merge|record|governor [options]",
    .summary = "How fast this machine trains, answers and records, beside what it could at most.",
    .notes = "The limits are measured in the same run with the same number of threads.\n"
             "decode: single tokens, prefill: many at once, behind --depth others; merge: an adapter into the base.\n"
             "train: random tokens; with --rows FILE, its rows in order, from loading to the saved adapter.\n"
             "record: what a call costs the app, with 1, 2 and 4 processes that record while another one reads;\n"
             "beside it an SQLite insert in its place; then one process as fast as it can, until all is durable.\n"
             "governor: how soon training is gone when the charger is pulled, and how well it keeps budgets of time.",
    .run = run,
};
