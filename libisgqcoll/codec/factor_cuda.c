/* SPDX-License-Identifier: Apache-2.0 */
/* The factored codec on device memory: see factor_device.h. */
#include "base/util.h"
#include "codec/factor_device.h"
#include "codec/factor_internal.h"

/* Beyond any scratch, and far from overflow. */
#define IMPOSSIBLE ((size_t)1 << 60)

iq_cuda_factor_call_t iq_factor_on_device(const iq_factor_spec_t *spec, const iq_factor_call_t *call, const uint32_t *replays)
{
    bool fixed = spec->budget_bits == 0;
    return (iq_cuda_factor_call_t){.type = call->datatype,
                                   .rank = call->rank,
                                   .seed = call->seed,
                                   .call = call->call,
                                   .replays = replays,
                                   .max_batch = call->max_batch,
                                   .batch = call->batch,
                                   .m = call->m,
                                   .n = call->n,
                                   .want_bias = call->want_bias,
                                   .nearest = spec->nearest,
                                   .width_x = fixed ? spec->width_x : 0,
                                   .width_delta = fixed ? spec->width_delta : 0,
                                   .budget = fixed ? 0 : (double)iq_factor_budget(spec, call, call->batch),
                                   .blob_bytes = iq_factor_blob_bytes(spec, call)};
}

size_t iq_factor_device_bytes(const iq_factor_spec_t *spec, const iq_factor_call_t *call, size_t ranks)
{
    iq_cuda_factor_call_t device = iq_factor_on_device(spec, call, NULL);
    size_t codes;
    if (device.blob_bytes == 0 || device.blob_bytes > UINT32_MAX || call->m > UINT32_MAX || call->n > UINT32_MAX ||
        !iq_checked_mul(2 * ranks * call->max_batch + IQ_FACTOR_BANDS * IQ_FACTOR_STEP_ROWS, call->m + call->n + 64, &codes) ||
        codes > IMPOSSIBLE / 8)
        return IMPOSSIBLE;
    return iq_cuda_factor_lay_state(call->max_batch, call->m, call->n).bytes + iq_cuda_factor_lay_rows(&device, ranks).bytes +
           ranks * iq_cuda_factor_message_bytes(call->max_batch, device.blob_bytes) + 8 * IQ_CACHE_LINE;
}

bool iq_factor_has_device(const iq_factor_spec_t *spec)
{
    return spec->method == IQ_FACTOR_ROWS && !spec->dither && !spec->coded && !spec->svd && spec->budget_nmse == 0.0;
}
