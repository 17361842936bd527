/* A base model of Qwen2.5-0.5B's shape in Q8_0, with random weights and a made-up vocabulary of its size: for
 * measuring time and memory where the real model is not to be had. About 530 MB.
 *
 *   make_base OUT.gguf [LAYERS] */
#include "core/base/random.h"
#include "core/model/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { C = 896, F = 4864, HEADS = 14, KV = 2, D = 64, V = 151936, L = 24, CONTEXT = 32768 };
enum { BYTES = 256, END = BYTES, START, STOP, FIRST_PAIR };

static const char chat_template[] =
    "{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role != 'system' or not loop.first %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

/* ---- vocabulary: the 256 bytes, three special tokens, every pair of bytes, and triples until it is full ---- */

/* The character that stands for a byte in gpt-2's alphabet, as UTF-8. */
static size_t put_letter(char *out, unsigned byte) {
    unsigned c = byte < 0x21                   ? 0x100 + byte
                 : byte >= 0x7f && byte <= 0xa0 ? 0x121 + (byte - 0x7f)
                 : byte == 0xad                 ? 0x143
                                                : byte;
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    out[0] = (char)(0xc0 | c >> 6);
    out[1] = (char)(0x80 | (c & 0x3f));
    return 2;
}

struct vocabulary {
    char (*texts)[16], (*merges)[16]; /* (V), (V) */
    const char **text_at, **merge_at;
    int32_t *types; /* (V) */
};

static void make_texts(const struct vocabulary *v) {
    for (size_t i = 0; i < V; i++) {
        char *text = v->texts[i], *merge = i >= FIRST_PAIR ? v->merges[i - FIRST_PAIR] : NULL;
        size_t pair = i - FIRST_PAIR, third = pair >= BYTES * BYTES ? pair - BYTES * BYTES : 0, n = 0;
        v->text_at[i] = text;
        v->types[i] = 1;
        if (i < BYTES) {
            n = put_letter(text, (unsigned)i);
        } else if (i < FIRST_PAIR) {
            v->types[i] = 3;
            n = (size_t)snprintf(text, sizeof v->texts[i], "%s",
                                 i == END ? "<|endoftext|>" : i == START ? "<|im_start|>" : "<|im_end|>");
        } else if (pair < BYTES * BYTES) {
            size_t first = put_letter(text, (unsigned)(pair / BYTES));
            n = first + put_letter(text + first, (unsigned)(pair % BYTES));
            snprintf(merge, sizeof v->merges[0], "%.*s %.*s", (int)first, text, (int)(n - first), text + first);
        } else {
            size_t two = put_letter(text, (unsigned)(third / BYTES / BYTES));
            two += put_letter(text + two, (unsigned)(third / BYTES % BYTES));
            n = two + put_letter(text + two, (unsigned)(third % BYTES));
            snprintf(merge, sizeof v->merges[0], "%.*s %.*s", (int)two, text, (int)(n - two), text + two);
        }
        text[n] = 0;
        if (merge) v->merge_at[i - FIRST_PAIR] = merge;
    }
}

static int put_vocabulary(struct gguf_writer *writer, struct vocabulary *v) {
    v->texts = calloc(V, sizeof *v->texts);
    v->merges = calloc(V, sizeof *v->merges);
    v->text_at = calloc(V, sizeof *v->text_at);
    v->merge_at = calloc(V, sizeof *v->merge_at);
    v->types = calloc(V, sizeof *v->types);
    if (!v->texts || !v->merges || !v->text_at || !v->merge_at || !v->types) return 0;
    make_texts(v);
    gguf_put_string(writer, "tokenizer.ggml.model", "gpt2");
    gguf_put_string(writer, "tokenizer.ggml.pre", "qwen2");
    gguf_put_strings(writer, "tokenizer.ggml.tokens", v->text_at, V);
    gguf_put_array(writer, "tokenizer.ggml.token_type", GGUF_I32, v->types, V);
    gguf_put_strings(writer, "tokenizer.ggml.merges", v->merge_at, V - FIRST_PAIR);
    gguf_put_u32(writer, "tokenizer.ggml.eos_token_id", STOP);
    gguf_put_u32(writer, "tokenizer.ggml.bos_token_id", END);
    gguf_put_bool(writer, "tokenizer.ggml.add_bos_token", 0);
    gguf_put_string(writer, "tokenizer.chat_template", chat_template);
    return 1;
}

static void free_vocabulary(const struct vocabulary *v) {
    free(v->texts);
    free(v->merges);
    free(v->text_at);
    free(v->merge_at);
    free(v->types);
}

/* ---- tensors ---- */

struct tensors {
    struct gguf_writer *writer;
    unsigned char *all[16 * L + 4];
    size_t n;
};

/* Uniform in center +- span. */
static int put(struct tensors *t, const char *name, enum block_type type, size_t rows, size_t cols, float center,
               float span) {
    size_t row_bytes = block_row_bytes(type, cols), n = t->n;
    uint64_t dims[2] = {cols, rows};
    float row[F > C ? F : C];
    unsigned char *data = malloc(rows * row_bytes);
    if (!data) return 0;
    t->all[t->n++] = data;
    for (size_t r = 0; r < rows; r++) {
        for (size_t c = 0; c < cols; c++) row[c] = center + span * (2.0f * random_uniform(n, r * cols + c) - 1.0f);
        if (type == BLOCK_F32) memcpy(data + r * row_bytes, row, row_bytes);
        else block_format_get(type)->quantize(data + r * row_bytes, row, cols);
    }
    gguf_put_tensor(t->writer, name, type, rows > 1 ? 2 : 1, dims, data);
    return 1;
}

static int put_layer(struct tensors *t, size_t layer) {
    const size_t shapes[TARGET_COUNT][2] = {{HEADS * D, C}, {KV * D, C}, {KV * D, C}, {C, HEADS * D},
                                            {F, C},         {F, C},      {C, F}};
    char name[64];
    int good = 1;
    for (size_t i = 0; i < TARGET_COUNT && good; i++) {
        snprintf(name, sizeof name, "blk.%zu.%s.weight", layer, target_names[i]);
        good = put(t, name, BLOCK_Q8_0, shapes[i][0], shapes[i][1], 0.0f, 0.03f);
        if (i > TARGET_V || !good) continue;
        snprintf(name, sizeof name, "blk.%zu.%s.bias", layer, target_names[i]);
        good = put(t, name, BLOCK_F32, 1, shapes[i][0], 0.0f, 0.1f);
    }
    snprintf(name, sizeof name, "blk.%zu.attn_norm.weight", layer);
    good = good && put(t, name, BLOCK_F32, 1, C, 1.0f, 0.1f);
    snprintf(name, sizeof name, "blk.%zu.ffn_norm.weight", layer);
    return good && put(t, name, BLOCK_F32, 1, C, 1.0f, 0.1f);
}

static void put_settings(struct gguf_writer *writer, size_t layers) {
    gguf_put_string(writer, "general.architecture", "qwen2");
    gguf_put_string(writer, "general.name", "Random weights in Qwen2.5-0.5B's shape");
    gguf_put_u32(writer, "qwen2.block_count", (uint32_t)layers);
    gguf_put_u32(writer, "qwen2.context_length", CONTEXT);
    gguf_put_u32(writer, "qwen2.embedding_length", C);
    gguf_put_u32(writer, "qwen2.feed_forward_length", F);
    gguf_put_u32(writer, "qwen2.attention.head_count", HEADS);
    gguf_put_u32(writer, "qwen2.attention.head_count_kv", KV);
    gguf_put_f32(writer, "qwen2.attention.layer_norm_rms_epsilon", 1e-6f);
    gguf_put_f32(writer, "qwen2.rope.freq_base", 1e6f);
}

int main(int argc, char **argv) {
    static struct tensors tensors;
    struct vocabulary vocabulary = {0};
    attune_error err = {0};
    size_t layers = argc > 2 ? strtoul(argv[2], NULL, 10) : L;
    if (argc < 2 || layers < 1 || layers > L) {
        fprintf(stderr, "usage: make_base OUT.gguf [LAYERS, at most %d]\n", L);
        return 2;
    }
    int code = gguf_writer_create(&tensors.writer, &err);
    if (code == ATTUNE_OK) {
        put_settings(tensors.writer, layers);
        int good = put_vocabulary(tensors.writer, &vocabulary) &&
                   put(&tensors, "token_embd.weight", BLOCK_Q8_0, V, C, 0.0f, 0.03f) &&
                   put(&tensors, "output_norm.weight", BLOCK_F32, 1, C, 1.0f, 0.1f);
        for (size_t l = 0; l < layers && good; l++) good = put_layer(&tensors, l);
        if (!good) code = error_set_memory(&err, "a base model", 0);
    }
    if (code == ATTUNE_OK) code = gguf_writer_publish(tensors.writer, argv[1], "base", 0, NULL, &err);
    if (code != ATTUNE_OK) fprintf(stderr, "make_base: %s (%s)\n", err.message, err.where);
    for (size_t i = 0; i < tensors.n; i++) free(tensors.all[i]);
    gguf_writer_destroy(tensors.writer);
    free_vocabulary(&vocabulary);
    return code == ATTUNE_OK ? 0 : 1;
}
