/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Codec `levels` on device memory: the messages and bits of levels.c. A message is made in one pass over the values, bucket by
 * bucket; where two buckets share bytes of it, a second launch joins what the first left in scratch.
 */
#include "base/status.h"
#include "base/util.h"
#include "codec/dense.h"
#include "codec/device.h"
#include "codec/levels.h"
#include "kernels/philox.h"

static const struct {
    const iq_level_model_t *model;
    iq_cuda_level_kind_t kind;
} kinds[] = {{&iq_level_qsgd, IQ_CUDA_QSGD},           {&iq_level_natural, IQ_CUDA_NATURAL},
             {&iq_level_onebit, IQ_CUDA_ONEBIT},       {&iq_level_ef_sign, IQ_CUDA_EF_SIGN},
             {&iq_level_bingrad_b, IQ_CUDA_BINGRAD_B}, {&iq_level_bingrad_pb, IQ_CUDA_BINGRAD_PB},
             {&iq_level_orq, IQ_CUDA_ORQ},             {&iq_level_eden, IQ_CUDA_EDEN},
             {&iq_level_mx, IQ_CUDA_MX}};

static bool kind_of(const iq_codec_t *codec, iq_cuda_level_kind_t *kind)
{
    for (size_t i = 0; i < IQ_ARRAY_SIZE(kinds); i++) {
        if (kinds[i].model == codec->model) {
            *kind = kinds[i].kind;
            return true;
        }
    }
    return false;
}

bool iq_levels_on_device(const iq_codec_t *codec)
{
    iq_cuda_level_kind_t unused;
    return kind_of(codec, &unused);
}

_Static_assert(IQ_CUDA_LEVEL_BUCKET == IQ_LEVELS_BUCKET_MOST && IQ_CUDA_LEVEL_UNIT == IQ_DIGITS_UNIT_MOST, "kernels have room for all");

/* ---- scratch: [edges][own message] ---- */

static size_t edges_bytes(const iq_codec_t *codec, iq_span_t span)
{
    iq_digits_t digits = iq_levels_digits(codec);
    return iq_align_up(iq_cuda_level_edges(iq_levels_buckets(codec, span), (unsigned)iq_digits_unit(&digits)), 16);
}

size_t iq_levels_device_scratch(const iq_codec_t *codec, size_t count)
{
    iq_span_t worst = {codec->bucket - 1, count}; /* starts with a bucket's last element */
    return count == 0 ? 0 : edges_bytes(codec, worst) + iq_levels_partial_bytes(codec, NULL, worst, 1);
}

/* ---- launches ---- */

static iq_cuda_levels_t levels_of(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, bool is_sum)
{
    iq_digits_t digits = iq_levels_digits(codec);
    iq_cuda_levels_t levels = {.bits = codec->bits,
                               .levels = codec->levels,
                               .euclidean = codec->norm == IQ_NORM_L2,
                               .nearest = codec->rounding == IQ_ROUND_NEAREST,
                               .symbols = digits.symbols,
                               .group_codes = digits.count,
                               .group_bits = digits.bits,
                               .unit = (unsigned)iq_digits_unit(&digits),
                               .header_bytes = iq_levels_header_bytes(codec),
                               .first = span.first,
                               .bucket = codec->bucket,
                               .count = span.count,
                               .divisor = 1.0f,
                               .stream = is_sum ? IQ_STREAM_RESULT : IQ_STREAM_OWN,
                               .seed = call->seed,
                               .call = call->call};
    bool known = kind_of(codec, &levels.kind);
    iq_assert(known);
    (void)known;
    return levels;
}

/* A sum's random numbers do not depend on who owns it. */
static void write_message(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, isgq_data_type_t type,
                          const void *values, bool is_sum, void *message)
{
    if (span.count == 0)
        return;
    iq_cuda_levels_t levels = levels_of(codec, call, span, is_sum);
    levels.type = type;
    levels.values = (void *)(uintptr_t)values;
    levels.divisor = is_sum && call->op == ISGQ_AVG ? (float)call->nranks : 1.0f;
    levels.rank = is_sum ? 0 : (uint32_t)call->rank;
    levels.message = message;
    levels.edges = (uint16_t *)call->device->scratch;
    iq_assert(edges_bytes(codec, span) <= call->device->scratch_bytes);
    iq_device_encode_levels(call->device, levels);
}

static isgq_result_t read_message(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, bool is_sum,
                                  isgq_data_type_t type, bool accumulate, void *values)
{
    if (span.count == 0)
        return call->device->result;
    iq_cuda_levels_t levels = levels_of(codec, call, span, is_sum);
    levels.type = type;
    levels.values = values;
    levels.accumulate = accumulate;
    levels.message = (void *)(uintptr_t)message;
    iq_device_decode_levels(call->device, levels);
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
    (void)codec, (void)call, (void)span, (void)src, (void)scales; /* there are none */
}

static void encode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *message)
{
    write_message(codec, call, span, call->datatype, src, false, message);
}

/* Own values count as the other ranks see them, unless they are the only contribution: then finish encodes them. */
static void add_own(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *acc, bool first)
{
    if (span.count == 0)
        return;
    if (call->nranks == 1) {
        move(call, span, iq_device_values(call->datatype, src), iq_device_output(ISGQ_FLOAT32, acc, !first));
        return;
    }
    unsigned char *message = (unsigned char *)call->device->scratch + edges_bytes(codec, span);
    write_message(codec, call, span, call->datatype, src, false, message);
    (void)read_message(codec, call, span, message, false, ISGQ_FLOAT32, !first, acc);
}

static isgq_result_t add(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, int parts,
                         void *acc, bool first)
{
    if (parts == 1)
        return read_message(codec, call, span, message, false, ISGQ_FLOAT32, !first, acc);
    move(call, span, iq_device_values(ISGQ_FLOAT32, message), iq_device_output(ISGQ_FLOAT32, acc, !first));
    return call->device->result;
}

static void store(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, int parts, void *message)
{
    if (parts == 1)
        write_message(codec, call, span, ISGQ_FLOAT32, acc, false, message);
    else
        iq_device_copy(call->device, message, acc, iq_levels_partial_bytes(codec, call, span, parts));
}

static void finish(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *message)
{
    write_message(codec, call, span, ISGQ_FLOAT32, acc, true, message);
}

static isgq_result_t decode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, void *dst)
{
    return read_message(codec, call, span, message, true, call->datatype, call->accumulate, dst);
}

static void deliver(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *dst)
{
    iq_cuda_source_t sum = iq_device_values(ISGQ_FLOAT32, acc);
    (void)codec;
    sum.divisor = call->op == ISGQ_AVG ? (float)call->nranks : 1.0f;
    move(call, span, sum, iq_device_output(call->datatype, dst, call->accumulate));
}

const iq_codec_ops_t iq_codec_levels_cuda_ops = {
    .name = "levels",
    IQ_CODEC_SHAPE(levels),
    .local_scales = local_scales,
    .encode = encode,
    .add_own = add_own,
    .add = add,
    .store = store,
    .finish = finish,
    .decode = decode,
    .deliver = deliver,
};
