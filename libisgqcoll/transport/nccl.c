/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The wire over NCCL: messages and rounds. A message is bytes, so NCCL moves what the codec made as it is. Sums of 32-bit integers are
 * NCCL's own allreduce.
 *
 * NCCL may not be called inside a group that the calling thread has opened: what is given to NCCL then starts when that group ends.
 */
#include "transport/nccl_wire.h"

#include "base/status.h"
#include "base/util.h"

#include <sched.h>

/* ---- the communicator ---- */

isgq_result_t iq_nccl_enter(iq_nccl_t *wire)
{
    if (!atomic_load(&wire->gone) && pthread_rwlock_tryrdlock(&wire->gate) == 0) {
        if (!atomic_load(&wire->gone))
            return ISGQ_SUCCESS;
        pthread_rwlock_unlock(&wire->gate);
    }
    return IQ_FAIL(ISGQ_ERR_REMOTE, "nccl: rank %d has given up its communicator", wire->rank);
}

void iq_nccl_leave(iq_nccl_t *wire) { pthread_rwlock_unlock(&wire->gate); }

/* An application's communicator may be non-blocking: then the call goes on by itself, and the next one must wait for it. */
static isgq_result_t settle(iq_nccl_t *wire, iq_nccl_result_t result, const char *what)
{
    while (result == IQ_NCCL_IN_PROGRESS && !atomic_load(&wire->gone)) {
        iq_nccl_result_t asked = wire->nccl->comm_get_async_error(wire->comm, &result);
        if (asked != IQ_NCCL_SUCCESS)
            result = asked;
        if (result == IQ_NCCL_IN_PROGRESS)
            sched_yield();
    }
    isgq_result_t settled = iq_nccl_result(wire->nccl, wire->comm, result, what);
    return settled == ISGQ_IN_PROGRESS ? IQ_FAIL(ISGQ_ERR_REMOTE, "nccl: %s: given up", what) : settled;
}

/* A graph that is captured keeps NCCL's communicator for as long as it lives. */
static isgq_result_t note_capture(iq_nccl_t *wire, isgq_stream_t stream)
{
    bool capturing;
    IQ_TRY(wire->cuda->stream_capturing(wire->device, stream, &capturing));
    if (capturing)
        atomic_store(&wire->captured, true);
    return ISGQ_SUCCESS;
}

/* ---- messages ---- */

static bool is_empty(const iq_nccl_box_t *box)
{
    for (size_t i = 0; i < box->count; i++)
        if (box->messages[i].stage != IQ_NCCL_DONE)
            return false;
    return true;
}

static iq_nccl_message_t *find(const iq_nccl_box_t *box, int peer, iq_nccl_stage_t stage)
{
    for (size_t i = 0; i < box->count; i++)
        if (box->messages[i].peer == peer && box->messages[i].stage == stage)
            return &box->messages[i];
    return NULL;
}

static isgq_result_t append(iq_nccl_t *wire, iq_nccl_box_t *box, int peer, size_t bytes, iq_nccl_stage_t stage, void **data)
{
    iq_assert(peer >= 0 && peer < wire->nranks && peer != wire->rank);
    if (is_empty(box))
        box->count = box->used = 0;
    if (bytes > wire->slot_bytes || iq_align_up(bytes, 256) > box->bytes - box->used || box->count == box->room)
        return IQ_FAIL(ISGQ_ERR_INTERNAL, "nccl: message of %zu bytes with rank %d, the %zuth of its round, but %zu of %zu bytes are used",
                       bytes, peer, box->count + 1, box->used, box->bytes);
    iq_nccl_message_t *message = &box->messages[box->count++];
    *message = (iq_nccl_message_t){.peer = peer, .stage = stage, .data = box->memory + box->used, .bytes = bytes};
    box->used += iq_align_up(bytes, 256);
    *data = message->data;
    return ISGQ_SUCCESS;
}

static isgq_result_t begin_send(iq_wire_t *base, isgq_stream_t stream, int peer, size_t bytes, void **payload)
{
    iq_nccl_t *wire = (iq_nccl_t *)base;
    (void)stream;
    return append(wire, &wire->out, peer, bytes, IQ_NCCL_OPEN, payload);
}

static isgq_result_t end_send(iq_wire_t *base, isgq_stream_t stream, int peer)
{
    iq_nccl_t *wire = (iq_nccl_t *)base;
    iq_nccl_message_t *message = find(&wire->out, peer, IQ_NCCL_OPEN);
    (void)stream;
    if (message == NULL)
        return IQ_FAIL(ISGQ_ERR_INTERNAL, "nccl: no message to rank %d was begun", peer);
    message->stage = IQ_NCCL_READY;
    return ISGQ_SUCCESS;
}

static isgq_result_t expect(iq_wire_t *base, int peer, size_t bytes)
{
    iq_nccl_t *wire = (iq_nccl_t *)base;
    void *data;
    return append(wire, &wire->in, peer, bytes, IQ_NCCL_READY, &data);
}

static isgq_result_t begin_receive(iq_wire_t *base, isgq_stream_t stream, int peer, size_t bytes, const void **payload)
{
    iq_nccl_t *wire = (iq_nccl_t *)base;
    iq_nccl_message_t *message = find(&wire->in, peer, IQ_NCCL_ARRIVED);
    (void)stream;
    if (message == NULL || message->bytes != bytes)
        return IQ_FAIL(ISGQ_ERR_INTERNAL, "nccl: a message of %zu bytes from rank %d was not in this round", bytes, peer);
    message->stage = IQ_NCCL_OPEN;
    *payload = message->data;
    return ISGQ_SUCCESS;
}

static isgq_result_t end_receive(iq_wire_t *base, isgq_stream_t stream, int peer)
{
    iq_nccl_t *wire = (iq_nccl_t *)base;
    iq_nccl_message_t *message = find(&wire->in, peer, IQ_NCCL_OPEN);
    (void)stream;
    if (message == NULL)
        return IQ_FAIL(ISGQ_ERR_INTERNAL, "nccl: no message from rank %d was begun", peer);
    message->stage = IQ_NCCL_DONE;
    return ISGQ_SUCCESS;
}

/* ---- rounds ---- */

/* All that is ready, and what becomes of it. The first error is the one to report; the group ends all the same. */
static iq_nccl_result_t send_and_receive(iq_nccl_t *wire, isgq_stream_t stream)
{
    const iq_nccl_functions_t *nccl = wire->nccl;
    iq_nccl_result_t result = nccl->group_start();
    if (result != IQ_NCCL_SUCCESS)
        return result;
    for (size_t i = 0; i < wire->out.count && result == IQ_NCCL_SUCCESS; i++) {
        iq_nccl_message_t *message = &wire->out.messages[i];
        if (message->stage != IQ_NCCL_READY)
            continue;
        result = nccl->send(message->data, message->bytes, IQ_NCCL_UINT8, message->peer, wire->comm, stream);
        message->stage = IQ_NCCL_DONE;
    }
    for (size_t i = 0; i < wire->in.count && result == IQ_NCCL_SUCCESS; i++) {
        iq_nccl_message_t *message = &wire->in.messages[i];
        if (message->stage != IQ_NCCL_READY)
            continue;
        result = nccl->recv(message->data, message->bytes, IQ_NCCL_UINT8, message->peer, wire->comm, stream);
        message->stage = IQ_NCCL_ARRIVED;
    }
    iq_nccl_result_t ended = nccl->group_end();
    return result != IQ_NCCL_SUCCESS ? result : ended;
}

static isgq_result_t exchange(iq_wire_t *base, isgq_stream_t stream)
{
    iq_nccl_t *wire = (iq_nccl_t *)base;
    size_t ready = 0;
    for (size_t i = 0; i < wire->out.count; i++) {
        if (wire->out.messages[i].stage == IQ_NCCL_OPEN)
            return IQ_FAIL(ISGQ_ERR_INTERNAL, "nccl: the message to rank %d was not ended", wire->out.messages[i].peer);
        ready += wire->out.messages[i].stage == IQ_NCCL_READY;
    }
    for (size_t i = 0; i < wire->in.count; i++)
        ready += wire->in.messages[i].stage == IQ_NCCL_READY;
    if (ready == 0)
        return ISGQ_SUCCESS;
    IQ_TRY(note_capture(wire, stream));
    IQ_TRY(iq_nccl_enter(wire));
    isgq_result_t result = wire->own ? ISGQ_SUCCESS : settle(wire, IQ_NCCL_IN_PROGRESS, "the application's last operation");
    if (result == ISGQ_SUCCESS)
        result = settle(wire, send_and_receive(wire, stream), "messages");
    iq_nccl_leave(wire);
    return result;
}

/* In a group of its own, because old versions of NCCL launch on the current device otherwise. */
static iq_nccl_result_t sum(iq_nccl_t *wire, isgq_stream_t stream, void *words, size_t count)
{
    const iq_nccl_functions_t *nccl = wire->nccl;
    iq_nccl_result_t result = nccl->group_start();
    if (result != IQ_NCCL_SUCCESS)
        return result;
    result = nccl->all_reduce(words, words, count, IQ_NCCL_UINT32, IQ_NCCL_SUM, wire->comm, stream);
    iq_nccl_result_t ended = nccl->group_end();
    return result != IQ_NCCL_SUCCESS ? result : ended;
}

static isgq_result_t sum_words(iq_wire_t *base, isgq_stream_t stream, void *words, size_t count)
{
    iq_nccl_t *wire = (iq_nccl_t *)base;
    if (count == 0)
        return ISGQ_SUCCESS;
    IQ_TRY(note_capture(wire, stream));
    IQ_TRY(iq_nccl_enter(wire));
    isgq_result_t result = wire->own ? ISGQ_SUCCESS : settle(wire, IQ_NCCL_IN_PROGRESS, "the application's last operation");
    if (result == ISGQ_SUCCESS)
        result = settle(wire, sum(wire, stream, words, count), "sum");
    iq_nccl_leave(wire);
    return result;
}

/* ---- hosts ---- */

static int awaited(iq_wire_t *base)
{
    (void)base; /* NCCL does not tell */
    return -1;
}

static isgq_result_t check(iq_wire_t *base)
{
    iq_nccl_t *wire = (iq_nccl_t *)base;
    iq_nccl_result_t error = IQ_NCCL_SUCCESS;
    IQ_TRY(iq_nccl_enter(wire));
    iq_nccl_result_t asked = wire->nccl->comm_get_async_error(wire->comm, &error);
    error = asked != IQ_NCCL_SUCCESS ? asked : error;
    isgq_result_t result = iq_nccl_result(wire->nccl, wire->comm, error, "communicator");
    iq_nccl_leave(wire);
    return result == ISGQ_IN_PROGRESS ? ISGQ_SUCCESS : result;
}

const iq_wire_ops_t iq_wire_nccl = {
    .name = "nccl",
    .rounds = true,
    .open = iq_nccl_open,
    .close = iq_nccl_close,
    .begin_send = begin_send,
    .end_send = end_send,
    .begin_receive = begin_receive,
    .end_receive = end_receive,
    .expect = expect,
    .exchange = exchange,
    .let_go = iq_nccl_let_go,
    .awaited = awaited,
    .check = check,
    .sum_words = sum_words,
};
