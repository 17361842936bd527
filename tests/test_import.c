/* Text that comes from outside: JSON Lines, one JSON object, and what attune_store_record is given. */
#include "tests/store_fixture.h"

#include <sys/resource.h>

#include "datastore/derive.h"
#include "datastore/forget.h"
#include "datastore/jsonl.h"

#define LINE_A "{\"prompt\":\"What is a fjord?\",\"response\":\"A drowned valley.\"}\n"
#define LINE_B "{\"prompt\":\"And a firth?\",\"response\":\"Much the same.\"}\n"

/* ---- helpers ---- */

static int import_bytes(struct fixture *f, const char *bytes, size_t n, int consent, attune_import_result *result) {
    attune_import_options options;
    ATTUNE_INIT(options);
    options.consent = consent;
    ATTUNE_INIT(*result);
    return attune_store_import(f->store, write_file(f, "in.jsonl", bytes, n), &options, result, &f->err);
}

static int import_text(struct fixture *f, const char *text) {
    attune_import_result result;
    return import_bytes(f, text, strlen(text), 0, &result);
}

static int record_json(struct fixture *f, const char *json) {
    return attune_store_record_json(f->store, json, strlen(json), NULL, NULL, &f->err);
}

/* The one line is refused with `word` in the message, and nothing stays in the store. */
static void refused(struct fixture *f, const char *line, const char *word) {
    FAILS(import_text(f, line), ATTUNE_ERROR_FORMAT, word, "in.jsonl:line 1");
    FAILS(record_json(f, line), ATTUNE_ERROR_FORMAT, word, "JSON object");
    assert_int_equal(count_interactions(f), 0);
}

/* ---- lines ---- */

static void test_lines(void **state) {
    struct fixture *f = *state;
    attune_import_result result;
    static const char text[] = "\xef\xbb\xbf" LINE_A "\r\n   \n\n"
                               "{\"prompt\":\"a\",\"response\":\"b\"}\r\n"
                               "{\"prompt\":\"c\",\"response\":\"d\"}"; /* no line feed at the end */
    OK(import_bytes(f, text, sizeof text - 1, 0, &result));
    assert_int_equal(result.rows, 3);
    OK(import_bytes(f, "", 0, 0, &result));
    assert_int_equal(result.rows, 0);
    FAILS(import_text(f, LINE_A "\n\r\n{\"prompt\":1,\"response\":\"x\"}\n"), ATTUNE_ERROR_FORMAT, "string",
          "in.jsonl:line 4");
    /* A byte order mark belongs at the start only. */
    FAILS(import_text(f, LINE_A "\xef\xbb\xbf" LINE_B), ATTUNE_ERROR_FORMAT, "not valid JSON", "in.jsonl:line 2");
}

static void test_all_or_nothing_and_again(void **state) {
    struct fixture *f = *state;
    attune_import_result result;
    FAILS(import_text(f, LINE_A LINE_B "{\"prompt\":\"x\"}\n"), ATTUNE_ERROR_FORMAT, "'response'", "in.jsonl:line 3");
    assert_int_equal(count_interactions(f), 0);
    OK(import_bytes(f, LINE_A LINE_B LINE_A, 2 * strlen(LINE_A) + strlen(LINE_B), 0, &result));
    assert_int_equal(result.rows, 2);
    assert_int_equal(result.duplicates, 1);
    OK(import_bytes(f, LINE_A LINE_B LINE_A, 2 * strlen(LINE_A) + strlen(LINE_B), 0, &result));
    assert_int_equal(result.rows, 0);
    assert_int_equal(result.duplicates, 3);
    OK(import_text(f, "{\"session\":\"other\",\"prompt\":\"What is a fjord?\",\"response\":\"A drowned valley.\"}\n"));
    assert_int_equal(count_interactions(f), 3);
}

static int64_t count_consented(struct fixture *f) {
    attune_store_statistics statistics;
    ATTUNE_INIT(statistics);
    OK(attune_store_statistics_get(f->store, &statistics, NULL));
    return statistics.consented;
}

/* Consent that was forgotten can be given by importing again; it is not taken away by importing without. */
static void test_consent_by_importing_again(void **state) {
    struct fixture *f = *state;
    attune_import_result result;
    OK(import_bytes(f, LINE_A LINE_B, strlen(LINE_A LINE_B), ATTUNE_CONSENT_NOT_GIVEN, &result));
    assert_int_equal(count_consented(f), 0);
    OK(import_bytes(f, LINE_A, strlen(LINE_A), ATTUNE_CONSENT_GIVEN, &result));
    assert_int_equal(result.duplicates, 1);
    assert_int_equal(count_consented(f), 1);
    OK(import_bytes(f, LINE_A LINE_B, strlen(LINE_A LINE_B), ATTUNE_CONSENT_NOT_GIVEN, &result));
    assert_int_equal(count_consented(f), 1);
    assert_int_equal(count_interactions(f), 2);
}

static void test_where_of_a_long_path(void **state) {
    struct fixture *f = *state;
    char path[1200];
    struct jsonl lines;
    char *text;
    size_t n;
    write_file(f, "in.jsonl", "{}", 2);
    snprintf(path, sizeof path, "%s/", f->home);
    while (strlen(path) < 1000) strcat(path, "./");
    strcat(path, "in.jsonl");
    OK(jsonl_open(path, &lines, &f->err));
    assert_int_equal(jsonl_next(&lines, &text, &n, &f->err), ATTUNE_CONTINUE);
    assert_non_null(strstr(lines.where, "in.jsonl:line 1"));
    assert_int_equal(jsonl_next(&lines, &text, &n, &f->err), ATTUNE_DONE);
    jsonl_close(&lines);
}

static void test_files_that_are_none(void **state) {
    struct fixture *f = *state;
    const char *fifo = in_home(f, "fifo");
    FAILS(attune_store_import(f->store, in_home(f, "none"), NULL, NULL, &f->err), ATTUNE_ERROR_NOT_FOUND, "no such",
          "none");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    FAILS(attune_store_import(f->store, fifo, NULL, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "regular", "fifo");
    FAILS(attune_store_import(f->store, f->home, NULL, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "regular", f->home);
    FAILS(attune_store_import(f->store, in_home(f, "store.db"), NULL, NULL, &f->err), ATTUNE_ERROR_ARGUMENT,
          "store itself", "store.db");
    FAILS(attune_store_import(f->store, NULL, NULL, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "NULL", "");
}

static void test_standard_input(void **state) {
    struct fixture *f = *state;
    int ends[2], saved = dup(STDIN_FILENO);
    attune_import_result result;
    ATTUNE_INIT(result);
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(write(ends[1], LINE_A LINE_B, strlen(LINE_A LINE_B)), strlen(LINE_A LINE_B));
    close(ends[1]);
    dup2(ends[0], STDIN_FILENO);
    close(ends[0]);
    int code = attune_store_import(f->store, "-", NULL, &result, &f->err);
    assert_true(fcntl(STDIN_FILENO, F_GETFD) >= 0); /* the caller's: it stays open */
    dup2(saved, STDIN_FILENO);
    close(saved);
    OK(code);
    assert_int_equal(result.rows, 2);
}

/* ---- hostile text ---- */

static void test_hostile_bytes(void **state) {
    struct fixture *f = *state;
    static const char nul[] = LINE_A "{\"prompt\":\"a\0b\",\"response\":\"c\"}\n";
    attune_import_result result;
    refused(f, "{\"prompt\":\"caf\xe9\",\"response\":\"c\"}", "not UTF-8 at byte 14");
    refused(f, "{\"prompt\":\"\xed\xa0\x80\",\"response\":\"c\"}", "not UTF-8"); /* half of a surrogate pair */
    refused(f, "{\"prompt\":\"\xc0\xaf\",\"response\":\"c\"}", "not UTF-8");     /* overlong */
    refused(f, "{\"prompt\":\"\\u0000\",\"response\":\"c\"}", "not valid JSON");
    refused(f, "{\"prompt\":\"\\ud800\",\"response\":\"c\"}", "not valid JSON");
    FAILS(import_bytes(f, nul, sizeof nul - 1, 0, &result), ATTUNE_ERROR_FORMAT, "NUL", "in.jsonl:line 2");
    assert_int_equal(count_interactions(f), 0);
}

static void test_hostile_json(void **state) {
    struct fixture *f = *state;
    refused(f, "[1,2]", "not a JSON object");
    refused(f, "\"text\"", "not valid JSON");
    refused(f, "{\"prompt\":\"a\",\"response\":\"secret", "not valid JSON");
    assert_null(strstr(f->err.message, "secret"));
    refused(f, "{\"prompt\":\"a\",\"response\":\"b\"} trailing", "not valid JSON");
    refused(f, "{\"prompt\":\"a\",\"prompt\":\"z\",\"response\":\"b\"}", "duplicate");
    refused(f, "{\"prompt\":\"a\",\"response\":\"b\",\"time\":99999999999999999999}", "not valid JSON");
}

static void test_hostile_nesting(void **state) {
    struct fixture *f = *state;
    char *text = malloc(100100);
    strcpy(text, "{\"prompt\":\"a\",\"response\":\"b\",\"x\":");
    size_t at = strlen(text);
    memset(text + at, '[', 50000);
    memset(text + at + 50000, ']', 49999);
    strcpy(text + at + 99999, "]}");
    refused(f, text, "nested deeper");
    free(text);
    refused(f, "{\"prompt\":\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\",\"response\":1}",
            "string"); /* not nesting */
}

/* In a child, so that the figure is of this refusal alone. KiB that the process grew by. */
static long growth(const char *home, const char *file, const char *word) {
    attune_store *store = NULL;
    attune_error err = {0};
    struct rusage before, after;
    if (store_open_path(home, 0, &store, NULL) != ATTUNE_OK) return -1;
    getrusage(RUSAGE_SELF, &before);
    if (attune_store_import(store, file, NULL, NULL, &err) != ATTUNE_ERROR_FORMAT) return -2;
    getrusage(RUSAGE_SELF, &after);
    if (!strstr(err.message, word) || !strstr(err.where, ":line 2")) return -3;
    attune_store_close(store);
    return after.ru_maxrss - before.ru_maxrss;
}

static void assert_growth_below(struct fixture *f, const char *file, const char *word, long kib) {
    int ends[2];
    long grown = -9;
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
        grown = growth(f->home, file, word);
        _exit(write(ends[1], &grown, sizeof grown) == sizeof grown ? 0 : 1);
    }
    close(ends[1]);
    assert_int_equal(read(ends[0], &grown, sizeof grown), sizeof grown);
    close(ends[0]);
    waitpid(child, NULL, 0);
    assert_true(grown >= 0);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    assert_true(grown < kib);
#else
    (void)kib;
#endif
}

static void test_hostile_long_line(void **state) {
    struct fixture *f = *state;
    const char *path = write_file(f, "long.jsonl", LINE_A "{\"prompt\":\"", strlen(LINE_A) + 11);
    assert_int_equal(truncate(path, 100 << 20), 0); /* a line of 100 MB; sparse, so it costs no disk */
    assert_growth_below(f, path, "longer than 16 MiB", 40 << 10);
    assert_int_equal(count_interactions(f), 0);
}

/* What fits into a line but would be fifty times as big in memory. */
static void test_hostile_wide_line(void **state) {
    struct fixture *f = *state;
    const char *path = in_home(f, "wide.jsonl");
    FILE *file = fopen(path, "wb");
    fputs(LINE_A "{\"prompt\":\"a\",\"response\":\"b\",\"x\":[[]", file);
    for (int i = 0; i < 5000000; i++) fputs(",[]", file);
    fputs("]}\n", file);
    fclose(file);
    assert_growth_below(f, path, "more than 100000 values", 64 << 10);
    assert_int_equal(count_interactions(f), 0);
}

/* ---- shapes ---- */

static void test_shapes(void **state) {
    struct fixture *f = *state;
    struct rows rows = {0};
    const char *path;
    static const char text[] =
        "{\"prompt\":\"p\",\"response\":\"r\",\"extra\":[1,{\"a\":null}]}\n"
        "{\"messages\":[{\"role\":\"system\",\"content\":\"\"},{\"role\":\"user\",\"content\":\"u1\"},"
        "{\"role\":\"assistant\",\"content\":\"a1\"},{\"role\":\"user\",\"content\":\"u2\"},"
        "{\"role\":\"assistant\",\"content\":\"a2\"}],\"time\":1700000000000}\n"
        "{\"Context\":\"Name a river\",\"Input\":\"Spain\",\"Response\":\"Ebro\"}\n"
        "{\"Context\":\"Name a sea\",\"Input\":\"\",\"Response\":\"Aral\"}\n";
    path = write_file(f, "in.jsonl", text, sizeof text - 1);
    OK(store_rows_from_file(path, collect, &rows, &f->err));
    assert_int_equal(rows.n, 4);
    assert_string_equal(rows.row[0].prompt, "p");
    assert_string_equal(rows.row[1].prompt, "u2");
    assert_string_equal(rows.row[1].response, "a2");
    assert_int_equal(rows.row[1].n_messages, 4);
    assert_int_equal(rows.row[1].time_ms, 1700000000000);
    assert_string_equal(rows.row[2].prompt, "Name a river: Spain");
    assert_string_equal(rows.row[2].response, "Ebro");
    assert_string_equal(rows.row[3].prompt, "Name a sea: ");
    assert_int_equal(rows.row[3].interaction, 0);
    /* The store gives back the same rows. */
    struct rows stored = {0};
    OK(import_text(f, text));
    examples(f, &stored);
    assert_int_equal(stored.n, 4);
    assert_string_equal(stored.row[0].response, "a2"); /* the oldest: it tells its time */
    assert_string_equal(stored.row[0].content_hash, rows.row[1].content_hash);
    assert_string_equal(stored.row[0].prompt_hash, rows.row[1].prompt_hash);
    assert_int_equal(stored.row[0].n_messages, 4);
    assert_string_equal(stored.row[2].prompt, "Name a river: Spain");
}

static void test_malformed_shapes(void **state) {
    struct fixture *f = *state;
    refused(f, "{}", "neither");
    refused(f, "{\"response\":\"b\"}", "'prompt'");
    refused(f, "{\"prompt\":\"a\"}", "'response'");
    refused(f, "{\"prompt\":\"\",\"response\":\"b\"}", "prompt is empty");
    refused(f, "{\"prompt\":\"a\",\"response\":\"\"}", "response is empty");
    refused(f, "{\"prompt\":\"a\",\"response\":null}", "string");
    refused(f, "{\"prompt\":\"a\",\"response\":\"b\",\"messages\":[]}", "two shapes");
    refused(f, "{\"prompt\":\"a\",\"Response\":\"b\"}", "two shapes");
    refused(f, "{\"Prompt\":\"a\",\"response\":\"b\"}", "must be written 'prompt'");
    refused(f, "{\"prompt\":\"a\",\"response\":\"b\",\"Thumb\":\"up\"}", "must be written 'thumb'");
    refused(f, "{\"Context\":\"a\",\"Response\":\"b\"}", "'Input'");
    refused(f, "{\"Context\":\"\",\"Input\":\"i\",\"Response\":\"b\"}", "'Context' is empty");
    refused(f, "{\"context\":\"a\",\"Input\":\"i\",\"Response\":\"b\"}", "must be written 'Context'");
    refused(f, "{\"messages\":{}}", "array");
    refused(f, "{\"messages\":[]}", "needs");
    refused(f, "{\"messages\":[{\"role\":\"assistant\",\"content\":\"x\"}]}", "needs");
    refused(f, "{\"messages\":[1,2]}", "message 1 is not an object");
    refused(f, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"user\",\"content\":\"y\"}]}",
            "assistant's");
    refused(f, "{\"messages\":[{\"role\":\"tool\",\"content\":\"x\"},{\"role\":\"assistant\",\"content\":\"y\"}]}",
            "role of message 1");
    refused(f, "{\"messages\":[{\"role\":\"system\",\"content\":\"x\"},{\"role\":\"assistant\",\"content\":\"y\"}]}",
            "no user message");
    refused(f, "{\"messages\":[{\"role\":\"user\",\"content\":\"\"},{\"role\":\"assistant\",\"content\":\"y\"}]}",
            "message 1 (user) is empty");
    refused(f, "{\"messages\":[{\"role\":\"user\"},{\"role\":\"assistant\",\"content\":\"y\"}]}", "'content'");
    refused(f, "{\"messages\":[{\"Role\":\"user\",\"content\":\"x\"},{\"role\":\"assistant\",\"content\":\"y\"}]}",
            "must be written 'role'");
}

static void test_malformed_extras(void **state) {
    struct fixture *f = *state;
    static const struct {
        const char *extra, *word;
    } cases[] = {
        {"\"time\":\"yesterday\"", "'time'"},
        {"\"time\":0", "'time'"},
        {"\"time\":1.5", "'time'"},
        {"\"consent\":1", "true or false"},
        {"\"consent\":null", "true or false"},
        {"\"app\":7", "string"},
        {"\"thumb\":\"sideways\"", "'thumb'"},
        {"\"edit\":\"\"", "edit"},
        {"\"edit\":[]", "string"},
        {"\"feedback\":{}", "array"},
        {"\"feedback\":[\"up\"]", "not an object"},
        {"\"feedback\":[{}]", "'kind'"},
        {"\"feedback\":[{\"kind\":\"applause\"}]", "must be one of"},
        {"\"feedback\":[{\"kind\":\"thumb\"}]", "'value'"},
        {"\"feedback\":[{\"kind\":\"thumb\",\"value\":2}]", "'value'"},
        {"\"feedback\":[{\"kind\":\"edit\"}]", "edit"},
        {"\"feedback\":[{\"kind\":\"dwell\",\"value\":-5}]", "dwell"},
        {"\"feedback\":[{\"kind\":\"accept\",\"Value\":1}]", "must be written 'value'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char line[256];
        snprintf(line, sizeof line, "{\"prompt\":\"a\",\"response\":\"b\",%s}", cases[i].extra);
        refused(f, line, cases[i].word);
    }
}

static void test_times(void **state) {
    static const struct {
        const char *text;
        int64_t ms; /* 0: refused */
    } cases[] = {
        {"2026-11-23T05:00:00Z", 1795410000000},
        {"2026-11-23T05:00:00.25Z", 1795410000250},
        {"2026-11-23T07:30:00+02:30", 1795410000000},
        {"2026-11-22T22:00:00-07:00", 1795410000000},
        {"2024-02-29T00:00:00Z", 1709164800000},
        {"2000-03-01T00:00:00.1239Z", 951868800123},
        {"1970-01-01T00:00:01Z", 1000},
        {"9999-12-31T23:59:59.999Z", 253402300799999},
        {"2023-02-29T00:00:00Z", 0},
        {"2100-02-29T00:00:00Z", 0},
        {"2026-13-01T00:00:00Z", 0},
        {"2026-11-23T24:00:00Z", 0},
        {"2026-11-23T05:00:00", 0},
        {"2026-11-23", 0},
        {"2026-11-23T05:00:00Zx", 0},
        {"2026-11-23T05:00:00.Z", 0},
        {"1970-01-01T00:00:00+01:00", 0},
        {"", 0},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int64_t ms = 0;
        int good = store_time_parse(cases[i].text, &ms);
        if (good != (cases[i].ms != 0) || ms != cases[i].ms) fail_msg("%s: %lld", cases[i].text, (long long)ms);
    }
}

/* ---- consent ---- */

static int64_t consented(struct fixture *f) {
    int64_t n = -1;
    OK(store_counts(f->store, NULL, &n, NULL, NULL, &f->err));
    return n;
}

static void test_consent(void **state) {
    struct fixture *f = *state;
    attune_import_result result;
    static const struct {
        int home, option;
        const char *row;
        int given;
    } cases[] = {
        {0, ATTUNE_CONSENT_HOME, "", 0},
        {1, ATTUNE_CONSENT_HOME, "", 1},
        {0, ATTUNE_CONSENT_GIVEN, "", 1},
        {1, ATTUNE_CONSENT_NOT_GIVEN, "", 0},
        {1, ATTUNE_CONSENT_GIVEN, ",\"consent\":false", 0},
        {0, ATTUNE_CONSENT_NOT_GIVEN, ",\"consent\":true", 1},
    };
    for (int i = 0; i < 6; i++) {
        char line[128];
        int64_t before = consented(f);
        OK(store_consent_set(f->store, cases[i].home, &f->err));
        snprintf(line, sizeof line, "{\"prompt\":\"a\",\"response\":\"b\",\"session\":\"%d\"%s}", i, cases[i].row);
        OK(import_bytes(f, line, strlen(line), cases[i].option, &result));
        assert_int_equal(result.rows, 1);
        assert_int_equal(consented(f) - before, cases[i].given);
    }
    /* What was recorded keeps the consent of its time. */
    int64_t before = consented(f);
    OK(store_consent_set(f->store, 1, &f->err));
    assert_int_equal(consented(f), before);
    OK(store_consent_set(f->store, 0, &f->err));
    OK(record(f->store, "p", "r", 0, NULL, &f->err));
    assert_int_equal(consented(f), before);
    attune_interaction interaction;
    ATTUNE_INIT(interaction);
    interaction.prompt = "p";
    interaction.response = "r";
    interaction.consent = ATTUNE_CONSENT_GIVEN;
    OK(attune_store_record(f->store, &interaction, NULL, &f->err));
    OK(attune_store_flush(f->store, &f->err));
    assert_int_equal(consented(f), before + 1);
}

/* ---- what is there already ---- */

#define ID_1 "01890a5d-ac96-774b-bcce-b302099a8057"
#define ID_2 "01890a5d-ac96-774b-bcce-b302099a8058"

static void imports(struct fixture *f, const char *text, int64_t rows, int64_t duplicates) {
    attune_import_result result;
    OK(import_bytes(f, text, strlen(text), 0, &result));
    if (result.rows != rows || result.duplicates != duplicates)
        fail_msg("%s: %lld rows, %lld duplicates", text, (long long)result.rows, (long long)result.duplicates);
}

static void test_duplicates(void **state) {
    struct fixture *f = *state;
    /* With an id: this id, whatever the content. */
    imports(f, "{\"id\":\"" ID_1 "\",\"prompt\":\"a\",\"response\":\"b\"}\n", 1, 0);
    imports(f, "{\"id\":\"" ID_1 "\",\"prompt\":\"another\",\"response\":\"b\",\"app\":\"x\"}\n", 0, 1);
    imports(f,
            "{\"id\":\"" ID_2 "\",\"prompt\":\"a\",\"response\":\"b\"}\n{\"id\":\"" ID_2
            "\",\"prompt\":\"c\",\"response\":\"d\"}\n",
            1, 1);
    assert_int_equal(query_number(f, "SELECT count(*) FROM interaction WHERE uuid IN ('" ID_1 "', '" ID_2 "')"), 2);
    /* Without: content, app and session. */
    imports(f, "{\"prompt\":\"a\",\"response\":\"b\"}\n", 0, 1);
    imports(f, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}\n", 0,
            1);
    imports(f, "{\"prompt\":\"a\",\"response\":\"b\",\"edit\":\"c\"}\n", 0, 1);
    imports(f, "{\"prompt\":\"a\",\"response\":\"b\",\"app\":\"x\"}\n", 1, 0);
    imports(f, "{\"prompt\":\"a\",\"response\":\"b\",\"session\":\"s\"}\n", 1, 0);
    imports(f, "{\"prompt\":\"a\",\"response\":\"c\"}\n{\"prompt\":\"a\",\"response\":\"c\"}\n", 1, 1);
    assert_int_equal(query_number(f, "SELECT count(*) FROM feedback"), 0);
}

/* Rows that nobody has derived yet, and even those that are still queued, are known by their content. */
static void test_duplicates_of_recorded_rows(void **state) {
    struct fixture *f = *state;
    attune_interaction interaction;
    ATTUNE_INIT(interaction);
    interaction.prompt = "a";
    interaction.response = "b";
    OK(record(f->store, "p", "r", 0, NULL, &f->err));
    OK(attune_store_record(f->store, &interaction, NULL, &f->err));
    imports(f,
            "{\"prompt\":\"a\",\"response\":\"b\",\"app\":\"\"}\n{\"prompt\":\"p\",\"response\":\"r\",\"app\":\"\"}\n",
            0, 2);
    imports(f, "{\"prompt\":\"a\",\"response\":\"b\"}\n", 1, 0);
}

/* Consent for a row that is there makes an example of it; one with an id speaks for that row alone. */
static void test_consent_of_duplicates(void **state) {
    struct fixture *f = *state;
    struct rows rows = {0};
    static const char twins[] = "{\"id\":\"" ID_1 "\",\"prompt\":\"a\",\"response\":\"b\",\"consent\":false}\n"
                                "{\"id\":\"" ID_2 "\",\"prompt\":\"a\",\"response\":\"b\",\"consent\":false}\n";
    imports(f, twins, 2, 0);
    examples(f, &rows);
    assert_int_equal(rows.n, 0);
    imports(f, "{\"id\":\"" ID_2 "\",\"prompt\":\"a\",\"response\":\"b\",\"consent\":true}\n", 0, 1);
    assert_int_equal(count_consented(f), 1);
    examples(f, &rows);
    assert_int_equal(rows.n, 1);
    assert_int_equal(rows.row[0].interaction, 2);
    imports(f, "{\"prompt\":\"a\",\"response\":\"b\",\"consent\":true}\n", 0, 1);
    assert_int_equal(count_consented(f), 2);
    assert_int_equal(query_number(f,
                                  "SELECT count(*) FROM audit WHERE event = 'import' AND detail = '0 rows, 0 feedback, "
                                  "1 duplicates, 1 of them got consent, 0 bad, 0 forgotten before'"),
                     2);
}

static void bury(struct fixture *f, const char *prompt, const char *response) {
    const attune_message message = {"user", prompt};
    char content_hash[HASH_HEX_SIZE];
    unsigned char hash[32];
    sqlite3_stmt *put = NULL;
    OK(store_enter(f->store, &f->err));
    OK(store_begin(f->store, &f->err));
    store_keyed_content_hash(f->store, &message, 1, response, content_hash);
    OK(store_tombstone_hash(f->store, content_hash, hash, &f->err));
    OK(store_prepare(f->store, -1, "INSERT INTO tombstone (hash, time_ms) VALUES (?, 1)", "test", &put, &f->err));
    sqlite3_bind_blob(put, 1, hash, sizeof hash, SQLITE_STATIC);
    OK(store_run_statement(f->store, put, "test", &f->err));
    sqlite3_finalize(put);
    OK(store_commit(f->store, &f->err));
    store_leave(f->store);
}

static void test_what_was_forgotten(void **state) {
    struct fixture *f = *state;
    attune_import_options options;
    attune_import_result result;
    const char *path = write_file(f, "in.jsonl", LINE_A LINE_B, strlen(LINE_A LINE_B));
    ATTUNE_INIT(options);
    ATTUNE_INIT(result);
    bury(f, "What is a fjord?", "A drowned valley.");
    OK(attune_store_import(f->store, path, &options, &result, &f->err));
    assert_int_equal(result.rows, 1);
    assert_int_equal(result.forgotten, 1);
    options.forgotten = 1;
    OK(attune_store_import(f->store, path, &options, &result, &f->err));
    assert_int_equal(result.rows, 1);
    assert_int_equal(result.duplicates, 1);
    assert_int_equal(result.forgotten, 0);
    options.forgotten = 0; /* it is there again: a duplicate, not one that is left out */
    OK(attune_store_import(f->store, path, &options, &result, &f->err));
    assert_int_equal(result.duplicates, 2);
    assert_int_equal(result.forgotten, 0);
}

/* ---- going on behind bad lines ---- */

struct bad_lines {
    int n;
    int line[16];
    char message[16][384];
};

static void take_bad_line(const attune_error *what, void *user) {
    struct bad_lines *bad = user;
    const char *at = strstr(what->where, ":line ");
    assert_int_equal(what->code, ATTUNE_ERROR_FORMAT);
    assert_non_null(at);
    assert_true(bad->n < 16);
    bad->line[bad->n] = atoi(at + 6);
    strcpy(bad->message[bad->n++], what->message);
}

static void test_keep_going(void **state) {
    struct fixture *f = *state;
    attune_import_options options;
    attune_import_result result;
    struct bad_lines bad = {0};
    static const char text[] =
        "nonsense\n" LINE_A "{\"prompt\":\"\",\"response\":\"secret\"}\n\n{\"prompt\":\"\xff\"}\n" LINE_B
        "{\"prompt\":\"x\"}";
    const char *path = write_file(f, "in.jsonl", text, sizeof text - 1);
    ATTUNE_INIT(options);
    ATTUNE_INIT(result);
    options.keep_going = 1;
    options.on_bad_line = take_bad_line;
    options.user = &bad;
    OK(attune_store_import(f->store, path, &options, &result, NULL));
    assert_int_equal(result.rows, 2);
    assert_int_equal(result.bad, 4);
    assert_int_equal(bad.n, 4);
    assert_int_equal(bad.line[0], 1);
    assert_int_equal(bad.line[1], 3);
    assert_int_equal(bad.line[2], 5);
    assert_int_equal(bad.line[3], 7);
    assert_non_null(strstr(bad.message[1], "prompt is empty"));
    for (int i = 0; i < bad.n; i++) assert_null(strstr(bad.message[i], "secret"));
    assert_int_equal(count_interactions(f), 2);
    options.on_bad_line = NULL;
    OK(attune_store_import(f->store, path, &options, &result, &f->err));
    assert_int_equal(result.bad, 4);
    assert_int_equal(result.duplicates, 2);
    options.keep_going = 0;
    FAILS(attune_store_import(f->store, path, &options, &result, &f->err), ATTUNE_ERROR_FORMAT, "JSON", ":line 1");
}

static void test_keep_going_behind_a_huge_line(void **state) {
    struct fixture *f = *state;
    attune_import_options options;
    attune_import_result result;
    struct bad_lines bad = {0};
    const char *path = write_file(f, "in.jsonl", LINE_A "{\"prompt\":\"", strlen(LINE_A) + 11);
    assert_int_equal(truncate(path, 100 << 20), 0);
    FILE *file = fopen(path, "ab");
    fputs("\n" LINE_B "{\n", file);
    fclose(file);
    ATTUNE_INIT(options);
    ATTUNE_INIT(result);
    options.keep_going = 1;
    options.on_bad_line = take_bad_line;
    options.user = &bad;
    OK(attune_store_import(f->store, path, &options, &result, &f->err));
    assert_int_equal(result.rows, 2);
    assert_int_equal(result.bad, 2);
    assert_int_equal(bad.line[0], 2);
    assert_non_null(strstr(bad.message[0], "longer than 16 MiB"));
    assert_int_equal(bad.line[1], 4);
}

/* Not the lines' fault: going on does not hide it. */
static void test_the_disk_fails(void **state) {
    struct fixture *f = *state;
    attune_import_options options;
    const char *path = write_file(f, "in.jsonl", LINE_A LINE_B, strlen(LINE_A LINE_B));
    ATTUNE_INIT(options);
    options.keep_going = 1;
    setenv("ATTUNE_FAULT", "store.commit.before:fail", 1);
    int code = attune_store_import(f->store, path, &options, NULL, &f->err);
    unsetenv("ATTUNE_FAULT");
    assert_int_equal(code, ATTUNE_ERROR_IO);
    assert_int_equal(count_interactions(f), 0);
    assert_int_equal(query_number(f, "SELECT count(*) FROM audit WHERE event = 'import'"), 0);
    OK(attune_store_import(f->store, path, &options, NULL, &f->err));
    assert_int_equal(count_interactions(f), 2);
}

/* ---- what a row says beside its texts ---- */

static void test_tiers_and_provenance(void **state) {
    struct fixture *f = *state;
    imports(f,
            "{\"prompt\":\"1\",\"response\":\"r\"}\n{\"prompt\":\"2\",\"response\":\"r\",\"tier\":\"person\"}\n"
            "{\"prompt\":\"3\",\"response\":\"r\",\"tier\":\"web\",\"sensitivity\":\"private\",\"model\":\"m\","
            "\"adapter\":\"a\","
            "\"template_hash\":\"t\",\"source\":\"s\",\"private_findings\":3}\n",
            3, 0);
    OK(record_json(f, "{\"prompt\":\"4\",\"response\":\"r\"}"));
    OK(record_json(f, "{\"prompt\":\"5\",\"response\":\"r\",\"tier\":\"imported\"}"));
    OK(attune_store_flush(f->store, &f->err));
    assert_int_equal(query_number(f, "SELECT group_concat(tier, '') FROM (SELECT tier FROM interaction ORDER BY id)"),
                     10301);
    assert_int_equal(
        query_number(f, "SELECT count(*) FROM interaction WHERE id = 3 AND sensitivity = 1 AND model = 'm' AND "
                        "adapter = 'a' AND template_hash = 't' AND source = 's' AND private_findings = 3"),
        1);
}

static size_t count_x(const char *text, size_t length, void *user) {
    size_t n = 0;
    ++*(int *)user;
    for (size_t i = 0; i < length; i++) n += text[i] == 'x';
    return n;
}

static void test_private_findings(void **state) {
    struct fixture *f = *state;
    attune_store_options options;
    int calls = 0;
    ATTUNE_INIT(options);
    options.find_private = count_x;
    options.user = &calls;
    attune_store_close(f->store);
    f->store = NULL;
    OK(attune_store_open(f->home, &options, &f->store, &f->err));
    imports(f,
            "{\"prompt\":\"x1\",\"response\":\"xr\",\"edit\":\"xx\",\"thumb\":\"up\"}\n"
            "{\"prompt\":\"2\",\"response\":\"x\",\"private_findings\":7}\n{\"prompt\":\"3\",\"response\":\"r\"}\n",
            3, 0);
    assert_int_equal(calls, 7);
    assert_int_equal(
        query_number(f, "SELECT group_concat(n, '') FROM (SELECT private_findings n FROM interaction ORDER BY id)"),
        470);
    struct rows rows = {0};
    examples(f, &rows);
    assert_int_equal(rows.n, 1);
}

/* ---- feedback in a row ---- */

static void test_feedback_in_rows(void **state) {
    struct fixture *f = *state;
    attune_import_result result;
    struct rows rows = {0};
    static const char text[] =
        "{\"prompt\":\"1\",\"response\":\"r\",\"thumb\":\"down\",\"time\":1}\n"
        "{\"prompt\":\"2\",\"response\":\"r\",\"thumb\":\"down\",\"edit\":\"mended\",\"time\":2}\n"
        "{\"prompt\":\"3\",\"response\":\"r\",\"feedback\":[{\"kind\":\"thumb\",\"value\":-1},{\"kind\":\"undo\"}],"
        "\"time\":3}\n"
        "{\"prompt\":\"4\",\"response\":\"r\",\"feedback\":[{\"kind\":\"edit\",\"text\":\"e1\"},{\"kind\":\"edit\","
        "\"text\":\"e2\"},"
        "{\"kind\":\"dwell\",\"value\":900},{\"kind\":\"copy\"},{\"kind\":\"accept\",\"time\":\"2026-11-23T05:00:00Z\"}"
        "],\"time\":4}\n"
        "{\"prompt\":\"5\",\"response\":\"r\",\"feedback\":[{\"kind\":\"regenerate\"}],\"time\":5}\n";
    OK(import_bytes(f, text, sizeof text - 1, 0, &result));
    assert_int_equal(result.rows, 5);
    assert_int_equal(result.feedback, 11);
    examples(f, &rows);
    assert_int_equal(rows.n, 3);
    assert_string_equal(rows.row[0].response, "mended");
    assert_string_equal(rows.row[1].prompt, "3");
    assert_string_equal(rows.row[2].response, "e2");
    /* From the file alone: every row, edits in place of the responses, and the same hashes. */
    struct rows file = {0};
    OK(store_rows_from_file(in_home(f, "in.jsonl"), collect, &file, &f->err));
    assert_int_equal(file.n, 5);
    assert_string_equal(file.row[1].response, "mended");
    assert_string_equal(file.row[1].content_hash, rows.row[0].content_hash);
    assert_string_equal(file.row[3].content_hash, rows.row[2].content_hash);
    for (size_t i = 0; i < file.n; i++) {
        assert_int_equal(file.row[i].kind, STORE_EXAMPLE_SFT);
        assert_true(file.row[i].weight == 1.0 && file.row[i].label == 0 && file.row[i].interaction == 0);
        assert_int_equal(strlen(file.row[i].prompt_hash), 16);
    }
    assert_string_equal(file.row[1].prompt_hash, rows.row[0].prompt_hash);
    assert_int_equal(query_number(f, "SELECT time_ms FROM feedback WHERE kind = 6"), 4);
    assert_int_equal(query_number(f, "SELECT time_ms FROM feedback WHERE kind = 3"), 1795410000000);
}

static int refuse_second(const struct store_row *row, void *user, attune_error *err) {
    (void)row, (void)err;
    return ++*(int *)user == 2 ? ATTUNE_ERROR_CANCELLED : ATTUNE_OK;
}

static void test_rows_stop(void **state) {
    struct fixture *f = *state;
    struct rows rows = {0};
    int calls = 0;
    const char *path = write_file(f, "in.jsonl", LINE_A LINE_B LINE_A "oops\n", strlen(LINE_A LINE_B LINE_A) + 5);
    assert_int_equal(store_rows_from_file(path, refuse_second, &calls, &f->err), ATTUNE_ERROR_CANCELLED);
    assert_int_equal(calls, 2);
    FAILS(store_rows_from_file(path, collect, &rows, &f->err), ATTUNE_ERROR_FORMAT, "not valid JSON",
          "in.jsonl:line 4");
}

/* ---- the API ---- */

static void test_record_json(void **state) {
    struct fixture *f = *state;
    attune_uuid id = {""};
    attune_import_options options;
    static const char text[] = "{\"prompt\":\"p\",\"response\":\"r\",\"edit\":\"e\"} junk beyond the length";
    ATTUNE_INIT(options);
    options.consent = ATTUNE_CONSENT_NOT_GIVEN;
    OK(attune_store_record_json(f->store, text, (size_t)(strchr(text, '}') + 1 - text), &options, &id, &f->err));
    assert_int_equal(strlen(id.text), 36);
    OK(attune_store_flush(f->store, &f->err));
    assert_int_equal(count_interactions(f), 1);
    assert_int_equal(consented(f), 0);
    OK(feedback(f->store, &id, ATTUNE_FEEDBACK_ACCEPT, 0, NULL, &f->err));
    assert_int_equal(query_number(f, "SELECT count(*) FROM interaction JOIN feedback ON interaction = interaction.id "
                                     "WHERE app = '' AND kind = 2 AND feedback.time_ms = interaction.time_ms"),
                     1);
    OK(record_json(f,
                   "{\"prompt\":\"p\",\"response\":\"r\",\"time\":5,\"thumb\":\"up\",\"feedback\":[{\"kind\":\"copy\","
                   "\"time\":6}]}"));
    OK(attune_store_flush(f->store, &f->err));
    assert_int_equal(query_number(f, "SELECT 10 * min(time_ms) + max(time_ms) FROM feedback WHERE interaction = 2"),
                     56);
    FAILS(record_json(f, "{\"prompt\":\"p\",\"response\":\"r\",\"id\":\"" ID_1 "\"}"), ATTUNE_ERROR_FORMAT, "'id'",
          "JSON object");
    FAILS(record_json(f, "{\"prompt\":\"p\",\"response\":\"r\",\"private_findings\":1}"), ATTUNE_ERROR_FORMAT,
          "'private_findings'", "JSON object");
    OK(attune_store_flush(f->store, &f->err));
    assert_int_equal(count_interactions(f), 2);
}

/* The queue takes the row and not its feedback: the error says so, and which row it is. */
static void test_record_json_when_the_queue_is_full(void **state) {
    struct fixture *f = *state;
    attune_store_options options;
    attune_uuid id = {"unset"};
    static const char text[] = "{\"prompt\":\"p\",\"response\":\"r\",\"thumb\":\"up\"}";
    ATTUNE_INIT(options);
    options.queue_rows = 1;
    options.group_ms = 60000;
    attune_store_close(f->store);
    f->store = NULL;
    OK(attune_store_open(f->home, &options, &f->store, &f->err));
    OK(store_enter(f->store, &f->err));
    OK(store_begin(f->store, &f->err)); /* the writer waits for this one */
    FAILS(attune_store_record_json(f->store, text, strlen(text), NULL, &id, &f->err), ATTUNE_ERROR_QUEUE_FULL,
          "no room for feedback 1", "JSON object");
    assert_string_equal(id.text, "unset");
    store_rollback(f->store);
    store_leave(f->store);
    OK(attune_store_flush(f->store, &f->err));
    assert_int_equal(count_interactions(f), 1);
    const char *uuid = strstr(f->err.message, "recorded as ");
    assert_non_null(uuid);
    attune_feedback thumb;
    ATTUNE_INIT(thumb);
    thumb.kind = ATTUNE_FEEDBACK_THUMB;
    thumb.value = 1;
    memcpy(id.text, uuid + 12, 36);
    id.text[36] = '\0';
    OK(attune_store_feedback(f->store, id.text, &thumb, &f->err));
    OK(attune_store_flush(f->store, &f->err));
}

static void test_record_arguments(void **state) {
    struct fixture *f = *state;
    attune_interaction interaction;
    attune_uuid id;
    attune_message message = {"user", "hello"};
    ATTUNE_INIT(interaction);
    interaction.response = "r";
    FAILS(attune_store_record(f->store, &interaction, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "no user message", "");
    FAILS(attune_store_record(f->store, NULL, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "NULL", "");
    interaction.prompt = "p";
    interaction.response = NULL;
    FAILS(attune_store_record(f->store, &interaction, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "missing", "");
    interaction.response = "\xff";
    FAILS(attune_store_record(f->store, &interaction, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "UTF-8", "");
    interaction.response = "r";
    interaction.messages = &message;
    interaction.n_messages = 1;
    FAILS(attune_store_record(f->store, &interaction, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "both", "");
    interaction.prompt = NULL;
    interaction.time_ms = -1;
    FAILS(attune_store_record(f->store, &interaction, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "1970", "");
    interaction.time_ms = 0;
    interaction.consent = 3;
    FAILS(attune_store_record(f->store, &interaction, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "consent", "");
    interaction.consent = 0;
    interaction.app = "\xff";
    FAILS(attune_store_record(f->store, &interaction, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "app", "");
    interaction.app = NULL;
    OK(attune_store_record(f->store, &interaction, &id, &f->err));
    OK(attune_store_flush(f->store, &f->err));
    assert_int_equal(count_interactions(f), 1);
    FAILS(feedback(f->store, &id, 9, 0, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "kind 9", "");
    FAILS(feedback(f->store, &id, ATTUNE_FEEDBACK_THUMB, 0, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "thumb", "");
    FAILS(feedback(f->store, &id, ATTUNE_FEEDBACK_EDIT, 0, NULL, &f->err), ATTUNE_ERROR_ARGUMENT, "edit", "");
    FAILS(feedback(f->store, &id, ATTUNE_FEEDBACK_EDIT, 0, "\xff", &f->err), ATTUNE_ERROR_ARGUMENT, "UTF-8", "");
    id.text[0] ^= 1;
    FAILS(feedback(f->store, &id, ATTUNE_FEEDBACK_ACCEPT, 0, NULL, &f->err), ATTUNE_ERROR_NOT_FOUND, id.text,
          "store.db");
}

static void test_uuids(void **state) {
    struct fixture *f = *state;
    attune_uuid a, b;
    (void)f;
    store_uuid_make(0x0123456789ab, &a);
    store_uuid_make(0x0123456789ab, &b);
    assert_int_equal(strlen(a.text), 36);
    assert_memory_equal(a.text, "01234567-89ab-7", 15);
    assert_non_null(strchr("89ab", a.text[19]));
    assert_true(a.text[8] == '-' && a.text[13] == '-' && a.text[18] == '-' && a.text[23] == '-');
    assert_string_not_equal(a.text, b.text);
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, store_setup, store_teardown)
#define BOTH(test) TEST(test), cmocka_unit_test_setup_teardown(test, encrypted_setup, store_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_lines),
        TEST(test_all_or_nothing_and_again),
        TEST(test_consent_by_importing_again),
        TEST(test_where_of_a_long_path),
        TEST(test_files_that_are_none),
        TEST(test_standard_input),
        TEST(test_hostile_bytes),
        TEST(test_hostile_json),
        TEST(test_hostile_nesting),
        TEST(test_hostile_long_line),
        TEST(test_hostile_wide_line),
        TEST(test_shapes),
        TEST(test_malformed_shapes),
        TEST(test_malformed_extras),
        cmocka_unit_test(test_times),
        TEST(test_consent),
        BOTH(test_duplicates),
        BOTH(test_duplicates_of_recorded_rows),
        BOTH(test_consent_of_duplicates),
        BOTH(test_what_was_forgotten),
        TEST(test_keep_going),
        TEST(test_keep_going_behind_a_huge_line),
        TEST(test_the_disk_fails),
        TEST(test_tiers_and_provenance),
        TEST(test_private_findings),
        TEST(test_feedback_in_rows),
        TEST(test_rows_stop),
        TEST(test_record_json),
        TEST(test_record_json_when_the_queue_is_full),
        TEST(test_record_arguments),
        TEST(test_uuids),
    };
    return cmocka_run_group_tests_name("import", tests, NULL, NULL);
}
