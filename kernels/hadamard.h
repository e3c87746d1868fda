/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random rotations: signs at random, then a Walsh-Hadamard transform, so that values of any shape come out like normal ones. Shared by C and CUDA:
 * same source, same bits.
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
 * The sign of element e of a tensor in a layer is one bit of Philox, whatever part of the tensor is rotated.
 */
#ifndef ISGQ_KERNELS_HADAMARD_H
#define ISGQ_KERNELS_HADAMARD_H

#include "kernels/quant_math.h"

#include <stddef.h>

enum { IQ_ROTATION_LAYERS_MOST = 6 };

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
typedef struct iq_rotation_layer {
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

/* The signs of the 128 elements around `element`: bit (element mod 32) of word (element / 32 mod 4), set for minus. */
IQ_DEVICE iq_philox_block_t iq_rotation_signs(const iq_rotation_t *rotation, uint32_t layer, uint64_t element)
{
    uint64_t quad = (element >> 7) << 4 | (rotation->is_result ? 8u : 0u) | layer;
    return iq_draw(rotation->seed, rotation->call, IQ_STREAM_ROTATION, rotation->rank, quad << 2);
}

/* One butterfly of a stage: `to` gets the sum of pair `i` of `from`, and half the count further on its difference. */
IQ_DEVICE void iq_hadamard_pair(const float *from, size_t half, size_t i, float *to)
{
    to[i] = from[2 * i] + from[2 * i + 1];
    to[half + i] = from[2 * i] - from[2 * i + 1];
}

/*
 * Not scaled: values[j] becomes the sum over i of (-1)^(bits that i and j have in common) values[i], for a power of two. The order
 * of additions is that of the stages: neighbours first, then sums and differences of neighbours with those of the next two, ... Every stage reads and
 * writes in the same pattern, so that compilers vectorise all of them. `room` is as large as `values`.
 */
static inline void iq_hadamard(float *values, size_t count, float *room)
{
    float *from = values, *to = room;
    for (size_t done = 1; done < count; done *= 2) {
        float *swapped = from;
        for (size_t i = 0; i < count / 2; i++)
            iq_hadamard_pair(from, count / 2, i, to);
        from = to;
        to = swapped;
    }
    if (from != values)
        memcpy(values, from, count * sizeof(*values));
}

/* Of an odd count the value in the middle stays as it is. */
static inline void iq_rotation_fold(float *values, size_t count)
{
    size_t half = count - count / 2;
    for (size_t i = 0; i + half < count; i++) {
        float a = values[i], b = values[half + i];
        values[i] = (a + b) * 0.70710678118654752f;
        values[half + i] = (a - b) * 0.70710678118654752f;
    }
}

/* A layer's random signs, and its factor. */
static inline void iq_rotation_sign(const iq_rotation_t *rotation, uint32_t index, const iq_rotation_layer_t *layer, float *values)
{
    size_t end = layer->start + layer->count;
    for (size_t i = layer->start; i < end;) {
        uint64_t element = rotation->first + i;
        iq_philox_block_t signs = iq_rotation_signs(rotation, index, element);
        size_t left = 128 - element % 128, stop = left < end - i ? i + left : end;
        for (; i < stop; i++, element++) {
            uint32_t sign = signs.word[element / 32 % 4] >> element % 32 << 31;
            values[i] *= iq_bits_float(iq_float_bits(layer->factor) | sign);
        }
    }
}

/* Its own inverse but for factor and signs. */
static inline void iq_rotation_mix(const iq_rotation_layer_t *layer, float *values, float *room)
{
    if (layer->folds)
        iq_rotation_fold(values, layer->count);
    else
        iq_hadamard(values + layer->start, layer->count, room);
}

/* `room` is as large as `values`; count >= 1. */
static inline void iq_rotate(const iq_rotation_t *rotation, float *values, size_t count, float *room)
{
    for (uint32_t index = 0; index < iq_rotation_layers(count); index++) {
        iq_rotation_layer_t layer = iq_rotation_layer(count, index);
        iq_rotation_sign(rotation, index, &layer, values);
        iq_rotation_mix(&layer, values, room);
    }
}

static inline void iq_rotate_back(const iq_rotation_t *rotation, float *values, size_t count, float *room)
{
    for (uint32_t index = iq_rotation_layers(count); index-- > 0;) {
        iq_rotation_layer_t layer = iq_rotation_layer(count, index);
        iq_rotation_mix(&layer, values, room);
        iq_rotation_sign(rotation, index, &layer, values);
    }
}

#endif
