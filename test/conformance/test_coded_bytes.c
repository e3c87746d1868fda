/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What entropy-coded sums cost in real calls: the agreement and frames are within the budget without a large part of it, and no
 * rank sends much more than another where the size of values changes along the tensor.
 */
#include "support/cases.h"
#include "support/check_main.h"
#include "support/ranks.h"
#include "support/samples.h"

#include <math.h>
#include <stdlib.h>

enum { COUNT = 416000, RANKS = 8 };

/* Nearly normally distributed, of variance 1: four numbers of 16 bits. */
static float value_of(uint64_t rank, uint64_t element)
{
    uint64_t z = (rank * COUNT + element + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    double sum = (double)(z & 0xffff) + (double)(z >> 16 & 0xffff) + (double)(z >> 32 & 0xffff) + (double)(z >> 48);
    return (float)((sum - 131070.0) / 37837.2);
}

/* How much larger values are: eight times from the first to the last, or all alike. */
static float size_of(const iq_rank_t *rank, size_t element)
{
    return rank->argument == NULL ? 1.0f : exp2f(3.0f * (float)element / COUNT);
}

/* values[0]: bytes sent; values[1]: error in 1/10000 of the sum's energy. */
static void sum_body(iq_rank_t *rank)
{
    float *in = malloc(COUNT * sizeof(float)), *out = malloc(COUNT * sizeof(float));
    double error = 0.0, energy = 0.0;
    isgqx_call_record_t record = {.size = sizeof(record)};
    isgq_quantizer_t quantizer = iq_quantizer(rank, "isgq:bits=2,coding=zstd");
    for (size_t i = 0; i < COUNT; i++)
        in[i] = size_of(rank, i) * value_of((uint64_t)rank->rank, i);
    RANK_OK(rank, isgq_allreduce(in, out, COUNT, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, NULL));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    RANK_OK(rank, isgqx_last_call(rank->comm, &record));
    for (size_t i = 0; i < COUNT && rank->rank == 0; i++) {
        double due = 0.0;
        for (uint64_t r = 0; r < RANKS; r++)
            due += (double)(size_of(rank, i) * value_of(r, i));
        error += (out[i] - due) * (out[i] - due);
        energy += due * due;
    }
    rank->values[0] = record.wire_bytes;
    rank->values[1] = rank->rank == 0 ? (uint64_t)(1e4 * error / energy) : 0;
    isgq_quantizer_destroy(quantizer);
    free(in);
    free(out);
}

static bool have_coder(void)
{
    isgq_quantizer_t quantizer;
    if (isgq_quantizer_create(&quantizer, "isgq:bits=2,coding=zstd") != ISGQ_SUCCESS)
        return false;
    isgq_quantizer_destroy(quantizer);
    return true;
}

/* With an agreement in one round, which sends seven times what is shared, the error was a third larger. */
START_TEST(budgets_count_everything)
{
    iq_ranks_t ranks = {.nranks = RANKS, .body = sum_body, .argument = _i == 0 ? NULL : (void *)(uintptr_t)1};
    iq_ranks_values_t values;
    double most = 0.0, sum = 0.0, budget = 2.0 * (RANKS - 1) / RANKS * COUNT * 2.0 / 8;
    if (!have_coder())
        return;
    iq_ranks_run(&ranks, &values);
    for (int r = 0; r < RANKS; r++) {
        most = fmax(most, (double)values.of[r][0]);
        sum += (double)values.of[r][0];
    }
    ck_assert_double_eq_tol(sum / RANKS / budget, 1.0, 0.04);
    ck_assert_double_lt(most / (sum / RANKS), 1.03);
    ck_assert_uint_le(values.of[0][1], _i == 0 ? 3200 : 2000);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("coded_bytes");
    iq_add_case(suite, tcase_create("budget"), budgets_count_everything, 2);
    return suite;
}
