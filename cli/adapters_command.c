#include "cli/cli.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- list ---- */

struct list {
    attune_adapter_info *items;
    size_t n, capacity;
    bool no_memory;
};

static int on_adapter(const attune_adapter_info *info, void *user) {
    struct list *list = user;
    if (list->n == list->capacity) {
        size_t capacity = list->capacity ? list->capacity * 2 : 16;
        attune_adapter_info *more = realloc(list->items, capacity * sizeof *more);
        if (!more) {
            list->no_memory = true;
            return 1;
        }
        list->items = more;
        list->capacity = capacity;
    }
    list->items[list->n++] = *info;
    return 0;
}

static json_t *info_json(const attune_adapter_info *i) {
    return json_pack("{s:i, s:i, s:b, s:o, s:s, s:s, s:o, s:I, s:I, s:i, s:o, s:o, s:o, s:o, s:o}", "number", i->number,
                     "parent", i->parent, "active", i->active, "state", cli_json_text(i->state), "sha256", i->sha256,
                     "run", i->run, "created_ms", cli_json_time(i->created_ms), "bytes", (json_int_t)i->bytes,
                     "examples", (json_int_t)i->examples, "rank", i->rank, "alpha", cli_json_number(i->alpha),
                     "loss_before", cli_json_number(i->loss_before), "loss_after", cli_json_number(i->loss_after),
                     "origin", cli_json_text(i->origin), "reason",
                     i->reason[0] ? cli_json_text(i->reason) : json_null());
}

static int print_list_json(const struct list *list) {
    int active = 0;
    json_t *array = json_array();
    for (size_t i = 0; i < list->n; i++) {
        if (list->items[i].active) active = list->items[i].number;
        json_array_append_new(array, info_json(&list->items[i]));
    }
    return cli_json(json_pack("{s:i, s:o}", "active", active, "adapters", array));
}

static struct words parent_name(int parent) {
    struct words w;
    if (parent == 0) snprintf(w.text, sizeof w.text, "base");
    else snprintf(w.text, sizeof w.text, "%d", parent);
    return w;
}

static void print_list(const struct list *list) {
    if (list->n == 0) {
        cli_print("No adapters yet: the base answers. `attune train` makes the first one.\n");
        return;
    }
    cli_print("  %6s  %-9s  %-8s  %6s  %8s  %-16s  %8s  %s\n", "number", "state", "origin", "parent", "examples",
              "created", "size", "held-out loss");
    for (size_t n = 0; n < list->n; n++) {
        const attune_adapter_info *i = &list->items[n];
        if (i->active) cli_style(stdout, STYLE_BOLD);
        cli_print("%c %6d  %-9s  %-8s  %6s  %8s  %-16s  %8s  %s", i->active ? '*' : ' ', i->number, i->state, i->origin,
                  parent_name(i->parent).text, cli_count(i->examples).text, cli_time(i->created_ms).text,
                  cli_bytes((double)i->bytes).text, cli_loss(i->loss_before, i->loss_after).text);
        if (i->active) cli_style(stdout, STYLE_PLAIN);
        cli_print("\n");
        if (i->reason[0]) cli_print("          %s\n", i->reason);
    }
}

/* ---- what merging costs ---- */

enum { DRIFTS_MAX = 8 }; /* more than there are modes */

struct drifts {
    attune_merge_drift items[DRIFTS_MAX];
    size_t n;
};

static int on_drift(const attune_merge_drift *drift, void *user) {
    struct drifts *drifts = user;
    drifts->items[drifts->n++] = *drift;
    return drifts->n == DRIFTS_MAX;
}

/* Share of what training gained that merging loses; NaN: it is not known what was gained. */
static double lost(const attune_merge_drift *d, const attune_adapter_info *info) {
    double gain = info->loss_before - info->loss_after;
    return gain > 0 ? (d->loss - d->loss_none) / gain : NAN;
}

/* Place in the order of speed: what reads as many bytes decodes as fast. */
static int speed_rank(const struct drifts *drifts, size_t i) {
    int rank = 1;
    for (size_t k = 1; k <= i; k++) rank += drifts->items[k].bytes != drifts->items[k - 1].bytes;
    return rank;
}

static json_t *drifts_json(const struct drifts *drifts, const attune_adapter_info *info) {
    json_t *array = json_array();
    for (size_t i = 0; i < drifts->n; i++) {
        const attune_merge_drift *d = &drifts->items[i];
        json_array_append_new(
            array, json_pack("{s:o, s:i, s:o, s:o, s:o, s:o, s:o, s:I, s:I, s:I, s:o}", "merge",
                             cli_json_text(d->merge), "speed", speed_rank(drifts, i), "kl", cli_json_number(d->kl),
                             "agreement", cli_json_number(d->agreement), "loss", cli_json_number(d->loss), "loss_none",
                             cli_json_number(d->loss_none), "lost", cli_json_number(lost(d, info)), "tokens",
                             (json_int_t)d->tokens, "rows", (json_int_t)d->rows, "bytes", (json_int_t)d->bytes,
                             "measured_ms", cli_json_time(d->measured_ms)));
    }
    return array;
}

static void print_drifts(const struct drifts *drifts, const attune_adapter_info *info) {
    if (drifts->n == 0) return;
    cli_print("\nWhat merging costs, over %s tokens of %s rows that judged it:\n",
              cli_count(drifts->items[0].tokens).text, cli_count(drifts->items[0].rows).text);
    cli_print("  %-10s  %5s  %8s  %9s  %9s  %8s  %8s\n", "merge", "speed", "size", "KL (nats)", "agreement", "loss",
              "gain lost");
    for (size_t i = 0; i < drifts->n; i++) {
        const attune_merge_drift *d = &drifts->items[i];
        struct words share = {"-"};
        double part = lost(d, info);
        if (isfinite(part)) snprintf(share.text, sizeof share.text, "%.1f %%", 100 * part);
        cli_print("  %-10s  %5d  %8s  %9.6f  %7.2f %%  %8.4f  %8s\n", d->merge, speed_rank(drifts, i),
                  cli_bytes((double)d->bytes).text, d->kl, 100 * d->agreement, d->loss, share.text);
    }
}

/* ---- the verbs: text[0] is the verb, the others its arguments ---- */

struct adapters {
    const struct cli *cli;
    const struct command *command;
    const char *format;
    const char *const *text;
};

static int list_adapters(const struct adapters *a) {
    attune_error err = {0};
    struct list list = {0};
    int code = attune_adapter_list(a->cli->home, on_adapter, &list, &err);
    int result = CLI_DONE;
    if (list.no_memory) result = cli_fail_text("out of memory listing the adapters");
    else if (code != ATTUNE_OK) result = cli_fail(&err);
    else if (a->cli->json) result = print_list_json(&list);
    else print_list(&list);
    free(list.items);
    return result;
}

static int take_number(const struct adapters *a, bool base, int *number) {
    int64_t value;
    const char *text = a->text[1];
    if (base && strcmp(text, "base") == 0) value = 0;
    else if (!cli_parse_integer(text, base ? 0 : 1, INT32_MAX, &value))
        return cli_usage(a->command, "adapters %s wants %s, not \"%.60s\"", a->text[0],
                         base ? "a number of the list, or base" : "a number of the list", text);
    *number = (int)value;
    return CLI_GO;
}

static int show(const struct adapters *a) {
    int number = 0;
    attune_error err = {0};
    attune_adapter_info info;
    struct drifts drifts = {.n = 0};
    struct criteria_seen criteria = {.n = 0};
    ATTUNE_INIT(info);
    int code = take_number(a, false, &number);
    if (code != CLI_GO) return code;
    if (attune_adapter_get(a->cli->home, number, &info, &err) != ATTUNE_OK ||
        attune_adapter_drift(a->cli->home, number, on_drift, &drifts, &err) != ATTUNE_OK ||
        attune_adapter_criteria(a->cli->home, number, cli_note_criterion, &criteria, &err) != ATTUNE_OK)
        return cli_fail(&err);
    if (a->cli->json) {
        json_t *object = info_json(&info);
        json_object_set_new(object, "criteria", cli_criteria_json(&criteria));
        json_object_set_new(object, "drift", drifts_json(&drifts, &info));
        return cli_json(object);
    }
    cli_field("number", "%d", info.number);
    cli_field("state", "%s", info.state);
    if (info.reason[0]) cli_field("why", "%s", info.reason);
    cli_field("origin", "%s", info.origin);
    cli_field("parent", "%s", parent_name(info.parent).text);
    cli_field("created", "%s", cli_time(info.created_ms).text);
    cli_field("examples", "%s", cli_count(info.examples).text);
    cli_field("held-out loss", "%s", cli_loss(info.loss_before, info.loss_after).text);
    cli_field("rank, alpha", "%d, %g", info.rank, info.alpha);
    cli_field("size", "%s", cli_bytes((double)info.bytes).text);
    cli_field("sha256", "%s", info.sha256);
    if (info.run[0]) cli_field("run", "%s", info.run);
    cli_criteria_print(&criteria);
    print_drifts(&drifts, &info);
    return CLI_DONE;
}

static int print_active(const struct adapters *a, int number) {
    if (a->cli->json) return cli_json(json_pack("{s:i}", "active", number));
    if (number == 0) cli_print("The base is active, without an adapter.\n");
    else cli_print("Adapter %d is active.\n", number);
    return CLI_DONE;
}

static int use(const struct adapters *a) {
    int number = 0;
    attune_error err = {0};
    int code = take_number(a, true, &number);
    if (code != CLI_GO) return code;
    if (attune_adapter_use(a->cli->home, number, &err) != ATTUNE_OK) return cli_fail(&err);
    return print_active(a, number);
}

static int rollback(const struct adapters *a) {
    int number = 0;
    attune_error err = {0};
    if (attune_adapter_rollback(a->cli->home, &number, &err) != ATTUNE_OK) return cli_fail(&err);
    return print_active(a, number);
}

static int export_adapter(const struct adapters *a) {
    int number = 0;
    attune_error err = {0};
    int code = take_number(a, false, &number);
    if (code != CLI_GO) return code;
    const char *format = a->format ? a->format : "gguf", *path = a->text[2];
    if (attune_adapter_export(a->cli->home, number, format, path, &err) != ATTUNE_OK) return cli_fail(&err);
    if (a->cli->json)
        return cli_json(json_pack("{s:i, s:s, s:o}", "number", number, "format", format, "path", cli_json_text(path)));
    cli_print("Adapter %d is in %s (%s).\n", number, path, format);
    return CLI_DONE;
}

static int import_adapter(const struct adapters *a) {
    int number = 0;
    attune_error err = {0};
    if (attune_adapter_import(a->cli->home, a->text[1], &number, &err) != ATTUNE_OK) return cli_fail(&err);
    if (a->cli->json) return cli_json(json_pack("{s:i}", "number", number));
    cli_print("Adapter %d is imported; `attune adapters use %d` makes it the active one.\n", number, number);
    return CLI_DONE;
}

static const struct verb {
    const char *name;
    size_t n_arguments;
    const char *usage;
    int (*run)(const struct adapters *a);
} verbs[] = {
    {"list", 0, "list", list_adapters},
    {"show", 1, "show N", show},
    {"use", 1, "use N|base", use},
    {"rollback", 0, "rollback", rollback},
    {"export", 2, "export N PATH [--format gguf|peft]", export_adapter},
    {"import", 1, "import PATH", import_adapter},
};
enum { N_VERBS = sizeof verbs / sizeof verbs[0] };

static int find(const struct command *command, const char *name, const struct verb **out) {
    const char *names[N_VERBS];
    for (size_t i = 0; i < N_VERBS; i++) {
        names[i] = verbs[i].name;
        if (strcmp(verbs[i].name, name) == 0) {
            *out = &verbs[i];
            return CLI_GO;
        }
    }
    const char *near = cli_nearest(name, names, N_VERBS);
    if (near) return cli_usage(command, "adapters knows no \"%s\"; did you mean \"%s\"?", name, near);
    return cli_usage(command, "adapters knows no \"%s\": list, show, use, rollback, export or import", name);
}

static int run(struct cli *cli, int argc, char **argv) {
    static const char *const list_only[] = {"list"};
    struct adapters adapters = {.cli = cli, .command = &adapters_command};
    struct arguments a = {.command = &adapters_command, .positional_max = 3};
    cli_option(&a, option_choice("format", "gguf|peft", "of the export: a GGUF file (default) or a PEFT folder",
                                 &adapters.format));
    int code = cli_parse(cli, &a, argc, argv);
    if (code != CLI_GO) return code;
    adapters.text = a.n_positional ? a.positional : list_only;
    const struct verb *verb = NULL;
    code = find(a.command, adapters.text[0], &verb);
    if (code != CLI_GO) return code;
    if (a.n_positional > 0 && a.n_positional - 1 != verb->n_arguments)
        return cli_usage(a.command, "the usage is: attune adapters %s", verb->usage);
    if (adapters.format && verb->run != export_adapter) return cli_usage(a.command, "--format is for adapters export");
    return verb->run(&adapters);
}

const struct command adapters_command = {
    .name = "adapters",
    .arguments = "[list | show N | use N|base | rollback | export N PATH | import PATH] [options]",
    .summary = "The versions that training made: look at them, choose, move them.",
    .notes = "rollback makes the active adapter's parent the active one. An imported adapter (a GGUF LoRA file or a\n"
             "PEFT folder, made for this home's base) is not active until `attune adapters use N`.",
    .run = run,
};
