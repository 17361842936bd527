/* attune_bench: own figures on any base, beside the machine's limits. */
#include "bench/bench.h"

#include "core/base/options.h"
#include "core/base/random.h"
#include "inference/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SECONDS_MAX = 86400, EPOCHS_MAX = 1000 };

double bench_parameters(const struct model *m) {
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

void bench_random_tokens(int32_t *ids, size_t n, size_t V) {
    for (size_t i = 0; i < n; i++) ids[i] = (int32_t)(random_u64(7, i) % V);
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
    code = merge_create(b->model, *lora, mode, b->pool, NULL, merged, err);
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
    if (code == ATTUNE_OK) code = kv_cache_create(b->model, b->tokens, BLOCK_F32, &cache, err);
    if (code == ATTUNE_OK) code = decoding_pass_create(b->model, b->pool, b->tokens, rank, PRECISION_F32, &pass, err);
    if (code != ATTUNE_OK) goto out;
    bench_random_tokens(ids, b->tokens, b->model->V);
    for (int round = -1; code == ATTUNE_OK && (round < 1 || seconds < b->o.seconds); round++) {
        cache.used = 0;
        from = bench_now();
        for (size_t t = 0; t < b->tokens && code == ATTUNE_OK; t += at_once)
            code = decoding_pass_run(pass, w, &cache, ids + t, at_once, logits, 1, err);
        if (round < 0) continue;
        seconds += bench_now() - from;
        b->r.tokens += (int64_t)b->tokens;
    }
    b->r.seconds = seconds;
    b->r.tokens_per_s = (double)b->r.tokens / seconds;
    b->r.gflops = 2e-9 * b->r.tokens_per_s *
                  (bench_parameters(b->model) + (at_once == 1 ? (double)b->model->V * (double)b->model->C : 0));
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

/* Options that are impossible, or that say nothing to this bench. */
static int check(const attune_bench_options *o, int train, attune_error *err) {
    int with_rows = train && o->rows;
    if (o->tokens < 0 || o->tokens > 1 << 20 || !(o->seconds >= 0 && o->seconds <= SECONDS_MAX) || o->rank < 0 ||
        o->rank > LORA_RANK_MAX || o->epochs < 0 || o->epochs > EPOCHS_MAX)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL,
                         "impossible options: tokens up to %d, seconds up to %d, rank up to %d, epochs up to %d",
                         1 << 20, SECONDS_MAX, LORA_RANK_MAX, EPOCHS_MAX);
    if (o->precision < ATTUNE_PRECISION_SETTINGS || o->precision > ATTUNE_PRECISION_F32)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the precision must be auto or f32");
    if (!with_rows && (o->rows || o->out || o->epochs))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "rows, epochs and out are for train, with a file of rows");
    if (!train && (o->memory_bytes || o->precision))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "memory and precision are for train");
    return ATTUNE_OK;
}

static int measure_limits(struct bench *b, int train, attune_error *err) {
    struct limits limits = {0};
    const struct product *product = kernels_product(kernels_get(), b->precision);
    double from = bench_now();
    int code = limits_measure(b->pool, product, 1.0, &limits, err);
    if (code != ATTUNE_OK) return code;
    b->r.limit_gflops = limits.gflops;
    b->r.limit_gbytes_per_s = limits.gbytes_per_s;
    b->r.seconds_limits = bench_now() - from;
    if (!train) return ATTUNE_OK;
    snprintf(b->r.arithmetic, sizeof b->r.arithmetic, "%s", product->arithmetic);
    b->r.base_share = b->base_operations / (b->base_operations + b->other_operations);
    b->r.limit_base_gflops = limits.base_gflops;
    if (limits.base_gflops > 0)
        b->r.limit_share = 1e-9 * (b->base_operations / limits.base_gflops + b->other_operations / limits.gflops) /
                           b->r.seconds_train;
    return ATTUNE_OK;
}

int attune_bench(const char *base, const char *kind, const attune_bench_options *options, attune_bench_result *result,
                 attune_error *err) {
    struct bench b = {.from = bench_now()};
    int code = options_read(&b.o, sizeof b.o, options, "attune_bench_options", err);
    if (code != ATTUNE_OK) return code;
    int train = kind && !strcmp(kind, "train"), decode = kind && !strcmp(kind, "decode");
    int prefill = kind && !strcmp(kind, "prefill"), merge = kind && !strcmp(kind, "merge");
    if (!base || !(train || decode || prefill || merge))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL,
                         "a base, and what to measure: train, decode, prefill or merge");
    code = check(&b.o, train, err);
    if (code != ATTUNE_OK) return code;
    if (b.o.seconds == 0) b.o.seconds = 3;
    b.tokens = b.o.tokens ? (size_t)b.o.tokens : decode ? 128 : 512;
    b.precision = b.o.precision == ATTUNE_PRECISION_F32 ? PRECISION_F32 : PRECISION_AUTO;
    if (merge && !b.o.merge) b.o.merge = "f16";
    code = kernels_select(err);
    if (code == ATTUNE_OK) code = pool_create(b.o.threads, &b.pool, err);
    if (code == ATTUNE_OK) code = model_open(base, FILE_MAP, &b.model, err);
    b.r.seconds_load = bench_now() - b.from;
    if (code == ATTUNE_OK) code = train ? bench_train(&b, err) : bench_run(&b, decode, prefill, err);
    /* before the limits are measured: their buffer is no part of the work */
    b.r.peak_rss_mib = bench_peak_mib();
    if (code == ATTUNE_OK) code = measure_limits(&b, train, err);
    b.r.threads = b.pool ? pool_threads(b.pool) : 0;
    snprintf(b.r.kernels, sizeof b.r.kernels, "%s", kernels_get()->name);
    model_close(b.model);
    pool_destroy(b.pool);
    return code == ATTUNE_OK ? options_write(result, &b.r, sizeof b.r, "attune_bench_result", err) : code;
}
