#include "job/replay_rows.h"

#include "core/base/random.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double HALF_LIFE_MS = 30.0 * 86400000.0;

/* ---- what was learned from before ---- */

static int compare_hash(const void *a, const void *b) { return strcmp(a, b); }

int replay_rows_mark(attune_store *store, int adapter, const struct example_set *set, unsigned char **earlier,
                     attune_error *err) {
    char(*hashes)[65] = NULL;
    size_t n = 0;
    *earlier = NULL;
    if (adapter == 0) return ATTUNE_OK;
    int code = store_lineage_hashes(store, adapter, &hashes, &n, err);
    if (code != ATTUNE_OK) return code;
    unsigned char *marks = calloc(set->n + 1, 1);
    if (marks)
        for (size_t i = 0; i < set->n; i++)
            marks[i] = n && bsearch(set->items[i].hash, hashes, n, sizeof *hashes, compare_hash) != NULL;
    free(hashes);
    if (!marks) return error_set_memory(err, "a plan", set->n);
    *earlier = marks;
    return ATTUNE_OK;
}

/* ---- the sample ---- */

struct drawn {
    double rank; /* ln(u) / weight: the largest are taken */
    size_t at;   /* in rows */
};
static int compare_drawn(const void *a, const void *b) {
    const struct drawn *x = a, *y = b;
    if (x->rank != y->rank) return x->rank > y->rank ? -1 : 1;
    return x->at > y->at ? -1 : x->at < y->at; /* of the same text the newest */
}

static double rank_of(const struct example *example, const struct origin *origin, int64_t newest_ms, uint64_t key) {
    double u = ((double)(random_u64(key, example->key) >> 11) + 0.5) * 0x1p-53;
    double age = (double)(newest_ms - origin->time_ms) / HALF_LIFE_MS;
    return log(u) * exp2(fmin(age, 1000.0));
}

static size_t sample_size(double share, size_t fresh, size_t earlier) {
    if (share <= 0) return 0;
    double wanted = ceil(share * (double)fresh - 1e-9);
    wanted = fmin(fmax(wanted, (double)REPLAY_ROWS_MIN), (double)REPLAY_ROWS_MAX);
    return wanted < (double)earlier ? (size_t)wanted : earlier;
}

int replay_rows_choose(const struct example_set *set, const struct origin *origins, const unsigned char *earlier,
                       double share, uint64_t key, size_t *rows, size_t *n, attune_error *err) {
    size_t count = 0, kept = 0;
    if (!earlier || *n == 0) return ATTUNE_OK;
    struct drawn *drawn = malloc(*n * sizeof *drawn);
    unsigned char *taken = calloc(*n, 1);
    if (!drawn || !taken) {
        free(drawn);
        free(taken);
        return error_set_memory(err, "a plan", *n * sizeof *drawn);
    }
    int64_t newest_ms = origins[rows[*n - 1]].time_ms;
    for (size_t i = 0; i < *n; i++) {
        if (earlier[rows[i]])
            drawn[count++] = (struct drawn){rank_of(&set->items[rows[i]], &origins[rows[i]], newest_ms, key), i};
        else
            taken[i] = 1;
    }
    qsort(drawn, count, sizeof *drawn, compare_drawn);
    for (size_t i = 0, size = sample_size(share, *n - count, count); i < size; i++) taken[drawn[i].at] = 1;
    for (size_t i = 0; i < *n; i++)
        if (taken[i]) rows[kept++] = rows[i];
    *n = kept;
    free(drawn);
    free(taken);
    return ATTUNE_OK;
}
