#include "inference/session.h"

#include "core/base/options.h"

#include <stdio.h>
#include <stdlib.h>

enum { CONTEXT_DEFAULT = 2048, CONTEXT_MIN = 8 };

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

static int choose_kind(int kv, enum block_type *out, attune_error *err) {
    static const enum block_type kinds[] = {
        [ATTUNE_KV_F16] = BLOCK_F16, [ATTUNE_KV_Q8] = BLOCK_Q8_0, [ATTUNE_KV_F32] = BLOCK_F32};
    if (kv < 0 || (size_t)kv >= sizeof kinds / sizeof *kinds)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, "attune_session_options",
                         "kv must be ATTUNE_KV_F16, _Q8 or _F32, not %d", kv);
    *out = kinds[kv];
    return ATTUNE_OK;
}

static int check_when_full(int when_full, attune_error *err) {
    if (when_full == ATTUNE_CONTEXT_STOP || when_full == ATTUNE_CONTEXT_SHIFT) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_ARGUMENT, "attune_session_options",
                     "when_full must be ATTUNE_CONTEXT_STOP or _SHIFT, not %d", when_full);
}

/* Memory of the session itself: in steps it takes no more, but for a long answer's text. */
static int take_memory(attune_session *s, size_t context, enum block_type kind, attune_error *err) {
    const struct model *model = s->engine->model;
    s->logit_rows = 1;
    s->logits = calloc(model->V, sizeof *s->logits);
    if (!s->logits) return error_set_memory(err, "a session's logits", model->V * sizeof *s->logits);
    int code = token_list_reserve(&s->line, context + LINE_SPARE, err);
    if (code == ATTUNE_OK && model->chat) code = chat_template_close_turn(model->chat, &s->line, err);
    s->turn_end = s->line.n;
    s->line.n = 0;
    if (code == ATTUNE_OK) code = kv_cache_create(model, context, kind, &s->cache, err);
    s->rank = variant_rank(s->variant);
    if (code == ATTUNE_OK)
        code = decoding_pass_create(model, s->engine->pool, context, s->rank, s->engine->precision, &s->pass, err);
    return code;
}

int attune_session_open(attune_engine *engine, const attune_session_options *options, attune_session **out,
                        attune_error *err) {
    attune_session_options o;
    enum block_type kind = BLOCK_F32;
    size_t context = 0;
    int code = options_read(&o, sizeof o, options, "attune_session_options", err);
    if (code != ATTUNE_OK) return code;
    if (!engine || !out) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "a session wants an engine and a result");
    if ((code = engine_check_process(engine, err)) != ATTUNE_OK) return code;
    if ((code = choose_context(engine->model, o.context, &context, err)) != ATTUNE_OK) return code;
    if ((code = choose_kind(o.kv, &kind, err)) != ATTUNE_OK) return code;
    if ((code = check_when_full(o.when_full, err)) != ATTUNE_OK) return code;

    attune_session *s = calloc(1, sizeof *s);
    if (!s) return error_set_memory(err, "a session", sizeof *s);
    s->engine = engine;
    s->variant = engine_hold(engine);
    s->when_full = o.when_full;
    s->clean = SIZE_MAX;
    s->longest_piece = longest_piece(engine->model->tokenizer);
    if ((code = take_memory(s, context, kind, err)) != ATTUNE_OK) {
        attune_session_close(s);
        return code;
    }
    *out = s;
    return ATTUNE_OK;
}

void attune_session_close(attune_session *s) {
    if (!s) return;
    stream_close(&s->stream);
    token_list_free(&s->line);
    decoding_pass_destroy(s->pass);
    kv_cache_free(&s->cache);
    free(s->answer.ids);
    free(s->answer.alternatives);
    free(s->answer.n_alternatives);
    free(s->logits);
    engine_release(s->variant);
    free(s);
}

/* ---- state ---- */

int session_check_ready(const attune_session *s, attune_error *err) {
    if (!s) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "no session");
    if (s->busy)
        return error_set(err, ATTUNE_ERROR_STATE, NULL,
                         "the session is generating; its token callback may stop it, not use it");
    return engine_check_process(s->engine, err);
}

void session_changed(attune_session *s, size_t common) {
    s->cache.used = common;
    if (common <= s->clean) s->clean = SIZE_MAX;
    s->scored = 0;
    s->dropped = 0;
    s->answer.n = 0;
    stream_close(&s->stream);
}

void attune_session_cancel(attune_session *s) {
    if (s) atomic_store(&s->cancel, 1);
}

int attune_session_reset(attune_session *s, attune_error *err) {
    int code = session_check_ready(s, err);
    if (code != ATTUNE_OK) return code;
    struct variant *now = engine_hold(s->engine);
    size_t rank = variant_rank(now);
    if (rank > s->rank) {
        struct decoding_pass *pass;
        code = decoding_pass_create(s->engine->model, s->engine->pool, s->cache.context, rank, s->engine->precision,
                                    &pass, err);
        if (code != ATTUNE_OK) {
            engine_release(now);
            return code;
        }
        decoding_pass_destroy(s->pass);
        s->pass = pass;
        s->rank = rank;
    }
    engine_release(s->variant);
    s->variant = now;
    s->line.n = 0;
    s->appended = APPENDED_NOTHING;
    session_changed(s, 0);
    return ATTUNE_OK;
}

/* ---- through the model ---- */

int session_run(attune_session *s, size_t n_draft, attune_error *err) {
    size_t end = s->line.n + n_draft;
    int code = ATTUNE_OK;
    s->scored = 0;
    pool_watch(&s->cancel);
    for (size_t n; code == ATTUNE_OK && s->cache.used < end;) {
        size_t at = s->cache.used;
        n = end - at < DECODING_CHUNK ? end - at : DECODING_CHUNK;
        code = decoding_pass_run(s->pass, &s->variant->weights, &s->cache, s->line.ids + at, n, s->logits,
                                 at + n == end ? n_draft + 1 : 0, err);
    }
    pool_watch(NULL);
    return code;
}

int session_score(attune_session *s, attune_error *err) {
    if (s->cache.used == s->line.n) {
        if (s->scored) return ATTUNE_OK;
        s->cache.used--; /* its last token is run again, for the logits after it */
    }
    int code = session_run(s, 0, err);
    s->scored = code == ATTUNE_OK;
    return code;
}

int attune_session_logits(attune_session *s, const float **logits, attune_error *err) {
    int code = session_check_ready(s, err);
    if (code != ATTUNE_OK) return code;
    if (!logits) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "nowhere to put the logits");
    if (s->appended == APPENDED_NOTHING)
        return error_set(err, ATTUNE_ERROR_STATE, NULL, "nothing was appended; append messages or text first");
    atomic_store(&s->cancel, 0);
    if ((code = session_score(s, err)) == ATTUNE_OK) *logits = s->logits;
    return code;
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
