/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NCCL's functions as this library uses them. The prototypes are repeated here, because the library is built where NCCL's header is not
 * installed and runs where NCCL is not: it is loaded when it is first needed. test/unit/nccl_prototypes.c compares them with the header.
 */
#ifndef ISGQ_TRANSPORT_NCCL_H
#define ISGQ_TRANSPORT_NCCL_H

#include "isgqcoll.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct iq_cuda_module;

typedef struct ncclComm *iq_nccl_comm_t;
typedef unsigned iq_nccl_result_t; /* an enumeration of NCCL; so are types and operations */

typedef struct iq_nccl_id {
    char internal[128];
} iq_nccl_id_t;

enum { IQ_NCCL_SUCCESS = 0, IQ_NCCL_INVALID_USAGE = 5, IQ_NCCL_IN_PROGRESS = 7 };
enum { IQ_NCCL_UINT8 = 1, IQ_NCCL_UINT32 = 3 };
enum { IQ_NCCL_SUM = 0 };

#define IQ_NCCL_OLDEST 21000   /* 2.10 */
#define IQ_NCCL_SHARES_GPU 23000 /* 2.30: with NCCL_MULTI_RANK_GPU_ENABLE=1 ranks may share a GPU */

/* IQ_NCCL_FUNCTION(member, symbol, required, result, parameters) */
#define IQ_NCCL_FUNCTIONS(X)                                                                                                     \
    X(get_version, ncclGetVersion, true, iq_nccl_result_t, (int *version))                                                       \
    X(get_unique_id, ncclGetUniqueId, true, iq_nccl_result_t, (iq_nccl_id_t * id))                                               \
    X(comm_init_rank, ncclCommInitRank, true, iq_nccl_result_t, (iq_nccl_comm_t * comm, int nranks, iq_nccl_id_t id, int rank))   \
    X(comm_destroy, ncclCommDestroy, true, iq_nccl_result_t, (iq_nccl_comm_t comm))                                              \
    X(comm_abort, ncclCommAbort, true, iq_nccl_result_t, (iq_nccl_comm_t comm))                                                  \
    X(comm_count, ncclCommCount, true, iq_nccl_result_t, (const iq_nccl_comm_t comm, int *count))                                \
    X(comm_user_rank, ncclCommUserRank, true, iq_nccl_result_t, (const iq_nccl_comm_t comm, int *rank))                          \
    X(comm_cu_device, ncclCommCuDevice, true, iq_nccl_result_t, (const iq_nccl_comm_t comm, int *device))                        \
    X(comm_get_async_error, ncclCommGetAsyncError, true, iq_nccl_result_t, (iq_nccl_comm_t comm, iq_nccl_result_t * error))      \
    X(get_error_string, ncclGetErrorString, true, const char *, (iq_nccl_result_t result))                                       \
    X(get_last_error, ncclGetLastError, false, const char *, (iq_nccl_comm_t comm))                                              \
    X(group_start, ncclGroupStart, true, iq_nccl_result_t, (void))                                                               \
    X(group_end, ncclGroupEnd, true, iq_nccl_result_t, (void))                                                                   \
    X(send, ncclSend, true, iq_nccl_result_t,                                                                                    \
      (const void *memory, size_t count, unsigned type, int peer, iq_nccl_comm_t comm, isgq_stream_t stream))                    \
    X(recv, ncclRecv, true, iq_nccl_result_t,                                                                                    \
      (void *memory, size_t count, unsigned type, int peer, iq_nccl_comm_t comm, isgq_stream_t stream))                          \
    X(all_reduce, ncclAllReduce, true, iq_nccl_result_t,                                                                         \
      (const void *from, void *to, size_t count, unsigned type, unsigned op, iq_nccl_comm_t comm, isgq_stream_t stream))         \
    X(broadcast, ncclBroadcast, true, iq_nccl_result_t,                                                                          \
      (const void *from, void *to, size_t count, unsigned type, int root, iq_nccl_comm_t comm, isgq_stream_t stream))

typedef struct iq_nccl_functions {
#define X(member, symbol, required, result, parameters) result(*member) parameters;
    IQ_NCCL_FUNCTIONS(X)
#undef X
    int version; /* NCCL_VERSION_CODE of what was loaded */
} iq_nccl_functions_t;

/*
 * From, in this order: whoever called iq_nccl_use; ISGQ_NCCL_LIB; the libnccl.so.2 that this process has loaded; the one that the loader
 * finds. Looked for once. ISGQ_ERR_UNSUPPORTED with the reason if there is none or if it is older than IQ_NCCL_OLDEST.
 */
isgq_result_t iq_nccl_load(const iq_nccl_functions_t **functions);

/* The address of one of NCCL's functions, NULL if there is none. */
typedef void *(*iq_nccl_find_fn)(void *context, const char *symbol);

/* ISGQ_ERR_INVALID_USAGE if NCCL has been looked for already. */
isgq_result_t iq_nccl_use(iq_nccl_find_fn find, void *context);

/* What a function of NCCL returned, as this library's result; with a sentence if it is an error. `comm` may be NULL. */
isgq_result_t iq_nccl_result(const iq_nccl_functions_t *nccl, iq_nccl_comm_t comm, iq_nccl_result_t result, const char *what);

/* A communicator of the application: its size, this rank, its device. */
isgq_result_t iq_nccl_describe(iq_nccl_comm_t comm, int *nranks, int *rank, int *device);

/* Rank 0's bytes for all ranks of such a communicator. Collective. */
isgq_result_t iq_nccl_tell(iq_nccl_comm_t comm, const struct iq_cuda_module *cuda, int device, void *data, size_t bytes, uint64_t deadline_ns);

#endif
