/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A rank's end of the wire between GPUs of one host, for tests on simulated GPUs: its ranks live in a world (world.h), as
 * threads, processes or both. The functions return 0 when all is well.
 */
#ifndef ISGQ_TEST_SUPPORT_WIRE_END_H
#define ISGQ_TEST_SUPPORT_WIRE_END_H

#include "support/world.h"
#include "transport/wire.h"

#define MESSAGES 24
#define SLOT_BYTES 4096u

extern iq_cuda_module_t wire_tables[MAX_RANKS]; /* what rank r gives its wire; a test may spoil it after wire_start */

/* Between wire_start and wire_finish. */
typedef struct end {
    rank_t *self;
    const iq_cuda_module_t *cuda;
    const iq_wire_ops_t *ops;
    iq_wire_t *wire; /* NULL: not open */
    int device;
    isgq_stream_t stream;
    iq_cuda_event_t event;
    unsigned char *outgoing, *incoming; /* pinned, of MAX_RANKS * MESSAGES slots each */
    iq_allgather_fn gather;             /* world_gather */
    uint64_t open_ns;                   /* the world's */
} end_t;

int wire_start(end_t *end, rank_t *self);
isgq_result_t wire_open(end_t *end);
void wire_close(end_t *end);

/* Closes everything. When all ranks have, everything has been freed or is freed by whoever looks next, and that is checked. */
int wire_finish(end_t *end);

/* layout "001": ranks 0 and 1 are threads of process 0, rank 2 is process 1. Rank r works on device r mod `devices`. */
void wire_run(const char *layout, int devices, int (*body)(rank_t *self));

/* Message i to or from a peer; each has a size and bytes of its own. Only enqueued. */
int wire_send(end_t *end, int peer, int i);
int wire_receive(end_t *end, int peer, int i);

/* An event behind all of it, and until that is reached. */
int wire_record(end_t *end);
int wire_arrive(end_t *end);

/* It has arrived as it was sent. */
int wire_check_message(const end_t *end, int peer, int i);

/* All messages between all ranks. Rank 0 has enqueued everything before anybody else begins. */
int wire_exchange(end_t *end);

#endif
