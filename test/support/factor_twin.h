/* SPDX-License-Identifier: Apache-2.0 */
/* The ranks of factor_ranks.h once more, on a device, for tests of what module "cuda" does for factored calls. */
#ifndef ISGQ_TEST_SUPPORT_FACTOR_TWIN_H
#define ISGQ_TEST_SUPPORT_FACTOR_TWIN_H

#include "codec/factor_device.h"
#include "support/cuda_box.h"
#include "support/factor_ranks.h"
#include "support/require.h"

typedef struct device {
    ranks_t *host; /* the same ranks on the host */
    iq_cuda_factor_call_t call;
    box_t state, peaks, shared, messages, rows, fault;
    size_t message_bytes, blob_at;
} device_t;

static inline iq_cuda_factor_call_t call_for(const ranks_t *ranks, int r)
{
    iq_factor_call_t call = call_of(ranks, r);
    return iq_factor_on_device(&ranks->spec, &call, NULL);
}

static inline device_t device_open(ranks_t *host)
{
    device_t device = {.host = host, .call = call_for(host, 0)};
    size_t ranks = (size_t)host->call.nranks, max_batch = host->call.max_batch;
    device.blob_at = iq_cuda_factor_blob_at(max_batch);
    device.message_bytes = iq_cuda_factor_message_bytes(max_batch, device.call.blob_bytes);
    device.state = box_new(iq_cuda_factor_lay_state(max_batch, host->call.m, host->call.n).bytes, 0);
    device.peaks = box_new(8, 4);
    device.shared = box_new(8, 4);
    device.messages = box_new(ranks * device.message_bytes, 0);
    device.rows = box_new(iq_cuda_factor_lay_rows(&device.call, ranks).bytes, 0);
    device.fault = box_new(4, 4);
    return device;
}

static inline void device_close(device_t *device)
{
    box_free(&device->state);
    box_free(&device->peaks);
    box_free(&device->shared);
    box_free(&device->messages);
    box_free(&device->rows);
    box_free(&device->fault);
}

static inline box_t factor_box(const ranks_t *ranks, const void *factor, size_t elements, size_t skew)
{
    size_t each = value_bytes(ranks->call.datatype);
    box_t box = box_new(elements * each, skew * each);
    memcpy(box.host, factor, elements * each);
    box_push(&box);
    return box;
}

static inline unsigned char *message_of(const device_t *device, const unsigned char *messages, int r)
{
    return (unsigned char *)(uintptr_t)messages + (size_t)r * device->message_bytes;
}

/* false: the messages were refused. */
static inline bool decode_messages(const device_t *device)
{
    memset(device->fault.host, 0, 4);
    box_push(&device->fault);
    REQUIRE(cuda->factor->decode(0, cuda_stream, &device->call, device->messages.device, device->host->call.nranks,
                                 device->rows.device, (uint32_t *)(void *)device->fault.device) == ISGQ_SUCCESS);
    uint32_t fault;
    memcpy(&fault, box_result(&device->fault), 4);
    REQUIRE(fault == IQ_CUDA_NO_FAULT || fault == IQ_CUDA_BAD_BLOB);
    return fault == IQ_CUDA_NO_FAULT;
}

#endif
