/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What kernels on levels are made of. A team of threads, a warp or a block, works on one bucket at a time, or on that part of it
 * that the message carries: its run. The run's values lie in shared memory, one word each, where they become codes.
 */
#ifndef ISGQ_KERNELS_CUDA_LEVEL_PARTS_H
#define ISGQ_KERNELS_CUDA_LEVEL_PARTS_H

#include "kernels/cuda/quads.h"
#include "kernels/level_fit.h"

/* Blocks that registers must leave room for; shared memory has it for six. Without a number ptxas takes fewer registers of some
 * kernels than they need. */
enum { IQ_LEVEL_BLOCKS = 4 };

enum { IQ_HEADER_WORDS = 16 };

typedef struct iq_level_args {
    iq_cuda_levels_t call; /* its replays are in its call number when a kernel has begun */
    size_t runs;
    size_t skip;  /* elements of the first bucket that come before the span */
    size_t codes; /* where they start in the message */
} iq_level_args_t;

/* ---- teams ---- */

/* What a team has in shared memory. */
template <int threads> struct iq_level_header_room {
    double sums[threads / 32];
    uint32_t counts[threads / 32];
    uint32_t header[IQ_HEADER_WORDS];
};

/* With a run. Word i lies at iq_level_at(i), so that neither neighbours nor every eighth word share a bank. */
template <int threads> struct iq_level_room : iq_level_header_room<threads> {
    enum { capacity = threads == 32 ? IQ_CUDA_LEVEL_BUCKET / IQ_CUDA_WARPS : IQ_CUDA_LEVEL_BUCKET };
    uint32_t word[capacity + capacity / 32];
    uint32_t signs[capacity / 32 + 8]; /* of a rotation */
    float levels[IQ_EDEN_SYMBOLS_MOST], borders[IQ_EDEN_SYMBOLS_MOST];
};

static __device__ __forceinline__ uint32_t iq_level_at(uint32_t i) { return i + i / 32; }

template <int threads, typename room_t = iq_level_room<threads>> struct iq_team {
    room_t *room;
    uint32_t lane; /* within the team */

    static constexpr uint32_t size = threads;
    static __device__ __forceinline__ uint32_t per_block() { return IQ_CUDA_THREADS / threads; }

    __device__ __forceinline__ void sync() const
    {
        if constexpr (threads == 32)
            __syncwarp();
        else
            __syncthreads();
    }

    __device__ __forceinline__ float value(uint32_t i) const { return iq_bits_float(room->word[iq_level_at(i)]); }
    __device__ __forceinline__ void set(uint32_t i, float value) const { room->word[iq_level_at(i)] = iq_float_bits(value); }
    __device__ __forceinline__ float *header() const { return (float *)room->header; }

    /* The same for the whole team. Also a barrier, before and after. */
    __device__ __forceinline__ uint32_t largest(uint32_t mine) const
    {
        uint32_t most = __reduce_max_sync(0xffffffffu, mine);
        if constexpr (threads > 32) {
            if (lane % 32 == 0)
                room->counts[lane / 32] = most;
            __syncthreads();
            most = 0;
#pragma unroll
            for (int w = 0; w < threads / 32; w++)
                most = room->counts[w] > most ? room->counts[w] : most;
            __syncthreads();
        }
        return most;
    }

    /* Of doubles whose sums are exact. */
    __device__ __forceinline__ double total(double mine) const
    {
#pragma unroll
        for (int far = 16; far > 0; far /= 2)
            mine += __shfl_xor_sync(0xffffffffu, mine, far);
        if constexpr (threads > 32) {
            if (lane % 32 == 0)
                room->sums[lane / 32] = mine;
            __syncthreads();
            mine = 0.0;
#pragma unroll
            for (int w = 0; w < threads / 32; w++)
                mine += room->sums[w];
            __syncthreads();
        }
        return mine;
    }
};

/* ---- sums in the order of iq_level_sum_t ---- */

/* The tree of iq_level_fold over 16 neighbouring lanes; all of them get it. */
static __device__ __forceinline__ double iq_fold_lanes(double sum)
{
#pragma unroll
    for (int far = IQ_LEVEL_LANES / 2; far > 0; far /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, far);
    return sum;
}

/* Half a warp adds up term(i), of `count` values; the whole warp must call this. */
template <typename term_t> static __device__ __forceinline__ double iq_sum_in_order(uint32_t count, const term_t &term)
{
    double sum = 0.0;
    for (uint32_t i = threadIdx.x % IQ_LEVEL_LANES; i < count; i += IQ_LEVEL_LANES)
        sum += term(i);
    return iq_fold_lanes(sum);
}

/* ---- runs ---- */

typedef struct iq_level_run {
    size_t index;
    size_t begin; /* in the span */
    uint32_t count;
} iq_level_run_t;

static __device__ __forceinline__ size_t iq_level_begin(const iq_level_args_t &args, size_t index)
{
    return index == 0 ? 0 : index * args.call.bucket - args.skip;
}

static __device__ __forceinline__ iq_level_run_t iq_level_run_of(const iq_level_args_t &args, size_t index)
{
    size_t begin = iq_level_begin(args, index), end = iq_level_begin(args, index + 1);
    return {index, begin, (uint32_t)((end < args.call.count ? end : args.call.count) - begin)};
}

template <typename as_t> static __device__ __forceinline__ const typename as_t::item_t *iq_run_values(const iq_level_args_t &args, size_t begin)
{
    return (const typename as_t::item_t *)args.call.values + begin;
}

/* The sum of term(i) over the run in the order of iq_level_sum_t, for the whole team. */
template <typename team_t, typename term_t>
static __device__ __forceinline__ double iq_run_sum(const iq_level_run_t &run, const team_t &team, const term_t &term)
{
    if (team.lane < 32) { /* one warp, both halves of it the same */
        double sum = iq_sum_in_order(run.count, term);
        if (team.lane == 0)
            team.room->sums[0] = sum;
    }
    team.sync();
    return team.room->sums[0];
}

/* The run's values to shared memory, and the largest magnitude's bits of those that this thread has moved. */
template <typename as_t, typename team_t>
static __device__ __forceinline__ uint32_t iq_level_load_as(const iq_level_args_t &args, const iq_level_run_t &run, const team_t &team)
{
    const typename as_t::item_t *from = iq_run_values<as_t>(args, run.begin);
    bool aligned = (uintptr_t)from % (IQ_QUAD * sizeof(*from)) == 0;
    uint32_t most = 0;
    for (uint32_t i = team.lane * IQ_QUAD; i < run.count; i += team.size * IQ_QUAD) {
        float value[IQ_QUAD];
        iq_load_quad<as_t>(from, aligned, i, run.count, value);
#pragma unroll
        for (uint32_t j = 0; j < IQ_QUAD; j++) {
            if (args.call.divisor != 1.0f)
                value[j] = value[j] / args.call.divisor;
            uint32_t magnitude = iq_float_bits(value[j]) & 0x7fffffffu;
            most = magnitude > most ? magnitude : most;
            if (i + j < run.count)
                team.set(i + j, value[j]);
        }
    }
    return most;
}

template <typename team_t>
static __device__ __forceinline__ uint32_t iq_level_load(const iq_level_args_t &args, const iq_level_run_t &run, const team_t &team)
{
    switch (args.call.type) {
    case ISGQ_FLOAT32: return iq_level_load_as<iq_as_f32>(args, run, team);
    case ISGQ_FLOAT16: return iq_level_load_as<iq_as_f16>(args, run, team);
    default: return iq_level_load_as<iq_as_bf16>(args, run, team);
    }
}

/* ---- codes to units ---- */

/* Bytes of a unit. */
static __device__ __forceinline__ uint32_t iq_unit_bytes(const iq_cuda_levels_t &call)
{
    return call.unit / call.group_codes * call.group_bits / 8;
}

/* Eight codes of `width` bits. Codes come after headers, and an odd number of these may be of one byte. */
template <typename code_t> static __device__ __forceinline__ void iq_write_plain(uint32_t width, uint8_t *to, const code_t &code)
{
    uint64_t bits = 0;
    uint32_t last = 0;
#pragma unroll
    for (uint32_t k = 0; k < 8; k++) {
        last = code(k);
        bits |= (uint64_t)last << k * width;
    }
    if ((width == 2 || width == 4) && (uintptr_t)to % 2 == 0) {
        for (uint32_t i = 0; i < width; i += 2, bits >>= 16)
            *(uint16_t *)(to + i) = (uint16_t)bits;
        return;
    }
    for (uint32_t i = 0; i < width && i < 8; i++, bits >>= 8)
        to[i] = (uint8_t)bits;
    if (width == 9)
        to[8] = (uint8_t)(last >> 1);
}

/* Groups of several codes. */
template <typename code_t> static __device__ __forceinline__ void iq_write_groups(const iq_cuda_levels_t &call, uint8_t *to, const code_t &code)
{
    uint64_t bits = 0;
    uint32_t held = 0;
    for (uint32_t k = 0; k < call.unit; k += call.group_codes, held += call.group_bits) {
        uint32_t group = 0;
        for (uint32_t digit = call.group_codes; digit-- > 0;)
            group = group * call.symbols + code(k + digit);
        bits |= (uint64_t)group << held;
    }
    for (; held > 0; held -= 8, bits >>= 8)
        *to++ = (uint8_t)bits;
}

template <typename code_t> static __device__ __forceinline__ void iq_write_unit(const iq_cuda_levels_t &call, uint8_t *to, const code_t &code)
{
    if (call.unit == 1)
        *to = (uint8_t)code(0);
    else if (call.group_codes == 1)
        iq_write_plain(call.group_bits, to, code);
    else
        iq_write_groups(call, to, code);
}

#endif
