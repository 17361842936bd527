#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "adapters/signature.h"
#include "tests/expect.h"
#include "tests/tiny_base.h"

/* What minisign itself has signed: the text "test", both ways. */
static const char KNOWN_KEY[] = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
static const char KNOWN[] =
    "untrusted comment: signature from minisign secret key\n"
    "RUQf6LRCGA9i559r3g7V1qNyJDApGip8MfqcadIgT9CuhV3EMhHoN1mGTkUidF/z7SrlQgXdy8ofjb7bNJJylDOocrCo8KLzZwo=\n"
    "trusted comment: timestamp:1556193335\tfile:test\n"
    "y/rUw2y8/hOUYjZU71eHp/Wo1KZ40fGy2VJEDl34XMJM+TX48Ss/17u3IvIfbVR1FkZZSNCisQbuQY+bHwhEBg==\n";

static void what_minisign_signed_is_known(void **state) {
    (void)state;
    struct public_key key;
    char text[SIGNATURE_PUBLIC_SIZE];
    OK(public_key_read(KNOWN_KEY, &key, &err));
    public_key_text(&key, text);
    assert_string_equal(text, KNOWN_KEY);
    OK(signature_check(&key, KNOWN, strlen(KNOWN), "test", 4, "x", &err));
    assert_int_equal(signature_check(&key, KNOWN, strlen(KNOWN), "tesT", 4, "x", NULL), ATTUNE_ERROR_FORMAT);
    char changed[sizeof KNOWN];
    memcpy(changed, KNOWN, sizeof KNOWN);
    *strstr(changed, "file:test") = 'F'; /* the trusted comment is signed too */
    assert_int_equal(signature_check(&key, changed, strlen(changed), "test", 4, "x", NULL), ATTUNE_ERROR_FORMAT);
}

static void a_pair_signs_and_checks(void **state) {
    (void)state;
    char folder[256], path[300], signature[SIGNATURE_TEXT_SIZE], line[SIGNATURE_PUBLIC_SIZE];
    struct public_key made, read, other;
    struct secret_key secret;
    struct stat st;
    tiny_folder(folder);
    snprintf(path, sizeof path, "%s/key", folder);
    OK(secret_key_make(path, &made, &err));
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(secret_key_make(path, &made, NULL), ATTUNE_ERROR_STATE);
    OK(secret_key_read(path, &secret, &err));
    snprintf(path, sizeof path, "%s/key.pub", folder);
    OK(public_key_read(path, &read, &err));
    assert_memory_equal(&secret.public, &read, sizeof read);
    public_key_text(&read, line);
    OK(public_key_read(line, &read, &err));
    OK(signature_make(&secret, "some text", 9, "a comment", signature, &err));
    size_t n = strlen(signature);
    OK(signature_check(&read, signature, n, "some text", 9, "x", &err));
    for (size_t i = 0; i < n; i++) /* truncated at every byte */
        if (i + 1 < n) assert_true(signature_check(&read, signature, i, "some text", 9, "x", NULL) < 0);
    assert_int_equal(signature_check(&read, signature, n, "some texT", 9, "x", NULL), ATTUNE_ERROR_FORMAT);
    OK(public_key_read(KNOWN_KEY, &other, &err));
    assert_int_equal(signature_check(&other, signature, n, "some text", 9, "x", NULL), ATTUNE_ERROR_MISMATCH);
    memcpy(other.id, read.id, sizeof other.id); /* the same id is not the same key */
    assert_int_equal(signature_check(&other, signature, n, "some text", 9, "x", NULL), ATTUNE_ERROR_FORMAT);
    secret_key_wipe(&secret);
}

static void what_is_no_key_is_refused(void **state) {
    (void)state;
    char folder[256], path[300], secret_path[300];
    struct public_key public;
    struct secret_key secret;
    size_t n;
    tiny_folder(folder);
    snprintf(path, sizeof path, "%s/key", folder);
    snprintf(secret_path, sizeof secret_path, "%s/key", folder);
    OK(secret_key_make(path, &public, &err));
    assert_int_equal(public_key_read(path, &public, NULL), ATTUNE_ERROR_FORMAT); /* the secret one */
    snprintf(path, sizeof path, "%s/key.pub", folder);
    assert_int_equal(secret_key_read(path, &secret, NULL), ATTUNE_ERROR_FORMAT);
    unsigned char *text = tiny_read(secret_path, &n);
    for (size_t i = 40; i + 1 < n; i += 7) { /* damaged or cut anywhere */
        unsigned char was = text[i];
        text[i] = was == 'A' ? 'B' : 'A';
        tiny_write(path, text, n);
        int code = secret_key_read(path, &secret, NULL);
        /* what lies in the salt and the limits means nothing without a password */
        if (code != ATTUNE_OK) assert_true(code == ATTUNE_ERROR_FORMAT || code == ATTUNE_ERROR_UNSUPPORTED);
        if (i > n - 100) assert_int_equal(code, ATTUNE_ERROR_FORMAT);
        tiny_write(path, text, i);
        assert_int_equal(secret_key_read(path, &secret, NULL), ATTUNE_ERROR_FORMAT);
        text[i] = was;
    }
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_minisign_signed_is_known),
        cmocka_unit_test(a_pair_signs_and_checks),
        cmocka_unit_test(what_is_no_key_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
