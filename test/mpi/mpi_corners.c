/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program that calls MPI_Allreduce in every way it may be called. Everything is a small integer, so sums are exact unless quantized; each
 * line says what was summed and its relative error.
 */
#include <math.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COUNT = 40000 };

static int rank, nranks;

static double value_of(int of_rank, int i) { return (double)((i * 31 + of_rank * 17) % 201 - 100); }

static void report(const char *what, const double *result, int count)
{
    double error = 0, norm = 0;
    for (int i = 0; i < count; i++) {
        double exact = 0;
        for (int r = 0; r < nranks; r++)
            exact += value_of(r, i);
        error += (result[i] - exact) * (result[i] - exact);
        norm += exact * exact;
    }
    if (rank == 0)
        printf("%s %.3e\n", what, norm > 0 ? error / norm : error);
}

static void floats(const char *what, MPI_Comm comm, int count, size_t shift, int in_place)
{
    char *memory = calloc(2 * COUNT * sizeof(float) + 64, 1), *send = memory + shift,
         *recv = memory + COUNT * sizeof(float) + 32 + shift;
    static double wide[COUNT];
    for (int i = 0; i < count; i++) {
        float value = (float)value_of(rank, i);
        memcpy(send + (size_t)i * sizeof(float), &value, sizeof(float));
    }
    if (in_place)
        memcpy(recv, send, (size_t)count * sizeof(float));
    MPI_Allreduce(in_place ? MPI_IN_PLACE : send, recv, count, MPI_FLOAT, MPI_SUM, comm);
    for (int i = 0; i < count; i++) {
        float value;
        memcpy(&value, recv + (size_t)i * sizeof(float), sizeof(float));
        wide[i] = value;
    }
    report(what, wide, count);
    free(memory);
}

static void doubles(MPI_Comm comm)
{
    static double send[COUNT], recv[COUNT];
    for (int i = 0; i < COUNT; i++)
        send[i] = value_of(rank, i);
    MPI_Allreduce(send, recv, COUNT, MPI_DOUBLE, MPI_SUM, comm);
    report("doubles", recv, COUNT);
}

static void others(MPI_Comm comm)
{
    static int send[COUNT], recv[COUNT];
    static double wide[COUNT];
    static float most[COUNT];
    for (int i = 0; i < COUNT; i++)
        send[i] = (int)value_of(rank, i);
    MPI_Allreduce(send, recv, COUNT, MPI_INT, MPI_SUM, comm);
    for (int i = 0; i < COUNT; i++)
        wide[i] = recv[i];
    report("ints", wide, COUNT);
    for (int i = 0; i < COUNT; i++)
        most[i] = (float)(i + rank);
    MPI_Allreduce(MPI_IN_PLACE, most, COUNT, MPI_FLOAT, MPI_MAX, comm);
    int wrong = 0;
    for (int i = 0; i < COUNT; i++)
        wrong += most[i] != (float)(i + nranks - 1);
    if (rank == 0)
        printf("maximum %d wrong\n", wrong);
}

/* Errors that MPI reports must stay its own. Debian's MPICH looks for none, so this one is asked of Open MPI alone. */
static void mistakes(void)
{
#ifdef OPEN_MPI
    float value = 1, sum = 0;
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    int null = MPI_Allreduce(&value, &sum, 1, MPI_FLOAT, MPI_SUM, MPI_COMM_NULL);
    int count = MPI_Allreduce(&value, &sum, -1, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    int class_null = MPI_SUCCESS, class_count = MPI_SUCCESS;
    MPI_Error_class(null, &class_null);
    MPI_Error_class(count, &class_count);
    if (rank == 0)
        printf("mistakes %s\n", class_null == MPI_ERR_COMM && class_count == MPI_ERR_COUNT ? "reported" : "LOST");
#endif
}

static void between_groups(void)
{
    MPI_Comm half, inter;
    float one = (float)(rank + 1), sum = 0, expected = 0;
    MPI_Comm_split(MPI_COMM_WORLD, rank % 2, 0, &half);
    MPI_Intercomm_create(half, 0, MPI_COMM_WORLD, 1 - rank % 2, 5, &inter);
    MPI_Allreduce(&one, &sum, 1, MPI_FLOAT, MPI_SUM, inter);
    for (int r = 1 - rank % 2; r < nranks; r += 2)
        expected += (float)(r + 1);
    if (rank == 0)
        printf("intercommunicator %s\n", sum == expected ? "right" : "WRONG");
    MPI_Comm_free(&inter);
    MPI_Comm_free(&half);
}

/* A message is under way while its sender is inside MPI_Allreduce, and its receiver comes to that only afterwards. */
static void message_before_sum(MPI_Comm comm)
{
    enum { MESSAGE = 8 << 20 };
    char *message = calloc(MESSAGE, 1);
    float *sums = calloc(COUNT, sizeof(float));
    MPI_Request request = MPI_REQUEST_NULL;
    if (rank == 0)
        MPI_Isend(message, MESSAGE, MPI_CHAR, 1, 0, MPI_COMM_WORLD, &request);
    else if (rank == 1)
        MPI_Recv(message, MESSAGE, MPI_CHAR, 0, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    MPI_Allreduce(MPI_IN_PLACE, sums, COUNT, MPI_FLOAT, MPI_SUM, comm);
    MPI_Wait(&request, MPI_STATUS_IGNORE);
    free(message);
    free(sums);
}

int main(int argc, char **argv)
{
    MPI_Comm named, copy;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &nranks);
    MPI_Comm_dup(MPI_COMM_WORLD, &named);
    MPI_Comm_set_name(named, argc > 1 && rank == 1 ? argv[1] : "gradients"); /* an argument: rank 1 has another name for it */
    floats("floats", named, COUNT, 0, 0);
    floats("in_place", named, COUNT, 0, 1);
    floats("unaligned", named, COUNT, 1, 0);
    floats("few", named, 10, 0, 0);
    floats("none", named, 0, 0, 0);
    floats("world", MPI_COMM_WORLD, COUNT, 0, 0);
    doubles(named);
    if (nranks > 1)
        message_before_sum(named);
    others(named);
    MPI_Comm_dup(named, &copy);
    MPI_Comm_set_name(copy, "gradients of a copy");
    floats("copy", copy, COUNT, 0, 0);
    MPI_Comm_free(&named);
    floats("copy_alone", copy, COUNT, 0, 1);
    MPI_Comm_free(&copy);
    if (nranks > 1)
        between_groups();
    mistakes();
    MPI_Finalize();
    return 0;
}
