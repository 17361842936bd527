/* One line: the hash, a space, and what the file was (docs/formats.md). Any difference, and it is not remembered. */
#include "core/base/remembered.h"

#include <stdio.h>
#include <string.h>

enum { STAMP_SIZE = 1024, DIGITS = HASH_HEX_SIZE - 1 };

static void stamp_text(const struct file_bytes *file, char out[STAMP_SIZE]) {
    snprintf(out, STAMP_SIZE, "%lld %lld %zu %lld %lld %s\n", (long long)file->device, (long long)file->inode,
             file->size, (long long)file->mtime_ns, (long long)file->ctime_ns, file->path);
}

int remembered_hash(const char *memory, const struct file_bytes *file, char hash[HASH_HEX_SIZE]) {
    struct file_bytes found;
    char stamp[STAMP_SIZE];
    if (file_bytes_open(memory, FILE_READ, 4096, &found, NULL) != ATTUNE_OK) return 0;
    stamp_text(file, stamp);
    size_t n = strlen(stamp);
    int same = found.size == DIGITS + 1 + n && found.data[DIGITS] == ' ' &&
               memcmp(found.data + DIGITS + 1, stamp, n) == 0;
    for (size_t i = 0; i < DIGITS && same; i++) same = found.data[i] && strchr("0123456789abcdef", found.data[i]);
    if (same) {
        memcpy(hash, found.data, DIGITS);
        hash[DIGITS] = 0;
    }
    file_bytes_close(&found);
    return same;
}

void remember_hash(const char *memory, const struct file_bytes *file, const char hash[HASH_HEX_SIZE]) {
    char stamp[STAMP_SIZE], line[STAMP_SIZE + HASH_HEX_SIZE];
    stamp_text(file, stamp);
    snprintf(line, sizeof line, "%s %s", hash, stamp);
    (void)file_write_atomic(memory, "cache", line, strlen(line), NULL);
}
