/* The page around the plots: head, figures in words, tables. HTML that is well-formed XML, so that a program can check
 * it and read it. */
#include "cli/report.h"

#include <math.h>
#include <string.h>

enum { NIGHTS_SHOWN = 10, ADAPTERS_SHOWN = 10, DECISIONS_MAX = 100, READINGS_MAX = 25 };

/* No script runs and nothing is fetched, even if a mistake of ours let markup in. */
static const char head[] =
    "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>\n"
    "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n"
    "<meta name=\"color-scheme\" content=\"light dark\"/>\n<meta name=\"robots\" content=\"noindex\"/>\n"
    "<title>attune: what the nights did</title>\n<style>\n";

/* Colours first: light, then dark; each pair of text and ground has a contrast of 4.5 or more. */
static const char colours[] =
    ":root{color-scheme:light dark;--ground:#fbfaf8;--card:#fff;--ink:#22252a;--soft:#5d646e;--edge:#e2dfd9;"
    "--grid:#ebe8e3;--accent:#0b6e6e;--measured:#0b6e6e;--battery:#c98a1b;--modelled:#9aa5b1;--loss:#5b4bb7;"
    "--celsius:#b8432f;--watts:#2f6db8;--run:#8fc7a6;--throttle:#ecd07a;--pause:#9fbfe8;--stop:#e6a396;--other:#c9c9c9;"
    "--band-ink:#22252a}\n"
    "@media (prefers-color-scheme:dark){:root{--ground:#16181b;--card:#1e2125;--ink:#e7e5e1;--soft:#a2a8b0;"
    "--edge:#33373d;--grid:#2a2e33;--accent:#5cc5c0;--measured:#4db3ae;--battery:#dba743;--modelled:#6f7a86;"
    "--loss:#a99cf0;--celsius:#f0907c;--watts:#83b4ee;--run:#2f6b4a;--throttle:#7d6720;--pause:#345a8a;--stop:#8a4034;"
    "--other:#555;--band-ink:#f2f0ec}}\n";

static const char style[] =
    "*{box-sizing:border-box}\n"
    "body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,sans-serif}\n"
    "main{max-width:840px;margin:0 auto;padding:28px 16px 56px}\n"
    "h1{font-size:1.7rem;line-height:1.2;margin:0 0 .2rem;letter-spacing:-.01em}\n"
    "h2{font-size:1.2rem;margin:2.6rem 0 .3rem}\nh3{font-size:1rem;margin:1.6rem 0 .4rem}\n"
    "p{margin:.3rem 0 "
    ".7rem}\n.soft,.none,figcaption,footer{color:var(--soft)}\n.soft,figcaption,footer{font-size:.875rem}\n"
    "code{font:.9em ui-monospace,monospace}\n"
    ".cards{display:grid;grid-template-columns:repeat(2,1fr);gap:12px;margin:1.2rem 0 1rem;padding:0;list-style:none}\n"
    ".cards li{background:var(--card);border:1px solid var(--edge);border-radius:10px;padding:12px 14px}\n"
    ".cards span{display:block;font-size:.8125rem;color:var(--soft)}\n"
    ".cards strong{display:block;font-size:1.35rem;line-height:1.3;font-weight:650;font-variant-numeric:tabular-nums}\n"
    "figure{margin:.6rem 0 .8rem}\n"
    ".legend{display:flex;flex-wrap:wrap;gap:2px 16px;margin:0 0 8px;padding:0;list-style:none;font-size:.8125rem;"
    "color:var(--soft)}\n"
    ".key{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:6px;border:2px solid transparent;"
    "background-clip:border-box}\n"
    ".key.measured{background:var(--measured)}.key.battery{background:var(--battery)}"
    ".key.modelled{background:var(--modelled)}\n"
    ".key.run{background:var(--run)}.key.throttle{background:var(--throttle)}.key.pause{background:var(--pause)}"
    ".key.stop{background:var(--stop)}.key.other{background:var(--other)}\n"
    ".key-before,.key-after,.key-refused{border-radius:50%}\n"
    ".key-before{border-color:var(--soft)}.key-after{background:var(--accent)}.key-refused{background:var(--modelled)}"
    "\n"
    ".plot{display:block;width:100%;height:auto;font:12px system-ui,sans-serif}\n"
    ".plot.wide{display:none}.plot.narrow{max-width:480px}\n"
    "@media (min-width:700px){.plot.wide{display:block}.plot.narrow{display:none}"
    ".cards{grid-template-columns:repeat(4,1fr)}}\n"
    ".tick,.unit{fill:var(--soft)}.end{text-anchor:end}.middle{text-anchor:middle}\n"
    ".grid{stroke:var(--grid)}.axis{stroke:var(--edge);stroke-width:1.5}\n"
    ".line{fill:none;stroke-width:1.6;stroke-linejoin:round;stroke-linecap:round}\n"
    ".line.loss{stroke:var(--loss)}.line.celsius{stroke:var(--celsius)}.line.watts{stroke:var(--watts)}\n"
    "rect.measured{fill:var(--measured)}rect.battery{fill:var(--battery)}rect.modelled{fill:var(--modelled)}\n"
    "rect.run{fill:var(--run)}rect.throttle{fill:var(--throttle)}rect.pause{fill:var(--pause)}"
    "rect.stop{fill:var(--stop)}rect.other{fill:var(--other)}\n"
    ".faint-bands .band{opacity:.22}.band-label{fill:var(--band-ink);font-size:11px}\n"
    ".join{stroke:var(--accent);stroke-width:1.5;opacity:.55}.join.faint{stroke:var(--modelled)}\n"
    ".before{fill:var(--ground);stroke:var(--soft);stroke-width:1.3}.after{fill:var(--accent)}"
    ".after.refused{fill:var(--modelled)}\n"
    ".scroll{overflow-x:auto;border:1px solid var(--edge);border-radius:10px;background:var(--card);margin:.5rem 0 "
    ".8rem}\n"
    "table{border-collapse:collapse;width:100%;font-size:.875rem;font-variant-numeric:tabular-nums}\n"
    "th,td{padding:7px 12px;text-align:left;white-space:nowrap;border-top:1px solid var(--edge);vertical-align:top}\n"
    "thead th{border-top:0;font-weight:600;color:var(--soft)}tbody th{font-weight:600}\n"
    ".n{text-align:right}td.why{white-space:normal;min-width:12rem}\n"
    ".folds th,.folds td{padding-left:9px;padding-right:9px}\n"
    ".more td{border-top:0;padding-top:0;white-space:normal;color:var(--soft)}\n"
    "caption{text-align:left;padding:8px 12px 4px;color:var(--soft);font-size:.8125rem}\n"
    "details{margin:.4rem 0}summary{cursor:pointer;color:var(--accent);font-size:.875rem}\n"
    "footer{margin-top:3rem;border-top:1px solid var(--edge);padding-top:.8rem}\n"
    ":focus-visible{outline:2px solid var(--accent);outline-offset:2px}\n"
    "@media (max-width:699px){"
    ".folds thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}"
    ".folds,.folds caption,.folds tbody{display:block}"
    ".folds tr{display:grid;grid-template-columns:1fr 1fr;column-gap:20px;padding:8px 12px;"
    "border-top:1px solid var(--edge)}"
    ".folds tr.more{display:block;border-top:0;padding-top:0}"
    ".folds th,.folds td{display:flex;justify-content:space-between;gap:8px;padding:1px 0;border:0}"
    ".folds .more td{display:block}.folds tbody th{grid-column:1/-1}"
    ".folds td::before{color:var(--soft)}.folds .more td::before{content:none}"
    ".nights td:nth-child(2)::before{content:\"worked\"}.nights td:nth-child(3)::before{content:\"tokens\"}"
    ".nights td:nth-child(4)::before{content:\"energy\"}.nights td:nth-child(5)::before{content:\"known\"}"
    ".nights td:nth-child(6)::before{content:\"loss\"}.nights td:nth-child(7)::before{content:\"adapter\"}"
    ".nights td:nth-child(8)::before{content:\"hottest\"}"
    ".adapters td:nth-child(2)::before{content:\"state\"}.adapters td:nth-child(3)::before{content:\"parent\"}"
    ".adapters td:nth-child(4)::before{content:\"made\"}.adapters td:nth-child(5)::before{content:\"examples\"}"
    ".adapters td:nth-child(6)::before{content:\"loss\"}.adapters td:nth-child(7)::before{content:\"merging\"}"
    ".adapters td:nth-child(8)::before{content:\"size\"}.adapters tbody th::before{content:\"Adapter\";"
    "margin-right:-4px}.adapters tbody th{justify-content:flex-start}"
    ".folds td:nth-child(6){grid-column:1/-1}}\n"
    "@media print{body{background:#fff}.scroll{overflow:visible}}\n";

/* ---- parts ---- */

static void cell(struct markup *out, const char *css, const char *text) {
    if (css) markup_add(out, "<td class=\"%s\">", css);
    else markup_add(out, "<td>");
    markup_text(out, text);
    markup_add(out, "</td>");
}

/* columns: names, NULL at the end; one that begins with # is of numbers. caption: what the table is. css: its class. */
static void table_begin(struct markup *out, const char *css, const char *caption, const char *const *columns) {
    markup_add(out, "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"");
    markup_text(out, caption);
    markup_add(out, "\">\n<table class=\"%s\">\n<caption>", css);
    markup_text(out, caption);
    markup_add(out, "</caption>\n<thead><tr>");
    for (; *columns; columns++) {
        bool number = **columns == '#';
        markup_add(out, "<th scope=\"col\"%s>", number ? " class=\"n\"" : "");
        markup_text(out, *columns + number);
        markup_add(out, "</th>");
    }
    markup_add(out, "</tr></thead>\n<tbody>\n");
}

static void table_end(struct markup *out) { markup_add(out, "</tbody>\n</table>\n</div>\n"); }

static void card(struct markup *out, const char *name, const char *value, const char *more) {
    markup_add(out, "<li><span>");
    markup_text(out, name);
    markup_add(out, "</span><strong>");
    markup_text(out, value);
    markup_add(out, "</strong><span>");
    markup_text(out, more);
    markup_add(out, "</span></li>\n");
}

static struct words number_words(double value, const char *format) {
    struct words w = {"-"};
    if (isfinite(value) && fabs(value) < 1e9) snprintf(w.text, sizeof w.text, format, value);
    return w;
}

static struct words clock_words(int64_t ms) {
    struct words w = cli_time(ms);
    size_t n = strlen(w.text);
    if (n > 5) memmove(w.text, w.text + n - 5, 6);
    return w;
}

static struct words change(double before, double after) {
    struct words w = {""};
    double share = 100 * (after - before) / before;
    if (isfinite(share) && before > 0)
        snprintf(w.text, sizeof w.text, "%s%.1f %%", share > 0 ? "+" : "\xE2\x88\x92", fabs(share));
    return w;
}

/* ---- the headline ---- */

struct total {
    size_t nights, worked, published;
    double joules, measured, battery, modelled, seconds;
    int64_t marked;
};

static struct total sum(const struct nights *nights) {
    struct total t = {.nights = nights->n};
    for (size_t i = 0; i < nights->n; i++) {
        const struct night *n = &nights->items[i];
        t.worked += n->tokens > 0;
        t.published += (size_t)n->published;
        t.joules += n->joules;
        t.measured += n->joules_measured;
        t.battery += n->joules_battery;
        t.modelled += n->joules_modelled;
        t.seconds += n->work_seconds;
        t.marked += n->marked;
    }
    return t;
}

static const attune_adapter_info *active_adapter(const struct report *r) {
    for (size_t i = 0; i < r->n_adapters; i++)
        if (r->adapters[i].info.active) return &r->adapters[i].info;
    return NULL;
}

/* A lamp is known to everybody, and 10 W is what a bright LED bulb takes: Wh / 10 are its hours. */
static struct words lamp(double joules) {
    static const double lamp_watts = 10;
    struct words w;
    double hours = joules / 3600 / lamp_watts;
    if (hours >= 48) snprintf(w.text, sizeof w.text, "a 10 W lamp for %.0f days", hours / 24);
    else if (hours >= 2) snprintf(w.text, sizeof w.text, "a 10 W lamp for %.0f hours", hours);
    else snprintf(w.text, sizeof w.text, "a 10 W lamp for %.0f min", hours * 60);
    return w;
}

static void sentence(struct markup *out, const struct report *r, const struct total *t,
                     const attune_adapter_info *active) {
    markup_add(out, "<p>");
    if (t->nights == 0) {
        markup_add(out, "No night has been recorded yet. <code>attune nightly --explain</code> tells whether it would "
                        "train now, and why.");
    } else {
        markup_add(out, "attune trained in %zu of %zu night%s, for %s in all, and published %zu adapter%s. ", t->worked,
                   t->nights, t->nights == 1 ? "" : "s", t->seconds > 0 ? cli_duration(t->seconds).text : "no time",
                   t->published, t->published == 1 ? "" : "s");
    }
    if (t->nights > 0 && active) markup_add(out, "Adapter %d answers now.", active->number);
    else if (t->nights > 0) markup_add(out, "The base model answers now.");
    markup_add(out, " %s example%s wait%s to be learned.</p>\n", cli_count(r->status.examples_new).text,
               r->status.examples_new == 1 ? "" : "s", r->status.examples_new == 1 ? "s" : "");
}

static void headline(struct markup *out, const struct report *r) {
    struct total t = sum(&r->nights);
    const attune_adapter_info *active = active_adapter(r);
    struct words value;
    char more[160];
    markup_add(out, "<header>\n<h1>What the nights did</h1>\n<p class=\"soft\">attune on this device, ");
    markup_text(out, r->status.base_name[0] ? r->status.base_name : "base model");
    markup_add(out, ", as of %s</p>\n</header>\n", cli_time(r->now_ms).text);
    sentence(out, r, &t, active);
    markup_add(out, "<ul class=\"cards\">\n");
    if (active) {
        snprintf(value.text, sizeof value.text, "%d", active->number);
        snprintf(more, sizeof more, "since %s", cli_night_date(active->created_ms).text);
        card(out, "Active adapter", value.text, more);
    } else {
        card(out, "Active adapter", "none", "the base answers");
    }
    snprintf(more, sizeof more, "%zu with training", t.worked);
    card(out, "Nights", cli_count((int64_t)t.nights).text, more);
    card(out, "Energy", t.joules > 0 ? cli_energy(t.joules).text : "-",
         t.joules > 0 ? lamp(t.joules).text : "none yet");
    if (active && isfinite(active->loss_after) && isfinite(active->loss_before)) {
        snprintf(more, sizeof more, "from %.3f, %s", active->loss_before,
                 change(active->loss_before, active->loss_after).text);
        card(out, "Held-out loss", number_words(active->loss_after, "%.3f").text, more);
    } else {
        card(out, "Held-out loss", "-", "not measured");
    }
    markup_add(out, "</ul>\n");
}

/* ---- sections ---- */

static void night_row(struct markup *out, const struct night *n) {
    char ending[320];
    cli_night_ending(n, ending, sizeof ending);
    markup_add(out, "<tr><th scope=\"row\">%s</th>", cli_night_date(n->night_ms).text);
    cell(out, "n", n->work_seconds > 0 ? cli_duration(n->work_seconds).text : "-");
    cell(out, "n", cli_count(n->tokens).text);
    cell(out, "n", n->joules > 0 ? cli_energy(n->joules).text : "-");
    markup_add(out, "<td>%s", cli_night_known(n));
    if (n->marked > 0) markup_add(out, ", %s gap%s", cli_count(n->marked).text, n->marked == 1 ? "" : "s");
    markup_add(out, "</td>");
    cell(out, "n", cli_loss(n->loss_before, n->loss_after).text);
    if (n->adapter) markup_add(out, "<td class=\"n\">%d</td>", n->adapter);
    else cell(out, "n", "-");
    cell(out, "n", number_words(n->celsius_max, "%.0f \xC2\xB0""C").text);
    markup_add(out, "</tr>\n<tr class=\"more\"><td colspan=\"8\">");
    markup_text(out, ending);
    markup_add(out, "</td></tr>\n");
}

static void nights_table(struct markup *out, const char *caption, const struct night *nights, size_t n) {
    static const char *const columns[] = {"Night", "#Worked", "#Tokens", "#Energy", "How known", "#Held-out loss",
                                          "#Adapter", "#Hottest", NULL};
    table_begin(out, "folds nights", caption, columns);
    for (size_t i = 0; i < n; i++) night_row(out, &nights[i]);
    table_end(out);
}

static void nights_section(struct markup *out, const struct nights *nights) {
    char caption[64];
    size_t shown = nights->n < NIGHTS_SHOWN ? nights->n : NIGHTS_SHOWN;
    markup_add(out, "<section>\n<h2>Nights</h2>\n");
    nights_table(out, shown < nights->n ? "The newest nights" : "All nights", nights->items, shown);
    if (shown < nights->n) {
        snprintf(caption, sizeof caption, "%zu older nights", nights->n - shown);
        markup_add(out, "<details><summary>%s</summary>\n", caption);
        nights_table(out, caption, nights->items + shown, nights->n - shown);
        markup_add(out, "</details>\n");
    }
    markup_add(out, "</section>\n");
}

static void losses_section(struct markup *out, const struct nights *nights) {
    markup_add(out,
               "<section>\n<h2>What was learned</h2>\n<p class=\"soft\">Held-out loss: how much the answers surprise "
               "the model, over rows that it had not learned from. Lower is better. Before and after are measured on "
               "the same rows; other nights may have had other rows.</p>\n");
    report_plot_losses(out, nights);
    markup_add(out, "</section>\n");
}

static void energy_section(struct markup *out, const struct nights *nights) {
    struct total t = sum(nights);
    char parts[160];
    cli_energy_parts(t.measured, t.battery, t.modelled, parts, sizeof parts);
    markup_add(out, "<section>\n<h2>Energy</h2>\n<p class=\"soft\">");
    if (t.joules > 0) markup_add(out, "%s in all: %s. ", cli_energy(t.joules).text, parts);
    markup_add(out, "A counter measures the whole processor while attune works; modelled is an estimate from processor "
                    "time.");
    if (t.marked > 0)
        markup_add(out, " %s gap%s in what was measured %s by the model.", cli_count(t.marked).text,
                   t.marked == 1 ? "" : "s", t.marked == 1 ? "is filled" : "are filled");
    markup_add(out, "</p>\n");
    report_plot_energy(out, nights);
    markup_add(out, "</section>\n");
}

/* ---- the last nights ---- */

static bool is_same_decision(const struct moment *a, const struct moment *b) {
    return strcmp(a->verdict, b->verdict) == 0 && strcmp(a->reason, b->reason) == 0 && b->time_ms <= a->until_ms;
}

/* Index behind the last moment of the decision that begins at `from`. */
static size_t decision_end(const struct night_moments *close, size_t from) {
    size_t i = from + 1;
    while (i < close->n && is_same_decision(&close->items[i - 1], &close->items[i])) i++;
    return i;
}

static void decisions_table(struct markup *out, const struct night_moments *close) {
    static const char *const columns[] = {"Time", "Decision", "#For", "Why", NULL};
    size_t n = 0, shown = 0;
    for (size_t i = 0; i < close->n; i = decision_end(close, i)) n++;
    markup_add(out, "<details><summary>%zu decision%s</summary>\n", n, n == 1 ? "" : "s");
    table_begin(out, "plain", n > DECISIONS_MAX ? "The first 100 decisions" : "Decisions", columns);
    for (size_t i = 0; i < close->n && shown < DECISIONS_MAX; shown++) {
        const struct moment *m = &close->items[i];
        size_t end = decision_end(close, i);
        markup_add(out, "<tr><th scope=\"row\">%s</th>", clock_words(m->time_ms).text);
        cell(out, NULL, report_verdict_words(m->verdict));
        cell(out, "n", cli_duration((double)(close->items[end - 1].until_ms - m->time_ms) / 1000).text);
        cell(out, "why", m->reason);
        markup_add(out, "</tr>\n");
        i = end;
    }
    table_end(out);
    markup_add(out, "</details>\n");
}

static void readings_table(struct markup *out, const struct night_moments *close) {
    static const char *const columns[] = {"Time", "#Training loss", "#Temperature", "#Power", "#Battery", NULL};
    size_t every = (close->n + READINGS_MAX - 1) / READINGS_MAX;
    markup_add(out, "<details><summary>Readings</summary>\n");
    table_begin(out, "plain", every > 1 ? "Some of the readings" : "Readings", columns);
    for (size_t i = 0; i < close->n; i += every) {
        const struct moment *m = &close->items[i];
        markup_add(out, "<tr><th scope=\"row\">%s</th>", clock_words(m->time_ms).text);
        cell(out, "n", number_words(m->loss, "%.3f").text);
        cell(out, "n", number_words(m->celsius, "%.1f \xC2\xB0""C").text);
        cell(out, "n", number_words(m->watts, "%.1f W").text);
        cell(out, "n", number_words(m->percent, "%.0f %%").text);
        markup_add(out, "</tr>\n");
    }
    table_end(out);
    markup_add(out, "</details>\n");
}

static void close_section(struct markup *out, const struct report *r) {
    if (r->n_close == 0) return;
    markup_add(out,
               "<section>\n<h2>The last nights, closely</h2>\n<p class=\"soft\">What the device allowed, and what the "
               "work did to it.</p>\n");
    for (size_t i = 0; i < r->n_close; i++) {
        const struct night_moments *close = &r->close[i];
        markup_add(out, "<h3>Night of %s</h3>\n", cli_night_date(close->night->night_ms).text);
        report_plot_night(out, close, (int)i + 1);
        decisions_table(out, close);
        readings_table(out, close);
    }
    markup_add(out, "</section>\n");
}

/* ---- adapters ---- */

static void adapter_row(struct markup *out, const struct report_adapter *a) {
    const attune_adapter_info *i = &a->info;
    struct words parent = {"base"}, drift = {"-"};
    char state[sizeof i->state + sizeof i->reason + 16];
    if (i->parent) snprintf(parent.text, sizeof parent.text, "%d", i->parent);
    if (isfinite(a->kl)) snprintf(drift.text, sizeof drift.text, "%s: %.4f nats", a->merge, a->kl);
    markup_add(out, "<tr><th scope=\"row\">%d</th>", i->number);
    snprintf(state, sizeof state, "%s%s%s%s", i->state, strcmp(i->origin, "imported") == 0 ? ", imported" : "",
             i->reason[0] ? ": " : "", i->reason);
    cell(out, NULL, state);
    cell(out, NULL, parent.text);
    cell(out, NULL, cli_night_date(i->created_ms).text);
    cell(out, "n", cli_count(i->examples).text);
    cell(out, "n", cli_loss(i->loss_before, i->loss_after).text);
    cell(out, "n", drift.text);
    cell(out, "n", cli_bytes((double)i->bytes).text);
    markup_add(out, "</tr>\n");
}

static void adapters_table(struct markup *out, const char *caption, const struct report_adapter *adapters, size_t n) {
    static const char *const columns[] = {"Number", "State", "Parent", "Made", "#Examples", "#Held-out loss",
                                          "#Merging costs", "#Size", NULL};
    table_begin(out, "folds adapters", caption, columns);
    for (size_t i = 0; i < n; i++) adapter_row(out, &adapters[i]);
    table_end(out);
}

static void adapters_section(struct markup *out, const struct report *r) {
    char caption[64];
    size_t shown = r->n_adapters < ADAPTERS_SHOWN ? r->n_adapters : ADAPTERS_SHOWN;
    markup_add(out, "<section>\n<h2>Adapters</h2>\n");
    if (r->n_adapters == 0) {
        markup_add(out, "<p class=\"none\">None yet: the base answers.</p>\n</section>\n");
        return;
    }
    markup_add(out,
               "<p class=\"soft\">Each is a version that <code>attune adapters use</code> can go back to, unless it is "
               "revoked. What merging costs is how far the merged answers are from the adapter's own.</p>\n");
    adapters_table(out, shown < r->n_adapters ? "The newest adapters" : "All adapters", r->adapters, shown);
    if (shown < r->n_adapters) {
        snprintf(caption, sizeof caption, "%zu older adapters", r->n_adapters - shown);
        markup_add(out, "<details><summary>%s</summary>\n", caption);
        adapters_table(out, caption, r->adapters + shown, r->n_adapters - shown);
        markup_add(out, "</details>\n");
    }
    markup_add(out, "</section>\n");
}

void report_page(struct markup *out, const struct report *r) {
    markup_add(out, "%s%s%s</style>\n</head>\n<body>\n<main>\n", head, colours, style);
    headline(out, r);
    if (r->nights.n > 0) {
        losses_section(out, &r->nights);
    }
    report_learned(out, r);
    if (r->nights.n > 0) {
        energy_section(out, &r->nights);
        close_section(out, r);
        nights_section(out, &r->nights);
    }
    adapters_section(out, r);
    markup_add(out,
               "<footer>Made by attune %s. This page holds %s; it runs no script and loads "
               "nothing.</footer>\n</main>\n</body>\n</html>\n",
               attune_version(),
               r->texts ? "texts that were recorded, and is for your own eyes"
                        : "figures alone, nothing of what was recorded");
}
