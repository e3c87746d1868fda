/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tests of device memory, without Check: a GPU machine may have nothing but a compiler, CMake and the CUDA toolkit. The same sources run on a real GPU
 * and on the simulated one of test/cudasim.
 *
 *     test_gpu_NAME             every case, each in a process of its own
 *     test_gpu_NAME CASE        one case; exit status 77 where there is no usable GPU
 *     test_gpu_NAME --list      names
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

/* Run ranks; ends the process with their sentences if one fails. */
void gpu_run_ranks(const iq_ranks_t *ranks);

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
