#include "cli/cli.h"

/* Rows that nothing may be learned from are easily made by accident. */
static void hint(attune_store *store) {
    attune_store_statistics statistics;
    ATTUNE_INIT(statistics);
    if (attune_store_statistics_get(store, &statistics, NULL) != ATTUNE_OK || statistics.consented > 0) return;
    cli_print("Nothing in this home may be trained on: consent is given with --consent, by init, record or import.\n");
}

static int print_result(const struct cli *cli, attune_store *store, const attune_import_result *result) {
    if (cli->json)
        return cli_json(json_pack("{s:I, s:I, s:I}", "rows", (json_int_t)result->rows, "feedback",
                                  (json_int_t)result->feedback, "duplicates", (json_int_t)result->duplicates));
    cli_print("%s interactions recorded, %s with feedback", cli_count(result->rows).text,
              cli_count(result->feedback).text);
    if (result->duplicates) cli_print("; %s that were there already left out", cli_count(result->duplicates).text);
    cli_print(".\n");
    if (result->rows > 0) hint(store);
    return CLI_DONE;
}

static int run(struct cli *cli, int argc, char **argv) {
    bool consent = false;
    attune_error err = {0};
    attune_import_options options;
    attune_import_result result;
    ATTUNE_INIT(options);
    ATTUNE_INIT(result);
    struct arguments a = {.command = &import_command, .positional_min = 1, .positional_max = 1};
    cli_option(&a, option_flag("consent", "these rows may be trained on", &consent));
    cli_option(&a, option_text("app", "NAME", "where they come from; default import", &options.app));
    int code = cli_parse(cli, &a, argc, argv);
    if (code != CLI_GO) return code;
    if (consent) options.consent = ATTUNE_CONSENT_GIVEN;
    attune_store *store = NULL;
    if (attune_store_open(cli->home, NULL, &store, &err) != ATTUNE_OK) return cli_fail(&err);
    if (attune_store_import(store, a.positional[0], &options, &result, &err) != ATTUNE_OK) code = cli_fail(&err);
    else code = print_result(cli, store, &result);
    attune_store_close(store);
    return code;
}

const struct command import_command = {
    .name = "import",
    .arguments = "FILE|- [--consent] [--app NAME]",
    .summary = "Record many interactions from a JSON Lines file.",
    .notes = "A line is an object with prompt and response, or messages, or Context, Input and Response, and feedback\n"
             "if there is some. All lines or none: a bad one is named. Without --consent the home decides.",
    .run = run,
};
