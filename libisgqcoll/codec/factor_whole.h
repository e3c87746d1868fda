/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Methods with one set of levels, or one scale, for a whole factor of a rank: isgq-mse, isgq-mvu, isgq-dithered.
 *
 * All rows of a rank weigh the same: B, the step of Delta, and C, the product of both steps, on the grids of factor_rows.h. Where a rank's
 * weight lies below its grid, the rank sends the lightest weight with the matching probability, and otherwise none.
 */
#ifndef ISGQ_CODEC_FACTOR_WHOLE_H
#define ISGQ_CODEC_FACTOR_WHOLE_H

#include "codec/factor_internal.h"

enum { IQ_CENTERS_MOST = 8, IQ_SYMBOLS_MOST = IQ_CENTERS_MOST + 1 };

/* The version of a method's blobs. */
static inline unsigned iq_factor_whole_version(const iq_factor_spec_t *spec)
{
    return spec->method == IQ_FACTOR_DITHERED ? IQ_FACTOR_VERSION_DITHERED : IQ_FACTOR_VERSION_CENTERS;
}

/* The largest integer that stands for a value of Delta (`is_x` false) or of X: codes, or the levels of isgq-mse and isgq-mvu. These have 12
 * bits, fewer if there are so many rows that sums of products would not stay below 2^53. Negative: too many rows for any. */
int32_t iq_factor_whole_most(const iq_factor_spec_t *spec, const iq_factor_call_t *call, bool is_x);

/* One factor as isgq-mse and isgq-mvu see it: symbol 0 is zero, symbol k stands for centers[k]. */
typedef struct iq_fit_factor {
    const void *values;
    uint16_t *symbols; /* [batch x columns] */
    size_t columns;
    double centers[IQ_SYMBOLS_MOST];
    unsigned levels;
} iq_fit_factor_t;

/* What prepare leaves for encode. */
typedef struct iq_factor_whole {
    double b, c; /* weights, not yet on the grid's span; c is 0 if there is no product */
    iq_fit_factor_t x, delta;
} iq_factor_whole_t;

/* Symbols by Lloyd-Max bins of the normal model in units of `scale`; centers = scale * levels. */
void iq_fit_assign(const iq_factor_call_t *call, double scale, bool folded, iq_fit_factor_t *factor);

/* One round of alternating least squares for the centers: of Delta with those of X kept, then the reverse. `unbiased_sum`: under the
 * condition that the sum over all elements of the product stays what it is. */
void iq_fit_centers(const iq_factor_call_t *call, bool unbiased_sum, iq_fit_factor_t *x, iq_fit_factor_t *delta);

#endif
