#include "cli/markup.h"

#include "cli/cli.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { CAPACITY_FIRST = 4096 };

/* Room for n more bytes and a NUL. */
static bool reserve(struct markup *m, size_t n) {
    if (m->failed) return false;
    size_t capacity = m->capacity ? m->capacity : CAPACITY_FIRST;
    while (capacity - m->length <= n && capacity <= SIZE_MAX / 4) capacity *= 2;
    if (capacity == m->capacity) return true;
    char *text = capacity - m->length > n ? realloc(m->text, capacity) : NULL;
    if (!text) {
        m->failed = true;
        return false;
    }
    m->text = text;
    m->capacity = capacity;
    return true;
}

static void append(struct markup *m, const char *text, size_t n) {
    if (!reserve(m, n)) return;
    memcpy(m->text + m->length, text, n);
    m->length += n;
    m->text[m->length] = '\0';
}

void markup_add(struct markup *m, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    if (n < 0) m->failed = true;
    else if (reserve(m, (size_t)n)) {
        vsnprintf(m->text + m->length, (size_t)n + 1, format, again);
        m->length += (size_t)n;
    }
    va_end(again);
    va_end(args);
}

/* XML 1.0, production 2 (Char), leaves out C0 but tab and the ends of lines, and U+FFFE and U+FFFF. C1 and DEL are
 * allowed but discouraged, and no page needs them. */
static bool is_allowed(const char *at, size_t n) {
    const unsigned char *c = (const unsigned char *)at;
    if (n == 1) return (c[0] >= 0x20 && c[0] != 0x7F) || c[0] == '\t' || c[0] == '\n';
    if (n == 2) return c[0] != 0xC2 || c[1] >= 0xA0;
    return n != 3 || c[0] != 0xEF || c[1] != 0xBF || c[2] < 0xBE;
}

static const char *escaped(char c) {
    switch (c) {
    case '&': return "&amp;";
    case '<': return "&lt;";
    case '>': return "&gt;";
    case '"': return "&quot;";
    case '\'': return "&#39;";
    default: return NULL;
    }
}

void markup_text(struct markup *m, const char *text) {
    while (*text) {
        size_t n = 1, left = strnlen(text, 4);
        while (n < left && cli_utf8_valid(text, n) != n) n++; /* the shortest whole character */
        bool valid = cli_utf8_valid(text, n) == n;
        if (!valid) n = 1;
        const char *entity = valid ? escaped(*text) : NULL;
        if (entity) append(m, entity, strlen(entity));
        else if (valid && is_allowed(text, n)) append(m, text, n);
        else append(m, "\xEF\xBF\xBD", 3);
        text += n;
    }
}

void markup_number(struct markup *m, double value) {
    char digits[32];
    double bound = 1e9; /* of what is drawn; keeps the text short */
    if (!isfinite(value)) value = 0;
    snprintf(digits, sizeof digits, "%.2f", value > bound ? bound : value < -bound ? -bound : value);
    size_t n = strlen(digits);
    while (digits[n - 1] == '0') n--;
    if (digits[n - 1] == '.') n--;
    digits[n] = '\0';
    markup_add(m, "%s", strcmp(digits, "-0") == 0 ? "0" : digits);
}

char *markup_take(struct markup *m, size_t *length) {
    char *text = m->failed ? NULL : m->text;
    if (length) *length = text ? m->length : 0;
    if (!text) free(m->text);
    *m = (struct markup){.failed = false};
    return text;
}

void markup_free(struct markup *m) {
    free(m->text);
    *m = (struct markup){.failed = false};
}
