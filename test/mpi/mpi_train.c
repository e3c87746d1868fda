/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A legacy program: data-parallel logistic regression with many classes, plain gradient descent. Gradients are summed in place on a
 * communicator named "gradients", the loss and the count of right answers on MPI_COMM_WORLD. Prints both, a hash of the weights that must be
 * the same on all ranks, and the seconds that training took.
 *
 * usage: mpi_train [STEPS [FEATURES [ROWS]]]
 */
#include <math.h>
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CLASSES = 64 };

static int features = 512, rows = 256;
static float *inputs, *weights, *gradient; /* [rows x features], [CLASSES x features] twice */
static int *labels;

static float noise(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (float)((double)(*state >> 40) / (1 << 24) - .5);
}

/* Every class is a direction of its own with noise around it. */
static void make_rows(int rank)
{
    uint64_t centres, state = 77u + (uint64_t)rank;
    for (int r = 0; r < rows; r++) {
        labels[r] = (r * 7 + rank) % CLASSES;
        centres = (uint64_t)labels[r] * 1000003u;
        for (int f = 0; f < features; f++)
            inputs[r * features + f] = noise(&centres) + 2 * noise(&state);
    }
}

/* Adds to the gradient, the loss and the right answers. */
static void one_row(const float *x, int label, double *loss, double *right)
{
    float p[CLASSES], most = -INFINITY, sum = 0;
    int best = 0;
    for (int c = 0; c < CLASSES; c++) {
        p[c] = 0;
        for (int f = 0; f < features; f++)
            p[c] += x[f] * weights[c * features + f];
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
        for (int f = 0; f < features; f++)
            gradient[c * features + f] += delta * x[f];
    }
}

int main(int argc, char **argv)
{
    int rank, nranks, steps = argc > 1 ? atoi(argv[1]) : 20;
    features = argc > 2 ? atoi(argv[2]) : features;
    rows = argc > 3 ? atoi(argv[3]) : rows;
    const int nweights = CLASSES * features;
    double totals[2] = {0, 0};
    MPI_Comm gradients;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &nranks);
    MPI_Comm_dup(MPI_COMM_WORLD, &gradients);
    MPI_Comm_set_name(gradients, "gradients");
    inputs = calloc((size_t)rows * (size_t)features, sizeof(*inputs));
    weights = calloc((size_t)nweights, sizeof(*weights));
    gradient = calloc((size_t)nweights, sizeof(*gradient));
    labels = calloc((size_t)rows, sizeof(*labels));
    if (inputs == NULL || weights == NULL || gradient == NULL || labels == NULL)
        MPI_Abort(MPI_COMM_WORLD, 1);
    make_rows(rank);
    double begin = MPI_Wtime();
    for (int step = 0; step < steps; step++) {
        memset(gradient, 0, (size_t)nweights * sizeof(*gradient));
        double mine[2] = {0, 0};
        for (int r = 0; r < rows; r++)
            one_row(inputs + r * features, labels[r], &mine[0], &mine[1]);
        MPI_Allreduce(MPI_IN_PLACE, gradient, nweights, MPI_FLOAT, MPI_SUM, gradients);
        MPI_Allreduce(mine, totals, 2, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
        for (int i = 0; i < nweights; i++)
            weights[i] -= 100.f / (float)features / (float)(rows * nranks) * gradient[i];
    }
    double seconds = MPI_Wtime() - begin;
    uint64_t hash[2] = {0xcbf29ce484222325u, 0}, least[2];
    for (size_t i = 0; i < (size_t)nweights * sizeof(*weights); i++)
        hash[0] = (hash[0] ^ ((unsigned char *)weights)[i]) * 0x100000001b3u;
    hash[1] = ~hash[0];
    MPI_Allreduce(hash, least, 2, MPI_UINT64_T, MPI_MIN, MPI_COMM_WORLD);
    if (rank == 0)
        printf("loss %.6f accuracy %.4f hash %016llx %s seconds %.4f\n", totals[0] / (rows * nranks), totals[1] / (rows * nranks),
               (unsigned long long)hash[0], least[0] == ~least[1] ? "equal" : "DIFFERENT", seconds);
    MPI_Comm_free(&gradients);
    free(inputs), free(weights), free(gradient), free(labels);
    MPI_Finalize();
    return 0;
}
