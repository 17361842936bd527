/* GGUF: round trips, and each kind of hostile file ends in an error that says where. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/base/hash.h"
#include "core/model/gguf.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(memory_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#endif

/* ---- allocations that fail, by number ---- */

#ifndef SANITIZED
static long allocations, failing = -1; /* since arm(); the number that fails */
static long alive;                     /* since arm(), balance of allocations and frees */

static void arm(long number) {
    allocations = alive = 0;
    failing = number;
}
static long disarm(void) {
    failing = -1;
    return alive;
}

/* These stand in for the C library's in the whole process. */
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static int refuse(void) { return failing > 0 && ++allocations == failing; }
static void *count(void *p) {
    alive += p != NULL;
    return p;
}
void *malloc(size_t n) { return refuse() ? NULL : count(__libc_malloc(n)); }
void *calloc(size_t n, size_t each) { return refuse() ? NULL : count(__libc_calloc(n, each)); }
void *realloc(void *old, size_t n) {
    if (refuse()) return NULL;
    void *p = __libc_realloc(old, n);
    alive += p && !old;
    return p;
}
int posix_memalign(void **out, size_t alignment, size_t n) {
    void *p = refuse() ? NULL : count(__libc_memalign(alignment, n));
    if (p) *out = p;
    return p ? 0 : 12; /* ENOMEM */
}
void free(void *p) {
    alive -= p != NULL;
    __libc_free(p);
}
#endif

/* ---- files in memory ---- */

struct bytes {
    unsigned char data[8192];
    size_t size;
};

static void add(struct bytes *b, const void *data, size_t n) {
    assert_true(b->size + n <= sizeof b->data);
    if (n) memcpy(b->data + b->size, data, n);
    b->size += n;
}
static void add_u8(struct bytes *b, unsigned value) { add(b, &(unsigned char){(unsigned char)value}, 1); }
static void add_u32(struct bytes *b, uint32_t value) { add(b, &value, 4); }
static void add_u64(struct bytes *b, uint64_t value) { add(b, &value, 8); }
static void add_string(struct bytes *b, const char *text) {
    add_u64(b, strlen(text));
    add(b, text, strlen(text));
}
static void add_header(struct bytes *b, uint64_t tensors, uint64_t pairs) {
    b->size = 0;
    add(b, "GGUF", 4);
    add_u32(b, 3);
    add_u64(b, tensors);
    add_u64(b, pairs);
}
static void add_key(struct bytes *b, const char *key, uint32_t kind) {
    add_string(b, key);
    add_u32(b, kind);
}
static void add_array(struct bytes *b, const char *key, uint32_t element, uint64_t elements) {
    add_key(b, key, GGUF_ARRAY);
    add_u32(b, element);
    add_u64(b, elements);
}
static void add_tensor(struct bytes *b, const char *name, uint32_t n_dims, const uint64_t *dims, uint32_t type,
                       uint64_t offset) {
    add_string(b, name);
    add_u32(b, n_dims);
    for (uint32_t i = 0; i < n_dims && i < 8; i++) add_u64(b, dims[i]);
    add_u32(b, type);
    add_u64(b, offset);
}
static void add_data(struct bytes *b, size_t alignment, size_t n) {
    while (b->size % alignment) add_u8(b, 0);
    for (size_t i = 0; i < n; i++) add_u8(b, (unsigned)i);
}

/* One of each: kinds of values, and two tensors whose data end with the file. */
static void make_sample(struct bytes *b) {
    add_header(b, 2, 15);
    add_key(b, "general.alignment", GGUF_U32), add_u32(b, 64);
    add_key(b, "u8", GGUF_U8), add_u8(b, 250);
    add_key(b, "i8", GGUF_I8), add_u8(b, (unsigned)-3);
    add_key(b, "u16", GGUF_U16), add(b, &(uint16_t){60000}, 2);
    add_key(b, "i16", GGUF_I16), add(b, &(int16_t){-300}, 2);
    add_key(b, "i32", GGUF_I32), add_u32(b, 70000);
    add_key(b, "f32", GGUF_F32), add(b, &(float){0.5f}, 4);
    add_key(b, "bool", GGUF_BOOL), add_u8(b, 1);
    add_key(b, "string", GGUF_STRING), add_string(b, "text");
    add_key(b, "u64", GGUF_U64), add_u64(b, UINT64_MAX);
    add_key(b, "i64", GGUF_I64), add_u64(b, (uint64_t)-5);
    add_key(b, "f64", GGUF_F64), add(b, &(double){0.1}, 8);
    add_array(b, "strings", GGUF_STRING, 3), add_string(b, "a"), add_string(b, ""), add_string(b, "ccc");
    add_array(b, "numbers", GGUF_I32, 2), add_u32(b, 1), add_u32(b, (uint32_t)-1);
    add_array(b, "bools", GGUF_BOOL, 2), add_u8(b, 0), add_u8(b, 1);
    add_tensor(b, "z", 2, (uint64_t[]){32, 3}, BLOCK_Q4_1, 0); /* 60 bytes */
    add_tensor(b, "a", 1, (uint64_t[]){16}, BLOCK_F32, 64);    /* 64 bytes */
    add_data(b, 64, 128);
}

/* A file with one tensor of this shape over n bytes of data. */
static void make_tensor(struct bytes *b, uint32_t n_dims, const uint64_t *dims, uint32_t type, uint64_t offset,
                        size_t n) {
    add_header(b, 1, 0);
    add_tensor(b, "weight", n_dims, dims, type, offset);
    add_data(b, 32, n);
}

/* Parses a copy that ends where its allocation ends, so that a sanitizer sees one byte too much. */
static int parse(const struct bytes *b, struct gguf **out, unsigned char **copy, attune_error *err) {
    *copy = malloc(b->size ? b->size : 1);
    assert_non_null(*copy);
    memcpy(*copy, b->data, b->size);
    return gguf_parse(*copy, b->size, "hostile.gguf", out, err);
}

/* The file is refused with this code, at this byte, and the message has this word. */
static void assert_refused(const struct bytes *b, int code, size_t byte, const char *word) {
    struct gguf *gguf = NULL;
    unsigned char *copy;
    attune_error err = {0};
    char where[64];
    snprintf(where, sizeof where, "hostile.gguf:byte %zu", byte);
    int found = parse(b, &gguf, &copy, &err);
    free(copy);
    assert_null(gguf);
    if (found != code || err.code != code || !strstr(err.message, word) || strcmp(err.where, where) != 0)
        fail_msg("code %d, \"%s\" at \"%s\"; expected code %d, \"%s\" at \"%s\"", found, err.message, err.where, code,
                 word, where);
}

static void assert_accepted(const struct bytes *b) {
    struct gguf *gguf = NULL;
    unsigned char *copy;
    attune_error err = {0};
    int code = parse(b, &gguf, &copy, &err);
    if (code != ATTUNE_OK) fail_msg("%s at %s", err.message, err.where);
    gguf_close(gguf);
    free(copy);
}

/* ---- reading ---- */

static void every_kind_of_value_is_read(void **state) {
    (void)state;
    struct bytes b;
    make_sample(&b);
    struct gguf *g;
    unsigned char *copy;
    assert_int_equal(parse(&b, &g, &copy, NULL), ATTUNE_OK);
    assert_int_equal(g->version, 3);
    assert_int_equal(g->alignment, 64);
    assert_int_equal(g->n_pairs, 15);
    static const struct { const char *key; uint64_t value; int code; } integers[] = {
        {"general.alignment", 64, ATTUNE_OK}, {"u8", 250, ATTUNE_OK},        {"u16", 60000, ATTUNE_OK},
        {"i32", 70000, ATTUNE_OK},            {"u64", UINT64_MAX, ATTUNE_OK}, {"i8", 0, ATTUNE_ERROR_FORMAT},
        {"i16", 0, ATTUNE_ERROR_FORMAT},      {"i64", 0, ATTUNE_ERROR_FORMAT}, {"f32", 0, ATTUNE_ERROR_FORMAT},
        {"bool", 0, ATTUNE_ERROR_FORMAT},     {"string", 0, ATTUNE_ERROR_FORMAT}, {"numbers", 0, ATTUNE_ERROR_FORMAT},
        {"none", 0, ATTUNE_ERROR_NOT_FOUND},  {"", 0, ATTUNE_ERROR_NOT_FOUND}};
    for (size_t i = 0; i < sizeof integers / sizeof *integers; i++) {
        uint64_t value = 0;
        attune_error err = {0};
        assert_int_equal(gguf_get_u64(g, integers[i].key, &value, &err), integers[i].code);
        assert_true(value == integers[i].value);
        assert_int_equal(err.code, integers[i].code);
        if (err.code) assert_non_null(strstr(err.message, integers[i].key));
    }
    static const struct { const char *key; double value; int code; } numbers[] = {
        {"f32", 0.5, ATTUNE_OK}, {"f64", 0.1, ATTUNE_OK}, {"i8", -3, ATTUNE_OK}, {"i64", -5, ATTUNE_OK},
        {"u16", 60000, ATTUNE_OK}, {"u64", 0, ATTUNE_ERROR_FORMAT}, {"bool", 0, ATTUNE_ERROR_FORMAT}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        double value = 0;
        assert_int_equal(gguf_get_f64(g, numbers[i].key, &value, NULL), numbers[i].code);
        assert_true(value == numbers[i].value);
    }
    int boolean = 0;
    assert_int_equal(gguf_get_bool(g, "bool", &boolean, NULL), ATTUNE_OK);
    assert_int_equal(boolean, 1);
    assert_int_equal(gguf_get_bool(g, "u8", &boolean, NULL), ATTUNE_ERROR_FORMAT);
    gguf_close(g);
    free(copy);
}

static void text_and_arrays_are_read(void **state) {
    (void)state;
    struct bytes b;
    make_sample(&b);
    struct gguf *g;
    unsigned char *copy;
    assert_int_equal(parse(&b, &g, &copy, NULL), ATTUNE_OK);
    struct gguf_string string;
    assert_int_equal(gguf_get_string(g, "string", &string, NULL), ATTUNE_OK);
    assert_int_equal(string.size, 4);
    assert_memory_equal(string.data, "text", 4);
    char text[5];
    assert_int_equal(gguf_get_text(g, "string", text, 5, NULL), ATTUNE_OK);
    assert_string_equal(text, "text");
    assert_int_equal(gguf_get_text(g, "string", text, 4, NULL), ATTUNE_ERROR_FORMAT);
    assert_int_equal(gguf_get_text(g, "f32", text, 5, NULL), ATTUNE_ERROR_FORMAT);
    const struct gguf_pair *pair = gguf_find(g, "strings");
    assert_int_equal(pair->count, 3);
    assert_int_equal(pair->strings[1].size, 0);
    assert_memory_equal(pair->strings[2].data, "ccc", 3);
    pair = gguf_find(g, "numbers");
    assert_int_equal(pair->element, GGUF_I32);
    assert_memory_equal(pair->value, ((int32_t[]){1, -1}), 8);
    gguf_close(g);
    free(copy);
}

static void tensors_are_found_by_name(void **state) {
    (void)state;
    struct bytes b;
    make_sample(&b);
    struct gguf *g;
    unsigned char *copy;
    assert_int_equal(parse(&b, &g, &copy, NULL), ATTUNE_OK);
    assert_int_equal(g->n_tensors, 2);
    const struct gguf_tensor *z = gguf_tensor_find(g, "z"), *a = gguf_tensor_find(g, "a");
    assert_ptr_equal(z, &g->tensors[0]); /* in the file's order */
    assert_ptr_equal(a, &g->tensors[1]);
    assert_int_equal(z->bytes, 60);
    assert_int_equal(z->dims[0], 32);
    assert_int_equal(z->dims[1], 3);
    assert_int_equal(z->dims[2], 1);
    assert_int_equal(z->dims[3], 1);
    assert_ptr_equal(z->data, copy + b.size - 128);
    assert_ptr_equal(a->data, copy + b.size - 64);
    assert_null(gguf_tensor_find(g, "b"));
    assert_null(gguf_tensor_find(g, ""));
    gguf_close(g);
    gguf_close(NULL);
    free(copy);
}

static void holes_and_a_missing_last_padding_are_fine(void **state) {
    (void)state;
    struct bytes b;
    add_header(&b, 2, 0);
    add_tensor(&b, "far", 1, (uint64_t[]){1}, BLOCK_F32, 96);
    add_tensor(&b, "near", 1, (uint64_t[]){1}, BLOCK_F32, 32);
    add_data(&b, 32, 100);
    assert_accepted(&b);
    add_header(&b, 0, 0); /* a vocabulary alone: no data at all */
    assert_accepted(&b);
    b.data[4] = 2;
    assert_accepted(&b);
}

/* ---- hostile files ---- */

static void hostile_1_truncation_at_every_byte(void **state) {
    (void)state;
    struct bytes b;
    make_sample(&b);
    assert_accepted(&b);
    for (size_t size = 0, full = b.size; size < full; size++) {
        struct gguf *g = NULL;
        unsigned char *copy;
        attune_error err = {0};
        b.size = size;
        assert_int_equal(parse(&b, &g, &copy, &err), ATTUNE_ERROR_FORMAT);
        assert_null(g);
        assert_non_null(strstr(err.where, "hostile.gguf:byte "));
        size_t byte = strtoull(strrchr(err.where, ' ') + 1, NULL, 10);
        assert_true(byte <= size);
        assert_true(err.message[0]);
        free(copy);
    }
}

static const uint64_t huge[] = {
    UINT64_MAX, (uint64_t)1 << 63, INT64_MAX, (uint64_t)1 << 32, /* the others wrap when multiplied by a size: */
    UINT64_MAX / 8 + 1, UINT64_MAX / 14 + 1, UINT64_MAX / 33 + 1, UINT64_MAX / sizeof(struct gguf_pair) + 1,
    UINT64_MAX / sizeof(struct gguf_tensor) + 1, UINT64_MAX / 184 + 1, 1000};
enum { HUGE = sizeof huge / sizeof *huge };

static void hostile_2_counts_of_keys_and_tensors(void **state) {
    (void)state;
    struct bytes b;
    for (size_t i = 0; i < HUGE; i++) {
        add_header(&b, 0, huge[i]);
        add_data(&b, 32, 500);
        assert_refused(&b, ATTUNE_ERROR_FORMAT, 16, "the number of keys");
        add_header(&b, huge[i], 0);
        add_data(&b, 32, 500);
        assert_refused(&b, ATTUNE_ERROR_FORMAT, 8, "the number of tensors");
    }
}

static void hostile_3_lengths_of_strings_and_arrays(void **state) {
    (void)state;
    struct bytes b;
    for (size_t i = 0; i < HUGE; i++) {
        add_header(&b, 0, 1);
        add_u64(&b, huge[i]); /* of a key */
        add_data(&b, 32, 500);
        assert_refused(&b, ATTUNE_ERROR_FORMAT, 32, "a key");
        add_header(&b, 0, 1);
        add_key(&b, "text", GGUF_STRING);
        add_u64(&b, huge[i]);
        add_data(&b, 32, 500);
        assert_refused(&b, ATTUNE_ERROR_FORMAT, 48, "key \"text\"");
        for (uint32_t element = 0; element <= GGUF_F64; element++) {
            if (element == GGUF_ARRAY) continue;
            add_header(&b, 0, 1);
            add_array(&b, "list", element, huge[i]);
            add_data(&b, 32, 500);
            assert_refused(&b, ATTUNE_ERROR_FORMAT, 44, "key \"list\" has");
        }
        add_header(&b, 0, 1);
        add_array(&b, "list", GGUF_STRING, 2);
        add_string(&b, "fine");
        add_u64(&b, huge[i]);
        add_data(&b, 32, 500);
        assert_refused(&b, ATTUNE_ERROR_FORMAT, 72, "key \"list\"");
    }
}

static void hostile_3_nested_arrays(void **state) {
    (void)state;
    struct bytes b;
    add_header(&b, 0, 1);
    add_array(&b, "list", GGUF_ARRAY, 1);
    for (int depth = 0; depth < 400; depth++) add_u32(&b, GGUF_ARRAY), add_u64(&b, 1);
    assert_refused(&b, ATTUNE_ERROR_UNSUPPORTED, 40, "array of arrays");
}

static void hostile_3_values_of_unknown_kind(void **state) {
    (void)state;
    struct bytes b;
    static const uint32_t kinds[] = {13, 255, 0x80000000u, UINT32_MAX};
    for (size_t i = 0; i < 4; i++) {
        add_header(&b, 0, 1);
        add_key(&b, "k", kinds[i]);
        add_data(&b, 32, 64);
        assert_refused(&b, ATTUNE_ERROR_FORMAT, 33, "unknown type");
        add_header(&b, 0, 1);
        add_array(&b, "k", kinds[i], 1);
        add_data(&b, 32, 64);
        assert_refused(&b, ATTUNE_ERROR_FORMAT, 37, "unknown type");
    }
}

static void hostile_3_bools_are_0_or_1(void **state) {
    (void)state;
    struct bytes b;
    add_header(&b, 0, 1);
    add_key(&b, "yes", GGUF_BOOL), add_u8(&b, 2);
    assert_refused(&b, ATTUNE_ERROR_FORMAT, 39, "\"yes\" is BOOL but 2");
    add_header(&b, 0, 1);
    add_array(&b, "yes", GGUF_BOOL, 2), add_u8(&b, 1), add_u8(&b, 255);
    assert_refused(&b, ATTUNE_ERROR_FORMAT, 52, "\"yes\" is BOOL but 255");
}

static void hostile_4_dimensions(void **state) {
    (void)state;
    struct bytes b;
    static const uint32_t counts[] = {0, 5, 8, 0x80000000u, UINT32_MAX};
    for (size_t i = 0; i < 5; i++) {
        make_tensor(&b, counts[i], (uint64_t[8]){1, 1, 1, 1, 1, 1, 1, 1}, BLOCK_F32, 0, 64);
        assert_refused(&b, ATTUNE_ERROR_FORMAT, 24, "tensor \"weight\" has");
    }
    static const uint64_t bad[] = {0, UINT64_MAX, (uint64_t)1 << 63};
    for (size_t i = 0; i < 3; i++) {
        for (uint32_t d = 0; d < 4; d++) {
            uint64_t dims[4] = {1, 1, 1, 1};
            dims[d] = bad[i];
            make_tensor(&b, 4, dims, BLOCK_F32, 0, 64);
            assert_refused(&b, ATTUNE_ERROR_FORMAT, 24, "tensor \"weight\" has a dimension of");
        }
    }
    /* products that wrap to 0, to a small number, or in the bytes alone */
    static const uint64_t wrapping[][4] = {{(uint64_t)1 << 32, (uint64_t)1 << 32, 1, 1},
                                           {(uint64_t)1 << 62, 2, 2, 1},
                                           {(uint64_t)1 << 62, 1, 1, 1},
                                           {3, 0x5555555555555556u, 1, 1},
                                           {1, (uint64_t)1 << 31, (uint64_t)1 << 31, 1},
                                           {INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX}};
    for (size_t i = 0; i < sizeof wrapping / sizeof *wrapping; i++) {
        make_tensor(&b, 4, wrapping[i], BLOCK_F32, 0, 64);
        assert_refused(&b, ATTUNE_ERROR_FORMAT, 24, "the dimensions of tensor \"weight\" overflow");
    }
}

static void hostile_5_sizes_that_overflow(void **state) {
    (void)state;
    struct bytes b;
    /* representable alone, beyond the file */
    make_tensor(&b, 1, (uint64_t[]){(uint64_t)1 << 60}, BLOCK_F32, 0, 64);
    assert_refused(&b, ATTUNE_ERROR_FORMAT, 24, "past the end");
    make_tensor(&b, 2, (uint64_t[]){32, (uint64_t)1 << 59}, BLOCK_Q4_0, 0, 64);
    assert_refused(&b, ATTUNE_ERROR_FORMAT, 24, "past the end");
    /* in the sum: four of 2^62 bytes are 2^64 */
    add_header(&b, 4, 0);
    for (uint64_t i = 0; i < 4; i++)
        add_tensor(&b, (const char *[]){"p", "q", "r", "s"}[i], 1, (uint64_t[]){(uint64_t)1 << 60}, BLOCK_F32, i << 62);
    add_data(&b, 32, 64);
    assert_refused(&b, ATTUNE_ERROR_FORMAT, 24, "past the end");
    /* in the padding: size or offset that the next multiple of the alignment wraps */
    make_tensor(&b, 1, (uint64_t[]){UINT64_MAX / 8 - 3}, BLOCK_F32, 0, 64);
    assert_refused(&b, ATTUNE_ERROR_FORMAT, 24, "past the end");
    make_tensor(&b, 1, (uint64_t[]){8}, BLOCK_F32, UINT64_MAX - 31, 64);
    assert_refused(&b, ATTUNE_ERROR_FORMAT, 24, "past the end");
    make_tensor(&b, 1, (uint64_t[]){16}, BLOCK_F32, UINT64_MAX - 63, 64);
    assert_refused(&b, ATTUNE_ERROR_FORMAT, 24, "past the end");
}

static void hostile_6_offsets(void **state) {
    (void)state;
    struct bytes b;
    make_tensor(&b, 1, (uint64_t[]){16}, BLOCK_F32, 0, 64);
    assert_accepted(&b);
    make_tensor(&b, 1, (uint64_t[]){16}, BLOCK_F32, 32, 64);
    assert_refused(&b, ATTUNE_ERROR_FORMAT, 24, "past the end");
    make_tensor(&b, 1, (uint64_t[]){1}, BLOCK_F32, 64, 64);
    assert_refused(&b, ATTUNE_ERROR_FORMAT, 24, "past the end");
    make_tensor(&b, 1, (uint64_t[]){1}, BLOCK_F32, (uint64_t)1 << 63, 64);
    assert_refused(&b, ATTUNE_ERROR_FORMAT, 24, "past the end");
    make_tensor(&b, 1, (uint64_t[]){1}, BLOCK_F32, 4, 64);
    assert_refused(&b, ATTUNE_ERROR_FORMAT, 24, "not a multiple of the alignment 32");
    make_tensor(&b, 1, (uint64_t[]){1}, BLOCK_F32, UINT64_MAX, 64);
    assert_refused(&b, ATTUNE_ERROR_FORMAT, 24, "not a multiple of the alignment 32");
    /* the same place; one into the other; the description that comes second is named in either order */
    static const uint64_t offsets[][2] = {{0, 0}, {0, 32}, {32, 0}};
    for (size_t i = 0; i < 3; i++) {
        add_header(&b, 2, 0);
        add_tensor(&b, "first", 1, (uint64_t[]){16}, BLOCK_F32, offsets[i][0]);
        add_tensor(&b, "second", 1, (uint64_t[]){16}, BLOCK_F32, offsets[i][1]);
        add_data(&b, 32, 128);
        assert_refused(&b, ATTUNE_ERROR_FORMAT, i == 2 ? 24 : 61, "overlap");
    }
}

static void hostile_7_alignment(void **state) {
    (void)state;
    struct bytes b;
    static const uint32_t bad[] = {0, 1, 4, 3, 24, 33, 1u << 21, 0x80000000u, UINT32_MAX};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        add_header(&b, 1, 1);
        add_key(&b, "general.alignment", GGUF_U32), add_u32(&b, bad[i]);
        add_tensor(&b, "weight", 1, (uint64_t[]){1}, BLOCK_F32, 0);
        add_data(&b, 32, 64);
        assert_refused(&b, ATTUNE_ERROR_FORMAT, 53, "not a power of two from 8");
    }
    static const uint32_t kinds[] = {GGUF_U8, GGUF_I32, GGUF_F32, GGUF_BOOL, GGUF_U64, GGUF_STRING, GGUF_ARRAY};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        add_header(&b, 0, 1);
        add_key(&b, "general.alignment", kinds[i]);
        add_u64(&b, 0), add_u64(&b, 0);
        assert_refused(&b, ATTUNE_ERROR_FORMAT, kinds[i] == GGUF_ARRAY ? 65 : 53, "\"general.alignment\" has type");
    }
    /* data that would begin past the end */
    add_header(&b, 1, 1);
    add_key(&b, "general.alignment", GGUF_U32), add_u32(&b, 1u << 20);
    add_tensor(&b, "weight", 1, (uint64_t[]){1}, BLOCK_F32, 0);
    add_data(&b, 32, 64);
    assert_refused(&b, ATTUNE_ERROR_FORMAT, 57, "past the end");
}

static void hostile_8_tensor_types_and_rows(void **state) {
    (void)state;
    struct bytes b;
    static const uint32_t unknown[] = {43, 100, 0x80000000u, UINT32_MAX};
    for (size_t i = 0; i < 4; i++) {
        make_tensor(&b, 1, (uint64_t[]){256}, unknown[i], 0, 1024);
        assert_refused(&b, ATTUNE_ERROR_FORMAT, 24, "tensor \"weight\" has the unknown type");
    }
    make_tensor(&b, 1, (uint64_t[]){256}, 17, 0, 1024);
    assert_refused(&b, ATTUNE_ERROR_UNSUPPORTED, 24, "type IQ2_XS, which attune does not read");
    make_tensor(&b, 1, (uint64_t[]){256}, 4, 0, 1024);
    assert_refused(&b, ATTUNE_ERROR_UNSUPPORTED, 24, "type Q4_2, which attune does not read");
    make_tensor(&b, 2, (uint64_t[]){33, 32}, BLOCK_Q4_1, 0, 1024);
    assert_refused(&b, ATTUNE_ERROR_FORMAT, 24, "rows of 33, not a multiple of the 32 of a Q4_1 block");
    make_tensor(&b, 2, (uint64_t[]){1, 32}, BLOCK_Q8_0, 0, 1024);
    assert_refused(&b, ATTUNE_ERROR_FORMAT, 24, "rows of 1,");
    make_tensor(&b, 2, (uint64_t[]){32, 8}, BLOCK_Q6_K, 0, 1024);
    assert_refused(&b, ATTUNE_ERROR_FORMAT, 24, "rows of 32, not a multiple of the 256");
}

static void add_odd_name(struct bytes *b, const char *name, size_t n) {
    add_u64(b, n);
    add(b, name, n);
}

static void hostile_9_names_of_tensors(void **state) {
    (void)state;
    struct bytes b;
    char lengthy[128];
    memset(lengthy, 'n', sizeof lengthy);
    static const struct { const char *word; } cases[] = {{"empty"}, {"holds a NUL"}, {"longer than 127 bytes"}};
    for (int i = 0; i < 4; i++) {
        add_header(&b, 1, 0);
        if (i == 0) add_odd_name(&b, "", 0);
        if (i == 1) add_odd_name(&b, "a\0b", 3);
        if (i == 2) add_odd_name(&b, lengthy, 128);
        if (i == 3) add_odd_name(&b, lengthy, 127);
        add_u32(&b, 1), add_u64(&b, 1), add_u32(&b, BLOCK_F32), add_u64(&b, 0);
        add_data(&b, 32, 32);
        if (i == 3)
            assert_accepted(&b);
        else
            assert_refused(&b, ATTUNE_ERROR_FORMAT, 24, cases[i].word);
    }
    add_header(&b, 3, 0);
    add_tensor(&b, "same", 1, (uint64_t[]){8}, BLOCK_F32, 0);
    add_tensor(&b, "other", 1, (uint64_t[]){8}, BLOCK_F32, 32);
    add_tensor(&b, "same", 1, (uint64_t[]){8}, BLOCK_F32, 64);
    add_data(&b, 32, 96);
    assert_refused(&b, ATTUNE_ERROR_FORMAT, 24 + 36 + 37, "tensor \"same\" is there twice");
}

static void hostile_9_keys(void **state) {
    (void)state;
    struct bytes b;
    for (int i = 0; i < 2; i++) {
        add_header(&b, 0, 1);
        add_odd_name(&b, i ? "k\0" : "", i ? 2 : 0);
        add_u32(&b, GGUF_U32), add_u32(&b, 1), add_u64(&b, 0);
        assert_refused(&b, ATTUNE_ERROR_FORMAT, 24, i ? "holds a NUL" : "is empty");
    }
    add_header(&b, 0, 3);
    add_key(&b, "same", GGUF_U32), add_u32(&b, 1);
    add_key(&b, "other", GGUF_U32), add_u32(&b, 1);
    add_key(&b, "same", GGUF_U8), add_u8(&b, 1);
    assert_refused(&b, ATTUNE_ERROR_FORMAT, 24 + 20 + 21 + 8, "key \"same\" is there twice");

    struct gguf *g = NULL;
    attune_error err = {0};
    unsigned char *file = calloc(1, 24 + 8 + 65536 + 8);
    assert_non_null(file);
    add_header(&b, 0, 1);
    add_u64(&b, 65536);
    memcpy(file, b.data, b.size);
    memset(file + 32, 'k', 65536);
    assert_int_equal(gguf_parse(file, 24 + 8 + 65536 + 8, "long", &g, &err), ATTUNE_ERROR_FORMAT);
    assert_non_null(strstr(err.message, "longer than 65535"));
    free(file);
}

/* A terminal must not obey what a file says. */
static void names_in_messages_are_harmless(void **state) {
    (void)state;
    struct bytes b;
    add_header(&b, 0, 1);
    add_key(&b, "\x1b[2J\n\xff" "evil", 99);
    assert_refused(&b, ATTUNE_ERROR_FORMAT, 24 + 8 + 10, "key \"?[2J??evil\" has the unknown type 99");
}

static void magic_and_version_are_checked(void **state) {
    (void)state;
    struct bytes b;
    make_sample(&b);
    b.data[3] = 'f';
    assert_refused(&b, ATTUNE_ERROR_FORMAT, 0, "not a GGUF file");
    b.data[3] = 'F';
    static const struct { uint32_t version; const char *word; } versions[] = {
        {0, "version 0"}, {1, "version 1"}, {4, "version 4"}, {0x03000000, "version 3, big-endian"}};
    for (size_t i = 0; i < 4; i++) {
        memcpy(b.data + 4, &versions[i].version, 4);
        assert_refused(&b, ATTUNE_ERROR_UNSUPPORTED, 4, versions[i].word);
    }
}

/* Any one byte changed: accepted or refused, never a crash (the sanitizers watch). */
static void flipped_bytes_are_survived(void **state) {
    (void)state;
    struct bytes b;
    make_sample(&b);
    for (size_t i = 0; i < b.size - 128; i++) {
        static const unsigned char flips[] = {0x01, 0x80, 0xff};
        for (size_t f = 0; f < sizeof flips; f++) {
            struct gguf *g = NULL;
            unsigned char *copy;
            attune_error err = {0};
            b.data[i] ^= flips[f];
            int code = parse(&b, &g, &copy, &err);
            assert_true(code == ATTUNE_OK ? g != NULL : g == NULL && err.code == code && err.message[0]);
            gguf_close(g);
            free(copy);
            b.data[i] ^= flips[f];
        }
    }
}

/* ---- memory while refusing ---- */

static void put_u64(unsigned char *p, uint64_t value) { memcpy(p, &value, 8); }

/* The largest files that a limit lets in, each with a fault at the very end. Returns the size. */
static size_t make_greedy(int which, unsigned char *file, size_t capacity) {
    memset(file, 0, capacity);
    memcpy(file, "GGUF\3\0\0\0", 8);
    size_t at = 24;
    if (which == 0) { /* strings */
        put_u64(file + 16, 1);
        put_u64(file + at, 1), file[at + 8] = 'k', file[at + 9] = GGUF_ARRAY, file[at + 13] = GGUF_STRING;
        put_u64(file + at + 17, 1 << 21);
        at += 25 + ((size_t)8 << 21);
        put_u64(file + at - 8, 1); /* the last string's byte is not there */
    } else if (which == 1) { /* pairs, the last one of unknown kind */
        put_u64(file + 16, 1 << 16);
        for (unsigned i = 0; i < 1 << 16; i++, at += 19) {
            put_u64(file + at, 6);
            char key[8];
            snprintf(key, sizeof key, "%06x", i);
            memcpy(file + at + 8, key, 6);
            file[at + 14] = i == 0xffff ? 77 : GGUF_U8;
        }
    } else { /* tensors, all at the same place */
        put_u64(file + 8, 1 << 16);
        for (unsigned i = 0; i < 1 << 16; i++, at += 38) {
            put_u64(file + at, 6);
            char name[8];
            snprintf(name, sizeof name, "%06x", i);
            memcpy(file + at + 8, name, 6);
            file[at + 14] = 1, file[at + 18] = 1;
        }
        at += 64;
    }
    assert_true(at <= capacity);
    return at;
}

static void refusing_takes_little_memory(void **state) {
    (void)state;
#ifdef SANITIZED
    skip(); /* the sanitizer's own address space is beyond any limit */
#else
    enum { CAPACITY = 24 << 20 };
    static const char *const words[] = {"the file ends inside", "unknown type 77", "overlap"};
    unsigned char *file = malloc(CAPACITY);
    assert_non_null(file);
    for (int which = 0; which < 3; which++) {
        size_t size = make_greedy(which, file, CAPACITY);
        unsigned long pages = 0;
        FILE *statm = fopen("/proc/self/statm", "r");
        assert_non_null(statm);
        assert_int_equal(fscanf(statm, "%lu", &pages), 1);
        fclose(statm);
        struct rlimit old, limit;
        assert_int_equal(getrlimit(RLIMIT_AS, &old), 0);
        limit = old;
        limit.rlim_cur = pages * (unsigned long)sysconf(_SC_PAGESIZE) + (64ul << 20); /* the file is in it already */
        assert_int_equal(setrlimit(RLIMIT_AS, &limit), 0);
        struct gguf *g = NULL;
        attune_error err = {0};
        int code = gguf_parse(file, size, "greedy", &g, &err);
        assert_int_equal(setrlimit(RLIMIT_AS, &old), 0);
        assert_int_equal(code, ATTUNE_ERROR_FORMAT); /* not MEMORY: the limit was not met */
        assert_non_null(strstr(err.message, words[which]));
    }
    free(file);
#endif
}

static void counts_beyond_the_limits_are_refused(void **state) {
    (void)state;
    enum { CAPACITY = 24 << 20 };
    unsigned char *file = malloc(CAPACITY);
    assert_non_null(file);
    static const struct { int which; size_t at; uint64_t count; } cases[] = {
        {0, 41, (1 << 21) + 1}, {1, 16, (1 << 16) + 1}, {2, 8, (1 << 16) + 1}};
    for (size_t i = 0; i < 3; i++) {
        make_greedy(cases[i].which, file, CAPACITY);
        put_u64(file + cases[i].at, cases[i].count);
        struct gguf *g = NULL;
        attune_error err = {0};
        assert_int_equal(gguf_parse(file, CAPACITY, "greedy", &g, &err), ATTUNE_ERROR_UNSUPPORTED);
        assert_non_null(strstr(err.message, "attune reads files with at most"));
    }
    free(file);
}

static void each_failing_allocation_of_the_reader(void **state) {
    (void)state;
#ifdef SANITIZED
    skip();
#else
    struct bytes b;
    make_sample(&b);
    long number = 0;
    for (int code = ATTUNE_ERROR_MEMORY; code != ATTUNE_OK;) {
        struct gguf *g = NULL;
        attune_error err = {0};
        assert_true(++number < 100);
        arm(number);
        code = gguf_parse(b.data, b.size, "memory", &g, &err);
        gguf_close(g);
        assert_int_equal(disarm(), 0); /* nothing leaks */
        assert_true(code == ATTUNE_OK || (code == ATTUNE_ERROR_MEMORY && err.code == code && err.message[0]));
    }
    assert_int_equal(number, 8); /* the file, 2 for keys, strings, 3 for tensors; the eighth is not there */
#endif
}

/* ---- writing ---- */

static char folder[64], path[128];

static int make_folder(void **state) {
    (void)state;
    strcpy(folder, "/tmp/attune-test-gguf-XXXXXX");
    if (!mkdtemp(folder)) return -1;
    snprintf(path, sizeof path, "%s/out.gguf", folder);
    return 0;
}
static int remove_folder(void **state) {
    (void)state;
    unsetenv("ATTUNE_FAULT");
    unlink(path);
    return rmdir(folder); /* fails where a temporary was left */
}

/* Stands in for the C library's: a disk that changes what was written. */
static int disk_lies;
int fsync(int fd);
int fsync(int fd) {
    if (disk_lies && pwrite(fd, "!", 1, 40) != 1) return -1;
    return (int)syscall(SYS_fsync, fd);
}

static const float floats[6] = {1, -2, 3.5f, 0, 1e-30f, 7};
static unsigned char blocks[40];

static void put_sample(struct gguf_writer *w) {
    for (size_t i = 0; i < sizeof blocks; i++) blocks[i] = (unsigned char)(i * 7);
    gguf_put_string(w, "general.architecture", "llama");
    gguf_put_u32(w, "u32", 4000000000u);
    gguf_put_u64(w, "u64", UINT64_MAX - 1);
    gguf_put_f32(w, "f32", 0.1f);
    gguf_put_f64(w, "f64", -1e300);
    gguf_put_bool(w, "bool", 5);
    gguf_put_string(w, "empty", "");
    gguf_put_array(w, "i16s", GGUF_I16, (int16_t[]){-1, 2, 300}, 3);
    gguf_put_array(w, "none", GGUF_F64, NULL, 0);
    gguf_put_strings(w, "strings", (const char *[]){"x", "", "zzz"}, 3);
    gguf_put_tensor(w, "floats", BLOCK_F32, 2, (uint64_t[]){3, 2}, floats);
    gguf_put_tensor(w, "blocks", BLOCK_Q4_1, 1, (uint64_t[]){64}, blocks);
}

static void check_sample(const struct gguf *g) {
    uint64_t u;
    double f;
    int b;
    char text[16];
    assert_int_equal(g->n_pairs, 10);
    assert_int_equal(g->alignment, 32);
    assert_int_equal(gguf_get_text(g, "general.architecture", text, sizeof text, NULL), ATTUNE_OK);
    assert_string_equal(text, "llama");
    assert_int_equal(gguf_get_u64(g, "u32", &u, NULL), ATTUNE_OK);
    assert_true(u == 4000000000u);
    assert_int_equal(gguf_get_u64(g, "u64", &u, NULL), ATTUNE_OK);
    assert_true(u == UINT64_MAX - 1);
    assert_int_equal(gguf_get_f64(g, "f32", &f, NULL), ATTUNE_OK);
    assert_true(f == (double)0.1f);
    assert_int_equal(gguf_get_f64(g, "f64", &f, NULL), ATTUNE_OK);
    assert_true(f == -1e300);
    assert_int_equal(gguf_get_bool(g, "bool", &b, NULL), ATTUNE_OK);
    assert_int_equal(b, 1);
    const struct gguf_pair *pair = gguf_find(g, "i16s");
    assert_int_equal(pair->count, 3);
    assert_memory_equal(pair->value, ((int16_t[]){-1, 2, 300}), 6);
    assert_int_equal(gguf_find(g, "none")->count, 0);
    pair = gguf_find(g, "strings");
    assert_int_equal(pair->strings[2].size, 3);
    const struct gguf_tensor *tensor = gguf_tensor_find(g, "floats");
    assert_int_equal(tensor->n_dims, 2);
    assert_int_equal(tensor->bytes, sizeof floats);
    assert_memory_equal(tensor->data, floats, sizeof floats);
    assert_int_equal((uintptr_t)tensor->data % 32, 0);
    tensor = gguf_tensor_find(g, "blocks");
    assert_int_equal(tensor->type, BLOCK_Q4_1);
    assert_memory_equal(tensor->data, blocks, sizeof blocks);
}

static void what_is_written_is_read(void **state) {
    (void)state;
    struct gguf_writer *w;
    char sha256[65], again[65];
    attune_error err = {0};
    assert_int_equal(gguf_writer_create(&w, NULL), ATTUNE_OK);
    put_sample(w);
    assert_int_equal(gguf_writer_publish(w, path, "test", 1, sha256, &err), ATTUNE_OK);
    gguf_writer_destroy(w);
    for (int load = FILE_MAP; load <= FILE_READ; load++) {
        struct gguf *g;
        assert_int_equal(gguf_open(path, (enum file_load)load, &g, NULL), ATTUNE_OK);
        check_sample(g);
        assert_int_equal(g->file.size % 32, 0); /* the last tensor is padded */
        hash_bytes(g->file.data, g->file.size, again);
        assert_string_equal(sha256, again);
        gguf_close(g);
    }
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
}

static void the_same_puts_give_the_same_bytes(void **state) {
    (void)state;
    char sha256[2][65];
    for (int i = 0; i < 2; i++) {
        struct gguf_writer *w;
        assert_int_equal(gguf_writer_create(&w, NULL), ATTUNE_OK);
        put_sample(w);
        assert_int_equal(gguf_writer_publish(w, path, "test", 0, sha256[i], NULL), ATTUNE_OK);
        gguf_writer_destroy(w);
    }
    assert_string_equal(sha256[0], sha256[1]);
}

static void an_empty_file_round_trips(void **state) {
    (void)state;
    struct gguf_writer *w;
    struct gguf *g;
    assert_int_equal(gguf_writer_create(&w, NULL), ATTUNE_OK);
    assert_int_equal(gguf_writer_publish(w, path, "test", 0, NULL, NULL), ATTUNE_OK);
    assert_int_equal(gguf_open(path, FILE_READ, &g, NULL), ATTUNE_OK);
    assert_int_equal(g->n_pairs + g->n_tensors, 0);
    gguf_close(g);
    gguf_writer_destroy(w);
    gguf_writer_destroy(NULL);
}

/* One bad put, then a good one: publish tells the bad one, and nothing is on disk. */
static void bad_put(struct gguf_writer *w, int which) {
    static char lengthy[65537], name128[129];
    memset(lengthy, 'k', sizeof lengthy - 1);
    memset(name128, 'n', sizeof name128 - 1);
    const uint64_t one[4] = {1, 1, 1, 1}, wrap[4] = {(uint64_t)1 << 40, (uint64_t)1 << 40, 1, 1}, zero[1] = {0};
    switch (which) {
    case 0: gguf_put_u32(w, "", 1); break;
    case 1: gguf_put_u32(w, lengthy, 1); break;
    case 2: gguf_put_u32(w, "k", 1), gguf_put_bool(w, "k", 1); break;
    case 3: gguf_put_u32(w, "general.alignment", 64); break;
    case 4: gguf_put_array(w, "k", GGUF_STRING, "x", 1); break;
    case 5: gguf_put_array(w, "k", (enum gguf_kind)99, "x", 1); break;
    case 6: gguf_put_array(w, "k", GGUF_U64, "x", SIZE_MAX / 4); break;
    case 7: gguf_put_array(w, "k", GGUF_BOOL, "\2", 1); break;
    case 8: gguf_put_tensor(w, "", BLOCK_F32, 1, one, floats); break;
    case 9: gguf_put_tensor(w, name128, BLOCK_F32, 1, one, floats); break;
    case 10: gguf_put_tensor(w, "t", BLOCK_F32, 0, one, floats); break;
    case 11: gguf_put_tensor(w, "t", BLOCK_F32, 5, one, floats); break;
    case 12: gguf_put_tensor(w, "t", BLOCK_F32, 1, one, NULL); break;
    case 13: gguf_put_tensor(w, "t", BLOCK_Q4_1, 1, one, floats); break;
    case 14: gguf_put_tensor(w, "t", BLOCK_F32, 2, wrap, floats); break;
    case 15: gguf_put_tensor(w, "t", BLOCK_F32, 1, zero, floats); break;
    case 16: gguf_put_tensor(w, "t", (enum block_type)17, 1, one, floats); break;
    default: gguf_put_tensor(w, "t", BLOCK_F32, 1, one, floats), gguf_put_tensor(w, "t", BLOCK_F32, 1, one, floats);
    }
}

static void bad_puts_surface_when_published(void **state) {
    (void)state;
    for (int which = 0; which < 18; which++) {
        struct gguf_writer *w;
        attune_error err = {0};
        assert_int_equal(gguf_writer_create(&w, NULL), ATTUNE_OK);
        bad_put(w, which);
        put_sample(w);
        int code = gguf_writer_publish(w, path, "test", 0, NULL, &err);
        assert_int_equal(code, which == 16 ? ATTUNE_ERROR_UNSUPPORTED : ATTUNE_ERROR_ARGUMENT);
        assert_int_equal(err.code, code);
        assert_true(err.message[0]);
        assert_int_equal(access(path, F_OK), -1);
        gguf_writer_destroy(w);
    }
}

static void an_existing_version_stays(void **state) {
    (void)state;
    struct gguf_writer *w;
    attune_error err = {0};
    assert_int_equal(gguf_writer_create(&w, NULL), ATTUNE_OK);
    put_sample(w);
    assert_int_equal(gguf_writer_publish(w, path, "test", 1, NULL, NULL), ATTUNE_OK);
    struct stat before, after;
    assert_int_equal(stat(path, &before), 0);
    assert_int_equal(gguf_writer_publish(w, path, "test", 1, NULL, &err), ATTUNE_ERROR_STATE);
    assert_int_equal(stat(path, &after), 0);
    assert_int_equal(before.st_ino, after.st_ino);
    gguf_writer_destroy(w);
}

/* Into a file that the caller has opened: it is the caller who puts it in place. */
static void written_but_not_published(void **state) {
    (void)state;
    struct gguf_writer *w;
    struct file_writer file = {0};
    char written[65], published[65];
    assert_int_equal(gguf_writer_create(&w, NULL), ATTUNE_OK);
    put_sample(w);
    assert_int_equal(file_writer_open(path, "test", &file, NULL), ATTUNE_OK);
    assert_int_equal(gguf_writer_write(w, &file, written, NULL), ATTUNE_OK);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(access(file.temporary, F_OK), 0);
    file_writer_abandon(&file); /* the folder is found empty in the end */
    assert_int_equal(file_writer_open(path, "test", &file, NULL), ATTUNE_OK);
    assert_int_equal(gguf_writer_write(w, &file, NULL, NULL), ATTUNE_OK);
    assert_int_equal(file_writer_publish(&file, NULL), ATTUNE_OK);
    assert_int_equal(gguf_writer_publish(w, path, "test", 0, published, NULL), ATTUNE_OK);
    assert_string_equal(written, published);
    gguf_writer_destroy(w);
}

static void a_lying_disk_is_found_out(void **state) {
    (void)state;
    struct gguf_writer *w;
    attune_error err = {0};
    assert_int_equal(gguf_writer_create(&w, NULL), ATTUNE_OK);
    put_sample(w);
    disk_lies = 1;
    int code = gguf_writer_publish(w, path, "test", 0, NULL, &err);
    disk_lies = 0;
    assert_int_equal(code, ATTUNE_ERROR_IO);
    assert_non_null(strstr(err.message, "read back differs"));
    assert_int_equal(access(path, F_OK), -1);
    /* without a hash too */
    struct file_writer file = {0};
    memset(&err, 0, sizeof err);
    assert_int_equal(file_writer_open(path, "test", &file, NULL), ATTUNE_OK);
    disk_lies = 1;
    code = gguf_writer_write(w, &file, NULL, &err);
    disk_lies = 0;
    assert_int_equal(code, ATTUNE_ERROR_IO);
    assert_non_null(strstr(err.message, "read back differs"));
    file_writer_abandon(&file);
    gguf_writer_destroy(w);
}

static void each_failing_write_leaves_nothing(void **state) {
    (void)state;
    static const char *const faults[] = {"test.write.before:fail", "test.write.after:fail", "test.fsync.before:fail",
                                         "test.fsync.after:fail", "test.rename.before:fail"};
    for (size_t i = 0; i < 5; i++) {
        struct gguf_writer *w;
        attune_error err = {0};
        assert_int_equal(gguf_writer_create(&w, NULL), ATTUNE_OK);
        put_sample(w);
        setenv("ATTUNE_FAULT", faults[i], 1);
        assert_int_equal(gguf_writer_publish(w, path, "test", 0, NULL, &err), ATTUNE_ERROR_IO);
        unsetenv("ATTUNE_FAULT");
        assert_int_equal(access(path, F_OK), -1);
        gguf_writer_destroy(w);
    }
}

static void each_failing_allocation_of_the_writer(void **state) {
    (void)state;
#ifdef SANITIZED
    skip();
#else
    long number = 0;
    for (int code = ATTUNE_ERROR_MEMORY; code != ATTUNE_OK;) {
        struct gguf_writer *w = NULL;
        attune_error err = {0};
        assert_true(++number < 100);
        arm(number);
        code = gguf_writer_create(&w, &err);
        if (code == ATTUNE_OK) {
            put_sample(w);
            code = gguf_writer_publish(w, path, "test", 0, NULL, &err);
        }
        gguf_writer_destroy(w);
        assert_int_equal(disarm(), 0);
        assert_true(code == ATTUNE_OK || (code == ATTUNE_ERROR_MEMORY && err.code == code));
        assert_int_equal(access(path, F_OK), code == ATTUNE_OK ? 0 : -1);
    }
    assert_true(number > 5);
#endif
}

/* ---- the real base model ---- */

static void the_real_model_opens(void **state) {
    (void)state;
    const char *model = getenv("ATTUNE_TEST_MODEL");
    if (!model) skip();
    for (int load = FILE_MAP; load <= FILE_READ; load++) {
        struct gguf *g = NULL;
        attune_error err = {0};
        char text[32];
        if (gguf_open(model, (enum file_load)load, &g, &err) != ATTUNE_OK) fail_msg("%s", err.message);
        assert_int_equal(g->n_tensors, 272);
        assert_int_equal(g->n_pairs, 33);
        assert_string_equal(g->tensors[0].name, "token_embd.weight");
        assert_int_equal(g->tensors[0].type, BLOCK_Q8_0);
        assert_int_equal(g->tensors[0].n_dims, 2);
        assert_int_equal(g->tensors[0].dims[0], 576);
        assert_int_equal(g->tensors[0].dims[1], 49152);
        assert_int_equal(g->tensors[0].bytes, 576 / 32 * 34 * 49152);
        assert_int_equal(gguf_get_text(g, "general.architecture", text, sizeof text, NULL), ATTUNE_OK);
        assert_string_equal(text, "llama");
        assert_int_equal(gguf_find(g, "tokenizer.ggml.tokens")->count, 49152);
        gguf_close(g);
    }
}

int main(void) {
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kind_of_value_is_read),
        cmocka_unit_test(text_and_arrays_are_read),
        cmocka_unit_test(tensors_are_found_by_name),
        cmocka_unit_test(holes_and_a_missing_last_padding_are_fine),
        cmocka_unit_test(hostile_1_truncation_at_every_byte),
        cmocka_unit_test(hostile_2_counts_of_keys_and_tensors),
        cmocka_unit_test(hostile_3_lengths_of_strings_and_arrays),
        cmocka_unit_test(hostile_3_nested_arrays),
        cmocka_unit_test(hostile_3_values_of_unknown_kind),
        cmocka_unit_test(hostile_3_bools_are_0_or_1),
        cmocka_unit_test(hostile_4_dimensions),
        cmocka_unit_test(hostile_5_sizes_that_overflow),
        cmocka_unit_test(hostile_6_offsets),
        cmocka_unit_test(hostile_7_alignment),
        cmocka_unit_test(hostile_8_tensor_types_and_rows),
        cmocka_unit_test(hostile_9_names_of_tensors),
        cmocka_unit_test(hostile_9_keys),
        cmocka_unit_test(names_in_messages_are_harmless),
        cmocka_unit_test(magic_and_version_are_checked),
        cmocka_unit_test(flipped_bytes_are_survived),
        cmocka_unit_test(refusing_takes_little_memory),
        cmocka_unit_test(counts_beyond_the_limits_are_refused),
        cmocka_unit_test(each_failing_allocation_of_the_reader),
        IN_FOLDER(what_is_written_is_read),
        IN_FOLDER(the_same_puts_give_the_same_bytes),
        IN_FOLDER(an_empty_file_round_trips),
        IN_FOLDER(bad_puts_surface_when_published),
        IN_FOLDER(an_existing_version_stays),
        IN_FOLDER(written_but_not_published),
        IN_FOLDER(a_lying_disk_is_found_out),
        IN_FOLDER(each_failing_write_leaves_nothing),
        IN_FOLDER(each_failing_allocation_of_the_writer),
        cmocka_unit_test(the_real_model_opens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
