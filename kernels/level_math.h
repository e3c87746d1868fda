/* SPDX-License-Identifier: Apache-2.0 */
/* The arithmetic of levels on single values, shared by C and CUDA like quant_math.h: same source, same bits. */
#ifndef ISGQ_KERNELS_LEVEL_MATH_H
#define ISGQ_KERNELS_LEVEL_MATH_H

#include "kernels/quant_math.h"

/* ---- sums over a bucket: element i goes to lane i mod 16, in double; the lanes are folded as a tree, 8 onto 8, 4 onto 4, ... ---- */

enum { IQ_LEVEL_LANES = 16 };

typedef struct iq_level_sum {
    double lane[IQ_LEVEL_LANES];
} iq_level_sum_t;

IQ_DEVICE double iq_level_fold(iq_level_sum_t *sum)
{
    for (int half = IQ_LEVEL_LANES / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++)
            sum->lane[i] += sum->lane[i + half];
    }
    return sum->lane[0];
}

/* ---- random rounding between two levels ---- */

/* The probability of `high` for low <= value <= high in 2^-24: 0 at `low`, 2^24 at `high`, so that levels are kept exactly. */
IQ_DEVICE uint32_t iq_level_fraction(float value, float low, float high)
{
    double width = (double)high - (double)low;
    return width > 0.0 ? (uint32_t)(((double)value - (double)low) / width * 16777216.0) : 0u;
}

/* The last of `count` levels in ascending order that has one above it and is not above the value; the first for smaller values. */
IQ_DEVICE uint32_t iq_level_below(const float *levels, uint32_t count, float value)
{
    uint32_t below = 0;
    for (uint32_t i = 1; i + 1 < count; i++)
        below += value >= levels[i];
    return below;
}

/* ---- powers of two: code 0 is zero, code 256 * negative + e is +-2^(e - 127), e in 1..254 ---- */

/*
 * A float is 2^(e - 127) (1 + f), or 2^-126 f below 2^-126: f is the probability of the next exponent either way, and 23 bits of
 * mantissa hold it exactly. What is above 2^127 stays there.
 */
IQ_DEVICE uint32_t iq_natural_code(float value, uint32_t random24)
{
    uint32_t bits = iq_float_bits(value);
    uint32_t exponent = bits >> 23 & 0xffu;
    exponent += random24 < (bits & 0x7fffffu) << 1;
    exponent = exponent < 254u ? exponent : 254u;
    return exponent == 0 ? 0u : (bits >> 31 << 8) | exponent;
}

IQ_DEVICE int iq_natural_is_code(uint32_t code) { return code == 0 || ((code & 0xffu) != 0 && (code & 0xffu) != 255 && code < 512); }

IQ_DEVICE float iq_natural_value(uint32_t code) { return iq_bits_float((code >> 8) << 31 | (code & 0xffu) << 23); }

/* ---- integers times a power of two that a bucket shares (codec/mx.c): its field is the exponent + 127 ---- */

enum { IQ_MX_FIELD_MOST = 253 /* 2^126: the largest float is less than 4 of these */ };

/* The largest code on one side. */
IQ_DEVICE int32_t iq_mx_half(unsigned bits) { return (1 << (bits - 1)) - 1; }

/* The field of the smallest exponent e with most <= half * 2^e; 2^-127 is the finest step that there is. */
IQ_DEVICE uint32_t iq_mx_field(float most, int32_t half)
{
    uint32_t value = iq_float_bits(most), full = iq_float_bits((float)half);
    int32_t field = (int32_t)(value >> 23) - ((int32_t)(full >> 23) - 127);
    field += (value & 0x7fffffu) > (full & 0x7fffffu);
    return (uint32_t)(field > 0 ? field : 0);
}

/* 2^exponent: below 2^-126 it is a denormal number. */
IQ_DEVICE float iq_mx_step(uint32_t field) { return iq_bits_float(field == 0 ? 0x400000u : field << 23); }

/* Four steps of 2^126 are beyond f32, to which a value just below may have been rounded. */
IQ_DEVICE float iq_mx_value(int32_t code, float step)
{
    const float most = iq_bits_float(0x7f7fffffu); /* the largest float */
    float value = (float)code * step;
    value = value < most ? value : most;
    return value > -most ? value : -most;
}

#endif
