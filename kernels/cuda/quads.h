/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Four elements that follow each other in one lane, for the kernels that move most bytes: the quads of a warp lie side by side,
 * one Philox block serves a quad where random bits are regular, and most have one scale.
 */
#ifndef ISGQ_KERNELS_CUDA_QUADS_H
#define ISGQ_KERNELS_CUDA_QUADS_H

#include "kernels/cuda/map_parts.h"

enum { IQ_QUAD = 4, IQ_QUADS_STRIDE = 32 * IQ_QUAD };

typedef iq_vector<uint32_t, IQ_QUAD> iq_codes_t;

/* 1.5 * 2^23: added to a small float, its last place is 1, and floor(y) stands in the lower bits. */
#define IQ_MAGIC 12582912.0f
#define IQ_MAGIC_BITS 0x4b400000u

/*
 * iq_round_stochastic plus IQ_MAGIC_BITS, for grids of less than 2^22 codes, in fewer steps with the same results: the floor
 * comes from an addition that rounds down, the fraction times 2^24 from multiplications and additions that are exact but for the
 * one rounding of the fraction, and a comparison is the sign of a difference.
 */
static __device__ __forceinline__ uint32_t iq_magic_stochastic(float y, float low, float high, uint32_t random)
{
    y = fminf(fmaxf(y, low), high);
    float whole = __fadd_rd(y, IQ_MAGIC);
    int32_t threshold = (int32_t)fmaf(y, 16777216.0f, fmaf(whole, -16777216.0f, IQ_MAGIC * 16777216.0f));
    return iq_float_bits(whole) + (((random >> 8) - (uint32_t)threshold) >> 31);
}

static __device__ __forceinline__ uint32_t iq_magic_nearest(float y, float low, float high)
{
    y = fminf(fmaxf(y, low), high);
    float whole = __fadd_rd(y, IQ_MAGIC);
    return iq_float_bits(whole) + (y - (whole - IQ_MAGIC) >= 0.5f);
}

/* Grids without a shift, of the short rounding, with regular random bits. */
static inline bool iq_grid_fits_quads(const iq_grid_args_t *grid)
{
    return grid->top >= 2 && grid->top < 1u << 20 && (grid->regular || !grid->stochastic);
}

/* The random bits of the quad of element i. */
static __device__ __forceinline__ iq_philox_block_t iq_draw_quad(const iq_grid_args_t &grid, uint64_t call, uint32_t i)
{
    iq_philox_block_t block = iq_philox(grid.counter0 + i / IQ_QUAD, grid.counter1, (uint32_t)call, (uint32_t)(call >> 32),
                                        (uint32_t)grid.seed, (uint32_t)(grid.seed >> 32));
    iq_stratify<IQ_QUAD>(grid, block.word);
    return block;
}

/* The same of four elements that may begin anywhere in a block; `element` is the number of the first. */
static __device__ __forceinline__ iq_philox_block_t iq_draw_anywhere(const iq_grid_args_t &grid, uint64_t call, uint64_t element)
{
    uint32_t skip = (uint32_t)element % 4, random[2 * IQ_QUAD];
#pragma unroll
    for (uint32_t part = 0; part < 2; part++) {
        uint64_t quad = element / 4 + part;
        iq_philox_block_t block = iq_philox((uint32_t)quad, ((uint32_t)(quad >> 32) & 0xffu) | grid.tag, (uint32_t)call,
                                            (uint32_t)(call >> 32), (uint32_t)grid.seed, (uint32_t)(grid.seed >> 32));
#pragma unroll
        for (int j = 0; j < IQ_QUAD; j++)
            random[IQ_QUAD * part + j] = block.word[j];
    }
    iq_philox_block_t block;
#pragma unroll
    for (int j = 0; j < IQ_QUAD; j++) {
        uint32_t lower = skip & 1 ? random[j + 1] : random[j], upper = skip & 1 ? random[j + 3] : random[j + 2];
        block.word[j] = skip & 2 ? upper : lower;
    }
    iq_stratify<IQ_QUAD>(grid, block.word);
    return block;
}

/* What iq_encode_quad's codes have too much. */
static __device__ __forceinline__ uint32_t iq_encode_base(const iq_grid_args_t &grid)
{
    return IQ_MAGIC_BITS + (uint32_t)grid.base;
}

/* y: values times the inverse steps of their buckets. */
template <bool stochastic>
static __device__ __forceinline__ iq_codes_t iq_encode_quad(const iq_grid_args_t &grid, const iq_philox_block_t &random,
                                                            const float y[IQ_QUAD])
{
    float low = (float)grid.low, high = (float)grid.high;
    iq_codes_t code;
#pragma unroll
    for (int j = 0; j < IQ_QUAD; j++)
        code.item[j] = stochastic ? iq_magic_stochastic(y[j], low, high, random.word[j]) : iq_magic_nearest(y[j], low, high);
    return code;
}

/* The code of element i, of any bucket. */
static __device__ __forceinline__ uint32_t iq_encode_one(const iq_grid_args_t &grid, const iq_buckets_t &buckets, uint64_t call,
                                                         uint32_t i, float value)
{
    float y = value * iq_inverse_at(grid, iq_bucket_at(buckets, i));
    if (!grid.stochastic)
        return (uint32_t)(iq_round_nearest(y, grid.low, grid.high) - grid.base);
    iq_philox_block_t block = iq_draw_quad(grid, call, i);
    uint32_t lower = i & 1 ? block.word[1] : block.word[0], upper = i & 1 ? block.word[3] : block.word[2];
    return (uint32_t)(iq_round_stochastic(y, (i & 2 ? upper : lower) >> 8, grid.low, grid.high) - grid.base);
}

/* Are elements up to `end` there, and all in this bucket? */
static __device__ __forceinline__ bool iq_is_even(uint32_t count, const iq_buckets_t &buckets, uint32_t end, uint32_t bucket)
{
    return end <= count && end <= iq_bucket_end(buckets, bucket);
}

/* Elements that have codes: packed ones come in groups of eight. */
static __device__ __forceinline__ uint32_t iq_coded(uint32_t count) { return (count + 7) / 8 * 8; }

/* ---- quads that may hold elements that do not exist, or several buckets. `even`: neither, by iq_is_even ---- */

/* From element i on; those that do not exist are 0. */
template <typename as_t>
static __device__ __forceinline__ void iq_load_quad(const void *data, bool aligned, uint32_t i, uint32_t count,
                                                    float value[IQ_QUAD])
{
    typedef typename as_t::item_t item_t;
    const item_t *src = (const item_t *)data + i;
    if (aligned && i + IQ_QUAD <= count) {
        iq_vector<item_t, IQ_QUAD> item = iq_load<IQ_QUAD>(src);
#pragma unroll
        for (int j = 0; j < IQ_QUAD; j++)
            value[j] = as_t::widen(item.item[j]);
    } else {
#pragma unroll
        for (uint32_t j = 0; j < IQ_QUAD; j++)
            value[j] = i + j < count ? as_t::widen(src[j]) : 0.0f;
    }
}

template <typename as_t>
static __device__ __forceinline__ void iq_store_quad(void *data, bool aligned, bool accumulate, uint32_t i, uint32_t count,
                                                     const float value[IQ_QUAD])
{
    typedef typename as_t::item_t item_t;
    item_t *dst = (item_t *)data + i;
    iq_vector<item_t, IQ_QUAD> item;
#pragma unroll
    for (int j = 0; j < IQ_QUAD; j++)
        item.item[j] = as_t::narrow(value[j]);
    if (accumulate) {
        float before[IQ_QUAD];
        iq_load_quad<as_t>(data, aligned, i, count, before);
#pragma unroll
        for (int j = 0; j < IQ_QUAD; j++)
            item.item[j] = as_t::narrow(before[j] + as_t::widen(item.item[j]));
    }
    if (aligned && i + IQ_QUAD <= count) {
        iq_store(dst, item);
    } else {
#pragma unroll
        for (uint32_t j = 0; j < IQ_QUAD; j++)
            if (i + j < count)
                dst[j] = item.item[j];
    }
}

/* Codes on any grid, 0 for elements that do not exist. `inverse` is that of the even quad's bucket. */
template <bool regular>
static __device__ __forceinline__ iq_codes_t iq_quad_codes(const iq_grid_args_t &grid, const iq_buckets_t &buckets, uint64_t call,
                                                           uint32_t i, uint32_t count, bool even, float inverse,
                                                           const float value[IQ_QUAD])
{
    float y[IQ_QUAD];
#pragma unroll
    for (uint32_t j = 0; j < IQ_QUAD; j++) {
        if (!even && i + j < count)
            inverse = iq_inverse_at(grid, iq_bucket_at(buckets, i + j));
        y[j] = value[j] * inverse + grid.shift;
    }
    iq_codes_t code;
    if (grid.stochastic)
        code =
            iq_encode_quad<true>(grid, regular ? iq_draw_quad(grid, call, i) : iq_draw_anywhere(grid, call, grid.first + i), y);
    else
        code = iq_encode_quad<false>(grid, {}, y);
#pragma unroll
    for (uint32_t j = 0; j < IQ_QUAD; j++)
        code.item[j] = even || i + j < count ? code.item[j] - iq_encode_base(grid) : 0;
    return code;
}

/* Values of codes or of their sums. `unit` is that of the even quad's bucket. */
static __device__ __forceinline__ void iq_quad_values(const iq_meaning_t &meaning, const iq_buckets_t &buckets, uint32_t *fault,
                                                      uint32_t i, uint32_t count, bool even, float unit, const iq_codes_t &code,
                                                      float value[IQ_QUAD])
{
#pragma unroll
    for (uint32_t j = 0; j < IQ_QUAD; j++) {
        if (!even && i + j < count)
            unit = iq_unit_at(meaning, meaning.scales, fault, iq_bucket_at(buckets, i + j));
        value[j] = iq_code_value(code.item[j], meaning.zero, unit);
    }
    if (meaning.divisor != 1.0f) {
#pragma unroll
        for (int j = 0; j < IQ_QUAD; j++)
            value[j] = value[j] / meaning.divisor;
    }
}

#endif
