/* The store: what happened between a person and the model, in one SQLite file.
 *
 * Owns the schema and its migrations, recording, import, deriving examples, lineage rows. Refuses to
 * know models and tensors: tokens, losses and adapters are numbers and names here. The public part is
 * attune_store_* in attune.h; this header is what job/ sees. Text handed out by iterators lives until
 * the next step. */
#ifndef DATASTORE_STORE_H
#define DATASTORE_STORE_H

#include "attune.h"

#pragma GCC visibility push(default) /* libattune uses these from libattune-store, private version node */

/* ---- opening ---- */
/* Makes store.db in the folder `home` (which exists) with the newest schema. A store without any
 * interaction, left by a call that was cut short, is taken over; another one is ATTUNE_ERROR_STATE. */
int store_create(const char *home, int consent, attune_error *err);
int store_open_path(const char *home, int busy_timeout_ms, attune_store **out, attune_error *err);
int store_consent_get(attune_store *store, int *consent, attune_error *err);
int store_consent_set(attune_store *store, int consent, attune_error *err);
/* PRAGMA integrity_check, foreign keys, schema version. problem gets the first finding, and the code
 * is ATTUNE_ERROR_FORMAT; "" and ATTUNE_OK when there is none. */
int store_check(attune_store *store, char *problem, size_t problem_size, attune_error *err);

/* ---- rows of a JSONL file, without a store (eval) ---- */
struct store_row {
    const attune_message *messages; /* conversation up to the answer */
    size_t n_messages;
    const char *response;      /* what to learn: the edited text when there is one */
    const char *content_hash;  /* sha256 hex of roles, contents and response */
    const char *prompt_hash;   /* sha256 hex of the normalised first user message: decides the split */
    int64_t time_ms;
    int64_t interaction; /* rowid; 0 from a file */
};
/* Non-OK stops and is returned. May read from the store that calls it, but not write to it. */
typedef int (*store_row_callback)(const struct store_row *row, void *user, attune_error *err);
/* Every row: a file that is named for evaluation is not judged by thumbs, but an edit stands for the
 * response. time_ms 0: the row tells none. */
int store_rows_from_file(const char *path, store_row_callback callback, void *user, attune_error *err);

/* ---- examples ---- */
/* Derived SFT examples that may be trained on: consented, not rejected, thumbs not down, edited text in
 * place of the draft, duplicates (content hash) once; oldest first. */
int store_examples(attune_store *store, store_row_callback callback, void *user, attune_error *err);
/* One example by content hash; ATTUNE_ERROR_NOT_FOUND when it is gone or may not be used any more. */
int store_example_get(attune_store *store, const char *content_hash, store_row_callback callback, void *user,
                      attune_error *err);

/* ---- runs and adapters (rows; the files are job's) ---- */
struct store_run {
    char id[65]; /* hash that names it, see DESIGN: base, configuration, parent, rows, seed */
    int64_t number; /* row id */
    int64_t started_ms, ended_ms; /* ended 0: not yet */
    char state[24];  /* "unfinished", "published", "refused", "failed" */
    char reason[256];
    char base_sha256[65];
    int parent;       /* adapter number, 0 the base */
    uint64_t seed;
    char configuration[1024]; /* JSON text */
    char evaluation[24];
    double loss_before, loss_after, loss_interval; /* NaN: not known */
    int64_t examples, held_out, epochs, steps, steps_done, tokens;
    double seconds, tokens_per_s;
    int adapter; /* published number, 0 none */
};
struct store_run_example {
    char content_hash[65];
    int64_t position; /* order within the run */
    int held_out;
};
/* One transaction: the run and its examples. run->number is set. */
int store_run_begin(attune_store *store, struct store_run *run, const struct store_run_example *examples, size_t n,
                    attune_error *err);
int store_run_update(attune_store *store, const struct store_run *run, attune_error *err);
/* The newest run; ATTUNE_ERROR_NOT_FOUND if none. state NULL: any. */
int store_run_last(attune_store *store, const char *state, struct store_run *out, attune_error *err);
/* Examples of a run in order of position; malloc'ed, the caller frees. */
int store_run_examples(attune_store *store, int64_t run, struct store_run_example **out, size_t *n, attune_error *err);

/* Insert or replace the row of info->number; run_number 0: imported. */
int store_adapter_put(attune_store *store, const attune_adapter_info *info, int64_t run_number, attune_error *err);
int store_adapter_get(attune_store *store, int number, attune_adapter_info *out, attune_error *err);
/* By number. The callback may read from the store but not write to it; its stopping is ATTUNE_OK. */
int store_adapters(attune_store *store, attune_adapter_callback callback, void *user, attune_error *err);
/* CURRENT rules: the row of `number` (0: none, the base) becomes active, an active other one retired; one
 * transaction. A revoked adapter is refused with ATTUNE_ERROR_STATE. */
int store_adapter_activate(attune_store *store, int number, attune_error *err);
int store_adapter_state_set(attune_store *store, int number, const char *state, attune_error *err);

/* Counts for attune_status: examples_new = derived examples in no published run. NULL: not wanted. */
int store_counts(attune_store *store, int64_t *interactions, int64_t *consented, int64_t *feedback,
                 int64_t *examples_new, attune_error *err);

#pragma GCC visibility pop
#endif
