/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls in progress: stages are laid out when a call reaches the head of the queue, and advanced step by step.
 *
 * Scratch is one lazily touched mapping, given out from the front and taken back whole when the call ends; every rank computes the same
 * layout from the same arguments, so no rank runs out alone.
 */
#include "core/run.h"

#include "base/util.h"

#include <string.h>

void *iq_scratch_take(isgq_comm_t comm, size_t bytes)
{
    iq_scratch_t *scratch = &comm->scratch;
    size_t start = iq_align_up(scratch->used, IQ_CACHE_LINE);
    if (start > scratch->bytes || bytes > scratch->bytes - start) {
        (void)IQ_FAIL(ISGQ_ERR_NO_MEMORY, "the call needs %zu more bytes of scratch; ISGQ_SCRATCH_BYTES is %zu", bytes, scratch->bytes);
        return NULL;
    }
    scratch->used = start + bytes;
    return scratch->base + start;
}

/* ---- building stages ---- */

static iq_stage_t *add_stage(iq_run_t *run, const char *name)
{
    iq_assert(run->nstages < IQ_MAX_STAGES);
    iq_stage_t *stage = &run->stages[run->nstages++];
    memset(stage, 0, sizeof(*stage));
    stage->name = name;
    return stage;
}

iq_stage_t *iq_run_add_work(iq_run_t *run, const char *name, iq_work_fn work, size_t trips)
{
    iq_stage_t *stage = add_stage(run, name);
    stage->work = work;
    stage->trips = trips;
    return stage;
}

/* Elements per chunk: the same on every rank, whole groups of 32. */
static size_t chunk_elements(size_t chunk_bytes, size_t element_bytes)
{
    size_t elements = chunk_bytes / element_bytes / 32 * 32;
    return iq_max(elements, 32);
}

/* Blocks start at bucket boundaries where the tensor is long enough to be shared out evenly that way. */
static size_t block_unit(const iq_codec_t *codec, size_t count, int nranks)
{
    return codec->bucket > 32 && count / codec->bucket >= 4 * (size_t)nranks ? codec->bucket : 32;
}

static isgq_result_t add_plan(isgq_comm_t comm, iq_run_t *run, const char *name, const iq_algorithm_t *algorithm, const iq_codec_t *codec,
                              const iq_codec_call_t *codec_call, size_t count, iq_stage_t **stage)
{
    size_t element_bytes = iq_datatype_bytes(codec_call->datatype);
    iq_plan_request_t request = {.collective = algorithm->collective,
                                 .rank = comm->rank,
                                 .nranks = comm->nranks,
                                 .root = run->call->root,
                                 .count = count,
                                 .block_unit = block_unit(codec, count, comm->nranks),
                                 .chunk = chunk_elements(comm->chunk_bytes, element_bytes),
                                 .slots = IQ_SLOTS};
    const iq_plan_t *plan;
    IQ_TRY(iq_plan_cache_get(&comm->plans, algorithm, &request, &plan));
    *stage = add_stage(run, name);
    (*stage)->plan = plan;
    (*stage)->codec = *codec;
    (*stage)->codec_call = *codec_call;
    (*stage)->element_bytes = element_bytes;
    (*stage)->sums_in_place = codec->ops == iq_codec_none.ops && codec->ops->acc_bytes(codec, codec_call) == element_bytes &&
                              codec_call->op != ISGQ_AVG && !codec_call->accumulate;
    return ISGQ_SUCCESS;
}

/* The algorithm for a stage that moves values as they are. */
static isgq_result_t exact_algorithm(isgq_comm_t comm, iq_collective_t collective, isgq_data_type_t datatype, isgq_red_op_t op, size_t count,
                                     const iq_algorithm_t **algorithm)
{
    char why[64];
    return iq_decide_algorithm(collective, comm->nranks, comm->nhosts, &iq_codec_none, datatype, op, count, NULL, algorithm, why, sizeof(why));
}

isgq_result_t iq_run_add_exact(isgq_comm_t comm, iq_run_t *run, const char *name, isgq_data_type_t datatype, isgq_red_op_t op, size_t count,
                               void *data)
{
    const iq_algorithm_t *algorithm;
    iq_stage_t *stage;
    iq_codec_call_t codec_call = {.datatype = datatype, .op = op, .nranks = comm->nranks, .rank = comm->rank};
    IQ_TRY(exact_algorithm(comm, IQ_ALLREDUCE, datatype, op, count, &algorithm));
    IQ_TRY(add_plan(comm, run, name, algorithm, &iq_codec_none, &codec_call, count, &stage));
    stage->src = data;
    stage->dst = data;
    return ISGQ_SUCCESS;
}

isgq_result_t iq_run_add_gather(isgq_comm_t comm, iq_run_t *run, size_t stride, void *blobs)
{
    const iq_algorithm_t *algorithm;
    iq_stage_t *stage;
    size_t count = stride * (size_t)comm->nranks;
    iq_codec_call_t codec_call = {.datatype = ISGQ_UINT8, .op = ISGQ_SUM, .nranks = 1, .rank = comm->rank};
    IQ_TRY(exact_algorithm(comm, IQ_ALLGATHER, ISGQ_UINT8, ISGQ_SUM, count, &algorithm));
    IQ_TRY(add_plan(comm, run, "gather", algorithm, &iq_codec_none, &codec_call, count, &stage));
    stage->src = blobs;
    stage->dst = blobs;
    stage->variable = true;
    return ISGQ_SUCCESS;
}

/* Local maxima of the dense tensor, one chunk a trip. */
static isgq_result_t work_scales(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    const iq_stage_t *main_stage = &run->stages[run->stage + 2]; /* this one, the maximum over ranks, then the data */
    const iq_plan_t *plan = main_stage->plan;
    size_t piece = chunk_elements(comm->chunk_bytes, main_stage->element_bytes);
    iq_span_t span = {trip * piece, iq_min(piece, plan->count - trip * piece)};
    main_stage->codec.ops->local_scales(&main_stage->codec, &main_stage->codec_call, span,
                                        main_stage->src + span.first * main_stage->element_bytes, run->scales);
    return ISGQ_SUCCESS;
}

static isgq_result_t add_scales(isgq_comm_t comm, iq_run_t *run, const iq_codec_t *codec, size_t element_bytes, size_t count)
{
    size_t nscales = iq_codec_scales(codec, count);
    run->scales = iq_scratch_take(comm, nscales * sizeof(float));
    if (run->scales == NULL)
        return ISGQ_ERR_NO_MEMORY;
    memset(run->scales, 0, nscales * sizeof(float));
    iq_run_add_work(run, "scales", work_scales, iq_ceil_div(count, chunk_elements(comm->chunk_bytes, element_bytes)));
    return iq_run_add_exact(comm, run, "maximum of scales", ISGQ_FLOAT32, ISGQ_MAX, nscales, run->scales);
}

isgq_result_t iq_run_add_dense(isgq_comm_t comm, iq_run_t *run, const iq_algorithm_t *algorithm, iq_codec_t codec, isgq_data_type_t datatype,
                               isgq_red_op_t op, size_t count, const void *src, void *dst, bool accumulate)
{
    bool sums = algorithm->collective == IQ_ALLREDUCE || algorithm->collective == IQ_REDUCE_SCATTER;
    iq_codec_call_t codec_call = {.datatype = datatype,
                                  .op = sums ? op : ISGQ_SUM,
                                  .nranks = sums ? comm->nranks : 1,
                                  .rank = comm->rank,
                                  .seed = comm->key,
                                  .call = run->call->sequence,
                                  .accumulate = accumulate};
    iq_stage_t *stage;
    if (!sums)
        codec.shared = false;
    if (codec.ops->needs_scales(&codec) && count > 0) {
        IQ_TRY(add_scales(comm, run, &codec, iq_datatype_bytes(datatype), count));
        codec_call.scales = run->scales;
    }
    IQ_TRY(add_plan(comm, run, iq_collective_name(algorithm->collective), algorithm, &codec, &codec_call, count, &stage));
    stage->src = src;
    stage->dst = dst;
    return ISGQ_SUCCESS;
}

/* src and dst such that element `first` of the whole tensor is at base + first * bytes; this rank has only its own part of some of them. */
static const void *notional(const void *base, size_t own_first, size_t element_bytes)
{
    return (const void *)((uintptr_t)base - own_first * element_bytes);
}

static isgq_result_t begin_collective(isgq_comm_t comm, iq_run_t *run)
{
    const iq_call_t *call = run->call;
    isgq_data_type_t datatype = call->datatype;
    size_t count = call->count;
    const void *src = call->send;
    void *dst = call->recv;
    bool moves = call->kind == IQ_CALL_ALLGATHER || call->kind == IQ_CALL_BROADCAST;
    if (moves && call->codec.ops == iq_codec_none.ops && !call->accumulate) { /* bytes as they are, NaN payloads and all */
        count *= iq_datatype_bytes(datatype);
        datatype = ISGQ_UINT8;
    }
    size_t own_first = count / (size_t)comm->nranks * (size_t)comm->rank;
    size_t bytes = iq_datatype_bytes(datatype);
    if (call->kind == IQ_CALL_ALLGATHER)
        src = notional(src, own_first, bytes);
    if (call->kind == IQ_CALL_REDUCE_SCATTER)
        dst = (void *)(uintptr_t)notional(dst, own_first, bytes);
    return iq_run_add_dense(comm, run, call->algorithm, call->codec, datatype, call->op, count, src, dst, call->accumulate);
}

isgq_result_t iq_run_begin(isgq_comm_t comm, iq_run_t *run, iq_call_t *call)
{
    run->call = call;
    run->nstages = run->stage = 0;
    run->trip = 0;
    run->cursor = (iq_plan_cursor_t){0};
    run->has_action = run->mismatch_reported = run->stall_reported = false;
    run->wire_bytes = run->own_bytes = run->waited_ns = 0;
    run->blocked_ns = 0;
    run->started_ns = run->progress_ns = iq_now_ns();
    comm->scratch.used = 0;
    run->acc = iq_scratch_take(comm, 4 * iq_max(comm->chunk_bytes, 1024)); /* accumulators are at most twice the input */
    run->result = iq_scratch_take(comm, comm->slot_bytes);
    if (run->acc == NULL || run->result == NULL)
        return ISGQ_ERR_NO_MEMORY;
    return call->kind == IQ_CALL_FACTORED ? iq_run_begin_factored(comm, run) : begin_collective(comm, run);
}

/* ---- advancing ---- */

static void next_stage(iq_run_t *run)
{
    run->stage++;
    run->trip = 0;
    run->cursor = (iq_plan_cursor_t){0};
}

/* One unit of the current stage. *moved: it was done (or the stage is over). */
static isgq_result_t advance_once(isgq_comm_t comm, iq_run_t *run, bool *moved)
{
    iq_stage_t *stage = &run->stages[run->stage];
    int blocked_on = -1;
    *moved = true;
    if (stage->work != NULL) {
        if (run->trip == stage->trips)
            next_stage(run);
        else
            IQ_TRY(stage->work(comm, run, run->trip++));
        return ISGQ_SUCCESS;
    }
    if (!run->has_action && !iq_plan_next(stage->plan, &run->cursor, &run->action)) {
        next_stage(run);
        return ISGQ_SUCCESS;
    }
    run->has_action = true;
    IQ_TRY(iq_run_action(comm, run, stage, &run->action, &blocked_on));
    *moved = blocked_on < 0;
    run->has_action = blocked_on >= 0;
    atomic_store_explicit(&comm->awaited, blocked_on, memory_order_relaxed);
    return ISGQ_SUCCESS;
}

isgq_result_t iq_run_advance(isgq_comm_t comm, iq_run_t *run, unsigned actions, bool *done, bool *moved)
{
    bool once = true;
    *moved = false;
    *done = false;
    while (once && actions-- > 0) {
        if (run->stage == run->nstages) {
            *done = true;
            return ISGQ_SUCCESS;
        }
        IQ_TRY(advance_once(comm, run, &once));
        *moved |= once;
    }
    return ISGQ_SUCCESS;
}
