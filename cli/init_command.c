#include "cli/cli.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct init {
    const char *base, *device;
    bool consent, encrypt;
    char default_key[PATH_MAX];
};

/* ---- where the key goes: outside of the home, so that a copied home does not carry it ---- */

/* The last part of the home's path, as the key file is called. */
static int home_name(const char *home, char *out, size_t size) {
    char path[PATH_MAX], real[PATH_MAX];
    size_t n = attune_home_path(home, path, sizeof path);
    if (n == 0 || n >= sizeof path) return cli_fail_text("no home: give --home, or set ATTUNE_HOME or HOME");
    while (n > 1 && path[n - 1] == '/') path[--n] = '\0';
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    if ((strcmp(name, ".") == 0 || strcmp(name, "..") == 0) && realpath(path, real)) name = strrchr(real, '/') + 1;
    if (!*name || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return cli_fail_text("the key has no name of its own for the home %s: name its file with --key-file", path);
    if (strlen(name) >= size) return cli_fail_text("the name of the home is too long: %s", name);
    strcpy(out, name);
    return CLI_GO;
}

static int make_folder(const char *path) {
    if (mkdir(path, 0700) == 0 || errno == EEXIST) return CLI_GO;
    return cli_fail_text("cannot make the folder for the key: %s (%s)", strerror(errno), path);
}

/* $XDG_CONFIG_HOME/attune, made if it is missing; a relative or empty variable counts as unset (XDG Base Directory
 * Specification). */
static int key_folder(char *out, size_t size) {
    const char *config = getenv("XDG_CONFIG_HOME"), *user = getenv("HOME");
    bool is_config = config && config[0] == '/';
    if (!is_config && (!user || user[0] != '/'))
        return cli_fail_text("there is no place for the key: set XDG_CONFIG_HOME or HOME, or name a file with "
                             "--key-file");
    int n = snprintf(out, size, "%s%s", is_config ? config : user, is_config ? "" : "/.config");
    if (n < 0 || (size_t)n + sizeof "/attune" > size) return cli_fail_text("the path of the key's folder is too long");
    int code = make_folder(out);
    strcat(out, "/attune");
    return code == CLI_GO ? make_folder(out) : code;
}

/* A key that is there already may be another home's: who deletes it with this one would lose that one too. */
static int choose_key(struct cli *cli, struct init *init) {
    char folder[PATH_MAX], name[NAME_MAX + 1];
    struct stat st;
    if (!init->encrypt || cli->key_file) return CLI_GO;
    int code = home_name(cli->home, name, sizeof name);
    if (code == CLI_GO) code = key_folder(folder, sizeof folder);
    if (code != CLI_GO) return code;
    int n = snprintf(init->default_key, sizeof init->default_key, "%s/%s.key", folder, name);
    if (n < 0 || (size_t)n >= sizeof init->default_key) return cli_fail_text("the path of the key is too long");
    cli->key_file = init->default_key;
    if (lstat(init->default_key, &st) != 0) return CLI_GO;
    return cli_fail_text("a key is there already, perhaps another home's: give --key-file to use it for this home too, "
                         "or to name another file (%s)",
                         init->default_key);
}

/* Whether the file lies in the folder, links followed. */
static bool lies_in(const char *file, const char *folder) {
    char *f = realpath(file, NULL), *d = realpath(folder, NULL);
    size_t n = d ? strlen(d) : 0;
    bool is = f && d && strncmp(f, d, n) == 0 && (f[n] == '/' || n == 1);
    free(f);
    free(d);
    return is;
}

/* ---- the home ---- */

static int print_result(const struct cli *cli, const attune_status *status) {
    const char *key = cli->key_file;
    if (cli->json)
        return cli_json(json_pack("{s:o, s:o, s:o, s:s, s:b, s:b, s:o}", "home", cli_json_text(status->home),
                                  "base_path", cli_json_text(status->base_path), "base_name",
                                  cli_json_text(status->base_name), "base_sha256", status->base_sha256, "consent",
                                  status->consent, "encrypted", key != NULL, "key_file",
                                  key ? cli_json_text(key) : json_null()));
    cli_print("A new home.\n\n");
    cli_field("home", "%s", status->home);
    cli_field("base", "%s (%s)", status->base_name, status->base_path);
    cli_field("consent", "%s", status->consent ? "given: what is recorded here may be trained on"
                                               : "not given: only what is recorded with --consent is trained on");
    if (key) {
        cli_field("key", "%s", key);
        cli_print("\nThe texts are encrypted. Whoever loses the key loses them: keep a copy of it in another place,\n"
                  "and not beside a backup of the home.\n");
    }
    cli_print("\nNext: attune record, or attune import FILE\n");
    return CLI_DONE;
}

static int make_home(const struct cli *cli, const struct init *init) {
    attune_error err = {0};
    attune_home_options options;
    attune_status status;
    ATTUNE_INIT(options);
    ATTUNE_INIT(status);
    options.consent = init->consent;
    options.device = init->device;
    options.key_file = cli->key_file;
    if (attune_home_init(cli->home, init->base, &options, &err) != ATTUNE_OK) return cli_fail(&err);
    if (attune_home_status(cli->home, &status, &err) != ATTUNE_OK) return cli_fail(&err);
    if (cli->key_file && lies_in(cli->key_file, status.home))
        cli_note("attune: the key lies in the home: whoever copies the home has both\n");
    return print_result(cli, &status);
}

static int run(struct cli *cli, int argc, char **argv) {
    struct init init = {0};
    struct arguments a = {.command = &init_command};
    cli_option(&a, option_path("base", "FILE", "the base model, a GGUF file; it is referred to, not copied",
                               &init.base));
    cli_option(&a, option_flag("consent", "what is recorded in this home may be trained on", &init.consent));
    cli_option(&a, option_flag("encrypt", "the texts are kept encrypted", &init.encrypt));
    cli_option(&a, option_path("key-file", "FILE", "with this key; made if it is not there", &cli->key_file));
    cli_option(&a, option_choice("device", "laptop|phone|desktop", "whose defaults the settings of the nightly job "
                                                                   "begin with; default what this seems to be",
                                 &init.device));
    int code = cli_parse(cli, &a, argc, argv);
    if (code != CLI_GO) return code;
    if (!init.base) return cli_usage(a.command, "init wants --base FILE");
    if (cli->key_file && !init.encrypt) return cli_usage(a.command, "--key-file is for a home with --encrypt");
    code = choose_key(cli, &init);
    return code == CLI_GO ? make_home(cli, &init) : code;
}

const struct command init_command = {
    .name = "init",
    .arguments = "--base FILE [--consent] [--encrypt] [--key-file FILE] [--device KIND]",
    .summary = "Make a home around a base model.",
    .notes = "Without --consent nothing that is recorded is trained on, unless it is recorded with --consent itself.\n"
             "--encrypt without --key-file puts a new key into the folder attune in $XDG_CONFIG_HOME (~/.config),\n"
             "called after the home. The home remembers where it is. Without the key the texts are lost.",
    .run = run,
};
