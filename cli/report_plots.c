/* The plots of the report. */
#include "cli/plot.h"
#include "cli/report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const int64_t DAY_MS = 86400000;
/* Two renderings: text keeps its size on a phone and on a desk. */
static const double widths[] = {720, 358};
static const char *const width_names[] = {"wide", "narrow"};
enum { N_WIDTHS = 2, AXIS_HEIGHT = 24 };
/* Beyond it a record is damaged, and no scale can show it beside others. */
static const double VALUE_MAX = 1e4;

static double plausible(double value) { return isfinite(value) && fabs(value) <= VALUE_MAX ? value : NAN; }

const char *report_verdict(const char *recorded) {
    static const char *const names[] = {"run", "throttle", "pause", "stop"};
    for (size_t i = 0; i < 4; i++)
        if (strcmp(recorded, names[i]) == 0) return names[i];
    return "other";
}

const char *report_verdict_words(const char *recorded) {
    static const char *const names[] = {"run", "throttle", "pause", "stop"};
    static const char *const words[] = {"running", "slowed down", "paused", "stopped"};
    for (size_t i = 0; i < 4; i++)
        if (strcmp(recorded, names[i]) == 0) return words[i];
    return "not known";
}

/* Lowest and highest of what was seen. */
struct extent {
    double low, high;
};
static void widen(struct extent *e, double value) {
    if (!isfinite(value)) return;
    if (!(e->low <= value)) e->low = value;
    if (!(e->high >= value)) e->high = value;
}

/* ---- days ---- */

/* Midnight before, local time; noon of the same day is day_of + DAY_MS / 2 but for daylight saving. */
static int64_t midnight(int64_t ms) {
    struct tm tm;
    time_t at = (time_t)(ms / 1000);
    if (!localtime_r(&at, &tm)) return ms;
    tm.tm_hour = tm.tm_min = tm.tm_sec = 0;
    tm.tm_isdst = -1;
    at = mktime(&tm);
    return at == (time_t)-1 ? ms : (int64_t)at * 1000;
}

enum { DAYS_LEAST = 14, BINS_MOST = 100 };

/* Days from the first night to the last, in bins of equal length. */
struct days {
    int64_t from_ms, to_ms;
    int bin, n; /* days in a bin; bins */
};

/* Days are an hour longer or shorter twice a year: the nearest whole one is meant. */
static int64_t day_of(const struct days *d, int64_t ms) {
    return (int64_t)llround((double)(midnight(ms) - d->from_ms) / (double)DAY_MS);
}

static struct days span(const struct nights *nights) {
    static const int bins[] = {1, 7, 28, 364};
    int64_t first = nights->items[0].night_ms, last = first;
    for (size_t i = 1; i < nights->n; i++) {
        if (nights->items[i].night_ms < first) first = nights->items[i].night_ms;
        if (nights->items[i].night_ms > last) last = nights->items[i].night_ms;
    }
    struct days d = {.from_ms = midnight(first)};
    int64_t n = day_of(&d, last) + 1;
    if (n < DAYS_LEAST) {
        d.from_ms = midnight(d.from_ms - (DAYS_LEAST - n) * DAY_MS + DAY_MS / 2);
        n = DAYS_LEAST;
    }
    int b = 0;
    while (b + 1 < 4 && n > (int64_t)bins[b] * BINS_MOST) b++;
    d.bin = bins[b];
    int64_t whole = (n + d.bin - 1) / d.bin;
    d.n = (int)(whole < 10 * BINS_MOST ? whole : 10 * BINS_MOST);
    d.to_ms = d.from_ms + (int64_t)d.n * d.bin * DAY_MS;
    return d;
}

/* ---- figures ---- */

static void legend_item(struct markup *out, const char *css, const char *text) {
    markup_add(out, "<li><span class=\"key %s\"></span>", css);
    markup_text(out, text);
    markup_add(out, "</li>\n");
}

static void describe(char *out, size_t size, const char *what, const struct extent *e, const char *unit) {
    if (isfinite(e->low)) snprintf(out, size, "%s from %.3g to %.3g %s. ", what, e->low, e->high, unit);
    else out[0] = '\0';
}

/* ---- held-out loss ---- */

static void draw_losses(struct plot *p, const struct nights *nights, const struct days *days, double radius) {
    char note[160];
    for (size_t i = nights->n_calls; i-- > 0;) {
        const attune_night *c = &nights->calls[i];
        double before = plausible(c->loss_before), after = plausible(c->loss_after);
        if (!isfinite(before) || !isfinite(after)) continue;
        int64_t night = c->night_ms ? c->night_ms : c->started_ms;
        int64_t at = days->from_ms + day_of(days, night) * DAY_MS + DAY_MS / 2;
        snprintf(note, sizeof note, "%s: %s, %s", cli_night_date(night).text, cli_loss(before, after).text,
                 c->adapter ? "published" : "not published");
        plot_join(p, at, before, after, c->adapter ? "join" : "join faint");
        plot_dot(p, at, before, radius, "before", NULL);
        plot_dot(p, at, after, radius, c->adapter ? "after" : "after refused", note);
    }
}

void report_plot_losses(struct markup *out, const struct nights *nights) {
    struct extent e = {NAN, NAN};
    char description[200], range[120];
    size_t n = 0;
    for (size_t i = 0; i < nights->n_calls; i++) {
        if (!isfinite(plausible(nights->calls[i].loss_before)) || !isfinite(plausible(nights->calls[i].loss_after)))
            continue;
        widen(&e, nights->calls[i].loss_before);
        widen(&e, nights->calls[i].loss_after);
        n++;
    }
    if (n == 0) {
        markup_add(out, "<p class=\"none\">No run has been judged yet.</p>\n");
        return;
    }
    struct days days = span(nights);
    describe(range, sizeof range, "Loss", &e, "nats a token");
    snprintf(description, sizeof description, "%zu run%s, each from its loss before to its loss after. %sThe table of "
             "nights has the figures.", n, n == 1 ? "" : "s", range);
    markup_add(out, "<figure>\n<ul class=\"legend\">\n");
    legend_item(out, "key-before", "before");
    legend_item(out, "key-after", "after, published");
    legend_item(out, "key-refused", "after, not published");
    markup_add(out, "</ul>\n");
    for (int w = 0; w < N_WIDTHS; w++) {
        struct plot p = {.out = out, .id = w ? "loss-narrow" : "loss-wide", .css = width_names[w],
                         .title = "Held-out loss by night", .description = description, .width = widths[w],
                         .height = 260, .from_ms = days.from_ms, .to_ms = days.to_ms, .axis_below = 1};
        plot_begin(&p);
        plot_panel(&p, 0, p.height - AXIS_HEIGHT, e.low, e.high, "nats a token");
        double pitch = (p.right - p.left) / ((double)days.n * days.bin);
        draw_losses(&p, nights, &days, fmin(fmax(pitch * 0.32, 1.5), 4));
        plot_end(&p);
    }
    markup_add(out, "</figure>\n");
}

/* ---- energy ---- */

struct energy {
    double measured, battery, modelled; /* Wh */
};

static void draw_energy(struct plot *p, const struct days *days, const struct energy *bins) {
    char note[200];
    for (int b = 0; b < days->n; b++) {
        const struct energy *e = &bins[b];
        int64_t from = days->from_ms + (int64_t)b * days->bin * DAY_MS, to = from + days->bin * DAY_MS;
        double one = e->measured, two = one + e->battery, three = two + e->modelled;
        if (!(three > 0)) continue;
        snprintf(note, sizeof note, "%s: %.2f Wh measured, %.2f from the battery, %.2f modelled",
                 cli_night_date(from + DAY_MS / 2).text, e->measured, e->battery, e->modelled);
        plot_bar(p, from, to, 0, one, "measured", note);
        plot_bar(p, from, to, one, two, "battery", note);
        plot_bar(p, from, to, two, three, "modelled", note);
    }
}

/* Wh of each bin; NULL: no memory. */
static struct energy *sum_energy(const struct nights *nights, const struct days *days, double *most) {
    struct energy *bins = calloc((size_t)days->n, sizeof *bins);
    *most = 0;
    for (size_t i = 0; bins && i < nights->n; i++) {
        const struct night *night = &nights->items[i];
        int64_t b = day_of(days, night->night_ms) / days->bin;
        if (b < 0 || b >= days->n) continue;
        bins[b].measured += night->joules_measured / 3600;
        bins[b].battery += night->joules_battery / 3600;
        bins[b].modelled += night->joules_modelled / 3600;
        *most = fmax(*most, bins[b].measured + bins[b].battery + bins[b].modelled);
    }
    return bins;
}

static const char *bin_name(int days) {
    return days == 1 ? "night" : days == 7 ? "week" : days == 28 ? "span of four weeks" : "year";
}

void report_plot_energy(struct markup *out, const struct nights *nights) {
    struct days days = span(nights);
    double most;
    char title[64], unit[32], description[200];
    struct energy *bins = sum_energy(nights, &days, &most);
    if (!bins) {
        out->failed = true;
        return;
    }
    if (!(most > 0)) {
        markup_add(out, "<p class=\"none\">No energy is recorded yet.</p>\n");
        free(bins);
        return;
    }
    snprintf(title, sizeof title, "Energy by %s", bin_name(days.bin));
    snprintf(unit, sizeof unit, "Wh in a %s", bin_name(days.bin));
    snprintf(description, sizeof description,
             "One bar for each %s, up to %.3g Wh, stacked by how it is known. The table "
             "of nights has the figures.",
             bin_name(days.bin), most);
    markup_add(out, "<figure>\n<ul class=\"legend\">\n");
    legend_item(out, "measured", "measured by a counter");
    legend_item(out, "battery", "from the battery");
    legend_item(out, "modelled", "modelled");
    markup_add(out, "</ul>\n");
    for (int w = 0; w < N_WIDTHS; w++) {
        struct plot p = {.out = out, .id = w ? "energy-narrow" : "energy-wide", .css = width_names[w], .title = title,
                         .description = description, .width = widths[w], .height = 220, .from_ms = days.from_ms,
                         .to_ms = days.to_ms, .axis_below = 1};
        plot_begin(&p);
        plot_panel(&p, 0, p.height - AXIS_HEIGHT, 0, most, unit);
        draw_energy(&p, &days, bins);
        plot_end(&p);
    }
    if (days.bin != 1) markup_add(out, "<figcaption>One bar for each %s.</figcaption>\n", bin_name(days.bin));
    markup_add(out, "</figure>\n");
    free(bins);
}

/* ---- a night, closely ---- */

enum { STRIP_HEIGHT = 22, PANEL_HEIGHT = 112, PANEL_SPACE = 12, N_PANELS = 3, REASONS_SHOWN = 8 };
static const int64_t GAP_MS = 5 * 60000, SPAN_LEAST_MS = 10 * 60000;

struct panel {
    const char *unit, *css;
    size_t offset; /* of the double in struct moment */
    double least;  /* that the scale spans */
};
static const struct panel panels[N_PANELS] = {
    {"training loss, nats a token", "line loss", offsetof(struct moment, loss), 0},
    {"temperature, \xC2\xB0""C", "line celsius", offsetof(struct moment, celsius), 10},
    {"power, W", "line watts", offsetof(struct moment, watts), 2},
};

static double value_of(const struct moment *m, const struct panel *panel) {
    double value;
    memcpy(&value, (const char *)m + panel->offset, sizeof value);
    return plausible(value);
}

/* Decisions that follow each other and are the same become one band. notes: (n) room for what each says. */
static size_t make_bands(const struct night_moments *close, struct plot_band *bands, struct words *notes) {
    size_t n = 0;
    const struct moment *begun = NULL;
    for (size_t i = 0; i < close->n; i++) {
        const struct moment *m = &close->items[i];
        bool same = begun && strcmp(begun->verdict, m->verdict) == 0 && strcmp(begun->reason, m->reason) == 0 &&
                    m->time_ms <= bands[n - 1].to_ms;
        if (same) {
            bands[n - 1].to_ms = m->until_ms;
            continue;
        }
        begun = m;
        const char *words = report_verdict_words(m->verdict);
        snprintf(notes[n].text, sizeof notes[n].text, "%.14s%s%.40s", words, m->reason[0] ? ": " : "", m->reason);
        bands[n] = (struct plot_band){m->time_ms, m->until_ms, report_verdict(m->verdict),
                                      m->reason[0] ? m->reason : words, notes[n].text};
        n++;
    }
    return n;
}

static void draw_panel(struct plot *p, const struct panel *panel, const struct night_moments *close, double top,
                       const struct plot_band *bands, size_t n_bands, struct plot_point *points) {
    struct extent e = {NAN, NAN};
    for (size_t i = 0; i < close->n; i++) {
        points[i] = (struct plot_point){close->items[i].time_ms, value_of(&close->items[i], panel)};
        widen(&e, points[i].value);
    }
    if (e.high - e.low < panel->least) {
        double add = (panel->least - (e.high - e.low)) / 2;
        e.low = e.low >= 0 ? fmax(0, e.low - add) : e.low - add;
        e.high += add;
    }
    plot_panel(p, top, PANEL_HEIGHT, e.low, e.high, panel->unit);
    markup_add(p->out, "<g class=\"faint-bands\">\n");
    plot_bands(p, bands, n_bands, 0);
    markup_add(p->out, "</g>\n");
    plot_line(p, points, close->n, GAP_MS, panel->css);
}

static bool is_known(const struct night_moments *close, const struct panel *panel) {
    for (size_t i = 0; i < close->n; i++)
        if (isfinite(value_of(&close->items[i], panel))) return true;
    return false;
}

static void draw_night(struct markup *out, const struct night_moments *close, int number, int w,
                       const struct plot_band *bands, size_t n_bands, struct plot_point *points) {
    char id[32], title[96], description[200];
    int n = 0;
    for (int i = 0; i < N_PANELS; i++) n += is_known(close, &panels[i]);
    snprintf(id, sizeof id, "night-%d-%s", number, width_names[w]);
    snprintf(title, sizeof title, "Night of %s", cli_night_date(close->night->night_ms).text);
    snprintf(description, sizeof description, "%zu decision%s over time%s. The tables below have the figures.", n_bands,
             n_bands == 1 ? "" : "s", n ? ", with training loss, temperature and power as far as they were known" : "");
    struct plot p = {.out = out, .id = id, .css = width_names[w], .title = title, .description = description,
                     .width = widths[w], .height = STRIP_HEIGHT + n * (PANEL_SPACE + PANEL_HEIGHT) + AXIS_HEIGHT,
                     .from_ms = close->items[0].time_ms, .to_ms = close->items[close->n - 1].until_ms, .axis_below = 1};
    if (p.to_ms - p.from_ms < SPAN_LEAST_MS) p.to_ms = p.from_ms + SPAN_LEAST_MS;
    plot_begin(&p);
    plot_strip(&p, 0, STRIP_HEIGHT);
    plot_bands(&p, bands, n_bands, 1);
    double top = STRIP_HEIGHT + PANEL_SPACE;
    for (int i = 0; i < N_PANELS; i++) {
        if (!is_known(close, &panels[i])) continue;
        draw_panel(&p, &panels[i], close, top, bands, n_bands, points);
        top += PANEL_HEIGHT + PANEL_SPACE;
    }
    plot_end(&p);
}

/* What kept the work from running, and for how long in all; the longest first. */
static void caption_night(struct markup *out, const struct plot_band *bands, size_t n) {
    struct sum {
        const struct plot_band *band;
        int64_t ms;
    } sums[REASONS_SHOWN] = {{NULL, 0}};
    size_t kinds = 0;
    for (size_t i = 0; i < n; i++) {
        if (strcmp(bands[i].css, "run") == 0) continue;
        size_t k = 0;
        while (k < kinds && strcmp(sums[k].band->note, bands[i].note) != 0) k++;
        if (k == REASONS_SHOWN) continue; /* the table has it */
        if (k == kinds) sums[kinds++] = (struct sum){&bands[i], 0};
        sums[k].ms += bands[i].to_ms - bands[i].from_ms;
    }
    if (kinds == 0) return;
    markup_add(out, "<figcaption>");
    while (true) {
        size_t most = 0;
        for (size_t k = 1; k < kinds; k++)
            if (sums[k].ms > sums[most].ms) most = k;
        if (sums[most].ms <= 0) break;
        markup_add(out, "<span class=\"key %s\"></span>", sums[most].band->css);
        markup_text(out, sums[most].band->note);
        markup_add(out, ", %s<br/>\n", cli_duration((double)sums[most].ms / 1000).text);
        sums[most].ms = 0;
    }
    markup_add(out, "</figcaption>\n");
}

void report_plot_night(struct markup *out, const struct night_moments *close, int number) {
    struct plot_band *bands = calloc(close->n, sizeof *bands);
    struct words *notes = calloc(close->n, sizeof *notes);
    struct plot_point *points = calloc(close->n, sizeof *points);
    if (bands && notes && points) {
        size_t n = make_bands(close, bands, notes);
        markup_add(out, "<figure>\n<ul class=\"legend\">\n");
        legend_item(out, "run", "running");
        legend_item(out, "throttle", "slowed down");
        legend_item(out, "pause", "paused");
        legend_item(out, "stop", "stopped");
        markup_add(out, "</ul>\n");
        for (int w = 0; w < N_WIDTHS; w++) draw_night(out, close, number, w, bands, n, points);
        caption_night(out, bands, n);
        markup_add(out, "</figure>\n");
    } else {
        out->failed = true;
    }
    free(bands);
    free(notes);
    free(points);
}
