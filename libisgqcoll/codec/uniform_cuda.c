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

static bool has_norm(const iq_codec_t *codec)
{
    return codec->ops == &iq_codec_uniform_norm_ops || codec->ops == &iq_codec_uniform_norm_cuda_ops;
}

static bool is_uniform(const iq_codec_t *codec)
{
    return codec->ops == &iq_codec_uniform_ops || codec->ops == &iq_codec_uniform_cuda_ops || has_norm(codec);
}

size_t iq_codec_device_scratch(const iq_codec_t *codec, size_t count)
{
    if (codec->ops == &iq_codec_levels_ops || codec->ops == &iq_codec_levels_cuda_ops)
        return iq_levels_device_scratch(codec, count);
    if (codec->ops == &iq_codec_intsgd_ops || codec->ops == &iq_codec_intsgd_cuda_ops)
        return sizeof(float); /* the step of who is alone */
    bool exponential = codec->ops == &iq_codec_exponential_ops || codec->ops == &iq_codec_exponential_cuda_ops;
    if ((!is_uniform(codec) && !exponential) || count == 0)
        return 0;
    iq_span_t worst = {codec->bucket == 0 ? 0 : codec->bucket - 1, count}; /* starts with a bucket's last element */
    size_t kinds = codec->shared ? 1 : 2;                                  /* scales of the sum; and of own values beside them */
    size_t bytes = kinds * iq_uniform_buckets(codec, worst) * sizeof(float);
    return has_norm(codec) ? iq_max(bytes, IQ_DEVICE_MOMENTS_BYTES) : bytes;
}

/* ---- sources ---- */

/* Packed codes or sums of `parts` ranks. */
static iq_cuda_form_t form_of(const iq_codec_t *codec, int parts)
{
    return iq_uniform_is_ternary(codec, parts) ? IQ_CUDA_TERNARY : IQ_CUDA_CODES;
}

static iq_cuda_source_t codes_of(const iq_codec_t *codec, const void *message, int parts)
{
    return (iq_cuda_source_t){.form = form_of(codec, parts),
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

/* A sum's random bits do not depend on who owns it; stratified ones are drawn for all ranks together. */
static iq_cuda_grid_t grid_of(const iq_codec_t *codec, const iq_codec_call_t *call, const float *scales, bool is_sum)
{
    bool stratified = codec->rounding == IQ_ROUND_STRATIFIED && codec->shared && !is_sum;
    return (iq_cuda_grid_t){.used = true,
                            .stochastic = codec->rounding != IQ_ROUND_NEAREST,
                            .top = iq_uniform_top(codec),
                            .scales = scales,
                            .stream = is_sum ? IQ_STREAM_RESULT : stratified ? IQ_STREAM_STRATA : IQ_STREAM_OWN,
                            .rank = is_sum || stratified ? 0 : (uint32_t)call->rank,
                            .seed = call->seed,
                            .call = call->call,
                            .replays = call->device->replays,
                            .strata = stratified ? call->device->strata : NULL};
}

static iq_cuda_target_t sums_into(void *acc, bool accumulate)
{
    return (iq_cuda_target_t){.form = IQ_CUDA_SUMS, .data = acc, .accumulate = accumulate};
}

static iq_cuda_target_t codes_into(const iq_codec_t *codec, void *packed, int parts)
{
    return (iq_cuda_target_t){.form = form_of(codec, parts), .data = packed, .width = iq_uniform_width(codec, parts)};
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
    iq_cuda_map_t map = map_of(codec, span, source, codes_into(codec, (unsigned char *)message + codes_at, 1));
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

/* ---- what ranks agree on beyond maxima ---- */

static void norm_scales(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, float *scales)
{
    iq_cuda_moments_t moments = {.type = call->datatype,
                                 .src = src,
                                 .first = span.first,
                                 .bucket = codec->bucket,
                                 .count = span.count,
                                 .clips = codec->norm != IQ_NORM_L2,
                                 .room = scales + iq_uniform_scale_at(codec, call, span),
                                 .stride = iq_uniform_shared_scales(codec, call->count),
                                 .scratch = call->device->scratch,
                                 .scratch_bytes = call->device->scratch_bytes};
    iq_device_moments(call->device, &moments);
}

static void rescale(const iq_codec_t *codec, const iq_codec_call_t *call, size_t count, float *scales, iq_cuda_rescale_t rescale)
{
    rescale.scales = scales;
    rescale.buckets = iq_uniform_shared_scales(codec, count);
    rescale.bucket = codec->bucket;
    rescale.count = count;
    rescale.clip = codec->clip;
    iq_device_rescale(call->device, &rescale);
}

static void close_scales(const iq_codec_t *codec, const iq_codec_call_t *call, size_t count, float *scales)
{
    iq_cuda_rescale_t close = {.kind = codec->norm == IQ_NORM_L2 ? IQ_CUDA_CLOSE_NORM : IQ_CUDA_CLOSE_CLIP};
    rescale(codec, call, count, scales, close);
}

static void open_scales(const iq_codec_t *codec, const iq_codec_call_t *call, size_t count, float *scales)
{
    if (codec->norm == IQ_NORM_L2)
        rescale(codec, call, count, scales, (iq_cuda_rescale_t){.kind = IQ_CUDA_OPEN_NORM});
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
    iq_cuda_map_t map = map_of(codec, span, source, codes_into(codec, message, 1));
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
        iq_device_map(call->device, map_of(codec, span, source, codes_into(codec, message, parts)));
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

/* ---- the whole sum in one pass; two passes where its scales must be known first ---- */

/* Codes of all ranks, and own values where those are not codes yet. */
static iq_cuda_combine_t parts_of(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, int nparts,
                                  const void *const messages[], int own, const void *src)
{
    size_t codes_at = codec->shared ? 0 : iq_uniform_codes_at(codec, span);
    iq_cuda_source_t values = iq_device_values(call->datatype, src);
    iq_cuda_combine_t combine = {.nparts = (unsigned)nparts,
                                 .part = codes_of(codec, NULL, 1),
                                 .own = own,
                                 .own_type = call->datatype,
                                 .through = ISGQ_FLOAT32,
                                 .integers = codec->shared,
                                 .sum = sum_of(codec, call, span, NULL),
                                 .first = span.first,
                                 .bucket = codec->bucket,
                                 .count = span.count};
    if (!codec->shared)
        combine.part = as_values(codec, combine.part, 1, NULL);
    combine.part.foreign_scales = !codec->shared;
    for (int i = 0; i < nparts; i++) {
        if (i == own)
            combine.parts[i].data = src;
        else
            combine.parts[i] =
                (iq_cuda_part_t){(const unsigned char *)messages[i] + codes_at, codec->shared ? NULL : messages[i]};
    }
    if (own >= 0 && codec->shared)
        combine.own_grid = grid_of(codec, call, shared_scales(codec, call, span), false);
    else if (own >= 0 && call->nranks > 1)
        combine.own_grid = grid_of(codec, call, measure(codec, call, span, &values), false);
    return combine;
}

/* Where own values have their scales, those of the sum come after them. */
static float *measure_sum(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, iq_cuda_combine_t combine)
{
    iq_device_t *device = call->device;
    size_t bytes = iq_uniform_codes_at(codec, span), before = codec->shared ? 0 : bytes;
    iq_assert(before + bytes <= device->scratch_bytes);
    combine.measure = device->scratch + before / sizeof(float);
    iq_device_clear(device, combine.measure, bytes);
    iq_device_combine(device, combine);
    return combine.measure;
}

bool iq_uniform_combine(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, int nparts,
                        const void *const messages[], int own, const void *src, void *dst, void *result)
{
    size_t codes_at = iq_uniform_codes_at(codec, span);
    bool exact = iq_uniform_result_is_exact(codec, call);
    if (codec->levels == 1 && (!exact || call->nranks == 1)) /* no kernel adds up and writes fives of three levels */
        return false;
    if (span.count == 0)
        return true;
    iq_cuda_combine_t combine = parts_of(codec, call, span, nparts, messages, own, src);
    if (result != NULL && exact) {
        combine.result = codes_into(codec, result, call->nranks);
    } else if (result != NULL) {
        float *scales = measure_sum(codec, call, span, combine);
        iq_device_copy(call->device, result, scales, codes_at);
        combine.result = codes_into(codec, (unsigned char *)result + codes_at, 1);
        combine.result_grid = grid_of(codec, call, scales, true);
    }
    combine.output = iq_device_output(call->datatype, dst, call->accumulate);
    iq_device_combine(call->device, combine);
    return true;
}

/* ---- lanes ---- */

size_t iq_codec_lane_bytes(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span)
{
    if (!is_uniform(codec) || !iq_uniform_result_is_exact(codec, call))
        return 0;
    size_t lanes = 32 / iq_uniform_width(codec, call->nranks);
    return (span.count / lanes + (span.count % lanes != 0)) * sizeof(uint32_t);
}

void iq_codec_encode_lanes(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *words)
{
    iq_cuda_target_t lanes = {.form = IQ_CUDA_LANES, .data = words, .width = iq_uniform_width(codec, call->nranks)};
    iq_cuda_map_t map = map_of(codec, span, iq_device_values(call->datatype, src), lanes);
    map.grid = grid_of(codec, call, shared_scales(codec, call, span), false);
    iq_device_map(call->device, map);
}

void iq_codec_decode_lanes(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *words, void *dst)
{
    iq_cuda_source_t sums = codes_of(codec, words, call->nranks);
    sums = as_values(codec, sums, call->nranks, shared_scales(codec, call, span));
    sums.form = IQ_CUDA_LANES;
    sums.divisor = iq_uniform_divisor(call);
    iq_device_map(call->device, map_of(codec, span, sums, iq_device_output(call->datatype, dst, call->accumulate)));
}

#define DEVICE_ROW                                                                                                \
    .name = "uniform", IQ_CODEC_SHAPE(uniform), .encode = encode, .add_own = add_own, .add = add, .store = store, \
    .finish = finish, .decode = decode, .deliver = deliver

const iq_codec_ops_t iq_codec_uniform_cuda_ops = {DEVICE_ROW, .local_scales = local_scales};

const iq_codec_ops_t iq_codec_uniform_norm_cuda_ops = {
    DEVICE_ROW,
    .room_scales = iq_uniform_room_scales,
    .shared_scales = iq_uniform_shared_scales,
    .scales_unit = iq_uniform_scales_unit,
    .scales_op = iq_uniform_scales_op,
    .local_scales = norm_scales,
    .close_scales = close_scales,
    .open_scales = open_scales,
};
