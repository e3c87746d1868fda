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

size_t iq_mesh_bytes(size_t members, size_t slot_bytes, unsigned slots)
{
    size_t ring = iq_ring_bytes(slot_bytes, slots), rings, total;
    if (ring == 0 || !iq_checked_mul(members, members, &rings) || !iq_checked_mul(rings, ring, &rings))
        return 0;
    return __builtin_add_overflow(members * sizeof(iq_doorbell_t), rings, &total) ? 0 : total;
}

static void *ring_at(unsigned char *memory, size_t members, size_t from, size_t to, const iq_transport_params_t *params)
{
    size_t ring = iq_ring_bytes(params->slot_bytes, params->slots);
    return memory + members * sizeof(iq_doorbell_t) + (from * members + to) * ring;
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
    if (mesh->links == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "%s: links to %d ranks", ops->name, params->nranks);
    if (memory == NULL)
        return ISGQ_SUCCESS;

    iq_doorbell_t *doorbells = memory;
    mesh->doorbell = &doorbells[group->self];
    for (unsigned member = 0; member < group->count; member++) {
        int peer = group->ranks[member];
        if (!params->mine[peer])
            continue;
        iq_mesh_link_t *link = &mesh->links[peer];
        link->base = (iq_link_t){.ops = &link_ops, .transport = ops->name, .peer = peer};
        link->peer_doorbell = &doorbells[member];
        link->mesh = mesh;
        iq_ring_attach(&link->in, ring_at(memory, group->count, member, group->self, params), params->slot_bytes, params->slots);
        iq_ring_attach(&link->out, ring_at(memory, group->count, group->self, member, params), params->slot_bytes, params->slots);
    }
    return ISGQ_SUCCESS;
}

void iq_mesh_detach(iq_mesh_t *mesh)
{
    if (mesh->doorbell != NULL)
        iq_doorbell_close(mesh->doorbell);
    mesh->doorbell = NULL;
    free(mesh->links);
    mesh->links = NULL;
}

/* ---- the transport ---- */

iq_link_t *iq_mesh_link(iq_transport_t *transport, int peer)
{
    iq_mesh_t *mesh = (iq_mesh_t *)transport;
    if (peer < 0 || peer >= mesh->nranks || mesh->links[peer].base.ops == NULL)
        return NULL;
    return &mesh->links[peer].base;
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

static bool anything_new(iq_mesh_t *mesh)
{
    bool news = atomic_exchange(&mesh->nudged, false);
    for (int peer = 0; peer < mesh->nranks; peer++) {
        iq_mesh_link_t *link = &mesh->links[peer];
        if (link->base.ops != NULL) {
            news |= iq_ring_arrived(&link->in);
            news |= iq_ring_has_room(&link->out);
        }
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
