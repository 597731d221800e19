/* In float32, for processors with AVX2. */

#if defined(__x86_64__)

#define TARGET "avx2,fma"
#define NAME(function) function##_float32_avx2
#define BFLOAT16_CELLS 0
#define TILES 0
#define WIDE 0

#include "kernels.h"

/* Whether this processor can run these kernels. */
int NAME(runs)(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") &&
           __builtin_cpu_supports("fma");
}

#endif
