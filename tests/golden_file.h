/* Reading committed golden files: little-endian numbers one after another. */
#ifndef TESTS_GOLDEN_FILE_H
#define TESTS_GOLDEN_FILE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct golden {
    unsigned char *data;
    size_t size, at;
};

static inline struct golden golden_open(const char *name) {
    struct golden g = {0};
    char path[1024];
    snprintf(path, sizeof path, "%s/tests/golden/%s", ATTUNE_TEST_ROOT, name);
    FILE *f = fopen(path, "rb");
    if (!f) {
        fprintf(stderr, "no golden file %s\n", path);
        exit(1);
    }
    fseek(f, 0, SEEK_END);
    g.size = (size_t)ftell(f);
    rewind(f);
    g.data = malloc(g.size ? g.size : 1);
    if (!g.data || fread(g.data, 1, g.size, f) != g.size) exit(1);
    fclose(f);
    return g;
}
static inline void golden_take(struct golden *g, void *out, size_t n) {
    if (g->size - g->at < n) {
        fprintf(stderr, "a golden file is too short\n");
        exit(1);
    }
    memcpy(out, g->data + g->at, n);
    g->at += n;
}
static inline uint32_t golden_u32(struct golden *g) {
    uint32_t v;
    golden_take(g, &v, sizeof v);
    return v;
}
static inline float golden_f32(struct golden *g) {
    float v;
    golden_take(g, &v, sizeof v);
    return v;
}
static inline int golden_done(const struct golden *g) { return g->at == g->size; }
static inline void golden_close(struct golden *g) { free(g->data); }

/* u32 T; u16 ids[T]; u8 mask[T] */
struct golden_conversation {
    uint32_t T;
    int32_t ids[1024];
    uint8_t mask[1024];
};
static inline void golden_conversation(struct golden *g, struct golden_conversation *c) {
    uint16_t id;
    c->T = golden_u32(g);
    if (c->T > 1024) exit(1);
    for (uint32_t i = 0; i < c->T; i++) {
        golden_take(g, &id, sizeof id);
        c->ids[i] = id;
    }
    golden_take(g, c->mask, c->T);
}

#endif
