/* The convolutional kernel for one number type and one machine. Included several times.
 *
 * Expects REAL, VEC (LANES of them; INTEGERS of the same size; WIDE as many doubles), PREFIX and MACHINE of the
 * names, ROOT(VEC), LARGER(VEC, VEC), and the degrees of the polynomials A ("slope") and B ("bend"): with
 * u = 1 - c and c >= 0,
 *
 *     k0(c) = (pi - arccos c)/pi = 1 - sqrt(u) A(u)        k1(c) = c + u sqrt(u) B(u)
 *
 * and k0(-c) = 1 - k0(c), k1(-c) = k1(c) - c.
 */

ALWAYS_INLINE VEC NAME(spread)(REAL value)
{
    const VEC zero = {0};
    return value - zero; /* a sum with zero would turn -0 into 0, so compilers must take it */
}

ALWAYS_INLINE VEC NAME(select)(INTEGERS condition, VEC a, VEC b)
{
    return (VEC)((condition & (INTEGERS)a) | (~condition & (INTEGERS)b));
}

/* The coefficients in every lane: read once a call, since stores between might change what a pointer points at. */
typedef struct {
    VEC slope[DEGREE_SLOPE + 1], bend[DEGREE_BEND + 1];
} NAME(Maps);

ALWAYS_INLINE NAME(Maps) NAME(maps_of)(const JOB(ConvolutionalJob) *job)
{
    NAME(Maps) maps;
    for (int i = 0; i <= DEGREE_SLOPE; i++)
        maps.slope[i] = NAME(spread)(job->slope[i]);
    for (int i = 0; i <= DEGREE_BEND; i++)
        maps.bend[i] = NAME(spread)(job->bend[i]);
    return maps;
}

/* Of S and of T, side by side: two streams of memory less to follow for each. */
typedef struct {
    VEC a, b;
} NAME(Pair);

typedef struct {
    VEC norm, inverse;
} NAME(Norms);

typedef struct {
    const JOB(ConvolutionalJob) *job;
    const REAL *x, *x_norms;    /* this image: (C, P), (R, P, 2) */
    int dy, dx, y0, y1, x0, x1; /* the displacement and the rows and columns where both are inside */
    NAME(Pair) *state;          /* S and T, (P) */
    NAME(Pair) *two, *last;     /* horizontal sums of the last two rows, of the last row, (W) */
    NAME(Pair) *nothing;        /* zeros, as if above the first row, (W) */
    NAME(Pair) *nowhere;        /* where the sums above the first row go, (W) */
} NAME(Walk);

/* What a pass over the state does at each place before the box. */
enum { NAME(INPUT), NAME(FIRST_RELU), NAME(RELU) };

/* Where one row of a displacement lies: state, norms and reciprocal norms, all seen from column 0 of x. */
typedef struct {
    NAME(Pair) *state;
    const NAME(Norms) *z_norms;
    const VEC *z;
    const REAL *x_norms, *x;
} NAME(Row);

ALWAYS_INLINE NAME(Row) NAME(row)(const NAME(Walk) *walk, int h, int y)
{
    const JOB(ConvolutionalJob) *job = walk->job;
    const int64_t pixels = (int64_t)job->height * job->width;
    const int64_t p = (int64_t)y * job->width, q = p + (int64_t)walk->dy * job->width + walk->dx;
    return (NAME(Row)){
        .state = walk->state + p,
        .z_norms = (const NAME(Norms) *)job->z_norms + h * pixels + q,
        .z = (const VEC *)job->z + q,
        .x_norms = walk->x_norms + 2 * (h * pixels + p),
        .x = walk->x + p,
    };
}

/* The inputs' products at one place, summed over channels. */
ALWAYS_INLINE VEC NAME(product)(const JOB(ConvolutionalJob) *job, const NAME(Row) *row, int x)
{
    const int64_t pixels = (int64_t)job->height * job->width;
    VEC sum = {0};
    for (int c = 0; c < job->channels; c++)
        sum += row->z[c * pixels + x] * row->x[c * pixels + x];
    return sum;
}

/* A ReLU is taken in two halves, so that square roots are under way while the places before them are finished: the
 * machine looks ahead over a few dozen instructions only. This is what the first half leaves for the second. */
typedef struct {
    VEC gap, u, h;
} NAME(Begun);

ALWAYS_INLINE void NAME(begin)(const NAME(Row) *row, int x, const int rows, const int stage, NAME(Begun) *begun)
{
    const VEC zero = {0};
    if (stage == NAME(INPUT))
        return;
    for (int r = 0; r < rows; r++) {
        const VEC s = row[r].state[x].a, size = stage == NAME(FIRST_RELU) ? LARGER(s, -s) : s;
        begun[r].gap = LARGER(row[r].z_norms[x].norm * row[r].x_norms[2 * x] - size, zero);
    }
    for (int r = 0; r < rows; r++)
        begun[r].u = begun[r].gap * (row[r].z_norms[x].inverse * row[r].x_norms[2 * x + 1]);
    for (int r = 0; r < rows; r++)
        begun[r].h = ROOT(begun[r].u);
}

/* One polynomial at u of some rows, step by step together. */
ALWAYS_INLINE void NAME(polynomial)(const VEC *coefficients, const int degree, const NAME(Begun) *begun,
                                    const int rows, VEC *sum)
{
    for (int r = 0; r < rows; r++)
        sum[r] = begun[r].u * coefficients[degree] + coefficients[degree - 1];
    for (int i = degree - 2; i >= 0; i--)
        for (int r = 0; r < rows; r++)
            sum[r] = sum[r] * begun[r].u + coefficients[i];
}

/* One stage at one column of some rows: A = nn' k1(c) and B = T k0(c) + A. */
ALWAYS_INLINE void NAME(finish)(const NAME(Walk) *walk, const NAME(Row) *row, const NAME(Maps) *maps, int x,
                                const int rows, const int stage, const NAME(Begun) *begun, NAME(Pair) *out)
{
    const VEC zero = {0};
    if (stage == NAME(INPUT)) {
        for (int r = 0; r < rows; r++)
            out[r] = (NAME(Pair)){NAME(product)(walk->job, &row[r], x), zero};
        return;
    }
    /* Coefficients that do not fit into the registers are read once for all rows. */
    const int together = DEGREE_SLOPE + DEGREE_BEND > 16 ? rows : 1;
    VEC slopes[STRIP], bends[STRIP];
    for (int r = 0; r < rows; r += together) {
        NAME(polynomial)(maps->slope, DEGREE_SLOPE, begun + r, together, slopes + r);
        NAME(polynomial)(maps->bend, DEGREE_BEND, begun + r, together, bends + r);
    }
    for (int r = 0; r < rows; r++) {
        const VEC s = row[r].state[x].a, h = begun[r].h;
        const VEC k0 = 1 - h * slopes[r], bend = begun[r].gap * (h * bends[r]); /* k0 of |c| */
        if (stage == NAME(RELU)) {
            out[r].a = s + bend;
            out[r].b = row[r].state[x].b * k0 + out[r].a;
        } else {
            const VEC t = walk->job->first_fixed ? zero : s; /* T_1 is S_1 or 0 */
            out[r].a = LARGER(s, zero) + bend;
            out[r].b = t * NAME(select)(s < 0, 1 - k0, k0) + out[r].a;
        }
    }
}

/* Where the vertical sums of a strip of rows come from and go to. */
typedef struct {
    const NAME(Pair) *two_in, *last_in;
    NAME(Pair) *two_out, *last_out, *above, *state;
} NAME(Lines);

ALWAYS_INLINE NAME(Pair) NAME(sum)(NAME(Pair) x, NAME(Pair) y, const int tangent)
{
    return (NAME(Pair)){x.a + y.a, tangent ? x.b + y.b : y.b};
}

ALWAYS_INLINE void NAME(put)(NAME(Pair) *place, NAME(Pair) value, const int tangent)
{
    place->a = value.a;
    if (tangent)
        place->b = value.b;
}

/* Adds the strip's horizontal sums at one column; a finished vertical sum goes to the row above its last. */
ALWAYS_INLINE void NAME(roll)(const NAME(Lines) *lines, int64_t width, int column, const NAME(Pair) *across,
                              const int rows, const int tangent)
{
    const NAME(Pair) last = lines->last_in[column];
    NAME(put)(&lines->above[column], NAME(sum)(lines->two_in[column], across[0], tangent), tangent);
    NAME(Pair) two = NAME(sum)(last, across[0], tangent);
    for (int r = 1; r < rows; r++) {
        const NAME(Pair) next = NAME(sum)(across[r - 1], across[r], tangent);
        const NAME(Pair) whole = r == 1 ? NAME(sum)(last, next, tangent) : NAME(sum)(two, across[r], tangent);
        NAME(put)(&lines->state[(r - 1) * width + column], whole, tangent);
        two = next;
    }
    NAME(put)(&lines->two_out[column], two, tangent);
    NAME(put)(&lines->last_out[column], across[rows - 1], tangent);
}

/* One stage and its box on some rows, in place, a row behind the reading. */
ALWAYS_INLINE void NAME(strip)(const NAME(Walk) *walk, const NAME(Maps) *maps, int h, int y, const int rows,
                               const int stage, const int tangent)
{
    const int64_t width = walk->job->width;
    const int x0 = walk->x0, x1 = walk->x1, is_first = y == walk->y0, is_last = y + rows == walk->y1;
    NAME(Row) row[STRIP];
    for (int r = 0; r < rows; r++)
        row[r] = NAME(row)(walk, h, y + r);
    const NAME(Lines) lines = {
        .two_in = is_first ? walk->nothing : walk->two,
        .last_in = is_first ? walk->nothing : walk->last,
        .two_out = is_last ? row[rows - 1].state : walk->two, /* no row below to wait for */
        .last_out = walk->last,
        .above = is_first ? walk->nowhere : row[0].state - width,
        .state = row[0].state,
    };
    NAME(Begun) begun[STRIP], next[STRIP];
    NAME(Pair) before[STRIP], now[STRIP], two[STRIP], across[STRIP]; /* two: sums over the last two columns */
    NAME(begin)(row, x0, rows, stage, begun);
    NAME(begin)(row, x0 + (x0 + 1 < x1), rows, stage, next);
    NAME(finish)(walk, row, maps, x0, rows, stage, begun, before);
    for (int r = 0; r < rows; r++) {
        two[r] = before[r];
        begun[r] = next[r];
    }
    for (int x = x0 + 1; x < x1; x++) {
        NAME(begin)(row, x + (x + 1 < x1), rows, stage, next);
        NAME(finish)(walk, row, maps, x, rows, stage, begun, now);
        for (int r = 0; r < rows; r++) {
            across[r] = NAME(sum)(two[r], now[r], tangent);
            two[r] = NAME(sum)(before[r], now[r], tangent);
            before[r] = now[r];
            begun[r] = next[r];
        }
        NAME(roll)(&lines, width, x - 1, across, rows, tangent);
    }
    NAME(roll)(&lines, width, x1 - 1, two, rows, tangent);
}

/* S, T <- box(A), box(B): one ReLU and one convolution, or of the inputs' products the first convolution. */
ALWAYS_INLINE void NAME(layer)(const NAME(Walk) *walk, int h, const int stage, const int tangent)
{
    const NAME(Maps) maps = NAME(maps_of)(walk->job);
    int y = walk->y0;
    for (; y + STRIP <= walk->y1; y += STRIP)
        NAME(strip)(walk, &maps, h, y, STRIP, stage, tangent);
    for (; y < walk->y1; y++)
        NAME(strip)(walk, &maps, h, y, 1, stage, tangent);
}

/* The last ReLU, weighed and summed over the places; row sums in REAL, rows added in double. */
ALWAYS_INLINE void NAME(last_layer)(const NAME(Walk) *walk, int h, const int stage, const int tangent, WIDE *sums)
{
    const JOB(ConvolutionalJob) *job = walk->job;
    const REAL *row_weight = job->row_weights + (int64_t)(walk->dy + job->height - 1) * job->height;
    const REAL *column_weight = job->column_weights + (int64_t)(walk->dx + job->width - 1) * job->width;
    const int last_fixed = job->last_fixed;
    const NAME(Maps) maps = NAME(maps_of)(job);
    for (int y = walk->y0; y < walk->y1; y++) {
        const NAME(Row) row = NAME(row)(walk, h, y);
        VEC sum = {0};
        NAME(Begun) begun, next;
        NAME(begin)(&row, walk->x0, 1, stage, &begun);
        for (int x = walk->x0; x < walk->x1; x++) {
            NAME(Pair) now;
            NAME(begin)(&row, x + (x + 1 < walk->x1), 1, stage, &next);
            NAME(finish)(walk, &row, &maps, x, 1, stage, &begun, &now);
            begun = next;
            const VEC value = !tangent ? now.a : last_fixed ? now.b - now.a : now.b;
            sum += value * column_weight[x];
        }
        *sums += __builtin_convertvector(sum, WIDE) * (double)row_weight[y];
    }
}

/* S, T <- S, T / 9^PERIOD. */
static void NAME(shrink)(const NAME(Walk) *walk)
{
    const int64_t width = walk->job->width;
    const REAL factor = (REAL)pow(9, -PERIOD);
    for (int64_t y = walk->y0; y < walk->y1; y++)
        for (int64_t x = walk->x0; x < walk->x1; x++) {
            NAME(Pair) *place = walk->state + y * width + x;
            *place = (NAME(Pair)){place->a * factor, place->b * factor};
        }
}

ALWAYS_INLINE void NAME(chain)(const NAME(Walk) *walk, const int tangent, WIDE *sums)
{
    const int last = walk->job->num_relus - 1;
    NAME(layer)(walk, 0, NAME(INPUT), 0);
    if (last == 0) {
        NAME(last_layer)(walk, 0, NAME(FIRST_RELU), tangent, sums);
        return;
    }
    NAME(layer)(walk, 0, NAME(FIRST_RELU), tangent);
    for (int h = 1; h <= last; h++) {
        if (h % PERIOD == 0)
            NAME(shrink)(walk);
        if (h < last)
            NAME(layer)(walk, h, NAME(RELU), tangent);
    }
    NAME(last_layer)(walk, last, NAME(RELU), tangent, sums);
}

static void NAME(tangent_chain)(const NAME(Walk) *walk, WIDE *sums) { NAME(chain)(walk, 1, sums); }
static void NAME(gaussian_chain)(const NAME(Walk) *walk, WIDE *sums) { NAME(chain)(walk, 0, sums); }

/* Rows first to last-1 of one column block of LANES images; out is (rows, LANES) float64. */
static void NAME(convolutional)(const JOB(ConvolutionalJob) *job, int64_t first, int64_t last, double *out)
{
    const int height = job->height, width = job->width;
    const int64_t pixels = (int64_t)height * width;
    NAME(Walk) walk = {.job = job, .state = (NAME(Pair) *)job->scratch};
    walk.two = walk.state + pixels;
    walk.last = walk.two + width;
    walk.nothing = walk.last + width;
    walk.nowhere = walk.nothing + width;
    memset(walk.state, 0, sizeof(NAME(Pair)) * (size_t)pixels); /* a Gaussian process never writes its T */
    memset(walk.nothing, 0, sizeof(NAME(Pair)) * (size_t)width);
    const double ninths = pow(9, -1 - (job->num_relus - 1) % PERIOD); /* one of each layer, not yet taken */
    for (int64_t i = first; i < last; i++) {
        WIDE sums = {0};
        walk.x = job->x + i * job->channels * pixels;
        walk.x_norms = job->x_norms + 2 * i * job->num_relus * pixels;
        for (int dy = -job->reach_y; dy <= job->reach_y; dy++)
            for (int dx = -job->reach_x; dx <= job->reach_x; dx++) {
                walk.dy = dy, walk.dx = dx;
                walk.y0 = dy < 0 ? -dy : 0, walk.y1 = dy > 0 ? height - dy : height;
                walk.x0 = dx < 0 ? -dx : 0, walk.x1 = dx > 0 ? width - dx : width;
                if (job->tangent)
                    NAME(tangent_chain)(&walk, &sums);
                else
                    NAME(gaussian_chain)(&walk, &sums);
            }
        for (int lane = 0; lane < LANES; lane++)
            out[i * LANES + lane] = sums[lane] * ninths;
    }
}

/* Norms of images from their channels' summed squares (N, P), n_1 = sqrt(box), n_{h+1}^2 = box(n_h^2) / 9, each
 * beside its reciprocal and times the 3s that the walk has kept back (half of its 9s). */
static void NAME(norms)(const double *squares, int64_t count, int32_t height, int32_t width, int32_t num_relus,
                        REAL *norms, double *scratch)
{
    const int64_t pixels = (int64_t)height * width;
    double *square = scratch, *across = scratch + pixels;
    for (int64_t i = 0; i < count; i++) {
        memcpy(square, squares + i * pixels, sizeof(double) * (size_t)pixels);
        for (int h = 0; h < num_relus; h++) {
            const double share = h ? 1.0 / 9 : 1.0, grown = pow(3, h % PERIOD);
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
            REAL *norm = norms + 2 * (i * num_relus + h) * pixels;
            for (int64_t p = 0; p < pixels; p++) {
                const double root = sqrt(square[p]) * grown;
                norm[2 * p] = (REAL)root;
                norm[2 * p + 1] = root > 0 ? (REAL)(1 / root) : 0;
            }
        }
    }
}
