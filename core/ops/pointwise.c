/* Element by element: SwiGLU (Shazeer 2020), sums, dropout. */
#include "core/base/random.h"
#include "core/ops/rows.h"

enum { ELEMENTS = 2048 };

struct elements {
    const struct kernels *kernels;
    float *out, *out2;
    const float *dy, *a, *b;
    size_t n;
};

static size_t end_of(const struct elements *e, size_t last) { return last * ELEMENTS < e->n ? last * ELEMENTS : e->n; }

static void run(const struct ops *ops, void (*body)(const void *, size_t, size_t), const struct elements *e) {
    rows_run(ops, (e->n + ELEMENTS - 1) / ELEMENTS, body, e);
}

static void swiglu_elements(const void *argument, size_t first, size_t last) {
    const struct elements *e = argument;
    size_t i = first * ELEMENTS;
    e->kernels->swiglu(e->out + i, e->a + i, e->b + i, end_of(e, last) - i);
}
void swiglu_forward(const struct ops *ops, float *y, const float *gate, const float *up, size_t n) {
    struct elements e = {ops->kernels, y, NULL, NULL, gate, up, n};
    run(ops, swiglu_elements, &e);
}

static void swiglu_backward_elements(const void *argument, size_t first, size_t last) {
    const struct elements *e = argument;
    size_t i = first * ELEMENTS;
    e->kernels->swiglu_backward(e->out + i, e->out2 + i, e->dy + i, e->a + i, e->b + i, end_of(e, last) - i);
}
void swiglu_backward(const struct ops *ops, float *dgate, float *dup, const float *dy, const float *gate,
                     const float *up, size_t n) {
    struct elements e = {ops->kernels, dgate, dup, dy, gate, up, n};
    run(ops, swiglu_backward_elements, &e);
}

static void add_elements(const void *argument, size_t first, size_t last) {
    const struct elements *e = argument;
    size_t i = first * ELEMENTS;
    e->kernels->axpy(e->out + i, 1.0f, e->a + i, end_of(e, last) - i);
}
void add_rows(const struct ops *ops, float *dst, const float *src, size_t n) {
    struct elements e = {ops->kernels, dst, NULL, NULL, src, NULL, n};
    run(ops, add_elements, &e);
}

struct dropout {
    float *y;
    const float *x;
    float p;
    uint64_t key;
    const uint64_t *row_keys;
    size_t C;
};

static void dropout_rows(const void *argument, size_t first, size_t last) {
    const struct dropout *d = argument;
    float keep = 1.0f / (1.0f - d->p);
    for (size_t t = first; t < last; t++) {
        uint64_t key = random_mix(d->key ^ d->row_keys[t]);
        for (size_t c = 0; c < d->C; c++)
            d->y[t * d->C + c] = random_uniform(key, c) < d->p ? 0.0f : d->x[t * d->C + c] * keep;
    }
}
void dropout_apply(const struct ops *ops, float *y, const float *x, float p, uint64_t key, const uint64_t *row_keys,
                   size_t T, size_t C) {
    struct dropout d = {y, x, p, key, row_keys, C};
    rows_run(ops, T, dropout_rows, &d);
}
