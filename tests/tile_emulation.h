/* AMX's tiles in plain C, so that core/kernels/amx_product.h can be tested where no CPU has them. The packing needs
 * AVX-512 F and BW: ask the "avx512" table first. Instructions that the processor would fault on abort. */
#ifndef TESTS_TILE_EMULATION_H
#define TESTS_TILE_EMULATION_H

#include "core/kernels/kernels.h"

/* NULL on other architectures. */
const struct product *tile_emulation_product(void);
/* As TILERELEASE leaves them: a multiplication that goes without it slows every later switch of threads. */
int tile_emulation_released(void);

#endif
