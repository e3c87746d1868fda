/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bad arguments of collectives: the documented status and one line of text, and the communicator goes on working afterwards.
 *
 * Invariant 10 of the design, the part that one rank can see by itself; test_handles.c has the other functions,
 * test_mismatch.c what only ranks together can see.
 */
#include "support/cases.h"
#include "support/check_main.h"
#include "support/samples.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BAD ISGQ_ERR_INVALID_ARGUMENT

/* Tests below refuse calls on both ranks; afterwards the communicator must still work. */
static void check_alive(iq_rank_t *rank)
{
    int32_t one = 1, sum = 0;
    RANK_OK(rank, isgq_allreduce(&one, &sum, 1, ISGQ_INT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    RANK_CHECK(rank, sum == rank->nranks, "the communicator does not work any more");
}

static isgq_stream_t a_stream(void) { return (isgq_stream_t)(uintptr_t)64; }

/* ---- allreduce ---- */

static void allreduce_body(iq_rank_t *rank)
{
    isgq_comm_t comm = rank->comm;
    float in[64] = {0}, out[64];
    char *odd = (char *)out + 2;
    isgq_call_options_t no_size = {0}, typo = {.size = sizeof(typo), .algorithm = "rinng"},
                        other = {.size = sizeof(other), .algorithm = "chain"};
    RANK_STATUS(rank, isgq_allreduce(in, out, 8, ISGQ_FLOAT32, ISGQ_SUM, NULL, NULL, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_allreduce(NULL, out, 8, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_allreduce(in, NULL, 8, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_allreduce(in, out, SIZE_MAX, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_allreduce(in, out, SIZE_MAX / 4 + 1, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_allreduce(in, out, SIZE_MAX / 8, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_allreduce(in, odd, 8, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_allreduce(odd, out + 20, 8, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_allreduce(out, out + 1, 8, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_allreduce(out + 7, out, 8, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_allreduce(in, out, 8, (isgq_data_type_t)10, ISGQ_SUM, NULL, comm, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_allreduce(in, out, 8, (isgq_data_type_t)-1, ISGQ_SUM, NULL, comm, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_allreduce(in, out, 8, ISGQ_FLOAT32, (isgq_red_op_t)5, NULL, comm, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_allreduce(in, out, 8, ISGQ_FLOAT32, (isgq_red_op_t)-1, NULL, comm, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_allreduce(in, out, 8, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, a_stream(), NULL), BAD);
    RANK_STATUS(rank, isgq_allreduce(in, out, 8, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, &no_size), BAD);
    RANK_STATUS(rank, isgq_allreduce(in, out, 8, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, &typo), BAD);
    RANK_CHECK(rank, strstr(isgq_get_last_error(), "ring") != NULL, "\"%s\" offers no algorithm", isgq_get_last_error());
    RANK_STATUS(rank, isgq_allreduce(in, out, 8, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, &other), ISGQ_ERR_UNSUPPORTED);
    RANK_OK(rank, isgq_allreduce(NULL, NULL, 0, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, NULL));
    RANK_OK(rank,
            isgq_allreduce(out, out + 8, 8, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, NULL)); /* neighbours do not overlap */
    check_alive(rank);
}

/* A tensor's identity must fit the call. */
static void tensor_option_body(iq_rank_t *rank)
{
    isgq_call_options_t options = {.size = sizeof(options)};
    float out[16] = {0};
    RANK_OK(rank, isgq_tensor_create(&options.tensor, "layer", 16));
    RANK_STATUS(rank, isgq_allreduce(out, out, 8, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, &options), BAD);
    RANK_CHECK(rank, strstr(isgq_get_last_error(), "layer") != NULL, "\"%s\" does not name the tensor", isgq_get_last_error());
    RANK_OK(rank, isgq_allreduce(out, out, 16, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, &options));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    isgq_tensor_destroy(options.tensor);
    check_alive(rank);
}

/* ---- the other collectives ---- */

static void others_body(iq_rank_t *rank)
{
    isgq_comm_t comm = rank->comm;
    float in[64] = {0}, out[64];
    isgq_call_options_t no_size = {0};
    RANK_STATUS(rank, isgq_reduce_scatter(in, out, 4, ISGQ_FLOAT32, ISGQ_SUM, NULL, NULL, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_reduce_scatter(NULL, out, 4, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_reduce_scatter(in, NULL, 4, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_reduce_scatter(in, out, SIZE_MAX / 2 + 1, ISGQ_INT8, ISGQ_SUM, NULL, comm, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_reduce_scatter(in, out, SIZE_MAX / 16, ISGQ_FLOAT64, ISGQ_SUM, NULL, comm, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_reduce_scatter(in, in + (1 - rank->rank) * 4, 4, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_reduce_scatter(in, out, 4, (isgq_data_type_t)77, ISGQ_SUM, NULL, comm, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_reduce_scatter(in, out, 4, ISGQ_FLOAT32, (isgq_red_op_t)77, NULL, comm, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_reduce_scatter(in, out, 4, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, a_stream(), NULL), BAD);
    RANK_STATUS(rank, isgq_reduce_scatter(in, out, 4, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, &no_size), BAD);
    RANK_STATUS(rank, isgq_allgather(in, out, 4, ISGQ_FLOAT32, NULL, NULL, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_allgather(NULL, out, 4, ISGQ_FLOAT32, NULL, comm, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_allgather(in, NULL, 4, ISGQ_FLOAT32, NULL, comm, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_allgather(in, out, SIZE_MAX / 2 + 1, ISGQ_INT8, NULL, comm, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_allgather(in, (char *)out + 1, 4, ISGQ_FLOAT32, NULL, comm, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_allgather(out + (1 - rank->rank) * 4, out, 4, ISGQ_FLOAT32, NULL, comm, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_allgather(in, out, 4, (isgq_data_type_t)77, NULL, comm, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_allgather(in, out, 4, ISGQ_FLOAT32, NULL, comm, a_stream(), NULL), BAD);
    RANK_STATUS(rank, isgq_allgather(in, out, 4, ISGQ_FLOAT32, NULL, comm, NULL, &no_size), BAD);
    RANK_STATUS(rank, isgq_broadcast(in, out, 4, ISGQ_FLOAT32, 0, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_broadcast(in, out, 4, ISGQ_FLOAT32, -1, comm, NULL), BAD);
    RANK_STATUS(rank, isgq_broadcast(in, out, 4, ISGQ_FLOAT32, rank->nranks, comm, NULL), BAD);
    RANK_STATUS(rank, isgq_broadcast(NULL, out, 4, ISGQ_FLOAT32, rank->rank, comm, NULL), BAD);
    RANK_STATUS(rank, isgq_broadcast(in, NULL, 4, ISGQ_FLOAT32, 0, comm, NULL), BAD);
    RANK_STATUS(rank, isgq_broadcast(in, in + 1, 4, ISGQ_FLOAT32, rank->rank, comm, NULL), BAD);
    RANK_STATUS(rank, isgq_broadcast(in, out, SIZE_MAX, ISGQ_FLOAT32, 0, comm, NULL), BAD);
    RANK_STATUS(rank, isgq_broadcast(in, out, 4, (isgq_data_type_t)77, 0, comm, NULL), BAD);
    RANK_STATUS(rank, isgq_broadcast(in, out, 4, ISGQ_FLOAT32, 0, comm, a_stream()), BAD);
    RANK_STATUS(rank, isgq_barrier(NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_barrier(comm, a_stream()), BAD);
    check_alive(rank);
}

static isgq_result_t factored(iq_rank_t *rank, isgq_factors_t factors, size_t max_batch, void *grad)
{
    return isgq_allreduce_factored(&factors, max_batch, grad, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL);
}

static void factored_body(iq_rank_t *rank)
{
    float x[64] = {0}, delta[64] = {0}, grad[64], bias[64];
    isgq_factors_t good = {.size = sizeof(good), .x = x, .delta = delta, .batch = 4, .m = 3, .n = 5, .bias = bias}, bad;
    isgq_call_options_t typo = {.size = sizeof(typo), .algorithm = "gathr"}, ring = {.size = sizeof(ring), .algorithm = "ring"};
    RANK_STATUS(rank, isgq_allreduce_factored(NULL, 4, grad, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_allreduce_factored(&good, 4, grad, ISGQ_FLOAT32, ISGQ_SUM, NULL, NULL, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_allreduce_factored(&good, 4, grad, (isgq_data_type_t)77, ISGQ_SUM, NULL, rank->comm, NULL, NULL), BAD);
    RANK_STATUS(rank, isgq_allreduce_factored(&good, 4, grad, ISGQ_FLOAT32, (isgq_red_op_t)77, NULL, rank->comm, NULL, NULL),
                BAD);
    RANK_STATUS(rank, isgq_allreduce_factored(&good, 4, grad, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, a_stream(), NULL), BAD);
    RANK_STATUS(rank, isgq_allreduce_factored(&good, 4, grad, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, &typo), BAD);
    RANK_STATUS(rank, isgq_allreduce_factored(&good, 4, grad, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, &ring),
                ISGQ_ERR_UNSUPPORTED);
    RANK_STATUS(rank, factored(rank, good, 3, grad), BAD);
    RANK_STATUS(rank, factored(rank, good, 4, NULL), BAD);
    RANK_STATUS(rank, factored(rank, good, 4, (char *)grad + 1), BAD);
    RANK_STATUS(rank, factored(rank, good, 4, x + 1), BAD);
    RANK_STATUS(rank, factored(rank, good, 4, delta + 19), BAD);
    RANK_STATUS(rank, factored(rank, good, 4, bias), BAD);
    bad = good, bad.size = 8;
    RANK_STATUS(rank, factored(rank, bad, 4, grad), BAD);
    bad = good, bad.x = NULL;
    RANK_STATUS(rank, factored(rank, bad, 4, grad), BAD);
    bad = good, bad.delta = NULL;
    RANK_STATUS(rank, factored(rank, bad, 4, grad), BAD);
    bad = good, bad.x = (char *)x + 2;
    RANK_STATUS(rank, factored(rank, bad, 4, grad), BAD);
    bad = good, bad.bias = delta;
    RANK_STATUS(rank, factored(rank, bad, 4, grad), BAD);
    bad = good, bad.m = SIZE_MAX / 2;
    RANK_STATUS(rank, factored(rank, bad, 4, grad), BAD);
    bad = good, bad.m = SIZE_MAX / 8, bad.batch = 0;
    RANK_STATUS(rank, factored(rank, bad, 4, grad), BAD);
    bad = good, bad.n = SIZE_MAX;
    RANK_STATUS(rank, factored(rank, bad, 4, grad), BAD);
    RANK_OK(rank, factored(rank, good, 4, grad));
    check_alive(rank);
}

/* max_batch alone can ask for more than there is: a status, the same on every rank, and no harm. */
static void huge_batch_body(iq_rank_t *rank)
{
    static const size_t sizes[] = {(size_t)1 << 24, (size_t)1 << 40, SIZE_MAX / 2, SIZE_MAX};
    static const char *const algorithms[] = {"gather", "reduce", "dense", NULL};
    float x[8] = {0}, delta[8] = {0}, grad[16];
    isgq_factors_t factors = {.size = sizeof(factors), .x = x, .delta = delta, .batch = 2, .m = 4, .n = 4};
    isgq_quantizer_t quantizer = iq_quantizer(rank, "dense=none;factored=factor:width=4/4");
    for (int i = 0; i < 16; i++) {
        isgq_call_options_t options = {.size = sizeof(options), .algorithm = algorithms[i % 4]};
        isgq_result_t result =
            isgq_allreduce_factored(&factors, sizes[i / 4], grad, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, &options);
        bool fine = result == ISGQ_SUCCESS || result == ISGQ_ERR_UNSUPPORTED || result == ISGQ_ERR_NO_MEMORY || result == BAD;
        RANK_CHECK(rank, fine, "max_batch %zu: status %d", sizes[i / 4], (int)result);
        RANK_CHECK(rank, result == ISGQ_SUCCESS || iq_test_one_line(isgq_get_last_error()), "no text");
        iq_rank_agree(rank, (uint64_t)result, "the status");
        RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    }
    isgq_quantizer_destroy(quantizer);
    check_alive(rank);
}

/* ---- the cases ---- */

static void run(iq_rank_fn body)
{
    iq_ranks_t ranks = {.nranks = 2, .body = body};
    iq_ranks_run(&ranks, NULL);
}

START_TEST(bad_allreduce)
{
    run(allreduce_body);
}
END_TEST

START_TEST(bad_tensor_option)
{
    run(tensor_option_body);
}
END_TEST

START_TEST(bad_others)
{
    run(others_body);
}
END_TEST

START_TEST(bad_factored)
{
    run(factored_body);
}
END_TEST

START_TEST(huge_batch)
{
    run(huge_batch_body);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("arguments");
    TCase *allreduce = iq_add_case(suite, tcase_create("allreduce"), bad_allreduce, 1);
    tcase_add_test(allreduce, bad_tensor_option);
    iq_add_case(suite, tcase_create("other_collectives"), bad_others, 1);
    TCase *factored_calls = iq_add_case(suite, tcase_create("factored"), bad_factored, 1);
    tcase_add_test(factored_calls, huge_batch);
    return suite;
}
