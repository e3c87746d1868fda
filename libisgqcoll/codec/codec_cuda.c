/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the device rows of all codecs share: which row belongs to which, launches, and faults that kernels find.
 *
 * Most functions of a row return nothing, because on the host they cannot fail. Launches can: the first failure is kept, and the
 * work after it is dropped, since its inputs would be garbage.
 */
#include "base/status.h"
#include "base/util.h"
#include "codec/dense.h"
#include "codec/device.h"

#include <stdio.h>

typedef struct row {
    const iq_codec_ops_t *host, *device;
    bool (*combine)(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, int nparts,
                    const void *const messages[], int own, const void *src, void *dst, void *result);
} row_t;

static const row_t rows[] = {
    {&iq_codec_none_ops, &iq_codec_none_cuda_ops, iq_none_combine},
    {&iq_codec_fp16_ops, &iq_codec_fp16_cuda_ops, iq_cast_combine},
    {&iq_codec_bf16_ops, &iq_codec_bf16_cuda_ops, iq_cast_combine},
    {&iq_codec_uniform_ops, &iq_codec_uniform_cuda_ops, iq_uniform_combine},
    {&iq_codec_uniform_norm_ops, &iq_codec_uniform_norm_cuda_ops, iq_uniform_combine},
    {&iq_codec_exponential_ops, &iq_codec_exponential_cuda_ops, NULL},
    {&iq_codec_intsgd_ops, &iq_codec_intsgd_cuda_ops, iq_intsgd_combine},
    {&iq_codec_levels_ops, &iq_codec_levels_cuda_ops, NULL},
};

static const row_t *row_of(const iq_codec_ops_t *ops)
{
    for (size_t i = 0; i < IQ_ARRAY_SIZE(rows); i++) {
        if (ops == rows[i].host || ops == rows[i].device)
            return &rows[i];
    }
    return NULL;
}

const iq_codec_ops_t *iq_codec_on_device(const iq_codec_ops_t *host)
{
    const row_t *row = row_of(host);
    return row == NULL ? NULL : row->device;
}

bool iq_codec_has_device(const iq_codec_t *codec)
{
    if (codec->ops == &iq_codec_levels_ops || codec->ops == &iq_codec_levels_cuda_ops)
        return iq_levels_on_device(codec);
    return row_of(codec->ops) != NULL;
}

bool iq_codec_is_hosted(const iq_codec_t *codec) { return codec->ops == &iq_codec_coded_ops; }

bool iq_codec_combine(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, int nparts,
                      const void *const messages[], int own, const void *src, void *dst, void *result)
{
    const row_t *row = row_of(codec->ops);
    if (row == NULL || row->combine == NULL || nparts < 1 || nparts > IQ_CUDA_PARTS)
        return false;
    return row->combine(codec, call, span, nparts, messages, own, src, dst, result);
}

/* ---- faults ---- */

static const char *fault_text(uint32_t fault)
{
    switch (fault) {
    case IQ_CUDA_BAD_CODE: return "a code of a message is above the largest one";
    case IQ_CUDA_BAD_PADDING: return "bits set after the last code of a message";
    case IQ_CUDA_BAD_BLOB: return "a factored blob or the table of its rows is damaged";
    case IQ_CUDA_BAD_HEADER: return "a header of a message is none that a sender writes";
    case IQ_CUDA_BAD_SCALE: return "a scale of a message is negative or NaN";
    default: return "a fault that this version does not know";
    }
}

isgq_result_t iq_device_check(iq_device_t *device, const char *codec)
{
    uint32_t fault = __atomic_exchange_n(device->fault, IQ_CUDA_NO_FAULT, __ATOMIC_ACQUIRE);
    if (device->result != ISGQ_SUCCESS) {
        iq_set_last_error(device->text);
        return device->result;
    }
    return fault == IQ_CUDA_NO_FAULT ? ISGQ_SUCCESS : IQ_FAIL(ISGQ_ERR_CORRUPT, "codec %s: %s", codec, fault_text(fault));
}

/* ---- launches ---- */

static bool may_launch(const iq_device_t *device, size_t size) { return size > 0 && device->result == ISGQ_SUCCESS; }

/* Another thread may be the one that finds the failure. */
static void keep(iq_device_t *device, isgq_result_t result)
{
    device->result = result;
    if (result != ISGQ_SUCCESS)
        snprintf(device->text, sizeof(device->text), "%s", iq_last_error());
}

void iq_device_copy(iq_device_t *device, void *dst, const void *src, size_t bytes)
{
    if (may_launch(device, bytes))
        keep(device, device->cuda->copy(device->ordinal, device->stream, dst, src, bytes));
}

void iq_device_clear(iq_device_t *device, void *dst, size_t bytes)
{
    if (may_launch(device, bytes))
        keep(device, device->cuda->clear(device->ordinal, device->stream, dst, bytes));
}

void iq_device_reduce(iq_device_t *device, const iq_cuda_reduce_t *reduce)
{
    if (may_launch(device, reduce->count))
        keep(device, device->cuda->reduce(device->ordinal, device->stream, reduce));
}

void iq_device_divide(iq_device_t *device, const iq_cuda_divide_t *divide)
{
    if (may_launch(device, divide->count))
        keep(device, device->cuda->divide(device->ordinal, device->stream, divide));
}

void iq_device_map(iq_device_t *device, iq_cuda_map_t map)
{
    map.fault = device->fault;
    if (may_launch(device, map.count))
        keep(device, device->cuda->map(device->ordinal, device->stream, &map));
}

void iq_device_product(iq_device_t *device, const iq_cuda_product_t *product)
{
    if (may_launch(device, product->m) && may_launch(device, product->n))
        keep(device, device->cuda->product(device->ordinal, device->stream, product));
}

void iq_device_convert(iq_device_t *device, const iq_cuda_convert_t *convert)
{
    if (may_launch(device, convert->count))
        keep(device, device->cuda->convert(device->ordinal, device->stream, convert));
}

void iq_device_encode_levels(iq_device_t *device, iq_cuda_levels_t levels)
{
    levels.replays = device->replays;
    if (may_launch(device, levels.count))
        keep(device, device->cuda->level->encode(device->ordinal, device->stream, &levels));
}

void iq_device_decode_levels(iq_device_t *device, iq_cuda_levels_t levels)
{
    levels.fault = device->fault;
    levels.replays = device->replays;
    if (may_launch(device, levels.count))
        keep(device, device->cuda->level->decode(device->ordinal, device->stream, &levels));
}

void iq_device_combine(iq_device_t *device, iq_cuda_combine_t combine)
{
    combine.fault = device->fault;
    if (may_launch(device, combine.count))
        keep(device, device->cuda->combine(device->ordinal, device->stream, &combine));
}

void iq_device_measure(iq_device_t *device, const iq_cuda_source_t *source, iq_span_t span, size_t bucket, float *scales)
{
    if (may_launch(device, span.count))
        keep(device, device->cuda->measure(device->ordinal, device->stream, source, span.first, bucket, span.count, scales));
}

void iq_device_moments(iq_device_t *device, const iq_cuda_moments_t *moments)
{
    if (may_launch(device, moments->count))
        keep(device, device->cuda->moments(device->ordinal, device->stream, moments));
}

void iq_device_rescale(iq_device_t *device, const iq_cuda_rescale_t *rescale)
{
    if (may_launch(device, rescale->buckets))
        keep(device, device->cuda->rescale(device->ordinal, device->stream, rescale));
}

void iq_device_feedback(iq_device_t *device, const iq_cuda_feedback_t *feedback)
{
    if (may_launch(device, feedback->count))
        keep(device, device->cuda->feedback(device->ordinal, device->stream, feedback));
}

void iq_device_exponent(iq_device_t *device, iq_cuda_exponent_t exponent)
{
    exponent.fault = device->fault;
    exponent.replays = device->replays;
    if (may_launch(device, exponent.count))
        keep(device, device->cuda->exponent(device->ordinal, device->stream, &exponent));
}
