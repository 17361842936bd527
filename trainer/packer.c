#include "trainer/packer.h"

#include "core/base/random.h"
#include "trainer/batches.h"

#include <assert.h>
#include <stdlib.h>

static void take(struct packer *p) {
    size_t T = p->T_max;
    p->tokens = ARENA_TAKE(&p->arena, int32_t, T);
    p->positions = ARENA_TAKE(&p->arena, int32_t, T);
    p->targets = ARENA_TAKE(&p->arena, int32_t, T);
    p->weights = ARENA_TAKE(&p->arena, float, T);
    p->losses = ARENA_TAKE(&p->arena, float, T);
    p->keys = ARENA_TAKE(&p->arena, uint64_t, T);
    p->starts = ARENA_TAKE(&p->arena, size_t, T + 1);
    p->rows = ARENA_TAKE(&p->arena, size_t, T);
}

size_t packer_bytes(size_t T_max) {
    struct packer counted = {.T_max = T_max};
    take(&counted);
    return counted.arena.used + sizeof counted;
}

int packer_create(size_t T_max, struct packer **out, attune_error *err) {
    struct packer *p = calloc(1, sizeof *p);
    if (!p) return error_set_memory(err, "a packer", sizeof *p);
    p->T_max = T_max;
    take(p);
    int code = arena_commit(&p->arena, "a packed batch", err);
    if (code != ATTUNE_OK) {
        packer_destroy(p);
        return code;
    }
    take(p);
    p->batch = (struct packed_batch){.tokens = p->tokens, .positions = p->positions, .starts = p->starts,
                                     .targets = p->targets, .weights = p->weights, .keys = p->keys};
    *out = p;
    return ATTUNE_OK;
}

void packer_destroy(struct packer *packer) {
    if (!packer) return;
    arena_free(&packer->arena);
    free(packer);
}

/* A conversation of n tokens needs n - 1 rows: nothing is predicted from the last one. */
static size_t rows_of(const struct example *example) { return example->n - 1; }

static void add(struct packer *p, const struct example *example, double weight, uint64_t step_key) {
    size_t at = p->batch.T, n = rows_of(example);
    for (size_t i = 0; i < n; i++) {
        p->tokens[at + i] = example->ids[i];
        p->positions[at + i] = (int32_t)i;
        p->targets[at + i] = example->supervised[i + 1] ? example->ids[i + 1] : -1;
        p->weights[at + i] = (float)(weight / (double)example->n_supervised);
        p->keys[at + i] = random_mix(example->key ^ random_mix(step_key + i));
    }
    p->batch.T += n;
}

size_t packer_fill(struct packer *p, const struct example_set *set, const size_t *rows, size_t from, size_t n,
                   const double *weights, uint64_t step_key) {
    p->batch.T = 0;
    p->batch.n_sequences = 0;
    p->starts[0] = 0;
    for (size_t to = batches_end(set, rows, from, n, p->T_max); from < to; from++) {
        assert(p->batch.T + rows_of(&set->items[rows[from]]) <= p->T_max);
        add(p, &set->items[rows[from]], weights ? weights[from] : 0.0, step_key);
        p->rows[p->batch.n_sequences++] = from;
        p->starts[p->batch.n_sequences] = p->batch.T;
    }
    return from;
}

double packer_loss(const struct packer *p, size_t s) {
    double sum = 0;
    for (size_t t = p->starts[s]; t < p->starts[s + 1]; t++) sum += (double)p->losses[t];
    return sum;
}
