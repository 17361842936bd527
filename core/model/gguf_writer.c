/* Writes GGUF version 3, alignment 32; the format is specified in gguf.c. Each tensor's data is padded,
 * the last one too, as llama.cpp expects. */
#include "core/model/gguf.h"

#include "core/base/hash.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ALIGNMENT = 32, KEY_MAX = 65535, VERSION = 3, DIMS_MAX = 4 };

struct buffer {
    unsigned char *data;
    size_t size, capacity;
};

struct entry {
    char name[sizeof(((struct gguf_tensor *)0)->name)];
    uint32_t n_dims, type;
    uint64_t dims[DIMS_MAX], offset;
    const void *data;
    size_t bytes;
};

struct gguf_writer {
    int code; /* ATTUNE_OK until the first fault of a put */
    attune_error error;
    struct buffer pairs, keys; /* encoded; the keys, each with its NUL */
    uint64_t n_pairs;
    struct entry *entries;
    size_t n_entries, capacity;
    uint64_t data_size; /* padded */
};

int gguf_writer_create(struct gguf_writer **out, attune_error *err) {
    struct gguf_writer *writer = calloc(1, sizeof *writer);
    if (!writer) return error_set_memory(err, "writing a GGUF file", sizeof *writer);
    *out = writer;
    return ATTUNE_OK;
}

void gguf_writer_destroy(struct gguf_writer *writer) {
    if (!writer) return;
    free(writer->pairs.data);
    free(writer->keys.data);
    free(writer->entries);
    free(writer);
}

/* ---- puts ---- */

/* The first fault is kept for gguf_writer_publish. */
#define FAIL(writer, ...) ((writer)->code = error_set(&(writer)->error, __VA_ARGS__))

/* Room for n bytes more; NULL (and a fault) where there is none. */
static unsigned char *grow(struct gguf_writer *writer, struct buffer *buffer, size_t n) {
    size_t needed;
    if (writer->code != ATTUNE_OK) return NULL;
    if (!checked_add(buffer->size, n, &needed)) needed = SIZE_MAX;
    if (needed > buffer->capacity) {
        size_t capacity = needed < SIZE_MAX / 2 ? needed + needed / 2 + 256 : needed;
        unsigned char *data = realloc(buffer->data, capacity);
        if (!data) {
            writer->code = error_set_memory(&writer->error, "keys of a GGUF file", capacity);
            return NULL;
        }
        buffer->data = data;
        buffer->capacity = capacity;
    }
    unsigned char *p = buffer->data + buffer->size;
    buffer->size = needed;
    return p;
}

static void put_bytes(struct gguf_writer *writer, struct buffer *buffer, const void *bytes, size_t n) {
    unsigned char *p = grow(writer, buffer, n);
    if (p && n) memcpy(p, bytes, n);
}

static void put_integer(struct gguf_writer *writer, struct buffer *buffer, uint64_t value, unsigned bytes) {
    unsigned char *p = grow(writer, buffer, bytes);
    for (unsigned i = 0; p && i < bytes; i++) p[i] = (unsigned char)(value >> (8 * i));
}

static void put_text(struct gguf_writer *writer, struct buffer *buffer, const char *text) {
    size_t n = strlen(text);
    put_integer(writer, buffer, n, 8);
    put_bytes(writer, buffer, text, n);
}

/* The start of a pair: key and kind. */
static void put_key(struct gguf_writer *writer, const char *key, enum gguf_kind kind) {
    if (writer->code != ATTUNE_OK) return;
    size_t n = strlen(key);
    if (n == 0 || n > KEY_MAX) {
        FAIL(writer, ATTUNE_ERROR_ARGUMENT, NULL, "a key to write has %zu bytes, not 1 to %d", n, KEY_MAX);
        return;
    }
    if (strcmp(key, "general.alignment") == 0) {
        FAIL(writer, ATTUNE_ERROR_ARGUMENT, key, "the alignment of written files is %d and is not stored", ALIGNMENT);
        return;
    }
    for (size_t at = 0; at < writer->keys.size; at += strlen((const char *)writer->keys.data + at) + 1) {
        if (strcmp((const char *)writer->keys.data + at, key) != 0) continue;
        FAIL(writer, ATTUNE_ERROR_ARGUMENT, key, "this key is written twice");
        return;
    }
    put_bytes(writer, &writer->keys, key, n + 1);
    put_text(writer, &writer->pairs, key);
    put_integer(writer, &writer->pairs, (uint64_t)kind, 4);
    writer->n_pairs++;
}

static void put_number(struct gguf_writer *writer, const char *key, enum gguf_kind kind, uint64_t bits,
                       unsigned bytes) {
    put_key(writer, key, kind);
    put_integer(writer, &writer->pairs, bits, bytes);
}

void gguf_put_u32(struct gguf_writer *writer, const char *key, uint32_t value) {
    put_number(writer, key, GGUF_U32, value, 4);
}
void gguf_put_u64(struct gguf_writer *writer, const char *key, uint64_t value) {
    put_number(writer, key, GGUF_U64, value, 8);
}
void gguf_put_f32(struct gguf_writer *writer, const char *key, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    put_number(writer, key, GGUF_F32, bits, 4);
}
void gguf_put_f64(struct gguf_writer *writer, const char *key, double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    put_number(writer, key, GGUF_F64, bits, 8);
}
void gguf_put_bool(struct gguf_writer *writer, const char *key, int value) {
    put_number(writer, key, GGUF_BOOL, value != 0, 1);
}
void gguf_put_string(struct gguf_writer *writer, const char *key, const char *value) {
    put_key(writer, key, GGUF_STRING);
    put_text(writer, &writer->pairs, value);
}

static void put_array_head(struct gguf_writer *writer, const char *key, enum gguf_kind element, size_t count) {
    put_key(writer, key, GGUF_ARRAY);
    put_integer(writer, &writer->pairs, (uint64_t)element, 4);
    put_integer(writer, &writer->pairs, count, 8);
}

void gguf_put_array(struct gguf_writer *writer, const char *key, enum gguf_kind element, const void *values,
                    size_t count) {
    static const uint8_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    if (writer->code != ATTUNE_OK) return;
    size_t each = (size_t)element < sizeof sizes ? sizes[element] : 0, bytes;
    if (each == 0 || !checked_mul(count, each, &bytes)) {
        FAIL(writer, ATTUNE_ERROR_ARGUMENT, key, "%zu elements of type %d are no array of numbers", count,
             (int)element);
        return;
    }
    put_array_head(writer, key, element, count);
    for (size_t i = 0; element == GGUF_BOOL && i < count; i++) {
        if (((const unsigned char *)values)[i] <= 1) continue;
        FAIL(writer, ATTUNE_ERROR_ARGUMENT, key, "element %zu of a BOOL array is neither 0 nor 1", i);
        return;
    }
    /* blocks.c asserts that the host is little-endian, so numbers go out as they lie in memory */
    put_bytes(writer, &writer->pairs, values, bytes);
}

void gguf_put_strings(struct gguf_writer *writer, const char *key, const char *const *values, size_t count) {
    put_array_head(writer, key, GGUF_STRING, count);
    for (size_t i = 0; i < count && writer->code == ATTUNE_OK; i++) put_text(writer, &writer->pairs, values[i]);
}

/* Fills entry->bytes; a fault of the writer where the tensor could not be read back. */
static void check_entry(struct gguf_writer *writer, struct entry *entry) {
    const struct block_format *format = block_format_get(entry->type);
    if (!format) {
        FAIL(writer, ATTUNE_ERROR_UNSUPPORTED, entry->name, "attune does not write tensors of type %lu",
             (unsigned long)entry->type);
        return;
    }
    size_t bytes = block_row_bytes((enum block_type)entry->type, entry->dims[0]);
    int fits = bytes != 0;
    for (int i = 1; i < DIMS_MAX; i++) fits = fits && entry->dims[i] && checked_mul(bytes, entry->dims[i], &bytes);
    if (!fits || bytes > INT64_MAX - ALIGNMENT - writer->data_size) {
        FAIL(writer, ATTUNE_ERROR_ARGUMENT, entry->name,
             "the tensor has a dimension of 0, rows that are not whole %s blocks, or is too large", format->name);
        return;
    }
    entry->bytes = bytes;
}

static int grow_entries(struct gguf_writer *writer) {
    if (writer->n_entries < writer->capacity) return 1;
    size_t capacity = writer->capacity ? 2 * writer->capacity : 64;
    struct entry *entries = realloc(writer->entries, capacity * sizeof *entries);
    if (!entries) {
        writer->code = error_set_memory(&writer->error, "tensors of a GGUF file", capacity * sizeof *entries);
        return 0;
    }
    writer->entries = entries;
    writer->capacity = capacity;
    return 1;
}

void gguf_put_tensor(struct gguf_writer *writer, const char *name, enum block_type type, uint32_t n_dims,
                     const uint64_t *dims, const void *data) {
    if (writer->code != ATTUNE_OK) return;
    struct entry entry = {.n_dims = n_dims, .type = (uint32_t)type, .dims = {1, 1, 1, 1}, .data = data};
    size_t n = strlen(name);
    if (n == 0 || n >= sizeof entry.name || n_dims == 0 || n_dims > DIMS_MAX || !data) {
        FAIL(writer, ATTUNE_ERROR_ARGUMENT, name,
             "a tensor needs a name of 1 to %zu bytes, 1 to %d dimensions, and data", sizeof entry.name - 1, DIMS_MAX);
        return;
    }
    memcpy(entry.name, name, n);
    for (uint32_t i = 0; i < n_dims; i++) entry.dims[i] = dims[i];
    for (size_t i = 0; i < writer->n_entries; i++) {
        if (strcmp(writer->entries[i].name, name) != 0) continue;
        FAIL(writer, ATTUNE_ERROR_ARGUMENT, name, "a tensor of this name is written twice");
        return;
    }
    check_entry(writer, &entry);
    if (writer->code != ATTUNE_OK || !grow_entries(writer)) return;
    entry.offset = writer->data_size;
    writer->data_size += (entry.bytes + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
    writer->entries[writer->n_entries++] = entry;
}

/* ---- publishing ---- */

/* Where the bytes go: the file and the hash of what it should hold; or, read back, into a comparison. */
struct sink {
    struct file_writer *file;
    struct hash *hash; /* NULL: nobody asks */
    int fd;            /* with `chunk`: what is read there must be the same */
    unsigned char *chunk;
    uint64_t at;
    int code;
    attune_error *err;
};
enum { CHUNK = 1 << 18 };

static int differs(struct sink *sink) {
    return error_set(sink->err, ATTUNE_ERROR_IO, sink->file->path,
                     "what was read back differs from what was written: the disk is not to be trusted");
}

static int compare(struct sink *sink, const unsigned char *data, size_t n) {
    for (size_t at = 0; at < n;) {
        ssize_t got = pread(sink->fd, sink->chunk, n - at < CHUNK ? n - at : CHUNK, (off_t)(sink->at + at));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return error_set_errno(sink->err, sink->file->path, "cannot read back what was written");
        if (got == 0 || memcmp(sink->chunk, data + at, (size_t)got) != 0) return differs(sink);
        at += (size_t)got;
    }
    return ATTUNE_OK;
}

static void emit(struct sink *sink, const void *data, size_t n) {
    if (sink->code != ATTUNE_OK) return;
    if (sink->hash) hash_add(sink->hash, data, n);
    sink->code = sink->chunk ? compare(sink, data, n) : file_writer_add(sink->file, data, n, sink->err);
    sink->at += n;
}

static void emit_padding(struct sink *sink) {
    static const unsigned char zeros[ALIGNMENT];
    emit(sink, zeros, (ALIGNMENT - sink->at % ALIGNMENT) % ALIGNMENT);
}

/* Header, pairs and descriptions. */
static void encode(struct gguf_writer *writer, struct buffer *out) {
    put_bytes(writer, out, "GGUF", 4);
    put_integer(writer, out, VERSION, 4);
    put_integer(writer, out, writer->n_entries, 8);
    put_integer(writer, out, writer->n_pairs, 8);
    put_bytes(writer, out, writer->pairs.data, writer->pairs.size);
    for (size_t i = 0; i < writer->n_entries; i++) {
        const struct entry *entry = &writer->entries[i];
        put_text(writer, out, entry->name);
        put_integer(writer, out, entry->n_dims, 4);
        for (uint32_t d = 0; d < entry->n_dims; d++) put_integer(writer, out, entry->dims[d], 8);
        put_integer(writer, out, entry->type, 4);
        put_integer(writer, out, entry->offset, 8);
    }
}

static int put_file(struct gguf_writer *writer, struct sink *sink) {
    struct buffer head = {0};
    encode(writer, &head);
    if (writer->code == ATTUNE_OK) {
        emit(sink, head.data, head.size);
        emit_padding(sink);
    } else {
        sink->code = writer->code;
        if (sink->err) *sink->err = writer->error;
    }
    free(head.data);
    for (size_t i = 0; i < writer->n_entries && sink->code == ATTUNE_OK; i++) {
        emit(sink, writer->entries[i].data, writer->entries[i].bytes);
        emit_padding(sink);
    }
    return sink->code;
}

/* The temporary's bytes must be those that were handed to the kernel. It was fsynced, so its pages can
 * be dropped first, and where the kernel does so the device itself is asked. Compared, where no hash was wanted of
 * them: that takes a tenth of the time. */
static int verify(struct gguf_writer *writer, struct file_writer *file, const char *wanted, attune_error *err) {
    char found[HASH_HEX_SIZE];
    struct sink sink = {.file = file, .err = err};
    sink.fd = open(file->temporary, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (sink.fd < 0) return error_set_errno(err, file->path, "cannot read back what was written");
    posix_fadvise(sink.fd, 0, 0, POSIX_FADV_DONTNEED);
    if (wanted) {
        sink.code = hash_file(sink.fd, file->path, found, err);
        if (sink.code == ATTUNE_OK && strcmp(found, wanted) != 0) sink.code = differs(&sink);
    } else {
        sink.chunk = malloc(CHUNK);
        sink.code = sink.chunk ? put_file(writer, &sink) : error_set_memory(err, "reading a file back", CHUNK);
        free(sink.chunk);
    }
    close(sink.fd);
    return sink.code;
}

int gguf_writer_put(struct gguf_writer *writer, struct file_writer *file, attune_error *err) {
    struct sink sink = {.file = file, .at = file->written, .err = err};
    return put_file(writer, &sink);
}

int gguf_writer_write(struct gguf_writer *writer, struct file_writer *file, char sha256[65], attune_error *err) {
    struct hash hash;
    struct sink sink = {.file = file, .hash = sha256 ? &hash : NULL, .err = err};
    char hex[HASH_HEX_SIZE];
    hash_start(&hash);
    int code = put_file(writer, &sink);
    if (code != ATTUNE_OK) return code;
    hash_finish(&hash, hex);
    if ((code = file_writer_sync(file, err)) != ATTUNE_OK) return code;
    code = verify(writer, file, sha256 ? hex : NULL, err);
    if (code == ATTUNE_OK && sha256) memcpy(sha256, hex, sizeof hex);
    return code;
}

int gguf_writer_publish(struct gguf_writer *writer, const char *path, const char *point, int new_only,
                        char sha256[65], attune_error *err) {
    struct file_writer file = {0};
    char hex[HASH_HEX_SIZE];
    int code = file_writer_open(path, point, &file, err);
    if (code == ATTUNE_OK) code = gguf_writer_write(writer, &file, hex, err);
    if (code == ATTUNE_OK) code = new_only ? file_writer_publish_new(&file, err) : file_writer_publish(&file, err);
    if (code == ATTUNE_OK && sha256) memcpy(sha256, hex, sizeof hex);
    file_writer_abandon(&file);
    return code;
}
