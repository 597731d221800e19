/* Products with weights of 8 bits: out = x W^T + bias, where x is rounded to 8 bits on the way.
 *
 * - W has one scale for each of its N columns of the product; x has one scale for every GROUP numbers of a row, because
 *   a few numbers of a row can be hundreds of times larger than the others
 * - the sums of a group are exact integers, and groups are added in ascending order: a row's result depends neither on
 *   the other rows nor on the number of threads
 * - each processor takes the fastest of four kernels, which all compute the same block: up to BLOCK rows by COLUMNS
 *   columns
 *
 * Packed weights: (N / COLUMNS, K / STEP, COLUMNS / WIDTH, STEP / 4, WIDTH, 4) int8, N and K filled up with zeros. This
 * is the order in which AMX reads tiles, and it makes weights one stream of memory.
 */

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 11)
#define X86 1
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#define X86 0
#endif

/* Numbers a group, and the sizes of blocks and tiles; rows are filled up to a multiple of ROWS. */
enum { GROUP = 128, STEP = 64, ROWS = 16, BLOCK = 2 * ROWS, COLUMNS = 64, WIDTH = 16, TILE = 1024 };
enum number { FLOAT = 1, HALF = 2 };
enum kernel { PLAIN, AVX2, VNNI, AMX };
/* Weights that stay in a core's cache while all rows pass by. */
enum { CACHED = 1 << 20, ITEMS = 4, AHEAD = 8192 };

typedef void parallel_call(void (*call)(void *), void *data, unsigned threads, unsigned flags);

/* x: (M, K), FLOAT or HALF (bfloat16), rows `x_row` bytes apart. scales: (N) float32. bias: (N) float32, or null. out:
 * (M, N), FLOAT or HALF, without gaps. */
typedef struct {
    const char *x;
    int64_t x_row, x_kind;
    const int8_t *weights;
    const float *scales, *bias;
    char *out;
    int64_t out_kind, rows, width, columns, kernel;
} product;

typedef struct {
    const product *p;
    int64_t padded, groups, row_blocks, column_blocks, item;
    int8_t *x;     /* (row blocks * ROWS, padded) */
    float *scales; /* (row blocks * ROWS, groups) */
    int32_t *sums; /* the same: 128 times the sum of the group */
    atomic_llong next_rows, next_item;
} state;

/* Compiled into each caller, for the processor of the caller. */
#define ANYWHERE __attribute__((always_inline)) static inline

/* One block of the product. x, scales, sums: of its first row. acc: (BLOCK + 1, COLUMNS). */
typedef void block(const state *s, const int8_t *x, const float *scales, const int32_t *sums, int64_t rows,
                   const int8_t *weights, float *acc);

ANYWHERE int64_t end_of(const state *s, int64_t group) {
    int64_t end = (group + 1) * GROUP;
    return end < s->padded ? end : s->padded;
}

static void block_plain(const state *s, const int8_t *x, const float *scales, const int32_t *sums, int64_t rows,
                        const int8_t *weights, float *acc) {
    (void)sums;
    memset(acc, 0, sizeof(float) * (size_t)(rows + 1) * COLUMNS);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t g = 0; g < s->groups; g++) {
            int32_t found[COLUMNS] = {0};
            for (int64_t k = g * GROUP; k < end_of(s, g); k += 4) {
                const int8_t *four = x + row * s->padded + k;
                for (int64_t c = 0; c < COLUMNS; c++) {
                    const int8_t *w = weights + (k / STEP * (COLUMNS / WIDTH) + c / WIDTH) * TILE +
                                      (k % STEP * WIDTH) + c % WIDTH * 4;
                    found[c] += four[0] * w[0] + four[1] * w[1] + four[2] * w[2] + four[3] * w[3];
                }
            }
            for (int64_t c = 0; c < COLUMNS; c++)
                acc[row * COLUMNS + c] += (float)found[c] * scales[row * s->groups + g];
        }
}

#if X86

#define FOR_AVX2 __attribute__((target("avx2,fma")))
#define FOR_VNNI __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define FOR_AMX __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,amx-tile,amx-int8")))

static inline int32_t four_of(const int8_t *at) {
    int32_t found;
    memcpy(&found, at, sizeof found);
    return found;
}

/* Products of |w| and x with the sign of w: two of them always fit into 16 bits, because neither is -128. */
FOR_AVX2 static void block_avx2(const state *s, const int8_t *x, const float *scales, const int32_t *sums,
                                int64_t rows, const int8_t *weights, float *acc) {
    enum { EIGHT = 8, PAIR = 2, PARTS = 4 };
    (void)sums;
    const __m256i ones = _mm256_set1_epi16(1);
    memset(acc, 0, sizeof(float) * (size_t)(rows + 1) * COLUMNS);
    for (int64_t row = 0; row < rows; row += PAIR)
        for (int64_t g = 0; g < s->groups; g++)
            for (int64_t half = 0; half < 2; half++) {
                __m256i found[PAIR][PARTS];
                for (int r = 0; r < PAIR; r++)
                    for (int part = 0; part < PARTS; part++) found[r][part] = _mm256_setzero_si256();
                for (int64_t k = g * GROUP; k < end_of(s, g); k += 4) {
                    const int8_t *at = weights + (k / STEP * 4 + half * 2) * TILE + k % STEP * WIDTH;
                    __m256i first = _mm256_set1_epi32(four_of(x + row * s->padded + k));
                    __m256i second = _mm256_set1_epi32(four_of(x + (row + 1) * s->padded + k));
                    for (int part = 0; part < PARTS; part++) {
                        __m256i w = _mm256_loadu_si256((const __m256i *)(at + part / 2 * TILE + part % 2 * 32));
                        __m256i size = _mm256_abs_epi8(w);
                        __m256i a = _mm256_maddubs_epi16(size, _mm256_sign_epi8(first, w));
                        __m256i b = _mm256_maddubs_epi16(size, _mm256_sign_epi8(second, w));
                        found[0][part] = _mm256_add_epi32(found[0][part], _mm256_madd_epi16(a, ones));
                        found[1][part] = _mm256_add_epi32(found[1][part], _mm256_madd_epi16(b, ones));
                    }
                }
                for (int r = 0; r < PAIR; r++) {
                    __m256 scale = _mm256_set1_ps(scales[(row + r) * s->groups + g]);
                    for (int part = 0; part < PARTS; part++) {
                        float *to = acc + (row + r) * COLUMNS + half * 32 + part * EIGHT;
                        __m256 sum = _mm256_cvtepi32_ps(found[r][part]);
                        _mm256_storeu_ps(to, _mm256_fmadd_ps(sum, scale, _mm256_loadu_ps(to)));
                    }
                }
            }
}

/* Some rows of a block; the instruction wants one unsigned factor, w + 128, so the group's sum is taken off again. */
FOR_VNNI __attribute__((always_inline)) static inline void some_rows(
    const state *s, const int8_t *x, const float *scales, const int32_t *sums, const int rows, const int8_t *weights,
    float *acc) {
    enum { PARTS = COLUMNS / WIDTH };
    const __m512i high = _mm512_set1_epi8((char)0x80);
    __m512 total[4][PARTS];
    for (int r = 0; r < rows; r++)
        for (int part = 0; part < PARTS; part++) total[r][part] = _mm512_setzero_ps();
    for (int64_t g = 0; g < s->groups; g++) {
        __m512i found[4][PARTS];
        for (int r = 0; r < rows; r++)
            for (int part = 0; part < PARTS; part++) found[r][part] = _mm512_set1_epi32(-sums[r * s->groups + g]);
        for (int64_t k = g * GROUP; k < end_of(s, g); k += 4) {
            const int8_t *at = weights + k / STEP * PARTS * TILE + k % STEP * WIDTH;
            for (int part = 0; part < PARTS; part++) {
                if (rows == 1) _mm_prefetch((const char *)at + part * TILE + AHEAD, _MM_HINT_T0);
                __m512i w = _mm512_xor_si512(_mm512_loadu_si512(at + part * TILE), high);
                for (int r = 0; r < rows; r++)
                    found[r][part] =
                        _mm512_dpbusd_epi32(found[r][part], w, _mm512_set1_epi32(four_of(x + r * s->padded + k)));
            }
        }
        for (int r = 0; r < rows; r++)
            for (int part = 0; part < PARTS; part++)
                total[r][part] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(found[r][part]),
                                                 _mm512_set1_ps(scales[r * s->groups + g]), total[r][part]);
    }
    for (int r = 0; r < rows; r++)
        for (int part = 0; part < PARTS; part++)
            _mm512_storeu_ps(acc + r * COLUMNS + part * WIDTH, total[r][part]);
}

FOR_VNNI static void block_vnni(const state *s, const int8_t *x, const float *scales, const int32_t *sums,
                                int64_t rows, const int8_t *weights, float *acc) {
    if (rows == 1) {
        some_rows(s, x, scales, sums, 1, weights, acc);
        return;
    }
    for (int64_t row = 0; row < rows; row += 4) {
        int64_t at = row * s->groups;
        some_rows(s, x + row * s->padded, scales + at, sums + at, 4, weights, acc + row * COLUMNS);
    }
}

/* Numbers of a block's sums of one group, and groups whose sums are added together. */
enum { SUMS = ROWS * COLUMNS, TOGETHER = 2 };

/* Adds the scaled sums of some groups for up to ROWS rows. */
FOR_AMX __attribute__((always_inline)) static inline void add_groups(const state *s, const int32_t *found,
                                                                     const float *scales, int64_t rows, const int groups,
                                                                     float *acc) {
    for (int64_t row = 0; row < rows; row++) {
        const float *scale = scales + row * s->groups;
        for (int part = 0; part < COLUMNS / WIDTH; part++) {
            float *to = acc + row * COLUMNS + part * WIDTH;
            __m512 total = _mm512_load_ps(to);
            for (int g = 0; g < groups; g++) {
                const int32_t *sums = found + g * SUMS + (part * ROWS + row) * WIDTH;
                total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(sums)), _mm512_set1_ps(scale[g]), total);
            }
            _mm512_store_ps(to, total);
        }
    }
}

#define MULTIPLY(part, tile)                                                          \
    if (few)                                                                          \
        for (int line = 0; line < TILE; line += 64)                                   \
            _mm_prefetch((const char *)at + part * TILE + AHEAD + line, _MM_HINT_T0); \
    _tile_loadd(tile, at + part * TILE, 64);                                          \
    _tile_dpbssd(part, 4, tile)

FOR_AMX __attribute__((always_inline)) static inline void tile_group(const state *s, const int8_t *x, int64_t g,
                                                                     const int8_t *weights, const int few, int32_t *to) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = g * GROUP; k < end_of(s, g); k += STEP) {
        const int8_t *at = weights + k * COLUMNS;
        _tile_loadd(4, x + k, (size_t)s->padded);
        MULTIPLY(0, 5);
        MULTIPLY(1, 6);
        MULTIPLY(2, 7);
        MULTIPLY(3, 5);
    }
    _tile_stored(0, to, 64);
    _tile_stored(1, to + ROWS * WIDTH, 64);
    _tile_stored(2, to + 2 * ROWS * WIDTH, 64);
    _tile_stored(3, to + 3 * ROWS * WIDTH, 64);
}

/* While the tiles compute some groups, the sums of the groups before are added. */
FOR_AMX static void block_amx(const state *s, const int8_t *x, const float *scales, const int32_t *sums, int64_t rows,
                              const int8_t *weights, float *acc) {
    (void)sums;
    int32_t found[2][TOGETHER * SUMS] __attribute__((aligned(64)));
    memset(acc, 0, sizeof(float) * (size_t)rows * COLUMNS);
    const int few = s->p->rows <= ROWS;
    int turn = 0, last_count = 0;
    int64_t last_row = 0, last_group = 0;
    for (int64_t g = 0; g < s->groups; g += TOGETHER) {
        int count = s->groups - g < TOGETHER ? (int)(s->groups - g) : TOGETHER;
        for (int64_t row = 0; row < rows; row += ROWS) {
            for (int i = 0; i < count; i++)
                tile_group(s, x + row * s->padded, g + i, weights, few, found[turn] + i * SUMS);
            turn = !turn;
            int64_t some = rows - last_row < ROWS ? rows - last_row : ROWS;
            const float *at = scales + last_row * s->groups + last_group;
            if (last_count == TOGETHER)
                add_groups(s, found[turn], at, some, TOGETHER, acc + last_row * COLUMNS);
            else
                for (int i = 0; i < last_count; i++)
                    add_groups(s, found[turn] + i * SUMS, at + i, some, 1, acc + last_row * COLUMNS);
            last_row = row, last_group = g, last_count = count;
        }
    }
    turn = !turn;
    int64_t some = rows - last_row < ROWS ? rows - last_row : ROWS;
    for (int i = 0; i < last_count; i++)
        add_groups(s, found[turn] + i * SUMS, scales + last_row * s->groups + last_group + i, some, 1,
                   acc + last_row * COLUMNS);
}

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} tiles;

/* Sets up the tiles of this thread, or brings back `before`: torch relies on its own setup. */
FOR_AMX static void set_tiles(tiles *before) {
    tiles all = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        all.bytes[i] = 64;
        all.rows[i] = ROWS;
    }
    _tile_storeconfig(before);
    /* Some compilers believe that only the first 8 bytes are read or written. */
    __asm__ volatile("" : : "r"(before), "r"(&all) : "memory");
    _tile_loadconfig(&all);
}

FOR_AMX static void bring_back(const tiles *before) {
    __asm__ volatile("" : : "r"(before) : "memory");
    if (before->palette)
        _tile_loadconfig(before);
    else
        _tile_release();
}

static int has_amx(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 24 & 1) || !(d >> 25 & 1)) return 0;
#if defined(__linux__)
    enum { ASK_FOR_STATE = 0x1023, TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, ASK_FOR_STATE, TILE_DATA) == 0;
#else
    return 0;
#endif
}

#endif

/* The fastest kernel of this processor. */
int64_t best_kernel(void) {
#if X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return has_amx() ? AMX : VNNI;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AVX2;
#endif
    return PLAIN;
}

ANYWHERE float number(uint32_t bits) {
    float found;
    memcpy(&found, &bits, sizeof found);
    return found;
}

ANYWHERE uint32_t bits_of(float x) {
    uint32_t found;
    memcpy(&found, &x, sizeof found);
    return found;
}

/* Reads `size` numbers; a size that the compiler knows makes it fast. */
ANYWHERE void get(const char *from, int64_t kind, int64_t size, float *x) {
    if (kind == FLOAT)
        memcpy(x, from, sizeof(float) * (size_t)size);
    else
        for (int64_t i = 0; i < size; i++) x[i] = number((uint32_t)((const uint16_t *)from)[i] << 16);
}

/* Rounds a row to 8 bits. */
ANYWHERE void round_row(const state *s, int64_t row) {
    enum { SIGN = 0x7fffffff };
    /* Adding this number rounds to an integer, which then stands in the lowest bits. */
    const float shift = 12582912.0f;
    const product *p = s->p;
    const char *from = p->x + row * p->x_row;
    int8_t *to = s->x + row * s->padded;
    for (int64_t g = 0; g < s->groups; g++) {
        float x[GROUP];
        int64_t first = g * GROUP, size = p->width - first;
        const char *at = from + first * (p->x_kind == FLOAT ? 4 : 2);
        if (size >= GROUP)
            get(at, p->x_kind, GROUP, x);
        else {
            memset(x, 0, sizeof x);
            get(at, p->x_kind, size, x);
        }
        /* Compared as integers, so that a NaN is the largest number, and makes the whole row NaN. */
        int32_t most = 0;
        for (int64_t i = 0; i < GROUP; i++) {
            int32_t one = (int32_t)(bits_of(x[i]) & SIGN);
            most = one > most ? one : most;
        }
        float largest = number((uint32_t)most), inverse = most ? 127.0f / largest : 0.0f;
        int32_t sum = 0;
        int8_t rounded[GROUP];
        for (int64_t i = 0; i < GROUP; i++) rounded[i] = (int8_t)(bits_of(x[i] * inverse + shift) & 0xff);
        for (int64_t i = 0; i < GROUP; i++) sum += rounded[i];
        memcpy(to + first, rounded, (size_t)(end_of(s, g) - first));
        s->scales[row * s->groups + g] = largest / 127.0f;
        s->sums[row * s->groups + g] = 128 * sum;
    }
}

/* Writes `count` numbers of a finished row. */
ANYWHERE void put(const product *p, const float *acc, int64_t row, int64_t column, int64_t count) {
    float found[COLUMNS];
    for (int64_t c = 0; c < count; c++) found[c] = acc[c] * p->scales[column + c];
    if (p->bias)
        for (int64_t c = 0; c < count; c++) found[c] += p->bias[column + c];
    int64_t at = row * p->columns + column;
    if (p->out_kind == FLOAT) {
        memcpy(p->out + at * 4, found, sizeof(float) * (size_t)count);
        return;
    }
    uint16_t *to = (uint16_t *)p->out + at;
    for (int64_t c = 0; c < count; c++) {
        uint32_t bits = bits_of(found[c]);
        uint32_t half = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        to[c] = (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : half);
    }
}

/* Writes a finished block. */
ANYWHERE void finish(const product *p, const float *acc, int64_t row, int64_t rows, int64_t column) {
    int64_t count = p->columns - column;
    for (int64_t r = 0; r < rows; r++)
        if (count >= COLUMNS)
            put(p, acc + r * COLUMNS, row + r, column, COLUMNS);
        else
            put(p, acc + r * COLUMNS, row + r, column, count);
}

ANYWHERE void round_some(state *s) {
    int64_t i;
    while ((i = atomic_fetch_add(&s->next_rows, 1)) < s->row_blocks)
        for (int64_t row = i * ROWS; row < (i + 1) * ROWS && row < s->p->rows; row++) round_row(s, row);
}

ANYWHERE void multiply_some(state *s, block *compute) {
    const product *p = s->p;
    float acc[(BLOCK + 1) * COLUMNS] __attribute__((aligned(64)));
    int64_t first;
    while ((first = atomic_fetch_add(&s->next_item, s->item)) < s->column_blocks) {
        int64_t last = first + s->item < s->column_blocks ? first + s->item : s->column_blocks;
        for (int64_t row = 0; row < p->rows; row += BLOCK) {
            int64_t rows = p->rows - row < BLOCK ? p->rows - row : BLOCK, at = row * s->groups;
            for (int64_t c = first; c < last; c++) {
                compute(s, s->x + row * s->padded, s->scales + at, s->sums + at, rows,
                        p->weights + c * COLUMNS * s->padded, acc);
                finish(p, acc, row, rows, c * COLUMNS);
            }
        }
    }
}

static void round_plain(void *data) { round_some(data); }

static void multiply_plain(void *data) { multiply_some(data, block_plain); }

#if X86

FOR_AVX2 static void round_avx2(void *data) { round_some(data); }

FOR_AVX2 static void multiply_avx2(void *data) { multiply_some(data, block_avx2); }

FOR_VNNI static void round_vnni(void *data) { round_some(data); }

FOR_VNNI static void multiply_vnni(void *data) { multiply_some(data, block_vnni); }

FOR_VNNI static void multiply_amx(void *data) {
    tiles before;
    set_tiles(&before);
    multiply_some(data, block_amx);
    bring_back(&before);
}

#endif

typedef void work(void *);

/* For each kernel, the functions that round rows and that multiply. */
static work *const WORK[][2] = {
    {round_plain, multiply_plain},
#if X86
    {round_avx2, multiply_avx2},
    {round_vnni, multiply_vnni},
    {round_vnni, multiply_amx},
#endif
};

/* Computes the product with `threads` threads of `parallel`, or with the calling thread where `parallel` is null.
 * Returns 1 without enough memory, else 0. */
int multiply_int8(const product *p, parallel_call *parallel, int64_t threads) {
    state s = {.p = p};
    s.padded = (p->width + STEP - 1) / STEP * STEP;
    s.groups = (p->width + GROUP - 1) / GROUP;
    s.row_blocks = (p->rows + ROWS - 1) / ROWS;
    s.column_blocks = (p->columns + COLUMNS - 1) / COLUMNS;
    if (!parallel || threads < 1) threads = 1;
    s.item = CACHED / (s.padded * COLUMNS);
    int64_t most = s.column_blocks / (threads * ITEMS);
    if (s.item > most) s.item = most;
    if (s.item < 1) s.item = 1;
    size_t numbers = (size_t)(s.row_blocks * ROWS), bytes = numbers * (size_t)s.padded;
    size_t each = numbers * (size_t)s.groups * 4;
    char *room = aligned_alloc(64, (bytes + 2 * each + 63) / 64 * 64);
    if (!room) return 1;
    s.x = (int8_t *)room;
    s.scales = (float *)(room + bytes);
    s.sums = (int32_t *)(room + bytes + each);
    /* Rows that only fill up the last block. */
    size_t rows = (size_t)p->rows;
    memset(s.x + rows * (size_t)s.padded, 0, (numbers - rows) * (size_t)s.padded);
    memset(s.scales + rows * (size_t)s.groups, 0, (numbers - rows) * (size_t)s.groups * 4);
    memset(s.sums + rows * (size_t)s.groups, 0, (numbers - rows) * (size_t)s.groups * 4);
    if (threads > 1 && s.row_blocks > 1)
        parallel(WORK[p->kernel][0], &s, (unsigned)threads, 0);
    else
        WORK[p->kernel][0](&s);
    if (threads > 1)
        parallel(WORK[p->kernel][1], &s, (unsigned)threads, 0);
    else
        WORK[p->kernel][1](&s);
    free(room);
    return 0;
}
