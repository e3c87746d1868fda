/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A legacy program: conjugate gradients for a Laplacian on a square grid, rows divided among the ranks. Its dot products are sums of one
 * number each, and the iteration ends by them: quantized, it would end elsewhere. Prints iterations, and a hash of the solution.
 */
#include <math.h>
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH = 96, HEIGHT = 96, MOST_ITERATIONS = 400 };

static int rank, nranks, rows;

static float dot(const float *a, const float *b)
{
    float mine = 0, all;
    for (int i = 0; i < rows * WIDTH; i++)
        mine += a[i] * b[i];
    MPI_Allreduce(&mine, &all, 1, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    return all;
}

/* q = A p; p has a row of its neighbours' above and below. */
static void multiply(float *p, float *q)
{
    int above = rank > 0 ? rank - 1 : MPI_PROC_NULL, below = rank + 1 < nranks ? rank + 1 : MPI_PROC_NULL;
    float *first = p + WIDTH, *last = p + (size_t)rows * WIDTH;
    MPI_Sendrecv(first, WIDTH, MPI_FLOAT, above, 0, last + WIDTH, WIDTH, MPI_FLOAT, below, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    MPI_Sendrecv(last, WIDTH, MPI_FLOAT, below, 1, p, WIDTH, MPI_FLOAT, above, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    for (int y = 0; y < rows; y++)
        for (int x = 0; x < WIDTH; x++) {
            const float *here = first + (size_t)y * WIDTH + x;
            float left = x > 0 ? here[-1] : 0, right = x + 1 < WIDTH ? here[1] : 0;
            q[y * WIDTH + x] = 4 * *here - left - right - here[-WIDTH] - here[WIDTH];
        }
}

int main(int argc, char **argv)
{
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &nranks);
    rows = HEIGHT / nranks;
    size_t n = (size_t)rows * WIDTH;
    float *x = calloc(n, sizeof(*x)), *r = calloc(n, sizeof(*r)), *q = calloc(n, sizeof(*q)),
          *p = calloc(n + 2 * WIDTH, sizeof(*p));
    float *solution = calloc(n * (size_t)nranks, sizeof(*solution));
    if (x == NULL || r == NULL || q == NULL || p == NULL || solution == NULL)
        MPI_Abort(MPI_COMM_WORLD, 1);
    for (size_t i = 0; i < n; i++)
        r[i] = p[WIDTH + i] = (float)sin((double)(i + n * (size_t)rank));
    float rr = dot(r, r), goal = rr * 1e-9f;
    int iterations = 0;
    for (; rr > goal && iterations < MOST_ITERATIONS; iterations++) {
        multiply(p, q);
        float alpha = rr / dot(p + WIDTH, q), before = rr;
        for (size_t i = 0; i < n; i++) {
            x[i] += alpha * p[WIDTH + i];
            r[i] -= alpha * q[i];
        }
        rr = dot(r, r);
        for (size_t i = 0; i < n; i++)
            p[WIDTH + i] = r[i] + rr / before * p[WIDTH + i];
    }
    /* The whole field by a large sum: every rank gives its rows and zeros, which is exact in any order. */
    memcpy(solution + (size_t)rank * n, x, n * sizeof(*x));
    MPI_Comm field;
    MPI_Comm_dup(MPI_COMM_WORLD, &field);
    MPI_Comm_set_name(field, "field");
    MPI_Allreduce(MPI_IN_PLACE, solution, (int)(n * (size_t)nranks), MPI_FLOAT, MPI_SUM, field);
    MPI_Comm_free(&field);
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n * (size_t)nranks * sizeof(float); i++)
        hash = (hash ^ ((unsigned char *)solution)[i]) * 0x100000001b3u;
    if (rank == 0)
        printf("%d iterations, %s, hash %016llx\n", iterations, rr <= goal ? "converged" : "not converged",
               (unsigned long long)hash);
    free(x), free(r), free(q), free(p), free(solution);
    MPI_Finalize();
    return 0;
}
