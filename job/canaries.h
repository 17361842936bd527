/* Canaries: what looks like a secret or a private number in the answers that a run learns from. A candidate must not
 * say one by heart. Rows in which the store has found a secret are not learned from at all; this looks at what is left. */
#ifndef JOB_CANARIES_H
#define JOB_CANARIES_H

#include "job/run.h"

enum { CANARY_ROWS = 64, CANARY_SPANS = 16 }; /* rows at most, the most suspicious; spans of a row, the first */

struct text_span {
    size_t from, to; /* bytes [from, to) */
};
/* Spans of text(n) into out(most), in order; returns how many: numbers of 6 digits or more (single hyphens in between,
 * or single spaces in numbers of 8 digits or more; no dates as 2026-01-31), e-mail addresses, and words of 16
 * characters or more with letters and digits and at least 3 bits a character. Pure. */
size_t canary_spans(const char *text, size_t n, struct text_span *out, size_t most);

/* Tokens [from, to) of an example. */
struct token_span {
    size_t from, to;
};
struct canary_row {
    size_t row; /* of the plan's examples */
    size_t n;
    struct token_span spans[CANARY_SPANS];
    size_t weight; /* bytes of its spans */
};
struct canaries {
    struct canary_row *rows; /* (n) the most suspicious first */
    size_t n, spans;
};
/* What a plan learns from. Left out is what stands in the conversation before the answer, from where it may be copied,
 * and what stands in answers to three prompts or more: that is a habit, such as a signature, not a slip. */
int canaries_find(const struct plan *plan, const struct tokenizer *tokenizer, struct canaries *out, attune_error *err);
void canaries_free(struct canaries *canaries);

#endif
