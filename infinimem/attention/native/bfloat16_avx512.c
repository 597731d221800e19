/* In bfloat16, for processors with AVX-512 BF16. */

#if defined(__x86_64__)

#define TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16"
#define NAME(function) function##_bfloat16_avx512
#define BFLOAT16_CELLS 1
#define TILES 0
#define WIDE 1

#include "kernels.h"

/* Whether this processor can run these kernels. */
int NAME(runs)(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bf16");
}

#endif
