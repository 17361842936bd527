/* A conversation is one line of tokens: those in the cache, then those pending.
 *
 *   line:   [ tokens[0] ... tokens[cache.used - 1] | pending.ids[0] ... pending.ids[pending.n - 1] ]
 *
 * Appending only adds to the pending ones; generating, or asking for logits, runs them through the
 * model, all or none. What was appended last decides how an answer begins and ends: messages are answered
 * in a turn of the chat template, text is continued as it stands. The token sampled last has not been run
 * yet when an answer ends, and so becomes the first pending one, followed by what closes the turn. An answer
 * ended by a stop string keeps all of its tokens, those of the stop string too: the conversation goes on
 * from what the model really said.
 *
 * Text appended to an empty session begins with the model's bos token where its vocabulary asks for one. */
#include "inference/engine.h"

#include "core/base/options.h"
#include "inference/sampler.h"
#include "inference/stream.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum {
    CONTEXT_DEFAULT = 2048,
    CONTEXT_MIN = 8,
    MAX_TOKENS_DEFAULT = 256,
    TEXT_RESERVE_MAX = 1 << 20 /* bytes set aside for an answer's text; a longer one grows */
};

enum appended { APPENDED_NOTHING, APPENDED_MESSAGES, APPENDED_TEXT };

struct attune_session {
    attune_engine *engine;
    struct variant *variant; /* what the engine served when the session began */
    struct kv_cache cache;
    struct decoding_pass *pass;
    struct token_list pending;
    int32_t *tokens; /* (context + 1) the line up to cache.used, and the token sampled after it */
    float *logits;   /* (V) after the line, when something was appended and nothing is pending */
    enum appended appended; /* since the last answer, the last of them */
    size_t answer, n_answer; /* in tokens */
    size_t longest_piece; /* bytes */
    struct stream stream;
    int busy; /* a generation runs: its callback must not come back in */
};

/* ---- open and close ---- */

static size_t longest_piece(const struct tokenizer *tokenizer) {
    size_t longest = 1, size;
    for (size_t i = 0, n = tokenizer_size(tokenizer); i < n; i++)
        if (tokenizer_piece(tokenizer, (int32_t)i, &size) && size > longest) longest = size;
    return longest;
}

static int choose_context(const struct model *model, int64_t wanted, size_t *out, attune_error *err) {
    size_t most = model->context;
    if (wanted == 0)
        *out = most < CONTEXT_DEFAULT ? most : CONTEXT_DEFAULT;
    else if (wanted < CONTEXT_MIN || (uint64_t)wanted > most)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, "attune_session_options",
                         "context must be %d to the model's own %zu tokens, not %lld", CONTEXT_MIN, most,
                         (long long)wanted);
    else
        *out = (size_t)wanted;
    return ATTUNE_OK;
}

int attune_session_open(attune_engine *engine, const attune_session_options *options, attune_session **out,
                        attune_error *err) {
    attune_session_options o;
    int code = options_read(&o, sizeof o, options, "attune_session_options", err);
    if (code != ATTUNE_OK) return code;
    if (!engine || !out) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "a session wants an engine and a result");
    if ((code = engine_check_process(engine, err)) != ATTUNE_OK) return code;
    const struct model *model = engine->model;
    size_t context = 0;
    if ((code = choose_context(model, o.context, &context, err)) != ATTUNE_OK) return code;

    attune_session *s = calloc(1, sizeof *s);
    if (!s) return error_set_memory(err, "a session", sizeof *s);
    s->engine = engine;
    s->variant = engine_hold(engine);
    s->longest_piece = longest_piece(model->tokenizer);
    s->tokens = calloc(context + 1, sizeof *s->tokens);
    s->logits = calloc(model->V, sizeof *s->logits);
    if (!s->tokens || !s->logits) {
        code = error_set_memory(err, "a session", (context + 1) * sizeof *s->tokens + model->V * sizeof *s->logits);
        goto out;
    }
    if ((code = kv_cache_create(model, context, BLOCK_F32, &s->cache, err)) != ATTUNE_OK) goto out;
    code = decoding_pass_create(model, engine->pool, context, variant_rank(s->variant), PRECISION_F32, &s->pass, err);
out:
    if (code != ATTUNE_OK) {
        attune_session_close(s);
        return code;
    }
    *out = s;
    return ATTUNE_OK;
}

void attune_session_close(attune_session *s) {
    if (!s) return;
    stream_close(&s->stream);
    token_list_free(&s->pending);
    decoding_pass_destroy(s->pass);
    kv_cache_free(&s->cache);
    free(s->tokens);
    free(s->logits);
    engine_release(s->variant);
    free(s);
}

/* ---- append ---- */

static int check_ready(const attune_session *s, attune_error *err) {
    if (!s) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "no session");
    if (s->busy)
        return error_set(err, ATTUNE_ERROR_STATE, NULL,
                         "the session is generating; its token callback may stop it, not use it");
    return engine_check_process(s->engine, err);
}

static size_t line_length(const attune_session *s) { return s->cache.used + s->pending.n; }

/* `more` tokens after a line of `line`. at_least: more is a lower bound. */
static int check_room(const attune_session *s, size_t line, size_t more, int at_least, attune_error *err) {
    size_t context = s->cache.context;
    if (line <= context && more <= context - line) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_CONTEXT_FULL, NULL,
                     "the conversation has %zu of %zu tokens and this adds %s%zu; append less, or open a session with "
                     "a larger context (this model's is %zu)",
                     line, context, at_least ? "at least " : "", more, s->engine->model->context);
}

/* Valid UTF-8, and not so long that no context of this size holds it, whatever its tokens are: that is found
 * before any work is done. */
static int check_text(const attune_session *s, const char *text, size_t length, const char *where, attune_error *err) {
    size_t valid = stream_utf8_valid(text, length);
    if (valid != length)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "the text is not valid UTF-8 at byte %zu of %zu", valid,
                         length);
    size_t least = length / s->longest_piece;
    return least > s->cache.context ? check_room(s, line_length(s), least, 1, err) : ATTUNE_OK;
}

static int check_message(const attune_session *s, const attune_message *message, size_t i, attune_error *err) {
    char where[32];
    snprintf(where, sizeof where, "messages[%zu]", i);
    if (!message->role || !message->content)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "a message wants a role and a content");
    if (strcmp(message->role, "system") != 0 && strcmp(message->role, "user") != 0 &&
        strcmp(message->role, "assistant") != 0)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where,
                         "unknown role \"%.32s\"; roles are system, user and assistant", message->role);
    return check_text(s, message->content, strlen(message->content), where, err);
}

static int check_chat(const attune_session *s, attune_error *err) {
    const struct model *model = s->engine->model;
    if (model->chat) return ATTUNE_OK;
    if (err) *err = model->chat_error;
    return model->chat_error.code;
}

/* After pending tokens were added from `before` on: they stay when all is well and they fit. */
static int settle(attune_session *s, size_t before, int code, attune_error *err) {
    if (code == ATTUNE_OK) code = check_room(s, s->cache.used + before, s->pending.n - before, 0, err);
    if (code != ATTUNE_OK) s->pending.n = before;
    return code;
}

int attune_session_append(attune_session *s, const attune_message *messages, size_t n, attune_error *err) {
    int code = check_ready(s, err);
    if (code != ATTUNE_OK) return code;
    if ((code = check_chat(s, err)) != ATTUNE_OK) return code;
    if (!messages || n == 0) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "there is no message to append");
    for (size_t i = 0; i < n; i++)
        if ((code = check_message(s, &messages[i], i, err)) != ATTUNE_OK) return code;
    if (strcmp(messages[n - 1].role, "assistant") == 0)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL,
                         "the last message is the assistant's; end with the message it shall answer");
    size_t before = s->pending.n;
    int first = line_length(s) == 0;
    code = chat_template_render(s->engine->model->chat, messages, n, first, 0, 0, &s->pending, err);
    if ((code = settle(s, before, code, err)) == ATTUNE_OK) s->appended = APPENDED_MESSAGES;
    return code;
}

/* n tokens of text behind the pending ones. */
static int encode_pending(attune_session *s, const char *text, size_t length, int special, attune_error *err) {
    const struct tokenizer *tokenizer = s->engine->model->tokenizer;
    size_t n = 0, bytes;
    int code = tokenizer_encode(tokenizer, text, length, special, NULL, 0, &n, err);
    if (code != ATTUNE_OK || n == 0) return code;
    /* Before memory is asked for: a long text fails on what it is, not on what it would take. */
    if ((code = check_room(s, line_length(s), n, 0, err)) != ATTUNE_OK) return code;
    if (!checked_mul(n, sizeof(int32_t), &bytes)) return error_set_memory(err, "tokens of a text", n);
    int32_t *ids = malloc(bytes);
    if (!ids) return error_set_memory(err, "tokens of a text", bytes);
    code = tokenizer_encode(tokenizer, text, length, special, ids, n, &n, err);
    int32_t bos = tokenizer_bos(tokenizer);
    if (code == ATTUNE_OK && line_length(s) == 0 && tokenizer_adds_bos(tokenizer) && bos >= 0 && ids[0] != bos)
        code = token_list_add(&s->pending, bos, 0, err);
    for (size_t i = 0; i < n && code == ATTUNE_OK; i++) code = token_list_add(&s->pending, ids[i], 0, err);
    free(ids);
    return code;
}

int attune_session_append_text(attune_session *s, const char *text, size_t length, int flags, attune_error *err) {
    int code = check_ready(s, err);
    if (code != ATTUNE_OK) return code;
    if (!text && length) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "there is no text to append");
    if (flags & ~ATTUNE_TOKENIZE_SPECIAL)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "unknown flags %#x for appending text", (unsigned)flags);
    if (length == 0) return ATTUNE_OK;
    if ((code = check_text(s, text, length, NULL, err)) != ATTUNE_OK) return code;
    size_t before = s->pending.n;
    code = encode_pending(s, text, length, flags & ATTUNE_TOKENIZE_SPECIAL, err);
    if ((code = settle(s, before, code, err)) == ATTUNE_OK) s->appended = APPENDED_TEXT;
    return code;
}

/* ---- through the model ---- */

/* n tokens, and the logits after them; on an error the line is as it was. */
static int run(attune_session *s, const int32_t *ids, size_t n, attune_error *err) {
    size_t at = s->cache.used;
    int code = decoding_pass_run(s->pass, &s->variant->weights, &s->cache, ids, n, s->logits, 1, err);
    if (code == ATTUNE_OK) memmove(s->tokens + at, ids, n * sizeof *ids);
    return code;
}

static int run_pending(attune_session *s, attune_error *err) {
    if (s->pending.n == 0) return ATTUNE_OK;
    int code = run(s, s->pending.ids, s->pending.n, err);
    if (code == ATTUNE_OK) s->pending.n = 0;
    return code;
}

int attune_session_logits(attune_session *s, const float **logits, attune_error *err) {
    int code = check_ready(s, err);
    if (code != ATTUNE_OK) return code;
    if (!logits) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "nowhere to put the logits");
    if (s->appended == APPENDED_NOTHING)
        return error_set(err, ATTUNE_ERROR_STATE, NULL, "nothing was appended; append messages or text first");
    if ((code = run_pending(s, err)) == ATTUNE_OK) *logits = s->logits;
    return code;
}

/* ---- generate ---- */

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The next token, from logits that it uses up. */
static int sample(attune_session *s, struct sampler *sampler, int32_t *id, attune_error *err) {
    size_t used = s->cache.used;
    *id = sampler_next(sampler, s->logits, s->tokens, used);
    if (*id >= 0) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_FORMAT, s->engine->model->gguf->file.path,
                     "the model gave no finite logit after %zu tokens: the base or the adapter is damaged", used);
}

/* One answer, token by token, from valid logits; *reason says how it ended. Whatever the outcome, the
 * tokens of the answer are tokens[answer .. answer + n_answer) and the last of them may not have been run. */
static int answer(attune_session *s, struct sampler *sampler, size_t max_tokens, int *reason, double *first_s,
                  attune_error *err) {
    const struct tokenizer *tokenizer = s->engine->model->tokenizer;
    for (;;) {
        int32_t id;
        int code = sample(s, sampler, &id, err);
        if (code != ATTUNE_OK) return code;
        if (s->n_answer == 0) *first_s = now_s();
        *reason = ATTUNE_STOP_END;
        if (tokenizer_is_end(tokenizer, id)) return ATTUNE_OK;
        s->tokens[s->cache.used] = id;
        s->n_answer++;

        size_t size = 0;
        const char *piece = tokenizer_piece(tokenizer, id, &size);
        code = piece ? stream_add(&s->stream, piece, size, err) : ATTUNE_OK;
        *reason = ATTUNE_STOP_CALLBACK;
        if (code == ATTUNE_ERROR_CANCELLED) return ATTUNE_OK;
        if (code != ATTUNE_OK) return code;
        *reason = ATTUNE_STOP_STRING;
        if (s->stream.stopped) return ATTUNE_OK;
        *reason = ATTUNE_STOP_LENGTH;
        if (s->n_answer >= max_tokens) return ATTUNE_OK;
        *reason = ATTUNE_STOP_CONTEXT;
        if (s->cache.used >= s->cache.context) return ATTUNE_OK;
        if ((code = run(s, &id, 1, err)) != ATTUNE_OK) return code;
    }
}

/* The answer joins the line: its last token when that has not been run, and what closes a turn. */
static int join_answer(attune_session *s, attune_error *err) {
    int code = ATTUNE_OK;
    size_t end = s->answer + s->n_answer;
    if (end > s->cache.used) code = token_list_add(&s->pending, s->tokens[s->cache.used], 0, err);
    if (code == ATTUNE_OK && s->appended == APPENDED_MESSAGES)
        code = chat_template_close_turn(s->engine->model->chat, &s->pending, err);
    s->appended = APPENDED_NOTHING;
    return code;
}

/* Everything before the answer: what is pending, and the header of the assistant's turn. */
static int run_prompt(attune_session *s, int64_t *n, attune_error *err) {
    size_t before = s->pending.n;
    int code = ATTUNE_OK;
    if (s->appended == APPENDED_MESSAGES) {
        code = chat_template_render(s->engine->model->chat, NULL, 0, 0, 0, 1, &s->pending, err);
        code = settle(s, before, code, err);
    }
    *n = (int64_t)s->pending.n;
    if (code == ATTUNE_OK && (code = run_pending(s, err)) != ATTUNE_OK) s->pending.n = before;
    return code;
}

/* Text of max_tokens tokens, three bytes for each invalid one. */
static int open_stream(attune_session *s, const attune_generate_options *o, size_t max_tokens,
                       attune_token_callback on_token, void *user, attune_error *err) {
    stream_close(&s->stream);
    int code = stream_open(&s->stream, o->stop, o->n_stop, on_token, user, err);
    if (code != ATTUNE_OK) return code;
    size_t bytes;
    if (!checked_mul(max_tokens + 1, 3 * s->longest_piece, &bytes) || bytes > TEXT_RESERVE_MAX)
        bytes = TEXT_RESERVE_MAX;
    return stream_reserve(&s->stream, bytes, err);
}

static int generate(attune_session *s, const attune_generate_options *o, attune_token_callback on_token, void *user,
                    attune_generate_result *result, attune_error *err) {
    struct sampler *sampler = NULL;
    size_t max_tokens = o->max_tokens ? (size_t)o->max_tokens : MAX_TOKENS_DEFAULT;
    if (max_tokens > s->cache.context) max_tokens = s->cache.context + 1;
    int code = sampler_create(o, s->engine->model->V, s->cache.context, &sampler, err);
    if (code != ATTUNE_OK) return code;
    s->n_answer = 0;
    if ((code = open_stream(s, o, max_tokens, on_token, user, err)) != ATTUNE_OK) goto out;

    double start_s = now_s(), first_s = start_s;
    if ((code = run_prompt(s, &result->prompt_tokens, err)) != ATTUNE_OK) goto out;
    s->answer = s->cache.used;
    code = answer(s, sampler, max_tokens, &result->reason, &first_s, err);
    int finished = stream_finish(&s->stream, code == ATTUNE_OK ? err : NULL);
    if (code == ATTUNE_OK && finished != ATTUNE_ERROR_CANCELLED) code = finished;
    int joined = join_answer(s, code == ATTUNE_OK ? err : NULL);
    if (code == ATTUNE_OK) code = joined;
    result->tokens = (int64_t)s->n_answer;
    result->prompt_seconds = first_s - start_s;
    result->seconds = now_s() - first_s;
out:
    sampler_destroy(sampler);
    return code;
}

int attune_session_generate(attune_session *s, const attune_generate_options *options, attune_token_callback on_token,
                            void *user, attune_generate_result *result, attune_error *err) {
    attune_generate_options o;
    attune_generate_result r = {0};
    int code = check_ready(s, err);
    if (code != ATTUNE_OK) return code;
    if ((code = options_read(&o, sizeof o, options, "attune_generate_options", err)) != ATTUNE_OK) return code;
    if (result && (code = options_write(result, &r, sizeof r, "attune_generate_result", err)) != ATTUNE_OK) return code;
    if (o.max_tokens < 0)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, "attune_generate_options",
                         "max_tokens must be 0 (the default, %d) or a positive number, not %lld", MAX_TOKENS_DEFAULT,
                         (long long)o.max_tokens);
    if (s->appended == APPENDED_NOTHING)
        return error_set(err, ATTUNE_ERROR_STATE, NULL, "there is nothing to answer; append messages or text first");
    s->busy = 1;
    code = generate(s, &o, on_token, user, &r, err);
    s->busy = 0;
    if (code == ATTUNE_OK && result) code = options_write(result, &r, sizeof r, "attune_generate_result", err);
    return code;
}

const char *attune_session_text(const attune_session *s) { return s && s->stream.text ? s->stream.text : ""; }

int attune_session_ids(const attune_session *s, const int32_t **ids, size_t *n) {
    if (!s || !ids || !n) return ATTUNE_ERROR_ARGUMENT;
    *ids = s->tokens + s->answer;
    *n = s->n_answer;
    return ATTUNE_OK;
}

int attune_session_provenance(const attune_session *s, attune_provenance *out, attune_error *err) {
    if (!s || !out) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "no session or nowhere to put its provenance");
    const struct model *model = s->engine->model;
    attune_provenance p = {0};
    snprintf(p.model, sizeof p.model, "%s", model->sha256);
    snprintf(p.adapter, sizeof p.adapter, "%s", s->variant->adapter_sha256);
    if (model->chat) snprintf(p.template_hash, sizeof p.template_hash, "%s", chat_template_hash(model->chat));
    return options_write(out, &p, sizeof p, "attune_provenance", err);
}
