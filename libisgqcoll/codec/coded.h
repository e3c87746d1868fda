/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside of codec `coded`: what ranks agree on before they encode, and what follows from it.
 *
 * Every rank describes its tensor by a few hundred numbers whose sums over the ranks mean something: rates and errors by step,
 * and the values of some elements, whose sums are elements of the sum. From the sums all ranks conclude the same plan: the step
 * of the codes, how coarsely the owner of a block rounds their sum, and what decoders correct.
 */
#ifndef ISGQ_CODEC_CODED_H
#define ISGQ_CODEC_CODED_H

#include "codec/codec.h"
#include "codec/coded_rate.h"

/* What the floats of call->scales say once they are open. */
typedef struct iq_coded_plan {
    float step;                  /* 0: all codes are 0; NaN: some rank has NaN or Inf */
    float merge;                 /* k, a whole number: the result is the sum of codes in units of k; 1: the sum itself */
    float mend_own, mend_result; /* how much of what is known of the error of either rounding is taken back: 0 to 1 */
} iq_coded_plan_t;

enum { IQ_CODED_PLAN_FLOATS = sizeof(iq_coded_plan_t) / sizeof(float) };

static inline iq_coded_plan_t iq_coded_plan(const iq_codec_call_t *call)
{
    return (iq_coded_plan_t){call->scales[0], call->scales[1], call->scales[2], call->scales[3]};
}

/* Contexts of own codes (coded_message.h) ask for the strata of the rank they come from, which is work that grows with the ranks. */
#define IQ_CODED_KNOWING_RANKS 32

static inline bool iq_coded_knows(const iq_codec_call_t *call) { return call->nranks <= IQ_CODED_KNOWING_RANKS; }

/* Spans of local_scales begin at multiples of this, which are described one by one. */
#define IQ_CODED_UNIT 16384

/* Values that add up may not overflow: they are agreed on times this. */
#define IQ_CODED_SCALE 0x1p-16

/* ---- what is agreed on ---- */

enum {
    IQ_CODED_SLOTS = 64, /* of a curve, for steps 2^(e - 127): slot e modulo 64 */
    IQ_CODED_POINTS_MOST = 7,
    IQ_CODED_SAMPLES_MOST = 4352
};

/* The first floats, in this order. */
enum {
    IQ_CODED_MAX,
    IQ_CODED_RMS,
    IQ_CODED_ZEROS,
    IQ_CODED_WEIGHT,
    IQ_CODED_SKETCH_RMS,
    IQ_CODED_SAMPLE_RMS,
    IQ_CODED_SHAPE = IQ_CODED_SAMPLE_RMS, /* points, which have no samples: how little sums are nearer to the normal distribution than their terms */
    IQ_CODED_CURVES
};

/* Long tensors share curves, short ones a few points of them, the shortest one point. */
typedef struct iq_coded_layout {
    size_t points;            /* 0: curves */
    size_t rates, noises;     /* where each begins: rates by step or steps by rate; the mean error there */
    size_t compared;          /* curves: rates of this rank's samples; points: steps if values were normally distributed */
    size_t sketch, sketches;  /* sums of values with random signs */
    size_t samples, nsamples; /* values at fixed places */
    size_t shared;            /* floats */
    size_t own;               /* behind them: this rank's curves while they are being measured */
    size_t room;
} iq_coded_layout_t;

iq_coded_layout_t iq_coded_layout(const iq_codec_t *codec, size_t count);

/* Tensors that share one point. Their sums are exact, k = 1: so the same bits come in one round of messages as in two, and whoever
 * chooses the plan may take what is fewer bytes, which headers decide. */
bool iq_coded_is_short(size_t count);

/* Rates of the points. */
void iq_coded_point_rates(const iq_codec_t *codec, size_t points, size_t count, double rates[IQ_CODED_POINTS_MOST]);

/* coded_agree.c */
void iq_coded_local_scales(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, float *scales);
void iq_coded_close_scales(const iq_codec_t *codec, const iq_codec_call_t *call, size_t count, float *scales);

/* coded_solve.c */
void iq_coded_open_scales(const iq_codec_t *codec, const iq_codec_call_t *call, size_t count, float *scales);

/* Rate of normally distributed values of variance 1, at log2 of the step, with or without contexts known. */
double iq_coded_normal_rate(double step, bool knows);

/* Elements of a message, roughly: a block of the coder, or a rank's part of a short tensor. */
double iq_coded_message_elements(const iq_codec_call_t *call, size_t count);

/* What the coder adds to a rate that curves tell, in messages of `elements`. */
double iq_coded_coder_bits(double rate, double elements);

#endif
