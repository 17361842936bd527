#include "cli/cli.h"

#include <string.h>

static int print_json(const char *kind, const attune_bench_result *r) {
    return cli_json(json_pack("{s:s, s:o, s:o, s:o, s:I, s:o, s:{s:o, s:o}, s:o, s:o, s:s, s:i}", "bench", kind,
                              "tokens_per_s", cli_json_number(r->tokens_per_s), "seconds", cli_json_number(r->seconds),
                              "seconds_load", cli_json_number(r->seconds_load), "tokens", (json_int_t)r->tokens,
                              "peak_rss_mib", cli_json_number(r->peak_rss_mib), "limits", "gflops",
                              cli_json_number(r->limit_gflops), "gbytes_per_s", cli_json_number(r->limit_gbytes_per_s),
                              "gflops", cli_json_number(r->gflops), "gbytes_per_s", cli_json_number(r->gbytes_per_s),
                              "kernels", r->kernels, "threads", r->threads));
}

static void print_share(const char *name, const char *unit, double used, double limit) {
    if (limit > 0) cli_field(name, "%8.1f %s of %.1f (%.0f %%)", used, unit, limit, 100 * used / limit);
    else cli_field(name, "%8.1f %s", used, unit);
}

static void print_people(const char *kind, const attune_bench_result *r) {
    cli_print("%s: %d %s, %s kernels\n\n", kind, r->threads, r->threads == 1 ? "thread" : "threads", r->kernels);
    if (r->tokens_per_s > 0) cli_field("speed", "%8.1f tokens/s", r->tokens_per_s);
    cli_field("time", "%8.3f s%s%s%s", r->seconds, r->tokens > 0 ? " for " : "",
              r->tokens > 0 ? cli_count(r->tokens).text : "", r->tokens > 0 ? " tokens" : "");
    cli_field("load", "%8.3f s", r->seconds_load);
    print_share("arithmetic", "GFLOP/s", r->gflops, r->limit_gflops);
    print_share("memory", "GB/s", r->gbytes_per_s, r->limit_gbytes_per_s);
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
    static const char *const of_record[] = {"dir", "rate", "rows", "alone"};
    for (size_t i = 0; recording && i < sizeof of_model / sizeof of_model[0]; i++)
        if (cli_given(a, of_model[i])) return cli_usage(a->command, "bench record has no option --%s", of_model[i]);
    for (size_t i = 0; !recording && i < sizeof of_record / sizeof of_record[0]; i++)
        if (cli_given(a, of_record[i])) return cli_usage(a->command, "--%s is for bench record", of_record[i]);
    return CLI_GO;
}

static int run(struct cli *cli, int argc, char **argv) {
    const char *base = NULL;
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
    cli_bench_record_options(&a, &record, &alone);
    int code = cli_parse(cli, &a, argc, argv);
    if (code == CLI_GO) code = check_kind(a.command, a.positional[0]);
    if (code == CLI_GO) {
        recording = strcmp(a.positional[0], "record") == 0;
        code = check_options(&a, recording);
    }
    record.seconds = options.seconds;
    record.alone = alone;
    if (code == CLI_GO && recording) return cli_bench_record(cli, &record);
    if (code == CLI_GO) code = bench(cli, a.positional[0], base, &options);
    return code;
}

const struct command bench_command = {
    .name = "bench",
    .arguments = "train|decode|prefill|merge|record [options]",
    .summary = "How fast this machine trains, answers and records, beside what it could at most.",
    .notes = "The limits are measured in the same run with the same number of threads.\n"
             "record: what a call costs the app, with 1, 2 and 4 processes that record while another one reads;\n"
             "beside it an SQLite insert in its place; then one process as fast as it can, until all is durable.",
    .run = run,
};
