/* SPDX-License-Identifier: Apache-2.0 */
/* Codec `levels` on GPUs: which kernels make and read a message, and the units of codes that two buckets share. */
#include "kernels/cuda/level_encode.h"

/* A thread for each two neighbouring runs. */
static __global__ void __launch_bounds__(IQ_CUDA_THREADS) join_edges(iq_level_args_t args)
{
    const iq_cuda_levels_t &call = args.call;
    for (size_t r = 1 + blockIdx.x * (size_t)IQ_CUDA_THREADS + threadIdx.x; r < args.runs; r += gridDim.x * (size_t)IQ_CUDA_THREADS) {
        size_t begin = iq_level_begin(args, r), unit = begin / call.unit, start = unit * call.unit;
        if (start == begin)
            continue;
        const uint16_t *edge = call.edges + r * call.unit;
        uint8_t *to = (uint8_t *)call.message + args.codes + unit * iq_unit_bytes(call);
        iq_write_unit(call, to, [&](uint32_t k) { return start + k < call.count ? (uint32_t)edge[k] : 0u; });
    }
}

static iq_level_args_t args_of(const iq_cuda_levels_t *levels)
{
    iq_level_args_t args = {};
    args.call = *levels;
    args.skip = (size_t)(levels->first % levels->bucket);
    args.runs = (args.skip + levels->count - 1) / levels->bucket + 1;
    args.codes = args.runs * levels->header_bytes;
    return args;
}

static isgq_result_t encode_runs(int device, isgq_stream_t stream, const iq_level_args_t &args)
{
    switch (args.call.kind) {
    case IQ_CUDA_QSGD:
    case IQ_CUDA_NATURAL:
    case IQ_CUDA_MX: return iq_level_encode_plain(device, stream, args);
    case IQ_CUDA_ORQ: return iq_level_encode_sorted(device, stream, args);
    case IQ_CUDA_EDEN: return iq_level_encode_eden(device, stream, args);
    default: return iq_level_encode_fitted(device, stream, args);
    }
}

/* Buckets are multiples of 32, so that units of eight codes never begin in one and end in another unless the span is cut so. */
static isgq_result_t encode(int device, isgq_stream_t stream, const iq_cuda_levels_t *levels)
{
    iq_level_args_t args = args_of(levels);
    ON_DEVICE(device);
    IQ_TRY(encode_runs(device, stream, args));
    if (args.runs == 1 || (levels->unit == 8 && args.skip % 8 == 0))
        return ISGQ_SUCCESS;
    return iq_cuda_launch<join_edges>(device, stream, (args.runs - 2) / IQ_CUDA_THREADS + 1, args);
}

static isgq_result_t decode(int device, isgq_stream_t stream, const iq_cuda_levels_t *levels)
{
    iq_level_args_t args = args_of(levels);
    ON_DEVICE(device);
    return levels->kind == IQ_CUDA_EDEN ? iq_level_decode_eden(device, stream, args) : iq_level_decode(device, stream, args);
}

isgq_result_t iq_cuda_warm_level(int device)
{
    IQ_TRY(iq_level_warm_plain(device));
    IQ_TRY(iq_level_warm_fitted(device));
    IQ_TRY(iq_level_warm_sorted(device));
    IQ_TRY(iq_level_warm_eden(device));
    IQ_TRY(iq_level_warm_decode(device));
    return iq_cuda_load<join_edges>(device);
}

const iq_cuda_level_table_t iq_cuda_level_table = {encode, decode};
