/* A llama of two layers with random weights, made by hand: enough of struct model for adapters. */
#ifndef TESTS_TINY_BASE_H
#define TESTS_TINY_BASE_H

#include "adapters/lora.h"
#include "core/base/random.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TINY_C = 32, TINY_H = 4, TINY_KV = 2, TINY_D = 8, TINY_L = 2 };

struct tiny_base {
    struct model model;
    struct architecture architecture;
    struct model_layer layers[TINY_L];
    unsigned char *data[TINY_L][TARGET_COUNT];
};

/* Quantized from random weights. */
static inline void tiny_base_fill(unsigned char *data, const struct matrix *w, uint64_t key) {
    const struct block_format *format = block_format_get(w->type);
    float *row = calloc(w->cols, sizeof *row);
    for (size_t r = 0; r < w->rows; r++) {
        unsigned char *to = data + r * w->row_bytes;
        for (size_t c = 0; c < w->cols; c++) row[c] = 0.4f * random_uniform(key, r * w->cols + c) - 0.2f;
        format->quantize(to, row, w->cols);
    }
    free(row);
}

static inline void tiny_base_make(struct tiny_base *base, enum block_type type, size_t F, enum rope_style rope) {
    memset(base, 0, sizeof *base);
    base->architecture.name = "llama";
    base->architecture.rope = rope;
    struct model *m = &base->model;
    m->architecture = &base->architecture;
    m->C = TINY_C, m->H = TINY_H, m->KV = TINY_KV, m->D = TINY_D, m->F = F, m->L = TINY_L;
    m->V = 64, m->context = 64;
    m->rope.style = rope;
    m->rope.dims = TINY_D;
    m->layers = base->layers;
    memset(m->sha256, 'a', 64);
    size_t C = TINY_C, Q = TINY_H * TINY_D, K = TINY_KV * TINY_D;
    size_t shapes[TARGET_COUNT][2] = {{Q, C}, {K, C}, {K, C}, {C, Q}, {F, C}, {F, C}, {C, F}};
    for (size_t l = 0; l < TINY_L; l++) {
        for (size_t t = 0; t < TARGET_COUNT; t++) {
            size_t rows = shapes[t][0], cols = shapes[t][1], row_bytes = block_row_bytes(type, cols);
            base->data[l][t] = calloc(rows, row_bytes ? row_bytes : 1);
            base->layers[l].linear[t] = (struct matrix){base->data[l][t], type, rows, cols, row_bytes};
            if (row_bytes) tiny_base_fill(base->data[l][t], &base->layers[l].linear[t], 1000 * l + t);
        }
    }
}

static inline void tiny_base_free(struct tiny_base *base) {
    for (size_t l = 0; l < TINY_L; l++)
        for (size_t t = 0; t < TARGET_COUNT; t++) free(base->data[l][t]);
}

/* An adapter whose A and B are both random. */
static inline struct lora *tiny_lora(const struct model *model, size_t rank, float alpha, uint32_t targets) {
    struct lora_config config = {rank, alpha, targets};
    struct lora *lora = NULL;
    if (lora_create(model, &config, &lora, NULL) != ATTUNE_OK) abort();
    for (size_t i = 0; i < lora->n; i++) lora->parameters[i] = 0.2f * random_uniform(7, i) - 0.1f;
    return lora;
}

/* A folder of this test alone. */
static inline void tiny_folder(char out[256]) {
    const char *root = getenv("TMPDIR");
    snprintf(out, 256, "%s/attune-test-XXXXXX", root && *root ? root : "/tmp");
    if (!mkdtemp(out)) abort();
}

static inline void tiny_write(const char *path, const void *data, size_t n) {
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, n, file) != n || fclose(file)) abort();
}

/* malloc'ed, with a NUL behind it. */
static inline unsigned char *tiny_read(const char *path, size_t *n) {
    FILE *file = fopen(path, "rb");
    struct stat st;
    if (!file || fstat(fileno(file), &st)) abort();
    unsigned char *data = malloc((size_t)st.st_size + 1);
    *n = fread(data, 1, (size_t)st.st_size, file);
    data[*n] = '\0';
    fclose(file);
    return data;
}

#endif
