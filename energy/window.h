/* The nightly window, in local time, whatever daylight saving does to the night. Pure but for the time zone. */
#ifndef ENERGY_WINDOW_H
#define ENERGY_WINDOW_H

#include <stdint.h>

struct window {
    int from, until; /* minutes after local midnight, 0 to 1439; equal: always open */
};
/* "22:00-07:00", "always". 0: neither. */
int window_parse(const char *text, struct window *out);
void window_text(const struct window *window, char out[16]);
int window_contains(const struct window *window, int64_t wall_ms);
/* Seconds until it closes (0 outside; INFINITY: always open) and until it opens (0 inside). Opening and closing happen
 * when local clocks first show that time, or jump over it. A clock before 1970 or beyond 9999
 * tells nothing: closed, and NaN. */
double window_left(const struct window *window, int64_t wall_ms);
double window_wait(const struct window *window, int64_t wall_ms);
/* Seconds until the next night begins, as window_night counts them, inside and outside. */
double window_next(const struct window *window, int64_t wall_ms);
/* When the night began that wall_ms is in: the last opening, or the last local noon where it is always open. Nights
 * are counted by it. */
int64_t window_night(const struct window *window, int64_t wall_ms);

#endif
