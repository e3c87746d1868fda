/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernels for factored calls share: arguments, where things lie, and what a warp or a block does together. A warp
 * works on one row of one factor at a time; kernels whose work hangs together from row to row are one block.
 */
#ifndef ISGQ_KERNELS_CUDA_FACTOR_PARTS_H
#define ISGQ_KERNELS_CUDA_FACTOR_PARTS_H

#include "kernels/cuda/map_parts.h"

#define IQ_ALL_LANES 0xffffffffu

/* Threads of kernels that are one block: as many as there are lanes for sums over rows. */
enum { IQ_FACTOR_THREADS = IQ_FACTOR_ROW_LANES };

/* One factor: 0 is X, 1 is delta. */
typedef struct iq_factor_operand {
    const void *data;
    uint64_t columns;
    uint8_t *codes;
    uint64_t stride; /* of codes */
} iq_factor_operand_t;

typedef struct iq_factor_args {
    iq_cuda_factor_call_t call;
    iq_factor_shape_t shape;
    iq_factor_operand_t operand[2];
    iq_cuda_factor_facts_t *facts;
    iq_factor_row_t *rows;
    uint32_t *order;
    iq_cuda_factor_pick_t *picks;
    float *peaks;
    const float *shared_peaks;
    uint32_t *starts;
    uint8_t *blob;
} iq_factor_args_t;

static __device__ __forceinline__ uint32_t iq_factor_lane(void) { return threadIdx.x % 32; }

/* This warp's number in the grid, and how many there are. */
static __device__ __forceinline__ uint64_t iq_factor_warp(void)
{
    return (uint64_t)blockIdx.x * IQ_CUDA_WARPS + threadIdx.x / 32;
}
static __device__ __forceinline__ uint64_t iq_factor_warps(void) { return (uint64_t)gridDim.x * IQ_CUDA_WARPS; }

/* A lane works on eight neighbours: eight codes are whole bytes at any width. How many of them there are from column `i` on. */
enum { IQ_FACTOR_GROUP = 8, IQ_FACTOR_SPAN = 32 * IQ_FACTOR_GROUP };

static __device__ __forceinline__ uint32_t iq_factor_valid(uint64_t i, uint64_t columns)
{
    const uint32_t group = IQ_FACTOR_GROUP;
    return i >= columns ? 0 : columns - i < group ? (uint32_t)(columns - i) : group;
}

/* Sums of the lanes before this one. */
static __device__ __forceinline__ uint32_t iq_factor_before(uint32_t value)
{
    uint32_t sum = value;
    for (unsigned step = 1; step < 32; step *= 2) {
        uint32_t other = __shfl_up_sync(IQ_ALL_LANES, sum, step);
        sum += iq_factor_lane() >= step ? other : 0;
    }
    return sum - value;
}

/* The same over IQ_FACTOR_THREADS threads; *total is the sum of all. */
static __device__ __forceinline__ unsigned long long iq_factor_before_in_block(unsigned long long value,
                                                                               unsigned long long *total)
{
    enum { WARPS = IQ_FACTOR_THREADS / 32 };
    __shared__ unsigned long long sums[WARPS];
    unsigned long long sum = value, all = 0;
    for (unsigned step = 1; step < 32; step *= 2) {
        unsigned long long other = __shfl_up_sync(IQ_ALL_LANES, sum, step);
        sum += iq_factor_lane() >= step ? other : 0;
    }
    if (iq_factor_lane() == 31)
        sums[threadIdx.x / 32] = sum;
    __syncthreads();
    sum -= value;
    for (unsigned warp = 0; warp < WARPS; warp++) {
        sum += warp < threadIdx.x / 32 ? sums[warp] : 0;
        all += sums[warp];
    }
    __syncthreads();
    *total = all;
    return sum;
}

/* Enqueue a kernel that is one block of IQ_FACTOR_THREADS threads. */
template <auto kernel, typename arguments_t>
isgq_result_t iq_factor_launch_block(isgq_stream_t stream, const arguments_t &arguments)
{
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(1);
    config.blockDim = dim3(IQ_FACTOR_THREADS);
    config.stream = stream;
    CUDA_TRY(cudaLaunchKernelEx, &config, kernel, arguments);
    return ISGQ_SUCCESS;
}

/* As many blocks as give each of `count` rows a warp. */
static inline size_t iq_factor_blocks(size_t count) { return count / IQ_CUDA_WARPS + 1; }

/* ---- the parts; each warm_* loads the kernels of its file ---- */

isgq_result_t iq_factor_measure(int device, isgq_stream_t stream, const iq_factor_args_t &args);     /* rows, facts */
isgq_result_t iq_factor_spread_rows(int device, isgq_stream_t stream, const iq_factor_args_t &args); /* variances of rows */
isgq_result_t iq_factor_allot_rows(int device, isgq_stream_t stream, const iq_factor_args_t &args);  /* widths, peaks */
isgq_result_t iq_factor_pick_rows(int device, isgq_stream_t stream, const iq_factor_args_t &args);   /* order, picks */
isgq_result_t iq_factor_write_rows(int device, isgq_stream_t stream, const iq_factor_args_t &args);  /* codes, blob, starts */
isgq_result_t iq_factor_decode_rows(int device, isgq_stream_t stream, const iq_cuda_factor_call_t *call, const void *messages,
                                    int ranks, void *rows, uint32_t *fault);
isgq_result_t iq_factor_multiply_rows(int device, isgq_stream_t stream, const iq_cuda_factor_call_t *call, void *rows, int ranks,
                                      const iq_cuda_outcome_t *grad, const iq_cuda_outcome_t *bias);
isgq_result_t iq_factor_warm_measure(int device);
isgq_result_t iq_factor_warm_choose(int device);
isgq_result_t iq_factor_warm_write(int device);
isgq_result_t iq_factor_warm_decode(int device);
isgq_result_t iq_factor_warm_multiply(int device);
isgq_result_t iq_cuda_warm_factor(int device); /* all of them */

extern const iq_cuda_factor_table_t iq_cuda_factor_table;

#endif
