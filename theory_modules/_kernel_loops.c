/* The inner loops of the exact kernels: the scalar function of the fully connected one, the
 * recursion of the convolutional one (_convolutional_body.h), for float and double and for three machines.
 *
 * Convolutional: the box of a 3x3 convolution moves the two places p and p' = p + (dy, dx) together, so each
 * displacement (dy, dx) is an image of its own: "3x3 box, pointwise map", no displacement talks to another
 * before the last sum. One image x stands against LANES images z, one in each lane of a vector, so the box
 * needs no shuffles; the state of a displacement (S and T) stays in the second-level cache over all layers.
 *
 * Plain C11 with GCC's vector types, no Python: loaded with ctypes, which lets go of the interpreter.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__)
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#else
#define ALWAYS_INLINE static inline
#endif
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define MANY_MACHINES 1
#include <immintrin.h>
#else
#define MANY_MACHINES 0
#endif
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi" /* wide vectors are passed between inlined functions only */
#endif

#define JOBS(REAL, PREFIX)                                                                                   \
    typedef struct {                                                                                         \
        int32_t height, width, channels, num_relus;                                                          \
        int32_t reach_y, reach_x;       /* displacements -reach .. reach are walked */                       \
        int32_t tangent;                /* 1: NTK, 0: NNGP */                                                \
        int32_t first_fixed, last_fixed; /* layers that contribute no gradient */                            \
        const REAL *x, *x_norms;        /* (N, C, P), (N, R, P, 2): norm and reciprocal norm */              \
        const REAL *z, *z_norms;        /* (C, P, LANES), (R, P, 2, LANES), aligned */                       \
        const REAL *row_weights, *column_weights; /* (2H-1, H) and (2W-1, W): of the last sum */             \
        const REAL *slope, *bend;       /* polynomials A and B of the body */                                \
        REAL *scratch;                  /* (P + 4 W, 2, LANES), aligned */                                   \
    } PREFIX##ConvolutionalJob;                                                                              \
    typedef struct {                                                                                         \
        const REAL *row_scale, *column_scale; /* (rows), (columns) */                                        \
        const REAL *positive, *negative;      /* (degree + 1), powers of t */                                \
        const REAL *pieces;                   /* (5, 32), or none */                                         \
        int64_t rows, columns;                                                                               \
        REAL threshold;                                                                                      \
        int32_t degree;                                                                                      \
    } PREFIX##FullyConnectedJob;

JOBS(float, single_)
JOBS(double, double_)

/* STRIP rows of a displacement are walked at a time: half the traffic of the box. The mean over the 3x3 window is
 * taken as a sum, so that no multiplication is spent on it: after PERIOD layers the state is 9^PERIOD too large, and
 * shrunk. */
enum { STRIP = 2, PERIOD = 16 };
enum { SINGLE_SLOPE = 6, SINGLE_BEND = 4, DOUBLE_SLOPE = 18, DOUBLE_BEND = 16 };

typedef float v16f __attribute__((vector_size(64)));
typedef double v8d __attribute__((vector_size(64)));
typedef double v16d __attribute__((vector_size(128)));
typedef int32_t v16i __attribute__((vector_size(64)));
typedef int64_t v8l __attribute__((vector_size(64)));

#define NAME_(prefix, machine, x) prefix##machine##x
#define NAME__(prefix, machine, x) NAME_(prefix, machine, x)
#define NAME(x) NAME__(MACHINE, PREFIX, x)
#define JOB_(prefix, x) prefix##x
#define JOB__(prefix, x) JOB_(prefix, x)
#define JOB(x) JOB__(PREFIX, x)

/* Lane by lane, for compilers and machines without more. */
#define BY_LANE(VEC, REAL, LANES, name, expression)                                                          \
    ALWAYS_INLINE VEC name(VEC a, VEC b)                                                                     \
    {                                                                                                        \
        REAL x[LANES], y[LANES];                                                                             \
        memcpy(x, &a, sizeof a);                                                                             \
        memcpy(y, &b, sizeof b);                                                                             \
        for (int i = 0; i < LANES; i++)                                                                      \
            x[i] = expression;                                                                               \
        memcpy(&a, x, sizeof a);                                                                             \
        return a;                                                                                            \
    }
BY_LANE(v16f, float, 16, single_root_any, sqrtf(x[i] + 0 * y[i]))
BY_LANE(v16f, float, 16, single_larger_any, x[i] > y[i] ? x[i] : y[i])
BY_LANE(v8d, double, 8, double_root_any, sqrt(x[i] + 0 * y[i]))
BY_LANE(v8d, double, 8, double_larger_any, x[i] > y[i] ? x[i] : y[i])

#define MACHINE any_
#define ROWS 4
#define PANELS 1
#define GROUP 2
#define SINGLE_ROOT(u) single_root_any(u, u)
#define DOUBLE_ROOT(u) double_root_any(u, u)
#define SINGLE_LARGER(a, b) single_larger_any(a, b)
#define DOUBLE_LARGER(a, b) double_larger_any(a, b)
#include "_kernel_types.h"
#undef MACHINE
#undef SINGLE_ROOT
#undef DOUBLE_ROOT
#undef SINGLE_LARGER
#undef DOUBLE_LARGER

#if MANY_MACHINES
#define BY_HALF(VEC, HALF, name, operation)                                                                  \
    ALWAYS_INLINE VEC name(VEC a, VEC b)                                                                     \
    {                                                                                                        \
        union { VEC whole; HALF half[2]; } x = {.whole = a}, y = {.whole = b};                               \
        (void)y;                                                                                             \
        x.half[0] = operation(x.half[0], y.half[0]);                                                         \
        x.half[1] = operation(x.half[1], y.half[1]);                                                         \
        return x.whole;                                                                                      \
    }
#define FIRST_ROOT_PS(a, b) _mm256_sqrt_ps(a)
#define FIRST_ROOT_PD(a, b) _mm256_sqrt_pd(a)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
BY_HALF(v16f, __m256, single_root_v3, FIRST_ROOT_PS)
BY_HALF(v8d, __m256d, double_root_v3, FIRST_ROOT_PD)
BY_HALF(v16f, __m256, single_larger_v3, _mm256_max_ps)
BY_HALF(v8d, __m256d, double_larger_v3, _mm256_max_pd)
#undef ROWS
#define ROWS 6
#define MACHINE v3_
#define SINGLE_ROOT(u) single_root_v3(u, u)
#define DOUBLE_ROOT(u) double_root_v3(u, u)
#define SINGLE_LARGER(a, b) single_larger_v3(a, b)
#define DOUBLE_LARGER(a, b) double_larger_v3(a, b)
#include "_kernel_types.h"
#undef MACHINE
#undef SINGLE_ROOT
#undef DOUBLE_ROOT
#undef SINGLE_LARGER
#undef DOUBLE_LARGER
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")
#if __GNUC__ >= 11
#pragma GCC target("tune=znver3") /* the order of instructions only: 4 % there */
#endif
#undef ROWS
#undef PANELS
#define ROWS 12
#define PANELS 2
#undef GROUP
#define GROUP 4
#define MACHINE v4_
#define TWO_VECTOR_SHUFFLE
#define SINGLE_LOOKUP(table, index)                                                                          \
    ((v16f)_mm512_permutex2var_ps((__m512)(table)[0], (__m512i)(index), (__m512)(table)[1]))
#define SINGLE_ROOT(u) ((v16f)_mm512_sqrt_ps((__m512)(u)))
#define DOUBLE_ROOT(u) ((v8d)_mm512_sqrt_pd((__m512d)(u)))
#define SINGLE_LARGER(a, b) ((v16f)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define DOUBLE_LARGER(a, b) ((v8d)_mm512_max_pd((__m512d)(a), (__m512d)(b)))
#include "_kernel_types.h"
#undef MACHINE
#undef TWO_VECTOR_SHUFFLE
#undef SINGLE_LOOKUP
#pragma GCC pop_options
#endif

/* 0: any machine, 3: AVX2, 4: AVX-512 */
int32_t kernel_machine(void)
{
#if MANY_MACHINES
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
        return 4;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return 3;
#endif
    return 0;
}

#if MANY_MACHINES
#define PICK(machine, name, ...)                                                                             \
    (machine == 4 ? v4_##name(__VA_ARGS__) : machine == 3 ? v3_##name(__VA_ARGS__) : any_##name(__VA_ARGS__))
#else
#define PICK(machine, name, ...) any_##name(__VA_ARGS__)
#endif

void convolutional_single(int32_t machine, const single_ConvolutionalJob *job, int64_t first, int64_t last, double *out)
{
    PICK(machine, single_convolutional, job, first, last, out);
}
void convolutional_double(int32_t machine, const double_ConvolutionalJob *job, int64_t first, int64_t last, double *out)
{
    PICK(machine, double_convolutional, job, first, last, out);
}
int64_t fully_connected_single(int32_t machine, const single_FullyConnectedJob *job, float *tile, int64_t stride,
                               int64_t *flagged)
{
    return PICK(machine, single_fully_connected, job, tile, stride, flagged);
}
int64_t fully_connected_double(int32_t machine, const double_FullyConnectedJob *job, double *tile, int64_t stride,
                               int64_t *flagged)
{
    return PICK(machine, double_fully_connected, job, tile, stride, flagged);
}
int64_t fully_connected_product_single(int32_t machine, const single_FullyConnectedJob *job, const float *x,
                                       const float *z, int64_t d, float *out, int64_t stride, int64_t *flagged)
{
    return PICK(machine, single_fully_connected_product, job, x, z, d, out, stride, flagged);
}
int64_t fully_connected_product_double(int32_t machine, const double_FullyConnectedJob *job, const double *x,
                                       const double *z, int64_t d, double *out, int64_t stride, int64_t *flagged)
{
    return PICK(machine, double_fully_connected_product, job, x, z, d, out, stride, flagged);
}

void transpose_single(int32_t machine, const float *tile, int64_t stride, int64_t rows, int64_t columns, float *out,
                      int64_t out_stride)
{
    PICK(machine, single_transpose, tile, stride, rows, columns, out, out_stride);
}
void transpose_double(int32_t machine, const double *tile, int64_t stride, int64_t rows, int64_t columns, double *out,
                      int64_t out_stride)
{
    PICK(machine, double_transpose, tile, stride, rows, columns, out, out_stride);
}

void norms_single(int32_t machine, const double *squares, int64_t count, int32_t height, int32_t width,
                  int32_t num_relus, float *norms, double *scratch)
{
    PICK(machine, single_norms, squares, count, height, width, num_relus, norms, scratch);
}
void norms_double(int32_t machine, const double *squares, int64_t count, int32_t height, int32_t width,
                  int32_t num_relus, double *norms, double *scratch)
{
    PICK(machine, double_norms, squares, count, height, width, num_relus, norms, scratch);
}
