#include "cli/night_summary.h"

#include <stdlib.h>
#include <string.h>

struct history {
    struct selection selection;
    int64_t limit; /* 0: all */
};

/* ---- for people ---- */

/* "edited", ...; what the person did, in one word. */
static const char *mark(const attune_feedback *f) {
    switch (f->kind) {
    case ATTUNE_FEEDBACK_THUMB: return f->value > 0 ? "thumb up" : "thumb down";
    case ATTUNE_FEEDBACK_EDIT: return "edited";
    case ATTUNE_FEEDBACK_ACCEPT: return "accepted";
    case ATTUNE_FEEDBACK_REJECT: return "rejected";
    case ATTUNE_FEEDBACK_REGENERATE: return "regenerated";
    case ATTUNE_FEEDBACK_COPY: return "copied";
    case ATTUNE_FEEDBACK_DWELL: return "looked at";
    case ATTUNE_FEEDBACK_UNDO: return "undone";
    default: return "unknown feedback";
    }
}

enum { MARKS_MAX = 6, PLACE_COLUMNS_MIN = 12 };

/* "mail/draft-17" */
static void print_place(const attune_row *row, size_t columns) {
    bool app = row->app && row->app[0], session = row->session && row->session[0];
    size_t used = 0;
    if (app || session) cli_print("  ");
    if (app) used = cli_put_line(row->app, session ? columns / 2 : columns);
    if (app && session) cli_print("/");
    if (session) cli_put_line(row->session, app ? columns - used - 1 : columns);
}

static void print_head(const attune_row *row) {
    size_t columns = cli_columns(stdout), fixed = 16 + 2 + 2 + strlen(row->id.text);
    cli_style(stdout, STYLE_BOLD);
    cli_print("%s", cli_time(row->time_ms).text);
    cli_style(stdout, STYLE_PLAIN);
    print_place(row, columns > fixed + PLACE_COLUMNS_MIN ? columns - fixed : PLACE_COLUMNS_MIN);
    cli_print("  %s\n", row->id.text);
}

static void print_marks(const attune_row *row) {
    if (row->n_feedback == 0) return;
    cli_print("  *");
    for (size_t i = 0; i < row->n_feedback && i < MARKS_MAX; i++)
        cli_print("%s %s", i ? "," : "", mark(&row->feedback[i]));
    if (row->n_feedback > MARKS_MAX) cli_print(" and %s more", cli_count((int64_t)row->n_feedback - MARKS_MAX).text);
    cli_print("\n");
}

static void print_short(const attune_row *row) {
    size_t columns = cli_columns(stdout) - 4;
    print_head(row);
    cli_print("  > ");
    cli_put_line(cli_row_prompt(row), columns);
    cli_print("\n  < ");
    cli_put_line(row->response, columns);
    cli_print("\n");
    print_marks(row);
}

static void print_label(const char *name, const char *text) {
    if (!text || !text[0]) return;
    cli_print("  %-14s  ", name);
    cli_put_line(text, SIZE_MAX);
    cli_print("\n");
}

static void print_said(const char *who, const char *text) {
    cli_print("\n  %s\n", who);
    cli_put_text(text, 4);
}

static void print_long(const attune_row *row) {
    print_head(row);
    print_label("source", row->source);
    print_label("model", row->model);
    print_label("adapter", row->adapter);
    cli_field("consent", "%s", row->consent ? "given" : "not given");
    if (row->tier != ATTUNE_TIER_PERSON && row->tier != ATTUNE_TIER_IMPORTED)
        cli_field("never learned", "pasted, fetched, or made by a tool");
    if (row->sensitivity == ATTUNE_SENSITIVITY_PRIVATE) cli_field("private", "kept out of training");
    if (row->sensitivity == ATTUNE_SENSITIVITY_CLEARED) cli_field("cleared", "let in, whatever is found in it");
    for (size_t i = 0; i < row->n_messages; i++) print_said(row->messages[i].role, row->messages[i].content);
    print_said("assistant", row->response);
    for (size_t i = 0; i < row->n_feedback; i++) {
        const attune_feedback *f = &row->feedback[i];
        cli_print("\n  * %s, %s", mark(f), cli_time(f->time_ms).text);
        if (f->kind == ATTUNE_FEEDBACK_DWELL) cli_print(", for %s", cli_duration((double)f->value / 1000).text);
        cli_print("\n");
        if (f->text) cli_put_text(f->text, 4);
    }
}

/* ---- both ---- */

/* One row is asked for more than is shown, to know whether there are more. */
static int print_rows(const struct cli *cli, const struct history *h, attune_cursor *cursor, int64_t *shown) {
    attune_error err = {0};
    attune_row row;
    ATTUNE_INIT(row);
    int code = ATTUNE_CONTINUE;
    while ((h->limit == 0 || *shown < h->limit) && (code = attune_cursor_next(cursor, &row, &err)) == ATTUNE_CONTINUE) {
        if (*shown > 0) cli_print(cli->json ? ", " : "\n");
        ++*shown;
        if (!cli->json && h->selection.ids.n == 0) print_short(&row);
        else if (!cli->json) print_long(&row);
        else if (cli_json_part(cli_row_json(&row)) != CLI_DONE) return CLI_FAILED;
        if (ferror(stdout)) return CLI_FAILED; /* told by main */
    }
    return code < 0 ? cli_fail(&err) : CLI_DONE;
}

static int print_history(const struct cli *cli, const struct history *h, attune_cursor *cursor) {
    int64_t shown = 0;
    if (cli->json) cli_print("{\"interactions\": [");
    int code = print_rows(cli, h, cursor, &shown);
    bool more = h->limit > 0 && attune_cursor_count(cursor) > h->limit;
    if (code != CLI_DONE) return code;
    if (cli->json) cli_print("], \"count\": %lld, \"more\": %s}\n", (long long)shown, more ? "true" : "false");
    else if (shown == 0) cli_print("Nothing is kept that this asks for.\n");
    else if (more) cli_print("\nThere are more: --limit N, or --all.\n");
    return code;
}

static int history(const struct cli *cli, const struct history *h, attune_filter *filter) {
    attune_error err = {0};
    attune_store *store = NULL;
    attune_cursor *cursor = NULL;
    filter->limit = h->limit ? h->limit + 1 : 0;
    int code = cli_store_open(cli, &store);
    if (code != CLI_GO) return code;
    if (attune_store_query(store, filter, &cursor, &err) != ATTUNE_OK) code = cli_fail(&err);
    else code = print_history(cli, h, cursor);
    attune_cursor_close(cursor);
    attune_store_close(store);
    return code;
}

/* Nights hold nothing of what was recorded: what chooses interactions says nothing about them. */
static int nights(const struct cli *cli, const struct arguments *a, const struct history *h) {
    const struct selection *s = &h->selection;
    if (a->n_positional || s->ids.n || s->app || s->session)
        return cli_usage(a->command, "--nights goes with --since, --until, --limit and --all alone");
    if (s->since && s->until && s->since >= s->until)
        return cli_usage(a->command, "nothing lies between: --since is not before --until");
    return cli_nights_history(cli, s->since, s->until, h->limit);
}

static int run(struct cli *cli, int argc, char **argv) {
    bool all = false, of_nights = false;
    attune_filter filter;
    struct history h = {.limit = 20};
    struct arguments a = {.command = &history_command, .positional_max = 1};
    cli_option(&a, option_integer("limit", "the newest so many; default 20", &h.limit, 1, COUNT_MAX));
    cli_option(&a, option_flag("all", "without a limit", &all));
    cli_option(&a, option_flag("nights", "what training did instead, night by night", &of_nights));
    cli_selection_options(&a, &h.selection, SELECT_ID);
    int code = cli_parse(cli, &a, argc, argv);
    if (code != CLI_GO) return code;
    if (all && cli_given(&a, "limit")) return cli_usage(a.command, "--all and --limit exclude each other");
    if (of_nights) {
        if (all) h.limit = 0;
        return nights(cli, &a, &h);
    }
    if (a.n_positional && cli_utf8_valid(a.positional[0], strlen(a.positional[0])) != strlen(a.positional[0]))
        return cli_usage(a.command, "the text is not UTF-8");
    if (a.n_positional) h.selection.match = a.positional[0];
    if (all || (h.selection.ids.n > 0 && !cli_given(&a, "limit"))) h.limit = 0;
    code = cli_selection_take(a.command, &h.selection, &filter);
    if (code == CLI_GO) code = history(cli, &h, &filter);
    cli_selection_free(&h.selection);
    return code;
}

const struct command history_command = {
    .name = "history",
    .arguments = "[QUERY|-] [options] | --nights [options]",
    .summary = "What is kept: the newest interactions, or those with certain words; or the nights.",
    .notes = "QUERY: all of these words, or \"quoted phrases\", in prompt, response or an edit, whatever their case\n"
             "and accents; wor* is the beginning of a word; - reads it from standard input. With --id whole\n"
             "conversations. > is what was asked, < what was answered, * what was made of it.",
    .texts = true,
    .run = run,
};
