/* Lines of tokens that are set, reset, shifted and cancelled. */
#include "tests/session_fixture.h"

static attune_engine *tiny;

/* ---- set ---- */

static const attune_message talk[] = {{"system", "Be short."},  {"user", "Name a colour."}, {"assistant", "Blue."},
                                      {"user", "Another one."}, {"assistant", "Green"},     {"user", "And the sea?"}};

static void set(attune_session *s, const attune_message *messages, size_t n) {
    attune_error err = {0};
    fine(attune_session_set(s, messages, n, &err), &err);
}

/* The conversation is messages[0..n), as a session that never had another one has it. */
static void expect_conversation(attune_session *s, const attune_message *messages, size_t n, size_t reused) {
    struct line line = {.n = 0}, answer = {.n = 0}, fresh_answer = {.n = 0};
    line_add_messages(&line, tiny, messages, n, 1);
    attune_session *fresh = open_session(tiny, 0);
    attune_error err = {0};
    fine(attune_session_append(fresh, messages, n, &err), &err);
    attune_generate_result r = generate(s, greedy(12), NULL, NULL), expected = generate(fresh, greedy(12), NULL, NULL);
    assert_int_equal(expected.reused_tokens, 0);
    assert_int_equal(expected.prompt_tokens, line.n);
    assert_int_equal(r.reused_tokens, reused);
    assert_int_equal(r.prompt_tokens, line.n - reused);
    line_add_answer(&answer, s);
    line_add_answer(&fresh_answer, fresh);
    assert_int_equal(answer.n, fresh_answer.n);
    assert_memory_equal(answer.ids, fresh_answer.ids, answer.n * sizeof *answer.ids);
    attune_session_close(fresh);
}

static size_t tokens_of(const attune_message *messages, size_t n) {
    struct line line = {.n = 0};
    line_add_messages(&line, tiny, messages, n, 0);
    return line.n;
}

static void a_common_start_is_not_run_again(void **state) {
    (void)state;
    attune_session *s = open_session(tiny, 0);
    set(s, talk, 2);
    expect_conversation(s, talk, 2, 0);
    set(s, talk, 2);
    expect_conversation(s, talk, 2, tokens_of(talk, 2));
    set(s, talk, 4);
    struct line now = {.n = 0}, before = {.n = 0};
    line_add_messages(&now, tiny, talk, 4, 0);
    line_add_messages(&before, tiny, talk, 2, 1);
    size_t common = tokens_of(talk, 2);
    while (common < before.n && now.ids[common] == before.ids[common]) common++;
    expect_conversation(s, talk, 4, common);
    /* an edit near the start */
    attune_message edited[6];
    memcpy(edited, talk, sizeof talk);
    edited[1].content = "Name a river.";
    set(s, edited, 6);
    size_t shared = 0;
    struct line other = {.n = 0};
    line_add_messages(&other, tiny, edited, 6, 0);
    while (now.ids[shared] == other.ids[shared]) shared++;
    assert_in_range(shared, tokens_of(talk, 1), tokens_of(talk, 2));
    expect_conversation(s, edited, 6, shared);
    attune_session_close(s);
}

static void set_and_append_go_together(void **state) {
    (void)state;
    attune_session *s = open_session(tiny, 0);
    attune_error err = {0};
    text(s, "something else altogether");
    generate(s, greedy(5), NULL, NULL);
    set(s, talk, 5); /* ends with an answer: there is nothing to answer */
    assert_int_equal(attune_session_generate(s, NULL, NULL, NULL, NULL, &err), ATTUNE_ERROR_STATE);
    fine(attune_session_append(s, talk + 5, 1, &err), &err);
    expect_conversation(s, talk, 6, 0);
    set(s, NULL, 0);
    assert_string_equal(attune_session_text(s), "");
    assert_int_equal(attune_session_generate(s, NULL, NULL, NULL, NULL, &err), ATTUNE_ERROR_STATE);
    fine(attune_session_append(s, talk, 2, &err), &err);
    expect_conversation(s, talk, 2, 0);
    /* logits that were computed already: the last token is run again */
    const float *logits;
    set(s, talk, 4);
    fine(attune_session_logits(s, &logits, &err), &err);
    set(s, talk, 4);
    struct line line = {.n = 0};
    line_add_messages(&line, tiny, talk, 4, 0);
    expect_line(s, tiny, &line);
    attune_session_close(s);
}

/* The session is as it was after each call that fails. */
static void what_cannot_be_set_is_refused(void **state) {
    (void)state;
    char content[2000] = "";
    for (int i = 0; i < 90; i++) strcat(content, " the");
    attune_session *s = open_session(tiny, 64);
    attune_error err = {0};
    set(s, talk, 2);
    static const attune_message late[] = {{"user", "a"}, {"system", "b"}, {"user", "c"}};
    static const attune_message twice[] = {{"system", "a"}, {"system", "b"}, {"user", "c"}};
    static const attune_message invalid[] = {{"user", "a\xFF"}};
    const attune_message huge[] = {{"user", content}};
    assert_int_equal(attune_session_set(s, late, 3, &err), ATTUNE_ERROR_ARGUMENT);
    assert_string_equal(err.where, "messages[1]");
    assert_non_null(strstr(err.message, "system"));
    assert_int_equal(attune_session_set(s, twice, 3, &err), ATTUNE_ERROR_ARGUMENT);
    assert_int_equal(attune_session_set(s, invalid, 1, &err), ATTUNE_ERROR_ARGUMENT);
    assert_int_equal(attune_session_set(s, NULL, 1, &err), ATTUNE_ERROR_ARGUMENT);
    assert_int_equal(attune_session_set(s, huge, 1, &err), ATTUNE_ERROR_CONTEXT_FULL);
    assert_int_equal(attune_session_append(s, talk, 1, &err), ATTUNE_ERROR_ARGUMENT);
    assert_non_null(strstr(err.message, "begins a conversation"));
    assert_int_equal(attune_session_set(NULL, talk, 1, &err), ATTUNE_ERROR_ARGUMENT);
    expect_conversation(s, talk, 2, 0);
    attune_session_close(s);
}

/* ---- reset, and what the engine serves by then ---- */

static struct line answer_to_talk(attune_session *s) {
    struct line answer = {.n = 0};
    attune_error err = {0};
    fine(attune_session_append(s, talk, 2, &err), &err);
    generate(s, greedy(12), NULL, NULL);
    line_add_answer(&answer, s);
    return answer;
}

static int same_line(const struct line *a, const struct line *b) {
    return a->n == b->n && memcmp(a->ids, b->ids, a->n * sizeof *a->ids) == 0;
}

static void reset_takes_what_is_served_now(void **state) {
    (void)state;
    char folder[] = "/tmp/attune-conversation-XXXXXX", path[64], base[65], sha256[65];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/a.gguf", folder);
    hash_bytes(tiny->model->gguf->file.data, tiny->model->gguf->file.size, base);
    write_adapter(tiny, path, base, 0.05f, sha256);
    attune_engine *adapted = open_tiny(path, "none"), *engine = open_tiny(NULL, NULL);
    attune_session *plain = open_session(engine, 0), *other = open_session(adapted, 0);
    struct line first = answer_to_talk(plain), expected = answer_to_talk(other);
    assert_false(same_line(&first, &expected));
    attune_error err = {0};
    for (int merged = 0; merged < 2; merged++) {
        attune_session *held = open_session(engine, 0);
        fine(attune_engine_swap(engine, path, merged ? "f16" : "none", &err), &err);
        /* the one that is open goes on as it began */
        struct line still = answer_to_talk(held);
        if (!merged) assert_true(same_line(&still, &first));
        if (merged) assert_true(same_line(&still, &expected));
        fine(attune_session_reset(held, &err), &err);
        assert_string_equal(attune_session_text(held), "");
        assert_true(held->rank >= variant_rank(held->variant));
        assert_int_equal(attune_session_generate(held, NULL, NULL, NULL, NULL, &err), ATTUNE_ERROR_STATE);
        attune_provenance p;
        ATTUNE_INIT(p);
        fine(attune_session_provenance(held, &p, &err), &err);
        assert_string_equal(p.adapter, sha256);
        struct line now = answer_to_talk(held);
        assert_true(same_line(&now, &expected));
        attune_session_close(held);
    }
    fine(attune_engine_swap(engine, NULL, "none", &err), &err);
    fine(attune_session_reset(plain, &err), &err);
    struct line again = answer_to_talk(plain);
    assert_true(same_line(&again, &first));
    assert_int_equal(attune_session_reset(NULL, &err), ATTUNE_ERROR_ARGUMENT);
    attune_session_close(plain);
    attune_session_close(other);
    attune_engine_close(adapted);
    attune_engine_close(engine);
    unlink(path);
    rmdir(folder);
}

/* ---- context shift ---- */

/* The line is `whole` without what stood behind its system message, up to a user's turn. Returns how much that is. */
static size_t expect_cut(const attune_session *s, const struct line *whole, size_t system) {
    size_t dropped = whole->n - s->line.n;
    struct line user = {.n = 0};
    line_add_messages(&user, tiny, (attune_message[]){{"system", ""}, {"user", ""}}, 2, 0);
    size_t header = user.n;
    while (user.ids[header - 1] != chat_template_start(tiny->model->chat)) header--;
    assert_memory_equal(s->line.ids, whole->ids, system * sizeof *whole->ids);
    assert_memory_equal(s->line.ids + system, whole->ids + system + dropped, (s->line.n - system) * sizeof *whole->ids);
    assert_memory_equal(s->line.ids + system, user.ids + header - 1, 2 * sizeof *user.ids);
    return dropped;
}

static void appends_drop_the_oldest_turns(void **state) {
    (void)state;
    attune_session *s = open_session_with(tiny, 100, ATTUNE_CONTEXT_SHIFT);
    attune_error err = {0};
    size_t system = tokens_of(talk, 1), shifts = 0, told = 0;
    fine(attune_session_append(s, talk, 1, &err), &err);
    for (int i = 0; i < 40; i++) {
        attune_message m = {"user", i % 3 ? "Name a colour." : "And the sea?"};
        struct line whole = {.n = 0};
        line_add(&whole, s->line.ids, s->line.n);
        size_t before = s->dropped, behind = whole.n - system;
        line_add_messages(&whole, tiny, &m, 1, 0);
        fine(attune_session_append(s, &m, 1, &err), &err);
        assert_true(s->line.n <= 100);
        size_t dropped = expect_cut(s, &whole, system);
        assert_int_equal(dropped, s->dropped - before);
        if (dropped) assert_in_range(dropped, (behind + 1) / 2, behind);
        if (dropped) assert_true(whole.n > 100);
        shifts += dropped > 0;
        attune_generate_result r = generate(s, greedy(3), NULL, NULL);
        told += (size_t)r.dropped_tokens;
        assert_true((size_t)r.dropped_tokens >= dropped);
    }
    assert_true(shifts > 5 && told > 300);
    attune_session_close(s);
}

/* One that does not fit alone is an error still, and changes nothing. */
static void what_cannot_fit_is_refused_all_the_same(void **state) {
    (void)state;
    char content[2000] = "";
    for (int i = 0; i < 90; i++) strcat(content, " the");
    attune_session *s = open_session_with(tiny, 64, ATTUNE_CONTEXT_SHIFT);
    attune_error err = {0};
    const attune_message huge[] = {{"user", content}};
    struct line talk_line = {.n = 0};
    line_add_messages(&talk_line, tiny, talk, 2, 0);
    fine(attune_session_append(s, talk, 2, &err), &err);
    assert_int_equal(attune_session_append(s, huge, 1, &err), ATTUNE_ERROR_CONTEXT_FULL);
    assert_int_equal(attune_session_append_text(s, content, strlen(content), 0, &err), ATTUNE_ERROR_CONTEXT_FULL);
    assert_int_equal(attune_session_set(s, huge, 1, &err), ATTUNE_ERROR_CONTEXT_FULL);
    expect_line(s, tiny, &talk_line);
    assert_int_equal(s->dropped, 0);
    attune_session_close(s);
    /* no room for the answer's header, and only the question to drop */
    s = open_session_with(tiny, (int64_t)tokens_of(talk, 2) + 1, ATTUNE_CONTEXT_SHIFT);
    fine(attune_session_append(s, talk, 2, &err), &err);
    assert_int_equal(attune_session_generate(s, NULL, NULL, NULL, NULL, &err), ATTUNE_ERROR_CONTEXT_FULL);
    expect_line(s, tiny, &talk_line);
    attune_session_close(s);
}

static void answers_go_on_past_the_context(void **state) {
    (void)state;
    for (int lookup = 0; lookup <= 4; lookup += 4) {
        attune_session *s = open_session_with(tiny, 64, ATTUNE_CONTEXT_SHIFT);
        attune_error err = {0};
        attune_generate_options o = greedy(300);
        o.lookup = lookup;
        fine(attune_session_append(s, talk, 2, &err), &err);
        attune_generate_result r = generate(s, o, NULL, NULL);
        assert_int_equal(r.reason, ATTUNE_STOP_LENGTH);
        assert_int_equal(r.tokens, 300);
        assert_true(r.dropped_tokens > 200);
        /* the answer is whole, the line is the system message and the answer's end */
        struct line answer = {.n = 0}, system = {.n = 0};
        line_add_answer(&answer, s);
        line_add_messages(&system, tiny, talk, 1, 0);
        assert_int_equal(answer.n, 300);
        assert_memory_equal(s->line.ids, system.ids, system.n * sizeof *system.ids);
        size_t end = s->line.n - s->turn_end - system.n;
        assert_memory_equal(s->line.ids + system.n, answer.ids + 300 - end, end * sizeof *answer.ids);
        fine(attune_session_append(s, talk + 5, 1, &err), &err);
        generate(s, greedy(5), NULL, NULL);
        attune_session_close(s);
    }
}

/* A whole conversation that does not fit loses its oldest turns. */
static void a_long_conversation_is_cut_when_set(void **state) {
    (void)state;
    attune_message m[24] = {{"system", "Be short."}};
    for (size_t i = 1; i < 24; i++)
        m[i] = (attune_message){i % 2 ? "user" : "assistant", i % 2 ? "Name a colour." : "Blue."};
    struct line whole = {.n = 0};
    line_add_messages(&whole, tiny, m, 24, 0);
    attune_session *s = open_session_with(tiny, 100, ATTUNE_CONTEXT_SHIFT);
    set(s, m, 24);
    assert_true(whole.n > 100 && s->line.n <= 100);
    size_t dropped = expect_cut(s, &whole, tokens_of(m, 1));
    assert_int_equal(s->dropped, dropped);
    assert_true(generate(s, greedy(3), NULL, NULL).dropped_tokens >= (int64_t)dropped);
    attune_session_close(s);
}

/* ---- cancelling ---- */

struct canceller {
    attune_session *s;
    atomic_int stop;
};
static void *cancel_again_and_again(void *argument) {
    struct canceller *c = argument;
    while (!atomic_load(&c->stop)) attune_session_cancel(c->s);
    return NULL;
}

static void *undisturbed(void *argument) {
    struct line *answer = argument;
    for (int i = 0; i < 10; i++) {
        attune_session *s = open_session(tiny, 0);
        *answer = answer_to_talk(s);
        attune_session_close(s);
    }
    return NULL;
}

/* A cancelled prompt is none: said again, it is answered as if nothing had been. Another session goes on. */
static void a_cancel_ends_a_long_prompt(void **state) {
    (void)state;
    char prompt[1024] = "";
    for (int i = 0; i < 100; i++) strcat(prompt, i % 7 ? " the" : " was 1");
    attune_session *s = open_session(tiny, 0);
    struct line expected = answer_to_talk(s), other = {.n = 0}, line = {.n = 0};
    attune_session_close(s);
    s = open_session(tiny, 0);
    attune_session_cancel(s); /* nothing runs: nothing is stopped */
    say(s, "user", prompt);
    line_add_messages(&line, tiny, &(attune_message){"user", prompt}, 1, 0);
    struct canceller c = {.s = s};
    pthread_t threads[2];
    assert_int_equal(pthread_create(&threads[0], NULL, undisturbed, &other), 0);
    assert_int_equal(pthread_create(&threads[1], NULL, cancel_again_and_again, &c), 0);
    int cancelled = 0;
    for (int i = 0; i < 2000 && cancelled < 20; i++) {
        attune_error err = {0};
        attune_generate_result r;
        ATTUNE_INIT(r);
        attune_generate_options o = greedy(20);
        int code = attune_session_generate(s, &o, NULL, NULL, &r, &err);
        if (code == ATTUNE_ERROR_CANCELLED) {
            cancelled++;
            assert_true(s->line.n == line.n && s->cache.used <= line.n);
            continue;
        }
        fine(code, &err);
        assert_true(r.reason == ATTUNE_STOP_CALLBACK || r.reason == ATTUNE_STOP_LENGTH);
        fine(attune_session_set(s, &(attune_message){"user", prompt}, 1, &err), &err);
    }
    atomic_store(&c.stop, 1);
    pthread_join(threads[1], NULL);
    pthread_join(threads[0], NULL);
    assert_int_equal(cancelled, 20);
    assert_true(same_line(&other, &expected));
    expect_line(s, tiny, &line);
    generate(s, greedy(4), NULL, NULL);
    attune_session_cancel(NULL);
    attune_session_close(s);
}

/* Between two tokens of an answer. */
static int cancel_third(const char *piece, size_t length, void *user) {
    static int calls;
    (void)piece;
    (void)length;
    if (++calls % 3 == 0) attune_session_cancel(user);
    return 0;
}
static void a_cancel_ends_an_answer(void **state) {
    (void)state;
    attune_session *s = open_session(tiny, 0);
    struct line line = {.n = 0};
    text(s, "the lord was");
    line_add_text(&line, tiny, "the lord was");
    attune_generate_result r = generate(s, greedy(100), cancel_third, s);
    assert_int_equal(r.reason, ATTUNE_STOP_CALLBACK);
    assert_in_range(r.tokens, 3, 20);
    line_add_answer(&line, s);
    text(s, " then");
    line_add_text(&line, tiny, " then");
    expect_line(s, tiny, &line);
    attune_session_close(s);
}

/* ---- */

static int open_engine(void **state) {
    (void)state;
    tiny = open_tiny(NULL, NULL);
    return 0;
}
static int close_engine(void **state) {
    (void)state;
    attune_engine_close(tiny);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_common_start_is_not_run_again), cmocka_unit_test(set_and_append_go_together),
        cmocka_unit_test(what_cannot_be_set_is_refused),   cmocka_unit_test(reset_takes_what_is_served_now),
        cmocka_unit_test(appends_drop_the_oldest_turns),   cmocka_unit_test(what_cannot_fit_is_refused_all_the_same),
        cmocka_unit_test(answers_go_on_past_the_context),  cmocka_unit_test(a_long_conversation_is_cut_when_set),
        cmocka_unit_test(a_cancel_ends_a_long_prompt),     cmocka_unit_test(a_cancel_ends_an_answer),
    };
    return cmocka_run_group_tests(tests, open_engine, close_engine);
}
