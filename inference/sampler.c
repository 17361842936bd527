#include "inference/sampler.h"

#include "core/base/random.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PENALTY_WINDOW = 64 };

struct candidate {
    float logit; /* later its weight in the draw */
    int32_t id;
};

struct sampler {
    size_t V;
    double temperature, top_p, min_p, penalty; /* top_p, min_p 0: off; penalty 1: off */
    size_t top_k;                              /* 0: off */
    uint64_t seed, draws;
    struct candidate *candidates; /* (V), NULL when greedy */
    float *own; /* (V) logits as the model gave them; NULL without alternatives */
    attune_alternative alternatives[21];
    size_t n_alternatives; /* asked for, and itself; 0: none */
};

/* Candidates still in the running: n of them from `first`. */
struct span {
    struct candidate *first;
    size_t n;
};

static int check(const attune_generate_options *o, attune_error *err) {
    const char *where = "attune_generate_options";
    if (!(o->temperature >= 0 && isfinite(o->temperature)))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where,
                         "temperature must be 0 (greedy) or a positive number, not %g", o->temperature);
    if (o->top_k < 0)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "top_k must be 0 (off) or a positive number, not %d",
                         o->top_k);
    if (!(o->top_p >= 0 && o->top_p <= 1))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "top_p must lie in 0 (off) to 1, not %g", o->top_p);
    if (!(o->min_p >= 0 && o->min_p <= 1))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "min_p must lie in 0 (off) to 1, not %g", o->min_p);
    if (!(o->repetition_penalty >= 0 && isfinite(o->repetition_penalty)))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where,
                         "repetition_penalty must be 0 or 1 (off) or another positive number, not %g",
                         o->repetition_penalty);
    if (o->alternatives < 0 || o->alternatives > 20)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, where, "alternatives must be 0 to 20, not %d", o->alternatives);
    return ATTUNE_OK;
}

int sampler_create(const attune_generate_options *options, size_t vocabulary, size_t context, struct sampler **out,
                   attune_error *err) {
    (void)context;
    int code = check(options, err);
    if (code != ATTUNE_OK) return code;
    if (vocabulary == 0 || vocabulary > INT32_MAX)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "cannot sample from a vocabulary of %zu tokens", vocabulary);
    struct sampler *s = calloc(1, sizeof *s);
    if (!s) return error_set_memory(err, "the sampler", sizeof *s);
    *s = (struct sampler){
        .V = vocabulary,
        .temperature = options->temperature,
        .top_p = options->top_p < 1 ? options->top_p : 0,
        .min_p = options->min_p,
        .penalty = options->repetition_penalty > 0 ? options->repetition_penalty : 1,
        .top_k = (size_t)options->top_k < vocabulary ? (size_t)options->top_k : 0,
        .seed = options->seed,
        .n_alternatives = options->alternatives ? (size_t)options->alternatives + 1 : 0,
    };
    if (s->temperature > 0) {
        s->candidates = calloc(vocabulary, sizeof *s->candidates);
        if (!s->candidates) {
            free(s);
            return error_set_memory(err, "the sampler's candidates", vocabulary * sizeof(struct candidate));
        }
    }
    if (s->n_alternatives) {
        s->own = calloc(vocabulary, sizeof *s->own);
        if (!s->own) {
            sampler_destroy(s);
            return error_set_memory(err, "the sampler's alternatives", vocabulary * sizeof *s->own);
        }
    }
    *out = s;
    return ATTUNE_OK;
}

void sampler_destroy(struct sampler *sampler) {
    if (!sampler) return;
    free(sampler->candidates);
    free(sampler->own);
    free(sampler);
}

/* Repetition penalty (Keskar et al. 2019, CTRL): once for each distinct token, however often it came. */
static void penalize(const struct sampler *s, float *logits, const int32_t *recent, size_t n) {
    for (size_t i = 0; i < n; i++) {
        int seen = recent[i] < 0 || (size_t)recent[i] >= s->V;
        for (size_t j = 0; j < i && !seen; j++) seen = recent[j] == recent[i];
        if (seen) continue;
        float *logit = &logits[recent[i]];
        *logit = (float)(*logit > 0 ? *logit / s->penalty : *logit * s->penalty);
    }
}

static int32_t greedy(const float *logits, size_t V) {
    int32_t best = -1;
    for (size_t i = 0; i < V; i++)
        if (isfinite(logits[i]) && (best < 0 || logits[i] > logits[best])) best = (int32_t)i;
    return best;
}

/* The total order of candidates: the lower id first among equal logits. */
static int better(const struct candidate *a, const struct candidate *b) {
    return a->logit > b->logit || (a->logit == b->logit && a->id < b->id);
}

static void sift_down(struct candidate *heap, size_t n, size_t i) {
    struct candidate moving = heap[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && better(&heap[child + 1], &heap[child])) child++;
        if (!better(&heap[child], &moving)) break;
        heap[i] = heap[child];
    }
    heap[i] = moving;
}

/* A heap, best first: O(V) to build and O(log V) for each candidate that is kept, where sorting a
 * vocabulary would be O(V log V) for each token. */
static void heap_build(struct span all) {
    for (size_t i = all.n / 2; i-- > 0;) sift_down(all.first, all.n, i);
}

/* Moves the best of a heap of n behind the heap. */
static void heap_pop(struct candidate *heap, size_t n) {
    struct candidate best = heap[0];
    heap[0] = heap[n - 1];
    heap[n - 1] = best;
    sift_down(heap, n - 1, 0);
}

static float highest(struct span all) {
    float max = -INFINITY;
    for (size_t i = 0; i < all.n; i++)
        if (all.first[i].logit > max) max = all.first[i].logit;
    return max;
}

static struct span keep_top_k(struct span all, size_t k) {
    if (k >= all.n) return all;
    heap_build(all);
    for (size_t i = 0; i < k; i++) heap_pop(all.first, all.n - i);
    return (struct span){all.first + all.n - k, k};
}

/* The fewest best candidates whose probability reaches p (Holtzman et al. 2019). */
static struct span keep_top_p(struct span all, double p) {
    double max = highest(all), total = 0, sum = 0;
    for (size_t i = 0; i < all.n; i++) total += exp(all.first[i].logit - max);
    heap_build(all);
    size_t left = all.n;
    while (left > 0 && sum < p * total) {
        heap_pop(all.first, left--);
        sum += exp(all.first[left].logit - max);
    }
    return (struct span){all.first + left, all.n - left};
}

/* Candidates at least p times as probable as the best (Nguyen et al. 2024). */
static struct span keep_min_p(struct span all, double p) {
    double least = highest(all) + log(p);
    size_t n = 0;
    for (size_t i = 0; i < all.n; i++)
        if (all.first[i].logit >= least) all.first[n++] = all.first[i];
    return (struct span){all.first, n};
}

/* u uniform in [0, 1) */
static int32_t draw(struct span all, double temperature, double u) {
    double max = highest(all), total = 0, sum = 0;
    for (size_t i = 0; i < all.n; i++) {
        all.first[i].logit = (float)exp((all.first[i].logit - max) / temperature);
        total += all.first[i].logit;
    }
    int32_t id = -1;
    for (size_t i = 0; i < all.n && sum <= u * total; i++) {
        if (all.first[i].logit == 0) continue;
        sum += all.first[i].logit;
        id = all.first[i].id;
    }
    return id;
}

static void keep_alternatives(struct sampler *s, const float *logits, int32_t id) {
    double max = -INFINITY, sum = 0;
    for (size_t i = 0; i < s->V; i++) max = logits[i] > max ? logits[i] : max;
    for (size_t i = 0; i < s->V; i++) sum += exp(logits[i] - max);
    s->alternatives[0] = (attune_alternative){id, (float)(logits[id] - max - log(sum))};
    for (size_t j = 1; j < s->n_alternatives; j++) {
        size_t best = s->V;
        for (size_t i = 0; i < s->V; i++) {
            int taken = 0;
            for (size_t k = 1; k < j; k++) taken |= s->alternatives[k].id == (int32_t)i;
            if (!taken && (best == s->V || logits[i] > logits[best])) best = i;
        }
        s->alternatives[j] = (attune_alternative){(int32_t)best, (float)(logits[best] - max - log(sum))};
    }
}

const attune_alternative *sampler_alternatives(const struct sampler *s, size_t *n) {
    *n = s->n_alternatives;
    return s->alternatives;
}

static int32_t choose(struct sampler *s, float *logits, const int32_t *recent, size_t n_recent) {
    if (s->penalty != 1) penalize(s, logits, recent, n_recent);
    if (!s->candidates) return greedy(logits, s->V);
    struct span all = {s->candidates, 0};
    for (size_t i = 0; i < s->V; i++)
        if (isfinite(logits[i])) all.first[all.n++] = (struct candidate){logits[i], (int32_t)i};
    if (all.n == 0) return -1;
    if (s->top_k) all = keep_top_k(all, s->top_k);
    if (s->top_p > 0) all = keep_top_p(all, s->top_p);
    if (s->min_p > 0) all = keep_min_p(all, s->min_p);
    double u = (double)(random_u64(s->seed, s->draws++) >> 11) * 0x1p-53;
    return draw(all, s->temperature, u);
}

int32_t sampler_next(struct sampler *s, float *logits, const int32_t *line, size_t n_line) {
    size_t n = n_line < PENALTY_WINDOW ? n_line : PENALTY_WINDOW;
    if (s->own) memcpy(s->own, logits, s->V * sizeof *logits);
    int32_t id = choose(s, logits, line + n_line - n, n);
    if (s->own && id >= 0) keep_alternatives(s, s->own, id);
    return id;
}
