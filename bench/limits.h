/* What this machine can do at most, measured in the same run as what is compared with it. */
#ifndef BENCH_LIMITS_H
#define BENCH_LIMITS_H

#include "core/base/pool.h"

struct limits {
    double gflops;        /* f32, all threads of the pool: each its own sgemm of 768 cubed, from its own cache */
    double gbytes_per_s;  /* reading memory larger than the caches, all threads */
};
int limits_measure(struct pool *pool, double seconds, struct limits *out, attune_error *err);
double bench_now(void); /* CLOCK_MONOTONIC, seconds */

#endif
