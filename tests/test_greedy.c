/* Greedy answers: those of a session over the same base, the adapter's part in them, and what is refused. */
#include "job/greedy.h"
#include "tests/session_fixture.h"
#include "tests/tiny_base.h"

static struct pool *pool;
static struct model *model;

static char *answered(const struct lora *lora, const char *prompt, size_t max_tokens, size_t *tokens) {
    attune_error err = {0};
    char *out = NULL;
    fine(greedy_answer(model, lora, pool, prompt, max_tokens, &out, tokens, &err), &err);
    assert_non_null(out);
    return out;
}

static void test_as_a_session_answers(void **state) {
    (void)state;
    static const char *const prompts[] = {"how are you?", "", "tell me of the sea and the wind, and take your time"};
    attune_error err = {0};
    attune_engine_options o;
    ATTUNE_INIT(o);
    o.threads = 2;
    o.precision = ATTUNE_PRECISION_F32;
    attune_engine *engine = NULL;
    fine(attune_engine_open_files(TINY, NULL, &o, &engine, &err), &err);
    for (size_t i = 0; i < 3; i++) {
        attune_session *s = open_session(engine, 0);
        say(s, "user", prompts[i]);
        attune_generate_result r = generate(s, greedy(24), NULL, NULL);
        size_t tokens = 0;
        char *text = answered(NULL, prompts[i], 24, &tokens);
        assert_string_equal(text, attune_session_text(s));
        assert_int_equal(tokens, r.tokens);
        free(text);
        attune_session_close(s);
    }
    attune_engine_close(engine);
}

/* Whatever the threads; and another adapter says something else. */
static void test_adapter(void **state) {
    (void)state;
    struct lora *lora = tiny_lora(model, 4, 64, LORA_ALL_TARGETS);
    size_t tokens[3];
    struct pool *mine = pool;
    char *base = answered(NULL, "what is new?", 16, &tokens[0]);
    char *other = answered(lora, "what is new?", 16, &tokens[1]);
    attune_error err = {0};
    fine(pool_create(1, &pool, &err), &err);
    char *again = answered(lora, "what is new?", 16, &tokens[2]);
    pool_destroy(pool);
    pool = mine;
    assert_string_not_equal(base, other);
    assert_string_equal(other, again);
    assert_int_equal(tokens[1], tokens[2]);
    assert_true(tokens[0] <= 16 && tokens[1] <= 16);
    free(base);
    free(other);
    free(again);
    lora_destroy(lora);
}

static void test_bounds(void **state) {
    (void)state;
    attune_error err = {0};
    char *out = NULL;
    size_t tokens = 7;
    char *none = answered(NULL, "hello", 0, &tokens);
    assert_string_equal(none, "");
    assert_int_equal(tokens, 0);
    free(none);
    assert_int_equal(greedy_answer(model, NULL, pool, "hello", model->context, &out, NULL, &err),
                     ATTUNE_ERROR_CONTEXT_FULL);
    pool_cancel(pool);
    assert_int_equal(greedy_answer(model, NULL, pool, "hello", 4, &out, NULL, &err), ATTUNE_ERROR_CANCELLED);
    pool_cancel_clear(pool);
    assert_null(out);
}

static int open_base(void **state) {
    (void)state;
    return kernels_select(NULL) || pool_create(2, &pool, NULL) || model_open(TINY, FILE_MAP, &model, NULL);
}
static int close_base(void **state) {
    (void)state;
    model_close(model);
    pool_destroy(pool);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_as_a_session_answers), cmocka_unit_test(test_adapter),
                                       cmocka_unit_test(test_bounds)};
    return cmocka_run_group_tests(tests, open_base, close_base);
}
