/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Codecs `fp16` and `bf16`: values travel in 16 bits and are summed in f32; the sum is rounded once by its owner. Partial sums of
 * several ranks stay f32 on the wire, so a ring rounds no more often than a direct exchange.
 */
#include "base/status.h"
#include "base/util.h"
#include "codec/convert.h"
#include "codec/dense.h"

#include <string.h>

isgq_data_type_t iq_cast_wire_type(const iq_codec_t *codec)
{
    bool fp16 = codec->ops == &iq_codec_fp16_ops || codec->ops == &iq_codec_fp16_cuda_ops;
    return fp16 ? ISGQ_FLOAT16 : ISGQ_BFLOAT16;
}

isgq_result_t iq_cast_supports(const iq_codec_t *codec, isgq_data_type_t datatype, isgq_red_op_t op)
{
    if (!iq_is_small_float(datatype))
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "quantizer '%s' takes f32, f16 and bf16, not %s", codec->ops->name,
                       iq_datatype_name(datatype));
    if (op != ISGQ_SUM && op != ISGQ_AVG)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "quantizer '%s' takes sum and avg, not %s", codec->ops->name, iq_red_op_name(op));
    return ISGQ_SUCCESS;
}

bool iq_cast_needs_scales(const iq_codec_t *codec)
{
    (void)codec;
    return false;
}

static void local_scales(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, float *scales)
{
    (void)codec, (void)call, (void)span, (void)src, (void)scales; /* there are none */
}

bool iq_cast_result_is_exact(const iq_codec_t *codec, const iq_codec_call_t *call)
{
    (void)codec, (void)call;
    return false;
}

size_t iq_cast_acc_bytes(const iq_codec_t *codec, const iq_codec_call_t *call)
{
    (void)codec, (void)call;
    return sizeof(float);
}

size_t iq_cast_result_bytes(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span)
{
    (void)codec, (void)call;
    return span.count * sizeof(uint16_t);
}

size_t iq_cast_partial_bytes(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, int parts)
{
    return parts == 1 ? iq_cast_result_bytes(codec, call, span) : span.count * sizeof(float);
}

static void encode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *message)
{
    float tile[IQ_CODEC_TILE];
    for (size_t i = 0; i < span.count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(span.count - i, IQ_CODEC_TILE);
        iq_store_f32(iq_cast_wire_type(codec), iq_load_f32(call->datatype, src, i, n, tile), n, false, message, i);
    }
}

/* Own values are rounded as the other ranks see them: where every rank adds up all contributions, all must add the same. */
static void add_own(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *acc, bool first)
{
    float tile[IQ_CODEC_TILE];
    uint16_t wire[IQ_CODEC_TILE];
    for (size_t i = 0; i < span.count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(span.count - i, IQ_CODEC_TILE);
        iq_store_f32(iq_cast_wire_type(codec), iq_load_f32(call->datatype, src, i, n, tile), n, false, wire, 0);
        iq_store_f32(ISGQ_FLOAT32, iq_load_f32(iq_cast_wire_type(codec), wire, 0, n, tile), n, !first, acc, i);
    }
}

static isgq_result_t add(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, int parts,
                         void *acc, bool first)
{
    float tile[IQ_CODEC_TILE];
    isgq_data_type_t type = parts == 1 ? iq_cast_wire_type(codec) : ISGQ_FLOAT32;
    (void)call;
    for (size_t i = 0; i < span.count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(span.count - i, IQ_CODEC_TILE);
        iq_store_f32(ISGQ_FLOAT32, iq_load_f32(type, message, i, n, tile), n, !first, acc, i);
    }
    return ISGQ_SUCCESS;
}

static void store(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, int parts, void *message)
{
    (void)call;
    iq_store_f32(parts == 1 ? iq_cast_wire_type(codec) : ISGQ_FLOAT32, acc, span.count, false, message, 0);
}

/* The finished sum in f32 to any type. */
static void write_sum(const iq_codec_call_t *call, iq_span_t span, const iq_f32_any_t *acc, isgq_data_type_t type,
                      bool accumulate, void *dst)
{
    float tile[IQ_CODEC_TILE];
    float divisor = call->op == ISGQ_AVG ? (float)call->nranks : 1.0f;
    for (size_t i = 0; i < span.count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(span.count - i, IQ_CODEC_TILE);
        for (size_t j = 0; j < n; j++)
            tile[j] = acc[i + j] / divisor;
        iq_store_f32(type, tile, n, accumulate, dst, i);
    }
}

static void finish(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *message)
{
    write_sum(call, span, acc, iq_cast_wire_type(codec), false, message);
}

static isgq_result_t decode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, void *dst)
{
    float tile[IQ_CODEC_TILE];
    for (size_t i = 0; i < span.count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(span.count - i, IQ_CODEC_TILE);
        iq_store_f32(call->datatype, iq_load_f32(iq_cast_wire_type(codec), message, i, n, tile), n, call->accumulate, dst, i);
    }
    return ISGQ_SUCCESS;
}

static void deliver(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *dst)
{
    (void)codec;
    write_sum(call, span, acc, call->datatype, call->accumulate, dst);
}

/* Both codecs; the functions ask `codec->ops` which 16 bits travel. */
#define CAST_OPS(wire_name)                                                                                                      \
    {                                                                                                                            \
        .name = wire_name, IQ_CODEC_SHAPE(cast), .local_scales = local_scales, .encode = encode, .add_own = add_own, .add = add, \
        .store = store, .finish = finish, .decode = decode, .deliver = deliver,                                                  \
    }

const iq_codec_ops_t iq_codec_fp16_ops = CAST_OPS("fp16");
const iq_codec_ops_t iq_codec_bf16_ops = CAST_OPS("bf16");
