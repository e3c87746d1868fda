/* SPDX-License-Identifier: Apache-2.0 */
/* MPI_Allreduce, measured as peer_measure.h says: the same file for each MPI, compiled by its own mpicc. */
#include "perf/peers/peer_measure.h"

#include <mpi.h>

static void allreduce(void *state, float *send, float *receive, size_t count)
{
    (void)state;
    MPI_Allreduce(send, receive, (int)count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
}

static void barrier(void *state)
{
    (void)state;
    MPI_Barrier(MPI_COMM_WORLD);
}

int main(int argc, char **argv)
{
    peer_t peer = {.exact = true, .allreduce = allreduce, .barrier = barrier};

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &peer.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &peer.nranks);
    int status = peer_measure(&peer, argc, argv);
    MPI_Finalize();
    return status;
}
