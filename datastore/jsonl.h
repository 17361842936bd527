/* JSON Lines: the lines of a file, and one JSON object of the three shapes as an interaction with its
 * feedback. The rules are in docs/formats.md. Knows no SQL. */
#ifndef DATASTORE_JSONL_H
#define DATASTORE_JSONL_H

#include "datastore/content.h"

/* ---- lines ---- */
struct jsonl {
    int fd;
    const char *path; /* borrowed */
    char *buffer;
    size_t capacity, from, to; /* what was read and not handed out: [from, to) */
    size_t line;               /* of the last line handed out, from 1 */
    int at_end;
    char where[256]; /* "file:line N" of that line */
};
/* Regular files, or "-": standard input, whatever it is. */
int jsonl_open(const char *path, struct jsonl *out, attune_error *err);
/* The next line that is not blank, NUL-terminated, without its end; valid until the next call.
 * ATTUNE_CONTINUE or ATTUNE_DONE. Never holds more than one line of at most STORE_TEXT_MAX. */
int jsonl_next(struct jsonl *lines, char **text, size_t *length, attune_error *err);
void jsonl_close(struct jsonl *lines); /* fine on a zeroed one that was never opened */

/* ---- one object ---- */
struct jsonl_row {
    attune_interaction interaction; /* texts live as long as the row; consent as the row says, else HOME */
    attune_feedback *feedback;
    size_t n_feedback;
    attune_message *messages; /* the rest owns what the texts point to */
    char *joined;
    void *json;
};
/* where: for messages. */
int jsonl_row_parse(const char *text, size_t length, const char *where, struct jsonl_row *out, attune_error *err);
void jsonl_row_free(struct jsonl_row *row); /* fine on a zeroed one */

#endif
