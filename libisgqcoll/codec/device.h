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
    uint32_t *fault;                /* one word of pinned memory, 0 at the start: an iq_cuda_fault_t from kernels */
    float *scratch;                 /* device memory for scales, of the stream alone */
    size_t scratch_bytes;           /* iq_codec_device_scratch of the codecs in use */
    const uint32_t *strata;         /* call->strata in device memory; NULL where nothing is rounded so */
    const uint32_t *replays;        /* of the graph that the work is captured into, see iq_cuda_grid_t; else NULL */
    isgq_result_t result;           /* the first launch that failed; ISGQ_SUCCESS at the start */
    char text[IQ_ERROR_TEXT_BYTES]; /* what was wrong with it */
} iq_device_t;

/* The row that does on device memory what `host` does; NULL if there is none. A device row gives itself. */
const iq_codec_ops_t *iq_codec_on_device(const iq_codec_ops_t *host);

/* Is this codec there for device memory, with these settings? */
bool iq_codec_has_device(const iq_codec_t *codec);

/* It works on hosts alone, for tensors of devices too: whoever calls it brings these there. */
bool iq_codec_is_hosted(const iq_codec_t *codec);

/* Bytes of device->scratch for spans of at most `count` elements: some codecs measure before they write. */
#define IQ_DEVICE_MOMENTS_BYTES ((size_t)96 << 10) /* of it, whatever the count, for codecs that agree on moments */
size_t iq_codec_device_scratch(const iq_codec_t *codec, size_t count);

/*
 * The whole sum in one pass, where partial(1) of all ranks are at hand: what add_own and add of one message after the other, in
 * this order, and then finish, decode and deliver would write, in the same bits. messages[own] is NULL: that is `src`; own < 0:
 * all are messages. dst and result may be NULL. With a result that is rounded, dst becomes what that decodes to; without one,
 * what deliver writes. False: this codec and call have no such form, or nparts > IQ_CUDA_PARTS; nothing is launched.
 */
bool iq_codec_combine(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, int nparts,
                      const void *const messages[], int own, const void *src, void *dst, void *result);

/*
 * Messages that any sum of uint32_t adds up: codes in lanes of 32-bit words, wide enough for the sum of call->nranks. The words
 * of all ranks added together decode to the bits of every other way to an exact sum. Words are aligned to 4 bytes.
 */
size_t iq_codec_lane_bytes(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span); /* 0: there is no such form */
void iq_codec_encode_lanes(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *words);
void iq_codec_decode_lanes(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *words, void *dst);

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
void iq_device_combine(iq_device_t *device, iq_cuda_combine_t combine); /* faults as above */
void iq_device_encode_levels(iq_device_t *device, iq_cuda_levels_t levels); /* with the device's replays, and faults as above */
void iq_device_decode_levels(iq_device_t *device, iq_cuda_levels_t levels);
void iq_device_convert(iq_device_t *device, const iq_cuda_convert_t *convert);
void iq_device_moments(iq_device_t *device, const iq_cuda_moments_t *moments);
void iq_device_rescale(iq_device_t *device, const iq_cuda_rescale_t *rescale);
void iq_device_exponent(iq_device_t *device, iq_cuda_exponent_t exponent); /* with the device's replays, and faults as above */
void iq_device_feedback(iq_device_t *device, const iq_cuda_feedback_t *feedback);
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
