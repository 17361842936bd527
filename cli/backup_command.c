#include "cli/cli.h"

/* ---- backup ---- */

static int run_backup(struct cli *cli, int argc, char **argv) {
    attune_error err = {0};
    struct arguments a = {.command = &backup_command, .positional_min = 1, .positional_max = 1};
    int code = cli_parse(cli, &a, argc, argv);
    if (code != CLI_GO) return code;
    const char *path = a.positional[0];
    char home[1024];
    if (attune_home_backup(cli->home, path, &err) != ATTUNE_OK) return cli_fail(&err);
    attune_home_path(cli->home, home, sizeof home);
    if (cli->json) return cli_json(json_pack("{s:o, s:o}", "home", cli_json_text(home), "path", cli_json_text(path)));
    cli_print("%s has a copy of the home, without the base. What is forgotten from now on stays in it.\n", path);
    return CLI_DONE;
}

const struct command backup_command = {
    .name = "backup",
    .arguments = "DIR",
    .summary = "Copy the home into a new folder, while it is in use.",
    .notes = "The store as of one moment, settings and adapters; not the base, caches, an unfinished run, nor the key\n"
             "of an encrypted home. It keeps what is forgotten later: delete old ones. `attune restore` makes a home\n"
             "of it.",
    .run = run_backup,
};

/* ---- restore ---- */

static int print_restored(const struct cli *cli, const attune_status *s) {
    if (cli->json)
        return cli_json(json_pack("{s:o, s:o, s:b, s:I, s:i}", "home", cli_json_text(s->home), "base_path",
                                  cli_json_text(s->base_path), "base_ok", s->base_ok, "interactions",
                                  (json_int_t)s->interactions, "active_adapter", s->active_adapter));
    cli_print("The home is back.\n\n");
    cli_field("home", "%s", s->home);
    cli_field("base", "%s%s", s->base_path, s->base_ok ? "" : ": missing or not the file it was");
    cli_field("recorded", "%s interactions", cli_count(s->interactions).text);
    if (s->active_adapter) cli_field("adapter", "%d of %d", s->active_adapter, s->n_adapters);
    return CLI_DONE;
}

static int run_restore(struct cli *cli, int argc, char **argv) {
    attune_error err = {0};
    attune_status status;
    const char *base = NULL;
    struct arguments a = {.command = &restore_command, .positional_min = 1, .positional_max = 1};
    ATTUNE_INIT(status);
    cli_option(&a, option_path("base", "FILE", "where the base model is now, if it has moved", &base));
    int code = cli_parse(cli, &a, argc, argv);
    if (code != CLI_GO) return code;
    if (attune_home_restore(a.positional[0], cli->home, base, &err) != ATTUNE_OK) return cli_fail(&err);
    if (attune_home_status(cli->home, &status, &err) != ATTUNE_OK) return cli_fail(&err);
    return print_restored(cli, &status);
}

const struct command restore_command = {
    .name = "restore",
    .arguments = "DIR [--base FILE]",
    .summary = "Make a home of a backup.",
    .notes = "The backup is verified first, and stays as it is. A home that is there already is refused: --home names\n"
             "a new one.",
    .run = run_restore,
};
