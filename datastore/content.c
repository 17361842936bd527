#include "datastore/content.h"

#include <jansson.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "datastore/json_text.h"

/* Of the first user message, for the prompt hash: more would not tell two requests apart, and Unicode
 * normalisation can take 70 bytes of memory for each one of text. */
#define PROMPT_HASH_BYTES ((size_t)64 << 10)

/* ---- text ---- */

static int text_check(const char *text, const char *name, int may_be_empty, size_t *total, const char *where,
                      attune_error *err) {
    if (!text) return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "%s is missing", name);
    size_t n = strlen(text);
    if (n == 0 && !may_be_empty) return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "%s is empty", name);
    if (n > STORE_TEXT_MAX - *total)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "the interaction is longer than %zu MiB",
                         STORE_TEXT_MAX >> 20);
    *total += n;
    size_t bad = store_utf8_check(text, n);
    if (bad < n) return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "%s is not UTF-8 at byte %zu", name, bad);
    return ATTUNE_OK;
}

int store_content_check(const attune_message *messages, size_t n, const char *response, const char *where,
                        attune_error *err) {
    size_t total = 0;
    int asked = 0;
    if (n > 0 && !messages) return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "the messages are missing");
    for (size_t i = 0; i < n; i++) {
        const char *role = messages[i].role;
        char name[64];
        int user = role && strcmp(role, "user") == 0, system = role && strcmp(role, "system") == 0;
        if (!user && !system && (!role || strcmp(role, "assistant") != 0))
            return error_set(err, ATTUNE_ERROR_ARGUMENT, where,
                             "the role of message %zu is none of system, user and assistant", i + 1);
        snprintf(name, sizeof name, "message %zu (%s)", i + 1, role);
        int code = text_check(messages[i].content, name, system, &total, where, err);
        if (code != ATTUNE_OK) return code;
        asked |= user;
    }
    if (!asked) return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "there is no user message before the response");
    return text_check(response, "the response", 0, &total, where, err);
}

int store_check_feedback(const attune_feedback *feedback, const char *where, attune_error *err) {
    size_t n = feedback->text ? strlen(feedback->text) : 0;
    if (feedback->kind < ATTUNE_FEEDBACK_THUMB || feedback->kind > ATTUNE_FEEDBACK_UNDO)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "feedback of kind %d: see enum attune_feedback_kind",
                         feedback->kind);
    if (feedback->kind == ATTUNE_FEEDBACK_THUMB && feedback->value != 1 && feedback->value != -1)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "a thumb is +1 (up) or -1 (down)");
    if (feedback->kind == ATTUNE_FEEDBACK_DWELL && feedback->value < 0)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "a dwell time is in milliseconds and not negative");
    if (feedback->kind == ATTUNE_FEEDBACK_EDIT && n == 0)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "an edit needs its text, and it must not be empty");
    if (n > STORE_TEXT_MAX)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "the text of the feedback is longer than %zu MiB",
                         STORE_TEXT_MAX >> 20);
    if (n > 0 && store_utf8_check(feedback->text, n) < n)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "the text of the feedback is not UTF-8");
    if (feedback->time_ms < 0 || feedback->time_ms > STORE_TIME_MAX)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "the time lies outside the years 1970 to 9999");
    return ATTUNE_OK;
}

/* ---- hashes ---- */

void store_content_hash(const attune_message *messages, size_t n, const char *response, char hex[HASH_HEX_SIZE]) {
    struct hash hash;
    hash_start(&hash);
    hash_add_u64(&hash, n);
    for (size_t i = 0; i < n; i++) {
        hash_add_string(&hash, messages[i].role);
        hash_add_string(&hash, messages[i].content);
    }
    hash_add_string(&hash, response);
    hash_finish(&hash, hex);
}

static int is_word(utf8proc_int32_t code_point) {
    switch (utf8proc_category(code_point)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
        return 1;
    default:
        return 0;
    }
}

/* In place: runs of anything but letters, marks and numbers become one space, none at the ends. */
static size_t keep_words(utf8proc_uint8_t *text, size_t n) {
    size_t kept = 0;
    int gap = 0;
    for (size_t i = 0; i < n;) {
        utf8proc_int32_t code_point;
        utf8proc_ssize_t used = utf8proc_iterate(text + i, (utf8proc_ssize_t)(n - i), &code_point);
        if (used <= 0) break;
        if (is_word(code_point)) {
            if (gap && kept > 0) text[kept++] = ' ';
            memmove(text + kept, text + i, (size_t)used);
            kept += (size_t)used;
            gap = 0;
        } else {
            gap = 1;
        }
        i += (size_t)used;
    }
    return kept;
}

int store_prompt_normalise(const attune_message *messages, size_t n, char **out, size_t *out_size, attune_error *err) {
    const char *text = "";
    for (size_t i = n; i-- > 0;)
        if (strcmp(messages[i].role, "user") == 0) text = messages[i].content;
    size_t size = strlen(text);
    if (size > PROMPT_HASH_BYTES) {
        size = PROMPT_HASH_BYTES;
        while (size > 0 && ((unsigned char)text[size] & 0xc0) == 0x80) size--; /* not in the middle of a character */
    }
    utf8proc_uint8_t *folded = NULL;
    utf8proc_ssize_t folded_size =
        utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)size, &folded,
                     UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT | UTF8PROC_CASEFOLD | UTF8PROC_IGNORE);
    if (folded_size < 0) {
        free(folded);
        if (folded_size == UTF8PROC_ERROR_NOMEM) return error_set_memory(err, "a normalised prompt", size);
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the prompt cannot be normalised: %s",
                         utf8proc_errmsg(folded_size));
    }
    size_t kept = keep_words(folded, (size_t)folded_size);
    if (kept == 0) { /* nothing but signs: as it was */
        utf8proc_uint8_t *copy = realloc(folded, size + 1);
        if (!copy) {
            free(folded);
            return error_set_memory(err, "a normalised prompt", size);
        }
        folded = copy;
        memcpy(folded, text, size);
        kept = size;
    }
    *out = (char *)folded;
    *out_size = kept;
    return ATTUNE_OK;
}

void store_prompt_hash(const char *normalised, size_t n, char hex[HASH_HEX_SIZE]) { hash_bytes(normalised, n, hex); }

/* ---- the column ---- */

int store_messages_write(const attune_message *messages, size_t n, char **out, attune_error *err) {
    int code = ATTUNE_OK;
    size_t length;
    json_t *array = json_array();
    for (size_t i = 0; array && i < n; i++) {
        json_t *item = json_object();
        if (!item || json_object_set_new(item, "role", json_string(messages[i].role)) != 0 ||
            json_object_set_new(item, "content", json_string(messages[i].content)) != 0 ||
            json_array_append(array, item) != 0) {
            json_decref(item);
            code = error_set_memory(err, "the text of a conversation", n * sizeof *messages);
            goto out;
        }
        json_decref(item);
    }
    code = json_text_write(array, "", out, &length, err);
out:
    json_decref(array);
    return code;
}

int store_messages_read(const char *text, const char *where, struct store_messages *out, attune_error *err) {
    struct store_messages read = {0};
    json_t *array = NULL;
    if (json_text_parse(text, strlen(text), where, &array, err) == ATTUNE_ERROR_MEMORY) return ATTUNE_ERROR_MEMORY;
    read.n = json_array_size(array);
    read.json = array;
    if (read.n > 0) {
        read.list = calloc(read.n, sizeof *read.list);
        if (!read.list) {
            json_decref(array);
            return error_set_memory(err, "messages", read.n * sizeof *read.list);
        }
    }
    int good = read.n > 0;
    for (size_t i = 0; i < read.n; i++) {
        json_t *item = json_array_get(array, i);
        read.list[i].role = json_string_value(json_object_get(item, "role"));
        read.list[i].content = json_string_value(json_object_get(item, "content"));
        good = good && read.list[i].role && read.list[i].content;
    }
    if (!good) {
        store_messages_free(&read);
        return error_set(err, ATTUNE_ERROR_FORMAT, where,
                         "the messages of an interaction cannot be read: the store is damaged, restore a backup");
    }
    *out = read;
    return ATTUNE_OK;
}

void store_messages_free(struct store_messages *messages) {
    free(messages->list);
    json_decref(messages->json);
    memset(messages, 0, sizeof *messages);
}

/* ---- names and times ---- */

/* RFC 9562, 5.7: 48 bits of milliseconds, the version, 74 random bits around the variant. */
void store_uuid_make(int64_t time_ms, attune_uuid *out) {
    unsigned char b[16];
    randombytes_buf(b, sizeof b);
    for (int i = 0; i < 6; i++) b[i] = (unsigned char)((uint64_t)time_ms >> (8 * (5 - i)));
    b[6] = (unsigned char)(0x70 | (b[6] & 0x0f));
    b[8] = (unsigned char)(0x80 | (b[8] & 0x3f));
    char hex[33];
    sodium_bin2hex(hex, sizeof hex, b, sizeof b);
    snprintf(out->text, sizeof out->text, "%.8s-%.4s-%.4s-%.4s-%.12s", hex, hex + 8, hex + 12, hex + 16, hex + 20);
}

static int digits(const char **at, int count, int64_t *value) {
    *value = 0;
    for (int i = 0; i < count; i++, (*at)++) {
        if (**at < '0' || **at > '9') return 0;
        *value = *value * 10 + (**at - '0');
    }
    return 1;
}

static int literal(const char **at, char c) { return **at == c ? (*at)++, 1 : 0; }

/* Days from 1970-01-01, proleptic Gregorian; years from 1970 on. */
static int64_t days(int64_t year, int64_t month, int64_t day) {
    static const int before[] = {0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334};
    int64_t y = year - 1;
    int leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    return y * 365 + y / 4 - y / 100 + y / 400 - 719162 + before[month - 1] + (leap && month > 2) + day - 1;
}

static int month_days(int64_t year, int64_t month) {
    return (int)(month == 12 ? 31 : days(year, month + 1, 1) - days(year, month, 1));
}

int store_time_parse(const char *text, int64_t *time_ms) {
    const char *at = text;
    int64_t year, month, day, hour, minute, second, milli = 0, offset = 0;
    if (!digits(&at, 4, &year) || !literal(&at, '-') || !digits(&at, 2, &month) || !literal(&at, '-') ||
        !digits(&at, 2, &day) || !literal(&at, 'T') || !digits(&at, 2, &hour) || !literal(&at, ':') ||
        !digits(&at, 2, &minute) || !literal(&at, ':') || !digits(&at, 2, &second))
        return 0;
    if (year < 1970 || month < 1 || month > 12 || day < 1 || day > month_days(year, month) || hour > 23 ||
        minute > 59 || second > 59)
        return 0;
    if (literal(&at, '.')) {
        int64_t scale = 100;
        const char *first = at;
        for (; *at >= '0' && *at <= '9'; at++, scale /= 10) milli += (*at - '0') * scale;
        if (at == first) return 0;
    }
    if (!literal(&at, 'Z')) {
        int64_t hours, minutes;
        int sign = literal(&at, '+') ? 1 : literal(&at, '-') ? -1 : 0;
        if (!sign || !digits(&at, 2, &hours) || !literal(&at, ':') || !digits(&at, 2, &minutes) || hours > 23 ||
            minutes > 59)
            return 0;
        offset = sign * (hours * 60 + minutes);
    }
    int64_t ms = (((days(year, month, day) * 24 + hour) * 60 + minute - offset) * 60 + second) * 1000 + milli;
    if (*at || ms <= 0 || ms > STORE_TIME_MAX) return 0;
    *time_ms = ms;
    return 1;
}
