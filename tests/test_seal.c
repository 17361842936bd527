/* Sealed texts and key files: known answers, round trips, and everything that must be refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "datastore/seal.h"
#include "tests/expect.h"
#include "tests/golden_file.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(memory_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#endif

/* ---- allocations that fail, by number, and what is freed with a key in it ---- */

#ifndef SANITIZED
#include <malloc.h>

/* volatile: compilers hold that malloc and free touch no variable of the program */
static volatile long allocations, failing = -1; /* since arm(); the number that fails */
static volatile long alive;                     /* since arm(), balance of allocations and frees */
static volatile long keys_freed = -1; /* blocks given back with 64 hexadecimal digits in a row; -1: not looked at */

static void arm(long number) {
    allocations = alive = 0;
    failing = number;
}
static long disarm(void) {
    failing = -1;
    return alive;
}

static int is_hex(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); }

extern void *__libc_malloc(size_t);
extern void __libc_free(void *);

void *malloc(size_t n) {
    if (failing > 0 && ++allocations == failing) return NULL;
    void *p = __libc_malloc(n);
    alive += p != NULL;
    if (p && keys_freed >= 0) memset(p, 0, n); /* what an earlier owner left is not counted */
    return p;
}
void free(void *p) {
    alive -= p != NULL;
    if (p && keys_freed >= 0) {
        const char *bytes = p;
        size_t run = 0, n = malloc_usable_size(p);
        for (size_t i = 0; i < n && run < 2 * ATTUNE_KEY_BYTES; i++) run = is_hex(bytes[i]) ? run + 1 : 0;
        keys_freed += run == 2 * ATTUNE_KEY_BYTES;
    }
    __libc_free(p);
}
#endif

/* ---- texts ---- */

static const unsigned char KEY[ATTUNE_KEY_BYTES] = "thirty-two bytes of a person's.", OTHER_KEY[ATTUNE_KEY_BYTES] = "o",
                           SALT[SEAL_SALT_BYTES] = "sixteen of salt";
static const char LABEL[] = "018f3a9e-0000-7000-8000-00000000002a/prompt";

static struct seal sealed(void) {
    struct seal seal = {0};
    seal_start(&seal, KEY, SALT);
    return seal;
}

static void take_sized(struct golden *golden, unsigned char *out, uint32_t *n, size_t room) {
    *n = golden_u32(golden);
    assert_true(*n < room);
    golden_take(golden, out, *n);
    out[*n] = 0;
}

static void known_answers(void **state) {
    (void)state;
    struct golden golden = golden_open("seal.bin");
    unsigned char key[ATTUNE_KEY_BYTES], salt[SEAL_SALT_BYTES], bytes[32];
    char hex[HASH_HEX_SIZE] = "", wanted[HASH_HEX_SIZE] = "";
    golden_take(&golden, key, sizeof key);
    golden_take(&golden, salt, sizeof salt);
    struct seal seal = {0};
    seal_start(&seal, key, salt);
    golden_take(&golden, bytes, 32);
    assert_memory_equal(seal.text, bytes, 32);
    golden_take(&golden, bytes, 32);
    assert_memory_equal(seal.hash, bytes, 32);
    golden_take(&golden, bytes, 16);
    assert_memory_equal(seal.sketch, bytes, 16);
    golden_take(&golden, wanted, HASH_HEX_SIZE - 1);
    seal_check_value(&seal, hex);
    assert_string_equal(hex, wanted);
    golden_take(&golden, hex, HASH_HEX_SIZE - 1);
    golden_take(&golden, wanted, HASH_HEX_SIZE - 1);
    seal_hash(&seal, hex);
    assert_string_equal(hex, wanted);
    uint32_t texts = golden_u32(&golden);
    assert_true(texts > 3);
    for (uint32_t i = 0; i < texts; i++) {
        unsigned char label[256], text[2048], blob[2048];
        uint32_t label_size, text_size, blob_size;
        take_sized(&golden, label, &label_size, sizeof label);
        take_sized(&golden, text, &text_size, sizeof text);
        take_sized(&golden, blob, &blob_size, sizeof blob);
        char *opened = NULL;
        size_t n = 0;
        OK(seal_open(&seal, (char *)label, blob, blob_size, "golden", &opened, &n, &err));
        assert_int_equal(n, text_size);
        assert_memory_equal(opened, text, n + 1); /* with the NUL behind it */
        free(opened);
    }
    assert_true(golden_done(&golden));
    golden_close(&golden);
}

static void texts_come_back(void **state) {
    (void)state;
    enum { BIG = 1 << 20 };
    struct seal seal = sealed(), off = {0};
    char *big = malloc(BIG);
    assert_non_null(big);
    for (size_t i = 0; i < BIG; i++) big[i] = (char)(i * 2654435761u >> 24);
    const struct {
        const char *text;
        size_t n;
    } texts[] = {{"", 0}, {NULL, 0}, {"a", 1}, {"one\0two\0", 8}, {"B\303\244ume am Flu\303\237", 16}, {big, BIG}};
    for (size_t t = 0; t < sizeof texts / sizeof *texts; t++)
        for (int on = 0; on < 2; on++) {
            const struct seal *with = on ? &seal : &off;
            unsigned char *blob = NULL, *again = NULL;
            char *text = NULL;
            size_t n = texts[t].n, size = 0, size_again = 0, length = 99;
            OK(seal_close(with, LABEL, texts[t].text, n, &blob, &size, &err));
            OK(seal_close(with, LABEL, texts[t].text, n, &again, &size_again, &err));
            assert_int_equal(size, on ? n + 41 : n);
            assert_int_equal(size_again, size);
            if (on) {
                assert_int_equal(blob[0], 1);
                assert_memory_not_equal(blob + 1, again + 1, 24); /* never the same nonce */
                assert_memory_not_equal(blob + 25, again + 25, size - 25);
            } else if (n > 0) {
                assert_memory_equal(blob, texts[t].text, n);
            }
            OK(seal_open(with, LABEL, blob, size, "here", &text, &length, &err));
            assert_int_equal(length, n);
            if (n > 0) assert_memory_equal(text, texts[t].text, n);
            assert_int_equal(text[n], 0);
            free(text);
            free(again);
            free(blob);
        }
    free(big);
}

/* Refused as a damaged text, without a word of it, and without touching what is for the result. */
static void assert_refused(const struct seal *seal, const char *label, const void *bytes, size_t size) {
    char *text = (char *)1;
    size_t n = 77;
    attune_error err = {0};
    /* an exact copy, so that a sanitizer sees a read past its end */
    void *copy = malloc(size ? size : 1);
    assert_non_null(copy);
    if (size > 0) memcpy(copy, bytes, size);
    assert_int_equal(seal_open(seal, label, copy, size, "row 7", &text, &n, &err), ATTUNE_ERROR_FORMAT);
    assert_int_equal(err.code, ATTUNE_ERROR_FORMAT);
    assert_string_equal(err.where, "row 7");
    assert_non_null(strstr(err.message, "restore a backup"));
    assert_null(strstr(err.message, "diary"));
    assert_ptr_equal(text, (char *)1);
    assert_int_equal(n, 77);
    free(copy);
}

static void what_was_changed_is_refused(void **state) {
    (void)state;
    struct seal seal = sealed();
    unsigned char *blob;
    size_t size;
    OK(seal_close(&seal, LABEL, "dear diary", 10, &blob, &size, &err));
    assert_int_equal(size, 51);
    for (size_t i = 0; i < size; i++)
        for (int bit = 0; bit < 8; bit++) {
            blob[i] ^= (unsigned char)(1 << bit);
            assert_refused(&seal, LABEL, blob, size);
            blob[i] ^= (unsigned char)(1 << bit);
        }
    for (size_t n = 0; n < size; n++) assert_refused(&seal, LABEL, blob, n);
    unsigned char longer[64] = {0};
    memcpy(longer, blob, size);
    assert_refused(&seal, LABEL, longer, size + 1);
    assert_refused(&seal, LABEL, "dear diary", 10);
    assert_refused(&seal, LABEL, longer + 51, 0);
    /* and after all that it is still good */
    char *text = NULL;
    size_t n;
    OK(seal_open(&seal, LABEL, blob, size, "here", &text, &n, &err));
    assert_string_equal(text, "dear diary");
    free(text);
    free(blob);
}

static void another_place_or_key_is_refused(void **state) {
    (void)state;
    struct seal seal = sealed(), other_key = {0}, other_salt = {0};
    const unsigned char salt[SEAL_SALT_BYTES] = "sixteen of salu";
    unsigned char *blob;
    size_t size;
    seal_start(&other_key, OTHER_KEY, SALT);
    seal_start(&other_salt, KEY, salt);
    OK(seal_close(&seal, LABEL, "dear diary", 10, &blob, &size, &err));
    static const char *const labels[] = {
        "", "018f3a9e-0000-7000-8000-00000000002a/promp", "018f3a9e-0000-7000-8000-00000000002a/prompt ",
        "018f3a9e-0000-7000-8000-00000000002b/prompt", "018f3a9e-0000-7000-8000-00000000002a/response"};
    for (size_t i = 0; i < sizeof labels / sizeof *labels; i++) assert_refused(&seal, labels[i], blob, size);
    assert_refused(&other_key, LABEL, blob, size);
    assert_refused(&other_salt, LABEL, blob, size);
    free(blob);
}

static void newer_version_says_so(void **state) {
    (void)state;
    struct seal seal = sealed();
    const unsigned char blob[60] = {2};
    char *text;
    size_t n;
    attune_error err = {0};
    assert_int_equal(seal_open(&seal, LABEL, blob, sizeof blob, "row 7", &text, &n, &err), ATTUNE_ERROR_FORMAT);
    assert_non_null(strstr(err.message, "version 2"));
    assert_non_null(strstr(err.message, "update attune"));
}

static void keys_and_hashes_differ(void **state) {
    (void)state;
    struct seal seal = sealed(), other_key = {0}, other_salt = {0};
    const unsigned char salt[SEAL_SALT_BYTES] = {0};
    seal_start(&other_key, OTHER_KEY, SALT);
    seal_start(&other_salt, KEY, salt);
    const struct seal *all[] = {&seal, &other_key, &other_salt};
    char hash[3][HASH_HEX_SIZE], check[3][HASH_HEX_SIZE], plain[HASH_HEX_SIZE], same[HASH_HEX_SIZE];
    hash_bytes("dear diary", 10, plain);
    for (int i = 0; i < 3; i++) {
        strcpy(hash[i], plain);
        seal_hash(all[i], hash[i]);
        seal_check_value(all[i], check[i]);
        assert_int_equal(strlen(hash[i]), 64);
        assert_int_equal(strlen(check[i]), 64);
        assert_string_not_equal(hash[i], plain);
        assert_string_not_equal(hash[i], check[i]);
        assert_memory_not_equal(all[i]->text, all[i]->hash, 32);
        assert_memory_not_equal(all[i]->text, all[i]->sketch, 16);
        assert_memory_not_equal(all[i]->hash, all[i]->sketch, 16);
        for (int j = 0; j < i; j++) {
            assert_string_not_equal(hash[i], hash[j]);
            assert_string_not_equal(check[i], check[j]);
            assert_memory_not_equal(all[i]->text, all[j]->text, 32);
            assert_memory_not_equal(all[i]->hash, all[j]->hash, 32);
            assert_memory_not_equal(all[i]->sketch, all[j]->sketch, 16);
        }
    }
    strcpy(same, plain);
    seal_hash(&seal, same);
    assert_string_equal(same, hash[0]);
}

static void not_encrypted_changes_nothing(void **state) {
    (void)state;
    struct seal off = {0};
    char hash[HASH_HEX_SIZE], before[HASH_HEX_SIZE];
    hash_bytes("dear diary", 10, hash);
    strcpy(before, hash);
    seal_hash(&off, hash);
    assert_string_equal(hash, before);
    seal_check_value(&off, hash);
    assert_string_equal(hash, "");
    seal_end(&off);
    seal_end(NULL);
}

static void keys_are_wiped(void **state) {
    (void)state;
    struct seal seal = sealed(), zero;
    memset(&zero, 0, sizeof zero);
    assert_true(seal.on);
    seal_end(&seal);
    assert_memory_equal(&seal, &zero, sizeof seal);
}

static void sizes_that_wrap_are_refused(void **state) {
    (void)state;
    struct seal seal = sealed(), off = {0};
    for (size_t less = 0; less < 41; less++) {
        unsigned char *blob = (unsigned char *)1;
        size_t size = 77;
        attune_error err = {0};
        assert_int_equal(seal_close(&seal, LABEL, "x", SIZE_MAX - less, &blob, &size, &err), ATTUNE_ERROR_MEMORY);
        assert_int_equal(err.code, ATTUNE_ERROR_MEMORY);
        assert_ptr_equal(blob, (unsigned char *)1);
        assert_int_equal(size, 77);
    }
    unsigned char *blob;
    size_t size;
    assert_int_equal(seal_close(&off, LABEL, "x", SIZE_MAX, &blob, &size, NULL), ATTUNE_ERROR_MEMORY);
}

/* ---- key files ---- */

static char folder[64];

static const char *in_folder(const char *name) {
    static char paths[4][384];
    static unsigned next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static int make_folder(void **state) {
    (void)state;
    strcpy(folder, "/tmp/attune-test-seal-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    unsetenv("ATTUNE_FAULT");
    DIR *dir = opendir(folder);
    if (!dir) return -1;
    for (struct dirent *entry; (entry = readdir(dir));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) remove(in_folder(entry->d_name));
    closedir(dir);
    return rmdir(folder);
}

static int entries(const char *path) {
    int n = 0;
    DIR *dir = opendir(path);
    assert_non_null(dir);
    while (readdir(dir)) n++;
    closedir(dir);
    return n - 2;
}

static const char *put(const char *name, const void *data, size_t n, mode_t mode) {
    const char *path = in_folder(name);
    unlink(path);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, n), n);
    assert_int_equal(fchmod(fd, mode), 0);
    close(fd);
    return path;
}

static const char DIGITS[] = "00112233445566778899aabbccddeeff0123456789abcdefFEDCBA9876543210\n";

/* Says what is wrong (`message` is part of it) and where; never shows what is in the file. */
static void assert_no_key(const char *path, int code, const char *message) {
    unsigned char key[ATTUNE_KEY_BYTES], untouched[ATTUNE_KEY_BYTES];
    attune_error err = {0};
    memset(key, 0x5a, sizeof key);
    memset(untouched, 0x5a, sizeof untouched);
    int files = entries("/proc/self/fd");
    assert_int_equal(key_file_read(path, key, &err), code);
    assert_int_equal(entries("/proc/self/fd"), files);
    assert_int_equal(err.code, code);
    assert_string_equal(err.where, path);
    assert_non_null(strstr(err.message, message));
    assert_null(strstr(err.message, "0011"));
    assert_memory_equal(key, untouched, sizeof key);
    assert_int_equal(key_file_read(path, key, NULL), code);
}

static void key_files_are_read(void **state) {
    (void)state;
    static const unsigned char wanted[ATTUNE_KEY_BYTES] = {
        0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff,
        0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54, 0x32, 0x10};
    static const mode_t modes[] = {0600, 0400, 0700};
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        for (size_t end = 0; end < 2; end++) {
            unsigned char key[ATTUNE_KEY_BYTES] = {0};
            int files = entries("/proc/self/fd");
            const char *path = put("key", DIGITS, 64 + end, modes[i]);
            OK(key_file_read(path, key, &err));
            assert_int_equal(entries("/proc/self/fd"), files);
            assert_memory_equal(key, wanted, sizeof key);
            assert_int_equal(unlink(path), 0);
        }
}

static void key_files_that_others_may_use_are_refused(void **state) {
    (void)state;
    static const mode_t modes[] = {0640, 0604, 0620, 0602, 0610, 0601, 0644, 0666, 0440, 0777};
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        assert_no_key(put("key", DIGITS, 65, modes[i]), ATTUNE_ERROR_STATE, "chmod 600");
}

static void key_files_of_others_are_refused(void **state) {
    (void)state;
    if (geteuid() != 0) skip();
    const char *path = put("key", DIGITS, 65, 0600);
    assert_int_equal(chown(path, 12345, (gid_t)-1), 0);
    assert_no_key(path, ATTUNE_ERROR_STATE, "another user (12345)");
}

static void what_is_no_file_is_refused(void **state) {
    (void)state;
    const char *real = put("real", DIGITS, 65, 0600), *link = in_folder("link"), *fifo = in_folder("fifo");
    assert_int_equal(symlink(real, link), 0);
    assert_no_key(link, ATTUNE_ERROR_FORMAT, "symbolic link");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_no_key(fifo, ATTUNE_ERROR_FORMAT, "regular file"); /* a hang here is a defect too */
    assert_no_key(folder, ATTUNE_ERROR_FORMAT, "regular file");
    assert_no_key(in_folder("missing"), ATTUNE_ERROR_NOT_FOUND, "no key file");
    assert_no_key(in_folder("real/below"), ATTUNE_ERROR_IO, "cannot open");
}

static void content_of_another_form_is_refused(void **state) {
    (void)state;
    char text[80];
    for (size_t n = 0; n < 64; n++) assert_no_key(put("key", DIGITS, n, 0600), ATTUNE_ERROR_FORMAT, "64 hexadecimal");
    static const char *const tails[] = {"0", "\n\n", "\r\n", " ", "\n0", "00112233"};
    for (size_t i = 0; i < sizeof tails / sizeof *tails; i++) {
        int n = snprintf(text, sizeof text, "%.64s%s", DIGITS, tails[i]);
        assert_no_key(put("key", text, (size_t)n, 0600), ATTUNE_ERROR_FORMAT, "64 hexadecimal");
    }
    static const char wrong[] = {'g', ' ', '\n', '\0', ':', '-', 'G', '@', '`', '/', (char)0xb0};
    for (size_t at = 0; at < 64; at += 21)
        for (size_t i = 0; i < sizeof wrong; i++) {
            memcpy(text, DIGITS, 65);
            text[at] = wrong[i];
            assert_no_key(put("key", text, 65, 0600), ATTUNE_ERROR_FORMAT, "64 hexadecimal");
        }
    /* a line end in place of the last digit, and one after it */
    memcpy(text, DIGITS, 65);
    text[63] = '\n';
    assert_no_key(put("key", text, 64, 0600), ATTUNE_ERROR_FORMAT, "64 hexadecimal");
    assert_no_key(put("key", text, 65, 0600), ATTUNE_ERROR_FORMAT, "64 hexadecimal");
}

static void key_files_are_made(void **state) {
    (void)state;
    static const mode_t umasks[] = {022, 0, 077, 0277, 0777};
    unsigned char key[ATTUNE_KEY_BYTES] = {0}, read[ATTUNE_KEY_BYTES], before[ATTUNE_KEY_BYTES] = {0};
    const char *path = in_folder("key");
    for (size_t i = 0; i < sizeof umasks / sizeof *umasks; i++) {
        mode_t old = umask(umasks[i]);
        attune_error error = {0};
        int code = key_file_make(path, key, &error);
        umask(old);
        if (code != ATTUNE_OK) fail_msg("umask %03o: %s", (unsigned)umasks[i], error.message);
        struct stat st;
        assert_int_equal(lstat(path, &st), 0);
        assert_true(S_ISREG(st.st_mode));
        assert_int_equal(st.st_mode & 07777, 0600);
        assert_int_equal(st.st_size, 65);
        OK(key_file_read(path, read, &err));
        assert_memory_equal(read, key, sizeof key);
        assert_memory_not_equal(key, before, sizeof key);
        memcpy(before, key, sizeof key);
        assert_int_equal(entries(folder), 1);
        assert_int_equal(unlink(path), 0);
    }
}

static void keys_are_never_overwritten(void **state) {
    (void)state;
    unsigned char key[ATTUNE_KEY_BYTES] = "untouched";
    const char *path = put("key", "something", 9, 0644), *link = in_folder("link");
    assert_int_equal(symlink("nowhere", link), 0);
    const char *const taken[] = {path, link, folder};
    for (size_t i = 0; i < 3; i++) {
        attune_error err = {0};
        assert_int_equal(key_file_make(taken[i], key, &err), ATTUNE_ERROR_STATE);
        assert_string_equal(err.where, taken[i]);
        assert_non_null(strstr(err.message, "never overwritten"));
        assert_string_equal((char *)key, "untouched");
    }
    assert_int_equal(entries(folder), 2);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, 9);
    assert_int_equal(st.st_mode & 0777, 0644);
    assert_int_equal(key_file_make(in_folder("none/key"), key, NULL), ATTUNE_ERROR_IO);
}

static void failure_leaves_no_key(void **state) {
    (void)state;
    static const char *const faults[] = {"key.write.before:fail", "key.write.after:fail",   "key.fsync.before:fail",
                                         "key.fsync.after:fail",  "key.rename.before:fail", "key.folder.before:fail"};
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        unsigned char key[ATTUNE_KEY_BYTES] = "untouched", read[ATTUNE_KEY_BYTES];
        attune_error err = {0};
        setenv("ATTUNE_FAULT", faults[i], 1);
        assert_int_equal(key_file_make(in_folder("key"), key, &err), ATTUNE_ERROR_IO);
        unsetenv("ATTUNE_FAULT");
        assert_int_equal(err.code, ATTUNE_ERROR_IO);
        assert_string_equal((char *)key, "untouched");
        /* after the rename it is there, and whole: the next call reads it */
        int placed = strncmp(faults[i], "key.folder", 10) == 0;
        assert_int_equal(entries(folder), placed);
        assert_int_equal(key_file_read(in_folder("key"), read, NULL), placed ? ATTUNE_OK : ATTUNE_ERROR_NOT_FOUND);
    }
}

/* ---- memory ---- */

static void failing_allocations_are_reported(void **state) {
    (void)state;
#ifdef SANITIZED
    skip();
#else
    struct seal seal = sealed(), off = {0};
    const struct seal *const all[] = {&seal, &off};
    unsigned char key[ATTUNE_KEY_BYTES];
    attune_error failure = {0};
    for (size_t i = 0; i < 2; i++) {
        unsigned char *blob = NULL, *none = NULL;
        char *text = NULL;
        size_t size = 0, n = 0;
        arm(1);
        int code = seal_close(all[i], LABEL, "dear diary", 10, &none, &n, &failure);
        assert_int_equal(disarm(), 0);
        assert_int_equal(code, ATTUNE_ERROR_MEMORY);
        assert_null(none);
        OK(seal_close(all[i], LABEL, "dear diary", 10, &blob, &size, &err));
        arm(1);
        code = seal_open(all[i], LABEL, blob, size, "here", &text, &n, &failure);
        assert_int_equal(disarm(), 0);
        assert_int_equal(code, ATTUNE_ERROR_MEMORY);
        assert_null(text);
        /* nothing is left behind by a refusal either */
        arm(-1);
        if (all[i]->on) code = seal_open(all[i], "elsewhere", blob, size, "here", &text, &n, &failure);
        assert_int_equal(disarm(), 0);
        assert_int_not_equal(code, ATTUNE_OK);
        free(blob);
    }
    arm(1);
    int code = key_file_make(in_folder("key"), key, &failure);
    assert_int_equal(disarm(), 0);
    assert_int_equal(code, ATTUNE_ERROR_MEMORY);
    assert_int_equal(entries(folder), 0);
#endif
}

static void no_freed_memory_holds_a_key(void **state) {
    (void)state;
#ifdef SANITIZED
    skip();
#else
    unsigned char key[ATTUNE_KEY_BYTES];
    attune_error err = {0};
    keys_freed = 0;
    volatile char *shown = malloc(100);
    for (size_t i = 0; i < 64; i++) shown[i] = 'a';
    free((void *)(uintptr_t)shown);
    long seen = keys_freed;
    int made = key_file_make(in_folder("key"), key, &err), read = key_file_read(in_folder("key"), key, &err);
    long after = keys_freed;
    keys_freed = -1;
    assert_int_equal(seen, 1); /* the check can fail */
    assert_int_equal(made, ATTUNE_OK);
    assert_int_equal(read, ATTUNE_OK);
    assert_int_equal(after, seen);
#endif
}

#define WITH_FOLDER(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_answers),
        cmocka_unit_test(texts_come_back),
        cmocka_unit_test(what_was_changed_is_refused),
        cmocka_unit_test(another_place_or_key_is_refused),
        cmocka_unit_test(newer_version_says_so),
        cmocka_unit_test(keys_and_hashes_differ),
        cmocka_unit_test(not_encrypted_changes_nothing),
        cmocka_unit_test(keys_are_wiped),
        cmocka_unit_test(sizes_that_wrap_are_refused),
        WITH_FOLDER(key_files_are_read),
        WITH_FOLDER(key_files_that_others_may_use_are_refused),
        WITH_FOLDER(key_files_of_others_are_refused),
        WITH_FOLDER(what_is_no_file_is_refused),
        WITH_FOLDER(content_of_another_form_is_refused),
        WITH_FOLDER(key_files_are_made),
        WITH_FOLDER(keys_are_never_overwritten),
        WITH_FOLDER(failure_leaves_no_key),
        WITH_FOLDER(failing_allocations_are_reported),
        WITH_FOLDER(no_freed_memory_holds_a_key),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
