/* The gradient's estimate is the slope of the loss in an entry's direction: against differences of the loss itself. */
#include "tests/tiny_training.h"

#include "core/base/hash.h"
#include "job/catalog_select.h"
#include "tests/tiny_base.h"

enum { ENTRIES = 5 };

/* Entries of different ranks, two of which do not fit into one stack with the others; their B are tiny, so that the
 * loss is as good as linear on the way. */
static struct lora *made_lora(const struct model *model, size_t i) {
    static const size_t ranks[ENTRIES] = {4, 2, 120, 130, 8};
    struct lora_config config = {ranks[i], 4, i == 1 ? 1u << TARGET_DOWN : LORA_ALL_TARGETS};
    struct lora *lora = NULL;
    OK(lora_create(model, &config, &lora, &err));
    lora_init(lora, model, 10 + i);
    for (size_t l = 0; l < lora->L; l++)
        for (size_t t = 0; t < TARGET_COUNT; t++) {
            size_t a, b;
            if (!lora_pair_offset(lora, model, l, t, &a, &b)) continue;
            for (size_t k = 0; k < model->layers[l].linear[t].rows * ranks[i]; k++)
                lora->parameters[b + k] = 0.004f * (random_uniform(77 + i, b + k) - 0.5f);
        }
    return lora;
}

static void make_catalog(const struct model *model, const char *folder, struct catalog *catalog) {
    OK(catalog_new(folder, model->sha256, catalog, &err));
    for (size_t i = 0; i < ENTRIES; i++) {
        struct catalog_entry e = {.rows = 1, .loss_before = NAN, .loss_after = NAN, .loss_interval = NAN};
        struct adapter_record record = {.origin = "trained"};
        char path[CATALOG_PATH_MAX];
        struct stat st;
        snprintf(e.name, sizeof e.name, "e%zu", i);
        strcpy(e.licence, "MIT");
        strcpy(e.origin, "made");
        hash_bytes(e.name, strlen(e.name), e.id);
        memcpy(record.base_sha256, model->sha256, 65);
        struct lora *lora = made_lora(model, i);
        OK(catalog_entry_path(folder, e.id, path, &err));
        OK(adapter_write(lora, model, &record, path, "test", e.sha256, &err));
        lora_destroy(lora);
        assert_int_equal(stat(path, &st), 0);
        e.bytes = st.st_size;
        OK(catalog_put(catalog, &e, &err));
    }
}

/* (L(0) - L(h)) / h of the rows' mean loss, both ways around 0. */
static double slope(const struct tiny *tiny, const struct catalog *catalog, size_t entry, const size_t *rows, size_t n) {
    struct lora *lora = NULL;
    double at[2] = {0, 0}, nll[TINY_ROWS];
    struct evaluator evaluator;
    struct evaluator_shape shape = {512, 130, 1, 0};
    OK(evaluator_create(tiny->model, tiny->pool, &shape, 0, &evaluator, &err));
    for (int side = 0; side < 2; side++) {
        OK(catalog_adapter(catalog, &catalog->entries[entry], tiny->model, &lora, &err));
        for (size_t l = 0; side && l < lora->L; l++)
            for (size_t t = 0; t < TARGET_COUNT; t++) lora->pairs[l].target[t].scale *= -1;
        struct weights weights = {tiny->model, tiny->model->layers, lora->pairs};
        OK(evaluator_run(&evaluator, &weights, NULL, &tiny->set, rows, n, nll, &err));
        for (size_t i = 0; i < n; i++) at[side] += nll[i] / (double)tiny->set.items[rows[i]].n_supervised / (double)n;
        lora_destroy(lora);
    }
    evaluator_free(&evaluator);
    return (at[1] - at[0]) / 2;
}

static void the_estimate_is_the_slope(void **state) {
    const struct tiny *tiny = *state;
    char folder[256], command[300];
    struct catalog catalog;
    size_t rows[] = {1, 4, 7, 9};
    double gain[ENTRIES], each[4 * ENTRIES];
    tiny_folder(folder);
    make_catalog(tiny->model, folder, &catalog);
    struct catalog_question q = {&catalog, tiny->model, tiny->pool, &tiny->set};
    OK(catalog_gains(&q, rows, 4, 0, gain, &err));
    OK(catalog_gains(&q, rows, 4, 1, each, &err));
    for (size_t e = 0; e < ENTRIES; e++) {
        double found = slope(tiny, &catalog, e, rows, 4), sum = 0;
        if (!(fabs(gain[e] - found) < 0.03 * fabs(found) + 2e-6))
            fail_msg("entry %zu: estimate %g, slope %g", e, gain[e], found);
        for (size_t i = 0; i < 4; i++) sum += each[i * ENTRIES + e] / 4;
        assert_true(fabs(sum - gain[e]) < 0.02 * fabs(gain[e]) + 1e-6); /* micro-batches round differently */
    }
    catalog_free(&catalog);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    assert_int_equal(system(command), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_estimate_is_the_slope, tiny_setup, tiny_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
