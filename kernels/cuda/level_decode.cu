/* SPDX-License-Identifier: Apache-2.0 */
/* Messages to values, for all models whose codes stand for levels by themselves. See codec/levels_plain.c, levels_fitted.c and mx.c. */
#include "kernels/cuda/level_decode.h"
#include "kernels/cuda/level_encode.h"

/* What a code is worth, from a header in shared memory. */
struct qsgd {
    float unit;
    int32_t top;

    template <typename team_t> __device__ __forceinline__ qsgd(const iq_level_args_t &args, const team_t &team)
    {
        float norm = team.header()[0];
        top = (int32_t)iq_qsgd_top(args.call.bits);
        unit = iq_half_step((uint32_t)top, norm);
        iq_level_bad_header(args, iq_float_bits(norm) > iq_float_bits(IQ_LARGEST_NORM));
    }
    __device__ __forceinline__ float value(uint32_t code) const { return (float)(2 * (int32_t)code - top) * unit; }
};

struct natural {
    uint32_t *fault;

    template <typename team_t> __device__ __forceinline__ natural(const iq_level_args_t &args, const team_t &team)
    {
        fault = args.call.fault;
        iq_level_bad_header(args, *(const uint8_t *)team.room->header != 0);
    }
    __device__ __forceinline__ float value(uint32_t code) const
    {
        if (!iq_natural_is_code(code))
            iq_report_fault(fault, IQ_CUDA_BAD_CODE);
        return iq_natural_value(code);
    }
};

struct mx {
    float step;
    int32_t half;

    template <typename team_t> __device__ __forceinline__ mx(const iq_level_args_t &args, const team_t &team)
    {
        uint32_t field = *(const uint8_t *)team.room->header;
        half = iq_mx_half(args.call.bits);
        step = iq_mx_step(field);
        iq_level_bad_header(args, field > IQ_MX_FIELD_MOST);
    }
    __device__ __forceinline__ float value(uint32_t code) const { return iq_mx_value((int32_t)code - half, step); }
};

/* The header has the levels, in ascending order. */
struct listed {
    const float *levels;

    template <typename team_t> __device__ __forceinline__ listed(const iq_level_args_t &args, const team_t &team)
    {
        levels = team.header();
        for (uint32_t i = team.lane; i < args.call.symbols; i += team.size)
            iq_level_bad_header(args, iq_not_finite(levels[i]) || (i > 0 && levels[i] < levels[i - 1]));
    }
    __device__ __forceinline__ float value(uint32_t code) const { return levels[code]; }
};

/* Plus or minus the header. */
struct mirrored {
    float most;

    template <typename team_t> __device__ __forceinline__ mirrored(const iq_level_args_t &args, const team_t &team)
    {
        most = team.header()[0];
        iq_level_bad_header(args, iq_not_finite(most) || most < -most);
    }
    __device__ __forceinline__ float value(uint32_t code) const { return most == 0.0f ? 0.0f : code ? most : -most; }
};

template <typename model_t, typename as_t, int threads>
static __global__ void __launch_bounds__(IQ_CUDA_THREADS) decode_levels(iq_level_args_t args)
{
    typedef iq_team<threads> team_t;
    __shared__ iq_level_header_room<threads> rooms[IQ_CUDA_THREADS / threads];
    iq_team<threads, iq_level_header_room<threads>> team = {&rooms[threadIdx.x / threads], threadIdx.x % threads};
    if (blockIdx.x == 0 && threadIdx.x == 0)
        iq_level_check_padding(args);
    for (size_t r = blockIdx.x * (size_t)team_t::per_block() + threadIdx.x / threads; r < args.runs;
         r += gridDim.x * (size_t)team_t::per_block()) {
        iq_level_run_t run = iq_level_run_of(args, r);
        iq_level_codes_t codes = iq_level_codes_of(args, run);
        if (iq_level_read_header(args, run, team)) {
            model_t model(args, team);
            iq_level_store<as_t>(args, run, team, [&](uint32_t i) { return model.value(iq_level_code_at(args.call, codes, i)); });
        } else {
            iq_level_store_nan<as_t>(args, run, team, codes);
        }
    }
}

template <typename model_t, typename as_t> static isgq_result_t launch_as(int device, isgq_stream_t stream, const iq_level_args_t &args)
{
    if (args.call.bucket <= IQ_CUDA_LEVEL_BUCKET / IQ_CUDA_WARPS)
        return iq_cuda_launch<decode_levels<model_t, as_t, 32>>(device, stream, (args.runs - 1) / IQ_CUDA_WARPS + 1, args);
    return iq_cuda_launch<decode_levels<model_t, as_t, IQ_CUDA_THREADS>>(device, stream, args.runs, args);
}

template <typename model_t> static isgq_result_t launch(int device, isgq_stream_t stream, const iq_level_args_t &args)
{
    switch (args.call.type) {
    case ISGQ_FLOAT32: return launch_as<model_t, iq_as_f32>(device, stream, args);
    case ISGQ_FLOAT16: return launch_as<model_t, iq_as_f16>(device, stream, args);
    default: return launch_as<model_t, iq_as_bf16>(device, stream, args);
    }
}

isgq_result_t iq_level_decode(int device, isgq_stream_t stream, const iq_level_args_t &args)
{
    switch (args.call.kind) {
    case IQ_CUDA_QSGD: return launch<qsgd>(device, stream, args);
    case IQ_CUDA_NATURAL: return launch<natural>(device, stream, args);
    case IQ_CUDA_MX: return launch<mx>(device, stream, args);
    case IQ_CUDA_EF_SIGN:
    case IQ_CUDA_BINGRAD_PB: return launch<mirrored>(device, stream, args);
    default: return launch<listed>(device, stream, args);
    }
}

template <typename model_t> static isgq_result_t load(int device)
{
    return iq_cuda_load<decode_levels<model_t, iq_as_f32, 32>, decode_levels<model_t, iq_as_f16, 32>,
                        decode_levels<model_t, iq_as_bf16, 32>, decode_levels<model_t, iq_as_f32, IQ_CUDA_THREADS>,
                        decode_levels<model_t, iq_as_f16, IQ_CUDA_THREADS>, decode_levels<model_t, iq_as_bf16, IQ_CUDA_THREADS>>(device);
}

isgq_result_t iq_level_warm_decode(int device)
{
    IQ_TRY(load<qsgd>(device));
    IQ_TRY(load<natural>(device));
    IQ_TRY(load<mx>(device));
    IQ_TRY(load<listed>(device));
    return load<mirrored>(device);
}
