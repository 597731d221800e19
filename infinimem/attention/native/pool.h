/* The end of a segment in one pass: places of several states, one after the other, are merged by Ward's criterion as
 * `slots.ward_merge` does, and packed as `packing.pack` does. The search for partners is computed in numbers of a cell.
 */

/* A product is ROWS places that give by COLUMNS places that take. Without tiles, the vector registers hold the sums of a
 * product, three quarters of all registers. */
#if TILES
enum { ROWS = TILE_ROWS, VECTORS = 2 };
#elif FEW_REGISTERS
enum { ROWS = 4, VECTORS = 3 };
#else
enum { ROWS = 8, VECTORS = 3 };
#endif
enum { COLUMNS = VECTORS * LANES, RUNS = 3 };

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

/* The working memory of one thread, for N places of F numbers, which fill C cells (the last ones are zero). */
typedef struct {
    float *x;                     /* (N, F) */
    number *rounded;              /* (N, C cells), centred and scaled */
    float *counts, *ease, *norms; /* (N,): number of tokens, its reciprocal, squared length of the rounded vector */
    float *scale, *shift;         /* (F,) */
    int32_t *kept, *next_kept;    /* (N,) places that are left, in order */
    cell *giving;                 /* with tiles (evens, C): the rounded vectors of the places that give */
    cell *panel;                  /* (C, COLUMNS) of the places that take */
    float *panel_norms, *panel_ease; /* (COLUMNS,) */
    float *best;         /* (evens, LANES): least cost so far; each lane looks at one of LANES partners */
    int32_t *best_index;
    uint32_t *cost;      /* (evens,) the bits of the least cost */
    int32_t *partner;    /* (evens,) */
    int32_t *first, *following; /* for each odd place, the linked list of the places that it takes in */
} workspace;

static int64_t cells_of(int64_t width) {
    int64_t cells = (width + PER_CELL - 1) / PER_CELL;
    return TILES ? (cells + TILE_CELLS - 1) / TILE_CELLS * TILE_CELLS : cells;
}

KERNEL static void unpack(const char *from, int64_t kind, float scale, int64_t width, float *to) {
    for (int64_t i = 0; i < width; i += LANES) {
        int64_t left = width - i;
        vec x;
        if (kind == INT8)
            x = load_int8(from + i, left) * all(scale);
        else if (kind == FLOAT32)
            x = load_part((const float *)from + i, left);
        else
            x = load_bfloat16((const uint16_t *)from + i, left);
        store_part(to + i, left, x);
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
            int64_t left = width - i;
            vec x = load_part(w->x + n * width + i, left);
            store_part(mean + i, left, load_part(mean + i, left) + x);
            store_part(squares + i, left, multiply_add(x, x, load_part(squares + i, left)));
        }
    float spread[2] = {0, 0};
    for (int64_t i = 0; i < width; i++) {
        mean[i] /= (float)size;
        spread[i >= j->key_width] += squares[i] / (float)size - mean[i] * mean[i];
    }
    for (int part = 0; part < 2; part++) {
        /* NaN stays NaN. */
        float floor = spread[part] < 1e-12f ? 1e-12f : spread[part];
        spread[part] = (part ? balance : 1.0f) / root(floor);
    }
    for (int64_t i = 0; i < width; i++) {
        w->scale[i] = spread[i >= j->key_width];
        w->shift[i] = -mean[i] * w->scale[i];
    }
}

/* Computes the rounded vector of a place, and its squared length. */
KERNEL static void round_place(int64_t width, int64_t place, workspace *w) {
    const float *x = w->x + place * width;
    number *rounded = w->rounded + place * cells_of(width) * PER_CELL;
    vec sum = zero();
    for (int64_t i = 0; i < width; i += LANES) {
        int64_t left = width - i;
        vec y = multiply_add(load_part(x + i, left), load_part(w->scale + i, left), load_part(w->shift + i, left));
        store_numbers(rounded + i, left, y);
        y = load_numbers(rounded + i, left);
        sum = multiply_add(y, y, sum);
    }
    w->norms[place] = sum_of(sum);
}

/* Lays out up to COLUMNS odd places as columns of cells: one instruction multiplies a row of cells. */
KERNEL static void fill_panel(const int32_t *odds, int64_t count, int64_t cells, workspace *w) {
    for (int64_t c = 0; c < COLUMNS; c++) {
        if (c >= count) {
            /* An empty column is infinitely far from every place. */
            w->panel_norms[c] = __builtin_inff();
            w->panel_ease[c] = 1;
            for (int64_t p = 0; p < cells; p++) w->panel[p * COLUMNS + c] = 0;
            continue;
        }
        int32_t place = odds[2 * c];
        const cell *from = (const cell *)w->rounded + place * cells;
        w->panel_norms[c] = w->norms[place];
        w->panel_ease[c] = w->ease[place];
        for (int64_t p = 0; p < cells; p++) w->panel[p * COLUMNS + c] = from[p];
    }
}

/* Compares the products of one place with the places of the panel, the first of which is odd place `column`. Each lane
 * keeps the least cost, and of equal costs the first. */
INLINE void compare(const vec *products, float own_norm, float own_ease, int64_t column, const workspace *w,
                    float *best_at, int32_t *index_at) {
    vec best = load(best_at), norm = all(own_norm), ease = all(own_ease);
    whole index = load_whole(index_at);
#pragma GCC unroll 3
    for (int v = 0; v < VECTORS; v++) {
        vec far = norm + load(w->panel_norms + v * LANES);
        vec distance = larger(zero(), multiply_add(products[v], all(-2), far));
        /* A near value is enough for the search, because the cost of the partner it finds is computed again. */
        vec cost = distance * nearly_reciprocal(ease + load(w->panel_ease + v * LANES));
        choice cheaper = less(cost, best);
        best = chosen(cheaper, cost, best);
        index = chosen_whole(cheaper, add_whole(counting(), all_whole((int32_t)(column + v * LANES))), index);
    }
    store(best_at, best);
    store_whole(index_at, index);
}

/* Computes Ward's costs of ROWS places with the places of the panel. */
KERNEL static void compare_rows(const int32_t *evens, int64_t rows, int64_t row, int64_t column, int64_t cells,
                                workspace *w) {
    int32_t place[ROWS];
    for (int r = 0; r < ROWS; r++) place[r] = evens[2 * (row + r < rows ? row + r : rows - 1)];
#if TILES
    float products[ROWS * COLUMNS] __attribute__((aligned(ALIGNMENT)));
    tile_products(w->giving + row * cells, cells * sizeof(cell), w->panel, COLUMNS * sizeof(cell), cells, products,
                  COLUMNS * sizeof *products);
    for (int r = 0; r < ROWS; r++) {
        vec sums[VECTORS] = {load(products + r * COLUMNS), load(products + r * COLUMNS + LANES)};
        compare(sums, w->norms[place[r]], w->ease[place[r]], column, w, w->best + (row + r) * LANES,
                w->best_index + (row + r) * LANES);
    }
#else
    const cell *a[ROWS];
    for (int r = 0; r < ROWS; r++) a[r] = (const cell *)w->rounded + place[r] * cells;
    vec sums[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++) sums[r][v] = zero();
    for (int64_t p = 0; p < cells; p++) {
        cells_of_lanes b[VECTORS];
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++) b[v] = load_cells(w->panel + p * COLUMNS + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            cells_of_lanes own = all_cells(a[r][p]);
#pragma GCC unroll 3
            for (int v = 0; v < VECTORS; v++) sums[r][v] = add_products(sums[r][v], own, b[v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
        compare(sums[r], w->norms[place[r]], w->ease[place[r]], column, w, w->best + (row + r) * LANES,
                w->best_index + (row + r) * LANES);
#endif
}

KERNEL static float distance_of(const number *a, const number *b, int64_t width) {
    vec sum = zero();
    for (int64_t i = 0; i < width; i += LANES) {
        vec d = load_numbers(a + i, width - i) - load_numbers(b + i, width - i);
        sum = multiply_add(d, d, sum);
    }
    return sum_of(sum);
}

/* Finds the cheapest odd place for each even place, and the cost of the pair. */
KERNEL static void find_partners(int64_t width, const int32_t *order, int64_t size, workspace *w) {
    int64_t evens = (size + 1) / 2, odds = size / 2, cells = cells_of(width);
    int64_t padded = (evens + ROWS - 1) / ROWS * ROWS;
    for (int64_t i = 0; i < padded * LANES; i++) {
        w->best[i] = __builtin_inff();
        w->best_index[i] = 0;
    }
#if TILES
    for (int64_t e = 0; e < padded; e++) {
        const cell *from = (const cell *)w->rounded + order[2 * (e < evens ? e : evens - 1)] * cells;
        memcpy(w->giving + e * cells, from, cells * sizeof *from);
    }
#endif
    for (int64_t column = 0; column < odds; column += COLUMNS) {
        fill_panel(order + 1 + 2 * column, odds - column, cells, w);
        for (int64_t row = 0; row < evens; row += ROWS) compare_rows(order, evens, row, column, cells, w);
    }
    for (int64_t e = 0; e < evens; e++) {
        const float *best = w->best + e * LANES;
        float least = least_of(load(best));
        int32_t found = INT32_MAX;
        for (int lane = 0; lane < LANES; lane++)
            if (best[lane] == least && w->best_index[e * LANES + lane] < found) found = w->best_index[e * LANES + lane];
        int32_t even = order[2 * e], odd = order[2 * found + 1];
        int64_t stride = cells * PER_CELL;
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
        int64_t left = width - i;
        vec old = load_part(x + i, left), sum = old;
        for (int32_t from = first; from >= 0; from = w->following[from]) {
            vec other = load_part(w->x + from * width + i, left);
            sum = multiply_add(other - old, all(w->counts[from] / divisor), sum);
        }
        store_part(x + i, left, sum);
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
    vec most = zero();
    for (int64_t i = 0; i < width; i += LANES) most = larger(absolute(load_part(x + i, width - i)), most);
    float scale = most_of(most) / 127;
    uint32_t bits;
    memcpy(&bits, &scale, sizeof bits);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
    memcpy(&scale, &bits, sizeof bits);
    const float tiny = 0x1p-126f;
    vec step = all(scale < tiny ? tiny : scale);
    for (int64_t i = 0; i < width; i += LANES)
        store_int8(to + i, width - i, nearest(load_part(x + i, width - i) / step));
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
    int64_t cells = cells_of(width), evens = (size + 1) / 2, padded = (evens + ROWS - 1) / ROWS * ROWS;
    w->x = part(&at, size * width * sizeof *w->x);
    w->rounded = part(&at, size * cells * sizeof(cell));
    w->counts = part(&at, size * sizeof *w->counts);
    w->ease = part(&at, size * sizeof *w->ease);
    w->norms = part(&at, size * sizeof *w->norms);
    w->scale = part(&at, width * sizeof *w->scale);
    w->shift = part(&at, width * sizeof *w->shift);
    w->kept = part(&at, size * sizeof *w->kept);
    w->next_kept = part(&at, size * sizeof *w->next_kept);
    w->giving = part(&at, TILES ? padded * cells * sizeof *w->giving : 0);
    w->panel = part(&at, cells * COLUMNS * sizeof *w->panel);
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
#if TILES
    tile_shapes before = begin_tiles();
#endif
    for (int64_t item = atomic_fetch_add(&t->next_item, 1);; item = atomic_fetch_add(&t->next_item, 1)) {
        while (index < t->count && item >= begin + t->jobs[index].rows * t->jobs[index].heads)
            begin += t->jobs[index].rows * t->jobs[index].heads, index++;
        if (index == t->count) break;
        const job *j = &t->jobs[index];
        workspace w;
        int64_t width = j->key_width + j->value_width;
        lay_out(&w, (uintptr_t)scratch, places_of(j), width);
        /* What is left of a vector's last cells must be zero. */
        if (cells_of(width) * PER_CELL != width) memset(w.rounded, 0, places_of(j) * cells_of(width) * sizeof(cell));
        finish(j, (item - begin) / j->heads, (item - begin) % j->heads, (float)t->balance, &w);
    }
#if TILES
    end_tiles(&before);
#endif
}

/* Does all jobs with `threads` threads of `parallel`, or with the calling thread where `parallel` is null. Returns 0,
 * or -1 where memory runs out. balance: weight of value distance against key distance. */
int NAME(pool)(const job *jobs, int64_t count, double balance, team *parallel, int64_t threads) {
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
