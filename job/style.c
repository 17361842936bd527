#include "job/style.h"

#include "core/base/random.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

const struct style_name style_names[STYLE_FIGURES] = {
    {"words", "words", STYLE_EACH},
    {"characters", "characters", STYLE_EACH},
    {"sentences", "sentences", STYLE_EACH},
    {"sentence_words", "words a sentence", STYLE_EACH},
    {"word_letters", "characters a word", STYLE_EACH},
    {"paragraphs", "paragraphs", STYLE_EACH},
    {"questions", "question marks", STYLE_EACH},
    {"exclamations", "exclamation marks", STYLE_EACH},
    {"lists", "lines of lists", STYLE_EACH},
    {"headings", "headings", STYLE_EACH},
    {"bold", "bold spans", STYLE_EACH},
    {"code", "code", STYLE_EACH},
    {"emoji", "emoji", STYLE_EACH},
    {"greetings", "begins with a greeting", STYLE_SHARE},
    {"closings", "ends with a kind word", STYLE_SHARE},
    {"hedges", "hedges (perhaps, might)", STYLE_OF_100},
    {"polite", "politeness (please, sorry)", STYLE_OF_100},
    {"contractions", "contractions (don't, it's)", STYLE_OF_100},
    {"first_person", "first person (I, we)", STYLE_OF_100},
    {"second_person", "second person (you)", STYLE_OF_100},
    {"capital", "begins with a capital", STYLE_SHARE},
    {"ended", "ends by itself", STYLE_SHARE},
};

/* ---- characters ---- */

static int32_t next(const char **at, const char *end) {
    utf8proc_int32_t c;
    utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)*at, end - *at, &c);
    if (n <= 0) {
        ++*at;
        return -1;
    }
    *at += n;
    return c;
}

static int is_apostrophe(int32_t c) { return c == '\'' || c == 0x2019; }
static int is_letter(int32_t c) {
    utf8proc_category_t k = c < 0 ? UTF8PROC_CATEGORY_CN : utf8proc_category(c);
    return k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO;
}
static int is_part(int32_t c) { /* of a word */
    utf8proc_category_t k = c < 0 ? UTF8PROC_CATEGORY_CN : utf8proc_category(c);
    return k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_NO;
}
/* Kana and ideographs: no spaces stand between words. */
static int is_alone(int32_t c) {
    return (c >= 0x3040 && c <= 0x30FF) || (c >= 0x3400 && c <= 0x9FFF) || (c >= 0xF900 && c <= 0xFAFF) ||
           (c >= 0x20000 && c <= 0x3FFFD);
}
static int is_emoji(int32_t c) {
    return c >= 0x2190 && utf8proc_get_property(c)->boundclass == UTF8PROC_BOUNDCLASS_EXTENDED_PICTOGRAPHIC;
}
static int is_stop(int32_t c) { return c == '.' || c == '!' || c == '?' || c == 0x2026 || c == 0x3002 || c == 0xFF01 || c == 0xFF1F; }

/* ---- words ---- */

size_t style_word(const char **at, const char *end, char out[STYLE_WORD_MAX]) {
    size_t n = 0;
    int begun = 0;
    while (*at < end) {
        const char *here = *at, *ahead;
        int32_t c = next(at, end);
        int inside = is_part(c);
        if (begun && is_apostrophe(c)) { /* one that ends a word is a quote */
            ahead = *at;
            inside = ahead < end && is_letter(next(&ahead, end));
            c = '\'';
        }
        if (!inside || (begun && is_alone(c))) {
            if (begun) *at = here;
            if (begun) break;
            continue;
        }
        begun = 1;
        utf8proc_uint8_t lower[4];
        size_t size = (size_t)utf8proc_encode_char(utf8proc_tolower(c), lower);
        if (n + size < STYLE_WORD_MAX) {
            memcpy(out + n, lower, size);
            n += size;
        }
        if (is_alone(c)) break;
    }
    out[n] = 0;
    return n;
}

/* ` words ` of a list between spaces. */
static int among(const char *word, const char *list) {
    char framed[STYLE_WORD_MAX + 3];
    size_t n = strlen(word);
    framed[0] = framed[n + 1] = ' ';
    memcpy(framed + 1, word, n);
    framed[n + 2] = 0;
    return strstr(list, framed) != NULL;
}

static const char GREETINGS[] = " hi hello hey hiya dear greetings howdy ahoy welcome ";
static const char CLOSINGS[] = " hope luck enjoy cheers regards sincerely care welcome free wish wishes goodbye farewell "
                               "bye know love dear friend ";
static const char HEDGES[] = " maybe perhaps possibly probably might may could seem seems likely generally usually "
                             "somewhat apparently roughly presumably arguably often sometimes ";
static const char POLITE[] = " please thanks thank sorry kindly welcome appreciate glad pardon apologies gladly ";
static const char FIRST[] = " i me my mine myself we us our ours i'm i've i'd i'll we're we've we'll we'd ";
static const char SECOND[] = " you your yours yourself yourselves you're you've you'd you'll ";
static const char CONTRACTED[] = " it's that's there's let's what's he's she's who's here's where's how's ";

static int ends_with(const char *word, const char *end) {
    size_t n = strlen(word), m = strlen(end);
    return n > m && strcmp(word + n - m, end) == 0;
}
static int is_contraction(const char *word) {
    return ends_with(word, "n't") || ends_with(word, "'re") || ends_with(word, "'ve") || ends_with(word, "'ll") ||
           ends_with(word, "'m") || ends_with(word, "'d") || among(word, CONTRACTED);
}

/* ---- a text ---- */

struct reading {
    double *f;            /* counts, by figure */
    char last[STYLE_WORD_MAX];
    size_t letters, in_sentence;
    int closing, in_code; /* closing: the sentence so far has a word that closes */
    int closed;           /* the last whole one had */
};

static void read_word(struct reading *r, const char *word) {
    double *f = r->f;
    if (f[STYLE_WORDS]++ == 0) f[STYLE_GREETINGS] = among(word, GREETINGS);
    /* "good morning", "oh hello" */
    if (f[STYLE_WORDS] == 2 && (strcmp(r->last, "oh") == 0 || strcmp(r->last, "well") == 0))
        f[STYLE_GREETINGS] = among(word, " hi hello hey dear ");
    if (f[STYLE_WORDS] == 2 && strcmp(r->last, "good") == 0)
        f[STYLE_GREETINGS] = among(word, " morning day afternoon evening ");
    f[STYLE_HEDGES] += among(word, HEDGES) || (strcmp(r->last, "i") == 0 && among(word, " think guess suppose believe "));
    f[STYLE_POLITE] += among(word, POLITE);
    f[STYLE_CONTRACTIONS] += is_contraction(word);
    f[STYLE_FIRST_PERSON] += among(word, FIRST);
    f[STYLE_SECOND_PERSON] += among(word, SECOND);
    r->closing |= among(word, CLOSINGS);
    r->in_sentence++;
    for (const char *c = word; *c; c++) r->letters += ((unsigned char)*c & 0xC0) != 0x80;
    strcpy(r->last, word);
}

static void end_sentence(struct reading *r) {
    if (r->in_sentence == 0) return;
    r->f[STYLE_SENTENCES]++;
    r->closed = r->closing;
    r->in_sentence = 0;
    r->closing = 0;
}

/* Behind the mark that a line of a list or a heading begins with. */
static const char *read_mark(struct reading *r, const char *at, const char *end) {
    size_t n = 0, left = (size_t)(end - at);
    while (n < left && n < 7 && at[n] == '#') n++;
    if (n > 0 && n < 7 && n < left && at[n] == ' ') {
        r->f[STYLE_HEADINGS]++;
        return at + n;
    }
    n = 0;
    if (left > 1 && strchr("-*+", at[0]) && at[1] == ' ') n = 1;
    if (left > 3 && memcmp(at, "\xE2\x80\xA2", 3) == 0) n = 3; /* a bullet */
    if (n == 0) {
        while (n < left && n < 3 && at[n] >= '0' && at[n] <= '9') n++;
        n = n > 0 && n + 1 < left && (at[n] == '.' || at[n] == ')') && at[n + 1] == ' ' ? n + 1 : 0;
    }
    r->f[STYLE_LISTS] += n > 0;
    return at + n;
}

static void read_marks(struct reading *r, const char *at, const char *end) {
    size_t bold = 0, ticks = 0;
    while (at < end) {
        int32_t c = next(&at, end);
        if (c == '*' && at < end && *at == '*') {
            bold++;
            at++;
        }
        ticks += c == '`';
        r->f[STYLE_QUESTIONS] += c == '?' || c == 0xFF1F;
        r->f[STYLE_EXCLAMATIONS] += c == '!' || c == 0xFF01;
        r->f[STYLE_EMOJI] += is_emoji(c);
    }
    r->f[STYLE_BOLD] += (double)(bold / 2);
    r->f[STYLE_CODE] += (double)(ticks / 2);
}

/* A stop ends a sentence in front of a blank, a closing quote or the end, not within 3.5 or e.g. */
static int ends_here(const char *at, const char *end) {
    if (at >= end) return 1;
    int32_t c = next(&at, end);
    return c == ' ' || c == '\t' || c == '"' || c == '\'' || c == ')' || c == '*' || c > 0x2000 || is_stop(c);
}

static void read_line(struct reading *r, const char *at, const char *end) {
    char word[STYLE_WORD_MAX];
    if (end - at >= 3 && memcmp(at, "```", 3) == 0) {
        r->f[STYLE_CODE] += !r->in_code;
        r->in_code = !r->in_code;
        return;
    }
    if (r->in_code) return;
    at = read_mark(r, at, end);
    read_marks(r, at, end);
    while (at < end) {
        const char *ahead = at;
        int32_t c = next(&ahead, end);
        if (is_part(c)) {
            if (style_word(&at, end, word)) read_word(r, word);
            continue;
        }
        at = ahead;
        if (is_stop(c) && ends_here(at, end)) end_sentence(r);
    }
    end_sentence(r); /* a list's item, a heading */
}

static int is_capital(const char *text, const char *end, double *out) {
    while (text < end) {
        int32_t c = next(&text, end);
        if (!is_letter(c)) continue;
        *out = utf8proc_category(c) == UTF8PROC_CATEGORY_LU || utf8proc_category(c) == UTF8PROC_CATEGORY_LT;
        return 1;
    }
    return 0;
}

void style_measure(const char *text, int ended, double out[STYLE_FIGURES]) {
    struct reading r = {.f = out};
    const char *end = text + strlen(text), *at = text;
    int paragraph = 0;
    for (int i = 0; i < STYLE_FIGURES; i++) out[i] = 0;
    while (at < end) {
        const char *line = at, *stop = memchr(at, '\n', (size_t)(end - at));
        if (!stop) stop = end;
        at = stop < end ? stop + 1 : end;
        while (line < stop && (*line == ' ' || *line == '\t' || *line == '\r')) line++;
        if (line < stop && !paragraph) out[STYLE_PARAGRAPHS]++;
        paragraph = line < stop;
        read_line(&r, line, stop);
    }
    for (at = text; at < end; out[STYLE_CHARACTERS]++) (void)next(&at, end);
    double words = out[STYLE_WORDS];
    out[STYLE_CLOSINGS] = r.closed;
    out[STYLE_SENTENCE_WORDS] = words > 0 ? words / out[STYLE_SENTENCES] : NAN;
    out[STYLE_WORD_LETTERS] = words > 0 ? (double)r.letters / words : NAN;
    for (int i = STYLE_HEDGES; i <= STYLE_SECOND_PERSON; i++) out[i] = words > 0 ? 100 * out[i] / words : NAN;
    if (!is_capital(text, end, &out[STYLE_CAPITAL])) out[STYLE_CAPITAL] = NAN;
    out[STYLE_ENDED] = ended;
}

/* ---- two makers ---- */

enum { EXACT_MAX = 14, FLIPS = 20000 };
static const double LEVEL = 0.05;

/* Share of sign flips whose sum is at least as far from 0 as the sum of d(m); the rounding of sums decides nothing. */
static double flip_test(const double *d, size_t m) {
    double sum = 0, size = 0;
    size_t far = 0, flips = m <= EXACT_MAX ? (size_t)1 << m : FLIPS;
    for (size_t i = 0; i < m; i++) sum += d[i], size += fabs(d[i]);
    double limit = fabs(sum) - 1e-9 * size;
    for (size_t f = 0; f < flips; f++) {
        uint64_t signs = m <= EXACT_MAX ? f : 0;
        double flipped = 0;
        for (size_t i = 0; i < m; i++) {
            if (m > EXACT_MAX && i % 64 == 0) signs = random_u64(0x5747, f * 64 + i / 64);
            flipped += signs >> (i % 64) & 1 ? -d[i] : d[i];
        }
        far += fabs(flipped) >= limit;
    }
    return m <= EXACT_MAX ? (double)far / (double)flips : (double)(far + 1) / (double)(flips + 1);
}

static void compare_one(const double (*base)[STYLE_FIGURES], const double (*adapter)[STYLE_FIGURES], size_t n, int i,
                        double *d, struct style_difference *out) {
    size_t m = 0;
    *out = (struct style_difference){.p = NAN, .verdict = STYLE_TOO_FEW};
    for (size_t k = 0; k < n; k++) {
        double a = base[k][i], b = adapter[k][i];
        if (!isfinite(a) || !isfinite(b)) continue;
        out->n++;
        out->base += a;
        out->adapter += b;
        out->more += b > a;
        out->less += b < a;
        if (a != b) d[m++] = b - a;
    }
    out->base = out->n ? out->base / (double)out->n : NAN;
    out->adapter = out->n ? out->adapter / (double)out->n : NAN;
    /* the least that so many flips can give is above the level */
    if (m < 63 && 2.0 / (double)((uint64_t)1 << m) >= LEVEL) return;
    out->p = flip_test(d, m);
    out->verdict = STYLE_ALIKE;
}

static int compare_p(const void *a, const void *b) {
    double x = (*(struct style_difference *const *)a)->p, y = (*(struct style_difference *const *)b)->p;
    return x < y ? -1 : x > y;
}

/* The i-th smallest of m times (m - i), never below the one before it. */
static void correct(struct style_difference *all) {
    struct style_difference *tested[STYLE_FIGURES];
    size_t m = 0;
    double least = 0;
    for (int i = 0; i < STYLE_FIGURES; i++)
        if (isfinite(all[i].p)) tested[m++] = &all[i];
    qsort(tested, m, sizeof *tested, compare_p);
    for (size_t i = 0; i < m; i++) {
        least = fmax(least, fmin(1, tested[i]->p * (double)(m - i)));
        tested[i]->p = least;
        if (least < LEVEL) tested[i]->verdict = STYLE_DIFFERENT;
    }
}

void style_compare(const double (*base)[STYLE_FIGURES], const double (*adapter)[STYLE_FIGURES], size_t n,
                   struct style_difference out[STYLE_FIGURES]) {
    double *d = malloc((n + 1) * sizeof *d);
    for (int i = 0; i < STYLE_FIGURES; i++) {
        out[i] = (struct style_difference){.p = NAN, .base = NAN, .adapter = NAN};
        if (d) compare_one(base, adapter, n, i, d, &out[i]);
    }
    free(d);
    correct(out);
}
