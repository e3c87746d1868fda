/* SPDX-License-Identifier: Apache-2.0 */
/* Codes and sums of codec `exponential` (exponential.c): sizes and counts, wherever data lies. */
#ifndef ISGQ_CODEC_EXPONENTIAL_H
#define ISGQ_CODEC_EXPONENTIAL_H

#include "base/util.h"
#include "codec/codec.h"

/* Sums in an accumulator, so that it has no more than twice the bytes of an f32. The last takes all that does not fit before. */
#define IQ_EXPONENTIAL_SLOTS 6
#define IQ_EXPONENTIAL_COUNT_BYTES sizeof(uint16_t) /* contributions, before the slots */

static inline uint32_t iq_exponential_sign(const iq_codec_t *codec) { return 1u << (codec->bits - 1); }

/* In a slot: no sum there. It is no code, since it is a sign alone. */
static inline uint8_t iq_exponential_none(const iq_codec_t *codec) { return (uint8_t)iq_exponential_sign(codec); }

static inline size_t iq_exponential_slots(const iq_codec_call_t *call)
{
    return iq_min(iq_bit_width((uint64_t)call->nranks), IQ_EXPONENTIAL_SLOTS);
}

/* Powers between the largest contribution and the largest code: what a sum in a tree may need, and an eighth of all for sums made
 * one by one. */
static inline uint32_t iq_exponential_head(const iq_codec_t *codec, const iq_codec_call_t *call)
{
    return call->nranks == 1 ? 0 : iq_bit_width((uint64_t)call->nranks - 1) + (iq_exponential_sign(codec) - 1) / 8;
}

/* The least exponent of a code in partial(parts); 0: in a result. */
static inline uint32_t iq_exponential_least(const iq_codec_t *codec, const iq_codec_call_t *call, int parts)
{
    return (uint32_t)iq_min(1 + (parts == 1 ? iq_exponential_head(codec, call) : 0), iq_exponential_sign(codec) - 1);
}

/* What the largest code stands for under a scale of 1, in a finished sum. */
static inline double iq_exponential_largest(const iq_codec_t *codec, const iq_codec_call_t *call)
{
    return (double)(UINT64_C(1) << iq_exponential_head(codec, call)) / (double)(call->op == ISGQ_AVG ? (float)call->nranks : 1.0f);
}

/* Above, sums saturate; the count of contributions has 16 bits. Few bits have no head room for sums that are made one by one. */
static inline int iq_exponential_most_ranks(const iq_codec_t *codec)
{
    return codec->bits == 3 ? 4 : codec->bits == 4 ? 64 : codec->bits == 5 ? 128 : 65535;
}

static inline bool iq_exponential_passes_sums(const iq_codec_t *codec) { return codec->bits >= 6; }

#endif
