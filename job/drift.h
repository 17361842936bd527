/* How far a way of merging is from the adapter unmerged, and which way may be served for it. */
#ifndef JOB_DRIFT_H
#define JOB_DRIFT_H

#include "adapters/merge.h"

/* The fastest mode of this adapter whose measured drift is within the limit (mean KL divergence, nats a token; 0: as
 * the settings say); MERGE_NONE where nothing was measured. */
int serve_choose_merge(const char *home, int adapter, double limit, enum merge_mode *mode, attune_error *err);

#endif
