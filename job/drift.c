#include "job/drift.h"

int serve_choose_merge(const char *home, int adapter, double limit, enum merge_mode *mode, attune_error *err) {
    (void)home, (void)adapter, (void)limit, (void)err;
    *mode = MERGE_NONE;
    return ATTUNE_OK;
}
