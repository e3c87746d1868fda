/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program as it is written for GPUs, one rank a process: device buffers, a stream, events, copies back. It knows NCCL and the CUDA runtime, and nothing
 * of isgqcoll. Ranks and the unique id come by fork and a pipe, so that it needs no launcher.
 *
 * usage: nccl_program RANKS       prints the mean squared error that rank 0 ends with: "steps 20 error 1e-12"
 */
#include <cuda_runtime.h>
#include <nccl.h>

#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(call, good, text)                                                        \
    do {                                                                               \
        int status = (int)(call);                                                      \
        if (status != (int)(good)) {                                                   \
            fprintf(stderr, "%s:%d: %s: %d %s\n", __FILE__, __LINE__, #call, status, text(status)); \
            exit(1);                                                                   \
        }                                                                              \
    } while (0)
#define CUDA(call) CHECK(call, cudaSuccess, cudaGetErrorString)
#define NCCL(call) CHECK(call, ncclSuccess, ncclGetErrorString)

enum { COUNT = 100000, STEPS = 20 };

/* Descent on |w - mean of all ranks' targets|^2 / 2: after the steps w is known. */
static int train(int rank, int nranks, ncclUniqueId id)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclComm_t comm;
    cudaStream_t stream;
    cudaEvent_t before, after;
    float *gradient, *host = malloc(COUNT * sizeof(*host)), *weights = calloc(COUNT, sizeof(*weights)), elapsed;
    double squares = 0;
    config.commName = "gradients";
    CUDA(cudaSetDevice(0));
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA(cudaEventCreate(&before));
    CUDA(cudaEventCreate(&after));
    CUDA(cudaMalloc((void **)&gradient, COUNT * sizeof(*gradient)));
    NCCL(ncclCommInitRankConfig(&comm, nranks, id, rank, &config));
    for (int step = 0; step < STEPS; step++) {
        for (int i = 0; i < COUNT; i++)
            host[i] = weights[i] - (float)(i % 7 + rank);
        CUDA(cudaMemcpyAsync(gradient, host, COUNT * sizeof(*host), cudaMemcpyHostToDevice, stream));
        CUDA(cudaEventRecord(before, stream));
        NCCL(ncclAllReduce(gradient, gradient, COUNT, ncclFloat, ncclAvg, comm, stream));
        CUDA(cudaEventRecord(after, stream));
        CUDA(cudaMemcpyAsync(host, gradient, COUNT * sizeof(*host), cudaMemcpyDeviceToHost, stream));
        CUDA(cudaStreamSynchronize(stream));
        CUDA(cudaEventElapsedTime(&elapsed, before, after));
        for (int i = 0; i < COUNT; i++)
            weights[i] -= 0.5f * host[i];
    }
    for (int i = 0; i < COUNT; i++) {
        float error = weights[i] - ((float)(i % 7) + (float)(nranks - 1) / 2.0f);
        squares += (double)error * error;
    }
    NCCL(ncclCommFinalize(comm));
    NCCL(ncclCommDestroy(comm));
    CUDA(cudaFree(gradient));
    CUDA(cudaStreamDestroy(stream));
    if (rank == 0)
        printf("steps %d error %g\n", STEPS, squares / COUNT);
    free(host);
    free(weights);
    return !(elapsed >= 0);
}

int main(int argc, char **argv)
{
    int nranks = argc > 1 ? atoi(argv[1]) : 2, rank = 0, failed = 0, pipes[2];
    ncclUniqueId id;
    if (pipe(pipes) != 0)
        return 1;
    for (int other = 1; other < nranks && rank == 0; other++)
        rank = fork() == 0 ? other : 0;
    if (rank == 0)
        NCCL(ncclGetUniqueId(&id));
    for (int other = 1; other < nranks; other++)
        failed |= rank == 0 && write(pipes[1], &id, sizeof(id)) != (ssize_t)sizeof(id);
    if (rank != 0)
        failed |= read(pipes[0], &id, sizeof(id)) != (ssize_t)sizeof(id);
    failed |= failed ? 1 : train(rank, nranks, id);
    for (int other = 1, status; rank == 0 && other < nranks; other++) {
        wait(&status);
        failed |= !WIFEXITED(status) || WEXITSTATUS(status) != 0;
    }
    return failed;
}
