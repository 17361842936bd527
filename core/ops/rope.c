/* Rotary position embedding (Su et al. 2021), with llama-3's frequency factors. */
#include "core/ops/rows.h"

#include <math.h>

void rope_turns(float *turns, const struct rope *rope, size_t position) {
    size_t half = rope->dims / 2;
    int halves = rope->style == ROPE_HALVES;
    for (size_t i = 0; i < half; i++) {
        double frequency = pow((double)rope->base, -2.0 * (double)i / (double)rope->dims);
        if (rope->factors) frequency /= (double)rope->factors[i];
        /* the references keep angles in f32: so do we, to stay beside them at far positions */
        float angle = (float)position * (float)frequency;
        turns[halves ? i : 2 * i] = (float)cos((double)angle);
        turns[halves ? i + half : 2 * i + 1] = (float)sin((double)angle);
    }
}

void rope_table(float *table, const struct rope *rope, size_t positions) {
    for (size_t p = 0; p < positions; p++) rope_turns(table + p * rope->dims, rope, p);
}

struct turn {
    void (*rotate)(float *x, const float *turns, float sign, size_t n);
    float *x;
    const int32_t *positions;
    const float *table;
    size_t dims, heads, D;
    float sign;
};

static void turn_rows(const void *argument, size_t first, size_t last) {
    const struct turn *a = argument;
    for (size_t t = first; t < last; t++) {
        const float *turns = a->table + (size_t)a->positions[t] * a->dims;
        for (size_t h = 0; h < a->heads; h++) a->rotate(a->x + (t * a->heads + h) * a->D, turns, a->sign, a->dims / 2);
    }
}

/* A rotation's backward is the rotation by the negative angle. */
void rope_apply(const struct ops *ops, float *x, const int32_t *positions, const float *table,
                const struct rope *rope, size_t heads, size_t D, size_t T, int inverse) {
    const struct kernels *kernels = ops->kernels;
    struct turn turn = {rope->style == ROPE_HALVES ? kernels->rotate_halves : kernels->rotate_pairs, x, positions,
                        table, rope->dims, heads, D, inverse ? -1.0f : 1.0f};
    rows_run(ops, T, turn_rows, &turn);
}
