#include "cli/cli.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- numbers: the whole string, no spaces; a minus sign where numbers below zero are allowed ---- */

static bool parse_unsigned(const char *text, uint64_t *out) {
    if (!*text || text[strspn(text, "0123456789")]) return false;
    errno = 0;
    unsigned long long value = strtoull(text, NULL, 10);
    if (errno == ERANGE) return false;
    *out = value;
    return true;
}

bool cli_parse_integer(const char *text, int64_t low, int64_t high, int64_t *out) {
    uint64_t value;
    if (!parse_unsigned(text, &value) || value > INT64_MAX) return false;
    if ((int64_t)value < low || (int64_t)value > high) return false;
    *out = (int64_t)value;
    return true;
}

/* Digits with at most one point, and what follows them. */
static bool parse_decimal(const char *text, double *out, const char **end) {
    size_t whole = strspn(text, "0123456789");
    size_t n = whole;
    if (text[n] == '.') n += 1 + strspn(text + n + 1, "0123456789");
    if (whole == 0 && n < 2) return false;
    char *stop;
    *out = strtod(text, &stop);
    if (stop < text + n) return false;
    *end = text + n;
    return isfinite(*out);
}

bool cli_parse_number(const char *text, double low, double high, double *out) {
    const char *end;
    double value;
    bool negative = *text == '-' && low < 0;
    if (negative) text++;
    if (!parse_decimal(text, &value, &end)) return false;
    if ((*end == 'e' || *end == 'E')) {
        const char *digits = end + 1 + (end[1] == '-' || end[1] == '+');
        if (!*digits || digits[strspn(digits, "0123456789")]) return false;
        value = strtod(text, NULL);
    } else if (*end) {
        return false;
    }
    if (negative) value = -value;
    if (!isfinite(value) || value < low || value > high) return false;
    *out = value;
    return true;
}

bool cli_parse_scaled(const char *text, const char *units, const double *factors, double high, double *out) {
    const char *end;
    double value;
    if (!parse_decimal(text, &value, &end)) return false;
    if (*end) {
        const char *unit = strchr(units, tolower((unsigned char)*end));
        if (!unit || end[1]) return false;
        value *= factors[unit - units];
    }
    if (!(value > 0) || value > high) return false;
    *out = value;
    return true;
}

static bool parse_duration(const char *text, double *seconds) {
    const double year = 366.0 * 24 * 3600;
    return cli_parse_scaled(text, "smh", (const double[]){1, 60, 3600}, year, seconds);
}

/* A unit of joules behind the number, in any case; 1 Wh = 3600 J. */
static bool parse_energy(const char *text, double *joules) {
    static const struct {
        const char *name;
        double joules;
    } units[] = {{"", 1}, {"j", 1}, {"kj", 1e3}, {"mj", 1e6}, {"wh", 3600}, {"kwh", 3.6e6}};
    const char *end;
    double value;
    if (!parse_decimal(text, &value, &end)) return false;
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        if (strcasecmp(end, units[i].name) != 0) continue;
        value *= units[i].joules;
        if (!(value > 0) || value > 1e12) return false;
        *joules = value;
        return true;
    }
    return false;
}

static bool parse_size(const char *text, uint64_t *bytes) {
    double value;
    if (!cli_parse_scaled(text, "kmg", (const double[]){0x1p10, 0x1p20, 0x1p30}, 0x1p60, &value)) return false;
    if (value < 1) return false;
    *bytes = (uint64_t)value;
    return true;
}

/* ---- the nearest name ---- */

enum { NAME_MAX_LENGTH = 31 };

/* Edits (insert, delete, replace, swap neighbours) that turn a into b: optimal string alignment. */
static size_t distance(const char *a, const char *b) {
    size_t n = strlen(a), m = strlen(b);
    if (n > NAME_MAX_LENGTH || m > NAME_MAX_LENGTH) return SIZE_MAX;
    size_t rows[3][NAME_MAX_LENGTH + 1];
    size_t *before = rows[0], *above = rows[1], *now = rows[2];
    for (size_t j = 0; j <= m; j++) above[j] = j;
    for (size_t i = 1; i <= n; i++) {
        now[0] = i;
        for (size_t j = 1; j <= m; j++) {
            size_t best = above[j - 1] + (a[i - 1] != b[j - 1]);
            if (above[j] + 1 < best) best = above[j] + 1;
            if (now[j - 1] + 1 < best) best = now[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && before[j - 2] + 1 < best)
                best = before[j - 2] + 1;
            now[j] = best;
        }
        size_t *free_row = before;
        before = above;
        above = now;
        now = free_row;
    }
    return above[m];
}

const char *cli_nearest(const char *word, const char *const *candidates, size_t n) {
    size_t length = strlen(word), best = length <= 3 ? 2 : length <= 6 ? 3 : 4; /* fewer edits than this */
    const char *found = NULL;
    for (size_t i = 0; i < n; i++) {
        size_t d = distance(word, candidates[i]);
        if (d < best) {
            best = d;
            found = candidates[i];
        }
    }
    for (size_t i = 0; i < n && !found && length >= 2; i++)
        if (strncmp(word, candidates[i], length) == 0) found = candidates[i];
    return found;
}

/* ---- options ---- */

int cli_usage(const struct command *command, const char *format, ...) {
    char message[512];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    cli_note("attune: %s\n", message);
    if (command) cli_note("`attune help %s` tells how to call it.\n", command->name);
    else cli_note("`attune help` lists the commands.\n");
    return CLI_USAGE;
}

void cli_option(struct arguments *a, struct option option) {
    assert(a->n_options < OPTIONS_MAX);
    a->options[a->n_options++] = option;
}

static struct option *find(struct arguments *a, const char *name, size_t length) {
    for (size_t i = 0; i < a->n_options; i++)
        if (strlen(a->options[i].name) == length && strncmp(a->options[i].name, name, length) == 0)
            return &a->options[i];
    return NULL;
}

bool cli_given(const struct arguments *a, const char *name) {
    for (size_t i = 0; i < a->n_options; i++)
        if (strcmp(a->options[i].name, name) == 0) return a->options[i].given;
    return false;
}

static void print_help(const struct arguments *a) {
    const struct command *command = a->command;
    cli_print("usage: attune %s %s\n\n%s\n\noptions:\n", command->name, command->arguments, command->summary);
    for (size_t i = 0; i < a->n_options; i++) {
        char left[96];
        const struct option *o = &a->options[i];
        snprintf(left, sizeof left, "--%s%s%s", o->name, o->value ? " " : "", o->value ? o->value : "");
        if (strlen(left) <= 26) cli_print("  %-26s  %s\n", left, o->help);
        else cli_print("  %s\n%30s%s\n", left, "", o->help);
    }
    if (command->notes) cli_print("\n%s\n", command->notes);
}

static int unknown(struct arguments *a, const char *name, size_t length) {
    const char *names[OPTIONS_MAX];
    char word[64];
    snprintf(word, sizeof word, "%.*s", (int)(length < 63 ? length : 63), name);
    for (size_t i = 0; i < a->n_options; i++) names[i] = a->options[i].name;
    const char *near = cli_nearest(word, names, a->n_options);
    if (near) return cli_usage(a->command, "%s has no option --%s; did you mean --%s?", a->command->name, word, near);
    return cli_usage(a->command, "%s has no option --%s", a->command->name, word);
}

static bool is_choice(const char *choices, const char *text) {
    for (const char *c = choices; *c;) {
        size_t n = strcspn(c, "|");
        if (strlen(text) == n && memcmp(c, text, n) == 0) return true;
        c += n + (c[n] == '|');
    }
    return false;
}

static int refuse(const struct arguments *a, const struct option *o, const char *text, const char *wanted) {
    return cli_usage(a->command, "--%s wants %s, not \"%.60s\"", o->name, wanted, text);
}

static int take_number(const struct arguments *a, struct option *o, const char *text) {
    char wanted[96];
    int64_t integer;
    bool ok;
    switch (o->kind) {
    case OPTION_INTEGER:
        snprintf(wanted, sizeof wanted, "a whole number from %.0f to %.0f", o->low, o->high);
        ok = cli_parse_integer(text, (int64_t)o->low, (int64_t)o->high, &integer);
        if (ok && o->is_small) *o->to.small = (int)integer;
        else if (ok) *o->to.integer = integer;
        break;
    case OPTION_UNSIGNED:
        snprintf(wanted, sizeof wanted, "a whole number below 2^64");
        ok = parse_unsigned(text, o->to.whole);
        break;
    case OPTION_NUMBER:
        snprintf(wanted, sizeof wanted, "a number from %g to %g", o->low, o->high);
        ok = cli_parse_number(text, o->low, o->high, o->to.number);
        break;
    case OPTION_DURATION:
        snprintf(wanted, sizeof wanted, "a time such as 90, 90s, 20m or 1.5h");
        ok = parse_duration(text, o->to.number);
        break;
    case OPTION_ENERGY:
        snprintf(wanted, sizeof wanted, "an energy such as 500J, 5kJ or 0.2Wh");
        ok = parse_energy(text, o->to.number);
        break;
    case OPTION_WHEN:
        snprintf(wanted, sizeof wanted, "a time such as 2025-01-31, 2025-01-31T09:30 or 2h (ago), later than 1970");
        ok = cli_parse_when(text, (int64_t)time(NULL) * 1000, o->to.integer);
        break;
    default:
        snprintf(wanted, sizeof wanted, "a size such as 500000K, 400M or 1.5G");
        ok = parse_size(text, o->to.whole);
    }
    return ok ? CLI_GO : refuse(a, o, text, wanted);
}

static int take(const struct arguments *a, struct option *o, const char *text) {
    if (o->given && o->kind != OPTION_TEXTS) return cli_usage(a->command, "--%s is there twice", o->name);
    o->given = true;
    switch (o->kind) {
    case OPTION_FLAG: *o->to.flag = true; return CLI_GO;
    case OPTION_PATH:
        if (!*text) return refuse(a, o, text, "a path");
        *o->to.text = text;
        return CLI_GO;
    case OPTION_TEXT:
    case OPTION_TEXTS:
        if (cli_utf8_valid(text, strlen(text)) != strlen(text))
            return cli_usage(a->command, "the text of --%s is not UTF-8", o->name);
        if (o->kind == OPTION_TEXT) {
            *o->to.text = text;
            return CLI_GO;
        }
        if (o->to.texts->n == TEXTS_MAX)
            return cli_usage(a->command, "--%s is there more than %d times", o->name, TEXTS_MAX);
        o->to.texts->items[o->to.texts->n++] = text;
        return CLI_GO;
    case OPTION_CHOICE:
        if (!is_choice(o->value, text)) return refuse(a, o, text, o->value);
        *o->to.text = text;
        return CLI_GO;
    default: return take_number(a, o, text);
    }
}

/* One option at argv[*i], and its value. */
static int parse_option(struct arguments *a, int argc, char **argv, int *i) {
    const char *name = argv[*i] + 2;
    const char *equals = strchr(name, '=');
    size_t length = equals ? (size_t)(equals - name) : strlen(name);
    struct option *o = find(a, name, length);
    if (!o) return unknown(a, name, length);
    if (o->kind == OPTION_FLAG) {
        if (equals) return cli_usage(a->command, "--%s takes no value", o->name);
        return take(a, o, NULL);
    }
    if (equals) return take(a, o, equals + 1);
    if (*i + 1 >= argc) return cli_usage(a->command, "--%s wants a value: %s", o->name, o->value);
    return take(a, o, argv[++*i]);
}

static int add_positional(struct arguments *a, const char *text) {
    if (a->n_positional == a->positional_max)
        return cli_usage(a->command, "one argument too many: \"%.60s\"; the usage is: attune %s %s", text,
                         a->command->name, a->command->arguments);
    a->positional[a->n_positional++] = text;
    return CLI_GO;
}

int cli_parse(struct cli *cli, struct arguments *a, int argc, char **argv) {
    bool help = false, only_positional = false;
    cli_option(a, option_path("home", "DIR", "the home, in place of $ATTUNE_HOME or the default one", &cli->home));
    if (a->command->texts)
        cli_option(a, option_path("key-file", "FILE", "key of an encrypted home, in place of the file it remembers",
                                  &cli->key_file));
    cli_option(a, option_flag("json", "one JSON object on standard output", &cli->json));
    cli_option(a, option_flag("help", "this text", &help));
    int code = CLI_GO;
    for (int i = 0; i < argc && code == CLI_GO && !help; i++) {
        const char *text = argv[i];
        if (only_positional || text[0] != '-' || !text[1]) code = add_positional(a, text);
        else if (strcmp(text, "--") == 0) only_positional = true;
        else if (strcmp(text, "-h") == 0) help = true;
        else if (text[1] != '-')
            code = cli_usage(a->command, "%s has no option %s; a text that begins with - goes after --",
                             a->command->name, text);
        else code = parse_option(a, argc, argv, &i);
    }
    if (code != CLI_GO) return code;
    if (help) {
        print_help(a);
        return CLI_DONE;
    }
    if (a->n_positional < a->positional_min)
        return cli_usage(a->command, "something is missing; the usage is: attune %s %s", a->command->name,
                         a->command->arguments);
    return CLI_GO;
}
