#include "cli/night_summary.h"

#include <assert.h>
#include <math.h>

/* What the store says of itself; locked: it is encrypted, and its key is not to be had. */
struct figures {
    bool locked;
    attune_store_statistics s;
};

/* By enum attune_finding. */
static const char *const finding_keys[] = {"card", "iban", "email", "phone", "token", "private_key", "app"};
static_assert(sizeof finding_keys / sizeof finding_keys[0] == ATTUNE_FINDINGS, "each kind of finding has a key");

static json_t *count_json(const struct figures *f, int64_t n) { return f->locked ? json_null() : json_integer(n); }

static json_t *findings_json(const struct figures *f) {
    if (f->locked) return json_null();
    json_t *object = json_object();
    for (int i = 0; i < ATTUNE_FINDINGS; i++)
        json_object_set_new(object, finding_keys[i], json_integer(f->s.findings[i]));
    return object;
}

static void set_figures(json_t *object, const struct figures *f) {
    const attune_store_statistics *s = &f->s;
    json_object_set_new(object, "encrypted", json_boolean(f->locked || s->encrypted));
    json_object_set_new(object, "locked", json_boolean(f->locked));
    json_object_set_new(object, "bytes", count_json(f, s->bytes));
    json_object_set_new(object, "examples_sft", count_json(f, s->examples_sft));
    json_object_set_new(object, "examples_preference", count_json(f, s->examples_preference));
    json_object_set_new(object, "examples_thumb", count_json(f, s->examples_thumb));
    json_object_set_new(object, "private_rows", count_json(f, s->private_rows));
    json_object_set_new(object, "findings", findings_json(f));
    json_object_set_new(object, "not_derived", count_json(f, s->not_derived));
    json_object_set_new(object, "not_indexed", count_json(f, s->not_indexed));
    json_object_set_new(object, "scrub_pending", f->locked ? json_null() : json_boolean(s->scrub_pending));
}

static void set_run(json_t *object, const attune_status *s, const struct criteria_seen *criteria) {
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
    json_object_set_new(object, "run_criteria", cli_criteria_json(criteria));
}

static json_t *answers_json(int64_t good, int64_t bad) {
    return json_pack("{s:I, s:I}", "good", (json_int_t)good, "bad", (json_int_t)bad);
}

static void set_rollback(json_t *object, const attune_status *s) {
    static const char *const pending[] = {"no", "yes", "never"};
    json_object_set_new(object, "answers", answers_json(s->answers_good, s->answers_bad));
    json_object_set_new(object, "answers_before", answers_json(s->before_good, s->before_bad));
    json_object_set_new(object, "rollback_evidence", cli_json_number(s->rollback_evidence));
    json_object_set_new(object, "rollback_to", json_integer(s->rollback_to));
    json_object_set_new(object, "rollback_pending", cli_json_text(pending[s->rollback_pending]));
}

static int print_json(const attune_status *s, const struct figures *figures, const struct nights *nights,
                      const struct criteria_seen *criteria) {
    json_t *object = json_pack(
        "{s:o, s:o, s:o, s:s, s:b, s:b, s:I, s:I, s:I, s:I, s:i, s:i}", "home", cli_json_text(s->home), "base_path",
        cli_json_text(s->base_path), "base_name", cli_json_text(s->base_name), "base_sha256", s->base_sha256, "base_ok",
        s->base_ok, "consent", s->consent, "interactions", (json_int_t)s->interactions, "consented",
        (json_int_t)s->consented, "feedback", (json_int_t)s->feedback, "examples_new", (json_int_t)s->examples_new,
        "active_adapter", s->active_adapter, "n_adapters", s->n_adapters);
    if (object) set_figures(object, figures);
    if (object) set_run(object, s, criteria);
    if (object) set_rollback(object, s);
    if (object) json_object_set_new(object, "night", nights->n ? cli_night_json(&nights->items[0]) : json_null());
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

static void print_private(const attune_store_statistics *s) {
    if (s->private_rows == 0) return;
    cli_field("kept out", "%s interactions that are private, or look like it", cli_count(s->private_rows).text);
    for (int i = 0; i < ATTUNE_FINDINGS; i++)
        if (s->findings[i] > 0) cli_field("", "%s: %s", attune_finding_name(i), cli_count(s->findings[i]).text);
}

static void print_figures(const struct figures *f) {
    const attune_store_statistics *s = &f->s;
    if (f->locked) {
        cli_field("encrypted", "yes, and the key is not where it was: --key-file FILE shows more");
        return;
    }
    cli_field("examples", "%s to learn, %s preferences, %s thumbs", cli_count(s->examples_sft).text,
              cli_count(s->examples_preference).text, cli_count(s->examples_thumb).text);
    print_private(s);
    if (s->not_derived > 0 || s->not_indexed > 0)
        cli_field("waiting", "%s to be looked through, %s to be indexed", cli_count(s->not_derived).text,
                  cli_count(s->not_indexed).text);
    if (s->scrub_pending)
        cli_field("wiping", "traces of what was forgotten are left in the file; training goes on wiping");
    cli_field("on disk", "%s, %s", cli_bytes((double)s->bytes).text, s->encrypted ? "encrypted" : "not encrypted");
}

static void print_night(const struct nights *nights) {
    if (nights->n == 0) {
        cli_field("last night", "none yet");
        return;
    }
    const struct night *n = &nights->items[0];
    char energy[160], ending[320];
    cli_night_energy(n, energy, sizeof energy);
    cli_night_ending(n, ending, sizeof ending);
    if (n->work_seconds > 0)
        cli_field("last night", "%s, %s of work, %s tokens", cli_night_date(n->night_ms).text,
                  cli_duration(n->work_seconds).text, cli_count(n->tokens).text);
    else cli_field("last night", "%s, no work", cli_night_date(n->night_ms).text);
    cli_field("  ended", "%s", ending);
    if (n->joules > 0) cli_field("  energy", "%s", energy);
    if (isfinite(n->loss_after))
        cli_field("  learned", "held-out loss %s", cli_loss(n->loss_before, n->loss_after).text);
    if (n->adapter) cli_field("  published", "adapter %d", n->adapter);
}

static void print_answers(const attune_status *s) {
    int64_t n = s->answers_good + s->answers_bad, before = s->before_good + s->before_bad;
    char name[32] = "the base";
    if (s->rollback_to) snprintf(name, sizeof name, "adapter %d", s->rollback_to);
    if (n > 0)
        cli_field("answers", "%s of %s were good; of %s %s of %s", cli_count(s->answers_good).text, cli_count(n).text,
                  name, cli_count(s->before_good).text, cli_count(before).text);
    if (s->rollback_pending == 1) cli_field("rollback", "the next run begins by going back to %s", name);
    if (s->rollback_pending == 2)
        cli_field("rollback", "answers have turned worse; `attune adapters rollback` goes back to the parent");
}

static void print_people(const attune_status *s, const struct figures *figures, const struct nights *nights) {
    cli_field("home", "%s", s->home);
    cli_field("base", "%s (%s)%s", s->base_name, s->base_path,
              s->base_ok ? "" : ": missing or not the file it was; `attune doctor` tells more");
    if (s->active_adapter) cli_field("adapter", "%d of %d", s->active_adapter, s->n_adapters);
    else cli_field("adapter", "none: the base answers (%d kept)", s->n_adapters);
    if (s->active_adapter) print_answers(s);
    cli_field("consent", "%s", s->consent ? "given" : "not given, but for what was recorded with it");
    cli_field("recorded", "%s interactions, %s with consent, %s feedback", cli_count(s->interactions).text,
              cli_count(s->consented).text, cli_count(s->feedback).text);
    cli_field("new", "%s examples not learned from yet", cli_count(s->examples_new).text);
    print_figures(figures);
    print_run(s);
    print_night(nights);
    cli_field("next", "`attune nightly --explain` tells whether it would train now, and why");
}

/* A key that was named must fit; that the remembered one is missing still leaves something to tell. */
static int read_figures(const struct cli *cli, struct figures *f) {
    attune_error err = {0};
    attune_store *store = NULL;
    attune_store_options options;
    ATTUNE_INIT(options);
    ATTUNE_INIT(f->s);
    options.key_file = cli->key_file;
    int code = attune_store_open(cli->home, &options, &store, &err);
    f->locked = code == ATTUNE_ERROR_MISMATCH && !cli->key_file;
    if (f->locked) return CLI_GO;
    if (code == ATTUNE_OK) code = attune_store_statistics_get(store, &f->s, &err);
    attune_store_close(store);
    return code == ATTUNE_OK ? CLI_GO : cli_fail(&err);
}

static int run(struct cli *cli, int argc, char **argv) {
    struct arguments a = {.command = &status_command};
    int code = cli_parse(cli, &a, argc, argv);
    if (code != CLI_GO) return code;
    attune_error err = {0};
    attune_status status;
    struct figures figures = {0};
    struct nights nights;
    struct criteria_seen criteria = {.n = 0};
    ATTUNE_INIT(status);
    if (attune_home_status(cli->home, &status, &err) != ATTUNE_OK ||
        attune_run_criteria(cli->home, cli_note_criterion, &criteria, &err) != ATTUNE_OK)
        return cli_fail(&err);
    code = read_figures(cli, &figures);
    if (code != CLI_GO) return code;
    code = cli_nights_read(cli, 0, 0, 1, &nights);
    if (code != CLI_GO) return code;
    code = CLI_DONE;
    if (cli->json) code = print_json(&status, &figures, &nights, &criteria);
    else print_people(&status, &figures, &nights);
    cli_nights_free(&nights);
    return code;
}

const struct command status_command = {
    .name = "status",
    .arguments = "[options]",
    .summary = "What the home holds, and what the last run and the last night did and why.",
    .texts = true,
    .run = run,
};
