/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Links over rings in shared memory. A message has left as soon as it is committed, for the memory outlives the sender; and a peer that was
 * killed merely falls silent (the control channel notices).
 */
#include "transport/mesh.h"

#include "base/status.h"
#include "base/util.h"

#include <stdlib.h>

struct iq_mesh_link {
    iq_link_t base; /* ops NULL: no link to this rank */
    iq_ring_t in, out;
    iq_doorbell_t *peer_doorbell;
    iq_mesh_t *mesh;
};

/* ---- the group ---- */

isgq_result_t iq_mesh_group_init(iq_mesh_group_t *group, const iq_transport_params_t *params,
                                 bool (*together)(const iq_peer_t *a, const iq_peer_t *b))
{
    *group = (iq_mesh_group_t){.ranks = calloc((size_t)params->nranks, sizeof(int))};
    if (group->ranks == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "transport: list of %d ranks", params->nranks);
    for (int rank = 0; rank < params->nranks; rank++) {
        group->used |= params->mine[rank];
        if (rank == params->rank)
            group->self = group->count;
        if (rank == params->rank || together(&params->peers[rank], &params->peers[params->rank]))
            group->ranks[group->count++] = rank;
    }
    return ISGQ_SUCCESS;
}

void iq_mesh_group_fini(iq_mesh_group_t *group) { free(group->ranks); }

/* ---- memory ---- */

static iq_ring_shape_t board_shape(size_t slot_bytes, unsigned slots, size_t members)
{
    return (iq_ring_shape_t){slot_bytes, slots, (unsigned)members - 1};
}

size_t iq_mesh_bytes(size_t members, size_t slot_bytes, unsigned slots)
{
    size_t ring = iq_ring_bytes((iq_ring_shape_t){slot_bytes, slots, 1});
    size_t board = iq_ring_bytes(board_shape(slot_bytes, slots, members)), rings, boards, total;
    if (ring == 0 || board == 0 || !iq_checked_mul(members, members, &rings) || !iq_checked_mul(rings, ring, &rings) ||
        !iq_checked_mul(members, board, &boards) || __builtin_add_overflow(rings, boards, &total))
        return 0;
    return __builtin_add_overflow(members * sizeof(iq_doorbell_t), total, &total) ? 0 : total;
}

static void *ring_at(unsigned char *memory, size_t members, size_t from, size_t to, const iq_transport_params_t *params)
{
    size_t ring = iq_ring_bytes((iq_ring_shape_t){params->slot_bytes, params->slots, 1});
    return memory + members * sizeof(iq_doorbell_t) + (from * members + to) * ring;
}

/* Boards lie where the rings of one more member would begin. */
static void *board_at(unsigned char *memory, size_t members, size_t from, const iq_transport_params_t *params)
{
    size_t board = iq_ring_bytes(board_shape(params->slot_bytes, params->slots, members));
    return (unsigned char *)ring_at(memory, members, members, 0, params) + from * board;
}

/* ---- links ---- */

static void *link_acquire(iq_link_t *base)
{
    iq_mesh_link_t *link = (iq_mesh_link_t *)base;
    void *slot = iq_ring_acquire(&link->out);
    if (slot == NULL && link->out.corrupt)
        link->mesh->corrupt_peer = base->peer;
    return slot;
}

static isgq_result_t link_commit(iq_link_t *base, size_t bytes)
{
    iq_mesh_link_t *link = (iq_mesh_link_t *)base;
    iq_ring_commit(&link->out, bytes);
    if (iq_doorbell_ring(link->peer_doorbell))
        return ISGQ_SUCCESS;
    return IQ_FAIL(ISGQ_ERR_REMOTE, "%s: send of %zu bytes to rank %d, which has left", base->transport, bytes, base->peer);
}

static const void *link_peek(iq_link_t *base, size_t *bytes)
{
    iq_mesh_link_t *link = (iq_mesh_link_t *)base;
    const void *message = iq_ring_peek(&link->in, bytes);
    if (message == NULL && link->in.corrupt)
        link->mesh->corrupt_peer = base->peer;
    return message;
}

static isgq_result_t link_release(iq_link_t *base)
{
    iq_mesh_link_t *link = (iq_mesh_link_t *)base;
    iq_ring_release(&link->in);
    iq_doorbell_ring(link->peer_doorbell); /* a peer that has left needs no room */
    return ISGQ_SUCCESS;
}

static const iq_link_ops_t link_ops = {
    .acquire = link_acquire,
    .commit = link_commit,
    .peek = link_peek,
    .release = link_release,
};

/* ---- boards ---- */

/* Member `reader`'s place among the receivers of member `writer`'s board, and back. */
static unsigned receiver_of(unsigned reader, unsigned writer) { return reader < writer ? reader : reader - 1; }
static unsigned reader_of(unsigned receiver, unsigned writer) { return receiver < writer ? receiver : receiver + 1; }

static void *board_acquire(iq_link_t *base)
{
    iq_mesh_link_t *link = (iq_mesh_link_t *)base;
    void *slot = iq_ring_acquire(&link->out);
    if (slot == NULL)
        base->peer = (int)reader_of(link->out.laggard, (unsigned)link->mesh->self);
    if (slot == NULL && link->out.corrupt)
        link->mesh->corrupt_peer = base->peer;
    return slot;
}

static isgq_result_t board_commit(iq_link_t *base, size_t bytes)
{
    iq_mesh_link_t *link = (iq_mesh_link_t *)base;
    iq_mesh_t *mesh = link->mesh;
    iq_ring_commit(&link->out, bytes);
    for (int rank = 0; rank < mesh->nranks; rank++)
        if (rank != mesh->self && !iq_doorbell_ring(mesh->boards[rank].peer_doorbell))
            return IQ_FAIL(ISGQ_ERR_REMOTE, "%s: board of %zu bytes for rank %d, which has left", base->transport, bytes, rank);
    return ISGQ_SUCCESS;
}

static const iq_link_ops_t board_ops = {
    .acquire = board_acquire,
    .commit = board_commit,
    .peek = link_peek,
    .release = link_release,
};

/* All ranks are members, so members are numbered as ranks are. */
static void attach_boards(iq_mesh_t *mesh, const iq_transport_params_t *params, const iq_mesh_group_t *group, void *memory)
{
    iq_ring_shape_t shape = board_shape(params->slot_bytes, params->slots, group->count);
    mesh->self = params->rank;
    for (unsigned writer = 0; writer < group->count; writer++) {
        iq_mesh_link_t *link = &mesh->boards[writer];
        void *board = board_at(memory, group->count, writer, params);
        link->base = (iq_link_t){.ops = &board_ops, .transport = mesh->base.ops->name, .peer = (int)writer};
        link->peer_doorbell = (iq_doorbell_t *)memory + writer;
        link->mesh = mesh;
        if (writer == group->self)
            iq_ring_attach_sender(&link->out, board, shape);
        else
            iq_ring_attach_receiver(&link->in, board, shape, receiver_of(group->self, writer));
    }
}

isgq_result_t iq_mesh_attach(iq_mesh_t *mesh, const iq_transport_ops_t *ops, const iq_transport_params_t *params,
                             const iq_mesh_group_t *group, void *memory)
{
    mesh->base.ops = ops;
    mesh->nranks = params->nranks;
    mesh->corrupt_peer = -1;
    mesh->doorbell = &mesh->lonely;
    atomic_init(&mesh->nudged, false);
    mesh->lonely = (iq_doorbell_t){.state = IQ_AWAKE};
    mesh->links = calloc((size_t)params->nranks, sizeof(*mesh->links));
    mesh->boards = calloc((size_t)params->nranks, sizeof(*mesh->boards));
    if (mesh->links == NULL || mesh->boards == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "%s: links to %d ranks", ops->name, params->nranks);
    if (memory == NULL)
        return ISGQ_SUCCESS;

    iq_doorbell_t *doorbells = memory;
    iq_ring_shape_t shape = {params->slot_bytes, params->slots, 1};
    mesh->doorbell = &doorbells[group->self];
    for (unsigned member = 0; member < group->count; member++) {
        int peer = group->ranks[member];
        if (!params->mine[peer])
            continue;
        iq_mesh_link_t *link = &mesh->links[peer];
        link->base = (iq_link_t){.ops = &link_ops, .transport = ops->name, .peer = peer};
        link->peer_doorbell = &doorbells[member];
        link->mesh = mesh;
        iq_ring_attach_receiver(&link->in, ring_at(memory, group->count, member, group->self, params), shape, 0);
        iq_ring_attach_sender(&link->out, ring_at(memory, group->count, group->self, member, params), shape);
    }
    if (params->boards && group->count == (unsigned)params->nranks)
        attach_boards(mesh, params, group, memory);
    return ISGQ_SUCCESS;
}

void iq_mesh_detach(iq_mesh_t *mesh)
{
    if (mesh->doorbell != NULL)
        iq_doorbell_close(mesh->doorbell);
    mesh->doorbell = NULL;
    free(mesh->links);
    free(mesh->boards);
    mesh->links = mesh->boards = NULL;
}

/* ---- the transport ---- */

iq_link_t *iq_mesh_link(iq_transport_t *transport, int peer)
{
    iq_mesh_t *mesh = (iq_mesh_t *)transport;
    if (peer < 0 || peer >= mesh->nranks || mesh->links[peer].base.ops == NULL)
        return NULL;
    return &mesh->links[peer].base;
}

iq_link_t *iq_mesh_board(iq_transport_t *transport, int rank)
{
    iq_mesh_t *mesh = (iq_mesh_t *)transport;
    return mesh->boards[rank].base.ops == NULL ? NULL : &mesh->boards[rank].base;
}

isgq_result_t iq_mesh_progress(iq_transport_t *transport, bool settle, int *failed_peer)
{
    iq_mesh_t *mesh = (iq_mesh_t *)transport;
    (void)settle; /* always is */
    *failed_peer = mesh->corrupt_peer;
    if (mesh->corrupt_peer < 0)
        return ISGQ_SUCCESS;
    return IQ_FAIL(ISGQ_ERR_CORRUPT, "%s: rank %d wrote a message length or counter that is out of range", transport->ops->name,
                   mesh->corrupt_peer);
}

static bool has_news(iq_mesh_link_t *link)
{
    bool news = link->in.tail != NULL && iq_ring_arrived(&link->in);
    if (link->out.tail != NULL)
        news |= iq_ring_has_room(&link->out);
    return news;
}

static bool anything_new(iq_mesh_t *mesh)
{
    bool news = atomic_exchange(&mesh->nudged, false);
    for (int peer = 0; peer < mesh->nranks; peer++) {
        news |= has_news(&mesh->links[peer]);
        news |= has_news(&mesh->boards[peer]);
    }
    return news;
}

void iq_mesh_sleep(iq_transport_t *transport, uint64_t ns)
{
    iq_mesh_t *mesh = (iq_mesh_t *)transport;
    iq_doorbell_prepare(mesh->doorbell);
    if (anything_new(mesh))
        iq_doorbell_cancel(mesh->doorbell);
    else
        iq_doorbell_nap(mesh->doorbell, ns);
}

void iq_mesh_wake(iq_transport_t *transport)
{
    iq_mesh_t *mesh = (iq_mesh_t *)transport;
    atomic_store(&mesh->nudged, true);
    iq_doorbell_ring(mesh->doorbell);
}
