/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranks come together on the wire "nccl": they look whether all can, find out what NCCL would refuse before it is asked (it tells some ranks
 * only and leaves the others waiting), make a communicator unless the application brought one, and send a message to every peer. That
 * message also makes NCCL's connections, which otherwise would be made by the first call, and in a capture.
 */
#include "transport/nccl_wire.h"

#include "base/log.h"
#include "base/status.h"
#include "base/util.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What ranks tell each other first. */
typedef struct card {
    uint64_t machine; /* as NCCL tells machines apart */
    int32_t version;
    int32_t native; /* the application brought a communicator */
    int32_t shares; /* NCCL may put several ranks on a GPU */
    char gpu[28];
} card_t;

/* ---- may we? ---- */

static uint64_t machine(void)
{
    char text[256] = "";
    const char *named = getenv("NCCL_HOSTID");
    if (named != NULL && named[0] != '\0')
        return iq_hash(IQ_HASH_START, named, strlen(named));
    gethostname(text, sizeof(text) / 2);
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (file != NULL) {
        size_t length = strlen(text);
        size_t more = fread(text + length, 1, sizeof(text) - length - 1, file);
        text[length + more] = '\0';
        fclose(file);
    }
    return iq_hash(IQ_HASH_START, text, strlen(text));
}

/* The application's communicator must be of the same ranks. */
static isgq_result_t check_native(const iq_wire_params_t *params)
{
    int nranks, rank, device;
    IQ_TRY(iq_nccl_describe(params->native, &nranks, &rank, &device));
    if (nranks != params->nranks || rank != params->rank || device != params->device)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "nccl: the application's communicator is rank %d of %d on device %d, not %d of %d on %d", rank,
                       nranks, device, params->rank, params->nranks, params->device);
    return ISGQ_SUCCESS;
}

static isgq_result_t prepare(const iq_wire_params_t *params, iq_nccl_t **wire, card_t *card)
{
    const iq_nccl_functions_t *nccl;
    iq_cuda_device_t description;
    const char *shares = getenv("NCCL_MULTI_RANK_GPU_ENABLE");
    IQ_TRY(iq_nccl_load(&nccl));
    IQ_TRY(params->cuda->describe(params->device, &description));
    if (params->native != NULL)
        IQ_TRY(check_native(params));
    *wire = iq_nccl_new(params, nccl);
    if (*wire == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "nccl: tables of %d ranks", params->nranks);
    card->machine = machine();
    card->version = nccl->version;
    card->native = params->native != NULL;
    card->shares = nccl->version >= IQ_NCCL_SHARES_GPU && shares != NULL && strcmp(shares, "1") == 0;
    memcpy(card->gpu, description.pci, iq_min(sizeof(description.pci), sizeof(card->gpu) - 1));
    return ISGQ_SUCCESS;
}

/* All ranks see the same cards and come to the same end. */
static isgq_result_t compare_pair(const card_t *cards, int a, int b)
{
    if (cards[a].native != cards[b].native)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "nccl: of ranks %d and %d only one brought a communicator", a, b);
    if (cards[a].version != cards[b].version)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "nccl: rank %d has version %d, rank %d has version %d", a, cards[a].version, b,
                       cards[b].version);
    if (!cards[a].native && !(cards[a].shares && cards[b].shares) && cards[a].machine == cards[b].machine &&
        memcmp(cards[a].gpu, cards[b].gpu, sizeof(cards[a].gpu)) == 0)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "nccl: ranks %d and %d share GPU %.27s, which NCCL refuses", a, b, cards[a].gpu);
    return ISGQ_SUCCESS;
}

static isgq_result_t compare(const iq_wire_params_t *params, const card_t *mine)
{
    card_t *cards = calloc((size_t)params->nranks, sizeof(*cards));
    if (cards == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "nccl: descriptions of %d ranks", params->nranks);
    isgq_result_t result = params->allgather(params->allgather_context, mine, cards, sizeof(*mine));
    for (int b = 0; b < params->nranks; b++)
        cards[b].gpu[sizeof(cards[b].gpu) - 1] = '\0';
    for (int a = 0; a < params->nranks && result == ISGQ_SUCCESS; a++)
        for (int b = a + 1; b < params->nranks && result == ISGQ_SUCCESS; b++)
            result = compare_pair(cards, a, b);
    free(cards);
    return result;
}

/* Rank 0's id for the others. */
static isgq_result_t share_id(const iq_wire_params_t *params, iq_nccl_t *wire)
{
    const iq_nccl_functions_t *nccl = wire->nccl;
    isgq_result_t own = ISGQ_SUCCESS;
    if (params->rank == 0)
        own = iq_nccl_result(nccl, NULL, nccl->get_unique_id(&wire->id), "unique id");
    IQ_TRY(iq_wire_agree(params, "nccl", own));
    iq_nccl_id_t *ids = calloc((size_t)params->nranks, sizeof(*ids));
    if (ids == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "nccl: ids of %d ranks", params->nranks);
    isgq_result_t result = params->allgather(params->allgather_context, &wire->id, ids, sizeof(*ids));
    wire->id = ids[0];
    free(ids);
    return result;
}

/* ---- connecting: on a thread of its own ---- */

static isgq_result_t make_communicator(iq_nccl_t *wire)
{
    iq_nccl_comm_t comm = NULL;
    const iq_nccl_functions_t *nccl = wire->nccl;
    IQ_TRY(iq_nccl_result(nccl, NULL, nccl->comm_init_rank(&comm, wire->nranks, wire->id, wire->rank), "communicator"));
    pthread_mutex_lock(&wire->lock);
    wire->comm = comm;
    pthread_mutex_unlock(&wire->lock);
    return atomic_load(&wire->gone) ? IQ_FAIL(ISGQ_ERR_REMOTE, "nccl: rank %d came too late", wire->rank) : ISGQ_SUCCESS;
}

static isgq_result_t take_memory(iq_nccl_t *wire)
{
    size_t half;
    void *memory;
    if (!iq_checked_mul((size_t)wire->nranks - 1, wire->slot_bytes, &half) || half > SIZE_MAX / 2)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "nccl: messages of %zu bytes for %d ranks", wire->slot_bytes, wire->nranks);
    if (half == 0)
        return ISGQ_SUCCESS;
    IQ_TRY(wire->cuda->shared_alloc(wire->device, 2 * half, &memory));
    wire->out.memory = memory;
    wire->in.memory = wire->out.memory + half;
    wire->out.bytes = wire->in.bytes = half;
    return ISGQ_SUCCESS;
}

static uint32_t trial_word(int from, int to) { return 0x9e3779b9u * (uint32_t)(from + 1) + (uint32_t)to; }

/* A word to or from the device, there on return: a copy from or to pageable memory only might wait. */
static isgq_result_t copy_word(iq_nccl_t *wire, isgq_stream_t stream, void *dst, const void *src)
{
    iq_cuda_event_t copied = NULL;
    IQ_TRY(wire->cuda->event_create(wire->device, &copied));
    isgq_result_t result = wire->cuda->copy(wire->device, stream, dst, src, sizeof(uint32_t));
    if (result == ISGQ_SUCCESS)
        result = wire->cuda->event_record(wire->device, copied, stream);
    if (result == ISGQ_SUCCESS)
        while ((result = wire->cuda->event_poll(wire->device, copied)) == ISGQ_IN_PROGRESS)
            sched_yield();
    wire->cuda->event_destroy(wire->device, copied);
    return result;
}

static isgq_result_t trial_messages(iq_nccl_t *wire, isgq_stream_t stream)
{
    const iq_wire_ops_t *ops = wire->base.ops;
    for (int peer = 0; peer < wire->nranks; peer++) {
        uint32_t word = trial_word(wire->rank, peer);
        void *payload;
        if (peer == wire->rank)
            continue;
        IQ_TRY(ops->begin_send(&wire->base, stream, peer, sizeof(word), &payload));
        IQ_TRY(copy_word(wire, stream, payload, &word));
        IQ_TRY(ops->end_send(&wire->base, stream, peer));
        IQ_TRY(ops->expect(&wire->base, peer, sizeof(word)));
    }
    IQ_TRY(ops->exchange(&wire->base, stream));
    for (int peer = 0; peer < wire->nranks; peer++) {
        uint32_t word = 0;
        const void *payload;
        if (peer == wire->rank)
            continue;
        IQ_TRY(ops->begin_receive(&wire->base, stream, peer, sizeof(word), &payload));
        IQ_TRY(copy_word(wire, stream, &word, payload));
        IQ_TRY(ops->end_receive(&wire->base, stream, peer));
        if (word != trial_word(peer, wire->rank))
            return IQ_FAIL(ISGQ_ERR_CORRUPT, "nccl: the trial message from rank %d is wrong", peer);
    }
    return ISGQ_SUCCESS;
}

static isgq_result_t trial_sum(iq_nccl_t *wire, isgq_stream_t stream)
{
    uint32_t word = (uint32_t)wire->rank + 1, n = (uint32_t)wire->nranks;
    void *payload = wire->out.memory;
    IQ_TRY(copy_word(wire, stream, payload, &word));
    IQ_TRY(wire->base.ops->sum_words(&wire->base, stream, payload, 1));
    IQ_TRY(copy_word(wire, stream, &word, payload));
    if (word != n * (n + 1) / 2)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "nccl: the trial sum of %u ranks is %u", n, word);
    return ISGQ_SUCCESS;
}

isgq_result_t iq_nccl_connect(iq_nccl_t *wire)
{
    isgq_stream_t stream;
    IQ_TRY(wire->cuda->use(wire->device));
    if (wire->own)
        IQ_TRY(make_communicator(wire));
    IQ_TRY(take_memory(wire));
    if (wire->nranks == 1)
        return ISGQ_SUCCESS;
    IQ_TRY(wire->cuda->stream_create(wire->device, &stream));
    isgq_result_t result = trial_messages(wire, stream);
    if (result == ISGQ_SUCCESS)
        result = trial_sum(wire, stream);
    wire->cuda->stream_destroy(wire->device, stream);
    return result;
}

/* ---- open ---- */

static isgq_result_t come_together(const iq_wire_params_t *params, iq_nccl_t **wire)
{
    card_t card;
    memset(&card, 0, sizeof(card));
    IQ_TRY(iq_wire_agree(params, "nccl", prepare(params, wire, &card)));
    IQ_TRY(compare(params, &card));
    if (params->native == NULL)
        IQ_TRY(share_id(params, *wire));
    return iq_wire_agree(params, "nccl", iq_nccl_connect_apart(*wire));
}

isgq_result_t iq_nccl_open(const iq_wire_params_t *params, iq_wire_t **wire)
{
    iq_nccl_t *made = NULL;
    isgq_result_t result = come_together(params, &made);
    if (result != ISGQ_SUCCESS) {
        if (made != NULL) {
            atomic_store(&made->gone, true);
            iq_nccl_close(&made->base);
        }
        return result;
    }
    IQ_DEBUG("nccl: rank %d on device %d, %s communicator, %zu bytes for messages", params->rank, params->device,
             made->own ? "own" : "the application's", 2 * made->out.bytes);
    *wire = &made->base;
    return ISGQ_SUCCESS;
}
