/* Answers: drafts, alternatives, figures, and the memory that they take (-Wl,--wrap, see CMakeLists.txt). */
#include "tests/session_fixture.h"

static attune_engine *tiny;
static _Thread_local int watching;
static _Thread_local long taken;

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t each);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t alignment, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t each);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_aligned_alloc(size_t alignment, size_t n);

void *__wrap_malloc(size_t n) {
    taken += watching;
    return __real_malloc(n);
}
void *__wrap_calloc(size_t n, size_t each) {
    taken += watching;
    return __real_calloc(n, each);
}
void *__wrap_realloc(void *p, size_t n) {
    taken += watching;
    return __real_realloc(p, n);
}
void *__wrap_aligned_alloc(size_t alignment, size_t n) {
    taken += watching;
    return __real_aligned_alloc(alignment, n);
}

/* ---- drafts ---- */

static void drafts_follow_the_longest_match(void **state) {
    (void)state;
    static const struct {
        int32_t line[12];
        size_t n, most;
        int32_t draft[8];
        size_t n_draft;
    } cases[] = {
        {{1, 2, 3, 4, 1, 2}, 6, 8, {3, 4, 1, 2}, 4},
        {{1, 2, 3, 4, 1, 2}, 6, 2, {3, 4}, 2},
        {{1, 2, 3, 1, 2, 4, 1, 2}, 8, 1, {4}, 1},                   /* the latest of equals */
        {{9, 1, 2, 3, 7, 1, 2, 4, 9, 1, 2}, 11, 2, {3, 7}, 2},      /* the longest before the latest */
        {{5, 5, 5, 5}, 4, 8, {5}, 1},                               /* one that runs into the end itself */
        {{1, 2, 3, 2}, 4, 8, {0}, 0},                               /* one token is too little */
        {{1, 2, 1, 2}, 4, 0, {0}, 0},
        {{1, 2}, 2, 8, {0}, 0},
        {{1}, 1, 8, {0}, 0},
        {{1}, 0, 8, {0}, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int32_t draft[8] = {0};
        size_t n = lookup_draft(cases[i].line, cases[i].n, cases[i].most, draft);
        assert_int_equal(n, cases[i].n_draft);
        assert_memory_equal(draft, cases[i].draft, n * sizeof *draft);
    }
}

static void answer_of(attune_generate_options o, struct line *line, struct line *answer, attune_generate_result *r) {
    attune_session *s = open_session(tiny, 0);
    static const char prompt[] = "the lord was the lord was the lord was";
    memset(line, 0, sizeof *line);
    memset(answer, 0, sizeof *answer);
    text(s, prompt);
    *r = generate(s, o, NULL, NULL);
    line_add_text(line, tiny, prompt);
    line_add_answer(line, s);
    line_add_answer(answer, s);
    text(s, " then");
    line_add_text(line, tiny, " then");
    expect_line(s, tiny, line);
    attune_session_close(s);
}

/* Whatever the sampling, the length, and what ends it. */
static void drafts_do_not_change_the_answer(void **state) {
    (void)state;
    static struct line line, with, without;
    const char *stop[] = {"e", "zq"};
    int64_t drafted = 0, accepted = 0;
    for (int i = 0; i < 60; i++) {
        attune_generate_options o = greedy(i % 2 ? 1 + i / 2 : 200);
        attune_generate_result a, b;
        o.seed = (uint64_t)i;
        o.temperature = i % 3 == 2 ? 0.7 : 0;
        o.repetition_penalty = i % 5 == 4 ? 1.2 : 0;
        o.stop = stop;
        o.n_stop = i % 7 == 6 ? 2 : 0;
        answer_of(o, &line, &without, &a);
        assert_int_equal(a.drafted, 0);
        o.lookup = 1 + i % 8;
        answer_of(o, &line, &with, &b);
        assert_int_equal(with.n, without.n);
        assert_memory_equal(with.ids, without.ids, with.n * sizeof *with.ids);
        assert_int_equal(a.reason, b.reason);
        assert_true(b.accepted <= b.drafted && b.accepted < b.tokens + 1);
        drafted += b.drafted;
        accepted += b.accepted;
    }
    assert_true(drafted > accepted && accepted > 100);
}

struct until {
    int calls, stop_after;
};
static int stop_there(const char *piece, size_t length, void *user) {
    struct until *u = user;
    (void)piece;
    (void)length;
    return ++u->calls == u->stop_after;
}
static void a_drafted_answer_can_be_stopped_anywhere(void **state) {
    (void)state;
    for (int n = 1; n < 30; n++) {
        attune_session *s = open_session(tiny, 0);
        attune_generate_options o = greedy(60);
        struct line line = {.n = 0};
        struct until until = {.stop_after = n};
        o.lookup = 8;
        text(s, "the lord was the lord was");
        attune_generate_result r = generate(s, o, stop_there, &until);
        assert_int_equal(r.reason, ATTUNE_STOP_CALLBACK);
        line_add_text(&line, tiny, "the lord was the lord was");
        line_add_answer(&line, s);
        text(s, " then");
        line_add_text(&line, tiny, " then");
        expect_line(s, tiny, &line);
        attune_session_close(s);
    }
}

/* ---- alternatives ---- */

static void each_place_has_alternatives(void **state) {
    (void)state;
    enum { BEST = 5 };
    float logits[512];
    size_t V = tiny->model->V;
    for (int lookup = 0; lookup < 2; lookup++) {
        attune_session *s = open_session(tiny, 0);
        attune_generate_options o = greedy(40);
        attune_error err = {0};
        struct line line = {.n = 0};
        const attune_alternative *found;
        size_t n;
        o.temperature = 1;
        o.lookup = 4 * lookup;
        o.alternatives = BEST;
        text(s, "the lord was the lord was");
        line_add_text(&line, tiny, "the lord was the lord was");
        size_t start = line.n;
        attune_generate_result r = generate(s, o, NULL, NULL);
        line_add_answer(&line, s);
        for (size_t i = 0; i < (size_t)r.tokens; i++) {
            assert_int_equal(attune_session_alternatives(s, i, &found, &n), ATTUNE_OK);
            assert_int_equal(n, BEST + 1);
            assert_int_equal(found[0].id, line.ids[start + i]);
            one_shot(tiny, line.ids, start + i, logits);
            assert_int_equal(found[1].id, best(logits, V));
            double max = logits[found[1].id], sum = 0;
            for (size_t j = 0; j < V; j++) sum += exp(logits[j] - max);
            for (size_t j = 0; j < n; j++) {
                assert_true(fabs(found[j].log_probability - (logits[found[j].id] - max - log(sum))) < 1e-3);
                if (j > 1) assert_true(found[j].log_probability <= found[j - 1].log_probability);
            }
        }
        assert_int_equal(attune_session_alternatives(s, (size_t)r.tokens, &found, &n), ATTUNE_ERROR_NOT_FOUND);
        assert_int_equal(attune_session_alternatives(NULL, 0, &found, &n), ATTUNE_ERROR_ARGUMENT);
        fine(attune_session_append_text(s, "x", 1, 0, &err), &err);
        generate(s, greedy(2), NULL, NULL);
        assert_int_equal(attune_session_alternatives(s, 0, &found, &n), ATTUNE_ERROR_NOT_FOUND);
        attune_session_close(s);
    }
}

/* ---- options, figures, memory ---- */

static void impossible_options_are_refused(void **state) {
    (void)state;
    attune_session *s = open_session(tiny, 0);
    attune_error err = {0};
    text(s, "the");
    static const int lookups[] = {-1, 9, 1 << 30};
    for (size_t i = 0; i < 3; i++) {
        attune_generate_options o = greedy(1);
        o.lookup = lookups[i];
        assert_int_equal(attune_session_generate(s, &o, NULL, NULL, NULL, &err), ATTUNE_ERROR_ARGUMENT);
        assert_non_null(strstr(err.message, "lookup"));
        o = greedy(1);
        o.alternatives = lookups[i] == 9 ? 21 : lookups[i];
        assert_int_equal(attune_session_generate(s, &o, NULL, NULL, NULL, &err), ATTUNE_ERROR_ARGUMENT);
        assert_non_null(strstr(err.message, "alternatives"));
    }
    generate(s, greedy(1), NULL, NULL);
    attune_session_close(s);
    static const int values[] = {-1, 3, 1 << 30};
    for (size_t i = 0; i < 3; i++) {
        attune_session_options o;
        attune_session *none = NULL;
        ATTUNE_INIT(o);
        o.kv = values[i];
        assert_int_equal(attune_session_open(tiny, &o, &none, &err), ATTUNE_ERROR_ARGUMENT);
        assert_non_null(strstr(err.message, "kv"));
        ATTUNE_INIT(o);
        o.when_full = values[i];
        assert_int_equal(attune_session_open(tiny, &o, &none, &err), ATTUNE_ERROR_ARGUMENT);
        assert_non_null(strstr(err.message, "when_full"));
        assert_null(none);
    }
}

/* Near ties aside, what past tokens are kept as does not show at once. */
static void every_kind_of_cache_answers(void **state) {
    (void)state;
    static const int kinds[] = {ATTUNE_KV_F32, ATTUNE_KV_F16, ATTUNE_KV_Q8};
    struct line first = {.n = 0};
    for (size_t i = 0; i < 3; i++) {
        attune_session_options o;
        attune_session *s = NULL;
        attune_error err = {0};
        ATTUNE_INIT(o);
        o.kv = kinds[i];
        int code = attune_session_open(tiny, &o, &s, &err);
        if (code == ATTUNE_ERROR_UNSUPPORTED && kinds[i] == ATTUNE_KV_Q8) continue;
        fine(code, &err);
        text(s, "the lord was");
        attune_generate_result r = generate(s, greedy(6), NULL, NULL);
        struct line answer = {.n = 0};
        line_add_answer(&answer, s);
        assert_int_equal(r.tokens, 6);
        if (i == 0) first = answer;
        assert_int_equal(answer.ids[0], first.ids[0]);
        attune_session_close(s);
    }
}

static void the_result_tells_the_figures(void **state) {
    (void)state;
    attune_session *s = open_session(tiny, 0);
    attune_error err = {0};
    const float *logits;
    text(s, "the lord was");
    attune_generate_result r = generate(s, greedy(1), NULL, NULL);
    assert_true(r.tokens_per_s == 0 && r.reused_tokens == 0 && r.dropped_tokens == 0);
    int64_t before = r.prompt_tokens;
    text(s, " and");
    fine(attune_session_logits(s, &logits, &err), &err);
    r = generate(s, greedy(20), NULL, NULL);
    assert_int_equal(r.prompt_tokens, 0);
    assert_true(r.reused_tokens > before);
    assert_true(r.tokens_per_s > 0 && fabs(r.tokens_per_s * r.seconds - (double)(r.tokens - 1)) < 1e-6);
    attune_session_close(s);
}

static int count_from_the_first(const char *piece, size_t length, void *user) {
    (void)piece;
    (void)length;
    (void)user;
    watching = 1;
    return 0;
}

static void decoding_takes_no_memory(void **state) {
    (void)state;
    for (int i = 0; i < 8; i++) {
        attune_generate_options o = greedy(150);
        attune_generate_result r;
        attune_error err = {0};
        attune_session *s = open_session_with(tiny, 100, i & 4 ? ATTUNE_CONTEXT_SHIFT : ATTUNE_CONTEXT_STOP);
        ATTUNE_INIT(r);
        o.lookup = i & 1 ? 6 : 0;
        o.alternatives = i & 2 ? 7 : 0;
        o.temperature = 0.5;
        taken = 0;
        watching = 1;
        say(s, "user", "the lord was the lord was");
        watching = 0;
        assert_true(taken > 0);
        taken = 0;
        int code = attune_session_generate(s, &o, count_from_the_first, NULL, &r, &err);
        watching = 0;
        fine(code, &err);
        assert_true(r.tokens > 15);
        assert_int_equal(taken, 0);
        attune_session_close(s);
    }
}

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
        cmocka_unit_test(drafts_follow_the_longest_match),
        cmocka_unit_test(drafts_do_not_change_the_answer),
        cmocka_unit_test(a_drafted_answer_can_be_stopped_anywhere),
        cmocka_unit_test(each_place_has_alternatives),
        cmocka_unit_test(impossible_options_are_refused),
        cmocka_unit_test(every_kind_of_cache_answers),
        cmocka_unit_test(the_result_tells_the_figures),
        cmocka_unit_test(decoding_takes_no_memory),
    };
    return cmocka_run_group_tests(tests, open_engine, close_engine);
}
