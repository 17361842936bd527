/* A night is the time from its opening to its closing, two moments that are found first; asking the clock on the wall
 * alone would close a window at the repeated hour of autumn and open it again.
 *
 * A local time happens, on its day, at the first moment at which the clock on the wall shows it or a later one. In
 * spring, when it is left out, that is the moment of the jump; in autumn, when it comes twice, the first of the two:
 * for an opening and for a closing alike. mktime is not asked, because which of the two it takes is its own choice. */
#include "energy/window.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { DAY_S = 86400, NOON = 12 * 60 };
static const int64_t YEAR_9999_MS = 253402300799000; /* beyond it a clock is broken, before 1970 too */

/* Local seconds less UTC's. 0: the clock shows a time that has no date. */
static int offset_at(int64_t s, int64_t *out) {
    struct tm local;
    time_t time = (time_t)s;
    if (time != s || !localtime_r(&time, &local)) return 0;
    *out = local.tm_gmtoff;
    return 1;
}

/* The moment, in seconds since 1970 UTC, that a local time of so many seconds since 1970-01-01 00:00 local happens.
 * No zone is further from UTC than 12 hours west and 14 hours east, and none changes twice within 28 hours. */
static int moment_of(int64_t local, int64_t *out) {
    int64_t before = local - 15 * 3600, after = local + 13 * 3600, first, last, middle;
    if (!offset_at(before, &first) || !offset_at(after, &last)) return 0;
    if (first == last) {
        *out = local - first;
        return 1;
    }
    while (after - before > 1) {
        int64_t half = before + (after - before) / 2;
        if (!offset_at(half, &middle)) return 0;
        if (middle == first)
            before = half;
        else
            after = half;
    }
    if (local - first < after)
        *out = local - first;
    else
        *out = local - last > after ? local - last : after;
    return 1;
}

/* Local days since 1970-01-01; the zone is looked up afresh, because people travel. */
static int local_day(int64_t wall_ms, int64_t *out) {
    int64_t s = wall_ms / 1000, offset;
    if (wall_ms < 0 || wall_ms > YEAR_9999_MS) return 0;
    tzset();
    if (!offset_at(s, &offset)) return 0;
    *out = (s + offset + DAY_S) / DAY_S - 1;
    return 1;
}

struct night {
    int64_t opens, closes; /* milliseconds since 1970 UTC; equal: it is left out, by a jump over all of it */
};
static int night_of(const struct window *window, int64_t day, struct night *out) {
    int64_t opens, closes;
    if (!moment_of(day * DAY_S + window->from * 60, &opens)) return 0;
    if (!moment_of((day + (window->until <= window->from)) * DAY_S + window->until * 60, &closes)) return 0;
    *out = (struct night){opens * 1000, closes * 1000};
    return 1;
}

static int is_always(const struct window *window) { return window->from == window->until; }

/* Always open: nights then end where the next begins, at noon. */
static struct window counted(const struct window *window) {
    return is_always(window) ? (struct window){NOON, NOON} : *window;
}

/* The last night that began by then, and the first that begins later. */
static int nights_around(const struct window *window, int64_t wall_ms, struct night *last, struct night *next) {
    struct window nightly = counted(window);
    struct night night;
    int64_t day;
    int found = 0;
    if (!local_day(wall_ms, &day)) return 0;
    for (int64_t d = day - 2; d <= day + 3; d++) {
        if (!night_of(&nightly, d, &night)) return 0;
        if (night.opens >= night.closes) continue;
        if (night.opens > wall_ms) {
            *next = night;
            return found;
        }
        *last = night;
        found = 1;
    }
    return 0;
}

/* "7:05" or "07:05", and 24:00; minutes, or -1. *text goes behind it. */
static int clock_time(const char **text) {
    const char *s = *text;
    int hours = 0, digits = 0;
    for (; digits < 2 && *s >= '0' && *s <= '9'; digits++) hours = hours * 10 + (*s++ - '0');
    if (!digits || *s++ != ':') return -1;
    if (s[0] < '0' || s[0] > '5' || s[1] < '0' || s[1] > '9') return -1;
    *text = s + 2;
    int minutes = hours * 60 + (s[0] - '0') * 10 + (s[1] - '0');
    return minutes <= 24 * 60 ? minutes : -1;
}

int window_parse(const char *text, struct window *out) {
    if (strcmp(text, "always") == 0) {
        *out = (struct window){0, 0};
        return 1;
    }
    int from = clock_time(&text);
    if (from < 0 || from == 24 * 60 || *text++ != '-') return 0;
    int until = clock_time(&text);
    if (until < 0 || *text) return 0;
    *out = (struct window){from, until % (24 * 60)};
    return 1;
}

void window_text(const struct window *window, char out[16]) {
    if (is_always(window))
        strcpy(out, "always");
    else
        snprintf(out, 16, "%02u:%02u-%02u:%02u", (unsigned)window->from / 60 % 24, (unsigned)window->from % 60,
                 (unsigned)window->until / 60 % 24, (unsigned)window->until % 60);
}

int window_contains(const struct window *window, int64_t wall_ms) {
    struct night last, next;
    return is_always(window) || (nights_around(window, wall_ms, &last, &next) && wall_ms < last.closes);
}

double window_left(const struct window *window, int64_t wall_ms) {
    struct night last, next;
    if (is_always(window)) return INFINITY;
    if (!nights_around(window, wall_ms, &last, &next) || wall_ms >= last.closes) return 0;
    return (double)(last.closes - wall_ms) / 1000;
}

double window_wait(const struct window *window, int64_t wall_ms) {
    return window_contains(window, wall_ms) ? 0 : window_next(window, wall_ms);
}

double window_next(const struct window *window, int64_t wall_ms) {
    struct night last, next;
    if (!nights_around(window, wall_ms, &last, &next)) return NAN;
    return (double)(next.opens - wall_ms) / 1000;
}

int64_t window_night(const struct window *window, int64_t wall_ms) {
    struct night last, next;
    return nights_around(window, wall_ms, &last, &next) ? last.opens : wall_ms;
}
