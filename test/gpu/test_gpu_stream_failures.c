/* SPDX-License-Identifier: Apache-2.0 */
/* Streamed calls that cannot end well: ranks that disagree, die, come late or give up. Streams go on, and the error names who is to blame. */
#include "gpu/gpu_ends.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Captured on one rank, eager on the other: told before anything is replayed. */
static void uneven_body(iq_rank_t *rank)
{
    static const char *const texts[] = {"none", NULL};
    ends_t ends = open_ends(rank);
    upload(rank, &ends, 6);
    if (rank->rank == 0) {
        graph_t graph = capture(rank, &ends, texts);
        RANK_STATUS(rank, isgq_comm_synchronize(ends.comm), ISGQ_ERR_MISMATCH);
        destroy(rank, &graph);
    } else {
        allreduce(rank, &ends, "none");
        RANK_STATUS(rank, isgq_comm_synchronize(ends.comm), ISGQ_ERR_MISMATCH);
        RANK_CUDA(rank, cudaStreamSynchronize(ends.stream));
    }
    RANK_CHECK(rank, strstr(isgq_get_last_error(), "captured") != NULL, "\"%s\" does not say what differs", isgq_get_last_error());
    close_ends(rank, &ends, true);
}

static void uneven(void) { gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_PROCESSES, .nranks = 2, .body = uneven_body, .apart = true}); }

/* The communicator is given up while its stream still has to do the call: memory stays until the stream has passed. */
static void given_up_body(iq_rank_t *rank)
{
    ends_t ends = open_ends(rank), blocker = open_ends(rank);
    upload(rank, &ends, 8);
    if (rank->rank == 0) {
        RANK_OK(rank, isgq_allreduce(blocker.device, blocker.device, COUNT, ISGQ_FLOAT32, ISGQ_MAX, NULL, blocker.comm, ends.stream, NULL));
        allreduce(rank, &ends, "uniform:bits=4");
        iq_rank_meet(rank);
        RANK_OK(rank, isgq_comm_destroy(ends.comm));
    } else {
        const struct timespec pause = {.tv_nsec = 200000000};
        iq_rank_meet(rank);
        nanosleep(&pause, NULL);
        RANK_OK(rank, isgq_allreduce(blocker.device, blocker.device, COUNT, ISGQ_FLOAT32, ISGQ_MAX, NULL, blocker.comm, ends.stream, NULL));
        RANK_OK(rank, isgq_comm_destroy(ends.comm));
    }
    RANK_CUDA(rank, cudaStreamSynchronize(ends.stream));
    RANK_CUDA(rank, cudaStreamDestroy(ends.stream));
    RANK_CUDA(rank, cudaFree(ends.device));
    free(ends.values);
    close_ends(rank, &blocker, false);
}

static void given_up(void)
{
    gpu_not_over("nccl", "two communicators of NCCL wait for each other on one device");
    gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_PROCESSES, .nranks = 2, .body = given_up_body, .apart = true});
}

/* A rank dies while graphs of the others wait for it: their streams go on, and the communicator says whose fault it was. */
static void orphans_body(iq_rank_t *rank)
{
    static const char *const texts[] = {"uniform:bits=4", NULL};
    isgq_result_t error = ISGQ_SUCCESS;
    ends_t ends = open_ends(rank);
    upload(rank, &ends, 2);
    graph_t graph = capture(rank, &ends, texts);
    RANK_CUDA(rank, cudaGraphLaunch(graph.exec, ends.stream));
    (void)download(rank, &ends);
    iq_rank_meet(rank);
    if (rank->rank == 1)
        _exit(0);
    for (int i = 0; i < 3; i++)
        RANK_CUDA(rank, cudaGraphLaunch(graph.exec, ends.stream));
    RANK_CUDA(rank, cudaStreamSynchronize(ends.stream));
    RANK_OK(rank, isgq_comm_get_async_error(ends.comm, &error));
    RANK_CHECK(rank, error == ISGQ_ERR_REMOTE, "status %d", (int)error);
    destroy(rank, &graph);
    close_ends(rank, &ends, true);
}

static void orphans(void)
{
    gpu_not_over("staged", "what hosts carry cannot be captured");
    gpu_not_over("nccl", "no graph may run when NCCL's communicator has been aborted");
    gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_PROCESSES, .nranks = 3, .body = orphans_body, .apart = true, .lost = 1u << 1});
}

/* Rank 1 makes its call, but its stream is kept busy (by a call on another communicator) for longer than a call may take: the others name it, not each
 * other. */
static void late_body(iq_rank_t *rank)
{
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    isgq_comm_t comm = NULL;
    isgq_unique_id_t id = gpu_id(rank);
    ends_t other = open_ends(rank);
    float *device = other.device + COUNT;
    config.device_type = ISGQ_DEVICE_CUDA;
    config.timeout_ms = 1000;
    id = gpu_id(rank);
    RANK_OK(rank, isgq_comm_init_rank(&comm, rank->nranks, id, rank->rank, &config));
    RANK_CUDA(rank, cudaMemset(other.device, 0, 2 * COUNT * sizeof(float)));
    if (rank->rank == 1)
        allreduce(rank, &other, "none");
    RANK_OK(rank, isgq_allreduce(device, device, COUNT, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, other.stream, NULL));
    if (rank->rank != 1) {
        RANK_STATUS(rank, isgq_comm_synchronize(comm), ISGQ_ERR_TIMEOUT);
        RANK_CHECK(rank, strstr(isgq_get_last_error(), "rank 1") != NULL, "\"%s\" does not name rank 1", isgq_get_last_error());
        RANK_CUDA(rank, cudaStreamSynchronize(other.stream));
        allreduce(rank, &other, "none");
    }
    RANK_OK(rank, isgq_comm_synchronize(other.comm));
    RANK_CUDA(rank, cudaStreamSynchronize(other.stream));
    iq_rank_meet(rank);
    RANK_OK(rank, isgq_comm_destroy(comm));
    close_ends(rank, &other, false);
}

static void late(void)
{
    gpu_not_over("nccl", "NCCL does not say whom a stream waits for");
    gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_PROCESSES, .nranks = 3, .body = late_body, .apart = true});
}

/* clang-format off: one line a case */
const gpu_case_t gpu_cases[] = {
    GPU_CASE(uneven),
    GPU_CASE(given_up),
    GPU_CASE(orphans),
    GPU_CASE(late),
    {NULL, NULL},
};
