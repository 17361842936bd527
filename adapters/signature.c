/* Files of keys and signatures, each value one line of base64 behind a line of comment:
 *
 *   public key   "Ed", id (8), key (32)
 *   secret key   "Ed", kdf (2, zeros: no password), checksum kind "B2", salt (32), limits (8, 8), id (8), secret (64),
 *                checksum (32): BLAKE2b of "Ed", id and secret
 *   signature    "ED" (of the BLAKE2b-512 of the data) or "Ed" (of the data), id (8), signature (64);
 *                then "trusted comment: ..." and the signature of that signature and the comment */
#include "adapters/signature.h"

#include "core/base/file.h"

#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PUBLIC_BYTES = 42, SECRET_BYTES = 158, SIGNED_BYTES = 74, KEY_FILE_MAX = 4096, BASE64_MAX = 512 };
static const char UNTRUSTED[] = "untrusted comment: ", TRUSTED[] = "trusted comment: ";

static int start(attune_error *err) {
    return sodium_init() >= 0 ? ATTUNE_OK
                              : error_set(err, ATTUNE_ERROR_INTERNAL, NULL, "libsodium cannot be initialised");
}

/* ---- lines of base64 ---- */

static void encode(const unsigned char *bytes, size_t n, char out[BASE64_MAX]) {
    sodium_bin2base64(out, BASE64_MAX, bytes, n, sodium_base64_VARIANT_ORIGINAL);
}

/* A line of n_text characters into exactly n bytes. */
static int decode(const char *text, size_t n_text, unsigned char *out, size_t n) {
    size_t found = 0;
    return sodium_base642bin(out, n, text, n_text, NULL, &found, NULL, sodium_base64_VARIANT_ORIGINAL) == 0 &&
           found == n;
}

/* The next line of text up to end, without its newline; *text moves behind it. */
static size_t take_line(const char **text, const char *end, const char **line) {
    const char *newline = memchr(*text, '\n', (size_t)(end - *text));
    *line = *text;
    *text = newline ? newline + 1 : end;
    size_t n = (size_t)((newline ? newline : end) - *line);
    return n > 0 && (*line)[n - 1] == '\r' ? n - 1 : n;
}

static int begins(const char *line, size_t n, const char *word) {
    return n >= strlen(word) && memcmp(line, word, strlen(word)) == 0;
}

/* ---- keys ---- */

static int take_public(const char *line, size_t n, struct public_key *out) {
    unsigned char bytes[PUBLIC_BYTES];
    if (!decode(line, n, bytes, sizeof bytes) || memcmp(bytes, "Ed", 2) != 0) return 0;
    memcpy(out->id, bytes + 2, 8);
    memcpy(out->key, bytes + 10, 32);
    return 1;
}

/* The line behind the comment of a key's file, which must be its last. */
static int key_line(const struct file_bytes *file, const char **line, size_t *n) {
    const char *at = (const char *)file->data, *end = at + file->size, *rest;
    *n = take_line(&at, end, line);
    if (!begins(*line, *n, UNTRUSTED)) return 0;
    *n = take_line(&at, end, line);
    return *n > 0 && take_line(&at, end, &rest) == 0 && at == end;
}

int public_key_read(const char *text, struct public_key *out, attune_error *err) {
    struct file_bytes file = {0};
    const char *line;
    size_t n;
    int code = start(err);
    if (code != ATTUNE_OK) return code;
    if (!text || !*text) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "a catalog is checked with a public key");
    if (take_public(text, strlen(text), out)) return ATTUNE_OK;
    code = file_bytes_open(text, FILE_READ, KEY_FILE_MAX, &file, err);
    if (code != ATTUNE_OK) return code;
    if (!key_line(&file, &line, &n) || !take_public(line, n, out))
        code = error_set(err, ATTUNE_ERROR_FORMAT, text,
                         "this is no public key of minisign's; `attune catalog key FILE` makes a pair");
    file_bytes_close(&file);
    return code;
}

void public_key_text(const struct public_key *key, char out[SIGNATURE_PUBLIC_SIZE]) {
    unsigned char bytes[PUBLIC_BYTES] = {'E', 'd'};
    char text[BASE64_MAX];
    memcpy(bytes + 2, key->id, 8);
    memcpy(bytes + 10, key->key, 32);
    encode(bytes, sizeof bytes, text);
    snprintf(out, SIGNATURE_PUBLIC_SIZE, "%.63s", text);
}

/* Of a secret key as it lies in a file. */
static void checksum(const unsigned char bytes[SECRET_BYTES], unsigned char out[32]) {
    crypto_generichash_state state;
    crypto_generichash_init(&state, NULL, 0, 32);
    crypto_generichash_update(&state, bytes, 2);
    crypto_generichash_update(&state, bytes + 54, 72);
    crypto_generichash_final(&state, out, 32);
}

static int take_secret(const unsigned char bytes[SECRET_BYTES], const char *path, struct secret_key *out,
                       attune_error *err) {
    unsigned char sum[32];
    if (memcmp(bytes, "Ed", 2) != 0 || memcmp(bytes + 4, "B2", 2) != 0)
        return error_set(err, ATTUNE_ERROR_FORMAT, path, "this is no secret key of minisign's");
    if (bytes[2] || bytes[3])
        return error_set(err, ATTUNE_ERROR_UNSUPPORTED, path,
                         "this secret key has a password; make one without: `attune catalog key FILE`, or minisign -G -W");
    checksum(bytes, sum);
    if (sodium_memcmp(sum, bytes + 126, sizeof sum) != 0)
        return error_set(err, ATTUNE_ERROR_FORMAT, path, "the secret key is damaged: its checksum is another one");
    memcpy(out->public.id, bytes + 54, 8);
    memcpy(out->secret, bytes + 62, 64);
    memcpy(out->public.key, bytes + 94, 32);
    return ATTUNE_OK;
}

int secret_key_read(const char *path, struct secret_key *out, attune_error *err) {
    struct file_bytes file = {0};
    unsigned char bytes[SECRET_BYTES];
    const char *line;
    size_t n;
    int code = start(err);
    if (code == ATTUNE_OK && !path)
        code = error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "a catalog is signed with a secret key");
    if (code == ATTUNE_OK) code = file_bytes_open(path, FILE_READ, KEY_FILE_MAX, &file, err);
    if (code != ATTUNE_OK) return code;
    if (key_line(&file, &line, &n) && decode(line, n, bytes, sizeof bytes))
        code = take_secret(bytes, path, out, err);
    else
        code = error_set(err, ATTUNE_ERROR_FORMAT, path,
                         "this is no secret key of minisign's; `attune catalog key FILE` makes a pair");
    sodium_memzero(bytes, sizeof bytes);
    file_bytes_close(&file);
    return code;
}

void secret_key_wipe(struct secret_key *key) { sodium_memzero(key, sizeof *key); }

static int publish_text(const char *path, const char *text, attune_error *err) {
    struct file_writer writer = {0};
    int code = file_writer_open(path, "catalog.key", &writer, err);
    if (code == ATTUNE_OK) code = file_writer_add(&writer, text, strlen(text), err);
    if (code == ATTUNE_OK) code = file_writer_publish_new(&writer, err);
    file_writer_abandon(&writer);
    return code;
}

static void secret_text(const struct secret_key *key, char *out, size_t size) {
    unsigned char bytes[SECRET_BYTES] = {'E', 'd', 0, 0, 'B', '2'};
    char text[BASE64_MAX];
    memcpy(bytes + 54, key->public.id, 8);
    memcpy(bytes + 62, key->secret, 64);
    checksum(bytes, bytes + 126);
    encode(bytes, sizeof bytes, text);
    snprintf(out, size, "%sminisign secret key of a catalog, without a password\n%s\n", UNTRUSTED, text);
    sodium_memzero(bytes, sizeof bytes);
    sodium_memzero(text, sizeof text);
}

int secret_key_make(const char *path, struct public_key *out, attune_error *err) {
    struct secret_key key;
    char public_path[1024], text[BASE64_MAX + 128], line[SIGNATURE_PUBLIC_SIZE];
    int code = start(err);
    if (code != ATTUNE_OK) return code;
    if (!path || !*path || (size_t)snprintf(public_path, sizeof public_path, "%s.pub", path) >= sizeof public_path)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "a key pair wants a path of a file, not too long");
    crypto_sign_keypair(key.public.key, key.secret);
    randombytes_buf(key.public.id, sizeof key.public.id);
    secret_text(&key, text, sizeof text);
    code = publish_text(path, text, err);
    public_key_text(&key.public, line);
    snprintf(text, sizeof text, "%sminisign public key of a catalog\n%s\n", UNTRUSTED, line);
    if (code == ATTUNE_OK) code = publish_text(public_path, text, err);
    if (code == ATTUNE_OK) *out = key.public;
    sodium_memzero(text, sizeof text);
    secret_key_wipe(&key);
    return code;
}

/* ---- signatures ---- */

static void digest(const void *data, size_t n, unsigned char out[64]) {
    crypto_generichash(out, 64, data, n, NULL, 0);
}

int signature_make(const struct secret_key *key, const void *data, size_t n, const char *comment,
                   char out[SIGNATURE_TEXT_SIZE], attune_error *err) {
    unsigned char bytes[SIGNED_BYTES] = {'E', 'D'}, hash[64], global[64], joined[64 + SIGNATURE_COMMENT_MAX];
    char first[BASE64_MAX], second[BASE64_MAX];
    size_t length = strlen(comment);
    int code = start(err);
    if (code != ATTUNE_OK) return code;
    if (length > SIGNATURE_COMMENT_MAX || strpbrk(comment, "\r\n"))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "a signature's comment is one line of at most %d bytes",
                         SIGNATURE_COMMENT_MAX);
    memcpy(bytes + 2, key->public.id, 8);
    digest(data, n, hash);
    crypto_sign_detached(bytes + 10, NULL, hash, sizeof hash, key->secret);
    memcpy(joined, bytes + 10, 64);
    memcpy(joined + 64, comment, length);
    crypto_sign_detached(global, NULL, joined, 64 + length, key->secret);
    encode(bytes, sizeof bytes, first);
    encode(global, sizeof global, second);
    snprintf(out, SIGNATURE_TEXT_SIZE, "%ssignature of a catalog\n%.100s\n%s%.128s\n%.100s\n", UNTRUSTED, first, TRUSTED,
             comment, second);
    return ATTUNE_OK;
}

/* One signature out of the four lines. */
struct four_lines {
    unsigned char bytes[SIGNED_BYTES], global[64];
    const char *comment;
    size_t n_comment;
};

static int take_lines(const char *text, size_t n_text, struct four_lines *out) {
    const char *end = text + n_text, *line;
    size_t n = take_line(&text, end, &line);
    if (!begins(line, n, UNTRUSTED)) return 0;
    n = take_line(&text, end, &line);
    if (!decode(line, n, out->bytes, sizeof out->bytes)) return 0;
    n = take_line(&text, end, &line);
    if (!begins(line, n, TRUSTED)) return 0;
    out->comment = line + strlen(TRUSTED);
    out->n_comment = n - strlen(TRUSTED);
    n = take_line(&text, end, &line);
    return out->n_comment <= SIGNATURE_COMMENT_MAX && decode(line, n, out->global, sizeof out->global) && text == end;
}

static int verify(const struct public_key *key, const struct four_lines *lines, const void *data, size_t n) {
    unsigned char hash[64], joined[64 + SIGNATURE_COMMENT_MAX];
    int hashed = memcmp(lines->bytes, "ED", 2) == 0;
    if (!hashed && memcmp(lines->bytes, "Ed", 2) != 0) return 0;
    if (hashed) digest(data, n, hash);
    memcpy(joined, lines->bytes + 10, 64);
    memcpy(joined + 64, lines->comment, lines->n_comment);
    return crypto_sign_verify_detached(lines->bytes + 10, hashed ? hash : data, hashed ? sizeof hash : n, key->key) ==
               0 &&
           crypto_sign_verify_detached(lines->global, joined, 64 + lines->n_comment, key->key) == 0;
}

int signature_check(const struct public_key *key, const char *text, size_t n_text, const void *data, size_t n,
                    const char *path, attune_error *err) {
    struct four_lines lines;
    int code = start(err);
    if (code != ATTUNE_OK) return code;
    if (!take_lines(text, n_text, &lines))
        return error_set(err, ATTUNE_ERROR_FORMAT, path, "there is no signature here: four lines as minisign writes them");
    if (memcmp(lines.bytes + 2, key->id, sizeof key->id) != 0)
        return error_set(err, ATTUNE_ERROR_MISMATCH, path,
                         "signed with another key than the one that is trusted; take the catalog's own public key, or "
                         "another catalog");
    if (verify(key, &lines, data, n)) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_FORMAT, path,
                     "the signature is not that of this content: the catalog was changed or damaged; get it again");
}
