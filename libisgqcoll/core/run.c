/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls in progress: stages are laid out when a call reaches the head of the queue, and advanced step by step.
 *
 * Scratch is one lazily touched mapping, given out from the front and taken back whole when the call ends; every rank computes the same
 * layout from the same arguments, so no rank runs out alone.
 */
#include "core/run.h"

#include "base/util.h"
#include "core/exec_stream.h"
#include "core/gpu.h"

#include <string.h>

#define BOARD_CHUNK_BYTES ((size_t)64 << 10)

static void *take(iq_scratch_t *scratch, size_t bytes)
{
    size_t start = iq_align_up(scratch->used, IQ_CACHE_LINE);
    if (start > scratch->bytes || bytes > scratch->bytes - start) {
        (void)IQ_FAIL(ISGQ_ERR_NO_MEMORY, "the call needs %zu more bytes of scratch; ISGQ_SCRATCH_BYTES is %zu", bytes, scratch->bytes);
        return NULL;
    }
    scratch->used = start + bytes;
    return scratch->base + start;
}

void *iq_scratch_take(iq_run_t *run, size_t bytes) { return take(run->site->memory, bytes); }

void *iq_host_take(iq_run_t *run, size_t bytes) { return take(run->site->host, bytes); }

void *iq_run_take(iq_run_t *run, size_t bytes) { return take(run->hosted ? run->site->host : run->site->memory, bytes); }

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

void iq_run_add_eager_work(iq_run_t *run, const char *name, iq_work_fn work, iq_ready_fn ready, size_t trips)
{
    iq_run_add_work(run, name, work, trips)->ready = ready;
}

size_t iq_chunk_elements(size_t chunk_bytes, size_t element_bytes)
{
    size_t elements = chunk_bytes / element_bytes / 32 * 32;
    return iq_max(elements, 32);
}

/* Blocks start at bucket boundaries where the tensor is long enough to be shared out evenly that way. */
static size_t block_unit(const iq_codec_t *codec, size_t count, int nranks)
{
    return codec->bucket > 32 && count / codec->bucket >= 4 * (size_t)nranks ? codec->bucket : 32;
}

/* Do blocks begin in the middle of buckets? Those of an allreduce are whole units, others equal parts. */
static bool blocks_part_buckets(const iq_codec_t *codec, iq_collective_t collective, size_t count, int nranks)
{
    size_t unit = collective == IQ_ALLREDUCE ? block_unit(codec, count, nranks) : count / (size_t)nranks;
    return nranks > 1 && unit % codec->bucket != 0;
}

/* Scales that travel with a result cover what its message covers. Where messages part a bucket the cut decides bits, and then every site cuts as hosts do. */
static size_t plan_chunk(isgq_comm_t comm, const iq_run_t *run, iq_collective_t collective, int nranks, const iq_codec_t *codec,
                         const iq_codec_call_t *codec_call)
{
    size_t element_bytes = iq_datatype_bytes(codec_call->datatype);
    size_t ours = iq_chunk_elements(run->site->chunk_bytes, element_bytes), hosts = iq_chunk_elements(comm->chunk_bytes, element_bytes);
    bool has_scales = codec->bits != 0 && !codec->ops->result_is_exact(codec, codec_call);
    bool parted = codec->bucket == 0 || ours % codec->bucket != 0 || hosts % codec->bucket != 0 ||
                  blocks_part_buckets(codec, collective, codec_call->count, nranks);
    return has_scales && parted ? hosts : ours;
}

/* On boards a chunk goes from input to slot and from slots to output; all that should stay in a core's own cache. */
static size_t board_chunk(isgq_comm_t comm, const iq_run_t *run, int nranks, const iq_codec_t *codec, const iq_codec_call_t *codec_call)
{
    size_t chunk = plan_chunk(comm, run, IQ_ALLREDUCE, nranks, codec, codec_call);
    size_t cached = iq_chunk_elements(BOARD_CHUNK_BYTES, iq_datatype_bytes(codec_call->datatype));
    return codec->ops == iq_codec_none.ops ? iq_min(chunk, cached) : chunk;
}

iq_members_t iq_run_everybody(isgq_comm_t comm) { return (iq_members_t){.size = comm->nranks, .index = comm->rank}; }

iq_members_t iq_run_in_host(isgq_comm_t comm) { return (iq_members_t){comm->host_ranks, comm->host_size, comm->host_index, 0}; }

isgq_result_t iq_run_add_plan(isgq_comm_t comm, iq_run_t *run, const char *name, const iq_algorithm_t *algorithm, const iq_codec_t *codec,
                              const iq_codec_call_t *codec_call, size_t count, bool on_device, iq_members_t among, iq_stage_t **stage)
{
    size_t element_bytes = iq_datatype_bytes(codec_call->datatype);
    iq_plan_request_t request = {.collective = algorithm->collective,
                                 .rank = among.index,
                                 .nranks = among.size,
                                 .root = run->call->root,
                                 .count = count,
                                 .lanes = among.lanes,
                                 .block_unit = block_unit(codec, count, among.size),
                                 .chunk = algorithm->needs & IQ_NEEDS_BOARDS
                                              ? board_chunk(comm, run, among.size, codec, codec_call)
                                              : plan_chunk(comm, run, algorithm->collective, among.size, codec, codec_call),
                                 .slots = run->site->slots,
                                 .dealt = codec->ops->varies && codec->bucket == 0, /* blocks of messages whose lengths depend on what is in them */
                                 .rounds = run->site->rounds};
    const iq_plan_t *plan;
    IQ_TRY(iq_plan_cache_get(run->site->plans, algorithm, &request, &plan));
    *stage = add_stage(run, name);
    (*stage)->plan = plan;
    (*stage)->members = among.ranks;
    (*stage)->codec = *codec;
    (*stage)->codec_call = *codec_call;
    (*stage)->element_bytes = (*stage)->own_bytes = element_bytes;
    (*stage)->on_device = on_device;
    (*stage)->room = on_device || run->site->device == NULL ? run->room : run->host_room;
    if (on_device) {
        (*stage)->codec.ops = iq_codec_on_device(codec->ops);
        (*stage)->codec_call.device = run->site->device;
    }
    (*stage)->sums_in_place = codec->ops == iq_codec_none.ops && codec->ops->acc_bytes(codec, codec_call) == element_bytes &&
                              codec_call->op != ISGQ_AVG && !codec_call->accumulate;
    (*stage)->own_call = (*stage)->codec_call;
    return ISGQ_SUCCESS;
}

isgq_result_t iq_run_exact_algorithm(isgq_comm_t comm, const iq_members_t *among, iq_collective_t collective, isgq_data_type_t datatype,
                                     isgq_red_op_t op, size_t count, const iq_algorithm_t **algorithm)
{
    char why[64];
    return iq_decide_algorithm(collective, among->size, comm->nhosts, comm->has_boards && among->ranks == NULL, &iq_codec_none, datatype, op,
                               count, NULL, algorithm, why, sizeof(why));
}

isgq_result_t iq_run_add_exact(isgq_comm_t comm, iq_run_t *run, const char *name, isgq_data_type_t datatype, isgq_red_op_t op, size_t count,
                               void *data, bool on_device)
{
    const iq_algorithm_t *algorithm;
    iq_members_t all = iq_run_everybody(comm);
    IQ_TRY(iq_run_exact_algorithm(comm, &all, IQ_ALLREDUCE, datatype, op, count, &algorithm));
    return iq_run_add_sum(comm, run, all, name, algorithm, datatype, op, count, data, on_device);
}

isgq_result_t iq_run_add_sum(isgq_comm_t comm, iq_run_t *run, iq_members_t among, const char *name, const iq_algorithm_t *algorithm, isgq_data_type_t datatype,
                             isgq_red_op_t op, size_t count, void *data, bool on_device)
{
    iq_stage_t *stage;
    iq_codec_call_t codec_call = {.datatype = datatype, .op = op, .nranks = among.size, .rank = comm->rank};
    IQ_TRY(iq_run_add_plan(comm, run, name, algorithm, &iq_codec_none, &codec_call, count, on_device, among, &stage));
    stage->src = data;
    stage->dst = data;
    return ISGQ_SUCCESS;
}

isgq_result_t iq_run_add_gather(isgq_comm_t comm, iq_run_t *run, const iq_gather_t *gather)
{
    const iq_algorithm_t *algorithm;
    iq_stage_t *stage;
    char why[64];
    iq_members_t among = gather->in_host ? iq_run_in_host(comm) : iq_run_everybody(comm);
    size_t count = gather->stride * (size_t)among.size;
    iq_codec_call_t codec_call = {.datatype = ISGQ_UINT8, .op = ISGQ_SUM, .nranks = 1, .rank = comm->rank};
    IQ_TRY(iq_decide_algorithm(IQ_ALLGATHER, among.size, gather->in_host ? 1 : comm->nhosts, false, &iq_codec_none, ISGQ_UINT8, ISGQ_SUM, count, NULL,
                               &algorithm, why, sizeof(why)));
    IQ_TRY(iq_run_add_plan(comm, run, gather->name, algorithm, &iq_codec_none, &codec_call, count, gather->on_device, among, &stage));
    stage->shares_work = gather->in_host;
    stage->src = gather->blobs;
    stage->dst = gather->blobs;
    stage->lengths = gather->lengths;
    stage->stride = gather->stride;
    stage->arrived = gather->arrived;
    return ISGQ_SUCCESS;
}

/* Scales before the data: agreed on, or guessed. */
static isgq_result_t prepare_scales(isgq_comm_t comm, iq_run_t *run, const iq_codec_t *codec, const iq_codec_call_t *codec_call)
{
    IQ_TRY(iq_run_take_scales(run, codec, codec_call->count));
    IQ_TRY(iq_run_predict(run, codec, codec_call));
    return run->prediction.guards ? ISGQ_SUCCESS : iq_run_add_scales(comm, run, iq_run_everybody(comm), codec, codec_call);
}

/* The data of a dense call, from own input of type `own_type`. */
static isgq_result_t add_data(isgq_comm_t comm, iq_run_t *run, const iq_algorithm_t *algorithm, const iq_codec_t *codec,
                              const iq_codec_call_t *codec_call, isgq_data_type_t own_type, const void *src, void *dst)
{
    iq_stage_t *stage;
    IQ_TRY(iq_run_add_plan(comm, run, iq_collective_name(algorithm->collective), algorithm, codec, codec_call, codec_call->count,
                    iq_run_on_device(run), iq_run_everybody(comm), &stage));
    stage->src = src;
    stage->dst = dst;
    stage->own_call.datatype = own_type;
    stage->own_bytes = iq_datatype_bytes(own_type);
    stage->own = run->own_error.corrects || run->own_error.measures ? &run->own_error : NULL;
    return ISGQ_SUCCESS;
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
                                  .count = count,
                                  .strata = comm->strata,
                                  .all_strata = sums && comm->all_strata != NULL ? comm->all_strata[0] : NULL,
                                  .history = iq_run_history(run),
                                  .accumulate = accumulate};
    isgq_data_type_t own_type = datatype;
    if (sums)
        iq_run_add_feedback(comm, run, &codec, count, &src, dst, &own_type);
    else
        codec.shared = false;
    if (codec.ops->needs_scales(&codec) && count > 0) {
        IQ_TRY(prepare_scales(comm, run, &codec, &codec_call));
        codec_call.scales = run->scales;
    }
    if (run->prediction.guards) {
        IQ_TRY(add_data(comm, run, algorithm, &codec, &codec_call, own_type, src, dst));
        iq_run_add_verdict(run, &run->stages[run->nstages - 1]);
    }
    if (iq_views_may_serve(comm, run, algorithm, &codec, &codec_call))
        IQ_TRY(iq_run_add_views(comm, run, &codec_call));
    IQ_TRY(add_data(comm, run, algorithm, &codec, &codec_call, own_type, src, dst));
    iq_run_add_estimate(run);
    iq_run_add_history(run);
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
    const void *src = run->send;
    void *dst = run->recv;
    if (call->power_rank != 0)
        return iq_run_begin_powersgd(comm, run);
    if (call->algorithm->needs & IQ_IN_LEVELS)
        return iq_run_begin_levels(comm, run);
    if (call->fused > 0)
        return iq_run_begin_fused(comm, run);
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
    return iq_run_add_dense(comm, run, call->algorithm, call->codec, datatype, call->op, count, src, dst, run->accumulate);
}

/* What is hosts' work comes to them and goes back. */
static isgq_result_t begin_hosted(isgq_comm_t comm, iq_run_t *run)
{
    IQ_TRY(iq_run_bring_to_host(comm, run));
    IQ_TRY(begin_collective(comm, run));
    iq_run_bring_to_device(comm, run);
    return ISGQ_SUCCESS;
}

static bool take_room(iq_run_t *run, iq_room_t *room, void *(*take_bytes)(iq_run_t *run, size_t bytes))
{
    room->acc = take_bytes(run, 4 * iq_max(run->site->chunk_bytes, 1024)); /* accumulators are at most twice the input */
    room->result = take_bytes(run, run->site->slot_bytes);
    return room->acc != NULL && room->result != NULL;
}

/* Scales that codecs measure on the way, of one chunk; and the same room on the host as on the device. */
static bool take_device_memory(iq_run_t *run)
{
    const iq_call_t *call = run->call;
    iq_device_t *device = run->site->device;
    size_t chunk = iq_chunk_elements(run->site->chunk_bytes, iq_datatype_bytes(call->datatype));
    device->scratch_bytes = iq_codec_device_scratch(&call->codec, chunk);
    device->scratch = iq_scratch_take(run, device->scratch_bytes);
    return device->scratch != NULL && (run->site->streams || take_room(run, &run->host_room, iq_host_take));
}

static void reset(iq_run_t *run, iq_site_t *site, iq_call_t *call)
{
    run->call = call;
    run->site = site;
    run->send = call->send;
    run->recv = call->recv;
    run->accumulate = call->accumulate;
    run->hosted = false;
    run->nstages = run->stage = 0;
    run->trip = 0;
    run->cursor = (iq_plan_cursor_t){0};
    run->has_action = run->mismatch_reported = run->stall_reported = run->polls_device = false;
    run->wire_bytes = call->wire_bytes;
    run->own_bytes = call->own_bytes;
    run->shared_bytes = 0;
    run->waited_ns = run->blocked_ns = 0;
    run->own_error = (iq_own_error_t){0};
    run->prediction = (iq_prediction_run_t){0};
    run->shadow = (iq_shadow_t){0};
    run->started_ns = run->progress_ns = iq_now_ns();
}

isgq_result_t iq_run_lay_out(isgq_comm_t comm, iq_run_t *run, iq_site_t *site, iq_call_t *call)
{
    reset(run, site, call);
    site->memory->used = site->host->used = 0;
    if (!take_room(run, &run->room, iq_scratch_take) || (site->device != NULL && !take_device_memory(run)))
        return ISGQ_ERR_NO_MEMORY;
    iq_shadow_begin(comm, run);
    IQ_TRY(call->kind == IQ_CALL_FACTORED       ? iq_run_begin_factored(comm, run)
           : iq_call_is_hosted(comm, call) ? begin_hosted(comm, run)
                                           : begin_collective(comm, run));
    return iq_shadow_end(comm, run);
}

/* ---- the host side of a streamed call: all ranks mean the same call, and the stream has passed it ---- */

/* A stream that is busy with other things is no stall, and none of this call's time. */
static isgq_result_t work_arrival(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    (void)trip;
    run->started_ns = run->progress_ns = iq_now_ns();
    return iq_gpu_arrival(comm, run->call->sequence);
}

static isgq_result_t work_departure(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    (void)trip;
    return iq_stream_passed(comm, run);
}

static isgq_result_t begin_streamed(isgq_comm_t comm, iq_run_t *run)
{
    const iq_algorithm_t *barrier;
    iq_stage_t *stage;
    iq_codec_call_t codec_call = {.datatype = ISGQ_UINT8, .nranks = 1, .rank = comm->rank};
    run->arrived = run->drained = true; /* nothing of the call is driven from here */
    if (!run->call->captured)
        iq_run_add_work(run, "arrival", work_arrival, 1);
    iq_members_t all = iq_run_everybody(comm);
    IQ_TRY(iq_run_exact_algorithm(comm, &all, IQ_BARRIER, ISGQ_UINT8, ISGQ_SUM, 0, &barrier));
    IQ_TRY(iq_run_add_plan(comm, run, "agreement", barrier, &iq_codec_none, &codec_call, 0, false, all, &stage));
    if (!run->call->captured)
        iq_run_add_work(run, "stream", work_departure, 1);
    return ISGQ_SUCCESS;
}

isgq_result_t iq_run_begin(isgq_comm_t comm, iq_run_t *run, iq_call_t *call)
{
    run->arrived = run->drained = comm->gpu == NULL;
    if (!call->streamed)
        return iq_run_lay_out(comm, run, &comm->site, call);
    reset(run, &comm->site, call);
    return begin_streamed(comm, run);
}

/* ---- advancing ---- */

static void next_stage(iq_run_t *run)
{
    run->stage++;
    run->trip = run->stage < run->nstages ? run->stages[run->stage].ahead : 0;
    run->cursor = (iq_plan_cursor_t){0};
}

/* Waiting for a stream: *there is false, and run->awaits says who is waited for. */
static isgq_result_t await_device(isgq_comm_t comm, iq_run_t *run, isgq_result_t result, bool *there)
{
    *there = result != ISGQ_IN_PROGRESS;
    run->polls_device = !*there;
    if (!*there)
        atomic_store_explicit(&comm->awaited, run->awaits, memory_order_relaxed);
    return *there ? result : ISGQ_SUCCESS;
}

/* One trip of local work. */
static isgq_result_t advance_work(isgq_comm_t comm, iq_run_t *run, const iq_stage_t *stage, bool *moved)
{
    if (run->trip == stage->trips) {
        next_stage(run);
        return ISGQ_SUCCESS;
    }
    run->awaits = comm->rank;
    IQ_TRY(await_device(comm, run, stage->work(comm, run, run->trip), moved));
    run->trip += *moved;
    return ISGQ_SUCCESS;
}

/* A plan among some of the ranks counts these from 0. */
static void name_members(const int *members, iq_action_t *action)
{
    action->peer = action->peer >= 0 ? members[action->peer] : action->peer;
    action->to = action->to >= 0 ? members[action->to] : action->to;
}

/* One unit of the current stage. *moved: it was done (or the stage is over). */
static isgq_result_t advance_once(isgq_comm_t comm, iq_run_t *run, bool *moved)
{
    iq_stage_t *stage = &run->stages[run->stage];
    int blocked_on = -1;
    *moved = true;
    if (stage->skipped) {
        next_stage(run);
        return ISGQ_SUCCESS;
    }
    if (stage->work != NULL)
        return advance_work(comm, run, stage, moved);
    if (!run->has_action && !iq_plan_next(stage->plan, &run->cursor, &run->action)) {
        next_stage(run);
        return ISGQ_SUCCESS;
    }
    if (!run->has_action && stage->members != NULL)
        name_members(stage->members, &run->action);
    run->has_action = true;
    IQ_TRY(iq_run_action(comm, run, stage, &run->action, &blocked_on));
    *moved = blocked_on < 0;
    run->polls_device = blocked_on == comm->rank;
    run->has_action = blocked_on >= 0;
    atomic_store_explicit(&comm->awaited, blocked_on, memory_order_relaxed);
    return ISGQ_SUCCESS;
}

/* The plan waits for somebody: one trip of the work after it, if that can be done already. One at a time, since transports want to be polled. */
static isgq_result_t work_ahead(isgq_comm_t comm, iq_run_t *run, bool *moved)
{
    iq_stage_t *next = run->stage + 1 < run->nstages ? &run->stages[run->stage + 1] : NULL;
    if (next == NULL || next->ready == NULL || next->ahead == next->trips || !next->ready(comm, run, next->ahead))
        return ISGQ_SUCCESS;
    IQ_TRY(next->work(comm, run, next->ahead++));
    *moved = true;
    return ISGQ_SUCCESS;
}

isgq_result_t iq_run_advance(isgq_comm_t comm, iq_run_t *run, unsigned actions, bool *done, bool *moved)
{
    bool once = true;
    *moved = false;
    *done = false;
    if (!run->arrived) { /* a stream that is busy with other things is no stall, and none of this call's time */
        run->awaits = comm->rank;
        IQ_TRY(await_device(comm, run, iq_gpu_arrival(comm, run->call->sequence), &run->arrived));
        run->started_ns = run->progress_ns = iq_now_ns();
        run->blocked_ns = 0;
        *moved = run->arrived;
        return ISGQ_SUCCESS;
    }
    while (once && actions-- > 0) {
        if (run->stage == run->nstages) {
            run->awaits = comm->rank;
            if (!run->drained)
                IQ_TRY(await_device(comm, run, iq_gpu_finish(comm, "device memory"), &run->drained));
            *done = run->drained;
            return ISGQ_SUCCESS;
        }
        IQ_TRY(advance_once(comm, run, &once));
        *moved |= once;
    }
    return *moved ? ISGQ_SUCCESS : work_ahead(comm, run, moved);
}
