/* Plots over time as inline SVG: no script, no fonts, colours by class, so that a page's style sheet has light and
 * dark.
 *
 *   plot_begin, then for each panel (they share the axis of time, one below the other)
 *       plot_panel or plot_strip, and in it plot_bands, plot_line, plot_bar, plot_dot, plot_join
 *   plot_end
 *
 * Owns scales, ticks and where ink goes. Knows nothing of nights: times are milliseconds since 1970-01-01 UTC, shown
 * in local time; values are numbers, and what is not finite is not drawn. Every text is escaped. */
#ifndef CLI_PLOT_H
#define CLI_PLOT_H

#include "cli/markup.h"

#include <stdint.h>

/* ---- scales ---- */

enum { TICKS_MAX = 16 };

/* Round values: 1, 2 or 5 times a power of ten apart. */
struct ticks {
    double at[TICKS_MAX];
    int n, decimals; /* decimals: that labels need to tell them apart */
};
/* Ticks from at or below low to at or above high; as many as fit into `most` (2 to TICKS_MAX). A range that is empty,
 * turned round or not finite is taken as one around its finite end, or around 0. */
void plot_ticks(double low, double high, int most, struct ticks *out);

struct time_tick {
    int64_t ms;
    char label[16]; /* "23:00", "3 Nov", "Nov 2026", "2026" */
};
/* Round moments of local time within [from, to]: quarters of an hour up to years; at most `most`. Returns how many. */
int plot_time_ticks(int64_t from_ms, int64_t to_ms, int most, struct time_tick out[TICKS_MAX]);

/* ---- a plot ---- */

struct plot {
    struct markup *out;
    const char *id;                 /* unique on the page; a name */
    const char *css;                /* classes of the svg element; names */
    const char *title, *description; /* for people who do not see it */
    double width, height;           /* CSS pixels */
    int64_t from_ms, to_ms;         /* axis of time; from < to */
    int axis_below;                 /* plot_end labels the time below the last panel */
    /* of the current panel: filled by plot_panel */
    double left, right, top, bottom, low, high;
};
void plot_begin(struct plot *plot);
/* From y = top, `height` high; values from low to high or a little more, as the ticks are round. unit: stands over the
 * axis. */
void plot_panel(struct plot *plot, double top, double height, double low, double high, const char *unit);
/* A panel without values, for bands alone. */
void plot_strip(struct plot *plot, double top, double height);
/* Where a moment and a value are, inside the panel's borders. */
double plot_x(const struct plot *plot, int64_t ms);
double plot_y(const struct plot *plot, double value);

struct plot_point {
    int64_t ms;
    double value;
};
/* In order of time. Broken where a value is not finite or more than gap_ms lie between two points. */
void plot_line(struct plot *plot, const struct plot_point *points, size_t n, int64_t gap_ms, const char *css);

struct plot_band {
    int64_t from_ms, to_ms;
    const char *css;   /* class */
    const char *label; /* written into it where it fits; "" none */
    const char *note;  /* shown when a pointer rests on it */
};
/* Over the whole height of the panel. In order of time. labels: 0 leaves them out. */
void plot_bands(struct plot *plot, const struct plot_band *bands, size_t n, int labels);
/* A bar from `from` up to `to`, in values, between two moments. */
void plot_bar(struct plot *plot, int64_t from_ms, int64_t to_ms, double from, double to, const char *css,
              const char *note);
void plot_dot(struct plot *plot, int64_t ms, double value, double radius, const char *css, const char *note);
/* A line straight up or down between two values. */
void plot_join(struct plot *plot, int64_t ms, double from, double to, const char *css);
void plot_end(struct plot *plot);

/* Columns of text of this size, nearly: to know what fits. */
double plot_text_width(const char *text);

#endif
