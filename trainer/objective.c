#include "trainer/objective.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

static void take(struct objective *o, size_t sequences) {
    o->items = ARENA_TAKE(&o->arena, size_t, sequences);
    o->logp = ARENA_TAKE(&o->arena, double, sequences);
    o->weights = ARENA_TAKE(&o->arena, double, sequences);
}

size_t objective_bytes(size_t rows) {
    struct objective counted = {0};
    take(&counted, 2 * rows);
    return counted.arena.used + sizeof counted;
}

static int make_room(struct objective *o, size_t rows, attune_error *err) {
    struct objective made = {.capacity = 2 * rows};
    take(&made, made.capacity);
    int code = arena_commit(&made.arena, "a step's sequences", err);
    if (code != ATTUNE_OK) return code;
    take(&made, made.capacity);
    arena_free(&o->arena);
    *o = made;
    return ATTUNE_OK;
}

int objective_create(size_t rows, struct objective **out, attune_error *err) {
    struct objective *o = calloc(1, sizeof *o);
    if (!o) return error_set_memory(err, "an objective", sizeof *o);
    int code = make_room(o, rows, err);
    if (code != ATTUNE_OK) {
        free(o);
        return code;
    }
    *out = o;
    return ATTUNE_OK;
}

void objective_destroy(struct objective *objective) {
    if (!objective) return;
    arena_free(&objective->arena);
    free(objective);
}

int objective_lay_out(struct objective *o, const struct example_set *set, const size_t *rows, size_t n,
                      attune_error *err) {
    if (2 * n > o->capacity) {
        int code = make_room(o, n, err);
        if (code != ATTUNE_OK) return code;
    }
    o->n = 0;
    for (size_t i = 0; i < n; i++) {
        enum example_kind kind = set->items[rows[i]].kind;
        assert(kind != EXAMPLE_REJECTED);
        if (kind == EXAMPLE_SFT) continue;
        o->items[o->n++] = rows[i];
        if (kind == EXAMPLE_PREFERENCE) o->items[o->n++] = rows[i] + 1;
    }
    o->preferences = o->n;
    for (size_t i = 0; i < n; i++)
        if (set->items[rows[i]].kind == EXAMPLE_SFT) o->items[o->n++] = rows[i];
    return ATTUNE_OK;
}

/* ---- the losses ---- */

static double sigma(double x) { return x >= 0 ? 1.0 / (1.0 + exp(-x)) : exp(x) / (1.0 + exp(x)); }
/* -ln sigma(x), without overflow where x is far below 0 */
static double negative_log_sigma(double x) { return x >= 0 ? log1p(exp(-x)) : log1p(exp(x)) - x; }

/* What a weight on the mean nats per token has to be multiplied with for one on ln p as the configuration counts it. */
static double length_of(const struct preference_config *c, const struct example *e) {
    return c->mean ? 1.0 : (double)e->n_supervised;
}

/* r: by how much the answer has become likelier since the start. */
static double gain(const struct preference_config *c, const struct example *e, double logp) {
    double r = logp - e->reference->logp;
    return c->mean ? r / (double)e->n_supervised : r;
}

/* d -ln sigma(h) / d h = -sigma(-h), and h grows with the nats of the rejected answer. */
static void weigh_pair(struct objective *o, const struct preference_config *c, const struct example *pair, size_t s,
                       double share) {
    const struct example *chosen = pair, *rejected = pair + 1;
    double margin = gain(c, chosen, o->logp[s]) - gain(c, rejected, o->logp[s + 1]);
    double h = (double)c->beta * margin, pull = (double)c->dpo * (double)c->beta * sigma(-h);
    double nats = -o->logp[s] / (double)chosen->n_supervised;
    double loss = (double)c->dpo * negative_log_sigma(h) + (double)c->sft * nats;
    o->weights[s] = share * (pull * length_of(c, chosen) + (double)c->sft);
    o->weights[s + 1] = -share * pull * length_of(c, rejected);
    o->loss += chosen->weight * loss;
    o->losses.preference += loss;
    o->losses.margin += margin;
    o->losses.won += margin > 0;
    o->losses.pairs++;
}

/* others: the sum of r over the step's other thumbs, n of them. Their own answers to their own prompts, since another
 * prompt's would cost two passes more for each thumb; and without this one, which would hide from itself. */
static void weigh_thumb(struct objective *o, const struct preference_config *c, const struct example *e, size_t s,
                        double others, size_t n, double share) {
    double z = n > 0 ? others / (double)n : 0.0;
    /* !(z <= 0), so that a NaN stays one */
    z = !(z <= 0.0) ? z : 0.0;
    double direction = e->label > 0 ? 1.0 : -1.0, lambda = (double)(e->label > 0 ? c->up : c->down);
    double u = sigma(direction * (double)c->beta * (gain(c, e, o->logp[s]) - z));
    double away = sigma(-direction * (double)c->beta * (gain(c, e, o->logp[s]) - z));
    double loss = lambda * away;
    o->weights[s] = share * direction * lambda * (double)c->beta * u * away * length_of(c, e);
    o->loss += e->weight * loss;
    o->losses.thumb += loss;
    o->losses.thumbs++;
}

static double sum_of_gains(const struct objective *o, const struct preference_config *c, const struct example_set *set,
                           size_t *n) {
    double sum = 0;
    *n = 0;
    for (size_t s = 0; s < o->n; s++) {
        const struct example *e = &set->items[o->items[s]];
        if (e->kind != EXAMPLE_THUMB) continue;
        sum += gain(c, e, o->logp[s]);
        ++*n;
    }
    return sum;
}

void objective_weigh(struct objective *o, const struct preference_config *config, const struct example_set *set,
                     size_t rows) {
    size_t thumbs;
    double gains = sum_of_gains(o, config, set, &thumbs);
    o->losses = (struct step_losses){0};
    o->loss = o->weight = 0;
    for (size_t s = 0; s < o->n; s++) {
        const struct example *e = &set->items[o->items[s]];
        double share = e->weight / (double)rows;
        if (e->kind == EXAMPLE_REJECTED) continue;
        o->weight += e->weight;
        if (e->kind == EXAMPLE_PREFERENCE)
            weigh_pair(o, config, e, s, share);
        else if (e->kind == EXAMPLE_THUMB)
            weigh_thumb(o, config, e, s, gains - gain(config, e, o->logp[s]), thumbs - 1, share);
        else
            o->weights[s] = share;
    }
}
