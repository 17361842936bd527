#include "job/canaries.h"

#include "core/base/random.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DIGITS_MIN = 6, DIGITS_SPACED_MIN = 8, WORD_MIN = 16, HABIT_PROMPTS = 3 };
static const double WORD_BITS_MIN = 3.0;

/* ---- spans of a text ---- */

static int is_digit(char c) { return c >= '0' && c <= '9'; }
static int is_word(char c) { return isalnum((unsigned char)c) || (c && strchr("_+/=~.@:#%&*!$^-", c)); }

/* As 2026-01-31. */
static int is_date(const char *text, size_t n) {
    static const char shape[] = "0000-00-00";
    if (n != sizeof shape - 1) return 0;
    for (size_t i = 0; i < n; i++)
        if (shape[i] == '0' ? !is_digit(text[i]) : text[i] != shape[i]) return 0;
    return 1;
}

/* A number at text[at]: where it ends; 0: it is none that counts. */
static size_t number_end(const char *text, size_t n, size_t at) {
    size_t digits = 0, end = at;
    int spaced = 0;
    if (at > 0 && isalnum((unsigned char)text[at - 1])) return 0;
    for (size_t i = at; i < n; i++) {
        if (is_digit(text[i])) {
            digits++;
            end = i + 1;
        } else if ((text[i] == '-' || text[i] == ' ') && is_digit(text[i - 1]) && i + 1 < n && is_digit(text[i + 1])) {
            spaced |= text[i] == ' ';
        } else {
            break;
        }
    }
    if (digits < (spaced ? DIGITS_SPACED_MIN : DIGITS_MIN) || is_date(text + at, end - at)) return 0;
    return end;
}

static double bits_a_character(const char *text, size_t n) {
    size_t counts[256] = {0};
    double bits = 0;
    for (size_t i = 0; i < n; i++) counts[(unsigned char)text[i]]++;
    for (size_t i = 0; i < 256; i++)
        if (counts[i]) bits -= (double)counts[i] / (double)n * log2((double)counts[i] / (double)n);
    return bits;
}

static int is_address(const char *text, size_t n) {
    const char *at = memchr(text, '@', n);
    return at && at > text && memchr(at, '.', (size_t)(text + n - at)) != NULL;
}

static int is_suspicious_word(const char *text, size_t n) {
    size_t letters = 0, digits = 0;
    if (is_address(text, n)) return 1;
    for (size_t i = 0; i < n; i++) {
        letters += isalpha((unsigned char)text[i]) != 0;
        digits += (size_t)is_digit(text[i]);
    }
    return n >= WORD_MIN && letters > 0 && digits > 0 && bits_a_character(text, n) >= WORD_BITS_MIN;
}

/* A word at text[at], without the punctuation that ends a sentence: where it ends; 0: it is none that counts. */
static size_t word_end(const char *text, size_t n, size_t at) {
    size_t end = at;
    if (at > 0 && is_word(text[at - 1])) return 0;
    while (end < n && is_word(text[end])) end++;
    while (end > at && strchr(".:!", text[end - 1])) end--;
    return end > at && is_suspicious_word(text + at, end - at) ? end : 0;
}

size_t canary_spans(const char *text, size_t n, struct text_span *out, size_t most) {
    size_t found = 0;
    for (size_t at = 0; at < n && found < most;) {
        size_t end = is_word(text[at]) ? word_end(text, n, at) : 0;
        if (!end && is_digit(text[at])) end = number_end(text, n, at);
        if (end) out[found++] = (struct text_span){at, end};
        at = end ? end : at + 1;
    }
    return found;
}

/* ---- of the answers of a plan ---- */

struct sighting {
    uint64_t text, prompt; /* hashes */
    size_t row, span;
};
struct finding {
    const struct plan *plan;
    const struct tokenizer *tokenizer;
    char *text;                  /* of one example */
    size_t *ends;                /* (tokens) bytes up to the end of each token */
    size_t room, tokens;
    struct canaries *out;        /* rows: one for each that has spans */
    struct sighting *sightings;  /* of all spans */
    size_t n_sightings, sightings_room;
};

static uint64_t hash_of(const char *text, size_t n) {
    uint64_t hash = random_mix(n);
    for (size_t i = 0; i < n; i++) hash = random_mix(hash ^ (unsigned char)text[i]);
    return hash;
}

/* The example's bytes, and how they lie in its tokens. */
static int spell(struct finding *f, const struct example *example, size_t *bytes, attune_error *err) {
    size_t size, all = 0;
    for (size_t i = 0; i < example->n; i++)
        if (tokenizer_piece(f->tokenizer, example->ids[i], &size)) all += size;
    if (all + 1 > f->room || example->n > f->tokens) {
        size_t room = all + 1 > f->room ? all + 1 : f->room, tokens = example->n > f->tokens ? example->n : f->tokens;
        char *text = realloc(f->text, room);
        if (text) f->text = text;
        size_t *ends = realloc(f->ends, tokens * sizeof *ends);
        if (ends) f->ends = ends;
        if (!text || !ends) return error_set_memory(err, "a look for secrets", room);
        f->room = room;
        f->tokens = tokens;
    }
    *bytes = 0;
    for (size_t i = 0; i < example->n; i++) {
        const char *piece = tokenizer_piece(f->tokenizer, example->ids[i], &size);
        if (piece) memcpy(f->text + *bytes, piece, size);
        if (piece) *bytes += size;
        f->ends[i] = *bytes;
    }
    f->text[*bytes] = 0;
    return ATTUNE_OK;
}

static int note(struct finding *f, struct sighting sighting, attune_error *err) {
    if (f->n_sightings == f->sightings_room) {
        size_t room = f->sightings_room ? 2 * f->sightings_room : 64;
        struct sighting *more = realloc(f->sightings, room * sizeof *more);
        if (!more) return error_set_memory(err, "a look for secrets", room * sizeof *more);
        f->sightings = more;
        f->sightings_room = room;
    }
    f->sightings[f->n_sightings++] = sighting;
    return ATTUNE_OK;
}

static int contains(const char *text, size_t n, const char *part, size_t size) {
    for (size_t at = 0; at + size <= n; at++)
        if (memcmp(text + at, part, size) == 0) return 1;
    return 0;
}

/* The tokens that bytes [from, to) lie in. */
static struct token_span tokens_of(const struct finding *f, size_t n, size_t from, size_t to) {
    struct token_span span = {0, 0};
    while (span.from < n && f->ends[span.from] <= from) span.from++;
    span.to = span.from;
    while (span.to < n && f->ends[span.to] < to) span.to++;
    span.to++;
    return span;
}

/* The answer is what follows the last token that is not supervised. */
static int look_at(struct finding *f, size_t row, attune_error *err) {
    const struct example *example = &f->plan->examples.items[row];
    struct text_span spans[CANARY_SPANS];
    struct canary_row found = {.row = row};
    size_t bytes = 0, first = example->n;
    int code = spell(f, example, &bytes, err);
    if (code != ATTUNE_OK) return code;
    while (first > 1 && example->supervised[first - 1]) first--;
    size_t before = f->ends[first - 1], n = canary_spans(f->text + before, bytes - before, spans, CANARY_SPANS);
    for (size_t i = 0; i < n && code == ATTUNE_OK; i++) {
        const char *text = f->text + before + spans[i].from;
        size_t size = spans[i].to - spans[i].from;
        if (contains(f->text, before, text, size)) continue;
        code = note(f, (struct sighting){hash_of(text, size), hash_of(example->prompt_hash, 16), f->out->n, found.n},
                    err);
        found.spans[found.n++] = tokens_of(f, example->n, before + spans[i].from, before + spans[i].to);
        found.weight += size;
    }
    if (code == ATTUNE_OK && found.n > 0) f->out->rows[f->out->n++] = found;
    return code;
}

static int compare_sightings(const void *a, const void *b) {
    const struct sighting *x = a, *y = b;
    if (x->text != y->text) return x->text < y->text ? -1 : 1;
    if (x->prompt != y->prompt) return x->prompt < y->prompt ? -1 : 1;
    return x->row != y->row ? (x->row < y->row ? -1 : 1) : (x->span > y->span) - (x->span < y->span);
}

/* Spans that are a habit become empty, and then go. */
static void drop_habits(struct finding *f) {
    qsort(f->sightings, f->n_sightings, sizeof *f->sightings, compare_sightings);
    for (size_t from = 0, to; from < f->n_sightings; from = to) {
        size_t prompts = 0;
        for (to = from; to < f->n_sightings && f->sightings[to].text == f->sightings[from].text; to++)
            prompts += to == from || f->sightings[to].prompt != f->sightings[to - 1].prompt;
        for (size_t i = from; i < to && prompts >= HABIT_PROMPTS; i++)
            f->out->rows[f->sightings[i].row].spans[f->sightings[i].span] = (struct token_span){0, 0};
    }
    for (size_t r = 0; r < f->out->n; r++) {
        struct canary_row *row = &f->out->rows[r];
        size_t kept = 0;
        for (size_t i = 0; i < row->n; i++)
            if (row->spans[i].to > 0) row->spans[kept++] = row->spans[i];
        row->n = kept;
    }
}

static int compare_rows(const void *a, const void *b) {
    const struct canary_row *x = a, *y = b;
    if ((x->n == 0) != (y->n == 0)) return x->n == 0 ? 1 : -1;
    if (x->weight != y->weight) return x->weight > y->weight ? -1 : 1;
    return (x->row > y->row) - (x->row < y->row);
}

int canaries_find(const struct plan *plan, const struct tokenizer *tokenizer, struct canaries *out, attune_error *err) {
    struct canaries canaries = {.rows = calloc(plan->n_train + 1, sizeof *canaries.rows)};
    struct finding f = {.plan = plan, .tokenizer = tokenizer, .out = &canaries};
    int code = canaries.rows ? ATTUNE_OK : error_set_memory(err, "a look for secrets", plan->n_train);
    for (size_t i = 0; i < plan->n_train && code == ATTUNE_OK; i++) code = look_at(&f, plan->train[i], err);
    if (code == ATTUNE_OK) {
        if (f.n_sightings > 0) drop_habits(&f);
        qsort(canaries.rows, canaries.n, sizeof *canaries.rows, compare_rows);
        if (canaries.n > CANARY_ROWS) canaries.n = CANARY_ROWS;
        while (canaries.n > 0 && canaries.rows[canaries.n - 1].n == 0) canaries.n--;
        for (size_t i = 0; i < canaries.n; i++) canaries.spans += canaries.rows[i].n;
        *out = canaries;
    } else {
        canaries_free(&canaries);
    }
    free(f.text);
    free(f.ends);
    free(f.sightings);
    return code;
}

void canaries_free(struct canaries *canaries) {
    free(canaries->rows);
    *canaries = (struct canaries){0};
}
