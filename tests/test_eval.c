/* Evaluation: agrees with PyTorch on the real model, with the job's own judging on the tiny one, and adds up. */
#include "tests/home_fixture.h"

static attune_engine *open_files(struct homes *f, const char *base, const char *adapter, const char *merge) {
    attune_engine_options options;
    attune_engine *engine = NULL;
    ATTUNE_INIT(options);
    options.merge = merge;
    options.threads = 2;
    OK(attune_engine_open_files(base, adapter, &options, &engine, &f->err));
    return engine;
}

static attune_eval_result eval(struct homes *f, attune_engine *engine, const char *path, int64_t max_examples,
                               int64_t max_tokens) {
    attune_eval_options options;
    attune_eval_result result;
    ATTUNE_INIT(options);
    ATTUNE_INIT(result);
    options.max_examples = max_examples;
    options.max_tokens = max_tokens;
    OK(attune_eval(engine, path, &options, &result, &f->err));
    assert_true(result.tokens > 0 && result.examples > 0 && isfinite(result.nll));
    return result;
}

/* tests/reference/eval_agrees.py wrote what transformers gives over the same dequantized weights. */
static void test_agrees_with_pytorch(void **state) {
    struct homes *f = *state;
    const char *model = getenv("ATTUNE_TEST_MODEL");
    if (!model) skip();
    double nll = 0;
    long tokens = 0, examples = 0;
    size_t n;
    char *golden = read_file(ATTUNE_TEST_ROOT "/tests/golden/eval_sailor.txt", &n);
    assert_int_equal(sscanf(golden, "nll %lf tokens %ld examples %ld", &nll, &tokens, &examples), 3);
    free(golden);
    attune_engine *engine = open_files(f, model, NULL, NULL);
    attune_eval_result result = eval(f, engine, PERSONA, examples, 0);
    assert_int_equal(result.tokens, tokens);
    assert_int_equal(result.examples, examples);
    if (!(fabs(result.nll - nll) <= 1e-4)) fail_msg("%.7f, and PyTorch gives %.7f", result.nll, nll);
    attune_engine_close(engine);
}

/* What the gate saw is what eval sees: over the same rows, base and candidate alike. */
static void test_agrees_with_the_gate(void **state) {
    struct homes *f = *state;
    attune_engine_options options;
    attune_engine *engine = NULL;
    make_home(f, TINY_BASE, 1);
    import_rows(f, 0, 9);
    attune_job_report report = publish_run(f, 1);
    assert_string_equal(report.evaluation, "cross-fit"); /* all rows judge */
    ATTUNE_INIT(options);
    options.adapter = "base";
    OK(attune_engine_open(f->home, &options, &engine, &f->err));
    double base = eval(f, engine, persona_rows(f, 0, 9), 0, 0).nll; /* max_tokens as the home's settings say */
    if (!(fabs(base - report.loss_before) < 1e-6)) fail_msg("%.9f, the gate saw %.9f", base, report.loss_before);
    attune_engine_close(engine);
    options.adapter = NULL;
    OK(attune_engine_open(f->home, &options, &engine, &f->err));
    assert_true(eval(f, engine, persona_rows(f, 0, 9), 0, 0).nll < base - 0.3);
    attune_engine_close(engine);
}

static void test_merge_modes_are_close(void **state) {
    struct homes *f = *state;
    static const char *const modes[] = {"none", "f16", "q8"};
    double nll[3];
    int64_t tokens = 0;
    make_home(f, TINY_BASE, 1);
    import_rows(f, 0, 9);
    publish_run(f, 1);
    for (int i = 0; i < 3; i++) {
        attune_engine *engine = open_files(f, TINY_BASE, adapter_path(f, 1), modes[i]);
        attune_eval_result result = eval(f, engine, persona_rows(f, 0, 9), 0, 160);
        nll[i] = result.nll;
        assert_true(tokens == 0 || tokens == result.tokens);
        tokens = result.tokens;
        attune_engine_close(engine);
    }
    attune_engine *base = open_files(f, TINY_BASE, NULL, NULL);
    double without = eval(f, base, persona_rows(f, 0, 9), 0, 160).nll;
    attune_engine_close(base);
    assert_true(without > nll[0] + 0.3);
    assert_true(nll[1] != nll[0] && nll[2] != nll[1]); /* they do differ */
    if (!(fabs(nll[1] - nll[0]) < 2e-3 && fabs(nll[2] - nll[0]) < 2e-2))
        fail_msg("none %.6f, f16 %.6f, q8 %.6f", nll[0], nll[1], nll[2]);
}

/* The mean is over tokens, whatever shares a micro-batch; rows beyond the limit are not looked at. */
static void test_adds_up(void **state) {
    struct homes *f = *state;
    attune_engine *engine = open_files(f, TINY_BASE, NULL, NULL);
    double sum = 0;
    int64_t tokens = 0;
    for (size_t i = 0; i < 5; i++) {
        attune_eval_result one = eval(f, engine, persona_rows(f, i, 1), 0, 0);
        assert_int_equal(one.examples, 1);
        sum += one.nll * (double)one.tokens;
        tokens += one.tokens;
    }
    attune_eval_result all = eval(f, engine, persona_rows(f, 0, 5), 0, 0);
    assert_int_equal(all.examples, 5);
    assert_int_equal(all.tokens, tokens);
    assert_true(fabs(all.nll - sum / (double)tokens) < 1e-6);
    attune_eval_result limited = eval(f, engine, persona_rows(f, 0, 9), 5, 0);
    assert_true(limited.examples == 5 && limited.tokens == tokens && limited.nll == all.nll);
    limited = eval(f, engine, persona_rows(f, 0, 3), 50, 0);
    assert_int_equal(limited.examples, 3);
    /* cut: fewer tokens of each text, and a row of which nothing is left to judge is no example */
    attune_eval_result cut = eval(f, engine, persona_rows(f, 0, 5), 0, 200);
    assert_true(cut.tokens < tokens && cut.examples <= 5);
    /* feedback decides nothing here, and an edit stands for the response */
    static const char rated[] = "{\"prompt\": \"how is it?\", \"response\": \"fine weather\", \"thumb\": -1}\n";
    static const char edited[] = "{\"prompt\": \"how is it?\", \"response\": \"no\", \"edit\": \"fine weather\"}\n";
    write_text(in_folder(f, "rows.jsonl"), rated);
    attune_eval_result down = eval(f, engine, in_folder(f, "rows.jsonl"), 0, 0);
    write_text(in_folder(f, "rows.jsonl"), edited);
    attune_eval_result edit = eval(f, engine, in_folder(f, "rows.jsonl"), 0, 0);
    assert_true(down.nll == edit.nll && down.tokens == edit.tokens && down.examples == 1);
    attune_engine_close(engine);
}

struct told {
    attune_eval_row rows[8];
    int n;
};

static void keep_row(const attune_eval_row *row, void *user) {
    struct told *told = user;
    assert_true(told->n < 8);
    told->rows[told->n++] = *row;
}

/* Each row as it is by itself, in the file's order, by its place in the file. */
static void test_tells_rows(void **state) {
    struct homes *f = *state;
    attune_eval_options options;
    attune_eval_result all;
    struct told told = {.n = 0};
    attune_engine *engine = open_files(f, TINY_BASE, NULL, NULL);
    ATTUNE_INIT(options);
    ATTUNE_INIT(all);
    options.on_row = keep_row;
    options.user = &told;
    OK(attune_eval(engine, persona_rows(f, 0, 5), &options, &all, &f->err));
    assert_int_equal(told.n, 5);
    double sum = 0;
    for (size_t i = 0; i < 5; i++) {
        attune_eval_result one = eval(f, engine, persona_rows(f, i, 1), 0, 0);
        assert_int_equal(told.rows[i].row, i + 1);
        assert_int_equal(told.rows[i].tokens, one.tokens);
        assert_true(fabs(told.rows[i].nll - one.nll) < 1e-5);
        sum += told.rows[i].nll * (double)told.rows[i].tokens;
    }
    assert_true(fabs(sum / (double)all.tokens - all.nll) < 1e-9);
    /* the second row's prompt alone is beyond the limit: the third keeps its number */
    char text[2048], long_prompt[1024];
    memset(long_prompt, 'z', sizeof long_prompt);
    int n = snprintf(text, sizeof text,
                     "{\"prompt\": \"a\", \"response\": \"b\"}\n\n{\"prompt\": \"%.1000s\", \"response\": \"b\"}\n"
                     "{\"prompt\": \"c\", \"response\": \"d\"}\n", long_prompt);
    assert_true(n > 0 && (size_t)n < sizeof text);
    write_text(in_folder(f, "rows.jsonl"), text);
    told.n = 0;
    options.max_tokens = 256;
    OK(attune_eval(engine, in_folder(f, "rows.jsonl"), &options, &all, &f->err));
    assert_int_equal(all.examples, 2);
    assert_int_equal(told.n, 2);
    assert_int_equal(told.rows[0].row, 1);
    assert_int_equal(told.rows[1].row, 3);
    /* nothing is told of a file that is refused */
    told.n = 0;
    write_text(in_folder(f, "rows.jsonl"), "{\"prompt\": \"a\", \"response\": \"b\"}\n[]\n");
    FAILS(attune_eval(engine, in_folder(f, "rows.jsonl"), &options, &all, &f->err), ATTUNE_ERROR_FORMAT, "",
          "line 2");
    assert_int_equal(told.n, 0);
    attune_engine_close(engine);
}

static void refuse(struct homes *f, attune_engine *engine, const char *text, size_t n, int code, const char *word,
                   const char *place) {
    attune_eval_result result;
    memset(&result, 0x5a, sizeof result);
    result.size = sizeof result;
    attune_eval_result before = result;
    write_file(in_folder(f, "bad.jsonl"), text, n);
    FAILS(attune_eval(engine, in_folder(f, "bad.jsonl"), NULL, &result, &f->err), code, word, place);
    assert_memory_equal(&result, &before, sizeof result);
}

static void test_bad_rows(void **state) {
    struct homes *f = *state;
    static const char good[] = "{\"prompt\": \"how is it?\", \"response\": \"fine\"}\n";
    char text[512];
    attune_engine *engine = open_files(f, TINY_BASE, NULL, NULL);
    static const struct {
        const char *line, *word;
    } bad[] = {{"{\"prompt\": \"a\"", ""},
               {"[]", ""},
               {"{\"prompt\": \"a\"}", "response"},
               {"{\"response\": \"a\"}", "prompt"},
               {"{\"prompt\": 7, \"response\": \"b\"}", "prompt"},
               {"{\"prompt\": \"a\", \"response\": \"\xff\xfe\"}", ""}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int n = snprintf(text, sizeof text, "%s\n%s\n%s", good, bad[i].line, good);
        refuse(f, engine, text, (size_t)n, ATTUNE_ERROR_FORMAT, bad[i].word, "bad.jsonl:line 3");
    }
    refuse(f, engine, "", 0, ATTUNE_ERROR_ARGUMENT, "no row", "bad.jsonl");
    refuse(f, engine, "\n\n", 2, ATTUNE_ERROR_ARGUMENT, "no row", "bad.jsonl");
    memcpy(text, "{\"prompt\": \"a\0\", \"response\": \"b\"}\n", 35);
    refuse(f, engine, text, 35, ATTUNE_ERROR_FORMAT, "", "bad.jsonl:line 1");

    attune_eval_options options;
    attune_eval_result result;
    ATTUNE_INIT(options);
    ATTUNE_INIT(result);
    FAILS(attune_eval(engine, in_folder(f, "none.jsonl"), NULL, &result, &f->err), ATTUNE_ERROR_NOT_FOUND,
          "no such file", "none.jsonl");
    FAILS(attune_eval(engine, f->folder, NULL, &result, &f->err), ATTUNE_ERROR_ARGUMENT, "not a regular file",
          f->folder);
    FAILS(attune_eval(NULL, PERSONA, NULL, &result, &f->err), ATTUNE_ERROR_ARGUMENT, "engine", "");
    FAILS(attune_eval(engine, NULL, NULL, &result, &f->err), ATTUNE_ERROR_ARGUMENT, "file", "");
    options.max_examples = -1;
    FAILS(attune_eval(engine, PERSONA, &options, &result, &f->err), ATTUNE_ERROR_ARGUMENT, "at least 0", "");
    options.max_examples = 0;
    options.max_tokens = -1;
    FAILS(attune_eval(engine, PERSONA, &options, &result, &f->err), ATTUNE_ERROR_ARGUMENT, "at least 0", "");
    options.max_tokens = 3; /* nothing supervised is left of any row */
    FAILS(attune_eval(engine, PERSONA, &options, &result, &f->err), ATTUNE_ERROR_ARGUMENT, "3 tokens", "sailor.jsonl");
    options.max_tokens = 0;
    options.max_examples = 1;
    OK(attune_eval(engine, PERSONA, &options, NULL, &f->err)); /* nobody asks */
    result.size = 4;
    FAILS(attune_eval(engine, PERSONA, &options, &result, &f->err), ATTUNE_ERROR_ARGUMENT, "ATTUNE_INIT",
          "attune_eval_result");
    attune_engine_close(engine);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, homes_setup, homes_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_agrees_with_pytorch),
        TEST(test_agrees_with_the_gate),
        TEST(test_merge_modes_are_close),
        TEST(test_adds_up),
        TEST(test_tells_rows),
        TEST(test_bad_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
