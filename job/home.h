/* The home: one folder that holds everything of a person (docs/formats.md).
 *
 *   attune.conf       settings, for people to edit
 *   store.db          the store
 *   adapters/<n>.gguf numbered, immutable
 *   CURRENT           the active adapter: "<n> <sha256>\n" or "base\n"; swapped atomically, it rules
 *   checkpoint.gguf   the unfinished run's state
 *   lock              held by whoever trains, publishes or changes CURRENT
 *   cache/            may be deleted at any time */
#ifndef JOB_HOME_H
#define JOB_HOME_H

#include "adapters/merge.h"
#include "datastore/home_files.h"
#include "datastore/store.h"
#include "energy/policy.h"
#include "trainer/trainer.h"

enum { HOME_PATH_MAX = 1024 };

/* attune.conf: `key = value` lines, # comments. Unknown keys, impossible values: an error naming the line. */
struct settings {
    char base[HOME_PATH_MAX], base_sha256[65];
    enum merge_mode merge;
    double drift_limit;      /* of MERGE_AUTO: largest mean KL divergence from none, nats a token */
    double reference_limit, reference_kl_limit; /* of the gate: rise of the reference loss, as a share; mean KL, nats */
    struct train_config train;
    double epochs;           /* passes over the rows, up to 100; 0: as plan_make finds right */
    double replay;           /* earlier rows that are learned again, for each new one */
    int shuffle;             /* 1: by a hash keyed with the seed; 0: as recorded */
    int rollback;            /* 1: an adapter whose answers are liked less than those before goes by itself; 0: never */
    double held_out;         /* share of prompts, 0.01 to 0.5 */
    size_t source_cap, day_cap, group_cap; /* rows of one app and source, in all and of a day; near-duplicates by
                                              their prompt; 0: all */
    uint64_t memory;         /* bytes */
    double checkpoint_seconds; /* least time between two: flash wears */
    enum device_kind device; /* whose policy is the default */
    struct policy policy;    /* when to run, and for how much: energy/policy.h; `now` is none of it */
    int wait;                /* nightly: 1: wait for the conditions until the window closes; 0: end at once */
    double watts_per_cpu;    /* where no energy is measured: of one busy CPU */
    size_t rows_new_min;     /* nightly begins no run for fewer rows that are new */
    size_t keep_adapters;    /* files of retired and rejected adapters that stay, the newest; 0: all */
    double keep_nights_days; /* records of nights that stay; 0: all */
};
int settings_read(const char *home, struct settings *out, attune_error *err);
/* A fresh attune.conf with every key explained. */
int settings_write(const char *home, const struct settings *settings, attune_error *err);
void settings_default_of(enum device_kind device, struct settings *settings);
void settings_default(struct settings *settings); /* of a laptop: what an attune.conf that names no device means */
int settings_device_parse(const char *text, enum device_kind *out, attune_error *err);
/* Another path of the base; everything else in attune.conf stays as people wrote it. */
int settings_base_change(const char *home, const char *base, attune_error *err);
/* The mode that the gate judges in: the one that will be served. What auto chooses, and what is calibrated, is known
 * after publishing alone: they are judged in none. */
static inline enum merge_mode settings_judged(const struct settings *settings) {
    return settings->merge == MERGE_AUTO || settings->merge == MERGE_CALIBRATED ? MERGE_NONE : settings->merge;
}
/* What a run's outcome depends on, as one line of JSON; and back, over what *settings has for keys that came later. */
void settings_configuration(const struct settings *settings, char *out, size_t size);
int settings_from_configuration(const char *text, struct settings *settings, attune_error *err);

/* home NULL: $ATTUNE_HOME, else XDG. Must exist and be a home. */
int home_resolve(const char *home, char out[HOME_PATH_MAX], attune_error *err);
int home_file(const char *home, const char *name, char out[HOME_PATH_MAX], attune_error *err);

/* ATTUNE_ERROR_BUSY when another process has it. *fd is closed to let go; a crash lets go too. */
int home_lock(const char *home, int *fd, attune_error *err);
void home_unlock(int fd);

/* The base's hash, remembered in cache/ by inode, size, mtime and ctime. Memory is believed when it says what is
 * wanted (nullable); to say that this is another file, the file itself is hashed. */
int base_hash(const char *home, const char *path, const char *wanted, char sha256[65], attune_error *err);
/* Opens the home's base, refuses another file than at init. */
int home_model(const char *home, const struct settings *settings, enum file_load load, struct model **out,
               attune_error *err);
/* adapters/<number>.gguf as the store knows it: whole, for this base, with the recorded sha256 `wanted`. */
int home_adapter_read(const char *home, const struct model *model, int number, const char *wanted, struct lora **out,
                      attune_error *err);
/* The base model's absolute path, malloc'ed: as attune.conf can hold it. */
int home_base_path(const char *base, char **out, attune_error *err);
/* `path` and what leads there, 0700. */
int home_make_folders(const char *path, attune_error *err);
/* From adapter `number` on over its parents: the first that may be used; 0: the base. */
int home_clean_ancestor(attune_store *store, int number, int *out, attune_error *err);
/* Under the lock: CURRENT names this adapter (0: the base), and the store's rows follow, that of the run that made it
 * (nullable) too; as one, so that no forgetting can come between. ATTUNE_ERROR_STATE: the adapter is revoked, or the
 * run has been failed. */
int home_activate(const char *home, attune_store *store, const struct store_run *run, int number, const char *sha256,
                  attune_error *err);
/* Under the lock: the store's adapter rows follow CURRENT, which leaves a revoked adapter for its nearest clean
 * ancestor; files of revoked adapters, of candidates whose run has failed, and leftover temporaries go. */
int home_reconcile(const char *home, attune_store *store, attune_error *err);
/* Milliseconds since 1970-01-01 UTC: for rows that people read, never for a decision. */
int64_t home_now_ms(void);
/* Next free adapter number: above every file and row. */
int home_next_number(const char *home, attune_store *store, int *number, attune_error *err);

#endif
