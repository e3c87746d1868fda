/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Values to messages. A model fits levels to a run's values, which lie in shared memory, and says the code of a value:
 *
 *     fitted_t                                   what the whole team knows of the levels; header() of the team has the header
 *     uses_random                                do codes need random numbers?
 *     fit(args, run, team, most)                 -> fitted_t; `most`: the largest magnitude. The team's words may become others
 *     code(fitted, value, random24)              -> the code
 *
 * A unit of codes that belongs to two runs is written by nobody here: its codes go to `edges`, from where level_table.cu joins them.
 */
#ifndef ISGQ_KERNELS_CUDA_LEVEL_ENCODE_H
#define ISGQ_KERNELS_CUDA_LEVEL_ENCODE_H

#include "kernels/cuda/level_parts.h"

/* ---- codes in shared memory to the message ---- */

/* Unit u of the span belongs to this run alone, or what it has of it goes to the edge that it shares. */
template <typename team_t>
static __device__ __forceinline__ void iq_level_pack(const iq_level_args_t &args, const iq_level_run_t &run, const team_t &team, size_t u)
{
    size_t start = u * args.call.unit, end = start + args.call.unit, run_end = run.begin + run.count;
    if (start >= run.begin && (end <= run_end || run_end == args.call.count)) {
        uint32_t at = (uint32_t)(start - run.begin);
        iq_write_unit(args.call, (uint8_t *)args.call.message + args.codes + u * iq_unit_bytes(args.call), [&](uint32_t k) {
            return at + k < run.count ? team.room->word[iq_level_at(at + k)] : 0u;
        });
        return;
    }
    uint16_t *edge = args.call.edges + (run.index + (start >= run.begin)) * args.call.unit;
    for (size_t i = start > run.begin ? start : run.begin; i < end && i < run_end; i++)
        edge[i - start] = (uint16_t)team.room->word[iq_level_at((uint32_t)(i - run.begin))];
}

template <typename team_t>
static __device__ __forceinline__ void iq_level_write(const iq_level_args_t &args, const iq_level_run_t &run, const team_t &team)
{
    size_t first = run.begin / args.call.unit, end = (run.begin + run.count - 1) / args.call.unit + 1;
    uint8_t *header = (uint8_t *)args.call.message + run.index * args.call.header_bytes;
    for (uint32_t i = team.lane; i < args.call.header_bytes; i += team.size)
        header[i] = ((const uint8_t *)team.room->header)[i];
    for (size_t u = first + team.lane; u < end; u += team.size)
        iq_level_pack(args, run, team, u);
}

/* ---- values in shared memory to codes there ---- */

static __device__ __forceinline__ iq_philox_block_t iq_level_random(const iq_cuda_levels_t &call, uint64_t element)
{
    return iq_draw(call.seed, call.call, call.stream, call.rank, element);
}

/* Quads as the random numbers have them. */
template <typename model_t, typename team_t>
static __device__ __forceinline__ void iq_level_code(const iq_level_args_t &args, const iq_level_run_t &run, const team_t &team,
                                                     const typename model_t::fitted_t &fitted)
{
    uint64_t element = args.call.first + run.begin;
    uint32_t skew = (uint32_t)element % IQ_QUAD, end = run.count + skew;
    for (uint32_t i = team.lane * IQ_QUAD; i < end; i += team.size * IQ_QUAD) {
        iq_philox_block_t random = {};
        if constexpr (model_t::uses_random)
            random = iq_level_random(args.call, element - skew + i);
#pragma unroll
        for (uint32_t j = 0; j < IQ_QUAD; j++) {
            if (i + j >= skew && i + j < end) {
                uint32_t at = iq_level_at(i + j - skew);
                team.room->word[at] = model_t::code(fitted, iq_bits_float(team.room->word[at]), random.word[j] >> 8);
            }
        }
    }
}

/* ---- the kernel ---- */

template <typename team_t>
static __device__ __forceinline__ void iq_level_not_finite(const iq_level_run_t &run, const team_t &team)
{
    for (uint32_t i = team.lane; i < run.count; i += team.size)
        team.room->word[iq_level_at(i)] = 0;
    if (team.lane < IQ_HEADER_WORDS)
        team.room->header[team.lane] = 0xffffffffu;
}

template <template <typename> class model, int threads>
static __global__ void __launch_bounds__(IQ_CUDA_THREADS, IQ_LEVEL_BLOCKS) iq_level_encode(iq_level_args_t args)
{
    typedef iq_team<threads> team_t;
    typedef model<team_t> model_t;
    __shared__ iq_level_room<threads> rooms[IQ_CUDA_THREADS / threads];
    team_t team = {&rooms[threadIdx.x / threads], threadIdx.x % threads};
    args.call.call = iq_call_now(args.call.call, args.call.replays);
    for (size_t r = blockIdx.x * (size_t)team.per_block() + threadIdx.x / threads; r < args.runs; r += gridDim.x * (size_t)team.per_block()) {
        iq_level_run_t run = iq_level_run_of(args, r);
        uint32_t most = team.largest(iq_level_load(args, run, team));
        team.sync();
        if (most >= 0x7f800000u) {
            iq_level_not_finite(run, team);
        } else {
            typename model_t::fitted_t fitted = model_t::fit(args, run, team, iq_bits_float(most));
            iq_level_code<model_t>(args, run, team, fitted);
        }
        team.sync();
        iq_level_write(args, run, team);
        team.sync();
    }
}

/* By the size of buckets: a warp has room for small ones. */
template <template <typename> class model>
static inline isgq_result_t iq_level_launch_encode(int device, isgq_stream_t stream, const iq_level_args_t &args)
{
    if (args.call.bucket <= (size_t)iq_level_room<32>::capacity)
        return iq_cuda_launch<iq_level_encode<model, 32>>(device, stream, (args.runs - 1) / IQ_CUDA_WARPS + 1, args);
    return iq_cuda_launch<iq_level_encode<model, IQ_CUDA_THREADS>>(device, stream, args.runs, args);
}

template <template <typename> class model> static inline isgq_result_t iq_level_load_encode(int device)
{
    return iq_cuda_load<iq_level_encode<model, 32>, iq_level_encode<model, IQ_CUDA_THREADS>>(device);
}

/* ---- the kernels' files ---- */

isgq_result_t iq_level_encode_plain(int device, isgq_stream_t stream, const iq_level_args_t &args);
isgq_result_t iq_level_warm_plain(int device);
isgq_result_t iq_level_encode_fitted(int device, isgq_stream_t stream, const iq_level_args_t &args);
isgq_result_t iq_level_warm_fitted(int device);
isgq_result_t iq_level_encode_sorted(int device, isgq_stream_t stream, const iq_level_args_t &args);
isgq_result_t iq_level_warm_sorted(int device);
isgq_result_t iq_level_encode_eden(int device, isgq_stream_t stream, const iq_level_args_t &args);
isgq_result_t iq_level_decode_eden(int device, isgq_stream_t stream, const iq_level_args_t &args);
isgq_result_t iq_level_warm_eden(int device);
isgq_result_t iq_level_decode(int device, isgq_stream_t stream, const iq_level_args_t &args);
isgq_result_t iq_level_warm_decode(int device);

#endif
