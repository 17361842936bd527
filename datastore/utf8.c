#include "datastore/utf8.h"

#include <utf8proc.h>

size_t store_utf8_check(const char *text, size_t n) {
    const utf8proc_uint8_t *bytes = (const utf8proc_uint8_t *)text;
    for (size_t i = 0; i < n;) {
        if (bytes[i] < 0x80) {
            i++;
            continue;
        }
        utf8proc_int32_t code_point;
        utf8proc_ssize_t used = utf8proc_iterate(bytes + i, (utf8proc_ssize_t)(n - i), &code_point);
        if (used <= 0) return i;
        i += (size_t)used;
    }
    return n;
}
