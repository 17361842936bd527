/* Ed25519 signatures as minisign writes them (https://jedisct1.github.io/minisign/), over libsodium.
 *
 * Owns keys and signatures as text. Refuses to know what is signed. */
#ifndef ADAPTERS_SIGNATURE_H
#define ADAPTERS_SIGNATURE_H

#include "core/base/error.h"

enum {
    SIGNATURE_PUBLIC_SIZE = 64, /* a public key's line, 56 characters, and NUL */
    SIGNATURE_TEXT_SIZE = 640,  /* the four lines of a signature and NUL */
    SIGNATURE_COMMENT_MAX = 128 /* bytes of a trusted comment */
};

struct public_key {
    unsigned char id[8], key[32];
};
struct secret_key {
    struct public_key public;
    unsigned char secret[64];
};

/* Makes a pair: the secret key at path (0600, without a password), the public one at path.pub. A file that is there
 * already is ATTUNE_ERROR_STATE. */
int secret_key_make(const char *path, struct public_key *out, attune_error *err);
/* One with a password is ATTUNE_ERROR_UNSUPPORTED. Wipe it with secret_key_wipe. */
int secret_key_read(const char *path, struct secret_key *out, attune_error *err);
void secret_key_wipe(struct secret_key *key);
/* text: the key's line, "RW...", or the path of a file that holds it. */
int public_key_read(const char *text, struct public_key *out, attune_error *err);
void public_key_text(const struct public_key *key, char out[SIGNATURE_PUBLIC_SIZE]);

/* Four lines, each with its newline: a comment, the signature of data(n), a comment that is signed too, and the
 * signature of that. comment: one line. */
int signature_make(const struct secret_key *key, const void *data, size_t n, const char *comment,
                   char out[SIGNATURE_TEXT_SIZE], attune_error *err);
/* text(n_text) is such four lines. ATTUNE_ERROR_FORMAT: it is none, or does not belong to data;
 * ATTUNE_ERROR_MISMATCH: another key made it. path is for messages. */
int signature_check(const struct public_key *key, const char *text, size_t n_text, const void *data, size_t n,
                    const char *path, attune_error *err);

#endif
