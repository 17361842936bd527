/* Which interactions, and the store that they are in. */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

int cli_store_open(const struct cli *cli, attune_store **out) {
    attune_error err = {0};
    attune_store_options options;
    ATTUNE_INIT(options);
    options.key_file = cli->key_file;
    return attune_store_open(cli->home, &options, out, &err) == ATTUNE_OK ? CLI_GO : cli_fail(&err);
}

void cli_selection_options(struct arguments *a, struct selection *s, unsigned with) {
    if (with & SELECT_ID) cli_option(a, option_texts("id", "ID", "this interaction; may be repeated", &s->ids));
    cli_option(a, option_when("since", "from then on: 2025-01-31, 2025-01-31T09:30, or so long ago: 2h, 3d",
                              &s->since));
    cli_option(a, option_when("until", "before that; a date is its midnight", &s->until));
    cli_option(a, option_text("app", "NAME", "of this app", &s->app));
    cli_option(a, option_text("session", "NAME", "of this conversation", &s->session));
    if (with & SELECT_MATCH)
        cli_option(a, option_text("match", "TEXT|-", "with all these words or \"quoted phrases\"; wor* is a beginning",
                                  &s->match));
}

bool cli_selection_given(const struct selection *s) {
    return s->ids.n > 0 || s->since || s->until || s->app || s->session || s->match;
}

int cli_selection_take(const struct command *command, struct selection *s, attune_filter *filter) {
    if (s->since && s->until && s->since >= s->until)
        return cli_usage(command, "nothing lies between: --since is not before --until");
    if (s->match && strcmp(s->match, "-") == 0) {
        size_t length;
        int code = cli_read_input(true, &s->input, &length);
        if (code != CLI_GO) return code;
        s->match = s->input;
    }
    ATTUNE_INIT(*filter);
    filter->ids = s->ids.n ? s->ids.items : NULL;
    filter->n_ids = s->ids.n;
    filter->since_ms = s->since;
    filter->until_ms = s->until;
    filter->app = s->app;
    filter->session = s->session;
    filter->match = s->match;
    return CLI_GO;
}

void cli_selection_free(struct selection *s) {
    free(s->input);
    s->input = NULL;
}

/* ---- a row ---- */

const char *cli_row_prompt(const attune_row *row) {
    for (size_t i = row->n_messages; i-- > 0;)
        if (strcmp(row->messages[i].role, "user") == 0) return row->messages[i].content;
    return "";
}

static const char *name_of(const char *const *names, size_t n, int i) {
    return i >= 0 && (size_t)i < n && names[i] ? names[i] : "unknown";
}

static const char *kind_name(int kind) {
    static const char *const names[] = {
        [ATTUNE_FEEDBACK_THUMB] = "thumb",   [ATTUNE_FEEDBACK_EDIT] = "edit",
        [ATTUNE_FEEDBACK_ACCEPT] = "accept", [ATTUNE_FEEDBACK_REJECT] = "reject",
        [ATTUNE_FEEDBACK_COPY] = "copy",     [ATTUNE_FEEDBACK_REGENERATE] = "regenerate",
        [ATTUNE_FEEDBACK_DWELL] = "dwell",   [ATTUNE_FEEDBACK_UNDO] = "undo",
    };
    return name_of(names, sizeof names / sizeof names[0], kind);
}

static const char *tier_name(int tier) {
    static const char *const names[] = {"person", "imported", "pasted", "web", "tool"};
    return name_of(names, sizeof names / sizeof names[0], tier);
}

static const char *sensitivity_name(int sensitivity) {
    static const char *const names[] = {"unknown", "private", "cleared"};
    return name_of(names, sizeof names / sizeof names[0], sensitivity);
}

/* NULL and "": left out. */
static void set_text(json_t *object, const char *key, const char *text) {
    if (text && text[0]) json_object_set_new(object, key, cli_json_text(text));
}

static json_t *message_json(const char *role, const char *content) {
    return json_pack("{s:o, s:o}", "role", cli_json_text(role), "content", cli_json_text(content));
}

static json_t *messages_json(const attune_row *row) {
    json_t *array = json_array();
    for (size_t i = 0; i < row->n_messages; i++)
        json_array_append_new(array, message_json(row->messages[i].role, row->messages[i].content));
    json_array_append_new(array, message_json("assistant", row->response));
    return array;
}

static json_t *feedback_json(const attune_row *row) {
    json_t *array = json_array();
    for (size_t i = 0; i < row->n_feedback; i++) {
        const attune_feedback *f = &row->feedback[i];
        json_t *one = json_pack("{s:s}", "kind", kind_name(f->kind));
        if (f->kind == ATTUNE_FEEDBACK_THUMB)
            json_object_set_new(one, "value", json_string(f->value > 0 ? "up" : "down"));
        else if (f->value)
            json_object_set_new(one, "value", json_integer(f->value));
        set_text(one, "text", f->text);
        if (f->time_ms) json_object_set_new(one, "time", json_integer(f->time_ms));
        json_array_append_new(array, one);
    }
    return array;
}

json_t *cli_row_json(const attune_row *row) {
    json_t *object = json_pack("{s:s, s:I, s:o}", "id", row->id.text, "time", (json_int_t)row->time_ms, "app",
                               cli_json_text(row->app ? row->app : ""));
    set_text(object, "session", row->session);
    set_text(object, "source", row->source);
    json_object_set_new(object, "tier", json_string(tier_name(row->tier)));
    if (row->sensitivity)
        json_object_set_new(object, "sensitivity", json_string(sensitivity_name(row->sensitivity)));
    json_object_set_new(object, "consent", json_boolean(row->consent));
    set_text(object, "model", row->model);
    set_text(object, "adapter", row->adapter);
    set_text(object, "template_hash", row->template_hash);
    if (row->private_findings) json_object_set_new(object, "private_findings", json_integer(row->private_findings));
    json_object_set_new(object, "messages", messages_json(row));
    if (row->n_feedback > 0) json_object_set_new(object, "feedback", feedback_json(row));
    return object;
}
