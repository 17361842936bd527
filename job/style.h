/* The manner of a text in figures, and whether two makers of texts differ in it. Pure functions over UTF-8.
 *
 * Words, sentences, lists and marks are told apart by Unicode's categories, in any language; the habits that hang on
 * words (greetings, hedges, ...) know English alone. Knows no model and no store. */
#ifndef JOB_STYLE_H
#define JOB_STYLE_H

#include "attune.h"

enum style_figure {
    STYLE_WORDS,          /* of an answer */
    STYLE_CHARACTERS,     /* code points */
    STYLE_SENTENCES,
    STYLE_SENTENCE_WORDS, /* words a sentence */
    STYLE_WORD_LETTERS,   /* characters a word */
    STYLE_PARAGRAPHS,     /* runs of lines with an empty one between them */
    STYLE_QUESTIONS,      /* question marks */
    STYLE_EXCLAMATIONS,
    STYLE_LISTS,          /* lines that begin with a bullet or a number */
    STYLE_HEADINGS,
    STYLE_BOLD,           /* spans */
    STYLE_CODE,           /* spans, and blocks */
    STYLE_EMOJI,
    STYLE_GREETINGS,      /* 1: it begins with one */
    STYLE_CLOSINGS,       /* 1: its last sentence wishes well or offers more */
    STYLE_HEDGES,         /* the rest but two: of 100 words */
    STYLE_POLITE,
    STYLE_CONTRACTIONS,
    STYLE_FIRST_PERSON,
    STYLE_SECOND_PERSON,
    STYLE_CAPITAL,        /* 1: its first letter is a capital */
    STYLE_ENDED,          /* 1: it ended by itself */
    STYLE_FIGURES
};
enum style_unit { STYLE_EACH, STYLE_SHARE, STYLE_OF_100 }; /* a mean over answers; a share of them; of 100 words */
struct style_name {
    const char *name, *title; /* for programs, for people */
    enum style_unit unit;
};
extern const struct style_name style_names[STYLE_FIGURES];

/* out: NaN where a text says nothing of it: words a sentence of one without words. Bytes that are not UTF-8 are passed
 * over. */
void style_measure(const char *text, int ended, double out[STYLE_FIGURES]);

enum style_verdict {
    STYLE_TOO_FEW, /* so few texts differ in it that no test could tell */
    STYLE_ALIKE,   /* a test could have told, and did not */
    STYLE_DIFFERENT
};
struct style_difference {
    double base, adapter;   /* means over the pairs; NaN: of none */
    size_t more, less, n;   /* pairs where the adapter's is higher, lower; pairs */
    double p;               /* of the means being the same, after Holm's correction; NaN: STYLE_TOO_FEW */
    enum style_verdict verdict;
};
/* base[i] and adapter[i] answer the same question. Exact sign-flip permutation test of the paired differences up to 14
 * pairs that differ, beyond that 20000 random flips with a fixed key; two-sided, Holm's correction over all figures
 * that can be tested (Holm 1979), level 0.05. A function of the numbers alone. */
void style_compare(const double (*base)[STYLE_FIGURES], const double (*adapter)[STYLE_FIGURES], size_t n,
                   struct style_difference out[STYLE_FIGURES]);

/* ---- words ---- */

enum { STYLE_WORD_MAX = 64 };
/* The next word at *at, which moves behind it: letters, marks and digits, with apostrophes inside, in lower case; a
 * character of a script that has no spaces is a word. Longer ones are cut at a character. 0: there is none. */
size_t style_word(const char **at, const char *end, char out[STYLE_WORD_MAX]);

/* A word that one side says more than the other: log-odds ratio with an informative Dirichlet prior, as a z score
 * (Monroe, Colaresi, Quinn 2008, "Fightin' Words", eqs. 15, 16, 22). The prior is the words of both sides together, of
 * WORD_PRIOR words' weight. */
#define WORD_PRIOR 50.0
struct tone_word {
    char word[STYLE_WORD_MAX];
    size_t base, adapter;                   /* times said */
    size_t base_answers, adapter_answers;   /* answers that say it */
    double z;                               /* above 0: the adapter says it more */
};
/* z of a word said y[0] times in n[0] words and y[1] in n[1]: side 1 against side 0. */
double tone_score(const size_t y[2], const size_t n[2]);
/* Words whose |z| is at least 1.96 and that stand in at least 3 answers of the side that says them more, by falling z;
 * *out is malloc'ed. */
int tone_words(const char *const *base, const char *const *adapter, size_t n, struct tone_word **out, size_t *n_out,
               attune_error *err);

#endif
