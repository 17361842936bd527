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
    json_t *limit = r->limit_base_gflops > 0 ? cli_json_number(r->limit_base_gflops) : json_null();
    return json_pack("{s:I, s:o, s:I, s:o, s:I, s:I, s:o, s:o, s:o, s:{s:s, s:o, s:o}, s:o}", "rows",
                     (json_int_t)r->rows, "rows_per_s", cli_json_number(r->rows_per_s), "supervised_tokens",
                     (json_int_t)r->supervised_tokens, "supervised_tokens_per_s",
                     cli_json_number(r->supervised_tokens_per_s), "steps", (json_int_t)r->steps, "dropped_steps",
                     (json_int_t)r->dropped_steps, "loss", cli_json_number(r->loss), "seconds_train",
                     cli_json_number(r->seconds_train), "limit_share",
                     r->limit_share > 0 ? cli_json_number(r->limit_share) : json_null(), "base", "arithmetic",
                     r->arithmetic, "share", cli_json_number(r->base_share), "limit_gflops", limit, "seconds_limits",
                     cli_json_number(r->seconds_limits));
}

static int print_json(const char *kind, const attune_bench_result *r) {
    json_t *object = result_json(kind, r);
    if (strcmp(kind, "train") == 0) {
        json_t *training = training_json(r);
        if (object && json_object_update(object, training) != 0) {
            json_decref(object);
            object = NULL;
        }
        json_decref(training);
    }
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
    if (strcmp(r->arithmetic, "f32") != 0) {
        if (r->limit_base_gflops > 0)
            cli_field("base", "%8.1f %% of it in %s, limit %.1f GOP/s", 100 * r->base_share, r->arithmetic,
                      r->limit_base_gflops);
        else cli_field("base", "%8.1f %% of it in %s", 100 * r->base_share, r->arithmetic);
    }
    if (r->limit_share > 0) cli_field("of the limit", "%8.0f %%", 100 * r->limit_share);
}

static void print_people(const char *kind, const attune_bench_result *r) {
    bool train = strcmp(kind, "train") == 0;
    cli_print("%s: %d %s, %s kernels\n\n", kind, r->threads, r->threads == 1 ? "thread" : "threads", r->kernels);
    if (r->tokens_per_s > 0) cli_field("speed", "%8.1f tokens/s", r->tokens_per_s);
    cli_field("time", "%8.3f s%s%s%s", r->seconds, r->tokens > 0 ? " for " : "",
              r->tokens > 0 ? cli_count(r->tokens).text : "", r->tokens > 0 ? " tokens" : "");
    cli_field("load", "%8.3f s", r->seconds_load);
    if (train) cli_field("arithmetic", "%8.1f GFLOP/s, f32 limit %.1f", r->gflops, r->limit_gflops);
    else print_share("arithmetic", "GFLOP/s", r->gflops, r->limit_gflops);
    if (train) print_training(r);
    else print_share("memory", "GB/s", r->gbytes_per_s, r->limit_gbytes_per_s);
    cli_field("peak memory", "%8.0f MiB", r->peak_rss_mib);
}

static int check_kind(const struct command *command, const char *kind) {
    static const char *const kinds[] = {"train", "decode", "prefill", "merge", "record"};
    enum { N = sizeof kinds / sizeof kinds[0] };
    for (size_t i = 0; i < N; i++)
        if (strcmp(kind, kinds[i]) == 0) return CLI_GO;
    const char *near = cli_nearest(kind, kinds, N);
    if (near) return cli_usage(command, "there is no bench \"%s\"; did you mean \"%s\"?", kind, near);
    return cli_usage(command, "there is no bench \"%s\": train, decode, prefill, merge or record", kind);
}

static int bench(const struct cli *cli, const char *kind, const char *base, const attune_bench_options *options) {
    attune_error err = {0};
    attune_status status;
    attune_bench_result result;
    ATTUNE_INIT(status);
    ATTUNE_INIT(result);
    if (!base) {
        if (attune_home_status(cli->home, &status, &err) != ATTUNE_OK) return cli_fail(&err);
        base = status.base_path;
    }
    if (attune_bench(base, kind, options, &result, &err) != ATTUNE_OK) return cli_fail(&err);
    if (cli->json) return print_json(kind, &result);
    print_people(kind, &result);
    return CLI_DONE;
}

/* Options that say nothing to this bench are refused, not ignored. */
static int check_options(const struct arguments *a, bool recording) {
    static const char *const of_model[] = {"base", "adapter", "merge", "threads", "tokens", "rank"};
    static const char *const of_record[] = {"dir", "rate", "alone"};
    static const char *const of_train[] = {"epochs", "memory", "precision", "out"};
    bool train = strcmp(a->positional[0], "train") == 0;
    for (size_t i = 0; recording && i < sizeof of_model / sizeof of_model[0]; i++)
        if (cli_given(a, of_model[i])) return cli_usage(a->command, "bench record has no option --%s", of_model[i]);
    for (size_t i = 0; !recording && i < sizeof of_record / sizeof of_record[0]; i++)
        if (cli_given(a, of_record[i])) return cli_usage(a->command, "--%s is for bench record", of_record[i]);
    for (size_t i = 0; !train && i < sizeof of_train / sizeof of_train[0]; i++)
        if (cli_given(a, of_train[i])) return cli_usage(a->command, "--%s is for bench train", of_train[i]);
    if (!train && !recording && cli_given(a, "rows"))
        return cli_usage(a->command, "--rows is for bench train and bench record");
    if (train && !cli_given(a, "rows") && (cli_given(a, "epochs") || cli_given(a, "out")))
        return cli_usage(a->command, "--epochs and --out go with --rows FILE");
    if (train && cli_given(a, "rows") && cli_given(a, "seconds"))
        return cli_usage(a->command, "with --rows, training ends with the rows: --seconds says nothing");
    return CLI_GO;
}

static int run(struct cli *cli, int argc, char **argv) {
    const char *base = NULL, *rows = NULL, *precision = NULL;
    bool alone = false, recording = false;
    attune_bench_options options;
    attune_bench_record_options record;
    ATTUNE_INIT(options);
    ATTUNE_INIT(record);
    struct arguments a = {.command = &bench_command, .positional_min = 1, .positional_max = 1};
    cli_option(&a, option_path("base", "FILE", "a base model (GGUF), in place of the home's", &base));
    cli_option(&a, option_path("adapter", "FILE", "an adapter file to run with", &options.adapter));
    cli_option(&a, option_choice("merge", "none|f16|q8|same", "how it joins the base", &options.merge));
    cli_option(&a, option_int("threads", "0: all CPUs of this process (default)", &options.threads, 0, THREADS_MAX));
    cli_option(&a, option_integer("tokens", "train: micro-batch; decode, prefill: how many", &options.tokens, 1,
                                  COUNT_MAX));
    cli_option(&a, option_number("seconds", "S", "to measure for; default 3", &options.seconds, 0.01, 3600));
    cli_option(&a, option_integer("rank", "of the adapter that train and merge make up", &options.rank, 1, 65536));
    cli_option(&a, option_path("rows", "FILE|N", "train: JSON Lines to learn from; record: of the run flat out",
                              &rows));
    cli_option(&a, option_integer("epochs", "train: over the rows; default 1", &options.epochs, 1, 1000));
    cli_option(&a, option_size("memory", "train: most resident memory", &options.memory_bytes));
    cli_option(&a, option_choice("precision", "auto|f32", "train: of products with the base; default auto",
                                 &precision));
    cli_option(&a, option_path("out", "FILE", "train: where the adapter learned from the rows is kept", &options.out));
    cli_bench_record_options(&a, &record, &alone);
    int code = cli_parse(cli, &a, argc, argv);
    if (code == CLI_GO) code = check_kind(a.command, a.positional[0]);
    if (code == CLI_GO) {
        recording = strcmp(a.positional[0], "record") == 0;
        code = check_options(&a, recording);
    }
    if (code == CLI_GO && recording && rows && !cli_parse_integer(rows, 1, RECORD_ROWS_MAX, &record.rows))
        code = cli_usage(a.command, "bench record wants --rows N, 1 to %d, not \"%.60s\"", RECORD_ROWS_MAX, rows);
    record.seconds = options.seconds;
    record.alone = alone;
    if (code == CLI_GO && recording) return cli_bench_record(cli, &record);
    options.rows = rows;
    if (precision && strcmp(precision, "f32") == 0) options.precision = ATTUNE_PRECISION_F32;
    if (code == CLI_GO) code = bench(cli, a.positional[0], base, &options);
    return code;
}

const struct command bench_command = {
    .name = "bench",
    .arguments = "train|decode|prefill|merge|record [options]",
    .summary = "How fast this machine trains, answers and records, beside what it could at most.",
    .notes = "The limits are measured in the same run with the same number of threads.\n"
             "train: random tokens; with --rows FILE, its rows in order, from loading to the saved adapter.\n"
             "record: what a call costs the app, with 1, 2 and 4 processes that record while another one reads;\n"
             "beside it an SQLite insert in its place; then one process as fast as it can, until all is durable.",
    .run = run,
};
