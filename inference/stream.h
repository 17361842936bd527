/* Bytes of tokens become whole characters; stop strings end the text, across token borders too.
 *
 * Text that may yet become a stop string or is half a character is held back until it is decided.
 * Invalid UTF-8 from the model leaves as U+FFFD, one for each maximal subpart (Unicode 15, table 3-8), and
 * so does NUL, which a C string cannot hold. The stop string whose last byte comes first ends the text; of
 * several that end there the longest. What leaves does not depend on how the bytes were split. */
#ifndef INFERENCE_STREAM_H
#define INFERENCE_STREAM_H

#include "core/base/error.h"

/* A character as its bytes come in. Zeroed: at a border. */
struct utf8_character {
    char bytes[4];
    unsigned n;         /* bytes so far */
    unsigned left;      /* bytes to come */
    unsigned low, high; /* of the next byte */
};
struct stream_stop {
    const char *text; /* borrowed, not empty */
    size_t length;
    size_t matched; /* of its bytes are the end of the decoded text */
    size_t *border; /* (length) longest proper prefix of text[0..i] that is also its suffix */
};
struct stream {
    struct stream_stop *stops; /* owned, the borders too */
    size_t n_stops;
    char *text;       /* owned, NUL-terminated when it has finished or stopped; NULL before the first byte */
    size_t n_text;    /* bytes that were let out */
    size_t n_decoded; /* bytes in text, those held back included */
    size_t capacity;
    struct utf8_character character;
    int stopped;   /* a stop string was found: more bytes are ignored */
    int cancelled; /* the callback asked to stop: what is held back is dropped */
    attune_token_callback callback;
    void *user;
};
/* stop: borrowed until stream_finish; an empty or invalid one is ATTUNE_ERROR_ARGUMENT. Close after an
 * error is fine. */
int stream_open(struct stream *stream, const char *const *stop, size_t n_stop, attune_token_callback callback,
                void *user, attune_error *err);
/* Room for n more bytes of text, so that stream_add does not allocate. */
int stream_reserve(struct stream *stream, size_t n, attune_error *err);
/* ATTUNE_ERROR_CANCELLED when the callback asked to stop (*err is left alone). Check ->stopped after. */
int stream_add(struct stream *stream, const char *bytes, size_t n, attune_error *err);
/* The end: what was held back goes out. */
int stream_finish(struct stream *stream, attune_error *err);
void stream_close(struct stream *stream);

/* Bytes from the start of text that are whole valid characters (RFC 3629): n when all are. */
size_t stream_utf8_valid(const char *text, size_t n);

#endif
