/* For tests: GGUF files without tensors, made in memory, and golden files. */
#ifndef TESTS_MADE_VOCABULARY_H
#define TESTS_MADE_VOCABULARY_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/model/gguf.h"

struct bytes {
    unsigned char *data;
    size_t n, room;
};

static inline void bytes_add(struct bytes *b, const void *data, size_t n) {
    if (b->n + n > b->room) {
        b->room = (b->n + n) * 2;
        b->data = realloc(b->data, b->room);
        assert_non_null(b->data);
    }
    if (n) memcpy(b->data + b->n, data, n);
    b->n += n;
}
static inline void bytes_number(struct bytes *b, uint64_t value, int size) {
    for (int i = 0; i < size; i++) {
        unsigned char byte = (unsigned char)(value >> (8 * i));
        bytes_add(b, &byte, 1);
    }
}
static inline void bytes_string(struct bytes *b, const char *text, size_t size) {
    bytes_number(b, size, 8);
    bytes_add(b, text, size);
}

/* ---- pairs of a file ---- */
struct pairs {
    struct bytes bytes;
    uint64_t n;
};
static inline void pairs_key(struct pairs *p, const char *key, enum gguf_kind kind) {
    bytes_string(&p->bytes, key, strlen(key));
    bytes_number(&p->bytes, kind, 4);
    p->n++;
}
static inline void pairs_text(struct pairs *p, const char *key, const char *text, size_t size) {
    pairs_key(p, key, GGUF_STRING);
    bytes_string(&p->bytes, text, size);
}
static inline void pairs_number(struct pairs *p, const char *key, enum gguf_kind kind, uint64_t value) {
    pairs_key(p, key, kind);
    bytes_number(&p->bytes, value, kind == GGUF_BOOL ? 1 : 4);
}
/* Numbers of four bytes. */
static inline void pairs_numbers(struct pairs *p, const char *key, enum gguf_kind kind, const int32_t *values,
                                 size_t n) {
    pairs_key(p, key, GGUF_ARRAY);
    bytes_number(&p->bytes, kind, 4);
    bytes_number(&p->bytes, n, 8);
    for (size_t i = 0; i < n; i++) bytes_number(&p->bytes, (uint32_t)values[i], 4);
}
static inline void pairs_texts(struct pairs *p, const char *key, char *const *texts, size_t n) {
    pairs_key(p, key, GGUF_ARRAY);
    bytes_number(&p->bytes, GGUF_STRING, 4);
    bytes_number(&p->bytes, n, 8);
    for (size_t i = 0; i < n; i++) bytes_string(&p->bytes, texts[i], strlen(texts[i]));
}

/* A parsed file in an allocation of its exact size, so that a sanitizer sees a read past its end. */
struct memory_file {
    unsigned char *data;
    struct gguf *gguf;
};
static inline struct memory_file pairs_parse(struct pairs *p) {
    struct bytes b = {0};
    bytes_add(&b, "GGUF", 4);
    bytes_number(&b, 3, 4);
    bytes_number(&b, 0, 8);
    bytes_number(&b, p->n, 8);
    bytes_add(&b, p->bytes.data, p->bytes.n);
    struct memory_file file = {.data = malloc(b.n)};
    assert_non_null(file.data);
    memcpy(file.data, b.data, b.n);
    attune_error err = {0};
    int code = gguf_parse(file.data, b.n, "memory", &file.gguf, &err);
    if (code != ATTUNE_OK) fail_msg("%s", err.message);
    free(b.data);
    free(p->bytes.data);
    *p = (struct pairs){0};
    return file;
}
static inline void memory_file_close(struct memory_file *file) {
    gguf_close(file->gguf);
    free(file->data);
}

/* ---- golden files ---- */
struct golden {
    unsigned char *data;
    size_t size, at;
};
static inline struct golden golden_open(const char *name) {
    char path[1024];
    snprintf(path, sizeof path, "%s/tests/golden/%s", ATTUNE_TEST_ROOT, name);
    FILE *file = fopen(path, "rb");
    if (!file) fail_msg("cannot open %s", path);
    struct bytes b = {0};
    unsigned char chunk[4096];
    for (size_t n; (n = fread(chunk, 1, sizeof chunk, file));) bytes_add(&b, chunk, n);
    fclose(file);
    return (struct golden){.data = b.data, .size = b.n};
}
static inline const char *golden_bytes(struct golden *g, size_t n) {
    assert_true(n <= g->size - g->at);
    g->at += n;
    return (const char *)g->data + g->at - n;
}
static inline uint32_t golden_number(struct golden *g, int size) {
    const unsigned char *p = (const unsigned char *)golden_bytes(g, (size_t)size);
    uint32_t value = 0;
    for (int i = 0; i < size; i++) value |= (uint32_t)p[i] << (8 * i);
    return value;
}

static inline struct gguf *open_golden_gguf(const char *name) {
    char path[1024];
    snprintf(path, sizeof path, "%s/tests/golden/%s", ATTUNE_TEST_ROOT, name);
    struct gguf *gguf = NULL;
    attune_error err = {0};
    if (gguf_open(path, FILE_READ, &gguf, &err) != ATTUNE_OK) fail_msg("%s: %s", path, err.message);
    return gguf;
}
/* The real base model; skips the test where there is none. */
static inline struct gguf *open_real_model(void) {
    const char *path = getenv("ATTUNE_TEST_MODEL");
    if (!path) skip();
    struct gguf *gguf = NULL;
    attune_error err = {0};
    if (gguf_open(path, FILE_MAP, &gguf, &err) != ATTUNE_OK) fail_msg("%s: %s", path, err.message);
    return gguf;
}

#endif
