/* Drift: what merging an adapter costs, against the adapter run beside the base (none).
 *
 * Measured mode by mode on rows that judged the adapter, after it was published; a function of the adapter and those
 * rows, so what was cut off is simply done again. Kept with the adapter's row (store_drift_*); `merge = auto` chooses
 * by it. */
#ifndef JOB_DRIFT_H
#define JOB_DRIFT_H

#include "job/home.h"
#include "job/run.h"

enum { DRIFT_ROWS = 64, DRIFT_TOKENS = 8000 }; /* at most, the newest that judged; one row at least */

struct drift_source {
    attune_store *store;
    const struct model *model;
    struct pool *pool;
    const char *home;
    const struct settings *settings; /* the home's, of now */
    const struct lora *lora;
    int adapter;             /* its number */
    const char *adapter_sha256;
    const struct plan *plan; /* of the run that made it */
    struct evaluator_shape shape;
    size_t bytes;            /* that activations may take */
    uint64_t room;           /* that all of it may take, merged weights included */
};
struct drift;
/* What source points to is borrowed until drift_destroy. *out NULL: no mode can be had of this base, or no row. */
int drift_create(const struct drift_source *source, struct drift **out, attune_error *err);
void drift_destroy(struct drift *drift);
/* Some rows in one mode. ATTUNE_CONTINUE, ATTUNE_DONE: all is measured, or an error; cancelled: nothing has changed. */
int drift_unit(struct drift *drift, attune_error *err);
/* Into the store: what was measured so far in every mode; nothing where that is no row. ATTUNE_ERROR_STATE: the adapter
 * was revoked meanwhile. */
int drift_keep(const struct drift *drift, attune_error *err);
/* After drift_keep, in as many seconds (0: no limit): the calibrated merge and its drift, where the settings ask for it
 * or leave it to auto; then the cache of what will be served. */
int drift_prepare_serving(struct drift *drift, double seconds, attune_error *err);
size_t drift_units(const struct drift *drift);
size_t drift_units_done(const struct drift *drift);
/* Of the next unit, and of all that are left. */
double drift_unit_work(const struct drift *drift, const struct work *judging);
double drift_work_left(const struct drift *drift, const struct work *judging);
/* Work of measuring rows of a plan, before there is an adapter: about. */
double drift_work_expected(const struct work *judging);

/* *known 1: something was measured. */
int drift_known(attune_store *store, int adapter, int *known, attune_error *err);
/* The fastest mode whose measured drift (mean KL divergence from none, nats a token) is within the limit: that of the
 * fewest bytes, as decoding reads them all for each token; of one size that with the least drift. `none` itself is one
 * of them, with the base's and the adapter's bytes. MERGE_NONE where nothing was measured, or the limit is 0; and for
 * the base. */
int serve_choose_merge(const char *home, int adapter, double limit, enum merge_mode *mode, attune_error *err);

#endif
