/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs of elements from any form to any other. The few cases that move most bytes have kernels of their own in map_quads.cu; the
 * kernel here knows all types, widths and alignments at run time.
 */
#include "kernels/cuda/map_groups.h"

/* ---- sums in memory ---- */

static __device__ __forceinline__ void load_sums(const void *src, bool aligned, iq_group_t at, uint32_t code[IQ_GROUP])
{
    if (aligned && at.live == IQ_GROUP) {
#pragma unroll
        for (int part = 0; part < 2; part++) {
            iq_vector<uint32_t, 4> vector = iq_load<4>((const uint32_t *)src + at.i + 4 * part);
#pragma unroll
            for (int j = 0; j < 4; j++)
                code[4 * part + j] = vector.item[j];
        }
        return;
    }
#pragma unroll
    for (uint32_t j = 0; j < IQ_GROUP; j++)
        code[j] = j < at.live ? ((const uint32_t *)src)[at.i + j] : 0;
}

static __device__ __forceinline__ void store_sums(const iq_map_args_t &args, iq_group_t at, uint32_t code[IQ_GROUP])
{
    if (args.accumulate) {
        uint32_t before[IQ_GROUP];
        load_sums(args.dst, args.dst_aligned, at, before);
#pragma unroll
        for (int j = 0; j < IQ_GROUP; j++)
            code[j] += before[j];
    }
    if (args.dst_aligned && at.live == IQ_GROUP) {
#pragma unroll
        for (int part = 0; part < 2; part++) {
            iq_vector<uint32_t, 4> vector = {{code[4 * part], code[4 * part + 1], code[4 * part + 2], code[4 * part + 3]}};
            iq_store((uint32_t *)args.dst + at.i + 4 * part, vector);
        }
        return;
    }
#pragma unroll
    for (uint32_t j = 0; j < IQ_GROUP; j++)
        if (j < at.live)
            ((uint32_t *)args.dst)[at.i + j] = code[j];
}

/* ---- the kernel ---- */

/* Values of any form; elements that do not exist are 0. */
template <int from>
static __device__ __forceinline__ void take_values(const iq_map_args_t &args, iq_group_t at, const uint32_t code[IQ_GROUP],
                                                   float value[IQ_GROUP])
{
    if (from != IQ_CUDA_VALUES)
        iq_codes_to_values(args.meaning, args.meaning.scales, args.buckets, args.fault, at, code, value);
    else
        iq_load_group(args.src_type, args.src, args.src_aligned, at, value);
    iq_divide_group(args.meaning.divisor, value);
    iq_round_through(args.through, value);
}

template <int from, int to> static __global__ void __launch_bounds__(IQ_CUDA_THREADS) map_any(iq_map_args_t args)
{
    __shared__ uint32_t stages[IQ_CUDA_WARPS][IQ_STAGE_WORDS];
    uint32_t *stage = stages[threadIdx.x / 32];
    uint32_t tiles = (args.count - 1) / IQ_GROUPS_TILE + 1;
    for (uint32_t tile = blockIdx.x * IQ_CUDA_WARPS + threadIdx.x / 32; tile < tiles; tile += gridDim.x * IQ_CUDA_WARPS) {
        uint32_t left = args.count - tile * IQ_GROUPS_TILE;
        iq_group_t at = iq_group_at(tile, left);
        uint32_t code[IQ_GROUP] = {0};
        float value[IQ_GROUP] = {0};
        if (from == IQ_CUDA_CODES) {
            iq_load_packed(args.src, args.src_width, stage, tile, left);
            iq_unpack(args.src_width, args.least, args.most, args.fault, stage, at, code);
        }
        if (at.live > 0) {
            if (from == IQ_CUDA_SUMS)
                load_sums(args.src, args.src_aligned, at, code);
            if (args.as_values) {
                take_values<from>(args, at, code, value);
                if (args.grid.used) {
                    iq_quantize_group(args.grid, args.buckets, at, value, code);
                    if (to == IQ_CUDA_VALUES)
                        iq_grid_values(args.grid, args.buckets, at, code, value);
                }
            }
            if (from != IQ_CUDA_VALUES && to != IQ_CUDA_VALUES && !args.as_values) {
#pragma unroll
                for (int j = 0; j < IQ_GROUP; j++)
                    code[j] += args.offset;
            }
            if (to == IQ_CUDA_SUMS)
                store_sums(args, at, code);
            else if (to == IQ_CUDA_VALUES)
                iq_store_group(args.dst_type, args.dst, args.dst_aligned, args.accumulate, at, value);
        }
        if (to == IQ_CUDA_CODES)
            iq_store_packed(args.dst, args.dst_width, stage, tile, left, at, code);
        else if (from == IQ_CUDA_CODES)
            __syncwarp(); /* all have read the stage */
    }
}

/* ---- launches ---- */

/* The piece of `count` elements from `done` on. */
static iq_map_args_t piece_of(const iq_cuda_map_t *map, size_t done, size_t count)
{
    const iq_cuda_source_t *source = &map->source;
    const iq_cuda_target_t *target = &map->target;
    size_t skipped = iq_buckets_before(map->first, map->bucket, done);
    uint64_t first = map->first + done;
    iq_map_args_t args = {};
    args.src = (const char *)source->data + iq_offset_of(source->form, source->type, source->width, done);
    args.dst = (char *)target->data + iq_offset_of(target->form, target->type, target->width, done);
    args.count = (uint32_t)count;
    args.buckets = iq_buckets_of(first, map->bucket);
    args.src_type = source->type;
    args.dst_type = target->type;
    args.through = map->through;
    args.src_width = source->width;
    args.dst_width = target->width;
    args.src_aligned = iq_is_aligned(args.src);
    args.dst_aligned = iq_is_aligned(args.dst);
    args.accumulate = target->accumulate;
    args.as_values = map->grid.used || target->form == IQ_CUDA_VALUES;
    args.least = source->least;
    args.most = source->most;
    args.offset = map->offset;
    args.meaning = iq_meaning_of(source, skipped);
    args.grid = iq_grid_args_of(&map->grid, first, count, skipped);
    args.fault = map->fault;
    return args;
}

template <int from>
static isgq_result_t launch_any(int device, isgq_stream_t stream, iq_cuda_form_t to, const iq_map_args_t &args)
{
    size_t blocks = (args.count - 1) / (IQ_GROUPS_TILE * IQ_CUDA_WARPS) + 1;
    switch (to) {
    case IQ_CUDA_VALUES: return iq_cuda_launch<map_any<from, IQ_CUDA_VALUES>>(device, stream, blocks, args);
    case IQ_CUDA_SUMS: return iq_cuda_launch<map_any<from, IQ_CUDA_SUMS>>(device, stream, blocks, args);
    default: return iq_cuda_launch<map_any<from, IQ_CUDA_CODES>>(device, stream, blocks, args);
    }
}

static isgq_result_t launch(int device, isgq_stream_t stream, const iq_cuda_map_t *map, const iq_map_args_t &args)
{
    isgq_result_t result = ISGQ_SUCCESS;
    if (iq_cuda_map_quads(device, stream, map, &args, &result))
        return result;
    switch (map->source.form) {
    case IQ_CUDA_VALUES: return launch_any<IQ_CUDA_VALUES>(device, stream, map->target.form, args);
    case IQ_CUDA_SUMS: return launch_any<IQ_CUDA_SUMS>(device, stream, map->target.form, args);
    default: return launch_any<IQ_CUDA_CODES>(device, stream, map->target.form, args);
    }
}

isgq_result_t iq_cuda_run_map(int device, isgq_stream_t stream, const iq_cuda_map_t *map)
{
    bool lanes = map->source.form == IQ_CUDA_LANES || map->target.form == IQ_CUDA_LANES;
    bool ternary = map->source.form == IQ_CUDA_TERNARY || map->target.form == IQ_CUDA_TERNARY;
    size_t piece = lanes ? iq_cuda_lanes_piece(map) : ternary ? iq_cuda_ternary_piece() : IQ_CUDA_PIECE;
    if (map->count == 0)
        return ISGQ_SUCCESS;
    if (map->source.form == IQ_CUDA_VALUES && map->target.form != IQ_CUDA_VALUES && !map->grid.used)
        return IQ_FAIL(ISGQ_ERR_INTERNAL, "map: values become codes on a grid only");
    ON_DEVICE(device);
    for (size_t done = 0, count; done < map->count; done += count) {
        count = map->count - done < piece ? map->count - done : piece;
        iq_map_args_t args = piece_of(map, done, count);
        IQ_TRY(lanes     ? iq_cuda_map_lanes(device, stream, map, &args)
               : ternary ? iq_cuda_map_ternary(device, stream, map, &args)
                         : launch(device, stream, map, args));
    }
    return ISGQ_SUCCESS;
}

isgq_result_t iq_cuda_warm_map(int device)
{
    IQ_TRY(iq_cuda_warm_quads(device));
    IQ_TRY(iq_cuda_warm_lanes(device));
    IQ_TRY(iq_cuda_warm_ternary(device));
    return iq_cuda_load<map_any<IQ_CUDA_VALUES, IQ_CUDA_VALUES>, map_any<IQ_CUDA_VALUES, IQ_CUDA_SUMS>,
                        map_any<IQ_CUDA_VALUES, IQ_CUDA_CODES>, map_any<IQ_CUDA_SUMS, IQ_CUDA_VALUES>,
                        map_any<IQ_CUDA_SUMS, IQ_CUDA_SUMS>, map_any<IQ_CUDA_SUMS, IQ_CUDA_CODES>,
                        map_any<IQ_CUDA_CODES, IQ_CUDA_VALUES>, map_any<IQ_CUDA_CODES, IQ_CUDA_SUMS>,
                        map_any<IQ_CUDA_CODES, IQ_CUDA_CODES>>(device);
}
