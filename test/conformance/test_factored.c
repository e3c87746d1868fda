/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Factored allreduce: one answer by gathering factors, by sharing their product and by reducing products, errors within the codes' steps, odd shapes,
 * batches that differ between ranks.
 *
 * Invariants 1, 2, 5 and 6 of the design for factors. References are sums of products in double.
 */
#include "support/cases.h"
#include "support/check_main.h"
#include "support/layers.h"
#include "support/samples.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double roundoff(isgq_data_type_t type) { return type == ISGQ_FLOAT32 ? 0x1p-24 : type == ISGQ_FLOAT16 ? 0x1p-11 : 0x1p-8; }

/* ---- one answer ---- */

static const iq_layer_t layers[] = {
    {.m = 1, .n = 1, .max_batch = 1, .bias = true, .type = ISGQ_FLOAT32},
    {.m = 3, .n = 5, .max_batch = 2, .unsigned_x = true, .type = ISGQ_FLOAT32, .op = ISGQ_AVG},
    {.m = 17, .n = 33, .max_batch = 5, .bias = true, .type = ISGQ_FLOAT32, .op = ISGQ_AVG},
    {.m = 129, .n = 31, .max_batch = 7, .bias = true, .unsigned_x = true, .type = ISGQ_FLOAT32},
    {.m = 64, .n = 10, .max_batch = 32, .type = ISGQ_FLOAT16, .op = ISGQ_AVG, .bias = true},
    {.m = 5, .n = 70, .max_batch = 9, .type = ISGQ_BFLOAT16, .unsigned_x = true},
    {.m = 7, .n = 3, .max_batch = 0, .bias = true, .type = ISGQ_FLOAT32},
    {.m = 0, .n = 4, .max_batch = 3, .bias = true, .type = ISGQ_FLOAT32},
    {.m = 4, .n = 0, .max_batch = 3, .type = ISGQ_FLOAT32},
    {.m = 300, .n = 40, .max_batch = 3, .bias = true, .type = ISGQ_FLOAT32},
};
#define LAYERS (sizeof(layers) / sizeof(layers[0]))

static const char *const factor_texts[] = {"factor:width=4/4", "factor:width=2/8", "factor:width=3,rounding=nearest",
                                           "isgq:bits=4", "isgq:bits=2.5", "factor:bits=3,rounding=dither,coding=range",
                                           "factor:width=5,coding=range", "isgq-mse:levels=2", "isgq-mvu:coding=range", "isgq-dithered:width=3/6"};
#define FACTOR_TEXTS 10

/* values[q * LAYERS + l]: the hash of layer l with quantizer q. */
static void answer_body(iq_rank_t *rank)
{
    const char *algorithm = rank->argument;
    for (size_t q = 0; q < FACTOR_TEXTS; q++) {
        isgq_quantizer_t quantizer = iq_quantizer(rank, factor_texts[q]);
        for (size_t l = 0; l < LAYERS; l++) {
            isgqx_call_record_t record = {.size = sizeof(record)};
            iq_layer_call_t call = iq_layer_call_new(&layers[l], rank->rank, rank->nranks);
            iq_layer_call_run(rank, &call, quantizer, algorithm, false);
            RANK_OK(rank, isgqx_last_call(rank->comm, &record));
            RANK_CHECK(rank, strcmp(record.algorithm, iq_lab_algorithm(algorithm, rank->nranks)) == 0, "ran %s instead of %s", record.algorithm,
                       algorithm);
            rank->values[q * LAYERS + l] = iq_layer_call_hash(&call);
            iq_rank_agree(rank, iq_layer_call_hash(&call), factor_texts[q]);
            iq_layer_call_free(&call);
        }
        isgq_quantizer_destroy(quantizer);
    }
}

START_TEST(all_ways_give_one_answer)
{
    static iq_ranks_values_t gather, reduce, share, owner;
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    config.chunk_bytes = 4096;
    iq_ranks_t ranks = {
        .nranks = iq_test_nranks(_i), .body = answer_body, .argument = (void *)(uintptr_t) "gather", .config = &config};
    iq_ranks_run(&ranks, &gather);
    ranks.argument = (void *)(uintptr_t) "reduce";
    iq_ranks_run(&ranks, &reduce);
    ranks.argument = (void *)(uintptr_t) "share";
    iq_ranks_run(&ranks, &share);
    ranks.argument = (void *)(uintptr_t) "owner";
    iq_ranks_run(&ranks, &owner);
    for (size_t i = 0; i < FACTOR_TEXTS * LAYERS; i++)
        ck_assert_msg(gather.of[0][i] == reduce.of[0][i] && gather.of[0][i] == share.of[0][i] &&
                          gather.of[0][i] == owner.of[0][i],
                      "%s, layer %d, %d ranks: gather, reduce, share and owner differ", factor_texts[i / LAYERS], (int)(i % LAYERS), ranks.nranks);
}
END_TEST

/* Two ranks on each of two hosts: what travels between hosts is what gathering sends, and the bits are the same. A host with one rank more
 * than another cannot share. */
static void hosts_body(iq_rank_t *rank)
{
    iq_layer_t layer = {.m = 30, .n = 40, .max_batch = 9, .bias = true, .type = ISGQ_FLOAT32};
    isgq_quantizer_t quantizer = iq_quantizer(rank, "factor:width=4,rounding=nearest"); /* no random numbers, which differ from call to call */
    isgq_stats_t stats = {.size = sizeof(stats)};
    uint64_t hash[2], sent[2];
    for (int way = 0; way < 2 && rank->nranks == 4; way++) {
        iq_layer_call_t call = iq_layer_call_new(&layer, rank->rank, rank->nranks);
        RANK_OK(rank, isgq_comm_reset_stats(rank->comm));
        iq_layer_call_run(rank, &call, quantizer, way == 0 ? "gather" : "share", false);
        RANK_OK(rank, isgq_comm_get_stats(rank->comm, &stats));
        hash[way] = iq_layer_call_hash(&call);
        sent[way] = stats.wire_bytes;
        RANK_CHECK(rank, (stats.shared_bytes > layer.m * layer.n * sizeof(float) / 2) == (way == 1), "%zu bytes shared",
                   (size_t)stats.shared_bytes);
        iq_layer_call_free(&call);
    }
    if (rank->nranks == 4)
        RANK_CHECK(rank, hash[0] == hash[1] && sent[0] == sent[1], "gather and share differ, %zu and %zu bytes sent", (size_t)sent[0],
                   (size_t)sent[1]);
    else {
        float values[30 * 40 + 9 * 70] = {0};
        isgq_factors_t factors = {.size = sizeof(factors), .x = values, .delta = values, .batch = 9, .m = 30, .n = 40};
        isgq_call_options_t share = {.size = sizeof(share), .algorithm = "share"};
        RANK_STATUS(rank, isgq_allreduce_factored(&factors, 9, values + 9 * 70, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, &share),
                    ISGQ_ERR_UNSUPPORTED);
    }
    isgq_quantizer_destroy(quantizer);
}

START_TEST(hosts_share)
{
    iq_ranks_t ranks = {.nranks = 4 - _i, .kind = IQ_RANKS_HOSTS, .hosts = 2, .body = hosts_body, .home = true};
    if (iq_ranks_have_network())
        iq_ranks_run(&ranks, NULL);
}
END_TEST

/* The same rows on other ranks, or on more of them: the same sum, bit for bit (nearest rounding: no random numbers). */
typedef struct deal {
    iq_layer_t layer;
    const char *algorithm;
    int shift;
} deal_t;

static void deal_body(iq_rank_t *rank)
{
    const deal_t *deal = rank->argument;
    isgq_quantizer_t quantizer = iq_quantizer(rank, "factor:width=4/5,rounding=nearest");
    iq_layer_call_t call = iq_layer_call_new(&deal->layer, (rank->rank + deal->shift) % rank->nranks, rank->nranks);
    iq_layer_call_run(rank, &call, quantizer, deal->algorithm, false);
    rank->values[0] = iq_layer_call_hash(&call);
    iq_layer_call_free(&call);
    isgq_quantizer_destroy(quantizer);
}

START_TEST(rows_may_live_anywhere)
{
    static const int nranks[] = {1, 2, 3, 4, 6, 9};
    static iq_ranks_values_t values;
    deal_t deal = {.layer = {.m = 37, .n = 21, .max_batch = 12, .bias = true, .type = ISGQ_FLOAT32, .whole = 12}};
    iq_ranks_t ranks = {.body = deal_body, .argument = &deal};
    uint64_t due = 0;
    for (int i = 0; i < 6; i++) {
        for (deal.shift = 0; deal.shift < 2; deal.shift++) {
            ranks.nranks = nranks[i];
            deal.algorithm = (const char *const[]){"reduce", "gather", "share", "owner"}[(i + deal.shift) % 4];
            iq_ranks_run(&ranks, &values);
            due = i + deal.shift == 0 ? values.of[0][0] : due;
            ck_assert_msg(values.of[0][0] == due, "12 rows on %d ranks, shifted by %d, %s: other bits", nranks[i], deal.shift,
                          deal.algorithm);
        }
    }
}
END_TEST

/* ---- errors ---- */

static void check_element(iq_rank_t *rank, const char *text, const iq_layer_t *layer, const void *values, size_t index,
                          iq_layer_exact_t exact)
{
    double found = iq_numbers_get(layer->type, values, index);
    double allowed =
        exact.allowed + 1.01 * roundoff(layer->type) * (fabs(exact.value) + exact.allowed) + 64 * 0x1p-24 * exact.size + 0x1p-24;
    RANK_CHECK(rank, fabs(found - exact.value) <= allowed, "%s: element %zu of %zu x %zu %s is %.9g, not %.9g within %.3g", text,
               index, layer->m, layer->n, iq_types[layer->type].name, found, exact.value, allowed);
}

static void check_errors(iq_rank_t *rank, const char *text, const iq_layer_call_t *call, unsigned width_x, unsigned width_delta)
{
    const iq_layer_t *layer = call->layer;
    iq_layer_sums_t all = iq_layer_sums_new(layer, rank->nranks);
    for (size_t i = 0; i < layer->m * layer->n; i++)
        check_element(rank, text, layer, call->grad.data, i,
                      iq_layer_exact(&all, width_x, width_delta, i / layer->n, i % layer->n, false));
    for (size_t j = 0; layer->bias && j < layer->n; j++)
        check_element(rank, text, layer, call->bias.data, j, iq_layer_exact(&all, width_x, width_delta, 0, j, true));
    iq_layer_sums_free(&all);
}

static void errors_body(iq_rank_t *rank)
{
    static const struct {
        const char *text, *algorithm;
        unsigned width_x, width_delta; /* 31: exact */
    } rows[] = {{"factor:width=4/4", NULL, 4, 4},
                {"factor:width=8/8", "gather", 8, 8},
                {"factor:width=2/3", "reduce", 2, 3},
                {"factor:width=6,rounding=nearest", NULL, 6, 6},
                {"none", NULL, 31, 31},
                {"none", "dense", 31, 31},
                {"dense=none;factored=factor:width=4/4", "dense", 31, 31}};
    for (size_t q = 0; q < sizeof(rows) / sizeof(rows[0]); q++) {
        isgq_quantizer_t quantizer = iq_quantizer(rank, rows[q].text);
        for (size_t l = 0; l < LAYERS; l++) {
            iq_layer_call_t call = iq_layer_call_new(&layers[l], rank->rank, rank->nranks);
            iq_layer_call_run(rank, &call, quantizer, rows[q].algorithm, false);
            if (rank->rank == rank->nranks - 1)
                check_errors(rank, rows[q].text, &call, rows[q].width_x, rows[q].width_delta);
            iq_rank_agree(rank, iq_layer_call_hash(&call), rows[q].text);
            iq_layer_call_free(&call);
        }
        isgq_quantizer_destroy(quantizer);
    }
}

START_TEST(errors_stay_within_the_steps)
{
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    config.chunk_bytes = 4096;
    iq_ranks_t ranks = {.nranks = iq_test_nranks(_i), .body = errors_body, .config = &config};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* Accumulation adds what a call without it would have written. */
static void accumulate_body(iq_rank_t *rank)
{
    static const char *const algorithms[] = {"gather", "reduce", "dense", "share", "owner"};
    isgq_quantizer_t quantizer = iq_quantizer(rank, "dense=none;factored=factor:width=4/4,rounding=nearest");
    for (int a = 0; a < 5; a++) {
        iq_layer_t layer = {.m = 19, .n = 11, .max_batch = 6, .bias = true, .type = a == 1 || a == 4 ? ISGQ_BFLOAT16 : ISGQ_FLOAT32};
        iq_layer_call_t plain = iq_layer_call_new(&layer, rank->rank, rank->nranks),
                        added = iq_layer_call_new(&layer, rank->rank, rank->nranks);
        iq_samples_fill(layer.type, 3, 0, 0, layer.m * layer.n, added.grad.data);
        iq_samples_fill(layer.type, 4, 0, 0, layer.n, added.bias.data);
        iq_layer_call_run(rank, &added, quantizer, algorithms[a], true);
        iq_layer_call_run(rank, &plain, quantizer, algorithms[a], false);
        void *due = malloc(layer.m * layer.n * 8);
        iq_samples_fill(layer.type, 3, 0, 0, layer.m * layer.n, due);
        iq_numbers_add(layer.type, plain.grad.data, layer.m * layer.n, due);
        RANK_CHECK(rank, memcmp(due, added.grad.data, added.grad.bytes) == 0, "%s: accumulated gradient", algorithms[a]);
        iq_samples_fill(layer.type, 4, 0, 0, layer.n, due);
        iq_numbers_add(layer.type, plain.bias.data, layer.n, due);
        RANK_CHECK(rank, memcmp(due, added.bias.data, added.bias.bytes) == 0, "%s: accumulated bias", algorithms[a]);
        free(due);
        iq_layer_call_free(&plain);
        iq_layer_call_free(&added);
    }
    isgq_quantizer_destroy(quantizer);
}

START_TEST(accumulation_adds)
{
    iq_ranks_t ranks = {.nranks = 1 + _i, .body = accumulate_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- NaN and Inf ---- */

static void special_body(iq_rank_t *rank)
{
    static const char *const texts[] = {"factor:width=4/4", "factor:width=4/4", "isgq:bits=3", "none",
                                        "dense=uniform:bits=4;factored=factor:width=4", "factor:width=4", "factor:width=4"};
    static const char *const algorithms[] = {"gather", "reduce", NULL, NULL, "dense", "share", "owner"};
    for (int q = 0; q < 7; q++) {
        isgq_quantizer_t quantizer = iq_quantizer(rank, texts[q]);
        for (int where = 0; where < 2; where++) {
            iq_layer_t layer = {.m = 13,
                                .n = 9,
                                .max_batch = 4,
                                .bias = true,
                                .type = where ? ISGQ_FLOAT16 : ISGQ_FLOAT32,
                                .whole = 4 * rank->nranks};
            iq_layer_call_t call = iq_layer_call_new(&layer, rank->rank, rank->nranks);
            if (rank->rank == (q + where) % rank->nranks) /* row 2: x[2][3], or delta[2][3] */
                iq_numbers_set(layer.type, where ? call.delta.data : call.x.data, 2 * (where ? layer.n : layer.m) + 3,
                               where ? (double)INFINITY : (double)NAN);
            iq_layer_call_run(rank, &call, quantizer, algorithms[q], false);
            size_t element = where ? 0 * layer.n + 3 : 3 * layer.n + 0;
            bool shows = !isfinite(iq_numbers_get(layer.type, call.grad.data, element));
            for (size_t i = 0; i < layer.m && where; i++) /* Inf times zero or not */
                shows |= !isfinite(iq_numbers_get(layer.type, call.grad.data, i * layer.n + 3));
            RANK_CHECK(rank, shows, "%s %s: it is lost", texts[q], where ? "Inf" : "NaN");
            RANK_CHECK(rank, !where || !isfinite(iq_numbers_get(layer.type, call.bias.data, 3)), "%s: Inf is lost in the bias",
                       texts[q]);
            iq_rank_agree(rank, iq_layer_call_hash(&call), texts[q]);
            iq_layer_call_free(&call);
        }
        isgq_quantizer_destroy(quantizer);
    }
}

START_TEST(nan_and_inf_show)
{
    iq_ranks_t ranks = {.nranks = 1 + _i, .body = special_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- refusals ---- */

static void refused_body(iq_rank_t *rank)
{
    isgq_quantizer_t quantizer = iq_quantizer(rank, "factor:width=4/4"), dense = iq_quantizer(rank, "uniform:bits=4");
    double x[12] = {0}, delta[12] = {0}, grad[9];
    isgq_call_options_t gather = {.size = sizeof(gather), .algorithm = "gather"};
    isgq_factors_t factors = {.size = sizeof(factors), .x = x, .delta = delta, .batch = 2, .m = 3, .n = 3};
    for (int type = 0; type < IQ_TYPE_COUNT; type++)
        if (type != ISGQ_FLOAT32 && type != ISGQ_FLOAT16 && type != ISGQ_BFLOAT16)
            RANK_STATUS(
                rank,
                isgq_allreduce_factored(&factors, 2, grad, (isgq_data_type_t)type, ISGQ_SUM, quantizer, rank->comm, NULL, NULL),
                ISGQ_ERR_UNSUPPORTED);
    for (int op = ISGQ_PROD; op <= ISGQ_MIN; op++)
        RANK_STATUS(
            rank, isgq_allreduce_factored(&factors, 2, grad, ISGQ_FLOAT32, (isgq_red_op_t)op, quantizer, rank->comm, NULL, NULL),
            ISGQ_ERR_UNSUPPORTED);
    RANK_STATUS(rank, isgq_allreduce_factored(&factors, 2, grad, ISGQ_FLOAT32, ISGQ_SUM, dense, rank->comm, NULL, &gather),
                ISGQ_ERR_UNSUPPORTED);
    RANK_STATUS(rank, isgq_allreduce_factored(&factors, 1, grad, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, NULL),
                ISGQ_ERR_INVALID_ARGUMENT);
    isgq_quantizer_destroy(quantizer);
    isgq_quantizer_destroy(dense);
}

START_TEST(what_makes_no_gradient_is_refused)
{
    iq_ranks_t ranks = {.nranks = 2, .body = refused_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("factored");
    iq_add_case(suite, tcase_create("one_answer"), all_ways_give_one_answer, IQ_RANK_COUNTS);
    iq_add_case(suite, tcase_create("hosts"), hosts_share, 2);
    iq_add_case(suite, tcase_create("any_deal"), rows_may_live_anywhere, 1);
    iq_add_case(suite, tcase_create("errors"), errors_stay_within_the_steps, IQ_RANK_COUNTS);
    iq_add_case(suite, tcase_create("accumulate"), accumulation_adds, 3);
    iq_add_case(suite, tcase_create("nan"), nan_and_inf_show, 3);
    iq_add_case(suite, tcase_create("refused"), what_makes_no_gradient_is_refused, 1);
    return suite;
}
