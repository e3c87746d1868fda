/* SPDX-License-Identifier: Apache-2.0 */
/* Calls of a thread between ncclGroupStart and ncclGroupEnd, and how they run: together, so that one thread can be many ranks. */
#ifndef ISGQ_NCCL_HOST_GROUP_H
#define ISGQ_NCCL_HOST_GROUP_H

#include "bindings/nccl/host_comm.h"

typedef enum iq_host_kind {
    HOST_ALLREDUCE,
    HOST_REDUCE,
    HOST_REDUCE_SCATTER,
    HOST_ALLGATHER,
    HOST_BROADCAST,
    HOST_ALLTOALL,
    HOST_GATHER,
    HOST_SCATTER
} iq_host_kind_t;

/* A call with everything copied: what it names may be gone when the group ends. */
typedef struct iq_host_call {
    iq_host_kind_t kind;
    iq_host_comm_t *comm;
    const void *send;
    void *recv;
    size_t count; /* as the call's own argument means it */
    int type, op, root;
    iq_host_scalar_t scalar; /* used: scalar * input is summed */

    /* while it runs */
    const void *from; /* what the library reads and writes instead of send and recv */
    void *to;
    void *scratch_from, *scratch_to;
    int run_type;
    isgq_quantizer_t quantizer;
} iq_host_call_t;

/* Is a group open in this thread? */
bool iq_host_in_group(void);

/* Run a call now, or keep it until the outermost group ends. */
iq_host_result_t iq_host_submit(const iq_host_call_t *call);

/* A call of this thread was refused: the group it was made in, if any, will not run either, and ends with the first such result. */
void iq_host_group_refuse(iq_host_result_t result);

/* Run `count` calls of any communicators: all are posted, then all waited for. */
iq_host_result_t iq_host_run(iq_host_call_t *calls, size_t count);

#endif
