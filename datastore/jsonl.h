/* JSON Lines: the lines of a file, one JSON object of the three shapes as an interaction with its feedback,
 * and the lines that an export consists of. The rules are in docs/formats.md. Knows no SQL. */
#ifndef DATASTORE_JSONL_H
#define DATASTORE_JSONL_H

#include "datastore/content.h"

/* Of one line: a value takes up to 100 bytes, and a line of brackets would take fifty times its own size. */
enum { JSONL_VALUES_MAX = 100000 };

/* ---- lines ---- */
struct jsonl {
    int fd;
    const char *path; /* borrowed */
    char *buffer;
    size_t capacity, from, to; /* what was read and not handed out: [from, to) */
    size_t line;               /* of the last line handed out or refused, from 1 */
    int at_end;
    int skipping;    /* the rest of the refused line is still to be passed over */
    char where[256]; /* "file:line N" of that line */
};
/* Regular files, or "-": standard input, whatever it is. */
int jsonl_open(const char *path, struct jsonl *out, attune_error *err);
/* The next line that is not blank, NUL-terminated, without its end; valid until the next call.
 * ATTUNE_CONTINUE or ATTUNE_DONE. Never holds more than one line of at most STORE_TEXT_MAX; a longer one is
 * ATTUNE_ERROR_FORMAT, told before it is read to its end, and the following call goes on behind it. Any other
 * error concerns the file, not the line. */
int jsonl_next(struct jsonl *lines, char **text, size_t *length, attune_error *err);
void jsonl_close(struct jsonl *lines); /* fine on a zeroed one that was never opened */

/* ---- one object ---- */
struct jsonl_row {
    attune_interaction interaction; /* texts live as long as the row; consent as the row says, else HOME */
    attune_uuid id;                 /* "" when the row tells none */
    int has_tier;                   /* 0: the row tells none, and interaction.tier is 0 */
    int64_t private_findings;
    attune_feedback *feedback;
    size_t n_feedback;
    attune_message *messages; /* the rest owns what the texts point to */
    char *joined;
    void *json;
};
/* Keys, types, names and feedback are checked; what a conversation may hold is store_content_check's to say. The
 * row is at fault with ATTUNE_ERROR_FORMAT; the only other error is ATTUNE_ERROR_MEMORY. where: for messages. */
int jsonl_row_parse(const char *text, size_t length, const char *where, struct jsonl_row *out, attune_error *err);
void jsonl_row_free(struct jsonl_row *row); /* fine on a zeroed one */
/* Of any version, as text in lower case. */
int jsonl_uuid_check(const char *text);

/* ---- lines that are written ----
 * One compact object and its line feed, malloc'ed and NUL-terminated; *n counts the line feed. What cannot be
 * taken in again is not written: ATTUNE_ERROR_ARGUMENT says what is wrong with it, ATTUNE_ERROR_UNSUPPORTED that
 * the line would be longer than STORE_TEXT_MAX or hold more than JSONL_VALUES_MAX values. */

/* Parsing it gives the same row, writing that the same bytes. */
int jsonl_write_row(const attune_row *row, char **text, size_t *n, attune_error *err);
/* {"messages":[...]}: the conversation, and the response as the last of the messages. */
int jsonl_write_chat(const attune_message *messages, size_t n_messages, const char *response, char **text, size_t *n,
                     attune_error *err);
/* {"prompt":[...],"chosen":[...],"rejected":[...]}: the conversation, and one assistant's message each. */
int jsonl_write_preference(const attune_message *messages, size_t n_messages, const char *chosen, const char *rejected,
                           char **text, size_t *n, attune_error *err);

#endif
