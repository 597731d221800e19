/* In float32, for ARM processors of 64 bits. */

#if defined(__aarch64__)

#define NAME(function) function##_float32_neon
#define BFLOAT16_CELLS 0
#define TILES 0
#define WIDE 0

#include "kernels.h"

/* Whether this processor can run these kernels: all of its kind can. */
int NAME(runs)(void) { return 1; }

#endif
