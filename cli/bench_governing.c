/* `attune bench governor` */
#include "cli/cli.h"

enum { TRIALS_MAX = 10000 };

void cli_bench_governor_options(struct arguments *a, attune_bench_governor_options *o) {
    cli_option(a, option_int("trials", "governor: unplugs where events tell; default 20", &o->trials, 1, TRIALS_MAX));
    cli_option(a, option_int("polls", "governor: where polling alone does; default a quarter as many", &o->polls, 1,
                             TRIALS_MAX));
    cli_option(a, option_int("budgets", "governor: runs with a budget of 5 to 60 s; default none", &o->budgets, 1,
                             TRIALS_MAX));
}

static json_t *milliseconds_json(const attune_milliseconds *m) {
    return json_pack("{s:o, s:o, s:o}", "p50_ms", cli_json_number(m->p50), "p99_ms", cli_json_number(m->p99), "max_ms",
                     cli_json_number(m->max));
}

static json_t *unplug_json(const attune_unplug_figures *f) {
    return json_pack("{s:i, s:o, s:o, s:o}", "trials", f->trials, "compute", milliseconds_json(&f->compute), "durable",
                     milliseconds_json(&f->durable), "cpu", milliseconds_json(&f->cpu));
}

static json_t *budgets_json(const attune_bench_governor_result *r) {
    if (r->budgets == 0) return json_null();
    return json_pack("{s:i, s:i, s:o, s:o, s:o, s:o, s:o}", "runs", r->budgets, "kept", r->budgets_kept, "over_max_s",
                     cli_json_number(r->over_max_s), "work_s", cli_json_number(r->work_s), "left_s",
                     cli_json_number(r->left_s), "share", cli_json_number(r->share), "share_min",
                     cli_json_number(r->share_min));
}

static int print_json(const attune_bench_governor_result *r) {
    return cli_json(json_pack("{s:s, s:o, s:o, s:o, s:o, s:o, s:o}", "bench", "governor", "events",
                              unplug_json(&r->events), "polling", unplug_json(&r->polling), "gap_ms",
                              cli_json_number(r->gap_ms), "check_us", cli_json_number(r->check_us), "governor_share",
                              cli_json_number(r->governor_share), "budgets", budgets_json(r)));
}

static void print_figures(const char *what, const char *how, const attune_milliseconds *m) {
    cli_print("  %-26s  %-8s  %9.1f  %9.1f  %9.1f\n", what, how, m->p50, m->p99, m->max);
}

static void print_unplug(const char *how, const attune_unplug_figures *f) {
    if (f->trials == 0) return;
    print_figures("the last computing", how, &f->compute);
    print_figures("progress is on the disk", how, &f->durable);
    print_figures("CPU time still used", how, &f->cpu);
}

static void print_people(const attune_bench_governor_result *r) {
    cli_print("governor: milliseconds after the charger was pulled, %d times with events, %d times polling alone\n\n",
              r->events.trials, r->polling.trials);
    cli_print("  %-26s  %-8s  %9s  %9s  %9s\n", "", "told by", "median", "99 %", "longest");
    print_unplug("events", &r->events);
    print_unplug("polling", &r->polling);
    cli_print("\n");
    cli_field("longest piece", "%.1f ms", r->gap_ms);
    cli_field("governing", "%.3f %% of the CPU time; %.2f us before each step", 100 * r->governor_share, r->check_us);
    if (r->budgets == 0) return;
    cli_field("budgets", "%d of %d kept within 1 s or 1 %%; %+.2f s at most", r->budgets_kept, r->budgets,
              r->over_max_s);
    cli_field("used", "%.0f %% in finished steps, beyond loading and judging; %.0f %% at worst", 100 * r->share,
              100 * r->share_min);
}

int cli_bench_governor(const struct cli *cli, const char *base, const attune_bench_governor_options *options) {
    attune_error err = {0};
    attune_bench_governor_result result;
    ATTUNE_INIT(result);
    if (attune_bench_governor(base, options, &result, &err) != ATTUNE_OK) return cli_fail(&err);
    if (cli->json) return print_json(&result);
    print_people(&result);
    return CLI_DONE;
}
