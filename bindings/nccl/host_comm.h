/* SPDX-License-Identifier: Apache-2.0 */
/* What an ncclComm_t points to in the host emulation: a communicator of this library, and what NCCL keeps beside it. */
#ifndef ISGQ_NCCL_HOST_COMM_H
#define ISGQ_NCCL_HOST_COMM_H

#include "bindings/nccl/host_types.h"
#include "bindings/preload/library.h"
#include "bindings/preload/policy.h"

#include <stdatomic.h>
#include <stdbool.h>

enum { HOST_SCALARS = 64 }; /* operations of ncclRedOpCreatePreMulSum alive at a time */

/* sum of scalar * input */
typedef struct iq_host_scalar {
    bool used;
    int type;
    bool later;          /* read when the call runs: "device" memory, which is host memory here */
    const void *pointer; /* where, if later */
    unsigned char value[8];
} iq_host_scalar_t;

typedef struct iq_host_comm {
    struct iq_host_comm *next; /* of those that live */
    isgq_comm_t inner;
    int nranks, rank, device;
    char name[64];
    _Atomic int users; /* calls that are inside, for an abort from another thread */
    iq_host_scalar_t scalars[HOST_SCALARS];
    bool agreed;    /* the ranks have compared their policies */
    uint32_t named; /* rules that speak of it */
    isgq_quantizer_t quantizers[IQ_POLICY_RULES];
} iq_host_comm_t;

/* The library; NULL after a line that says why there is none. */
const iq_library_t *iq_host_library(void);

const iq_policy_t *iq_host_policy(void);

/* NCCL's number for a result of the library, whose text becomes ncclGetLastError's. */
iq_host_result_t iq_host_result(isgq_result_t result, const char *what);

/* Say what is wrong with a call: the text of ncclGetLastError, and a line of level info as NCCL_DEBUG=WARN would write. */
iq_host_result_t iq_host_fail(iq_host_result_t result, const char *format, ...) __attribute__((format(printf, 2, 3)));
const char *iq_host_last_error(void);

/* A living communicator? Else ncclInvalidArgument and a text. Enter before work on it that may take long, leave after it. */
iq_host_result_t iq_host_comm_check(const iq_host_comm_t *comm, const char *call);
iq_host_result_t iq_host_comm_enter(iq_host_comm_t *comm, const char *call);
void iq_host_comm_leave(iq_host_comm_t *comm);

/* Communicators whose making was asked for in the open group: begun and ended by the group. */
bool iq_host_comm_pending(void);
iq_host_result_t iq_host_comm_join_all(void);

#endif
