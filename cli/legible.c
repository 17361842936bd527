/* Texts out of the store for people's eyes. They may come from anywhere: nothing in them steers a terminal, now
 * or when what was printed into a file is looked at. */
#include "cli/cli.h"

#include <string.h>

static const char replacement[] = "\xEF\xBF\xBD";

/* ---- characters ---- */

/* The code point at *at, which moves behind it; -1: a byte that begins none. */
static int32_t next(const char **at) {
    static const unsigned char lead[] = {0x7F, 0x1F, 0x0F, 0x07};
    const unsigned char *text = (const unsigned char *)*at;
    size_t n = text[0] < 0x80 ? 1 : text[0] < 0xE0 ? 2 : text[0] < 0xF0 ? 3 : 4;
    if (strnlen(*at, n) < n || cli_utf8_valid(*at, n) != n) {
        ++*at;
        return -1;
    }
    int32_t c = text[0] & lead[n - 1];
    for (size_t i = 1; i < n; i++) c = c << 6 | (text[i] & 0x3F);
    *at += n;
    return c;
}

/* C1, separators of lines and paragraphs, and what turns the direction of the text around it. */
static bool is_hidden(int32_t c) {
    return c < 0 || (c >= 0x80 && c < 0xA0) || (c >= 0x2028 && c <= 0x202E) || (c >= 0x2066 && c <= 0x2069);
}

/* One character as it is shown: itself, its symbol (U+2400 on) or U+FFFD. n: bytes at `at`. */
static void put(const char *at, size_t n, int32_t c) {
    if (c >= 0 && c < 0x20) printf("\xE2\x90%c", 0x80 + (int)c);
    else if (c == 0x7F) fputs("\xE2\x90\xA1", stdout);
    else if (is_hidden(c)) fputs(replacement, stdout);
    else fwrite(at, 1, n, stdout);
}

struct range {
    int32_t first, last;
};

static bool is_in(const struct range *ranges, size_t n, int32_t c) {
    for (size_t i = 0; i < n; i++)
        if (c >= ranges[i].first && c <= ranges[i].last) return true;
    return false;
}

/* Columns of a terminal, nearly: marks that combine take none, East Asian wide characters and emoji two (Unicode
 * Standard Annex 11). What is wrong here makes a line too short or too long, no more. */
static size_t columns_of(int32_t c) {
    static const struct range none[] = {{0x300, 0x36F},   {0x483, 0x489},   {0x591, 0x5BD},   {0x610, 0x61A},
                                        {0x64B, 0x65F},   {0x93C, 0x93C},   {0x941, 0x948},   {0xE31, 0xE31},
                                        {0xE34, 0xE3A},   {0xE47, 0xE4E},   {0x1AB0, 0x1AFF}, {0x200B, 0x200F},
                                        {0x20D0, 0x20FF}, {0x2060, 0x2064}, {0xFE00, 0xFE0F}, {0xFE20, 0xFE2F},
                                        {0xFEFF, 0xFEFF}};
    static const struct range two[] = {{0x1100, 0x115F}, {0x2E80, 0x303E},   {0x3041, 0xA4CF},   {0xA960, 0xA97C},
                                       {0xAC00, 0xD7A3}, {0xF900, 0xFAFF},   {0xFE30, 0xFE6F},   {0xFF00, 0xFF60},
                                       {0xFFE0, 0xFFE6}, {0x1F300, 0x1F64F}, {0x1F680, 0x1F6FF}, {0x1F900, 0x1FAFF},
                                       {0x20000, 0x3FFFD}};
    if (c < 0x300 || is_hidden(c)) return 1;
    if (is_in(none, sizeof none / sizeof none[0], c)) return 0;
    return is_in(two, sizeof two / sizeof two[0], c) ? 2 : 1;
}

/* ---- texts ---- */

void cli_put_text(const char *text, int indent) {
    bool begins = true;
    while (*text) {
        const char *at = text;
        int32_t c = next(&text);
        if (c == '\r' && *text == '\n') continue;
        if (begins && c != '\n') printf("%*s", indent, "");
        begins = c == '\n';
        if (c == '\n' || c == '\t') putchar(c);
        else put(at, (size_t)(text - at), c);
    }
    if (!begins) putchar('\n');
}

static bool is_blank(int32_t c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/* One character of a line: any run of blanks counts as one space. */
static int32_t next_in_line(const char **text) {
    int32_t c = next(text);
    if (!is_blank(c)) return c;
    while (is_blank((unsigned char)**text)) ++*text;
    return ' ';
}

/* Columns of the text on one line, or more than `most`. */
static size_t measure(const char *text, size_t most) {
    size_t n = 0;
    while (*text && n <= most) n += columns_of(next_in_line(&text));
    return n;
}

size_t cli_put_line(const char *text, size_t columns) {
    while (is_blank((unsigned char)*text)) text++;
    bool cut = measure(text, columns) > columns;
    size_t room = cut && columns > 0 ? columns - 1 : columns, used = 0;
    while (*text) {
        const char *at = text;
        int32_t c = next_in_line(&text);
        if (used + columns_of(c) > room) break;
        used += columns_of(c);
        if (c == ' ') putchar(' ');
        else put(at, (size_t)(text - at), c);
    }
    if (!cut || columns == 0) return used;
    fputs("\xE2\x80\xA6", stdout);
    return used + 1;
}

/* Columns of the word at text, and where it ends; more than `most`: as far as they go. */
static size_t word_columns(const char *text, size_t most, const char **end) {
    size_t used = 0;
    while (*text && !is_blank((unsigned char)*text)) {
        const char *at = text;
        size_t columns = columns_of(next(&text));
        if (used + columns > most) {
            *end = at;
            return used;
        }
        used += columns;
    }
    *end = text;
    return used;
}

static void put_until(const char *text, const char *end) {
    while (text < end) {
        const char *at = text;
        int32_t c = next(&text);
        put(at, (size_t)(text - at), c);
    }
}

size_t cli_put_wrapped(const char **text, size_t columns) {
    size_t used = 0;
    if (**text == '\n') { /* an empty line */
        ++*text;
        return 0;
    }
    for (;;) {
        const char *word = *text, *end;
        while (*word && *word != '\n' && is_blank((unsigned char)*word)) word++;
        if (!*word || *word == '\n') {
            *text = *word ? word + 1 : word;
            return used;
        }
        size_t room = used > 0 ? columns - used - 1 : columns, takes = word_columns(word, columns, &end);
        bool whole = !*end || is_blank((unsigned char)*end);
        if (used > 0 && (used + 1 >= columns || takes > room || !whole)) {
            *text = word;
            return used;
        }
        if (takes == 0 && end == word) end += strlen(word) > 0; /* too narrow for it: one byte of it is lost in U+FFFD */
        if (used > 0) putchar(' ');
        put_until(word, end);
        used += takes + (used > 0);
        *text = end;
        if (!whole) return used;
    }
}
