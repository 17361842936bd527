/* A sealed text, as docs/formats.md specifies it:
 *
 *   offset 0   version, 1
 *          1   nonce, 24 random bytes
 *         25   ciphertext, as long as the text
 *     25 + n   tag, 16 bytes
 *
 * XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03) under seal.text, with the label's bytes as additional data. Nonces
 * of 192 bits may be drawn at random for as many texts as there will ever be.
 *
 * Keys: BLAKE2b (RFC 7693) keyed with the person's key, over the store's salt followed by a name of the purpose, as
 * long as the key it makes. The version is part of the name: a blob of another version cannot pass for one of these. */
#include "datastore/seal.h"

#include "core/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    VERSION = 1,
    NONCE_BYTES = crypto_aead_xchacha20poly1305_ietf_NPUBBYTES,
    TAG_BYTES = crypto_aead_xchacha20poly1305_ietf_ABYTES,
    HEAD_BYTES = 1 + NONCE_BYTES,
    AROUND_BYTES = HEAD_BYTES + TAG_BYTES /* what a blob is longer than its text */
};
static const char TEXT_KEY[] = "attune store text 1", HASH_KEY[] = "attune store hash 1",
                  SKETCH_KEY[] = "attune store sketch 1", CHECK[] = "attune store check 1";

_Static_assert(HEAD_BYTES == 25 && TAG_BYTES == 16, "the sizes in the specification");
_Static_assert(sizeof((struct seal *)0)->text == crypto_aead_xchacha20poly1305_ietf_KEYBYTES, "a text key fits");

/* ---- keys ---- */

static void derive(unsigned char *out, size_t size, const unsigned char *key, const unsigned char *salt,
                   const char *purpose) {
    crypto_generichash_state state;
    crypto_generichash_init(&state, key, ATTUNE_KEY_BYTES, size);
    crypto_generichash_update(&state, salt, SEAL_SALT_BYTES);
    crypto_generichash_update(&state, (const unsigned char *)purpose, strlen(purpose));
    crypto_generichash_final(&state, out, size);
    sodium_memzero(&state, sizeof state);
}

void seal_start(struct seal *out, const unsigned char key[ATTUNE_KEY_BYTES],
                const unsigned char salt[SEAL_SALT_BYTES]) {
    derive(out->text, sizeof out->text, key, salt, TEXT_KEY);
    derive(out->hash, sizeof out->hash, key, salt, HASH_KEY);
    derive(out->sketch, sizeof out->sketch, key, salt, SKETCH_KEY);
    out->on = 1;
}

void seal_end(struct seal *seal) {
    if (seal) sodium_memzero(seal, sizeof *seal);
}

static void keyed_hash(const struct seal *seal, const char *text, char hex[HASH_HEX_SIZE]) {
    unsigned char digest[32];
    crypto_generichash(digest, sizeof digest, (const unsigned char *)text, strlen(text), seal->hash, sizeof seal->hash);
    sodium_bin2hex(hex, HASH_HEX_SIZE, digest, sizeof digest);
}

void seal_check_value(const struct seal *seal, char hex[HASH_HEX_SIZE]) {
    if (seal->on)
        keyed_hash(seal, CHECK, hex); /* no content hash is this text: those have 64 digits */
    else
        hex[0] = '\0';
}

void seal_hash(const struct seal *seal, char hex[HASH_HEX_SIZE]) {
    if (seal->on) keyed_hash(seal, hex, hex);
}

/* ---- texts ---- */

/* n bytes with a NUL behind them. */
static int copy(const void *from, size_t n, char **out, attune_error *err) {
    size_t wanted;
    char *bytes = checked_add(n, 1, &wanted) ? malloc(wanted) : NULL;
    if (!bytes) return error_set_memory(err, "a text", n);
    if (n > 0) memcpy(bytes, from, n);
    bytes[n] = '\0';
    *out = bytes;
    return ATTUNE_OK;
}

int seal_close(const struct seal *seal, const char *label, const char *text, size_t n, unsigned char **blob,
               size_t *size, attune_error *err) {
    if (!seal->on) {
        char *plain = NULL;
        int code = copy(text, n, &plain, err);
        if (code != ATTUNE_OK) return code;
        *blob = (unsigned char *)plain;
        *size = n;
        return ATTUNE_OK;
    }
    size_t wanted;
    unsigned char *out = checked_add(n, AROUND_BYTES, &wanted) ? malloc(wanted) : NULL;
    if (!out) return error_set_memory(err, "an encrypted text", n);
    /* without it, the source of random numbers is not safe for threads */
    if (sodium_init() < 0) {
        free(out);
        return error_set(err, ATTUNE_ERROR_INTERNAL, NULL, "libsodium does not start");
    }
    out[0] = VERSION;
    randombytes_buf(out + 1, NONCE_BYTES);
    crypto_aead_xchacha20poly1305_ietf_encrypt(out + HEAD_BYTES, NULL, (const unsigned char *)text, n,
                                               (const unsigned char *)label, strlen(label), NULL, out + 1, seal->text);
    *blob = out;
    *size = wanted;
    return ATTUNE_OK;
}

static int check_blob(const unsigned char *blob, size_t size, const char *where, attune_error *err) {
    if (size < 1 || blob[0] == 0)
        return error_set(err, ATTUNE_ERROR_FORMAT, where, "this is not an encrypted text: restore a backup");
    if (blob[0] != VERSION)
        return error_set(err, ATTUNE_ERROR_FORMAT, where,
                         "this is not a text that attune " ATTUNE_VERSION
                         " encrypts (version %u, known: %d): update attune, or restore a backup",
                         blob[0], VERSION);
    if (size < AROUND_BYTES)
        return error_set(err, ATTUNE_ERROR_FORMAT, where,
                         "an encrypted text of %zu bytes is cut short (the shortest has %d): restore a backup", size,
                         AROUND_BYTES);
    return ATTUNE_OK;
}

int seal_open(const struct seal *seal, const char *label, const void *blob, size_t size, const char *where, char **text,
              size_t *n, attune_error *err) {
    char *out = NULL;
    if (!seal->on) {
        int code = copy(blob, size, &out, err);
        if (code != ATTUNE_OK) return code;
        *text = out;
        *n = size;
        return ATTUNE_OK;
    }
    const unsigned char *bytes = blob;
    int code = check_blob(bytes, size, where, err);
    if (code != ATTUNE_OK) return code;
    size_t length = size - AROUND_BYTES;
    out = malloc(length + 1);
    if (!out) return error_set_memory(err, "a decrypted text", length + 1);
    if (crypto_aead_xchacha20poly1305_ietf_decrypt((unsigned char *)out, NULL, NULL, bytes + HEAD_BYTES,
                                                   size - HEAD_BYTES, (const unsigned char *)label, strlen(label),
                                                   bytes + 1, seal->text)) {
        free(out);
        return error_set(err, ATTUNE_ERROR_FORMAT, where,
                         "an encrypted text cannot be opened: it is damaged, was moved here from another place, or "
                         "has another key; restore a backup");
    }
    out[length] = '\0';
    *text = out;
    *n = length;
    return ATTUNE_OK;
}

/* ---- key files ---- */

enum { DIGITS = 2 * ATTUNE_KEY_BYTES, KEY_FILE_MAX = DIGITS + 1 };

static int open_key_file(const char *path, int *fd, attune_error *err) {
    /* O_NONBLOCK: a FIFO that nobody writes to must open, for fstat to refuse it */
    *fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (*fd >= 0) return ATTUNE_OK;
    if (errno == ENOENT)
        return error_set(err, ATTUNE_ERROR_NOT_FOUND, path,
                         "there is no key file here: put it back, the texts cannot be read without it");
    if (errno == ELOOP)
        return error_set(err, ATTUNE_ERROR_FORMAT, path,
                         "the key file is a symbolic link, which is not followed: name the file itself");
    if (errno == EACCES)
        return error_set(err, ATTUNE_ERROR_IO, path,
                         "this user may not read the key file: it must belong to who runs attune and have mode 0600");
    return error_set_errno(err, path, "cannot open the key file");
}

/* Of the file that is open, so that nobody can put another in its place in between. */
static int check_key_file(int fd, const char *path, attune_error *err) {
    struct stat st;
    if (fstat(fd, &st)) return error_set_errno(err, path, "cannot examine the key file");
    if (!S_ISREG(st.st_mode))
        return error_set(err, ATTUNE_ERROR_FORMAT, path, "a key file is a regular file, and this is none");
    if (st.st_uid != geteuid() && st.st_uid != 0)
        return error_set(err, ATTUNE_ERROR_STATE, path,
                         "the key file belongs to another user (%ld): make it your own (chown), or name one that is",
                         (long)st.st_uid);
    if (st.st_mode & (S_IRWXG | S_IRWXO))
        return error_set(err, ATTUNE_ERROR_STATE, path,
                         "others than its owner may use this key file (mode %04o): run chmod 600 on it",
                         (unsigned)(st.st_mode & 07777));
    return ATTUNE_OK;
}

/* One byte more than a key file has, if it is there, so that a longer one shows. */
static int read_digits(int fd, const char *path, char digits[KEY_FILE_MAX + 1], size_t *n, attune_error *err) {
    *n = 0;
    while (*n < KEY_FILE_MAX + 1) {
        ssize_t got = read(fd, digits + *n, KEY_FILE_MAX + 1 - *n);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return error_set_errno(err, path, "cannot read the key file");
        if (got == 0) break;
        *n += (size_t)got;
    }
    return ATTUNE_OK;
}

int key_file_read(const char *path, unsigned char key[ATTUNE_KEY_BYTES], attune_error *err) {
    char digits[KEY_FILE_MAX + 1];
    unsigned char bytes[ATTUNE_KEY_BYTES];
    size_t n = 0;
    int fd;
    int code = open_key_file(path, &fd, err);
    if (code != ATTUNE_OK) return code;
    if ((code = check_key_file(fd, path, err)) != ATTUNE_OK) goto out;
    if ((code = read_digits(fd, path, digits, &n, err)) != ATTUNE_OK) goto out;
    if (n == KEY_FILE_MAX && digits[DIGITS] == '\n') n = DIGITS;
    if (n != DIGITS || sodium_hex2bin(bytes, sizeof bytes, digits, DIGITS, NULL, NULL, NULL)) {
        code = error_set(err, ATTUNE_ERROR_FORMAT, path,
                         "a key file holds exactly %d hexadecimal digits and the end of the line: this one does not",
                         DIGITS);
        goto out;
    }
    memcpy(key, bytes, sizeof bytes);
out:
    sodium_memzero(digits, sizeof digits);
    sodium_memzero(bytes, sizeof bytes);
    close(fd);
    return code;
}

/* line: the digits, '\n' and a NUL. */
static int write_key_file(const char *path, const char *line, attune_error *err) {
    struct file_writer writer = {0};
    int code = file_writer_open(path, "key", &writer, err);
    if (code != ATTUNE_OK) return code;
    /* the umask may have taken the owner's own bits */
    if (fchmod(writer.fd, S_IRUSR | S_IWUSR)) {
        code = error_set_errno(err, path, "cannot make the key file readable for its owner alone");
        goto out;
    }
    if ((code = file_writer_add(&writer, line, KEY_FILE_MAX, err)) != ATTUNE_OK) goto out;
    if ((code = file_writer_sync(&writer, err)) != ATTUNE_OK) goto out;
    sodium_memzero(writer.buffer, KEY_FILE_MAX);
    code = file_writer_publish_new(&writer, err);
    if (code == ATTUNE_ERROR_STATE)
        code = error_set(err, code, path,
                         "something of this name is here already, and a key is never overwritten: use it, or name "
                         "another file");
out:
    file_writer_abandon(&writer);
    return code;
}

int key_file_make(const char *path, unsigned char key[ATTUNE_KEY_BYTES], attune_error *err) {
    unsigned char bytes[ATTUNE_KEY_BYTES];
    char line[KEY_FILE_MAX + 1];
    if (sodium_init() < 0) return error_set(err, ATTUNE_ERROR_INTERNAL, NULL, "libsodium does not start");
    randombytes_buf(bytes, sizeof bytes);
    sodium_bin2hex(line, sizeof line, bytes, sizeof bytes);
    memcpy(line + DIGITS, "\n", 2);
    int code = write_key_file(path, line, err);
    if (code == ATTUNE_OK) memcpy(key, bytes, sizeof bytes);
    sodium_memzero(bytes, sizeof bytes);
    sodium_memzero(line, sizeof line);
    return code;
}
