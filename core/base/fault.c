#include "core/base/fault.h"

#ifdef ATTUNE_TESTING

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void list(const char *file, const char *name) {
    int fd = open(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0) return;
    char line[160];
    size_t n = strlen(name);
    if (n > sizeof line - 1) n = sizeof line - 1;
    memcpy(line, name, n);
    line[n] = '\n';
    if (write(fd, line, n + 1) < 0) { /* the list is only for a test to read */
    }
    close(fd);
}

int fault_fails(const char *name) {
    static atomic_int passes;
    const char *file = getenv("ATTUNE_FAULT_LIST");
    if (file) list(file, name);
    const char *wanted = getenv("ATTUNE_FAULT");
    size_t n = strlen(name);
    if (!wanted || strncmp(wanted, name, n) != 0 || wanted[n] != ':') return 0;
    const char *rest = wanted + n + 1;
    char *end;
    long which = strtol(rest, &end, 10);
    if (end != rest && *end == ':') {
        if (atomic_fetch_add(&passes, 1) + 1 != which) return 0;
        rest = end + 1;
    }
    if (strcmp(rest, "kill") == 0) {
        raise(SIGKILL);
    }
    if (strcmp(rest, "fail") == 0) {
        errno = EIO;
        return 1;
    }
    return 0;
}

#else
typedef int fault_unused; /* ISO C forbids an empty translation unit */
#endif
