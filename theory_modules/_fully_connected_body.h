/* The fully connected kernel without bias, scale_i scale_j f(<x_i, z_j>), for one number type and one machine.
 * Included after _convolutional_body.h, with the same macros, and
 *
 *     ROWS, PANELS    a block of the matrix product that fits into the registers: rows, and vectors of columns
 *     GROUP           vectors taken through f together, as one chain would wait for itself; divides the block
 *
 * f has one polynomial for c >= 0 and one for c < 0, in t = 2 sqrt(1 - |c|) - 1: one chain of multiply-adds, each
 * lane choosing its coefficients. Where an instruction looks 32 numbers up (LOOKUP), f may come in pieces instead:
 * with w = +-15 sqrt(1 - |c|) of c's sign, a quartic in w - i around each whole i. Around 0 the two branches would
 * meet, but there |c| is above the threshold, and the caller does those entries again.
 *
 * A block of correlations goes from the product's registers through f to the result, which is touched once.
 */

ALWAYS_INLINE int NAME(any)(INTEGERS condition)
{
    uint64_t words[8], all = 0;
    memcpy(words, &condition, sizeof words);
    for (int i = 0; i < 8; i++)
        all |= words[i];
    return all != 0;
}

/* t of GROUP vectors of correlations. */
ALWAYS_INLINE void NAME(begin_values)(const VEC *c, VEC *t)
{
    const VEC zero = {0};
    for (int v = 0; v < GROUP; v++)
        t[v] = ROOT(LARGER(1 - LARGER(c[v], -c[v]), zero)) * 2 - 1;
}

/* f(c) of GROUP vectors from their t, in place. */
ALWAYS_INLINE void NAME(finish_values)(const JOB(FullyConnectedJob) *job, VEC *c, const VEC *t)
{
    const int degree = job->degree;
    VEC sum[GROUP];
    INTEGERS below[GROUP];
    VEC above_zero = NAME(spread)(job->positive[degree]), below_zero = NAME(spread)(job->negative[degree]);
    for (int v = 0; v < GROUP; v++)
        below[v] = c[v] < 0;
    for (int v = 0; v < GROUP; v++)
        sum[v] = NAME(select)(below[v], below_zero, above_zero);
    for (int i = degree - 1; i >= 0; i--) {
        above_zero = NAME(spread)(job->positive[i]), below_zero = NAME(spread)(job->negative[i]);
        for (int v = 0; v < GROUP; v++)
            sum[v] = sum[v] * t[v] + NAME(select)(below[v], below_zero, above_zero);
    }
    for (int v = 0; v < GROUP; v++)
        c[v] = sum[v];
}

#ifdef LOOKUP
enum { NAME(STEPS) = 15, NAME(QUARTIC) = 4 };

ALWAYS_INLINE void NAME(begin_pieces)(const VEC *c, VEC *w)
{
    const REAL square = NAME(STEPS) * NAME(STEPS);
    const INTEGERS sign = (INTEGERS)NAME(spread)(-(REAL)0);
    for (int v = 0; v < GROUP; v++)
        w[v] = ROOT(square - LARGER(c[v], -c[v]) * square);
    for (int v = 0; v < GROUP; v++)
        w[v] = (VEC)((INTEGERS)w[v] | ((INTEGERS)c[v] & sign));
}

ALWAYS_INLINE void NAME(finish_pieces)(const VEC (*pieces)[2], VEC *c, const VEC *w)
{
    const REAL shift = 3 << 22; /* a sum with it is rounded to a whole number, in the lowest bits */
    VEC x[GROUP], sum[GROUP];
    INTEGERS piece[GROUP];
    for (int v = 0; v < GROUP; v++) {
        const VEC shifted = w[v] + shift;
        piece[v] = (INTEGERS)shifted;
        x[v] = w[v] - (shifted - shift);
    }
    for (int v = 0; v < GROUP; v++)
        sum[v] = LOOKUP(pieces[NAME(QUARTIC)], piece[v]);
    for (int i = NAME(QUARTIC) - 1; i >= 0; i--)
        for (int v = 0; v < GROUP; v++)
            sum[v] = sum[v] * x[v] + LOOKUP(pieces[i], piece[v]);
    for (int v = 0; v < GROUP; v++)
        c[v] = sum[v];
}

ALWAYS_INLINE void NAME(values_from_pieces)(const JOB(FullyConnectedJob) *job, VEC *c, const int count)
{
    VEC pieces[NAME(QUARTIC) + 1][2], w[GROUP], next[GROUP];
    memcpy(pieces, job->pieces, sizeof pieces);
    NAME(begin_pieces)(c, w);
    for (int v = 0; v < count; v += GROUP) {
        NAME(begin_pieces)(v + GROUP < count ? c + v + GROUP : c, next);
        NAME(finish_pieces)(pieces, c + v, w);
        memcpy(w, next, sizeof w);
    }
}
#endif

/* f(c) of `count` vectors, a multiple of GROUP, in place; a group's roots are under way during the one before. */
ALWAYS_INLINE void NAME(scalar_values)(const JOB(FullyConnectedJob) *job, VEC *c, const int count)
{
#ifdef LOOKUP
    if (job->pieces) {
        NAME(values_from_pieces)(job, c, count);
        return;
    }
#endif
    VEC t[GROUP], next[GROUP];
    NAME(begin_values)(c, t);
    for (int v = 0; v < count; v += GROUP) {
        NAME(begin_values)(v + GROUP < count ? c + v + GROUP : c, next);
        NAME(finish_values)(job, c + v, t);
        memcpy(t, next, sizeof t);
    }
}

/* Whether any of some vectors' lanes is closer to 1 or -1 than the threshold. */
ALWAYS_INLINE int NAME(any_near)(const JOB(FullyConnectedJob) *job, const VEC *c, const int count)
{
    VEC largest = LARGER(c[0], -c[0]);
    for (int v = 1; v < count; v++)
        largest = LARGER(largest, LARGER(c[v], -c[v]));
    return NAME(any)(largest > job->threshold);
}

/* Which ones of a row's; `first` is the number of their first. */
static int64_t NAME(flag)(const JOB(FullyConnectedJob) *job, const REAL *c, int64_t first, int64_t lanes,
                          int64_t *flagged)
{
    int64_t found = 0;
    for (int64_t lane = 0; lane < lanes; lane++)
        if (c[lane] > job->threshold || c[lane] < -job->threshold)
            flagged[found++] = first + lane;
    return found;
}

/* Some vectors of f of one row, from column j on, with their scales to the result; `lanes` of them are inside. */
ALWAYS_INLINE void NAME(put_row)(const JOB(FullyConnectedJob) *job, const VEC *values, const int count, int64_t i,
                                 int64_t j, int64_t lanes, REAL *place)
{
    for (int v = 0; v < count && v * LANES < lanes; v++) {
        const int64_t left = lanes - v * LANES;
        const size_t bytes = sizeof(REAL) * (size_t)left;
        VEC scales = {0};
        if (left >= LANES) /* a size known to the compiler: one instruction */
            memcpy(&scales, job->column_scale + j + v * LANES, sizeof scales);
        else
            memcpy(&scales, job->column_scale + j + v * LANES, bytes);
        const VEC value = values[v] * (scales * job->row_scale[i]);
        if (left >= LANES)
            memcpy(place + v * LANES, &value, sizeof value);
        else
            memcpy(place + v * LANES, &value, bytes);
    }
}

/* In place on a tile of correlations (rows, columns). Returns how many of them are closer to 1 or -1 than the
 * threshold; their places, i columns + j, go to flagged, for the caller to do again. */
static int64_t NAME(fully_connected)(const JOB(FullyConnectedJob) *job, REAL *tile, int64_t stride, int64_t *flagged)
{
    enum { WIDTH = GROUP * LANES };
    int64_t found = 0;
    for (int64_t i = 0; i < job->rows; i++)
        for (int64_t j = 0; j < job->columns; j += WIDTH) {
            const int64_t lanes = job->columns - j < WIDTH ? job->columns - j : WIDTH;
            REAL *place = tile + i * stride + j;
            VEC c[GROUP] = {{0}};
            if (lanes == WIDTH)
                memcpy(c, place, sizeof c);
            else
                memcpy(c, place, sizeof(REAL) * (size_t)lanes);
            if (NAME(any_near)(job, c, GROUP))
                found += NAME(flag)(job, (REAL *)c, i * job->columns + j, lanes, flagged + found);
            NAME(scalar_values)(job, c, GROUP);
            NAME(put_row)(job, c, GROUP, i, j, lanes, place);
        }
    return found;
}

/* ROWS rows times PANELS vectors of columns; rows[r] (d), panels (PANELS, d, LANES). */
ALWAYS_INLINE void NAME(product_block)(const REAL *const *rows, const VEC *panels, int64_t d, VEC (*sums)[PANELS])
{
    VEC sum[ROWS][PANELS];
    const VEC zero = {0};
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < PANELS; v++)
            sum[r][v] = zero;
#pragma GCC unroll 4
    for (int64_t k = 0; k < d; k++) {
        VEC column[PANELS];
#pragma GCC unroll 4
        for (int v = 0; v < PANELS; v++)
            column[v] = panels[v * d + k];
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            const REAL entry = rows[r][k];
#pragma GCC unroll 4
            for (int v = 0; v < PANELS; v++)
                sum[r][v] += column[v] * entry;
        }
    }
    memcpy(sums, sum, sizeof sum);
}

#if defined(__GNUC__)
#define SOON_WRITTEN(place) __builtin_prefetch(place, 1)
#else
#define SOON_WRITTEN(place) (void)(place)
#endif

/* The same with the product of unit vectors x (rows, d) and z (panels, d, LANES; zeros beyond the columns). */
static int64_t NAME(fully_connected_product)(const JOB(FullyConnectedJob) *job, const REAL *x, const REAL *z,
                                             int64_t d, REAL *out, int64_t stride, int64_t *flagged)
{
    enum { WIDTH = PANELS * LANES, LINE = 64 / sizeof(REAL) };
    int64_t found = 0;
    for (int64_t i = 0; i < job->rows; i += ROWS) {
        const int64_t rows_left = job->rows - i < ROWS ? job->rows - i : ROWS;
        const REAL *rows[ROWS];
        for (int64_t r = 0; r < ROWS; r++)
            rows[r] = x + d * (i + (r < rows_left ? r : rows_left - 1));
        for (int64_t j = 0; j < job->columns; j += WIDTH) {
            const int64_t lanes = job->columns - j < WIDTH ? job->columns - j : WIDTH;
            REAL *places = out + i * stride + j;
            for (int64_t r = 0; r < rows_left; r++) /* the result's lines come while the product is taken */
                for (int64_t lane = 0; lane < lanes; lane += LINE)
                    SOON_WRITTEN(places + r * stride + lane);
            VEC sums[ROWS][PANELS];
            NAME(product_block)(rows, (const VEC *)z + j / LANES * d, d, sums);
            if (NAME(any_near)(job, &sums[0][0], ROWS * PANELS))
                for (int64_t r = 0; r < rows_left; r++)
                    found += NAME(flag)(job, (REAL *)sums[r], (i + r) * job->columns + j, lanes, flagged + found);
            NAME(scalar_values)(job, &sums[0][0], ROWS * PANELS);
            for (int64_t r = 0; r < rows_left; r++)
                NAME(put_row)(job, sums[r], PANELS, i + r, j, lanes, places + r * stride);
        }
    }
    return found;
}

#ifdef TWO_VECTOR_SHUFFLE
/* One stage of a transpose in registers: blocks of `step` lanes change places between vectors k and k + step. */
ALWAYS_INLINE void NAME(exchange)(VEC *rows, const int step)
{
    INTEGERS low, high;
    for (int lane = 0; lane < LANES; lane++) {
        low[lane] = lane & step ? LANES + lane - step : lane;
        high[lane] = lane & step ? LANES + lane : lane + step;
    }
#pragma GCC unroll 16
    for (int k = 0; k < LANES; k++)
        if (!(k & step)) {
            const VEC a = rows[k], b = rows[k + step];
            rows[k] = __builtin_shuffle(a, b, low);
            rows[k + step] = __builtin_shuffle(a, b, high);
        }
}

/* A square of LANES x LANES. */
ALWAYS_INLINE void NAME(transpose_square)(const REAL *tile, int64_t stride, REAL *out, int64_t out_stride)
{
    VEC rows[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        memcpy(&rows[i], tile + i * stride, sizeof(VEC));
    NAME(exchange)(rows, 1);
    NAME(exchange)(rows, 2);
    NAME(exchange)(rows, 4);
    if (LANES == 16)
        NAME(exchange)(rows, 8 % LANES);
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        memcpy(out + i * out_stride, &rows[i], sizeof(VEC));
}
#else
ALWAYS_INLINE void NAME(transpose_square)(const REAL *tile, int64_t stride, REAL *out, int64_t out_stride)
{
    for (int64_t j = 0; j < LANES; j++)
        for (int64_t i = 0; i < LANES; i++)
            out[j * out_stride + i] = tile[i * stride + j];
}
#endif

/* out (columns, rows) <- the transpose of tile (rows, columns), in squares that stay in registers or near them. */
static void NAME(transpose)(const REAL *tile, int64_t stride, int64_t rows, int64_t columns, REAL *out,
                            int64_t out_stride)
{
    for (int64_t j0 = 0; j0 < columns; j0 += LANES)
        for (int64_t i0 = 0; i0 < rows; i0 += LANES) {
            if (i0 + LANES <= rows && j0 + LANES <= columns) {
                NAME(transpose_square)(tile + i0 * stride + j0, stride, out + j0 * out_stride + i0, out_stride);
                continue;
            }
            const int64_t j1 = j0 + LANES < columns ? j0 + LANES : columns;
            const int64_t i1 = i0 + LANES < rows ? i0 + LANES : rows;
            for (int64_t j = j0; j < j1; j++)
                for (int64_t i = i0; i < i1; i++)
                    out[j * out_stride + i] = tile[i * stride + j];
        }
}
