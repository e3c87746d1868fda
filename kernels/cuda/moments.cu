/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sums of values and of their squares for every bucket, in the order of moment_math.h, and the scales that are made of them.
 *
 * Four lanes of a warp take a block of 256 elements: each four of its 16 lanes of sums, four neighbours at a time, so nothing but
 * the fold passes between lanes. What a bucket has of a panel of 64 blocks is a cell. Buckets that are no longer than a panel are a
 * warp's each, with the two cells that they may have. Longer ones have cells of a whole thread block's each, which a second kernel
 * adds up in order.
 */
#include "kernels/cuda/map_parts.h"
#include "kernels/moment_math.h"
#include "kernels/share_math.h"

enum { QUAD = 4, ROWS = IQ_MOMENT_BLOCK / IQ_MOMENT_LANES, BLOCK_LANES = IQ_MOMENT_LANES / QUAD, GROUPS = 32 / BLOCK_LANES };

/* A longer bucket's part of a panel: two of each panel, before and behind the only border that there may be. */
typedef struct cell {
    double squares, sum;
    uint32_t most, unused;
} cell_t;

typedef struct moments_args {
    const void *src;
    uint64_t first, end; /* elements */
    uint64_t bucket;     /* elements; 0: one for all */
    uint64_t first_bucket, buckets;
    bool aligned;
    float *room;
    size_t stride;
    cell_t *cells;
    uint64_t panels;
} moments_args_t;

/* Slots of what works together. */
typedef struct places {
    double squares[IQ_MOMENT_PLACES], sum[IQ_MOMENT_PLACES];
} places_t;

typedef struct lanes {
    double squares[QUAD], sum[QUAD];
    uint32_t most;
} lanes_t;

static __device__ __forceinline__ void add_value(lanes_t &lanes, int j, float value, bool clips)
{
    double x = (double)value;
    lanes.squares[j] += x * x;
    if (clips) {
        uint32_t magnitude = iq_float_bits(value) & 0x7fffffffu;
        lanes.sum[j] += x;
        lanes.most = magnitude > lanes.most ? magnitude : lanes.most;
    }
}

/* Elements first..end-1 of a block that begins with element `block`; a lane's own columns begin at `column`. */
template <typename as_t, bool clips>
static __device__ __forceinline__ void add_block(const moments_args_t &args, uint64_t block, uint64_t first, uint64_t end,
                                                 uint32_t column, lanes_t &lanes)
{
    typedef typename as_t::item_t item_t;
    const item_t *src = (const item_t *)args.src + (int64_t)(block + column - args.first);
    if (args.aligned && first == block && end == block + IQ_MOMENT_BLOCK) {
#pragma unroll
        for (int part = 0; part < 2; part++) {
            iq_vector<item_t, QUAD> item[ROWS / 2];
#pragma unroll
            for (int r = 0; r < ROWS / 2; r++)
                item[r] = iq_load<QUAD>(src + (part * ROWS / 2 + r) * IQ_MOMENT_LANES);
#pragma unroll
            for (int r = 0; r < ROWS / 2; r++) {
#pragma unroll
                for (int j = 0; j < QUAD; j++)
                    add_value(lanes, j, as_t::widen(item[r].item[j]), clips);
            }
        }
        return;
    }
#pragma unroll 1
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
        for (int j = 0; j < QUAD; j++) {
            uint64_t element = block + column + (uint64_t)(r * IQ_MOMENT_LANES + j);
            if (element >= first && element < end)
                add_value(lanes, j, as_t::widen(src[r * IQ_MOMENT_LANES + j]), clips);
        }
    }
}

/* The four lanes of a block: 8 onto 8, 4 onto 4, 2 onto 2, 1 onto 1. In the first of them. */
static __device__ __forceinline__ double fold_block(double lane[QUAD])
{
#pragma unroll
    for (int apart = BLOCK_LANES / 2; apart > 0; apart /= 2) {
#pragma unroll
        for (int j = 0; j < QUAD; j++)
            lane[j] += __shfl_down_sync(0xffffffffu, lane[j], (unsigned)apart);
    }
    return (lane[0] + lane[2]) + (lane[1] + lane[3]);
}

/* Blocks of elements first..end-1, all in one panel, to their places; `warps` share them. The largest magnitude is the lane's. */
template <typename as_t, bool clips, uint32_t warps>
static __device__ __forceinline__ uint32_t add_cell(const moments_args_t &args, uint64_t first, uint64_t end, places_t &places)
{
    uint32_t lane = threadIdx.x % 32, group = (warps == 1 ? 0 : threadIdx.x / 32 * GROUPS) + lane / BLOCK_LANES;
    uint64_t blocks_end = (end - 1) / IQ_MOMENT_BLOCK + 1;
    lanes_t lanes;
    lanes.most = 0;
#pragma unroll 1
    for (uint64_t start = first / IQ_MOMENT_BLOCK; start < blocks_end; start += warps * GROUPS) { /* the same for all lanes */
        uint64_t at = start + group, block = at * IQ_MOMENT_BLOCK;
#pragma unroll
        for (int j = 0; j < QUAD; j++)
            lanes.squares[j] = lanes.sum[j] = 0.0;
        if (at < blocks_end)
            add_block<as_t, clips>(args, block, first > block ? first : block,
                                   end < block + IQ_MOMENT_BLOCK ? end : block + IQ_MOMENT_BLOCK, lane % BLOCK_LANES * QUAD, lanes);
        double squares = fold_block(lanes.squares), sum = clips ? fold_block(lanes.sum) : 0.0;
        if (at < blocks_end && lane % BLOCK_LANES == 0) {
            places.squares[at % IQ_MOMENT_PLACES] = squares;
            if (clips)
                places.sum[at % IQ_MOMENT_PLACES] = sum;
        }
    }
    return lanes.most;
}

/* All places of a cell as a tree, by one warp; in lane 0. */
static __device__ __forceinline__ double fold_places(const double *place, uint64_t first, uint64_t end)
{
    uint32_t lane = threadIdx.x % 32, from = (uint32_t)(first / IQ_MOMENT_BLOCK % IQ_MOMENT_PLACES);
    uint32_t to = (uint32_t)((end - 1) / IQ_MOMENT_BLOCK % IQ_MOMENT_PLACES);
    double value = lane >= from && lane <= to ? place[lane] : 0.0;
    value += lane + 32 >= from && lane + 32 <= to ? place[lane + 32] : 0.0;
#pragma unroll
    for (unsigned apart = 16; apart > 0; apart /= 2)
        value += __shfl_down_sync(0xffffffffu, value, apart);
    return value;
}

/* +Inf for NaN and Inf. */
static __device__ __forceinline__ float as_magnitude(uint32_t most) { return iq_bits_float(most > 0x7f800000u ? 0x7f800000u : most); }

template <bool clips>
static __device__ __forceinline__ void add_to_room(const moments_args_t &args, uint64_t bucket, const cell_t &cell)
{
    size_t b = (size_t)(bucket - args.first_bucket);
    if (!clips) {
        iq_moment_add(args.room, args.stride, IQ_NORM_SQUARES, b, cell.squares);
        return;
    }
    float most = as_magnitude(cell.most);
    iq_moment_add(args.room, args.stride, IQ_CLIP_SQUARES, b, cell.squares);
    iq_moment_add(args.room, args.stride, IQ_CLIP_SUM, b, cell.sum);
    args.room[b] = most > args.room[b] ? most : args.room[b];
}

/* ---- buckets no longer than a panel ---- */

template <typename as_t, bool clips> static __global__ void __launch_bounds__(IQ_CUDA_THREADS) short_buckets(moments_args_t args)
{
    __shared__ places_t all_places[IQ_CUDA_WARPS];
    places_t &places = all_places[threadIdx.x / 32];
    for (uint64_t b = (uint64_t)blockIdx.x * IQ_CUDA_WARPS + threadIdx.x / 32; b < args.buckets; b += gridDim.x * IQ_CUDA_WARPS) {
        uint64_t bucket = args.first_bucket + b, first = bucket * args.bucket, end = first + args.bucket;
        first = first > args.first ? first : args.first;
        end = end < args.end ? end : args.end;
#pragma unroll 1
        for (uint64_t border; first < end; first = border) {
            border = (first / IQ_MOMENT_PANEL + 1) * IQ_MOMENT_PANEL;
            border = border < end ? border : end;
            uint32_t most = add_cell<as_t, clips, 1>(args, first, border, places);
            __syncwarp();
            cell_t cell = {fold_places(places.squares, first, border), clips ? fold_places(places.sum, first, border) : 0.0,
                           __reduce_max_sync(0xffffffffu, most), 0};
            if (threadIdx.x % 32 == 0)
                add_to_room<clips>(args, bucket, cell);
            __syncwarp(); /* places may be written again */
        }
    }
}

/* ---- longer ones ---- */

static __device__ __forceinline__ uint64_t bucket_of(const moments_args_t &args, uint64_t element)
{
    return args.bucket == 0 ? 0 : element / args.bucket;
}

template <typename as_t, bool clips> static __global__ void __launch_bounds__(IQ_CUDA_THREADS) long_cells(moments_args_t args)
{
    __shared__ places_t places;
    __shared__ uint32_t mosts[IQ_CUDA_WARPS];
    for (uint64_t i = blockIdx.x; i < 2 * args.panels; i += gridDim.x) {
        uint64_t first = (args.first / IQ_MOMENT_PANEL + i / 2) * IQ_MOMENT_PANEL, end = first + IQ_MOMENT_PANEL;
        first = first > args.first ? first : args.first;
        end = end < args.end ? end : args.end;
        uint64_t border = args.bucket == 0 ? end : (bucket_of(args, first) + 1) * args.bucket;
        border = border < end ? border : end;
        if (i % 2 == 0)
            end = border;
        else
            first = border;
        if (first == end) /* the same for all threads */
            continue;
        uint32_t most = __reduce_max_sync(0xffffffffu, (add_cell<as_t, clips, IQ_CUDA_WARPS>(args, first, end, places)));
        if (threadIdx.x % 32 == 0)
            mosts[threadIdx.x / 32] = most;
        __syncthreads();
        if (threadIdx.x < 32) {
            cell_t cell = {fold_places(places.squares, first, end), clips ? fold_places(places.sum, first, end) : 0.0,
                           __reduce_max_sync(0xffffffffu, threadIdx.x < IQ_CUDA_WARPS ? mosts[threadIdx.x] : 0), 0};
            if (threadIdx.x == 0)
                args.cells[i] = cell;
        }
        __syncthreads(); /* places may be written again */
    }
}

/* A warp adds up the cells of a bucket: 32 are loaded at once, and every lane adds all of them. */
template <bool clips> static __global__ void __launch_bounds__(IQ_CUDA_THREADS) add_cells(moments_args_t args)
{
    uint32_t lane = threadIdx.x % 32;
    uint64_t first_panel = args.first / IQ_MOMENT_PANEL;
    for (uint64_t b = (uint64_t)blockIdx.x * IQ_CUDA_WARPS + threadIdx.x / 32; b < args.buckets; b += gridDim.x * IQ_CUDA_WARPS) {
        uint64_t bucket = args.first_bucket + b, first = bucket * args.bucket, end = first + args.bucket;
        first = first > args.first ? first : args.first;
        end = args.bucket == 0 || end > args.end ? args.end : end;
        uint64_t panel = first / IQ_MOMENT_PANEL, last = (end - 1) / IQ_MOMENT_PANEL;
        cell_t total = {0.0, 0.0, 0, 0};
        if (!clips) {
            total.squares = iq_moment_load(args.room, args.stride, IQ_NORM_SQUARES, (size_t)b);
        } else {
            total.squares = iq_moment_load(args.room, args.stride, IQ_CLIP_SQUARES, (size_t)b);
            total.sum = iq_moment_load(args.room, args.stride, IQ_CLIP_SUM, (size_t)b);
        }
#pragma unroll 1
        for (; panel <= last; panel += 32) {
            uint32_t live = last - panel < 31 ? (uint32_t)(last - panel) + 1 : 32;
            cell_t mine = {0.0, 0.0, 0, 0};
            if (lane < live) {
                uint64_t start = (panel + lane) * IQ_MOMENT_PANEL;
                bool behind = bucket_of(args, start > args.first ? start : args.first) != bucket;
                mine = args.cells[2 * (panel + lane - first_panel) + behind];
            }
            uint32_t most = __reduce_max_sync(0xffffffffu, mine.most);
            total.most = most > total.most ? most : total.most;
#pragma unroll 1
            for (uint32_t k = 0; k < live; k++) {
                total.squares += __shfl_sync(0xffffffffu, mine.squares, (int)k);
                if (clips)
                    total.sum += __shfl_sync(0xffffffffu, mine.sum, (int)k);
            }
        }
        if (lane == 0) {
            iq_moment_store(args.room, args.stride, clips ? IQ_CLIP_SQUARES : IQ_NORM_SQUARES, (size_t)b, total.squares);
            if (clips) {
                float most = as_magnitude(total.most);
                iq_moment_store(args.room, args.stride, IQ_CLIP_SUM, (size_t)b, total.sum);
                args.room[b] = most > args.room[b] ? most : args.room[b];
            }
        }
    }
}

/* ---- scales ---- */

/* A thread makes scale b of bucket b's words, the first of which it takes the place of. */
static __global__ void __launch_bounds__(IQ_CUDA_THREADS) rescale_all(iq_cuda_rescale_t args)
{
    float *scales = args.scales;
    for (size_t b = (size_t)blockIdx.x * IQ_CUDA_THREADS + threadIdx.x; b < args.buckets; b += (size_t)gridDim.x * IQ_CUDA_THREADS) {
        size_t begin = b * args.bucket, left = args.count - begin, length = args.bucket != 0 && args.bucket < left ? args.bucket : left;
        switch (args.kind) {
        case IQ_CUDA_CLOSE_NORM:
            scales[b] = iq_round_squares(iq_moment_load(scales, args.buckets, IQ_NORM_SQUARES, b));
            break;
        case IQ_CUDA_CLOSE_CLIP:
            scales[b] = iq_clipped_scale(args.clip, iq_moment_load(scales, args.buckets, IQ_CLIP_SQUARES, b),
                                         iq_moment_load(scales, args.buckets, IQ_CLIP_SUM, b), scales[b], length);
            break;
        case IQ_CUDA_OPEN_NORM: scales[b] = sqrtf(scales[b]); break;
        case IQ_CUDA_SHARE_STEP: scales[b] = iq_share_step(scales[b], args.share); break;
        }
    }
}

isgq_result_t iq_cuda_run_rescale(int device, isgq_stream_t stream, const iq_cuda_rescale_t *rescale)
{
    if (rescale->buckets == 0)
        return ISGQ_SUCCESS;
    ON_DEVICE(device);
    return iq_cuda_launch<rescale_all>(device, stream, (rescale->buckets - 1) / IQ_CUDA_THREADS + 1, *rescale);
}

/* ---- launches ---- */

template <typename as_t, bool clips>
static isgq_result_t launch(int device, isgq_stream_t stream, const moments_args_t &args)
{
    size_t warps_of_buckets = (size_t)((args.buckets - 1) / IQ_CUDA_WARPS + 1);
    if (args.bucket != 0 && args.bucket <= IQ_MOMENT_PANEL)
        return iq_cuda_launch<short_buckets<as_t, clips>>(device, stream, warps_of_buckets, args);
    IQ_TRY((iq_cuda_launch<long_cells<as_t, clips>>(device, stream, (size_t)(2 * args.panels), args)));
    return iq_cuda_launch<add_cells<clips>>(device, stream, warps_of_buckets, args);
}

template <typename as_t>
static isgq_result_t launch_type(int device, isgq_stream_t stream, bool clips, const moments_args_t &args)
{
    return clips ? launch<as_t, true>(device, stream, args) : launch<as_t, false>(device, stream, args);
}

isgq_result_t iq_cuda_run_moments(int device, isgq_stream_t stream, const iq_cuda_moments_t *moments)
{
    size_t bytes = moments->type == ISGQ_FLOAT32 ? 4 : 2;
    uint64_t end = moments->first + moments->count, start_of_all = moments->bucket == 0 ? 0 : moments->first / moments->bucket;
    size_t panels = moments->scratch_bytes / (2 * sizeof(cell_t));
    if (moments->first % IQ_MOMENT_PANEL != 0 || panels == 0)
        return IQ_FAIL(ISGQ_ERR_INTERNAL, "moments: element %llu begins no panel, or no scratch", (unsigned long long)moments->first);
    ON_DEVICE(device);
    for (uint64_t first = moments->first; first < end; first += panels * IQ_MOMENT_PANEL) {
        moments_args_t args = {};
        args.src = (const char *)moments->src + (size_t)(first - moments->first) * bytes;
        args.first = first;
        args.end = end - first < panels * IQ_MOMENT_PANEL ? end : first + panels * IQ_MOMENT_PANEL;
        args.bucket = moments->bucket;
        args.first_bucket = moments->bucket == 0 ? 0 : first / moments->bucket;
        args.buckets = moments->bucket == 0 ? 1 : (args.end - 1) / moments->bucket - args.first_bucket + 1;
        args.aligned = iq_is_aligned(args.src);
        args.room = moments->room + (args.first_bucket - start_of_all);
        args.stride = moments->stride;
        args.cells = (cell_t *)moments->scratch;
        args.panels = (args.end - args.first - 1) / IQ_MOMENT_PANEL + 1;
        switch (moments->type) {
        case ISGQ_FLOAT32: IQ_TRY(launch_type<iq_as_f32>(device, stream, moments->clips, args)); break;
        case ISGQ_FLOAT16: IQ_TRY(launch_type<iq_as_f16>(device, stream, moments->clips, args)); break;
        default: IQ_TRY(launch_type<iq_as_bf16>(device, stream, moments->clips, args));
        }
    }
    return ISGQ_SUCCESS;
}

template <typename as_t> static isgq_result_t load_type(int device)
{
    return iq_cuda_load<short_buckets<as_t, false>, short_buckets<as_t, true>, long_cells<as_t, false>, long_cells<as_t, true>>(device);
}

isgq_result_t iq_cuda_warm_moments(int device)
{
    IQ_TRY(load_type<iq_as_f32>(device));
    IQ_TRY(load_type<iq_as_f16>(device));
    IQ_TRY(load_type<iq_as_bf16>(device));
    return iq_cuda_load<add_cells<false>, add_cells<true>, rescale_all>(device);
}
