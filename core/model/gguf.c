/* GGUF, little-endian. Versions 2 and 3 are the same here.
 *
 *   0   magic "GGUF"
 *   4   version u32
 *   8   number of tensors u64
 *   16  number of pairs u64
 *   24  pairs, one after the other, nothing between:
 *         key         string: length u64, bytes (no NUL after them)
 *         kind u32    enum gguf_kind
 *         value       U8, I8, BOOL 1 byte; U16, I16 2; U32, I32, F32 4; U64, I64, F64 8;
 *                     string as above; array: element kind u32, count u64, the elements
 *   ..  descriptions of tensors:
 *         name        string
 *         n_dims u32, then n_dims times u64, the contiguous dimension first
 *         type u32    ggml_type
 *         offset u64  from the start of the data, a multiple of the alignment
 *   ..  zeros up to a multiple of the alignment ("general.alignment" U32, else 32)
 *   ..  data: each tensor at its offset, zeros between
 *
 * Refused beyond what the format says: nested arrays; counts beyond the limits below, which keep the
 * memory that a refusal takes in bounds; an alignment outside [8, 2^20]; names with a NUL. Allowed: holes
 * in the data, a last tensor without padding, bytes after it. */
#define _GNU_SOURCE
#include "core/model/gguf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    PAIRS_MAX = 1 << 16,   /* together at most 4 MiB here, */
    TENSORS_MAX = 1 << 16, /* 15 MiB, */
    STRINGS_MAX = 1 << 21, /* in all arrays: 32 MiB */
    PAIR_BYTES = 14,       /* of the shortest: length, 1 byte of key, kind, 1 byte of value */
    TENSOR_BYTES = 33,     /* of the shortest: length, 1 byte of name, n_dims, a dimension, type, offset */
    KEY_MAX = 65535,
    DIMS_MAX = 4,
    ALIGNMENT_DEFAULT = 32, ALIGNMENT_MIN = 8, ALIGNMENT_MAX = 1 << 20,
    QUOTE = 72 /* of a name from the file, in a message */
};

static const uint8_t kind_bytes[] = {[GGUF_U8] = 1,  [GGUF_I8] = 1,  [GGUF_U16] = 2, [GGUF_I16] = 2,
                                     [GGUF_U32] = 4, [GGUF_I32] = 4, [GGUF_F32] = 4, [GGUF_BOOL] = 1,
                                     [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8};
static const char *const kind_names[] = {"U8",   "I8",     "U16",   "I16", "U32", "I32", "F32",
                                         "BOOL", "string", "array", "U64", "I64", "F64"};

struct place { /* of a tensor */
    uint64_t offset; /* of its data, from the start of the data */
    size_t index;    /* in gguf->tensors */
    size_t at;       /* byte of its description */
};

struct reader {
    struct cursor cursor;
    struct gguf *gguf;
    uint64_t n_pairs, n_tensors; /* as the file says, bounded */
    size_t strings;              /* in arrays so far */
    struct place *places;        /* (n_tensors) */
};

/* A name from the file, fit for a message: short, without control characters. */
static const char *quote(char out[QUOTE], const char *data, size_t size) {
    size_t n = size < QUOTE - 4 ? size : QUOTE - 4;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)data[i];
        out[i] = c < 0x20 || c >= 0x7f ? '?' : (char)c;
    }
    strcpy(out + n, size > n ? "..." : "");
    return out;
}

/* The fault is at byte `at`, not where the cursor stands. */
#define FAIL_AT(cursor, byte, ...) ((cursor)->at = (byte), cursor_fail((cursor), __VA_ARGS__))

static struct gguf_string read_string(struct cursor *cursor, const char *what) {
    uint64_t size = cursor_u64(cursor, what);
    const unsigned char *data = cursor_bytes(cursor, size, what);
    return (struct gguf_string){(const char *)data, data ? (size_t)size : 0};
}

static size_t left(const struct cursor *cursor) { return cursor->size - cursor->at; }

/* ---- header ---- */

/* A count that its entries, of at least `each` bytes, could have in the rest of the file. */
static uint64_t read_count(struct cursor *cursor, const char *what, size_t each, uint64_t most) {
    size_t at = cursor->at;
    uint64_t count = cursor_u64(cursor, what);
    if (cursor->code != ATTUNE_OK) return 0;
    if (count > left(cursor) / each)
        FAIL_AT(cursor, at, ATTUNE_ERROR_FORMAT, "%s is %llu: the file is too short for that many", what,
                (unsigned long long)count);
    else if (count > most)
        FAIL_AT(cursor, at, ATTUNE_ERROR_UNSUPPORTED, "%s is %llu: attune reads files with at most %llu", what,
                (unsigned long long)count, (unsigned long long)most);
    return cursor->code == ATTUNE_OK ? count : 0;
}

static void read_header(struct reader *r) {
    struct cursor *c = &r->cursor;
    const unsigned char *magic = cursor_bytes(c, 4, "the magic number");
    if (magic && memcmp(magic, "GGUF", 4) != 0)
        FAIL_AT(c, 0, ATTUNE_ERROR_FORMAT, "this is not a GGUF file (it does not begin with \"GGUF\")");
    uint32_t version = cursor_u32(c, "the version");
    if (c->code == ATTUNE_OK && version != 2 && version != 3) {
        int swapped = version && (version & 0xffff) == 0;
        FAIL_AT(c, 4, ATTUNE_ERROR_UNSUPPORTED, "GGUF version %lu%s: attune reads little-endian versions 2 and 3",
                (unsigned long)(swapped ? __builtin_bswap32(version) : version), swapped ? ", big-endian" : "");
    }
    r->gguf->version = version;
    r->n_tensors = read_count(c, "the number of tensors", TENSOR_BYTES, TENSORS_MAX);
    r->n_pairs = read_count(c, "the number of keys", PAIR_BYTES, PAIRS_MAX);
}

/* ---- pairs ---- */

static int known_kind(struct cursor *cursor, uint32_t kind, const char *what) {
    if (cursor->code != ATTUNE_OK) return 0;
    if (kind < sizeof kind_bytes) return 1;
    FAIL_AT(cursor, cursor->at - 4, ATTUNE_ERROR_FORMAT, "%s has the unknown type %lu", what, (unsigned long)kind);
    return 0;
}

static void check_bools(struct cursor *cursor, const unsigned char *values, uint64_t count, const char *what) {
    for (uint64_t i = 0; values && i < count; i++) {
        if (values[i] <= 1) continue;
        FAIL_AT(cursor, (size_t)(values + i - cursor->data), ATTUNE_ERROR_FORMAT, "%s is BOOL but %d, not 0 or 1", what,
                values[i]);
        return;
    }
}

static void read_strings(struct reader *r, struct gguf_pair *pair, const char *what) {
    struct cursor *c = &r->cursor;
    if (pair->count > left(c) / 8) {
        FAIL_AT(c, c->at - 8, ATTUNE_ERROR_FORMAT, "%s has %llu strings: the file is too short for that many", what,
                (unsigned long long)pair->count);
        return;
    }
    if (pair->count > STRINGS_MAX - r->strings) {
        FAIL_AT(c, c->at - 8, ATTUNE_ERROR_UNSUPPORTED,
                "%s has %llu strings: attune reads files with at most %d in arrays", what,
                (unsigned long long)pair->count, STRINGS_MAX);
        return;
    }
    size_t count = (size_t)pair->count;
    r->strings += count;
    pair->strings = calloc(count, sizeof *pair->strings);
    if (!pair->strings && count) {
        c->code = error_set_memory(c->err, "strings of a GGUF file", count * sizeof *pair->strings);
        return;
    }
    for (size_t i = 0; i < count && c->code == ATTUNE_OK; i++) pair->strings[i] = read_string(c, what);
}

static void read_array(struct reader *r, struct gguf_pair *pair, const char *what) {
    struct cursor *c = &r->cursor;
    uint32_t element = cursor_u32(c, what);
    if (!known_kind(c, element, what)) return;
    if (element == GGUF_ARRAY) {
        FAIL_AT(c, c->at - 4, ATTUNE_ERROR_UNSUPPORTED, "%s is an array of arrays, which attune does not read", what);
        return;
    }
    pair->element = (enum gguf_kind)element;
    pair->count = cursor_u64(c, what);
    if (c->code != ATTUNE_OK) return;
    pair->value = c->data + c->at;
    if (element == GGUF_STRING) {
        read_strings(r, pair, what);
        return;
    }
    if (pair->count > left(c) / kind_bytes[element]) {
        FAIL_AT(c, c->at - 8, ATTUNE_ERROR_FORMAT, "%s has %llu elements: the file is too short for that many", what,
                (unsigned long long)pair->count);
        return;
    }
    const unsigned char *values = cursor_bytes(c, pair->count * kind_bytes[element], what);
    if (element == GGUF_BOOL) check_bools(c, values, pair->count, what);
}

static void read_pair(struct reader *r, struct gguf_pair *pair) {
    struct cursor *c = &r->cursor;
    size_t at = c->at;
    pair->key = read_string(c, "a key");
    if (c->code != ATTUNE_OK) return;
    char key[QUOTE], what[QUOTE + 16];
    snprintf(what, sizeof what, "key \"%s\"", quote(key, pair->key.data, pair->key.size));
    if (pair->key.size == 0 || pair->key.size > KEY_MAX || memchr(pair->key.data, 0, pair->key.size)) {
        FAIL_AT(c, at, ATTUNE_ERROR_FORMAT, "%s is empty, longer than %d bytes or holds a NUL", what, KEY_MAX);
        return;
    }
    uint32_t kind = cursor_u32(c, what);
    if (!known_kind(c, kind, what)) return;
    pair->kind = (enum gguf_kind)kind;
    pair->value = c->data + c->at;
    if (kind == GGUF_STRING)
        read_string(c, what);
    else if (kind == GGUF_ARRAY)
        read_array(r, pair, what);
    else if (cursor_bytes(c, kind_bytes[kind], what) && kind == GGUF_BOOL)
        check_bools(c, pair->value, 1, what);
}

static int compare_strings(const char *a, size_t a_size, const char *b, size_t b_size) {
    int order = memcmp(a, b, a_size < b_size ? a_size : b_size);
    return order ? order : (a_size > b_size) - (a_size < b_size);
}

static int compare_keys(const void *a, const void *b, void *gguf) {
    const struct gguf_string *x = &((struct gguf *)gguf)->pairs[*(const size_t *)a].key;
    const struct gguf_string *y = &((struct gguf *)gguf)->pairs[*(const size_t *)b].key;
    return compare_strings(x->data, x->size, y->data, y->size);
}

/* An array of n elements for the reader; NULL is a fault of the cursor. */
static void *take(struct reader *r, uint64_t n, size_t each, const char *what) {
    void *p = r->cursor.code == ATTUNE_OK ? calloc(n ? (size_t)n : 1, each) : NULL;
    if (!p && r->cursor.code == ATTUNE_OK) r->cursor.code = error_set_memory(r->cursor.err, what, (size_t)n * each);
    return p;
}

static void sort_keys(struct reader *r) {
    struct gguf *g = r->gguf;
    for (size_t i = 0; i < g->n_pairs; i++) g->by_key[i] = i;
    qsort_r(g->by_key, g->n_pairs, sizeof *g->by_key, compare_keys, g);
    for (size_t i = 1; i < g->n_pairs; i++) {
        if (compare_keys(&g->by_key[i - 1], &g->by_key[i], g) != 0) continue;
        char key[QUOTE];
        size_t a = g->by_key[i - 1], b = g->by_key[i];
        const struct gguf_string *second = &g->pairs[a > b ? a : b].key;
        FAIL_AT(&r->cursor, (size_t)((const unsigned char *)second->data - r->cursor.data), ATTUNE_ERROR_FORMAT,
                "key \"%s\" is there twice", quote(key, second->data, second->size));
        return;
    }
}

static void read_pairs(struct reader *r) {
    struct gguf *g = r->gguf;
    g->pairs = take(r, r->n_pairs, sizeof *g->pairs, "keys of a GGUF file");
    g->by_key = take(r, r->n_pairs, sizeof *g->by_key, "keys of a GGUF file");
    while (r->cursor.code == ATTUNE_OK && g->n_pairs < r->n_pairs) read_pair(r, &g->pairs[g->n_pairs++]);
    if (r->cursor.code == ATTUNE_OK) sort_keys(r);
}

static void read_alignment(struct reader *r) {
    if (r->cursor.code != ATTUNE_OK) return;
    const struct gguf_pair *pair = gguf_find(r->gguf, "general.alignment");
    r->gguf->alignment = ALIGNMENT_DEFAULT;
    if (!pair) return;
    size_t at = (size_t)(pair->value - r->cursor.data);
    if (pair->kind != GGUF_U32) {
        FAIL_AT(&r->cursor, at, ATTUNE_ERROR_FORMAT, "key \"general.alignment\" has type %s, not U32",
                kind_names[pair->kind]);
        return;
    }
    struct cursor value = {.data = pair->value, .size = 4};
    uint32_t alignment = cursor_u32(&value, "");
    if (alignment < ALIGNMENT_MIN || alignment > ALIGNMENT_MAX || (alignment & (alignment - 1)) != 0) {
        FAIL_AT(&r->cursor, at, ATTUNE_ERROR_FORMAT,
                "key \"general.alignment\" is %lu, not a power of two from %d to %d", (unsigned long)alignment,
                ALIGNMENT_MIN, ALIGNMENT_MAX);
        return;
    }
    r->gguf->alignment = alignment;
}

/* ---- tensors ---- */

/* The type must be known, the rows whole blocks, the size representable. */
static void check_shape(struct cursor *c, struct gguf_tensor *tensor) {
    char name[QUOTE];
    quote(name, tensor->name, strlen(tensor->name));
    const char *type = block_type_name(tensor->type);
    const struct block_format *format = block_format_get(tensor->type);
    if (!type)
        cursor_fail(c, ATTUNE_ERROR_FORMAT, "tensor \"%s\" has the unknown type %lu", name,
                    (unsigned long)tensor->type);
    else if (!format)
        cursor_fail(c, ATTUNE_ERROR_UNSUPPORTED,
                    "tensor \"%s\" has type %s, which attune does not read: use a file in F32, F16, BF16, Q4_0, Q4_1, "
                    "Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or Q6_K", name, type);
    else if (tensor->dims[0] % format->elements != 0)
        cursor_fail(c, ATTUNE_ERROR_FORMAT, "tensor \"%s\" has rows of %llu, not a multiple of the %lu of a %s block",
                    name, (unsigned long long)tensor->dims[0], (unsigned long)format->elements, type);
    if (c->code != ATTUNE_OK) return;
    size_t bytes = block_row_bytes((enum block_type)tensor->type, tensor->dims[0]);
    int fits = bytes != 0;
    for (int i = 1; i < DIMS_MAX; i++) fits = fits && checked_mul(bytes, tensor->dims[i], &bytes);
    if (!fits) cursor_fail(c, ATTUNE_ERROR_FORMAT, "the dimensions of tensor \"%s\" overflow", name);
    tensor->bytes = bytes;
}

static void read_name(struct cursor *c, struct gguf_tensor *tensor, size_t at) {
    struct gguf_string name = read_string(c, "a tensor's name");
    if (c->code != ATTUNE_OK) return;
    if (name.size == 0 || name.size >= sizeof tensor->name || memchr(name.data, 0, name.size)) {
        char text[QUOTE];
        FAIL_AT(c, at, ATTUNE_ERROR_FORMAT, "the tensor's name \"%s\" is empty, longer than %zu bytes or holds a NUL",
                quote(text, name.data, name.size), sizeof tensor->name - 1);
        return;
    }
    memcpy(tensor->name, name.data, name.size);
}

static void read_tensor(struct reader *r, size_t index) {
    struct cursor *c = &r->cursor;
    struct gguf_tensor *tensor = &r->gguf->tensors[index];
    size_t at = c->at;
    read_name(c, tensor, at);
    char name[QUOTE], what[QUOTE + 16];
    snprintf(what, sizeof what, "tensor \"%s\"", quote(name, tensor->name, strlen(tensor->name)));
    tensor->n_dims = cursor_u32(c, what);
    if (c->code == ATTUNE_OK && (tensor->n_dims == 0 || tensor->n_dims > DIMS_MAX))
        FAIL_AT(c, at, ATTUNE_ERROR_FORMAT, "%s has %lu dimensions, not 1 to 4", what, (unsigned long)tensor->n_dims);
    for (uint32_t i = 0; i < DIMS_MAX; i++) {
        tensor->dims[i] = c->code == ATTUNE_OK && i < tensor->n_dims ? cursor_u64(c, what) : 1;
        if (c->code == ATTUNE_OK && (tensor->dims[i] == 0 || tensor->dims[i] > INT64_MAX))
            FAIL_AT(c, at, ATTUNE_ERROR_FORMAT, "%s has a dimension of %lld", what, (long long)tensor->dims[i]);
    }
    tensor->type = cursor_u32(c, what);
    uint64_t offset = cursor_u64(c, what);
    if (c->code != ATTUNE_OK) return;
    r->places[index] = (struct place){offset, index, at};
    size_t next = c->at;
    c->at = at;
    check_shape(c, tensor);
    if (c->code == ATTUNE_OK) c->at = next;
}

static int compare_names(const void *a, const void *b, void *gguf) {
    const struct gguf_tensor *tensors = ((struct gguf *)gguf)->tensors;
    return strcmp(tensors[*(const size_t *)a].name, tensors[*(const size_t *)b].name);
}

static void sort_names(struct reader *r) {
    struct gguf *g = r->gguf;
    for (size_t i = 0; i < g->n_tensors; i++) g->by_name[i] = i;
    qsort_r(g->by_name, g->n_tensors, sizeof *g->by_name, compare_names, g);
    for (size_t i = 1; i < g->n_tensors; i++) {
        size_t a = g->by_name[i - 1], b = g->by_name[i], second = a > b ? a : b;
        if (strcmp(g->tensors[a].name, g->tensors[b].name) != 0) continue;
        char name[QUOTE];
        FAIL_AT(&r->cursor, r->places[second].at, ATTUNE_ERROR_FORMAT, "tensor \"%s\" is there twice",
                quote(name, g->tensors[a].name, strlen(g->tensors[a].name)));
        return;
    }
}

static int compare_offsets(const void *a, const void *b) {
    const struct place *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

/* Each tensor's data inside the file and aligned, no two over each other. Sorts the places. */
static void locate_data(struct reader *r) {
    struct gguf *g = r->gguf;
    struct cursor *c = &r->cursor;
    size_t size = c->size > g->data_offset ? c->size - g->data_offset : 0;
    qsort(r->places, g->n_tensors, sizeof *r->places, compare_offsets);
    size_t end = 0;
    for (size_t i = 0; i < g->n_tensors && c->code == ATTUNE_OK; i++) {
        const struct place *place = &r->places[i];
        struct gguf_tensor *tensor = &g->tensors[place->index];
        char name[QUOTE], other[QUOTE];
        quote(name, tensor->name, strlen(tensor->name));
        if (place->offset % g->alignment != 0)
            FAIL_AT(c, place->at, ATTUNE_ERROR_FORMAT,
                    "tensor \"%s\" has offset %llu, not a multiple of the alignment %zu", name,
                    (unsigned long long)place->offset, g->alignment);
        else if (place->offset > size || tensor->bytes > size - place->offset)
            FAIL_AT(c, place->at, ATTUNE_ERROR_FORMAT,
                    "tensor \"%s\" (%zu bytes at %llu) goes past the end of the file, which was cut short or damaged",
                    name, tensor->bytes, (unsigned long long)place->offset);
        else if (place->offset < end) {
            const char *before = g->tensors[r->places[i - 1].index].name;
            FAIL_AT(c, place->at, ATTUNE_ERROR_FORMAT, "the data of tensors \"%s\" and \"%s\" overlap",
                    quote(other, before, strlen(before)), name);
        } else {
            tensor->data = c->data + g->data_offset + place->offset;
            end = (size_t)place->offset + tensor->bytes;
        }
    }
}

static void read_tensors(struct reader *r) {
    struct gguf *g = r->gguf;
    struct cursor *c = &r->cursor;
    g->tensors = take(r, r->n_tensors, sizeof *g->tensors, "tensors of a GGUF file");
    g->by_name = take(r, r->n_tensors, sizeof *g->by_name, "tensors of a GGUF file");
    r->places = take(r, r->n_tensors, sizeof *r->places, "tensors of a GGUF file");
    while (c->code == ATTUNE_OK && g->n_tensors < r->n_tensors) read_tensor(r, g->n_tensors++);
    if (c->code != ATTUNE_OK) return;
    sort_names(r);
    if (c->code != ATTUNE_OK) return;
    size_t past;
    if (!checked_add(c->at, g->alignment - 1, &past)) {
        cursor_fail(c, ATTUNE_ERROR_FORMAT, "the padding before the data overflows");
        return;
    }
    g->data_offset = past & ~(g->alignment - 1);
    locate_data(r);
}

/* ---- the file ---- */

static int parse(struct gguf *gguf, attune_error *err) {
    struct file_bytes *file = &gguf->file;
    struct reader r = {.cursor = {.data = file->data, .size = file->size, .name = file->path, .err = err},
                       .gguf = gguf};
    read_header(&r);
    read_pairs(&r);
    read_alignment(&r);
    read_tensors(&r);
    free(r.places);
    return r.cursor.code;
}

/* fd -1: of the path. */
static int open_file(int fd, const char *path, enum file_load load, struct gguf **out, attune_error *err) {
    struct gguf *gguf = calloc(1, sizeof *gguf);
    if (!gguf) return error_set_memory(err, "a GGUF file", sizeof *gguf);
    int code = fd < 0 ? file_bytes_open(path, load, SIZE_MAX, &gguf->file, err)
                      : file_bytes_from(fd, path, load, SIZE_MAX, &gguf->file, err);
    if (code == ATTUNE_OK) code = parse(gguf, err);
    if (code == ATTUNE_OK)
        *out = gguf;
    else
        gguf_close(gguf);
    return code;
}

int gguf_open(const char *path, enum file_load load, struct gguf **out, attune_error *err) {
    return open_file(-1, path, load, out, err);
}

int gguf_open_from(int fd, const char *path, enum file_load load, struct gguf **out, attune_error *err) {
    return open_file(fd, path, load, out, err);
}

int gguf_parse(const void *bytes, size_t size, const char *name, struct gguf **out, attune_error *err) {
    struct gguf *gguf = calloc(1, sizeof *gguf);
    if (!gguf) return error_set_memory(err, "a GGUF file", sizeof *gguf);
    size_t n = strnlen(name, sizeof gguf->file.path - 1);
    memcpy(gguf->file.path, name, n);
    gguf->file.data = bytes;
    gguf->file.size = size;
    gguf->borrowed = 1;
    int code = parse(gguf, err);
    if (code == ATTUNE_OK)
        *out = gguf;
    else
        gguf_close(gguf);
    return code;
}

void gguf_close(struct gguf *gguf) {
    if (!gguf) return;
    for (size_t i = 0; i < gguf->n_pairs; i++) free(gguf->pairs[i].strings);
    free(gguf->pairs);
    free(gguf->by_key);
    free(gguf->tensors);
    free(gguf->by_name);
    if (!gguf->borrowed) file_bytes_close(&gguf->file);
    free(gguf);
}

/* ---- lookup ---- */

const struct gguf_pair *gguf_find(const struct gguf *gguf, const char *key) {
    size_t n = strlen(key);
    for (size_t low = 0, high = gguf->n_pairs; low < high;) {
        size_t middle = low + (high - low) / 2;
        const struct gguf_pair *pair = &gguf->pairs[gguf->by_key[middle]];
        int order = compare_strings(key, n, pair->key.data, pair->key.size);
        if (order == 0) return pair;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

const struct gguf_tensor *gguf_tensor_find(const struct gguf *gguf, const char *name) {
    for (size_t low = 0, high = gguf->n_tensors; low < high;) {
        size_t middle = low + (high - low) / 2;
        const struct gguf_tensor *tensor = &gguf->tensors[gguf->by_name[middle]];
        int order = strcmp(name, tensor->name);
        if (order == 0) return tensor;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

static int find(const struct gguf *gguf, const char *key, const struct gguf_pair **out, attune_error *err) {
    *out = gguf_find(gguf, key);
    if (*out) return ATTUNE_OK;
    return error_set(err, ATTUNE_ERROR_NOT_FOUND, gguf->file.path, "key \"%s\" is missing", key);
}

static int wrong_kind(const struct gguf *gguf, const struct gguf_pair *pair, const char *key, const char *wanted,
                      attune_error *err) {
    return error_set(err, ATTUNE_ERROR_FORMAT, gguf->file.path, "key \"%s\" has type %s where %s is needed", key,
                     kind_names[pair->kind], wanted);
}

/* The value's bits, extended with its sign where it has one. */
static uint64_t integer(const struct gguf_pair *pair) {
    uint64_t value = 0;
    unsigned bytes = kind_bytes[pair->kind];
    for (unsigned i = 0; i < bytes; i++) value |= (uint64_t)pair->value[i] << (8 * i);
    int is_signed =
        pair->kind == GGUF_I8 || pair->kind == GGUF_I16 || pair->kind == GGUF_I32 || pair->kind == GGUF_I64;
    if (is_signed && bytes < 8 && value >> (8 * bytes - 1)) value |= ~(uint64_t)0 << (8 * bytes);
    return value;
}

static int is_integer(const struct gguf_pair *pair) {
    return pair->kind <= GGUF_I32 || pair->kind == GGUF_U64 || pair->kind == GGUF_I64;
}

/* The integer's sign bit counts: it is of a signed kind. */
static int is_negative(const struct gguf_pair *pair, uint64_t value) { return pair->kind != GGUF_U64 && value >> 63; }

int gguf_get_u64(const struct gguf *gguf, const char *key, uint64_t *out, attune_error *err) {
    const struct gguf_pair *pair;
    int code = find(gguf, key, &pair, err);
    if (code != ATTUNE_OK) return code;
    if (!is_integer(pair)) return wrong_kind(gguf, pair, key, "an integer", err);
    uint64_t value = integer(pair);
    if (is_negative(pair, value))
        return error_set(err, ATTUNE_ERROR_FORMAT, gguf->file.path, "key \"%s\" is %lld, and must not be negative", key,
                         (long long)value);
    *out = value;
    return ATTUNE_OK;
}

int gguf_get_f64(const struct gguf *gguf, const char *key, double *out, attune_error *err) {
    const struct gguf_pair *pair;
    int code = find(gguf, key, &pair, err);
    if (code != ATTUNE_OK) return code;
    if (pair->kind == GGUF_F32) {
        float value;
        memcpy(&value, pair->value, sizeof value);
        *out = (double)value;
    } else if (pair->kind == GGUF_F64) {
        memcpy(out, pair->value, sizeof *out);
    } else if (is_integer(pair)) {
        uint64_t value = integer(pair), magnitude = is_negative(pair, value) ? 0 - value : value;
        if (magnitude > (uint64_t)1 << 53)
            return error_set(err, ATTUNE_ERROR_FORMAT, gguf->file.path, "key \"%s\" is too large for a number", key);
        *out = is_negative(pair, value) ? -(double)magnitude : (double)magnitude;
    } else {
        return wrong_kind(gguf, pair, key, "a number", err);
    }
    return ATTUNE_OK;
}

int gguf_get_bool(const struct gguf *gguf, const char *key, int *out, attune_error *err) {
    const struct gguf_pair *pair;
    int code = find(gguf, key, &pair, err);
    if (code != ATTUNE_OK) return code;
    if (pair->kind != GGUF_BOOL) return wrong_kind(gguf, pair, key, "BOOL", err);
    *out = pair->value[0];
    return ATTUNE_OK;
}

int gguf_get_string(const struct gguf *gguf, const char *key, struct gguf_string *out, attune_error *err) {
    const struct gguf_pair *pair;
    int code = find(gguf, key, &pair, err);
    if (code != ATTUNE_OK) return code;
    if (pair->kind != GGUF_STRING) return wrong_kind(gguf, pair, key, "a string", err);
    struct cursor value = {.data = pair->value, .size = SIZE_MAX}; /* the length was checked when the file was read */
    *out = read_string(&value, key);
    return ATTUNE_OK;
}

int gguf_get_text(const struct gguf *gguf, const char *key, char *out, size_t out_size, attune_error *err) {
    struct gguf_string text = {0};
    int code = gguf_get_string(gguf, key, &text, err);
    if (code != ATTUNE_OK) return code;
    if (text.size >= out_size)
        return error_set(err, ATTUNE_ERROR_FORMAT, gguf->file.path,
                         "key \"%s\" has %zu bytes, at most %zu are accepted", key, text.size, out_size - 1);
    if (memchr(text.data, 0, text.size))
        return error_set(err, ATTUNE_ERROR_FORMAT, gguf->file.path, "key \"%s\" holds a NUL", key);
    memcpy(out, text.data, text.size);
    out[text.size] = 0;
    return ATTUNE_OK;
}
