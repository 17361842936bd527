/* RMSNorm (Zhang & Sennrich 2019): y = x r w with r = 1 / sqrt(mean(x^2) + eps). */
#include "core/ops/rows.h"

#include <math.h>

struct norm {
    const struct kernels *kernels;
    float *out;
    const float *dy, *x, *weight;
    float eps;
    size_t C;
};

static float inverse_rms(const struct norm *n, const float *x) {
    return 1.0f / sqrtf(n->kernels->sum_squares(x, n->C) / (float)n->C + n->eps);
}

static void forward_rows(const void *argument, size_t first, size_t last) {
    const struct norm *n = argument;
    for (size_t t = first; t < last; t++) {
        const float *x = n->x + t * n->C;
        float *y = n->out + t * n->C, r = inverse_rms(n, x);
        for (size_t c = 0; c < n->C; c++) y[c] = x[c] * r * n->weight[c];
    }
}

void rms_norm_forward(const struct ops *ops, float *y, const float *x, const float *weight, float eps, size_t T,
                      size_t C) {
    struct norm n = {ops->kernels, y, NULL, x, weight, eps, C};
    rows_run(ops, T, forward_rows, &n);
}

/* y_c = x_c r w_c and dr/dx_c = -r^3 x_c / C, so with s = sum_c dy_c w_c x_c:
 * dx_c += r dy_c w_c - x_c r^3 s / C. */
static void backward_rows(const void *argument, size_t first, size_t last) {
    const struct norm *n = argument;
    for (size_t t = first; t < last; t++) {
        const float *x = n->x + t * n->C, *dy = n->dy + t * n->C;
        float *dx = n->out + t * n->C, r = inverse_rms(n, x);
        double s = 0;
        for (size_t c = 0; c < n->C; c++) s += (double)(dy[c] * n->weight[c] * x[c]);
        float k = (float)(s / (double)n->C) * r * r * r;
        for (size_t c = 0; c < n->C; c++) dx[c] += r * dy[c] * n->weight[c] - x[c] * k;
    }
}

void rms_norm_backward(const struct ops *ops, float *dx, const float *dy, const float *x, const float *weight,
                       float eps, size_t T, size_t C) {
    struct norm n = {ops->kernels, dx, dy, x, weight, eps, C};
    rows_run(ops, T, backward_rows, &n);
}
