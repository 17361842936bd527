#include "cli/cli.h"

#include "cli/notices.h"

#include <math.h>
#include <signal.h>
#include <string.h>

/* What a signal stops; set before the handler is installed, cleared after it is gone. */
static attune_nightly *volatile stopping;

static void on_signal(int number) {
    (void)number;
    attune_nightly_cancel(stopping);
}

/* The handler removes itself: a second signal ends the process at once, and what is on disk goes on later. */
static void catch_signals(attune_nightly *nightly) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND | SA_RESTART};
    sigemptyset(&action.sa_mask);
    stopping = nightly;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

static void release_signals(void) {
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    stopping = NULL;
}

struct watch {
    struct progress progress;
    struct notices notices;
};

static void on_progress(const attune_progress *now, void *user) {
    struct watch *watch = user;
    notices_alive(&watch->notices);
    if (now->total > 0)
        notices_status(&watch->notices, "%s, %d %%", now->phase, (int)(100 * now->done / now->total));
    cli_progress_draw(&watch->progress, now);
}

/* ---- what it came to ---- */

/* Milliseconds would pretend; a wait of days is no help. */
static struct words wait_words(double seconds) {
    if (isfinite(seconds) && seconds > 0) return cli_duration(ceil(seconds));
    return (struct words){.text = ""};
}

static json_t *run_json(const attune_job_report *r) {
    return json_pack("{s:b, s:b, s:i, s:o, s:o, s:o, s:o, s:I, s:I, s:I, s:o, s:o, s:o, s:o, s:I}", "published",
                     r->published, "finished", r->finished, "adapter", r->adapter, "state", cli_json_text(r->state),
                     "reason", cli_json_text(r->reason), "loss_before", cli_json_number(r->loss_before), "loss_after",
                     cli_json_number(r->loss_after), "steps", (json_int_t)r->steps, "steps_done",
                     (json_int_t)r->steps_done, "tokens", (json_int_t)r->tokens, "seconds",
                     cli_json_number(r->seconds), "joules_measured", cli_json_number(r->joules_measured),
                     "joules_battery", cli_json_number(r->joules_battery), "joules_modelled",
                     cli_json_number(r->joules_modelled), "written_bytes", (json_int_t)r->written_bytes);
}

static int print_json(const attune_nightly_report *r) {
    bool worked = r->last.steps > 0 || r->last.tokens > 0;
    return cli_json(json_pack("{s:o, s:o, s:i, s:i, s:i, s:o, s:o}", "state", cli_json_text(r->state), "reason",
                              cli_json_text(r->reason), "runs", r->runs, "published", r->published, "pauses",
                              r->pauses, "wait_s", cli_json_number(r->wait_s), "last",
                              worked ? run_json(&r->last) : json_null()));
}

static void print_people(const attune_nightly_report *r) {
    const attune_job_report *last = &r->last;
    if (r->published > 0) cli_print("Adapter %d is published and active.\n", last->adapter);
    else if (strcmp(r->state, "done") == 0) cli_print("Done: %s.\n", r->reason);
    else if (strcmp(r->state, "waiting") == 0) cli_print("Not now: %s.\n", r->reason);
    else cli_print("Not finished: %s.\n", r->reason);
    if (last->steps > 0) {
        cli_print("\n");
        if (last->finished && last->loss_after > 0)
            cli_field("held-out loss", "%s", cli_loss(last->loss_before, last->loss_after).text);
        cli_field("steps", "%s of %s", cli_count(last->steps_done).text, cli_count(last->steps).text);
        cli_field("time", "%s", cli_duration(last->seconds).text);
        double joules = last->joules_measured + last->joules_battery + last->joules_modelled;
        if (joules > 0) cli_field("energy", "%.0f J", joules);
        if (r->pauses > 0) cli_field("pauses", "%d", r->pauses);
    }
    if (wait_words(r->wait_s).text[0]) cli_field("worth a call", "in %s", wait_words(r->wait_s).text);
}

static int conclude(const struct cli *cli, int step, const attune_nightly_report *report) {
    if (!cli->json) print_people(report);
    else if (print_json(report) != CLI_DONE) return CLI_FAILED;
    return step == ATTUNE_DONE ? CLI_DONE : CLI_UNFINISHED;
}

/* ---- the night ---- */

/* Another call is at it: as well as not now, for whoever calls by the clock. */
static int fail_open(const struct cli *cli, const attune_error *err) {
    attune_nightly_report report;
    if (err->code != ATTUNE_ERROR_BUSY) return cli_fail(err);
    ATTUNE_INIT(report);
    report.wait_s = NAN;
    snprintf(report.state, sizeof report.state, "waiting");
    snprintf(report.reason, sizeof report.reason, "%.200s", err->message);
    return conclude(cli, ATTUNE_PAUSED, &report);
}

static int work(const struct cli *cli, attune_nightly_options *options) {
    attune_error err = {0};
    attune_nightly *nightly = NULL;
    attune_nightly_report report;
    struct watch watch;
    int step, code = CLI_FAILED;
    notices_open(&watch.notices);
    cli_progress_open(&watch.progress);
    options->on_progress = on_progress;
    options->user = &watch;
    ATTUNE_INIT(report);
    if (attune_nightly_open(cli->home, options, &nightly, &err) != ATTUNE_OK) return fail_open(cli, &err);
    catch_signals(nightly);
    notices_ready();
    do {
        step = attune_nightly_step(nightly, &err);
        notices_alive(&watch.notices);
        if (step == ATTUNE_CONTINUE && attune_nightly_report_get(nightly, &report, NULL) == ATTUNE_OK &&
            strcmp(report.state, "waiting") == 0 && report.reason[0])
            notices_status(&watch.notices, "waits: %s", report.reason);
    } while (step == ATTUNE_CONTINUE);
    notices_stopping();
    release_signals();
    cli_progress_clear(&watch.progress);
    if (step < 0 || attune_nightly_report_get(nightly, &report, &err) != ATTUNE_OK) cli_fail(&err);
    else code = conclude(cli, step, &report);
    attune_nightly_close(nightly);
    return code;
}

/* ---- what would happen now ---- */

struct table {
    const struct cli *cli;
    json_t *array; /* with --json */
    struct row {
        char name[24], sensed[96], wanted[96], verdict[12], reason[96];
    } rows[24];
    size_t n;
};

static void add_row(const attune_condition *c, void *user) {
    struct table *table = user;
    if (table->cli->json) {
        json_array_append_new(table->array,
                              json_pack("{s:s, s:o, s:o, s:s, s:o}", "name", c->name, "sensed",
                                        cli_json_text(c->sensed), "wanted", cli_json_text(c->wanted), "verdict",
                                        c->verdict, "reason", cli_json_text(c->reason)));
        return;
    }
    if (table->n == sizeof table->rows / sizeof *table->rows) return;
    struct row *row = &table->rows[table->n++];
    snprintf(row->name, sizeof row->name, "%s", c->name);
    snprintf(row->sensed, sizeof row->sensed, "%s", c->sensed);
    snprintf(row->wanted, sizeof row->wanted, "%s", c->wanted);
    snprintf(row->verdict, sizeof row->verdict, "%s", c->verdict);
    snprintf(row->reason, sizeof row->reason, "%s", c->reason);
}

/* Columns of text that is UTF-8 and all of one column each. */
static int width(const char *text) {
    int n = 0;
    for (; *text; text++) n += ((unsigned char)*text & 0xc0) != 0x80;
    return n;
}

static void print_column(const char *text, int columns) { cli_print("%s%*s", text, columns - width(text) + 2, ""); }

static void print_table(const struct table *table) {
    int sensed = width("now"), wanted = width("wanted"), name = width("condition");
    for (size_t i = 0; i < table->n; i++) {
        const struct row *row = &table->rows[i];
        if (width(row->name) > name) name = width(row->name);
        if (width(row->sensed) > sensed) sensed = width(row->sensed);
        if (width(row->wanted) > wanted) wanted = width(row->wanted);
    }
    cli_print("\n  ");
    print_column("condition", name);
    print_column("now", sensed);
    print_column("wanted", wanted);
    cli_print("verdict\n");
    for (size_t i = 0; i < table->n; i++) {
        const struct row *row = &table->rows[i];
        bool runs = strcmp(row->verdict, "run") == 0;
        cli_print("  ");
        print_column(row->name, name);
        print_column(row->sensed, sensed);
        print_column(row->wanted, wanted);
        cli_style(stdout, runs ? STYLE_GREEN : strcmp(row->verdict, "stop") == 0 ? STYLE_RED : STYLE_YELLOW);
        cli_print("%s", row->verdict);
        cli_style(stdout, STYLE_PLAIN);
        cli_print("%s%s\n", row->reason[0] ? ": " : "", row->reason);
    }
}

static void print_answer(const attune_explanation *e) {
    bool allowed = strcmp(e->verdict, "run") == 0 || strcmp(e->verdict, "throttle") == 0;
    struct words in = wait_words(e->wait_s);
    if (allowed) cli_print("It may run now%s%s: %s.\n", e->reason[0] ? ", slowed down since " : "", e->reason, e->plan);
    else
        cli_print("Not now: %s%s%s. Then: %s.\n", e->reason, in.text[0] ? "; look again in " : "", in.text, e->plan);
}

static int print_explanation(const struct cli *cli, const attune_explanation *e, struct table *table) {
    if (cli->json) {
        json_t *array = table->array;
        table->array = NULL;
        return cli_json(json_pack("{s:s, s:o, s:o, s:s, s:o, s:I, s:I, s:o, s:o, s:o}", "verdict", e->verdict, "reason",
                                  cli_json_text(e->reason), "wait_s", cli_json_number(e->wait_s), "device", e->device,
                                  "plan", cli_json_text(e->plan), "rows_new", (json_int_t)e->rows_new, "rows_planned",
                                  (json_int_t)e->rows_planned, "seconds_predicted",
                                  cli_json_number(e->seconds_predicted > 0 ? e->seconds_predicted : NAN),
                                  "joules_predicted",
                                  cli_json_number(e->joules_predicted > 0 ? e->joules_predicted : NAN), "conditions",
                                  array));
    }
    print_answer(e);
    print_table(table);
    cli_print("\n");
    cli_field("device", "%s, as attune.conf says", e->device);
    if (e->seconds_predicted > 0) cli_field("would take", "%s", cli_duration(e->seconds_predicted).text);
    if (e->joules_predicted > 0) cli_field("and use", "%.1f kJ", 1e-3 * e->joules_predicted);
    return CLI_DONE;
}

static int explain(const struct cli *cli, const attune_nightly_options *options) {
    attune_error err = {0};
    attune_explanation explanation;
    struct table table = {.cli = cli, .array = cli->json ? json_array() : NULL};
    ATTUNE_INIT(explanation);
    int code = attune_nightly_explain(cli->home, options, add_row, &table, &explanation, &err) == ATTUNE_OK
                   ? print_explanation(cli, &explanation, &table)
                   : cli_fail(&err);
    json_decref(table.array);
    return code;
}

/* ---- the command ---- */

static int run(struct cli *cli, int argc, char **argv) {
    bool explains = false, now = false, wait = false, no_wait = false;
    attune_nightly_options options;
    ATTUNE_INIT(options);
    struct arguments a = {.command = &nightly_command};
    cli_option(&a, option_flag("explain", "tell what would happen now, and why; change nothing", &explains));
    cli_option(&a, option_flag("wait", "wait for the conditions until the window closes", &wait));
    cli_option(&a, option_flag("no-wait", "end at once when they do not hold; default as the settings say", &no_wait));
    cli_option(&a, option_flag("now", "do not ask for window, charger and idleness; budgets hold all the same", &now));
    cli_option(&a, option_int("threads", "0: as the settings say (default)", &options.threads, 0, THREADS_MAX));
    int code = cli_parse(cli, &a, argc, argv);
    if (code != CLI_GO) return code;
    if (wait && no_wait) return cli_usage(a.command, "--wait and --no-wait exclude each other");
    options.wait = wait ? 1 : no_wait ? -1 : 0;
    options.now = now;
    options.key_file = cli->key_file;
    return explains ? explain(cli, &options) : work(cli, &options);
}

const struct command nightly_command = {
    .name = "nightly",
    .arguments = "[--explain] [--wait|--no-wait] [--now] [--threads N]",
    .summary = "Train when the device is free for it, as attune.conf says: for a timer.",
    .notes = "When a run may begin and go on, and for how much: attune.conf. Ctrl-C stops within moments and keeps what\n"
             "is done. Exit code 0: nothing is left to do; 3: not now, or not finished, call again.",
    .texts = true,
    .run = run,
};
