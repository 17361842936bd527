#include "core/base/hash.h"

#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

_Static_assert(sizeof(crypto_hash_sha256_state) <= sizeof(((struct hash *)0)->state), "hash state fits");

void hash_start(struct hash *hash) { crypto_hash_sha256_init((crypto_hash_sha256_state *)hash->state); }

void hash_add(struct hash *hash, const void *data, size_t n) {
    crypto_hash_sha256_update((crypto_hash_sha256_state *)hash->state, data, n);
}

void hash_add_u64(struct hash *hash, uint64_t value) {
    unsigned char bytes[8];
    for (int i = 0; i < 8; i++) bytes[i] = (unsigned char)(value >> (8 * i));
    hash_add(hash, bytes, sizeof bytes);
}

void hash_add_string(struct hash *hash, const char *text) {
    size_t n = strlen(text);
    hash_add_u64(hash, n);
    hash_add(hash, text, n);
}

void hash_finish(struct hash *hash, char hex[HASH_HEX_SIZE]) {
    unsigned char digest[crypto_hash_sha256_BYTES];
    crypto_hash_sha256_final((crypto_hash_sha256_state *)hash->state, digest);
    sodium_bin2hex(hex, HASH_HEX_SIZE, digest, sizeof digest);
}

void hash_bytes(const void *data, size_t n, char hex[HASH_HEX_SIZE]) {
    struct hash hash;
    hash_start(&hash);
    hash_add(&hash, data, n);
    hash_finish(&hash, hex);
}

void hash_fast(const void *data, size_t n, unsigned char out[HASH_FAST_BYTES]) {
    crypto_generichash(out, HASH_FAST_BYTES, data, n, NULL, 0);
}

int hash_file(int fd, const char *path, char hex[HASH_HEX_SIZE], attune_error *err) {
    enum { CHUNK = 1 << 18 };
    unsigned char *buffer = malloc(CHUNK);
    if (!buffer) return error_set_memory(err, "reading a file", CHUNK);
    struct hash hash;
    hash_start(&hash);
    int code = ATTUNE_OK;
    for (off_t at = 0;;) {
        ssize_t n = pread(fd, buffer, CHUNK, at);
        if (n < 0) {
            code = error_set_errno(err, path, "cannot read %s", path);
            break;
        }
        if (n == 0) break;
        hash_add(&hash, buffer, (size_t)n);
        at += n;
    }
    if (code == ATTUNE_OK) hash_finish(&hash, hex);
    free(buffer);
    return code;
}
