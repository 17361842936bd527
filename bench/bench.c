/* attune_bench: own figures on any base, beside the machine's limits. */
#include "bench/bench.h"

#include "core/base/options.h"
#include "core/base/random.h"
#include "inference/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SECONDS_MAX = 86400, EPOCHS_MAX = 1000, TOKENS_MAX = 1 << 20 };
enum bench_kind { BENCH_TRAIN, BENCH_DECODE, BENCH_PREFILL, BENCH_MERGE, BENCH_KINDS };

double bench_parameters(const struct model *m) {
    double n = 0;
    for (int t = 0; t < TARGET_COUNT; t++)
        n += (double)m->layers[0].linear[t].rows * (double)m->layers[0].linear[t].cols;
    return n * (double)m->L;
}

void bench_random_tokens(int32_t *ids, size_t n, size_t V) {
    for (size_t i = 0; i < n; i++) ids[i] = (int32_t)(random_u64(7, i) % V);
}

/* ---- decode, prefill, merge ---- */

/* What decode and prefill run with, and merge makes. */
struct serving {
    struct lora *lora;     /* NULL: the base alone */
    struct merged *merged; /* NULL: the pairs run beside the base */
    enum merge_mode mode;
    struct weights weights;
};

/* Keys and values of a token are rows of these blocks, by enum attune_kv_kind. */
static const enum block_type kv_types[] = {BLOCK_F16, BLOCK_Q8_0, BLOCK_F32};

static double bytes_of(const struct matrix *w) { return (double)w->rows * (double)w->row_bytes; }

/* Matrices that are not the base's. */
static double merged_bytes(const struct weights *w) {
    double n = 0;
    for (size_t l = 0; l < w->model->L; l++)
        for (int t = 0; t < TARGET_COUNT; t++)
            if (w->layers[l].linear[t].data != w->model->layers[l].linear[t].data)
                n += bytes_of(&w->layers[l].linear[t]);
    return n;
}

/* Weights that a token must read: every layer's blocks, the head, and pairs beside them. */
static double bytes_per_token(const struct serving *s) {
    const struct weights *w = &s->weights;
    double n = bytes_of(&w->model->head) + (w->pairs ? (double)s->lora->n * sizeof(float) : 0);
    for (size_t l = 0; l < w->model->L; l++)
        for (int t = 0; t < TARGET_COUNT; t++) n += bytes_of(&w->layers[l].linear[t]);
    return n;
}

/* Keys and values that n tokens read behind `depth` others, each its own too. */
static double cache_bytes(const struct model *m, const struct kv_cache *cache, size_t depth, size_t n) {
    double rows = (double)n * (double)depth + 0.5 * (double)n * (double)(n + 1);
    return 2 * (double)m->L * (double)m->KV * (double)cache->row_bytes * rows;
}

/* Multiplications and additions of the same tokens: with the base (the head for `heads` of them), and with the pairs
 * and in attention, which are f32. */
static void count_operations(struct bench *b, const struct serving *s, size_t depth, size_t n, size_t heads) {
    const struct model *m = b->model;
    double seen = (double)n * (double)depth + 0.5 * (double)n * (double)(n + 1);
    b->base_operations += 2 * (bench_parameters(m) * (double)n + (double)heads * (double)m->V * (double)m->C);
    b->other_operations += 4 * (double)m->L * (double)(m->H * m->D) * seen +
                           (s->weights.pairs ? 2 * (double)s->lora->n * (double)n : 0);
}

static int make_adapter(struct bench *b, struct lora **out, attune_error *err) {
    struct adapter_record record;
    char sha256[65];
    if (b->o.adapter) return adapter_read(b->o.adapter, b->model, out, &record, sha256, err);
    struct lora_config config = {b->o.rank ? (size_t)b->o.rank : 8, 16.0f, LORA_ALL_TARGETS};
    int code = lora_create(b->model, &config, out, err);
    for (size_t i = 0; code == ATTUNE_OK && i < (*out)->n; i++)
        (*out)->parameters[i] = 0.01f * (random_uniform(3, i) - 0.5f);
    return code;
}

static int merge(struct bench *b, struct serving *s, attune_error *err) {
    int code = merge_create(b->model, s->lora, s->mode, b->pool, NULL, &s->merged, err);
    if (code == ATTUNE_OK) s->weights = (struct weights){b->model, merge_layers(s->merged), NULL};
    return code;
}

static int serving_open(struct bench *b, struct serving *s, attune_error *err) {
    s->weights = (struct weights){b->model, b->model->layers, NULL};
    int code = b->o.merge ? merge_mode_parse(b->o.merge, &s->mode, err) : ATTUNE_OK;
    if (code != ATTUNE_OK || (!b->o.merge && !b->o.adapter)) return code;
    if ((code = make_adapter(b, &s->lora, err)) != ATTUNE_OK) return code;
    s->weights.pairs = s->lora->pairs;
    return s->mode == MERGE_NONE ? ATTUNE_OK : merge(b, s, err);
}

static void serving_close(struct serving *s) {
    merge_destroy(s->merged);
    lora_destroy(s->lora);
}

/* Again and again, the memory of one at a time. The first, in serving_open, was to bring the base into memory. */
static int bench_merge(struct bench *b, struct serving *s, attune_error *err) {
    double from = bench_now(), seconds;
    int64_t n = 0;
    int code;
    if (!s->merged)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "\"%s\" merges nothing: f16, q8 or same", b->o.merge);
    do {
        merge_destroy(s->merged);
        s->merged = NULL;
        if ((code = merge(b, s, err)) != ATTUNE_OK) return code;
        seconds = bench_now() - from;
        n++;
    } while (seconds < b->o.seconds);
    b->r.bytes = (int64_t)merged_bytes(&s->weights);
    double read = 0;
    for (size_t l = 0; l < b->model->L; l++)
        for (int t = 0; t < TARGET_COUNT; t++)
            if (s->weights.layers[l].linear[t].data != b->model->layers[l].linear[t].data)
                read += bytes_of(&b->model->layers[l].linear[t]);
    b->r.seconds = seconds / (double)n;
    b->r.gbytes_per_s = 1e-9 * (read + (double)b->r.bytes) / b->r.seconds;
    return ATTUNE_OK;
}

/* Fills the cache to the depth, untimed and in the chunks of a prompt; then b->tokens at a time behind it. */
static int run_tokens(struct bench *b, const struct serving *s, int decode, attune_error *err) {
    struct decoding_pass *pass = NULL;
    struct kv_cache cache = {0};
    size_t depth = (size_t)b->o.depth, context = depth + b->tokens, at_once = decode ? 1 : b->tokens;
    size_t rank = s->weights.pairs ? s->lora->config.rank : 0;
    int32_t *ids = malloc(context * sizeof *ids);
    float *logits = malloc(b->model->V * sizeof *logits);
    double bytes = 0;
    int code = ids && logits ? ATTUNE_OK : error_set_memory(err, "tokens", context * sizeof *ids);
    if (code == ATTUNE_OK) code = kv_cache_create(b->model, context, kv_types[b->o.kv], &cache, err);
    if (code == ATTUNE_OK) code = decoding_pass_create(b->model, b->pool, context, rank, b->precision, &pass, err);
    if (code != ATTUNE_OK) goto out;
    bench_random_tokens(ids, context, b->model->V);
    if (depth) code = decoding_pass_run(pass, &s->weights, &cache, ids, depth, NULL, 0, err);
    for (int round = -1; code == ATTUNE_OK && (round < 1 || b->r.seconds < b->o.seconds); round++) {
        cache.used = depth;
        double from = bench_now();
        for (size_t t = 0; t < b->tokens && code == ATTUNE_OK; t += at_once)
            code = decoding_pass_run(pass, &s->weights, &cache, ids + depth + t, at_once, logits, 1, err);
        if (round < 0) continue;
        b->r.seconds += bench_now() - from;
        b->r.tokens += (int64_t)b->tokens;
        bytes += (double)(b->tokens / at_once) * bytes_per_token(s) + cache_bytes(b->model, &cache, depth, b->tokens);
        count_operations(b, s, depth, b->tokens, b->tokens / at_once);
    }
    if (code != ATTUNE_OK) goto out;
    b->r.tokens_per_s = (double)b->r.tokens / b->r.seconds;
    b->r.gflops = 1e-9 * (b->base_operations + b->other_operations) / b->r.seconds;
    if (!decode) goto out;
    b->r.gbytes_per_s = 1e-9 * bytes / b->r.seconds;
    b->r.bytes = (int64_t)(bytes / (double)b->r.tokens);
out:
    decoding_pass_destroy(pass);
    kv_cache_free(&cache);
    free(logits);
    free(ids);
    return code;
}

static int bench_run(struct bench *b, enum bench_kind kind, attune_error *err) {
    struct serving s = {0};
    int code = serving_open(b, &s, err);
    if (code == ATTUNE_OK)
        code = kind == BENCH_MERGE ? bench_merge(b, &s, err) : run_tokens(b, &s, kind == BENCH_DECODE, err);
    serving_close(&s);
    return code;
}

/* ---- all of them ---- */

/* Options that are impossible, or that say nothing to this bench. */
static int check(const attune_bench_options *o, enum bench_kind kind, attune_error *err) {
    int train = kind == BENCH_TRAIN, with_rows = train && o->rows, runs = kind == BENCH_DECODE || kind == BENCH_PREFILL;
    if (o->tokens < 0 || o->tokens > TOKENS_MAX || !(o->seconds >= 0 && o->seconds <= SECONDS_MAX) || o->rank < 0 ||
        o->rank > LORA_RANK_MAX || o->epochs < 0 || o->epochs > EPOCHS_MAX || o->depth < 0 || o->depth > TOKENS_MAX)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL,
                         "impossible options: tokens and depth up to %d, seconds up to %d, rank up to %d, epochs up to "
                         "%d", TOKENS_MAX, SECONDS_MAX, LORA_RANK_MAX, EPOCHS_MAX);
    if (o->precision < ATTUNE_PRECISION_SETTINGS || o->precision > ATTUNE_PRECISION_F32)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the precision must be auto or f32");
    if (o->kv < ATTUNE_KV_F16 || o->kv > ATTUNE_KV_F32)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "keys and values must be f16, q8 or f32");
    if (!with_rows && (o->rows || o->out || o->epochs))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "rows, epochs and out are for train, with a file of rows");
    if (!train && o->memory_bytes) return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "memory is for train");
    if (!runs && (o->depth || o->kv))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "depth and kv are for decode and prefill");
    if (kind == BENCH_MERGE && o->precision)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "precision is for train, decode and prefill");
    return ATTUNE_OK;
}

/* Time that the operations need at the limits of their arithmetic, over the time that they took. */
static void share_of_arithmetic(struct bench *b, const struct product *product, const struct limits *limits,
                                double seconds) {
    snprintf(b->r.arithmetic, sizeof b->r.arithmetic, "%s", product->arithmetic);
    b->r.base_share = b->base_operations / (b->base_operations + b->other_operations);
    b->r.limit_base_gflops = limits->base_gflops;
    if (limits->base_gflops > 0)
        b->r.limit_share =
            1e-9 * (b->base_operations / limits->base_gflops + b->other_operations / limits->gflops) / seconds;
}

static int measure_limits(struct bench *b, enum bench_kind kind, attune_error *err) {
    struct limits limits = {0};
    const struct product *product = kernels_product(kernels_get(), b->precision);
    double from = bench_now();
    int code = limits_measure(b->pool, product, 1.0, &limits, err);
    if (code != ATTUNE_OK) return code;
    b->r.limit_gflops = limits.gflops;
    b->r.limit_gbytes_per_s = limits.gbytes_per_s;
    b->r.seconds_limits = bench_now() - from;
    if (kind == BENCH_TRAIN) share_of_arithmetic(b, product, &limits, b->r.seconds_train);
    if (kind == BENCH_PREFILL) share_of_arithmetic(b, product, &limits, b->r.seconds);
    if (kind == BENCH_DECODE && limits.gbytes_per_s > 0) b->r.limit_share = b->r.gbytes_per_s / limits.gbytes_per_s;
    return ATTUNE_OK;
}

static enum bench_kind kind_of(const char *name) {
    static const char *const names[BENCH_KINDS] = {"train", "decode", "prefill", "merge"};
    int kind = 0;
    while (kind < BENCH_KINDS && (!name || strcmp(name, names[kind]) != 0)) kind++;
    return (enum bench_kind)kind;
}

int attune_bench(const char *base, const char *name, const attune_bench_options *options, attune_bench_result *result,
                 attune_error *err) {
    struct bench b = {.from = bench_now()};
    int code = options_read(&b.o, sizeof b.o, options, "attune_bench_options", err);
    if (code != ATTUNE_OK) return code;
    enum bench_kind kind = kind_of(name);
    if (!base || kind == BENCH_KINDS)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL,
                         "a base, and what to measure: train, decode, prefill or merge");
    if ((code = check(&b.o, kind, err)) != ATTUNE_OK) return code;
    if (b.o.seconds == 0) b.o.seconds = 3;
    b.tokens = b.o.tokens ? (size_t)b.o.tokens : kind == BENCH_DECODE ? 128 : 512;
    b.precision = b.o.precision == ATTUNE_PRECISION_F32 ? PRECISION_F32 : PRECISION_AUTO;
    if (kind == BENCH_MERGE && !b.o.merge) b.o.merge = "f16";
    code = kernels_select(err);
    if (code == ATTUNE_OK) code = pool_create(b.o.threads, &b.pool, err);
    if (code == ATTUNE_OK) code = model_open(base, FILE_MAP, &b.model, err);
    b.r.seconds_load = bench_now() - b.from;
    if (code == ATTUNE_OK) code = kind == BENCH_TRAIN ? bench_train(&b, err) : bench_run(&b, kind, err);
    /* before the limits are measured: their buffer is no part of the work */
    b.r.peak_rss_mib = bench_peak_mib();
    if (code == ATTUNE_OK) code = measure_limits(&b, kind, err);
    b.r.threads = b.pool ? pool_threads(b.pool) : 0;
    snprintf(b.r.kernels, sizeof b.r.kernels, "%s", kernels_get()->name);
    model_close(b.model);
    pool_destroy(b.pool);
    return code == ATTUNE_OK ? options_write(result, &b.r, sizeof b.r, "attune_bench_result", err) : code;
}
