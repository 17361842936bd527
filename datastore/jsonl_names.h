/* How JSON Lines name what attune.h numbers. */
#ifndef DATASTORE_JSONL_NAMES_H
#define DATASTORE_JSONL_NAMES_H

#include "attune.h"

static const char *const jsonl_kinds[] = {
    [ATTUNE_FEEDBACK_THUMB] = "thumb",   [ATTUNE_FEEDBACK_EDIT] = "edit", [ATTUNE_FEEDBACK_ACCEPT] = "accept",
    [ATTUNE_FEEDBACK_REJECT] = "reject", [ATTUNE_FEEDBACK_COPY] = "copy", [ATTUNE_FEEDBACK_REGENERATE] = "regenerate",
    [ATTUNE_FEEDBACK_DWELL] = "dwell",   [ATTUNE_FEEDBACK_UNDO] = "undo",
};
static const char *const jsonl_tiers[] = {
    [ATTUNE_TIER_PERSON] = "person", [ATTUNE_TIER_IMPORTED] = "imported", [ATTUNE_TIER_PASTED] = "pasted",
    [ATTUNE_TIER_WEB] = "web",       [ATTUNE_TIER_TOOL] = "tool",
};
static const char *const jsonl_sensitivities[] = {
    [ATTUNE_SENSITIVITY_UNKNOWN] = "unknown",
    [ATTUNE_SENSITIVITY_PRIVATE] = "private",
    [ATTUNE_SENSITIVITY_CLEARED] = "cleared",
};

#define JSONL_COUNT(a) (sizeof(a) / sizeof((a)[0]))

#endif
