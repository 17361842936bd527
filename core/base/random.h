/* Counter-based random numbers: a value is a pure function of (key, index), so there is no state
 * to save and order does not matter. splitmix64's finalizer (Steele, Lea, Flood 2014), twice. */
#ifndef CORE_BASE_RANDOM_H
#define CORE_BASE_RANDOM_H

#include <stdint.h>

static inline uint64_t random_mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}
static inline uint64_t random_u64(uint64_t key, uint64_t index) {
    return random_mix(random_mix(key) ^ random_mix(~index));
}
/* Uniform in [0, 1), 24 bits. */
static inline float random_uniform(uint64_t key, uint64_t index) {
    return (float)(random_u64(key, index) >> 40) * 0x1p-24f;
}

#endif
