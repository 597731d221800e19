/* Rotary position embeddings in one pass. In float32 the results have the same bits as those of `rotary.rotate`. */

#include "common.h"

/* x and out: (B, H, T, D), FLOAT32 or BFLOAT16; cosine and sine: (B, T, R) float32, R <= D, the rest of D is copied. */
typedef struct {
    tensor x, out, cosine, sine;
    int64_t rows, heads, tokens, width, turned, kind, out_kind;
} rotation;

typedef struct {
    const rotation *r;
    atomic_llong next;
} turning;

/* Tokens that a thread takes at a time. */
enum { STEP = 64 };

INLINE __m512 get(const char *from, int64_t kind, int64_t at, __mmask16 mask) {
    if (kind == FLOAT32) return _mm512_maskz_loadu_ps(mask, (const float *)from + at);
    return widened(_mm256_maskz_loadu_epi16(mask, (const uint16_t *)from + at));
}

INLINE void put(char *to, int64_t kind, int64_t at, __mmask16 mask, __m512 x) {
    if (kind == FLOAT32)
        _mm512_mask_storeu_ps((float *)to + at, mask, x);
    else
        _mm256_mask_storeu_epi16((uint16_t *)to + at, mask, (__m256i)_mm512_cvtneps_pbh(x));
}

KERNEL static void turn(const rotation *r, int64_t row, int64_t head, int64_t token) {
    const char *x = of(&r->x, row, head) + token * r->x.place;
    char *out = (char *)of(&r->out, row, head) + token * r->out.place;
    const float *cosine = (const float *)(of(&r->cosine, row, 0) + token * r->cosine.place);
    const float *sine = (const float *)(of(&r->sine, row, 0) + token * r->sine.place);
    int64_t half = r->turned / 2;
    for (int64_t i = 0; i < half; i += LANES) {
        __mmask16 mask = lanes(half - i);
        __m512 first = get(x, r->kind, i, mask), second = get(x, r->kind, half + i, mask);
        __m512 a = _mm512_mul_ps(first, _mm512_maskz_loadu_ps(mask, cosine + i));
        __m512 b = _mm512_mul_ps(second, _mm512_maskz_loadu_ps(mask, sine + i));
        put(out, r->out_kind, i, mask, _mm512_sub_ps(a, b));
        a = _mm512_mul_ps(second, _mm512_maskz_loadu_ps(mask, cosine + half + i));
        b = _mm512_mul_ps(first, _mm512_maskz_loadu_ps(mask, sine + half + i));
        put(out, r->out_kind, half + i, mask, _mm512_add_ps(a, b));
    }
    for (int64_t i = r->turned; i < r->width; i += LANES) {
        __mmask16 mask = lanes(r->width - i);
        put(out, r->out_kind, i, mask, get(x, r->kind, i, mask));
    }
}

static void turn_steps(void *data) {
    turning *t = data;
    const rotation *r = t->r;
    int64_t steps = (r->tokens + STEP - 1) / STEP, all = r->rows * r->heads * steps;
    for (int64_t i = atomic_fetch_add(&t->next, 1); i < all; i = atomic_fetch_add(&t->next, 1)) {
        int64_t first = i % steps * STEP, last = first + STEP < r->tokens ? first + STEP : r->tokens;
        for (int64_t token = first; token < last; token++)
            turn(r, i / steps / r->heads, i / steps % r->heads, token);
    }
}

/* Rotates all vectors with `threads` threads of `parallel`, or with the calling thread where `parallel` is null. */
void rotate(const rotation *r, team *parallel, int64_t threads) {
    turning t = {r, 0};
    if (parallel && threads > 1)
        parallel(turn_steps, &t, (unsigned)threads, 0);
    else
        turn_steps(&t);
}
