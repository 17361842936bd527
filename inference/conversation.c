/* The line of a conversation: what is appended, what it is set to, and what is dropped when it is full.
 *
 * What was appended last decides how an answer begins and ends: messages are answered in a turn of the chat template,
 * text is continued as it stands. Text appended to an empty session begins with the model's bos token where its
 * vocabulary asks for one.
 *
 * With ATTUNE_CONTEXT_SHIFT a line that is too long loses the oldest half of what stands behind its system message (or
 * its bos token): whole turns, up to where a user's turn begins, as long as there are such; else exactly the half.
 * What is appended is never dropped to make room for itself. */
#include "inference/session.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- room ---- */

static int context_full(const attune_session *s, size_t line, size_t more, int at_least, attune_error *err) {
    return error_set(err, ATTUNE_ERROR_CONTEXT_FULL, NULL,
                     "the conversation has %zu of %zu tokens and this adds %s%zu; append less, or open a session with "
                     "a larger context (this model's is %zu)",
                     line, s->cache.context, at_least ? "at least " : "", more, s->engine->model->context);
}

static int begins_turn(const attune_session *s, int32_t id) {
    return s->engine->model->chat && id == chat_template_start(s->engine->model->chat);
}

/* A turn whose header begins with `header` ("user\n") begins at ids[at], however that is cut into tokens. */
static int is_turn_of(const attune_session *s, const int32_t *ids, size_t n, size_t at, const char *header) {
    size_t left = strlen(header), size;
    if (!begins_turn(s, ids[at])) return 0;
    for (at++; left > 0 && at < n; at++) {
        const char *piece = tokenizer_piece(s->engine->model->tokenizer, ids[at], &size);
        if (piece && size > left) size = left;
        if (!piece || memcmp(piece, header, size) != 0) return 0;
        header += size;
        left -= size;
    }
    return left == 0;
}

/* Tokens at the start of ids(n) that stay for good. */
static size_t kept(const attune_session *s, const int32_t *ids, size_t n) {
    const struct tokenizer *tokenizer = s->engine->model->tokenizer;
    size_t keep = n > 0 && tokenizer_adds_bos(tokenizer) && ids[0] == tokenizer_bos(tokenizer);
    if (keep == n || !is_turn_of(s, ids, n, keep, "system\n")) return keep;
    while (keep < n && ids[keep] != chat_template_end(s->engine->model->chat)) keep++;
    return keep + s->turn_end < n ? keep + s->turn_end : n;
}

/* Where the last turn begins; n: there is none. */
static size_t last_turn(const attune_session *s, const int32_t *ids, size_t n) {
    for (size_t at = n; at-- > 0;)
        if (begins_turn(s, ids[at])) return at;
    return n;
}

/* How many of ids(n) to drop from `keep` on, none of them behind `end`; at least `needed`. 0: that cannot be. */
static size_t choose_drop(const attune_session *s, const int32_t *ids, size_t n, size_t keep, size_t end,
                          size_t needed) {
    if (end <= keep || end - keep < needed) return 0;
    size_t half = (end - keep + 1) / 2, before = 0;
    if (half < needed) half = needed;
    for (size_t at = keep + needed; at <= end && at < n; at++) {
        if (at == end ? !begins_turn(s, ids[at]) : !is_turn_of(s, ids, n, at, "user\n")) continue;
        if (at - keep >= half) return at - keep;
        before = at - keep;
    }
    return before ? before : half;
}

static void drop_tokens(attune_session *s, size_t keep, size_t drop) {
    if (s->cache.used >= keep + drop) {
        kv_cache_shift(&s->cache, s->engine->model, s->engine->pool, keep, drop);
        if (s->clean > keep) s->clean = keep;
    } else if (s->cache.used > keep) {
        s->cache.used = keep;
    }
    int32_t *ids = s->line.ids;
    memmove(ids + keep, ids + keep + drop, (s->line.n - keep - drop) * sizeof *ids);
    s->line.n -= drop;
    s->dropped += drop;
    s->scored = 0;
}

int session_shift(attune_session *s) {
    const struct token_list *line = &s->line;
    if (s->when_full != ATTUNE_CONTEXT_SHIFT) return 0;
    size_t keep = kept(s, line->ids, line->n);
    size_t drop = choose_drop(s, line->ids, line->n, keep, line->n - 1, 1);
    if (drop == 0) return 0;
    drop_tokens(s, keep, drop);
    return 1;
}

/* After tokens were added to the line from `before` on: they stay when all is well and they fit, if need be in place of
 * others before `end`. */
static int settle(attune_session *s, size_t before, size_t end, int code, attune_error *err) {
    struct token_list *line = &s->line;
    size_t context = s->cache.context;
    if (code == ATTUNE_OK && line->n > context) {
        size_t keep = kept(s, line->ids, line->n), drop = 0;
        if (s->when_full == ATTUNE_CONTEXT_SHIFT)
            drop = choose_drop(s, line->ids, line->n, keep, end, line->n - context);
        if (drop) {
            drop_tokens(s, keep, drop);
            return ATTUNE_OK;
        }
        code = context_full(s, before, line->n - before, 0, err);
    }
    if (code != ATTUNE_OK) line->n = before;
    return code;
}

/* ---- checks ---- */

/* Valid UTF-8, and not so long that no context of this size holds it, whatever its tokens are: that is found
 * before any work is done. */
static int check_text(const attune_session *s, const char *text, size_t length, const char *where, attune_error *err) {
    size_t valid = stream_utf8_valid(text, length);
    if (valid != length)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "the text is not valid UTF-8 at byte %zu of %zu", valid,
                         length);
    size_t least = length / s->longest_piece;
    return least > s->cache.context ? context_full(s, s->line.n, least, 1, err) : ATTUNE_OK;
}

/* first: nothing is before it. */
static int check_message(const attune_session *s, const attune_message *message, size_t i, int first,
                         attune_error *err) {
    char where[32];
    snprintf(where, sizeof where, "messages[%zu]", i);
    if (!message->role || !message->content)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "a message wants a role and a content");
    int system = strcmp(message->role, "system") == 0;
    if (!system && strcmp(message->role, "user") != 0 && strcmp(message->role, "assistant") != 0)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where,
                         "unknown role \"%.32s\"; roles are system, user and assistant", message->role);
    if (system && !first)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where,
                         "a system message begins a conversation; this one has begun already");
    return check_text(s, message->content, strlen(message->content), where, err);
}

static int check_messages(const attune_session *s, const attune_message *messages, size_t n, int first,
                          attune_error *err) {
    const struct model *model = s->engine->model;
    if (!model->chat) {
        if (err) *err = model->chat_error;
        return model->chat_error.code;
    }
    if (n > 0 && !messages) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "%zu messages are given as NULL", n);
    int code = ATTUNE_OK;
    for (size_t i = 0; i < n && code == ATTUNE_OK; i++) code = check_message(s, &messages[i], i, first && i == 0, err);
    return code;
}

static int is_answered(const attune_message *messages, size_t n) {
    return strcmp(messages[n - 1].role, "assistant") == 0;
}

/* ---- append ---- */

int attune_session_append(attune_session *s, const attune_message *messages, size_t n, attune_error *err) {
    int code = session_check_ready(s, err);
    if (code != ATTUNE_OK) return code;
    size_t before = s->line.n;
    if ((code = check_messages(s, messages, n, before == 0, err)) != ATTUNE_OK) return code;
    if (n == 0) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "there is no message to append");
    if (is_answered(messages, n))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL,
                         "the last message is the assistant's; end with the message it shall answer");
    code = chat_template_render(s->engine->model->chat, messages, n, before == 0, 0, 0, &s->line, err);
    if ((code = settle(s, before, before, code, err)) == ATTUNE_OK) s->appended = APPENDED_MESSAGES;
    return code;
}

/* n tokens of text behind the line. */
static int encode(attune_session *s, const char *text, size_t length, int special, attune_error *err) {
    const struct tokenizer *tokenizer = s->engine->model->tokenizer;
    size_t n = 0, bytes, line = s->line.n, context = s->cache.context;
    int code = tokenizer_encode(tokenizer, text, length, special, NULL, 0, &n, err);
    if (code != ATTUNE_OK || n == 0) return code;
    /* Before memory is asked for: a long text fails on what it is, not on what it would take. */
    if (n > context || (s->when_full == ATTUNE_CONTEXT_STOP && line + n > context))
        return context_full(s, line, n, 0, err);
    if (!checked_mul(n, sizeof(int32_t), &bytes)) return error_set_memory(err, "tokens of a text", n);
    int32_t *ids = malloc(bytes);
    if (!ids) return error_set_memory(err, "tokens of a text", bytes);
    code = tokenizer_encode(tokenizer, text, length, special, ids, n, &n, err);
    int32_t bos = tokenizer_bos(tokenizer);
    if (code == ATTUNE_OK && line == 0 && tokenizer_adds_bos(tokenizer) && bos >= 0 && ids[0] != bos)
        code = token_list_add(&s->line, bos, 0, err);
    for (size_t i = 0; i < n && code == ATTUNE_OK; i++) code = token_list_add(&s->line, ids[i], 0, err);
    free(ids);
    return code;
}

int attune_session_append_text(attune_session *s, const char *text, size_t length, int flags, attune_error *err) {
    int code = session_check_ready(s, err);
    if (code != ATTUNE_OK) return code;
    if (!text && length) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "there is no text to append");
    if (flags & ~ATTUNE_TOKENIZE_SPECIAL)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "unknown flags %#x for appending text", (unsigned)flags);
    if (length == 0) return ATTUNE_OK;
    if ((code = check_text(s, text, length, NULL, err)) != ATTUNE_OK) return code;
    size_t before = s->line.n;
    code = encode(s, text, length, flags & ATTUNE_TOKENIZE_SPECIAL, err);
    if ((code = settle(s, before, before, code, err)) == ATTUNE_OK) s->appended = APPENDED_TEXT;
    return code;
}

int session_open_answer(attune_session *s, size_t *n, attune_error *err) {
    size_t before = s->line.n, question = last_turn(s, s->line.ids, before);
    int code = chat_template_render(s->engine->model->chat, NULL, 0, 0, 0, 1, &s->line, err);
    *n = s->line.n - before;
    return settle(s, before, question, code, err);
}

/* ---- set ---- */

/* messages as a line of their own, without the oldest where that is too long. */
static int render(const attune_session *s, const attune_message *messages, size_t n, struct token_list *line,
                  size_t *dropped, attune_error *err) {
    size_t context = s->cache.context;
    int code = chat_template_render(s->engine->model->chat, messages, n, 1, 0, 0, line, err);
    *dropped = 0;
    if (code != ATTUNE_OK || line->n <= context) return code;
    size_t keep = kept(s, line->ids, line->n);
    if (s->when_full == ATTUNE_CONTEXT_SHIFT)
        *dropped = choose_drop(s, line->ids, line->n, keep, last_turn(s, line->ids, line->n), line->n - context);
    if (*dropped == 0) return context_full(s, 0, line->n, 0, err);
    line->n -= *dropped;
    memmove(line->ids + keep, line->ids + keep + *dropped, (line->n - keep) * sizeof *line->ids);
    return ATTUNE_OK;
}

int attune_session_set(attune_session *s, const attune_message *messages, size_t n, attune_error *err) {
    struct token_list line = {0};
    size_t dropped = 0, common = 0;
    int code = session_check_ready(s, err);
    if (code == ATTUNE_OK) code = check_messages(s, messages, n, 1, err);
    if (code == ATTUNE_OK) code = token_list_reserve(&line, s->cache.context + LINE_SPARE, err);
    if (code == ATTUNE_OK && n > 0) code = render(s, messages, n, &line, &dropped, err);
    if (code != ATTUNE_OK) goto out;
    while (common < line.n && common < s->cache.used && common < s->clean && line.ids[common] == s->line.ids[common]) common++;
    struct token_list old = s->line;
    s->line = line;
    line = old;
    s->appended = n == 0 || is_answered(messages, n) ? APPENDED_NOTHING : APPENDED_MESSAGES;
    session_changed(s, common);
    s->dropped = dropped;
out:
    token_list_free(&line);
    return code;
}
