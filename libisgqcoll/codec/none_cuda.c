/* SPDX-License-Identifier: Apache-2.0 */
/* Codec `none` on device memory: the steps of none.c, a launch each. */
#include "codec/convert.h"
#include "codec/dense.h"
#include "codec/device.h"

static int divisor_of(const iq_codec_call_t *call) { return call->op == ISGQ_AVG ? call->nranks : 1; }

static void local_scales(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, float *scales)
{
    (void)codec, (void)call, (void)span, (void)src, (void)scales; /* there are none */
}

/* acc op= values of `type`. */
static void reduce_into(const iq_codec_call_t *call, iq_span_t span, isgq_data_type_t type, const void *src, void *acc,
                        bool first)
{
    iq_cuda_reduce_t reduce = {.acc_type = iq_none_acc_type(call),
                               .src_type = type,
                               .op = call->op,
                               .src = src,
                               .acc = acc,
                               .first = first,
                               .count = span.count};
    iq_device_reduce(call->device, &reduce);
}

/* Accumulator to the tensor's type. */
static void narrow(const iq_codec_call_t *call, iq_span_t span, const void *acc, int divisor, bool accumulate, void *dst)
{
    iq_cuda_divide_t divide = {.src_type = iq_none_acc_type(call),
                               .dst_type = call->datatype,
                               .src = acc,
                               .dst = dst,
                               .divisor = divisor,
                               .accumulate = accumulate,
                               .count = span.count};
    if (divisor == 1 && !accumulate && divide.src_type == divide.dst_type)
        iq_device_copy(call->device, dst, acc, span.count * iq_datatype_bytes(call->datatype));
    else
        iq_device_divide(call->device, &divide);
}

static void encode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *message)
{
    iq_device_copy(call->device, message, src, iq_none_result_bytes(codec, call, span));
}

static void add_own(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *acc, bool first)
{
    (void)codec;
    reduce_into(call, span, call->datatype, src, acc, first);
}

static isgq_result_t add(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, int parts,
                         void *acc, bool first)
{
    (void)codec;
    reduce_into(call, span, parts == 1 ? call->datatype : iq_none_acc_type(call), message, acc, first);
    return call->device->result;
}

static void store(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, int parts, void *message)
{
    if (parts == 1)
        narrow(call, span, acc, 1, false, message);
    else
        iq_device_copy(call->device, message, acc, iq_none_partial_bytes(codec, call, span, parts));
}

static void finish(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *message)
{
    (void)codec;
    narrow(call, span, acc, divisor_of(call), false, message);
}

static isgq_result_t decode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, void *dst)
{
    iq_cuda_reduce_t sum = {
        .acc_type = call->datatype, .src_type = call->datatype, .op = ISGQ_SUM, .src = message, .acc = dst, .count = span.count};
    iq_cuda_map_t sum_of_halves = {.source = iq_device_values(call->datatype, message),
                                   .target = iq_device_output(call->datatype, dst, true),
                                   .through = ISGQ_FLOAT32,
                                   .count = span.count};
    if (!call->accumulate)
        iq_device_copy(call->device, dst, message, iq_none_result_bytes(codec, call, span));
    else if (iq_none_acc_type(call) != call->datatype)
        iq_device_map(call->device, sum_of_halves);
    else
        iq_device_reduce(call->device, &sum);
    return call->device->result;
}

static void deliver(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *dst)
{
    (void)codec;
    narrow(call, span, acc, divisor_of(call), call->accumulate, dst);
}

/* Sums of small floats; integers and doubles go step by step. */
bool iq_none_combine(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, int nparts,
                     const void *const messages[], int own, const void *src, void *dst, void *result)
{
    (void)codec;
    if (!iq_is_small_float(call->datatype) || (call->op != ISGQ_SUM && call->op != ISGQ_AVG))
        return false;
    iq_cuda_combine_t combine = {.nparts = (unsigned)nparts,
                                 .part = iq_device_values(call->datatype, NULL),
                                 .own = -1, /* own values are what a message of them would be */
                                 .sum = iq_device_values(ISGQ_FLOAT32, NULL),
                                 .result = iq_device_output(call->datatype, result, false),
                                 .output = iq_device_output(call->datatype, dst, call->accumulate),
                                 .first = span.first,
                                 .count = span.count};
    combine.sum.divisor = (float)divisor_of(call);
    for (int i = 0; i < nparts; i++)
        combine.parts[i].data = i == own ? src : messages[i];
    iq_device_combine(call->device, combine);
    return true;
}

const iq_codec_ops_t iq_codec_none_cuda_ops = {
    .name = "none",
    IQ_CODEC_SHAPE(none),
    .local_scales = local_scales,
    .encode = encode,
    .add_own = add_own,
    .add = add,
    .store = store,
    .finish = finish,
    .decode = decode,
    .deliver = deliver,
};
