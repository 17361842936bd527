#include "cli/cli.h"

static int print_result(const struct cli *cli, const attune_forget_result *r) {
    if (cli->json) {
        json_t *object = json_pack("{s:I, s:I, s:I}", "interactions", (json_int_t)r->interactions, "feedback",
                                   (json_int_t)r->feedback, "examples", (json_int_t)r->examples);
        cli_revoked_json(object, r);
        return cli_json(object);
    }
    if (r->interactions == 0) {
        cli_print("No interaction is meant by this: nothing was deleted.\n");
        return CLI_DONE;
    }
    cli_print("%s interaction%s deleted, with %s feedback and %s example%s.\n", cli_count(r->interactions).text,
              r->interactions == 1 ? "" : "s", cli_count(r->feedback).text, cli_count(r->examples).text,
              r->examples == 1 ? "" : "s");
    cli_revoked_print(r);
    return CLI_DONE;
}

static int forget(const struct cli *cli, const attune_filter *filter, bool yes) {
    attune_error err = {0};
    attune_store *store = NULL;
    attune_forget_result result;
    ATTUNE_INIT(result);
    int code = cli_store_open(cli, &store);
    if (code == CLI_GO && !yes) code = cli_agree(cli, store, filter, "Delete them for good?");
    if (code == CLI_GO)
        code = attune_store_forget(store, filter, &result, &err) == ATTUNE_OK ? print_result(cli, &result)
                                                                              : cli_fail(&err);
    attune_store_close(store);
    return code;
}

static int run(struct cli *cli, int argc, char **argv) {
    bool all = false, yes = false;
    struct selection selection = {0};
    attune_filter filter;
    struct arguments a = {.command = &forget_command};
    cli_selection_options(&a, &selection, SELECT_ID | SELECT_MATCH);
    cli_option(&a, option_flag("all", "everything that was ever recorded", &all));
    cli_option(&a, option_flag("yes", "do not ask", &yes));
    int code = cli_parse(cli, &a, argc, argv);
    if (code != CLI_GO) return code;
    if (!all && !cli_selection_given(&selection))
        return cli_usage(a.command, "forget what? --id, --since, --until, --app, --session, --match, or --all");
    if (all && cli_selection_given(&selection))
        return cli_usage(a.command, "--all is everything: it goes without other options that choose");
    code = cli_agree_possible(cli, a.command, yes);
    if (code == CLI_GO) code = cli_selection_take(a.command, &selection, &filter);
    if (code == CLI_GO) code = forget(cli, &filter, yes);
    cli_selection_free(&selection);
    return code;
}

const struct command forget_command = {
    .name = "forget",
    .arguments = "[--id ID] [--since WHEN] [--until WHEN] [--app NAME] [--session NAME] [--match TEXT|-] | --all",
    .summary = "Delete interactions for good, and revoke what learned from them.",
    .notes = "What every option allows is deleted: interactions, their feedback and examples. It cannot be undone.\n"
             "Adapters that learned from them are revoked at once, with all that came of those; the nearest clean\n"
             "ancestor, or the base, becomes active. On a terminal it shows what it would be and asks; elsewhere, and\n"
             "with --json, it wants --yes. Backups and exported files are not reached.",
    .texts = true,
    .run = run,
};
