/* Scales, ticks and the SVG of plots; markup that stays well-formed whatever comes in. */
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

#include "cli/markup.h"
#include "cli/plot.h"
#include "cli/report.h"

/* ---- a small check of XML: tags nest, attributes are quoted, & begins an entity, no character is forbidden ---- */

enum { DEPTH_MAX = 32, NAME_MAX_BYTES = 32 };

static size_t name_length(const char *at) {
    return strspn(at, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-:");
}

static const char *after_entity(const char *at) {
    static const char *const known[] = {"&amp;", "&lt;", "&gt;", "&quot;", "&#39;"};
    for (size_t i = 0; i < 5; i++)
        if (strncmp(at, known[i], strlen(known[i])) == 0) return at + strlen(known[i]);
    return NULL;
}

/* Behind a tag's attributes, at ">" or "/>"; NULL: they are not well-formed. */
static const char *after_attributes(const char *at) {
    while (*at == ' ') {
        at += 1;
        size_t n = name_length(at);
        if (n == 0 || strncmp(at + n, "=\"", 2) != 0) return NULL;
        at += n + 2;
        while (*at && *at != '"') {
            if (*at == '<') return NULL;
            if (*at == '&') {
                at = after_entity(at);
                if (!at) return NULL;
            } else at++;
        }
        if (*at++ != '"') return NULL;
    }
    return at;
}

/* NULL: all of it is well-formed; else where it is not. */
static const char *ill_formed(const char *at) {
    char open[DEPTH_MAX][NAME_MAX_BYTES];
    size_t depth = 0;
    while (*at) {
        const char *here = at;
        if ((unsigned char)*at < 0x20 && *at != '\n' && *at != '\t') return here;
        if (*at == '&') {
            at = after_entity(at);
            if (!at) return here;
            continue;
        }
        if (*at != '<') {
            at++;
            continue;
        }
        bool closes = at[1] == '/';
        const char *name = at + 1 + closes;
        size_t n = name_length(name);
        if (n == 0 || n >= NAME_MAX_BYTES) return here;
        at = after_attributes(name + n);
        if (!at) return here;
        bool alone = *at == '/';
        at += alone;
        if (*at++ != '>') return here;
        if (closes) {
            if (depth == 0 || strlen(open[depth - 1]) != n || strncmp(open[depth - 1], name, n) != 0) return here;
            depth--;
        } else if (!alone) {
            if (depth == DEPTH_MAX) return here;
            memcpy(open[depth], name, n);
            open[depth++][n] = '\0';
        }
    }
    return depth ? at : NULL;
}

static void assert_well_formed(const char *text) {
    const char *at = ill_formed(text);
    if (at) fail_msg("not well-formed at: %.80s", at);
}

/* No number of a drawing is one that a browser cannot read. */
static void assert_no_nan(const char *text) {
    for (const char *at = text; *at; at++) {
        if (strncmp(at, "nan", 3) == 0) fail_msg("NaN at: %.60s", at > text + 30 ? at - 30 : text);
        if (strncmp(at, "inf", 3) == 0) fail_msg("infinity at: %.60s", at > text + 30 ? at - 30 : text);
    }
}

static size_t count(const char *text, const char *what) {
    size_t n = 0;
    for (; (text = strstr(text, what)); text += strlen(what)) n++;
    return n;
}

static void the_check_can_fail(void **state) {
    (void)state;
    static const char *const bad[] = {"<a>",    "</a>",      "<a></b>", "<a b=c/>",       "<a b=\"<\"/>", "a & b",
                                      "&nbsp;", "<a b=\"x>", "\x01",    "<a><b></a></b>", "< a/>",        "&amp"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        if (!ill_formed(bad[i])) fail_msg("taken for well-formed: %s", bad[i]);
    assert_null(ill_formed("<a b=\"1 &lt; 2\" c=\"\"><b/>x &amp; y</a>\n"));
}

/* ---- markup ---- */

static void text_is_escaped(void **state) {
    (void)state;
    static const struct {
        const char *in, *out;
    } cases[] = {
        {"plain", "plain"},
        {"<script>&\"'", "&lt;script&gt;&amp;&quot;&#39;"},
        {"\xC2\xB0""C \xE2\x86\x92 \xF0\x9F\x98\x80", "\xC2\xB0""C \xE2\x86\x92 \xF0\x9F\x98\x80"},
        {"a\x01""b\x1B[31m\x7F", "a\xEF\xBF\xBD""b\xEF\xBF\xBD[31m\xEF\xBF\xBD"},
        {"tab\tline\n", "tab\tline\n"},
        {"\xC2\x9B", "\xEF\xBF\xBD"},
        {"\xFF\xC3(\xE2\x86", "\xEF\xBF\xBD\xEF\xBF\xBD(\xEF\xBF\xBD\xEF\xBF\xBD"},
        {"\xEF\xBF\xBE\xEF\xBF\xBF", "\xEF\xBF\xBD\xEF\xBF\xBD"},
        {"\xC3<", "\xEF\xBF\xBD&lt;"},
        {"", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct markup m = {.failed = false};
        markup_add(&m, ".");
        markup_text(&m, cases[i].in);
        size_t length;
        char *text = markup_take(&m, &length);
        assert_non_null(text);
        assert_string_equal(text + 1, cases[i].out);
        assert_int_equal(length, strlen(text));
        free(text);
    }
}

static void numbers_are_short_and_finite(void **state) {
    (void)state;
    static const struct {
        double in;
        const char *out;
    } cases[] = {{0, "0"}, {-0.001, "0"}, {1.5, "1.5"}, {100, "100"}, {-2.25, "-2.25"}, {NAN, "0"}, {INFINITY, "0"},
                 {1e300, "1000000000"}, {-1e300, "-1000000000"}, {3.14159, "3.14"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct markup m = {.failed = false};
        markup_number(&m, cases[i].in);
        assert_string_equal(m.text, cases[i].out);
        markup_free(&m);
    }
}

/* ---- ticks ---- */

static void ticks_are_round_and_cover(void **state) {
    (void)state;
    static const double ranges[][2] = {{0, 1},       {0, 55.3},   {2.0, 2.9},         {1.999, 2.001},
                                       {-5, 5},      {0, 1e6},    {0.00012, 0.00094}, {37, 83},
                                       {1e-9, 2e-9}, {-1e5, 1e5}, {99.9, 100.1}};
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++)
        for (int most = 2; most <= 12; most++) {
            struct ticks t;
            plot_ticks(ranges[i][0], ranges[i][1], most, &t);
            assert_in_range(t.n, 2, most);
            double step = t.at[1] - t.at[0], mantissa = step / pow(10, floor(log10(step) + 1e-9));
            if (fabs(mantissa - 1) > 1e-6 && fabs(mantissa - 2) > 1e-6 && fabs(mantissa - 5) > 1e-6)
                fail_msg("%g to %g, %d: a step of %g", ranges[i][0], ranges[i][1], most, step);
            assert_true(t.at[0] <= ranges[i][0] + step * 1e-6);
            assert_true(t.at[t.n - 1] >= ranges[i][1] - step * 1e-6);
            for (int k = 1; k < t.n; k++) assert_true(fabs(t.at[k] - t.at[k - 1] - step) < step * 1e-6);
            /* Labels differ, and say what the tick is. */
            for (int k = 0; k < t.n; k++) {
                char label[40];
                snprintf(label, sizeof label, "%.*f", t.decimals, t.at[k]);
                assert_true(fabs(atof(label) - t.at[k]) < step * 0.01);
            }
        }
}

static void ticks_of_odd_ranges(void **state) {
    (void)state;
    static const double ranges[][2] = {{2, 2}, {0, 0}, {NAN, NAN}, {NAN, 3}, {3, NAN}, {INFINITY, -INFINITY}, {5, 1},
                                       {-7, -7}, {1e300, 1e300}};
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        struct ticks t;
        plot_ticks(ranges[i][0], ranges[i][1], 5, &t);
        assert_in_range(t.n, 2, 5);
        for (int k = 0; k < t.n; k++) assert_true(isfinite(t.at[k]));
        for (int k = 1; k < t.n; k++) assert_true(t.at[k] > t.at[k - 1]);
    }
}

static void time_zone(const char *name) {
    setenv("TZ", name, 1);
    tzset();
}

static void time_ticks_are_round(void **state) {
    (void)state;
    time_zone("Europe/Berlin");
    const int64_t from = INT64_C(1772000000000); /* 2026-02-25T07:13+01:00 */
    static const int64_t spans[] = {600000, 3600000, 7 * 3600000, INT64_C(86400000), INT64_C(14) * 86400000,
                                    INT64_C(60) * 86400000, INT64_C(400) * 86400000, INT64_C(4000) * 86400000,
                                    INT64_C(400000) * 86400000};
    for (size_t i = 0; i < sizeof spans / sizeof spans[0]; i++)
        for (int most = 2; most <= 12; most++) {
            struct time_tick t[TICKS_MAX];
            int n = plot_time_ticks(from, from + spans[i], most, t);
            assert_in_range(n, 0, most);
            for (int k = 0; k < n; k++) {
                struct tm tm;
                time_t at = (time_t)(t[k].ms / 1000);
                localtime_r(&at, &tm);
                assert_int_equal(tm.tm_sec, 0);
                assert_true(t[k].ms >= from && t[k].ms <= from + spans[i]);
                if (k > 0) assert_true(t[k].ms > t[k - 1].ms);
                if (k > 0) assert_string_not_equal(t[k].label, t[k - 1].label);
                if (spans[i] > INT64_C(14) * 86400000) assert_int_equal(tm.tm_hour * 60 + tm.tm_min, 0);
            }
            if (most >= 6 && i < 8) assert_true(n >= 2);
        }
}

/* Two ticks that stand at the end and the beginning of a month would write over each other. */
static void days_of_ticks_keep_apart(void **state) {
    (void)state;
    time_zone("Europe/Berlin");
    const int64_t day = 86400000, first = INT64_C(1767913200000); /* 2026-01-09T00:00+01:00 */
    for (int begin = 0; begin < 31; begin++)
        for (int length = 14; length < 140; length += 3) {
            struct time_tick t[TICKS_MAX];
            int n = plot_time_ticks(first + begin * day, first + (begin + length) * day, 8, t);
            int64_t least = INT64_MAX, largest = 0;
            for (int k = 1; k < n; k++) {
                int64_t apart = t[k].ms - t[k - 1].ms;
                if (apart < least) least = apart;
                if (apart > largest) largest = apart;
            }
            if (n > 2) assert_true(least * 3 >= largest);
            struct tm tm = {.tm_mday = 0};
            for (int k = 0; k < n && largest > day * 3 / 2; k++) {
                time_t at = (time_t)(t[k].ms / 1000);
                localtime_r(&at, &tm);
                if (largest < 12 * day) assert_true(tm.tm_mday <= 29 && (largest < 4 * day || tm.tm_mday % 5 == 1));
            }
        }
}

static void time_ticks_over_daylight_saving(void **state) {
    (void)state;
    time_zone("Europe/Berlin");
    struct time_tick t[TICKS_MAX];
    /* 2026-03-28T22:00+01:00 to 2026-03-29T08:00+02:00: there is no 02:00. */
    int n = plot_time_ticks(INT64_C(1774731600000), INT64_C(1774764000000), 12, t);
    assert_true(n >= 8);
    for (int k = 0; k < n; k++) assert_string_not_equal(t[k].label, "02:00");
    /* 2026-10-24T22:00+02:00 to 2026-10-25T08:00+01:00: 02:00 comes twice, and is told once. */
    n = plot_time_ticks(INT64_C(1792872000000), INT64_C(1792911600000), 12, t);
    assert_true(n >= 8);
    for (int k = 1; k < n; k++) assert_true(t[k].ms > t[k - 1].ms);
    assert_int_equal(plot_time_ticks(5, 5, 6, t), 0);
    assert_int_equal(plot_time_ticks(9, 5, 6, t), 0);
}

/* ---- ink ---- */

static const int64_t HOUR = 3600000, START = INT64_C(1772000000000);

static struct plot begun(struct markup *m) {
    struct plot p = {.out = m, .id = "p", .css = "wide", .title = "<title>", .description = "a & \"b\"", .width = 720,
                     .height = 260, .from_ms = START, .to_ms = START + 4 * HOUR, .axis_below = 1};
    plot_begin(&p);
    plot_panel(&p, 0, 200, 0, 10, "<unit>");
    return p;
}

static char *ended(struct plot *p) {
    plot_end(p);
    char *text = markup_take(p->out, NULL);
    assert_non_null(text);
    assert_well_formed(text);
    assert_no_nan(text);
    return text;
}

static void a_plot_is_well_formed(void **state) {
    (void)state;
    struct markup m = {.failed = false};
    struct plot p = begun(&m);
    const struct plot_point points[] = {{START, 1}, {START + HOUR, NAN}, {START + 2 * HOUR, INFINITY},
                                        {START + 3 * HOUR, 1e300}, {START - HOUR, -1e300}};
    const struct plot_band bands[] = {{START, START + HOUR, "run", "<b>", "\"note\""},
                                      {START + HOUR, START + 2 * HOUR, "stop", "not on a charger", ""}};
    plot_bands(&p, bands, 2, 1);
    plot_line(&p, points, 5, HOUR, "line");
    plot_line(&p, points, 0, HOUR, "line");
    plot_bar(&p, START, START + HOUR, 0, 5, "measured", "<>&");
    plot_bar(&p, START, START + HOUR, 0, NAN, "unseen", NULL);
    plot_bar(&p, START, START + HOUR, 5, 5, "unseen", NULL);
    plot_dot(&p, START, 3, NAN, "after", NULL);
    plot_dot(&p, START, NAN, 3, "unseen", NULL);
    plot_join(&p, START, 1, INFINITY, "unseen");
    char *text = ended(&p);
    assert_non_null(strstr(text, "<title id=\"p-t\">&lt;title&gt;</title>"));
    assert_non_null(strstr(text, "<desc id=\"p-d\">a &amp; &quot;b&quot;</desc>"));
    assert_non_null(strstr(text, "&lt;unit&gt;"));
    assert_null(strstr(text, "unseen"));
    free(text);
}

static void a_panel_holds_its_values(void **state) {
    (void)state;
    struct markup m = {.failed = false};
    struct plot p = begun(&m);
    assert_true(plot_y(&p, 0) == p.bottom && plot_y(&p, 10) == p.top);
    assert_true(plot_y(&p, -5) == p.bottom && plot_y(&p, 1e300) == p.top);
    assert_true(plot_x(&p, START) == p.left && plot_x(&p, START + 4 * HOUR) == p.right);
    assert_true(plot_x(&p, INT64_MIN) == p.left && plot_x(&p, INT64_MAX) == p.right);
    assert_true(fabs(plot_x(&p, START + 2 * HOUR) - (p.left + p.right) / 2) < 1e-9);
    free(ended(&p));
}

/* Any number of points costs a drawing no more than two to half a pixel, and the extremes stay. */
static void a_long_line_is_thinned(void **state) {
    (void)state;
    enum { N = 100000 };
    struct plot_point *points = calloc(N, sizeof *points);
    assert_non_null(points);
    for (int i = 0; i < N; i++) points[i] = (struct plot_point){START + (int64_t)i * 4 * HOUR / N, 5 + sin(i) * 2};
    points[N / 2].value = 10;
    struct markup m = {.failed = false};
    struct plot p = begun(&m);
    plot_line(&p, points, N, HOUR, "line");
    char wanted[16];
    snprintf(wanted, sizeof wanted, " %.0fL", plot_y(&p, 10));
    char *text = ended(&p);
    assert_in_range(strlen(text), 1000, 720 * 4 * 16 + 4000);
    assert_non_null(strstr(text, wanted));
    free(points);
    free(text);
}

static void a_line_breaks_where_nothing_is_known(void **state) {
    (void)state;
    struct markup m = {.failed = false};
    struct plot p = begun(&m);
    const struct plot_point points[] = {{START, 1}, {START + 60000 * 20, 2}, {START + 60000 * 40, NAN},
                                        {START + 60000 * 60, 4}, {START + 3 * HOUR, 5}};
    plot_line(&p, points, 5, HOUR / 2, "line");
    char *text = ended(&p);
    assert_int_equal(count(text, "h0"), 3); /* three pieces, one of two points */
    assert_int_equal(count(text, "L"), 1);
    free(text);
}

static void labels_are_written_where_they_fit(void **state) {
    (void)state;
    struct markup m = {.failed = false};
    struct plot p = begun(&m);
    const struct plot_band bands[] = {{START, START + HOUR, "run", "it fits", ""},
                                      {START + HOUR, START + HOUR + 60000, "stop", "it is too narrow", ""}};
    plot_bands(&p, bands, 2, 1);
    char *text = ended(&p);
    assert_non_null(strstr(text, ">it fits<"));
    assert_null(strstr(text, "too narrow"));
    free(text);
}

static void thousands_of_bands_are_few(void **state) {
    (void)state;
    enum { N = 50000 };
    struct plot_band *bands = calloc(N, sizeof *bands);
    assert_non_null(bands);
    for (int i = 0; i < N; i++)
        bands[i] = (struct plot_band){START + (int64_t)i * 4 * HOUR / N, START + (int64_t)(i + 1) * 4 * HOUR / N,
                                      i % 2 ? "run" : "stop", "flaps", ""};
    struct markup m = {.failed = false};
    struct plot p = begun(&m);
    plot_bands(&p, bands, N, 1);
    char *text = ended(&p);
    assert_in_range(count(text, "<rect"), 300, 1500);
    free(bands);
    free(text);
}

/* ---- the report's own plots ---- */

static attune_night a_call(int day) {
    attune_night c;
    ATTUNE_INIT(c);
    c.night_ms = c.started_ms = START + day * 24 * HOUR;
    c.loss_before = 2.5;
    c.loss_after = 2.4;
    c.joules_measured = 3600;
    c.adapter = day;
    return c;
}

/* One bar a night, in the bin of its own day, over the change to summer time too. */
static void energy_has_a_bar_for_each_night(void **state) {
    (void)state;
    enum { N = 60 };
    time_zone("Europe/Berlin");
    static attune_night calls[N];
    static struct night items[N];
    for (int i = 0; i < N; i++) {
        calls[i] = a_call(N - 1 - i);
        items[i] = (struct night){.calls = &calls[i], .n = 1, .night_ms = calls[i].night_ms, .joules = 3600,
                                  .joules_measured = 3600};
    }
    struct nights nights = {.calls = calls, .n_calls = N, .items = items, .n = N};
    struct markup m = {.failed = false};
    report_plot_energy(&m, &nights);
    report_plot_losses(&m, &nights);
    char *text = markup_take(&m, NULL);
    assert_well_formed(text);
    assert_no_nan(text);
    assert_int_equal(count(text, "1.00 Wh measured"), 2 * N); /* in both widths */
    assert_int_equal(count(text, "<circle class=\"after\""), 2 * (N - 1));
    assert_int_equal(count(text, "<circle class=\"after refused\""), 2);
    free(text);
}

static void verdicts_are_named(void **state) {
    (void)state;
    assert_string_equal(report_verdict("throttle"), "throttle");
    assert_string_equal(report_verdict("\"><b>"), "other");
    assert_string_equal(report_verdict_words("stop"), "stopped");
    assert_string_equal(report_verdict_words("?"), "not known");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_check_can_fail),
        cmocka_unit_test(text_is_escaped),
        cmocka_unit_test(numbers_are_short_and_finite),
        cmocka_unit_test(ticks_are_round_and_cover),
        cmocka_unit_test(ticks_of_odd_ranges),
        cmocka_unit_test(time_ticks_are_round),
        cmocka_unit_test(days_of_ticks_keep_apart),
        cmocka_unit_test(time_ticks_over_daylight_saving),
        cmocka_unit_test(a_plot_is_well_formed),
        cmocka_unit_test(a_panel_holds_its_values),
        cmocka_unit_test(a_long_line_is_thinned),
        cmocka_unit_test(a_line_breaks_where_nothing_is_known),
        cmocka_unit_test(labels_are_written_where_they_fit),
        cmocka_unit_test(thousands_of_bands_are_few),
        cmocka_unit_test(energy_has_a_bar_for_each_night),
        cmocka_unit_test(verdicts_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
