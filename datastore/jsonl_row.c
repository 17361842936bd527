#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "datastore/jsonl.h"

/* jansson takes about 100 bytes for the smallest value: these keep a line of brackets from taking
 * fifty times its own size. */
enum { DEPTH_MAX = 32, VALUES_MAX = 100000 };

static const char *const keys[] = {"prompt", "response", "messages", "Context", "Input", "Response", "time",
                                   "app",    "session",  "source",   "consent", "thumb", "edit",     "feedback"};
static const char *const feedback_keys[] = {"kind", "value", "text", "time"};
static const char *const message_keys[] = {"role", "content"};
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static const struct {
    const char *name;
    int kind;
} kinds[] = {
    {"thumb", ATTUNE_FEEDBACK_THUMB},   {"edit", ATTUNE_FEEDBACK_EDIT}, {"accept", ATTUNE_FEEDBACK_ACCEPT},
    {"reject", ATTUNE_FEEDBACK_REJECT}, {"copy", ATTUNE_FEEDBACK_COPY}, {"regenerate", ATTUNE_FEEDBACK_REGENERATE},
    {"dwell", ATTUNE_FEEDBACK_DWELL},   {"undo", ATTUNE_FEEDBACK_UNDO},
};

static int bad(attune_error *err, const char *where, const char *what, const char *key) {
    return error_set(err, ATTUNE_ERROR_FORMAT, where, "%s: '%.40s'", what, key);
}

/* ---- text to JSON ---- */

/* Brackets and commas outside strings, counted before anything is allocated. */
static int scan(const char *text, size_t n, const char *where, attune_error *err) {
    size_t values = 0, depth = 0;
    int quoted = 0;
    for (size_t i = 0; i < n; i++) {
        char c = text[i];
        if (quoted) {
            if (c == '\\')
                i++;
            else if (c == '"')
                quoted = 0;
            continue;
        }
        if (c == '"') quoted = 1;
        if (c == ']' || c == '}') depth -= depth > 0;
        if (c == '[' || c == '{') depth++;
        values += c == '[' || c == '{' || c == ',';
        if (depth > DEPTH_MAX)
            return error_set(err, ATTUNE_ERROR_FORMAT, where, "nested deeper than %d at byte %zu", DEPTH_MAX, i);
        if (values > VALUES_MAX)
            return error_set(err, ATTUNE_ERROR_FORMAT, where, "more than %d values in one object", VALUES_MAX);
    }
    return ATTUNE_OK;
}

/* jansson quotes the text near the fault; that is private and stays out of the message. */
static int not_json(const json_error_t *said, const char *where, attune_error *err) {
    const char *near = strstr(said->text, " near ");
    int n = near ? (int)(near - said->text) : (int)strlen(said->text);
    if (json_error_code(said) == json_error_out_of_memory) return error_set_memory(err, "a JSON object", 0);
    return error_set(err, ATTUNE_ERROR_FORMAT, where, "not valid JSON: %.*s (byte %d)", n, said->text, said->position);
}

static int load(const char *text, size_t length, const char *where, json_t **out, attune_error *err) {
    if (memchr(text, 0, length)) return error_set(err, ATTUNE_ERROR_FORMAT, where, "holds a NUL byte");
    size_t good = store_utf8_check(text, length);
    if (good < length) return error_set(err, ATTUNE_ERROR_FORMAT, where, "not UTF-8 at byte %zu", good);
    int code = scan(text, length, where, err);
    if (code != ATTUNE_OK) return code;
    json_error_t said;
    json_t *json = json_loadb(text, length, JSON_REJECT_DUPLICATES, &said);
    if (!json) return not_json(&said, where, err);
    if (!json_is_object(json)) {
        json_decref(json);
        return error_set(err, ATTUNE_ERROR_FORMAT, where, "not a JSON object");
    }
    *out = json;
    return ATTUNE_OK;
}

/* ---- members ---- */

static char lower(char c) { return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c; }

static int same_but_case(const char *a, const char *b) {
    for (; *a && lower(*a) == lower(*b); a++, b++) {
    }
    return !*a && !*b;
}

/* Other keys are ignored, but "Prompt" for "prompt" is a mistake that would lose data in silence. */
static int check_keys(json_t *object, const char *const *known, size_t n, const char *where, attune_error *err) {
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
            return error_set(err, ATTUNE_ERROR_FORMAT, where, "the key '%.40s' must be written '%s'", key, meant);
    }
    return ATTUNE_OK;
}

/* Absent: *out stays as it is. */
static int take_text(json_t *object, const char *key, const char **out, const char *where, attune_error *err) {
    json_t *value = json_object_get(object, key);
    if (!value) return ATTUNE_OK;
    if (!json_is_string(value)) return bad(err, where, "must be a string", key);
    *out = json_string_value(value);
    return ATTUNE_OK;
}

static int need_text(json_t *object, const char *key, const char **out, const char *where, attune_error *err) {
    if (!json_object_get(object, key)) return bad(err, where, "lacks the key", key);
    return take_text(object, key, out, where, err);
}

static int take_time(json_t *object, int64_t *out, const char *where, attune_error *err) {
    json_t *value = json_object_get(object, "time");
    if (!value) return ATTUNE_OK;
    if (json_is_integer(value) && json_integer_value(value) > 0 && json_integer_value(value) <= STORE_TIME_MAX) {
        *out = json_integer_value(value);
        return ATTUNE_OK;
    }
    if (json_is_string(value) && store_time_parse(json_string_value(value), out)) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_FORMAT, where,
                     "'time' must be milliseconds since 1970 or a time like \"2026-11-23T05:00:00Z\"");
}

/* "up", "down", 1 or -1. */
static int take_thumb(json_t *value, int64_t *out, const char *key, const char *where, attune_error *err) {
    const char *text = json_string_value(value);
    if (text && strcmp(text, "up") == 0)
        *out = 1;
    else if (text && strcmp(text, "down") == 0)
        *out = -1;
    else if (json_is_integer(value) && (json_integer_value(value) == 1 || json_integer_value(value) == -1))
        *out = json_integer_value(value);
    else
        return error_set(err, ATTUNE_ERROR_FORMAT, where, "'%s' must be \"up\" or \"down\"", key);
    return ATTUNE_OK;
}

/* ---- the three shapes ---- */

static int shape_messages(json_t *array, struct jsonl_row *row, const char *where, attune_error *err) {
    size_t n = json_array_size(array);
    if (!json_is_array(array)) return bad(err, where, "must be an array", "messages");
    if (n < 2)
        return error_set(err, ATTUNE_ERROR_FORMAT, where,
                         "'messages' needs a user message and the assistant's after it");
    row->messages = calloc(n, sizeof *row->messages);
    if (!row->messages) return error_set_memory(err, "messages", n * sizeof *row->messages);
    for (size_t i = 0; i < n; i++) {
        json_t *item = json_array_get(array, i);
        attune_message *message = &row->messages[i];
        if (!json_is_object(item))
            return error_set(err, ATTUNE_ERROR_FORMAT, where, "message %zu is not an object", i + 1);
        int code = check_keys(item, message_keys, COUNT(message_keys), where, err);
        if (code == ATTUNE_OK) code = need_text(item, "role", &message->role, where, err);
        if (code == ATTUNE_OK) code = need_text(item, "content", &message->content, where, err);
        if (code != ATTUNE_OK) return code;
    }
    if (strcmp(row->messages[n - 1].role, "assistant") != 0)
        return error_set(err, ATTUNE_ERROR_FORMAT, where,
                         "the last of 'messages' must be the assistant's: it is the response");
    row->interaction.messages = row->messages;
    row->interaction.n_messages = n - 1;
    row->interaction.response = row->messages[n - 1].content;
    return ATTUNE_OK;
}

static int shape_context(json_t *object, struct jsonl_row *row, const char *where, attune_error *err) {
    const char *context = NULL, *input = NULL;
    int code = need_text(object, "Context", &context, where, err);
    if (code == ATTUNE_OK) code = need_text(object, "Input", &input, where, err);
    if (code == ATTUNE_OK) code = need_text(object, "Response", &row->interaction.response, where, err);
    if (code != ATTUNE_OK) return code;
    if (!context[0]) return error_set(err, ATTUNE_ERROR_FORMAT, where, "'Context' is empty");
    size_t size = strlen(context) + strlen(input) + 3;
    row->joined = malloc(size);
    if (!row->joined) return error_set_memory(err, "a prompt", size);
    snprintf(row->joined, size, "%s: %s", context, input);
    row->interaction.prompt = row->joined;
    return ATTUNE_OK;
}

static int has_any(json_t *object, const char *const *names, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (json_object_get(object, names[i])) return 1;
    return 0;
}

static int take_shape(json_t *object, struct jsonl_row *row, const char *where, attune_error *err) {
    static const char *const plain[] = {"prompt", "response"}, *const context[] = {"Context", "Input", "Response"};
    json_t *messages = json_object_get(object, "messages");
    int a = has_any(object, plain, COUNT(plain)), b = messages != NULL, c = has_any(object, context, COUNT(context));
    if (a + b + c == 0)
        return error_set(err, ATTUNE_ERROR_FORMAT, where,
                         "has neither 'prompt' and 'response', nor 'messages', nor 'Context', 'Input' and 'Response'");
    if (a + b + c > 1)
        return error_set(err, ATTUNE_ERROR_FORMAT, where,
                         "mixes the keys of two shapes: 'prompt' and 'response', 'messages', or 'Context', 'Input' and "
                         "'Response'");
    if (b) return shape_messages(messages, row, where, err);
    if (c) return shape_context(object, row, where, err);
    int code = need_text(object, "prompt", &row->interaction.prompt, where, err);
    return code == ATTUNE_OK ? need_text(object, "response", &row->interaction.response, where, err) : code;
}

/* ---- feedback ---- */

static int take_feedback_item(json_t *item, attune_feedback *out, const char *where, attune_error *err) {
    const char *kind = NULL;
    if (!json_is_object(item))
        return error_set(err, ATTUNE_ERROR_FORMAT, where, "an item of 'feedback' is not an object");
    int code = check_keys(item, feedback_keys, COUNT(feedback_keys), where, err);
    if (code == ATTUNE_OK) code = need_text(item, "kind", &kind, where, err);
    if (code != ATTUNE_OK) return code;
    for (size_t i = 0; i < COUNT(kinds); i++)
        if (strcmp(kind, kinds[i].name) == 0) out->kind = kinds[i].kind;
    if (!out->kind) return bad(err, where, "unknown kind of feedback", kind);
    json_t *value = json_object_get(item, "value");
    if (out->kind == ATTUNE_FEEDBACK_THUMB) {
        code = take_thumb(value, &out->value, "value", where, err);
    } else if (value) {
        if (!json_is_integer(value)) return bad(err, where, "must be an integer", "value");
        out->value = json_integer_value(value);
    }
    if (code == ATTUNE_OK) code = take_text(item, "text", &out->text, where, err);
    if (code == ATTUNE_OK) code = take_time(item, &out->time_ms, where, err);
    return code;
}

static int take_feedback(json_t *object, struct jsonl_row *row, const char *where, attune_error *err) {
    json_t *thumb = json_object_get(object, "thumb"), *edit = json_object_get(object, "edit");
    json_t *list = json_object_get(object, "feedback");
    if (list && !json_is_array(list)) return bad(err, where, "must be an array", "feedback");
    size_t most = json_array_size(list) + 2;
    int code = ATTUNE_OK;
    row->feedback = calloc(most, sizeof *row->feedback);
    if (!row->feedback) return error_set_memory(err, "feedback", most * sizeof *row->feedback);
    if (thumb) {
        attune_feedback *out = &row->feedback[row->n_feedback++];
        out->kind = ATTUNE_FEEDBACK_THUMB;
        code = take_thumb(thumb, &out->value, "thumb", where, err);
    }
    if (code == ATTUNE_OK && edit) {
        attune_feedback *out = &row->feedback[row->n_feedback++];
        out->kind = ATTUNE_FEEDBACK_EDIT;
        code = take_text(object, "edit", &out->text, where, err);
    }
    for (size_t i = 0; code == ATTUNE_OK && i < json_array_size(list); i++)
        code = take_feedback_item(json_array_get(list, i), &row->feedback[row->n_feedback++], where, err);
    for (size_t i = 0; code == ATTUNE_OK && i < row->n_feedback; i++)
        code = store_check_feedback(&row->feedback[i], where, err);
    return code;
}

/* ---- the row ---- */

static int take_consent(json_t *object, int *consent, const char *where, attune_error *err) {
    json_t *value = json_object_get(object, "consent");
    if (!value) return ATTUNE_OK;
    if (!json_is_boolean(value)) return bad(err, where, "must be true or false", "consent");
    *consent = json_is_true(value) ? ATTUNE_CONSENT_GIVEN : ATTUNE_CONSENT_NOT_GIVEN;
    return ATTUNE_OK;
}

int jsonl_row_parse(const char *text, size_t length, const char *where, struct jsonl_row *out, attune_error *err) {
    struct jsonl_row row = {0};
    json_t *json = NULL;
    row.interaction.size = sizeof row.interaction;
    int code = load(text, length, where, &json, err);
    row.json = json;
    if (code == ATTUNE_OK) code = check_keys(json, keys, COUNT(keys), where, err);
    if (code == ATTUNE_OK) code = take_shape(json, &row, where, err);
    if (code == ATTUNE_OK) code = take_text(json, "app", &row.interaction.app, where, err);
    if (code == ATTUNE_OK) code = take_text(json, "session", &row.interaction.session, where, err);
    if (code == ATTUNE_OK) code = take_text(json, "source", &row.interaction.source, where, err);
    if (code == ATTUNE_OK) code = take_time(json, &row.interaction.time_ms, where, err);
    if (code == ATTUNE_OK) code = take_consent(json, &row.interaction.consent, where, err);
    if (code == ATTUNE_OK) code = take_feedback(json, &row, where, err);
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
