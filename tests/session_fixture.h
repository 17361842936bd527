/* Sessions over tests/golden/tiny_llama.gguf (random weights, ChatML). What a session should give is computed beside it
 * with decoding_pass_run over the whole line of tokens at once. */
#ifndef TESTS_SESSION_FIXTURE_H
#define TESTS_SESSION_FIXTURE_H

#include "core/base/hash.h"
#include "inference/session.h"

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>

#define TINY ATTUNE_TEST_ROOT "/tests/golden/tiny_llama.gguf"

static inline void fine(int code, const attune_error *err) {
    if (code != ATTUNE_OK) fail_msg("code %d: %s (%s)", code, err->message, err->where);
}

static inline attune_session *open_session_with(attune_engine *engine, int64_t context, int when_full) {
    attune_session_options o;
    ATTUNE_INIT(o);
    o.context = context;
    o.kv = ATTUNE_KV_F32;
    o.when_full = when_full;
    attune_session *s = NULL;
    attune_error err = {0};
    fine(attune_session_open(engine, &o, &s, &err), &err);
    return s;
}

static inline attune_session *open_session(attune_engine *engine, int64_t context) {
    return open_session_with(engine, context, ATTUNE_CONTEXT_STOP);
}

static inline void say(attune_session *s, const char *role, const char *content) {
    attune_message message = {role, content};
    attune_error err = {0};
    fine(attune_session_append(s, &message, 1, &err), &err);
}

static inline void text(attune_session *s, const char *content) {
    attune_error err = {0};
    fine(attune_session_append_text(s, content, strlen(content), 0, &err), &err);
}

static inline attune_generate_options greedy(int64_t max_tokens) {
    attune_generate_options o;
    ATTUNE_INIT(o);
    o.max_tokens = max_tokens;
    return o;
}

static inline attune_generate_result generate(attune_session *s, attune_generate_options o,
                                              attune_token_callback on_token, void *user) {
    attune_generate_result r;
    attune_error err = {0};
    ATTUNE_INIT(r);
    fine(attune_session_generate(s, &o, on_token, user, &r, &err), &err);
    assert_int_equal(r.size, sizeof r);
    return r;
}

enum { LINE_MAX_TOKENS = 1024 };
struct line {
    int32_t ids[LINE_MAX_TOKENS];
    size_t n;
};

static inline void line_add(struct line *line, const int32_t *ids, size_t n) {
    assert_true(line->n + n <= LINE_MAX_TOKENS);
    memcpy(line->ids + line->n, ids, n * sizeof *ids);
    line->n += n;
}

static inline void line_add_answer(struct line *line, const attune_session *s) {
    const int32_t *ids;
    size_t n;
    assert_int_equal(attune_session_ids(s, &ids, &n), ATTUNE_OK);
    line_add(line, ids, n);
}

static inline void line_add_text(struct line *line, const attune_engine *engine, const char *content) {
    int32_t ids[LINE_MAX_TOKENS];
    size_t n;
    attune_error err = {0};
    fine(attune_engine_tokenize(engine, content, strlen(content), 0, ids, LINE_MAX_TOKENS, &n, &err), &err);
    assert_true(n <= LINE_MAX_TOKENS);
    line_add(line, ids, n);
}

static inline void line_add_messages(struct line *line, const attune_engine *engine, const attune_message *messages,
                                     size_t n, int open_answer) {
    struct token_list list = {0};
    attune_error err = {0};
    fine(chat_template_render(engine->model->chat, messages, n, line->n == 0, 0, open_answer, &list, &err), &err);
    line_add(line, list.ids, list.n);
    token_list_free(&list);
}

static inline void line_close_turn(struct line *line, const attune_engine *engine) {
    struct token_list list = {0};
    attune_error err = {0};
    fine(chat_template_close_turn(engine->model->chat, &list, &err), &err);
    line_add(line, list.ids, list.n);
    token_list_free(&list);
}

/* Logits (V) after ids[0..n), in one pass over an empty cache. */
static inline void one_shot(const attune_engine *engine, const int32_t *ids, size_t n, float *logits) {
    struct kv_cache cache;
    struct decoding_pass *pass;
    attune_error err = {0};
    fine(kv_cache_create(engine->model, n, BLOCK_F32, &cache, &err), &err);
    fine(
        decoding_pass_create(engine->model, engine->pool, n, variant_rank(engine->variant), PRECISION_F32, &pass, &err),
        &err);
    fine(decoding_pass_run(pass, &engine->variant->weights, &cache, ids, n, logits, 1, &err), &err);
    decoding_pass_destroy(pass);
    kv_cache_free(&cache);
}

static inline int32_t best(const float *logits, size_t V) {
    size_t at = 0;
    for (size_t i = 1; i < V; i++)
        if (logits[i] > logits[at]) at = i;
    return (int32_t)at;
}

/* The session's line is `line`: logits after it agree with one pass over it. */
static inline void expect_line(attune_session *s, const attune_engine *engine, const struct line *line) {
    size_t V = engine->model->V;
    float *expected = malloc(V * sizeof *expected);
    const float *logits;
    attune_error err = {0};
    fine(attune_session_logits(s, &logits, &err), &err);
    one_shot(engine, line->ids, line->n, expected);
    double worst = 0;
    for (size_t i = 0; i < V; i++) {
        double off = fabs((double)logits[i] - expected[i]);
        if (!(off <= worst)) worst = off; /* NaN too */
    }
    assert_true(worst < 2e-3);
    free(expected);
}

struct heard {
    char text[8192];
    size_t n;
    int calls, stop_after; /* stop_after 0: never */
};
static inline int hear(const char *piece, size_t length, void *user) {
    struct heard *h = user;
    assert_true(h->n + length < sizeof h->text);
    memcpy(h->text + h->n, piece, length);
    h->n += length;
    h->text[h->n] = 0;
    return ++h->calls == h->stop_after;
}

/* In f32, so that what is computed in other ways agrees closely. */
static inline attune_engine *open_tiny(const char *adapter, const char *merge) {
    attune_engine_options o;
    attune_engine *engine = NULL;
    attune_error err = {0};
    ATTUNE_INIT(o);
    o.threads = 2;
    o.merge = merge;
    o.precision = ATTUNE_PRECISION_F32;
    fine(attune_engine_open_files(TINY, adapter, &o, &engine, &err), &err);
    return engine;
}

/* A random adapter for the tiny model as a file; sha256 of the file. b: size of B's entries. */
static inline void write_adapter(const attune_engine *engine, const char *path, const char *base_sha256, float b,
                                 char sha256[65]) {
    attune_error err = {0};
    struct lora_config config = {.rank = 4, .alpha = 8, .targets = LORA_ALL_TARGETS};
    struct lora *lora;
    fine(lora_create(engine->model, &config, &lora, &err), &err);
    lora_init(lora, engine->model, 1);
    for (size_t i = 0; i < lora->n; i++)
        if (lora->parameters[i] == 0) lora->parameters[i] = b * (float)((int)(i * 7 % 11) - 5);
    struct adapter_record record = {.origin = "trained"};
    snprintf(record.base_sha256, sizeof record.base_sha256, "%s", base_sha256);
    fine(adapter_write(lora, engine->model, &record, path, "test", sha256, &err), &err);
    lora_destroy(lora);
}

#endif
