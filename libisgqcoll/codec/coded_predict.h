/* SPDX-License-Identifier: Apache-2.0 */
/* What a plan of codec `coded` will cost and err, from what ranks agreed on: see coded.h. */
#ifndef ISGQ_CODEC_CODED_PREDICT_H
#define ISGQ_CODEC_CODED_PREDICT_H

#include "codec/coded.h"

/* Of a message, besides its blocks. */
#define IQ_CODED_FRAME_BYTES 32.0
#define IQ_CODED_HEADER_BYTES 14.0

/* Steps that a curve is known for. */
enum { IQ_CODED_KNOTS = 40 };

typedef struct iq_coded_knots {
    size_t count;
    double step[IQ_CODED_KNOTS], rate[IQ_CODED_KNOTS], noise[IQ_CODED_KNOTS]; /* log2 of steps, falling; rates rise */
} iq_coded_knots_t;

/* What all ranks know. */
typedef struct iq_coded_view {
    const iq_codec_t *codec;
    const iq_codec_call_t *call;
    const iq_coded_layout_t *layout;
    const float *agreed;
    double nranks, count;
    double most;               /* no sum is larger */
    double rank_squares;       /* mean square of a rank's elements */
    double sum_squares;        /* and of the sum's */
    bool mends;                /* few elements are 0 on all ranks, so that these need not stay 0 */
    double fixed_bits;         /* what the agreement and headers take, an element of one phase */
    double own_shape;          /* points: how little strangers' sums are nearer to the normal distribution, 0 to 1 */
    double like;               /* how alike ranks are: 0 as strangers, 1 the same */
    iq_coded_knots_t own;      /* rates of a rank's tensor */
    iq_coded_knots_t compared; /* and of its samples (curves), or if it were normally distributed (points) */
} iq_coded_view_t;

/* What a choice of step and k comes to. */
typedef struct iq_coded_outcome {
    double step, k;
    double bits;  /* an element, mean of both phases, everything counted */
    double error; /* mean square, of the sum */
    double mend_own, mend_result;
} iq_coded_outcome_t;

/* Rate and error at log2 of a step. Beyond the knots: a bit an octave below, ever less above. */
double iq_coded_rate_at(const iq_coded_knots_t *curve, double step);
double iq_coded_noise_at(const iq_coded_knots_t *curve, double step);

/* log2 of the step at which the rate is this. */
double iq_coded_step_of_rate(const iq_coded_knots_t *curve, double rate);

/* `layout` and `agreed` must outlive the view. */
void iq_coded_make_view(iq_coded_view_t *view, const iq_codec_t *codec, const iq_codec_call_t *call,
                        const iq_coded_layout_t *layout, size_t count, const float *agreed);

/* What step and k come to. */
void iq_coded_evaluate(const iq_coded_view_t *view, double step, double k, iq_coded_outcome_t *outcome);

#endif
