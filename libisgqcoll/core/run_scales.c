/* SPDX-License-Identifier: Apache-2.0 */
/* Shared scales of a dense call: measured by each rank, agreed on, opened; the stages before the data. */
#include "base/util.h"
#include "codec/device.h"
#include "core/run.h"

#include <string.h>

/* How much of a tensor is measured in one trip: a chunk, so that hosts look at the network in between; a stream takes all of it. */
static size_t measured_piece(const iq_run_t *run, const iq_codec_t *codec, size_t element_bytes, size_t count)
{
    size_t piece = iq_chunk_elements(run->site->chunk_bytes, element_bytes);
    size_t unit = codec->ops->scales_unit == NULL ? 1 : codec->ops->scales_unit(codec);
    return run->site->streams || unit >= count ? count : iq_align_up(piece, unit);
}

/* The stage whose data these are: scales, agreement, opening, then the data. */
static const iq_stage_t *stage_of_scales(const iq_run_t *run)
{
    const iq_stage_t *stage = &run->stages[run->stage];
    while (stage->codec_call.scales != run->scales)
        stage++;
    return stage;
}

static isgq_result_t work_scales(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    const iq_stage_t *data = stage_of_scales(run);
    size_t count = data->plan->count;
    size_t piece = measured_piece(run, &data->codec, data->element_bytes, count);
    iq_span_t span = {trip * piece, iq_min(piece, count - trip * piece)};
    (void)comm;
    data->codec.ops->local_scales(&data->codec, &data->own_call, span, data->src + span.first * data->own_bytes, run->scales);
    if (data->codec.ops->close_scales != NULL && span.first + span.count == count)
        data->codec.ops->close_scales(&data->codec, &data->codec_call, count, run->scales);
    return ISGQ_SUCCESS;
}

static isgq_result_t work_open_scales(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    const iq_stage_t *data = stage_of_scales(run);
    (void)comm, (void)trip;
    data->codec.ops->open_scales(&data->codec, &data->codec_call, data->plan->count, run->scales);
    return ISGQ_SUCCESS;
}

/* A budget counts the bytes of what ranks sum up, so these take two rounds where one costs N times as many; both add in rank order. */
static isgq_result_t scales_algorithm(isgq_comm_t comm, const iq_members_t *among, isgq_red_op_t op, size_t shared, const iq_algorithm_t **algorithm)
{
    if (op == ISGQ_MAX || shared <= IQ_SCALES_IN_ONE_ROUND)
        return iq_run_exact_algorithm(comm, among, IQ_ALLREDUCE, ISGQ_FLOAT32, op, shared, algorithm);
    *algorithm = iq_algorithm_find(IQ_ALLREDUCE, "direct");
    return ISGQ_SUCCESS;
}

isgq_result_t iq_run_take_scales(iq_run_t *run, const iq_codec_t *codec, size_t count)
{
    run->scales = iq_run_take(run, iq_codec_scales(codec, count) * sizeof(float));
    return run->scales != NULL ? ISGQ_SUCCESS : ISGQ_ERR_NO_MEMORY;
}

isgq_result_t iq_run_add_scales(isgq_comm_t comm, iq_run_t *run, iq_members_t among, const iq_codec_t *codec, const iq_codec_call_t *codec_call)
{
    size_t count = codec_call->count, element_bytes = iq_datatype_bytes(codec_call->datatype);
    const iq_codec_ops_t *ops = codec->ops;
    size_t room = iq_codec_scales(codec, count), shared = ops->shared_scales == NULL ? room : ops->shared_scales(codec, count);
    isgq_red_op_t op = ops->scales_op == NULL ? ISGQ_MAX : ops->scales_op(codec);
    const iq_algorithm_t *algorithm;
    if (iq_run_on_device(run))
        iq_device_clear(run->site->device, run->scales, room * sizeof(float));
    else
        memset(run->scales, 0, room * sizeof(float));
    iq_run_add_work(run, "scales", work_scales, iq_ceil_div(count, measured_piece(run, codec, element_bytes, count)));
    IQ_TRY(scales_algorithm(comm, &among, op, shared, &algorithm));
    IQ_TRY(iq_run_add_sum(comm, run, among, op == ISGQ_MAX ? "maximum of scales" : "sum of scales", algorithm, ISGQ_FLOAT32, op, shared, run->scales,
                          iq_run_on_device(run)));
    iq_run_add_learning(run);
    if (ops->open_scales != NULL)
        iq_run_add_work(run, "agreed scales", work_open_scales, 1);
    return ISGQ_SUCCESS;
}
