/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A logarithm that is the same number everywhere: what ranks conclude from it they must conclude alike, and libraries of
 * mathematics differ in last bits. Only +, -, * and / of doubles, which IEEE 754 defines exactly.
 */
#ifndef ISGQ_CODEC_CODED_MATH_H
#define ISGQ_CODEC_CODED_MATH_H

#include <stdint.h>
#include <string.h>

/* log2 of a positive normal number, off by less than 1e-9. */
static inline double iq_log2(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof(bits));
    double exponent = (double)((int)(bits >> 52) - 1023);
    bits = (bits & 0xfffffffffffffu) | 0x3ff0000000000000u;
    memcpy(&x, &bits, sizeof(x));
    if (x > 1.4142135623730951) {
        x *= 0.5;
        exponent += 1.0;
    }
    double t = (x - 1.0) / (x + 1.0), s = t * t; /* log x = 2 atanh t, and |t| < 0.172 */
    double series = 1.0 + s * (1.0 / 3 + s * (1.0 / 5 + s * (1.0 / 7 + s * (1.0 / 9 + s * (1.0 / 11)))));
    return exponent + t * series * 2.8853900817779268; /* 2 / log 2 */
}

/* 2^n, -1022 <= n <= 1023. */
static inline double iq_exp2_whole(int n)
{
    uint64_t bits = (uint64_t)(n + 1023) << 52;
    double x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

#endif
