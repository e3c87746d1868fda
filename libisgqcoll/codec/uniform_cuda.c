/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Codec `uniform` on device memory: the messages and bits of uniform.c, each step one kernel that goes over the span.
 *
 * Where a message carries its own scales, they are measured in device memory and then copied into the message: kernels take
 * maxima with atomics, which memory behind a bus is not made for.
 */
#include "base/status.h"
#include "codec/dense.h"
#include "codec/device.h"
#include "codec/uniform.h"
#include "kernels/philox.h"

size_t iq_codec_device_scratch(const iq_codec_t *codec, size_t count)
{
    if ((codec->ops != &iq_codec_uniform_ops && codec->ops != &iq_codec_uniform_cuda_ops) || count == 0)
        return 0;
    iq_span_t worst = {codec->bucket == 0 ? 0 : codec->bucket - 1, count}; /* starts with a bucket's last element */
    return iq_uniform_buckets(codec, worst) * sizeof(float);
}

/* ---- sources ---- */

static iq_cuda_source_t codes_of(const iq_codec_t *codec, const void *message, int parts)
{
    return (iq_cuda_source_t){.form = IQ_CUDA_CODES,
                              .data = message,
                              .width = iq_uniform_width(codec, parts),
                              .most = iq_uniform_most(codec, parts),
                              .divisor = 1.0f};
}

/* Codes or their sums, as values. */
static iq_cuda_source_t as_values(const iq_codec_t *codec, iq_cuda_source_t source, int parts, const float *scales)
{
    source.scales = scales;
    source.top = iq_uniform_top(codec);
    source.zero = iq_uniform_zero(codec, parts);
    return source;
}

static const float *shared_scales(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span)
{
    return call->scales + iq_uniform_scale_at(codec, call, span);
}

/* The finished sum. */
static iq_cuda_source_t sum_of(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc)
{
    iq_cuda_source_t sum = iq_device_values(ISGQ_FLOAT32, acc);
    if (codec->shared) {
        sum.form = IQ_CUDA_SUMS;
        sum = as_values(codec, sum, call->nranks, shared_scales(codec, call, span));
    }
    sum.divisor = iq_uniform_divisor(call);
    return sum;
}

/* ---- steps ---- */

static iq_cuda_map_t map_of(const iq_codec_t *codec, iq_span_t span, iq_cuda_source_t source, iq_cuda_target_t target)
{
    return (iq_cuda_map_t){.source = source,
                           .target = target,
                           .through = ISGQ_FLOAT32,
                           .first = span.first,
                           .bucket = codec->bucket,
                           .count = span.count};
}

/* A sum's random bits do not depend on who owns it. */
static iq_cuda_grid_t grid_of(const iq_codec_t *codec, const iq_codec_call_t *call, const float *scales, bool is_sum)
{
    return (iq_cuda_grid_t){.used = true,
                            .stochastic = codec->rounding == IQ_ROUND_STOCHASTIC,
                            .top = iq_uniform_top(codec),
                            .scales = scales,
                            .stream = is_sum ? IQ_STREAM_RESULT : IQ_STREAM_OWN,
                            .rank = is_sum ? 0 : (uint32_t)call->rank,
                            .seed = call->seed,
                            .call = call->call};
}

static iq_cuda_target_t sums_into(void *acc, bool accumulate)
{
    return (iq_cuda_target_t){.form = IQ_CUDA_SUMS, .data = acc, .accumulate = accumulate};
}

static iq_cuda_target_t codes_into(void *packed, unsigned width)
{
    return (iq_cuda_target_t){.form = IQ_CUDA_CODES, .data = packed, .width = width};
}

/* The scales of the span's own values, in scratch. */
static const float *measure(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const iq_cuda_source_t *source)
{
    iq_device_t *device = call->device;
    size_t bytes = iq_uniform_codes_at(codec, span);
    iq_assert(bytes <= device->scratch_bytes);
    iq_device_clear(device, device->scratch, bytes);
    iq_device_measure(device, source, span, codec->bucket, device->scratch);
    return device->scratch;
}

/* [scales][codes] */
static void write_scaled(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, iq_cuda_source_t source,
                         bool is_sum, void *message)
{
    size_t codes_at = iq_uniform_codes_at(codec, span);
    const float *scales = measure(codec, call, span, &source);
    iq_cuda_map_t map = map_of(codec, span, source, codes_into((unsigned char *)message + codes_at, codec->bits));
    map.grid = grid_of(codec, call, scales, is_sum);
    iq_device_copy(call->device, message, scales, codes_at);
    iq_device_map(call->device, map);
}

static isgq_result_t read_scaled(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message,
                                 iq_cuda_target_t target)
{
    const unsigned char *codes = (const unsigned char *)message + iq_uniform_codes_at(codec, span);
    iq_cuda_source_t source = as_values(codec, codes_of(codec, codes, 1), 1, message);
    source.foreign_scales = true;
    iq_device_map(call->device, map_of(codec, span, source, target));
    return call->device->result;
}

/* ---- the codec ---- */

static void local_scales(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, float *scales)
{
    iq_cuda_source_t source = iq_device_values(call->datatype, src);
    iq_device_measure(call->device, &source, span, codec->bucket, scales + iq_uniform_scale_at(codec, call, span));
}

static void encode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *message)
{
    iq_cuda_source_t source = iq_device_values(call->datatype, src);
    iq_cuda_map_t map = map_of(codec, span, source, codes_into(message, codec->bits));
    if (codec->shared) {
        map.grid = grid_of(codec, call, shared_scales(codec, call, span), false);
        iq_device_map(call->device, map);
    } else {
        write_scaled(codec, call, span, source, false, message);
    }
}

/* Own values are quantized as the other ranks see them, unless they are the only contribution: then finish quantizes them. */
static void add_own(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *acc, bool first)
{
    iq_cuda_source_t source = iq_device_values(call->datatype, src);
    iq_cuda_map_t map = map_of(codec, span, source, iq_device_output(ISGQ_FLOAT32, acc, !first));
    if (codec->shared) {
        map.target = sums_into(acc, !first);
        map.grid = grid_of(codec, call, shared_scales(codec, call, span), false);
    } else if (call->nranks > 1) {
        map.grid = grid_of(codec, call, measure(codec, call, span, &source), false);
    }
    iq_device_map(call->device, map);
}

static isgq_result_t add(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, int parts,
                         void *acc, bool first)
{
    iq_cuda_target_t sums = iq_device_output(ISGQ_FLOAT32, acc, !first);
    if (codec->shared)
        iq_device_map(call->device, map_of(codec, span, codes_of(codec, message, parts), sums_into(acc, !first)));
    else if (parts == 1)
        return read_scaled(codec, call, span, message, sums);
    else
        iq_device_map(call->device, map_of(codec, span, iq_device_values(ISGQ_FLOAT32, message), sums));
    return call->device->result;
}

static void store(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, int parts, void *message)
{
    iq_cuda_source_t source = {.form = IQ_CUDA_SUMS, .data = acc, .divisor = 1.0f};
    if (codec->shared)
        iq_device_map(call->device, map_of(codec, span, source, codes_into(message, iq_uniform_width(codec, parts))));
    else if (parts == 1)
        write_scaled(codec, call, span, iq_device_values(ISGQ_FLOAT32, acc), false, message);
    else
        iq_device_copy(call->device, message, acc, iq_uniform_partial_bytes(codec, call, span, parts));
}

static void finish(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *message)
{
    if (iq_uniform_result_is_exact(codec, call))
        store(codec, call, span, acc, call->nranks, message);
    else
        write_scaled(codec, call, span, sum_of(codec, call, span, acc), true, message);
}

static isgq_result_t decode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, void *dst)
{
    iq_cuda_target_t output = iq_device_output(call->datatype, dst, call->accumulate);
    iq_cuda_source_t sums = codes_of(codec, message, call->nranks);
    if (!iq_uniform_result_is_exact(codec, call))
        return read_scaled(codec, call, span, message, output);
    sums = as_values(codec, sums, call->nranks, shared_scales(codec, call, span));
    sums.divisor = iq_uniform_divisor(call);
    iq_device_map(call->device, map_of(codec, span, sums, output));
    return call->device->result;
}

static void deliver(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *dst)
{
    iq_cuda_target_t output = iq_device_output(call->datatype, dst, call->accumulate);
    iq_device_map(call->device, map_of(codec, span, sum_of(codec, call, span, acc), output));
}

const iq_codec_ops_t iq_codec_uniform_cuda_ops = {
    .name = "uniform",
    IQ_CODEC_SHAPE(uniform),
    .local_scales = local_scales,
    .encode = encode,
    .add_own = add_own,
    .add = add,
    .store = store,
    .finish = finish,
    .decode = decode,
    .deliver = deliver,
};
