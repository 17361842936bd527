/* A conversation is one line of tokens. The cache holds keys and values of the first `cache.used` of them, the others
 * are pending: appending only adds to these; answering, or asking for logits, runs them through the model.
 *
 *   line:   [ ids[0] ... ids[cache.used - 1] | ids[cache.used] ... ids[n - 1] ]
 *
 * Neither a call that fails nor one that is cancelled leaves the cache with something that is not the line's start.
 * session.c owns the object and runs tokens, conversation.c changes the line, generation.c answers, session_file.c
 * saves and restores. */
#ifndef INFERENCE_SESSION_H
#define INFERENCE_SESSION_H

#include "core/base/hash.h"
#include "inference/engine.h"
#include "inference/stream.h"

enum {
    /* Tokens of the line past the context: the one that was sampled when the cache was full, and what closes a turn. */
    LINE_SPARE = 16
};

enum appended { APPENDED_NOTHING, APPENDED_MESSAGES, APPENDED_TEXT };

/* The last answer, kept apart from the line, from which a shift may drop it. */
struct answer {
    int32_t *ids;                     /* (n) */
    size_t n, capacity;
    attune_alternative *alternatives; /* (n, each); NULL: none were asked for */
    uint8_t *n_alternatives;          /* (n) of each */
    size_t each;
};

struct attune_session {
    attune_engine *engine;
    struct variant *variant; /* what the engine served when the conversation began */
    struct kv_cache cache;
    struct decoding_pass *pass;
    size_t rank;             /* of pairs that the pass has room for */
    struct token_list line;  /* its mask is not used */
    float *logits;           /* (logit_rows, V) */
    size_t logit_rows;
    int scored;              /* nothing is pending, and row 0 of logits is what comes after the line */
    enum appended appended;  /* since the last answer, the last of them */
    int when_full;           /* enum attune_when_context_full */
    size_t dropped;          /* tokens that shifts dropped, not yet told in a result */
    size_t clean;            /* what the cache has of the first so many tokens is of the line alone; later ones have
                                seen tokens that a shift dropped, and serve no other line. SIZE_MAX: all */
    struct answer answer;
    struct stream stream;    /* the answer's text */
    size_t longest_piece;    /* bytes */
    size_t turn_end;         /* tokens that close a turn */
    int busy;                /* a generation runs: its callback must not come back in */
    atomic_int cancel;
    char base_sha256[HASH_HEX_SIZE]; /* "" until it was needed */
};

/* ATTUNE_ERROR_STATE while it is generating, or in a forked child. */
int session_check_ready(const attune_session *session, attune_error *err);
/* The line is another one, of which the cache has the first `common`: answers and logits of the old one are void. */
void session_changed(attune_session *session, size_t common);
/* What is pending and then n_draft tokens that stand behind the line, where there is one pending at least, through
 * the model: logits(n_draft + 1, V) after the last of the line and after each drafted one. The drafted ones are in
 * the cache then, too. On an error the cache keeps whole chunks that were run. */
int session_run(attune_session *session, size_t n_draft, attune_error *err);
/* Logits after the line, run or not. */
int session_score(attune_session *session, attune_error *err);

/* Ends the line with the header of an answer, *n tokens. */
int session_open_answer(attune_session *session, size_t *n, attune_error *err);
/* Drops the oldest half of the conversation, that another token fits. 0: it must not, or there is nothing to drop. */
int session_shift(attune_session *session);

/* Tokens that may follow line(n), as they followed the longest of its ends that stands in it before, of two tokens
 * or more; the latest of equally long ones. Returns how many, up to `most`. */
size_t lookup_draft(const int32_t *line, size_t n, size_t most, int32_t *draft);

#endif
