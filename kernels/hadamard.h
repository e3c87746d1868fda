/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random rotations: signs at random, then a Walsh-Hadamard transform, so that values of any shape come out like normal ones.
 * Shared by C and CUDA: same source, same bits.
 *
 * A rotation is a few layers, each of random signs and something orthogonal; its inverse is the same in reverse order. Where the
 * count is a power of two that is the transform, twice, and four times up to 256 values: one leaves patterns (two values a and b
 * become a + b and a - b, from whose signs the smaller one cannot be told), and few values need more to forget theirs. Other
 * counts have, twice,
 *
 *   fold     sums and differences of the first half with the second
 *   front    the transform of the first 2^k, as many as there are
 *   end      the transform of the last 2^k, which overlaps
 *
 * so nothing is padded, and no value keeps to itself.
 *
 * The sign of element e in layer l is bit e mod 32 of the random word that stream IQ_STREAM_ROTATION has for element
 * e / 32 + 2^38 * (l + 8 for results), whatever part of the tensor is rotated.
 */
#ifndef ISGQ_KERNELS_HADAMARD_H
#define ISGQ_KERNELS_HADAMARD_H

#include "kernels/quant_math.h"

#include <stddef.h>

enum { IQ_ROTATION_LAYERS_MOST = 6, IQ_ROTATION_MOST = 8192 };

/* Where a rotation's signs are. Contributions have the rank that makes them, results have is_result and rank 0. */
typedef struct iq_rotation {
    uint64_t seed, call;
    uint32_t rank;
    int is_result;
    uint64_t first; /* number of the first value in the tensor */
} iq_rotation_t;

/* The largest power of two that is not above count >= 1. */
IQ_DEVICE size_t iq_rotation_window(size_t count)
{
    size_t window = 1;
    while (window <= count / 2)
        window *= 2;
    return window;
}

IQ_DEVICE uint32_t iq_rotation_layers(size_t count)
{
    if ((count & (count - 1)) != 0)
        return IQ_ROTATION_LAYERS_MOST;
    return count > 256 ? 2 : 4;
}

/* What a layer works on: values start .. start + count - 1. */
typedef struct iq_layer {
    int folds; /* else it transforms */
    size_t start, count;
    float factor; /* what makes it orthogonal */
} iq_rotation_layer_t;

/* 1 / sqrt(count) for a power of two. */
IQ_DEVICE float iq_rotation_factor(size_t count)
{
    uint32_t log = 0;
    while (count >> log > 1)
        log++;
    float even = iq_bits_float((127u - log / 2) << 23);
    return log % 2 ? even * 0.70710678118654752f : even;
}

IQ_DEVICE iq_rotation_layer_t iq_rotation_layer(size_t count, uint32_t index)
{
    size_t window = iq_rotation_window(count);
    iq_rotation_layer_t layer = {0, 0, window, iq_rotation_factor(window)};
    if (window == count)
        return layer;
    if (index % 3 == 0) {
        layer.folds = 1;
        layer.count = count;
        layer.factor = 1.0f;
    }
    if (index % 3 == 2)
        layer.start = count - window;
    return layer;
}

/* Which random word has the signs of elements 32 n .. 32 n + 31. */
IQ_DEVICE uint64_t iq_rotation_word(const iq_rotation_t *rotation, uint32_t index, uint64_t n)
{
    return ((uint64_t)(rotation->is_result ? 8u + index : index) << 38) + n;
}

/* Minus `factor` if the bit is set. */
IQ_DEVICE float iq_signed_factor(float factor, uint32_t word, uint32_t bit)
{
    return iq_bits_float(iq_float_bits(factor) | word >> bit << 31);
}

/*
 * One butterfly of a stage: `to` gets the sum of pair `i` of `from`, and half the count further on its difference. log2(count)
 * stages, each on the output of the one before, make values[j] the sum over i of (-1)^(bits that i and j have in common)
 * values[i]. All stages read and write in the same pattern; neighbours are added first, then pairs of neighbours, and so on.
 */
IQ_DEVICE void iq_hadamard_pair(const float *from, size_t half, size_t i, float *to)
{
    to[i] = from[2 * i] + from[2 * i + 1];
    to[half + i] = from[2 * i] - from[2 * i + 1];
}

/* A fold's butterfly: its own inverse. */
IQ_DEVICE void iq_rotation_fold_pair(float *low, float *high)
{
    float a = *low, b = *high;
    *low = (a + b) * 0.70710678118654752f;
    *high = (a - b) * 0.70710678118654752f;
}

/* 1 <= count <= IQ_ROTATION_MOST; `room` is as large as `values`. On CPUs: kernels/rotation.c. */
void iq_rotate(const iq_rotation_t *rotation, float *values, size_t count, float *room);
void iq_rotate_back(const iq_rotation_t *rotation, float *values, size_t count, float *room);

#endif
