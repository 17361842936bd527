/* Catalogs as files: what is written is read, and what is hostile is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <sys/file.h>

#include "adapters/catalog.h"
#include "core/base/hash.h"
#include "tests/expect.h"
#include "tests/tiny_base.h"

struct fixture {
    struct tiny_base base;
    char folder[256], key_path[300];
    struct secret_key key;
    attune_error err;
};

/* The call fails with this code, and its message holds `word`. */
#define REFUSED(call, wanted, word)                                                                                    \
    do {                                                                                                               \
        memset(&f->err, 0, sizeof f->err);                                                                             \
        int code_ = (call);                                                                                            \
        if (code_ != (wanted) || !strstr(f->err.message, word))                                                        \
            fail_msg("%s gave %d: %s (%s)", #call, code_, f->err.message, f->err.where);                               \
    } while (0)

static int setup(void **state) {
    struct fixture *f = calloc(1, sizeof *f);
    struct public_key public;
    tiny_base_make(&f->base, BLOCK_Q4_1, 64, ROPE_INTERLEAVED);
    tiny_folder(f->folder);
    snprintf(f->key_path, sizeof f->key_path, "%s-key", f->folder);
    OK(secret_key_make(f->key_path, &public, &err));
    OK(secret_key_read(f->key_path, &f->key, &err));
    *state = f;
    return 0;
}
static int teardown(void **state) {
    struct fixture *f = *state;
    char command[900];
    snprintf(command, sizeof command, "rm -rf %s %s %s.pub", f->folder, f->key_path, f->key_path);
    if (system(command) != 0) return -1;
    tiny_base_free(&f->base);
    free(f);
    return 0;
}

/* An adapter of the tiny base in the folder, and the entry that names it. */
static struct catalog_entry made_entry(struct fixture *f, const char *name, float value) {
    struct catalog_entry e = {.rows = 40, .judged = 8, .loss_before = 2.5, .loss_after = 2.25, .loss_interval = 0.125};
    struct adapter_record record = {.origin = "trained"};
    char path[CATALOG_PATH_MAX], number[16];
    struct stat st;
    struct lora *lora = tiny_lora(&f->base.model, 2, 4, LORA_ALL_TARGETS);
    lora->parameters[5] = value;
    snprintf(e.name, sizeof e.name, "%s", name);
    snprintf(number, sizeof number, "%g", (double)value);
    hash_bytes(number, strlen(number), e.id);
    strcpy(e.licence, "CC0-1.0");
    strcpy(e.origin, "made up");
    memcpy(record.base_sha256, f->base.model.sha256, 65);
    OK(catalog_entry_path(f->folder, e.id, path, &err));
    unlink(path);
    OK(adapter_write(lora, &f->base.model, &record, path, "test", e.sha256, &err));
    assert_int_equal(stat(path, &st), 0);
    e.bytes = st.st_size;
    lora_destroy(lora);
    return e;
}

static void write_two(struct fixture *f) {
    struct catalog catalog;
    struct catalog_entry terse = made_entry(f, "terse", 0.25f), formal = made_entry(f, "formal", 0.5f);
    OK(catalog_new(f->folder, f->base.model.sha256, &catalog, &err));
    OK(catalog_put(&catalog, &terse, &err));
    OK(catalog_put(&catalog, &formal, &err));
    OK(catalog_write(&catalog, &f->key, &err));
    catalog_free(&catalog);
}

static const char *index_path(const struct fixture *f) {
    static char path[300];
    snprintf(path, sizeof path, "%s/index.signed", f->folder);
    return path;
}

/* Signs `json` as whoever holds the key could. */
static void sign_index(struct fixture *f, const char *json) {
    char signature[SIGNATURE_TEXT_SIZE];
    OK(signature_make(&f->key, json, strlen(json), "x", signature, &err));
    size_t n = strlen(signature) + strlen(json);
    char *all = malloc(n + 1);
    snprintf(all, n + 1, "%s%s", signature, json);
    tiny_write(index_path(f), all, n);
    free(all);
}

static int opens(struct fixture *f) {
    struct catalog catalog;
    int code = catalog_open(f->folder, &f->key.public, &catalog, &f->err);
    if (code == ATTUNE_OK) catalog_free(&catalog);
    return code;
}

static int reads(struct fixture *f, const char *name) {
    struct catalog catalog;
    struct lora *lora = NULL;
    OK(catalog_open(f->folder, &f->key.public, &catalog, &err));
    int code = catalog_adapter(&catalog, catalog_find(&catalog, name), &f->base.model, &lora, &f->err);
    lora_destroy(lora);
    catalog_free(&catalog);
    return code;
}

static void what_is_written_is_read(void **state) {
    struct fixture *f = *state;
    struct catalog catalog;
    write_two(f);
    OK(catalog_open(f->folder, &f->key.public, &catalog, &err));
    assert_int_equal(catalog.n, 2);
    assert_int_equal(catalog.serial, 1);
    const struct catalog_entry *e = catalog_find(&catalog, "formal");
    assert_non_null(e);
    assert_int_equal(e->rows, 40);
    assert_true(e->loss_after == 2.25 && e->loss_interval == 0.125);
    assert_string_equal(e->licence, "CC0-1.0");
    assert_int_equal(reads(f, "terse"), ATTUNE_OK);
    OK(catalog_drop(&catalog, "terse", &err));
    REFUSED(catalog_drop(&catalog, "terse", &f->err), ATTUNE_ERROR_NOT_FOUND, "no entry terse");
    OK(catalog_write(&catalog, &f->key, &err));
    catalog_free(&catalog);
    OK(catalog_open(f->folder, &f->key.public, &catalog, &err));
    assert_int_equal(catalog.n, 1);
    assert_int_equal(catalog.serial, 2);
    assert_null(catalog_find(&catalog, "terse"));
    catalog_free(&catalog);
}

static void bad_signatures_are_refused(void **state) {
    struct fixture *f = *state;
    struct secret_key own = f->key;
    struct public_key other;
    char path[400];
    size_t n;
    write_two(f);
    unsigned char *bytes = tiny_read(index_path(f), &n);
    for (size_t i = 0; i < n; i += 1 + n / 300) { /* cut, and one byte changed; but in the comment, which says nothing */
        tiny_write(index_path(f), bytes, i);
        assert_true(opens(f) < 0);
        bytes[i] ^= 1;
        tiny_write(index_path(f), bytes, n);
        if (i > 40) assert_true(opens(f) < 0);
        bytes[i] ^= 1;
    }
    tiny_write(index_path(f), bytes, n);
    assert_int_equal(opens(f), ATTUNE_OK);
    free(bytes);
    snprintf(path, sizeof path, "%s/other", f->folder);
    OK(secret_key_make(path, &other, &err));
    f->key.public = other;
    REFUSED(opens(f), ATTUNE_ERROR_MISMATCH, "another key");
    f->key = own;
    tiny_write(index_path(f), "{}", 2);
    REFUSED(opens(f), ATTUNE_ERROR_FORMAT, "not signed");
}

static void another_base_is_refused(void **state) {
    struct fixture *f = *state;
    write_two(f);
    memset(f->base.model.sha256, 'b', 64);
    REFUSED(reads(f, "terse"), ATTUNE_ERROR_MISMATCH, "made for the base model");
    memset(f->base.model.sha256, 'a', 64);
}

static void adapters_that_are_not_those_signed_are_refused(void **state) {
    struct fixture *f = *state;
    struct catalog_entry e = made_entry(f, "terse", 0.25f);
    char path[CATALOG_PATH_MAX], aside[CATALOG_PATH_MAX + 8];
    size_t n;
    write_two(f);
    OK(catalog_entry_path(f->folder, e.id, path, &err));
    unsigned char *bytes = tiny_read(path, &n);
    tiny_write(path, bytes, n - 1);
    REFUSED(reads(f, "terse"), ATTUNE_ERROR_FORMAT, "truncated");
    bytes[n / 2] ^= 1;
    tiny_write(path, bytes, n);
    REFUSED(reads(f, "terse"), ATTUNE_ERROR_FORMAT, "not the one that was signed");
    bytes[n / 2] ^= 1;
    snprintf(aside, sizeof aside, "%s.aside", path);
    tiny_write(aside, bytes, n);
    free(bytes);
    unlink(path);
    assert_int_equal(symlink(aside, path), 0);
    REFUSED(reads(f, "terse"), ATTUNE_ERROR_FORMAT, "symbolic link");
    unlink(path);
    REFUSED(reads(f, "terse"), ATTUNE_ERROR_IO, "cannot open");
    assert_int_equal(mkfifo(path, 0600), 0);
    REFUSED(reads(f, "terse"), ATTUNE_ERROR_FORMAT, "FIFO");
    unlink(path);
    snprintf(aside, sizeof aside, "%s.aside", index_path(f));
    assert_int_equal(rename(index_path(f), aside), 0);
    assert_int_equal(symlink(aside, index_path(f)), 0);
    REFUSED(opens(f), ATTUNE_ERROR_FORMAT, "symbolic link");
}

/* Signed by the vendor, and all the same nothing that may be used. */
static void an_adapter_that_is_not_finite_is_refused(void **state) {
    struct fixture *f = *state;
    struct catalog catalog;
    struct catalog_entry e = made_entry(f, "terse", 0.25f);
    char path[CATALOG_PATH_MAX];
    float nan = NAN;
    size_t n;
    OK(catalog_entry_path(f->folder, e.id, path, &err));
    unsigned char *bytes = tiny_read(path, &n);
    memcpy(bytes + n - 32 * sizeof nan, &nan, sizeof nan);
    tiny_write(path, bytes, n);
    hash_bytes(bytes, n, e.sha256);
    free(bytes);
    OK(catalog_new(f->folder, f->base.model.sha256, &catalog, &err));
    OK(catalog_put(&catalog, &e, &err));
    OK(catalog_write(&catalog, &f->key, &err));
    catalog_free(&catalog);
    REFUSED(reads(f, "terse"), ATTUNE_ERROR_FORMAT, "finite");
}

#define HEAD "{\"format\": \"attune catalog\", \"version\": 1, \"serial\": 1, \"base_sha256\": \"" A64 "\", \"entries\": ["
#define A64 "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define ENTRY(name, id, rows, loss)                                                                                    \
    "{\"name\": \"" name "\", \"id\": \"" id "\", \"sha256\": \"" A64 "\", \"bytes\": 10, \"rows\": " rows             \
    ", \"judged\": 3, \"loss_before\": " loss ", \"loss_after\": 1.5, \"loss_interval\": 0.5, \"licence\": \"MIT\", "  \
    "\"origin\": \"x\"}"

static void impossible_indexes_are_refused(void **state) {
    struct fixture *f = *state;
    static const struct {
        const char *json, *word;
        int code;
    } cases[] = {
        {HEAD ENTRY("a", A64, "1", "2.5") "]}", "", ATTUNE_OK},
        {HEAD ENTRY("../../a", A64, "1", "2.5") "]}", "no name for an entry", ATTUNE_ERROR_FORMAT},
        {HEAD ENTRY("/a", A64, "1", "2.5") "]}", "no name for an entry", ATTUNE_ERROR_FORMAT},
        {HEAD ENTRY("..", A64, "1", "2.5") "]}", "no name for an entry", ATTUNE_ERROR_FORMAT},
        {HEAD ENTRY("", A64, "1", "2.5") "]}", "no name for an entry", ATTUNE_ERROR_FORMAT},
        {HEAD ENTRY("a\\u0000b", A64, "1", "2.5") "]}", "damaged", ATTUNE_ERROR_FORMAT},
        {HEAD ENTRY("a", "../../../etc/passwd", "1", "2.5") "]}", "64 hexadecimal", ATTUNE_ERROR_FORMAT},
        {HEAD ENTRY("a", "/etc/passwd", "1", "2.5") "]}", "64 hexadecimal", ATTUNE_ERROR_FORMAT},
        {HEAD ENTRY("a", A64, "1", "2.5") "," ENTRY("a", A64, "1", "2.5") "]}", "two entries are named a",
         ATTUNE_ERROR_FORMAT},
        {HEAD ENTRY("a", A64, "-1", "2.5") "]}", "damaged", ATTUNE_ERROR_FORMAT},
        {HEAD ENTRY("a", A64, "1", "null") "]}", "damaged", ATTUNE_ERROR_FORMAT},
        {HEAD ENTRY("a", A64, "1", "1e999") "]}", "no JSON object", ATTUNE_ERROR_FORMAT},
        {HEAD ENTRY("a", A64, "1", "NaN") "]}", "no JSON object", ATTUNE_ERROR_FORMAT},
        {HEAD "{}]}", "entry 1", ATTUNE_ERROR_FORMAT},
        {HEAD "1]}", "entry 1", ATTUNE_ERROR_FORMAT},
        {HEAD "]", "no JSON object", ATTUNE_ERROR_FORMAT},
        {"{\"format\": \"attune catalog\", \"version\": 2}", "version 2", ATTUNE_ERROR_UNSUPPORTED},
        {"{\"format\": \"something\", \"version\": 1}", "not the index", ATTUNE_ERROR_FORMAT},
        {"{\"format\": \"attune catalog\", \"version\": 1, \"serial\": 1, \"base_sha256\": \"x\"}", "no base",
         ATTUNE_ERROR_FORMAT},
        {"[]", "no JSON object", ATTUNE_ERROR_FORMAT},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        sign_index(f, cases[i].json);
        REFUSED(opens(f), cases[i].code, cases[i].word);
    }
}

static void ten_thousand_entries_are_refused(void **state) {
    struct fixture *f = *state;
    enum { N = 10000, EACH = 400 };
    char *json = malloc(N * (size_t)EACH);
    size_t at = (size_t)sprintf(json, "%s", HEAD);
    for (int i = 0; i < N; i++)
        at += (size_t)sprintf(json + at, "%s{\"name\": \"e%d\", \"id\": \"%s\", \"sha256\": \"%s\"}", i ? "," : "", i,
                              A64, A64);
    strcpy(json + at, "]}");
    sign_index(f, json);
    free(json);
    REFUSED(opens(f), ATTUNE_ERROR_UNSUPPORTED, "10000 entries");
    struct catalog catalog;
    struct catalog_entry e = made_entry(f, "x", 0.25f);
    OK(catalog_new(f->folder, f->base.model.sha256, &catalog, &err));
    for (int i = 0; i < CATALOG_ENTRIES_MAX; i++) {
        snprintf(e.name, sizeof e.name, "e%d", i);
        OK(catalog_put(&catalog, &e, &err));
    }
    strcpy(e.name, "more");
    REFUSED(catalog_put(&catalog, &e, &f->err), ATTUNE_ERROR_ARGUMENT, "at most");
    OK(catalog_write(&catalog, &f->key, &err)); /* as many as may be written can be read */
    assert_int_equal(opens(f), ATTUNE_OK);
    catalog_free(&catalog);
}

static void two_do_not_change_it_at_once(void **state) {
    struct fixture *f = *state;
    int one, two;
    OK(catalog_lock(f->folder, &one, &err));
    REFUSED(catalog_lock(f->folder, &two, &f->err), ATTUNE_ERROR_BUSY, "another process");
    close(one);
    OK(catalog_lock(f->folder, &two, &err));
    close(two);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_is_written_is_read, setup, teardown),
        cmocka_unit_test_setup_teardown(bad_signatures_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(another_base_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(adapters_that_are_not_those_signed_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(an_adapter_that_is_not_finite_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(impossible_indexes_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(ten_thousand_entries_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(two_do_not_change_it_at_once, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
