#include "cli/cli.h"

#include <math.h>

/* Row by row, where that is asked for. */
struct listing {
    const struct cli *cli;
    json_t *rows; /* with --json */
    bool broken;  /* no memory for one of them */
};

static void list_row(const attune_eval_row *row, void *user) {
    struct listing *listing = user;
    if (!listing->cli->json) {
        printf("%8lld  %9.5f nats a token, %s tokens\n", (long long)row->row, row->nll, cli_count(row->tokens).text);
        return;
    }
    json_t *object = json_pack("{s:I, s:o, s:I}", "row", (json_int_t)row->row, "nll", cli_json_number(row->nll),
                               "tokens", (json_int_t)row->tokens);
    if (json_array_append_new(listing->rows, object) != 0) listing->broken = true;
}

/* Uses up rows, which may be NULL. */
static int print_result(const struct cli *cli, const attune_eval_result *result, json_t *rows) {
    double perplexity = exp(result->nll);
    if (cli->json)
        return cli_json(json_pack("{s:o, s:I, s:I, s:o, s:o*}", "nll", cli_json_number(result->nll), "tokens",
                                  (json_int_t)result->tokens, "examples", (json_int_t)result->examples, "perplexity",
                                  cli_json_number(perplexity), "rows", rows));
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
    bool rows = false;
    struct listing listing = {.cli = cli};
    ATTUNE_INIT(options);
    ATTUNE_INIT(result);
    struct arguments a = {.command = &eval_command, .positional_min = 1, .positional_max = 1};
    cli_engine_options(&a, &from);
    cli_option(&a, option_integer("examples", "the first N only; default all", &options.max_examples, 1, COUNT_MAX));
    cli_option(&a, option_integer("max-tokens", "cut each text there; default as the settings say", &options.max_tokens,
                                  1, COUNT_MAX));
    cli_option(&a, option_flag("rows", "the loss of each row too", &rows));
    int code = cli_parse(cli, &a, argc, argv);
    if (code != CLI_GO) return code;
    attune_engine *engine = NULL;
    code = cli_engine_open(cli, a.command, &from, &engine);
    if (code != CLI_GO) return code;
    if (rows) {
        options.on_row = list_row;
        options.user = &listing;
        if (cli->json) listing.rows = json_array();
    }
    if (attune_eval(engine, a.positional[0], &options, &result, &err) != ATTUNE_OK) {
        json_decref(listing.rows);
        code = cli_fail(&err);
    } else if (listing.broken) {
        json_decref(listing.rows);
        code = cli_json(NULL);
    } else {
        code = print_result(cli, &result, listing.rows);
    }
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
