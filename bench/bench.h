/* What the benches of attune_bench share. */
#ifndef BENCH_BENCH_H
#define BENCH_BENCH_H

#include "bench/limits.h"
#include "core/model/model.h"

struct bench {
    attune_bench_options o;
    attune_bench_result r;
    struct pool *pool;
    struct model *model;
    enum precision precision;
    size_t tokens;
    double from; /* bench_now() of the call */
    size_t kept; /* train: layers whose activations are kept for the backward */
    /* operations of all that was timed, products with the base apart */
    double base_operations, other_operations;
};

double bench_parameters(const struct model *model); /* of the layers' matrices */
void bench_random_tokens(int32_t *ids, size_t n, size_t V);

/* Rows of o.rows, each once an epoch in the file's order, from loading to the saved adapter; or, without rows, one
 * sequence of random tokens, all supervised, again and again for o.seconds. */
int bench_train(struct bench *b, attune_error *err);

#endif
