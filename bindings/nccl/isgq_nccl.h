/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file isgq_nccl.h
 * NCCL's calls by way of isgqcoll, chosen in the source: include it after nccl.h, link libisgq_nccl and NCCL.
 *
 * Each function has NCCL's signature, results, ownership and threading; what ISGQ_POLICY names is quantized, all else is NCCL's own work
 * (docs/preload.md). With ISGQ_NCCL_REPLACE defined before the include, NCCL's names mean these functions. A communicator goes through the
 * same family from its making to its end.
 */
#ifndef ISGQ_NCCL_H
#define ISGQ_NCCL_H

#ifdef __cplusplus
extern "C" {
#endif

/** As ncclAllReduce. @return as NCCL; ncclSystemError if libisgqcoll's engine cannot be loaded under a policy */
ncclResult_t isgqNcclAllReduce(const void *sendbuff, void *recvbuff, size_t count, ncclDataType_t datatype, ncclRedOp_t op,
                               ncclComm_t comm, cudaStream_t stream);
/** As ncclReduceScatter. @return as NCCL */
ncclResult_t isgqNcclReduceScatter(const void *sendbuff, void *recvbuff, size_t recvcount, ncclDataType_t datatype,
                                   ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream);
/** As ncclAllGather. @return as NCCL */
ncclResult_t isgqNcclAllGather(const void *sendbuff, void *recvbuff, size_t sendcount, ncclDataType_t datatype, ncclComm_t comm,
                               cudaStream_t stream);
/** As ncclGroupStart. @return as NCCL */
ncclResult_t isgqNcclGroupStart(void);
/** As ncclGroupEnd. @return as NCCL */
ncclResult_t isgqNcclGroupEnd(void);
/** As ncclCommInitRank. Under a policy that names the communicator its ranks also meet as isgq_comm_init_nccl says. @return as NCCL */
ncclResult_t isgqNcclCommInitRank(ncclComm_t *comm, int nranks, ncclUniqueId id, int rank);
/** As ncclCommDestroy. @return as NCCL */
ncclResult_t isgqNcclCommDestroy(ncclComm_t comm);
/** As ncclCommAbort. @return as NCCL */
ncclResult_t isgqNcclCommAbort(ncclComm_t comm);
/** As ncclCommGetAsyncError. @return as NCCL */
ncclResult_t isgqNcclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error);
#ifdef NCCL_MAJOR
/** As ncclCommInitRankConfig; config->commName is the name that rules speak of. @return as NCCL */
ncclResult_t isgqNcclCommInitRankConfig(ncclComm_t *comm, int nranks, ncclUniqueId id, int rank, ncclConfig_t *config);
/** As ncclCommSplit. @return as NCCL */
ncclResult_t isgqNcclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t *newcomm, ncclConfig_t *config);
#endif

#ifdef __cplusplus
}
#endif

#ifdef ISGQ_NCCL_REPLACE
#define ncclAllReduce isgqNcclAllReduce
#define ncclReduceScatter isgqNcclReduceScatter
#define ncclAllGather isgqNcclAllGather
#define ncclGroupStart isgqNcclGroupStart
#define ncclGroupEnd isgqNcclGroupEnd
#define ncclCommInitRank isgqNcclCommInitRank
#define ncclCommInitRankConfig isgqNcclCommInitRankConfig
#define ncclCommSplit isgqNcclCommSplit
#define ncclCommDestroy isgqNcclCommDestroy
#define ncclCommAbort isgqNcclCommAbort
#define ncclCommGetAsyncError isgqNcclCommGetAsyncError
#endif

#endif
