#include "core/kernels/kernels.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "core/kernels/tables.h"

/* Made of another one's parts when the tables are first asked for. */
#if defined(__x86_64__)
static struct kernels kernels_amx, kernels_avx512vnni, kernels_openblas;
#elif defined(__aarch64__)
static struct kernels kernels_neon_dotprod, kernels_neon_i8mm;
#endif

/* Best first. */
static const struct kernels *const tables[] = {
#if defined(__x86_64__)
    &kernels_amx,
    &kernels_avx512vnni,
    &kernels_avx512,
    &kernels_avx2,
#elif defined(__aarch64__)
    &kernels_neon_i8mm,
    &kernels_neon_dotprod,
    &kernels_neon,
#endif
    &kernels_scalar,
#if defined(__x86_64__)
    &kernels_openblas, /* to compare with: behind scalar, so never the best */
#endif
    NULL,
};

static pthread_once_t assembled = PTHREAD_ONCE_INIT, chosen = PTHREAD_ONCE_INIT;
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

int kernels_cpu_has_avx512vnni(void) { return kernels_cpu_has_avx512() && __builtin_cpu_supports("avx512vnni"); }

/* By hand: clang 14 does not know AMX as a name. The tiles are 8 KiB of state a thread, which Linux saves only for
 * processes that ask for it (Documentation/arch/x86/xstate.rst): their signal frames grow, and it refuses where a
 * thread has an alternate signal stack too small for one. The leave holds for all threads, later ones and those of a
 * forked child too; a kernel from before AMX does not know the question. */
int kernels_cpu_has_amx(void) {
    enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24, TILE_STATE = 3 << 17, TILE_DATA = 18 };
    enum { ASK_FOR_STATE = 0x1023 }; /* ARCH_REQ_XCOMP_PERM */
    unsigned a, b, c, features, saved, high;
    if (!kernels_cpu_has_avx512() || !__builtin_cpu_supports("avx512bf16")) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &features)) return 0;
    if (!(features & AMX_BF16) || !(features & AMX_TILE)) return 0;
    __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0)); /* there, as AVX-512 is */
    if ((saved & TILE_STATE) != TILE_STATE) return 0;
    return syscall(SYS_arch_prctl, ASK_FOR_STATE, TILE_DATA) == 0;
}
#elif defined(__aarch64__)
int kernels_cpu_has_neon(void) { return (getauxval(AT_HWCAP) & HWCAP_ASIMD) != 0; }

int kernels_cpu_has_neon_dotprod(void) { return kernels_cpu_has_neon() && (getauxval(AT_HWCAP) & HWCAP_ASIMDDP); }

int kernels_cpu_has_neon_i8mm(void) { return kernels_cpu_has_neon() && (getauxval(AT_HWCAP2) & HWCAP2_I8MM); }
#endif

/* A table that differs from another in what is not exact. */
static inline void compose(struct kernels *table, const struct kernels *from, const char *name, int (*supported)(void),
                           const struct product *fast, const struct rounded *rounded) {
    *table = *from;
    table->name = name;
    table->supported = supported;
    table->fast = fast;
    table->rounded = rounded;
}

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

static void assemble(void) {
#if defined(__x86_64__)
    compose(&kernels_amx, &kernels_avx512, "amx", kernels_cpu_has_amx, &product_amx,
            kernels_cpu_has_avx512vnni() ? &rounded_avx512vnni : NULL);
    compose(&kernels_avx512vnni, &kernels_avx512, "avx512vnni", kernels_cpu_has_avx512vnni, &product_avx512vnni,
            &rounded_avx512vnni);
#elif defined(__aarch64__)
    compose(&kernels_neon_dotprod, &kernels_neon, "neon_dotprod", kernels_cpu_has_neon_dotprod, &product_neon_dotprod,
            &rounded_neon_dotprod);
    compose(&kernels_neon_i8mm, &kernels_neon, "neon_i8mm", kernels_cpu_has_neon_i8mm, &product_neon_i8mm,
            kernels_cpu_has_neon_dotprod() ? &rounded_neon_dotprod : NULL);
#endif
#if defined(__x86_64__)
    const struct kernels *f32 = kernels_cpu_has_avx512() ? &kernels_avx512 : &kernels_avx2;
    compose(&kernels_openblas, f32, "openblas", f32->supported, f32->fast, f32->rounded);
    kernels_openblas.gemm = gemm_openblas;
#endif
}

static const struct kernels *best(void) {
    for (size_t i = 0;; i++)
        if (tables[i]->supported()) return tables[i]; /* the scalar table always is */
}

/* Tables beside the one that is named are not asked whether the CPU has them: asking may change the process. */
static void choose(void) {
    pthread_once(&assembled, assemble);
    const char *name = getenv("ATTUNE_KERNELS");
    if (!name || !*name) {
        selected = best();
        return;
    }
    for (const struct kernels *const *table = tables; *table; table++) {
        if (strcmp((*table)->name, name) != 0) continue;
        if ((*table)->supported()) {
            selected = *table;
            return;
        }
        refuse(ATTUNE_ERROR_UNSUPPORTED, name, "needs instructions that this CPU lacks");
    }
    selected = best();
    if (!refusal.code) refuse(ATTUNE_ERROR_ARGUMENT, name, "is not the name of a kernel table");
}

const struct kernels *kernels_get(void) {
    pthread_once(&chosen, choose);
    return selected;
}

int kernels_select(attune_error *err) {
    pthread_once(&chosen, choose);
    if (refusal.code && err) *err = refusal;
    return refusal.code;
}

const struct kernels *const *kernels_all(void) {
    pthread_once(&assembled, assemble);
    return tables;
}
