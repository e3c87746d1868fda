/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Wires join the GPUs of all ranks of a communicator: messages lie in device memory, and streams, not hosts, wait for them.
 *
 *     sender:    begin_send(peer, bytes) -> payload; enqueue work that writes it; end_send(peer)
 *     receiver:  begin_receive(peer, bytes) -> payload; enqueue work that reads it; end_receive(peer)
 *
 * These functions only enqueue: they return at once, also when the peer's host has not come this far, and a CUDA graph may capture
 * what they enqueue. Messages of a pair of ranks are first in, first out; both ends enqueue the same calls in the same order, so no
 * message carries its length. Several messages may be open at a time if they belong to different peers. Nothing allocates after
 * `open`. One thread at a time uses a wire, apart from let_go and awaited.
 *
 * A wire with `rounds` cannot hold a message that its receiver does not want yet. There a plan goes in rounds: all sends of a round
 * are ended and all its receives announced by `expect`, in the order in which they will be begun, then `exchange` moves the messages,
 * then they are received. Several messages to or from one peer may belong to a round.
 */
#ifndef ISGQ_TRANSPORT_WIRE_H
#define ISGQ_TRANSPORT_WIRE_H

#include "kernels/cuda/cuda_module.h"
#include "transport/transport.h"

typedef struct iq_wire iq_wire_t;

typedef struct iq_wire_params {
    int rank, nranks;
    const iq_peer_t *peers; /* [nranks], all on devices */
    uint64_t token;         /* names the communicator, see iq_transport_params_t */
    const iq_cuda_module_t *cuda;
    int device;
    size_t slot_bytes; /* largest message; multiple of 256 */
    iq_allgather_fn allgather;
    void *allgather_context;
    uint64_t deadline_ns;
    void *native; /* the application's own communicator, for wires that wrap one; NULL: none */
} iq_wire_params_t;

typedef struct iq_wire_ops {
    const char *name;
    bool rounds;
    unsigned slots; /* messages that a pair of ranks holds per direction; 0 with `rounds` */

    /*
     * Collective: every rank makes the same allgather calls. All ranks succeed or none does: if ranks cannot be joined this way, all get
     * ISGQ_ERR_UNSUPPORTED with the sentence of the first rank that could not. Returns within the deadline.
     */
    isgq_result_t (*open)(const iq_wire_params_t *params, iq_wire_t **wire);

    /* When the streams have passed. Local: never waits for peers; memory that a peer may still use stays with the process that made it
     * until that one closes too. */
    void (*close)(iq_wire_t *wire);

    isgq_result_t (*begin_send)(iq_wire_t *wire, isgq_stream_t stream, int peer, size_t bytes, void **payload);
    isgq_result_t (*end_send)(iq_wire_t *wire, isgq_stream_t stream, int peer);
    isgq_result_t (*begin_receive)(iq_wire_t *wire, isgq_stream_t stream, int peer, size_t bytes, const void **payload);
    isgq_result_t (*end_receive)(iq_wire_t *wire, isgq_stream_t stream, int peer);

    /* With `rounds`; else NULL. */
    isgq_result_t (*expect)(iq_wire_t *wire, int peer, size_t bytes);
    isgq_result_t (*exchange)(iq_wire_t *wire, isgq_stream_t stream);

    /* Streams of this rank that wait for peers go on from now on, for good, and what they read is garbage. Any thread; touches no GPU. Where
     * the application's own communicator joins the ranks, they go on when the application ends that, and the log says so. */
    void (*let_go)(iq_wire_t *wire);

    /* The rank whose message or slot this rank's stream waits for now, -1 if that is nobody or unknown. Any thread; touches no GPU. */
    int (*awaited)(iq_wire_t *wire);

    /* A number that differs from the one before if messages of this rank moved in between, as far as that can be seen; NULL: it cannot, and a call counts
     * as standing still until it ends. Any thread; touches no GPU. */
    uint64_t (*activity)(iq_wire_t *wire);

    /* ISGQ_SUCCESS, or what went wrong on the wire without anybody calling it. */
    isgq_result_t (*check)(iq_wire_t *wire);

    /* words[i] = sum over all ranks, modulo 2^32, in device memory; every rank calls it in the same order. NULL: the wire cannot. */
    isgq_result_t (*sum_words)(iq_wire_t *wire, isgq_stream_t stream, void *words, size_t count);
} iq_wire_ops_t;

struct iq_wire {
    const iq_wire_ops_t *ops;
};

/* In order of preference, ends with NULL: cuda_ipc, nccl. */
extern const iq_wire_ops_t *const iq_wires[];

/* For the open functions: one allgather by which all ranks learn whether all succeeded. If not, all get ISGQ_ERR_UNSUPPORTED (or
 * ISGQ_ERR_NO_MEMORY) with the sentence of the first rank that failed; `own` is this rank's result, its text the last error. */
isgq_result_t iq_wire_agree(const iq_wire_params_t *params, const char *name, isgq_result_t own);

#endif
