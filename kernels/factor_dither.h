/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Subtractive dither in integers. A value y, in steps, is first rounded at random to a multiple z of 2^-t; then q = nearest(z + u), and
 * what q says is q - u, where u is one of the 2^t numbers (2 k + 1 - 2^t) / 2^(t+1) and every receiver draws the same k. Whatever z is, q - u
 * - z runs through the same 2^t numbers of mean 0: unbiased, with variance (1 - 4^-t) / 12 for u and at most 4^-t / 4 for z. And q - u is an
 * integer times 2^-(t+1), so that sums of products of such numbers are sums of integers.
 */
#ifndef ISGQ_KERNELS_FACTOR_DITHER_H
#define ISGQ_KERNELS_FACTOR_DITHER_H

#include "kernels/quant_math.h"

/* Values that one random block has numbers k for; rows begin with a block of their own. */
enum { IQ_DITHER_BLOCK = 32, IQ_DITHER_BITS_MOST = 4 };

/*
 * t for so many rows of all ranks together: the most with rows * 15 * 2^11 * (255.5 * 2^(t+1)) * (127.5 * 2^(t+1)) < 2^53. With t = 0 there is
 * no dither left, only random rounding. Negative: too many rows.
 */
IQ_DEVICE int32_t iq_dither_bits(uint64_t rows)
{
    int32_t bits = IQ_DITHER_BITS_MOST;
    while (bits >= 0 && rows > (uint64_t)1 << (21 - 2 * bits))
        bits--;
    return bits;
}

/* The numbers k of values 32 * block .. 32 * block + 31. */
IQ_DEVICE void iq_dither_block(uint64_t seed, uint64_t call, uint32_t stream, uint32_t rank, uint64_t block, int32_t bits, uint8_t *k)
{
    iq_philox_block_t random = iq_draw(seed, call, stream, rank, 4 * block);
    for (int32_t i = 0; i < IQ_DITHER_BLOCK; i++)
        k[i] = (uint8_t)((random.word[i / 8] >> (4 * (i % 8)) & 15u) >> (IQ_DITHER_BITS_MOST - bits));
}

/* y to q, an integer within [low, high]; random24 is the sender's alone. */
IQ_DEVICE int32_t iq_dither_round(float y, uint32_t random24, int32_t k, int32_t bits, int32_t low, int32_t high)
{
    int32_t fine = 1 << bits;
    return (iq_round_stochastic(y * (float)fine, random24, low * fine, high * fine) + k) >> bits;
}

/* q - u in units of 2^-(t+1). */
IQ_DEVICE int32_t iq_dither_value(int32_t q, int32_t k, int32_t bits) { return q * (2 << bits) - (2 * k + 1 - (1 << bits)); }

#endif
