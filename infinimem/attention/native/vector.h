/* Vectors of LANES floats, and the numbers that are multiplied.
 *
 * A file of kernels defines before:
 * TARGET: the instructions that the compiler may use.
 * NAME(function): the function's name, with an ending of the file's own.
 * BFLOAT16_CELLS: 1 where products are of bfloat16, 0 where they are of float32.
 * TILES: 1 where the processor multiplies whole tiles (AMX).
 * WIDE: 1 for the vectors of AVX-512, 0 for those of 256 bits (x86) or 128 bits (NEON).
 *
 * A cell is what one lane multiplies by one instruction: a pair of bfloat16 numbers, or one float32 number.
 */

#ifdef __x86_64__
#include <immintrin.h>
#define KERNEL __attribute__((target(TARGET)))
#define INLINE __attribute__((target(TARGET), always_inline)) static inline
#else
#include <arm_neon.h>
#define KERNEL
#define INLINE __attribute__((always_inline)) static inline
#endif

/* 16 vector registers, where others have 32. */
#if defined(__x86_64__) && !WIDE
#define FEW_REGISTERS 1
#else
#define FEW_REGISTERS 0
#endif

#if WIDE

enum { LANES = 16 };
typedef __m512 vec;
typedef __m512i whole;

INLINE __mmask16 lanes(int64_t left) { return left >= LANES ? 0xffff : left > 0 ? (__mmask16)((1u << left) - 1) : 0; }
INLINE vec all(float x) { return _mm512_set1_ps(x); }
INLINE whole all_whole(int32_t x) { return _mm512_set1_epi32(x); }
INLINE whole counting(void) { return _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0); }
INLINE vec load(const float *from) { return _mm512_load_ps(from); }
INLINE void store(float *to, vec x) { _mm512_store_ps(to, x); }
INLINE whole load_whole(const int32_t *from) { return _mm512_load_si512(from); }
INLINE void store_whole(int32_t *to, whole x) { _mm512_store_si512(to, x); }
/* The first `left` numbers, which need not be aligned; zero in all other lanes. */
INLINE vec load_part(const float *from, int64_t left) { return _mm512_maskz_loadu_ps(lanes(left), from); }
INLINE void store_part(float *to, int64_t left, vec x) { _mm512_mask_storeu_ps(to, lanes(left), x); }
INLINE vec load_int8(const char *from, int64_t left) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(lanes(left), from)));
}
INLINE vec load_bfloat16(const uint16_t *from, int64_t left) {
    __m256i half = _mm256_maskz_loadu_epi16(lanes(left), from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
INLINE vec multiply_add(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vec larger(vec a, vec b) { return _mm512_max_ps(a, b); } /* b where one of them is NaN */
INLINE vec absolute(vec x) { return _mm512_abs_ps(x); }
INLINE whole add_whole(whole a, whole b) { return _mm512_add_epi32(a, b); }
INLINE float sum_of(vec x) { return _mm512_reduce_add_ps(x); }
INLINE float most_of(vec x) { return _mm512_reduce_max_ps(x); }
INLINE float least_of(vec x) { return _mm512_reduce_min_ps(x); }
/* Exact enough for a search: fourteen bits or more. */
INLINE vec nearly_reciprocal(vec x) { return _mm512_rcp14_ps(x); }
/* Of lanes of a that are less than those of b; false for NaN. */
typedef __mmask16 choice;
INLINE choice less(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
INLINE choice first_lanes(int64_t count) { return lanes(count); }
INLINE vec chosen(choice which, vec a, vec b) { return _mm512_mask_mov_ps(b, which, a); }
INLINE whole chosen_whole(choice which, whole a, whole b) { return _mm512_mask_mov_epi32(b, which, a); }
/* y times two to the power of the number in the lowest bits of x. */
INLINE vec add_to_exponent(vec y, vec x) {
    __m512i power = _mm512_slli_epi32(_mm512_castps_si512(x), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(y), power));
}
INLINE whole nearest(vec x) { return _mm512_cvt_roundps_epi32(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE void store_int8(char *to, int64_t left, whole x) {
    x = _mm512_max_epi32(_mm512_min_epi32(x, _mm512_set1_epi32(127)), _mm512_set1_epi32(-127));
    _mm_mask_storeu_epi8(to, lanes(left), _mm512_cvtepi32_epi8(x));
}
/* To the nearest bfloat16 number. */
INLINE vec rounded_to_bfloat16(vec x) {
#if BFLOAT16_CELLS
    __m512i bits = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
#else
    __m512i bits = _mm512_castps_si512(x), one = _mm512_set1_epi32(1);
    __m512i even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), even);
    /* Rounding up must not make infinity of NaN. */
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_castsi512_ps(_mm512_and_si512(rounded, _mm512_set1_epi32((int)0xffff0000)));
#endif
}
INLINE void store_bfloat16(uint16_t *to, int64_t left, vec x) {
#if BFLOAT16_CELLS
    _mm256_mask_storeu_epi16(to, lanes(left), (__m256i)_mm512_cvtneps_pbh(x));
#else
    __m512i bits = _mm512_castps_si512(rounded_to_bfloat16(x));
    _mm256_mask_storeu_epi16(to, lanes(left), _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
#endif
}

#else

/* Vectors of GCC and clang, whose operators work lane by lane. */
#ifdef __x86_64__
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
typedef float vec __attribute__((vector_size(4 * LANES), may_alias));
typedef int32_t whole __attribute__((vector_size(4 * LANES), may_alias));
typedef uint32_t bits_of __attribute__((vector_size(4 * LANES), may_alias));

INLINE vec all(float x) { return x - (vec){0}; }
INLINE whole all_whole(int32_t x) { return x - (whole){0}; }
INLINE whole counting(void) {
    static const int32_t numbers[] = {0, 1, 2, 3, 4, 5, 6, 7};
    whole x;
    memcpy(&x, numbers, sizeof x);
    return x;
}
INLINE vec load(const float *from) { return *(const vec *)from; }
INLINE void store(float *to, vec x) { *(vec *)to = x; }
INLINE whole load_whole(const int32_t *from) { return *(const whole *)from; }
INLINE void store_whole(int32_t *to, whole x) { *(whole *)to = x; }
/* The first `left` numbers, which need not be aligned; zero in all other lanes. */
INLINE vec load_part(const float *from, int64_t left) {
    vec x = {0};
    if (left >= LANES)
        memcpy(&x, from, sizeof x);
    else
        for (int i = 0; i < LANES; i++) x[i] = i < left ? from[i] : 0;
    return x;
}
INLINE void store_part(float *to, int64_t left, vec x) {
    if (left >= LANES)
        memcpy(to, &x, sizeof x);
    else
        for (int i = 0; i < left; i++) to[i] = x[i];
}
INLINE vec load_int8(const char *from, int64_t left) {
    typedef int8_t bytes __attribute__((vector_size(LANES)));
    bytes x = {0};
    if (left >= LANES)
        memcpy(&x, from, sizeof x);
    else
        for (int i = 0; i < LANES; i++) x[i] = i < left ? (int8_t)from[i] : 0;
    return __builtin_convertvector(__builtin_convertvector(x, whole), vec);
}
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));
INLINE vec load_bfloat16(const uint16_t *from, int64_t left) {
    halves x = {0};
    if (left >= LANES)
        memcpy(&x, from, sizeof x);
    else
        for (int i = 0; i < LANES; i++) x[i] = i < left ? from[i] : 0;
    return (vec)(__builtin_convertvector(x, bits_of) << 16);
}
typedef whole choice;
/* Lanes of a that are less than those of b; false for NaN. */
INLINE choice less(vec a, vec b) { return a < b; }
INLINE choice first_lanes(int64_t count) { return counting() < all_whole(count > LANES ? LANES : (int32_t)count); }
INLINE whole chosen_whole(choice which, whole a, whole b) { return (a & which) | (b & ~which); }
INLINE vec chosen(choice which, vec a, vec b) { return (vec)chosen_whole(which, (whole)a, (whole)b); }
INLINE vec absolute(vec x) { return (vec)((whole)x & 0x7fffffff); }
INLINE whole add_whole(whole a, whole b) { return a + b; }
/* y times two to the power of the number in the lowest bits of x. */
INLINE vec add_to_exponent(vec y, vec x) { return (vec)((whole)y + (whole)((bits_of)x << 23)); }
#ifdef __x86_64__
INLINE vec multiply_add(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vec larger(vec a, vec b) { return _mm256_max_ps(a, b); } /* b where one of them is NaN */
/* Exact enough for a search: fourteen bits or more. */
INLINE vec nearly_reciprocal(vec x) {
    vec near = _mm256_rcp_ps(x);
    return near * (2 - x * near);
}
INLINE whole nearest(vec x) { return (whole)_mm256_cvtps_epi32(x); }
#else
INLINE vec multiply_add(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
INLINE vec larger(vec a, vec b) { return chosen(a > b, a, b); } /* b where one of them is NaN */
INLINE vec nearly_reciprocal(vec x) { return 1 / x; }
INLINE whole nearest(vec x) { return (whole)vcvtnq_s32_f32(x); }
#endif
INLINE float sum_of(vec x) {
    float sums[LANES];
    memcpy(sums, &x, sizeof sums);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) sums[i] += sums[i + half];
    return sums[0];
}
INLINE float most_of(vec x) {
    float most = x[0];
    for (int i = 1; i < LANES; i++) most = x[i] > most ? x[i] : most;
    return most;
}
INLINE float least_of(vec x) { return -most_of(-x); }
INLINE void store_int8(char *to, int64_t left, whole x) {
    x = chosen_whole(x > 127, all_whole(127), x);
    x = chosen_whole(x < -127, all_whole(-127), x);
    typedef int8_t bytes __attribute__((vector_size(LANES)));
    bytes small = __builtin_convertvector(x, bytes);
    if (left >= LANES)
        memcpy(to, &small, sizeof small);
    else
        for (int i = 0; i < left; i++) to[i] = (char)small[i];
}
/* To the nearest bfloat16 number. */
INLINE vec rounded_to_bfloat16(vec x) {
    bits_of bits = (bits_of)x, rounded = bits + 0x7fff + (bits >> 16 & 1);
    /* Rounding up must not make infinity of NaN. */
    rounded = (bits_of)chosen_whole(x != x, (whole)(bits | 0x400000), (whole)rounded);
    return (vec)(rounded & 0xffff0000);
}
INLINE void store_bfloat16(uint16_t *to, int64_t left, vec x) {
    halves half = __builtin_convertvector((bits_of)rounded_to_bfloat16(x) >> 16, halves);
    if (left >= LANES)
        memcpy(to, &half, sizeof half);
    else
        for (int i = 0; i < left; i++) to[i] = half[i];
}

#endif

#if BFLOAT16_CELLS

typedef uint32_t cell;
typedef uint16_t number;
typedef __m512bh cells_of_lanes;
enum { PER_CELL = 2 };
INLINE cells_of_lanes load_cells(const cell *from) { return (cells_of_lanes)_mm512_load_si512(from); }
INLINE cells_of_lanes all_cells(cell x) { return (cells_of_lanes)_mm512_set1_epi32((int)x); }
INLINE vec add_products(vec sum, cells_of_lanes a, cells_of_lanes b) { return _mm512_dpbf16_ps(sum, a, b); }
INLINE vec load_numbers(const number *from, int64_t left) { return load_bfloat16(from, left); }
INLINE void store_numbers(number *to, int64_t left, vec x) { store_bfloat16(to, left, x); }

#else

typedef float cell;
typedef float number;
typedef vec cells_of_lanes;
enum { PER_CELL = 1 };
INLINE cells_of_lanes load_cells(const cell *from) { return load(from); }
INLINE cells_of_lanes all_cells(cell x) { return all(x); }
INLINE vec add_products(vec sum, cells_of_lanes a, cells_of_lanes b) { return multiply_add(a, b, sum); }
INLINE vec load_numbers(const number *from, int64_t left) { return load_part(from, left); }
INLINE void store_numbers(number *to, int64_t left, vec x) { store_part(to, left, x); }

#endif

INLINE vec zero(void) { return all(0); }

#ifdef __x86_64__
INLINE float root(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }
#else
INLINE float root(float x) { return vget_lane_f32(vsqrt_f32(vdup_n_f32(x)), 0); }
#endif
