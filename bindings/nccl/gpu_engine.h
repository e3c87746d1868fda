/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine for programs on GPUs: the functions of NCCL that a policy concerns. The program's communicators stay what they are, real ones; what
 * is known of them is kept beside. Everything else goes to the real library without a detour.
 */
#ifndef ISGQ_NCCL_GPU_ENGINE_H
#define ISGQ_NCCL_GPU_ENGINE_H

#include "bindings/nccl/host_types.h"
#include "bindings/preload/library.h"
#include "bindings/preload/policy.h"

#include <pthread.h>
#include <stdbool.h>

typedef struct ncclComm *iq_real_comm_t;

/* What the engine calls of the real library. Required ones exist in every NCCL from 2.18 on. */
#define IQ_REAL_FUNCTIONS(X)                                                                                       \
    X(ncclAllReduce, (const void *, void *, size_t, int, int, iq_real_comm_t, iq_host_stream_t))                   \
    X(ncclReduceScatter, (const void *, void *, size_t, int, int, iq_real_comm_t, iq_host_stream_t))               \
    X(ncclAllGather, (const void *, void *, size_t, int, iq_real_comm_t, iq_host_stream_t))                        \
    X(ncclGroupStart, (void))                                                                                      \
    X(ncclGroupEnd, (void))                                                                                        \
    X(ncclCommCount, (iq_real_comm_t, int *))                                                                      \
    X(ncclCommUserRank, (iq_real_comm_t, int *))                                                                   \
    X(ncclCommInitRank, (iq_real_comm_t *, int, iq_host_id_t, int))                                                \
    X(ncclCommInitRankConfig, (iq_real_comm_t *, int, iq_host_id_t, int, const iq_host_config_t *))                \
    X(ncclCommInitRankScalable, (iq_real_comm_t *, int, int, int, const iq_host_id_t *, const iq_host_config_t *)) \
    X(ncclCommInitAll, (iq_real_comm_t *, int, const int *))                                                       \
    X(ncclCommSplit, (iq_real_comm_t, int, int, iq_real_comm_t *, const iq_host_config_t *))                       \
    X(ncclCommFinalize, (iq_real_comm_t))                                                                          \
    X(ncclCommDestroy, (iq_real_comm_t))                                                                           \
    X(ncclCommAbort, (iq_real_comm_t))                                                                             \
    X(ncclCommGetAsyncError, (iq_real_comm_t, iq_host_result_t *))

typedef struct iq_real {
#define X(name, parameters) iq_host_result_t(*name) parameters;
    IQ_REAL_FUNCTIONS(X)
#undef X
} iq_real_t;

/* What is known of one communicator of the program's. */
typedef struct iq_gpu_comm {
    struct iq_gpu_comm *next;
    iq_real_comm_t real;
    int nranks, rank, users;
    char name[64];
    uint32_t named;      /* rules that speak of it */
    const char *refused; /* why its calls pass through, or NULL */
    isgq_comm_t inner;   /* NULL if they all do */
    isgq_quantizer_t quantizers[IQ_POLICY_RULES];
} iq_gpu_comm_t;

extern iq_real_t iq_real;

const iq_policy_t *iq_gpu_policy(void);

/* A communicator that the real library has just made: known from now on; joined by one of ours if a rule names it. Collective. */
void iq_gpu_comm_add(iq_real_comm_t real, const iq_host_config_t *config, const char *refused);

/* Its state, held until iq_gpu_comm_put; NULL if it was made in a way that is not known here. */
iq_gpu_comm_t *iq_gpu_comm_get(iq_real_comm_t real);
void iq_gpu_comm_put(iq_gpu_comm_t *comm);

/* This thread ends a communicator inside a group: its sums that are kept for the group's end will not be done, and hold it no longer. */
void iq_gpu_drop_kept(iq_real_comm_t real);

/* NCCL's number for a result of the library. */
iq_host_result_t iq_gpu_result(isgq_result_t result);

#endif
