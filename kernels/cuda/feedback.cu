/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Error feedback, each step one pass over a span: the arithmetic of feedback_math.h, a lane to an element, a warp to a group of 32.
 * A block adds its digits up in shared memory first.
 */
#include "kernels/cuda/map_parts.h"
#include "kernels/feedback_math.h"

typedef struct feedback_args {
    const void *gradient;
    const float *input, *decoded;
    float *output, *residual;
    float weight;
    bool weighted;
    iq_feedback_state_t *state;
    size_t count, corrected;
} feedback_args_t;

/* ---- steps ---- */

template <typename as_t> static __global__ void __launch_bounds__(IQ_CUDA_THREADS) add_residual(feedback_args_t args)
{
    const typename as_t::item_t *gradient = (const typename as_t::item_t *)args.gradient;
    float beta = args.weighted ? iq_feedback_beta(args.state->variance) : 1.0f;
    for (size_t i = (size_t)blockIdx.x * IQ_CUDA_THREADS + threadIdx.x; i < args.count; i += (size_t)gridDim.x * IQ_CUDA_THREADS) {
        float value = as_t::widen(gradient[i]);
        if (i < args.corrected) {
            float left = 0.0f;
            value = iq_feedback_add(value, beta, args.residual[i], &left);
            args.residual[i] = left;
        }
        args.output[i] = value;
    }
}

/* The sum of all lanes' terms, in all of them: a + b is b + a. */
static __device__ __forceinline__ double fold(double term)
{
#pragma unroll
    for (int apart = IQ_FEEDBACK_GROUP / 2; apart > 0; apart /= 2)
        term += __shfl_xor_sync(0xffffffffu, term, apart);
    return term;
}

/* Three lanes from `lane` on have a digit each. */
static __device__ __forceinline__ void add_digits(unsigned long long *sum, double term, uint32_t lane)
{
    uint32_t at, digit[3];
    iq_exact_split(term, &at, digit);
    if (lane < 3)
        atomicAdd(sum + at + lane, (unsigned long long)(lane == 0 ? digit[0] : lane == 1 ? digit[1] : digit[2]));
}

static __global__ void __launch_bounds__(IQ_CUDA_THREADS) keep_error(feedback_args_t args)
{
    __shared__ unsigned long long digits[2 * IQ_EXACT_DIGITS];
    uint32_t lane = threadIdx.x % 32;
    if (threadIdx.x < 2 * IQ_EXACT_DIGITS)
        digits[threadIdx.x] = 0;
    __syncthreads();
    size_t groups = (args.count + IQ_FEEDBACK_GROUP - 1) / IQ_FEEDBACK_GROUP;
    for (size_t group = (size_t)blockIdx.x * IQ_CUDA_WARPS + threadIdx.x / 32; group < groups; group += (size_t)gridDim.x * IQ_CUDA_WARPS) {
        size_t i = group * IQ_FEEDBACK_GROUP + lane;
        float input = 0.0f, error = 0.0f;
        if (i < args.count) {
            float decoded = args.decoded[i];
            input = args.input[i];
            error = input - decoded;
            if (i < args.corrected)
                args.residual[i] = iq_feedback_keep(args.residual[i], input, decoded);
            if (!iq_is_finite(error))
                error = input = 0.0f;
        }
        add_digits(digits, fold((double)error * (double)error), lane);
        add_digits(digits + IQ_EXACT_DIGITS, fold((double)input * (double)input), lane);
    }
    __syncthreads();
    if (threadIdx.x < 2 * IQ_EXACT_DIGITS && digits[threadIdx.x] != 0)
        atomicAdd(threadIdx.x < IQ_EXACT_DIGITS ? args.state->error.digit + threadIdx.x
                                                : args.state->square.digit + (threadIdx.x - IQ_EXACT_DIGITS),
                  digits[threadIdx.x]);
}

static __global__ void __launch_bounds__(IQ_CUDA_THREADS) settle_error(feedback_args_t args)
{
    for (size_t i = (size_t)blockIdx.x * IQ_CUDA_THREADS + threadIdx.x; i < args.corrected; i += (size_t)gridDim.x * IQ_CUDA_THREADS)
        args.residual[i] = iq_feedback_settle(args.residual[i], args.weight, args.input[i], args.decoded[i]);
}

/* One thread's work. */
static __global__ void __launch_bounds__(IQ_CUDA_THREADS) take_estimate(feedback_args_t args)
{
    iq_feedback_state_t *state = args.state;
    if (threadIdx.x == 0) {
        double error = iq_exact_value(&state->error), square = iq_exact_value(&state->square);
        state->variance = iq_feedback_variance(state->variance, state->calls == 0, error, square);
        state->calls++;
    }
    __syncthreads();
    if (threadIdx.x < IQ_EXACT_DIGITS)
        state->error.digit[threadIdx.x] = state->square.digit[threadIdx.x] = 0;
}

/* ---- launches ---- */

isgq_result_t iq_cuda_run_feedback(int device, isgq_stream_t stream, const iq_cuda_feedback_t *feedback)
{
    feedback_args_t args = {};
    args.gradient = feedback->gradient;
    args.input = feedback->input;
    args.decoded = feedback->decoded;
    args.output = feedback->output;
    args.residual = feedback->residual;
    args.weight = feedback->weight;
    args.weighted = feedback->weighted;
    args.state = feedback->state;
    args.count = feedback->count;
    args.corrected = feedback->corrected < feedback->count ? feedback->corrected : feedback->count;
    size_t blocks = args.count / IQ_CUDA_THREADS + 1;
    ON_DEVICE(device);
    switch (feedback->step) {
    case IQ_CUDA_KEEP_ERROR: return iq_cuda_launch<keep_error>(device, stream, blocks, args);
    case IQ_CUDA_SETTLE_ERROR: return iq_cuda_launch<settle_error>(device, stream, blocks, args);
    case IQ_CUDA_TAKE_ESTIMATE: return iq_cuda_launch<take_estimate>(device, stream, 1, args);
    default: break;
    }
    switch (feedback->type) {
    case ISGQ_FLOAT32: return iq_cuda_launch<add_residual<iq_as_f32>>(device, stream, blocks, args);
    case ISGQ_FLOAT16: return iq_cuda_launch<add_residual<iq_as_f16>>(device, stream, blocks, args);
    default: return iq_cuda_launch<add_residual<iq_as_bf16>>(device, stream, blocks, args);
    }
}

isgq_result_t iq_cuda_warm_feedback(int device)
{
    return iq_cuda_load<add_residual<iq_as_f32>, add_residual<iq_as_f16>, add_residual<iq_as_bf16>, keep_error, settle_error, take_estimate>(
        device);
}
