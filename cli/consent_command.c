#include "cli/cli.h"

#include <string.h>

struct consent {
    const struct cli *cli;
    struct selection selection;
    attune_filter filter;
    bool chosen; /* the filter counts: of rows */
    bool recorded, yes;
};

/* ---- looking ---- */

static int status_of(const struct cli *cli, attune_status *status) {
    attune_error err = {0};
    ATTUNE_INIT(*status);
    return attune_home_status(cli->home, status, &err) == ATTUNE_OK ? CLI_GO : cli_fail(&err);
}

static int show(const struct consent *c) {
    attune_status s;
    int code = status_of(c->cli, &s);
    if (code != CLI_GO) return code;
    if (c->cli->json)
        return cli_json(json_pack("{s:b, s:I, s:I}", "consent", s.consent, "interactions", (json_int_t)s.interactions,
                                  "consented", (json_int_t)s.consented));
    cli_field("from now on", "%s", s.consent ? "given: what is recorded may be trained on"
                                             : "not given: only what is recorded with --consent is trained on");
    cli_field("recorded", "%s of %s interactions with consent", cli_count(s.consented).text,
              cli_count(s.interactions).text);
    return CLI_DONE;
}

/* ---- giving and withdrawing ---- */

static int print_result(const struct consent *c, int given, const attune_forget_result *r) {
    attune_status s;
    int code = status_of(c->cli, &s);
    if (code != CLI_GO) return code;
    if (c->cli->json) {
        json_t *object = json_pack("{s:b, s:I, s:I, s:I}", "consent", s.consent, "interactions",
                                   (json_int_t)s.interactions, "consented", (json_int_t)s.consented, "changed",
                                   (json_int_t)r->interactions);
        if (!given) cli_revoked_json(object, r);
        return cli_json(object);
    }
    if (given) cli_print("What is recorded from now on may be trained on.\n");
    else if (!c->chosen) cli_print("What is recorded from now on is not trained on, unless it says so itself.\n");
    if (given && c->chosen)
        cli_print("%s interaction%s that had no consent got it.\n", cli_count(r->interactions).text,
                  r->interactions == 1 ? "" : "s");
    if (given && !c->chosen && s.consented < s.interactions)
        cli_print("What is recorded already keeps its answer: %s of %s without consent; --recorded gives it to them.\n",
                  cli_count(s.interactions - s.consented).text, cli_count(s.interactions).text);
    if (given) return CLI_DONE;
    cli_print("%s interaction%s lost consent.\n", cli_count(r->interactions).text, r->interactions == 1 ? "" : "s");
    if (r->interactions > 0) cli_revoked_print(r);
    return CLI_DONE;
}

static int give(const struct consent *c, attune_store *store, attune_forget_result *result, attune_error *err) {
    if (attune_store_consent(store, 1, NULL, NULL, err) != ATTUNE_OK) return cli_fail(err);
    if (c->chosen && attune_store_consent(store, 1, &c->filter, result, err) != ATTUNE_OK) return cli_fail(err);
    return print_result(c, 1, result);
}

/* Without a filter the home's answer changes even where nothing is recorded yet: only rows are asked about. */
static int withdraw(const struct consent *c, attune_store *store, attune_forget_result *result, attune_error *err) {
    int code = c->yes ? CLI_GO : cli_agree(c->cli, store, &c->filter, "Withdraw consent to learn from them?");
    if (code != CLI_GO && (code != CLI_DONE || c->chosen)) return code;
    if (attune_store_consent(store, 0, c->chosen ? &c->filter : NULL, result, err) != ATTUNE_OK) return cli_fail(err);
    return print_result(c, 0, result);
}

static int change(const struct consent *c, int given) {
    attune_error err = {0};
    attune_store *store = NULL;
    attune_forget_result result;
    ATTUNE_INIT(result);
    int code = cli_store_open(c->cli, &store);
    if (code == CLI_GO) code = given ? give(c, store, &result, &err) : withdraw(c, store, &result, &err);
    attune_store_close(store);
    return code;
}

/* ---- arguments ---- */

static int check(const struct command *command, const struct consent *c, const char *verb) {
    static const char *const verbs[] = {"give", "withdraw"};
    bool given = cli_selection_given(&c->selection);
    if (!verb && (given || c->recorded || c->yes))
        return cli_usage(command, "consent without an argument only shows: give or withdraw it?");
    if (!verb || strcmp(verb, "give") == 0) {
        if (given && c->recorded)
            return cli_usage(command, "--recorded is all that is there: it goes without other options that choose");
        return CLI_GO;
    }
    if (strcmp(verb, "withdraw") == 0) {
        if (c->recorded)
            return cli_usage(command, "--recorded is for consent give: withdraw alone is of all that is recorded");
        return cli_agree_possible(c->cli, command, c->yes);
    }
    const char *near = cli_nearest(verb, verbs, 2);
    if (near) return cli_usage(command, "consent knows no \"%s\"; did you mean \"%s\"?", verb, near);
    return cli_usage(command, "consent knows no \"%s\": give or withdraw", verb);
}

static int run(struct cli *cli, int argc, char **argv) {
    struct consent c = {.cli = cli};
    struct arguments a = {.command = &consent_command, .positional_max = 1};
    cli_selection_options(&a, &c.selection, SELECT_ID | SELECT_MATCH);
    cli_option(&a, option_flag("recorded", "give: to all that is recorded already, too", &c.recorded));
    cli_option(&a, option_flag("yes", "do not ask", &c.yes));
    int code = cli_parse(cli, &a, argc, argv);
    if (code != CLI_GO) return code;
    const char *verb = a.n_positional ? a.positional[0] : NULL;
    c.chosen = c.recorded || cli_selection_given(&c.selection);
    code = check(a.command, &c, verb);
    if (code == CLI_GO) code = cli_selection_take(a.command, &c.selection, &c.filter);
    if (code == CLI_GO) code = verb ? change(&c, strcmp(verb, "give") == 0) : show(&c);
    cli_selection_free(&c.selection);
    return code;
}

const struct command consent_command = {
    .name = "consent",
    .arguments = "[give | withdraw] [options]",
    .summary = "Whether what is recorded may be trained on: look, give, withdraw.",
    .notes = "give: for what is recorded from now on; with --recorded, or options that choose, for what is there.\n"
             "withdraw: from now on and for all that is there; with options that choose, for those only. Adapters\n"
             "that learned from them are revoked, as by `attune forget`, and like it withdraw asks first.",
    .texts = true,
    .run = run,
};
