/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PowerSGD through the public header: what comes out is what an implementation of its own in double, over all ranks and from call to
 * call, makes of the same gradients and the same directions.
 *
 * The first call's directions are random. What they became is the end of the tensor's saved state, and from there on the second
 * implementation goes its own way. It keeps residuals as PyTorch does (v - mean result), the library as the paper does (v - what
 * was sent of it); the results are the same.
 */
#include "support/cases.h"
#include "support/check_main.h"
#include "support/low_rank_twin.h"
#include "support/samples.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = LOW_RANK_ROWS, COLUMNS = LOW_RANK_COLUMNS, COUNT = LOW_RANK_COUNT, CALLS = 4 };

#define BAD ISGQ_ERR_INVALID_ARGUMENT

/* ---- calls ---- */

typedef struct how {
    const char *quantizer, *algorithm;
    isgq_data_type_t type;
    isgq_red_op_t op;
    int vectors;
    bool in_place, accumulates, keeps;
} how_t;

static isgq_tensor_t matrix(iq_rank_t *rank, const char *name)
{
    isgq_tensor_t tensor = NULL;
    RANK_OK(rank, isgq_tensor_create(&tensor, name, COUNT));
    RANK_OK(rank, isgq_tensor_shape(tensor, ROWS, COLUMNS));
    return tensor;
}

/* One allreduce of `in`; the result as f32. What an output is added to is ones. */
static void call_once(iq_rank_t *rank, const how_t *how, isgq_tensor_t tensor, void *in, float *out)
{
    isgq_call_options_t options = {
        .size = sizeof(options), .tensor = tensor, .algorithm = how->algorithm, .accumulate = how->accumulates};
    isgq_quantizer_t quantizer = iq_quantizer(rank, how->quantizer);
    void *to = how->in_place ? in : malloc(COUNT * sizeof(float));
    for (size_t i = 0; i < COUNT && how->accumulates; i++)
        iq_numbers_set(how->type, to, i, 1.0);
    RANK_OK(rank, isgq_allreduce(in, to, COUNT, how->type, how->op, quantizer, rank->comm, NULL, &options));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    for (size_t i = 0; i < COUNT; i++)
        out[i] = (float)iq_numbers_get(how->type, to, i) - (how->accumulates ? 1.0f : 0.0f);
    if (!how->in_place)
        free(to);
    isgq_quantizer_destroy(quantizer);
}

static unsigned char *state_of(iq_rank_t *rank, isgq_tensor_t tensor, size_t *bytes)
{
    RANK_OK(rank, isgq_tensor_save(tensor, NULL, bytes));
    unsigned char *state = malloc(*bytes);
    RANK_OK(rank, isgq_tensor_save(tensor, state, bytes));
    return state;
}

static void take_directions(iq_rank_t *rank, isgq_tensor_t tensor, low_rank_twin_t *twin)
{
    size_t bytes, numbers = (size_t)twin->vectors * COLUMNS;
    unsigned char *state = state_of(rank, tensor, &bytes);
    float *q = malloc(numbers * sizeof(float));
    memcpy(q, state + bytes - numbers * sizeof(float), numbers * sizeof(float));
    for (size_t i = 0; i < numbers; i++)
        twin->q[i / COLUMNS][i % COLUMNS] = (double)q[i];
    free(q);
    free(state);
}

static void twin_body(iq_rank_t *rank)
{
    const how_t *how = rank->argument;
    double bound = how->type == ISGQ_FLOAT32 ? (how->accumulates ? 1e-4 : 2e-5) : how->type == ISGQ_FLOAT16 ? 1e-3 : 8e-3;
    isgq_tensor_t tensor = matrix(rank, "w");
    low_rank_twin_t *twin = rank->rank == 0 ? calloc(1, sizeof(*twin)) : NULL;
    unsigned char *in = malloc(4 * COUNT);
    float *out = malloc(COUNT * sizeof(float));
    for (uint64_t k = 0; k < CALLS; k++) {
        for (int r = 0; r < rank->nranks && twin != NULL; r++) {
            iq_samples_fill(how->type, k, r, 0, COUNT, in);
            for (size_t e = 0; e < COUNT; e++)
                twin->residuals[r][e] += iq_numbers_get(how->type, in, e);
        }
        iq_samples_fill(how->type, k, rank->rank, 0, COUNT, in);
        call_once(rank, how, tensor, in, out);
        uint64_t hash = isgqx_hash(out, COUNT * sizeof(float));
        iq_rank_agree(rank, hash, "the result");
        if (twin == NULL)
            continue;
        twin->nranks = rank->nranks;
        twin->vectors = how->vectors;
        if (k == 0) {
            take_directions(rank, tensor, twin);
            low_rank_twin_first(twin, how->op, how->keeps, out);
        } else {
            low_rank_twin_call(twin, how->keeps);
        }
        double off = low_rank_twin_differs(twin, how->op, out);
        RANK_CHECK(rank, off < bound, "%s, %d ranks, call %d: off by %g of the largest value", how->quantizer, rank->nranks, (int)k, off);
    }
    isgq_tensor_destroy(tensor);
    free(twin);
    free(in);
    free(out);
}

static const how_t ways[] = {
    {.quantizer = "powersgd:rank=1", .type = ISGQ_FLOAT32, .op = ISGQ_SUM, .vectors = 1, .keeps = true},
    {.quantizer = "powersgd:rank=6", .algorithm = "ring", .type = ISGQ_FLOAT32, .op = ISGQ_AVG, .vectors = 6, .in_place = true, .keeps = true},
    {.quantizer = "powersgd:rank=3", .algorithm = "direct", .type = ISGQ_FLOAT16, .op = ISGQ_AVG, .vectors = 3, .keeps = true},
    {.quantizer = "powersgd:rank=2", .algorithm = "exchange", .type = ISGQ_BFLOAT16, .op = ISGQ_AVG, .vectors = 2, .in_place = true, .keeps = true},
    {.quantizer = "powersgd:rank=5", .type = ISGQ_FLOAT32, .op = ISGQ_SUM, .vectors = 5, .accumulates = true, .keeps = true},
    {.quantizer = "powersgd:rank=4,feedback=off", .type = ISGQ_FLOAT32, .op = ISGQ_SUM, .vectors = 4, .in_place = true},
    {.quantizer = "powersgd:rank=4,feedback=off", .type = ISGQ_BFLOAT16, .op = ISGQ_SUM, .vectors = 4},
};
#define WAYS (int)(sizeof(ways) / sizeof(ways[0]))

START_TEST(follows_its_twin)
{
    for (int nranks = 1; nranks <= LOW_RANK_RANKS; nranks += 2) {
        iq_ranks_t ranks = {.kind = nranks == 3 ? IQ_RANKS_PROCESSES : IQ_RANKS_THREADS,
                            .nranks = nranks,
                            .body = twin_body,
                            .argument = (void *)(uintptr_t)&ways[_i]};
        iq_ranks_run(&ranks, NULL);
    }
}
END_TEST

/* ---- nothing is lost, little is sent ---- */

/* Fine codes flush what the residuals hold. */
static void kept_body(iq_rank_t *rank)
{
    const how_t power = {.quantizer = "powersgd:rank=2", .algorithm = "ring", .type = ISGQ_FLOAT32, .op = ISGQ_AVG};
    const how_t fine = {.quantizer = "uniform:bits=8,rounding=nearest,scale=local,bucket=32,feedback=full", .type = ISGQ_FLOAT32, .op = ISGQ_AVG};
    isgq_tensor_t tensor = matrix(rank, "w");
    float *in = malloc(COUNT * sizeof(float)), *out = malloc(COUNT * sizeof(float));
    double *lost = calloc(COUNT, sizeof(double)), worst = 0.0, before = 0.0;
    isgq_stats_t stats = {.size = sizeof(stats)};
    for (int k = 0; k < 12; k++) {
        iq_samples_fill(ISGQ_FLOAT32, (uint64_t)k, rank->rank, 0, COUNT, in);
        if (k >= 8)
            memset(in, 0, COUNT * sizeof(float));
        call_once(rank, k < 8 ? &power : &fine, tensor, in, out);
        for (size_t e = 0; e < COUNT; e++)
            lost[e] += (k < 8 ? iq_samples_sum(ISGQ_FLOAT32, ISGQ_AVG, (uint64_t)k, rank->nranks, e) : 0.0) - (double)out[e];
        worst = 0.0;
        for (size_t e = 0; e < COUNT; e++)
            worst = fmax(worst, fabs(lost[e]));
        before = k == 7 ? worst : before;
        if (k == 7)
            RANK_OK(rank, isgq_comm_get_stats(rank->comm, &stats));
    }
    RANK_CHECK(rank, before > 0.1 && worst < 1e-5 * before, "%g are lost, %g before the flush", worst, before);
    double bytes = 8.0 * 2.0 * (ROWS + COLUMNS) * sizeof(float) * 2.0 * (rank->nranks - 1) / rank->nranks;
    RANK_CHECK(rank, (double)stats.wire_bytes < 1.01 * bytes + 8.0 * 16.0 * 32.0, "%llu bytes for 8 calls, %g are due",
               (unsigned long long)stats.wire_bytes, bytes);
    RANK_CHECK(rank, stats.fallback_calls == 0, "calls were sent as they are");
    free(in);
    free(out);
    free(lost);
    isgq_tensor_destroy(tensor);
}

START_TEST(nothing_is_lost)
{
    iq_ranks_t ranks = {.nranks = 3, .body = kept_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* The library's own figures of a first call, which is added to something, are those that follow from its result. */
static void measured_body(iq_rank_t *rank)
{
    const how_t how = {.quantizer = "powersgd:rank=2", .type = ISGQ_FLOAT32, .op = ISGQ_AVG, .accumulates = true};
    isgq_tensor_t tensor = matrix(rank, "w");
    float *in = malloc(COUNT * sizeof(float)), *out = malloc(COUNT * sizeof(float));
    double error = 0.0, square = 0.0, own = 0.0;
    isgq_stats_t stats = {.size = sizeof(stats)};
    iq_samples_fill(ISGQ_FLOAT32, 1, rank->rank, 0, COUNT, in);
    call_once(rank, &how, tensor, in, out);
    RANK_OK(rank, isgq_comm_get_stats(rank->comm, &stats));
    for (size_t e = 0; e < COUNT; e++) {
        double due = iq_samples_sum(ISGQ_FLOAT32, ISGQ_AVG, 1, rank->nranks, e);
        error += ((double)out[e] - due) * ((double)out[e] - due);
        square += due * due;
        own += (double)in[e] * (double)in[e];
    }
    RANK_CHECK(rank, stats.shadow_calls == 1 && fabs(stats.shadow_nmse - error / square) < 1e-5, "nmse %g, shadow %g", error / square,
               stats.shadow_nmse);
    RANK_CHECK(rank, stats.accuracy_calls == 1 && stats.nmse > 0.5 && stats.nmse < 1.0, "own nmse %g", stats.nmse);
    RANK_CHECK(rank, fabs(stats.residual_norm - sqrt(stats.nmse * own)) < 1e-5 * sqrt(own), "residual %g", stats.residual_norm);
    RANK_CHECK(rank, stats.lost_errors == 0 && stats.zeros < 0.5, "%g zeros", stats.zeros);
    isgq_tensor_destroy(tensor);
    free(in);
    free(out);
}

START_TEST(figures_are_right)
{
    static const char *const environment[] = {"ISGQ_SHADOW=1", "ISGQ_ACCURACY_EVERY=1", NULL};
    iq_ranks_t ranks = {.kind = IQ_RANKS_PROCESSES, .nranks = 3, .body = measured_body, .environment = environment};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* A sum of rank 3 comes back from the first call on, ranks' own gradients are of any. Random directions may see little of it. */
static void exact_body(iq_rank_t *rank)
{
    const how_t how = {.quantizer = "powersgd:rank=4", .type = ISGQ_FLOAT32, .op = ISGQ_SUM};
    isgq_tensor_t tensor = matrix(rank, "w");
    float *in = malloc(COUNT * sizeof(float)), *out = malloc(COUNT * sizeof(float));
    for (uint64_t call = 0; call < 3; call++) {
        double worst = 0.0;
        for (size_t e = 0; e < COUNT; e++) { /* noise that the two ranks have with opposite signs */
            double due = 0.0;
            for (uint64_t k = 0; k < 3; k++)
                due += (double)iq_mix_unit(1, k, e / COLUMNS) * (double)iq_mix_unit(10, k, e % COLUMNS);
            in[e] = (float)(due / 2.0) + (rank->rank == 0 ? 1.0f : -1.0f) * 0.01f * iq_mix_unit(call + 20, 0, e);
        }
        call_once(rank, &how, tensor, in, out);
        for (size_t e = 0; e < COUNT; e++) {
            double due = 0.0;
            for (uint64_t k = 0; k < 3; k++)
                due += (double)iq_mix_unit(1, k, e / COLUMNS) * (double)iq_mix_unit(10, k, e % COLUMNS);
            worst = fmax(worst, fabs((double)out[e] - due));
        }
        RANK_CHECK(rank, worst < (call == 0 ? 1e-4 : 1e-5), "call %d is off by %g", (int)call, worst);
    }
    free(in);
    free(out);
    isgq_tensor_destroy(tensor);
}

START_TEST(low_rank_is_exact)
{
    iq_ranks_t ranks = {.nranks = 2, .body = exact_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- what is remembered ---- */

static void fill(iq_rank_t *rank, uint64_t salt, float *in) { iq_samples_fill(ISGQ_FLOAT32, salt, rank->rank, 0, COUNT, in); }

/* Saved in the middle and loaded into a tensor without a shape: the same bits as without. And the same calls again: the same bits. */
static void restart_body(iq_rank_t *rank)
{
    const how_t how = {.quantizer = "powersgd:rank=3", .type = ISGQ_FLOAT32, .op = ISGQ_SUM};
    isgq_tensor_t tensor = matrix(rank, "w"), loaded = NULL, other = NULL;
    float *in = malloc(COUNT * sizeof(float)), *out = malloc(COUNT * sizeof(float)), *again = malloc(COUNT * sizeof(float));
    size_t bytes;
    RANK_OK(rank, isgq_tensor_create(&loaded, "w", COUNT));
    RANK_OK(rank, isgq_tensor_create(&other, "w", COUNT));
    RANK_OK(rank, isgq_tensor_shape(other, COLUMNS, ROWS));
    for (uint64_t k = 0; k < 2; k++) {
        fill(rank, k, in);
        call_once(rank, &how, tensor, in, out);
    }
    unsigned char *state = state_of(rank, tensor, &bytes);
    RANK_CHECK(rank, bytes > (COUNT + 3 * COLUMNS) * sizeof(float), "a state of %zu bytes", bytes);
    RANK_STATUS(rank, isgq_tensor_load(other, state, bytes), BAD);
    state[bytes - 5] ^= 1;
    RANK_STATUS(rank, isgq_tensor_load(loaded, state, bytes), ISGQ_ERR_CORRUPT);
    state[bytes - 5] ^= 1;
    RANK_STATUS(rank, isgq_tensor_load(loaded, state, bytes - 4), ISGQ_ERR_CORRUPT);
    RANK_OK(rank, isgq_tensor_load(loaded, state, bytes));
    for (uint64_t k = 2; k < 5; k++) {
        fill(rank, k, in);
        call_once(rank, &how, tensor, in, out);
        call_once(rank, &how, loaded, in, again);
        RANK_CHECK(rank, memcmp(out, again, COUNT * sizeof(float)) == 0, "call %d has other bits after a restart", (int)k);
    }
    RANK_OK(rank, isgq_tensor_reset(tensor)); /* nothing is left but the shape */
    RANK_OK(rank, isgq_tensor_save(tensor, NULL, &bytes));
    RANK_CHECK(rank, bytes < COUNT * sizeof(float) + 1000, "%zu bytes after a reset", bytes);
    call_once(rank, &how, tensor, in, out);
    RANK_CHECK(rank, memcmp(out, again, COUNT * sizeof(float)) != 0, "a reset changes nothing");
    isgq_tensor_destroy(tensor);
    isgq_tensor_destroy(loaded);
    isgq_tensor_destroy(other);
    free(state);
    free(in);
    free(out);
    free(again);
}

START_TEST(restarts)
{
    iq_ranks_t ranks = {.nranks = 2, .body = restart_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* Calls of changing ranks on one tensor; each is waited for, or none. */
static void queued_body(iq_rank_t *rank)
{
    static const char *const texts[] = {"powersgd:rank=2", "powersgd:rank=5", "powersgd:rank=5", "powersgd:rank=1"};
    bool waits = *(bool *)rank->argument;
    isgq_tensor_t tensor = matrix(rank, "w");
    float(*in)[COUNT] = malloc(4 * sizeof(*in)), (*out)[COUNT] = malloc(4 * sizeof(*out));
    isgq_call_options_t options = {.size = sizeof(options), .tensor = tensor};
    for (int k = 0; k < 4; k++) {
        isgq_quantizer_t quantizer = iq_quantizer(rank, texts[k]);
        fill(rank, (uint64_t)k, in[k]);
        RANK_OK(rank, isgq_allreduce(in[k], out[k], COUNT, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, &options));
        if (waits)
            RANK_OK(rank, isgq_comm_synchronize(rank->comm));
        isgq_quantizer_destroy(quantizer);
    }
    isgq_tensor_destroy(tensor); /* held by what is under way */
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    for (int k = 0; k < 4; k++)
        rank->values[k] = isgqx_hash(out[k], sizeof(out[k]));
    free(in);
    free(out);
}

START_TEST(queued)
{
    iq_ranks_values_t values[2];
    for (int waits = 0; waits < 2; waits++) {
        bool argument = waits;
        iq_ranks_t ranks = {.nranks = 3, .body = queued_body, .argument = &argument};
        iq_ranks_run(&ranks, &values[waits]);
    }
    for (int k = 0; k < 4; k++)
        for (int r = 0; r < 3; r++)
            ck_assert_msg(values[0].of[r][k] == values[1].of[0][k], "call %d of rank %d has other bits when nobody waits", k, r);
}
END_TEST

/* Zeros, then NaN and Inf on one rank: on all ranks they show, and later calls are as if of a new tensor. */
static void odd_body(iq_rank_t *rank)
{
    const how_t how = {.quantizer = rank->argument, .type = ISGQ_FLOAT32, .op = ISGQ_SUM};
    static const double odd[] = {NAN, INFINITY};
    isgq_tensor_t tensor = matrix(rank, "w");
    float *in = calloc(COUNT, sizeof(float)), *out = malloc(COUNT * sizeof(float));
    call_once(rank, &how, tensor, in, out);
    for (size_t e = 0; e < COUNT; e++)
        RANK_CHECK(rank, out[e] == 0.0f, "of zeros came %g", (double)out[e]);
    for (int k = 0; k < 2; k++) {
        fill(rank, 1, in);
        call_once(rank, &how, tensor, in, out);
        fill(rank, 2, in);
        if (rank->rank == 1)
            in[20000] = (float)odd[k];
        call_once(rank, &how, tensor, in, out);
        for (size_t e = 0; e < COUNT; e++)
            RANK_CHECK(rank, !isfinite(out[e]), "element %zu is %g", e, (double)out[e]);
        fill(rank, 3, in);
        call_once(rank, &how, tensor, in, out);
        double square = 0.0;
        for (size_t e = 0; e < COUNT; e++)
            square += (double)out[e] * (double)out[e];
        RANK_CHECK(rank, isfinite(square) && square > 0.0, "a call later it is %g", square);
    }
    isgq_tensor_destroy(tensor);
    free(in);
    free(out);
}

START_TEST(odd_values)
{
    static const char *const texts[] = {"powersgd:rank=3", "powersgd:rank=6,feedback=off"};
    iq_ranks_t ranks = {.nranks = 3, .body = odd_body, .argument = (void *)(uintptr_t)texts[_i]};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- what it does not take ---- */

static void says(iq_rank_t *rank, const char *word)
{
    RANK_CHECK(rank, strstr(isgq_get_last_error(), word) != NULL, "\"%s\" lacks '%s'", isgq_get_last_error(), word);
}

static void refused_body(iq_rank_t *rank)
{
    isgq_quantizer_t power = iq_quantizer(rank, "powersgd:rank=2"), both = iq_quantizer(rank, "dense=powersgd:rank=2;factored=factor");
    isgq_tensor_t tensor = NULL, plain = NULL;
    float in[64], out[64], x[8] = {1.0f}, grad[64];
    double wide[64] = {0};
    isgq_stats_t stats = {.size = sizeof(stats)};
    isgq_factors_t factors = {.size = sizeof(factors), .x = x, .delta = x, .batch = 1, .m = 8, .n = 8};
    RANK_OK(rank, isgq_tensor_create(&tensor, "w", 64));
    RANK_OK(rank, isgq_tensor_create(&plain, "b", 64));
    RANK_OK(rank, isgq_tensor_shape(tensor, 8, 8));
    isgq_call_options_t options = {.size = sizeof(options), .tensor = tensor}, shapeless = {.size = sizeof(options), .tensor = plain};
    for (int i = 0; i < 64; i++)
        in[i] = (float)(i * i % 13);
    RANK_STATUS(rank, isgq_allreduce(in, out, 64, ISGQ_FLOAT32, ISGQ_SUM, power, rank->comm, NULL, NULL), BAD);
    says(rank, "options->tensor");
    RANK_STATUS(rank, isgq_allreduce(in, out, 64, ISGQ_FLOAT32, ISGQ_MAX, power, rank->comm, NULL, &options), ISGQ_ERR_UNSUPPORTED);
    RANK_STATUS(rank, isgq_allreduce(in, out, 63, ISGQ_FLOAT32, ISGQ_SUM, power, rank->comm, NULL, &options), BAD);
    RANK_STATUS(rank, isgq_reduce_scatter(in, out, 16, ISGQ_FLOAT32, ISGQ_SUM, power, rank->comm, NULL, &options), ISGQ_ERR_UNSUPPORTED);
    says(rank, "allreduce alone");
    RANK_STATUS(rank, isgq_allgather(in, out, 16, ISGQ_FLOAT32, power, rank->comm, NULL, &options), ISGQ_ERR_UNSUPPORTED);
    RANK_STATUS(rank, isgq_allreduce_factored(&factors, 1, grad, ISGQ_FLOAT32, ISGQ_SUM, power, rank->comm, NULL, &options), ISGQ_ERR_UNSUPPORTED);
    RANK_OK(rank, isgq_allreduce_factored(&factors, 1, grad, ISGQ_FLOAT32, ISGQ_SUM, both, rank->comm, NULL, NULL));
    RANK_OK(rank, isgq_allreduce(wide, wide, 64, ISGQ_FLOAT64, ISGQ_SUM, power, rank->comm, NULL, NULL)); /* never quantized */
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    RANK_OK(rank, isgq_comm_reset_stats(rank->comm));
    RANK_OK(rank, isgq_allreduce(in, out, 64, ISGQ_FLOAT32, ISGQ_SUM, power, rank->comm, NULL, &shapeless));
    RANK_OK(rank, isgq_tensor_shape(plain, 64, 1));
    RANK_OK(rank, isgq_allreduce(in, grad, 64, ISGQ_FLOAT32, ISGQ_SUM, power, rank->comm, NULL, &shapeless));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    RANK_OK(rank, isgq_comm_get_stats(rank->comm, &stats));
    RANK_CHECK(rank, stats.fallback_calls == 2, "%llu calls were sent as they are", (unsigned long long)stats.fallback_calls);
    for (int i = 0; i < 64; i++)
        RANK_CHECK(rank, out[i] == 2.0f * in[i] && grad[i] == out[i], "element %d is %g and %g", i, (double)out[i], (double)grad[i]);
    isgq_quantizer_destroy(power);
    isgq_quantizer_destroy(both);
    isgq_tensor_destroy(tensor);
    isgq_tensor_destroy(plain);
}

/* Ranks whose tensors differ in shape, or in their past. */
static void mismatch_body(iq_rank_t *rank)
{
    bool shapes = *(int *)rank->argument == 0;
    const how_t how = {.quantizer = "powersgd:rank=2", .type = ISGQ_FLOAT32, .op = ISGQ_SUM};
    isgq_quantizer_t power = iq_quantizer(rank, how.quantizer);
    isgq_tensor_t tensor = matrix(rank, "w");
    isgq_call_options_t options = {.size = sizeof(options), .tensor = tensor};
    float *in = calloc(COUNT, sizeof(float)), *out = malloc(COUNT * sizeof(float));
    call_once(rank, &how, tensor, in, out);
    if (rank->rank == 1 && shapes)
        RANK_OK(rank, isgq_tensor_shape(tensor, COLUMNS, ROWS));
    else if (rank->rank == 1)
        RANK_OK(rank, isgq_tensor_reset(tensor));
    isgq_result_t result = isgq_allreduce(in, out, COUNT, ISGQ_FLOAT32, ISGQ_SUM, power, rank->comm, NULL, &options);
    if (result == ISGQ_SUCCESS)
        result = isgq_comm_synchronize(rank->comm);
    RANK_CHECK(rank, result == ISGQ_ERR_MISMATCH && strstr(isgq_get_last_error(), shapes ? "470 x 61" : "history") != NULL,
               "status %d, \"%s\"", (int)result, isgq_get_last_error());
    free(in);
    free(out);
    isgq_tensor_destroy(tensor);
    isgq_quantizer_destroy(power);
}

START_TEST(refused)
{
    iq_ranks_t ranks = {.nranks = 2, .body = refused_body};
    iq_ranks_run(&ranks, NULL);
    for (int i = 0; i < 2; i++) {
        iq_ranks_t differing = {.nranks = 2, .body = mismatch_body, .argument = &i, .broken = true};
        iq_ranks_run(&differing, NULL);
    }
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("low_rank");
    iq_add_case(suite, tcase_create("twin"), follows_its_twin, WAYS);
    iq_add_case(suite, tcase_create("figures"), figures_are_right, 1);
    TCase *kept = iq_add_case(suite, tcase_create("sums"), nothing_is_lost, 1);
    tcase_add_test(kept, low_rank_is_exact);
    TCase *memory = iq_add_case(suite, tcase_create("memory"), restarts, 1);
    tcase_add_test(memory, queued);
    iq_add_case(suite, tcase_create("odd"), odd_values, 2);
    iq_add_case(suite, tcase_create("refused"), refused, 1);
    return suite;
}
