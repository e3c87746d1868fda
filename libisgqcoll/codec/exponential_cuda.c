/* SPDX-License-Identifier: Apache-2.0 */
/* Codec `exponential` on device memory: the messages, sums and bits of exponential.c, each step one kernel. */
#include "base/status.h"
#include "codec/dense.h"
#include "codec/device.h"
#include "codec/exponential.h"
#include "codec/uniform.h"
#include "kernels/philox.h"

static const float *shared_scales(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span)
{
    return call->scales + iq_uniform_scale_at(codec, call, span);
}

/* From one form to another under the shared scales. */
static iq_cuda_exponent_t step_of(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, iq_cuda_form_t from, const void *src,
                                  iq_cuda_form_t to, void *dst)
{
    return (iq_cuda_exponent_t){.from = from,
                                .to = to,
                                .type = call->datatype,
                                .src = src,
                                .dst = dst,
                                .accumulate = call->accumulate,
                                .scales = codec->shared ? shared_scales(codec, call, span) : NULL,
                                .bits = codec->bits,
                                .slots = (unsigned)iq_exponential_slots(call),
                                .head = iq_exponential_head(codec, call),
                                .parts = 1,
                                .largest_of_one = iq_exponential_largest(codec, call),
                                .stream = IQ_STREAM_OWN,
                                .rank = (uint32_t)call->rank,
                                .seed = call->seed,
                                .call = call->call,
                                .first = span.first,
                                .bucket = codec->bucket,
                                .count = span.count};
}

/* ---- with scales of its own: one contribution, which is only moved ---- */

/* [scales][codes], from values of type `type`. */
static void write_scaled(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, isgq_data_type_t type, const void *values,
                         bool is_sum, void *message)
{
    iq_device_t *device = call->device;
    size_t codes_at = iq_uniform_codes_at(codec, span);
    iq_cuda_source_t source = iq_device_values(type, values);
    iq_cuda_exponent_t step = step_of(codec, call, span, IQ_CUDA_VALUES, values, IQ_CUDA_CODES, (unsigned char *)message + codes_at);
    iq_assert(codes_at <= device->scratch_bytes);
    step.type = type;
    step.scales = device->scratch;
    step.stream = is_sum ? IQ_STREAM_RESULT : IQ_STREAM_OWN;
    step.rank = is_sum ? 0 : (uint32_t)call->rank;
    iq_device_clear(device, device->scratch, codes_at);
    iq_device_measure(device, &source, span, codec->bucket, device->scratch);
    iq_device_copy(device, message, device->scratch, codes_at);
    iq_device_exponent(device, step);
}

static isgq_result_t read_scaled(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message,
                                 isgq_data_type_t type, bool accumulate, void *dst)
{
    const unsigned char *codes = (const unsigned char *)message + iq_uniform_codes_at(codec, span);
    iq_cuda_exponent_t step = step_of(codec, call, span, IQ_CUDA_CODES, codes, IQ_CUDA_VALUES, dst);
    step.type = type;
    step.accumulate = accumulate;
    step.scales = message;
    step.foreign_scales = true;
    step.least = iq_exponential_least(codec, call, 1);
    iq_device_exponent(call->device, step);
    return call->device->result;
}

static void move(const iq_codec_call_t *call, iq_span_t span, iq_cuda_source_t source, iq_cuda_target_t target)
{
    iq_device_map(call->device, (iq_cuda_map_t){.source = source,
                                                .target = target,
                                                .through = ISGQ_FLOAT32,
                                                .first = span.first,
                                                .count = span.count});
}

/* ---- the codec ---- */

static void local_scales(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, float *scales)
{
    iq_cuda_source_t source = iq_device_values(call->datatype, src);
    iq_device_measure(call->device, &source, span, codec->bucket, scales + iq_uniform_scale_at(codec, call, span));
}

static void encode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *message)
{
    if (codec->shared)
        iq_device_exponent(call->device, step_of(codec, call, span, IQ_CUDA_VALUES, src, IQ_CUDA_CODES, message));
    else
        write_scaled(codec, call, span, call->datatype, src, false, message);
}

static void add_own(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *acc, bool first)
{
    iq_cuda_exponent_t step = step_of(codec, call, span, IQ_CUDA_VALUES, src, IQ_CUDA_SUMS, acc);
    step.starts = first;
    if (codec->shared)
        iq_device_exponent(call->device, step);
    else /* the only contribution: finish quantizes it */
        move(call, span, iq_device_values(call->datatype, src), iq_device_output(ISGQ_FLOAT32, acc, false));
}

static isgq_result_t add(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, int parts,
                         void *acc, bool first)
{
    if (!codec->shared)
        return read_scaled(codec, call, span, message, ISGQ_FLOAT32, !first, acc);
    iq_cuda_exponent_t step = step_of(codec, call, span, IQ_CUDA_CODES, message, IQ_CUDA_SUMS, acc);
    step.starts = first;
    step.parts = (uint32_t)parts;
    step.least = iq_exponential_least(codec, call, parts);
    iq_device_exponent(call->device, step);
    return call->device->result;
}

static void store(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, int parts, void *message)
{
    (void)parts;
    if (codec->shared)
        iq_device_exponent(call->device, step_of(codec, call, span, IQ_CUDA_SUMS, acc, IQ_CUDA_CODES, message));
    else
        write_scaled(codec, call, span, ISGQ_FLOAT32, acc, false, message);
}

static void finish(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *message)
{
    if (codec->shared)
        store(codec, call, span, acc, call->nranks, message);
    else
        write_scaled(codec, call, span, ISGQ_FLOAT32, acc, true, message);
}

static isgq_result_t decode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, void *dst)
{
    if (!codec->shared)
        return read_scaled(codec, call, span, message, call->datatype, call->accumulate, dst);
    iq_cuda_exponent_t step = step_of(codec, call, span, IQ_CUDA_CODES, message, IQ_CUDA_VALUES, dst);
    step.least = iq_exponential_least(codec, call, 0);
    iq_device_exponent(call->device, step);
    return call->device->result;
}

static void deliver(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *dst)
{
    if (codec->shared)
        iq_device_exponent(call->device, step_of(codec, call, span, IQ_CUDA_SUMS, acc, IQ_CUDA_VALUES, dst));
    else
        move(call, span, iq_device_values(ISGQ_FLOAT32, acc), iq_device_output(call->datatype, dst, call->accumulate));
}

const iq_codec_ops_t iq_codec_exponential_cuda_ops = {
    .name = "exponential",
    IQ_CODEC_SHAPE(exponential),
    .local_scales = local_scales,
    .encode = encode,
    .add_own = add_own,
    .add = add,
    .store = store,
    .finish = finish,
    .decode = decode,
    .deliver = deliver,
    .counts_parts = true,
    .most_ranks = iq_exponential_most_ranks,
    .passes_sums = iq_exponential_passes_sums,
};
