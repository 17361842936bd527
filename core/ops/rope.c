/* Rotary position embedding (Su et al. 2021), with llama-3's frequency factors. */
#include "core/ops/rows.h"

#include <math.h>

void rope_table(float *table, const struct rope *rope, size_t positions) {
    for (size_t p = 0; p < positions; p++)
        for (size_t i = 0; i < rope->dims / 2; i++) {
            double frequency = pow((double)rope->base, -2.0 * (double)i / (double)rope->dims);
            if (rope->factors) frequency /= (double)rope->factors[i];
            /* the references keep angles in f32: so do we, to stay beside them at far positions */
            float angle = (float)p * (float)frequency;
            table[p * rope->dims + 2 * i] = (float)cos((double)angle);
            table[p * rope->dims + 2 * i + 1] = (float)sin((double)angle);
        }
}

struct turn {
    float *x;
    const int32_t *positions;
    const float *table;
    const struct rope *rope;
    size_t heads, D;
    float sign;
};

static void turn_rows(const void *argument, size_t first, size_t last) {
    const struct turn *a = argument;
    size_t half = a->rope->dims / 2;
    size_t step = a->rope->style == ROPE_INTERLEAVED ? 2 : 1, apart = a->rope->style == ROPE_INTERLEAVED ? 1 : half;
    for (size_t t = first; t < last; t++) {
        const float *table = a->table + (size_t)a->positions[t] * a->rope->dims;
        for (size_t h = 0; h < a->heads; h++) {
            float *x = a->x + (t * a->heads + h) * a->D;
            for (size_t i = 0; i < half; i++) {
                float c = table[2 * i], s = a->sign * table[2 * i + 1];
                float u = x[step * i], v = x[step * i + apart];
                x[step * i] = u * c - v * s;
                x[step * i + apart] = u * s + v * c;
            }
        }
    }
}

/* A rotation's backward is the rotation by the negative angle. */
void rope_apply(const struct ops *ops, float *x, const int32_t *positions, const float *table,
                const struct rope *rope, size_t heads, size_t D, size_t T, int inverse) {
    struct turn turn = {x, positions, table, rope, heads, D, inverse ? -1.0f : 1.0f};
    rows_run(ops, T, turn_rows, &turn);
}
