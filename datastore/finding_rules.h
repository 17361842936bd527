/* What a secret or a piece of personal data looks like: the table that findings_scan goes by. Knows nothing of
 * how a text is searched.
 *
 * A rule's cues say where it is worth matching its expression, so that ordinary prose costs next to nothing.
 * In a cue '!' stands before the byte that is looked for; around it '<' is the edge of a word (no ASCII letter,
 * digit or '_' before), '%' an ASCII letter, '#' a digit, '^' either, anything else itself; '|' parts cues. The
 * expression is matched where the cue begins. */
#ifndef DATASTORE_FINDING_RULES_H
#define DATASTORE_FINDING_RULES_H

#include "core/base/error.h"

enum finding_rule_flags {
    FINDING_CASELESS = 1, /* cues and expression, both */
    FINDING_VALUE = 2     /* `accept` is asked about the first group, not about the whole match */
};

struct finding_rule {
    int kind; /* enum attune_finding */
    int flags;
    const char *cues, *expression;
    /* What an expression cannot say. Bytes of text that belong to it, 0: none, it is not one. NULL: all. */
    size_t (*accept)(const char *text, size_t n);
};

/* In the order in which they are tried: the first that fits at a place has it. */
extern const struct finding_rule finding_rules[];
extern const size_t finding_rules_count;

#endif
