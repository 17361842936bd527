#include "tests/tiny_training.h"
#include "trainer/batches.h"

/* Conversations of given lengths, by hand: ids 100 s + i, the last `supervised` of them to be learned. */
static struct example_set by_hand(const size_t (*lengths)[2], size_t n) {
    struct example_set set = {.items = calloc(n, sizeof *set.items), .n = n, .capacity = n};
    for (size_t s = 0; s < n; s++) {
        struct example *e = &set.items[s];
        e->n = lengths[s][0];
        e->n_supervised = lengths[s][1];
        e->key = 1000 + s;
        e->ids = calloc(e->n, sizeof *e->ids);
        e->supervised = calloc(e->n, 1);
        for (size_t i = 0; i < e->n; i++) {
            e->ids[i] = (int32_t)(100 * s + i);
            e->supervised[i] = i + e->n_supervised >= e->n;
        }
    }
    return set;
}
static const size_t lengths[][2] = {{5, 2}, {2, 1}, {9, 3}, {4, 3}, {8, 7}, {3, 1}};
enum { N = sizeof lengths / sizeof *lengths };

static struct packer *make(size_t T_max) {
    struct packer *packer = NULL;
    OK(packer_create(T_max, &packer, &err));
    assert_true(packer_bytes(T_max) >= T_max * (4 * 3 + 2 * sizeof(float) + sizeof(uint64_t)));
    return packer;
}

static void check_sequence(const struct packer *p, size_t s, const struct example *e, double weight) {
    size_t from = p->batch.starts[s];
    double sum = 0;
    assert_int_equal(p->batch.starts[s + 1] - from, e->n - 1);
    for (size_t i = 0; i + 1 < e->n; i++) {
        assert_int_equal(p->batch.tokens[from + i], e->ids[i]);
        assert_int_equal(p->batch.positions[from + i], i);
        assert_int_equal(p->batch.targets[from + i], e->supervised[i + 1] ? e->ids[i + 1] : -1);
        if (p->batch.targets[from + i] >= 0) {
            sum += (double)p->batch.weights[from + i];
            assert_float_equal(p->batch.weights[from + i], weight / (double)e->n_supervised, 1e-7);
        }
    }
    assert_true(fabs(sum - weight) < 1e-6);
}

/* Whatever fits, in order, each conversation whole and once. */
static void test_fill(void **state) {
    (void)state;
    struct example_set set = by_hand(lengths, N);
    static const size_t rows[] = {3, 0, 2, 2, 5, 1, 4};
    enum { COUNT = sizeof rows / sizeof *rows };
    static const double weights[COUNT] = {0.25, -0.5, 1, 0, 0.125, 0.75, -1};
    for (size_t T_max = 8; T_max <= 40; T_max++) {
        struct packer *p = make(T_max);
        size_t at = 0, batches = 0;
        while (at < COUNT) {
            size_t before = at, T = 0;
            size_t reach = batches_end(&set, rows, at, COUNT, T_max);
            at = packer_fill(p, &set, rows, at, COUNT, weights, 7);
            assert_int_equal(reach, at);
            assert_true(at > before);
            assert_int_equal(p->batch.n_sequences, at - before);
            assert_int_equal(p->batch.starts[0], 0);
            for (size_t s = 0; s < p->batch.n_sequences; s++) {
                assert_int_equal(p->rows[s], before + s);
                check_sequence(p, s, &set.items[rows[before + s]], weights[before + s]);
                T += set.items[rows[before + s]].n - 1;
            }
            assert_int_equal(p->batch.T, T);
            assert_true(T <= T_max);
            if (at < COUNT) assert_true(T + set.items[rows[at]].n - 1 > T_max);
            batches++;
        }
        assert_int_equal(at, COUNT);
        if (T_max == 40) assert_int_equal(batches, 1);
        if (T_max == 8) assert_int_equal(batches, 5); /* 3+4, 8, 8, 2+1, 7 */
        assert_int_equal(packer_fill(p, &set, rows, COUNT, COUNT, NULL, 0), COUNT);
        assert_int_equal(p->batch.T + p->batch.n_sequences, 0);
        packer_destroy(p);
    }
    example_set_free(&set);
}

/* Dropout is keyed by conversation, place in it and step: not by what it is packed with. */
static void test_keys(void **state) {
    (void)state;
    struct example_set set = by_hand(lengths, N);
    static const size_t alone[] = {2}, together[] = {0, 4, 2};
    struct packer *a = make(64), *b = make(64);
    packer_fill(a, &set, alone, 0, 1, NULL, 7);
    packer_fill(b, &set, together, 0, 3, NULL, 7);
    size_t n = a->batch.T, from = b->batch.starts[2];
    assert_int_equal(n, 8);
    assert_memory_equal(a->batch.keys, b->batch.keys + from, n * sizeof *a->batch.keys);
    for (size_t i = 0; i < b->batch.T; i++)
        for (size_t j = 0; j < i; j++) assert_true(b->batch.keys[i] != b->batch.keys[j]);
    packer_fill(b, &set, alone, 0, 1, NULL, 8);
    for (size_t i = 0; i < n; i++) assert_true(a->batch.keys[i] != b->batch.keys[i]);
    packer_destroy(a);
    packer_destroy(b);
    example_set_free(&set);
}

static void test_loss(void **state) {
    (void)state;
    struct example_set set = by_hand(lengths, N);
    static const size_t rows[] = {0, 1, 2};
    struct packer *p = make(64);
    packer_fill(p, &set, rows, 0, 3, NULL, 7);
    for (size_t t = 0; t < p->batch.T; t++) p->losses[t] = (float)(1 << t);
    assert_float_equal(packer_loss(p, 0), 15, 0);
    assert_float_equal(packer_loss(p, 1), 16, 0);
    assert_float_equal(packer_loss(p, 2), (1 << 13) - 32, 0);
    packer_destroy(p);
    packer_destroy(NULL);
    example_set_free(&set);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_fill), cmocka_unit_test(test_keys),
                                       cmocka_unit_test(test_loss)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
