/* What is kept as JSON Lines, and back again without a loss. */
#include "tests/store_fixture.h"

#include <signal.h>

#include "datastore/jsonl.h"
#include "datastore/query.h"

/* ---- helpers ---- */

static char *bytes_of(const char *path, size_t *n) {
    FILE *file = fopen(path, "rb");
    struct stat info;
    assert_non_null(file);
    assert_int_equal(fstat(fileno(file), &info), 0);
    char *bytes = malloc((size_t)info.st_size + 1);
    *n = fread(bytes, 1, (size_t)info.st_size, file);
    bytes[*n] = '\0';
    fclose(file);
    return bytes;
}

static int export(struct fixture *f, const char *name, int format, const attune_filter *filter, int64_t *n) {
    attune_export_options options;
    ATTUNE_INIT(options);
    options.format = format;
    options.filter = filter;
    return attune_store_export(f->store, strcmp(name, "-") == 0 ? name : in_home(f, name), &options, n, &f->err);
}

static void exports(struct fixture *f, const char *name, int format, const char *wanted) {
    size_t size;
    int64_t n = -1, lines = 0;
    OK(export(f, name, format, NULL, &n));
    char *bytes = bytes_of(in_home(f, name), &size);
    assert_string_equal(bytes, wanted);
    for (size_t i = 0; i < size; i++) lines += bytes[i] == '\n';
    assert_int_equal(n, lines);
    free(bytes);
}

static int files_in(const struct fixture *f, const char *part) {
    DIR *folder = opendir(f->home);
    struct dirent *entry;
    int n = 0;
    while ((entry = readdir(folder))) n += strstr(entry->d_name, part) != NULL;
    closedir(folder);
    return n;
}

/* ---- the formats ---- */

#define ID "01890a5d-ac96-774b-bcce-b302099a8057"

static void import(struct fixture *f, const char *text) {
    OK(attune_store_import(f->store, write_file(f, "in.jsonl", text, strlen(text)), NULL, NULL, &f->err));
}

static void test_formats(void **state) {
    struct fixture *f = *state;
    import(f, "{\"id\":\"" ID
              "\",\"time\":5,\"prompt\":\"p\",\"response\":\"draft\",\"thumb\":\"up\",\"edit\":\"final\"}\n"
              "{\"time\":4,\"prompt\":\"q\",\"response\":\"no consent\",\"consent\":false}\n"
              "{\"time\":3,\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\"u\"},"
              "{\"role\":\"assistant\",\"content\":\"a\"}]}\n"
              "{\"time\":2,\"prompt\":\"q\",\"response\":\"bad\",\"thumb\":\"down\"}\n");
    exports(f, "chat", ATTUNE_EXPORT_CHAT,
            "{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\"u\"},"
            "{\"role\":\"assistant\",\"content\":\"a\"}]}\n"
            "{\"messages\":[{\"role\":\"user\",\"content\":\"p\"},{\"role\":\"assistant\",\"content\":\"final\"}]}\n");
    exports(f, "preference", ATTUNE_EXPORT_PREFERENCE,
            "{\"prompt\":[{\"role\":\"user\",\"content\":\"p\"}],\"chosen\":[{\"role\":\"assistant\",\"content\":"
            "\"final\"}],"
            "\"rejected\":[{\"role\":\"assistant\",\"content\":\"draft\"}]}\n");
    int64_t n = -1;
    OK(export(f, "rows", ATTUNE_EXPORT_ROWS, NULL, &n));
    assert_int_equal(n, 4);
    size_t size;
    char *rows = bytes_of(in_home(f, "rows"), &size);
    char *last = strstr(rows, "{\"id\":\"" ID "\"");
    assert_non_null(last);
    assert_string_equal(
        last, "{\"id\":\"" ID "\",\"time\":5,\"app\":\"import\",\"tier\":\"imported\",\"consent\":true,"
              "\"messages\":[{\"role\":\"user\",\"content\":\"p\"},{\"role\":\"assistant\",\"content\":\"draft\"}],"
              "\"feedback\":[{\"kind\":\"thumb\",\"value\":\"up\",\"time\":5},"
              "{\"kind\":\"edit\",\"text\":\"final\",\"time\":5}]}\n");
    free(rows);
    struct stat info;
    assert_int_equal(stat(in_home(f, "rows"), &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
    assert_int_equal(query_number(f, "SELECT count(*) FROM audit WHERE event = 'export'"), 3);
    assert_int_equal(query_number(f,
                                  "SELECT count(*) FROM audit WHERE event = 'export' AND detail = 'rows, 4 lines, to a "
                                  "file'"),
                     1);
    assert_sound(f);
}

static void test_filtered(void **state) {
    struct fixture *f = *state;
    attune_filter filter;
    size_t size;
    int64_t n = -1;
    import(f, "{\"time\":1,\"prompt\":\"one\",\"response\":\"r\"}\n{\"time\":2,\"prompt\":\"two\",\"response\":\"r\"}\n"
              "{\"time\":3,\"prompt\":\"three\",\"response\":\"r\"}\n");
    ATTUNE_INIT(filter);
    filter.match = "t*";
    OK(export(f, "out", ATTUNE_EXPORT_ROWS, &filter, &n)); /* in the filter's order */
    assert_int_equal(n, 2);
    char *rows = bytes_of(in_home(f, "out"), &size);
    assert_true(strstr(rows, "three") < strstr(rows, "two"));
    assert_null(strstr(rows, "one"));
    free(rows);
    filter.match = "nothing";
    OK(export(f, "empty", ATTUNE_EXPORT_ROWS, &filter, &n));
    assert_int_equal(n, 0);
    FAILS(export(f, "chat", ATTUNE_EXPORT_CHAT, &filter, &n), ATTUNE_ERROR_ARGUMENT, "filter", "options");
    filter.match = "...";
    FAILS(export(f, "bad", ATTUNE_EXPORT_ROWS, &filter, &n), ATTUNE_ERROR_ARGUMENT, "no word", "");
    assert_int_equal(files_in(f, "bad"), 0);
}

/* What is still queued when the export is asked for is in it. */
static void test_queued_rows(void **state) {
    struct fixture *f = *state;
    attune_interaction interaction;
    int64_t n = 0;
    ATTUNE_INIT(interaction);
    interaction.prompt = "p";
    interaction.response = "r";
    OK(attune_store_record(f->store, &interaction, NULL, &f->err));
    OK(export(f, "out", ATTUNE_EXPORT_ROWS, NULL, &n));
    assert_int_equal(n, 1);
}

/* ---- round trips ---- */

static uint32_t draw(uint64_t *seed, uint32_t n) {
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((*seed >> 33) % n);
}

/* 1 to 40 characters of every sort; some answers live. */
static const char *some_text(uint64_t *seed) {
    static char texts[32][200];
    static int next;
    static const char *const pieces[] = {"a",      "Z",          " ",      "\"",     "\\",      "\n",     "\r\n",
                                         "\t",     "\x01",       "\x1f",   "\x7f",   "/",       "\u00e9", "e\u0301",
                                         "\u6771", "\U0001f389", "\ufeff", "\u2028", "\\u0000", "{}",     "]"};
    char *text = texts[next++ % 32];
    text[0] = '\0';
    for (uint32_t i = 0, n = 1 + draw(seed, 40); i < n; i++)
        strcat(text, pieces[draw(seed, sizeof pieces / sizeof *pieces)]);
    return text;
}

static const char *maybe(uint64_t *seed) { return draw(seed, 2) ? some_text(seed) : draw(seed, 4) ? NULL : ""; }

static void random_feedback(struct fixture *f, const attune_uuid *id, uint64_t *seed) {
    for (uint32_t i = 0, n = draw(seed, 5); i < n; i++) {
        attune_feedback feedback;
        ATTUNE_INIT(feedback);
        feedback.kind = 1 + (int)draw(seed, 8);
        feedback.value = feedback.kind == ATTUNE_FEEDBACK_THUMB   ? (draw(seed, 2) ? 1 : -1)
                         : feedback.kind == ATTUNE_FEEDBACK_DWELL ? draw(seed, 100000)
                                                                  : (int64_t)draw(seed, 3) - 1;
        if (feedback.kind == ATTUNE_FEEDBACK_EDIT || draw(seed, 3) == 0) feedback.text = some_text(seed);
        feedback.time_ms = 1 + draw(seed, 1000);
        OK(attune_store_feedback(f->store, id->text, &feedback, &f->err));
    }
}

static void random_row(struct fixture *f, uint64_t *seed) {
    static const char *const roles[] = {"system", "user", "assistant"};
    attune_message messages[6];
    attune_interaction in;
    attune_uuid id;
    ATTUNE_INIT(in);
    if (draw(seed, 2)) {
        in.messages = messages;
        in.n_messages = 1 + draw(seed, 6);
        for (size_t i = 0; i < in.n_messages; i++)
            messages[i] = (attune_message){i + 1 == in.n_messages ? "user" : roles[draw(seed, 3)], some_text(seed)};
        if (draw(seed, 3) == 0 && strcmp(messages[0].role, "system") == 0) messages[0].content = "";
    } else {
        in.prompt = some_text(seed);
    }
    in.response = some_text(seed);
    in.app = maybe(seed);
    in.session = maybe(seed);
    in.source = maybe(seed);
    in.model = maybe(seed);
    in.adapter = maybe(seed);
    in.template_hash = maybe(seed);
    in.time_ms = 1 + draw(seed, 1000); /* some at the same moment */
    in.consent = 1 + (int)draw(seed, 2);
    in.tier = (int)draw(seed, 5);
    in.sensitivity = (int)draw(seed, 3);
    OK(attune_store_record(f->store, &in, &id, &f->err));
    random_feedback(f, &id, seed);
}

/* Rows of every sort; a few twice, some with what only an import brings. */
static void random_store(struct fixture *f) {
    uint64_t seed = 3;
    for (int i = 0; i < 300; i++) random_row(f, &seed);
    for (int i = 0; i < 4; i++) OK(record(f->store, "twin", "twin", 7, NULL, &f->err));
    import(f,
           "{\"prompt\":\"p\",\"response\":\"r\",\"private_findings\":3,\"time\":9}\n{\"Context\":\"c\",\"Input\":\"\","
           "\"Response\":\"r\",\"time\":9,\"feedback\":[{\"kind\":\"copy\",\"value\":5,\"text\":\"x\"}]}\n");
}

static void assert_same_files(const char *a, const char *b) {
    size_t n, m;
    char *x = bytes_of(a, &n), *y = bytes_of(b, &m);
    assert_int_equal(n, m);
    assert_memory_equal(x, y, n);
    free(x);
    free(y);
}

/* Into a fresh home whose own consent and encryption are others. */
static void round_trip(struct fixture *f, int (*setup)(void **state)) {
    void *state = NULL;
    int64_t n = 0, again = 0;
    attune_import_result result;
    attune_import_options options;
    random_store(f);
    OK(export(f, "rows", ATTUNE_EXPORT_ROWS, NULL, &n));
    assert_int_equal(n, 306);
    assert_int_equal(setup(&state), 0);
    struct fixture *fresh = state;
    OK(store_consent_set(fresh->store, 0, &f->err));
    ATTUNE_INIT(options);
    ATTUNE_INIT(result);
    options.app = "other";
    options.consent = ATTUNE_CONSENT_GIVEN;
    OK(attune_store_import(fresh->store, in_home(f, "rows"), &options, &result, &f->err));
    assert_int_equal(result.rows, n);
    assert_int_equal(result.duplicates, 0);
    OK(attune_store_export(fresh->store, in_home(f, "again"), NULL, &again, &f->err));
    assert_int_equal(again, n);
    assert_same_files(in_home(f, "rows"), in_home(f, "again"));
    /* The same examples are derived from it, in the same order. */
    OK(export(f, "chat", ATTUNE_EXPORT_CHAT, NULL, &n));
    OK(attune_store_export(
        fresh->store, in_home(f, "chat-again"),
        &(attune_export_options){.size = sizeof(attune_export_options), .format = ATTUNE_EXPORT_CHAT}, &again,
        &f->err));
    assert_true(n > 10);
    assert_same_files(in_home(f, "chat"), in_home(f, "chat-again"));
    /* And where it came from it is known. */
    OK(attune_store_import(f->store, in_home(f, "rows"), NULL, &result, &f->err));
    assert_int_equal(result.rows, 0);
    assert_int_equal(result.duplicates, 306);
    assert_sound(fresh);
    store_teardown(&state);
}

static void test_round_trip(void **state) { round_trip(*state, store_setup); }
static void test_round_trip_into_an_encrypted_store(void **state) { round_trip(*state, encrypted_setup); }

/* ---- files ---- */

static void test_refused_files(void **state) {
    struct fixture *f = *state;
    int64_t n = -1;
    attune_export_options options;
    write_file(f, "there", "precious", 8);
    FAILS(attune_store_export(f->store, NULL, NULL, &n, &f->err), ATTUNE_ERROR_ARGUMENT, "NULL", "");
    FAILS(export(f, "there", ATTUNE_EXPORT_ROWS, NULL, &n), ATTUNE_ERROR_STATE, "already", "there");
    FAILS(export(f, "store.db", ATTUNE_EXPORT_ROWS, NULL, &n), ATTUNE_ERROR_STATE, "already", "store.db");
    FAILS(export(f, "none/out", ATTUNE_EXPORT_ROWS, NULL, &n), ATTUNE_ERROR_IO, "temporary", "none/out");
    FAILS(export(f, "out", 3, NULL, &n), ATTUNE_ERROR_ARGUMENT, "format is 3", "options");
    assert_int_equal(symlink("nowhere", in_home(f, "link")), 0);
    FAILS(export(f, "link", ATTUNE_EXPORT_ROWS, NULL, &n), ATTUNE_ERROR_STATE, "already", "link");
    ATTUNE_INIT(options);
    options.size = 4;
    FAILS(attune_store_export(f->store, in_home(f, "out"), &options, &n, &f->err), ATTUNE_ERROR_ARGUMENT, "ATTUNE_INIT",
          "");
    size_t size;
    char *bytes = bytes_of(in_home(f, "there"), &size);
    assert_string_equal(bytes, "precious");
    free(bytes);
    assert_int_equal(files_in(f, ".tmp"), 0);
    assert_int_equal(n, -1);
    assert_int_equal(query_number(f, "SELECT count(*) FROM audit WHERE event = 'export'"), 0);
}

/* Whole or not at all, wherever it fails. */
static void test_failing_disk(void **state) {
    struct fixture *f = *state;
    static const char *const points[] = {"export.write.before", "export.write.after", "export.fsync.before",
                                         "store.commit.before", "export.rename.before"};
    int64_t n = -1;
    OK(record(f->store, "p", "r", 1, NULL, &f->err));
    for (size_t i = 0; i < sizeof points / sizeof points[0]; i++) {
        char fault[64];
        snprintf(fault, sizeof fault, "%s:fail", points[i]);
        setenv("ATTUNE_FAULT", fault, 1);
        int code = export(f, "out", ATTUNE_EXPORT_ROWS, NULL, &n);
        unsetenv("ATTUNE_FAULT");
        if (code != ATTUNE_ERROR_IO) fail_msg("%s: %d", points[i], code);
        assert_int_equal(files_in(f, "out"), 0);
    }
    assert_int_equal(n, -1);
    OK(export(f, "out", ATTUNE_EXPORT_ROWS, NULL, &n));
    assert_int_equal(n, 1);
}

/* A row that no line can hold stops the export: nothing is left out in silence. */
static void test_a_row_that_no_line_holds(void **state) {
    struct fixture *f = *state;
    attune_uuid id;
    int64_t n = -1;
    char *text = malloc(4 << 20);
    memset(text, 1, (4 << 20) - 1); /* six bytes each, as JSON */
    text[(4 << 20) - 1] = '\0';
    OK(record(f->store, "p", text, 0, &id, &f->err));
    free(text);
    FAILS(export(f, "out", ATTUNE_EXPORT_ROWS, NULL, &n), ATTUNE_ERROR_UNSUPPORTED, "16 MiB", id.text);
    assert_int_equal(files_in(f, "out"), 0);
}

/* ---- standard output ---- */

/* Standard output goes to `fd` while the store is exported. */
static int export_to(struct fixture *f, int fd, int64_t *n) {
    int saved = dup(STDOUT_FILENO);
    fflush(stdout);
    dup2(fd, STDOUT_FILENO);
    int code = export(f, "-", ATTUNE_EXPORT_ROWS, NULL, n);
    dup2(saved, STDOUT_FILENO);
    close(saved);
    return code;
}

static void test_standard_output(void **state) {
    struct fixture *f = *state;
    int64_t n = -1;
    random_store(f);
    OK(export(f, "file", ATTUNE_EXPORT_ROWS, NULL, NULL));
    int fd = open(in_home(f, "stream"), O_WRONLY | O_CREAT, 0600);
    OK(export_to(f, fd, &n));
    close(fd);
    assert_int_equal(n, 306);
    assert_same_files(in_home(f, "file"), in_home(f, "stream"));
    assert_int_equal(query_number(f,
                                  "SELECT count(*) FROM audit WHERE event = 'export' AND detail = 'rows, 306 lines, to "
                                  "standard output'"),
                     1);
}

static void test_a_reader_that_goes(void **state) {
    struct fixture *f = *state;
    int ends[2];
    int64_t n = -1;
    sigset_t pending, only_pipe, before;
    OK(record(f->store, "p", "r", 1, NULL, &f->err));
    assert_int_equal(pipe(ends), 0);
    close(ends[0]);
    FAILS(export_to(f, ends[1], &n), ATTUNE_ERROR_IO, "Broken pipe", "standard output");
    assert_int_equal(n, -1);
    sigpending(&pending);
    assert_false(sigismember(&pending, SIGPIPE));
    /* One that the host had waiting stays. */
    sigemptyset(&only_pipe);
    sigaddset(&only_pipe, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &only_pipe, &before);
    raise(SIGPIPE);
    FAILS(export_to(f, ends[1], &n), ATTUNE_ERROR_IO, "Broken pipe", "standard output");
    sigpending(&pending);
    assert_true(sigismember(&pending, SIGPIPE));
    sigtimedwait(&only_pipe, NULL, &(struct timespec){0, 0});
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    close(ends[1]);
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, store_setup, store_teardown)
#define ENCRYPTED(test) cmocka_unit_test_setup_teardown(test, encrypted_setup, store_teardown)
#define BOTH(test) TEST(test), ENCRYPTED(test)

int main(void) {
    const struct CMUnitTest tests[] = {
        BOTH(test_formats),
        BOTH(test_filtered),
        TEST(test_queued_rows),
        BOTH(test_round_trip),
        BOTH(test_round_trip_into_an_encrypted_store),
        TEST(test_refused_files),
        TEST(test_failing_disk),
        TEST(test_a_row_that_no_line_holds),
        TEST(test_standard_output),
        TEST(test_a_reader_that_goes),
    };
    return cmocka_run_group_tests_name("export", tests, NULL, NULL);
}
