/* SHA-256, hex as lower case, and BLAKE2b (RFC 7693); both of libsodium. */
#ifndef CORE_BASE_HASH_H
#define CORE_BASE_HASH_H

#include "core/base/error.h"

#define HASH_HEX_SIZE 65 /* 64 digits and NUL */

struct hash {
    _Alignas(16) unsigned char state[128];
};
void hash_start(struct hash *hash);
void hash_add(struct hash *hash, const void *data, size_t n);
/* A string with its length before it, so that ("ab","c") and ("a","bc") differ. */
void hash_add_string(struct hash *hash, const char *text);
void hash_add_u64(struct hash *hash, uint64_t value);
void hash_finish(struct hash *hash, char hex[HASH_HEX_SIZE]);
void hash_bytes(const void *data, size_t n, char hex[HASH_HEX_SIZE]);
/* BLAKE2b of 32 bytes: two to three times as fast where the CPU has no instructions for SHA. */
enum { HASH_FAST_BYTES = 32 };
void hash_fast(const void *data, size_t n, unsigned char out[HASH_FAST_BYTES]);
/* The whole file at fd, from the start. */
int hash_file(int fd, const char *path, char hex[HASH_HEX_SIZE], attune_error *err);

#endif
