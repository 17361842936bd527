#include "adapters/merge.h"
#include "tests/tiny_training.h"

#include <pthread.h>
#include <unistd.h>

static double norm_of(const float *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}
static double distance(const float *x, const float *y, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += pow((double)x[i] - (double)y[i], 2);
    return sqrt(sum);
}

static void test_loss_falls(void **state) {
    const struct tiny *tiny = *state;
    struct train_config config = tiny_config();
    for (int dropout = 0; dropout < 2; dropout++) {
        config.dropout = 0.1f * (float)dropout;
        struct trainer *trainer = tiny_trainer(tiny, &config);
        double first = 0, last = 0;
        for (size_t step = 0; step < 30; step++) {
            double loss = tiny_step(trainer, tiny, step);
            if (step < 3) first += loss / 3;
            if (step >= 27) last += loss / 3;
        }
        assert_true(isfinite(first) && first > 3); /* a random model: about ln 349 */
        if (!(last < 0.7 * first)) fail_msg("loss %.3f at first, %.3f after 30 steps", first, last);
        assert_int_equal(trainer->adamw.step, 30);
        assert_int_equal(trainer->dropped, 0);
        trainer_destroy(trainer);
    }
}

/* The mean over conversations of their means, whatever their lengths: as evaluation counts it. */
static void test_loss_is_a_mean_of_means(void **state) {
    const struct tiny *tiny = *state;
    struct train_config config = tiny_config();
    config.precision = PRECISION_F32;
    struct trainer *trainer = tiny_trainer(tiny, &config);
    struct weights weights = {tiny->model, tiny->model->layers, trainer->lora->pairs};
    for (size_t step = 0; step < 3; step++) tiny_step(trainer, tiny, step);
    size_t rows[TINY_ROWS], tokens, put_through = 0;
    double loss, mean = 0, nll[TINY_ROWS], others[TINY_ROWS];
    for (size_t i = 0; i < TINY_ROWS; i++) rows[i] = (i * 5 + 2) % TINY_ROWS;
    for (size_t micro = 256; micro <= 4096; micro *= 4) {
        struct evaluator evaluator;
        struct evaluator_shape shape = {micro, 4, 1, 0};
        OK(evaluator_create(tiny->model, tiny->pool, &shape, 0, &evaluator, &err));
        OK(evaluator_run(&evaluator, &weights, NULL, &tiny->set, rows, TINY_ROWS, micro == 256 ? nll : others, &err));
        evaluator_free(&evaluator);
        for (size_t i = 0; i < TINY_ROWS && micro > 256; i++) assert_true(fabs(others[i] - nll[i]) < 1e-4 * nll[i]);
    }
    for (size_t i = 0; i < TINY_ROWS; i++) {
        const struct example *e = &tiny->set.items[rows[i]];
        assert_true(nll[i] / (double)e->n_supervised > 0.1 && nll[i] / (double)e->n_supervised < 10);
        mean += nll[i] / (double)e->n_supervised / TINY_ROWS;
        put_through += e->n - 1;
    }
    OK(trainer_step(trainer, &tiny->set, rows, TINY_ROWS, 0, &loss, &tokens, &err));
    assert_true(fabs(loss - mean) < 1e-5 * mean);
    assert_int_equal(tokens, put_through);
    trainer_destroy(trainer);
}

/* So is the gradient: a long conversation weighs what a short one does. */
static void test_gradient_is_a_mean(void **state) {
    const struct tiny *tiny = *state;
    struct train_config config = tiny_config();
    config.precision = PRECISION_F32;
    config.clip = 0;
    struct trainer *trainer = tiny_trainer(tiny, &config);
    tiny_step(trainer, tiny, 0);
    size_t n = trainer->lora->n, rows[3] = {0, 1, 2}, tokens;
    double loss;
    float *mean = calloc(n, sizeof *mean);
    assert_non_null(mean);
    assert_true(tiny->set.items[0].n_supervised != tiny->set.items[2].n_supervised);
    for (size_t r = 0; r < 3; r++) {
        OK(trainer_step(trainer, &tiny->set, rows + r, 1, 0, &loss, &tokens, &err));
        for (size_t i = 0; i < n; i++) mean[i] += trainer->gradient[i] / 3;
    }
    OK(trainer_step(trainer, &tiny->set, rows, 3, 0, &loss, &tokens, &err));
    assert_true(distance(mean, trainer->gradient, n) < 1e-5 * norm_of(mean, n));
    free(mean);
    trainer_destroy(trainer);
}

/* A step in one micro-batch, and the same in one for each conversation. */
static void test_accumulation(void **state) {
    const struct tiny *tiny = *state;
    struct train_config config = tiny_config();
    size_t longest = 0;
    for (size_t i = 0; i < TINY_ROWS; i++) longest = tiny->set.items[i].n > longest ? tiny->set.items[i].n : longest;
    for (int dropout = 0; dropout < 2; dropout++) {
        config.dropout = 0.3f * (float)dropout;
        config.clip = 0;
        struct trainer *few, *one;
        double a, b;
        config.max_tokens = config.micro_tokens = longest;
        few = tiny_trainer(tiny, &config);
        config.micro_tokens = 2048;
        one = tiny_trainer(tiny, &config);
        for (size_t i = 0; i < one->lora->n; i++) /* B is not zero: dA is not either */
            one->lora->parameters[i] = few->lora->parameters[i] = 0.02f * (float)((i * 37) % 11) - 0.1f;
        a = tiny_step(few, tiny, 0);
        b = tiny_step(one, tiny, 0);
        assert_true(fabs(a - b) < 1e-5 * b);
        double size = norm_of(one->gradient, one->lora->n);
        assert_true(size > 1e-3);
        assert_true(distance(few->gradient, one->gradient, one->lora->n) < 1e-5 * size);
        trainer_destroy(few);
        trainer_destroy(one);
    }
}

static void test_clipping(void **state) {
    const struct tiny *tiny = *state;
    struct train_config config = tiny_config();
    config.clip = 0;
    struct trainer *plain = tiny_trainer(tiny, &config);
    tiny_step(plain, tiny, 0);
    size_t n = plain->lora->n;
    double size = norm_of(plain->gradient, n);
    config.clip = (float)(size * 1.01);
    struct trainer *loose = tiny_trainer(tiny, &config);
    tiny_step(loose, tiny, 0);
    assert_same_state(plain, loose);
    config.clip = (float)(size / 7);
    struct trainer *tight = tiny_trainer(tiny, &config);
    tiny_step(tight, tiny, 0);
    /* the first moments are (1 - beta1) times what the update saw */
    double moments = norm_of(plain->adamw.m, n);
    assert_true(fabs(norm_of(tight->adamw.m, n) - moments / 7) < 1e-5 * moments);
    for (size_t i = 0; i < n; i++) tight->adamw.m[i] *= 7;
    assert_true(distance(tight->adamw.m, plain->adamw.m, n) < 1e-5 * moments);
    trainer_destroy(plain);
    trainer_destroy(loose);
    trainer_destroy(tight);
}

/* ---- steps that are not made ---- */

struct kept {
    float *parameters, *m, *v;
    size_t n, step;
};
static struct kept keep(const struct trainer *t) {
    struct kept k = {.n = t->lora->n, .step = t->adamw.step};
    float **to[] = {&k.parameters, &k.m, &k.v};
    const float *from[] = {t->lora->parameters, t->adamw.m, t->adamw.v};
    for (int i = 0; i < 3; i++) {
        *to[i] = malloc(k.n * sizeof(float));
        assert_non_null(*to[i]);
        memcpy(*to[i], from[i], k.n * sizeof(float));
    }
    return k;
}
static int is_kept(const struct trainer *t, const struct kept *k) {
    return t->adamw.step == k->step && memcmp(t->lora->parameters, k->parameters, k->n * sizeof(float)) == 0 &&
           memcmp(t->adamw.m, k->m, k->n * sizeof(float)) == 0 && memcmp(t->adamw.v, k->v, k->n * sizeof(float)) == 0;
}
static void kept_free(struct kept *k) {
    free(k->parameters);
    free(k->m);
    free(k->v);
}

static void check_dropped(struct trainer *trainer, const struct tiny *tiny) {
    struct kept before = keep(trainer);
    for (size_t i = 1; i <= 2; i++) {
        double loss = tiny_step(trainer, tiny, i);
        assert_true(isnan(loss));
        assert_int_equal(trainer->dropped, i);
        assert_true(is_kept(trainer, &before));
    }
    kept_free(&before);
}
static void test_steps_that_are_not_finite(void **state) {
    const struct tiny *tiny = *state;
    struct train_config config = tiny_config();
    struct trainer *trainer = tiny_trainer(tiny, &config), *sound = tiny_trainer(tiny, &config);
    tiny_step(trainer, tiny, 0);
    float was = trainer->lora->parameters[17];
    trainer->lora->parameters[17] = NAN;
    check_dropped(trainer, tiny);
    trainer->lora->parameters[17] = was;
    assert_true(isfinite(tiny_step(trainer, tiny, 3)));
    assert_int_equal(trainer->adamw.step, 2);
    assert_int_equal(trainer->dropped, 2);

    /* a rate that throws the parameters so far that no loss comes out any more */
    trainer_reset(trainer, NULL);
    trainer->config.learning_rate = 1e30f;
    assert_true(isfinite(tiny_step(trainer, tiny, 0)));
    check_dropped(trainer, tiny);

    /* and back to the start */
    trainer->config.learning_rate = config.learning_rate;
    trainer_reset(trainer, NULL);
    assert_same_state(trainer, sound);
    assert_true(tiny_step(trainer, tiny, 0) == tiny_step(sound, tiny, 0));
    assert_same_state(trainer, sound);
    trainer_destroy(trainer);
    trainer_destroy(sound);
}

static int cancelled_step(struct trainer *trainer, const struct tiny *tiny, size_t step) {
    size_t rows[4], tokens;
    double loss;
    attune_error err = {0};
    for (size_t i = 0; i < 4; i++) rows[i] = (4 * step + i) % TINY_ROWS;
    return trainer_step(trainer, &tiny->set, rows, 4, trainer->config.learning_rate, &loss, &tokens, &err);
}
static void test_cancelled_before(void **state) {
    const struct tiny *tiny = *state;
    struct train_config config = tiny_config();
    config.dropout = 0.1f;
    struct trainer *trainer = tiny_trainer(tiny, &config), *sound = tiny_trainer(tiny, &config);
    tiny_step(trainer, tiny, 0);
    struct kept before = keep(trainer);
    pool_cancel(tiny->pool);
    assert_int_equal(cancelled_step(trainer, tiny, 1), ATTUNE_ERROR_CANCELLED);
    pool_cancel_clear(tiny->pool);
    assert_true(is_kept(trainer, &before));
    assert_int_equal(trainer->dropped, 0);
    for (size_t step = 0; step < 2; step++) tiny_step(sound, tiny, step);
    tiny_step(trainer, tiny, 1);
    assert_same_state(trainer, sound);
    kept_free(&before);
    trainer_destroy(trainer);
    trainer_destroy(sound);
}

struct canceller {
    struct pool *pool;
    useconds_t after;
};
static void *cancel_later(void *argument) {
    const struct canceller *c = argument;
    usleep(c->after);
    pool_cancel(c->pool);
    return NULL;
}
/* At any moment of a step: it is made, or nothing has changed. */
static void test_cancelled_amid(void **state) {
    const struct tiny *tiny = *state;
    struct train_config config = tiny_config();
    config.dropout = 0.1f;
    config.micro_tokens = 256;
    struct trainer *trainer = tiny_trainer(tiny, &config), *sound = tiny_trainer(tiny, &config);
    size_t made = 0, cancelled = 0;
    /* later and later, however slow the machine is: in the end steps are made */
    for (double after = 50; made < 4; after *= 1.25) {
        struct canceller c = {tiny->pool, (useconds_t)after};
        struct kept before = keep(trainer);
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, cancel_later, &c), 0);
        int code = cancelled_step(trainer, tiny, made);
        assert_int_equal(pthread_join(thread, NULL), 0);
        pool_cancel_clear(tiny->pool);
        if (code == ATTUNE_OK) {
            made++;
        } else {
            assert_int_equal(code, ATTUNE_ERROR_CANCELLED);
            assert_true(is_kept(trainer, &before));
            cancelled++;
        }
        kept_free(&before);
    }
    assert_true(made > 0 && cancelled > 0);
    for (size_t step = 0; step < made; step++) tiny_step(sound, tiny, step);
    assert_same_state(trainer, sound);
    trainer_destroy(trainer);
    trainer_destroy(sound);
}

/* ---- the same bytes ---- */

static void test_any_number_of_threads(void **state) {
    const struct tiny *tiny = *state;
    static const int counts[] = {1, 2, 3, 8};
    struct train_config config = tiny_config();
    config.dropout = 0.1f;
    config.weight_decay = 0.01f;
    struct trainer *first = NULL;
    struct pool *first_pool = NULL;
    for (size_t c = 0; c < 4; c++) {
        struct tiny with = *tiny;
        OK(pool_create(counts[c], &with.pool, &err));
        struct trainer *trainer = tiny_trainer(&with, &config);
        for (size_t step = 0; step < 3; step++) tiny_step(trainer, &with, step);
        if (!first) {
            first = trainer;
            first_pool = with.pool;
            continue;
        }
        assert_same_state(trainer, first);
        trainer_destroy(trainer);
        pool_destroy(with.pool);
    }
    trainer_destroy(first);
    pool_destroy(first_pool);
}

/* Memory given back between steps, and taken again. */
static void test_release(void **state) {
    const struct tiny *tiny = *state;
    struct train_config config = tiny_config();
    struct trainer *kept = tiny_trainer(tiny, &config), *released = tiny_trainer(tiny, &config);
    for (size_t step = 0; step < 3; step++) {
        tiny_step(kept, tiny, step);
        trainer_release(released);
        tiny_step(released, tiny, step);
        trainer_release(released);
        trainer_release(released);
    }
    assert_same_state(kept, released);
    trainer_destroy(kept);
    trainer_destroy(released);
}

static void test_seed_and_start(void **state) {
    const struct tiny *tiny = *state;
    struct train_config config = tiny_config();
    struct trainer *one = tiny_trainer(tiny, &config), *again = tiny_trainer(tiny, &config), *other, *warm = NULL;
    assert_same_state(one, again);
    config.seed = 2;
    other = tiny_trainer(tiny, &config);
    assert_memory_not_equal(one->lora->parameters, other->lora->parameters, one->lora->n * sizeof(float));
    tiny_step(one, tiny, 0);
    OK(trainer_create(tiny->model, tiny->pool, &config, one->lora, &warm, &err));
    assert_memory_equal(warm->lora->parameters, one->lora->parameters, one->lora->n * sizeof(float));
    assert_int_equal(warm->adamw.step, 0);
    for (size_t i = 0; i < warm->lora->n; i++) assert_true(warm->adamw.m[i] == 0 && warm->adamw.v[i] == 0);
    tiny_step(warm, tiny, 1);
    trainer_reset(warm, one->lora);
    assert_memory_equal(warm->lora->parameters, one->lora->parameters, one->lora->n * sizeof(float));
    assert_int_equal(warm->adamw.step, 0);
    assert_in_range(trainer_state_bytes(tiny->model, &config), 16 * one->lora->n,
                    16 * one->lora->n + packer_bytes(256) + 8192);
    trainer_destroy(one);
    trainer_destroy(again);
    trainer_destroy(other);
    trainer_destroy(warm);
    trainer_destroy(NULL);
}

/* ---- memory ---- */

/* However many layers are kept, and by however many threads: the same bytes. */
static void test_any_memory(void **state) {
    const struct tiny *tiny = *state;
    static const int threads[] = {1, 2, 3, 8};
    for (int dropout = 0; dropout < 2; dropout++) {
        struct train_config config = tiny_config();
        config.dropout = 0.3f * (float)dropout;
        struct trainer *all = tiny_trainer(tiny, &config);
        for (size_t step = 0; step < 3; step++) tiny_step(all, tiny, step);
        for (size_t i = 0; i < 4; i++) {
            struct tiny other = *tiny;
            OK(pool_create(threads[i], &other.pool, &err));
            struct pass_shape shape = trainer_pass_shape(tiny->model, threads[i], &config, SIZE_MAX);
            assert_int_equal(shape.kept, tiny->model->L);
            const size_t kept[] = {1, tiny->model->L / 2 + 1, tiny->model->L};
            for (size_t k = 0; k < 3; k++) {
                struct trainer *some = tiny_trainer(&other, &config);
                shape = trainer_pass_shape(tiny->model, threads[i], &config, 0);
                shape.kept = kept[k];
                some->activation_bytes = k == 0 ? 0 : training_pass_bytes(tiny->model, threads[i], &shape);
                for (size_t step = 0; step < 3; step++) tiny_step(some, tiny, step);
                assert_same_state(all, some);
                trainer_destroy(some);
            }
            pool_destroy(other.pool);
        }
        trainer_destroy(all);
    }
}

/* Evaluation of several micro-batches layer by layer, the layers merged when they are reached: the same bits as one by
 * one over a merged model. */
static void test_layer_by_layer(void **state) {
    const struct tiny *tiny = *state;
    struct train_config config = tiny_config();
    struct trainer *trainer = tiny_trainer(tiny, &config);
    struct merged *merged = NULL;
    struct layer_merge *merge = NULL;
    size_t rows[TINY_ROWS], reach = 0;
    double whole[TINY_ROWS], pieces[TINY_ROWS];
    for (size_t step = 0; step < 3; step++) tiny_step(trainer, tiny, step);
    for (size_t i = 0; i < TINY_ROWS; i++) rows[i] = i;
    OK(merge_create(tiny->model, trainer->lora, MERGE_F16, tiny->pool, NULL, &merged, &err));
    OK(layer_merge_create(tiny->model, trainer->lora, MERGE_F16, tiny->pool, &merge, &err));
    struct layer_maker maker = {layer_merge_make, merge};
    struct weights of_merged = {tiny->model, merge_layers(merged), NULL};
    struct weights of_base = {tiny->model, tiny->model->layers, NULL};
    for (size_t together = 1; together <= 8; together += together == 1 ? 2 : 5) {
        struct evaluator evaluator;
        struct evaluator_shape shape = {256, 4, together, 0};
        OK(evaluator_create(tiny->model, tiny->pool, &shape, together == 3 ? SIZE_MAX : 0, &evaluator, &err));
        OK(evaluator_run(&evaluator, &of_base, &maker, &tiny->set, rows, TINY_ROWS, pieces, &err));
        if (together == 1)
            OK(evaluator_run(&evaluator, &of_merged, NULL, &tiny->set, rows, TINY_ROWS, whole, &err));
        assert_memory_equal(whole, pieces, sizeof whole);
        size_t n = evaluator_rows(&shape, &tiny->set, rows, TINY_ROWS);
        assert_true(n > reach && n <= TINY_ROWS);
        reach = n;
        /* cut there, it is the same */
        OK(evaluator_run(&evaluator, &of_base, &maker, &tiny->set, rows, n, pieces, &err));
        OK(evaluator_run(&evaluator, &of_base, &maker, &tiny->set, rows + n, TINY_ROWS - n, pieces + n, &err));
        assert_memory_equal(whole, pieces, sizeof whole);
        /* a layer that cannot be made */
        pool_cancel(tiny->pool);
        assert_int_equal(evaluator_run(&evaluator, &of_base, &maker, &tiny->set, rows, n, pieces, NULL),
                         ATTUNE_ERROR_CANCELLED);
        pool_cancel_clear(tiny->pool);
        evaluator_free(&evaluator);
    }
    struct evaluator none;
    struct evaluator_shape too_many = {256, 4, 65, 0};
    assert_int_equal(evaluator_create(tiny->model, tiny->pool, &too_many, 0, &none, NULL), ATTUNE_ERROR_ARGUMENT);
    layer_merge_destroy(merge);
    merge_destroy(merged);
    trainer_destroy(trainer);
}

/* ---- what is refused ---- */

static void test_refused(void **state) {
    const struct tiny *tiny = *state;
    struct train_config config = tiny_config();
    struct trainer *trainer = tiny_trainer(tiny, &config), *out = NULL;
    attune_error err = {0};
    struct train_config wrong[] = {config, config, config, config, config, config, config, config, config, config,
                                   config, config, config, config, config, config, config, config, config};
    size_t k = 0;
    wrong[k++].max_tokens = 1;
    wrong[k++].micro_tokens = 255;
    wrong[k++].learning_rate = NAN;
    wrong[k++].learning_rate = -1e-3f;
    wrong[k++].learning_rate = INFINITY;
    wrong[k++].dropout = 1;
    wrong[k++].dropout = -0.1f;
    wrong[k++].dropout = NAN;
    wrong[k++].beta1 = 1;
    wrong[k++].beta2 = NAN;
    wrong[k++].epsilon = 0;
    wrong[k++].weight_decay = -1;
    wrong[k++].clip = -1;
    wrong[k++].warmup = 1.5f;
    wrong[k++].batch = 0;
    wrong[k++].lora.rank = 0;
    wrong[k++].lora.rank = LORA_RANK_MAX + 1;
    wrong[k++].lora.alpha = NAN;
    wrong[k++].lora.targets = 0;
    assert_int_equal(k, sizeof wrong / sizeof *wrong);
    for (size_t i = 0; i < k; i++) {
        err = (attune_error){0};
        if (trainer_create(tiny->model, tiny->pool, &wrong[i], NULL, &out, &err) != ATTUNE_ERROR_ARGUMENT)
            fail_msg("configuration %zu was not refused", i);
        assert_true(*err.message);
        assert_null(out);
    }
    struct train_config others[] = {config, config, config};
    others[0].lora.rank = 5;
    others[1].lora.alpha = 9;
    others[2].lora.targets = 1 << TARGET_Q;
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(trainer_create(tiny->model, tiny->pool, &others[i], trainer->lora, &out, &err),
                         ATTUNE_ERROR_MISMATCH);
        assert_null(out);
    }
    trainer_destroy(trainer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loss_falls),       cmocka_unit_test(test_loss_is_a_mean_of_means),
        cmocka_unit_test(test_gradient_is_a_mean),
        cmocka_unit_test(test_accumulation),     cmocka_unit_test(test_clipping),
        cmocka_unit_test(test_steps_that_are_not_finite), cmocka_unit_test(test_cancelled_before),
        cmocka_unit_test(test_cancelled_amid),   cmocka_unit_test(test_any_number_of_threads),
        cmocka_unit_test(test_release),          cmocka_unit_test(test_seed_and_start),
        cmocka_unit_test(test_any_memory),       cmocka_unit_test(test_layer_by_layer),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, tiny_setup, tiny_teardown);
}
