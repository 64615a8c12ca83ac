/* The mixing pass in C: gather k 8-bit sources, weigh, round, flip, write float32. Once over memory.
 *
 * Axes: n records, k sources of a record, d values of an image.
 * The arithmetic is that of mixing.py, operation for operation, in float32 and without fused
 * multiply-add (compile with -ffp-contract=off), so the results agree bit for bit:
 *
 *     a = sum of w_j * p_j, j ascending           s = 2a - total, clipped to [-total, total]
 *     not quantised:  m = s / total
 *     quantised:      m = sign(s) * floor(|s| * (levels / total) + (dither + 1/2) / 256) / levels
 *     e = m with its sign flipped where the mask bit is 1, and -0.0 as 0.0
 *
 * Plain C11, no Python: loaded with ctypes, which lets go of the interpreter during the call, so
 * several threads can each take a share of the records.
 */
#include <math.h>
#include <stdint.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

/* One body, three machines: the loader picks the widest vectors the processor has. */
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

/* Values worked on at a time: small enough that every temporary stays in the first-level cache. */
#define ALIGNED _Alignas(64)
enum { BLOCK = 512, MAX_SOURCES = 16 };

/* sums += w_j * p_j for sources j .. j+1; two at a time halves the traffic and keeps the order of sums. */
ALWAYS_INLINE void add_two(float *restrict sums, const uint8_t *const *sources, const float *weights,
                           int64_t offset, int count)
{
    const uint8_t *restrict p0 = sources[0] + offset, *restrict p1 = sources[1] + offset;
    const float w0 = weights[0], w1 = weights[1];
    for (int i = 0; i < count; i++)
        sums[i] = (sums[i] + w0 * (float)p0[i]) + w1 * (float)p1[i];
}

ALWAYS_INLINE void add_four(float *restrict sums, const uint8_t *const *sources, const float *weights,
                            int64_t offset, int count)
{
    const uint8_t *restrict p0 = sources[0] + offset, *restrict p1 = sources[1] + offset;
    const uint8_t *restrict p2 = sources[2] + offset, *restrict p3 = sources[3] + offset;
    const float w0 = weights[0], w1 = weights[1], w2 = weights[2], w3 = weights[3];
    for (int i = 0; i < count; i++)
        sums[i] = (((sums[i] + w0 * (float)p0[i]) + w1 * (float)p1[i]) + w2 * (float)p2[i]) + w3 * (float)p3[i];
}

ALWAYS_INLINE void add_sources(float *restrict sums, const uint8_t *const *sources, const float *weights,
                               int k, int64_t offset, int count)
{
    int j = 0;
    for (; j + 4 <= k; j += 4)
        add_four(sums, sources + j, weights + j, offset, count);
    for (; j + 2 <= k; j += 2)
        add_two(sums, sources + j, weights + j, offset, count);
    if (j < k) {
        const uint8_t *restrict last = sources[j] + offset;
        for (int i = 0; i < count; i++)
            sums[i] += weights[j] * (float)last[i];
    }
}

ALWAYS_INLINE float clipped(float sum, float total)
{
    const float s = 2.0f * sum - total;
    const float below = s > total ? total : s;
    return below < -total ? -total : below;
}

ALWAYS_INLINE void divide(float *restrict sums, float total, int count)
{
    for (int i = 0; i < count; i++)
        sums[i] = clipped(sums[i], total) / total;
}

ALWAYS_INLINE void quantise(float *restrict sums, const uint8_t *restrict dither, float total, float levels,
                            float ratio, int count)
{
    for (int i = 0; i < count; i++) {
        const float s = clipped(sums[i], total);
        const float offset = ((float)dither[i] + 0.5f) * (1.0f / 256.0f);
        /* Not negative, so the conversion to an integer rounds down. */
        const float level = (float)(int32_t)(fabsf(s) * ratio + offset);
        sums[i] = copysignf(level / levels, s);
    }
}

ALWAYS_INLINE void flip(float *restrict sums, const uint8_t *restrict sign_bits, int count)
{
    uint32_t flips[BLOCK];
    int i = 0;
    for (; i + 32 <= count; i += 32) {
        const uint8_t *bytes = sign_bits + i / 8;
        const uint32_t word = (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 |
                              (uint32_t)bytes[3] << 24;
        for (int bit = 0; bit < 32; bit++)
            flips[i + bit] = (word << (31 - bit)) & UINT32_C(0x80000000);
    }
    for (; i < count; i++)
        flips[i] = (uint32_t)(sign_bits[i / 8] >> (i % 8) & 1) << 31;
    for (i = 0; i < count; i++) {
        union { float value; uint32_t bits; } number = { .value = sums[i] };
        number.bits ^= flips[i];
        sums[i] = number.value;
    }
}

/* -0.0 becomes 0.0. A large output goes past the caches, which saves reading what is overwritten. */
ALWAYS_INLINE void write(float *restrict out, const float *restrict values, int streaming, int count)
{
#if defined(__SSE2__)
    if (streaming && ((uintptr_t)out & 15) == 0) {
        const __m128 zero = _mm_setzero_ps();
        int i = 0;
        for (; i + 4 <= count; i += 4)
            _mm_stream_ps(out + i, _mm_add_ps(_mm_load_ps(values + i), zero));
        for (; i < count; i++)
            out[i] = values[i] + 0.0f;
        return;
    }
#endif
    (void)streaming;
    for (int i = 0; i < count; i++)
        out[i] = values[i] + 0.0f;
}

/* The next record's pixels lie anywhere in memory; ask for them while this one is worked on. */
ALWAYS_INLINE void prefetch(const uint64_t *sources, int k, int64_t offset, int count)
{
#if defined(__GNUC__)
    for (int j = 0; j < k; j++)
        for (int line = 0; line < count; line += 64)
            __builtin_prefetch((const uint8_t *)(uintptr_t)sources[j] + offset + line);
#endif
}

/* Encode n records.
 *
 *   sources     (n, k) addresses of d bytes each
 *   weights     (n, k), k at most 16
 *   sign_bits   n rows of sign_stride bytes, bit i of a row at byte i / 8, position i % 8; or null
 *   dither      n rows of dither_stride bytes; or null for no quantisation
 *   streaming   not 0: write past the caches (for an output much larger than they are)
 *   out         (n, d)
 *
 * Returns 0, or 1 when k is out of range and nothing was written. */
FOR_EACH_MACHINE
int instahide_mix(const uint64_t *sources, const float *weights, int64_t n, int32_t k, int64_t d,
                  float total, const uint8_t *sign_bits, int64_t sign_stride, const uint8_t *dither,
                  int64_t dither_stride, float levels, int32_t streaming, float *out)
{
    if (k < 1 || k > MAX_SOURCES)
        return 1;
    for (int64_t record = 0; record < n; record++, sources += k, weights += k, out += d) {
        const uint8_t *pixels[MAX_SOURCES];
        for (int j = 0; j < k; j++)
            pixels[j] = (const uint8_t *)(uintptr_t)sources[j];
        for (int64_t offset = 0; offset < d; offset += BLOCK) {
            const int count = d - offset < BLOCK ? (int)(d - offset) : BLOCK;
            ALIGNED float values[BLOCK] = { 0 };
            if (record + 1 < n)
                prefetch(sources + k, k, offset, count);
            add_sources(values, pixels, weights, k, offset, count);
            if (dither)
                quantise(values, dither + record * dither_stride + offset, total, levels, levels / total, count);
            else
                divide(values, total, count);
            if (sign_bits)
                flip(values, sign_bits + record * sign_stride + offset / 8, count);
            write(out + offset, values, streaming, count);
        }
    }
#if defined(__SSE2__)
    _mm_sfence();
#endif
    return 0;
}
