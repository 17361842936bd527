#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "datastore/json_text.h"
#include "datastore/jsonl.h"
#include "datastore/jsonl_names.h"

/* ---- objects ----
 * A value that could not be made leaves its object or array without it: `failed` then says so to the end. */

static void put(json_t *object, const char *key, json_t *value, int *failed) {
    if (json_object_set_new(object, key, value) != 0) *failed = 1;
}

static void append(json_t *array, json_t *value, int *failed) {
    if (json_array_append_new(array, value) != 0) *failed = 1;
}

/* NULL: left out. */
static void put_text(json_t *object, const char *key, const char *text, int *failed) {
    if (text) put(object, key, json_string(text), failed);
}

/* 0: left out. */
static void put_number(json_t *object, const char *key, int64_t value, int *failed) {
    if (value) put(object, key, json_integer(value), failed);
}

/* Takes the object. */
static int write_line(json_t *object, int failed, const char *where, char **text, size_t *n, attune_error *err) {
    char *line = NULL;
    size_t length = 0, values = 0;
    int code = json_text_write(failed ? NULL : object, "\n", &line, &length, err);
    json_decref(object);
    if (code != ATTUNE_OK) return code;
    values = json_text_values(line, length);
    if (length - 1 > STORE_TEXT_MAX)
        code = error_set(err, ATTUNE_ERROR_UNSUPPORTED, where, "takes a line of %zu bytes: more than %zu MiB",
                         length - 1, STORE_TEXT_MAX >> 20);
    else if (values > JSONL_VALUES_MAX)
        code = error_set(err, ATTUNE_ERROR_UNSUPPORTED, where, "takes a line of %zu values: more than %d", values,
                         JSONL_VALUES_MAX);
    if (code != ATTUNE_OK) {
        free(line);
        return code;
    }
    *text = line;
    *n = length;
    return ATTUNE_OK;
}

/* ---- conversations ---- */

static json_t *make_message(const char *role, const char *content, int *failed) {
    json_t *message = json_object();
    put_text(message, "role", role, failed);
    put_text(message, "content", content, failed);
    return message;
}

/* response NULL: none. */
static json_t *make_messages(const attune_message *messages, size_t n, const char *response, int *failed) {
    json_t *array = json_array();
    for (size_t i = 0; i < n && !*failed; i++)
        append(array, make_message(messages[i].role, messages[i].content, failed), failed);
    if (response) append(array, make_message("assistant", response, failed), failed);
    return array;
}

int jsonl_write_chat(const attune_message *messages, size_t n_messages, const char *response, char **text, size_t *n,
                     attune_error *err) {
    int failed = 0, code = store_content_check(messages, n_messages, response, NULL, err);
    if (code != ATTUNE_OK) return code;
    json_t *object = json_object();
    put(object, "messages", make_messages(messages, n_messages, response, &failed), &failed);
    return write_line(object, failed, NULL, text, n, err);
}

int jsonl_write_preference(const attune_message *messages, size_t n_messages, const char *chosen, const char *rejected,
                           char **text, size_t *n, attune_error *err) {
    int failed = 0, code = store_content_check(messages, n_messages, chosen, NULL, err);
    if (code == ATTUNE_OK) code = store_content_check(messages, n_messages, rejected, NULL, err);
    if (code != ATTUNE_OK) return code;
    json_t *object = json_object();
    put(object, "prompt", make_messages(messages, n_messages, NULL, &failed), &failed);
    put(object, "chosen", make_messages(NULL, 0, chosen, &failed), &failed);
    put(object, "rejected", make_messages(NULL, 0, rejected, &failed), &failed);
    return write_line(object, failed, NULL, text, n, err);
}

/* ---- rows ---- */

static const char *or_null(const char *text) { return text && text[0] ? text : NULL; }

static json_t *make_feedback(const attune_feedback *feedback, int *failed) {
    json_t *object = json_object();
    put_text(object, "kind", jsonl_kinds[feedback->kind], failed);
    if (feedback->kind == ATTUNE_FEEDBACK_THUMB)
        put_text(object, "value", feedback->value > 0 ? "up" : "down", failed);
    else
        put_number(object, "value", feedback->value, failed);
    put_text(object, "text", feedback->text, failed);
    put_number(object, "time", feedback->time_ms, failed);
    return object;
}

static json_t *make_feedback_list(const attune_row *row, int *failed) {
    json_t *array = json_array();
    for (size_t i = 0; i < row->n_feedback && !*failed; i++)
        append(array, make_feedback(&row->feedback[i], failed), failed);
    return array;
}

/* App, tier and consent stand there even when they say nothing: a row that tells none gets the import's own. */
static json_t *make_row(const attune_row *row, int *failed) {
    json_t *object = json_object();
    put_text(object, "id", or_null(row->id.text), failed);
    put_number(object, "time", row->time_ms, failed);
    put_text(object, "app", row->app ? row->app : "", failed);
    put_text(object, "session", or_null(row->session), failed);
    put_text(object, "source", or_null(row->source), failed);
    put_text(object, "tier", jsonl_tiers[row->tier], failed);
    if (row->sensitivity) put_text(object, "sensitivity", jsonl_sensitivities[row->sensitivity], failed);
    put(object, "consent", json_boolean(row->consent), failed);
    put_text(object, "model", row->model, failed);
    put_text(object, "adapter", row->adapter, failed);
    put_text(object, "template_hash", row->template_hash, failed);
    put_number(object, "private_findings", row->private_findings, failed);
    put(object, "messages", make_messages(row->messages, row->n_messages, row->response, failed), failed);
    if (row->n_feedback > 0) put(object, "feedback", make_feedback_list(row, failed), failed);
    return object;
}

static int check_labels(const attune_row *row, const char *where, attune_error *err) {
    const char *const labels[][2] = {{row->app, "app"},         {row->session, "session"},
                                     {row->source, "source"},   {row->model, "model"},
                                     {row->adapter, "adapter"}, {row->template_hash, "template_hash"}};
    for (size_t i = 0; i < JSONL_COUNT(labels); i++) {
        size_t n = labels[i][0] ? strlen(labels[i][0]) : 0;
        if (n > 0 && store_utf8_check(labels[i][0], n) < n)
            return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "%s is not UTF-8", labels[i][1]);
    }
    return ATTUNE_OK;
}

static int check_row(const attune_row *row, const char *where, attune_error *err) {
    if (row->time_ms < 0 || row->time_ms > STORE_TIME_MAX)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "the time lies outside the years 1970 to 9999");
    if (row->tier < ATTUNE_TIER_PERSON || row->tier > ATTUNE_TIER_TOOL)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "tier is %d: see enum attune_tier", row->tier);
    if (row->sensitivity < ATTUNE_SENSITIVITY_UNKNOWN || row->sensitivity > ATTUNE_SENSITIVITY_CLEARED)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "sensitivity is %d: see enum attune_sensitivity",
                         row->sensitivity);
    if (row->private_findings < 0)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "the number of private findings is negative");
    if (row->n_feedback > 0 && !row->feedback)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "the feedback is missing");
    int code = check_labels(row, where, err);
    if (code == ATTUNE_OK) code = store_content_check(row->messages, row->n_messages, row->response, where, err);
    for (size_t i = 0; code == ATTUNE_OK && i < row->n_feedback; i++)
        code = store_check_feedback(&row->feedback[i], where, err);
    return code;
}

int jsonl_write_row(const attune_row *row, char **text, size_t *n, attune_error *err) {
    char where[64];
    int failed = 0;
    if (!memchr(row->id.text, 0, sizeof row->id.text) || (row->id.text[0] && !jsonl_uuid_check(row->id.text)))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the id of the interaction is not a UUID in lower case");
    snprintf(where, sizeof where, "interaction %s", row->id.text);
    int code = check_row(row, row->id.text[0] ? where : NULL, err);
    if (code != ATTUNE_OK) return code;
    json_t *object = make_row(row, &failed);
    return write_line(object, failed, row->id.text[0] ? where : NULL, text, n, err);
}
