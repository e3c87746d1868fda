/* SPDX-License-Identifier: Apache-2.0 */
/* The shapes of codec `uniform`, wherever its values lie: sizes of codes and sums, buckets, messages with scales. */
#ifndef ISGQ_CODEC_UNIFORM_H
#define ISGQ_CODEC_UNIFORM_H

#include "base/util.h"
#include "codec/codec.h"

/* Codes are 0..top. */
static inline uint32_t iq_uniform_top(const iq_codec_t *codec)
{
    if (codec->levels != 0)
        return 2 * codec->levels;
    return codec->bits == 1 ? 1u : (1u << codec->bits) - 2u;
}

/* The largest sum of `parts` ranks' codes, the bits it takes, and what twice such a sum is for a value of 0. */
static inline uint32_t iq_uniform_most(const iq_codec_t *codec, int parts) { return (uint32_t)parts * iq_uniform_top(codec); }
static inline int32_t iq_uniform_zero(const iq_codec_t *codec, int parts) { return (int32_t)iq_uniform_most(codec, parts); }
static inline unsigned iq_uniform_width(const iq_codec_t *codec, int parts)
{
    return iq_bit_width((uint64_t)parts * iq_uniform_top(codec));
}

/* What finished sums are divided by. */
static inline float iq_uniform_divisor(const iq_codec_call_t *call) { return call->op == ISGQ_AVG ? (float)call->nranks : 1.0f; }

/* ---- buckets ---- */

static inline size_t iq_uniform_bucket_of(const iq_codec_t *codec, size_t element)
{
    return codec->bucket == 0 ? 0 : element / codec->bucket;
}

/* Buckets that a span touches: the scales of its message. */
static inline size_t iq_uniform_buckets(const iq_codec_t *codec, iq_span_t span)
{
    if (span.count == 0)
        return 0;
    return iq_uniform_bucket_of(codec, span.first + span.count - 1) - iq_uniform_bucket_of(codec, span.first) + 1;
}

/* Where the span's first bucket is in an array that starts at call->first_bucket. */
static inline size_t iq_uniform_scale_at(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span)
{
    return iq_uniform_bucket_of(codec, span.first) - call->first_bucket;
}

/* Where codes begin in a message of [scales][codes]. */
static inline size_t iq_uniform_codes_at(const iq_codec_t *codec, iq_span_t span)
{
    return iq_uniform_buckets(codec, span) * sizeof(float);
}

#endif
