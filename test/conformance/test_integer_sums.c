/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Quantizers whose codes all ranks add up as integers: the same bits on every rank and any route, errors within their grids, and
 * what they refuse.
 */
#include "support/cases.h"
#include "support/check_main.h"
#include "support/samples.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT 5003

static const struct {
    const char *text;
    int levels;    /* on either side of zero; 0: those of intsgd */
    bool clips;    /* no bound for what is beyond the scale */
    size_t bucket; /* of an L2 norm; 0: a maximum, at most 2 */
} quantizers[] = {{"global-qsgd", 127, false, 0},
                  {"global-qsgd:levels=1,bucket=256", 1, false, 0},
                  {"global-qsgd:levels=5,norm=l2,bucket=64", 5, false, 64},
                  {"global-qsgd:levels=127,norm=l2", 127, false, COUNT},
                  {"terngrad", 1, true, 0},
                  {"terngrad:clip=0,bucket=1000", 1, false, 0},
                  {"uniform:bits=3,rounding=stratified,sum=exact", 3, false, 0},
                  {"intsgd", 0, false, 0}};
enum { QUANTIZERS = sizeof(quantizers) / sizeof(quantizers[0]) };

/* ---- one answer ---- */

typedef struct route {
    const char *algorithm;
    size_t chunk_bytes;
} route_t;

static void answer_body(iq_rank_t *rank)
{
    const route_t *route = rank->argument;
    float *out = malloc(COUNT * sizeof(*out));
    for (int q = 0; q < QUANTIZERS; q++) {
        isgq_quantizer_t quantizer = iq_quantizer(rank, quantizers[q].text);
        iq_allreduce_samples(rank, quantizer, ISGQ_FLOAT32, q % 2 ? ISGQ_SUM : ISGQ_AVG, 5, COUNT, route->algorithm, out);
        rank->values[q] = isgqx_hash(out, COUNT * sizeof(*out));
        iq_rank_agree(rank, rank->values[q], quantizers[q].text);
        isgq_quantizer_destroy(quantizer);
    }
    free(out);
}

START_TEST(any_route_gives_the_same_bits)
{
    static route_t routes[] = {{"direct", 4096}, {"exchange", 4096}, {"ring", 4096}, {"board", 4096}, {NULL, 16384}};
    static iq_ranks_values_t values[5];
    for (int r = 0; r < 5; r++) {
        isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
        config.chunk_bytes = routes[r].chunk_bytes;
        iq_ranks_t ranks = {.nranks = iq_test_nranks(_i), .body = answer_body, .argument = &routes[r], .config = &config};
        iq_ranks_run(&ranks, &values[r]);
        for (int q = 0; q < QUANTIZERS; q++)
            ck_assert_msg(values[r].of[0][q] == values[0].of[0][q],
                          "%s by %s in chunks of %zu bytes gives other bits than direct", quantizers[q].text, routes[r].algorithm,
                          routes[r].chunk_bytes);
    }
}
END_TEST

/* ---- errors ---- */

/* The largest scale that a bucket may have. */
static double scale_of(const iq_rank_t *rank, isgq_data_type_t type, size_t bucket, size_t element)
{
    double squares = 0.0;
    for (size_t i = element / bucket * bucket; i < COUNT && i < (element / bucket + 1) * bucket; i++)
        for (int r = 0; r < rank->nranks; r++)
            squares += iq_sample(type, 7, r, i) * iq_sample(type, 7, r, i);
    return sqrt(squares);
}

static void check_errors(iq_rank_t *rank, int q, isgq_data_type_t type)
{
    isgq_quantizer_t quantizer = iq_quantizer(rank, quantizers[q].text);
    double *out = malloc(COUNT * sizeof(*out)), scale = quantizers[q].levels > 0 ? 2.0 : 4.0, error = 0.0, square = 0.0,
           n = rank->nranks;
    int levels = quantizers[q].levels > 0 ? quantizers[q].levels : 127 / rank->nranks;
    iq_allreduce_samples(rank, quantizer, type, ISGQ_SUM, 7, COUNT, NULL, out);
    for (size_t i = 0; i < COUNT; i++) {
        double due = iq_samples_sum(type, ISGQ_SUM, 7, rank->nranks, i), found = iq_numbers_get(type, out, i);
        if (quantizers[q].bucket != 0 && i % quantizers[q].bucket == 0)
            scale = scale_of(rank, type, quantizers[q].bucket, i);
        double allowed = n * scale / levels * 1.001 + 0x1p-7 * fabs(due);
        RANK_CHECK(rank, quantizers[q].clips || fabs(found - due) <= allowed, "%s: element %zu is %g, not %g within %g",
                   quantizers[q].text, i, found, due, allowed);
        error += found - due;
        square += (found - due) * (found - due);
    }
    RANK_CHECK(rank, fabs(error) < 5 * sqrt(square) + 1e-3 * n * COUNT / 127, "%s: a mean error of %g", quantizers[q].text,
               error / COUNT);
    free(out);
    isgq_quantizer_destroy(quantizer);
}

static void error_body(iq_rank_t *rank)
{
    static const isgq_data_type_t types[] = {ISGQ_FLOAT32, ISGQ_FLOAT16, ISGQ_BFLOAT16};
    for (int q = 0; q < QUANTIZERS; q++)
        check_errors(rank, q, types[q % 3]);
}

START_TEST(errors_stay_within_the_grid)
{
    iq_ranks_t ranks = {.nranks = iq_test_nranks(_i), .body = error_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- NaN and Inf ---- */

static void special_body(iq_rank_t *rank)
{
    float *values = malloc(COUNT * sizeof(*values));
    for (int q = 0; q < QUANTIZERS; q++) {
        isgq_quantizer_t quantizer = iq_quantizer(rank, quantizers[q].text);
        iq_samples_fill(ISGQ_FLOAT32, 3, rank->rank, 0, COUNT, values);
        if (rank->rank == q % rank->nranks)
            values[4321] = q % 2 ? INFINITY : NAN;
        RANK_OK(rank, isgq_allreduce(values, values, COUNT, ISGQ_FLOAT32, ISGQ_AVG, quantizer, rank->comm, NULL, NULL));
        RANK_OK(rank, isgq_comm_synchronize(rank->comm));
        RANK_CHECK(rank, isnan(values[4321]), "%s: element 4321 is %g", quantizers[q].text, (double)values[4321]);
        iq_rank_agree(rank, isgqx_hash(values, COUNT * sizeof(*values)), quantizers[q].text);
        isgq_quantizer_destroy(quantizer);
    }
    free(values);
}

START_TEST(nan_and_inf_show)
{
    iq_ranks_t ranks = {.nranks = 1 + 2 * _i, .body = special_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- the other collectives, and what is refused ---- */

/* Each rank's part has a scale of its own. */
static void gather_body(iq_rank_t *rank)
{
    enum { PART = 501 };
    size_t n = (size_t)rank->nranks;
    float in[PART], *out = malloc(n * PART * sizeof(*out));
    iq_samples_fill(ISGQ_FLOAT32, 6, rank->rank, 0, PART, in);
    for (int q = 0; q < QUANTIZERS; q++) {
        isgq_quantizer_t quantizer = iq_quantizer(rank, quantizers[q].text);
        double allowed = 2.0 / (quantizers[q].levels > 0 ? quantizers[q].levels : 127) * 1.001;
        RANK_OK(rank, isgq_allgather(in, out, PART, ISGQ_FLOAT32, quantizer, rank->comm, NULL, NULL));
        RANK_OK(rank, isgq_comm_synchronize(rank->comm));
        for (size_t i = 0; i < n * PART; i++)
            RANK_CHECK(rank, fabs((double)out[i] - iq_sample(ISGQ_FLOAT32, 6, (int)(i / PART), i % PART)) <= allowed,
                       "%s: element %zu is %g", quantizers[q].text, i, (double)out[i]);
        iq_rank_agree(rank, isgqx_hash(out, n * PART * sizeof(*out)), quantizers[q].text);
        isgq_quantizer_destroy(quantizer);
    }
    free(out);
}

START_TEST(allgathers_have_scales_of_their_own)
{
    iq_ranks_t ranks = {.nranks = iq_test_nranks(_i), .body = gather_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* Three bits hold the sum of three ranks' codes and no more. */
static void refusal_body(iq_rank_t *rank)
{
    isgq_quantizer_t narrow = iq_quantizer(rank, "intsgd:bits=3"), wide = iq_quantizer(rank, "intsgd:bits=4");
    float in[64] = {1.0f}, out[64 * 8];
    if (rank->nranks <= 3) {
        RANK_OK(rank, isgq_allreduce(in, out, 64, ISGQ_FLOAT32, ISGQ_SUM, narrow, rank->comm, NULL, NULL));
    } else {
        RANK_STATUS(rank, isgq_allreduce(in, out, 64, ISGQ_FLOAT32, ISGQ_SUM, narrow, rank->comm, NULL, NULL),
                    ISGQ_ERR_UNSUPPORTED);
        RANK_CHECK(rank,
                   strstr(isgq_get_last_error(), "intsgd:bits=3") != NULL && strstr(isgq_get_last_error(), "3 ranks") != NULL,
                   "it says '%s'", isgq_get_last_error());
        RANK_STATUS(rank, isgq_reduce_scatter(in, out, 8, ISGQ_FLOAT32, ISGQ_SUM, narrow, rank->comm, NULL, NULL),
                    ISGQ_ERR_UNSUPPORTED);
    }
    RANK_OK(rank, isgq_allgather(in, out, 64, ISGQ_FLOAT32, narrow, rank->comm, NULL, NULL));
    RANK_OK(rank, isgq_allreduce(in, out, 64, ISGQ_FLOAT32, ISGQ_SUM, wide, rank->comm, NULL, NULL));
    RANK_STATUS(rank, isgq_allreduce(in, out, 64, ISGQ_FLOAT32, ISGQ_MAX, wide, rank->comm, NULL, NULL), ISGQ_ERR_UNSUPPORTED);
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    isgq_quantizer_destroy(narrow);
    isgq_quantizer_destroy(wide);
}

START_TEST(too_many_ranks_are_refused)
{
    iq_ranks_t ranks = {.nranks = 3 + _i, .body = refusal_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("integer_sums");
    iq_add_case(suite, tcase_create("one_answer"), any_route_gives_the_same_bits, IQ_RANK_COUNTS);
    iq_add_case(suite, tcase_create("errors"), errors_stay_within_the_grid, IQ_RANK_COUNTS);
    iq_add_case(suite, tcase_create("nan"), nan_and_inf_show, 3);
    iq_add_case(suite, tcase_create("allgather"), allgathers_have_scales_of_their_own, IQ_RANK_COUNTS);
    iq_add_case(suite, tcase_create("refused"), too_many_ranks_are_refused, 2);
    return suite;
}
