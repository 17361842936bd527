/* Errors: set once where the fault is found, passed on unchanged. */
#ifndef CORE_BASE_ERROR_H
#define CORE_BASE_ERROR_H

#include "attune.h"

/* Fill *err (nullable) and return code. where: "file:byte 12", "line 3", a tensor's name, or NULL. */
int error_set(attune_error *err, int code, const char *where, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* As error_set, with ": <strerror(errno)>" appended and ATTUNE_ERROR_IO as the code. */
int error_set_errno(attune_error *err, const char *where, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* "out of memory: wanted N bytes for WHAT" */
int error_set_memory(attune_error *err, const char *what, size_t bytes);

/* a*b and a+b, false on overflow (then *out is untouched). */
static inline int checked_mul(size_t a, size_t b, size_t *out) {
    size_t r;
    if (__builtin_mul_overflow(a, b, &r)) return 0;
    *out = r;
    return 1;
}
static inline int checked_add(size_t a, size_t b, size_t *out) {
    size_t r;
    if (__builtin_add_overflow(a, b, &r)) return 0;
    *out = r;
    return 1;
}

#endif
