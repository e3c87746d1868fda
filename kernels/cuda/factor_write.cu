/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From picked rows to the blob. How long a row is shows only when its zeros are counted, so there are three kernels: the first
 * reads the factors, rounds, and leaves a byte for each code; the second finds where rows start; the third packs. Bytes of
 * codes are a quarter of f32 factors, and mostly still in the L2 when they are packed.
 *
 * A warp works on a row of one factor, 256 columns at a time.
 */
#include "kernels/cuda/factor_parts.h"

enum { GROUP = IQ_FACTOR_GROUP, SPAN = IQ_FACTOR_SPAN };

static __device__ __forceinline__ uint32_t width_of(const iq_cuda_factor_pick_t &pick, int side)
{
    return side == 0 ? pick.width_x : pick.width_delta;
}

static __device__ __forceinline__ uint32_t nonzero_of(const iq_cuda_factor_pick_t &pick, int side)
{
    return side == 0 ? pick.nonzero[0] : pick.nonzero[1];
}

static __device__ __forceinline__ uint64_t columns_of(const iq_factor_args_t &args, int side)
{
    return side == 0 ? args.shape.m : args.shape.n;
}

/* The code of 0. */
static __device__ __forceinline__ uint32_t zero_of(const iq_factor_args_t &args, int side, uint32_t width)
{
    return side == 0 && args.facts->negative == 0 ? 0 : (uint32_t)iq_factor_levels(width, false);
}

/* ---- rounding ---- */

/* Random bits of eight elements from element `first` on: of two blocks of numbers, or parts of three. */
static __device__ __forceinline__ void draw_group(const iq_factor_args_t &args, uint64_t call, int side, uint64_t first,
                                                  uint32_t (&random)[GROUP])
{
    uint32_t stream = side == 0 ? IQ_STREAM_FACTOR_X : IQ_STREAM_FACTOR_DELTA, skip = (uint32_t)(first % 4), words[12] = {};
#pragma unroll
    for (uint32_t k = 0; k < 3; k++)
        if (k < 2 || skip != 0) {
            iq_philox_block_t block = iq_draw(args.call.seed, call, stream, (uint32_t)args.call.rank, first + 4 * k);
#pragma unroll
            for (int j = 0; j < 4; j++)
                words[4 * k + j] = block.word[j];
        }
#pragma unroll
    for (int j = 0; j < GROUP; j++)
        random[j] = (skip == 0 ? words[j] : skip == 1 ? words[j + 1] : skip == 2 ? words[j + 2] : words[j + 3]) >> 8;
}

/* Elements i .. i + 7 of a row; zeros beyond its end. */
template <typename as_t>
static __device__ __forceinline__ void load_group(const typename as_t::item_t *row, uint64_t i, uint64_t columns, bool aligned,
                                                  float (&values)[GROUP])
{
    if (aligned && i + GROUP <= columns) {
        auto low = iq_load<4>(row + i), high = iq_load<4>(row + i + 4);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            values[j] = as_t::widen(low.item[j]);
            values[j + 4] = as_t::widen(high.item[j]);
        }
        return;
    }
#pragma unroll
    for (int j = 0; j < GROUP; j++)
        values[j] = i + j < columns ? as_t::widen(row[i + j]) : 0.0f;
}

/* How the values of a row become codes. */
typedef struct rounding {
    iq_factor_step_t step;
    int32_t low, high;
    bool nearest;
} rounding_t;

static __device__ __forceinline__ uint32_t code_of(const rounding_t &rounding, float value, uint32_t random)
{
    float lifted = rounding.step.lift > 1 ? value * rounding.step.lift : value, y = lifted * rounding.step.inverse;
    int32_t rounded = rounding.nearest ? iq_round_nearest(y, rounding.low, rounding.high)
                                       : iq_round_stochastic(y, random, rounding.low, rounding.high);
    return (uint32_t)(rounded - rounding.low);
}

template <typename as_t>
static __device__ __forceinline__ void round_row(const iq_factor_args_t &args, int side, uint32_t place, uint64_t call)
{
    iq_cuda_factor_pick_t *pick = &args.picks[place];
    const iq_factor_operand_t &operand = args.operand[side];
    const typename as_t::item_t *row = (const typename as_t::item_t *)operand.data + pick->row * operand.columns;
    bool aligned = (uintptr_t)row % (4 * sizeof(*row)) == 0, is_unsigned = side == 0 && args.facts->negative == 0;
    uint32_t width = width_of(*pick, side), zero = zero_of(args, side, width), nonzero = 0;
    rounding_t rounding = {pick->step[side], is_unsigned ? 0 : -iq_factor_levels(width, false),
                           iq_factor_levels(width, is_unsigned), args.call.nearest};
    for (uint64_t i = iq_factor_lane() * GROUP; i < operand.columns; i += SPAN) {
        float values[GROUP];
        uint32_t random[GROUP] = {};
        iq_vector<uint8_t, GROUP> codes;
        load_group<as_t>(row, i, operand.columns, aligned, values);
        if (!rounding.nearest)
            draw_group(args, call, side, pick->row * operand.columns + i, random);
#pragma unroll
        for (int j = 0; j < GROUP; j++) {
            uint32_t code = code_of(rounding, values[j], random[j]);
            codes.item[j] = (uint8_t)code;
            nonzero += code != zero && i + j < operand.columns;
        }
        iq_store<uint8_t, GROUP>(operand.codes + place * operand.stride + i, codes);
    }
    nonzero = __reduce_add_sync(IQ_ALL_LANES, nonzero);
    if (iq_factor_lane() == 0)
        pick->nonzero[side] = nonzero;
}

/* Rows that speak for the bias alone have no X. */
template <typename as_t> static __global__ void __launch_bounds__(IQ_CUDA_THREADS) round_rows(iq_factor_args_t args)
{
    uint64_t call = iq_call_now(args.call.call, args.call.replays);
    for (uint64_t i = iq_factor_warp(); i < 2 * (uint64_t)args.facts->picks; i += iq_factor_warps())
        if (i % 2 == 1 || args.picks[i / 2].c != 0)
            round_row<as_t>(args, (int)(i % 2), (uint32_t)(i / 2), call);
}

/* ---- where rows start ---- */

static __device__ __forceinline__ uint32_t side_bytes(const iq_factor_args_t &args, const iq_cuda_factor_pick_t &pick, int side)
{
    if (side == 0 && pick.c == 0)
        return 0;
    return (uint32_t)iq_factor_side_bytes(columns_of(args, side), nonzero_of(pick, side), width_of(pick, side));
}

static __device__ void write_header(const iq_factor_args_t &args, uint32_t count)
{
    uint8_t *blob = args.blob;
    blob[0] = IQ_FACTOR_VERSION;
    blob[1] =
        (uint8_t)((args.facts->negative == 0 ? IQ_FACTOR_FLAG_UNSIGNED : 0) | (args.shape.want_bias ? IQ_FACTOR_FLAG_BIAS : 0));
    blob[2] = blob[3] = 0;
    for (int i = 0; i < 4; i++)
        blob[4 + i] = (uint8_t)(count >> (8 * i));
}

static __global__ void __launch_bounds__(IQ_FACTOR_THREADS) place_rows(iq_factor_args_t args)
{
    uint32_t count = args.facts->picks, start = IQ_FACTOR_HEADER_BYTES;
    unsigned long long total;
    for (uint32_t first = 0; first < count; first += IQ_FACTOR_THREADS) {
        uint32_t i = first + threadIdx.x, bytes = 0;
        if (i < count)
            bytes = iq_factor_row_header(args.shape.want_bias) + side_bytes(args, args.picks[i], 0) +
                    side_bytes(args, args.picks[i], 1);
        uint32_t from = start + (uint32_t)iq_factor_before_in_block(bytes, &total);
        start += (uint32_t)total;
        if (i < count)
            args.picks[i].start = args.starts[i] = from;
    }
    for (uint64_t i = count + threadIdx.x; i <= args.call.max_batch; i += IQ_FACTOR_THREADS)
        args.starts[i] = start; /* the blob's length */
    if (threadIdx.x == 0)
        write_header(args, count);
}

/* ---- packing ---- */

/* What a warp packs through. */
typedef struct desk {
    alignas(8) uint8_t kept[SPAN + GROUP]; /* codes, not yet packed */
    uint8_t packed[SPAN];
} desk_t;

/* Pack `groups` groups of eight codes and move them to `out`. */
static __device__ __forceinline__ void pack_groups(desk_t &desk, uint32_t groups, uint32_t width, uint8_t *out)
{
    uint32_t lane = iq_factor_lane();
    if (lane < groups) {
        iq_vector<uint8_t, GROUP> codes = iq_load<GROUP>(desk.kept + lane * GROUP);
        uint64_t bits = 0;
#pragma unroll
        for (uint32_t j = 0; j < GROUP; j++)
            bits |= (uint64_t)codes.item[j] << (j * width);
        for (uint32_t j = 0; j < width; j++)
            desk.packed[lane * width + j] = (uint8_t)(bits >> (8 * j));
    }
    __syncwarp();
    for (uint32_t i = lane; i < groups * width; i += 32)
        out[i] = desk.packed[i];
    __syncwarp();
}

/* Which of this lane's codes are kept, as bits. */
static __device__ __forceinline__ uint32_t kept_of(const iq_vector<uint8_t, GROUP> &codes, uint32_t valid, bool plane,
                                                   uint32_t zero)
{
    uint32_t kept = 0;
#pragma unroll
    for (uint32_t j = 0; j < GROUP; j++)
        kept |= (j < valid && (!plane || codes.item[j] != zero) ? 1u : 0u) << j;
    return kept;
}

/* Codes of one factor's row: in full, or a plane of bits and the codes that are not zero. */
static __device__ __forceinline__ void pack_row(const uint8_t *codes, uint64_t columns, uint32_t width, bool plane, uint32_t zero,
                                                desk_t &desk, uint8_t *out)
{
    uint8_t *bits = out;
    uint32_t filled = 0;
    if (plane)
        out += iq_factor_packed(columns, 1);
    for (uint64_t first = 0; first < columns; first += SPAN) {
        uint64_t i = first + iq_factor_lane() * GROUP;
        uint32_t valid = iq_factor_valid(i, columns);
        iq_vector<uint8_t, GROUP> group = {};
        if (valid > 0)
            group = iq_load<GROUP>(codes + i);
        uint32_t kept = kept_of(group, valid, plane, zero), count = (uint32_t)__popc(kept),
                 place = filled + iq_factor_before(count);
        if (plane && valid > 0)
            bits[i / GROUP] = (uint8_t)kept;
#pragma unroll
        for (uint32_t j = 0; j < GROUP; j++)
            if (kept >> j & 1)
                desk.kept[place++] = group.item[j];
        filled += __reduce_add_sync(IQ_ALL_LANES, count);
        __syncwarp();
        uint32_t groups = filled / GROUP;
        pack_groups(desk, groups, width, out);
        out += groups * width;
        filled %= GROUP;
        uint8_t rest = desk.kept[groups * GROUP + iq_factor_lane() % GROUP];
        __syncwarp();
        if (iq_factor_lane() < GROUP)
            desk.kept[iq_factor_lane()] = rest;
        __syncwarp();
    }
    if (filled > 0) {
        if (iq_factor_lane() >= filled && iq_factor_lane() < GROUP)
            desk.kept[iq_factor_lane()] = 0;
        __syncwarp();
        pack_groups(desk, 1, width, out);
    }
}

static __device__ __forceinline__ bool has_plane(const iq_factor_args_t &args, const iq_cuda_factor_pick_t &pick, int side)
{
    return side_bytes(args, pick, side) < iq_factor_packed(columns_of(args, side), width_of(pick, side));
}

static __device__ __forceinline__ void write_row_header(const iq_factor_args_t &args, const iq_cuda_factor_pick_t &pick,
                                                        uint8_t *out)
{
    uint32_t form = (uint32_t)(pick.width_delta - 1) << 3 | (has_plane(args, pick, 1) ? IQ_FACTOR_PLANE_DELTA : 0);
    if (pick.c != 0)
        form |= (uint32_t)(pick.width_x - 1) | (has_plane(args, pick, 0) ? IQ_FACTOR_PLANE_X : 0);
    *out++ = pick.c;
    if (args.shape.want_bias)
        *out++ = pick.b;
    *out = (uint8_t)form;
}

static __global__ void __launch_bounds__(IQ_CUDA_THREADS) pack_rows(iq_factor_args_t args)
{
    __shared__ desk_t desks[IQ_CUDA_WARPS];
    for (uint64_t i = iq_factor_warp(); i < 2 * (uint64_t)args.facts->picks; i += iq_factor_warps()) {
        const iq_cuda_factor_pick_t pick = args.picks[i / 2];
        int side = (int)(i % 2);
        uint8_t *out = args.blob + pick.start;
        if (side == 1 && iq_factor_lane() == 0)
            write_row_header(args, pick, out);
        if (side == 0 && pick.c == 0)
            continue;
        out += iq_factor_row_header(args.shape.want_bias) + (side == 1 ? side_bytes(args, pick, 0) : 0);
        const iq_factor_operand_t &operand = args.operand[side];
        uint32_t width = width_of(pick, side);
        pack_row(operand.codes + i / 2 * operand.stride, operand.columns, width, has_plane(args, pick, side),
                 zero_of(args, side, width), desks[threadIdx.x / 32], out);
    }
}

/* ---- launches ---- */

isgq_result_t iq_factor_write_rows(int device, isgq_stream_t stream, const iq_factor_args_t &args)
{
    size_t blocks = iq_factor_blocks(2 * args.call.batch);
    switch (args.call.type) {
    case ISGQ_FLOAT32: IQ_TRY(iq_cuda_launch<round_rows<iq_as_f32>>(device, stream, blocks, args)); break;
    case ISGQ_FLOAT16: IQ_TRY(iq_cuda_launch<round_rows<iq_as_f16>>(device, stream, blocks, args)); break;
    default: IQ_TRY(iq_cuda_launch<round_rows<iq_as_bf16>>(device, stream, blocks, args)); break;
    }
    IQ_TRY(iq_factor_launch_block<place_rows>(stream, args));
    return iq_cuda_launch<pack_rows>(device, stream, blocks, args);
}

isgq_result_t iq_factor_warm_write(int device)
{
    return iq_cuda_load<round_rows<iq_as_f32>, round_rows<iq_as_f16>, round_rows<iq_as_bf16>, place_rows, pack_rows>(device);
}
