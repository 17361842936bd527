/* What the tests of trainer/ share: a tiny model, conversations, a short training. */
#ifndef TESTS_TINY_TRAINING_H
#define TESTS_TINY_TRAINING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/packer.h"
#include "trainer/trainer.h"
#include "tests/expect.h"

enum { TINY_ROWS = 12 };

struct tiny {
    struct model *model;
    struct pool *pool;
    struct example_set set; /* TINY_ROWS conversations */
};

static inline struct model *tiny_model(void) {
    struct model *model = NULL;
    OK(model_open(ATTUNE_TEST_ROOT "/tests/golden/tiny_llama.gguf", FILE_READ, &model, &err));
    model_set_hash(model, "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef");
    return model;
}

/* Conversation i of any number; lengths differ. */
static inline void tiny_add(struct example_set *set, const struct model *model, int i, size_t max_tokens) {
    static const char *const things[] = {"the harbour", "a boat", "the old man", "bread and tea", "the letters"};
    static const char *const answers[] = {"the wind will turn before noon", "none of them was hers",
                                          "he sang to himself and mended his nets, and the fish came back"};
    char prompt[128], response[160], hash[65], prompt_hash[17];
    int added = 0;
    snprintf(prompt, sizeof prompt, "what of %s, number %d?", things[i % 5], i);
    snprintf(response, sizeof response, "%s.", answers[i % 3]);
    uint64_t number = (uint64_t)(i + 1);
    snprintf(hash, sizeof hash, "%016llx%048d", (unsigned long long)(0x9e3779b97f4a7c15u * number), 0);
    snprintf(prompt_hash, sizeof prompt_hash, "%016llx", (unsigned long long)(0xbf58476d1ce4e5b9u * number));
    attune_message messages[] = {{"user", prompt}};
    OK(example_add(set, model, messages, 1, response, hash, prompt_hash, max_tokens, &added, &err));
    assert_int_equal(added, 1);
}

static inline int tiny_setup(void **state) {
    struct tiny *tiny = calloc(1, sizeof *tiny);
    if (!tiny) return -1;
    tiny->model = tiny_model();
    OK(pool_create(2, &tiny->pool, &err));
    for (int i = 0; i < TINY_ROWS; i++) tiny_add(&tiny->set, tiny->model, i, 256);
    *state = tiny;
    return 0;
}
static inline int tiny_teardown(void **state) {
    struct tiny *tiny = *state;
    example_set_free(&tiny->set);
    pool_destroy(tiny->pool);
    model_close(tiny->model);
    free(tiny);
    return 0;
}

static inline struct train_config tiny_config(void) {
    struct train_config config;
    train_config_default(&config);
    config.lora = (struct lora_config){4, 8, LORA_ALL_TARGETS};
    config.learning_rate = 5e-3f;
    config.max_tokens = 256;
    config.micro_tokens = 256;
    return config;
}
static inline struct trainer *tiny_trainer(const struct tiny *tiny, const struct train_config *config) {
    struct trainer *trainer = NULL;
    OK(trainer_create(tiny->model, tiny->pool, config, NULL, &trainer, &err));
    return trainer;
}
/* One step over four conversations, which ones hangs on `step`; the loss. */
static inline double tiny_step(struct trainer *trainer, const struct tiny *tiny, size_t step) {
    size_t rows[4], tokens;
    double loss = NAN;
    for (size_t i = 0; i < 4; i++) rows[i] = (4 * step + i) % TINY_ROWS;
    OK(trainer_step(trainer, &tiny->set, rows, 4, trainer->config.learning_rate, &loss, &tokens, &err));
    return loss;
}

/* All that a step may change. */
static inline void assert_same_state(const struct trainer *a, const struct trainer *b) {
    assert_int_equal(a->lora->n, b->lora->n);
    assert_memory_equal(a->lora->parameters, b->lora->parameters, a->lora->n * sizeof(float));
    assert_memory_equal(a->adamw.m, b->adamw.m, a->lora->n * sizeof(float));
    assert_memory_equal(a->adamw.v, b->adamw.v, a->lora->n * sizeof(float));
    assert_int_equal(a->adamw.step, b->adamw.step);
    assert_int_equal(a->dropped, b->dropped);
}

#endif
