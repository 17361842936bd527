#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "core/base/arena.h"

struct parts {
    char *bytes;
    double *numbers;
    uint64_t *none, *tail;
};
static void take(struct arena *arena, struct parts *parts, size_t n) {
    parts->bytes = ARENA_TAKE(arena, char, n);
    parts->numbers = ARENA_TAKE(arena, double, n);
    parts->none = ARENA_TAKE(arena, uint64_t, 0);
    parts->tail = ARENA_TAKE(arena, uint64_t, 3);
}

static void test_two_passes(void **state) {
    (void)state;
    static const size_t counts[] = {1, 7, 8, 63, 64, 65, 100000};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        size_t n = counts[c], counted;
        struct arena arena = {0};
        struct parts parts;
        take(&arena, &parts, n);
        assert_null(parts.bytes);
        assert_null(parts.numbers);
        assert_null(parts.tail);
        counted = arena.used;
        assert_true(counted >= n + n * sizeof(double) + 3 * sizeof(uint64_t));
        assert_true(counted < n + n * sizeof(double) + 3 * sizeof(uint64_t) + 4 * 64);
        assert_int_equal(arena_commit(&arena, "a test", NULL), ATTUNE_OK);
        assert_int_equal(arena.size, counted);
        assert_int_equal(arena.used, 0);
        take(&arena, &parts, n);
        assert_int_equal(arena.used, counted);
        assert_ptr_equal(parts.bytes, arena.memory);
        assert_int_equal((uintptr_t)parts.bytes % 64, 0);
        assert_int_equal((uintptr_t)parts.numbers % 64, 0);
        assert_int_equal((uintptr_t)parts.tail % 64, 0);
        for (size_t i = 0; i < arena.size; i++) assert_int_equal(arena.memory[i], 0);
        /* no part lies in another */
        memset(parts.bytes, 1, n);
        memset(parts.numbers, 2, n * sizeof *parts.numbers);
        memset(parts.tail, 3, 3 * sizeof *parts.tail);
        for (size_t i = 0; i < n; i++) assert_int_equal(parts.bytes[i], 1);
        for (size_t i = 0; i < n * sizeof(double); i++) assert_int_equal(((char *)parts.numbers)[i], 2);
        arena_free(&arena);
        assert_null(arena.memory);
        assert_int_equal(arena.size + arena.used, 0);
        arena_free(&arena);
    }
}

static void test_nothing_counted(void **state) {
    (void)state;
    struct arena arena = {0};
    assert_int_equal(arena_commit(&arena, "nothing", NULL), ATTUNE_OK);
    assert_non_null(arena.memory);
    arena_free(&arena);
}

/* However a count wraps, the sum is refused: it is never a small allocation. */
static void test_overflow_is_refused(void **state) {
    (void)state;
    static const size_t counts[][2] = {{SIZE_MAX, 2}, {SIZE_MAX / 2 + 1, 2}, {SIZE_MAX, 1}, {SIZE_MAX - 62, 1},
                                       {1, SIZE_MAX}, {SIZE_MAX / 4 + 1, 4}};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        struct arena arena = {0};
        attune_error err = {0};
        arena_take(&arena, 10, 10);
        assert_null(arena_take(&arena, counts[c][0], counts[c][1]));
        arena_take(&arena, 10, 10);
        assert_int_equal(arena_commit(&arena, "far too much", &err), ATTUNE_ERROR_MEMORY);
        assert_non_null(strstr(err.message, "far too much"));
        assert_null(arena.memory);
        arena_free(&arena);
    }
    struct arena arena = {0}; /* each fits, both do not */
    arena_take(&arena, SIZE_MAX / 2, 1);
    arena_take(&arena, SIZE_MAX / 2, 1);
    arena_take(&arena, 1000, 1);
    assert_int_equal(arena_commit(&arena, "two halves", NULL), ATTUNE_ERROR_MEMORY);
    arena_free(&arena);
}

static void test_more_than_there_is(void **state) {
    (void)state;
    struct arena arena = {0};
    attune_error err = {0};
    arena_take(&arena, SIZE_MAX / 4, 1);
    assert_int_equal(arena_commit(&arena, "the universe", &err), ATTUNE_ERROR_MEMORY);
    assert_non_null(strstr(err.message, "the universe"));
    assert_null(arena.memory);
    arena_free(&arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_passes),
        cmocka_unit_test(test_nothing_counted),
        cmocka_unit_test(test_overflow_is_refused),
        cmocka_unit_test(test_more_than_there_is),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
