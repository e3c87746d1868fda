/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What rounding to a grid costs and errs, for every step that is a power of two, from one histogram of the values.
 *
 * A tally counts floats by sign, exponent and two bits of the mantissa. Codes of stochastic rounding to multiples of a step
 * spread over it evenly within each class, and below eight steps class by class to the two nearest multiples; the entropy of
 * that is the rate.
 */
#ifndef ISGQ_CODEC_CODED_RATE_H
#define ISGQ_CODEC_CODED_RATE_H

#include "kernels/kernels.h"

enum {
    IQ_CODED_CLASSES = 2048,
    IQ_CODED_WINDOW = 34, /* steps that a curve has: from 32 times the largest value's octave down */
    IQ_CODED_ABOVE = 5    /* the window begins so many octaves above that of the largest value */
};

typedef struct iq_coded_tally {
    uint32_t counts[IQ_CODED_CLASSES];
    size_t count;
} iq_coded_tally_t;

/* Point i is for the step 2^(top - i - 127). */
typedef struct iq_coded_curves {
    int top;
    double rate[IQ_CODED_WINDOW];  /* bits an element, without what the coder adds */
    double known[IQ_CODED_WINDOW]; /* the same where contexts are known (coded_message.h) */
    double noise[IQ_CODED_WINDOW]; /* variance of an element's rounding, in squared steps */
} iq_coded_curves_t;

void iq_coded_tally(iq_coded_tally_t *tally, const iq_f32_any_t *values, size_t count);

/* Zeros (and what is as small as a denormal); sum of squares to one percent. */
size_t iq_coded_zeros(const iq_coded_tally_t *tally);
double iq_coded_squares(const iq_coded_tally_t *tally);

/* One point: for the step 2^(exponent - 127). */
void iq_coded_point(const iq_coded_tally_t *tally, int exponent, double *rate, double *known, double *noise);

/* All values finite. Without any but zeros: top 0 and nothing but zeros. Beyond a rate of `enough` bits the curves go on as they went
 * before: what steps that nobody will take would cost need not be known well. */
void iq_coded_curves(const iq_coded_tally_t *tally, double enough, iq_coded_curves_t *curves);

#endif
