/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Quantized sums as estimates: budgets are kept, more bits mean less error, and the mean of many calls is the exact sum.
 *
 * Invariant 3 of the design: a statistical test with a fixed seed.
 */
#include "support/cases.h"
#include "support/check_main.h"
#include "support/layers.h"
#include "support/samples.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static double nmse(const iq_layer_sums_t *all, const iq_layer_call_t *call)
{
    const iq_layer_t *layer = call->layer;
    double error = 0, energy = 0;
    for (size_t i = 0; i < layer->m * layer->n; i++) {
        double due = iq_layer_exact(all, 8, 8, i / layer->n, i % layer->n, false).value;
        double found = iq_numbers_get(layer->type, call->grad.data, i);
        error += (found - due) * (found - due);
        energy += due * due;
    }
    return error / energy;
}

/* More bits, less error; no call contributes more than its budget and a largest row. */
static void budget_body(iq_rank_t *rank)
{
    static const double limits[] = {0.8, 0.2, 0.05, 0.02, 0.005}; /* of bits 2, 3, 4, 5, 6 */
    iq_layer_t layer = {
        .m = 60, .n = 25, .max_batch = 24, .unsigned_x = true, .bias = true, .type = ISGQ_FLOAT32, .whole = 24 * rank->nranks};
    iq_layer_sums_t all = iq_layer_sums_new(&layer, rank->nranks);
    double before = 1e9;
    for (int bits = 2; bits <= 6; bits++) {
        char text[32];
        snprintf(text, sizeof(text), "isgq:bits=%d", bits);
        isgq_quantizer_t quantizer = iq_quantizer(rank, text);
        isgqx_call_record_t record = {.size = sizeof(record)};
        iq_layer_call_t call = iq_layer_call_new(&layer, rank->rank, rank->nranks);
        iq_layer_call_run(rank, &call, quantizer, "gather", false);
        RANK_OK(rank, isgqx_last_call(rank->comm, &record));
        double error = nmse(&all, &call), budget = bits * 24.0 * (60 + 25) / 8;
        RANK_CHECK(rank, error < limits[bits - 2] && error < before, "%s: nmse %g (before %g)", text, error, before);
        RANK_CHECK(rank, (double)record.own_bytes <= budget + 60 + 25 + 32, "%s: %d bytes where the budget is %g", text,
                   (int)record.own_bytes, budget);
        iq_rank_agree(rank, iq_layer_call_hash(&call), text);
        before = error;
        iq_layer_call_free(&call);
        isgq_quantizer_destroy(quantizer);
    }
    iq_layer_sums_free(&all);
}

START_TEST(budgets_are_kept)
{
    iq_ranks_t ranks = {.nranks = 1 + 2 * _i, .body = budget_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- factored, no bias ---- */

enum { BIAS_M = 6, BIAS_N = 5, BIAS_SUMS = BIAS_M * BIAS_N + BIAS_N };

/* A number that was measured in many calls: is its mean what it should be? */
typedef struct mean {
    double sum, squares;
} mean_t;

static void mean_add(mean_t *mean, double value)
{
    mean->sum += value;
    mean->squares += value * value;
}

static void mean_check(iq_rank_t *rank, const mean_t *mean, int calls, double due, const char *text, int element)
{
    double found = mean->sum / calls, sigma = sqrt(fmax(mean->squares / calls - found * found, 0) / calls);
    RANK_CHECK(rank, fabs(found - due) <= 6 * sigma + 1e-5, "%s: the mean of element %d is %g, not %g (sigma %g)", text, element,
               found, due, sigma);
}

/*
 * The mean of many calls tends to the exact gradient: its error falls as the number of calls, unless the quantizer is biased.
 * Number BIAS_SUMS is all elements at once: the error's projection on the exact result, where a small bias of each adds up.
 */
static void unbiased_body(iq_rank_t *rank)
{
    const char *text = rank->argument;
    const int calls = IQ_TEST_SANITIZED ? 200 : 1500;
    isgq_quantizer_t quantizer = iq_quantizer(rank, text);
    iq_layer_t layer = {.m = BIAS_M,
                        .n = BIAS_N,
                        .max_batch = 8,
                        .bias = true,
                        .unsigned_x = true,
                        .type = ISGQ_FLOAT32,
                        .whole = 8 * rank->nranks};
    double due[BIAS_SUMS];
    mean_t means[BIAS_SUMS + 1] = {{0, 0}};
    iq_layer_call_t call = iq_layer_call_new(&layer, rank->rank, rank->nranks);
    iq_layer_sums_t all = iq_layer_sums_new(&layer, rank->nranks);
    for (size_t i = 0; i < BIAS_SUMS; i++) {
        bool bias = i >= BIAS_M * BIAS_N;
        due[i] = iq_layer_exact(&all, 8, 8, bias ? 0 : i / BIAS_N, i % BIAS_N, bias).value;
    }
    for (int k = 0; k < calls; k++) {
        double along = 0;
        iq_layer_call_run(rank, &call, quantizer, NULL, false);
        for (size_t i = 0; i < BIAS_SUMS; i++) {
            bool bias = i >= BIAS_M * BIAS_N;
            double value = iq_numbers_get(ISGQ_FLOAT32, bias ? call.bias.data : call.grad.data, bias ? i - BIAS_M * BIAS_N : i);
            mean_add(&means[i], value);
            along += (value - due[i]) * due[i];
        }
        mean_add(&means[BIAS_SUMS], along);
    }
    for (int i = 0; i <= BIAS_SUMS; i++)
        mean_check(rank, &means[i], calls, i < BIAS_SUMS ? due[i] : 0.0, text, i);
    iq_layer_sums_free(&all);
    iq_layer_call_free(&call);
    isgq_quantizer_destroy(quantizer);
}

START_TEST(stochastic_factors_have_no_bias)
{
    static const char *const texts[] = {"factor:width=2/2", "isgq:bits=2", "factor:width=4/3"};
    iq_ranks_t ranks = {.nranks = 2, .body = unbiased_body, .argument = (void *)(uintptr_t)texts[_i]};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- dense, no bias ---- */

/*
 * The mean of many calls of the same input tends to the input's sum. One rounding to a grid of step s has variance at most s^2
 * / 4, so a mean of K calls of N ranks has a standard deviation of at most s / 2 * sqrt(N / K) (twice that with a second
 * rounding of N times the range); six of those are never seen with a fixed seed. The mean over all elements is held to its
 * own, much smaller bound.
 */
static void dense_body(iq_rank_t *rank)
{
    enum { COUNT = 256 };
    const char *text = rank->argument;
    const int calls = IQ_TEST_SANITIZED ? 200 : 2000;
    bool rounds_again = strstr(text, "sum=exact") == NULL;
    isgq_quantizer_t quantizer = iq_quantizer(rank, text);
    float in[COUNT], out[COUNT];
    double sums[COUNT] = {0}, total = 0, n = rank->nranks;
    for (int i = 0; i < COUNT; i++)
        in[i] = i == 0 ? 1.0f : 0.9f * iq_mix_unit(4, (uint64_t)rank->rank, (uint64_t)i);
    for (int call = 0; call < calls; call++) {
        RANK_OK(rank, isgq_allreduce(in, out, COUNT, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, NULL));
        RANK_OK(rank, isgq_comm_synchronize(rank->comm));
        for (int i = 0; i < COUNT; i++)
            sums[i] += (double)out[i];
    }
    double step = 2.0 / 2; /* 2 bits: -1, 0, 1 */
    double sigma = step / 2 * sqrt(n / calls) + (rounds_again ? n * step / 2 * sqrt(1.0 / calls) : 0);
    for (int i = 0; i < COUNT; i++) {
        double due = 0;
        for (int r = 0; r < rank->nranks; r++)
            due += i == 0 ? 1.0 : (double)(0.9f * iq_mix_unit(4, (uint64_t)r, (uint64_t)i));
        RANK_CHECK(rank, fabs(sums[i] / calls - due) <= 6 * sigma, "%s: the mean of element %d is %g, not %g within %g", text, i,
                   sums[i] / calls, due, 6 * sigma);
        total += sums[i] / calls - due;
    }
    RANK_CHECK(rank, fabs(total / COUNT) <= 6 * sigma / sqrt(COUNT), "%s: all elements together are off by %g", text,
               total / COUNT);
    isgq_quantizer_destroy(quantizer);
}

START_TEST(stochastic_rounding_has_no_bias)
{
    static const char *const texts[] = {"uniform:bits=2,scale=shared,sum=exact", "uniform:bits=2,scale=shared,sum=requantized",
                                        "uniform:bits=2,scale=local"};
    for (int i = 0; i < 3; i++) {
        iq_ranks_t ranks = {.nranks = 3, .body = dense_body, .argument = (void *)(uintptr_t)texts[i]};
        iq_ranks_run(&ranks, NULL);
    }
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("estimates");
    iq_add_case(suite, tcase_create("budget"), budgets_are_kept, 2);
    iq_add_case(suite, tcase_create("factored"), stochastic_factors_have_no_bias, 3);
    iq_add_case(suite, tcase_create("dense"), stochastic_rounding_has_no_bias, 1);
    return suite;
}
