/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Transports move messages between two ranks. They know nothing of codecs, plans or calls.
 *
 * A link is this rank's end of two first-in-first-out queues to one peer. A queue is a few slots of slot_bytes each; the sender writes its
 * message straight into a slot, the receiver reads it in place:
 *
 *     sender:    p = acquire(link); write p[0..bytes-1]; commit(link, bytes)
 *     receiver:  p = peek(link, &bytes); read; release(link)
 *
 * A board is the same with one sender and all other ranks as receivers, who read one slot in place. Only transports that join all ranks by
 * memory have boards; there rank r sends on board r, and receives on those of the others.
 *
 * acquire and peek never block: NULL means "not now". A link is used by one thread at a time; different communicators are independent.
 * Read local.c first: it is the smallest transport.
 */
#ifndef ISGQ_TRANSPORT_TRANSPORT_H
#define ISGQ_TRANSPORT_TRANSPORT_H

#include "isgqcoll.h"
#include "transport/cores.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What the ranks tell each other when they meet. Plain bytes, equal layout on all ranks of one build. */
typedef struct iq_peer {
    uint64_t host;      /* hash of boot id, network namespace and ISGQ_HOSTID: equal means shared memory works */
    uint64_t process;   /* hash of host, pid and a random number: equal means same address space */
    int32_t pid;
    int32_t device_type;
    iq_core_set_t cores; /* that it may run on */
} iq_peer_t;

/* Fill in what is known about this process. */
void iq_peer_describe(iq_peer_t *peer);

struct iq_link;

typedef struct iq_link_ops {
    /* A free slot of slot_bytes, 64-byte aligned, or NULL. Calling again before commit gives the same slot. */
    void *(*acquire)(struct iq_link *link);

    /* Send the first `bytes` (1..slot_bytes) of the acquired slot. ISGQ_ERR_REMOTE if the peer is gone. */
    isgq_result_t (*commit)(struct iq_link *link, size_t bytes);

    /* The oldest message that has arrived, 64-byte aligned, or NULL; *bytes is at most slot_bytes. Stays valid until release. */
    const void *(*peek)(struct iq_link *link, size_t *bytes);

    /* Give its slot back to the sender. */
    isgq_result_t (*release)(struct iq_link *link);
} iq_link_ops_t;

typedef struct iq_link {
    const iq_link_ops_t *ops;
    const char *transport; /* its name */
    int peer;              /* of the board that this rank sends on: the reader that acquire found furthest behind */
} iq_link_t;

/* Same contract as iq_control_allgather. Collective over all ranks of the communicator, in the same order. */
typedef isgq_result_t (*iq_allgather_fn)(void *context, const void *send, void *recv, size_t bytes);

typedef struct iq_transport_params {
    int rank, nranks;
    const iq_peer_t *peers;          /* [nranks] */
    const bool *mine;                /* [nranks] peers that this transport was chosen for (seen from this rank) */
    bool boards;                     /* wanted; equal on all ranks, and then this transport was chosen for all pairs */
    uint64_t token;                  /* names the communicator; random, equal on all ranks, unknown to strangers */
    size_t slot_bytes;               /* multiple of 64 */
    unsigned slots;                  /* per direction, at least 2 */
    iq_allgather_fn allgather;
    void *allgather_context;
    uint64_t deadline_ns;            /* iq_now_ns() clock */
    const char *interface;           /* ISGQ_INTERFACE */
} iq_transport_params_t;

typedef struct iq_transport iq_transport_t;

typedef struct iq_transport_ops {
    const char *name;

    /* Could it connect these two ranks? Pure function of the two descriptions, symmetric; never fails. */
    bool (*connects)(const iq_peer_t *a, const iq_peer_t *b);

    /* Collective over all ranks of the communicator, also over those it serves no pair of: every rank makes the same
     * allgather calls. Returns within the deadline. */
    isgq_result_t (*open)(const iq_transport_params_t *params, iq_transport_t **transport);

    iq_link_t *(*link)(iq_transport_t *transport, int peer); /* NULL for peers that are not `mine` */

    /* This rank's end of the board of `rank`; NULL if there are none. Absent where the transport has none at all. */
    iq_link_t *(*board)(iq_transport_t *transport, int rank);

    /* Memory of its own for each rank that all others can map (transport/views.h), to be closed by the caller; NULL: not on this rank. Only where there
     * are boards. Absent where the transport has none at all. */
    struct iq_views *(*views)(iq_transport_t *transport);

    /* Move what can be moved; called often. With `settle`: ISGQ_IN_PROGRESS while a committed message has not left this rank (it would need more
     * progress calls to arrive); without, ISGQ_SUCCESS. ISGQ_ERR_REMOTE with the peer in the text. *failed_peer is the peer at fault or awaited
     * (any of them if that is not known closer), -1 with ISGQ_SUCCESS. */
    isgq_result_t (*progress)(iq_transport_t *transport, bool settle, int *failed_peer);

    /* Sleep until something may have arrived or room may have come free, or for `ns`. May return early. */
    void (*sleep)(iq_transport_t *transport, uint64_t ns);

    /* Wake this rank's own thread out of sleep. Any thread. */
    void (*wake)(iq_transport_t *transport);

    /* Local: never waits for peers. */
    void (*close)(iq_transport_t *transport);
} iq_transport_ops_t;

struct iq_transport {
    const iq_transport_ops_t *ops;
};

/* All transports in order of preference, ends with NULL: local, shm, ucx. */
extern const iq_transport_ops_t *const iq_transports[];

/* The transport for a pair of ranks: the first that `allowed` ("local,shm,ucx", unknown names skipped) names and that connects them; NULL
 * if none. Pure and symmetric. */
const iq_transport_ops_t *iq_transport_choose(const char *allowed, const iq_peer_t *a, const iq_peer_t *b);

/* For the open functions: one allgather by which all ranks learn whether all succeeded. `own` is this rank's result, returned if it is an
 * error; else ISGQ_ERR_REMOTE naming the first rank that failed, or what allgather itself returned. */
isgq_result_t iq_transport_agree(const iq_transport_params_t *params, const char *name, isgq_result_t own);

#endif
