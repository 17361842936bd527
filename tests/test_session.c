/* Sessions over tests/golden/tiny_llama.gguf (random weights, ChatML), and, when ATTUNE_TEST_MODEL names one, over a
 * real model. */
#include "tests/session_fixture.h"

#include <sys/wait.h>

#define LLAMA3 ATTUNE_TEST_ROOT "/tests/golden/tiny_llama3.gguf"

static attune_engine *tiny, *real; /* real: NULL without ATTUNE_TEST_MODEL */

/* ---- allocations that are counted, or fail (not under a sanitizer, which has malloc itself) ---- */

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__GLIBC__)
#define SANITIZED
#endif

static _Thread_local int watching;
static _Thread_local long allocations, fail_at; /* fail_at: which one since watching, from 1; 0: none */

#ifndef SANITIZED
void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
static int fails(void) { return watching && ++allocations == fail_at; }
void *malloc(size_t n) { return fails() ? NULL : __libc_malloc(n); }
void *calloc(size_t n, size_t each) { return fails() ? NULL : __libc_calloc(n, each); }
void *realloc(void *p, size_t n) { return fails() ? NULL : __libc_realloc(p, n); }
#endif

/* ---- what a session computes ---- */

static void check_cached_equals_prefill(attune_engine *engine, const char *prompt, int64_t n) {
    size_t V = engine->model->V;
    float *logits = malloc(V * sizeof *logits);
    attune_session *s = open_session(engine, 0);
    struct line line = {.n = 0};
    line_add_text(&line, engine, prompt);
    size_t start = line.n;
    text(s, prompt);
    attune_generate_result r = generate(s, greedy(n), NULL, NULL);
    assert_int_equal(r.prompt_tokens, start);
    line_add_answer(&line, s);
    assert_int_equal(r.tokens, line.n - start);
    assert_true(r.tokens > 0 && r.prompt_seconds >= 0 && r.seconds >= 0);
    for (size_t i = start; i < line.n; i++) {
        one_shot(engine, line.ids, i, logits);
        assert_int_equal(best(logits, V), line.ids[i]);
    }
    text(s, " then");
    line_add_text(&line, engine, " then");
    expect_line(s, engine, &line);
    attune_session_close(s);
    free(logits);
}

static void cached_decoding_equals_prefill(void **state) {
    (void)state;
    check_cached_equals_prefill(tiny, "the lord was", 48);
}

/* A prompt of several chunks, and an answer after it. */
static void long_prompts_go_through_whole(void **state) {
    (void)state;
    char prompt[1024] = "";
    for (int i = 0; i < 130; i++) strcat(prompt, i % 7 ? " the" : " was 1");
    struct line line = {.n = 0};
    line_add_text(&line, tiny, prompt);
    assert_true(line.n < 250 && line.n > DECODING_CHUNK);
    for (int i = 0; i < 3; i++) {
        attune_session *s = open_session(tiny, 0);
        text(s, prompt);
        expect_line(s, tiny, &line);
        const float *again, *logits;
        attune_error err = {0};
        fine(attune_session_logits(s, &logits, &err), &err);
        int32_t expected = best(logits, tiny->model->V);
        fine(attune_session_logits(s, &again, &err), &err);
        assert_ptr_equal(again, logits);
        generate(s, greedy(2), NULL, NULL);
        struct line answer = {.n = 0};
        line_add_answer(&answer, s);
        assert_int_equal(answer.ids[0], expected);
        attune_session_close(s);
    }
}

/* Two turns, the first ended in the way of `options`: the line is that of one rendering. */
static attune_generate_result check_two_turns(attune_engine *engine, attune_generate_options options,
                                              attune_token_callback on_token, void *user) {
    attune_session *s = open_session(engine, 0);
    attune_message first[] = {{"user", "Name a colour."}}, second[] = {{"user", "And the sea?"}};
    struct line line = {.n = 0};
    line_add_messages(&line, engine, first, 1, 1);
    fine(attune_session_append(s, first, 1, NULL), &(attune_error){.message = "first append"});
    attune_generate_result r = generate(s, options, on_token, user);
    assert_int_equal(r.prompt_tokens, line.n);
    line_add_answer(&line, s);
    line_close_turn(&line, engine);
    fine(attune_session_append(s, second, 1, NULL), &(attune_error){.message = "second append"});
    line_add_messages(&line, engine, second, 1, 0);
    expect_line(s, engine, &line);
    attune_session_close(s);
    return r;
}

static void two_turns_equal_one_rendering(void **state) {
    (void)state;
    attune_generate_options o = greedy(20);
    assert_int_equal(check_two_turns(tiny, o, NULL, NULL).reason, ATTUNE_STOP_LENGTH);
    struct heard heard = {.stop_after = 4};
    assert_int_equal(check_two_turns(tiny, o, hear, &heard).reason, ATTUNE_STOP_CALLBACK);
    const char *stop[] = {"e", "a", "i", "o", "t"};
    o = greedy(100);
    o.temperature = 2;
    o.stop = stop;
    o.n_stop = 5;
    assert_int_equal(check_two_turns(tiny, o, NULL, NULL).reason, ATTUNE_STOP_STRING);
}

/* Random weights end a turn now and then when drawn hot. */
static void the_model_ends_its_turn(void **state) {
    (void)state;
    attune_generate_options o = greedy(150);
    o.temperature = 3;
    int ended = 0;
    for (o.seed = 1; o.seed < 40 && ended < 3; o.seed++)
        ended += check_two_turns(tiny, o, NULL, NULL).reason == ATTUNE_STOP_END;
    assert_int_equal(ended, 3);
}

/* A system message of one's own, several messages in one append and one by one. */
static void appends_add_up(void **state) {
    (void)state;
    attune_message m[] = {{"system", "Be short."}, {"user", "Hello"}, {"assistant", "Hi."}, {"user", "How are you?"}};
    struct line line = {.n = 0};
    line_add_messages(&line, tiny, m, 4, 0);
    attune_session *together = open_session(tiny, 0), *apart = open_session(tiny, 0);
    attune_error err = {0};
    fine(attune_session_append(together, m, 4, &err), &err);
    expect_line(together, tiny, &line);
    fine(attune_session_append(apart, m, 1, &err), &err);
    fine(attune_session_append(apart, m + 1, 1, &err), &err);
    fine(attune_session_append(apart, m + 2, 2, &err), &err);
    expect_line(apart, tiny, &line);
    struct line a = {.n = 0}, b = {.n = 0};
    generate(together, greedy(10), NULL, NULL);
    line_add_answer(&a, together);
    generate(apart, greedy(10), NULL, NULL);
    line_add_answer(&b, apart);
    assert_int_equal(a.n, b.n);
    assert_memory_equal(a.ids, b.ids, a.n * sizeof *a.ids);
    attune_session_close(together);
    attune_session_close(apart);
}

static void the_last_append_decides_the_kind(void **state) {
    (void)state;
    attune_session *s = open_session(tiny, 0);
    attune_message m[] = {{"user", "Hello"}};
    struct line line = {.n = 0};
    line_add_messages(&line, tiny, m, 1, 0);
    say(s, "user", "Hello");
    text(s, "raw");
    line_add_text(&line, tiny, "raw");
    attune_generate_result r = generate(s, greedy(3), NULL, NULL);
    assert_int_equal(r.prompt_tokens, line.n);
    line_add_answer(&line, s);
    text(s, " more");
    line_add_text(&line, tiny, " more");
    expect_line(s, tiny, &line);
    say(s, "user", "Hello");
    line_add_messages(&line, tiny, m, 1, 0);
    expect_line(s, tiny, &line);
    attune_session_close(s);
}

static void text_may_hold_special_tokens_when_asked(void **state) {
    (void)state;
    const char *marked = "<|im_start|>user\nHi<|im_end|>";
    int32_t ids[64], start = tokenizer_find(tiny->model->tokenizer, "<|im_start|>");
    size_t plain, special;
    attune_error err = {0};
    fine(attune_engine_tokenize(tiny, marked, strlen(marked), 0, ids, 64, &plain, &err), &err);
    assert_int_not_equal(ids[0], start);
    fine(attune_engine_tokenize(tiny, marked, strlen(marked), ATTUNE_TOKENIZE_SPECIAL, ids, 64, &special, &err), &err);
    assert_int_equal(ids[0], start);
    assert_true(special < plain);
    for (int flags = 0; flags < 2; flags++) {
        attune_session *s = open_session(tiny, 0);
        fine(attune_session_append_text(s, marked, strlen(marked), flags, &err), &err);
        attune_generate_result r = generate(s, greedy(1), NULL, NULL);
        assert_int_equal(r.prompt_tokens, flags ? special : plain);
        attune_session_close(s);
    }
}

static void seeds_reproduce_answers(void **state) {
    (void)state;
    attune_generate_options o = greedy(30);
    o.temperature = 1.5;
    o.top_p = 0.95;
    char texts[3][4096];
    for (int i = 0; i < 3; i++) {
        o.seed = i == 2 ? 8 : 7;
        attune_session *s = open_session(tiny, 0);
        text(s, "the");
        generate(s, o, NULL, NULL);
        snprintf(texts[i], sizeof texts[i], "%s", attune_session_text(s));
        attune_session_close(s);
    }
    assert_string_equal(texts[0], texts[1]);
    assert_string_not_equal(texts[0], texts[2]);
}

/* The penalty is over the last 64 tokens of the line, appended ones and those of earlier answers too. */
static void penalty_sees_the_line(void **state) {
    (void)state;
    enum { WINDOW = 64 };
    float logits[512];
    struct line line = {.n = 0};
    attune_session *s = open_session(tiny, 0);
    attune_generate_options o = greedy(45);
    o.repetition_penalty = 3;
    for (int turn = 0; turn < 2; turn++) {
        const char *prompt = turn ? " and the lord said" : "the lord was";
        text(s, prompt);
        line_add_text(&line, tiny, prompt);
        size_t start = line.n;
        generate(s, o, NULL, NULL);
        line_add_answer(&line, s);
        for (size_t i = start; i < line.n; i++) {
            one_shot(tiny, line.ids, i, logits);
            char seen[512] = {0};
            for (size_t j = i > WINDOW ? i - WINDOW : 0; j < i; j++) {
                float *logit = &logits[line.ids[j]];
                if (!seen[line.ids[j]]) *logit = *logit > 0 ? *logit / 3 : *logit * 3;
                seen[line.ids[j]] = 1;
            }
            assert_int_equal(best(logits, tiny->model->V), line.ids[i]);
        }
    }
    assert_true(line.n > WINDOW + 20);
    attune_session_close(s);
}

/* ---- how answers end ---- */

static void stop_strings_end_the_answer(void **state) {
    (void)state;
    attune_session *s = open_session(tiny, 0);
    text(s, "the lord was");
    struct heard heard = {.n = 0};
    generate(s, greedy(40), hear, &heard);
    struct line full = {.n = 0};
    line_add_answer(&full, s);
    assert_string_equal(attune_session_text(s), heard.text);
    attune_session_close(s);

    size_t tested = 0;
    for (size_t at = 0; at + 4 < heard.n; at++) {
        char wanted[8] = "";
        size_t n = 0;
        /* four bytes and up, from a character's start to one's end */
        if ((heard.text[at] & 0xC0) == 0x80) continue;
        while (n < 7 && (n < 4 || (heard.text[at + n] & 0xC0) == 0x80)) n++;
        if (at + n > heard.n || (heard.text[at + n] & 0xC0) == 0x80) continue;
        memcpy(wanted, heard.text + at, n);
        const char *stop[] = {"never there", wanted};
        attune_generate_options o = greedy(40);
        o.stop = stop;
        o.n_stop = 2;
        struct heard until = {.n = 0};
        s = open_session(tiny, 0);
        text(s, "the lord was");
        attune_generate_result r = generate(s, o, hear, &until);
        size_t expected = (size_t)(strstr(heard.text, wanted) - heard.text);
        assert_int_equal(r.reason, ATTUNE_STOP_STRING);
        assert_int_equal(until.n, expected);
        assert_memory_equal(until.text, heard.text, expected);
        assert_string_equal(attune_session_text(s), until.text);
        struct line part = {.n = 0};
        line_add_answer(&part, s);
        assert_true(part.n <= full.n);
        assert_memory_equal(part.ids, full.ids, part.n * sizeof *part.ids);
        attune_session_close(s);
        tested++;
    }
    assert_true(tested > 20);
}

static void the_callback_ends_the_answer(void **state) {
    (void)state;
    struct heard heard = {.stop_after = 5};
    attune_session *s = open_session(tiny, 0);
    text(s, "the lord was");
    attune_generate_result r = generate(s, greedy(40), hear, &heard);
    assert_int_equal(r.reason, ATTUNE_STOP_CALLBACK);
    assert_int_equal(heard.calls, 5);
    assert_true(r.tokens >= 5 && r.tokens < 40);
    assert_string_equal(attune_session_text(s), heard.text);
    attune_session_close(s);
}

/* What was held back goes out when the answer has ended: there is nothing left to stop. */
static void the_callback_cannot_end_what_has_ended(void **state) {
    (void)state;
    attune_session *s = open_session(tiny, 0);
    text(s, "the lord was");
    generate(s, greedy(3), NULL, NULL);
    char held[64];
    snprintf(held, sizeof held, "%szzz", attune_session_text(s));
    attune_session_close(s);

    const char *stop[] = {held};
    attune_generate_options o = greedy(3);
    o.stop = stop;
    o.n_stop = 1;
    struct heard heard = {.stop_after = 1};
    s = open_session(tiny, 0);
    text(s, "the lord was");
    attune_generate_result r = generate(s, o, hear, &heard);
    assert_int_equal(r.reason, ATTUNE_STOP_LENGTH);
    assert_int_equal(heard.calls, 1);
    assert_int_equal(heard.n, strlen(held) - 3);
    assert_string_equal(attune_session_text(s), heard.text);
    attune_session_close(s);
}

static void max_tokens_ends_the_answer(void **state) {
    (void)state;
    for (int64_t n = 1; n < 6; n++) {
        attune_session *s = open_session(tiny, 0);
        text(s, "the lord was");
        attune_generate_result r = generate(s, greedy(n), NULL, NULL);
        assert_int_equal(r.reason, ATTUNE_STOP_LENGTH);
        assert_int_equal(r.tokens, n);
        attune_session_close(s);
    }
}

static void a_full_context_ends_the_answer(void **state) {
    (void)state;
    attune_session *s = open_session(tiny, 32);
    text(s, "the lord was");
    attune_generate_result r = generate(s, greedy(100), NULL, NULL);
    assert_int_equal(r.reason, ATTUNE_STOP_CONTEXT);
    /* the cache is full, and the token after its last one is known too */
    assert_int_equal(r.prompt_tokens + r.tokens, 33);
    struct line line = {.n = 0};
    line_add_text(&line, tiny, "the lord was");
    line_add_answer(&line, s);
    float logits[512];
    one_shot(tiny, line.ids, 32, logits);
    assert_int_equal(best(logits, tiny->model->V), line.ids[32]);
    attune_error err = {0};
    assert_int_equal(attune_session_append_text(s, "x", 1, 0, &err), ATTUNE_ERROR_CONTEXT_FULL);
    attune_session_close(s);
}

static void what_does_not_fit_is_refused(void **state) {
    (void)state;
    char content[2000] = "";
    for (int i = 0; i < 50; i++) strcat(content, " the");
    attune_session *s = open_session(tiny, 64);
    attune_error err = {0};
    attune_message m[] = {{"user", content}};
    struct line line = {.n = 0};
    line_add_messages(&line, tiny, m, 1, 0);
    assert_true(line.n > 64);
    char numbers[64];
    snprintf(numbers, sizeof numbers, "0 of 64 tokens and this adds %zu", line.n);
    assert_int_equal(attune_session_append(s, m, 1, &err), ATTUNE_ERROR_CONTEXT_FULL);
    assert_non_null(strstr(err.message, numbers));
    assert_non_null(strstr(err.message, "256"));
    /* far too long: refused before it is tokenized */
    char *huge = malloc(1 << 24);
    memset(huge, 'x', 1 << 24);
    assert_int_equal(attune_session_append_text(s, huge, 1 << 24, 0, &err), ATTUNE_ERROR_CONTEXT_FULL);
    assert_non_null(strstr(err.message, "at least"));
    free(huge);
    /* the session is as it was: empty, so nothing can be answered, and then usable */
    assert_int_equal(attune_session_generate(s, NULL, NULL, NULL, NULL, &err), ATTUNE_ERROR_STATE);
    text(s, content);
    struct line fits = {.n = 0};
    line_add_text(&fits, tiny, content);
    expect_line(s, tiny, &fits);
    assert_int_equal(attune_session_append_text(s, content, strlen(content), 0, &err), ATTUNE_ERROR_CONTEXT_FULL);
    snprintf(numbers, sizeof numbers, "%zu of 64 tokens and this adds %zu", fits.n, fits.n);
    assert_non_null(strstr(err.message, numbers));
    expect_line(s, tiny, &fits);
    generate(s, greedy(2), NULL, NULL);
    attune_session_close(s);
}

/* Messages fit, the header of the answer does not: the messages stay. */
static void the_header_must_fit(void **state) {
    (void)state;
    attune_message m[] = {{"system", "a"}, {"user", "b"}};
    struct line line = {.n = 0};
    line_add_messages(&line, tiny, m, 2, 0);
    attune_session *s = open_session(tiny, (int64_t)line.n + 1);
    attune_error err = {0};
    fine(attune_session_append(s, m, 2, &err), &err);
    for (int i = 0; i < 2; i++)
        assert_int_equal(attune_session_generate(s, NULL, NULL, NULL, NULL, &err), ATTUNE_ERROR_CONTEXT_FULL);
    expect_line(s, tiny, &line);
    attune_session_close(s);
}

/* A prompt that fails on its way through the model has not happened. */
static void a_cancelled_prompt_can_be_tried_again(void **state) {
    (void)state;
    attune_message m[] = {{"user", "Hello"}};
    struct line line = {.n = 0};
    line_add_messages(&line, tiny, m, 1, 1);
    attune_session *s = open_session(tiny, 0);
    attune_error err = {0};
    fine(attune_session_append(s, m, 1, &err), &err);
    for (int i = 0; i < 2; i++) {
        pool_cancel(tiny->pool);
        int code = attune_session_generate(s, NULL, NULL, NULL, NULL, &err);
        pool_cancel_clear(tiny->pool);
        assert_int_equal(code, ATTUNE_ERROR_CANCELLED);
        assert_string_equal(attune_session_text(s), "");
    }
    attune_generate_result r = generate(s, greedy(4), NULL, NULL);
    assert_int_equal(r.prompt_tokens, line.n);
    line_add_answer(&line, s);
    line_close_turn(&line, tiny);
    fine(attune_session_append(s, m, 1, &err), &err);
    line_add_messages(&line, tiny, m, 1, 0);
    expect_line(s, tiny, &line);
    attune_session_close(s);
}

/* ---- what is refused ---- */

static int answer_again(const char *piece, size_t length, void *user) {
    (void)piece;
    (void)length;
    attune_error err = {0};
    const float *logits;
    attune_message m = {"user", "x"};
    assert_int_equal(attune_session_generate(user, NULL, NULL, NULL, NULL, &err), ATTUNE_ERROR_STATE);
    assert_int_equal(attune_session_append(user, &m, 1, &err), ATTUNE_ERROR_STATE);
    assert_int_equal(attune_session_append_text(user, "x", 1, 0, &err), ATTUNE_ERROR_STATE);
    assert_int_equal(attune_session_logits(user, &logits, &err), ATTUNE_ERROR_STATE);
    return 1;
}

static void calls_in_the_wrong_order(void **state) {
    (void)state;
    attune_session *s = open_session(tiny, 0);
    attune_error err = {0};
    const float *logits;
    assert_string_equal(attune_session_text(s), "");
    assert_int_equal(attune_session_generate(s, NULL, NULL, NULL, NULL, &err), ATTUNE_ERROR_STATE);
    assert_int_equal(attune_session_logits(s, &logits, &err), ATTUNE_ERROR_STATE);
    fine(attune_session_append_text(s, "", 0, 0, &err), &err);
    assert_int_equal(attune_session_generate(s, NULL, NULL, NULL, NULL, &err), ATTUNE_ERROR_STATE);
    say(s, "user", "Hello");
    generate(s, greedy(20), answer_again, s);
    assert_int_equal(attune_session_generate(s, NULL, NULL, NULL, NULL, &err), ATTUNE_ERROR_STATE);
    assert_int_equal(attune_session_logits(s, &logits, &err), ATTUNE_ERROR_STATE);
    attune_session_close(s);
    attune_session_close(NULL);
}

static void bad_messages_leave_the_session_alone(void **state) {
    (void)state;
    attune_session *s = open_session(tiny, 0);
    static const struct {
        attune_message m;
        const char *says;
    } cases[] = {
        {{"tool", "x"}, "tool"},        {{"User", "x"}, "User"},   {{"", "x"}, "role"},
        {{NULL, "x"}, "role"},          {{"user", NULL}, "content"}, {{"assistant", "x"}, "assistant"},
        {{"user", "ab\xFF"}, "byte 2"}, {{"user", "\xE2\x82"}, "UTF-8"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        attune_message m[] = {{"user", "before"}, cases[i].m};
        attune_error err = {0};
        assert_int_equal(attune_session_append(s, m, 2, &err), ATTUNE_ERROR_ARGUMENT);
        assert_non_null(strstr(err.message, cases[i].says));
        assert_int_equal(attune_session_append(s, m, 2, NULL), ATTUNE_ERROR_ARGUMENT);
    }
    attune_error err = {0};
    assert_int_equal(attune_session_append(s, NULL, 1, &err), ATTUNE_ERROR_ARGUMENT);
    assert_int_equal(attune_session_append(s, &cases[0].m, 0, &err), ATTUNE_ERROR_ARGUMENT);
    assert_int_equal(attune_session_append_text(s, NULL, 1, 0, &err), ATTUNE_ERROR_ARGUMENT);
    assert_int_equal(attune_session_append_text(s, "x", 1, 2, &err), ATTUNE_ERROR_ARGUMENT);
    assert_int_equal(attune_session_append_text(s, "a\xC0", 2, 0, &err), ATTUNE_ERROR_ARGUMENT);
    say(s, "user", "Hello");
    struct line line = {.n = 0};
    line_add_messages(&line, tiny, &(attune_message){"user", "Hello"}, 1, 0);
    expect_line(s, tiny, &line);
    attune_session_close(s);
}

static void impossible_options_are_refused(void **state) {
    (void)state;
    attune_session *s = NULL;
    attune_error err = {0};
    static const int64_t contexts[] = {-1, 1, 7, 257, INT64_MAX, INT64_MIN};
    for (size_t i = 0; i < sizeof contexts / sizeof *contexts; i++) {
        attune_session_options o;
        ATTUNE_INIT(o);
        o.context = contexts[i];
        assert_int_equal(attune_session_open(tiny, &o, &s, &err), ATTUNE_ERROR_ARGUMENT);
        assert_non_null(strstr(err.message, "context"));
        assert_null(s);
    }
    attune_session_close(open_session(tiny, 8));
    attune_session_close(open_session(tiny, 256));
    attune_session_options unset = {0};
    assert_int_equal(attune_session_open(tiny, &unset, &s, &err), ATTUNE_ERROR_ARGUMENT);
    assert_non_null(strstr(err.message, "ATTUNE_INIT"));

    s = open_session(tiny, 0);
    text(s, "the");
    attune_generate_options o = greedy(-1);
    assert_int_equal(attune_session_generate(s, &o, NULL, NULL, NULL, &err), ATTUNE_ERROR_ARGUMENT);
    assert_non_null(strstr(err.message, "max_tokens"));
    o = greedy(1);
    o.temperature = NAN;
    assert_int_equal(attune_session_generate(s, &o, NULL, NULL, NULL, &err), ATTUNE_ERROR_ARGUMENT);
    assert_non_null(strstr(err.message, "temperature"));
    o = greedy(1);
    o.n_stop = 1;
    assert_int_equal(attune_session_generate(s, &o, NULL, NULL, NULL, &err), ATTUNE_ERROR_ARGUMENT);
    attune_generate_result no_size = {0};
    assert_int_equal(attune_session_generate(s, NULL, NULL, NULL, &no_size, &err), ATTUNE_ERROR_ARGUMENT);
    /* nothing of this used up what was appended */
    generate(s, greedy(1), NULL, NULL);
    attune_session_close(s);
}

/* Apps built against another version of the header. */
static void option_structs_of_other_versions(void **state) {
    (void)state;
    attune_session *s = NULL;
    attune_error err = {0};
    struct {
        attune_session_options known;
        int64_t unknown;
    } newer = {.known = {.size = sizeof newer, .context = 16}};
    fine(attune_session_open(tiny, &newer.known, &s, &err), &err);
    newer.unknown = 1;
    attune_session *none = NULL;
    assert_int_equal(attune_session_open(tiny, &newer.known, &none, &err), ATTUNE_ERROR_UNSUPPORTED);
    assert_null(none);
    /* an older result ends before `seconds`: what lies behind it is the app's */
    attune_generate_result r;
    memset(&r, 0x5A, sizeof r);
    r.size = offsetof(attune_generate_result, prompt_seconds);
    text(s, "the");
    attune_generate_options o = greedy(1);
    fine(attune_session_generate(s, &o, NULL, NULL, &r, &err), &err);
    assert_int_equal(r.tokens, 1);
    assert_int_equal(r.reason, 0x5A5A5A5A);
    attune_session_close(s);
}

/* ---- engines ---- */

static void engines_describe_themselves(void **state) {
    (void)state;
    attune_engine_info info;
    attune_error err = {0};
    ATTUNE_INIT(info);
    fine(attune_engine_info_get(tiny, &info, &err), &err);
    assert_string_equal(info.name, "tiny_llama");
    assert_string_equal(info.architecture, "llama");
    assert_string_equal(info.merge, "none");
    assert_string_equal(info.base_sha256, "");
    assert_string_equal(info.adapter_sha256, "");
    assert_string_equal(info.kernels, kernels_get()->name);
    assert_int_equal(info.adapter, 0);
    assert_int_equal(info.layers, 2);
    assert_int_equal(info.width, 64);
    assert_int_equal(info.vocabulary, 349);
    assert_int_equal(info.context, 256);
    assert_true(info.parameters > 0);
    attune_session *s = open_session(tiny, 0);
    attune_provenance p;
    ATTUNE_INIT(p);
    fine(attune_session_provenance(s, &p, &err), &err);
    assert_string_equal(p.model, "");
    assert_string_equal(p.adapter, "");
    assert_string_equal(p.template_hash, chat_template_hash(tiny->model->chat));
    attune_session_close(s);
}

static void engines_refuse_what_they_cannot_do(void **state) {
    (void)state;
    attune_engine *e = NULL;
    attune_error err = {0};
    attune_engine_options o;
    assert_int_equal(attune_engine_open_files("/nowhere.gguf", NULL, NULL, &e, &err), ATTUNE_ERROR_IO);
    assert_int_equal(attune_engine_open_files(NULL, NULL, NULL, &e, &err), ATTUNE_ERROR_ARGUMENT);
    ATTUNE_INIT(o);
    o.adapter = "active";
    assert_int_equal(attune_engine_open_files(TINY, NULL, &o, &e, &err), ATTUNE_ERROR_ARGUMENT);
    ATTUNE_INIT(o);
    o.merge = "sideways";
    assert_int_equal(attune_engine_open_files(TINY, NULL, &o, &e, &err), ATTUNE_ERROR_ARGUMENT);
    ATTUNE_INIT(o);
    o.threads = -1;
    assert_int_equal(attune_engine_open_files(TINY, NULL, &o, &e, &err), ATTUNE_ERROR_ARGUMENT);
    assert_int_not_equal(attune_engine_open_files(TINY, "/nowhere.gguf", NULL, &e, &err), ATTUNE_OK);
    assert_null(e);
    attune_engine_close(NULL);
}

static void tokens_go_there_and_back(void **state) {
    (void)state;
    static const char content[] = "the lord, na\u00efve \u4f60\u597d \xFF 12";
    size_t length = sizeof content - 1, n = 0, m = 0;
    int32_t ids[64], few[3] = {-5, -5, -5};
    char bytes[128];
    attune_error err = {0};
    fine(attune_engine_tokenize(tiny, content, length, 0, ids, 64, &n, &err), &err);
    fine(attune_engine_tokenize(tiny, content, length, 0, few, 2, &m, &err), &err);
    assert_int_equal(m, n);
    assert_memory_equal(few, ids, 2 * sizeof *ids);
    assert_int_equal(few[2], -5);
    fine(attune_engine_tokenize(tiny, content, length, 0, NULL, 0, &m, &err), &err);
    assert_int_equal(m, n);
    fine(attune_engine_tokenize(tiny, NULL, 0, 0, NULL, 0, &m, &err), &err);
    assert_int_equal(m, 0);
    fine(attune_engine_detokenize(tiny, ids, n, bytes, sizeof bytes, &m, &err), &err);
    assert_int_equal(m, length);
    assert_memory_equal(bytes, content, length);
    memset(bytes, '#', sizeof bytes);
    for (size_t room = 0; room < length; room++) {
        fine(attune_engine_detokenize(tiny, ids, n, bytes, room, &m, &err), &err);
        assert_int_equal(m, length);
        assert_memory_equal(bytes, content, room);
        assert_int_equal(bytes[room], '#');
    }
    static const int32_t bad[] = {-1, 349, INT32_MAX};
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(attune_engine_detokenize(tiny, &bad[i], 1, bytes, 8, &m, &err), ATTUNE_ERROR_ARGUMENT);
    assert_int_equal(attune_engine_tokenize(tiny, content, length, 8, ids, 64, &n, &err), ATTUNE_ERROR_ARGUMENT);
}

static void answer_of(attune_engine *engine, struct line *out) {
    attune_session *s = open_session(engine, 0);
    text(s, "the lord was");
    generate(s, greedy(24), NULL, NULL);
    line_add_answer(out, s);
    attune_session_close(s);
}

static void adapters_are_bound_to_their_base(void **state) {
    (void)state;
    char folder[] = "/tmp/attune-session-XXXXXX", path[3][64], sha256[3][65], base[65];
    assert_non_null(mkdtemp(folder));
    hash_bytes(tiny->model->gguf->file.data, tiny->model->gguf->file.size, base);
    for (int i = 0; i < 3; i++) snprintf(path[i], sizeof path[i], "%s/%d.gguf", folder, i);
    write_adapter(tiny, path[0], base, 0, sha256[0]);
    write_adapter(tiny, path[1], base, 0.05f, sha256[1]);
    char other[65];
    memset(other, 'a', 64);
    other[64] = 0;
    write_adapter(tiny, path[2], other, 0, sha256[2]);

    attune_error err = {0};
    attune_engine *e = NULL;
    assert_int_equal(attune_engine_open_files(TINY, path[2], NULL, &e, &err), ATTUNE_ERROR_MISMATCH);
    assert_null(e);
    struct line plain = {.n = 0};
    answer_of(tiny, &plain);
    for (int i = 0; i < 2; i++) {
        static const char *const modes[] = {"none", "f16", "q8", NULL};
        for (int mode = 0; mode < 4; mode++) {
            attune_engine_options o;
            ATTUNE_INIT(o);
            o.merge = modes[mode];
            o.read = mode & 1;
            o.precision = ATTUNE_PRECISION_F32;
            fine(attune_engine_open_files(TINY, path[i], &o, &e, &err), &err);
            attune_engine_info info;
            ATTUNE_INIT(info);
            fine(attune_engine_info_get(e, &info, &err), &err);
            assert_string_equal(info.base_sha256, base);
            assert_string_equal(info.adapter_sha256, sha256[i]);
            assert_string_equal(info.merge, modes[mode] ? modes[mode] : "none");
            assert_int_equal(info.adapter, -1);
            attune_session *s = open_session(e, 0);
            attune_provenance p;
            ATTUNE_INIT(p);
            fine(attune_session_provenance(s, &p, &err), &err);
            assert_string_equal(p.model, base);
            assert_string_equal(p.adapter, sha256[i]);
            attune_session_close(s);
            struct line adapted = {.n = 0};
            answer_of(e, &adapted);
            int same = adapted.n == plain.n && memcmp(adapted.ids, plain.ids, plain.n * sizeof *plain.ids) == 0;
            /* B zero adds nothing (merging rounds all the same); B not zero changes the answer in every mode */
            if (mode == 0 || i == 1) assert_int_equal(same, i == 0);
            attune_engine_close(e);
        }
    }
    for (int i = 0; i < 3; i++) unlink(path[i]);
    rmdir(folder);
}

/* Another template, and a vocabulary that wants a bos token. */
static void text_begins_with_bos_where_asked(void **state) {
    (void)state;
    attune_engine *e = NULL;
    attune_error err = {0};
    attune_engine_options o;
    ATTUNE_INIT(o);
    o.precision = ATTUNE_PRECISION_F32;
    fine(attune_engine_open_files(LLAMA3, NULL, &o, &e, &err), &err);
    const struct tokenizer *tokenizer = e->model->tokenizer;
    int adds = tokenizer_adds_bos(tokenizer);
    struct line line = {.n = 0};
    int32_t bos = tokenizer_bos(tokenizer);
    if (adds) line_add(&line, &bos, 1);
    line_add_text(&line, e, "the lord");
    line_add_text(&line, e, " was");
    attune_session *s = open_session(e, 0);
    text(s, "the lord");
    text(s, " was");
    expect_line(s, e, &line);
    attune_session_close(s);
    attune_engine_close(e);
}

/* ---- threads, processes, memory ---- */

struct talk {
    attune_engine *engine;
    const char *prompt;
    int64_t n;
    struct line line;
};
static void *talk(void *argument) {
    struct talk *t = argument;
    attune_session *s = open_session(t->engine, 0);
    say(s, "user", t->prompt);
    generate(s, greedy(t->n), NULL, NULL);
    line_add_answer(&t->line, s);
    say(s, "user", "go on");
    generate(s, greedy(t->n), NULL, NULL);
    line_add_answer(&t->line, s);
    attune_session_close(s);
    return NULL;
}

static void check_two_threads(attune_engine *engine, int64_t n) {
    static struct talk alone[2], together[2];
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        alone[i] = together[i] = (struct talk){.engine = engine, .prompt = i ? "Name a fish." : "Hello", .n = n};
        talk(&alone[i]);
    }
    for (int i = 0; i < 2; i++) assert_int_equal(pthread_create(&threads[i], NULL, talk, &together[i]), 0);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(together[i].line.n, alone[i].line.n);
        assert_memory_equal(together[i].line.ids, alone[i].line.ids, alone[i].line.n * sizeof(int32_t));
    }
}

static void sessions_share_an_engine(void **state) {
    (void)state;
    check_two_threads(tiny, 40);
}

static void a_forked_child_is_told(void **state) {
    (void)state;
    attune_session *s = open_session(tiny, 0);
    text(s, "the");
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        attune_session *mine = NULL;
        const float *logits;
        int right = attune_session_open(tiny, NULL, &mine, NULL) == ATTUNE_ERROR_STATE &&
                    attune_session_generate(s, NULL, NULL, NULL, NULL, NULL) == ATTUNE_ERROR_STATE &&
                    attune_session_logits(s, &logits, NULL) == ATTUNE_ERROR_STATE;
        attune_session_close(s);
        attune_engine_close(tiny);
        _exit(right ? 0 : 1);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    generate(s, greedy(2), NULL, NULL);
    attune_session_close(s);
}

static int count_from_the_first(const char *piece, size_t length, void *user) {
    (void)piece;
    (void)length;
    (void)user;
    watching = 1;
    return 0;
}

static void decoding_does_not_allocate(void **state) {
    (void)state;
#ifdef SANITIZED
    skip();
#endif
    attune_generate_options o = greedy(60);
    o.temperature = 1;
    o.top_k = 40;
    o.top_p = 0.9;
    o.repetition_penalty = 1.1;
    attune_session *s = open_session(tiny, 0);
    text(s, "the lord was");
    attune_generate_result r;
    attune_error err = {0};
    ATTUNE_INIT(r);
    allocations = fail_at = 0;
    int code = attune_session_generate(s, &o, count_from_the_first, NULL, &r, &err);
    watching = 0;
    fine(code, &err);
    assert_true(r.tokens > 20);
    assert_int_equal(allocations, 0);
    attune_session_close(s);
}

/* open, append, generate, append, logits; what was open is closed */
static int whole_session(attune_error *err) {
    attune_session *s = NULL;
    attune_message m[] = {{"user", "Hello"}};
    const char *stop[] = {"never there"};
    const float *logits;
    attune_generate_options o = greedy(3);
    o.temperature = 1;
    o.stop = stop;
    o.n_stop = 1;
    int code = attune_session_open(tiny, NULL, &s, err);
    if (code == ATTUNE_OK) code = attune_session_append(s, m, 1, err);
    if (code == ATTUNE_OK) code = attune_session_generate(s, &o, NULL, NULL, NULL, err);
    if (code == ATTUNE_OK) code = attune_session_append_text(s, "more", 4, 0, err);
    if (code == ATTUNE_OK) code = attune_session_logits(s, &logits, err);
    attune_session_close(s);
    return code;
}

static void every_failed_allocation_is_an_error(void **state) {
    (void)state;
#ifdef SANITIZED
    skip();
#endif
    int n = 1, code = ATTUNE_ERROR_MEMORY;
    for (; code != ATTUNE_OK && n < 1000; n++) {
        attune_error err = {0};
        allocations = 0;
        fail_at = n;
        watching = 1;
        code = whole_session(&err);
        watching = 0;
        if (code != ATTUNE_OK) assert_int_equal(code, ATTUNE_ERROR_MEMORY);
        assert_int_equal(err.code, code);
    }
    fail_at = 0;
    assert_true(n > 8 && n < 1000);
}

/* ---- the real model ---- */

static void real_cached_equals_prefill(void **state) {
    (void)state;
    if (!real) skip();
    check_cached_equals_prefill(real, "The three primary colours are", 6);
}

/* What a session says, said again as one conversation: also as text, since a trained model's text has its tokens. */
static void real_two_turns_equal_one_rendering(void **state) {
    (void)state;
    if (!real) skip();
    attune_generate_result r = check_two_turns(real, greedy(40), NULL, NULL);
    assert_true(r.tokens > 0);
    attune_session *s = open_session(real, 0), *again = open_session(real, 0);
    say(s, "user", "What is the capital of France?");
    r = generate(s, greedy(40), NULL, NULL);
    assert_int_equal(r.reason, ATTUNE_STOP_END);
    assert_non_null(strstr(attune_session_text(s), "Paris"));
    attune_message m[] = {{"user", "What is the capital of France?"},
                          {"assistant", attune_session_text(s)},
                          {"user", "Of Italy?"}};
    struct line line = {.n = 0};
    line_add_messages(&line, real, m, 3, 0);
    attune_error err = {0};
    fine(attune_session_append(again, m, 3, &err), &err);
    say(s, "user", "Of Italy?");
    expect_line(s, real, &line);
    expect_line(again, real, &line);
    attune_session_close(s);
    attune_session_close(again);
}

static void real_stop_string(void **state) {
    (void)state;
    if (!real) skip();
    const char *stop[] = {" of France"};
    attune_generate_options o = greedy(40);
    o.stop = stop;
    o.n_stop = 1;
    struct heard heard = {.n = 0};
    attune_session *s = open_session(real, 0);
    say(s, "user", "What is the capital of France?");
    attune_generate_result r = generate(s, o, hear, &heard);
    assert_int_equal(r.reason, ATTUNE_STOP_STRING);
    assert_true(heard.n > 0);
    assert_null(strstr(heard.text, "France"));
    assert_string_equal(heard.text, attune_session_text(s));
    attune_session_close(s);
}

/* An answer that repeats its prompt: many drafts are right, and none changes it. */
static void real_drafts_do_not_change_the_answer(void **state) {
    (void)state;
    if (!real) skip();
    static struct line without, with;
    int64_t accepted = 0;
    for (int lookup = 0; lookup <= 8; lookup += 4) {
        attune_session *s = open_session(real, 0);
        attune_generate_options o = greedy(48);
        o.lookup = lookup;
        say(s, "user", "Repeat this sentence: The quick brown fox jumps over the lazy dog near the river bank.");
        accepted += generate(s, o, NULL, NULL).accepted;
        with.n = 0;
        line_add_answer(&with, s);
        if (lookup == 0) without = with;
        assert_int_equal(with.n, without.n);
        assert_memory_equal(with.ids, without.ids, with.n * sizeof *with.ids);
        attune_session_close(s);
    }
    assert_true(accepted > 10);
}

static void real_sessions_share_an_engine(void **state) {
    (void)state;
    if (!real) skip();
    check_two_threads(real, 8);
}

/* ---- */

static int open_engines(void **state) {
    (void)state;
    attune_error err = {0};
    attune_engine_options o;
    ATTUNE_INIT(o);
    o.threads = 2;
    o.precision = ATTUNE_PRECISION_F32;
    int code = attune_engine_open_files(TINY, NULL, &o, &tiny, &err);
    const char *path = getenv("ATTUNE_TEST_MODEL");
    if (code == ATTUNE_OK && path) code = attune_engine_open_files(path, NULL, &o, &real, &err);
    if (code != ATTUNE_OK) fprintf(stderr, "%s (%s)\n", err.message, err.where);
    return code;
}

static int close_engines(void **state) {
    (void)state;
    attune_engine_close(tiny);
    attune_engine_close(real);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cached_decoding_equals_prefill),
        cmocka_unit_test(long_prompts_go_through_whole),
        cmocka_unit_test(two_turns_equal_one_rendering),
        cmocka_unit_test(the_model_ends_its_turn),
        cmocka_unit_test(appends_add_up),
        cmocka_unit_test(the_last_append_decides_the_kind),
        cmocka_unit_test(text_may_hold_special_tokens_when_asked),
        cmocka_unit_test(seeds_reproduce_answers),
        cmocka_unit_test(penalty_sees_the_line),
        cmocka_unit_test(stop_strings_end_the_answer),
        cmocka_unit_test(the_callback_ends_the_answer),
        cmocka_unit_test(the_callback_cannot_end_what_has_ended),
        cmocka_unit_test(max_tokens_ends_the_answer),
        cmocka_unit_test(a_full_context_ends_the_answer),
        cmocka_unit_test(what_does_not_fit_is_refused),
        cmocka_unit_test(the_header_must_fit),
        cmocka_unit_test(a_cancelled_prompt_can_be_tried_again),
        cmocka_unit_test(calls_in_the_wrong_order),
        cmocka_unit_test(bad_messages_leave_the_session_alone),
        cmocka_unit_test(impossible_options_are_refused),
        cmocka_unit_test(option_structs_of_other_versions),
        cmocka_unit_test(engines_describe_themselves),
        cmocka_unit_test(engines_refuse_what_they_cannot_do),
        cmocka_unit_test(tokens_go_there_and_back),
        cmocka_unit_test(adapters_are_bound_to_their_base),
        cmocka_unit_test(text_begins_with_bos_where_asked),
        cmocka_unit_test(sessions_share_an_engine),
        cmocka_unit_test(a_forked_child_is_told),
        cmocka_unit_test(decoding_does_not_allocate),
        cmocka_unit_test(every_failed_allocation_is_an_error),
        cmocka_unit_test(real_cached_equals_prefill),
        cmocka_unit_test(real_two_turns_equal_one_rendering),
        cmocka_unit_test(real_stop_string),
        cmocka_unit_test(real_drafts_do_not_change_the_answer),
        cmocka_unit_test(real_sessions_share_an_engine),
    };
    return cmocka_run_group_tests(tests, open_engines, close_engines);
}
