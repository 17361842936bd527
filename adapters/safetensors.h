/* safetensors: named tensors in one file (github.com/huggingface/safetensors; offsets in safetensors.c).
 *
 * Owns the format. Knows nothing of adapters. The reader trusts nothing: memory taken while refusing
 * stays below file size + 64 MiB. */
#ifndef ADAPTERS_SAFETENSORS_H
#define ADAPTERS_SAFETENSORS_H

#include "core/base/file.h"

enum { SAFETENSORS_DIMS_MAX = 8 };

struct safetensors_tensor {
    const char *name;
    const char *dtype; /* "F32", "F16", "BF16", ...: one of the format's whole-byte types */
    size_t n_dims;
    uint64_t shape[SAFETENSORS_DIMS_MAX]; /* the last one is contiguous; unused ones are 1 */
    const unsigned char *data;            /* any alignment */
    size_t bytes;
};
struct safetensors {
    struct file_bytes file; /* closed with it; empty after safetensors_parse */
    size_t n;
    struct safetensors_tensor *tensors; /* in the order of their data */
    void *header;                       /* the parsed JSON, which the names point into */
};

/* Reads the whole file, of at most max_bytes. */
int safetensors_open(const char *path, size_t max_bytes, struct safetensors **out, attune_error *err);
/* bytes are borrowed until safetensors_close. name is for messages. */
int safetensors_parse(const void *bytes, size_t size, const char *name, struct safetensors **out, attune_error *err);
void safetensors_close(struct safetensors *file);
/* Tensors in the order given, {"format": "pt"} as metadata, published as a new file (file_writer with the
 * fault points of `point`). dtype is "F32" for all; bytes and dtype of the descriptions are not read. */
int safetensors_write_f32(const struct safetensors_tensor *tensors, size_t n, const char *path, const char *point,
                          attune_error *err);

/* JSON text before it is parsed: a parser's memory grows with the number of values, by up to some 100 bytes
 * each, and its stack with the depth. Refuses what is over the limits; says nothing about validity. */
int json_text_check(const char *text, size_t size, size_t values_max, size_t depth_max, const char *where,
                    attune_error *err);

#endif
