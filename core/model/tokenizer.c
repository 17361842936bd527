#include "core/model/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/excerpt.h"
#include "core/base/random.h"
#include "core/model/pretokenizer.h"

/* Byte-level byte-pair encoding. The vocabulary is written in an alphabet of 256 printable characters,
 * one for each byte (gpt-2's: the printable bytes of Latin-1 stand for themselves, the others follow
 * from U+0100 on). A text is cut at special tokens, then into words (pretokenizer.h); in each word the
 * adjacent pair with the lowest rank is merged until none is left.
 *
 * The file is not trusted. The limits bound memory and time; the largest vocabulary in use has about a
 * quarter of a million tokens. */
enum {
    TOKENS_MAX = 1 << 20,
    MERGES_MAX = 1 << 20,
    TOKEN_BYTES_MAX = 1 << 14,
    SPECIAL_BYTES_MAX = 512,
    TEXT_BYTES_MAX = 1 << 30,
    /* A table's entry is at most so many slots from where its hash points. Random data stays below 100
     * at the load used here (one half); a file made to collide is refused. */
    REACH_MAX = 512,
    ALPHABET_END = 0x144 /* the alphabet's last character and one */
};

/* How a token may be met in a text, and what it does. Zero: by merging only. */
enum { CONTROL = 1, USER_DEFINED = 2, UNKNOWN = 4, END = 8, SPECIAL = CONTROL | USER_DEFINED | UNKNOWN };

/* Values of tokenizer.ggml.token_type. */
enum { TYPE_UNKNOWN = 2, TYPE_CONTROL = 3, TYPE_USER_DEFINED = 4, TYPE_BYTE = 6 };

struct merge {
    int32_t left, right, result;
};
/* One length that special tokens have. */
struct special_length {
    uint32_t bytes;
    unsigned kinds;     /* of the tokens of this length */
    uint64_t outgoing;  /* what the byte that leaves the window counts in text_hash */
};

struct tokenizer {
    struct arena arena; /* all of the pointers below but pre and texts */
    struct pretokenizer *pre;
    const struct gguf_string *texts; /* (V), borrowed */
    size_t V, n_merges;
    int32_t bos, eos, eot;
    int adds_bos;
    size_t longest;     /* text of a token, bytes */
    uint8_t *kinds;     /* (V) */
    uint32_t *piece_at; /* (V + 1) into pieces */
    char *pieces;
    uint32_t *text_slots; /* text -> id + 1, 0: free */
    size_t text_mask, text_reach;
    struct merge *merges; /* (n_merges) by rank */
    uint32_t *merge_slots; /* pair -> rank + 1 */
    size_t merge_mask, merge_reach;
    struct special_length *lengths; /* longest first */
    size_t n_lengths;
    uint8_t starts[256]; /* kinds of the special tokens that start with a byte */
    int32_t of_byte[256]; /* -1: not in the vocabulary */
};

/* ---- the alphabet ---- */

/* The character that stands for a byte. */
static unsigned letter_of(unsigned byte) {
    if (byte < 0x21) return 0x100 + byte;
    if (byte >= 0x7f && byte <= 0xa0) return 0x121 + (byte - 0x7f);
    return byte == 0xad ? 0x143 : byte;
}

/* Every character of the alphabet is below U+0800. Returns the bytes written. */
static size_t put_character(char *out, unsigned c) {
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    out[0] = (char)(0xc0 | c >> 6);
    out[1] = (char)(0x80 | (c & 0x3f));
    return 2;
}

/* The byte that each character stands for, -1 for characters outside of the alphabet. */
struct alphabet {
    int16_t bytes[ALPHABET_END];
};
static void alphabet_fill(struct alphabet *alphabet) {
    for (unsigned c = 0; c < ALPHABET_END; c++) alphabet->bytes[c] = -1;
    for (unsigned b = 0; b < 256; b++) alphabet->bytes[letter_of(b)] = (int16_t)b;
}

/* The bytes that a token's text stands for, at most size of them. What is not of the alphabet stays. */
static size_t decode_text(char *out, const char *text, size_t size, const struct alphabet *alphabet) {
    size_t n = 0;
    for (size_t i = 0; i < size;) {
        unsigned a = (unsigned char)text[i], b = i + 1 < size ? (unsigned char)text[i + 1] : 0, c = ALPHABET_END;
        size_t bytes = 1;
        if (a < 0x80) {
            c = a;
        } else if (a >= 0xc2 && a <= 0xdf && (b & 0xc0) == 0x80) {
            c = (a & 0x1f) << 6 | (b & 0x3f);
            bytes = 2;
        }
        if (c < ALPHABET_END && alphabet->bytes[c] >= 0) {
            out[n++] = (char)alphabet->bytes[c];
            i += bytes;
        } else {
            out[n++] = text[i++];
        }
    }
    return n;
}

/* ---- tables: open addressing with linear probing, filled to one half at most ---- */

/* Goes on from the hash of what stands before. A polynomial, so that a window can be rolled along a text. */
#define HASH_FACTOR 0x9e3779b97f4a7c15u
static uint64_t text_hash(uint64_t hash, const char *text, size_t size) {
    for (size_t i = 0; i < size; i++) hash = hash * HASH_FACTOR + (unsigned char)text[i] + 1;
    return hash;
}

/* The slot of the text a followed by b, or of the first free one; *found its id or -1. -1: too far. */
static int64_t text_slot(const struct tokenizer *t, uint64_t hash, const char *a, size_t na, const char *b, size_t nb,
                         size_t reach, int32_t *found) {
    size_t at = random_mix(hash) & t->text_mask;
    *found = -1;
    for (size_t i = 0; i <= reach; i++, at = (at + 1) & t->text_mask) {
        if (!t->text_slots[at]) return (int64_t)at;
        const struct gguf_string *text = &t->texts[t->text_slots[at] - 1];
        if (text->size == na + nb && memcmp(text->data, a, na) == 0 && (!nb || memcmp(text->data + na, b, nb) == 0)) {
            *found = (int32_t)(t->text_slots[at] - 1);
            return (int64_t)at;
        }
    }
    return -1;
}

static int32_t find_hashed(const struct tokenizer *t, uint64_t hash, const char *text, size_t size) {
    int32_t id;
    (void)text_slot(t, hash, text, size, NULL, 0, t->text_reach, &id);
    return id;
}

static int32_t find_text(const struct tokenizer *t, const char *text, size_t size) {
    return size ? find_hashed(t, text_hash(0, text, size), text, size) : -1;
}

/* As text_slot, for the pair (left, right) and its rank. */
static int64_t merge_slot(const struct tokenizer *t, int32_t left, int32_t right, size_t reach, int64_t *found) {
    size_t at = random_mix((uint64_t)(uint32_t)left << 32 | (uint32_t)right) & t->merge_mask;
    *found = -1;
    for (size_t i = 0; i <= reach; i++, at = (at + 1) & t->merge_mask) {
        if (!t->merge_slots[at]) return (int64_t)at;
        const struct merge *merge = &t->merges[t->merge_slots[at] - 1];
        if (merge->left == left && merge->right == right) {
            *found = t->merge_slots[at] - 1;
            return (int64_t)at;
        }
    }
    return -1;
}

static size_t distance(size_t slot, size_t home, size_t mask) { return (slot - home) & mask; }

static int refuse_collisions(const char *where, attune_error *err) {
    return error_set(err, ATTUNE_ERROR_FORMAT, where, "the entries collide so often that no real vocabulary does");
}

/* ---- opening ---- */

#define QUOTE(string) excerpt_of((string).data, (string).size).text

/* An array that must be there and be strings. */
static int string_array(const struct gguf *gguf, const char *key, size_t most, const struct gguf_pair **out,
                        attune_error *err) {
    const struct gguf_pair *pair = gguf_find(gguf, key);
    if (!pair) return error_set(err, ATTUNE_ERROR_FORMAT, key, "the file has no %s, so it has no vocabulary", key);
    if (pair->kind != GGUF_ARRAY || pair->element != GGUF_STRING)
        return error_set(err, ATTUNE_ERROR_FORMAT, key, "%s is not an array of strings", key);
    if (pair->count > most)
        return error_set(err, ATTUNE_ERROR_FORMAT, key, "%s has %llu entries; attune takes at most %zu", key,
                         (unsigned long long)pair->count, most);
    *out = pair;
    return ATTUNE_OK;
}

/* An array beside the tokens: absent, or one number of these kinds for each. */
static int token_array(const struct gguf *gguf, const char *key, size_t V, enum gguf_kind kind, enum gguf_kind other,
                       const struct gguf_pair **out, attune_error *err) {
    *out = gguf_find(gguf, key);
    if (!*out) return ATTUNE_OK;
    if ((*out)->kind != GGUF_ARRAY || ((*out)->element != kind && (*out)->element != other))
        return error_set(err, ATTUNE_ERROR_FORMAT, key, "%s is not an array of the right numbers", key);
    if ((*out)->count != V)
        return error_set(err, ATTUNE_ERROR_FORMAT, key, "%s has %llu entries for %zu tokens", key,
                         (unsigned long long)(*out)->count, V);
    return ATTUNE_OK;
}

static int32_t little_i32(const unsigned char *p) {
    return (int32_t)((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
}

/* Names that llama.cpp takes for control tokens whatever their type says, and <|im_start|>, so that no
 * plain text can open a turn. */
static const char *const control_names[] = {
    "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|return|>", "<|call|>", "<|calls|>",
    "<|flush|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<end_of_utterance>", "</s>", "<eos>",
    "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<turn|>", "<|tool_response>", "[e~[", "<｜end▁of▁sentence｜>",
    "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "<|code_prefix|>", "<|prefix|>",
    "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "<|code_suffix|>", "<|suffix|>",
    "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "<|code_middle|>", "<|middle|>",
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>",
    "<REPO>", "<reponame>", "<|file_sep|>",
};
static const char *const end_names[] = {"<|im_end|>", "<|endoftext|>", "<|eot_id|>"};

static void mark_names(struct tokenizer *t) {
    for (size_t i = 0; i < sizeof control_names / sizeof *control_names; i++) {
        int32_t id = tokenizer_find(t, control_names[i]);
        if (id >= 0) t->kinds[id] = CONTROL;
    }
    for (size_t i = 0; i < sizeof end_names / sizeof *end_names; i++) {
        int32_t id = tokenizer_find(t, end_names[i]);
        if (id >= 0) t->kinds[id] |= END;
    }
    if (t->eos >= 0) t->kinds[t->eos] |= END;
    if (t->eot >= 0) t->kinds[t->eot] |= END;
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
}

/* The byte of a text "<0xHH>", -1 for any other. */
static int byte_of_text(const struct gguf_string *text) {
    if (text->size != 6 || memcmp(text->data, "<0x", 3) != 0 || text->data[5] != '>') return -1;
    int high = hex_digit(text->data[3]), low = hex_digit(text->data[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

static size_t table_size(size_t entries) {
    size_t size = 16;
    while (size < entries * 2) size *= 2;
    return size;
}

/* Run twice: to count, then to place. */
static void lay_out(struct tokenizer *t, size_t text_bytes) {
    t->kinds = ARENA_TAKE(&t->arena, uint8_t, t->V);
    t->piece_at = ARENA_TAKE(&t->arena, uint32_t, t->V + 1);
    t->pieces = ARENA_TAKE(&t->arena, char, text_bytes);
    t->text_slots = ARENA_TAKE(&t->arena, uint32_t, table_size(t->V));
    t->merges = ARENA_TAKE(&t->arena, struct merge, t->n_merges);
    t->merge_slots = ARENA_TAKE(&t->arena, uint32_t, table_size(t->n_merges));
    t->lengths = ARENA_TAKE(&t->arena, struct special_length, SPECIAL_BYTES_MAX);
    t->text_mask = table_size(t->V) - 1;
    t->merge_mask = table_size(t->n_merges) - 1;
}

static int measure_texts(struct tokenizer *t, size_t *bytes, attune_error *err) {
    size_t sum = 0;
    for (size_t id = 0; id < t->V; id++) {
        size_t size = t->texts[id].size;
        if (size > TOKEN_BYTES_MAX)
            return error_set(err, ATTUNE_ERROR_FORMAT, "tokenizer.ggml.tokens",
                             "token %zu is %zu bytes long; attune takes at most %d", id, size, (int)TOKEN_BYTES_MAX);
        sum += size; /* fits: both limits together are 16 GiB, and the file is in memory */
        if (size > t->longest) t->longest = size;
    }
    if (sum > UINT32_MAX)
        return error_set(err, ATTUNE_ERROR_FORMAT, "tokenizer.ggml.tokens", "the tokens' texts are %zu bytes long",
                         sum);
    *bytes = sum;
    return ATTUNE_OK;
}

/* Fills text_slots. A token with an empty text has an id and cannot be found. */
static int index_texts(struct tokenizer *t, attune_error *err) {
    const char *where = "tokenizer.ggml.tokens";
    for (size_t id = 0; id < t->V; id++) {
        const struct gguf_string *text = &t->texts[id];
        if (!text->size) continue;
        uint64_t hash = text_hash(0, text->data, text->size);
        int32_t found;
        int64_t slot = text_slot(t, hash, text->data, text->size, NULL, 0, REACH_MAX, &found);
        if (found >= 0)
            return error_set(err, ATTUNE_ERROR_FORMAT, where, "tokens %d and %zu are the same: \"%s\"", (int)found, id,
                             QUOTE(*text));
        if (slot < 0) return refuse_collisions(where, err);
        t->text_slots[slot] = (uint32_t)id + 1;
        size_t far = distance((size_t)slot, random_mix(hash) & t->text_mask, t->text_mask);
        if (far > t->text_reach) t->text_reach = far;
    }
    return ATTUNE_OK;
}

/* kinds and pieces from the types (nullable: all are normal). */
static int read_types(struct tokenizer *t, const unsigned char *types, attune_error *err) {
    struct alphabet alphabet;
    alphabet_fill(&alphabet);
    uint32_t at = 0;
    for (size_t id = 0; id < t->V; id++) {
        const struct gguf_string *text = &t->texts[id];
        int32_t type = types ? little_i32(types + 4 * id) : 1;
        t->piece_at[id] = at;
        if (type < 0 || type > TYPE_BYTE)
            return error_set(err, ATTUNE_ERROR_FORMAT, "tokenizer.ggml.token_type",
                             "token %zu is of type %d, and there are 0 to %d", id, (int)type, (int)TYPE_BYTE);
        if (type == TYPE_BYTE) {
            int byte = byte_of_text(text);
            if (byte < 0)
                return error_set(err, ATTUNE_ERROR_FORMAT, "tokenizer.ggml.tokens",
                                 "token %zu is of the type byte, but its text is \"%s\", not <0xHH>", id, QUOTE(*text));
            t->pieces[at++] = (char)byte;
            continue;
        }
        t->kinds[id] = type == TYPE_UNKNOWN ? UNKNOWN : type == TYPE_CONTROL ? CONTROL
                       : type == TYPE_USER_DEFINED ? USER_DEFINED : 0;
        if (t->kinds[id] & SPECIAL) {
            memcpy(t->pieces + at, text->data, text->size);
            at += (uint32_t)text->size;
        } else {
            at += (uint32_t)decode_text(t->pieces + at, text->data, text->size, &alphabet);
        }
    }
    t->piece_at[t->V] = at;
    return ATTUNE_OK;
}

/* A byte's token must be one that plain text may become. */
static void find_bytes(struct tokenizer *t) {
    for (unsigned b = 0; b < 256; b++) {
        char text[2];
        int32_t id = find_text(t, text, put_character(text, letter_of(b)));
        t->of_byte[b] = id >= 0 && !(t->kinds[id] & (CONTROL | UNKNOWN)) ? id : -1;
    }
}

static int refuse_merge(size_t rank, const struct gguf_string *text, const char *what, attune_error *err) {
    return error_set(err, ATTUNE_ERROR_FORMAT, "tokenizer.ggml.merges", "merge %zu, \"%s\", %s", rank, QUOTE(*text),
                     what);
}

/* The first of two equal merges counts, as in llama.cpp. */
static int read_merge(struct tokenizer *t, size_t rank, const struct gguf_string *text, attune_error *err) {
    const char *space = text->size > 1 ? memchr(text->data + 1, ' ', text->size - 1) : NULL;
    size_t na = space ? (size_t)(space - text->data) : 0, nb = space ? text->size - na - 1 : 0;
    if (!nb) return refuse_merge(rank, text, "is not two tokens with a space between", err);
    const char *a = text->data, *b = space + 1;
    struct merge merge = {.left = find_text(t, a, na), .right = find_text(t, b, nb)};
    (void)text_slot(t, text_hash(text_hash(0, a, na), b, nb), a, na, b, nb, t->text_reach, &merge.result);
    if (merge.left < 0 || merge.right < 0 || merge.result < 0)
        return refuse_merge(rank, text, "names or makes a token that the vocabulary does not have", err);
    if (t->kinds[merge.result] & CONTROL) return refuse_merge(rank, text, "makes a control token of plain text", err);
    t->merges[rank] = merge;
    int64_t found, slot = merge_slot(t, merge.left, merge.right, REACH_MAX, &found);
    if (found >= 0) return ATTUNE_OK;
    if (slot < 0) return refuse_collisions("tokenizer.ggml.merges", err);
    t->merge_slots[slot] = (uint32_t)rank + 1;
    size_t home = random_mix((uint64_t)(uint32_t)merge.left << 32 | (uint32_t)merge.right) & t->merge_mask;
    size_t far = distance((size_t)slot, home, t->merge_mask);
    if (far > t->merge_reach) t->merge_reach = far;
    return ATTUNE_OK;
}

static int list_specials(struct tokenizer *t, attune_error *err) {
    uint8_t kinds[SPECIAL_BYTES_MAX + 1] = {0};
    for (size_t id = 0; id < t->V; id++) {
        unsigned kind = t->kinds[id] & SPECIAL;
        size_t size = t->texts[id].size;
        if (!kind || !size) continue;
        if (size > SPECIAL_BYTES_MAX)
            return error_set(err, ATTUNE_ERROR_FORMAT, "tokenizer.ggml.tokens",
                             "the special token %zu is %zu bytes long; attune takes at most %d", id, size,
                             (int)SPECIAL_BYTES_MAX);
        kinds[size] |= (uint8_t)kind;
        t->starts[(unsigned char)t->texts[id].data[0]] |= (uint8_t)kind;
    }
    for (uint32_t size = SPECIAL_BYTES_MAX; size; size--) {
        if (!kinds[size]) continue;
        uint64_t power = 1;
        for (uint32_t i = 1; i < size; i++) power *= HASH_FACTOR;
        t->lengths[t->n_lengths++] = (struct special_length){.bytes = size, .kinds = kinds[size], .outgoing = power};
    }
    return ATTUNE_OK;
}

static int special_id(const struct gguf *gguf, const char *key, size_t V, int32_t *id, attune_error *err) {
    uint64_t value;
    *id = -1;
    if (!gguf_find(gguf, key)) return ATTUNE_OK;
    int code = gguf_get_u64(gguf, key, &value, err);
    if (code != ATTUNE_OK) return code;
    if (value >= V)
        return error_set(err, ATTUNE_ERROR_FORMAT, key, "%s is %llu, and there are %zu tokens", key,
                         (unsigned long long)value, V);
    *id = (int32_t)value;
    return ATTUNE_OK;
}

static int read_special_ids(struct tokenizer *t, const struct gguf *gguf, attune_error *err) {
    const char *key = "tokenizer.ggml.add_bos_token";
    int code = special_id(gguf, "tokenizer.ggml.bos_token_id", t->V, &t->bos, err);
    if (code == ATTUNE_OK) code = special_id(gguf, "tokenizer.ggml.eos_token_id", t->V, &t->eos, err);
    if (code == ATTUNE_OK) code = special_id(gguf, "tokenizer.ggml.eot_token_id", t->V, &t->eot, err);
    if (code != ATTUNE_OK) return code;
    t->adds_bos = pretokenizer_adds_bos(t->pre) && t->bos >= 0;
    if (!gguf_find(gguf, key)) return ATTUNE_OK;
    code = gguf_get_bool(gguf, key, &t->adds_bos, err);
    if (code == ATTUNE_OK && t->adds_bos && t->bos < 0)
        return error_set(err, ATTUNE_ERROR_FORMAT, key, "%s is true, but there is no tokenizer.ggml.bos_token_id", key);
    return code;
}

static int check_model(const struct gguf *gguf, struct pretokenizer **pre, attune_error *err) {
    struct gguf_string model, name;
    int code = gguf_get_string(gguf, "tokenizer.ggml.model", &model, err);
    if (code != ATTUNE_OK) return code;
    if (model.size != 4 || memcmp(model.data, "gpt2", 4) != 0)
        return error_set(err, ATTUNE_ERROR_UNSUPPORTED, "tokenizer.ggml.model",
                         "the tokenizer \"%s\" is not supported; attune knows byte-level BPE (\"gpt2\")", QUOTE(model));
    if (!gguf_find(gguf, "tokenizer.ggml.pre"))
        return error_set(err, ATTUNE_ERROR_UNSUPPORTED, "tokenizer.ggml.pre",
                         "the file does not name its pre-tokenizer, which means \"default\", and that is not "
                         "supported; convert the model again with a current converter");
    code = gguf_get_string(gguf, "tokenizer.ggml.pre", &name, err);
    return code == ATTUNE_OK ? pretokenizer_create(name.data, name.size, pre, err) : code;
}

static int load(struct tokenizer *t, const struct gguf *gguf, attune_error *err) {
    const struct gguf_pair *tokens = NULL, *merges = NULL, *types = NULL, *scores = NULL;
    size_t bytes = 0;
    int code = check_model(gguf, &t->pre, err);
    if (code == ATTUNE_OK) code = string_array(gguf, "tokenizer.ggml.tokens", TOKENS_MAX, &tokens, err);
    if (code == ATTUNE_OK) code = string_array(gguf, "tokenizer.ggml.merges", MERGES_MAX, &merges, err);
    if (code != ATTUNE_OK) return code;
    t->texts = tokens->strings;
    t->V = tokens->count;
    t->n_merges = merges->count;
    if (!t->V) return error_set(err, ATTUNE_ERROR_FORMAT, "tokenizer.ggml.tokens", "the vocabulary is empty");
    code = token_array(gguf, "tokenizer.ggml.token_type", t->V, GGUF_I32, GGUF_I32, &types, err);
    if (code == ATTUNE_OK) code = token_array(gguf, "tokenizer.ggml.scores", t->V, GGUF_F32, GGUF_I32, &scores, err);
    if (code == ATTUNE_OK) code = read_special_ids(t, gguf, err);
    if (code == ATTUNE_OK) code = measure_texts(t, &bytes, err);
    if (code != ATTUNE_OK) return code;
    lay_out(t, bytes);
    code = arena_commit(&t->arena, "a vocabulary", err);
    if (code != ATTUNE_OK) return code;
    lay_out(t, bytes);
    code = index_texts(t, err);
    if (code == ATTUNE_OK) code = read_types(t, types ? types->value : NULL, err);
    if (code != ATTUNE_OK) return code;
    find_bytes(t);
    for (size_t rank = 0; rank < t->n_merges; rank++) {
        code = read_merge(t, rank, &merges->strings[rank], err);
        if (code != ATTUNE_OK) return code;
    }
    mark_names(t);
    return list_specials(t, err);
}

int tokenizer_create(const struct gguf *gguf, struct tokenizer **out, attune_error *err) {
    struct tokenizer *t = calloc(1, sizeof *t);
    if (!t) return error_set_memory(err, "a tokenizer", sizeof *t);
    int code = load(t, gguf, err);
    if (code == ATTUNE_OK)
        *out = t;
    else
        tokenizer_destroy(t);
    return code;
}

void tokenizer_destroy(struct tokenizer *t) {
    if (!t) return;
    pretokenizer_destroy(t->pre);
    arena_free(&t->arena);
    free(t);
}

/* ---- asking ---- */

static int is_id(const struct tokenizer *t, int32_t id) { return id >= 0 && (size_t)id < t->V; }

size_t tokenizer_size(const struct tokenizer *t) { return t->V; }
int32_t tokenizer_bos(const struct tokenizer *t) { return t->bos; }
int32_t tokenizer_eos(const struct tokenizer *t) { return t->eos; }
int tokenizer_adds_bos(const struct tokenizer *t) { return t->adds_bos; }
int tokenizer_is_end(const struct tokenizer *t, int32_t id) { return is_id(t, id) && (t->kinds[id] & END) != 0; }

int tokenizer_is_special(const struct tokenizer *t, int32_t id) {
    return is_id(t, id) && (t->kinds[id] & (CONTROL | USER_DEFINED)) != 0;
}

const char *tokenizer_piece(const struct tokenizer *t, int32_t id, size_t *size) {
    *size = 0;
    if (!is_id(t, id)) return NULL;
    *size = t->piece_at[id + 1] - t->piece_at[id];
    return t->pieces + t->piece_at[id];
}

int32_t tokenizer_find(const struct tokenizer *t, const char *text) { return find_text(t, text, strlen(text)); }

/* ---- encoding ---- */

/* A run of bytes that is a token already; a list in the order of the text. */
struct symbol {
    int32_t id, previous, next; /* -1: none; id -1: merged into the one before */
};
struct encoder {
    const struct tokenizer *t;
    const char *text; /* the whole, for positions in messages */
    int32_t *ids;
    size_t capacity, n;
    struct symbol *symbols;
    uint64_t *queue; /* binary heap of rank << 32 | position of the left symbol: lowest rank, then leftmost */
    size_t room, queued;
    char *spelled; /* (t->longest + 2) a word in the alphabet */
    attune_error *err;
};

static void emit(struct encoder *e, int32_t id) {
    if (e->n < e->capacity) e->ids[e->n] = id;
    e->n++;
}

static void queue_push(struct encoder *e, uint64_t entry) {
    size_t at = e->queued++;
    for (; at && e->queue[(at - 1) / 2] > entry; at = (at - 1) / 2) e->queue[at] = e->queue[(at - 1) / 2];
    e->queue[at] = entry;
}

static uint64_t queue_pop(struct encoder *e) {
    uint64_t top = e->queue[0], last = e->queue[--e->queued];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < e->queued; at = child) {
        if (child + 1 < e->queued && e->queue[child + 1] < e->queue[child]) child++;
        if (e->queue[child] >= last) break;
        e->queue[at] = e->queue[child];
    }
    e->queue[at] = last;
    return top;
}

static void queue_pair(struct encoder *e, int32_t left, int32_t right) {
    if (left < 0 || right < 0) return;
    int64_t rank;
    (void)merge_slot(e->t, e->symbols[left].id, e->symbols[right].id, e->t->merge_reach, &rank);
    if (rank >= 0) queue_push(e, (uint64_t)rank << 32 | (uint32_t)left);
}

/* An entry is stale when either symbol has changed since it was queued. */
static void merge_word(struct encoder *e) {
    while (e->queued) {
        uint64_t entry = queue_pop(e);
        const struct merge *merge = &e->t->merges[entry >> 32];
        int32_t left = (int32_t)(entry & UINT32_MAX), right = e->symbols[left].next;
        struct symbol *symbol = &e->symbols[left];
        if (right < 0 || symbol->id != merge->left || e->symbols[right].id != merge->right) continue;
        symbol->id = merge->result;
        symbol->next = e->symbols[right].next;
        e->symbols[right].id = -1;
        if (symbol->next >= 0) e->symbols[symbol->next].previous = left;
        queue_pair(e, symbol->previous, left);
        queue_pair(e, left, symbol->next);
    }
}

/* Room for a word of so many bytes. n symbols queue n - 1 pairs, and each of the at most n - 1 merges
 * takes one out and puts two in. */
static int make_room(struct encoder *e, size_t bytes) {
    if (bytes <= e->room) return ATTUNE_OK;
    size_t room = bytes < 64 ? 64 : bytes + bytes / 2;
    free(e->symbols);
    free(e->queue);
    e->room = 0;
    e->symbols = malloc(room * sizeof *e->symbols);
    e->queue = malloc(2 * room * sizeof *e->queue);
    if (!e->symbols || !e->queue)
        return error_set_memory(e->err, "a long word", room * (sizeof *e->symbols + 2 * sizeof *e->queue));
    e->room = room;
    return ATTUNE_OK;
}

/* The token that is the whole word, for vocabularies that ask for it before merging; -1: none. */
static int32_t whole_word(const struct encoder *e, const char *word, size_t size) {
    const struct tokenizer *t = e->t;
    if (!e->spelled || size > t->longest) return -1;
    size_t n = 0;
    for (size_t i = 0; i < size && n <= t->longest; i++)
        n += put_character(e->spelled + n, letter_of((unsigned char)word[i]));
    if (n > t->longest) return -1;
    int32_t id = find_text(t, e->spelled, n);
    return id >= 0 && !(t->kinds[id] & (CONTROL | UNKNOWN)) ? id : -1;
}

static int encode_word(void *user, const char *word, size_t size) {
    struct encoder *e = user;
    int32_t whole = whole_word(e, word, size);
    if (whole >= 0) {
        emit(e, whole);
        return ATTUNE_OK;
    }
    int code = make_room(e, size);
    if (code != ATTUNE_OK) return code;
    for (size_t i = 0; i < size; i++) {
        int32_t id = e->t->of_byte[(unsigned char)word[i]];
        if (id < 0) /* llama.cpp drops such a byte; a text must come back as it was */
            return error_set(e->err, ATTUNE_ERROR_UNSUPPORTED, NULL,
                             "the model's vocabulary has no token for the byte 0x%02x, which stands at byte %zu of the "
                             "text; leave that character out", (unsigned char)word[i], (size_t)(word - e->text) + i);
        e->symbols[i] = (struct symbol){id, (int32_t)i - 1, i + 1 < size ? (int32_t)i + 1 : -1};
    }
    e->queued = 0;
    for (size_t i = 1; i < size; i++) queue_pair(e, (int32_t)i - 1, (int32_t)i);
    merge_word(e);
    for (int32_t i = 0; i >= 0; i = e->symbols[i].next) emit(e, e->symbols[i].id);
    return ATTUNE_OK;
}

static int encode_plain(struct encoder *e, const char *text, size_t length) {
    return pretokenizer_split(e->t->pre, text, length, encode_word, e, e->err);
}

/* ---- special tokens in a text ----
 * llama.cpp looks for one after the other, the longest first, each from left to right in what is left
 * of the text. Here all of one length are looked for together, with a rolling hash. (Of two that are as
 * long as each other and overlap, the left one is taken; llama.cpp's order is unspecified there.) */

enum { PLAIN = 0, FIRST = 1, REST = 2 };

static void mark_length(const struct tokenizer *t, const struct special_length *length, unsigned kinds,
                        const char *text, size_t size, uint8_t *marks) {
    const size_t bytes = length->bytes;
    if (size < bytes) return;
    uint64_t hash = text_hash(0, text, bytes - 1);
    for (size_t at = 0; at + bytes <= size; at++) {
        hash = text_hash(hash, text + at + bytes - 1, 1);
        uint64_t here = hash;
        hash -= length->outgoing * ((unsigned char)text[at] + 1u);
        /* What is marked is at least as long: looking at both ends sees any overlap. */
        if (!(t->starts[(unsigned char)text[at]] & kinds) || marks[at] || marks[at + bytes - 1]) continue;
        int32_t id = find_hashed(t, here, text + at, bytes);
        if (id < 0 || !(t->kinds[id] & kinds)) continue;
        marks[at] = FIRST;
        memset(marks + at + 1, REST, bytes - 1);
    }
}

static int encode_marked(struct encoder *e, const char *text, size_t size, const uint8_t *marks) {
    for (size_t at = 0, end; at < size; at = end) {
        end = at + 1;
        if (marks[at] == FIRST) {
            while (end < size && marks[end] == REST) end++;
            emit(e, find_text(e->t, text + at, end - at));
            continue;
        }
        while (end < size && marks[end] == PLAIN) end++;
        int code = encode_plain(e, text + at, end - at);
        if (code != ATTUNE_OK) return code;
    }
    return ATTUNE_OK;
}

static int encode_text(struct encoder *e, const char *text, size_t size, unsigned kinds) {
    const struct tokenizer *t = e->t;
    size_t at = 0;
    while (at < size && !(t->starts[(unsigned char)text[at]] & kinds)) at++;
    if (at == size) return encode_plain(e, text, size);
    uint8_t *marks = calloc(size, 1);
    if (!marks) return error_set_memory(e->err, "special tokens in a text", size);
    for (size_t i = 0; i < t->n_lengths; i++)
        if (t->lengths[i].kinds & kinds) mark_length(t, &t->lengths[i], kinds, text, size, marks);
    int code = encode_marked(e, text, size, marks);
    free(marks);
    return code;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t length, int special, int32_t *ids,
                     size_t capacity, size_t *n, attune_error *err) {
    if (length > TEXT_BYTES_MAX)
        return error_set(err, ATTUNE_ERROR_ARGUMENT, NULL, "a text of %zu bytes; attune takes at most %d", length,
                         (int)TEXT_BYTES_MAX);
    struct encoder e = {.t = t, .text = text, .ids = ids, .capacity = ids ? capacity : 0, .err = err};
    int code = ATTUNE_OK;
    if (pretokenizer_ignores_merges(t->pre)) {
        e.spelled = malloc(t->longest + 2);
        if (!e.spelled) return error_set_memory(err, "a word", t->longest + 2);
    }
    if (length) code = encode_text(&e, text, length, special ? SPECIAL : USER_DEFINED);
    free(e.spelled);
    free(e.symbols);
    free(e.queue);
    if (code == ATTUNE_OK) *n = e.n;
    return code;
}
