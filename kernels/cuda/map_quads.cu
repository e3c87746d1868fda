/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The maps that move most bytes: values to 4- or 8-bit codes or to sums, and back. A warp takes tiles of 512 elements, a lane four
 * quads of each, 128 elements apart: every load and store of a warp is one run of memory, and a quad is one Philox block. A tile
 * within one bucket has one scale; else a quad within one bucket has; else every element looks up its own.
 */
#include "kernels/cuda/quads.h"

enum { QUAD = IQ_QUAD, QUADS = 4, STRIDE = IQ_QUADS_STRIDE, TILE = QUADS * STRIDE };
enum { SUMS = 0 }; /* as a width */

/* ---- runs of codes ---- */

/* Four codes: side by side in 4 * width bits, or sums. */
template <int width> struct coded_quad;
template <> struct coded_quad<4> {
    typedef uint16_t word_t;
};
template <> struct coded_quad<8> {
    typedef uint32_t word_t;
};
template <> struct coded_quad<SUMS> {
    typedef iq_vector<uint32_t, QUAD> word_t;
};

template <int width> static __device__ __forceinline__ iq_codes_t spread(const typename coded_quad<width>::word_t &word)
{
    if constexpr (width == SUMS) {
        return word;
    } else {
        iq_codes_t code;
#pragma unroll
        for (int j = 0; j < QUAD; j++)
            code.item[j] = (uint32_t)word >> (j * width) & ((1u << width) - 1u);
        return code;
    }
}

/* `base` is subtracted from every code; it may be anything, as the differences fit. */
template <int width>
static __device__ __forceinline__ void store_codes(typename coded_quad<width>::word_t *to, bool accumulate, uint32_t base, iq_codes_t code)
{
    if constexpr (width == SUMS) {
        iq_codes_t sums = {{0, 0, 0, 0}};
        if (accumulate)
            sums = *to;
#pragma unroll
        for (int j = 0; j < QUAD; j++)
            sums.item[j] += code.item[j] - base;
        *to = sums;
    } else {
        uint32_t word = 0u - base * (width == 8 ? 0x01010101u : 0x1111u);
#pragma unroll
        for (int j = 0; j < QUAD; j++)
            word += code.item[j] << (j * width);
        *to = (typename coded_quad<width>::word_t)word;
    }
}

/* ---- values to codes ---- */

template <typename as_t, int width, int quads, bool stochastic>
static __device__ __forceinline__ void encode_quads_at(const iq_map_args_t &args, uint64_t call, uint32_t i, float inverse)
{
    typedef typename as_t::item_t item_t;
    const item_t *src = (const item_t *)args.src + i;
    typename coded_quad<width>::word_t *dst = (typename coded_quad<width>::word_t *)args.dst + i / QUAD;
    iq_vector<item_t, QUAD> item[quads];
#pragma unroll
    for (int u = 0; u < quads; u++)
        item[u] = iq_load<QUAD>(src + u * STRIDE);
#pragma unroll
    for (int u = 0; u < quads; u++) {
        float y[QUAD];
#pragma unroll
        for (int j = 0; j < QUAD; j++)
            y[j] = as_t::widen(item[u].item[j]) * inverse;
        iq_codes_t code = iq_encode_quad<stochastic>(args.grid, stochastic ? iq_draw_quad(args.grid, call, i + u * STRIDE) : iq_philox_block_t(), y);
        store_codes<width>(dst + u * STRIDE / QUAD, args.accumulate, iq_encode_base(args.grid), code);
    }
}

template <typename as_t, int width, int quads>
static __device__ __forceinline__ void encode_even(const iq_map_args_t &args, uint64_t call, uint32_t i, float inverse)
{
    if (args.grid.stochastic)
        encode_quads_at<as_t, width, quads, true>(args, call, i, inverse);
    else
        encode_quads_at<as_t, width, quads, false>(args, call, i, inverse);
}

/* One element at a time: any bucket, any count. Codes of elements that do not exist are 0. */
template <typename as_t, int width>
static __device__ __forceinline__ void encode_ragged(const iq_map_args_t &args, uint64_t call, uint32_t i)
{
    uint32_t word = 0;
#pragma unroll 1
    for (uint32_t j = i; j < i + QUAD && j < args.count; j++) {
        float value = as_t::widen(((const typename as_t::item_t *)args.src)[j]);
        uint32_t code = iq_encode_one(args.grid, args.buckets, call, j, value);
        if (width == SUMS)
            ((uint32_t *)args.dst)[j] = code + (args.accumulate ? ((const uint32_t *)args.dst)[j] : 0);
        word |= code << ((j - i) * width);
    }
    if constexpr (width != SUMS)
        ((typename coded_quad<width>::word_t *)args.dst)[i / QUAD] = (typename coded_quad<width>::word_t)word;
}

template <typename as_t, int width> static __global__ void __launch_bounds__(IQ_CUDA_THREADS) encode_quads(iq_map_args_t args)
{
    uint32_t tiles = (args.count - 1) / TILE + 1, mine = threadIdx.x % 32 * QUAD;
    uint64_t call = iq_call_now(args.grid.call, args.grid.replays);
    for (uint32_t tile = blockIdx.x * IQ_CUDA_WARPS + threadIdx.x / 32; tile < tiles; tile += gridDim.x * IQ_CUDA_WARPS) {
        uint32_t start = tile * TILE, bucket = iq_bucket_at(args.buckets, start);
        if (iq_is_even(args.count, args.buckets, start + TILE, bucket)) {
            encode_even<as_t, width, QUADS>(args, call, start + mine, iq_inverse_at(args.grid, bucket));
            continue;
        }
#pragma unroll 1
        for (uint32_t i = start + mine; i < start + TILE && i < iq_coded(args.count); i += STRIDE) {
            bucket = iq_bucket_at(args.buckets, i);
            if (iq_is_even(args.count, args.buckets, i + QUAD, bucket))
                encode_even<as_t, width, 1>(args, call, i, iq_inverse_at(args.grid, bucket));
            else
                encode_ragged<as_t, width>(args, call, i);
        }
    }
}

/* ---- codes to values ---- */

static __device__ __forceinline__ float unit_at(const iq_map_args_t &args, uint32_t bucket)
{
    return iq_unit_at(args.meaning, args.meaning.scales, args.fault, bucket);
}

template <typename as_t, int width, int quads, bool divides>
static __device__ __forceinline__ bool decode_quads_at(const iq_map_args_t &args, uint32_t i, float unit)
{
    typedef typename as_t::item_t item_t;
    typedef typename coded_quad<width>::word_t word_t;
    const word_t *src = (const word_t *)args.src + i / QUAD;
    item_t *dst = (item_t *)args.dst + i;
    word_t word[quads];
    iq_vector<item_t, QUAD> item[quads];
    bool too_large = false;
#pragma unroll
    for (int u = 0; u < quads; u++)
        word[u] = src[u * STRIDE / QUAD];
    if (args.accumulate) {
#pragma unroll
        for (int u = 0; u < quads; u++)
            item[u] = iq_load<QUAD>(dst + u * STRIDE);
    }
#pragma unroll
    for (int u = 0; u < quads; u++) {
        iq_codes_t code = spread<width>(word[u]);
#pragma unroll
        for (int j = 0; j < QUAD; j++) {
            if (width != SUMS)
                too_large |= code.item[j] - args.least > args.most - args.least;
            float value = iq_code_value(code.item[j], args.meaning.zero, unit);
            item_t fresh = as_t::narrow(divides ? value / args.meaning.divisor : value);
            item[u].item[j] = args.accumulate ? as_t::narrow(as_t::widen(item[u].item[j]) + as_t::widen(fresh)) : fresh;
        }
        iq_store(dst + u * STRIDE, item[u]);
    }
    return too_large;
}

template <typename as_t, int width, int quads>
static __device__ __forceinline__ bool decode_even(const iq_map_args_t &args, uint32_t i, float unit)
{
    return args.meaning.divisor == 1.0f ? decode_quads_at<as_t, width, quads, false>(args, i, unit)
                                : decode_quads_at<as_t, width, quads, true>(args, i, unit);
}

/* The codes of a quad, some of whose elements do not exist: those are 0. */
template <int width> static __device__ __forceinline__ uint32_t ragged_code(const iq_map_args_t &args, uint32_t j)
{
    if constexpr (width == SUMS) {
        return j < args.count ? ((const uint32_t *)args.src)[j] : 0;
    } else {
        uint32_t word = ((const typename coded_quad<width>::word_t *)args.src)[j / QUAD];
        uint32_t code = word >> (j % QUAD * width) & ((1u << width) - 1u);
        if (j >= args.count && code != 0)
            iq_report_fault(args.fault, IQ_CUDA_BAD_PADDING);
        if (j < args.count && code - args.least > args.most - args.least)
            iq_report_fault(args.fault, IQ_CUDA_BAD_CODE);
        return code;
    }
}

template <typename as_t, int width> static __device__ __forceinline__ void decode_ragged(const iq_map_args_t &args, uint32_t i)
{
    typedef typename as_t::item_t item_t;
    item_t *dst = (item_t *)args.dst;
#pragma unroll 1
    for (uint32_t j = i; j < i + QUAD; j++) {
        uint32_t code = ragged_code<width>(args, j);
        if (j >= args.count)
            continue;
        float unit = unit_at(args, iq_bucket_at(args.buckets, j));
        float value = iq_code_value(code, args.meaning.zero, unit);
        item_t fresh = as_t::narrow(args.meaning.divisor == 1.0f ? value : value / args.meaning.divisor);
        dst[j] = args.accumulate ? as_t::narrow(as_t::widen(dst[j]) + as_t::widen(fresh)) : fresh;
    }
}

template <typename as_t, int width> static __global__ void __launch_bounds__(IQ_CUDA_THREADS) decode_quads(iq_map_args_t args)
{
    uint32_t tiles = (args.count - 1) / TILE + 1, mine = threadIdx.x % 32 * QUAD;
    bool too_large = false;
    for (uint32_t tile = blockIdx.x * IQ_CUDA_WARPS + threadIdx.x / 32; tile < tiles; tile += gridDim.x * IQ_CUDA_WARPS) {
        uint32_t start = tile * TILE, bucket = iq_bucket_at(args.buckets, start);
        if (iq_is_even(args.count, args.buckets, start + TILE, bucket)) {
            too_large |= decode_even<as_t, width, QUADS>(args, start + mine, unit_at(args, bucket));
            continue;
        }
#pragma unroll 1
        for (uint32_t i = start + mine; i < start + TILE && i < iq_coded(args.count); i += STRIDE) {
            bucket = iq_bucket_at(args.buckets, i);
            if (iq_is_even(args.count, args.buckets, i + QUAD, bucket))
                too_large |= decode_even<as_t, width, 1>(args, i, unit_at(args, bucket));
            else
                decode_ragged<as_t, width>(args, i);
        }
    }
    if (too_large)
        iq_report_fault(args.fault, IQ_CUDA_BAD_CODE);
}

/* ---- codes to sums ---- */

template <int width> static __global__ void __launch_bounds__(IQ_CUDA_THREADS) sum_quads(iq_map_args_t args)
{
    uint32_t tiles = (args.count - 1) / TILE + 1, mine = threadIdx.x % 32 * QUAD;
    typedef typename coded_quad<width>::word_t word_t;
    uint32_t *dst = (uint32_t *)args.dst;
    bool too_large = false;
    for (uint32_t tile = blockIdx.x * IQ_CUDA_WARPS + threadIdx.x / 32; tile < tiles; tile += gridDim.x * IQ_CUDA_WARPS) {
        uint32_t i = tile * TILE + mine, end = (tile + 1) * TILE;
        if (end <= args.count) {
            word_t word[QUADS];
            iq_codes_t sum[QUADS];
#pragma unroll
            for (int u = 0; u < QUADS; u++) {
                word[u] = ((const word_t *)args.src + i / QUAD)[u * STRIDE / QUAD];
                sum[u] = {{0, 0, 0, 0}};
                if (args.accumulate)
                    sum[u] = iq_load<QUAD>(dst + i + (size_t)u * STRIDE);
            }
#pragma unroll
            for (int u = 0; u < QUADS; u++) {
                iq_codes_t code = spread<width>(word[u]);
#pragma unroll
                for (int j = 0; j < QUAD; j++) {
                    too_large |= code.item[j] - args.least > args.most - args.least;
                    sum[u].item[j] += code.item[j] + args.offset;
                }
                iq_store(dst + i + (size_t)u * STRIDE, sum[u]);
            }
        } else {
#pragma unroll 1
            for (; i < end && i < iq_coded(args.count); i += STRIDE) {
#pragma unroll 1
                for (uint32_t j = i; j < i + QUAD; j++) {
                    uint32_t code = ragged_code<width>(args, j);
                    if (j < args.count)
                        dst[j] = code + args.offset + (args.accumulate ? dst[j] : 0);
                }
            }
        }
    }
    if (too_large)
        iq_report_fault(args.fault, IQ_CUDA_BAD_CODE);
}

/* ---- launches ---- */

template <typename as_t>
static isgq_result_t launch_encode(int device, isgq_stream_t stream, size_t blocks, const iq_cuda_target_t *target,
                                   const iq_map_args_t &args)
{
    if (target->form == IQ_CUDA_SUMS)
        return iq_cuda_launch<encode_quads<as_t, SUMS>>(device, stream, blocks, args);
    if (target->width == 4)
        return iq_cuda_launch<encode_quads<as_t, 4>>(device, stream, blocks, args);
    return iq_cuda_launch<encode_quads<as_t, 8>>(device, stream, blocks, args);
}

template <typename as_t>
static isgq_result_t launch_decode(int device, isgq_stream_t stream, size_t blocks, const iq_cuda_source_t *source,
                                   const iq_map_args_t &args)
{
    if (source->form == IQ_CUDA_SUMS)
        return iq_cuda_launch<decode_quads<as_t, SUMS>>(device, stream, blocks, args);
    if (source->width == 4)
        return iq_cuda_launch<decode_quads<as_t, 4>>(device, stream, blocks, args);
    return iq_cuda_launch<decode_quads<as_t, 8>>(device, stream, blocks, args);
}

static isgq_result_t encode(int device, isgq_stream_t stream, size_t blocks, const iq_cuda_map_t *map, const iq_map_args_t &args)
{
    switch (map->source.type) {
    case ISGQ_FLOAT32: return launch_encode<iq_as_f32>(device, stream, blocks, &map->target, args);
    case ISGQ_FLOAT16: return launch_encode<iq_as_f16>(device, stream, blocks, &map->target, args);
    default: return launch_encode<iq_as_bf16>(device, stream, blocks, &map->target, args);
    }
}

static isgq_result_t decode(int device, isgq_stream_t stream, size_t blocks, const iq_cuda_map_t *map, const iq_map_args_t &args)
{
    switch (map->target.type) {
    case ISGQ_FLOAT32: return launch_decode<iq_as_f32>(device, stream, blocks, &map->source, args);
    case ISGQ_FLOAT16: return launch_decode<iq_as_f16>(device, stream, blocks, &map->source, args);
    default: return launch_decode<iq_as_bf16>(device, stream, blocks, &map->source, args);
    }
}

/* Do the quads of a packed run have a width that is known here? Elements of other forms must be aligned to 16 bytes. */
static bool is_known(iq_cuda_form_t form, unsigned width, bool aligned)
{
    return form == IQ_CUDA_CODES ? width == 4 || width == 8 : aligned;
}

/* Codes of the grid fit where they go. */
static bool fits_grid(const iq_cuda_map_t *map, const iq_map_args_t *args)
{
    bool fits = map->target.form == IQ_CUDA_SUMS || args->grid.top < 1u << args->dst_width;
    return args->meaning.divisor == 1.0f && fits && iq_grid_fits_quads(&args->grid);
}

bool iq_cuda_map_quads(int device, isgq_stream_t stream, const iq_cuda_map_t *map, const iq_map_args_t *args, isgq_result_t *result)
{
    iq_cuda_form_t from = map->source.form, to = map->target.form;
    size_t blocks = (args->count - 1) / (TILE * IQ_CUDA_WARPS) + 1;
    if (!is_known(from, args->src_width, args->src_aligned) || !is_known(to, args->dst_width, args->dst_aligned) ||
        args->through == ISGQ_FLOAT16 || args->through == ISGQ_BFLOAT16)
        return false;
    if (from == IQ_CUDA_VALUES && to != IQ_CUDA_VALUES && fits_grid(map, args))
        *result = encode(device, stream, blocks, map, *args);
    else if (from != IQ_CUDA_VALUES && to == IQ_CUDA_VALUES && !args->grid.used)
        *result = decode(device, stream, blocks, map, *args);
    else if (from == IQ_CUDA_CODES && to == IQ_CUDA_SUMS && !args->grid.used)
        *result = args->src_width == 4 ? iq_cuda_launch<sum_quads<4>>(device, stream, blocks, *args)
                                       : iq_cuda_launch<sum_quads<8>>(device, stream, blocks, *args);
    else
        return false;
    return true;
}

template <typename as_t> static isgq_result_t load_all(int device)
{
    return iq_cuda_load<encode_quads<as_t, SUMS>, encode_quads<as_t, 4>, encode_quads<as_t, 8>, decode_quads<as_t, SUMS>,
                        decode_quads<as_t, 4>, decode_quads<as_t, 8>>(device);
}

isgq_result_t iq_cuda_warm_quads(int device)
{
    IQ_TRY(load_all<iq_as_f32>(device));
    IQ_TRY(load_all<iq_as_f16>(device));
    IQ_TRY(load_all<iq_as_bf16>(device));
    return iq_cuda_load<sum_quads<4>, sum_quads<8>>(device);
}
