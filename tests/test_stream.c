#include "inference/stream.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#define FFFD "\xEF\xBF\xBD"

/* What a callback got. Every piece must be whole characters. */
struct heard {
    char text[4096];
    size_t n, calls, stop_after; /* stop_after 0: never */
};
static int hear(const char *text, size_t length, void *user) {
    struct heard *h = user;
    assert_true(length > 0 && h->n + length < sizeof h->text);
    assert_int_equal(stream_utf8_valid(text, length), length);
    memcpy(h->text + h->n, text, length);
    h->n += length;
    h->text[h->n] = 0;
    return h->stop_after > 0 && ++h->calls >= h->stop_after;
}

static void add(struct stream *s, const char *bytes, size_t n) {
    /* an exact copy, so that reading past the end is found */
    char *copy = malloc(n ? n : 1);
    attune_error err = {0};
    memcpy(copy, bytes, n);
    assert_int_equal(stream_add(s, copy, n, &err), ATTUNE_OK);
    free(copy);
}

/* bytes[0..n) cut at the two borders gives `expected`. */
static void expect_split(const char *bytes, size_t n, size_t first, size_t second, const char *const *stop,
                         size_t n_stop, const char *expected, int stopped) {
    struct heard heard = {.n = 0};
    struct stream s;
    attune_error err = {0};
    assert_int_equal(stream_open(&s, stop, n_stop, hear, &heard, &err), ATTUNE_OK);
    add(&s, bytes, first);
    add(&s, bytes + first, second - first);
    add(&s, bytes + second, n - second);
    assert_int_equal(s.stopped, stopped);
    assert_int_equal(stream_finish(&s, &err), ATTUNE_OK);
    assert_string_equal(heard.text, expected);
    assert_string_equal(s.text ? s.text : "", expected);
    assert_int_equal(s.n_text, strlen(expected));
    stream_close(&s);
}

/* Every cut into up to three parts, and byte by byte. */
static void expect(const char *bytes, size_t n, const char *const *stop, size_t n_stop, const char *expected,
                   int stopped) {
    for (size_t i = 0; i <= n; i++)
        for (size_t j = i; j <= n; j++) expect_split(bytes, n, i, j, stop, n_stop, expected, stopped);
    struct heard heard = {.n = 0};
    struct stream s;
    attune_error err = {0};
    assert_int_equal(stream_open(&s, stop, n_stop, hear, &heard, &err), ATTUNE_OK);
    for (size_t i = 0; i < n; i++) add(&s, bytes + i, 1);
    assert_int_equal(stream_finish(&s, &err), ATTUNE_OK);
    assert_string_equal(heard.text, expected);
    stream_close(&s);
}
#define EXPECT(bytes, expected) expect(bytes, sizeof(bytes) - 1, NULL, 0, expected, 0)

static void whole_characters_leave(void **state) {
    (void)state;
    EXPECT("", "");
    EXPECT("plain", "plain");
    EXPECT("na\u00efve \u20ac5 \U0001F600 \u4f60\u597d.", "na\u00efve \u20ac5 \U0001F600 \u4f60\u597d.");
}

/* The examples of Unicode's table 3-8 and its neighbours, and NUL. */
static void invalid_bytes_become_replacements(void **state) {
    (void)state;
    EXPECT("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41", FFFD FFFD FFFD FFFD FFFD FFFD FFFD FFFD "A");
    EXPECT("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41", FFFD FFFD FFFD FFFD FFFD FFFD FFFD FFFD "A");
    EXPECT("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42", FFFD FFFD FFFD FFFD FFFD "A" FFFD FFFD "B");
    EXPECT("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", FFFD FFFD FFFD FFFD "A");
    EXPECT("\xE2\x82", FFFD);
    EXPECT("a\xF0\x9F\x98", "a" FFFD);
    EXPECT("\xF0\x9F\x98\xE2\x82\xAC", FFFD "\u20ac");
    EXPECT("a\0b", "a" FFFD "b");
    EXPECT("\xF4\x8F\xBF\xBF\xEE\x80\x80\xED\x9F\xBF", "\xF4\x8F\xBF\xBF\xEE\x80\x80\xED\x9F\xBF");
}

static void stop_strings_end_the_text(void **state) {
    (void)state;
    static const struct {
        const char *bytes, *stop[3], *expected;
        int stopped;
    } cases[] = {
        {"hello END more", {"END"}, "hello ", 1},
        {"hello EN", {"END"}, "hello EN", 0},
        {"hello ENEND", {"END"}, "hello EN", 1},
        {"END", {"END"}, "", 1},
        {"aaab", {"aab"}, "a", 1},
        {"abababac", {"ababac"}, "ab", 1},
        {"xaabaaabaaac!", {"aabaaac"}, "xaaba", 1},
        {"xyz\n\nUser: hi", {"\nUser:", "Assistant"}, "xyz\n", 1},
        {"one two", {"three", "four", "five"}, "one two", 0},
        /* the one that ends first, and of those the longest */
        {"abcd", {"abcd", "bc"}, "a", 1},
        {"abcd", {"bc", "abc", "c"}, "", 1},
        {"abx abc", {"abc"}, "abx ", 1},
        /* characters of several bytes, sharing bytes with their neighbours */
        {"caf\u00e9 \u20ac\u20ad!", {"\u20ad"}, "caf\u00e9 \u20ac", 1},
        {"\u20ac\u20ac\u20ad.", {"\u20ac\u20ad"}, "\u20ac", 1},
        {"\u20ac\u20ac\u20ad.", {"\u20ac\u20ae"}, "\u20ac\u20ac\u20ad.", 0},
        {"\U0001F600\U0001F601", {"\U0001F601"}, "\U0001F600", 1},
        /* stop strings that overlap: each other, themselves, or one as a part of another */
        {"ababa", {"aba"}, "", 1},
        {"abbaba", {"aba"}, "abb", 1},
        {"STOPEN", {"STOP", "OPEN"}, "", 1},
        {"STOOPEN", {"STOP", "OPEN"}, "STO", 1},
        {"x\n\nUser", {"\n\nUser:", "\n\n"}, "x", 1},
        {"x\nUser", {"\n\nUser", "\nUser:"}, "x\nUser", 0},
        {"aaaab", {"aaab", "aaaac"}, "a", 1},
        {"aaaa", {"aaaaa", "aaaab"}, "aaaa", 0},
        {"abcabx", {"abcabc", "bcaby", "cabx"}, "ab", 1},
        /* what the replacement makes is text like other text */
        {"a\xFF" "bEND", {"END", FFFD "x"}, "a" FFFD "b", 1},
        {"a\xFF" "x", {FFFD "x"}, "a", 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t n_stop = 0;
        while (n_stop < 3 && cases[i].stop[n_stop]) n_stop++;
        expect(cases[i].bytes, strlen(cases[i].bytes), cases[i].stop, n_stop, cases[i].expected, cases[i].stopped);
    }
}

/* Character by character, as a person would look: the first end of a stop string, and of those there the longest. */
static size_t plain_end(const char *text, const char *const *stop, size_t n_stop, int *stopped) {
    size_t n = strlen(text), cut = 0;
    *stopped = 0;
    for (size_t end = 1; end <= n && !*stopped; end++)
        for (size_t i = 0; i < n_stop; i++) {
            size_t length = strlen(stop[i]);
            if (length > end || memcmp(text + end - length, stop[i], length) != 0) continue;
            if (!*stopped || end - length < cut) cut = end - length;
            *stopped = 1;
        }
    return *stopped ? cut : n;
}

/* How much of the end of n bytes a stop string may begin with. */
static size_t plain_held(const char *text, size_t n, const char *const *stop, size_t n_stop) {
    size_t held = 0;
    for (size_t i = 0; i < n_stop; i++)
        for (size_t length = 1; length < strlen(stop[i]) && length <= n; length++)
            if (length > held && memcmp(text + n - length, stop[i], length) == 0) held = length;
    return held;
}

static unsigned roll(unsigned *state, unsigned n) {
    *state = *state * 1664525u + 1013904223u;
    return (*state >> 8) % n;
}

/* Words over three characters, one of them of two bytes: full of near matches. */
static void make_word(char *out, unsigned n, unsigned *state) {
    *out = 0;
    for (unsigned i = 0; i < n; i++) strcat(out, (const char *const[]){"a", "b", "\u00e9"}[roll(state, 3)]);
}

static void any_stop_strings_end_any_text(void **state) {
    (void)state;
    unsigned random = 1;
    int found = 0;
    for (int round = 0; round < 3000; round++) {
        char text[128], stops[6][16];
        const char *stop[6];
        unsigned n_stop = 1 + roll(&random, 6);
        make_word(text, roll(&random, 40), &random);
        for (unsigned i = 0; i < n_stop; i++) {
            make_word(stops[i], 1 + roll(&random, 7), &random);
            stop[i] = stops[i];
        }
        int stopped;
        size_t n = strlen(text), end = plain_end(text, stop, n_stop, &stopped);
        struct heard heard = {.n = 0};
        struct stream s;
        attune_error err = {0};
        assert_int_equal(stream_open(&s, stop, n_stop, hear, &heard, &err), ATTUNE_OK);
        for (size_t at = 0, more; at < n; at += more) {
            more = 1 + roll(&random, 5);
            if (more > n - at) more = n - at;
            add(&s, text + at, more);
            /* nothing but what may begin a stop string, or half a character, waits */
            size_t whole = stream_utf8_valid(text, at + more);
            if (!s.stopped) assert_int_equal(heard.n, whole - plain_held(text, whole, stop, n_stop));
        }
        assert_int_equal(stream_finish(&s, &err), ATTUNE_OK);
        assert_int_equal(s.stopped, stopped);
        assert_int_equal(heard.n, end);
        assert_memory_equal(heard.text, text, end);
        assert_int_equal(strlen(s.text ? s.text : ""), end);
        stream_close(&s);
        found += stopped;
    }
    assert_in_range(found, 300, 2900);
}

static void many_stop_strings(void **state) {
    (void)state;
    enum { MANY = 1000 };
    static char texts[MANY][24];
    static const char *stop[MANY];
    for (int i = 0; i < MANY; i++) {
        snprintf(texts[i], sizeof texts[i], "<stop %d>", i);
        stop[i] = texts[i];
    }
    expect("a <stop> <stop 1000> <stop 42", 29, stop, MANY, "a <stop> <stop 1000> <stop 42", 0);
    expect("a <stop 1000> <stop 999> b", 26, stop, MANY, "a <stop 1000> ", 1);
}

/* Whatever the bytes and the borders: whole characters, and the same ones. hear() checks that they are valid. */
static void any_bytes_become_characters(void **state) {
    (void)state;
    static const unsigned char likely[] = {0x41, 0x80, 0xBF, 0xC2, 0xE0, 0xA0, 0xED, 0x9F, 0xF0, 0x90, 0xF4, 0x8F, 0};
    unsigned random = 7;
    for (int round = 0; round < 3000; round++) {
        char bytes[24], once[128];
        size_t n = roll(&random, sizeof bytes + 1);
        for (size_t i = 0; i < n; i++)
            bytes[i] = (char)(roll(&random, 2) ? likely[roll(&random, sizeof likely)] : roll(&random, 256));
        struct heard heard = {.n = 0};
        struct stream s;
        attune_error err = {0};
        assert_int_equal(stream_open(&s, NULL, 0, hear, &heard, &err), ATTUNE_OK);
        add(&s, bytes, n);
        assert_int_equal(stream_finish(&s, &err), ATTUNE_OK);
        memcpy(once, heard.text, heard.n + 1);
        stream_close(&s);
        size_t cut = n ? roll(&random, (unsigned)n + 1) : 0;
        expect_split(bytes, n, cut / 2, cut, NULL, 0, once, 0);
        assert_int_equal(memchr(bytes, 0, n) || stream_utf8_valid(bytes, n) < n, strstr(once, FFFD) != NULL);
    }
}

/* A stop string begins with one token and the next one breaks it off, or the end of the answer does. */
static void what_was_held_back_goes_out(void **state) {
    (void)state;
    const char *stop[] = {"</answer>"};
    struct heard heard = {.n = 0};
    struct stream s;
    attune_error err = {0};
    assert_int_equal(stream_open(&s, stop, 1, hear, &heard, &err), ATTUNE_OK);
    add(&s, "x </", 4);
    assert_string_equal(heard.text, "x ");
    add(&s, "ans", 3);
    assert_string_equal(heard.text, "x ");
    add(&s, "<", 1);
    assert_string_equal(heard.text, "x </ans");
    add(&s, "/b> </answer", 12);
    assert_string_equal(heard.text, "x </ans</b> ");
    add(&s, "\xC3", 1); /* half a character decides nothing */
    assert_string_equal(heard.text, "x </ans</b> ");
    assert_int_equal(stream_finish(&s, &err), ATTUNE_OK);
    assert_string_equal(heard.text, "x </ans</b> </answer" FFFD);
    assert_string_equal(s.text, heard.text);
    assert_int_equal(s.stopped, 0);
    stream_close(&s);
}

/* The end turns half a character into U+FFFD, which may complete a stop string. */
static void a_stop_string_at_the_end(void **state) {
    (void)state;
    const char *stop[] = {"a" FFFD};
    struct stream s;
    attune_error err = {0};
    assert_int_equal(stream_open(&s, stop, 1, NULL, NULL, &err), ATTUNE_OK);
    add(&s, "xa\xE2\x82", 4);
    assert_int_equal(s.n_text, 1);
    assert_int_equal(stream_finish(&s, &err), ATTUNE_OK);
    assert_int_equal(s.stopped, 1);
    assert_string_equal(s.text, "x");
    stream_close(&s);
}

/* Text goes out as soon as it is decided: nothing is held without a reason. */
static void text_is_held_only_while_undecided(void **state) {
    (void)state;
    const char *stop[] = {"STOP", "TOE"};
    struct heard heard = {.n = 0};
    struct stream s;
    attune_error err = {0};
    assert_int_equal(stream_open(&s, stop, 2, hear, &heard, &err), ATTUNE_OK);
    add(&s, "go S", 4);
    assert_string_equal(heard.text, "go ");
    add(&s, "T", 1);
    assert_string_equal(heard.text, "go ");
    add(&s, "x", 1);
    assert_string_equal(heard.text, "go STx");
    add(&s, "\xE2\x82", 2);
    assert_string_equal(heard.text, "go STx");
    add(&s, "\xAC", 1);
    assert_string_equal(heard.text, "go STx\u20ac");
    add(&s, "STO", 3);
    assert_string_equal(heard.text, "go STx\u20ac");
    add(&s, "E", 1);
    assert_int_equal(s.stopped, 1);
    assert_string_equal(heard.text, "go STx\u20acS");
    add(&s, "ignored", 7);
    assert_int_equal(stream_finish(&s, &err), ATTUNE_OK);
    assert_string_equal(heard.text, "go STx\u20acS");
    assert_string_equal(s.text, heard.text);
    stream_close(&s);
}

static void the_callback_stops(void **state) {
    (void)state;
    const char *stop[] = {"two three"};
    struct heard heard = {.stop_after = 2};
    struct stream s;
    attune_error err = {0};
    assert_int_equal(stream_open(&s, stop, 1, hear, &heard, &err), ATTUNE_OK);
    assert_int_equal(stream_add(&s, "one", 3, &err), ATTUNE_OK);
    assert_int_equal(stream_add(&s, "; tw", 4, &err), ATTUNE_ERROR_CANCELLED);
    assert_int_equal(stream_add(&s, "more", 4, &err), ATTUNE_ERROR_CANCELLED);
    assert_int_equal(err.code, 0);
    assert_int_equal(stream_finish(&s, &err), ATTUNE_OK);
    assert_string_equal(heard.text, "one; ");
    assert_string_equal(s.text, "one; ");
    stream_close(&s);
}

static void reserved_text_does_not_move(void **state) {
    (void)state;
    struct stream s;
    attune_error err = {0};
    assert_int_equal(stream_open(&s, NULL, 0, NULL, NULL, &err), ATTUNE_OK);
    assert_int_equal(stream_reserve(&s, 1000, &err), ATTUNE_OK);
    const char *text = s.text;
    for (int i = 0; i < 1000; i++) add(&s, "x", 1);
    assert_ptr_equal(s.text, text);
    assert_int_equal(s.capacity, 1001);
    for (int i = 0; i < 5000; i++) add(&s, "y", 1);
    assert_int_equal(stream_finish(&s, &err), ATTUNE_OK);
    assert_int_equal(strlen(s.text), 6000);
    assert_int_equal(stream_reserve(&s, SIZE_MAX, &err), ATTUNE_ERROR_MEMORY);
    stream_close(&s);
}

static void bad_stop_strings_are_refused(void **state) {
    (void)state;
    static const char *const bad[] = {"", NULL, "\xFF", "abc\xE2\x82"};
    for (size_t i = 0; i < 4; i++) {
        const char *stop[] = {"fine", bad[i]};
        struct stream s;
        attune_error err = {0};
        assert_int_equal(stream_open(&s, stop, 2, NULL, NULL, &err), ATTUNE_ERROR_ARGUMENT);
        assert_non_null(strstr(err.message, "stop[1]"));
        stream_close(&s);
    }
    struct stream s;
    attune_error err = {0};
    assert_int_equal(stream_open(&s, NULL, 1, NULL, NULL, &err), ATTUNE_ERROR_ARGUMENT);
    stream_close(&s);
}

static void valid_prefixes_are_measured(void **state) {
    (void)state;
    assert_int_equal(stream_utf8_valid("", 0), 0);
    assert_int_equal(stream_utf8_valid("a\0b", 3), 3);
    assert_int_equal(stream_utf8_valid("\u20ac\U0001F600x", 8), 8);
    assert_int_equal(stream_utf8_valid("\u20ac\U0001F600x", 6), 3);
    assert_int_equal(stream_utf8_valid("ab\x80" "cd", 5), 2);
    assert_int_equal(stream_utf8_valid("ab\xE2\x28\xA1", 5), 2);
    assert_int_equal(stream_utf8_valid("\xED\xA0\x80", 3), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_characters_leave),
        cmocka_unit_test(invalid_bytes_become_replacements),
        cmocka_unit_test(stop_strings_end_the_text),
        cmocka_unit_test(any_stop_strings_end_any_text),
        cmocka_unit_test(many_stop_strings),
        cmocka_unit_test(any_bytes_become_characters),
        cmocka_unit_test(what_was_held_back_goes_out),
        cmocka_unit_test(a_stop_string_at_the_end),
        cmocka_unit_test(text_is_held_only_while_undecided),
        cmocka_unit_test(the_callback_stops),
        cmocka_unit_test(reserved_text_does_not_move),
        cmocka_unit_test(bad_stop_strings_are_refused),
        cmocka_unit_test(valid_prefixes_are_measured),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
