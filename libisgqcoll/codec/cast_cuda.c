/* SPDX-License-Identifier: Apache-2.0 */
/* Codecs `fp16` and `bf16` on device memory: every step of cast.c is one conversion. */
#include "codec/dense.h"
#include "codec/device.h"

static void local_scales(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, float *scales)
{
    (void)codec, (void)call, (void)span, (void)src, (void)scales; /* there are none */
}

static void convert(const iq_codec_call_t *call, iq_span_t span, iq_cuda_source_t source, iq_cuda_target_t target)
{
    iq_device_map(call->device,
                  (iq_cuda_map_t){.source = source, .target = target, .through = ISGQ_FLOAT32, .count = span.count});
}

/* The finished sum in f32. */
static iq_cuda_source_t sum_of(const iq_codec_call_t *call, const void *acc)
{
    iq_cuda_source_t sum = iq_device_values(ISGQ_FLOAT32, acc);
    sum.divisor = call->op == ISGQ_AVG ? (float)call->nranks : 1.0f;
    return sum;
}

static void encode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *message)
{
    convert(call, span, iq_device_values(call->datatype, src), iq_device_output(iq_cast_wire_type(codec), message, false));
}

/* Own values are rounded as the other ranks see them. */
static void add_own(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *acc, bool first)
{
    iq_cuda_map_t map = {.source = iq_device_values(call->datatype, src),
                         .target = iq_device_output(ISGQ_FLOAT32, acc, !first),
                         .through = iq_cast_wire_type(codec),
                         .count = span.count};
    iq_device_map(call->device, map);
}

static isgq_result_t add(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, int parts,
                         void *acc, bool first)
{
    isgq_data_type_t type = parts == 1 ? iq_cast_wire_type(codec) : ISGQ_FLOAT32;
    convert(call, span, iq_device_values(type, message), iq_device_output(ISGQ_FLOAT32, acc, !first));
    return call->device->result;
}

static void store(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, int parts, void *message)
{
    if (parts == 1)
        convert(call, span, iq_device_values(ISGQ_FLOAT32, acc), iq_device_output(iq_cast_wire_type(codec), message, false));
    else
        iq_device_copy(call->device, message, acc, iq_cast_partial_bytes(codec, call, span, parts));
}

static void finish(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *message)
{
    convert(call, span, sum_of(call, acc), iq_device_output(iq_cast_wire_type(codec), message, false));
}

static isgq_result_t decode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, void *dst)
{
    convert(call, span, iq_device_values(iq_cast_wire_type(codec), message),
            iq_device_output(call->datatype, dst, call->accumulate));
    return call->device->result;
}

static void deliver(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *dst)
{
    (void)codec;
    convert(call, span, sum_of(call, acc), iq_device_output(call->datatype, dst, call->accumulate));
}

bool iq_cast_combine(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, int nparts,
                     const void *const messages[], int own, const void *src, void *dst, void *result)
{
    isgq_data_type_t wire = iq_cast_wire_type(codec);
    iq_cuda_combine_t combine = {.nparts = (unsigned)nparts,
                                 .part = iq_device_values(wire, NULL),
                                 .own = own,
                                 .own_type = call->datatype,
                                 .through = wire,
                                 .sum = sum_of(call, NULL),
                                 .result = iq_device_output(wire, result, false),
                                 .output = iq_device_output(call->datatype, dst, call->accumulate),
                                 .first = span.first,
                                 .count = span.count};
    for (int i = 0; i < nparts; i++)
        combine.parts[i].data = i == own ? src : messages[i];
    iq_device_combine(call->device, combine);
    return true;
}

/* Both codecs, as in cast.c. */
#define CAST_OPS(wire_name)                                                                                                      \
    {                                                                                                                            \
        .name = wire_name, IQ_CODEC_SHAPE(cast), .local_scales = local_scales, .encode = encode, .add_own = add_own, .add = add, \
        .store = store, .finish = finish, .decode = decode, .deliver = deliver,                                                  \
    }

const iq_codec_ops_t iq_codec_fp16_cuda_ops = CAST_OPS("fp16");
const iq_codec_ops_t iq_codec_bf16_cuda_ops = CAST_OPS("bf16");
