/* SHA-256 by the examples of FIPS 180 (csrc.nist.gov, SHA256.pdf and the byte-oriented test vectors). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/hash.h"

static const struct {
    const char *text;
    size_t times;
    const char *hex;
} vectors[] = {
    {"", 1, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
    {"abc", 1, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
    {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 1,
     "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
    {"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu",
     1, "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1"},
    {"a", 1000000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"},
};
enum { VECTORS = sizeof vectors / sizeof *vectors };

static char *repeated(size_t v, size_t *n) {
    size_t each = strlen(vectors[v].text);
    *n = each * vectors[v].times;
    char *all = test_malloc(*n + 1);
    for (size_t i = 0; i < vectors[v].times; i++) memcpy(all + i * each, vectors[v].text, each);
    return all;
}

static void test_vectors(void **state) {
    (void)state;
    for (size_t v = 0; v < VECTORS; v++) {
        size_t n;
        char *all = repeated(v, &n), hex[HASH_HEX_SIZE];
        hash_bytes(all, n, hex);
        assert_string_equal(hex, vectors[v].hex);
        /* in pieces of any size, across the 64-byte blocks */
        for (size_t piece = 1; piece <= 129; piece += 32) {
            struct hash hash;
            hash_start(&hash);
            for (size_t at = 0; at < n; at += piece) hash_add(&hash, all + at, n - at < piece ? n - at : piece);
            hash_finish(&hash, hex);
            assert_string_equal(hex, vectors[v].hex);
        }
        test_free(all);
    }
}

/* Strings are framed by their length, numbers are eight little-endian bytes. */
static void test_framing(void **state) {
    (void)state;
    static const unsigned char framed[] = {2, 0, 0, 0, 0, 0, 0, 0, 'a', 'b', 1, 0, 0, 0, 0, 0, 0, 0, 'c',
                                           0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01};
    struct hash hash;
    char hex[HASH_HEX_SIZE], wanted[HASH_HEX_SIZE], other[HASH_HEX_SIZE];
    hash_start(&hash);
    hash_add_string(&hash, "ab");
    hash_add_string(&hash, "c");
    hash_add_u64(&hash, 0x0123456789abcdefu);
    hash_finish(&hash, hex);
    hash_bytes(framed, sizeof framed, wanted);
    assert_string_equal(hex, wanted);
    hash_start(&hash);
    hash_add_string(&hash, "a");
    hash_add_string(&hash, "bc");
    hash_add_u64(&hash, 0x0123456789abcdefu);
    hash_finish(&hash, other);
    assert_string_not_equal(hex, other);
}

static void test_file(void **state) {
    (void)state;
    char path[] = "/tmp/attune-hash-XXXXXX", hex[HASH_HEX_SIZE], wanted[HASH_HEX_SIZE];
    static const size_t sizes[] = {0, 1, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, 1000000};
    size_t n;
    char *all = repeated(VECTORS - 1, &n);
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        assert_int_equal(ftruncate(fd, 0), 0);
        assert_int_equal(pwrite(fd, all, sizes[s], 0), sizes[s]);
        assert_int_equal(lseek(fd, (off_t)sizes[s] / 2, SEEK_SET), sizes[s] / 2); /* from the start all the same */
        hash_bytes(all, sizes[s], wanted);
        assert_int_equal(hash_file(fd, path, hex, NULL), ATTUNE_OK);
        assert_string_equal(hex, wanted);
        assert_int_equal(lseek(fd, 0, SEEK_CUR), sizes[s] / 2);
    }
    assert_string_equal(hex, vectors[VECTORS - 1].hex);
    close(fd);
    unlink(path);
    test_free(all);
}

static void test_file_that_cannot_be_read(void **state) {
    (void)state;
    char hex[HASH_HEX_SIZE] = "untouched";
    attune_error err = {0};
    int folder = open("/tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_true(folder >= 0);
    assert_int_equal(hash_file(folder, "/tmp", hex, &err), ATTUNE_ERROR_IO);
    assert_string_equal(err.where, "/tmp");
    assert_string_equal(hex, "untouched");
    close(folder);
    assert_int_equal(hash_file(-1, "nothing", hex, NULL), ATTUNE_ERROR_IO);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vectors),
        cmocka_unit_test(test_framing),
        cmocka_unit_test(test_file),
        cmocka_unit_test(test_file_that_cannot_be_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
