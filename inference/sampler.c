/* No order of the vocabulary is ever made. A cut needs only the last candidate that stays: it is searched among those
 * above a threshold, and the threshold among the maxima of blocks, which most blocks lie below. */
#include "inference/sampler.h"

#include "core/base/arena.h"
#include "core/base/random.h"
#include "core/kernels/kernels.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

enum {
    ALTERNATIVES_MAX = 20,
    WINDOW_DEFAULT = 64,
    BLOCK = 64 /* candidates */
};

struct item {
    float key, weight;
    int32_t place;
};

struct sampler {
    struct arena arena; /* of all arrays */
    const struct kernels *kernels;
    size_t V;
    double temperature, top_p, typical_p, min_p; /* 0: off, or greedy */
    double repetition, frequency, presence;      /* 1, 0, 0: off */
    size_t top_k;                                /* 0: off */
    size_t window;                               /* tokens that the penalties look back on */
    uint64_t seed, draws;
    attune_logit_bias *bias; /* (n_bias) */
    size_t n_bias;
    int32_t *counts;    /* (V) of tokens in the window; 0 between calls */
    float *block;       /* (V / BLOCK, rounded up) the highest key, or the sum, of a block */
    float *weight;      /* (V) of a candidate, by place */
    float *key;         /* (V) */
    int32_t *id;        /* (V) */
    struct item *items; /* (V) */
    float *raw;         /* (V) the model's own logits */
    attune_alternative *alternatives; /* (1 + n_wanted) */
    size_t n_wanted, n_alternatives;
};

/* Candidates still in the running, in order of their ids: what is cut away closes up. */
struct set {
    float *logit;      /* (n) */
    const int32_t *id; /* (n); NULL: the place is the id */
    size_t n;
};

/* The last candidate that stays, in the order of falling keys and rising places. */
struct boundary {
    double key;
    size_t place;
};

/* ---- settings ---- */

static const char options_name[] = "attune_generate_options";

/* note: what the lowest value means, and the like; "" for nothing */
static int check_range(const char *name, double value, double low, double high, const char *note, attune_error *err) {
    if (value >= low && value <= high && isfinite(value)) return ATTUNE_OK;
    if (high == INFINITY)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, options_name, "%s must be a number from %g up%s, not %g", name,
                         low, note, value);
    return error_set(err, ATTUNE_ERROR_ARGUMENT, options_name, "%s must lie in %g to %g%s, not %g", name, low, high,
                     note, value);
}

static int check_numbers(const attune_generate_options *o, attune_error *err) {
    const struct {
        const char *name;
        double value, low, high;
        const char *note;
    } fields[] = {
        {"temperature", o->temperature, 0, INFINITY, " (0: greedy)"},
        {"top_k", o->top_k, 0, INFINITY, " (0: off)"},
        {"top_p", o->top_p, 0, 1, " (0: off)"},
        {"min_p", o->min_p, 0, 1, " (0: off)"},
        {"typical_p", o->typical_p, 0, 1, " (0: off)"},
        {"repetition_penalty", o->repetition_penalty, 0, INFINITY, " (0 or 1: off)"},
        {"frequency_penalty", o->frequency_penalty, -2, 2, ""},
        {"presence_penalty", o->presence_penalty, -2, 2, ""},
        {"alternatives", o->alternatives, 0, ALTERNATIVES_MAX, ""},
        {"lookup", o->lookup, 0, LOOKUP_MAX, " (0: off)"},
    };
    int code = ATTUNE_OK;
    for (size_t i = 0; i < sizeof fields / sizeof *fields && code == ATTUNE_OK; i++)
        code = check_range(fields[i].name, fields[i].value, fields[i].low, fields[i].high, fields[i].note, err);
    return code;
}

static int check(const attune_generate_options *o, size_t vocabulary, size_t context, attune_error *err) {
    int code = check_numbers(o, err);
    if (code != ATTUNE_OK) return code;
    if (o->penalty_window < -1 || (o->penalty_window > 0 && (size_t)o->penalty_window > context))
        return error_set(err, ATTUNE_ERROR_ARGUMENT, options_name,
                         "penalty_window must be -1 (the whole context), 0 (%d tokens) or up to the context's %zu "
                         "tokens, not %d",
                         WINDOW_DEFAULT, context, o->penalty_window);
    if (vocabulary == 0 || vocabulary > INT32_MAX)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "cannot sample from a vocabulary of %zu tokens", vocabulary);
    if (o->n_logit_bias > 0 && !o->logit_bias)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, options_name, "n_logit_bias is %zu but logit_bias is NULL",
                         o->n_logit_bias);
    if (o->n_logit_bias > vocabulary)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, options_name,
                         "n_logit_bias is %zu, but there are only %zu tokens, each with one bias at most",
                         o->n_logit_bias, vocabulary);
    return ATTUNE_OK;
}

/* counts mark the ids that were met. */
static int take_bias(struct sampler *s, const attune_logit_bias *bias, attune_error *err) {
    size_t forbidden = 0;
    for (size_t i = 0; i < s->n_bias; i++) {
        int32_t id = bias[i].id;
        float value = bias[i].bias;
        if (id < 0 || (size_t)id >= s->V)
            return error_set(err, ATTUNE_ERROR_ARGUMENT, options_name,
                             "logit_bias[%zu].id must be a token, 0 to %zu, not %d", i, s->V - 1, (int)id);
        if (!(value == -INFINITY || fabsf(value) <= 100))
            return error_set(err, ATTUNE_ERROR_ARGUMENT, options_name,
                             "logit_bias[%zu].bias must be -INFINITY (never) or lie in -100 to 100, not %g", i,
                             (double)value);
        if (s->counts[id]++)
            return error_set(err, ATTUNE_ERROR_ARGUMENT, options_name,
                             "logit_bias[%zu].id is %d, which has a bias already; give each token one", i, (int)id);
        forbidden += value == -INFINITY;
        s->bias[i] = bias[i];
    }
    if (forbidden == s->V)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, options_name,
                         "logit_bias forbids all %zu tokens; leave one that may be chosen", s->V);
    for (size_t i = 0; i < s->n_bias; i++) s->counts[bias[i].id] = 0;
    return ATTUNE_OK;
}

static void lay_out(struct sampler *s) {
    s->counts = ARENA_TAKE(&s->arena, int32_t, s->V);
    s->block = ARENA_TAKE(&s->arena, float, (s->V + BLOCK - 1) / BLOCK);
    s->weight = ARENA_TAKE(&s->arena, float, s->V);
    s->key = ARENA_TAKE(&s->arena, float, s->V);
    s->id = ARENA_TAKE(&s->arena, int32_t, s->V);
    s->items = ARENA_TAKE(&s->arena, struct item, s->V);
    s->raw = ARENA_TAKE(&s->arena, float, s->V);
    s->bias = ARENA_TAKE(&s->arena, attune_logit_bias, s->n_bias);
    s->alternatives = ARENA_TAKE(&s->arena, attune_alternative, 1 + s->n_wanted);
}

int sampler_create(const attune_generate_options *o, size_t vocabulary, size_t context, struct sampler **out,
                   attune_error *err) {
    int code = check(o, vocabulary, context, err);
    if (code != ATTUNE_OK) return code;
    struct sampler *s = calloc(1, sizeof *s);
    if (!s) return error_set_memory(err, "the sampler", sizeof *s);
    *s = (struct sampler){
        .kernels = kernels_get(),
        .V = vocabulary,
        .temperature = o->temperature,
        .top_p = o->top_p < 1 ? o->top_p : 0,
        .typical_p = o->typical_p < 1 ? o->typical_p : 0,
        .min_p = o->min_p,
        .repetition = o->repetition_penalty > 0 ? o->repetition_penalty : 1,
        .frequency = o->frequency_penalty,
        .presence = o->presence_penalty,
        .top_k = (size_t)o->top_k < vocabulary ? (size_t)o->top_k : 0,
        .window = o->penalty_window < 0    ? SIZE_MAX
                  : o->penalty_window == 0 ? WINDOW_DEFAULT
                                           : (size_t)o->penalty_window,
        .seed = o->seed,
        .n_bias = o->n_logit_bias,
        .n_wanted = (size_t)o->alternatives < vocabulary ? (size_t)o->alternatives : vocabulary,
    };
    lay_out(s);
    code = arena_commit(&s->arena, "the sampler", err);
    if (code == ATTUNE_OK) {
        lay_out(s);
        code = take_bias(s, o->logit_bias, err);
    }
    if (code != ATTUNE_OK) {
        sampler_destroy(s);
        return code;
    }
    *out = s;
    return ATTUNE_OK;
}

void sampler_destroy(struct sampler *s) {
    if (!s) return;
    arena_free(&s->arena);
    free(s);
}

/* ---- bias and penalties ---- */

static int in_vocabulary(const struct sampler *s, int32_t id) { return id >= 0 && (size_t)id < s->V; }

/* A penalty makes a token unlikely, never impossible. */
static float clamped(double x) { return x > FLT_MAX ? FLT_MAX : x < -FLT_MAX ? -FLT_MAX : (float)x; }

/* Repetition as in Keskar et al. 2019 (CTRL), once for each token that came, however often; frequency and presence as
 * in OpenAI's API. */
static void penalize(struct sampler *s, float *logits, const int32_t *line, size_t n_line) {
    if (s->repetition == 1 && s->frequency == 0 && s->presence == 0) return;
    size_t from = n_line > s->window ? n_line - s->window : 0;
    for (size_t i = from; i < n_line; i++)
        if (in_vocabulary(s, line[i])) s->counts[line[i]]++;
    for (size_t i = from; i < n_line; i++) {
        if (!in_vocabulary(s, line[i]) || s->counts[line[i]] == 0) continue;
        double logit = logits[line[i]];
        if (isfinite(logit)) {
            logit = logit > 0 ? logit / s->repetition : logit * s->repetition;
            logits[line[i]] = clamped(logit - s->counts[line[i]] * s->frequency - s->presence);
        }
        s->counts[line[i]] = 0;
    }
}

static void add_bias(const struct sampler *s, float *logits) {
    for (size_t i = 0; i < s->n_bias; i++) {
        float *logit = &logits[s->bias[i].id];
        *logit = s->bias[i].bias == -INFINITY ? -INFINITY : *logit + s->bias[i].bias;
    }
}

/* What is not finite becomes what nothing is below. */
static void clean(float *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = x[i] < INFINITY ? x[i] : -INFINITY;
}

/* ---- blocks ---- */

/* Wide enough for every machine's baseline; floats may lie anywhere. */
typedef float quad __attribute__((vector_size(16)));
typedef int32_t quad_mask __attribute__((vector_size(16)));
enum { LANES = 4 };

static inline quad quad_load(const float *x) {
    quad q;
    memcpy(&q, x, sizeof q);
    return q;
}
static inline quad quad_splat(float x) { return (quad){x, x, x, x}; }
static inline quad quad_where(quad_mask mask, quad x) { return (quad)((quad_mask)x & mask); }
static inline quad quad_max(quad a, quad b) {
    quad_mask mask = a > b;
    return (quad)(((quad_mask)a & mask) | ((quad_mask)b & ~mask));
}
static inline float larger(float a, float b) { return a > b ? a : b; }

static size_t block_end(size_t from, size_t n) { return n - from < BLOCK ? n : from + BLOCK; }

static float highest_of(const float *x, size_t n) {
    quad even = quad_splat(-INFINITY), odd = even;
    size_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        even = quad_max(quad_load(x + i), even);
        odd = quad_max(quad_load(x + i + LANES), odd);
    }
    even = quad_max(odd, even);
    float highest = larger(larger(even[0], even[1]), larger(even[2], even[3]));
    for (; i < n; i++) highest = larger(x[i], highest);
    return highest;
}

/* The maximum of each block of keys, into s->block, and of all. */
static float find_highest(struct sampler *s, const float *key, size_t n) {
    float highest = -INFINITY;
    for (size_t from = 0; from < n; from += BLOCK) {
        float h = highest_of(key + from, block_end(from, n) - from);
        s->block[from / BLOCK] = h;
        highest = larger(h, highest);
    }
    return highest;
}

/* Weights of n keys that are at least `least`. */
static float sum_from(const float *key, const float *weight, size_t n, float least) {
    quad even = quad_splat(0), odd = even, bound = quad_splat(least);
    size_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        even += quad_where(quad_load(key + i) >= bound, quad_load(weight + i));
        odd += quad_where(quad_load(key + i + LANES) >= bound, quad_load(weight + i + LANES));
    }
    even += odd;
    float sum = (even[0] + even[1]) + (even[2] + even[3]);
    for (; i < n; i++) sum += key[i] >= least ? weight[i] : 0;
    return sum;
}

/* Of weights and x, which may be -inf where the weight is 0. */
static float sum_products(const float *weight, const float *x, size_t n) {
    quad even = quad_splat(0), odd = even, zero = even;
    size_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        quad a = quad_load(weight + i), b = quad_load(weight + i + LANES);
        even += quad_where(a > zero, a * quad_load(x + i));
        odd += quad_where(b > zero, b * quad_load(x + i + LANES));
    }
    even += odd;
    float sum = (even[0] + even[1]) + (even[2] + even[3]);
    for (; i < n; i++) sum += weight[i] > 0 ? weight[i] * x[i] : 0;
    return sum;
}

/* ---- the last that stays ---- */

/* Keys, whose maxima are in s->block, and weights; those may be NULL: all are 1. */
struct ranking {
    const float *key, *weight;
    size_t n;
};

static double sum_above(const struct sampler *s, struct ranking r, float least) {
    static const float ones[BLOCK] = {[0 ... BLOCK - 1] = 1};
    double sum = 0;
    for (size_t from = 0; from < r.n; from += BLOCK)
        if (s->block[from / BLOCK] >= least)
            sum += sum_from(r.key + from, r.weight ? r.weight + from : ones, block_end(from, r.n) - from, least);
    return sum;
}

/* Keys from low up to, but not at, high. */
struct band {
    float low, high;
    double above; /* weight of the keys from high up */
};

/* Where the key lies with which the weights of the best reach the target: a band that holds few others. The search
 * goes down from the highest in nats, doubling, and then halves what lies between the last two steps. */
static struct band find_band(const struct sampler *s, struct ranking r, float highest, double target) {
    enum { DEPTH_MAX = 4096, HALVINGS = 9 };
    struct band band = {.high = INFINITY};
    double over = 0, depth = 0.125;
    for (; depth < DEPTH_MAX; over = depth, depth *= 2) {
        band.low = (float)(highest - depth);
        double sum = sum_above(s, r, band.low);
        if (sum >= target) break;
        band.high = band.low;
        band.above = sum;
    }
    if (depth >= DEPTH_MAX) band.low = -FLT_MAX;
    for (int i = 0; i < HALVINGS && depth < DEPTH_MAX; i++) {
        double middle = (over + depth) / 2;
        float least = (float)(highest - middle);
        double sum = sum_above(s, r, least);
        if (sum >= target) {
            depth = middle;
            band.low = least;
        } else {
            over = middle;
            band.high = least;
            band.above = sum;
        }
    }
    return band;
}

/* The band's candidates into s->items; how many. What is not one of them is overwritten: a jump that nobody can
 * foresee costs more. */
static size_t collect(struct sampler *s, struct ranking r, struct band band) {
    size_t n = 0;
    for (size_t from = 0; from < r.n; from += BLOCK) {
        if (s->block[from / BLOCK] < band.low) continue;
        for (size_t i = from, end = block_end(from, r.n); i < end; i++) {
            s->items[n] = (struct item){r.key[i], r.weight ? r.weight[i] : 1, (int32_t)i};
            n += (r.key[i] >= band.low) & (r.key[i] < band.high);
        }
    }
    return n;
}

static int better(const struct item *a, const struct item *b) {
    return a->key > b->key || (a->key == b->key && a->place < b->place);
}

static void swap(struct item *a, struct item *b) {
    struct item t = *a;
    *a = *b;
    *b = t;
}

/* Of n > 0 items, the one with which the weights of the best reach the target; the worst where they do not. Hoare's
 * selection with pivots from a fixed scramble: linear on any keys that were not made against it. */
static struct item find_last(struct item *items, size_t n, double target) {
    double taken = 0; /* weight of those before `from`, all better than the rest */
    size_t from = 0, end = n;
    while (end - from > 1) {
        swap(&items[from + random_u64(from, end) % (end - from)], &items[end - 1]);
        struct item pivot = items[end - 1];
        double sum = taken;
        size_t at = from;
        for (size_t i = from; i + 1 < end; i++) {
            if (!better(&items[i], &pivot)) continue;
            sum += items[i].weight;
            swap(&items[at++], &items[i]);
        }
        if (sum >= target && at > from) {
            end = at;
        } else if (sum + pivot.weight >= target || at + 1 == end) {
            return pivot;
        } else {
            swap(&items[at], &items[end - 1]);
            taken = sum + pivot.weight;
            from = at + 1;
        }
    }
    return items[from];
}

/* The fewest best candidates whose weights reach the target, or all: the last of them. There is one key at least that
 * is finite. */
static struct boundary reach(struct sampler *s, struct ranking r, double target) {
    struct band band = find_band(s, r, find_highest(s, r.key, r.n), target);
    size_t n = collect(s, r, band);
    if (n == 0) return (struct boundary){-FLT_MAX, r.n}; /* all are above, and do not reach it */
    struct item last = find_last(s->items, n, target - band.above);
    return (struct boundary){last.key, (size_t)last.place};
}

/* ---- cuts ---- */

static int stays(float key, size_t place, struct boundary last) {
    return (key > last.key) | ((key == last.key) & (place <= last.place));
}

/* Keys are by place in the set, and may be its logits; their maxima are in s->block. */
static void cut(struct sampler *s, struct set *set, const float *key, struct boundary last) {
    size_t n = 0;
    for (size_t from = 0; from < set->n; from += BLOCK) {
        if (s->block[from / BLOCK] < last.key) continue;
        for (size_t i = from, end = block_end(from, set->n); i < end; i++) {
            int kept = stays(key[i], i, last);
            s->id[n] = set->id ? set->id[i] : (int32_t)i;
            set->logit[n] = set->logit[i];
            n += (size_t)kept;
        }
    }
    set->id = s->id;
    set->n = n;
}

/* out[i] = scale (logit - highest), at most 0; what was finite stays finite at scale 1. */
static void shift(float *out, const struct set *set, float highest, float scale) {
    for (size_t i = 0; i < set->n; i++) {
        float x = set->logit[i] - highest;
        x = x < -FLT_MAX ? -FLT_MAX : x;
        out[i] = set->logit[i] == -INFINITY ? -INFINITY : x * scale;
    }
}

/* Weights exp(scale (logit - highest)) into s->weight, their sums by block into s->block, and the sum of all. */
static double weigh(struct sampler *s, const struct set *set, float highest, float scale) {
    shift(s->weight, set, highest, scale);
    s->kernels->softmax(s->weight, set->n, 0);
    double total = 0;
    for (size_t from = 0; from < set->n; from += BLOCK) {
        const float *weight = s->weight + from;
        total += s->block[from / BLOCK] = sum_from(weight, weight, block_end(from, set->n) - from, 0);
    }
    return total;
}

static void keep_top_k(struct sampler *s, struct set *set, size_t k) {
    struct ranking r = {set->logit, NULL, set->n};
    cut(s, set, set->logit, reach(s, r, (double)k));
}

/* The fewest of those whose surprise, -log p, is nearest to the expected surprise, the entropy, that reach p
 * (Meister et al. 2022, Locally Typical Sampling). With x = logit - highest, both are off by the same constant:
 * |-log p + sum p log p| = |x - sum p x|. */
static void keep_typical(struct sampler *s, struct set *set, double p) {
    float highest = find_highest(s, set->logit, set->n);
    double total = weigh(s, set, highest, 1), expected = 0;
    shift(s->key, set, highest, 1);
    for (size_t from = 0; from < set->n; from += BLOCK)
        expected += sum_products(s->weight + from, s->key + from, block_end(from, set->n) - from);
    expected /= total;
    for (size_t i = 0; i < set->n; i++) s->key[i] = -fabsf(s->key[i] - (float)expected);
    struct ranking r = {s->key, s->weight, set->n};
    cut(s, set, s->key, reach(s, r, p * total));
}

/* The fewest best whose probability reaches p (Holtzman et al. 2019, nucleus sampling). */
static void keep_top_p(struct sampler *s, struct set *set, double p) {
    double total = weigh(s, set, find_highest(s, set->logit, set->n), 1);
    struct ranking r = {set->logit, s->weight, set->n};
    cut(s, set, set->logit, reach(s, r, p * total));
}

/* Those at least p times as probable as the best (Nguyen et al. 2024, min-p). */
static void keep_min_p(struct sampler *s, struct set *set, double p) {
    double least = find_highest(s, set->logit, set->n) + log(p);
    cut(s, set, set->logit, (struct boundary){least, set->n});
}

/* ---- the choice ---- */

/* The maxima are in s->block. */
static int32_t take_best(const struct sampler *s, const float *logits, float highest) {
    size_t i = 0;
    while (s->block[i / BLOCK] != highest) i += BLOCK;
    while (logits[i] != highest) i++;
    return (int32_t)i;
}

/* u uniform in [0, 1) */
static int32_t draw(struct sampler *s, const struct set *set, double u) {
    double scale = 1 / s->temperature;
    float highest = find_highest(s, set->logit, set->n);
    double target = u * weigh(s, set, highest, scale > FLT_MAX ? FLT_MAX : (float)scale), sum = 0;
    size_t chosen = set->n - 1, from = 0;
    while (chosen > 0 && s->weight[chosen] == 0) chosen--;
    for (; from + BLOCK <= chosen && sum + s->block[from / BLOCK] <= target; from += BLOCK)
        sum += s->block[from / BLOCK];
    for (size_t i = from; i < chosen; i++) {
        sum += s->weight[i];
        if (sum > target) chosen = i;
    }
    return set->id ? set->id[chosen] : (int32_t)chosen;
}

static int32_t choose(struct sampler *s, float *logits) {
    struct set all = {logits, NULL, s->V};
    float highest = find_highest(s, logits, s->V);
    if (highest == -INFINITY) return -1;
    if (s->temperature == 0) return take_best(s, logits, highest);
    if (s->top_k) keep_top_k(s, &all, s->top_k);
    if (s->typical_p > 0) keep_typical(s, &all, s->typical_p);
    if (s->top_p > 0) keep_top_p(s, &all, s->top_p);
    if (s->min_p > 0) keep_min_p(s, &all, s->min_p);
    return draw(s, &all, (double)(random_u64(s->seed, s->draws++) >> 11) * 0x1p-53);
}

/* ---- alternatives ---- */

/* Into n that fall, behind its equals. */
static void insert(attune_alternative *sorted, size_t n, attune_alternative one) {
    for (; n > 0 && sorted[n - 1].log_probability < one.log_probability; n--) sorted[n] = sorted[n - 1];
    sorted[n] = one;
}

/* log(sum exp(logit)) over the raw logits, whose best go behind the first place of the alternatives. */
static double rank_alternatives(struct sampler *s, const float *logits) {
    memcpy(s->raw, logits, s->V * sizeof *s->raw);
    clean(s->raw, s->V);
    s->n_alternatives = 0;
    float highest = find_highest(s, s->raw, s->V);
    if (highest == -INFINITY) return highest;
    struct set all = {s->raw, NULL, s->V};
    double log_sum = highest + log(weigh(s, &all, highest, 1));
    struct ranking r = {s->raw, NULL, s->V};
    struct boundary last = reach(s, r, (double)s->n_wanted);
    attune_alternative *best = s->alternatives + 1; /* logits first */
    size_t n = 0;
    for (size_t from = 0; from < s->V; from += BLOCK) {
        if (s->block[from / BLOCK] < last.key) continue;
        for (size_t i = from, end = block_end(from, s->V); i < end; i++)
            if (stays(s->raw[i], i, last)) insert(best, n++, (attune_alternative){(int32_t)i, s->raw[i]});
    }
    for (size_t i = 0; i < n; i++) best[i].log_probability = (float)(best[i].log_probability - log_sum);
    s->n_alternatives = 1 + n;
    return log_sum;
}

const attune_alternative *sampler_alternatives(const struct sampler *s, size_t *n) {
    *n = s->n_alternatives;
    return s->alternatives;
}

int32_t sampler_next(struct sampler *s, float *logits, const int32_t *line, size_t n_line) {
    double log_sum = s->n_wanted ? rank_alternatives(s, logits) : 0;
    add_bias(s, logits);
    penalize(s, logits, line, n_line);
    clean(logits, s->V);
    int32_t id = choose(s, logits);
    if (id < 0) s->n_alternatives = 0;
    else if (s->n_wanted) s->alternatives[0] = (attune_alternative){id, (float)(s->raw[id] - log_sum)};
    return id;
}
