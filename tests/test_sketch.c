/* Sketches: pinned values, and what they are for: near-duplicates are found, unrelated texts are not, and the
 * estimate agrees with the exact similarity. All randomness is seeded: a test passes always or never. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/random.h"
#include "datastore/sketch.h"
#include "tests/golden_file.h"

static const unsigned char ZERO[SKETCH_KEY_BYTES], KEY[SKETCH_KEY_BYTES] = "fifteen letters";

static int candidates(const struct sketch *a, const struct sketch *b) {
    int common = 0;
    for (int i = 0; i < SKETCH_BANDS; i++)
        for (int j = 0; j < SKETCH_BANDS; j++) common |= a->band[i] == b->band[j];
    return common;
}

static struct sketch sketch_of(const char *text, const unsigned char *key) {
    struct sketch s;
    sketch_make(text, strlen(text), key, &s);
    return s;
}

static void assert_same(const struct sketch *a, const struct sketch *b) {
    assert_memory_equal(a->minimum, b->minimum, sizeof a->minimum);
    assert_memory_equal(a->band, b->band, sizeof a->band);
    assert_true(sketch_similarity(a, b) == 1);
}

/* ---- the definition ---- */

static void pinned_values(void **state) {
    (void)state;
    struct golden golden = golden_open("sketch.bin");
    uint32_t texts = golden_u32(&golden);
    assert_true(texts > 10);
    for (uint32_t t = 0; t < texts; t++) {
        unsigned char key[SKETCH_KEY_BYTES];
        golden_take(&golden, key, sizeof key);
        uint32_t n = golden_u32(&golden);
        char *text = malloc(n);
        assert_non_null(text);
        golden_take(&golden, text, n);
        struct sketch wanted, made;
        golden_take(&golden, wanted.minimum, sizeof wanted.minimum);
        golden_take(&golden, wanted.band, sizeof wanted.band);
        sketch_make(text, n, key, &made);
        assert_same(&made, &wanted);
        free(text);
    }
    assert_true(golden_done(&golden));
    golden_close(&golden);
}

static void bands_are_distinct_and_not_negative(void **state) {
    (void)state;
    static const char *const texts[] = {"a", "abcd", "what is the capital of france", "\xe6\x97\xa5\xe6\x9c\xac"};
    for (size_t t = 0; t < sizeof texts / sizeof *texts; t++) {
        struct sketch s = sketch_of(texts[t], ZERO);
        for (int i = 0; i < SKETCH_BANDS; i++) {
            assert_true(s.band[i] >= 0);
            for (int j = 0; j < i; j++) assert_true(s.band[i] != s.band[j]);
        }
    }
}

static void shingles_are_a_set(void **state) {
    (void)state;
    struct sketch one = sketch_of("aaaaa", KEY), many = sketch_of("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", KEY);
    assert_same(&one, &many);
    struct sketch shorter = sketch_of("aaaa", KEY);
    assert_false(candidates(&one, &shorter));
    /* more of them than are hashed at a time */
    char pattern[4000];
    for (size_t i = 0; i < sizeof pattern - 1; i++) pattern[i] = (char)('a' + i % 7);
    pattern[sizeof pattern - 1] = 0;
    struct sketch far = sketch_of(pattern, KEY);
    pattern[11] = 0;
    struct sketch near = sketch_of(pattern, KEY);
    assert_same(&far, &near);
}

/* The text is all a's, one shingle, so that a single byte at the border shows in every sketch. */
static void only_the_first_16_kib_count(void **state) {
    (void)state;
    enum { LIMIT = 16384, SIZE = LIMIT + 100 };
    char *text = malloc(SIZE);
    assert_non_null(text);
    struct sketch made, letters = sketch_of("aaaaa", KEY), other = sketch_of("aaaaab", KEY),
                        sign = sketch_of("aaaaa\xe2\x82\xac", KEY);
    memset(text, 'a', LIMIT);
    memset(text + LIMIT, 'b', SIZE - LIMIT);
    sketch_make(text, SIZE, KEY, &made);
    assert_same(&made, &letters);
    text[LIMIT - 1] = 'b';
    sketch_make(text, SIZE, KEY, &made);
    assert_same(&made, &other);
    /* a character over the border does not count at all, one that ends on it does */
    text[LIMIT - 1] = 'a';
    for (int over = 1; over <= 2; over++) {
        memcpy(text + LIMIT - 3 + over, "\xe2\x82\xac", 3);
        sketch_make(text, SIZE, KEY, &made);
        assert_same(&made, &letters);
        memset(text + LIMIT - 3 + over, 'a', 3);
    }
    memcpy(text + LIMIT - 3, "\xe2\x82\xac", 3);
    sketch_make(text, SIZE, KEY, &made);
    assert_same(&made, &sign);
    free(text);
}

/* Whatever the bytes are: an exact copy of them, for a sanitizer to watch over. */
static void any_bytes_are_taken(void **state) {
    (void)state;
    static const size_t sizes[] = {0, 1, 2, 4, 5, 6, 19, 255, 1000, 16383, 16384, 16385, 20000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int kind = 0; kind < 4; kind++) {
            size_t n = sizes[i];
            char *text = malloc(n ? n : 1);
            assert_non_null(text);
            for (size_t at = 0; at < n; at++) {
                unsigned char random = (unsigned char)random_u64(i, at);
                text[at] = (char)(kind == 0 ? 0x80 : kind == 1 ? 0xf0 : kind == 2 ? 0 : random);
            }
            struct sketch a, b;
            sketch_make(text, n, KEY, &a);
            sketch_make(text, n, KEY, &b);
            assert_same(&a, &b);
            free(text);
        }
}

/* ---- made-up texts, as code points ---- */

enum { LONGEST = 1024 };
struct points {
    uint32_t at[LONGEST];
    size_t n;
};

static struct sketch sketch_points(const struct points *p, const unsigned char *key) {
    char text[3 * LONGEST];
    size_t n = 0;
    for (size_t i = 0; i < p->n; i++) {
        uint32_t c = p->at[i];
        if (c < 0x80) {
            text[n++] = (char)c;
        } else if (c < 0x800) {
            text[n++] = (char)(0xc0 | c >> 6);
            text[n++] = (char)(0x80 | (c & 63));
        } else {
            text[n++] = (char)(0xe0 | c >> 12);
            text[n++] = (char)(0x80 | (c >> 6 & 63));
            text[n++] = (char)(0x80 | (c & 63));
        }
    }
    struct sketch s;
    sketch_make(text, n, key, &s);
    return s;
}

static struct points points_of(const char *ascii) {
    struct points p = {.n = strlen(ascii)};
    for (size_t i = 0; i < p.n; i++) p.at[i] = (unsigned char)ascii[i];
    return p;
}

static uint64_t drawn; /* of the random numbers of the test that runs */
static size_t draw(size_t below) { return (size_t)(random_u64(2024, drawn++) % below); }

/* Mostly a to z, some of two bytes, a few of three. */
static uint32_t letter(void) {
    size_t kind = draw(20);
    return (uint32_t)(kind == 0 ? 0x4e00 + draw(50) : kind < 3 ? 0xe0 + draw(20) : 'a' + draw(26));
}

static void put_word(struct points *p, size_t at, size_t letters) {
    assert_true(p->n + letters + 1 <= LONGEST && at <= p->n);
    memmove(p->at + at + letters + 1, p->at + at, (p->n - at) * sizeof *p->at);
    for (size_t i = 0; i < letters; i++) p->at[at + i] = letter();
    p->at[at + letters] = ' ';
    p->n += letters + 1;
}

static struct points made_up(size_t length) {
    struct points p = {.n = 0};
    while (p.n < length) put_word(&p, p.n, 2 + draw(8));
    p.n = length;
    return p;
}

static size_t word_start(const struct points *p, size_t at) {
    while (at > 0 && p->at[at - 1] != ' ') at--;
    return at;
}

/* A letter replaced, dropped or put in. */
static void typo(struct points *p) {
    size_t at = draw(p->n), kind = draw(3);
    if (kind == 0) {
        p->at[at] = letter();
    } else if (kind == 1 && p->n > 10) {
        memmove(p->at + at, p->at + at + 1, (p->n - at - 1) * sizeof *p->at);
        p->n--;
    } else {
        put_word(p, at, 1);
        memmove(p->at + at + 1, p->at + at + 2, (p->n - at - 2) * sizeof *p->at);
        p->n--;
    }
}

static int by_content(const void *a, const void *b) { return memcmp(a, b, 5 * sizeof(uint32_t)); }

static size_t shingles(const struct points *p, uint32_t out[LONGEST][5]) {
    size_t n = 0;
    for (size_t i = 0; i + 5 <= p->n; i++) memcpy(out[i], p->at + i, sizeof *out);
    qsort(out, p->n - 4, sizeof *out, by_content);
    for (size_t i = 0; i + 5 <= p->n; i++)
        if (n == 0 || by_content(out[i], out[n - 1]) != 0) memmove(out[n++], out[i], sizeof *out);
    return n;
}

static double jaccard(const struct points *a, const struct points *b) {
    static uint32_t of_a[LONGEST][5], of_b[LONGEST][5];
    size_t n = shingles(a, of_a), m = shingles(b, of_b), common = 0;
    for (size_t i = 0, j = 0; i < n && j < m;) {
        int order = by_content(of_a[i], of_b[j]);
        common += order == 0;
        i += order <= 0;
        j += order >= 0;
    }
    return (double)common / (double)(n + m - common);
}

/* ---- what it is for ---- */

/* Over pairs of every similarity: no bias, the variance of 64 independent draws, and the share of pairs with a band
 * in common that 8 bands of 4 rows give. */
static void estimate_agrees_with_the_exact_similarity(void **state) {
    (void)state;
    enum { PAIRS = 2000 };
    double error = 0, spread = 0, found = 0, expected = 0, variance = 0;
    drawn = 0;
    for (int pair = 0; pair < PAIRS; pair++) {
        struct points a = made_up(50 + draw(350)), b = a;
        unsigned char key[SKETCH_KEY_BYTES];
        for (size_t i = 0; i < sizeof key; i++) key[i] = (unsigned char)draw(256);
        double target = 0.3 + 0.65 * (double)draw(1000) / 1000;
        while (jaccard(&a, &b) > target) draw(4) == 0 ? put_word(&b, draw(b.n), 2 + draw(7)) : typo(&b);
        struct sketch s = sketch_points(&a, key), t = sketch_points(&b, key);
        double j = jaccard(&a, &b), estimate = sketch_similarity(&s, &t), band = 1 - pow(1 - pow(j, 4), 8);
        assert_true(fabs(estimate - j) < 0.3);
        error += estimate - j;
        spread += (estimate - j) * (estimate - j) / (j * (1 - j) / SKETCH_HASHES);
        found += candidates(&s, &t);
        expected += band;
        variance += band * (1 - band);
    }
    error /= PAIRS;
    spread /= PAIRS;
    /* five standard deviations each */
    if (fabs(error) > 0.0065) fail_msg("bias %.4f", error);
    if (fabs(spread - 1) > 0.16) fail_msg("variance %.3f of the binomial one", spread);
    if (fabs(found - expected) > 5 * sqrt(variance)) fail_msg("%.0f candidates, %.0f expected", found, expected);
}

/* Of pairs that differ by one edit of a kind, the share that is found: a band in common and near. */
static double share_found(size_t shortest, size_t longest, void (*edit)(struct points *)) {
    enum { PAIRS = 500 };
    int found = 0;
    drawn = 0;
    for (int pair = 0; pair < PAIRS; pair++) {
        struct points a = made_up(shortest + draw(longest - shortest)), b = a;
        edit(&b);
        struct sketch s = sketch_points(&a, KEY), t = sketch_points(&b, KEY);
        found += candidates(&s, &t) && sketch_similarity(&s, &t) >= SKETCH_NEAR;
    }
    return (double)found / PAIRS;
}

static void added_word(struct points *p) { put_word(p, word_start(p, draw(p->n)), 5); }
static void changed_name(struct points *p) {
    size_t at = draw(p->n - 5);
    for (size_t i = 0; i < 5; i++) p->at[at + i] = letter();
}

static void small_edits_are_found(void **state) {
    (void)state;
    assert_true(share_found(50, 100, typo) > 0.96);
    assert_true(share_found(50, 100, added_word) > 0.93);
    assert_true(share_found(70, 120, changed_name) > 0.93);
    assert_true(share_found(100, 400, typo) > 0.995);
    assert_true(share_found(100, 400, added_word) > 0.995);
    assert_true(share_found(120, 400, changed_name) > 0.99);
}

static void requests_that_people_repeat_are_found(void **state) {
    (void)state;
    static const char *const pairs[][2] = {
        {"how do i start a monthly budget when my income changes every month",
         "how do i start a montly budget when my income changes every month"},
        {"please summarise the notes from the meeting of this morning in five short bullet points for the whole team "
         "and name who does what",
         "please summarise the notes from the meeting of this morning in five short bullet points for the whole "
         "marketing team and name who does what"},
        {"write a birthday card for my colleague martina who likes sailing and has just come back from norway",
         "write a birthday card for my colleague thomas who likes sailing and has just come back from norway"},
        {"erkl\xc3\xa4re mir bitte wie ich den r\xc3\xbc\x63kstand in der buchhaltung bis ende m\xc3\xa4rz aufhole",
         "erkl\xc3\xa4re mir bitte wie ich den r\xc3\xbc\x63kstand in der buchhaltung bis ende mai aufhole"},
        {"\xe6\x9d\xb1\xe4\xba\xac\xe3\x81\xae\xe5\xa4\xa9\xe6\xb0\x97\xe3\x82\x92\xe6\x95\x99\xe3\x81\x88\xe3\x81\xa6"
         "\xe3\x81\x8f\xe3\x81\xa0\xe3\x81\x95\xe3\x81\x84\xe3\x81\x8a\xe9\xa1\x98\xe3\x81\x84\xe3\x81\x97\xe3\x81\xbe",
         "\xe6\x9d\xb1\xe4\xba\xac\xe3\x81\xae\xe5\xa4\xa9\xe6\xb0\x97\xe3\x82\x92\xe6\x95\x99\xe3\x81\x88\xe3\x81\xa6"
         "\xe3\x81\x8f\xe3\x81\xa0\xe3\x81\x95\xe3\x81\x84\xe3\x81\x8a\xe9\xa1\x98\xe3\x81\x84\xe3\x81\x97\xe3\x81\xbe"
         "\xe3\x81\x99"}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        struct sketch a = sketch_of(pairs[i][0], ZERO), b = sketch_of(pairs[i][1], ZERO);
        double similarity = sketch_similarity(&a, &b);
        if (!candidates(&a, &b) || similarity < SKETCH_NEAR) fail_msg("pair %zu: similarity %.3f", i, similarity);
        assert_true(similarity < 1);
        assert_true(sketch_similarity(&b, &a) == similarity);
    }
}

/* Requests that share a turn of phrase, or a word, and ask for different things. */
static void unrelated_requests_are_far(void **state) {
    (void)state;
    static const char *const start[] = {"can you ", "please ", "how do i ", "i would like to ",
                                        "what is the best way to "};
    static const char *const verb[] = {"explain ", "translate ", "repair ", "describe ",  "find ",
                                       "plan ",    "compare ",   "cook ",   "calculate ", "remember "};
    static const char *const thing[] = {
        "a bicycle tyre ",     "the budget of last year ", "a letter to the landlord ", "photosynthesis ",
        "my morning routine ", "an old violin ",           "the rules of curling ",     "a quadratic equation ",
        "vegetable soup ",     "two insurance offers "};
    static const char *const end[] = {
        "in simple words", "for my neighbour", "before the weekend", "without spending money",
        "step by step",    "as a poem",        "in spanish",         "on a rainy afternoon"};
    enum { TEXTS = 300 };
    static struct points texts[TEXTS];
    static struct sketch sketches[TEXTS];
    drawn = 0;
    for (int i = 0; i < TEXTS; i++) {
        char text[256];
        snprintf(text, sizeof text, "%s%s%s%s", start[draw(5)], verb[draw(10)], thing[draw(10)], end[draw(8)]);
        texts[i] = points_of(text);
        sketches[i] = sketch_points(&texts[i], KEY);
    }
    int pairs = 0, common = 0;
    for (int i = 0; i < TEXTS; i++)
        for (int j = 0; j < i; j++) {
            if (jaccard(&texts[i], &texts[j]) > 0.15) continue;
            pairs++;
            common += candidates(&sketches[i], &sketches[j]);
            assert_true(sketch_similarity(&sketches[i], &sketches[j]) < 0.45);
        }
    assert_true(pairs > 10000);
    assert_true(common < pairs / 1000);
}

static void order_matters(void **state) {
    (void)state;
    struct sketch a = sketch_of("the landlord sues the tenant over the broken window in the kitchen", KEY),
                  b = sketch_of("kitchen the in window broken the over tenant the sues landlord the", KEY),
                  c = sketch_of("nehctik eht ni wodniw nekorb eht revo tnanet eht seus drolldnal eht", KEY);
    assert_true(sketch_similarity(&a, &b) < SKETCH_NEAR);
    assert_true(sketch_similarity(&a, &b) > 0.2); /* the words are the same */
    assert_true(sketch_similarity(&a, &c) < 0.1);
    assert_false(candidates(&a, &c));
}

static void another_key_gives_an_unrelated_sketch(void **state) {
    (void)state;
    const char *text = "the landlord sues the tenant over the broken window in the kitchen";
    struct sketch under = sketch_of(text, KEY);
    double sum = 0;
    for (int bit = 0; bit < 8 * SKETCH_KEY_BYTES; bit++) {
        unsigned char key[SKETCH_KEY_BYTES];
        memcpy(key, KEY, sizeof key);
        key[bit / 8] ^= (unsigned char)(1 << bit % 8);
        struct sketch other = sketch_of(text, key);
        assert_false(candidates(&under, &other));
        assert_true(sketch_similarity(&under, &other) < 0.1);
        sum += sketch_similarity(&under, &other);
    }
    assert_true(sum < 0.01 * 8 * SKETCH_KEY_BYTES);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pinned_values),
        cmocka_unit_test(bands_are_distinct_and_not_negative),
        cmocka_unit_test(shingles_are_a_set),
        cmocka_unit_test(only_the_first_16_kib_count),
        cmocka_unit_test(any_bytes_are_taken),
        cmocka_unit_test(estimate_agrees_with_the_exact_similarity),
        cmocka_unit_test(small_edits_are_found),
        cmocka_unit_test(requests_that_people_repeat_are_found),
        cmocka_unit_test(unrelated_requests_are_far),
        cmocka_unit_test(order_matters),
        cmocka_unit_test(another_key_gives_an_unrelated_sketch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
