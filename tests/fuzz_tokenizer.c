/* libFuzzer: any bytes encode with a small vocabulary of each kind and come back; as the content of a
 * message they bring no control token; as a chat template, or as a file with a vocabulary, they are
 * taken or refused. The first byte picks what. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/model/chat_template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { VOCABULARIES = 3 };
static struct gguf *files[VOCABULARIES];
static struct tokenizer *tokenizers[VOCABULARIES];
static struct chat_template *chat;

static void require(int condition) {
    if (!condition) abort();
}

static void open_vocabularies(void) {
    static const char *const names[VOCABULARIES] = {"qwen2", "gpt2", "llama"};
    for (size_t i = 0; i < VOCABULARIES; i++) {
        char path[1024];
        snprintf(path, sizeof path, "%s/tests/golden/vocab_%s.gguf", ATTUNE_TEST_ROOT, names[i]);
        require(gguf_open(path, FILE_READ, &files[i], NULL) == ATTUNE_OK);
        require(tokenizer_create(files[i], &tokenizers[i], NULL) == ATTUNE_OK);
    }
    require(chat_template_create(files[0], tokenizers[0], &chat, NULL) == ATTUNE_OK);
}

static void check_text(const struct tokenizer *t, const char *text, size_t size, int special) {
    size_t n, at = 0;
    int32_t *ids = malloc((size + 1) * sizeof *ids);
    require(ids != NULL);
    require(tokenizer_encode(t, text, size, special, ids, size, &n, NULL) == ATTUNE_OK && n <= size);
    for (size_t i = 0; i < n; i++) {
        size_t piece;
        const char *bytes = tokenizer_piece(t, ids[i], &piece);
        require(bytes && piece <= size - at && memcmp(bytes, text + at, piece) == 0);
        at += piece;
    }
    require(at == size);
    free(ids);
}

static void check_message(const char *text, size_t size) {
    char *content = calloc(1, size + 1);
    require(content != NULL);
    memcpy(content, text, size);
    const attune_message message = {"assistant", content};
    struct token_list list = {0};
    require(chat_template_render(chat, &message, 1, 0, 1, 0, &list, NULL) == ATTUNE_OK);
    int32_t start = tokenizer_find(tokenizers[0], "<|im_start|>");
    int32_t text_end = tokenizer_find(tokenizers[0], "<|endoftext|>");
    size_t starts = 0, ends = 0;
    for (size_t i = 0; i < list.n; i++) {
        starts += list.ids[i] == start;
        ends += list.ids[i] == chat_template_end(chat);
        require(list.ids[i] != text_end);
    }
    require(starts == 1 && ends == 1);
    token_list_free(&list);
    free(content);
}

static size_t put(unsigned char *out, uint64_t value, int size) {
    for (int i = 0; i < size; i++) out[i] = (unsigned char)(value >> (8 * i));
    return (size_t)size;
}

/* A file with nothing but the template, of its exact size. */
static void check_template(const char *source, size_t size) {
    static const char key[] = "tokenizer.chat_template";
    const size_t key_size = sizeof key - 1, head = 24 + 8 + key_size + 4 + 8;
    unsigned char *file = malloc(head + size), *at = file;
    require(file != NULL);
    memcpy(at, "GGUF", 4);
    at += 4;
    at += put(at, 3, 4);
    at += put(at, 0, 8);
    at += put(at, 1, 8);
    at += put(at, key_size, 8);
    memcpy(at, key, key_size);
    at += key_size;
    at += put(at, GGUF_STRING, 4);
    at += put(at, size, 8);
    memcpy(at, source, size);
    struct gguf *gguf;
    struct chat_template *other;
    require(gguf_parse(file, head + size, "fuzz", &gguf, NULL) == ATTUNE_OK);
    if (chat_template_create(gguf, tokenizers[0], &other, NULL) == ATTUNE_OK) chat_template_destroy(other);
    gguf_close(gguf);
    free(file);
}

static void check_vocabulary(const void *data, size_t size) {
    struct gguf *gguf;
    struct tokenizer *tokenizer;
    attune_error err = {0};
    if (gguf_parse(data, size, "fuzz", &gguf, NULL) != ATTUNE_OK) return;
    int code = tokenizer_create(gguf, &tokenizer, &err);
    require(code == err.code);
    if (code == ATTUNE_OK) {
        static const char text[] = " hello<|im_end|>, 1234 \n\n\xff";
        size_t n;
        (void)tokenizer_encode(tokenizer, text, sizeof text - 1, 1, NULL, 0, &n, NULL);
        for (size_t i = 0; i < tokenizer_size(tokenizer); i++)
            require(tokenizer_piece(tokenizer, (int32_t)i, &n) != NULL);
        tokenizer_destroy(tokenizer);
    }
    gguf_close(gguf);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!chat) open_vocabularies();
    if (size && data[0] == 'G') check_vocabulary(data, size);
    if (!size) return 0;
    const char *text = (const char *)data + 1;
    check_text(tokenizers[data[0] % VOCABULARIES], text, size - 1, data[0] & 64);
    if (data[0] & 128) check_message(text, size - 1);
    if (data[0] & 32) check_template(text, size - 1);
    return 0;
}
