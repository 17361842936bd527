/* Words that the adapter says more or less than the base. */
#include "job/style.h"

#include "core/base/error.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ANSWERS_MIN = 3 };
static const double Z_MIN = 1.96;

double tone_score(const size_t y[2], const size_t n[2]) {
    double said = (double)(y[0] + y[1]), all = (double)(n[0] + n[1]);
    if (said == 0 || all == said) return 0;
    double prior = WORD_PRIOR * said / all, log_odds[2];
    for (int side = 0; side < 2; side++)
        log_odds[side] = log(((double)y[side] + prior) / ((double)n[side] + WORD_PRIOR - (double)y[side] - prior));
    return (log_odds[1] - log_odds[0]) / sqrt(1 / ((double)y[1] + prior) + 1 / ((double)y[0] + prior));
}

/* One word said once. */
struct said {
    char word[STYLE_WORD_MAX];
    int side;
    size_t answer;
};
struct sayings {
    struct said *items;
    size_t n, room, words[2];
};

static int compare_said(const void *a, const void *b) {
    const struct said *x = a, *y = b;
    int order = strcmp(x->word, y->word);
    if (order == 0) order = x->side - y->side;
    return order ? order : x->answer < y->answer ? -1 : x->answer > y->answer;
}

static int note(struct sayings *s, const char *text, int side, size_t answer, attune_error *err) {
    const char *end = text + strlen(text);
    char word[STYLE_WORD_MAX];
    while (style_word(&text, end, word)) {
        if (s->n == s->room) {
            size_t room = s->room ? 2 * s->room : 1024;
            struct said *items = realloc(s->items, room * sizeof *items);
            if (!items) return error_set_memory(err, "words of answers", room * sizeof *items);
            s->items = items;
            s->room = room;
        }
        struct said *said = &s->items[s->n++];
        strcpy(said->word, word);
        said->side = side;
        said->answer = answer;
        s->words[side]++;
    }
    return ATTUNE_OK;
}

/* The word at items[from], counted; returns the index behind it. */
static size_t count(const struct sayings *s, size_t from, struct tone_word *out) {
    size_t i = from;
    memset(out, 0, sizeof *out);
    strcpy(out->word, s->items[from].word);
    for (; i < s->n && strcmp(s->items[i].word, out->word) == 0; i++) {
        const struct said *said = &s->items[i];
        int fresh = i == from || said->side != said[-1].side || said->answer != said[-1].answer;
        *(said->side ? &out->adapter : &out->base) += 1;
        *(said->side ? &out->adapter_answers : &out->base_answers) += (size_t)fresh;
    }
    out->z = tone_score((size_t[]){out->base, out->adapter}, s->words);
    return i;
}

static int compare_z(const void *a, const void *b) {
    const struct tone_word *x = a, *y = b;
    return x->z > y->z ? -1 : x->z < y->z ? 1 : strcmp(x->word, y->word);
}

int tone_words(const char *const *base, const char *const *adapter, size_t n, struct tone_word **out, size_t *n_out,
               attune_error *err) {
    struct sayings s = {0};
    struct tone_word *words = NULL;
    size_t kept = 0;
    int code = ATTUNE_OK;
    for (size_t i = 0; i < n && code == ATTUNE_OK; i++) {
        code = note(&s, base[i], 0, i, err);
        if (code == ATTUNE_OK) code = note(&s, adapter[i], 1, i, err);
    }
    if (code == ATTUNE_OK && !(words = malloc((s.n + 1) * sizeof *words)))
        code = error_set_memory(err, "words of answers", (s.n + 1) * sizeof *words);
    if (code == ATTUNE_OK && s.n > 0) qsort(s.items, s.n, sizeof *s.items, compare_said);
    for (size_t i = 0; code == ATTUNE_OK && i < s.n;) {
        struct tone_word word;
        i = count(&s, i, &word);
        if (fabs(word.z) >= Z_MIN && (word.z > 0 ? word.adapter_answers : word.base_answers) >= ANSWERS_MIN)
            words[kept++] = word;
    }
    free(s.items);
    if (code != ATTUNE_OK) {
        free(words);
        return code;
    }
    if (kept > 0) qsort(words, kept, sizeof *words, compare_z);
    *out = words;
    *n_out = kept;
    return ATTUNE_OK;
}
