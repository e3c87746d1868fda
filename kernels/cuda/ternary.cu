/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Codes of three levels, five to a byte, from and to values and sums. A warp takes tiles of 640 elements: five quads of each lane,
 * 128 elements apart, or a word of each lane, which is 20 codes. Values, sums and words are read and written as runs of memory;
 * between quads and words the codes lie in shared memory, a byte each.
 */
#include "kernels/cuda/quads.h"

#include <type_traits>

enum { QUAD = IQ_QUAD, STRIDE = IQ_QUADS_STRIDE, QUADS = 5, TILE = QUADS * STRIDE, WORD_BYTES = 4, DIGITS = 5 };
enum { STAGE_WORDS = TILE / QUAD, TILE_BYTES = TILE / DIGITS, GROUPS_OF_FIVE = 243 };

/* Sums as a source or target; beside the element types. */
struct as_sums {};

/* What the scale of a bucket comes to, kept until a lane gets to another bucket. */
typedef struct factors {
    uint32_t bucket;
    float unit, inverse;
} factors_t;

/* ---- sums in memory ---- */

static __device__ __forceinline__ iq_codes_t load_sums(const void *sums, bool aligned, uint32_t i, uint32_t count)
{
    const uint32_t *src = (const uint32_t *)sums + i;
    if (aligned && i + QUAD <= count)
        return iq_load<QUAD>(src);
    iq_codes_t sum;
#pragma unroll
    for (uint32_t j = 0; j < QUAD; j++)
        sum.item[j] = i + j < count ? src[j] : 0;
    return sum;
}

static __device__ __forceinline__ void add_to_sums(const iq_map_args_t &map, uint32_t i, iq_codes_t code)
{
    uint32_t *dst = (uint32_t *)map.dst + i;
    if (map.accumulate) {
        iq_codes_t before = load_sums(map.dst, map.dst_aligned, i, map.count);
#pragma unroll
        for (int j = 0; j < QUAD; j++)
            code.item[j] += before.item[j];
    }
    if (map.dst_aligned && i + QUAD <= map.count) {
        iq_store(dst, code);
    } else {
#pragma unroll
        for (uint32_t j = 0; j < QUAD; j++)
            if (i + j < map.count)
                dst[j] = code.item[j];
    }
}

/* ---- to codes ---- */

/* Own values, or what sums stand for. */
template <typename as_t>
static __device__ __forceinline__ void take_values(const iq_map_args_t &map, uint32_t i, bool even, const factors_t &factors,
                                                   float value[QUAD])
{
    if constexpr (std::is_same<as_t, as_sums>::value) {
        iq_codes_t sum = load_sums(map.src, map.src_aligned, i, map.count);
        iq_quad_values(map.meaning, map.buckets, map.fault, i, map.count, even, factors.unit, sum, value);
    } else {
        iq_load_quad<as_t>(map.src, map.src_aligned, i, map.count, value);
        if (map.meaning.divisor != 1.0f) {
#pragma unroll
            for (int j = 0; j < QUAD; j++)
                value[j] = value[j] / map.meaning.divisor;
        }
    }
}

/* Four codes in a word; 0 for elements that do not exist. */
template <typename as_t>
static __device__ __forceinline__ uint32_t encode_quad(const iq_map_args_t &map, uint64_t call, uint32_t i, factors_t &factors)
{
    iq_codes_t code;
    if (i >= map.count)
        return 0;
    if (std::is_same<as_t, as_sums>::value && !map.grid.used) {
        code = load_sums(map.src, map.src_aligned, i, map.count);
    } else {
        uint32_t bucket = iq_bucket_at(map.buckets, i);
        bool even = iq_is_even(map.count, map.buckets, i + QUAD, bucket);
        float value[QUAD];
        if (bucket != factors.bucket) {
            factors.bucket = bucket;
            factors.inverse = iq_inverse_at(map.grid, bucket);
            if (std::is_same<as_t, as_sums>::value)
                factors.unit = iq_unit_at(map.meaning, map.meaning.scales, map.fault, bucket);
        }
        take_values<as_t>(map, i, even, factors, value);
        code = map.grid.regular
                   ? iq_quad_codes<true>(map.grid, map.buckets, call, i, map.count, even, factors.inverse, value)
                   : iq_quad_codes<false>(map.grid, map.buckets, call, i, map.count, even, factors.inverse, value);
    }
    return code.item[0] | code.item[1] << 8 | code.item[2] << 16 | code.item[3] << 24;
}

/* The word of 20 codes that lie in `codes`, a byte each. */
static __device__ __forceinline__ uint32_t join(const uint32_t *codes)
{
    uint32_t four[QUADS], word = 0;
#pragma unroll
    for (int k = 0; k < QUADS; k++)
        four[k] = codes[k];
#pragma unroll
    for (int b = 0; b < WORD_BYTES; b++) {
        uint32_t group = 0;
#pragma unroll
        for (int d = DIGITS * b + DIGITS - 1; d >= DIGITS * b; d--)
            group = group * 3 + (four[d / 4] >> d % 4 * 8 & 3u);
        word |= group << 8 * b;
    }
    return word;
}

template <typename as_t> static __global__ void __launch_bounds__(IQ_CUDA_THREADS) encode_ternary(iq_map_args_t args)
{
    __shared__ uint32_t stages[IQ_CUDA_WARPS][STAGE_WORDS];
    uint32_t *stage = stages[threadIdx.x / 32], lane = threadIdx.x % 32;
    uint32_t tiles = (args.count - 1) / TILE + 1, bytes = (args.count - 1) / DIGITS + 1;
    uint64_t call = iq_call_now(args.grid.call, args.grid.replays);
    factors_t factors = {UINT32_MAX, 0.0f, 0.0f};
    for (uint32_t tile = blockIdx.x * IQ_CUDA_WARPS + threadIdx.x / 32; tile < tiles; tile += gridDim.x * IQ_CUDA_WARPS) {
#pragma unroll 1
        for (uint32_t q = 0; q < QUADS; q++)
            stage[q * 32 + lane] = encode_quad<as_t>(args, call, tile * TILE + q * STRIDE + lane * QUAD, factors);
        __syncwarp();
        uint32_t word = join(stage + lane * QUADS), at = tile * TILE_BYTES + lane * WORD_BYTES;
        if (at + WORD_BYTES <= bytes) {
            *(uint32_t *)((unsigned char *)args.dst + at) = word;
        } else {
#pragma unroll 1
            for (; at < bytes; at++, word >>= 8)
                ((unsigned char *)args.dst)[at] = (unsigned char)word;
        }
        __syncwarp(); /* all have read the stage */
    }
}

/* ---- from codes ---- */

static __device__ __forceinline__ uint32_t load_word(const unsigned char *src, uint32_t at, uint32_t bytes)
{
    uint32_t word = 0;
    if (at + WORD_BYTES <= bytes)
        return *(const uint32_t *)(src + at);
#pragma unroll 1
    for (uint32_t i = at; i < bytes; i++)
        word |= (uint32_t)src[i] << (i - at) * 8;
    return word;
}

/* 20 codes, a byte each; `live` of them exist, or more. */
static __device__ __forceinline__ void split(uint32_t word, uint32_t live, uint32_t *fault, uint32_t *codes)
{
    uint32_t four[QUADS] = {0, 0, 0, 0, 0};
    bool too_large = false, dirty = false;
#pragma unroll
    for (uint32_t b = 0; b < WORD_BYTES; b++) {
        uint32_t group = word >> 8 * b & 0xffu;
        too_large |= group >= GROUPS_OF_FIVE;
#pragma unroll
        for (uint32_t d = DIGITS * b; d < DIGITS * b + DIGITS; d++) {
            uint32_t rest = group / 3, code = group - 3 * rest;
            four[d / 4] |= code << d % 4 * 8;
            dirty |= d >= live && code != 0;
            group = rest;
        }
    }
    if (dirty)
        iq_report_fault(fault, IQ_CUDA_BAD_PADDING);
    if (too_large)
        iq_report_fault(fault, IQ_CUDA_BAD_CODE);
#pragma unroll
    for (int k = 0; k < QUADS; k++)
        codes[k] = four[k];
}

template <typename as_t>
static __device__ __forceinline__ void decode_quad(const iq_map_args_t &map, uint32_t i, uint32_t four, factors_t &factors)
{
    iq_codes_t code = {{four & 3u, four >> 8 & 3u, four >> 16 & 3u, four >> 24}};
    if (i >= map.count)
        return;
    if constexpr (std::is_same<as_t, as_sums>::value) {
        add_to_sums(map, i, code);
    } else {
        uint32_t bucket = iq_bucket_at(map.buckets, i);
        bool even = iq_is_even(map.count, map.buckets, i + QUAD, bucket);
        float value[QUAD];
        if (bucket != factors.bucket)
            factors = {bucket, iq_unit_at(map.meaning, map.meaning.scales, map.fault, bucket), 0.0f};
        iq_quad_values(map.meaning, map.buckets, map.fault, i, map.count, even, factors.unit, code, value);
        iq_store_quad<as_t>(map.dst, map.dst_aligned, map.accumulate, i, map.count, value);
    }
}

template <typename as_t> static __global__ void __launch_bounds__(IQ_CUDA_THREADS) decode_ternary(iq_map_args_t args)
{
    __shared__ uint32_t stages[IQ_CUDA_WARPS][STAGE_WORDS];
    uint32_t *stage = stages[threadIdx.x / 32], lane = threadIdx.x % 32;
    uint32_t tiles = (args.count - 1) / TILE + 1, bytes = (args.count - 1) / DIGITS + 1;
    factors_t factors = {UINT32_MAX, 0.0f, 0.0f};
    for (uint32_t tile = blockIdx.x * IQ_CUDA_WARPS + threadIdx.x / 32; tile < tiles; tile += gridDim.x * IQ_CUDA_WARPS) {
        uint32_t at = tile * TILE_BYTES + lane * WORD_BYTES, e = at * DIGITS;
        split(load_word((const unsigned char *)args.src, at, bytes), e < args.count ? args.count - e : 0, args.fault,
              stage + lane * QUADS);
        __syncwarp();
#pragma unroll 1
        for (uint32_t q = 0; q < QUADS; q++)
            decode_quad<as_t>(args, tile * TILE + q * STRIDE + lane * QUAD, stage[q * 32 + lane], factors);
        __syncwarp(); /* all have read the stage */
    }
}

/* ---- launches ---- */

size_t iq_cuda_ternary_piece(void) { return IQ_CUDA_PIECE / TILE * TILE; }

static isgq_result_t encode(int device, isgq_stream_t stream, size_t blocks, const iq_cuda_source_t *source,
                            const iq_map_args_t &args)
{
    if (source->form == IQ_CUDA_SUMS)
        return iq_cuda_launch<encode_ternary<as_sums>>(device, stream, blocks, args);
    switch (source->type) {
    case ISGQ_FLOAT32: return iq_cuda_launch<encode_ternary<iq_as_f32>>(device, stream, blocks, args);
    case ISGQ_FLOAT16: return iq_cuda_launch<encode_ternary<iq_as_f16>>(device, stream, blocks, args);
    default: return iq_cuda_launch<encode_ternary<iq_as_bf16>>(device, stream, blocks, args);
    }
}

static isgq_result_t decode(int device, isgq_stream_t stream, size_t blocks, const iq_cuda_target_t *target,
                            const iq_map_args_t &args)
{
    if (target->form == IQ_CUDA_SUMS)
        return iq_cuda_launch<decode_ternary<as_sums>>(device, stream, blocks, args);
    switch (target->type) {
    case ISGQ_FLOAT32: return iq_cuda_launch<decode_ternary<iq_as_f32>>(device, stream, blocks, args);
    case ISGQ_FLOAT16: return iq_cuda_launch<decode_ternary<iq_as_f16>>(device, stream, blocks, args);
    default: return iq_cuda_launch<decode_ternary<iq_as_bf16>>(device, stream, blocks, args);
    }
}

isgq_result_t iq_cuda_map_ternary(int device, isgq_stream_t stream, const iq_cuda_map_t *map, const iq_map_args_t *args)
{
    size_t blocks = (args->count - 1) / (TILE * IQ_CUDA_WARPS) + 1;
    bool to = map->target.form == IQ_CUDA_TERNARY;
    iq_cuda_form_t other = to ? map->source.form : map->target.form;
    if ((other != IQ_CUDA_VALUES && other != IQ_CUDA_SUMS) || (to ? args->grid.used && args->grid.top != 2 : args->grid.used))
        return IQ_FAIL(ISGQ_ERR_INTERNAL, "map: no such map from or to codes of three levels");
    return to ? encode(device, stream, blocks, &map->source, *args) : decode(device, stream, blocks, &map->target, *args);
}

isgq_result_t iq_cuda_warm_ternary(int device)
{
    return iq_cuda_load<encode_ternary<as_sums>, encode_ternary<iq_as_f32>, encode_ternary<iq_as_f16>, encode_ternary<iq_as_bf16>,
                        decode_ternary<as_sums>, decode_ternary<iq_as_f32>, decode_ternary<iq_as_f16>, decode_ternary<iq_as_bf16>>(
        device);
}
