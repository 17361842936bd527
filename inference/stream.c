#include "inference/stream.h"

#include <stdlib.h>
#include <string.h>

static const char replacement[] = "\xEF\xBF\xBD"; /* U+FFFD */
enum { REPLACEMENT_SIZE = sizeof replacement - 1 };

/* ---- characters ---- */

enum utf8_step {
    UTF8_MORE,          /* the byte belongs to a character that is not whole yet */
    UTF8_WHOLE,         /* character->bytes[0..n) is one */
    UTF8_INVALID,       /* the byte can be in no character here */
    UTF8_INVALID_BEFORE /* the bytes before this one are no character; offer the byte again */
};

/* The well-formed sequences of Unicode's table 3-7: the first byte gives the count and what the second may be. */
static enum utf8_step utf8_first(struct utf8_character *c, unsigned byte) {
    c->n = 0;
    c->low = 0x80;
    c->high = 0xBF;
    if (byte < 0x80) c->left = 0;
    else if (byte >= 0xC2 && byte <= 0xDF) c->left = 1;
    else if (byte >= 0xE0 && byte <= 0xEF) c->left = 2;
    else if (byte >= 0xF0 && byte <= 0xF4) c->left = 3;
    else return UTF8_INVALID;
    if (byte == 0xE0) c->low = 0xA0;  /* shorter forms exist below */
    if (byte == 0xED) c->high = 0x9F; /* surrogates above */
    if (byte == 0xF0) c->low = 0x90;
    if (byte == 0xF4) c->high = 0x8F; /* U+10FFFF is the last */
    c->bytes[c->n++] = (char)byte;
    return c->left ? UTF8_MORE : UTF8_WHOLE;
}

/* After WHOLE and the INVALIDs the next byte begins a character. */
static enum utf8_step utf8_next(struct utf8_character *c, unsigned byte) {
    if (c->left == 0) return utf8_first(c, byte);
    if (byte < c->low || byte > c->high) {
        c->left = 0;
        return UTF8_INVALID_BEFORE;
    }
    c->low = 0x80;
    c->high = 0xBF;
    c->bytes[c->n++] = (char)byte;
    return --c->left ? UTF8_MORE : UTF8_WHOLE;
}

size_t stream_utf8_valid(const char *text, size_t n) {
    struct utf8_character character = {0};
    size_t whole = 0;
    for (size_t i = 0; i < n; i++) {
        enum utf8_step step = utf8_next(&character, (unsigned char)text[i]);
        if (step == UTF8_INVALID || step == UTF8_INVALID_BEFORE) break;
        if (step == UTF8_WHOLE) whole = i + 1;
    }
    return whole;
}

/* ---- stop strings: Knuth, Morris, Pratt 1977, for each of them ---- */

static void stop_prepare(struct stream_stop *stop) {
    stop->border[0] = 0;
    for (size_t i = 1, k = 0; i < stop->length; i++) {
        while (k > 0 && stop->text[i] != stop->text[k]) k = stop->border[k - 1];
        if (stop->text[i] == stop->text[k]) k++;
        stop->border[i] = k;
    }
}

static void stop_feed(struct stream_stop *stop, const char *bytes, size_t n) {
    size_t m = stop->matched;
    for (size_t i = 0; i < n; i++) {
        while (m > 0 && stop->text[m] != bytes[i]) m = stop->border[m - 1];
        if (stop->text[m] == bytes[i]) m++;
    }
    stop->matched = m;
}

static int stops_open(struct stream *s, const char *const *stop, size_t n, attune_error *err) {
    const char *where = "attune_generate_options";
    size_t total = 0, bytes, tables;
    if (n > 0 && !stop)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "n_stop is %zu but stop is NULL", n);
    for (size_t i = 0; i < n; i++) {
        size_t length = stop[i] ? strlen(stop[i]) : 0;
        if (length == 0)
            return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "stop[%zu] is empty: it would end every answer", i);
        if (stream_utf8_valid(stop[i], length) != length)
            return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "stop[%zu] is not valid UTF-8", i);
        total += length;
    }
    if (n == 0) return ATTUNE_OK;
    if (!checked_mul(n, sizeof *s->stops, &bytes) || !checked_mul(total, sizeof(size_t), &tables) ||
        !checked_add(bytes, tables, &bytes))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "the %zu stop strings are too long", n);
    s->stops = malloc(bytes);
    if (!s->stops) return error_set_memory(err, "stop strings", bytes);
    size_t *border = (size_t *)(s->stops + n);
    for (size_t i = 0; i < n; i++) {
        s->stops[i] = (struct stream_stop){.text = stop[i], .length = strlen(stop[i]), .border = border};
        stop_prepare(&s->stops[i]);
        border += s->stops[i].length;
    }
    s->n_stops = n;
    return ATTUNE_OK;
}

/* ---- the stream ---- */

int stream_open(struct stream *s, const char *const *stop, size_t n_stop, attune_token_callback callback, void *user,
                attune_error *err) {
    *s = (struct stream){.callback = callback, .user = user};
    return stops_open(s, stop, n_stop, err);
}

int stream_reserve(struct stream *s, size_t n, attune_error *err) {
    size_t wanted;
    if (!checked_add(s->n_decoded, n, &wanted) || !checked_add(wanted, 1, &wanted))
        return error_set(err, ATTUNE_ERROR_MEMORY, NULL, "the answer's length overflows");
    if (wanted <= s->capacity) return ATTUNE_OK;
    size_t capacity = s->capacity > wanted / 2 ? 2 * s->capacity : wanted;
    char *text = realloc(s->text, capacity);
    if (!text) return error_set_memory(err, "the answer's text", capacity);
    s->text = text;
    s->capacity = capacity;
    s->text[s->n_decoded] = 0;
    return ATTUNE_OK;
}

/* A whole character joins the decoded text. Stop strings are valid UTF-8: they end where characters do. */
static int take(struct stream *s, const char *character, size_t n, attune_error *err) {
    int code = stream_reserve(s, n, err);
    if (code != ATTUNE_OK) return code;
    memcpy(s->text + s->n_decoded, character, n);
    s->n_decoded += n;
    size_t found = 0;
    for (size_t i = 0; i < s->n_stops; i++) {
        struct stream_stop *stop = &s->stops[i];
        stop_feed(stop, character, n);
        if (stop->matched == stop->length && stop->length > found) found = stop->length;
    }
    s->n_decoded -= found;
    s->stopped = found > 0;
    s->text[s->n_decoded] = 0;
    return ATTUNE_OK;
}

/* Text up to `end` is decided. */
static int let_out(struct stream *s, size_t end) {
    size_t n = end - s->n_text;
    if (n == 0) return ATTUNE_OK;
    const char *from = s->text + s->n_text;
    s->n_text = end;
    if (s->callback && s->callback(from, n, s->user)) {
        s->cancelled = 1;
        return ATTUNE_ERROR_CANCELLED;
    }
    return ATTUNE_OK;
}

int stream_add(struct stream *s, const char *bytes, size_t n, attune_error *err) {
    struct utf8_character *c = &s->character;
    for (size_t i = 0; i < n && !s->stopped && !s->cancelled;) {
        enum utf8_step step = utf8_next(c, (unsigned char)bytes[i]);
        int code = ATTUNE_OK;
        if (step == UTF8_INVALID || step == UTF8_INVALID_BEFORE || (step == UTF8_WHOLE && c->bytes[0] == 0))
            code = take(s, replacement, REPLACEMENT_SIZE, err);
        else if (step == UTF8_WHOLE)
            code = take(s, c->bytes, c->n, err);
        if (code != ATTUNE_OK) return code;
        if (step != UTF8_INVALID_BEFORE) i++;
    }
    if (s->cancelled) return ATTUNE_ERROR_CANCELLED;
    size_t held = 0;
    for (size_t i = 0; i < s->n_stops && !s->stopped; i++)
        if (s->stops[i].matched > held) held = s->stops[i].matched;
    return let_out(s, s->n_decoded - held);
}

int stream_finish(struct stream *s, attune_error *err) {
    int code = ATTUNE_OK;
    if (s->cancelled) {
        s->n_decoded = s->n_text;
        if (s->text) s->text[s->n_text] = 0;
    } else {
        if (s->character.left && !s->stopped) code = take(s, replacement, REPLACEMENT_SIZE, err);
        s->character.left = 0;
        int out = let_out(s, s->n_decoded);
        if (code == ATTUNE_OK) code = out;
    }
    free(s->stops);
    s->stops = NULL;
    s->n_stops = 0;
    return code;
}

void stream_close(struct stream *s) {
    free(s->stops);
    free(s->text);
    *s = (struct stream){0};
}
