#include "energy/clock.h"

#include <math.h>
#include <stddef.h>
#include <time.h>

static double seconds_of(clockid_t id) {
    struct timespec t;
    return clock_gettime(id, &t) == 0 ? (double)t.tv_sec + 1e-9 * (double)t.tv_nsec : (double)NAN;
}

static double monotonic(void *user) {
    (void)user;
    return seconds_of(CLOCK_MONOTONIC);
}
static double boottime(void *user) {
    (void)user;
    return seconds_of(CLOCK_BOOTTIME);
}
static double cpu(void *user) {
    (void)user;
    return seconds_of(CLOCK_PROCESS_CPUTIME_ID);
}
static int64_t wall_ms(void *user) {
    struct timespec t;
    (void)user;
    return clock_gettime(CLOCK_REALTIME, &t) == 0 ? (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000 : 0;
}

const struct clock clock_system = {monotonic, boottime, wall_ms, cpu, NULL};
