/* Softmax attention over the keys of several parts at once, as `softmax.joined_attention` does.
 *
 * First, keys and values are laid out once for all queries of their head. Then the logits, the softmax and the values
 * of each block of queries are computed in one go, so that logits neither leave the core's cache nor are rounded.
 */

/* Keys are computed PANEL at a time; the last panel of a part is filled up with hidden keys. A product of logits has
 * ASKING queries and one panel, a product of values has ANSWERED queries and COLUMNS numbers. Without tiles, the vector
 * registers hold the sums of a product, three quarters of all registers. */
enum { PANEL = 2 * LANES, PARTS = 3 };
#if TILES
enum { ASKING = TILE_ROWS, BLOCK = ASKING, ANSWERED = TILE_ROWS, VALUE_VECTORS = 2, ROUNDED_CELLS = TILE_CELLS };
#elif FEW_REGISTERS
enum { ASKING = 6, BLOCK = 24, ANSWERED = 6, VALUE_VECTORS = 2, ROUNDED_CELLS = 1 };
#else
enum { ASKING = 12, BLOCK = 24, ANSWERED = 6, VALUE_VECTORS = 4, ROUNDED_CELLS = 1 };
#endif
enum { VALUE_COLUMNS = VALUE_VECTORS * LANES };

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
    /* used: cells of a key; cells: the same, rounded up. stride: numbers from the logits of one query to the next. */
    int64_t part_count, panels, used, cells, value_groups, stride;
    /* For each KV head. keys: (panels, cells, PANEL). values: (value groups, panels * PANEL / PER_CELL, VALUE_COLUMNS),
     * a cell being the same number of one value, or of two. biases: (panels, PANEL). */
    cell *keys, *values;
    float *biases;
    char *scratch;
    size_t scratch_size;
    atomic_llong next_panel, next_block, next_member;
} attention;

/* The working memory of one thread, for one block of queries. */
typedef struct {
    float *logits;   /* (BLOCK, stride) */
    number *weights; /* the same; in float32 they take the place of the logits */
    float *most;     /* (BLOCK, LANES) */
    cell *queries;   /* with tiles (BLOCK, cells), else (BLOCK / ASKING, cells, ASKING) */
    float *answers;  /* with tiles (BLOCK, VALUE_COLUMNS) */
} desk;

static int64_t panels_of(const asked *part) { return (part->count + PANEL - 1) / PANEL; }

/* Lays out VALUE_COLUMNS numbers of a panel's values. */
KERNEL static void lay_values(const asked *from, const char *values, int64_t count, int64_t first, int64_t width,
                              cell *to) {
    for (int64_t k = 0; k < PANEL; k += PER_CELL)
        for (int64_t c = 0; c < VALUE_COLUMNS; c += LANES) {
            const number *even = (const number *)(values + k * from->values.place) + first + c;
            int64_t left = width - first - c;
            cell *at = to + k / PER_CELL * VALUE_COLUMNS + c;
#if BFLOAT16_CELLS
            const number *odd = (const number *)(values + (k + 1) * from->values.place) + first + c;
            __m256i low = _mm256_maskz_loadu_epi16(lanes(k < count ? left : 0), even);
            __m256i high = _mm256_maskz_loadu_epi16(lanes(k + 1 < count ? left : 0), odd);
            _mm512_store_si512(at, _mm512_or_si512(_mm512_cvtepu16_epi32(low),
                                                   _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16)));
#else
            store(at, load_part(even, k < count ? left : 0));
#endif
        }
}

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
    cell *to = a->keys + (head * a->panels + panel) * a->cells * PANEL;
    float *biases = a->biases + (head * a->panels + panel) * PANEL;
    for (int64_t k = 0; k < PANEL; k++) {
        biases[k] = from->key_bias.at && k < count ? *(const float *)(bias + k * from->key_bias.place) : 0;
        if (k >= count) biases[k] = -__builtin_inff();
        const cell *key = (const cell *)(keys + k * from->keys.place);
        for (int64_t i = 0; i < a->cells; i++) to[i * PANEL + k] = k < count && i < a->used ? key[i] : 0;
    }
    for (int64_t g = 0; g < a->value_groups; g++)
        lay_values(from, values, count, g * VALUE_COLUMNS, p->value_width,
                   a->values + ((head * a->value_groups + g) * a->panels + panel) * PANEL / PER_CELL * VALUE_COLUMNS);
}

/* Scales the products of one query with a panel, and adds the biases. seen: how many of the panel's keys the query may
 * see. */
INLINE void finish_logits(const vec *products, float scaling, const float *biases, float query_bias, int64_t seen,
                          float *logits, float *most) {
    vec largest = load(most);
#pragma GCC unroll 2
    for (int v = 0; v < 2; v++) {
        vec x = multiply_add(products[v], all(scaling), load(biases + v * LANES) + all(query_bias));
        x = chosen(first_lanes(seen - v * LANES), x, all(-__builtin_inff()));
        store(logits + v * LANES, x);
        largest = larger(largest, x);
    }
    store(most, largest);
}

/* Logits of ASKING queries with one panel; seen: for each query, how many of the panel's keys it may see. */
INLINE void some_logits(const cell *queries, const float *query_bias, const int64_t *seen, float scaling,
                        const cell *keys, const float *biases, int64_t count, float *logits, int64_t stride,
                        float *most) {
#if TILES
    tile_products(queries, count * sizeof *queries, keys, PANEL * sizeof *keys, count, logits, stride * sizeof *logits);
    for (int r = 0; r < ASKING; r++) {
        float *at = logits + r * stride;
        vec products[2] = {load(at), load(at + LANES)};
        finish_logits(products, scaling, biases, query_bias[r], seen[r], at, most + r * LANES);
    }
#else
    vec sums[ASKING][2];
#pragma GCC unroll 12
    for (int r = 0; r < ASKING; r++) sums[r][0] = sums[r][1] = zero();
    for (int64_t i = 0; i < count; i++) {
        cells_of_lanes left = load_cells(keys + i * PANEL), right = load_cells(keys + i * PANEL + LANES);
#pragma GCC unroll 12
        for (int r = 0; r < ASKING; r++) {
            cells_of_lanes query = all_cells(queries[i * ASKING + r]);
            sums[r][0] = add_products(sums[r][0], query, left);
            sums[r][1] = add_products(sums[r][1], query, right);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < ASKING; r++)
        finish_logits(sums[r], scaling, biases, query_bias[r], seen[r], logits + r * stride, most + r * LANES);
#endif
}

/* Below, e to this power is no longer a normal number. */
enum { LEAST_EXPONENT = -87 };

/* e to the power of x, for x from LEAST_EXPONENT to 0, to the precision of the numbers. */
INLINE vec exponential(vec x) {
    /* Added to this number, x is rounded, and stands in the lowest bits. */
    const float high = 0x1.8p23f;
    vec shifted = multiply_add(x, all(1.44269504f), all(high)), rounded = shifted - all(high);
    vec rest = multiply_add(x, all(1.44269504f), -rounded);
#if BFLOAT16_CELLS
    vec y = all(9.61812911e-3f);
#else
    vec y = all(1.33333558e-3f);
    y = multiply_add(y, rest, all(9.61812911e-3f));
#endif
    y = multiply_add(y, rest, all(5.55041087e-2f));
    y = multiply_add(y, rest, all(2.40226507e-1f));
    y = multiply_add(y, rest, all(6.93147181e-1f));
    y = multiply_add(y, rest, all(1));
    return add_to_exponent(y, shifted);
}

/* Computes the weights of one query before the division by their sum; returns the sum. */
KERNEL static float soften(const float *logits, const float *most, int64_t count, number *weights) {
    /* This bound lies far below every finite logit. Where all logits are minus infinity, subtracting the largest one
     * would give NaN. */
    vec largest = larger(all(most_of(load(most))), all(-3e38f)), sums[2] = {zero(), zero()};
    for (int64_t i = 0; i < count; i += PANEL) {
        vec x[2];
        for (int v = 0; v < 2; v++) {
            vec below = load(logits + i + v * LANES) - largest;
            /* With the operands in this order, NaN stays NaN. */
            x[v] = exponential(larger(all(LEAST_EXPONENT), below));
            sums[v] = sums[v] + x[v];
            store_numbers(weights + i + v * LANES, LANES, x[v]);
        }
    }
    return sum_of(sums[0] + sums[1]);
}

/* Computes VALUE_COLUMNS numbers of the values of ANSWERED queries. */
INLINE void some_values(const number *weights, int64_t stride, const cell *values, int64_t count, const float *scales,
                        char *const *out, int64_t width, float *answers) {
#if TILES
    tile_products(weights, stride * sizeof *weights, values, VALUE_COLUMNS * sizeof *values, count / PER_CELL, answers,
                  VALUE_COLUMNS * sizeof *answers);
    for (int r = 0; r < ANSWERED; r++)
        for (int v = 0; v < VALUE_VECTORS; v++)
            if (out[r] && v * LANES < width)
                store_numbers((number *)out[r] + v * LANES, width - v * LANES,
                              load(answers + r * VALUE_COLUMNS + v * LANES) * all(scales[r]));
#else
    vec sums[ANSWERED][VALUE_VECTORS];
#pragma GCC unroll 6
    for (int r = 0; r < ANSWERED; r++)
#pragma GCC unroll 4
        for (int v = 0; v < VALUE_VECTORS; v++) sums[r][v] = zero();
    for (int64_t i = 0; i < count / PER_CELL; i++) {
        cells_of_lanes value[VALUE_VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VALUE_VECTORS; v++) value[v] = load_cells(values + i * VALUE_COLUMNS + v * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < ANSWERED; r++) {
            cells_of_lanes weight = all_cells(((const cell *)(weights + r * stride))[i]);
#pragma GCC unroll 4
            for (int v = 0; v < VALUE_VECTORS; v++) sums[r][v] = add_products(sums[r][v], weight, value[v]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < ANSWERED; r++)
#pragma GCC unroll 4
        for (int v = 0; v < VALUE_VECTORS; v++)
            if (out[r] && v * LANES < width)
                store_numbers((number *)out[r] + v * LANES, width - v * LANES, sums[r][v] * all(scales[r]));
#endif
}

/* Computes the values of BLOCK queries of one head. */
KERNEL static void answer(attention *a, int64_t row, int64_t head, int64_t start, desk *d) {
    const problem *p = a->p;
    int64_t rows = p->tokens - start < BLOCK ? p->tokens - start : BLOCK, stride = a->stride;
    int64_t done = (rows + ASKING - 1) / ASKING * ASKING, count = 0, panel = 0;
    int64_t kv = row * p->groups + head / (p->heads / p->groups);
    for (int64_t i = 0; i < done * LANES; i++) d->most[i] = -__builtin_inff();
    for (int64_t n = 0; n < a->part_count; n++) {
        const asked *part = &p->parts[n];
        int last = n == a->part_count - 1;
        float bias[BLOCK];
        for (int64_t r = 0; r < done; r++) {
            int64_t query = start + (r < rows ? r : rows - 1);
            const cell *from = (const cell *)(of(&part->queries, row, head) + query * part->queries.place);
#if TILES
            memcpy(d->queries + r * a->cells, from, a->used * sizeof *from);
            memset(d->queries + r * a->cells + a->used, 0, (a->cells - a->used) * sizeof *from);
#else
            cell *to = d->queries + r / ASKING * ASKING * a->cells + r % ASKING;
            for (int64_t i = 0; i < a->cells; i++) to[i * ASKING] = from[i];
#endif
            bias[r] = part->query_bias.at
                          ? *(const float *)(of(&part->query_bias, row, head) + query * part->query_bias.place)
                          : 0;
        }
        int64_t end = panel + panels_of(part);
        for (int64_t key = 0; panel < end; panel++, key += PANEL) {
            int64_t seen[BLOCK];
            if (p->causal && last && key >= start + rows) break;
            for (int64_t r = 0; r < done; r++)
                seen[r] = p->causal && last ? start + (r < rows ? r : rows - 1) + 1 - key : PANEL;
            const cell *keys = a->keys + (kv * a->panels + panel) * a->cells * PANEL;
            const float *biases = a->biases + (kv * a->panels + panel) * PANEL;
            for (int64_t r = 0; r < done; r += ASKING)
                some_logits(d->queries + r * a->cells, bias + r, seen + r, a->scaling, keys, biases, a->cells,
                            d->logits + r * stride + count, stride, d->most + r * LANES);
            count += PANEL;
        }
    }
    float scales[BLOCK];
    char *out[BLOCK];
    for (int64_t r = 0; r < done; r++) {
        scales[r] = 1 / soften(d->logits + r * stride, d->most + r * LANES, count, d->weights + r * stride);
        out[r] = r < rows ? (char *)of(&p->out, row, head) + (start + r) * p->out.place : NULL;
    }
    for (int64_t g = 0; g < a->value_groups; g++) {
        const cell *values = a->values + (kv * a->value_groups + g) * a->panels * PANEL / PER_CELL * VALUE_COLUMNS;
        for (int64_t r = 0; r < rows; r += ANSWERED) {
            char *at[ANSWERED];
            for (int i = 0; i < ANSWERED; i++)
                at[i] = out[r + i] ? out[r + i] + g * VALUE_COLUMNS * sizeof(number) : NULL;
            some_values(d->weights + r * stride, stride, values, count, scales + r, at,
                        p->value_width - g * VALUE_COLUMNS, d->answers);
        }
    }
}

static void lay_panels(void *data) {
    attention *a = data;
    int64_t all = a->p->rows * a->p->groups * a->panels;
    for (int64_t i = atomic_fetch_add(&a->next_panel, 1); i < all; i = atomic_fetch_add(&a->next_panel, 1))
        lay(a, i / a->panels, i % a->panels);
}

/* Lays out the working memory of a thread, which begins at `at`; returns its end. */
static uintptr_t set_desk(const attention *a, uintptr_t at, desk *d) {
    d->logits = part(&at, BLOCK * a->stride * sizeof *d->logits);
    d->weights = BFLOAT16_CELLS ? part(&at, BLOCK * a->stride * sizeof *d->weights) : (number *)d->logits;
    d->most = part(&at, BLOCK * LANES * sizeof *d->most);
    d->queries = part(&at, BLOCK * a->cells * sizeof *d->queries);
    d->answers = part(&at, TILES ? BLOCK * VALUE_COLUMNS * sizeof *d->answers : 0);
    return at;
}

static void answer_blocks(void *data) {
    attention *a = data;
    int64_t blocks = (a->p->tokens + BLOCK - 1) / BLOCK, all = a->p->rows * a->p->heads * blocks;
    desk d;
    set_desk(a, (uintptr_t)a->scratch + atomic_fetch_add(&a->next_member, 1) * a->scratch_size, &d);
#if TILES
    tile_shapes before = begin_tiles();
#endif
    for (int64_t i = atomic_fetch_add(&a->next_block, 1); i < all; i = atomic_fetch_add(&a->next_block, 1))
        answer(a, i / blocks / a->p->heads, i / blocks % a->p->heads, i % blocks * BLOCK, &d);
#if TILES
    end_tiles(&before);
#endif
}

/* Computes the values of all queries with `threads` threads of `parallel`, or with the calling thread where `parallel`
 * is null. Returns 0, or -1 where memory runs out. */
int NAME(attend)(const problem *p, double scaling, team *parallel, int64_t threads) {
    attention a = {.p = p, .scaling = (float)scaling, .used = p->width / PER_CELL};
    if (!parallel || threads < 1) threads = 1;
    for (int n = 0; n < PARTS; n++)
        if (p->parts[n].count) {
            a.part_count = n + 1;
            a.panels += panels_of(&p->parts[n]);
        }
    a.cells = (a.used + ROUNDED_CELLS - 1) / ROUNDED_CELLS * ROUNDED_CELLS;
    a.value_groups = (p->value_width + VALUE_COLUMNS - 1) / VALUE_COLUMNS;
    /* Rows of a tile that lie a power of two apart would share a few places of the cache. */
    a.stride = a.panels * PANEL + (TILES ? PANEL : 0);
    int64_t all = p->rows * p->groups * a.panels * PANEL;
    uintptr_t size = 0;
    part(&size, all * a.cells * sizeof *a.keys);
    uintptr_t values = size;
    part(&size, all / PER_CELL * VALUE_COLUMNS * a.value_groups * sizeof *a.values);
    uintptr_t biases = size;
    part(&size, all * sizeof *a.biases);
    desk d;
    a.scratch_size = set_desk(&a, 0, &d);
    char *memory = aligned_alloc(ALIGNMENT, size + a.scratch_size * threads);
    if (!memory) return -1;
    a.keys = (cell *)memory;
    a.values = (cell *)(memory + values);
    a.biases = (float *)(memory + biases);
    a.scratch = memory + size;
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
