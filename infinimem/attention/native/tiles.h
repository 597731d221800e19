/* Products of whole tiles (AMX): 32 rows by 32 columns at a time. */

enum { TILE_ROWS = 32, TILE_COLUMNS = 32, TILE_CELLS = 16 };

#if TILES

/* The compiler does not know how much memory instructions on tiles read and write. */
INLINE void finish_memory(void *at) { __asm__ volatile("" : : "r"(at) : "memory"); }

/* What the processor holds in its tile registers belongs to the thread; other libraries may rely on their shapes. */
typedef struct {
    uint8_t bytes[64] __attribute__((aligned(64)));
} tile_shapes;

/* Makes all tiles 16 rows of 64 bytes; returns the shapes of before. */
KERNEL static tile_shapes begin_tiles(void) {
    tile_shapes before = {{0}}, own = {{1}};
    finish_memory(&before);
    _tile_storeconfig(&before);
    finish_memory(&before);
    for (int t = 0; t < 8; t++) {
        own.bytes[16 + 2 * t] = 64;
        own.bytes[48 + t] = 16;
    }
    finish_memory(&own);
    _tile_loadconfig(&own);
    return before;
}

KERNEL static void end_tiles(tile_shapes *before) {
    finish_memory(before);
    if (before->bytes[0])
        _tile_loadconfig(before);
    else
        _tile_release();
}

/* c (32, 32) = a (32, cells) b (cells, 32), where a multiple of 16 cells is multiplied. Strides in bytes. */
INLINE void tile_products(const void *a, int64_t a_stride, const cell *b, int64_t b_stride, int64_t cells_of_row,
                          float *c, int64_t c_stride) {
    const char *left = a, *right = (const char *)b;
    finish_memory(c);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t i = 0; i < cells_of_row; i += TILE_CELLS) {
        _tile_loadd(4, left + 4 * i, a_stride);
        _tile_loadd(6, right + i * b_stride, b_stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, right + i * b_stride + 64, b_stride);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, left + 16 * a_stride + 4 * i, a_stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    char *to = (char *)c;
    _tile_stored(0, to, c_stride);
    _tile_stored(1, to + 64, c_stride);
    _tile_stored(2, to + 16 * c_stride, c_stride);
    _tile_stored(3, to + 16 * c_stride + 64, c_stride);
    finish_memory(c);
}

#endif
