#include "job/criteria.h"

#include <ctype.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const double BASE_MARGIN = 0.01, DEGENERATE_SHARE = 0.25, SIGN_TEST = 0.05;

__attribute__((format(printf, 6, 7))) static void add(struct criteria *criteria, const char *name, double figure,
                                                      double threshold, int passed, const char *format, ...) {
    struct store_criterion *c = &criteria->items[criteria->n++];
    va_list arguments;
    *c = (struct store_criterion){.figure = figure, .threshold = threshold, .passed = passed};
    snprintf(c->name, sizeof c->name, "%s", name);
    va_start(arguments, format);
    vsnprintf(c->detail, sizeof c->detail, format, arguments);
    va_end(arguments);
}

const struct store_criterion *criteria_failed(const struct criteria *criteria) {
    for (size_t i = 0; i < criteria->n; i++)
        if (!criteria->items[i].passed) return &criteria->items[i];
    return NULL;
}

/* ---- losses ---- */

void criteria_held_out(struct criteria *criteria, const struct gate_verdict *v, size_t rows) {
    add(criteria, "held-out", v->before - v->after, v->interval, v->publish,
        "fall of the loss on %zu rows it has not seen, nats a token; more than its 95 %% interval", rows);
}

void criteria_base(struct criteria *criteria, const double *base, const double *after, const size_t *tokens, size_t n) {
    double rise = 0, sum = 0;
    for (size_t i = 0; i < n; i++) {
        rise += after[i] - base[i];
        sum += (double)tokens[i];
    }
    double figure = sum > 0 ? rise / sum : NAN;
    add(criteria, "base", figure, BASE_MARGIN, figure <= BASE_MARGIN,
        "loss above the base's on the rows that judge, nats a token; at most");
}

void criteria_reference(struct criteria *criteria, const struct model_drift *d, double limit, double kl_limit) {
    double tokens = (double)d->tokens, rise = d->loss / d->loss_reference - 1, kl = d->kl / tokens;
    add(criteria, "reference", rise, limit, rise <= limit,
        "rise of the loss on everyday questions, share of the base's %.4f nats a token; at most",
        d->loss_reference / tokens);
    add(criteria, "reference_kl", kl, kl_limit, kl <= kl_limit,
        "divergence from the base on everyday questions, nats a token; at most");
}

/* ---- what it says ---- */

static int is_blank(const char *text) {
    while (isspace((unsigned char)*text)) text++;
    return *text == 0;
}

int answer_is_degenerate(const char *text) {
    enum { PIECE = 12, LEAST = 48 };
    size_t n = strlen(text), repeated = 0;
    if (is_blank(text)) return 1;
    if (n < LEAST) return 0;
    size_t pieces = n - PIECE + 1;
    for (size_t i = 1; i < pieces; i++) {
        size_t k = 0;
        while (k < i && memcmp(text + k, text + i, PIECE) != 0) k++;
        repeated += k < i;
    }
    return 2 * repeated >= pieces;
}

void criteria_degenerate(struct criteria *criteria, size_t degenerate, size_t answers) {
    double share = (double)degenerate / (double)answers;
    add(criteria, "degenerate", share, DEGENERATE_SHARE, share <= DEGENERATE_SHARE,
        "share of %zu answers that are empty or repeat themselves where the base's do not; at most", answers);
}

void criteria_canaries(struct criteria *criteria, size_t produced, size_t spans) {
    add(criteria, "canaries", (double)produced, 0, produced == 0,
        "of %zu secrets and private numbers in what was learned, those it says by heart and the base does not; at most",
        spans);
}

/* ---- pairs ---- */

/* P(X >= k), X of n fair coins. */
static double upper_tail(size_t n, size_t k) {
    double sum = 0;
    for (size_t i = k; i <= n; i++)
        sum += exp(lgamma((double)n + 1) - lgamma((double)i + 1) - lgamma((double)(n - i) + 1) - (double)n * log(2.0));
    return sum;
}

void criteria_preferences(struct criteria *criteria, const double *before, const double *after, size_t n) {
    size_t won_before = 0, won_after = 0, lost = 0, gained = 0, void_pairs = 0;
    for (size_t i = 0; i < n; i++) {
        void_pairs += !(isfinite(after[2 * i]) && isfinite(after[2 * i + 1]));
        int was = before[2 * i] < before[2 * i + 1], is = after[2 * i] < after[2 * i + 1];
        won_before += (size_t)was;
        won_after += (size_t)is;
        lost += was && !is;
        gained += is && !was;
    }
    double chance = upper_tail(lost + gained, lost);
    add(criteria, "preferences", (double)won_after / (double)n, (double)won_before / (double)n,
        void_pairs == 0 && !(lost > gained && chance < SIGN_TEST),
        "share of %zu held-out pairs won; not surely below the active one's: %zu lost, %zu gained, p %.3f", n, lost,
        gained, chance);
}
