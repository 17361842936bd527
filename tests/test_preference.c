/* Steps over pairs and thumbs beside answers to say: against PyTorch, against differences, and bit for bit. */
#include "core/base/random.h"
#include "core/kernels/kernels.h"
#include "tests/golden_file.h"
#include "tests/tiny_training.h"
#include "trainer/objective.h"

/* ---- rows ---- */

enum { ROWS = 9 };
static const char *const answers[] = {"the wind will turn before noon", "none of them was hers",
                                      "he sang to himself and mended his nets, and the fish came back"};

/* Of three kinds in turn: answer, pair, thumb. rows: their places in the set. */
static void add_mixed(struct example_set *set, const struct model *model, size_t rows[ROWS]) {
    for (int i = 0; i < ROWS; i++) {
        char prompt[64], hash[65], prompt_hash[17];
        int added = 0;
        snprintf(prompt, sizeof prompt, "what of the boats, number %d?", i);
        snprintf(hash, sizeof hash, "%016llx%048d", (unsigned long long)(0x9e3779b97f4a7c15u * (uint64_t)(i + 7)), 0);
        snprintf(prompt_hash, sizeof prompt_hash, "%016x", i + 1);
        attune_message messages[] = {{"user", prompt}};
        const char *answer = answers[i % 2], *other = answers[2];
        rows[i] = set->n;
        if (i % 3 == 0)
            OK(example_add(set, model, messages, 1, answer, hash, prompt_hash, 256, &added, &err));
        else if (i % 3 == 1)
            OK(example_add_preference(set, model, messages, 1, answer, other, hash, prompt_hash, 256, &added, &err));
        else
            OK(example_add_thumb(set, model, messages, 1, i % 2 ? answer : other, i % 2 ? 1 : -1, hash, prompt_hash,
                                 256, &added, &err));
        assert_int_equal(added, 1);
        set->items[rows[i]].weight = i % 4 == 3 ? 0.6 : 1;
    }
}

static void test_examples(void **state) {
    const struct tiny *tiny = *state;
    struct example_set set = {0};
    attune_message messages[] = {{"user", "the boats?"}};
    static const char hash[] = "00000000000000ff000000000000000000000000000000000000000000000000";
    int added;
    OK(example_add_preference(&set, tiny->model, messages, 1, "gone", "here, all of them", hash, "1", 256, &added,
                              &err));
    assert_int_equal(added, 1);
    assert_int_equal(set.n, 2);
    assert_int_equal(set.items[0].kind, EXAMPLE_PREFERENCE);
    assert_int_equal(set.items[1].kind, EXAMPLE_REJECTED);
    assert_true(set.items[0].n < set.items[1].n);
    assert_true(set.items[0].key == 0xff && set.items[1].key != 0xff);
    assert_string_equal(set.items[1].hash, hash);
    assert_true(set.items[0].reference && set.items[1].reference && set.items[0].reference->of == 0);
    assert_float_equal(set.items[0].weight, 1, 0);
    /* nothing to prefer: the same answers, or the same as far as they are read; or no room for one of them */
    OK(example_add_preference(&set, tiny->model, messages, 1, "gone", "gone", hash, "1", 256, &added, &err));
    assert_int_equal(added, 0);
    OK(example_add_preference(&set, tiny->model, messages, 1, "gone", "here", hash, "1", 4, &added, &err));
    assert_int_equal(added, 0);
    OK(example_add_thumb(&set, tiny->model, messages, 1, "gone", 1, hash, "1", 4, &added, &err));
    assert_int_equal(added, 0);
    size_t before = set.n;
    OK(example_add_thumb(&set, tiny->model, messages, 1, "gone", -1, hash, "1", 256, &added, &err));
    assert_int_equal(set.n, before + 1);
    assert_int_equal(set.items[before].kind, EXAMPLE_THUMB);
    assert_int_equal(set.items[before].label, -1);
    example_set_free(&set);
}

/* ---- against PyTorch (tests/reference/preference.py) ---- */

static void add_golden(struct example_set *set, struct golden *g, uint32_t kind, int32_t label, float weight) {
    static struct golden_conversation c;
    golden_conversation(g, &c);
    struct example e = {.kind = (enum example_kind)kind, .label = label, .weight = (double)weight, .n = c.T,
                        .key = set->n + 1};
    e.ids = malloc(c.T * sizeof *e.ids);
    e.supervised = malloc(c.T);
    memcpy(e.ids, c.ids, c.T * sizeof *e.ids);
    memcpy(e.supervised, c.mask, c.T);
    for (uint32_t i = 1; i < c.T; i++) e.n_supervised += c.mask[i];
    if (kind != EXAMPLE_SFT) e.reference = calloc(1, sizeof *e.reference);
    set->items = realloc(set->items, (set->n + 1) * sizeof *set->items);
    set->items[set->n++] = e;
}

static struct lora *golden_lora(const struct model *model, const struct lora_config *config, float span) {
    struct lora *lora = NULL;
    OK(lora_create(model, config, &lora, &err));
    for (size_t l = 0; l < model->L; l++)
        for (int t = 0; t < TARGET_COUNT; t++) {
            const struct matrix *w = &model->layers[l].linear[t];
            size_t a, b;
            uint64_t key = 1000 + 2 * (l * 7 + (size_t)t);
            assert_true(lora_pair_offset(lora, model, l, (enum target)t, &a, &b));
            for (size_t i = 0; i < config->rank * w->cols; i++)
                lora->parameters[a + i] = (random_uniform(key, i) - 0.5f) * span;
            for (size_t i = 0; i < config->rank * w->rows; i++)
                lora->parameters[b + i] = (random_uniform(key + 1, i) - 0.5f) * span;
        }
    return lora;
}

/* Relative, of each tensor: in the golden file layer by layer, target by target, A then B. */
static void check_gradient(struct golden *g, const struct model *model, const struct trainer *trainer) {
    assert_int_equal(golden_u32(g), trainer->lora->n);
    for (size_t k = 0; k < model->L * TARGET_COUNT * 2; k++) {
        size_t l = k / (2 * TARGET_COUNT), t = k / 2 % TARGET_COUNT, a, b;
        const struct matrix *w = &model->layers[l].linear[t];
        assert_true(lora_pair_offset(trainer->lora, model, l, (enum target)t, &a, &b));
        const float *x = trainer->gradient + (k & 1 ? b : a);
        double size = 0, error = 0;
        for (size_t i = 0; i < trainer->config.lora.rank * (k & 1 ? w->rows : w->cols); i++) {
            double wanted = (double)golden_f32(g);
            size += wanted * wanted;
            error += pow((double)x[i] - wanted, 2);
        }
        if (!(sqrt(error) < 2e-4 * sqrt(size)))
            fail_msg("gradient of layer %zu %s %c is off by %g", l, target_names[t], "AB"[k & 1], sqrt(error / size));
    }
}

static void check_variation(struct golden *g, const struct tiny *tiny, const struct example_set *set,
                            const size_t *rows, size_t n, struct train_config config, float span) {
    struct trainer *trainer = NULL;
    size_t tokens;
    double loss;
    config.preference.beta = golden_f32(g);
    config.preference.mean = (int)golden_u32(g);
    config.preference.dpo = golden_f32(g);
    config.preference.sft = golden_f32(g);
    config.preference.up = golden_f32(g);
    config.preference.down = golden_f32(g);
    struct lora *lora = golden_lora(tiny->model, &config.lora, span);
    OK(trainer_create(tiny->model, tiny->pool, &config, NULL, &trainer, &err));
    memcpy(trainer->lora->parameters, lora->parameters, lora->n * sizeof(float));
    OK(trainer_step(trainer, set, rows, n, 0, &loss, &tokens, &err));
    double wanted = (double)golden_f32(g), margin = (double)golden_f32(g);
    const struct step_losses *losses = trainer_step_losses(trainer);
    if (!(fabs(loss - wanted) < 1e-5 * wanted)) fail_msg("loss %.7f, wanted %.7f", loss, wanted);
    assert_true(fabs(margin) > 1e-3 && fabs(losses->margin - margin) < 2e-4);
    assert_int_equal(losses->won, golden_u32(g));
    check_gradient(g, tiny->model, trainer);

    trainer_reset(trainer, lora);
    float rate = golden_f32(g);
    for (size_t step = 0; step < 10; step++) {
        size_t which[5];
        for (size_t i = 0; i < 5; i++) which[i] = rows[(3 * step + i) % n];
        OK(trainer_step(trainer, set, which, 5, rate, &loss, &tokens, &err));
        wanted = (double)golden_f32(g);
        if (!(fabs(loss - wanted) < 2e-4 * wanted)) fail_msg("step %zu: loss %.7f, wanted %.7f", step, loss, wanted);
    }
    lora_destroy(lora);
    trainer_destroy(trainer);
}

static void test_pytorch(void **state) {
    const struct tiny *tiny = *state;
    struct golden g = golden_open("preference.bin");
    struct example_set set = {0};
    struct train_config config = tiny_config();
    size_t rows[16];
    config.clip = 0;
    config.precision = PRECISION_F32;
    config.lora.rank = golden_u32(&g);
    config.lora.alpha = golden_f32(&g);
    float span = golden_f32(&g);
    uint32_t n = golden_u32(&g);
    assert_true(n <= 16);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t kind = golden_u32(&g);
        int32_t label = (int32_t)golden_u32(&g);
        float weight = golden_f32(&g);
        rows[i] = set.n;
        add_golden(&set, &g, kind, label, weight);
        if (kind == EXAMPLE_PREFERENCE) add_golden(&set, &g, EXAMPLE_REJECTED, 0, weight);
    }
    for (uint32_t v = golden_u32(&g); v > 0; v--) check_variation(&g, tiny, &set, rows, n, config, span);
    assert_true(golden_done(&g));
    golden_close(&g);
    example_set_free(&set);
}

/* ---- by itself ---- */

struct mixed {
    struct example_set set;
    size_t rows[ROWS];
};
static struct mixed mixed_rows(const struct tiny *tiny) {
    struct mixed mixed = {0};
    add_mixed(&mixed.set, tiny->model, mixed.rows);
    return mixed;
}
static double step(struct trainer *trainer, const struct mixed *mixed, const size_t *rows, size_t n, float rate) {
    size_t tokens;
    double loss = NAN;
    OK(trainer_step(trainer, &mixed->set, rows, n, rate, &loss, &tokens, &err));
    return loss;
}
/* Four rows of all kinds, which ones hangs on k. */
static double mixed_step(struct trainer *trainer, const struct mixed *mixed, size_t k) {
    size_t which[4];
    for (size_t i = 0; i < 4; i++) which[i] = mixed->rows[(4 * k + i) % ROWS];
    return step(trainer, mixed, which, 4, trainer->config.learning_rate);
}
static void make_start(struct lora *lora) {
    for (size_t i = 0; i < lora->n; i++) lora->parameters[i] = 0.02f * (float)((i * 37) % 11) - 0.1f;
}

/* At the start nothing is preferred: margins are 0 and the losses ln 2 and 1/2, to the last bit; from the base, and
 * from an adapter. In whatever company a row comes. */
static void test_start(void **state) {
    const struct tiny *tiny = *state;
    struct mixed mixed = mixed_rows(tiny);
    for (int from = 0; from < 2; from++)
        for (int precision = 0; precision < 2; precision++) {
            struct train_config config = tiny_config();
            struct lora *start = NULL;
            struct trainer *trainer = NULL;
            config.precision = precision ? PRECISION_F32 : PRECISION_AUTO;
            config.preference = (struct preference_config){0.1f, 0, 1, 0, 1, 1};
            config.dropout = 0.3f;
            OK(lora_create(tiny->model, &config.lora, &start, &err));
            make_start(start);
            OK(trainer_create(tiny->model, tiny->pool, &config, from ? start : NULL, &trainer, &err));
            for (size_t i = 0; i < ROWS; i++) {
                const struct step_losses *losses = trainer_step_losses(trainer);
                double loss = step(trainer, &mixed, &mixed.rows[i], 1, 0);
                if (i % 3 == 1) assert_true(loss == log(2) && losses->margin == 0 && losses->won == 0);
                if (i % 3 == 2) assert_true(loss == 0.5);
                assert_int_equal(losses->pairs, i % 3 == 1);
                assert_int_equal(losses->thumbs, i % 3 == 2);
            }
            step(trainer, &mixed, mixed.rows, ROWS, 0);
            if (strcmp(kernels_get()->name, "openblas") != 0) {
                const struct step_losses *losses = trainer_step_losses(trainer);
                assert_true(losses->margin == 0 && losses->thumb == 0.5 * ROWS / 3 && losses->pairs == ROWS / 3);
            }
            lora_destroy(start);
            trainer_destroy(trainer);
        }
    example_set_free(&mixed.set);
}

/* The gradient of one row's loss is what the loss does along it. Rows by themselves: z is 0 then. */
static void test_differences(void **state) {
    const struct tiny *tiny = *state;
    struct mixed mixed = mixed_rows(tiny);
    for (int mean = 0; mean < 2; mean++)
        for (size_t r = 0; r < 6; r++) {
            struct train_config config = tiny_config();
            config.precision = PRECISION_F32;
            config.clip = 0;
            config.preference = (struct preference_config){mean ? 2.0f : 0.2f, mean, 0.8f, 0.3f, 1.2f, 0.7f};
            struct trainer *trainer = tiny_trainer(tiny, &config);
            size_t n = trainer->lora->n;
            double norm = 0, weight = mixed.set.items[mixed.rows[r]].weight;
            make_start(trainer->lora);
            step(trainer, &mixed, &mixed.rows[r], 1, 0);
            float *direction = malloc(2 * n * sizeof *direction), *at = direction + n;
            assert_non_null(direction);
            memcpy(direction, trainer->gradient, n * sizeof *direction);
            memcpy(at, trainer->lora->parameters, n * sizeof *at);
            for (size_t i = 0; i < n; i++) norm += (double)direction[i] * (double)direction[i];
            norm = sqrt(norm);
            assert_true(norm > 1e-3);
            double losses[2], h = 2e-3;
            for (int side = 0; side < 2; side++) {
                for (size_t i = 0; i < n; i++)
                    trainer->lora->parameters[i] = at[i] + (float)((side ? h : -h) * (double)direction[i] / norm);
                losses[side] = step(trainer, &mixed, &mixed.rows[r], 1, 0) * weight;
            }
            double slope = (losses[1] - losses[0]) / (2 * h);
            if (!(fabs(slope - norm) < 5e-3 * norm)) fail_msg("row %zu: %g along its gradient of %g", r, slope, norm);
            free(direction);
            trainer_destroy(trainer);
        }
    example_set_free(&mixed.set);
}

/* Training on them does what they are for. */
static void test_learns(void **state) {
    const struct tiny *tiny = *state;
    struct mixed mixed = mixed_rows(tiny);
    struct train_config config = tiny_config();
    struct trainer *trainer = tiny_trainer(tiny, &config);
    for (size_t k = 0; k < 30; k++) assert_true(isfinite(mixed_step(trainer, &mixed, k)));
    step(trainer, &mixed, mixed.rows, ROWS, 0);
    const struct step_losses *losses = trainer_step_losses(trainer);
    assert_int_equal(losses->won, ROWS / 3);
    assert_int_equal(losses->sft_rows, ROWS / 3);
    if (!(losses->preference < 0.5 * (double)losses->pairs && losses->thumb < 0.4 * (double)losses->thumbs))
        fail_msg("losses %g of the pairs, %g of the thumbs", losses->preference, losses->thumb);
    assert_int_equal(trainer->dropped, 0);
    trainer_destroy(trainer);
    example_set_free(&mixed.set);
}

/* Neither threads nor memory, nor what is cached. */
static void test_same_bytes(void **state) {
    const struct tiny *tiny = *state;
    static const int threads[] = {1, 2, 3};
    struct mixed mixed = mixed_rows(tiny);
    struct train_config config = tiny_config();
    config.dropout = 0.1f;
    struct trainer *first = tiny_trainer(tiny, &config);
    for (size_t k = 0; k < 4; k++) mixed_step(first, &mixed, k);
    for (size_t i = 0; i < 3; i++) {
        struct tiny other = *tiny;
        struct mixed again = mixed_rows(tiny);
        OK(pool_create(threads[i], &other.pool, &err));
        struct trainer *trainer = tiny_trainer(&other, &config);
        trainer->activation_bytes = i == 1 ? 0 : SIZE_MAX;
        for (size_t k = 0; k < 4; k++) {
            if (i == 2) trainer_release(trainer);
            mixed_step(trainer, i == 2 ? &mixed : &again, k);
        }
        assert_same_state(first, trainer);
        trainer_destroy(trainer);
        pool_destroy(other.pool);
        example_set_free(&again.set);
    }
    trainer_destroy(first);
    example_set_free(&mixed.set);
}

/* Resumed in the middle, with nothing cached, and with what another start has left in the cache. */
static void test_resumed(void **state) {
    const struct tiny *tiny = *state;
    struct mixed mixed = mixed_rows(tiny), again = mixed_rows(tiny);
    struct train_config config = tiny_config();
    struct lora *start = NULL;
    struct trainer *whole = NULL, *half = NULL;
    OK(lora_create(tiny->model, &config.lora, &start, &err));
    make_start(start);
    OK(trainer_create(tiny->model, tiny->pool, &config, start, &whole, &err));
    OK(trainer_create(tiny->model, tiny->pool, &config, NULL, &half, &err));
    step(half, &again, again.rows, ROWS, 0);
    for (size_t k = 0; k < 4; k++) {
        mixed_step(whole, &mixed, k);
        if (k != 1) continue;
        trainer_reset(half, start);
        memcpy(half->lora->parameters, whole->lora->parameters, start->n * sizeof(float));
        memcpy(half->adamw.m, whole->adamw.m, start->n * sizeof(float));
        memcpy(half->adamw.v, whole->adamw.v, start->n * sizeof(float));
        half->adamw.step = whole->adamw.step;
    }
    for (size_t k = 2; k < 4; k++) mixed_step(half, &again, k);
    assert_same_state(whole, half);
    lora_destroy(start);
    trainer_destroy(whole);
    trainer_destroy(half);
    example_set_free(&mixed.set);
    example_set_free(&again.set);
}

/* Steps without preferences are what they are whatever is set for those. */
static void test_answers_alone(void **state) {
    const struct tiny *tiny = *state;
    struct train_config config = tiny_config();
    config.dropout = 0.1f;
    struct trainer *plain = tiny_trainer(tiny, &config);
    config.preference = (struct preference_config){7, 1, 3, 2, 5, 4};
    struct trainer *other = tiny_trainer(tiny, &config);
    for (size_t k = 0; k < 4; k++) assert_true(tiny_step(plain, tiny, k) == tiny_step(other, tiny, k));
    assert_same_state(plain, other);
    trainer_destroy(plain);
    trainer_destroy(other);
}

static void test_not_finite(void **state) {
    const struct tiny *tiny = *state;
    struct mixed mixed = mixed_rows(tiny);
    struct train_config config = tiny_config();
    struct trainer *trainer = tiny_trainer(tiny, &config), *sound = tiny_trainer(tiny, &config);
    for (size_t r = 1; r < 3; r++) {
        mixed_step(trainer, &mixed, r);
        mixed_step(sound, &mixed, r);
        float was = trainer->lora->parameters[17];
        trainer->lora->parameters[17] = NAN;
        assert_true(isnan(step(trainer, &mixed, &mixed.rows[r], 1, 1e-3f)));
        assert_int_equal(trainer->dropped, r);
        trainer->lora->parameters[17] = was;
        trainer->dropped = 0;
        assert_same_state(trainer, sound);
        trainer->dropped = r;
    }
    pool_cancel(tiny->pool);
    size_t tokens;
    double loss;
    struct mixed fresh = mixed_rows(tiny);
    assert_int_equal(trainer_step(trainer, &fresh.set, fresh.rows, ROWS, 1e-3f, &loss, &tokens, NULL),
                     ATTUNE_ERROR_CANCELLED);
    pool_cancel_clear(tiny->pool);
    for (size_t i = 0; i < fresh.set.n; i++)
        assert_true(!fresh.set.items[i].reference || fresh.set.items[i].reference->of == 0);
    trainer->dropped = 0;
    assert_same_state(trainer, sound);
    trainer_destroy(trainer);
    trainer_destroy(sound);
    example_set_free(&mixed.set);
    example_set_free(&fresh.set);
}

static void test_refused(void **state) {
    const struct tiny *tiny = *state;
    static const struct preference_config wrong[] = {{0, 0, 1, 0, 1, 1},      {NAN, 0, 1, 0, 1, 1},
                                                     {0.1f, 0, -1, 0, 1, 1},  {0.1f, 0, 1, NAN, 1, 1},
                                                     {0.1f, 0, 1, 0, -1, 1},  {0.1f, 0, 1, 0, 1, INFINITY}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct train_config config = tiny_config();
        struct trainer *out = NULL;
        config.preference = wrong[i];
        assert_int_equal(trainer_create(tiny->model, tiny->pool, &config, NULL, &out, NULL), ATTUNE_ERROR_ARGUMENT);
        assert_null(out);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_examples),    cmocka_unit_test(test_pytorch),    cmocka_unit_test(test_start),
        cmocka_unit_test(test_differences), cmocka_unit_test(test_learns),     cmocka_unit_test(test_same_bytes),
        cmocka_unit_test(test_resumed),     cmocka_unit_test(test_answers_alone),
        cmocka_unit_test(test_not_finite),  cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, tiny_setup, tiny_teardown);
}
