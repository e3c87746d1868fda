/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The first message of every link of the wire "cuda_ipc": a word pattern that both ends know, sent and received as any other, so
 * that memory that maps but moves no data, or flags that do not arrive, are found while ranks meet and not in the middle of a
 * call.
 */
#include "transport/cuda_ipc.h"

#include "base/status.h"
#include "base/util.h"

#include <string.h>
#include <time.h>

/* No two links of a communicator carry the same. */
static void fill(uint64_t words[IQ_CUDA_IPC_TRIAL], uint64_t token, int from, int to)
{
    for (int i = 0; i < IQ_CUDA_IPC_TRIAL; i++) {
        const uint64_t key[] = {token, (uint64_t)from, (uint64_t)to, (uint64_t)i};
        words[i] = iq_hash(IQ_HASH_START, key, sizeof(key));
    }
}

static isgq_result_t send_to(iq_cuda_ipc_t *ipc, isgq_stream_t stream, int peer)
{
    const iq_cuda_ipc_lines_t *lines = ipc->out[peer].lines;
    void *slot;
    IQ_TRY(iq_cuda_ipc_begin_send(&ipc->base, stream, peer, sizeof(lines->sent), &slot));
    IQ_TRY(ipc->cuda->copy(ipc->device, stream, slot, lines->sent, sizeof(lines->sent)));
    return iq_cuda_ipc_end_send(&ipc->base, stream, peer);
}

static uint32_t state_of(const iq_cuda_ipc_link_t *link, unsigned slot)
{
    return __atomic_load_n(&link->lines->slots[slot].flag.state, __ATOMIC_ACQUIRE);
}

/* Its sender has said that the message is there; a stream that waited for a flag that never comes would be stuck. */
static isgq_result_t receive_from(iq_cuda_ipc_t *ipc, isgq_stream_t stream, int peer)
{
    iq_cuda_ipc_link_t *link = &ipc->in[peer];
    const void *slot;
    if (state_of(link, link->slot) != IQ_CUDA_IPC_FULL)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "cuda_ipc: the flag of a message from rank %d is %u instead of %d", peer,
                       state_of(link, link->slot), IQ_CUDA_IPC_FULL);
    IQ_TRY(iq_cuda_ipc_begin_receive(&ipc->base, stream, peer, sizeof(link->lines->received), &slot));
    IQ_TRY(ipc->cuda->copy(ipc->device, stream, link->lines->received, slot, sizeof(link->lines->received)));
    return iq_cuda_ipc_end_receive(&ipc->base, stream, peer);
}

typedef isgq_result_t (*with_peer_fn)(iq_cuda_ipc_t *ipc, isgq_stream_t stream, int peer);

static isgq_result_t await(iq_cuda_ipc_t *ipc, isgq_stream_t stream, iq_cuda_event_t event, uint64_t deadline_ns)
{
    const struct timespec pause = {.tv_nsec = 50000};
    isgq_result_t result;
    IQ_TRY(ipc->cuda->event_record(ipc->device, event, stream));
    while ((result = ipc->cuda->event_poll(ipc->device, event)) == ISGQ_IN_PROGRESS) {
        if (iq_now_ns() >= deadline_ns)
            return IQ_FAIL(ISGQ_ERR_TIMEOUT, "cuda_ipc: a trial message has not moved before the deadline");
        nanosleep(&pause, NULL);
    }
    return result;
}

static isgq_result_t with_all_peers(iq_cuda_ipc_t *ipc, with_peer_fn with_peer, uint64_t deadline_ns)
{
    isgq_stream_t stream = NULL;
    iq_cuda_event_t event = NULL;
    isgq_result_t result = ipc->cuda->stream_create(ipc->device, &stream);
    if (result == ISGQ_SUCCESS)
        result = ipc->cuda->event_create(ipc->device, &event);
    for (int peer = 0; peer < ipc->nranks && result == ISGQ_SUCCESS; peer++)
        if (peer != ipc->rank)
            result = with_peer(ipc, stream, peer);
    if (result == ISGQ_SUCCESS)
        result = await(ipc, stream, event, deadline_ns);
    if (result != ISGQ_SUCCESS)
        iq_cuda_ipc_let_go(&ipc->base); /* whatever the stream waits for */
    if (event != NULL)
        ipc->cuda->event_destroy(ipc->device, event);
    if (stream != NULL)
        ipc->cuda->stream_destroy(ipc->device, stream);
    return result;
}

isgq_result_t iq_cuda_ipc_trial_send(iq_cuda_ipc_t *ipc, uint64_t token, uint64_t deadline_ns)
{
    for (int peer = 0; peer < ipc->nranks; peer++)
        if (peer != ipc->rank)
            fill(ipc->out[peer].lines->sent, token, ipc->rank, peer);
    return with_all_peers(ipc, send_to, deadline_ns);
}

isgq_result_t iq_cuda_ipc_trial_receive(iq_cuda_ipc_t *ipc, uint64_t token, uint64_t deadline_ns)
{
    uint64_t expected[IQ_CUDA_IPC_TRIAL];
    IQ_TRY(with_all_peers(ipc, receive_from, deadline_ns));
    for (int peer = 0; peer < ipc->nranks; peer++) {
        const iq_cuda_ipc_link_t *link = &ipc->in[peer];
        if (peer == ipc->rank)
            continue;
        fill(expected, token, peer, ipc->rank);
        if (memcmp(link->lines->received, expected, sizeof(expected)) != 0)
            return IQ_FAIL(ISGQ_ERR_CORRUPT, "cuda_ipc: a trial message from rank %d did not arrive as it was sent", peer);
        if (state_of(link, 0) != IQ_CUDA_IPC_EMPTY)
            return IQ_FAIL(ISGQ_ERR_CORRUPT, "cuda_ipc: the flag of a message from rank %d cannot be cleared", peer);
    }
    return ISGQ_SUCCESS;
}
