/* Answers. The token sampled last has not been run yet when an answer ends, and so becomes a pending one, followed by
 * what closes the turn. An answer ended by a stop string keeps all of its tokens, those of the stop string too: the
 * conversation goes on from what the model really said.
 *
 * Tokens that were drafted (lookup.c) are run together with the one before them. The sampler then chooses at each place
 * from the model's logits there and the line so far, exactly as without drafts; the first choice that differs from what
 * was drafted ends the use of what was run, and the cache forgets the rest. So any sampling may be drafted for, and the
 * answer is the same, as far as logits of several rows are those of one row. */
#include "inference/session.h"

#include "core/base/options.h"
#include "inference/sampler.h"

#include <stdlib.h>
#include <time.h>

enum {
    MAX_TOKENS_DEFAULT = 256,
    ANSWER_RESERVE_MAX = 1 << 16, /* tokens of an answer that memory is set aside for; a longer one grows */
    TEXT_RESERVE_MAX = 1 << 20    /* bytes of its text, likewise */
};

/* One call of attune_session_generate. */
struct generation {
    attune_session *s;
    struct sampler *sampler;
    size_t max_tokens, lookup;
    size_t row;                /* of the logits, that the next token is sampled from */
    int32_t draft[LOOKUP_MAX]; /* row r + 1 holds when the token sampled from row r is draft[r] */
    double start_s, first_s;
    attune_generate_result *result;
};

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- memory of an answer ---- */

static int resize(void **memory, size_t n, size_t each, attune_error *err) {
    size_t bytes;
    if (!checked_mul(n, each, &bytes)) return error_set_memory(err, "an answer", SIZE_MAX);
    void *resized = realloc(*memory, bytes);
    if (!resized) return error_set_memory(err, "an answer", bytes);
    *memory = resized;
    return ATTUNE_OK;
}

static int resize_answer(struct answer *a, size_t capacity, attune_error *err) {
    void *ids = a->ids, *alternatives = a->alternatives, *counts = a->n_alternatives;
    int code = resize(&ids, capacity, sizeof *a->ids, err);
    if (code == ATTUNE_OK && a->each) code = resize(&counts, capacity, sizeof *a->n_alternatives, err);
    if (code == ATTUNE_OK && a->each) code = resize(&alternatives, capacity, a->each * sizeof *a->alternatives, err);
    a->ids = ids;
    a->alternatives = alternatives;
    a->n_alternatives = counts;
    if (code == ATTUNE_OK) a->capacity = capacity;
    return code;
}

static int open_answer(struct answer *a, size_t max_tokens, int alternatives, attune_error *err) {
    free(a->alternatives);
    free(a->n_alternatives);
    a->alternatives = NULL;
    a->n_alternatives = NULL;
    a->n = a->capacity = 0;
    a->each = alternatives ? (size_t)alternatives + 1 : 0;
    return resize_answer(a, max_tokens < ANSWER_RESERVE_MAX ? max_tokens : ANSWER_RESERVE_MAX, err);
}

/* Text of max_tokens tokens, three bytes for each invalid one. */
static int open_stream(attune_session *s, const attune_generate_options *o, size_t max_tokens,
                       attune_token_callback on_token, void *user, attune_error *err) {
    stream_close(&s->stream);
    int code = stream_open(&s->stream, o->stop, o->n_stop, on_token, user, err);
    if (code != ATTUNE_OK) return code;
    size_t tokens, bytes;
    if (!checked_add(max_tokens, 1, &tokens) || !checked_mul(tokens, 3 * s->longest_piece, &bytes) ||
        bytes > TEXT_RESERVE_MAX)
        bytes = TEXT_RESERVE_MAX;
    return stream_reserve(&s->stream, bytes, err);
}

static int reserve_logits(attune_session *s, size_t rows, attune_error *err) {
    if (rows <= s->logit_rows) return ATTUNE_OK;
    void *logits = s->logits;
    int code = resize(&logits, rows, s->engine->model->V * sizeof *s->logits, err);
    s->logits = logits;
    if (code == ATTUNE_OK) s->logit_rows = rows;
    return code;
}

/* ---- token by token ---- */

/* The next token, from logits that it uses up. */
static int sample(struct generation *g, int32_t *id, attune_error *err) {
    attune_session *s = g->s;
    const struct model *model = s->engine->model;
    *id = sampler_next(g->sampler, s->logits + g->row * model->V, s->line.ids, s->line.n);
    s->scored = 0;
    if (*id >= 0) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_FORMAT, model->gguf->file.path,
                     "the model gave no finite logit after %zu tokens: the base or the adapter is damaged", s->line.n);
}

static int keep(struct generation *g, int32_t id, attune_error *err) {
    attune_session *s = g->s;
    struct answer *a = &s->answer;
    size_t at = s->line.n, n = 0;
    if (a->n == a->capacity) {
        int code = resize_answer(a, 2 * a->capacity, err);
        if (code != ATTUNE_OK) return code;
    }
    const attune_alternative *alternatives = a->each ? sampler_alternatives(g->sampler, &n) : NULL;
    if (n > a->each) n = a->each;
    if (a->each) a->n_alternatives[a->n] = (uint8_t)n;
    if (n > 0) memcpy(a->alternatives + a->n * a->each, alternatives, n * sizeof *alternatives);
    a->ids[a->n++] = id;
    /* What was drafted for this place and run is either it, or to be forgotten with all that follows. */
    if (s->cache.used > at && g->draft[g->row] != id) s->cache.used = at;
    if (s->cache.used > at) g->result->accepted++;
    s->line.ids[s->line.n++] = id;
    return ATTUNE_OK;
}

static int is_cancelled(const attune_session *s) { return atomic_load_explicit(&s->cancel, memory_order_relaxed); }

/* Drafts behind the line, where they are run with its last token. Returns how many. */
static size_t draft(struct generation *g) {
    attune_session *s = g->s;
    size_t most = g->lookup, room = s->cache.context - s->line.n, left = g->max_tokens - s->answer.n;
    if (s->line.n - s->cache.used != 1) return 0;
    if (most > room) most = room;
    if (most >= left) most = left - 1; /* each of them makes one more be sampled */
    size_t n = lookup_draft(s->line.ids, s->line.n, most, g->draft);
    memcpy(s->line.ids + s->line.n, g->draft, n * sizeof *g->draft);
    g->result->drafted += (int64_t)n;
    return n;
}

/* Logits after the line. *reason: why there are none. */
static int next_logits(struct generation *g, int *reason, attune_error *err) {
    attune_session *s = g->s;
    *reason = 0;
    if (s->cache.used >= s->line.n) { /* drafted, and right */
        g->row++;
        return ATTUNE_OK;
    }
    g->row = 0;
    if (s->line.n > s->cache.context && !session_shift(s)) {
        *reason = ATTUNE_STOP_CONTEXT;
        return ATTUNE_OK;
    }
    int code = session_run(s, g->lookup ? draft(g) : 0, err);
    if (code != ATTUNE_ERROR_CANCELLED || !is_cancelled(s)) return code;
    *reason = ATTUNE_STOP_CALLBACK;
    return ATTUNE_OK;
}

/* One answer, from valid logits; the result's reason says how it ended. Whatever the outcome, the last of its tokens
 * may not have been run. */
static int answer(struct generation *g, attune_error *err) {
    attune_session *s = g->s;
    const struct tokenizer *tokenizer = s->engine->model->tokenizer;
    int *reason = &g->result->reason;
    for (;;) {
        int32_t id;
        *reason = ATTUNE_STOP_CALLBACK;
        if (is_cancelled(s)) return ATTUNE_OK;
        int code = sample(g, &id, err);
        if (code != ATTUNE_OK) return code;
        if (s->answer.n == 0) g->first_s = now_s();
        *reason = ATTUNE_STOP_END;
        if (tokenizer_is_end(tokenizer, id)) return ATTUNE_OK;
        if ((code = keep(g, id, err)) != ATTUNE_OK) return code;

        size_t size = 0;
        const char *piece = tokenizer_piece(tokenizer, id, &size);
        code = piece ? stream_add(&s->stream, piece, size, err) : ATTUNE_OK;
        *reason = ATTUNE_STOP_CALLBACK;
        if (code == ATTUNE_ERROR_CANCELLED) return ATTUNE_OK;
        if (code != ATTUNE_OK) return code;
        *reason = ATTUNE_STOP_STRING;
        if (s->stream.stopped) return ATTUNE_OK;
        *reason = ATTUNE_STOP_LENGTH;
        if (s->answer.n >= g->max_tokens) return ATTUNE_OK;
        if ((code = next_logits(g, reason, err)) != ATTUNE_OK || *reason) return code;
    }
}

/* ---- a whole answer ---- */

/* Everything before the answer: what is pending, and the header of the assistant's turn. On an error the header is
 * gone again. */
static int run_prompt(struct generation *g, attune_error *err) {
    attune_session *s = g->s;
    size_t header = 0;
    int code = ATTUNE_OK;
    if (s->appended == APPENDED_MESSAGES && (code = session_open_answer(s, &header, err)) != ATTUNE_OK) return code;
    if (s->cache.used == s->line.n && !s->scored) s->cache.used--;
    g->result->reused_tokens = (int64_t)s->cache.used;
    g->result->prompt_tokens = (int64_t)(s->line.n - s->cache.used);
    if ((code = session_score(s, err)) == ATTUNE_OK) return code;
    s->line.n -= header;
    if (s->cache.used > s->line.n) s->cache.used = s->line.n;
    return code;
}

/* What was drafted in vain is forgotten, and a turn closed. */
static int join_answer(attune_session *s, attune_error *err) {
    int code = ATTUNE_OK;
    if (s->cache.used > s->line.n) s->cache.used = s->line.n;
    if (s->appended == APPENDED_MESSAGES) code = chat_template_close_turn(s->engine->model->chat, &s->line, err);
    s->appended = APPENDED_NOTHING;
    s->scored = 0;
    return code;
}

static void tell(struct generation *g) {
    attune_generate_result *r = g->result;
    double end_s = now_s();
    r->tokens = (int64_t)g->s->answer.n;
    r->prompt_seconds = g->first_s - g->start_s;
    r->seconds = end_s - g->first_s;
    if (r->tokens > 1 && r->seconds > 0) r->tokens_per_s = (double)(r->tokens - 1) / r->seconds;
    r->dropped_tokens = (int64_t)g->s->dropped;
    g->s->dropped = 0;
}

static int generate(attune_session *s, const attune_generate_options *o, attune_token_callback on_token, void *user,
                    attune_generate_result *result, attune_error *err) {
    struct generation g = {.s = s,
                           .lookup = (size_t)o->lookup,
                           .result = result,
                           .max_tokens = o->max_tokens ? (size_t)o->max_tokens : MAX_TOKENS_DEFAULT};
    if (s->when_full == ATTUNE_CONTEXT_STOP && g.max_tokens > s->cache.context) g.max_tokens = s->cache.context + 1;
    int code = sampler_create(o, s->engine->model->V, s->cache.context, &g.sampler, err);
    if (code != ATTUNE_OK) return code;
    if ((code = reserve_logits(s, g.lookup + 1, err)) != ATTUNE_OK) goto out;
    if ((code = open_answer(&s->answer, g.max_tokens, o->alternatives, err)) != ATTUNE_OK) goto out;
    if ((code = open_stream(s, o, g.max_tokens, on_token, user, err)) != ATTUNE_OK) goto out;

    g.start_s = g.first_s = now_s();
    if ((code = run_prompt(&g, err)) != ATTUNE_OK) goto out;
    code = answer(&g, err);
    int finished = stream_finish(&s->stream, code == ATTUNE_OK ? err : NULL);
    if (code == ATTUNE_OK && finished != ATTUNE_ERROR_CANCELLED) code = finished;
    int joined = join_answer(s, code == ATTUNE_OK ? err : NULL);
    if (code == ATTUNE_OK) code = joined;
    tell(&g);
out:
    sampler_destroy(g.sampler);
    return code;
}

static int check_options(const attune_generate_options *o, attune_error *err) {
    const char *where = "attune_generate_options";
    if (o->max_tokens < 0)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where,
                         "max_tokens must be 0 (the default, %d) or a positive number, not %lld", MAX_TOKENS_DEFAULT,
                         (long long)o->max_tokens);
    return ATTUNE_OK;
}

int attune_session_generate(attune_session *s, const attune_generate_options *options, attune_token_callback on_token,
                            void *user, attune_generate_result *result, attune_error *err) {
    attune_generate_options o;
    attune_generate_result r = {0};
    int code = session_check_ready(s, err);
    if (code != ATTUNE_OK) return code;
    if ((code = options_read(&o, sizeof o, options, "attune_generate_options", err)) != ATTUNE_OK) return code;
    if (result && (code = options_write(result, &r, sizeof r, "attune_generate_result", err)) != ATTUNE_OK) return code;
    if ((code = check_options(&o, err)) != ATTUNE_OK) return code;
    if (s->appended == APPENDED_NOTHING)
        return error_set(err, ATTUNE_ERROR_STATE, NULL, "there is nothing to answer; append messages or text first");
    atomic_store(&s->cancel, 0);
    s->busy = 1;
    code = generate(s, &o, on_token, user, &r, err);
    s->busy = 0;
    if (code == ATTUNE_OK && result) code = options_write(result, &r, sizeof r, "attune_generate_result", err);
    return code;
}

/* ---- the last answer ---- */

const char *attune_session_text(const attune_session *s) { return s && s->stream.text ? s->stream.text : ""; }

int attune_session_ids(const attune_session *s, const int32_t **ids, size_t *n) {
    if (!s || !ids || !n) return ATTUNE_ERROR_ARGUMENT;
    *ids = s->answer.ids;
    *n = s->answer.n;
    return ATTUNE_OK;
}

int attune_session_alternatives(const attune_session *s, size_t place, const attune_alternative **alternatives,
                                size_t *n) {
    if (!s || !alternatives || !n) return ATTUNE_ERROR_ARGUMENT;
    if (s->answer.each == 0 || place >= s->answer.n) return ATTUNE_ERROR_NOT_FOUND;
    *alternatives = s->answer.alternatives + place * s->answer.each;
    *n = s->answer.n_alternatives[place];
    return ATTUNE_OK;
}
