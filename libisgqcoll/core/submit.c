/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a decided call to a queued one: fingerprint the arguments that all ranks must agree on, remember them, queue, wake the thread.
 */
#include "base/util.h"
#include "codec/guarded.h"
#include "core/exec_stream.h"
#include "core/gpu.h"
#include "core/tensor.h"

#include <stdio.h>
#include <string.h>

static const char *const kind_names[IQ_CALL_KIND_COUNT] = {"allreduce", "reduce_scatter", "allgather", "broadcast", "barrier", "factored"};

const char *iq_call_kind_name(iq_call_kind_t kind) { return kind_names[kind]; }

const char *iq_call_algorithm_name(const iq_call_t *call)
{
    return call->kind == IQ_CALL_FACTORED ? iq_factored_ways[call->way].name : call->algorithm->name;
}

/* ---- agreement ---- */

#define HISTORY_TEXT_BYTES 144

/* Lines of the tensor's shape and of what is known of its earlier results, "" if nobody asks. */
static const char *format_history(const iq_call_t *call, char line[HISTORY_TEXT_BYTES])
{
    unsigned long long before = (unsigned long long)(call->history - 1), mark = (unsigned long long)call->history_mark;
    if (call->power_rank != 0)
        snprintf(line, HISTORY_TEXT_BYTES, "shape %zu x %zu\nhistory of %llu calls\nhistory_mark %016llx\n", call->rows, call->columns, before,
                 mark);
    else if (call->quantizer->dense.codec.power_rank != 0)
        snprintf(line, HISTORY_TEXT_BYTES, "shape of no use\n");
    if (call->power_rank != 0 || call->quantizer->dense.codec.power_rank != 0)
        return line;
    if (call->codec.ops->learn == NULL && !iq_codec_predicts(&call->codec))
        return "";
    if (call->history == 0)
        return "history none\n";
    snprintf(line, HISTORY_TEXT_BYTES, "history of %llu calls\nhistory_mark %016llx\n", before, mark);
    return line;
}

static void format_arguments(const iq_call_t *call, char text[IQ_ARGUMENTS_TEXT_BYTES])
{
    int used = snprintf(text, IQ_ARGUMENTS_TEXT_BYTES, "call %s\ncaptured %s\n", kind_names[call->kind], call->captured ? "yes" : "no");
    size_t room = IQ_ARGUMENTS_TEXT_BYTES - (size_t)used;
    char *rest = text + used, history[HISTORY_TEXT_BYTES];
    if (call->kind == IQ_CALL_BARRIER)
        return;
    if (call->kind == IQ_CALL_FACTORED)
        snprintf(rest, room, "datatype %s\nop %s\nquantizer %s\nalgorithm %s\nmax_batch %zu\nm %zu\nn %zu\nbias %s\n",
                 iq_datatype_name(call->datatype), iq_red_op_name(call->op), call->quantizer->text, iq_call_algorithm_name(call),
                 call->max_batch, call->factors.m, call->factors.n, call->factors.bias ? "yes" : "no");
    else if (call->kind == IQ_CALL_BROADCAST)
        snprintf(rest, room, "datatype %s\ncount %zu\nroot %d\nalgorithm %s\n", iq_datatype_name(call->datatype), call->count, call->root,
                 call->algorithm->name);
    else
        snprintf(rest, room, "datatype %s\nop %s\ncount %zu\nquantizer %s\nalgorithm %s\n%sgrouped %u\n", iq_datatype_name(call->datatype),
                 call->kind == IQ_CALL_ALLGATHER ? "none" : iq_red_op_name(call->op), call->count, call->quantizer->text,
                 call->algorithm->name, format_history(call, history), call->may_fuse && call->grouped > 1 ? call->grouped : 1);
}

/* Words instead of bytes: hashing all of them one by one takes a tenth of a small call. */
static uint64_t hash_words(uint64_t hash, const uint64_t *words, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        hash = (hash ^ words[i]) * 0x9e3779b97f4a7c15ull;
        hash ^= hash >> 32;
    }
    return hash;
}

/* Hash of what all ranks must agree on. */
static uint64_t fingerprint(const iq_call_t *call)
{
    bool factored = call->kind == IQ_CALL_FACTORED, powers = call->power_rank != 0;
    bool sums = call->kind != IQ_CALL_ALLGATHER && call->kind != IQ_CALL_BROADCAST;
    uint64_t small = (uint64_t)call->kind | (uint64_t)call->datatype << 8 | (sums ? (uint64_t)call->op << 16 : 0) | (uint64_t)call->way << 24 |
                     (uint64_t)call->captured << 32 | (uint64_t)(factored && call->factors.bias != NULL) << 33;
    const uint64_t key[] = {small,
                            (uint64_t)call->root,
                            call->count,
                            call->history,
                            call->history_mark,
                            powers ? call->rows : 0,
                            powers ? call->columns : 0,
                            factored ? call->max_batch : 0,
                            factored ? call->factors.m : 0,
                            factored ? call->factors.n : 0};
    uint64_t hash = hash_words(IQ_HASH_START, key, IQ_ARRAY_SIZE(key));
    const char *name = iq_call_algorithm_name(call);
    hash = iq_hash(hash, name, strlen(name));
    if (call->quantizer != NULL && call->kind != IQ_CALL_BROADCAST && call->kind != IQ_CALL_BARRIER)
        hash = iq_hash(hash, call->quantizer->text, strlen(call->quantizer->text));
    return hash;
}

bool iq_call_arguments(isgq_comm_t comm, uint64_t sequence, char text[IQ_ARGUMENTS_TEXT_BYTES])
{
    pthread_mutex_lock(&comm->queue_lock);
    bool remembered = sequence > 0 && sequence <= comm->submitted && sequence + IQ_QUEUE_CALLS > comm->submitted;
    if (remembered)
        format_arguments(&comm->calls[sequence % IQ_QUEUE_CALLS], text);
    pthread_mutex_unlock(&comm->queue_lock);
    return remembered;
}

/* ---- queueing ---- */

static uint64_t queue_room(isgq_comm_t comm) { return comm->gpu != NULL ? IQ_GPU_QUEUE_CALLS : IQ_QUEUE_CALLS; }

bool iq_queue_full(isgq_comm_t comm, size_t ncalls)
{
    return atomic_load(&comm->submitted) + ncalls > atomic_load(&comm->completed) + queue_room(comm);
}

isgq_result_t iq_queue_wait(isgq_comm_t comm, size_t ncalls)
{
    return iq_queue_full(comm, ncalls) ? iq_progress_wait(comm, comm->submitted + ncalls - queue_room(comm), IQ_FOREVER) : ISGQ_SUCCESS;
}

/* What a device does with the call, before anybody sees it. */
static isgq_result_t enqueue(isgq_comm_t comm, iq_call_t *call)
{
    bool begun;
    if (comm->gpu == NULL)
        return ISGQ_SUCCESS;
    call->streamed = iq_stream_takes(comm, call);
    if (!call->streamed && comm->stream_exec != NULL)
        return iq_stream_enqueue_hosted(comm, call);
    if (!call->streamed)
        return iq_gpu_enqueue(comm, call->sequence, call->stream);
    isgq_result_t result = iq_stream_enqueue(comm, call, &begun);
    return result == ISGQ_SUCCESS || !begun ? result : iq_gpu_give_up(comm, result);
}

/* Must the communicator's thread be woken for call `sequence`? A napping one looks by itself; but who has made two calls and waits for neither
 * should not have to wait for it either. */
static bool needs_thread(isgq_comm_t comm, uint64_t sequence)
{
    bool more = atomic_load(&comm->completed) + 1 < sequence;
    bool wake = comm->thread_state == IQ_THREAD_ASLEEP || (comm->thread_state == IQ_THREAD_NAPPING_LONG && more);
    if (!wake || atomic_load(&comm->waiters) > 0)
        return false;
    comm->thread_state = IQ_THREAD_AWAKE;
    return true;
}

/* Into its slot; queue_lock is held. The quantizer that was remembered there is the caller's to let go. */
static isgq_quantizer_t put(isgq_comm_t comm, const iq_call_t *call)
{
    iq_call_t *slot = &comm->calls[call->sequence % IQ_QUEUE_CALLS];
    isgq_quantizer_t forgotten = slot->quantizer;
    *slot = *call;
    slot->history_mark = slot->history != 0 ? iq_tensor_mark(slot->tensor, slot, slot->sequence) : 0;
    slot->fingerprint = fingerprint(slot);
    if (slot->quantizer == forgotten)
        forgotten = NULL; /* the reference stays */
    else if (slot->quantizer != NULL)
        iq_quantizer_retain(slot->quantizer);
    iq_tensor_hold(slot->tensor);
    return forgotten;
}

/* Frames of a call that carries others tell whether ranks agree on all of them. */
static void sign_fused(isgq_comm_t comm, uint64_t first, size_t ncalls)
{
    for (uint64_t sequence = first; sequence < first + ncalls; sequence++) {
        iq_call_t *call = &comm->calls[sequence % IQ_QUEUE_CALLS];
        if (call->fused > 0)
            call->fingerprint = iq_fuse_fingerprint(comm, call);
    }
}

isgq_result_t iq_submit(isgq_comm_t comm, iq_call_t *const calls[], size_t ncalls)
{
    isgq_quantizer_t forgotten[IQ_FUSE_CALLS];
    IQ_TRY(iq_comm_check(comm));
    if (comm->finalized)
        return IQ_FAIL(ISGQ_ERR_INVALID_USAGE, "%s: the communicator was finalized", kind_names[calls[0]->kind]);
    IQ_TRY(iq_queue_wait(comm, ncalls));
    uint64_t first = comm->submitted + 1; /* one thread at a time makes calls */
    for (size_t i = 0; i < ncalls; i++) {
        calls[i]->sequence = first + i;
        IQ_TRY(enqueue(comm, calls[i]));
    }
    pthread_mutex_lock(&comm->queue_lock);
    for (size_t i = 0; i < ncalls; i++)
        forgotten[i] = put(comm, calls[i]);
    sign_fused(comm, first, ncalls);
    atomic_store(&comm->submitted, first + ncalls - 1);
    bool wake = needs_thread(comm, first + ncalls - 1);
    pthread_mutex_unlock(&comm->queue_lock);
    for (size_t i = 0; i < ncalls; i++)
        isgq_quantizer_destroy(forgotten[i]);
    if (wake)
        pthread_cond_signal(&comm->queue_changed);
    return ISGQ_SUCCESS;
}
