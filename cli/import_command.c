#include "cli/cli.h"

enum { BAD_SHOWN_MAX = 20 };

struct bad_lines {
    int64_t n;
};

static void on_bad_line(const attune_error *what, void *user) {
    struct bad_lines *bad = user;
    if (bad->n++ < BAD_SHOWN_MAX) cli_fail(what);
}

/* Rows that nothing may be learned from are easily made by accident. */
static void hint(attune_store *store) {
    attune_store_statistics statistics;
    ATTUNE_INIT(statistics);
    if (attune_store_statistics_get(store, &statistics, NULL) != ATTUNE_OK || statistics.consented > 0) return;
    cli_print("Nothing in this home may be trained on: `attune consent give --recorded` changes that.\n");
}

static int print_result(const struct cli *cli, attune_store *store, const attune_import_result *result) {
    if (cli->json)
        return cli_json(json_pack("{s:I, s:I, s:I, s:I, s:I}", "rows", (json_int_t)result->rows, "feedback",
                                  (json_int_t)result->feedback, "duplicates", (json_int_t)result->duplicates,
                                  "forgotten", (json_int_t)result->forgotten, "bad", (json_int_t)result->bad));
    cli_print("%s interactions recorded, with %s feedback.\n", cli_count(result->rows).text,
              cli_count(result->feedback).text);
    if (result->duplicates) cli_field("left out", "%s that were there already", cli_count(result->duplicates).text);
    if (result->forgotten)
        cli_field("left out", "%s that were forgotten once; --forgotten takes them", cli_count(result->forgotten).text);
    if (result->bad) cli_field("left out", "%s lines that are bad", cli_count(result->bad).text);
    if (result->rows > 0) hint(store);
    return CLI_DONE;
}

static int import(const struct cli *cli, const char *path, attune_import_options *options) {
    attune_error err = {0};
    attune_store *store = NULL;
    struct bad_lines bad = {0};
    attune_import_result result;
    ATTUNE_INIT(result);
    options->on_bad_line = on_bad_line;
    options->user = &bad;
    int code = cli_store_open(cli, &store);
    if (code != CLI_GO) return code;
    if (attune_store_import(store, path, options, &result, &err) != ATTUNE_OK) code = cli_fail(&err);
    else code = print_result(cli, store, &result);
    attune_store_close(store);
    if (bad.n > BAD_SHOWN_MAX) cli_note("attune: %s more lines are bad\n", cli_count(bad.n - BAD_SHOWN_MAX).text);
    if (code == CLI_DONE && result.bad > 0 && result.rows + result.duplicates + result.forgotten == 0)
        return cli_fail_text("every line is bad: nothing was imported");
    return code;
}

static int run(struct cli *cli, int argc, char **argv) {
    bool consent = false, keep_going = false, forgotten = false;
    attune_import_options options;
    ATTUNE_INIT(options);
    struct arguments a = {.command = &import_command, .positional_min = 1, .positional_max = 1};
    cli_option(&a, option_flag("consent", "these rows may be trained on", &consent));
    cli_option(&a, option_text("app", "NAME", "where they come from; default import", &options.app));
    cli_option(&a, option_flag("keep-going", "leave bad lines out, and import the others", &keep_going));
    cli_option(&a, option_flag("forgotten", "take rows that were forgotten once, too", &forgotten));
    int code = cli_parse(cli, &a, argc, argv);
    if (code != CLI_GO) return code;
    if (consent) options.consent = ATTUNE_CONSENT_GIVEN;
    options.keep_going = keep_going;
    options.forgotten = forgotten;
    return import(cli, a.positional[0], &options);
}

const struct command import_command = {
    .name = "import",
    .arguments = "FILE|- [options]",
    .summary = "Record many interactions from a JSON Lines file.",
    .notes = "A line is an object with prompt and response, or messages, or Context, Input and Response, and feedback\n"
             "if there is some; or a line of `attune export`. All lines or none: a bad one is named. --keep-going:\n"
             "the bad ones are named, left out and counted. Without --consent the home decides.",
    .texts = true,
    .run = run,
};
