#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "adapters/adapter_file.h"
#include "core/base/hash.h"
#include "tests/tiny_base.h"

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

static const char *in_folder(const char *name) {
    static char path[300];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static struct adapter_record record_make(void) {
    struct adapter_record record = {0};
    memset(record.base_sha256, 'a', 64);
    memset(record.run, 'b', 64);
    memset(record.parent_sha256, 'c', 64);
    snprintf(record.configuration, sizeof record.configuration, "{\"rank\":3}");
    snprintf(record.origin, sizeof record.origin, "trained");
    return record;
}

static void test_round_trip(void **state) {
    (void)state;
    struct lora *lora = tiny_lora(&base.model, 3, 6.5f, LORA_ALL_TARGETS & ~(1u << TARGET_GATE)), *back = NULL;
    struct adapter_record record = record_make(), found;
    char written[65], again[65], read[65], hash[65];
    const char *path = in_folder("a.gguf");
    assert_int_equal(adapter_write(lora, &base.model, &record, path, "adapter", written, NULL), ATTUNE_OK);
    assert_int_equal(adapter_read(path, &base.model, &back, &found, read, NULL), ATTUNE_OK);
    assert_string_equal(written, read);
    size_t size;
    unsigned char *bytes = tiny_read(path, &size);
    hash_bytes(bytes, size, hash);
    assert_string_equal(written, hash);
    free(bytes);
    assert_memory_equal(&record, &found, sizeof record);
    assert_int_equal(back->n, lora->n);
    assert_memory_equal(back->parameters, lora->parameters, lora->n * sizeof(float));
    assert_int_equal(back->config.rank, 3);
    assert_int_equal(back->config.targets, lora->config.targets);
    assert_true(back->config.alpha == 6.5f);
    assert_true(back->pairs[1].target[TARGET_Q].scale == 6.5f / 3);
    lora_destroy(back);

    /* versions are immutable, and the same adapter is the same bytes */
    attune_error err = {0};
    assert_true(adapter_write(lora, &base.model, &record, path, "adapter", NULL, &err) < 0);
    assert_true(err.code < 0);
    unlink(path);
    assert_int_equal(adapter_write(lora, &base.model, &record, path, "adapter", again, NULL), ATTUNE_OK);
    assert_string_equal(written, again);
    unlink(path);
    lora_destroy(lora);
}

/* Keys, names and dims as llama.cpp's adapter loader wants them. */
static void test_layout_of_file(void **state) {
    (void)state;
    struct lora *lora = tiny_lora(&base.model, 3, 6, 1 << TARGET_K | 1 << TARGET_DOWN);
    struct adapter_record record = {0};
    const char *path = in_folder("a.gguf");
    struct gguf *gguf = NULL;
    assert_int_equal(adapter_write(lora, &base.model, &record, path, "adapter", NULL, NULL), ATTUNE_OK);
    assert_int_equal(gguf_open(path, FILE_READ, &gguf, NULL), ATTUNE_OK);
    static const char *const texts[][2] = {
        {"general.type", "adapter"}, {"general.architecture", "llama"}, {"adapter.type", "lora"}};
    for (size_t i = 0; i < 3; i++) {
        char value[32];
        assert_int_equal(gguf_get_text(gguf, texts[i][0], value, sizeof value, NULL), ATTUNE_OK);
        assert_string_equal(value, texts[i][1]);
    }
    const struct gguf_pair *alpha = gguf_find(gguf, "adapter.lora.alpha");
    assert_non_null(alpha);
    assert_int_equal(alpha->kind, GGUF_F32);
    assert_null(gguf_find(gguf, "attune.base.sha256"));
    assert_null(gguf_find(gguf, "attune.parent"));
    assert_int_equal(gguf->n_tensors, 8);
    static const struct {
        const char *name;
        uint64_t dims[2];
    } tensors[] = {{"blk.0.attn_k.weight.lora_a", {32, 3}},
                   {"blk.0.attn_k.weight.lora_b", {3, 16}},
                   {"blk.1.ffn_down.weight.lora_a", {48, 3}},
                   {"blk.1.ffn_down.weight.lora_b", {3, 32}}};
    for (size_t i = 0; i < 4; i++) {
        const struct gguf_tensor *tensor = gguf_tensor_find(gguf, tensors[i].name);
        assert_non_null(tensor);
        assert_int_equal(tensor->type, BLOCK_F32);
        assert_int_equal(tensor->n_dims, 2);
        assert_int_equal(tensor->dims[0], tensors[i].dims[0]);
        assert_int_equal(tensor->dims[1], tensors[i].dims[1]);
    }
    const struct gguf_tensor *b = gguf_tensor_find(gguf, "blk.1.ffn_down.weight.lora_b");
    assert_memory_equal(b->data, lora->pairs[1].target[TARGET_DOWN].b, 3 * 32 * 4);
    gguf_close(gguf);
    unlink(path);
    lora_destroy(lora);
}

static void test_write_refuses(void **state) {
    (void)state;
    struct lora *lora = tiny_lora(&base.model, 2, 4, LORA_ALL_TARGETS);
    struct adapter_record record = record_make();
    attune_error err = {0};
    memset(record.base_sha256, 'd', 64);
    assert_int_equal(adapter_write(lora, &base.model, &record, in_folder("a.gguf"), "adapter", NULL, &err),
                     ATTUNE_ERROR_ARGUMENT);
    record = record_make();
    lora->parameters[5] = NAN;
    assert_int_equal(adapter_write(lora, &base.model, &record, in_folder("a.gguf"), "adapter", NULL, &err),
                     ATTUNE_ERROR_FORMAT);
    assert_non_null(strstr(err.message, "blk.0.attn_q.weight"));
    assert_int_equal(access(in_folder("a.gguf"), F_OK), -1);
    lora_destroy(lora);
}

/* ---- files of other makers, and hostile ones ---- */

/* A file for attn_v of both layers, rank 2, changed in one way. NULL or 0: as it should be. */
struct variant {
    const char *type, *architecture, *adapter_type, *base_sha256, *origin, *run; /* "-": left out */
    uint32_t version;          /* UINT32_MAX: left out */
    double alpha;              /* 0: 4 */
    int alpha_zero, no_alpha, alora;
    const char *name;          /* of layer 1's A */
    int no_a, no_b, no_layer_1, no_tensors;
    uint64_t a[2], b[2];       /* dims of layer 1's; 0: (32, 2) and (2, 16) */
    uint32_t a_dims;
    enum block_type block;     /* of all */
    int bad_a, bad_b;          /* layer 1's: 1 NaN, 2 infinity */
    size_t extra;              /* bytes behind the file */
};

static const char *or_else(const char *text, const char *otherwise) { return text ? text : otherwise; }

static void put_text(struct gguf_writer *writer, const char *key, const char *value) {
    if (strcmp(value, "-") != 0) gguf_put_string(writer, key, value);
}

static void put_half(struct gguf_writer *writer, const char *name, enum block_type type, uint32_t n_dims,
                     const uint64_t dims[2], int bad, unsigned char data[8192]) {
    const struct block_format *format = block_format_get(type);
    float row[2048];
    size_t n = dims[0] * dims[1];
    assert_true(n <= 2048);
    for (size_t i = 0; i < n; i++) row[i] = (float)(i % 17) / 16;
    if (bad) row[n - 1] = bad == 1 ? NAN : INFINITY;
    if (format->quantize) format->quantize(data, row, n);
    else memset(data, 0, 8192);
    uint64_t all[3] = {dims[0], dims[1], 2};
    gguf_put_tensor(writer, name, type, n_dims, all, data);
}

static void put_tensors(struct gguf_writer *writer, const struct variant *v, unsigned char data[4][8192]) {
    static const uint64_t a[2] = {32, 2}, b[2] = {2, 16};
    uint32_t dims = v->a_dims ? v->a_dims : 2;
    put_half(writer, "blk.0.attn_v.weight.lora_a", v->block, 2, a, 0, data[0]);
    put_half(writer, "blk.0.attn_v.weight.lora_b", v->block, 2, b, 0, data[1]);
    if (v->no_layer_1) return;
    if (!v->no_a)
        put_half(writer, or_else(v->name, "blk.1.attn_v.weight.lora_a"), v->block, dims, v->a[0] ? v->a : a, v->bad_a,
                 data[2]);
    if (!v->no_b)
        put_half(writer, "blk.1.attn_v.weight.lora_b", v->block, 2, v->b[0] ? v->b : b, v->bad_b, data[3]);
}

static void write_variant(const char *path, const struct variant *v) {
    struct gguf_writer *writer = NULL;
    static unsigned char data[4][8192];
    static const char other[65] = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    assert_int_equal(gguf_writer_create(&writer, NULL), ATTUNE_OK);
    put_text(writer, "general.type", or_else(v->type, "adapter"));
    put_text(writer, "general.architecture", or_else(v->architecture, "llama"));
    put_text(writer, "adapter.type", or_else(v->adapter_type, "lora"));
    if (!v->no_alpha)
        gguf_put_f32(writer, "adapter.lora.alpha", v->alpha_zero ? 0 : v->alpha != 0 ? (float)v->alpha : 4);
    if (v->alora) gguf_put_array(writer, "adapter.alora.invocation_tokens", GGUF_U32, (uint32_t[]){1, 2}, 2);
    if (v->version != UINT32_MAX) gguf_put_u32(writer, "attune.format_version", v->version ? v->version : 1);
    put_text(writer, "attune.base.sha256", or_else(v->base_sha256, other));
    put_text(writer, "attune.run", or_else(v->run, "-"));
    put_text(writer, "attune.origin", or_else(v->origin, "-"));
    if (!v->no_tensors) put_tensors(writer, v, data);
    assert_int_equal(gguf_writer_publish(writer, path, "test", 0, NULL, NULL), ATTUNE_OK);
    gguf_writer_destroy(writer);
    if (v->extra) {
        FILE *file = fopen(path, "ab");
        for (size_t i = 0; i < v->extra; i++) fputc(0, file);
        fclose(file);
    }
}

static void expect(const struct variant *v, int code, const char *named) {
    const char *path = in_folder("v.gguf");
    struct lora *lora = NULL;
    struct adapter_record record;
    char sha256[65];
    attune_error err = {0};
    write_variant(path, v);
    int got = adapter_read(path, &base.model, &lora, &record, sha256, &err);
    if (got != code || err.code != code || (named && !strstr(err.message, named)))
        fail_msg("expected %d with \"%s\", got %d: %s (%s)", code, named ? named : "", got, err.message, err.where);
    assert_true((code == ATTUNE_OK) == (lora != NULL));
    lora_destroy(lora);
    unlink(path);
}

static void test_variants_accepted(void **state) {
    (void)state;
    expect(&(struct variant){0}, ATTUNE_OK, NULL);
    expect(&(struct variant){.block = BLOCK_F16}, ATTUNE_OK, NULL);
    expect(&(struct variant){.block = BLOCK_BF16}, ATTUNE_OK, NULL);
    expect(&(struct variant){.base_sha256 = "-", .version = UINT32_MAX}, ATTUNE_OK, NULL);
    expect(&(struct variant){.alpha = -2}, ATTUNE_OK, NULL);
    expect(&(struct variant){.alpha = 65536}, ATTUNE_OK, NULL);
    expect(&(struct variant){.extra = 31}, ATTUNE_OK, NULL); /* padding of the last tensor */
    expect(&(struct variant){.origin = "trained"}, ATTUNE_OK, NULL);
}

/* A foreign file has an empty record, but for its origin. */
static void test_foreign_record(void **state) {
    (void)state;
    const char *path = in_folder("foreign.gguf");
    struct lora *lora = NULL;
    struct adapter_record record;
    memset(&record, 'x', sizeof record);
    write_variant(path, &(struct variant){.base_sha256 = "-", .version = UINT32_MAX});
    assert_int_equal(adapter_read(path, &base.model, &lora, &record, NULL, NULL), ATTUNE_OK);
    assert_string_equal(record.base_sha256, "");
    assert_string_equal(record.run, "");
    assert_string_equal(record.parent_sha256, "");
    assert_string_equal(record.configuration, "");
    assert_string_equal(record.origin, "imported");
    lora_destroy(lora);
    unlink(path);
}

static void test_other_base(void **state) {
    (void)state;
    static const char other[65] = "123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0";
    expect(&(struct variant){.base_sha256 = other}, ATTUNE_ERROR_MISMATCH, "123456789abc...");
    expect(&(struct variant){.base_sha256 = other}, ATTUNE_ERROR_MISMATCH, "aaaaaaaaaaaa...");
    expect(&(struct variant){.base_sha256 = "12"}, ATTUNE_ERROR_FORMAT, "attune.base.sha256");
    expect(&(struct variant){.run = "ZZ"}, ATTUNE_ERROR_FORMAT, "attune.run");
    expect(&(struct variant){.architecture = "qwen2"}, ATTUNE_ERROR_MISMATCH, "\"qwen2\"");
    expect(&(struct variant){.architecture = "-"}, ATTUNE_ERROR_FORMAT, "general.architecture");
    /* an unknown hash on our side checks nothing */
    base.model.sha256[0] = '\0';
    expect(&(struct variant){.base_sha256 = other}, ATTUNE_OK, NULL);
    base.model.sha256[0] = 'a';
}

static void test_not_an_adapter(void **state) {
    (void)state;
    expect(&(struct variant){.type = "model"}, ATTUNE_ERROR_FORMAT, "general.type is \"model\"");
    expect(&(struct variant){.type = "-"}, ATTUNE_ERROR_FORMAT, "general.type");
    expect(&(struct variant){.adapter_type = "loha"}, ATTUNE_ERROR_UNSUPPORTED, "\"loha\"");
    expect(&(struct variant){.adapter_type = "-"}, ATTUNE_ERROR_FORMAT, "adapter.type");
    expect(&(struct variant){.alora = 1}, ATTUNE_ERROR_UNSUPPORTED, "alora");
    expect(&(struct variant){.version = 2}, ATTUNE_ERROR_UNSUPPORTED, "attune.format_version is 2");
    expect(&(struct variant){.origin = "stolen"}, ATTUNE_ERROR_FORMAT, "\"stolen\"");
    expect(&(struct variant){.no_tensors = 1}, ATTUNE_ERROR_FORMAT, "no tensors");
}

static void test_alpha(void **state) {
    (void)state;
    expect(&(struct variant){.no_alpha = 1}, ATTUNE_ERROR_FORMAT, "adapter.lora.alpha");
    expect(&(struct variant){.alpha_zero = 1}, ATTUNE_ERROR_FORMAT, "alpha is 0");
    expect(&(struct variant){.alpha = NAN}, ATTUNE_ERROR_FORMAT, "alpha is nan");
    expect(&(struct variant){.alpha = INFINITY}, ATTUNE_ERROR_FORMAT, "alpha is inf");
    expect(&(struct variant){.alpha = 1e30}, ATTUNE_ERROR_FORMAT, "alpha is 1e+30");
    expect(&(struct variant){.alpha = -65537}, ATTUNE_ERROR_FORMAT, "alpha is -65537");
}

static void test_shapes(void **state) {
    (void)state;
    expect(&(struct variant){.a = {31, 2}}, ATTUNE_ERROR_MISMATCH, "blk.1.attn_v.weight.lora_a takes 31 inputs");
    expect(&(struct variant){.b = {2, 17}}, ATTUNE_ERROR_MISMATCH, "blk.1.attn_v.weight.lora_b gives 17 outputs");
    expect(&(struct variant){.a = {32, 3}}, ATTUNE_ERROR_FORMAT, "blk.1.attn_v.weight.lora_a has rank 3");
    expect(&(struct variant){.a = {32, 3}, .b = {3, 16}}, ATTUNE_ERROR_UNSUPPORTED,
           "blk.1.attn_v.weight.lora_a has rank 3, others have 2");
    expect(&(struct variant){.a_dims = 3}, ATTUNE_ERROR_FORMAT, "blk.1.attn_v.weight.lora_a is not a matrix");
}

static void test_tensors(void **state) {
    (void)state;
    expect(&(struct variant){.no_a = 1}, ATTUNE_ERROR_FORMAT, "blk.1.attn_v.weight.lora_b is there without its A");
    expect(&(struct variant){.no_b = 1}, ATTUNE_ERROR_FORMAT, "blk.1.attn_v.weight.lora_a is there without its B");
    expect(&(struct variant){.no_layer_1 = 1}, ATTUNE_ERROR_UNSUPPORTED, "layer 1 has no pair for attn_v");
    expect(&(struct variant){.bad_a = 1}, ATTUNE_ERROR_FORMAT, "A of blk.1.attn_v.weight");
    expect(&(struct variant){.bad_b = 2}, ATTUNE_ERROR_FORMAT, "B of blk.1.attn_v.weight");
    expect(&(struct variant){.bad_a = 2, .block = BLOCK_F16}, ATTUNE_ERROR_FORMAT, "A of blk.1.attn_v.weight");
    expect(&(struct variant){.extra = 4096}, ATTUNE_ERROR_FORMAT, "4096 bytes after the last tensor");
    expect(&(struct variant){.name = "blk.2.attn_v.weight.lora_a"}, ATTUNE_ERROR_MISMATCH, "the base has 2 layers");
    expect(&(struct variant){.name = "blk.999999999.attn_v.weight.lora_a"}, ATTUNE_ERROR_MISMATCH, "blk.999999999.");
    static const char *const unknown[] = {
        "token_embd.weight.lora_a",      "output.weight.lora_a",           "blk.1.attn_norm.weight",
        "blk.1.attn_vv.weight.lora_a",   "blk.1.attn_v.weight.lora_c",     "blk.1.attn_v.weight",
        "blk.1.attn_v.lora_a",           "blk.1.attn_v.weight.lora_aa",    "blk.01.attn_v.weight.lora_a",
        "blk..attn_v.weight.lora_a",     "blk.-1.attn_v.weight.lora_a",    "blk.1",
        "blk.1.",                        "blk.9999999999999999999999.attn_v.weight.lora_a",
        "blk.4294967297.attn_v.weight.lora_a"};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++)
        expect(&(struct variant){.name = unknown[i]}, ATTUNE_ERROR_UNSUPPORTED, unknown[i]);
}

/* Quantized tensors, and ranks over the limit. */
static void test_types_and_ranks(void **state) {
    (void)state;
    struct gguf_writer *writer = NULL;
    static unsigned char data[300 * 64 * 4];
    const struct {
        enum block_type type;
        uint64_t rank;
        const char *named;
    } cases[] = {{BLOCK_Q8_0, 32, "Q8_0"}, {BLOCK_F32, 257, "rank 257"}};
    for (size_t i = 0; i < 2; i++) {
        const char *path = in_folder("t.gguf");
        assert_int_equal(gguf_writer_create(&writer, NULL), ATTUNE_OK);
        gguf_put_string(writer, "general.type", "adapter");
        gguf_put_string(writer, "general.architecture", "llama");
        gguf_put_string(writer, "adapter.type", "lora");
        gguf_put_f32(writer, "adapter.lora.alpha", 4);
        for (int l = 0; l < 2; l++) {
            char name[64];
            snprintf(name, sizeof name, "blk.%d.attn_v.weight.lora_a", l);
            gguf_put_tensor(writer, name, cases[i].type, 2, (uint64_t[]){32, cases[i].rank}, data);
            snprintf(name, sizeof name, "blk.%d.attn_v.weight.lora_b", l);
            gguf_put_tensor(writer, name, cases[i].type, 2, (uint64_t[]){cases[i].rank, 16}, data);
        }
        assert_int_equal(gguf_writer_publish(writer, path, "test", 0, NULL, NULL), ATTUNE_OK);
        gguf_writer_destroy(writer);
        struct lora *lora = NULL;
        attune_error err = {0};
        assert_int_equal(adapter_read(path, &base.model, &lora, NULL, NULL, &err), ATTUNE_ERROR_UNSUPPORTED);
        assert_non_null(strstr(err.message, cases[i].named));
        unlink(path);
    }
}

/* A dimension of 0, written over the rank in the file's bytes. */
static void test_rank_0(void **state) {
    (void)state;
    const char *path = in_folder("zero.gguf"), *name = "blk.1.attn_v.weight.lora_a";
    struct lora *lora = NULL;
    attune_error err = {0};
    size_t size;
    write_variant(path, &(struct variant){0});
    unsigned char *bytes = tiny_read(path, &size), *at = memmem(bytes, size, name, strlen(name));
    assert_non_null(at);
    at += strlen(name) + 4 + 8; /* n_dims, in */
    assert_int_equal(at[0], 2);
    at[0] = 0;
    tiny_write(path, bytes, size);
    assert_int_equal(adapter_read(path, &base.model, &lora, NULL, NULL, &err), ATTUNE_ERROR_FORMAT);
    assert_non_null(strstr(err.message, name));
    assert_null(lora);
    free(bytes);
    unlink(path);
}

/* No prefix of a file is an adapter. */
static void test_truncation(void **state) {
    (void)state;
    const char *path = in_folder("whole.gguf");
    struct lora *lora = tiny_lora(&base.model, 1, 4, 1 << TARGET_V), *back = NULL;
    struct adapter_record record = record_make();
    assert_int_equal(adapter_write(lora, &base.model, &record, path, "adapter", NULL, NULL), ATTUNE_OK);
    size_t size;
    unsigned char *bytes = tiny_read(path, &size);
    assert_true(size > 1000);
    for (size_t n = 0; n < size; n++) {
        attune_error err = {0};
        tiny_write(path, bytes, n);
        int code = adapter_read(path, &base.model, &back, &record, NULL, &err);
        if (code >= 0) fail_msg("%zu of %zu bytes were read as an adapter", n, size);
        assert_int_equal(err.code, code);
        assert_null(back);
    }
    tiny_write(path, bytes, size);
    assert_int_equal(adapter_read(path, &base.model, &back, &record, NULL, NULL), ATTUNE_OK);
    free(bytes);
    lora_destroy(lora);
    lora_destroy(back);
    unlink(path);
}

static void test_no_file(void **state) {
    (void)state;
    struct lora *lora = NULL;
    attune_error err = {0};
    assert_int_equal(adapter_read(in_folder("none.gguf"), &base.model, &lora, NULL, NULL, &err), ATTUNE_ERROR_IO);
    assert_int_equal(adapter_read(folder, &base.model, &lora, NULL, NULL, &err), ATTUNE_ERROR_FORMAT);
    const char *fifo = in_folder("fifo");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_int_equal(adapter_read(fifo, &base.model, &lora, NULL, NULL, &err), ATTUNE_ERROR_FORMAT);
    unlink(fifo);
    assert_null(lora);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),        cmocka_unit_test(test_layout_of_file),
        cmocka_unit_test(test_write_refuses),     cmocka_unit_test(test_variants_accepted),
        cmocka_unit_test(test_foreign_record),    cmocka_unit_test(test_other_base),
        cmocka_unit_test(test_not_an_adapter),    cmocka_unit_test(test_alpha),
        cmocka_unit_test(test_shapes),            cmocka_unit_test(test_tensors),
        cmocka_unit_test(test_types_and_ranks),   cmocka_unit_test(test_truncation),
        cmocka_unit_test(test_no_file),           cmocka_unit_test(test_rank_0),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
