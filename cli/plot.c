#include "cli/plot.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* CSS pixels. Ticks and labels are 12 px high in a common sans serif, whose characters are 6.3 px wide on average. */
static const double CHARACTER = 6.3, LINE_HEIGHT = 15, MARGIN_RIGHT = 10, TICK_PITCH_Y = 27;
/* Panels of one plot share their left border, so they all have room for labels of five characters. */
static const double LEFT_LEAST = 40;
enum { LABEL_CHARACTERS_MIN = 3 };

/* ---- ticks of values ---- */

static void range_mend(double *low, double *high) {
    if (!isfinite(*low)) *low = isfinite(*high) ? *high : 0;
    if (!isfinite(*high)) *high = *low;
    if (*low > *high) {
        double swap = *low;
        *low = *high;
        *high = swap;
    }
    double least = fmax(fabs(*low), fabs(*high)) * 1e-6; /* what doubles and labels can tell apart with ease */
    if (*high - *low > least) return;
    double around = fmax(fabs(*low), fabs(*high)) > 0 ? fabs(*high) * 0.05 : 0.5;
    *low -= around;
    *high += around;
}

void plot_ticks(double low, double high, int most, struct ticks *out) {
    static const double nice[] = {1, 2, 5, 10};
    range_mend(&low, &high);
    if (most > TICKS_MAX) most = TICKS_MAX;
    if (most < 2) most = 2;
    double power = pow(10, floor(log10((high - low) / most)) - 1), step = 0, first = 0;
    int n = most + 1;
    while (n > most) {
        for (int i = 0; i < 3 && n > most; i++) {
            step = nice[i] * power;
            first = floor(low / step + 1e-9);
            n = (int)fmin(ceil(high / step - 1e-9) - first, TICKS_MAX) + 1;
            if (n < 2) n = 2;
        }
        power *= 10;
    }
    *out = (struct ticks){.n = n};
    for (int i = 0; i < n; i++) out->at[i] = (first + i) * step;
    double exponent = floor(log10(step) + 1e-9);
    out->decimals = exponent < 0 ? (int)fmin(-exponent, 15) : 0;
}

static void value_label(char *out, size_t size, double value, int decimals) {
    if (fabs(value) >= 1e6) snprintf(out, size, "%.3g", value);
    else snprintf(out, size, "%.*f", decimals, value);
    if (out[0] == '-' && strspn(out + 1, "0.") == strlen(out + 1)) memmove(out, out + 1, strlen(out));
}

/* ---- ticks of time ---- */

enum unit { MINUTES, DAYS, MONTHS, YEARS };

/* What may lie between two ticks. Years come as 1, 2, 5, ... */
struct interval {
    enum unit unit;
    int n;
    double days; /* nearly */
};
static const struct interval intervals[] = {
    {MINUTES, 1, 1. / 1440}, {MINUTES, 2, 2. / 1440}, {MINUTES, 5, 5. / 1440}, {MINUTES, 15, 15. / 1440},
    {MINUTES, 30, 30. / 1440}, {MINUTES, 60, 1. / 24}, {MINUTES, 120, 2. / 24}, {MINUTES, 180, 3. / 24},
    {MINUTES, 360, 6. / 24}, {MINUTES, 720, 0.5}, {DAYS, 1, 1}, {DAYS, 2, 2}, {DAYS, 5, 5}, {DAYS, 10, 10},
    {MONTHS, 1, 30.4}, {MONTHS, 2, 60.9}, {MONTHS, 3, 91.3}, {MONTHS, 6, 182.6}, {YEARS, 1, 365.2},
    {YEARS, 2, 730.5}, {YEARS, 5, 1826.2}, {YEARS, 10, 3652.4}, {YEARS, 50, 18262.1}, {YEARS, 1000, 365242.5},
};
enum { N_INTERVALS = sizeof intervals / sizeof intervals[0] };

/* Where days are counted in more than ones they begin anew with each month: none stands just before a first. */
enum { DAY_LAST = 29 };

/* The round moment at or before tm. */
static void round_down(struct tm *tm, const struct interval *i) {
    tm->tm_sec = 0;
    tm->tm_isdst = -1;
    if (i->unit == MINUTES) {
        int minutes = (tm->tm_hour * 60 + tm->tm_min) / i->n * i->n;
        tm->tm_hour = minutes / 60;
        tm->tm_min = minutes % 60;
        return;
    }
    tm->tm_hour = tm->tm_min = 0;
    if (i->unit == DAYS) {
        tm->tm_mday = (tm->tm_mday - 1) / i->n * i->n + 1;
        if (i->n > 1 && tm->tm_mday > DAY_LAST) tm->tm_mday -= i->n;
        return;
    }
    tm->tm_mday = 1;
    tm->tm_mon = i->unit == MONTHS ? tm->tm_mon / i->n * i->n : 0;
    if (i->unit == YEARS) tm->tm_year -= (tm->tm_year + 1900) % i->n;
}

/* To the next one. */
static void advance(struct tm *tm, const struct interval *i) {
    tm->tm_isdst = -1;
    switch (i->unit) {
    case MINUTES: tm->tm_min += i->n; return;
    case MONTHS: tm->tm_mon += i->n; return;
    case YEARS: tm->tm_year += i->n; return;
    case DAYS: break;
    }
    tm->tm_mday += i->n;
    if (i->n == 1 || tm->tm_mday <= DAY_LAST) return;
    tm->tm_mday = 1;
    tm->tm_mon++;
}

static void time_label(const struct tm *tm, enum unit unit, char *out, size_t size) {
    static const char *const months[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                         "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    const char *month = months[tm->tm_mon % 12];
    if (unit == MINUTES && (tm->tm_hour || tm->tm_min))
        snprintf(out, size, "%02d:%02d", tm->tm_hour % 24, tm->tm_min % 60);
    else if (unit <= DAYS) snprintf(out, size, "%d %s", tm->tm_mday % 32, month);
    else if (unit == MONTHS) snprintf(out, size, "%s %d", month, (tm->tm_year + 1900) % 100000);
    else snprintf(out, size, "%d", (tm->tm_year + 1900) % 100000);
}

int plot_time_ticks(int64_t from_ms, int64_t to_ms, int most, struct time_tick out[TICKS_MAX]) {
    if (most > TICKS_MAX) most = TICKS_MAX;
    double days = (double)(to_ms - from_ms) / 86400e3;
    size_t k = 0;
    while (k + 1 < N_INTERVALS && days / intervals[k].days > most - 1) k++;
    struct tm tm;
    time_t at = (time_t)(from_ms / 1000);
    if (most < 1 || to_ms <= from_ms || !localtime_r(&at, &tm)) return 0;
    int n = 0;
    round_down(&tm, &intervals[k]);
    /* Some before `from` are passed over; a step that goes nowhere, as where a clock is put back, is no endless loop.
     */
    for (int tries = 0; tries < 4 * TICKS_MAX && n < most; tries++) {
        struct tm normal = tm;
        at = mktime(&normal);
        int64_t ms = (int64_t)at * 1000;
        if (at == (time_t)-1 || ms > to_ms) break;
        if (ms >= from_ms && (n == 0 || ms > out[n - 1].ms)) {
            out[n].ms = ms;
            time_label(&normal, intervals[k].unit, out[n].label, sizeof out[n].label);
            n++;
        }
        tm = normal;
        advance(&tm, &intervals[k]);
    }
    return n;
}

/* ---- ink ---- */

double plot_text_width(const char *text) {
    size_t n = 0;
    for (; *text; text++) n += ((unsigned char)*text & 0xC0) != 0x80;
    return CHARACTER * (double)n;
}

/* ` name="value"` */
static void attribute(struct plot *p, const char *name, double value) {
    markup_add(p->out, " %s=\"", name);
    markup_number(p->out, value);
    markup_add(p->out, "\"");
}

static void text_at(struct plot *p, double x, double y, const char *css, const char *text) {
    markup_add(p->out, "<text class=\"%s\"", css);
    attribute(p, "x", x);
    attribute(p, "y", y);
    markup_add(p->out, ">");
    markup_text(p->out, text);
    markup_add(p->out, "</text>\n");
}

static void segment(struct plot *p, double x1, double y1, double x2, double y2, const char *css) {
    markup_add(p->out, "<line class=\"%s\"", css);
    attribute(p, "x1", x1);
    attribute(p, "y1", y1);
    attribute(p, "x2", x2);
    attribute(p, "y2", y2);
    markup_add(p->out, "/>\n");
}

/* Ends the element `name`, with what a pointer that rests on it is told. */
static void end_with_note(struct plot *p, const char *name, const char *note) {
    if (!note || !note[0]) {
        markup_add(p->out, "/>\n");
        return;
    }
    markup_add(p->out, "><title>");
    markup_text(p->out, note);
    markup_add(p->out, "</title></%s>\n", name);
}

static void rectangle(struct plot *p, double x, double y, double width, double height, const char *css,
                      const char *note) {
    markup_add(p->out, "<rect class=\"%s\"", css);
    attribute(p, "x", x);
    attribute(p, "y", y);
    attribute(p, "width", width);
    attribute(p, "height", height);
    end_with_note(p, "rect", note);
}

double plot_x(const struct plot *p, int64_t ms) {
    double share = ((double)ms - (double)p->from_ms) / ((double)p->to_ms - (double)p->from_ms);
    if (!isfinite(share)) share = 0;
    return p->left + fmin(fmax(share, 0), 1) * (p->right - p->left);
}

double plot_y(const struct plot *p, double value) {
    double share = (value - p->low) / (p->high - p->low);
    if (!isfinite(share)) share = 0;
    return p->bottom - fmin(fmax(share, 0), 1) * (p->bottom - p->top);
}

void plot_begin(struct plot *p) {
    markup_add(p->out, "<svg class=\"plot %s\" role=\"img\" aria-labelledby=\"%s-t %s-d\" viewBox=\"0 0 %.0f %.0f\""
                       " width=\"%.0f\" height=\"%.0f\">\n<title id=\"%s-t\">",
               p->css, p->id, p->id, p->width, p->height, p->width, p->height, p->id);
    markup_text(p->out, p->title);
    markup_add(p->out, "</title>\n<desc id=\"%s-d\">", p->id);
    markup_text(p->out, p->description);
    markup_add(p->out, "</desc>\n");
}

void plot_panel(struct plot *p, double top, double height, double low, double high, const char *unit) {
    struct ticks ticks;
    char label[32];
    double widest = 0, head = unit && unit[0] ? LINE_HEIGHT + 5 : 6;
    p->top = top + head;
    p->bottom = top + height;
    plot_ticks(low, high, (int)fmax(2, (p->bottom - p->top) / TICK_PITCH_Y + 1), &ticks);
    p->low = ticks.at[0];
    p->high = ticks.at[ticks.n - 1];
    for (int i = 0; i < ticks.n; i++) {
        value_label(label, sizeof label, ticks.at[i], ticks.decimals);
        widest = fmax(widest, plot_text_width(label));
    }
    p->left = fmax(widest + 8, LEFT_LEAST);
    p->right = p->width - MARGIN_RIGHT;
    for (int i = 0; i < ticks.n; i++) {
        double y = plot_y(p, ticks.at[i]);
        value_label(label, sizeof label, ticks.at[i], ticks.decimals);
        segment(p, p->left, y, p->right, y, i == 0 ? "axis" : "grid");
        text_at(p, p->left - 6, y + 4, "tick end", label);
    }
    if (head > LINE_HEIGHT) text_at(p, 0, top + 11, "unit", unit);
}

void plot_strip(struct plot *p, double top, double height) {
    p->top = top;
    p->bottom = top + height;
    p->left = LEFT_LEAST;
    p->right = p->width - MARGIN_RIGHT;
    p->low = 0;
    p->high = 1;
}

/* ---- lines ---- */

struct pen {
    bool down;
    int64_t ms;    /* of the last point */
    double column; /* pixel that is collected: of it, lowest and highest in order of time */
    struct {
        double x, y;
    } low, high;
    bool low_first, any;
};

/* A point alone is a line of no length, which has round ends. */
static void to(struct plot *p, struct pen *pen, double x, double y) {
    markup_add(p->out, pen->down ? "L" : "M");
    markup_number(p->out, x);
    markup_add(p->out, " ");
    markup_number(p->out, y);
    if (!pen->down) markup_add(p->out, "h0");
    pen->down = true;
}

static void flush_column(struct plot *p, struct pen *pen) {
    if (!pen->any) return;
    pen->any = false;
    if (pen->low.x == pen->high.x && pen->low.y == pen->high.y) {
        to(p, pen, pen->low.x, pen->low.y);
        return;
    }
    to(p, pen, pen->low_first ? pen->low.x : pen->high.x, pen->low_first ? pen->low.y : pen->high.y);
    to(p, pen, pen->low_first ? pen->high.x : pen->low.x, pen->low_first ? pen->high.y : pen->low.y);
}

static void collect(struct plot *p, struct pen *pen, double x, double y) {
    double column = floor(x * 2);
    if (pen->any && column != pen->column) flush_column(p, pen);
    if (!pen->any) {
        pen->any = true;
        pen->column = column;
        pen->low.x = pen->high.x = x;
        pen->low.y = pen->high.y = y;
        return;
    }
    if (y > pen->low.y) {
        pen->low.x = x;
        pen->low.y = y;
        pen->low_first = false;
    }
    if (y < pen->high.y) {
        pen->high.x = x;
        pen->high.y = y;
        pen->low_first = true;
    }
}

void plot_line(struct plot *p, const struct plot_point *points, size_t n, int64_t gap_ms, const char *css) {
    struct pen pen = {.down = false};
    markup_add(p->out, "<path class=\"%s\" d=\"M", css);
    markup_number(p->out, p->left);
    markup_add(p->out, " ");
    markup_number(p->out, p->bottom);
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(points[i].value) || (pen.any && points[i].ms - pen.ms > gap_ms)) {
            flush_column(p, &pen);
            pen.down = false;
        }
        if (!isfinite(points[i].value)) continue;
        collect(p, &pen, plot_x(p, points[i].ms), plot_y(p, points[i].value));
        pen.ms = points[i].ms;
    }
    flush_column(p, &pen);
    markup_add(p->out, "\"/>\n");
}

/* ---- areas ---- */

void plot_bands(struct plot *p, const struct plot_band *bands, size_t n, int labels) {
    static const double visible = 1, told_apart = 0.5;
    double drawn = p->left - 1;
    for (size_t i = 0; i < n; i++) {
        double x = plot_x(p, bands[i].from_ms), end = plot_x(p, bands[i].to_ms);
        if (end - drawn < told_apart || bands[i].to_ms <= p->from_ms || bands[i].from_ms >= p->to_ms) continue;
        if (end - x < visible) end = fmin(x + visible, p->right);
        markup_add(p->out, "<g>");
        char css[48];
        snprintf(css, sizeof css, "band %s", bands[i].css);
        rectangle(p, x, p->top, end - x, p->bottom - p->top, css, bands[i].note);
        size_t length = strlen(bands[i].label);
        if (labels && length >= LABEL_CHARACTERS_MIN && plot_text_width(bands[i].label) + 8 <= end - x)
            text_at(p, x + 4, p->top + 12, "band-label", bands[i].label);
        markup_add(p->out, "</g>\n");
        drawn = end;
    }
}

void plot_bar(struct plot *p, int64_t from_ms, int64_t to_ms, double from, double to_value, const char *css,
              const char *note) {
    if (!isfinite(from) || !isfinite(to_value) || to_value <= from) return;
    double x = plot_x(p, from_ms), width = plot_x(p, to_ms) - x, y = plot_y(p, to_value);
    double space = width > 6 ? width * 0.2 : width > 3 ? 1 : 0;
    rectangle(p, x + space / 2, y, fmax(width - space, 0.5), plot_y(p, from) - y, css, note);
}

void plot_dot(struct plot *p, int64_t ms, double value, double radius, const char *css, const char *note) {
    if (!isfinite(value)) return;
    markup_add(p->out, "<circle class=\"%s\"", css);
    attribute(p, "cx", plot_x(p, ms));
    attribute(p, "cy", plot_y(p, value));
    attribute(p, "r", radius);
    end_with_note(p, "circle", note);
}

void plot_join(struct plot *p, int64_t ms, double from, double to_value, const char *css) {
    if (!isfinite(from) || !isfinite(to_value)) return;
    double x = plot_x(p, ms);
    segment(p, x, plot_y(p, from), x, plot_y(p, to_value), css);
}

void plot_end(struct plot *p) {
    struct time_tick ticks[TICKS_MAX];
    static const double pitch = 64; /* a label and the space beside it */
    int n = p->axis_below ? plot_time_ticks(p->from_ms, p->to_ms, (int)((p->right - p->left) / pitch) + 1, ticks) : 0;
    for (int i = 0; i < n; i++) {
        double x = plot_x(p, ticks[i].ms), half = plot_text_width(ticks[i].label) / 2;
        segment(p, x, p->bottom, x, p->bottom + 4, "axis");
        bool at_end = x + half > p->width;
        text_at(p, at_end ? p->width : x, p->bottom + 17, at_end ? "tick end" : "tick middle", ticks[i].label);
    }
    markup_add(p->out, "</svg>\n");
}
