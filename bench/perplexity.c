/* What do activations in 8 bits cost an answer? Texts a few tokens at a time through the cache, as in decoding, once in
 * f32 and once as fast as the machine does it: perplexity of both, mean KL divergence and top-1 agreement.
 *
 *   perplexity BASE ROWS.jsonl [TOKENS] */
#include "datastore/store.h"
#include "trainer/trainer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* FEW: tokens at once, which take the path of decoding. */
enum { MAX_TOKENS = 512, FEW = 4 };

struct reader {
    const struct model *model;
    struct pool *pool;
    struct decoding_pass *pass[2]; /* f32, as fast as it goes */
    struct kv_cache cache[2];
    float *logits[2];              /* (FEW, V) */
    size_t wanted, positions, rows, agree;
    double nll[2], kl, squares; /* squares: of the differences of each row's nll */
};

/* Log of the sum of exponentials. */
static double normalizer(const float *logits, size_t V, size_t *best) {
    double sum = 0;
    *best = 0;
    for (size_t v = 1; v < V; v++)
        if (logits[v] > logits[*best]) *best = v;
    for (size_t v = 0; v < V; v++) sum += exp((double)logits[v] - (double)logits[*best]);
    return log(sum) + (double)logits[*best];
}

static void compare(struct reader *r, size_t row, int32_t next, double *before, double *after) {
    size_t V = r->model->V, best[2];
    const float *a = r->logits[0] + row * V, *b = r->logits[1] + row * V;
    double za = normalizer(a, V, &best[0]), zb = normalizer(b, V, &best[1]), kl = 0;
    for (size_t v = 0; v < V; v++) kl += exp((double)a[v] - za) * ((double)a[v] - za - (double)b[v] + zb);
    r->kl += kl;
    r->agree += best[0] == best[1];
    *before += za - (double)a[next];
    *after += zb - (double)b[next];
}

static int take_example(struct reader *r, const struct example *example, attune_error *err) {
    struct weights weights = {r->model, r->model->layers, NULL};
    double nll[2] = {0};
    size_t T = example->n - 1;
    int code = ATTUNE_OK;
    r->cache[0].used = r->cache[1].used = 0;
    for (size_t t = 0; t < T && code == ATTUNE_OK; t += FEW) {
        size_t n = T - t < FEW ? T - t : FEW;
        for (int i = 0; i < 2 && code == ATTUNE_OK; i++)
            code = decoding_pass_run(r->pass[i], &weights, &r->cache[i], example->ids + t, n, r->logits[i], n, err);
        for (size_t k = 0; k < n && code == ATTUNE_OK; k++)
            compare(r, k, example->ids[t + k + 1], &nll[0], &nll[1]);
    }
    if (code != ATTUNE_OK) return code;
    double difference = nll[1] - nll[0];
    r->nll[0] += nll[0];
    r->nll[1] += nll[1];
    r->squares += difference * difference;
    r->positions += T;
    r->rows++;
    return ATTUNE_OK;
}

static int take(const struct store_row *row, void *user, attune_error *err) {
    struct reader *r = user;
    struct example_set set = {0};
    int added;
    if (r->positions >= r->wanted) return ATTUNE_DONE;
    int code = example_add(&set, r->model, row->messages, row->n_messages, row->response, row->content_hash,
                           row->prompt_hash, MAX_TOKENS, &added, err);
    if (code == ATTUNE_OK && added) code = take_example(r, &set.items[0], err);
    example_set_free(&set);
    return code;
}

/* The interval is of the mean over tokens, rows taken as independent. */
static void tell(const struct reader *r) {
    double n = (double)r->positions, rows = (double)r->rows, mean = (r->nll[1] - r->nll[0]) / n;
    double per_row = (r->nll[1] - r->nll[0]) / rows;
    double variance = r->squares / rows - per_row * per_row;
    printf("{\"positions\": %zu, \"rows\": %zu, \"perplexity_f32\": %.4f, \"perplexity\": %.4f, "
           "\"perplexity_change\": %.5f, \"interval\": %.5f, \"kl\": %.5f, \"agreement\": %.4f}\n",
           r->positions, r->rows, exp(r->nll[0] / n), exp(r->nll[1] / n), expm1(mean),
           1.96 * sqrt(variance * rows) / n, r->kl / n, (double)r->agree / n);
}

static int open_reader(struct reader *r, struct model *model, attune_error *err) {
    static const enum precision precisions[2] = {PRECISION_F32, PRECISION_AUTO};
    int code = ATTUNE_OK;
    r->model = model;
    for (int i = 0; i < 2 && code == ATTUNE_OK; i++) {
        code = decoding_pass_create(model, r->pool, MAX_TOKENS, 0, precisions[i], &r->pass[i], err);
        if (code == ATTUNE_OK) code = kv_cache_create(model, MAX_TOKENS, BLOCK_F32, &r->cache[i], err);
        r->logits[i] = malloc(FEW * model->V * sizeof(float));
        if (code == ATTUNE_OK && !r->logits[i]) code = error_set_memory(err, "logits", FEW * model->V * sizeof(float));
    }
    return code;
}

int main(int argc, char **argv) {
    struct reader r = {0};
    struct model *model = NULL;
    attune_error err = {0};
    if (argc < 3) {
        fprintf(stderr, "usage: perplexity BASE ROWS.jsonl [TOKENS]\n");
        return 2;
    }
    r.wanted = argc > 3 ? strtoul(argv[3], NULL, 10) : 20000;
    int code = pool_create(0, &r.pool, &err);
    if (code == ATTUNE_OK) code = model_open(argv[1], FILE_MAP, &model, &err);
    if (code == ATTUNE_OK) code = open_reader(&r, model, &err);
    if (code == ATTUNE_OK) code = store_rows_from_file(argv[2], take, &r, &err);
    if (code == ATTUNE_DONE) code = ATTUNE_OK;
    if (code == ATTUNE_OK && r.rows > 0) tell(&r);
    if (code != ATTUNE_OK) fprintf(stderr, "perplexity: %s (%s)\n", err.message, err.where);
    for (int i = 0; i < 2; i++) {
        decoding_pass_destroy(r.pass[i]);
        kv_cache_free(&r.cache[i]);
        free(r.logits[i]);
    }
    model_close(model);
    pool_destroy(r.pool);
    return code == ATTUNE_OK ? 0 : 1;
}
