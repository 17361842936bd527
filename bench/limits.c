#include "bench/limits.h"

#include "core/base/arena.h"

#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

/* Cubes of floats that are multiplied: the large one where a thread does it in a second. */
enum { CUBE = 768, CUBE_LARGE = 2048, CUBE_LARGE_THREADS = 16, CHUNKS = 256 };
static const size_t BUFFER = 256u << 20;
static const double SPIN_SECONDS = 0.02; /* of one turn on registers */

double bench_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* getrusage would count what the process was before exec, such as a large parent's pages. */
double bench_peak_mib(void) {
    char line[128];
    unsigned long kib = 0;
    struct rusage usage;
    FILE *status = fopen("/proc/self/status", "re");
    while (status && kib == 0 && fgets(line, sizeof line, status))
        if (sscanf(line, "VmHWM: %lu kB", &kib) != 1) kib = 0;
    if (status) fclose(status);
    if (kib == 0 && getrusage(RUSAGE_SELF, &usage) == 0) kib = (unsigned long)usage.ru_maxrss;
    return (double)kib / 1024.0;
}

struct work {
    const struct kernels *kernels;
    const struct product *product;
    float *memory, *sums;
    size_t each, cube, rounds;
};

static void multiply(void *argument, size_t i, int worker) {
    const struct work *w = argument;
    (void)worker;
    size_t n = w->cube;
    float *a = w->memory + i * 3 * n * n, *b = a + n * n, *c = b + n * n;
    w->kernels->gemm(0, 0, n, n, n, 1.0f, a, n, b, n, 0.0f, c, n);
}

static void spin(void *argument, size_t i, int worker) {
    const struct work *w = argument;
    (void)worker;
    (void)i;
    w->product->spin(w->rounds);
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

/* 0: the table does not say how. */
static double best_spin(struct pool *pool, const struct product *product, struct work *w, double seconds) {
    size_t threads = (size_t)pool_threads(pool);
    if (!product->spin) return 0;
    w->product = product;
    double from = bench_now(), operations = product->spin(w->rounds = 1000);
    w->rounds = (size_t)(1000 * SPIN_SECONDS / (bench_now() - from + 1e-7)) + 1;
    operations *= (double)w->rounds / 1000;
    return best(pool, threads, spin, w, 1e-9 * operations * (double)threads, seconds);
}

static double best_cube(struct pool *pool, size_t cube, struct work *w, double seconds) {
    size_t threads = (size_t)pool_threads(pool);
    double amount = 2e-9 * (double)cube * (double)cube * (double)cube * (double)threads;
    w->cube = cube;
    return best(pool, threads, multiply, w, amount, seconds);
}

static double best_gemm(struct pool *pool, size_t large, struct work *w, double seconds) {
    double threads = (double)pool_threads(pool), rate = best_cube(pool, CUBE, w, seconds / 2);
    if (large == CUBE || 2e-9 * (double)large * (double)large * (double)large * threads > rate) return rate;
    double other = best_cube(pool, large, w, seconds / 2);
    return other > rate ? other : rate;
}

static double larger(double a, double b) { return a > b ? a : b; }

int limits_measure(struct pool *pool, const struct product *product, double seconds, struct limits *out,
                   attune_error *err) {
    size_t threads = (size_t)pool_threads(pool), large = threads <= CUBE_LARGE_THREADS ? CUBE_LARGE : CUBE;
    size_t cubes = threads * 3 * large * large;
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
    out->gflops = best_gemm(pool, large, &w, seconds);
    for (const struct kernels *const *k = kernels_all(); *k; k++) {
        if (strcmp((*k)->name, "openblas") != 0 || !(*k)->supported()) continue;
        w.kernels = *k;
        out->gflops = larger(out->gflops, best_gemm(pool, large, &w, seconds));
    }
    w.kernels = kernels_get();
    out->gflops = larger(out->gflops, best_spin(pool, w.kernels->exact, &w, seconds / 2));
    out->base_gflops = product == w.kernels->exact ? out->gflops : best_spin(pool, product, &w, seconds / 2);
    out->gbytes_per_s = best(pool, CHUNKS, read_chunk, &w, (double)(w.each * CHUNKS) * sizeof(float) * 1e-9, seconds);
    arena_free(&arena);
    return ATTUNE_OK;
}
