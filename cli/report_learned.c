/* What was learned, on the page: habits of the answers as bars and a table; texts only where they were asked for. */
#include "cli/report.h"

#include <math.h>
#include <string.h>

enum { ROW_HEIGHT = 46, BAR_HEIGHT = 12, WORDS_SHOWN = 15, ROWS_SHOWN = 10, ANSWERS_SHOWN = 4 };

/* ---- bars ---- */

struct bars {
    struct markup *out;
    double width, y;
    char description[1500];
    size_t n;
};

static bool is(const attune_learned_style *s, const char *verdict) { return strcmp(s->verdict, verdict) == 0; }

static void text_at(struct markup *out, double x, double y, const char *css, const char *text) {
    markup_add(out, "<text class=\"%s\" x=\"", css);
    markup_number(out, x);
    markup_add(out, "\" y=\"");
    markup_number(out, y);
    markup_add(out, "\">");
    markup_text(out, text);
    markup_add(out, "</text>\n");
}

/* Base above adapter, both of the row's own scale: what is counted differs from row to row. */
static void draw_bar(struct bars *b, double y, double value, double most, const attune_learned_style *s,
                     const char *css) {
    double room = b->width - 76, length = most > 0 ? room * value / most : 0;
    markup_add(b->out, "<rect class=\"%s\" x=\"0\" y=\"", css);
    markup_number(b->out, y);
    markup_add(b->out, "\" height=\"%d\" width=\"", BAR_HEIGHT);
    markup_number(b->out, fmax(length, 1));
    markup_add(b->out, "\"/>\n");
    text_at(b->out, fmax(length, 1) + 6, y + BAR_HEIGHT - 2, "tick", cli_style_figure(s->unit, value).text);
}

static int draw_style(const attune_learned_style *s, void *user) {
    struct bars *b = user;
    if (!is(s, "different")) return 0;
    double most = fmax(s->base, s->adapter);
    text_at(b->out, 0, b->y + 12, "tick", s->title);
    draw_bar(b, b->y + 17, s->base, most, s, "modelled");
    draw_bar(b, b->y + 30, s->adapter, most, s, "measured");
    b->y += ROW_HEIGHT + 6;
    return 0;
}

static int describe_style(const attune_learned_style *s, void *user) {
    struct bars *b = user;
    size_t used = strlen(b->description);
    if (!is(s, "different")) return 0;
    b->n++;
    snprintf(b->description + used, sizeof b->description - used, "%s: %s of the base, %s of the adapter. ", s->title,
             cli_style_figure(s->unit, s->base).text, cli_style_figure(s->unit, s->adapter).text);
    return 0;
}

static void draw_styles(struct markup *out, const attune_learned *learned) {
    static const double widths[] = {720, 358};
    static const char *const names[] = {"wide", "narrow"};
    struct bars b = {.out = out};
    attune_learned_styles(learned, describe_style, &b, NULL);
    if (b.n == 0) {
        markup_add(out, "<p class=\"none\">No habit of its answers is clearly another one.</p>\n");
        return;
    }
    markup_add(out, "<figure>\n<ul class=\"legend\">\n<li><span class=\"key modelled\"></span>base</li>\n"
                    "<li><span class=\"key measured\"></span>adapter</li>\n</ul>\n");
    for (int w = 0; w < 2; w++) {
        double height = (double)b.n * (ROW_HEIGHT + 6);
        markup_add(out,
                   "<svg class=\"plot %s\" role=\"img\" aria-labelledby=\"habits-%s-t habits-%s-d\" viewBox=\"0 0 %.0f "
                   "%.0f\" width=\"%.0f\" height=\"%.0f\">\n<title id=\"habits-%s-t\">Habits that differ</title>\n"
                   "<desc id=\"habits-%s-d\">",
                   names[w], names[w], names[w], widths[w], height, widths[w], height, names[w], names[w]);
        markup_text(out, b.description);
        markup_add(out, "</desc>\n");
        b.width = widths[w];
        b.y = 0;
        attune_learned_styles(learned, draw_style, &b, NULL);
        markup_add(out, "</svg>\n");
    }
    markup_add(out, "</figure>\n");
}

/* ---- tables ---- */

static void begin(struct markup *out, const char *caption, const char *const *columns) {
    markup_add(out, "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"");
    markup_text(out, caption);
    markup_add(out, "\">\n<table class=\"plain\">\n<caption>");
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
static void end(struct markup *out) { markup_add(out, "</tbody>\n</table>\n</div>\n"); }

static void cell(struct markup *out, const char *css, const char *text) {
    markup_add(out, css ? "<td class=\"%s\">" : "<td>", css);
    markup_text(out, text);
    markup_add(out, "</td>");
}

static int style_row(const attune_learned_style *s, void *user) {
    struct markup *out = user;
    char p[32] = "-";
    if (isfinite(s->p)) snprintf(p, sizeof p, s->p < 0.001 ? "below 0.001" : "%.3f", s->p);
    markup_add(out, "<tr><th scope=\"row\">");
    markup_text(out, s->title);
    markup_add(out, "</th>");
    cell(out, "n", cli_style_figure(s->unit, s->base).text);
    cell(out, "n", cli_style_figure(s->unit, s->adapter).text);
    cell(out, "n", p);
    cell(out, NULL, is(s, "different") ? cli_style_word(s) : is(s, "alike") ? "no clear difference" : "too few to tell");
    markup_add(out, "</tr>\n");
    return 0;
}

static void styles_table(struct markup *out, const attune_learned *learned) {
    static const char *const columns[] = {"Habit", "#Base", "#Adapter", "#p", "Verdict", NULL};
    markup_add(out, "<details><summary>All habits</summary>\n");
    begin(out, "Habits of the answers: means, shares, or how many of 100 words", columns);
    attune_learned_styles(learned, style_row, out, NULL);
    end(out);
    markup_add(out, "</details>\n");
}

/* ---- texts, where they were asked for ---- */

struct listing {
    struct markup *out;
    bool more;
    int n;
};

static int word_item(const attune_learned_word *w, void *user) {
    struct listing *list = user;
    if ((w->z > 0) != list->more || list->n >= WORDS_SHOWN) return 0;
    markup_add(list->out, "%s", list->n++ ? ", " : list->more ? "<p>Said more: " : "<p>Said less: ");
    markup_text(list->out, w->word);
    markup_add(list->out, " <span class=\"soft\">%lld \xE2\x86\x92 %lld</span>", (long long)w->base,
               (long long)w->adapter);
    return 0;
}

static void words(struct markup *out, const attune_learned *learned, bool more) {
    struct listing list = {out, more, 0};
    attune_learned_words(learned, word_item, &list, NULL);
    if (list.n > 0) markup_add(out, ".</p>\n");
}

static int answer_row(const attune_learned_answer *a, void *user) {
    struct listing *list = user;
    if (strcmp(a->base, a->adapter) == 0) return 0;
    if (list->n++ >= ANSWERS_SHOWN) return 1;
    markup_add(list->out, "<tr>");
    cell(list->out, "why", a->prompt);
    cell(list->out, "why", a->base);
    cell(list->out, "why", a->adapter);
    markup_add(list->out, "</tr>\n");
    return 0;
}

/* The beginning of a text: enough to know the row by. */
static void beginning(struct markup *out, const char *text) {
    enum { BYTES = 160 };
    char some[BYTES + 8];
    size_t n = strlen(text);
    bool cut = n > BYTES;
    if (cut) n = BYTES;
    while (cut && n > 0 && ((unsigned char)text[n] & 0xC0) == 0x80) n--;
    snprintf(some, sizeof some, "%.*s%s", (int)n, text, cut ? "\xE2\x80\xA6" : "");
    cell(out, "why", some);
}

static int moved_row(const attune_learned_row *r, void *user) {
    struct listing *list = user;
    char figure[48];
    if (list->n++ >= ROWS_SHOWN || !(r->share > 0)) return 1;
    snprintf(figure, sizeof figure, "%.1f %%", 100 * r->share);
    markup_add(list->out, "<tr>");
    cell(list->out, "n", figure);
    snprintf(figure, sizeof figure, "%+.2f", r->moved);
    cell(list->out, "n", figure);
    cell(list->out, NULL, r->kind);
    beginning(list->out, r->prompt);
    beginning(list->out, r->answer);
    markup_add(list->out, "</tr>\n");
    return 0;
}

static void texts(struct markup *out, const attune_learned *learned) {
    static const char *const answers[] = {"Question", "Base", "Adapter", NULL};
    static const char *const rows[] = {"#Of all gained", "#Nats a token", "Kind", "Question", "Answer", NULL};
    struct listing list = {.out = out};
    words(out, learned, true);
    words(out, learned, false);
    begin(out, "Side by side", answers);
    attune_learned_answers(learned, answer_row, &list, NULL);
    end(out);
    list.n = 0;
    begin(out, "Rows that moved it most", rows);
    attune_learned_rows(learned, moved_row, &list, NULL);
    end(out);
}

void report_learned(struct markup *out, const struct report *r) {
    attune_learned_summary s;
    ATTUNE_INIT(s);
    if (!r->learned || attune_learned_summary_get(r->learned, &s, NULL) != ATTUNE_OK) return;
    markup_add(out,
               "<section>\n<h2>How it answers now</h2>\n<p class=\"soft\">Adapter %d against the base, over %s everyday "
               "questions that it has not learned from, each answer up to %s tokens. A habit is called different when "
               "a paired permutation test says so.</p>\n",
               s.adapter, cli_count(s.prompts).text, cli_count(s.max_tokens).text);
    draw_styles(out, r->learned);
    styles_table(out, r->learned);
    if (r->texts) texts(out, r->learned);
    markup_add(out, "</section>\n");
}
