/* Time, injectable: everything in this room asks a struct clock and never the system. */
#ifndef ENERGY_CLOCK_H
#define ENERGY_CLOCK_H

#include <stdint.h>

struct clock {
    double (*monotonic)(void *user); /* seconds, stops while the device is suspended */
    double (*boottime)(void *user);  /* seconds, goes on meanwhile: the difference grows by each suspend */
    int64_t (*wall_ms)(void *user);  /* milliseconds since 1970-01-01 UTC: may jump; for the window and for records */
    double (*cpu)(void *user);       /* seconds of CPU time of this process, all threads */
    void *user;
};
/* CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME, CLOCK_PROCESS_CPUTIME_ID. */
extern const struct clock clock_system;

#endif
