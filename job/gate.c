/* The gate: is the candidate better on rows that it has not seen?
 *
 * The loss is nats per supervised token over all judging rows; the difference is paired row by row, its
 * standard error that of a ratio estimator (Cochran 1977, 6.3). Publish when the whole 95 % interval lies
 * above zero: with few or contradicting rows the old adapter stays. */
#include "job/run.h"

#include <math.h>
#include <stdio.h>

/* Two-sided 95 % quantile of Student's t: by Abramowitz & Stegun 26.7.5, within 1 % from 3 degrees of freedom on. */
static double student_95(double degrees) {
    const double z = 1.959964, z3 = z * z * z, z5 = z3 * z * z, z7 = z5 * z * z;
    if (degrees < 3) return degrees < 2 ? 12.706205 : 4.302653;
    return z + (z3 + z) / (4 * degrees) + (5 * z5 + 16 * z3 + 3 * z) / (96 * degrees * degrees) +
           (3 * z7 + 19 * z5 + 17 * z3 - 15 * z) / (384 * degrees * degrees * degrees);
}

void gate_judge(const double *before, const double *after, const size_t *tokens, size_t n, struct gate_verdict *out) {
    double sum_before = 0, sum_after = 0, sum_tokens = 0, squares = 0;
    *out = (struct gate_verdict){.before = NAN, .after = NAN, .interval = NAN};
    for (size_t i = 0; i < n; i++) {
        sum_before += before[i];
        sum_after += after[i];
        sum_tokens += (double)tokens[i];
    }
    if (n < 2 || sum_tokens == 0 || !isfinite(sum_before) || !isfinite(sum_after)) {
        snprintf(out->reason, sizeof out->reason,
                 n < 2 ? "too few rows to judge by" : "the loss is not a finite number");
        return;
    }
    double gain = (sum_before - sum_after) / sum_tokens;
    for (size_t i = 0; i < n; i++) {
        double residual = before[i] - after[i] - gain * (double)tokens[i];
        squares += residual * residual;
    }
    out->before = sum_before / sum_tokens;
    out->after = sum_after / sum_tokens;
    out->interval = student_95((double)n - 1.0) * sqrt(squares * (double)n / ((double)n - 1.0)) / sum_tokens;
    out->publish = gain > out->interval;
    if (out->publish)
        snprintf(out->reason, sizeof out->reason, "held-out loss fell by %.3f +- %.3f nats a token", gain,
                 out->interval);
    else if (gain > 0)
        snprintf(out->reason, sizeof out->reason,
                 "held-out loss fell by %.3f, within its uncertainty of %.3f: not surely better", gain, out->interval);
    else
        snprintf(out->reason, sizeof out->reason, "held-out loss did not fall (%+.3f nats a token)", -gain);
}
