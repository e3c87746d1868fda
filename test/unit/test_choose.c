/* SPDX-License-Identifier: Apache-2.0 */
/* The choice of algorithms: what auto takes, what a forced name does, and that a size never decides between different bits. */
#include "base/status.h"
#include "base/util.h"
#include "plan/plan.h"
#include "support/check_main.h"

#include <string.h>

static char why[96];

/* A lossless f32 collective. */
static iq_choice_request_t plain(iq_collective_t collective, int nranks, size_t count)
{
    return (iq_choice_request_t){.collective = collective,
                                 .nranks = nranks,
                                 .nhosts = 1,
                                 .count = count,
                                 .element_bytes = 4,
                                 .partial_bits = 32,
                                 .result_bits = 32,
                                 .partial_sums_exact = true,
                                 .lossless = true,
                                 .result_exact = true};
}

static const char *chosen(iq_choice_request_t request)
{
    const iq_algorithm_t *algorithm = NULL;
    memset(why, 0, sizeof(why));
    ck_assert_int_eq(iq_choose(&request, &algorithm, why, sizeof(why)), ISGQ_SUCCESS);
    ck_assert_int_eq(algorithm->collective, request.collective);
    ck_assert_uint_gt(strlen(why), 0);
    return algorithm->name;
}

static isgq_result_t forced(iq_choice_request_t request, const char *name)
{
    const iq_algorithm_t *algorithm = NULL;
    request.forced = name;
    isgq_result_t result = iq_choose(&request, &algorithm, why, sizeof(why));
    ck_assert(result != ISGQ_SUCCESS || strcmp(algorithm->name, name) == 0);
    return result;
}

START_TEST(auto_by_size)
{
    ck_assert_str_eq(chosen(plain(IQ_ALLREDUCE, 4, 2)), "exchange");
    ck_assert_str_eq(why, "4 ranks, 8 B: one round");
    ck_assert_str_eq(chosen(plain(IQ_ALLREDUCE, 2, 8192)), "exchange");
    ck_assert_str_eq(chosen(plain(IQ_ALLREDUCE, 2, 8193)), "direct");
    ck_assert_str_eq(chosen(plain(IQ_ALLREDUCE, 8, (size_t)16 << 20)), "direct");
    ck_assert_str_eq(why, "8 ranks, 64 MiB: fewest bytes in two rounds");
    ck_assert_str_eq(chosen(plain(IQ_ALLREDUCE, 17, 1)), "direct");
    ck_assert_str_eq(chosen(plain(IQ_REDUCE_SCATTER, 4, 4000)), "direct");
    ck_assert_str_eq(chosen(plain(IQ_ALLGATHER, 16, (size_t)16 << 20)), "direct");
    ck_assert_str_eq(chosen(plain(IQ_ALLGATHER, 32, (size_t)16 << 20)), "ring");
    ck_assert_str_eq(chosen(plain(IQ_ALLGATHER, 32, 32)), "direct");
    ck_assert_str_eq(chosen(plain(IQ_BROADCAST, 4, 100)), "direct");
    ck_assert_str_eq(chosen(plain(IQ_BROADCAST, 4, (size_t)1 << 20)), "chain");
    ck_assert_str_eq(chosen(plain(IQ_BROADCAST, 2, (size_t)1 << 20)), "direct");
    ck_assert_str_eq(chosen(plain(IQ_BARRIER, 9, 0)), "dissemination");
    for (int collective = 0; collective < IQ_COLLECTIVE_COUNT; collective++)
        chosen(plain((iq_collective_t)collective, 1, 5));
    ck_assert_str_eq(chosen(plain(IQ_ALLREDUCE, 1, 5)), "direct");
    ck_assert_str_eq(why, "1 rank, 20 B: nobody to talk to");
}
END_TEST

/* Bits do not depend on size: ways that round differently are chosen by rank count and codec alone. */
START_TEST(size_never_decides_bits)
{
    for (int nranks = 2; nranks <= 64; nranks *= 2)
        for (size_t count = 1; count < (size_t)1 << 30; count *= 8) {
            iq_choice_request_t rounded = plain(IQ_ALLREDUCE, nranks, count), floats = rounded, integers = rounded;
            rounded.partial_bits = rounded.result_bits = 4.25;
            rounded.lossless = rounded.result_exact = false;
            ck_assert_str_eq(chosen(rounded), "direct");
            rounded.partial_bits = rounded.result_bits = 32; /* codes as long as elements: bf16 values sent as fp16 */
            ck_assert_str_eq(chosen(rounded), "direct");
            ck_assert_str_ne(chosen(floats), "ring"); /* another order of additions */
            integers.any_order = true;
            ck_assert(strcmp(chosen(integers), "ring") != 0 || nranks > 16);
            floats.collective = IQ_REDUCE_SCATTER;
            ck_assert_str_eq(chosen(floats), "direct");
        }
    iq_choice_request_t integers = plain(IQ_ALLREDUCE, 32, (size_t)16 << 20);
    integers.any_order = true;
    ck_assert_str_eq(chosen(integers), "ring");
    integers.collective = IQ_REDUCE_SCATTER;
    ck_assert_str_eq(chosen(integers), "ring");
    integers.lossless = false;
    integers.partial_bits = 4; /* widening partial sums cost more than direct's */
    ck_assert_str_eq(chosen(integers), "direct");
}
END_TEST

/* Elements that travel as they are need not be declared exact. */
START_TEST(lossless_is_exact)
{
    iq_choice_request_t request = plain(IQ_ALLREDUCE, 4, 2);
    request.result_exact = false;
    ck_assert_str_eq(chosen(request), "exchange");
    request.lossless = false;
    ck_assert_str_eq(chosen(request), "direct");
    request.result_exact = true;
    ck_assert_str_eq(chosen(request), "exchange");
}
END_TEST

/* Of what counts every byte a message each way is dear, but not as dear as a contribution to everybody. */
START_TEST(bytes_come_before_rounds)
{
    iq_choice_request_t request = plain(IQ_ALLREDUCE, 8, 1000);
    request.lossless = false;
    request.result_exact = request.spares = true;
    request.partial_bits = request.result_bits = 2;
    ck_assert_str_eq(chosen(request), "direct");
    request.count = 300;
    ck_assert_str_eq(chosen(request), "exchange");
    request.boards = true;
    request.count = 4096;
    ck_assert_str_eq(chosen(request), "board");
    request.boards = request.spares = false;
    ck_assert_str_eq(chosen(request), "exchange");
}
END_TEST

START_TEST(forced_names)
{
    iq_choice_request_t request = plain(IQ_ALLREDUCE, 4, 1000000);
    ck_assert_int_eq(forced(request, "ring"), ISGQ_SUCCESS);
    ck_assert_str_eq(why, "ring was asked for");
    ck_assert_int_eq(forced(request, "exchange"), ISGQ_SUCCESS);
    ck_assert_int_eq(forced(request, "fastest"), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_str_eq(iq_last_error(), "algorithm \"fastest\": allreduce has auto, direct, ring, exchange, board, levels");
    ck_assert_int_eq(forced(request, "chain"), ISGQ_ERR_UNSUPPORTED); /* of another collective */
    ck_assert_int_eq(forced(request, "gather"), ISGQ_ERR_UNSUPPORTED);
    ck_assert_int_eq(forced(plain(IQ_BARRIER, 4, 0), "ring"), ISGQ_ERR_UNSUPPORTED);
    ck_assert_int_eq(forced(plain(IQ_COLLECTIVE_COUNT, 4, 0), "ring"), ISGQ_ERR_INVALID_ARGUMENT);
    request.forced = "auto";
    ck_assert_str_eq(chosen(request), "direct");
}
END_TEST

/* The size never decides: both small and large tensors, and the same bits as direct. What would be rounded once more stays away. */
START_TEST(boards)
{
    iq_choice_request_t request = plain(IQ_ALLREDUCE, 4, 1);
    ck_assert_int_eq(forced(request, "board"), ISGQ_ERR_UNSUPPORTED);
    request.boards = true;
    ck_assert_int_eq(forced(request, "board"), ISGQ_SUCCESS);
    ck_assert_str_eq(chosen(request), "board");
    request.count = 100000000;
    ck_assert_str_eq(chosen(request), "board");
    request.partial_bits = request.result_bits = 4;
    request.lossless = request.result_exact = false;
    ck_assert_str_eq(chosen(request), "direct");
    request = plain(IQ_ALLREDUCE, 9, 100000000);
    request.boards = true;
    ck_assert_str_eq(chosen(request), "direct");
}
END_TEST

START_TEST(ring_that_would_round)
{
    iq_choice_request_t request = plain(IQ_ALLREDUCE, 3, 1000);
    request.partial_sums_exact = false;
    ck_assert_int_eq(forced(request, "ring"), ISGQ_ERR_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(iq_last_error(), "round again at every hop"));
    request.collective = IQ_REDUCE_SCATTER;
    ck_assert_int_eq(forced(request, "ring"), ISGQ_ERR_UNSUPPORTED);
    request.collective = IQ_ALLGATHER; /* no sums there */
    ck_assert_int_eq(forced(request, "ring"), ISGQ_SUCCESS);
    request.collective = IQ_ALLREDUCE;
    request.nranks = 2; /* nor are sums passed on between two */
    ck_assert_int_eq(forced(request, "ring"), ISGQ_SUCCESS);
}
END_TEST

/* ---- factored ---- */

/* The first layer of the paper's network: 784 x 1000, 32 rows, 4 bits. */
static iq_factored_choice_request_t first_layer(int nranks)
{
    return (iq_factored_choice_request_t){.nranks = nranks,
                                          .m = 784,
                                          .n = 1000,
                                          .max_batch = 32,
                                          .blob_bytes = 29000,
                                          .sum_element_bytes = 4,
                                          .dense_bits = 4,
                                          .scratch_needed_gather = 1000,
                                          .scratch_needed_reduce = 500,
                                          .scratch_limit = 2000,
                                          .may_gather = true};
}

static iq_factored_way_t way_of(iq_factored_choice_request_t request)
{
    iq_factored_way_t way = IQ_FACTORED_WAY_COUNT;
    memset(why, 0, sizeof(why));
    ck_assert_int_eq(iq_choose_factored(&request, &way, why, sizeof(why)), ISGQ_SUCCESS);
    return way;
}

START_TEST(fewest_bytes)
{
    iq_factored_choice_request_t request = first_layer(4);
    ck_assert_int_eq(way_of(request), IQ_FACTORED_GATHER);
    ck_assert_str_eq(why, "factors 85 KiB, integers 4.5 MiB, dense 574 KiB");
    request = first_layer(64); /* factors grow with N, sums do not */
    ck_assert_int_eq(way_of(request), IQ_FACTORED_DENSE);
    request.dense_bits = 64;
    request.blob_bytes *= 10;
    ck_assert_int_eq(way_of(request), IQ_FACTORED_REDUCE);
    request = first_layer(1); /* nothing to send: a tie */
    ck_assert_int_eq(way_of(request), IQ_FACTORED_GATHER);
    request = first_layer(2);
    request.blob_bytes = 784 * 1000 / 2; /* as many bytes as dense */
    ck_assert_int_eq(way_of(request), IQ_FACTORED_GATHER);
    request.blob_bytes++;
    ck_assert_int_eq(way_of(request), IQ_FACTORED_DENSE);
}
END_TEST

START_TEST(limits)
{
    iq_factored_choice_request_t request = first_layer(4);
    request.dense_bits = 64;
    request.scratch_limit = 999;
    ck_assert_int_eq(way_of(request), IQ_FACTORED_REDUCE);
    ck_assert_ptr_nonnull(strstr(why, "factors 85 KiB (scratch)"));
    request.scratch_limit = 499;
    ck_assert_int_eq(way_of(request), IQ_FACTORED_DENSE);
    request.may_gather = false;
    request.scratch_limit = 2000;
    ck_assert_int_eq(way_of(request), IQ_FACTORED_DENSE);
    ck_assert_str_eq(why, "dense 9.0 MiB");
    iq_factored_way_t way;
    char little[8]; /* a short text is cut, never overrun */
    ck_assert_int_eq(iq_choose_factored(&request, &way, little, sizeof(little)), ISGQ_SUCCESS);
    ck_assert_str_eq(little, "dense 9");
}
END_TEST

/* Sharing is gathering with copies inside a host instead of work: it pays where there is work, and ranks to divide it. */
START_TEST(sharing)
{
    iq_factored_choice_request_t request = first_layer(4);
    request.max_batch = 32;
    request.decode_ns = 1e6;
    request.ranks_per_host = 1;
    ck_assert_int_eq(way_of(request), IQ_FACTORED_GATHER);
    request.ranks_per_host = 2;
    ck_assert_int_eq(way_of(request), IQ_FACTORED_SHARE);
    ck_assert_str_eq(why, "factors 85 KiB, integers 4.5 MiB, dense 574 KiB");
    request.scratch_needed_share = request.scratch_limit + 1;
    ck_assert_int_eq(way_of(request), IQ_FACTORED_GATHER);
    request.scratch_needed_share = 0;
    request.dense_bits = 0.01; /* not where gathering is not best */
    ck_assert_int_eq(way_of(request), IQ_FACTORED_DENSE);
    request = first_layer(4);
    request.ranks_per_host = 4;
    request.max_batch = 1; /* copies of the gradient take longer than its product */
    ck_assert_int_eq(way_of(request), IQ_FACTORED_GATHER);
    request.m = request.n = 2; /* the ranks' meetings take longer than anything else */
    request.blob_bytes = 1;
    request.max_batch = 32;
    ck_assert_int_eq(way_of(request), IQ_FACTORED_GATHER);
}
END_TEST

/* With a machine time decides, and the text says so: bytes where links are slow, work where they are fast. */
START_TEST(measured_machine)
{
    iq_cost_machine_t machine = {.nlevels = 1, .levels = {{4, 1e-6, 1e6}}, .copy_rate = 1e10, .sum_rate = 1e10, .encode_rate = 1e9,
                                 .decode_rate = 1e9, .product_rate = 1e10, .factor_rate = 25e6};
    iq_factored_choice_request_t request = first_layer(4);
    request.machine = &machine;
    request.dense_seconds = 0.5;
    ck_assert_int_eq(way_of(request), IQ_FACTORED_GATHER);
    ck_assert_str_eq(why, "gather 97 ms, reduce 4.71e+03 ms, dense 503 ms");
    machine.levels[0].rate = 1e12; /* 100 million multiplications against a quarter of them */
    ck_assert_int_eq(way_of(request), IQ_FACTORED_REDUCE);
    request.dense_seconds = 1e-6;
    ck_assert_int_eq(way_of(request), IQ_FACTORED_DENSE);
    request.dense_seconds = 0.5;
    request.ranks_per_host = 4; /* who shares multiplies a quarter too, and moves 4 bytes an element once, not 8 twice */
    request.sum_element_bytes = 8;
    ck_assert_int_eq(way_of(request), IQ_FACTORED_SHARE);
    machine.levels[0].latency = 1e-2; /* unless ranks meet slowly */
    ck_assert_int_eq(way_of(request), IQ_FACTORED_GATHER);
    request.may_gather = false;
    ck_assert_int_eq(way_of(request), IQ_FACTORED_DENSE);
}
END_TEST

/* The owners' bytes count like any other's; the same bits as gather, so a tie stays with the simpler way. */
START_TEST(owners)
{
    iq_factored_choice_request_t request = first_layer(4);
    size_t gathered = 3 * request.blob_bytes;
    request.may_own = true;
    request.owner_bytes = (double)gathered;
    ck_assert_int_eq(way_of(request), IQ_FACTORED_GATHER);
    request.owner_bytes -= 1024;
    ck_assert_int_eq(way_of(request), IQ_FACTORED_OWNER);
    ck_assert_str_eq(why, "factors 85 KiB, integers 4.5 MiB, dense 574 KiB, owners 84 KiB");
    request.scratch_needed_owner = request.scratch_limit + 1;
    ck_assert_int_eq(way_of(request), IQ_FACTORED_GATHER);
    request.scratch_needed_owner = 0;
    request.may_own = false;
    ck_assert_int_eq(way_of(request), IQ_FACTORED_GATHER);
    request.forced = "owner";
    iq_factored_way_t way;
    ck_assert_int_eq(iq_choose_factored(&request, &way, why, sizeof(why)), ISGQ_ERR_UNSUPPORTED);
    request.may_own = true;
    ck_assert_int_eq(way_of(request), IQ_FACTORED_OWNER);
}
END_TEST

static isgq_result_t force_way(iq_factored_choice_request_t request, const char *name)
{
    iq_factored_way_t way = IQ_FACTORED_WAY_COUNT;
    request.forced = name;
    isgq_result_t result = iq_choose_factored(&request, &way, why, sizeof(why));
    ck_assert(result == ISGQ_SUCCESS ? strcmp(iq_factored_ways[way].name, name) == 0 : way == IQ_FACTORED_WAY_COUNT);
    return result;
}

START_TEST(forced_ways)
{
    iq_factored_choice_request_t request = first_layer(4);
    ck_assert_int_eq(force_way(request, "gather"), ISGQ_SUCCESS);
    ck_assert_int_eq(force_way(request, "reduce"), ISGQ_SUCCESS);
    ck_assert_int_eq(force_way(request, "dense"), ISGQ_SUCCESS);
    ck_assert_int_eq(force_way(request, "fastest"), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_str_eq(iq_last_error(), "algorithm \"fastest\": factored calls have auto, gather, share, owner, reduce, dense");
    ck_assert_int_eq(force_way(request, "ring"), ISGQ_ERR_UNSUPPORTED); /* of other collectives */
    request.scratch_limit = 999;
    ck_assert_int_eq(force_way(request, "gather"), ISGQ_ERR_UNSUPPORTED);
    request.scratch_limit = 2000;
    request.may_gather = false;
    ck_assert_int_eq(force_way(request, "reduce"), ISGQ_ERR_UNSUPPORTED);
    ck_assert_int_eq(force_way(request, "dense"), ISGQ_SUCCESS);
    request = first_layer(4);
    ck_assert_int_eq(force_way(request, "share"), ISGQ_ERR_UNSUPPORTED);
    request.ranks_per_host = 1;
    ck_assert_int_eq(force_way(request, "share"), ISGQ_SUCCESS);
    request = first_layer(4);
    request.forced = "auto";
    ck_assert_int_eq(way_of(request), IQ_FACTORED_GATHER);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("choose");
    TCase *tcase = tcase_create("auto");
    tcase_add_test(tcase, auto_by_size);
    tcase_add_test(tcase, size_never_decides_bits);
    tcase_add_test(tcase, lossless_is_exact);
    tcase_add_test(tcase, bytes_come_before_rounds);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("forced");
    tcase_add_test(tcase, forced_names);
    tcase_add_test(tcase, boards);
    tcase_add_test(tcase, ring_that_would_round);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("factored");
    tcase_add_test(tcase, fewest_bytes);
    tcase_add_test(tcase, limits);
    tcase_add_test(tcase, owners);
    tcase_add_test(tcase, sharing);
    tcase_add_test(tcase, measured_machine);
    tcase_add_test(tcase, forced_ways);
    suite_add_tcase(suite, tcase);
    return suite;
}
