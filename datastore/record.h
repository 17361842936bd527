/* Rows of interaction and feedback, in and out. Everything private that goes into store.db or comes
 * out of it passes through record.c: what the columns hold is decided there alone. */
#ifndef DATASTORE_RECORD_H
#define DATASTORE_RECORD_H

#include "datastore/content.h"
#include "datastore/handle.h"

/* Checked and ready to be written; needs no store and no lock. Borrows all but `messages`. */
struct store_prepared {
    const attune_interaction *interaction;
    const attune_message *list; /* the conversation: interaction->messages or `single` */
    size_t n;
    attune_message single;
    char *messages; /* as the column holds them, before encryption */
    int64_t time_ms;
    int64_t private_findings; /* of the app's own search */
    attune_uuid uuid;
};
/* What can be said without looking at a disk. where: for messages, may be NULL. */
int store_check_interaction(const attune_interaction *interaction, const char *where, attune_error *err);
/* Of an interaction that was checked. Lives where it was prepared: it points into itself. id (nullable): else
 * a new one is made. */
int store_prepare_interaction(const attune_interaction *interaction, const char *id, struct store_prepared *out,
                              attune_error *err);
void store_prepared_free(struct store_prepared *prepared); /* fine on a zeroed one */

/* How much of what the app calls private its own search finds in one text (nullable); 0 where it has none. */
int64_t store_private_findings(const attune_store *store, const char *text);

/* Inside a write transaction. *row: the rowid. */
int store_write_interaction(attune_store *store, const struct store_prepared *prepared, int64_t *row,
                            attune_error *err);
/* uuid: of the interaction in `row`, which examples are derived from again. The feedback's rowid is the last one that
 * SQLite has inserted. */
int store_write_feedback(attune_store *store, int64_t row, const char *uuid, const attune_feedback *feedback,
                         int64_t default_time_ms, attune_error *err);
/* Inside a write transaction. Its examples have to be derived again; and those of the regenerations that it is paired
 * with. */
int store_touch(attune_store *store, int64_t id, attune_error *err);
/* The rowid of the interaction with this id. ATTUNE_ERROR_NOT_FOUND with a message. */
int store_find_interaction(attune_store *store, const char *uuid, int64_t *row, attune_error *err);

/* Everything of one interaction but its feedback; texts are malloc'ed. */
struct store_loaded {
    int64_t id, time_ms, private_findings;
    int consent, tier, sensitivity;
    attune_uuid uuid;
    char *app, *session, *source;          /* "" not said */
    char *model, *adapter, *template_hash; /* NULL: not said */
    struct store_messages messages;
    char *response;
};
/* ATTUNE_ERROR_NOT_FOUND without a message: there is no such row. */
int store_load_interaction(attune_store *store, int64_t id, struct store_loaded *out, attune_error *err);
void store_loaded_free(struct store_loaded *loaded); /* fine on a zeroed one */
/* Text of a feedback row, malloc'ed; NULL when it has none. uuid: of its interaction. */
int store_load_feedback_text(attune_store *store, int64_t feedback, const char *uuid, char **out, attune_error *err);

/* ---- recording.c: the queue before the rows ---- */
int store_recording_start(attune_store *store, const attune_store_options *options, attune_error *err);
void store_recording_end(attune_store *store);
/* attune_store_flush without telling which feedback named nothing: for calls that only want the rows to be there. */
int store_flush_queue(attune_store *store, attune_error *err);
/* Of what was checked: copied and queued. */
int store_enqueue_interaction(attune_store *store, const attune_interaction *interaction, attune_uuid *id,
                              attune_error *err);
int store_enqueue_feedback(attune_store *store, const char *id, const attune_feedback *feedback, attune_error *err);
/* Opens the connection of a handle and brings the schema up. */
int store_open_connection(attune_store *store, attune_error *err);

#endif
