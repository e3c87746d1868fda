/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A rank's end of the wire over NCCL, for tests with the stand-in for NCCL (cudasim/sim_nccl.h): its ranks live in a world (world.h), as
 * threads, processes or both. Ranks of one process have devices 0, 1, ...; processes count as machines. The functions return 0 when all is
 * well. What a process has once said to the stand-in holds for its children too: layouts of several processes need a case of their own.
 */
#ifndef ISGQ_TEST_SUPPORT_NCCL_RANK_H
#define ISGQ_TEST_SUPPORT_NCCL_RANK_H

#include "support/world.h"
#include "transport/nccl.h"
#include "transport/wire.h"

#define ROUNDS 12
#define SLOT_BYTES 4096u
#define MOST_MESSAGES 3 /* of a round from one rank to another */

extern bool nccl_one_machine; /* all processes are on one */
extern int nccl_devices;      /* that ranks of a process are spread over */

typedef struct end {
    rank_t *self;
    const iq_cuda_module_t *cuda;
    const iq_wire_ops_t *ops;
    iq_wire_t *wire; /* NULL: not open */
    int device;
    isgq_stream_t stream;
    iq_cuda_event_t event;
    unsigned char *pinned; /* outgoing and incoming messages, and words */
    iq_nccl_comm_t native;
    uint64_t open_ns;
} end_t;

int nccl_start(end_t *end, rank_t *self);
isgq_result_t nccl_open(end_t *end);
void nccl_close(end_t *end);

/* Closes everything; when all ranks have, everything is freed sooner or later, and that is awaited. The second one meets nobody. */
int nccl_finish(end_t *end);
void nccl_finish_alone(end_t *end);

/* layout "001": ranks 0 and 1 are threads of process 0, rank 2 is process 1. */
world_t nccl_world(const char *layout, int (*body)(rank_t *self));
void nccl_run(const char *layout, int (*body)(rank_t *self));

/* A communicator of the application among all ranks, made by the stand-in. */
int nccl_make_native(end_t *end);

/* Round i: messages of all ranks to all ranks, with sizes, numbers and bytes of their own; `salt` makes other bytes. Only enqueued. */
int nccl_round(end_t *end, int i);
void nccl_fill(end_t *end, int i, int salt);
int nccl_check_round(const end_t *end, int i, int salt);

/* ROUNDS of them and sums between. Rank 0 has enqueued everything before anybody else begins. */
int nccl_exchange(end_t *end);

/* An event behind all that was enqueued, and until that is reached. */
int nccl_record(end_t *end);
int nccl_arrive(end_t *end);

#endif
