/* Support vector machines on a precomputed kernel, one against one, along a grid of penalties C.
 *
 * For a pair of classes with signs y, in b = y * alpha, K the pair's kernel:
 *
 *     minimise b'Kb/2 - y'b   over  lower <= b <= upper,  sum b = 0;   f = y - Kb
 *
 * (lower, upper) is (0, C) where y = 1 and (-C, 0) where y = -1. A solution is one whose largest f over
 * b < upper exceeds its smallest f over b > lower by less than the tolerance: libsvm's rule.
 *
 * Two methods. Sequential minimal optimisation (Fan, Chen and Lin 2005), started from the solution of the
 * penalty before, does almost all problems. Where the kernel's rank is low and C large it crawls for
 * millions of steps; there a primal-dual interior-point method on K = GG', G from a pivoted Cholesky
 * factorisation (Fine and Scheinberg 2001), needs about 25 steps of n * rank^2. It is tried once sequential
 * steps have cost what it would cost, and sequential steps from its solution have the last word.
 *
 * Plain C11, no Python; loaded with ctypes, which lets go of the interpreter during the call.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define FOR_EACH_MACHINE __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_MACHINE
#endif
#if defined(__GNUC__)
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#else
#define ALWAYS_INLINE static inline
#endif

#define FAR 1e300 /* keeps an index out of a maximum or a minimum */
enum { INDEX_BITS = 16, FIRST_BUDGET = 1000, STEPS_FOR_RANK_SQUARED = 5, MAX_BARRIER_STEPS = 60 };
#define INDEX_MASK (((int64_t)1 << INDEX_BITS) - 1)

/* One pair at one penalty. Vectors have n entries; the kernel's rows are `stride` apart. */
typedef struct {
    int64_t n, stride;
    double *kernel, *diagonal, *y;
    double *b, *f, *lower, *upper;
    double *below, *above; /* 0 where b may grow, else -FAR; 0 where b may fall, else FAR */
    double penalty, gap;
    /* G (rank columns of n), and what is left of the diagonal */
    double *factor, *left;
    int64_t rank, capacity;
    int factored;
    double *work; /* WORK_VECTORS * n */
} pair;

enum { WORK_VECTORS = 24 };

ALWAYS_INLINE double dot(int64_t n, const double *restrict a, const double *restrict b)
{
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t t = 0; t < n; t++)
        sum += a[t] * b[t];
    return sum;
}

ALWAYS_INLINE void add(int64_t n, double scale, const double *restrict a, double *restrict to)
{
    for (int64_t t = 0; t < n; t++)
        to[t] += scale * a[t];
}

ALWAYS_INLINE double sum_of(int64_t n, const double *restrict a)
{
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t t = 0; t < n; t++)
        sum += a[t];
    return sum;
}

/* ---- sequential minimal optimisation ------------------------------------------------------------------ */

/* An integer ordered like x, its last bits replaced by the index: a plain maximum then finds the index too. */
ALWAYS_INLINE int64_t ordered(double x, int64_t index)
{
    int64_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits ^= (bits >> 63) & INT64_MAX;
    return (bits & ~INDEX_MASK) | index;
}

/* f -= step * (K_i - K_j); returns where f is largest among those that may grow. */
ALWAYS_INLINE int64_t move_and_choose(int64_t n, double step, const double *restrict ki, const double *restrict kj,
                                      double *restrict f, const double *restrict below,
                                      const double *restrict above, double *smallest)
{
    int64_t best = INT64_MIN;
    double least = 2 * FAR;
#pragma omp simd reduction(max : best) reduction(min : least)
    for (int64_t t = 0; t < n; t++) {
        const double moved = f[t] - step * (ki[t] - kj[t]);
        f[t] = moved;
        const int64_t key = ordered(moved + below[t], t);
        best = key > best ? key : best;
        const double falling = moved + above[t];
        least = falling < least ? falling : least;
    }
    *smallest = least;
    return best & INDEX_MASK;
}

/* The partner that promises the largest decrease, (f_i - f_j)^2 / |phi_i - phi_j|^2. */
ALWAYS_INLINE int64_t choose_partner(int64_t n, double top, double kii, const double *restrict ki,
                                     const double *restrict diagonal, const double *restrict f,
                                     const double *restrict above)
{
    int64_t best = INT64_MIN;
#pragma omp simd reduction(max : best)
    for (int64_t t = 0; t < n; t++) {
        double slope = top - (f[t] + above[t]);
        slope = slope > 0 ? slope : 0;
        double curvature = kii + diagonal[t] - 2 * ki[t];
        curvature = curvature > 1e-12 ? curvature : 1e-12;
        const int64_t key = ordered(slope * slope / curvature, t);
        best = key > best ? key : best;
    }
    return best & INDEX_MASK;
}

ALWAYS_INLINE void mark(pair *p, int64_t t)
{
    p->below[t] = p->b[t] < p->upper[t] ? 0 : -FAR;
    p->above[t] = p->b[t] > p->lower[t] ? 0 : FAR;
}

/* Steps until the gap is below the tolerance, `budget` at most; returns their number. f must fit b. */
ALWAYS_INLINE int64_t sequential_steps(pair *p, double tolerance, int64_t budget)
{
    const int64_t n = p->n;
    int64_t steps = 0, i = 0, j = 0;
    double step = 0, bottom;
    for (int64_t t = 0; t < n; t++)
        mark(p, t);
    for (;; steps++) {
        i = move_and_choose(n, step, p->kernel + i * p->stride, p->kernel + j * p->stride, p->f, p->below,
                            p->above, &bottom);
        const double top = p->f[i] + p->below[i];
        const double *ki = p->kernel + i * p->stride;
        p->gap = top - bottom;
        if (!(p->gap >= tolerance) || steps >= budget)
            return steps;
        j = choose_partner(n, top, p->diagonal[i], ki, p->diagonal, p->f, p->above);
        double curvature = p->diagonal[i] + p->diagonal[j] - 2 * ki[j];
        curvature = curvature > 1e-12 ? curvature : 1e-12;
        step = (p->f[i] - p->f[j]) / curvature;
        const double room_i = p->upper[i] - p->b[i], room_j = p->b[j] - p->lower[j];
        const int i_stops = step >= room_i && room_i <= room_j, j_stops = step >= room_j && room_j <= room_i;
        step = i_stops ? room_i : j_stops ? room_j : step;
        p->b[i] = i_stops ? p->upper[i] : p->b[i] + step;
        p->b[j] = j_stops ? p->lower[j] : p->b[j] - step;
        mark(p, i);
        mark(p, j);
    }
}

ALWAYS_INLINE void recompute_f(pair *p)
{
    for (int64_t t = 0; t < p->n; t++)
        p->f[t] = p->y[t] - dot(p->n, p->kernel + t * p->stride, p->b);
}

/* ---- interior-point method ---------------------------------------------------------------------------- */

/* Go on with the pivoted Cholesky factorisation up to `limit` columns. 1: complete, 0: not yet, -1: no memory. */
ALWAYS_INLINE int extend_factor(pair *p, int64_t limit, double scale)
{
    const int64_t n = p->n;
    limit = limit < n ? limit : n;
    if (p->capacity < limit) {
        double *larger = realloc(p->factor, sizeof(double) * (size_t)(limit * n));
        if (!larger)
            return -1;
        p->factor = larger;
        p->capacity = limit;
    }
    while (1) {
        int64_t pivot = 0;
        for (int64_t t = 1; t < n; t++)
            if (p->left[t] > p->left[pivot])
                pivot = t;
        if (!(p->left[pivot] > 1e-12 * scale) || p->rank == n)
            return p->factored = 1;
        if (p->rank >= limit)
            return 0;
        double *column = p->factor + p->rank * n;
        memcpy(column, p->kernel + pivot * p->stride, sizeof(double) * (size_t)n);
        for (int64_t c = 0; c < p->rank; c++)
            add(n, -p->factor[c * n + pivot], p->factor + c * n, column);
        const double root = sqrt(p->left[pivot]);
        for (int64_t t = 0; t < n; t++) {
            column[t] /= root;
            p->left[t] -= column[t] * column[t];
        }
        p->left[pivot] = 0;
        p->rank++;
    }
}

/* The matrix of one Newton step, K + diag(1/theta), and its inverse by Woodbury: L L' = 1 + G' theta G. */
typedef struct {
    int64_t n, rank;
    const double *factor, *theta;
    double *small, *scaled, *coordinates, *residual;
} newton;

ALWAYS_INLINE int factor_newton(newton *m)
{
    const int64_t n = m->n, r = m->rank;
    for (int64_t a = 0; a < r; a++) {
        for (int64_t t = 0; t < n; t++)
            m->scaled[t] = m->theta[t] * m->factor[a * n + t];
        for (int64_t c = 0; c <= a; c++)
            m->small[a * r + c] = dot(n, m->scaled, m->factor + c * n) + (a == c);
    }
    for (int64_t a = 0; a < r; a++) {
        double *row = m->small + a * r;
        for (int64_t c = 0; c < a; c++)
            row[c] = (row[c] - dot(c, row, m->small + c * r)) / m->small[c * r + c];
        const double pivot = row[a] - dot(a, row, row);
        if (!(pivot > 0))
            return 0;
        row[a] = sqrt(pivot);
    }
    return 1;
}

/* x = theta v - theta G (L L')^-1 G' theta v, added to x. */
ALWAYS_INLINE void add_woodbury(newton *m, const double *v, double *x)
{
    const int64_t n = m->n, r = m->rank;
    double *z = m->coordinates;
    for (int64_t t = 0; t < n; t++)
        m->scaled[t] = m->theta[t] * v[t];
    for (int64_t a = 0; a < r; a++)
        z[a] = (dot(n, m->factor + a * n, m->scaled) - dot(a, m->small + a * r, z)) / m->small[a * r + a];
    for (int64_t a = r - 1; a >= 0; a--) {
        z[a] /= m->small[a * r + a];
        add(a, -z[a], m->small + a * r, z);
    }
    add(n, 1, m->scaled, x);
    memset(m->scaled, 0, sizeof(double) * (size_t)n);
    for (int64_t a = 0; a < r; a++)
        add(n, z[a], m->factor + a * n, m->scaled);
    for (int64_t t = 0; t < n; t++)
        x[t] -= m->theta[t] * m->scaled[t];
}

/* (GG' + diag(1/theta)) x = v, with one step of refinement. */
ALWAYS_INLINE void solve_newton(newton *m, const double *v, double *x)
{
    const int64_t n = m->n;
    memset(x, 0, sizeof(double) * (size_t)n);
    add_woodbury(m, v, x);
    for (int64_t t = 0; t < n; t++)
        m->residual[t] = v[t] - x[t] / m->theta[t];
    for (int64_t a = 0; a < m->rank; a++)
        m->coordinates[a] = dot(n, m->factor + a * n, x);
    for (int64_t a = 0; a < m->rank; a++)
        add(n, -m->coordinates[a], m->factor + a * n, m->residual);
    add_woodbury(m, m->residual, x);
}

/* The largest part of the step that keeps values + part * change >= 0. */
ALWAYS_INLINE double room(int64_t n, const double *values, const double *change, double sign, double part)
{
    for (int64_t t = 0; t < n; t++)
        if (sign * change[t] < 0 && -values[t] > part * sign * change[t])
            part = -values[t] / (sign * change[t]);
    return part;
}

/* Mehrotra's predictor and corrector from the middle of the box. Writes b (its sum is 0, near bounds are
 * bounds); 0 when memory or numbers fail. */
ALWAYS_INLINE int barrier_steps(pair *p, double tolerance)
{
    const int64_t n = p->n, r = p->rank;
    const double C = p->penalty;
    double *w = p->work, *x = malloc(sizeof(double) * (size_t)(r * r + r + 1));
    if (!x)
        return 0;
    double *b = w, *s = w + n, *t = w + 2 * n, *z = w + 3 * n, *u = w + 4 * n, *theta = w + 5 * n;
    double *gradient = w + 6 * n, *dual = w + 7 * n, *ones = w + 8 * n, *h = w + 9 * n, *rhs = w + 10 * n;
    double *db = w + 11 * n, *dz = w + 12 * n, *du = w + 13 * n, *cs = w + 14 * n, *ct = w + 15 * n;
    newton m = {n, r, p->factor, theta, x + r, w + 16 * n, x, w + 17 * n};
    double *best = w + 18 * n; /* b, s and t of the best iterate: rounding spoils those after it */
    double lambda = 0, best_merit = INFINITY;
    int since_best = 0;
    int64_t positive = 0;
    for (int64_t i = 0; i < n; i++)
        positive += p->y[i] > 0;
    for (int64_t i = 0; i < n; i++) {
        b[i] = (p->y[i] > 0 ? (double)(n - positive) : -(double)positive) * C / (double)n;
        z[i] = u[i] = 1 + fabs(p->y[i]);
        ones[i] = 1;
    }
    for (int iteration = 0; iteration < MAX_BARRIER_STEPS; iteration++) {
        double mu = 0, worst = 0;
        for (int64_t i = 0; i < n; i++)
            gradient[i] = -p->y[i];
        for (int64_t a = 0; a < r; a++)
            add(n, dot(n, p->factor + a * n, b), p->factor + a * n, gradient);
        for (int64_t i = 0; i < n; i++) {
            if (iteration == 0) {
                s[i] = b[i] - p->lower[i];
                t[i] = p->upper[i] - b[i];
            }
            dual[i] = -(gradient[i] + lambda - z[i] + u[i]);
            worst = fmax(worst, fabs(dual[i]));
            mu += (s[i] * z[i] + t[i] * u[i]) / (double)(2 * n);
            theta[i] = 1 / (z[i] / s[i] + u[i] / t[i]);
        }
        const double merit = fmax(mu / (1e-11 * C), worst / (1e-2 * tolerance));
        since_best++;
        if (merit < best_merit) {
            memcpy(best, w, sizeof(double) * (size_t)(3 * n));
            best_merit = merit;
            since_best = 0;
        }
        if (!isfinite(merit) || best_merit < 1 || since_best == 4 || !factor_newton(&m))
            break;
        solve_newton(&m, ones, h);
        const double sum_h = sum_of(n, h), sum_b = sum_of(n, b);
        double dlambda = 0, part = 1;
        for (int corrector = 0; corrector < 2; corrector++) {
            double aim = 0;
            if (corrector) {
                double reached = 0;
                for (int64_t i = 0; i < n; i++)
                    reached += ((s[i] + part * db[i]) * (z[i] + part * dz[i]) +
                                (t[i] - part * db[i]) * (u[i] + part * du[i])) / (double)(2 * n);
                aim = mu * pow(reached / mu, 3);
            }
            for (int64_t i = 0; i < n; i++) {
                cs[i] = aim - s[i] * z[i] - (corrector ? db[i] * dz[i] : 0);
                ct[i] = aim - t[i] * u[i] + (corrector ? db[i] * du[i] : 0);
                rhs[i] = dual[i] + cs[i] / s[i] - ct[i] / t[i];
            }
            solve_newton(&m, rhs, db);
            dlambda = (sum_of(n, db) + sum_b) / sum_h;
            add(n, -dlambda, h, db);
            for (int64_t i = 0; i < n; i++) {
                dz[i] = (cs[i] - z[i] * db[i]) / s[i];
                du[i] = (ct[i] + u[i] * db[i]) / t[i];
            }
            part = corrector ? 1 / 0.995 : 1;
            part = room(n, s, db, 1, part);
            part = room(n, t, db, -1, part);
            part = room(n, z, dz, 1, part);
            part = room(n, u, du, 1, part);
        }
        part *= 0.995;
        for (int64_t i = 0; i < n; i++) {
            b[i] += part * db[i];
            s[i] += part * db[i];
            t[i] -= part * db[i];
            z[i] += part * dz[i];
            u[i] += part * du[i];
        }
        lambda += part * dlambda;
    }
    free(x);
    if (!isfinite(best_merit))
        return 0;
    memcpy(w, best, sizeof(double) * (size_t)(3 * n));
    double excess = 0, widest = 0;
    int64_t middle = -1;
    for (int64_t i = 0; i < n; i++) {
        p->b[i] = s[i] < 1e-8 * C ? p->lower[i] : t[i] < 1e-8 * C ? p->upper[i] : b[i];
        excess += p->b[i];
        const double width = fmin(p->b[i] - p->lower[i], p->upper[i] - p->b[i]);
        if (width > widest) {
            widest = width;
            middle = i;
        }
    }
    if (middle < 0 || fabs(excess) > widest)
        return 0;
    p->b[middle] -= excess;
    return 1;
}

/* ---- one pair, one penalty ---------------------------------------------------------------------------- */

/* Returns the number of sequential steps; `p->gap` says how near the solution is. */
ALWAYS_INLINE int64_t solve_pair(pair *p, double tolerance, int64_t max_steps, double scale)
{
    const int64_t n = p->n;
    int tried = 0;
    int64_t steps = 0, budget = FIRST_BUDGET;
    if (p->factored && STEPS_FOR_RANK_SQUARED * p->rank * p->rank > budget)
        budget = STEPS_FOR_RANK_SQUARED * p->rank * p->rank;
    for (;;) {
        budget = budget < max_steps - steps ? budget : max_steps - steps;
        steps += sequential_steps(p, tolerance, budget);
        if (p->gap < tolerance || steps >= max_steps)
            return steps;
        if (!tried && (p->factored || extend_factor(p, (int64_t)sqrt((double)steps / STEPS_FOR_RANK_SQUARED), scale) == 1)) {
            double *kept = p->work + 21 * n;
            const double gap_before = p->gap;
            tried = 1;
            memcpy(kept, p->b, sizeof(double) * (size_t)n);
            if (barrier_steps(p, tolerance)) {
                recompute_f(p);
                sequential_steps(p, tolerance, 0);
            }
            if (!(p->gap < gap_before)) {
                memcpy(p->b, kept, sizeof(double) * (size_t)n);
                recompute_f(p);
            }
        }
        budget *= 2;
    }
}

/* libsvm's intercept: the mean of f over free variables, or the middle of the allowed interval. */
ALWAYS_INLINE double intercept(const pair *p)
{
    double sum = 0, top = -FAR, bottom = FAR;
    int64_t free_ones = 0;
    for (int64_t t = 0; t < p->n; t++) {
        const int may_grow = p->b[t] < p->upper[t], may_fall = p->b[t] > p->lower[t];
        if (may_grow && may_fall) {
            sum += p->f[t];
            free_ones++;
        } else if (may_grow)
            top = fmax(top, p->f[t]);
        else if (may_fall)
            bottom = fmin(bottom, p->f[t]);
    }
    return free_ones ? sum / (double)free_ones : (top + bottom) / 2;
}

FOR_EACH_MACHINE
static int64_t solve_along_penalties(pair *p, const double *penalties, int64_t num_penalties, double tolerance,
                                     int64_t max_steps, double *solutions, double *intercepts, double *gaps,
                                     int64_t stride_between_penalties)
{
    const int64_t n = p->n;
    int64_t steps = 0;
    double scale = 0;
    for (int64_t t = 0; t < n; t++) {
        p->diagonal[t] = p->left[t] = p->kernel[t * p->stride + t];
        p->b[t] = 0;
        p->f[t] = p->y[t];
        scale = fmax(scale, p->diagonal[t]);
    }
    p->rank = p->factored = 0;
    int inside = 0;
    for (int64_t c = 0; c < num_penalties; c++) {
        p->penalty = penalties[c];
        for (int64_t t = 0; t < n; t++) {
            p->lower[t] = p->y[t] > 0 ? 0 : -p->penalty;
            p->upper[t] = p->y[t] > 0 ? p->penalty : 0;
        }
        if (!inside) /* a solution that touches no penalty is the solution of all larger ones */
            steps += solve_pair(p, tolerance, max_steps, scale);
        inside = p->gap < tolerance;
        for (int64_t t = 0; t < n; t++)
            inside &= fabs(p->b[t]) < p->penalty;
        memcpy(solutions + c * n, p->b, sizeof(double) * (size_t)n);
        intercepts[c * stride_between_penalties] = intercept(p);
        gaps[c * stride_between_penalties] = p->gap;
    }
    return steps;
}

/* All pairs of classes. kernel: (samples, samples) of doubles, rows `row_stride` apart. The samples of class a are
 * order[first[a]] .. order[first[a + 1] - 1]. penalties ascend.
 *
 * coefficients (penalties, samples, classes - 1), zero before: entry [c, i, q] of a sample of class a is its b
 * against class q + 1 when q >= a, against class q else. intercepts and gaps (penalties, pairs), pairs
 * (0,1), (0,2), .. (1,2), ..; the decision is sum b K + intercept, positive for the first class.
 *
 * Returns the number of sequential steps, -1 without memory, -2 when a pair has more than 65,536 samples. */
int64_t instahide_svm_grid(const double *kernel, int64_t row_stride, const int64_t *order, const int64_t *first,
                           int64_t num_classes, const double *penalties, int64_t num_penalties, double tolerance,
                           int64_t max_steps, double *coefficients, double *intercepts, double *gaps)
{
    const int64_t samples = first[num_classes], num_pairs = num_classes * (num_classes - 1) / 2;
    int64_t largest = 0, second = 0, total = 0, which = 0;
    for (int64_t a = 0; a < num_classes; a++) {
        const int64_t size = first[a + 1] - first[a];
        if (size > largest) {
            second = largest;
            largest = size;
        } else if (size > second)
            second = size;
    }
    const int64_t n_max = largest + second, stride_max = (n_max + 7) / 8 * 8;
    if (n_max > INDEX_MASK + 1)
        return -2;
    const size_t kernel_bytes = sizeof(double) * (size_t)(n_max * stride_max);
    double *block = aligned_alloc(64, (kernel_bytes + 63) / 64 * 64);
    double *vectors = malloc(sizeof(double) * (size_t)(n_max * (WORK_VECTORS + 9 + num_penalties)));
    int64_t *rows = malloc(sizeof(int64_t) * (size_t)n_max);
    pair p = {.factor = NULL, .capacity = 0};
    if (!block || !vectors || !rows) {
        total = -1;
        goto done;
    }
    for (int64_t a = 0; a < num_classes; a++)
        for (int64_t c = a + 1; c < num_classes; c++, which++) {
            const int64_t n_a = first[a + 1] - first[a], n_c = first[c + 1] - first[c], n = n_a + n_c;
            memcpy(rows, order + first[a], sizeof(int64_t) * (size_t)n_a);
            memcpy(rows + n_a, order + first[c], sizeof(int64_t) * (size_t)n_c);
            free(p.factor);
            p = (pair){.n = n, .stride = (n + 7) / 8 * 8, .kernel = block, .work = vectors};
            double **const parts[] = {&p.diagonal, &p.y, &p.b, &p.f, &p.lower, &p.upper, &p.below, &p.above, &p.left};
            for (int k = 0; k < 9; k++)
                *parts[k] = vectors + (WORK_VECTORS + k) * n;
            double *solutions = vectors + (WORK_VECTORS + 9) * n;
            for (int64_t i = 0; i < n; i++) {
                const double *row = kernel + rows[i] * row_stride;
                for (int64_t j = 0; j < n; j++)
                    block[i * p.stride + j] = row[rows[j]];
                p.y[i] = i < n_a ? 1 : -1;
            }
            total += solve_along_penalties(&p, penalties, num_penalties, tolerance, max_steps, solutions,
                                           intercepts + which, gaps + which, num_pairs);
            for (int64_t k = 0; k < num_penalties; k++)
                for (int64_t i = 0; i < n; i++)
                    coefficients[(k * samples + rows[i]) * (num_classes - 1) + (i < n_a ? c - 1 : a)] =
                        solutions[k * n + i];
        }
done:
    free(block);
    free(vectors);
    free(rows);
    free(p.factor);
    return total;
}
