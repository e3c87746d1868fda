/* SPDX-License-Identifier: Apache-2.0 */
/* Steps of integers that leave room for the sum of all ranks' (codec intsgd), shared by C and CUDA: same source, same bits. */
#ifndef ISGQ_KERNELS_SHARE_MATH_H
#define ISGQ_KERNELS_SHARE_MATH_H

#include "kernels/quant_math.h"

/* Not FLT_MAX: its steps, rounded, must not add up to more than that. */
#define IQ_ALMOST_2_128 0x1.fffffcp127f

/* Smaller magnitudes count as this, so that half a step and its inverse are ordinary numbers: a step is at least 2^-120. */
#define IQ_SMALLEST_MAGNITUDE 0x1p-113f

/* 2^E / share, 2^E being the first power of two above the largest magnitude. 0 for zeros, +Inf for NaN and Inf; share is below 128. */
IQ_DEVICE float iq_share_step(float most, int32_t share)
{
    if (most == 0.0f || iq_not_finite(most))
        return most;
    float least = most < IQ_SMALLEST_MAGNITUDE ? IQ_SMALLEST_MAGNITUDE : most;
    float above = iq_bits_float((iq_float_bits(least) & 0x7f800000u) + 0x00800000u);
    return (iq_not_finite(above) ? IQ_ALMOST_2_128 : above) / (float)share;
}

#endif
