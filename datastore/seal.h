/* Encryption of texts in the store: XChaCha20-Poly1305 (libsodium) under keys derived from the person's or the
 * app's. Knows no SQL. The formats are in docs/formats.md. */
#ifndef DATASTORE_SEAL_H
#define DATASTORE_SEAL_H

#include "core/base/error.h"
#include "core/base/hash.h"

#define SEAL_SALT_BYTES 16

/* Zeroed: the store is not encrypted. The functions below take that as it comes: texts and hashes stay what they are,
 * labels do not count, and the check value is "". */
struct seal {
    int on;
    unsigned char text[32], hash[32], sketch[16]; /* derived: for the texts, for content hashes, for sketches */
};

/* Derives the three keys from `key` and the store's own salt (BLAKE2b keyed). */
void seal_start(struct seal *out, const unsigned char key[ATTUNE_KEY_BYTES], const unsigned char salt[SEAL_SALT_BYTES]);
/* Wipes the keys. */
void seal_end(struct seal *seal);
/* What the store keeps to know its key again; tells nothing about the key. */
void seal_check_value(const struct seal *seal, char hex[HASH_HEX_SIZE]);

/* One text as a blob: version byte, 24 random bytes, ciphertext, 16 bytes of tag. `label` (what the blob
 * belongs to: "<uuid>/<column>") is authenticated with it, so that blobs cannot change places. malloc'ed. */
int seal_close(const struct seal *seal, const char *label, const char *text, size_t n, unsigned char **blob,
               size_t *size, attune_error *err);
/* The other way; *text is NUL-terminated, malloc'ed. ATTUNE_ERROR_FORMAT: not such a blob, of another key or
 * place, or damaged; the message names `where`. */
int seal_open(const struct seal *seal, const char *label, const void *blob, size_t size, const char *where,
              char **text, size_t *n, attune_error *err);
/* Not encrypted: hex stays. Else hex becomes the keyed hash (BLAKE2b-256) of itself, so that nobody without
 * the key can test whether a guessed text is there. */
void seal_hash(const struct seal *seal, char hex[HASH_HEX_SIZE]);

/* A key file: 64 hexadecimal digits and perhaps a line end, in a regular file (no link) that belongs to this user or
 * root and is open to nobody else (0600 or 0400). ATTUNE_ERROR_NOT_FOUND: there is none; _STATE: its owner or mode is
 * not right; _FORMAT: it is no such file; each with what to do. */
int key_file_read(const char *path, unsigned char key[ATTUNE_KEY_BYTES], attune_error *err);
/* Makes a new one with a random key, mode 0600, durable when it returns. Never over what is there:
 * ATTUNE_ERROR_STATE. Fault points: "key.write.before" and so on, see core/base/file.h. */
int key_file_make(const char *path, unsigned char key[ATTUNE_KEY_BYTES], attune_error *err);

#endif
