/* Which way to select finds the right entry of a catalog? Rows of each person's test file are judged once, one by one,
 * by all entries; people are then drawn from them: 10 and 4 rows of one person, and 7 rows of one with 3 of another.
 *
 *   selecting BASE CATALOG KEY ROWS TOKENS DRAWS TRAIN.jsonl TEST.jsonl [TRAIN.jsonl TEST.jsonl ...]
 *
 * The entry of a person is named as TRAIN is. ROWS of each test file, cut at TOKENS, are the pool that is drawn from (without
 * replacement within a draw). "features": the nearest mean of words, word length, "!" and emoji an answer, in units of
 * the train rows' spread. */
#include "bench/limits.h"
#include "core/base/hash.h"
#include "core/base/random.h"
#include "datastore/store.h"
#include "job/catalog_select.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PEOPLE_MAX = 16, FEATURES = 4, TRAIN_ROWS = 256, WAYS = 4 };
enum { LOSS, GRADIENT, HALVING, NEAREST };
static const char *const ways[WAYS] = {"loss", "gradient", "halving", "features"};

struct person {
    size_t entry;                     /* of the catalog */
    double mean[FEATURES];            /* over train rows */
    size_t first, n;                  /* rows of the pool */
};
struct state {
    struct model *model;
    struct pool *pool;
    struct catalog catalog;
    struct example_set set;
    double (*features)[FEATURES];     /* (set.n) */
    double spread[FEATURES];
    struct person people[PEOPLE_MAX];
    size_t n_people, wanted, seen, max_tokens;
    struct person *reading;           /* whose train rows are read; NULL: a pool */
    double squares[FEATURES], sums[FEATURES];
    size_t trained;
    double *nll, *gain;               /* (set.n, catalog.n) */
};

static void describe(const char *text, double out[FEATURES]) {
    double words = 0, letters = 0, shouts = 0, emoji = 0;
    int inside = 0;
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        int blank = *c == ' ' || *c == '\n' || *c == '\t';
        words += !blank && !inside;
        letters += !blank;
        inside = !blank;
        shouts += *c == '!';
        emoji += *c >= 0xf0;
    }
    out[0] = log(1 + words);
    out[1] = words > 0 ? letters / words : 0;
    out[2] = shouts;
    out[3] = emoji;
}

static int take(const struct store_row *row, void *user, attune_error *err) {
    struct state *s = user;
    double f[FEATURES];
    int added = 0;
    if (s->seen == s->wanted) return ATTUNE_DONE;
    describe(row->response, f);
    if (s->reading) {
        s->seen++;
        s->trained++;
        for (int i = 0; i < FEATURES; i++) {
            s->reading->mean[i] += f[i] / (double)s->wanted;
            s->sums[i] += f[i];
            s->squares[i] += f[i] * f[i];
        }
        return ATTUNE_OK;
    }
    int code = example_add(&s->set, s->model, row->messages, row->n_messages, row->response, row->content_hash,
                           row->prompt_hash, s->max_tokens, &added, err);
    if (code == ATTUNE_OK && added) {
        s->seen++;
        memcpy(s->features[s->set.n - 1], f, sizeof f);
    }
    return code;
}

static int read_person(struct state *s, const char *train, const char *test, size_t pool, attune_error *err) {
    struct person *p = &s->people[s->n_people++];
    char name[128];
    const char *slash = strrchr(train, '/');
    snprintf(name, sizeof name, "%.100s", slash ? slash + 1 : train);
    name[strcspn(name, ".")] = 0;
    const struct catalog_entry *entry = catalog_find(&s->catalog, name);
    if (!entry) return error_set(err, ATTUNE_ERROR_NOT_FOUND, train, "the catalog has no entry %s", name);
    p->entry = (size_t)(entry - s->catalog.entries);
    s->reading = p, s->seen = 0, s->wanted = TRAIN_ROWS;
    int code = store_rows_from_file(train, take, s, err);
    s->reading = NULL, s->seen = 0, s->wanted = pool;
    p->first = s->set.n;
    if (code >= ATTUNE_OK) code = store_rows_from_file(test, take, s, err);
    p->n = s->set.n - p->first;
    return code < 0 ? code : ATTUNE_OK;
}

/* Every row under every entry. */
static int judge(struct state *s, attune_error *err) {
    struct catalog_question q = {&s->catalog, s->model, s->pool, &s->set};
    size_t n = s->set.n, E = s->catalog.n, *rows = malloc(n * sizeof *rows);
    double *one = malloc(n * sizeof *one), from = bench_now();
    int code = ATTUNE_OK;
    for (size_t i = 0; i < n; i++) rows[i] = i;
    for (size_t e = 0; e < E && code == ATTUNE_OK; e++) {
        code = catalog_losses(&q, &s->catalog.entries[e], rows, n, one, err);
        for (size_t i = 0; i < n; i++) s->nll[i * E + e] = one[i];
    }
    double judged = bench_now();
    if (code == ATTUNE_OK) code = catalog_gains(&q, rows, n, 1, s->gain, err);
    fprintf(stderr, "%zu rows: losses under %zu entries %.1f s, gradients %.1f s\n", n, E, judged - from,
            bench_now() - judged);
    free(rows);
    free(one);
    return code;
}

static size_t best_of_sum(const struct state *s, const double *table, double sign, const size_t *rows, size_t n) {
    size_t E = s->catalog.n, best = 0;
    double most = -INFINITY;
    for (size_t e = 0; e < E; e++) {
        double sum = 0;
        for (size_t i = 0; i < n; i++) sum += sign * table[rows[i] * E + e];
        if (sum > most) most = sum, best = e;
    }
    return best;
}

/* As attune_catalog_select halves, over the losses that are known. */
static size_t best_of_halving(const struct state *s, const size_t *rows, size_t n) {
    size_t E = s->catalog.n, left = E, from = 0, to = n, best = 0;
    double sum[CATALOG_ENTRIES_MAX] = {0};
    int out[CATALOG_ENTRIES_MAX] = {0};
    for (size_t half = left; half > 2; half = (half + 1) / 2) to = (to + 1) / 2;
    while (from < n) {
        for (size_t e = 0; e < E; e++)
            for (size_t i = from; i < to && !out[e]; i++) sum[e] += s->nll[rows[i] * E + e];
        for (size_t keep = (left + 1) / 2; left > 2 && left > keep; left--) {
            size_t worst = E;
            for (size_t e = 0; e < E; e++)
                if (!out[e] && (worst == E || sum[e] >= sum[worst])) worst = e;
            out[worst] = 1;
        }
        from = to;
        to = 2 * to < n && left > 2 ? 2 * to : n;
    }
    for (size_t e = 0, first = 1; e < E; e++)
        if (!out[e] && (first || sum[e] < sum[best])) best = e, first = 0;
    return best;
}

static size_t nearest(const struct state *s, const size_t *rows, size_t n) {
    size_t best = 0;
    double least = INFINITY;
    for (size_t p = 0; p < s->n_people; p++) {
        double far = 0;
        for (int f = 0; f < FEATURES; f++) {
            double mean = 0;
            for (size_t i = 0; i < n; i++) mean += s->features[rows[i]][f] / (double)n;
            double d = (mean - s->people[p].mean[f]) / s->spread[f];
            far += d * d;
        }
        if (far < least) least = far, best = s->people[p].entry;
    }
    return best;
}

/* n rows of a person's, each once, in out. */
static void draw(const struct person *p, uint64_t key, size_t n, size_t *out) {
    size_t order[1024];
    for (size_t i = 0; i < p->n; i++) order[i] = p->first + i;
    for (size_t i = 0; i < n; i++) {
        size_t k = i + random_u64(key, i) % (p->n - i), row = order[k];
        order[k] = order[i];
        out[i] = order[i] = row;
    }
}

static void count(const struct state *s, const size_t *rows, size_t n, size_t right, size_t *found) {
    found[LOSS] += best_of_sum(s, s->nll, -1, rows, n) == right;
    found[GRADIENT] += best_of_sum(s, s->gain, 1, rows, n) == right;
    found[HALVING] += best_of_halving(s, rows, n) == right;
    found[NEAREST] += nearest(s, rows, n) == right;
}

static void print(const char *what, const size_t *found, size_t all) {
    printf("%-24s", what);
    for (int w = 0; w < WAYS; w++) printf("  %s %5.1f %%", ways[w], 100.0 * (double)found[w] / (double)all);
    printf("  of %zu\n", all);
}

static void draw_people(const struct state *s, size_t n, size_t draws) {
    size_t found[WAYS] = {0}, rows[64];
    char what[32];
    for (size_t p = 0; p < s->n_people; p++)
        for (size_t d = 0; d < draws; d++) {
            draw(&s->people[p], random_u64(p + 1, d + 1000 * n), n, rows);
            count(s, rows, n, s->people[p].entry, found);
        }
    snprintf(what, sizeof what, "%zu rows", n);
    print(what, found, s->n_people * draws);
}

static void draw_mixtures(const struct state *s, size_t draws) {
    size_t found[WAYS] = {0}, all = 0, rows[10];
    for (size_t p = 0; p < s->n_people; p++)
        for (size_t d = 0; d < draws; d++, all++) {
            size_t q = (p + 1 + random_u64(77 + p, d) % (s->n_people - 1)) % s->n_people;
            draw(&s->people[p], random_u64(100 + p, d), 7, rows);
            draw(&s->people[q], random_u64(200 + p, d), 3, rows + 7);
            for (size_t i = 9; i > 0; i--) { /* halving looks at the first ones first */
                size_t k = random_u64(300 + p, 16 * d + i) % (i + 1), row = rows[i];
                rows[i] = rows[k];
                rows[k] = row;
            }
            count(s, rows, 10, s->people[p].entry, found);
        }
    print("7 rows and 3 of another", found, all);
}

int main(int argc, char **argv) {
    struct state s = {.model = NULL};
    struct public_key key;
    char sha256[65];
    attune_error err = {0};
    if (argc < 11 || argc % 2 == 0 || (argc - 7) / 2 > PEOPLE_MAX) {
        fprintf(stderr, "usage: selecting BASE CATALOG KEY ROWS TOKENS DRAWS TRAIN TEST TRAIN TEST ...\n");
        return 2;
    }
    size_t pool = strtoul(argv[4], NULL, 10), draws = strtoul(argv[6], NULL, 10);
    s.max_tokens = strtoul(argv[5], NULL, 10);
    s.features = calloc(PEOPLE_MAX * (pool + 1), sizeof *s.features);
    int code = pool >= 10 && pool <= 1000 && s.max_tokens >= 16
                   ? ATTUNE_OK
                   : error_set(&err, ATTUNE_ERROR_ARGUMENT, NULL, "ROWS: 10 to 1000; TOKENS: 16 or more");
    if (code == ATTUNE_OK) code = kernels_select(&err);
    if (code == ATTUNE_OK) code = pool_create(0, &s.pool, &err);
    if (code == ATTUNE_OK) code = model_open(argv[1], FILE_MAP, &s.model, &err);
    if (code == ATTUNE_OK) {
        hash_bytes(s.model->gguf->file.data, s.model->gguf->file.size, sha256);
        model_set_hash(s.model, sha256);
        code = public_key_read(argv[3], &key, &err);
    }
    if (code == ATTUNE_OK) code = catalog_open(argv[2], &key, &s.catalog, &err);
    for (int i = 7; i + 1 < argc && code == ATTUNE_OK; i += 2) code = read_person(&s, argv[i], argv[i + 1], pool, &err);
    for (int f = 0; f < FEATURES && code == ATTUNE_OK; f++) {
        double mean = s.sums[f] / (double)s.trained;
        s.spread[f] = sqrt(s.squares[f] / (double)s.trained - mean * mean) + 1e-9;
    }
    s.nll = calloc(s.set.n * s.catalog.n + 1, sizeof *s.nll);
    s.gain = calloc(s.set.n * s.catalog.n + 1, sizeof *s.gain);
    if (code == ATTUNE_OK) code = judge(&s, &err);
    if (code == ATTUNE_OK) {
        draw_people(&s, 10, draws);
        draw_people(&s, 4, draws);
        draw_people(&s, 2, draws);
        draw_mixtures(&s, draws);
    }
    if (code != ATTUNE_OK) fprintf(stderr, "selecting: %s (%s)\n", err.message, err.where);
    free(s.nll);
    free(s.gain);
    free(s.features);
    example_set_free(&s.set);
    catalog_free(&s.catalog);
    model_close(s.model);
    pool_destroy(s.pool);
    return code == ATTUNE_OK ? 0 : 1;
}
