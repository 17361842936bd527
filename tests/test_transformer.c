/* Logits, gradients and losses of whole models against PyTorch (tests/reference/tiny_models.py,
 * real_model.py made the golden files), and the forwards of training and of generation against each other.
 * With ATTUNE_TEST_DUMP=FOLDER the real model's logits and gradients are written there whole, as raw floats, for
 * real_model.py --compare-logits and --compare-gradients. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "adapters/lora.h"
#include "core/base/random.h"
#include "tests/golden_file.h"
#include "trainer/trainer.h"

static const char *real_model(void) {
    const char *path = getenv("ATTUNE_TEST_MODEL");
    if (!path) skip();
    return path;
}

static struct model *open_model(const char *path) {
    struct model *model = NULL;
    attune_error err = {0};
    if (model_open(path, FILE_MAP, &model, &err) != ATTUNE_OK) fail_msg("%s (%s)", err.message, err.where);
    return model;
}

static struct model *open_tiny(const char *name) {
    char path[1024];
    snprintf(path, sizeof path, "%s/tests/golden/%s.gguf", ATTUNE_TEST_ROOT, name);
    return open_model(path);
}

static struct pool *threads(int n) {
    struct pool *pool = NULL;
    assert_int_equal(pool_create(n, &pool, NULL), ATTUNE_OK);
    return pool;
}

/* The pass that is made without a bound on memory. */
static struct training_pass *pass_for(const struct model *model, struct pool *pool, size_t T, size_t R, int backward,
                                      int dropout) {
    struct training_pass *pass = NULL;
    struct pass_shape shape = {.T_max = T, .R_max = R, .backward = backward, .dropout = dropout,
                               .precision = PRECISION_F32};
    pass_shape_fit(&shape, model, pool_threads(pool), SIZE_MAX);
    assert_int_equal(training_pass_create(model, pool, &shape, &pass, NULL), ATTUNE_OK);
    return pass;
}

/* (random_uniform(key, i) - 0.5) * span, key 1000 + 2 (layer 7 + target) for A, one more for B. */
static struct lora *golden_lora(const struct model *model, size_t rank, float alpha, float span, int b_zero) {
    struct lora_config config = {rank, alpha, LORA_ALL_TARGETS};
    struct lora *lora = NULL;
    assert_int_equal(lora_create(model, &config, &lora, NULL), ATTUNE_OK);
    for (size_t l = 0; l < model->L; l++)
        for (int t = 0; t < TARGET_COUNT; t++) {
            size_t a, b, n_a = rank * model->layers[l].linear[t].cols, n_b = rank * model->layers[l].linear[t].rows;
            uint64_t key = 1000 + 2 * (l * 7 + (size_t)t);
            assert_true(lora_pair_offset(lora, model, l, (enum target)t, &a, &b));
            for (size_t i = 0; i < n_a; i++) lora->parameters[a + i] = (random_uniform(key, i) - 0.5f) * span;
            for (size_t i = 0; i < n_b; i++)
                lora->parameters[b + i] = b_zero ? 0.0f : (random_uniform(key + 1, i) - 0.5f) * span;
        }
    return lora;
}

static void dump(const char *name, const float *x, size_t n) {
    const char *folder = getenv("ATTUNE_TEST_DUMP");
    char path[1024];
    if (!folder) return;
    snprintf(path, sizeof path, "%s/%s.f32", folder, name);
    FILE *f = fopen(path, "wb");
    assert_true(f && fwrite(x, sizeof *x, n, f) == n && fclose(f) == 0);
}

/* ---- tiny models: every logit, every gradient ---- */

static void check_tiny(const char *name, int n_threads, size_t padding) {
    struct golden g;
    char file[64];
    snprintf(file, sizeof file, "%s.bin", name);
    g = golden_open(file);
    struct model *model = open_tiny(name);
    struct pool *pool = threads(n_threads);
    struct training_pass *pass = NULL;
    uint32_t T = golden_u32(&g), V = golden_u32(&g), R = golden_u32(&g);
    float alpha = golden_f32(&g);
    uint32_t first = golden_u32(&g), n = golden_u32(&g);
    assert_int_equal(V, model->V);
    int32_t *ids = malloc((T + padding) * sizeof *ids);
    float *wanted = malloc(T * V * sizeof *wanted), *logits = malloc(T * V * sizeof *logits);
    golden_take(&g, ids, T * sizeof *ids);
    golden_take(&g, wanted, (size_t)T * V * sizeof *wanted);
    pass = pass_for(model, pool, 2 * T + padding, R, 1, 0);
    struct weights weights = {model, model->layers, NULL};
    assert_int_equal(training_pass_logits(pass, &weights, ids, T, logits, NULL), ATTUNE_OK);
    double worst = 0;
    for (size_t i = 0; i < (size_t)T * V; i++) {
        double off = fabs((double)logits[i] - wanted[i]);
        if (!(off <= worst)) worst = off; /* NaN too */
    }
    if (!(worst < 1e-4)) fail_msg("%s: logits differ by %g", name, worst);

    /* the same sequence behind another one of `padding` tokens, which has no weight: packing must not leak */
    struct lora *lora = golden_lora(model, R, alpha, 0.2f, 0);
    assert_int_equal(lora->n, n);
    weights.pairs = lora->pairs;
    size_t all = padding + T;
    int32_t *tokens = calloc(all, sizeof *tokens), *positions = calloc(all, sizeof *positions);
    int32_t *targets = malloc(all * sizeof *targets);
    float *row_weights = calloc(all, sizeof *row_weights), *losses = calloc(all, sizeof *losses);
    size_t starts[3] = {0, padding, all};
    for (size_t i = 0; i < all; i++) {
        size_t t = i < padding ? i : i - padding;
        tokens[i] = i < padding ? (int32_t)(i * 7 % V) : ids[t];
        positions[i] = (int32_t)t;
        targets[i] = i >= padding && t >= first && t + 1 < T ? ids[t + 1] : -1;
        row_weights[i] = 1.0f / (float)(T - 1 - first);
    }
    struct packed_batch batch = {all,     padding ? 2 : 1, tokens, positions, padding ? starts : starts + 1,
                                 targets, row_weights,     NULL};
    size_t only[2] = {0, all};
    if (!padding) batch.starts = only;
    float *gradient = calloc(n, sizeof *gradient), *expected = malloc(n * sizeof *expected);
    struct layer_gradients *views = malloc(model->L * sizeof *views);
    lora_gradient_views(lora, gradient, views);
    assert_int_equal(training_pass_run(pass, &weights, &batch, 0, 0, views, losses, NULL), ATTUNE_OK);
    double loss = 0, wanted_loss = (double)golden_f32(&g);
    for (size_t i = 0; i < all; i++) loss += (double)(losses[i] * row_weights[i]);
    if (!(fabs(loss - wanted_loss) < 1e-5 * fabs(wanted_loss)))
        fail_msg("%s: loss %.7f, wanted %.7f", name, loss, wanted_loss);
    golden_take(&g, expected, n * sizeof *expected);
    assert_true(golden_done(&g));
    for (size_t l = 0; l < model->L; l++)
        for (int t = 0; t < TARGET_COUNT; t++)
            for (int half = 0; half < 2; half++) {
                size_t a, b, count = R * (half ? model->layers[l].linear[t].rows : model->layers[l].linear[t].cols);
                double difference = 0, norm = 0;
                lora_pair_offset(lora, model, l, (enum target)t, &a, &b);
                for (size_t i = half ? b : a; i < (half ? b : a) + count; i++) {
                    difference += pow((double)(gradient[i] - expected[i]), 2);
                    norm += pow((double)expected[i], 2);
                }
                if (!(sqrt(difference) <= 1e-4 * sqrt(norm)))
                    fail_msg("%s: gradient of %s %c in layer %zu is off by %g", name, target_names[t], "AB"[half], l,
                             sqrt(difference / norm));
            }
    free(views), free(gradient), free(expected), free(losses), free(row_weights), free(targets), free(positions);
    free(tokens), free(logits), free(wanted), free(ids);
    lora_destroy(lora);
    training_pass_destroy(pass);
    pool_destroy(pool);
    model_close(model);
    golden_close(&g);
}

static void test_tiny_llama(void **state) {
    (void)state;
    check_tiny("tiny_llama", 1, 0);
    check_tiny("tiny_llama", 3, 70);
}
static void test_tiny_llama3(void **state) {
    (void)state;
    check_tiny("tiny_llama3", 2, 5);
}
static void test_tiny_qwen2(void **state) {
    (void)state;
    check_tiny("tiny_qwen2", 2, 0);
    check_tiny("tiny_qwen2", 2, 70);
}

/* ---- generation: the cache gives the logits that the whole sequence gives ---- */

static void test_cache_equals_whole(void **state) {
    (void)state;
    static const char *const names[] = {"tiny_llama", "tiny_llama3", "tiny_qwen2"};
    static const size_t pieces[] = {1, 7, 150, 2, 64, 1};
    for (size_t k = 0; k < 3; k++) {
        struct model *model = open_tiny(names[k]);
        struct pool *pool = threads(2);
        enum { T = 225 };
        int32_t ids[T];
        for (size_t i = 0; i < T; i++) ids[i] = (int32_t)(random_u64(5, i) % model->V);
        struct lora *lora = golden_lora(model, 4, 8, 0.2f, 0);
        struct weights weights = {model, model->layers, lora->pairs};
        struct training_pass *whole = NULL;
        struct decoding_pass *pass = NULL;
        struct kv_cache cache;
        float *all = malloc(T * model->V * sizeof *all), *logits = malloc(model->V * sizeof *logits);
        whole = pass_for(model, pool, T, 4, 0, 0);
        assert_int_equal(decoding_pass_create(model, pool, T, 4, PRECISION_F32, &pass, NULL), ATTUNE_OK);
        assert_int_equal(kv_cache_create(model, T, BLOCK_F32, &cache, NULL), ATTUNE_OK);
        assert_int_equal(training_pass_logits(whole, &weights, ids, T, all, NULL), ATTUNE_OK);
        size_t at = 0;
        for (size_t p = 0; p < sizeof pieces / sizeof *pieces; p++) {
            assert_int_equal(decoding_pass_run(pass, &weights, &cache, ids + at, pieces[p], logits, 1, NULL), ATTUNE_OK);
            at += pieces[p];
            assert_int_equal(cache.used, at);
            for (size_t v = 0; v < model->V; v++)
                if (!(fabs((double)(logits[v] - all[(at - 1) * model->V + v])) < 1e-3))
                    fail_msg("%s: token %zu, logit %zu: %f cached, %f whole", names[k], at, v, (double)logits[v],
                             (double)all[(at - 1) * model->V + v]);
        }
        assert_int_equal(at, T);
        assert_int_equal(decoding_pass_run(pass, &weights, &cache, ids, 1, logits, 1, NULL), ATTUNE_ERROR_CONTEXT_FULL);
        free(all), free(logits);
        kv_cache_free(&cache);
        decoding_pass_destroy(pass);
        training_pass_destroy(whole);
        lora_destroy(lora);
        pool_destroy(pool);
        model_close(model);
    }
}

/* ---- the same bytes for any number of threads, kernels and all ---- */

static void gradient_of(struct model *model, int n_threads, const struct pass_shape *how, float dropout, float *out,
                        float *losses) {
    struct pool *pool = threads(n_threads);
    struct lora *lora = golden_lora(model, 4, 8, 0.2f, 0);
    struct training_pass *pass = NULL;
    enum { T = 300 };
    int32_t tokens[T], positions[T], targets[T];
    float row_weights[T];
    uint64_t keys[T];
    size_t starts[4] = {0, 33, 160, T};
    for (size_t s = 0; s < 3; s++)
        for (size_t i = starts[s]; i < starts[s + 1]; i++) {
            tokens[i] = (int32_t)(random_u64(9, i) % model->V);
            positions[i] = (int32_t)(i - starts[s]);
            targets[i] = i % 3 ? (int32_t)(random_u64(11, i) % model->V) : -1;
            row_weights[i] = 0.01f;
            keys[i] = i;
        }
    struct packed_batch batch = {T, 3, tokens, positions, starts, targets, row_weights, keys};
    struct weights weights = {model, model->layers, lora->pairs};
    struct layer_gradients *views = malloc(model->L * sizeof *views);
    memset(out, 0, lora->n * sizeof *out);
    lora_gradient_views(lora, out, views);
    struct pass_shape shape = *how;
    shape.T_max = T;
    assert_int_equal(training_pass_create(model, pool, &shape, &pass, NULL), ATTUNE_OK);
    assert_int_equal(training_pass_run(pass, &weights, &batch, dropout, 17, views, losses, NULL), ATTUNE_OK);
    free(views);
    training_pass_destroy(pass);
    lora_destroy(lora);
    pool_destroy(pool);
}

static void test_any_threads_any_memory(void **state) {
    (void)state;
    struct model *model = open_tiny("tiny_qwen2");
    static float one[20000], many[20000], losses[300], others[300];
    static const size_t head_rows[] = {16, 37, 64, 300};
    for (int precision = PRECISION_AUTO; precision <= PRECISION_F32; precision++)
        for (int dropout = 0; dropout < 2; dropout++) {
            float share = 0.3f * (float)dropout;
            struct pass_shape shape = {.R_max = 4, .backward = 1, .dropout = dropout, .kept = 1, .head_rows = 300,
                                       .precision = (enum precision)precision};
            gradient_of(model, 1, &shape, share, one, losses);
            for (shape.kept = 1; shape.kept <= model->L; shape.kept++)
                for (int n = 1; n <= 8; n += n == 3 ? 5 : 1) {
                    shape.head_rows = head_rows[(shape.kept + (size_t)n) % 4];
                    gradient_of(model, n, &shape, share, many, others);
                    assert_memory_equal(one, many, sizeof one);
                    assert_memory_equal(losses, others, sizeof losses);
                }
        }
    model_close(model);
}

/* What is allowed is used, never more, and first where it saves most. */
static void test_shape_fits(void **state) {
    (void)state;
    struct model *model = open_tiny("tiny_qwen2");
    for (int backward = 0; backward < 2; backward++) {
        struct pass_shape least = {.T_max = 300, .R_max = 4, .backward = backward}, most = least;
        pass_shape_fit(&least, model, 2, 0);
        pass_shape_fit(&most, model, 2, SIZE_MAX);
        assert_int_equal(least.kept, 1);
        assert_true(least.head_rows >= 16 && least.head_rows <= most.head_rows && most.head_rows <= 300);
        assert_int_equal(most.kept, backward ? model->L : 1);
        size_t from = training_pass_bytes(model, 2, &least), to = training_pass_bytes(model, 2, &most), kept = 1;
        assert_true(training_pass_bytes(model, 3, &least) > from);
        for (size_t bytes = from; bytes < to; bytes += 1 + (to - from) / 97) {
            struct pass_shape shape = least;
            pass_shape_fit(&shape, model, 2, bytes);
            assert_true(training_pass_bytes(model, 2, &shape) <= bytes);
            assert_true(shape.kept >= kept && shape.kept <= model->L);
            kept = shape.kept;
            shape.kept++;
            if (backward && kept < model->L) assert_true(training_pass_bytes(model, 2, &shape) > bytes);
        }
        least.dropout = backward;
        assert_true(training_pass_bytes(model, 2, &least) >= from);
    }
    model_close(model);
}

/* Dropout's gradient by central differences: the loss along a direction against the gradient's projection. */
static double loss_of(struct training_pass *pass, const struct weights *w, const struct packed_batch *batch) {
    float losses[64];
    double sum = 0;
    assert_int_equal(training_pass_run(pass, w, batch, 0.25f, 3, NULL, losses, NULL), ATTUNE_OK);
    for (size_t i = 0; i < batch->T; i++) sum += (double)losses[i] * (double)batch->weights[i];
    return sum;
}
static void test_dropout_gradient(void **state) {
    (void)state;
    struct model *model = open_tiny("tiny_llama");
    struct pool *pool = threads(2);
    struct lora *lora = golden_lora(model, 4, 8, 0.2f, 0);
    struct training_pass *pass = NULL;
    enum { T = 40 };
    int32_t tokens[T], positions[T], targets[T];
    float row_weights[T], losses[T];
    uint64_t keys[T];
    size_t starts[2] = {0, T};
    for (size_t i = 0; i < T; i++) {
        tokens[i] = (int32_t)(random_u64(21, i) % model->V);
        positions[i] = (int32_t)i;
        targets[i] = (int32_t)(random_u64(22, i) % model->V);
        row_weights[i] = 1.0f / T;
        keys[i] = random_u64(23, i);
    }
    struct packed_batch batch = {T, 1, tokens, positions, starts, targets, row_weights, keys};
    struct weights weights = {model, model->layers, lora->pairs};
    float *gradient = calloc(lora->n, sizeof *gradient);
    struct layer_gradients *views = malloc(model->L * sizeof *views);
    lora_gradient_views(lora, gradient, views);
    pass = pass_for(model, pool, T, 4, 1, 1);
    assert_int_equal(training_pass_run(pass, &weights, &batch, 0.25f, 3, views, losses, NULL), ATTUNE_OK);
    double dropped = loss_of(pass, &weights, &batch), plain = 0, slope = 0;
    assert_int_equal(training_pass_run(pass, &weights, &batch, 0, 3, NULL, losses, NULL), ATTUNE_OK);
    for (size_t i = 0; i < T; i++) plain += (double)losses[i] / T;
    assert_true(fabs(dropped - plain) > 1e-4);
    const float step = 3e-4f;
    float *saved = malloc(lora->n * sizeof *saved);
    memcpy(saved, lora->parameters, lora->n * sizeof *saved);
    for (size_t i = 0; i < lora->n; i++) slope += (double)gradient[i] * (random_u64(31, i) & 1 ? 1.0 : -1.0);
    double sides[2];
    for (int side = 0; side < 2; side++) {
        for (size_t i = 0; i < lora->n; i++)
            lora->parameters[i] = saved[i] + (side ? -step : step) * (random_u64(31, i) & 1 ? 1.0f : -1.0f);
        sides[side] = loss_of(pass, &weights, &batch);
    }
    double measured = (sides[0] - sides[1]) / (2.0 * (double)step);
    if (!(fabs(measured - slope) < 1e-2 * fmax(fabs(slope), 0.05)))
        fail_msg("slope %g, differences say %g", slope, measured);
    free(saved), free(views), free(gradient);
    training_pass_destroy(pass);
    lora_destroy(lora);
    pool_destroy(pool);
    model_close(model);
}

/* ---- the real model ---- */

static void test_real_logits(void **state) {
    (void)state;
    struct model *model = open_model(real_model());
    struct golden g = golden_open("real_logits.bin");
    struct pool *pool = threads(0);
    struct weights weights = {model, model->layers, NULL};
    struct training_pass *pass = NULL;
    uint32_t texts = golden_u32(&g), V = golden_u32(&g), n_probes = golden_u32(&g), probes[64];
    assert_int_equal(V, model->V);
    assert_true(n_probes <= 64);
    golden_take(&g, probes, n_probes * sizeof *probes);
    pass = pass_for(model, pool, 400, 1, 0, 0);
    for (uint32_t text = 0; text < texts; text++) {
        uint32_t T = golden_u32(&g);
        int32_t ids[400];
        uint16_t id;
        double worst = 0;
        assert_in_range(T, 256, 400);
        for (uint32_t t = 0; t < T; t++) {
            golden_take(&g, &id, sizeof id);
            ids[t] = id;
        }
        float *logits = malloc((size_t)T * V * sizeof *logits);
        assert_int_equal(training_pass_logits(pass, &weights, ids, T, logits, NULL), ATTUNE_OK);
        char name[32];
        snprintf(name, sizeof name, "logits%u", text + 1);
        dump(name, logits, (size_t)T * V);
        for (uint32_t t = 0; t < T; t++) {
            float *row = logits + (size_t)t * V, lse = golden_f32(&g), max = golden_f32(&g), top = row[0];
            uint32_t argmax = golden_u32(&g);
            for (uint32_t v = 0; v < V; v++) top = row[v] > top ? row[v] : top;
            worst = fmax(worst, fabs((double)(top - max)));
            worst = fmax(worst, (double)fabsf(row[argmax] - max));
            for (uint32_t p = 0; p < n_probes; p++)
                worst = fmax(worst, fabs((double)(row[probes[p]] - golden_f32(&g))));
            worst = fmax(worst, fabs((double)(kernels_get()->softmax(row, V, 0) - lse)));
        }
        free(logits);
        print_message("text %u: %u tokens, largest difference %.2g\n", text + 1, T, worst);
        if (!(worst < 1e-3)) fail_msg("logits of text %u differ by %g", text + 1, worst);
    }
    assert_true(golden_done(&g));
    golden_close(&g);
    training_pass_destroy(pass);
    pool_destroy(pool);
    model_close(model);
}

static void add_conversation(struct example_set *set, const struct golden_conversation *c) {
    struct example e = {.weight = 1, .n = c->T, .key = 1};
    e.ids = malloc(c->T * sizeof *e.ids);
    e.supervised = malloc(c->T);
    memcpy(e.ids, c->ids, c->T * sizeof *e.ids);
    memcpy(e.supervised, c->mask, c->T);
    for (uint32_t i = 1; i < c->T; i++) e.n_supervised += c->mask[i];
    set->items = realloc(set->items, (set->n + 1) * sizeof *set->items);
    set->items[set->n++] = e;
}

static struct trainer *golden_trainer(struct model *model, struct pool *pool, uint32_t rank, float alpha, float span,
                                      int b_zero, enum precision precision) {
    struct train_config config;
    struct trainer *trainer = NULL;
    train_config_default(&config);
    config.lora = (struct lora_config){rank, alpha, LORA_ALL_TARGETS};
    config.clip = 0;
    config.learning_rate = 1e-3f;
    config.precision = precision;
    struct lora *lora = golden_lora(model, rank, alpha, span, b_zero);
    assert_int_equal(trainer_create(model, pool, &config, lora, &trainer, NULL), ATTUNE_OK);
    lora_destroy(lora);
    return trainer;
}

/* 16 random projections of each tensor's gradient: the mean of their squared errors is the squared error. */
static void gradients_within(enum precision precision, double loss_bound, double bound) {
    struct model *model = open_model(real_model());
    struct golden g = golden_open("real_gradients.bin");
    struct pool *pool = threads(0);
    struct example_set set = {0};
    static struct golden_conversation c;
    uint32_t rank = golden_u32(&g);
    float alpha = golden_f32(&g), span = golden_f32(&g);
    uint32_t n = golden_u32(&g);
    size_t rows[8], tokens;
    double loss, worst = 0;
    for (uint32_t i = 0; i < n; i++) {
        golden_conversation(&g, &c);
        add_conversation(&set, &c);
        rows[i] = i;
    }
    for (uint32_t i = 0; i < n; i++) golden_f32(&g);
    float mean = golden_f32(&g);
    uint32_t tensors = golden_u32(&g), projections = golden_u32(&g);
    assert_int_equal(tensors, model->L * TARGET_COUNT * 2);
    struct trainer *trainer = golden_trainer(model, pool, rank, alpha, span, 0, precision);
    assert_int_equal(trainer_step(trainer, &set, rows, n, 0.0f, &loss, &tokens, NULL), ATTUNE_OK);
    if (!(fabs(loss - (double)mean) < loss_bound)) fail_msg("loss %.6f, wanted %.6f", loss, (double)mean);
    if (precision == PRECISION_F32) dump("gradients", trainer->gradient, trainer->lora->n);
    for (uint32_t k = 0; k < tensors; k++) {
        size_t l = k / (2 * TARGET_COUNT), t = k / 2 % TARGET_COUNT, a, b;
        lora_pair_offset(trainer->lora, model, l, (enum target)t, &a, &b);
        const struct matrix *w = &model->layers[l].linear[t];
        size_t count = rank * (k & 1 ? w->rows : w->cols);
        const float *x = trainer->gradient + (k & 1 ? b : a);
        double norm = (double)golden_f32(&g), error = 0;
        for (uint32_t p = 0; p < projections; p++) {
            double sum = 0;
            for (size_t e = 0; e < count; e++)
                sum += random_u64(k, ((uint64_t)p << 32) | e) & 1 ? (double)x[e] : -(double)x[e];
            error += pow(sum - (double)golden_f32(&g), 2);
        }
        double relative = sqrt(error / projections) / norm;
        worst = fmax(worst, relative);
        if (!(relative < bound))
            fail_msg("gradient of layer %zu %s %c is off by %g", l, target_names[t], "AB"[k & 1], relative);
    }
    print_message("420 gradients, largest relative error %.2g\n", worst);
    assert_true(golden_done(&g));
    golden_close(&g);
    trainer_destroy(trainer);
    example_set_free(&set);
    pool_destroy(pool);
    model_close(model);
}

static void test_real_gradients(void **state) {
    (void)state;
    gradients_within(PRECISION_F32, 1e-4, 2e-4);
}
/* What the rounding of the fast product may do to a tensor's gradient: docs/benchmarks.md. */
static void test_real_fast_gradients(void **state) {
    (void)state;
    gradients_within(PRECISION_AUTO, 0.1, 0.4);
}

static void steps_within(enum precision precision, double bound) {
    struct model *model = open_model(real_model());
    struct golden g = golden_open("real_steps.bin");
    struct pool *pool = threads(0);
    static struct golden_conversation c;
    uint32_t rank = golden_u32(&g);
    float alpha = golden_f32(&g), span = golden_f32(&g);
    uint32_t steps = golden_u32(&g), each = golden_u32(&g);
    struct trainer *trainer = golden_trainer(model, pool, rank, alpha, span, 1, precision);
    double worst = 0;
    for (uint32_t step = 0; step < steps; step++) {
        struct example_set set = {0};
        size_t rows[16], tokens;
        double loss;
        for (uint32_t i = 0; i < each; i++) {
            golden_conversation(&g, &c);
            add_conversation(&set, &c);
            rows[i] = i;
        }
        float wanted = golden_f32(&g);
        assert_int_equal(trainer_step(trainer, &set, rows, each, 1e-3f, &loss, &tokens, NULL), ATTUNE_OK);
        worst = fmax(worst, fabs(loss - (double)wanted));
        if (!(fabs(loss - (double)wanted) < bound))
            fail_msg("step %u: loss %.5f, wanted %.5f", step, loss, (double)wanted);
        example_set_free(&set);
    }
    print_message("%u steps, largest difference %.2g\n", steps, worst);
    assert_true(golden_done(&g));
    golden_close(&g);
    trainer_destroy(trainer);
    pool_destroy(pool);
    model_close(model);
}

static void test_real_steps(void **state) {
    (void)state;
    steps_within(PRECISION_F32, 1e-3);
}
static void test_real_fast_steps(void **state) {
    (void)state;
    steps_within(PRECISION_AUTO, 0.05);
}

/* ---- how far one way to run a model is from another ---- */

enum { DRIFT_SEQUENCES = 3, DRIFT_T = 40, DRIFT_FIRST = 5 };

/* Three sequences of 11, 12 and 17 tokens; the first 5 of each are not supervised. */
struct made_batch {
    int32_t tokens[DRIFT_T], positions[DRIFT_T], targets[DRIFT_T];
    size_t starts[DRIFT_SEQUENCES + 1];
    struct packed_batch batch;
};
static void make_batch(struct made_batch *b, uint64_t key, size_t V) {
    static const size_t starts[] = {0, 11, 23, DRIFT_T};
    memcpy(b->starts, starts, sizeof starts);
    for (size_t s = 0; s < DRIFT_SEQUENCES; s++)
        for (size_t t = starts[s]; t < starts[s + 1]; t++) {
            b->tokens[t] = (int32_t)(random_u64(key, t) % V);
            b->positions[t] = (int32_t)(t - starts[s]);
            b->targets[t] = t - starts[s] < DRIFT_FIRST ? -1 : (int32_t)(random_u64(key + 1, t) % V);
        }
    b->batch = (struct packed_batch){.T = DRIFT_T, .n_sequences = DRIFT_SEQUENCES, .tokens = b->tokens,
                                     .positions = b->positions, .starts = b->starts, .targets = b->targets};
}

static double log_sum_exp(const float *z, size_t V) {
    double top = -INFINITY, sum = 0;
    for (size_t v = 0; v < V; v++) top = fmax(top, (double)z[v]);
    for (size_t v = 0; v < V; v++) sum += exp((double)z[v] - top);
    return top + log(sum);
}

/* From whole logits, one sequence after the other, by the definition. */
static void plain_drift(struct training_pass *pass, const struct weights *a, const struct weights *b,
                        const struct packed_batch *batch, struct model_drift *sum) {
    size_t V = a->model->V;
    float *x = malloc(DRIFT_T * V * sizeof *x), *y = malloc(DRIFT_T * V * sizeof *y);
    for (size_t s = 0; s < batch->n_sequences; s++) {
        size_t from = batch->starts[s], T = batch->starts[s + 1] - from;
        assert_int_equal(training_pass_logits(pass, a, batch->tokens + from, T, x, NULL), ATTUNE_OK);
        assert_int_equal(training_pass_logits(pass, b, batch->tokens + from, T, y, NULL), ATTUNE_OK);
        for (size_t t = 0; t < T; t++) {
            int32_t target = batch->targets[from + t];
            const float *p = x + t * V, *q = y + t * V;
            double of_p = log_sum_exp(p, V), of_q = log_sum_exp(q, V);
            size_t best_p = 0, best_q = 0;
            if (target < 0) continue;
            for (size_t v = 0; v < V; v++) {
                double log_p = (double)p[v] - of_p;
                sum->kl += exp(log_p) * (log_p - ((double)q[v] - of_q));
                if (p[v] > p[best_p]) best_p = v;
                if (q[v] > q[best_q]) best_q = v;
            }
            sum->tokens++;
            sum->agreeing += best_p == best_q;
            sum->loss_reference += of_p - (double)p[target];
            sum->loss += of_q - (double)q[target];
        }
    }
    free(x);
    free(y);
}

static int give_layer(void *user, size_t layer, struct model_layer *out, attune_error *err) {
    const struct model *model = user;
    (void)err;
    *out = model->layers[layer];
    return ATTUNE_OK;
}

static struct training_pass *drift_pass(const struct model *model, struct pool *pool, size_t head_rows) {
    struct training_pass *pass = NULL;
    struct pass_shape shape = {.T_max = DRIFT_T, .R_max = 4, .together = 2, .drift = 1, .precision = PRECISION_F32};
    pass_shape_fit(&shape, model, pool_threads(pool), SIZE_MAX);
    if (head_rows) shape.head_rows = head_rows;
    assert_int_equal(training_pass_create(model, pool, &shape, &pass, NULL), ATTUNE_OK);
    return pass;
}

static void assert_near(double a, double b) {
    if (!(fabs(a - b) <= 1e-5 * (1 + fabs(b)))) fail_msg("%.9g, wanted %.9g", a, b);
}

static void check_drift(const char *name) {
    struct model *model = open_tiny(name);
    struct pool *pool = threads(2), *one = threads(1);
    struct training_pass *plain = pass_for(model, pool, DRIFT_T, 4, 0, 0), *pass = drift_pass(model, pool, 0);
    struct lora *lora = golden_lora(model, 4, 8, 0.3f, 0);
    struct weights with = {model, model->layers, lora->pairs}, base = {model, model->layers, NULL};
    struct made_batch made[2];
    const struct packed_batch *batches[2] = {&made[0].batch, &made[1].batch};
    struct model_drift wanted = {0}, sum = {0}, again = {0};
    for (int i = 0; i < 2; i++) {
        make_batch(&made[i], 100 * (uint64_t)i, model->V);
        plain_drift(plain, &with, &base, batches[i], &wanted);
    }
    assert_int_equal(training_pass_drift(pass, &with, &base, NULL, batches, 2, &sum, NULL), ATTUNE_OK);
    assert_int_equal(sum.tokens, 2 * (DRIFT_T - DRIFT_SEQUENCES * DRIFT_FIRST));
    assert_int_equal(sum.agreeing, wanted.agreeing);
    assert_true(sum.kl > 0.001 && sum.agreeing > 0 && sum.agreeing < sum.tokens); /* else this shows nothing */
    assert_near(sum.kl, wanted.kl);
    assert_near(sum.loss, wanted.loss);
    assert_near(sum.loss_reference, wanted.loss_reference);

    /* layers that are made, the reference of the call before, another number of threads, fewer logits: the same bits */
    struct layer_maker maker = {give_layer, model};
    struct weights nowhere = {model, NULL, NULL};
    assert_int_equal(training_pass_drift(pass, NULL, &nowhere, &maker, batches, 2, &again, NULL), ATTUNE_OK);
    assert_memory_equal(&again, &sum, sizeof sum);
    struct training_pass *small = drift_pass(model, one, 16);
    again = (struct model_drift){0};
    assert_int_equal(training_pass_drift(small, &with, &base, NULL, batches, 2, &again, NULL), ATTUNE_OK);
    assert_memory_equal(&again, &sum, sizeof sum);

    /* no drift from itself; and sums add up */
    again = (struct model_drift){.kl = 1, .tokens = 5};
    assert_int_equal(training_pass_drift(pass, &with, &with, NULL, batches, 2, &again, NULL), ATTUNE_OK);
    assert_true(again.kl == 1 && again.agreeing == sum.tokens && again.tokens == 5 + sum.tokens);
    assert_true(again.loss == again.loss_reference && again.loss == sum.loss_reference);
    training_pass_destroy(small);
    training_pass_destroy(pass);
    training_pass_destroy(plain);
    lora_destroy(lora);
    pool_destroy(one);
    pool_destroy(pool);
    model_close(model);
}
static void test_drift(void **state) {
    (void)state;
    check_drift("tiny_llama");
    check_drift("tiny_qwen2");
}

/* A cancelled measurement leaves the sums alone; what is asked for in advance is what is taken. */
static void test_drift_cancelled(void **state) {
    (void)state;
    struct model *model = open_tiny("tiny_llama");
    struct pool *pool = threads(2);
    struct training_pass *pass = drift_pass(model, pool, 0);
    struct weights base = {model, model->layers, NULL};
    struct made_batch made;
    struct model_drift sum = {.kl = 3, .tokens = 4}, before = sum;
    make_batch(&made, 9, model->V);
    const struct packed_batch *batch = &made.batch;
    pool_cancel(pool);
    assert_int_equal(training_pass_drift(pass, &base, &base, NULL, &batch, 1, &sum, NULL), ATTUNE_ERROR_CANCELLED);
    assert_memory_equal(&sum, &before, sizeof sum);
    pool_cancel_clear(pool);
    assert_int_equal(training_pass_drift(pass, &base, &base, NULL, &batch, 1, &sum, NULL), ATTUNE_OK);
    assert_int_equal(sum.tokens, 4 + DRIFT_T - DRIFT_SEQUENCES * DRIFT_FIRST);
    training_pass_destroy(pass);
    struct pass_shape shape = {.T_max = 64, .R_max = 4, .together = 2, .head_rows = 16}, both = shape;
    both.drift = 1;
    size_t more = training_pass_bytes(model, 2, &both) - training_pass_bytes(model, 2, &shape);
    assert_true(more >= 2 * 64 * model->C * sizeof(float));
    pool_destroy(pool);
    model_close(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tiny_llama),
        cmocka_unit_test(test_tiny_llama3),
        cmocka_unit_test(test_tiny_qwen2),
        cmocka_unit_test(test_cache_equals_whole),
        cmocka_unit_test(test_any_threads_any_memory),
        cmocka_unit_test(test_dropout_gradient),
        cmocka_unit_test(test_shape_fits),
        cmocka_unit_test(test_real_logits),
        cmocka_unit_test(test_real_gradients),
        cmocka_unit_test(test_real_steps),
        cmocka_unit_test(test_real_fast_gradients),
        cmocka_unit_test(test_real_fast_steps),
        cmocka_unit_test(test_drift),
        cmocka_unit_test(test_drift_cancelled),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
