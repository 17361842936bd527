#include "attune.h"

#include <stdio.h>
#include <stdlib.h>

/* An unset and an empty variable are the same (XDG Base Directory Specification). */
static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value && value[0] ? value : NULL;
}

size_t attune_home_path(const char *home, char *out, size_t out_size) {
    const char *parts[2] = {home, ""};
    if (!parts[0]) parts[0] = variable("ATTUNE_HOME");
    if (!parts[0]) {
        parts[0] = variable("XDG_DATA_HOME");
        parts[1] = "/attune";
        if (parts[0] && parts[0][0] != '/') parts[0] = NULL; /* the specification: ignore relative paths */
    }
    if (!parts[0]) {
        parts[0] = variable("HOME");
        parts[1] = "/.local/share/attune";
    }
    if (out && out_size) out[0] = '\0';
    if (!parts[0] || !parts[0][0]) return 0;
    int n = snprintf(out, out ? out_size : 0, "%s%s", parts[0], parts[1]);
    if (n < 0) return 0;
    if (out && out_size && (size_t)n >= out_size) out[0] = '\0';
    return (size_t)n;
}
