#include "core/model/pretokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "core/base/excerpt.h"

/* Classes, to be written inside [ ].
 *
 * SPACE is White_Space of Unicode: PCRE2's own \s counts U+180E too. LETTER and NUMBER add what
 * became a letter or a number in Unicode 15 and 15.1, which llama.cpp knows, for a PCRE2 whose tables
 * are older (10.42 has Unicode 14). */
#define SPACE "\\x{9}-\\x{d} \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define LETTER                                                                                                         \
    "\\p{L}\\x{1123f}\\x{11240}\\x{11f02}\\x{11f04}-\\x{11f10}\\x{11f12}-\\x{11f33}\\x{1342f}\\x{13441}-\\x{13446}"    \
    "\\x{1b132}\\x{1b155}\\x{1df25}-\\x{1df2a}\\x{1e030}-\\x{1e06d}\\x{1e4d0}-\\x{1e4eb}\\x{2b739}"                    \
    "\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}"
#define NUMBER "\\p{N}\\x{11f50}-\\x{11f59}\\x{1d2c0}-\\x{1d2d3}\\x{1e4f0}-\\x{1e4f9}"

/* Quantifiers are possessive wherever giving back could not help, which keeps each match linear. */
#define ENGLISH "'s|'t|'re|'ve|'m|'ll|'d"
#define ENGLISH_ANY_CASE "'[sStTmMdD]|'[rR][eE]|'[vV][eE]|'[lL][lL]"
#define LETTERS " ?[" LETTER "]++"
#define SYMBOLS " ?[^" SPACE LETTER NUMBER "]++"
/* A run of spaces leaves its last one to the word behind it. */
#define SPACES "[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+"
/* Digits are cut out before the spaces are looked at: a run in front of one stays whole. */
#define SPACES_BEFORE_DIGIT "[" SPACE "]+(?![^" SPACE NUMBER "])|[" SPACE "]+"
#define GPT2 ENGLISH "|" LETTERS "| ?[" NUMBER "]++|" SYMBOLS "|" SPACES
#define SMOLLM ENGLISH "|[" NUMBER "]|" LETTERS "|" SYMBOLS "|" SPACES_BEFORE_DIGIT
/* digits: quantifier of a group of digits */
#define LLAMA3(digits)                                                                                                 \
    ENGLISH_ANY_CASE "|[^\\r\\n" LETTER NUMBER "]?[" LETTER "]++|[" NUMBER "]" digits "|" SYMBOLS "[\\r\\n]*+|"        \
                     "[" SPACE "]*[\\r\\n]++|" SPACES

struct scheme {
    const char *name, *expression;
    int ignores_merges, adds_bos;
};
/* Names that llama.cpp gives the same rules stand together. */
static const struct scheme schemes[] = {
    {"smollm", SMOLLM, 0, 0},
    {"gpt-2", GPT2, 0, 0},
    {"phi-2", GPT2, 0, 0},
    {"gigachat", GPT2, 0, 0},
    {"a.x-4.0", GPT2, 0, 0},
    {"mellum", GPT2, 0, 0},
    {"exaone4", GPT2, 0, 0},
    {"llama-bpe", LLAMA3("{1,3}+"), 1, 1},
    {"llama3", LLAMA3("{1,3}+"), 1, 1},
    {"llama-v3", LLAMA3("{1,3}+"), 1, 1},
    {"falcon3", LLAMA3("{1,3}+"), 1, 1},
    {"falcon-h1", LLAMA3("{1,3}+"), 1, 1},
    {"pixtral", LLAMA3("{1,3}+"), 1, 1},
    {"midm-2.0", LLAMA3("{1,3}+"), 1, 1},
    {"lfm2", LLAMA3("{1,3}+"), 1, 1},
    {"qwen2", LLAMA3(""), 0, 0},
    {"deepseek-r1-qwen", LLAMA3(""), 0, 0},
    {"kormo", LLAMA3(""), 0, 0},
    {"megrez", LLAMA3(""), 0, 0},
};

struct pretokenizer {
    const struct scheme *scheme;
    pcre2_code *code;
};

static const struct scheme *find_scheme(const char *name, size_t size) {
    for (size_t i = 0; i < sizeof schemes / sizeof *schemes; i++)
        if (strlen(schemes[i].name) == size && memcmp(schemes[i].name, name, size) == 0) return &schemes[i];
    return NULL;
}

int pretokenizer_create(const char *name, size_t name_size, struct pretokenizer **out, attune_error *err) {
    const struct scheme *scheme = find_scheme(name, name_size);
    if (!scheme)
        return error_set(err, ATTUNE_ERROR_UNSUPPORTED, "tokenizer.ggml.pre",
                         "the pre-tokenizer \"%s\" is not known; attune knows smollm, gpt-2, llama-bpe and qwen2",
                         excerpt_of(name, name_size).text);
    struct pretokenizer *pre = calloc(1, sizeof *pre);
    if (!pre) return error_set_memory(err, "a pre-tokenizer", sizeof *pre);
    pre->scheme = scheme;
    int fault;
    PCRE2_SIZE at;
    /* Anchored here and not at the match, where the JIT would not take it. */
    pre->code = pcre2_compile((PCRE2_SPTR)scheme->expression, PCRE2_ZERO_TERMINATED,
                              PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &fault, &at, NULL);
    if (!pre->code) {
        pretokenizer_destroy(pre);
        if (fault == PCRE2_ERROR_HEAP_FAILED) return error_set_memory(err, "a regular expression", 0);
        return error_set(err, ATTUNE_ERROR_INTERNAL, NULL, "the expression of %s does not compile: fault %d at %zu",
                         scheme->name, fault, (size_t)at);
    }
    /* Without a JIT, or where the system forbids one, matching falls back to the interpreter. */
    (void)pcre2_jit_compile(pre->code, PCRE2_JIT_COMPLETE);
    *out = pre;
    return ATTUNE_OK;
}

void pretokenizer_destroy(struct pretokenizer *pre) {
    if (!pre) return;
    pcre2_code_free(pre->code);
    free(pre);
}

int pretokenizer_ignores_merges(const struct pretokenizer *pre) { return pre->scheme->ignores_merges; }
int pretokenizer_adds_bos(const struct pretokenizer *pre) { return pre->scheme->adds_bos; }

/* Bytes of the valid UTF-8 character at text, 0 where there is none. */
static size_t character(const char *text, size_t length) {
    if (!((unsigned char)text[0] & 0x80)) return 1;
    utf8proc_int32_t unused;
    utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)text, length > 4 ? 4 : (utf8proc_ssize_t)length,
                                          &unused);
    return n > 0 ? (size_t)n : 0;
}

/* PCRE2 must never see invalid UTF-8. llama.cpp puts U+FFFD for each byte that is none, cuts, and so
 * loses the byte. Here a control character takes its place, while cutting only: it is one byte long, so
 * offsets stay, and to the expressions it is what U+FFFD is: neither letter, number nor space. *copy is
 * NULL where the text is valid. */
static int mask_invalid(const char *text, size_t length, char **copy, attune_error *err) {
    *copy = NULL;
    for (size_t at = 0; at < length;) {
        size_t n = character(text + at, length - at);
        if (!n) {
            if (!*copy) {
                *copy = malloc(length);
                if (!*copy) return error_set_memory(err, "a text that is not valid UTF-8", length);
                memcpy(*copy, text, length);
            }
            (*copy)[at] = '\1';
            n = 1;
        }
        at += n;
    }
    return ATTUNE_OK;
}

/* The expressions need a few steps for each character of the run they look at; the limits leave room
 * for that and for nothing else. */
static pcre2_match_context *limits(size_t length) {
    pcre2_match_context *context = pcre2_match_context_create(NULL);
    if (!context) return NULL;
    enum { BASE = 1 << 20, STEPS = 32, HEAP_KIB = 1 << 16 };
    size_t most = length < (UINT32_MAX - BASE) / STEPS ? BASE + STEPS * length : UINT32_MAX;
    pcre2_set_match_limit(context, (uint32_t)most);
    pcre2_set_heap_limit(context, HEAP_KIB);
    return context;
}

int pretokenizer_split(const struct pretokenizer *pre, const char *text, size_t length,
                       int (*word)(void *user, const char *at, size_t size), void *user, attune_error *err) {
    char *copy;
    int code = mask_invalid(text, length, &copy, err);
    if (code != ATTUNE_OK) return code;
    const PCRE2_SPTR subject = (PCRE2_SPTR)(copy ? copy : text);
    pcre2_match_context *context = limits(length);
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    if (!context || !match) {
        code = error_set_memory(err, "a regular expression", 0);
        goto out;
    }
    /* The text was checked above: checking it at each match would be quadratic. */
    uint32_t options = PCRE2_NO_UTF_CHECK;
    for (size_t at = 0; at < length;) {
        int found = pcre2_match(pre->code, subject, length, at, options, match, context);
        if (found == PCRE2_ERROR_JIT_STACKLIMIT && !(options & PCRE2_NO_JIT)) {
            options |= PCRE2_NO_JIT;
            continue;
        }
        size_t end = found > 0 ? pcre2_get_ovector_pointer(match)[1] : at;
        if (end <= at) {
            code = error_set(err, ATTUNE_ERROR_INTERNAL, NULL, "the words of a text could not be found: PCRE2 says %d",
                             found);
            goto out;
        }
        code = word(user, text + at, end - at);
        if (code != ATTUNE_OK) goto out;
        at = end;
    }
out:
    pcre2_match_data_free(match);
    pcre2_match_context_free(context);
    free(copy);
    return code;
}
