/* history --nights: each night in two or three lines. */
#include "cli/night_summary.h"

#include <math.h>
#include <string.h>

static void print_head(void) {
    cli_print("  %-10s  %13s  %11s  %10s %-9s  %-14s\n", "night", "worked", "tokens", "energy", "", "held-out loss");
}

enum { INDENT = 14, COLUMNS_LEAST = 20, LINE_MAX_BYTES = 400 };

/* In lines, broken at spaces; a word that is longer than a line is cut. Nothing that is not UTF-8 comes out of a store
 * of ours, and what does is shown as U+FFFD. */
static void print_wrapped(const char *text) {
    size_t columns = cli_columns(stdout);
    columns = columns > INDENT + COLUMNS_LEAST ? columns - INDENT : COLUMNS_LEAST;
    char line[LINE_MAX_BYTES];
    while (*(text += strspn(text, " "))) {
        size_t used = 0, end = 0, at = 0;
        for (; text[at] && at < sizeof line - 1; at++) {
            if (text[at] == ' ') end = at;
            used += ((unsigned char)text[at] & 0xC0) != 0x80;
            if (used > columns) break;
        }
        if (!text[at] || end == 0) end = text[at] ? strcspn(text, " ") : at;
        if (end > sizeof line - 1) end = sizeof line - 1;
        memcpy(line, text, end);
        line[end] = '\0';
        cli_print("%*s", INDENT, "");
        cli_put_line(line, columns);
        cli_print("\n");
        text += end;
    }
}

/* What is worth a word beside the figures. */
static void print_more(const struct night *n) {
    char energy[160], line[256];
    size_t used = 0;
    cli_night_energy(n, energy, sizeof energy);
    line[0] = '\0';
    if (n->published > 1) used += (size_t)snprintf(line, sizeof line, "%d adapters published; ", n->published);
    if (n->pauses > 0)
        used += (size_t)snprintf(line + used, sizeof line - used, "%s pause%s; ", cli_count(n->pauses).text,
                                 n->pauses == 1 ? "" : "s");
    if (strcmp(cli_night_known(n), "mixed") == 0 || n->marked > 0)
        used += (size_t)snprintf(line + used, sizeof line - used, "%s; ", energy);
    if (n->written > 0)
        used += (size_t)snprintf(line + used, sizeof line - used, "%s written; ", cli_bytes((double)n->written).text);
    if (isfinite(n->celsius_max))
        used += (size_t)snprintf(line + used, sizeof line - used, "up to %.0f \xC2\xB0""C; ", n->celsius_max);
    if (used < 2) return;
    line[used - 2] = '\0';
    print_wrapped(line);
}

static void print_night(const struct night *n) {
    char ending[320];
    cli_style(stdout, STYLE_BOLD);
    cli_print("  %-10s", cli_night_date(n->night_ms).text);
    cli_style(stdout, STYLE_PLAIN);
    cli_print("  %13s  %11s  %10s %-9s  %s\n", n->work_seconds > 0 ? cli_duration(n->work_seconds).text : "-",
              cli_count(n->tokens).text, n->joules > 0 ? cli_energy(n->joules).text : "-", cli_night_known(n),
              cli_loss(n->loss_before, n->loss_after).text);
    cli_night_ending(n, ending, sizeof ending);
    if (n->adapter) {
        char both[400];
        snprintf(both, sizeof both, "adapter %d is published; %s", n->adapter, ending);
        print_wrapped(both);
    } else {
        print_wrapped(ending);
    }
    print_more(n);
}

static int print_json(const struct nights *nights) {
    json_t *array = json_array();
    for (size_t i = 0; i < nights->n; i++) json_array_append_new(array, cli_night_json(&nights->items[i]));
    return cli_json(
        json_pack("{s:o, s:I, s:b}", "nights", array, "count", (json_int_t)nights->n, "more", nights->more));
}

int cli_nights_history(const struct cli *cli, int64_t since_ms, int64_t until_ms, int64_t limit) {
    struct nights nights;
    int code = cli_nights_read(cli, since_ms, until_ms, limit, &nights);
    if (code != CLI_GO) return code;
    code = CLI_DONE;
    if (cli->json) code = print_json(&nights);
    else if (nights.n == 0)
        cli_print("No night is recorded that this asks for. `attune nightly --explain` tells what would happen now.\n");
    else {
        print_head();
        for (size_t i = 0; i < nights.n; i++) print_night(&nights.items[i]);
        if (nights.more) cli_print("\nThere are more: --limit N, or --all.\n");
    }
    cli_nights_free(&nights);
    return code;
}
