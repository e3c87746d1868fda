/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside of the wire "cuda_ipc": what its ranks share and what each keeps.
 *
 * Messages from rank a to rank b lie in slots of b's device memory, in turn. Every slot has a flag in host memory that all ranks
 * share and pin: EMPTY or FULL. The sender's stream waits for EMPTY, writes the slot, sets FULL; the receiver's waits for FULL,
 * reads, sets EMPTY. A flag is back where it was after each message and only constants are waited for, so a CUDA graph can
 * replay what it captured.
 *
 *     host memory:       | rank 0 | ... | rank n-1 | link 0->0 | link 0->1 | ... | link n-1 -> n-1 |
 *     memory of rank b:  | slot 0, slot 1 of the link from the first other rank | ... from the last other rank |
 */
#ifndef ISGQ_TRANSPORT_CUDA_IPC_H
#define ISGQ_TRANSPORT_CUDA_IPC_H

#include "transport/segment.h"
#include "transport/wire.h"

#include <stdatomic.h>
#include <sys/types.h>

#define IQ_CUDA_IPC_SLOTS 2 /* of a link: one can be read while the next is written */
#define IQ_CUDA_IPC_TRIAL 8 /* words of the message that every link carries once, to see that it does */

enum { IQ_CUDA_IPC_FULL = 1, IQ_CUDA_IPC_EMPTY = 2 }; /* bits, since streams wait for bits */

/* In shared memory. */
typedef struct iq_cuda_ipc_rank {
    _Alignas(64) _Atomic uint32_t gone;   /* let_go: what this rank has sent since may be garbage */
    _Atomic uint32_t closed;              /* it uses nobody's device memory any more */
    _Alignas(64) iq_cuda_flag_t position; /* 1 + the peer that its stream waits for; 0: nobody */
} iq_cuda_ipc_rank_t;

/* Cache lines of one link. In shared memory. */
typedef struct iq_cuda_ipc_lines {
    struct {
        _Alignas(64) iq_cuda_flag_t flag;
    } slots[IQ_CUDA_IPC_SLOTS];
    _Alignas(64) uint64_t sent[IQ_CUDA_IPC_TRIAL]; /* pinned buffers of either end for the trial */
    _Alignas(64) uint64_t received[IQ_CUDA_IPC_TRIAL];
} iq_cuda_ipc_lines_t;

/* This rank's end of a link. */
typedef struct iq_cuda_ipc_link {
    iq_cuda_ipc_lines_t *lines;
    unsigned char *memory; /* its first slot, as this process sees it */
    unsigned slot;         /* of the next message */
    bool begun;
} iq_cuda_ipc_link_t;

/* This rank's device memory; it may outlive the wire. See cuda_ipc_memory.c. */
typedef struct iq_cuda_ipc_memory {
    struct iq_cuda_ipc_memory *next;
    const iq_cuda_module_t *cuda;
    int device, nranks;
    void *base;
    size_t bytes;
    iq_segment_t segment; /* the shared host memory */
    pid_t process;
} iq_cuda_ipc_memory_t;

typedef struct iq_cuda_ipc {
    iq_wire_t base;
    const iq_cuda_module_t *cuda;
    int rank, nranks, device;
    size_t slot_bytes;
    bool pinned;  /* the segment's mapping */
    bool exposed; /* others may have opened this rank's memory */
    iq_cuda_ipc_memory_t *memory;
    iq_cuda_ipc_rank_t *ranks;    /* [nranks] in shared memory; NULL before the segment is joined */
    iq_cuda_ipc_link_t *in, *out; /* [nranks] by peer; that to oneself is not used */
    void **opened;                /* [nranks] memory of other processes */
} iq_cuda_ipc_t;

/* Bytes of the shared host memory, 0 on overflow. */
size_t iq_cuda_ipc_shared_bytes(size_t nranks);

/* The lines of a link. */
iq_cuda_ipc_lines_t *iq_cuda_ipc_lines(const iq_cuda_ipc_t *ipc, int from, int to);

isgq_result_t iq_cuda_ipc_open(const iq_wire_params_t *params, iq_wire_t **wire);
void iq_cuda_ipc_close(iq_wire_t *wire);

/* Members of the table. */
isgq_result_t iq_cuda_ipc_begin_send(iq_wire_t *wire, isgq_stream_t stream, int peer, size_t bytes, void **payload);
isgq_result_t iq_cuda_ipc_end_send(iq_wire_t *wire, isgq_stream_t stream, int peer);
isgq_result_t iq_cuda_ipc_begin_receive(iq_wire_t *wire, isgq_stream_t stream, int peer, size_t bytes, const void **payload);
isgq_result_t iq_cuda_ipc_end_receive(iq_wire_t *wire, isgq_stream_t stream, int peer);
void iq_cuda_ipc_let_go(iq_wire_t *wire);

/* Send a known word pattern to every peer, then, when all ranks have, receive theirs. Local; returns by the deadline. */
isgq_result_t iq_cuda_ipc_trial_send(iq_cuda_ipc_t *ipc, uint64_t token, uint64_t deadline_ns);
isgq_result_t iq_cuda_ipc_trial_receive(iq_cuda_ipc_t *ipc, uint64_t token, uint64_t deadline_ns);

/* This rank uses nobody's memory any more; its own is freed when that is so for all ranks. Takes `memory`. */
void iq_cuda_ipc_retire(iq_cuda_ipc_memory_t *memory, int rank);

/* Free what retired ranks of this process have left and nobody uses any more. */
void iq_cuda_ipc_sweep(void);

/* Free memory that nobody else has ever seen. */
void iq_cuda_ipc_discard(iq_cuda_ipc_memory_t *memory);

extern const iq_wire_ops_t iq_wire_cuda_ipc;

#endif
