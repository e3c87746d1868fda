/* SPDX-License-Identifier: Apache-2.0 */
/* What becomes of the sums of products: integers as they are, or values of a type, scaled by a power of two. */
#ifndef ISGQ_KERNELS_CUDA_PRODUCT_PARTS_H
#define ISGQ_KERNELS_CUDA_PRODUCT_PARTS_H

#include "kernels/cuda/map_parts.h"

typedef struct iq_finish {
    void *dst;
    double scale, divisor;
    bool accumulate;
    const float *peaks; /* NULL: `scale`; else see iq_cuda_outcome_t */
    int peak;
    bool want_bias;
} iq_finish_t;

static inline iq_finish_t iq_finish_of(const iq_cuda_outcome_t &outcome)
{
    return {outcome.data,  outcome.scale, (double)outcome.divisor, outcome.accumulate,
            outcome.peaks, outcome.peak,  outcome.want_bias};
}

/* Every thread, before it stores anything. */
static __device__ __forceinline__ void iq_find_scale(iq_finish_t &finish)
{
    if (finish.peaks != NULL) {
        bool finite = !iq_not_finite(finish.peaks[0]) && !iq_not_finite(finish.peaks[1]);
        finish.scale = finite ? iq_power_of_two(iq_factor_grid_of(finish.want_bias, finish.peaks[finish.peak]).exponent)
                              : (double)iq_bits_float(0x7fc00000u);
    }
    if (iq_double_bits(finish.divisor) << 12 == 0) { /* powers of two divide exactly, whenever they do */
        finish.scale = finish.scale / finish.divisor;
        finish.divisor = 1;
    }
}

/* The integers as they are. */
template <typename integer_t> struct iq_to_integers {
    static __device__ __forceinline__ void store(const iq_finish_t &finish, size_t i, double sum)
    {
        ((integer_t *)finish.dst)[i] = (integer_t)sum;
    }
};

static __device__ __forceinline__ float iq_scaled(const iq_finish_t &finish, double sum)
{
    double scaled = sum * finish.scale;
    if (finish.divisor != 1) /* for a whole launch: a division is two dozen instructions */
        scaled = scaled / finish.divisor;
    return (float)scaled;
}

/* Rounded to float, then to the type, then added in the type. */
template <typename as_t> struct iq_to_values {
    static __device__ __forceinline__ void store(const iq_finish_t &finish, size_t i, double sum)
    {
        typename as_t::item_t *dst = (typename as_t::item_t *)finish.dst + i, result = as_t::narrow(iq_scaled(finish, sum));
        if (finish.accumulate)
            result = as_t::narrow(as_t::widen(*dst) + as_t::widen(result));
        *dst = result;
    }
};

#endif
