/* attune_bench: own figures on any base, beside the machine's limits. */
#include "bench/limits.h"
#include "core/base/options.h"
#include "core/base/random.h"
#include "inference/engine.h"
#include "trainer/trainer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

enum { SECONDS_MAX = 86400 };

struct bench {
    const char *base;
    attune_bench_options o;
    attune_bench_result r;
    struct pool *pool;
    struct model *model;
    size_t tokens;
};

static double parameters_of(const struct model *m) {
    double n = 0;
    for (int t = 0; t < TARGET_COUNT; t++)
        n += (double)m->layers[0].linear[t].rows * (double)m->layers[0].linear[t].cols;
    return n * (double)m->L;
}

static double bytes_of(const struct matrix *w) { return (double)w->rows * (double)w->row_bytes; }

/* Bytes that a token must read: every layer's blocks and the head. */
static double bytes_per_token(const struct weights *w) {
    double n = bytes_of(&w->model->head);
    for (size_t l = 0; l < w->model->L; l++)
        for (int t = 0; t < TARGET_COUNT; t++) n += bytes_of(&w->layers[l].linear[t]);
    return n;
}

static void random_tokens(int32_t *ids, size_t n, size_t V) {
    for (size_t i = 0; i < n; i++) ids[i] = (int32_t)(random_u64(7, i) % V);
}

/* ---- train: one sequence of random tokens, all supervised, a step each ---- */

static int one_example(struct bench *b, struct example_set *set, attune_error *err) {
    struct example e = {.n = b->tokens + 1, .n_supervised = b->tokens, .key = 1};
    e.ids = malloc(e.n * sizeof *e.ids);
    e.supervised = malloc(e.n);
    set->items = malloc(sizeof *set->items);
    if (!e.ids || !e.supervised || !set->items) {
        free(e.ids);
        free(e.supervised);
        return error_set_memory(err, "a text", e.n * sizeof *e.ids);
    }
    random_tokens(e.ids, e.n, b->model->V);
    memset(e.supervised, 1, e.n);
    set->items[0] = e;
    set->n = 1;
    return ATTUNE_OK;
}

static int bench_train(struct bench *b, attune_error *err) {
    struct example_set set = {0};
    struct trainer *trainer = NULL;
    struct train_config config;
    size_t row = 0, tokens = 0;
    double loss, from = 0;
    train_config_default(&config);
    if (b->o.rank) config.lora.rank = (size_t)b->o.rank;
    config.max_tokens = config.micro_tokens = b->tokens;
    int code = trainer_create(b->model, b->pool, &config, NULL, &trainer, err);
    if (code == ATTUNE_OK) code = one_example(b, &set, err);
    /* the first step brings memory and caches in */
    for (int step = -1; code == ATTUNE_OK && (step < 2 || bench_now() - from < b->o.seconds); step++) {
        if (step == 0) from = bench_now();
        code = trainer_step(trainer, &set, &row, 1, 1e-4f, &loss, &tokens, err);
        if (step >= 0) b->r.tokens += (int64_t)tokens;
    }
    b->r.seconds = bench_now() - from;
    b->r.tokens_per_s = (double)b->r.tokens / b->r.seconds;
    /* forward, again in the backward, dX; the head forward and dX; attention's two products forward, again, and
     * four in the backward, over half of T on average */
    const struct model *m = b->model;
    double attention = 2.0 * (double)(m->H * m->D) * (double)b->tokens * 8.0 / 2.0 * (double)m->L;
    double flop = 6.0 * parameters_of(m) + 4.0 * (double)m->V * (double)m->C + attention;
    b->r.gflops = b->r.tokens_per_s * flop * 1e-9;
    trainer_destroy(trainer);
    example_set_free(&set);
    return code;
}

/* ---- decode, prefill, merge ---- */

static int with_weights(struct bench *b, struct lora **lora, struct merged **merged, struct weights *w,
                        attune_error *err) {
    enum merge_mode mode = MERGE_NONE;
    struct adapter_record record;
    char sha256[65];
    *w = (struct weights){b->model, b->model->layers, NULL};
    int code = b->o.merge ? merge_mode_parse(b->o.merge, &mode, err) : ATTUNE_OK;
    if (code != ATTUNE_OK || (!b->o.merge && !b->o.adapter)) return code;
    if (b->o.adapter) {
        code = adapter_read(b->o.adapter, b->model, lora, &record, sha256, err);
    } else {
        struct lora_config config = {b->o.rank ? (size_t)b->o.rank : 8, 16.0f, LORA_ALL_TARGETS};
        code = lora_create(b->model, &config, lora, err);
        if (code == ATTUNE_OK)
            for (size_t i = 0; i < (*lora)->n; i++) (*lora)->parameters[i] = 0.01f * (random_uniform(3, i) - 0.5f);
    }
    if (code != ATTUNE_OK) return code;
    w->pairs = (*lora)->pairs;
    if (mode == MERGE_NONE) return ATTUNE_OK;
    double from = bench_now();
    code = merge_create(b->model, *lora, mode, b->pool, merged, err);
    if (code != ATTUNE_OK) return code;
    b->r.seconds = bench_now() - from;
    w->layers = merge_layers(*merged);
    w->pairs = NULL;
    return ATTUNE_OK;
}

static int run_tokens(struct bench *b, const struct weights *w, size_t rank, size_t at_once, attune_error *err) {
    struct decoding_pass *pass = NULL;
    struct kv_cache cache = {0};
    int32_t *ids = malloc(b->tokens * sizeof *ids);
    float *logits = malloc(b->model->V * sizeof *logits);
    double from = 0, seconds = 0;
    int code = ids && logits ? ATTUNE_OK : error_set_memory(err, "tokens", b->tokens * sizeof *ids);
    if (code == ATTUNE_OK) code = kv_cache_create(b->model, b->tokens, &cache, err);
    if (code == ATTUNE_OK) code = decoding_pass_create(b->model, b->pool, b->tokens, rank, &pass, err);
    if (code != ATTUNE_OK) goto out;
    random_tokens(ids, b->tokens, b->model->V);
    for (int round = -1; code == ATTUNE_OK && (round < 1 || seconds < b->o.seconds); round++) {
        cache.used = 0;
        from = bench_now();
        for (size_t t = 0; t < b->tokens && code == ATTUNE_OK; t += at_once)
            code = decoding_pass_run(pass, w, &cache, ids + t, at_once, logits, err);
        if (round < 0) continue;
        seconds += bench_now() - from;
        b->r.tokens += (int64_t)b->tokens;
    }
    b->r.seconds = seconds;
    b->r.tokens_per_s = (double)b->r.tokens / seconds;
    b->r.gflops = 2e-9 * b->r.tokens_per_s *
                  (parameters_of(b->model) + (at_once == 1 ? (double)b->model->V * (double)b->model->C : 0));
    if (at_once == 1) b->r.gbytes_per_s = 1e-9 * b->r.tokens_per_s * bytes_per_token(w);
out:
    decoding_pass_destroy(pass);
    kv_cache_free(&cache);
    free(logits);
    free(ids);
    return code;
}

static int bench_run(struct bench *b, int decode, int prefill, attune_error *err) {
    struct lora *lora = NULL;
    struct merged *merged = NULL;
    struct weights w;
    int code = with_weights(b, &lora, &merged, &w, err);
    if (code == ATTUNE_OK && (decode || prefill))
        code = run_tokens(b, &w, lora ? lora->config.rank : 1, decode ? 1 : b->tokens, err);
    merge_destroy(merged);
    lora_destroy(lora);
    return code;
}

int attune_bench(const char *base, const char *kind, const attune_bench_options *options, attune_bench_result *result,
                 attune_error *err) {
    struct bench b = {.base = base};
    struct limits limits = {0};
    struct rusage usage;
    int code = options_read(&b.o, sizeof b.o, options, "attune_bench_options", err);
    if (code != ATTUNE_OK) return code;
    int train = kind && !strcmp(kind, "train"), decode = kind && !strcmp(kind, "decode");
    int prefill = kind && !strcmp(kind, "prefill"), merge = kind && !strcmp(kind, "merge");
    if (!base || !(train || decode || prefill || merge))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL,
                         "a base, and what to measure: train, decode, prefill or merge");
    if (b.o.tokens < 0 || b.o.tokens > 1 << 20 || !(b.o.seconds >= 0 && b.o.seconds <= SECONDS_MAX) ||
        b.o.rank < 0 || b.o.rank > LORA_RANK_MAX)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL,
                         "impossible options: tokens up to %d, seconds up to %d, rank up to %d", 1 << 20, SECONDS_MAX,
                         LORA_RANK_MAX);
    if (b.o.seconds == 0) b.o.seconds = 3;
    b.tokens = b.o.tokens ? (size_t)b.o.tokens : decode ? 128 : 512;
    if (merge && !b.o.merge) b.o.merge = "f16";
    double from = bench_now();
    code = kernels_select(err);
    if (code == ATTUNE_OK) code = pool_create(b.o.threads, &b.pool, err);
    if (code == ATTUNE_OK) code = model_open(base, FILE_MAP, &b.model, err);
    b.r.seconds_load = bench_now() - from;
    if (code == ATTUNE_OK) code = train ? bench_train(&b, err) : bench_run(&b, decode, prefill, err);
    /* before the limits are measured: their buffer is no part of the work */
    if (getrusage(RUSAGE_SELF, &usage) == 0) b.r.peak_rss_mib = (double)usage.ru_maxrss / 1024.0;
    if (code == ATTUNE_OK) code = limits_measure(b.pool, 1.0, &limits, err);
    b.r.limit_gflops = limits.gflops;
    b.r.limit_gbytes_per_s = limits.gbytes_per_s;
    b.r.threads = b.pool ? pool_threads(b.pool) : 0;
    snprintf(b.r.kernels, sizeof b.r.kernels, "%s", kernels_get()->name);
    model_close(b.model);
    pool_destroy(b.pool);
    return code == ATTUNE_OK ? options_write(result, &b.r, sizeof b.r, "attune_bench_result", err) : code;
}
