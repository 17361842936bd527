/* One pass over the text. At a byte that is in the cue of a rule the rest of the cue is compared, and then the
 * rule's expression is matched there and only there. What was found is stepped over: nothing counts twice. */
#include "datastore/findings.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "core/base/fault.h"
#include "datastore/finding_rules.h"

const char *attune_finding_name(int finding) {
    static const char *const names[ATTUNE_FINDINGS] = {
        [ATTUNE_FINDING_CARD] = "card number",     [ATTUNE_FINDING_IBAN] = "bank account number (IBAN)",
        [ATTUNE_FINDING_EMAIL] = "e-mail address", [ATTUNE_FINDING_PHONE] = "phone number",
        [ATTUNE_FINDING_TOKEN] = "access token",   [ATTUNE_FINDING_PRIVATE_KEY] = "private key",
        [ATTUNE_FINDING_APP] = "found by the app",
    };
    return finding >= 0 && finding < ATTUNE_FINDINGS ? names[finding] : NULL;
}

int findings_any(const struct findings *findings) {
    for (int i = 0; i < ATTUNE_FINDINGS; i++)
        if (findings->count[i]) return 1;
    return 0;
}

/* ---- memory ---- */

/* Of PCRE2 and of this file. */
static void *allocate(size_t n, void *unused) {
    (void)unused;
    return fault_fails("findings.allocate") ? NULL : malloc(n);
}

static void release(void *memory, void *unused) {
    (void)unused;
    free(memory);
}

/* ---- the rules, compiled ---- */

enum { RULES_MAX = 48, CUES_MAX = 128, CUE_BYTES = 32, CUES_A_BYTE = 24 };

struct cue {
    char text[CUE_BYTES]; /* without '<' and '!' */
    uint8_t size, at;     /* at: of the byte that is looked for */
    uint8_t edge, caseless, rule;
};

/* Written once, under the mutex, before `ready`. */
static struct {
    pthread_mutex_t mutex;
    int ready;
    pcre2_code *code[RULES_MAX];
    struct cue cues[CUES_MAX];
    size_t n_cues;
    uint8_t at_byte[256][CUES_A_BYTE], n_at_byte[256]; /* which cues, in the order of the rules */
    uint8_t pairs[1 << 13]; /* a bit for each two bytes: is the first looked for, when the second follows it? */
} compiled = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static int is_digit(unsigned char c) { return c >= '0' && c <= '9'; }
static unsigned char lower(unsigned char c) { return c >= 'A' && c <= 'Z' ? (unsigned char)(c - 'A' + 'a') : c; }
static int is_letter(unsigned char c) { return lower(c) >= 'a' && lower(c) <= 'z'; }

static int fits(unsigned char wanted, unsigned char c) {
    switch (wanted) {
    case '#':
        return is_digit(c);
    case '%':
        return is_letter(c);
    case '^':
        return is_letter(c) || is_digit(c);
    default:
        return c == wanted;
    }
}

static int fits_cue(const struct cue *cue, size_t i, unsigned char c) {
    return fits((unsigned char)cue->text[i], cue->caseless ? lower(c) : c);
}

/* One cue, of n bytes as the table writes it. */
static int add_cue(const char *text, size_t n, size_t rule, attune_error *err) {
    if (compiled.n_cues == CUES_MAX || n > CUE_BYTES || rule > UINT8_MAX)
        return error_set(err, ATTUNE_ERROR_INTERNAL, NULL, "there is no room for cue %zu", compiled.n_cues);
    struct cue *cue = &compiled.cues[compiled.n_cues];
    *cue = (struct cue){.rule = (uint8_t)rule, .caseless = (finding_rules[rule].flags & FINDING_CASELESS) != 0};
    for (size_t i = 0; i < n; i++) {
        if (text[i] == '<' && i == 0)
            cue->edge = 1;
        else if (text[i] == '!')
            cue->at = cue->size;
        else
            cue->text[cue->size++] = text[i];
    }
    for (int c = 0; c < 256; c++) {
        if (!fits_cue(cue, cue->at, (unsigned char)c)) continue;
        if (compiled.n_at_byte[c] == CUES_A_BYTE)
            return error_set(err, ATTUNE_ERROR_INTERNAL, NULL, "there are more than %d cues at byte %d", CUES_A_BYTE,
                             c);
        compiled.at_byte[c][compiled.n_at_byte[c]++] = (uint8_t)compiled.n_cues;
        for (int next = 0; next < 256; next++)
            if (cue->at + 1 == cue->size || fits_cue(cue, cue->at + 1u, (unsigned char)next))
                compiled.pairs[(c << 8 | next) >> 3] |= (uint8_t)(1 << (next & 7));
    }
    compiled.n_cues++;
    return ATTUNE_OK;
}

static int add_cues(size_t rule, attune_error *err) {
    for (const char *at = finding_rules[rule].cues;;) {
        size_t n = strcspn(at, "|");
        int code = add_cue(at, n, rule, err);
        if (code != ATTUNE_OK || !at[n]) return code;
        at += n + 1;
    }
}

/* Anchored here and not at the match, where the JIT would not take it. Without the optimizations of a start, which
 * at each place look thousands of bytes ahead for a character that a match must have. */
static int compile_rule(size_t rule, pcre2_compile_context *context, attune_error *err) {
    const struct finding_rule *r = &finding_rules[rule];
    int fault;
    PCRE2_SIZE at;
    uint32_t options = PCRE2_UTF | PCRE2_ANCHORED | PCRE2_NO_START_OPTIMIZE;
    if (r->flags & FINDING_CASELESS) options |= PCRE2_CASELESS;
    compiled.code[rule] =
        pcre2_compile((PCRE2_SPTR)r->expression, PCRE2_ZERO_TERMINATED, options, &fault, &at, context);
    if (!compiled.code[rule]) {
        if (fault == PCRE2_ERROR_HEAP_FAILED) return error_set_memory(err, "a regular expression", 0);
        return error_set(err, ATTUNE_ERROR_INTERNAL, NULL,
                         "the expression of rule %zu does not compile: fault %d at %zu", rule, fault, (size_t)at);
    }
    /* Without a JIT, or where the system forbids one, matching falls back to the interpreter. */
    if (!fault_fails("findings.jit")) (void)pcre2_jit_compile(compiled.code[rule], PCRE2_JIT_COMPLETE);
    return add_cues(rule, err);
}

static int compile_rules(attune_error *err) {
    pcre2_general_context *memory = pcre2_general_context_create(allocate, release, NULL);
    pcre2_compile_context *context = memory ? pcre2_compile_context_create(memory) : NULL;
    int code = ATTUNE_OK;
    if (!context) code = error_set_memory(err, "regular expressions", 0);
    if (finding_rules_count > RULES_MAX) code = error_set(err, ATTUNE_ERROR_INTERNAL, NULL, "there are too many rules");
    for (size_t i = 0; i < finding_rules_count && code == ATTUNE_OK; i++) code = compile_rule(i, context, err);
    pcre2_compile_context_free(context);
    pcre2_general_context_free(memory);
    return code;
}

/* Once a process; what failed for want of memory is tried again by the next call. */
static int prepare(attune_error *err) {
    if (__atomic_load_n(&compiled.ready, __ATOMIC_ACQUIRE)) return ATTUNE_OK;
    int code = ATTUNE_OK;
    pthread_mutex_lock(&compiled.mutex);
    if (!compiled.ready) {
        code = compile_rules(err);
        if (code == ATTUNE_OK) {
            __atomic_store_n(&compiled.ready, 1, __ATOMIC_RELEASE);
        } else {
            for (size_t i = 0; i < RULES_MAX; i++) pcre2_code_free(compiled.code[i]);
            memset(compiled.code, 0, sizeof compiled.code);
            memset(compiled.n_at_byte, 0, sizeof compiled.n_at_byte);
            memset(compiled.pairs, 0, sizeof compiled.pairs);
            compiled.n_cues = 0;
        }
    }
    pthread_mutex_unlock(&compiled.mutex);
    return code;
}

/* ---- the text ---- */

/* Bytes at the start of the text that are ASCII. */
static size_t ascii_run(const char *text, size_t n) {
    size_t at = 0;
    for (uint64_t eight; n - at >= sizeof eight; at += sizeof eight) {
        memcpy(&eight, text + at, sizeof eight);
        if (eight & 0x8080808080808080u) break;
    }
    while (at < n && !((unsigned char)text[at] & 0x80)) at++;
    return at;
}

enum { UNSEEN = -1 };

/* The ASCII character that stands for this one, UNSEEN for soft hyphens and marks of direction (address books
 * put those around numbers), or the character itself. */
static int32_t fold_character(int32_t c) {
    static const int32_t zeros[] = {0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6,  0xb66,  0xbe6,
                                    0xc66, 0xce6, 0xd66, 0xe50, 0xed0, 0xf20, 0x1040, 0x17e0, 0x1810};
    if (c == 0xa0) return ' ';
    if (c == 0xad) return UNSEEN;
    if (c < 0x660) return c;
    if (c < 0x181a) {
        for (size_t i = 0; i < sizeof zeros / sizeof *zeros; i++)
            if (c >= zeros[i] && c < zeros[i] + 10) return '0' + c - zeros[i];
        return c;
    }
    if (c < 0x2000 || (c > 0x3000 && c < 0xfe63)) return c;
    if (c <= 0x200a || c == 0x202f || c == 0x205f || c == 0x3000) return ' ';
    if (c <= 0x200f || (c >= 0x202a && c <= 0x202e) || (c >= 0x2060 && c <= 0x2069) || c == 0xfeff) return UNSEEN;
    if (c <= 0x2013 || c == 0x2212 || c == 0xfe63) return '-';
    if (c >= 0xff01 && c <= 0xff5e) return c - 0xff01 + '!';
    return c;
}

/* What is scanned: the text itself, or `copy`, where a character of it had to be folded. */
struct subject {
    const char *text;
    size_t n;
    char *copy;
};

/* Checks the text on the way: PCRE2 must never see invalid UTF-8. */
static int fold(const char *text, size_t n, struct subject *out, attune_error *err) {
    *out = (struct subject){text, n, NULL};
    size_t to = 0;
    for (size_t at = 0; at < n;) {
        utf8proc_int32_t c = 0;
        utf8proc_ssize_t size = (utf8proc_ssize_t)ascii_run(text + at, n - at);
        if (!size) size = utf8proc_iterate((const utf8proc_uint8_t *)text + at, (utf8proc_ssize_t)(n - at), &c);
        if (size <= 0)
            return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "the text to be scanned is not UTF-8 at byte %zu", at);
        int32_t folded = fold_character(c);
        if (folded != c && !out->copy) {
            out->copy = allocate(n, NULL);
            if (!out->copy) return error_set_memory(err, "a text to be scanned", n);
            memcpy(out->copy, text, at);
            to = at;
        }
        if (out->copy && folded == c) {
            memcpy(out->copy + to, text + at, (size_t)size);
            to += (size_t)size;
        } else if (out->copy && folded != UNSEEN) {
            out->copy[to++] = (char)folded;
        }
        at += (size_t)size;
    }
    if (out->copy) {
        out->text = out->copy;
        out->n = to;
    }
    return ATTUNE_OK;
}

/* ---- the scan ---- */

struct scan {
    struct subject subject;
    pcre2_match_context *context;
    pcre2_match_data *match;
};

static int scan_open(struct scan *scan, attune_error *err) {
    /* Far above what the expressions need at one place, and little beside a person's patience. */
    enum { STEPS = 100000, HEAP_KIB = 1 << 12 };
    pcre2_general_context *memory = pcre2_general_context_create(allocate, release, NULL);
    scan->context = memory ? pcre2_match_context_create(memory) : NULL;
    scan->match = memory ? pcre2_match_data_create(2, memory) : NULL;
    pcre2_general_context_free(memory);
    if (!scan->context || !scan->match) return error_set_memory(err, "a regular expression", 0);
    pcre2_set_match_limit(scan->context, STEPS);
    pcre2_set_heap_limit(scan->context, HEAP_KIB);
    return ATTUNE_OK;
}

static void scan_close(struct scan *scan) {
    pcre2_match_data_free(scan->match);
    pcre2_match_context_free(scan->context);
    free(scan->subject.copy);
}

/* The cue's byte is at `at`. */
static int cue_fits(const struct cue *cue, const struct subject *subject, size_t at) {
    if (at < cue->at || cue->size > subject->n - (at - cue->at)) return 0;
    const unsigned char *text = (const unsigned char *)subject->text + at - cue->at;
    if (cue->edge && at > cue->at && (is_letter(text[-1]) || is_digit(text[-1]) || text[-1] == '_')) return 0;
    for (size_t i = 0; i < cue->size; i++)
        if (!fits_cue(cue, i, text[i])) return 0;
    return 1;
}

/* The next byte from `at` on that a cue looks for, or the end. */
static size_t next_cue(const struct subject *subject, size_t at) {
    const unsigned char *text = (const unsigned char *)subject->text;
    for (; at + 1 < subject->n; at++) {
        unsigned pair = (unsigned)text[at] << 8 | text[at + 1];
        if (compiled.pairs[pair >> 3] >> (pair & 7) & 1) break;
    }
    return at;
}

/* *end: behind what the rule found at `from`; `from` itself when it found nothing. */
static int match_rule(struct scan *scan, size_t rule, size_t from, size_t *end, attune_error *err) {
    const struct finding_rule *r = &finding_rules[rule];
    const struct subject *s = &scan->subject;
    const PCRE2_SPTR text = (PCRE2_SPTR)s->text;
    /* fold() has checked the text: checking it at each match would be quadratic. */
    int found = pcre2_match(compiled.code[rule], text, s->n, from, PCRE2_NO_UTF_CHECK, scan->match, scan->context);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT)
        found = pcre2_match(compiled.code[rule], text, s->n, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, scan->match,
                            scan->context);
    *end = from;
    switch (found) {
    case PCRE2_ERROR_NOMATCH:
        return ATTUNE_OK;
    case PCRE2_ERROR_MATCHLIMIT:
    case PCRE2_ERROR_DEPTHLIMIT:
    case PCRE2_ERROR_HEAPLIMIT:
        *end = from + 1;
        return ATTUNE_OK;
    case PCRE2_ERROR_NOMEMORY:
        return error_set_memory(err, "matching a regular expression", 0);
    default:
        break;
    }
    if (found < 0)
        return error_set(err, ATTUNE_ERROR_INTERNAL, NULL, "rule %zu cannot be matched: PCRE2 says %d", rule, found);
    const PCRE2_SIZE *span = pcre2_get_ovector_pointer(scan->match);
    int value = (r->flags & FINDING_VALUE) != 0;
    size_t start = span[2 * value], size = span[2 * value + 1] - start;
    size_t accepted = r->accept ? r->accept(s->text + start, size) : size;
    if (accepted) *end = value ? span[1] : start + accepted;
    return ATTUNE_OK;
}

static int scan_text(struct scan *scan, struct findings *findings, attune_error *err) {
    const struct subject *s = &scan->subject;
    size_t floor = 0; /* behind what was found last */
    for (size_t at = next_cue(s, 0); at < s->n; at = next_cue(s, at + 1)) {
        unsigned char c = (unsigned char)s->text[at];
        for (size_t i = 0; i < compiled.n_at_byte[c]; i++) {
            const struct cue *cue = &compiled.cues[compiled.at_byte[c][i]];
            if (!cue_fits(cue, s, at) || at - cue->at < floor) continue;
            size_t from = at - cue->at, end;
            int code = match_rule(scan, cue->rule, from, &end, err);
            if (code != ATTUNE_OK) return code;
            if (end == from) continue;
            uint32_t *count = &findings->count[finding_rules[cue->rule].kind];
            if (*count < UINT32_MAX) ++*count;
            floor = end > at ? end : at + 1;
            at = floor - 1;
            break;
        }
    }
    return ATTUNE_OK;
}

int findings_scan(const char *text, size_t n, struct findings *findings, attune_error *err) {
    struct scan scan = {0};
    struct findings found = *findings;
    int code = prepare(err);
    if (code == ATTUNE_OK) code = fold(text, n, &scan.subject, err);
    if (code == ATTUNE_OK) code = scan_open(&scan, err);
    if (code == ATTUNE_OK) code = scan_text(&scan, &found, err);
    if (code == ATTUNE_OK) *findings = found;
    scan_close(&scan);
    return code;
}
