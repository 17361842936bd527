#include "cli/cli.h"

struct findings {
    const struct cli *cli;
    json_t *array; /* with --json */
    int defects, warnings;
};

static const char *level_name(int level) {
    static const char *const names[] = {"fine", "warning", "defect"};
    return names[level < 0 ? 0 : level > 2 ? 2 : level];
}

static void on_finding(int level, const char *subject, const char *message, void *user) {
    static const enum style styles[] = {STYLE_GREEN, STYLE_YELLOW, STYLE_RED};
    struct findings *findings = user;
    findings->defects += level >= 2;
    findings->warnings += level == 1;
    if (findings->cli->json) {
        json_array_append_new(findings->array, json_pack("{s:s, s:o, s:o}", "level", level_name(level), "subject",
                                                         cli_json_text(subject), "message", cli_json_text(message)));
        return;
    }
    cli_style(stdout, styles[level < 0 ? 0 : level > 2 ? 2 : level]);
    cli_print("  %-8s", level_name(level));
    cli_style(stdout, STYLE_PLAIN);
    cli_print("  %-14s  %s\n", subject, message);
}

static int conclude(const struct findings *findings, int code, const attune_error *err) {
    if (code == ATTUNE_OK && findings->defects == 0) {
        if (!findings->cli->json) cli_print("\nNothing is broken%s.\n", findings->warnings ? "; see the warnings" : "");
        return CLI_DONE;
    }
    if (findings->defects == 0) return cli_fail(err);
    return cli_fail_text("%d %s found", findings->defects, findings->defects == 1 ? "defect" : "defects");
}

static int run(struct cli *cli, int argc, char **argv) {
    const char *base = NULL;
    struct arguments a = {.command = &doctor_command};
    cli_option(&a, option_path("base", "FILE", "check this base model, in place of a home", &base));
    int code = cli_parse(cli, &a, argc, argv);
    if (code != CLI_GO) return code;
    attune_error err = {0};
    struct findings findings = {.cli = cli, .array = cli->json ? json_array() : NULL};
    code = attune_home_check(cli->home, base, on_finding, &findings, &err);
    bool checked = code == ATTUNE_OK || findings.defects > 0;
    if (cli->json && checked) {
        int printed = cli_json(json_pack("{s:b, s:i, s:i, s:o}", "ok", findings.defects == 0, "defects",
                                         findings.defects, "warnings", findings.warnings, "findings", findings.array));
        findings.array = NULL;
        if (printed != CLI_DONE) return printed;
    }
    json_decref(findings.array);
    return conclude(&findings, code, &err);
}

const struct command doctor_command = {
    .name = "doctor",
    .arguments = "[--base FILE]",
    .summary = "Check base, store, adapters and sensors; tell what is wrong and how to mend it.",
    .notes = "Exit code 1 when there is a defect.",
    .run = run,
};
