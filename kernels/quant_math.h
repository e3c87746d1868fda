/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The arithmetic of quantization on single values, shared by C and CUDA: same source, same bits. Compile with contraction off
 * (-ffp-contract=off, --fmad=false).
 */
#ifndef ISGQ_KERNELS_QUANT_MATH_H
#define ISGQ_KERNELS_QUANT_MATH_H

#include "kernels/philox.h"

#include <string.h>

IQ_DEVICE uint32_t iq_float_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

IQ_DEVICE float iq_bits_float(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* NaN or Inf? By bits: survives -ffast-math and flush-to-zero alike. */
IQ_DEVICE int iq_not_finite(float value) { return (iq_float_bits(value) & 0x7f800000u) == 0x7f800000u; }

/* condition ? yes : no, by masks: compilers that see a branch do not vectorise it. */
IQ_DEVICE uint32_t iq_select(int condition, uint32_t yes, uint32_t no)
{
    return no ^ ((yes ^ no) & (0u - (uint32_t)(condition != 0)));
}

/* bfloat16, round to nearest even; NaN stays NaN. */
IQ_DEVICE uint16_t iq_float_to_bf16(float value)
{
    uint32_t bits = iq_float_bits(value);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (uint16_t)iq_select((bits & 0x7fffffffu) > 0x7f800000u, (bits >> 16) | 0x40u, rounded);
}

IQ_DEVICE float iq_bf16_to_float(uint16_t half) { return iq_bits_float((uint32_t)half << 16); }

/*
 * IEEE 754 binary16, round to nearest even, subnormals kept; overflow becomes Inf, NaN stays NaN (quiet, with the upper payload
 * bits, as x86 and ARM hardware do).
 */
IQ_DEVICE uint16_t iq_float_to_f16(float value)
{
    uint32_t bits = iq_float_bits(value);
    uint32_t magnitude = bits & 0x7fffffffu;
    /* Below 2^-14 results are multiples of 2^-24, the last place of a float in [0.5, 1): adding 0.5 rounds to it. */
    uint32_t small = iq_select(magnitude < 0x38800000u, magnitude, 0u);
    uint32_t subnormal = iq_float_bits(iq_bits_float(small) + 0.5f) - 0x3f000000u;
    uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
    uint32_t nan = 0x7e00u | ((magnitude >> 13) & 0x1ffu);
    uint32_t half = iq_select(magnitude < 0x38800000u, subnormal, normal);
    half = iq_select(magnitude >= 0x477ff000u, 0x7c00u, half); /* 65520: halfway to the first value beyond */
    half = iq_select(magnitude > 0x7f800000u, nan, half);
    return (uint16_t)(half | ((bits >> 16) & 0x8000u));
}

IQ_DEVICE float iq_f16_to_float(uint16_t half)
{
    uint32_t magnitude = half & 0x7fffu;
    uint32_t normal = (magnitude << 13) + 0x38000000u;
    uint32_t special = (normal + 0x38000000u) | iq_select(magnitude > 0x7c00u, 0x400000u, 0u);
    uint32_t subnormal = iq_float_bits((float)(int32_t)magnitude * 5.9604644775390625e-8f); /* 2^-24 */
    uint32_t bits = iq_select(magnitude < 0x400u, subnormal, normal);
    bits = iq_select(magnitude >= 0x7c00u, special, bits);
    return iq_bits_float(bits | ((uint32_t)(half & 0x8000u) << 16));
}

/*
 * Stochastic rounding of y to an integer in [low, high] with 24 random bits: floor(y), plus 1 with probability frac(y). Never
 * floor(y + u), which exceeds the range for one maximum in 10^5. NaN becomes `low`.
 */
IQ_DEVICE int32_t iq_round_stochastic(float y, uint32_t random24, int32_t low, int32_t high)
{
    y = y > (float)low ? y : (float)low;
    y = y < (float)high ? y : (float)high;
    int32_t whole = (int32_t)y;
    whole -= (float)whole > y;
    return whole + ((int32_t)random24 < (int32_t)((y - (float)whole) * 16777216.0f));
}

/*
 * Stratified: the 24 random bits of one rank, made of a word that all ranks have in common. Ranks that add offsets which lie evenly
 * in [0, 2^24) have numbers that do, and each of them, taken alone, is as random as the word.
 */
IQ_DEVICE uint32_t iq_stratified_bits(uint32_t word, const uint32_t *offsets)
{
    return ((word >> 8) + offsets[word & 0xffu]) & 0xffffffu;
}

/* Nearest integer, ties upwards, in [low, high]. NaN becomes `low`. */
IQ_DEVICE int32_t iq_round_nearest(float y, int32_t low, int32_t high)
{
    y = y > (float)low ? y : (float)low;
    y = y < (float)high ? y : (float)high;
    int32_t whole = (int32_t)y;
    whole -= (float)whole > y;
    return whole + (y - (float)whole >= 0.5f);
}

/* ---- grids: codes 0..top between -scale and +scale; a code c means (2 c - top) * iq_half_step. top 1: -scale or +scale. ---- */

/* Smaller scales count as this, so that 1 / step stays finite. */
#define IQ_SMALLEST_SCALE 0x1p-120f

/* What a value is multiplied with before it is rounded; 0 for a scale of 0, NaN or Inf. */
IQ_DEVICE float iq_inverse_step(uint32_t top, float scale)
{
    float half = top == 1 ? 0.5f : (float)(top / 2);
    if (iq_not_finite(scale) || scale == 0.0f)
        return 0.0f;
    return half / (scale < IQ_SMALLEST_SCALE ? IQ_SMALLEST_SCALE : scale);
}

/* NaN for a scale of NaN or Inf. */
IQ_DEVICE float iq_half_step(uint32_t top, float scale)
{
    if (iq_not_finite(scale))
        return iq_bits_float(0x7fc00000u); /* the quiet NaN */
    return scale == 0.0f ? 0.0f : (scale < IQ_SMALLEST_SCALE ? IQ_SMALLEST_SCALE : scale) / (float)top;
}

#endif
