/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The arithmetic of codecs on runs of values: one const table for each kind of CPU, all with the same bits.
 *
 * Nothing here knows ranks, messages or buckets. Pointers may have any alignment. Nothing allocates or fails.
 *
 * Packed codes are a little-endian bit stream: code i of width w occupies bits i*w .. i*w + w - 1, so eight codes are exactly w
 * bytes. A run of `count` codes takes iq_packed_bytes(count, w) bytes; the bits after the last code are zero.
 */
#ifndef ISGQ_KERNELS_KERNELS_H
#define ISGQ_KERNELS_KERNELS_H

#include "kernels/quant_math.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Values wherever the caller's bytes happen to lie. */
#define IQ_UNALIGNED __attribute__((aligned(1), may_alias))
typedef float iq_f32_any_t IQ_UNALIGNED;
typedef double iq_f64_any_t IQ_UNALIGNED;
typedef uint16_t iq_u16_any_t IQ_UNALIGNED;
typedef uint32_t iq_u32_any_t IQ_UNALIGNED;
typedef uint64_t iq_u64_any_t IQ_UNALIGNED;

/*
 * How values become codes: y = x * inverse + shift, rounded to an integer within [low, high], minus low. So codes start at 0 and
 * fit 8 bits (high - low <= 255). NaN becomes code 0.
 */
typedef struct iq_grid {
    float inverse; /* 1 / step; 0 sends everything to the code of `shift` */
    float shift;
    int32_t low, high;
    bool stochastic;       /* else nearest, ties upwards */
    uint32_t stream, rank; /* where the random bits are (iq_draw); stochastic only */
    uint64_t seed, call;
    const uint32_t *strata; /* [256] offsets for iq_stratified_bits; NULL: the upper 24 bits of the word as they are */
} iq_grid_t;

#define IQ_SUM_TERMS 16

/* Sums as large as a tensor: how they are written, and what comes next. */
typedef struct iq_sum_output {
    bool streams;      /* past the caches (kernels/stream.h); iq_stream_end is the caller's */
    const void *ahead; /* as many bytes that will be read soon, or NULL; only looked at when it streams */
} iq_sum_output_t;

typedef struct iq_kernels {
    const char *name;     /* "portable", "avx2", ... */
    bool (*usable)(void); /* on this CPU */

    /* Largest |src[i]|, 0 for none; +Inf if any is NaN or Inf. */
    float (*absmax)(const iq_f32_any_t *src, size_t count);

    /* codes[i] = code of src[i]. Element i of the run is number first + i for the random numbers: 24 bits of word (number
     * mod 4) of iq_draw(seed, call, stream, rank, number). */
    void (*quantize)(const iq_grid_t *grid, uint64_t first, const iq_f32_any_t *src, size_t count, uint8_t *codes);

    /* The same for integers of up to 2^28 either way, which are not counted from `low`: codes[i] is in [low, high]. Only where
     * the grid is stochastic. */
    void (*quantize32)(const iq_grid_t *grid, uint64_t first, const iq_f32_any_t *src, size_t count, int32_t *codes);

    /* quantize and pack8 in one, width 1..8; and back: dst[i] = (float)(2 * code - offset) * unit / divisor, or += if `add`.
     * Returns the largest code. */
    void (*encode)(const iq_grid_t *grid, uint64_t first, const iq_f32_any_t *src, size_t count, unsigned width, void *packed);
    uint32_t (*decode)(const void *packed, size_t count, unsigned width, int32_t offset, float unit, float divisor, bool add,
                       iq_f32_any_t *dst);

    /* Width 1..8; codes are below 2^width. */
    void (*pack8)(const uint8_t *codes, size_t count, unsigned width, void *packed);
    void (*unpack8)(const void *packed, size_t count, unsigned width, uint8_t *codes);

    /* Width 1..32. */
    void (*pack32)(const iq_u32_any_t *codes, size_t count, unsigned width, void *packed);
    void (*unpack32)(const void *packed, size_t count, unsigned width, iq_u32_any_t *codes);

    /* sums[i] += codes[i] (or = if first); returns the largest code. */
    uint32_t (*add8)(const uint8_t *codes, size_t count, bool first, iq_u32_any_t *sums);
    uint32_t (*add32)(const iq_u32_any_t *codes, size_t count, bool first, iq_u32_any_t *sums);

    /* dst[i] = (float)(2 * sums[i] - offset) * unit / divisor. */
    void (*dequantize)(const iq_u32_any_t *sums, size_t count, int32_t offset, float unit, float divisor, iq_f32_any_t *dst);

    /* words[i] = the random word of element first + i, of the grid's seed, call, stream and rank; with strata, the 24 bits that
     * iq_stratified_bits makes of it. */
    void (*draw)(const iq_grid_t *grid, uint64_t first, size_t count, uint32_t *words);

    /* For rotations (kernels/hadamard.h). The transform of a power of two of values, not scaled; `room` is as large. And
     * values[i] *= factor, minus that where bit first + i of `signs` is set. */
    void (*hadamard)(float *values, size_t count, float *room);
    void (*flip)(const uint32_t *signs, size_t first, float factor, float *values, size_t count);

    /* dst[i] = (terms[0][i] + terms[1][i] + ...) / by, added in this order; 1 <= nterms <= IQ_SUM_TERMS. */
    void (*sum)(const void *const terms[], int nterms, size_t count, float by, iq_f32_any_t *dst, const iq_sum_output_t *output);

    /* Conversions, round to nearest even. */
    void (*f32_to_f16)(const iq_f32_any_t *src, size_t count, iq_u16_any_t *dst);
    void (*f16_to_f32)(const iq_u16_any_t *src, size_t count, iq_f32_any_t *dst);
    void (*f32_to_bf16)(const iq_f32_any_t *src, size_t count, iq_u16_any_t *dst);
    void (*bf16_to_f32)(const iq_u16_any_t *src, size_t count, iq_f32_any_t *dst);
} iq_kernels_t;

/* All rows, best last, ends with NULL. The first runs everywhere. */
extern const iq_kernels_t *const iq_kernel_rows[];

/* The best row for this CPU. Any thread. */
const iq_kernels_t *iq_kernels(void);

/* Bytes of `count` packed codes. */
static inline size_t iq_packed_bytes(size_t count, unsigned width) { return (count / 8 + (count % 8 != 0)) * width; }

/* Are the bits after the last of `count` packed codes zero, as every sender leaves them? */
bool iq_packed_is_clean(const void *packed, size_t count, unsigned width);

#endif
