#include "cli/cli.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct catalog {
    const struct cli *cli;
    const struct command *command;
    const char *public_key, *task;
    struct texts personas;
    attune_catalog_options options;
    const char *method, *rows; /* select */
    attune_status home; /* whose base is meant where none is given */
    const char *const *text; /* the verb and its arguments */
};

/* ---- what the verbs want ---- */

static int want(const struct catalog *c, const char *value, const char *option) {
    return value ? CLI_GO : cli_usage(c->command, "catalog %s wants %s", c->text[0], option);
}

/* --base, else that of the home. */
static int take_base(struct catalog *c) {
    attune_error err = {0};
    if (c->options.base) return CLI_GO;
    ATTUNE_INIT(c->home);
    if (attune_home_status(c->cli->home, &c->home, &err) != ATTUNE_OK) return cli_fail(&err);
    c->options.base = c->home.base_path;
    return CLI_GO;
}

static int take_maker(struct catalog *c) {
    int code = want(c, c->options.secret_key, "--secret-key FILE, to sign with (attune catalog key makes one)");
    if (code == CLI_GO) code = want(c, c->options.licence, "--licence TEXT, under which the entries may be used");
    if (code == CLI_GO) code = want(c, c->options.origin, "--origin TEXT: where the entries come from");
    return code;
}

/* "I/N" */
static int take_task(struct catalog *c) {
    char first[16];
    int64_t task, tasks;
    if (!c->task) return CLI_GO;
    const char *slash = strchr(c->task, '/');
    size_t n = slash ? (size_t)(slash - c->task) : 0;
    if (n > 0 && n < sizeof first) {
        memcpy(first, c->task, n);
        first[n] = 0;
        if (cli_parse_integer(slash + 1, 1, 1000000, &tasks) && cli_parse_integer(first, 1, tasks, &task)) {
            c->options.task = (int)task;
            c->options.tasks = (int)tasks;
            return CLI_GO;
        }
    }
    return cli_usage(c->command, "--task wants I/N, as in 3/12, not \"%.40s\"", c->task);
}

/* ---- the verbs ---- */

static int make_key(struct catalog *c) {
    attune_error err = {0};
    char key[ATTUNE_PUBLIC_KEY_SIZE];
    if (attune_catalog_key(c->text[1], key, &err) != ATTUNE_OK) return cli_fail(&err);
    if (c->cli->json) return cli_json(json_pack("{s:o, s:s}", "path", cli_json_text(c->text[1]), "public_key", key));
    cli_print("The secret key is in %s: keep it to yourself. The public one, also in %s.pub:\n%s\n", c->text[1],
              c->text[1], key);
    return CLI_DONE;
}

static void on_progress(const attune_progress *now, void *user) { cli_progress_draw(user, now); }

static int build(struct catalog *c) {
    attune_error err = {0};
    attune_catalog_built built;
    struct progress progress;
    ATTUNE_INIT(built);
    int code = take_task(c);
    if (code == CLI_GO && !c->task) code = take_maker(c);
    if (code == CLI_GO) code = want(c, c->personas.n ? "" : NULL, "--persona FILE.jsonl, once or more");
    if (code == CLI_GO) code = take_base(c);
    if (code != CLI_GO) return code;
    cli_progress_open(&progress);
    c->options.personas = c->personas.items;
    c->options.n_personas = c->personas.n;
    c->options.on_progress = on_progress;
    c->options.user = &progress;
    int result = attune_catalog_build(c->text[1], &c->options, &built, &err);
    cli_progress_clear(&progress);
    if (result != ATTUNE_OK) return cli_fail(&err);
    if (c->cli->json)
        return cli_json(json_pack("{s:I, s:I, s:o}", "trained", (json_int_t)built.trained, "found",
                                  (json_int_t)built.found, "entries",
                                  c->task ? json_null() : json_integer((json_int_t)built.entries)));
    cli_print("%s trained, %s were there already", cli_count(built.trained).text, cli_count(built.found).text);
    if (c->task) cli_print("; the index is written by a build without --task.\n");
    else cli_print("; the catalog has %s entries.\n", cli_count(built.entries).text);
    return CLI_DONE;
}

static int add(struct catalog *c) {
    attune_error err = {0};
    int code = take_maker(c);
    if (code == CLI_GO) code = take_base(c);
    if (code != CLI_GO) return code;
    if (attune_catalog_add(c->text[1], c->text[2], c->text[3], &c->options, &err) != ATTUNE_OK) return cli_fail(&err);
    if (c->cli->json) return cli_json(json_pack("{s:o}", "added", cli_json_text(c->text[2])));
    cli_print("%s is in the catalog.\n", c->text[2]);
    return CLI_DONE;
}

static int drop(struct catalog *c) {
    attune_error err = {0};
    int code = want(c, c->options.secret_key, "--secret-key FILE, to sign with");
    if (code != CLI_GO) return code;
    if (attune_catalog_remove(c->text[1], c->text[2], c->options.secret_key, &err) != ATTUNE_OK) return cli_fail(&err);
    if (c->cli->json) return cli_json(json_pack("{s:o}", "removed", cli_json_text(c->text[2])));
    cli_print("%s is no longer in the catalog.\n", c->text[2]);
    return CLI_DONE;
}

static json_t *info_json(const attune_catalog_info *info) {
    return json_pack("{s:s, s:I, s:I}", "base_sha256", info->base_sha256, "serial", (json_int_t)info->serial, "entries",
                     (json_int_t)info->entries);
}

static int verify(struct catalog *c) {
    attune_error err = {0};
    attune_catalog_info info;
    ATTUNE_INIT(info);
    int code = want(c, c->public_key, "--public-key KEY, the one that is trusted");
    if (code == CLI_GO) code = take_base(c);
    if (code != CLI_GO) return code;
    if (attune_catalog_verify(c->text[1], c->public_key, c->options.base, &info, &err) != ATTUNE_OK)
        return cli_fail(&err);
    if (c->cli->json) return cli_json(info_json(&info));
    cli_print("Signed by the key that is trusted; its %s adapters are whole and fit the base.\n",
              cli_count(info.entries).text);
    return CLI_DONE;
}

struct listing {
    json_t *entries; /* with --json */
    bool broken;
};

static int list_entry(const attune_catalog_entry *e, void *user) {
    struct listing *listing = user;
    if (!listing->entries) {
        cli_print("  %-20s  %6s  %8s  %-20s  %-16s  %s\n", e->name, cli_count(e->rows).text,
                  cli_bytes((double)e->bytes).text, cli_loss(e->loss_before, e->loss_after).text, e->licence, e->origin);
        return 0;
    }
    json_t *object = json_pack("{s:o, s:s, s:s, s:I, s:I, s:I, s:o, s:o, s:o, s:o, s:o}", "name",
                               cli_json_text(e->name), "file", e->file, "sha256", e->sha256, "bytes", (json_int_t)e->bytes, "rows", (json_int_t)e->rows,
                               "judged", (json_int_t)e->judged, "loss_before", cli_json_number(e->loss_before),
                               "loss_after", cli_json_number(e->loss_after), "loss_interval",
                               cli_json_number(e->loss_interval), "licence", cli_json_text(e->licence), "origin",
                               cli_json_text(e->origin));
    listing->broken = json_array_append_new(listing->entries, object) != 0;
    return listing->broken;
}

static int list(struct catalog *c) {
    attune_error err = {0};
    attune_catalog_info info;
    struct listing listing = {.entries = c->cli->json ? json_array() : NULL};
    ATTUNE_INIT(info);
    int code = want(c, c->public_key, "--public-key KEY, the one that is trusted");
    if (code == CLI_GO && attune_catalog_list(c->text[1], c->public_key, &info, list_entry, &listing, &err) != ATTUNE_OK)
        code = cli_fail(&err);
    if (code != CLI_GO || listing.broken) {
        json_decref(listing.entries);
        return listing.broken ? cli_json(NULL) : code;
    }
    if (!c->cli->json) {
        cli_print("%s entries for the base %.12s..., serial %s\n", cli_count(info.entries).text, info.base_sha256,
                  cli_count(info.serial).text);
        return CLI_DONE;
    }
    json_t *object = info_json(&info);
    json_object_set_new(object, "list", listing.entries);
    return cli_json(object);
}

/* ---- select ---- */

enum { MATCHES_SHOWN = 3 };
struct matches {
    json_t *list; /* with --json */
    attune_catalog_match best[MATCHES_SHOWN];
    char names[MATCHES_SHOWN][80], file[96]; /* file: of the best */
    int n;
    bool broken;
};

static int see_match(const attune_catalog_match *match, void *user) {
    struct matches *m = user;
    if (m->n == 0) snprintf(m->file, sizeof m->file, "%s", match->file);
    if (m->n < MATCHES_SHOWN) {
        m->best[m->n] = *match;
        snprintf(m->names[m->n++], sizeof m->names[0], "%s", match->name);
    }
    if (!m->list) return 0;
    json_t *object = json_pack("{s:o, s:o, s:o, s:s}", "name", cli_json_text(match->name), "gain",
                               cli_json_number(match->gain), "share", cli_json_number(match->share), "file", match->file);
    m->broken = json_array_append_new(m->list, object) != 0;
    return m->broken;
}

static int print_matches(const struct catalog *c, struct matches *m, const attune_catalog_selected *selected) {
    if (c->cli->json) {
        json_t *list = m->list;
        m->list = NULL;
        return cli_json(json_pack("{s:s, s:I, s:I, s:o}", "method", selected->method, "rows",
                                  (json_int_t)selected->rows, "judged", (json_int_t)selected->judged, "entries", list));
    }
    cli_print("resembles:");
    for (int i = 0; i < m->n && (i == 0 || m->best[i].share > 0.005); i++)
        cli_print("%s %s %.2f", i ? "," : "", m->names[i], m->best[i].share);
    cli_print("\n%s rows, by %s\n", cli_count(selected->rows).text, selected->method);
    if (m->best[0].gain > 0) cli_print("The adapter of %s is %s/%s\n", m->names[0], c->text[1], m->file);
    else cli_print("None of the entries is nearer to these rows than the base.\n");
    return CLI_DONE;
}

static int select_entry(struct catalog *c) {
    attune_error err = {0};
    attune_catalog_selected selected;
    attune_catalog_select_options options;
    struct matches matches = {.list = c->cli->json ? json_array() : NULL};
    ATTUNE_INIT(selected);
    ATTUNE_INIT(options);
    options.home = c->cli->home;
    options.key_file = c->cli->key_file;
    options.base = c->options.base;
    options.rows = c->rows;
    options.max_examples = c->options.max_examples;
    options.method = c->method;
    options.threads = c->options.threads;
    int code = want(c, c->public_key, "--public-key KEY, the one that is trusted");
    if (code == CLI_GO && attune_catalog_select(c->text[1], c->public_key, &options, see_match, &matches, &selected,
                                                &err) != ATTUNE_OK)
        code = cli_fail(&err);
    if (code == CLI_GO) code = matches.broken ? cli_json(NULL) : print_matches(c, &matches, &selected);
    json_decref(matches.list);
    return code;
}

enum { SECRET = 1, PUBLIC = 2, BASE = 4, ABOUT = 8, ROWS = 16, TRAINING = 32, SELECTING = 64 };
static const struct verb {
    const char *name;
    size_t n_arguments;
    const char *usage;
    unsigned options;
    int (*run)(struct catalog *c);
} verbs[] = {
    {"key", 1, "key FILE", 0, make_key},
    {"build", 1, "build DIR --persona FILE.jsonl... --secret-key FILE --licence TEXT --origin TEXT",
     SECRET | BASE | ABOUT | TRAINING, build},
    {"add", 3, "add DIR NAME ADAPTER --secret-key FILE --licence TEXT --origin TEXT", SECRET | BASE | ABOUT | ROWS, add},
    {"remove", 2, "remove DIR NAME --secret-key FILE", SECRET, drop},
    {"verify", 1, "verify DIR --public-key KEY", PUBLIC | BASE, verify},
    {"list", 1, "list DIR --public-key KEY", PUBLIC, list},
    {"select", 1, "select DIR --public-key KEY [--person FILE.jsonl] [--method loss|gradient|halving]",
     PUBLIC | BASE | SELECTING, select_entry},
};
enum { N_VERBS = sizeof verbs / sizeof verbs[0] };
static const struct {
    const char *name;
    unsigned of;
} option_verbs[] = {{"secret-key", SECRET}, {"public-key", PUBLIC}, {"base", BASE},         {"licence", ABOUT},
                    {"origin", ABOUT},      {"rows", ROWS},         {"persona", TRAINING},  {"task", TRAINING},
                    {"examples", TRAINING | SELECTING}, {"seed", TRAINING}, {"threads", TRAINING | SELECTING},
                    {"method", SELECTING},  {"person", SELECTING}};

static int find(const struct arguments *a, const struct verb **out) {
    const char *name = a->positional[0], *names[N_VERBS];
    for (size_t i = 0; i < N_VERBS; i++) {
        names[i] = verbs[i].name;
        if (strcmp(verbs[i].name, name) == 0) *out = &verbs[i];
    }
    if (!*out) {
        const char *near = cli_nearest(name, names, N_VERBS);
        if (near) return cli_usage(a->command, "catalog knows no \"%s\"; did you mean \"%s\"?", name, near);
        return cli_usage(a->command, "catalog knows no \"%s\": key, build, add, remove, verify, list or select", name);
    }
    if (a->n_positional - 1 != (*out)->n_arguments)
        return cli_usage(a->command, "the usage is: attune catalog %s", (*out)->usage);
    for (size_t i = 0; i < sizeof option_verbs / sizeof option_verbs[0]; i++)
        if (cli_given(a, option_verbs[i].name) && !((*out)->options & option_verbs[i].of))
            return cli_usage(a->command, "--%s is not for catalog %s", option_verbs[i].name, name);
    return CLI_GO;
}

static void take_options(struct arguments *a, struct catalog *c) {
    attune_catalog_options *o = &c->options;
    cli_option(a, option_path("base", "FILE", "the base model; default that of the home", &o->base));
    cli_option(a, option_path("secret-key", "FILE", "to sign with", &o->secret_key));
    cli_option(a, option_path("public-key", "KEY", "the key that is trusted: its line, or a file that holds it",
                              &c->public_key));
    cli_option(a, option_texts("persona", "FILE", "build: JSON Lines, for an entry of the file's name; may be repeated",
                               &c->personas));
    cli_option(a, option_text("licence", "TEXT", "of the entries that are added", &o->licence));
    cli_option(a, option_text("origin", "TEXT", "of the entries that are added: who made them, of what", &o->origin));
    cli_option(a, option_text("task", "I/N", "build: every N-th entry from the I-th on, and no index", &c->task));
    cli_option(a, option_integer("examples", "build: rows of each persona, at most; select: of the person, default 10", &o->max_examples, 1, COUNT_MAX));
    cli_option(a, option_unsigned("seed", "S", "build: of the trainings; default 1", &o->seed));
    cli_option(a, option_int("threads", "build, select: 0: all CPUs of this process (default)", &o->threads, 0, THREADS_MAX));
    cli_option(a, option_path("person", "FILE", "select: JSON Lines, in place of what the home has recorded", &c->rows));
    cli_option(a, option_choice("method", "loss|gradient|halving", "select: default loss", &c->method));
    cli_option(a, option_integer("rows", "add: that the adapter has learned", &o->rows, 0, COUNT_MAX));
}

static int run(struct cli *cli, int argc, char **argv) {
    struct catalog catalog = {.cli = cli, .command = &catalog_command};
    struct arguments a = {.command = &catalog_command, .positional_min = 1, .positional_max = 4};
    const struct verb *verb = NULL;
    ATTUNE_INIT(catalog.options);
    take_options(&a, &catalog);
    int code = cli_parse(cli, &a, argc, argv);
    if (code == CLI_GO) code = find(&a, &verb);
    if (code != CLI_GO) return code;
    catalog.text = a.positional;
    return verb->run(&catalog);
}

const struct command catalog_command = {
    .name = "catalog",
    .arguments = "key FILE | build DIR | add DIR NAME ADAPTER | remove DIR NAME | verify DIR | list DIR | select DIR [options]",
    .summary = "Catalogs of adapters to start from: make them, check them, find who resembles you.",
    .notes = "A catalog is a folder: adapters for one base, and an index that is signed. build leaves alone what is\n"
             "there already: after Ctrl-C or a kill, call it again. With --task, several machines that share the\n"
             "folder train entries at the same time; a build without it then writes the index.\n"
             "select tells which entries resemble a person, by the rows of theirs; nothing is changed.",
    .texts = true,
    .run = run,
};
