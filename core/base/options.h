/* Plain structs of the public interface, whose first field is their size: an app built against an
 * older or a newer header is understood, or refused, never misread. */
#ifndef CORE_BASE_OPTIONS_H
#define CORE_BASE_OPTIONS_H

#include "core/base/error.h"

#include <string.h>

/* from (nullable) over the zeroed `to` of to_size bytes. Fields that the app's header does not have are
 * zero, the default; fields that only the app's header has must be zero. name: of the type, for messages. */
static inline int options_read(void *to, size_t to_size, const void *from, const char *name, attune_error *err) {
    memset(to, 0, to_size);
    size_t size = to_size;
    if (from) {
        memcpy(&size, from, sizeof size);
        if (size < sizeof size)
            return error_set(err, ATTUNE_ERROR_ARGUMENT, name, "the size of %s is not set; use ATTUNE_INIT", name);
        const char *bytes = from;
        for (size_t i = to_size; i < size; i++)
            if (bytes[i])
                return error_set(err, ATTUNE_ERROR_UNSUPPORTED, name,
                                 "%s sets a field that attune " ATTUNE_VERSION " does not know: update attune", name);
        memcpy(to, from, size < to_size ? size : to_size);
    }
    memcpy(to, &to_size, sizeof to_size);
    return ATTUNE_OK;
}

/* The other way: what `from` says, as far as the caller's struct (nullable) reaches; its size field stays. */
static inline int options_write(void *to, const void *from, size_t from_size, const char *name, attune_error *err) {
    size_t size;
    if (!to) return ATTUNE_OK;
    memcpy(&size, to, sizeof size);
    if (size < sizeof size)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, name, "the size of %s is not set; use ATTUNE_INIT", name);
    if (size > from_size) memset((char *)to + from_size, 0, size - from_size);
    size_t n = (size < from_size ? size : from_size) - sizeof size;
    memcpy((char *)to + sizeof size, (const char *)from + sizeof size, n);
    return ATTUNE_OK;
}

#endif
