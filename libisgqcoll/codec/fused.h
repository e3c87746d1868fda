/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Codec `fused`: several small tensors side by side as one, so that one exchange of messages serves them all. Each part keeps its own call
 * (number, element numbers, scales, whether it accumulates) and its own buffers; a message of a span is the messages of the parts in it, one after another,
 * each from a multiple of IQ_FUSED_ALIGN bytes on:
 *
 *   elements    | part 0      .| part 1 ...| part 2         | (. padding to whole groups of 32)
 *   partial(k)  [part 0's partial(k)][part 1's] ...          result likewise
 *
 * For codecs whose bits do not depend on where a tensor is cut. On host memory.
 */
#ifndef ISGQ_CODEC_FUSED_H
#define ISGQ_CODEC_FUSED_H

#include "codec/codec.h"

#define IQ_FUSED_UNIT 32u /* elements: parts begin at multiples of it */
#define IQ_FUSED_ALIGN 4u

/* One of the tensors; its call says how many elements it has. */
typedef struct iq_fused_part {
    size_t first; /* where it lies in the joint tensor */
    iq_codec_call_t call;
    const void *src;
    void *dst;
} iq_fused_part_t;

typedef struct iq_fused {
    const iq_codec_t *codec; /* of each part */
    const iq_fused_part_t *parts;
    size_t nparts;
} iq_fused_t;

/* Has a tensor the same bits alone as in a fused one? Where scales are agreed on then, they are maxima and need no opening. */
bool iq_codec_fuses(const iq_codec_t *codec, const iq_codec_call_t *call);

/* `codec` for calls of so many ranks whose `fused` says which parts there are. */
iq_codec_t iq_codec_fused(const iq_codec_t *codec, int nranks);

#endif
