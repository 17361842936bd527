#include "cli/cli.h"

#include <math.h>

static void set_run(json_t *object, const attune_status *s) {
    bool any = s->run_started_ms != 0;
    json_object_set_new(object, "run_started_ms", cli_json_time(s->run_started_ms));
    json_object_set_new(object, "run_state", any ? cli_json_text(s->run_state) : json_null());
    json_object_set_new(object, "run_reason", any ? cli_json_text(s->run_reason) : json_null());
    json_object_set_new(object, "run_loss_before", any ? cli_json_number(s->run_loss_before) : json_null());
    json_object_set_new(object, "run_loss_after", any ? cli_json_number(s->run_loss_after) : json_null());
    json_object_set_new(object, "run_seconds", any ? cli_json_number(s->run_seconds) : json_null());
    json_object_set_new(object, "run_examples", any ? json_integer(s->run_examples) : json_null());
    json_object_set_new(object, "run_steps", any ? json_integer(s->run_steps) : json_null());
    json_object_set_new(object, "run_steps_done", any ? json_integer(s->run_steps_done) : json_null());
    json_object_set_new(object, "run_tokens_per_s", any ? cli_json_number(s->run_tokens_per_s) : json_null());
}

static int print_json(const attune_status *s) {
    json_t *object = json_pack(
        "{s:o, s:o, s:o, s:s, s:b, s:b, s:I, s:I, s:I, s:I, s:i, s:i}", "home", cli_json_text(s->home), "base_path",
        cli_json_text(s->base_path), "base_name", cli_json_text(s->base_name), "base_sha256", s->base_sha256, "base_ok",
        s->base_ok, "consent", s->consent, "interactions", (json_int_t)s->interactions, "consented",
        (json_int_t)s->consented, "feedback", (json_int_t)s->feedback, "examples_new", (json_int_t)s->examples_new,
        "active_adapter", s->active_adapter, "n_adapters", s->n_adapters);
    if (object) set_run(object, s);
    return cli_json(object);
}

static void print_run(const attune_status *s) {
    if (!s->run_started_ms) {
        cli_field("last run", "none yet");
        return;
    }
    cli_field("last run", "%s, %s", cli_time(s->run_started_ms).text, s->run_state);
    if (s->run_reason[0]) cli_field("  why", "%s", s->run_reason);
    cli_field("  steps", "%s of %s, over %s examples, in %s", cli_count(s->run_steps_done).text,
              cli_count(s->run_steps).text, cli_count(s->run_examples).text, cli_duration(s->run_seconds).text);
    if (isfinite(s->run_loss_before) && isfinite(s->run_loss_after) && s->run_loss_before > 0)
        cli_field("  loss", "%s", cli_loss(s->run_loss_before, s->run_loss_after).text);
    if (s->run_tokens_per_s > 0) cli_field("  speed", "%.0f tokens/s", s->run_tokens_per_s);
}

static void print_people(const attune_status *s) {
    cli_field("home", "%s", s->home);
    cli_field("base", "%s (%s)%s", s->base_name, s->base_path,
              s->base_ok ? "" : ": missing or not the file it was; `attune doctor` tells more");
    if (s->active_adapter) cli_field("adapter", "%d of %d", s->active_adapter, s->n_adapters);
    else cli_field("adapter", "none: the base answers (%d kept)", s->n_adapters);
    cli_field("consent", "%s", s->consent ? "given" : "not given, but for what was recorded with it");
    cli_field("recorded", "%s interactions, %s with consent, %s feedback", cli_count(s->interactions).text,
              cli_count(s->consented).text, cli_count(s->feedback).text);
    cli_field("new", "%s examples not learned from yet", cli_count(s->examples_new).text);
    print_run(s);
}

static int run(struct cli *cli, int argc, char **argv) {
    struct arguments a = {.command = &status_command};
    int code = cli_parse(cli, &a, argc, argv);
    if (code != CLI_GO) return code;
    attune_error err = {0};
    attune_status status;
    ATTUNE_INIT(status);
    if (attune_home_status(cli->home, &status, &err) != ATTUNE_OK) return cli_fail(&err);
    if (cli->json) return print_json(&status);
    print_people(&status);
    return CLI_DONE;
}

const struct command status_command = {
    .name = "status",
    .arguments = "[options]",
    .summary = "What the home holds, and what the last run did and why.",
    .run = run,
};
