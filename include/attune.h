/* attune: a language model on a person's own device becomes theirs, overnight.
 *
 * The whole public interface. Three doors:
 *   an app records what its user does            attune_store_*
 *   a nightly job trains, gates and publishes    attune_job_*
 *   an app asks the personalized model           attune_engine_*, attune_session_*
 * and, for people and tools, attune_home_*, attune_adapter_*, attune_eval, attune_bench.
 *
 * Conventions
 * - Every function that can fail returns an int: ATTUNE_OK (0), a positive normal outcome, or a
 *   negative error, and takes a nullable `attune_error *` last. The library never prints, exits,
 *   aborts, installs a signal handler or opens a network socket.
 * - Option structs start with their `size`; set it with ATTUNE_INIT. Zero in any other field means
 *   the default. Fields are only ever added at the end.
 * - `*out` is written on success only. close(NULL) is fine.
 * - Text is UTF-8, NUL-terminated unless a length stands beside it. Pointers given to a function
 *   are borrowed for the call; pointers handed out live as long as the object they came from,
 *   unless said otherwise.
 * - Times are milliseconds since 1970-01-01 UTC.
 */
#ifndef ATTUNE_H
#define ATTUNE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define ATTUNE_API
#else
#define ATTUNE_API __attribute__((visibility("default")))
#endif

#define ATTUNE_VERSION "0.1.0"

/* Zero an option struct and set its size: attune_job_options o; ATTUNE_INIT(o); */
#define ATTUNE_INIT(s) (memset(&(s), 0, sizeof(s)), (s).size = sizeof(s))

/* ---- codes and errors ---------------------------------------------------------------------- */

enum attune_code {
    ATTUNE_OK = 0,
    ATTUNE_CONTINUE = 1, /* attune_job_step: call again */
    ATTUNE_PAUSED = 2,   /* attune_job_step: stopped for now, progress is kept */
    ATTUNE_DONE = 3,     /* attune_job_step: the run has ended, see the report */

    ATTUNE_ERROR_ARGUMENT = -1,    /* the caller's mistake: an impossible option or value */
    ATTUNE_ERROR_MEMORY = -2,      /* an allocation failed */
    ATTUNE_ERROR_IO = -3,          /* the operating system said no: path and reason in message */
    ATTUNE_ERROR_FORMAT = -4,      /* a damaged or malformed file: where = file and byte or line */
    ATTUNE_ERROR_UNSUPPORTED = -5, /* well-formed, but not something attune knows; named */
    ATTUNE_ERROR_MISMATCH = -6,    /* two parts do not belong together (base and adapter, ...) */
    ATTUNE_ERROR_BUSY = -7,        /* another process holds the lock */
    ATTUNE_ERROR_NOT_FOUND = -8,   /* no such home, row, adapter */
    ATTUNE_ERROR_STATE = -9,       /* not now: consent, order of calls, use after fork */
    ATTUNE_ERROR_CANCELLED = -10,  /* the caller or a callback asked to stop */
    ATTUNE_ERROR_CONTEXT_FULL = -11, /* prompt and answer do not fit the context */
    ATTUNE_ERROR_INTERNAL = -12,   /* a bug in attune: please report it */
    ATTUNE_ERROR_QUEUE_FULL = -13  /* attune_store_record: more is recorded than the disk takes */
};

/* What went wrong (message: what, and what to do), and where (file:byte, file:line, tensor). */
typedef struct attune_error {
    int code;
    char message[384];
    char where[256];
} attune_error;

/* Short constant name of a code: "format", "busy", ... Never NULL. Any thread. */
ATTUNE_API const char *attune_code_name(int code);
/* "0.1.0". Any thread. */
ATTUNE_API const char *attune_version(void);

/* ---- the home: a folder that holds everything ----------------------------------------------- */

typedef struct attune_home_options {
    size_t size;
    int consent; /* 1: rows recorded in this home may be trained on, unless a row says otherwise */
    /* Encrypts the texts of the store: the key (ATTUNE_KEY_BYTES), which every process that reads or writes
     * texts must bring, or a file with it, made (0600) when it is not there and remembered by the home. */
    const unsigned char *key;
    const char *key_file;
    const char *device; /* "laptop", "phone" or "desktop": whose policy the settings begin with; NULL: detected */
} attune_home_options;

/* Make a home at `home` around the base model file `base` (GGUF; checked, hashed, referred to by
 * absolute path, not copied). Refused when a home is there already. home == NULL: $ATTUNE_HOME,
 * else the XDG data directory, for this and every call below. */
ATTUNE_API int attune_home_init(const char *home, const char *base, const attune_home_options *options,
                                attune_error *err);

/* Path of the home that NULL stands for, or `home` itself. Returns the length, 0 if none. */
ATTUNE_API size_t attune_home_path(const char *home, char *out, size_t out_size);

typedef struct attune_status {
    size_t size;
    char home[1024];
    char base_path[1024];
    char base_name[128];
    char base_sha256[65];
    int base_ok;            /* 1: present and the same file as at init */
    int consent;            /* of the home */
    int64_t interactions, consented, feedback, examples_new; /* examples_new: not in a published run */
    int active_adapter;     /* 0: the base */
    int n_adapters;         /* that may be used: not the revoked */
    /* the last run */
    int64_t run_started_ms; /* 0: none yet */
    char run_state[24];     /* "published", "refused", "unfinished", "failed" */
    char run_reason[256];
    double run_loss_before, run_loss_after; /* mean held-out loss per supervised token, nats */
    double run_seconds;
    int64_t run_examples, run_steps, run_steps_done;
    double run_tokens_per_s;
    /* what people made of the active adapter's answers, and of those of the one before it (docs/formats.md, Rollback) */
    int64_t answers_good, answers_bad, before_good, before_bad;
    double rollback_evidence; /* from 20 on it is rolled back; 0: the base is active */
    int rollback_to;          /* adapter, 0: the base */
    int rollback_pending;     /* 1: the next run begins with it; 2: attune.conf says rollback = never */
} attune_status;

ATTUNE_API int attune_home_status(const char *home, attune_status *status, attune_error *err);

/* A copy of the home in the new folder `path`, made while the home is in use: the store as of one moment,
 * settings and adapters; not the base, caches, nor an unfinished run. It holds what is forgotten later. */
ATTUNE_API int attune_home_backup(const char *home, const char *path, attune_error *err);
/* Makes a home from a backup, verified first; base (nullable): where the base model is on this machine.
 * A home that is there already is refused. */
ATTUNE_API int attune_home_restore(const char *backup, const char *home, const char *base, attune_error *err);

/* level 0 fine, 1 warning, 2 defect. */
typedef void (*attune_check_callback)(int level, const char *subject, const char *message, void *user);
/* Check base, store, adapters, settings, power sensors; `base` in place of a home if not NULL.
 * Returns ATTUNE_OK when no defect was found, ATTUNE_ERROR_FORMAT when one was (all are
 * reported through the callback first). */
ATTUNE_API int attune_home_check(const char *home, const char *base, attune_check_callback callback, void *user,
                                 attune_error *err);

/* ---- recording ------------------------------------------------------------------------------- */

typedef struct attune_store attune_store;

#define ATTUNE_KEY_BYTES 32

enum attune_consent { ATTUNE_CONSENT_HOME = 0, ATTUNE_CONSENT_GIVEN = 1, ATTUNE_CONSENT_NOT_GIVEN = 2 };
enum attune_feedback_kind {
    ATTUNE_FEEDBACK_THUMB = 1,  /* value +1 or -1 */
    ATTUNE_FEEDBACK_EDIT = 2,   /* text: what the person made of the answer */
    ATTUNE_FEEDBACK_ACCEPT = 3,
    ATTUNE_FEEDBACK_REJECT = 4,
    ATTUNE_FEEDBACK_REGENERATE = 5,
    ATTUNE_FEEDBACK_COPY = 6,
    ATTUNE_FEEDBACK_DWELL = 7,  /* value: milliseconds */
    ATTUNE_FEEDBACK_UNDO = 8    /* takes back the last feedback on this interaction */
};
/* Whose words the response is made of. What was pasted, fetched or made by a tool is never learned. */
enum attune_tier {
    ATTUNE_TIER_PERSON = 0,   /* a person asked, the model answered */
    ATTUNE_TIER_IMPORTED = 1, /* from a file that the person chose */
    ATTUNE_TIER_PASTED = 2,
    ATTUNE_TIER_WEB = 3,
    ATTUNE_TIER_TOOL = 4
};
/* What the app knows of the content. Rows with secrets or personal data are left out of training. */
enum attune_sensitivity {
    ATTUNE_SENSITIVITY_UNKNOWN = 0, /* scanned: what is found keeps the row out */
    ATTUNE_SENSITIVITY_PRIVATE = 1, /* kept out, whatever is found */
    ATTUNE_SENSITIVITY_CLEARED = 2  /* let in, whatever is found: the app vouches for it */
};

typedef struct attune_uuid {
    char text[37]; /* UUIDv7, lower case, NUL-terminated */
} attune_uuid;

typedef struct attune_message {
    const char *role; /* "system", "user", "assistant" */
    const char *content;
} attune_message;

typedef struct attune_interaction {
    size_t size;
    const attune_message *messages; /* the conversation up to the answer; or NULL and: */
    size_t n_messages;
    const char *prompt;   /* one user message */
    const char *response; /* what the assistant answered */
    const char *app, *session, *source;
    int64_t time_ms; /* 0: now */
    int consent;     /* enum attune_consent */
    /* provenance, see attune_session_provenance; NULL: unknown */
    const char *model, *adapter, *template_hash;
    int tier;        /* enum attune_tier */
    int sensitivity; /* enum attune_sensitivity */
} attune_interaction;

typedef struct attune_feedback {
    size_t size;
    int kind; /* enum attune_feedback_kind */
    int64_t value;
    const char *text;
    int64_t time_ms; /* 0: now */
} attune_feedback;

enum attune_when_full {
    ATTUNE_FULL_DROP = 0, /* at once: ATTUNE_ERROR_QUEUE_FULL, counted in the statistics */
    ATTUNE_FULL_WAIT = 1  /* up to full_wait_ms, then the same */
};
enum attune_durability {
    ATTUNE_DURABILITY_FULL = 0,  /* every group is synced: at most group_ms of recording can be lost */
    ATTUNE_DURABILITY_NORMAL = 1 /* synced at flush and at checkpoints: less wear, never damaged */
};

/* Secrets that only the app knows, in one text of an interaction or a feedback. Returns how many were
 * found. Runs on the store's writer thread, never inside attune_store_record; for a file that is imported, on the
 * thread that imports it. */
typedef size_t (*attune_private_callback)(const char *text, size_t length, void *user);

typedef struct attune_store_options {
    size_t size;
    int busy_timeout_ms;  /* waiting for other processes; default 5000 */
    /* the queue between attune_store_record and the disk */
    int64_t queue_rows;   /* default 8192 */
    int64_t queue_bytes;  /* default 16 MiB; one row more than that is let in when nothing else waits */
    int group_ms;         /* how long a row may wait for others to share its sync; default 100 */
    int when_full;        /* enum attune_when_full */
    int full_wait_ms;     /* default 100 */
    int durability;       /* enum attune_durability */
    /* of a store that is encrypted: the key, or the file that holds it; both NULL: the file named at init */
    const unsigned char *key; /* ATTUNE_KEY_BYTES, copied */
    const char *key_file;
    attune_private_callback find_private;
    void *user;           /* for find_private */
} attune_store_options;

/* A store handle may be used from any thread, and any number of processes may have the home open. The
 * home must exist. The first record starts one thread that writes; it blocks all signals. After fork()
 * the child must open its own: every call on the parent's handle is ATTUNE_ERROR_STATE. A wrong or missing
 * key of an encrypted store is ATTUNE_ERROR_MISMATCH. */
ATTUNE_API int attune_store_open(const char *home, const attune_store_options *options, attune_store **out,
                                 attune_error *err);
/* Writes what is queued, waiting at most busy_timeout_ms; call attune_store_flush before to know. */
ATTUNE_API void attune_store_close(attune_store *store);

/* Checks, copies and queues; never waits for a disk or a lock of another process. id (nullable) may be
 * used at once. ATTUNE_ERROR_QUEUE_FULL: see when_full; the row is not kept. */
ATTUNE_API int attune_store_record(attune_store *store, const attune_interaction *interaction, attune_uuid *id,
                                   attune_error *err);
/* Queues too. The interaction may still be queued in this handle; recorded elsewhere, it must have been
 * flushed there. An id that names nothing is found out by the writer: told by the next flush. */
ATTUNE_API int attune_store_feedback(attune_store *store, const char *id, const attune_feedback *feedback,
                                     attune_error *err);
/* Returns when all that was queued before is on the disk. An error of the writer (full disk, another
 * program's lock) is returned and the rows stay queued: call again when its cause is gone. Feedback that
 * named no interaction is ATTUNE_ERROR_NOT_FOUND once, with everything else on the disk. */
ATTUNE_API int attune_store_flush(attune_store *store, attune_error *err);

/* Before an app goes to sleep: flushes, then closes every file and lets go of every lock. Rows recorded
 * meanwhile wait in the queue; calls that need the disk are ATTUNE_ERROR_STATE. If the flush fails the rows
 * stay queued, the files are closed all the same, and the error is returned. Idempotent, both. */
ATTUNE_API int attune_store_suspend(attune_store *store, attune_error *err);
ATTUNE_API int attune_store_resume(attune_store *store, attune_error *err);

/* What recording puts off: the full-text index, examples for the night, wiping what was forgotten; in
 * steps that block writers for less than 100 ms each, for about `seconds` (0: until done).
 * ATTUNE_CONTINUE: some is left. The nightly job does it too. */
ATTUNE_API int attune_store_maintain(attune_store *store, double seconds, attune_error *err);

/* ---- looking at, moving and deleting what is kept ---- */

/* Which interactions: those that every field allows. */
typedef struct attune_filter {
    size_t size;
    const char *const *ids; /* n_ids of them; NULL: any */
    size_t n_ids;
    int64_t since_ms, until_ms; /* since <= time < until; 0: open */
    const char *app, *session;  /* exactly; NULL: any */
    const char *match;          /* all of these words (or "quoted phrases") in prompt, response or an edit, whatever
                                   their case and accents; a word that ends in * is the start of one; NULL: any */
    int64_t limit;              /* the newest so many; 0: all */
    int oldest_first;
} attune_filter;

/* One interaction as it is kept, with all its feedback in order. Lives until the next call on the cursor. */
typedef struct attune_row {
    size_t size;
    attune_uuid id;
    int64_t time_ms;
    const attune_message *messages;
    size_t n_messages;
    const char *response;
    const char *app, *session, *source;          /* "" : not said */
    const char *model, *adapter, *template_hash; /* NULL: not said */
    int consent;                                 /* 1 or 0 */
    int tier, sensitivity;
    const attune_feedback *feedback;
    size_t n_feedback;
    int64_t private_findings; /* of find_private when it was recorded */
} attune_row;

typedef struct attune_cursor attune_cursor;
/* Flushes first; what cannot be written just now is not in it. filter NULL: everything. The cursor is a list of rows as
 * of now: what is recorded later is not in it, what is deleted meanwhile is passed over. It holds no lock; one thread at a time.
 * Close it before the store. */
ATTUNE_API int attune_store_query(attune_store *store, const attune_filter *filter, attune_cursor **out,
                                  attune_error *err);
/* Interactions in the cursor's list. */
ATTUNE_API int64_t attune_cursor_count(const attune_cursor *cursor);
/* ATTUNE_CONTINUE: *row is the next one. ATTUNE_DONE: there is none. */
ATTUNE_API int attune_cursor_next(attune_cursor *cursor, attune_row *row, attune_error *err);
ATTUNE_API void attune_cursor_close(attune_cursor *cursor);

typedef struct attune_forget_result {
    size_t size;
    int64_t interactions, feedback, examples; /* deleted */
    int adapters_revoked;
    int active_before, active_after; /* adapter numbers, 0: the base */
    int scrub_pending; /* 1: deleted, but traces are left in the file until a reader has ended or maintenance
                          has run: attune_store_maintain, any later forget and the nightly job go on with it */
} attune_forget_result;
/* Deletes the interactions that the filter names (NULL is refused; everything: an ATTUNE_INIT'ed filter), with
 * their feedback, examples and index entries. Before that, adapters that learned from them are revoked with
 * all their descendants, the nearest clean ancestor or the base becomes active, and the files of the
 * revoked, checkpoints and caches are unlinked. filter->limit and oldest_first must be 0. result may be NULL. */
ATTUNE_API int attune_store_forget(attune_store *store, const attune_filter *filter, attune_forget_result *result,
                                   attune_error *err);

/* Consent of what is recorded from now on (filter NULL: the home's own answer), or of the rows that the
 * filter names. Withdrawing revokes what learned from the rows, as forgetting does; filter NULL withdraws
 * for the home and every row. result (nullable): interactions is the number whose consent changed. */
ATTUNE_API int attune_store_consent(attune_store *store, int given, const attune_filter *filter,
                                    attune_forget_result *result, attune_error *err);

/* A bad line of a file that is imported with keep_going. */
typedef void (*attune_bad_line_callback)(const attune_error *what, void *user);

typedef struct attune_import_options {
    size_t size;
    int consent;     /* enum attune_consent, for all rows of the file that do not say it themselves */
    const char *app; /* default "import" */
    int keep_going;  /* 1: leave bad lines out and import the rest; 0: all rows or none */
    attune_bad_line_callback on_bad_line; /* nullable */
    void *user;
    int forgotten;   /* 1: take rows that were forgotten once, too */
} attune_import_options;
typedef struct attune_import_result {
    size_t size;
    int64_t rows, feedback, duplicates; /* duplicates: there already, left out */
    int64_t bad;       /* lines left out, with keep_going */
    int64_t forgotten; /* rows left out because the person had them deleted */
} attune_import_result;

/* JSON Lines; the shapes are in docs/formats.md. All rows or none: the first bad line ends it with an error
 * naming the line (unless keep_going). path "-" reads standard input. */
ATTUNE_API int attune_store_import(attune_store *store, const char *path, const attune_import_options *options,
                                   attune_import_result *result, attune_error *err);
/* One interaction as a JSON object of the same shapes, consent as in the options; queued as by
 * attune_store_record. */
ATTUNE_API int attune_store_record_json(attune_store *store, const char *json, size_t length,
                                        const attune_import_options *options, attune_uuid *id, attune_error *err);

enum attune_export_format {
    ATTUNE_EXPORT_ROWS = 0,      /* everything of each row: importing it loses nothing */
    ATTUNE_EXPORT_CHAT = 1,      /* {"messages":[...]}: the examples that may be trained on, edits in place */
    ATTUNE_EXPORT_PREFERENCE = 2 /* {"prompt":[...],"chosen":[...],"rejected":[...]}: what was preferred */
};
typedef struct attune_export_options {
    size_t size;
    int format;                  /* enum attune_export_format */
    const attune_filter *filter; /* of rows; NULL: all, oldest first. Other formats take none */
} attune_export_options;
/* To a new file (0600, whole or not at all), or "-": standard output. *n (nullable): lines written. */
ATTUNE_API int attune_store_export(attune_store *store, const char *path, const attune_export_options *options,
                                   int64_t *n, attune_error *err);

enum attune_finding {
    ATTUNE_FINDING_CARD,        /* card numbers (Luhn) */
    ATTUNE_FINDING_IBAN,
    ATTUNE_FINDING_EMAIL,
    ATTUNE_FINDING_PHONE,
    ATTUNE_FINDING_TOKEN,       /* API keys and access tokens of well-known shapes */
    ATTUNE_FINDING_PRIVATE_KEY,
    ATTUNE_FINDING_APP,         /* of attune_private_callback */
    ATTUNE_FINDINGS
};
/* "card number", "e-mail address", ... NULL: no such kind. */
ATTUNE_API const char *attune_finding_name(int finding);

typedef struct attune_store_statistics {
    size_t size;
    int64_t interactions, consented, feedback;
    /* this handle's queue */
    int64_t queued_rows, queued_bytes, written, dropped; /* dropped: the queue was full */
    int64_t refused;          /* given up by the writer: feedback on nothing, rows that the store cannot hold */
    int writer_code;          /* why the writer does not get on just now; ATTUNE_OK: it does */
    char writer_message[256];
    /* the store */
    int64_t examples_sft, examples_preference, examples_thumb; /* that may be trained on */
    int64_t private_rows;     /* consented interactions kept out: something was found, or marked private */
    int64_t findings[8];      /* by enum attune_finding, in those rows */
    int64_t not_derived, not_indexed; /* rows that maintenance has yet to look at */
    int64_t bytes;            /* of store.db and its log */
    int encrypted, scrub_pending;
    int64_t queue_peak_bytes; /* most that was ever queued in this handle */
} attune_store_statistics;
ATTUNE_API int attune_store_statistics_get(attune_store *store, attune_store_statistics *out, attune_error *err);

/* ---- the training job ------------------------------------------------------------------------ */

typedef struct attune_job attune_job;

enum attune_from { ATTUNE_FROM_ACTIVE = 0, ATTUNE_FROM_FRESH = 1 };

/* What training may round the factors of products with the base to. AUTO: what this machine is fastest with, within
 * bounds that docs/benchmarks.md states; F32: nothing. Sums are f32 always, and so is what judges an adapter. */
enum attune_precision { ATTUNE_PRECISION_SETTINGS = 0, ATTUNE_PRECISION_AUTO = 1, ATTUNE_PRECISION_F32 = 2 };

typedef struct attune_progress {
    size_t size;
    const char *phase; /* "load", "plan", "before", "fold 1/3", "train", "after", "base", "pairs", "reference",
                          "answers", "canaries", "gate", "drift" */
    int64_t done, total; /* steps of this run, all phases */
    int64_t step, steps; /* optimizer steps of the final training */
    double loss;         /* of the last step, nats per supervised token */
    double tokens_per_s;
    double seconds_left; /* predicted */
} attune_progress;
/* *progress and its texts live for the call. */
typedef void (*attune_progress_callback)(const attune_progress *progress, void *user);

/* What an app can tell of the device; every field starts as unknown. Called about once a second on a thread of the
 * job's own; may block: then nothing is known after a while, and the work stops. */
enum attune_power { ATTUNE_POWER_UNKNOWN = 0, ATTUNE_POWER_MAINS = 1, ATTUNE_POWER_BATTERY = 2 };
typedef struct attune_device {
    size_t size;
    int power;       /* enum attune_power */
    int discharging; /* 1: the battery loses charge, whatever the supply says */
    int percent;     /* of the battery, 0 to 100; -1: not known, or none */
    double idle_s;   /* since a person was last there; NaN: not known */
    double celsius;  /* NaN: not known */
    double joules;   /* a counter that only grows, of the device or of this process; NaN: there is none */
} attune_device;
typedef void (*attune_device_callback)(attune_device *device, void *user);

typedef struct attune_job_options {
    size_t size;
    double time_s;         /* budget of this call, everything included; 0: none */
    uint64_t memory_bytes; /* ceiling of the peak resident memory; 0: as the settings say */
    int64_t max_examples;  /* 0: all that are eligible */
    int from;              /* enum attune_from */
    int threads;           /* 0: all CPUs this process may use */
    uint64_t seed;         /* 0: as the settings say */
    int now;               /* 1: do not ask for a charger; budgets hold all the same */
    attune_progress_callback on_progress;
    void *user;
    const char *sys_root;  /* where the power sensors are read; default "/sys" */
    const unsigned char *key; /* of an encrypted store, as in attune_store_options */
    const char *key_file;
    int precision;         /* enum attune_precision; of a new run: an unfinished one keeps its own */
    double energy_j;       /* budget of this call in joules; 0: as the settings say */
    attune_device_callback device; /* what an app knows of the device where sensors cannot be read; nullable */
    void *device_user;
    const char *proc_root; /* pressure, memory; default "/proc" */
    int event_fd;          /* readable when something about the device has changed; 0: the kernel tells, below: nobody,
                              and it is looked at once a second alone */
    int background;        /* 1: the job's own threads run at the lowest priority */
} attune_job_options;

typedef struct attune_job_report {
    size_t size;
    int published;        /* 1: a new adapter is active */
    int finished;         /* 0: unfinished, the next call goes on */
    int adapter;          /* number of the published adapter */
    char state[24];       /* as attune_status.run_state */
    char reason[256];
    char evaluation[24];  /* "held-out" or "cross-fit" */
    double loss_before, loss_after; /* nats per supervised token over the held-out rows */
    double loss_interval; /* half width of the 95 % interval of the difference, paired over rows */
    int64_t examples, held_out, epochs, steps, steps_done, tokens; /* tokens: trained in this call */
    double seconds, tokens_per_s; /* of this call; training steps only for tokens_per_s */
    uint64_t peak_rss_bytes, planned_rss_bytes;
    int64_t dropped_steps; /* of the run, in all its trainings: steps whose loss or gradient was not finite */
    int64_t layers, layers_kept; /* kept: whose activations memory allows to keep instead of computing them again */
    /* energy of this call: by a counter, by what the battery gave, by the model */
    double joules_measured, joules_battery, joules_modelled;
    uint64_t written_bytes;
    double governor_cpu_s;  /* CPU time of the governor's thread */
    double gap_ms;          /* the longest piece of work between two looks at the cancel flag */
    double retry_s;         /* paused: until it may go on by itself; NaN: not known */
    int throttled;          /* 1: slowed down at some time */
    int rolled_back;        /* adapter that this call rolled back, as its answers were liked less; 0: none */
} attune_job_report;

/* Opens the home's run: an unfinished one goes on as it was planned; otherwise a new one is
 * planned at the first step. Holds the home's lock until close (a second job: ERROR_BUSY). A job
 * belongs to one thread at a time; attune_job_cancel may come from any thread or signal handler. */
ATTUNE_API int attune_job_open(const char *home, const attune_job_options *options, attune_job **out,
                               attune_error *err);
/* A bounded piece of work. ATTUNE_CONTINUE, ATTUNE_PAUSED (budget, cancel or policy: kept on disk),
 * ATTUNE_DONE, or an error. May be killed at any instruction: the next job goes on. */
ATTUNE_API int attune_job_step(attune_job *job, attune_error *err);
ATTUNE_API void attune_job_cancel(attune_job *job);
ATTUNE_API int attune_job_report_get(const attune_job *job, attune_job_report *out, attune_error *err);
ATTUNE_API void attune_job_close(attune_job *job);
/* Peak resident memory that a job with these options would take, bytes: what is allowed is used where it saves time.
 * More than is allowed: the job would be refused, and this is the least that it needs. */
ATTUNE_API int attune_job_memory(const char *home, const attune_job_options *options, uint64_t *bytes,
                                 attune_error *err);

/* ---- nights: when a device may train ------------------------------------------------------------ */

typedef struct attune_nightly_options {
    size_t size;
    int wait;              /* 1: wait for the conditions until the window closes; 0: as the settings say; -1: do not */
    int now;               /* as in attune_job_options */
    int threads;
    attune_progress_callback on_progress;
    void *user;
    const char *sys_root, *proc_root;
    int event_fd;
    attune_device_callback device;
    void *device_user;
    const unsigned char *key;
    const char *key_file;
} attune_nightly_options;

typedef struct attune_nightly_report {
    size_t size;
    char state[16];      /* "done", "paused", "waiting", as in attune_night */
    char reason[256];
    int runs, published; /* runs that ended; of them, adapters that are active now */
    int pauses;
    attune_job_report last; /* of the last run that was worked on */
    double wait_s;       /* until it is worth calling again; NaN: not known */
} attune_nightly_report;

typedef struct attune_nightly attune_nightly;
/* Trains under the configured policy: waits for its conditions or ends at once, runs, pauses and goes on, ends with the
 * window; then old checkpoints, caches and files go. One at a time per home: ATTUNE_ERROR_BUSY. */
ATTUNE_API int attune_nightly_open(const char *home, const attune_nightly_options *options, attune_nightly **out,
                                   attune_error *err);
/* A bounded piece: a step of the job, or up to a second of waiting. ATTUNE_CONTINUE, ATTUNE_PAUSED (not now, call
 * again another time), ATTUNE_DONE (nothing is left to do tonight), or an error. */
ATTUNE_API int attune_nightly_step(attune_nightly *nightly, attune_error *err);
/* Any thread, or a signal handler. */
ATTUNE_API void attune_nightly_cancel(attune_nightly *nightly);
ATTUNE_API int attune_nightly_report_get(const attune_nightly *nightly, attune_nightly_report *out, attune_error *err);
ATTUNE_API void attune_nightly_close(attune_nightly *nightly);

/* One condition of the policy as it is now. */
typedef struct attune_condition {
    size_t size;
    const char *name;    /* "power", "battery", "window", "idle", "heat", ... */
    const char *sensed, *wanted;
    const char *verdict; /* "run", "throttle", "pause", "stop" */
    const char *reason;  /* for people; "" when there is nothing against it */
} attune_condition;
typedef void (*attune_condition_callback)(const attune_condition *condition, void *user);
typedef struct attune_explanation {
    size_t size;
    char verdict[12], reason[128]; /* of all conditions together */
    double wait_s;           /* until that may change by itself; NaN: not known */
    /* what a run would be now, as the last nights' cost tells; 0: not known */
    int64_t rows_new, rows_planned;
    double seconds_predicted, joules_predicted;
    char plan[256];          /* for people: "goes on with run 3, 40 of 57 steps are left" */
    char device[16];         /* "laptop", "phone", "desktop" */
} attune_explanation;
/* What nightly would do now and why, sensor by sensor. Changes nothing. */
ATTUNE_API int attune_nightly_explain(const char *home, const attune_nightly_options *options,
                                      attune_condition_callback callback, void *user, attune_explanation *out,
                                      attune_error *err);

/* What a call of train or nightly did. */
typedef struct attune_night {
    size_t size;
    int64_t number, night_ms, started_ms, ended_ms; /* night_ms: when the night began that it belongs to */
    char kind[12];   /* "train", "nightly" */
    char state[16];  /* "running", "done", "paused", "waiting", "failed", "killed" */
    char reason[256];
    int64_t run, runs, tokens, steps;
    double seconds, work_seconds;
    double joules_measured, joules_battery, joules_modelled;
    int64_t marked;  /* gaps that were charged by the model */
    int64_t written; /* bytes */
    int64_t pauses;
    double loss_before, loss_after;
    int adapter;     /* that it published */
    double celsius_max;
} attune_night;
typedef int (*attune_night_callback)(const attune_night *night, void *user);
/* The newest first; non-zero from the callback stops. limit 0: all. */
ATTUNE_API int attune_night_list(const char *home, int64_t limit, attune_night_callback callback, void *user,
                                 attune_error *err);
/* What was seen and decided while it ran: at every change, and otherwise once a minute. */
typedef struct attune_moment {
    size_t size;
    int64_t time_ms;
    const char *verdict, *reason; /* "run", "throttle", "pause", "stop"; reason for people */
    double celsius, watts, percent, loss; /* NaN: not known */
    double joules;  /* of this call so far */
    int64_t steps;
} attune_moment;
typedef int (*attune_moment_callback)(const attune_moment *moment, void *user);
ATTUNE_API int attune_night_moments(const char *home, int64_t number, attune_moment_callback callback, void *user,
                                    attune_error *err);

/* ---- adapters --------------------------------------------------------------------------------- */

typedef struct attune_adapter_info {
    size_t size;
    int number, parent, active; /* parent 0: the base */
    char state[16];             /* "candidate", "active", "retired", "revoked", "rejected", "removed" */
    char sha256[65], run[65];
    int64_t created_ms, bytes, examples;
    int rank;
    double alpha;
    double loss_before, loss_after; /* NaN: imported, not measured */
    char origin[16];                /* "trained" or "imported" */
    char reason[256];               /* of a rejected one: why it was rolled back; else "" */
} attune_adapter_info;

typedef int (*attune_adapter_callback)(const attune_adapter_info *info, void *user); /* non-zero stops */
ATTUNE_API int attune_adapter_list(const char *home, attune_adapter_callback callback, void *user,
                                   attune_error *err);
ATTUNE_API int attune_adapter_get(const char *home, int number, attune_adapter_info *out, attune_error *err);

/* What merging an adapter costs: how far answers in a merge mode are from the adapter run beside the base ("none"),
 * over supervised tokens of rows that judged it. The job measures it once it has published. */
typedef struct attune_merge_drift {
    size_t size;
    char merge[16];         /* "same", "q8", ..., and "none" itself, which the others are compared with */
    double kl;              /* mean KL divergence, nats a token */
    double agreement;       /* share of tokens where both find the same most likely, 0 to 1 */
    double loss, loss_none; /* nats a token, in this mode and in "none" */
    int64_t tokens, rows;   /* that it was measured on */
    int64_t bytes;          /* of the merged weights; of none the base's and the adapter's */
    int64_t measured_ms;
} attune_merge_drift;
typedef int (*attune_drift_callback)(const attune_merge_drift *drift, void *user); /* non-zero stops */
/* Each mode that was measured, that which decodes fastest first; none: not measured, or revoked. */
ATTUNE_API int attune_adapter_drift(const char *home, int number, attune_drift_callback callback, void *user,
                                    attune_error *err);
/* What a run was judged by before its candidate was published or refused. All must hold. */
typedef struct attune_criterion {
    size_t size;
    char name[24];            /* "held-out", "base", "reference", "reference_kl", "degenerate", "canaries", "preferences" */
    double figure, threshold; /* NaN: not known */
    int passed;
    char detail[160];         /* for people: what the figure is, and how it compares */
} attune_criterion;
typedef int (*attune_criterion_callback)(const attune_criterion *criterion, void *user); /* non-zero stops */
/* Of the run that made adapter `number`, in the order in which they were judged; none: imported, or revoked. */
ATTUNE_API int attune_adapter_criteria(const char *home, int number, attune_criterion_callback callback, void *user,
                                       attune_error *err);
/* Of the last run, published or refused; none: it has not been judged. */
ATTUNE_API int attune_run_criteria(const char *home, attune_criterion_callback callback, void *user,
                                   attune_error *err);
/* Make adapter `number` (0: the base) the active one. */
ATTUNE_API int attune_adapter_use(const char *home, int number, attune_error *err);
/* To the active adapter's parent; *now: its number, 0 for the base. */
ATTUNE_API int attune_adapter_rollback(const char *home, int *now, attune_error *err);
/* format "gguf" (path: a file) or "peft" (path: a folder, made if missing). number 0 is refused. */
ATTUNE_API int attune_adapter_export(const char *home, int number, const char *format, const char *path,
                                     attune_error *err);
/* A GGUF LoRA file or a PEFT folder made for this home's base; becomes the next number, not active. */
ATTUNE_API int attune_adapter_import(const char *home, const char *path, int *number, attune_error *err);

/* ---- what an adapter has learned ----------------------------------------------------------------- */

/* Looks at an adapter from three sides: the rows that moved it most, how its answers to questions that it has not learned
 * from differ from the base's, and those answers side by side. docs/cli.md#learned says how each figure is made. */
typedef struct attune_learned attune_learned;

enum { ATTUNE_LEARNED_PROMPTS = 24 };
typedef struct attune_learned_options {
    size_t size;
    int adapter;    /* number; 0: the active one */
    int64_t rows;   /* rows it was trained on that are looked at, drawn by their hashes where there are more; default 128 */
    int prompts;    /* questions that are asked, at most ATTUNE_LEARNED_PROMPTS, which is the default */
    double time_s;  /* what is not done by then is left out, and nothing is kept; 0: no limit */
    int threads;    /* 0: all */
    int kept_only;  /* 1: nothing is computed: what an earlier call has kept in the home's cache, whatever it was asked
                       for; else ATTUNE_ERROR_NOT_FOUND */
    attune_progress_callback on_progress; /* phases "load", "answers", "rows" */
    void *user;
    const unsigned char *key; /* of an encrypted store, as in attune_store_options */
    const char *key_file;
} attune_learned_options;

/* Takes what was kept, or opens base and adapter and finds the rows. An encrypted home keeps nothing. No active adapter:
 * ATTUNE_ERROR_NOT_FOUND; a revoked one: ATTUNE_ERROR_STATE. One thread at a time, but for cancel. */
ATTUNE_API int attune_learned_open(const char *home, const attune_learned_options *options, attune_learned **out,
                                   attune_error *err);
/* A bounded piece: ATTUNE_CONTINUE, or ATTUNE_DONE: everything can be read. The last one keeps the result in the
 * home's cache (0600), where forgetting a row that the adapter has learned removes it. */
ATTUNE_API int attune_learned_step(attune_learned *learned, attune_error *err);
/* The step that runs, and every later one, is ATTUNE_ERROR_CANCELLED; nothing is kept. Any thread, or a signal
 * handler. */
ATTUNE_API void attune_learned_cancel(attune_learned *learned);
ATTUNE_API void attune_learned_close(attune_learned *learned);

typedef struct attune_learned_summary {
    size_t size;
    int adapter;
    char adapter_sha256[65];
    int complete;        /* 0: time_s was over before all was done */
    int from_cache;      /* 1: an earlier call's */
    int64_t rows_known, rows; /* interactions that it, or one it goes on from, has learned from and that are still
                                 there; of them looked at */
    int64_t prompts, max_tokens; /* asked; of an answer, cut there */
    double loss_base, loss_adapter; /* nats a token: means over the rows that are answers to say; NaN: none */
    double gain;         /* sum over rows of weight times `moved`, of those above 0: what shares are of */
} attune_learned_summary;
/* ATTUNE_ERROR_STATE before ATTUNE_DONE, here and below. */
ATTUNE_API int attune_learned_summary_get(const attune_learned *learned, attune_learned_summary *out,
                                          attune_error *err);

/* A row that it was trained on. Texts live as long as the object, here and below. */
typedef struct attune_learned_row {
    size_t size;
    const char *id;       /* of the interaction */
    const char *kind;     /* "answer", "edit", "pair", "liked", "disliked" */
    int64_t time_ms;
    double moved;         /* from the base to the adapter, nats a token: how much likelier its answer has become; pair:
                             how much further ahead of the other one; disliked: how much less likely */
    double weight, share; /* 0 to 1; of the summary's gain; 0 where the row became worse */
    double loss_base, loss_adapter; /* nats a token of the answer; of pairs of the better one */
    int64_t tokens;
    const char *prompt, *answer; /* beginnings, of at most 400 bytes */
} attune_learned_row;
typedef int (*attune_learned_row_callback)(const attune_learned_row *row, void *user); /* non-zero stops */
/* The one that moved it most first. */
ATTUNE_API int attune_learned_rows(const attune_learned *learned, attune_learned_row_callback callback, void *user,
                                   attune_error *err);

/* One habit of the answers, base against adapter over the same questions. */
typedef struct attune_learned_style {
    size_t size;
    const char *name, *title; /* "sentence_words"; "words a sentence" */
    const char *unit;         /* "each": mean of the answers; "share" of them; "of_100" words */
    double base, adapter;     /* NaN: no answer says */
    int64_t more, less, answers; /* pairs of answers where the adapter's figure is higher, lower; all */
    double p;                 /* NaN: too few to tell */
    const char *verdict;      /* "different", "alike" (no difference could be shown), "too few" */
} attune_learned_style;
typedef int (*attune_learned_style_callback)(const attune_learned_style *style, void *user);
ATTUNE_API int attune_learned_styles(const attune_learned *learned, attune_learned_style_callback callback, void *user,
                                     attune_error *err);

/* A word that one of both says clearly more often. */
typedef struct attune_learned_word {
    size_t size;
    const char *word;
    int64_t base, adapter;                 /* times in all answers */
    int64_t base_answers, adapter_answers; /* answers that say it */
    double z;                              /* above 0: the adapter says it more */
} attune_learned_word;
typedef int (*attune_learned_word_callback)(const attune_learned_word *word, void *user);
/* By falling z. */
ATTUNE_API int attune_learned_words(const attune_learned *learned, attune_learned_word_callback callback, void *user,
                                    attune_error *err);

typedef struct attune_learned_answer {
    size_t size;
    const char *prompt, *base, *adapter; /* the question and both greedy answers */
    int base_ended, adapter_ended;       /* 0: cut */
} attune_learned_answer;
typedef int (*attune_learned_answer_callback)(const attune_learned_answer *answer, void *user);
ATTUNE_API int attune_learned_answers(const attune_learned *learned, attune_learned_answer_callback callback,
                                      void *user, attune_error *err);

/* ---- catalogs: adapters of made-up people, to start from ------------------------------------------ */

/* A catalog is a folder: adapters and an index that is signed with a key of minisign's kind (docs/formats.md). What
 * does not bear the signature of the key that is trusted is refused before it is read. public_key, below: the key's
 * line "RW...", or a file that holds it. */

enum { ATTUNE_PUBLIC_KEY_SIZE = 64 };
/* Makes a key pair: the secret key at path (0600, without a password), the public one at path.pub. Neither may be there
 * already. public_key: its line. */
ATTUNE_API int attune_catalog_key(const char *path, char public_key[ATTUNE_PUBLIC_KEY_SIZE], attune_error *err);

typedef struct attune_catalog_entry {
    size_t size;
    const char *name, *licence, *origin;
    const char *sha256;  /* of the adapter's file */
    int64_t bytes, rows; /* rows: that it has learned */
    int64_t judged;      /* rows that judged it; 0: none, losses are NaN */
    double loss_before, loss_after, loss_interval; /* nats a token; half width of the 95 % interval of the fall */
    const char *file; /* of the adapter, in the catalog's folder */
} attune_catalog_entry;
typedef int (*attune_catalog_callback)(const attune_catalog_entry *entry, void *user); /* non-zero stops */

typedef struct attune_catalog_info {
    size_t size;
    char base_sha256[65];
    int64_t serial; /* one more with every change */
    int64_t entries;
} attune_catalog_info;
/* What the index says; adapters are not read. info and callback are nullable. */
ATTUNE_API int attune_catalog_list(const char *path, const char *public_key, attune_catalog_info *info,
                                   attune_catalog_callback callback, void *user, attune_error *err);
/* The same, and every adapter is whole, the one that was signed, and fit for the base model at `base`. */
ATTUNE_API int attune_catalog_verify(const char *path, const char *public_key, const char *base,
                                     attune_catalog_info *info, attune_error *err);

typedef struct attune_catalog_options {
    size_t size;
    const char *base;       /* GGUF */
    const char *secret_key; /* file */
    const char *licence, *origin; /* of the entries that are added */
    /* attune_catalog_build */
    const char *const *personas; /* JSON Lines; the file's name without .jsonl is the entry's */
    size_t n_personas;
    int task, tasks;      /* 1 <= task <= tasks: entries task, task + tasks, ... alone, and no index: secret_key, licence
                           * and origin are not needed. 0: all, and the index */
    int64_t max_examples; /* rows of each; 0: all */
    uint64_t seed;        /* 0: 1 */
    int threads;          /* 0: all CPUs of this process */
    attune_progress_callback on_progress; /* phase: the entry that is trained */
    void *user;
    /* attune_catalog_add */
    int64_t rows; /* that the adapter has learned */
} attune_catalog_options;
typedef struct attune_catalog_built {
    size_t size;
    int64_t trained, found; /* entries that this call made; that were there already */
    int64_t entries;        /* of the index now; 0: a task writes none */
} attune_catalog_built;
/* Trains an entry for each persona, and adds them to the catalog at path, made where there is none. An entry that is
 * there already, made of the same rows in the same way, is not trained again: call again after a kill.
 * ATTUNE_ERROR_STATE: an entry is not surely better than the base over rows that it has not seen. built is nullable. */
ATTUNE_API int attune_catalog_build(const char *path, const attune_catalog_options *options,
                                    attune_catalog_built *built, attune_error *err);
/* Adds the adapter file `adapter` as the entry `name`, which must be new. */
ATTUNE_API int attune_catalog_add(const char *path, const char *name, const char *adapter,
                                  const attune_catalog_options *options, attune_error *err);
ATTUNE_API int attune_catalog_remove(const char *path, const char *name, const char *secret_key, attune_error *err);

typedef struct attune_catalog_select_options {
    size_t size;
    const char *home;     /* whose rows and base are meant; NULL: the default one */
    const char *key_file; /* of an encrypted home; NULL: the one that it remembers */
    const char *base;     /* in place of the home's; then rows is needed */
    const char *rows;     /* JSON Lines, in place of the home's newest rows that have consent */
    int64_t max_examples; /* 0: 10 */
    const char *method;   /* NULL: "loss" */
    int threads;          /* 0: all CPUs of this process */
} attune_catalog_select_options;
typedef struct attune_catalog_match {
    size_t size;
    const char *name;
    /* What starting there takes from the loss of the rows, nats a token: measured by "loss" and "halving" (NaN: dropped
     * on the way), by "gradient" as the base's slope in its direction says, which is only good to compare entries. */
    double gain;
    double share; /* 0 to 1: how far it stands out above the mean of the entries, as a part of all that do */
    const char *file; /* of the adapter, in the catalog's folder */
} attune_catalog_match;
typedef int (*attune_catalog_match_callback)(const attune_catalog_match *match, void *user); /* non-zero stops */
typedef struct attune_catalog_selected {
    size_t size;
    char method[16];
    int64_t rows, entries;
    int64_t judged; /* losses of single rows that were computed */
} attune_catalog_selected;
/* Which entries resemble the person, the nearest first. Methods: "gradient" (one backward pass at the base for up to 256
 * ranks of entries together), "loss" (every entry over every row), "halving" (the worse half of the entries goes, again
 * and again). Nothing is changed. selected and callback are nullable. */
ATTUNE_API int attune_catalog_select(const char *path, const char *public_key,
                                     const attune_catalog_select_options *options,
                                     attune_catalog_match_callback callback, void *user,
                                     attune_catalog_selected *selected, attune_error *err);

/* ---- inference --------------------------------------------------------------------------------- */

typedef struct attune_engine attune_engine;
typedef struct attune_session attune_session;

typedef struct attune_engine_options {
    size_t size;
    const char *adapter; /* "active" (default), "base", a number, or a file */
    const char *merge;   /* "none", "same", "calibrated", "q8", "f16", "auto"; default as the settings say, else "none" */
    int threads;         /* 0: all */
    int read;            /* 1: read the base whole in place of mapping it */
    int precision;       /* enum attune_precision; SETTINGS is AUTO here: activations in 8 bits where that is faster */
    /* Merging goes on: share done, 0 to 1. Non-zero cancels: ATTUNE_ERROR_CANCELLED. On the thread that opens. */
    int (*on_progress)(double share, void *user);
    void *user;
    int no_cache;        /* 1: neither reads nor writes the home's cache of merged weights */
    double drift_limit;  /* of "auto": largest mean KL divergence, nats a token; 0: as the settings say */
} attune_engine_options;

/* Base and adapter, shared by any number of sessions and threads. Merged weights come from the home's cache where
 * they are there and whole, else they are made and kept there. */
ATTUNE_API int attune_engine_open(const char *home, const attune_engine_options *options, attune_engine **out,
                                  attune_error *err);
/* Without a home: adapter is a GGUF file or NULL; options->adapter must be NULL. */
ATTUNE_API int attune_engine_open_files(const char *base, const char *adapter, const attune_engine_options *options,
                                        attune_engine **out, attune_error *err);
/* All sessions must be closed before. */
ATTUNE_API void attune_engine_close(attune_engine *engine);
/* 1: the home has another active adapter by now. */
ATTUNE_API int attune_engine_is_stale(const attune_engine *engine);
/* Serves another adapter from now on, without opening the base again: adapter and merge as in the options, NULL: as
 * they were asked for at open (a home's active adapter is the one of now). Sessions that are open keep what they
 * began with until attune_session_reset; the old weights go when the last of them does. On error the engine is as it
 * was. Any thread; swaps wait for each other. An engine of files wants a file or NULL. */
ATTUNE_API int attune_engine_swap(attune_engine *engine, const char *adapter, const char *merge, attune_error *err);

typedef struct attune_engine_info {
    size_t size;
    char name[128], architecture[32], base_sha256[65], adapter_sha256[65], merge[16], kernels[32];
    int adapter; /* number, 0: base, -1: a file */
    int64_t parameters, layers, width, vocabulary, context;
    int from_cache;            /* 1: merged weights were mapped out of the cache */
    uint64_t merged_bytes;     /* of merged weights */
    double seconds_open, seconds_merge; /* that opening (or the last swap) took, and merging of it */
} attune_engine_info;
ATTUNE_API int attune_engine_info_get(const attune_engine *engine, attune_engine_info *out, attune_error *err);

enum attune_tokenize_flags { ATTUNE_TOKENIZE_SPECIAL = 1 };
/* Tokens of text[0..length). *n is always set to the number needed; ids beyond capacity are not
 * written. Without ATTUNE_TOKENIZE_SPECIAL, "<|im_end|>" in the text is ordinary characters. */
ATTUNE_API int attune_engine_tokenize(const attune_engine *engine, const char *text, size_t length, int flags,
                                      int32_t *ids, size_t capacity, size_t *n, attune_error *err);
/* Bytes of tokens, not NUL-terminated; *n as above. */
ATTUNE_API int attune_engine_detokenize(const attune_engine *engine, const int32_t *ids, size_t n_ids, char *bytes,
                                        size_t capacity, size_t *n, attune_error *err);

/* What keys and values of past tokens are kept as. */
enum attune_kv_kind {
    ATTUNE_KV_F16 = 0, /* the default */
    ATTUNE_KV_Q8 = 1,  /* half of the memory; heads whose size is no multiple of 32 cannot */
    ATTUNE_KV_F32 = 2
};
/* When an answer or an append does not fit the context. */
enum attune_when_context_full {
    ATTUNE_CONTEXT_STOP = 0, /* ATTUNE_STOP_CONTEXT, ATTUNE_ERROR_CONTEXT_FULL */
    ATTUNE_CONTEXT_SHIFT = 1 /* the oldest half is dropped, but for the system message: the conversation goes on */
};
typedef struct attune_session_options {
    size_t size;
    int64_t context; /* tokens; default the smaller of the model's own and 2048 */
    int kv;          /* enum attune_kv_kind */
    int when_full;   /* enum attune_when_context_full */
} attune_session_options;
/* One conversation; one thread at a time. */
ATTUNE_API int attune_session_open(attune_engine *engine, const attune_session_options *options,
                                   attune_session **out, attune_error *err);
ATTUNE_API void attune_session_close(attune_session *session);
/* Messages of a conversation go in through the model's chat template; the first append without a
 * system message brings the template's own. */
ATTUNE_API int attune_session_append(attune_session *session, const attune_message *messages, size_t n,
                                     attune_error *err);
/* The conversation is these messages and no others. Tokens that it has in common with what the session holds are not
 * run again: the way to edit, to undo, or to answer call after call from whole conversations. The last may be an answer,
 * which then waits for an append; n 0: an empty conversation. A system message comes first or not at all, here and in
 * attune_session_append. */
ATTUNE_API int attune_session_set(attune_session *session, const attune_message *messages, size_t n,
                                  attune_error *err);
/* An empty conversation, over what the engine serves now. */
ATTUNE_API int attune_session_reset(attune_session *session, attune_error *err);
/* The conversation into a file (atomic, 0600; it holds what was said, as tokens) and back, without running it again.
 * Refused with ATTUNE_ERROR_MISMATCH: another base, adapter, merge or kind of cache; a longer one than the context
 * with ATTUNE_ERROR_CONTEXT_FULL. On error the session is as it was. */
ATTUNE_API int attune_session_save(attune_session *session, const char *path, attune_error *err);
ATTUNE_API int attune_session_restore(attune_session *session, const char *path, attune_error *err);
/* Text as it stands, no template; special tokens are recognised with flags. */
ATTUNE_API int attune_session_append_text(attune_session *session, const char *text, size_t length, int flags,
                                          attune_error *err);

/* Whole UTF-8 characters as they come; non-zero stops the generation. */
typedef int (*attune_token_callback)(const char *text, size_t length, void *user);

typedef struct attune_logit_bias {
    int32_t id;
    float bias; /* -INFINITY, or -100 to 100 */
} attune_logit_bias;

typedef struct attune_generate_options {
    size_t size;
    int64_t max_tokens;   /* default 256 */
    double temperature;   /* 0 (default): greedy */
    int top_k;            /* 0: off */
    double top_p, min_p;  /* 0: off */
    double repetition_penalty; /* 0 or 1: off; over the last 64 tokens */
    uint64_t seed;
    const char *const *stop; /* strings that end the answer, not part of it */
    size_t n_stop;
    double typical_p;         /* 0: off; locally typical sampling */
    double frequency_penalty; /* subtracted from a logit for each time that its token is in the window, -2 to 2 */
    double presence_penalty;  /* ... once, if it is there, -2 to 2 */
    int penalty_window;       /* tokens that the three penalties look back on; 0: 64, -1: the whole context */
    const attune_logit_bias *logit_bias; /* added before everything else; -INFINITY forbids a token */
    size_t n_logit_bias;
    int alternatives;         /* 0 to 20: so many best tokens for each place, see attune_session_alternatives */
    int lookup;               /* tokens drafted at once from what was said before, 0: off, up to 8. Any sampling: each is
                                 chosen anew from the model's logits, and the answer is the same to rounding; pays where
                                 answers repeat what was said */
} attune_generate_options;

enum attune_stop_reason {
    ATTUNE_STOP_END = 1,     /* the model ended its turn */
    ATTUNE_STOP_LENGTH = 2,  /* max_tokens */
    ATTUNE_STOP_STRING = 3,
    ATTUNE_STOP_CALLBACK = 4,
    ATTUNE_STOP_CONTEXT = 5  /* the context is full */
};
typedef struct attune_generate_result {
    size_t size;
    int64_t prompt_tokens, tokens;
    double prompt_seconds, seconds; /* to the first token; all after it */
    int reason; /* enum attune_stop_reason */
    int64_t reused_tokens;     /* of the conversation before the answer, that had not to be run for it */
    double tokens_per_s;       /* after the first token; 0 where there is none */
    int64_t drafted, accepted; /* with lookup */
    int64_t dropped_tokens;    /* when the context was full, with ATTUNE_CONTEXT_SHIFT */
} attune_generate_result;

/* Answers what was appended. The answer joins the conversation. on_token, result may be NULL. ATTUNE_ERROR_CANCELLED:
 * attune_session_cancel came before the first token; the call may be made again, and what was run is not run again. */
ATTUNE_API int attune_session_generate(attune_session *session, const attune_generate_options *options,
                                       attune_token_callback on_token, void *user, attune_generate_result *result,
                                       attune_error *err);
/* Stops the call on this session that runs the model now: during the prompt with ATTUNE_ERROR_CANCELLED, during the
 * answer as the callback does, with ATTUNE_STOP_CALLBACK; within the time of one layer. Other sessions go on; where
 * nothing runs, nothing is stopped. Any thread and signal handlers, while the session is open. */
ATTUNE_API void attune_session_cancel(attune_session *session);
/* Text of the last answer; valid until the next call on the session. */
ATTUNE_API const char *attune_session_text(const attune_session *session);
/* Token ids of the last answer, without the token that ended it; valid until the next call. */
ATTUNE_API int attune_session_ids(const attune_session *session, const int32_t **ids, size_t *n);
typedef struct attune_alternative {
    int32_t id;
    float log_probability; /* natural, by the model itself: before bias, penalties and temperature */
} attune_alternative;
/* For token `place` of the last answer: itself first, then the best ones, best first. Valid until the next call.
 * ATTUNE_ERROR_NOT_FOUND: there is no such place, or none were asked for. */
ATTUNE_API int attune_session_alternatives(const attune_session *session, size_t place,
                                           const attune_alternative **alternatives, size_t *n);
/* Logits after the last appended token, vocabulary-sized, valid until the next call. */
ATTUNE_API int attune_session_logits(attune_session *session, const float **logits, attune_error *err);

typedef struct attune_provenance {
    size_t size;
    char model[65], adapter[65], template_hash[65];
} attune_provenance;
ATTUNE_API int attune_session_provenance(const attune_session *session, attune_provenance *out, attune_error *err);

/* ---- evaluation and figures ----------------------------------------------------------------------- */

typedef struct attune_eval_row {
    int64_t row; /* of the file, from 1; one of which nothing is left to judge is passed over */
    double nll;  /* mean over its supervised tokens, nats */
    int64_t tokens;
} attune_eval_row;
typedef struct attune_eval_options {
    size_t size;
    int64_t max_examples; /* 0: all */
    int64_t max_tokens;   /* cut each text there; 0: as the settings say */
    /* Or NULL: called for each row in the file's order, once all are judged, by the thread that called. */
    void (*on_row)(const attune_eval_row *row, void *user);
    void *user;
} attune_eval_options;
typedef struct attune_eval_result {
    size_t size;
    double nll; /* mean over supervised tokens, nats */
    int64_t tokens, examples;
} attune_eval_result;
/* JSON Lines as for import. */
ATTUNE_API int attune_eval(attune_engine *engine, const char *path, const attune_eval_options *options,
                           attune_eval_result *result, attune_error *err);

typedef struct attune_bench_options {
    size_t size;
    int threads;
    int64_t tokens;   /* train: micro-batch, decode and prefill: how many */
    double seconds;   /* per measurement; default 3 */
    int64_t rank;
    const char *merge, *adapter;
    /* train: */
    const char *rows;      /* JSON Lines to learn from, each once an epoch in the file's order; NULL: random tokens */
    int64_t epochs;        /* over rows; default 1 */
    uint64_t memory_bytes; /* ceiling of the peak resident memory; 0: as a new home has it, or the least that does */
    int precision;         /* enum attune_precision; SETTINGS is AUTO here; of decode and prefill too */
    const char *out;       /* the adapter that was learned from rows, a new file; NULL: not kept */
    /* decode, prefill: */
    int64_t depth;         /* tokens in the cache before the first that is timed */
    int kv;                /* enum attune_kv_kind */
} attune_bench_options;
typedef struct attune_bench_result {
    size_t size;
    double tokens_per_s, seconds, seconds_load;
    int64_t tokens;
    double peak_rss_mib;
    double limit_gflops, limit_gbytes_per_s; /* of this machine, in the same run and thread count */
    double gflops, gbytes_per_s;             /* what the work itself needed */
    char kernels[32];
    int threads;
    /* train. With rows, `seconds` is from the call to the saved adapter, and rates are of that; else of the steps. */
    int64_t rows, supervised_tokens, steps, dropped_steps; /* rows: of all epochs */
    double rows_per_s, supervised_tokens_per_s;
    double loss;              /* of the last step, nats a token */
    double seconds_train;     /* of the steps alone; gflops are of these */
    /* The part of the time (train: of seconds_train) that the machine at its limits would need: of decode by the bytes
     * that a token reads, of train and prefill by arithmetic; 0: not known. */
    double limit_share;
    double base_share;        /* of all operations, those with the frozen base, in `arithmetic`; others are f32 */
    double limit_base_gflops; /* of that arithmetic */
    char arithmetic[16];      /* "f32", "int8", "bf16" */
    double seconds_limits;    /* that measuring the limits took, after everything else */
    int64_t bytes;            /* decode: that a token must read; merge: of merged weights */
} attune_bench_result;
/* kind: "train", "decode", "prefill", "merge". */
ATTUNE_API int attune_bench(const char *base, const char *kind, const attune_bench_options *options,
                            attune_bench_result *result, attune_error *err);

/* How long attune_store_record takes while `processes` processes record `rate` rows a second each and another one
 * reads examples and searches; the same with an SQLite insert in its place. Then one process records as fast as it
 * can until `rows` rows are durable. */
typedef struct attune_record_figures {
    double p50_us, p99_us, p999_us, max_us;
    int64_t calls, dropped;
    double rows_per_s;
} attune_record_figures;
typedef struct attune_bench_record_options {
    size_t size;
    double seconds;     /* of each load; default 3 */
    int64_t rate;       /* rows a second of each process; default 200 */
    int64_t row_bytes;  /* default 2048 */
    int64_t rows;       /* of the run flat out; default 100000 */
    const char *folder; /* where the stores are made, and removed again; default $TMPDIR, else /tmp */
    int alone;          /* 1: no reader beside */
} attune_bench_record_options;
enum { ATTUNE_RECORD_LOADS = 3 };
typedef struct attune_bench_record_result {
    size_t size;
    int n_loads;
    struct {
        int processes; /* 1, 2, 4 */
        attune_record_figures queue, direct;
    } load[ATTUNE_RECORD_LOADS];
    int64_t rows; /* flat out */
    double rows_per_s, seconds;
    double disk_mbytes_per_s; /* this disk's limit: 4 MiB written and synced, again and again */
    double file_bytes_per_row;
    double queue_peak_mib, peak_rss_mib;
} attune_bench_record_result;
/* Forks: to be called from a process with one thread. */
ATTUNE_API int attune_bench_record(const attune_bench_record_options *options, attune_bench_record_result *result,
                                   attune_error *err);

/* How soon a training run is gone when the charger is pulled: a process really trains on `base` with a made-up power
 * supply, which is unplugged at random moments; judged from outside, by the CPU time of its threads in /proc. Then how
 * well calls keep budgets of time, 5 to 60 s, drawn at random. */
typedef struct attune_bench_governor_options {
    size_t size;
    const char *rows;   /* JSON Lines to train on; NULL: made-up words */
    const char *folder; /* where the home is made, and removed again; default $TMPDIR, else /tmp */
    int threads;        /* 0: all CPUs of this process */
    int trials;         /* with events; default 20 */
    int polls;          /* where polling alone tells; 0: a quarter of trials, below: none */
    int budgets;        /* 0: none */
    uint64_t seed;      /* of the moments and budgets; default 1 */
} attune_bench_governor_options;
typedef struct attune_milliseconds {
    double p50, p99, max;
} attune_milliseconds;
typedef struct attune_unplug_figures {
    int trials;
    attune_milliseconds compute; /* from the unplugging until the last CPU time was used, checkpoint included */
    attune_milliseconds durable; /* until all progress is on the disk */
    attune_milliseconds cpu;     /* CPU time that was still used */
} attune_unplug_figures;
typedef struct attune_bench_governor_result {
    size_t size;
    attune_unplug_figures events, polling;
    double gap_ms;         /* the longest piece of work between two looks at the flag that stops it */
    double check_us;       /* what is asked before each unit of work */
    double governor_share; /* of all CPU time: the governor's thread and those checks */
    int budgets, budgets_kept; /* kept: passed by at most 1 s or 1 % */
    double over_max_s;     /* the most that one was passed by; below 0: none was */
    double work_s, left_s; /* in finished steps, and in the budgets beyond loading and judging */
    double share, share_min; /* work_s of left_s; of the budget that did worst */
} attune_bench_governor_result;
/* Forks: to be called from a process with one thread. */
ATTUNE_API int attune_bench_governor(const char *base, const attune_bench_governor_options *options,
                                     attune_bench_governor_result *result, attune_error *err);

#ifdef __cplusplus
}
#endif
#endif
