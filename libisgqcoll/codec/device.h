/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dense codecs on device memory: rows of the same table as on the host, with the same messages and bits.
 *
 * local_scales, encode, add_own, add, store, finish, decode and deliver of such a row only enqueue work, in the order of the
 * calls, on the stream of call->device. Inputs, outputs, accumulators and all scales lie in device memory; messages lie there or
 * in pinned host memory, aligned to 4 bytes, and for codec none to their elements. Nothing allocates. A launch that fails shows
 * in device->result and in what add and decode return, and nothing is launched after it. What is wrong with a message's contents
 * shows in iq_device_check once the work is done.
 */
#ifndef ISGQ_CODEC_DEVICE_H
#define ISGQ_CODEC_DEVICE_H

#include "base/status.h"
#include "codec/codec.h"
#include "kernels/cuda/cuda_module.h"

/* Where one communicator's work goes. */
typedef struct iq_device {
    const iq_cuda_module_t *cuda;
    int ordinal;
    isgq_stream_t stream;
    uint32_t *fault;      /* one word of pinned memory, 0 at the start: an iq_cuda_fault_t from kernels */
    float *scratch;       /* device memory for scales, of the stream alone */
    size_t scratch_bytes; /* iq_codec_device_scratch of the codecs in use */
    isgq_result_t result; /* the first launch that failed; ISGQ_SUCCESS at the start */
    char text[IQ_ERROR_TEXT_BYTES]; /* what was wrong with it */
} iq_device_t;

/* The row that does on device memory what `host` does; NULL if there is none. A device row gives itself. */
const iq_codec_ops_t *iq_codec_on_device(const iq_codec_ops_t *host);

/* Bytes of device->scratch for spans of at most `count` elements: some codecs measure before they write. */
size_t iq_codec_device_scratch(const iq_codec_t *codec, size_t count);

/* For when the stream has done its work: device->result if a launch failed, ISGQ_ERR_CORRUPT with a sentence if a message was
 * damaged. Forgets the damage, not the failure. The sentence names `codec`. */
isgq_result_t iq_device_check(iq_device_t *device, const char *codec);

/* ---- launches on device->stream, for the rows and for factored calls; sizes of 0 launch nothing ---- */

void iq_device_copy(iq_device_t *device, void *dst, const void *src, size_t bytes);
void iq_device_clear(iq_device_t *device, void *dst, size_t bytes);
void iq_device_reduce(iq_device_t *device, const iq_cuda_reduce_t *reduce);
void iq_device_divide(iq_device_t *device, const iq_cuda_divide_t *divide);
void iq_device_map(iq_device_t *device, iq_cuda_map_t map); /* its faults go to device->fault */
void iq_device_product(iq_device_t *device, const iq_cuda_product_t *product);
void iq_device_convert(iq_device_t *device, const iq_cuda_convert_t *convert);
void iq_device_measure(iq_device_t *device, const iq_cuda_source_t *source, iq_span_t span, size_t bucket, float *scales);

/* Elements of a type as a map's source, divided by nothing, and as its target. */
static inline iq_cuda_source_t iq_device_values(isgq_data_type_t type, const void *data)
{
    return (iq_cuda_source_t){.form = IQ_CUDA_VALUES, .type = type, .data = data, .divisor = 1.0f};
}

static inline iq_cuda_target_t iq_device_output(isgq_data_type_t type, void *data, bool accumulate)
{
    return (iq_cuda_target_t){.form = IQ_CUDA_VALUES, .type = type, .data = data, .accumulate = accumulate};
}

#endif
