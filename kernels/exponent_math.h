/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Powers of two as codes, and sums of such codes that are powers of two again: right on average. Shared by C and CUDA: same
 * source, same bits.
 *
 * A code is 0 for zero, else a sign, which is one bit, and below it an exponent e of 1 .. sign - 1, which means 2^(1 - e) times
 * what the largest code stands for. A sign alone is no code.
 */
#ifndef ISGQ_KERNELS_EXPONENT_MATH_H
#define ISGQ_KERNELS_EXPONENT_MATH_H

#include "kernels/quant_math.h"

/* 32 for 0. */
IQ_DEVICE uint32_t iq_leading_zeros(uint32_t word)
{
#ifdef __CUDA_ARCH__
    return (uint32_t)__clz((int)word);
#else
    return word == 0 ? 32u : (uint32_t)__builtin_clz(word);
#endif
}

/*
 * The exponent of a ratio 0..1 of two floats, where 1 has exponent 1 + head; 0: zero. Between two powers of two either may come
 * out, and below the smallest that or zero; the expectation is the ratio.
 */
IQ_DEVICE uint32_t iq_exponent_round(double ratio, uint32_t head, uint32_t sign, uint32_t random24)
{
    uint64_t bits;
    memcpy(&bits, &ratio, sizeof(bits));
    if (bits == 0)
        return 0;
    uint32_t below = 1023u - (uint32_t)(bits >> 52), fraction = (uint32_t)(bits >> 28) & 0xffffffu;
    uint32_t exponent = 1 + head + below, last = sign - 1;
    if (exponent <= last)
        return exponent - (random24 < fraction);
    uint32_t lower = exponent - last;
    uint32_t chance = lower < 32 ? (0x1000000u | fraction) >> lower : 0;
    return random24 < chance ? last : 0;
}

/*
 * One code for a + b: the larger power, or its neighbour with the probability that makes the expectation right. `word` has 32
 * random bits: as many zeros lead it as `gap`, or more, with probability 2^-gap. Above the largest code there is none: the sum
 * stays there.
 */
IQ_DEVICE uint32_t iq_exponent_add(uint32_t a, uint32_t b, uint32_t sign, uint32_t word)
{
    if (a == 0 || b == 0)
        return a | b;
    uint32_t of_a = a & (sign - 1), of_b = b & (sign - 1), zeros = iq_leading_zeros(word);
    uint32_t large = of_a <= of_b ? a : b, exponent = large & (sign - 1);
    uint32_t gap = of_a <= of_b ? of_b - of_a : of_a - of_b;
    if (((a ^ b) & sign) == 0)
        exponent -= zeros >= gap && exponent > 1;
    else if (gap == 0)
        return 0;
    else
        exponent += zeros >= gap - 1;
    return (large & sign) | exponent;
}

/* `largest`: what the largest code stands for. */
IQ_DEVICE double iq_exponent_value(uint32_t code, uint32_t sign, double largest)
{
    uint32_t exponent = code & (sign - 1);
    uint64_t bits = (uint64_t)(1024u - exponent) << 52;
    double power;
    memcpy(&power, &bits, sizeof(power));
    if (exponent == 0)
        return 0.0;
    return (code & sign) != 0 ? -power * largest : power * largest;
}

#endif
