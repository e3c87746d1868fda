/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tests of device memory, without Check: a GPU machine may have nothing but a compiler, CMake and the CUDA toolkit. The same sources run on a real GPU
 * and on the simulated one of test/cudasim.
 *
 *     test_gpu_NAME [--over WAY]             every case, each in a process of its own
 *     test_gpu_NAME [--over WAY] CASE        one case; exit status 77 where it cannot run, with a line that says why
 *     test_gpu_NAME --list                   names
 *
 * Ways are how messages between devices travel:
 *
 *     cuda_ipc   as the library chooses on one host; streams wait for them
 *     nccl       the same over NCCL. Ranks that a case starts as threads are processes too, each on a machine of its own in NCCL's eyes
 *                (NCCL_HOSTID): NCCL refuses two ranks of one machine on one GPU
 *     staged     through host memory, carried by hosts
 *
 * A case starts ranks with support/ranks.h. Nothing touches CUDA in a process that forks ranks later.
 */
#ifndef ISGQ_TEST_GPU_MAIN_H
#define ISGQ_TEST_GPU_MAIN_H

#include "support/ranks.h"

#include <cuda_runtime.h>

typedef struct gpu_case {
    const char *name;
    void (*run)(void);
} gpu_case_t;

/* Of the test program; ends with a NULL name. The build reads the lines that begin with GPU_CASE. */
extern const gpu_case_t gpu_cases[];

#define GPU_CASE(function) {#function, function}

/* Run ranks, apart; ends the process with their sentences if one fails. */
void gpu_run_ranks(const iq_ranks_t *ranks);

/* The case ends here as skipped; the second one if this is the way, where it cannot run or shows nothing new. */
_Noreturn void gpu_skip(const char *why);
void gpu_not_over(const char *way, const char *why);

/* Devices that ranks will find. Asks in a child. */
int gpu_devices(void);

/* The case runs over this way. */
bool gpu_over(const char *way);

/* The communicator's last call went the way that is tested: over its wire, or over none if it is "staged". One rank alone needs none. */
void gpu_check_way(iq_rank_t *rank, isgq_comm_t comm);

/* A CUDA call succeeds. */
#define RANK_CUDA(rank, call)                                                                                \
    do {                                                                                                     \
        cudaError_t cuda_status = (call);                                                                    \
        RANK_CHECK(rank, cuda_status == cudaSuccess, "%s: %s", #call, cudaGetErrorString(cuda_status));      \
    } while (0)

/* A communicator of all ranks on host or device memory. */
isgq_comm_t gpu_join(iq_rank_t *rank, isgq_device_type_t type, isgq_unique_id_t id);
void gpu_leave(iq_rank_t *rank, isgq_comm_t comm);

/* A stream of the rank's own: calls of two ranks on one stream would wait for each other. */
cudaStream_t gpu_stream(iq_rank_t *rank);

/* A fresh id that rank 0 makes; every rank calls it. Uses all flags. */
isgq_unique_id_t gpu_id(iq_rank_t *rank);

#endif
