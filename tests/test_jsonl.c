/* JSON Lines without a store: what is read, what is refused and how, and that an export loses nothing. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/random.h"
#include "tests/expect.h"
#include "tests/jsonl_rows.h"

#define ID "018f4e3a-5b6c-7d8e-9fa0-b1c2d3e4f506"
#define GOOD "{\"prompt\":\"a\",\"response\":\"b\"}"

/* ---- allocations that fail ----
 * Not under a sanitizer, which has an allocator of its own. */
#if defined(__has_feature)
#define HAS_FEATURE(x) __has_feature(x)
#else
#define HAS_FEATURE(x) 0
#endif
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) &&                           \
    !HAS_FEATURE(address_sanitizer) && !HAS_FEATURE(thread_sanitizer) && !HAS_FEATURE(memory_sanitizer)
#define CAN_FAIL 1

#pragma GCC visibility push(default) /* jansson is to meet these, too */
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t each);
void *__libc_realloc(void *old, size_t n);
void __libc_free(void *block);

static size_t allocations, failing; /* failing: the number of the one that fails; 0: none */
static int64_t live, watching;      /* live: blocks taken and not given back while watching */

static int fails(void) { return watching && ++allocations == failing; }

void *malloc(size_t n) {
    void *block = fails() ? NULL : __libc_malloc(n);
    live += watching && block;
    return block;
}
void *calloc(size_t n, size_t each) {
    void *block = fails() ? NULL : __libc_calloc(n, each);
    live += watching && block;
    return block;
}
void *realloc(void *old, size_t n) {
    void *block = fails() ? NULL : __libc_realloc(old, n);
    live += watching && block && !old;
    return block;
}
void free(void *block) {
    live -= watching && block;
    __libc_free(block);
}
#pragma GCC visibility pop
#endif

/* ---- helpers ---- */

static char path[] = "/tmp/test_jsonl_XXXXXX";

static int make_file(void **state) {
    (void)state;
    int fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd);
}
static int remove_file(void **state) {
    (void)state;
    return unlink(path);
}

static void write_bytes(const char *bytes, size_t n) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
}

static void check_error(const attune_error *err, int code, int wanted, const char *word, const char *where) {
    if (code != wanted || err->code != wanted) fail_msg("%d (%d) in place of %d: %s", code, err->code, wanted, word);
    if (!strstr(err->message, word)) fail_msg("no '%s' in: %s", word, err->message);
    if (!strstr(err->where, where)) fail_msg("no '%s' in: %s", where, err->where);
    if (strstr(err->message, "SECRET")) fail_msg("quotes what is private: %s", err->message);
}

/* As line 3 of a file whose other lines are good: refused, and the fourth is read. */
static void refused(const char *bad, size_t n, const char *word) {
    char *text, all[1 << 12];
    size_t length, at = 0;
    struct jsonl lines;
    struct jsonl_row row;
    attune_error said = {0};
    assert_true(n + 100 < sizeof all);
    at += (size_t)sprintf(all, "%s\n\n", GOOD);
    memcpy(all + at, bad, n);
    at += n;
    at += (size_t)sprintf(all + at, "\n%s\n", GOOD);
    write_bytes(all, at);
    OK(jsonl_open(path, &lines, &err));
    for (size_t line = 1; line <= 4; line += line == 1 ? 2 : 1) {
        assert_int_equal(jsonl_next(&lines, &text, &length, &said), ATTUNE_CONTINUE);
        assert_int_equal(lines.line, line);
        int code = jsonl_row_parse(text, length, lines.where, &row, &said);
        if (line == 3) {
            check_error(&said, code, ATTUNE_ERROR_FORMAT, word, ":line 3");
            continue;
        }
        assert_int_equal(code, ATTUNE_OK);
        jsonl_row_free(&row);
    }
    assert_int_equal(jsonl_next(&lines, &text, &length, &said), ATTUNE_DONE);
    jsonl_close(&lines);
}

static void parse(const char *text, struct jsonl_row *row) {
    OK(jsonl_row_parse(text, strlen(text), "test", row, &err));
}

/* ---- reading ---- */

static void test_keys_of_a_row(void **state) {
    (void)state;
    struct jsonl_row row;
    static const char *const shapes[] = {
        "\"prompt\":\"a\",\"response\":\"b\"", "\"Context\":\"a\",\"Input\":\"\",\"Response\":\"b\"",
        "\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]"};
    for (size_t i = 0; i < 3; i++) {
        char text[1024];
        snprintf(text, sizeof text,
                 "{\"id\":\"" ID "\",\"model\":\"m\",\"adapter\":\"n\",\"template_hash\":\"t\",\"tier\":\"person\","
                 "\"sensitivity\":\"cleared\",\"private_findings\":7,\"time\":1700000000000,\"app\":\"p\","
                 "\"session\":\"s\",\"source\":\"o\",\"consent\":false,%s}",
                 shapes[i]);
        parse(text, &row);
        assert_string_equal(row.id.text, ID);
        assert_string_equal(row.interaction.model, "m");
        assert_string_equal(row.interaction.adapter, "n");
        assert_string_equal(row.interaction.template_hash, "t");
        assert_string_equal(row.interaction.app, "p");
        assert_string_equal(row.interaction.session, "s");
        assert_string_equal(row.interaction.source, "o");
        assert_string_equal(row.interaction.response, "b");
        assert_true(row.has_tier);
        assert_int_equal(row.interaction.tier, ATTUNE_TIER_PERSON);
        assert_int_equal(row.interaction.sensitivity, ATTUNE_SENSITIVITY_CLEARED);
        assert_int_equal(row.interaction.consent, ATTUNE_CONSENT_NOT_GIVEN);
        assert_int_equal(row.interaction.time_ms, 1700000000000);
        assert_int_equal(row.private_findings, 7);
        jsonl_row_free(&row);
    }
    parse(GOOD, &row);
    assert_string_equal(row.id.text, "");
    assert_null(row.interaction.app);
    assert_null(row.interaction.model);
    assert_false(row.has_tier);
    assert_int_equal(row.interaction.tier, 0);
    assert_int_equal(row.interaction.sensitivity, ATTUNE_SENSITIVITY_UNKNOWN);
    assert_int_equal(row.interaction.consent, ATTUNE_CONSENT_HOME);
    assert_int_equal(row.private_findings, 0);
    assert_int_equal(row.n_feedback, 0);
    jsonl_row_free(&row);
}

static void test_names(void **state) {
    (void)state;
    static const struct {
        const char *extra;
        int tier, sensitivity;
    } cases[] = {
        {"\"tier\":\"person\"", ATTUNE_TIER_PERSON, 0},
        {"\"tier\":\"imported\"", ATTUNE_TIER_IMPORTED, 0},
        {"\"tier\":\"pasted\"", ATTUNE_TIER_PASTED, 0},
        {"\"tier\":\"web\"", ATTUNE_TIER_WEB, 0},
        {"\"tier\":\"tool\"", ATTUNE_TIER_TOOL, 0},
        {"\"sensitivity\":\"unknown\"", 0, ATTUNE_SENSITIVITY_UNKNOWN},
        {"\"sensitivity\":\"private\"", 0, ATTUNE_SENSITIVITY_PRIVATE},
        {"\"sensitivity\":\"cleared\"", 0, ATTUNE_SENSITIVITY_CLEARED},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[256];
        struct jsonl_row row;
        snprintf(text, sizeof text, "{\"prompt\":\"a\",\"response\":\"b\",%s}", cases[i].extra);
        parse(text, &row);
        assert_int_equal(row.interaction.tier, cases[i].tier);
        assert_int_equal(row.interaction.sensitivity, cases[i].sensitivity);
        assert_int_equal(row.has_tier, i < 5);
        jsonl_row_free(&row);
    }
}

static void test_feedback_order(void **state) {
    (void)state;
    struct jsonl_row row;
    parse("{\"feedback\":[{\"kind\":\"dwell\",\"value\":40,\"time\":\"1970-01-01T00:00:01Z\"},{\"kind\":\"undo\"},"
          "{\"kind\":\"thumb\",\"value\":-1,\"text\":\"\"}],\"edit\":\"c\",\"thumb\":1,\"prompt\":\"a\",\"response\":"
          "\"b\"}",
          &row);
    assert_int_equal(row.n_feedback, 5);
    static const int kinds[] = {ATTUNE_FEEDBACK_THUMB, ATTUNE_FEEDBACK_EDIT, ATTUNE_FEEDBACK_DWELL,
                                ATTUNE_FEEDBACK_UNDO, ATTUNE_FEEDBACK_THUMB};
    static const int64_t values[] = {1, 0, 40, 0, -1}, times[] = {0, 0, 1000, 0, 0};
    for (size_t i = 0; i < 5; i++) {
        assert_int_equal(row.feedback[i].kind, kinds[i]);
        assert_int_equal(row.feedback[i].value, values[i]);
        assert_int_equal(row.feedback[i].time_ms, times[i]);
        assert_int_equal(row.feedback[i].size, sizeof row.feedback[i]);
    }
    assert_string_equal(row.feedback[1].text, "c");
    assert_null(row.feedback[3].text);
    assert_string_equal(row.feedback[4].text, "");
    jsonl_row_free(&row);
}

/* Numbers, escapes and layout of JSON in every form that the standard allows. */
static void test_json(void **state) {
    (void)state;
    struct jsonl_row row;
    parse(" {\t\"prompt\" :\r\n\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\u20AC\\ud83d\\uDE00\\u007f\x7f\" , "
          "\"response\":\"b\","
          "\"private_findings\":-0,\"x\":[0,-0,0.0,-1.5,1e5,1E+5,1.0e-5,1e308,0e999,0.000e999,1e-999,0.0001e312,"
          "9223372036854775807,-9223372036854775808,null,true,false,\"\",[],{},[[]],{\"a\":{\"a\":1}}]} ",
          &row);
    assert_string_equal(row.interaction.prompt, "\"\\/\b\f\n\r\t\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\x7f\x7f");
    jsonl_row_free(&row);
    parse("{\"prompt\":\"a\",\"response\":\"b\",\"private_findings\":9223372036854775807}", &row);
    assert_int_equal(row.private_findings, INT64_MAX);
    jsonl_row_free(&row);
    /* The deepest that is taken, and the shallowest that is not. */
    for (int deep = 31; deep <= 32; deep++) {
        char text[200] = "{\"prompt\":\"a\",\"response\":\"b\",\"x\":";
        for (int i = 0; i < deep; i++) strcat(text, "[");
        for (int i = 0; i < deep; i++) strcat(text, "]");
        strcat(text, "}");
        attune_error err = {0};
        int code = jsonl_row_parse(text, strlen(text), "test", &row, &err);
        if (deep == 32) check_error(&err, code, ATTUNE_ERROR_FORMAT, "nested deeper than 32 at byte", "test");
        if (deep == 31) assert_int_equal(code, ATTUNE_OK);
        if (code == ATTUNE_OK) jsonl_row_free(&row);
    }
}

static void test_refused_rows(void **state) {
    (void)state;
    static const struct {
        const char *line, *word;
    } cases[] = {
        {"[1,2]", "not a JSON object"},
        {"\"SECRET\"", "not valid JSON: an object or array is expected (byte 0)"},
        {"SECRET", "not valid JSON: an object or array is expected (byte 0)"},
        {"{\"prompt\":\"SECRET", "not valid JSON: it ends too early (byte 17)"},
        {"{\"prompt\":\"SECRET\\", "not valid JSON: it ends too early (byte 18)"},
        {"{\"prompt\":\"SECRET\"", "not valid JSON: it ends too early (byte 18)"},
        {"{\"prompt\":SECRET}", "not valid JSON: invalid token (byte 16)"},
        {"{\"prompt\" \"SECRET\"}", "not valid JSON: ':' expected (byte 18)"},
        {"{prompt:\"SECRET\"}", "not valid JSON: string or '}' expected (byte 7)"},
        {"{\"prompt\":\"a\",}", "not valid JSON: string or '}' expected (byte 15)"},
        {"{\"x\":[1,]}", "not valid JSON: unexpected token (byte 9)"},
        {"{\"x\":[1}", "not valid JSON: it ends too early (byte 8)"},
        {"{\"x\":[1}}", "not valid JSON: ']' expected (byte 8)"},
        {"{\"x\":1]", "not valid JSON: '}' expected (byte 7)"},
        {"{\"x\":1 \"SECRET\"}", "not valid JSON: '}' expected (byte 15)"},
        {"{\"x\":[\"a\" \"SECRET\"]}", "not valid JSON: ']' expected (byte 18)"},
        {GOOD " SECRET", "not valid JSON: something stands behind its end (byte 30)"},
        {GOOD GOOD, "not valid JSON: something stands behind its end"},
        {"{\"prompt\":\"a\tb\"}", "not valid JSON: control character 0x9 (byte 12)"},
        {"{\"prompt\":\"\\x41\"}", "not valid JSON: invalid escape (byte 13)"},
        {"{\"prompt\":\"\\u00g1\"}", "not valid JSON: invalid escape (byte 16)"},
        {"{\"prompt\":\"\\u12\"}", "not valid JSON: invalid escape (byte 16)"},
        {"{\"prompt\":\"a\\u0000b\"}", "not valid JSON: \\u0000, a NUL (byte 20)"},
        {"{\"a\\u0000b\":1}", "not valid JSON: NUL byte in object key not supported (byte 11)"},
        {"{\"prompt\":\"\\ud800\"}", "not valid JSON: half of a surrogate pair (byte 18)"},
        {"{\"prompt\":\"\\ud800\\u0041\"}", "not valid JSON: half of a surrogate pair (byte 24)"},
        {"{\"prompt\":\"\\ud800\\ud800\"}", "not valid JSON: half of a surrogate pair (byte 24)"},
        {"{\"prompt\":\"\\udc00\\ud800\"}", "not valid JSON: half of a surrogate pair (byte 24)"},
        {"{\"prompt\":\"\\ud83dx\\ude00\"}", "not valid JSON: half of a surrogate pair (byte 25)"},
        {"{\"prompt\":\"a\",\"response\":\"b\",\"prompt\":\"SECRET\"}",
         "not valid JSON: duplicate object key (byte 37)"},
        {"{\"prompt\":\"a\",\"response\":\"b\",\"\\u0070rompt\":\"c\"}", "not valid JSON: duplicate object key"},
        {"{\"prompt\":\"a\",\"response\":\"b\",\"x\":{\"y\":1,\"y\":1}}", "not valid JSON: duplicate object key"},
        {"{\"time\":01}", "not valid JSON: invalid token (byte 9)"},
        {"{\"time\":-}", "not valid JSON: invalid token (byte 9)"},
        {"{\"time\":+1}", "not valid JSON: invalid token (byte 9)"},
        {"{\"time\":.5}", "not valid JSON: invalid token (byte 9)"},
        {"{\"time\":1.}", "not valid JSON: invalid token (byte 10)"},
        {"{\"time\":1e}", "not valid JSON: invalid token (byte 10)"},
        {"{\"time\":1e400}", "not valid JSON: real number overflow (byte 13)"},
        {"{\"x\":-1e309}", "not valid JSON: real number overflow"},
        {"{\"x\":100.0e307}", "not valid JSON: real number overflow"},
        {"{\"x\":0.001e312}", "not valid JSON: real number overflow"},
        {"{\"time\":1e99999999999999999999}", "not valid JSON: real number overflow"},
        {"{\"time\":9223372036854775808}", "not valid JSON: too big integer (byte 27)"},
        {"{\"time\":-9223372036854775809}", "not valid JSON: too big negative integer (byte 28)"},
        {"{\"x\":18446744073709551617}", "not valid JSON: too big integer"},
        {"{\"x\":NaN}", "not valid JSON: invalid token"},
        {"{\"x\":Infinity}", "not valid JSON: invalid token"},
        {"{\"x\":truth}", "not valid JSON: invalid token"},
        {"{\"x\":trueness}", "not valid JSON: invalid token"},
        {"{\"x\":1 /* SECRET */}", "not valid JSON: '}' expected (byte 8)"},
        {"{}", "has neither"},
        {"{\"prompt\":\"SECRET\"}", "'response' is missing"},
        {"{\"response\":\"SECRET\"}", "'prompt' is missing"},
        {"{\"prompt\":null,\"response\":\"b\"}", "'prompt' must be a string"},
        {"{\"prompt\":\"a\",\"Response\":\"b\"}", "mixes the keys"},
        {"{\"Context\":\"\",\"Input\":\"i\",\"Response\":\"b\"}", "'Context' is empty"},
        {"{\"messages\":null}", "'messages' must be an array"},
        {"{\"messages\":[]}", "'messages' needs"},
        {"{\"messages\":[1,\"SECRET\"]}", "message 1 is not an object"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"u\"},{\"role\":\"assistant\",\"content\":[]}]}",
         "'content' of message 2 must be a string"},
        {"{\"messages\":[{\"role\":\"user\"},{\"role\":\"assistant\",\"content\":\"b\"}]}",
         "'content' of message 1 is missing"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"u\"},{\"role\":\"SECRET\",\"content\":\"y\"}]}",
         "must end with the assistant's"},
        {"{\"messages\":[{\"role\":\"user\",\"Content\":\"u\"},{\"role\":\"assistant\",\"content\":\"y\"}]}",
         "the key 'Content' must be written 'content'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        refused(cases[i].line, strlen(cases[i].line), cases[i].word);
}

static void test_refused_keys(void **state) {
    (void)state;
    static const struct {
        const char *extra, *word;
    } cases[] = {
        {"\"id\":7", "'id' must be a string"},
        {"\"id\":null", "'id' must be a string"},
        {"\"id\":\"\"", "'id' must be a UUID"},
        {"\"id\":\"SECRET\"", "'id' must be a UUID"},
        {"\"id\":\"018F4E3A-5B6C-7D8E-9FA0-B1C2D3E4F506\"", "'id' must be a UUID"},
        {"\"id\":\"018f4e3a-5b6c-7d8e-9fa0-b1c2d3e4f50\"", "'id' must be a UUID"},
        {"\"id\":\"018f4e3a-5b6c-7d8e-9fa0-b1c2d3e4f5067\"", "'id' must be a UUID"},
        {"\"id\":\"018f4e3a05b6c-7d8e-9fa0-b1c2d3e4f506\"", "'id' must be a UUID"},
        {"\"id\":\"{18f4e3a-5b6c-7d8e-9fa0-b1c2d3e4f506\"", "'id' must be a UUID"},
        {"\"ID\":\"" ID "\"", "the key 'ID' must be written 'id'"},
        {"\"model\":1", "'model' must be a string"},
        {"\"adapter\":false", "'adapter' must be a string"},
        {"\"template_hash\":[]", "'template_hash' must be a string"},
        {"\"Template_Hash\":\"x\"", "must be written 'template_hash'"},
        {"\"app\":{}", "'app' must be a string"},
        {"\"session\":null", "'session' must be a string"},
        {"\"source\":1.5", "'source' must be a string"},
        {"\"tier\":\"SECRET\"", "'tier' must be one of \"person\", \"imported\", \"pasted\", \"web\", \"tool\""},
        {"\"tier\":1", "'tier' must be one of"},
        {"\"tier\":null", "'tier' must be one of"},
        {"\"tier\":\"Web\"", "'tier' must be one of"},
        {"\"sensitivity\":\"\"", "'sensitivity' must be one of \"unknown\", \"private\", \"cleared\""},
        {"\"sensitivity\":2", "'sensitivity' must be one of"},
        {"\"private_findings\":-1", "'private_findings' must be an integer that is not negative"},
        {"\"private_findings\":1.0", "'private_findings' must be an integer"},
        {"\"private_findings\":1e2", "'private_findings' must be an integer"},
        {"\"private_findings\":\"3\"", "'private_findings' must be an integer"},
        {"\"private_findings\":null", "'private_findings' must be an integer"},
        {"\"private_findings\":9223372036854775808", "too big integer"},
        {"\"consent\":1", "'consent' must be true or false"},
        {"\"consent\":\"true\"", "'consent' must be true or false"},
        {"\"consent\":null", "'consent' must be true or false"},
        {"\"time\":0", "'time' must be milliseconds"},
        {"\"time\":-5", "'time' must be milliseconds"},
        {"\"time\":1.5", "'time' must be milliseconds"},
        {"\"time\":253402300800000", "'time' must be milliseconds"},
        {"\"time\":\"SECRET\"", "'time' must be milliseconds"},
        {"\"time\":true", "'time' must be milliseconds"},
        {"\"thumb\":0", "'thumb' must be \"up\" or \"down\""},
        {"\"thumb\":1.0", "'thumb' must be"},
        {"\"thumb\":null", "'thumb' must be"},
        {"\"edit\":\"\"", "an edit needs its text"},
        {"\"edit\":5", "'edit' must be a string"},
        {"\"feedback\":\"SECRET\"", "'feedback' must be an array"},
        {"\"feedback\":null", "'feedback' must be an array"},
        {"\"feedback\":[\"SECRET\"]", "feedback 1 is not an object"},
        {"\"feedback\":[{\"kind\":\"copy\"},{}]", "'kind' of feedback 2 is missing"},
        {"\"feedback\":[{\"kind\":\"SECRET\"}]", "'kind' of feedback 1 must be one of"},
        {"\"feedback\":[{\"kind\":1}]", "'kind' of feedback 1 must be one of"},
        {"\"feedback\":[{\"kind\":\"thumb\"}]", "'value' of feedback 1 must be \"up\" or \"down\""},
        {"\"feedback\":[{\"kind\":\"dwell\",\"value\":1.5}]", "'value' of feedback 1 must be an integer"},
        {"\"feedback\":[{\"kind\":\"dwell\",\"value\":-1}]", "a dwell time"},
        {"\"feedback\":[{\"kind\":\"edit\"}]", "an edit needs its text"},
        {"\"feedback\":[{\"kind\":\"edit\",\"text\":7}]", "'text' of feedback 1 must be a string"},
        {"\"feedback\":[{\"kind\":\"copy\",\"time\":0}]", "'time' of feedback 1 must be milliseconds"},
        {"\"feedback\":[{\"kind\":\"copy\",\"Time\":1}]", "the key 'Time' must be written 'time'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char line[512];
        int n = snprintf(line, sizeof line, "{\"prompt\":\"a\",\"response\":\"b\",%s}", cases[i].extra);
        refused(line, (size_t)n, cases[i].word);
    }
}

/* None of them may stand in a string as it is; all but the NUL may as an escape. */
static void test_control_characters(void **state) {
    (void)state;
    for (int c = 1; c < 0x20; c++) {
        char line[64];
        struct jsonl_row row;
        int n = sprintf(line, "{\"prompt\":\"a%cb\",\"response\":\"b\"}", c);
        attune_error err = {0};
        check_error(&err, jsonl_row_parse(line, (size_t)n, "test", &row, &err), ATTUNE_ERROR_FORMAT,
                    c == '\n' ? "unexpected newline (byte 12)" : "control character", "test");
        sprintf(line, "{\"prompt\":\"\\u%04x\",\"response\":\"b\"}", c);
        parse(line, &row);
        assert_int_equal(row.interaction.prompt[0], c);
        assert_int_equal(row.interaction.prompt[1], 0);
        jsonl_row_free(&row);
    }
}

static void test_many_keys(void **state) {
    (void)state;
    char text[4096];
    for (int twice = 0; twice < 2; twice++) {
        struct jsonl_row row;
        attune_error err = {0};
        size_t at = (size_t)sprintf(text, "{\"prompt\":\"a\",\"response\":\"b\"");
        for (int i = 0; i < 100; i++) at += (size_t)sprintf(text + at, ",\"k%d\":%d", (i * 37) % 100, i);
        if (twice) at += (size_t)sprintf(text + at, ",\"k41\":0");
        at += (size_t)sprintf(text + at, "}");
        int code = jsonl_row_parse(text, at, "test", &row, &err);
        char word[64];
        snprintf(word, sizeof word, "duplicate object key (byte %zu)", at - 3);
        if (twice) check_error(&err, code, ATTUNE_ERROR_FORMAT, word, "test");
        if (!twice) assert_int_equal(code, ATTUNE_OK);
        if (code == ATTUNE_OK) jsonl_row_free(&row);
    }
}

static void test_too_many_values(void **state) {
    (void)state;
    /* root, prompt, response, x: so many are left for the items of x */
    const size_t most = JSONL_VALUES_MAX - 4;
    char *text = malloc(4 * most + 100);
    for (size_t items = most; items <= most + 1; items++) {
        struct jsonl_row row;
        attune_error err = {0};
        size_t at = (size_t)sprintf(text, "{\"prompt\":\"a\",\"response\":\"b\",\"x\":[1");
        for (size_t i = 1; i < items; i++) at += (size_t)sprintf(text + at, ",1");
        at += (size_t)sprintf(text + at, "]}");
        int code = jsonl_row_parse(text, at, "test", &row, &err);
        if (items > most) check_error(&err, code, ATTUNE_ERROR_FORMAT, "more than 100000 values", "test");
        if (items == most) assert_int_equal(code, ATTUNE_OK);
        if (code == ATTUNE_OK) jsonl_row_free(&row);
    }
    free(text);
}

/* ---- UTF-8 ---- */

/* Every byte of characters of 2, 3 and 4 bytes taken away, replaced, or the rest cut off. */
static void test_invalid_utf8(void **state) {
    (void)state;
    static const char *const characters[] = {"\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80"};
    static const char replacements[] = {'a', '\xc0', '\xf8', '\xff', '\x80'};
    static const char *const never[] = {
        "\xc0\xaf",         "\xe0\x80\xaf",     "\xed\xa0\x80", "\xed\xbf\xbf", "\xf0\x80\x80\xaf",
        "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\x80",         "\xfe"};
    char line[128];
    for (size_t c = 0; c < 3; c++) {
        size_t size = strlen(characters[c]);
        for (size_t at = 0; at < size; at++) {
            int n = sprintf(line, "{\"prompt\":\"SECRET%.*s%s\",\"response\":\"b\"}", (int)at, characters[c],
                            characters[c] + at + 1);
            refused(line, (size_t)n, "not UTF-8 at byte 17");
            if (at > 0) {
                n = sprintf(line, "{\"prompt\":\"SECRET%.*s\",\"response\":\"b\"}", (int)at, characters[c]);
                refused(line, (size_t)n, "not UTF-8 at byte 17");
            }
            for (size_t r = 0; r < sizeof replacements; r++) {
                if (at > 0 && replacements[r] == '\x80') continue; /* another character, and a good one */
                n = sprintf(line, "{\"prompt\":\"SECRET%s\",\"response\":\"b\"}", characters[c]);
                line[17 + at] = replacements[r];
                refused(line, (size_t)n,
                        at == 0 && replacements[r] == 'a' ? "not UTF-8 at byte 18" : "not UTF-8 at byte 17");
            }
        }
    }
    for (size_t i = 0; i < sizeof never / sizeof never[0]; i++) {
        int n = sprintf(line, "{\"prompt\":\"SECRET%s\",\"response\":\"b\"}", never[i]);
        refused(line, (size_t)n, "not UTF-8 at byte 17");
        n = sprintf(line, "{\"SECRET%s\":1,\"prompt\":\"a\",\"response\":\"b\"}", never[i]);
        refused(line, (size_t)n, "not UTF-8 at byte 8");
    }
    refused("{\"prompt\":\"a\0b\",\"response\":\"b\"}", 29, "holds a NUL byte");
}

/* ---- lines ---- */

struct expected_line {
    size_t number; /* 0: the end of the file */
    size_t length; /* 0: refused */
};

static void expect_lines(const struct expected_line *expected) {
    struct jsonl lines;
    OK(jsonl_open(path, &lines, &err));
    for (;; expected++) {
        char *text = NULL;
        size_t n = 0;
        attune_error err = {0};
        int code = jsonl_next(&lines, &text, &n, &err);
        if (expected->number == 0) {
            assert_int_equal(code, ATTUNE_DONE);
            break;
        }
        char where[32];
        snprintf(where, sizeof where, ":line %zu", expected->number);
        assert_non_null(strstr(lines.where, where));
        if (expected->length == 0) {
            check_error(&err, code, ATTUNE_ERROR_FORMAT, "longer than 16 MiB", where);
        } else {
            assert_int_equal(code, ATTUNE_CONTINUE);
            assert_int_equal(n, expected->length);
            assert_int_equal(text[n], '\0');
        }
        assert_int_equal(lines.line, expected->number);
    }
    jsonl_close(&lines);
}

/* Lines of the given lengths, sparse where they are long. */
static void write_long_lines(const size_t *lengths, size_t n, int last_feed) {
    int fd = open(path, O_WRONLY | O_TRUNC);
    off_t at = 0;
    assert_true(fd >= 0);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(pwrite(fd, "x", 1, at), 1);
        at += (off_t)lengths[i];
        assert_int_equal(ftruncate(fd, at), 0);
        if (i + 1 < n || last_feed) assert_int_equal(pwrite(fd, "\n", 1, at++), 1);
    }
    assert_int_equal(close(fd), 0);
}

static void test_lines(void **state) {
    (void)state;
    static const char text[] = "\xef\xbb\xbf{a}\r\n\n \t\r\n{bc}\n\n\n{d}";
    write_bytes(text, sizeof text - 1);
    expect_lines((struct expected_line[]){{1, 3}, {4, 4}, {7, 3}, {0, 0}});
    write_bytes("", 0);
    expect_lines((struct expected_line[]){{0, 0}});
    write_bytes("\n\n", 2);
    expect_lines((struct expected_line[]){{0, 0}});
}

/* The limit holds to the byte, wherever the reader's chunks end, and the lines around are read. */
static void test_longest_line(void **state) {
    (void)state;
    const size_t most = STORE_TEXT_MAX;
    for (size_t before = 1; before < 200000; before = before * 5 + 3) {
        write_long_lines((size_t[]){before, most, most + 1, 5, most + 1, most + 1, 7}, 7, 1);
        expect_lines((struct expected_line[]){{1, before}, {2, most}, {3, 0}, {4, 5}, {5, 0}, {6, 0}, {7, 7}, {0, 0}});
    }
    write_long_lines((size_t[]){1, most + 1}, 2, 0);
    expect_lines((struct expected_line[]){{1, 1}, {2, 0}, {0, 0}});
    write_long_lines((size_t[]){most}, 1, 0);
    expect_lines((struct expected_line[]){{1, most}, {0, 0}});
}

/* A line of 100 MB, in a child, so that the figure is of this alone. */
static void test_memory_of_a_long_line(void **state) {
    (void)state;
    write_long_lines((size_t[]){3, (size_t)100 << 20, 4}, 3, 1);
    pid_t child = fork();
    if (child == 0) {
        struct jsonl lines;
        struct rusage before, after;
        char *text;
        size_t n;
        getrusage(RUSAGE_SELF, &before);
        int good = jsonl_open(path, &lines, NULL) == ATTUNE_OK;
        good = good && jsonl_next(&lines, &text, &n, NULL) == ATTUNE_CONTINUE;
        good = good && jsonl_next(&lines, &text, &n, NULL) == ATTUNE_ERROR_FORMAT;
        good = good && jsonl_next(&lines, &text, &n, NULL) == ATTUNE_CONTINUE && n == 4 && lines.line == 3;
        good = good && jsonl_next(&lines, &text, &n, NULL) == ATTUNE_DONE && lines.capacity < (size_t)20 << 20;
        getrusage(RUSAGE_SELF, &after);
        long grown = after.ru_maxrss - before.ru_maxrss; /* KiB */
        _exit(!good ? 1 : grown > 64 << 10 ? 2 : 0);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status) & 1, 0);
#if !defined(__SANITIZE_ADDRESS__) && !HAS_FEATURE(address_sanitizer)
    assert_int_equal(WEXITSTATUS(status), 0);
#endif
}

/* ---- writing ---- */

static const attune_message conversation[] = {
    {"system", ""}, {"user", "What is \"5 \\ 3\"?"}, {"assistant", "\x01\x1f\x7f/"}, {"user", "S\xc3\xa9\xe2\x80\xa8"}};

static void test_written_row(void **state) {
    (void)state;
    attune_feedback feedback[4] = {{.kind = ATTUNE_FEEDBACK_THUMB, .value = -1, .time_ms = 5},
                                   {.kind = ATTUNE_FEEDBACK_DWELL, .value = 1200},
                                   {.kind = ATTUNE_FEEDBACK_EDIT, .text = "new\n", .time_ms = STORE_TIME_MAX},
                                   {.kind = ATTUNE_FEEDBACK_UNDO}};
    attune_row row = {.id = {ID},
                      .time_ms = 1700000000123,
                      .messages = conversation,
                      .n_messages = 4,
                      .response = "r",
                      .app = "mail",
                      .session = "s",
                      .source = "o",
                      .model = "m",
                      .adapter = "n",
                      .template_hash = "t",
                      .consent = 1,
                      .tier = ATTUNE_TIER_TOOL,
                      .sensitivity = ATTUNE_SENSITIVITY_PRIVATE,
                      .private_findings = 2,
                      .feedback = feedback,
                      .n_feedback = 4};
    char *text;
    size_t n;
    OK(jsonl_write_row(&row, &text, &n, &err));
    assert_string_equal(
        text, "{\"id\":\"" ID "\",\"time\":1700000000123,\"app\":\"mail\",\"session\":\"s\",\"source\":\"o\","
              "\"tier\":\"tool\",\"sensitivity\":\"private\",\"consent\":true,\"model\":\"m\",\"adapter\":\"n\","
              "\"template_hash\":\"t\",\"private_findings\":2,\"messages\":[{\"role\":\"system\",\"content\":\"\"},"
              "{\"role\":\"user\",\"content\":\"What is \\\"5 \\\\ 3\\\"?\"},"
              "{\"role\":\"assistant\",\"content\":\"\\u0001\\u001F\x7f/\"},"
              "{\"role\":\"user\",\"content\":\"S\xc3\xa9\xe2\x80\xa8\"},{\"role\":\"assistant\",\"content\":\"r\"}],"
              "\"feedback\":[{\"kind\":\"thumb\",\"value\":\"down\",\"time\":5},{\"kind\":\"dwell\",\"value\":1200},"
              "{\"kind\":\"edit\",\"text\":\"new\\n\",\"time\":253402300799999},{\"kind\":\"undo\"}]}\n");
    assert_int_equal(n, strlen(text));
    free(text);
    /* What says nothing is left out, but for what an import would put in its place. */
    const attune_row bare = {.messages = conversation + 1, .n_messages = 1, .response = "\b\f\r\t\v", .session = ""};
    OK(jsonl_write_row(&bare, &text, &n, &err));
    assert_string_equal(text, "{\"app\":\"\",\"tier\":\"person\",\"consent\":false,\"messages\":[{\"role\":\"user\","
                              "\"content\":\"What is \\\"5 \\\\ 3\\\"?\"},{\"role\":\"assistant\",\"content\":"
                              "\"\\b\\f\\r\\t\\u000B\"}]}\n");
    free(text);
}

static void test_written_examples(void **state) {
    (void)state;
    char *text;
    size_t n;
    OK(jsonl_write_chat(conversation, 2, "r", &text, &n, &err));
    assert_string_equal(text, "{\"messages\":[{\"role\":\"system\",\"content\":\"\"},{\"role\":\"user\",\"content\":"
                              "\"What is \\\"5 \\\\ 3\\\"?\"},{\"role\":\"assistant\",\"content\":\"r\"}]}\n");
    assert_int_equal(n, strlen(text));
    free(text);
    OK(jsonl_write_preference(conversation, 2, "good", "bad", &text, &n, &err));
    assert_string_equal(text, "{\"prompt\":[{\"role\":\"system\",\"content\":\"\"},{\"role\":\"user\",\"content\":"
                              "\"What is \\\"5 \\\\ 3\\\"?\"}],\"chosen\":[{\"role\":\"assistant\",\"content\":"
                              "\"good\"}],\"rejected\":[{\"role\":\"assistant\",\"content\":\"bad\"}]}\n");
    assert_int_equal(n, strlen(text));
    free(text);
}

static void expect_unwritten(const attune_row *row, int wanted, const char *word) {
    char *text = (char *)1;
    size_t n = 77;
    attune_error err = {0};
    check_error(&err, jsonl_write_row(row, &text, &n, &err), wanted, word, "");
    assert_ptr_equal(text, (char *)1);
    assert_int_equal(n, 77);
}

static void test_unwritten(void **state) {
    (void)state;
    const attune_message stranger[] = {{"SECRET", "x"}}, broken[] = {{"user", "SECRET\xff"}};
    attune_feedback feedback = {.kind = ATTUNE_FEEDBACK_EDIT, .text = "x"};
    const attune_row good = {
        .id = {ID}, .messages = conversation, .n_messages = 4, .response = "r", .feedback = &feedback, .n_feedback = 1};
#define UNWRITTEN(change, word)                                                                                        \
    do {                                                                                                               \
        attune_row row = good;                                                                                         \
        row.change;                                                                                                    \
        expect_unwritten(&row, ATTUNE_ERROR_ARGUMENT, word);                                                           \
    } while (0)
    UNWRITTEN(n_messages = 0, "no user message");
    UNWRITTEN(messages = NULL, "messages are missing");
    UNWRITTEN(response = NULL, "the response is missing");
    UNWRITTEN(response = "", "the response is empty");
    UNWRITTEN(response = "SECRET\xc3", "the response is not UTF-8 at byte 6");
    UNWRITTEN(app = "SECRET\xff", "app is not UTF-8");
    UNWRITTEN(session = "SECRET\xff", "session is not UTF-8");
    UNWRITTEN(source = "SECRET\xff", "source is not UTF-8");
    UNWRITTEN(model = "SECRET\xff", "model is not UTF-8");
    UNWRITTEN(adapter = "SECRET\xff", "adapter is not UTF-8");
    UNWRITTEN(template_hash = "SECRET\xff", "template_hash is not UTF-8");
    UNWRITTEN(id.text[0] = 'X', "not a UUID");
    UNWRITTEN(id.text[36] = 'X', "not a UUID");
    UNWRITTEN(time_ms = -1, "the time lies outside");
    UNWRITTEN(time_ms = STORE_TIME_MAX + 1, "the time lies outside");
    UNWRITTEN(tier = 5, "tier is 5");
    UNWRITTEN(tier = -1, "tier is -1");
    UNWRITTEN(sensitivity = 3, "sensitivity is 3");
    UNWRITTEN(private_findings = -1, "private findings is negative");
    UNWRITTEN(feedback = NULL, "the feedback is missing");
    attune_row row = good;
    row.n_messages = 1;
    row.messages = stranger;
    expect_unwritten(&row, ATTUNE_ERROR_ARGUMENT, "the role of message 1");
    row.messages = broken;
    expect_unwritten(&row, ATTUNE_ERROR_ARGUMENT, "message 1 (user) is not UTF-8 at byte 6");
    feedback.kind = 9;
    expect_unwritten(&good, ATTUNE_ERROR_ARGUMENT, "feedback of kind 9");
    attune_error err = {0};
    char *text;
    size_t n;
    check_error(&err, jsonl_write_preference(conversation, 4, "a", "", &text, &n, &err), ATTUNE_ERROR_ARGUMENT,
                "the response is empty", "");
    check_error(&err, jsonl_write_chat(conversation, 1, "a", &text, &n, &err), ATTUNE_ERROR_ARGUMENT, "no user message",
                "");
}

/* What is written can be read: to the byte at the limit of a line, and beyond it nothing is. */
static void test_written_limits(void **state) {
    (void)state;
    const attune_message ask = {"user", "u"};
    attune_row row = {.messages = &ask, .n_messages = 1, .response = "r"};
    struct jsonl_row line;
    char *text, *response = malloc(STORE_TEXT_MAX + 1);
    size_t n, around;
    OK(jsonl_write_row(&row, &text, &n, &err));
    around = n - 2; /* without the response and the line feed */
    free(text);
    memset(response, 'x', STORE_TEXT_MAX - around);
    response[STORE_TEXT_MAX - around] = '\0';
    row.response = response;
    OK(jsonl_write_row(&row, &text, &n, &err));
    assert_int_equal(n, STORE_TEXT_MAX + 1);
    write_bytes(text, n);
    expect_lines((struct expected_line[]){{1, STORE_TEXT_MAX}, {0, 0}});
    OK(jsonl_row_parse(text, n - 1, "test", &line, &err));
    assert_string_equal(line.interaction.response, response);
    jsonl_row_free(&line);
    free(text);
    response[0] = '\n'; /* takes two bytes */
    expect_unwritten(&row, ATTUNE_ERROR_UNSUPPORTED, "more than 16 MiB");
    free(response);
    /* As many messages as a line may hold: three values each, and the object, app, tier, consent, messages. */
    const size_t most = (JSONL_VALUES_MAX - 5) / 3;
    attune_message *many = malloc(most * sizeof *many);
    for (size_t i = 0; i < most; i++) many[i] = ask;
    row = (attune_row){.messages = many, .n_messages = most - 1, .response = "r"};
    OK(jsonl_write_row(&row, &text, &n, &err));
    OK(jsonl_row_parse(text, n - 1, "test", &line, &err));
    assert_int_equal(line.interaction.n_messages, most - 1);
    jsonl_row_free(&line);
    free(text);
    row.n_messages = most;
    expect_unwritten(&row, ATTUNE_ERROR_UNSUPPORTED, "more than 100000");
    free(many);
}

/* ---- round trips ---- */

/* Numbers and texts that depend on the row's number alone. Texts live until the next row. */
struct dice {
    uint64_t row, index;
    char texts[64][400];
    size_t used;
};

static uint64_t roll(struct dice *dice, uint64_t sides) { return random_u64(dice->row, dice->index++) % sides; }

static size_t put_character(char *to, uint32_t c) {
    if (c < 0x80) {
        to[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        to[0] = (char)(0xc0 | c >> 6), to[1] = (char)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        to[0] = (char)(0xe0 | c >> 12), to[1] = (char)(0x80 | (c >> 6 & 63)), to[2] = (char)(0x80 | (c & 63));
        return 3;
    }
    to[0] = (char)(0xf0 | c >> 18), to[1] = (char)(0x80 | (c >> 12 & 63));
    to[2] = (char)(0x80 | (c >> 6 & 63)), to[3] = (char)(0x80 | (c & 63));
    return 4;
}

static uint32_t any_character(struct dice *dice) {
    static const uint32_t odd[] = {'"',     '\\',     '/',    '\n',   '\r',   '\t',   0x7f,
                                   0x80,    0x2028,   0x2029, 0xfeff, 0xfffd, 0xfffe, 0xffff,
                                   0x10000, 0x10ffff, 0xd7ff, 0xe000, '{',    ',',    'u'};
    switch (roll(dice, 6)) {
    case 0:
        return (uint32_t)roll(dice, 0x1f) + 1;
    case 1:
        return odd[roll(dice, sizeof odd / sizeof odd[0])];
    case 2:
        return (uint32_t)roll(dice, 0x100000) + 0x10000;
    case 3:
        return (uint32_t)roll(dice, 0xd800 - 0x80) + 0x80;
    default:
        return (uint32_t)roll(dice, 0x5f) + 0x20;
    }
}

static const char *any_text(struct dice *dice, int may_be_empty) {
    char *text = dice->texts[dice->used++];
    size_t n = roll(dice, 8) ? roll(dice, 12) : roll(dice, 90), at = 0;
    if (n == 0 && !may_be_empty) n = 1;
    for (size_t i = 0; i < n; i++) at += put_character(text + at, any_character(dice));
    text[at] = '\0';
    return text;
}

static const char *any_label(struct dice *dice) { return roll(dice, 2) ? any_text(dice, 1) : NULL; }

static void any_feedback(struct dice *dice, attune_feedback *out) {
    memset(out, 0, sizeof *out);
    out->kind = (int)roll(dice, ATTUNE_FEEDBACK_UNDO) + 1;
    out->value = roll(dice, 2) ? (int64_t)random_u64(dice->row, dice->index++) : 0;
    if (out->kind == ATTUNE_FEEDBACK_THUMB) out->value = roll(dice, 2) ? 1 : -1;
    if (out->kind == ATTUNE_FEEDBACK_DWELL) out->value &= INT64_MAX;
    if (out->kind == ATTUNE_FEEDBACK_EDIT || roll(dice, 4) == 0)
        out->text = any_text(dice, out->kind != ATTUNE_FEEDBACK_EDIT);
    out->time_ms = roll(dice, 2) ? (int64_t)roll(dice, STORE_TIME_MAX + 1) : 0;
}

static void any_row(struct dice *dice, attune_row *row, attune_message *messages, attune_feedback *feedback) {
    memset(row, 0, sizeof *row);
    if (roll(dice, 4)) store_uuid_make((int64_t)roll(dice, STORE_TIME_MAX), &row->id);
    row->time_ms = roll(dice, 4) ? (int64_t)roll(dice, STORE_TIME_MAX + 1) : 0;
    row->app = any_label(dice);
    row->session = any_label(dice);
    row->source = any_label(dice);
    row->model = any_label(dice);
    row->adapter = any_label(dice);
    row->template_hash = any_label(dice);
    row->consent = (int)roll(dice, 2);
    row->tier = (int)roll(dice, ATTUNE_TIER_TOOL + 1);
    row->sensitivity = (int)roll(dice, ATTUNE_SENSITIVITY_CLEARED + 1);
    row->private_findings = roll(dice, 2) ? (int64_t)(random_u64(dice->row, dice->index++) >> 1) : 0;
    row->n_messages = roll(dice, 6) + 1;
    for (size_t i = 0; i < row->n_messages; i++) {
        static const char *const roles[] = {"system", "user", "assistant"};
        const char *role = i + 1 == row->n_messages ? "user" : roles[roll(dice, 3)];
        messages[i] = (attune_message){role, any_text(dice, role == roles[0])};
    }
    row->messages = messages;
    row->response = any_text(dice, 0);
    row->n_feedback = roll(dice, 2) ? roll(dice, 9) : 0;
    for (size_t i = 0; i < row->n_feedback; i++) any_feedback(dice, &feedback[i]);
    row->feedback = row->n_feedback ? feedback : NULL;
}

/* Another reader of JSON finds the same texts. */
static void check_with_jansson(const attune_row *row, const char *text, size_t n) {
    json_error_t said;
    json_t *json = json_loadb(text, n, JSON_REJECT_DUPLICATES, &said);
    if (!json) fail_msg("%s", said.text);
    json_t *messages = json_object_get(json, "messages");
    assert_int_equal(json_array_size(messages), row->n_messages + 1);
    for (size_t i = 0; i <= row->n_messages; i++)
        assert_string_equal(json_string_value(json_object_get(json_array_get(messages, i), "content")),
                            i < row->n_messages ? row->messages[i].content : row->response);
    assert_int_equal(json_integer_value(json_object_get(json, "private_findings")), row->private_findings);
    json_decref(json);
}

static void check_round_trip(const attune_row *row) {
    char *text, *again;
    size_t n, n_again;
    struct jsonl_row line;
    attune_message single;
    OK(jsonl_write_row(row, &text, &n, &err));
    assert_int_equal(strlen(text), n);
    assert_ptr_equal(strchr(text, '\n'), text + n - 1);
    OK(jsonl_row_parse(text, n - 1, "test", &line, &err));
    attune_row other = row_of_line(&line, &single);
    const char *what = difference(row, &other);
    if (what) fail_msg("%s differs: %s", what, text);
    assert_true(line.has_tier);
    assert_non_null(line.interaction.app);
    OK(jsonl_write_row(&other, &again, &n_again, &err));
    assert_string_equal(again, text);
    check_with_jansson(row, text, n);
    jsonl_row_free(&line);
    free(again);
    free(text);
}

static void test_round_trips(void **state) {
    (void)state;
    static struct dice dice;
    attune_message messages[8];
    attune_feedback feedback[8];
    attune_row row;
    for (uint64_t i = 0; i < 5000; i++) {
        dice.row = i;
        dice.index = dice.used = 0;
        any_row(&dice, &row, messages, feedback);
        check_round_trip(&row);
    }
}

/* All of Unicode but NUL, as it is and as \u escapes. */
static void test_every_character(void **state) {
    (void)state;
    static char text[4096 * 4 + 1], escaped[4096 * 12 + 100];
    const attune_message ask = {"user", text};
    for (uint32_t block = 0; block < 0x110000; block += 4096) {
        attune_row row = {.messages = &ask, .n_messages = 1, .response = text};
        struct jsonl_row line;
        size_t n = 0, at = (size_t)sprintf(escaped, "{\"response\":\"r\",\"prompt\":\"");
        for (uint32_t c = block; c < block + 4096; c++) {
            if (c == 0 || (c >= 0xd800 && c < 0xe000)) continue;
            n += put_character(text + n, c);
            at += (size_t)(c < 0x10000 ? sprintf(escaped + at, "\\u%04x", c)
                                       : sprintf(escaped + at, "\\u%04X\\u%04x", 0xd800 + ((c - 0x10000) >> 10),
                                                 0xdc00 + (c & 0x3ff)));
        }
        text[n] = '\0';
        if (n == 0) continue; /* the surrogates */
        check_round_trip(&row);
        at += (size_t)sprintf(escaped + at, "\"}");
        OK(jsonl_row_parse(escaped, at, "test", &line, &err));
        assert_string_equal(line.interaction.prompt, text);
        jsonl_row_free(&line);
    }
}

/* ---- what is cut short ---- */

static const char whole[] =
    "{\"id\":\"" ID "\",\"time\":17,\"app\":\"\\u00e9\xc3\xa9\\ud83d\\ude00\",\"tier\":\"web\",\"consent\":true,"
    "\"x\":[-1.5e+3,null,{\"y\":false}],\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\","
    "\"content\":\"b\"}],\"feedback\":[{\"kind\":\"thumb\",\"value\":1},{\"kind\":\"edit\",\"text\":\"\\\"\"}]}";

static void test_truncated(void **state) {
    (void)state;
    struct jsonl_row row;
    for (size_t n = 0; n < sizeof whole; n++) {
        attune_error err = {0};
        char *exact = malloc(n + (n == 0)); /* a sanitizer sees the byte behind it read */
        memcpy(exact, whole, n);
        int code = jsonl_row_parse(exact, n, "test", &row, &err);
        if (n + 1 < sizeof whole) {
            assert_int_equal(code, ATTUNE_ERROR_FORMAT);
            assert_true(strstr(err.message, "not valid JSON") || strstr(err.message, "not UTF-8"));
        } else {
            assert_int_equal(code, ATTUNE_OK);
            jsonl_row_free(&row);
        }
        free(exact);
    }
}

/* ---- memory ---- */

#ifdef CAN_FAIL
enum work { PARSE, PARSE_MANY_KEYS, PARSE_CONTEXT, WRITE, WRITE_CHAT, WRITE_PREFERENCE, READ_LINES, WORKS };

static int do_work(enum work work, attune_error *err) {
    static const char context[] = "{\"Context\":\"a\",\"Input\":\"b\",\"Response\":\"c\",\"thumb\":1}";
    static char keys[1024] = "";
    attune_message many[20]; /* so that arrays must grow */
    for (size_t i = 0; i < 20; i++) many[i] = conversation[i % 4];
    const attune_row good = {.messages = many, .n_messages = 20, .response = "r"};
    struct jsonl_row row = {0};
    struct jsonl lines;
    char *text = NULL;
    size_t n;
    int code;
    if (!keys[0]) {
        size_t at = (size_t)sprintf(keys, "{\"prompt\":\"a\",\"response\":\"b\"");
        for (int i = 0; i < 80; i++) at += (size_t)sprintf(keys + at, ",\"k%d\":1", i);
        sprintf(keys + at, "}");
    }
    switch (work) {
    case PARSE:
        code = jsonl_row_parse(whole, sizeof whole - 1, "test", &row, err);
        break;
    case PARSE_MANY_KEYS:
        code = jsonl_row_parse(keys, strlen(keys), "test", &row, err);
        break;
    case PARSE_CONTEXT:
        code = jsonl_row_parse(context, sizeof context - 1, "test", &row, err);
        break;
    case WRITE:
        code = jsonl_write_row(&good, &text, &n, err);
        break;
    case WRITE_CHAT:
        code = jsonl_write_chat(conversation, 4, "r", &text, &n, err);
        break;
    case WRITE_PREFERENCE:
        code = jsonl_write_preference(conversation, 4, "r", "s", &text, &n, err);
        break;
    default:
        code = jsonl_open(path, &lines, err);
        if (code != ATTUNE_OK) return code;
        while ((code = jsonl_next(&lines, &text, &n, err)) == ATTUNE_CONTINUE) continue;
        jsonl_close(&lines);
        return code == ATTUNE_DONE ? ATTUNE_OK : code;
    }
    jsonl_row_free(&row);
    free(text);
    return code;
}
#endif

static void test_failing_allocations(void **state) {
    (void)state;
#ifdef CAN_FAIL
    static const size_t least[WORKS] = {[PARSE] = 40,      [PARSE_MANY_KEYS] = 200, [PARSE_CONTEXT] = 20, [WRITE] = 30,
                                        [WRITE_CHAT] = 30, [WRITE_PREFERENCE] = 40, [READ_LINES] = 3};
    write_long_lines((size_t[]){400000, 3}, 2, 1);
    for (int work = 0; work < WORKS; work++) {
        size_t refusals = 0;
        int code = ATTUNE_ERROR_MEMORY;
        for (size_t nth = 1; code != ATTUNE_OK; nth++) {
            attune_error err = {0};
            allocations = 0;
            live = 0;
            failing = nth;
            watching = 1;
            code = do_work((enum work)work, &err);
            watching = 0;
            if (live != 0) fail_msg("work %d, allocation %zu: %lld blocks left", work, nth, (long long)live);
            if (code == ATTUNE_OK && allocations >= nth) fail_msg("work %d goes on without allocation %zu", work, nth);
            if (code == ATTUNE_OK) break;
            check_error(&err, code, ATTUNE_ERROR_MEMORY, "out of memory", "");
            refusals++;
        }
        if (refusals < least[work]) fail_msg("work %d: only %zu allocations failed", work, refusals);
    }
#else
    skip();
#endif
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keys_of_a_row),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_feedback_order),
        cmocka_unit_test(test_json),
        cmocka_unit_test(test_refused_rows),
        cmocka_unit_test(test_refused_keys),
        cmocka_unit_test(test_control_characters),
        cmocka_unit_test(test_many_keys),
        cmocka_unit_test(test_too_many_values),
        cmocka_unit_test(test_invalid_utf8),
        cmocka_unit_test(test_lines),
        cmocka_unit_test(test_longest_line),
        cmocka_unit_test(test_memory_of_a_long_line),
        cmocka_unit_test(test_written_row),
        cmocka_unit_test(test_written_examples),
        cmocka_unit_test(test_unwritten),
        cmocka_unit_test(test_written_limits),
        cmocka_unit_test(test_round_trips),
        cmocka_unit_test(test_every_character),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_failing_allocations),
    };
    return cmocka_run_group_tests_name("jsonl", tests, make_file, remove_file);
}
