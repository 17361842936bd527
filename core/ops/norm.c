/* RMSNorm (Zhang & Sennrich 2019): y = x r w with r = 1 / sqrt(mean(x^2) + eps). */
#include "core/ops/rows.h"

struct norm {
    const struct kernels *kernels;
    float *out, *sum;
    const float *dy, *x, *weight;
    float eps;
    size_t C;
};

static void forward_rows(const void *argument, size_t first, size_t last) {
    const struct norm *n = argument;
    for (size_t t = first; t < last; t++)
        n->kernels->rms_norm(n->out + t * n->C, n->x + t * n->C, n->weight, n->eps, n->C);
}

void rms_norm_forward(const struct ops *ops, float *y, const float *x, const float *weight, float eps, size_t T,
                      size_t C) {
    struct norm n = {.kernels = ops->kernels, .out = y, .x = x, .weight = weight, .eps = eps, .C = C};
    rows_run(ops, T, forward_rows, &n);
}

static void add_forward_rows(const void *argument, size_t first, size_t last) {
    const struct norm *n = argument;
    for (size_t t = first; t < last; t++) {
        float *sum = n->sum + t * n->C;
        n->kernels->axpy(sum, 1.0f, n->x + t * n->C, n->C);
        n->kernels->rms_norm(n->out + t * n->C, sum, n->weight, n->eps, n->C);
    }
}

void add_rms_norm_forward(const struct ops *ops, float *y, float *sum, const float *x, const float *weight, float eps,
                          size_t T, size_t C) {
    struct norm n = {.kernels = ops->kernels, .out = y, .sum = sum, .x = x, .weight = weight, .eps = eps, .C = C};
    rows_run(ops, T, add_forward_rows, &n);
}

static void backward_rows(const void *argument, size_t first, size_t last) {
    const struct norm *n = argument;
    for (size_t t = first; t < last; t++)
        n->kernels->rms_norm_backward(n->out + t * n->C, n->dy + t * n->C, n->x + t * n->C, n->weight, n->eps, n->C);
}

void rms_norm_backward(const struct ops *ops, float *dx, const float *dy, const float *x, const float *weight,
                       float eps, size_t T, size_t C) {
    struct norm n = {.kernels = ops->kernels, .out = dx, .dy = dy, .x = x, .weight = weight, .eps = eps, .C = C};
    rows_run(ops, T, backward_rows, &n);
}
