/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A legacy program: data-parallel logistic regression with many classes, plain gradient descent. Gradients are summed in place on a
 * communicator named "gradients", the loss and the count of right answers on MPI_COMM_WORLD. Prints both, a hash of the weights that must be
 * the same on all ranks, and the seconds that training took.
 */
#include <math.h>
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FEATURES = 512, CLASSES = 64, ROWS = 256, WEIGHTS = FEATURES * CLASSES };

static float inputs[ROWS][FEATURES], weights[WEIGHTS], gradient[WEIGHTS];
static int labels[ROWS];

static float noise(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (float)((double)(*state >> 40) / (1 << 24) - .5);
}

/* Every class is a direction of its own with noise around it. */
static void make_rows(int rank)
{
    uint64_t centres, state = 77u + (uint64_t)rank;
    for (int r = 0; r < ROWS; r++) {
        labels[r] = (r * 7 + rank) % CLASSES;
        centres = (uint64_t)labels[r] * 1000003u;
        for (int f = 0; f < FEATURES; f++)
            inputs[r][f] = noise(&centres) + 2 * noise(&state);
    }
}

/* Adds to the gradient, the loss and the right answers. */
static void one_row(const float *x, int label, double *loss, double *right)
{
    float p[CLASSES], most = -INFINITY, sum = 0;
    int best = 0;
    for (int c = 0; c < CLASSES; c++) {
        p[c] = 0;
        for (int f = 0; f < FEATURES; f++)
            p[c] += x[f] * weights[c * FEATURES + f];
        if (p[c] > most) {
            most = p[c];
            best = c;
        }
    }
    for (int c = 0; c < CLASSES; c++)
        sum += p[c] = expf(p[c] - most);
    *loss -= (double)logf(p[label] / sum + 1e-30f);
    *right += best == label;
    for (int c = 0; c < CLASSES; c++) {
        float delta = p[c] / sum - (float)(c == label);
        for (int f = 0; f < FEATURES; f++)
            gradient[c * FEATURES + f] += delta * x[f];
    }
}

int main(int argc, char **argv)
{
    int rank, nranks, steps = argc > 1 ? atoi(argv[1]) : 20;
    double totals[2] = {0, 0};
    MPI_Comm gradients;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &nranks);
    MPI_Comm_dup(MPI_COMM_WORLD, &gradients);
    MPI_Comm_set_name(gradients, "gradients");
    make_rows(rank);
    double begin = MPI_Wtime();
    for (int step = 0; step < steps; step++) {
        memset(gradient, 0, sizeof(gradient));
        double mine[2] = {0, 0};
        for (int r = 0; r < ROWS; r++)
            one_row(inputs[r], labels[r], &mine[0], &mine[1]);
        MPI_Allreduce(MPI_IN_PLACE, gradient, WEIGHTS, MPI_FLOAT, MPI_SUM, gradients);
        MPI_Allreduce(mine, totals, 2, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
        for (int i = 0; i < WEIGHTS; i++)
            weights[i] -= 0.2f / (float)(ROWS * nranks) * gradient[i];
    }
    double seconds = MPI_Wtime() - begin;
    uint64_t hash[2] = {0xcbf29ce484222325u, 0}, least[2];
    for (size_t i = 0; i < sizeof(weights); i++)
        hash[0] = (hash[0] ^ ((unsigned char *)weights)[i]) * 0x100000001b3u;
    hash[1] = ~hash[0];
    MPI_Allreduce(hash, least, 2, MPI_UINT64_T, MPI_MIN, MPI_COMM_WORLD);
    if (rank == 0)
        printf("loss %.6f accuracy %.4f hash %016llx %s seconds %.4f\n", totals[0] / (ROWS * nranks), totals[1] / (ROWS * nranks),
               (unsigned long long)hash[0], least[0] == ~least[1] ? "equal" : "DIFFERENT", seconds);
    MPI_Comm_free(&gradients);
    MPI_Finalize();
    return 0;
}
