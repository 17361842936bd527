/* Nights in zones with and without daylight saving. Zones are written out as POSIX has them, and looked up by their
 * names too where the machine has them. Moments are UTC and come from the zones' laws, not from localtime. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "energy/window.h"

/* 2026: springs forward on 29 March, back on 25 October, both at 01:00 UTC. */
static const char berlin[] = "CET-1CEST,M3.5.0,M10.5.0/3", *const berlin_name = "Europe/Berlin";
/* 2026: 8 March at 07:00 UTC, 1 November at 06:00 UTC. */
static const char new_york[] = "EST5EDT,M3.2.0,M11.1.0", *const new_york_name = "America/New_York";
/* Half an hour. 2026: back on 4 April at 15:00 UTC, forward on 3 October at 15:30 UTC. */
static const char lord_howe[] = "<+1030>-10:30<+11>-11,M10.1.0,M4.1.0", *const lord_howe_name = "Australia/Lord_Howe";
/* At midnight, as Brazil did. 2026: back on 15 February at 02:00 UTC, forward on 18 October at 03:00 UTC. */
static const char midnight[] = "<-03>3<-02>,M10.3.0/0,M2.3.0/0";
static const char utc[] = "UTC0", *const utc_name = "Etc/UTC";
static const char far_east[] = "<+14>-14", far_west[] = "<-12>12", nepal[] = "<+0545>-5:45";

static void set_zone(const char *zone) {
    assert_int_equal(setenv("TZ", zone, 1), 0);
    tzset();
}
static int64_t at(int month, int day, int hour, int minute) {
    struct tm tm = {.tm_year = 126, .tm_mon = month - 1, .tm_mday = day, .tm_hour = hour, .tm_min = minute};
    return (int64_t)timegm(&tm) * 1000;
}
static struct window parsed(const char *text) {
    struct window window;
    if (!window_parse(text, &window)) fail_msg("%s is not parsed", text);
    return window;
}

struct row {
    const char *zone, *name, *window;
    struct {
        int month, day, hour, minute;
    } opens, closes;
};
static const struct row nights[] = {
    {berlin, berlin_name, "22:00-07:00", {1, 10, 21, 0}, {1, 11, 6, 0}},
    {berlin, berlin_name, "22:00-07:00", {7, 10, 20, 0}, {7, 11, 5, 0}},
    {berlin, berlin_name, "22:00-07:00", {3, 28, 21, 0}, {3, 29, 5, 0}},   /* 8 hours */
    {berlin, berlin_name, "22:00-07:00", {10, 24, 20, 0}, {10, 25, 6, 0}}, /* 10 hours */
    {berlin, berlin_name, "01:00-05:00", {3, 29, 0, 0}, {3, 29, 3, 0}},
    {berlin, berlin_name, "01:00-05:00", {10, 24, 23, 0}, {10, 25, 4, 0}},
    /* opening, closing and both left out */
    {berlin, berlin_name, "02:30-07:00", {3, 29, 1, 0}, {3, 29, 5, 0}},
    {berlin, berlin_name, "22:00-02:30", {3, 28, 21, 0}, {3, 29, 1, 0}},
    {berlin, berlin_name, "02:10-02:50", {3, 30, 0, 10}, {3, 30, 0, 50}},
    {berlin, berlin_name, "02:10-02:50", {3, 28, 1, 10}, {3, 28, 1, 50}},
    {berlin, berlin_name, "02:00-04:00", {3, 29, 1, 0}, {3, 29, 2, 0}},
    {berlin, berlin_name, "03:00-04:00", {3, 29, 1, 0}, {3, 29, 2, 0}},
    {berlin, berlin_name, "01:59-03:00", {3, 29, 0, 59}, {3, 29, 1, 0}},
    /* opening, closing and both twice */
    {berlin, berlin_name, "02:30-07:00", {10, 25, 0, 30}, {10, 25, 6, 0}},
    {berlin, berlin_name, "22:00-02:30", {10, 24, 20, 0}, {10, 25, 0, 30}},
    {berlin, berlin_name, "02:10-02:50", {10, 25, 0, 10}, {10, 25, 0, 50}},
    {berlin, berlin_name, "02:55-03:05", {10, 25, 0, 55}, {10, 25, 2, 5}},
    {berlin, berlin_name, "02:00-03:00", {10, 25, 0, 0}, {10, 25, 2, 0}},
    {berlin, berlin_name, "03:00-05:00", {10, 25, 2, 0}, {10, 25, 4, 0}},

    {new_york, new_york_name, "22:00-07:00", {3, 8, 3, 0}, {3, 8, 11, 0}},
    {new_york, new_york_name, "22:00-07:00", {11, 1, 2, 0}, {11, 1, 12, 0}},
    {new_york, new_york_name, "02:30-07:00", {3, 8, 7, 0}, {3, 8, 11, 0}},
    {new_york, new_york_name, "01:30-07:00", {11, 1, 5, 30}, {11, 1, 12, 0}},
    {new_york, new_york_name, "23:00-01:30", {11, 1, 3, 0}, {11, 1, 5, 30}},

    {lord_howe, lord_howe_name, "22:00-07:00", {4, 4, 11, 0}, {4, 4, 20, 30}},
    {lord_howe, lord_howe_name, "22:00-07:00", {10, 3, 11, 30}, {10, 3, 20, 0}},
    {lord_howe, lord_howe_name, "02:15-07:00", {10, 3, 15, 30}, {10, 3, 20, 0}},
    {lord_howe, lord_howe_name, "01:45-07:00", {4, 4, 14, 45}, {4, 4, 20, 30}},
    {lord_howe, lord_howe_name, "22:00-01:45", {4, 4, 11, 0}, {4, 4, 14, 45}},
    {lord_howe, lord_howe_name, "02:00-05:00", {4, 4, 15, 30}, {4, 4, 18, 30}},

    {midnight, NULL, "00:00-06:00", {10, 18, 3, 0}, {10, 18, 8, 0}},
    {midnight, NULL, "00:30-06:00", {10, 18, 3, 0}, {10, 18, 8, 0}},
    {midnight, NULL, "22:00-00:30", {10, 18, 1, 0}, {10, 18, 3, 0}},
    {midnight, NULL, "23:30-06:00", {2, 15, 1, 30}, {2, 15, 9, 0}},
    {midnight, NULL, "00:00-06:00", {2, 15, 3, 0}, {2, 15, 9, 0}},
    {midnight, NULL, "20:00-23:30", {2, 14, 22, 0}, {2, 15, 1, 30}},

    {utc, utc_name, "22:00-07:00", {3, 28, 22, 0}, {3, 29, 7, 0}},
    {utc, utc_name, "00:00-06:00", {2, 28, 0, 0}, {2, 28, 6, 0}},
    {utc, utc_name, "18:00-24:00", {2, 28, 18, 0}, {3, 1, 0, 0}},
    {utc, utc_name, "23:59-00:00", {12, 30, 23, 59}, {12, 31, 0, 0}},
    {utc, utc_name, "12:01-12:00", {5, 5, 12, 1}, {5, 6, 12, 0}},
    {far_east, NULL, "22:00-07:00", {5, 5, 8, 0}, {5, 5, 17, 0}},
    {far_west, NULL, "22:00-07:00", {5, 6, 10, 0}, {5, 6, 19, 0}},
    {nepal, NULL, "22:00-07:00", {5, 5, 16, 15}, {5, 6, 1, 15}},
};

static void check_night(const struct row *row, size_t number) {
    struct window window = parsed(row->window);
    int64_t opens = at(row->opens.month, row->opens.day, row->opens.hour, row->opens.minute);
    int64_t closes = at(row->closes.month, row->closes.day, row->closes.hour, row->closes.minute);
    double length = (double)(closes - opens) / 1000;
    int sound = !window_contains(&window, opens - 1) && window_contains(&window, opens) &&
                window_contains(&window, closes - 1) && window_wait(&window, opens - 1) == 0.001 &&
                window_wait(&window, opens) == 0 && window_left(&window, opens - 1) == 0 &&
                window_left(&window, opens) == length && window_left(&window, closes - 1) == 0.001 &&
                window_next(&window, opens - 1) == 0.001 && window_next(&window, opens) > length &&
                window_night(&window, opens) == opens && window_night(&window, closes) == opens &&
                window_night(&window, opens - 1) < opens;
    for (int64_t t = opens; t < closes; t += 60000) sound = sound && window_contains(&window, t);
    for (int64_t t = closes; t < closes + 30 * 60000 && t < opens + 86400000; t += 60000)
        sound = sound && (!window_contains(&window, t) || window_night(&window, t) > opens);
    if (!sound)
        fail_msg("row %zu, %s in %s: open %d, %g s left, waits %g s, next in %g s", number, row->window, row->zone,
                 window_contains(&window, opens), window_left(&window, opens), window_wait(&window, opens - 1),
                 window_next(&window, opens));
}

static void test_nights(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof nights / sizeof *nights; i++) {
        set_zone(nights[i].zone);
        check_night(&nights[i], i);
    }
}

static void test_nights_by_name(void **state) {
    int found = 0;
    (void)state;
    for (size_t i = 0; i < sizeof nights / sizeof *nights; i++) {
        char path[128];
        snprintf(path, sizeof path, "/usr/share/zoneinfo/%s", nights[i].name ? nights[i].name : "");
        if (!nights[i].name || access(path, R_OK) != 0) continue;
        set_zone(nights[i].name);
        check_night(&nights[i], i);
        found = 1;
    }
    if (!found) skip();
}

/* After the closing at a time that comes twice, the window stays shut through the repeated hour. */
static void test_shut_in_the_repeated_hour(void **state) {
    struct window window = parsed("22:00-02:30"), short_one = parsed("02:10-02:50");
    (void)state;
    set_zone(berlin);
    for (int minute = 30; minute < 6 * 60; minute++) assert_false(window_contains(&window, at(10, 25, 0, minute)));
    for (int minute = 50; minute < 6 * 60; minute++) assert_false(window_contains(&short_one, at(10, 25, 0, minute)));
    assert_true(window_wait(&window, at(10, 25, 0, 30)) == 20.5 * 3600);
}

/* A night that a jump leaves out: none, and the next one comes a day later. */
static void test_no_night(void **state) {
    struct window window = parsed("02:10-02:50");
    (void)state;
    set_zone(berlin);
    for (int minute = 0; minute < 24 * 60; minute++) assert_false(window_contains(&window, at(3, 28, 12, minute)));
    assert_true(window_wait(&window, at(3, 28, 12, 0)) == 36 * 3600 + 600);
    assert_int_equal(window_night(&window, at(3, 29, 12, 0)), at(3, 28, 1, 10));
}

/* Far from any change the window is what the clock on the wall says; everywhere the five answers agree. */
static void test_any_moment(void **state) {
    static const char *const zones[] = {berlin, new_york, lord_howe, midnight, utc, far_east, far_west, nepal};
    static const char *const texts[] = {"22:00-07:00", "00:00-06:30", "02:30-03:15", "23:45-00:15", "12:01-12:00"};
    uint64_t random = 12345;
    int compared = 0;
    (void)state;
    for (int i = 0; i < 20000; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        struct window window = parsed(texts[random >> 40 & 3]);
        if (i % 5 == 4) window = parsed(texts[4]);
        int64_t now = at(1, 3, 0, 0) + (int64_t)((random >> 20) % (720ull * 86400000));
        struct tm local, before, after;
        set_zone(zones[i % 8]);
        time_t s = now / 1000, day_before = s - 30 * 3600, day_after = s + 30 * 3600;
        localtime_r(&s, &local);
        localtime_r(&day_before, &before);
        localtime_r(&day_after, &after);
        int open = window_contains(&window, now), minute = local.tm_hour * 60 + local.tm_min;
        if (before.tm_gmtoff == after.tm_gmtoff) {
            int inside = window.from < window.until ? minute >= window.from && minute < window.until
                                                    : minute >= window.from || minute < window.until;
            if (open != inside) fail_msg("%s at %lld", zones[i % 8], (long long)now);
            compared++;
        }
        double wait = window_wait(&window, now), left = window_left(&window, now), next = window_next(&window, now);
        int64_t night = window_night(&window, now);
        assert_int_equal(open, wait == 0);
        assert_int_equal(open, left > 0);
        assert_true(open || wait == next);
        assert_true(next > left || (next >= left && i % 5 == 4));
        assert_int_equal(window_night(&window, now + (int64_t)llround(next * 1000)), now + llround(next * 1000));
        assert_int_equal(window_night(&window, now + (int64_t)llround(next * 1000) - 1), night);
        assert_true(night <= now && now - night < 49 * 3600000ll);
        assert_true(!open || window_contains(&window, night));
    }
    assert_true(compared > 15000);
}

static void test_always(void **state) {
    struct window always = parsed("always"), other = {600, 600};
    (void)state;
    set_zone(berlin);
    for (int minute = 0; minute < 3 * 1440; minute += 7) {
        int64_t now = at(3, 28, 0, minute);
        assert_true(window_contains(&always, now) && window_contains(&other, now));
        assert_true(isinf(window_left(&always, now)) && window_wait(&always, now) == 0);
        assert_int_equal(window_night(&other, now), window_night(&always, now));
    }
    assert_int_equal(window_night(&always, at(3, 28, 10, 59)), at(3, 27, 11, 0));
    assert_int_equal(window_night(&always, at(3, 28, 11, 0)), at(3, 28, 11, 0));
    assert_int_equal(window_night(&always, at(3, 29, 9, 59)), at(3, 28, 11, 0));
    assert_int_equal(window_night(&always, at(3, 29, 10, 0)), at(3, 29, 10, 0));
    assert_true(window_next(&always, at(3, 28, 11, 0)) == 23 * 3600);
    assert_true(window_next(&always, at(10, 24, 10, 0)) == 25 * 3600);
}

/* A traveller's window goes with him, in a process that runs on. */
static void test_zone_changes(void **state) {
    struct window window = parsed("22:00-07:00");
    (void)state;
    set_zone(berlin);
    assert_true(window_contains(&window, at(1, 10, 21, 0)));
    setenv("TZ", new_york, 1);
    assert_false(window_contains(&window, at(1, 10, 21, 0)));
    assert_true(window_contains(&window, at(1, 11, 3, 0)));
}

static void test_broken_clocks(void **state) {
    static const int64_t times[] = {INT64_MIN, -1, 253402300799001, INT64_MAX};
    struct window window = parsed("22:00-07:00"), always = parsed("always");
    (void)state;
    set_zone(berlin);
    for (size_t i = 0; i < sizeof times / sizeof *times; i++) {
        assert_false(window_contains(&window, times[i]));
        assert_true(window_contains(&always, times[i]));
        assert_true(window_left(&window, times[i]) == 0);
        assert_true(isnan(window_wait(&window, times[i])) && isnan(window_next(&window, times[i])));
        assert_int_equal(window_night(&window, times[i]), times[i]);
    }
    assert_true(window_contains(&window, 0));
    assert_true(window_contains(&window, 253402300799000));
}

static void test_texts(void **state) {
    static const struct {
        const char *text, *same;
        int from, until;
    } good[] = {{"22:00-07:00", "22:00-07:00", 1320, 420}, {"0:05-23:59", "00:05-23:59", 5, 1439},
                {"7:00-9:30", "07:00-09:30", 420, 570},    {"18:00-24:00", "18:00-00:00", 1080, 0},
                {"00:00-24:00", "always", 0, 0},           {"always", "always", 0, 0},
                {"07:00-07:00", "always", 420, 420}};
    static const char *const bad[] = {"",
                                      "22:00",
                                      "22:00-",
                                      "22-07",
                                      "22:00-07:0",
                                      "22:60-07:00",
                                      "24:00-07:00",
                                      "22:00-24:01",
                                      "22:00-25:00",
                                      " 22:00-07:00",
                                      "22:00-07:00 ",
                                      "22:00 -07:00",
                                      "-1:00-07:00",
                                      "022:00-07:00",
                                      "22:00-07:000",
                                      "Always",
                                      "always ",
                                      "22:+1-07:00",
                                      "22:00~07:00",
                                      ":00-07:00",
                                      "22:00-07:00-08:00",
                                      "99999999999:00-07:00"};
    char text[16];
    struct window window;
    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        window = parsed(good[i].text);
        assert_int_equal(window.from, good[i].from);
        assert_int_equal(window.until, good[i].until);
        window_text(&window, text);
        assert_string_equal(text, good[i].same);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (window_parse(bad[i], &window)) fail_msg("\"%s\" is parsed", bad[i]);
    for (int from = 0; from < 1440; from += 13)
        for (int until = 0; until < 1440; until += 17) {
            if (from == until) continue;
            window_text(&(struct window){from, until}, text);
            window = parsed(text);
            assert_true(window.from == from && window.until == until);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nights),
        cmocka_unit_test(test_nights_by_name),
        cmocka_unit_test(test_shut_in_the_repeated_hour),
        cmocka_unit_test(test_no_night),
        cmocka_unit_test(test_any_moment),
        cmocka_unit_test(test_always),
        cmocka_unit_test(test_zone_changes),
        cmocka_unit_test(test_broken_clocks),
        cmocka_unit_test(test_texts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
