/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program for GPUs that knows nothing of this library: its ranks sum by ncclAllReduce on streams, alone, in a group, in a pair of calls, and from a captured graph. It
 * runs on the simulated GPU; each line says what was summed and its relative error.
 *
 * usage: nccl_gpu_client RANKS [end]
 */
#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* nccl.h would bring the real CUDA's headers with it. */
typedef struct ncclComm *ncclComm_t;
typedef struct ncclUniqueId {
    char internal[128];
} ncclUniqueId;
typedef enum { ncclSuccess = 0, ncclInternalError = 3 } ncclResult_t;
typedef enum { ncclSum = 0 } ncclRedOp_t;
typedef enum { ncclFloat = 7 } ncclDataType_t;
ncclResult_t ncclGetUniqueId(ncclUniqueId *id);
ncclResult_t ncclCommInitRank(ncclComm_t *comm, int nranks, ncclUniqueId id, int rank);
ncclResult_t ncclCommDestroy(ncclComm_t comm);
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error);
ncclResult_t ncclAllReduce(const void *send, void *recv, size_t count, ncclDataType_t type, ncclRedOp_t op, ncclComm_t comm,
                           cudaStream_t stream);
ncclResult_t ncclReduceScatter(const void *send, void *recv, size_t count, ncclDataType_t type, ncclRedOp_t op, ncclComm_t comm,
                               cudaStream_t stream);
ncclResult_t ncclAllGather(const void *send, void *recv, size_t count, ncclDataType_t type, ncclComm_t comm, cudaStream_t stream);
ncclResult_t ncclGroupStart(void);
ncclResult_t ncclGroupEnd(void);
const char *ncclGetErrorString(ncclResult_t result);
const char *ncclGetLastError(ncclComm_t comm);

#ifdef ISGQ_NCCL_REPLACE
#include "bindings/nccl/isgq_nccl.h"
#endif

enum { MOST = 4, COUNT = 40000, FEW = 100 };

#define NCCL(call)                                                                                       \
    do {                                                                                                 \
        ncclResult_t result_ = (call);                                                                   \
        if (result_ != ncclSuccess) {                                                                    \
            fprintf(stderr, "%s: %s, %s\n", #call, ncclGetErrorString(result_), ncclGetLastError(NULL)); \
            exit(1);                                                                                     \
        }                                                                                                \
    } while (0)
#define CUDA(call)                                                          \
    do {                                                                    \
        cudaError_t error_ = (call);                                        \
        if (error_ != cudaSuccess) {                                        \
            fprintf(stderr, "%s: %s\n", #call, cudaGetErrorString(error_)); \
            exit(1);                                                        \
        }                                                                   \
    } while (0)

static int rank, nranks;
static ncclComm_t comm;
static cudaStream_t stream;
static float *device_in, *device_out, values[COUNT];

static float value_of(int of, size_t i) { return (float)((i * 31 + (size_t)of * 17) % 201) - 100; }

static void report(const char *what, size_t count, double factor)
{
    double error = 0, norm = 0;
    CUDA(cudaMemcpyAsync(values, device_out, count * sizeof(float), cudaMemcpyDeviceToHost, stream));
    CUDA(cudaStreamSynchronize(stream));
    for (size_t i = 0; i < count; i++) {
        double right = 0;
        for (int r = 0; r < nranks; r++)
            right += (double)value_of(r, i);
        error += (values[i] - factor * right) * (values[i] - factor * right);
        norm += right * right;
    }
    if (rank == 0)
        printf("%s %.3e\n", what, error / norm);
}

static void clear(void) { CUDA(cudaMemsetAsync(device_out, 0, COUNT * sizeof(float), stream)); }

static void captured(void)
{
    cudaGraph_t graph;
    cudaGraphExec_t runs;
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    NCCL(ncclAllReduce(device_in, device_out, COUNT, ncclFloat, ncclSum, comm, stream));
    CUDA(cudaStreamEndCapture(stream, &graph));
    CUDA(cudaGraphInstantiate(&runs, graph, 0));
    for (int replay = 0; replay < 2; replay++) {
        clear();
        CUDA(cudaGraphLaunch(runs, stream));
        report("replayed", COUNT, 1);
    }
    CUDA(cudaGraphExecDestroy(runs));
    CUDA(cudaGraphDestroy(graph));
}

/* The sum in two calls: each rank sums its part of what is in place, and gathers those of all. COUNT is a multiple of any number of ranks here. */
static void pair(void)
{
    size_t part = COUNT / (size_t)nranks;
    float *mine = device_out + (size_t)rank * part;
    CUDA(cudaMemcpyAsync(device_out, device_in, COUNT * sizeof(float), cudaMemcpyDeviceToDevice, stream));
    NCCL(ncclReduceScatter(device_out, mine, part, ncclFloat, ncclSum, comm, stream));
    NCCL(ncclAllGather(mine, device_out, part, ncclFloat, comm, stream));
    report("pair", COUNT, 1);
}

/* A communicator ended inside the group that holds a call on it: nobody waits for that call. */
static int ended_in_group(void)
{
    NCCL(ncclGroupStart());
    NCCL(ncclAllReduce(device_in, device_out, COUNT, ncclFloat, ncclSum, comm, stream));
    NCCL(ncclCommDestroy(comm));
    NCCL(ncclGroupEnd());
    return 0;
}

static int run_rank(int pipes[MOST][2], int ends_early)
{
    ncclUniqueId id;
    char host[16];
    snprintf(host, sizeof(host), "%d", rank);
    setenv("NCCL_HOSTID", host, 1); /* ranks share the simulated GPU */
    if (rank == 0) {
        NCCL(ncclGetUniqueId(&id));
        for (int r = 1; r < nranks; r++)
            if (write(pipes[r][1], &id, sizeof(id)) != sizeof(id))
                return 1;
    } else if (read(pipes[rank][0], &id, sizeof(id)) != sizeof(id)) {
        return 1;
    }
    CUDA(cudaSetDevice(0));
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA(cudaMalloc((void **)&device_in, COUNT * sizeof(float)));
    CUDA(cudaMalloc((void **)&device_out, COUNT * sizeof(float)));
    NCCL(ncclCommInitRank(&comm, nranks, id, rank));
    if (ends_early)
        return ended_in_group();
    for (size_t i = 0; i < COUNT; i++)
        values[i] = value_of(rank, i);
    CUDA(cudaMemcpyAsync(device_in, values, sizeof(values), cudaMemcpyHostToDevice, stream));
    clear();
    NCCL(ncclAllReduce(device_in, device_out, COUNT, ncclFloat, ncclSum, comm, stream));
    report("alone", COUNT, 1);
    clear();
    NCCL(ncclGroupStart());
    NCCL(ncclAllReduce(device_in, device_out, COUNT, ncclFloat, ncclSum, comm, stream));
    NCCL(ncclGroupEnd());
    report("grouped", COUNT, 1);
    NCCL(ncclAllReduce(device_in, device_out, FEW, ncclFloat, ncclSum, comm, stream));
    report("few", FEW, 1);
    pair();
    captured();
    ncclResult_t async = ncclInternalError;
    NCCL(ncclCommGetAsyncError(comm, &async));
    NCCL(ncclCommDestroy(comm));
    CUDA(cudaFree(device_in));
    CUDA(cudaFree(device_out));
    CUDA(cudaStreamDestroy(stream));
    fflush(stdout);
    return async != ncclSuccess;
}

int main(int argc, char **argv)
{
    int pipes[MOST][2], status, failed = 0;
    nranks = argc == 2 || argc == 3 ? atoi(argv[1]) : 0;
    if (nranks < 1 || nranks > MOST)
        return 2;
    for (int r = 0; r < nranks; r++)
        if (pipe(pipes[r]) != 0)
            return 1;
    for (rank = 0; rank < nranks; rank++)
        if (fork() == 0)
            _exit(run_rank(pipes, argc == 3));
    for (int r = 0; r < nranks; r++)
        failed += wait(&status) < 0 || status != 0;
    return failed != 0;
}
