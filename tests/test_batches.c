/* Conversations that go through the layers together: few groups, none too large, and the same ones in whatever order
 * the rows came. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/random.h"
#include "trainer/batches.h"

enum { ROWS = 40, T_MAX = 100 };

/* Lengths as the packer counts: one less than tokens. */
static struct example_set set_of(const size_t *lengths, size_t n, struct example *items) {
    memset(items, 0, n * sizeof *items);
    for (size_t i = 0; i < n; i++) {
        items[i].n = lengths[i] + 1;
        items[i].key = random_u64(5, i);
    }
    return (struct example_set){.items = items, .n = n};
}

static size_t groups_of(const struct example_set *set, const size_t *rows, size_t n, size_t *tokens) {
    size_t groups = 0;
    for (size_t at = 0, end; at < n; at = end, groups++) {
        end = batches_end(set, rows, at, n, T_MAX);
        assert_true(end > at && end <= n);
        tokens[groups] = 0;
        for (size_t i = at; i < end; i++) tokens[groups] += set->items[rows[i]].n - 1;
        assert_true(tokens[groups] <= T_MAX || end == at + 1);
    }
    return groups;
}

/* In turn: 60, 50 + 40, 40 + 50; ordered: 60 + 40, 50 + 50, 40. */
static void test_groups_are_filled(void **state) {
    (void)state;
    static const size_t lengths[] = {60, 50, 40, 40, 50, 30, 30};
    struct example items[7];
    struct example_set set = set_of(lengths, 7, items);
    size_t rows[] = {0, 1, 2, 3, 4, 5, 6}, tokens[7];
    assert_int_equal(groups_of(&set, rows, 7, tokens), 4);
    batches_order(&set, rows, 7, T_MAX);
    assert_int_equal(groups_of(&set, rows, 7, tokens), 3);
    static const size_t wanted[] = {100, 100, 100};
    assert_memory_equal(tokens, wanted, sizeof wanted);
    static const size_t longest[] = {60, 40, 50, 50, 40, 30, 30};
    for (size_t i = 0; i < 7; i++) assert_int_equal(lengths[rows[i]], longest[i]);
}

static void test_any_order_gives_the_same(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 50; seed++) {
        size_t lengths[ROWS], rows[ROWS], first[ROWS], tokens[ROWS], all = 0;
        struct example items[ROWS];
        for (size_t i = 0; i < ROWS; i++) {
            lengths[i] = 1 + (size_t)random_u64(seed, i) % (seed % 2 ? T_MAX : 8); /* ties too */
            all += lengths[i];
        }
        struct example_set set = set_of(lengths, ROWS, items);
        for (size_t i = 0; i < ROWS; i++) rows[i] = first[i] = i;
        size_t in_turn = groups_of(&set, rows, ROWS, tokens);
        batches_order(&set, first, ROWS, T_MAX);
        size_t groups = groups_of(&set, first, ROWS, tokens), seen[ROWS] = {0};
        assert_true(groups <= in_turn && groups * T_MAX >= all);
        for (size_t i = 0; i < ROWS; i++) assert_int_equal(seen[first[i]]++, 0);
        for (size_t shuffle = 0; shuffle < 5; shuffle++) {
            for (size_t i = ROWS - 1; i > 0; i--) {
                size_t j = (size_t)random_u64(seed * 5 + shuffle, i) % (i + 1), row = rows[i];
                rows[i] = rows[j];
                rows[j] = row;
            }
            batches_order(&set, rows, ROWS, T_MAX);
            assert_memory_equal(rows, first, sizeof rows);
        }
    }
}

/* One row, none, and one that no group has room for. */
static void test_edges(void **state) {
    (void)state;
    static const size_t lengths[] = {20, T_MAX + 30, 30};
    struct example items[3];
    struct example_set set = set_of(lengths, 3, items);
    size_t rows[] = {0, 1, 2}, tokens[3];
    batches_order(&set, rows, 0, T_MAX);
    assert_int_equal(batches_end(&set, rows, 0, 0, T_MAX), 0);
    batches_order(&set, rows, 1, T_MAX);
    assert_int_equal(rows[0], 0);
    batches_order(&set, rows, 3, T_MAX);
    assert_int_equal(groups_of(&set, rows, 3, tokens), 2);
    assert_int_equal(tokens[0] + tokens[1], 180);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_groups_are_filled),
        cmocka_unit_test(test_any_order_gives_the_same),
        cmocka_unit_test(test_edges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
