/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For tests: the few calls of the CUDA runtime that a program written against NCCL makes, over host memory. One device, copies that are done when they
 * return, streams and events without anything in them. That is enough where ISGQ_NCCL_HOST=1, since its calls too are complete when they return.
 * A program that needs more of CUDA does not link with this.
 */
#include <cuda_runtime.h>

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define API __attribute__((visibility("default")))

static _Thread_local cudaError_t last;
static char a_stream; /* its address is every stream's handle */

static cudaError_t answer(int good)
{
    if (!good)
        last = cudaErrorInvalidValue;
    return good ? cudaSuccess : last;
}

API cudaError_t cudaGetDeviceCount(int *count) { return answer((*count = 1)); }
API cudaError_t cudaGetDevice(int *device) { return answer((*device = 0, 1)); }
API cudaError_t cudaSetDevice(int device) { return answer(device == 0); }
API cudaError_t cudaDeviceSynchronize(void) { return answer(1); }

API cudaError_t cudaMalloc(void **pointer, size_t bytes) { return answer((*pointer = malloc(bytes + 1)) != NULL); }
API cudaError_t cudaFree(void *pointer) { return answer((free(pointer), 1)); }
API cudaError_t cudaMallocHost(void **pointer, size_t bytes) { return cudaMalloc(pointer, bytes); }
API cudaError_t cudaFreeHost(void *pointer) { return cudaFree(pointer); }

API cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    (void)kind;
    return answer(memmove(to, from, bytes) != NULL);
}
API cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    (void)stream;
    return cudaMemcpy(to, from, bytes, kind);
}
API cudaError_t cudaMemset(void *to, int value, size_t bytes) { return answer(memset(to, value, bytes) != NULL); }
API cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
    (void)stream;
    return cudaMemset(to, value, bytes);
}

API cudaError_t cudaStreamCreate(cudaStream_t *stream) { return answer((*stream = (cudaStream_t)(void *)&a_stream) != NULL); }
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned int flags)
{
    (void)flags;
    return cudaStreamCreate(stream);
}
API cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return answer(stream == NULL || stream == (cudaStream_t)(void *)&a_stream); }
API cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaStreamSynchronize(stream); }
API cudaError_t cudaStreamDestroy(cudaStream_t stream) { return cudaStreamSynchronize(stream); }

API cudaError_t cudaEventCreate(cudaEvent_t *event) { return answer((*event = calloc(1, sizeof(struct timespec))) != NULL); }
API cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    (void)stream;
    return answer(clock_gettime(CLOCK_MONOTONIC, (struct timespec *)(void *)event) == 0);
}
API cudaError_t cudaEventSynchronize(cudaEvent_t event) { return answer(event != NULL); }
API cudaError_t cudaEventDestroy(cudaEvent_t event) { return answer((free((void *)event), 1)); }
API cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to)
{
    const struct timespec *a = (const struct timespec *)(const void *)from, *b = (const struct timespec *)(const void *)to;
    *milliseconds = (float)((double)(b->tv_sec - a->tv_sec) * 1e3 + (double)(b->tv_nsec - a->tv_nsec) * 1e-6);
    return answer(1);
}

API const char *cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "invalid argument"; }
API cudaError_t cudaPeekAtLastError(void) { return last; }
API cudaError_t cudaGetLastError(void)
{
    cudaError_t was = last;
    last = cudaSuccess;
    return was;
}
