/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The arithmetic of error feedback on single elements, and sums of squares that do not depend on the order in which spans come.
 * Shared by C and CUDA: same source, same bits.
 *
 * Squares of 32 neighbours, counted from where a span begins, are folded as a tree in double; what is missing at the end counts as 0. These sums are added without rounding: they are digits of 32 bits in words of 64.
 */
#ifndef ISGQ_KERNELS_FEEDBACK_MATH_H
#define ISGQ_KERNELS_FEEDBACK_MATH_H

#include "kernels/quant_math.h"

#include <float.h>
#include <math.h>

/* Unlike isfinite, loops over it are vectorised. */
IQ_DEVICE int iq_is_finite(float value) { return fabsf(value) <= FLT_MAX; }

/* ---- elements ---- */

/* v = g + beta e, and what of e is not in it. A residual must not make a gradient infinite that is not; what does not fit waits. */
IQ_DEVICE float iq_feedback_add(float gradient, float beta, float residual, float *left)
{
    float part = beta * residual, sum = gradient + part;
    if (iq_is_finite(gradient)) {
        sum = sum > FLT_MAX ? FLT_MAX : sum < -FLT_MAX ? -FLT_MAX : sum;
        part = sum == gradient + part ? part : sum - gradient;
    }
    *left = residual - part;
    return sum;
}

/* e = what is left of it + v - C(v); 0 if that is not finite. */
IQ_DEVICE float iq_feedback_keep(float left, float input, float decoded)
{
    float residual = left + (input - decoded);
    return iq_is_finite(residual) ? residual : 0.0f;
}

/* The owner of a sum adds what its rounding lost. What is not finite is some rank's value, and the result says so. */
IQ_DEVICE float iq_feedback_settle(float residual, float weight, float sum, float rounded)
{
    float settled = residual + weight * (sum - rounded);
    return iq_is_finite(settled) ? settled : residual;
}

/* ---- exact sums ---- */

/* What a warp folds with a lane to an element: 16 onto 16, 8 onto 8, ... */
IQ_DEVICE double iq_feedback_squares(const float value[32])
{
    double term[8];
    for (int i = 0; i < 8; i++) {
        double a = (double)value[i], b = (double)value[i + 8], c = (double)value[i + 16], d = (double)value[i + 24];
        term[i] = (a * a + c * c) + (b * b + d * d);
    }
    for (int i = 0; i < 4; i++)
        term[i] += term[i + 4];
    return (term[0] + term[2]) + (term[1] + term[3]);
}

enum { IQ_FEEDBACK_GROUP = 32, IQ_EXACT_DIGITS = 21, IQ_EXACT_LOWEST = -352 };

/* Digit i counts 2^(32 i + IQ_EXACT_LOWEST): squares of floats begin at 2^-298, and a double with such a value at 2^-350. Up to
 * 2^32 terms fit. */
typedef struct iq_exact {
    unsigned long long digit[IQ_EXACT_DIGITS];
} iq_exact_t;

/* A term, 0 or a sum of squares, as three digits from number *at on. */
IQ_DEVICE void iq_exact_split(double term, uint32_t *at, uint32_t digit[3])
{
    uint64_t bits;
    memcpy(&bits, &term, sizeof(bits));
    uint32_t exponent = (uint32_t)(bits >> 52), place = exponent == 0 ? 0 : exponent - 1075u - (uint32_t)IQ_EXACT_LOWEST;
    uint64_t number = exponent == 0 ? 0 : (bits & 0xfffffffffffffu) | 0x10000000000000u, low = number << place % 32;
    *at = place / 32;
    digit[0] = (uint32_t)low;
    digit[1] = (uint32_t)(low >> 32);
    digit[2] = place % 32 == 0 ? 0 : (uint32_t)(number >> (64 - place % 32));
}

IQ_DEVICE void iq_exact_add(iq_exact_t *sum, double term)
{
    uint32_t at, digit[3];
    iq_exact_split(term, &at, digit);
    for (uint32_t i = 0; i < 3; i++)
        sum->digit[at + i] += digit[i];
}

IQ_DEVICE double iq_exact_value(const iq_exact_t *sum)
{
    double value = 0.0;
    uint64_t carry = 0;
    for (int i = 0; i < IQ_EXACT_DIGITS; i++) {
        uint64_t power_bits = (uint64_t)(1023 + 32 * i + IQ_EXACT_LOWEST) << 52;
        double power;
        memcpy(&power, &power_bits, sizeof(power));
        carry += sum->digit[i];
        value += (double)(uint32_t)carry * power;
        carry >>= 32;
    }
    return value;
}

/* ---- the weighted rule ---- */

/* What a tensor knows of its rank's errors: where it lies on a device, what the calls read and write there. */
typedef struct iq_feedback_state {
    double variance;           /* running mean of |v - C(v)|^2 / |v|^2 */
    unsigned long long calls;  /* in it */
    iq_exact_t error, square;  /* of the call in progress */
} iq_feedback_state_t;

IQ_DEVICE float iq_feedback_beta(double variance) { return (float)(1.0 / (1.0 + variance)); }

/* How much of what it sends a codec loses changes slowly: a mean over about eight calls. */
IQ_DEVICE double iq_feedback_variance(double variance, int is_first, double error, double square)
{
    return square > 0.0 ? variance + (error / square - variance) / (is_first ? 1.0 : 8.0) : variance;
}

#endif
