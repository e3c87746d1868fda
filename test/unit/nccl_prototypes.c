/* SPDX-License-Identifier: Apache-2.0 */
/* The prototypes of transport/nccl.h against NCCL's own header: compiled where that is installed, never linked. */
#include "transport/nccl.h"

#include <nccl.h>

#pragma GCC diagnostic error "-Wincompatible-pointer-types"

_Static_assert(sizeof(ncclUniqueId) == sizeof(iq_nccl_id_t), "an id is passed by value");
_Static_assert(_Generic((ncclComm_t)0, iq_nccl_comm_t: 1, default: 0), "communicators are the same type");
_Static_assert((int)ncclUint8 == IQ_NCCL_UINT8 && (int)ncclUint32 == IQ_NCCL_UINT32 && (int)ncclSum == IQ_NCCL_SUM, "values");
_Static_assert((int)ncclSuccess == IQ_NCCL_SUCCESS && (int)ncclInProgress == IQ_NCCL_IN_PROGRESS, "results");
_Static_assert((int)ncclUnhandledCudaError == ISGQ_ERR_CUDA && (int)ncclRemoteError == ISGQ_ERR_REMOTE, "results are isgq_result_t");
_Static_assert((int)ISGQ_UINT32 == (int)ncclUint32 && (int)ISGQ_BFLOAT16 == (int)ncclBfloat16 && (int)ISGQ_AVG == (int)ncclAvg,
               "types and reductions are isgqcoll.h's");

/* By value alone the ids differ in name: their functions are compared through a prototype of the same shape. */
static ncclResult_t get_unique_id(iq_nccl_id_t *id) { return ncclGetUniqueId((ncclUniqueId *)id); }
static ncclResult_t comm_init_rank(ncclComm_t *comm, int nranks, iq_nccl_id_t id, int rank)
{
    ncclUniqueId same;
    __builtin_memcpy(&same, &id, sizeof(same));
    return ncclCommInitRank(comm, nranks, same, rank);
}

const iq_nccl_functions_t iq_nccl_prototypes = {
    .get_version = ncclGetVersion,
    .get_unique_id = get_unique_id,
    .comm_init_rank = comm_init_rank,
    .comm_destroy = ncclCommDestroy,
    .comm_abort = ncclCommAbort,
    .comm_count = ncclCommCount,
    .comm_user_rank = ncclCommUserRank,
    .comm_cu_device = ncclCommCuDevice,
    .comm_get_async_error = ncclCommGetAsyncError,
    .get_error_string = ncclGetErrorString,
    .get_last_error = ncclGetLastError,
    .group_start = ncclGroupStart,
    .group_end = ncclGroupEnd,
    .send = ncclSend,
    .recv = ncclRecv,
    .all_reduce = ncclAllReduce,
    .broadcast = ncclBroadcast,
};
