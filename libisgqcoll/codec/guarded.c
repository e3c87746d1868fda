/* SPDX-License-Identifier: Apache-2.0 */
/* Codec `guarded`: see guarded.h. Every function is the other codec's and a few maxima. */
#include "codec/guarded.h"

#include "base/status.h"
#include "base/util.h"
#include "codec/convert.h"
#include "codec/uniform.h"

#include <string.h>

/* The codec beneath. */
static iq_codec_t beneath(const iq_codec_t *codec)
{
    iq_codec_t inner = *codec;
    inner.ops = codec->guarded;
    return inner;
}

/* ---- maxima ---- */

static size_t head_bytes(const iq_codec_t *codec, iq_span_t span) { return iq_uniform_buckets(codec, span) * sizeof(float); }

static iq_f32_any_t *maxima_of(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc)
{
    return (iq_f32_any_t *)((uintptr_t)acc + codec->guarded->acc_bytes(codec, call) * span.count);
}

/* maxima = max(what is there, own values). They may lie anywhere, so each goes through a float of its own. */
static void measure(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, iq_f32_any_t *maxima)
{
    iq_codec_t inner = beneath(codec);
    iq_codec_call_t shifted = *call;
    size_t bytes = iq_datatype_bytes(call->datatype), count;
    for (size_t done = 0; done < span.count; done += count) {
        size_t element = span.first + done, bucket = iq_uniform_bucket_of(codec, element);
        count = codec->bucket == 0 ? span.count : iq_min(span.count - done, (bucket + 1) * codec->bucket - element);
        iq_f32_any_t *maximum = &maxima[bucket - iq_uniform_bucket_of(codec, span.first)];
        float most = *maximum;
        shifted.first_bucket = bucket;
        inner.ops->local_scales(&inner, &shifted, (iq_span_t){element, count}, (const unsigned char *)src + done * bytes, &most);
        *maximum = most;
    }
}

static void clear(const iq_codec_t *codec, iq_span_t span, iq_f32_any_t *maxima) { memset(maxima, 0, head_bytes(codec, span)); }

static void take_maxima(const iq_f32_any_t *from, size_t count, iq_f32_any_t *maxima)
{
    for (size_t i = 0; i < count; i++)
        maxima[i] = from[i] > maxima[i] ? from[i] : maxima[i];
}

static isgq_result_t check_maxima(const iq_codec_t *codec, iq_span_t span, const iq_f32_any_t *maxima)
{
    for (size_t i = 0; i < iq_uniform_buckets(codec, span); i++)
        if (iq_float_bits(maxima[i]) > 0x7f800000u)
            return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec %s: maximum %zu of a message is negative or NaN", codec->guarded->name, i);
    return ISGQ_SUCCESS;
}

static void see(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const iq_f32_any_t *maxima)
{
    take_maxima(maxima, iq_uniform_buckets(codec, span), call->seen + iq_uniform_bucket_of(codec, span.first));
}

/* ---- sizes ---- */

static bool result_is_exact(const iq_codec_t *codec, const iq_codec_call_t *call)
{
    iq_codec_t inner = beneath(codec);
    return inner.ops->result_is_exact(&inner, call);
}

static size_t acc_bytes(const iq_codec_t *codec, const iq_codec_call_t *call)
{
    iq_codec_t inner = beneath(codec);
    return inner.ops->acc_bytes(&inner, call);
}

static size_t partial_bytes(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, int parts)
{
    iq_codec_t inner = beneath(codec);
    return head_bytes(codec, span) + inner.ops->partial_bytes(&inner, call, span, parts);
}

static size_t result_bytes(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span)
{
    iq_codec_t inner = beneath(codec);
    return head_bytes(codec, span) + inner.ops->result_bytes(&inner, call, span);
}

/* ---- the codec ---- */

static void encode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *message)
{
    iq_codec_t inner = beneath(codec);
    clear(codec, span, message);
    measure(codec, call, span, src, message);
    inner.ops->encode(&inner, call, span, src, (unsigned char *)message + head_bytes(codec, span));
}

static void add_own(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *acc, bool first)
{
    iq_codec_t inner = beneath(codec);
    iq_f32_any_t *maxima = maxima_of(codec, call, span, acc);
    if (first)
        clear(codec, span, maxima);
    measure(codec, call, span, src, maxima);
    inner.ops->add_own(&inner, call, span, src, acc, first);
}

static isgq_result_t add(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, int parts, void *acc,
                         bool first)
{
    iq_codec_t inner = beneath(codec);
    iq_f32_any_t *maxima = maxima_of(codec, call, span, acc);
    IQ_TRY(check_maxima(codec, span, message));
    if (first)
        clear(codec, span, maxima);
    take_maxima(message, iq_uniform_buckets(codec, span), maxima);
    return inner.ops->add(&inner, call, span, (const unsigned char *)message + head_bytes(codec, span), parts, acc, first);
}

static void store(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, int parts, void *message)
{
    iq_codec_t inner = beneath(codec);
    memcpy(message, maxima_of(codec, call, span, acc), head_bytes(codec, span));
    inner.ops->store(&inner, call, span, acc, parts, (unsigned char *)message + head_bytes(codec, span));
}

static void finish(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *message)
{
    iq_codec_t inner = beneath(codec);
    memcpy(message, maxima_of(codec, call, span, acc), head_bytes(codec, span));
    inner.ops->finish(&inner, call, span, acc, (unsigned char *)message + head_bytes(codec, span));
}

static isgq_result_t decode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, void *dst)
{
    iq_codec_t inner = beneath(codec);
    const unsigned char *rest = (const unsigned char *)message + head_bytes(codec, span);
    IQ_TRY(check_maxima(codec, span, message));
    see(codec, call, span, message);
    if (!call->holds)
        return inner.ops->decode(&inner, call, span, rest, dst);
    memcpy(dst, rest, inner.ops->result_bytes(&inner, call, span));
    return ISGQ_SUCCESS;
}

static void deliver(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *dst)
{
    iq_codec_t inner = beneath(codec);
    see(codec, call, span, maxima_of(codec, call, span, acc));
    if (call->holds)
        inner.ops->finish(&inner, call, span, acc, dst);
    else
        inner.ops->deliver(&inner, call, span, acc, dst);
}

/* Calls are decided with the codec beneath: what is only asked then is not here. */
static const iq_codec_ops_t guarded_ops = {
    .name = "guarded",
    .result_is_exact = result_is_exact,
    .acc_bytes = acc_bytes,
    .partial_bytes = partial_bytes,
    .result_bytes = result_bytes,
    .encode = encode,
    .add_own = add_own,
    .add = add,
    .store = store,
    .finish = finish,
    .decode = decode,
    .deliver = deliver,
};

iq_codec_t iq_codec_guarded(const iq_codec_t *codec)
{
    iq_codec_t guarded = *codec;
    guarded.guarded = codec->ops;
    guarded.ops = &guarded_ops;
    return guarded;
}

float iq_codec_limit(const iq_codec_t *codec, const iq_codec_call_t *call, float scale)
{
    return codec->ops->limit == NULL ? scale : codec->ops->limit(codec, call, scale);
}
