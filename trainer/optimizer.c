/* AdamW and the learning rate's schedule. */
#include "trainer/trainer.h"

#include <math.h>

enum { CHUNK = 1 << 14, LANES = 8 };

static size_t chunks(size_t n) { return (n + CHUNK - 1) / CHUNK; }
static size_t chunk_end(size_t i, size_t n) { return n - i * CHUNK < CHUNK ? n : (i + 1) * CHUNK; }

void train_config_default(struct train_config *config) {
    *config = (struct train_config){
        .lora = {.rank = 8, .alpha = 16.0f, .targets = LORA_ALL_TARGETS},
        .learning_rate = 2e-3f,
        .schedule = SCHEDULE_COSINE,
        .warmup = 0.05f,
        .beta1 = 0.9f,
        .beta2 = 0.999f,
        .epsilon = 1e-8f,
        .weight_decay = 0.0f,
        .clip = 1.0f,
        .batch = 4,
        .max_tokens = 512,
        .micro_tokens = 512,
        .seed = 1,
        .preference = {.beta = 1.0f, .mean = 1, .dpo = 4.0f, .sft = 1.0f, .up = 4.0f, .down = 4.0f},
    };
}

float schedule_rate(const struct train_config *config, size_t step, size_t steps) {
    double rate = (double)config->learning_rate, warmup = floor((double)config->warmup * (double)steps);
    if ((double)step < warmup) return (float)(rate * ((double)step + 1.0) / (warmup + 1.0));
    if (config->schedule == SCHEDULE_CONSTANT) return (float)rate;
    double rest = (double)steps - warmup, done = ((double)step - warmup) / (rest > 1.0 ? rest : 1.0);
    return (float)(rate * 0.5 * (1.0 + cos(3.14159265358979323846 * (done < 1.0 ? done : 1.0))));
}

/* m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  p -= rate (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay p)
 */
struct update {
    struct adamw adamw;
    float *parameters;
    const float *gradient;
    float scale, b1, b2, step_size, correction, decay, epsilon;
    double *done; /* of each chunk */
};

static void update_chunk(void *argument, size_t chunk, int worker) {
    const struct update u = *(const struct update *)argument;
    float *restrict ms = u.adamw.m, *restrict vs = u.adamw.v, *restrict parameters = u.parameters;
    const float *restrict gradient = u.gradient;
    (void)worker;
    u.done[chunk] = 1;
    for (size_t i = chunk * CHUNK, end = chunk_end(chunk, u.adamw.n); i < end; i++) {
        float g = gradient[i] * u.scale;
        float m = ms[i] = u.b1 * ms[i] + (1.0f - u.b1) * g;
        float v = vs[i] = u.b2 * vs[i] + (1.0f - u.b2) * g * g;
        parameters[i] = parameters[i] * u.decay - u.step_size * m / (sqrtf(v) * u.correction + u.epsilon);
    }
}

void adamw_update(struct adamw *adamw, struct pool *pool, float *parameters, const float *gradient, float scale,
                  const struct train_config *config, float learning_rate, double *partial) {
    adamw->step++;
    double t = (double)adamw->step;
    float step_size = (float)((double)learning_rate / (1.0 - pow((double)config->beta1, t)));
    float correction = (float)(1.0 / sqrt(1.0 - pow((double)config->beta2, t)));
    struct update u = {*adamw, parameters, gradient, scale, config->beta1, config->beta2, step_size, correction,
                       1.0f - learning_rate * config->weight_decay, config->epsilon, partial};
    for (size_t i = 0; i < chunks(adamw->n); i++) partial[i] = 0;
    pool_run(pool, chunks(adamw->n), update_chunk, &u);
    for (size_t i = 0; i < chunks(adamw->n); i++)
        if (partial[i] == 0) update_chunk(&u, i, 0);
}

/* ---- the gradient's norm ---- */

struct norm {
    const float *x;
    size_t n;
    double *partial;
};

static void norm_chunk(void *argument, size_t chunk, int worker) {
    const struct norm *norm = argument;
    const float *x = norm->x;
    (void)worker;
    size_t i = chunk * CHUNK, end = chunk_end(chunk, norm->n);
    double lanes[LANES] = {0}, sum = 0;
    for (; i + LANES <= end; i += LANES)
        for (int l = 0; l < LANES; l++) lanes[l] += (double)x[i + l] * (double)x[i + l];
    for (; i < end; i++) sum += (double)x[i] * (double)x[i];
    for (int l = 0; l < LANES; l++) sum += lanes[l];
    norm->partial[chunk] = sum;
}

size_t adamw_partials(size_t n) { return chunks(n); }

double gradient_norm(struct pool *pool, const float *x, size_t n, double *partial) {
    struct norm norm = {x, n, partial};
    double sum = 0;
    pool_run(pool, chunks(n), norm_chunk, &norm);
    for (size_t i = 0; i < chunks(n); i++) sum += partial[i];
    return sqrt(sum);
}
