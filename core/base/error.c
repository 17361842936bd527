#include "core/base/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void fill(attune_error *err, int code, const char *where, const char *format, va_list args) {
    err->code = code;
    snprintf(err->where, sizeof err->where, "%s", where ? where : "");
    vsnprintf(err->message, sizeof err->message, format, args);
}

int error_set(attune_error *err, int code, const char *where, const char *format, ...) {
    if (!err) return code;
    va_list args;
    va_start(args, format);
    fill(err, code, where, format, args);
    va_end(args);
    return code;
}

int error_set_errno(attune_error *err, const char *where, const char *format, ...) {
    int saved = errno;
    if (!err) return ATTUNE_ERROR_IO;
    va_list args;
    va_start(args, format);
    fill(err, ATTUNE_ERROR_IO, where, format, args);
    va_end(args);
    size_t n = strlen(err->message);
    snprintf(err->message + n, sizeof err->message - n, ": %s", strerror(saved));
    return ATTUNE_ERROR_IO;
}

int error_set_memory(attune_error *err, const char *what, size_t bytes) {
    return error_set(err, ATTUNE_ERROR_MEMORY, NULL, "out of memory: wanted %zu bytes for %s", bytes, what);
}
