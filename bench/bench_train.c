/* attune_bench train: rows of a file from loading to the saved adapter, or steps over random tokens. */
#include "bench/bench.h"

#include "adapters/adapter_file.h"
#include "datastore/store.h"
#include "job/memory.h"
#include "trainer/trainer.h"

#include <stdlib.h>
#include <string.h>

/* ---- how much arithmetic a step needs: multiplications and additions ---- */

/* One conversation of T rows, n of them supervised, alone in its attention. Products with the frozen base: forward,
 * forward again in the backward for layers that were not kept, dX; the first layer's q, k and v have no dX. */
static double base_operations(const struct model *m, size_t T, size_t n, size_t kept) {
    const struct matrix *w = m->layers[0].linear;
    double layer = bench_parameters(m) / (double)m->L, down = (double)w[TARGET_DOWN].rows * (double)w[TARGET_DOWN].cols;
    double first = 0;
    for (int t = TARGET_Q; t <= TARGET_V; t++) first += (double)w[t].rows * (double)w[t].cols;
    double products = 2 * (double)m->L * layer + (double)(m->L - kept) * (layer - down) - first;
    return 2.0 * ((double)T * products + 2 * (double)n * (double)m->V * (double)m->C);
}

/* Low-rank pairs: x A^T and its product with B, the first two again for layers that were not kept, dy B, dx, dA, dB.
 * Attention: two products forward, again for layers that were not kept, and four in the backward, over the half that
 * is not masked. */
static double other_operations(const struct model *m, size_t T, size_t rank, size_t kept) {
    double again = (double)(m->L - kept), L = (double)m->L, rows = 0, cols = 0;
    for (int t = 0; t < TARGET_COUNT; t++) {
        rows += (double)m->layers[0].linear[t].rows;
        cols += (double)m->layers[0].linear[t].cols;
    }
    double unmasked = 0.5 * (double)T * (double)(T + 1);
    return 2.0 * ((double)T * (double)rank * (rows + cols) * (3 * L + again) +
                  (double)(m->H * m->D) * unmasked * (6 * L + 2 * again));
}

static void count(struct bench *b, const struct trainer *t, const struct example_set *set, const size_t *rows,
                  size_t n) {
    for (size_t i = 0; i < n; i++) {
        const struct example *e = &set->items[rows[i]];
        b->base_operations += base_operations(b->model, e->n - 1, e->n_supervised, b->kept);
        b->other_operations += other_operations(b->model, e->n - 1, t->config.lora.rank, b->kept);
        b->r.supervised_tokens += (int64_t)e->n_supervised;
    }
}

/* ---- rows of a file ---- */

struct reading {
    const struct model *model;
    struct example_set *set;
    size_t max_tokens;
};

static int take_row(const struct store_row *row, void *user, attune_error *err) {
    struct reading *r = user;
    int added;
    return example_add(r->set, r->model, row->messages, row->n_messages, row->response, row->content_hash,
                       row->prompt_hash, r->max_tokens, &added, err);
}

static int read_rows(struct bench *b, size_t max_tokens, struct example_set *set, attune_error *err) {
    struct reading reading = {b->model, set, max_tokens};
    if (!b->model->chat) {
        if (err) *err = b->model->chat_error;
        return b->model->chat_error.code;
    }
    int code = store_rows_from_file(b->o.rows, take_row, &reading, err);
    if (code == ATTUNE_OK && set->n == 0)
        code = error_set(err, ATTUNE_ERROR_ARGUMENT, b->o.rows, "there is nothing to learn from in this file");
    return code;
}

static int step(struct bench *b, struct trainer *trainer, const struct example_set *set, const size_t *rows, size_t n,
                float rate, attune_error *err) {
    size_t tokens;
    double loss, from = bench_now();
    int code = trainer_step(trainer, set, rows, n, rate, &loss, &tokens, err);
    if (code != ATTUNE_OK) return code;
    b->r.seconds_train += bench_now() - from;
    b->r.tokens += (int64_t)tokens;
    b->r.rows += (int64_t)n;
    b->r.steps++;
    b->r.loss = loss;
    count(b, trainer, set, rows, n);
    return ATTUNE_OK;
}

static int save(const struct bench *b, const struct trainer *trainer, attune_error *err) {
    struct adapter_record record = {.origin = "trained"};
    char sha256[65];
    return b->o.out ? adapter_write(trainer->lora, b->model, &record, b->o.out, "bench", sha256, err) : ATTUNE_OK;
}

static int train_rows(struct bench *b, struct trainer *trainer, const struct example_set *set, attune_error *err) {
    const struct train_config *c = &trainer->config;
    size_t epochs = b->o.epochs ? (size_t)b->o.epochs : 1, each = (set->n + c->batch - 1) / c->batch;
    size_t *rows = malloc(c->batch * sizeof *rows);
    int code = rows ? ATTUNE_OK : error_set_memory(err, "a step", c->batch * sizeof *rows);
    for (size_t s = 0; s < epochs * each && code == ATTUNE_OK; s++) {
        size_t n = 0;
        for (size_t i = s % each * c->batch; n < c->batch && i < set->n; i++) rows[n++] = i;
        code = step(b, trainer, set, rows, n, schedule_rate(c, s, epochs * each), err);
    }
    free(rows);
    if (code == ATTUNE_OK) code = save(b, trainer, err);
    b->r.seconds = bench_now() - b->from;
    return code;
}

/* ---- random tokens ---- */

static int one_example(const struct bench *b, struct example_set *set, attune_error *err) {
    struct example e = {.weight = 1, .n = b->tokens + 1, .n_supervised = b->tokens, .key = 1};
    e.ids = malloc(e.n * sizeof *e.ids);
    e.supervised = malloc(e.n);
    set->items = malloc(sizeof *set->items);
    if (!e.ids || !e.supervised || !set->items) {
        free(e.ids);
        free(e.supervised);
        return error_set_memory(err, "a text", e.n * sizeof *e.ids);
    }
    bench_random_tokens(e.ids, e.n, b->model->V);
    memset(e.supervised, 1, e.n);
    set->items[0] = e;
    set->n = 1;
    return ATTUNE_OK;
}

static int train_random(struct bench *b, struct trainer *trainer, const struct example_set *set, attune_error *err) {
    size_t row = 0, tokens;
    double loss;
    /* the first step brings memory and caches in */
    int code = trainer_step(trainer, set, &row, 1, 1e-4f, &loss, &tokens, err);
    for (int i = 0; code == ATTUNE_OK && (i < 2 || b->r.seconds_train < b->o.seconds); i++)
        code = step(b, trainer, set, &row, 1, 1e-4f, err);
    b->r.seconds = b->r.seconds_train;
    return code;
}

/* ---- both ---- */

/* As the job shares memory out, with nothing to judge. */
static int plan_memory(struct bench *b, const struct train_config *config, size_t rows, struct memory_plan *plan,
                       attune_error *err) {
    struct settings settings;
    settings_default(&settings);
    uint64_t ceiling = b->o.memory_bytes ? b->o.memory_bytes : settings.memory;
    settings.train = *config;
    settings.merge = MERGE_NONE;
    struct memory_needs needs = {
        .model = b->model, .settings = &settings, .threads = pool_threads(b->pool), .rows = rows};
    memory_plan_make(&needs, ceiling, plan);
    b->kept = plan->kept;
    if (plan->peak <= ceiling || !b->o.memory_bytes) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_ARGUMENT, "memory", "this takes at least %llu MiB, %llu are allowed",
                     (unsigned long long)(plan->least >> 20), (unsigned long long)(ceiling >> 20));
}

int bench_train(struct bench *b, attune_error *err) {
    struct example_set set = {0};
    struct trainer *trainer = NULL;
    struct train_config config;
    struct memory_plan plan;
    train_config_default(&config);
    if (b->o.rank) config.lora.rank = (size_t)b->o.rank;
    if (!b->o.rows || b->o.tokens) config.max_tokens = config.micro_tokens = b->tokens;
    config.precision = b->precision;
    int code = b->o.rows ? read_rows(b, config.max_tokens, &set, err) : one_example(b, &set, err);
    if (code == ATTUNE_OK) code = plan_memory(b, &config, set.n, &plan, err);
    if (code == ATTUNE_OK) code = trainer_create(b->model, b->pool, &config, NULL, &trainer, err);
    if (code == ATTUNE_OK) trainer->activation_bytes = plan.train_bytes;
    b->r.seconds_load = bench_now() - b->from;
    if (code == ATTUNE_OK)
        code = b->o.rows ? train_rows(b, trainer, &set, err) : train_random(b, trainer, &set, err);
    if (code == ATTUNE_OK) {
        b->r.tokens_per_s = (double)b->r.tokens / b->r.seconds;
        b->r.rows_per_s = (double)b->r.rows / b->r.seconds;
        b->r.supervised_tokens_per_s = (double)b->r.supervised_tokens / b->r.seconds;
        b->r.dropped_steps = (int64_t)trainer->dropped;
        b->r.gflops = 1e-9 * (b->base_operations + b->other_operations) / b->r.seconds_train;
    }
    trainer_destroy(trainer);
    example_set_free(&set);
    return code;
}
