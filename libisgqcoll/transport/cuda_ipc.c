/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The wire between ranks of one host: plain pointers between threads, CUDA IPC between processes. Nothing here touches data: a
 * message is two batches of flag operations at either end, and whoever uses the wire enqueues the work between them. See
 * cuda_ipc.h for the memory.
 *
 * A flag belongs to both ends of its link, so when one lets go, waits of the other end on it pass too and read garbage. That is
 * no harm: a rank lets go because its communicator has failed, and then all ranks' have. What must not happen is that a rank
 * takes such a call for a success because it has not heard of the failure yet. Therefore let_go marks the rank before it touches
 * a flag, and `check` finds the mark: a call whose end a stream has reached is good only if `check` says so afterwards.
 */
#include "transport/cuda_ipc.h"

#include "base/status.h"
#include "base/util.h"

/* ---- memory ---- */

size_t iq_cuda_ipc_shared_bytes(size_t nranks)
{
    size_t links, bytes;
    if (!iq_checked_mul(nranks, nranks, &links) || !iq_checked_mul(links, sizeof(iq_cuda_ipc_lines_t), &bytes))
        return 0;
    return __builtin_add_overflow(bytes, nranks * sizeof(iq_cuda_ipc_rank_t), &bytes) ? 0 : bytes;
}

iq_cuda_ipc_lines_t *iq_cuda_ipc_lines(const iq_cuda_ipc_t *ipc, int from, int to)
{
    iq_cuda_ipc_lines_t *first = (iq_cuda_ipc_lines_t *)(void *)(ipc->ranks + ipc->nranks);
    return first + (size_t)from * (size_t)ipc->nranks + (size_t)to;
}

/* ---- messages ---- */

/* Wait for a state of the link's next slot. The host can see meanwhile whom the stream waits for. */
static isgq_result_t begin(iq_cuda_ipc_t *ipc, isgq_stream_t stream, int peer, size_t bytes, iq_cuda_ipc_link_t *links,
                           uint32_t state, unsigned char **payload)
{
    iq_cuda_ipc_link_t *link = &links[peer];
    iq_cuda_flag_t *position = &ipc->ranks[ipc->rank].position;
    const iq_cuda_flag_op_t ops[] = {
        {.flag = position, .value = (uint32_t)peer + 1},
        {.flag = &link->lines->slots[link->slot].flag, .value = state, .wait = true},
        {.flag = position, .value = 0},
    };
    iq_assert(peer >= 0 && peer < ipc->nranks && peer != ipc->rank && !link->begun);
    if (bytes > ipc->slot_bytes)
        return IQ_FAIL(ISGQ_ERR_INTERNAL, "cuda_ipc: message of %zu bytes with rank %d, but slots have %zu", bytes, peer,
                       ipc->slot_bytes);
    IQ_TRY(ipc->cuda->flags(ipc->device, stream, ops, IQ_ARRAY_SIZE(ops)));
    link->begun = true;
    *payload = link->memory + link->slot * ipc->slot_bytes;
    return ISGQ_SUCCESS;
}

/* Tell the other end, and go on to the next slot. */
static isgq_result_t end(iq_cuda_ipc_t *ipc, isgq_stream_t stream, iq_cuda_ipc_link_t *link, uint32_t state)
{
    const iq_cuda_flag_op_t op = {.flag = &link->lines->slots[link->slot].flag, .value = state};
    iq_assert(link->begun);
    IQ_TRY(ipc->cuda->flags(ipc->device, stream, &op, 1));
    link->begun = false;
    link->slot = (link->slot + 1) % IQ_CUDA_IPC_SLOTS;
    return ISGQ_SUCCESS;
}

isgq_result_t iq_cuda_ipc_begin_send(iq_wire_t *wire, isgq_stream_t stream, int peer, size_t bytes, void **payload)
{
    iq_cuda_ipc_t *ipc = (iq_cuda_ipc_t *)wire;
    unsigned char *slot = NULL;
    IQ_TRY(begin(ipc, stream, peer, bytes, ipc->out, IQ_CUDA_IPC_EMPTY, &slot));
    *payload = slot;
    return ISGQ_SUCCESS;
}

isgq_result_t iq_cuda_ipc_end_send(iq_wire_t *wire, isgq_stream_t stream, int peer)
{
    iq_cuda_ipc_t *ipc = (iq_cuda_ipc_t *)wire;
    return end(ipc, stream, &ipc->out[peer], IQ_CUDA_IPC_FULL);
}

isgq_result_t iq_cuda_ipc_begin_receive(iq_wire_t *wire, isgq_stream_t stream, int peer, size_t bytes, const void **payload)
{
    iq_cuda_ipc_t *ipc = (iq_cuda_ipc_t *)wire;
    unsigned char *slot = NULL;
    IQ_TRY(begin(ipc, stream, peer, bytes, ipc->in, IQ_CUDA_IPC_FULL, &slot));
    *payload = slot;
    return ISGQ_SUCCESS;
}

isgq_result_t iq_cuda_ipc_end_receive(iq_wire_t *wire, isgq_stream_t stream, int peer)
{
    iq_cuda_ipc_t *ipc = (iq_cuda_ipc_t *)wire;
    return end(ipc, stream, &ipc->in[peer], IQ_CUDA_IPC_EMPTY);
}

/* ---- hosts ---- */

void iq_cuda_ipc_let_go(iq_wire_t *wire)
{
    iq_cuda_ipc_t *ipc = (iq_cuda_ipc_t *)wire;
    atomic_store(&ipc->ranks[ipc->rank].gone, 1);
    for (int peer = 0; peer < ipc->nranks; peer++)
        for (unsigned slot = 0; slot < IQ_CUDA_IPC_SLOTS && peer != ipc->rank; slot++) {
            __atomic_store_n(&ipc->in[peer].lines->slots[slot].flag.gone, 1, __ATOMIC_SEQ_CST);
            __atomic_store_n(&ipc->out[peer].lines->slots[slot].flag.gone, 1, __ATOMIC_SEQ_CST);
        }
}

static int awaited(iq_wire_t *wire)
{
    iq_cuda_ipc_t *ipc = (iq_cuda_ipc_t *)wire;
    uint32_t position = __atomic_load_n(&ipc->ranks[ipc->rank].position.state, __ATOMIC_ACQUIRE);
    return position >= 1 && position <= (uint32_t)ipc->nranks ? (int)position - 1 : -1;
}

/* Positions and flags change with every message; what of them a host happens to see is enough to tell that something moves. */
static uint64_t activity(iq_wire_t *wire)
{
    iq_cuda_ipc_t *ipc = (iq_cuda_ipc_t *)wire;
    uint64_t seen = __atomic_load_n(&ipc->ranks[ipc->rank].position.state, __ATOMIC_RELAXED);
    for (int peer = 0; peer < ipc->nranks; peer++)
        for (unsigned slot = 0; slot < IQ_CUDA_IPC_SLOTS && peer != ipc->rank; slot++) {
            seen = 31 * seen + __atomic_load_n(&ipc->in[peer].lines->slots[slot].flag.state, __ATOMIC_RELAXED);
            seen = 31 * seen + __atomic_load_n(&ipc->out[peer].lines->slots[slot].flag.state, __ATOMIC_RELAXED);
        }
    return seen;
}

static isgq_result_t check(iq_wire_t *wire)
{
    iq_cuda_ipc_t *ipc = (iq_cuda_ipc_t *)wire;
    for (int rank = 0; rank < ipc->nranks; rank++)
        if (atomic_load(&ipc->ranks[rank].gone) != 0)
            return IQ_FAIL(ISGQ_ERR_REMOTE, "cuda_ipc: rank %d has given up, and what it sent since is void", rank);
    return ISGQ_SUCCESS;
}

const iq_wire_ops_t iq_wire_cuda_ipc = {
    .name = "cuda_ipc",
    .rounds = false,
    .slots = IQ_CUDA_IPC_SLOTS,
    .open = iq_cuda_ipc_open,
    .close = iq_cuda_ipc_close,
    .begin_send = iq_cuda_ipc_begin_send,
    .end_send = iq_cuda_ipc_end_send,
    .begin_receive = iq_cuda_ipc_begin_receive,
    .end_receive = iq_cuda_ipc_end_receive,
    .let_go = iq_cuda_ipc_let_go,
    .awaited = awaited,
    .activity = activity,
    .check = check,
};
