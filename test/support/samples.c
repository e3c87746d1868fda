/* SPDX-License-Identifier: Apache-2.0 */
/* Inputs for lossy calls: see samples.h. */
#include "support/samples.h"

#include "netlab/lab.h"

#include <math.h>
#include <stdlib.h>

double iq_sample(isgq_data_type_t type, uint64_t salt, int rank, size_t index)
{
    uint64_t bits = iq_mix(salt, (uint64_t)rank + 1000, index);
    double size = ldexp(1.0, (int)(iq_mix(salt, 77, index / 64) % 8) - 6), rounded[1];
    if (bits % 4 == 0)
        return 0.0;
    iq_numbers_set(type, rounded, 0, size * (double)iq_mix_unit(salt, (uint64_t)rank, index));
    return iq_numbers_get(type, rounded, 0);
}

void iq_samples_fill(isgq_data_type_t type, uint64_t salt, int rank, size_t first, size_t count, void *dst)
{
    for (size_t i = 0; i < count; i++)
        iq_numbers_set(type, dst, i, iq_sample(type, salt, rank, first + i));
}

double iq_samples_sum(isgq_data_type_t type, isgq_red_op_t op, uint64_t salt, int nranks, size_t index)
{
    double sum = 0.0;
    for (int r = 0; r < nranks; r++)
        sum += iq_sample(type, salt, r, index);
    return op == ISGQ_AVG ? sum / nranks : sum;
}

double iq_samples_max(isgq_data_type_t type, uint64_t salt, int nranks, size_t first, size_t count)
{
    double most = 0.0;
    for (int r = 0; r < nranks; r++)
        for (size_t i = 0; i < count; i++)
            most = fmax(most, fabs(iq_sample(type, salt, r, first + i)));
    return most;
}

isgq_quantizer_t iq_quantizer(iq_rank_t *rank, const char *text)
{
    isgq_quantizer_t quantizer = NULL;
    RANK_OK(rank, isgq_quantizer_create(&quantizer, text));
    return quantizer;
}

void iq_allreduce_samples(iq_rank_t *rank, isgq_quantizer_t quantizer, isgq_data_type_t type, isgq_red_op_t op, uint64_t salt,
                          size_t count, const char *algorithm, void *out)
{
    isgq_call_options_t options = {.size = sizeof(options), .algorithm = iq_lab_algorithm(algorithm, rank->nranks)};
    iq_buffer_t in = iq_buffer_new(count * iq_types[type].bytes, iq_types[type].bytes);
    iq_samples_fill(type, salt, rank->rank, 0, count, in.data);
    RANK_OK(rank, isgq_allreduce(in.data, out, count, type, op, quantizer, rank->comm, NULL, &options));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    iq_buffer_free(&in);
}
