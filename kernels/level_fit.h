/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a bucket's levels follow from what was counted and summed over its values. Shared by C and CUDA like level_math.h: who goes
 * over the values, and in which order where that matters, is stated there and here.
 */
#ifndef ISGQ_KERNELS_LEVEL_FIT_H
#define ISGQ_KERNELS_LEVEL_FIT_H

#include "kernels/level_math.h"

#include <float.h>
#include <math.h>

/* ---- qsgd ---- */

/* Larger norms count as this, so that no level is beyond f32 when the step has been rounded. */
#define IQ_LARGEST_NORM 0x1.ffffep127f

/* Codes are 0..top. */
IQ_DEVICE uint32_t iq_qsgd_top(uint32_t bits) { return (1u << bits) - 2u; }

/* Of the sum of squares. At least the largest magnitude, also when rounded: square root and rounding are monotonic. */
IQ_DEVICE float iq_euclidean_norm(double squares) { return (float)fmin(sqrt(squares), (double)IQ_LARGEST_NORM); }

/* ---- means ---- */

IQ_DEVICE float iq_level_mean(double sum, uint32_t count) { return count == 0 ? 0.0f : (float)(sum / (double)count); }

/* ---- sorted values ---- */

/* Orders as finite floats do, -0 before +0. */
IQ_DEVICE uint32_t iq_float_key(float value)
{
    uint32_t bits = iq_float_bits(value);
    return bits ^ (bits >> 31 != 0 ? 0xffffffffu : 0x80000000u);
}

IQ_DEVICE float iq_key_float(uint32_t key) { return iq_bits_float(key ^ (key >> 31 != 0 ? 0x80000000u : 0xffffffffu)); }

/* orq: which of the sorted values first..end-1 is the level between two others that are `width` > 0 apart, where `sum` is that of
 * the values' distances from the lower one. As many lie above it as random rounding between the two would round up. */
IQ_DEVICE uint32_t iq_orq_place(uint32_t first, uint32_t end, double sum, double width)
{
    double place = floor((double)end - sum / width);
    return (uint32_t)fmin(fmax(place, (double)first), (double)(end - 1));
}

/* ---- bingrad_pb: sums of magnitudes that are exact, in any order ---- */

/* Added to a magnitude and taken away again, it leaves a multiple of 2^-39 times the power of two of the bucket's largest one:
 * doubles hold the sum of any 8192 of these. */
IQ_DEVICE double iq_level_grain(float most)
{
    uint32_t exponent = iq_float_bits(most) >> 23;
    return (double)iq_bits_float((exponent > 0 ? exponent : 1u) << 23) * 0x1.8p13; /* 1.5 * 2^52 * 2^-39 */
}

IQ_DEVICE double iq_level_grained(float magnitude, double grain) { return ((double)magnitude + grain) - grain; }

/*
 * The squared error of levels -b and b is convex in b, and its slope b - mean of |v| [|v| > b] jumps up where b passes a magnitude.
 * So the best b is the least with iq_is_balanced, where `above` is the sum of the magnitudes above it; of floats the least, or
 * the mean that is just below.
 */
IQ_DEVICE int iq_is_balanced(double above, uint32_t count, float b) { return above <= (double)count * (double)b; }

/* `bits` are those of the least float. */
IQ_DEVICE float iq_balanced_magnitude(uint32_t bits, double above, uint32_t count)
{
    double mean = above / (double)count;
    return bits > 0 && mean > (double)iq_bits_float(bits - 1) ? (float)mean : iq_bits_float(bits);
}

/* ---- eden ---- */

enum { IQ_EDEN_SYMBOLS_MOST = 16 };

/* The levels above zero that serve the normal distribution best (Lloyd-Max); those below are the same. */
IQ_DEVICE float iq_eden_upper_level(uint32_t bits, uint32_t index)
{
    static const float levels[15] = {0.7978845608f, 0.4527800346f, 1.5104176085f, 0.2450941789f, 0.7560052812f,
                              1.3439092785f, 2.1519457045f, 0.1283950299f, 0.3880482995f, 0.6567591185f,
                              0.9423404565f, 1.2562311973f, 1.6180463860f, 2.0690172265f, 2.7325895710f};
    return levels[(1u << (bits - 1)) - 1 + index];
}

/* All levels in ascending order: codes name them. */
IQ_DEVICE float iq_eden_level(uint32_t bits, uint32_t code)
{
    uint32_t half = 1u << (bits - 1);
    return code >= half ? iq_eden_upper_level(bits, code - half) : -iq_eden_upper_level(bits, half - 1 - code);
}

/* Above it, a value's nearest level is `upper`. */
IQ_DEVICE float iq_eden_border(float lower, float upper) { return 0.5f * (lower + upper); }

/* A power of two near the largest magnitude, with a finite inverse: sums of any values divided by it stay small. */
IQ_DEVICE float iq_eden_unit(float most)
{
    uint32_t exponent = iq_float_bits(most) >> 23;
    exponent = exponent < 1 ? 1 : exponent > 253 ? 253 : exponent;
    return iq_bits_float(exponent << 23);
}

/* What rotated values are multiplied with before they go to the nearest level. */
IQ_DEVICE float iq_eden_scale(uint32_t count, double square) { return (float)sqrt((double)count / square); }

/* What decoding multiplies with: `product` is that of levels and rotated values, all in units. */
IQ_DEVICE float iq_eden_multiplier(double square, double product, float unit)
{
    return (float)fmin(square / product * (double)unit, (double)FLT_MAX);
}

IQ_DEVICE float iq_eden_value(float rotated, float multiplier)
{
    float value = rotated * multiplier;
    value = value < FLT_MAX ? value : FLT_MAX;
    return value > -FLT_MAX ? value : -FLT_MAX;
}

#endif
