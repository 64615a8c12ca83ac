/* The loops of _kernel_loops.c for one number type and one machine. Included several times.
 *
 * Expects: REAL, VEC (LANES of them; INTEGERS of the same size), PREFIX and MACHINE of the names, ROOT(VEC),
 * LARGER(VEC, VEC), and the degrees of the
 * polynomials A ("slope") and B ("bend"): with u = 1 - c and c >= 0,
 *
 *     k0(c) = (pi - arccos c)/pi = 1 - sqrt(u) A(u)        k1(c) = c + u sqrt(u) B(u)
 *
 * both over nine here, for the mean over the 3x3 window; k0(-c) = 1 - k0(c), k1(-c) = k1(c) - c.
 */

ALWAYS_INLINE VEC NAME(polynomial)(const VEC *coefficients, int degree, VEC x)
{
    VEC sum = x * coefficients[degree] + coefficients[degree - 1];
    for (int i = degree - 2; i >= 0; i--)
        sum = sum * x + coefficients[i];
    return sum;
}

ALWAYS_INLINE int NAME(any)(INTEGERS condition)
{
    uint64_t words[8], all = 0;
    memcpy(words, &condition, sizeof words);
    for (int i = 0; i < 8; i++)
        all |= words[i];
    return all != 0;
}

/* The coefficients in every lane: read once a call, since stores between might change what a pointer points at. */
typedef struct {
    VEC slope[DEGREE_SLOPE + 1], bend[DEGREE_BEND + 1];
} NAME(Maps);

ALWAYS_INLINE void NAME(spread)(NAME(Maps) *maps, const JOB(ConvolutionalJob) *job)
{
    const VEC zero = {0};
    for (int i = 0; i <= DEGREE_SLOPE; i++)
        maps->slope[i] = zero + job->slope[i];
    for (int i = 0; i <= DEGREE_BEND; i++)
        maps->bend[i] = zero + job->bend[i];
}

ALWAYS_INLINE VEC NAME(select)(INTEGERS condition, VEC a, VEC b)
{
    return (VEC)((condition & (INTEGERS)a) | (~condition & (INTEGERS)b));
}

typedef struct {
    VEC a, b;
} NAME(Pair);

/* One ReLU at one place: from S, T and the two norms to A = nn' k1(c)/9 and B = T k0(c)/9 + A. */
ALWAYS_INLINE NAME(Pair) NAME(rectified)(const NAME(Maps) *maps, VEC s, VEC t, VEC scale, VEC inverse, int any_sign, int tangent)
{
    const VEC zero = {0};
    const REAL ninth = (REAL)1 / 9;
    const VEC size = any_sign ? LARGER(s, -s) : s;
    const VEC gap = LARGER(scale - size, zero);
    const VEC u = gap * inverse;
    const VEC half_angle = ROOT(u);
    const VEC bend = gap * half_angle * NAME(polynomial)(maps->bend, DEGREE_BEND, u);
    NAME(Pair) result;
    result.a = (any_sign ? LARGER(s, zero) : s) * ninth + bend;
    if (!tangent) {
        result.b = zero;
        return result;
    }
    const VEC part = half_angle * NAME(polynomial)(maps->slope, DEGREE_SLOPE, u);
    const VEC slope = any_sign ? NAME(select)(s < 0, part, ninth - part) : ninth - part;
    result.b = t * slope + result.a;
    return result;
}

typedef struct {
    const JOB(ConvolutionalJob) *job;
    const REAL *x, *x_norm, *x_inverse; /* this image: (C, P), (R, P), (R, P) */
    int dy, dx, y0, y1, x0, x1;         /* the displacement and the rows and columns where both are inside */
    VEC *s, *t;                         /* state, (P) */
    VEC *pair_a, *last_a, *pair_b, *last_b; /* rows of horizontal sums: of the last two rows, of the last */
    VEC *nowhere;                           /* where the sums above the first row go */
} NAME(Walk);

/* Adds a row's horizontal sum h at one column; the finished vertical sum goes to the row above. */
ALWAYS_INLINE void NAME(roll)(VEC *above, VEC *pair, VEC *last, int column, VEC h)
{
    above[column] = pair[column] + h;
    pair[column] = last[column] + h;
    last[column] = h;
}

/* The last row's vertical sum has no row below it. */
ALWAYS_INLINE void NAME(finish)(const NAME(Walk) *walk, VEC *state, const VEC *pair)
{
    memcpy(state + (int64_t)(walk->y1 - 1) * walk->job->width + walk->x0, pair + walk->x0,
           sizeof(VEC) * (size_t)(walk->x1 - walk->x0));
}

/* The inputs' products at one place, summed over channels. */
ALWAYS_INLINE VEC NAME(product)(const NAME(Walk) *walk, int64_t p, int64_t q)
{
    const JOB(ConvolutionalJob) *job = walk->job;
    const int64_t pixels = (int64_t)job->height * job->width;
    const VEC *z = (const VEC *)job->z;
    VEC sum = {0};
    for (int c = 0; c < job->channels; c++)
        sum += z[c * pixels + q] * walk->x[c * pixels + p];
    return sum;
}

ALWAYS_INLINE void NAME(clear_rows)(const NAME(Walk) *walk)
{
    const size_t bytes = sizeof(VEC) * (size_t)walk->job->width;
    memset(walk->pair_a, 0, bytes);
    memset(walk->last_a, 0, bytes);
    memset(walk->pair_b, 0, bytes);
    memset(walk->last_b, 0, bytes);
}

/* S_1 = box(products). */
static void NAME(first_box)(const NAME(Walk) *walk)
{
    const int width = walk->job->width, x0 = walk->x0, x1 = walk->x1;
    VEC *pair = walk->pair_a, *last = walk->last_a;
    NAME(clear_rows)(walk);
    for (int y = walk->y0; y < walk->y1; y++) {
        const int64_t p = (int64_t)y * width, q = p + (int64_t)walk->dy * width + walk->dx;
        VEC *above = y > walk->y0 ? walk->s + p - width : walk->nowhere;
        VEC before = NAME(product)(walk, p + x0, q + x0), two = before;
        for (int x = x0 + 1; x < x1; x++) {
            const VEC now = NAME(product)(walk, p + x, q + x);
            NAME(roll)(above, pair, last, x - 1, two + now);
            two = before + now;
            before = now;
        }
        NAME(roll)(above, pair, last, x1 - 1, two);
    }
    NAME(finish)(walk, walk->s, pair);
}

/* Where one row of a displacement lies: state, norms and reciprocal norms, all seen from column 0 of x. */
typedef struct {
    VEC *s, *t;
    const VEC *z_norm, *z_inverse;
    const REAL *x_norm, *x_inverse;
} NAME(Row);

ALWAYS_INLINE NAME(Row) NAME(row)(const NAME(Walk) *walk, int h, int y)
{
    const JOB(ConvolutionalJob) *job = walk->job;
    const int64_t pixels = (int64_t)job->height * job->width;
    const int64_t p = (int64_t)y * job->width, q = p + (int64_t)walk->dy * job->width + walk->dx;
    return (NAME(Row)){
        .s = walk->s + p,
        .t = walk->t + p,
        .z_norm = (const VEC *)job->z_norm + h * pixels + q,
        .z_inverse = (const VEC *)job->z_inverse + h * pixels + q,
        .x_norm = walk->x_norm + h * pixels + p,
        .x_inverse = walk->x_inverse + h * pixels + p,
    };
}

ALWAYS_INLINE NAME(Pair) NAME(at)(const NAME(Row) *row, const NAME(Maps) *maps, int x, int any_sign, int tangent)
{
    return NAME(rectified)(maps, row->s[x], row->t[x], row->z_norm[x] * row->x_norm[x],
                           row->z_inverse[x] * row->x_inverse[x], any_sign, tangent);
}

/* S, T <- box(A), box(B): one ReLU and one convolution, in place, a row behind the reading. */
ALWAYS_INLINE void NAME(layer)(const NAME(Walk) *walk, int h, int any_sign, int tangent)
{
    const int width = walk->job->width, x0 = walk->x0, x1 = walk->x1;
    VEC *pair_a = walk->pair_a, *last_a = walk->last_a, *pair_b = walk->pair_b, *last_b = walk->last_b;
    const VEC zero = {0};
    NAME(Maps) maps;
    NAME(spread)(&maps, walk->job);
    NAME(clear_rows)(walk);
    for (int y = walk->y0; y < walk->y1; y++) {
        const NAME(Row) row = NAME(row)(walk, h, y);
        VEC *s_above = y > walk->y0 ? row.s - width : walk->nowhere;
        VEC *t_above = y > walk->y0 ? row.t - width : walk->nowhere;
        NAME(Pair) before = NAME(at)(&row, &maps, x0, any_sign, tangent);
        VEC a_two = before.a, b_two = before.b; /* sums over the last two columns */
        for (int x = x0 + 1; x < x1; x++) {
            const NAME(Pair) now = NAME(at)(&row, &maps, x, any_sign, tangent);
            NAME(roll)(s_above, pair_a, last_a, x - 1, a_two + now.a);
            if (tangent)
                NAME(roll)(t_above, pair_b, last_b, x - 1, b_two + now.b);
            a_two = before.a + now.a;
            b_two = before.b + now.b;
            before = now;
        }
        NAME(roll)(s_above, pair_a, last_a, x1 - 1, a_two);
        NAME(roll)(t_above, pair_b, last_b, x1 - 1, tangent ? b_two : zero);
    }
    NAME(finish)(walk, walk->s, pair_a);
    if (tangent)
        NAME(finish)(walk, walk->t, pair_b);
}

/* The last ReLU, weighed and summed over the places; row sums in REAL, rows added in double. */
ALWAYS_INLINE void NAME(last_layer)(const NAME(Walk) *walk, int h, int any_sign, int tangent, double *sums)
{
    const JOB(ConvolutionalJob) *job = walk->job;
    const REAL *row_weight = job->row_weights + (int64_t)(walk->dy + job->height - 1) * job->height;
    const REAL *column_weight = job->column_weights + (int64_t)(walk->dx + job->width - 1) * job->width;
    const int last_fixed = job->last_fixed;
    NAME(Maps) maps;
    NAME(spread)(&maps, job);
    for (int y = walk->y0; y < walk->y1; y++) {
        const NAME(Row) row = NAME(row)(walk, h, y);
        VEC sum = {0};
        for (int x = walk->x0; x < walk->x1; x++) {
            const NAME(Pair) now = NAME(at)(&row, &maps, x, any_sign, tangent);
            const VEC value = !tangent ? now.a : last_fixed ? now.b - now.a : now.b;
            sum += value * column_weight[x];
        }
        for (int lane = 0; lane < LANES; lane++)
            sums[lane] += (double)sum[lane] * (double)row_weight[y];
    }
}

ALWAYS_INLINE void NAME(chain)(const NAME(Walk) *walk, int tangent, double *sums)
{
    const JOB(ConvolutionalJob) *job = walk->job;
    const int64_t pixels = (int64_t)job->height * job->width;
    const int last = job->num_relus - 1;
    NAME(first_box)(walk);
    if (tangent && job->first_fixed)
        memset(walk->t, 0, sizeof(VEC) * (size_t)pixels);
    else if (tangent)
        memcpy(walk->t, walk->s, sizeof(VEC) * (size_t)pixels);
    if (last == 0) {
        NAME(last_layer)(walk, 0, 1, tangent, sums);
        return;
    }
    NAME(layer)(walk, 0, 1, tangent);
    for (int h = 1; h < last; h++)
        NAME(layer)(walk, h, 0, tangent);
    NAME(last_layer)(walk, last, 0, tangent, sums);
}

static void NAME(tangent_chain)(const NAME(Walk) *walk, double *sums) { NAME(chain)(walk, 1, sums); }
static void NAME(gaussian_chain)(const NAME(Walk) *walk, double *sums) { NAME(chain)(walk, 0, sums); }

/* Rows first to last-1 of one column block of LANES images; out is (rows, LANES) float64. */
static void NAME(convolutional)(const JOB(ConvolutionalJob) *job, int64_t first, int64_t last, double *out)
{
    const int height = job->height, width = job->width;
    const int64_t pixels = (int64_t)height * width;
    VEC *state = (VEC *)job->scratch;
    NAME(Walk) walk = {.job = job, .s = state, .t = state + pixels, .pair_a = state + 2 * pixels};
    walk.last_a = walk.pair_a + width;
    walk.pair_b = walk.last_a + width;
    walk.last_b = walk.pair_b + width;
    walk.nowhere = walk.last_b + width;
    for (int64_t i = first; i < last; i++) {
        double sums[LANES] = {0};
        walk.x = job->x + i * job->channels * pixels;
        walk.x_norm = job->x_norm + i * job->num_relus * pixels;
        walk.x_inverse = job->x_inverse + i * job->num_relus * pixels;
        for (int dy = -job->reach_y; dy <= job->reach_y; dy++)
            for (int dx = -job->reach_x; dx <= job->reach_x; dx++) {
                walk.dy = dy, walk.dx = dx;
                walk.y0 = dy < 0 ? -dy : 0, walk.y1 = dy > 0 ? height - dy : height;
                walk.x0 = dx < 0 ? -dx : 0, walk.x1 = dx > 0 ? width - dx : width;
                if (job->tangent)
                    NAME(tangent_chain)(&walk, sums);
                else
                    NAME(gaussian_chain)(&walk, sums);
            }
        memcpy(out + i * LANES, sums, sizeof sums);
    }
}

/* f in its two branches, at t = 2 sqrt(1 - |c|) - 1. */
ALWAYS_INLINE VEC NAME(scalar_value)(VEC c, const REAL *positive, const REAL *negative, int degree)
{
    const VEC zero = {0};
    const VEC t = ROOT(LARGER(1 - LARGER(c, -c), zero)) * 2 - 1;
    VEC above = t * positive[degree] + positive[degree - 1], below = t * negative[degree] + negative[degree - 1];
    for (int i = degree - 2; i >= 0; i--) {
        above = above * t + positive[i];
        below = below * t + negative[i];
    }
    return NAME(select)(c < 0, below, above);
}

ALWAYS_INLINE int64_t NAME(flag)(VEC c, REAL threshold, int64_t first, int64_t lanes, int64_t *flagged)
{
    int64_t found = 0;
    for (int64_t lane = 0; lane < lanes; lane++)
        if (c[lane] > threshold || c[lane] < -threshold)
            flagged[found++] = first + lane;
    return found;
}

/* In place on a tile of correlations (rows, columns): scale_i scale_j f(c). Returns how many of them are closer
 * to 1 or -1 than the threshold; their places, i columns + j, go to flagged, for the caller to do again. */
static int64_t NAME(fully_connected)(const JOB(FullyConnectedJob) *job, REAL *tile, int64_t stride, int64_t rows,
                                     int64_t columns, int64_t *flagged)
{
    int64_t found = 0;
    for (int64_t i = 0; i < rows; i++) {
        REAL *row = tile + i * stride;
        const REAL scale = job->row_scale[i];
        for (int64_t j = 0; j < columns; j += LANES) {
            const int64_t lanes = columns - j < LANES ? columns - j : LANES;
            const size_t bytes = sizeof(REAL) * (size_t)lanes;
            VEC c = {0}, scales = {0};
            if (lanes == LANES) { /* a size known to the compiler: one instruction */
                memcpy(&c, row + j, sizeof c);
                memcpy(&scales, job->column_scale + j, sizeof c);
            } else {
                memcpy(&c, row + j, bytes);
                memcpy(&scales, job->column_scale + j, bytes);
            }
            const VEC excess = LARGER(c, -c) - job->threshold;
            const INTEGERS near = excess > 0;
            if (NAME(any)(near))
                found += NAME(flag)(c, job->threshold, i * columns + j, lanes, flagged + found);
            c = NAME(scalar_value)(c, job->positive, job->negative, job->degree) * scales * scale;
            if (lanes == LANES)
                memcpy(row + j, &c, sizeof c);
            else
                memcpy(row + j, &c, bytes);
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

/* Norms of images from their channels' summed squares (N, P): n_1 = sqrt(box), n_{h+1}^2 = box(n_h^2) / 9. */
static void NAME(norms)(const double *squares, int64_t count, int32_t height, int32_t width, int32_t num_relus,
                        REAL *norms, REAL *inverses, double *scratch)
{
    const int64_t pixels = (int64_t)height * width;
    double *square = scratch, *across = scratch + pixels;
    for (int64_t i = 0; i < count; i++) {
        memcpy(square, squares + i * pixels, sizeof(double) * (size_t)pixels);
        for (int h = 0; h < num_relus; h++) {
            const double share = h ? 1.0 / 9 : 1.0;
            for (int y = 0; y < height; y++) {
                const double *in = square + (int64_t)y * width;
                double *out = across + (int64_t)y * width;
                for (int x = 0; x < width; x++)
                    out[x] = in[x];
                for (int x = 1; x < width; x++)
                    out[x] += in[x - 1];
                for (int x = 0; x < width - 1; x++)
                    out[x] += in[x + 1];
            }
            for (int y = 0; y < height; y++) {
                const double *at = across + (int64_t)y * width;
                double *out = square + (int64_t)y * width;
                for (int x = 0; x < width; x++)
                    out[x] = at[x] * share;
                if (y > 0)
                    for (int x = 0; x < width; x++)
                        out[x] += at[x - width] * share;
                if (y < height - 1)
                    for (int x = 0; x < width; x++)
                        out[x] += at[x + width] * share;
            }
            REAL *norm = norms + (i * num_relus + h) * pixels, *inverse = inverses + (i * num_relus + h) * pixels;
            for (int64_t p = 0; p < pixels; p++) {
                const double root = sqrt(square[p]);
                norm[p] = (REAL)root;
                inverse[p] = root > 0 ? (REAL)(1 / root) : 0;
            }
        }
    }
}
