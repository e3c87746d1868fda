/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Codec `intsgd` on device memory: the messages, sums and bits of intsgd.c. A step is a scale of two half steps, so that integers
 * mean what codes on a grid mean; in messages they are T too large.
 */
#include "base/status.h"
#include "codec/dense.h"
#include "codec/device.h"
#include "codec/intsgd.h"
#include "kernels/philox.h"

/* ---- sources and targets ---- */

/* Sums of `parts` ranks in a message. */
static iq_cuda_source_t codes_of(const iq_codec_t *codec, const iq_codec_call_t *call, const void *packed, int parts)
{
    int32_t top = iq_intsgd_top(codec), most = parts * iq_intsgd_share(codec, call);
    return (iq_cuda_source_t){.form = IQ_CUDA_CODES,
                              .data = packed,
                              .width = codec->bits,
                              .least = (uint32_t)(top - most),
                              .most = (uint32_t)(top + most),
                              .divisor = 1.0f};
}

/* What integers that are `zero` too large mean as a finished sum. */
static iq_cuda_source_t as_values(const iq_codec_call_t *call, iq_cuda_source_t source, int32_t zero, const float *step)
{
    source.scales = step;
    source.top = 2;
    source.zero = 2 * zero;
    source.divisor = call->op == ISGQ_AVG ? (float)call->nranks : 1.0f;
    return source;
}

static iq_cuda_target_t codes_into(const iq_codec_t *codec, void *packed)
{
    return (iq_cuda_target_t){.form = IQ_CUDA_CODES, .data = packed, .width = codec->bits};
}

static iq_cuda_target_t sums_into(void *acc, bool accumulate)
{
    return (iq_cuda_target_t){.form = IQ_CUDA_SUMS, .data = acc, .accumulate = accumulate};
}

static iq_cuda_map_t map_of(iq_span_t span, iq_cuda_source_t source, iq_cuda_target_t target)
{
    return (iq_cuda_map_t){
        .source = source, .target = target, .through = ISGQ_FLOAT32, .first = span.first, .bucket = 0, .count = span.count};
}

/* Integers less `base`. */
static iq_cuda_grid_t grid_of(const iq_codec_t *codec, const iq_codec_call_t *call, const float *step, int32_t base, bool is_sum)
{
    return (iq_cuda_grid_t){.used = true,
                            .stochastic = true,
                            .top = 2,
                            .reach = iq_intsgd_share(codec, call),
                            .base = base,
                            .scales = step,
                            .stream = is_sum ? IQ_STREAM_RESULT : IQ_STREAM_OWN,
                            .rank = is_sum ? 0 : (uint32_t)call->rank,
                            .seed = call->seed,
                            .call = call->call,
                            .replays = call->device->replays};
}

/* ---- alone ---- */

/* [step][codes], with the step of these values. */
static void write_alone(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, iq_cuda_source_t source, bool is_sum,
                        void *message)
{
    iq_device_t *device = call->device;
    float *step = device->scratch;
    iq_cuda_map_t map = map_of(span, source, codes_into(codec, (unsigned char *)message + sizeof(float)));
    iq_cuda_rescale_t rescale = {
        .kind = IQ_CUDA_SHARE_STEP, .scales = step, .buckets = 1, .count = span.count, .share = iq_intsgd_share(codec, call)};
    if (span.count == 0)
        return;
    map.grid = grid_of(codec, call, step, -iq_intsgd_top(codec), is_sum);
    iq_device_clear(device, step, sizeof(*step));
    iq_device_measure(device, &source, span, 0, step);
    iq_device_rescale(device, &rescale);
    iq_device_copy(device, message, step, sizeof(*step));
    iq_device_map(device, map);
}

static isgq_result_t read_alone(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message,
                                iq_cuda_target_t target)
{
    iq_cuda_source_t source = codes_of(codec, call, (const unsigned char *)message + sizeof(float), call->nranks);
    source = as_values(call, source, iq_intsgd_top(codec), message);
    source.foreign_scales = true;
    iq_device_map(call->device, map_of(span, source, target));
    return call->device->result;
}

/* ---- the step that ranks agree on ---- */

static void local_scales(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, float *scales)
{
    iq_cuda_source_t source = iq_device_values(call->datatype, src);
    (void)codec;
    iq_device_measure(call->device, &source, span, 0, scales);
}

static void close_scales(const iq_codec_t *codec, const iq_codec_call_t *call, size_t count, float *scales)
{
    (void)codec, (void)call, (void)count, (void)scales;
}

static void open_scales(const iq_codec_t *codec, const iq_codec_call_t *call, size_t count, float *scales)
{
    iq_cuda_rescale_t rescale = {.kind = IQ_CUDA_SHARE_STEP,
                                 .scales = scales,
                                 .buckets = count > 0,
                                 .count = count,
                                 .share = iq_intsgd_share(codec, call)};
    iq_device_rescale(call->device, &rescale);
}

/* ---- the codec ---- */

static void encode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *message)
{
    iq_cuda_source_t source = iq_device_values(call->datatype, src);
    iq_cuda_map_t map = map_of(span, source, codes_into(codec, message));
    if (codec->shared) {
        map.grid = grid_of(codec, call, call->scales, -iq_intsgd_top(codec), false);
        iq_device_map(call->device, map);
    } else {
        write_alone(codec, call, span, source, false, message);
    }
}

static void add_own(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *acc, bool first)
{
    iq_cuda_source_t source = iq_device_values(call->datatype, src);
    iq_cuda_map_t map = map_of(span, source, iq_device_output(ISGQ_FLOAT32, acc, !first)); /* finish quantizes it */
    if (codec->shared) {
        map.target = sums_into(acc, !first);
        map.grid = grid_of(codec, call, call->scales, 0, false);
    }
    iq_device_map(call->device, map);
}

static isgq_result_t add(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, int parts,
                         void *acc, bool first)
{
    if (!codec->shared)
        return read_alone(codec, call, span, message, iq_device_output(ISGQ_FLOAT32, acc, !first));
    iq_cuda_map_t map = map_of(span, codes_of(codec, call, message, parts), sums_into(acc, !first));
    map.offset = 0u - (uint32_t)iq_intsgd_top(codec);
    iq_device_map(call->device, map);
    return call->device->result;
}

static void store(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, int parts, void *message)
{
    iq_cuda_map_t map =
        map_of(span, (iq_cuda_source_t){.form = IQ_CUDA_SUMS, .data = acc, .divisor = 1.0f}, codes_into(codec, message));
    (void)parts;
    map.offset = (uint32_t)iq_intsgd_top(codec);
    if (codec->shared)
        iq_device_map(call->device, map);
    else
        write_alone(codec, call, span, iq_device_values(ISGQ_FLOAT32, acc), false, message);
}

static void finish(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *message)
{
    if (codec->shared)
        store(codec, call, span, acc, call->nranks, message);
    else
        write_alone(codec, call, span, iq_device_values(ISGQ_FLOAT32, acc), true, message);
}

static isgq_result_t decode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, void *dst)
{
    iq_cuda_target_t output = iq_device_output(call->datatype, dst, call->accumulate);
    if (!codec->shared)
        return read_alone(codec, call, span, message, output);
    iq_cuda_source_t source = codes_of(codec, call, message, call->nranks);
    iq_device_map(call->device, map_of(span, as_values(call, source, iq_intsgd_top(codec), call->scales), output));
    return call->device->result;
}

static void deliver(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *dst)
{
    iq_cuda_source_t source = iq_device_values(ISGQ_FLOAT32, acc);
    if (codec->shared) {
        source.form = IQ_CUDA_SUMS;
        source = as_values(call, source, 0, call->scales);
    }
    iq_device_map(call->device, map_of(span, source, iq_device_output(call->datatype, dst, call->accumulate)));
}

bool iq_intsgd_combine(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, int nparts,
                       const void *const messages[], int own, const void *src, void *dst, void *result)
{
    if (!codec->shared)
        return false;
    iq_cuda_combine_t combine = {.nparts = (unsigned)nparts,
                                 .part = codes_of(codec, call, NULL, 1),
                                 .own = own,
                                 .own_type = call->datatype,
                                 .through = ISGQ_FLOAT32,
                                 .integers = true,
                                 .offset = 0u - (uint32_t)iq_intsgd_top(codec),
                                 .sum = as_values(call, (iq_cuda_source_t){.form = IQ_CUDA_SUMS}, 0, call->scales),
                                 .output = iq_device_output(call->datatype, dst, call->accumulate),
                                 .first = span.first,
                                 .count = span.count};
    for (int i = 0; i < nparts; i++)
        combine.parts[i].data = i == own ? src : messages[i];
    if (own >= 0)
        combine.own_grid = grid_of(codec, call, call->scales, 0, false);
    if (result != NULL)
        combine.result = codes_into(codec, result);
    iq_device_combine(call->device, combine);
    return true;
}

const iq_codec_ops_t iq_codec_intsgd_cuda_ops = {
    .name = "intsgd",
    IQ_CODEC_SHAPE(intsgd),
    .most_ranks = iq_intsgd_most_ranks,
    .room_scales = iq_intsgd_one_scale,
    .shared_scales = iq_intsgd_one_scale,
    .scales_unit = iq_intsgd_scales_unit,
    .scales_op = iq_intsgd_scales_op,
    .local_scales = local_scales,
    .close_scales = close_scales,
    .open_scales = open_scales,
    .encode = encode,
    .add_own = add_own,
    .add = add,
    .store = store,
    .finish = finish,
    .decode = decode,
    .deliver = deliver,
};
