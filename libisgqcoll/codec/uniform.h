/* SPDX-License-Identifier: Apache-2.0 */
/* The shapes of codec `uniform`, wherever its values lie: sizes of codes and sums, buckets, messages with scales; and what its
 * files for host memory share. */
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

/* Codes of three levels come five to a byte, as digits (codec/digits.h). */
static inline bool iq_uniform_is_ternary(const iq_codec_t *codec, int parts) { return codec->levels == 1 && parts == 1; }

/* Bytes of sums of `parts` ranks' codes. */
static inline size_t iq_uniform_packed_bytes(const iq_codec_t *codec, size_t count, int parts)
{
    return iq_uniform_is_ternary(codec, parts) ? iq_ceil_div(count, 5) : iq_ceil_div(count, 8) * iq_uniform_width(codec, parts);
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

/* A run of a span's elements within one bucket. Start with zeros and the first offset. */
typedef struct iq_uniform_run {
    size_t offset, count; /* elements, from the span's first */
    size_t bucket;        /* from the span's first bucket */
} iq_uniform_run_t;

/* The next run before `end`; false if there is none. */
static inline bool iq_uniform_next_run(const iq_codec_t *codec, iq_span_t span, size_t end, iq_uniform_run_t *run)
{
    run->offset += run->count;
    if (run->offset >= end)
        return false;
    size_t element = span.first + run->offset, left = end - run->offset;
    run->bucket = iq_uniform_bucket_of(codec, element) - iq_uniform_bucket_of(codec, span.first);
    run->count = codec->bucket == 0 ? left : iq_min(left, codec->bucket - element % codec->bucket);
    return true;
}

/* Where codes begin in a message of [scales][codes]. */
static inline size_t iq_uniform_codes_at(const iq_codec_t *codec, iq_span_t span)
{
    return iq_uniform_buckets(codec, span) * sizeof(float);
}

/* ---- what ranks agree on beyond maxima: uniform_scales.c; calls have a count ---- */

size_t iq_uniform_room_scales(const iq_codec_t *codec, size_t count);
size_t iq_uniform_shared_scales(const iq_codec_t *codec, size_t count);
size_t iq_uniform_scales_unit(const iq_codec_t *codec);
isgq_red_op_t iq_uniform_scales_op(const iq_codec_t *codec);
void iq_uniform_norm_scales(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, float *scales);
void iq_uniform_close_scales(const iq_codec_t *codec, const iq_codec_call_t *call, size_t count, float *scales);
void iq_uniform_open_scales(const iq_codec_t *codec, const iq_codec_call_t *call, size_t count, float *scales);

#endif
