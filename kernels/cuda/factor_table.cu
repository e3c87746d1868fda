/* SPDX-License-Identifier: Apache-2.0 */
/* The table of factor_module.h: which kernels make up a step. */
#include "kernels/cuda/factor_parts.h"

static iq_factor_args_t args_of(const iq_cuda_factor_call_t *call, const void *x, const void *delta, void *state)
{
    iq_cuda_factor_state_t layout = iq_cuda_factor_lay_state(call->max_batch, call->m, call->n);
    char *base = (char *)state;
    uint8_t *codes = (uint8_t *)base + layout.codes;
    iq_factor_args_t args = {};
    args.call = *call;
    args.shape = {call->m, call->n, call->want_bias};
    args.operand[0] = {x, call->m, codes, layout.columns[0]};
    args.operand[1] = {delta, call->n, codes + call->max_batch * layout.columns[0], layout.columns[1]};
    args.facts = (iq_cuda_factor_facts_t *)base;
    args.rows = (iq_factor_row_t *)(base + layout.rows);
    args.order = (uint32_t *)(base + layout.order);
    args.picks = (iq_cuda_factor_pick_t *)(base + layout.picks);
    return args;
}

static isgq_result_t prepare(int device, isgq_stream_t stream, const iq_cuda_factor_call_t *call, const void *x,
                             const void *delta, void *state, float *peaks)
{
    iq_factor_args_t args = args_of(call, x, delta, state);
    args.peaks = peaks;
    ON_DEVICE(device);
    CUDA_TRY(cudaMemsetAsync, args.facts, 0, sizeof(*args.facts), stream);
    if (call->batch > 0)
        IQ_TRY(iq_factor_measure(device, stream, args));
    if (call->batch > 0 && call->width_x == 0)
        IQ_TRY(iq_factor_spread_rows(device, stream, args));
    return iq_factor_allot_rows(device, stream, args);
}

static isgq_result_t encode(int device, isgq_stream_t stream, const iq_cuda_factor_call_t *call, const void *x, const void *delta,
                            void *state, const float *peaks, void *message)
{
    iq_factor_args_t args = args_of(call, x, delta, state);
    args.shared_peaks = peaks;
    args.starts = (uint32_t *)message;
    args.blob = (uint8_t *)message + iq_cuda_factor_blob_at(call->max_batch);
    ON_DEVICE(device);
    IQ_TRY(iq_factor_pick_rows(device, stream, args));
    return iq_factor_write_rows(device, stream, args);
}

static isgq_result_t decode(int device, isgq_stream_t stream, const iq_cuda_factor_call_t *call, const void *messages, int ranks,
                            void *rows, uint32_t *fault)
{
    ON_DEVICE(device);
    return iq_factor_decode_rows(device, stream, call, messages, ranks, rows, fault);
}

static isgq_result_t multiply(int device, isgq_stream_t stream, const iq_cuda_factor_call_t *call, void *rows, int ranks,
                              const iq_cuda_outcome_t *grad, const iq_cuda_outcome_t *bias)
{
    ON_DEVICE(device);
    return iq_factor_multiply_rows(device, stream, call, rows, ranks, grad, bias);
}

isgq_result_t iq_cuda_warm_factor(int device)
{
    IQ_TRY(iq_factor_warm_measure(device));
    IQ_TRY(iq_factor_warm_choose(device));
    IQ_TRY(iq_factor_warm_write(device));
    IQ_TRY(iq_factor_warm_decode(device));
    return iq_factor_warm_multiply(device);
}

const iq_cuda_factor_table_t iq_cuda_factor_table = {prepare, encode, decode, multiply};
