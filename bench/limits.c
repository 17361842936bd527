#include "bench/limits.h"

#include "core/base/arena.h"
#include "core/kernels/kernels.h"

#include <time.h>

enum { CUBE = 768, CHUNKS = 256 };
static const size_t BUFFER = 256u << 20;

double bench_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

struct work {
    const struct kernels *kernels;
    float *memory, *sums;
    size_t each;
};

static void multiply(void *argument, size_t i, int worker) {
    const struct work *w = argument;
    (void)worker;
    float *a = w->memory + i * 3 * CUBE * CUBE, *b = a + CUBE * CUBE, *c = b + CUBE * CUBE;
    w->kernels->gemm(0, 0, CUBE, CUBE, CUBE, 1.0f, a, CUBE, b, CUBE, 0.0f, c, CUBE);
}

static void read_chunk(void *argument, size_t i, int worker) {
    const struct work *w = argument;
    (void)worker;
    w->sums[i] = w->kernels->sum_squares(w->memory + i * w->each, w->each);
}

/* Best rate of repeated runs within the time: what the machine can do, not what it did on average. */
static double best(struct pool *pool, size_t tasks, void (*task)(void *, size_t, int), struct work *w, double amount,
                   double seconds) {
    double top = 0, until = bench_now() + seconds;
    do {
        double from = bench_now();
        pool_run(pool, tasks, task, w);
        double rate = amount / (bench_now() - from);
        if (rate > top) top = rate;
    } while (bench_now() < until);
    return top;
}

int limits_measure(struct pool *pool, double seconds, struct limits *out, attune_error *err) {
    size_t threads = (size_t)pool_threads(pool), cubes = threads * 3 * CUBE * CUBE;
    size_t floats = BUFFER / sizeof(float) > cubes ? BUFFER / sizeof(float) : cubes;
    struct arena arena = {0};
    struct work w = {.kernels = kernels_get(), .each = floats / CHUNKS};
    int code = ATTUNE_OK;
    for (int pass = 0; pass < 2 && code == ATTUNE_OK; pass++) {
        w.memory = ARENA_TAKE(&arena, float, floats);
        w.sums = ARENA_TAKE(&arena, float, CHUNKS);
        if (pass == 0) code = arena_commit(&arena, "measuring the machine", err);
    }
    if (code != ATTUNE_OK) return code;
    for (size_t i = 0; i < floats; i++) w.memory[i] = (float)(i & 1023) * 1e-3f;
    out->gflops = best(pool, threads, multiply, &w, 2.0 * CUBE * CUBE * CUBE * (double)threads * 1e-9, seconds);
    out->gbytes_per_s = best(pool, CHUNKS, read_chunk, &w, (double)(w.each * CHUNKS) * sizeof(float) * 1e-9, seconds);
    arena_free(&arena);
    return ATTUNE_OK;
}
