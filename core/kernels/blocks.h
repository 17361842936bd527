/* Block formats: how a row of weights is stored. Layouts as in ggml (ggml-common.h); what is a
 * whole number of blocks is a whole row, so rows never share a block.
 *
 * Owns sizes, names, reference (scalar) dequantize and quantize. Knows nothing of files. */
#ifndef CORE_KERNELS_BLOCKS_H
#define CORE_KERNELS_BLOCKS_H

#include <stddef.h>
#include <stdint.h>

/* The numbers are GGUF's ggml_type. */
enum block_type {
    BLOCK_F32 = 0,
    BLOCK_F16 = 1,
    BLOCK_Q4_0 = 2,
    BLOCK_Q4_1 = 3,
    BLOCK_Q5_0 = 6,
    BLOCK_Q5_1 = 7,
    BLOCK_Q8_0 = 8,
    BLOCK_Q4_K = 12,
    BLOCK_Q5_K = 13,
    BLOCK_Q6_K = 14,
    BLOCK_BF16 = 30,
    BLOCK_TYPE_LIMIT = 31
};

struct block_format {
    const char *name;   /* "Q4_1" */
    uint32_t elements;  /* of one block: 1, 32, 256 */
    uint32_t bytes;     /* of one block */
    /* n elements, a multiple of `elements` */
    void (*dequantize)(float *dst, const void *src, size_t n);
    void (*quantize)(void *dst, const float *src, size_t n); /* ggml's reference rounding */
};

/* NULL for a type that attune does not read. */
const struct block_format *block_format_get(uint32_t type);
/* "Q4_1"; for any number that GGUF knows, "type 99" style text is the caller's matter: NULL. Includes
 * names of formats that attune refuses ("IQ2_XS"), so that a refusal can name them. */
const char *block_type_name(uint32_t type);
/* Bytes of a row of n elements; 0 if n is not a whole number of blocks. */
size_t block_row_bytes(enum block_type type, size_t n);

/* A matrix of blocks: (rows = outputs, cols = inputs), row after row. Borrowed. */
struct matrix {
    const void *data;
    enum block_type type;
    size_t rows, cols, row_bytes;
};

float half_to_float(uint16_t half);
uint16_t half_from_float(float value); /* round to nearest even */

#endif
