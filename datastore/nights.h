/* What nights did and what they cost: for budgets over days, for people, for plots. Nothing of what was recorded.
 *
 * Figures that may be NaN are kept as "not known" when they are not finite. What is added up over nights (seconds,
 * joules, bytes, counts) must be finite and not negative, and texts must end within their buffers: else
 * ATTUNE_ERROR_ARGUMENT, and nothing is written. A store whose key is not to be had serves all of this. */
#ifndef DATASTORE_NIGHTS_H
#define DATASTORE_NIGHTS_H

#include "datastore/store.h"

#pragma GCC visibility push(default) /* job/ uses these from libattune-store */

/* One call of train or nightly that got as far as asking the governor. */
struct store_night {
    int64_t number;               /* row id */
    int64_t night_ms;             /* when the night began that it belongs to: window_night */
    int64_t started_ms, ended_ms; /* ended 0: it runs, or it was killed */
    char kind[12];                /* "train", "nightly" */
    char state[16];               /* "running", "done", "paused", "waiting", "failed", "killed" */
    char reason[256];             /* what stopped it, for people */
    int64_t run;                  /* number of the last run that it worked on; 0: none */
    int64_t runs;                 /* that it worked on */
    int64_t tokens, steps;        /* trained */
    double seconds, work_seconds; /* from start to end; of them, with work under way */
    double cpu_s, modelled_cpu_s;
    double joules_measured, joules_battery, joules_modelled;
    int64_t marked;               /* gaps that were charged by the model */
    int64_t written;              /* bytes */
    int64_t pauses;
    double loss_before, loss_after; /* of the run that it ended; NaN */
    int adapter;                  /* that it published; 0: none */
    double governor_cpu_s, gap_ms; /* the governor's own; the longest piece that no cancel could end, NaN */
    double celsius_max;           /* NaN: not known */
};
/* What was seen and decided, in time: at every change and otherwise once a minute. */
struct store_moment {
    int64_t time_ms;
    char verdict[12], reason[24]; /* energy/policy.h's names */
    double celsius, watts, percent, loss; /* NaN: not known */
    double joules;                /* of the night's row so far, all labels */
    int64_t steps;
};

/* Begins a row: night->number is set. Those that still run are of killed processes (the home's lock is held): each
 * becomes "killed", and `killed` (nullable) is called for it, which may change its figures. One transaction: the
 * callback may read from the store, but not write. */
typedef void (*store_night_callback)(struct store_night *night, void *user);
int store_night_begin(attune_store *store, struct store_night *night, store_night_callback killed, void *user,
                      attune_error *err);
/* The row as it is now, and moments (n of them, may be 0) that came since; one transaction. ATTUNE_ERROR_NOT_FOUND:
 * there is no such row. */
int store_night_update(attune_store *store, const struct store_night *night, const struct store_moment *moments,
                       size_t n, attune_error *err);
/* The newest first, at most `limit` (0: all), since since_ms; the callback may read, not write; non-zero stops. */
typedef int (*store_night_visit)(const struct store_night *night, void *user);
int store_nights(attune_store *store, int64_t since_ms, int64_t limit, store_night_visit visit, void *user,
                 attune_error *err);
/* In order of time; malloc'ed, the caller frees. */
int store_moments(attune_store *store, int64_t night, struct store_moment **out, size_t *n, attune_error *err);
/* Sums over rows that started at or after since_ms: what a night and a week have spent. */
struct store_spent {
    double seconds, joules_measured, joules_battery, joules_modelled;
    int64_t written;
};
int store_spent_since(attune_store *store, int64_t since_ms, struct store_spent *out, attune_error *err);
/* Rows that started before, but for one that runs, with their moments; 0 rows is fine. */
int store_nights_remove(attune_store *store, int64_t before_ms, attune_error *err);

/* What work costs on this device. key: what it depends on, as the caller spells it. */
struct store_cost {
    char key[192];
    double seconds_per_unit, watts, seconds_spread, watts_spread, weight;
    int64_t updated_ms;
};
/* ATTUNE_ERROR_NOT_FOUND: nothing is known yet. */
int store_cost_get(attune_store *store, const char *key, struct store_cost *out, attune_error *err);
int store_cost_put(attune_store *store, const struct store_cost *cost, attune_error *err);

#pragma GCC visibility pop
#endif
