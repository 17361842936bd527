#include "cli/cli.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

/* ---- text ---- */

/* Length of the character at text[0..n) by Unicode's table of well-formed sequences; 0: there is none. */
static size_t character(const unsigned char *text, size_t n) {
    unsigned c = text[0], low = 0x80, high = 0xBF;
    size_t length = c < 0x80 ? 1 : c < 0xC2 ? 0 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : c < 0xF5 ? 4 : 0;
    if (length == 0 || length > n) return 0;
    if (c == 0xE0) low = 0xA0;
    if (c == 0xED) high = 0x9F; /* surrogates */
    if (c == 0xF0) low = 0x90;
    if (c == 0xF4) high = 0x8F; /* U+10FFFF */
    if (length > 1 && (text[1] < low || text[1] > high)) return 0;
    for (size_t i = 2; i < length; i++)
        if (text[i] < 0x80 || text[i] > 0xBF) return 0;
    return length;
}

size_t cli_utf8_valid(const char *text, size_t n) {
    size_t i = 0;
    while (i < n) {
        size_t length = character((const unsigned char *)text + i, n - i);
        if (length == 0) break;
        i += length;
    }
    return i;
}

/* A byte that begins something which steers a terminal: C0 but newline and tab, DEL, C1 (C2 80..9F). */
static bool is_control(const unsigned char *text, size_t n) {
    if (text[0] < 0x20) return text[0] != '\n' && text[0] != '\t';
    return text[0] == 0x7F || (text[0] == 0xC2 && n > 1 && text[1] < 0xA0);
}

void cli_put(FILE *stream, const char *text, size_t length) {
    if (!isatty(fileno(stream))) {
        fwrite(text, 1, length, stream);
        return;
    }
    const unsigned char *bytes = (const unsigned char *)text;
    for (size_t i = 0; i < length; i++) {
        size_t n = character(bytes + i, length - i);
        bool shown = n > 0 && !is_control(bytes + i, length - i);
        if (shown) fwrite(bytes + i, 1, n, stream);
        else fputs("\xEF\xBF\xBD", stream);
        if (n > 1) i += n - 1;
    }
}

static void put_format(FILE *stream, const char *format, va_list args) {
    char line[1024], *text = line;
    va_list again;
    va_copy(again, args);
    int n = vsnprintf(line, sizeof line, format, args);
    if (n >= (int)sizeof line && (text = malloc((size_t)n + 1))) vsnprintf(text, (size_t)n + 1, format, again);
    va_end(again);
    if (n >= 0 && text) cli_put(stream, text, (size_t)n);
    else fputs("attune: out of memory\n", stderr);
    if (text != line) free(text);
}

void cli_print(const char *format, ...) {
    va_list args;
    va_start(args, format);
    put_format(stdout, format, args);
    va_end(args);
}

void cli_note(const char *format, ...) {
    va_list args;
    va_start(args, format);
    put_format(stderr, format, args);
    va_end(args);
}

void cli_field(const char *name, const char *format, ...) {
    cli_print("  %-14s  ", name);
    va_list args;
    va_start(args, format);
    put_format(stdout, format, args);
    va_end(args);
    cli_print("\n");
}

static bool wants_style(FILE *stream) {
    const char *no_color = getenv("NO_COLOR"), *terminal = getenv("TERM");
    if (no_color && *no_color) return false;
    return isatty(fileno(stream)) && terminal && strcmp(terminal, "dumb") != 0;
}

void cli_style(FILE *stream, enum style style) {
    static const char *const codes[] = {"\033[0m", "\033[1m", "\033[32m", "\033[33m", "\033[31m"};
    if (wants_style(stream)) fputs(codes[style], stream);
}

size_t cli_columns(FILE *stream) {
    struct winsize size;
    if (ioctl(fileno(stream), TIOCGWINSZ, &size) != 0 || size.ws_col < 20) return 79;
    return size.ws_col - 1u; /* the last column may wrap */
}

/* ---- errors ---- */

int cli_fail(const attune_error *err) {
    const char *message = err->message[0] ? err->message : attune_code_name(err->code);
    if (err->where[0]) cli_note("attune: %s (%s)\n", message, err->where);
    else cli_note("attune: %s\n", message);
    return CLI_FAILED;
}

int cli_fail_text(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("attune: ", stderr);
    put_format(stderr, format, args);
    va_end(args);
    fputs("\n", stderr);
    return CLI_FAILED;
}

/* ---- input ---- */

enum { INPUT_MAX = 64 << 20 };

static int read_all(char **text, size_t *length) {
    size_t n = 0, capacity = 1 << 16;
    char *bytes = malloc(capacity);
    while (bytes) {
        n += fread(bytes + n, 1, capacity - 1 - n, stdin); /* one byte is left for the NUL */
        if (n < capacity - 1 || capacity > INPUT_MAX) break;
        char *more = realloc(bytes, capacity * 2);
        if (!more) free(bytes);
        bytes = more;
        capacity *= 2;
    }
    if (!bytes) return cli_fail_text("out of memory reading standard input");
    bytes[n] = '\0';
    *text = bytes;
    *length = n;
    return CLI_GO;
}

int cli_read_input(bool line, char **text, size_t *length) {
    if (isatty(STDIN_FILENO)) cli_note("Reading from the terminal; end with Ctrl-D on a line of its own.\n");
    char *bytes = NULL;
    size_t n = 0;
    int code = read_all(&bytes, &n);
    if (code != CLI_GO) return code;
    size_t valid = cli_utf8_valid(bytes, n);
    if (ferror(stdin)) code = cli_fail_text("cannot read standard input: %s", strerror(errno));
    else if (n > INPUT_MAX) code = cli_fail_text("standard input is longer than %d MiB", INPUT_MAX >> 20);
    else if (valid != n) code = cli_fail_text("standard input is not UTF-8 (byte %zu)", valid);
    else if (memchr(bytes, 0, n)) code = cli_fail_text("standard input has a NUL byte (byte %zu)", strlen(bytes));
    if (code != CLI_GO) {
        free(bytes);
        return code;
    }
    if (line && n > 0 && bytes[n - 1] == '\n') bytes[--n] = '\0';
    if (line && n > 0 && bytes[n - 1] == '\r') bytes[--n] = '\0';
    *text = bytes;
    *length = n;
    return CLI_GO;
}

/* ---- JSON ---- */

/* What steers a terminal and stands in JSON as it is: DEL, C1, line and paragraph separators, and what turns the
 * direction of the text around it. Its code point, *length its bytes; 0: this is none. */
static unsigned steering(const unsigned char *text, size_t *length) {
    *length = 1;
    if (text[0] == 0x7F) return 0x7F;
    *length = 2;
    if (text[0] == 0xC2 && text[1] >= 0x80 && text[1] < 0xA0) return text[1];
    *length = 3;
    if (text[0] != 0xE2 || (text[1] != 0x80 && text[1] != 0x81)) return 0;
    unsigned c = 0x2000u | (text[1] & 1u) << 6 | (text[2] & 0x3Fu);
    return (c >= 0x2028 && c <= 0x202E) || (c >= 0x2066 && c <= 0x2069) ? c : 0;
}

int cli_json_part(json_t *object) {
    /* 15 digits are what a double holds for certain, so 0.1 stays 0.1. */
    char *text = object ? json_dumps(object, JSON_REAL_PRECISION(15)) : NULL;
    json_decref(object);
    if (!text) return cli_fail_text("out of memory making the JSON object");
    size_t from = 0, at = 0, length;
    while (text[at]) {
        unsigned c = steering((const unsigned char *)text + at, &length);
        if (!c) {
            at++;
            continue;
        }
        fwrite(text + from, 1, at - from, stdout);
        printf("\\u%04X", c);
        from = at += length;
    }
    fputs(text + from, stdout);
    free(text);
    return CLI_DONE;
}

int cli_json(json_t *object) {
    int code = cli_json_part(object);
    if (code == CLI_DONE) fputc('\n', stdout);
    return code;
}

json_t *cli_json_text(const char *text) {
    size_t n = strlen(text), used = 0;
    if (cli_utf8_valid(text, n) == n) return json_stringn_nocheck(text, n);
    char *mended = malloc(n * 3 + 1);
    if (!mended) return NULL;
    for (size_t i = 0; i < n;) {
        size_t valid = cli_utf8_valid(text + i, n - i);
        memcpy(mended + used, text + i, valid);
        used += valid;
        i += valid;
        if (i == n) break;
        memcpy(mended + used, "\xEF\xBF\xBD", 3);
        used += 3;
        i++;
    }
    json_t *value = json_stringn_nocheck(mended, used);
    free(mended);
    return value;
}

json_t *cli_json_number(double value) { return isfinite(value) ? json_real(value) : json_null(); }

json_t *cli_json_time(int64_t ms) { return ms ? json_integer(ms) : json_null(); }

/* ---- words ---- */

struct words cli_duration(double seconds) {
    struct words w;
    long long whole = (long long)(seconds + 0.5);
    if (!isfinite(seconds) || seconds < 0) snprintf(w.text, sizeof w.text, "-");
    else if (seconds < 10) snprintf(w.text, sizeof w.text, "%.1f s", seconds);
    else if (whole < 60) snprintf(w.text, sizeof w.text, "%lld s", whole);
    else if (whole < 3600) snprintf(w.text, sizeof w.text, "%lld min %lld s", whole / 60, whole % 60);
    else snprintf(w.text, sizeof w.text, "%lld h %lld min", whole / 3600, whole % 3600 / 60);
    return w;
}

struct words cli_bytes(double bytes) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    struct words w;
    size_t unit = 0;
    while (bytes >= 1024 && unit + 1 < sizeof units / sizeof units[0]) {
        bytes /= 1024;
        unit++;
    }
    snprintf(w.text, sizeof w.text, unit == 0 || bytes >= 100 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
    return w;
}

struct words cli_time(int64_t ms) {
    struct words w;
    struct tm tm;
    time_t seconds = (time_t)(ms / 1000);
    if (ms == 0 || !localtime_r(&seconds, &tm) || !strftime(w.text, sizeof w.text, "%Y-%m-%d %H:%M", &tm))
        snprintf(w.text, sizeof w.text, "-");
    return w;
}

struct words cli_count(int64_t n) {
    struct words w;
    char digits[24];
    size_t length = (size_t)snprintf(digits, sizeof digits, "%lld", (long long)n), used = 0;
    for (size_t i = 0; i < length; i++) {
        w.text[used++] = digits[i];
        size_t left = length - 1 - i;
        if (left > 0 && left % 3 == 0 && digits[i] != '-') w.text[used++] = ',';
    }
    w.text[used] = '\0';
    return w;
}

struct words cli_loss(double before, double after) {
    struct words w;
    if (!isfinite(before) || !isfinite(after)) snprintf(w.text, sizeof w.text, "-");
    else snprintf(w.text, sizeof w.text, "%.3f \xE2\x86\x92 %.3f", before, after);
    return w;
}

/* ---- progress ---- */

static double monotonic(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void cli_progress_open(struct progress *progress) {
    *progress = (struct progress){.shown = isatty(STDERR_FILENO)};
}

enum { BAR_MIN = 8, BAR_MAX = 30 };

/* n cells of the bar, NUL-terminated. */
static void draw_bar(const attune_progress *now, size_t n, char bar[BAR_MAX + 1]) {
    size_t full = now->total > 0 && now->done > 0 ? (size_t)((double)n * (double)now->done / (double)now->total) : 0;
    for (size_t i = 0; i < n; i++) bar[i] = i < full ? '#' : '.';
    bar[n] = '\0';
}

void cli_progress_draw(struct progress *progress, const attune_progress *now) {
    double at = monotonic();
    if (!progress->shown || (progress->on_screen && at - progress->drawn_at < 0.1)) return;
    char line[320], figures[256], bar[BAR_MAX + 1], steps[64] = "", speed[48] = "", loss[48] = "", left[96] = "";
    if (now->steps > 0) snprintf(steps, sizeof steps, "  step %lld/%lld", (long long)now->step, (long long)now->steps);
    if (now->tokens_per_s > 0) snprintf(speed, sizeof speed, "  %.0f tokens/s", now->tokens_per_s);
    if (isfinite(now->loss) && now->loss > 0) snprintf(loss, sizeof loss, "  loss %.3f", now->loss);
    if (isfinite(now->seconds_left) && now->seconds_left > 0)
        snprintf(left, sizeof left, "  %s left", cli_duration(now->seconds_left).text);
    snprintf(figures, sizeof figures, "%s%s%s%s", steps, speed, loss, left);
    size_t width = cli_columns(stderr), used = strlen(figures) + sizeof "fold 1/3 []" - 1;
    size_t cells = width < used + BAR_MIN ? BAR_MIN : width - used;
    draw_bar(now, cells > BAR_MAX ? BAR_MAX : cells, bar);
    snprintf(line, sizeof line, "%-8s [%s]%s", now->phase ? now->phase : "", bar, figures);
    fprintf(stderr, "\r%-*.*s", (int)width, (int)width, line);
    progress->drawn_at = at;
    progress->on_screen = true;
}

void cli_progress_clear(struct progress *progress) {
    if (progress->on_screen) fprintf(stderr, "\r%*s\r", (int)cli_columns(stderr), "");
    progress->on_screen = false;
}
