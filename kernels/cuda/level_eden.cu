/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Levels of eden and drive: a run is rotated in shared memory, layer by layer. See codec/eden.c and kernels/hadamard.h.
 *
 * A transform goes over the run with butterflies of neighbours, then of neighbours two apart, four apart, and so on; a thread does
 * up to three such stages on eight values that it holds.
 */
#include "kernels/cuda/level_decode.h"
#include "kernels/cuda/level_encode.h"
#include "kernels/hadamard.h"

/* ---- layers ---- */

template <typename team_t>
static __device__ __forceinline__ void flip(const iq_rotation_t &rotation, uint32_t index, const iq_rotation_layer_t &layer, const team_t &team)
{
    uint64_t first = rotation.first + layer.start, word = iq_rotation_word(&rotation, index, first / 32);
    uint32_t lane = (uint32_t)(first % 32), skew = (uint32_t)(word % 4), count = (uint32_t)layer.count, words = skew + (lane + count + 31) / 32;
    uint32_t *signs = team.room->signs;
    for (uint32_t w = 4 * team.lane; w < words; w += 4 * team.size) {
        iq_philox_block_t block = iq_draw(rotation.seed, rotation.call, IQ_STREAM_ROTATION, rotation.rank, word - skew + w);
#pragma unroll
        for (uint32_t k = 0; k < 4; k++)
            signs[w + k] = block.word[k];
    }
    team.sync();
    for (uint32_t i = team.lane; i < count; i += team.size) {
        uint32_t bit = lane + i, at = (uint32_t)layer.start + i;
        team.set(at, team.value(at) * iq_signed_factor(layer.factor, signs[skew + bit / 32], bit % 32));
    }
    team.sync();
}

/* Stages of `radix` values that are `far` apart. */
template <int radix, typename team_t>
static __device__ __forceinline__ void butterflies(const team_t &team, uint32_t start, uint32_t count, uint32_t far)
{
    for (uint32_t group = team.lane; group < count / radix; group += team.size) {
        uint32_t within = group & (far - 1), base = start + (group - within) * radix + within;
        float value[radix];
#pragma unroll
        for (uint32_t k = 0; k < radix; k++)
            value[k] = team.value(base + k * far);
#pragma unroll
        for (uint32_t half = 1; half < radix; half *= 2) {
#pragma unroll
            for (uint32_t k = 0; k < radix; k++) {
                if ((k & half) == 0) {
                    float pair[2] = {value[k], value[k + half]}, sums[2];
                    iq_hadamard_pair(pair, 1, 0, sums);
                    value[k] = sums[0];
                    value[k + half] = sums[1];
                }
            }
        }
#pragma unroll
        for (uint32_t k = 0; k < radix; k++)
            team.set(base + k * far, value[k]);
    }
    team.sync();
}

template <typename team_t> static __device__ __forceinline__ void transform(const team_t &team, uint32_t start, uint32_t count)
{
    uint32_t far = 1;
    for (; count / far >= 8; far *= 8)
        butterflies<8>(team, start, count, far);
    if (count / far == 4)
        butterflies<4>(team, start, count, far);
    else if (count / far == 2)
        butterflies<2>(team, start, count, far);
}

template <typename team_t> static __device__ __forceinline__ void mix(const iq_rotation_layer_t &layer, const team_t &team)
{
    uint32_t count = (uint32_t)layer.count, half = count - count / 2;
    if (!layer.folds) {
        transform(team, (uint32_t)layer.start, count);
        return;
    }
    for (uint32_t i = team.lane; i + half < count; i += team.size) {
        float low = team.value(i), high = team.value(half + i);
        iq_rotation_fold_pair(&low, &high);
        team.set(i, low);
        team.set(half + i, high);
    }
    team.sync();
}

template <typename team_t> static __device__ __forceinline__ void rotate(const iq_rotation_t &rotation, const team_t &team, uint32_t count)
{
    for (uint32_t index = 0; index < iq_rotation_layers(count); index++) {
        iq_rotation_layer_t layer = iq_rotation_layer(count, index);
        flip(rotation, index, layer, team);
        mix(layer, team);
    }
}

template <typename team_t> static __device__ __forceinline__ void rotate_back(const iq_rotation_t &rotation, const team_t &team, uint32_t count)
{
    for (uint32_t index = iq_rotation_layers(count); index-- > 0;) {
        iq_rotation_layer_t layer = iq_rotation_layer(count, index);
        mix(layer, team);
        flip(rotation, index, layer, team);
    }
}

static __device__ __forceinline__ iq_rotation_t rotation_of(const iq_cuda_levels_t &call, const iq_level_run_t &run, uint32_t rank)
{
    iq_rotation_t rotation = {call.seed, call.call, rank, call.stream == IQ_STREAM_RESULT, call.first + run.begin};
    return rotation;
}

/* ---- levels ---- */

/* In shared memory, for the kernel's life. */
template <typename team_t> static __device__ __forceinline__ void list_levels(const iq_level_args_t &args, const team_t &team)
{
    uint32_t code = team.lane;
    if (code < args.call.symbols) {
        float level = iq_eden_level(args.call.bits, code);
        team.room->levels[code] = level;
        team.room->borders[code] = code == 0 ? 0.0f : iq_eden_border(iq_eden_level(args.call.bits, code - 1), level);
    }
    team.sync();
}

template <typename team_t> struct eden {
    struct fitted_t {
        const float *borders;
        uint32_t half; /* of the symbols; 0: all codes are 0 */
        float scale;
    };
    static constexpr bool uses_random = false;

    /* How many borders are below: they are in ascending order, the first is borders[1]. */
    static __device__ __forceinline__ uint32_t code(const fitted_t &fitted, float value, uint32_t)
    {
        uint32_t found = 0;
        float scaled = value * fitted.scale;
        for (uint32_t step = fitted.half; step > 0; step /= 2)
            found += scaled > fitted.borders[found + step] ? step : 0u;
        return found;
    }

    static __device__ __forceinline__ void head(const iq_level_args_t &args, const team_t &team, float multiplier)
    {
        if (team.lane == 0) {
            team.room->header[0] = iq_float_bits(multiplier);
            team.room->header[1] = args.call.rank & 0xffffu;
        }
    }

    static __device__ __forceinline__ fitted_t fit(const iq_level_args_t &args, const iq_level_run_t &run, const team_t &team, float most)
    {
        fitted_t fitted = {team.room->borders, 0, 0.0f};
        float unit = iq_eden_unit(most), inverse = 1.0f / unit;
        list_levels(args, team);
        for (uint32_t i = team.lane; i < run.count; i += team.size)
            team.set(i, team.value(i) * inverse);
        team.sync();
        double square = iq_run_sum(run, team, [&](uint32_t i) {
            double value = (double)team.value(i);
            return value * value;
        });
        team.sync();
        if (!(square > 0.0)) {
            head(args, team, 0.0f);
            return fitted;
        }
        rotate(rotation_of(args.call, run, args.call.rank & 0xffffu), team, run.count);
        fitted.half = args.call.symbols / 2;
        fitted.scale = iq_eden_scale(run.count, square);
        double product = iq_run_sum(run, team, [&](uint32_t i) {
            float value = team.value(i);
            return (double)team.room->levels[code(fitted, value, 0)] * (double)value;
        });
        team.sync();
        head(args, team, iq_eden_multiplier(square, product, unit));
        return fitted;
    }
};

isgq_result_t iq_level_encode_eden(int device, isgq_stream_t stream, const iq_level_args_t &args)
{
    return iq_level_launch_encode<eden>(device, stream, args);
}

/* ---- back ---- */

template <typename team_t>
static __device__ __forceinline__ void decode_run(const iq_level_args_t &args, const iq_level_run_t &run, const team_t &team,
                                                  const iq_level_codes_t &codes)
{
    float multiplier = team.header()[0];
    iq_level_bad_header(args, iq_float_bits(multiplier) >= 0x7f800000u);
    for (uint32_t i = team.lane; i < run.count; i += team.size) {
        float level = team.room->levels[iq_level_code_at(args.call, codes, i)];
        team.set(i, multiplier == 0.0f ? 0.0f : level);
    }
    team.sync();
    if (multiplier != 0.0f)
        rotate_back(rotation_of(args.call, run, team.room->header[1] & 0xffffu), team, run.count);
}

template <typename as_t, int threads> static __global__ void __launch_bounds__(IQ_CUDA_THREADS) decode_eden(iq_level_args_t args)
{
    typedef iq_team<threads> team_t;
    __shared__ iq_level_room<threads> rooms[IQ_CUDA_THREADS / threads];
    team_t team = {&rooms[threadIdx.x / threads], threadIdx.x % threads};
    args.call.call = iq_call_now(args.call.call, args.call.replays);
    list_levels(args, team);
    if (blockIdx.x == 0 && threadIdx.x == 0)
        iq_level_check_padding(args);
    for (size_t r = blockIdx.x * (size_t)team.per_block() + threadIdx.x / threads; r < args.runs; r += gridDim.x * (size_t)team.per_block()) {
        iq_level_run_t run = iq_level_run_of(args, r);
        iq_level_codes_t codes = iq_level_codes_of(args, run);
        if (iq_level_read_header(args, run, team)) {
            decode_run(args, run, team, codes);
            float multiplier = team.header()[0];
            iq_level_store<as_t>(args, run, team, [&](uint32_t i) { return multiplier == 0.0f ? 0.0f : iq_eden_value(team.value(i), multiplier); });
        } else {
            iq_level_store_nan<as_t>(args, run, team, codes);
        }
    }
}

template <typename as_t> static isgq_result_t launch_as(int device, isgq_stream_t stream, const iq_level_args_t &args)
{
    if (args.call.bucket <= (size_t)iq_level_room<32>::capacity)
        return iq_cuda_launch<decode_eden<as_t, 32>>(device, stream, (args.runs - 1) / IQ_CUDA_WARPS + 1, args);
    return iq_cuda_launch<decode_eden<as_t, IQ_CUDA_THREADS>>(device, stream, args.runs, args);
}

isgq_result_t iq_level_decode_eden(int device, isgq_stream_t stream, const iq_level_args_t &args)
{
    switch (args.call.type) {
    case ISGQ_FLOAT32: return launch_as<iq_as_f32>(device, stream, args);
    case ISGQ_FLOAT16: return launch_as<iq_as_f16>(device, stream, args);
    default: return launch_as<iq_as_bf16>(device, stream, args);
    }
}

isgq_result_t iq_level_warm_eden(int device)
{
    IQ_TRY(iq_level_load_encode<eden>(device));
    return iq_cuda_load<decode_eden<iq_as_f32, 32>, decode_eden<iq_as_f16, 32>, decode_eden<iq_as_bf16, 32>,
                        decode_eden<iq_as_f32, IQ_CUDA_THREADS>, decode_eden<iq_as_f16, IQ_CUDA_THREADS>,
                        decode_eden<iq_as_bf16, IQ_CUDA_THREADS>>(device);
}
