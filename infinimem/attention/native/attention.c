/* Softmax attention over the keys of several parts at once, as `softmax.joined_attention` does, for bfloat16.
 *
 * First, keys and values are laid out once for all queries of their head. Then the logits, the softmax and the values
 * of each block of queries are computed in one go, so that logits neither leave the core's cache nor are rounded.
 */

#include "common.h"

/* Keys are computed PANEL at a time; the last panel of a part is filled up with hidden keys. A tile of logits is TILE
 * queries by one panel, a tile of values is FEW queries by COLUMNS numbers: 24 of the 32 vector registers hold the sums
 * of a tile. */
enum { PANEL = 2 * LANES, TILE = 12, BLOCK = 2 * TILE, FEW = 6, COLUMNS = 4 * LANES, PARTS = 3 };

/* Keys (B, G, S, D) and values (B, G, S, Dv) of a part, and the queries (B, H, T, D) in the form that fits these keys.
 * key_bias (B, G, S) and query_bias (B, H, T), float32, are added to the logits; null where there is none. */
typedef struct {
    tensor queries, keys, values, key_bias, query_bias;
    int64_t count;
} asked;

/* out: (B, H, T, Dv). causal: query t sees keys 0 to t of the last part. */
typedef struct {
    asked parts[PARTS];
    tensor out;
    int64_t rows, heads, groups, tokens, width, value_width, causal;
} problem;

typedef struct {
    const problem *p;
    float scaling;
    int64_t part_count, panels, pairs, value_groups;
    /* For each KV head. keys: (panels, pairs, PANEL), two numbers of one key each. values: (value groups, panels *
     * PANEL / 2, COLUMNS), the same number of two values each. biases: (panels, PANEL). */
    uint32_t *keys, *values;
    float *biases;
    char *scratch;
    size_t scratch_size;
    atomic_llong next_panel, next_block, next_member;
} attention;

/* The working memory of one thread, for one block of queries. */
typedef struct {
    float *logits;     /* (BLOCK, panels * PANEL) */
    uint16_t *weights; /* the same */
    float *most;       /* (BLOCK, LANES) */
    uint32_t *queries; /* (BLOCK / TILE, pairs, TILE) pairs of numbers */
} desk;

static int64_t panels_of(const asked *part) { return (part->count + PANEL - 1) / PANEL; }

/* Lays out one panel of keys, and the values of these keys. */
KERNEL static void lay(attention *a, int64_t head, int64_t panel) {
    const problem *p = a->p;
    int64_t row = head / p->groups, group = head % p->groups, local = panel;
    const asked *from = p->parts;
    while (local >= panels_of(from)) local -= panels_of(from++);
    int64_t first = local * PANEL, count = from->count - first < PANEL ? from->count - first : PANEL;
    const char *keys = of(&from->keys, row, group) + first * from->keys.place;
    const char *values = of(&from->values, row, group) + first * from->values.place;
    const char *bias = of(&from->key_bias, row, group) + first * from->key_bias.place;
    uint32_t *to = a->keys + (head * a->panels + panel) * a->pairs * PANEL;
    float *biases = a->biases + (head * a->panels + panel) * PANEL;
    for (int64_t k = 0; k < PANEL; k++) {
        biases[k] = from->key_bias.at && k < count ? *(const float *)(bias + k * from->key_bias.place) : 0;
        if (k >= count) biases[k] = -__builtin_inff();
        const uint32_t *key = (const uint32_t *)(keys + k * from->keys.place);
        for (int64_t i = 0; i < a->pairs; i++) to[i * PANEL + k] = k < count ? key[i] : 0;
    }
    for (int64_t g = 0; g < a->value_groups; g++)
        for (int64_t k = 0; k < PANEL; k += 2) {
            uint32_t *at = a->values + (((head * a->value_groups + g) * a->panels + panel) * PANEL + k) / 2 * COLUMNS;
            const uint16_t *even = (const uint16_t *)(values + k * from->values.place);
            const uint16_t *odd = (const uint16_t *)(values + (k + 1) * from->values.place);
            for (int64_t c = 0; c < COLUMNS; c += LANES) {
                int64_t left = p->value_width - g * COLUMNS - c;
                __mmask16 mask = left > 0 ? lanes(left) : 0;
                __m256i low = _mm256_maskz_loadu_epi16(k < count ? mask : 0, even + g * COLUMNS + c);
                __m256i high = _mm256_maskz_loadu_epi16(k + 1 < count ? mask : 0, odd + g * COLUMNS + c);
                _mm512_store_si512(at + c, _mm512_or_si512(_mm512_cvtepu16_epi32(low),
                                                           _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16)));
            }
        }
}

/* Logits of TILE queries with one panel; seen: for each query, how many of the panel's keys it may see. */
INLINE void tile_of_logits(const uint32_t *queries, const float *query_bias, const int32_t *seen, float scaling,
                           const uint32_t *keys, const float *biases, int64_t pairs, float *logits, int64_t stride,
                           float *most) {
    __m512 sums[TILE][2];
#pragma GCC unroll 12
    for (int r = 0; r < TILE; r++) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    for (int64_t i = 0; i < pairs; i++) {
        __m512bh left = (__m512bh)_mm512_load_si512(keys + i * PANEL);
        __m512bh right = (__m512bh)_mm512_load_si512(keys + i * PANEL + LANES);
#pragma GCC unroll 12
        for (int r = 0; r < TILE; r++) {
            __m512bh pair = (__m512bh)_mm512_set1_epi32((int)queries[i * TILE + r]);
            sums[r][0] = _mm512_dpbf16_ps(sums[r][0], pair, left);
            sums[r][1] = _mm512_dpbf16_ps(sums[r][1], pair, right);
        }
    }
    const __m512 hidden = _mm512_set1_ps(-__builtin_inff()), scale = _mm512_set1_ps(scaling);
    const __m512 bias[2] = {_mm512_load_ps(biases), _mm512_load_ps(biases + LANES)};
#pragma GCC unroll 12
    for (int r = 0; r < TILE; r++) {
        uint32_t mask = seen[r] >= PANEL ? 0xffffffff : (1u << seen[r]) - 1;
        __m512 own = _mm512_set1_ps(query_bias[r]), largest = _mm512_load_ps(most + r * LANES);
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++) {
            __m512 x = _mm512_fmadd_ps(sums[r][v], scale, _mm512_add_ps(bias[v], own));
            x = _mm512_mask_mov_ps(hidden, (__mmask16)(mask >> v * LANES), x);
            _mm512_store_ps(logits + r * stride + v * LANES, x);
            largest = _mm512_max_ps(largest, x);
        }
        _mm512_store_ps(most + r * LANES, largest);
    }
}

/* e to the power of x, for x up to 0, to the precision of bfloat16. */
INLINE __m512 exponential(__m512 x) {
    x = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 rest = _mm512_sub_ps(x, whole);
    __m512 y = _mm512_set1_ps(9.61812911e-3f);
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(5.55041087e-2f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(2.40226507e-1f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(6.93147181e-1f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(1));
    return _mm512_scalef_ps(y, whole);
}

/* Computes the weights of one query before the division by their sum; returns the sum. */
KERNEL static float soften(const float *logits, const float *most, int64_t count, uint16_t *weights) {
    __m512 largest = _mm512_set1_ps(_mm512_reduce_max_ps(_mm512_load_ps(most)));
    /* This bound lies far below every finite logit. Where all logits are minus infinity, subtracting the largest one
     * would give NaN. */
    largest = _mm512_max_ps(largest, _mm512_set1_ps(-3e38f));
    __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t i = 0; i < count; i += PANEL) {
        __m512 x[2];
        for (int v = 0; v < 2; v++) {
            __m512 below = _mm512_sub_ps(_mm512_load_ps(logits + i + v * LANES), largest);
            /* With the operands in this order, NaN stays NaN. */
            x[v] = exponential(_mm512_max_ps(_mm512_set1_ps(-120), below));
            sums[v] = _mm512_add_ps(sums[v], x[v]);
        }
        _mm512_store_si512(weights + i, (__m512i)_mm512_cvtne2ps_pbh(x[1], x[0]));
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]));
}

/* Computes COLUMNS numbers of the values of FEW queries. */
INLINE void tile_of_values(const uint16_t *weights, int64_t stride, const uint32_t *values, int64_t count,
                           const float *scales, uint16_t *const *out, int64_t width) {
    __m512 sums[FEW][4];
#pragma GCC unroll 6
    for (int r = 0; r < FEW; r++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) sums[r][v] = _mm512_setzero_ps();
    for (int64_t i = 0; i < count / 2; i++) {
        __m512bh value[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) value[v] = (__m512bh)_mm512_load_si512(values + i * COLUMNS + v * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < FEW; r++) {
            __m512bh pair = (__m512bh)_mm512_set1_epi32(*(const int *)(weights + r * stride + 2 * i));
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], pair, value[v]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < FEW; r++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++)
            if (out[r] && v * LANES < width)
                _mm256_mask_storeu_epi16(
                    out[r] + v * LANES, lanes(width - v * LANES),
                    (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(sums[r][v], _mm512_set1_ps(scales[r]))));
}

/* Computes the values of BLOCK queries of one head. */
KERNEL static void answer(attention *a, int64_t row, int64_t head, int64_t start, desk *d) {
    const problem *p = a->p;
    int64_t rows = p->tokens - start < BLOCK ? p->tokens - start : BLOCK, stride = a->panels * PANEL;
    int64_t done = (rows + TILE - 1) / TILE * TILE, count = 0, panel = 0;
    int64_t kv = row * p->groups + head / (p->heads / p->groups);
    for (int64_t i = 0; i < done * LANES; i++) d->most[i] = -__builtin_inff();
    for (int64_t n = 0; n < a->part_count; n++) {
        const asked *part = &p->parts[n];
        int last = n == a->part_count - 1;
        float bias[BLOCK];
        for (int64_t r = 0; r < done; r++) {
            int64_t query = start + (r < rows ? r : rows - 1);
            const uint32_t *from = (const uint32_t *)(of(&part->queries, row, head) + query * part->queries.place);
            uint32_t *to = d->queries + r / TILE * TILE * a->pairs + r % TILE;
            for (int64_t i = 0; i < a->pairs; i++) to[i * TILE] = from[i];
            bias[r] = part->query_bias.at
                          ? *(const float *)(of(&part->query_bias, row, head) + query * part->query_bias.place)
                          : 0;
        }
        int64_t end = panel + panels_of(part);
        for (int64_t key = 0; panel < end; panel++, key += PANEL) {
            int32_t seen[BLOCK];
            if (p->causal && last && key >= start + rows) break;
            for (int64_t r = 0; r < done; r++) {
                int64_t ahead = p->causal && last ? start + (r < rows ? r : rows - 1) + 1 - key : PANEL;
                seen[r] = ahead < 0 ? 0 : ahead > PANEL ? PANEL : (int32_t)ahead;
            }
            const uint32_t *keys = a->keys + (kv * a->panels + panel) * a->pairs * PANEL;
            const float *biases = a->biases + (kv * a->panels + panel) * PANEL;
            for (int64_t r = 0; r < done; r += TILE)
                tile_of_logits(d->queries + r * a->pairs, bias + r, seen + r, a->scaling, keys, biases, a->pairs,
                               d->logits + r * stride + count, stride, d->most + r * LANES);
            count += PANEL;
        }
    }
    float scales[BLOCK];
    uint16_t *out[BLOCK];
    for (int64_t r = 0; r < done; r++) {
        scales[r] = 1 / soften(d->logits + r * stride, d->most + r * LANES, count, d->weights + r * stride);
        out[r] = r < rows ? (uint16_t *)(of(&p->out, row, head) + (start + r) * p->out.place) : NULL;
    }
    for (int64_t g = 0; g < a->value_groups; g++) {
        const uint32_t *values = a->values + (kv * a->value_groups + g) * stride / 2 * COLUMNS;
        for (int64_t r = 0; r < rows; r += FEW) {
            uint16_t *at[FEW];
            for (int i = 0; i < FEW; i++) at[i] = out[r + i] ? out[r + i] + g * COLUMNS : NULL;
            tile_of_values(d->weights + r * stride, stride, values, count, scales + r, at,
                           p->value_width - g * COLUMNS);
        }
    }
}

static void lay_panels(void *data) {
    attention *a = data;
    int64_t all = a->p->rows * a->p->groups * a->panels;
    for (int64_t i = atomic_fetch_add(&a->next_panel, 1); i < all; i = atomic_fetch_add(&a->next_panel, 1))
        lay(a, i / a->panels, i % a->panels);
}

static void answer_blocks(void *data) {
    attention *a = data;
    uintptr_t at = (uintptr_t)a->scratch + atomic_fetch_add(&a->next_member, 1) * a->scratch_size;
    int64_t blocks = (a->p->tokens + BLOCK - 1) / BLOCK, all = a->p->rows * a->p->heads * blocks;
    desk d;
    d.logits = part(&at, BLOCK * a->panels * PANEL * sizeof *d.logits);
    d.weights = part(&at, BLOCK * a->panels * PANEL * sizeof *d.weights);
    d.most = part(&at, BLOCK * LANES * sizeof *d.most);
    d.queries = part(&at, BLOCK * a->pairs * sizeof *d.queries);
    for (int64_t i = atomic_fetch_add(&a->next_block, 1); i < all; i = atomic_fetch_add(&a->next_block, 1))
        answer(a, i / blocks / a->p->heads, i / blocks % a->p->heads, i % blocks * BLOCK, &d);
}

/* Computes the values of all queries with `threads` threads of `parallel`, or with the calling thread where `parallel`
 * is null. Returns 0, or -1 where memory runs out. */
int attend(const problem *p, double scaling, team *parallel, int64_t threads) {
    attention a = {.p = p, .scaling = (float)scaling, .pairs = p->width / 2};
    if (!parallel || threads < 1) threads = 1;
    for (int n = 0; n < PARTS; n++)
        if (p->parts[n].count) {
            a.part_count = n + 1;
            a.panels += panels_of(&p->parts[n]);
        }
    a.value_groups = (p->value_width + COLUMNS - 1) / COLUMNS;
    int64_t all = p->rows * p->groups * a.panels * PANEL;
    size_t keys = all * a.pairs * sizeof *a.keys, values = all / 2 * COLUMNS * a.value_groups * sizeof *a.values;
    a.scratch_size = BLOCK * (a.panels * PANEL * (sizeof(float) + sizeof(uint16_t)) + LANES * sizeof(float)) +
                     (BLOCK * a.pairs * sizeof(uint32_t) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    char *memory = aligned_alloc(ALIGNMENT, keys + values + all * sizeof *a.biases + a.scratch_size * threads);
    if (!memory) return -1;
    a.keys = (uint32_t *)memory;
    a.values = (uint32_t *)(memory + keys);
    a.biases = (float *)(memory + keys + values);
    a.scratch = memory + keys + values + all * sizeof *a.biases;
    if (threads > 1) {
        parallel(lay_panels, &a, (unsigned)threads, 0);
        parallel(answer_blocks, &a, (unsigned)threads, 0);
    } else {
        lay_panels(&a);
        answer_blocks(&a);
    }
    free(memory);
    return 0;
}
