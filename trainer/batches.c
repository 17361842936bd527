/* Groups by first fit decreasing (Johnson 1973): at most 11/9 of the fewest there could be. Filled one group after the
 * other, which gives the same ones: a group gets what an earlier one has no room for. */
#include "trainer/batches.h"

/* As the packer counts: nothing is predicted from the last token. */
static size_t length_of(const struct example_set *set, size_t row) { return set->items[row].n - 1; }

size_t batches_end(const struct example_set *set, const size_t *rows, size_t from, size_t n, size_t T_max) {
    size_t tokens = 0;
    for (size_t at = from; at < n; at++) {
        tokens += length_of(set, rows[at]);
        if (at > from && tokens > T_max) return at;
    }
    return n;
}

/* Longer, or as long and of a lower key: the key is its content's, so its place does not hang on numbers of rows. */
static int comes_before(const struct example_set *set, size_t a, size_t b) {
    size_t n = length_of(set, a), m = length_of(set, b);
    return n != m ? n > m : set->items[a].key < set->items[b].key;
}

void batches_order(const struct example_set *set, size_t *rows, size_t n, size_t T_max) {
    size_t room = T_max;
    for (size_t at = 0; at < n;) {
        size_t best = n;
        for (size_t i = at; i < n; i++)
            if (length_of(set, rows[i]) <= room && (best == n || comes_before(set, rows[i], rows[best]))) best = i;
        if (best == n && room < T_max) {
            room = T_max;
            continue;
        }
        if (best == n) best = at; /* too long for any: a group of its own */
        size_t row = rows[best], taken = length_of(set, row);
        rows[best] = rows[at];
        rows[at++] = row;
        room = taken < room ? room - taken : 0;
    }
}
