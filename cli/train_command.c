#include "cli/cli.h"

#include <math.h>
#include <signal.h>
#include <string.h>

/* The job that a signal stops; set before the handler is installed, cleared after it is gone. */
static attune_job *volatile stopping;

static void on_signal(int number) {
    (void)number;
    attune_job_cancel(stopping);
}

/* The handler removes itself: a second Ctrl-C ends the process at once, and what is on disk goes on later. */
static void catch_signals(attune_job *job) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND | SA_RESTART};
    sigemptyset(&action.sa_mask);
    stopping = job;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

static void release_signals(void) {
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    stopping = NULL;
}

static void on_progress(const attune_progress *now, void *user) { cli_progress_draw(user, now); }

/* ---- the report ---- */

static json_t *energy_json(const attune_job_report *r) {
    return json_pack("{s:o, s:o, s:o, s:I, s:o, s:o, s:o, s:b}", "joules_measured", cli_json_number(r->joules_measured),
                     "joules_battery", cli_json_number(r->joules_battery), "joules_modelled",
                     cli_json_number(r->joules_modelled), "written_bytes", (json_int_t)r->written_bytes,
                     "governor_cpu_s", cli_json_number(r->governor_cpu_s), "gap_ms", cli_json_number(r->gap_ms),
                     "retry_s", cli_json_number(r->retry_s), "throttled", r->throttled);
}

static int print_json(const attune_job_report *r, const struct criteria_seen *criteria) {
    const double mib = 1 << 20;
    json_t *energy = energy_json(r), *report = json_pack(
        "{s:b, s:b, s:i, s:o, s:o, s:o, s:o, s:o, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:o, s:o, s:I, s:I,"
        " s:I}",
        "published", r->published, "finished", r->finished, "adapter", r->adapter, "state", cli_json_text(r->state),
        "reason", cli_json_text(r->reason), "evaluation", cli_json_text(r->evaluation), "loss_before",
        cli_json_number(r->loss_before), "loss_after", cli_json_number(r->loss_after), "loss_interval",
        cli_json_number(r->loss_interval), "examples", (json_int_t)r->examples, "held_out", (json_int_t)r->held_out,
        "epochs", (json_int_t)r->epochs, "steps", (json_int_t)r->steps, "steps_done", (json_int_t)r->steps_done,
        "tokens", (json_int_t)r->tokens, "seconds", cli_json_number(r->seconds), "tokens_per_s",
        cli_json_number(r->tokens_per_s), "peak_rss_mib", cli_json_number((double)r->peak_rss_bytes / mib),
        "planned_rss_mib", cli_json_number((double)r->planned_rss_bytes / mib), "dropped_steps",
        (json_int_t)r->dropped_steps, "layers", (json_int_t)r->layers, "layers_kept", (json_int_t)r->layers_kept);
    if (report && json_object_update(report, energy) != 0) {
        json_decref(report);
        report = NULL;
    }
    json_decref(energy);
    if (report) json_object_set_new(report, "rolled_back", json_integer(r->rolled_back));
    if (report) json_object_set_new(report, "criteria", cli_criteria_json(criteria));
    return cli_json(report);
}

/* Nothing was planned or begun: the report has a reason and no figures. */
static bool is_waiting(const attune_job_report *r) { return strcmp(r->state, "waiting") == 0; }

static void print_headline(const attune_job_report *r) {
    if (r->rolled_back)
        cli_print("Adapter %d is rolled back: its answers were liked less than those before it.\n", r->rolled_back);
    if (r->published) cli_print("Adapter %d is published and active.\n", r->adapter);
    else if (is_waiting(r)) cli_print("Not now: %s.\n", r->reason[0] ? r->reason : "the conditions are not met");
    else if (!r->finished) cli_print("Not finished.\n");
    else cli_print("No new adapter: the one before stays.\n");
}

static void print_loss(const attune_job_report *r) {
    if (!isfinite(r->loss_before) || !isfinite(r->loss_after) || !(r->loss_before > 0) || !(r->loss_after > 0)) return;
    char interval[48] = "";
    if (isfinite(r->loss_interval) && r->loss_interval > 0)
        snprintf(interval, sizeof interval, " \xC2\xB1 %.3f", r->loss_interval);
    cli_field("held-out loss", "%s (%+.3f%s; %s rows, %s)", cli_loss(r->loss_before, r->loss_after).text,
              r->loss_after - r->loss_before, interval, cli_count(r->held_out).text, r->evaluation);
}

static void print_next(const attune_job_report *r) {
    if (r->published) cli_print("\nNext: attune chat, or attune adapters rollback to go back.\n");
    else if (is_waiting(r)) cli_print("Next: attune status tells what is recorded.\n");
    else if (!r->finished && strcmp(r->state, "failed") == 0) cli_print("\nNext: attune train plans anew.\n");
    else if (!r->finished) cli_print("\nNext: attune train goes on where this stopped.\n");
    else cli_print("\nNext: attune record or attune import; more examples may do it.\n");
}

/* With how it is known: a counter goes before a battery, a battery before the model. */
static void print_energy(const attune_job_report *r) {
    double sum = r->joules_measured + r->joules_battery + r->joules_modelled;
    const char *how = r->joules_measured > 0.5 * sum  ? "measured"
                      : r->joules_battery > 0.5 * sum ? "by the battery"
                                                      : "modelled";
    if (!(sum > 0)) return;
    if (sum < 10e3) cli_field("energy", "%.0f J, %s", sum, how);
    else cli_field("energy", "%.1f kJ (%.2f Wh), %s", sum / 1e3, sum / 3600, how);
}

static void print_figures(const attune_job_report *r) {
    cli_print("\n");
    print_loss(r);
    cli_field("decision", "%s%s%s", r->state, r->reason[0] ? ": " : "", r->reason);
    if (r->steps > 0) {
        /* cross-fit: few rows, all of them learn and judge in turn */
        char judging[96] = "each judged by a training without it";
        if (strcmp(r->evaluation, "cross-fit") != 0)
            snprintf(judging, sizeof judging, "and %s held out", cli_count(r->held_out).text);
        cli_field("examples", "%s, %s; %s %s", cli_count(r->examples).text, judging, cli_count(r->epochs).text,
                  r->epochs == 1 ? "epoch" : "epochs");
        cli_field("steps", "%s of %s", cli_count(r->steps_done).text, cli_count(r->steps).text);
    }
    if (r->dropped_steps > 0) cli_field("left out", "%s steps that were not finite", cli_count(r->dropped_steps).text);
    if (r->tokens > 0)
        cli_field("speed", "%.0f tokens/s over %s tokens of training", r->tokens_per_s, cli_count(r->tokens).text);
    cli_field("time", "%s%s", cli_duration(r->seconds).text, r->throttled ? ", slowed down for others" : "");
    print_energy(r);
    if (r->peak_rss_bytes > 0)
        cli_field("memory", "%s at most, %s planned; %s of %s layers kept", cli_bytes((double)r->peak_rss_bytes).text,
                  cli_bytes((double)r->planned_rss_bytes).text, cli_count(r->layers_kept).text,
                  cli_count(r->layers).text);
}

static void print_people(const attune_job_report *r, const struct criteria_seen *criteria) {
    print_headline(r);
    if (!is_waiting(r)) print_figures(r);
    cli_criteria_print(criteria);
    print_next(r);
}

/* ---- the run ---- */

static int train(const struct cli *cli, attune_job_options *options) {
    attune_error err = {0};
    attune_job *job = NULL;
    attune_job_report report;
    struct criteria_seen criteria = {.n = 0};
    struct progress progress;
    cli_progress_open(&progress);
    cli_progress_draw(&progress, &(attune_progress){.phase = "load"});
    options->on_progress = on_progress;
    options->user = &progress;
    ATTUNE_INIT(report);
    if (attune_job_open(cli->home, options, &job, &err) != ATTUNE_OK) {
        cli_progress_clear(&progress);
        return cli_fail(&err);
    }
    catch_signals(job);
    int step;
    do step = attune_job_step(job, &err);
    while (step == ATTUNE_CONTINUE);
    release_signals();
    cli_progress_clear(&progress);
    int code = CLI_FAILED;
    if (step < 0 || attune_job_report_get(job, &report, &err) != ATTUNE_OK) cli_fail(&err);
    else code = step == ATTUNE_PAUSED ? CLI_UNFINISHED : CLI_DONE;
    attune_job_close(job);
    if (code == CLI_FAILED) return code;
    if (report.finished && attune_run_criteria(cli->home, cli_note_criterion, &criteria, &err) != ATTUNE_OK)
        return cli_fail(&err);
    if (!cli->json) print_people(&report, &criteria);
    else if (print_json(&report, &criteria) != CLI_DONE) return CLI_FAILED;
    return code;
}

static int run(struct cli *cli, int argc, char **argv) {
    const char *from = NULL, *precision = NULL;
    bool now = false, background = false;
    attune_job_options options;
    ATTUNE_INIT(options);
    struct arguments a = {.command = &train_command};
    cli_option(&a, option_duration("time", "budget of this call, everything included: 90s, 1.5h", &options.time_s));
    cli_option(&a, option_energy("energy", "budget of this call: 500J, 5kJ, 0.2Wh", &options.energy_j));
    cli_option(&a, option_size("memory", "ceiling of the resident memory: 400M, 1.5G", &options.memory_bytes));
    cli_option(&a, option_integer("examples", "at most; default all that are eligible", &options.max_examples, 1,
                                  COUNT_MAX));
    cli_option(&a, option_choice("from", "active|fresh", "where to start; default active", &from));
    cli_option(&a, option_choice("precision", "auto|f32", "of training's large products; default as the settings say",
                                 &precision));
    cli_option(&a, option_int("threads", "0: all CPUs of this process (default)", &options.threads, 0, THREADS_MAX));
    cli_option(&a, option_unsigned("seed", "S", "of the run; 0: as the settings say (default)", &options.seed));
    cli_option(&a, option_flag("now", "do not wait for a charger; the budgets hold all the same", &now));
    cli_option(&a, option_flag("background", "its threads run when the CPUs have nothing else to do", &background));
    int code = cli_parse(cli, &a, argc, argv);
    if (code != CLI_GO) return code;
    options.background = background;
    options.from = from && strcmp(from, "fresh") == 0 ? ATTUNE_FROM_FRESH : ATTUNE_FROM_ACTIVE;
    if (precision)
        options.precision = strcmp(precision, "f32") == 0 ? ATTUNE_PRECISION_F32 : ATTUNE_PRECISION_AUTO;
    options.now = now;
    options.key_file = cli->key_file;
    return train(cli, &options);
}

const struct command train_command = {
    .name = "train",
    .arguments = "[options]",
    .summary = "Learn from what is recorded, within a budget.",
    .notes = "Ctrl-C stops within moments and keeps what is done; the next `attune train` goes on, as it was planned.\n"
             "An adapter is published only when the loss over held-out rows has fallen. Exit code 0: the run has\n"
             "ended, published or not; 3: not finished or not eligible now, call again.",
    .texts = true,
    .run = run,
};
