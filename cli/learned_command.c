/* learned: what an adapter has learned, for people. */
#include "cli/cli.h"

#include <math.h>
#include <string.h>

/* ---- stopping ---- */

/* What a signal stops; set before the handler is installed, cleared after it is gone. */
static attune_learned *volatile stopping;

static void on_signal(int number) {
    (void)number;
    attune_learned_cancel(stopping);
}

static void catch_signals(attune_learned *learned) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND | SA_RESTART};
    sigemptyset(&action.sa_mask);
    stopping = learned;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

static void release_signals(void) {
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    stopping = NULL;
}

static void on_progress(const attune_progress *now, void *user) { cli_progress_draw(user, now); }

/* ---- JSON ---- */

static int add_row(const attune_learned_row *r, void *user) {
    json_array_append_new(user, json_pack("{s:o, s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:I, s:o, s:o}", "id",
                                          cli_json_text(r->id), "kind", r->kind, "time", cli_json_time(r->time_ms),
                                          "moved", cli_json_number(r->moved), "share", cli_json_number(r->share),
                                          "weight", cli_json_number(r->weight), "loss_base",
                                          cli_json_number(r->loss_base), "loss_adapter",
                                          cli_json_number(r->loss_adapter), "tokens", (json_int_t)r->tokens, "prompt",
                                          cli_json_text(r->prompt), "answer", cli_json_text(r->answer)));
    return 0;
}

static int add_style(const attune_learned_style *s, void *user) {
    json_array_append_new(user, json_pack("{s:s, s:s, s:s, s:o, s:o, s:I, s:I, s:I, s:o, s:s}", "name", s->name,
                                          "title", s->title, "unit", s->unit, "base", cli_json_number(s->base),
                                          "adapter", cli_json_number(s->adapter), "more", (json_int_t)s->more, "less",
                                          (json_int_t)s->less, "answers", (json_int_t)s->answers, "p",
                                          cli_json_number(s->p), "verdict", s->verdict));
    return 0;
}

static int add_word(const attune_learned_word *w, void *user) {
    json_array_append_new(user, json_pack("{s:o, s:I, s:I, s:I, s:I, s:o}", "word", cli_json_text(w->word), "base",
                                          (json_int_t)w->base, "adapter", (json_int_t)w->adapter, "base_answers",
                                          (json_int_t)w->base_answers, "adapter_answers",
                                          (json_int_t)w->adapter_answers, "z", cli_json_number(w->z)));
    return 0;
}

static int add_answer(const attune_learned_answer *a, void *user) {
    json_array_append_new(user, json_pack("{s:o, s:o, s:o, s:b, s:b}", "prompt", cli_json_text(a->prompt), "base",
                                          cli_json_text(a->base), "adapter", cli_json_text(a->adapter), "base_ended",
                                          a->base_ended, "adapter_ended", a->adapter_ended));
    return 0;
}

/* Everything, whatever --rows and --answers say: a program takes what it wants. */
static int print_json(const attune_learned *l, const attune_learned_summary *s) {
    json_t *rows = json_array(), *styles = json_array(), *words = json_array(), *answers = json_array();
    attune_learned_rows(l, add_row, rows, NULL);
    attune_learned_styles(l, add_style, styles, NULL);
    attune_learned_words(l, add_word, words, NULL);
    attune_learned_answers(l, add_answer, answers, NULL);
    return cli_json(json_pack("{s:i, s:s, s:b, s:b, s:I, s:I, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "adapter",
                              s->adapter, "adapter_sha256", s->adapter_sha256, "complete", s->complete, "from_cache",
                              s->from_cache, "rows_known", (json_int_t)s->rows_known, "rows_looked_at",
                              (json_int_t)s->rows, "prompts", (json_int_t)s->prompts, "max_tokens",
                              (json_int_t)s->max_tokens, "loss_base", cli_json_number(s->loss_base), "loss_adapter",
                              cli_json_number(s->loss_adapter), "gain", cli_json_number(s->gain), "rows", rows,
                              "styles", styles, "words", words, "answers", answers));
}

/* ---- habits ---- */

struct words cli_style_figure(const char *unit, double value) {
    struct words w = {"-"};
    if (!isfinite(value)) return w;
    if (strcmp(unit, "share") == 0) snprintf(w.text, sizeof w.text, "%.0f %%", 100 * value);
    else snprintf(w.text, sizeof w.text, fabs(value) < 10 ? "%.2f" : "%.1f", value);
    return w;
}

const char *cli_style_word(const attune_learned_style *s) {
    if (strcmp(s->verdict, "different") != 0) return "";
    if (strcmp(s->unit, "share") == 0) return s->adapter > s->base ? "more often" : "less often";
    return s->adapter > s->base ? "more" : "fewer";
}

struct styles_seen {
    attune_learned_style items[64];
    size_t n;
};
static int note_style(const attune_learned_style *style, void *user) {
    struct styles_seen *seen = user;
    seen->items[seen->n++] = *style;
    return seen->n == sizeof seen->items / sizeof *seen->items;
}

/* The names of those with this verdict, one paragraph. */
static void print_others(const struct styles_seen *seen, const char *verdict, const char *what) {
    char line[2048];
    size_t n = 0, width = cli_columns(stdout) - 2;
    for (size_t i = 0; i < seen->n; i++) {
        const attune_learned_style *s = &seen->items[i];
        if (strcmp(s->verdict, verdict) != 0) continue;
        n += (size_t)snprintf(line + n, sizeof line - n, "%s%s", n ? "; " : what, s->title);
        if (n >= sizeof line) n = sizeof line - 1;
    }
    for (const char *at = line; n > 0 && *at; putchar('\n')) {
        cli_print("  ");
        cli_put_wrapped(&at, width);
    }
}

/* A length of answers that were cut is a bound. */
struct cuts {
    int64_t base, adapter;
};
static int count_cut(const attune_learned_answer *a, void *user) {
    struct cuts *cuts = user;
    cuts->base += !a->base_ended;
    cuts->adapter += !a->adapter_ended;
    return 0;
}

static void print_styles(const attune_learned *l, const attune_learned_summary *s) {
    struct styles_seen seen = {.n = 0};
    struct cuts cuts = {0};
    size_t different = 0;
    attune_learned_styles(l, note_style, &seen, NULL);
    if (s->prompts == 0) return;
    attune_learned_answers(l, count_cut, &cuts, NULL);
    cli_print("\nHow it answers, over %s question%s that it has not learned from:\n", cli_count(s->prompts).text,
              s->prompts == 1 ? "" : "s");
    for (size_t i = 0; i < seen.n; i++) different += strcmp(seen.items[i].verdict, "different") == 0;
    if (different > 0) cli_print("  %-26s %9s %9s\n", "", "base", "adapter");
    for (size_t i = 0; i < seen.n; i++) {
        const attune_learned_style *style = &seen.items[i];
        if (strcmp(style->verdict, "different") != 0) continue;
        bool up = style->adapter > style->base;
        cli_print("  %-26s %9s %9s  %s, in %lld of %lld answers\n", style->title,
                  cli_style_figure(style->unit, style->base).text, cli_style_figure(style->unit, style->adapter).text,
                  cli_style_word(style), (long long)(up ? style->more : style->less), (long long)style->answers);
    }
    if (different == 0) cli_print("  No habit of its answers is clearly another one.\n");
    print_others(&seen, "alike", "No clear difference: ");
    print_others(&seen, "too few", "Too few to tell: ");
    if (cuts.base + cuts.adapter > 0)
        cli_print("  Answers end after %s tokens: %s of the base's were cut there and %s of the adapter's.\n",
                  cli_count(s->max_tokens).text, cli_count(cuts.base).text, cli_count(cuts.adapter).text);
}

/* ---- words ---- */

enum { WORDS_SHOWN = 12 };
struct words_line {
    bool more;
    size_t n;
    char text[1024];
};
static int add_to_line(const attune_learned_word *w, void *user) {
    struct words_line *line = user;
    char counts[96];
    if ((w->z > 0) != line->more || line->n >= WORDS_SHOWN) return 0;
    snprintf(counts, sizeof counts, " %lld\xE2\x86\x92%lld", (long long)w->base, (long long)w->adapter);
    size_t used = strlen(line->text);
    if (used + strlen(w->word) + strlen(counts) + 3 > sizeof line->text) return 0;
    sprintf(line->text + used, "%s%s%s", line->n ? ", " : "", w->word, counts);
    line->n++;
    return 0;
}

static void print_words(const attune_learned *l, bool more) {
    struct words_line line = {.more = more};
    attune_learned_words(l, add_to_line, &line, NULL);
    if (line.n == 0) return;
    const char *at = line.text;
    cli_print("  %-11s ", more ? "said more" : "said less");
    for (;;) {
        cli_put_wrapped(&at, cli_columns(stdout) - 14);
        cli_print("\n");
        if (!*at) break;
        cli_print("%14s", "");
    }
}

/* ---- side by side ---- */

enum { COLUMN_MIN = 32, COLUMN_MAX = 64, GAP = 3 };

/* Newlines at a text's end are no lines. */
static bool goes_on(const char *text) { return text[strspn(text, " \t\r\n")] != '\0'; }

static void print_pair(const attune_learned_answer *a, size_t width) {
    const char *left = a->base, *right = a->adapter;
    while (goes_on(left) || goes_on(right)) {
        cli_print("  ");
        size_t used = goes_on(left) ? cli_put_wrapped(&left, width) : 0;
        if (goes_on(right) && *right != '\n') cli_print("%*s", (int)(width - used + GAP), "");
        if (goes_on(right)) cli_put_wrapped(&right, width);
        cli_print("\n");
    }
}

static void print_stacked(const char *who, const char *text, size_t width) {
    cli_print("  %s\n", who);
    while (goes_on(text)) {
        cli_print("    ");
        cli_put_wrapped(&text, width);
        cli_print("\n");
    }
}

struct answers_shown {
    int64_t left;
    bool begun;
};
static int print_answer(const attune_learned_answer *a, void *user) {
    struct answers_shown *shown = user;
    size_t columns = cli_columns(stdout), width = (columns - 2 - GAP) / 2;
    if (strcmp(a->base, a->adapter) == 0) return 0;
    if (shown->left-- <= 0) return 1;
    cli_print("\n");
    cli_style(stdout, STYLE_BOLD);
    cli_put_line(a->prompt, columns);
    cli_style(stdout, STYLE_PLAIN);
    cli_print("\n");
    if (width < COLUMN_MIN) {
        print_stacked("base:", a->base, columns - 4);
        print_stacked("adapter:", a->adapter, columns - 4);
        return 0;
    }
    if (width > COLUMN_MAX) width = COLUMN_MAX;
    cli_print("  %-*s%s\n", (int)(width + GAP), "base", "adapter");
    print_pair(a, width);
    return 0;
}

/* ---- rows ---- */

struct rows_shown {
    int64_t at, most, worse;
    double rest; /* of the shares */
};
static int print_row(const attune_learned_row *r, void *user) {
    struct rows_shown *shown = user;
    size_t columns = cli_columns(stdout);
    shown->worse += !(r->share > 0);
    if (++shown->at > shown->most || !(r->share > 0)) {
        shown->rest += r->share;
        return 0;
    }
    cli_print("  %4.1f %%  %+.2f  %-8s  %.10s  %s\n", 100 * r->share, r->moved, r->kind, cli_time(r->time_ms).text,
              r->id);
    cli_print("          ");
    cli_put_line(r->prompt, columns - 10);
    cli_print("\n          ");
    cli_put_line(r->answer, columns - 10);
    cli_print("\n");
    return 0;
}

/* Rows stand by what they moved: what became worse stands at the end. */
static int print_worse(const attune_learned_row *r, void *user) {
    int64_t *left = user;
    if (r->share > 0) return 0;
    if ((*left)-- <= 0) return 1;
    cli_print("          %+.2f  %-8s  ", r->moved, r->kind);
    cli_put_line(r->prompt, cli_columns(stdout) - 27);
    cli_print("\n");
    return 0;
}

static void print_rows(const attune_learned *l, const attune_learned_summary *s, int64_t most) {
    struct rows_shown shown = {.most = most};
    int64_t worse = 3;
    if (most == 0) return;
    if (s->rows == 0) {
        cli_print("\nNone of the rows that it learned from is known here.\n");
        return;
    }
    cli_print("\nRows that moved it most: their part of all that was gained, and how much likelier their answer\nhas "
              "become (nats a token). %s of %s row%s looked at; an even part would be %.1f %%.\n",
              cli_count(s->rows).text, cli_count(s->rows_known).text, s->rows_known == 1 ? " was" : "s were",
              100 / (double)s->rows);
    if (isfinite(s->loss_base)) cli_print("Their loss: %s.\n", cli_loss(s->loss_base, s->loss_adapter).text);
    attune_learned_rows(l, print_row, &shown, NULL);
    if (shown.rest > 0) cli_print("  %4.1f %%  all others together\n", 100 * shown.rest);
    if (shown.worse == 0) return;
    cli_print("  %s row%s became less likely:\n", cli_count(shown.worse).text, shown.worse == 1 ? "" : "s");
    attune_learned_rows(l, print_worse, &worse, NULL);
}

/* ---- the command ---- */

static int print_people(const attune_learned *l, const attune_learned_summary *s, int64_t rows, int64_t answers) {
    struct answers_shown shown = {.left = answers};
    cli_print("Adapter %d against the base%s.\n", s->adapter,
              s->complete ? "" : ", as far as the time went: the figures are of less than was asked for");
    print_styles(l, s);
    print_words(l, true);
    print_words(l, false);
    attune_learned_answers(l, print_answer, &shown, NULL);
    print_rows(l, s, rows);
    if (s->rows > 0 && rows > 0) cli_print("\nNext: attune forget --id ID takes a row back, and the adapters that learned from it.\n");
    return CLI_DONE;
}

static int work(const struct cli *cli, attune_learned_options *options, int64_t rows, int64_t answers) {
    attune_error err = {0};
    attune_learned *learned = NULL;
    attune_learned_summary summary;
    struct progress progress;
    int step;
    ATTUNE_INIT(summary);
    cli_progress_open(&progress);
    options->on_progress = on_progress;
    options->user = &progress;
    int code = attune_learned_open(cli->home, options, &learned, &err);
    if (code != ATTUNE_OK) {
        cli_progress_clear(&progress);
        return cli_fail(&err);
    }
    catch_signals(learned);
    do step = attune_learned_step(learned, &err);
    while (step == ATTUNE_CONTINUE);
    release_signals();
    cli_progress_clear(&progress);
    if (step != ATTUNE_DONE || attune_learned_summary_get(learned, &summary, &err) != ATTUNE_OK) code = cli_fail(&err);
    else code = cli->json ? print_json(learned, &summary) : print_people(learned, &summary, rows, answers);
    attune_learned_close(learned);
    return code;
}

static int run(struct cli *cli, int argc, char **argv) {
    int64_t rows = 8, answers = 3;
    const char *adapter = NULL;
    attune_learned_options options;
    ATTUNE_INIT(options);
    struct arguments a = {.command = &learned_command};
    cli_option(&a, option_text("adapter", "N|active", "which adapter; default active", &adapter));
    cli_option(&a, option_integer("rows", "so many of the rows that moved it most; default 8", &rows, 0, COUNT_MAX));
    cli_option(&a, option_integer("answers", "so many answers side by side; default 3", &answers, 0, COUNT_MAX));
    cli_option(&a, option_integer("examples", "rows that are looked at; default 128", &options.rows, 1, 1 << 20));
    cli_option(&a, option_int("prompts", "questions that are asked; default 24, which are all", &options.prompts, 1,
                              ATTUNE_LEARNED_PROMPTS));
    cli_option(&a, option_duration("time", "what is not done by then is left out", &options.time_s));
    cli_option(&a, option_int("threads", "0: all CPUs of this process (default)", &options.threads, 0, THREADS_MAX));
    int code = cli_parse(cli, &a, argc, argv);
    if (code != CLI_GO) return code;
    options.key_file = cli->key_file;
    if (adapter && strcmp(adapter, "active") != 0) {
        int64_t number;
        if (!cli_parse_integer(adapter, 1, 999999999, &number))
            return cli_usage(a.command, "--adapter wants a number, as attune adapters list shows it, or active; not %s",
                             adapter);
        options.adapter = (int)number;
    }
    return work(cli, &options, rows, answers);
}

const struct command learned_command = {
    .name = "learned",
    .arguments = "[options]",
    .summary = "What an adapter has learned: habits of its answers, and the rows that moved it most.",
    .notes = "It asks base and adapter the same everyday questions, which takes minutes; the result is kept in the\n"
             "home's cache, but for an encrypted home, and a second call has it at once.",
    .texts = true,
    .run = run,
};
