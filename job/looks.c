#include "job/looks.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

size_t looks_expected(double epochs) {
    return epochs > LOOKS_MAX ? LOOKS_MAX : epochs > 1 ? (size_t)ceil(epochs - 1e-9) : 1;
}

/* Of the shortest training that the plan has. */
static size_t steps_at_least(const struct plan *plan) {
    size_t least = plan_steps(plan, plan->n_train);
    for (int fold = 0; fold < plan->folds; fold++) {
        size_t rows = 0;
        for (size_t i = 0; i < plan->n_train; i++) rows += plan->fold[i] != fold;
        if (plan_steps(plan, rows) < least) least = plan_steps(plan, rows);
    }
    return least;
}

int looks_create(struct looks *looks, const struct plan *plan, attune_error *err) {
    size_t least = steps_at_least(plan);
    *looks = (struct looks){.n = looks_expected(plan->settings.epochs), .rows = plan->n_judge};
    if (looks->n > least) looks->n = least > 0 ? least : 1;
    looks->nll = calloc(looks->n * looks->rows + 1, sizeof *looks->nll);
    if (!looks->nll) return error_set_memory(err, "what the judges say", looks->n * looks->rows * sizeof(double));
    looks_reset(looks);
    return ATTUNE_OK;
}

void looks_free(struct looks *looks) {
    free(looks->nll);
    *looks = (struct looks){0};
}

void looks_reset(struct looks *looks) {
    memset(looks->nll, 0, looks->n * looks->rows * sizeof *looks->nll);
    looks->best = looks->n - 1;
}

void looks_part(const struct looks *looks, size_t look, size_t steps, size_t *from, size_t *to) {
    *from = steps * look / looks->n;
    *to = steps * (look + 1) / looks->n;
}

static double sum_of(const struct looks *looks, size_t look) {
    double sum = 0;
    for (size_t i = 0; i < looks->rows; i++) sum += looks->nll[look * looks->rows + i];
    return sum;
}

/* A loss that is no number is worse than any. */
static int is_better(const struct looks *looks, size_t look, size_t other) {
    double a = sum_of(looks, look), b = sum_of(looks, other);
    return isnan(b) ? !isnan(a) : a < b;
}

int looks_take(struct looks *looks, size_t look) {
    if (look > 0 && !is_better(looks, look, look - 1)) {
        looks->best = look - 1;
        return 0;
    }
    looks->best = look;
    return 1;
}

void looks_choose(struct looks *looks) {
    looks->best = 0;
    for (size_t look = 1; look < looks->n; look++)
        if (is_better(looks, look, looks->best)) looks->best = look;
}
