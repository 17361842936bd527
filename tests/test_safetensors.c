#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "adapters/safetensors.h"
#include "tests/tiny_base.h"

#include <jansson.h>

/* Length, header and n bytes 0, 1, 2, ... of data; malloc'ed, exactly as long as it says. */
static unsigned char *build(uint64_t length, const char *header, size_t n, size_t *size) {
    size_t text = strlen(header);
    unsigned char *bytes = malloc(8 + text + n);
    for (int i = 0; i < 8; i++) bytes[i] = (unsigned char)(length >> (8 * i));
    memcpy(bytes + 8, header, text);
    for (size_t i = 0; i < n; i++) bytes[8 + text + i] = (unsigned char)i;
    *size = 8 + text + n;
    return bytes;
}

static void expect_length(uint64_t length, const char *header, size_t n, int code, const char *named) {
    size_t size;
    unsigned char *bytes = build(length, header, n, &size);
    struct safetensors *file = NULL;
    attune_error err = {0};
    int got = safetensors_parse(bytes, size, "a.safetensors", &file, &err);
    if (got != code || err.code != code || (named && !strstr(err.message, named)))
        fail_msg("%.100s: expected %d with \"%s\", got %d: %s", header, code, named ? named : "", got, err.message);
    if (code != ATTUNE_OK) assert_memory_equal(err.where, "a.safetensors", 13);
    assert_true((code == ATTUNE_OK) == (file != NULL));
    safetensors_close(file);
    free(bytes);
}

static void expect(const char *header, size_t n, int code, const char *named) {
    expect_length(strlen(header), header, n, code, named);
}

static void test_reads(void **state) {
    (void)state;
    const char *header = "{\"b\":{\"dtype\":\"F32\",\"shape\":[2,1],\"data_offsets\":[4,12]},"
                         "\"__metadata__\":{\"format\":\"pt\"},"
                         "\"a\":{\"data_offsets\":[0,4],\"shape\":[2],\"dtype\":\"BF16\"},"
                         "\"none\":{\"dtype\":\"I64\",\"shape\":[3,0],\"data_offsets\":[12,12]},"
                         "\"one\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[12,13]}}   ";
    size_t size;
    unsigned char *bytes = build(strlen(header), header, 13, &size);
    struct safetensors *file = NULL;
    assert_int_equal(safetensors_parse(bytes, size, "x", &file, NULL), ATTUNE_OK);
    assert_int_equal(file->n, 4);
    static const char *const names[] = {"a", "b", "none", "one"}, *const dtypes[] = {"BF16", "F32", "I64", "U8"};
    static const size_t begins[] = {0, 4, 12, 12}, sizes[] = {4, 8, 0, 1}, dims[] = {1, 2, 2, 0};
    for (size_t i = 0; i < 4; i++) {
        assert_string_equal(file->tensors[i].name, names[i]);
        assert_string_equal(file->tensors[i].dtype, dtypes[i]);
        assert_int_equal(file->tensors[i].bytes, sizes[i]);
        assert_int_equal(file->tensors[i].n_dims, dims[i]);
        assert_ptr_equal(file->tensors[i].data, bytes + 8 + strlen(header) + begins[i]);
    }
    assert_int_equal(file->tensors[1].shape[0], 2);
    assert_int_equal(file->tensors[1].shape[1], 1);
    assert_int_equal(file->tensors[1].shape[2], 1);
    assert_int_equal(file->tensors[2].shape[1], 0);
    safetensors_close(file);
    free(bytes);
    expect("{}", 0, ATTUNE_OK, NULL);
    safetensors_close(NULL);
}

#define TENSOR(dtype, shape, begin, end) \
    "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" begin "," end "]}"
#define ONE(dtype, shape, begin, end) "{\"t\":" TENSOR(dtype, shape, begin, end) "}"
#define TWO(begin_0, end_0, begin_1, end_1) \
    "{\"t\":" TENSOR("U8", "[4]", begin_0, end_0) ",\"u\":" TENSOR("U8", "[4]", begin_1, end_1) "}"

static void test_header_length(void **state) {
    (void)state;
    expect_length(3, "{}", 0, ATTUNE_ERROR_FORMAT, "ends inside the header");
    expect_length(0, "{}", 0, ATTUNE_ERROR_FORMAT, "not a safetensors file");
    expect_length(1, "{}", 0, ATTUNE_ERROR_FORMAT, "JSON");
    expect_length(UINT64_MAX, "{}", 0, ATTUNE_ERROR_FORMAT, "header of 18446744073709551615 bytes");
    expect_length(INT64_MAX, "{}", 0, ATTUNE_ERROR_FORMAT, "header of");
    expect_length(UINT64_MAX - 7, "{}", 0, ATTUNE_ERROR_FORMAT, "header of");
    expect_length(100 * 1000 * 1000 + 1, "{}", 0, ATTUNE_ERROR_FORMAT, "header of 100000001 bytes");
}

static void test_offsets(void **state) {
    (void)state;
    expect(ONE("U8", "[4]", "0", "4"), 4, ATTUNE_OK, NULL);
    expect(ONE("U8", "[4]", "0", "4"), 5, ATTUNE_ERROR_FORMAT, "1 bytes at the end");
    expect(ONE("U8", "[4]", "0", "4"), 3, ATTUNE_ERROR_FORMAT, "\"t\": reaches past the end");
    expect(ONE("U8", "[4]", "1", "5"), 5, ATTUNE_ERROR_FORMAT, "\"t\": has a hole before it");
    expect(ONE("U8", "[4]", "4", "0"), 4, ATTUNE_ERROR_FORMAT, "\"t\": ends before it begins");
    expect(ONE("U8", "[4]", "-4", "0"), 4, ATTUNE_ERROR_FORMAT, "data_offsets of two numbers");
    expect(ONE("U8", "[4]", "0", "4.0"), 4, ATTUNE_ERROR_FORMAT, "data_offsets of two numbers");
    expect(ONE("U8", "[4]", "0", "\"4\""), 4, ATTUNE_ERROR_FORMAT, "data_offsets of two numbers");
    expect(ONE("U8", "[4]", "0", "4,4"), 4, ATTUNE_ERROR_FORMAT, "data_offsets of two numbers");
    expect(ONE("U8", "[4]", "0", "9223372036854775807"), 4, ATTUNE_ERROR_FORMAT, "reaches past the end");
    expect(ONE("U8", "[4]", "0", "9223372036854775808"), 4, ATTUNE_ERROR_FORMAT, "JSON");
    expect(TWO("0", "4", "4", "8"), 8, ATTUNE_OK, NULL);
    expect(TWO("4", "8", "0", "4"), 8, ATTUNE_OK, NULL);
    expect(TWO("0", "4", "0", "4"), 4, ATTUNE_ERROR_FORMAT, "\"u\": overlaps");
    expect(TWO("0", "4", "3", "7"), 7, ATTUNE_ERROR_FORMAT, "\"u\": overlaps");
    expect(TWO("0", "4", "5", "9"), 9, ATTUNE_ERROR_FORMAT, "\"u\": has a hole");
    expect(ONE("U8", "[0]", "2", "2"), 2, ATTUNE_ERROR_FORMAT, "hole");
}

static void test_shapes(void **state) {
    (void)state;
    expect(ONE("F32", "[4]", "0", "4"), 4, ATTUNE_ERROR_FORMAT, "do not fit its shape and dtype");
    expect(ONE("F16", "[4]", "0", "4"), 4, ATTUNE_ERROR_FORMAT, "do not fit its shape and dtype");
    expect(ONE("U8", "[2,3]", "0", "4"), 4, ATTUNE_ERROR_FORMAT, "do not fit its shape and dtype");
    expect(ONE("U8", "[4,-1]", "0", "4"), 4, ATTUNE_ERROR_FORMAT, "not a number of 0 or more");
    expect(ONE("U8", "[4.0]", "0", "4"), 4, ATTUNE_ERROR_FORMAT, "not a number of 0 or more");
    expect(ONE("U8", "[null]", "0", "4"), 4, ATTUNE_ERROR_FORMAT, "not a number of 0 or more");
    expect(ONE("U8", "4", "0", "4"), 4, ATTUNE_ERROR_FORMAT, "no shape");
    expect(ONE("U8", "[4294967296,4294967296,1]", "0", "4"), 4, ATTUNE_ERROR_FORMAT, "product is too large");
    expect(ONE("F64", "[4611686018427387904]", "0", "4"), 4, ATTUNE_ERROR_FORMAT, "do not fit");
    expect(ONE("F64", "[2305843009213693952]", "0", "0"), 0, ATTUNE_ERROR_FORMAT, "do not fit"); /* 8 * 2^61 wraps */
    expect(ONE("U8", "[1,1,1,1,1,1,1,1,4]", "0", "4"), 4, ATTUNE_ERROR_UNSUPPORTED, "more than 8 dimensions");
    expect(ONE("F4", "[4]", "0", "4"), 4, ATTUNE_ERROR_UNSUPPORTED, "dtype \"F4\"");
    expect(ONE("f32", "[1]", "0", "4"), 4, ATTUNE_ERROR_UNSUPPORTED, "dtype \"f32\"");
}

static void test_json(void **state) {
    (void)state;
    expect(" {}", 0, ATTUNE_ERROR_FORMAT, "does not begin with {");
    expect("[]", 0, ATTUNE_ERROR_FORMAT, "does not begin with {");
    expect("{} x", 0, ATTUNE_ERROR_FORMAT, "not valid JSON");
    expect("{\"t\":", 0, ATTUNE_ERROR_FORMAT, "not valid JSON");
    expect("{\"t\":\"\xff\"}", 0, ATTUNE_ERROR_FORMAT, "not valid JSON");
    expect("{\"t\\u0000\":3}", 0, ATTUNE_ERROR_FORMAT, "not valid JSON");
    expect("{\"t\":3}", 0, ATTUNE_ERROR_FORMAT, "\"t\": is not described by an object");
    expect("{\"t\":{}}", 0, ATTUNE_ERROR_FORMAT, "no dtype");
    expect("{\"t\":{\"dtype\":3,\"shape\":[],\"data_offsets\":[0,0]}}", 0, ATTUNE_ERROR_FORMAT, "no dtype");
    expect("{\"t\":{\"dtype\":\"U8\",\"shape\":[0]}}", 0, ATTUNE_ERROR_FORMAT, "no data_offsets");
    expect("{\"t\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0],\"x\":1}}", 0, ATTUNE_ERROR_FORMAT,
           "entries other than");
    expect("{\"__metadata__\":3}", 0, ATTUNE_ERROR_FORMAT, "__metadata__");
    expect("{\"__metadata__\":{\"a\":{}}}", 0, ATTUNE_ERROR_FORMAT, "\"a\" is not a string");
}

static void test_duplicate_keys(void **state) {
    (void)state;
    expect("{\"t\":" TENSOR("U8", "[4]", "0", "4") ",\"t\":" TENSOR("U8", "[4]", "4", "8") "}", 8, ATTUNE_ERROR_FORMAT,
           "duplicate");
    expect("{\"t\":{\"dtype\":\"U8\",\"shape\":[4],\"shape\":[8],\"data_offsets\":[0,8]}}", 8, ATTUNE_ERROR_FORMAT,
           "duplicate");
}

static void test_long_name(void **state) {
    (void)state;
    char header[512] = "{\"", tail[] = "\":" TENSOR("U8", "[0]", "0", "0") "}";
    memset(header + 2, 'n', 255);
    strcpy(header + 257, tail);
    expect(header, 0, ATTUNE_OK, NULL);
    memset(header + 2, 'n', 256);
    strcpy(header + 258, tail);
    expect(header, 0, ATTUNE_ERROR_FORMAT, "more than 255 bytes");
}

static void test_deep_and_wide(void **state) {
    (void)state;
    size_t n = 1 << 20;
    char *header = malloc(n + 16);
    memset(header, '[', n);
    memcpy(header, "{\"t\":", 5);
    header[n] = '\0';
    expect(header, 0, ATTUNE_ERROR_FORMAT, "nested more than 3 deep");
    expect("{\"t\":{\"dtype\":\"U8\",\"shape\":[[0]],\"data_offsets\":[0,0]}}", 0, ATTUNE_ERROR_FORMAT, "nested");
    /* brackets inside strings are text */
    expect("{\"[[[[{\\\"{{{\":" TENSOR("U8", "[0]", "0", "0") "}", 0, ATTUNE_OK, NULL);
    for (size_t i = 5; i < n; i += 3) memcpy(header + i, "[],", 3);
    header[n] = '\0';
    expect(header, 0, ATTUNE_ERROR_FORMAT, "more than 131072 values");
    free(header);
    header = malloc((5 << 20) + 1);
    memset(header, ' ', 5 << 20);
    header[0] = '{', header[1] = '}', header[5 << 20] = '\0';
    expect(header, 0, ATTUNE_ERROR_FORMAT, "header of 5242880 bytes");
    free(header);
}

static void test_truncation(void **state) {
    (void)state;
    size_t size;
    const char *header = TWO("0", "4", "4", "8");
    unsigned char *bytes = build(strlen(header), header, 8, &size);
    for (size_t n = 0; n < size; n++) {
        unsigned char *part = malloc(n ? n : 1);
        memcpy(part, bytes, n);
        struct safetensors *file = NULL;
        assert_int_equal(safetensors_parse(part, n, "x", &file, NULL), ATTUNE_ERROR_FORMAT);
        assert_null(file);
        free(part);
    }
    free(bytes);
}

static void test_writes(void **state) {
    (void)state;
    char folder[256], path[300];
    tiny_folder(folder);
    snprintf(path, sizeof path, "%s/w.safetensors", folder);
    float a[6] = {1, 2, 3, 4, 5, 6}, b[2] = {7, 8};
    struct safetensors_tensor tensors[] = {
        {.name = "a", .n_dims = 2, .shape = {2, 3}, .data = (unsigned char *)a},
        {.name = "b\"q", .n_dims = 1, .shape = {2}, .data = (unsigned char *)b},
    };
    struct safetensors *file = NULL;
    attune_error err = {0};
    assert_int_equal(safetensors_write_f32(tensors, 2, path, "test", NULL), ATTUNE_OK);
    assert_int_equal(safetensors_open(path, 1 << 20, &file, NULL), ATTUNE_OK);
    assert_int_equal(file->n, 2);
    assert_string_equal(file->tensors[1].name, "b\"q");
    assert_int_equal(file->tensors[0].shape[1], 3);
    assert_memory_equal(file->tensors[0].data, a, sizeof a);
    assert_memory_equal(file->tensors[1].data, b, sizeof b);
    assert_int_equal((size_t)(file->tensors[0].data - file->file.data) % 8, 0);
    safetensors_close(file);
    file = NULL;
    assert_true(safetensors_write_f32(tensors, 1, path, "test", &err) < 0); /* exists */
    assert_true(safetensors_open(path, 16, &file, &err) < 0);               /* larger than allowed */
    assert_null(file);
    unlink(path);
    assert_int_equal(safetensors_open(path, 1 << 20, &file, &err), ATTUNE_ERROR_IO);
    assert_int_equal(rmdir(folder), 0);
}

/* ---- every allocation of the JSON library fails once ---- */

static size_t allocations, failing; /* failing: the number of the one that fails */
static void *failing_malloc(size_t n) { return ++allocations == failing ? NULL : malloc(n); }

static void test_memory(void **state) {
    (void)state;
    char folder[256], path[300];
    tiny_folder(folder);
    snprintf(path, sizeof path, "%s/w.safetensors", folder);
    float a[6] = {0};
    struct safetensors_tensor tensor = {.name = "a", .n_dims = 2, .shape = {2, 3}, .data = (unsigned char *)a};
    json_set_alloc_funcs(failing_malloc, free);
    size_t refused = 0;
    for (failing = 1; failing < 1000; failing++) {
        allocations = 0;
        attune_error err = {0};
        int code = safetensors_write_f32(&tensor, 1, path, "test", &err);
        if (code == ATTUNE_OK) break;
        assert_int_equal(code, ATTUNE_ERROR_MEMORY);
        assert_int_equal(access(path, F_OK), -1);
        refused++;
    }
    assert_in_range(refused, 10, 900);
    refused = 0;
    for (failing = 1; failing < 1000; failing++) {
        allocations = 0;
        attune_error err = {0};
        struct safetensors *file = NULL;
        int code = safetensors_open(path, 1 << 20, &file, &err);
        safetensors_close(file);
        if (code == ATTUNE_OK) break;
        assert_true(code == ATTUNE_ERROR_MEMORY || code == ATTUNE_ERROR_FORMAT);
        assert_null(file);
        refused++;
    }
    assert_in_range(refused, 10, 900);
    json_set_alloc_funcs(malloc, free);
    unlink(path);
    assert_int_equal(rmdir(folder), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads),          cmocka_unit_test(test_header_length), cmocka_unit_test(test_offsets),
        cmocka_unit_test(test_shapes),         cmocka_unit_test(test_json),          cmocka_unit_test(test_long_name),
        cmocka_unit_test(test_duplicate_keys), cmocka_unit_test(test_deep_and_wide), cmocka_unit_test(test_truncation),
        cmocka_unit_test(test_writes),         cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
