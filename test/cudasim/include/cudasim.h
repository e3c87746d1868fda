/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A CUDA that computes on the CPU, so that kernels and the order of streams are tested where there is no GPU. Nothing of it is
 * installed. The functions below are for tests; everything else is in cuda_runtime.h.
 *
 * Streams run at once, each in its order on a thread of its own (the default stream too: it waits for no other stream), so that a
 * wait that is missing shows as a race. Blocks run one after the other, the threads of a block in turns: from one barrier to the
 * next, so spinning until another thread of the grid writes a word hangs. Device memory is memory of the host between two pages that
 * may not be touched, full of 0xCB before its first use and inaccessible before its allocation and after its release in stream
 * order. Copies from or to memory that CUDA does not know wait until they are done. The first launch of a kernel that
 * cudaFuncGetAttributes has not loaded waits for all streams of its device, which is what CUDA reserves for itself.
 *
 * Streams can be captured; graphs are launched, not edited. What may disturb a capture does: whatever waits, asks for the state of
 * work, allocates or releases fails and makes the capture invalid, as far as the thread's mode does not allow it. Memory from
 * cudaMallocAsync, graphs in graphs and events from outside cannot be captured. Memory from cudaMalloc can be exported to other
 * processes of the same user. Any kernel can use the memory of any device: peer access is only asked for by streams that wait for
 * words or write them.
 *
 * Read at the first call:
 *     CUDASIM_DEVICES   1; with 0 every call returns cudaErrorNoDevice
 *     CUDASIM_MEMORY    bytes of a device, 4 GiB
 *     CUDASIM_FAIL      as cudasim_fail
 *     CUDASIM_ORDER     forward; backward: blocks, and threads of a block, start from the last to the first
 *     CUDASIM_DELAY     0; else every operation of a stream starts up to so many microseconds late
 * Read at each call:
 *     CUDASIM_CAPTURING 1: cudaStreamIsCapturing says that the stream is captured
 *     CUDASIM_GRAPHS    serial: a graph's nodes run one after another as they were captured; else streams that were captured run at
 *                       the same time, which is more than CUDA promises
 *     CUDASIM_NO_WORDS  1: cudaGetDriverEntryPointByVersion finds no cuStreamWaitValue32 and its like, as with an old driver;
 *                       64: streams neither wait for nor write words of 64 bits
 *     CUDASIM_NO_PEERS  1: no device can use another one's memory
 *     CUDASIM_NO_IPC    1: memory cannot be exported; open: exported memory cannot be opened
 */
#ifndef CUDASIM_H
#define CUDASIM_H

#ifdef __cplusplus
extern "C" {
#endif

/* "name:n,name:n": the n-th call from now (from 1) of a function fails with cudaErrorUnknown. NULL or "": none. Kernels are launched
 * by "cudaLaunchKernelEx". Any thread. */
void cudasim_fail(const char *calls);

/* How often a function was called, failures included. */
unsigned long cudasim_calls(const char *name);

/* What exists: for tests that look for leaks. Memory that cudaFreeAsync releases exists until the stream gets there. */
typedef struct cudasim_count {
    int streams, events;
    int device_blocks, pinned_blocks, registrations;
    int opened_blocks; /* of other processes */
    int graphs;        /* those that can be launched, too */
} cudasim_count_t;
cudasim_count_t cudasim_objects(void);

#ifdef __cplusplus
}
#endif

#endif
