/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sums of values and of their squares, in an order that depends on nothing but element numbers, and what scales are made of them.
 * Shared by C and CUDA: same source, same bits.
 *
 * Elements come in blocks of 256 and blocks in panels of 64, both cut by element number. Within a block and a bucket element e
 * goes to lane e mod 16, in the order of elements, in double; lanes are folded as a tree: 8 onto 8, 4 onto 4, ... Blocks of a panel
 * and a bucket are folded likewise, block b in place b mod 64, and panels are added up in their order. Lanes and places that have
 * no element hold 0.
 */
#ifndef ISGQ_KERNELS_MOMENT_MATH_H
#define ISGQ_KERNELS_MOMENT_MATH_H

#include "kernels/quant_math.h"

#include <float.h>
#include <math.h>

enum { IQ_MOMENT_LANES = 16, IQ_MOMENT_BLOCK = 256, IQ_MOMENT_PLACES = 64, IQ_MOMENT_PANEL = IQ_MOMENT_BLOCK * IQ_MOMENT_PLACES };

/* Of `count` terms, a power of two. */
IQ_DEVICE double iq_moment_fold(double *terms, int count)
{
    for (int half = count / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++)
            terms[i] += terms[i + half];
    }
    return terms[0];
}

/*
 * Where moments of buckets are kept: planes of 32-bit words, a word of each bucket. So when scales are made of them, scale b takes
 * the place of bucket b's word in the first plane, which nothing else is needed for.
 */
enum { IQ_NORM_SQUARES = 0, IQ_NORM_WORDS = 2, IQ_CLIP_MOST = 0, IQ_CLIP_SQUARES = 1, IQ_CLIP_SUM = 3, IQ_CLIP_WORDS = 5 };

/* Bucket b's double in two planes from `plane` on, each `stride` words long. */
IQ_DEVICE double iq_moment_load(const float *room, size_t stride, int plane, size_t b)
{
    uint32_t low = iq_float_bits(room[(size_t)plane * stride + b]), high = iq_float_bits(room[(size_t)(plane + 1) * stride + b]);
    uint64_t bits = (uint64_t)high << 32 | low;
    double value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

IQ_DEVICE void iq_moment_store(float *room, size_t stride, int plane, size_t b, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof(bits));
    room[(size_t)plane * stride + b] = iq_bits_float((uint32_t)bits);
    room[(size_t)(plane + 1) * stride + b] = iq_bits_float((uint32_t)(bits >> 32));
}

IQ_DEVICE void iq_moment_add(float *room, size_t stride, int plane, size_t b, double term)
{
    iq_moment_store(room, stride, plane, b, iq_moment_load(room, stride, plane, b) + term);
}

/* ---- moments to scales ---- */

/* Not below the sum, so that no value is above the norm; nor so small that squares are lost. +Inf for NaN. */
IQ_DEVICE float iq_round_squares(double squares)
{
    if (!(squares <= (double)FLT_MAX))
        return iq_bits_float(0x7f800000u);
    if (squares > 0.0 && squares < (double)FLT_MIN)
        return FLT_MIN;
    float rounded = (float)squares;
    return (double)rounded < squares ? iq_bits_float(iq_float_bits(rounded) + 1) : rounded;
}

/* Values that are alike up to a few millionths would all be clipped, or not, by how their squares were rounded. */
#define IQ_LEAST_VARIANCE 0x1p-30

/* A bucket's scale on one rank. */
IQ_DEVICE float iq_clipped_scale(float clip, double squares, double sum, float most, size_t count)
{
    double mean = sum / (double)count, square = squares / (double)count, variance = square - mean * mean;
    double limit = (double)clip * sqrt(variance > 0.0 ? variance : 0.0);
    int clips = variance > IQ_LEAST_VARIANCE * square && limit < (double)most && !iq_not_finite(most);
    return clips ? (float)limit : most;
}

#endif
