#include "cli/cli.h"

#include <math.h>

static int print_result(const struct cli *cli, const attune_eval_result *result) {
    double perplexity = exp(result->nll);
    if (cli->json)
        return cli_json(json_pack("{s:o, s:I, s:I, s:o}", "nll", cli_json_number(result->nll), "tokens",
                                  (json_int_t)result->tokens, "examples", (json_int_t)result->examples, "perplexity",
                                  cli_json_number(perplexity)));
    cli_field("loss", "%.5f nats per supervised token", result->nll);
    cli_field("perplexity", "%.3f", perplexity);
    cli_field("measured on", "%s tokens of %s examples", cli_count(result->tokens).text,
              cli_count(result->examples).text);
    return CLI_DONE;
}

static int run(struct cli *cli, int argc, char **argv) {
    struct engine_arguments from = {0};
    attune_error err = {0};
    attune_eval_options options;
    attune_eval_result result;
    ATTUNE_INIT(options);
    ATTUNE_INIT(result);
    struct arguments a = {.command = &eval_command, .positional_min = 1, .positional_max = 1};
    cli_engine_options(&a, &from);
    cli_option(&a, option_integer("examples", "the first N only; default all", &options.max_examples, 1, COUNT_MAX));
    cli_option(&a, option_integer("max-tokens", "cut each text there; default as the settings say", &options.max_tokens,
                                  1, COUNT_MAX));
    int code = cli_parse(cli, &a, argc, argv);
    if (code != CLI_GO) return code;
    attune_engine *engine = NULL;
    code = cli_engine_open(cli, a.command, &from, &engine);
    if (code != CLI_GO) return code;
    if (attune_eval(engine, a.positional[0], &options, &result, &err) != ATTUNE_OK) code = cli_fail(&err);
    else code = print_result(cli, &result);
    attune_engine_close(engine);
    return code;
}

const struct command eval_command = {
    .name = "eval",
    .arguments = "FILE|- [options]",
    .summary = "Mean loss per supervised token over a JSON Lines file.",
    .notes = "The lines are as for `attune import`; nothing is recorded.",
    .run = run,
};
