/* safetensors, little-endian:
 *
 *   byte 0..7    N, unsigned: length of the header
 *   8..8+N-1     JSON object: {"<name>": {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}, ...},
 *                and optionally "__metadata__": {"<key>": "<text>", ...}; spaces may follow
 *   8+N..        data; offsets count from here, tensors cover it without holes or overlap
 *
 * The header is limited to 4 MiB and 131072 values (more than 10000 tensors): the reference's 100 MB
 * of JSON would take gigabytes to parse. */
#include "adapters/safetensors.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { LENGTH_BYTES = 8, HEADER_MAX = 4 << 20, VALUES_MAX = 131072, DEPTH_MAX = 3 };

static const struct {
    const char *name;
    size_t bytes;
} dtypes[] = {{"F32", 4}, {"F16", 2}, {"BF16", 2},    {"F64", 8},    {"I64", 8}, {"I32", 4}, {"I16", 2}, {"I8", 1},
              {"U64", 8}, {"U32", 4}, {"U16", 2},     {"U8", 1},     {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1}};

int json_text_check(const char *text, size_t size, size_t values_max, size_t depth_max, const char *where,
                    attune_error *err) {
    size_t values = 0, depth = 0;
    int in_string = 0;
    for (size_t i = 0; i < size; i++) {
        char c = text[i];
        if (in_string) {
            if (c == '\\') i++;
            else if (c == '"') in_string = 0;
            continue;
        }
        if (c == '"') in_string = 1;
        if (c == '{' || c == '[') depth++;
        if ((c == '}' || c == ']') && depth > 0) depth--;
        values += c == '{' || c == '[' || c == ',' || c == ':';
        if (depth > depth_max)
            return error_set(err, ATTUNE_ERROR_FORMAT, where, "JSON nested more than %zu deep at its byte %zu",
                             depth_max, i);
        if (values > values_max)
            return error_set(err, ATTUNE_ERROR_FORMAT, where, "JSON of more than %zu values", values_max);
    }
    return ATTUNE_OK;
}

/* ---- reading ---- */

struct reader {
    const char *path;
    const unsigned char *data; /* behind the header */
    size_t size;
    attune_error *err;
};

static int tensor_fail(const struct reader *reader, int code, const char *name, const char *what) {
    return error_set(reader->err, code, reader->path, "tensor \"%.120s\": %s", name, what);
}

/* A JSON integer of 0 or more. */
static int get_size(const json_t *value, size_t *out) {
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        (unsigned long long)json_integer_value(value) > SIZE_MAX)
        return 0;
    *out = (size_t)json_integer_value(value);
    return 1;
}

static int read_dtype(const struct reader *reader, const char *name, const json_t *value, const char **dtype,
                      size_t *bytes) {
    if (!json_is_string(value)) return tensor_fail(reader, ATTUNE_ERROR_FORMAT, name, "has no dtype that is a string");
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        if (strcmp(json_string_value(value), dtypes[i].name) != 0) continue;
        *dtype = dtypes[i].name;
        *bytes = dtypes[i].bytes;
        return ATTUNE_OK;
    }
    return error_set(reader->err, ATTUNE_ERROR_UNSUPPORTED, reader->path,
                     "tensor \"%.120s\" has the unknown dtype \"%.32s\"", name, json_string_value(value));
}

static int read_shape(const struct reader *reader, const char *name, const json_t *value,
                      struct safetensors_tensor *tensor, size_t *elements) {
    if (!json_is_array(value)) return tensor_fail(reader, ATTUNE_ERROR_FORMAT, name, "has no shape that is a list");
    tensor->n_dims = json_array_size(value);
    if (tensor->n_dims > SAFETENSORS_DIMS_MAX)
        return tensor_fail(reader, ATTUNE_ERROR_UNSUPPORTED, name, "has more than 8 dimensions");
    *elements = 1;
    for (size_t i = 0; i < SAFETENSORS_DIMS_MAX; i++) {
        size_t dim = 1;
        if (i < tensor->n_dims && !get_size(json_array_get(value, i), &dim))
            return tensor_fail(reader, ATTUNE_ERROR_FORMAT, name, "has a dimension that is not a number of 0 or more");
        if (!checked_mul(*elements, dim, elements))
            return tensor_fail(reader, ATTUNE_ERROR_FORMAT, name, "has a shape whose product is too large");
        tensor->shape[i] = dim;
    }
    return ATTUNE_OK;
}

static int read_tensor(const struct reader *reader, const char *name, const json_t *entry,
                       struct safetensors_tensor *tensor) {
    size_t each = 0, elements = 0, bytes, begin, end;
    if (!json_is_object(entry)) return tensor_fail(reader, ATTUNE_ERROR_FORMAT, name, "is not described by an object");
    if (strlen(name) > 255) return tensor_fail(reader, ATTUNE_ERROR_FORMAT, name, "has a name of more than 255 bytes");
    tensor->name = name;
    int code = read_dtype(reader, name, json_object_get(entry, "dtype"), &tensor->dtype, &each);
    if (code == ATTUNE_OK) code = read_shape(reader, name, json_object_get(entry, "shape"), tensor, &elements);
    if (code != ATTUNE_OK) return code;
    const json_t *offsets = json_object_get(entry, "data_offsets");
    if (json_array_size(offsets) != 2 || !get_size(json_array_get(offsets, 0), &begin) ||
        !get_size(json_array_get(offsets, 1), &end))
        return tensor_fail(reader, ATTUNE_ERROR_FORMAT, name, "has no data_offsets of two numbers");
    if (json_object_size(entry) != 3)
        return tensor_fail(reader, ATTUNE_ERROR_FORMAT, name, "has entries other than dtype, shape and data_offsets");
    if (begin > end) return tensor_fail(reader, ATTUNE_ERROR_FORMAT, name, "ends before it begins");
    if (end > reader->size) return tensor_fail(reader, ATTUNE_ERROR_FORMAT, name, "reaches past the end of the file");
    if (!checked_mul(elements, each, &bytes) || bytes != end - begin)
        return tensor_fail(reader, ATTUNE_ERROR_FORMAT, name, "has data_offsets that do not fit its shape and dtype");
    tensor->data = reader->data + begin;
    tensor->bytes = bytes;
    return ATTUNE_OK;
}

static int read_metadata(const struct reader *reader, json_t *metadata) {
    const char *key;
    json_t *value;
    if (!json_is_object(metadata))
        return error_set(reader->err, ATTUNE_ERROR_FORMAT, reader->path, "__metadata__ is not an object");
    json_object_foreach(metadata, key, value) {
        if (!json_is_string(value))
            return error_set(reader->err, ATTUNE_ERROR_FORMAT, reader->path, "__metadata__ \"%.64s\" is not a string",
                             key);
    }
    return ATTUNE_OK;
}

static int by_data(const void *a, const void *b) {
    const struct safetensors_tensor *x = a, *y = b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int check_cover(const struct reader *reader, struct safetensors *file) {
    qsort(file->tensors, file->n, sizeof *file->tensors, by_data);
    const unsigned char *at = reader->data;
    for (size_t i = 0; i < file->n; i++) {
        const struct safetensors_tensor *tensor = &file->tensors[i];
        if (tensor->data < at) return tensor_fail(reader, ATTUNE_ERROR_FORMAT, tensor->name, "overlaps another tensor");
        if (tensor->data > at) return tensor_fail(reader, ATTUNE_ERROR_FORMAT, tensor->name, "has a hole before it");
        at += tensor->bytes;
    }
    size_t left = reader->size - (size_t)(at - reader->data);
    if (left == 0) return ATTUNE_OK;
    return error_set(reader->err, ATTUNE_ERROR_FORMAT, reader->path,
                     "%zu bytes at the end of the file belong to no tensor", left);
}

static int read_tensors(const struct reader *reader, struct safetensors *file) {
    json_t *header = file->header, *entry;
    size_t count = json_object_size(header);
    file->tensors = calloc(count ? count : 1, sizeof *file->tensors);
    if (!file->tensors) return error_set_memory(reader->err, "a list of tensors", count * sizeof *file->tensors);
    const char *name;
    json_object_foreach(header, name, entry) {
        int code = strcmp(name, "__metadata__") == 0 ? read_metadata(reader, entry)
                                                     : read_tensor(reader, name, entry, &file->tensors[file->n++]);
        if (code != ATTUNE_OK) return code;
    }
    return check_cover(reader, file);
}

/* The header's text, checked for size and depth. */
static int find_header(struct cursor *cursor, const char **text, size_t *size) {
    uint64_t length = cursor_u64(cursor, "the header's length");
    if (cursor->code == ATTUNE_OK && length > HEADER_MAX)
        return cursor_fail(cursor, ATTUNE_ERROR_FORMAT, "a header of %llu bytes; at most %d are accepted",
                           (unsigned long long)length, HEADER_MAX);
    *text = (const char *)cursor_bytes(cursor, length, "the header");
    *size = (size_t)length;
    if (cursor->code != ATTUNE_OK) return cursor->code;
    if (length == 0 || (*text)[0] != '{')
        return cursor_fail(cursor, ATTUNE_ERROR_FORMAT,
                           "this is not a safetensors file: its header does not begin with {");
    return json_text_check(*text, *size, VALUES_MAX, DEPTH_MAX, cursor->name, cursor->err);
}

int safetensors_parse(const void *bytes, size_t size, const char *name, struct safetensors **out, attune_error *err) {
    struct cursor cursor = {.data = bytes, .size = size, .name = name, .err = err};
    const char *text = NULL;
    size_t length = 0;
    int code = find_header(&cursor, &text, &length);
    if (code != ATTUNE_OK) return code;
    struct safetensors *file = calloc(1, sizeof *file);
    if (!file) return error_set_memory(err, "a safetensors file", sizeof *file);
    json_error_t json_error;
    file->header = json_loadb(text, length, JSON_REJECT_DUPLICATES, &json_error);
    if (!file->header) {
        if (json_error_code(&json_error) == json_error_out_of_memory || !json_error.text[0])
            code = error_set_memory(err, "a safetensors header", length);
        else
            code = error_set(err, ATTUNE_ERROR_FORMAT, name, "the header is not valid JSON: byte %d of it, %s",
                             json_error.position, json_error.text);
        goto out;
    }
    struct reader reader = {name, cursor.data + cursor.at, cursor.size - cursor.at, err};
    code = read_tensors(&reader, file); /* an object: the text begins with { */
out:
    if (code != ATTUNE_OK) safetensors_close(file);
    else *out = file;
    return code;
}

int safetensors_open(const char *path, size_t max_bytes, struct safetensors **out, attune_error *err) {
    struct file_bytes bytes = {0};
    int code = file_bytes_open(path, FILE_READ, max_bytes, &bytes, err);
    if (code != ATTUNE_OK) return code;
    code = safetensors_parse(bytes.data, bytes.size, path, out, err);
    if (code == ATTUNE_OK) (*out)->file = bytes;
    else file_bytes_close(&bytes);
    return code;
}

void safetensors_close(struct safetensors *file) {
    if (!file) return;
    json_decref(file->header);
    free(file->tensors);
    if (file->file.data) file_bytes_close(&file->file);
    free(file);
}

/* ---- writing ---- */

static size_t tensor_bytes(const struct safetensors_tensor *tensor) {
    size_t bytes = 4;
    for (size_t i = 0; i < tensor->n_dims; i++) bytes *= tensor->shape[i];
    return bytes;
}

/* The header's JSON; NULL: no memory. */
static char *make_header(const struct safetensors_tensor *tensors, size_t n) {
    json_t *header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    size_t begin = 0;
    int failed = !header;
    for (size_t i = 0; i < n && !failed; i++) {
        size_t end = begin + tensor_bytes(&tensors[i]);
        json_t *shape = json_array();
        for (size_t d = 0; d < tensors[i].n_dims; d++)
            failed |= json_array_append_new(shape, json_integer((json_int_t)tensors[i].shape[d])) != 0;
        /* steals shape, whether it succeeds or not; a NULL in its place fails */
        json_t *entry = json_pack("{s:s, s:o, s:[I,I]}", "dtype", "F32", "shape", shape, "data_offsets",
                                  (json_int_t)begin, (json_int_t)end);
        failed |= json_object_set_new(header, tensors[i].name, entry) != 0;
        begin = end;
    }
    char *text = failed ? NULL : json_dumps(header, JSON_COMPACT);
    json_decref(header);
    return text;
}

/* Length, text, and spaces up to a multiple of 8, so that data is aligned. */
static int add_header(struct file_writer *writer, const char *text, attune_error *err) {
    size_t length = strlen(text), padded = (length + 7) & ~(size_t)7;
    unsigned char size[LENGTH_BYTES];
    for (int i = 0; i < LENGTH_BYTES; i++) size[i] = (unsigned char)((uint64_t)padded >> (8 * i));
    int code = file_writer_add(writer, size, sizeof size, err);
    if (code == ATTUNE_OK) code = file_writer_add(writer, text, length, err);
    if (code == ATTUNE_OK) code = file_writer_add(writer, "       ", padded - length, err);
    return code;
}

int safetensors_write_f32(const struct safetensors_tensor *tensors, size_t n, const char *path, const char *point,
                          attune_error *err) {
    struct file_writer writer = {0};
    int code;
    char *text = make_header(tensors, n);
    if (!text) return error_set_memory(err, "a safetensors header", 160 * n);
    if ((code = file_writer_open(path, point, &writer, err)) != ATTUNE_OK) goto out;
    if ((code = add_header(&writer, text, err)) != ATTUNE_OK) goto out;
    for (size_t i = 0; i < n && code == ATTUNE_OK; i++)
        code = file_writer_add(&writer, tensors[i].data, tensor_bytes(&tensors[i]), err);
    if (code == ATTUNE_OK) code = file_writer_publish_new(&writer, err);
out:
    file_writer_abandon(&writer);
    free(text);
    return code;
}
