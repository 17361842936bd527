/* Rows of interaction and feedback, in and out. Everything private that goes into store.db or comes
 * out of it passes through record.c: what the columns hold is decided there alone. */
#ifndef DATASTORE_RECORD_H
#define DATASTORE_RECORD_H

#include "datastore/content.h"
#include "datastore/handle.h"

/* Checked, hashed and ready to be written; needs no store and no lock. Borrows all but `messages`. */
struct store_prepared {
    const attune_interaction *interaction;
    const attune_message *list; /* the conversation: interaction->messages or `single` */
    size_t n;
    attune_message single;
    char *messages; /* as the column holds them */
    int64_t time_ms;
    attune_uuid uuid;
    char content_hash[HASH_HEX_SIZE], prompt_hash[HASH_HEX_SIZE];
};
/* Lives where it was prepared: it points into itself. where: for messages, may be NULL. */
int store_prepare_interaction(const attune_interaction *interaction, const char *where, struct store_prepared *out,
                              attune_error *err);
void store_prepared_free(struct store_prepared *prepared); /* fine on a zeroed one */

/* Inside a write transaction. *row: the rowid. */
int store_write_interaction(attune_store *store, const struct store_prepared *prepared, int64_t *row,
                            attune_error *err);
/* messages: the conversation of that row. */
int store_write_feedback(attune_store *store, int64_t row, const attune_message *messages, size_t n,
                         const attune_feedback *feedback, int64_t default_time_ms, attune_error *err);

/* One row of `SELECT STORE_INTERACTION_COLUMNS FROM interaction ...`. */
#define STORE_INTERACTION_COLUMNS "id, time_ms, content_hash, prompt_hash, messages, response"
struct store_loaded {
    struct store_messages messages;
    char *response;
};
int store_load_interaction(attune_store *store, sqlite3_stmt *row, struct store_loaded *out, attune_error *err);
void store_loaded_free(struct store_loaded *loaded); /* fine on a zeroed one */
/* Text of a feedback row; malloc'ed. */
int store_load_feedback_text(attune_store *store, int64_t feedback, char **out, attune_error *err);

#endif
