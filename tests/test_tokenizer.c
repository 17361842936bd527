/* Tokens against llama.cpp's (tests/reference/tokens.py), bytes back, hostile vocabularies. */
#include "tests/made_vocabulary.h"

#include <pthread.h>

#include "core/model/tokenizer.h"

/* ---- a small vocabulary whose every part a test can spoil ---- */

enum { ROOM = 2048 };
struct sample {
    const char *model, *pre;
    char *tokens[ROOM];
    int32_t types[ROOM];
    size_t n_tokens, n_types;
    enum gguf_kind type_kind;
    char *merges[256];
    size_t n_merges;
    int64_t bos, eos, add_bos; /* -1: no such key */
    size_t n_scores;           /* 0: no such key */
    enum gguf_kind score_kind;
    int no_tokens, no_merges, tokens_are_numbers;
    char *owned[ROOM];
    size_t n_owned;
};

static char *own(struct sample *s, const char *text, size_t size) {
    char *copy = calloc(1, size + 1);
    assert_non_null(copy);
    memcpy(copy, text, size);
    s->owned[s->n_owned++] = copy;
    return copy;
}
static size_t sample_token(struct sample *s, const char *text, int32_t type) {
    s->tokens[s->n_tokens] = own(s, text, strlen(text));
    s->types[s->n_tokens] = type;
    s->n_types = s->n_tokens + 1;
    return s->n_tokens++;
}

/* Ids 0 to 255 are the bytes in order; then he, hel, lo, hello and the special tokens. */
static struct sample *sample_new(void) {
    struct sample *s = calloc(1, sizeof *s);
    assert_non_null(s);
    s->model = "gpt2";
    s->pre = "gpt-2";
    s->type_kind = GGUF_I32;
    s->score_kind = GGUF_F32;
    s->bos = s->eos = s->add_bos = -1;
    unsigned next = 0x100;
    for (unsigned b = 0; b < 256; b++) {
        int printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        unsigned c = printable ? b : next++;
        char text[3] = {(char)c, 0, 0};
        if (c >= 0x80) {
            text[0] = (char)(0xc0 | c >> 6);
            text[1] = (char)(0x80 | (c & 0x3f));
        }
        sample_token(s, text, 1);
    }
    sample_token(s, "he", 1);
    sample_token(s, "hel", 1);
    sample_token(s, "lo", 1);
    sample_token(s, "hello", 1);
    s->merges[s->n_merges++] = own(s, "h e", 3);
    s->merges[s->n_merges++] = own(s, "l o", 3);
    s->merges[s->n_merges++] = own(s, "he l", 4);
    s->merges[s->n_merges++] = own(s, "hel lo", 6);
    return s;
}
static void sample_free(struct sample *s) {
    for (size_t i = 0; i < s->n_owned; i++) free(s->owned[i]);
    free(s);
}

static struct memory_file sample_file(const struct sample *s) {
    struct pairs p = {0};
    if (s->model) pairs_text(&p, "tokenizer.ggml.model", s->model, strlen(s->model));
    if (s->pre) pairs_text(&p, "tokenizer.ggml.pre", s->pre, strlen(s->pre));
    if (s->tokens_are_numbers)
        pairs_numbers(&p, "tokenizer.ggml.tokens", GGUF_I32, s->types, s->n_types);
    else if (!s->no_tokens)
        pairs_texts(&p, "tokenizer.ggml.tokens", s->tokens, s->n_tokens);
    if (s->n_types) pairs_numbers(&p, "tokenizer.ggml.token_type", s->type_kind, s->types, s->n_types);
    static const int32_t zeros[2 * ROOM];
    if (s->n_scores) pairs_numbers(&p, "tokenizer.ggml.scores", s->score_kind, zeros, s->n_scores);
    if (!s->no_merges) pairs_texts(&p, "tokenizer.ggml.merges", s->merges, s->n_merges);
    if (s->bos >= 0) pairs_number(&p, "tokenizer.ggml.bos_token_id", GGUF_U32, (uint64_t)s->bos);
    if (s->eos >= 0) pairs_number(&p, "tokenizer.ggml.eos_token_id", GGUF_U32, (uint64_t)s->eos);
    if (s->add_bos >= 0) pairs_number(&p, "tokenizer.ggml.add_bos_token", GGUF_BOOL, (uint64_t)s->add_bos);
    return pairs_parse(&p);
}

struct opened {
    struct memory_file file;
    struct tokenizer *tokenizer;
};
/* Consumes the sample. */
static struct opened sample_open(struct sample *s) {
    struct opened o = {.file = sample_file(s)};
    attune_error err = {0};
    if (tokenizer_create(o.file.gguf, &o.tokenizer, &err) != ATTUNE_OK) fail_msg("%s", err.message);
    sample_free(s);
    return o;
}
static void opened_close(struct opened *o) {
    tokenizer_destroy(o->tokenizer);
    memory_file_close(&o->file);
}
static void refused(struct sample *s, int code, const char *words) {
    struct memory_file file = sample_file(s);
    attune_error err = {0};
    struct tokenizer *tokenizer = NULL;
    assert_int_equal(tokenizer_create(file.gguf, &tokenizer, &err), code);
    assert_null(tokenizer);
    assert_int_equal(err.code, code);
    if (!strstr(err.message, words)) fail_msg("\"%s\" does not say \"%s\"", err.message, words);
    assert_int_equal(tokenizer_create(file.gguf, &tokenizer, NULL), code);
    memory_file_close(&file);
    sample_free(s);
}

/* ---- helpers ---- */

static size_t encode(const struct tokenizer *t, const char *text, size_t size, int special, int32_t **ids) {
    attune_error err = {0};
    size_t n = SIZE_MAX;
    *ids = malloc((size + 1) * sizeof **ids);
    assert_non_null(*ids);
    if (tokenizer_encode(t, text, size, special, *ids, size, &n, &err) != ATTUNE_OK) fail_msg("%s", err.message);
    assert_true(n <= size);
    return n;
}
static void gives_back(const struct tokenizer *t, const char *text, size_t size, const int32_t *ids, size_t n) {
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        size_t piece;
        const char *bytes = tokenizer_piece(t, ids[i], &piece);
        assert_non_null(bytes);
        assert_true(piece <= size - at);
        assert_memory_equal(bytes, text + at, piece);
        at += piece;
    }
    assert_int_equal(at, size);
}
static void encodes_to(const struct tokenizer *t, const char *text, int special, const int32_t *expected, size_t n) {
    int32_t *ids;
    size_t got = encode(t, text, strlen(text), special, &ids);
    assert_int_equal(got, n);
    if (n) assert_memory_equal(ids, expected, n * sizeof *ids);
    free(ids);
}
#define ENCODES_TO(t, text, special, ...)                                                                              \
    encodes_to(t, text, special, (const int32_t[]){__VA_ARGS__}, sizeof((const int32_t[]){__VA_ARGS__}) / 4)

static uint64_t random_state;
static unsigned random_below(unsigned n) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(random_state >> 33) % n;
}

/* ---- golden ---- */

static void check_golden(const struct gguf *gguf, const char *name, size_t at_least) {
    attune_error err = {0};
    struct tokenizer *t = NULL;
    if (tokenizer_create(gguf, &t, &err) != ATTUNE_OK) fail_msg("%s", err.message);
    struct golden g = golden_open(name);
    uint32_t count = golden_number(&g, 4);
    assert_true(count >= at_least);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t flags = golden_number(&g, 1), size = golden_number(&g, 2);
        const char *text = golden_bytes(&g, size);
        uint32_t expected = golden_number(&g, 2);
        char *copy = malloc(size + 1); /* of the exact size for the sanitizer, but for none */
        assert_non_null(copy);
        memcpy(copy, text, size);
        int32_t *ids;
        size_t n = encode(t, copy, size, flags & 1, &ids);
        if (n != expected) fail_msg("%s, text %u \"%.*s\": %zu tokens for %u", name, i, (int)size, text, n, expected);
        for (uint32_t k = 0; k < expected; k++) {
            uint32_t id = golden_number(&g, flags & 2 ? 4 : 2);
            if ((uint32_t)ids[k] != id)
                fail_msg("%s, text %u \"%.*s\": token %u is %d, not %u", name, i, (int)size, text, k, ids[k], id);
        }
        gives_back(t, copy, size, ids, n);
        free(ids);
        free(copy);
    }
    assert_int_equal(g.at, g.size);
    free(g.data);
    tokenizer_destroy(t);
}
static void golden_smollm(void **state) {
    (void)state;
    struct gguf *gguf = open_real_model();
    check_golden(gguf, "tokens_smollm.bin", 2000);
    gguf_close(gguf);
}
static void golden_small(void **state) {
    static const char *const names[][2] = {{"vocab_gpt2.gguf", "tokens_gpt2.bin"},
                                           {"vocab_llama.gguf", "tokens_llama.bin"},
                                           {"vocab_qwen2.gguf", "tokens_qwen2.bin"}};
    (void)state;
    for (size_t i = 0; i < 3; i++) {
        struct gguf *gguf = open_golden_gguf(names[i][0]);
        check_golden(gguf, names[i][1], 300);
        gguf_close(gguf);
    }
}

/* Which class each character is of shows in what it is joined to. The ends of each run are looked at:
 * between them the same properties hold. */
static size_t put_utf8(char *out, uint32_t c) {
    size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = n; --i; c >>= 6) out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)(lead[n] | c);
    return n;
}
static void check_class(const struct tokenizer *t, uint32_t c, uint32_t kind) {
    static const char fronts[] = ".a1";
    for (uint32_t f = 0; f < 3; f++) {
        char text[5] = {fronts[f]};
        int32_t *ids;
        (void)encode(t, text, 1 + put_utf8(text + 1, c), 0, &ids);
        if ((ids[0] >= 256) != (f == kind)) fail_msg("U+%04X behind '%c' is not of class %u", c, fronts[f], kind);
        free(ids);
    }
}
static void classes_of_characters(void **state) {
    (void)state;
    struct sample *s = sample_new();
    s->n_tokens = s->n_types = 256;
    s->n_merges = 0;
    for (size_t i = 0; i < 3 * (0xf5 - 0xc2); i++) {
        char front = ".a1"[i / (0xf5 - 0xc2)], text[5] = {0};
        unsigned lead = 0xc2 + (unsigned)(i % (0xf5 - 0xc2)); /* its letter is U+00C2 to U+00F4 */
        snprintf(text, sizeof text, "%c%c%c", front, 0xc3, lead - 0x40);
        (void)sample_token(s, text, 1);
        snprintf(text, sizeof text, "%c %c%c", front, 0xc3, lead - 0x40);
        s->merges[s->n_merges++] = own(s, text, 4);
    }
    struct opened o = sample_open(s);
    struct golden g = golden_open("classes.bin");
    uint32_t runs = golden_number(&g, 4);
    assert_true(runs > 1000);
    uint32_t first = golden_number(&g, 4), kind = golden_number(&g, 1);
    assert_int_equal(first, 0x80);
    for (uint32_t i = 0; i < runs; i++) {
        uint32_t next = i + 1 < runs ? golden_number(&g, 4) : 0x110000;
        check_class(o.tokenizer, first, kind);
        check_class(o.tokenizer, first + (next - first) / 2, kind);
        check_class(o.tokenizer, next - 1, kind);
        first = next;
        if (i + 1 < runs) kind = golden_number(&g, 1);
    }
    assert_int_equal(g.at, g.size);
    free(g.data);
    opened_close(&o);
}

/* ---- any bytes ---- */

static void random_text(char *text, size_t size) {
    static const char *const pieces[] = {"hello", " ",  "\xff", "\xc3\xa9", "\xe4\xbd", "1", "\n", "\xf0\x9f\x98\x80",
                                         "'s",    "\xc0\x80", "\xed\xa0\x80"};
    for (size_t at = 0; at < size;) {
        const char *piece = pieces[random_below(sizeof pieces / sizeof *pieces)];
        for (; random_below(4) && *piece && at < size; piece++) text[at++] = *piece;
        if (at < size && random_below(3) == 0) text[at++] = (char)random_below(256);
    }
}
static void any_bytes_come_back(void **state) {
    static const char *const names[] = {"vocab_gpt2.gguf", "vocab_llama.gguf", "vocab_qwen2.gguf"};
    (void)state;
    random_state = 1;
    for (size_t v = 0; v < 3; v++) {
        struct gguf *gguf = open_golden_gguf(names[v]);
        struct tokenizer *t = NULL;
        assert_int_equal(tokenizer_create(gguf, &t, NULL), ATTUNE_OK);
        for (int i = 0; i < 2000; i++) {
            size_t size = random_below(80);
            char *text = malloc(size + 1);
            assert_non_null(text);
            random_text(text, size);
            int32_t *ids;
            size_t n = encode(t, text, size, i & 1, &ids);
            gives_back(t, text, size, ids, n);
            free(ids);
            free(text);
        }
        tokenizer_destroy(t);
        gguf_close(gguf);
    }
}

/* Bytes that are no UTF-8 are cut as a symbol is: a word of their own, with a space in front. */
static void invalid_bytes_are_symbols(void **state) {
    (void)state;
    struct sample *s = sample_new();
    int32_t letter = (int32_t)sample_token(s, "q\xc3\xbf", 1), mark = (int32_t)sample_token(s, "!\xc3\xbf", 1);
    int32_t space = (int32_t)sample_token(s, "\xc4\xa0\xc3\xbf", 1);
    s->merges[s->n_merges++] = own(s, "q \xc3\xbf", 4);
    s->merges[s->n_merges++] = own(s, "! \xc3\xbf", 4);
    s->merges[s->n_merges++] = own(s, "\xc4\xa0 \xc3\xbf", 5);
    struct opened o = sample_open(s);
    ENCODES_TO(o.tokenizer, "q\xff q!\xff \xff", 0, 'q', 0xff, ' ', 'q', mark, space);
    ENCODES_TO(o.tokenizer, "q\xc3\xbf", 0, 'q', 0xc3, 0xbf); /* the letter itself is two other bytes */
    assert_int_equal(tokenizer_find(o.tokenizer, "q\xc3\xbf"), letter);
    ENCODES_TO(o.tokenizer, "hello\xff\xfehello", 0, 259, 0xff, 0xfe, 259);
    ENCODES_TO(o.tokenizer, "he\xc3llo", 0, 256, 0xc3, 'l', 258);
    ENCODES_TO(o.tokenizer, "hello \xe4\xbd", 0, 259, ' ', 0xe4, 0xbd);
    ENCODES_TO(o.tokenizer, "he\xed\xa0\x80lo", 0, 256, 0xed, 0xa0, 0x80, 258);
    opened_close(&o);
}

/* One character a million times over: quadratic work would not end. */
static void long_words(void **state) {
    enum { SIZE = 1 << 20 };
    static const char *const units[] = {"a",  " ",   "\n",  "1", ".",      "\xff",        "\xc3\xa9", "hello",
                                        "a ", " \n", "  1", "'", "<user>", "<|endoftext|"};
    (void)state;
    struct gguf *gguf = open_golden_gguf("vocab_gpt2.gguf");
    struct tokenizer *t = NULL;
    assert_int_equal(tokenizer_create(gguf, &t, NULL), ATTUNE_OK);
    char *text = malloc(SIZE);
    assert_non_null(text);
    for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
        size_t size = strlen(units[u]);
        for (size_t i = 0; i < SIZE; i++) text[i] = units[u][i % size];
        int32_t *ids;
        size_t n = encode(t, text, SIZE, 1, &ids);
        gives_back(t, text, SIZE, ids, n);
        free(ids);
    }
    free(text);
    tokenizer_destroy(t);
    gguf_close(gguf);
}

static void counts_past_the_capacity(void **state) {
    (void)state;
    struct opened o = sample_open(sample_new());
    int32_t ids[4] = {-7, -7, -7, -7};
    size_t n = 0;
    assert_int_equal(tokenizer_encode(o.tokenizer, "hello x", 7, 0, ids, 2, &n, NULL), ATTUNE_OK);
    assert_int_equal(n, 3);
    assert_int_equal(ids[0], 259);
    assert_int_equal(ids[1], ' ');
    assert_int_equal(ids[2], -7);
    assert_int_equal(tokenizer_encode(o.tokenizer, "hello x", 7, 0, NULL, 0, &n, NULL), ATTUNE_OK);
    assert_int_equal(n, 3);
    assert_int_equal(tokenizer_encode(o.tokenizer, "", 0, 1, NULL, 0, &n, NULL), ATTUNE_OK);
    assert_int_equal(n, 0);
    opened_close(&o);
}

static void missing_byte(void **state) {
    (void)state;
    struct sample *s = sample_new();
    s->tokens[4] = own(s, "four", 4);
    s->types['!'] = 3; /* a control token cannot stand for a byte of plain text */
    struct opened o = sample_open(s);
    attune_error err = {0};
    size_t n = 99;
    assert_int_equal(tokenizer_encode(o.tokenizer, "he \4", 4, 0, NULL, 0, &n, &err), ATTUNE_ERROR_UNSUPPORTED);
    assert_int_equal(n, 99);
    assert_non_null(strstr(err.message, "0x04"));
    assert_non_null(strstr(err.message, "byte 3 "));
    assert_int_equal(tokenizer_encode(o.tokenizer, "he!", 3, 0, NULL, 0, &n, &err), ATTUNE_ERROR_UNSUPPORTED);
    ENCODES_TO(o.tokenizer, "hello", 0, 259);
    opened_close(&o);
}

/* ---- special tokens ---- */

static void special_tokens(void **state) {
    (void)state;
    struct sample *s = sample_new();
    int32_t end = (int32_t)sample_token(s, "<|im_end|>", 1); /* the name makes it a control token */
    int32_t user = (int32_t)sample_token(s, "<u>", 4);
    int32_t two = (int32_t)sample_token(s, "<u><u>", 4);
    int32_t unknown = (int32_t)sample_token(s, "<unk>", 2);
    int32_t cross = (int32_t)sample_token(s, "u><unk", 3);
    int32_t unused = (int32_t)sample_token(s, "hell", 5);
    int32_t byte = (int32_t)sample_token(s, "<0x0A>", 6);
    int32_t spaced = (int32_t)sample_token(s, "a b\xc4\xa0", 4);
    int32_t overlong = (int32_t)sample_token(s, "\xc1\x81\xc4", 1);
    s->eos = 'e';
    struct opened o = sample_open(s);
    const struct tokenizer *t = o.tokenizer;
    ENCODES_TO(t, "<u><u><u>", 1, two, user);
    ENCODES_TO(t, "<u><u><u>", 0, two, user);
    ENCODES_TO(t, "hello<|im_end|>hello", 1, 259, end, 259);
    ENCODES_TO(t, "<|im_end|>", 0, '<', '|', 'i', 'm', '_', 'e', 'n', 'd', '|', '>');
    ENCODES_TO(t, "<unk>", 1, unknown);
    ENCODES_TO(t, "<unk>", 0, '<', 'u', 'n', 'k', '>');
    ENCODES_TO(t, "<u><unk>", 1, '<', cross, '>'); /* the longest first, wherever it starts */
    ENCODES_TO(t, "<u><unk>", 0, user, '<', 'u', 'n', 'k', '>');
    ENCODES_TO(t, "a b\xc4\xa0", 0, spaced); /* a user-defined token's text is not in the alphabet */
    ENCODES_TO(t, "hell", 1, 257, 'l');
    size_t size;
    assert_memory_equal(tokenizer_piece(t, spaced, &size), "a b\xc4\xa0", 5);
    assert_int_equal(size, 5);
    assert_memory_equal(tokenizer_piece(t, unused, &size), "hell", 4);
    assert_memory_equal(tokenizer_piece(t, overlong, &size), "\xc1\x81\xc4", 3);
    assert_int_equal(size, 3);
    assert_memory_equal(tokenizer_piece(t, byte, &size), "\n", 1);
    assert_int_equal(size, 1);
    assert_memory_equal(tokenizer_piece(t, 0x20, &size), " ", 1);
    assert_int_equal(size, 1);
    assert_null(tokenizer_piece(t, -1, &size));
    assert_null(tokenizer_piece(t, (int32_t)tokenizer_size(t), &size));
    assert_int_equal(tokenizer_find(t, "<u>"), user);
    assert_int_equal(tokenizer_find(t, "nothing"), -1);
    assert_int_equal(tokenizer_find(t, ""), -1);
    assert_true(tokenizer_is_end(t, end) && tokenizer_is_end(t, 'e'));
    assert_false(tokenizer_is_end(t, user) || tokenizer_is_end(t, -1));
    assert_true(tokenizer_is_special(t, end) && tokenizer_is_special(t, user) && !tokenizer_is_special(t, 'e'));
    assert_false(tokenizer_is_special(t, 1 << 30));
    opened_close(&o);
}

static void ids_that_are_not_there(void **state) {
    (void)state;
    struct opened o = sample_open(sample_new());
    assert_int_equal(tokenizer_bos(o.tokenizer), -1);
    assert_int_equal(tokenizer_eos(o.tokenizer), -1);
    assert_false(tokenizer_adds_bos(o.tokenizer));
    assert_int_equal(tokenizer_size(o.tokenizer), 260);
    opened_close(&o);
    struct sample *s = sample_new();
    s->pre = "llama-bpe"; /* adds bos unless told otherwise */
    s->bos = 7;
    o = sample_open(s);
    assert_int_equal(tokenizer_bos(o.tokenizer), 7);
    assert_true(tokenizer_adds_bos(o.tokenizer));
    opened_close(&o);
    s = sample_new();
    s->pre = "llama3";
    s->bos = 7;
    s->add_bos = 0;
    o = sample_open(s);
    assert_false(tokenizer_adds_bos(o.tokenizer));
    opened_close(&o);
}

/* A llama-bpe vocabulary takes a whole word that no merge makes, unless it is a control token. */
static void whole_words(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct sample *s = sample_new();
        s->pre = i ? "llama-v3" : "qwen2";
        int32_t word = (int32_t)sample_token(s, "\xc4\xa0xyz", 1);
        (void)sample_token(s, "abc", 3);
        struct opened o = sample_open(s);
        if (i)
            ENCODES_TO(o.tokenizer, " xyz", 0, word);
        else
            ENCODES_TO(o.tokenizer, " xyz", 0, ' ', 'x', 'y', 'z');
        ENCODES_TO(o.tokenizer, "abc", 0, 'a', 'b', 'c');
        opened_close(&o);
    }
}

/* A contraction is cut off whatever follows; llama.cpp's newer expressions take capitals too. */
static void contractions(void **state) {
    (void)state;
    for (int any_case = 0; any_case < 2; any_case++) {
        struct sample *s = sample_new();
        s->pre = any_case ? "qwen2" : "gpt-2";
        int32_t small = (int32_t)sample_token(s, "kk", 1), capital = (int32_t)sample_token(s, "SS", 1);
        (void)sample_token(s, "ss", 1);
        s->merges[s->n_merges++] = own(s, "s s", 3);
        s->merges[s->n_merges++] = own(s, "S S", 3);
        s->merges[s->n_merges++] = own(s, "k k", 3);
        struct opened o = sample_open(s);
        ENCODES_TO(o.tokenizer, "'ss", 0, '\'', 's', 's');
        ENCODES_TO(o.tokenizer, "'kk", 0, '\'', small);
        if (any_case)
            ENCODES_TO(o.tokenizer, "'SS", 0, '\'', 'S', 'S');
        else
            ENCODES_TO(o.tokenizer, "'SS", 0, '\'', capital);
        opened_close(&o);
    }
}

/* Of two equal merges the first has the rank; a lower rank wins over a place further left. */
static void ranks(void **state) {
    (void)state;
    struct sample *s = sample_new();
    int32_t xy = (int32_t)sample_token(s, "xy", 1), yz = (int32_t)sample_token(s, "yz", 1);
    s->merges[s->n_merges++] = own(s, "y z", 3);
    s->merges[s->n_merges++] = own(s, "x y", 3);
    s->merges[s->n_merges++] = own(s, "y z", 3);
    struct opened o = sample_open(s);
    ENCODES_TO(o.tokenizer, "xyz", 0, 'x', yz);
    ENCODES_TO(o.tokenizer, "xyxyz", 0, xy, 'x', yz);
    opened_close(&o);
}

static void empty_tokens(void **state) {
    (void)state;
    struct sample *s = sample_new();
    int32_t id = (int32_t)sample_token(s, "", 1);
    (void)sample_token(s, "", 3);
    struct opened o = sample_open(s);
    size_t size = 9;
    assert_non_null(tokenizer_piece(o.tokenizer, id, &size));
    assert_int_equal(size, 0);
    ENCODES_TO(o.tokenizer, "hello", 1, 259);
    opened_close(&o);
}

/* ---- hostile vocabularies ---- */

static void hostile_models(void **state) {
    (void)state;
    struct sample *s = sample_new();
    s->model = "llama";
    refused(s, ATTUNE_ERROR_UNSUPPORTED, "\"llama\"");
    s = sample_new();
    s->model = NULL;
    refused(s, ATTUNE_ERROR_NOT_FOUND, "tokenizer.ggml.model");
    s = sample_new();
    s->pre = "deepseek-llm\n";
    refused(s, ATTUNE_ERROR_UNSUPPORTED, "\"deepseek-llm?\"");
    s = sample_new();
    s->pre = NULL;
    refused(s, ATTUNE_ERROR_UNSUPPORTED, "\"default\"");
    s = sample_new();
    s->no_tokens = 1;
    refused(s, ATTUNE_ERROR_FORMAT, "no tokenizer.ggml.tokens");
    s = sample_new();
    s->tokens_are_numbers = 1;
    refused(s, ATTUNE_ERROR_FORMAT, "not an array of strings");
    s = sample_new();
    s->no_merges = 1;
    refused(s, ATTUNE_ERROR_FORMAT, "no tokenizer.ggml.merges");
    s = sample_new();
    s->n_tokens = s->n_types = s->n_merges = 0;
    refused(s, ATTUNE_ERROR_FORMAT, "empty");
}

static void hostile_arrays(void **state) {
    (void)state;
    struct sample *s = sample_new();
    s->n_types--;
    refused(s, ATTUNE_ERROR_FORMAT, "259 entries for 260 tokens");
    s = sample_new();
    s->n_types++;
    refused(s, ATTUNE_ERROR_FORMAT, "261 entries for 260 tokens");
    s = sample_new();
    s->type_kind = GGUF_F32;
    refused(s, ATTUNE_ERROR_FORMAT, "tokenizer.ggml.token_type");
    s = sample_new();
    s->n_scores = 1;
    refused(s, ATTUNE_ERROR_FORMAT, "tokenizer.ggml.scores has 1 entries");
    s = sample_new();
    s->n_scores = 260;
    s->score_kind = GGUF_U32;
    refused(s, ATTUNE_ERROR_FORMAT, "tokenizer.ggml.scores");
    s = sample_new();
    s->n_scores = 260; /* as it should be */
    struct opened o = sample_open(s);
    opened_close(&o);
    s = sample_new();
    s->n_types = 0; /* no types at all: every token is a normal one */
    o = sample_open(s);
    ENCODES_TO(o.tokenizer, "hello", 1, 259);
    opened_close(&o);
}

static void hostile_tokens(void **state) {
    (void)state;
    struct sample *s = sample_new();
    (void)sample_token(s, "hello", 1);
    refused(s, ATTUNE_ERROR_FORMAT, "tokens 259 and 260 are the same");
    static const char *const not_bytes[] = {"<0x-1>", "<0x1>", "<0x100>", "<0xG0>", "<0x0A", "", "a"};
    for (size_t i = 0; i < sizeof not_bytes / sizeof *not_bytes; i++) {
        s = sample_new();
        if (strcmp(not_bytes[i], "a") == 0)
            s->types['a'] = 6;
        else
            (void)sample_token(s, not_bytes[i], 6);
        refused(s, ATTUNE_ERROR_FORMAT, "not <0xHH>");
    }
    s = sample_new();
    s->types[9] = 77;
    refused(s, ATTUNE_ERROR_FORMAT, "token 9 is of type 77");
    s = sample_new();
    s->types[9] = INT32_MIN;
    refused(s, ATTUNE_ERROR_FORMAT, "token 9 is of type");
    char *long_text = malloc(16386);
    assert_non_null(long_text);
    memset(long_text, 'x', 16385);
    long_text[16385] = 0;
    s = sample_new();
    (void)sample_token(s, long_text, 1);
    refused(s, ATTUNE_ERROR_FORMAT, "16385 bytes long");
    long_text[513] = 0;
    s = sample_new();
    (void)sample_token(s, long_text, 3);
    refused(s, ATTUNE_ERROR_FORMAT, "513 bytes long");
    free(long_text);
}

static void hostile_ids(void **state) {
    (void)state;
    struct sample *s = sample_new();
    s->bos = 260;
    refused(s, ATTUNE_ERROR_FORMAT, "bos_token_id is 260");
    s = sample_new();
    s->eos = UINT32_MAX;
    refused(s, ATTUNE_ERROR_FORMAT, "eos_token_id is 4294967295");
    s = sample_new();
    s->add_bos = 1;
    refused(s, ATTUNE_ERROR_FORMAT, "there is no tokenizer.ggml.bos_token_id");
}

static void hostile_merges(void **state) {
    static const char *const merges[][2] = {
        {"", "with a space"},     {" ", "with a space"},  {"he", "with a space"},     {"h ", "with a space"},
        {" e", "with a space"},   {"q he", "or makes"},   {"nothing e", "or makes"},  {"h nothing", "or makes"},
        {"h e ", "names or"},     {"h  e", "names or"},   {"x q", "control token"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof merges / sizeof *merges; i++) {
        struct sample *s = sample_new();
        (void)sample_token(s, "xq", 3);
        s->merges[s->n_merges++] = own(s, merges[i][0], strlen(merges[i][0]));
        refused(s, ATTUNE_ERROR_FORMAT, merges[i][1]);
    }
}

/* Texts of one polynomial hash, whatever its factor (Thue-Morse: a block and its complement differ by a
 * product of so many even numbers that 64 bits keep nothing of it). */
static void colliding_tokens(void **state) {
    enum { BLOCK = 1024, BLOCKS = 10, COUNT = 700 };
    (void)state;
    struct sample *s = sample_new();
    char *text = malloc(BLOCK * BLOCKS + 1);
    assert_non_null(text);
    for (unsigned i = 0; i < COUNT; i++) {
        for (unsigned k = 0; k < BLOCK * BLOCKS; k++)
            text[k] = (char)('a' + ((unsigned)__builtin_parity(k % BLOCK) ^ (i >> k / BLOCK & 1u)));
        text[BLOCK * BLOCKS] = 0;
        (void)sample_token(s, text, 1);
    }
    free(text);
    refused(s, ATTUNE_ERROR_FORMAT, "collide");
}

/* ---- threads ---- */

struct job {
    const struct tokenizer *tokenizer;
    size_t n;
    int32_t ids[64];
};
static void *encode_in_thread(void *argument) {
    struct job *job = argument;
    static const char text[] = "hello hello <u> 12 hello\n\n\xff hello";
    for (int i = 0; i < 200; i++)
        if (tokenizer_encode(job->tokenizer, text, sizeof text - 1, 1, job->ids, 64, &job->n, NULL)) job->n = 0;
    return NULL;
}
static void shared_by_threads(void **state) {
    enum { THREADS = 4 };
    (void)state;
    struct opened o = sample_open(sample_new());
    pthread_t threads[THREADS];
    struct job jobs[THREADS] = {0};
    for (int i = 0; i < THREADS; i++) {
        jobs[i].tokenizer = o.tokenizer;
        assert_int_equal(pthread_create(&threads[i], NULL, encode_in_thread, &jobs[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
    assert_true(jobs[0].n > 10);
    for (int i = 1; i < THREADS; i++) assert_memory_equal(&jobs[i].n, &jobs[0].n, sizeof jobs[0] - sizeof(void *));
    opened_close(&o);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_smollm),
        cmocka_unit_test(golden_small),
        cmocka_unit_test(classes_of_characters),
        cmocka_unit_test(any_bytes_come_back),
        cmocka_unit_test(invalid_bytes_are_symbols),
        cmocka_unit_test(long_words),
        cmocka_unit_test(counts_past_the_capacity),
        cmocka_unit_test(missing_byte),
        cmocka_unit_test(special_tokens),
        cmocka_unit_test(ids_that_are_not_there),
        cmocka_unit_test(whole_words),
        cmocka_unit_test(contractions),
        cmocka_unit_test(ranks),
        cmocka_unit_test(empty_tokens),
        cmocka_unit_test(hostile_models),
        cmocka_unit_test(hostile_arrays),
        cmocka_unit_test(hostile_tokens),
        cmocka_unit_test(hostile_ids),
        cmocka_unit_test(hostile_merges),
        cmocka_unit_test(colliding_tokens),
        cmocka_unit_test(shared_by_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
