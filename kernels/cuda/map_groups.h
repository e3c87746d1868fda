/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Eight elements in one lane, whatever their type, width, alignment and buckets, for kernels that know these at run time only:
 * eight codes are `width` whole bytes. A warp takes a tile of 256 elements. Packed codes pass through shared memory, so that
 * device memory sees whole words side by side.
 */
#ifndef ISGQ_KERNELS_CUDA_MAP_GROUPS_H
#define ISGQ_KERNELS_CUDA_MAP_GROUPS_H

#include "kernels/cuda/map_parts.h"

enum { IQ_GROUP = 8, IQ_GROUPS_TILE = 32 * IQ_GROUP, IQ_STAGE_WORDS = IQ_GROUPS_TILE + 2 };

/* The elements of one lane. */
typedef struct iq_group {
    uint32_t i;    /* the first one in the piece */
    uint32_t live; /* 0 to 8 of them exist */
} iq_group_t;

/* `left` elements remain from the tile's first on. */
static __device__ __forceinline__ iq_group_t iq_group_at(uint32_t tile, uint32_t left)
{
    uint32_t mine = threadIdx.x % 32 * IQ_GROUP;
    return {tile * IQ_GROUPS_TILE + mine, mine >= left ? 0 : left - mine < IQ_GROUP ? left - mine : (uint32_t)IQ_GROUP};
}

/* ---- values in memory ---- */

template <typename as_t>
static __device__ __forceinline__ void iq_load_as(const void *src, bool aligned, iq_group_t at, float value[IQ_GROUP])
{
    typedef typename as_t::item_t item_t;
    constexpr int length = 16 / (int)sizeof(item_t);
    if (aligned && at.live == IQ_GROUP) {
#pragma unroll
        for (int part = 0; part < IQ_GROUP / length; part++) {
            iq_vector<item_t, length> vector = iq_load<length>((const item_t *)src + at.i + part * length);
#pragma unroll
            for (int j = 0; j < length; j++)
                value[part * length + j] = as_t::widen(vector.item[j]);
        }
        return;
    }
#pragma unroll
    for (uint32_t j = 0; j < IQ_GROUP; j++)
        value[j] = j < at.live ? as_t::widen(((const item_t *)src)[at.i + j]) : 0.0f;
}

template <typename as_t>
static __device__ __forceinline__ void iq_store_as(void *dst, bool aligned, bool accumulate, iq_group_t at,
                                                   const float value[IQ_GROUP])
{
    typedef typename as_t::item_t item_t;
    constexpr int length = 16 / (int)sizeof(item_t);
    item_t item[IQ_GROUP];
#pragma unroll
    for (int j = 0; j < IQ_GROUP; j++)
        item[j] = as_t::narrow(value[j]);
    if (accumulate) {
        float before[IQ_GROUP];
        iq_load_as<as_t>(dst, aligned, at, before);
#pragma unroll
        for (int j = 0; j < IQ_GROUP; j++)
            item[j] = as_t::narrow(before[j] + as_t::widen(item[j]));
    }
    if (aligned && at.live == IQ_GROUP) {
#pragma unroll
        for (int part = 0; part < IQ_GROUP / length; part++) {
            iq_vector<item_t, length> vector;
#pragma unroll
            for (int j = 0; j < length; j++)
                vector.item[j] = item[part * length + j];
            iq_store((item_t *)dst + at.i + part * length, vector);
        }
        return;
    }
#pragma unroll
    for (uint32_t j = 0; j < IQ_GROUP; j++)
        if (j < at.live)
            ((item_t *)dst)[at.i + j] = item[j];
}

/* Elements that do not exist are 0. */
static __device__ __forceinline__ void iq_load_group(isgq_data_type_t type, const void *src, bool aligned, iq_group_t at,
                                                     float value[IQ_GROUP])
{
    if (type == ISGQ_FLOAT32)
        iq_load_as<iq_as_f32>(src, aligned, at, value);
    else if (type == ISGQ_FLOAT16)
        iq_load_as<iq_as_f16>(src, aligned, at, value);
    else
        iq_load_as<iq_as_bf16>(src, aligned, at, value);
}

static __device__ __forceinline__ void iq_store_group(isgq_data_type_t type, void *dst, bool aligned, bool accumulate,
                                                      iq_group_t at, const float value[IQ_GROUP])
{
    if (type == ISGQ_FLOAT32)
        iq_store_as<iq_as_f32>(dst, aligned, accumulate, at, value);
    else if (type == ISGQ_FLOAT16)
        iq_store_as<iq_as_f16>(dst, aligned, accumulate, at, value);
    else
        iq_store_as<iq_as_bf16>(dst, aligned, accumulate, at, value);
}

/* ---- packed codes: `stage` belongs to the warp ---- */

static __device__ __forceinline__ uint32_t iq_packed_tile(uint32_t left, unsigned width)
{
    return left >= IQ_GROUPS_TILE ? IQ_GROUPS_TILE / IQ_GROUP * width : (left + IQ_GROUP - 1) / IQ_GROUP * width;
}

static __device__ __forceinline__ void iq_load_packed(const void *packed, unsigned width, uint32_t *stage, uint32_t tile,
                                                      uint32_t left)
{
    uint32_t lane = threadIdx.x % 32, bytes = iq_packed_tile(left, width), words = bytes / 4;
    const unsigned char *src = (const unsigned char *)packed + (size_t)tile * (IQ_GROUPS_TILE / IQ_GROUP * width);
    for (uint32_t i = lane; i < words; i += 32)
        stage[i] = ((const uint32_t *)src)[i];
    if (lane == 0) { /* the bytes of a last part of a word, and a word that shifts may look at */
        uint32_t rest = 0;
        for (uint32_t i = words * 4; i < bytes; i++)
            rest |= (uint32_t)src[i] << (i % 4 * 8);
        stage[words] = rest;
        stage[words + 1] = 0;
    }
    __syncwarp();
}

static __device__ __forceinline__ void iq_unpack(unsigned width, uint32_t least, uint32_t most, uint32_t *fault, const uint32_t *stage,
                                                 iq_group_t at, uint32_t code[IQ_GROUP])
{
    uint32_t bit = threadIdx.x % 32 * IQ_GROUP * width, mask = 0xffffffffu >> (32 - width);
    bool too_large = false, dirty = false;
#pragma unroll
    for (uint32_t j = 0; j < IQ_GROUP; j++, bit += width) {
        code[j] = at.live == 0 ? 0 : __funnelshift_r(stage[bit / 32], stage[bit / 32 + 1], bit % 32) & mask;
        too_large |= j < at.live && code[j] - least > most - least;
        dirty |= j >= at.live && code[j] != 0;
    }
    if (dirty)
        iq_report_fault(fault, IQ_CUDA_BAD_PADDING);
    if (too_large)
        iq_report_fault(fault, IQ_CUDA_BAD_CODE);
}

static __device__ __forceinline__ void iq_store_packed(void *packed, unsigned width, uint32_t *stage, uint32_t tile,
                                                       uint32_t left, iq_group_t at, const uint32_t code[IQ_GROUP])
{
    uint32_t lane = threadIdx.x % 32, bytes = iq_packed_tile(left, width), mask = 0xffffffffu >> (32 - width);
    unsigned char *dst = (unsigned char *)packed + (size_t)tile * (IQ_GROUPS_TILE / IQ_GROUP * width);
    __syncwarp();
    if (at.live > 0) {
        unsigned char *to = (unsigned char *)stage + lane * width;
        uint64_t bits = 0;
        uint32_t used = 0;
#pragma unroll
        for (uint32_t j = 0; j < IQ_GROUP; j++) {
            bits |= (uint64_t)(j < at.live ? code[j] & mask : 0) << used;
            for (used += width; used >= 8; used -= 8, bits >>= 8)
                *to++ = (unsigned char)bits;
        }
    }
    __syncwarp();
    for (uint32_t i = lane; i < bytes / 4; i += 32)
        ((uint32_t *)dst)[i] = stage[i];
    if (lane < bytes % 4)
        dst[bytes / 4 * 4 + lane] = ((const unsigned char *)stage)[bytes / 4 * 4 + lane];
    __syncwarp();
}

/* ---- between values and codes ---- */

/* Calls use(j, factor(bucket of element j)), with `factor` once for each bucket. */
template <typename factor_fn, typename use_fn>
static __device__ __forceinline__ void iq_for_buckets(const iq_buckets_t &buckets, iq_group_t at, factor_fn factor, use_fn use)
{
    uint32_t last = at.i + at.live - 1, bucket = iq_bucket_at(buckets, at.i);
    bool one = iq_bucket_at(buckets, last) == bucket;
    float found = factor(bucket);
#pragma unroll
    for (uint32_t j = 0; j < IQ_GROUP; j++) {
        if (!one && j < at.live) {
            uint32_t next = iq_bucket_at(buckets, at.i + j);
            if (next != bucket) {
                bucket = next;
                found = factor(bucket);
            }
        }
        use(j, found);
    }
}

/* Not divided. */
static __device__ __forceinline__ void iq_codes_to_values(const iq_meaning_t &meaning, const float *scales,
                                                          const iq_buckets_t &buckets, uint32_t *fault, iq_group_t at,
                                                          const uint32_t code[IQ_GROUP], float value[IQ_GROUP])
{
    iq_for_buckets(
        buckets, at, [&](uint32_t bucket) { return iq_unit_at(meaning, scales, fault, bucket); },
        [&](uint32_t j, float unit) { value[j] = iq_code_value(code[j], meaning.zero, unit); });
}

static __device__ __forceinline__ void iq_divide_group(float divisor, float value[IQ_GROUP])
{
    if (divisor != 1.0f) {
#pragma unroll
        for (int j = 0; j < IQ_GROUP; j++)
            value[j] = value[j] / divisor;
    }
}

static __device__ __forceinline__ void iq_round_through(isgq_data_type_t through, float value[IQ_GROUP])
{
    if (through == ISGQ_FLOAT16) {
#pragma unroll
        for (int j = 0; j < IQ_GROUP; j++)
            value[j] = iq_widen_f16(iq_narrow_f16(value[j]));
    } else if (through == ISGQ_BFLOAT16) {
#pragma unroll
        for (int j = 0; j < IQ_GROUP; j++)
            value[j] = iq_bf16_to_float(iq_narrow_bf16(value[j]));
    }
}

/* The random words of eight elements, which may begin anywhere in a block of four. */
static __device__ __forceinline__ void iq_draw_group(const iq_grid_args_t &grid, uint64_t element, uint32_t random[IQ_GROUP + 4])
{
    uint32_t skip = (uint32_t)element % 4;
    uint64_t call = iq_call_now(grid.call, grid.replays);
#pragma unroll
    for (uint32_t part = 0; part < 3; part++) {
        iq_philox_block_t block = {{0, 0, 0, 0}};
        uint64_t quad = element / 4 + part;
        if (part < 2 || skip != 0)
            block = iq_philox((uint32_t)quad, ((uint32_t)(quad >> 32) & 0xffu) | grid.tag, (uint32_t)call, (uint32_t)(call >> 32),
                              (uint32_t)grid.seed, (uint32_t)(grid.seed >> 32));
#pragma unroll
        for (int j = 0; j < 4; j++)
            random[4 * part + j] = block.word[j];
    }
#pragma unroll
    for (int j = 0; j < IQ_GROUP + 3; j++)
        random[j] = skip & 1 ? random[j + 1] : random[j];
#pragma unroll
    for (int j = 0; j < IQ_GROUP + 2; j++)
        random[j] = skip & 2 ? random[j + 2] : random[j];
    iq_stratify<IQ_GROUP>(grid, random);
}

static __device__ __forceinline__ void iq_quantize_group(const iq_grid_args_t &grid, const iq_buckets_t &buckets, iq_group_t at,
                                                         const float value[IQ_GROUP], uint32_t code[IQ_GROUP])
{
    uint32_t random[IQ_GROUP + 4] = {0};
    if (grid.stochastic)
        iq_draw_group(grid, grid.first + at.i, random);
    iq_for_buckets(
        buckets, at, [&](uint32_t bucket) { return iq_inverse_at(grid, bucket); },
        [&](uint32_t j, float inverse) {
            float y = value[j] * inverse + grid.shift;
            int32_t whole = grid.stochastic ? iq_round_stochastic(y, random[j] >> 8, grid.low, grid.high)
                                            : iq_round_nearest(y, grid.low, grid.high);
            code[j] = (uint32_t)(whole - grid.base);
        });
}

/* Values of the grid's codes. */
static __device__ __forceinline__ void iq_grid_values(const iq_grid_args_t &grid, const iq_buckets_t &buckets, iq_group_t at,
                                                      const uint32_t code[IQ_GROUP], float value[IQ_GROUP])
{
    iq_for_buckets(
        buckets, at, [&](uint32_t bucket) { return iq_half_step(grid.top, __ldg(grid.scales + bucket)); },
        [&](uint32_t j, float unit) { value[j] = iq_code_value(code[j], (int32_t)grid.top, unit); });
}

#endif
