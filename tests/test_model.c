/* Opening models: what the tiny ones and the real one say, and every way in which a file can be wrong. The wrong ones
 * are tiny models written again with an edit or two. */
#include "core/base/file.h"
#include "core/model/model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define GOLDEN ATTUNE_TEST_ROOT "/tests/golden/"

static const char *const llama = GOLDEN "tiny_llama.gguf";
static const char *const llama3 = GOLDEN "tiny_llama3.gguf";
static const char *const qwen2 = GOLDEN "tiny_qwen2.gguf";

static char folder[64];

/* ---- models written again ---- */

enum edit_kind { KEEP, U32, U64, F32, F64, BOOL, TEXT, NO_KEY, TENSOR, NO_TENSOR };
struct edit {
    enum edit_kind kind;
    const char *name;
    double number;         /* the value; of a tensor in F32, F16, BF16: its last element, the others are 1 */
    const char *text;
    enum block_type type;  /* of a tensor; all other types are zero bytes */
    uint64_t cols, rows;   /* rows 0: a vector */
};
enum { EDITS = 3 };

struct rewriter {
    struct gguf_writer *writer;
    const struct edit *edits; /* (EDITS) */
    void *owned[512];         /* freed once the file is written */
    size_t n_owned;
};

static void *own(struct rewriter *r, size_t bytes) {
    assert_true(r->n_owned < sizeof r->owned / sizeof *r->owned);
    return r->owned[r->n_owned++] = test_calloc(1, bytes + 1);
}

static char *copy_text(struct rewriter *r, struct gguf_string text) {
    return memcpy(own(r, text.size), text.data, text.size);
}

static const struct edit *edit_of(const struct rewriter *r, const char *name, int of_tensor) {
    for (int i = 0; i < EDITS; i++) {
        const struct edit *e = &r->edits[i];
        int is_tensor = e->kind == TENSOR || e->kind == NO_TENSOR;
        if (e->kind != KEEP && is_tensor == of_tensor && strcmp(e->name, name) == 0) return e;
    }
    return NULL;
}

static void put_edit(struct rewriter *r, const struct edit *e) {
    uint64_t dims[2] = {e->cols, e->rows ? e->rows : 1};
    switch (e->kind) {
    case U32: gguf_put_u32(r->writer, e->name, (uint32_t)e->number); break;
    case U64: gguf_put_u64(r->writer, e->name, (uint64_t)e->number); break;
    case F32: gguf_put_f32(r->writer, e->name, (float)e->number); break;
    case F64: gguf_put_f64(r->writer, e->name, e->number); break;
    case BOOL: gguf_put_bool(r->writer, e->name, e->number != 0); break;
    case TEXT: gguf_put_string(r->writer, e->name, e->text); break;
    case TENSOR: {
        size_t n = dims[0] * dims[1];
        unsigned char *data = own(r, block_row_bytes(e->type, dims[0]) * dims[1]);
        for (size_t i = 0; i < n; i++) {
            float value = i + 1 < n ? 1.0f : (float)e->number;
            uint32_t bits;
            uint16_t half = half_from_float(value);
            memcpy(&bits, &value, sizeof bits);
            uint16_t top = (uint16_t)(bits >> 16);
            if (e->type == BLOCK_F32) memcpy(data + 4 * i, &value, 4);
            if (e->type == BLOCK_F16) memcpy(data + 2 * i, &half, 2);
            if (e->type == BLOCK_BF16) memcpy(data + 2 * i, &top, 2);
        }
        gguf_put_tensor(r->writer, e->name, e->type, e->rows ? 2 : 1, dims, data);
        break;
    }
    default: break;
    }
}

static void put_pair(struct rewriter *r, const struct gguf *from, const struct gguf_pair *pair, const char *key) {
    uint64_t integer;
    double number;
    int truth;
    struct gguf_string text;
    if (pair->kind == GGUF_ARRAY && pair->element == GGUF_STRING) {
        char *all = own(r, from->file.size);
        const char **strings = own(r, pair->count * sizeof *strings);
        for (size_t i = 0; i < pair->count; i++) {
            strings[i] = memcpy(all, pair->strings[i].data, pair->strings[i].size);
            all += pair->strings[i].size + 1;
        }
        gguf_put_strings(r->writer, key, strings, pair->count);
    } else if (pair->kind == GGUF_ARRAY) {
        gguf_put_array(r->writer, key, pair->element, pair->value, pair->count);
    } else if (pair->kind == GGUF_STRING) {
        assert_int_equal(gguf_get_string(from, key, &text, NULL), ATTUNE_OK);
        gguf_put_string(r->writer, key, copy_text(r, text));
    } else if (pair->kind == GGUF_BOOL) {
        assert_int_equal(gguf_get_bool(from, key, &truth, NULL), ATTUNE_OK);
        gguf_put_bool(r->writer, key, truth);
    } else if (pair->kind == GGUF_F32) {
        assert_int_equal(gguf_get_f64(from, key, &number, NULL), ATTUNE_OK);
        gguf_put_f32(r->writer, key, (float)number);
    } else {
        assert_int_equal(gguf_get_u64(from, key, &integer, NULL), ATTUNE_OK);
        gguf_put_u32(r->writer, key, (uint32_t)integer);
    }
}

/* The model `base` with the edits, at `path`. */
static void rewrite(const char *base, const struct edit edits[EDITS], const char *path) {
    struct rewriter r = {.edits = edits};
    struct gguf *from = NULL;
    attune_error err = {0};
    assert_int_equal(gguf_open(base, FILE_READ, &from, &err), ATTUNE_OK);
    assert_int_equal(gguf_writer_create(&r.writer, &err), ATTUNE_OK);
    for (size_t i = 0; i < from->n_pairs; i++) {
        const char *key = copy_text(&r, from->pairs[i].key);
        if (!edit_of(&r, key, 0)) put_pair(&r, from, &from->pairs[i], key);
    }
    for (int i = 0; i < EDITS; i++)
        if (edits[i].kind != TENSOR) put_edit(&r, &edits[i]);
    for (size_t i = 0; i < from->n_tensors; i++) {
        const struct gguf_tensor *t = &from->tensors[i];
        if (!edit_of(&r, t->name, 1)) gguf_put_tensor(r.writer, t->name, t->type, t->n_dims, t->dims, t->data);
    }
    for (int i = 0; i < EDITS; i++)
        if (edits[i].kind == TENSOR) put_edit(&r, &edits[i]);
    if (gguf_writer_publish(r.writer, path, "test", 0, NULL, &err)) fail_msg("%s: %s", path, err.message);
    gguf_writer_destroy(r.writer);
    gguf_close(from);
    for (size_t i = 0; i < r.n_owned; i++) test_free(r.owned[i]);
}

static const char *edited_path(void) {
    static char path[96];
    snprintf(path, sizeof path, "%s/edited.gguf", folder);
    return path;
}

static struct model *open_edited(const char *base, const struct edit edits[EDITS]) {
    struct model *model = NULL;
    attune_error err = {0};
    rewrite(base, edits, edited_path());
    if (model_open(edited_path(), FILE_MAP, &model, &err)) fail_msg("%s: %s", err.where, err.message);
    return model;
}

static struct model *open_model(const char *path, enum file_load load) {
    struct model *model = NULL;
    attune_error err = {0};
    if (model_open(path, load, &model, &err)) fail_msg("%s: %s: %s", path, err.where, err.message);
    return model;
}

/* ---- models as they are ---- */

static void check_matrix(const struct matrix *w, enum block_type type, size_t rows, size_t cols) {
    assert_non_null(w->data);
    assert_int_equal(w->type, type);
    assert_int_equal(w->rows, rows);
    assert_int_equal(w->cols, cols);
    assert_int_equal(w->row_bytes, block_row_bytes(type, cols));
}

/* Every weight is where its name says; biases where there are some. */
static void check_layers(const struct model *m) {
    size_t q = m->H * m->D, kv = m->KV * m->D;
    size_t shapes[TARGET_COUNT][2] = {{q, m->C},    {kv, m->C},   {kv, m->C},  {m->C, q},
                                      {m->F, m->C}, {m->F, m->C}, {m->C, m->F}};
    for (size_t l = 0; l < m->L; l++) {
        assert_non_null(m->layers[l].attn_norm);
        assert_non_null(m->layers[l].ffn_norm);
        for (int t = 0; t < TARGET_COUNT; t++) {
            char name[64];
            snprintf(name, sizeof name, "blk.%zu.%s.weight", l, target_names[t]);
            const struct gguf_tensor *tensor = gguf_tensor_find(m->gguf, name);
            assert_non_null(tensor);
            assert_ptr_equal(m->layers[l].linear[t].data, tensor->data);
            check_matrix(&m->layers[l].linear[t], tensor->type, shapes[t][0], shapes[t][1]);
            int has_bias = m->architecture->qkv_bias && t <= TARGET_V;
            assert_int_equal(m->layers[l].bias[t] != NULL, has_bias);
        }
    }
}

static void test_tiny_llama(void **state) {
    (void)state;
    for (int load = FILE_MAP; load <= FILE_READ; load++) {
        struct model *m = open_model(llama, load);
        assert_string_equal(m->architecture->name, "llama");
        assert_string_equal(m->name, "tiny_llama");
        assert_string_equal(m->sha256, "");
        assert_int_equal(m->C, 64);
        assert_int_equal(m->H, 4);
        assert_int_equal(m->KV, 2);
        assert_int_equal(m->D, 16);
        assert_int_equal(m->F, 96);
        assert_int_equal(m->V, 349);
        assert_int_equal(m->L, 2);
        assert_int_equal(m->context, 256);
        assert_true(m->eps == 1e-5f);
        assert_int_equal(m->rope.style, ROPE_INTERLEAVED);
        assert_int_equal(m->rope.dims, 16);
        assert_true(m->rope.base == 10000.0f);
        assert_null(m->rope.factors);
        check_matrix(&m->embedding, BLOCK_Q8_0, 349, 64);
        assert_ptr_equal(m->head.data, m->embedding.data);
        check_layers(m);
        assert_int_equal(m->layers[1].linear[TARGET_DOWN].type, BLOCK_Q4_1);
        assert_int_equal(tokenizer_size(m->tokenizer), 349);
        assert_non_null(m->chat);
        /* V C + C + L (2 C + H D C + 2 KV D C + C H D + 3 F C) */
        assert_int_equal(model_parameters(m), 349 * 64 + 64 + 2 * (128 + 4096 + 2 * 2048 + 4096 + 3 * 6144));
        model_close(m);
    }
}

static void test_tiny_llama3(void **state) {
    (void)state;
    struct model *m = open_model(llama3, FILE_MAP);
    assert_int_equal(m->C, 48);
    assert_int_equal(m->H, 3);
    assert_int_equal(m->KV, 1);
    assert_int_equal(m->D, 32); /* not C / H */
    check_layers(m);
    check_matrix(&m->embedding, BLOCK_F16, 331, 48);
    check_matrix(&m->head, BLOCK_F16, 331, 48);
    assert_ptr_not_equal(m->head.data, m->embedding.data);
    /* high frequencies stay, the lowest are slowed eightfold */
    assert_non_null(m->rope.factors);
    assert_true(m->rope.factors[0] == 1.0f);
    assert_true(m->rope.factors[15] == 8.0f);
    model_close(m);
}

static void test_tiny_qwen2(void **state) {
    (void)state;
    struct model *m = open_model(qwen2, FILE_MAP);
    assert_string_equal(m->architecture->name, "qwen2");
    assert_int_equal(m->rope.style, ROPE_HALVES);
    assert_int_equal(m->rope.dims, 16);
    assert_true(m->rope.base == 1000000.0f);
    assert_true(m->eps == 1e-6f);
    check_layers(m);
    assert_int_equal(m->layers[0].linear[TARGET_Q].type, BLOCK_F32);
    assert_int_equal(m->layers[1].linear[TARGET_Q].type, BLOCK_Q8_0);
    assert_true(m->layers[1].bias[TARGET_V][31] != 0);
    assert_non_null(m->chat);
    model_close(m);
}

static void test_real(void **state) {
    (void)state;
    const char *path = getenv("ATTUNE_TEST_MODEL");
    if (!path) skip();
    struct model *m = open_model(path, FILE_MAP);
    assert_int_equal(m->C, 576);
    assert_int_equal(m->H, 9);
    assert_int_equal(m->KV, 3);
    assert_int_equal(m->D, 64);
    assert_int_equal(m->F, 1536);
    assert_int_equal(m->V, 49152);
    assert_int_equal(m->L, 30);
    assert_int_equal(m->context, 8192);
    assert_true(m->rope.base == 100000.0f);
    check_layers(m);
    assert_ptr_equal(m->head.data, m->embedding.data);
    assert_non_null(m->chat);
    assert_int_equal(model_parameters(m), 134515008);
    model_close(m);
}

static void test_hash(void **state) {
    (void)state;
    char hex[65];
    memset(hex, 'b', 64);
    hex[64] = 0;
    struct model *m = open_model(llama, FILE_MAP);
    model_set_hash(m, hex);
    assert_string_equal(m->sha256, hex);
    model_close(m);
    model_close(NULL);
}

static void test_architectures(void **state) {
    (void)state;
    assert_non_null(architecture_find("llama"));
    assert_non_null(architecture_find("qwen2"));
    assert_null(architecture_find("qwen2moe"));
    assert_null(architecture_find(""));
}

/* A file in memory at an odd address: floats are copied, blocks are not. */
static void test_unaligned(void **state) {
    (void)state;
    struct model *straight = open_model(llama, FILE_READ), *odd = NULL;
    struct gguf *gguf = NULL;
    attune_error err = {0};
    size_t size = straight->gguf->file.size;
    unsigned char *memory = test_malloc(size + 1);
    memcpy(memory + 1, straight->gguf->file.data, size);
    assert_int_equal(gguf_parse(memory + 1, size, "odd", &gguf, &err), ATTUNE_OK);
    assert_int_equal(model_from_gguf(gguf, &odd, &err), ATTUNE_OK);
    assert_int_equal((uintptr_t)odd->layers[1].ffn_norm % sizeof(float), 0);
    assert_memory_equal(odd->layers[1].ffn_norm, straight->layers[1].ffn_norm, 64 * sizeof(float));
    assert_memory_equal(odd->output_norm, straight->output_norm, 64 * sizeof(float));
    assert_true((const unsigned char *)odd->embedding.data > memory);
    assert_true((const unsigned char *)odd->embedding.data < memory + size);
    model_close(odd);
    model_close(straight);
    test_free(memory);
}

/* On failure the GGUF stays its caller's. */
static void test_ownership(void **state) {
    (void)state;
    const struct edit edits[EDITS] = {{.kind = NO_TENSOR, .name = "output_norm.weight"}};
    struct gguf *gguf = NULL;
    struct model *model = NULL;
    rewrite(llama, edits, edited_path());
    assert_int_equal(gguf_open(edited_path(), FILE_MAP, &gguf, NULL), ATTUNE_OK);
    assert_int_equal(model_from_gguf(gguf, &model, NULL), ATTUNE_ERROR_FORMAT);
    assert_null(model);
    assert_non_null(gguf_tensor_find(gguf, "token_embd.weight"));
    gguf_close(gguf);
}

/* ---- variants that are fine ---- */

static void test_converted_norms(void **state) {
    (void)state;
    static const enum block_type types[] = {BLOCK_F16, BLOCK_BF16, BLOCK_F32};
    for (size_t i = 0; i < 3; i++) {
        const struct edit edits[EDITS] = {
            {.kind = TENSOR, .name = "blk.1.ffn_norm.weight", .type = types[i], .cols = 64, .number = -0.375},
            {.kind = TENSOR, .name = "output_norm.weight", .type = types[i], .cols = 64, .number = 2.5},
        };
        struct model *m = open_edited(llama, edits);
        assert_true(m->layers[1].ffn_norm[0] == 1.0f && m->layers[1].ffn_norm[63] == -0.375f);
        assert_true(m->output_norm[62] == 1.0f && m->output_norm[63] == 2.5f);
        model_close(m);
    }
    const struct edit bias[EDITS] = {
        {.kind = TENSOR, .name = "blk.0.attn_k.bias", .type = BLOCK_F16, .cols = 32, .number = 0}};
    struct model *m = open_edited(qwen2, bias);
    assert_true(m->layers[0].bias[TARGET_K][30] == 1.0f && m->layers[0].bias[TARGET_K][31] == 0.0f);
    model_close(m);
}

static void test_accepted(void **state) {
    (void)state;
    static const struct edit accepted[][EDITS] = {
        {{.kind = TEXT, .name = "llama.rope.scaling.type", .text = "none"},
         {.kind = F32, .name = "llama.rope.scaling.factor", .number = 8}},
        {{.kind = TEXT, .name = "llama.rope.scaling.type", .text = "linear"},
         {.kind = F32, .name = "llama.rope.scaling.factor", .number = 1}},
        {{.kind = TEXT, .name = "llama.rope.scaling.type", .text = "linear"}},
        {{.kind = U32, .name = "llama.expert_count", .number = 0}},
        {{.kind = U32, .name = "llama.attention.sliding_window", .number = 0}},
        {{.kind = BOOL, .name = "llama.attention.causal", .number = 1}},
        {{.kind = TENSOR, .name = "blk.0.attn_rot_embd.weight", .type = BLOCK_F32, .cols = 8}},
        {{.kind = NO_KEY, .name = "llama.vocab_size"}, {.kind = NO_KEY, .name = "llama.rope.dimension_count"}},
        {{.kind = U64, .name = "llama.block_count", .number = 2}},
        {{.kind = F64, .name = "llama.attention.layer_norm_rms_epsilon", .number = 1e-5}},
        {{.kind = TEXT, .name = "general.type", .text = "model"}},
        {{.kind = U32, .name = "llama.attention.key_length", .number = 16}},
    };
    for (size_t i = 0; i < sizeof accepted / sizeof *accepted; i++) {
        struct model *m = open_edited(llama, accepted[i]);
        assert_int_equal(m->V, 349);
        assert_int_equal(m->D, 16);
        assert_int_equal(m->rope.dims, 16);
        model_close(m);
    }
}

static void test_optional_parts(void **state) {
    (void)state;
    const struct edit edits[EDITS] = {
        {.kind = TENSOR, .name = "output.weight", .type = BLOCK_Q4_0, .cols = 64, .rows = 349},
        {.kind = U32, .name = "llama.rope.dimension_count", .number = 8},
        {.kind = NO_KEY, .name = "llama.rope.freq_base"},
    };
    struct model *m = open_edited(llama, edits);
    check_matrix(&m->head, BLOCK_Q4_0, 349, 64);
    assert_ptr_not_equal(m->head.data, m->embedding.data);
    assert_int_equal(m->rope.dims, 8);
    assert_true(m->rope.base == 10000.0f);
    model_close(m);
}

static void test_head_count_kv_default(void **state) {
    (void)state;
    /* no head_count_kv: as many as heads */
    const struct edit edits[EDITS] = {
        {.kind = NO_KEY, .name = "llama.attention.head_count_kv"},
        {.kind = NO_TENSOR, .name = "blk.0.attn_k.weight"},
    };
    attune_error err = {0};
    struct model *m = NULL;
    rewrite(llama, edits, edited_path());
    assert_int_equal(model_open(edited_path(), FILE_MAP, &m, &err), ATTUNE_ERROR_FORMAT);
    assert_non_null(strstr(err.message, "blk.0.attn_k.weight is missing"));
    const struct edit narrow[EDITS] = {{.kind = NO_KEY, .name = "llama.attention.head_count_kv"}};
    rewrite(llama, narrow, edited_path());
    assert_int_equal(model_open(edited_path(), FILE_MAP, &m, &err), ATTUNE_ERROR_FORMAT);
    assert_non_null(strstr(err.message, "(64, 32, 1, 1), but the settings call for (64, 64, 1, 1)"));
}

static void test_names(void **state) {
    (void)state;
    const struct edit none[EDITS] = {{.kind = NO_KEY, .name = "general.name"}};
    struct model *m = open_edited(llama, none);
    assert_string_equal(m->name, "edited.gguf");
    model_close(m);
    const struct edit odd[EDITS] = {{.kind = TEXT, .name = "general.name", .text = "mod\xc3\xa8le\x1b[31m\xff!"}};
    m = open_edited(llama, odd);
    assert_string_equal(m->name, "mod\xc3\xa8le?[31m?!");
    model_close(m);
}

static void test_chat_template_unknown(void **state) {
    (void)state;
    const struct edit edits[][EDITS] = {
        {{.kind = TEXT, .name = "tokenizer.chat_template", .text = "{% for m in messages %}[{{ m }}]{% endfor %}"}},
        {{.kind = NO_KEY, .name = "tokenizer.chat_template"}},
    };
    for (size_t i = 0; i < 2; i++) {
        struct model *m = open_edited(llama, edits[i]);
        assert_null(m->chat);
        assert_int_not_equal(m->chat_error.code, ATTUNE_OK);
        assert_true(strlen(m->chat_error.message) > 0);
        model_close(m);
    }
}

/* ---- variants that are refused ---- */

#define SET(kind_, name_, number_) {.kind = kind_, .name = name_, .number = number_}
#define SET_TEXT(name_, text_) {.kind = TEXT, .name = name_, .text = text_}
#define DROP(name_) {.kind = NO_KEY, .name = name_}
#define DROP_TENSOR(name_) {.kind = NO_TENSOR, .name = name_}
#define SET_TENSOR(name_, type_, cols_, rows_, number_)                                                               \
    {.kind = TENSOR, .name = name_, .type = type_, .cols = cols_, .rows = rows_, .number = number_}

static const struct refusal {
    const char *base;
    struct edit edits[EDITS];
    int code;
    const char *where;   /* in the error's place: key or tensor; "" where the reader of GGUF says it */
    const char *message; /* in its message */
} refusals[] = {
#define FORMAT ATTUNE_ERROR_FORMAT
#define UNSUPPORTED ATTUNE_ERROR_UNSUPPORTED
    /* keys that must be there */
    {llama, {DROP("general.architecture")}, FORMAT, "general.architecture", "missing"},
    {llama, {DROP("llama.block_count")}, FORMAT, "llama.block_count", "missing"},
    {llama, {DROP("llama.embedding_length")}, FORMAT, "llama.embedding_length", "missing"},
    {llama, {DROP("llama.feed_forward_length")}, FORMAT, "llama.feed_forward_length", "missing"},
    {llama, {DROP("llama.context_length")}, FORMAT, "llama.context_length", "missing"},
    {llama, {DROP("llama.attention.head_count")}, FORMAT, "llama.attention.head_count", "missing"},
    {llama, {DROP("llama.attention.layer_norm_rms_epsilon")}, FORMAT, "layer_norm_rms_epsilon", "missing"},
    {qwen2, {DROP("qwen2.block_count")}, FORMAT, "qwen2.block_count", "missing"},
    {llama, {SET_TEXT("general.architecture", "qwen2")}, FORMAT, "qwen2.block_count", "missing"},
    /* layers */
    {llama, {SET(U32, "llama.block_count", 0)}, FORMAT, "llama.block_count", "is 0"},
    {llama, {SET(U32, "llama.block_count", 3)}, FORMAT, "llama.block_count", "too few"},
    {llama, {SET(U32, "llama.block_count", 4294967295.0)}, FORMAT, "llama.block_count", "4294967295"},
    {llama, {SET(U64, "llama.block_count", 0x1p63)}, FORMAT, "llama.block_count", "9223372036854775808"},
    {llama, {SET(U32, "llama.block_count", 1)}, UNSUPPORTED, "blk.1.", "1 layers"},
    {llama, {SET(F32, "llama.block_count", 2)}, FORMAT, "", "llama.block_count"},
    /* widths */
    {llama, {SET(U32, "llama.embedding_length", 0)}, FORMAT, "llama.embedding_length", "is 0"},
    {llama3, {SET(U32, "llama.embedding_length", 24)}, FORMAT, "token_embd.weight", "(48, 331, 1, 1)"},
    {llama, {SET(U64, "llama.embedding_length", 0x1p62)}, FORMAT, "llama.embedding_length", "must be"},
    {llama, {SET(U32, "llama.feed_forward_length", 0)}, FORMAT, "llama.feed_forward_length", "is 0"},
    {llama, {SET(U32, "llama.feed_forward_length", 128)}, FORMAT, "blk.0.ffn_gate.weight", "(64, 128, 1, 1)"},
    {llama, {SET(U32, "llama.context_length", 0)}, FORMAT, "llama.context_length", "is 0"},
    {llama, {SET(U64, "llama.context_length", 0x1p40)}, FORMAT, "llama.context_length", "must be"},
    {llama, {SET(U32, "llama.vocab_size", 350)}, FORMAT, "llama.vocab_size", "349 rows"},
    {llama,
     {SET_TENSOR("token_embd.weight", BLOCK_F32, 64, 348, 1), DROP("llama.vocab_size")},
     FORMAT,
     "tokenizer.ggml.tokens",
     "349 tokens"},
    /* heads */
    {llama, {SET(U32, "llama.attention.head_count", 0)}, FORMAT, "llama.attention.head_count", "is 0"},
    {llama, {SET(U32, "llama.attention.head_count_kv", 0)}, FORMAT, "llama.attention.head_count_kv", "is 0"},
    {llama, {SET(U32, "llama.attention.head_count", 6)}, FORMAT, "llama.attention.head_count", "do not divide"},
    {llama, {SET(U32, "llama.attention.head_count_kv", 3)}, FORMAT, "llama.attention.head_count_kv", "evenly"},
    {llama, {SET(U32, "llama.attention.head_count_kv", 8)}, FORMAT, "llama.attention.head_count_kv", "evenly"},
    {llama, {SET(U32, "llama.attention.head_count", 64)}, UNSUPPORTED, "key_length", "head size of 1"},
    {llama, {SET(U32, "llama.attention.key_length", 15)}, UNSUPPORTED, "key_length", "head size of 15"},
    {llama, {SET(U32, "llama.attention.key_length", 0)}, FORMAT, "llama.attention.key_length", "is 0"},
    {llama, {SET(U32, "llama.attention.key_length", 514)}, FORMAT, "llama.attention.key_length", "514"},
    {llama, {SET(U32, "llama.attention.value_length", 8)}, UNSUPPORTED, "llama.attention.value_length", "keys of 16"},
    {llama3, {SET(U32, "llama.attention.value_length", 16)}, UNSUPPORTED, "llama.attention.value_length", "keys of 32"},
    {llama3, {DROP("llama.attention.value_length")}, UNSUPPORTED, "llama.attention.value_length", "values of 16"},
    /* eps and rope */
    {llama, {SET(F32, "llama.attention.layer_norm_rms_epsilon", NAN)}, FORMAT, "rms_epsilon", "nan"},
    {llama, {SET(F32, "llama.attention.layer_norm_rms_epsilon", INFINITY)}, FORMAT, "rms_epsilon", "inf"},
    {llama, {SET(F32, "llama.attention.layer_norm_rms_epsilon", 0)}, FORMAT, "rms_epsilon", "is 0"},
    {llama, {SET(F32, "llama.attention.layer_norm_rms_epsilon", -1e-5)}, FORMAT, "rms_epsilon", "-1e-05"},
    {llama, {SET(F64, "llama.attention.layer_norm_rms_epsilon", 1e-60)}, FORMAT, "rms_epsilon", "1e-60"},
    {llama, {SET_TEXT("llama.attention.layer_norm_rms_epsilon", "1e-5")}, FORMAT, "", "rms_epsilon"},
    {llama, {SET(U32, "llama.rope.dimension_count", 18)}, FORMAT, "llama.rope.dimension_count", "18"},
    {llama, {SET(U32, "llama.rope.dimension_count", 15)}, FORMAT, "llama.rope.dimension_count", "pairs"},
    {llama, {SET(U32, "llama.rope.dimension_count", 0)}, FORMAT, "llama.rope.dimension_count", "is 0"},
    {llama, {SET(F32, "llama.rope.freq_base", NAN)}, FORMAT, "llama.rope.freq_base", "nan"},
    {llama, {SET(F32, "llama.rope.freq_base", 0)}, FORMAT, "llama.rope.freq_base", "is 0"},
    {llama, {SET(F32, "llama.rope.freq_base", -10000)}, FORMAT, "llama.rope.freq_base", "-10000"},
    {llama,
     {SET_TEXT("llama.rope.scaling.type", "yarn"), SET(F32, "llama.rope.scaling.factor", 4)},
     UNSUPPORTED,
     "llama.rope.scaling.type",
     "'yarn'"},
    {llama,
     {SET_TEXT("llama.rope.scaling.type", "linear"), SET(F32, "llama.rope.scaling.factor", 2)},
     UNSUPPORTED,
     "llama.rope.scaling.factor",
     "is 2"},
    {llama, {SET(F32, "llama.rope.scaling.factor", 2)}, UNSUPPORTED, "llama.rope.scaling.factor", "linear"},
    {llama, {SET(F32, "llama.rope.scale_linear", 4)}, UNSUPPORTED, "llama.rope.scale_linear", "linear"},
    /* other kinds of models */
    {llama, {SET_TEXT("general.architecture", "gpt-neox")}, UNSUPPORTED, "general.architecture", "'gpt-neox'"},
    {llama, {SET_TEXT("general.architecture", "gpt-neox")}, UNSUPPORTED, "general.architecture", "llama, qwen2"},
    {llama, {SET_TEXT("general.architecture", "a\x1b[2J")}, UNSUPPORTED, "general.architecture", "'a?[2J'"},
    {llama, {SET_TEXT("general.type", "adapter")}, UNSUPPORTED, "general.type", "'adapter'"},
    {llama, {SET(U32, "split.count", 3)}, UNSUPPORTED, "split.count", "3 parts"},
    {llama, {SET(U32, "llama.expert_count", 8)}, UNSUPPORTED, "llama.expert_count", "mixture of experts"},
    {llama, {SET_TEXT("llama.expert_count", "8")}, UNSUPPORTED, "llama.expert_count", "mixture of experts"},
    {qwen2, {SET(U32, "qwen2.expert_used_count", 2)}, UNSUPPORTED, "expert_used_count", "mixture of experts"},
    {qwen2, {SET(U32, "qwen2.attention.sliding_window", 4096)}, UNSUPPORTED, "sliding_window", "sliding-window"},
    {llama, {SET(BOOL, "llama.attention.causal", 0)}, UNSUPPORTED, "llama.attention.causal", "not causal"},
    {llama, {SET(F32, "llama.attention.clamp_kqv", 8)}, UNSUPPORTED, "llama.attention.clamp_kqv", "clamping"},
    {llama, {SET(F32, "llama.logit_scale", 0.5)}, UNSUPPORTED, "llama.logit_scale", "0.5"},
    {llama, {SET(F32, "llama.final_logit_softcapping", NAN)}, UNSUPPORTED, "final_logit_softcapping", "nan"},
    {llama, {SET_TEXT("tokenizer.ggml.pre", "no-such-pre")}, UNSUPPORTED, "", "no-such-pre"},
    {llama, {SET_TEXT("tokenizer.ggml.model", "t5")}, UNSUPPORTED, "", "t5"},
    /* tensors */
    {llama, {DROP_TENSOR("token_embd.weight")}, FORMAT, "token_embd.weight", "missing"},
    {llama, {DROP_TENSOR("output_norm.weight")}, FORMAT, "output_norm.weight", "missing"},
    {llama3, {DROP_TENSOR("blk.1.attn_norm.weight")}, FORMAT, "blk.1.attn_norm.weight", "missing"},
    {llama3, {DROP_TENSOR("blk.1.ffn_down.weight")}, FORMAT, "blk.1.ffn_down.weight", "missing"},
    {qwen2, {DROP_TENSOR("blk.1.attn_v.bias")}, FORMAT, "blk.1.attn_v.bias", "missing"},
    {qwen2, {SET_TENSOR("blk.0.attn_q.bias", BLOCK_F32, 32, 0, 1)}, FORMAT, "blk.0.attn_q.bias", "(32, 1, 1, 1)"},
    {qwen2, {SET_TENSOR("blk.0.attn_q.bias", BLOCK_F32, 64, 0, INFINITY)}, FORMAT, "attn_q.bias", "[63] is inf"},
    {qwen2, {SET_TENSOR("blk.0.attn_output.bias", BLOCK_F32, 64, 0, 1)}, UNSUPPORTED, "attn_output.bias", "qwen2"},
    {llama, {SET_TENSOR("blk.0.attn_q.bias", BLOCK_F32, 64, 0, 1)}, UNSUPPORTED, "blk.0.attn_q.bias", "llama"},
    {llama, {SET_TENSOR("blk.0.attn_q_norm.weight", BLOCK_F32, 16, 0, 1)}, UNSUPPORTED, "attn_q_norm", "2 layers"},
    {llama, {SET_TENSOR("blk.2.attn_norm.weight", BLOCK_F32, 64, 0, 1)}, UNSUPPORTED, "blk.2.attn_norm", "2 layers"},
    {llama, {SET_TENSOR("rope_factors_long.weight", BLOCK_F32, 8, 0, 1)}, UNSUPPORTED, "rope_factors_long", "llama"},
    {llama, {SET_TENSOR("blk.1.attn_k.weight", BLOCK_Q8_0, 64, 64, 0)}, FORMAT, "attn_k.weight", "(64, 32, 1, 1)"},
    {llama, {SET_TENSOR("blk.1.attn_k.weight", BLOCK_Q8_0, 32, 64, 0)}, FORMAT, "attn_k.weight", "(32, 64, 1, 1)"},
    {llama, {SET_TENSOR("output.weight", BLOCK_F32, 64, 348, 0)}, FORMAT, "output.weight", "(64, 349, 1, 1)"},
    {llama, {SET_TENSOR("output_norm.weight", BLOCK_F32, 64, 2, 1)}, FORMAT, "output_norm.weight", "(64, 1, 1, 1)"},
    {llama, {SET_TENSOR("output_norm.weight", BLOCK_F32, 64, 0, NAN)}, FORMAT, "output_norm.weight", "[63] is "},
    {llama, {SET_TENSOR("output_norm.weight", BLOCK_F16, 64, 0, INFINITY)}, FORMAT, "output_norm", "[63] is inf"},
    {llama, {SET_TENSOR("blk.1.ffn_norm.weight", BLOCK_Q8_0, 64, 0, 0)}, UNSUPPORTED, "blk.1.ffn_norm.weight", "Q8_0"},
    {llama3, {SET_TENSOR("rope_freqs.weight", BLOCK_F32, 8, 0, 1)}, FORMAT, "rope_freqs.weight", "(16, 1, 1, 1)"},
    {llama3, {SET_TENSOR("rope_freqs.weight", BLOCK_F32, 16, 0, 0)}, FORMAT, "rope_freqs.weight", "[15] is 0"},
    {llama3, {SET_TENSOR("rope_freqs.weight", BLOCK_F32, 16, 0, -1)}, FORMAT, "rope_freqs.weight", "[15] is -1"},
    {llama3, {SET_TENSOR("rope_freqs.weight", BLOCK_F32, 16, 0, NAN)}, FORMAT, "rope_freqs.weight", "[15] is "},
#undef FORMAT
#undef UNSUPPORTED
};

static void test_refused(void **state) {
    (void)state;
    int wrong = 0;
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        const struct refusal *r = &refusals[i];
        attune_error err = {0};
        struct model *model = NULL;
        rewrite(r->base, r->edits, edited_path());
        int code = model_open(edited_path(), FILE_MAP, &model, &err);
        if (code == r->code && err.code == code && !model && strstr(err.where, r->where) &&
            strstr(err.message, r->message))
            continue;
        wrong++;
        print_error("refusal %zu (%s): code %d, where '%s', message '%s'\n", i, r->edits[0].name, code, err.where,
                    err.message);
        model_close(model);
    }
    assert_int_equal(wrong, 0);
}

static void test_no_file(void **state) {
    (void)state;
    struct model *model = NULL;
    attune_error err = {0};
    assert_int_equal(model_open(GOLDEN "no_such.gguf", FILE_MAP, &model, &err), ATTUNE_ERROR_IO);
    assert_null(model);
}

static int make_folder(void **state) {
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/attune_model_XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    unlink(edited_path());
    return rmdir(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tiny_llama),
        cmocka_unit_test(test_tiny_llama3),
        cmocka_unit_test(test_tiny_qwen2),
        cmocka_unit_test(test_real),
        cmocka_unit_test(test_hash),
        cmocka_unit_test(test_architectures),
        cmocka_unit_test(test_unaligned),
        cmocka_unit_test(test_ownership),
        cmocka_unit_test(test_converted_norms),
        cmocka_unit_test(test_accepted),
        cmocka_unit_test(test_optional_parts),
        cmocka_unit_test(test_head_count_kv_default),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_chat_template_unknown),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_no_file),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
