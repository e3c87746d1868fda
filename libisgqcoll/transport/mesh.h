/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A mesh: rings between all members of a group that sees one piece of memory. It is everything of the transports local and shm but the
 * question where that memory comes from.
 *
 *     | doorbell 0 | ... | doorbell m-1 | ring 0->0 | ring 0->1 | ... | ring m-1 -> m-1 | board 0 | ... | board m-1 |
 *
 * A board is a ring from one member to all others, who read the same slots.
 *
 * Rings that nobody uses (to oneself, between threads under shm) cost address space, not memory.
 */
#ifndef ISGQ_TRANSPORT_MESH_H
#define ISGQ_TRANSPORT_MESH_H

#include "transport/ring.h"
#include "transport/transport.h"

/* Which ranks share the memory. Derived from the peers' descriptions, hence equal on all members. */
typedef struct iq_mesh_group {
    unsigned count; /* members, this rank included */
    unsigned self;  /* this rank's place among them */
    int *ranks;     /* [count] ascending; the first is the leader */
    bool used;      /* this transport connects this rank to a member */
} iq_mesh_group_t;

isgq_result_t iq_mesh_group_init(iq_mesh_group_t *group, const iq_transport_params_t *params,
                                 bool (*together)(const iq_peer_t *a, const iq_peer_t *b));
void iq_mesh_group_fini(iq_mesh_group_t *group);

/* Bytes of the shared memory of `members` ranks, 0 on overflow. */
size_t iq_mesh_bytes(size_t members, size_t slot_bytes, unsigned slots);

typedef struct iq_mesh_link iq_mesh_link_t;

/* This rank's end. First member of struct local and struct shm. */
typedef struct iq_mesh {
    iq_transport_t base;
    int nranks;
    iq_mesh_link_t *links;   /* [nranks] */
    iq_mesh_link_t *boards;  /* [nranks] ends of all ranks' boards, the sending end of this one's */
    int self;                /* this rank, where there are boards */
    iq_doorbell_t *doorbell; /* this rank's, in the memory; or `lonely` */
    iq_doorbell_t lonely;    /* if this transport serves no pair of this rank: only wake rings it */
    atomic_bool nudged;      /* wake was called since the last sleep */
    int corrupt_peer;        /* -1: none */
} iq_mesh_t;

/* `memory` is 64-byte aligned and zeroed; NULL if the group is not used. */
isgq_result_t iq_mesh_attach(iq_mesh_t *mesh, const iq_transport_ops_t *ops, const iq_transport_params_t *params,
                             const iq_mesh_group_t *group, void *memory);

/* Tell the peers that this rank is gone and forget the memory. Also for a zeroed mesh that was never attached. */
void iq_mesh_detach(iq_mesh_t *mesh);

/* Members of the tables of local and shm. */
iq_link_t *iq_mesh_link(iq_transport_t *transport, int peer);
iq_link_t *iq_mesh_board(iq_transport_t *transport, int rank);
isgq_result_t iq_mesh_progress(iq_transport_t *transport, bool settle, int *failed_peer);
void iq_mesh_sleep(iq_transport_t *transport, uint64_t ns);
void iq_mesh_wake(iq_transport_t *transport);

#endif
