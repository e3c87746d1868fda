/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranks come together on the wire "cuda_ipc", in four steps, each ended by iq_wire_agree: make the own memory, share the host
 * memory, open the peers' memory and send a trial message, receive theirs. So all ranks go on or none does, with the same
 * sentence. The trial finds what succeeds at every call and still moves no data, as in some virtual machines.
 */
#include "transport/cuda_ipc.h"

#include "base/log.h"
#include "base/status.h"
#include "base/util.h"

#include <stdlib.h>
#include <string.h>

#define TRIAL_NS 30000000000u /* a message that has not moved by then never will, and other wires want their turn */

#define PREFIX "cuda_ipc: "

/* What ranks tell each other when all have made their part. */
typedef struct card {
    iq_segment_name_t name;  /* of the host memory; from rank 0 */
    iq_cuda_handle_t handle; /* of the device memory, for other processes */
    uint64_t address;        /* for this process */
    int32_t device, padding; /* as this process counts them */
} card_t;

/* Lives during open only. */
typedef struct opening {
    iq_wire_params_t params; /* with `gather` below */
    const iq_wire_params_t *given;
    iq_cuda_ipc_t *ipc;
    uint64_t deadline_ns; /* leaves time for the next allgather */
    card_t *cards;        /* [nranks] */
    int *ranks;           /* [nranks] */
    bool answered;        /* the last allgather has come back */
} opening_t;

static bool in_this_process(const iq_wire_params_t *params, int peer)
{
    return params->peers[peer].process == params->peers[params->rank].process;
}

static isgq_result_t gather(void *context, const void *send, void *recv, size_t bytes)
{
    opening_t *opening = context;
    isgq_result_t result = opening->given->allgather(opening->given->allgather_context, send, recv, bytes);
    opening->answered = result == ISGQ_SUCCESS;
    return result;
}

/* ---- the steps ---- */

static isgq_result_t check_machine(const iq_wire_params_t *params)
{
    iq_cuda_device_t description;
    for (int peer = 1; peer < params->nranks; peer++)
        if (params->peers[peer].host != params->peers[0].host)
            return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, PREFIX "ranks 0 and %d are on different hosts", peer);
    IQ_TRY(params->cuda->describe(params->device, &description));
    if (!description.orders_ranks)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, PREFIX "streams of device %d (%s) cannot wait for other ranks", params->device,
                       description.name);
    return ISGQ_SUCCESS;
}

/* Slots for what all others send. */
static isgq_result_t take_memory(opening_t *opening, card_t *card)
{
    const iq_wire_params_t *params = &opening->params;
    iq_cuda_ipc_memory_t *memory = opening->ipc->memory;
    bool abroad = false;
    if (!iq_checked_mul((size_t)params->nranks - 1, IQ_CUDA_IPC_SLOTS, &memory->bytes) ||
        !iq_checked_mul(memory->bytes, params->slot_bytes, &memory->bytes))
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, PREFIX "slots of %zu bytes for %d ranks", params->slot_bytes, params->nranks);
    if (memory->bytes == 0)
        return ISGQ_SUCCESS;
    IQ_TRY(memory->cuda->shared_alloc(memory->device, memory->bytes, &memory->base));
    card->address = (uint64_t)(uintptr_t)memory->base;
    for (int peer = 0; peer < params->nranks; peer++)
        abroad |= !in_this_process(params, peer);
    return abroad ? memory->cuda->shared_export(memory->device, memory->base, &card->handle) : ISGQ_SUCCESS;
}

static isgq_result_t prepare(opening_t *opening, card_t *card)
{
    const iq_wire_params_t *params = &opening->params;
    const iq_segment_params_t segment = {
        .user = "cuda_ipc",
        .token = params->token,
        .shape = {params->slot_bytes, IQ_CUDA_IPC_SLOTS},
        .bytes = iq_cuda_ipc_shared_bytes((size_t)params->nranks),
        .ranks = opening->ranks,
        .count = (unsigned)params->nranks,
        .rank = params->rank,
        .deadline_ns = opening->deadline_ns,
    };
    IQ_TRY(check_machine(params));
    if (segment.bytes == 0)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, PREFIX "flags of %d ranks", params->nranks);
    IQ_TRY(take_memory(opening, card));
    return iq_segment_prepare(&opening->ipc->memory->segment, &segment, &card->name);
}

static isgq_result_t share(opening_t *opening)
{
    iq_cuda_ipc_t *ipc = opening->ipc;
    iq_segment_t *segment = &ipc->memory->segment;
    IQ_TRY(iq_segment_join(segment, &opening->cards[0].name));
    ipc->ranks = segment->memory;
    IQ_TRY(ipc->cuda->pin(ipc->device, segment->mapping, segment->mapped));
    ipc->pinned = true;
    for (int peer = 0; peer < ipc->nranks; peer++) {
        ipc->in[peer].lines = iq_cuda_ipc_lines(ipc, peer, ipc->rank);
        ipc->out[peer].lines = iq_cuda_ipc_lines(ipc, ipc->rank, peer);
        for (unsigned slot = 0; slot < IQ_CUDA_IPC_SLOTS; slot++)
            __atomic_store_n(&ipc->in[peer].lines->slots[slot].flag.state, IQ_CUDA_IPC_EMPTY, __ATOMIC_SEQ_CST);
    }
    return ISGQ_SUCCESS;
}

/* Where the slots of the link from `from` to `to` begin in the memory of `to`. */
static unsigned char *slots_of(const iq_cuda_ipc_t *ipc, void *memory, int from, int to)
{
    size_t place = (size_t)(from < to ? from : from - 1);
    return (unsigned char *)memory + place * IQ_CUDA_IPC_SLOTS * ipc->slot_bytes;
}

static isgq_result_t reach_peer(opening_t *opening, int peer, void **memory)
{
    const card_t *card = &opening->cards[peer];
    iq_cuda_ipc_t *ipc = opening->ipc;
    if (!in_this_process(&opening->params, peer)) {
        IQ_TRY(ipc->cuda->shared_open(ipc->device, &card->handle, &ipc->opened[peer]));
        *memory = ipc->opened[peer];
        return ISGQ_SUCCESS;
    }
    *memory = (void *)(uintptr_t)card->address;
    return card->device == ipc->device ? ISGQ_SUCCESS : ipc->cuda->reach(ipc->device, card->device);
}

static isgq_result_t connect_peers(opening_t *opening)
{
    iq_cuda_ipc_t *ipc = opening->ipc;
    for (int peer = 0; peer < ipc->nranks; peer++) {
        void *memory = NULL;
        if (peer == ipc->rank)
            continue;
        IQ_TRY(reach_peer(opening, peer, &memory));
        if (memory == NULL || (uintptr_t)memory % 256 != 0)
            return IQ_FAIL(ISGQ_ERR_CORRUPT, PREFIX "memory of rank %d appears at %p, which is not aligned", peer, memory);
        ipc->out[peer].memory = slots_of(ipc, memory, ipc->rank, peer);
        ipc->in[peer].memory = slots_of(ipc, ipc->memory->base, peer, ipc->rank);
    }
    return iq_cuda_ipc_trial_send(ipc, opening->params.token, opening->deadline_ns);
}

static isgq_result_t come_together(opening_t *opening)
{
    const iq_wire_params_t *params = &opening->params;
    iq_cuda_ipc_t *ipc = opening->ipc;
    card_t card;
    memset(&card, 0, sizeof(card));
    card.device = params->device;
    IQ_TRY(iq_wire_agree(params, "cuda_ipc", prepare(opening, &card)));
    IQ_TRY(params->allgather(params->allgather_context, &card, opening->cards, sizeof(card)));

    isgq_result_t own = share(opening);
    ipc->exposed = own == ISGQ_SUCCESS; /* even if the answer never gets here, others may have it and go on */
    own = iq_wire_agree(params, "cuda_ipc", own);
    if (own != ISGQ_SUCCESS && opening->answered)
        ipc->exposed = false;
    IQ_TRY(own);
    IQ_TRY(iq_wire_agree(params, "cuda_ipc", connect_peers(opening)));
    return iq_wire_agree(params, "cuda_ipc", iq_cuda_ipc_trial_receive(ipc, params->token, opening->deadline_ns));
}

/* ---- open, close ---- */

static iq_cuda_ipc_t *make(const iq_wire_params_t *params)
{
    size_t nranks = (size_t)params->nranks;
    iq_cuda_ipc_t *ipc = calloc(1, sizeof(*ipc));
    if (ipc == NULL)
        return NULL;
    *ipc = (iq_cuda_ipc_t){.base.ops = &iq_wire_cuda_ipc,
                           .cuda = params->cuda,
                           .rank = params->rank,
                           .nranks = params->nranks,
                           .device = params->device,
                           .slot_bytes = params->slot_bytes,
                           .memory = calloc(1, sizeof(*ipc->memory)),
                           .in = calloc(nranks, sizeof(*ipc->in)),
                           .out = calloc(nranks, sizeof(*ipc->out)),
                           .opened = calloc(nranks, sizeof(*ipc->opened))};
    if (ipc->memory == NULL || ipc->in == NULL || ipc->out == NULL || ipc->opened == NULL) {
        iq_cuda_ipc_close(&ipc->base);
        return NULL;
    }
    ipc->memory->cuda = params->cuda;
    ipc->memory->device = params->device;
    ipc->memory->nranks = params->nranks;
    return ipc;
}

void iq_cuda_ipc_close(iq_wire_t *wire)
{
    iq_cuda_ipc_t *ipc = (iq_cuda_ipc_t *)wire;
    for (int peer = 0; peer < ipc->nranks && ipc->opened != NULL; peer++)
        if (ipc->opened[peer] != NULL)
            ipc->cuda->shared_close(ipc->device, ipc->opened[peer]);
    if (ipc->pinned)
        ipc->cuda->unpin(ipc->memory->segment.mapping);
    if (ipc->exposed)
        iq_cuda_ipc_retire(ipc->memory, ipc->rank);
    else
        iq_cuda_ipc_discard(ipc->memory);
    free(ipc->opened);
    free(ipc->out);
    free(ipc->in);
    free(ipc);
}

isgq_result_t iq_cuda_ipc_open(const iq_wire_params_t *params, iq_wire_t **wire)
{
    uint64_t now = iq_now_ns(), left = params->deadline_ns > now ? params->deadline_ns - now : 0;
    size_t nranks = (size_t)params->nranks;
    opening_t opening = {.params = *params,
                         .given = params,
                         .ipc = make(params),
                         .deadline_ns = now + iq_min(left - iq_min(left / 4, 1000000000u), TRIAL_NS),
                         .cards = calloc(nranks, sizeof(card_t)),
                         .ranks = calloc(nranks, sizeof(int))};
    isgq_result_t result = ISGQ_ERR_NO_MEMORY;
    iq_cuda_ipc_sweep();
    if (opening.ipc == NULL || opening.cards == NULL || opening.ranks == NULL) {
        result = IQ_FAIL(result, PREFIX "tables of %d ranks", params->nranks);
        goto free_tables;
    }
    for (int rank = 0; rank < params->nranks; rank++)
        opening.ranks[rank] = rank;
    opening.params.allgather = gather;
    opening.params.allgather_context = &opening;
    result = come_together(&opening);
    iq_segment_settle(&opening.ipc->memory->segment);

free_tables:
    free(opening.ranks);
    free(opening.cards);
    if (result == ISGQ_SUCCESS) {
        IQ_DEBUG(PREFIX "rank %d has %zu bytes of slots on device %d", params->rank, opening.ipc->memory->bytes, params->device);
        *wire = &opening.ipc->base;
    } else if (opening.ipc != NULL) {
        iq_cuda_ipc_close(&opening.ipc->base);
    }
    return result;
}
