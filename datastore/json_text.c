#include "datastore/json_text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "datastore/utf8.h"

static int bad(attune_error *err, const char *where, const char *what, size_t byte) {
    return error_set(err, ATTUNE_ERROR_FORMAT, where, "not valid JSON: %s (byte %zu)", what, byte);
}

static int no_memory(attune_error *err) {
    return error_set(err, ATTUNE_ERROR_MEMORY, NULL, "out of memory while reading JSON");
}

/* ---- the shape of a text, before anything is allocated for it ---- */

struct shape {
    size_t first;   /* byte that is not white space */
    size_t end;     /* behind the bracket that closes the first one; 0: it is not closed */
    size_t longest; /* token, with the byte behind it */
    size_t values;
    size_t too_deep; /* the byte at which it nests deeper than JSON_TEXT_DEPTH_MAX; 0: it does not */
};

static int is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

static struct shape measure(const char *text, size_t length) {
    struct shape shape = {.values = 1};
    size_t depth = 0, token = 0 /* where it starts */;
    int quoted = 0;
    char last = '\0'; /* byte that is not white space */
    while (shape.first < length && is_space(text[shape.first])) shape.first++;
    for (size_t i = shape.first; i < length && !shape.end; i++) {
        char c = text[i];
        int opens = c == '[' || c == '{', closes = c == ']' || c == '}';
        if (quoted && c == '\\') i++;
        if (quoted ? c != '"' : c != '"' && c != ',' && c != ':' && !opens && !closes && !is_space(c)) {
            last = c;
            continue;
        }
        if (i + 1 - token > shape.longest) shape.longest = i + 1 - token;
        if (c == '"') quoted = !quoted;
        token = quoted ? i : i + 1;
        shape.values += opens || c == ',';
        if (closes) shape.values -= last == '[' || last == '{';
        if (opens && ++depth > JSON_TEXT_DEPTH_MAX && !shape.too_deep) shape.too_deep = i;
        if (closes && depth > 0 && --depth == 0) shape.end = i + 1;
        if (!is_space(c)) last = c;
    }
    return shape;
}

size_t json_text_values(const char *text, size_t length) { return measure(text, length).values; }

static int check(const char *text, size_t length, const struct shape *shape, const char *where, attune_error *err) {
    if (memchr(text, 0, length)) return error_set(err, ATTUNE_ERROR_FORMAT, where, "holds a NUL byte");
    size_t good = store_utf8_check(text, length), behind = shape->end;
    if (good < length) return error_set(err, ATTUNE_ERROR_FORMAT, where, "not UTF-8 at byte %zu", good);
    if (shape->first == length || (text[shape->first] != '{' && text[shape->first] != '['))
        return bad(err, where, "an object or array is expected", shape->first);
    if (shape->too_deep)
        return error_set(err, ATTUNE_ERROR_FORMAT, where, "nested deeper than %d at byte %zu", JSON_TEXT_DEPTH_MAX,
                         shape->too_deep);
    if (!shape->end) return bad(err, where, "it ends too early", length);
    while (behind < length && is_space(text[behind])) behind++;
    return behind < length ? bad(err, where, "something stands behind its end", behind) : ATTUNE_OK;
}

/* ---- jansson's reader ----
 * It collects each token in a buffer that it keeps for the next one, and where that cannot grow, lex_save() of 2.14
 * drops the byte in silence: a string is short of it, a number has another value, and without its closing quote a
 * string is decoded past its end. So the text is given to it as the second item of an array whose first is a string
 * longer than any token of the text: behind that one the buffer never grows again. The first one may be cut anywhere:
 *
 *      ["pad\u0041\u0041 ... \u0041",TEXT]
 *
 * The buffer grows at 16, 32, 64, ... bytes, and from the quote on, byte 15, 31, 63, ... is always the fourth or the
 * sixth of a \u0041. Without it, or without it and all that follows, that escape is malformed, which is an error. */

static const char head[] = "[\"pad", escape[] = "\\u0041", tail[] = "\",";
enum { HEAD = sizeof head - 1, ESCAPE = sizeof escape - 1, TAIL = sizeof tail - 1 };
/* Bytes by which the first string is longer: as many may be lost before the buffer is smaller than it must be. */
enum { SPARE = 64 };

_Static_assert((16 - 1 - (HEAD - 1)) % ESCAPE == 5 && (32 - 1 - (HEAD - 1)) % ESCAPE == 3 && 64 % ESCAPE == 16 % ESCAPE,
               "the buffer grows in the middle of an escape");

struct feed {
    const char *text;
    size_t length, escapes;
    size_t start; /* of the text, in what jansson reads */
    size_t at;
};

static char byte_at(const struct feed *feed, size_t at) {
    if (at < HEAD) return head[at];
    if (at < feed->start - TAIL) return escape[(at - HEAD) % ESCAPE];
    if (at < feed->start) return tail[at - (feed->start - TAIL)];
    return at - feed->start < feed->length ? feed->text[at - feed->start] : ']';
}

static size_t take_bytes(void *buffer, size_t room, void *from) {
    struct feed *feed = from;
    char *to = buffer;
    size_t n = 0;
    while (n < room && feed->at <= feed->start + feed->length) to[n++] = byte_at(feed, feed->at++);
    return n;
}

/* jansson names no place where an allocation failed, but for a string: that is then an invalid token, or none where a
 * key should be. Of a bad text, what those two refuse never ends in a quote. */
static int lacked_memory(const json_error_t *said, const struct feed *feed) {
    enum json_error_code code = json_error_code(said);
    size_t at = (size_t)said->position;
    if (code == json_error_out_of_memory || at <= feed->start) return 1;
    return code == json_error_invalid_syntax && byte_at(feed, at - 1) == '"' &&
           (strncmp(said->text, "invalid token", 13) == 0 || strncmp(said->text, "string or '}' expected", 22) == 0);
}

/* jansson quotes the text near the fault and the escapes of a surrogate; both are private and stay out of the message.
 */
static int refuse(const json_error_t *said, const struct feed *feed, const char *where, attune_error *err) {
    char what[JSON_ERROR_TEXT_LENGTH];
    if (lacked_memory(said, feed)) return no_memory(err);
    snprintf(what, sizeof what, "%s", said->text);
    char *near = strstr(what, " near ");
    if (near) *near = '\0';
    const char *words = json_error_code(said) == json_error_null_character ? "\\u0000, a NUL"
                        : strncmp(what, "invalid Unicode", 15) == 0        ? "half of a surrogate pair"
                                                                           : what;
    return bad(err, where, words, (size_t)said->position - feed->start);
}

int json_text_parse(const char *text, size_t length, const char *where, json_t **out, attune_error *err) {
    struct shape shape = measure(text, length);
    struct feed feed = {.text = text, .length = length, .escapes = (shape.longest + SPARE) / ESCAPE};
    json_error_t said = {0};
    int code = check(text, length, &shape, where, err);
    if (code != ATTUNE_OK) return code;
    feed.start = HEAD + feed.escapes * ESCAPE + TAIL;
    json_t *both = json_load_callback(take_bytes, &feed, JSON_REJECT_DUPLICATES, &said);
    if (!both) return refuse(&said, &feed, where, err);
    if (json_string_length(json_array_get(both, 0)) == HEAD - 2 + feed.escapes)
        *out = json_incref(json_array_get(both, 1));
    else
        code = no_memory(err);
    json_decref(both);
    return code;
}

/* ---- jansson's writer ---- */

/* Not json_dumps(): where its buffer cannot grow, do_dump() of 2.14 leaves out a key in silence. */
int json_text_write(const json_t *json, const char *end, char **text, size_t *length, attune_error *err) {
    size_t n = json ? json_dumpb(json, NULL, 0, JSON_COMPACT) : 0, behind = strlen(end);
    char *bytes = n > 0 ? malloc(n + behind + 1) : NULL;
    if (!bytes || json_dumpb(json, bytes, n, JSON_COMPACT) != n) {
        free(bytes);
        return error_set_memory(err, "a JSON text", n);
    }
    memcpy(bytes + n, end, behind + 1);
    *text = bytes;
    *length = n + behind;
    return ATTUNE_OK;
}
