/* JSON texts (RFC 8259) through jansson, where a failed allocation must neither damage a value nor pass for bad JSON:
 * an import that goes on behind bad lines must not lose good ones. Knows no keys. */
#ifndef DATASTORE_JSON_TEXT_H
#define DATASTORE_JSON_TEXT_H

#include <jansson.h>

#include "core/base/error.h"

enum { JSON_TEXT_DEPTH_MAX = 32 };

/* The text must be one object or array; no key may stand twice in an object, no integer lie outside int64_t, and no
 * string hold a NUL. ATTUNE_ERROR_FORMAT names the byte, from 0, at the fault or where its token ends, and quotes
 * nothing; the only other error is ATTUNE_ERROR_MEMORY. where: for messages. *out is the caller's reference. A value
 * takes up to 100 bytes and a string its length besides; while reading, three times the longest one comes on top. */
int json_text_parse(const char *text, size_t length, const char *where, json_t **out, attune_error *err);

/* How many values parsing it would make, counted without memory; of a text that is not JSON, never fewer. */
size_t json_text_values(const char *text, size_t length);

/* Compact, malloc'ed and NUL-terminated, with `end` behind it; *length counts that. json is an object or array, and
 * NULL for one that could not be made: ATTUNE_ERROR_MEMORY, the only error. */
int json_text_write(const json_t *json, const char *end, char **text, size_t *length, attune_error *err);

#endif
