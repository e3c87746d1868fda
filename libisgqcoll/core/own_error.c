/* SPDX-License-Identifier: Apache-2.0 */
/* The error of a rank's own contribution: see own_error.h. Norms of residuals are summed in the order in which the plan comes by the spans,
 * what beta follows from does not depend on it (kernels/feedback_math.h). */
#include "core/own_error.h"

#include "base/status.h"
#include "base/util.h"
#include "codec/convert.h"
#include "codec/device.h"
#include "core/step.h"

#include <math.h>
#include <string.h>

/* Accumulators are at most twice the input, as in run.c; values of 16 bits become f32. */
#define ACC_BYTES 4
#define VALUE_BYTES 2

#define LANES 8

size_t iq_own_error_room(size_t chunk_bytes) { return (ACC_BYTES + VALUE_BYTES) * iq_max(chunk_bytes, 1024); }

void iq_own_error_place(iq_own_error_t *own, unsigned char *room, size_t chunk_bytes)
{
    own->acc = room;
    own->values = (float *)(void *)(room + ACC_BYTES * iq_max(chunk_bytes, 1024));
}

void iq_own_error_add(iq_own_error_t *own, iq_span_t span)
{
    float tile[IQ_CODEC_TILE];
    for (size_t i = span.first; i < span.first + span.count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(span.first + span.count - i, IQ_CODEC_TILE);
        const iq_f32_any_t *from = iq_load_f32(own->datatype, own->gradient, i, n, tile);
        size_t corrected = i < own->corrected ? iq_min(n, own->corrected - i) : 0;
        for (size_t j = 0; j < corrected; j++)
            own->input[i + j] = iq_feedback_add(from[j], own->beta, own->residual[i + j], &own->residual[i + j]);
        for (size_t j = corrected; j < n; j++)
            own->input[i + j] = from[j];
    }
}

/* C(v): the sum of this one contribution, delivered. */
static void decode_own(const iq_step_data_t *data, const void *message)
{
    const iq_stage_t *stage = data->stage;
    const iq_codec_ops_t *ops = stage->codec.ops;
    iq_codec_call_t alone = stage->own_call;
    if (message == NULL)
        ops->add_own(&stage->codec, &stage->own_call, data->span, data->src, stage->own->acc, true);
    else if (ops->add(&stage->codec, &stage->own_call, data->span, message, 1, stage->own->acc, true) != ISGQ_SUCCESS)
        iq_assert(false); /* this rank wrote it */
    alone.datatype = ISGQ_FLOAT32;
    alone.op = ISGQ_SUM;
    alone.nranks = ops->counts_parts ? alone.nranks : 1;
    alone.accumulate = false;
    ops->deliver(&stage->codec, &alone, data->span, stage->own->acc, stage->own->values);
}

/* In LANES columns, which are added up in order at the end: the same whatever the width of vectors. */
static double sum_squares(const float *values, size_t count)
{
    double columns[LANES] = {0}, sum = 0.0;
    size_t whole = count / LANES * LANES;
    for (size_t i = 0; i < whole; i += LANES)
        for (size_t lane = 0; lane < LANES; lane++)
            columns[lane] += (double)values[i + lane] * (double)values[i + lane];
    for (size_t i = whole; i < count; i++)
        columns[i - whole] += (double)values[i] * (double)values[i];
    for (size_t lane = 0; lane < LANES; lane++)
        sum += columns[lane];
    return sum;
}

/* `count` values of a span, the first of which begin a group. */
static void add_squares(iq_exact_t *sum, const float *values, size_t count)
{
    float last[IQ_FEEDBACK_GROUP] = {0};
    size_t whole = count / IQ_FEEDBACK_GROUP * IQ_FEEDBACK_GROUP;
    for (size_t first = 0; first < whole; first += IQ_FEEDBACK_GROUP)
        iq_exact_add(sum, iq_feedback_squares(values + first));
    if (whole == count)
        return;
    memcpy(last, values + whole, (count - whole) * sizeof(float));
    iq_exact_add(sum, iq_feedback_squares(last));
}

static float *kept_residual(const iq_own_error_t *own) { return own->next != NULL ? own->next : own->residual; }

/* e = what is left of it + v - C(v), where own->values holds C(v). At most a tile. */
static void keep_error(iq_own_error_t *own, iq_span_t span, size_t offset, const iq_f32_any_t *input, size_t count)
{
    size_t first = span.first + offset;
    const float *decoded = own->values + offset;
    const float *left = own->residual + first;
    float *kept = kept_residual(own) + first;
    if (first >= own->corrected)
        return;
    count = iq_min(count, own->corrected - first);
    for (size_t i = 0; i < count; i++)
        kept[i] = iq_feedback_keep(left[i], input[i], decoded[i]);
    own->residual_square += sum_squares(kept, count);
}

/* At most a tile. */
static void sum_errors(iq_own_error_t *own, size_t offset, const iq_f32_any_t *input, size_t count)
{
    float errors[IQ_CODEC_TILE], inputs[IQ_CODEC_TILE];
    const float *decoded = own->values + offset;
    uint32_t lost = 0;
    for (size_t i = 0; i < count; i++) {
        float error = input[i] - decoded[i];
        bool counts = iq_is_finite(error);
        errors[i] = counts ? error : 0.0f;
        inputs[i] = counts ? input[i] : 0.0f;
        lost += !counts;
    }
    add_squares(&own->error, errors, count);
    add_squares(&own->square, inputs, count);
    own->lost += lost;
}

/* Zeros, and values as large as any in their bucket, or in the part of it that travels in this span. */
static void count_values(iq_own_error_t *own, const iq_codec_t *codec, iq_span_t span)
{
    own->count += span.count;
    for (size_t i = 0, n; i < span.count; i += n) {
        float most = 0.0f;
        n = codec->bucket == 0 ? span.count - i : iq_min(span.count - i, codec->bucket - (span.first + i) % codec->bucket);
        for (size_t j = i; j < i + n; j++)
            most = fmaxf(most, fabsf(own->values[j]));
        for (size_t j = i; j < i + n; j++) {
            own->zeros += own->values[j] == 0.0f;
            own->limits += most > 0.0f && fabsf(own->values[j]) == most;
        }
    }
}

/* ---- the same on a device ---- */

static size_t corrected_in(const iq_own_error_t *own, iq_span_t span)
{
    return span.first < own->corrected ? iq_min(span.count, own->corrected - span.first) : 0;
}

static void keep_on_device(iq_own_error_t *own, const iq_step_data_t *data)
{
    iq_span_t span = data->span;
    iq_cuda_feedback_t keep = {.step = IQ_CUDA_KEEP_ERROR,
                               .input = (const float *)(const void *)data->src,
                               .decoded = own->values,
                               .residual = own->residual + iq_min(span.first, own->corrected),
                               .state = own->state,
                               .count = span.count,
                               .corrected = corrected_in(own, span)};
    iq_device_feedback(own->device, &keep);
}

static void settle_on_device(iq_own_error_t *own, iq_span_t span, float weight, const float *rounded)
{
    iq_cuda_feedback_t settle = {.step = IQ_CUDA_SETTLE_ERROR,
                                 .input = own->values,
                                 .decoded = rounded,
                                 .residual = own->residual + span.first,
                                 .weight = weight,
                                 .count = span.count,
                                 .corrected = corrected_in(own, span)};
    iq_device_feedback(own->device, &settle);
}

void iq_own_error_add_on_device(iq_own_error_t *own, size_t count)
{
    iq_cuda_feedback_t add = {.step = IQ_CUDA_ADD_RESIDUAL,
                              .type = own->datatype,
                              .gradient = own->gradient,
                              .output = own->input,
                              .residual = own->residual,
                              .weighted = own->weighted,
                              .state = own->state,
                              .count = count,
                              .corrected = own->corrected};
    iq_device_feedback(own->device, &add);
}

void iq_own_error_take_estimate(iq_own_error_t *own)
{
    iq_cuda_feedback_t take = {.step = IQ_CUDA_TAKE_ESTIMATE, .state = own->state, .count = 1};
    iq_device_feedback(own->device, &take);
}

/* ---- what steps call ---- */

void iq_own_error_look(const iq_step_data_t *data, const void *message)
{
    iq_own_error_t *own = data->stage->own;
    float tile[IQ_CODEC_TILE];
    if (own == NULL || data->span.count == 0)
        return;
    decode_own(data, own->device == NULL ? message : NULL);
    if (own->device != NULL) {
        keep_on_device(own, data);
        return;
    }
    for (size_t i = 0; i < data->span.count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(data->span.count - i, IQ_CODEC_TILE);
        const iq_f32_any_t *input = iq_load_f32(data->stage->own_call.datatype, data->src, i, n, tile);
        sum_errors(own, i, input, n);
        if (own->corrects)
            keep_error(own, data->span, i, input, n);
    }
    if (own->measures)
        count_values(own, &data->stage->codec, data->span);
}

/* own->values and `rounded`, f32 of a span, are a finished sum before and after its rounding. */
static void settle(iq_own_error_t *own, iq_span_t span, float weight, const float *rounded)
{
    float *residual = kept_residual(own) + span.first;
    size_t count = iq_min(span.count, own->corrected - span.first);
    own->residual_square -= sum_squares(residual, count);
    for (size_t i = 0; i < count; i++)
        residual[i] = iq_feedback_settle(residual[i], weight, own->values[i], rounded[i]);
    own->residual_square += sum_squares(residual, count);
}

void iq_own_error_look_at_result(const iq_step_data_t *data, const void *acc, const void *message)
{
    const iq_stage_t *stage = data->stage;
    iq_own_error_t *own = stage->own;
    iq_codec_call_t call = stage->codec_call;
    float weight = call.op == ISGQ_AVG ? (float)call.nranks : 1.0f; /* residuals are of sums */
    if (own == NULL || !own->corrects)
        return;
    float *decoded = (float *)(void *)own->acc;
    call.datatype = ISGQ_FLOAT32;
    call.accumulate = call.holds = false;
    stage->codec.ops->deliver(&stage->codec, &call, data->span, acc, own->values);
    if (stage->codec.ops->decode(&stage->codec, &call, data->span, message, decoded) != ISGQ_SUCCESS)
        iq_assert(own->device != NULL); /* this rank wrote it; a launch may fail */
    if (data->span.first >= own->corrected)
        return;
    if (own->device != NULL)
        settle_on_device(own, data->span, weight, decoded);
    else
        settle(own, data->span, weight, decoded);
}
