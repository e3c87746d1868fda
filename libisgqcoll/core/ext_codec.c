/* SPDX-License-Identifier: Apache-2.0 */
/*
 * isgqx_encode, isgqx_decode: a codec without a communicator, for programs that time it.
 *
 *   message: [what ranks agree on: floats] then for each chunk [bytes, u32][partial(1)]
 */
#include "isgqcoll_ext.h"

#include "base/status.h"
#include "base/util.h"
#include "codec/quantizer.h"
#include "codec/strata.h"

#include <stdlib.h>
#include <string.h>

#define CHUNK 16384 /* elements, as in calls of f32 */

/* One contribution being encoded or decoded. */
typedef struct work {
    iq_codec_t codec;
    iq_codec_call_t call;
    size_t count, element_bytes, nscales;
    float *scales;      /* [nscales] */
    unsigned char *acc; /* of one chunk */
    uint32_t strata[IQ_STRATA];
} work_t;

static isgq_result_t check(const isgqx_contribution_t *contribution, const char *operation)
{
    if (contribution == NULL || contribution->size != sizeof(*contribution))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "%s: contribution is NULL or of another size", operation);
    if (contribution->quantizer == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "%s: quantizer is NULL", operation);
    if (iq_datatype_bytes(contribution->datatype) == 0)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "%s: datatype %d is none", operation, (int)contribution->datatype);
    if (contribution->count > SIZE_MAX / 16)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "%s: %zu elements are too many", operation, contribution->count);
    return ISGQ_SUCCESS;
}

static isgq_result_t begin(work_t *work, const isgqx_contribution_t *contribution, const char *operation)
{
    IQ_TRY(check(contribution, operation));
    *work = (work_t){.count = contribution->count};
    work->call = (iq_codec_call_t){.datatype = contribution->datatype,
                                   .op = ISGQ_SUM,
                                   .nranks = 1,
                                   .seed = contribution->seed,
                                   .call = contribution->call,
                                   .count = contribution->count,
                                   .strata = work->strata};
    work->element_bytes = iq_datatype_bytes(contribution->datatype);
    IQ_TRY(iq_quantizer_dense(contribution->quantizer, 1, false, &work->codec));
    if (work->codec.power_rank != 0)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "%s: quantizer '%s' has no contribution without the other ranks", operation,
                       contribution->quantizer->text);
    const iq_codec_ops_t *ops = work->codec.ops;
    IQ_TRY(ops->supports(&work->codec, contribution->datatype, ISGQ_SUM));
    iq_strata_fill(contribution->seed, 1, 0, work->strata);
    work->nscales = ops->needs_scales(&work->codec) ? iq_codec_scales(&work->codec, work->count) : 0;
    return ISGQ_SUCCESS;
}

/* Memory for what is worked on; freed by end(). */
static isgq_result_t take_memory(work_t *work, const char *operation)
{
    size_t acc = iq_align_up(CHUNK * work->codec.ops->acc_bytes(&work->codec, &work->call), 64);
    work->scales = aligned_alloc(64, iq_align_up(work->nscales * sizeof(float) + 1, 64));
    work->acc = aligned_alloc(64, acc);
    if (work->scales == NULL || work->acc == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "%s: no memory for %zu scales and sums of %zu bytes", operation, work->nscales, acc);
    return ISGQ_SUCCESS;
}

static void end(work_t *work)
{
    free(work->scales);
    free(work->acc);
}

static iq_span_t chunk_at(const work_t *work, size_t first) { return (iq_span_t){first, iq_min(CHUNK, work->count - first)}; }

static size_t most_bytes(const work_t *work)
{
    size_t bytes = work->nscales * sizeof(float);
    for (size_t first = 0; first < work->count; first += CHUNK)
        bytes += sizeof(uint32_t) + work->codec.ops->partial_bytes(&work->codec, &work->call, chunk_at(work, first), 1);
    return bytes;
}

/* What a communicator of one rank agrees on. */
static void measure(work_t *work, const unsigned char *src)
{
    const iq_codec_ops_t *ops = work->codec.ops;
    size_t unit = ops->scales_unit == NULL ? 1 : ops->scales_unit(&work->codec);
    size_t piece = unit >= work->count ? work->count : iq_align_up(CHUNK, unit);
    memset(work->scales, 0, work->nscales * sizeof(float));
    for (size_t first = 0; first < work->count; first += piece) {
        iq_span_t span = {first, iq_min(piece, work->count - first)};
        ops->local_scales(&work->codec, &work->call, span, src + first * work->element_bytes, work->scales);
    }
    if (ops->close_scales != NULL)
        ops->close_scales(&work->codec, &work->call, work->count, work->scales);
    if (ops->open_scales != NULL)
        ops->open_scales(&work->codec, &work->call, work->count, work->scales);
    work->call.scales = work->scales;
}

static size_t encode(work_t *work, const unsigned char *src, unsigned char *message)
{
    unsigned char *at = message;
    if (work->nscales > 0) {
        measure(work, src);
        memcpy(at, work->scales, work->nscales * sizeof(float));
        at += work->nscales * sizeof(float);
    }
    for (size_t first = 0; first < work->count; first += CHUNK) {
        iq_span_t span = chunk_at(work, first);
        uint32_t bytes = (uint32_t)work->codec.ops->partial_bytes(&work->codec, &work->call, span, 1);
        unsigned char *partial = at + sizeof(bytes);
        work->codec.ops->encode(&work->codec, &work->call, span, src + first * work->element_bytes, partial);
        if (work->codec.ops->varies)
            memcpy(&bytes, partial, sizeof(bytes));
        memcpy(at, &bytes, sizeof(bytes));
        at = partial + bytes;
    }
    return (size_t)(at - message);
}

isgq_result_t isgqx_encode(const isgqx_contribution_t *contribution, const void *src, void *message, size_t room, size_t *bytes)
{
    work_t work;
    if (bytes == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "encode: bytes is NULL");
    IQ_TRY(begin(&work, contribution, "encode"));
    size_t most = most_bytes(&work);
    *bytes = most;
    if (message == NULL)
        return ISGQ_SUCCESS;
    if (src == NULL && work.count > 0)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "encode: src is NULL");
    if (room < most)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "encode: %zu bytes of room, %zu are needed", room, most);
    isgq_result_t result = take_memory(&work, "encode");
    if (result == ISGQ_SUCCESS)
        *bytes = encode(&work, src, message);
    end(&work);
    return result;
}

/* One chunk at *at; *at moves behind it. */
static isgq_result_t decode_chunk(work_t *work, iq_span_t span, const unsigned char **at, const unsigned char *last, unsigned char *dst)
{
    const iq_codec_ops_t *ops = work->codec.ops;
    size_t most = ops->partial_bytes(&work->codec, &work->call, span, 1);
    uint32_t bytes = 0, own = 0;
    if ((size_t)(last - *at) < sizeof(bytes))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "decode: the message ends before element %zu", span.first);
    memcpy(&bytes, *at, sizeof(bytes));
    *at += sizeof(bytes);
    if (ops->varies && bytes >= sizeof(own) && bytes <= (size_t)(last - *at))
        memcpy(&own, *at, sizeof(own));
    if (bytes > (size_t)(last - *at) || bytes > most || bytes != (ops->varies ? own : most) || (bytes == 0 && most > 0))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "decode: the chunk at element %zu cannot have %u bytes", span.first, bytes);
    IQ_TRY(ops->add(&work->codec, &work->call, span, *at, 1, work->acc, true));
    ops->deliver(&work->codec, &work->call, span, work->acc, dst + span.first * work->element_bytes);
    *at += bytes;
    return ISGQ_SUCCESS;
}

static isgq_result_t decode(work_t *work, const unsigned char *message, size_t bytes, unsigned char *dst)
{
    const unsigned char *at = message, *last = message + bytes;
    if (bytes < work->nscales * sizeof(float))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "decode: %zu bytes do not hold %zu scales", bytes, work->nscales);
    if (work->nscales > 0) {
        memcpy(work->scales, at, work->nscales * sizeof(float));
        at += work->nscales * sizeof(float);
        work->call.scales = work->scales;
    }
    for (size_t first = 0; first < work->count; first += CHUNK)
        IQ_TRY(decode_chunk(work, chunk_at(work, first), &at, last, dst));
    if (at != last)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "decode: %zu bytes are left behind the last element", (size_t)(last - at));
    return ISGQ_SUCCESS;
}

isgq_result_t isgqx_decode(const isgqx_contribution_t *contribution, const void *message, size_t bytes, void *dst)
{
    work_t work;
    IQ_TRY(begin(&work, contribution, "decode"));
    if (work.count > 0 && (message == NULL || dst == NULL))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "decode: %s is NULL", message == NULL ? "message" : "dst");
    isgq_result_t result = take_memory(&work, "decode");
    if (result == ISGQ_SUCCESS)
        result = decode(&work, message, bytes, dst);
    end(&work);
    return result;
}
