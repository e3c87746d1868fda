/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Codec `guarded`: another codec whose shared scales are a guess. Its messages begin with the maxima of the contributions in them, one
 * f32 for each bucket that the span touches, so that who gets the sum knows whether the guess held and what ranks would have agreed on:
 *
 *   partial(k)  [maxima over k ranks][the other's partial(k)]        accumulator [the other's, of the span][maxima]
 *   result      [maxima over all ranks][the other's result]
 *
 * With call->holds, decode and deliver write what the codec beneath would decode: room for 4 bytes an element, and IQ_GUARDED_SLACK at the end.
 * decode and deliver leave the maxima in call->seen, [bucket] of the whole tensor, maximum with what is there. Values beyond the guess get
 * the outermost code; the maxima tell. For codecs whose shared scales are made of maxima alone.
 */
#ifndef ISGQ_CODEC_GUARDED_H
#define ISGQ_CODEC_GUARDED_H

#include "codec/codec.h"

#define IQ_GUARDED_SLACK 64

/* May this codec's shared scales be guessed, and was that asked for? */
static inline bool iq_codec_predicts(const iq_codec_t *codec) { return codec->predict && codec->shared; }

/* `codec`, guarded. */
iq_codec_t iq_codec_guarded(const iq_codec_t *codec);

/* The largest magnitude that codes under a scale stand for. */
float iq_codec_limit(const iq_codec_t *codec, const iq_codec_call_t *call, float scale);

#endif
