/* SPDX-License-Identifier: Apache-2.0 */
/* Codec `intsgd` wherever its values lie: its numbers, and what it agrees on. */
#ifndef ISGQ_CODEC_INTSGD_H
#define ISGQ_CODEC_INTSGD_H

#include "codec/codec.h"

/* T: what any sum stays within; it travels as sum + T. */
static inline int32_t iq_intsgd_top(const iq_codec_t *codec) { return (1 << (codec->bits - 1)) - 1; }

/* L: what one rank's codes stay within. */
static inline int32_t iq_intsgd_share(const iq_codec_t *codec, const iq_codec_call_t *call) { return iq_intsgd_top(codec) / call->nranks; }

int iq_intsgd_most_ranks(const iq_codec_t *codec);
size_t iq_intsgd_one_scale(const iq_codec_t *codec, size_t count);
size_t iq_intsgd_scales_unit(const iq_codec_t *codec);
isgq_red_op_t iq_intsgd_scales_op(const iq_codec_t *codec);

#endif
