/* What a conversation and its answer are: which are valid, how they are written down, how they are
 * hashed. Knows no SQL. The hashes are specified in docs/formats.md and must never change. */
#ifndef DATASTORE_CONTENT_H
#define DATASTORE_CONTENT_H

#include "core/base/error.h"
#include "core/base/hash.h"
#include "datastore/utf8.h"

/* Bytes of one interaction, and of one line of a file. */
#define STORE_TEXT_MAX ((size_t)16 << 20)
/* Years 1970 to 9999. */
#define STORE_TIME_MAX INT64_C(253402300799999)

/* Roles known, texts there and UTF-8, somebody asked something, everything within STORE_TEXT_MAX. */
int store_content_check(const attune_message *messages, size_t n, const char *response, const char *where,
                        attune_error *err);
int store_check_feedback(const attune_feedback *feedback, const char *where, attune_error *err);
void store_content_hash(const attune_message *messages, size_t n, const char *response, char hex[HASH_HEX_SIZE]);
/* The first user message as it is compared with others: case, punctuation and forms of characters gone. malloc'ed, not
 * NUL-terminated, never empty when there is such a message. */
int store_prompt_normalise(const attune_message *messages, size_t n, char **out, size_t *out_size, attune_error *err);
void store_prompt_hash(const char *normalised, size_t n, char hex[HASH_HEX_SIZE]);

/* The column `messages`: a JSON array of {"role","content"}. *out is malloc'ed. */
int store_messages_write(const attune_message *messages, size_t n, char **out, attune_error *err);
struct store_messages {
    attune_message *list; /* into json */
    size_t n;
    void *json; /* owns the texts */
};
int store_messages_read(const char *text, const char *where, struct store_messages *out, attune_error *err);
void store_messages_free(struct store_messages *messages); /* fine on a zeroed one */

void store_uuid_make(int64_t time_ms, attune_uuid *out);
/* "2026-11-23T05:00:00Z", with a fraction or an offset if any; 0: not such a time. */
int store_time_parse(const char *text, int64_t *time_ms);

#endif
