/* Rotary position embeddings in one pass, and the unpacking of states. The results have the same bits as those of
 * `rotary.rotate` and `packing.unpacked`. */

/* x and out: (B, H, T, D), out FLOAT32 or BFLOAT16; scale: (B, H, T) float32, of INT8 x alone; cosine and sine: (B, T, R)
 * float32, R <= D. The rest of D is copied. */
typedef struct {
    tensor x, out, scale, cosine, sine;
    int64_t rows, heads, tokens, width, turned, kind, out_kind;
} rotation;

typedef struct {
    const rotation *r;
    atomic_llong next;
} turning;

/* Tokens that a thread takes at a time. */
enum { STEP = 64 };

INLINE vec get(const char *from, int64_t kind, float scale, int64_t at, int64_t left) {
    if (kind == INT8) return load_int8(from + at, left) * all(scale);
    return kind == FLOAT32 ? load_part((const float *)from + at, left) : load_bfloat16((const uint16_t *)from + at, left);
}

INLINE void put(char *to, int64_t kind, int64_t at, int64_t left, vec x) {
    if (kind == FLOAT32)
        store_part((float *)to + at, left, x);
    else
        store_bfloat16((uint16_t *)to + at, left, x);
}

KERNEL static void turn(const rotation *r, int64_t row, int64_t head, int64_t token) {
    const char *x = of(&r->x, row, head) + token * r->x.place;
    char *out = (char *)of(&r->out, row, head) + token * r->out.place;
    const float *cosine = (const float *)(of(&r->cosine, row, 0) + token * r->cosine.place);
    const float *sine = (const float *)(of(&r->sine, row, 0) + token * r->sine.place);
    float scale = r->kind == INT8 ? *(const float *)(of(&r->scale, row, head) + token * r->scale.place) : 1;
    int64_t half = r->turned / 2;
    for (int64_t i = 0; i < half; i += LANES) {
        int64_t left = half - i;
        vec first = get(x, r->kind, scale, i, left), second = get(x, r->kind, scale, half + i, left);
        vec a = first * load_part(cosine + i, left), b = second * load_part(sine + i, left);
        put(out, r->out_kind, i, left, a - b);
        a = second * load_part(cosine + half + i, left), b = first * load_part(sine + half + i, left);
        put(out, r->out_kind, half + i, left, a + b);
    }
    for (int64_t i = r->turned; i < r->width; i += LANES)
        put(out, r->out_kind, i, r->width - i, get(x, r->kind, scale, i, r->width - i));
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
void NAME(rotate)(const rotation *r, team *parallel, int64_t threads) {
    turning t = {r, 0};
    if (parallel && threads > 1)
        parallel(turn_steps, &t, (unsigned)threads, 0);
    else
        turn_steps(&t);
}
