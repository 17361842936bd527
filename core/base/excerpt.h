/* Text out of a file, for a message: cut short, and with '?' for what is not printable ASCII. */
#ifndef CORE_BASE_EXCERPT_H
#define CORE_BASE_EXCERPT_H

#include <stddef.h>

struct excerpt {
    char text[61];
};

static inline struct excerpt excerpt_of(const char *text, size_t size) {
    struct excerpt out = {""};
    size_t n = size < sizeof out.text - 1 ? size : sizeof out.text - 1;
    for (size_t i = 0; i < n; i++) out.text[i] = text[i] >= ' ' && text[i] <= '~' ? text[i] : '?';
    out.text[n] = '\0';
    return out;
}

#endif
