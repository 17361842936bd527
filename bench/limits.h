/* What this machine can do at most, measured in the same run as what is compared with it. */
#ifndef BENCH_LIMITS_H
#define BENCH_LIMITS_H

#include "core/base/pool.h"
#include "core/kernels/kernels.h"

/* All threads of the pool together. */
struct limits {
    double gflops;       /* f32: the larger of multiply-adds on registers alone and products of large matrices */
    double base_gflops;  /* the same in the arithmetic of a product: on registers alone, f32's where it is f32 */
    double gbytes_per_s; /* reading memory larger than the caches */
};
int limits_measure(struct pool *pool, const struct product *product, double seconds, struct limits *out,
                   attune_error *err);
double bench_now(void);      /* CLOCK_MONOTONIC, seconds */
double bench_peak_mib(void); /* largest resident memory of this process so far */

#endif
