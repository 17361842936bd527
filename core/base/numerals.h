/* Numbers in our files have a decimal point, whatever locale the host has chosen. */
#ifndef CORE_BASE_NUMERALS_H
#define CORE_BASE_NUMERALS_H

#include <locale.h>

/* This thread reads and prints numbers as in the C locale until numerals_leave. */
static inline locale_t numerals_enter(void) {
    locale_t c = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    return c ? uselocale(c) : (locale_t)0;
}
static inline void numerals_leave(locale_t before) {
    if (before) freelocale(uselocale(before));
}

#endif
