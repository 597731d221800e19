/* Shared by all kernels of the library. They are plain C without a thread library: they work in the threads of the
 * OpenMP runtime that the process already has, whose `GOMP_parallel` is handed in.
 *
 * attention.h, pool.h, rotary.h and layers.h are written once over the lanes of vector.h. A file of kernels (such as
 * float32_avx2.c) says for which processor and which numbers they are compiled. library.c tells which files this
 * processor can run.
 */

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 64 };
enum kind { INT8, FLOAT32, BFLOAT16 };

typedef void team(void (*work)(void *), void *data, unsigned threads, unsigned flags);

/* A tensor (B, G, N) or (B, G, N, width) whose vectors of `width` numbers are contiguous; strides in bytes. */
typedef struct {
    char *at;
    int64_t row, head, place;
} tensor;

static inline const char *of(const tensor *t, int64_t row, int64_t head) {
    return t->at + row * t->row + head * t->head;
}

static inline void *part(uintptr_t *from, size_t bytes) {
    void *at = (void *)*from;
    *from += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return at;
}
