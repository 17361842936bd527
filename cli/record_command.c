#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

struct record {
    const char *prompt, *response, *thumb, *edit, *app, *session, *source, *tier;
    int64_t time_ms;
    bool consent, no_consent, is_private, cleared;
    char *input; /* what came on standard input; owned */
};

static int consent_of(const struct record *r) {
    if (r->consent) return ATTUNE_CONSENT_GIVEN;
    return r->no_consent ? ATTUNE_CONSENT_NOT_GIVEN : ATTUNE_CONSENT_HOME;
}

static int tier_of(const struct record *r) {
    static const char *const names[] = {"person", "imported", "pasted", "web", "tool"}; /* enum attune_tier */
    int tier = 0;
    while (r->tier && strcmp(names[tier], r->tier) != 0) tier++;
    return tier;
}

static int sensitivity_of(const struct record *r) {
    if (r->is_private) return ATTUNE_SENSITIVITY_PRIVATE;
    return r->cleared ? ATTUNE_SENSITIVITY_CLEARED : ATTUNE_SENSITIVITY_UNKNOWN;
}

/* What contradicts itself, before anything is read or written. */
static int check(const struct command *command, const struct record *r) {
    const char *const from_input[] = {r->prompt, r->response, r->edit};
    int n_inputs = 0;
    for (size_t i = 0; i < 3; i++) n_inputs += from_input[i] && strcmp(from_input[i], "-") == 0;
    if (n_inputs > 1)
        return cli_usage(command, "only one of --prompt, --response and --edit can come on standard input");
    if (r->consent && r->no_consent) return cli_usage(command, "--consent and --no-consent exclude each other");
    if (!r->prompt != !r->response) return cli_usage(command, "--prompt and --response go together");
    if (r->is_private && r->cleared) return cli_usage(command, "--private and --cleared exclude each other");
    if (!r->prompt && (r->thumb || r->edit || r->session || r->source || r->tier || r->time_ms || r->is_private ||
                       r->cleared))
        return cli_usage(command, "without --prompt and --response only --app, --consent and --no-consent count: in a "
                                  "JSON object the others are keys");
    return CLI_GO;
}

/* Puts standard input in the place of the "-". */
static int take_input(struct record *r) {
    const char **const texts[] = {&r->prompt, &r->response, &r->edit};
    for (size_t i = 0; i < 3; i++) {
        if (!*texts[i] || strcmp(*texts[i], "-") != 0) continue;
        size_t length;
        int code = cli_read_input(true, &r->input, &length);
        if (code != CLI_GO) return code;
        *texts[i] = r->input;
    }
    return CLI_GO;
}

static int add_feedback(attune_store *store, const struct record *r, const char *id, attune_error *err) {
    attune_feedback feedback;
    ATTUNE_INIT(feedback);
    if (r->thumb) {
        feedback.kind = ATTUNE_FEEDBACK_THUMB;
        feedback.value = strcmp(r->thumb, "up") == 0 ? 1 : -1;
        int code = attune_store_feedback(store, id, &feedback, err);
        if (code != ATTUNE_OK) return code;
    }
    if (!r->edit) return ATTUNE_OK;
    ATTUNE_INIT(feedback);
    feedback.kind = ATTUNE_FEEDBACK_EDIT;
    feedback.text = r->edit;
    return attune_store_feedback(store, id, &feedback, err);
}

static int record_texts(attune_store *store, const struct record *r, attune_uuid *id) {
    attune_error err = {0};
    attune_interaction interaction;
    ATTUNE_INIT(interaction);
    interaction.prompt = r->prompt;
    interaction.response = r->response;
    interaction.app = r->app;
    interaction.session = r->session;
    interaction.source = r->source;
    interaction.time_ms = r->time_ms;
    interaction.tier = tier_of(r);
    interaction.sensitivity = sensitivity_of(r);
    interaction.consent = consent_of(r);
    if (attune_store_record(store, &interaction, id, &err) != ATTUNE_OK) return cli_fail(&err);
    if (add_feedback(store, r, id->text, &err) == ATTUNE_OK) return CLI_GO;
    cli_fail(&err);
    return cli_fail_text("%s is recorded, without all of its feedback", id->text);
}

static int record_object(attune_store *store, struct record *r, attune_uuid *id) {
    attune_error err = {0};
    attune_import_options options;
    ATTUNE_INIT(options);
    options.consent = consent_of(r);
    options.app = r->app;
    size_t length;
    int code = cli_read_input(true, &r->input, &length);
    if (code != CLI_GO) return code;
    if (attune_store_record_json(store, r->input, length, &options, id, &err) != ATTUNE_OK) return cli_fail(&err);
    return CLI_GO;
}

static int record(const struct cli *cli, struct record *r) {
    attune_error err = {0};
    attune_store *store = NULL;
    attune_uuid id = {{0}};
    int code = take_input(r);
    if (code != CLI_GO) return code;
    code = cli_store_open(cli, &store);
    if (code != CLI_GO) return code;
    code = r->prompt ? record_texts(store, r, &id) : record_object(store, r, &id);
    if (code == CLI_GO && attune_store_flush(store, &err) != ATTUNE_OK) code = cli_fail(&err);
    attune_store_close(store);
    if (code != CLI_GO) return code;
    if (cli->json) return cli_json(json_pack("{s:s}", "id", id.text));
    cli_print("%s\n", id.text);
    return CLI_DONE;
}

static int run(struct cli *cli, int argc, char **argv) {
    struct record r = {0};
    struct arguments a = {.command = &record_command};
    cli_option(&a, option_text("prompt", "TEXT|-", "what the person asked", &r.prompt));
    cli_option(&a, option_text("response", "TEXT|-", "what the model answered", &r.response));
    cli_option(&a, option_choice("thumb", "up|down", "what the person thought of it", &r.thumb));
    cli_option(&a, option_text("edit", "TEXT|-", "what the person made of the answer", &r.edit));
    cli_option(&a, option_text("app", "NAME", "where it happened", &r.app));
    cli_option(&a, option_text("session", "NAME", "which conversation it belongs to", &r.session));
    cli_option(&a, option_text("source", "NAME", "where the text came from", &r.source));
    cli_option(&a, option_choice("tier", "person|imported|pasted|web|tool",
                                 "whose words the answer is made of; the last three are never learned", &r.tier));
    cli_option(&a, option_when("time", "when it happened; default now", &r.time_ms));
    cli_option(&a, option_flag("private", "kept out of training", &r.is_private));
    cli_option(&a, option_flag("cleared", "let into training, even if it looks like a secret", &r.cleared));
    cli_option(&a, option_flag("consent", "may be trained on", &r.consent));
    cli_option(&a, option_flag("no-consent", "may not be trained on", &r.no_consent));
    int code = cli_parse(cli, &a, argc, argv);
    if (code == CLI_GO) code = check(a.command, &r);
    if (code == CLI_GO) code = record(cli, &r);
    free(r.input);
    return code;
}

const struct command record_command = {
    .name = "record",
    .arguments = "--prompt TEXT --response TEXT [options]",
    .summary = "Record one interaction; prints its id.",
    .notes = "Without --prompt and --response: one JSON object on standard input, as a line of `attune import`.\n"
             "- as the value of --prompt, --response or --edit reads that text from standard input, where other\n"
             "users of this computer do not see it; a newline at its very end is left out.\n"
             "Without --consent and --no-consent the home decides. When the id is printed the row is on the disk.",
    .texts = true,
    .run = run,
};
