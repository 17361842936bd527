/* GGUF: reader of versions 2 and 3, writer of version 3, little-endian.
 * Specification: docs/gguf.md of ggml; the byte offsets are at the top of gguf.c.
 *
 * The reader trusts nothing: checked arithmetic for each length, the first fault kept with its byte;
 * memory taken while refusing stays below file size + 64 MiB (so at most 65536 keys, 65536 tensors and
 * 2^21 strings in arrays). It borrows: strings and data point into the file's bytes. */
#ifndef CORE_MODEL_GGUF_H
#define CORE_MODEL_GGUF_H

#include "core/base/file.h"
#include "core/kernels/blocks.h"

enum gguf_kind {
    GGUF_U8 = 0, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL,
    GGUF_STRING = 8, GGUF_ARRAY = 9, GGUF_U64 = 10, GGUF_I64, GGUF_F64
};

struct gguf_string {
    const char *data; /* not NUL-terminated */
    size_t size;
};
struct gguf_pair {
    struct gguf_string key;
    enum gguf_kind kind;
    enum gguf_kind element; /* of an array */
    uint64_t count;         /* of an array */
    const unsigned char *value; /* raw little-endian; string: at its length; array: first element */
    struct gguf_string *strings; /* array of strings: count of them, owned by the file */
};
struct gguf_tensor {
    char name[128]; /* NUL-terminated; names with a NUL or longer than 127 are refused */
    uint32_t n_dims;   /* 1 to 4 */
    uint64_t dims[4];  /* dims[0] is the row length (contiguous), unused ones are 1 */
    uint32_t type;     /* enum block_type, known to attune */
    const unsigned char *data;
    size_t bytes;
};
struct gguf {
    struct file_bytes file; /* after gguf_parse: the bytes and the name given, nothing else */
    int borrowed;           /* the bytes are the caller's (gguf_parse) */
    uint32_t version;
    size_t alignment, data_offset;
    size_t n_pairs, n_tensors;
    struct gguf_pair *pairs;
    struct gguf_tensor *tensors;
    size_t *by_key, *by_name; /* indices in order of key and of name, for bsearch */
};

/* Duplicate keys or tensor names, overlap, misalignment, truncation, unknown types: refused. */
int gguf_open(const char *path, enum file_load load, struct gguf **out, attune_error *err);
/* The same of a descriptor that is open for reading and stays the caller's; path is for messages. */
int gguf_open_from(int fd, const char *path, enum file_load load, struct gguf **out, attune_error *err);
/* bytes are borrowed and must stay until gguf_close. name is for messages. */
int gguf_parse(const void *bytes, size_t size, const char *name, struct gguf **out, attune_error *err);
void gguf_close(struct gguf *gguf);

const struct gguf_pair *gguf_find(const struct gguf *gguf, const char *key); /* NULL: not there */
const struct gguf_tensor *gguf_tensor_find(const struct gguf *gguf, const char *name);
/* Typed access. A missing key is ATTUNE_ERROR_NOT_FOUND, another type ATTUNE_ERROR_FORMAT; both are
 * explained in err. Integers of any width are accepted where they fit, by gguf_get_f64 too (exactly). */
int gguf_get_u64(const struct gguf *gguf, const char *key, uint64_t *out, attune_error *err);
int gguf_get_f64(const struct gguf *gguf, const char *key, double *out, attune_error *err);
int gguf_get_bool(const struct gguf *gguf, const char *key, int *out, attune_error *err);
int gguf_get_string(const struct gguf *gguf, const char *key, struct gguf_string *out, attune_error *err);
/* Copies into out, refuses what does not fit or holds a NUL. */
int gguf_get_text(const struct gguf *gguf, const char *key, char *out, size_t out_size, attune_error *err);

/* ---- writer: pairs and tensor descriptions first, then data in the same order ---- */
struct gguf_writer;
/* Version 3, alignment 32 (the key general.alignment is refused). Numbers and dims as in struct gguf_tensor. */
int gguf_writer_create(struct gguf_writer **out, attune_error *err);
void gguf_writer_destroy(struct gguf_writer *writer);
void gguf_put_u32(struct gguf_writer *writer, const char *key, uint32_t value);
void gguf_put_u64(struct gguf_writer *writer, const char *key, uint64_t value);
void gguf_put_f32(struct gguf_writer *writer, const char *key, float value);
void gguf_put_f64(struct gguf_writer *writer, const char *key, double value);
void gguf_put_bool(struct gguf_writer *writer, const char *key, int value);
void gguf_put_string(struct gguf_writer *writer, const char *key, const char *value);
void gguf_put_array(struct gguf_writer *writer, const char *key, enum gguf_kind element, const void *values,
                    size_t count); /* numbers only */
void gguf_put_strings(struct gguf_writer *writer, const char *key, const char *const *values, size_t count);
/* data is borrowed until the file is written. */
void gguf_put_tensor(struct gguf_writer *writer, const char *name, enum block_type type, uint32_t n_dims,
                     const uint64_t *dims, const void *data);
/* Errors of the puts (memory, names) surface here. Into a file that is open and empty (file_writer_open): writes and
 * syncs it, reads the temporary back and compares it, or its hash, with what was written; the caller publishes it or
 * abandons it. sha256 gets the hash of the file; NULL: none is made, which is faster. */
int gguf_writer_write(struct gguf_writer *writer, struct file_writer *file, char sha256[65], attune_error *err);
/* Only writes, without syncing or reading back: for a file whose reader verifies all of it. */
int gguf_writer_put(struct gguf_writer *writer, struct file_writer *file, attune_error *err);
/* All of it, with the fault points of `point`; new_only: an existing path is an error. */
int gguf_writer_publish(struct gguf_writer *writer, const char *path, const char *point, int new_only,
                        char sha256[65], attune_error *err);

#endif
