/* SPDX-License-Identifier: Apache-2.0 */
/* The executor of streams: see exec_stream.h. Plans are stream_plan.c. */
#include "core/exec_stream.h"

#include "base/config.h"
#include "base/log.h"
#include "base/util.h"
#include "core/gpu.h"
#include "core/step.h"
#include "transport/wire.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PLANS 64                          /* kept for streamed calls */
#define SLOTS_BYTES ((size_t)128 << 20)   /* of all links of one rank, at most */

/* ---- a call ---- */

static isgq_result_t enqueue_stages(isgq_comm_t comm, iq_stream_exec_t *exec)
{
    iq_run_t *run = &exec->run;
    for (run->stage = 0; run->stage < run->nstages; run->stage++) {
        const iq_stage_t *stage = &run->stages[run->stage];
        if (stage->work == NULL)
            IQ_TRY(iq_stream_enqueue_plan(comm, stage));
        for (size_t trip = 0; stage->work != NULL && trip < stage->trips; trip++)
            IQ_TRY(stage->work(comm, run, trip));
    }
    return exec->device.result == ISGQ_SUCCESS ? ISGQ_SUCCESS : iq_device_check(&exec->device, run->call->codec.ops->name);
}

bool iq_stream_takes(isgq_comm_t comm, const iq_call_t *call) { return comm->stream_exec != NULL && !iq_call_is_hosted(comm, call); }

/* Behind the eager call before, which may have gone to another stream (handles do not tell). What was captured is ordered by whoever launches it. */
static isgq_result_t take_turn(isgq_comm_t comm, iq_stream_exec_t *exec, const iq_call_t *call)
{
    if (exec->last != 0)
        IQ_TRY(iq_gpu_follow(comm, exec->last, call->stream));
    exec->last = call->sequence;
    return iq_gpu_mark_arrival(comm, call->sequence, call->stream);
}

isgq_result_t iq_stream_enqueue_hosted(isgq_comm_t comm, iq_call_t *call)
{
    iq_stream_exec_t *exec = comm->stream_exec;
    bool capturing;
    IQ_TRY(exec->device.cuda->stream_capturing(exec->device.ordinal, call->stream, &capturing));
    if (capturing)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "%s: the stream is being captured, and quantizer '%s' is hosts' work, which cannot be part of a graph",
                       iq_call_kind_name(call->kind), call->quantizer->text);
    if (exec->last != 0)
        IQ_TRY(iq_gpu_follow(comm, exec->last, call->stream));
    IQ_TRY(iq_gpu_enqueue(comm, call->sequence, call->stream));
    exec->last = call->sequence;
    return ISGQ_SUCCESS;
}

isgq_result_t iq_stream_enqueue(isgq_comm_t comm, iq_call_t *call, bool *begun)
{
    iq_stream_exec_t *exec = comm->stream_exec;
    iq_device_t *device = &exec->device;
    *begun = false;
    IQ_TRY(device->cuda->stream_capturing(device->ordinal, call->stream, &call->captured));
    call->wire_bytes = call->own_bytes = 0;
    device->stream = call->stream;
    device->replays = call->captured ? exec->replays : NULL;
    if (!call->captured)
        IQ_TRY(take_turn(comm, exec, call));
    *begun = true;
    isgq_result_t result = iq_run_lay_out(comm, &exec->run, &exec->site, call); /* may launch: scales are cleared */
    if (result == ISGQ_SUCCESS)
        result = enqueue_stages(comm, exec);
    call->wire_bytes = exec->run.wire_bytes;
    call->own_bytes = exec->run.own_bytes;
    if (call->captured)
        return result == ISGQ_SUCCESS ? device->cuda->advance(device->ordinal, call->stream, exec->replays) : result;
    isgq_result_t marked = iq_gpu_mark_departure(comm, call->sequence, call->stream); /* also behind a part of a call: memory is freed after it */
    return result == ISGQ_SUCCESS ? marked : result;
}

/* ---- the host side ---- */

/* Has a message moved since the last look? */
static void note_activity(iq_stream_exec_t *exec, iq_run_t *run)
{
    uint64_t seen = exec->wire->ops->activity != NULL ? exec->wire->ops->activity(exec->wire) : exec->activity;
    if (seen != exec->activity && !run->stall_reported)
        run->progress_ns = iq_now_ns();
    exec->activity = seen;
}

isgq_result_t iq_stream_passed(isgq_comm_t comm, iq_run_t *run)
{
    iq_stream_exec_t *exec = comm->stream_exec;
    iq_device_t verdict = {.fault = exec->device.fault}; /* the rest belongs to who makes calls */
    isgq_result_t result = iq_gpu_departure(comm, run->call->sequence);
    if (result != ISGQ_SUCCESS && result != ISGQ_IN_PROGRESS)
        return result;
    if (exec->wire != NULL) {
        int peer = exec->wire->ops->awaited(exec->wire);
        run->awaits = peer >= 0 ? peer : run->awaits;
        note_activity(exec, run);
        IQ_TRY(exec->wire->ops->check(exec->wire)); /* also behind the end of a call: a stream that was let go has seen garbage */
    }
    return result == ISGQ_SUCCESS ? iq_device_check(&verdict, iq_call_kind_name(run->call->kind)) : result;
}

isgq_result_t iq_stream_verdict(isgq_comm_t comm)
{
    iq_stream_exec_t *exec = comm->stream_exec;
    return exec == NULL || exec->wire == NULL ? ISGQ_SUCCESS : exec->wire->ops->check(exec->wire);
}

void iq_stream_let_go(isgq_comm_t comm)
{
    if (comm->stream_exec != NULL && comm->stream_exec->wire != NULL)
        comm->stream_exec->wire->ops->let_go(comm->stream_exec->wire);
}

/* ---- open and close ---- */

static bool allowed(isgq_comm_t comm, const char *name)
{
    size_t length = strlen(name);
    for (const char *at = comm->transports_allowed; (at = strstr(at, name)) != NULL; at += length)
        if ((at == comm->transports_allowed || at[-1] == ',') && (at[length] == ',' || at[length] == '\0'))
            return true;
    return false;
}

/* As long as scratch and slots stay within bounds: launches cost microseconds, and a chunk is a handful of them. Never less than hosts', since some plans
 * are cut as theirs. */
static size_t choose_chunk(isgq_comm_t comm)
{
    size_t chunk = iq_max(iq_config()->wire_chunk_bytes, 4096);
    size_t links = 2 * 2 * iq_max((size_t)comm->nranks - 1, 1); /* slots of a link, and a message is at most twice its input and a little */
    chunk = iq_min(chunk, iq_min(comm->scratch.bytes / 16, SLOTS_BYTES / links));
    return iq_max(chunk / 4096 * 4096, comm->chunk_bytes);
}

/* The widest message: see iq_comm_new. */
static size_t slot_bytes(size_t chunk_bytes) { return iq_align_up(2 * chunk_bytes + chunk_bytes / 8 + 4096, 256); }

static isgq_result_t control_allgather(void *context, const void *send, void *recv, size_t bytes)
{
    isgq_comm_t comm = context;
    return iq_control_allgather(comm->control, send, recv, bytes, comm->init_deadline_ns);
}

/* The first wire that joins the ranks. Wires agree on failure among themselves, so all ranks try the same ones. */
static isgq_result_t open_wire(isgq_comm_t comm, iq_stream_exec_t *exec, uint64_t token)
{
    iq_wire_params_t params = {.rank = comm->rank,
                               .nranks = comm->nranks,
                               .peers = comm->peers,
                               .token = token,
                               .cuda = exec->device.cuda,
                               .device = exec->device.ordinal,
                               .slot_bytes = exec->site.slot_bytes,
                               .allgather = control_allgather,
                               .allgather_context = comm,
                               .deadline_ns = comm->init_deadline_ns,
                               .native = comm->native};
    for (size_t i = 0; iq_wires[i] != NULL && exec->wire == NULL; i++) {
        bool wanted = comm->native != NULL ? strcmp(iq_wires[i]->name, "nccl") == 0 : allowed(comm, iq_wires[i]->name);
        if (!wanted)
            continue;
        isgq_result_t result = iq_wires[i]->open(&params, &exec->wire);
        if (result == ISGQ_ERR_UNSUPPORTED && comm->native == NULL)
            IQ_INFO("%s does not join the ranks' devices: %s", iq_wires[i]->name, iq_last_error());
        else if (result != ISGQ_SUCCESS)
            return result;
    }
    return ISGQ_SUCCESS;
}

static void name_wire(isgq_comm_t comm, const iq_stream_exec_t *exec)
{
    size_t length = strlen(comm->transport_names);
    if (exec->wire != NULL)
        snprintf(comm->transport_names + length, sizeof(comm->transport_names) - length, "%s%s", length > 0 ? "+" : "", exec->wire->ops->name);
}

static isgq_result_t set_up(isgq_comm_t comm, iq_stream_exec_t *exec, uint64_t token)
{
    const iq_device_t *device = iq_gpu_device(comm);
    exec->device = (iq_device_t){.cuda = device->cuda, .ordinal = device->ordinal, .fault = iq_gpu_stream_fault(comm),
                                 .strata = device->strata};
    exec->memory = (iq_scratch_t){.base = comm->scratch.base, .bytes = comm->scratch.bytes};
    size_t chunk = choose_chunk(comm);
    exec->site = (iq_site_t){.memory = &exec->memory, .host = &exec->host, .plans = &exec->plans, .device = &exec->device, .chunk_bytes = chunk,
                             .slot_bytes = slot_bytes(chunk), .slots = IQ_SLOTS, .streams = true};
    if (comm->nranks > 1)
        IQ_TRY(open_wire(comm, exec, token));
    if (exec->wire != NULL) {
        exec->site.rounds = exec->wire->ops->rounds;
        exec->site.slots = exec->wire->ops->slots;
        exec->sums_words = iq_config()->wire_sum && exec->wire->ops->sum_words != NULL;
    }
    IQ_TRY(iq_plan_cache_init(&exec->plans, PLANS));
    return exec->device.cuda->shared_alloc(exec->device.ordinal, sizeof(uint32_t), (void **)&exec->replays);
}

isgq_result_t iq_stream_open(isgq_comm_t comm, uint64_t token)
{
    for (int r = 0; r < comm->nranks; r++)
        if (comm->peers[r].device_type != ISGQ_DEVICE_CUDA)
            return ISGQ_SUCCESS;
    comm->stream_exec = calloc(1, sizeof(*comm->stream_exec));
    if (comm->stream_exec == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "executor of streams");
    isgq_result_t result = set_up(comm, comm->stream_exec, token);
    if (result == ISGQ_SUCCESS && comm->nranks > 1 && comm->stream_exec->wire == NULL) {
        iq_stream_close(comm);
        return ISGQ_SUCCESS;
    }
    if (result != ISGQ_SUCCESS)
        return result;
    name_wire(comm, comm->stream_exec);
    comm->scratch_reserved = iq_max(comm->scratch_reserved, iq_scratch_reserved(&comm->stream_exec->site));
    return ISGQ_SUCCESS;
}

void iq_stream_close(isgq_comm_t comm)
{
    iq_stream_exec_t *exec = comm->stream_exec;
    if (exec == NULL)
        return;
    if (exec->wire != NULL)
        exec->wire->ops->close(exec->wire);
    if (exec->replays != NULL)
        exec->device.cuda->shared_free(exec->device.ordinal, exec->replays);
    iq_plan_cache_fini(&exec->plans);
    comm->stream_exec = NULL;
    free(exec);
}
