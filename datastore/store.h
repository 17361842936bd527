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
/* With the texts encrypted under `key` (ATTUNE_KEY_BYTES; NULL: not); key_file (nullable): where later opens find it. */
int store_create_encrypted(const char *home, int consent, const unsigned char *key, const char *key_file,
                           attune_error *err);
/* As attune_store_open of a home that is named, but a store whose key is not to be had opens too: it serves what needs
 * no texts, and the rest is ATTUNE_ERROR_MISMATCH. */
int store_open_with(const char *home, const attune_store_options *options, attune_store **out, attune_error *err);
int store_open_path(const char *home, int busy_timeout_ms, attune_store **out, attune_error *err);
/* The key in a key file, which is made (0600) when it is not there. */
int store_key_file(const char *path, unsigned char key[ATTUNE_KEY_BYTES], attune_error *err);
/* Sealed: encrypted, and this handle has no key. */
enum store_encryption { STORE_PLAIN, STORE_SEALED, STORE_UNLOCKED };
enum store_encryption store_encryption_get(const attune_store *store);
int store_consent_get(attune_store *store, int *consent, attune_error *err);
int store_consent_set(attune_store *store, int consent, attune_error *err);
/* PRAGMA integrity_check, foreign keys, schema version. problem gets the first finding, and the code
 * is ATTUNE_ERROR_FORMAT; "" and ATTUNE_OK when there is none. */
int store_check(attune_store *store, char *problem, size_t problem_size, attune_error *err);

/* ---- rows of a JSONL file, without a store (eval) ---- */
enum store_example_kind { STORE_EXAMPLE_SFT = 1, STORE_EXAMPLE_PREFERENCE = 2, STORE_EXAMPLE_THUMB = 3 };
struct store_row {
    int kind;                       /* enum store_example_kind */
    const attune_message *messages; /* conversation up to the answer */
    size_t n_messages;
    const char *response;     /* SFT: what to learn, the edited text when there is one; preference: what was preferred;
                                 thumb: what was judged */
    const char *rejected;     /* preference: the other one; else NULL */
    int label;                /* thumb: 1 up, -1 down; else 0 */
    double weight;            /* 0 to 1, see docs/formats.md */
    const char *content_hash; /* sha256 hex of roles, contents and response (and rejected) */
    const char *prompt_hash;  /* 16 hex digits, the same for all near-duplicates of a first prompt: decides the split */
    int64_t time_ms;
    int64_t interaction, other; /* rowids: of the row, and of the rejected response's; 0: from a file, none */
    const char *uuid;           /* of the interaction; NULL: from a file */
    int edited;                 /* 1: response is what the person made of the answer */
};
/* Non-OK stops and is returned. May read from the store that calls it, but not write to it. */
typedef int (*store_row_callback)(const struct store_row *row, void *user, attune_error *err);
/* Every row: a file that is named for evaluation is not judged by thumbs, but an edit stands for the
 * response. time_ms 0: the row tells none. */
int store_rows_from_file(const char *path, store_row_callback callback, void *user, attune_error *err);

/* ---- examples ---- */
struct store_example_query {
    int kind;           /* enum store_example_kind; 0: SFT */
    int only_new;       /* 1: in no published run */
    int64_t newest;     /* so many of them, 0: all */
    int64_t source_cap; /* at most so many of one app and source, the newest; 0: no cap */
    int64_t day_cap;    /* at most so many of one app, source and day (UTC), the newest; 0: no cap */
    int64_t group_cap;  /* at most so many that are near-duplicates by their prompt; 0: no cap */
};
/* Examples that may be trained on, duplicates (content hash) once, oldest first; derives what is not derived yet
 * (not from inside a callback). query NULL: all SFT examples. The rules are in docs/formats.md. */
int store_examples(attune_store *store, const struct store_example_query *query, store_row_callback callback, void *user,
                   attune_error *err);
/* One example by content hash; ATTUNE_ERROR_NOT_FOUND when it is gone or may not be used any more. */
int store_example_get(attune_store *store, const char *content_hash, store_row_callback callback, void *user,
                      attune_error *err);
/* Derives, indexes and scrubs until nothing is left or `seconds` (0: no limit) have passed: ATTUNE_CONTINUE. */
int store_maintain(attune_store *store, double seconds, attune_error *err);

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
    char configuration[2048]; /* JSON text */
    char evaluation[24];
    double loss_before, loss_after, loss_interval; /* NaN: not known */
    int64_t examples, held_out, epochs, steps, steps_done, tokens;
    double seconds, tokens_per_s;
    int adapter; /* published number, 0 none */
};
struct store_run_example {
    char content_hash[65];
    int64_t interaction, other; /* rowids that it was derived from, for the lineage; 0: none. Not read back */
    int64_t position; /* order within the run */
    int held_out;
};
/* One transaction: the run and its examples. run->number is set. */
int store_run_begin(attune_store *store, struct store_run *run, const struct store_run_example *examples, size_t n,
                    attune_error *err);
int store_run_update(attune_store *store, const struct store_run *run, attune_error *err);
/* What a run was judged by. */
struct store_criterion {
    char name[24];
    double figure, threshold; /* NaN: not known */
    int passed;
    char detail[160]; /* for people: what is measured, and on what */
};
/* store_run_update and the run's criteria in their order, as one transaction; what was there of them is replaced. They
 * go away with a run that fails, and with one whose adapter is revoked. */
int store_run_judged(attune_store *store, const struct store_run *run, const struct store_criterion *criteria, size_t n,
                     attune_error *err);
/* In their order. The callback may read from the store but not write to it; its stopping (non-zero) is ATTUNE_OK. */
typedef int (*store_criterion_callback)(const struct store_criterion *criterion, void *user);
int store_criteria_each(attune_store *store, int64_t run, store_criterion_callback callback, void *user,
                        attune_error *err);
/* The run that made an adapter; *run 0: none is known. */
int store_adapter_run(attune_store *store, int adapter, int64_t *run, attune_error *err);
/* The newest run; ATTUNE_ERROR_NOT_FOUND if none. state NULL: any. */
int store_run_last(attune_store *store, const char *state, struct store_run *out, attune_error *err);
/* Examples of a run in order of position; malloc'ed, the caller frees. */
int store_run_examples(attune_store *store, int64_t run, struct store_run_example **out, size_t *n, attune_error *err);

/* Content hashes of the rows that adapter `number`, or one that it goes on from, was trained on: sorted, each once.
 * *out is malloc'ed, NULL when there are none. */
int store_lineage_hashes(attune_store *store, int number, char (**out)[65], size_t *n, attune_error *err);

/* Insert or replace the row of info->number; run_number 0: imported. */
int store_adapter_put(attune_store *store, const attune_adapter_info *info, int64_t run_number, attune_error *err);
int store_adapter_get(attune_store *store, int number, attune_adapter_info *out, attune_error *err);
/* By number. The callback may read from the store but not write to it; its stopping is ATTUNE_OK. */
int store_adapters(attune_store *store, attune_adapter_callback callback, void *user, attune_error *err);
/* CURRENT rules: the row of `number` (0: none, the base) becomes active, an active other one retired; one
 * transaction. A revoked adapter is refused with ATTUNE_ERROR_STATE. */
int store_adapter_activate(attune_store *store, int number, attune_error *err);
int store_adapter_state_set(attune_store *store, int number, const char *state, attune_error *err);

/* How far a merge mode is from the adapter beside the base (none). Gone with a revoked adapter. */
struct store_drift {
    int adapter;
    char mode[16];
    double kl, agreement;   /* mean KL divergence, nats a token; share of tokens where both find the same most likely */
    double loss, loss_none; /* nats a token, in this mode and in none */
    int64_t tokens, rows;   /* that it was measured on */
    int64_t bytes;          /* of the merged matrices */
    int64_t measured_ms;
};
/* One transaction; what was there of these modes is replaced. ATTUNE_ERROR_NOT_FOUND: no such adapter,
 * ATTUNE_ERROR_STATE: it is revoked, ATTUNE_ERROR_ARGUMENT: a figure that is not finite. */
int store_drift_put(attune_store *store, const struct store_drift *drifts, size_t n, attune_error *err);
/* ATTUNE_ERROR_NOT_FOUND: not measured. */
int store_drift_get(attune_store *store, int adapter, const char *mode, struct store_drift *out, attune_error *err);
/* The smallest first, of one size that with the least KL: the order in which modes are to be preferred. The callback
 * may read from the store but not write to it; its stopping (non-zero) is ATTUNE_OK. */
typedef int (*store_drift_callback)(const struct store_drift *drift, void *user);
int store_drift_each(attune_store *store, int adapter, store_drift_callback callback, void *user, attune_error *err);

/* Publishing, as one transaction that no forgetting can come between: refuses with ATTUNE_ERROR_STATE when the run is
 * not 'unfinished' any more (rows that it learned from were forgotten, or their consent withdrawn); else calls
 * `swap` (which writes CURRENT), makes the adapter active and the run published, and marks its examples as used. run
 * NULL: somebody chose the adapter (0: the base). A revoked adapter is ATTUNE_ERROR_STATE too. */
typedef int (*store_swap_callback)(void *user, attune_error *err);
int store_publish(attune_store *store, const struct store_run *run, int adapter, store_swap_callback swap, void *user,
                  attune_error *err);
/* Calls `rename` inside a write transaction while the run is 'unfinished' (its checkpoint is about to be put in place);
 * ATTUNE_ERROR_STATE when it is not any more. */
int store_while_unfinished(attune_store *store, int64_t run, store_swap_callback rename, void *user, attune_error *err);
/* *alive 0: the run is not 'unfinished' any more. Cheap: before every unit of work. */
int store_run_alive(attune_store *store, int64_t run, int *alive, attune_error *err);

/* A compact copy of store.db as of one moment, into the new file `path` (0600). */
int store_copy(attune_store *store, const char *path, attune_error *err);

/* Bytes that this handle has written since it was opened: what went into the log, and as much again, which is the most
 * that folding the log into store.db writes. What the recorder's own connection writes is not in it. Cheap. */
int store_written(attune_store *store, int64_t *bytes, attune_error *err);

/* Counts for attune_status: examples_new = derived examples in no published run. NULL: not wanted. */
int store_counts(attune_store *store, int64_t *interactions, int64_t *consented, int64_t *feedback,
                 int64_t *examples_new, attune_error *err);

#pragma GCC visibility pop
#endif
