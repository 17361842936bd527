#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "datastore/json_text.h"
#include "datastore/jsonl.h"
#include "datastore/jsonl_names.h"

static const char *const keys[] = {
    "prompt", "response",    "messages", "Context", "Input",         "Response", "id",
    "time",   "app",         "session",  "source",  "consent",       "thumb",    "edit",
    "tier",   "sensitivity", "model",    "adapter", "template_hash", "feedback", "private_findings"};
static const char *const feedback_keys[] = {"kind", "value", "text", "time"};
static const char *const message_keys[] = {"role", "content"};

/* Where a value belongs, for messages: "message 3" or "feedback 1" of the row, or the row itself. */
struct place {
    const char *where;
    attune_error *err;
    const char *part; /* NULL: the row */
    size_t number;
};

static int bad(const struct place *place, const char *key, const char *what) {
    char part[40] = "";
    if (place->part) snprintf(part, sizeof part, " of %s %zu", place->part, place->number);
    return error_set(place->err, ATTUNE_ERROR_FORMAT, place->where, "'%s'%s %s", key, part, what);
}

/* ---- members ---- */

static char lower(char c) { return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c; }

static int same_but_case(const char *a, const char *b) {
    for (; *a && lower(*a) == lower(*b); a++, b++) {
    }
    return !*a && !*b;
}

/* Other keys are ignored, but "Prompt" for "prompt" is a mistake that would lose data in silence. */
static int check_keys(json_t *object, const char *const *known, size_t n, const struct place *place) {
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value) {
        const char *meant = NULL;
        for (size_t i = 0; i < n; i++) {
            if (strcmp(key, known[i]) == 0) {
                meant = NULL;
                break;
            }
            if (same_but_case(key, known[i])) meant = known[i];
        }
        if (meant)
            return error_set(place->err, ATTUNE_ERROR_FORMAT, place->where, "the key '%s' must be written '%s'", key,
                             meant);
    }
    return ATTUNE_OK;
}

/* Absent: *out stays as it is. */
static int take_text(json_t *object, const char *key, const char **out, const struct place *place) {
    json_t *value = json_object_get(object, key);
    if (!value) return ATTUNE_OK;
    if (!json_is_string(value)) return bad(place, key, "must be a string");
    *out = json_string_value(value);
    return ATTUNE_OK;
}

static int need_text(json_t *object, const char *key, const char **out, const struct place *place) {
    if (!json_object_get(object, key)) return bad(place, key, "is missing");
    return take_text(object, key, out, place);
}

static int take_time(json_t *object, int64_t *out, const struct place *place) {
    json_t *value = json_object_get(object, "time");
    if (!value) return ATTUNE_OK;
    if (json_is_integer(value) && json_integer_value(value) > 0 && json_integer_value(value) <= STORE_TIME_MAX) {
        *out = json_integer_value(value);
        return ATTUNE_OK;
    }
    if (json_is_string(value) && store_time_parse(json_string_value(value), out)) return ATTUNE_OK;
    return bad(place, "time",
               "must be milliseconds since 1970 or a time like \"2026-11-23T05:00:00Z\", up to the year 9999");
}

/* "up", "down", 1 or -1. */
static int take_thumb(json_t *value, int64_t *out, const char *key, const struct place *place) {
    const char *text = json_string_value(value);
    if (text && strcmp(text, "up") == 0)
        *out = 1;
    else if (text && strcmp(text, "down") == 0)
        *out = -1;
    else if (json_is_integer(value) && (json_integer_value(value) == 1 || json_integer_value(value) == -1))
        *out = json_integer_value(value);
    else
        return bad(place, key, "must be \"up\" or \"down\"");
    return ATTUNE_OK;
}

/* One of the names, as its number. *said: the object has the key. */
static int take_name(json_t *object, const char *key, const char *const *names, size_t n, int *out, int *said,
                     const struct place *place) {
    json_t *value = json_object_get(object, key);
    char list[160];
    size_t at = 0;
    *said = value != NULL;
    if (!value) return ATTUNE_OK;
    for (size_t i = 0; json_is_string(value) && i < n; i++) {
        if (!names[i] || strcmp(json_string_value(value), names[i]) != 0) continue;
        *out = (int)i;
        return ATTUNE_OK;
    }
    for (size_t i = 0; i < n && at < sizeof list; i++)
        if (names[i])
            at += (size_t)snprintf(list + at, sizeof list - at, "%s \"%s\"", at ? "," : "must be one of", names[i]);
    return bad(place, key, list);
}

static int take_consent(json_t *object, int *consent, const struct place *place) {
    json_t *value = json_object_get(object, "consent");
    if (!value) return ATTUNE_OK;
    if (!json_is_boolean(value)) return bad(place, "consent", "must be true or false");
    *consent = json_is_true(value) ? ATTUNE_CONSENT_GIVEN : ATTUNE_CONSENT_NOT_GIVEN;
    return ATTUNE_OK;
}

static int take_findings(json_t *object, int64_t *out, const struct place *place) {
    json_t *value = json_object_get(object, "private_findings");
    if (!value) return ATTUNE_OK;
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return bad(place, "private_findings", "must be an integer that is not negative");
    *out = json_integer_value(value);
    return ATTUNE_OK;
}

static int take_id(json_t *object, attune_uuid *out, const struct place *place) {
    const char *text = NULL;
    int code = take_text(object, "id", &text, place);
    if (code != ATTUNE_OK || !text) return code;
    if (!jsonl_uuid_check(text))
        return bad(place, "id", "must be a UUID in lower case, like \"018f4e3a-5b6c-7d8e-9fa0-b1c2d3e4f506\"");
    memcpy(out->text, text, sizeof out->text);
    return ATTUNE_OK;
}

/* ---- the three shapes ---- */

static int shape_messages(json_t *array, struct jsonl_row *row, const struct place *place) {
    if (!json_is_array(array)) return bad(place, "messages", "must be an array");
    size_t n = json_array_size(array), i;
    json_t *item;
    if (n < 2) return bad(place, "messages", "needs a user message and the assistant's after it");
    row->messages = calloc(n, sizeof *row->messages);
    if (!row->messages) return error_set_memory(place->err, "messages", n * sizeof *row->messages);
    json_array_foreach(array, i, item) {
        const struct place here = {place->where, place->err, "message", i + 1};
        attune_message *message = &row->messages[i];
        if (!json_is_object(item))
            return error_set(place->err, ATTUNE_ERROR_FORMAT, place->where, "message %zu is not an object", i + 1);
        int code = check_keys(item, message_keys, JSONL_COUNT(message_keys), &here);
        if (code == ATTUNE_OK) code = need_text(item, "role", &message->role, &here);
        if (code == ATTUNE_OK) code = need_text(item, "content", &message->content, &here);
        if (code != ATTUNE_OK) return code;
    }
    if (strcmp(row->messages[n - 1].role, "assistant") != 0)
        return bad(place, "messages", "must end with the assistant's message: it is the response");
    row->interaction.messages = row->messages;
    row->interaction.n_messages = n - 1;
    row->interaction.response = row->messages[n - 1].content;
    return ATTUNE_OK;
}

static int shape_context(json_t *object, struct jsonl_row *row, const struct place *place) {
    const char *context = NULL, *input = NULL;
    int code = need_text(object, "Context", &context, place);
    if (code == ATTUNE_OK) code = need_text(object, "Input", &input, place);
    if (code == ATTUNE_OK) code = need_text(object, "Response", &row->interaction.response, place);
    if (code != ATTUNE_OK) return code;
    if (!context[0]) return bad(place, "Context", "is empty");
    size_t size = strlen(context) + strlen(input) + 3;
    row->joined = malloc(size);
    if (!row->joined) return error_set_memory(place->err, "a prompt", size);
    snprintf(row->joined, size, "%s: %s", context, input);
    row->interaction.prompt = row->joined;
    return ATTUNE_OK;
}

static int take_shape(json_t *object, struct jsonl_row *row, const struct place *place) {
    json_t *messages = json_object_get(object, "messages");
    int plain = json_object_get(object, "prompt") || json_object_get(object, "response");
    int context =
        json_object_get(object, "Context") || json_object_get(object, "Input") || json_object_get(object, "Response");
    if (plain + context + (messages != NULL) == 0)
        return error_set(place->err, ATTUNE_ERROR_FORMAT, place->where,
                         "has neither 'prompt' and 'response', nor 'messages', nor 'Context', 'Input' and 'Response'");
    if (plain + context + (messages != NULL) > 1)
        return error_set(place->err, ATTUNE_ERROR_FORMAT, place->where,
                         "mixes the keys of two shapes: 'prompt' and 'response', 'messages', or 'Context', 'Input' and "
                         "'Response'");
    if (messages) return shape_messages(messages, row, place);
    if (context) return shape_context(object, row, place);
    int code = need_text(object, "prompt", &row->interaction.prompt, place);
    return code == ATTUNE_OK ? need_text(object, "response", &row->interaction.response, place) : code;
}

/* ---- feedback ---- */

static int take_feedback_item(json_t *item, attune_feedback *out, const struct place *place) {
    int said;
    if (!json_is_object(item))
        return error_set(place->err, ATTUNE_ERROR_FORMAT, place->where, "feedback %zu is not an object", place->number);
    int code = check_keys(item, feedback_keys, JSONL_COUNT(feedback_keys), place);
    if (code == ATTUNE_OK)
        code = take_name(item, "kind", jsonl_kinds, JSONL_COUNT(jsonl_kinds), &out->kind, &said, place);
    if (code == ATTUNE_OK && !said) code = bad(place, "kind", "is missing");
    if (code != ATTUNE_OK) return code;
    json_t *value = json_object_get(item, "value");
    if (out->kind == ATTUNE_FEEDBACK_THUMB) {
        code = take_thumb(value, &out->value, "value", place);
    } else if (value) {
        if (!json_is_integer(value)) return bad(place, "value", "must be an integer");
        out->value = json_integer_value(value);
    }
    if (code == ATTUNE_OK) code = take_text(item, "text", &out->text, place);
    if (code == ATTUNE_OK) code = take_time(item, &out->time_ms, place);
    return code;
}

static int take_feedback_list(json_t *list, struct jsonl_row *row, const struct place *place) {
    size_t i;
    json_t *item;
    json_array_foreach(list, i, item) {
        const struct place here = {place->where, place->err, "feedback", i + 1};
        int code = take_feedback_item(item, &row->feedback[row->n_feedback++], &here);
        if (code != ATTUNE_OK) return code;
    }
    return ATTUNE_OK;
}

static int take_feedback(json_t *object, struct jsonl_row *row, const struct place *place) {
    json_t *thumb = json_object_get(object, "thumb"), *edit = json_object_get(object, "edit");
    json_t *list = json_object_get(object, "feedback");
    if (list && !json_is_array(list)) return bad(place, "feedback", "must be an array");
    size_t most = json_array_size(list) + (thumb != NULL) + (edit != NULL);
    int code = ATTUNE_OK;
    if (most == 0) return ATTUNE_OK;
    row->feedback = calloc(most, sizeof *row->feedback);
    if (!row->feedback) return error_set_memory(place->err, "feedback", most * sizeof *row->feedback);
    if (thumb) {
        attune_feedback *out = &row->feedback[row->n_feedback++];
        out->kind = ATTUNE_FEEDBACK_THUMB;
        code = take_thumb(thumb, &out->value, "thumb", place);
    }
    if (code == ATTUNE_OK && edit) {
        attune_feedback *out = &row->feedback[row->n_feedback++];
        out->kind = ATTUNE_FEEDBACK_EDIT;
        code = take_text(object, "edit", &out->text, place);
    }
    if (code == ATTUNE_OK) code = take_feedback_list(list, row, place);
    for (size_t i = 0; code == ATTUNE_OK && i < row->n_feedback; i++) {
        row->feedback[i].size = sizeof row->feedback[i];
        code = store_check_feedback(&row->feedback[i], place->where, place->err);
    }
    if (code != ATTUNE_ERROR_ARGUMENT) return code;
    if (place->err) place->err->code = ATTUNE_ERROR_FORMAT; /* the file is at fault, not the caller */
    return ATTUNE_ERROR_FORMAT;
}

/* ---- the row ---- */

static int take_labels(json_t *object, attune_interaction *out, const struct place *place) {
    const struct {
        const char *key;
        const char **out;
    } labels[] = {{"app", &out->app},     {"session", &out->session}, {"source", &out->source},
                  {"model", &out->model}, {"adapter", &out->adapter}, {"template_hash", &out->template_hash}};
    int code = ATTUNE_OK;
    for (size_t i = 0; code == ATTUNE_OK && i < JSONL_COUNT(labels); i++)
        code = take_text(object, labels[i].key, labels[i].out, place);
    return code;
}

static int take_row(json_t *object, struct jsonl_row *row, const struct place *place) {
    attune_interaction *interaction = &row->interaction;
    int said;
    int code = check_keys(object, keys, JSONL_COUNT(keys), place);
    if (code == ATTUNE_OK) code = take_shape(object, row, place);
    if (code == ATTUNE_OK) code = take_id(object, &row->id, place);
    if (code == ATTUNE_OK) code = take_labels(object, interaction, place);
    if (code == ATTUNE_OK) code = take_time(object, &interaction->time_ms, place);
    if (code == ATTUNE_OK) code = take_consent(object, &interaction->consent, place);
    if (code == ATTUNE_OK)
        code =
            take_name(object, "tier", jsonl_tiers, JSONL_COUNT(jsonl_tiers), &interaction->tier, &row->has_tier, place);
    if (code == ATTUNE_OK)
        code = take_name(object, "sensitivity", jsonl_sensitivities, JSONL_COUNT(jsonl_sensitivities),
                         &interaction->sensitivity, &said, place);
    if (code == ATTUNE_OK) code = take_findings(object, &row->private_findings, place);
    return code == ATTUNE_OK ? take_feedback(object, row, place) : code;
}

static int load(const char *text, size_t length, void **json, const struct place *place) {
    json_t *loaded;
    if (json_text_values(text, length) > JSONL_VALUES_MAX)
        return error_set(place->err, ATTUNE_ERROR_FORMAT, place->where, "more than %d values in one object",
                         JSONL_VALUES_MAX);
    int code = json_text_parse(text, length, place->where, &loaded, place->err);
    if (code != ATTUNE_OK) return code;
    *json = loaded;
    if (json_is_object(loaded)) return ATTUNE_OK;
    return error_set(place->err, ATTUNE_ERROR_FORMAT, place->where, "not a JSON object");
}

int jsonl_row_parse(const char *text, size_t length, const char *where, struct jsonl_row *out, attune_error *err) {
    struct jsonl_row row = {0};
    const struct place place = {.where = where, .err = err};
    row.interaction.size = sizeof row.interaction;
    int code = load(text, length, &row.json, &place);
    if (code == ATTUNE_OK) code = take_row(row.json, &row, &place);
    if (code == ATTUNE_OK)
        *out = row;
    else
        jsonl_row_free(&row);
    return code;
}

void jsonl_row_free(struct jsonl_row *row) {
    free(row->feedback);
    free(row->messages);
    free(row->joined);
    json_decref(row->json);
    memset(row, 0, sizeof *row);
}

int jsonl_uuid_check(const char *text) {
    size_t i = 0;
    for (; text[i]; i++) {
        if (i == 8 || i == 13 || i == 18 || i == 23) {
            if (text[i] != '-') return 0;
        } else if (i >= 36 || !((text[i] >= '0' && text[i] <= '9') || (text[i] >= 'a' && text[i] <= 'f'))) {
            return 0;
        }
    }
    return i == 36;
}
