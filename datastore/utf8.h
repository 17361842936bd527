/* Is a text UTF-8? */
#ifndef DATASTORE_UTF8_H
#define DATASTORE_UTF8_H

#include <stddef.h>

/* Offset of the first byte that is not UTF-8, or n. */
size_t store_utf8_check(const char *text, size_t n);

#endif
