/* Text that grows, for pages: HTML that is well-formed XML too. What comes from anywhere goes in through
 * markup_text, which escapes it; markup_add is for what this program wrote itself and for numbers.
 *
 * An allocation that fails is remembered: everything after it is left out, and markup_take tells. */
#ifndef CLI_MARKUP_H
#define CLI_MARKUP_H

#include <stdbool.h>
#include <stddef.h>

struct markup {
    char *text; /* NUL-terminated; NULL before the first byte */
    size_t length, capacity;
    bool failed;
};

/* Formatted, as it stands. */
void markup_add(struct markup *markup, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Escaped for an element's content and for a quoted attribute. What XML cannot hold becomes U+FFFD. */
void markup_text(struct markup *markup, const char *text);
/* A number for an attribute: short, never in scientific notation, 0 for what is not finite. */
void markup_number(struct markup *markup, double value);
/* The text, owned by the caller from now on; NULL: memory ran out. */
char *markup_take(struct markup *markup, size_t *length);
void markup_free(struct markup *markup);

#endif
