/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a communicator says of its own accuracy: ISGQ_ACCURACY_EVERY and ISGQ_SHADOW, compared with the same figures computed here.
 *
 * Settings come from the environment, which a process reads once: ranks are processes.
 */
#include "support/cases.h"
#include "support/check_main.h"
#include "support/samples.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT 3200 /* whole buckets of 32, so no message parts one */
#define NRANKS 3

static void run(iq_rank_fn body, const char *const *environment, void *argument, int nranks)
{
    iq_ranks_t ranks = {.kind = IQ_RANKS_PROCESSES, .nranks = nranks, .body = body, .argument = argument, .environment = environment};
    iq_ranks_run(&ranks, NULL);
}

static isgq_stats_t stats_of(iq_rank_t *rank)
{
    isgq_stats_t stats = {.size = sizeof(stats)};
    RANK_OK(rank, isgq_comm_get_stats(rank->comm, &stats));
    return stats;
}

static void check_near(iq_rank_t *rank, double found, double due, const char *what)
{
    RANK_CHECK(rank, fabs(found - due) <= 1e-5 * fabs(due) + 1e-12, "%s is %.9g, not %.9g", what, found, due);
}

/* ---- own contributions ---- */

/* What one bit makes of a bucket of 32 values: the nearer of -most and +most (0 goes up; a bucket of zeros is zeros). */
static void round_to_ends(const float *values, float *rounded)
{
    float most = 0.0f;
    for (int i = 0; i < 32; i++)
        most = fmaxf(most, fabsf(values[i]));
    for (int i = 0; i < 32; i++)
        rounded[i] = values[i] >= 0.0f ? most : -most;
}

/* Two bits: -most, 0, most. */
static void round_to_three(const float *values, float *rounded)
{
    float most = 0.0f;
    for (int i = 0; i < 32; i++)
        most = fmaxf(most, fabsf(values[i]));
    for (int i = 0; i < 32; i++)
        rounded[i] = most == 0.0f ? 0.0f : most * floorf(values[i] / most + 0.5f);
}

typedef struct figures {
    double nmse, zeros, limits, residual;
} figures_t;

/* Of v = in + residual; the residual becomes v - C(v) if the call has a tensor. */
static figures_t measure(const float *in, float *residual, void (*round_bucket)(const float *values, float *rounded), bool feedback)
{
    figures_t figures = {0};
    double error = 0.0, square = 0.0, left = 0.0;
    for (size_t b = 0; b < COUNT; b += 32) {
        float values[32], rounded[32], most = 0.0f;
        for (size_t i = 0; i < 32; i++)
            values[i] = in[b + i] + residual[b + i];
        round_bucket(values, rounded);
        for (size_t i = 0; i < 32; i++)
            most = fmaxf(most, fabsf(rounded[i]));
        for (size_t i = 0; i < 32; i++) {
            double off = (double)(values[i] - rounded[i]);
            error += off * off;
            square += (double)values[i] * (double)values[i];
            figures.zeros += rounded[i] == 0.0f;
            figures.limits += most > 0.0f && fabsf(rounded[i]) == most;
            residual[b + i] = feedback ? values[i] - rounded[i] : 0.0f;
            left += (double)residual[b + i] * (double)residual[b + i];
        }
    }
    figures.nmse = error / square;
    figures.zeros /= COUNT;
    figures.limits /= COUNT;
    figures.residual = sqrt(left);
    return figures;
}

static void add_to_mean(figures_t *mean, const figures_t *one, int count)
{
    mean->nmse += (one->nmse - mean->nmse) / count;
    mean->zeros += (one->zeros - mean->zeros) / count;
    mean->limits += (one->limits - mean->limits) / count;
    mean->residual += (one->residual - mean->residual) / count;
}

static void check_figures(iq_rank_t *rank, const figures_t *last, const figures_t *mean)
{
    isgq_stats_t stats = stats_of(rank);
    check_near(rank, stats.nmse, last->nmse, "nmse");
    check_near(rank, stats.zeros, last->zeros, "the part of zeros");
    check_near(rank, stats.limits, last->limits, "the part at the limits");
    check_near(rank, stats.residual_norm, last->residual, "the residual's norm");
    check_near(rank, stats.mean_nmse, mean->nmse, "the mean nmse");
    check_near(rank, stats.mean_zeros, mean->zeros, "the mean part of zeros");
    check_near(rank, stats.mean_limits, mean->limits, "the mean part at the limits");
    check_near(rank, stats.mean_residual_norm, mean->residual, "the residual's mean norm");
}

/* Exchange rounds contributions and nothing else, so the residual is what was measured. */
static void own_body(iq_rank_t *rank)
{
    bool three = *(int *)rank->argument != 0, feedback = *(int *)rank->argument > 1;
    char text[96];
    isgq_tensor_t tensor = NULL;
    static float in[COUNT], out[COUNT], residual[COUNT];
    figures_t figures = {0}, last = {0}, mean = {0};
    snprintf(text, sizeof(text), "uniform:bits=%d,rounding=nearest,scale=local,bucket=32,feedback=full", three ? 2 : 1);
    isgq_quantizer_t quantizer = iq_quantizer(rank, text);
    RANK_OK(rank, isgq_tensor_create(&tensor, "w", COUNT));
    isgq_call_options_t options = {.size = sizeof(options), .algorithm = "exchange", .tensor = feedback ? tensor : NULL};
    int measured = 0;
    for (int k = 1; k <= 7; k++) { /* the second, fourth and sixth are measured */
        iq_samples_fill(ISGQ_FLOAT32, (uint64_t)k, rank->rank, 0, COUNT, in);
        RANK_OK(rank, isgq_allreduce(in, out, COUNT, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, &options));
        RANK_OK(rank, isgq_allreduce(in, out, COUNT, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL)); /* does not count */
        RANK_OK(rank, isgq_comm_synchronize(rank->comm));
        figures = measure(in, residual, three ? round_to_three : round_to_ends, feedback);
        if (k % 2 == 0) {
            last = figures;
            add_to_mean(&mean, &figures, ++measured);
        }
    }
    RANK_CHECK(rank, stats_of(rank).accuracy_calls == 3, "%llu calls were measured", (unsigned long long)stats_of(rank).accuracy_calls);
    check_figures(rank, &last, &mean);
    RANK_CHECK(rank, stats_of(rank).lost_errors == 0, "errors that are not finite");
    RANK_OK(rank, isgq_comm_reset_stats(rank->comm));
    RANK_CHECK(rank, stats_of(rank).nmse == 0.0 && stats_of(rank).accuracy_calls == 0, "a reset leaves something");
    isgq_quantizer_destroy(quantizer);
    isgq_tensor_destroy(tensor);
}

START_TEST(own_contributions)
{
    static const char *const environment[] = {"ISGQ_ACCURACY_EVERY=2", NULL};
    run(own_body, environment, &_i, NRANKS);
}
END_TEST

/* Nobody asked: nothing is measured. */
static void off_body(iq_rank_t *rank)
{
    float value = 0.3f, sum;
    isgq_quantizer_t quantizer = iq_quantizer(rank, "uniform:bits=2");
    for (int k = 0; k < 5; k++)
        RANK_OK(rank, isgq_allreduce(&value, &sum, 1, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, NULL));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    isgq_stats_t stats = stats_of(rank);
    RANK_CHECK(rank, stats.accuracy_calls == 0 && stats.shadow_calls == 0 && stats.shadow_bytes == 0 && stats.nmse == 0.0,
               "measured although nobody asked");
    isgq_quantizer_destroy(quantizer);
}

START_TEST(nobody_asked)
{
    run(off_body, NULL, NULL, 2);
}
END_TEST

/* ---- shadows ---- */

static const char *const shadowed[] = {"uniform:bits=3", "uniform:bits=2,scale=local,rounding=nearest", "onebit", "fp16"};
#define SHADOWED (int)(sizeof(shadowed) / sizeof(shadowed[0]))

/* The same figure from samples in double. */
static double nmse_of(isgq_data_type_t type, isgq_red_op_t op, uint64_t salt, int nranks, const void *result)
{
    double error = 0.0, square = 0.0;
    for (size_t i = 0; i < COUNT; i++) {
        double exact = iq_samples_sum(type, op, salt, nranks, i), off = iq_numbers_get(type, result, i) - exact;
        error += off * off;
        square += exact * exact;
    }
    return error / square;
}

static void agree_on_shadow(iq_rank_t *rank)
{
    isgq_stats_t stats = stats_of(rank);
    uint64_t last, mean;
    memcpy(&last, &stats.shadow_nmse, sizeof(last));
    memcpy(&mean, &stats.mean_shadow_nmse, sizeof(mean));
    iq_rank_agree(rank, last, "the shadow's nmse");
    iq_rank_agree(rank, mean, "the shadows' mean nmse");
}

static void shadow_body(iq_rank_t *rank)
{
    const char *text = shadowed[*(int *)rank->argument];
    isgq_quantizer_t quantizer = iq_quantizer(rank, text);
    static float in[COUNT], out[COUNT];
    uint64_t bytes[5] = {0};
    double last = 0.0, sum = 0.0;
    for (uint64_t k = 1; k <= 4; k++) { /* the second and the fourth, in place */
        isgq_data_type_t type = k > 2 ? ISGQ_BFLOAT16 : ISGQ_FLOAT32;
        isgq_red_op_t op = k > 2 ? ISGQ_AVG : ISGQ_SUM;
        void *to = k % 2 == 0 ? in : out;
        iq_samples_fill(type, k, rank->rank, 0, COUNT, in);
        RANK_OK(rank, isgq_allreduce(in, to, COUNT, type, op, quantizer, rank->comm, NULL, NULL));
        RANK_OK(rank, isgq_comm_synchronize(rank->comm));
        bytes[k] = stats_of(rank).wire_bytes;
        RANK_CHECK(rank, stats_of(rank).shadow_calls == k / 2, "call %d: %llu shadows", (int)k,
                   (unsigned long long)stats_of(rank).shadow_calls);
        if (k % 2 != 0)
            continue;
        last = nmse_of(type, op, k, rank->nranks, to);
        sum += last;
        double found = stats_of(rank).shadow_nmse; /* against the exact sum in f32 */
        RANK_CHECK(rank, fabs(found - last) <= 1e-4 * last + 1e-9 && last > 0.0, "%s: nmse is %g, not %g", text, found, last);
    }
    isgq_stats_t stats = stats_of(rank);
    RANK_CHECK(rank, fabs(stats.mean_shadow_nmse - sum / 2.0) <= 1e-4 * sum, "the mean is %g, not %g", stats.mean_shadow_nmse, sum / 2.0);
    RANK_CHECK(rank, bytes[2] == 2 * bytes[1] && bytes[4] - bytes[3] == bytes[3] - bytes[2], "a shadow is in wire_bytes");
    RANK_CHECK(rank, (stats.shadow_bytes > COUNT * 4) == (rank->nranks > 1), "%llu bytes of shadows",
               (unsigned long long)stats.shadow_bytes);
    agree_on_shadow(rank);
    isgq_quantizer_destroy(quantizer);
}

START_TEST(dense_shadows)
{
    static const char *const environment[] = {"ISGQ_SHADOW=2", NULL};
    run(shadow_body, environment, &_i, _i == 0 ? 1 : NRANKS);
}
END_TEST

/* A call that adds to its output gives the bits that it always gave. */
static void accumulate_body(iq_rank_t *rank)
{
    static const isgq_data_type_t types[] = {ISGQ_FLOAT32, ISGQ_FLOAT16, ISGQ_BFLOAT16};
    isgq_quantizer_t quantizer = iq_quantizer(rank, "uniform:bits=4,rounding=nearest");
    isgq_call_options_t options = {.size = sizeof(options), .accumulate = 1};
    for (int t = 0; t < 3; t++) {
        static float in[COUNT], plain[COUNT], added[COUNT], due[1];
        iq_samples_fill(types[t], 3, rank->rank, 0, COUNT, in);
        for (size_t i = 0; i < COUNT; i++)
            iq_numbers_set(types[t], added, i, (double)(i % 9) / 8.0);
        RANK_OK(rank, isgq_allreduce(in, plain, COUNT, types[t], ISGQ_SUM, quantizer, rank->comm, NULL, NULL));
        RANK_OK(rank, isgq_allreduce(in, added, COUNT, types[t], ISGQ_SUM, quantizer, rank->comm, NULL, &options));
        RANK_OK(rank, isgq_comm_synchronize(rank->comm));
        for (size_t i = 0; i < COUNT; i++) {
            float sum = (float)iq_numbers_get(types[t], plain, i) + (float)(i % 9) / 8.0f;
            iq_numbers_set(types[t], due, 0, (double)sum);
            RANK_CHECK(rank, iq_numbers_get(types[t], added, i) == iq_numbers_get(types[t], due, 0), "element %zu is %g, not %g", i,
                       iq_numbers_get(types[t], added, i), iq_numbers_get(types[t], due, 0));
        }
        double found = stats_of(rank).shadow_nmse, nmse = nmse_of(types[t], ISGQ_SUM, 3, rank->nranks, plain);
        RANK_CHECK(rank, fabs(found - nmse) <= 1e-4 * nmse, "nmse %g, not %g", found, nmse);
    }
    RANK_CHECK(rank, stats_of(rank).shadow_calls == 6, "%llu shadows", (unsigned long long)stats_of(rank).shadow_calls);
    agree_on_shadow(rank);
    isgq_quantizer_destroy(quantizer);
}

START_TEST(accumulated_shadows)
{
    static const char *const environment[] = {"ISGQ_SHADOW=1", NULL};
    run(accumulate_body, environment, NULL, NRANKS);
}
END_TEST

/* ---- factored calls ---- */

#define M 20
#define N 30
#define BATCH 4

static void factored_body(iq_rank_t *rank)
{
    static const char *const ways[] = {"gather", "reduce", "dense"};
    const char *way = ways[*(int *)rank->argument];
    isgq_quantizer_t quantizer = iq_quantizer(rank, "dense=uniform:bits=8;factored=factor:width=4");
    float x[BATCH * M], delta[BATCH * N], grad[M * N], bias[N];
    isgq_factors_t factors = {.size = sizeof(factors), .x = x, .delta = delta, .batch = BATCH, .m = M, .n = N, .bias = bias};
    isgq_call_options_t options = {.size = sizeof(options), .algorithm = way, .accumulate = 1};
    double exact[M * N] = {0}, error = 0.0, square = 0.0;
    for (int r = 0; r < rank->nranks; r++)
        for (int b = 0; b < BATCH; b++)
            for (int i = 0; i < M * N; i++)
                exact[i] += iq_sample(ISGQ_FLOAT32, 8, r, (size_t)(b * M + i / N)) * iq_sample(ISGQ_FLOAT32, 9, r, (size_t)(b * N + i % N));
    iq_samples_fill(ISGQ_FLOAT32, 8, rank->rank, 0, BATCH * M, x);
    iq_samples_fill(ISGQ_FLOAT32, 9, rank->rank, 0, BATCH * N, delta);
    memset(grad, 0, sizeof(grad));
    for (int i = 0; i < N; i++)
        bias[i] = 100.0f;
    RANK_OK(rank, isgq_allreduce_factored(&factors, BATCH, grad, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, &options));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    for (int i = 0; i < M * N; i++) {
        error += ((double)grad[i] - exact[i]) * ((double)grad[i] - exact[i]);
        square += exact[i] * exact[i];
    }
    isgq_stats_t stats = stats_of(rank);
    RANK_CHECK(rank, stats.shadow_calls == 1 && fabs(stats.shadow_nmse - error / square) <= 1e-4 * error / square,
               "%s: %llu shadows, nmse %g, not %g", way, (unsigned long long)stats.shadow_calls, stats.shadow_nmse, error / square);
    for (int i = 0; i < N; i++)
        RANK_CHECK(rank, fabs((double)bias[i] - 100.0) < 20.0 && bias[i] > 50.0f, "%s: the bias %g lost what was there", way, (double)bias[i]);
    uint64_t bytes = stats.wire_bytes;
    options.accumulate = 0;
    RANK_OK(rank, isgq_allreduce_factored(&factors, BATCH, grad, ISGQ_FLOAT32, ISGQ_AVG, quantizer, rank->comm, NULL, &options));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    RANK_CHECK(rank, stats_of(rank).shadow_calls == 2, "%s: no second shadow", way);
    RANK_CHECK(rank, stats_of(rank).shadow_bytes == 2 * stats.shadow_bytes && stats_of(rank).wire_bytes - bytes < 2 * bytes,
               "%s: a shadow is in wire_bytes", way);
    agree_on_shadow(rank);
    isgq_quantizer_destroy(quantizer);
}

START_TEST(factored_shadows)
{
    static const char *const environment[] = {"ISGQ_SHADOW=1", NULL};
    run(factored_body, environment, &_i, NRANKS);
}
END_TEST

/* ---- settings ---- */

/* Ranks must shadow the same calls. */
static void differ_body(iq_rank_t *rank)
{
    isgq_comm_t comm = NULL;
    setenv("ISGQ_SHADOW", rank->rank == 1 ? "5" : "7", 1); /* before the process's first call */
    isgq_result_t result = isgq_comm_init_rank(&comm, rank->nranks, iq_rank_id(rank), rank->rank, NULL);
    const char *text = isgq_get_last_error();
    RANK_CHECK(rank, result == ISGQ_ERR_MISMATCH && comm == NULL, "status %d, \"%s\"", (int)result, text);
    RANK_CHECK(rank, strstr(text, "ISGQ_SHADOW") != NULL && strstr(text, "5") != NULL && strstr(text, "7") != NULL, "\"%s\"", text);
}

START_TEST(different_shadows)
{
    iq_ranks_t ranks = {.kind = IQ_RANKS_PROCESSES, .nranks = 2, .body = differ_body, .apart = true};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* What is left of scratch does not hold an exact call: the call itself goes on. */
static void scarce_body(iq_rank_t *rank)
{
    size_t count = 600000;
    isgq_quantizer_t quantizer = iq_quantizer(rank, "uniform:bits=4");
    float *values = calloc(count, sizeof(*values));
    RANK_OK(rank, isgq_allreduce(values, values, count, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, NULL));
    RANK_OK(rank, isgq_allreduce(values, values, 1000, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, NULL));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    RANK_CHECK(rank, stats_of(rank).shadow_calls == 1, "%llu shadows, not one of two", (unsigned long long)stats_of(rank).shadow_calls);
    isgq_quantizer_destroy(quantizer);
    free(values);
}

START_TEST(scarce)
{
    static const char *const environment[] = {"ISGQ_SHADOW=1", "ISGQ_SCRATCH_BYTES=4m", NULL};
    run(scarce_body, environment, NULL, 2);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("accuracy");
    TCase *settings = iq_add_case(suite, tcase_create("settings"), different_shadows, 1);
    tcase_add_test(settings, scarce);
    TCase *own = iq_add_case(suite, tcase_create("own"), own_contributions, 3);
    tcase_add_test(own, nobody_asked);
    TCase *dense = iq_add_case(suite, tcase_create("shadows"), dense_shadows, SHADOWED);
    tcase_add_test(dense, accumulated_shadows);
    iq_add_case(suite, tcase_create("factored_shadows"), factored_shadows, 3);
    return suite;
}
