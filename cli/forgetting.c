/* What `forget` and `consent withdraw` have in common: showing, asking, and telling what was revoked. */
#include "cli/cli.h"

#include <string.h>
#include <unistd.h>

enum { SHOWN_MAX = 5 };

/* ---- may it be asked? ---- */

int cli_agree_possible(const struct cli *cli, const struct command *command, bool yes) {
    if (yes) return CLI_GO;
    if (cli->json) return cli_usage(command, "--json asks nothing: give --yes too");
    if (isatty(STDIN_FILENO) && isatty(STDOUT_FILENO)) return CLI_GO;
    return cli_fail_text("nothing was changed: there is no terminal to ask on; look with `attune history` at what it "
                         "would be, then give --yes");
}

/* ---- what it would be ---- */

static void show_row(const attune_row *row) {
    size_t columns = cli_columns(stdout), used = 2 + 16 + 2;
    cli_print("  %s  ", cli_time(row->time_ms).text);
    if (row->app && row->app[0]) {
        used += 2 + cli_put_line(row->app, 16);
        cli_print("  ");
    }
    cli_put_line(cli_row_prompt(row), columns > used ? columns - used : 0);
    cli_print("\n");
}

/* The first rows of the cursor. CLI_GO, or an error that was told. */
static int show_rows(attune_cursor *cursor, int64_t n) {
    attune_error err = {0};
    attune_row row;
    ATTUNE_INIT(row);
    for (int64_t i = 0; i < n && i < SHOWN_MAX; i++) {
        int code = attune_cursor_next(cursor, &row, &err);
        if (code == ATTUNE_DONE) break;
        if (code != ATTUNE_CONTINUE) return cli_fail(&err);
        show_row(&row);
    }
    if (n > SHOWN_MAX) cli_print("  and %s more\n", cli_count(n - SHOWN_MAX).text);
    return CLI_GO;
}

struct adapters {
    int active, usable;
};

static int on_adapter(const attune_adapter_info *info, void *user) {
    struct adapters *adapters = user;
    if (info->active) adapters->active = info->number;
    adapters->usable += strcmp(info->state, "revoked") != 0 && strcmp(info->state, "rejected") != 0;
    return 0;
}

static int show_adapters(const struct cli *cli) {
    attune_error err = {0};
    struct adapters adapters = {0};
    if (attune_adapter_list(cli->home, on_adapter, &adapters, &err) != ATTUNE_OK) return cli_fail(&err);
    if (adapters.usable == 0) return CLI_GO;
    cli_print("\nAdapters (%s now) that learned from any of these are revoked, with all that came of them.\n",
              cli_count(adapters.usable).text);
    if (adapters.active)
        cli_print("Adapter %d is active; if it is one of them, its nearest clean ancestor takes its place.\n",
                  adapters.active);
    return CLI_GO;
}

/* ---- the question ---- */

static bool ask(const char *question) {
    char answer[16] = "";
    cli_print("\n%s [y/N] ", question);
    fflush(stdout);
    clearerr(stdin); /* a text that came from this terminal has been ended with Ctrl-D */
    if (!fgets(answer, sizeof answer, stdin)) cli_print("\n");
    answer[strcspn(answer, "\r\n")] = '\0';
    return strcmp(answer, "y") == 0 || strcmp(answer, "Y") == 0 || strcmp(answer, "yes") == 0;
}

int cli_agree(const struct cli *cli, attune_store *store, const attune_filter *filter, const char *question) {
    attune_error err = {0};
    attune_cursor *cursor = NULL;
    if (attune_store_query(store, filter, &cursor, &err) != ATTUNE_OK) return cli_fail(&err);
    int64_t n = attune_cursor_count(cursor);
    int code = CLI_GO;
    if (n > 0) {
        cli_print("%s interaction%s:\n\n", cli_count(n).text, n == 1 ? "" : "s, the newest first");
        code = show_rows(cursor, n);
    }
    attune_cursor_close(cursor);
    if (n == 0) {
        cli_print("No interaction is meant by this: nothing was changed.\n");
        return CLI_DONE;
    }
    if (code == CLI_GO) code = show_adapters(cli);
    if (code == CLI_GO && !ask(question)) code = cli_fail_text("nothing was changed: the answer was not yes");
    return code;
}

/* ---- what came of it ---- */

static struct words adapter_name(int number) {
    struct words w;
    if (number == 0) snprintf(w.text, sizeof w.text, "the base");
    else snprintf(w.text, sizeof w.text, "adapter %d", number);
    return w;
}

void cli_revoked_print(const attune_forget_result *r) {
    if (r->adapters_revoked == 0) cli_print("No adapter had learned from them.\n");
    else
        cli_print("%d adapter%s revoked. Active before: %s, now: %s.\n", r->adapters_revoked,
                  r->adapters_revoked == 1 ? "" : "s", adapter_name(r->active_before).text,
                  adapter_name(r->active_after).text);
    if (r->scrub_pending)
        cli_print("Traces of them are left in the file until other programs have closed it: the next `attune train` or "
                  "`attune forget` goes on wiping.\n");
}

void cli_revoked_json(json_t *object, const attune_forget_result *r) {
    json_object_set_new(object, "adapters_revoked", json_integer(r->adapters_revoked));
    json_object_set_new(object, "active_before", json_integer(r->active_before));
    json_object_set_new(object, "active_after", json_integer(r->active_after));
    json_object_set_new(object, "scrub_pending", json_boolean(r->scrub_pending));
}
