#include "cli/cli.h"

static int print_result(const struct cli *cli, const attune_status *status) {
    if (cli->json)
        return cli_json(json_pack("{s:o, s:o, s:o, s:s, s:b}", "home", cli_json_text(status->home), "base_path",
                                  cli_json_text(status->base_path), "base_name", cli_json_text(status->base_name),
                                  "base_sha256", status->base_sha256, "consent", status->consent));
    cli_print("A new home.\n\n");
    cli_field("home", "%s", status->home);
    cli_field("base", "%s (%s)", status->base_name, status->base_path);
    cli_field("consent", "%s", status->consent ? "given: what is recorded here may be trained on"
                                               : "not given: only what is recorded with --consent is trained on");
    cli_print("\nNext: attune record, or attune import FILE\n");
    return CLI_DONE;
}

static int run(struct cli *cli, int argc, char **argv) {
    const char *base = NULL;
    bool consent = false;
    struct arguments a = {.command = &init_command};
    cli_option(&a, option_path("base", "FILE", "the base model, a GGUF file; it is referred to, not copied", &base));
    cli_option(&a, option_flag("consent", "what is recorded in this home may be trained on", &consent));
    int code = cli_parse(cli, &a, argc, argv);
    if (code != CLI_GO) return code;
    if (!base) return cli_usage(a.command, "init wants --base FILE");
    attune_error err = {0};
    attune_home_options options;
    attune_status status;
    ATTUNE_INIT(options);
    ATTUNE_INIT(status);
    options.consent = consent;
    if (attune_home_init(cli->home, base, &options, &err) != ATTUNE_OK) return cli_fail(&err);
    if (attune_home_status(cli->home, &status, &err) != ATTUNE_OK) return cli_fail(&err);
    return print_result(cli, &status);
}

const struct command init_command = {
    .name = "init",
    .arguments = "--base FILE [--consent]",
    .summary = "Make a home around a base model.",
    .notes = "Without --consent nothing that is recorded is trained on, unless it is recorded with --consent itself.",
    .run = run,
};
