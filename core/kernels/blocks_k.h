/* The K formats, superblocks of 256: for blocks.c's table and grids.c. */
#ifndef CORE_KERNELS_BLOCKS_K_H
#define CORE_KERNELS_BLOCKS_K_H

#include "core/kernels/blocks.h"

enum { Q4_K_BYTES = 144, Q5_K_BYTES = 176, Q6_K_BYTES = 210 };

/* Of part p, 0 to 7, of Q4_K and Q5_K. */
void k_scale_and_minimum(const uint8_t scales[12], int p, int *scale, int *minimum);
/* Values of 256 elements, their low four bits; the fifth of Q5_K; all six of Q6_K. */
void k_store_nibbles(uint8_t q[128], const uint8_t values[256]);
void k_store_fifth(uint8_t fifth[32], const uint8_t values[256]);
void k_store_six(uint8_t low[128], uint8_t high[64], const uint8_t values[256]);

void dequantize_q4_k(float *dst, const void *src, size_t n);
void dequantize_q5_k(float *dst, const void *src, size_t n);
void dequantize_q6_k(float *dst, const void *src, size_t n);
void quantize_q4_k(void *dst, const float *src, size_t n);
void quantize_q5_k(void *dst, const float *src, size_t n);
void quantize_q6_k(void *dst, const float *src, size_t n);

#endif
