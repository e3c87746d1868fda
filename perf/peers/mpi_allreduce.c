/* SPDX-License-Identifier: Apache-2.0 */
/* isgq_perf's measurement of MPI: fp32 MPI_Allreduce of the sizes given in bytes, malloc'ed buffers, refilled between iterations. */
#include <mpi.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WARMUP = 5, ITERATIONS = 20 };

static int ascending(const void *a, const void *b)
{
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

static double median_seconds(size_t count, const float *pristine, float *send, float *receive)
{
    double seconds[ITERATIONS], slowest[ITERATIONS];

    for (int i = -WARMUP; i < ITERATIONS; i++) {
        memcpy(send, pristine, count * sizeof(float));
        MPI_Barrier(MPI_COMM_WORLD);
        double start = MPI_Wtime();
        MPI_Allreduce(send, receive, (int)count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
        seconds[i < 0 ? 0 : i] = MPI_Wtime() - start;
    }
    MPI_Allreduce(seconds, slowest, ITERATIONS, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    qsort(slowest, ITERATIONS, sizeof(double), ascending);
    return 0.5 * (slowest[(ITERATIONS - 1) / 2] + slowest[ITERATIONS / 2]);
}

int main(int argc, char **argv)
{
    int rank, nranks;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &nranks);
    for (int i = 1; i < argc; i++) {
        size_t bytes = strtoull(argv[i], NULL, 10), count = bytes / sizeof(float);
        float *memory[3] = {malloc(bytes + 1), malloc(bytes + 1), malloc(bytes + 1)};
        for (size_t j = 0; j < count; j++)
            memory[0][j] = (float)((j + (size_t)rank) % 1000);
        double seconds = median_seconds(count, memory[0], memory[1], memory[2]);
        if (rank == 0)
            printf("allreduce f32 sum, %d ranks, %zu B: %.2f us, %.3f GB/s\n", nranks, bytes, seconds * 1e6,
                   (double)bytes / seconds * 1e-9);
        for (int k = 0; k < 3; k++)
            free(memory[k]);
    }
    return MPI_Finalize();
}
