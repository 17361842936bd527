/* JSON texts when allocations of jansson fail: what is read and written is right, or memory is said to lack. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "datastore/content.h"
#include "datastore/json_text.h"
#include "tests/expect.h"

/* ---- jansson's memory ---- */

static size_t allocations, failing, failing_to; /* the numbers of those that fail: [failing, failing_to) */
static int64_t live;

/* Each block ends at a page that nobody may touch: jansson is no part of what a sanitizer looks into. */
struct fence {
    void *pages;
    size_t size;
};

static void *allocate(size_t n) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (n + 15) / 16 * 16;
    if (++allocations >= failing && allocations < failing_to) return NULL;
    struct fence fence = {.size = (room + sizeof(struct fence) + page - 1) / page * page + page};
    fence.pages = mmap(NULL, fence.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (fence.pages == MAP_FAILED) return NULL;
    char *end = (char *)fence.pages + fence.size - page;
    assert_int_equal(mprotect(end, page, PROT_NONE), 0);
    char *block = end - room;
    memset(block, 0xa5, room);
    memcpy(block - sizeof fence, &fence, sizeof fence);
    live++;
    return block;
}

static void release(void *block) {
    struct fence fence;
    if (!block) return;
    memcpy(&fence, (char *)block - sizeof fence, sizeof fence);
    live--;
    assert_int_equal(munmap(fence.pages, fence.size), 0);
}

static int use_fences(void **state) {
    (void)state;
    json_set_alloc_funcs(allocate, release);
    return 0;
}

/* ---- reading ---- */

/* The code, with the n-th allocation failing, alone or with all behind it; 0: none. What is read must equal `good`. */
static int parse(const char *text, size_t length, json_t *good, size_t nth, size_t to) {
    json_t *json = NULL;
    attune_error err = {0};
    int64_t before = live;
    allocations = 0;
    failing = nth;
    failing_to = to;
    int code = json_text_parse(text, length, "test", &json, &err);
    failing = failing_to = 0;
    if (code == ATTUNE_OK && !json_equal(json, good)) fail_msg("damaged by allocation %zu: %s", nth, text);
    if (code == ATTUNE_ERROR_MEMORY && !strstr(err.message, "out of memory")) fail_msg("%s", err.message);
    json_decref(json);
    if (live != before) fail_msg("allocation %zu leaves blocks: %s", nth, text);
    return code;
}

/* A good text is never called bad, whichever allocation fails. */
static size_t check_good(const char *text) {
    size_t length = strlen(text), all;
    json_t *good = json_loadb(text, length, 0, NULL);
    assert_non_null(good);
    if (parse(text, length, good, 0, 0) != ATTUNE_OK) fail_msg("refused: %s", text);
    all = allocations;
    for (size_t nth = 1; nth <= all; nth++) {
        int alone = parse(text, length, good, nth, nth + 1), with_all = parse(text, length, good, nth, SIZE_MAX);
        int with_few = parse(text, length, good, nth, nth + 7);
        if (alone != ATTUNE_ERROR_MEMORY || with_all != ATTUNE_ERROR_MEMORY || with_few != ATTUNE_ERROR_MEMORY)
            fail_msg("allocation %zu: %d, %d, %d: %s", nth, alone, with_all, with_few, text);
    }
    json_decref(good);
    return all;
}

/* Around each size at which jansson's buffer grows, with an escape, a quote or a digit as the byte that would be lost.
 */
static void test_every_allocation(void **state) {
    (void)state;
    static const char *const forms[] = {"[\"%s\",1]",
                                        "[\"%s\\n\"]",
                                        "{\"%s\":1}",
                                        "{\"%s\\\"\":2}",
                                        "[\"%s\\ud83d\\ude00\"]",
                                        "[\"\\\\%s\",\"\",[],{\"a\":null}]"};
    char x[600], text[700];
    for (size_t form = 0; form < sizeof forms / sizeof forms[0]; form++)
        for (size_t size = 16; size <= 512; size *= 2)
            for (size_t n = size - 16; n < size + 2; n++) {
                memset(x, 'x', n);
                x[n] = '\0';
                snprintf(text, sizeof text, forms[form], x);
                check_good(text);
            }
    for (size_t n = 1; n < 19; n++) {
        snprintf(text, sizeof text, "[%.*s,-%.*s.5e-3]", (int)n, "1234567890123456789", (int)n, "1234567890123456789");
        check_good(text);
    }
    assert_in_range(check_good("{\"a\":[true,false,null,-0.5],\"b\":{\"c\":\"d\"},\"e\":\"\\u00e9\xc3\xa9\"}"), 20,
                    200);
}

/* A bad text is called bad, and when memory lacks before the fault is seen, nothing else but that. */
static void test_bad_texts(void **state) {
    (void)state;
    static const char *const texts[] = {"{\"a\" \"b\"}",
                                        "{\"a\":1 \"b\":2}",
                                        "[\"a\" \"b\"]",
                                        "[1 \"a\"]",
                                        "{\"a\":\"\\u12\"}",
                                        "[\"\\ud800\"]",
                                        "[\"\\udc00\",1]",
                                        "[\"\\x\"]",
                                        "{\"a\":{} \"b\"}",
                                        "{1:\"a\"}",
                                        "[-\"a\"]",
                                        "[1e\"a\"]",
                                        "{\"a\":1,\"a\":\"a\"}",
                                        "[x\"a\"]",
                                        "[\"\\u0000\"]",
                                        "[\"a\"}",
                                        "{\"a\":\"b\",\"c\":\"",
                                        "[],[\"a\"]",
                                        "[]\"a\"",
                                        "\"a\"",
                                        "{\"a\":123456789012345678901}",
                                        "[\xc3\xa9]",
                                        "[\"pad\\u00\"]",
                                        ""};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        size_t length = strlen(texts[i]);
        if (parse(texts[i], length, NULL, 0, 0) != ATTUNE_ERROR_FORMAT) fail_msg("taken: %s", texts[i]);
        size_t all = allocations;
        for (size_t nth = 1; nth <= all; nth++) {
            int alone = parse(texts[i], length, NULL, nth, nth + 1),
                with_all = parse(texts[i], length, NULL, nth, SIZE_MAX);
            assert_true(alone == ATTUNE_ERROR_FORMAT || alone == ATTUNE_ERROR_MEMORY);
            assert_true(with_all == ATTUNE_ERROR_FORMAT || with_all == ATTUNE_ERROR_MEMORY);
        }
    }
}

static void test_large(void **state) {
    (void)state;
    size_t n = 5 << 20;
    char *text = malloc(n + 1);
    memset(text, 'x', n);
    memcpy(text, "[\"", 2);
    memcpy(text + n - 2, "\"]", 3);
    json_t *good = json_loadb(text, n, 0, NULL);
    assert_int_equal(parse(text, n, good, 0, 0), ATTUNE_OK);
    size_t all = allocations;
    for (size_t nth = 1; nth <= all; nth++) {
        assert_int_equal(parse(text, n, good, nth, nth + 1), ATTUNE_ERROR_MEMORY);
        assert_int_equal(parse(text, n, good, nth, SIZE_MAX), ATTUNE_ERROR_MEMORY);
    }
    json_decref(good);
    free(text);
}

static void test_values(void **state) {
    (void)state;
    static const struct {
        const char *text;
        size_t n;
    } cases[] = {{"{}", 1},
                 {"[ ]", 1},
                 {"[1]", 2},
                 {"[[],{},[[]],\"[,\\\",\"]", 6},
                 {"{\"a\":[1,2]}", 4},
                 {" {\"a\":{\"b\":{}}} ", 3},
                 {"[\"[\" ]", 2}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (json_text_values(cases[i].text, strlen(cases[i].text)) != cases[i].n) fail_msg("%s", cases[i].text);
}

/* ---- the column of messages ---- */

static void test_messages_read(void **state) {
    (void)state;
    static const char text[] =
        "[{\"role\":\"user\",\"content\":\"What is a fjord?\"},{\"role\":\"assistant\",\"content\":"
        "\"A drowned valley of a glacier.\"}]";
    static const char *const damaged[] = {
        "", "[]", "{}", "[1]", "[{\"role\":\"user\"}]", "[{\"role\":\"user\",\"content\":"};
    struct store_messages messages = {0};
    attune_error err = {0};
    int64_t before = live;
    int code = ATTUNE_ERROR_MEMORY;
    size_t nth = 1;
    for (; code != ATTUNE_OK; nth++) {
        allocations = 0;
        failing = nth;
        failing_to = nth + 1;
        code = store_messages_read(text, "test", &messages, &err);
        failing = failing_to = 0;
        assert_true((code == ATTUNE_OK) == (allocations < nth));
        if (code == ATTUNE_OK) break;
        assert_int_equal(code, ATTUNE_ERROR_MEMORY);
        assert_int_equal(live, before);
    }
    assert_in_range(nth, 20, 200);
    assert_int_equal(messages.n, 2);
    assert_string_equal(messages.list[1].content, "A drowned valley of a glacier.");
    store_messages_free(&messages);
    for (size_t i = 0; i < sizeof damaged / sizeof damaged[0]; i++) {
        assert_int_equal(store_messages_read(damaged[i], "test", &messages, &err), ATTUNE_ERROR_FORMAT);
        assert_non_null(strstr(err.message, "the store is damaged"));
    }
    assert_int_equal(live, before);
}

/* ---- writing ---- */

static void test_written(void **state) {
    (void)state;
    static const char text[] = "{\"a key that is long\":[1,\"\\\"\\u0001\",true],\"another long key\":{},\"c\":[]}";
    json_t *json = json_loads(text, 0, NULL);
    int code = ATTUNE_ERROR_MEMORY;
    size_t nth = 1, n = 0;
    char *written = NULL;
    for (; code != ATTUNE_OK; nth++) {
        attune_error err = {0};
        int64_t before = live;
        allocations = 0;
        failing = nth;
        failing_to = nth + 1;
        code = json_text_write(json, "\n", &written, &n, &err);
        failing = failing_to = 0;
        assert_true((code == ATTUNE_OK) == (allocations < nth));
        assert_int_equal(live, before);
        if (code == ATTUNE_OK) break;
        assert_int_equal(code, ATTUNE_ERROR_MEMORY);
        assert_null(written);
    }
    assert_in_range(nth, 4, 100);
    assert_int_equal(n, sizeof text);
    assert_memory_equal(written, text, sizeof text - 1);
    assert_string_equal(written + n - 1, "\n");
    free(written);
    json_decref(json);
    assert_int_equal(json_text_write(NULL, "", &written, &n, NULL), ATTUNE_ERROR_MEMORY);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_allocation), cmocka_unit_test(test_bad_texts),     cmocka_unit_test(test_large),
        cmocka_unit_test(test_values),           cmocka_unit_test(test_messages_read), cmocka_unit_test(test_written),
    };
    return cmocka_run_group_tests_name("json_text", tests, use_fences, NULL);
}
