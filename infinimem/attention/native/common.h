/* Shared by all parts of the library. The code needs a processor with AVX-512 BF16, which `usable` checks when the
 * library is loaded. It is plain C without a thread library: it works in the threads of the OpenMP runtime that the
 * process already has, whose `GOMP_parallel` is handed in.
 */

#include <immintrin.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16"
#define KERNEL __attribute__((target(TARGET)))
#define INLINE __attribute__((target(TARGET), always_inline)) static inline

enum { LANES = 16, ALIGNMENT = 64 };
enum kind { INT8, FLOAT32, BFLOAT16 };

typedef void team(void (*work)(void *), void *data, unsigned threads, unsigned flags);

/* A tensor (B, G, N) or (B, G, N, width) whose vectors of `width` numbers are contiguous; strides in bytes. */
typedef struct {
    char *at;
    int64_t row, head, place;
} tensor;

INLINE __mmask16 lanes(int64_t left) { return left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1); }

INLINE __m512 widened(__m256i bfloat16) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bfloat16), 16));
}

static inline const char *of(const tensor *t, int64_t row, int64_t head) {
    return t->at + row * t->row + head * t->head;
}

static inline void *part(uintptr_t *from, size_t bytes) {
    void *at = (void *)*from;
    *from += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return at;
}
