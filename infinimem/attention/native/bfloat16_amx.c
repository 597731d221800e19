/* In bfloat16, for processors with AMX. Compilers that do not know AMX leave these kernels out. */

#if defined(__x86_64__) && defined(__linux__) && __has_include(<amxbf16intrin.h>)

#define TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16"
#define NAME(function) function##_bfloat16_amx
#define BFLOAT16_CELLS 1
#define TILES 1
#define WIDE 1

#define _GNU_SOURCE
#include <sys/syscall.h>
#include <unistd.h>
#include "kernels.h"

/* Whether this processor can run these kernels, and the system lets this process use tiles. */
int NAME(runs)(void) {
    enum { ASK_FOR_STATE = 0x1023, TILE_DATA = 18 };
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bf16") &&
           __builtin_cpu_supports("amx-tile") &&
           __builtin_cpu_supports("amx-bf16") &&
           !syscall(SYS_arch_prctl, ASK_FOR_STATE, TILE_DATA);
}

#endif
