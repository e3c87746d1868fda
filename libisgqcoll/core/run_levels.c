/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Algorithm `levels` of an allreduce: exact inside hosts, the call's codec between them (ADR 0016).
 *
 * The tensor is cut into as many lanes as the smallest host has ranks; rank number l of every host has lane l, and ranks beyond have none.
 *
 *     in every host       reduce_scatter, values as they are: its ranks' sum of lane l ends with rank l
 *     between hosts       in every lane an allreduce of hosts' sums with the codec. It is a tensor of its own, with buckets and scales of its own
 *     in every host       allgather of the finished lanes
 *
 * 16-bit floats are summed, moved and quantized as f32 and rounded once, at the end. A rank without a lane has the stages of lane 0 and skips them,
 * so that messages of later stages name the same number everywhere.
 */
#include "base/util.h"
#include "codec/convert.h"
#include "codec/strata.h"
#include "core/run.h"

#include <string.h>

#define PIECE_ELEMENTS 16384 /* of one trip, so that hosts look at the network in between */
#define LANE_UNIT 32         /* lanes begin at multiples of so many elements */

static bool is_wide(const iq_call_t *call) { return call->datatype == ISGQ_FLOAT16 || call->datatype == ISGQ_BFLOAT16; }

static isgq_data_type_t summed_type(const iq_call_t *call) { return is_wide(call) ? ISGQ_FLOAT32 : call->datatype; }

/* The output holds what is to be added to, or values of another type: then sums lie in scratch. */
static bool has_own_room(const iq_call_t *call) { return is_wide(call) || call->accumulate; }

isgq_result_t iq_levels_check(isgq_comm_t comm, const iq_call_t *call)
{
    if (comm->devices)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "%s: algorithm \"levels\" is for host memory only, and there are ranks on devices",
                       iq_call_kind_name(call->kind));
    if (call->codec.feedback != IQ_FEEDBACK_OFF)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED,
                       "%s: algorithm \"levels\" quantizes sums of hosts, and error feedback of '%s' needs each rank's own; give it feedback=off",
                       iq_call_kind_name(call->kind), isgqx_quantizer_text(call->quantizer));
    return ISGQ_SUCCESS;
}

size_t iq_levels_scratch(const iq_call_t *call)
{
    return has_own_room(call) ? call->count * iq_datatype_bytes(summed_type(call)) + IQ_CACHE_LINE : 0;
}

/* ---- 16-bit floats ---- */

static iq_span_t piece(const iq_run_t *run, size_t trip)
{
    size_t first = trip * PIECE_ELEMENTS;
    return (iq_span_t){first, iq_min(PIECE_ELEMENTS, run->call->count - first)};
}

static isgq_result_t work_widen(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    const iq_call_t *call = run->call;
    iq_span_t span = piece(run, trip);
    float tile[IQ_CODEC_TILE], *sums = (float *)run->level_sums + span.first;
    (void)comm;
    for (size_t i = 0; i < span.count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(span.count - i, IQ_CODEC_TILE);
        memcpy(sums + i, iq_load_f32(call->datatype, call->send, span.first + i, n, tile), n * sizeof(float));
    }
    return ISGQ_SUCCESS;
}

static isgq_result_t work_copy_out(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    const iq_call_t *call = run->call;
    iq_span_t span = piece(run, trip);
    (void)comm;
    iq_store_f32(call->datatype, (const float *)run->level_sums + span.first, span.count, call->accumulate, call->recv, span.first);
    return ISGQ_SUCCESS;
}

/* ---- inside the host ---- */

static isgq_result_t add_in_host(isgq_comm_t comm, iq_run_t *run, iq_collective_t collective, const iq_codec_call_t *codec_call, const void *src,
                                 void *dst, iq_stage_t **stage)
{
    bool sums = collective == IQ_REDUCE_SCATTER;
    iq_members_t host = iq_run_in_host(comm);
    host.lanes = comm->lanes;
    IQ_TRY(iq_run_add_plan(comm, run, sums ? "sums of lanes" : "lanes", iq_algorithm_find(collective, "direct"), &iq_codec_none, codec_call,
                           run->call->count, false, host, stage));
    (*stage)->src = src;
    (*stage)->dst = dst;
    return ISGQ_SUCCESS;
}

/* ---- between hosts ---- */

/* No two lanes round with the same random numbers. */
static uint64_t lane_key(isgq_comm_t comm, uint32_t lane)
{
    uint64_t words[] = {comm->key, lane};
    return iq_hash(IQ_HASH_START, words, sizeof(words));
}

/* A rank that is in no lane knows those of the first, and does not use them. */
void iq_levels_prepare(isgq_comm_t comm)
{
    uint32_t lane = comm->host_index < comm->lanes ? (uint32_t)comm->host_index : 0;
    iq_strata_fill(lane_key(comm, lane), comm->nhosts, comm->lane_index, comm->lane_strata);
}

/* `lanes`: the plan that ended with a lane's sum here. */
static isgq_result_t add_between_hosts(isgq_comm_t comm, iq_run_t *run, const iq_plan_t *lanes, bool averages)
{
    const iq_call_t *call = run->call;
    bool idle = comm->host_index >= comm->lanes;
    uint32_t lane = idle ? 0 : (uint32_t)comm->host_index;
    iq_members_t hosts = {.ranks = comm->lane_ranks, .size = comm->nhosts, .index = comm->lane_index};
    iq_codec_t codec = call->codec;
    int first_stage = run->nstages;
    size_t first, count;
    iq_stage_t *stage;
    iq_plan_block(lanes, lane, &first, &count);
    bool is_empty = count == 0;
    if (is_empty)
        count = 1;
    iq_codec_call_t codec_call = {.datatype = summed_type(call),
                                  .op = call->op != ISGQ_AVG ? call->op : averages ? ISGQ_AVG : ISGQ_SUM,
                                  .nranks = averages ? comm->nranks : comm->nhosts,
                                  .rank = comm->lane_index,
                                  .seed = lane_key(comm, lane),
                                  .call = call->sequence,
                                  .count = count,
                                  .strata = comm->lane_strata};
    if (codec.ops->needs_scales(&codec)) {
        IQ_TRY(iq_run_take_scales(run, &codec, count));
        IQ_TRY(iq_run_add_scales(comm, run, hosts, &codec, &codec_call));
        codec_call.scales = run->scales;
    }
    IQ_TRY(iq_run_add_plan(comm, run, "between hosts", call->algorithm, &codec, &codec_call, count, false, hosts, &stage));
    stage->src = stage->dst = run->level_sums + first * iq_datatype_bytes(codec_call.datatype);
    run->own_error.measures = iq_accuracy_wanted(comm, call) && !idle && !is_empty;
    iq_own_error_place(&run->own_error, comm->own_room, comm->chunk_bytes);
    stage->own = run->own_error.measures ? &run->own_error : NULL;
    for (int i = first_stage; i < run->nstages; i++)
        run->stages[i].skipped = idle || is_empty;
    return ISGQ_SUCCESS;
}

/* ---- the call ---- */

isgq_result_t iq_run_begin_levels(isgq_comm_t comm, iq_run_t *run)
{
    const iq_call_t *call = run->call;
    bool several = comm->nhosts > 1, quantizes = call->codec.ops != iq_codec_none.ops, widens = is_wide(call);
    bool averages_late = several && !quantizes; /* a mean that is quantized stays within the range of its parts: it is made before */
    isgq_data_type_t datatype = summed_type(call);
    iq_stage_t *stage;
    run->level_sums = has_own_room(call) ? iq_scratch_take(run, call->count * iq_datatype_bytes(datatype)) : call->recv;
    if (run->level_sums == NULL && has_own_room(call) && call->count > 0)
        return ISGQ_ERR_NO_MEMORY;
    if (widens)
        iq_run_add_work(run, "widen", work_widen, iq_ceil_div(call->count, PIECE_ELEMENTS));
    iq_codec_call_t exact = {.datatype = datatype, .op = call->op, .nranks = comm->nranks, .rank = comm->rank, .call = call->sequence, .count = call->count};
    if (averages_late && call->op == ISGQ_AVG)
        exact.op = ISGQ_SUM;
    IQ_TRY(add_in_host(comm, run, IQ_REDUCE_SCATTER, &exact, widens ? run->level_sums : call->send, run->level_sums, &stage));
    if (several && call->count > 0)
        IQ_TRY(add_between_hosts(comm, run, stage->plan, averages_late && call->op == ISGQ_AVG));
    exact.op = ISGQ_SUM;
    exact.nranks = 1;
    exact.accumulate = call->accumulate && !widens;
    IQ_TRY(add_in_host(comm, run, IQ_ALLGATHER, &exact, run->level_sums, exact.accumulate ? call->recv : run->level_sums, &stage));
    if (widens)
        iq_run_add_work(run, "copy out", work_copy_out, iq_ceil_div(call->count, PIECE_ELEMENTS));
    return ISGQ_SUCCESS;
}
