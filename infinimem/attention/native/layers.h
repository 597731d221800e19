/* What a layer does beside its products and its attention: the norm of its input, and the gate of its feed-forward part,
 * in one pass each. Numbers are rounded where torch's steps round them. */

/* Matrices (rows, width) of one kind, FLOAT32 or BFLOAT16, without gaps. */
typedef struct {
    const char *x;
    const char *y; /* norm: the weight, (width); gate: the other factor, (rows, width) */
    char *out;
    int64_t rows, width, kind;
    int64_t once; /* norm: whether only the result is rounded, and not the input of the weight */
} matrices;

typedef struct {
    const matrices *m;
    float least, shift;
    atomic_llong next;
} passing;

enum { ROWS_AT_A_TIME = 8 };

/* Root mean square norm of a row; `shift` is added to the weight, `least` to the mean. */
KERNEL static void norm_row(const passing *p, int64_t row) {
    const matrices *m = p->m;
    int64_t start = row * m->width;
    vec sums[2] = {zero(), zero()};
    for (int64_t i = 0; i < m->width; i += 2 * LANES)
        for (int v = 0; v < 2; v++) {
            int64_t at = i + v * LANES;
            if (at >= m->width) break;
            vec x = get(m->x, m->kind, 1, start + at, m->width - at);
            sums[v] = multiply_add(x, x, sums[v]);
        }
    vec factor = all(1 / root(sum_of(sums[0] + sums[1]) / (float)m->width + p->least));
    for (int64_t at = 0; at < m->width; at += LANES) {
        int64_t left = m->width - at;
        vec x = get(m->x, m->kind, 1, start + at, left) * factor;
        if (!m->once && m->kind == BFLOAT16) x = rounded_to_bfloat16(x);
        put(m->out, m->kind, start + at, left, x * (get(m->y, m->kind, 1, at, left) + all(p->shift)));
    }
}

/* x / (1 + e^-x), times y. */
KERNEL static void gate_row(const passing *p, int64_t row) {
    const matrices *m = p->m;
    int64_t start = row * m->width;
    for (int64_t at = 0; at < m->width; at += LANES) {
        int64_t left = m->width - at;
        vec x = get(m->x, m->kind, 1, start + at, left), one = all(1);
        /* The power is at most 1, so it does not overflow. With the operands in this order, NaN stays NaN. */
        vec power = exponential(larger(all(LEAST_EXPONENT), -absolute(x)));
        vec below = one + power, near = nearly_reciprocal(below);
        near = near * (all(2) - below * near);
        vec gate = x * chosen(less(x, zero()), power, one) * near;
        if (m->kind == BFLOAT16) gate = rounded_to_bfloat16(gate);
        put(m->out, m->kind, start + at, left, gate * get(m->y, m->kind, 1, start + at, left));
    }
}

static void norm_rows(void *data) {
    passing *p = data;
    for (int64_t i = atomic_fetch_add(&p->next, ROWS_AT_A_TIME); i < p->m->rows; i = atomic_fetch_add(&p->next, ROWS_AT_A_TIME))
        for (int64_t row = i; row < i + ROWS_AT_A_TIME && row < p->m->rows; row++) norm_row(p, row);
}

static void gate_rows(void *data) {
    passing *p = data;
    for (int64_t i = atomic_fetch_add(&p->next, ROWS_AT_A_TIME); i < p->m->rows; i = atomic_fetch_add(&p->next, ROWS_AT_A_TIME))
        for (int64_t row = i; row < i + ROWS_AT_A_TIME && row < p->m->rows; row++) gate_row(p, row);
}

static void pass(void (*work)(void *), passing *p, team *parallel, int64_t threads) {
    if (parallel && threads > 1 && p->m->rows > ROWS_AT_A_TIME)
        parallel(work, p, (unsigned)threads, 0);
    else
        work(p);
}

/* With `threads` threads of `parallel`, or with the calling thread where `parallel` is null. */
void NAME(norm)(const matrices *m, double least, double shift, team *parallel, int64_t threads) {
    passing p = {m, (float)least, (float)shift, 0};
    pass(norm_rows, &p, parallel, threads);
}

void NAME(gate)(const matrices *m, team *parallel, int64_t threads) {
    passing p = {m, 0, 0, 0};
    pass(gate_rows, &p, parallel, threads);
}
