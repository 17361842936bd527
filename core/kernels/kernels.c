#include "core/kernels/kernels.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "core/kernels/tables.h"

/* Best first. */
static const struct kernels *const tables[] = {
#if defined(__x86_64__)
    &kernels_avx512,
    &kernels_avx2,
#endif
    &kernels_scalar,
    NULL,
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static const struct kernels *selected;
static attune_error refusal; /* of ATTUNE_KERNELS; code 0: none */

#if defined(__x86_64__)
int kernels_cpu_has_avx2(void) {
    unsigned a, b, c, d;
    /* F16C by hand: clang 14 does not know it as a name. The operating system's part (saving the wide
     * registers) is in the test of AVX2. */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) &&
           (c & bit_F16C);
}

int kernels_cpu_has_avx512(void) {
    return kernels_cpu_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

static void refuse(int code, const char *name, const char *reason) {
    char usable[64] = "";
    for (const struct kernels *const *table = tables; *table; table++) {
        size_t used = strlen(usable);
        if ((*table)->supported())
            snprintf(usable + used, sizeof usable - used, "%s%s", used ? ", " : "", (*table)->name);
    }
    error_set(&refusal, code, "ATTUNE_KERNELS", "\"%.32s\" %s; this CPU can use: %s (unset the variable for the best)",
              name, reason, usable);
}

static void choose(void) {
    for (size_t i = 0; !selected; i++)
        if (tables[i]->supported()) selected = tables[i]; /* the scalar table always is */
    const char *name = getenv("ATTUNE_KERNELS");
    if (!name || !*name) return;
    for (const struct kernels *const *table = tables; *table; table++) {
        if (strcmp((*table)->name, name) != 0) continue;
        if ((*table)->supported())
            selected = *table;
        else
            refuse(ATTUNE_ERROR_UNSUPPORTED, name, "needs instructions that this CPU lacks");
        return;
    }
    refuse(ATTUNE_ERROR_ARGUMENT, name, "is not the name of a kernel table");
}

const struct kernels *kernels_get(void) {
    pthread_once(&once, choose);
    return selected;
}

int kernels_select(attune_error *err) {
    pthread_once(&once, choose);
    if (refusal.code && err) *err = refusal;
    return refusal.code;
}

const struct kernels *const *kernels_all(void) { return tables; }
