#include "job/work.h"

#include "trainer/batches.h"

/* Measured on SmolLM2 in Q4_1: a step's time is linear in its tokens, from 32 to 600, with about this much at 0. */
static const double BATCH = 20;
/* Attention works on small blocks and reaches about this share of the speed of the products with weights. */
static const double ATTENTION_SPEED = 0.5;
/* What a measurement still weighs when the next one is made: the last twenty or so count. */
static const double KEEP = 0.95;

static double layer_weights(const struct model *model) {
    double weights = 0;
    for (size_t l = 0; l < model->L; l++)
        for (int t = 0; t < TARGET_COUNT; t++)
            weights += (double)model->layers[l].linear[t].rows * (double)model->layers[l].linear[t].cols;
    return weights;
}

/* Multiplications of a forward pass: one a weight and token; C a logit; D a pair and head for the score, and D for
 * the sum of values. */
struct work work_of_judging(const struct model *model) {
    double weights = layer_weights(model);
    return (struct work){(double)model->V * (double)model->C / weights,
                         2.0 * (double)(model->L * model->H * model->D) / weights / ATTENTION_SPEED, BATCH};
}

/* Layers: forward, forward again from the checkpoint, and the gradient of the input: three times a forward pass. Logits
 * are not computed again: two. Attention's backward pass takes five products to the two of forward: 4.5. */
struct work work_of_training(const struct model *model) {
    struct work work = work_of_judging(model);
    work.supervised *= 2.0 / 3.0;
    work.pair *= 1.5;
    return work;
}

static double work_of_example(const struct work *work, const struct example *example) {
    double T = (double)example->n - 1;
    return T + work->supervised * (double)example->n_supervised + work->pair * T * (T + 1) / 2;
}

/* Beside its gradient, what is measured against the starting point takes two forward passes, of three such that a
 * gradient is: one of now, one of the starting point, which later steps need not make again. */
static const double MEASURED = 5.0 / 3.0;

double work_of_rows(const struct work *work, const struct example_set *set, const size_t *rows, size_t n,
                    size_t micro_tokens) {
    double sum = 0;
    for (size_t at = 0; at < n; at = batches_end(set, rows, at, n, micro_tokens)) sum += work->batch;
    for (size_t i = 0; i < n; i++) {
        const struct example *row = &set->items[rows[i]];
        double one = work_of_example(work, row);
        if (row->kind == EXAMPLE_PREFERENCE) one += work_of_example(work, row + 1);
        sum += row->kind == EXAMPLE_SFT ? one : one * MEASURED;
    }
    return sum;
}

double work_of_pairs(const struct work *work, const struct example_set *set, const size_t *pairs, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        const struct example *pair = &set->items[pairs[i]];
        sum += work->batch + work_of_example(work, pair) + work_of_example(work, pair + 1);
    }
    return sum;
}

double work_of_judged(const struct work *work, const struct example_set *set, const size_t *rows, size_t n) {
    double sum = work->batch;
    for (size_t i = 0; i < n; i++) sum += work_of_example(work, &set->items[rows[i]]);
    return sum;
}

void pace_assume(struct pace *pace, double per_second) { *pace = (struct pace){per_second, 1, 0}; }

/* The first measurement is of memory being taken and caches filled: the second replaces it. */
void pace_measure(struct pace *pace, double work, double seconds) {
    if (!(work > 0) || !(seconds > 0)) return;
    if (pace->n < 2) pace->work = pace->seconds = 0;
    pace->work = KEEP * pace->work + work;
    pace->seconds = KEEP * pace->seconds + seconds;
    pace->n++;
}

double pace_per_second(const struct pace *pace) { return pace->seconds > 0 ? pace->work / pace->seconds : 0; }
