/* SPDX-License-Identifier: Apache-2.0 */
/* A collective without a network: all ranks' contributions through a codec, by the ways that plans use. Messages have exactly the
 * size that the codec names and lie unaligned, so a sanitizer sees every byte too far. */
#ifndef ISGQ_TEST_SUPPORT_CODEC_RUN_H
#define ISGQ_TEST_SUPPORT_CODEC_RUN_H

#include "codec/codec.h"

#define CODEC_RUN_MAX_RANKS 17

typedef enum codec_way {
    CODEC_DIRECT,  /* the owner adds partial(1) of every rank, in rank order; all decode its result */
    CODEC_OWNER,   /* the same, but the owner's own input is added without a message */
    CODEC_CHAIN,   /* rank 0's partial(1) to rank 1, its partial(2) to rank 2, ...; all decode the last one's result */
    CODEC_DELIVER, /* as CODEC_OWNER, and the accumulator goes straight to the output */
    CODEC_WAYS
} codec_way_t;

typedef struct codec_run {
    iq_codec_t codec;
    iq_codec_call_t call; /* rank and scales are filled in */
    size_t count;
    const void *inputs[CODEC_RUN_MAX_RANKS]; /* [nranks][count] */
} codec_run_t;

/* What a family's name alone stands for in dense calls. */
iq_codec_t codec_of_family(const char *name);

/* Numbers with a fixed seed. */
uint32_t codec_random(void);
float codec_random_unit(void); /* -1 .. 1 */

/* The whole tensor in spans of `unit` times a random number of elements (0: in one span), to dst. */
void codec_run(const codec_run_t *run, codec_way_t way, size_t unit, void *dst);

/* One rank's partial(1) of a span, malloced; freed by the caller. The message starts at its second byte. */
unsigned char *codec_run_message(const codec_run_t *run, int rank, iq_span_t span, const float *scales, size_t *bytes);

/* Shared scales of the whole tensor, malloced; NULL if the codec needs none. */
float *codec_run_scales(const codec_run_t *run);

#endif
