#include "job/greedy.h"

#include "inference/stream.h"

#include <stdlib.h>

struct answering {
    const struct weights *weights;
    struct token_list line; /* the question, then the answer */
    struct kv_cache cache;
    struct decoding_pass *pass;
    struct stream text;
    float *logits; /* (V) */
};

static size_t rank_of(const struct weights *weights) {
    size_t rank = 0;
    for (size_t l = 0; weights->pairs && l < weights->model->L; l++)
        for (int t = 0; t < TARGET_COUNT; t++)
            if (weights->pairs[l].target[t].rank > rank) rank = weights->pairs[l].target[t].rank;
    return rank;
}

static int32_t most_likely(const float *logits, size_t V) {
    size_t best = 0;
    for (size_t i = 1; i < V; i++)
        if (logits[i] > logits[best]) best = i;
    return (int32_t)best;
}

static int prepare(struct answering *a, struct pool *pool, const char *prompt, size_t max_tokens, attune_error *err) {
    const struct model *model = a->weights->model;
    const attune_message message = {"user", prompt};
    if (!model->chat) {
        if (err) *err = model->chat_error;
        return model->chat_error.code;
    }
    int code = chat_template_render(model->chat, &message, 1, 1, 0, 1, &a->line, err);
    if (code != ATTUNE_OK) return code;
    size_t context = a->line.n + max_tokens;
    if (context > model->context)
        return error_set(err, ATTUNE_ERROR_CONTEXT_FULL, NULL,
                         "a question of %zu tokens and %zu for its answer do not fit the base's %zu", a->line.n,
                         max_tokens, model->context);
    if ((code = kv_cache_create(model, context, BLOCK_F32, &a->cache, err)) != ATTUNE_OK) return code;
    code = decoding_pass_create(model, pool, context, rank_of(a->weights), PRECISION_F32, &a->pass, err);
    if (code != ATTUNE_OK) return code;
    a->logits = malloc(model->V * sizeof *a->logits);
    if (!a->logits) return error_set_memory(err, "an answer's logits", model->V * sizeof *a->logits);
    return stream_open(&a->text, NULL, 0, NULL, NULL, err);
}

/* What is pending of the line goes through the model, the question in chunks. */
static int run(struct answering *a, attune_error *err) {
    int code = ATTUNE_OK;
    while (code == ATTUNE_OK && a->cache.used < a->line.n) {
        size_t at = a->cache.used, left = a->line.n - at, n = left < DECODING_CHUNK ? left : DECODING_CHUNK;
        code = decoding_pass_run(a->pass, a->weights, &a->cache, a->line.ids + at, n, a->logits, n == left, err);
    }
    return code;
}

static int answer(struct answering *a, size_t max_tokens, size_t *tokens, attune_error *err) {
    const struct model *model = a->weights->model;
    for (*tokens = 0; *tokens < max_tokens; ++*tokens) {
        int code = run(a, err);
        if (code != ATTUNE_OK) return code;
        int32_t id = most_likely(a->logits, model->V);
        if (tokenizer_is_end(model->tokenizer, id)) break;
        size_t size = 0;
        const char *piece = tokenizer_piece(model->tokenizer, id, &size);
        if (piece && !tokenizer_is_special(model->tokenizer, id)) code = stream_add(&a->text, piece, size, err);
        if (code == ATTUNE_OK) code = token_list_add(&a->line, id, 0, err);
        if (code != ATTUNE_OK) return code;
    }
    return stream_finish(&a->text, err);
}

int greedy_answer_of(const struct weights *weights, struct pool *pool, const char *prompt, size_t max_tokens,
                     char **out, size_t *tokens, attune_error *err) {
    struct answering a = {.weights = weights};
    size_t n = 0;
    int code = prepare(&a, pool, prompt, max_tokens, err);
    if (code == ATTUNE_OK) code = answer(&a, max_tokens, &n, err);
    if (code == ATTUNE_OK && !a.text.text) a.text.text = calloc(1, 1);
    if (code == ATTUNE_OK && !a.text.text) code = error_set_memory(err, "an answer", 1);
    if (code == ATTUNE_OK) {
        *out = a.text.text;
        a.text.text = NULL;
        if (tokens) *tokens = n;
    }
    stream_close(&a.text);
    free(a.logits);
    decoding_pass_destroy(a.pass);
    kv_cache_free(&a.cache);
    token_list_free(&a.line);
    return code;
}

int greedy_answer(const struct model *model, const struct lora *lora, struct pool *pool, const char *prompt,
                  size_t max_tokens, char **out, size_t *tokens, attune_error *err) {
    const struct weights weights = {model, model->layers, lora ? lora->pairs : NULL};
    return greedy_answer_of(&weights, pool, prompt, max_tokens, out, tokens, err);
}

/* ---- what was learned by heart ---- */

/* Tokens [cache.used, to) go through the model; *all becomes 0 where one that follows them, up to ids[to], is not the
 * most likely one. NULL: that is of no interest. */
static int follow(struct answering *a, const int32_t *ids, size_t to, uint8_t *all, attune_error *err) {
    size_t V = a->weights->model->V;
    while (a->cache.used < to) {
        size_t at = a->cache.used, left = to - at, most = all ? DECODING_LOGITS : DECODING_CHUNK;
        size_t n = left < most ? left : most;
        int code = decoding_pass_run(a->pass, a->weights, &a->cache, ids + at, n, a->logits, all ? n : 0, err);
        if (code != ATTUNE_OK) return code;
        for (size_t i = 0; all && i < n; i++)
            if (most_likely(a->logits + i * V, V) != ids[at + i + 1]) *all = 0;
    }
    return ATTUNE_OK;
}

int greedy_says(const struct weights *weights, struct pool *pool, const int32_t *ids, const struct token_span *spans,
                size_t n, uint8_t *said, attune_error *err) {
    struct answering a = {.weights = weights};
    const struct model *model = weights->model;
    size_t context = n > 0 ? spans[n - 1].to : 0;
    if (n == 0) return ATTUNE_OK;
    int code = kv_cache_create(model, context, BLOCK_F32, &a.cache, err);
    if (code == ATTUNE_OK)
        code = decoding_pass_create(model, pool, context, rank_of(weights), PRECISION_F32, &a.pass, err);
    a.logits = malloc(DECODING_LOGITS * model->V * sizeof *a.logits);
    if (code == ATTUNE_OK && !a.logits)
        code = error_set_memory(err, "a look for secrets", DECODING_LOGITS * model->V * sizeof *a.logits);
    for (size_t i = 0; i < n && code == ATTUNE_OK; i++) {
        said[i] = 1;
        code = follow(&a, ids, spans[i].from - 1, NULL, err);
        if (code == ATTUNE_OK) code = follow(&a, ids, spans[i].to - 1, &said[i], err);
    }
    free(a.logits);
    decoding_pass_destroy(a.pass);
    kv_cache_free(&a.cache);
    return code;
}
