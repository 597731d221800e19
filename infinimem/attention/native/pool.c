/* The end of a segment in one pass: places of several states, one after the other, are merged by Ward's criterion as
 * `slots.ward_merge` does, and packed as `packing.pack` does. The search for partners is computed in bfloat16.
 */

#include "common.h"

int usable(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bf16");
}

/* A tile of products is ROWS places that give by COLUMNS places that take. 24 of the 32 vector registers hold the sums
 * of a tile. */
enum { ROWS = 8, VECTORS = 3, COLUMNS = VECTORS * LANES, RUNS = 3 };

/* A state of `places` places a head. Only INT8 has scales; where `counts.at` is null, every count is one. */
typedef struct {
    tensor keys, values, keys_scale, values_scale, counts;
    int64_t places, keys_kind, values_kind;
} run;

/* `rows` times `heads` memories: the places of `runs` go into `into`, an INT8 state of at most `capacity` places.
 * order: all places, in the order in which even places meet odd ones. */
typedef struct {
    run runs[RUNS];
    run into;
    int64_t rows, heads, capacity, key_width, value_width;
    const int64_t *order;
} job;

typedef struct {
    const job *jobs;
    int64_t count;
    double balance;
    char *scratch;
    size_t scratch_size;
    atomic_llong next_item, next_member;
} task;

/* The working memory of one thread, for N places of F numbers. */
typedef struct {
    float *x;           /* (N, F) */
    uint16_t *rounded;  /* (N, pairs of F * 2) bfloat16, centred and scaled */
    float *counts, *ease, *norms; /* (N,): number of tokens, its reciprocal, squared length of the rounded vector */
    float *scale, *shift;         /* (F,) */
    int32_t *kept, *next_kept;    /* (N,) places that are left, in order */
    uint32_t *panel;    /* (pairs, COLUMNS) of the places that take */
    float *panel_norms, *panel_ease; /* (COLUMNS,) */
    float *best;        /* (evens, LANES): least cost so far; each lane looks at every sixteenth partner */
    int32_t *best_index;
    uint32_t *cost;     /* (evens,) the bits of the least cost */
    int32_t *partner;   /* (evens,) */
    int32_t *first, *following; /* for each odd place, the linked list of the places that it takes in */
} workspace;

KERNEL static void unpack(const char *from, int64_t kind, float scale, int64_t width, float *to) {
    for (int64_t i = 0; i < width; i += LANES) {
        __mmask16 mask = lanes(width - i);
        __m512 x;
        if (kind == INT8)
            x = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, from + i))),
                              _mm512_set1_ps(scale));
        else if (kind == FLOAT32)
            x = _mm512_maskz_loadu_ps(mask, (const float *)from + i);
        else
            x = widened(_mm256_maskz_loadu_epi16(mask, (const uint16_t *)from + i));
        _mm512_mask_storeu_ps(to + i, mask, x);
    }
}

/* Unpacks the places of all runs, one after the other; returns their number. */
KERNEL static int64_t gather(const job *j, int64_t row, int64_t head, workspace *w) {
    int64_t size = 0, width = j->key_width + j->value_width;
    for (int r = 0; r < RUNS; r++) {
        const run *from = &j->runs[r];
        if (!from->places) continue;
        const char *keys = of(&from->keys, row, head), *values = of(&from->values, row, head);
        const char *keys_scale = of(&from->keys_scale, row, head), *values_scale = of(&from->values_scale, row, head);
        const char *counts = of(&from->counts, row, head);
        for (int64_t n = 0; n < from->places; n++, size++) {
            float *x = w->x + size * width;
            float key_scale = from->keys_kind == INT8 ? *(const float *)(keys_scale + n * from->keys_scale.place) : 1;
            float value_scale =
                from->values_kind == INT8 ? *(const float *)(values_scale + n * from->values_scale.place) : 1;
            unpack(keys + n * from->keys.place, from->keys_kind, key_scale, j->key_width, x);
            unpack(values + n * from->values.place, from->values_kind, value_scale, j->value_width, x + j->key_width);
            w->counts[size] = from->counts.at ? *(const float *)(counts + n * from->counts.place) : 1;
            w->kept[size] = (int32_t)size;
        }
    }
    return size;
}

/* Computes the scale and the shift that centre keys and values, give both the same spread, and multiply values by
 * `balance`. */
KERNEL static void measure(const job *j, int64_t size, float balance, workspace *w) {
    int64_t width = j->key_width + j->value_width;
    float *mean = w->shift, *squares = w->scale;
    memset(mean, 0, width * sizeof *mean);
    memset(squares, 0, width * sizeof *squares);
    for (int64_t n = 0; n < size; n++)
        for (int64_t i = 0; i < width; i += LANES) {
            __mmask16 mask = lanes(width - i);
            __m512 x = _mm512_maskz_loadu_ps(mask, w->x + n * width + i);
            __m512 sum = _mm512_maskz_loadu_ps(mask, mean + i), square = _mm512_maskz_loadu_ps(mask, squares + i);
            _mm512_mask_storeu_ps(mean + i, mask, _mm512_add_ps(sum, x));
            _mm512_mask_storeu_ps(squares + i, mask, _mm512_fmadd_ps(x, x, square));
        }
    float spread[2] = {0, 0};
    for (int64_t i = 0; i < width; i++) {
        mean[i] /= (float)size;
        spread[i >= j->key_width] += squares[i] / (float)size - mean[i] * mean[i];
    }
    for (int part = 0; part < 2; part++) {
        /* NaN stays NaN. */
        float floor = spread[part] < 1e-12f ? 1e-12f : spread[part];
        spread[part] = (part ? balance : 1.0f) / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(floor)));
    }
    for (int64_t i = 0; i < width; i++) {
        w->scale[i] = spread[i >= j->key_width];
        w->shift[i] = -mean[i] * w->scale[i];
    }
}

/* Computes the rounded vector of a place, and its squared length. */
KERNEL static void round_place(int64_t width, int64_t place, workspace *w) {
    const float *x = w->x + place * width;
    uint16_t *rounded = w->rounded + place * (width + width % 2);
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < width; i += LANES) {
        __mmask16 mask = lanes(width - i);
        __m512 y = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, x + i), _mm512_maskz_loadu_ps(mask, w->scale + i),
                                   _mm512_maskz_loadu_ps(mask, w->shift + i));
        __m256i half = (__m256i)_mm512_cvtneps_pbh(y);
        _mm256_mask_storeu_epi16(rounded + i, mask, half);
        y = _mm512_maskz_mov_ps(mask, widened(half));
        sum = _mm512_fmadd_ps(y, y, sum);
    }
    w->norms[place] = _mm512_reduce_add_ps(sum);
}

/* Lays out up to COLUMNS odd places as columns of pairs of numbers: one instruction multiplies a row of pairs. */
KERNEL static void fill_panel(const int32_t *odds, int64_t count, int64_t pairs, workspace *w) {
    for (int64_t c = 0; c < COLUMNS; c++) {
        if (c >= count) {
            /* An empty column is infinitely far from every place. */
            w->panel_norms[c] = __builtin_inff();
            w->panel_ease[c] = 1;
            for (int64_t p = 0; p < pairs; p++) w->panel[p * COLUMNS + c] = 0;
            continue;
        }
        int32_t place = odds[2 * c];
        const uint32_t *from = (const uint32_t *)w->rounded + place * pairs;
        w->panel_norms[c] = w->norms[place];
        w->panel_ease[c] = w->ease[place];
        for (int64_t p = 0; p < pairs; p++) w->panel[p * COLUMNS + c] = from[p];
    }
}

/* Computes Ward's costs of ROWS places with the places of the panel. Each row keeps the least cost, and of equal costs
 * the first. */
KERNEL static void tile(const int32_t *evens, int64_t rows, int64_t row, int64_t column, int64_t pairs, workspace *w) {
    const uint32_t *a[ROWS];
    int32_t place[ROWS];
    for (int r = 0; r < ROWS; r++) {
        int64_t even = row + r < rows ? row + r : rows - 1;
        place[r] = evens[2 * even];
        a[r] = (const uint32_t *)w->rounded + place[r] * pairs;
    }
    __m512 sums[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++) sums[r][v] = _mm512_setzero_ps();
    for (int64_t p = 0; p < pairs; p++) {
        __m512bh b[VECTORS];
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++) b[v] = (__m512bh)_mm512_load_si512(w->panel + p * COLUMNS + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            __m512bh pair = (__m512bh)_mm512_set1_epi32((int)a[r][p]);
#pragma GCC unroll 3
            for (int v = 0; v < VECTORS; v++) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], pair, b[v]);
        }
    }
    const __m512 minus_two = _mm512_set1_ps(-2), zero = _mm512_setzero_ps();
    const __m512i counting = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
        float *best_at = w->best + (row + r) * LANES;
        int32_t *index_at = w->best_index + (row + r) * LANES;
        __m512 best = _mm512_load_ps(best_at);
        __m512i index = _mm512_load_si512(index_at);
        __m512 norm = _mm512_set1_ps(w->norms[place[r]]), ease = _mm512_set1_ps(w->ease[place[r]]);
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++) {
            __m512 far = _mm512_add_ps(norm, _mm512_load_ps(w->panel_norms + v * LANES));
            __m512 distance = _mm512_max_ps(zero, _mm512_fmadd_ps(sums[r][v], minus_two, far));
            /* Fourteen bits are enough for the search, because the cost of the partner it finds is computed again. */
            __m512 cost = _mm512_mul_ps(
                distance, _mm512_rcp14_ps(_mm512_add_ps(ease, _mm512_load_ps(w->panel_ease + v * LANES))));
            __mmask16 less = _mm512_cmp_ps_mask(cost, best, _CMP_LT_OQ);
            best = _mm512_mask_mov_ps(best, less, cost);
            index = _mm512_mask_add_epi32(index, less, counting, _mm512_set1_epi32((int)(column + v * LANES)));
        }
        _mm512_store_ps(best_at, best);
        _mm512_store_si512(index_at, index);
    }
}

KERNEL static float distance_of(const uint16_t *a, const uint16_t *b, int64_t width) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < width; i += LANES) {
        __mmask16 mask = lanes(width - i);
        __m512 d = _mm512_sub_ps(widened(_mm256_maskz_loadu_epi16(mask, a + i)),
                                 widened(_mm256_maskz_loadu_epi16(mask, b + i)));
        sum = _mm512_fmadd_ps(d, d, sum);
    }
    return _mm512_reduce_add_ps(sum);
}

/* Finds the cheapest odd place for each even place, and the cost of the pair. */
KERNEL static void find_partners(int64_t width, const int32_t *order, int64_t size, workspace *w) {
    int64_t evens = (size + 1) / 2, odds = size / 2, pairs = (width + 1) / 2;
    int64_t padded = (evens + ROWS - 1) / ROWS * ROWS;
    for (int64_t i = 0; i < padded * LANES; i++) {
        w->best[i] = __builtin_inff();
        w->best_index[i] = 0;
    }
    for (int64_t column = 0; column < odds; column += COLUMNS) {
        fill_panel(order + 1 + 2 * column, odds - column, pairs, w);
        for (int64_t row = 0; row < evens; row += ROWS) tile(order, evens, row, column, pairs, w);
    }
    for (int64_t e = 0; e < evens; e++) {
        const float *best = w->best + e * LANES;
        float least = _mm512_reduce_min_ps(_mm512_load_ps(best));
        int32_t found = INT32_MAX;
        for (int lane = 0; lane < LANES; lane++)
            if (best[lane] == least && w->best_index[e * LANES + lane] < found) found = w->best_index[e * LANES + lane];
        int32_t even = order[2 * e], odd = order[2 * found + 1];
        int64_t stride = width + width % 2;
        float cost = distance_of(w->rounded + even * stride, w->rounded + odd * stride, width) /
                     (w->ease[even] + w->ease[odd]);
        w->partner[e] = found;
        /* Numbers of one sign are ordered as their bits are; NaN comes last. */
        if (cost != cost)
            w->cost[e] = INT32_MAX;
        else
            memcpy(&w->cost[e], &cost, sizeof cost);
    }
}

/* Returns a cost, as bits: the `taken` cheapest offers are all offers below it and the first `at` that are equal. */
KERNEL static uint32_t threshold(const uint32_t *cost, int64_t count, int64_t taken, int64_t *at) {
    uint32_t bound = 0;
    int64_t below = 0;
    for (int bit = 30; bit >= 0; bit--) {
        uint32_t tried = bound | 1u << bit;
        int64_t less = 0;
        for (int64_t i = 0; i < count; i++) less += cost[i] < tried;
        if (less <= taken) {
            bound = tried;
            below = less;
        }
    }
    *at = taken - below;
    return bound;
}

/* Makes place `into` the average, weighted by count, of itself and the places of the list that begins with `first`. */
KERNEL static void take_in(int64_t width, int32_t into, int32_t first, workspace *w) {
    float after = w->counts[into];
    for (int32_t from = first; from >= 0; from = w->following[from]) after += w->counts[from];
    float divisor = after < 1e-12f ? 1e-12f : after;
    float *x = w->x + into * width;
    for (int64_t i = 0; i < width; i += LANES) {
        __mmask16 mask = lanes(width - i);
        __m512 old = _mm512_maskz_loadu_ps(mask, x + i), sum = old;
        for (int32_t from = first; from >= 0; from = w->following[from]) {
            __m512 other = _mm512_maskz_loadu_ps(mask, w->x + from * width + i);
            sum = _mm512_fmadd_ps(_mm512_sub_ps(other, old), _mm512_set1_ps(w->counts[from] / divisor), sum);
        }
        _mm512_mask_storeu_ps(x + i, mask, sum);
    }
    w->counts[into] = after;
    w->ease[into] = 1 / after;
    round_place(width, into, w);
}

/* One round: takes the cheapest offers. Leaves the even places that stay, then all odd places, in `w->kept`; returns
 * their number. */
KERNEL static int64_t merge_round(int64_t width, const int32_t *order, int64_t size, int64_t capacity, workspace *w) {
    int64_t evens = (size + 1) / 2, odds = size / 2, taken = evens * 2 / 3, at, stay = 0;
    find_partners(width, order, size, w);
    if (taken < 1) taken = 1;
    if (taken > size - capacity) taken = size - capacity;
    uint32_t bound = threshold(w->cost, evens, taken, &at);
    for (int64_t o = 0; o < odds; o++) w->first[o] = -1;
    /* Backwards, so that the lists are in order. Of equal offers the first `at` are taken. */
    int64_t equal = 0;
    for (int64_t e = 0; e < evens; e++) equal += w->cost[e] == bound;
    for (int64_t e = evens - 1; e >= 0; e--) {
        int gives = w->cost[e] < bound || (w->cost[e] == bound && equal <= at);
        equal -= w->cost[e] == bound;
        if (!gives) {
            w->partner[e] = -1;
            continue;
        }
        w->following[order[2 * e]] = w->first[w->partner[e]];
        w->first[w->partner[e]] = order[2 * e];
    }
    for (int64_t e = 0; e < evens; e++)
        if (w->partner[e] < 0) w->next_kept[stay++] = order[2 * e];
    for (int64_t o = 0; o < odds; o++) {
        int32_t odd = order[2 * o + 1];
        if (w->first[o] >= 0) take_in(width, odd, w->first[o], w);
        w->next_kept[stay++] = odd;
    }
    int32_t *used = w->kept;
    w->kept = w->next_kept;
    w->next_kept = used;
    return stay;
}

/* Packs one vector as steps of a scale, which is rounded to bfloat16, so that packing again finds the same scale and
 * steps. Returns the scale. */
KERNEL static float pack(const float *x, int64_t width, char *to) {
    __m512 most = _mm512_setzero_ps();
    for (int64_t i = 0; i < width; i += LANES)
        most = _mm512_max_ps(_mm512_abs_ps(_mm512_maskz_loadu_ps(lanes(width - i), x + i)), most);
    float scale = _mm512_reduce_max_ps(most) / 127;
    uint32_t bits;
    memcpy(&bits, &scale, sizeof bits);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
    memcpy(&scale, &bits, sizeof bits);
    const float tiny = 0x1p-126f;
    __m512 step = _mm512_set1_ps(scale < tiny ? tiny : scale);
    for (int64_t i = 0; i < width; i += LANES) {
        __mmask16 mask = lanes(width - i);
        __m512 steps = _mm512_div_ps(_mm512_maskz_loadu_ps(mask, x + i), step);
        __m512i whole = _mm512_cvt_roundps_epi32(steps, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        whole = _mm512_max_epi32(_mm512_min_epi32(whole, _mm512_set1_epi32(127)), _mm512_set1_epi32(-127));
        _mm_mask_storeu_epi8(to + i, mask, _mm512_cvtepi32_epi8(whole));
    }
    return scale;
}

KERNEL static void finish(const job *j, int64_t row, int64_t head, float balance, workspace *w) {
    int64_t width = j->key_width + j->value_width, size = gather(j, row, head, w);
    if (size > j->capacity) {
        measure(j, size, balance, w);
        for (int64_t n = 0; n < size; n++) {
            round_place(width, n, w);
            w->ease[n] = 1 / w->counts[n];
            w->kept[n] = (int32_t)j->order[n];
        }
        while (size > j->capacity) size = merge_round(width, w->kept, size, j->capacity, w);
    }
    const run *into = &j->into;
    char *keys = (char *)of(&into->keys, row, head), *values = (char *)of(&into->values, row, head);
    char *keys_scale = (char *)of(&into->keys_scale, row, head);
    char *values_scale = (char *)of(&into->values_scale, row, head), *counts = (char *)of(&into->counts, row, head);
    for (int64_t n = 0; n < size; n++) {
        const float *x = w->x + w->kept[n] * width;
        *(float *)(keys_scale + n * into->keys_scale.place) = pack(x, j->key_width, keys + n * into->keys.place);
        *(float *)(values_scale + n * into->values_scale.place) =
            pack(x + j->key_width, j->value_width, values + n * into->values.place);
        *(float *)(counts + n * into->counts.place) = w->counts[w->kept[n]];
    }
}

static int64_t places_of(const job *j) {
    int64_t places = 0;
    for (int r = 0; r < RUNS; r++) places += j->runs[r].places;
    return places;
}

/* Lays out a workspace for `size` places, which begins at `at`; returns its end. */
static uintptr_t lay_out(workspace *w, uintptr_t at, int64_t size, int64_t width) {
    int64_t pairs = (width + 1) / 2, evens = (size + 1) / 2, padded = (evens + ROWS - 1) / ROWS * ROWS;
    w->x = part(&at, size * width * sizeof *w->x);
    w->rounded = part(&at, size * pairs * 2 * sizeof *w->rounded);
    w->counts = part(&at, size * sizeof *w->counts);
    w->ease = part(&at, size * sizeof *w->ease);
    w->norms = part(&at, size * sizeof *w->norms);
    w->scale = part(&at, width * sizeof *w->scale);
    w->shift = part(&at, width * sizeof *w->shift);
    w->kept = part(&at, size * sizeof *w->kept);
    w->next_kept = part(&at, size * sizeof *w->next_kept);
    w->panel = part(&at, pairs * COLUMNS * sizeof *w->panel);
    w->panel_norms = part(&at, COLUMNS * sizeof *w->panel_norms);
    w->panel_ease = part(&at, COLUMNS * sizeof *w->panel_ease);
    w->best = part(&at, padded * LANES * sizeof *w->best);
    w->best_index = part(&at, padded * LANES * sizeof *w->best_index);
    w->cost = part(&at, evens * sizeof *w->cost);
    w->partner = part(&at, evens * sizeof *w->partner);
    w->first = part(&at, evens * sizeof *w->first);
    w->following = part(&at, size * sizeof *w->following);
    return at;
}

static void work(void *data) {
    task *t = data;
    char *scratch = t->scratch + atomic_fetch_add(&t->next_member, 1) * t->scratch_size;
    int64_t begin = 0, index = 0;
    for (int64_t item = atomic_fetch_add(&t->next_item, 1);; item = atomic_fetch_add(&t->next_item, 1)) {
        while (index < t->count && item >= begin + t->jobs[index].rows * t->jobs[index].heads)
            begin += t->jobs[index].rows * t->jobs[index].heads, index++;
        if (index == t->count) return;
        const job *j = &t->jobs[index];
        workspace w;
        lay_out(&w, (uintptr_t)scratch, places_of(j), j->key_width + j->value_width);
        /* With an odd width, half of each vector's last pair is unused, and must be zero. */
        if ((j->key_width + j->value_width) % 2)
            memset(w.rounded, 0, places_of(j) * (j->key_width + j->value_width + 1) * sizeof *w.rounded);
        finish(j, (item - begin) / j->heads, (item - begin) % j->heads, (float)t->balance, &w);
    }
}

/* Does all jobs with `threads` threads of `parallel`, or with the calling thread where `parallel` is null. Returns 0,
 * or -1 where memory runs out. balance: weight of value distance against key distance. */
int pool(const job *jobs, int64_t count, double balance, team *parallel, int64_t threads) {
    task t = {jobs, count, balance, NULL, 0, 0, 0};
    if (!parallel || threads < 1) threads = 1;
    for (int64_t i = 0; i < count; i++) {
        workspace w;
        size_t size = lay_out(&w, 0, places_of(&jobs[i]), jobs[i].key_width + jobs[i].value_width);
        if (size > t.scratch_size) t.scratch_size = size;
    }
    t.scratch = aligned_alloc(ALIGNMENT, t.scratch_size * threads + ALIGNMENT);
    if (!t.scratch) return -1;
    if (threads > 1)
        parallel(work, &t, (unsigned)threads, 0);
    else
        work(&t);
    free(t.scratch);
    return 0;
}
