/* Does attune learn what PEFT learns? One pass over the first rows of a file, in order, at PEFT's plain settings:
 * rank 8, alpha 16, all seven modules, AdamW without decay, clipping or warm-up, rate 1e-3 constant, 4 conversations a
 * step; loss per supervised token over the first rows of another file, before and after 20, 64 and 256 rows.
 *
 *   learning BASE TRAIN.jsonl TEST.jsonl [ROWS] [TEST_ROWS] */
#include "bench/limits.h"
#include "datastore/store.h"
#include "trainer/trainer.h"

#include <stdio.h>
#include <stdlib.h>

enum { MAX_TOKENS = 384, BATCH = 4 };

struct reading {
    const struct model *model;
    struct example_set set;
    size_t wanted;
};
static int take(const struct store_row *row, void *user, attune_error *err) {
    struct reading *r = user;
    int added;
    if (r->set.n == r->wanted) return ATTUNE_DONE;
    return example_add(&r->set, r->model, row->messages, row->n_messages, row->response, row->content_hash,
                       row->prompt_hash, MAX_TOKENS, &added, err);
}

struct state {
    struct model *model;
    struct pool *pool;
    struct trainer *trainer;
    struct reading train, test;
};

static int loss_now(struct state *s, double *loss, attune_error *err) {
    struct evaluator evaluator;
    struct weights weights = {s->model, s->model->layers, s->trainer->lora->pairs};
    double sum = 0, tokens = 0, nll[4096];
    size_t rows[4096], n = s->test.set.n < 4096 ? s->test.set.n : 4096;
    struct evaluator_shape shape = {512, s->trainer->config.lora.rank, 1, 0};
    int code = evaluator_create(s->model, s->pool, &shape, 0, &evaluator, err);
    if (code != ATTUNE_OK) return code;
    for (size_t i = 0; i < n; i++) rows[i] = i;
    code = evaluator_run(&evaluator, &weights, NULL, &s->test.set, rows, n, nll, err);
    evaluator_free(&evaluator);
    for (size_t i = 0; i < n && code == ATTUNE_OK; i++) {
        sum += nll[i];
        tokens += (double)s->test.set.items[i].n_supervised;
    }
    *loss = sum / tokens;
    return code;
}

static int learn(struct state *s, size_t rows, attune_error *err) {
    double loss, held_out, from = bench_now(), training = 0;
    size_t tokens = 0, step_tokens, batch[BATCH];
    int code = loss_now(s, &held_out, err);
    printf("{\"base\": %.4f", held_out);
    for (size_t done = 0; done < rows && code == ATTUNE_OK;) {
        size_t n = 0;
        while (n < BATCH && done + n < rows) {
            batch[n] = done + n;
            n++;
        }
        from = bench_now();
        code = trainer_step(s->trainer, &s->train.set, batch, n, s->trainer->config.learning_rate, &loss, &step_tokens, err);
        training += bench_now() - from;
        tokens += step_tokens;
        done += n;
        if (code == ATTUNE_OK && (done == 20 || done == 64 || done == rows)) {
            code = loss_now(s, &held_out, err);
            printf(", \"%zu\": %.4f", done, held_out);
            fflush(stdout);
        }
    }
    printf(", \"tokens_per_s\": %.1f}\n", (double)tokens / training);
    return code;
}

int main(int argc, char **argv) {
    struct state s = {0};
    struct train_config config;
    attune_error err = {0};
    if (argc < 4) {
        fprintf(stderr, "usage: learning BASE TRAIN.jsonl TEST.jsonl [ROWS] [TEST_ROWS]\n");
        return 2;
    }
    s.train.wanted = argc > 4 ? strtoul(argv[4], NULL, 10) : 256;
    s.test.wanted = argc > 5 ? strtoul(argv[5], NULL, 10) : 100;
    int code = pool_create(0, &s.pool, &err);
    if (code == ATTUNE_OK) code = model_open(argv[1], FILE_MAP, &s.model, &err);
    s.train.model = s.test.model = s.model;
    if (code == ATTUNE_OK) code = store_rows_from_file(argv[2], take, &s.train, &err);
    if (code == ATTUNE_OK || code == ATTUNE_DONE) code = store_rows_from_file(argv[3], take, &s.test, &err);
    train_config_default(&config);
    config.clip = 0;
    config.learning_rate = 1e-3f;
    config.micro_tokens = 512;
    config.max_tokens = MAX_TOKENS;
    if (code == ATTUNE_OK || code == ATTUNE_DONE)
        code = trainer_create(s.model, s.pool, &config, NULL, &s.trainer, &err);
    if (code == ATTUNE_OK) code = learn(&s, s.train.set.n, &err);
    if (code != ATTUNE_OK) fprintf(stderr, "learning: %s (%s)\n", err.message, err.where);
    trainer_destroy(s.trainer);
    example_set_free(&s.train.set);
    example_set_free(&s.test.set);
    model_close(s.model);
    pool_destroy(s.pool);
    return code == ATTUNE_OK ? 0 : 1;
}
