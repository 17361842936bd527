#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "adapters/peft.h"
#include "adapters/safetensors.h"
#include "tests/tiny_base.h"

#include <jansson.h>
#include <math.h>

static struct tiny_base base;
static char folder[256];

static int setup(void **state) {
    (void)state;
    tiny_base_make(&base, BLOCK_F32, 48, ROPE_INTERLEAVED);
    tiny_folder(folder);
    return 0;
}
static int teardown(void **state) {
    (void)state;
    tiny_base_free(&base);
    return rmdir(folder); /* fails where a test or the library left a file */
}

static const char *file_in(const char *name) {
    static char path[2][400];
    static int next;
    next = !next;
    snprintf(path[next], sizeof path[next], "%s/p/%s", folder, name);
    return path[next];
}
static const char *config_file(void) { return file_in("adapter_config.json"); }
static const char *tensors_file(void) { return file_in("adapter_model.safetensors"); }
static const char *peft_folder(void) { return file_in("."); }

static void clean(void) {
    unlink(config_file());
    unlink(tensors_file());
    rmdir(file_in(""));
}

static void expect(int code, const char *named) {
    struct lora *lora = NULL;
    attune_error err = {0};
    int got = peft_import(peft_folder(), &base.model, &lora, &err);
    if (got != code || (named && !strstr(err.message, named)))
        fail_msg("expected %d with \"%s\", got %d: %s (%s)", code, named ? named : "", got, err.message, err.where);
    assert_int_equal(err.code, code);
    assert_true((code == ATTUNE_OK) == (lora != NULL));
    lora_destroy(lora);
}

/* ---- round trip ---- */

static void test_round_trip(void **state) {
    (void)state;
    for (int style = 0; style < 2; style++) {
        base.model.rope.style = style ? ROPE_HALVES : ROPE_INTERLEAVED;
        struct lora *lora = tiny_lora(&base.model, 3, 4.7f, LORA_ALL_TARGETS & ~(1u << TARGET_OUTPUT)), *back = NULL;
        char path[300];
        snprintf(path, sizeof path, "%s/p", folder);
        assert_int_equal(peft_export(lora, &base.model, path, NULL), ATTUNE_OK);
        assert_int_equal(peft_import(path, &base.model, &back, NULL), ATTUNE_OK);
        assert_int_equal(back->config.rank, 3);
        assert_int_equal(back->config.targets, lora->config.targets);
        assert_true(back->config.alpha == 4.7f);
        assert_memory_equal(back->parameters, lora->parameters, lora->n * sizeof(float));
        lora_destroy(back);

        /* q is permuted in the file for pairs that lie side by side, v never */
        struct safetensors *file = NULL;
        assert_int_equal(safetensors_open(tensors_file(), 1 << 20, &file, NULL), ATTUNE_OK);
        for (size_t i = 0; i < file->n; i++) {
            const struct low_rank *q = &lora->pairs[1].target[TARGET_Q], *v = &lora->pairs[1].target[TARGET_V];
            const unsigned char *data = file->tensors[i].data;
            if (strcmp(file->tensors[i].name, "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight") == 0) {
                assert_int_equal(file->tensors[i].shape[0], 32);
                assert_int_equal(file->tensors[i].shape[1], 3);
                assert_memory_equal(data, q->b, 12);
                assert_memory_equal(data + 12, q->b + 3 * (style ? 1 : 2), 12);
                assert_memory_equal(data + 12 * 4, q->b + 3 * (style ? 4 : 1), 12);
                assert_memory_equal(data + 12 * 13, q->b + 3 * (style ? 13 : 8 + 3), 12); /* second head, j 1, i 1 */
            }
            if (strstr(file->tensors[i].name, "layers.1.self_attn.v_proj.lora_B"))
                assert_memory_equal(data, v->b, 16 * 12);
        }
        safetensors_close(file);

        attune_error err = {0};
        assert_int_equal(peft_export(lora, &base.model, path, &err), ATTUNE_ERROR_STATE);
        unlink(tensors_file());
        assert_int_equal(peft_export(lora, &base.model, path, &err), ATTUNE_ERROR_STATE);
        assert_int_equal(access(tensors_file(), F_OK), -1);
        assert_non_null(strstr(err.where, "adapter_config.json"));
        lora_destroy(lora);
        clean();
    }
    base.model.rope.style = ROPE_INTERLEAVED;
}

static void test_exported_config(void **state) {
    (void)state;
    struct lora *lora = tiny_lora(&base.model, 4, 8, 1 << TARGET_V | 1 << TARGET_GATE);
    assert_int_equal(peft_export(lora, &base.model, peft_folder(), NULL), ATTUNE_ERROR_IO); /* p is not there */
    char path[300];
    snprintf(path, sizeof path, "%s/p", folder);
    assert_int_equal(peft_export(lora, &base.model, path, NULL), ATTUNE_OK);
    json_t *config = json_load_file(config_file(), 0, NULL);
    assert_string_equal(json_string_value(json_object_get(config, "peft_type")), "LORA");
    assert_string_equal(json_string_value(json_object_get(config, "task_type")), "CAUSAL_LM");
    assert_string_equal(json_string_value(json_object_get(config, "bias")), "none");
    assert_int_equal(json_integer_value(json_object_get(config, "r")), 4);
    assert_int_equal(json_integer_value(json_object_get(config, "lora_alpha")), 8);
    json_t *targets = json_object_get(config, "target_modules");
    assert_int_equal(json_array_size(targets), 2);
    assert_string_equal(json_string_value(json_array_get(targets, 0)), "v_proj");
    assert_string_equal(json_string_value(json_array_get(targets, 1)), "gate_proj");
    json_decref(config);
    lora_destroy(lora);
    clean();
}

static void test_export_fails_clean(void **state) {
    (void)state;
    struct lora *lora = tiny_lora(&base.model, 4, 8, LORA_ALL_TARGETS);
    char path[300];
    snprintf(path, sizeof path, "%s/p", folder);
    static const char *const points[] = {"peft.tensors.write.before:fail",  "peft.tensors.rename.before:fail",
                                         "peft.tensors.folder.before:fail", "peft.config.fsync.after:fail",
                                         "peft.config.rename.before:fail",  "peft.config.folder.after:fail"};
    for (size_t i = 0; i < sizeof points / sizeof *points; i++) {
        setenv("ATTUNE_FAULT", points[i], 1);
        attune_error err = {0};
        assert_int_equal(peft_export(lora, &base.model, path, &err), ATTUNE_ERROR_IO);
        unsetenv("ATTUNE_FAULT");
        assert_int_equal(access(path, F_OK), -1); /* nothing stays */
    }
    lora->parameters[0] = NAN;
    assert_int_equal(peft_export(lora, &base.model, path, NULL), ATTUNE_ERROR_FORMAT);
    assert_int_equal(access(path, F_OK), -1);
    lora_destroy(lora);
}

/* ---- an adapter that PEFT saved: tests/reference/peft_tiny.py ---- */

#define GOLDEN ATTUNE_TEST_ROOT "/tests/golden/peft_tiny"

/* scale B A against PEFT's delta weights times `factor`. */
static void check_deltas(const struct lora *lora, double factor) {
    size_t size, at = 0;
    unsigned char *bytes = tiny_read(GOLDEN "/deltas.f32", &size);
    for (size_t l = 0; l < TINY_L; l++) {
        for (size_t t = 0; t < TARGET_COUNT; t++) {
            const struct matrix *w = &base.model.layers[l].linear[t];
            const struct low_rank *pair = &lora->pairs[l].target[t];
            for (size_t i = 0; i < w->rows * w->cols; i++, at += 4) {
                float want;
                double got = 0;
                assert_true(at + 4 <= size);
                memcpy(&want, bytes + at, 4);
                for (size_t r = 0; r < pair->rank; r++)
                    got += (double)pair->b[i / w->cols * pair->rank + r] * pair->a[r * w->cols + i % w->cols];
                got *= pair->scale;
                if (fabs(got - factor * want) > 2e-6)
                    fail_msg("layer %zu target %zu element %zu: %g, not %g", l, t, i, got, want * factor);
            }
        }
    }
    assert_int_equal(at, size);
    free(bytes);
}

static void test_golden(void **state) {
    (void)state;
    struct lora *lora = NULL;
    assert_int_equal(peft_import(GOLDEN, &base.model, &lora, NULL), ATTUNE_OK);
    assert_int_equal(lora->config.rank, 3);
    assert_true(lora->config.alpha == 5);
    assert_int_equal(lora->config.targets, LORA_ALL_TARGETS);
    check_deltas(lora, 1);
    lora_destroy(lora);
}

/* ---- configurations ---- */

/* The golden adapter in folder/p, `key` of its configuration replaced by the JSON text `value` (NULL: removed). */
static void variant(const char *key, const char *value) {
    size_t size;
    unsigned char *tensors = tiny_read(GOLDEN "/adapter_model.safetensors", &size);
    json_t *config = json_load_file(GOLDEN "/adapter_config.json", 0, NULL);
    assert_non_null(config);
    mkdir(file_in(""), 0700);
    if (key && value) json_object_set_new(config, key, json_loads(value, JSON_DECODE_ANY, NULL));
    else if (key) json_object_del(config, key);
    assert_int_equal(json_dump_file(config, config_file(), 0), 0);
    tiny_write(tensors_file(), tensors, size);
    json_decref(config);
    free(tensors);
}

static void expect_variant(const char *key, const char *value, int code, const char *named) {
    variant(key, value);
    expect(code, named);
    clean();
}

static void test_rslora(void **state) {
    (void)state;
    struct lora *lora = NULL;
    variant("use_rslora", "true");
    assert_int_equal(peft_import(peft_folder(), &base.model, &lora, NULL), ATTUNE_OK);
    assert_true(fabs(lora->config.alpha - 5 * sqrt(3)) < 1e-6);
    check_deltas(lora, sqrt(3)); /* alpha / sqrt(R) for alpha / R */
    lora_destroy(lora);
    clean();
}

static void test_config_accepted(void **state) {
    (void)state;
    expect_variant(NULL, NULL, ATTUNE_OK, NULL);
    expect_variant("task_type", NULL, ATTUNE_OK, NULL);
    expect_variant("lora_alpha", "2.5", ATTUNE_OK, NULL);
    expect_variant("target_modules", "\"all-linear\"", ATTUNE_OK, NULL);
    expect_variant("init_lora_weights", "\"gaussian\"", ATTUNE_OK, NULL);
    expect_variant("base_model_name_or_path", "\"someone/something\"", ATTUNE_OK, NULL);
    expect_variant("a_later_setting", "null", ATTUNE_OK, NULL);
    expect_variant("a_later_setting", "false", ATTUNE_OK, NULL);
    expect_variant("rank_pattern", "null", ATTUNE_OK, NULL);
}

static void test_config_refused(void **state) {
    (void)state;
    static const char *const unsupported[][2] = {
        {"peft_type", "\"LOHA\""},           {"peft_type", "\"ADALORA\""},
        {"peft_type", "3"},                  {"use_dora", "true"},
        {"bias", "\"all\""},                 {"bias", "\"lora_only\""},
        {"lora_bias", "true"},               {"modules_to_save", "[\"lm_head\"]"},
        {"rank_pattern", "{\"q_proj\":4}"},  {"alpha_pattern", "{\"q_proj\":4}"},
        {"layers_to_transform", "[0]"},      {"layers_to_transform", "1"},
        {"layer_replication", "[[0,2]]"},    {"fan_in_fan_out", "true"},
        {"target_parameters", "[\"x\"]"},    {"trainable_token_indices", "[1]"},
        {"alora_invocation_tokens", "[1]"},  {"use_qalora", "true"},
        {"kasa_config", "{\"x\":1}"},        {"megatron_config", "{\"x\":1}"},
        {"init_lora_weights", "\"pissa\""},  {"init_lora_weights", "\"olora\""},
        {"init_lora_weights", "\"loftq\""},  {"init_lora_weights", "\"pissa_niter_4\""},
        {"init_lora_weights", "\"corda\""},  {"a_later_setting", "1"},
    };
    for (size_t i = 0; i < sizeof unsupported / sizeof *unsupported; i++)
        expect_variant(unsupported[i][0], unsupported[i][1], ATTUNE_ERROR_UNSUPPORTED, unsupported[i][0]);
    static const char *const malformed[][2] = {
        {"peft_type", NULL},      {"r", NULL},           {"r", "0"},           {"r", "-3"},        {"r", "257"},
        {"r", "3.0"},             {"r", "\"3\""},        {"lora_alpha", NULL}, {"lora_alpha", "0"},
        {"lora_alpha", "1e300"},  {"lora_alpha", "65537"}, {"lora_alpha", "\"5\""}, {"use_rslora", "1"},
    };
    for (size_t i = 0; i < sizeof malformed / sizeof *malformed; i++)
        expect_variant(malformed[i][0], malformed[i][1], ATTUNE_ERROR_FORMAT, malformed[i][0]);
    expect_variant("r", "4", ATTUNE_ERROR_MISMATCH, "rank 3");
}

static void test_config_text(void **state) {
    (void)state;
    static const char *const texts[][2] = {
        {"", "not valid JSON"}, {"[]", "not a JSON object"}, {"{\"r\":1,\"r\":2}", "duplicate"},
        {"{\"r\":", "not valid JSON"}, {"{\"peft_type\":\"\\u0000\"}", "not valid JSON"}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        variant(NULL, NULL);
        tiny_write(config_file(), texts[i][0], strlen(texts[i][0]));
        expect(ATTUNE_ERROR_FORMAT, texts[i][1]);
    }
    char *deep = malloc(300 << 10);
    memset(deep, '[', 300 << 10);
    tiny_write(config_file(), deep, 200 << 10);
    expect(ATTUNE_ERROR_FORMAT, "nested more than 32 deep");
    tiny_write(config_file(), deep, 300 << 10);
    expect(ATTUNE_ERROR_FORMAT, "at most 262144");
    free(deep);
    unlink(config_file());
    expect(ATTUNE_ERROR_IO, NULL);
    clean();
}

static void test_pickle(void **state) {
    (void)state;
    variant(NULL, NULL);
    unlink(tensors_file());
    expect(ATTUNE_ERROR_IO, NULL);
    tiny_write(file_in("adapter_model.bin"), "x", 1);
    expect(ATTUNE_ERROR_UNSUPPORTED, "safe_serialization");
    unlink(file_in("adapter_model.bin"));
    clean();
}

/* ---- tensors ---- */

enum { HEADER_SIZE = 4096 };

/* A rank 1 adapter for v_proj of both layers; the first entry of layer 1's two is given, with n bytes of data. */
static void write_tensors(const char *name, const char *dtype, const char *shape, size_t n, size_t one) {
    char header[HEADER_SIZE];
    static float data[1024];
    for (size_t i = 0; i < 1024; i++) data[i] = 1;
    if (one) memcpy(data, (uint32_t[]){one == 1 ? 0x7fc00000 : 0x7f800000}, 4);
    int length = snprintf(
        header, sizeof header,
        "{\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[0,%zu]},"
        "\"base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight\":{\"dtype\":\"F32\",\"shape\":[16,1],"
        "\"data_offsets\":[%zu,%zu]},"
        "\"base_model.model.model.layers.0.self_attn.v_proj.lora_A.default.weight\":{\"dtype\":\"F16\","
        "\"shape\":[1,32],\"data_offsets\":[%zu,%zu]},"
        "\"base_model.model.model.layers.0.self_attn.v_proj.lora_B.default.weight\":{\"dtype\":\"BF16\","
        "\"shape\":[16,1],\"data_offsets\":[%zu,%zu]}}",
        name, dtype, shape, n, n, n + 64, n + 64, n + 128, n + 128, n + 160);
    assert_in_range(length, 1, HEADER_SIZE - 1);
    FILE *file = fopen(tensors_file(), "wb");
    for (int i = 0; i < 8; i++) fputc(i < 2 ? length >> (8 * i) & 255 : 0, file);
    fwrite(header, 1, (size_t)length, file);
    fwrite(data, 1, n, file);
    for (size_t i = 0; i < 16; i++) fwrite(data + 1, 1, 4, file);
    for (size_t i = 0; i < 32; i++) fwrite((uint8_t[]){0x00, 0x40}, 1, 2, file); /* 2 as F16 */
    for (size_t i = 0; i < 16; i++) fwrite((uint8_t[]){0x40, 0x40}, 1, 2, file); /* 3 as BF16 */
    fclose(file);
}

static void test_tensors(void **state) {
    (void)state;
    const char *good = "base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight";
    variant("r", "1");
    write_tensors(good, "F32", "[1,32]", 128, 0);
    struct lora *lora = NULL;
    assert_int_equal(peft_import(peft_folder(), &base.model, &lora, NULL), ATTUNE_OK);
    assert_int_equal(lora->config.targets, 1 << TARGET_V);
    assert_true(lora->pairs[0].target[TARGET_V].a[31] == 2);
    assert_true(lora->pairs[0].target[TARGET_V].b[15] == 3);
    assert_true(lora->pairs[1].target[TARGET_V].a[31] == 1);
    lora_destroy(lora);

    write_tensors(good, "F32", "[1,32]", 128, 1);
    expect(ATTUNE_ERROR_FORMAT, "A of blk.1.attn_v.weight");
    write_tensors(good, "F32", "[1,32]", 128, 2);
    expect(ATTUNE_ERROR_FORMAT, "A of blk.1.attn_v.weight");
    write_tensors(good, "F64", "[1,32]", 256, 0);
    expect(ATTUNE_ERROR_UNSUPPORTED, "lora_A.weight is F64");
    write_tensors(good, "F32", "[1,31]", 124, 0);
    expect(ATTUNE_ERROR_MISMATCH, "takes 31 inputs");
    write_tensors(good, "F32", "[2,32]", 256, 0);
    expect(ATTUNE_ERROR_FORMAT, "has rank 2");
    write_tensors(good, "F32", "[0,32]", 0, 0);
    expect(ATTUNE_ERROR_FORMAT, "has rank 0");
    write_tensors(good, "F32", "[32]", 128, 0);
    expect(ATTUNE_ERROR_FORMAT, "not a matrix");
    write_tensors(good, "F32", "[1,32]", 124, 0);
    expect(ATTUNE_ERROR_FORMAT, "do not fit its shape");
    write_tensors("base_model.model.model.layers.1.self_attn.v_proj.lora_B.default.weight", "F32", "[16,1]", 64, 0);
    expect(ATTUNE_ERROR_FORMAT, "are the same tensor");
    write_tensors("base_model.model.model.layers.1.self_attn.k_proj.lora_A.weight", "F32", "[1,32]", 128, 0);
    expect(ATTUNE_ERROR_UNSUPPORTED, "layer 0 has no pair for attn_k");
    write_tensors("base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight", "F32", "[1,32]", 128, 0);
    expect(ATTUNE_ERROR_FORMAT, "layers.0.self_attn.k_proj.lora_A.weight is there without its B");
    write_tensors("base_model.model.model.layers.2.self_attn.v_proj.lora_A.weight", "F32", "[1,32]", 128, 0);
    expect(ATTUNE_ERROR_MISMATCH, "the base has 2 layers");
    static const char *const unknown[] = {
        "base_model.model.lm_head.lora_A.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.model.layers.1.self_attn.v_proj.lora_magnitude_vector",
        "base_model.model.model.layers.1.self_attn.v_proj.lora_B.bias",
        "base_model.model.model.layers.1.self_attn.v_proj.base_layer.bias",
        "base_model.model.model.layers.1.self_attn.v_proj.lora_A.other.weight",
        "base_model.model.model.layers.1.self_attn.qkv_proj.lora_A.weight",
        "base_model.model.model.layers.01.self_attn.v_proj.lora_A.weight",
        "base_model.model.model.layers.-1.self_attn.v_proj.lora_A.weight",
        "base_model.model.model.layers.99999999999999999999.self_attn.v_proj.lora_A.weight",
        "base_model.model.model.layers.",
        "../../../etc/passwd",
        "base_model.model.model.layers.1.mlp.v_proj.lora_A.weight",
    };
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        write_tensors(unknown[i], "F32", "[1,32]", 128, 0);
        expect(ATTUNE_ERROR_UNSUPPORTED, unknown[i]);
    }
    clean();
}

/* No prefix of the tensors' file is an adapter, nor is a longer file. */
static void test_truncation(void **state) {
    (void)state;
    variant("r", "1");
    write_tensors("base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight", "F32", "[1,32]", 128, 0);
    size_t size;
    unsigned char *bytes = tiny_read(tensors_file(), &size);
    for (size_t n = 0; n <= size + 1; n++) {
        if (n == size) continue;
        struct lora *lora = NULL;
        tiny_write(tensors_file(), bytes, n); /* one more: tiny_read's NUL */
        if (peft_import(peft_folder(), &base.model, &lora, NULL) != ATTUNE_ERROR_FORMAT)
            fail_msg("%zu of %zu bytes were read as an adapter", n, size);
    }
    free(bytes);
    clean();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),      cmocka_unit_test(test_exported_config),
        cmocka_unit_test(test_export_fails_clean), cmocka_unit_test(test_golden),
        cmocka_unit_test(test_rslora),          cmocka_unit_test(test_config_accepted),
        cmocka_unit_test(test_config_refused),  cmocka_unit_test(test_config_text),
        cmocka_unit_test(test_pickle),          cmocka_unit_test(test_tensors),
        cmocka_unit_test(test_truncation),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
