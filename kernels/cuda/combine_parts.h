/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernels that add up parts have in common: the arguments of a launch, and maxima of sums. */
#ifndef ISGQ_KERNELS_CUDA_COMBINE_PARTS_H
#define ISGQ_KERNELS_CUDA_COMBINE_PARTS_H

#include "kernels/cuda/map_parts.h"

/* One piece of an iq_cuda_combine_t. */
typedef struct iq_combine_args {
    iq_cuda_part_t parts[IQ_CUDA_PARTS];
    uint32_t nparts, own; /* UINT32_MAX: none */
    const void *own_data;
    uint32_t count;
    iq_buckets_t buckets;
    iq_cuda_form_t part_form, result_form;
    isgq_data_type_t part_type, own_type, through, result_type, output_type;
    unsigned part_width, result_width;
    uint32_t part_least, part_most, offset;
    bool parts_aligned, own_aligned, result_aligned, output_aligned;
    bool accumulate;
    void *result, *output;
    uint32_t *measure; /* bits of floats */
    iq_meaning_t meaning, sum;
    iq_grid_args_t own_grid, result_grid;
    uint32_t *fault;
} iq_combine_args_t;

/* Magnitudes of floats order as their bits do, with NaN above Inf. */
static __device__ __forceinline__ uint32_t iq_magnitude(float value) { return iq_float_bits(value) & 0x7fffffffu; }

/* *scale = max(*scale, magnitude), +Inf for NaN and Inf. */
static __device__ __forceinline__ void iq_raise(uint32_t *scale, uint32_t magnitude)
{
    magnitude = magnitude > 0x7f800000u ? 0x7f800000u : magnitude;
    if (magnitude > *(volatile uint32_t *)scale) /* scales only grow: an old one can only be too small */
        atomicMax(scale, magnitude);
}

/* The kernels for parts that most sums have; false if there is none for these. */
bool iq_cuda_combine_codes(int device, isgq_stream_t stream, const iq_combine_args_t *args, isgq_result_t *result);
bool iq_cuda_combine_values(int device, isgq_stream_t stream, const iq_combine_args_t *args, isgq_result_t *result);
isgq_result_t iq_cuda_warm_combine_codes(int device);
isgq_result_t iq_cuda_warm_combine_values(int device);

#endif
