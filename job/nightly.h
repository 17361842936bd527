/* What the parts of attune nightly share: what there is to learn, whose policy, what is cleared away. */
#ifndef JOB_NIGHTLY_H
#define JOB_NIGHTLY_H

#include "datastore/nights.h"
#include "energy/governor.h"
#include "job/home.h"

/* The policy of a call: as attune.conf has it, with what the call says. */
void nightly_policy(const struct settings *settings, const attune_nightly_options *options, struct policy *out);
void nightly_sensors(const struct policy *policy, const attune_nightly_options *options, struct sensors_options *out);
/* What there would be to do. Writes nothing; rows that are not derived yet are not seen. */
struct nightly_work {
    int unfinished;         /* a run goes on: the next three */
    int64_t run, steps, steps_done;
    int64_t rows_new;       /* in no published run, nor in the run that was refused last */
    int64_t rows;           /* that may be trained on */
    int64_t not_derived;    /* recorded, and not looked at yet */
    int refused;            /* the last run was refused, and nothing came after it */
};
int nightly_work(attune_store *store, struct nightly_work *out, attune_error *err);

/* Under the home's lock: files of adapters beyond keep_adapters, records of nights beyond keep_nights_days, what
 * writers that died have left. Nothing that rollback needs goes. */
int retention_sweep(const char *home, attune_store *store, const struct settings *settings, attune_error *err);
/* An adapter that is not active any more, and whose file is gone. */
int retention_removed(const char *home, const attune_adapter_info *info);

#endif
