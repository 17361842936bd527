#include "cli/cli.h"

#include <string.h>

static int format_of(const char *name) {
    if (name && strcmp(name, "chat") == 0) return ATTUNE_EXPORT_CHAT;
    return name && strcmp(name, "preference") == 0 ? ATTUNE_EXPORT_PREFERENCE : ATTUNE_EXPORT_ROWS;
}

static int print_result(const struct cli *cli, const char *path, const char *format, int64_t n) {
    if (strcmp(path, "-") == 0) return CLI_DONE; /* the lines are what stands there */
    if (cli->json)
        return cli_json(json_pack("{s:o, s:s, s:I}", "path", cli_json_text(path), "format", format, "lines",
                                  (json_int_t)n));
    cli_print("%s line%s in %s (%s). They are not encrypted.\n", cli_count(n).text, n == 1 ? "" : "s", path, format);
    return CLI_DONE;
}

static int export_rows(const struct cli *cli, const char *path, const char *format, const attune_filter *filter) {
    attune_error err = {0};
    attune_store *store = NULL;
    attune_export_options options;
    int64_t n = 0;
    ATTUNE_INIT(options);
    options.format = format_of(format);
    options.filter = filter;
    int code = cli_store_open(cli, &store);
    if (code != CLI_GO) return code;
    if (attune_store_export(store, path, &options, &n, &err) != ATTUNE_OK) code = cli_fail(&err);
    else code = print_result(cli, path, format ? format : "rows", n);
    attune_store_close(store);
    return code;
}

static int run(struct cli *cli, int argc, char **argv) {
    const char *format = NULL;
    struct selection selection = {0};
    attune_filter filter;
    struct arguments a = {.command = &export_command, .positional_min = 1, .positional_max = 1};
    cli_option(&a, option_choice("format", "rows|chat|preference", "what a line is; default rows", &format));
    cli_selection_options(&a, &selection, SELECT_MATCH);
    int code = cli_parse(cli, &a, argc, argv);
    if (code != CLI_GO) return code;
    bool chosen = cli_selection_given(&selection);
    if (chosen && format_of(format) != ATTUNE_EXPORT_ROWS)
        return cli_usage(a.command, "--format %s is of all examples: options that choose are for rows", format);
    if (cli->json && strcmp(a.positional[0], "-") == 0)
        return cli_usage(a.command, "standard output cannot have both the lines and the object of --json");
    code = cli_selection_take(a.command, &selection, &filter);
    if (code == CLI_GO) {
        filter.oldest_first = 1;
        code = export_rows(cli, a.positional[0], format, chosen ? &filter : NULL);
    }
    cli_selection_free(&selection);
    return code;
}

const struct command export_command = {
    .name = "export",
    .arguments = "FILE|- [options]",
    .summary = "What is kept, as JSON Lines.",
    .notes = "rows: everything of each interaction, oldest first; importing it again loses nothing. chat: examples\n"
             "that may be trained on, edits in place. preference: what was preferred to what. FILE must be new;\n"
             "only you can read it, and it is not encrypted. - is standard output.",
    .texts = true,
    .run = run,
};
