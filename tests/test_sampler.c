#include "inference/sampler.h"

#include "core/base/random.h"
#include "tests/golden_file.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

enum { V = 16, DRAWS = 4000, CONTEXT = 4096, V_MAX = 5000 };

static attune_generate_options defaults(void) {
    attune_generate_options o;
    ATTUNE_INIT(o);
    return o;
}

static struct sampler *sampler(const attune_generate_options *options, size_t vocabulary) {
    struct sampler *s = NULL;
    attune_error err = {0};
    assert_int_equal(sampler_create(options, vocabulary, CONTEXT, &s, &err), ATTUNE_OK);
    return s;
}

/* One draw from a copy of the logits. */
static int32_t next(struct sampler *s, const float *logits, size_t n, const int32_t *recent, size_t n_recent) {
    float copy[V_MAX];
    assert_true(n <= V_MAX);
    for (size_t i = 0; i < n; i++) copy[i] = logits[i];
    return sampler_next(s, copy, recent, n_recent);
}

/* Which tokens come in DRAWS draws, as bits, and how often. */
static unsigned drawn(const attune_generate_options *options, const float *logits, unsigned counts[V]) {
    struct sampler *s = sampler(options, V);
    unsigned set = 0;
    for (int i = 0; i < V; i++) counts[i] = 0;
    for (int i = 0; i < DRAWS; i++) {
        int32_t id = next(s, logits, V, NULL, 0);
        assert_in_range(id, 0, V - 1);
        set |= 1u << id;
        counts[id]++;
    }
    sampler_destroy(s);
    return set;
}

/* Probabilities 0.4 0.3 0.15 0.1 0.05 at ids 7 2 9 0 12, the rest impossible. All are shifted: exp of them as they
 * stand overflows a float. */
static void known(float logits[V]) {
    static const int ids[] = {7, 2, 9, 0, 12};
    static const double p[] = {0.4, 0.3, 0.15, 0.1, 0.05};
    for (int i = 0; i < V; i++) logits[i] = -INFINITY;
    for (int i = 0; i < 5; i++) logits[ids[i]] = (float)(log(p[i]) + 300.0);
}
#define BIT(id) (1u << (id))

/* A fixed scramble: any logits, the same in every run. */
static void scrambled(float *logits, size_t n, unsigned seed) {
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        logits[i] = (float)(seed >> 8) / (float)(1 << 21) - 4.0f;
    }
}

/* ---- the same, plainly: everything sorted, in doubles ---- */

struct plain {
    double logit, p, rank; /* rank: what a cut sorts by, the lower first */
    int32_t id;
};

static int by_rank(const void *a, const void *b) {
    const struct plain *x = a, *y = b;
    if (x->rank != y->rank) return x->rank < y->rank ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}
static int by_id(const void *a, const void *b) {
    const struct plain *x = a, *y = b;
    return x->id < y->id ? -1 : x->id > y->id;
}

static void plain_softmax(struct plain *all, size_t n, double temperature) {
    double max = -INFINITY, total = 0;
    for (size_t i = 0; i < n; i++) max = fmax(max, all[i].logit);
    for (size_t i = 0; i < n; i++) total += all[i].p = exp((all[i].logit - max) / temperature);
    for (size_t i = 0; i < n; i++) all[i].p /= total;
}

/* Sorted by rank: how many reach p. *doubtful: rounding could say otherwise. */
static size_t plain_reach(struct plain *all, size_t n, double p, int *doubtful) {
    double sum = 0;
    qsort(all, n, sizeof *all, by_rank);
    for (size_t i = 0; i < n; i++) {
        sum += all[i].p;
        *doubtful |= fabs(sum - p) < 1e-5;
        if (sum < p) continue;
        *doubtful |= i + 1 < n && all[i + 1].rank != all[i].rank && all[i + 1].rank - all[i].rank < 1e-5;
        return i + 1;
    }
    return n;
}

static size_t plain_penalized(const attune_generate_options *o, const float *logits, size_t vocabulary,
                              const int32_t *line, size_t n_line, struct plain *all) {
    size_t n = 0, window = o->penalty_window == 0 ? 64 : (size_t)o->penalty_window;
    size_t from = o->penalty_window == -1 || n_line < window ? 0 : n_line - window;
    for (size_t id = 0; id < vocabulary; id++) {
        double x = logits[id];
        for (size_t i = 0; i < o->n_logit_bias; i++)
            if ((size_t)o->logit_bias[i].id == id) x = (float)(x + (double)o->logit_bias[i].bias);
        int count = 0;
        for (size_t i = from; i < n_line; i++) count += (size_t)line[i] == id;
        if (count && isfinite(x)) {
            if (o->repetition_penalty > 0) x = x > 0 ? x / o->repetition_penalty : x * o->repetition_penalty;
            x = (float)(x - count * o->frequency_penalty - o->presence_penalty);
        }
        if (isfinite(x)) all[n++] = (struct plain){.logit = x, .id = (int32_t)id};
    }
    return n;
}

/* What may be drawn, with its probability, in order of ids. */
static size_t plain_kept(const attune_generate_options *o, const float *logits, size_t vocabulary, const int32_t *line,
                         size_t n_line, struct plain *all, int *doubtful) {
    size_t n = plain_penalized(o, logits, vocabulary, line, n_line, all), k = 0;
    for (size_t i = 0; i < n; i++) all[i].rank = -all[i].logit;
    qsort(all, n, sizeof *all, by_rank);
    if (o->top_k > 0 && (size_t)o->top_k < n) n = (size_t)o->top_k;
    if (o->typical_p > 0 && o->typical_p < 1) {
        double entropy = 0;
        plain_softmax(all, n, 1);
        for (size_t i = 0; i < n; i++) entropy -= all[i].p > 0 ? all[i].p * log(all[i].p) : 0;
        for (size_t i = 0; i < n; i++) all[i].rank = fabs(-log(all[i].p) - entropy);
        n = plain_reach(all, n, o->typical_p, doubtful);
        for (size_t i = 0; i < n; i++) all[i].rank = -all[i].logit;
    }
    if (o->top_p > 0 && o->top_p < 1) {
        plain_softmax(all, n, 1);
        n = plain_reach(all, n, o->top_p, doubtful);
    }
    if (o->min_p > 0) {
        double max = -INFINITY;
        for (size_t i = 0; i < n; i++) max = fmax(max, all[i].logit);
        for (size_t i = 0; i < n; i++) {
            double ratio = exp(all[i].logit - max);
            *doubtful |= ratio != 1 && fabs(ratio - o->min_p) < 1e-6;
            if (ratio >= o->min_p) all[k++] = all[i];
        }
        n = k;
    }
    qsort(all, n, sizeof *all, by_id);
    plain_softmax(all, n, o->temperature);
    return n;
}

/* The candidate that a number in [0, 1) falls on. *doubtful: it falls beside a border. */
static int32_t plain_draw(const struct plain *all, size_t n, double u, int *doubtful) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += all[i].p;
        *doubtful |= fabs(sum - u) < 1e-5;
        if (sum > u) return all[i].id;
    }
    return -1;
}

/* ---- against it ---- */

struct trial {
    attune_generate_options options;
    attune_logit_bias bias[40];
    float logits[V_MAX];
    int32_t line[300];
    size_t vocabulary, n_line;
};

/* 0 to n - 1 */
static unsigned roll(unsigned *state, unsigned n) {
    *state = *state * 1664525u + 1013904223u;
    return (*state >> 8) % n;
}
static double roll_between(unsigned *state, double low, double high) {
    return low + (high - low) * roll(state, 10001) / 10000;
}

static void make_logits(struct trial *t, unsigned *state) {
    double scale = (const double[]){0.001, 1, 3, 30}[roll(state, 4)];
    unsigned coarse = roll(state, 4) == 0, holes = roll(state, 4) == 0;
    for (size_t i = 0; i < t->vocabulary; i++) {
        double x = scale * (roll_between(state, -1, 1) + roll_between(state, -1, 1) + roll_between(state, -1, 1));
        t->logits[i] = (float)(coarse ? scale * round(x / scale * 2) / 2 : x);
        if (holes && i > 0 && roll(state, 5) == 0) t->logits[i] = (const float[]){NAN, INFINITY, -INFINITY}[i % 3];
    }
}

/* Any options, each off as often as not. */
static void make_trial(struct trial *t, unsigned seed) {
    static const size_t vocabularies[] = {1, 2, 5, 63, 64, 65, 128, 200, 1000, 4097};
    unsigned state = seed * 7919u + 17u;
    attune_generate_options *o = &t->options;
    ATTUNE_INIT(*o);
    t->vocabulary = vocabularies[roll(&state, 10)];
    make_logits(t, &state);
    o->temperature = (const double[]){0.3, 0.7, 1, 2, 100}[roll(&state, 5)];
    o->seed = seed;
    if (roll(&state, 2)) o->top_k = (int)roll(&state, 60) + 1;
    if (roll(&state, 2)) o->typical_p = roll_between(&state, 0.02, 0.999);
    if (roll(&state, 2)) o->top_p = roll_between(&state, 0.02, 0.999);
    if (roll(&state, 2)) o->min_p = roll_between(&state, 0.001, 0.5);
    if (roll(&state, 2)) o->repetition_penalty = roll_between(&state, 0.5, 2);
    if (roll(&state, 2)) o->frequency_penalty = roll_between(&state, -2, 2);
    if (roll(&state, 2)) o->presence_penalty = roll_between(&state, -2, 2);
    o->penalty_window = (const int[]){0, -1, 1, 7, 250}[roll(&state, 5)];
    t->n_line = roll(&state, 301);
    for (size_t i = 0; i < t->n_line; i++) t->line[i] = (int32_t)roll(&state, (unsigned)t->vocabulary + 3) - 1;
    o->logit_bias = t->bias;
    for (size_t i = 0; i < 40 && 2 * i + 1 < t->vocabulary && roll(&state, 10); i++)
        t->bias[o->n_logit_bias++] = (attune_logit_bias){
            (int32_t)(2 * i + 1), roll(&state, 3) ? (float)roll_between(&state, -5, 5) : -INFINITY};
}

/* Every draw is the one that the plain computation says. */
static void all_options_agree_with_the_plain_computation(void **state) {
    (void)state;
    static struct trial t;
    static struct plain kept[V_MAX];
    int compared = 0, passed_over = 0;
    for (unsigned seed = 0; seed < 1500; seed++) {
        make_trial(&t, seed);
        int doubtful_set = 0;
        size_t n = plain_kept(&t.options, t.logits, t.vocabulary, t.line, t.n_line, kept, &doubtful_set);
        struct sampler *s = sampler(&t.options, t.vocabulary);
        for (uint64_t i = 0; i < 20; i++) {
            int doubtful = doubtful_set;
            double u = (double)(random_u64(seed, i) >> 11) * 0x1p-53;
            int32_t expected = plain_draw(kept, n, u, &doubtful);
            int32_t id = next(s, t.logits, t.vocabulary, t.line, t.n_line);
            passed_over += doubtful;
            compared += !doubtful;
            if (!doubtful && id != expected)
                fail_msg("seed %u, draw %d: %d, not %d of %zu", seed, (int)i, (int)id, (int)expected, n);
        }
        sampler_destroy(s);
    }
    assert_true(passed_over * 10 < compared);
}

static void greedy_agrees_with_the_plain_computation(void **state) {
    (void)state;
    static struct trial t;
    static struct plain all[V_MAX];
    for (unsigned seed = 0; seed < 300; seed++) {
        make_trial(&t, seed);
        t.options.temperature = 0; /* the cuts change nothing */
        size_t n = plain_penalized(&t.options, t.logits, t.vocabulary, t.line, t.n_line, all), best = 0;
        for (size_t i = 1; i < n; i++)
            if (all[i].logit > all[best].logit) best = i;
        struct sampler *s = sampler(&t.options, t.vocabulary);
        for (int i = 0; i < 2; i++)
            assert_int_equal(next(s, t.logits, t.vocabulary, t.line, t.n_line), n ? all[best].id : -1);
        sampler_destroy(s);
    }
}

/* What transformers and llama.cpp leave: at a temperature that makes all that is left equally likely, all of it is
 * drawn. */
static void cuts_agree_with_other_programs(void **state) {
    (void)state;
    enum { ROWS = 8, N = 120 };
    static float logits[ROWS][N];
    struct golden g = golden_open("sampling.bin");
    uint32_t rows = golden_u32(&g), n = golden_u32(&g), cases = golden_u32(&g);
    assert_true(rows <= ROWS && n == N && cases >= 500);
    for (uint32_t i = 0; i < rows; i++) golden_take(&g, logits[i], sizeof logits[i]);
    for (uint32_t c = 0; c < cases; c++) {
        attune_generate_options o = defaults();
        unsigned char kept[N / 8], seen[N / 8] = {0};
        uint32_t row = golden_u32(&g);
        assert_true(row < rows);
        o.top_k = (int)golden_u32(&g);
        o.typical_p = golden_f32(&g);
        o.top_p = golden_f32(&g);
        o.min_p = golden_f32(&g);
        o.temperature = 1e6;
        o.seed = c;
        golden_take(&g, kept, sizeof kept);
        int many = 20; /* 20 draws for each that is left: one in e^20 is missed */
        for (int i = 0; i < N; i++) many += kept[i / 8] >> i % 8 & 1 ? 20 : 0;
        struct sampler *s = sampler(&o, N);
        for (int i = 0; i < many; i++) {
            int32_t id = next(s, logits[row], N, NULL, 0);
            seen[id / 8] |= (unsigned char)(1 << id % 8);
        }
        sampler_destroy(s);
        if (memcmp(seen, kept, sizeof kept) != 0)
            fail_msg("others are left of row %u with top_k %d, typical_p %g, top_p %g, min_p %g", row, o.top_k,
                     o.typical_p, o.top_p, o.min_p);
    }
    assert_true(golden_done(&g));
    golden_close(&g);
}

/* Chi-square with 49 degrees of freedom stays under 110 but for one in a million; the seeds are fixed. */
static void counts_pass_chi_square(void **state) {
    (void)state;
    enum { N = 50, MANY = 20000 };
    static struct plain kept[N];
    float logits[N];
    for (unsigned round = 0; round < 6; round++) {
        attune_generate_options o = defaults();
        o.temperature = round % 3 ? 0.8 : 1.7;
        o.seed = 1000 + round;
        o.typical_p = round == 3 ? 0.9 : 0;
        o.top_p = round == 4 ? 0.9 : 0;
        o.min_p = round == 5 ? 0.02 : 0;
        scrambled(logits, N, round);
        for (int i = 0; i < N; i++) logits[i] /= 2;
        int doubtful = 0, counts[N] = {0};
        size_t n = plain_kept(&o, logits, N, NULL, 0, kept, &doubtful);
        struct sampler *s = sampler(&o, N);
        for (int i = 0; i < MANY; i++) counts[next(s, logits, N, NULL, 0)]++;
        sampler_destroy(s);
        double chi_square = 0;
        int seen = 0;
        for (size_t i = 0; i < n; i++) {
            double expected = kept[i].p * MANY, off = counts[kept[i].id] - expected;
            chi_square += off * off / expected;
            seen += counts[kept[i].id];
        }
        assert_int_equal(doubtful, 0);
        assert_int_equal(seen, MANY);
        assert_true(chi_square < 110);
    }
}

/* ---- one by one ---- */

static void greedy_takes_the_lowest_id_among_equals(void **state) {
    (void)state;
    attune_generate_options o = defaults();
    struct sampler *s = sampler(&o, V);
    float logits[V] = {0};
    assert_int_equal(next(s, logits, V, NULL, 0), 0);
    logits[5] = logits[3] = logits[11] = 2.0f;
    assert_int_equal(next(s, logits, V, NULL, 0), 3);
    logits[15] = 2.5f;
    assert_int_equal(next(s, logits, V, NULL, 0), 15);
    sampler_destroy(s);
}

static void top_k_of_one_is_greedy(void **state) {
    (void)state;
    static float logits[4096];
    attune_generate_options cold = defaults(), one = defaults();
    one.temperature = 5.0;
    one.top_k = 1;
    struct sampler *a = sampler(&cold, 4096), *b = sampler(&one, 4096);
    for (unsigned seed = 0; seed < 200; seed++) {
        scrambled(logits, 4096, seed);
        if (seed % 3 == 0) /* ties at the top */
            for (size_t i = 1000 + seed; i < 4096; i += 500) logits[i] = 9.0f;
        int32_t expected = next(a, logits, 4096, NULL, 0);
        assert_int_equal(next(b, logits, 4096, NULL, 0), expected);
    }
    sampler_destroy(a);
    sampler_destroy(b);
}

/* The set that survives a cut is drawn completely and nothing else. */
static void cuts_keep_exactly_their_set(void **state) {
    (void)state;
    float logits[V];
    known(logits);
    unsigned counts[V];
    static const struct {
        int top_k;
        double top_p, min_p;
        unsigned set;
    } cases[] = {
        {0, 0, 0, BIT(7) | BIT(2) | BIT(9) | BIT(0) | BIT(12)},
        {3, 0, 0, BIT(7) | BIT(2) | BIT(9)},
        {100, 0, 0, BIT(7) | BIT(2) | BIT(9) | BIT(0) | BIT(12)},
        {0, 0.01, 0, BIT(7)},
        {0, 0.39, 0, BIT(7)},
        {0, 0.41, 0, BIT(7) | BIT(2)},
        {0, 0.69, 0, BIT(7) | BIT(2)},
        {0, 0.71, 0, BIT(7) | BIT(2) | BIT(9)},
        {0, 0.94, 0, BIT(7) | BIT(2) | BIT(9) | BIT(0)},
        {0, 0.96, 0, BIT(7) | BIT(2) | BIT(9) | BIT(0) | BIT(12)},
        {0, 1, 0, BIT(7) | BIT(2) | BIT(9) | BIT(0) | BIT(12)},
        /* top-p is over what top-k left: 0.4/0.85, 0.3/0.85 reach 0.8 */
        {3, 0.8, 0, BIT(7) | BIT(2)},
        {3, 0.85, 0, BIT(7) | BIT(2) | BIT(9)},
        {0, 0, 0.11, BIT(7) | BIT(2) | BIT(9) | BIT(0) | BIT(12)},
        {0, 0, 0.13, BIT(7) | BIT(2) | BIT(9) | BIT(0)},
        {0, 0, 0.24, BIT(7) | BIT(2) | BIT(9) | BIT(0)},
        {0, 0, 0.26, BIT(7) | BIT(2) | BIT(9)},
        {0, 0, 1, BIT(7)},
        {4, 0.96, 0.3, BIT(7) | BIT(2) | BIT(9)},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        attune_generate_options o = defaults();
        /* the temperature comes after the cuts: it changes no set */
        for (o.temperature = 0.7; o.temperature < 3; o.temperature += 1.1) {
            o.top_k = cases[i].top_k;
            o.top_p = cases[i].top_p;
            o.min_p = cases[i].min_p;
            o.seed = i;
            assert_int_equal(drawn(&o, logits, counts), cases[i].set);
        }
    }
}

static void ties_at_a_cut_keep_the_lowest_ids(void **state) {
    (void)state;
    float logits[V] = {0};
    unsigned counts[V];
    attune_generate_options o = defaults();
    o.temperature = 1;
    o.top_k = 3;
    assert_int_equal(drawn(&o, logits, counts), BIT(0) | BIT(1) | BIT(2));
    o.top_k = 0;
    o.top_p = 0.3; /* 5 of 16 equal ones */
    assert_int_equal(drawn(&o, logits, counts), BIT(0) | BIT(1) | BIT(2) | BIT(3) | BIT(4));
    o.top_p = 0;
    o.min_p = 1; /* all are the best */
    assert_int_equal(drawn(&o, logits, counts), 0xFFFF);
}

/* The search for a cut goes down from the best by an eighth, a quarter, a half, ...: candidates just below one of its
 * steps. */
static void cuts_beside_a_step_of_the_search(void **state) {
    (void)state;
    for (float depth = 0.125f; depth < 3000; depth *= 2)
        for (int i = -4; i <= 4; i++)
            for (int k = 1; k <= 4; k++) {
                static const int ids[] = {11, 3, 8, 5, 13};
                float logits[V], near = -depth * (1 + 1e-5f * (float)i);
                unsigned set = 0, seen = 0;
                for (int j = 0; j < V; j++) logits[j] = -9000;
                for (int j = 0; j < 5; j++) logits[ids[j]] = j == 0 ? 0 : near * (1 + 1e-5f * (float)j);
                for (int j = 0; j < k; j++) set |= BIT(ids[j]);
                attune_generate_options o = defaults();
                o.temperature = 1e6;
                o.top_k = k;
                struct sampler *s = sampler(&o, V);
                for (int j = 0; j < 100; j++) seen |= BIT(next(s, logits, V, NULL, 0));
                sampler_destroy(s);
                assert_int_equal(seen, set);
            }
}

/* Frequencies against probabilities p^(1/temperature): the seed is fixed, so the counts are too; five
 * standard deviations of a binomial. */
static void draws_follow_the_distribution(void **state) {
    (void)state;
    float logits[V];
    known(logits);
    static const int ids[] = {7, 2, 9, 0, 12};
    static const double p[] = {0.4, 0.3, 0.15, 0.1, 0.05};
    static const double temperatures[] = {0.5, 1.0, 2.0};
    for (size_t t = 0; t < 3; t++)
        for (int k = 0; k < 2; k++) {
            attune_generate_options o = defaults();
            o.temperature = temperatures[t];
            o.top_k = k ? 5 : 0; /* sorted or not, the same distribution */
            unsigned counts[V];
            drawn(&o, logits, counts);
            double total = 0;
            for (int i = 0; i < 5; i++) total += pow(p[i], 1 / o.temperature);
            for (int i = 0; i < 5; i++) {
                double q = pow(p[i], 1 / o.temperature) / total, expected = q * DRAWS;
                assert_true(fabs(counts[ids[i]] - expected) < 5 * sqrt(expected * (1 - q)));
            }
        }
}

static void seeds_reproduce(void **state) {
    (void)state;
    float logits[V];
    scrambled(logits, V, 1);
    attune_generate_options o = defaults();
    o.temperature = 3;
    int32_t first[64], other = 0;
    for (uint64_t seed = 0; seed < 3; seed++) {
        o.seed = seed == 2 ? 99 : 7;
        struct sampler *s = sampler(&o, V);
        int differ = 0;
        for (int i = 0; i < 64; i++) {
            int32_t id = next(s, logits, V, NULL, 0);
            if (seed == 0) first[i] = id;
            else differ += id != first[i];
        }
        if (seed == 1) assert_int_equal(differ, 0);
        if (seed == 2) other = differ;
        sampler_destroy(s);
    }
    assert_true(other > 0);
}

static void penalty_pushes_down_what_came(void **state) {
    (void)state;
    attune_generate_options o = defaults();
    o.repetition_penalty = 2;
    struct sampler *s = sampler(&o, V);
    float logits[V];
    for (int i = 0; i < V; i++) logits[i] = -8;
    logits[4] = 3;
    logits[6] = 2;
    logits[8] = -1;
    int32_t recent[] = {4, 4, 4, -1, V, 1 << 30};
    assert_int_equal(next(s, logits, V, recent, 0), 4);
    /* 3 -> 1.5, once however often it came */
    assert_int_equal(next(s, logits, V, recent, 6), 6);
    logits[6] = 1.4f;
    assert_int_equal(next(s, logits, V, recent, 6), 4);
    /* a negative logit is multiplied: -1 -> -2 */
    int32_t all[] = {4, 6, 8};
    logits[4] = logits[6] = -8;
    logits[9] = -1.9f;
    assert_int_equal(next(s, logits, V, all, 3), 9);
    logits[9] = -2.1f;
    assert_int_equal(next(s, logits, V, all, 3), 8);
    sampler_destroy(s);

    o.repetition_penalty = 1; /* off */
    s = sampler(&o, V);
    logits[4] = 3;
    assert_int_equal(next(s, logits, V, all, 3), 4);
    sampler_destroy(s);
}

static void what_is_not_finite_is_never_chosen(void **state) {
    (void)state;
    attune_generate_options o = defaults();
    for (int warm = 0; warm < 2; warm++) {
        o.temperature = warm;
        struct sampler *s = sampler(&o, V);
        float logits[V];
        for (int i = 0; i < V; i++) logits[i] = i % 2 ? NAN : INFINITY;
        assert_int_equal(next(s, logits, V, NULL, 0), -1);
        logits[9] = -100;
        for (int i = 0; i < 100; i++) assert_int_equal(next(s, logits, V, NULL, 0), 9);
        logits[3] = -INFINITY;
        assert_int_equal(next(s, logits, V, NULL, 0), 9);
        sampler_destroy(s);
    }
}

static void extreme_temperatures_stay_sane(void **state) {
    (void)state;
    float logits[V];
    unsigned counts[V];
    for (int i = 0; i < V; i++) logits[i] = i == 5 ? 3e38f : -3e38f;
    attune_generate_options o = defaults();
    static const double cold[] = {5e-324, 1e-300, 1e-6, 1, 100};
    for (int i = 0; i < 5; i++) {
        o.temperature = cold[i];
        assert_int_equal(drawn(&o, logits, counts), BIT(5));
        logits[3] = logits[5];
        assert_int_equal(drawn(&o, logits, counts), BIT(3) | BIT(5));
        logits[3] = logits[4];
    }
    o.temperature = 1e300;
    assert_int_equal(drawn(&o, logits, counts), 0xFFFF);

    for (int i = 0; i < V; i++) logits[i] = (float)i / V;
    o.temperature = 1e-6;
    assert_int_equal(drawn(&o, logits, counts), BIT(15));
    o.temperature = 100;
    assert_int_equal(drawn(&o, logits, counts), 0xFFFF);
    for (int i = 0; i < V; i++) assert_true(abs((int)counts[i] - DRAWS / V) < 80);
}

/* A cut that would leave nothing leaves its first. */
static void cuts_leave_one(void **state) {
    (void)state;
    float logits[V];
    unsigned counts[V];
    known(logits);
    attune_generate_options o = defaults();
    o.temperature = 1;
    o.top_p = 5e-324;
    assert_int_equal(drawn(&o, logits, counts), BIT(7));
    o.min_p = 1;
    o.top_k = 1;
    assert_int_equal(drawn(&o, logits, counts), BIT(7));
    /* of 0.4 0.3 0.15 0.1 0.05 with entropy 1.39, 0.3 has the surprise nearest to it, 1.20; then 0.4, 0.92 */
    o = defaults();
    o.temperature = 1;
    o.typical_p = 5e-324;
    assert_int_equal(drawn(&o, logits, counts), BIT(2));
    o.typical_p = 0.31;
    assert_int_equal(drawn(&o, logits, counts), BIT(2) | BIT(7));
    o.typical_p = 0.71;
    assert_int_equal(drawn(&o, logits, counts), BIT(2) | BIT(7) | BIT(9));
    o.typical_p = 1;
    assert_int_equal(drawn(&o, logits, counts), BIT(7) | BIT(2) | BIT(9) | BIT(0) | BIT(12));
}

static void a_vocabulary_of_one(void **state) {
    (void)state;
    attune_generate_options o = defaults();
    for (o.temperature = 0; o.temperature < 3; o.temperature++) {
        o.top_k = 1;
        o.top_p = o.typical_p = o.min_p = 0.5;
        o.alternatives = 20;
        struct sampler *s = sampler(&o, 1);
        float logit = 12;
        size_t n = 0;
        assert_int_equal(next(s, &logit, 1, NULL, 0), 0);
        const attune_alternative *a = sampler_alternatives(s, &n);
        assert_int_equal(n, 2);
        assert_true(a[0].id == 0 && a[1].id == 0 && fabsf(a[0].log_probability) < 1e-6f);
        logit = NAN;
        assert_int_equal(next(s, &logit, 1, NULL, 0), -1);
        sampler_alternatives(s, &n);
        assert_int_equal(n, 0);
        sampler_destroy(s);
    }
}

/* Each of the three penalties, and how far back. */
static void penalties_look_back_as_far_as_told(void **state) {
    (void)state;
    static const struct {
        double repetition, frequency, presence, penalized; /* penalized: 3 becomes this */
    } cases[] = {{2, 0, 0, 1.5}, {0, 0.5, 0, 1.5}, {0, 0, 0.5, 2.5}, {2, 0.25, 0.5, 0.25}, {0, -1, -0.5, 6.5}};
    int32_t line[200];
    for (size_t i = 0; i < 200; i++) line[i] = -1;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
        for (int window = -1; window < 190; window++) {
            attune_generate_options o = defaults();
            o.repetition_penalty = cases[c].repetition;
            o.frequency_penalty = cases[c].frequency;
            o.presence_penalty = cases[c].presence;
            o.penalty_window = window;
            size_t back = window < 0 ? 200 : window == 0 ? 64 : (size_t)window;
            struct sampler *s = sampler(&o, V);
            for (int inside = 0; inside < 2; inside++) {
                /* three of token 4, the oldest of them the last inside, or all outside */
                size_t at = 200 - back;
                if (!inside && at < 3) continue;
                if (inside && back < 3) continue;
                if (!inside) at -= 3;
                for (size_t i = 0; i < 3; i++) line[at + i] = 4;
                float logits[V];
                for (int i = 0; i < V; i++) logits[i] = -50;
                logits[4] = 3;
                double expected = inside ? cases[c].penalized : 3;
                logits[6] = (float)(expected - 0.01);
                assert_int_equal(next(s, logits, V, line, 200), 4);
                logits[6] = (float)(expected + 0.01);
                assert_int_equal(next(s, logits, V, line, 200), 6);
                for (size_t i = 0; i < 3; i++) line[at + i] = -1;
            }
            sampler_destroy(s);
        }
}

/* Penalties make unlikely, not impossible. */
static void penalties_do_not_overflow(void **state) {
    (void)state;
    attune_generate_options o = defaults();
    o.repetition_penalty = 1e300;
    int32_t line[] = {0, 1};
    float logits[] = {-3e38f, -1e38f};
    for (o.temperature = 0; o.temperature < 2; o.temperature++) {
        struct sampler *s = sampler(&o, 2);
        assert_int_equal(next(s, logits, 2, line, 2), 0);
        sampler_destroy(s);
    }
    o = defaults();
    o.repetition_penalty = 1e-300;
    struct sampler *s = sampler(&o, 2);
    float up[] = {1, 3};
    assert_int_equal(next(s, up, 2, line + 1, 1), 1);
    sampler_destroy(s);
}

static void biases_move_and_forbid(void **state) {
    (void)state;
    float logits[V];
    known(logits);
    attune_logit_bias bias[V] = {{7, -INFINITY}, {2, -1}, {9, 1.5f}, {12, 2}};
    attune_generate_options o = defaults();
    o.logit_bias = bias;
    o.n_logit_bias = 4;
    struct sampler *s = sampler(&o, V); /* log of 0.11 0.67 0.1 0.37 at 2 9 0 12 */
    assert_int_equal(next(s, logits, V, NULL, 0), 9);
    bias[0].bias = 100; /* copied */
    assert_int_equal(next(s, logits, V, NULL, 0), 9);
    sampler_destroy(s);
    bias[0].bias = -INFINITY;
    unsigned counts[V];
    o.temperature = 1;
    assert_int_equal(drawn(&o, logits, counts), BIT(2) | BIT(9) | BIT(0) | BIT(12));
    logits[7] = NAN; /* forbidden, so it does no harm */
    assert_int_equal(drawn(&o, logits, counts), BIT(2) | BIT(9) | BIT(0) | BIT(12));
    /* nothing that is allowed has a finite logit */
    for (int i = 0; i < V; i++) logits[i] = i == 7 ? 1 : -INFINITY;
    for (o.temperature = 0; o.temperature < 2; o.temperature++) {
        size_t n = 99;
        o.alternatives = 3;
        s = sampler(&o, V);
        assert_int_equal(next(s, logits, V, NULL, 0), -1);
        sampler_alternatives(s, &n);
        assert_int_equal(n, 0);
        sampler_destroy(s);
    }
}

static int falling(const void *a, const void *b) {
    const attune_alternative *x = a, *y = b;
    if (x->log_probability != y->log_probability) return x->log_probability > y->log_probability ? -1 : 1;
    return x->id - y->id;
}

/* By the model itself: bias, penalties, cuts and temperature do not show. */
static void alternatives_are_the_models_own(void **state) {
    (void)state;
    static struct trial t;
    static attune_alternative sorted[V_MAX];
    for (unsigned seed = 0; seed < 400; seed++) {
        make_trial(&t, seed);
        if (seed % 3 == 0) t.options.temperature = 0;
        t.options.alternatives = (int)(seed % 21);
        double total = 0, max = -INFINITY;
        size_t finite = 0;
        for (size_t i = 0; i < t.vocabulary; i++) {
            if (!isfinite(t.logits[i])) continue;
            sorted[finite++] = (attune_alternative){(int32_t)i, t.logits[i]};
            max = fmax(max, t.logits[i]);
        }
        qsort(sorted, finite, sizeof *sorted, falling);
        for (size_t i = 0; i < finite; i++) total += exp(sorted[i].log_probability - max);
        struct sampler *s = sampler(&t.options, t.vocabulary);
        for (int place = 0; place < 3; place++) {
            size_t n = 99, wanted = (size_t)t.options.alternatives;
            sampler_alternatives(s, &n);
            if (place == 0) assert_int_equal(n, 0);
            int32_t id = next(s, t.logits, t.vocabulary, t.line, t.n_line);
            const attune_alternative *a = sampler_alternatives(s, &n);
            assert_int_equal(n, wanted == 0 || id < 0 ? 0 : 1 + (wanted < finite ? wanted : finite));
            if (n == 0) continue;
            assert_int_equal(a[0].id, id);
            assert_true(fabs(a[0].log_probability - (t.logits[id] - max - log(total))) < 2e-5);
            for (size_t i = 1; i < n; i++) {
                assert_int_equal(a[i].id, sorted[i - 1].id);
                assert_true(fabs(a[i].log_probability - (sorted[i - 1].log_probability - max - log(total))) < 2e-5);
            }
        }
        sampler_destroy(s);
    }
}

/* The number of a draw counts calls, not what was sampled from. */
static void a_draw_depends_on_its_number_alone(void **state) {
    (void)state;
    float logits[V] = {0}, other[V];
    scrambled(other, V, 5);
    attune_generate_options o = defaults();
    o.temperature = 1;
    o.seed = 12;
    struct sampler *a = sampler(&o, V), *b = sampler(&o, V);
    for (int i = 0; i < 50; i++) {
        next(a, logits, V, NULL, 0);
        next(b, other, V, NULL, 0);
    }
    for (int i = 0; i < 50; i++) assert_int_equal(next(a, logits, V, NULL, 0), next(b, logits, V, NULL, 0));
    sampler_destroy(a);
    sampler_destroy(b);
}

static void refuses(attune_generate_options o, const char *name, const char *value) {
    struct sampler *s = NULL;
    attune_error err = {0};
    assert_int_equal(sampler_create(&o, V, 128, &s, &err), ATTUNE_ERROR_ARGUMENT);
    assert_null(s);
    if (!strstr(err.message, name) || !strstr(err.message, value))
        fail_msg("\"%s\" names not %s and %s", err.message, name, value);
}

static void impossible_numbers_are_named(void **state) {
    (void)state;
    attune_generate_options o;
    const struct {
        const char *name;
        double *field, low, high;
    } fields[] = {
        {"temperature", &o.temperature, 0, 1e308},
        {"repetition_penalty", &o.repetition_penalty, 0, 1e308},
        {"top_p", &o.top_p, 0, 1},
        {"min_p", &o.min_p, 0, 1},
        {"typical_p", &o.typical_p, 0, 1},
        {"frequency_penalty", &o.frequency_penalty, -2, 2},
        {"presence_penalty", &o.presence_penalty, -2, 2},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        const double bad[] = {fields[i].low - 1e-9, fields[i].low - 1, NAN, INFINITY, -INFINITY,
                              fields[i].high < 3 ? fields[i].high + 1e-9 : -7};
        for (size_t j = 0; j < sizeof bad / sizeof *bad; j++) {
            char value[32];
            snprintf(value, sizeof value, "not %g", bad[j]);
            o = defaults();
            *fields[i].field = bad[j];
            refuses(o, fields[i].name, value);
        }
        const double good[] = {fields[i].low, fields[i].high};
        for (size_t j = 0; j < 2; j++) {
            o = defaults();
            *fields[i].field = good[j];
            sampler_destroy(sampler(&o, V));
        }
    }
}

static void impossible_counts_are_named(void **state) {
    (void)state;
    attune_generate_options o;
    const struct {
        const char *name;
        int *field, low, high;
    } fields[] = {
        {"top_k", &o.top_k, 0, INT32_MAX},
        {"alternatives", &o.alternatives, 0, 20},
        {"lookup", &o.lookup, 0, 8},
        {"penalty_window", &o.penalty_window, -1, 128},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        const int bad[] = {fields[i].low - 1, INT32_MIN, fields[i].high < INT32_MAX ? fields[i].high + 1 : -9};
        for (size_t j = 0; j < 3; j++) {
            char value[32];
            snprintf(value, sizeof value, j == 1 ? "not -2" : "not %d", bad[j]); /* -2147483648, or -2.14748e+09 */
            o = defaults();
            *fields[i].field = bad[j];
            refuses(o, fields[i].name, value);
        }
        const int good[] = {fields[i].low, fields[i].high};
        for (size_t j = 0; j < 2; j++) {
            struct sampler *s = NULL;
            o = defaults();
            *fields[i].field = good[j];
            assert_int_equal(sampler_create(&o, V, 128, &s, NULL), ATTUNE_OK);
            sampler_destroy(s);
        }
    }
    /* the default is no error where the context is smaller */
    struct sampler *s = NULL;
    o = defaults();
    assert_int_equal(sampler_create(&o, V, 8, &s, NULL), ATTUNE_OK);
    sampler_destroy(s);
}

static void impossible_biases_are_named(void **state) {
    (void)state;
    attune_logit_bias bias[V + 1] = {{3, 1}};
    attune_generate_options o = defaults();
    o.n_logit_bias = 2;
    refuses(o, "n_logit_bias is 2", "NULL");
    o.logit_bias = bias;
    static const struct {
        attune_logit_bias bias;
        const char *name, *value;
    } bad[] = {
        {{-1, 0}, "logit_bias[1].id", "0 to 15, not -1"},   {{V, 0}, "logit_bias[1].id", "0 to 15, not 16"},
        {{3, 2}, "logit_bias[1].id is 3", "already"},       {{4, NAN}, "logit_bias[1].bias", "nan"},
        {{4, INFINITY}, "logit_bias[1].bias", "not inf"},   {{4, 100.5f}, "logit_bias[1].bias", "not 100.5"},
        {{4, -100.5f}, "logit_bias[1].bias", "not -100.5"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        bias[1] = bad[i].bias;
        refuses(o, bad[i].name, bad[i].value);
    }
    for (int i = 0; i < V + 1; i++) bias[i] = (attune_logit_bias){i, -INFINITY};
    o.n_logit_bias = V + 1;
    refuses(o, "n_logit_bias is 17", "16");
    o.n_logit_bias = SIZE_MAX;
    refuses(o, "n_logit_bias", "16");
    o.n_logit_bias = V;
    refuses(o, "logit_bias", "all 16 tokens");
    o.n_logit_bias = V - 1;
    struct sampler *s = sampler(&o, V);
    float logits[V] = {0};
    assert_int_equal(next(s, logits, V, NULL, 0), V - 1);
    sampler_destroy(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_takes_the_lowest_id_among_equals),
        cmocka_unit_test(top_k_of_one_is_greedy),
        cmocka_unit_test(cuts_keep_exactly_their_set),
        cmocka_unit_test(ties_at_a_cut_keep_the_lowest_ids),
        cmocka_unit_test(cuts_beside_a_step_of_the_search),
        cmocka_unit_test(draws_follow_the_distribution),
        cmocka_unit_test(seeds_reproduce),
        cmocka_unit_test(a_draw_depends_on_its_number_alone),
        cmocka_unit_test(penalty_pushes_down_what_came),
        cmocka_unit_test(penalties_look_back_as_far_as_told),
        cmocka_unit_test(penalties_do_not_overflow),
        cmocka_unit_test(biases_move_and_forbid),
        cmocka_unit_test(what_is_not_finite_is_never_chosen),
        cmocka_unit_test(extreme_temperatures_stay_sane),
        cmocka_unit_test(cuts_leave_one),
        cmocka_unit_test(a_vocabulary_of_one),
        cmocka_unit_test(alternatives_are_the_models_own),
        cmocka_unit_test(all_options_agree_with_the_plain_computation),
        cmocka_unit_test(greedy_agrees_with_the_plain_computation),
        cmocka_unit_test(cuts_agree_with_other_programs),
        cmocka_unit_test(counts_pass_chi_square),
        cmocka_unit_test(impossible_numbers_are_named),
        cmocka_unit_test(impossible_counts_are_named),
        cmocka_unit_test(impossible_biases_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
