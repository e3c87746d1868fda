/* SPDX-License-Identifier: Apache-2.0 */
/* NCCL's numbers as rules and records name them: for the engine before GPUs and for the emulation alike. */
#ifndef ISGQ_NCCL_POLICY_H
#define ISGQ_NCCL_POLICY_H

#include "bindings/nccl/host_types.h"
#include "bindings/preload/policy.h"
#include "bindings/preload/record.h"
#include "isgqcoll.h"

#include <stdio.h>

/* Bytes of an element, 0 for no type. */
static inline size_t iq_nccl_type_bytes(int type)
{
    static const unsigned char bytes[HOST_TYPES] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
    return type >= 0 && type < HOST_TYPES ? bytes[type] : 0;
}

static inline uint32_t iq_nccl_policy_type(int type)
{
    return type == ISGQ_FLOAT32    ? IQ_POLICY_F32
           : type == ISGQ_FLOAT16  ? IQ_POLICY_F16
           : type == ISGQ_BFLOAT16 ? IQ_POLICY_BF16
                                   : 0;
}

static inline uint32_t iq_nccl_policy_op(int op) { return op == ISGQ_SUM ? IQ_POLICY_SUM : op == ISGQ_AVG ? IQ_POLICY_AVG : 0; }

static inline void iq_nccl_record(const iq_policy_seen_t *seen, const char *comm, int nranks, int type)
{
    char other[16];
    snprintf(other, sizeof(other), "<%d>", type);
    iq_record_call_t call = {.collective = iq_policy_call_name(seen->call),
                             .comm = comm,
                             .type = seen->type != 0 ? iq_policy_type_name(seen->type) : other,
                             .op = seen->call == IQ_POLICY_ALLGATHER ? "-"
                                   : seen->op != 0                   ? iq_policy_op_name(seen->op)
                                                                     : "<other>",
                             .nranks = nranks,
                             .bytes = seen->bytes};
    iq_record_add(&call);
}

#endif
