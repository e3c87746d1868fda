/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs of elements from any form to any other. The few cases that move most bytes have kernels of their own in map_quads.cu; the
 * kernel here knows all types, widths and alignments at run time. A warp takes 256 elements at a time, a lane eight of them: eight
 * codes are `width` whole bytes. Packed codes pass through shared memory, so that device memory sees whole words side by side.
 */
#include "kernels/cuda/map_parts.h"

enum { GROUP = 8, TILE = 32 * GROUP, STAGE_WORDS = TILE + 2 };

/* The elements of one lane. */
typedef struct group {
    uint32_t i;    /* the first one in the piece */
    uint32_t live; /* 0 to 8 of them exist */
} group_t;

/* ---- values in memory ---- */

template <typename as_t> static __device__ __forceinline__ void load_values(const void *src, bool aligned, group_t at, float value[GROUP])
{
    typedef typename as_t::item_t item_t;
    constexpr int length = 16 / (int)sizeof(item_t);
    if (aligned && at.live == GROUP) {
#pragma unroll
        for (int part = 0; part < GROUP / length; part++) {
            iq_vector<item_t, length> vector = iq_load<length>((const item_t *)src + at.i + part * length);
#pragma unroll
            for (int j = 0; j < length; j++)
                value[part * length + j] = as_t::widen(vector.item[j]);
        }
        return;
    }
#pragma unroll
    for (uint32_t j = 0; j < GROUP; j++)
        value[j] = j < at.live ? as_t::widen(((const item_t *)src)[at.i + j]) : 0.0f;
}

template <typename as_t>
static __device__ __forceinline__ void store_values(const iq_map_args_t &args, group_t at, const float value[GROUP])
{
    typedef typename as_t::item_t item_t;
    constexpr int length = 16 / (int)sizeof(item_t);
    item_t item[GROUP];
#pragma unroll
    for (int j = 0; j < GROUP; j++)
        item[j] = as_t::narrow(value[j]);
    if (args.accumulate) {
        float before[GROUP];
        load_values<as_t>(args.dst, args.dst_aligned, at, before);
#pragma unroll
        for (int j = 0; j < GROUP; j++)
            item[j] = as_t::narrow(before[j] + as_t::widen(item[j]));
    }
    if (args.dst_aligned && at.live == GROUP) {
#pragma unroll
        for (int part = 0; part < GROUP / length; part++) {
            iq_vector<item_t, length> vector;
#pragma unroll
            for (int j = 0; j < length; j++)
                vector.item[j] = item[part * length + j];
            iq_store((item_t *)args.dst + at.i + part * length, vector);
        }
        return;
    }
#pragma unroll
    for (uint32_t j = 0; j < GROUP; j++)
        if (j < at.live)
            ((item_t *)args.dst)[at.i + j] = item[j];
}

/* ---- sums in memory ---- */

static __device__ __forceinline__ void load_sums(const void *src, bool aligned, group_t at, uint32_t code[GROUP])
{
    if (aligned && at.live == GROUP) {
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
    for (uint32_t j = 0; j < GROUP; j++)
        code[j] = j < at.live ? ((const uint32_t *)src)[at.i + j] : 0;
}

static __device__ __forceinline__ void store_sums(const iq_map_args_t &args, group_t at, uint32_t code[GROUP])
{
    if (args.accumulate) {
        uint32_t before[GROUP];
        load_sums(args.dst, args.dst_aligned, at, before);
#pragma unroll
        for (int j = 0; j < GROUP; j++)
            code[j] += before[j];
    }
    if (args.dst_aligned && at.live == GROUP) {
#pragma unroll
        for (int part = 0; part < 2; part++) {
            iq_vector<uint32_t, 4> vector = {{code[4 * part], code[4 * part + 1], code[4 * part + 2], code[4 * part + 3]}};
            iq_store((uint32_t *)args.dst + at.i + 4 * part, vector);
        }
        return;
    }
#pragma unroll
    for (uint32_t j = 0; j < GROUP; j++)
        if (j < at.live)
            ((uint32_t *)args.dst)[at.i + j] = code[j];
}

/* ---- packed codes: `stage` belongs to the warp, `left` elements remain from the tile's first on ---- */

static __device__ __forceinline__ uint32_t tile_bytes(uint32_t left, unsigned width)
{
    return left >= TILE ? TILE / GROUP * width : (left + GROUP - 1) / GROUP * width;
}

static __device__ __forceinline__ void load_packed(const iq_map_args_t &args, uint32_t *stage, uint32_t tile, uint32_t left)
{
    uint32_t lane = threadIdx.x % 32, bytes = tile_bytes(left, args.src_width), words = bytes / 4;
    const unsigned char *src = (const unsigned char *)args.src + (size_t)tile * (TILE / GROUP * args.src_width);
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

static __device__ __forceinline__ void unpack(const iq_map_args_t &args, const uint32_t *stage, group_t at, uint32_t code[GROUP])
{
    uint32_t bit = threadIdx.x % 32 * GROUP * args.src_width, mask = 0xffffffffu >> (32 - args.src_width);
    bool too_large = false, dirty = false;
#pragma unroll
    for (uint32_t j = 0; j < GROUP; j++, bit += args.src_width) {
        code[j] = at.live == 0 ? 0 : __funnelshift_r(stage[bit / 32], stage[bit / 32 + 1], bit % 32) & mask;
        too_large |= j < at.live && code[j] > args.most;
        dirty |= j >= at.live && code[j] != 0;
    }
    if (dirty)
        iq_report_fault(args.fault, IQ_CUDA_BAD_PADDING);
    if (too_large)
        iq_report_fault(args.fault, IQ_CUDA_BAD_CODE);
}

static __device__ __forceinline__ void store_packed(const iq_map_args_t &args, uint32_t *stage, uint32_t tile, uint32_t left, group_t at,
                                                    const uint32_t code[GROUP])
{
    uint32_t lane = threadIdx.x % 32, bytes = tile_bytes(left, args.dst_width), mask = 0xffffffffu >> (32 - args.dst_width);
    unsigned char *dst = (unsigned char *)args.dst + (size_t)tile * (TILE / GROUP * args.dst_width);
    __syncwarp();
    if (at.live > 0) {
        unsigned char *to = (unsigned char *)stage + lane * args.dst_width;
        uint64_t bits = 0;
        uint32_t used = 0;
#pragma unroll
        for (uint32_t j = 0; j < GROUP; j++) {
            bits |= (uint64_t)(j < at.live ? code[j] & mask : 0) << used;
            for (used += args.dst_width; used >= 8; used -= 8, bits >>= 8)
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

static __device__ __forceinline__ float source_unit(const iq_map_args_t &args, uint32_t bucket)
{
    float scale = __ldg(args.scales + bucket);
    if (args.foreign_scales && iq_float_bits(scale) > 0x7f800000u)
        iq_report_fault(args.fault, IQ_CUDA_BAD_SCALE);
    return iq_half_step(args.top, scale);
}

static __device__ __forceinline__ float grid_inverse(const iq_map_args_t &args, uint32_t bucket)
{
    return iq_inverse_step(args.grid_top, __ldg(args.grid_scales + bucket));
}

static __device__ __forceinline__ float grid_unit(const iq_map_args_t &args, uint32_t bucket)
{
    return iq_half_step(args.grid_top, __ldg(args.grid_scales + bucket));
}

/* Calls use(j, factor(bucket of element j)), with `factor` once for each bucket. */
template <typename factor_fn, typename use_fn>
static __device__ __forceinline__ void for_buckets(const iq_map_args_t &args, group_t at, factor_fn factor, use_fn use)
{
    uint32_t last = at.i + at.live - 1, bucket = iq_bucket_at(args.buckets, at.i);
    bool one = iq_bucket_at(args.buckets, last) == bucket;
    float found = factor(args, bucket);
#pragma unroll
    for (uint32_t j = 0; j < GROUP; j++) {
        if (!one && j < at.live) {
            uint32_t next = iq_bucket_at(args.buckets, at.i + j);
            if (next != bucket) {
                bucket = next;
                found = factor(args, bucket);
            }
        }
        use(j, found);
    }
}

static __device__ __forceinline__ void codes_to_values(const iq_map_args_t &args, group_t at, const uint32_t code[GROUP], float value[GROUP])
{
    for_buckets(args, at, source_unit, [&](uint32_t j, float unit) { value[j] = iq_code_value(code[j], args.zero, unit); });
}

/* The random words of eight elements, which may begin anywhere in a block of four. */
static __device__ __forceinline__ void draw_group(const iq_map_args_t &args, uint64_t element, uint32_t random[GROUP + 4])
{
    uint32_t skip = (uint32_t)element % 4;
#pragma unroll
    for (uint32_t part = 0; part < 3; part++) {
        iq_philox_block_t block = {{0, 0, 0, 0}};
        uint64_t quad = element / 4 + part;
        if (part < 2 || skip != 0)
            block = iq_cuda_philox((uint32_t)quad, ((uint32_t)(quad >> 32) & 0xffu) | args.tag, (uint32_t)args.call,
                                   (uint32_t)(args.call >> 32), (uint32_t)args.seed, (uint32_t)(args.seed >> 32));
#pragma unroll
        for (int j = 0; j < 4; j++)
            random[4 * part + j] = block.word[j];
    }
#pragma unroll
    for (int j = 0; j < GROUP + 3; j++)
        random[j] = skip & 1 ? random[j + 1] : random[j];
#pragma unroll
    for (int j = 0; j < GROUP + 2; j++)
        random[j] = skip & 2 ? random[j + 2] : random[j];
}

static __device__ __forceinline__ void quantize(const iq_map_args_t &args, group_t at, const float value[GROUP], uint32_t code[GROUP])
{
    uint32_t random[GROUP + 4] = {0};
    if (args.stochastic)
        draw_group(args, args.first + at.i, random);
    for_buckets(args, at, grid_inverse, [&](uint32_t j, float inverse) {
        float y = value[j] * inverse + args.shift;
        int32_t whole = args.stochastic ? iq_round_stochastic(y, random[j] >> 8, args.low, args.high)
                                        : iq_round_nearest(y, args.low, args.high);
        code[j] = (uint32_t)(whole - args.low);
    });
}

static __device__ __forceinline__ void round_through(isgq_data_type_t through, float value[GROUP])
{
    if (through == ISGQ_FLOAT16) {
#pragma unroll
        for (int j = 0; j < GROUP; j++)
            value[j] = iq_widen_f16(iq_narrow_f16(value[j]));
    } else if (through == ISGQ_BFLOAT16) {
#pragma unroll
        for (int j = 0; j < GROUP; j++)
            value[j] = iq_bf16_to_float(iq_narrow_bf16(value[j]));
    }
}

/* ---- the kernel ---- */

/* Values of any form; elements that do not exist are 0. */
template <int from>
static __device__ __forceinline__ void take_values(const iq_map_args_t &args, group_t at, const uint32_t code[GROUP], float value[GROUP])
{
    if (from != IQ_CUDA_VALUES) {
        codes_to_values(args, at, code, value);
    } else {
        if (args.src_type == ISGQ_FLOAT32)
            load_values<iq_as_f32>(args.src, args.src_aligned, at, value);
        else if (args.src_type == ISGQ_FLOAT16)
            load_values<iq_as_f16>(args.src, args.src_aligned, at, value);
        else
            load_values<iq_as_bf16>(args.src, args.src_aligned, at, value);
    }
    if (args.divisor != 1.0f) {
#pragma unroll
        for (int j = 0; j < GROUP; j++)
            value[j] = value[j] / args.divisor;
    }
    round_through(args.through, value);
}

template <int to>
static __device__ __forceinline__ void put(const iq_map_args_t &args, group_t at, const float value[GROUP], uint32_t code[GROUP])
{
    if (to == IQ_CUDA_SUMS)
        store_sums(args, at, code);
    else if (to != IQ_CUDA_VALUES)
        return;
    else if (args.dst_type == ISGQ_FLOAT32)
        store_values<iq_as_f32>(args, at, value);
    else if (args.dst_type == ISGQ_FLOAT16)
        store_values<iq_as_f16>(args, at, value);
    else
        store_values<iq_as_bf16>(args, at, value);
}

template <int from, int to> static __global__ void __launch_bounds__(IQ_CUDA_THREADS) map_any(iq_map_args_t args)
{
    __shared__ uint32_t stages[IQ_CUDA_WARPS][STAGE_WORDS];
    uint32_t *stage = stages[threadIdx.x / 32];
    uint32_t tiles = (args.count - 1) / TILE + 1;
    for (uint32_t tile = blockIdx.x * IQ_CUDA_WARPS + threadIdx.x / 32; tile < tiles; tile += gridDim.x * IQ_CUDA_WARPS) {
        uint32_t left = args.count - tile * TILE, mine = threadIdx.x % 32 * GROUP;
        group_t at = {tile * TILE + mine, mine >= left ? 0 : left - mine < GROUP ? left - mine : (uint32_t)GROUP};
        uint32_t code[GROUP] = {0};
        float value[GROUP] = {0};
        if (from == IQ_CUDA_CODES) {
            load_packed(args, stage, tile, left);
            unpack(args, stage, at, code);
        }
        if (at.live > 0) {
            if (from == IQ_CUDA_SUMS)
                load_sums(args.src, args.src_aligned, at, code);
            if (args.as_values) {
                take_values<from>(args, at, code, value);
                if (args.quantize) {
                    quantize(args, at, value, code);
                    if (to == IQ_CUDA_VALUES)
                        for_buckets(args, at, grid_unit, [&](uint32_t j, float unit) {
                            value[j] = iq_code_value(code[j], (int32_t)args.grid_top, unit);
                        });
                }
            }
            put<to>(args, at, value, code);
        }
        if (to == IQ_CUDA_CODES)
            store_packed(args, stage, tile, left, at, code);
        else if (from == IQ_CUDA_CODES)
            __syncwarp(); /* all have read the stage */
    }
}

/* ---- launches ---- */

static size_t item_bytes(isgq_data_type_t type) { return type == ISGQ_FLOAT32 ? 4 : 2; }

/* Bytes from a run's start to its element `i`, a multiple of eight. */
static size_t offset_of(iq_cuda_form_t form, isgq_data_type_t type, unsigned width, size_t i)
{
    if (form == IQ_CUDA_CODES)
        return i / GROUP * width;
    return i * (form == IQ_CUDA_SUMS ? 4 : item_bytes(type));
}

static bool is_aligned(const void *pointer) { return (uintptr_t)pointer % 16 == 0; }

/* The piece of `count` elements from `done` on. */
static iq_map_args_t piece_of(const iq_cuda_map_t *map, size_t done, size_t count)
{
    const iq_cuda_source_t *source = &map->source;
    const iq_cuda_target_t *target = &map->target;
    const iq_cuda_grid_t *grid = &map->grid;
    size_t skipped = map->bucket == 0 ? 0 : (size_t)((map->first % map->bucket + done) / map->bucket);
    int32_t half = (int32_t)(grid->top / 2);
    iq_map_args_t args = {};
    args.src = (const char *)source->data + offset_of(source->form, source->type, source->width, done);
    args.dst = (char *)target->data + offset_of(target->form, target->type, target->width, done);
    args.count = (uint32_t)count;
    args.first = map->first + done;
    args.buckets = iq_buckets_of(args.first, map->bucket);
    args.src_type = source->type;
    args.dst_type = target->type;
    args.through = map->through;
    args.src_width = source->width;
    args.dst_width = target->width;
    args.src_aligned = is_aligned(args.src);
    args.dst_aligned = is_aligned(args.dst);
    args.accumulate = target->accumulate;
    args.as_values = grid->used || target->form == IQ_CUDA_VALUES;
    args.foreign_scales = source->foreign_scales;
    args.most = source->most;
    args.top = source->top;
    args.zero = source->zero;
    args.divisor = source->divisor;
    args.scales = source->scales == NULL ? NULL : source->scales + skipped;
    args.grid_scales = grid->scales == NULL ? NULL : grid->scales + skipped;
    args.quantize = grid->used;
    args.stochastic = grid->stochastic;
    args.grid_top = grid->top;
    args.low = grid->top == 1 ? 0 : -half;
    args.high = grid->top == 1 ? 1 : half;
    args.shift = grid->top == 1 ? 0.5f : 0.0f;
    args.tag = (grid->stream << 8) | (grid->rank << 16);
    args.seed = grid->seed;
    args.call = grid->call;
    uint64_t quad = args.first / 4;
    args.regular = args.first % 4 == 0 && (quad + count / 4 + 1) >> 32 == quad >> 32;
    args.counter0 = (uint32_t)quad;
    args.counter1 = ((uint32_t)(quad >> 32) & 0xffu) | args.tag;
    args.fault = map->fault;
    return args;
}

template <int from>
static isgq_result_t launch_any(int device, isgq_stream_t stream, iq_cuda_form_t to, const iq_map_args_t &args)
{
    size_t blocks = (args.count - 1) / (TILE * IQ_CUDA_WARPS) + 1;
    switch (to) {
    case IQ_CUDA_VALUES: return iq_cuda_launch<map_any<from, IQ_CUDA_VALUES>>(device, stream, blocks, args);
    case IQ_CUDA_SUMS: return iq_cuda_launch<map_any<from, IQ_CUDA_SUMS>>(device, stream, blocks, args);
    default: return iq_cuda_launch<map_any<from, IQ_CUDA_CODES>>(device, stream, blocks, args);
    }
}

isgq_result_t iq_cuda_run_map(int device, isgq_stream_t stream, const iq_cuda_map_t *map)
{
    if (map->count == 0)
        return ISGQ_SUCCESS;
    if (map->source.form == IQ_CUDA_VALUES && map->target.form != IQ_CUDA_VALUES && !map->grid.used)
        return IQ_FAIL(ISGQ_ERR_INTERNAL, "map: values become codes on a grid only");
    ON_DEVICE(device);
    for (size_t done = 0, count; done < map->count; done += count) {
        isgq_result_t result = ISGQ_SUCCESS;
        count = map->count - done < IQ_CUDA_PIECE ? map->count - done : IQ_CUDA_PIECE;
        iq_map_args_t args = piece_of(map, done, count);
        if (iq_cuda_map_quads(device, stream, map, &args, &result))
            ;
        else if (map->source.form == IQ_CUDA_VALUES)
            result = launch_any<IQ_CUDA_VALUES>(device, stream, map->target.form, args);
        else if (map->source.form == IQ_CUDA_SUMS)
            result = launch_any<IQ_CUDA_SUMS>(device, stream, map->target.form, args);
        else
            result = launch_any<IQ_CUDA_CODES>(device, stream, map->target.form, args);
        IQ_TRY(result);
    }
    return ISGQ_SUCCESS;
}

isgq_result_t iq_cuda_warm_map(int device)
{
    IQ_TRY(iq_cuda_warm_quads(device));
    return iq_cuda_load<map_any<IQ_CUDA_VALUES, IQ_CUDA_VALUES>, map_any<IQ_CUDA_VALUES, IQ_CUDA_SUMS>,
                        map_any<IQ_CUDA_VALUES, IQ_CUDA_CODES>, map_any<IQ_CUDA_SUMS, IQ_CUDA_VALUES>,
                        map_any<IQ_CUDA_SUMS, IQ_CUDA_SUMS>, map_any<IQ_CUDA_SUMS, IQ_CUDA_CODES>,
                        map_any<IQ_CUDA_CODES, IQ_CUDA_VALUES>, map_any<IQ_CUDA_CODES, IQ_CUDA_SUMS>,
                        map_any<IQ_CUDA_CODES, IQ_CUDA_CODES>>(device);
}
