/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Average one gradient over all ranks, exactly and with four bits a value: what is sent, and how far off the result is.
 */
#include <isgqcoll.h>

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define COUNT 1000000

/* Ends this rank. The library tells the others why, so they do not wait for it. */
static void check(isgq_result_t result)
{
    if (result == ISGQ_SUCCESS)
        return;
    fprintf(stderr, "%s: %s\n", isgq_get_error_string(result), isgq_get_last_error());
    exit(1);
}

/* Averages `gradient` into `average` and returns the bytes that this rank sent for it. */
static uint64_t average_over_ranks(const float *gradient, float *average, isgq_quantizer_t quantizer, isgq_comm_t comm)
{
    isgq_stats_t stats = {.size = sizeof(stats)};

    check(isgq_comm_reset_stats(comm));
    check(isgq_allreduce(gradient, average, COUNT, ISGQ_FLOAT32, ISGQ_AVG, quantizer, comm, NULL, NULL));
    check(isgq_comm_synchronize(comm)); /* the call above only queues: here it is done */
    check(isgq_comm_get_stats(comm, &stats));
    return stats.wire_bytes;
}

int main(void)
{
    isgq_comm_t comm;
    isgq_quantizer_t none, four_bits;
    float *gradient = malloc(COUNT * sizeof(float)), *exact = malloc(COUNT * sizeof(float)),
          *coded = malloc(COUNT * sizeof(float));
    int rank, nranks;

    if (gradient == NULL || exact == NULL || coded == NULL)
        return 1;
    check(isgq_comm_init_env(&comm, NULL)); /* mpirun, torchrun and srun say who we are */
    check(isgq_comm_user_rank(comm, &rank));
    check(isgq_comm_count(comm, &nranks));
    check(isgq_quantizer_create(&none, "none"));
    check(isgq_quantizer_create(&four_bits, "uniform:bits=4"));
    for (int i = 0; i < COUNT; i++)
        gradient[i] = sinf((float)i * 0.37f + (float)rank);

    uint64_t exact_bytes = average_over_ranks(gradient, exact, none, comm);
    uint64_t coded_bytes = average_over_ranks(gradient, coded, four_bits, comm);

    double error = 0.0, norm = 0.0;
    for (int i = 0; i < COUNT; i++) {
        error += pow((double)coded[i] - (double)exact[i], 2.0);
        norm += pow((double)exact[i], 2.0);
    }
    if (rank == 0)
        printf("%d ranks, %d values: %" PRIu64 " bytes sent exactly, %" PRIu64 " with four bits a value; relative error %.3f\n",
               nranks, COUNT, exact_bytes, coded_bytes, sqrt(error / norm));

    isgq_quantizer_destroy(none);
    isgq_quantizer_destroy(four_bits);
    check(isgq_comm_finalize(comm));
    check(isgq_comm_destroy(comm));
    free(gradient), free(exact), free(coded);
    return 0;
}
