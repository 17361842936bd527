/* Secrets and personal data in a text. Counted, never quoted: what was found stays where it was. Knows no SQL. */
#ifndef DATASTORE_FINDINGS_H
#define DATASTORE_FINDINGS_H

#include "core/base/error.h"

/* By enum attune_finding. Zero at first; scans add up. */
struct findings {
    uint32_t count[ATTUNE_FINDINGS];
};

/* text: UTF-8. The expressions are compiled once a process; any thread. Time is linear in n, whatever the
 * text: a match that would take longer counts as found. */
int findings_scan(const char *text, size_t n, struct findings *findings, attune_error *err);
int findings_any(const struct findings *findings);

#endif
