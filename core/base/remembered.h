/* The hash of a big file, remembered in a small one beside it for as long as the big one is the same: device, inode,
 * size, times of the last modification and the last change, and path. */
#ifndef CORE_BASE_REMEMBERED_H
#define CORE_BASE_REMEMBERED_H

#include "core/base/file.h"
#include "core/base/hash.h"

/* Whether `memory` holds a hash of the file as it was opened. */
int remembered_hash(const char *memory, const struct file_bytes *file, char hash[HASH_HEX_SIZE]);
/* 64 hexadecimal digits. That it cannot be written costs time another day, not correctness: there is no error. */
void remember_hash(const char *memory, const struct file_bytes *file, const char hash[HASH_HEX_SIZE]);

#endif
