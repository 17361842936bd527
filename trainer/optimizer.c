/* AdamW and the learning rate's schedule. */
#include "trainer/trainer.h"

#include <math.h>

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
void adamw_update(struct adamw *adamw, float *parameters, const float *gradient, const struct train_config *config,
                  float learning_rate) {
    adamw->step++;
    double t = (double)adamw->step;
    float b1 = config->beta1, b2 = config->beta2;
    float step_size = (float)((double)learning_rate / (1.0 - pow((double)b1, t)));
    float correction = (float)(1.0 / sqrt(1.0 - pow((double)b2, t)));
    float decay = 1.0f - learning_rate * config->weight_decay;
    for (size_t i = 0; i < adamw->n; i++) {
        float g = gradient[i];
        float m = adamw->m[i] = b1 * adamw->m[i] + (1.0f - b1) * g;
        float v = adamw->v[i] = b2 * adamw->v[i] + (1.0f - b2) * g * g;
        parameters[i] = parameters[i] * decay - step_size * m / (sqrtf(v) * correction + config->epsilon);
    }
}
